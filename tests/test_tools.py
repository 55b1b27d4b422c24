"""What the model does: todos and jobs by tool calls, each with Undo, and what it may not do without being asked."""
import json
import re

import pytest
from conftest import Server, until
from fake_ollama import FakeOllama, Script, model
from playwright.sync_api import expect
from working import Work, app_with

pytest_plugins = "chatting", "working"

JOBS = '''
@job
def backup(chat, folder: str, depth: int = 2, full: bool = True, limit: int | None = None, password: Secret = ''):
    """Copies a folder."""
    return f'{folder!r} {depth!r} {full!r} {limit!r}'

@job
def guarded(chat, key: Secret): return 'It ran.'
'''
home = app_with(JOBS)
HTML = "<img src=x onerror=alert(1)> **bold** | `x`"


def call(name, **arguments):
    return {"function": {"name": name, "arguments": arguments}}


class Acting(Work):
    """A profile whose model acts: three todos, an open tab, a fake Ollama."""

    def __init__(self, server, fake):
        super().__init__(server)
        self.fake, self.title = fake, {}
        for title in "one", "two", "three":
            self.post("/todo", title=title, profile=self.profile)
        self.ids = [t["id"] for t in server.sql("select id from todo where profile = ? order by id", self.profile)]

    def asks(self, *calls, text="Very well.", in_last=False):
        """Ask the model, which makes these calls at once and then answers; the id of its message."""
        self.fake.script(Script(tool_calls=list(calls), tool_calls_in_last=in_last), Script(text=text))
        before = len(self.fake.chats)
        self.tab.say("Do it")
        self.fake.wait_chat(before + 1)
        return self.rows("role = 'assistant'")[-1]["id"]

    def does(self, *calls, **more):
        """The same, once it has answered: what the tools told the model."""
        before = len(self.fake.chats)
        row = self.ended(self.asks(*calls, **more))
        assert row["status"] == "done", row["error"]
        assert row["content"] == more.get("text", "Very well.")
        assert len(self.fake.chats) == before + 2
        return [m["content"] for m in self.fake.chats[-1]["messages"] if m["role"] == "tool"]

    def events(self):
        return [r["content"] for r in self.rows("role = 'event' and undo <> '' or content like 'The model%'")]

    def undo(self):
        """Press Undo of the last event that has one."""
        event = next(r["id"] for r in reversed(self.rows("undo <> ''")))
        self.post(self.shown(event).find("button", string="Undo")["hx-post"])
        return self.shown(event)

    def titles(self):
        return [t for t, _ in self.todos()]


@pytest.fixture
def acting(home):
    Server.known.append(home)
    with FakeOllama(port=home.ollama) as fake:
        acting = Acting(home, fake)
        with acting.socket() as acting.tab:
            yield acting
        until(lambda: not acting.rows("status in ('queued', 'streaming')"), what="the end of all")
        acting.web.close()


# ---- What is offered

def test_the_tools_are_the_functions(acting):
    acting.does(call("list_todos"))
    tools = {t["function"]["name"]: t["function"] for t in acting.fake.chats[0]["tools"]}
    assert {"list_todos", "add_todo", "finish_todo", "rename_todo", "move_todo", "delete_todo", "summarise_my_todos",
            "audit_pages", "backup", "guarded"} == set(tools)
    rename = tools["rename_todo"]["parameters"]
    assert rename == {"type": "object", "properties": {"id": {"type": "integer"}, "title": {"type": "string"}},
                      "required": ["id", "title"]}
    assert tools["move_todo"]["parameters"]["required"] == ["id"]
    backup = tools["backup"]["parameters"]
    assert {k: v["type"] for k, v in backup["properties"].items()} == {
        "folder": "string", "depth": "integer", "full": "boolean", "limit": "integer"}           # and no secret
    assert backup["required"] == ["folder"] and "Copies a folder." in tools["backup"]["description"]


