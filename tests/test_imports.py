"""Forks by import: the README's `mytool.py` beside a running server.py, its recipes, and the API that they use.

What the fork adds is tried in a copy of server.py, too: both are forks.
"""
import ast
import builtins
import json
import random
import re
import shutil
import subprocess
import symtable
import sys
from collections import Counter

import fasthtml.common
import httpx
import pytest
from conftest import ROOT, Server, ask, open_job, wait_done
from fake_ollama import FakeOllama, Script
from playwright.sync_api import expect
from readme import APP, BLOCKS, ENGINE, SOURCE, START, api, block, forked, links_and_job, pasted, replaced
from test_start import free, run
from wire import soup
from working import Work

pytest_plugins = "chatting"
OWN_CSS = block(".overdue") + ".brand { letter-spacing: 3px; }\n"
OWN_JS = "document.documentElement.dataset.own = 'yes'\n"
RED = "element => getComputedStyle(element).color"

# Tables with columns of every type, jobs of both kinds that use them, and what asks the model.
MORE = '''
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Literal

class Mood(Enum):
    CALM = 'calm'
    BUSY = 'busy'

class Visit:
    id: int
    name: str = ''
    day: date = None
    at: datetime = None
    price: Decimal = Decimal('0.10')
    kind: Literal['crawl', 'render'] = 'crawl'
    mood: Mood = Mood.CALM
    times: int = 1
    profile: int = 0
    priority: float = 0.
    deleted: float = 0.

class Visits(Listing):
    fields = 'day', 'at', 'price', 'kind', 'mood', 'times'

visits = Visits(table(Visit))
SIDE.append(visits.section('Visits', 'What was visited?'))
GIVEN = dict(day=date(2026, 1, 31), at=datetime(2026, 1, 31, 18, 30), price=Decimal('1.10'), kind='render', mood=Mood.BUSY)

@job
def visit_plainly(chat):
    gone = visits.add(name='Gone')
    visits.change(visits.add(name='Plain', **GIVEN), price=Decimal('2.20'), times=2)
    visits.delete(gone)

@job
async def visit_awaited(chat):
    gone = await visits.add(name='Gone')
    await visits.change(await visits.add(name='Awaited', **GIVEN), price=Decimal('2.20'), times=2)
    await visits.delete(gone)

@job
def tell(chat):
    for visit in visits.rows():
        print([visit.name, visit.day, visit.at, visit.price, visit.kind, visit.mood, visit.times])

@job
def wrong(chat, column: str, value: str):
    try:
        visits.add(name='Wrong', **{column: value})
    except ValueError as e:
        return str(e)

@job
def of_all(chat):
    return f'{len(visits.rows())} here'

@app.get
def every_visit():
    return f'{len(visits.rows())} in all'
'''
TOLD = ("datetime.date(2026, 1, 31), datetime.datetime(2026, 1, 31, 18, 30), Decimal('2.20'), 'render', "
        "<Mood.BUSY: 'busy'>, 2]")

# A day that a test can set, before anybody has asked for the date.
CLOCK = '''
import datetime, pathlib

class Clock(datetime.date):
    @classmethod
    def today(cls):
        return cls.fromisoformat(pathlib.Path(__file__).with_name('today').read_text())

datetime.date = Clock
'''


@pytest.fixture(scope="module")
def model():
    with FakeOllama() as fake:
        yield fake


@pytest.fixture(autouse=True)
def known(request):
    """Their ports are none of another host's."""
    def mark(*servers):
        Server.known.extend(servers)
    for name in "desk", "grown", "pruned":
        if name in request.fixturenames:
            value = request.getfixturevalue(name)
            mark(*(value if isinstance(value, tuple) else [value]))


def started(server, source):
    server.file.write_text(source)
    return server.start()


def with_own_static(server):
    """A folder of its own, with the fork's own files in it."""
    (server.dir / "static").unlink()
    shutil.copytree(ROOT / "static", server.dir / "static")
    (server.dir / "static/mytool.css").write_text(OWN_CSS)
    (server.dir / "static/mytool.js").write_text(OWN_JS)
    return server


