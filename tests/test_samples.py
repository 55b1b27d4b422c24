"""The two jobs that come with the app: the audit of web pages, and the model's summary of the todos."""
import base64
import contextlib
import csv
import gzip
import io
import re
import sqlite3
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import Server, ask, free_port, until
from fake_ollama import FakeOllama, Script
from playwright.sync_api import expect
from working import insert

pytest_plugins = "chatting", "working"

COLUMNS = ["url", "status", "redirects", "title", "description", "h1", "canonical", "words"]
PAGE = """<!doctype html><html><head><title>A  title\n of two lines</title><meta name="Description" content="What it is.">
<link rel="canonical" href="/canonical"><style>p { color: red }</style><script>not words</script></head>
<body><h1>The <em>first</em> heading</h1><p>five words of plain text</p><h1>Another</h1><svg><title></title></svg></body>"""
NASTY = ("<title>&lt;b&gt;a&lt;/b&gt; | **bold** `code` [x](javascript:alert(1)) &lt;img src=x onerror=alert(1)&gt;</title>"
         "<h1>=1+1</h1>")

JOBS = """
PATIENCE = 2

@job
async def outlasts_a_page(chat): await asyncio.sleep(PATIENCE + .2)
"""


class Site(ThreadingHTTPServer):
    """A web site: what each path answers, who asked for what, and how many at once."""
    daemon_threads = True
    request_queue_size = 64          # more than ask at once: one left waiting would come a second later

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.robots, self.asked, self.now, self.most = "", [], 0, 0
        self.robots_status = 200
        self.lock, self.gate, self.credit = threading.Condition(), threading.Event(), threading.Semaphore(0)
        self.url = f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def visit(self, path):
        with self.lock:
            self.asked.append(path)
            self.now += 1
            self.most = max(self.most, self.now)
            self.lock.notify_all()
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1
                self.lock.notify_all()

    def wait(self, true, what):
        with self.lock:
            assert self.lock.wait_for(true, 10), f"{what} did not happen; asked for: {self.asked}"

    def handle_error(self, request, client_address):
        """Somebody hung up: that is what some of these tests are about."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, body="", status=200, kind="text/html; charset=utf-8", **headers):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in ({"content-type": kind, "content-length": len(body)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        site, path = self.server, self.path
        if path.startswith("/gated"):
            with site.visit(path):                # is over before its answer: who has that may ask for the next page
                site.credit.acquire(timeout=20)
            return self.answer(f"<title>{path}</title>")
        with site.visit(path):
            port = site.server_port
            if path == "/robots.txt":
                return self.answer(site.robots, site.robots_status if site.robots else 404, "text/plain")
            if path.startswith("/hop"):
                n = int(path[4:])
                return self.answer(status=302, location=f"/hop{n - 1}" if n else "/page")
            to = {"/loop": "/loop", "/to-localhost": f"http://localhost:{port}/page", "/to-script": "javascript:alert(1)",
                  "/to-file": "file:///etc/passwd", "/to-nowhere": "http://[bad/"}.get(path)
            if to:
                return self.answer(status=301, location=to)
            if path == "/endless":
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.end_headers()
                self.wfile.write(b"<title>Endless</title>")
                while not site.gate.is_set():
                    self.wfile.write(b"word " * 10_000)
            if path == "/hangs":
                return site.gate.wait(20)
            if path == "/garbage":
                return self.wfile.write(b"\0\1\2 no HTTP\r\n\r\n")
            pages = {"/page": PAGE, "/nasty": NASTY, "/empty": "", "/odd": "<title>Odd</title><![odd[ ]]><p>two words",
                     "/grüße": "<title>Grüße</title>"}
            if path == "/unknown-charset":
                return self.answer("<title>Charset</title>", kind="text/html; charset=no-such-thing")
            if path == "/no-text-charset":
                return self.answer("<title>Charset</title>", kind="text/html; charset=hex")
            if path == "/latin":
                return self.answer("<title>“Grüße”</title>".encode("cp1252"), kind="text/html; charset=iso-8859-1")
            if path == "/older-latin":
                return self.answer("<title>“Grüße”</title>".encode("cp1252"), kind="text/html; charset=iso8859-1")
            if path == "/packed":                                       # though nobody asked for it
                return self.answer(gzip.compress(b"<title>Packed</title>"), **{"content-encoding": "gzip"})
            if path == "/picture":
                return self.answer(base64.b64decode("iVBORw0KGgo="), kind="image/png")
            self.answer(pages.get(path, "<title>Not here</title>"), 200 if path in pages else 404)


@pytest.fixture(scope="module")
def home():
    """The app with little patience, shared by the tests of this file."""
    port = free_port()
    server = insert(Server({"OLLAMA_HOST": f"127.0.0.1:{port}"}), JOBS, replace={
        "async with http(url, 20)": "async with http(url, 1)", "asyncio.timeout(60)": "asyncio.timeout(PATIENCE)"})
    server.ollama = port
    yield server.start()
    server.remove()


@pytest.fixture
def site():
    with Site() as site:
        threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield site
        site.gate.set()
        for _ in range(50):
            site.credit.release()
        site.shutdown()


@pytest.fixture
def audit(work, site):
    """Audits paths of the site, after the answer to the question: the rows of the CSV, by column."""
    def run(*paths, answer="Fetch from 127.0.0.1", then=()):
        ident = audit.ident = work.run("audit_pages", urls="\n".join(p if "://" in p else site.url + p for p in paths))
        for press in filter(None, (answer, *then)):
            work.reply(ident, press)
        row = work.ended(ident, 20)
        assert row["status"] == "done", (row["error"], row["content"])
        link = work.shown(ident).find("a", string="Save as CSV")
        assert link["href"].startswith("/file/") and link["download"] == "audit.csv"
        rows = list(csv.DictReader(io.StringIO(work.web.get(link["href"]).text)))
        assert all(list(r) == COLUMNS for r in rows)
        table = work.shown(ident).table
        assert [th.get_text() for th in table.thead.find_all("th")] == COLUMNS
        cells = [[td.get_text() for td in tr.find_all("td")] for tr in table.select("tbody tr")]
        shown = [[c if c != "–" else "" for c in row] for row in cells]
        assert shown == [[re.sub("^'(?=[=+@-])", "", v)[:200] for v in r.values()] for r in rows]
        return {r["url"].removeprefix(site.url): r for r in rows}
    return run


# ---- The audit

def test_what_an_audit_tells_of_a_page(audit, site):
    rows = audit("/page", "/missing", "/a_b*c*?x=[1]&y=~2~", "/hop3", "/latin", "/older-latin", "/packed", "/empty", "/picture")
    page = rows["/page"]
    assert list(page.values())[1:] == ["200", "0", "A title of two lines", "What it is.", "The first heading", "/canonical", "9"]
    assert (rows["/missing"]["status"], rows["/missing"]["title"]) == ("404", "Not here")
    assert (rows["/hop3"]["status"], rows["/hop3"]["redirects"], rows["/hop3"]["title"]) == ("200", "4", "A title of two lines")
    assert rows["/latin"]["title"] == rows["/older-latin"]["title"] == "“Grüße”" and rows["/packed"]["title"] == "Packed"
    for bare in "/empty", "/picture":
        assert list(rows[bare].values())[1:] == ["200", "0", "", "", "", "", "0"]
    once = "/robots.txt", "/missing", "/a_b*c*?x=[1]&y=~2~", "/hop3", "/latin"
    assert [site.asked.count(path) for path in once] == [1] * len(once)


def test_own_network_is_asked_for_once_and_may_be_left_out(audit, site, work):
    rows = audit("/page", "/empty", "/missing", answer="Leave it out")
    assert {r["status"] for r in rows.values()} == {"left out: on your own network"} and not site.asked
    ident = work.rows("role = 'job'")[-1]["id"]
    shown = work.shown(ident)
    assert not shown.find("div", id=f"q-{ident}").get_text() and "Fetch from it? – Leave it out" in shown.get_text()


def test_a_redirect_to_another_own_host_asks_too(audit):
    rows = audit("/to-localhost", then=["Leave it out"])
    assert rows["/to-localhost"]["status"] == "left out: on your own network"
    rows = audit("/to-localhost", then=["Fetch from localhost"])
    assert (rows["/to-localhost"]["status"], rows["/to-localhost"]["redirects"]) == ("200", "1")


def test_robots_txt_is_honoured(audit, site):
    site.robots = "User-agent: *\nDisallow: /nasty\nDisallow: /hop\n"
    rows = audit("/nasty", "/page", "/hop1")
    assert [rows[p]["status"] for p in ("/nasty", "/page", "/hop1")] == ["robots.txt says no", "200", "robots.txt says no"]
    assert sorted(site.asked) == ["/page", "/robots.txt"]
    site.robots_status = 404                                          # the page of an error is none
    assert audit("/nasty")["/nasty"]["status"] == "200"


def test_only_http_and_https(audit, site, work):
    rows = audit("ftp://127.0.0.1/x", "file:///etc/passwd", "javascript://x", "http://", answer=None)
    assert {r["status"] for r in rows.values()} == {"only http and https"} and not site.asked
    rows = audit("/to-script", "/to-file", "/to-nowhere")
    assert rows["/to-file"]["status"] == "only http and https"
    assert all(r["status"] and not r["status"].isdigit() and not r["title"] for r in rows.values())
    assert "root:" not in work.html()


def test_what_stands_in_a_page_is_text(audit, work):
    row = audit("/nasty")["/nasty"]
    title = "<b>a</b> | **bold** `code` [x](javascript:alert(1)) <img src=x onerror=alert(1)>"
    assert row["title"] == title and row["h1"] == "'=1+1"             # no formula for a spreadsheet
    table = work.shown(work.rows("role = 'job'")[-1]["id"]).table
    cells = table.select("tbody td")
    assert len(cells) == 8 and cells[3].get_text() == title and not cells[3].find(True)


@pytest.mark.parametrize(("path", "status", "title"), [
    ("/endless", "200", "Endless"), ("/loop", "more than 10 redirects", ""), ("/hangs", r"ReadTimeout|no answer in time", ""),
    ("/garbage", ".+", ""), ("/odd", "200", "Odd"), ("/unknown-charset", "200", "Charset"), ("/no-text-charset", ".+", ""),
    ("http://127.0.0.1:1/", ".+", ""), ("http://no-such-host.invalid/", ".+", ""), ("http://[::1/", ".+", ""),
    ("http://127.0.0.1:99999/", ".+", ""), ("http://" + "a" * 300 + ".example/", ".+", "")])
def test_a_bad_page_is_one_clear_line(audit, path, status, title):
    """And the other pages are not its affair."""
    rows = audit(path, "/page")
    assert len(rows) == 2 and rows["/page"]["status"] == "200"
    assert re.fullmatch(status, rows[path]["status"]) and rows[path]["title"] == title


def test_at_most_five_at_a_time_and_rows_as_they_come(work, site):
    ident = work.run("audit_pages", urls="\n".join(f"{site.url}/gated{n}" for n in range(12)))
    work.reply(ident, "Fetch from 127.0.0.1")
    site.wait(lambda: site.now == 5, "five at once")
    assert sum(p.startswith("/gated") for p in site.asked) == 5
    for n in range(1, 4):
        site.credit.release()
        site.wait(lambda n=n: sum(p.startswith("/gated") for p in site.asked) == 5 + n, "the next one")
        until(lambda n=n: len(work.shown(ident).select("tbody tr")) == n, what="one more row")
        assert work.shown(ident)["data-status"] == "streaming"
        assert float(work.shown(ident).progress["value"]) == pytest.approx(100 * n / 12, abs=0.1)
    for _ in range(9):
        site.credit.release()
    assert work.ended(ident)["status"] == "done" and site.most == 5
    assert len(work.shown(ident).select("tbody tr")) == 12


def test_the_question_may_wait_longer_than_a_page(work, site):
    """A person's time is not the site's: all pages are fetched after a late answer."""
    ident = work.run("audit_pages", urls="\n".join(f"{site.url}/{n}" for n in range(8)))
    work.shows(ident, "Fetch from it?")
    patient = work.run("outlasts_a_page")          # begins later, and ends after all that a page is given
    assert work.ended(patient)["status"] == "done"
    work.reply(ident, "Fetch from 127.0.0.1", 2)
    assert work.ended(ident)["status"] == "done"
    statuses = [tr.find_all("td")[1].get_text() for tr in work.shown(ident).select("tbody tr")]
    assert statuses == ["404"] * 8


def test_cancel_ends_the_fetching(work, site):
    ident = work.run("audit_pages", urls="\n".join(f"{site.url}/gated{n}" for n in range(12)))
    work.reply(ident, "Fetch from 127.0.0.1")
    site.wait(lambda: site.now == 5, "five at once")
    work.post(f"/cancel?id={ident}")
    assert work.ended(ident, 3)["status"] == "stopped"
    for _ in range(12):
        site.credit.release()
    site.wait(lambda: site.now == 0, "the end of them")
    assert len(site.asked) == 6


def test_the_csv_of_1000_pages_lasts_as_long_as_its_message(work, site):
    ident = work.run("audit_pages", urls="\n".join(f"ftp://{n}.{'_' * 200}" for n in range(1000)))
    assert work.ended(ident, 30)["status"] == "done"
    link = work.shown(ident).find("a", string="Save as CSV")
    assert link and len(work.row(ident)["content"]) < 500_000
    work.server.restart()
    assert len(list(csv.DictReader(io.StringIO(work.web.get(link["href"]).text)))) == 1000
    with contextlib.closing(sqlite3.connect(work.server.db)) as db, db:
        db.execute("delete from message where id = ?", [ident])
    work.server.restart()
    assert work.web.get(link["href"]).status_code == 404


def test_an_audit_of_nothing_or_too_much(work):
    reply = work.submit("audit_pages", urls=" \n ")
    assert reply.status_code == 422 and "Fill this in." in reply.text
    row = work.ended(work.run("audit_pages", urls="\n".join(f"x{n}" for n in range(1001))))
    assert row["status"] == "error" and "at most 1,000" in row["error"]


# ---- The summary

@pytest.fixture
def summary(work):
    """A profile with todos, and the fake Ollama."""
    for title in "Call the printer", "Renew the | certificate":
        work.post("/todo", title=title, profile=work.profile)
    work.post(f"/toggle/{work.server.sql('select max(id) n from todo')[0]['n']}")
    return work


def test_the_summary_streams(chat):
    for title in "Call the printer", "Renew the certificate":
        chat.post("todo", title=title, profile=chat.profile)
    chat.post(f"toggle/{chat.server.sql('select max(id) n from todo')[0]['n']}")
    chat.fake.script(Script(text="One **thing** is open.", gate=True))
    chat.page.get_by_role("button", name="Run Summarise my todos").click()
    prompt = chat.fake.wait_chat()["messages"]
    assert "- [ ] Call the printer\n- [x] Renew the certificate\n" in prompt[-1]["content"]
    job = chat.page.locator("[data-role=job]")
    chat.fake.release(2)
    expect(job.locator(".content")).to_have_text("One thing")
    expect(job).to_have_attribute("data-status", "streaming")
    chat.fake.release()
    expect(job.locator(".content")).to_have_text("One thing is open.")
    expect(job).to_have_attribute("data-status", "done")
    assert "tools" not in chat.fake.chats[0]


def test_a_summary_waits_for_the_answer_that_is_being_written(chat):
    """One model, one answer at a time: a second one would be answered in turns, or not at all."""
    chat.post("todo", title="Call the printer", profile=chat.profile)
    chat.fake.script(Script(text="One two", gate=True), Script(text="All is well."))
    ask(chat.page, "Hi")
    chat.fake.wait_chat()
    chat.page.get_by_role("button", name="Run Summarise my todos").click()
    job = chat.page.locator("[data-role=job]")
    expect(job.locator(".note")).to_have_text("In line: the answer above is before it")
    assert len(chat.fake.chats) == 1
    chat.fake.release()
    expect(job.locator(".content")).to_have_text("All is well.")
    expect(job).to_have_attribute("data-status", "done")
    expect(chat.page.locator("[data-role=assistant]")).to_have_attribute("data-status", "done")


def test_a_cancelled_summary_hangs_up(summary):
    with FakeOllama(port=summary.server.ollama) as fake:
        fake.script(Script(text="One two", gate=True))
        ident = summary.run("summarise_my_todos")
        fake.wait_chat()
        summary.post(f"/cancel?id={ident}")
        assert summary.ended(ident, 3)["status"] == "stopped"
        fake.wait_hangup()


def test_a_summary_without_a_model_can_be_tried_again(summary):
    ident = summary.run("summarise_my_todos")
    row = summary.ended(ident)
    assert row["status"] == "error" and row["error"].startswith("No model answers") and "Traceback" not in row["content"]
    with FakeOllama(port=summary.server.ollama) as fake:
        fake.models = []
        summary.post(summary.shown(ident).find("button", string="Try again")["hx-post"])
        assert "no model yet" in summary.ended(ident)["error"]
    with FakeOllama(port=summary.server.ollama) as fake:
        fake.script(Script(text="All is well."))
        summary.post(summary.shown(ident).find("button", string="Try again")["hx-post"])
        row = summary.ended(ident)
        assert (row["status"], row["content"].strip(), row["error"]) == ("done", "All is well.", "")


def test_an_empty_list_needs_no_model(work):
    assert work.ended(work.run("summarise_my_todos"))["content"].strip() == "The list is empty."
