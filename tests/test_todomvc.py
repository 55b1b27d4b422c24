"""The todo list, case by case as TodoMVC's specification has it."""
import re

import pytest
from conftest import until
from playwright.sync_api import expect

pytest_plugins = "listing"


# ---- No todos

def test_without_todos_there_is_only_the_field(todos):
    tab = todos.open()
    tab.shows()
    expect(tab.new).to_be_visible()
    for thing in tab.mark_all, tab.link("All"), tab.button("Clear completed"), tab.part.get_by_text("left"):
        expect(thing).to_be_hidden()
    tab.add("milk")
    for thing in tab.mark_all, tab.link("All"):
        expect(thing).to_be_visible()
    tab.delete("milk")
    for thing in tab.mark_all, tab.link("All"):
        expect(thing).to_be_hidden()


# ---- New todo

def test_enter_adds_and_clears_the_field(todos):
    tab = todos.open()
    tab.new.fill("milk")
    tab.new.press("Enter")
    tab.shows("milk")
    expect(tab.new).to_have_value("")
    expect(tab.new).to_be_focused()


def test_the_button_adds_too(todos):
    tab = todos.open()
    tab.new.fill("milk")
    tab.button("Add").click()
    tab.shows("milk")
    expect(tab.new).to_have_value("")


def test_new_todos_are_appended(todos):
    tab = todos.open("[x] milk")
    tab.add("bread", "tea", "bread and butter")
    tab.shows("[x] milk", "bread", "tea", "bread and butter")
    assert todos.stored() == ["[x] milk", "bread", "tea", "bread and butter"]


def test_a_new_todo_is_trimmed(todos):
    tab = todos.open()
    tab.add("  \t two  words \u00a0 ")
    tab.shows("two words")                                            # a browser folds the blanks between
    assert todos.stored() == ["two  words"]


@pytest.mark.parametrize("nothing", ["", " ", "\t \u00a0"], ids=repr)
def test_an_empty_todo_is_not_added(todos, nothing):
    todos.window.allow_errors = "400"
    tab = todos.open("milk")
    tab.new.fill(nothing)
    tab.new.press("Enter")
    expect(tab.toast).to_contain_text("Type what needs to be done")
    tab.shows("milk")
    assert todos.stored() == ["milk"]


def test_what_is_typed_on_while_the_last_one_is_added_stays(todos):
    tab, held = todos.open(), []
    tab.page.route("**/todo", lambda route: held.append(route))
    tab.new.fill("milk")
    tab.new.press("Enter")
    tab.new.fill("bre")
    until(lambda: tab.new.input_value() and held, what="a request")
    held[0].continue_()
    tab.shows("milk")
    expect(tab.new).to_have_value("bre")


def test_a_todo_is_plain_text(todos):
    text = "<b>bold</b> &amp; **stars** <script>alert(1)</script> {{x}} \"'"
    tab = todos.open()
    tab.add(text)
    tab.shows(text)
    tab.title(text).dblclick()
    expect(tab.editor).to_have_value(text)


# ---- Mark all as complete

def test_mark_all_completes_and_reopens_all(todos):
    tab = todos.open("milk", "[x] bread", "tea")
    expect(tab.mark_all).not_to_be_checked()
    tab.mark_all.check()
    tab.shows("[x] milk", "[x] bread", "[x] tea")
    tab.counts("0 items left")
    tab.mark_all.uncheck()
    tab.shows("milk", "bread", "tea")
    tab.counts("3 items left")
    assert todos.stored() == ["milk", "bread", "tea"]


def test_mark_all_follows_the_single_items(todos):
    tab = todos.open("milk", "bread")
    tab.box("milk").check()
    expect(tab.mark_all).not_to_be_checked()
    tab.box("bread").check()
    expect(tab.mark_all).to_be_checked()
    tab.box("milk").uncheck()
    expect(tab.mark_all).not_to_be_checked()
    tab.delete("milk")
    expect(tab.mark_all).to_be_checked()
    tab.add("tea")
    expect(tab.mark_all).not_to_be_checked()


def test_mark_all_is_cleared_with_the_completed(todos):
    tab = todos.open("milk", "bread")
    tab.mark_all.check()
    tab.button("Clear completed").click()
    tab.shows()
    tab.add("tea")
    expect(tab.mark_all).not_to_be_checked()


# ---- An item

def test_an_item_is_completed_and_reopened(todos):
    tab = todos.open("milk", "bread")
    tab.box("milk").check()
    tab.shows("[x] milk", "bread")
    expect(tab.title("milk")).to_have_css("text-decoration-line", "line-through")
    expect(tab.title("bread")).to_have_css("text-decoration-line", "none")
    assert todos.stored() == ["[x] milk", "bread"]
    tab.box("milk").uncheck()
    tab.shows("milk", "bread")
    expect(tab.title("milk")).to_have_css("text-decoration-line", "none")
    assert todos.stored() == ["milk", "bread"]


