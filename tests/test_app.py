"""Todos and profiles, the lines they leave in the chat, search, and what a kill -9 leaves: over HTTP.

One server for all of them: each test works in a profile of its own.
"""
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import Server, until
from fake_ollama import FakeOllama, Script
from wire import ANSWERS, EVENTS, PROMPTS, Chat, everything, press, soup

TRICKY = "<b>1</b> & *2* _3_ `4` [5](http://x.example) &amp; ~~6~~ | 7\\ \"8\" '9' 日本 🦜 http://x.example/"
LOCAL = {"trust_env": False, "verify": False}         # reading the certificates costs more than a request
names = (f"Person {n}" for n in itertools.count(1))


@pytest.fixture(scope="module")
def fake():
    with FakeOllama() as fake:
        yield fake


@pytest.fixture(scope="module")
def server(fake):
    server = Server({"OLLAMA_HOST": fake.url}).start()
    yield server
    server.remove()


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, **LOCAL) as client:
        yield client


@pytest.fixture(autouse=True)
def report(server):
    """What the shared server printed belongs to the report of every test."""
    Server.known.append(server)


def add_profile(client, name=None):
    html = client.post("/profile", data={"name": name or next(names)}).text
    return int(re.search(r'id="profile-(\d+)"', html)[1])


@pytest.fixture
def profile(client):
    return add_profile(client)


def add(client, title, profile):
    """A new todo's id."""
    answer = client.post("/todo", data={"title": title, "profile": profile})
    assert answer.status_code == 200, answer.text
    return int(soup(answer.text).li["id"].removeprefix("todo-"))


def page(client, profile):
    return client.get(f"/profile/{profile}").text


def titles(html):
    return [li.select_one(".title").get_text() for li in soup(html, "body").select("#todo-list > li")]


def events(client, profile):
    """The visible event messages, each as the text of its content."""
    return [e.get_text() for e in soup(page(client, profile), "main").select("#msg-list > [id^=msg-][data-role=event] .content")]


# ---- the page

@pytest.fixture(scope="module")
def first_page(server):
    return soup(httpx.get(server.url, **LOCAL).text)


@pytest.mark.parametrize("what", [
    "html[lang]", "title", "meta[name=viewport]", "#profile-menu a", "#profile-list li", "#todo-list", "input[name=title]",
    "input#search[type=search][name=q]", "#search-results", "#msg-list[role=log]", "#msg[name=msg]", "#send-btn", "#stop-btn",
    "select#model"])
def test_the_page_has_its_parts(first_page, what):
    assert len(first_page.select(what)) == 1


def test_the_page_can_be_read_without_a_script(client, profile):
    add(client, "Read me", profile)
    html = page(client, profile)
    assert titles(html) == ["Read me"]
    assert "Read me" in soup(html).select_one("#msg-list").get_text()


def test_the_title_is_the_name_of_the_app(first_page, server):
    assert first_page.title.get_text() == server.dir.name


@pytest.mark.parametrize("label", ["Add", "Add profile", "Send", "Stop"])
def test_a_button_is_called(first_page, label):
    """By its text or its label, once on the page: so people and their screen readers find it."""
    for key in first_page.select("[aria-hidden=true]"):
        key.extract()
    found = [b for b in first_page.find_all("button") if label in (b.get("aria-label"), b.get_text(strip=True))]
    assert len(found) == 1


def test_static_files_are_packed_for_whom_it_suits(client, server):
    path = re.search(r"/static/app\.js\?v=\d+", client.get("/").text)[0]
    packed = client.get(path, headers={"Accept-Encoding": "gzip"})
    plain = client.get(path, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.content == plain.content == (server.dir / "static/app.js").read_bytes()
    assert packed.headers["content-type"] == plain.headers["content-type"]


# ---- todos

@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}], ids=["a script", "htmx"])
@pytest.mark.parametrize("action", ["add", "toggle", "rename", "delete", "add profile", "rename profile", "delete profile"])
def test_a_change_answers_a_partial(client, action, headers):
    """Whoever asks: the piece of the list that changed, and never a page."""
    name = next(names)
    profile = add_profile(client, name)
    todo = add(client, "Milk", profile)
    client.headers.update(headers)
    if action == "delete profile":
        press(client, page(client, profile), "Delete Milk")
        name = next(names)
        profile = add_profile(client, name)
    html = page(client, profile)
    answer = {"add": lambda: client.post("/todo", data={"title": "Eggs", "profile": profile}),
              "toggle": lambda: client.post(f"/toggle/{todo}"),
              "rename": lambda: press(client, html, "Rename Milk", "Oat milk"),
              "delete": lambda: press(client, html, "Delete Milk"),
              "add profile": lambda: client.post("/profile", data={"name": "One more"}),
              "rename profile": lambda: press(client, html, f"Rename {name}", f"{name} II"),
              "delete profile": lambda: press(client, html, f"Delete {name}")}[action]()
    assert answer.is_success
    assert not re.search("<!doctype|<html|<head|<title|<body", answer.text, re.IGNORECASE)
    expected = {"add": "todo-", "toggle": "todo-", "rename": "todo-", "add profile": "profile-",
                "rename profile": "profile-"}.get(action)
    assert not expected or soup(answer.text).find("li", id=re.compile(f"^{expected}\\d+$"))


