"""How the app starts, and how it does not: settings, folders, databases, models.

What is wrong is said in one sentence on stderr, with exit status 1 and no traceback, and what is
there is left as it was.
"""
import ast
import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from conftest import ROOT, Server, free_port, until
from fake_ollama import FakeOllama, Script, model
from wire import ANSWERS, PROMPTS, Chat, soup

LOCAL = {"trust_env": False, "verify": False}


def run(server, timeout=20, **options):
    """Start it where it is to end by itself: its exit status, stdout and stderr."""
    done = subprocess.run([sys.executable, str(server.file)], **{"cwd": server.cwd, "env": server.env} | options,
                          capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)


def refuses(server, *words, **options):
    """It ends with one sentence that has these words in it."""
    ended = run(server, **options)
    assert ended.status == 1, ended
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert ended.err.strip().endswith("."), ended.err
    assert all(word in ended.err for word in words), ended.err
    return ended.err


def get(server, path="/"):
    answer = httpx.get(server.url + path, timeout=10, **LOCAL)
    assert answer.status_code == 200
    return answer.text


def add(server, title):
    assert httpx.post(f"{server.url}/todo", data={"title": title}, **LOCAL).status_code == 200


def files(folder):
    """Every file below, byte for byte; a lock says nothing about the data."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock"}


@contextlib.contextmanager
def listening(port=0, host="127.0.0.1"):
    """Somebody else's server."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as sock:
        sock.settimeout(10)
        yield sock


# ---- a good start

def test_it_starts_from_any_folder(app, fake):
    """Its data is beside the file; nothing is left where one happens to stand, or in the home folder."""
    server = app(env={"OLLAMA_HOST": fake.url})
    assert server.db.exists()
    server.stop()
    assert list(server.cwd.iterdir()) == []
    assert {f.name for f in server.dir.iterdir()} - {"__pycache__"} == {"server.py", "static", "data"}
    assert {f.name for f in server.top.iterdir()} == {"chatq", "elsewhere", "hidden"}


@pytest.mark.parametrize("how", ["in its folder", "from /"])
def test_it_starts_by_a_relative_path(app, fake, how):
    server = app(env={"OLLAMA_HOST": fake.url}, start=False)
    cwd = {"in its folder": server.dir, "from /": "/"}[how]
    with subprocess.Popen([sys.executable, os.path.relpath(server.file, cwd)], cwd=cwd, env=server.env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as proc:
        assert str(server.db) in proc.stdout.readline()
        proc.kill()
    assert server.db.exists()


def test_it_prints_one_line(app, fake):
    """The link, the data file and the model; at once, also into a pipe; and nothing more when it is used and ended."""
    server = app(env={"OLLAMA_HOST": fake.url, "PYTHONUNBUFFERED": None})
    add(server, "Milk")
    get(server)
    with Chat(server) as chat:
        chat.ask("Hello")
        server.stop()
    until(lambda: not server._reader.is_alive(), what="the end of its output")
    (line,) = server.out().splitlines()
    assert f"http://localhost:{server.port}" in line
    assert str(server.db) in line
    assert "llama3.2" in line


def test_the_line_says_when_there_is_no_model(app):
    (line,) = app().out().splitlines()
    assert re.search(r"\b(no|none)\b", line, re.IGNORECASE)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(app, fake, how):
    """Ctrl-C with a page open and an answer on its way: no traceback, no waiting."""
    server = app(env={"OLLAMA_HOST": fake.url})
    with Chat(server) as chat:
        chat.ask("Hello")
        server.proc.send_signal(how)
        server.wait(5)
    assert len(server.out().splitlines()) == 1


def test_the_first_start_makes_one_profile_and_nothing_else(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url})
    for again in False, True:
        if again:
            server.restart()
        assert [row["name"] for row in server.sql("select name from profile")] == ["Default"]
        assert [len(server.sql(f"select * from {table}")) for table in ("todo", "message")] == [0, 0]


