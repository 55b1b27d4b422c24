"""Apps that a person who knows FastHTML writes: what they get wrong is a sentence, and what they guess works."""
import contextlib
import json
import re
import shutil
import sqlite3

import httpx
import pytest
from conftest import until
from fake_ollama import Script
from test_start import refuses
from wire import soup
from working import Work

HEAD = "from fasthtml.common import *\nfrom server import *\n"
ITEM = """
class Item:
    id: int
    name: str = ''
    url: str = ''
    profile: int = 0
    priority: float = 0.
    deleted: float = 0.
"""
LIST = """
class Items(Listing):
    fields = 'url',

items = Items(table(Item))
SIDE.append(items.section('Items', 'Which one?'))
"""


@pytest.fixture
def own(app, fake):
    """Writes an app, which imports server.py."""
    server = app({"OLLAMA_HOST": fake.url}, start=False, name="mytool.py")
    shutil.copy(server.file, server.dir / "server.py")

    def write(source):
        server.file.write_text(f"{HEAD}{source}\nrun()\n")
        return server
    return write


def sees(server, path, **data):
    """What stands in the answer, in words."""
    ask = httpx.post if data else httpx.get
    reply = ask(server.url + path, headers={"accept": "text/html"}, trust_env=False, **({"data": data} if data else {}))
    page = soup(reply.text)
    if page.title:
        page.title.decompose()
    return reply.status_code, " ".join(page.get_text(" ").split())


def test_a_404_says_what_the_app_says(own):
    server = own("@app.get\ndef gone(): raise HTTPException(404, 'That one has moved.')\n"
                 "@app.get('/n/{n}')\ndef number(n: int): raise HTTPException(404)\n").start()
    assert "That one has moved." in sees(server, "/gone")[1]
    for path in "/n/1", "/n/x", "/nowhere":
        assert "There is nothing here" in sees(server, path)[1]


def test_without_the_profiles_menu_nothing_is_sent_for_it(own, page):
    """The page is clean: see conftest's open_page."""
    server = own("HEAD.remove(profile_panel)\nSIDE.remove(job_section)\n").start()
    page.goto(server.url)
    todos = page.get_by_role("region", name="Todo", exact=True)
    todos.get_by_role("textbox").fill("Milk")
    todos.get_by_role("textbox").press("Enter")
    page.locator("[data-role=event]", has_text="Milk").wait_for()
    page.wait_for_function("() => !document.querySelector('.htmx-request')")


def test_a_tool_may_be_a_plain_function(own, fake):
    server = own("""
@tool
def roll(chat, sides: int = 6):
    "Rolls a die."
    return f'{chat.ask("Which?", "Red", "Blue")} {sides}, {len(todos.rows())}'
""").start()
    work = Work(server)
    fake.script(Script(tool_calls=[{"function": {"name": "roll", "arguments": {"sides": "8"}}}]), Script(text="Done"))
    with work.socket() as chat:
        chat.say("Roll")
        ident = until(lambda: work.rows("role = 'assistant'"))[0]["id"]
        work.reply(ident, "Blue")
        assert work.ended(ident)["status"] == "done"
    assert fake.chats[-1]["messages"][-1]["content"] == "Blue 8, 0"


def test_columns_have_to_be_named(own):
    """As fastlite's insert and update take them, a row came out empty, or was not changed, without a word."""
    server = own(ITEM + LIST + """
@app.get
def tried():
    said = []
    def attempt(f, *args):
        try: said.append(str(f(*args)))
        except ValueError as e: said.append(str(e))
    row = items.add(name='One')
    row.name = 'Two'
    for f, *args in ((items.add, Item(name='x')), (items.add, dict(name='x')), (items.add, 'x'),
                     (items.change, row), (items.change, 1, dict(name='x'))):
        attempt(f, *args)
    return dict(said=said, rows=[row.name for row in items.rows()])
""").start()
    told = json.loads(httpx.get(f"{server.url}/tried", trust_env=False).text)
    assert told == {"said": ["Name the columns, as in name=…"] * 5, "rows": ["One"]}


def test_a_list_whose_columns_have_other_types_is_refused(own):
    """A `deleted: bool` could be deleted never."""
    said = refuses(own(ITEM.replace("deleted: float = 0.", "deleted: bool = False").replace("    url: str = ''\n", "") + LIST),
                   "Item is no list yet", "deleted: float", "url")
    assert "priority" not in said


def test_fields_without_its_comma_is_one_field(own):
    server = own(ITEM + LIST.replace("'url',", "'url'")).start()
    assert sees(server, "/add?kind=item", name="One")[0] == 200
    assert sees(server, "/edit?kind=item&id=1")[1] == "Name Url Save Cancel"


