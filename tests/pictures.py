"""Makes the README's pictures from the running app: tests/.venv/bin/python tests/pictures.py

A real server process, the fake Ollama (so that the answer is the same every time), a real browser.
"""
from pathlib import Path

from conftest import Server, ask, launch, wait_done
from fake_ollama import FakeOllama, Script
from playwright.sync_api import sync_playwright

ANSWER = """Both fit into one query:

```python
def busiest(db, n=3):
    "The profiles with the most open todos."
    return db.q('select profile, count(*) n from todo '
                'where not done group by 1 order by n desc limit ?', [n])
```

| Profile | Open |
|---|---|
| Garden | 7 |
| Work | 4 |

- **Garden** has grown by three this week.
- Two of *Work*'s are older than a month."""
TODOS = ["Renew the domain", "Write to the printer about Thursday", "Compare the two crawls", "Water the tomatoes"]


def main():
    folder = Path(__file__).resolve().parent/"pictures"
    folder.mkdir(exist_ok=True)
    with FakeOllama() as fake, sync_playwright() as playwright:
        server, browser = Server({"OLLAMA_HOST": fake.url}).start(), launch(playwright)
        try:
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(server.url)
            for title in TODOS:
                page.get_by_label("What needs to be done?").fill(title)
                page.keyboard.press("Enter")
                page.locator("#todo-list").get_by_text(title).wait_for()
            page.locator("#todo-list input[type=checkbox]").first.check()
            fake.script(Script(text=ANSWER, rate=400))
            ask(page, "Which profiles have the most open todos? Show me the query too.")
            wait_done(page)
            for scheme in "light", "dark":
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=folder/f"{scheme}.png")
        finally:
            browser.close()
            server.stop()
            server.remove()


if __name__ == "__main__":
    main()
