"""The search box in a browser: hits as one types, what a hit leads to, and signs that are only text.

What the address answers to a script stands in test_app.py.
"""
import itertools
import re
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fake_ollama import Script
from playwright.sync_api import expect

pytest_plugins = "chatting"
# A word for each test that no other test's todos and messages hold: all share one app.
words = (f"{a}{b}{c}ix" for a, b, c in itertools.product("plum quar zeb molk trin".split(), "oau", "bel dor fim".split()))


@pytest.fixture
def word():
    return next(words)


@pytest.fixture
def hits(chat):
    """The hits that the first page shows, but for the lines that say what was added."""
    return chat.page.locator("#search-results a", has_not_text=re.compile("^(Added|Deleted|Renamed)"))


def look_for(page, text):
    """Type into the search box; back when the answer to all of it stands there."""
    def answers(response):
        at = urlsplit(response.url)
        return at.path == "/find" and parse_qs(at.query, keep_blank_values=True)["q"] == [text]
    page.locator("#search").fill("")
    with page.expect_response(answers):
        page.locator("#search").press_sequentially(text)
    page.wait_for_function("() => !document.querySelector('.htmx-request')")


def add(chat, *titles):
    """Todos, as typed into another page; their numbers."""
    html = "".join(chat.post("todo", title=title, profile=chat.profile) for title in titles)
    return re.findall(r'id="todo-(\d+)"', html)


def in_view(page, selector):
    """The place is targeted, and it is to be seen in what scrolls around it, and in the window."""
    expect(page.locator(f"{selector}:target")).to_have_count(1)
    expect(page.locator(selector)).to_be_in_viewport()
    page.wait_for_function("""q => {
      const el = document.querySelector(q), r = el.getBoundingClientRect(), x = r.left + r.width / 2
      const list = el.closest('#todo-list, #msg-list').getBoundingClientRect()
      return r.top + 5 < list.bottom && r.bottom - 5 > list.top &&
        el.contains(document.elementFromPoint(x, Math.max(r.top, list.top) + 5)) }""", arg=selector)


def test_hits_come_as_one_types(chat, hits, word):
    add(chat, f"Buy {word} seeds", "Buy bread")
    look_for(chat.page, word[:5])
    expect(hits).to_have_count(1)
    expect(hits).to_contain_text(f"Buy {word} seeds")
    assert hits.locator("mark").all_inner_texts() == [word]
    expect(hits.locator("small")).to_have_text("Todo · Somebody")
    look_for(chat.page, f"{word} seeds")
    assert hits.locator("mark").all_inner_texts() in ([word, "seeds"], [f"{word} seeds"])
    look_for(chat.page, f"{word} nothing")
    expect(chat.page.locator("#search-results")).to_have_text("Nothing found.")


def test_a_search_with_many_hits_says_that_there_are_more(chat, hits, word):
    add(chat, *(f"{word} {n}" for n in range(21)))
    look_for(chat.page, word)
    expect(hits).to_have_count(20)
    expect(chat.page.locator("#search-results")).to_contain_text("There is more: type another word.")
    look_for(chat.page, f"{word} 20")
    expect(hits.filter(has_text=f"{word} 20")).not_to_have_count(0)
    expect(chat.page.locator("#search-results")).not_to_contain_text("There is more")


def test_an_empty_box_shows_no_hits(chat, hits, word):
    add(chat, word)
    look_for(chat.page, word)
    expect(hits).to_have_count(1)
    chat.page.locator("#search").fill("")
    expect(chat.page.locator("#search-results")).to_be_empty()


def test_hits_are_put_away_by_leaving_them_and_come_back(chat, hits, word):
    add(chat, f"Buy {word} seeds")
    look_for(chat.page, word)
    expect(hits.first).to_be_visible()
    chat.page.locator("#chat-title").click()
    expect(hits.first).to_be_hidden()
    chat.page.locator("#search").focus()
    expect(hits.first).to_be_visible()
    chat.page.keyboard.press("Tab")                                   # from the box to its hits
    expect(chat.page.locator("#search-results a").first).to_be_focused()
    chat.page.locator("#search").press("Escape")
    expect(chat.page.locator("#search")).to_have_value("")
    expect(chat.page.locator("#search-results")).to_be_empty()


