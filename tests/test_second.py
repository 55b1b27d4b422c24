"""Second thoughts: a prompt that is edited, answers beside one another, an answer that goes on."""
import re
import sqlite3

import httpx
import pytest
from conftest import Server, ask, free_port, until, wait_done
from fake_ollama import FakeOllama, Script, model
from playwright.sync_api import expect
from test_access import Look
from wire import Chat as Socket
from working import app_with

pytest_plugins = "chatting"

home = app_with('''
@job
async def wait_for_me(chat):
    chat.send('begun')
    try:
        await chat.ask('Go on?', 'Yes')
    finally:
        chat.send(' and cleaned up')
''')


def said(body):
    """The roles and texts of one request to the model, without the system prompt."""
    return [(m["role"], m["content"]) for m in body["messages"] if m["role"] != "system"]


def timeline(page):
    """What stands in the chat, as texts."""
    return page.locator("#msg-list > .msg .content").all_inner_texts()


def field(page):
    return page.locator("#msg")


def edit(page, n=-1):
    """Press Edit under a prompt: the last one, or the nth."""
    prompt = page.locator("[data-role=user]").nth(n)
    prompt.hover()
    prompt.get_by_role("button", name="Edit", exact=True).click()


def send(page, text):
    """Send an edited prompt; back when it stands in the chat."""
    field(page).fill(text)
    field(page).press("Enter")
    expect(page.locator("[data-role=user] .content").last).to_have_text(text)
    expect(page.locator("#toast")).to_contain_text("replaced")


def undo(page):
    page.locator("#toast").get_by_role("button", name="Undo").click()


def editing(page):
    return page.get_by_text("Editing an earlier message")


# ---- Edit

def test_an_edited_prompt_takes_the_place_of_what_stood_below_and_one_undo_brings_all_back(chat):
    page, other = chat.page, chat.open()
    chat.answered("One", Script(text="a1"))
    chat.answered("Tow", Script(text="a2"))
    chat.answered("Three", Script(text="a3"))
    before = chat.state()
    expect(editing(page)).to_be_hidden()
    edit(page, 1)
    expect(editing(page)).to_be_visible()
    expect(field(page)).to_have_value("Tow")
    expect(field(page)).to_be_focused()
    chat.fake.script(Script(text="a two"))
    send(page, "Two")
    expect(editing(page)).to_be_hidden()
    expect(field(page)).to_have_value("")
    wait_done(page)
    until(chat.idle)
    assert said(chat.fake.chats[-1]) == [("user", "One"), ("assistant", "a1"), ("user", "Two")]
    expect(other.locator(".content").last).to_have_text("a two")
    assert timeline(page) == timeline(other) == ["One", "a1", "Two", "a two"]
    assert chat.state() == chat.state(other) == chat.fresh()
    found = httpx.get(f"{chat.server.url}/find?q=Three", trust_env=False).text
    assert 'class="msg' not in found and "a3" not in found and ">Three" not in found
    late = chat.open()                                      # a page that never saw what was replaced
    undo(page)
    for each in page, other, late:
        expect(each.locator(".content").last).to_have_text("a3")
        assert chat.state(each) == before
    assert chat.fresh() == before
    prompt = chat.rows("content = 'Two'")[0]["id"]
    again = httpx.post(f"{chat.server.url}/restore_replaced?id={prompt}", trust_env=False)
    assert again.status_code == 400 and "nothing to bring back" in again.text
    assert chat.fresh() == before                           # and an id that has replaced nothing takes nothing away
    chat.answered("And four?", Script(text="a4"))
    assert said(chat.fake.chats[-1])[-3:] == [("user", "Three"), ("assistant", "a3"), ("user", "And four?")]
    assert timeline(late)[-2:] == ["And four?", "a4"]