def test_todos_stand_in_the_order_in_which_they_came(client, profile):
    for title in "Milk", "Eggs", "Bread":
        add(client, title, profile)
    assert titles(page(client, profile)) == ["Milk", "Eggs", "Bread"]


@pytest.mark.parametrize("given", ["field", "cookie", "nothing", "field against cookie"])
def test_a_todo_goes_to_the_profile(client, given):
    """By field, else by cookie, else the first."""
    mine, other = add_profile(client), add_profile(client)
    client.cookies.clear()
    if "cookie" in given:
        page(client, mine if given == "cookie" else other)
    field = {"profile": mine} if "field" in given else {}
    title = f"By {given}"
    assert client.post("/todo", data={"title": title} | field).status_code == 200
    assert title in titles(page(client, 1 if given == "nothing" else mine))


def test_a_todo_belongs_to_its_profile_alone(client, profile):
    add(client, "Mine", profile)
    assert "Mine" not in page(client, add_profile(client))


def test_a_todo_is_done_and_open_again(client, profile):
    todo = add(client, "Milk", profile)
    for done in True, False:
        li = soup(client.post(f"/toggle/{todo}").text).li
        stored = soup(page(client, profile)).select_one(f"#todo-{todo}")
        for item in li, stored:
            assert item["id"] == f"todo-{todo}"
            assert ("done" in item.get("class", [])) is done
            assert item.select_one("input[type=checkbox]").has_attr("checked") is done


def test_a_todo_is_renamed(client, profile):
    add(client, "Milk", profile)
    answer = press(client, page(client, profile), "Rename Milk", "  Oat milk ")
    assert soup(answer.text).select_one(".title").get_text() == "Oat milk"
    assert titles(page(client, profile)) == ["Oat milk"]


def test_renaming_keeps_a_todo_done(client, profile):
    todo = add(client, "Milk", profile)
    client.post(f"/toggle/{todo}")
    press(client, page(client, profile), "Rename Milk", "Eggs")
    assert soup(page(client, profile)).select_one(f"#todo-{todo}.done")


def test_a_todo_renamed_to_nothing_is_deleted(client, profile):
    """As TodoMVC has it."""
    add(client, "Milk", profile)
    press(client, page(client, profile), "Rename Milk", "  ")
    assert titles(page(client, profile)) == []


def test_a_todo_is_deleted(client, profile):
    todo = add(client, "Milk", profile)
    add(client, "Eggs", profile)
    answer = press(client, page(client, profile), "Delete Milk")
    assert answer.is_success
    assert not soup(answer.text).select(f"#todo-{todo} .title")
    assert titles(page(client, profile)) == ["Eggs"]
    assert client.post(f"/toggle/{todo}").status_code == 404


@pytest.mark.parametrize("title", [TRICKY, "x" * 500, "🦜" * 500, "-", "#1", "0", "\u202eback\u202c", "a\u2028b"])
def test_a_title_is_text(client, profile, title):
    """In the list, in the label of its buttons and in the chat it reads as it was typed."""
    add(client, title, profile)
    html = page(client, profile)
    assert titles(html) == [title]
    assert f"Delete {title}" in [b.get("aria-label") for b in soup(html).find_all("button")]
    assert title in events(client, profile)[-1]


def test_a_title_is_one_line(client, profile):
    """Several pasted lines are several todos, or one: no title has a break in it."""
    client.post("/todo", data={"title": " two\r\nlines\t", "profile": profile})
    assert " ".join(titles(page(client, profile))) == "two lines"
    assert not [title for title in titles(page(client, profile)) if "\n" in title]


