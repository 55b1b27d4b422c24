"""Forks by copy, made of the README's own lines: settings, a field, jobs, parts taken out, copies beside each other.

Forks by import, and what a table of one's own does in both kinds, are tried in test_imports.py.
"""
import json
import random
import re
import shutil
import stat
import subprocess
from pathlib import Path

import httpx
import pytest
from conftest import Server, ask, open_job, wait_done
from fake_ollama import FakeOllama, Script
from playwright.sync_api import expect
from readme import BANNERS, SOURCE, block, links_and_job, names, pasted, replaced, rows, with_lines_in_classes
from test_start import free

pytest_plugins = "chatting"
COLOUR = "() => getComputedStyle(document.documentElement).getPropertyValue('--accent')"
SHOWN = """accent => { document.documentElement.dataset.accent = accent
    return getComputedStyle(document.getElementById('send-btn')).backgroundColor }"""
OUT = rows("take out | delete")


@pytest.fixture
def fork(app, fake):
    """Starts an app whose server.py is this text."""
    def fork(source, start=True, **more):
        server = app({"OLLAMA_HOST": fake.url}, start=False)
        server.file.write_text(source)
        server.env |= more
        return server.start() if start else server
    return fork


def post(server, path, **data):
    return httpx.post(f"{server.url}/{path}", data=data, trust_env=False, timeout=10).raise_for_status().text


def part(page, name):
    return page.get_by_role("region", name=name, exact=True)


def on_row(page, kind, ident, button):
    """A button of a list's row, which shows while the mouse is over it."""
    row = page.locator(f"#{kind}-{ident}")
    row.hover()
    row.get_by_role("button", name=re.compile(f"^{button} ")).click()


# ---- Settings

def test_settings(fork, fake, window):
    lines = block("VOICE = ")
    name, voice, accent = re.findall(r"= '(.*)'", lines)
    page, plain = window.open(fork(replaced(lines)).url), window.open(fork(SOURCE).url)
    assert page.title() == name
    expect(page.get_by_role("banner").get_by_role("heading")).to_have_text(name)
    ask(page, "Hi")
    wait_done(page)
    assert fake.chats[-1]["messages"][0]["role"] == "system"
    assert fake.chats[-1]["messages"][0]["content"].startswith(voice)
    assert page.locator("html").get_attribute("data-accent") == accent
    assert page.evaluate(COLOUR) not in ("", plain.evaluate(COLOUR))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_accent_shows_in_both_themes(fork, window, theme):
    page = window.open(fork(SOURCE).url)
    page.emulate_media(color_scheme=theme)
    css = Path(__file__).parents[1].joinpath("static/app.css").read_text()
    accents = ["teal", *re.findall(r"data-accent=(\w+)", css)]
    shown = [page.evaluate(SHOWN, accent) for accent in accents]
    page.emulate_media(color_scheme="light")
    assert len(accents) == len({*shown}) > 2, shown


@pytest.mark.parametrize("name", ["Prüfstand", "工具箱", "It's <b>; 50 % & \\\"more\\\""], ids=["umlaut", "Chinese", "signs"])
def test_any_name_will_do(fork, window, name):
    """It goes into cookies and headers, where few characters may be."""
    source = replaced(f'NAME = "{name}"')
    name = name.replace("\\", "")
    server = fork(source, TOKEN="secret")
    page = window.open(f"{server.url}/?token=secret")
    assert page.title() == name
    with page.expect_response("**/switch_theme"):
        page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.goto(server.url)
    open_job(page, "audit_pages").get_by_label("Urls").fill("http://127.0.0.1:9/")
    page.get_by_role("button", name="Run Audit pages").click()
    page.get_by_role("button", name="Fetch from 127.0.0.1").click()
    expect(page.locator("[data-role=job] td").nth(1)).to_contain_text("onnect")


# ---- A field

def with_due_dates():
    """The app with the README's two lines, and the method of its `Tasks` that makes them red."""
    lines = block("class Todo:")
    details = re.search(r"(?ms)^    def details.*?(?=^\S)", block("class Task:"))[0].rstrip()
    return with_lines_in_classes(f"{lines}\n{details}\n")


