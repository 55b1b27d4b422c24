"""The todo list beyond TodoMVC: its order, Undo, all tabs alike, lists as text, bad input."""
import re
from statistics import median
from time import time

import httpx
import pytest
from conftest import open_lists, until
from playwright.sync_api import expect

pytest_plugins = "listing"
OFFLINE = r"WebSocket|ERR_|htmx:(afterRequest|sendError)|\[object Event\]"   # what the console says of a connection that is down


# ---- Order

def drag(tab, title, over, below=False):
    """By its grip, with the mouse, onto the upper or lower half of another item."""
    tab.item(title).hover()
    tab.button(f"Move {title}").hover()
    tab.page.mouse.down()
    box = tab.item(over).bounding_box()
    tab.page.mouse.move(box["x"] + 20, box["y"] + box["height"] * (.8 if below else .2), steps=4)
    tab.page.mouse.up()


@pytest.mark.parametrize(("title", "over", "below", "order"), [
    ("a", "c", True, "bcad"), ("d", "b", False, "adbc"), ("d", "a", False, "dabc"), ("a", "d", True, "bcda")])
def test_an_item_is_dragged_with_the_mouse(todos, title, over, below, order):
    tab = todos.open(*"abcd")
    before = {row["id"]: tuple(row) for row in todos.rows()}
    drag(tab, title, over, below)
    tab.shows(*order)
    until(lambda: todos.stored() == list(order), what="a new order")
    assert sum(before[row["id"]] != tuple(row) for row in todos.rows()) == 1, "one row is written per move"
    tab.page.reload()
    tab.shows(*order)


def test_an_item_is_dragged_with_a_finger(todos, place, open_page):
    todos.given(*"abc")
    tab = todos.tab(open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800}))
    tab.page.goto(place.url + todos.path)
    open_lists(tab.page)
    finger = tab.page.context.new_cdp_session(tab.page)

    def touch(kind, x=None, y=None):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}] if x else []})
    grip, goal = tab.button("Move a").bounding_box(), tab.item("c").bounding_box()
    x, y, end = grip["x"] + 10, grip["y"] + 10, goal["y"] + goal["height"] * .8
    touch("touchStart", x, y)
    for n in range(1, 6):
        touch("touchMove", x, y + (end - y) * n / 5)
    touch("touchEnd")
    tab.shows(*"bca")
    until(lambda: todos.stored() == [*"bca"], what="a new order")


def take(tab, title, over, height=.8):
    """Begin to drag an item onto another one, and hold it there."""
    tab.item(title).hover()
    tab.button(f"Move {title}").hover()
    tab.page.mouse.down()
    box = tab.item(over).bounding_box()
    tab.page.mouse.move(box["x"] + 20, box["y"] + box["height"] * height, steps=4)


@pytest.mark.parametrize("how", ["Escape", "by the system"])
def test_a_drag_is_given_up(todos, how):
    tab, sent = todos.open(*"abc"), []
    tab.page.on("request", lambda r: "/move" in r.url and sent.append(r.url))
    take(tab, "a", "b")
    tab.shows(*"bac")
    if how == "Escape":
        tab.page.keyboard.press("Escape")
    else:
        tab.page.evaluate("() => dispatchEvent(new PointerEvent('pointercancel'))")
    tab.shows(*"abc")
    box = tab.item("c").bounding_box()
    tab.page.mouse.move(box["x"] + 20, box["y"] + box["height"] * .8, steps=4)
    tab.page.mouse.up()
    tab.box("c").check()
    tab.shows("a", "b", "[x] c")
    assert not sent


@pytest.mark.parametrize(("change", "shown"), [
    (lambda todos: todos.post(f"toggle/{todos.ident('a')}"), ["b", "[x] a", "c"]),
    (lambda todos: todos.post("toggle_all", profile=todos.profile), ["[x] b", "[x] a", "[x] c"]),
    (lambda todos: todos.post("delete", kind="todo", id=todos.ident("a")), ["b", "c"])], ids=["it", "all", "gone"])
def test_a_drag_goes_on_while_the_list_changes(todos, change, shown):
    tab = todos.open(*"abc")
    take(tab, "a", "b")
    tab.shows(*"bac")
    change(todos)
    tab.shows(*shown)
    tab.page.mouse.up()
    until(lambda: todos.stored() == shown, what="a new order")
    tab.shows(*shown)
    expect(tab.part.locator(".moving")).to_have_count(0)