def test_an_enum_of_numbers_is_shown_by_its_names(own):
    kinds = "class Mood(Enum):\n    calm = auto()\n    busy = auto()\n"
    server = own("from enum import Enum, auto\n" + kinds + ITEM.replace("    url: str = ''", "    url: Mood = Mood.calm")
                 + LIST).start()
    assert sees(server, "/add?kind=item", name="One")[1] == "One calm"
    form = soup(httpx.get(f"{server.url}/edit?kind=item&id=1", trust_env=False).text)
    assert [option.get_text() for option in form.select("option")] == ["calm", "busy"]
    assert sees(server, "/rename?kind=item&id=1", name="One", url="busy") == (200, "One busy")
    wrong = "Name Url calm busy Choose one of calm, busy. Save Cancel"
    assert sees(server, "/rename?kind=item&id=1", name="One", url="3") == (422, wrong)
    assert server.sql("select url from item")[0][0] == 2
    server.restart()
    assert "One busy" in sees(server, "/")[1]


def test_a_list_that_an_app_has_lost_is_found_no_more(own):
    server = own(ITEM + LIST).start()
    sees(server, "/add?kind=item", name="Zebra")
    found = lambda: [words for words in sees(server, "/find?q=zebra")[1].split("Default") if "Added" not in words and words]
    assert found() == ["Zebra Item · "]
    server.stop()
    own("").start()
    assert found() == []
    server.stop()
    own(ITEM + LIST).start()
    assert found() == ["Zebra Item · "]


def test_a_list_may_become_shared_and_back(own):
    """Its rows stay in it; and the search finds them, whoever looks."""
    shared = LIST.replace("    fields", "    shared = True\n    fields")
    server = own(ITEM + LIST).start()
    sees(server, "/add?kind=item", name="Zebra")
    server.stop()
    own(ITEM + shared).start()
    assert "What is in item belongs to all profiles now" in server.out()
    [copy] = server.db.parent.glob("*-before-change-*.db")      # which tells whose they were
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("select name, profile from item").fetchall() == [("Zebra", 1)]
    sees(server, "/add?kind=item", name="Gnu")
    html = httpx.post(f"{server.url}/profile", data={"name": "Ann"}, trust_env=False).text
    ann = re.search(r'id="profile-(\d+)"', html)[1]
    page = soup(httpx.get(f"{server.url}/profile/{ann}", trust_env=False).text)
    assert [row.select_one(".title").get_text() for row in page.select("#item-list > li")] == ["Zebra", "Gnu"]
    [hit] = soup(httpx.get(f"{server.url}/find?q=gnu", trust_env=False).text).select("a")
    assert (hit.get_text(" ", strip=True), hit["href"]) == ("Gnu Item", "/?at=item-2#item-2")
    assert sees(server, "/find?q=ann")[1] == "Nothing found."
    server.stop()
    own(ITEM + LIST).start()
    page = soup(httpx.get(server.url, trust_env=False).text)
    assert [row.select_one(".title").get_text() for row in page.select("#item-list > li")] == ["Zebra", "Gnu"]


def test_a_job_takes_the_place_of_one_of_its_name(own):
    server = own("@job\ndef audit_pages(chat):\n    return 'mine'\n").start()
    work = Work(server)
    assert work.html().count('id="job-audit_pages"') == 1
    assert work.ended(work.run("audit_pages"))["content"].strip() == "mine"


def test_serve_does_not_open_the_app_to_the_network(own):
    """What ends FastHTML's examples listens on 0.0.0.0, and has no guard."""
    server = own("serve(reload=False)\nrun = print").start(wait=False)
    server.wait_out("starts by run()")
    assert server.wait(20) != 0


@pytest.mark.parametrize("name", ["Job", "Msg", "Message", "Find"])
def test_a_class_whose_rows_would_be_mixed_with_the_apps_own_is_refused(own, name):
    refuses(own(ITEM.replace("Item", name) + LIST.replace("Item(", f"{name}(").replace("table(Item)", f"table({name})")),
            f"class {name} can be no table")


def test_a_setting_that_comes_too_late_is_named(own):
    refuses(own("IDEAS = 'One', 'Two'\n"), "IDEAS comes too late", "from server import *")


@pytest.mark.parametrize("route", ["@app.post\ndef add(name: str): ...", "@app.get('/')\ndef home(): ...",
                                   "@app.route\ndef edit(id: int): ..."])
def test_an_address_of_the_engine_is_named(own, route):
    """FastHTML puts the one in the other's place, which the lists need, or never asks it."""
    refuses(own(route), "is an address that the engine uses: call yours otherwise")


def test_an_address_of_the_app_half_may_be_replaced(own):
    server = own("@app.post('/toggle/{id}')\nasync def toggle(id: int): return 'mine'\n"
                 "@app.get\ndef add(): return 'GET only'").start()
    assert sees(server, "/toggle/1", name="x")[1] == "mine"
    assert sees(server, "/add")[1] == "GET only"
    assert sees(server, "/add?kind=todo", title="One")[0] == 200