@pytest.fixture(scope="module", params=["import", "copy"])
def desk(request, model):
    """(server.py, mytool.py): a fork with the README's links and job, beside the app as it is."""
    base = next(n for n in iter(lambda: random.randrange(20000, 32000), None) if all(map(free, range(n, n + 10))))
    env = {"OLLAMA_HOST": model.url, "PORT": None}
    ports = f"PORTS = range({base}, {base + 10})"                    # 5001 and on may be in use here
    plain = started(with_own_static(Server(env)), replaced(ports))
    settings = block("from server import *").splitlines()[0]
    if request.param == "import":
        source = f"{ports}\n{forked()}"
    else:
        names = [f"{name} = {value}" for name, value in zip(*(side.split(", ") for side in settings.split(" = ")), strict=True)]
        source = pasted(links_and_job() + "JOBS.remove(audit_pages)\n", source=replaced("\n".join([*names, ports])))
    fork = started(Server(env, name="mytool.py", folder=plain.dir), source)
    assert (plain.port, fork.port) == (base, base + 1), "the next free one"
    yield plain, fork
    fork.remove()
    plain.remove()


@pytest.fixture(scope="module")
def grown(model):
    """The README's fork with all its recipes, and MORE."""
    recipes = [block(words) for words in ("def actions", "def report", "def save_links", "def review")]
    server = Server({"OLLAMA_HOST": model.url}, name="mytool.py")
    shutil.copy(ROOT / "server.py", server.dir)
    yield started(server, forked(*recipes, MORE))
    server.remove()


@pytest.fixture
def work(grown, model):
    """A profile of `grown` of the test's own."""
    work = Work(grown)
    yield work
    work.web.close()


def part(page, name):
    return page.get_by_role("region", name=name, exact=True)


def on_row(page, kind, ident, button):
    """A button of a list's row, which shows while the mouse is over it."""
    page.locator(f"#{kind}-{ident}").hover()
    page.locator(f"#{kind}-{ident}").get_by_role("button", name=re.compile(f"^{button} ")).click()


def of_a_new_profile(server):
    """The address of a page that nobody has used yet."""
    made = httpx.post(f"{server.url}/profile", data={"name": "Somebody"}, trust_env=False).raise_for_status().text
    ident = re.search(r'id="profile-(\d+)"', made)[1]
    return f"{server.url}/profile/{ident}"


# ---- The fork, beside the app

def test_it_says_what_it_is(desk):
    for server, name in zip(desk, ("chatq", "Crawl desk"), strict=True):
        [line] = server.out().splitlines()
        assert line.startswith(f"{name}: http://localhost:{server.port}/ ") and str(server.db) in line
    assert [server.db.name for server in desk] == ["server.db", "mytool.db"]


def test_it_has_a_face_of_its_own(desk, window):
    plain, fork = window.open(desk[0].url), window.open(desk[1].url)
    assert [page.title() for page in (plain, fork)] == ["chatq", "Crawl desk"]
    expect(fork.get_by_role("banner").get_by_role("heading")).to_have_text("Crawl desk")
    accent = "() => getComputedStyle(document.documentElement).getPropertyValue('--accent')"
    assert fork.locator("html").get_attribute("data-accent") == "indigo"
    assert fork.evaluate(accent) not in ("", plain.evaluate(accent))
    expect(fork.locator("html")).to_have_attribute("data-own", "yes")
    space = "() => getComputedStyle(document.querySelector('.brand')).letterSpacing"
    assert fork.evaluate(space) == "3px" != plain.evaluate(space)
    assert plain.locator("html").get_attribute("data-own") is None
    for page, audits in (plain, 1), (fork, 0):
        expect(page.locator("#job-audit_pages")).to_have_count(audits)
        expect(page.locator("#job-count_words")).to_have_count(1 - audits)
        expect(part(page, "Links")).to_have_count(1 - audits)
    assert httpx.post(f"{desk[1].url}/run/audit_pages", data={"urls": "x"}, trust_env=False).status_code == 404