def test_a_list_scrolls_on_while_an_item_is_held_at_its_edge(todos):
    tab = todos.open(*"abcdefghijklmnopqrstuvwxyz")
    tab.button("Move a").hover()
    tab.page.mouse.down()
    box = tab.page.locator("#todo-list").bounding_box()
    tab.page.mouse.move(box["x"] + 20, box["y"] + box["height"] - 8, steps=4)
    expect(tab.item("z")).to_be_in_viewport(ratio=1)
    tab.shows(*"bcdefghijklmnopqrstuvwxyza")
    tab.page.mouse.up()
    until(lambda: todos.stored() == [*"bcdefghijklmnopqrstuvwxyza"], what="a new order")


def test_a_click_on_the_grip_moves_nothing(todos):
    tab, sent = todos.open(*"abc"), []
    tab.page.on("request", lambda r: "/move" in r.url and sent.append(r.url))
    tab.button("Move b").click()
    tab.box("a").check()
    tab.shows("[x] a", "b", "c")
    assert not sent


def test_an_item_is_moved_by_keys_and_its_new_place_is_announced(todos):
    tab = todos.open(*"abc")
    tab.item("a").focus()
    downs, ups = [("bac", 2), ("bca", 3), ("bca", 3)], [("bac", 2), ("abc", 1), ("abc", 1)]
    for key, (order, place) in [("Down", step) for step in downs] + [("Up", step) for step in ups]:
        tab.page.keyboard.press(f"Alt+Arrow{key}")
        tab.shows(*order)
        expect(tab.announced).to_have_text(re.compile(rf"\b{place} of 3\b"))
        expect(tab.item("a")).to_be_focused()
        until(lambda order=order: todos.stored() == [*order], what="a new order")
    assert tab.announced.get_attribute("role") == "status" or tab.announced.get_attribute("aria-live")


def test_a_move_is_one_written_row(todos):
    tab = todos.open(*"abcdef")
    for title, key in ("f", "Up"), ("f", "Up"), ("a", "Down"), ("c", "Up"), ("c", "Up"):
        before = {row["id"]: tuple(row) for row in todos.rows()}
        tab.item(title).press(f"Alt+Arrow{key}")
        until(lambda before=before: {r["id"]: tuple(r) for r in todos.rows()} != before, what="a move")
        assert sum(before[row["id"]] != tuple(row) for row in todos.rows()) == 1


def test_a_move_under_a_filter_passes_the_next_shown_item(todos):
    tab = todos.open("a", "[x] b", "c", "[x] d", "e")
    tab.link("Active").click()
    tab.shows("a", "c", "e")
    tab.item("e").press("Alt+ArrowUp")
    tab.shows("a", "e", "c")
    expect(tab.announced).to_have_text(re.compile(r"\b2 of 3\b"))
    tab.link("All").click()
    tab.shows("a", "[x] b", "e", "c", "[x] d")


def test_the_order_outlives_a_restart(todos, place):
    todos.window.allow_errors = OFFLINE
    tab = todos.open(*"abc")
    with tab.page.expect_response("**/move*"):
        tab.item("c").press("Alt+ArrowUp")
    place.restart("kill")
    tab.page.reload()
    tab.shows(*"acb")
    tab.add("d")
    tab.shows(*"acbd")


def test_many_moves_into_the_same_gap_keep_the_order(todos):
    """Halving a gap ends somewhere: nobody is to notice."""
    todos.given(*"abcd")
    a, b, c, d = map(todos.ident, "abcd")
    for n in range(60):
        todos.post("move", kind="todo", id=(c, d)[n % 2], before=b)
        todos.post("move", kind="todo", id=a, before=(c, d)[n % 2])
        todos.post("move", kind="todo", id=(d, c)[n % 2], before=(c, d)[n % 2])
    todos.post("move", kind="todo", id=d)
    todos.post("move", kind="todo", id=a, before=b)
    assert sorted(todos.stored()) == [*"abcd"] and todos.stored()[-1] == "d"
    todos.open().shows(*todos.stored())
    assert len({row["priority"] for row in todos.rows()}) == 4