def test_edits_of_edits_are_undone_one_by_one(chat):
    page = chat.page
    chat.answered("v1", Script(text="a1"))
    ways_back = []
    for n in 2, 3:
        edit(page)
        chat.fake.script(Script(text=f"a{n}"))
        send(page, f"v{n}")
        wait_done(page)
        ways_back.append(page.locator("#toast button").get_attribute("hx-post"))
    undo(page)
    expect(chat.content).to_have_text("a2")
    httpx.post(chat.server.url + ways_back[0], trust_env=False).raise_for_status()
    expect(chat.content).to_have_text("a1")
    assert timeline(page) == ["v1", "a1"]


def test_what_stood_in_the_composer_comes_back(chat):
    page = chat.page
    chat.answered("First", Script(text="a1"))
    chat.answered("Second\nwith two lines", Script(text="a2"))
    page.goto(f"{chat.server.url}/chat/{chat.rows()[0]['chat']}")
    field(page).press("ArrowUp")                            # in the empty composer: the last prompt
    expect(field(page)).to_have_value("Second\nwith two lines")
    field(page).press("ArrowUp")                            # and no further: it moves the cursor
    expect(field(page)).to_have_value("Second\nwith two lines")
    field(page).press("Escape")
    expect(field(page)).to_have_value("")
    expect(editing(page)).to_be_hidden()

    field(page).fill("half a thought")
    field(page).press("ArrowUp")                            # there is something typed
    expect(field(page)).to_have_value("half a thought")
    edit(page, 0)
    expect(field(page)).to_have_value("First")
    field(page).fill("First, changed")
    edit(page, 1)                                           # another one after all
    expect(field(page)).to_have_value("Second\nwith two lines")
    page.reload()
    expect(editing(page)).to_be_visible()
    expect(field(page)).to_have_value("Second\nwith two lines")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(field(page)).to_have_value("half a thought")
    expect(field(page)).to_be_focused()
    expect(editing(page)).to_be_hidden()
    edit(page)
    send(page, "Second, changed")
    expect(field(page)).to_have_value("half a thought")     # it was not sent
    wait_done(page)
    page.reload()
    expect(field(page)).to_have_value("half a thought")
    expect(editing(page)).to_be_hidden()
    assert timeline(page)[-2:-1] == ["Second, changed"]


def test_edit_stops_the_answer_that_runs(chat):
    page = chat.page
    chat.ask("Question", Script(text="one two three", gate=True))
    chat.fake.release(1)
    expect(chat.content).to_have_text("one")
    edit(page)
    chat.fake.wait_hangup()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    expect(chat.answer.locator("footer")).to_contain_text("Stopped")
    expect(field(page)).to_have_value("Question")
    chat.fake.script(Script(text="better"))
    send(page, "Better question")
    wait_done(page)
    assert timeline(page) == ["Better question", "better"]
    undo(page)
    expect(chat.content).to_have_text("one")
    expect(chat.button("Continue")).to_be_visible()


def test_a_queued_prompt_is_edited_and_the_answer_above_it_goes_on(chat):
    page = chat.page
    chat.ask("First", Script(text="one two", gate=True))
    chat.fake.release(1)
    ask(page, "Secnd")
    ask(page, "Third")
    edit(page, 1)
    chat.fake.script(Script(text="a2"))
    send(page, "Second")
    expect(chat.answers.first).to_have_attribute("data-status", "streaming")
    expect(page.locator("[data-role=user]")).to_have_count(2)
    undo(page)                                              # they are in line again
    expect(page.locator("[data-role=user] .content")).to_have_text(["First", "Secnd", "Third"])
    edit(page, 1)
    send(page, "Second")
    chat.fake.release()
    wait_done(page)
    assert timeline(page) == ["First", "one two", "Second", "a2"]
    assert len(chat.fake.chats) == 2 and chat.state() == chat.fresh()