def test_cookies_and_data_are_its_own(desk, open_page):
    """In one browser: cookies don't know of ports."""
    plain = open_page()
    fork = plain.context.new_page()
    for tab, server in zip((plain, fork), desk, strict=True):
        tab.goto(server.url.replace("127.0.0.1", "localhost"))
    with fork.expect_response("**/switch_theme"):
        fork.get_by_role("button", name="Light or dark").click()
    for tab, theme in (plain, None), (fork, "dark"):
        tab.reload()
        assert tab.locator("html").get_attribute("data-theme") == theme
    names = {cookie["name"] for cookie in plain.context.cookies()}
    assert any(name.startswith("Crawl") for name in names) and any(name.startswith("chatq") for name in names)
    part(fork, "Todo").get_by_label("What needs to be done?").fill("Of the fork")
    fork.keyboard.press("Enter")
    expect(part(fork, "Todo").locator("li .title")).to_have_text(["Of the fork"])
    assert not desk[0].sql("select * from todo") and len(desk[1].sql("select * from todo")) == 1
    assert not desk[0].sql("select * from sqlite_schema where name = 'link'")


def test_the_chat_answers(desk, window):
    page = window.open(of_a_new_profile(desk[1]))
    ask(page, "Hi")
    wait_done(page)
    assert len(desk[1].sql("select * from message where role = 'assistant'")) == 1


# ---- Its list

def test_a_list_of_its_own(desk, window):
    """Add, several pasted lines, edit by double click and by form, Escape, order, delete, Undo, search, every tab the same."""
    server, url = desk[1], of_a_new_profile(desk[1])
    page, other = pages = window.open(url), window.open(url)
    links, new = part(page, "Links"), page.get_by_label("What is worth keeping?")

    def shows(*titles):
        for each in pages:
            expect(part(each, "Links").locator("li .title")).to_have_text(titles)
    new.fill("Docs")
    new.press("Enter")
    expect(new).to_have_value("")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("text => navigator.clipboard.writeText(text)", "Blog\r\n\n  Wiki \n")
    new.focus()
    page.keyboard.press("Control+V")
    shows("Docs", "Blog", "Wiki")
    docs, blog, wiki = [row["id"] for row in server.sql("select id from link order by id")][-3:]
    assert page.locator(f"#link-{docs}").get_by_role("link", name="Open").count() == 0

    links.get_by_text("Blog", exact=True).dblclick()
    name = links.get_by_label("New name of Blog")
    expect(name).to_be_focused()
    name.fill("Weblog")
    name.press("Escape")
    expect(links.locator(".editing")).to_have_count(0)
    shows("Docs", "Blog", "Wiki")

    on_row(page, "link", blog, "Rename")
    expect(links.locator(".editing label")).to_have_count(3)
    assert links.locator(".editing label").all_inner_texts() == ["Name", "Url", "Read"]
    links.get_by_label("New name of Blog").fill("News")
    links.get_by_label("Url").fill("https://example.com/news")
    links.get_by_label("Read").check()
    links.get_by_role("button", name="Save").click()
    shows("Docs", "Newshttps://example.com/news · read", "Wiki")
    for each in pages:
        link = each.locator(f"#link-{blog}").get_by_role("link", name="Open")
        expect(link).to_have_attribute("href", "https://example.com/news")
    [row] = server.sql("select name, url, read from link where id = ?", blog)
    assert tuple(row) == ("News", "https://example.com/news", 1)
    on_row(page, "link", blog, "Rename")
    expect(links.get_by_label("Read")).to_be_checked()
    links.get_by_label("Read").uncheck()
    links.get_by_label("Url").press("Enter")
    shows("Docs", "Newshttps://example.com/news", "Wiki")
    assert server.sql("select read from link where id = ?", blog)[0][0] == 0
    on_row(page, "link", wiki, "Rename")
    links.get_by_label("Url").fill("left")
    links.get_by_role("button", name="Cancel").click()
    shows("Docs", "Newshttps://example.com/news", "Wiki")

    page.locator(f"#link-{docs}").focus()
    page.keyboard.press("Alt+ArrowDown")
    shows("Newshttps://example.com/news", "Docs", "Wiki")
    on_row(page, "link", docs, "Delete")
    shows("Newshttps://example.com/news", "Wiki")
    page.locator("#toast").get_by_role("button", name="Undo").click()
    shows("Newshttps://example.com/news", "Docs", "Wiki")

    page.locator("#search").press_sequentially("example")
    page.locator("#search-results").get_by_role("link", name=re.compile("^News")).click()
    expect(page).to_have_url(re.compile(rf"/profile/\d+\?.*#link-{blog}$"))
    expect(page.locator(f"#link-{blog}:target")).to_be_visible()
    shows("Newshttps://example.com/news", "Docs", "Wiki")