def test_a_file_is_an_app(app, fake):
    """Two copies in one folder: each has its own name, data and cookies, though both are at 127.0.0.1."""
    first = app(env={"OLLAMA_HOST": fake.url})
    second = app(env={"OLLAMA_HOST": fake.url}, name="mytool.py", folder=first.dir)
    with httpx.Client(**LOCAL) as client:                       # one browser, whose cookies ignore ports
        assert [soup(client.get(a.url).text).title.get_text() for a in (first, second)] == ["chatq", "mytool"]
        answers = [client.post(f"{first.url}/profile", data={"name": name}).text for name in ("Ada", "Bob")]
        ids = [re.search(r'id="profile-(\d+)"', answer)[1] for answer in answers]
        client.get(f"{first.url}/profile/{ids[1]}")
        client.get(f"{second.url}/profile/1")
        client.post(f"{second.url}/todo", data={"title": "Second's own"})
        client.post(f"{first.url}/todo", data={"title": "First's own"})
        assert len({cookie.name for cookie in client.cookies.jar}) == 2
    assert [tuple(row) for row in first.sql("select title, profile from todo")] == [("First's own", int(ids[1]))]
    assert [tuple(row) for row in second.sql("select title, profile from todo")] == [("Second's own", 1)]
    assert (first.dir / "data" / "mytool.db").exists()


def test_the_metadata_is_the_requirements():
    """`uv run server.py` and `pip install -r requirements.txt` give the same."""
    source = (ROOT / "server.py").read_text()
    block = re.search(r"(?m)^# /// script$\s((?:^#(?: .*)?$\s)+)^# ///$", source)[1]
    meta = tomllib.loads("".join(line[2:] or "\n" for line in block.splitlines(keepends=True)))
    wanted = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert meta["dependencies"] == [line for line in wanted if line]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in meta["dependencies"])
    assert "#" in (ROOT / "requirements.txt").read_text()


# ---- the port

def free(port):
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return True


def test_without_port_it_takes_the_next_free_one(app, fake):
    """Two side by side; somebody else's server on one of them is stepped over."""
    env = {"OLLAMA_HOST": fake.url, "PORT": None}
    ports = [port for port in range(5001, 5011) if free(port)]
    if len(ports) < 3:
        pytest.skip("5001 to 5010 are in use on this machine")
    first = app(env=env)
    with listening(ports[1]):
        second = app(env=env)
    assert [first.port, second.port] == [ports[0], ports[2]]
    assert f"localhost:{ports[2]}" in second.out()


def test_without_any_free_port_it_says_so(app):
    with contextlib.ExitStack() as stack:
        for port in range(5001, 5011):
            if free(port):
                stack.enter_context(listening(port))
        refuses(app(env={"PORT": None}, start=False), "5001", "5010")


@pytest.mark.parametrize("port", ["same", "another"])
def test_a_second_start_leaves_the_first_alone(app, fake, port):
    """A person forgets that it runs. The half of an answer that it is writing, the prompt that waits and
    the Undo of a deletion are the first one's: two at work on one database would spoil each other's."""
    server = app(env={"OLLAMA_HOST": fake.url})
    fake.script(Script(tokens=["one ", "two"], gate=True), Script(text="three"))
    with Chat(server) as chat:
        chat.say("Count")
        fake.wait_chat()
        chat.say("Go on")
        chat.until(lambda: len(server.sql(PROMPTS, 1)) == 2, what="a prompt that waits")
        fake.release(1)
        chat.hear("one")
        before = [tuple(row) for row in server.sql("select id, role, status from message")]
        second = app(env={"OLLAMA_HOST": fake.url}, folder=server.dir, start=False)
        second.env["PORT"] = str(server.port if port == "same" else second.port)
        refuses(second)
        assert [tuple(row) for row in server.sql("select id, role, status from message")] == before
        fake.release()
        chat.until(lambda: [row["status"] for row in server.sql(ANSWERS, 1)] == ["done", "done"], what="both answers")
    assert [row["content"] for row in server.sql(ANSWERS, 1)] == ["one two", "three"]
    assert len(fake.chats) == 2


# ---- a bad start: each of these is one sentence with these words in it

def setting(name, value):
    return lambda server, data: server.env.update({name: value})


def ruined_header(server, data):
    server.db.write_bytes(b"This is no database. " * 500)


def ruined_pages(server, data):
    raw = bytearray(server.db.read_bytes())
    for start in range(4096, len(raw), 4096):
        raw[start:start + 64] = b"\xff" * 64
    server.db.write_bytes(raw)