def test_space_completes_the_focused_item_and_focus_stays(todos):
    tab = todos.open("milk", "bread")
    tab.item("bread").focus()
    tab.page.keyboard.press("Space")
    expect(tab.title("bread")).to_have_css("text-decoration-line", "line-through")
    expect(tab.item("bread")).to_be_focused()
    tab.page.keyboard.press("Space")
    tab.shows("milk", "bread")


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_item_is_deleted(todos, how):
    tab = todos.open("milk", "bread", "tea")
    if how == "button":
        tab.delete("bread")
    else:
        tab.item("bread").press("Delete")
    tab.shows("milk", "tea")
    assert todos.stored() == ["milk", "tea"]


# ---- Editing

START = {"a double click": lambda tab: tab.title("bread").dblclick(),
         "Enter": lambda tab: tab.item("bread").press("Enter"),
         "F2": lambda tab: tab.item("bread").press("F2"),
         "its button": lambda tab: tab.button("Rename bread").click()}


@pytest.mark.parametrize("how", START)
def test_editing_begins_by(todos, how):
    tab = todos.open("milk", "bread", "tea")
    START[how](tab)
    expect(tab.editor).to_be_focused()
    expect(tab.editor).to_have_value("bread")
    expect(tab.editor).to_have_count(1)


def test_only_a_focused_item_is_edited_by_keys(todos):
    tab = todos.open("milk", "bread")
    tab.box("milk").press("Enter")
    tab.box("milk").press("F2")
    tab.box("milk").check()
    tab.shows("[x] milk", "bread")
    expect(tab.editor).to_have_count(0)


def test_editing_hides_the_other_controls_of_the_item(todos):
    tab = todos.open("milk", "bread")
    tab.title("milk").dblclick()
    expect(tab.editor).to_be_visible()
    expect(tab.box("milk")).to_be_hidden()
    for name in "Delete milk", "Rename milk", "Move milk":
        expect(tab.button(name)).to_be_hidden()
    expect(tab.box("bread")).to_be_visible()


def leave_by_click(tab):
    tab.page.locator("#chat-title").click()


SAVE = {"Enter": lambda tab: tab.editor.press("Enter"), "Tab": lambda tab: tab.editor.press("Tab"),
        "a click elsewhere": leave_by_click}


@pytest.mark.parametrize("how", SAVE)
def test_an_edit_is_saved_once_by(todos, how):
    tab, sent = todos.open("milk", "[x] bread", "tea"), []
    tab.page.on("request", lambda r: "/rename" in r.url and sent.append(r.url))
    tab.edit("bread", "  rye bread ")
    SAVE[how](tab)
    tab.shows("milk", "[x] rye bread", "tea")
    tab.box("milk").check()                                           # a second save would have come before it
    tab.shows("[x] milk", "[x] rye bread", "tea")
    assert todos.stored() == ["[x] milk", "[x] rye bread", "tea"]
    assert len(sent) == 1


@pytest.mark.parametrize("how", SAVE)
def test_an_empty_edit_deletes_by(todos, how):
    tab = todos.open("milk", "bread", "tea")
    tab.edit("bread", "  ")
    SAVE[how](tab)
    tab.shows("milk", "tea")
    expect(tab.editor).to_have_count(0)
    tab.undo()
    tab.shows("milk", "bread", "tea")


def test_escape_gives_up(todos):
    tab, sent = todos.open("milk", "[x] bread"), []
    tab.page.on("request", lambda r: "/rename" in r.url and sent.append(r.url))
    for wish in "rye bread", "":
        tab.edit("bread", wish)
        tab.editor.press("Escape")
        tab.shows("milk", "[x] bread")
    tab.box("milk").check()
    tab.shows("[x] milk", "[x] bread")
    assert todos.stored() == ["[x] milk", "[x] bread"]
    assert not sent


def test_one_item_can_be_edited_after_another(todos):
    tab = todos.open("milk", "bread")
    tab.edit("milk", "oat milk")
    tab.title("bread").dblclick()
    expect(tab.editor).to_have_value("bread")
    tab.editor.fill("rye bread")
    tab.editor.press("Enter")
    tab.shows("oat milk", "rye bread")


def test_editing_does_not_outlive_a_reload(todos):
    tab = todos.open("milk")
    tab.title("milk").dblclick()
    expect(tab.editor).to_be_focused()
    tab.page.reload()
    tab.shows("milk")
    expect(tab.editor).to_have_count(0)


# ---- Counter

def test_the_counter_has_the_right_plural(todos):
    tab = todos.open("milk")
    tab.counts("1 item left")
    expect(tab.part.get_by_text("1 item left").locator("strong")).to_have_text("1")
    tab.add("bread")
    tab.counts("2 items left")
    tab.box("milk").check()
    tab.counts("1 item left")
    tab.box("bread").check()
    tab.counts("0 items left")


# ---- Clear completed

def test_clear_completed_removes_the_completed(todos):
    tab = todos.open("[x] milk", "bread", "[x] tea")
    tab.button("Clear completed").click()
    tab.shows("bread")
    tab.counts("1 item left")
    assert todos.stored() == ["bread"]