def test_a_new_field(fork, window):
    """It is in the edit form; what was stored before is there, and can have it too."""
    server = fork(SOURCE)
    for title in "Milk", "Bread":
        post(server, "todo", title=title)
    server.stop()
    server.file.write_text(with_due_dates())
    server.start()
    page, other = window.open(server.url), window.open(server.url)
    todos = part(page, "Todo")
    expect(todos.get_by_role("listitem")).to_have_text([re.compile("Milk"), re.compile("Bread")])
    on_row(page, "todo", 1, "Rename")
    due = todos.get_by_label("Due")
    expect(due).to_have_attribute("type", "date")
    due.fill("2020-01-31")
    todos.get_by_role("button", name="Save").click()
    expect(page.locator("#todo-1 .title .overdue")).to_have_text("2020-01-31")
    part(other, "Todo").get_by_role("checkbox", name="Milk").check()
    expect(todos.get_by_role("checkbox", name="Milk")).to_be_checked()
    on_row(page, "todo", 1, "Rename")
    expect(due).to_have_value("2020-01-31")
    todos.get_by_label("New name of Milk").fill("Oat milk")
    due.fill("2999-12-31")
    due.press("Enter")
    expect(other.locator("#todo-1 .title")).to_have_text("Oat milk2999-12-31")
    expect(page.locator("#todo-1 .title")).to_have_text("Oat milk2999-12-31")
    expect(page.locator(".overdue")).to_have_count(0)
    stored = [tuple(row) for row in server.sql("select title, due, done from todo order by id")]
    assert stored == [("Oat milk", "2999-12-31", 1), ("Bread", None, 0)]


def test_a_field_of_text_is_searched(fork, window):
    server = fork(with_lines_in_classes(block("class Todo:").replace("due: date = None", "due: str = ''")))
    post(server, "todo", title="Milk")
    post(server, "rename?kind=todo&id=1&whole=1", title="Milk", due="tomorrow")
    page = window.open(server.url)
    expect(page.locator("#todo-1 .title")).to_have_text("Milktomorrow")
    page.locator("#search").press_sequentially("tomor")
    expect(page.locator("#search-results a")).to_have_count(1)
    expect(page.locator("#search-results a")).to_contain_text("Milk tomorrow")


def test_a_field_of_another_type_is_checked(fork, window):
    """What does not fit is said beside it, and neither stored nor lost; what fits is."""
    lines = block("class Todo:").replace("due: date = None", "price: float = 0.").replace("due", "price")
    server = fork(with_lines_in_classes(lines))
    post(server, "todo", title="Milk")
    page = window.open(server.url)
    window.allow_errors = "422|ResponseError"
    todos = part(page, "Todo")
    on_row(page, "todo", 1, "Rename")
    price = todos.get_by_label("Price")
    price.fill("much")
    todos.get_by_role("button", name="Save").click()
    expect(todos.locator("label", has=page.locator("[name=price]")).locator(".error")).to_have_text("Type a number.")
    expect(price).to_have_value("much")
    assert server.sql("select price from todo")[0][0] == 0
    price.fill("1.5")
    todos.get_by_role("button", name="Save").click()
    expect(page.locator("#todo-1 .title")).to_have_text("Milk1.5")
    assert server.sql("select price from todo")[0][0] == 1.5


# ---- Jobs

