"""The app for everybody: axe on every page and state, keyboard, narrow and zoomed windows, sizes of targets, announcements."""
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from chatting import OFFLINE
from conftest import ask, open_job, open_lists, wait_done
from fake_ollama import Script
from playwright.sync_api import expect

pytest_plugins = "chatting"
RICH = """# Heading

Text with **bold**, `code` and a [link](https://a.example/).

## Smaller

- one
- two

1. first

| a | b | a wide column |
|---|---|---|
| 1 | 2 | """ + "wide " * 30 + """|

```python
def f(x):
    return 'a' + x  # a comment that is long enough to be wider than a narrow window is
```

> quoted

---

""" + "averylongword" * 12
# Whatever can be pressed and is to be seen, but for what stands in running text, and its size.
TARGETS = """() => [...document.querySelectorAll('button, a, input, select, textarea, summary')].filter(el =>
    el.checkVisibility({ visibilityProperty: true }) && el.type !== 'hidden' &&
    !el.closest('.hide, .content p, .content li')).map(el => {
  const box = (el.type === 'checkbox' ? el.closest('label') || el : el).getBoundingClientRect()
  return [el.outerHTML.slice(0, 120), box.width, box.height] }).filter(([_, w, h]) => w < 24 || h < 24)"""
WIDER = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')].filter(el =>
    el.getBoundingClientRect().right > innerWidth).map(el => el.outerHTML.slice(0, 120))"""
FOCUSED = """() => { const $ = id => document.getElementById(id)
  const el = document.activeElement, css = getComputedStyle(el), box = el.getBoundingClientRect()
  const ring = el.id === 'msg' && getComputedStyle(el.form)    // the whole composer shows that its field has the focus
  return { name: el.id || el.getAttribute('aria-label') || el.placeholder || el.textContent.trim(), tag: el.tagName,
           ring: ring ? ring.boxShadow !== 'none' && ring.borderColor === getComputedStyle($('send-btn')).backgroundColor :
             el.matches(':focus-visible') && css.outlineStyle !== 'none' && parseFloat(css.outlineWidth) >= 2,
           seen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth } }"""
AXE = Axe().axe_script
# Not all the rest that it has found right: to bring that over takes longer than to find it.
VIOLATIONS = "axe.run({ resultTypes: ['violations'] }).then(found => found.violations)"


class Look:
    """Looks at a page in each of its states: with axe, at its width and at its targets; tells all that is wrong at once."""

    def __init__(self, page):
        self.page, self.wrong = page, []

    def at(self, state):
        # A page that moves is looked at as it will be: the toast and the rest have no transitions.
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE)
        for v in self.page.evaluate(VIOLATIONS):
            self.wrong += [f"{state}: {v['id']} ({v['impact']}): {n['html'][:160]}\n    {n['failureSummary'][:300]}"
                           for n in v["nodes"][:3]]
        self.wrong += [f"{state}: {w:.0f}x{h:.0f} px: {html}" for html, w, h in self.page.evaluate(TARGETS)]
        self.wrong += [f"{state}: wider than the window: {html}" for html in self.page.evaluate(WIDER)]

    def done(self):
        assert not self.wrong, "\n".join(dict.fromkeys(self.wrong))


@pytest.fixture
def look(chat):
    return Look(chat.page)


SIZES = {"wide": (1280, 800), "middle": (900, 700), "narrow": (390, 740), "zoomed": (640, 400)}


# For what looks much the same in all sizes: the largest and the smallest.
TWO_SIZES = pytest.mark.parametrize("seen", [("wide", "dark"), ("narrow", "light")], indirect=True, ids="-".join)


@pytest.fixture(params=[("wide", "light"), ("middle", "dark"), ("narrow", "light"), ("zoomed", "dark")], ids="-".join)
def seen(request, chat):
    """The page in a size and in a theme."""
    size, theme = request.param
    chat.page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
    chat.page.emulate_media(color_scheme=theme, reduced_motion="no-preference")
    yield chat.page
    chat.page.set_viewport_size({"width": 1280, "height": 720})
    chat.page.emulate_media(color_scheme="light")


def add(page, *titles):
    open_lists(page)
    for title in titles:
        page.get_by_placeholder("What needs to be done?").fill(title)
        page.keyboard.press("Enter")
        expect(page.locator("#todo-list .title", has_text=title)).to_have_count(1)


def close_drawer(page):
    """Back to the chat, where the lists are a drawer."""
    page.locator("#msg").focus()
    expect(page.locator("html")).not_to_have_attribute("data-side", "open")


def finish(chat, page):
    """Mark the first todo as done."""
    page.locator("#todo-list [type=checkbox]").first.check()
    expect(page.locator("#todo-list .done")).to_have_count(1)


def test_the_page_in_its_states(chat, seen, look):
    page = seen
    look.at("empty")
    add(page, "Milk", "A very long title " * 8, "Bread" * 30)
    finish(chat, page)
    look.at("todos")
    close_drawer(page)
    chat.answered("Tell me everything", Script(text=RICH, thinking=["Let me ", "think."]))
    look.at("todos and a rich answer")
    page.locator(".thinking summary").click()
    look.at("thinking")
    open_lists(page)
    page.locator("#todo-list .title").first.dblclick()
    expect(page.locator(".editing input")).to_be_focused()
    look.at("editing a todo")
    page.keyboard.press("Escape")
    page.locator("#todo-list li").first.hover()
    look.at("a row with the pointer on it")
    page.get_by_role("button", name="Delete Milk").click()
    expect(page.locator("#toast button")).to_be_visible()
    look.at("toast")
    page.locator("#search").fill("milk")
    expect(page.locator("#search-results a").first).to_be_visible()
    look.at("search results")
    page.locator("#search").fill("nowheretobefound")
    expect(page.locator("#search-results")).to_have_text("Nothing found.")
    look.at("no search results")
    page.locator("#search").fill("")
    expect(page.locator("#search-results")).to_be_empty()
    close_drawer(page)
    page.locator(".bar .drop summary").click()
    look.at("settings")
    page.keyboard.press("Escape")
    page.locator("#msg").focus()
    page.keyboard.type("Several\nlines")
    look.at("something typed")
    page.locator("#msg").fill("")
    page.locator("#msg-list").focus()
    page.keyboard.press("?")
    look.at("sheet")
    page.keyboard.press("Escape")
    if page.get_by_role("button", name="Hide sidebar").is_visible():
        page.get_by_role("button", name="Hide sidebar").click()
        look.at("without the sidebar")
    look.done()


@TWO_SIZES
def test_the_profiles_in_their_states(chat, seen, look):
    page = seen
    chat.post("todo", title="Milk", profile=chat.profile)
    open_lists(page)
    page.locator("#profile-name").click()
    look.at("menu")
    page.get_by_text("Edit profiles").click()
    look.at("list")
    row = page.locator(f"#profile-{chat.profile}")
    row.get_by_role("button", name="Rename Somebody").click()
    expect(page.locator("#profile-list .editing [name=name]")).to_be_visible()
    look.at("editing")
    page.locator("#profile-list .editing [name=name]").press("Escape")
    row.get_by_role("button", name="Delete Somebody").click()
    expect(page.locator("#profile-list .asking")).to_be_visible()
    look.at("asking")
    look.done()


@TWO_SIZES
def test_the_chat_in_its_states(chat, seen, look):
    page = seen
    chat.ask("One", Script(text="one two three", gate=True))
    ask(page, "Two")
    chat.fake.release(1)
    expect(chat.content).to_have_text("one")
    look.at("streaming, and a prompt in line")
    page.get_by_role("button", name="Withdraw").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_done(page)
    look.at("stopped")
    chat.answered("Three", Script(text="half an answer", error="out of `memory`", error_after=1))
    look.at("error")
    open_lists(page)
    page.get_by_role("link", name="New chat").click()
    expect(page.locator("#msg-list .msg")).to_have_count(0)
    look.at("new chat")
    look.done()


@TWO_SIZES
def test_the_jobs_in_their_states(chat, seen, look):
    page, chat.window.allow_errors = seen, "422|Response Status Error"
    open_lists(page)
    open_job(page, "audit_pages")
    look.at("a form that is open")
    page.get_by_role("button", name="Run Audit pages").click()
    expect(page.locator("#job-list .error")).to_be_visible()
    look.at("an error beside a field")
    field = page.get_by_label("Urls")
    assert field.get_attribute("aria-invalid") and page.locator(f"#{field.get_attribute('aria-describedby')}").is_visible()
    field.fill(f"{chat.server.url}/\nhttp://localhost:{chat.server.port}/")
    page.get_by_role("button", name="Run Audit pages").click()
    expect(page.locator(".question button")).to_have_count(2)
    look.at("a question")
    page.get_by_role("button", name="Cancel", exact=True).last.click()
    expect(page.locator("[data-role=job][data-status=stopped]")).to_have_count(1)
    ident = chat.post("chatq", text="Working", progress="40", profile=chat.profile)
    expect(page.locator(f"#msg-{ident} progress")).to_be_visible()
    look.at("a job with progress")
    chat.post("chatq", id=ident, done="1")
    look.done()


def test_the_other_pages(chat, seen, look):
    chat.window.allow_errors = f"404|{OFFLINE}"
    seen.goto(f"{chat.server.url}/nothing")
    look.at("404")
    seen.goto(chat.url)
    seen.locator("#offline").evaluate("el => { el.hidden = false }")     # as test_chat.py has it when the line is cut
    look.at("offline")
    look.done()


# ---- the keyboard

def tab_through(page, most=120):
    """What Tab reaches, from the link at the top of the page to where it leaves it."""
    page.locator(".brand a").focus()
    stops = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop["tag"] == "BODY" or stops and stop == stops[0]:
            break
        stops.append(stop)
    return stops


def test_tab_reaches_everything_and_shows_where_it_is(chat):
    page = chat.page
    add(page, "Milk", "Bread")
    finish(chat, page)
    chat.answered("Hi", Script(text="An answer, `code`:\n\n```\nx\n```"))
    open_job(page, "audit_pages")
    stops = tab_through(page)
    assert not [s for s in stops if not s["ring"]], "without a visible focus"
    assert not [s for s in stops if not s["seen"]], "out of sight"
    names = [s["name"] for s in stops]
    order = ["Hide sidebar", "search", "new-chat", "Rename Hi", "Delete Hi", "Copy list", "Rename Milk", "Delete Milk",
             "Rename Bread", "What needs to be done?", "show-all", "show-active", "show-completed", "Run Summarise my todos",
             "audit_pages-urls", "Run Audit pages", "Settings", "Light or dark", "Keyboard shortcuts", "msg-list",
             "Delete message", "msg", "model", "send-btn"]
    assert not set(order) - set(names), names
    places = [names.index(n) for n in order]
    assert places == sorted(places), names
    reachable = page.evaluate("""() =>
      [...document.querySelectorAll('button, a[href], input, select, textarea, summary')].filter(el =>
        el.checkVisibility({ visibilityProperty: true }) && el.type !== 'hidden' && el.tabIndex >= 0 && !el.disabled).length""")
    assert len(stops) >= reachable - 1, names        # the first one is where it began


def test_search_and_sheet_by_a_key(chat):
    page, sheet = chat.page, chat.page.locator("#keys")
    add(page, "Milk")
    page.locator("#todo-list > li").focus()
    page.keyboard.press("?")
    expect(sheet).to_be_visible()
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    page.locator("#todo-list > li").focus()
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("?/")                                     # in a text they are signs
    expect(page.locator("#search")).to_have_value("?/")
    page.locator("#msg").focus()
    page.keyboard.type("what/where?")
    expect(page.locator("#msg")).to_have_value("what/where?")
    expect(sheet).to_be_hidden()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    sheet.get_by_role("checkbox").uncheck()
    page.keyboard.press("Escape")
    for _ in range(2):                                           # it is remembered
        page.locator("#todo-list > li").focus()
        page.keyboard.press("?")
        page.keyboard.press("/")
        expect(page.locator("#todo-list > li")).to_be_focused()
        expect(sheet).to_be_hidden()
        page.reload()
    expect(page.locator("#single-keys")).not_to_be_checked()


def test_escape_closes_what_is_open(chat):
    page = chat.page
    for summary in page.locator("header .drop > summary"), page.locator(".bar .drop > summary"):
        summary.focus()
        page.keyboard.press("Enter")
        panel = summary.locator("..").locator("> .panel")
        expect(panel).to_be_visible()
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
        expect(panel).to_be_hidden()
        expect(summary).to_be_focused()
    page.get_by_role("button", name="Keyboard shortcuts").press("Enter")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    expect(page.get_by_role("button", name="Keyboard shortcuts")).to_be_focused()


def test_a_todo_by_keys_alone(chat):
    """Add, tick, move, rename and delete; focus stays where one works, and each is announced."""
    page, told = chat.page, chat.page.locator("#announce")
    page.get_by_placeholder("What needs to be done?").focus()
    for title in "Milk", "Bread":
        page.keyboard.type(title)
        page.keyboard.press("Enter")
        expect(page.locator("#todo-list .title", has_text=title)).to_have_count(1)
        expect(page.get_by_placeholder("What needs to be done?")).to_have_value("")
    expect(told).to_have_text("Added.")
    bread = page.locator("#todo-list > li", has_text="Bread")
    bread.focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(told).to_have_text("Moved to place 1 of 2.")
    expect(page.locator("#todo-list .title")).to_have_text(["Bread", "Milk"])
    expect(bread).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#todo-list > .done")).to_have_count(1)
    expect(bread).to_be_focused()
    page.keyboard.press("F2")
    expect(page.locator(".editing input")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#todo-list .editing")).to_have_count(0)
    expect(bread).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".editing input")).to_be_focused()
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    bread = page.locator("#todo-list > li", has_text="!")
    expect(bread).to_be_focused()
    page.keyboard.press("Delete")
    expect(page.locator("#todo-list > li")).to_have_count(1)
    expect(page.get_by_role("status").filter(has_text="is deleted.")).to_be_visible()
    expect(page.locator("#todo-list > li")).to_be_focused()


LOST = "() => document.activeElement === document.body || !document.activeElement.checkVisibility()"


def at_rest(page, place):
    """The focus is here, and not only for a moment."""
    expect(page.locator(place)).to_be_focused()
    page.wait_for_function("() => !document.querySelector('.htmx-request, .htmx-settling, .htmx-swapping')")
    expect(page.locator(place)).to_be_focused()


def test_the_focus_stays_where_one_works_in_the_list(chat):
    page = chat.page
    add(page, "Milk", "Bread", "Tea")
    ids = {title: f"#{page.locator('#todo-list > li', has_text=title).get_attribute('id')}" for title in ("Milk", "Bread", "Tea")}
    page.locator("#toggle-all").focus()
    page.keyboard.press("Space")
    expect(page.locator("#todo-list > .done")).to_have_count(3)
    at_rest(page, "#toggle-all")
    page.keyboard.press("Space")
    expect(page.locator("#todo-list > .done")).to_have_count(0)
    at_rest(page, "#toggle-all")
    page.get_by_role("link", name="Active").click()
    page.locator(ids["Milk"]).focus()
    page.keyboard.press("Space")                                  # it leaves, as it does not match any more
    expect(page.locator(ids["Milk"])).to_be_hidden()
    at_rest(page, ids["Bread"])
    page.get_by_role("link", name="All").click()
    page.get_by_role("button", name="Clear completed").focus()
    page.keyboard.press("Enter")
    expect(page.locator(ids["Milk"])).to_have_count(0)
    page.wait_for_function(f"() => !({LOST})()")
    page.get_by_role("button", name="Delete Tea").focus()
    page.keyboard.press("Enter")                                  # Delete
    at_rest(page, ids["Bread"])
    page.locator("#toast button").focus()
    page.keyboard.press("Enter")                                  # Undo
    expect(page.locator(ids["Tea"])).to_be_visible()
    at_rest(page, ids["Bread"])


def test_the_focus_stays_where_one_works_in_the_chat(chat):
    page = chat.page
    chat.ask("Hi", Script(text="one two three", gate=True))
    chat.fake.release(1)
    expect(page.locator("#stop-btn")).to_be_visible()
    page.locator("#stop-btn").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#announce")).to_have_text("Stopped.")
    at_rest(page, "#send-btn")
    stopped = chat.answer.get_attribute("data-rev")
    chat.button("Try again").focus()
    page.keyboard.press("Enter")
    expect(chat.answer).not_to_have_attribute("data-rev", stopped)       # until then the stopped one is at rest, too
    chat.fake.release()
    wait_done(page)
    page.wait_for_function(f"() => !({LOST})()")
    chat.button("Delete message").focus()
    page.keyboard.press("Enter")
    expect(chat.answers).to_have_count(0)
    at_rest(page, "#msg-list")


def test_arrows_go_from_row_to_row_and_keys_leave_the_row_behind_the_sheet_alone(chat):
    page = chat.page
    add(page, "Milk", "Bread")
    rows = page.locator("#todo-list > li")
    rows.first.focus()
    for key, at in ("ArrowDown", 1), ("ArrowDown", 1), ("ArrowUp", 0), ("ArrowUp", 0):
        page.keyboard.press(key)
        expect(rows.nth(at)).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_focused()
    page.keyboard.press("Delete")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    expect(rows.first).to_be_focused()
    expect(rows).to_have_count(2)
    expect(page.locator("#todo-list > .done")).to_have_count(0)


def test_undo_by_mouse_leaves_the_focus_in_the_list(chat):
    page = chat.page
    add(page, "Milk", "Bread")
    page.locator("#todo-list > li", has_text="Milk").focus()
    page.keyboard.press("Delete")
    page.locator("#toast button").click()
    expect(page.locator("#todo-list > li")).to_have_count(2)
    page.wait_for_function("() => document.activeElement.closest('#todo-list')")


def test_a_deletion_is_taken_back_by_keys(chat):
    page = chat.page
    add(page, "Milk", "Bread")
    for _ in range(2):
        page.locator("#todo-list > li", has_text="Milk").focus()
        page.keyboard.press("Delete")
        expect(page.locator("#todo-list .title")).to_have_text(["Bread"])
        page.keyboard.press("Control+z")
        expect(page.locator("#todo-list .title")).to_have_text(["Milk", "Bread"])
    page.locator("#msg").fill("typed")
    page.keyboard.press("Control+z")                              # a text's own Undo is not touched
    expect(page.locator("#msg")).to_have_value("")


def test_a_way_back_stays_as_long_as_one_is_at_it(chat, open_page):
    chat.post("todo", title="Milk", profile=chat.profile)
    page = open_page()
    page.clock.install()
    page.goto(chat.url)
    page.get_by_role("button", name="Delete Milk").click()
    page.locator("#toast button").focus()
    page.clock.fast_forward(20_000)
    expect(page.locator("#toast button")).to_be_focused()
    page.locator("#msg").focus()
    page.clock.fast_forward(20_000)
    expect(page.locator("#toast")).to_be_empty()


def test_an_answer_is_announced(chat):
    chat.answered("Hi", Script(text="Hello"))
    expect(chat.page.locator("#announce")).to_have_text("The answer is here.")
    expect(chat.page.locator("#announce")).to_have_role("status")
    assert chat.page.locator("#msg-list").get_attribute("aria-live") == "off"       # not each token


# ---- a phone, and a window at 200 %

@pytest.fixture(params=[(360, 740), (640, 400)], ids=["phone", "zoomed"])
def small(request, chat):
    chat.page.set_viewport_size(dict(zip(("width", "height"), request.param, strict=True)))
    yield chat.page
    chat.page.set_viewport_size({"width": 1280, "height": 720})


def inside(page, place):
    """All of it lies in the window, or can be scrolled to within it."""
    box, window = page.locator(place).bounding_box(), page.viewport_size
    return box["x"] >= 0 and box["x"] + box["width"] <= window["width"] and box["y"] >= 0 and box["y"] < window["height"]


def test_a_page_opens_at_its_top(chat, small):
    chat.answered("Hi", Script(text="Hello\n\n" * 30))
    small.goto("about:blank")                                     # a reload would restore where one was
    small.goto(chat.url)
    expect(small.locator("#msg-list")).to_contain_text("Hello")
    assert small.evaluate("() => [scrollY, document.activeElement.tagName]") == [0, "BODY"]
    small.set_viewport_size({"width": 1280, "height": 720})
    small.reload()
    expect(small.locator("#msg")).to_be_focused()


def test_panels_and_the_way_back_are_in_reach(chat, small):
    long = "https://a.example/" + "very-long-path" * 30
    chat.post("todo", title=long, profile=chat.profile)
    chat.post("todo", title="words " * 80, profile=chat.profile)
    open_lists(small)
    for begins in "https", "words":
        small.get_by_role("button", name=re.compile(f"^Delete {begins}")).click()
        expect(small.locator("#toast")).to_contain_text(f"“{begins}")
        assert inside(small, "#toast button")
        assert small.locator("#toast").bounding_box()["height"] < 200
    close_drawer(small)
    small.locator(".bar .drop summary").click()
    small.locator(".bar .panel").scroll_into_view_if_needed()
    assert inside(small, ".bar .panel")
    small.keyboard.press("Escape")
    small.keyboard.press("?")
    small.locator("#single-keys").scroll_into_view_if_needed()
    assert inside(small, "#keys") and inside(small, "#single-keys")


# ---- motion

@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_who_wants_it_so(chat, motion):
    page = chat.page
    page.emulate_media(reduced_motion=motion)
    chat.ask("Hi", Script(text="Hello", gate=True))
    expect(page.locator(".note", has_text=re.compile("."))).to_be_visible()
    moves = page.evaluate("() => document.getAnimations().map(a => a.animationName || a.transitionProperty)")
    assert bool(moves) is (motion == "no-preference"), moves
    chat.fake.release()
    wait_done(page)
    page.emulate_media(reduced_motion="no-preference")
