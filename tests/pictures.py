"""Makes the README's pictures from the running app: tests/.venv/bin/python tests/pictures.py

A real server process, the fake Ollama (so that the answer is the same every time), a real browser.
"""
import shutil
from pathlib import Path

from conftest import Server, ask, launch, open_job, wait_done
from fake_ollama import FakeOllama, Script
from playwright.sync_api import sync_playwright

ANSWER = "**/blog/budget** is, with the most clicks of the five; **/blog/tables** comes next."
TODOS = ["Renew the domain", "Write to the printer about Thursday", "Compare the two crawls", "Water the tomatoes"]
HERE = Path(__file__).resolve().parent


def main():
    folder = HERE/"pictures"
    folder.mkdir(exist_ok=True)
    with FakeOllama() as fake, sync_playwright() as playwright:
        server, browser = Server({"OLLAMA_HOST": fake.url}), launch(playwright)
        try:
            for name in "clicks.ipynb", "clicks.csv":
                shutil.copy(HERE/name, server.dir)
            server.start()
            page = browser.new_context(viewport={"width": 1280, "height": 1040}, reduced_motion="reduce").new_page()
            page.goto(server.url)
            for earlier in "Titles for the tomato guides", "Redirects after the move":
                fake.script(Script(text="Done."))
                ask(page, earlier)
                wait_done(page)
                page.get_by_role("link", name="New chat").click()
                page.wait_for_url("**/chat/new*")
            for title in TODOS:
                page.get_by_label("What needs to be done?").fill(title)
                page.keyboard.press("Enter")
                page.locator("#todo-list").get_by_text(title).wait_for()
            page.locator("#todo-list input[type=checkbox]").first.check()
            open_job(page, "clicks")
            page.get_by_role("button", name="Run Clicks by page").click()
            page.get_by_label("What is a click worth, in euros?").fill("0.4")
            page.get_by_role("button", name="Answer").click()
            page.locator("[data-role=job][data-status=done]").wait_for(timeout=60_000)
            fake.script(Script(text=ANSWER, rate=400))
            ask(page, "Which page is clicked most?")
            wait_done(page)
            page.locator("#job-clicks summary").click()
            page.locator(".side").evaluate("side => side.scrollTo(0, 0)")
            page.locator("#msg").blur()
            for scheme in "light", "dark":
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=folder/f"{scheme}.png")
        finally:
            browser.close()
            server.stop()
            server.remove()


if __name__ == "__main__":
    main()