def test_what_runs_among_the_replaced_ends(chat):
    """By the socket, as a page does whose answer has begun a moment ago; with a job and a script below it."""
    page = chat.page
    chat.ask("Question", Script(text="one two", gate=True))
    chat.fake.release(1)
    expect(chat.content).to_have_text("one")
    chat.post(f"run/wait_for_me?profile={chat.profile}")
    script = chat.post("chatq", text="half", progress="50", profile=chat.profile)
    expect(page.locator("[data-role=job]")).to_have_count(2)
    prompt = chat.rows("role = 'user'")[0]
    with Socket(chat.server, f"?chat={prompt['chat']}") as tab:
        tab.ws.send(f'{{"msg": "Another question", "edit": "{prompt["id"]}"}}')
        tab.hear("are replaced.*Undo")
    chat.fake.wait_hangup()
    wait_done(page)
    until(chat.idle)
    assert timeline(page) == ["Another question", chat.fake.default.text]
    gone = chat.rows("deleted")
    assert [(m["role"], m["status"], m["content"].strip()) for m in gone] == [
        ("user", "done", "Question"), ("assistant", "stopped", "one"), ("job", "stopped", "begun"),
        ("job", "stopped", "half")]
    reply = httpx.post(f"{chat.server.url}/chatq", data=dict(id=script, text="more"), trust_env=False)
    assert reply.status_code == 404 and "<" not in reply.text
    dot = page.locator("#chat-list .dot")
    expect(dot).to_have_count(0)
    chat.server.restart("kill")                             # all of it was one step
    new = chat.rows("not deleted")
    assert [m["content"] for m in new] == ["Another question", chat.fake.default.text]
    chat.window.allow_errors = r"WebSocket|ERR_|htmx:|\[object Event\]"
    chat.post(f"restore_replaced?id={new[0]['id']}")
    shown = chat.open()
    assert timeline(shown)[:2] == ["Question", "one"] and len(timeline(shown)) == 4


def test_an_edit_of_a_message_that_is_gone_is_refused_and_kept(chat):
    page, other = chat.page, chat.open()
    chat.answered("Mine", Script(text="a1"))
    edit(page)
    field(page).fill("Mine, changed")
    prompt = other.locator("[data-role=user]")
    prompt.hover()
    prompt.get_by_role("button", name="Delete message").click()
    expect(chat.prompts).to_have_count(0)
    field(page).press("Enter")
    expect(page.locator("#toast")).to_contain_text("not there any more: send this as a new one")
    expect(field(page)).to_have_value("Mine, changed")
    expect(editing(page)).to_be_hidden()
    field(page).press("Enter")
    expect(chat.prompts.locator(".content")).to_have_text("Mine, changed")
    wait_done(page)
    there = chat.rows("role = 'user' and not deleted")[0]
    answer = chat.rows("role = 'assistant' and not deleted")[0]
    elsewhere = chat.another()
    elsewhere.answered("Theirs")
    theirs = elsewhere.rows("role = 'user'")[0]
    with Socket(chat.server, f"?chat={there['chat']}") as tab:
        for wrong in answer["id"], theirs["id"], 10**14:
            tab.ws.send(f'{{"msg": "x", "edit": {wrong}}}')
            tab.hear("not there any more")
        for odd in '"abc"', "[1]", "null", '{"a": 1}', "-3", "1e400", f'"{"9" * 40}"':
            tab.ws.send(f'{{"msg": "new {len(odd)}", "edit": {odd}}}')     # it names none: a new message
            tab.hear(f"new {len(odd)}")
    until(chat.idle)
    assert not elsewhere.rows("deleted") and not chat.rows(f"id = {there['id']} and deleted")


def test_an_edit_that_is_refused_is_still_one(chat):
    page = chat.page
    chat.answered("Mine", Script(text="a1"))
    edit(page)
    page.set_input_files("#files", {"name": "long.txt", "mimeType": "", "buffer": b"word " * 9000})
    expect(page.locator("#chips li")).to_have_count(1)
    field(page).fill("Mine, changed")
    field(page).press("Enter")
    expect(page.locator("#toast")).to_contain_text("too long for this model")
    expect(field(page)).to_have_value("Mine, changed")
    expect(editing(page)).to_be_visible()
    page.locator("#chips button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#chips li")).to_have_count(0)
    expect(page.locator("#send-btn")).to_be_focused()
    page.keyboard.press("Enter")
    expect(chat.prompts.locator(".content")).to_have_text("Mine, changed")
    wait_done(page)