def ruined_end(server, data):
    raw = server.db.read_bytes()
    server.db.write_bytes(raw[:len(raw) // 2 + 100])


def replaced(path, by):
    """Something in the app's folder is now a "file", a "folder", a "link to nowhere" or "missing"."""
    def spoil(server, data):
        place = server.dir / path
        (shutil.rmtree if place.is_dir() and not place.is_symlink() else os.remove)(place)
        {"file": place.touch, "folder": place.mkdir, "link to nowhere": lambda: place.symlink_to("nowhere"),
         "missing": lambda: None}[by]()
    return spoil


@contextlib.contextmanager
def locked(db, how="for writing"):
    """Another program has it open, for a while or for good."""
    with contextlib.closing(sqlite3.connect(db, isolation_level=None, check_same_thread=False)) as other:
        if how == "for good":
            other.execute("pragma locking_mode = exclusive")
        other.execute("begin immediate")
        other.execute("create table of_another_program(x)")
        yield other


@contextlib.contextmanager
def taken_port(server, data):
    with listening() as other:
        server.env["PORT"] = str(other.getsockname()[1])
        yield


@contextlib.contextmanager
def taken_ports(server, data):
    del server.env["PORT"]
    with contextlib.ExitStack() as stack:
        for port in range(5001, 5011):
            if free(port):
                stack.enter_context(listening(port))
        yield


REFUSED = {f"{name}={value[:25]}": (setting(name, value), name) for name, values in {
    "PORT": ["abc", "0", "65536", "５００１", "9" * 5000],
    "HOST": ["nonsense.invalid", "203.0.113.7", "a b"],
    "OLLAMA_HOST": ["ftp://127.0.0.1", "127.0.0.1:99999", "http://[::1", "not a host"],
    "OPENAI_BASE_URL": ["localhost:8000", "http:///v1", "http://[::1/v1", "http://127.0.0.1:99999/v1", "http://a b/v1"],
}.items() for value in values} | {
    "PORT is taken": (taken_port, "ort"),
    "all the usual ports are taken": (taken_ports, "5001", "5010"),
    "no database": (ruined_header, "server.db"),
    "a database with ruined pages": (ruined_pages, "server.db"),
    "half a database": (ruined_end, "server.db"),
    "a database that is locked": (lambda server, data: locked(server.db), "server.db", "locked"),
    "a database that is locked for good": (lambda server, data: locked(server.db, "for good"), "server.db", "locked"),
    "a folder for a database": (replaced("data/server.db", "folder"), "server.db"),
    "a folder for a key": (replaced("data/server.key", "folder"), "server.key"),
    "a file for data/": (replaced("data", "file"), "data"),
    "data/ leads nowhere": (replaced("data", "link to nowhere"), "data"),
    "static/ is missing": (replaced("static", "missing"), "static"),
}


@pytest.fixture(scope="module")
def used_data():
    """The data of an app that was used and ended, to be copied."""
    with FakeOllama() as fake:
        server = Server({"OLLAMA_HOST": fake.url}).start()
        for n in range(50):
            add(server, f"Todo {n} " + "x" * 400)
        server.stop()
        sqlite3.connect(server.db).execute("pragma wal_checkpoint(truncate)").connection.close()
        for rest in server.db.parent.glob("*.db-*"):
            rest.unlink()
        yield server.dir / "data"
        server.remove()


def refusal(name, data):
    """Start it in this state: it ends. A database that it cannot read is left byte for byte as it was."""
    spoil, *words = REFUSED[name]
    server = Server()
    shutil.copytree(data, server.db.parent)
    try:
        with spoil(server, data) or contextlib.nullcontext():
            ruined = spoil in (ruined_header, ruined_pages, ruined_end)
            before = ruined and files(server.dir)      # else not: to read a locked file here would unlock it
            refuses(server, *words)
            assert not ruined or files(server.dir) == before
    finally:
        server.remove()


@pytest.fixture(scope="module")
def refusals(used_data):
    """A start costs half a second of one core, a lock five seconds of waiting: all are begun side by side."""
    with ThreadPoolExecutor(4) as pool:
        yield {name: pool.submit(refusal, name, used_data) for name in REFUSED}


@pytest.mark.parametrize("name", REFUSED)
def test_it_does_not_start(refusals, name):
    refusals[name].result()


@pytest.mark.parametrize(("name", "value"), [("OPENAI_API_KEY", "schlüssel"), ("TOKEN", "schlüssel"), ("TOKEN", "a;b c\"d")])
def test_a_secret_that_no_header_can_carry(app, fake, name, value):
    """It works, or it is refused by its name: never a puzzle."""
    server = app(env={name: value, "OPENAI_BASE_URL": f"{fake.url}/v1"}, start=False)
    server.start(wait=False)
    until(lambda: server.out() or server.proc.poll() is not None, what="a sign of life")
    if server.proc.poll() is not None or "://" not in server.out():
        assert server.wait() == 1
        assert name in server.out()
        assert "Traceback" not in server.out()
        return
    path = server.link.split("/", 3)[3]
    with httpx.Client(follow_redirects=True, **LOCAL) as client:
        answer = client.get(f"{server.url}/{path}")
        assert answer.status_code == 200
        assert name == "TOKEN" or name in answer.text + server.out()


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]"])
def test_the_ways_to_write_this_machine(app, fake, host):
    if ":" in host and not ipv6():
        pytest.skip("no IPv6 here")
    server = app(env={"OLLAMA_HOST": fake.url, "HOST": host}, start=False).start(wait=False)
    server.wait_out("://")
    assert "token" not in server.out()
    address = "::1" if ":" in host else "127.0.0.1"
    with socket.create_connection((address, server.port), timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"


def test_it_listens_on_this_machine_alone(server):
    """Not on the address by which others reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))           # sends nothing: it only tells which address would
            mine = sock.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((mine, server.port), timeout=2)


def test_an_empty_file_is_a_new_database(app, fake):
    """What `touch` or a crash before the first write leaves."""
    server = app(env={"OLLAMA_HOST": fake.url}, start=False)
    server.db.parent.mkdir()
    server.db.touch()
    assert "Default" in get(server.start())


def powerless():
    """Root's right to write where nobody may is given up; an ordinary user has none to lose."""
    drop_from_bounding_set, may_override, may_read = 24, 1, 2
    for right in may_override, may_read:
        ctypes.CDLL(None).prctl(drop_from_bounding_set, right, 0, 0, 0)


@pytest.mark.parametrize("what", ["folder", "data", "database", "key"])
def test_data_without_the_right_to_write(app, used_data, tmp_path, what):
    """A folder of another user, a read-only disk, a file with the wrong mode."""
    guarded = tmp_path / "nobody's"
    guarded.touch(0)
    rights = {"preexec_fn": powerless} if os.geteuid() == 0 else {}
    if rights and (sys.platform != "linux" or not subprocess.run(["cat", guarded], capture_output=True, **rights).returncode):
        pytest.skip("root's rights cannot be given up here")
    server = app(start=False)
    if what != "folder":
        shutil.copytree(used_data, server.db.parent)
    place, mode = {"folder": (server.dir, 0o555), "data": (server.db.parent, 0o555), "database": (server.db, 0o444),
                   "key": (server.db.parent / "server.key", 0)}[what]
    place.chmod(mode)
    try:
        refuses(server, str(server.db.parent), **rights)
    finally:
        place.chmod(0o755)


def test_a_lock_that_goes_away_is_waited_for(app, fake, used_data):
    server = app(env={"OLLAMA_HOST": fake.url}, start=False)
    shutil.copytree(used_data, server.db.parent)
    with locked(server.db) as other:
        threading.Timer(1.5, other.execute, ["rollback"]).start()
        assert "Todo 49" in get(server.start())


def test_a_lock_while_it_runs(app, fake):
    """A change is refused in a sentence, nothing is half-written, and it works again afterwards."""
    server = app(env={"OLLAMA_HOST": fake.url})
    add(server, "Before")
    with locked(server.db):
        answer = httpx.post(f"{server.url}/todo", data={"title": "Meanwhile"}, timeout=30, **LOCAL)
    assert answer.status_code == 503
    assert "locked" in answer.text
    add(server, "After")
    assert [row["title"] for row in server.sql("select title from todo")] == ["Before", "After"]
    assert not [row for row in server.sql("select content from message") if "Meanwhile" in row["content"]]
    assert len(server.out().splitlines()) == 1


# ---- a class changes, as it does in a fork

def edited(server, **lines):
    """A copy of server.py with one more field in these classes."""
    source = ROOT.joinpath("server.py").read_text().split("\n")
    classes = [node for node in ast.parse("\n".join(source)).body if isinstance(node, ast.ClassDef) and node.name in lines]
    for node in sorted(classes, key=lambda node: -node.lineno):
        source.insert(node.end_lineno, f"    {lines[node.name]}")
    server.file.write_text("\n".join(source))


def test_a_field_comes_and_goes(app, fake):
    """A new field keeps the data and fills itself; one that is dropped takes its column only after the
    whole file was copied beside itself. Nothing else is lost, and the search goes on working."""
    server = app(env={"OLLAMA_HOST": fake.url})
    add(server, "Milk")
    with Chat(server) as chat:
        chat.ask("Hello")
    kept = {table: [dict(row) for row in server.sql(f"select * from {table}")] for table in ("profile", "todo", "message")}
    server.stop()
    edited(server, Todo="colour: str = 'red'", Profile="shoes: int = 42", Message="mood: str = ''")
    server.start()
    added = {"profile": {"shoes": 42}, "todo": {"colour": "red"}, "message": {"mood": ""}}
    for table, rows in kept.items():
        assert [dict(row) for row in server.sql(f"select * from {table}")] == [row | added[table] for row in rows]
    assert [f.name for f in server.db.parent.glob("*.db*") if not f.name.startswith("server.db")] == []
    add(server, "Eggs")
    assert [row["colour"] for row in server.sql("select colour from todo")] == ["red", "red"]

    server.stop()
    with contextlib.closing(sqlite3.connect(server.db)) as db:
        db.execute("update todo set colour = 'blue' where title = 'Milk'")
        db.commit()
    shutil.copy(ROOT / "server.py", server.file)
    server.start()
    for table, rows in kept.items():
        now = [dict(row) for row in server.sql(f"select * from {table}")]
        first = [{key: row[key] for key in rows[0] if key != "content"} for row in now][:1]
        assert first == [{k: v for k, v in row.items() if k != "content"} for row in rows][:1]
    assert [row["title"] for row in server.sql("select title from todo")] == ["Milk", "Eggs"]
    own = server.db.name, "server.key", "server.db-wal", "server.db-shm"
    copies = [f for f in server.db.parent.iterdir() if f.name not in own]
    colours = []
    for copy in copies:
        connection = sqlite3.connect(f"file:{copy}?mode=ro", uri=True)
        with contextlib.closing(connection) as db, contextlib.suppress(sqlite3.OperationalError):
            colours += [dict(db.execute("select title, colour from todo").fetchall())]
    assert {"Milk": "blue", "Eggs": "red"} in colours
    add(server, "Bread")
    find = soup(get(server)).select_one("#search")["hx-get"]
    for word in "Milk", "Eggs", "Bread":
        assert word in get(server, f"{find}?q={word}")
    before = set(server.db.parent.iterdir())
    server.restart()
    assert set(server.db.parent.iterdir()) == before, "only the first start copies"


def test_a_new_field_beside_a_dropped_one(app, fake):
    """A field that was renamed: the old values are in the copy."""
    server = app(env={"OLLAMA_HOST": fake.url}, start=False)
    edited(server, Todo="colour: str = 'red'")
    server.start()
    add(server, "Milk")
    server.stop()
    edited(server, Todo="color: str = 'blue'")
    server.start()
    assert [(row["title"], row["color"]) for row in server.sql("select title, color from todo")] == [("Milk", "blue")]
    assert len(list(server.db.parent.glob("*.db"))) == 2


# ---- the model server: OLLAMA_HOST by Ollama's own rules

def ipv6():
    with contextlib.suppress(OSError), listening(host="::1"):
        return True


WAYS = [
    (None, "127.0.0.1", 11434, "/api/tags"), ("http://127.0.0.1", "127.0.0.1", 80, "/api/tags"),
    ("https://127.0.0.1", "127.0.0.1", 443, "TLS"),
    ("127.0.0.1:{port}", "127.0.0.1", 0, "/api/tags"), ("http://127.0.0.1:{port}/", "127.0.0.1", 0, "/api/tags"),
    ('" 127.0.0.1:{port} "', "127.0.0.1", 0, "/api/tags"), ("0.0.0.0:{port}", "127.0.0.1", 0, "/api/tags"),
    (":{port}", "127.0.0.1", 0, "/api/tags"), ("localhost:{port}", "127.0.0.1", 0, "/api/tags"),
    ("http://127.0.0.1:{port}/a/b/", "127.0.0.1", 0, "/a/b/api/tags"),
    ("127.0.0.1:{port}/ollama", "127.0.0.1", 0, "/ollama/api/tags"),
    ("http://[::1]:{port}", "::1", 0, "/api/tags"), ("[::]:{port}", "::1", 0, "/api/tags"), ("::1", "::1", 11434, "/api/tags")]


def first_request(value, host, port, path):
    """What comes in at the one whom OLLAMA_HOST names; None where this machine can't have that address."""
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        return None
    sock.settimeout(10)
    port = sock.getsockname()[1]
    server = Server({"OLLAMA_HOST": value and value.format(port=port)}).start(wait=False)
    with contextlib.closing(sock):
        try:
            connection, _ = sock.accept()
            with contextlib.closing(connection):
                connection.settimeout(10)
                return connection.recv(1000)
        finally:
            server.remove()


@pytest.fixture(scope="module")
def first_requests():
    with ThreadPoolExecutor(3) as pool:
        yield {way: pool.submit(first_request, *way) for way in WAYS}


@pytest.mark.parametrize("way", WAYS, ids=[str(way[0]) for way in WAYS])
def test_ollama_host_is_read_as_ollama_reads_it(first_requests, way):
    """Seen by who is asked, and for what: no answer is needed."""
    value, host, port, path = way
    first = first_requests[way].result()
    if first is None:
        pytest.skip(f"{host}:{port} cannot be had here")
    if path == "TLS":
        assert first[:1] == b"\x16"
    else:
        assert first.startswith(f"GET {path} HTTP/1.1\r\n".encode())
        asked = re.search(rb"\r\nHost: (\S+)\r\n", first, re.IGNORECASE)[1]
        assert asked.startswith((b"[::1]" if ":" in host else b"127.0.0.1", b"localhost"))


def test_a_proxy_is_not_for_this_machine(app, fake):
    """As companies set them; each of these alone would break it."""
    nobody = f"127.0.0.1:{free_port()}"
    server = app(env={"OLLAMA_HOST": fake.url, "HTTP_PROXY": f"http://{nobody}", "http_proxy": f"http://{nobody}",
                      "ALL_PROXY": f"socks5://{nobody}", "NO_PROXY": "[::1]"})
    with Chat(server) as chat:
        assert chat.ask("Hello")["status"] == "done"


# ---- which model

@pytest.fixture(scope="module")
def wired():
    """An app and the fake that this setting names, shared by tests that only change what the fake says."""
    with contextlib.ExitStack() as stack:
        @functools.cache
        def wired(name):
            fake = stack.enter_context(FakeOllama())
            server = Server({name: fake.url})
            stack.callback(server.remove)
            return server.start(), fake
        yield wired


def chosen(server):
    option = soup(get(server)).select_one("select#model option[selected]")
    return option and option["value"]


def choose(server, name):
    select = soup(get(server)).select_one("select#model")
    return httpx.post(server.url + select["hx-post"], data={select["name"]: name}, **LOCAL)


@pytest.mark.parametrize(("names", "best"), [
    (["gemma3:1b", "llama3.1:8b", "llama3.2:1b", "qwen3:4b"], "llama3.2:1b"),
    (["llama3.9:1b", "llama3.10:1b", "llama3:8b"], "llama3.10:1b"),
    (["llama2:7b", "llama3:8b", "codellama:70b", "tinyllama:1b"], "llama3:8b"),
    (["llama4:16x17b", "llama3.3:70b"], "llama4:16x17b"),
    (["qwen3:4b", "gemma3:1b"], "qwen3:4b"), (["llama:latest"], "llama:latest"),
    (["tinyllama:1b", "phi4:latest"], "tinyllama:1b")])
def test_without_a_choice_it_is_the_best_llama_else_the_first(wired, names, best):
    server, fake = wired("OLLAMA_HOST")
    fake.models = [model(name) for name in names]
    with Chat(server) as chat:
        chat.ask("Hello")
    assert fake.chats[-1]["model"] == best
    assert chosen(server) == best


def test_the_model_last_chosen_is_kept_and_ollama_model_goes_before_it(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url})
    assert choose(server, "gemma3:1b").is_success
    for name in "gemma3:1b", "qwen3:4b":
        server.kill()
        server.env |= {"OLLAMA_MODEL": name} if name != "gemma3:1b" else {}
        server.start()
        assert chosen(server) == name
        assert name in server.out().splitlines()[-1]
        with Chat(server) as chat:
            chat.ask("Hello")
        assert fake.chats[-1]["model"] == name


def test_a_model_that_is_not_there(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url, "OLLAMA_MODEL": "nonesuch:1b"})
    with Chat(server) as chat:
        row = chat.ask("Hello")
    assert row["status"] == "error"
    assert "ollama pull nonesuch:1b" in get(server)


