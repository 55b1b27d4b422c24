"""Profiles as a person has them: the menu, the list in which they are edited, and what goes with one."""
import re

import pytest
from playwright.sync_api import expect

pytest_plugins = "chatting"


class People:
    """An app of its own with the profiles Default, Ann and Bob; a page that stands in one, its list open."""

    def __init__(self, server, window):
        self.server, self.window = server, window
        self.page = self.open("/")

    def open(self, path):
        page = self.window.open(self.server.url + path)
        self.unfold(page)
        return page

    @staticmethod
    def unfold(page):
        page.locator("#profile-name").click()
        page.get_by_text("Edit profiles").click()

    def add(self, *names):
        for name in names:
            self.page.get_by_placeholder("New profile").fill(name)
            self.page.get_by_role("button", name="Add profile").click()
            expect(self.row(name)).to_have_count(1)
        return self

    def row(self, name, page=None):
        return (page or self.page).locator("#profile-list > li",
                                           has=(page or self.page).locator(f"a[href]:text-matches('^{name}')"))

    def press(self, label, page=None):
        (page or self.page).get_by_role("button", name=label, exact=True).click()

    def id(self, name):
        return self.server.sql("select id from profile where name = ? and not deleted", name)[0]["id"]

    def undo(self, page=None):
        (page or self.page).locator("#toast").get_by_role("button", name="Undo").click()
        expect((page or self.page).locator("#toast")).to_have_text("It is back.")

    def todo(self, page, title):
        page.get_by_placeholder("What needs to be done?").fill(title)
        page.keyboard.press("Enter")
        expect(page.locator("#todo-list .title", has_text=title)).to_have_count(1)


@pytest.fixture
def people(server, window):
    return People(server, window).add("Ann", "Bob")


def menu(page, *names):
    """The menu's profiles, in order."""
    expect(page.locator("#profile-menu a")).to_have_text(names)


def listed(page, *names):
    expect(page.locator("#profile-list > li")).to_have_text([re.compile(re.escape(name)) for name in names])


def edit(people, who, **fields):
    """Fill in the form of a profile and save it."""
    people.press(f"Rename {who}")
    form = people.page.locator("#profile-list .editing")
    for label, value in fields.items():
        if label == "active":
            form.get_by_label("Active").set_checked(value)
        else:
            form.locator(f"[name={label}]").fill(value)
    form.get_by_role("button", name="Save").click()
    expect(form).to_have_count(0)


def test_a_profile_is_added(people):
    menu(people.page, "Default", "Ann", "Bob")
    listed(people.page, "Default", "Ann", "Bob")
    expect(people.page.get_by_placeholder("New profile")).to_have_value("")
    people.page.locator("#profile-menu a", has_text="Ann").click()
    expect(people.page.locator("#profile-name")).to_have_text("Ann")
    expect(people.page.locator("#todo-list li")).to_have_count(0)
    people.page.locator("#profile-name").click()
    expect(people.page.locator("#profile-menu [aria-current=page]")).to_have_text("Ann")


def test_several_pasted_lines_are_several_profiles(people):
    other = people.open("/")
    people.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    people.page.evaluate("text => navigator.clipboard.writeText(text)", "Cy\n\n Dee \r\nEve")
    people.page.get_by_placeholder("New profile").press("Control+V")
    for page in people.page, other:
        menu(page, "Default", "Ann", "Bob", "Cy", "Dee", "Eve")
        listed(page, "Default", "Ann", "Bob", "Cy", "Dee", "Eve")
    expect(people.page.get_by_placeholder("New profile")).to_have_value("")


def test_name_address_and_code_are_edited(people):
    other = people.open(f"/profile/{people.id('Ann')}")
    edit(people, "Ann", name="Anna <i>", address="1 Main St", code="A-7 & co")
    for page in people.page, other:
        menu(page, "Default", "Anna <i>", "Bob")
        expect(page.locator("#profile-list > li").nth(1).locator("small")).to_have_text("1 Main St · A-7 & co")
    expect(other.locator("#profile-name")).to_have_text("Anna <i>")
    people.press("Rename Anna <i>")
    form = people.page.locator("#profile-list .editing")
    values = [form.locator(f"[name={f}]").input_value() for f in ("name", "address", "code")]
    assert values == ["Anna <i>", "1 Main St", "A-7 & co"]
    form.locator("[name=name]").fill("Nobody")
    form.locator("[name=name]").press("Escape")                       # gives up, and keeps what was there
    expect(form).to_have_count(0)
    listed(people.page, "Default", "Anna <i>", "Bob")
    expect(people.page.locator("#profile-list")).to_be_visible()