def test_enter_goes_to_the_hits(chat, hits, word):
    add(chat, f"Buy {word} seeds")
    look_for(chat.page, word)
    chat.page.locator("#search").press("Enter")
    expect(hits.first).to_be_focused()
    chat.page.keyboard.press("Enter")
    in_view(chat.page, "#todo-list li")


def test_enter_without_a_hit_stays_on_the_page(chat, word):
    chat.page.locator("#search").fill(f"no {word}")
    chat.page.locator("#search").press("Enter")
    expect(chat.page.locator("#search-results")).to_have_text("Nothing found.")
    expect(chat.page).to_have_url(chat.url)


def test_what_was_done_comes_after_what_there_is_and_without_marks_of_its_own(chat, word):
    add(chat, f"Buy *{word}* <seeds>")
    look_for(chat.page, word)
    text = rf"Buy \*{word}\* <seeds>"
    found = re.compile(f"^{text}Todo"), re.compile(f"^Added “{text}”Message")
    expect(chat.page.locator("#search-results a")).to_have_text([*found])


def test_todos_prompts_and_answers_are_found(chat, hits, word):
    add(chat, f"{word} the todo")
    chat.answered(f"{word} the prompt", Script(text=f"# Yes\n\nThis is **{word}**, the answer."))
    look_for(chat.page, word)
    expect(hits).to_have_count(3)
    texts = " | ".join(hits.all_inner_texts())
    assert all(what in texts for what in ("the todo", "the prompt", "the answer")), texts
    pages = [a.get_attribute("href").partition("?")[0] for a in hits.all()]
    number = chat.rows()[0]["chat"]
    assert sorted(pages) == sorted([f"/chat/{number}", f"/chat/{number}", f"/profile/{chat.profile}"])


def test_a_hit_is_text(chat, hits, word):
    title = f"<b>{word}</b> & <img src=x> &amp;"
    add(chat, title)
    look_for(chat.page, word)
    expect(hits.first).to_contain_text(title)
    assert not chat.page.locator("#search-results :is(b, img)").count()


def test_a_hit_among_many_todos_leads_to_it(chat, hits, word):
    ids = add(chat, "\n".join(f"{word if n == 60 else 'Thing'} {n}" for n in range(1, 101)))
    look_for(chat.page, f"{word} 60")
    hits.click()
    expect(chat.page).to_have_url(re.compile(rf"/profile/{chat.profile}\?.*#todo-{ids[59]}$"))
    in_view(chat.page, f"#todo-{ids[59]}")


def test_a_hit_of_another_profile_leads_there(chat, hits, word):
    other = chat.another()
    other.post("rename", kind="profile", id=other.profile, name=f"Of {word}")
    ident, = add(other, f"Seeds of {word}")
    look_for(chat.page, f"seeds {word}")
    expect(hits.first.locator("small")).to_have_text(f"Todo · Of {word}")
    chat.page.locator(f"#search-results a[href$='#todo-{ident}']").press("Enter")
    expect(chat.page.locator("#profile-name")).to_have_text(f"Of {word}")
    in_view(chat.page, f"#todo-{ident}")
    other.answered("Hi", Script(text=f"All about {word} and friends"))
    chat.page.goto(chat.url)
    look_for(chat.page, f"{word} friends")
    hits.first.click()
    expect(chat.page.locator("#profile-name")).to_have_text(f"Of {word}")
    in_view(chat.page, "[data-role=assistant]")