def test_what_is_improved_in_server_py_is_improved_in_it(app, fake):
    """And its own data outlives that."""
    server = app({"OLLAMA_HOST": fake.url}, name="mytool.py", start=False)
    engine = server.dir / "server.py"
    shutil.copy(ROOT / "server.py", engine)
    started(server, forked())
    added = httpx.post(f"{server.url}/add?kind=link", data={"name": "Docs"}, trust_env=False).text
    assert "Docs" in added
    server.stop()
    old = "What needs to be done?"
    assert SOURCE.count(f"'{old}'") == 1
    engine.write_text(SOURCE.replace(old, "What is next?"))
    page = httpx.get(server.start().url, trust_env=False).text
    assert "What is next?" in page and ">Docs<" in page and list(server.dir.glob("data/*before*")) == []


# ---- Its job

def test_a_job_of_its_own(desk, window):
    page, window.allow_errors = window.open(of_a_new_profile(desk[1])), "422|ResponseError"
    form, last = open_job(page, "count_words"), page.locator("[data-role=job]").last
    expect(form).to_contain_text("The words that a text uses most.")
    expect(form.get_by_label("Most")).to_have_value("5")
    form.get_by_label("Text").fill("word word word once\nmore more")
    form.get_by_label("Most").fill("none")
    page.get_by_role("button", name="Run Count words").click()
    expect(form.locator(".error")).to_have_text("Type a whole number.")
    form.get_by_label("Most").fill("2")
    page.get_by_role("button", name="Run Count words").click()
    expect(last).to_have_attribute("data-status", "done")
    expect(last.locator("td")).to_have_text(["word", "3", "more", "2"])
    expect(last.locator(".content p").last).to_have_text("3 different words")


# ---- Its recipes

@pytest.fixture(scope="module")
def pruned(model):
    """The README's fork without the todo list, with a date in a table of its own, on a day that a test sets."""
    server = Server({"OLLAMA_HOST": model.url}, name="mytool.py")
    shutil.copy(ROOT / "server.py", server.dir)
    with_own_static(server)
    (server.dir / "today").write_text("2026-03-01")
    yield started(server, CLOCK + forked(block("class Task:"), block("SIDE.remove")))
    server.remove()


def test_a_date_is_red_when_it_is_over(pruned, window):
    """Also on the next day, of a row that has not changed since."""
    page = window.open(pruned.url)
    tasks, new = part(page, "Tasks"), page.get_by_label("What is to be done by when?")
    new.fill("Taxes")
    new.press("Enter")
    expect(tasks.locator(".title")).to_have_text(["Taxes"])
    tasks.get_by_text("Taxes", exact=True).dblclick()
    due = tasks.get_by_label("Due")
    expect(due).to_have_attribute("type", "date")
    due.fill("2026-03-01")
    tasks.get_by_role("button", name="Save").click()
    shown = tasks.locator(".title small")
    expect(shown).to_have_text("2026-03-01")
    soft = shown.evaluate(RED)
    (pruned.dir / "today").write_text("2026-03-02")
    page.reload()
    expect(tasks.locator(".title .overdue")).to_have_text("2026-03-01")
    assert shown.evaluate(RED) != soft
    red = page.evaluate("""() => { const it = document.body.appendChild(document.createElement('i'))
        it.style.color = 'var(--bad)'; return getComputedStyle(it).color }""")
    assert shown.evaluate(RED) == red