def test_clear_completed_is_there_only_when_there_is_something_to_clear(todos):
    tab = todos.open("milk", "bread")
    clear = tab.button("Clear completed")
    expect(clear).to_be_hidden()
    tab.box("milk").check()
    expect(clear).to_be_visible()
    tab.box("milk").uncheck()
    expect(clear).to_be_hidden()
    tab.box("milk").check()
    clear.click()
    tab.shows("bread")
    expect(clear).to_be_hidden()


# ---- Persistence

def test_all_of_it_survives_a_reload(todos):
    tab = todos.open()
    tab.add("milk", "bread", "tea")
    tab.box("bread").check()
    tab.edit("tea", "green tea")
    tab.editor.press("Enter")
    tab.shows("milk", "[x] bread", "green tea")
    tab.page.reload()
    tab.shows("milk", "[x] bread", "green tea")
    tab.counts("2 items left")
    expect(tab.button("Clear completed")).to_be_visible()


# ---- Filters

LINES = "milk", "[x] bread", "tea"
VIEWS = {"All": LINES, "Active": ("milk", "tea"), "Completed": ("[x] bread",)}


@pytest.mark.parametrize("name", VIEWS)
def test_a_filter_shows_its_items_and_survives_a_reload(todos, name):
    tab = todos.open(*LINES, show="active" if name == "All" else None)
    tab.link(name).click()
    for _ in "clicked", "reloaded":
        tab.shows(*VIEWS[name])
        tab.counts("2 items left")                                    # of all of them
        for other in VIEWS:
            current = re.compile("page|true") if other == name else re.compile("^(false)?$")
            if other == name:
                expect(tab.link(other)).to_have_attribute("aria-current", current)
            else:
                assert tab.link(other).get_attribute("aria-current") in (None, "false")
        tab.page.reload()


def test_filters_are_links_and_the_back_button_goes_through_them(todos):
    tab = todos.open(*LINES)
    assert len({tab.link(name).evaluate("a => a.href") for name in VIEWS}) == 3
    for name in "Active", "Completed":
        tab.link(name).click()
        tab.shows(*VIEWS[name])
    tab.page.go_back()
    tab.shows(*VIEWS["Active"])
    tab.page.go_back()
    tab.shows(*VIEWS["All"])
    tab.page.go_forward()
    tab.shows(*VIEWS["Active"])


def test_a_filter_needs_no_page_load_and_keeps_the_focus(todos):
    tab = todos.open(*LINES)
    tab.page.evaluate("() => { window.same = true }")
    tab.new.fill("half a to")
    for name in "Active", "Completed", "All":
        tab.link(name).focus()
        tab.page.keyboard.press("Enter")
        tab.shows(*VIEWS[name])
        expect(tab.link(name)).to_be_focused()
        expect(tab.page).to_have_url(tab.link(name).evaluate("a => a.href"))
    assert tab.page.evaluate("() => window.same")
    expect(tab.new).to_have_value("half a to")


def test_back_shows_the_list_as_it_is_now(todos):
    tab = todos.open("milk", "bread")
    tab.link("Active").click()
    tab.box("milk").click()                # not check(): it goes, and can't be seen to be ticked
    tab.shows("bread")
    tab.page.go_back()
    tab.shows("[x] milk", "bread")


@pytest.mark.parametrize("show", ["active", "completed"])
def test_an_item_leaves_when_it_stops_matching(todos, show):
    tab = todos.open(*(("milk", "[x] tea", "bread") if show == "active" else ("[x] milk", "tea", "[x] bread")), show=show)
    tab.box("milk").click()
    tab.shows(*(["bread"] if show == "active" else ["[x] bread"]))
    tab.link("All").click()
    tab.shows(*(["[x] milk", "[x] tea", "bread"] if show == "active" else ["milk", "tea", "[x] bread"]))


def test_a_new_todo_shows_where_it_matches(todos):
    tab = todos.open("[x] milk", show="completed")
    tab.add("bread")
    tab.counts("1 item left")
    tab.shows("[x] milk")
    tab.link("Active").click()
    tab.shows("bread")
    tab.add("tea")
    tab.shows("bread", "tea")


def test_mark_all_under_a_filter(todos):
    tab = todos.open("milk", "[x] bread", "tea", show="active")
    tab.mark_all.check()
    tab.shows()
    tab.mark_all.uncheck()
    tab.shows("milk", "bread", "tea")


def test_clear_completed_under_a_filter(todos):
    tab = todos.open("milk", "[x] bread", "[x] tea", show="completed")
    tab.button("Clear completed").click()
    tab.shows()
    tab.link("All").click()
    tab.shows("milk")


def test_editing_under_a_filter_keeps_the_item_where_it_is(todos):
    tab = todos.open("[x] milk", "bread", "[x] tea", show="completed")
    tab.edit("milk", "oat milk")
    tab.editor.press("Enter")
    tab.shows("[x] oat milk", "[x] tea")