def test_an_edit_is_kept_while_the_connection_is_down(wire, chat):
    page = chat.page
    chat.answered("Mine", Script(text="a1"))
    edit(page)
    wire.cut()
    expect(page.locator("#offline")).to_be_visible()
    field(page).fill("Mine, changed")
    field(page).press("Enter")
    wire.mend()
    expect(chat.prompts.locator(".content")).to_have_text(["Mine, changed"])
    wait_done(page)
    assert len(chat.rows("not deleted")) == 2


# ---- Answers beside one another

def choice(answer):
    found = re.search(r"\d+ of \d+", answer.locator("footer").inner_text())
    return found and found[0]


def test_earlier_answers_are_kept_and_the_chosen_one_is_remembered(chat):
    page, other = chat.page, chat.open()
    chat.answered("Tell me", Script(text="first", thinking=["hm"]))
    assert choice(chat.answer) is None
    chat.fake.script(Script(text="second try", gate=True), Script(text="third"))
    chat.button("Regenerate").click()
    chat.fake.release(1)
    expect(chat.content).to_have_text("second")
    expect(chat.button("Earlier answer")).to_have_count(0)  # not while it is being written
    row = chat.rows("role = 'assistant'")[0]["id"]
    wrong = httpx.post(f"{chat.server.url}/choose_answer?id={row}&n=0", trust_env=False)
    assert wrong.status_code == 400 and "stop it first" in wrong.text
    chat.fake.release()
    wait_done(page)
    assert choice(chat.answer) == "2 of 2"
    chat.button("Regenerate").click()
    expect(chat.content).to_have_text("third")
    wait_done(page)
    assert said(chat.fake.chats[-1]) == [("user", "Tell me")]
    chat.answered("And then?", Script(text="below"))        # what stands below stays
    first = chat.answers.first
    first.hover()
    for name, text, place in (("Earlier", "second try", 2), ("Earlier", "first", 1), ("Later", "second try", 2)):
        button = first.get_by_role("button", name=f"{name} answer", exact=True)
        button.press("Enter")
        expect(first.locator(".content")).to_have_text(text)
        assert choice(first) == f"{place} of 3"
        expect(button).to_be_focused()
    expect(other.locator("[data-role=assistant] .content")).to_have_text(["second try", "below"])
    assert chat.state() == chat.state(other) == chat.fresh()
    chat.answered("Go on", Script(text="on"))
    assert said(chat.fake.chats[-1])[1] == ("assistant", "second try")
    for n in "-1", "3", "99":
        wrong = httpx.post(f"{chat.server.url}/choose_answer?id={row}&n={n}", trust_env=False)
        assert wrong.status_code == 400 and "no further answer" in wrong.text
    chat.post(f"choose_answer?id={row}&n=0")
    assert chat.rows(f"id = {row}")[0]["thinking"] == "hm"
    assert "first" in httpx.get(f"{chat.server.url}/source?id={row}", trust_env=False).text


def test_an_answer_without_text_is_none(chat):
    chat.answered("Tell me", Script(text="first"))
    chat.fake.script(Script(error="it is broken", status=500), Script(text="second"))
    chat.button("Regenerate").click()
    expect(chat.answer).to_have_attribute("data-status", "error")
    assert choice(chat.answer) == "2 of 2"
    chat.button("Try again").click()
    wait_done(chat.page)
    expect(chat.content).to_have_text("second")
    assert choice(chat.answer) == "2 of 2"
    chat.fake.script(Script(error="it is broken", status=500))
    chat.button("Regenerate").click()
    expect(chat.answer).to_have_attribute("data-status", "error")
    chat.button("Earlier answer").click()
    expect(chat.content).to_have_text("second")
    assert choice(chat.answer) == "2 of 2"
    expect(chat.answer.locator(".error")).to_have_count(0)