def test_moves_in_quick_succession_are_all_kept(todos):
    tab, held = todos.open(*"abcdef"), []
    tab.page.route("**/move*", lambda route: held.append(route))
    for title in "bdf":
        tab.item(title).press("Alt+ArrowUp")
    tab.shows(*"badcfe")

    def stored():
        while held:
            held.pop(0).continue_()
        return tab.items.count() and todos.stored() == [*"badcfe"]
    until(stored, 3, "the order that is shown")


# ---- Undo

def exactly(todos):
    return [tuple(row) for row in todos.rows()]


@pytest.mark.parametrize("title", "abc")
def test_undo_brings_a_deleted_item_back_where_and_as_it_was(todos, title):
    tab, asked = todos.open("a", "[x] b", "c"), []
    tab.page.on("dialog", lambda d: (asked.append(d), d.dismiss()))
    other, before = todos.open(), exactly(todos)
    tab.delete(title)
    expect(tab.toast).to_contain_text(title)
    expect(tab.item(title)).to_have_count(0)
    tab.undo()
    for t in tab, other:
        t.shows("a", "[x] b", "c")
        t.counts("2 items left")
    assert exactly(todos) == before
    assert not asked


@pytest.mark.parametrize("lines", [("[x] a", "b", "[x] c", "d"), ("a", "[x] b", "c"), ("[x] a", "[x] b")], ids=" ".join)
def test_undo_brings_the_cleared_items_back_where_and_as_they_were(todos, lines):
    tab, asked = todos.open(*lines), []
    tab.page.on("dialog", lambda d: (asked.append(d), d.dismiss()))
    other, before = todos.open(), exactly(todos)
    tab.button("Clear completed").click()
    tab.shows(*(line for line in lines if "[x]" not in line))
    tab.undo()
    cleared = sum("[x]" in line for line in lines)
    expect(tab.toast).to_have_text("It is back." if cleared == 1 else f"{cleared} todos are back.")
    for t in tab, other:
        t.shows(*lines)
        expect(t.button("Clear completed")).to_be_visible()
    assert exactly(todos) == before
    assert not asked


def test_undo_goes_around_what_changed_meanwhile(todos):
    tab = todos.open(*"abcd")
    tab.delete("c")
    tab.shows(*"abd")
    todos.post("move", kind="todo", id=todos.ident("d"), before=todos.ident("a"))
    todos.given("e")
    tab.shows(*"dabe")
    tab.undo()
    tab.shows(*todos.stored())
    assert sorted(todos.stored()) == [*"abcde"]


@pytest.mark.parametrize(("show", "lines", "title"),
                         [("active", ("a", "[x] b", "c"), "a"), ("completed", ("[x] a", "b", "[x] c"), "a")])
def test_undo_under_a_filter(todos, show, lines, title):
    tab = todos.open(*lines, show=show)
    tab.delete(title)
    expect(tab.items).to_have_count(1)
    tab.undo()
    tab.shows(*(line for line in lines if ("[x]" in line) == (show == "completed")))


def test_undo_of_clear_completed_under_a_filter(todos):
    tab = todos.open("[x] a", "b", "[x] c", show="completed")
    tab.button("Clear completed").click()
    tab.shows()
    tab.undo()
    tab.shows("[x] a", "[x] c")


def test_undo_is_offered_where_the_tabs_news_comes_before_the_answer(todos):
    """The button that was pressed is gone from the page then."""
    tab, held = todos.open("[x] a", "b"), []
    tab.page.route("**/clear_completed*", lambda route: held.append((route, route.fetch())))
    tab.button("Clear completed").click()
    tab.shows("b")
    expect(tab.button("Clear completed")).to_have_count(0)
    route, answer = until(lambda: tab.page.evaluate("1") and held, what="an answer")[0]
    route.fulfill(response=answer)
    tab.undo()
    tab.shows("[x] a", "b")


@pytest.mark.parametrize("how", ["Delete a", "Clear completed"])
def test_undo_is_offered_for_some_seconds_and_said(todos, place, open_page, how):
    todos.given("[x] a", "b")
    tab = todos.tab(open_page())
    tab.page.clock.install()
    tab.page.goto(place.url + todos.path)
    tab.page.evaluate("() => { document.getElementById('toast').same = true }")
    tab.button(how).click()
    expect(tab.toast).to_contain_text("“a” is deleted." if how == "Delete a" else "Cleared 1 finished todo.")
    expect(tab.toast.get_by_role("button", name="Undo")).to_be_visible()
    assert tab.page.evaluate("() => document.querySelector('[role=status]#toast').same")     # a new one would not be read out
    tab.page.clock.fast_forward(4_000)
    expect(tab.toast.get_by_role("button", name="Undo")).to_be_visible()
    tab.page.clock.fast_forward(16_000)
    expect(tab.toast.get_by_role("button", name="Undo")).to_be_hidden()
    tab.shows("b")