def test_what_was_taken_out_is_gone(pruned, window, model):
    page = window.open(pruned.url)
    assert [section.get_attribute("aria-label") for section in page.locator("#sidebar section[aria-label]").all()
            if section.get_attribute("aria-label") in ("Todo", "Jobs", "Links", "Tasks")] == ["Tasks", "Jobs", "Links"]
    assert [form.get_attribute("id") for form in page.locator("#job-list form").all()] == ["job-count_words"]
    ask(page, "Hi")
    wait_done(page)
    assert [tool["function"]["name"] for tool in model.chats[-1].get("tools", [])] == ["count_words"]


def test_a_button_on_each_row(grown, work, model, window):
    """It asks the model, and what comes of it is in every tab."""
    work.post("/todo", title="Move house", profile=work.profile)
    page, other = window.open(grown.url + work.path), window.open(grown.url + work.path)
    model.script(Script(text="Pack\nDrive\nUnpack\nRest"))
    row = page.locator("#todo-list li")
    row.hover()
    row.get_by_role("button", name="Split Move house").click()
    for each in page, other:
        expect(each.locator("#todo-list .title")).to_have_text(["Move house", "Pack", "Drive", "Unpack"])
    expect(page.locator("#toast")).to_have_text("It is split.")
    assert "Move house" in model.chats[-1]["messages"][-1]["content"] and len(model.chats[-1]["messages"]) == 2
    for title in "Move house", "Pack":
        expect(page.get_by_role("button", name=f"Split {title}")).to_have_count(1)


def test_a_page_of_its_own(grown, window):
    httpx.post(f"{grown.url}/add?kind=link", data={"name": "Docs & more"}, trust_env=False).raise_for_status()
    page = window.open(f"{grown.url}/report")
    assert page.title() == "Report · Crawl desk"
    expect(page.get_by_role("heading", level=1)).to_have_text("Report")
    expect(page.locator("th")).to_have_text(["Name", "Address"])
    expect(page.locator("td").first).to_have_text("Docs & more")
    in_the_frame(page)


def test_an_error_is_a_page_too(grown, window):
    window.allow_errors = "404"
    page = window.open(f"{grown.url}/nowhere")
    expect(page.get_by_role("heading", level=1)).to_contain_text("There is nothing here")
    in_the_frame(page)


def in_the_frame(page):
    """The app's header with its theme button; a body that is not the chat's grid."""
    banner = page.get_by_role("banner")
    expect(banner.get_by_role("link", name="Crawl desk")).to_have_attribute("href", "/")
    theme = page.locator("html").get_attribute("data-theme")
    with page.expect_response("**/switch_theme"):
        banner.get_by_role("button", name="Light or dark").click()
    expect(page.locator("html")).not_to_have_attribute("data-theme", theme or "none")
    assert page.locator("main").evaluate("main => getComputedStyle(main).display") != "grid"
    assert page.locator("#msg, .side").count() == 0
    assert page.evaluate("() => document.body.scrollWidth <= innerWidth && document.styleSheets.length") >= 1
    page.locator("main").click()
    for key in "/", "?", "Escape", "Control+z", "ArrowDown", "Delete", "a":     # a key that means something where there is a chat
        page.keyboard.press(key)


def test_a_job_reads_and_writes_a_list(grown, work, window):
    page = window.open(grown.url + work.path)
    links = part(page, "Links").locator("li .title")
    work.ended(work.run("save_links", urls="https://a.example/\nhttps://b.example/"))
    expect(links).to_have_text(["a.example/https://a.example/", "b.example/https://b.example/"])
    on_row(page, "link", grown.sql("select max(id) from link")[0][0], "Rename")
    part(page, "Links").get_by_label("Read").check()
    part(page, "Links").get_by_role("button", name="Save").click()
    work.ended(work.run("save_links", urls="https://a.example/ https://c.example/"))
    expect(links).to_have_text(["a.example/https://a.example/", "c.example/https://c.example/"])


