"""The figures that this app is to reach, measured side by side with a bare reference.

    python tests/bench.py                  all of them (some minutes)
    python tests/bench.py start full       only these; --list tells the names

A benchmark, not a test: it prints a table and judges nobody's build. Each reference is measured
in the same run, since machines differ: the bare import of the libraries, and a bare httpx reader
of the same stream from the same fake Ollama, in a process of its own.

A new figure is a function with @figure that calls row().
"""
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
if __name__ == "__main__" and VENV.is_dir() and Path(sys.prefix).resolve() != VENV.resolve():
    os.execv(VENV / "bin" / "python", [VENV / "bin" / "python", *sys.argv])

import asyncio
import contextlib
import html
import json
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import threading
import time
from functools import cached_property
from urllib.parse import urlsplit

import httpx
import psutil
from conftest import Server, launch, until
from fake_ollama import FakeOllama, Script
from playwright.sync_api import sync_playwright
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

FIGURES, ROWS = {}, []
median = statistics.median
# numpy and pandas, where they are there, would be imported by fastlite: an app does without them
IMPORTS = "import sys; sys.modules.update(numpy=None, pandas=None); import fasthtml.common, fastlite, httpx, uvicorn"


def figure(do):
    """Makes a function one of the figures, by its name."""
    FIGURES[do.__name__] = do
    return do


def shown(x, unit=""):
    return "" if x is None else f"{x:,.{0 if x == int(x) else 3 if abs(x) < 1 else 1}f}{unit and ' ' + unit}"


def row(what, value, unit="", ref=None, most=None, ratio=None, diff=None):
    """One line of the table. The goal is for the value itself (most), for its ratio to the
    reference, or for what it is above the reference (diff)."""
    against = value / ref if ratio and ref else value - ref if diff is not None else None
    goal = next((g for g in (most, ratio, diff) if g is not None), None)
    bad = goal is not None and (value if against is None else against) > goal
    sign = "x" if ratio else unit
    ROWS.append(bad)
    print(f"{what:<50} {shown(value, unit):>12} {shown(ref, unit):>12} {shown(against, sign):>12} "
          f"{'' if goal is None else '<= ' + shown(goal, sign):>14}  "
          f"{'' if goal is None else 'MISS' if bad else 'ok'}", flush=True)


# ---- what measures

def tree(pid):
    """A process and all that it started."""
    main = psutil.Process(pid)
    return [main, *main.children(recursive=True)]