def test_a_check_of_its_own(own):
    server = own(ITEM + LIST.replace("    fields = 'url',", """    fields = 'url',

    def checked(self, columns):
        columns = super().checked(columns)
        if '://' not in columns.get('url', '://'):
            raise WrongValue({'url': 'It has no scheme.'})
        return columns

    def parse_line(self, line, of_many):
        name, _, url = line.partition(' ')
        return dict(name=name, url=url or 'http://x')""")).start()
    assert sees(server, "/add?kind=item", name="One")[0] == 200
    assert sees(server, "/add?kind=item", name="Two x") == (400, "url: It has no scheme.")
    assert sees(server, "/rename?kind=item&id=1", name="One", url="x") == (422, "Name Url It has no scheme. Save Cancel")
    assert sees(server, "/delete?kind=item&id=1", sure="")[0] == 200


def test_an_app_may_run_beside_something_else_in_a_thread(own):
    server = own("import threading\nthread = threading.Thread(target=run, daemon=True)\nthread.start()\nthread.join()").start()
    assert sees(server, "/add?kind=todo", title="One")[0] == 200
    assert sees(server, "/chatq", text="Hello")[0] == 200
    assert "Hello" in sees(server, "/")[1]


def test_a_pasted_line_has_no_space_around_it(own):
    server = own(ITEM + LIST.replace("    fields = 'url',", """    fields = 'url',

    def parse_line(self, line, of_many):
        name, _, url = line.rpartition(' ')
        return dict(name=name, url=url)""")).start()
    assert sees(server, "/add?kind=item", name="One x  \n\t Two y\t\n \nThree z")[0] == 200
    assert [tuple(row) for row in server.sql("select name, url from item order by id")] == [
        ("One", "x"), ("Two", "y"), ("Three", "z")]


def test_the_text_of_a_list_is_a_text_and_stands_in_its_form_once(own):
    refuses(own(ITEM.replace("name: str = ''", "name: int = 0") + LIST), "Item is no list yet", "name: str")
    server = own(ITEM + LIST.replace("'url',", "'name', 'url'")).start()
    assert sees(server, "/add?kind=item", name="One") == (200, "One")
    assert sees(server, "/edit?kind=item&id=1")[1] == "Name Url Save Cancel"
    assert sees(server, "/rename?kind=item&id=1", name="Two", url="x") == (200, "Two x")


def test_columns_may_stand_in_a_class_above_and_id_anywhere(own):
    above, last = ITEM.split("    profile")[1], "\nclass Item(Rest):\n    name: str = ''\n    url: str = ''\n    id: int\n"
    server = own(f"class Rest:\n    profile{above}{last}{LIST}").start()
    assert sees(server, "/add?kind=item", name="One") == (200, "One")
    assert sees(server, "/rename?kind=item&id=1", name="Two", url="x") == (200, "Two x")
    server.stop()
    own(ITEM + LIST).start()
    assert "Two x" in sees(server, "/")[1] and "before" not in server.out()


def test_a_list_of_a_class_with_a_longer_name_is_called_as_people_would(own):
    server = own((ITEM + LIST).replace("Item", "OldCity")).start()
    assert sees(server, "/add?kind=old_city", name="Ulm\nUlm")[0] == 200
    assert sees(server, "/add?kind=old_city", name="Rom\nRiga\nRuse")[0] == 200
    assert "Old city · Default" in sees(server, "/find?q=r")[1]
    assert server.sql("select * from message where content like '%and 2 more old cities'")
    assert 'aria-label="Add old city"' in httpx.get(server.url, trust_env=False).text
    sees(server, "/profile", name="Another")
    assert "5 old cities" in sees(server, "/delete?kind=profile&id=1", x="")[1]


DATED = """
from datetime import date
class Task(Todo):
    due: date = None

class Tasks(Todos):
    fields = 'due',

tasks = Tasks(table(Task))
table(Task)
SIDE[SIDE.index(todo_section)] = tasks.section('Todo', 'What needs to be done?')
"""


def test_todos_with_a_further_column_are_a_class_below_them(own, page):
    """They have all that todos have: a box, and Edit with the further field."""
    server = own(DATED).start()
    page.goto(server.url)
    todos = page.get_by_role("region", name="Todo", exact=True)
    todos.get_by_label("What needs to be done?").fill("Milk")
    todos.get_by_label("What needs to be done?").press("Enter")
    todos.get_by_role("checkbox", name="Milk", exact=True).check()
    todos.locator("li.done").wait_for()
    page.locator("[data-role=event]", has_text="Finished “Milk”").wait_for()
    assert sees(server, "/rename?kind=task&id=1", title="Milk", due="2026-03-01")[1].startswith("Milk 1 Mar")
    assert [tuple(row) for row in server.sql("select title, done, due from task")] == [("Milk", 1, "2026-03-01")]
    assert not server.sql("select * from todo")


def test_what_has_no_column_done_cannot_be_ticked_off(own):
    server = own(ITEM + LIST).start()
    assert sees(server, "/add?kind=item", name="One") == (200, "One")
    assert sees(server, "/tick?kind=item&id=1", x="")[0] == 404
