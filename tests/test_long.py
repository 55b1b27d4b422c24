"""A list so long that it comes in parts is like any other."""
import pytest
from conftest import until
from playwright.sync_api import expect

pytest_plugins = "listing"


@pytest.fixture
def long(todos):
    """450 todos: two parts and a half."""
    todos.post("todo", title="\n".join(f"t{n}" for n in range(1, 451)), profile=todos.profile)
    return todos


def titles(tab):
    return tab.items.locator(".title").all_text_contents()


def whole(tab):
    """Scroll down until all is there; the titles."""
    def end():
        tab.page.evaluate("() => document.querySelector('#todo-list').lastElementChild.scrollIntoView()")
        return tab.page.evaluate("() => !document.querySelector('#todo-list .part')")
    until(end, what="the whole list")
    return titles(tab)


def comes_to_be_stored(tab, long):
    """The page shows what is stored, as soon as the last change made elsewhere has come."""
    until(lambda: whole(tab) == long.stored(), what="the list as it is stored")


def test_its_parts_come_as_one_scrolls(long):
    tab = long.open()
    assert titles(tab) == [f"t{n}" for n in range(1, 201)]
    tab.counts("450 items left")
    tab.item("t190").scroll_into_view_if_needed()                     # before the end is reached
    expect(tab.item("t400")).to_be_attached()
    comes_to_be_stored(tab, long)


def test_what_is_added_is_seen_and_stands_at_the_end(long):
    tab, other = long.open(), long.open()
    tab.add("new")
    expect(tab.item("new")).to_be_in_viewport()
    assert whole(tab) == whole(other) == long.stored()


@pytest.mark.parametrize("how", ["typed", "pasted"])
def test_what_is_added_to_a_list_higher_than_its_place_is_seen(todos, how):
    tab = todos.open(*"abcdefghijklmnopqrstuvwxyz")
    expect(tab.item("z")).not_to_be_in_viewport()
    if how == "typed":
        tab.add("new")
    else:
        tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab.page.evaluate("text => navigator.clipboard.writeText(text)", "- one\n" * 100 + "- new")
        tab.new.press("Control+V")
        expect(tab.toast).to_be_empty()                               # none of it was cut off
    expect(tab.item("new")).to_be_in_viewport()
    expect(tab.announced).to_have_text("Added.")
    expect(tab.new).to_be_focused()


def test_a_move_over_the_border_of_two_parts(long):
    tab, other = long.open(), long.open()
    tab.item("t200").focus()
    expect(tab.item("t201")).to_be_attached()
    expect(tab.item("t401")).to_have_count(0)
    tab.item("t200").press("Alt+ArrowDown")
    expect(tab.announced).to_have_text("Moved to place 201 of more than 400.")
    until(lambda: long.stored()[199:201] == ["t201", "t200"], what="a move")
    assert whole(tab) == whole(other) == long.stored()


def test_a_move_where_the_next_part_has_not_come_waits_for_it(long):
    tab, sent = long.open(), []
    tab.page.on("request", lambda r: "/move" in r.url and sent.append(r.url))
    tab.page.route("**/rows?*", lambda route: None)
    for title, key in ("t200", "Down"), ("t199", "Down"):
        tab.item(title).press(f"Alt+Arrow{key}")
    tab.shows(*(f"t{n}" for n in range(1, 199)), "t200", "t199")
    until(lambda: long.stored()[198:201] == ["t200", "t199", "t201"], what="a move")
    assert len(sent) == 1


def test_changes_elsewhere_above_below_and_across(long):
    tab = long.open()
    for title, before in ("t300", "t310"), ("t1", "t310"), ("t350", "t2"), ("t201", None), ("t200", "t202"):
        long.post("move", kind="todo", id=long.ident(title), before=long.ident(before) if before else 0)
    for title in "t202", "t199":
        long.post("delete", kind="todo", id=long.ident(title))
    comes_to_be_stored(tab, long)


def test_undo_far_down(long):
    tab = long.open()
    whole(tab)
    tab.delete("t400")
    tab.undo()
    expect(tab.item("t400")).to_have_count(1)
    assert titles(tab) == long.stored()


def test_what_is_edited_far_down_is_not_touched_when_all_change(long):
    tab = long.open()
    whole(tab)
    tab.edit("t300", "mine")
    long.post("toggle_all", profile=long.profile)
    tab.counts("0 items left")
    expect(tab.editor).to_have_value("mine")
    expect(tab.editor).to_be_focused()
    tab.editor.press("Enter")
    expect(tab.item("mine")).to_have_count(1)
    assert [f"[x] {title}" for title in whole(tab)] == long.stored()
    assert long.stored()[299] == "[x] mine"


def test_what_is_edited_stays_where_it_is_when_many_rows_go_above_it(long):
    first = long.ident("t1")
    for n in range(40):
        long.post(f"toggle/{int(first) + n}")
    tab = long.open()
    tab.edit("t100", "mine")
    top = "() => document.querySelector('#todo-list .editing').getBoundingClientRect().top"
    before = tab.page.evaluate(top)
    long.post("clear_completed", profile=long.profile)
    expect(tab.item("t40")).to_have_count(0)
    assert abs(tab.page.evaluate(top) - before) < 2


def test_who_reads_far_down_stays_there_when_all_change(long):
    tab = long.open()
    whole(tab)
    tab.item("t400").focus()
    scrolled = "() => document.querySelector('#todo-list').scrollTop"
    before = tab.page.evaluate(scrolled)
    long.post("toggle_all", profile=long.profile)
    tab.counts("0 items left")
    expect(tab.box("t400")).to_be_checked()
    expect(tab.item("t400")).to_be_focused()
    assert abs(tab.page.evaluate(scrolled) - before) < 2
    assert len(titles(tab)) == 450


def test_a_search_hit_far_down_leads_there(long):
    tab = long.open()
    for title in "t444", "t333":                                      # the second from the place of the first
        tab.page.locator("#search").press_sequentially(title)
        tab.page.locator(f"#search-results a[href*='/profile/{long.profile}?']", has_text=f"{title}Todo").click()
        expect(tab.item(title)).to_be_in_viewport()
        expect(tab.item(title)).to_have_css("outline-style", "solid")


def test_what_changes_while_the_whole_list_is_asked_for_is_not_lost(long):
    """The answer is older than the change then: it is asked for anew."""
    tab, held = long.open(), []
    tab.page.route("**/rows?kind=todo*", lambda route: held.append((route, route.fetch())), times=1)
    long.post("toggle_all", profile=long.profile)
    route, answer = until(lambda: tab.page.evaluate("1") and held, what="a request")[0]
    long.post("rename", kind="todo", id=long.ident("t1"), name="changed")
    expect(tab.item("changed")).to_be_attached()
    long.post("delete", kind="todo", id=long.ident("t2"))
    expect(tab.item("t2")).to_have_count(0)
    route.fulfill(response=answer)
    expect(tab.box("t3")).to_be_checked()
    assert titles(tab)[:2] == ["changed", "t3"]


@pytest.mark.parametrize("moved", ["t200", "t199"])
def test_the_row_before_the_next_part_is_moved_away_and_nothing_is_left_out(long, moved):
    tab = long.open()
    long.post("move", kind="todo", id=long.ident(moved), before=0)
    expect(tab.item(moved)).to_have_count(0)
    comes_to_be_stored(tab, long)