# ---- Every tab the same

SEEN = """() => { window.changes = []; new MutationObserver(() => changes.push(performance.timeOrigin + performance.now()))
  .observe(document.querySelector('#todo-list'), {subtree: true, childList: true, attributes: true, characterData: true}) }"""
ACTED = """() => ['click', 'keydown'].forEach(event => addEventListener(event, () => {
  window.acted = performance.timeOrigin + performance.now() }, {capture: true}))"""


def delays(watching, changes):
    """Milliseconds from each change, which returns when it began, to its sight in another tab."""
    watching.page.evaluate(SEEN)
    for change, lines in changes:
        watching.page.evaluate("() => { changes.length = 0 }")
        began = change()
        watching.shows(*lines)
        yield watching.page.evaluate("() => changes[0]") - began


def test_a_change_in_one_tab_shows_in_all_others_at_once(todos):
    tab = todos.open("a", "b")
    others = [todos.open(), todos.open()]
    tab.page.evaluate(ACTED)

    def acted(do):
        do()
        return tab.page.evaluate("() => acted")
    took = [*delays(others[0], [
        (lambda: acted(lambda: tab.add("c")), ["a", "b", "c"]),
        (lambda: acted(lambda: tab.box("b").check()), ["a", "[x] b", "c"]),
        (lambda: acted(lambda: tab.item("c").press("Alt+ArrowUp")), ["a", "c", "[x] b"]),
        (lambda: acted(lambda: tab.delete("a")), ["c", "[x] b"]),
        (lambda: acted(tab.undo), ["a", "c", "[x] b"]),
        (lambda: acted(tab.mark_all.check), ["[x] a", "[x] c", "[x] b"]),
        (lambda: acted(tab.button("Clear completed").click), [])])]
    for t in tab, *others:
        t.shows()
    assert median(took) < 200, took


def test_a_change_by_a_script_shows_in_all_tabs_at_once(todos):
    tabs = [todos.open("a", "b"), todos.open()]
    a, b = todos.ident("a"), todos.ident("b")

    def sent(path, **data):
        began = time() * 1000
        todos.post(path, **data)
        return began
    took = [*delays(tabs[1], [
        (lambda: sent("todo", title="c", profile=todos.profile), ["a", "b", "c"]),
        (lambda: sent(f"toggle/{b}"), ["a", "[x] b", "c"]),
        (lambda: sent("rename", kind="todo", id=a, name="A"), ["A", "[x] b", "c"]),
        (lambda: sent("move", kind="todo", id=a, before=0), ["[x] b", "c", "A"]),
        (lambda: sent("delete", kind="todo", id=b), ["c", "A"]),
        (lambda: sent("toggle_all", profile=todos.profile), ["[x] c", "[x] A"]),
        (lambda: sent("clear_completed", profile=todos.profile), [])])]
    tabs[0].shows()
    assert median(took) < 200, took


def test_what_comes_twice_stands_there_once(todos):
    """A tab that the server takes for another one: what it adds comes as news, and as the answer."""
    tab = todos.open("a")
    tab.page.route("**/todo", lambda route: route.continue_(headers=route.request.headers | {"x-tab": "another"}))
    tab.add("b", "c")
    tab.shows("a", "b", "c")
    tab.box("c").check()
    tab.shows("a", "b", "[x] c")


def test_counters_and_controls_follow_in_every_tab(todos):
    tab, other = todos.open("a"), todos.open()
    tab.add("b")
    other.counts("2 items left")
    tab.mark_all.check()
    other.counts("0 items left")
    expect(other.mark_all).to_be_checked()
    other.button("Clear completed").click()
    expect(tab.mark_all).to_be_hidden()


def test_another_profile_sees_nothing_of_it(todos):
    tab, stranger = todos.open("a"), todos.another()
    theirs = stranger.open("x")
    tab.add("b")
    stranger.given("y")
    theirs.shows("x", "y")
    tab.shows("a", "b")


