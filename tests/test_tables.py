"""Tables of an app's own: names that SQL knows too, fields that come, go and change their type, the search in them."""
import contextlib
import sqlite3
import subprocess
import sys
import threading

import httpx
import pytest
from conftest import Server, until
from readme import pasted
from wire import soup
from working import Work

TAIL = "    profile: int = 0\n    priority: float = 0.\n    deleted: float = 0.\n"
OWN = """
class Links(Listing):
    fields = [*set(table(PageLink).types) - {'id', 'name', 'profile', 'priority', 'deleted'}]

links = Links(table(PageLink))
SIDE.append(links.section('Links', 'An address'))
"""


def fork(server, *fields, name="PageLink", more=OWN):
    """An app with a table of these fields."""
    server.file.write_text(pasted(f"class {name}:\n    id: int\n    name: str = ''\n" +
                                  "".join(f"    {field}\n" for field in fields) + TAIL + more.replace("PageLink", name)))
    return server


def copies(server):
    return sorted(server.db.parent.glob("server-before-change-*.db"))


def add(server, kind, name, **fields):
    """A row by the page's own way: add it, then fill its form."""
    with httpx.Client(base_url=server.url, trust_env=False) as web:
        item = soup(web.post(f"/add?kind={kind}", data={"name": name}).raise_for_status().text).li["id"]
        ident = item.removeprefix(f"{kind}-")
        web.post(f"/rename?kind={kind}&id={ident}", data={"name": name} | fields).raise_for_status()
        assert name in web.get("/").raise_for_status().text
    return int(ident)


def column(server, name, table="page_link"):
    return [row[0] for row in server.sql(f"select [{name}] from [{table}] order by id")]


@pytest.mark.parametrize("name", ["PageLink", "Order"])
def test_a_class_of_two_words_or_with_a_word_of_sql_gains_and_loses_fields(app, name):
    table = "page_link" if name == "PageLink" else "order"
    server = fork(app(start=False), "group: str = 'first'", name=name).start()
    add(server, table, "One", group="mine")
    server.stop()
    fork(server, "group: str = 'first'", "index: int = 7", name=name).start()
    add(server, table, "Two", index="8")
    assert column(server, "index", table) == [7, 8] and not copies(server)
    server.stop()
    fork(server, "index: int = 7", name=name).start()
    add(server, table, "Three")
    assert column(server, "index", table) == [7, 8, 7]
    [copy] = copies(server)
    assert "group" in server.out() and str(copy) in server.out()
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute(f"select [group] from [{table}]").fetchall() == [("mine",), ("first",)]


TYPES = [  # before, after, what was typed, what it is then, what does not fit
    ("str = ''", "bool = False", ["yes", "False", "0", "on"], [1, 0, 0, 1], "maybe"),
    ("str = ''", "int = 3", ["5", "-7.0", "007"], [5, -7, 7], "99999999999999999999"),
    ("str = ''", "float = 3.", ["2,5", "2", "1e3"], [2.5, 2.0, 1000.0], "1,500 or so"),
    ("str = ''", "date = None", ["2026-01-31"], ["2026-01-31"], "tomorrow"),
    ("str = ''", "Decimal = None", ["1,50", "2"], ["1.50", "2"], "two"),
    ("str = ''", "Literal['a', 'b'] = 'a'", ["b", "a"], ["b", "a"], None),
    ("float = 0.", "int = 3", ["2", "1e3"], [2, 1000], "2.5"),
    ("float = 0.", "bool = False", ["1", "0"], [1, 0], "2.5"),
    ("int = 0", "str = ''", ["5"], ["5"], None),
    ("int = 0", "float = 0.", ["5"], [5.0], None),
    ("bool = False", "str = ''", ["1"], ["1"], None)]