def test_jobs(fork, fake, window):
    """In one fork: a picture, a secret, and the job beside a list."""
    code = "\n".join([links_and_job(), block("def draw_a_bar"), block("def who_am_i")])
    server = fork(pasted(code))
    page, window.allow_errors = window.open(server.url), "422"
    jobs, last = part(page, "Jobs"), page.locator("[data-role=job]").last

    def form(name):
        return jobs.locator(f"#job-{name}")

    expect(form("count_words")).to_contain_text("The words that a text uses most.")
    open_job(page, "count_words")
    expect(form("count_words").get_by_label("Most")).to_have_value("5")
    form("count_words").get_by_label("Text").fill("word word word once\nmore more")
    form("count_words").get_by_label("Most").fill("none")
    jobs.get_by_role("button", name="Run Count words").click()
    expect(form("count_words").locator(".error")).to_have_count(1)
    form("count_words").get_by_label("Most").fill("2")
    jobs.get_by_role("button", name="Run Count words").click()
    expect(last).to_have_attribute("data-status", "done")
    expect(last.locator("td")).to_have_text(["word", "3", "more", "2"])
    expect(last.locator(".content p").last).to_have_text("3 different words")

    open_job(page, "draw_a_bar").get_by_label("Height").fill("70")
    jobs.get_by_role("button", name="Run Draw a bar").click()
    picture = last.get_by_role("img")
    expect(picture).to_be_visible()
    page.wait_for_function("img => img.complete && img.naturalWidth > 0", arg=picture.element_handle())
    assert picture.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [60, 100]
    assert not page.evaluate("window.__csp")

    secret, kept = "hunter2-and-more", server.dir / "data/server.secrets.json"
    field = open_job(page, "who_am_i").get_by_label("Api token", exact=True)
    expect(field).to_have_attribute("type", "password")
    said = f"The token has {len(secret)} characters."
    for again in False, True, True:
        if not again:
            field.fill(secret)
        jobs.get_by_role("button", name="Run Who am I").click()
        expect(last.locator(".content")).to_have_text(said)
        expect(form("who_am_i").get_by_text("kept on this machine")).to_be_visible()
        expect(field).to_have_count(0)
        page.reload()
        open_job(page, "who_am_i")
    assert len(server.sql("select * from message where trim(content, char(10)) = ?", said)) == 3
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and secret in kept.read_text()
    ask(page, "What is the token?")
    wait_done(page)
    told = page.content() + server.out() + json.dumps([request.body for request in fake.requests], default=str)
    assert secret not in told + "".join(str(tuple(row)) for row in server.sql("select * from message"))
    assert "api_token" not in told.split('"tools"')[-1].split("who_am_i")[-1].split("}")[0]
    form("who_am_i").get_by_role("button", name="Forget Api token").click()
    expect(field).to_have_value("")
    assert secret not in kept.read_text()
    jobs.get_by_role("button", name="Run Who am I").click()
    expect(form("who_am_i").locator(".error")).to_have_count(1)


# ---- Parts taken out

@pytest.fixture(scope="module")
def used():
    """The data of the whole app, used a little."""
    with FakeOllama() as fake:
        server = Server({"OLLAMA_HOST": fake.url}, name="mytool.py").start()
        post(server, "todo", title="Olives")
        post(server, "profile", name="Ada")
        post(server, "chatq", text="Known for long")
        server.stop()
        yield server.dir / "data"
        server.remove()


@pytest.mark.parametrize("gone", [*([row] for row in OUT), OUT], ids=[*(row[0] for row in OUT), "all"])
def test_parts_taken_out(app, fake, window, used, gone):
    """With the README's `cut`, over data of the whole app: what is left runs."""
    cuts = [names(told)[0] for _, told in gone]
    parts = {each.removeprefix("cut ") for each in cuts}
    server = app({"OLLAMA_HOST": fake.url}, start=False, name="mytool.py")
    shutil.copytree(used, server.db.parent)
    cut = block("cut()").splitlines()[0]
    script = "\n".join([cut, *cuts])
    subprocess.run(["bash", "-euc", script], cwd=server.dir, check=True)
    left = set(re.findall(r"(?m)^# ---- \d+\. (\w+)", server.file.read_text()))
    assert left == {re.match(r"\w+", title)[0] for _, title in BANNERS} - parts
    page = window.open(server.start().url)

    fake.script(Script(text="All is **well**"))
    ask(page, "How is it?")
    expect(wait_done(page).locator("strong")).to_have_text("well")
    tools = {tool["function"]["name"] for tool in fake.chats[-1].get("tools") or ()}
    assert {"add_todo" in tools, "list_todos" in tools} == {"Todos" in left}
    assert ("audit_pages" in tools, "summarise_my_todos" in tools) == ("Audit" in left, "Todos" in left)

    assert part(page, "Todo").count() == ("Todos" in left)
    added = httpx.post(f"{server.url}/todo", data={"title": "Bread"}, trust_env=False)
    assert added.status_code == (200 if "Todos" in left else 404)
    if "Todos" in left:
        expect(page.locator("#todo-list .title")).to_have_text(["Olives", "Bread"])
        page.get_by_role("checkbox", name="Olives").check()
        expect(page.locator("#todo-count")).to_have_text("1 item left")
        on_row(page, "todo", 1, "Delete")
        page.locator("#toast").get_by_role("button", name="Undo").click()
        expect(page.locator("#todo-list .title")).to_have_text(["Olives", "Bread"])
        page.get_by_role("button", name="Clear completed").click()
        expect(page.locator("#todo-list .title")).to_have_text(["Bread"])

    expect(page.locator("#profile-menu, #profile-list")).to_have_count(2 * ("Profiles" in left))
    if "Profiles" in left:
        page.locator("#profile-name").click()
        page.get_by_text("Edit profiles").click()
        page.get_by_label("New profile").fill("Bob")
        page.get_by_label("New profile").press("Enter")
        expect(page.locator("#profile-menu a")).to_have_text(["Default", "Ada", "Bob"])
        on_row(page, "profile", 2, "Delete")
        expect(page.locator("#profile-menu a")).to_have_text(["Default", "Bob"])
        page.keyboard.press("Escape")

    assert part(page, "Jobs").count() == bool({"Todos", "Audit"} & left)
    assert page.locator("#job-summarise_my_todos").count() == ("Todos" in left)
    if "Audit" in left:
        open_job(page, "audit_pages").get_by_label("Urls").fill("ftp://nowhere")
        page.get_by_role("button", name="Run Audit pages").click()
        expect(page.locator("[data-role=job] td").nth(1)).to_have_text("only http and https")

    post(server, "chatq", text="Said by a script")
    expect(page.locator("#msg-list")).to_contain_text("Said by a script")
    page.locator("#search").press_sequentially("known")
    expect(page.locator("#search-results a")).to_contain_text(["Known for long"])
    page.reload()
    expect(page.locator("#msg-list")).to_contain_text("Known for long")
    assert len(server.out().splitlines()) == 1


