"""Lists of one's own as tools of the model, made from the list: list, add, change, move, delete, each with Undo."""
import pytest
from test_tools import Acting, acting
from working import app_with

pytest_plugins = "working",
__all__ = ["acting"]

LINKS = '''
class WebLink:
    id: int
    name: str = ''
    url: str = ''
    chat: str = 'mine'
    read: bool = False
    due: date = None
    kind: Literal['blog', 'shop'] = 'blog'
    profile: int = 0
    priority: float = 0.
    deleted: float = 0.

class WebLinks(Listing):
    fields = 'url', 'chat', 'read', 'due', 'kind'

links = WebLinks(table(WebLink))

class Secluded:
    id: int
    name: str = ''
    profile: int = 0
    priority: float = 0.
    deleted: float = 0.

class Secludeds(Listing):
    has_tools = False

Secludeds(table(Secluded))
'''
home = app_with(LINKS)


def call(tool, /, **arguments):
    return {"function": {"name": tool, "arguments": arguments}}


def links(acting):
    sql = "select name, url, read, due, kind from web_link where profile = ? and not deleted order by priority, id"
    return [tuple(row) for row in acting.server.sql(sql, acting.profile)]


@pytest.fixture
def linked(acting: Acting):
    """One link, added by the model."""
    acting.does(call("add_web_link", name="One", url="https://one.example", read=True, due="2026-01-31"))
    acting.ident = acting.server.sql("select max(id) n from web_link")[0]["n"]
    return acting


ONE = ("One", "https://one.example", 1, "2026-01-31", "blog")


def test_a_list_offers_tools_unless_it_does_not_want_to(acting):
    acting.does(call("list_web_links"))
    tools = {t["function"]["name"]: t["function"] for t in acting.fake.chats[0]["tools"]}
    assert {f"{verb}_web_link" for verb in ("add", "change", "move", "delete")} | {"list_web_links"} <= set(tools)
    assert not any("secluded" in name or "profile" in name or "chat" in name for name in tools)
    given = tools["add_web_link"]["parameters"]
    assert given["required"] == ["name"] and given["properties"]["kind"]["enum"] == ["blog", "shop"]
    assert tools["change_web_link"]["parameters"]["required"] == ["id"]
    assert tools["delete_web_link"]["description"] == "Deletes a web link, after asking the person."


def test_what_the_model_adds_and_reads(linked):
    assert links(linked) == [ONE] and linked.events() == ["The model added “One”"]
    told = linked.does(call("list_web_links"))
    assert told == [f"{linked.ident}: One · url: https://one.example · chat: mine · read: True · due: 2026-01-31 · kind: blog"]
    linked.undo()
    assert links(linked) == []


@pytest.mark.parametrize(("changes", "after", "event"), [
    (dict(kind="shop"), (*ONE[:4], "shop"), "changed “One”"),
    (dict(name="First", read=False), ("First", ONE[1], 0, *ONE[3:]), "renamed “One” to “First”"),
    (dict(due="2026-02-01"), (*ONE[:3], "2026-02-01", "blog"), "changed “One”")])
def test_a_change_leaves_the_rest_as_it_was(linked, changes, after, event):
    linked.does(call("change_web_link", id=linked.ident, **changes))
    assert links(linked) == [after] and linked.events()[-1] == f"The model {event}"
    linked.undo()
    assert links(linked) == [ONE]


@pytest.mark.parametrize("wrong", [
    call("change_web_link", id=1, kind="none"), call("change_web_link", id=1, due="soon"), call("change_web_link", id=10**9),
    call("add_web_link", url="x"), call("move_web_link", id=10**9), call("delete_web_link", id=10**9)])
def test_a_bad_call_goes_back_to_the_model_as_text(linked, wrong):
    told = linked.does(wrong)
    assert told[0].startswith("This did not work: ") and links(linked) == [ONE]


def test_a_delete_asks_first(linked):
    delete = call("delete_web_link", id=linked.ident)
    for answer, left in ("Keep it", [ONE]), ("Delete One", []):
        ident = linked.asks(delete)
        linked.reply(ident, answer)
        linked.ended(ident)
        assert links(linked) == left
    linked.undo()
    assert links(linked) == [ONE]