def test_many_at_once(client, server, profile):
    """A person's tabs and scripts don't wait for each other: nothing is lost, nothing fails."""
    wanted = {f"Todo {n}" for n in range(40)}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda t: httpx.post(f"{server.url}/todo", data={"title": t, "profile": profile}, **LOCAL),
                                wanted))
    assert {a.status_code for a in answers} == {200}
    assert set(titles(page(client, profile))) == wanted
    told = " ".join(row["content"] for row in server.sql(EVENTS, profile))
    assert all(re.search(rf"\b{t}\b", told) for t in wanted)


# ---- profiles

def test_a_profile_is_a_page_of_its_own(client):
    one, two = add_profile(client, "Anna"), add_profile(client, "Ben")
    add(client, "For Anna", one)
    add(client, "For Ben", two)
    html = page(client, two)
    assert titles(html) == ["For Ben"]
    assert "For Anna" not in soup(html).select_one("main").get_text()
    assert [a.get_text() for a in soup(html).select("#profile-menu [aria-current]")] == ["Ben"]
    assert {f"/profile/{one}", f"/profile/{two}"} <= {a["href"] for a in soup(html).select("#profile-menu a")}


def test_a_cookie_remembers_the_profile(client, server, profile):
    add(client, "Remember me", profile)
    page(client, profile)
    assert titles(client.get("/").text) == ["Remember me"]
    stranger = httpx.get(server.url, **LOCAL).text
    assert "Remember me" not in stranger


def test_the_cookie_is_for_the_server_alone(client):
    client.get("/")
    cookies = client.get("/profile/1").headers.get_list("set-cookie")
    for cookie in [*cookies, client.get("/").headers.get("set-cookie", "")]:
        assert "httponly" in cookie.lower()
        assert re.search("samesite=(lax|strict)", cookie.lower())


def test_a_profile_is_renamed(client):
    name = next(names)
    profile = add_profile(client, name)
    answer = press(client, page(client, profile), f"Rename {name}", "Someone else")
    assert soup(answer.text).li["id"] == f"profile-{profile}"
    assert "Someone else" in soup(page(client, profile)).select_one("#profile-menu [aria-current]").get_text()


def test_a_profile_keeps_its_name(client):
    """A name of white space is no name: a hint, and nothing changed."""
    name = next(names)
    profile = add_profile(client, name)
    answer = press(client, page(client, profile), f"Rename {name}", " \t ")
    assert 400 <= answer.status_code < 500
    assert answer.text.strip()
    assert name in soup(page(client, profile)).select_one("#profile-menu").get_text()


def test_an_empty_profile_is_deleted(client):
    name = next(names)
    profile = add_profile(client, name)
    assert press(client, page(client, profile), f"Delete {name}").is_success
    assert client.get(f"/profile/{profile}").status_code == 404
    assert client.get("/").status_code == 200, "the cookie still names the deleted one"
    assert name not in client.get("/").text


def test_the_last_profile_stays(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url})
    with httpx.Client(base_url=server.url, **LOCAL) as client:
        answer = press(client, client.get("/").text, "Delete Default")
        assert 400 <= answer.status_code < 500
        assert client.get("/").status_code == 200
    assert [p["name"] for p in server.sql("select name from profile")] == ["Default"]


@pytest.mark.parametrize("name", [TRICKY, "x" * 500])
def test_a_name_is_text(client, name):
    profile = add_profile(client, name)
    html = page(client, profile)
    assert soup(html).select_one("#profile-menu [aria-current]").get_text() == name
    assert soup(html).select_one(f"#profile-{profile} .title").get_text() == name


# ---- events

@pytest.mark.parametrize("action", ["adding", "finishing", "deleting"])
def test_a_change_leaves_one_line_in_the_chat(client, server, profile, action):
    todo = add(client, "Milk", profile)
    with Chat(server, f"?profile={profile}") as chat:       # what was before is above the line
        chat.ask("Hi", profile)
    before = len(events(client, profile))
    {"adding": lambda: add(client, "Milk", profile), "finishing": lambda: client.post(f"/toggle/{todo}"),
     "deleting": lambda: press(client, page(client, profile), "Delete Milk")}[action]()
    assert len(events(client, profile)) == before + 1
    assert "Milk" in events(client, profile)[-1]
    row = server.sql(EVENTS, profile)[-1]
    assert (row["status"], row["profile"]) == ("done", profile)
    assert "Milk" in row["content"]


