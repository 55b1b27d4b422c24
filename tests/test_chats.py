"""Conversations: the list of chats, their addresses and titles, and what goes to which of them."""
import re
import sqlite3

import httpx
import pytest

from chatting import all_windows, chat, home, window  # noqa: F401
from conftest import ask, until, wait_done
from fake_ollama import Script
from playwright.sync_api import expect
from wire import Chat as Socket


def titles(page):
    return [row.strip() for row in page.locator("#chat-list li .title").all_inner_texts()]


def chat_of(chat):
    """The number of the newest chat of this profile."""
    sql = "select id from chat where profile = ? and not deleted order by priority"
    return chat.server.sql(sql, chat.profile)[0]["id"]


def new_chat(page):
    page.get_by_role("link", name="New chat").click()
    expect(page.locator("#chat-title")).to_have_text("New chat")


def test_a_new_chat_is_stored_with_its_first_prompt(chat):
    page = chat.page
    chat.answered("What is a tomato?", Script(text="A berry."))
    before = chat.server.sql("select count(*) as n from chat")[0]["n"]
    new_chat(page)
    assert page.url.endswith(f"/chat/new?profile={chat.profile}")
    expect(page.locator("#msg-list .msg")).to_have_count(0)
    expect(page.locator("#msg")).to_be_focused()
    assert chat.server.sql("select count(*) as n from chat")[0]["n"] == before     # looking at it stores nothing
    assert titles(page) == ["What is a tomato?"]
    chat.answered("And a  cucumber,\nplease, " + "x" * 60, Script(text="A berry, too."))
    expect(page.locator("#chat-title")).to_have_text(re.compile("^And a cucumber, please, x+$"))
    page.wait_for_url(f"**/chat/{chat_of(chat)}")
    assert len(titles(page)[0]) == 60 and titles(page)[1] == "What is a tomato?"
    asked = chat.fake.chats[-1]["messages"]
    assert "tomato" not in str(asked), "the model remembers another chat"
    page.reload()
    expect(page.locator("[data-role=user]")).to_have_count(1)
    expect(page.locator("#chat-list a[aria-current=page]")).to_have_text(titles(page)[0])
    page.get_by_role("link", name="What is a tomato?").click()
    expect(page.locator("[data-role=user] .content")).to_have_text("What is a tomato?")
    ask(page, "Go on")
    wait_done(page)
    expect(page.locator("#chat-list li .title").first).to_have_text("What is a tomato?")   # the latest stands first


def test_the_answer_goes_on_in_its_own_chat_and_a_dot_tells_so(chat):
    page, other = chat.page, chat.open()
    chat.ask("Tell me", Script(text="one two", gate=True))
    chat.fake.release(1)
    number = chat_of(chat)
    expect(page.locator(f"#chat-{number} .dot")).to_have_attribute("aria-label", "running")
    assert page.locator(f"#chat-{number} .dot").bounding_box()["width"] >= 6
    for each in page, other:
        new_chat(each)
    expect(page.locator("#msg-list .msg")).to_have_count(0)
    chat.fake.release()
    expect(page.locator(f"#chat-{number} .dot")).to_have_attribute("aria-label", "unread")
    expect(page.locator("#msg-list .msg")).to_have_count(0)
    page.goto(f"{chat.server.url}/chat/{number}")
    expect(chat.content).to_have_text("one two")
    expect(other.locator(f"#chat-{number} .dot")).to_have_count(0)


def test_what_happens_goes_to_the_chat_that_is_open_where_it_happens(chat):
    page = chat.page
    chat.answered("First")
    first = chat_of(chat)
    new_chat(page)
    chat.answered("Second")
    second = chat_of(chat)
    page.goto(f"{chat.server.url}/chat/{first}")
    page.get_by_placeholder("What needs to be done?").fill("Milk")
    page.keyboard.press("Enter")
    expect(page.locator("[data-role=event]")).to_contain_text("Milk")
    page.get_by_role("button", name="Run Summarise my todos").click()
    expect(page.locator("[data-role=job]")).to_have_count(1)
    wait_done(page)
    until(chat.idle)
    assert {row["chat"] for row in chat.rows("role in ('event', 'job')")} == {first}
    page.goto(f"{chat.server.url}/chat/{second}")           # a script speaks in the chat with the latest message
    chat.post("chatq", text="To the newest", profile=chat.profile)
    chat.post("chatq", text="To that one", chat=second)
    expect(page.locator("[data-role=job]")).to_have_text([re.compile("To that one")])
    assert [row["chat"] for row in chat.rows("content = 'To the newest'")] == [first]
    for wrong, status in ("abc", 400), ("99999", 404):
        reply = httpx.post(f"{chat.server.url}/chatq", data=dict(text="x", chat=wrong), trust_env=False)
        assert reply.status_code == status and "<" not in reply.text