def test_a_model_without_the_capability_gets_no_tools(acting):
    acting.fake.models = [model("gemma3:1b", "gemma3", "1B", ("completion",))]
    acting.tab.ask("Hi", acting.profile)
    assert acting.rows("role = 'assistant'")[-1]["status"] == "done"
    assert "tools" not in acting.fake.chats[-1]


# ---- What it does

@pytest.mark.parametrize("in_last", [False, True])
def test_calls_are_understood_in_both_places(acting, in_last):
    told = acting.does(call("add_todo", title="four"), call("list_todos"), in_last=in_last)
    assert acting.titles() == ["one", "two", "three", "four"]
    a, b, c = acting.ids
    assert told[1].splitlines()[:3] == [f"{a}: [ ] one", f"{b}: [ ] two", f"{c}: [ ] three"] and "[ ] four" in told[1]
    said = acting.fake.chats[-1]["messages"][-3:]
    assert [m["role"] for m in said] == ["assistant", "tool", "tool"]
    assert [c["function"]["name"] for c in said[0]["tool_calls"]] == ["add_todo", "list_todos"]
    assert [m["tool_name"] for m in said[1:]] == ["add_todo", "list_todos"]


@pytest.mark.parametrize(("name", "arguments", "after", "event"), [
    ("add_todo", {"title": "four"}, "one two three four", "added “four”"),
    ("finish_todo", {"id": 1}, "one two* three", "finished “two”"),
    ("rename_todo", {"id": 1, "title": "zwei"}, "one zwei three", "renamed “two” to “zwei”"),
    ("move_todo", {"id": 2, "before_id": 0}, "three one two", "moved “three”"),
    ("move_todo", {"id": 0}, "two three one", "moved “one”")])
def test_each_act_is_an_event_with_undo(acting, name, arguments, after, event):
    """Undo restores exactly what was there."""
    def rows():
        return [tuple(t) for t in acting.server.sql("select id, title, done, priority from todo where profile = ? "
                                                    "and not deleted order by priority, id", acting.profile)]

    def shown():
        return " ".join(t + "*" * done for t, done in acting.todos())
    before = rows()
    if name == "move_todo":
        arguments = {k: acting.ids[v] for k, v in arguments.items()}
    elif "id" in arguments:
        arguments = arguments | {"id": acting.ids[arguments["id"]]}
    acting.does(call(name, **arguments))
    assert shown() == after and acting.events() == [f"The model {event}"]
    undone = acting.undo()
    assert rows() == before and "(undone)" in undone.get_text() and not undone.find("button", string="Undo")
    again = acting.web.post(f"/take_back?id={undone['id'][4:]}")
    assert again.status_code == 400 and rows() == before


def test_what_a_person_does_has_no_undo_in_the_chat(acting):
    acting.post(f"/toggle/{acting.ids[0]}")
    assert not acting.rows("undo <> ''")


def test_a_delete_asks_first(acting):
    delete = call("delete_todo", id=acting.ids[1])
    ident = acting.asks(delete)
    question = acting.shows(ident, "Delete the todo “two”?").find("div", id=f"q-{ident}")
    assert [b.get_text() for b in question.find_all("button")] == ["Delete two", "Keep it"]
    assert acting.titles() == ["one", "two", "three"]
    acting.reply(ident, "Keep it")
    acting.ended(ident)
    assert acting.titles() == ["one", "two", "three"] and not acting.events()
    assert acting.fake.chats[-1]["messages"][-1]["content"] == "The person wants to keep it."
    ident = acting.asks(delete)
    acting.reply(ident, "Delete two")
    acting.ended(ident)
    assert acting.titles() == ["one", "three"] and acting.events() == ["The model deleted “two”"]
    acting.undo()
    assert acting.titles() == ["one", "two", "three"]


def test_a_todo_that_goes_while_the_question_is_open(acting):
    ident = acting.asks(call("delete_todo", id=acting.ids[1]))
    acting.shows(ident, "Delete the todo")
    acting.post(f"/delete?kind=todo&id={acting.ids[1]}")
    acting.reply(ident, "Delete two")
    assert acting.ended(ident)["status"] == "done"
    assert "there is no todo" in acting.fake.chats[-1]["messages"][-1]["content"] and not acting.events()