def test_events_in_a_row_fold_into_one(client, server, profile):
    for title in "Milk", "Eggs":
        todo = add(client, title, profile)
    client.post(f"/toggle/{todo}")
    (shown,) = events(client, profile)
    assert all(title in shown for title in ("Milk", "Eggs"))
    stored = "\n".join(row["content"] for row in server.sql(EVENTS, profile))
    assert stored.index("Milk") < stored.index("Eggs") < stored.rindex("Eggs")
    assert len(stored.split("\n")) == 3


def test_a_prompt_ends_the_fold(client, server, profile):
    add(client, "Milk", profile)
    with Chat(server, f"?profile={profile}") as chat:
        chat.ask("Hi", profile)
    add(client, "Eggs", profile)
    first, second = events(client, profile)
    assert "Milk" in first
    assert "Eggs" in second
    assert "Milk" not in second


def test_events_are_of_one_profile(client, profile):
    other = add_profile(client)
    add(client, "Milk", profile)
    add(client, "Eggs", other)
    add(client, "Bread", profile)
    assert len(events(client, profile)) == 1
    assert "Eggs" not in events(client, profile)[0]
    assert "Bread" not in events(client, other)[0]


def test_an_event_is_well_formed(client, profile):
    """Its content is whole elements, whatever is in a title: a stray tag would end the message early."""
    add(client, "Plain", profile)
    add(client, "<i>&", profile)
    html = page(client, profile)
    for content in re.findall(r'<article[^>]*data-role="event".*?</article>', html, re.DOTALL):
        for tag in "p", "div", "li", "ul", "details", "summary", "span":
            assert len(re.findall(f"<{tag}[ >]", content)) == content.count(f"</{tag}>"), (tag, content)


def test_the_model_is_told_what_happened(client, server, fake, profile):
    add(client, "Buy a parrot", profile)
    with Chat(server, f"?profile={profile}") as chat:
        chat.ask("What is new?", profile)
    sent = fake.chats[-1]["messages"]
    assert "Buy a parrot" in " ".join(m["content"] for m in sent)
    assert sent[-1]["role"] == "user"
    assert sent[-1]["content"].endswith("What is new?")


def test_the_model_is_told_what_was_said_in_this_profile_alone(server, client, fake, profile):
    other = add_profile(client)
    with Chat(server, f"?profile={other}") as chat:
        chat.ask("The code word is parrot", other)
    with Chat(server, f"?profile={profile}") as chat:
        chat.ask("My name is Ada", profile)
        chat.ask("Who am I?", profile)
    sent = fake.chats[-1]["messages"]
    assert [m["content"] for m in sent if m["role"] == "user"] == ["My name is Ada", "Who am I?"]
    assert [m["role"] for m in sent if m["role"] != "system"] == ["user", "assistant", "user"]


# ---- the socket and the profile

@pytest.mark.parametrize("given", ["query", "cookie", "nothing"])
def test_the_socket_belongs_to_the_profile(client, server, given):
    profile = add_profile(client)
    client.cookies.clear()
    page(client, profile)
    cookie = "; ".join(f"{k}={v}" for k, v in client.cookies.items())
    whose = 1 if given == "nothing" else profile
    with Chat(server, f"?profile={profile}" if given == "query" else "", cookie if given == "cookie" else None) as chat:
        chat.ask(f"By {given}", whose)
    assert server.sql(PROMPTS, whose)[-1]["content"] == f"By {given}"


def test_a_change_reaches_the_tabs_of_its_profile(client, server, profile):
    other = add_profile(client)
    with Chat(server, f"?profile={profile}") as mine, Chat(server, f"?profile={other}") as theirs:
        for title in "first", "last":
            add(client, f"My {title}", profile)
            add(client, f"Their {title}", other)
        mine.until(lambda: "My last" in mine.heard, what="my last todo")
        theirs.until(lambda: "Their last" in theirs.heard, what="their last todo")
        assert "My first" in mine.heard
        assert "Their" not in mine.heard
        assert "My" not in theirs.heard


# ---- a restart