def test_titles(chat):
    def title():
        rows = chat.server.sql("select title from chat where profile = ?", chat.profile)
        return rows[0]["title"] if rows else None
    chat.post("todo", title="Milk", profile=chat.profile)
    assert not title()                                      # events alone make no chat
    assert not titles(chat.page)
    chat.post("chatq", text="The *nightly* run: 3 of 4", profile=chat.profile)
    assert title() == "The nightly run: 3 of 4"
    chat.answered("What failed?")
    assert title() == "What failed?"
    expect(chat.page.locator("#msg-list .msg")).to_have_count(4)     # and the event joined it
    number = chat_of(chat)
    chat.post(f"rename?kind=chat&id={number}", name="Nightly")
    chat.answered("And now?")
    assert title() == "Nightly"
    expect(chat.page.locator("#chat-title")).to_have_text("Nightly")


def test_a_chat_is_deleted_with_all_that_is_in_it_and_comes_back(chat):
    page = chat.page
    other = chat.open()
    chat.ask("Long one", Script(text="uno dos tres", gate=True))
    chat.fake.release(1)
    expect(chat.content).to_have_text("uno")
    number = chat_of(chat)
    row = page.locator(f"#chat-{number}")
    row.hover()
    row.get_by_role("button", name="Delete Long one").click()
    expect(page.locator("#toast")).to_contain_text("deleted")
    expect(page.locator("#chat-title")).to_have_text("New chat")
    until(chat.idle)                                        # what ran in it has ended
    assert not page.locator("#search-results a").count()
    found = httpx.get(f"{chat.server.url}/find?q=uno", trust_env=False).text
    assert "Long one" not in found and "uno" not in found.replace("q=uno", "")
    expect(other.locator("#chat-list li")).to_have_count(0)
    expect(other.locator("#toast")).to_contain_text("deleted in another tab")
    other.locator("#msg").fill("Are you there?")
    other.locator("#msg").press("Enter")
    expect(other.locator("#toast")).to_contain_text("This chat is not there any more")
    expect(other.locator("#msg")).to_have_value("Are you there?")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_url(f"**/chat/{number}")                  # it was open, and is again
    expect(page.locator(f"#chat-{number}")).to_be_visible()
    expect(page.locator(f"#chat-{number} .dot")).to_have_count(0)
    expect(chat.content).to_contain_text("uno")


def test_a_gauge_shows_how_much_of_the_context_a_chat_takes(chat):
    expect(chat.page.locator("#gauge")).to_be_hidden()
    chat.answered("Hi", Script(text="Hello", prompt_eval_count=1228))
    expect(chat.page.locator("#gauge")).to_have_text("30%")     # of 4,096
    chat.page.reload()
    expect(chat.page.locator("#gauge")).to_have_text("30%")
    expect(chat.page.locator("#gauge meter")).to_have_attribute("value", "0.30")
    new_chat(chat.page)
    expect(chat.page.locator("#gauge")).to_be_hidden()


def test_a_search_hit_opens_its_chat_with_the_message_in_view(chat):
    chat.answered("Where are the zebras?", Script(text="In the *savannah*."))
    number = chat_of(chat)
    new_chat(chat.page)
    chat.page.locator("#search").fill("savannah")
    hit = chat.page.locator("#search-results a")
    expect(hit).to_have_count(1)
    hit.click()
    chat.page.wait_for_url(f"**/chat/{number}?at=msg-*")
    expect(chat.content).to_be_in_viewport()