@pytest.mark.parametrize("show", ["active", "completed"])
def test_a_tab_with_a_filter_follows_too(todos, show):
    mark = {"active": ("", "[x] "), "completed": ("[x] ", "")}[show]
    lines = [mark[n] + title for n, title in zip((0, 1, 0, 1), "abcd", strict=True)]
    tab, other = todos.open(*lines, show=show), todos.open()
    tab.shows(mark[0] + "a", mark[0] + "c")
    other.box("b").click()                                            # it matches now
    tab.shows(*(mark[0] + title for title in "abc"))
    other.box("a").click()                                            # it does not any more
    tab.shows(*(mark[0] + title for title in "bc"))
    other.item("c").press("Alt+ArrowUp")
    tab.shows(*(mark[0] + title for title in "cb"))
    other.item("b").press("Alt+ArrowDown")
    other.item("c").press("Alt+ArrowDown")
    other.item("c").press("Alt+ArrowDown")                            # behind b and the unmatched d
    tab.shows(*(mark[0] + title for title in "bc"))


def turmoil(todos):
    """Everything that can happen to a list, by a script; what is left of it."""
    a, b, mine = map(todos.ident, ("a", "b", "mine"))
    for path, data in (("todo", {"title": "new", "profile": todos.profile}), (f"toggle/{a}", {}),
                       ("rename", {"kind": "todo", "id": b, "name": "B"}), ("move", {"kind": "todo", "id": b, "before": mine}),
                       ("move", {"kind": "todo", "id": a, "before": 0}), ("delete", {"kind": "todo", "id": b}),
                       ("toggle_all", {"profile": todos.profile}), ("toggle_all", {"profile": todos.profile}),
                       (f"toggle/{mine}", {}), (f"toggle/{mine}", {}),
                       (f"toggle/{a}", {}), ("clear_completed", {"profile": todos.profile})):
        todos.post(path, **data)
    todos.given("last")
    return ["mine", "new", "last"]


def test_what_somebody_types_is_not_touched(todos):
    tab = todos.open("a", "mine", "b")
    tab.new.press_sequentially("half a todo")
    tab.new.evaluate("e => e.setSelectionRange(2, 4)")
    left = turmoil(todos)
    tab.shows(*left)
    expect(tab.new).to_have_value("half a todo")
    expect(tab.new).to_be_focused()
    assert tab.new.evaluate("e => [e.selectionStart, e.selectionEnd]") == [2, 4]


def test_what_somebody_edits_is_not_touched(todos):
    tab = todos.open("a", "mine", "b")
    tab.edit("mine", "mine, half wri")
    tab.editor.evaluate("e => { e.setSelectionRange(2, 4); e.mine = 1 }")
    left = turmoil(todos)
    tab.shows(*left[1:])
    expect(tab.editor).to_have_value("mine, half wri")
    expect(tab.editor).to_be_focused()
    assert tab.editor.evaluate("e => [e.selectionStart, e.selectionEnd, e.mine]") == [2, 4, 1]
    tab.editor.press("End")
    tab.editor.press_sequentially("tten")
    tab.editor.press("Enter")
    tab.shows("mine, half written", *left[1:])
    assert todos.stored() == ["mine, half written", *left[1:]]


def test_the_focus_stays_on_an_item_that_changes_elsewhere(todos):
    tab, other = todos.open("a", "b"), todos.open()
    tab.item("a").focus()
    other.box("a").check()
    tab.shows("[x] a", "b")
    expect(tab.item("a")).to_be_focused()
    other.item("a").press("Alt+ArrowDown")
    tab.shows("b", "[x] a")
    expect(tab.item("a")).to_be_focused()


# ---- A list is text

LIST = "- [ ] milk\n- [x] bread\n- [ ] *tea* & <b>\n"


def clipboard(tab):
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    return "navigator.clipboard."


def paste(tab, text):
    tab.page.evaluate(f"text => {clipboard(tab)}writeText(text)", text)
    tab.new.focus()
    tab.page.keyboard.press("Control+V")