def test_everything_is_there_after_kill_9(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url})
    with httpx.Client(base_url=server.url, **LOCAL) as client:
        profile = add_profile(client, "Ada")
        done = add(client, "Milk", profile)
        client.post(f"/toggle/{done}")
        add(client, "Eggs", profile)
        with Chat(server, f"?profile={profile}") as chat:
            fake.script(Script(text="Stored for good"))
            chat.ask("Remember this", profile)
        page(client, profile)                          # the choice, too, in the cookie
        before, text = client.get("/"), everything(server)
        server.restart("kill")
        after = client.get("/")
    assert everything(server) == text
    for what in "#todo-list", "#profile-menu", "#profile-list":
        assert soup(after.text).select_one(what) == soup(before.text).select_one(what)

    def said(html):
        return [(m["data-role"], m["data-status"], m.select_one(".content").get_text())
                for m in soup(html).select("#msg-list > [id^=msg-][data-role]")]
    assert said(after.text) == said(before.text)
    assert [role for role, *_ in said(after.text)] == ["event", "user", "assistant"]
    assert "Stored for good" in said(after.text)[-1][2]


def test_kill_9_in_mid_answer_keeps_what_had_come(app, fake):
    server = app(env={"OLLAMA_HOST": fake.url})
    fake.script(Script(tokens=["one ", "two ", "three"], gate=True))
    with Chat(server) as chat:
        chat.say("Count")
        fake.wait_chat(len(fake.chats) + 1)
        fake.release(2)
        until(lambda: "two" in server.sql(ANSWERS, 1)[-1]["content"], what="a stored half")
        server.restart("kill")
    (row,) = server.sql(ANSWERS, 1)
    assert (row["status"], row["content"].strip()) == ("stopped", "one two")
    html = soup(httpx.get(server.url, **LOCAL).text)
    assert html.select_one(f"#msg-{row['id']}")["data-status"] == "stopped"
    assert "Continue" in html.select_one(f"#msg-{row['id']}").get_text()


# ---- search

@pytest.fixture
def search(client, first_page):
    """What the search box shows when this is typed into it."""
    box = first_page.select_one("#search")

    def search(text):
        answer = client.get(box["hx-get"], params={box["name"]: text}, headers={"HX-Request": "true"})
        assert answer.status_code == 200, answer.text
        assert "<html" not in answer.text
        return answer.text
    return search


@pytest.fixture(scope="module")
def filled(server, fake):
    """A profile with something to be found."""
    with httpx.Client(base_url=server.url, **LOCAL) as client, Chat(server) as chat:
        profile = add_profile(client, "Searcher")
        for title in "Buttermilk pancakes", "Crème brûlée", "<b>quokka</b> & wombat", "100% of C++":
            add(client, title, profile)
        with Chat(server, f"?profile={profile}") as chat:
            fake.script(Script(text="An axolotl regrows its limbs."))
            chat.ask("Tell me about xylophones", profile)
        return profile


@pytest.mark.parametrize(("text", "found"), [
    ("buttermilk", "Buttermilk pancakes"), ("BUTTERMILK", "Buttermilk pancakes"), ("butterm", "Buttermilk pancakes"),
    ("pancakes buttermilk", "Buttermilk pancakes"), ("creme brulee", "Crème brûlée"), ("quokka", "<b>quokka</b> & wombat"),
    ("axolotl", "An axolotl regrows its limbs."), ("xylophones", "Tell me about xylophones"), ("C++", "100% of C++")])
def test_search_finds(client, search, filled, text, found):
    hits = soup(search(text)).find_all("a")
    hit = next((a for a in hits if found in a.get_text()), None)
    assert hit, hits
    assert client.get(hit["href"]).status_code == 200
    assert re.match(rf"/(profile/{filled}\b|chat/\d)", hit["href"])


@pytest.mark.parametrize("text", ["nowhere to be found", "buttermilk axolotl", '"', "'", "*", "(", "AND", "NOT", "buttermilk OR",
                                  "NEAR(", "text:", "-", "^", "{", "%", "\\", "\0", "a\0b", "�", "x" * 5000,
                                  " ".join(map(str, range(400))), "🦜",
                                  "--", ";drop table todo"])
def test_search_takes_anything(search, filled, text):
    assert "Crème" not in search(text)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_search_shows_nothing(search, filled, text):
    assert not soup(search(text)).find_all("a")


def test_search_follows_changes(client, search, profile):
    todo = add(client, "Zeppelin", profile)
    assert f"todo-{todo}" in search("zeppelin")
    press(client, page(client, profile), "Rename Zeppelin", "Gyrocopter")
    assert f"todo-{todo}" in search("gyrocopter")
    assert f"todo-{todo}" not in search("zeppelin")
    press(client, page(client, profile), "Delete Gyrocopter")
    assert f"todo-{todo}" not in search("gyrocopter")