def cpu(processes):
    """Seconds of CPU that they have had so far."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):      # a spare renderer may have gone
            total += sum(process.cpu_times()[:2])
    return total


def pss(pid):
    """MB of memory, what is shared counted in parts."""
    return sum(p.memory_full_info().pss for p in tree(pid)) / 1e6


def run(*args):
    """This very file as a helper in a process of its own: one JSON line."""
    done = subprocess.run([sys.executable, __file__, *args], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


async def read(url):
    """The bare reference: httpx reads the stream, splits it at the line feeds, parses each line."""
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "Hi"}]}
    times, rest = [], b""
    async with httpx.AsyncClient(trust_env=False, timeout=None) as web:
        start = time.process_time()
        async with web.stream("POST", f"{url}/api/chat", json=body) as reply:
            async for data in reply.aiter_raw():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if json.loads(line)["message"]["content"]:
                        times.append(time.time())
    print(json.dumps({"times": times, "cpu": time.process_time() - start}))


async def tabs(url, n):
    """n open tabs without a browser, each reading all it gets, until standard input ends."""
    async def tab(sock):
        async for _ in sock:
            pass
    async with contextlib.AsyncExitStack() as stack:
        at = f"{url.replace('http', 'ws')}/ws?profile=1"
        socks = [await stack.enter_async_context(connect_async(at, origin=url, max_size=None))
                 for _ in range(n)]
        readers = [asyncio.create_task(tab(s)) for s in socks]
        print(json.dumps({"open": n}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for reader in readers:
            reader.cancel()


class Tab:
    """A tab without a browser, in this process: it reads, and may ask."""

    def __init__(self, server):
        at = f"{server.url.replace('http', 'ws')}/ws?profile=1"
        self.server, self.sock = server, connect(at, origin=server.url, max_size=None)
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self):
        with contextlib.suppress(Exception):
            for _ in self.sock:
                pass

    def ask(self, fake, script):
        """Ask, and wait until the answer is complete in the database; the seconds it took."""
        done = "select count(*) from message where role = 'assistant' and status = 'done'"
        before, start = self.server.sql(done)[0][0], time.perf_counter()
        fake.script(script)
        self.sock.send(json.dumps({"msg": "Hi"}))
        until(lambda: self.server.sql(done)[0][0] > before, 120, "an answer")
        return time.perf_counter() - start


# In the page: when which token was first to be seen, and when the answer had ended.
WATCH = """() => {
  const b = window.bench = {seen: [], at: -1}; let resolve;
  b.reset = () => { b.seen = []; b.at = -1; b.old = b.last(); b.done = new Promise(r => resolve = r); };
  b.last = () => [...document.querySelectorAll('#msg-list [data-role=assistant]')].at(-1);
  new MutationObserver(() => {
    const now = performance.timeOrigin + performance.now(), m = b.last();
    if (!m || m === b.old) return;
    const text = m.querySelector('.content')?.textContent || '', k = text.lastIndexOf('w');
    const n = k < 0 ? -1 : parseInt(text.slice(k + 1));
    if (n > b.at) { b.seen.push([now / 1000, n]); b.at = n; }
    if (['done', 'stopped', 'error'].includes(m.dataset.status)) resolve(m.dataset.status);
  }).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true,
                             attributeFilter: ['data-status']}); }"""


class Bench:
    """What the figures share: one fake Ollama, one browser."""

    @cached_property
    def fake(self):
        return self.stack.enter_context(FakeOllama())

    @cached_property
    def browser(self):
        return launch(self.stack.enter_context(sync_playwright()))

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        return self

    def __exit__(self, *exc):
        self.stack.close()

    @contextlib.contextmanager
    def server(self, start=True, **more):
        server = Server({"OLLAMA_HOST": self.fake.url}, **more)
        try:
            yield server.start() if start else server
        finally:
            server.remove()

    @contextlib.contextmanager
    def page(self, server):
        """A page with the observer in it, its socket open."""
        context = self.browser.new_context()
        page = context.new_page()
        with page.expect_websocket():
            page.goto(server.url)
        page.evaluate(WATCH)
        try:
            yield page
        finally:
            context.close()

    def renderers(self):
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [process] * ("--type=renderer" in " ".join(process.cmdline()))
        return found

    def answer(self, page, server, script):
        """One answer in the page. When each token was sent and seen, and what CPU it took."""
        page.evaluate("bench.reset()")
        self.fake.script(script)
        renderers, server_tree = self.renderers(), tree(server.pid)
        browser_cpu, server_cpu = cpu(renderers), cpu(server_tree)
        page.locator("#msg").fill("Hi")
        page.locator("#msg").press("Enter")
        status = page.evaluate("bench.done")
        assert status == "done", f"the answer ended as {status}"
        took = cpu(server_tree) - server_cpu, cpu(renderers) - browser_cpu
        seen, at, dom = page.evaluate("bench.seen"), 0, []
        sent = [(int(m[1]), t) for token, t in self.fake.sent if (m := re.search(r"w(\d+)", token))]
        for n, _ in sent:                        # first seen in the first frame that shows it or a later one
            while at < len(seen) and seen[at][1] < n:
                at += 1
            assert at < len(seen), f"w{n} never came"
            dom.append(seen[at][0])
        return {"sent": [when for _, when in sent], "dom": dom, "server": took[0], "browser": took[1],
                "text": page.evaluate("bench.last().querySelector('.content').textContent")}

    def frames(self, server, script):
        """Bytes on the socket for one answer, before compression. Apart, since the counting costs."""
        with self.page(server) as page:
            cdp, sizes = page.context.new_cdp_session(page), []
            cdp.on("Network.webSocketFrameReceived",
                   lambda e: sizes.append(len(e["response"]["payloadData"].encode())))
            cdp.send("Network.enable")
            page.reload()
            page.evaluate(WATCH)
            page.wait_for_load_state("networkidle")
            sizes.clear()
            self.answer(page, server, script)
            return sum(sizes)


# ---- what is streamed

def prose(n):
    """n tokens as models write them: paragraphs, a heading now and then, lists, bold, code."""
    for i in range(n):
        within = i % 400
        before = "" if i == 0 else "\n\n## " if within == 0 else "\n\n" if i % 50 == 0 or within == 8 else \
            "\n- " if within > 350 and i % 10 == 0 else " "
        mark = "**" if i % 23 == 0 else "`" if i % 31 == 0 else ""
        yield f"{before}{mark}w{i}{mark}"


def code(n):
    """One block of n tokens, eight a line."""
    yield "```python\n"
    for i in range(n):
        yield ("", " = ", "(", ", ", ", ", ") + ", " if ", " else ")[i % 8] + f"w{i}" + "\n" * (i % 8 == 7)
    yield "\n```\n"


def table(rows):
    """One table of four columns."""
    yield "| a | b | c | d |\n|---|---|---|---|\n"
    for i in range(rows * 4):
        yield f"| w{i} " + "|\n" * (i % 4 == 3)


# ---- issue 2: the app stands up

@figure
def start(b):
    """From the start of the process to the first answer, beside the bare import."""
    def bare():
        begin = time.perf_counter()
        code = f"{IMPORTS}; print(1, flush=True)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as p:
            p.stdout.readline()
            return time.perf_counter() - begin

    def answers(server):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(f"GET / HTTP/1.0\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
            return s.recv(15).startswith(b"HTTP/1.1 200")

    def started(server):
        begin = time.perf_counter()
        server.start(wait=False)
        until(lambda: answers(server), 20, "200", pause=0.001)
        took = time.perf_counter() - begin
        server.kill()
        return took
    bares, first, again = [], [], []
    for i in range(6):
        with b.server(start=False) as server:
            got = bare(), started(server), started(server)
        if i:                                    # the first round fills the caches
            for times, t in zip((bares, first, again), got, strict=True):
                times.append(t)
    row("start to first 200, empty folder", median(first), "s", median(bares), ratio=1.5)
    row("start to first 200, data there", median(again), "s", median(bares), ratio=1.5)


@figure
def memory(b):
    """PSS of the process tree once a page is open, beside the bare import held open."""
    with b.server() as server, b.page(server), subprocess.Popen(
            [sys.executable, "-c", f"{IMPORTS}, sys; print(1, flush=True); sys.stdin.read()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        bare.stdout.readline()
        row("memory with one page open", pss(server.pid), "MB", pss(bare.pid), diff=15)


@figure
def page(b):
    """A first visit: requests, bytes, hosts, and the time until it can be used."""
    usable = []
    with b.server() as server:
        for _ in range(6):
            context = b.browser.new_context()
            page, sizes, urls, when = context.new_page(), [], [], {}
            cdp = context.new_cdp_session(page)
            cdp.on("Network.requestWillBeSent", lambda e, u=urls, w=when: (
                u.append(e["request"]["url"]), w.setdefault("begin", e["timestamp"])))
            cdp.on("Network.loadingFinished", lambda e, s=sizes: s.append(e["encodedDataLength"]))
            cdp.on("Network.webSocketHandshakeResponseReceived",
                   lambda e, w=when: w.update(open=e["timestamp"]))
            cdp.on("Page.domContentEventFired", lambda e, w=when: w.update(ready=e["timestamp"]))
            page.goto(b.fake.url)                # a tab that is open: not the browser's own start
            cdp.send("Network.enable")
            cdp.send("Page.enable")
            page.goto(server.url, wait_until="networkidle")
            urls = [u for u in urls if not u.startswith("data:")]
            usable.append((max(when["open"], when["ready"]) - when["begin"]) * 1000)
            context.close()
    row("first visit: requests (and one socket)", len(urls), most=6)
    row("first visit: bytes, as sent", sum(sizes) / 1000, "kB", most=120)
    ours = urlsplit(server.url).netloc
    row("first visit: to other hosts", sum(urlsplit(u).netloc != ours for u in urls), most=0)
    row("first visit: usable (script and socket)", median(usable[1:]), "ms", most=250)


@figure
def first(b):
    """The first token, from the fake's sending to the DOM, beside the bare reader."""
    app, bare = [], []
    with b.server() as server, b.page(server) as page:
        for _ in range(11):
            b.fake.script(Script(text="w0", rate=50))
            bare.append(run("--read", b.fake.url)["times"][0] - b.fake.sent[0][1])
            got = b.answer(page, server, Script(tokens=["w0", " w1"], rate=5))
            app.append(got["dom"][0] - got["sent"][0])
    row("first token sent -> in the DOM", median(app[1:]) * 1000, "ms", median(bare[1:]) * 1000, diff=20)


