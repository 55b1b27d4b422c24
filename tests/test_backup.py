"""`server.py --backup FILE` and `--restore FILE`: copies of the database, as one makes them at a prompt."""
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading

import httpx
import pytest
from conftest import Server, until

TITLES = ["Milk", "Bread", "日本 🦜"]


@pytest.fixture(scope="module")
def running():
    """The app, running, with a few todos in it."""
    server = Server().start()
    add(server, *TITLES)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def backup(running, tmp_path_factory):
    """A backup of it."""
    file = tmp_path_factory.mktemp("backup") / "copy.db"
    assert run(running, "--backup", file).returncode == 0
    return file


@pytest.fixture
def stopped(app, backup):
    """An app that is not running, and whose only todo is another one."""
    server = app(start=False)
    server.db.parent.mkdir()
    shutil.copy(backup, server.db)
    with contextlib.closing(sqlite3.connect(server.db)) as db, db:
        db.execute("delete from todo where title <> 'Milk'")
        db.execute("update todo set title = 'Of today'")
    return server


@pytest.fixture(autouse=True)
def report(running):
    Server.known.append(running)


def run(server, *args):
    """The app's file at a prompt, with these arguments; from another folder than its own."""
    return subprocess.run([sys.executable, str(server.file), *map(str, args)], cwd=server.cwd, env=server.env,
                          capture_output=True, text=True, timeout=20)


def add(server, *titles):
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for title in titles:
            client.post("/todo", data={"title": title}).raise_for_status()