def test_the_figures_are_those_of_this_answer(chat):
    chat.answered("Tell me", Script(text="one two three", thinking=["hm"]))
    facts = chat.answer.locator(".figures")
    expect(facts).to_contain_text("tokens/s")
    chat.fake.script(Script(text="uno dos tres", gate=True))
    chat.button("Regenerate").click()
    chat.fake.release(2)
    expect(chat.content).to_have_text("uno dos")
    chat.page.locator("#stop-btn").click()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    expect(facts).to_have_text("Stopped · llama3.2:latest")
    expect(facts).to_be_visible()
    expect(chat.answer.locator(".thinking")).to_have_count(0)
    chat.fake.script(Script(text=" tres"))
    chat.button("Continue").click()
    wait_done(chat.page)
    expect(facts).to_have_text(re.compile(r"^llama3.2:latest · 50 tokens/s"))
    chat.button("Earlier answer").click()
    expect(chat.content).to_have_text("one two three")
    chat.button("Later answer").click()
    expect(chat.content).to_have_text("uno dos tres")
    expect(facts).to_have_text(re.compile(r"^llama3.2:latest · 50 tokens/s"))


def test_files_of_an_answer_that_is_not_chosen_are_kept(app):
    server = app(env={"OLLAMA_HOST": "127.0.0.1:9"})
    server.stop()
    folder = server.db.parent / f"{server.db.stem}.files"
    folder.mkdir(exist_ok=True)
    names = ["a" * 64 + ".png", "b" * 64 + ".png"]
    for name in names:
        (folder / name).write_bytes(b"x")
    db = sqlite3.connect(server.db)
    db.execute("""insert into message(profile, chat, role, content, variants, status, deleted, updated)
                  values (1, 0, 'assistant', 'b', ?, 'done', 0, unixepoch())""",
               [f'[{{"content": "![x](/file/{names[0]})"}}]'])
    db.commit()
    db.close()
    server.start()
    assert [each.name for each in folder.iterdir()] == names[:1]


# ---- Continue

def stopped_after(chat, script, chunks, text):
    chat.ask("Count", script)
    chat.fake.release(chunks)
    expect(chat.content).to_have_text(text)
    chat.page.locator("#stop-btn").click()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    chat.fake.wait_hangup()


OLD = "The quick brown fox jumps over"
ONCE = f"{OLD} the lazy dog."


@pytest.mark.parametrize("new, whole", [
    (" the lazy dog.", ONCE),                                            # it goes on
    ("fox jumps over the lazy dog.", ONCE),                              # it repeats its last words,
    ("\n\n" + ONCE, ONCE),                                               # all of it,
    (" fox jumps over the lazy dog.", ONCE),
    ("over the hills", f"{OLD}over the hills"),                          # too little to tell
    (" quick brown foxes", f"{OLD} quick brown foxes"),                  # no repetition after all
    ("The quick brown", f"{OLD}The quick brown"),                        # nor this, at its end
])
def test_continue_repeats_nothing(chat, new, whole):
    stopped_after(chat, Script(text=OLD + " x", gate=True), 6, OLD)
    chat.fake.script(Script(text=new))
    chat.button("Continue").click()
    expect(chat.answer).to_have_attribute("data-status", "done")
    assert chat.rows("role = 'assistant'")[0]["content"] == whole
    assert said(chat.fake.chats[-1]) == [("user", "Count"), ("assistant", OLD)]
    assert chat.state() == chat.fresh()