def test_a_profile_keeps_a_name(people):
    """What is wrong stands beside the field, in the form."""
    people.window.allow_errors = "422|Response Status Error"
    people.press("Rename Ann")
    form = people.page.locator("#profile-list .editing")
    form.locator("[name=name]").fill("  ")
    with people.page.expect_response("**/rename?*") as reply:
        form.locator("[name=name]").press("Enter")
    assert reply.value.status == 422
    expect(form.locator("label", has=people.page.locator("[name=name]")).locator(".error")).to_contain_text("It needs a name")
    expect(form.locator(".error")).to_have_count(1)
    expect(people.page.locator("#toast")).to_have_text("")
    form.locator("[name=name]").press("Escape")
    menu(people.page, "Default", "Ann", "Bob")


def test_an_inactive_profile_is_off_the_menu(people):
    other = people.open(f"/profile/{people.id('Ann')}")
    edit(people, "Ann", active=False)
    menu(people.page, "Default", "Bob")
    expect(people.row("Ann").locator("small")).to_have_text("inactive")
    menu(other, "Default", "Ann", "Bob")                              # where one stands is shown
    other.reload()
    expect(other.locator("#profile-name")).to_have_text("Ann")
    people.page.reload()
    people.unfold(people.page)
    menu(people.page, "Default", "Bob")
    edit(people, "Ann", active=True)
    menu(people.page, "Default", "Ann", "Bob")


def test_profiles_are_reordered(people):
    other = people.open("/")
    people.row("Bob").press("Alt+ArrowUp")
    for page in people.page, other:
        listed(page, "Default", "Bob", "Ann")
        menu(page, "Default", "Bob", "Ann")
    expect(people.page.locator("#announce")).to_have_text("Moved to place 2 of 3.")
    grip, first = people.row("Ann").locator(".grip"), people.row("Default").bounding_box()
    grip.hover()
    people.page.mouse.down()
    people.page.mouse.move(first["x"] + 20, first["y"] + 3, steps=5)
    people.page.mouse.up()
    for page in people.page, other:
        menu(page, "Ann", "Default", "Bob")
    people.page.reload()
    menu(people.page, "Ann", "Default", "Bob")


def test_the_count_of_open_todos_stands_beside_each_name(people):
    ann = people.open(f"/profile/{people.id('Ann')}")
    ann.keyboard.press("Escape")

    def counts(*wanted):
        for page in people.page, ann:
            expect(page.locator("#profile-menu li")).to_have_text([re.compile(f"^{w}$") for w in wanted])
    counts("Default", "Ann", "Bob")
    people.todo(ann, "Milk")
    people.todo(ann, "Bread")
    people.page.keyboard.press("Escape")
    people.todo(people.page, "Tea")
    counts("Default ?1 open", "Ann ?2 open", "Bob")
    ann.get_by_label("Milk", exact=True).check()
    counts("Default ?1 open", "Ann ?1 open", "Bob")
    ann.get_by_role("button", name="Delete Bread").click()
    counts("Default ?1 open", "Ann", "Bob")
    people.undo(ann)
    counts("Default ?1 open", "Ann ?1 open", "Bob")


def test_an_empty_profile_goes_at_once_and_comes_back(people):
    other = people.open("/")
    people.press("Delete Ann")
    expect(people.page.locator("#toast")).to_contain_text("“Ann” is deleted.")
    for page in people.page, other:
        menu(page, "Default", "Bob")
        listed(page, "Default", "Bob")
    people.undo()
    for page in people.page, other:
        menu(page, "Default", "Ann", "Bob")
        listed(page, "Default", "Ann", "Bob")