@pytest.mark.parametrize(("text", "lines"), [
    ("milk\nbread\r\n\n  tea  \n", ["milk", "bread", "tea"]),
    ("- [ ] milk\n- [x] bread\n* [X] tea\n", ["milk", "[x] bread", "[x] tea"]),
    ("- milk\n* bread\n+ tea\n1. rice\n2) salt\n  - [x] deep", ["milk", "bread", "tea", "rice", "salt", "[x] deep"]),
    ("-5 degrees\n2 eggs\n[y] no list\n#7", ["-5 degrees", "2 eggs", "[y] no list", "#7"])],
    ids=["lines", "boxes", "lists", "no lists"])
def test_several_pasted_lines_become_several_todos(todos, text, lines):
    tab, other = todos.open("first"), todos.open()
    paste(tab, text)
    for t in tab, other:
        t.shows("first", *lines)
    assert todos.stored() == ["first", *lines]
    expect(tab.new).to_have_value("")


def test_one_pasted_line_goes_into_the_field(todos):
    tab = todos.open()
    tab.new.fill("fresh ")
    paste(tab, "milk")
    expect(tab.new).to_have_value("fresh milk")
    tab.new.press("Enter")
    tab.shows("fresh milk")


def test_a_list_copies_out_as_markdown_and_in_again(todos):
    tab = todos.open("milk", "[x] bread", "*tea* & <b>")
    ask = clipboard(tab)
    tab.button("Copy list").click()
    expect(tab.button("Copied")).to_be_visible()
    assert tab.page.evaluate(f"() => {ask}readText()") == LIST
    expect(tab.button("Copy list")).to_be_visible()                   # it is called what it was
    other = todos.another().open()
    paste(other, LIST)
    other.shows("milk", "[x] bread", "*tea* & <b>")


def test_where_the_browser_does_not_copy_it_is_said(todos):
    tab = todos.open("milk")
    tab.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    tab.button("Copy list").click()
    expect(tab.toast).to_contain_text("localhost")


# ---- Bad input

@pytest.mark.parametrize("field", ["new", "editor"])
def test_the_limit_of_a_text_is_shown_before_it_is_reached(todos, field):
    tab = todos.open("milk")
    if field == "editor":
        tab.title("milk").dblclick()
    box = getattr(tab, field)
    box.fill("x" * 400)
    expect(tab.toast).to_be_empty()
    box.fill("x" * 490)
    expect(tab.toast).to_contain_text("10 characters left")
    box.press_sequentially("y" * 12)
    expect(tab.toast).to_contain_text("0 characters left")
    text = "x" * 490 + "y" * 10
    expect(box).to_have_value(text)
    box.press("Enter")
    tab.shows(*(["milk", text] if field == "new" else [text]))
    assert todos.stored()[-1] == text


def test_a_text_above_the_limit_is_refused_in_a_sentence(todos):
    todos.given("milk")
    adding = {"title": "x" * 501, "profile": todos.profile}
    for path, data in ("todo", adding), ("rename", {"kind": "todo", "id": todos.ident("milk"), "name": "x" * 501}):
        reply = todos.web.post(path, data=data)
        assert reply.status_code == 400
        assert re.fullmatch(r"[^<{]*501[^<{]*500[^<{]*\.", reply.text)
    assert todos.stored() == ["milk"]


def test_pasted_lines_of_which_one_is_too_long_add_nothing_and_say_so(todos):
    todos.window.allow_errors = "400"
    tab = todos.open("milk")
    paste(tab, "bread\n" + "x" * 501)
    expect(tab.toast).to_contain_text("501")
    tab.shows("milk")
    assert todos.stored() == ["milk"]


def test_of_two_tabs_that_edit_an_item_the_later_save_wins(todos):
    early, late = todos.open("milk", "bread"), todos.open()
    early.edit("milk", "oat milk")
    late.edit("milk", "soy milk")
    early.editor.press("Enter")
    early.shows("oat milk", "bread")
    expect(late.editor).to_have_value("soy milk")
    late.editor.press("Enter")
    for tab in early, late:
        tab.shows("soy milk", "bread")
    assert todos.stored() == ["soy milk", "bread"]


@pytest.mark.parametrize("key", ["Enter", "Escape"])
def test_an_item_moved_elsewhere_while_it_is_edited_is_in_its_place_after_it(todos, key):
    tab, other = todos.open(*"abc"), todos.open()
    tab.edit("a", "a")
    other.item("a").press("Alt+ArrowDown")
    other.item("a").press("Alt+ArrowDown")
    until(lambda: todos.stored() == [*"bca"], what="a move")
    tab.editor.press(key)
    tab.shows(*"bca")