def test_text_is_held_back_only_while_it_may_be_a_repetition(chat):
    stopped_after(chat, Script(text=OLD + " x", gate=True), 6, OLD)
    chat.fake.script(Script(tokens=["fox", " jumps", " over", " the", " lazy"], gate=True))
    chat.button("Continue").click()
    chat.fake.wait_chat(2)
    chat.fake.release(3)
    chat.fake.wait_sent(3)
    chat.fake.release(1)
    expect(chat.content).to_have_text(f"{OLD} the")
    chat.page.locator("#stop-btn").click()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    chat.fake.wait_hangup(n=2)
    chat.fake.script(Script(tokens=["The", " qu", "ack"], gate=True))
    chat.button("Continue").click()
    chat.fake.wait_chat(3)
    chat.fake.release(3)
    expect(chat.content).to_have_text(f"{OLD} theThe quack")


def test_a_server_that_wants_the_last_word_from_the_person_is_asked_in_words(chat):
    chat.fake.no_prefill = 400, "Expected last role User or Tool for serving but got assistant"
    stopped_after(chat, Script(text=OLD + " x", gate=True), 6, OLD)
    chat.fake.script(Script(text="brown fox jumps over the lazy dog."))
    chat.button("Continue").click()
    expect(chat.answer).to_have_attribute("data-status", "done")
    expect(chat.content).to_have_text(ONCE)
    assert said(chat.fake.chats[-1])[-2] == ("assistant", OLD)
    role, text = said(chat.fake.chats[-1])[-1]
    assert role == "user" and "Go on" in text


@pytest.fixture(scope="module")
def openai():
    port = free_port()
    server = Server({"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"})
    server.ollama = port
    yield server.start()
    server.remove()


@pytest.mark.parametrize("refuses", [{}, {"add_generation_prompt": (400, "Unrecognized request argument supplied: "
                                                                    "add_generation_prompt"),
                                          "continue_final_message": (422, "continue_final_message: extra_forbidden")},
                                     "prefill"])
def test_an_openai_server_goes_on_as_it_can(openai, refuses):
    Server.known.append(openai)
    name = f"m{len(refuses)}"
    with FakeOllama(port=openai.ollama) as fake, Socket(openai, "?profile=1") as tab:
        fake.models[:] = [model(name)]
        if refuses == "prefill":                            # llama-server, of a model that thinks
            fake.no_prefill = 500, "Assistant response prefill is incompatible with enable_thinking."
        else:
            fake.unknown = refuses
        fake.script(Script(text="one two", cut_after=2))
        row = tab.ask("Count")
        assert row["status"] == "error" and row["content"] == "one two"
        plain = fake.chats[-1]
        assert "continue_final_message" not in plain and "add_generation_prompt" not in plain
        fake.script(Script(text=" three"))
        httpx.post(f"{openai.url}/go_on?id={row['id']}", trust_env=False).raise_for_status()
        done = until(lambda: openai.sql("select * from message where id = ? and status = 'done'", row["id"]))
        assert done[0]["content"] == "one two three"
        sent = fake.chats[-1]
        parts = {"continue_final_message": True, "add_generation_prompt": False}
        if refuses == "prefill":
            assert said(sent)[-1][0] == "user"
        else:
            assert said(sent)[-1] == ("assistant", "one two")
        assert {name: sent[name] for name in parts if name in sent} == ({} if refuses else parts)


@pytest.mark.parametrize("size, theme", [((1280, 800), "light"), ((390, 740), "dark")])
def test_both_for_everyone(chat, size, theme):
    """As axe sees it; the targets are large enough, and nothing is wider than the window."""
    page, look = chat.page, Look(chat.page)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=theme)
    chat.answered("Tell me " * 12, Script(text="first"))
    chat.fake.script(Script(text="second"))
    chat.button("Regenerate").click()
    expect(chat.content).to_have_text("second")
    wait_done(page)
    look.at("several answers")
    edit(page)
    expect(editing(page)).to_be_visible()
    look.at("editing")
    page.set_viewport_size({"width": 1280, "height": 720})
    page.emulate_media(color_scheme="light")
    look.done()