def test_one_with_todos_says_what_goes_with_it(people):
    ident = people.id("Ann")
    ann = people.open(f"/profile/{ident}")
    ann.keyboard.press("Escape")
    people.todo(ann, "Milk")
    people.todo(ann, "Bread")
    people.press("Delete Ann")
    asking = people.page.locator("#profile-list .asking")
    expect(asking).to_contain_text(re.compile(r"Ann goes with 2 todos and \d messages?\."))
    expect(asking.get_by_role("button", name="Delete Ann")).to_have_accessible_description(re.compile("Ann goes with 2 todos"))
    people.press("Keep")
    expect(asking).to_have_count(0)
    menu(people.page, "Default", "Ann", "Bob")
    people.press("Delete Ann")
    expect(asking.get_by_role("button", name="Delete Ann")).to_be_focused()
    people.page.keyboard.press("Escape")                              # gives up too, and leaves the panel open
    expect(asking).to_have_count(0)
    listed(people.page, "Default", "Ann", "Bob")
    expect(people.row("Ann")).to_be_visible()
    people.press("Delete Ann")
    asking.get_by_role("button", name="Delete Ann").click()
    menu(people.page, "Default", "Bob")
    people.undo()
    people.page.goto(f"{people.server.url}/profile/{ident}")
    expect(people.page.locator("#todo-list .title")).to_have_text(["Milk", "Bread"])
    expect(people.page.locator("#msg-list")).to_contain_text("Added")


def test_one_with_messages_alone_is_asked_for_too(people):
    ann = people.open(f"/profile/{people.id('Ann')}")
    ann.keyboard.press("Escape")
    ann.locator("#msg").fill("Hi")
    ann.locator("#msg").press("Enter")
    expect(ann.locator("[data-role=assistant][data-status=done]")).to_have_count(1)
    people.press("Delete Ann")
    expect(people.page.locator(".asking")).to_contain_text("Ann goes with 2 messages.")


def test_deleting_the_one_where_one_stands_lands_elsewhere(people):
    ann = people.open(f"/profile/{people.id('Ann')}")
    people.press("Delete Ann", ann)
    ann.wait_for_url(re.compile(r"undone="))
    expect(ann.locator("#profile-name")).to_have_text("Default")
    expect(ann.locator("#toast")).to_contain_text("Ann is deleted.")
    menu(people.page, "Default", "Bob")
    people.undo(ann)
    menu(ann, "Default", "Ann", "Bob")
    menu(people.page, "Default", "Ann", "Bob")


def test_the_one_where_one_stands_with_todos_in_it(people):
    ann = people.open(f"/profile/{people.id('Ann')}")
    ann.keyboard.press("Escape")
    people.todo(ann, "Milk")
    ann.locator("#profile-name").click()
    people.press("Delete Ann", ann)
    ann.locator("#profile-list .asking").get_by_role("button", name="Delete Ann").click()
    ann.wait_for_url(re.compile(r"undone="))
    expect(ann.locator("#todo-list li")).to_have_count(0)
    people.undo(ann)
    ann.locator("#profile-name").click()
    ann.locator("#profile-menu a", has_text="Ann").click()
    expect(ann.locator("#todo-list .title")).to_have_text(["Milk"])


def test_a_tab_whose_profile_was_deleted_elsewhere(people):
    people.window.allow_errors = "40[04]|Response Status Error"
    ann = people.open(f"/profile/{people.id('Ann')}")
    people.press("Delete Ann")
    listed(ann, "Default", "Bob")
    ann.keyboard.press("Escape")
    ann.locator("#msg").fill("Hi")
    ann.locator("#msg").press("Enter")
    expect(ann.locator("#toast")).to_contain_text("not there any more")
    people.undo()
    menu(ann, "Default", "Ann", "Bob")
    people.todo(ann, "Still mine")


def test_the_last_one_cannot_go(people):
    people.window.allow_errors = "400|Response Status Error"
    for name in "Ann", "Bob":
        people.press(f"Delete {name}")
        expect(people.row(name)).to_have_count(0)
    people.press("Delete Default")
    expect(people.page.locator("#toast")).to_have_text("The last profile cannot be deleted: add another one first.")
    listed(people.page, "Default")
    people.page.reload()
    expect(people.page.locator("#profile-name")).to_have_text("Default")