# ---- issue 3: chatq

@figure
def steady(b):
    """50 tokens a second: each one's way to the DOM."""
    firsts, later, bare = [], [], []
    with b.server() as server, b.page(server) as page:
        for i in range(12):
            tokens = [f"w{k} " for k in range(50)]
            if i % 4 == 0:
                b.fake.script(Script(tokens=tokens, rate=50))
                got = run("--read", b.fake.url)["times"]
                bare += [t - s for t, (_, s) in zip(got, b.fake.sent, strict=True)]
            got = b.answer(page, server, Script(tokens=tokens, rate=50))
            took = [(d - s) * 1000 for d, s in zip(got["dom"], got["sent"], strict=True)]
            if i:
                firsts.append(took[0])
                later += took[1:]
    ref = median(bare) * 1000
    row("50 tokens/s: first token, median", median(firsts), "ms", ref, most=8)
    row("50 tokens/s: later ones, median", median(later), "ms", ref, most=8)
    row("50 tokens/s: later ones, 95th percentile", statistics.quantiles(later, n=20)[-1], "ms", most=40)


def at_full_speed(b, what, tokens, times=1, rounds=3):
    """One kind of text at full speed; `times` loosens the goals. Returns the figures for growth."""
    tokens = list(tokens)
    words = len(re.findall(r"w\d+", "".join(tokens)))
    bare, got = [], []
    with b.server() as server:
        with b.page(server) as page:
            for _ in range(rounds + 1):          # one to warm up
                b.fake.script(Script(tokens=tokens))
                one = run("--read", b.fake.url)
                bare.append((one["times"][-1] - b.fake.sent[0][1], one["cpu"]))
                one = b.answer(page, server, Script(tokens=tokens))
                order = [int(n) for n in re.findall(r"w(\d+)", one["text"])]
                assert order == list(range(words)), f"{what}: {len(order)} of {words} words, or not in order"
                got.append((one["dom"][-1] - b.fake.sent[0][1], one["server"], one["browser"]))
        size = b.frames(server, Script(tokens=tokens))
    (bare_last, bare_cpu), (last, server_cpu, browser_cpu) = (
        [median(column) for column in zip(*rows[1:], strict=True)] for rows in (bare, got))
    small = times == 0
    row(f"{what}: last token in the DOM", last * 1000, "ms", bare_last * 1000,
        diff=None if small else 300 * times)
    row(f"{what}: server CPU", server_cpu, "s", bare_cpu, most=None if small else 0.6 * times)
    row(f"{what}: browser CPU", browser_cpu, "s", most=None if small else times)
    row(f"{what}: socket bytes per byte of text", size / len("".join(tokens).encode()),
        most=None if small else 12 * times)
    return {"time": last, "server CPU": server_cpu, "browser CPU": browser_cpu, "bytes": size}