def test_a_job_asks_first(acting):
    ident = acting.asks(call("backup", folder="home"))
    assert "folder: home" in acting.shows(ident, "Start Backup").get_text()
    acting.reply(ident, "No")
    acting.ended(ident)
    assert not acting.rows("role = 'job'")
    ident = acting.asks(call("backup", folder="/home"))
    acting.reply(ident, "Start Backup")
    acting.ended(ident)
    assert acting.fake.chats[-1]["messages"][-1]["content"].startswith("done: ")
    job = acting.rows("role = 'job'")[-1]
    assert acting.ended(job["id"])["content"].strip() == "'/home' 2 True None"      # what it left out is the default


def test_a_job_that_wants_a_secret_goes_back_to_the_model(acting):
    ident = acting.asks(call("guarded"))
    acting.reply(ident, "Start Guarded")
    acting.ended(ident)
    assert "has to be typed into the form" in acting.fake.chats[-1]["messages"][-1]["content"]
    assert not acting.rows("role = 'job'")


def test_stop_while_a_question_is_open(acting):
    ident = acting.asks(call("delete_todo", id=acting.ids[0]), call("add_todo", title="never"))
    button = acting.shows(ident, "Delete the todo").find("div", id=f"q-{ident}").button
    [row] = acting.rows("id = " + str(ident))
    acting.post(f"/stop?chat={row['chat']}")
    assert acting.ended(ident, 3)["status"] == "stopped"
    assert not acting.shown(ident).find("div", id=f"q-{ident}").button
    assert acting.web.post(button["hx-post"]).status_code == 400
    assert acting.titles() == ["one", "two", "three"] and not acting.events()
    acting.fake._scripts.clear()
    acting.tab.ask("Go on", acting.profile)                  # and the next one is answered


def test_the_buttons_in_the_page(chat):
    chat.post("todo", title=HTML, profile=chat.profile)
    ident = chat.server.sql("select max(id) n from todo")[0]["n"]
    chat.ask("Tidy up", Script(tool_calls=[call("delete_todo", id=ident), call("add_todo", title="new " + HTML)]))
    chat.fake.script(Script(text="Done."))
    expect(chat.answer.locator(".question p")).to_have_text(f"Delete the todo “{HTML}”?")
    expect(chat.answer.locator(".question button")).to_have_count(2)
    chat.page.reload()                                        # the question is still there
    chat.button(f"Delete {HTML}").click()
    expect(chat.content).to_have_text("Done.")
    expect(chat.page.locator("#todo-list .title")).to_have_text("new " + HTML)
    event = chat.page.locator("[data-role=event]").last
    expect(event.locator(".content")).to_have_text(f"The model added “new {HTML}”")
    assert event.locator("img, strong, code").count() == 0
    event.get_by_role("button", name="Undo").click()
    expect(event).to_contain_text("(undone)")
    expect(chat.page.locator("#todo-list li")).to_have_count(0)
    chat.page.locator("[data-role=event]").get_by_role("button", name="Undo").click()
    expect(chat.page.locator("#todo-list .title")).to_have_text(HTML)
    assert chat.state() == chat.fresh()


# ---- What goes wrong