def test_a_column_that_changes_its_type_keeps_its_meaning_or_says_so(app):
    """All of these at once; what fits no more is kept in a copy, and the line at the start names it."""
    names = [f"extra{n}" for n in range(len(TYPES))]
    old, new = ([f"{name}: {each[side]}" for name, each in zip(names, TYPES, strict=True)] for side in (0, 1))

    def stored(name):
        return [(value, type(value)) for value in column(server, name)]
    server = fork(app(start=False), *old).start()
    for n in range(4):                               # a shorter list of values begins again
        add(server, "page_link", f"Row {n}", **{name: each[2][n % len(each[2])] for name, each in zip(names, TYPES, strict=True)})
    server.stop()
    fork(server, *new).start()
    for name, (_, _, _, then, _) in zip(names, TYPES, strict=True):
        assert stored(name) == [(value, type(value)) for n in range(4) for value in [then[n % len(then)]]], name
    assert not copies(server) and len(server.out().splitlines()) == 2
    server.stop()

    fork(server, *old).start()
    odd = {name: each[4] for name, each in zip(names, TYPES, strict=True) if each[4]}
    add(server, "page_link", "Odd", **odd)
    server.stop()
    fork(server, *new).start()
    [copy] = copies(server)
    [said] = [line for line in server.out().splitlines() if str(copy) in line]
    with contextlib.closing(sqlite3.connect(copy)) as db:
        db.row_factory = sqlite3.Row
        kept = db.execute("select * from page_link where name = 'Odd'").fetchone()
    for name, (_, after, _, _, misfit) in zip(names, TYPES, strict=True):
        assert (name in said) == (misfit is not None)
        if misfit:
            assert str(kept[name]) == misfit
            assert column(server, name)[-1] == eval(after.split(" = ")[1])
    add(server, "page_link", "Afterwards")
    server.restart()
    assert copies(server) == [copy], "only the first start copies"


BAD = ["class Odd:\n    id: str = ''\ntable(Odd)", "class Odd:\n    name: str = ''\ntable(Odd)",
       "class Odd:\n    id: int\n    Name: str = ''\n    name: str = ''\ntable(Odd)",
       "class SqliteOdd:\n    id: int\ntable(SqliteOdd)",
       "class Find:\n    id: int\ntable(Find)", "class Todo:\n    id: int\n    name: str = ''\ntable(Todo)"]


@pytest.mark.parametrize("code", BAD, ids=[code.splitlines()[0] + str(n) for n, code in enumerate(BAD)])
def test_a_class_that_can_be_no_table_is_one_sentence(app, code):
    server = app(start=False)
    server.file.write_text(pasted(code))
    server.start(wait=False)
    assert server.wait() == 1
    [line] = server.out().splitlines()
    assert "can be no table" in line and "Traceback" not in line


# ---- Search

@pytest.fixture(scope="module")
def home():
    server = fork(Server(), "note: str = ''", more=OWN + """
@job
def shows(chat):
    chat.send(Table(Tr(Td('Papaya', tabindex='0'))))
""").start()
    yield server
    server.remove()


@pytest.fixture
def work(home):
    work = Work(home)
    yield work
    work.web.close()


def hits(work, text):
    return soup(work.web.get("/find", params={"q": text}, headers={"HX-Request": "true"}).raise_for_status().text).find_all("a")


@pytest.mark.parametrize(("title", "typed", "marked"), [
    ("明日の会議の資料を作る", "会議", "会議"), ("明日の予定表を作る", "予定表を", "予定表を"),
    ("周末去北京图书馆", "图书馆", "图书馆"),
    ("주간보고서를 쓴다", "보고서", "보고서"), ("ไปซื้อของที่ตลาด", "ตลาด", "ตลาด"),
    ("Treffen über東京タワー um 5", "東京タワー", "東京タワー"),
    ("ﾃｽﾄ用ｶﾒﾗを買う", "ｶﾒﾗ", "ｶﾒﾗ"), ("か\u3099くせい", "がく", "がく"), ("naïve Café", "cafe", "Café")])
def test_a_word_inside_a_sentence_without_spaces_is_found(work, title, typed, marked):
    work.post("/todo", title=title, profile=work.profile)
    [hit] = [hit for hit in hits(work, typed) if "/todo" not in hit["href"] and "#todo" in hit["href"]]
    assert "\u200b" not in hit.get_text() and "".join(mark.get_text() for mark in hit.find_all("mark")) == marked
    assert not hits(work, f"{typed[1:]}{typed[0]}x")