@pytest.mark.parametrize("here", [True, False], ids=["of this profile", "of another"])
def test_a_hit_far_up_in_the_chat_leads_to_it(chat, hits, word, here):
    where = chat if here else chat.another()
    with httpx.Client(base_url=where.server.url, trust_env=False, verify=False) as client:
        def say(text):
            return client.post("/chatq", data={"text": text, "profile": where.profile}).text
        ident = [say(f"{word} of old" if n == 5 else f"Line {n} " * 30) for n in range(70)][5]   # a page shows the last 50
    chat.page.goto(chat.url)
    assert not chat.page.locator(f"#msg-{ident}").count()
    look_for(chat.page, word)
    expect(hits).to_have_count(1)
    hits.click()
    in_view(chat.page, f"#msg-{ident}")
    where.post("chatq", text="One more", profile=where.profile)          # news does not tear the reader away
    expect(chat.page.locator("[data-role=job]").last).to_contain_text("One more")
    in_view(chat.page, f"#msg-{ident}")


def test_what_is_deleted_is_not_found(chat, hits, word):
    add(chat, f"{word} todo")
    chat.post("chatq", text=f"{word} message", profile=chat.profile)
    page = chat.page
    message = page.locator("[data-role=job]", has_text=word)
    message.hover()
    message.get_by_role("button", name="Delete message").click()
    expect(message).to_have_count(0)
    look_for(page, f"{word} message")
    expect(hits).to_have_count(0)
    page.locator("#toast").get_by_role("button", name="Undo").click()
    expect(message).to_have_count(1)
    look_for(page, f"{word} message")
    expect(hits).to_have_count(1)
    page.locator("#search").fill("")
    page.get_by_role("button", name=f"Delete {word} todo").click()
    expect(page.locator("#toast")).to_contain_text("is deleted")
    look_for(page, f"{word} todo")
    expect(hits).to_have_count(0)


def test_what_went_with_its_profile_is_not_found(chat, hits, word):
    other = chat.another()
    add(other, f"{word} todo")
    look_for(chat.page, f"{word} todo")
    expect(hits.first).to_be_visible()
    other.post("delete", kind="profile", id=other.profile, sure="1")
    look_for(chat.page, f"{word} todo")
    expect(hits).to_have_count(0)


def test_a_change_is_found_by_its_new_text(chat, hits, word):
    add(chat, f"{word} before")
    chat.page.locator("#todo-list .title").dblclick()
    field = chat.page.get_by_label(f"New name of {word} before")
    field.fill(f"{word} afterwards")
    field.press("Enter")
    expect(chat.page.locator("#todo-list .title")).to_have_text(f"{word} afterwards")
    look_for(chat.page, f"{word} afterw")
    expect(hits).to_have_count(1)
    look_for(chat.page, f"{word} before")
    expect(hits).to_have_count(0)


SIGNS = '"{}"', "{}*", "*{}", "-{}", "{}-seeds", "'{}'", "title:{}", "({}", "{} OR", "NEAR({} seeds)", '{}"', "^{}"


def test_signs_are_text(chat, hits):
    """None of them is an operator of the search, and none breaks it; they need not stand in what is found."""
    for sign in SIGNS:
        typed = sign.format(next(words))
        ident, = add(chat, f"It says {typed} here, and seeds")
        look_for(chat.page, typed)
        expect(chat.page.locator(f"#search-results a[href$='#todo-{ident}']")).to_have_count(1)
        expect(chat.page.locator("#toast")).to_be_empty()


def test_operators_do_nothing(chat, hits, word):
    add(chat, f"{word} apples", f"{word} pears")
    for typed in f"{word} NOT apples", f"{word} -nothing", f"apples{word} OR pears{word}", f"{word} AND NOT pears":
        look_for(chat.page, typed)
        expect(hits).to_have_count(0)
    look_for(chat.page, f'"{word} pe')
    assert {a.inner_text().split("\n")[0] for a in hits.all()} == {f"{word} pears"}


@pytest.mark.parametrize("typed", ['""', "*", "-'", ":()", '" OR 1'])
def test_signs_alone_find_nothing_and_break_nothing(chat, hits, typed):
    look_for(chat.page, typed)
    expect(chat.page.locator("#search-results")).to_have_text("Nothing found.")
    expect(chat.page.locator("#toast")).to_be_empty()