def titles(file):
    """The todos in a file, if it is whole."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in db.execute("select title from todo where not deleted order by id")]


def beside(server):
    """All files of its data folder, but the one that only says that it is open, and the one in which SQLite notes who reads."""
    return {p.name: p.read_bytes() for p in server.db.parent.iterdir() if p.suffix not in (".lock", ".db-shm")}


def refused(server, *args, says=""):
    """It answers one sentence and exit status 1, and no stack trace; data and all stay as they were."""
    before = beside(server)
    done = run(server, *args)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr and says in done.stderr, done.stderr
    assert beside(server) == before
    return done.stderr


# ---- backup

def test_a_backup_is_made_while_the_app_runs(running, backup):
    assert titles(backup) == TITLES
    assert not [p for p in backup.parent.iterdir() if p != backup]     # complete in one file
    assert running.proc.poll() is None


def test_a_backup_says_where_it_is(running, tmp_path):
    done = run(running, "--backup", tmp_path / "copy.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "copy.db") in done.stdout and str(running.db) in done.stdout


def test_a_relative_name_is_meant_from_where_one_stands(running):
    assert run(running, "--backup", "here.db").returncode == 0
    assert titles(running.cwd / "here.db")[:3] == TITLES


def test_a_backup_is_consistent_while_writes_go_on(app, tmp_path):
    server, stop, stored = app(), threading.Event(), []

    def write():
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            while not stop.is_set():
                title = f"Number {len(stored)}"
                client.post("/todo", data={"title": title}).raise_for_status()
                stored.append(title)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: len(stored) > 20, what="20 todos")
        before, done = len(stored), run(server, "--backup", tmp_path / "copy.db")
        assert done.returncode == 0, done.stderr
        after = len(stored)
        until(lambda: len(stored) > after + 20 or not writer.is_alive(), what="more todos")
    finally:
        stop.set()
        writer.join()
    copied = titles(tmp_path / "copy.db")
    assert copied == stored[:len(copied)] and before <= len(copied) <= after + 1
    assert [row["title"] for row in server.sql("select title from todo order by id")] == stored


def test_a_backup_overwrites_nothing(running, backup, tmp_path):
    (tmp_path / "dear.db").write_text("dear to me")
    assert str(tmp_path / "dear.db") in refused(running, "--backup", tmp_path / "dear.db", says="is there already")
    assert (tmp_path / "dear.db").read_text() == "dear to me"
    refused(running, "--backup", running.db, says="is there already")


def test_a_backup_into_a_folder_that_is_not_there(running, tmp_path):
    refused(running, "--backup", tmp_path / "no" / "copy.db", says="could not be copied")
    assert not list(tmp_path.iterdir())


def test_a_backup_of_nothing(app, tmp_path):
    server = app(start=False)
    done = run(server, "--backup", tmp_path / "copy.db")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert not list(tmp_path.iterdir()) and not server.db.exists()


def test_a_backup_of_a_broken_database(stopped, tmp_path):
    stopped.db.write_bytes(b"no database, but text of some length " * 300)
    refused(stopped, "--backup", tmp_path / "copy.db", says="could not be copied")
    assert not list(tmp_path.iterdir())


# ---- restore

def test_a_backup_is_put_back(stopped, backup):
    copy = backup.read_bytes()
    done = run(stopped, "--restore", backup)
    assert (done.returncode, done.stderr) == (0, "")
    old = stopped.db.parent / "server-before-restore-1.db"
    assert str(old) in done.stdout
    assert titles(stopped.db) == TITLES and titles(old) == ["Of today"]
    assert backup.read_bytes() == copy
    stopped.start()
    page = httpx.get(stopped.url, trust_env=False).text
    assert all(title in page for title in TITLES) and "Of today" not in page
    add(stopped, "Afterwards")
    found = httpx.get(f"{stopped.url}/find", params={"q": "bread"}, trust_env=False).text
    assert "<mark>Bread</mark>" in found


def test_each_restore_keeps_what_was_there(stopped, backup):
    for _ in range(2):
        assert run(stopped, "--restore", backup).returncode == 0
    first, second = (stopped.db.parent / f"server-before-restore-{n}.db" for n in (1, 2))
    assert titles(first) == ["Of today"] and titles(second) == TITLES == titles(stopped.db)
    assert run(stopped, "--restore", first).returncode == 0             # and there is a way back
    assert titles(stopped.db) == ["Of today"]


def test_what_a_kill_left_in_the_log_is_kept_too(stopped, backup):
    stopped.start()
    add(stopped, "The last word")
    stopped.kill()
    assert stopped.db.with_name("server.db-wal").stat().st_size
    assert run(stopped, "--restore", backup).returncode == 0
    assert titles(stopped.db) == TITLES
    assert titles(stopped.db.with_name("server-before-restore-1.db")) == ["Of today", "The last word"]


def test_a_restore_into_a_new_place(app, backup):
    server = app(start=False)
    done = run(server, "--restore", backup)
    assert done.returncode == 0 and "before" not in done.stdout, done
    assert titles(server.db) == TITLES and list(beside(server)) == ["server.db"]


def test_a_broken_database_is_replaced(stopped, backup):
    broken = b"no database, but text of some length " * 300
    stopped.db.write_bytes(broken)
    assert run(stopped, "--restore", backup).returncode == 0
    assert stopped.db.with_name("server-before-restore-1.db").read_bytes() == broken
    assert stopped.start() and titles(stopped.db) == TITLES


def test_a_restore_is_refused_while_the_app_runs(running, backup):
    assert titles(running.db) == TITLES
    refused(running, "--restore", backup, says="runs already")
    add(running, "Still here")
    assert titles(running.db) == [*TITLES, "Still here"]


def missing(file, backup):
    pass


def text(file, backup):
    file.write_text("no database, but text of some length " * 300)


def empty(file, backup):
    file.touch()


def scrambled(file, backup):
    data = bytearray(backup.read_bytes())
    data[4096:-4096] = b"\xff" * (len(data) - 8192)
    file.write_bytes(data)


def of_something_else(file, backup):
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("create table moz_places(id, url)")


@pytest.mark.parametrize("what", [missing, text, empty, scrambled, of_something_else], ids=lambda f: f.__name__)
def test_what_is_no_backup_is_not_put_back(stopped, backup, tmp_path, what):
    file = tmp_path / "copy.db"
    what(file, backup)
    was = file.is_file() and file.read_bytes()
    assert str(file) in refused(stopped, "--restore", file, says="Nothing was changed")
    assert titles(stopped.db) == ["Of today"]
    assert (file.is_file() and file.read_bytes()) == was
    assert not stopped.db.with_name("server-before-restore-1.db").exists()


def test_the_database_is_not_put_back_onto_itself(stopped):
    assert "name a copy of it" in refused(stopped, "--restore", stopped.db, says="is the database itself")


# ---- everything else

@pytest.mark.parametrize("args", [["--help"], ["--backup", "--restore"], ["--backup", "a.db", "b.db"]], ids=" ".join)
def test_other_arguments_print_the_usage(stopped, args):
    before = beside(stopped)
    done = run(stopped, *args)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and done.returncode == (0 if args == ["--help"] else 1)
    assert all(f"python server.py {way}" in said for way in ("--backup FILE", "--restore FILE"))
    assert beside(stopped) == before and not list(stopped.cwd.iterdir())


def test_a_stopped_app_leaves_its_data_in_one_file(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url})
    httpx.post(f"{server.url}/todo", data={"title": "Milk"}, trust_env=False, verify=False)
    server.stop()
    assert [f.name for f in server.db.parent.glob("server.db*")] == ["server.db"]