def test_what_is_found_in_a_component_is_what_a_person_sees(work):
    work.ended(work.run("shows"))
    assert [hit for hit in hits(work, "papaya") if "#msg" in hit["href"]]
    for word in "td", "tabindex", "0", "tr":
        assert not [hit for hit in hits(work, word) if "Papaya" in hit.get_text()]


def test_other_programs_write_and_it_is_found(work):
    with contextlib.closing(sqlite3.connect(work.server.db)) as db, db:
        for _ in range(2):
            db.execute("insert or abort into page_link(name, note, profile, priority, deleted) "
                       "values ('Walrus', null, ?, 1, 0)", [work.profile])
            db.execute("update or abort page_link set name = 'Narwhal' where name = 'Walrus'")
    assert len(hits(work, "narwhal")) == 2 and not hits(work, "walrus")
    with contextlib.closing(sqlite3.connect(work.server.db)) as db, db:
        db.execute("delete from page_link where name = 'Narwhal'")
    assert not hits(work, "narwhal")


def test_what_was_changed_before_a_kill_is_found_after_it(work):
    work.post("/todo", title="Pangolin", profile=work.profile)
    work.server.restart("kill")
    assert hits(work, "pangolin")
    assert not work.server.sql("select * from find_due")


def test_a_search_while_another_program_locks_says_what_it_knows(work):
    work.post("/todo", title="Okapi", profile=work.profile)
    assert hits(work, "okapi")
    with contextlib.closing(sqlite3.connect(work.server.db, isolation_level=None)) as db:
        db.execute("begin immediate")
        db.execute("update todo set title = 'Ibex' where title = 'Okapi'")
        assert hits(work, "okapi")
        db.execute("commit")
    assert hits(work, "ibex") and not [hit for hit in hits(work, "okapi") if "#todo" in hit["href"]]


def test_after_a_great_import_the_first_search_is_quick_and_all_is_found_soon(work):
    with contextlib.closing(sqlite3.connect(work.server.db)) as db, db:
        db.executemany("insert into todo(title, done, priority, profile, deleted) values (?, 0, ?, ?, 0)",
                       [(f"Gnu {n} {'of many words ' * 10}", n, work.profile) for n in range(4000)])
    with work.responsive(1.5):
        assert work.web.get("/find", params={"q": "gnu"}).elapsed.total_seconds() < 1.5
        until(lambda: not work.server.sql("select 1 from find_due limit 1"), 20, "an index")
    [hit] = [hit for hit in hits(work, "gnu 1234") if "#todo" in hit["href"]]
    assert "Gnu 1234" in hit.get_text()
    assert work.web.get("/find", params={"q": "gnu"}).elapsed.total_seconds() < 1


# ---- Without what other systems lack

HIDE = """
import os, socket, sys
for name in 'fcntl', 'termios', 'pwd', 'grp', 'resource', 'readline':
    sys.modules[name] = None
for name in 'fork', 'register_at_fork', 'getuid', 'geteuid', 'fchmod', 'chown', 'mkfifo':
    if hasattr(os, name): delattr(os, name)
if hasattr(socket, 'SO_REUSEPORT'): del socket.SO_REUSEPORT
"""


def test_it_runs_without_what_windows_lacks(app):
    """As far as it can be tried here: by hiding these modules and functions."""
    server = app(start=False)
    (server.dir / "start.py").write_text(f"{HIDE}\nimport runpy\nsys.argv = [{str(server.file)!r}]\n"
                                         f"runpy.run_path({str(server.file)!r}, run_name='__main__')\n")
    server.proc = subprocess.Popen([sys.executable, str(server.dir / "start.py")], cwd=server.cwd, env=server.env, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    server._reader = threading.Thread(target=server._listen, args=[server.proc.stdout], daemon=True)
    server._reader.start()
    server.wait_out("://", 20)
    work = Work(server)
    work.post("/todo", title="Seeds", profile=work.profile)
    assert work.todos() == [("Seeds", False)] and hits(work, "seeds")
    assert work.say(text="Hello") and server.stop() is not None
    assert "Traceback" not in server.out()
