"""Diagrams: a block of Mermaid becomes a picture when it is complete, and holds nothing up."""
import re

import httpx
import psutil
import pytest
from chatting import OFFLINE
from conftest import until
from fake_ollama import Script, cut
from playwright.sync_api import expect

pytest_plugins = "chatting"

FLOW = '''```mermaid
flowchart TD
    subgraph Host["The machine"]
        A["nix develop"] --> B[Notebook]
        B -.-> C[(SQLite)]
    end
    subgraph App["The app"]
        D{Todo?} -->|yes| E[HTMX partial]
        D -.->|no| F[Chat]
    end
    B --> D
    classDef hot fill:#f96,stroke:#333,stroke-width:2px;
    class A,E hot;
```
'''
SISTERS = '''```mermaid
graph LR
    Darwinix[Darwinix: the machine as code] --> Pipulate
    Pipulate[Pipulate: notebooks as apps] <--> Botifython
    Botifython[Botifython: the same at work] -.-> Darwinix
```
'''
WRONG = "```mermaid\nflowchart TD\n    A --> --> B\n```\n"
IN_A_LIST = '- in a list:\n\n  ```mermaid\n  pie title Half\n    "a": 1\n    "b": 1\n  ```\n'
ANSWER = f"Here they are:\n\n{FLOW}\nAnd\n\n{SISTERS}\n{IN_A_LIST}\n{WRONG}\nThe end."
LOADED = "all => all.map(i => i.complete && i.naturalWidth > 100)"


def test_diagrams_are_drawn_when_they_are_complete(chat):
    chat.ask("Go", Script(tokens=cut(ANSWER), gate=True))
    chat.fake.release(len(cut(f"Here they are:\n\n{FLOW}")) - 4)
    expect(chat.content.locator("code")).to_contain_text("classDef hot")
    expect(chat.content.locator("[hx-get], img")).to_have_count(0)
    chat.fake.release()
    expect(chat.answer).to_have_attribute("data-status", "done")     # nothing waits for the pictures
    pictures = chat.content.locator("figure.diagram")
    expect(pictures).to_have_count(3, timeout=30_000)
    why = "This diagram could not be drawn: Parse error on line 2."
    expect(chat.content.locator(".undrawn")).to_have_text(why, timeout=30_000)
    expect(chat.content.locator("[hx-get]")).to_have_count(0)
    until(lambda: all(pictures.locator("img").evaluate_all(LOADED)), what="the pictures")
    assert re.fullmatch(r"/file/[0-9a-f]{64}\.svg", pictures.locator("img").first.get_attribute("src"))
    expect(chat.content.locator("figure.code:visible")).to_have_count(1)
    expect(chat.content.locator("figure.code:visible code")).to_contain_text("A --> --> B")
    source = pictures.first.locator("details")
    expect(source.locator("code")).to_be_hidden()
    source.locator("summary").click()
    expect(source.locator("code")).to_be_visible()
    pictures.first.locator("img").click()
    chat.page.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(source.locator("code")).to_have_text(FLOW.removeprefix("```mermaid\n").removesuffix("```\n"))
    assert chat.rows("role = 'assistant'")[0]["content"] == ANSWER, "the content stays Markdown"
    # Another page has them at once, also after the next start.
    chat.window.allow_errors = OFFLINE
    chat.server.restart()
    html = httpx.get(chat.url, trust_env=False).text
    assert html.count('class="diagram"') == 3
    chat.page.reload()
    expect(pictures).to_have_count(3, timeout=30_000)


def test_a_script_may_send_one(chat):
    chat.post("chatq", text=SISTERS, profile=chat.profile)
    picture = chat.page.locator("[data-role=job] figure.diagram img")
    expect(picture).to_have_count(1, timeout=30_000)
    assert "Darwinix" in picture.get_attribute("alt")
    # Also where its own address is opened it has its colours, and runs nothing.
    page = chat.open()
    page.goto(chat.server.url + picture.get_attribute("src"))
    assert page.locator("rect").first.evaluate("e => getComputedStyle(e).fill") != "rgb(0, 0, 0)"
    page.goto(chat.url)


@pytest.fixture
def hurried(app, tmp_path):
    """An app whose diagrams may take no time at all."""
    server = app(start=False)
    text = server.file.read_text()
    assert "DRAWING_TIME = 10 " in text
    server.file.write_text(text.replace("DRAWING_TIME = 10 ", "DRAWING_TIME = .1 "))
    return server.start()


def test_one_that_takes_too_long_is_ended_and_stays_code(hurried, page):
    web = httpx.Client(base_url=hurried.url, trust_env=False)
    web.post("/chatq", data={"text": FLOW}).raise_for_status()
    page.goto(hurried.url)
    expect(page.locator(".undrawn")).to_have_text("This diagram could not be drawn: it takes more than 0.1 s.")
    expect(page.locator("figure.code code")).to_be_visible()
    assert not psutil.Process(hurried.pid).children(recursive=True)
    too_long = "```mermaid\nflowchart TD\n" + "A --> B\n" * 5000 + "```\n"
    web.post("/chatq", data={"text": too_long[:31_000]}).raise_for_status()
    expect(page.locator(".undrawn")).to_have_count(2)
    assert web.get("/diagram/%ff").status_code == web.get("/diagram/a").status_code == 404


def test_where_the_program_crashes_one_sentence_says_so(app, page):
    server = app(start=False)
    text = server.file.read_text()
    assert "    import mermaidx\n" in text
    crash = "    import os, mermaidx\n    os.write(2, b'a stack\\nof lines')\n    os.abort()\n"
    server.file.write_text(text.replace("    import mermaidx\n", crash))
    server.start()
    httpx.post(f"{server.url}/chatq", data={"text": FLOW}, trust_env=False).raise_for_status()
    page.goto(server.url)
    expect(page.locator(".undrawn")).to_have_text("This diagram could not be drawn: mermaidx has crashed.")
