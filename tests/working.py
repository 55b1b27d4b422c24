"""For the tests of jobs, scripts and tools: an app with further jobs in it, and a profile of it without a page.

    def test_a_job_says_hello(work):
        assert work.ended(work.run("hello"))["content"].strip() == "Hello"
"""
import re
import threading
from contextlib import contextmanager
from time import perf_counter

import httpx
import pytest
from conftest import Server, free_port, until
from readme import BANNERS
from wire import Chat, soup

MAIN = f"# ---- {BANNERS[-1][0]}. Main"


def insert(server, code, **settings):
    """Put code of a test in front of the last part of this server's own copy, and replace text in it."""
    text = server.file.read_text()
    for old, new in (settings.pop("replace", None) or {}).items():
        assert old in text, f"server.py has no {old!r}"
        text = text.replace(old, new)
    assert text.count(f"\n{MAIN}") == 1
    server.file.write_text(text.replace(f"\n{MAIN}", f"\n{code}\n{MAIN}"))
    return server


def client(server):
    return httpx.Client(base_url=server.url, trust_env=False, verify=False, timeout=60)


class Work:
    """A profile with an empty timeline, as a script sees it."""

    def __init__(self, server):
        self.server, self.web = server, client(server)
        reply = self.web.post("/profile", data={"name": "Somebody"})
        self.profile = int(re.search(r'id="profile-(\d+)"', reply.text)[1])
        self.path = f"/profile/{self.profile}"

    def post(self, path, **data):
        """A POST that has to go well; its text."""
        reply = self.web.post(path, data=data)
        assert reply.is_success, (reply.status_code, reply.text)
        return reply.text

    def html(self):
        return self.web.get(self.path).text

    def submit(self, job, **values):
        return self.web.post(f"/run/{job}?profile={self.profile}", data=values)

    def run(self, job, **values):
        """Start a job from its form; the id of its message."""
        reply = self.submit(job, **values)
        assert reply.status_code == 200, reply.text
        return self.rows("role = 'job'")[-1]["id"]

    def say(self, expect=200, **data):
        """POST /chatq for this profile; the id, or where it is to be refused the sentence."""
        reply = self.web.post("/chatq", data={"profile": str(self.profile)} | data)
        assert reply.status_code == expect, (reply.status_code, reply.text)
        return int(reply.text) if expect == 200 else reply.text

    def rows(self, where="1"):
        return self.server.sql(f"select * from message where profile = ? and ({where}) order by id", self.profile)

    def row(self, ident):
        return self.server.sql("select * from message where id = ?", ident)[0]

    def ended(self, ident, timeout=10):
        """Its row, once it has ended."""
        def over():
            row = self.row(ident)
            return row["status"] not in ("queued", "streaming") and row
        return until(over, timeout, f"the end of message {ident}")

    def shown(self, ident):
        """The message as the page shows it now."""
        found = re.search(rf'<article [^>]*id="msg-{ident}".*?</article>', self.html(), re.DOTALL)
        return soup(found[0]).article

    def shows(self, ident, text, timeout=10):
        """Its element in the page, once it has this text."""
        return until(lambda: text in (m := self.shown(ident)).get_text() and m, timeout, f"{text!r} in message {ident}")

    def reply(self, ident, answer, timeout=10):
        """Press a button of its question, as soon as that is asked."""
        def asked():
            found = self.shown(ident).find("div", id=f"q-{ident}").find_all("button")
            return next((b for b in found if b.get_text() == answer), None)
        self.post(until(asked, timeout, f"a button {answer!r}")["hx-post"])

    def todos(self):
        return [(t["title"], bool(t["done"])) for t in self.server.sql(
            "select * from todo where profile = ? and not deleted order by priority, id", self.profile)]

    def socket(self):
        """An open tab of this profile."""
        return Chat(self.server, f"?profile={self.profile}")

    @contextmanager
    def responsive(self, most=2.5):
        """The app answers within so many seconds, as often as it is asked in the meantime."""
        over, slowest, web = threading.Event(), [0.0], client(self.server)

        def look():
            while not over.is_set():
                start = perf_counter()
                web.get(f"/todo_markdown?profile={self.profile}")
                slowest[0] = max(slowest[0], perf_counter() - start)
        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
        assert slowest[0] < most, f"an answer took {slowest[0]:.1f} s"


def app_with(jobs):
    """A fixture: the app with these jobs, shared by a module's tests; its model is wherever `home.ollama` comes to listen."""
    @pytest.fixture(scope="module")
    def home():
        port = free_port()
        server = insert(Server({"OLLAMA_HOST": f"127.0.0.1:{port}"}), jobs)
        server.ollama = port
        yield server.start()
        server.remove()
    return home


@pytest.fixture
def work(home):
    """A new profile of this module's app, `home`."""
    Server.known.append(home)
    work = Work(home)
    yield work
    for row in work.rows("status in ('queued', 'streaming')"):
        work.post(f"/cancel?id={row['id']}")
    work.web.close()