def test_what_is_typed_stays_with_a_chat_that_was_new(chat):
    page = chat.page
    new_chat(page)
    chat.ask("First", Script(text="One"))
    wait_done(page)
    page.get_by_role("button", name="Edit", exact=True).first.click()
    page.locator("#msg").fill("First, but better")
    address = page.url
    page.reload()
    expect(page.locator("#msg")).to_have_value("First, but better")
    expect(page.locator("#no-edit")).to_be_visible()
    new_chat(page)
    expect(page.locator("#msg")).to_have_value("")
    page.goto(address)
    expect(page.locator("#msg")).to_have_value("First, but better")


def test_two_new_chats_side_by_side_do_not_mix(chat):
    other = chat.open()
    for page in chat.page, other:
        new_chat(page)
    ask(chat.page, "Mine")
    wait_done(chat.page)
    expect(other.locator("#msg-list .msg")).to_have_count(0)
    ask(other, "Yours")
    wait_done(other)
    expect(chat.page.locator("[data-role=user] .content")).to_have_text(["Mine"])
    assert sorted(titles(other)) == ["Mine", "Yours"]


@pytest.mark.parametrize("path, status", [("/chat/0", 404), ("/chat/99999", 404), ("/chat/abc", 404), ("/chat/new", 200),
                                          ("/chat/new?profile=99", 404)])
def test_addresses(home, path, status):
    assert httpx.get(home.url + path, trust_env=False).status_code == status


def test_messages_from_before_there_were_chats(app):
    """Each stretch between two `---` is a chat; one with events alone joins the next, and a copy is kept."""
    server = app(env={"OLLAMA_HOST": "127.0.0.1:9"})
    server.stop()
    old = [("event", "Added a"), ("event", "---"), ("user", "First *question*"), ("assistant", "Answer one"), ("event", "---"),
           ("event", "---"), ("event", "Added b"), ("event", "---"), ("job", "**Report**"), ("user", "Second"),
           ("assistant", "Answer two"), ("event", "---")]
    db = sqlite3.connect(server.db)
    db.executescript("""drop index message_chat; drop index message_chat_rev; drop table chat;
        alter table message drop column chat; alter table profile add column memory integer""")
    for role, content in old:
        db.execute("""insert into message(profile, role, content, status, deleted, updated)
                      values (1, ?, ?, 'done', 0, unixepoch())""", [role, content])
    db.commit()
    db.close()
    server.start()
    chats = server.sql("select * from chat where title <> '' order by id")
    assert [row["title"] for row in chats] == ["First *question*", "Second"]
    inside = "select content from message where chat = ? and not deleted order by id"
    stretches = [[row["content"] for row in server.sql(inside, each["id"])] for each in chats]
    assert stretches == [["Added a", "First *question*", "Answer one"], ["Added b", "**Report**", "Second", "Answer two"]]
    assert list(server.db.parent.glob("*-before-change-1.db"))
    with Socket(server, f"?chat={chats[0]['id']}") as tab:
        tab.say("Go on")
        tab.hear("Go on")




def test_enter_opens_a_chat_and_f2_renames_it(chat):
    page = chat.page
    chat.answered("First one")
    number = chat_of(chat)
    new_chat(page)
    row = page.locator(f"#chat-{number}")
    row.focus()
    page.keyboard.press("F2")
    expect(row.locator("input")).to_be_focused()
    page.keyboard.press("Escape")
    expect(row.locator("input")).to_have_count(0)
    row.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/chat/{number}")
    expect(page).to_have_title(re.compile("^First one · "))


def test_a_hit_names_its_chat_and_a_renamed_chat_is_found(chat):
    chat.answered("Where do okapis live?", Script(text="In the forest."))
    chat.post(f"rename?kind=chat&id={chat_of(chat)}", name="Quaggas")
    hits = chat.page.locator("#search-results a")
    chat.page.locator("#search").fill("forest")
    expect(hits.locator("small")).to_have_text("Message · Quaggas")
    chat.page.locator("#search").fill("quaggas")
    expect(hits).to_have_count(1)
    expect(hits.locator("small")).to_contain_text("Chat")


def test_more_chats_come_as_one_scrolls(chat):
    for n in range(15):
        with Socket(chat.server, f"?profile={chat.profile}&chat=new") as tab:
            tab.ask(f"Question {n}", chat.profile)
    chat.page.reload()
    rows = chat.page.locator("#chat-list li[id]:not(.part)")
    expect(rows.first).to_contain_text("Question 14")
    rows.nth(11).scroll_into_view_if_needed()
    expect(rows).to_have_count(15)