@figure
def full(b):
    """2,000 and 8,000 tokens at full speed: all there, once and in order, and what it costs."""
    small = at_full_speed(b, "2,000 tokens", prose(2000), times=0, rounds=5)
    large = at_full_speed(b, "8,000 tokens", prose(8000))
    for what in small:
        row(f"2,000 -> 8,000 tokens: growth of {what}", large[what] / small[what], most=4.4)


@figure
def block(b):
    """The same for one huge block of code."""
    at_full_speed(b, "8,000 tokens of code", code(8000), times=2)


@figure
def rows(b):
    """The same for one long table."""
    at_full_speed(b, "table of 500 rows", table(500), times=2)


@figure
def ten(b):
    """Ten tabs on one stream against one."""
    took = {}
    for n in 1, 10:
        with b.server() as server, subprocess.Popen(
                [sys.executable, __file__, "--tabs", server.url, str(n - 1)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as others:
            others.stdout.readline()
            tab, used = Tab(server), []
            for _ in range(4):
                before = cpu(tree(server.pid))
                tab.ask(b.fake, Script(tokens=list(prose(8000))))
                used.append(cpu(tree(server.pid)) - before)
            took[n] = median(used[1:])
            others.stdin.close()
    row("ten tabs on one stream: server CPU", took[10], "s", took[1], ratio=4)


DEAF = ("GET /ws?profile=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")


@figure
def stalled(b):
    """A tab that stops reading for 30 s while others go on."""
    script = Script(tokens=list(prose(8000)))
    with b.server() as server:
        tab = Tab(server)
        alone = [tab.ask(b.fake, script) for _ in range(4)][1:]
        before, most, beside = pss(server.pid), 0, []
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(DEAF.format(port=server.port).encode())
            assert b" 101 " in deaf.recv(40)
            end = time.monotonic() + 30
            while time.monotonic() < end:
                beside.append(tab.ask(b.fake, script))
                most = max(most, pss(server.pid))
    row("beside a stalled tab: one answer of 8,000", median(beside), "s", median(alone), ratio=1.2)
    row("beside a stalled tab: memory, at most", most, "MB", before, diff=10)


@figure
def fifty(b):
    """50 answers of 2,000 tokens: is the memory given back?"""
    with b.server() as server:
        tab = Tab(server)
        tab.ask(b.fake, Script(tokens=list(prose(2000))))
        before = pss(server.pid)
        for _ in range(50):
            tab.ask(b.fake, Script(tokens=list(prose(2000))))
        row("memory after 50 answers of 2,000 tokens", pss(server.pid), "MB", before, diff=15)


# ---- issue 4: lists

def web(server):
    """A script's connection, kept open: what is measured is the app, not the handshake."""
    return httpx.Client(base_url=server.url, trust_env=False, timeout=60)


def timed(do, times=41):
    """The median of so many calls, in ms; the first ones warm up."""
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        do()
        took.append((time.perf_counter() - begin) * 1000)
    return median(took[times // 4:])


def bare_add(folder):
    """The reference: fastlite alone, one insert and one item as HTML, the median in ms."""
    from fasthtml.common import Button, Input, Li, Span, to_xml
    from fastlite import Database

    class Todo:
        id: int
        title: str
        done: bool
    todos = Database(Path(folder) / "bare.db").create(Todo, pk="id")

    def add():
        t = todos.insert(Todo(title="Buy milk", done=False))
        box = {"type": "checkbox", "id": f"check-{t.id}", "name": None, "autocomplete": "off"}
        to_xml(Li(Button("⠿", cls="quiet grip", aria_label=f"Move {t.title}", title="Drag", tabindex="-1", type="button"),
                  Input(**box, aria_label=t.title, hx_post="/toggle"),
                  Span(t.title, cls="title"),
                  Button("✎", cls="quiet", aria_label=f"Rename {t.title}", title="Edit", hx_get="/edit"),
                  Button("×", cls="quiet", aria_label=f"Delete {t.title}", title="Delete", hx_post="/delete"),
                  id=f"todo-{t.id}", hx_target="this", hx_swap="outerHTML", tabindex="0"), indent=False)
    print(json.dumps(timed(add, 201)))


@contextlib.contextmanager
def by_hand(server):
    """A POST of a form over one connection, byte by byte: a client library takes as long as the server."""
    head = ("POST {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            "Content-Length: {}\r\n\r\n{}")
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        def post(path, body, end):
            sock.sendall(head.format(path, server.port, len(body), body).encode())
            got = b""
            while not got.endswith(end):
                got += sock.recv(65536)
        yield post


@figure
def adding(b):
    """Adding a todo over HTTP, beside a bare fastlite insert plus rendering one item, in turns."""
    with b.server() as server, by_hand(server) as post:
        rounds = [(timed(lambda: post("/todo", "title=Buy+milk", b"</li>"), 201), run("--bare-add", str(server.top)),
                   timed(lambda: post("/stop?profile=1", "title=Buy+milk", b"\r\n\r\n"), 201)) for _ in range(5)]
        ours, bare, idle = map(median, zip(*rounds, strict=True))
        row("adding a todo", ours, "ms", bare, ratio=1.5)
        row("of that a POST that does nothing: HTTP and routing", idle, "ms")


@figure
def long(b):
    """A list of 10,000 todos against one of 100."""
    took = {}
    for n in 100, 10_000:
        with b.server() as server, web(server) as client:
            for start in range(0, n, 500):
                lines = "\n".join(f"Todo number {i}" for i in range(start, min(start + 500, n)))
                client.post("/todo", data={"title": lines}).raise_for_status()
            ids = iter(range(1, n))
            took[n] = {"page": timed(lambda: client.get("/").raise_for_status(), 21),
                       "add": timed(lambda: client.post("/todo", data={"title": "One more"})),
                       "toggle": timed(lambda: client.post(f"/toggle/{next(ids)}")),
                       "move": timed(lambda: client.post("/move", params={"kind": "todo", "id": n, "before": next(ids)})),
                       "delete": timed(lambda: client.post("/delete", params={"kind": "todo", "id": next(ids) - 1}), 15)}
    for what, few in took[100].items():
        row(f"10,000 todos against 100: {what}", took[10_000][what], "ms", few, ratio=3 if what == "page" else 2)


@figure
def alike(b):
    """A change by a script, until it has reached another tab."""
    took = []
    with b.server() as server, by_hand(server) as post, connect(
            f"{server.url.replace('http', 'ws')}/ws?profile=1", origin=server.url, max_size=None) as sock:
        for n in range(1, 101):
            begin = time.perf_counter()
            post("/todo", f"title=Number+{n}", b"</li>")
            while f'id="todo-{n}"' not in sock.recv(10):
                pass
            took.append((time.perf_counter() - begin) * 1000)
    row("a change in another tab, median", median(took), "ms", most=200)
    row("a change in another tab, the slowest of 100", max(took), "ms", most=200)


def fill_chats(server, n):
    """So many chats of 50 messages: copies of one, written while the app is not running."""
    text = "A paragraph of **some** length, as answers have it, with `code` in it. " * 5
    httpx.post(f"{server.url}/chatq", data={"text": text}, trust_env=False).raise_for_status()
    server.stop()
    with contextlib.closing(sqlite3.connect(server.db)) as db, db:
        def copy(table, times, **changes):
            names = [r[1] for r in db.execute(f"pragma table_info({table})") if r[1] != "id"]
            values = ", ".join(changes.get(name, name) for name in names)
            db.execute(f"""with recursive n(i) as (select 1 union all select i + 1 from n where i < {times})
                           insert into {table}({", ".join(names)}) select {values} from n, {table} where {table}.id = 1""")
        copy("message", 49)
        for chat in range(2, n + 1):
            copy("chat", 1, title=f"'Chat number {chat}'", priority=f"priority + {chat}")
            copy("message", 50, chat=str(chat))
    server.start()


SWITCHING = """() => {
  addEventListener('click', () => { sessionStorage.clicked = performance.timeOrigin + performance.now() }, true)
  new MutationObserver(() => {
    if (document.querySelectorAll('#msg-list > .msg').length < 50 || window.took) return
    window.took = performance.timeOrigin + performance.now() - sessionStorage.clicked
  }).observe(document, { childList: true, subtree: true })
}"""


@figure
def chats(b):
    """1,000 chats of 50 messages against one."""
    took = {}
    for n in 1, 1000:
        with b.server() as server, web(server) as client:
            fill_chats(server, n)
            until(lambda: not server.sql("select 1 from find_due limit 1"), 120, "the search")
            first = timed(lambda: client.get("/").raise_for_status(), 21)
            numbers = iter(range(1, 1000) if n > 1 else [1] * 1000)
            one = timed(lambda: client.get(f"/chat/{next(numbers)}").raise_for_status(), 21)
            took[n] = first, one, pss(server.pid)
            if n > 1:
                with b.page(server) as page:
                    page.add_init_script(f"({SWITCHING})()")
                    page.reload()
                    switched = []
                    for row_ in range(2, 8):
                        with page.expect_navigation():
                            page.locator(f"#chat-list li:nth-child({row_}) a").click()
                        switched.append(page.wait_for_function("window.took").json_value())
    for i, what in enumerate(("first page", "another chat's page")):
        row(f"1,000 chats against one: {what}", took[1000][i], "ms", took[1][i], ratio=1.2)
    row("1,000 chats against one: memory", took[1000][2], "MB", took[1][2], ratio=1.2)
    row("switching: from the click to the last message", median(switched), "ms", most=150)


@figure
def clients(b):
    """20 clients that read and write for 30 s: no error, and the end is what they did."""
    end, took, wrong, model = time.monotonic() + 30, [], [], {}

    def client(server, number):
        dice, mine = random.Random(number), {}
        with web(server) as client:
            profile = int(re.search(r'id="profile-(\d+)"', client.post("/profile", data={"name": f"P{number}"}).text)[1])
            while time.monotonic() < end:
                what, begin = dice.choice(["add", "add", "read", "toggle", "rename", "delete"]), time.perf_counter()
                one = dice.choice(list(mine)) if mine else None
                if what == "add" or one is None:
                    got = client.post("/todo", data={"title": f"Todo {len(took)}", "profile": profile})
                    ident = int(re.search(r'id="todo-(\d+)"', got.text)[1])
                    mine[ident] = [html.unescape(re.search(r'class="title">([^<]*)', got.text)[1]), 0]
                elif what == "read":
                    got = client.get(f"/profile/{profile}")
                elif what == "toggle":
                    got = client.post(f"/toggle/{one}")
                    mine[one][1] ^= 1
                elif what == "rename":
                    got = client.post("/rename", params={"kind": "todo", "id": one}, data={"name": "Another name"})
                    mine[one][0] = "Another name"
                else:
                    got = client.post("/delete", params={"kind": "todo", "id": one})
                    del mine[one]
                took.append((time.perf_counter() - begin) * 1000)
                wrong.extend([got.status_code] * (got.status_code != 200))
        model.update(mine)
    with b.server() as server:
        threads = [threading.Thread(target=client, args=(server, n)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stored = {r["id"]: [r["title"], r["done"]] for r in server.sql("select * from todo where not deleted")}
    row("20 clients for 30 s: errors", len(wrong), most=0)
    wrong = sum(stored.get(k) != v for k, v in model.items())
    row("20 clients for 30 s: todos that are not as they should be", wrong + abs(len(stored) - len(model)), most=0)
    row(f"20 clients for 30 s: median of {len(took):,} requests", median(took), "ms")


# ---- issue 14: what is shown

FORMULAS = (r"\(x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}\)", r"$\sum_{i=0}^{n} i = \frac{n(n+1)}{2}$",
            r"$e^{i\pi} + 1 = 0$", r"\[\int_0^1 x^2 \, dx = \frac{1}{3}\]")


@figure
def formulas(b):
    """8,000 tokens with 200 formulas, beside the same text without: the server's CPU."""
    words = list(prose(8000))
    with_formulas = [word + (f" {FORMULAS[i // 40 % 4]}" if i % 40 == 20 else "") for i, word in enumerate(words)]
    tokens = [token for word in with_formulas for token in re.findall(r"\s*\w+|\s*[^\w\s]+", word)]
    with b.server() as server:
        tab, rounds = Tab(server), []
        tab.ask(b.fake, Script(text="$x$"))              # the library is loaded
        for _ in range(3):
            taken = []
            for script in Script(tokens=words, rate=800), Script(tokens=tokens, rate=800 * len(tokens) / len(words)):
                before = cpu(tree(server.pid))
                tab.ask(b.fake, script)
                taken.append(cpu(tree(server.pid)) - before)
            rounds.append(taken)
        without, drawn = map(median, zip(*rounds, strict=True))
    row("8,000 tokens with 200 formulas: server CPU", drawn, "s", without, ratio=2)


# ---- issue 5: jobs

COUNTING = """
@job
def count_up(chat, n: int):
    begin = time.perf_counter()
    for i in range(n): pass
    bare = time.perf_counter() - begin
    begin = time.perf_counter()
    for i in range(n): chat.progress(i + 1, n)
    return f'took {time.perf_counter() - begin - bare:.4f} s'

"""


@figure
def progress(b):
    """100,000 calls of chat.progress from a thread: what they cost above the bare loop, and the frames to a tab."""
    with b.server(start=False) as server:
        server.file.write_text(re.sub(r"\n# ---- \d+\. Main", lambda m: f"{COUNTING}{m[0]}", server.file.read_text()))
        server.start()
        frames, done = 0, threading.Event()
        address = f"{server.url.replace('http', 'ws')}/ws?profile=1"
        with connect(address, origin=server.url, max_size=None) as sock, web(server) as client:
            def listen():
                nonlocal frames
                for frame in sock:
                    frames += 1
                    if " s</p>" in frame or "took" in frame:
                        return done.set()
            threading.Thread(target=listen, daemon=True).start()
            begin = time.perf_counter()
            client.post("/run/count_up", data={"n": 100_000}).raise_for_status()
            assert done.wait(60)
            wall = time.perf_counter() - begin
        took = float(re.search(r"took ([\d.]+)", server.sql("select content from message where role = 'job'")[0][0])[1])
    row("100,000 progress calls: above the bare loop", took, "s", most=2)
    row("100,000 progress calls: frames per second to a tab", frames / max(wall, 1), most=60)


PLOTTING = """
@job
def plot_many(chat, n: int):
    import matplotlib.pyplot as plt
    for i in range(n):
        plt.plot(range(i + 2))
        plt.title(f'Plot {i + 1}')
        plt.show()
    return 'All plotted.'

"""
TYPING = """() => new Promise(done => {
  const field = document.getElementById('msg'), start = performance.now()
  field.dispatchEvent(new InputEvent('input', { bubbles: true }))
  setTimeout(() => done(performance.now() - start))
})"""


@figure
def figures(b):
    """200 figures in one job: the server's memory afterwards, and how long the page takes to answer to a key meanwhile."""
    with b.server(start=False) as server:
        server.file.write_text(re.sub(r"\n# ---- \d+\. Main", lambda m: f"{PLOTTING}{m[0]}", server.file.read_text()))
        server.start()
        waits = []

        def plot(n):
            with web(server) as client:
                client.post("/run/plot_many", data={"n": n}).raise_for_status()

        def over():
            return server.sql("select status from message order by id desc")[0][0] != "streaming"
        plot(200)                    # matplotlib itself, and what it and malloc keep, stays in memory
        until(over, 120)
        before = pss(server.pid)
        page = b.browser.new_page()
        page.goto(server.url)
        plot(200)
        while not over():
            waits.append(page.evaluate(TYPING))
            time.sleep(.05)
        page.get_by_text("All plotted.").last.wait_for()
        page.close()
        after = pss(server.pid)
    row("200 figures: memory above that before", after, "MB", before, diff=20)
    row("200 figures: the slowest answer to a key", max(waits), "ms", most=100)


def bare_inserts(folder, n):
    """The reference: so many inserts with commit by Python's own sqlite3, in s."""
    with contextlib.closing(sqlite3.connect(Path(folder) / "bare.db")) as db:
        db.execute("create table message(id integer primary key, profile int, role text, content text, created real)")
        begin = time.perf_counter()
        for i in range(n):
            db.execute("insert into message(profile, role, content, created) values (1, 'job', ?, ?)", [f"Line {i}", time.time()])
            db.commit()
        print(json.dumps(time.perf_counter() - begin))


@figure
def scripts(b):
    """1,000 POST /chatq one after another, beside 1,000 bare inserts with commit."""
    with b.server() as server, by_hand(server) as post:
        begin = time.perf_counter()
        for i in range(1000):
            post("/chatq", f"text=Line+{i}", b"\r\n\r\n" + str(i + 1).encode())
        took = time.perf_counter() - begin
        texts = [r[0] for r in server.sql("select content from message where role = 'job' order by id")]
        assert texts == [f"Line {i}" for i in range(1000)], "not all there, or not in order"
        row("1,000 POST /chatq", took, "s", run("--bare-inserts", str(server.top), "1000"), ratio=3)


# ---- notebooks

def plain_exec(folder, rounds):
    """The reference: the cells' code by exec, in a folder, with a plot drawn where it is shown; the seconds of each round."""
    import io
    begin = time.perf_counter()

    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    def show():
        plt.gcf().savefig(io.BytesIO(), bbox_inches="tight")    # as nbconvert has it
        plt.close("all")
    plt.show = show
    os.chdir(folder)
    cells = json.loads(Path("clicks.ipynb").read_text())["cells"]
    codes = ["".join(c["source"]).replace("%matplotlib inline", "") for c in cells if c["cell_type"] == "code"]
    took = []
    for _ in range(rounds):
        names = {}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for n, code in enumerate(codes):
                exec(code, names)
                if n == 2:      # the table that this cell shows
                    names["top"]._repr_html_()
        took.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    print(json.dumps(took))


@figure
def notebook(b):
    """The notebook of tests/ as a job, against a plain exec of its cells; the first round, with its imports, apart."""
    with b.server(start=False) as server:
        for name in "clicks.ipynb", "clicks.csv":
            text = re.sub(r"input\([^)]*\)", "'0.5'", (HERE / name).read_text())
            (server.dir / name).write_text(text)
        server.start()
        took = []
        with web(server) as client:
            for n in range(1, 12):
                client.post("/run/clicks", data={"most": "5", "section": "all", "left_out": "/cart"}).raise_for_status()
                ended = until(lambda n=n: server.sql("select * from message where id = ? and status <> 'streaming'", n), 60)
                assert ended[0]["status"] == "done", ended[0]["error"]
                took.append(ended[0]["seconds"])
        bare = run("--plain-exec", str(server.dir), "11")
    row("a notebook as a job: the first run", took[0], "s", bare[0], ratio=1.2)
    row("a notebook as a job: the next ten, in the median", median(took[1:]), "s", median(bare[1:]), ratio=1.2)


def main(names):
    if names[:1] == ["--read"]:
        return asyncio.run(read(names[1]))
    if names[:1] == ["--tabs"]:
        return asyncio.run(tabs(names[1], int(names[2])))
    if names[:1] == ["--bare-add"]:
        return bare_add(names[1])
    if names[:1] == ["--bare-inserts"]:
        return bare_inserts(names[1], int(names[2]))
    if names[:1] == ["--plain-exec"]:
        return plain_exec(names[1], int(names[2]))
    if unknown := [n for n in names if n not in FIGURES]:
        wrong = "" if unknown == ["--list"] else f"unknown: {', '.join(unknown)}\n"
        sys.exit(wrong + "\n".join(f"{name:10} {do.__doc__}" for name, do in FIGURES.items()))
    print(f"{'what':<50} {'measured':>12} {'reference':>12} {'compared':>12} {'goal':>14}")
    with Bench() as bench:
        for name in names or FIGURES:
            try:
                FIGURES[name](bench)
            except Exception as e:  # noqa: BLE001 (one that fails doesn't take the others with it)
                ROWS.append(True)
                print(f"{name:<50} {type(e).__name__}: {str(e)[:300]}  MISS", flush=True)
    print(f"{sum(ROWS)} of {len(ROWS)} missed")


if __name__ == "__main__":
    main(sys.argv[1:])