# ---- Copies

def test_copies_side_by_side(app, fake, open_page):
    """A copied file and a copied folder, all running, in one browser: cookies don't know of ports."""
    base = next(n for n in iter(lambda: random.randrange(20000, 32000), None) if all(map(free, range(n, n + 10))))
    env = {"OLLAMA_HOST": fake.url, "PORT": None}
    first = app(env, start=False)
    first.file.write_text(replaced(f"PORTS = range({base}, {base + 10})"))      # 5001 and on may be in use here
    post(first.start(), "profile", name="Ada")
    folder = shutil.copytree(first.dir, first.top / "Größe 2", symlinks=True)
    copy, start = block("cp server.py mytool.py").splitlines()
    subprocess.run(["bash", "-euc", copy], cwd=first.dir, check=True)
    second = app(env, name=start.split()[-1], folder=first.dir)
    third = app(env, folder=folder)
    apps = first, second, third
    assert [server.port for server in apps] == [base, base + 1, base + 2]
    for server, name in zip(apps, ("chatq", "mytool", "Größe 2"), strict=True):
        line = server.out().splitlines()[-1]
        assert line.startswith(f"{name}: http://localhost:{server.port}/ ") and str(server.db) in line
        post(server, "todo", title=f"Of {name}")
    post(second, "profile", name="Bob")
    assert len({server.db for server in apps}) == 3

    page = open_page()
    tabs = [page, page.context.new_page(), page.context.new_page()]
    urls = [server.url.replace("127.0.0.1", "localhost") for server in apps]
    for tab, url in zip(tabs, urls, strict=True):
        tab.goto(url)
    assert [tab.title() for tab in tabs] == ["chatq", "mytool", "Größe 2"]
    for tab, url, clicks, profile in zip(tabs, urls, (1, 2, 0), (2, 1, 2), strict=True):
        tab.bring_to_front()
        for n in range(clicks):
            with tab.expect_response("**/switch_theme"):
                tab.get_by_role("button", name="Light or dark").click()
            expect(tab.locator("html")).to_have_attribute("data-theme", ("dark", "light")[n])
        tab.goto(f"{url}/profile/{profile}")
    for tab, url in zip(tabs, urls, strict=True):
        tab.goto(url)
    assert [tab.locator("#profile-name").text_content() for tab in tabs] == ["Ada", "Default", "Ada"]
    assert [tab.locator("html").get_attribute("data-theme") for tab in tabs] == ["dark", "light", None]
    expect(tabs[1].locator("#todo-list .title")).to_have_text(["Of mytool"])
    titles = [[row["title"] for row in server.sql("select title from todo")] for server in apps]
    assert titles == [["Of chatq"], ["Of mytool"], ["Of Größe 2"]]
    ask(tabs[1], "Hi")
    wait_done(tabs[1])
    assert [len(server.sql("select * from message where role = 'assistant'")) for server in apps] == [0, 1, 0]
