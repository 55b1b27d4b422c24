"""How the page is laid out: the sidebar that folds, the drawer of a phone, the composer's one button, an empty chat."""
import pytest
from conftest import open_job, open_lists, wait_done
from fake_ollama import Script
from playwright.sync_api import expect

pytest_plugins = "chatting"


@pytest.fixture
def phone(chat):
    chat.page.set_viewport_size({"width": 390, "height": 800})
    yield chat.page
    chat.page.set_viewport_size({"width": 1280, "height": 720})


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def test_the_sidebar_folds_and_stays_so(chat):
    page = chat.page
    button(page, "Hide sidebar").click()
    for _ in "folded", "reloaded":
        expect(page.locator("#sidebar")).to_be_hidden()
        expect(button(page, "Show sidebar")).to_be_visible()
        assert page.locator("main").bounding_box()["x"] == 0
        if _ == "folded":
            expect(button(page, "Show sidebar")).to_be_focused()
            page.reload()
    button(page, "Show sidebar").click()
    expect(page.locator("#sidebar")).to_be_visible()
    expect(button(page, "Hide sidebar")).to_be_focused()
    expect(button(page, "Menu")).to_be_hidden()


def test_on_a_phone_the_chat_is_the_screen_and_the_rest_a_drawer(chat, phone):
    chat.answered("Hi", Script(text="A line\n\n" * 60))
    assert phone.locator(".chat > .bar").bounding_box()["height"] <= 56
    dock = phone.locator(".dock").bounding_box()
    assert dock["y"] + dock["height"] == 800
    assert phone.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [390, 800]
    assert "interactive-widget=resizes-content" in phone.locator("meta[name=viewport]").get_attribute("content")
    drawer = phone.locator("#sidebar")
    expect(drawer).to_be_hidden()
    ways_out = {"Escape": lambda: phone.keyboard.press("Escape"), "a tap beside": lambda: phone.mouse.click(380, 400),
                "its button": lambda: button(phone, "Hide sidebar").click()}
    for way in ways_out.values():
        button(phone, "Menu").click()
        expect(drawer).to_be_visible()
        expect(drawer.locator(":focus")).to_have_count(1)
        way()
        expect(drawer).to_be_hidden()
        expect(button(phone, "Menu")).to_be_focused()


def test_escape_closes_a_panel_in_the_drawer_before_the_drawer(chat, phone):
    button(phone, "Menu").click()
    menu = phone.locator("#sidebar .drop > summary").first
    menu.click()
    phone.keyboard.press("Escape")
    expect(phone.locator(".drop[open]")).to_have_count(0)
    expect(menu).to_be_focused()
    phone.keyboard.press("Escape")
    expect(phone.locator("#sidebar")).to_be_hidden()


def test_a_job_from_the_drawer_leads_back_to_the_chat(chat, phone):
    chat.window.allow_errors = "422|Response Status Error"
    open_lists(phone)
    form = open_job(phone, "audit_pages")
    button(phone, "Run Audit pages").click()
    expect(form.locator(".error")).to_be_visible()
    form.get_by_label("Urls").fill("ftp://nowhere")
    button(phone, "Run Audit pages").click()
    expect(phone.locator("#sidebar")).to_be_hidden()
    expect(phone.locator("[data-role=job]")).to_be_visible()


def test_the_composer_has_one_button(chat):
    page, send, stop = chat.page, button(chat.page, "Send"), button(chat.page, "Stop")
    expect(send).to_be_visible()
    expect(stop).to_be_hidden()
    chat.ask("Hi", Script(text="one two", gate=True))
    expect(stop).to_be_visible()
    expect(send).to_be_hidden()
    page.locator("#msg").fill("more")
    expect(send).to_be_visible()
    expect(stop).to_be_hidden()
    page.locator("#msg").fill("")
    expect(stop).to_be_visible()
    chat.fake.release()
    wait_done(page)
    expect(send).to_be_visible()
    expect(stop).to_be_hidden()


def test_the_composer_grows_to_a_third_of_the_window(chat):
    field = chat.page.locator("#msg")
    heights = []
    for lines in 1, 4, 100:
        field.fill("\n".join("x" * lines))
        heights.append(field.bounding_box()["height"])
    assert heights[0] < 30 and heights[1] == pytest.approx(4 * heights[0], abs=2) and heights[2] <= 720 / 3 + 1, heights


def test_an_empty_chat_offers_something_to_do(chat):
    page, ideas = chat.page, chat.page.locator(".ideas")
    expect(ideas.locator(".idea")).to_have_count(3)
    first = ideas.locator(".idea").first
    text = first.inner_text()
    first.click()
    expect(page.locator("#msg")).to_have_value(text)
    expect(page.locator("#msg")).to_be_focused()
    assert not chat.rows()                                           # nothing has been sent
    ideas.get_by_role("button", name="Summarise my todos").click()
    expect(page.locator("[data-role=job]")).to_be_visible()
    expect(ideas).to_be_hidden()


