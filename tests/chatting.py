"""Fixtures for the tests of the chat: one app for all of them, every test in a profile of its own.

    def test_an_answer_streams(chat):
        chat.ask("Hi", Script(text="Hello there", gate=True))
        chat.fake.release(1)
        expect(chat.content).to_have_text("Hello")
"""
import re
import socket
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import WATCH, Server, ask, free_port, until, wait_done
from fake_ollama import FakeOllama

OFFLINE = r"WebSocket|ERR_|htmx:(afterRequest|sendError)|\[object Event\]"   # what the console says of a connection that is down
# Each message of the timeline as a reader has it: what is open and what is closed look alike here.
STATE = """() => [...document.querySelectorAll('#msg-list > :is([id^=msg-][data-role], #memory:not([hidden]))')].map(m => {
  const content = m.querySelector('.content').cloneNode(true)
  content.querySelectorAll('[id^="t-"]').forEach(t => t.replaceWith(...t.childNodes))
  return [m.id, m.dataset.role, m.dataset.status, content.innerHTML,
          m.querySelector('.thinking > div')?.textContent, m.querySelector('footer')?.innerText] })"""


class Windows:
    """Browser windows for all these tests: a new one costs a second, so they are used again.

    As with conftest's open_page, what went wrong in a page is held against the app at the end of the
    test, but for console errors that match `allow_errors`.
    """

    def __init__(self, browser):
        self.browser, self.idle, self.used, self.bad, self.gone, self.allow_errors = browser, [], [], [], {}, None

    def _new(self):
        context = self.browser.new_context()         # of its own: a page behind another one would be slowed down
        context.add_init_script(WATCH)
        context.on("console", lambda m: m.type == "error" and self.bad.append(f"console: {m.text} {m.location['url']}"))
        context.on("weberror", lambda e: self.bad.append(f"script: {e.error}"))
        context.on("request", lambda r: self._foreign(r.url) and self.gone.update({r: r.url}))
        context.on("requestfailed", lambda r: r.failure == "csp" and self.gone.pop(r, None))
        page = context.new_page()
        page.set_default_timeout(10_000)
        return page

    @staticmethod
    def _foreign(url):
        at = urlsplit(url)
        return at.scheme in ("http", "https") and not (
            at.hostname in ("127.0.0.1", "localhost") and at.port in {s.port for s in Server.known})

    def open(self, url):
        """A page at this address."""
        page = self.idle.pop() if self.idle else self._new()
        self.used.append(page)
        page.goto(url)
        return page

    def leave(self, page):
        """Done with this page; somebody else may have it."""
        page.unroute_all()
        if page.url.startswith("http"):
            page.evaluate("() => { sessionStorage.clear(); localStorage.clear() }")
        page.goto("about:blank")
        page.context.clear_permissions()
        page.context.clear_cookies()
        self.used.remove(page)
        self.idle.append(page)

    def leave_all(self):
        for page in [*self.used]:
            self.leave(page)
        wrong = [b for b in self.bad if not (self.allow_errors and re.search(self.allow_errors, b))]
        wrong += [f"left for another host: {url}" for url in self.gone.values()]
        self.bad.clear()
        self.gone.clear()
        self.allow_errors = None
        assert not wrong, "the page was not clean:\n" + "\n".join(wrong)


@pytest.fixture(scope="session")
def all_windows(browser):
    windows = Windows(browser)
    yield windows
    for page in windows.idle:
        page.context.close()


@pytest.fixture
def window(all_windows):
    """The Windows, with none in use."""
    yield all_windows
    all_windows.leave_all()