# ---- The API

@pytest.mark.parametrize("kind", ["plainly", "awaited"])
def test_lists_from_both_kinds_of_jobs(grown, work, window, kind):
    """Each change is shown in the tabs that are open; each value comes back as what it was, after a restart too."""
    page = window.open(grown.url + work.path)
    assert work.ended(work.run(f"visit_{kind}"))["status"] == "done"
    name = {"plainly": "Plain", "awaited": "Awaited"}[kind]
    rows = part(page, "Visits").locator("li .title")
    day = "31 Jan( 2026)?"                                           # the year only where it is another one
    expect(rows).to_have_text([re.compile(rf"^{name}{day} · {day}, 18:30 · 2.20 · render · busy · 2$")])
    assert f"\n['{name}', {TOLD}\n" in work.ended(work.run("tell"))["content"]
    window.leave(page)
    grown.restart()
    assert f"\n['{name}', {TOLD}\n" in work.ended(work.run("tell"))["content"]
    [stored] = [tuple(row) for row in grown.sql(
        "select day, at, price, kind, mood, times from visit where profile = ? and not deleted", work.profile)]
    assert stored == ("2026-01-31", "2026-01-31T18:30:00", "2.20", "render", "busy", 2)


def test_rows_are_those_of_the_jobs_profile(grown, work):
    """And of all profiles where there is no job."""
    work.ended(work.run("visit_plainly"))
    other = Work(grown)
    other.ended(other.run("visit_plainly"))
    other.web.close()
    assert work.ended(work.run("of_all"))["content"].strip() == "1 here"
    total = grown.sql("select count(*) from visit where not deleted")[0][0]
    assert total >= 2 and f"{total} in all" in work.web.get("/every_visit").text


WRONG = [("day", "tomorrow", "Type a date like 2026-01-31."), ("at", "noon", "Type a time like 2026-01-31 18:30."),
         ("price", "much", "Type a number."), ("price", "NaN", "Type a number."),
         ("kind", "dance", "Choose one of crawl, render."), ("mood", "angry", "Choose one of calm, busy."),
         ("times", "1.5", "Type a whole number."), ("times", str(2**70), "This number is too large.")]


@pytest.mark.parametrize(("column", "value", "sentence"), WRONG, ids=[f"{column}-{value[:8]}" for column, value, _ in WRONG])
def test_a_wrong_value_is_a_sentence(grown, work, column, value, sentence):
    """To a job; and beside its field, where the form keeps all that was typed and nothing is stored."""
    told = work.ended(work.run("wrong", column=column, value=value))
    assert (told["status"], told["content"].strip()) == ("done", f"{column}: {sentence}")
    made = work.post(f"/add?kind=visit&profile={work.profile}", name="Right", profile=work.profile)
    ident = re.search(r'id="visit-(\d+)"', made)[1]
    form = soup(work.web.get(f"/edit?kind=visit&id={ident}").text).form
    typed = {field["name"]: field.get("value") or (field.find("option", selected=True) or {}).get("value", "")
             for field in form.select("[name]")} | {"name": "Changed", column: value}
    reply = work.web.post(form["hx-post"], data=typed)
    assert reply.status_code == 422
    again = soup(reply.text)
    [error] = again.select(".error")
    field = again.select_one(f"[name={column}]")
    assert error.get_text() == sentence and error.parent == field.parent
    assert (field["aria-describedby"], field["aria-invalid"]) == (error["id"], "true")
    assert again.select_one("[name=name]")["value"] == "Changed"
    if field.name == "input":
        assert field["value"] == value
    assert grown.sql("select name from visit where id = ?", ident)[0][0] == "Right"