def test_hits_of_a_search_by_arrows(chat):
    page, field = chat.page, chat.page.locator("#search")
    for title in "Milk of oats", "Milk of almonds":
        chat.post("todo", title=title, profile=chat.profile)
    field.fill("milk")
    hits = page.locator("#search-results a")
    expect(hits.nth(1)).to_be_visible()
    for key, place in ("ArrowDown", hits.first), ("ArrowDown", hits.nth(1)), ("ArrowUp", hits.first), ("Escape", field):
        page.keyboard.press(key)
        expect(place).to_be_focused()
    page.keyboard.press("ArrowDown")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "?at=" in page.url


def test_the_keys_of_the_page(chat):
    page, theme = chat.page, chat.page.locator("html")
    page.locator("#search").focus()
    page.keyboard.press("Alt+m")
    expect(page.locator("#msg")).to_be_focused()
    with page.expect_response("**/switch_theme"):
        page.keyboard.press("Alt+t")
    expect(theme).to_have_attribute("data-theme", "dark")
    page.keyboard.press("Alt+t")
    expect(theme).to_have_attribute("data-theme", "light")
    expect(page.locator("#msg")).to_have_value("")


def test_a_question_says_so_and_is_in_sight(chat):
    page = chat.page
    chat.answered("Hi", Script(text="A line\n\n" * 60))
    open_job(page, "audit_pages").get_by_label("Urls").fill(chat.server.url)
    page.mouse.move(700, 300)
    page.mouse.wheel(0, -5000)
    button(page, "Run Audit pages").click()
    answer = button(page, "Leave it out")
    expect(answer).to_be_in_viewport()
    expect(page.locator("[data-role=job] .note")).to_have_text("Waiting for your answer")
    answer.click()
    expect(page.locator("[data-role=job]")).to_have_attribute("data-status", "done")


def test_what_can_be_done_with_a_row_shows_at_the_pointer_and_the_focus(chat):
    page = chat.page
    chat.post("todo", title="Milk", profile=chat.profile)
    row, acts = page.locator("#todo-list li"), page.locator("#todo-list .acts")
    page.mouse.move(700, 300)
    expect(acts).to_have_css("opacity", "0")
    assert row.bounding_box()["height"] == 32
    row.hover()
    expect(acts).to_have_css("opacity", "1")
    page.mouse.move(700, 300)
    expect(acts).to_have_css("opacity", "0")
    row.focus()
    expect(acts).to_have_css("opacity", "1")
    x = """e => { const css = getComputedStyle(e)
      return e.getBoundingClientRect().x + parseFloat(css.paddingLeft) + parseFloat(css.borderLeftWidth) }"""
    before = row.locator(".title").evaluate(x)
    page.keyboard.press("Enter")
    field = page.locator("#todo-list .editing input")
    expect(field).to_be_focused()
    assert field.evaluate(x) == pytest.approx(before, abs=1)          # the text stays where it stood


LONG = "hf.co/somebody/Llama-3.2-11B-Vision-Instruct-abliterated-and-more-GGUF:Q4_K_M"


def test_a_long_name_of_a_model_leaves_room_for_the_rest(chat, phone):
    phone.evaluate("""name => {
      htmx.find('#toast').innerHTML = `The model can see no pictures.<button>Use ${name}</button>`
      htmx.find('#model').append(new Option(name.repeat(2), name, true, true)) }""", LONG)
    said = phone.locator("#toast")
    assert said.bounding_box()["height"] < 150 and said.locator("button").bounding_box()["width"] < 180
    assert phone.evaluate("() => document.documentElement.scrollWidth") == 390
    box = button(phone, "Send").bounding_box()
    assert box["width"] == box["height"]


def test_a_long_word_stays_in_its_cell(chat):
    chat.answered("Hi", Script(text=f"| a | b |\n|---|---|\n| {'w' * 90} | 1 |"))
    assert chat.content.locator("td").first.evaluate("td => td.scrollWidth <= td.clientWidth")


def test_stopped_stands_beside_its_buttons(chat):
    chat.ask("Hi", Script(text="one two three", gate=True))
    chat.fake.release(1)
    expect(chat.content).to_have_text("one")
    button(chat.page, "Stop").click()
    wait_done(chat.page)
    said, go_on = chat.answer.locator(".figures").bounding_box(), chat.button("Continue").bounding_box()
    assert 0 < go_on["x"] - said["x"] - said["width"] < 20


def test_a_form_that_opens_below_the_edge_comes_into_sight(chat):
    chat.page.set_viewport_size({"width": 1280, "height": 420})
    open_job(chat.page, "audit_pages")
    expect(button(chat.page, "Run Audit pages")).to_be_in_viewport(ratio=1)
    chat.page.set_viewport_size({"width": 1280, "height": 720})


def test_a_tablet_with_keys_sees_which(chat, open_page):
    page = open_page(viewport={"width": 900, "height": 700}, has_touch=True, is_mobile=True)
    page.goto(chat.url)
    button(page, "Keyboard shortcuts").tap()
    expect(page.locator("#keys kbd").first).to_be_visible()


def test_a_button_shows_that_it_works(chat):
    """Where its request takes a while."""
    page, held = chat.page, []
    page.route("**/switch_theme*", lambda route: held.append(route))  # noqa: PLW0108 (Playwright wants a function)
    with page.expect_request("**/switch_theme*"):
        button(page, "Light or dark").click()
    expect(button(page, "Light or dark")).to_have_css("opacity", "0.5")
    held[0].continue_()
    expect(button(page, "Light or dark")).to_have_css("opacity", "1")
