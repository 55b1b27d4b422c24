"""The chat as a person has it: what streams, what survives, what can be done with it."""
import contextlib
import re
import socket
import sqlite3
import subprocess
import sys

import httpx
import psutil
import pytest
from conftest import Server, ask, until, wait_done
from fake_ollama import FakeOllama, Pull, Script
from playwright.sync_api import expect

pytest_plugins = "chatting"
# What the console says of a connection that is down.
OFFLINE = r"WebSocket|ERR_|htmx:(afterRequest|sendError)|\[object Event\]"

WORDS = " ".join(f"w{n}" for n in range(40))


def said(body):
    """The roles and texts of one request to the model, without the system prompt."""
    return [(m["role"], m["content"]) for m in body["messages"] if m["role"] != "system"]


def roles(page):
    return page.locator("#msg-list > [id^=msg-][data-role]").evaluate_all("all => all.map(m => m.dataset.role)")


def has_text(chat, text):
    expect(chat.content).to_have_text(text)


# ---- A prompt and its answer

def test_an_answer_streams_token_by_token(chat):
    chat.ask("Hi", Script(text="One two three", gate=True))
    expect(chat.prompts.locator(".content")).to_have_text("Hi")
    expect(chat.answer).to_have_attribute("data-status", "streaming")
    for n, text in (1, "One"), (1, "One two"), (9, "One two three"):
        chat.fake.release(n)
        has_text(chat, text)
    expect(chat.answer).to_have_attribute("data-status", "done")
    assert said(chat.fake.chats[0]) == [("user", "Hi")]