# ---- OPENAI_BASE_URL

def test_an_openai_compatible_server_goes_first(app, fake):
    with FakeOllama() as other:
        other.api_key = "sk-test"
        server = app(env={"OLLAMA_HOST": fake.url, "OPENAI_BASE_URL": f"{other.url}/v1/", "OPENAI_API_KEY": "sk-test"})
        with Chat(server) as chat:
            row = chat.ask("Hello")
        assert (row["status"], row["content"]) == ("done", other.default.text)
        assert {request.path for request in other.requests} == {"/v1/models", "/v1/chat/completions"}
        assert {request.headers.get("authorization") for request in other.requests} == {"Bearer sk-test"}
    assert fake.requests == []


def test_without_the_right_key_it_says_what_to_set(app, fake):
    fake.api_key = "sk-test"
    server = app(env={"OPENAI_BASE_URL": f"{fake.url}/v1", "OPENAI_API_KEY": "sk-wrong"})
    with Chat(server) as chat:
        assert chat.ask("Hello")["status"] == "error"
    assert "OPENAI_API_KEY" in soup(get(server)).select_one("#msg-list").get_text()


def test_the_key_is_for_its_server_alone(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url, "OPENAI_API_KEY": "sk-test"})
    with Chat(server) as chat:
        chat.ask("Hello")
    assert not [request for request in fake.requests if "authorization" in request.headers]
    assert "sk-test" not in get(server) + server.out()


