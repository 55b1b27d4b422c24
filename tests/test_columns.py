"""What a list takes from code, the model and scripts goes through the same rules as what a person types."""
import re

from working import app_with

pytest_plugins = "working"

ROUTES = """
@app.post
def add_by_code(title: str, profile: int):
    todos.add(title=title, profile=profile)

@app.post
def rename_by_code(id: int, title: str):
    todos.rename(id, title)
"""
home = app_with(ROUTES)


def test_a_text_is_one_line_whoever_gives_it(work):
    work.post("/add_by_code", title="first\nline\x07", profile=work.profile)
    assert work.todos() == [("first line", False)]
    ident = work.server.sql("select id from todo where profile = ?", work.profile)[0]["id"]
    work.post(f"/rename_by_code?id={ident}", title="second\nline")
    assert work.todos() == [("second line", False)]
    assert "Renamed “first line” to “second line”" in [row["content"].split("\n")[-1] for row in work.rows("role = 'event'")]


def test_a_text_that_is_too_long_is_refused_with_both_numbers(work):
    reply = work.web.post("/add_by_code", data={"title": "x" * 501, "profile": work.profile})
    assert reply.status_code == 400
    assert re.fullmatch(r"title: [^<{]*501[^<{]*500[^<{]*", reply.text)
    assert work.todos() == []