@pytest.mark.parametrize(("wrong", "word"), [
    (call("no_such"), "there is no tool"), (call(HTML), "there is no tool"), (call("__class__"), "there is no tool"),
    (call("add_todo"), "Fill this in"), (call("add_todo", title=""), "Fill this in"), (call("add_todo", title="  "), "Fill"),
    (call("add_todo", title="x" * 501), "at most 500"), (call("add_todo", title="x", profile=1), "no parameter profile"),
    (call("finish_todo", id="two"), "whole number"), (call("finish_todo", id=None), "Fill this in"),
    (call("finish_todo", id=999_999), "no todo"), (call("finish_todo", id=-1), "no todo"),
    (call("finish_todo", id=10**30), "too large"), (call("finish_todo", id={"a": [1]}), "whole number"),
    (call("rename_todo", id=999_999, title="x"), "no todo"), (call("move_todo", id=999_999), "no todo"),
    (call("delete_todo", id=999_999), "no todo"), (call("backup", depth="deep", folder="x"), "whole number"),
    (call("backup", full="maybe", folder="x"), "Choose one of"),
    ({"function": {"name": "add_todo", "arguments": ["title"]}}, "This did not work"),
    ({"function": {"name": "add_todo", "arguments": "[\"title\"]"}}, "This did not work"),
    ({"function": {"name": "add_todo", "arguments": "{\"title\": "}}, "This did not work"),
    ({"function": {"name": "add_todo", "arguments": "[" * 100_000}}, "This did not work"),
    ({"function": {"name": "add_todo", "arguments": 5}}, "This did not work"),
    ({"function": {"name": ["add_todo"]}}, "there is no tool"), ({"function": "add_todo"}, "This did not work"),
    ({}, "This did not work"), ("add_todo", "This did not work")])
def test_a_bad_call_goes_back_to_the_model_as_text(acting, wrong, word):
    told = acting.does(wrong)
    assert told[0].startswith("This did not work: ") and word in told[0], told
    assert acting.todos() == [("one", False), ("two", False), ("three", False)] and not acting.events()
    assert not acting.rows("role = 'job'")


def test_arguments_may_come_as_text(acting):
    acting.does({"function": {"name": "add_todo", "arguments": json.dumps({"title": "four"})}},
                call("finish_todo", id=str(acting.ids[0])), call("finish_todo", id=float(acting.ids[1])))
    assert acting.todos() == [("one", True), ("two", True), ("three", False), ("four", False)]


def test_another_profiles_todo_is_not_touched(acting):
    """Nor is it named to the model."""
    other = Work(acting.server)
    other.post("/todo", title="private", profile=other.profile)
    ident = acting.server.sql("select id from todo where profile = ?", other.profile)[0]["id"]
    told = acting.does(call("finish_todo", id=ident), call("rename_todo", id=ident, title="x"), call("delete_todo", id=ident),
                       call("move_todo", id=ident), call("move_todo", id=acting.ids[0], before_id=ident), call("list_todos"))
    assert all("no todo" in t for t in told[:5]) and "private" not in json.dumps(acting.fake.chats)
    assert other.todos() == [("private", False)] and not other.rows("content like 'The model%'")
    assert acting.titles() == ["one", "two", "three"]


def test_what_the_model_calls_a_todo_is_text(acting):
    acting.does(call("add_todo", title=HTML + "\nsecond line\x07"))
    assert acting.titles()[-1] == HTML + " second line"
    event = acting.shown(acting.rows("undo <> ''")[-1]["id"])
    assert event.find(class_="content").get_text() == f"The model added “{HTML} second line”"
    assert not event.find(["img", "strong", "code"])


def test_there_are_at_most_a_few_rounds(acting):
    """A model that never comes to an end is offered no tools in the last round."""
    rounds = int(re.search(r"^ROUNDS = (\d+)", acting.server.file.read_text(), re.MULTILINE)[1])
    acting.fake.script(*(Script(text=f"Round {n}. ", tool_calls=[call("list_todos")]) for n in range(rounds + 3)))
    acting.tab.say("Do it")
    ident = until(lambda: acting.rows("role = 'assistant'"), what="the answer's place")[-1]["id"]
    row = acting.ended(ident)
    assert len(acting.fake.chats) == rounds and row["status"] == "done"
    assert [("tools" in c) for c in acting.fake.chats] == [True] * (rounds - 1) + [False]
    assert [n for n in range(9) if f"Round {n}." in row["content"]] == list(range(rounds))
    tools = [m for m in acting.fake.chats[-1]["messages"] if m["role"] == "tool"]
    assert len(tools) == rounds - 1