def test_enter_sends_and_shift_enter_breaks_the_line(chat):
    field = chat.page.locator("#msg")
    field.press_sequentially("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    field.press("Enter")
    expect(chat.prompts.locator(".content")).to_have_text("one\ntwo", use_inner_text=True)
    expect(field).to_have_value("")
    assert said(chat.fake.wait_chat()) == [("user", "one\ntwo")]


def test_the_send_button_sends_too(chat):
    chat.page.locator("#msg").fill("by mouse")
    chat.page.get_by_role("button", name="Send", exact=True).click()
    expect(chat.prompts.locator(".content")).to_have_text("by mouse")


def test_a_draft_belongs_to_its_profile_and_survives_a_reload(chat):
    other = chat.another()
    chat.page.locator("#msg").fill("for the first")
    chat.page.goto(other.url)
    expect(chat.page.locator("#msg")).to_have_value("")
    chat.page.goto(chat.url)
    expect(chat.page.locator("#msg")).to_have_value("for the first")
    chat.page.reload()
    expect(chat.page.locator("#msg")).to_have_value("for the first")


def test_a_draft_of_a_new_chat_has_nothing_to_do_with_the_filter_of_the_todos(chat):
    chat.page.get_by_label("What needs to be done?").fill("milk")
    chat.page.keyboard.press("Enter")
    chat.answered("Hi", Script(text="Here"))
    new = chat.page.locator("#new-chat").evaluate("a => a.href")
    chat.page.goto(new)
    chat.page.get_by_role("link", name="Active", exact=True).click()
    expect(chat.page).to_have_url(re.compile("show=active"))
    chat.page.locator("#msg").fill("half a thought")
    chat.page.goto(chat.another().url)
    chat.page.goto(new)
    expect(chat.page.locator("#msg")).to_have_value("half a thought")


def test_the_message_field_grows_with_its_text(chat):
    field = chat.page.locator("#msg")
    low = field.bounding_box()["height"]
    field.press_sequentially("one")
    for _ in range(4):
        field.press("Shift+Enter")
    assert field.bounding_box()["height"] > 2 * low


def test_an_empty_prompt_is_a_gentle_hint(chat):
    for nothing in "", "  \n ":
        chat.page.locator("#msg").fill(nothing)
        chat.page.locator("#msg").press("Enter")
        expect(chat.page.locator("#toast")).to_contain_text("Type a message")
    assert not chat.rows() and not chat.fake.chats


def test_a_prompt_is_plain_text(chat):
    text = "<b>bold</b> **stars** # no heading &amp; {{x}}"
    chat.answered(text)
    expect(chat.prompts.locator(".content")).to_have_text(text)
    assert chat.prompts.locator(".content *").count() == 0
    assert said(chat.fake.chats[0])[-1][1] == text


def test_the_model_is_sent_the_conversation_and_what_happened_in_the_app(chat):
    chat.answered("First", Script(text="Answer one"))
    chat.post("todo", title="Buy milk", profile=chat.profile)
    chat.answered("Second", Script(text="Answer two"))
    (u1, a1), rest = said(chat.fake.chats[1])[:2], said(chat.fake.chats[1])[2:]
    assert (u1, a1) == (("user", "First"), ("assistant", "Answer one"))
    assert "Buy milk" in str(rest) and rest[-1][1].endswith("Second")


def test_events_in_a_row_fold_into_one_line(chat):
    for title in "milk", "bread", "tea":
        chat.post("todo", title=title, profile=chat.profile)
    events = chat.page.locator("[data-role=event]")
    expect(events).to_have_count(1)
    expect(events).to_contain_text("tea")
    expect(events.get_by_text("milk")).to_be_hidden()
    events.locator("summary").click()
    expect(events.get_by_text("milk")).to_be_visible()


def test_all_of_it_is_there_after_a_restart(chat):
    chat.window.allow_errors = OFFLINE
    chat.answered("First", Script(text="**Bold** answer", thinking=["hm"]))
    chat.post("todo", title="milk", profile=chat.profile)
    expect(chat.page.locator("[data-role=event]")).to_be_visible()
    before = chat.state()
    chat.server.restart("kill")
    assert chat.fresh() == before
    chat.page.reload()
    chat.answered("Second")
    assert said(chat.fake.chats[-1])[:2] == [("user", "First"), ("assistant", "**Bold** answer")]


# ---- 1. The queue

def test_prompts_sent_meanwhile_queue_and_are_answered_in_order(chat):
    chat.ask("p1", Script(text="a1 a1", gate=True))
    chat.fake.release(1)
    has_text(chat, "a1")
    chat.fake.script(Script(text="a2"), Script(text="a3"))
    ask(chat.page, "p2")
    ask(chat.page, "p3")
    for n in 1, 2:
        expect(chat.prompts.nth(n)).to_have_attribute("data-status", "queued")
        expect(chat.prompts.nth(n)).to_contain_text(re.compile("line|queue|wait", re.I))
    assert len(chat.fake.chats) == 1
    chat.fake.release()
    wait_done(chat.page)
    texts = chat.page.locator("#msg-list > [data-role] .content").all_inner_texts()
    assert [t.strip() for t in texts] == ["p1", "a1 a1", "p2", "a2", "p3", "a3"]
    assert [said(c)[-1][1] for c in chat.fake.chats] == ["p1", "p2", "p3"]
    assert chat.state() == chat.fresh()


def test_a_queued_prompt_can_be_withdrawn(chat):
    chat.ask("p1", Script(text="a1 a1", gate=True))
    ask(chat.page, "p2")
    ask(chat.page, "p3")
    chat.prompts.nth(1).get_by_role("button", name="Withdraw", exact=True).click()
    expect(chat.prompts).to_have_count(2)
    chat.fake.release()
    wait_done(chat.page)
    assert [said(c)[-1][1] for c in chat.fake.chats] == ["p1", "p3"]
    assert "p2" not in str(chat.fake.chats) + str(chat.fresh())


def test_typing_is_never_locked(chat):
    field = chat.page.locator("#msg")
    chat.ask("p1", Script(text=WORDS, gate=True))
    for n, letter in enumerate("still typing"):
        field.press(letter)
        chat.fake.release(1)
        expect(chat.content).to_contain_text(f"w{n}")
        expect(field).to_be_focused()
    expect(field).to_have_value("still typing")
    expect(chat.page.get_by_role("button", name="Send", exact=True)).to_be_enabled()


def test_an_event_passes_by_a_running_answer(chat):
    chat.ask("p1", Script(text="one two three", gate=True))
    chat.fake.release(1)
    has_text(chat, "one")
    chat.post("todo", title="milk", profile=chat.profile)
    expect(chat.page.locator("[data-role=event]")).to_contain_text("milk")
    chat.fake.release(1)
    has_text(chat, "one two")
    chat.fake.release()
    wait_done(chat.page)
    assert roles(chat.page) == ["user", "assistant", "event"]
    has_text(chat, "one two three")
    assert chat.state() == chat.fresh()


def test_answers_of_two_profiles_never_interleave(chat):
    other = chat.another()
    chat.ask("mine", Script(text="aa " * 20, gate=True))
    chat.fake.script(Script(text="bb " * 20))
    ask(other.page, "yours")
    expect(other.prompts).to_have_attribute("data-status", "queued")
    for _ in range(4):
        chat.fake.release(5)
        chat.post("todo", title="milk", profile=other.profile)
    chat.fake.release()
    wait_done(chat.page)
    wait_done(other.page)
    assert set(chat.content.inner_text().split()) == {"aa"}
    assert set(other.content.inner_text().split()) == {"bb"}
    assert "mine" not in str(chat.fake.chats[1])


# ---- 2. Tabs

def test_a_second_tab_and_a_reload_in_mid_stream_show_the_same_and_go_on(chat):
    chat.ask("p1", Script(text="# Head\n\none two **three** four\n\n- five\n- six seven", gate=True))
    chat.fake.release(5)
    expect(chat.content).to_contain_text("three")
    second = chat.open()
    chat.page.reload()
    for page in chat.page, second:
        expect(page.locator("[data-role=assistant] .content")).to_contain_text("three")
    assert chat.state() == chat.state(second)
    chat.fake.release(4)
    for page in chat.page, second:
        expect(page.locator("[data-role=assistant] .content")).to_contain_text("five")
    chat.fake.release()
    for page in chat.page, second:
        wait_done(page)
    assert chat.state() == chat.state(second) == chat.fresh()


def test_a_closed_tab_ends_nothing(chat):
    chat.ask("p1", Script(text="one two three", gate=True))
    chat.fake.release(1)
    has_text(chat, "one")
    chat.page.goto("about:blank")
    chat.fake.release()
    until(chat.idle)
    assert not chat.fake.hangups
    chat.page.goto(chat.url)
    has_text(chat, "one two three")


def test_a_lost_connection_comes_back_with_exactly_what_was_missed(chat, wire):
    page, fake = chat.page, chat.fake
    chat.answered("p0", Script(text="a0"))
    chat.ask("p1", Script(text="one two three\n\nfour **five** six", gate=True))
    fake.release(2)
    has_text(chat, "one two")
    chat.prompts.first.evaluate("e => e.mine = 1")
    other = chat.open()
    wire.cut()
    expect(page.locator("#offline")).to_be_visible()
    expect(page.locator("#offline")).to_contain_text(re.compile("connection|offline", re.I))
    fake.release(2)
    chat.post("todo", title="While you slept", profile=chat.profile)
    expect(other.locator("[data-role=assistant] .content").last).to_contain_text("four")
    wire.mend()
    expect(page.locator("#offline")).to_be_hidden()
    expect(chat.content).to_contain_text("four")
    expect(page.locator("#todo-list li")).to_have_count(1)
    assert chat.state(page) == chat.state(other)
    fake.release()
    wait_done(page)
    wait_done(other)
    assert chat.state(page) == chat.state(other) == chat.fresh()
    assert chat.prompts.first.evaluate("e => e.mine") == 1, "what was there was redrawn"


def test_an_answer_that_ended_and_messages_that_went_while_away(chat, wire):
    chat.answered("p0", Script(text="a0"))
    chat.ask("p1", Script(text="one two three", gate=True))
    chat.fake.release(1)
    has_text(chat, "one")
    other = chat.open()
    wire.cut()
    chat.fake.release()
    wait_done(other)
    other.locator("[data-role=user]").first.get_by_role("button", name="Delete").click()
    expect(other.locator("[data-role=user]")).to_have_count(1)
    ask(other, "p2")
    wait_done(other)
    wire.mend()
    expect(chat.answers).to_have_count(3)
    assert chat.state() == chat.state(other)


def test_a_restarted_server_finds_its_pages_again(chat):
    chat.window.allow_errors = OFFLINE
    chat.answered("p0", Script(text="a0"))
    chat.ask("p1", Script(text="one two three", gate=True))
    chat.fake.release(1)
    has_text(chat, "one")
    chat.server.stop()
    expect(chat.page.locator("#offline")).to_be_visible()
    chat.server.start()
    expect(chat.page.locator("#offline")).to_be_hidden()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    assert chat.state() == chat.fresh()
    chat.answered("p2", Script(text="a2"))
    has_text(chat, "a2")
    assert chat.state() == chat.fresh()


def test_a_connection_that_comes_back_does_not_touch_what_somebody_edits(chat, wire):
    new = chat.page.get_by_placeholder("What needs to be done?")
    for n, title in enumerate(["milk", "bread"], 1):
        new.fill(title)
        new.press("Enter")
        expect(chat.page.locator("#todo-list li")).to_have_count(n)
    chat.page.locator("#todo-list li", has_text="milk").locator(".title").dblclick()
    edit = chat.page.locator("#todo-list li input:not([type=checkbox])")
    edit.fill("oat mi")
    wire.cut()
    expect(chat.page.locator("#offline")).to_be_visible()
    chat.post("todo", title="tea", profile=chat.profile)
    wire.mend()
    expect(chat.page.locator("#offline")).to_be_hidden()
    expect(chat.page.locator("[data-role=event]")).to_contain_text("tea")
    expect(edit).to_have_value("oat mi")
    expect(edit).to_be_focused()


def test_what_was_deleted_while_a_page_was_away_is_gone_even_after_a_restart(chat, wire):
    chat.answered("secret")
    wire.cut()
    chat.post("delete_message", id=chat.rows("role = 'user'")[0]["id"])
    chat.server.restart()
    wire.mend()
    expect(chat.page.locator("#offline")).to_be_hidden()
    expect(chat.prompts).to_have_count(0)


def test_what_came_after_a_restart_reaches_a_page_that_had_seen_much(chat, wire):
    todo = int(re.search(r"todo-(\d+)", chat.post("todo", title="milk", profile=chat.profile))[1])
    for n in range(20):                                              # changes that leave no message behind
        chat.post("rename", kind="todo", id=todo, name=f"milk {n}")
    chat.page.reload()
    expect(chat.page.locator("#offline")).to_be_hidden()
    wire.cut()
    chat.server.restart()
    chat.post("todo", title="bread", profile=chat.profile)
    wire.mend()
    expect(chat.page.locator("[data-role=event]")).to_contain_text("bread")


def test_a_prompt_typed_while_offline_is_sent_once_when_the_connection_is_back(chat, wire):
    wire.cut()
    expect(chat.page.locator("#offline")).to_be_visible()
    chat.page.locator("#msg").fill("from the tunnel")
    chat.page.locator("#msg").press("Enter")
    expect(chat.page.locator("#msg")).to_have_value("from the tunnel")
    wire.mend()
    wait_done(chat.page)
    expect(chat.page.locator("#msg")).to_have_value("")
    assert [r["content"] for r in chat.rows("role = 'user'")] == ["from the tunnel"]


def test_a_prompt_lost_on_the_wire_is_in_the_field_again(chat, wire):
    chat.answered("p0")
    wire.deaf = {"app"}
    chat.page.locator("#msg").fill("into the void")
    chat.page.locator("#msg").press("Enter")
    expect(chat.page.locator("#msg")).to_have_value("")
    wire.cut()
    wire.mend()
    expect(chat.page.locator("#msg")).to_have_value("into the void")


def test_a_prompt_that_did_arrive_is_not_offered_again(chat, wire):
    chat.answered("p0")
    wire.deaf = {"page"}
    chat.page.locator("#msg").fill("only once")
    chat.page.locator("#msg").press("Enter")
    until(lambda: len(chat.rows("role = 'user'")) == 2)
    wire.cut()
    wire.mend()
    expect(chat.prompts).to_have_count(2)
    wait_done(chat.page)
    expect(chat.page.locator("#msg")).to_have_value("")


def test_a_tab_that_stops_reading_holds_up_nobody(chat):
    with socket.create_connection(("127.0.0.1", chat.server.port)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(f"GET /ws?profile={chat.profile} HTTP/1.1\r\nHost: 127.0.0.1:{chat.server.port}\r\n"
                     "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
        assert b" 101 " in deaf.recv(4096)
        before = psutil.Process(chat.server.pid).memory_info().rss
        for n in range(4):
            chat.answered(f"p{n}", Script(text="word " * 4000))
            assert len(chat.content.inner_text().split()) == 4000
        grown = psutil.Process(chat.server.pid).memory_info().rss - before
    assert grown < 10e6, f"{grown / 1e6:.1f} MB"


# ---- 3. Streams that survive

def test_a_killed_server_keeps_what_had_arrived_and_goes_on_from_there(chat):
    chat.window.allow_errors = OFFLINE
    chat.ask("Count", Script(text="one two three four", gate=True))
    chat.fake.release(2)
    until(lambda: chat.rows("content = 'one two'"), 3, "saving the answer as it grows")
    ask(chat.page, "and then?")
    chat.server.restart("kill")
    expect(chat.answers).to_have_count(1)
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    has_text(chat, "one two")
    chat.fake.script(Script(text=" three four"))
    chat.button("Continue").click()
    expect(chat.answer).to_have_attribute("data-status", "done")
    has_text(chat, "one two three four")
    assert ("assistant", "one two") in said(chat.fake.chats[-1])
    assert ("user", "and then?") not in said(chat.fake.chats[-1])

    # The prompt that never had its turn is still there, and has it now.
    expect(chat.prompts.last).to_have_attribute("data-status", "stopped")
    chat.prompts.last.get_by_role("button", name="Try again", exact=True).click()
    expect(chat.answers).to_have_count(2)
    wait_done(chat.page)
    assert roles(chat.page) == ["user", "assistant", "user", "assistant"]
    assert said(chat.fake.chats[-1])[-1] == ("user", "and then?")
    expect(chat.prompts.last).to_have_attribute("data-status", "done")
    assert chat.state() == chat.fresh()


def test_an_answer_is_saved_about_once_a_second(chat):
    chat.ask("p1", Script(text=" ".join(map(str, range(150))), rate=60))
    seen = set()
    until(lambda: seen.add(chat.rows("role = 'assistant'")[0]["content"]) or chat.idle())
    assert 2 <= len(seen - {""}) <= 5, "saved too seldom or too often"


# ---- 4. Stop, and what can be done with a message

def test_stop_stops_the_model_itself_and_keeps_the_text(chat):
    chat.ask("p1", Script(text="one two three", gate=True))
    chat.fake.release(2)
    has_text(chat, "one two")
    ask(chat.page, "p2")
    chat.page.locator("#stop-btn").click()
    chat.fake.wait_hangup(timeout=1)
    expect(chat.answers.first).to_have_attribute("data-status", "stopped")
    expect(chat.answers.first.locator(".content")).to_have_text("one two")
    expect(chat.answers).to_have_count(2)                            # and the queue goes on
    wait_done(chat.page)
    assert said(chat.fake.chats[1]) == [("user", "p1"), ("assistant", "one two"), ("user", "p2")]
    expect(chat.page.locator("#stop-btn")).to_be_hidden()


def test_stop_works_before_the_first_token(chat):
    chat.ask("p1", Script(text="one", load_gate=True))
    chat.page.locator("#stop-btn").click()
    chat.fake.wait_hangup()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    chat.button("Try again").click()
    chat.fake.load()
    expect(chat.answer).to_have_attribute("data-status", "done")


def test_stop_works_while_a_busy_server_is_asked_again(chat):
    chat.ask("p1", Script(text="one", busy=99))
    expect(chat.answer).to_contain_text(re.compile("busy", re.I))
    chat.page.locator("#stop-btn").click()
    expect(chat.answer).to_have_attribute("data-status", "stopped")
    chat.fake.script(Script(text="two"))


def test_any_tab_can_stop_an_answer(chat):
    other = chat.open()
    chat.ask("p1", Script(text="one two", gate=True))
    chat.fake.release(1)
    expect(other.locator("[data-role=assistant] .content")).to_have_text("one")
    other.locator("#stop-btn").click()                               # any tab can stop it
    for page in chat.page, other:
        expect(page.locator("[data-role=assistant]")).to_have_attribute("data-status", "stopped")
    assert chat.state() == chat.state(other)


def test_regenerate_replaces_the_last_answer_in_its_place(chat):
    chat.answered("p1", Script(text="a1"))
    chat.answered("p2", Script(text="first try", thinking=["hm"]))
    expect(chat.page.get_by_role("button", name="Regenerate", exact=True)).to_have_count(1)
    chat.fake.script(Script(text="second try", gate=True))
    chat.button("Regenerate").click()
    chat.fake.wait_chat(3)
    chat.fake.release(1)
    has_text(chat, "second")
    chat.fake.release()
    wait_done(chat.page)
    has_text(chat, "second try")
    assert roles(chat.page) == ["user", "assistant"] * 2
    assert said(chat.fake.chats[2]) == [("user", "p1"), ("assistant", "a1"), ("user", "p2")]
    assert chat.state() == chat.fresh()


def test_delete_and_undo(chat):
    other = chat.open()
    chat.answered("secret", Script(text="a1"))
    before = chat.state()
    chat.prompts.get_by_role("button", name=re.compile("^Delete")).click()
    for page in chat.page, other:
        expect(page.locator("[data-role=user]")).to_have_count(0)
    chat.page.get_by_role("button", name="Undo", exact=True).click()
    expect(other.locator("[data-role=user]")).to_have_count(1)
    expect(chat.prompts).to_have_count(1)
    assert chat.state() == chat.state(other) == before
    chat.prompts.get_by_role("button", name=re.compile("^Delete")).click()
    expect(chat.prompts).to_have_count(0)
    chat.answered("p2")
    assert "secret" not in str(chat.fake.chats[-1]) + str(chat.fresh())


def test_undo_is_offered_also_when_the_answer_comes_after_the_change(chat):
    chat.answered("p1")

    def late(route):
        reply = route.fetch()
        expect(chat.prompts).to_have_count(0)                           # the socket was quicker
        route.fulfill(response=reply)
    chat.page.route("**/delete_message*", late)
    chat.prompts.get_by_role("button", name=re.compile("^Delete")).click()
    chat.page.get_by_role("button", name="Undo", exact=True).click()
    expect(chat.prompts).to_have_count(1)


def test_thoughts_and_answer_in_one_go_are_both_there(chat):
    for n in range(3):
        chat.answered(f"p{n}", Script(text="Yes.", thinking=["hm"]))
        expect(chat.answer.locator(".thinking > div")).to_have_text("hm")
        has_text(chat, "Yes.")


def test_copy_a_message_and_a_code_block(chat):
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    source = "Run **this**:\n\n```python\nif x < 1:\n    print('a & b')\n```"
    answer = chat.answered("Write code", Script(text=source))

    def clipboard():
        return chat.page.evaluate("navigator.clipboard.readText()")
    answer.locator("figure").get_by_role("button", name="Copy", exact=True).click()
    until(lambda: clipboard().strip() == "if x < 1:\n    print('a & b')")
    answer.locator("footer").get_by_role("button", name="Copy", exact=True).click()
    until(lambda: clipboard() == source)
    chat.prompts.get_by_role("button", name="Copy", exact=True).click()
    until(lambda: clipboard() == "Write code")


def test_buttons_and_focus_outlive_the_stream_around_them(chat):
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("p1", Script(text="```\nx\n```\n\n" + WORDS, gate=True))
    chat.fake.release(6)
    expect(chat.content).to_contain_text("w2")
    copy = chat.content.get_by_role("button", name="Copy", exact=True)
    copy.focus()
    chat.fake.release(9)
    expect(chat.content).to_contain_text("w9")
    expect(copy).to_be_focused()
    with chat.page.expect_event("console", lambda m: m.text == "clicked"):
        copy.evaluate("b => b.addEventListener('click', () => console.log('clicked'))")
        copy.hover()
        chat.page.mouse.down()
        chat.fake.release(3)
        expect(chat.content).to_contain_text("w12")
        chat.page.mouse.up()


# ---- 6. What the model is doing

def test_a_cold_model_does_not_look_like_a_hang(chat):
    chat.fake.default.load_gate = True                                  # for the preload while one types
    chat.ask("p1", Script(text="one two", load_gate=True, gate=True))
    expect(chat.answer).to_contain_text("Loading llama3.2")
    expect(chat.page.locator("#stop-btn")).to_be_visible()
    chat.fake.load()
    expect(chat.answer).to_contain_text("Reading the prompt")
    chat.fake.release(1)
    has_text(chat, "one")
    expect(chat.answer.get_by_text("Reading the prompt")).to_be_hidden()


def test_thinking_is_folded_away_beside_the_answer_with_its_time(chat):
    chat.ask("p1", Script(text="So: yes.", thinking=["Let me ", "see <b>", "this"], gate=True))
    chat.fake.release(2)
    thoughts = chat.answer.locator("details.thinking")
    expect(thoughts.locator("div")).to_have_text("Let me see <b>")
    expect(chat.open().locator("details.thinking div")).to_have_text("Let me see <b>")    # another tab has every thought
    expect(chat.answer.locator(".note")).not_to_contain_text(re.compile("Waiting|Reading"))
    expect(thoughts).not_to_have_attribute("open", "")
    expect(thoughts.locator("summary")).to_contain_text("Thinking")
    thoughts.locator("summary").click()
    chat.fake.release(1)
    expect(thoughts.locator("div")).to_have_text("Let me see <b>this")
    expect(thoughts).to_have_attribute("open", "")                      # what one opens stays open
    chat.fake.release()
    wait_done(chat.page)
    has_text(chat, "So: yes.")
    expect(thoughts).to_have_attribute("open", "")
    expect(thoughts.locator("summary")).to_contain_text(re.compile(r"\d s"))
    assert "Let me" not in str(said((chat.answered("p2"), chat.fake.chats[-1])[1]))
    assert chat.state() == chat.fresh()


def test_one_quiet_line_says_which_model_how_fast_and_how_long(chat):
    answer = chat.answered("p1", Script(text="one two three"))
    expect(answer.locator(".figures")).to_have_text(re.compile(r"llama3\.2.* 50 tokens/s .*\d\.\d s"))


def test_how_full_the_context_is(chat):
    answer = chat.answered("p1", Script(text="one two three four", prompt_eval_count=1020))
    expect(answer.locator(".figures")).to_contain_text("25%")             # of the 4096 that are in force


def test_what_no_longer_fits_is_cut_at_a_message_border_with_a_line_that_shows_it(chat):
    chat.post("settings", profile=chat.profile, context=512)
    for n in range(3):
        expect(chat.page.locator("#memory")).to_be_hidden()
        chat.answered(f"prompt {n} " + "word " * 90, Script(text=f"answer {n} " + "word " * 20))
    expect(chat.page.locator("#memory")).to_be_visible()
    sent = [text for _, text in said(chat.fake.chats[-1])]
    assert len(sent) > 1 and "prompt 0" not in str(sent)
    assert all(re.fullmatch(r"prompt \d (word ?){90}|answer \d (word ?){20}", text) for text in sent)
    below = chat.page.locator("#memory ~ [data-role] .content").all_inner_texts()
    assert [t.strip() for t in below] == [t.strip() for t in sent] + [chat.content.inner_text().strip()]
    assert all(c["truncate"] is False and c["options"]["num_ctx"] == 512 for c in chat.fake.chats)
    assert chat.state() == chat.fresh()


# ---- 7. Models

def test_the_picker_lists_models_with_their_size_and_the_choice_is_kept_per_profile(chat):
    picker = chat.page.locator("select#model")
    expect(picker.locator("option")).to_have_count(4)
    expect(picker).to_have_value("llama3.2:latest")                     # the best llama by version
    expect(picker.locator("option[value='qwen3:4b']")).to_contain_text(re.compile(r"qwen3:4b.*2\.5 GB"))
    with chat.page.expect_response(lambda r: r.request.method == "POST"):
        picker.select_option("gemma3:1b")
    chat.page.reload()
    expect(chat.page.locator("select#model")).to_have_value("gemma3:1b")
    chat.answered("p1")
    assert chat.fake.chats[-1]["model"] == "gemma3:1b"
    other = chat.another()
    other.answered("p1")
    assert chat.fake.chats[-1]["model"] == "llama3.2:latest"


def test_a_model_set_by_the_environment_is_taken(app, fake, window):
    server = app(env={"OLLAMA_HOST": fake.url, "OLLAMA_MODEL": "qwen3:4b"})
    page = window.open(server.url)
    expect(page.locator("select#model")).to_have_value("qwen3:4b")
    ask(page, "Hi")
    assert fake.wait_chat()["model"] == "qwen3:4b"
    wait_done(page)


@pytest.fixture
def missing(chat):
    """A profile whose chosen model is gone from the machine, but can be had again."""
    chat.post("choose_model", profile=chat.profile, model="gemma3:1b")
    chat.fake.models[:] = [m for m in chat.fake.models if m["name"] != "gemma3:1b"]
    chat.fake.library["gemma3:1b"] = Pull(layers={"a" * 64: 900, "b" * 64: 100}, steps=9, gate=True)
    answer = chat.answered("p1")
    expect(answer.locator(".error")).to_contain_text("ollama pull gemma3:1b")
    return chat


def test_a_missing_model_is_pulled_with_one_bar_over_all_layers(missing):
    missing.button("Download gemma3:1b").click()
    job = missing.page.locator("[data-role=job]")
    missing.fake.wait_request("/api/pull")
    bars = []
    for n in range(1, 19):
        missing.fake.release(1)
        if n == 5:
            expect(job.locator("progress")).to_have_attribute("value", re.compile("^(50|55)"))   # 500 of 900 or of 1,000
        bars.append(float(job.locator("progress").get_attribute("value")))
    missing.fake.release()
    expect(job).to_have_attribute("data-status", "done")
    assert bars == sorted(bars), "the bar went backwards"
    expect(missing.answer).to_have_attribute("data-status", "done")       # and the prompt is answered
    assert missing.fake.chats[-1]["model"] == "gemma3:1b"
    expect(missing.page.locator("select#model")).to_have_value("gemma3:1b")


def test_a_pull_can_be_cancelled_and_resumed(missing):
    missing.button("Download gemma3:1b").click()
    job = missing.page.locator("[data-role=job]")
    missing.fake.release(4)
    expect(job.locator("progress")).to_have_attribute("value", re.compile("^4"))
    job.get_by_role("button", name="Cancel", exact=True).click()
    assert missing.fake.wait_hangup().path == "/api/pull"
    expect(job).to_have_attribute("data-status", "stopped")
    job.get_by_role("button", name="Download gemma3:1b").click()
    missing.fake.wait_request("/api/pull", n=2)
    bar = missing.page.locator("[data-role=job][data-status=streaming] progress")
    expect(bar).to_have_attribute("value", re.compile("^4"))              # not from the beginning
    missing.fake.release()
    expect(missing.page.locator("[data-role=job]").last).to_have_attribute("data-status", "done")
    until(lambda: any(m["name"] == "gemma3:1b" for m in missing.fake.models))


def test_the_model_is_loaded_while_one_types(chat):
    chat.fake.script(Script(text="one", load_gate=True))
    chat.page.locator("#msg").press("H")
    preload = chat.fake.wait_request("/api/chat")
    assert (preload.body["model"], preload.body["messages"]) == ("llama3.2:latest", [])
    chat.fake.load()
    chat.page.locator("#msg").press_sequentially("i there")
    chat.page.locator("#msg").press("Enter")
    wait_done(chat.page)
    assert len(chat.fake.chats) == 1 and [r.path for r in chat.fake.requests].count("/api/chat") == 2


# ---- 8. Errors

ERRORS = {
    "not running": (None, r"not running.*`?ollama serve"),
    "out of memory": (Script(status=500, error="model requires more system memory (5.6 GiB) than is available (3.1 GiB)"),
                      r"memory.*smaller model"),
    "free text": (Script(status=500, error="llama runner process has terminated: exit status 2"),
                  r"runner process has terminated"),
    "JSON in JSON": (Script(status=500, error='{"error": {"message": "unexpected EOF in vocabulary"}}'),
                     r"^[^{}]*unexpected EOF in vocabulary[^{}]*$"),
    "error in mid-stream": (Script(text="one two three", error="an illegal memory access? no: boom", error_after=2), "boom"),
    "cut in mid-stream": (Script(text="one two three", cut_after=2), r"broke off"),
    "no done": (Script(text="one two", no_done=True), r"broke off before its end"),
    "no protocol": (Script(garbage=b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n<h1>nginx</h1>\r\n"),
                    r"does not speak|not Ollama"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_has_a_sentence_and_try_again(chat, name):
    script, sentence = ERRORS[name]
    if script:
        chat.fake.script(script)
    else:
        chat.fake.stop()
    ask(chat.page, "Precious prompt")
    answer = wait_done(chat.page)
    expect(answer).to_have_attribute("data-status", "error")
    expect(answer.locator(".error")).to_have_text(re.compile(sentence))
    kept = "one two" if "one" in (script and script.text or "") else ""
    expect(chat.content).to_have_text(kept)
    expect(chat.button("Continue")).to_have_count(1 if kept else 0)
    expect(chat.prompts.locator(".content")).to_have_text("Precious prompt")
    if not script:
        chat.fake.start()
    chat.fake.script(Script(text="Now it works"))
    chat.button("Try again").click()
    expect(chat.answer).to_have_attribute("data-status", "done")
    has_text(chat, "Now it works")
    expect(chat.answer.locator(".error")).to_have_count(0)
    assert said(chat.fake.chats[-1]) == [("user", "Precious prompt")]
    assert chat.state() == chat.fresh()


def test_the_sentences_of_errors_differ():
    assert len({pattern for _, pattern in ERRORS.values()}) == len(ERRORS)


def test_what_is_not_an_ollama_is_called_so(chat):
    chat.fake.impostor = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n<html/>"
    answer = chat.answered("p1")
    expect(answer.locator(".error")).to_contain_text(re.compile(r"not Ollama.*OLLAMA_HOST"))
    expect(chat.button("Try again")).to_be_visible()


def test_a_busy_server_is_asked_again_visibly(chat):
    chat.page.evaluate("""() => { window.said = new Set(); new MutationObserver(() => {
      for (const n of document.querySelectorAll('.note')) said.add(n.textContent)
    }).observe(document.querySelector('#msg-list'), {subtree: true, childList: true}) }""")
    chat.answered("p1", Script(text="at last", busy=1))
    assert re.search("busy.*again", " ".join(chat.page.evaluate("[...said]")), re.I)
    expect(chat.answer.get_by_text("busy")).to_have_count(0)
    has_text(chat, "at last")
    assert len(chat.fake.chats) == 2


def test_a_server_that_stays_busy_is_given_up(chat):
    chat.ask("p1", Script(text="at last", busy=99))
    answer = wait_done(chat.page, 20_000)
    expect(answer.locator(".error")).to_contain_text(re.compile("busy.*try again", re.I))
    assert 3 <= len(chat.fake.chats) <= 5
    chat.fake._scripts.clear()
    chat.button("Try again").click()
    expect(chat.answer).to_have_attribute("data-status", "done")


def test_a_missing_model_is_named_with_what_to_do(chat):
    chat.fake.script(Script(status=404, error="model 'llama3.2:latest' not found"))
    answer = chat.answered("p1")
    expect(answer.locator(".error")).to_contain_text("ollama pull llama3.2:latest")
    expect(chat.button("Try again")).to_be_visible()


def test_an_openai_style_server_and_its_errors(app, fake, window):
    fake.api_key = "secret"
    server = app(env={"OPENAI_BASE_URL": f"{fake.url}/v1", "OPENAI_API_KEY": "secret"})
    page = window.open(server.url)
    fake.script(Script(text="Hello there", thinking=["hm"]),
                *(Script(status=400, error="unsupported parameter: top_k") for _ in range(2)),
                Script(text="one two", error="GPU on fire", error_after=1))
    ask(page, "p1")
    expect(wait_done(page).locator(".content")).to_have_text("Hello there")
    expect(page.locator(".thinking div")).to_have_text("hm")
    for text in "unsupported parameter: top_k", "GPU on fire":
        ask(page, "p2")
        expect(wait_done(page).locator(".error")).to_have_text(re.compile(rf"^[^{{}}]*{text}[^{{}}]*$"))
    expect(wait_done(page).locator(".content")).to_have_text("one")
    fake.api_key = "changed"
    ask(page, "p3")
    expect(wait_done(page).locator(".error")).to_contain_text("OPENAI_API_KEY")


def test_when_nothing_answers_the_chat_says_what_to_type_and_recovers_by_itself(app, fake, window):
    server = app(env={"OLLAMA_HOST": fake.url})
    fake.stop()
    page = window.open(server.url)
    ask(page, "Anybody?")
    expect(wait_done(page).locator(".error")).to_contain_text("ollama serve")
    fake.start()
    expect(page.locator("select#model option")).to_have_count(4)        # nobody has touched anything
    ask(page, "Now?")
    expect(wait_done(page)).to_have_attribute("data-status", "done")


# ---- 9. Reading

LONG = "\n\n".join(f"Paragraph {n}. " + "word " * 60 for n in range(12))
TOP = "() => document.querySelector('#msg-list').scrollTop"
BELOW = "() => (l => l.scrollHeight - l.scrollTop - l.clientHeight)(document.querySelector('#msg-list'))"


def scroll(page, dy):
    """Turn the wheel over the timeline, as a reader does, until it has moved."""
    page.locator("#msg-list").hover()
    before = page.evaluate(TOP)
    page.mouse.wheel(0, dy)
    page.wait_for_function(f"before => ({TOP})() !== before", arg=before)


def test_the_view_follows_the_stream_only_while_the_reader_is_at_its_end(chat):
    page, fake = chat.page, chat.fake
    chat.answered("p0", Script(text=LONG))
    chat.ask("p1", Script(text=LONG.replace("word", "more"), gate=True))
    fake.release(130)
    expect(chat.content).to_contain_text("Paragraph 2")
    page.wait_for_function(f"() => ({BELOW})() < 60")
    expect(page.locator("#more")).to_be_hidden()
    scroll(page, -600)
    expect(page.locator("#msg-list")).to_be_visible()
    top = page.evaluate(TOP)
    fake.release(200)
    expect(chat.content).to_contain_text("Paragraph 5")
    expect(page.locator("#more")).to_be_visible()
    assert abs(page.evaluate(TOP) - top) < 1, "the view was dragged"
    page.locator("#more").click()
    page.wait_for_function(f"() => ({BELOW})() < 60")
    expect(page.locator("#more")).to_be_hidden()
    fake.release()
    wait_done(page)
    page.wait_for_function(f"() => ({BELOW})() < 60")                    # it follows again


def test_focus_and_selection_stay_where_they_are(chat):
    page = chat.page
    chat.answered("p0", Script(text="Select these words please"))
    page.evaluate("() => getSelection().selectAllChildren(document.querySelector('[data-role=assistant] .content p'))")
    page.get_by_placeholder("What needs to be done?").focus()
    page.evaluate("() => getSelection().selectAllChildren(document.querySelector('[data-role=assistant] .content p'))")
    focused = page.evaluate("() => document.activeElement.outerHTML")
    other = chat.open()
    chat.fake.script(Script(text=WORDS))
    ask(other, "from elsewhere")
    wait_done(page)
    expect(chat.answers).to_have_count(2)
    assert page.evaluate("() => String(getSelection())").strip() == "Select these words please"
    assert page.evaluate("() => document.activeElement.outerHTML") == focused


@pytest.fixture(scope="module")
def two_thousand():
    """An app with 2,000 messages."""
    with FakeOllama() as fake:
        server = Server({"OLLAMA_HOST": fake.url}).start()
        httpx.post(f"{server.url}/todo", data={"title": "milk"}, trust_env=False)
        server.stop()
        with contextlib.closing(sqlite3.connect(server.db)) as db, db:
            db.row_factory = sqlite3.Row
            row = dict(db.execute("select * from message").fetchone())   # whatever its columns are
            rows = [row | {"id": n, "rev": n, "role": "user" if n % 2 else "assistant",
                           "content": f"Message {n}\n\n" + "text " * 30} for n in range(1, 2001)]
            db.execute("delete from message")
            db.executemany(f"insert into message({', '.join(row)}) values ({', '.join(':' + k for k in row)})", rows)
        yield server.start()
        server.remove()


@pytest.fixture
def long_timeline(two_thousand):
    Server.known.append(two_thousand)
    return two_thousand


def test_a_timeline_of_2000_messages_opens_light_and_grows_upwards(long_timeline, window):
    page = window.open(long_timeline.url)
    messages = page.locator("#msg-list > [id^=msg-][data-role]")
    expect(messages).to_have_count(50)
    expect(messages.last).to_contain_text("Message 2000")
    page.wait_for_function(f"() => ({BELOW})() < 60")
    for shown in 100, 150:
        first = messages.first.get_attribute("id")
        page.evaluate("() => document.querySelector('#msg-list').scrollTop = 0")
        place = page.locator(f"#{first}").bounding_box()["y"]
        expect(messages).to_have_count(shown)
        assert abs(page.locator(f"#{first}").bounding_box()["y"] - place) < 30, "the reader lost the place"
    numbers = [int(x.split()[1]) for x in messages.locator(".content").all_inner_texts()]
    assert numbers == list(range(1851, 2001))
    ask(page, "Hi")
    wait_done(page)
    expect(messages.last).to_have_attribute("data-status", "done")


def test_a_long_timeline_can_be_read_to_its_beginning(long_timeline):
    seen, address = [], "/"
    with httpx.Client(base_url=long_timeline.url, trust_env=False) as web:
        while address:
            text = web.get(address).text
            seen = [int(n) for n in re.findall(r'id="msg-(\d+)"', text)] + seen
            older = re.search(r'hx-get="(/older_messages[^"]*)"', text)
            address = older and older[1].replace("&amp;", "&")
    assert seen[:2000] == list(range(1, 2001))


def test_an_old_message_that_changes_does_not_come_onto_a_page_that_does_not_show_it(long_timeline, window):
    page = window.open(long_timeline.url)
    httpx.post(f"{long_timeline.url}/delete_message", data={"id": 5}, trust_env=False)
    httpx.post(f"{long_timeline.url}/restore_message", data={"id": 5}, trust_env=False)
    httpx.post(f"{long_timeline.url}/todo", data={"title": "milk"}, trust_env=False)
    expect(page.locator("#msg-list")).to_contain_text("milk")
    assert page.locator("#msg-5").count() == 0


# ---- 10. The profile's voice

def test_voice_temperature_and_context_are_set_per_profile(chat):
    chat.answered("p0")
    assert not {"temperature", "num_ctx"} & set(chat.fake.chats[0].get("options") or {})
    default = chat.fake.chats[0]["messages"][0]["content"]
    panel = chat.page.get_by_role("group").filter(has=chat.page.get_by_label("System prompt"))
    panel.locator("summary").click()
    expect(panel.get_by_label("System prompt")).to_have_attribute("placeholder", default)
    for label, value in ("System prompt", "You are a pirate."), ("Temperature", "0.3"), ("Context", "8192"):
        with chat.page.expect_response(lambda r: r.request.method == "POST" and r.ok):
            panel.get_by_label(label).fill(value)
            panel.get_by_label(label).press("Tab")
    chat.page.reload()
    chat.answered("p1")
    body = chat.fake.chats[-1]
    assert body["messages"][0] == {"role": "system", "content": "You are a pirate."}
    assert (body["options"]["temperature"], body["options"]["num_ctx"]) == (0.3, 8192)
    panel.locator("summary").click()
    expect(panel.get_by_label("System prompt")).to_have_value("You are a pirate.")
    chat.another().answered("p1")
    assert chat.fake.chats[-1]["messages"][0]["content"] == default


@pytest.mark.parametrize(("label", "bad"), [("Temperature", "hot"), ("Temperature", "9"), ("Context", "lots")])
def test_a_bad_setting_is_told_and_not_kept(chat, label, bad):
    chat.window.allow_errors = "400"
    panel = chat.page.get_by_role("group").filter(has=chat.page.get_by_label("System prompt"))
    panel.locator("summary").click()
    panel.get_by_label(label).fill(bad)
    panel.get_by_label(label).press("Tab")
    expect(chat.page.locator("#toast")).to_contain_text(label.lower())
    chat.answered("p1")
    assert bad not in str(chat.fake.chats[-1])


def test_commentary_is_off_until_switched_on_and_delays_nothing(chat):
    new = chat.page.get_by_placeholder("What needs to be done?")
    new.fill("milk")
    new.press("Enter")
    expect(chat.page.locator("#todo-list li")).to_have_count(1)
    panel = chat.page.get_by_role("group").filter(has=chat.page.get_by_label("System prompt"))
    panel.locator("summary").click()
    panel.get_by_label("System prompt").fill("You are sassy.")
    with chat.page.expect_response(lambda r: "settings" in r.url):
        panel.get_by_label(re.compile("Comment")).check()
    panel.locator("summary").click()
    assert not chat.fake.chats
    chat.fake.script(Script(text="Tea, how posh.", load_gate=True))
    new.fill("tea")
    new.press("Enter")
    expect(chat.page.locator("#todo-list li")).to_have_count(2)           # while the model has not said a word
    body = chat.fake.wait_chat()
    assert body["messages"][0]["content"].startswith("You are sassy.")
    assert "tea" in body["messages"][-1]["content"]
    chat.fake.load()
    has_text(chat, "Tea, how posh.")
    wait_done(chat.page)
    chat.answered("p1")
    *past, remark, prompt = said(chat.fake.chats[-1])
    assert (remark, prompt) == (("assistant", "Tea, how posh."), ("user", "p1"))
    assert "tea" in past[-1][1], "the model cannot know what its remark was about"
    assert chat.state() == chat.fresh()


def test_the_timeline_as_a_markdown_file(chat):
    chat.answered("What is *this*?", Script(text="# Head\n\n```py\nx < 1\n```"))
    chat.post("todo", title="Buy milk", profile=chat.profile)
    chat.page.get_by_role("group").filter(has=chat.page.get_by_label("System prompt")).locator("summary").click()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("link", name=re.compile("Markdown")).click()
    assert download.value.suggested_filename.endswith(".md")
    text = download.value.path().read_text()
    places = [text.index(part) for part in ("What is *this*?", "# Head\n\n```py\nx < 1\n```", "Buy milk")]
    assert places == sorted(places)


# ---- The real thing

def test_the_real_model_answers_token_by_token_and_survives_kill_9(app, window):
    window.allow_errors = OFFLINE
    server = app(builtin=True)
    page = window.open(server.url)
    page.evaluate("""() => { window.grown = new Set(); new MutationObserver(() => {
      const c = [...document.querySelectorAll('[data-role=assistant] .content')].at(-1)
      if (c?.textContent) grown.add(c.textContent.length)
    }).observe(document.body, {subtree: true, childList: true, characterData: true}) }""")
    ask(page, "Tell me three things about Paris, the capital of France.")
    answer = page.locator("[data-role=assistant]")
    expect(answer.locator(".content")).to_have_text(re.compile(r"\w[\s\S]{20}"), timeout=60_000)   # whatever it knows of France
    page.evaluate("() => document.querySelector('#stop-btn').click()")    # a small model may ramble on
    wait_done(page, 60_000)
    assert page.evaluate("() => grown.size") > 3
    before = answer.inner_html()
    server.restart("kill")
    page.goto(server.url)
    assert wait_done(page).inner_html() == before


def test_the_real_model_is_used_as_its_makers_advise(app):
    server = app(builtin=True, start=False)
    code = """import os, server, httpx; url = server.load_built_in()
props = httpx.get(url[:-3] + '/props', headers={'authorization': f'Bearer {server.Model.keys[url]}'}, trust_env=False)
values = props.json()['default_generation_settings']['params']
print('VALUES', round(values['temperature'], 1), round(values['repeat_penalty'], 1), flush=True); os._exit(0)"""
    said = subprocess.run([sys.executable, "-c", code], cwd=server.dir, env=server.env,
                          capture_output=True, text=True, timeout=60)
    assert "VALUES 0.2 1.1" in said.stdout, said.stdout + said.stderr   # by llama.cpp's own values it repeats itself for minutes