# ---- nothing answers

def test_without_a_model_the_chat_says_what_to_do_and_recovers(app):
    """Plain words, with what to type; all the rest works; and once Ollama is there, so is the model, with no reload."""
    port = free_port()
    server = app(env={"OLLAMA_HOST": f"127.0.0.1:{port}"})
    with Chat(server) as chat:
        assert chat.ask("Hello")["status"] == "error"
        html = soup(get(server))
        said = html.select_one("#msg-list [data-role=assistant]")
        assert said["data-status"] == "error"
        assert re.search("ollama serve|Ollama app", said.get_text())
        assert re.search("ollama (pull|run) [a-z]", said.get_text())
        assert not re.search("Traceback|Error|Errno|refused|httpx", said.get_text())
        assert "Try again" in said.get_text()
        add(server, "Milk")
        assert "Milk" in get(server)
        with FakeOllama(port):
            chat.hear(r'<select[^>]*id="model".*?llama3\.2')
            assert chat.ask("Hello again")["status"] == "done"
            assert chosen(server) == "llama3.2:latest"
        assert chat.ask("And now?")["status"] == "error"


@pytest.mark.parametrize("says", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                                  b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
@pytest.mark.parametrize("name", ["OLLAMA_HOST", "OPENAI_BASE_URL"])
def test_somebody_else_answers(wired, name, says):
    server, fake = wired(name)
    fake.impostor = says
    with Chat(server) as chat:
        assert chat.ask("Hello")["status"] == "error"
    fake.impostor = None
    said = soup(get(server)).select("#msg-list [data-role=assistant]")[-1].get_text()
    assert name in said or fake.url in said
    assert not re.search("Traceback|Errno|httpx|object|NoneType", said)
    assert "Traceback" not in server.out()