def test_a_wrong_value_in_the_page(grown, work, window):
    window.allow_errors = "422|ResponseError"
    work.post(f"/add?kind=visit&profile={work.profile}", name="Dear", profile=work.profile)
    page = window.open(grown.url + work.path)
    visits = part(page, "Visits")
    visits.locator(".title").dblclick(position={"x": 5, "y": 5})          # on its name, not on its small print
    expect(visits.get_by_label("New name of Dear")).to_be_focused()
    assert [each.evaluate("it => it.type || it.localName") for each in visits.locator(".editing [name]").all()] == [
        "text", "date", "datetime-local", "text", "select-one", "select-one", "text"]
    visits.get_by_label("Price").fill("much")
    visits.get_by_role("button", name="Save").click()
    expect(visits.locator(".editing .error")).to_have_text("Type a number.")
    expect(visits.get_by_label("Price")).to_be_focused()                  # it may be out of sight
    expect(visits.get_by_label("Price")).to_have_value("much")
    visits.get_by_label("Price").fill("12.50")
    visits.get_by_label("Mood").select_option("busy")
    visits.get_by_label("Day").fill("2026-02-28")
    visits.get_by_role("button", name="Save").click()
    expect(visits.locator("li .title")).to_have_text(re.compile("^Dear28 Feb( 2026)? · 12.50 · crawl · busy · 1$"))


def test_the_model_from_a_job(grown, work, model, window):
    """As text, and streamed; one at a time with the chat's own answer."""
    page = window.open(grown.url + work.path)
    before = len(model.chats)
    model.script(Script(text="An answer", gate=True), Script(text="Crawl *budget*"),
                 Script(text="It is\n\nabout **search**", gate=True))
    ask(page, "Hi")
    model.wait_chat(before + 1)
    form, job = open_job(page, "review"), page.locator("[data-role=job]")
    form.get_by_label("Text").fill("A long text")
    page.get_by_role("button", name="Run Review").click()
    expect(job.locator(".note")).to_have_text("In line: the answer above is before it")
    assert len(model.chats) == before + 1
    model.release()
    model.wait_chat(before + 3)
    expect(job.get_by_role("heading", name="Crawl *budget*")).to_be_visible()
    expect(job).to_have_attribute("data-status", "streaming")
    model.release()
    expect(job).to_have_attribute("data-status", "done")
    expect(job.locator("strong")).to_have_text("search")
    expect(page.locator("[data-role=assistant]")).to_have_attribute("data-status", "done")
    headline, about = model.chats[before + 1:before + 3]
    for asked in headline, about:
        assert [m["role"] for m in asked["messages"]] == ["system", "user"] and not asked.get("tools")
        assert asked["messages"][1]["content"].endswith("\n\nA long text")


# ---- The names

def test_star_import_gives_the_api_and_nothing_else(app):
    server = app(start=False, name="mytool.py")
    shutil.copy(ROOT / "server.py", server.dir)
    server.file.write_text("from server import *\nimport json\nprint(json.dumps([n for n in globals() if n[:2] != '__']))\n")
    said = run(server)
    assert said.status == 0, said.err
    assert sorted({*json.loads(said.out)} - {"json"}) == sorted(api())
    assert len(api()) == len({*api()})


def globals_used(text):
    """The global names that a text reads, and those that it binds."""
    top = symtable.symtable(text, "server.py", "exec")
    read, bound, tables = set(), {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}, [top]
    while tables:
        inner = tables.pop()
        tables += inner.get_children()
        read |= {s.get_name() for s in inner.get_symbols() if s.is_referenced() and (inner is top or s.is_global())}
    return read, bound


def test_the_app_half_uses_the_api_and_nothing_else():
    """Of the engine; what it imports it imports itself."""
    used, own = globals_used(APP.split("\n", 1)[1])
    _, engine = globals_used(ENGINE)
    given = {*api(), *vars(fasthtml.common), *vars(builtins), "__all__", "__name__", "__file__"}
    assert "todos" in own and "Listing" in engine & used
    assert used - own - given == set()


def test_the_app_half_is_short():
    assert len(APP.splitlines()) < 700


def test_the_fork_that_is_shown_is_short():
    lines = [line for line in block("from server import *").splitlines() if line.strip()]
    assert len(lines) <= 40 and forked().endswith(START)
    assert all(len(line) <= 110 for code in BLOCKS if "import *" in code for line in code.splitlines())