def test_keys_do_nothing_to_a_row_whose_form_is_on_its_way(todos):
    """Who types at once into a double click would tick it off by a space."""
    tab, held = todos.open("milk"), []
    tab.page.route("**/edit?*", lambda route: held.append(route))  # noqa: PLW0108 (Playwright wants a function)
    with tab.page.expect_request("**/edit?*"):
        tab.title("milk").dblclick()
    tab.page.keyboard.press("Space")
    tab.page.keyboard.press("Delete")
    held[0].continue_()
    expect(tab.editor).to_be_focused()
    tab.editor.press("Enter")
    tab.shows("milk")


def test_a_click_into_the_edited_text_does_not_lose_the_place(todos):
    tab = todos.open("milk", "bread")
    tab.item("bread").press("F2")
    assert tab.editor.evaluate("e => e.selectionStart") == len("bread")
    tab.editor.click()
    tab.editor.press("Enter")
    expect(tab.item("bread")).to_be_focused()


def test_an_item_added_and_ticked_at_once_is_both_elsewhere(todos):
    """Changes of one row within a frame: the newest counts, and nothing of the others is lost."""
    tab = todos.open("a", "b", "c")
    for n in range(10):
        made = todos.post("todo", title=f"n{n}", profile=todos.profile)
        ident = re.search(r'id="todo-(\d+)"', made)[1]
        todos.post("move", kind="todo", id=ident, before=todos.ident("b"))
        todos.post(f"toggle/{ident}")
        todos.post("move", kind="todo", id=todos.ident("c"), before=ident)
    tab.shows(*todos.stored())


def test_giving_up_an_edit_shows_what_another_tab_saved_meanwhile(todos):
    tab, other = todos.open("milk", "bread"), todos.open()
    tab.edit("milk", "oat milk")
    other.edit("milk", "soy milk")
    other.editor.press("Enter")
    other.shows("soy milk", "bread")
    tab.editor.press("Escape")
    tab.shows("soy milk", "bread")


@pytest.fixture
def edits_what_is_gone(todos):
    """A tab in which milk is edited that was deleted in another tab meanwhile."""
    todos.window.allow_errors = "404"
    tab, other = todos.open("milk", "bread"), todos.open()
    tab.edit("milk", "oat milk")
    other.delete("milk")
    tab.counts("1 item left")
    return tab


def test_giving_up_an_edit_of_what_was_deleted_meanwhile_adds_nothing(edits_what_is_gone):
    tab = edits_what_is_gone
    tab.editor.press("Escape")
    tab.shows("bread")
    expect(tab.new).to_have_value("")


def test_saving_an_item_that_was_deleted_meanwhile_says_so(todos, edits_what_is_gone):
    tab = edits_what_is_gone
    tab.editor.press("Enter")
    expect(tab.toast).to_contain_text("deleted")
    expect(tab.editor).to_have_count(0)
    tab.shows("bread")
    expect(tab.new).to_have_value("oat milk")                         # what was typed is not lost
    tab.new.press("Enter")
    tab.shows("bread", "oat milk")
    assert todos.stored() == ["bread", "oat milk"]


def test_a_stale_page_heals_itself_after_a_restart(todos, place):
    todos.window.allow_errors = OFFLINE
    tab = todos.open("milk", "bread")
    tab.new.fill("half a to")
    place.stop()
    expect(tab.page.locator("#offline")).to_be_visible()
    place.start()
    todos.given("tea")
    httpx.post(f"{place.url}/toggle/{todos.ident('milk')}", trust_env=False)
    tab.shows("[x] milk", "bread", "tea")
    expect(tab.page.locator("#offline")).to_be_hidden()
    expect(tab.new).to_have_value("half a to")
    tab.box("bread").check()
    tab.shows("[x] milk", "[x] bread", "tea")
    assert todos.stored() == ["[x] milk", "[x] bread", "tea"]


def test_a_click_while_the_app_is_down_is_told(todos, place):
    todos.window.allow_errors = OFFLINE
    tab = todos.open("milk")
    place.stop()
    tab.box("milk").click()
    expect(tab.toast).to_contain_text("does not answer")
    expect(tab.box("milk")).not_to_be_checked()                       # nothing was stored
    place.start()
    expect(tab.page.locator("#offline")).to_be_hidden()
    tab.shows("milk")