class Chat:
    """A profile with an empty timeline, a page that shows it, and the fake Ollama behind it."""

    def __init__(self, server, fake, window):
        self.server, self.fake, self.window = server, fake, window
        reply = httpx.post(f"{server.url}/profile", data={"name": "Somebody"}, trust_env=False)
        self.profile = int(re.search(r'id="profile-(\d+)"', reply.text)[1])
        self.path = f"/profile/{self.profile}"
        self.url = server.url + self.path
        self.page = self.open()

    def open(self):
        """One more page of this profile."""
        return self.window.open(self.url)

    def another(self):
        """A second profile of the same app."""
        return Chat(self.server, self.fake, self.window)

    def ask(self, text="Hi", script=None):
        """Ask from the first page; back when the model has been asked too, if a script says what it answers."""
        before = len(self.fake.chats)
        if script:
            self.fake.script(script)
        ask(self.page, text)
        if script:
            self.fake.wait_chat(before + 1)

    def answered(self, text="Hi", script=None):
        """Ask and wait for the whole answer."""
        self.ask(text, script)
        return wait_done(self.page)

    def post(self, path, **data):
        reply = httpx.post(f"{self.server.url}/{path}", data=data, trust_env=False)
        reply.raise_for_status()
        return reply.text

    @property
    def answers(self):
        return self.page.locator("[data-role=assistant]")

    @property
    def prompts(self):
        return self.page.locator("[data-role=user]")

    @property
    def answer(self):
        return self.answers.last

    @property
    def content(self):
        return self.answer.locator(".content")

    def button(self, name):
        return self.answer.get_by_role("button", name=name, exact=True)

    def rows(self, where="1"):
        return self.server.sql(f"select * from message where profile = ? and {where} order by id", self.profile)

    def idle(self):
        return not self.rows("status in ('queued', 'streaming') and not deleted")

    def state(self, page=None):
        """The timeline as a page shows it (chat.page, if none is named)."""
        return (page or self.page).evaluate(STATE)

    def fresh(self):
        """The timeline as a page shows it that has just been opened."""
        page = self.open()
        try:
            return self.state(page)
        finally:
            self.window.leave(page)


@pytest.fixture(scope="session")
def home():
    """The app that all tests of the chat share; at home.ollama is where it looks for Ollama."""
    port = free_port()
    server = Server({"OLLAMA_HOST": f"127.0.0.1:{port}"})
    server.ollama = port
    yield server.start()
    server.remove()


@pytest.fixture
def chat(home, window):
    """A Chat with a fake Ollama of its own. What a test leaves running ends with it."""
    Server.known.append(home)
    with FakeOllama(port=home.ollama) as fake:
        if home.proc.poll() is not None:
            home.start()
        chat = Chat(home, fake, window)
        yield chat
    if home.proc.poll() is None:
        until(chat.idle, what="an end of all answers")


class Wire:
    """A line between browser and app that can be cut and mended, as a sleeping laptop does it."""

    def __init__(self, server):
        self.target, self.up, self.pairs = server.port, True, []
        self.deaf = set()                # {"app"}: what the page says is lost; {"page"}: what the app says is
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._listen, daemon=True).start()
        Server.known.append(SimpleNamespace(port=self.port, file=Path("wire"), out=str))

    def _listen(self):
        while True:
            try:
                near = self.door.accept()[0]
            except OSError:
                return
            if not self.up:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.pairs.append((near, far))
            for ears, a, b in ("app", near, far), ("page", far, near):
                threading.Thread(target=self._pump, args=[ears, a, b], daemon=True).start()

    def _pump(self, ears, a, b):
        try:
            while data := a.recv(65536):
                if ears not in self.deaf:
                    b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self):
        """Break every connection and let none through until mend()."""
        self.up = False
        for pair in self.pairs:
            for end in pair:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
        self.pairs.clear()

    def mend(self):
        self.deaf.clear()
        self.up = True


@pytest.fixture
def wire(chat):
    """A Wire to the app, and chat.page on the far side of it."""
    wire = Wire(chat.server)
    chat.window.allow_errors = OFFLINE
    chat.page.goto(wire.url + chat.path)
    yield wire
    wire.cut()
    wire.door.close()