# ---- A copy, and a newer server.py

def sh(folder, command):
    return subprocess.run(["bash", "-uc", command], cwd=folder, capture_output=True, text=True, timeout=20)


def test_a_newer_server_py_comes_into_a_copy(app, fake):
    """Both changes are there; the next one comes in, too, and what both changed is marked."""
    server = app({"OLLAMA_HOST": fake.url}, start=False)
    folder, engine, copy = server.dir, server.file, server.dir / "mytool.py"
    assert sh(folder, block("mytool.base\n.venv").splitlines()[0]).returncode == 0
    copy.write_text(pasted(links_and_job(), source=replaced("ACCENT = 'rose'", copy.read_text())))
    hint, more = "What needs to be done?", "Type what needs to be done"
    for old, new in (hint, "What is next?"), (more, "Type what is next"):
        engine.write_text(engine.read_text().replace(old, new))
        merged = sh(folder, block("git merge-file"))
        assert (merged.returncode, merged.stderr) == (0, "")
    text = copy.read_text()
    assert "<<<<<<<" not in text and "What is next?" in text and "Type what is next" in text and links_and_job() in text
    server.file = copy
    page = httpx.get(server.start().url, trust_env=False).text
    assert "What is next?" in page and "What is worth keeping?" in page and 'data-accent="rose"' in page
    engine.write_text(replaced("ACCENT = 'indigo'", engine.read_text()))
    sh(folder, block("git merge-file"))
    assert "<<<<<<< mytool.py\n" in copy.read_text()


def test_the_version_that_was_copied_is_in_git(app):
    server = app(start=False)
    made = "git init -q . && git add server.py && git -c user.name=x -c user.email=x@x commit -qm x"
    assert sh(server.dir, f"{made} && cp server.py mytool.py").returncode == 0
    server.file.write_text(replaced("NAME = 'Newer'"))
    kept = re.search(r"`(git show COMMIT:server.py >mytool.base)`", (ROOT / "README.md").read_text())[1]
    assert sh(server.dir, f"{kept.replace('COMMIT', 'HEAD')} && {block('git merge-file')}").returncode == 0
    assert (server.dir / "mytool.py").read_text() == server.file.read_text()


def test_no_name_is_given_twice():
    """Of two functions with one name the second would take the place of the first, without a word."""
    names = [node.name for node in ast.parse(SOURCE).body
             if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert not [name for name, times in Counter(names).items() if times > 1]


BRITTLE = """
class Vase:
    "A thing whose rows cannot be drawn."
    id: int
    name: str = ''
    profile: int = 0
    priority: float = 0.
    deleted: float = 0.

class Vases(Listing):
    def details(self, vase):
        return vase.nothing

vases = Vases(table(Vase))
SIDE.append(vases.section('Vases', 'Which one?'))
"""


def test_a_row_that_cannot_be_drawn_shows_its_text_and_can_be_deleted(app):
    """One broken row takes nothing else down."""
    server = app(start=False)
    server.file.write_text(pasted(BRITTLE))
    with httpx.Client(base_url=server.start().url, trust_env=False) as web:
        assert "Ming" in web.post("/add?kind=vase", data={"name": "Ming"}).raise_for_status().text
        html = web.get("/").raise_for_status().text
        assert "Delete Ming" in html and "nothing" in server.out()
        web.post("/delete?kind=vase&id=1").raise_for_status()
        assert "Delete Ming" not in web.get("/").text


def test_the_engine_imports_neither_pandas_nor_numpy(app):
    """They are installed here, and fastlite would take them along."""
    server = app(start=False)
    asks = ("import sys, importlib.util, server\nfor name in 'pandas', 'numpy':\n"
            "    print(name in sys.modules, bool(importlib.util.find_spec(name)))")
    done = subprocess.run([sys.executable, "-c", asks], cwd=server.dir, env=server.env, timeout=30,
                          capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"] * 2, done.stderr
