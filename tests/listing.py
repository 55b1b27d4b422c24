"""Fixtures for the tests of the todo list: one app for a file of them, every test in a profile of its own.

    def test_an_item_is_ticked_off(todos):
        tab = todos.open("milk", "[x] bread")
        tab.box("milk").check()
        tab.shows("[x] milk", "[x] bread")
"""
import re

import httpx
import pytest
from conftest import Server
from playwright.sync_api import expect

pytest_plugins = "chatting"


def told(lines):
    """Titles, and which of them are done, of lines like "milk" and "[x] bread"."""
    return [(line.removeprefix("[x] "), line.startswith("[x] ")) for line in lines]


class Tab:
    """A page, as a person sees the list in it."""

    def __init__(self, page):
        self.page, self.part = page, page.get_by_role("region", name="Todo", exact=True)
        self.new = self.part.get_by_label("What needs to be done?")
        self.mark_all = self.part.get_by_label("Mark all as complete")
        self.items = self.part.get_by_role("listitem")
        self.editor = self.part.get_by_label(re.compile("^New name of "))
        self.toast, self.announced = page.locator("#toast"), page.locator("#announce")

    def add(self, *titles):
        for title in titles:
            self.new.fill(title)
            self.new.press("Enter")
            expect(self.new).to_have_value("")

    def box(self, title):
        return self.part.get_by_role("checkbox", name=title, exact=True)

    def item(self, title):
        return self.items.filter(has=self.page.get_by_role("checkbox", name=title, exact=True))

    def title(self, title):
        return self.item(title).get_by_text(title, exact=True)

    def button(self, name):
        return self.part.get_by_role("button", name=name, exact=True)

    def link(self, name):
        return self.part.get_by_role("link", name=name, exact=True)

    def edit(self, title, text):
        """Double click, and type over the old text."""
        self.title(title).dblclick()
        self.editor.fill(text)

    def delete(self, title):
        self.item(title).hover()
        self.button(f"Delete {title}").click()

    def undo(self):
        self.toast.get_by_role("button", name="Undo").click()

    def shows(self, *lines):
        """The list is this, in this order; "[x] bread" is done."""
        expect(self.items.locator(".title")).to_have_text([title for title, _ in told(lines)])
        ticked = self.items.filter(has=self.page.get_by_role("checkbox", checked=True))
        done = [title for title, done in told(lines) if done]
        expect(ticked.locator(".title")).to_have_text(done)
        expect(self.items.and_(self.page.locator(".done")).locator(".title")).to_have_text(done)  # the server knows of it

    def counts(self, text):
        expect(self.part.get_by_text(text, exact=True)).to_be_visible()


class Todos:
    """A profile, its list as it is stored, and the tabs that show it."""
    tab = Tab

    def __init__(self, server, window):
        self.server, self.window = server, window
        self.web = httpx.Client(base_url=server.url, trust_env=False, verify=False, timeout=10)
        self.profile = int(re.search(r'id="profile-(\d+)"', self.post("profile", name="Somebody"))[1])
        self.path = f"/profile/{self.profile}"

    def post(self, path, **data):
        """What a script does."""
        reply = self.web.post(path, data=data)
        reply.raise_for_status()
        return reply.text

    def given(self, *lines):
        for title, done in told(lines):
            made = self.post("todo", title=title, profile=self.profile)
            if done:
                self.post("toggle/" + re.search(r'id="todo-(\d+)"', made)[1])

    def open(self, *lines, show=None):
        """One more tab, once there are these todos."""
        self.given(*lines)
        return Tab(self.window.open(self.server.url + self.path + (f"?show={show}" if show else "")))

    def another(self):
        return Todos(self.server, self.window)

    def rows(self):
        return self.server.sql("select * from todo where profile = ? and not deleted order by priority, id", self.profile)

    def ident(self, title):
        return next(row["id"] for row in self.rows() if row["title"] == title)

    def stored(self):
        return ["[x] " * row["done"] + row["title"] for row in self.rows()]


@pytest.fixture(scope="module")
def place():
    """The app that the tests of a file share."""
    server = Server().start()
    yield server
    server.remove()


@pytest.fixture
def todos(place, window):
    Server.known.append(place)
    if place.proc.poll() is not None:
        place.start()
    todos = Todos(place, window)
    yield todos
    todos.web.close()
