"""Notebooks beside the app's file: each is a job as it is, with its form, its questions and its tracebacks."""
import base64
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, Server, until
from fake_ollama import FakeOllama, Script
from playwright.sync_api import expect
from wire import soup
from working import Work, app_with

pytest_plugins = "chatting", "working"

DISPLAY = re.search(r"(?m)^    'display', +#", (ROOT / "server.py").read_text())     # is one of the API's names
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
home = app_with("""
@job
def threads(chat): return ' '.join(t.name for t in threading.enumerate())
""")


def notebook(*cells):
    """The text of a notebook. A cell that begins with # and a space is Markdown; a tuple is (source, tag)."""
    made = []
    for cell in cells:
        source, *tags = cell if isinstance(cell, tuple) else [cell]
        kind = "markdown" if source.startswith("# ") else "code"
        made.append({"cell_type": kind, "metadata": {"tags": tags}, "source": source.splitlines(keepends=True)})
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def lay(work):
    """Lays a notebook beside the app's file for one test; gives the form that the page has for it."""
    laid = []

    def lay(name, *cells, text=None):
        laid.append(work.server.dir / f"{name}.ipynb")
        laid[-1].write_text(notebook(*cells) if text is None else text)
        return soup(work.html()).find(id=f"job-{re.sub(r'[^a-z]+', '_', name)}")
    yield lay
    for path in laid:
        path.unlink(missing_ok=True)


def said(work, ident):
    """What the message of a job shows, once it has ended well."""
    row = work.ended(ident, 30)
    assert row["status"] == "done", (row["error"], row["content"])
    return work.shown(ident).find(class_="content").get_text()


# ---- The form

def test_the_form_comes_from_the_tagged_cell(work, lay):
    """Of names, types, defaults and comments; nothing is run for it."""
    form = lay("report", "# The *weekly* `report`\n\nWhat it is\nfor.\n\nAnd more.", "import nothing_of_this_name", (
        "from datetime import date\nfrom typing import Literal\nopen('ran', 'w')\n"
        "text = 'words'\nmost: int = 3  # how many\nratio = .5\nis_sure = True\nday = date(2026, 1, 31)\n"
        "size: Literal['small', 'large'] = 'large'\nkey: 'Secret' = ''\nnotes: 'Lines' = ''\nurls = ['a', 'b']  # one a line\n"
        "poem = '''one\ntwo'''\nneeded: str\nmaybe: 'int | None' = None\nword: Optional[str] = None\n"
        "_own = 1\nfound = open('ran', 'w')\ntable = {'a': 1}\nblank = ', '\na, b = 1, 2\n", "parameters"))
    assert form.h3.get_text() == "The weekly report" and form.p.get_text() == "What it is\nfor."
    fields = {f["name"]: f for f in form.find_all(["input", "select", "textarea"])}
    assert list(fields) == ["text", "most", "ratio", "is_sure", "day", "size", "key", "notes", "urls", "poem",
                            "needed", "maybe", "word"]
    assert [fields[n]["value"] for n in ("text", "most", "ratio", "day", "needed", "maybe", "word")] == [
        "words", "3", "0.5", "2026-01-31", "", "", ""]
    assert fields["key"]["type"] == "password" and fields["is_sure"].has_attr("checked")
    assert [fields[n].get_text() for n in ("notes", "urls", "poem")] == ["", "a\nb", "one\ntwo"]
    assert fields["size"].find("option", selected=True).get_text() == "large"
    assert [x.get_text() for x in form.find_all("small")] == ["how many", "one a line"]
    assert not (work.server.dir / "ran").exists()


@pytest.mark.parametrize(("first", "fields"), [
    ("import re\nmost = 5\nword = 'x'", ["most", "word"]), ("%matplotlib inline\nmost = 5", ["most"]),
    ("most = 5\nprint(most)", []), ("most = 5\nopen('ran', 'w')", []), ("import re", [])])
def test_without_a_tag_the_first_cell_makes_it(lay, first, fields):
    form = lay("plain", first, "least = 1")
    assert [f["name"] for f in form.find_all("input")] == fields


def test_values_take_the_place_of_the_cells_own(work, lay):
    lay("values", ("from datetime import date\nmost = 3\nurls = ['a', 'b']\nday = date(2026, 1, 31)\nkey: Secret = ''\n"
                   "double = most * 2", "parameters"), "print([most, urls, day, key, double])")
    assert "[3, ['a', 'b'], datetime.date(2026, 1, 31), '', 6]" in said(
        work, work.run("values", most="3", urls="a\r\nb", day="2026-01-31"))
    ident = work.run("values", most="7", urls="c", day="2026-02-01", key="hush-hush")
    assert "[7, ['c'], datetime.date(2026, 2, 1), 'hush-hush', 6]" in said(work, ident)
    assert "hush" not in work.row(ident)["job"]
    work.post(f"/try_again?id={ident}")
    assert "[7, ['c']," in said(work, ident)
    assert work.submit("values", most="x").status_code == 422


def test_it_is_found_by_its_name_and_read_anew(work, lay):
    assert "a b" in lay("a b", "1").get_text()
    lay("a-b", "'the other'")
    assert {"job-a_b", "job-notebook_a_b"} <= {e.get("id") for e in soup(work.html()).find(id="job-list").find_all("form")}
    assert "the other" in said(work, work.run("notebook_a_b")) or "the other" in said(work, work.run("a_b"))
    lay("threads", "'of the notebook'")             # a job of the app has this name
    assert "of the notebook" in said(work, work.run("notebook_threads"))
    assert lay("later", "most = 1").find("input")["name"] == "most"
    assert lay("later", "least = 1").find("input")["name"] == "least"
    (work.server.dir / "later.ipynb").unlink()
    assert work.submit("later").status_code == 404 and "job-later" not in work.html()


# ---- What it shows, and how it ends

def test_a_cell_is_shown_as_jupyter_shows_it(work, lay):
    lay("shown", "# One\n\nSome **words**.", "2 + 3", "6 * 7;", "x = 1000", "None", "print('printed')",
        "import asyncio\nawait asyncio.sleep(.01)\nawait asyncio.sleep(.01, 'awaited')",
        "__name__.strip('_')", "display(11 * 11)", "display('*no* Markdown', None)")
    ident = work.run("shown")
    text = said(work, ident)
    words = ["One", "Some words.", "5", "printed", "awaited", "main", "121", "'*no* Markdown'"]
    assert [text.index(w) for w in words] == sorted(text.index(w) for w in words)
    assert "42" not in text and "1000" not in text and "None" not in text
    assert work.shown(ident).find(class_="content").find(["h1", "h2", "h3"]).get_text() == "One"
    assert work.row(ident)["progress"] == 100


@pytest.mark.parametrize("way", [
    "from IPython.display import display, Markdown, HTML, Image, SVG",
    "import IPython.display as d\ndisplay, Markdown, HTML, Image = d.display, d.Markdown, d.HTML, d.Image"])
def test_what_ipython_displays_is_shown(work, lay, way):
    """IPython need not be installed for that."""
    (work.server.dir / "dot.png").write_bytes(base64.b64decode(DOT))
    lay("ipython", way, "display(Markdown('**bold** words'))", "for n in range(2): display(HTML(f'<b>row {n}</b>'))",
        f"import base64\nImage(base64.b64decode('{DOT}'))", "Image(filename='dot.png')", "display(3, 4)")
    ident = work.run("ipython")
    text, shown = said(work, ident), work.shown(ident).find(class_="content")
    assert shown.strong.get_text() == "bold" and "row 0" in text and "row 1" in text and "<IPython" not in text
    assert len(shown.find_all("img")) == 2


PLOTS = ("import matplotlib.pyplot as plt\nplt.plot([1])\nplt.title('One')", "plt.plot([2])\nplt.title('Two');", "display(3)")


def test_each_cell_draws_figures_of_its_own(work, lay, app):
    """One that is left open is shown at the end of its cell, as in Jupyter."""
    lay("plots", *PLOTS)
    shown = work.shown(work.ended(work.run("plots"), 30)["id"]).find(class_="content")
    assert [p["alt"] for p in shown.find_all("img")] == ["One", "Two"] and shown.find_all("figure")[-1].get_text().strip() == "3"
    server = app(start=False)
    (server.dir / "plots.ipynb").write_text(notebook(*PLOTS))
    assert by_hand(server, server.dir / "plots.ipynb", "byhand.py").count("    plt.show()\n") == 2


def test_what_a_cell_clears_is_gone(work, lay):
    lay("loop", "print('Before')", "from IPython.display import clear_output\nfor n in range(3):\n"
        "    clear_output(wait=True)\n    print('round', n)\n    display([{'n': n}])", "print('After')")
    text = said(work, work.run("loop"))
    assert re.fullmatch(r"(?s)\s*Before\s+round 2\s.*CSVn2.*After\s*", text), text


@pytest.mark.skipif(importlib.util.find_spec("IPython"), reason="IPython is installed")
def test_what_the_stand_in_for_ipython_lacks_is_a_sentence(work, lay):
    lay("lacks", "from IPython.display import Audio")
    assert work.ended(work.run("lacks"))["error"] == "ImportError: IPython.display.Audio wants IPython: pip install ipython"


def test_html_in_a_text_is_not_shown_and_its_pictures_are(work, lay):
    (work.server.dir / "a dot.png").write_bytes(base64.b64decode(DOT))
    form = lay("html", "# <a id='top'></a>Top\n\n<div class='x'>\nWhat <b>it</b><br>is\n</div>\n\n<!-- no -->\n\n"
               "`<b>` 1<2 <http://x.org>\n\n"
               "```\n<i>\n```\n\n| a<br>b | c |\n|---|---|\n\n![Dot](a%20dot.png) ![gone](gone.png)", "1")
    assert form.get_text() == "Top"
    ident = work.run("html")
    text, shown = said(work, ident), work.shown(ident).find(class_="content")
    assert all(words in text for words in ("What it", "<b> 1<2 http://x.org", "<i>\n", "gone")) and text.count("<") == 3
    assert [p["alt"] for p in shown.find_all("img")] == ["Dot"] and len(shown.find_all("br")) == 2


def test_each_run_begins_with_nothing(work, lay):
    lay("fresh", "x = globals().get('x', 0) + 1\nx")
    assert [said(work, work.run("fresh")).strip() for _ in range(2)] == ["1", "1"]


def test_what_a_notebook_ignores_others_are_told(work, lay):
    lay("quiet", "import warnings\nwarnings.filterwarnings('ignore')\nwarnings.warn('not this')")
    assert "not this" not in said(work, work.run("quiet"))
    lay("loud", "import warnings\nwarnings.warn('this')")
    assert "UserWarning: this" in said(work, work.run("loud"))


def test_how_a_thread_of_a_cell_failed_is_told(work, lay):
    lay("threaded", "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start(); t.join()")
    assert "ZeroDivisionError: division by zero" in said(work, work.run("threaded"))


@pytest.mark.parametrize(("end", "status", "error"), [
    ("import sys\nsys.exit()", "done", ""), ("exit(0)", "done", ""), ("import sys\nsys.exit('why')", "stopped", "why")])
def test_it_may_exit(work, lay, end, status, error):
    lay("exits", "print('before')", end, "print('after')")
    row = work.ended(work.run("exits"))
    assert (row["status"], row["error"]) == (status, error)
    assert "before" in row["content"] and "after" not in row["content"]


def test_a_traceback_names_the_cell_and_shows_the_line(work, lay):
    lay("fails", "x = 1", "# Between", "def divide(n):\n    return n / 0  # here\n", "\ndivide(x)")
    ident = work.run("fails")
    assert work.ended(ident)["error"] == "ZeroDivisionError: division by zero"
    trace = work.shown(ident).find("pre").get_text()
    assert 'File "cell 3 of fails.ipynb", line 2, in <module>\n    divide(x)' in trace
    assert 'File "cell 2 of fails.ipynb", line 2, in divide\n    return n / 0  # here' in trace


def test_a_mistake_in_a_later_cell_is_told_before_anything_runs(work, lay):
    lay("wrong", "print('ran')", "x = (")
    row = work.ended(work.run("wrong"))
    assert (row["status"], row["error"], row["content"].strip()) == (
        "error", "cell 2 of wrong.ipynb, line 1: '(' was never closed.", "")
    assert lay("wrong", "x = (").p.get_text() == "cell 1 of wrong.ipynb, line 1: '(' was never closed."
    assert "cell 1 of wrong.ipynb" in lay("wrong", "x = '\0'").p.get_text()
    assert "cell 1 of wrong.ipynb" in lay("wrong", "x = " + "(" * 10_000).p.get_text()


def test_what_sets_jupyter_up_is_left_out(work, lay):
    lay("magic", "%load_ext autoreload\n%autoreload 2\n%config InlineBackend.figure_format = 'retina'",
        "if True:\n    %matplotlib inline",
        "from tqdm.notebook import tqdm\nfor n in tqdm(range(3)): pass",
        "%%time\nx = 5", "%time y = x + 1", "text = ('%d of %d'\n        % (x, y))\ntext")
    assert "5 of 6" in said(work, work.run("magic"))


def test_what_only_jupyter_can_run_is_refused_before_anything_runs(work, lay):
    lay("shell", "print('ran')", "# Text", "!ls", "files = !ls", "%%bash\necho \"it's\"", "%pip install x", "len?")
    row = work.ended(work.run("shell"))
    assert row["status"] == "error" and "ran" not in row["content"].split()
    assert all(words in row["error"] for words in (
        "cell 2 has `!ls`", "cell 3 has `files = !ls`", "cell 4 has `%%bash`", "cell 5 has `%pip install x`", "cell 6 has `len?`",
        "Take it out"))


@pytest.mark.parametrize("text", ["{nope", "", "[]", '{"cells": 3}', '{"cells": [{}]}', "[" * 100_000, "\0\xff"])
def test_a_broken_one_stands_in_the_list_with_a_sentence(work, lay, text):
    shown = lay("broken", text=text)
    assert shown.name != "form" and not shown.find("button")
    assert shown.p.get_text() == "broken.ipynb cannot be read as a notebook: open it in Jupyter and save it anew."


def test_one_without_code_stands_in_the_list_with_a_sentence(work, lay):
    assert "has no cells of code" in lay("empty", "# Only text").p.get_text()
    assert work.ended(work.run("empty"))["error"].startswith("empty.ipynb has no cells of code")


def test_an_endless_loop_is_cancelled(work, lay):
    """One that says nothing, and catches once what ends it; the app goes on."""
    lay("endless", "1", "try:\n    while True: pass\nexcept: pass\nwhile True: pass")
    with work.responsive():
        ident = work.run("endless")
        until(lambda: (bar := work.shown(ident).progress) and bar["value"] == "50.0", what="the second cell")
        work.post(f"/cancel?id={ident}")
        assert work.ended(ident, 2)["status"] == "stopped"
    until(lambda: "endless" not in said(work, work.run("threads")).split(), what="the end of its thread")


def test_a_child_that_a_cell_forks_ends_with_the_cell(work, lay):
    lay("forks", "import os\npid = os.fork()",
        "if pid: os.waitpid(pid, 0)\nopen(f'after-{os.getpid()}', 'w').close()\nprint('once')")
    assert said(work, work.run("forks")).split() == ["once"]
    assert len(list(work.server.dir.glob("after-*"))) == 1


def test_ten_thousand_prints(work, lay):
    lay("prints", "for n in range(10_000): print(n)")
    with work.responsive():
        assert "9999" in said(work, work.run("prints"))


# ---- Questions

def test_input_is_a_field_in_the_message(chat, home):
    path = home.dir / "asks.ipynb"
    path.write_text(notebook("name = input('Who are you?')", "again = input()", "f'It is {name} {again}.'"))
    page = chat.open()
    page.locator("#job-asks").get_by_role("button", name="Run asks").click()
    job = page.locator("[data-role=job]")
    expect(job.get_by_label("Who are you?")).to_be_visible()
    expect(job).to_have_attribute("data-status", "streaming")
    expect(job).to_contain_text("Waiting for your answer")
    job.get_by_label("Who are you?").fill("Ann <b>")
    page.keyboard.press("Enter")
    expect(job.get_by_label("Who are you?")).to_have_count(0)
    job.get_by_label("Answer").fill("B")
    job.get_by_role("button", name="Answer").click()
    expect(job).to_contain_text("It is Ann <b> B.")
    expect(job).to_have_attribute("data-status", "done")
    expect(job).not_to_contain_text("Waits")
    path.unlink()


def test_what_is_typed_into_it_stays_when_the_page_comes_back(chat, home, wire):
    path = home.dir / "asks.ipynb"
    path.write_text(notebook("[input('Who are you?') for _ in range(2)]"))
    page = chat.page
    page.reload()
    page.locator("#job-asks").get_by_role("button", name="Run asks").click()
    field = page.get_by_label("Who are you?")
    field.press_sequentially("An")
    page.evaluate("document.querySelector('[data-role=job]').was = 1")
    wire.cut()
    expect(page.locator("#offline")).to_be_visible()
    wire.mend()
    until(lambda: page.evaluate("!document.querySelector('[data-role=job]').was"), 20, "a message drawn anew")
    expect(field).to_have_value("An")
    field.press_sequentially("n")
    page.keyboard.press("Enter")
    expect(field).to_have_value("")
    field.fill("Bob")
    page.keyboard.press("Enter")
    expect(page.locator("[data-role=job]")).to_contain_text("['Ann', 'Bob']")
    path.unlink()


def test_a_question_is_cancelled_and_answered_once(work, lay):
    lay("asks", "print(input('Well?'))")
    ident = work.run("asks")
    way = work.shows(ident, "Well?").find("form")["hx-post"]
    assert work.web.post(f"{way}&n=0").status_code == 400
    assert work.web.post(way, data={"answer": "x" * 40_000}).status_code == 400
    work.post(way, answer="")                          # as Enter at a prompt
    assert work.ended(ident)["status"] == "done"
    assert work.web.post(way, data={"answer": "late"}).status_code == 400
    ident = work.run("asks")
    work.shows(ident, "Well?")
    work.post(f"/cancel?id={ident}")
    assert work.ended(ident, 2)["status"] == "stopped" and not work.shown(ident).find("form")


# ---- The model

def test_the_model_may_offer_to_run_it(work, lay):
    lay("counts", "# Counts\n\nCounts pages.", "most: int = 5  # how many pages\nprefix = 'p'", "print(prefix * most)")
    lay("broken", text="{nope")
    call = {"function": {"name": "counts", "arguments": {"most": 3}}}
    with FakeOllama(port=work.server.ollama) as fake, work.socket() as tab:
        fake.script(Script(tool_calls=[call]), Script(text="It runs."))
        tab.say("Count")
        ident = until(lambda: work.rows("role = 'assistant'"), what="an answer")[-1]["id"]
        work.reply(ident, "Start Counts")
        assert work.ended(ident)["content"] == "It runs."
        tools = {t["function"]["name"]: t["function"] for t in fake.chats[0]["tools"]}
    assert "broken" not in tools and tools["counts"]["description"] == "Starts the job Counts. Counts pages."
    most = tools["counts"]["parameters"]["properties"]["most"]
    assert (most["type"], most["description"]) == ("integer", "how many pages")
    assert "ppp" in said(work, work.rows("role = 'job'")[-1]["id"])


# ---- Folders

def test_notebooks_of_two_folders_run_at_once(app):
    server = app(start=False)
    server.file.write_text(server.file.read_text().replace("NOTEBOOKS = '*.ipynb'", "NOTEBOOKS = '**/*.ipynb'"))
    for name in "one", "two":
        folder = server.dir / "many" / name
        folder.mkdir(parents=True)
        (folder / "word.txt").write_text(f"from {name}")
        (folder / f"of_{name}.py").write_text(f"word = 'module {name}'")
        (folder / f"reads_{name}.ipynb").write_text(notebook(
            f"import of_{name} as own\ninput('Go on?');", "print(open('word.txt').read(), own.word)"))
    work = Work(server.start())
    both = [work.run("reads_one"), work.run("reads_two")]
    ways = [work.shows(ident, "Go on?").find("form")["hx-post"] for ident in both]
    for way in ways:
        work.post(way)
    assert [said(work, ident).strip() for ident in both] == [
        f"Go on? –from {name} module {name}" for name in ("one", "two")]
    work.web.close()


def test_no_notebook_is_a_job_where_none_is_wanted(app):
    server = app(start=False)
    server.file.write_text(server.file.read_text().replace("NOTEBOOKS = '*.ipynb'", "NOTEBOOKS = ''"))
    (server.dir / "report.ipynb").write_text(notebook("1"))
    work = Work(server.start())
    assert "job-report" not in work.html() and work.submit("report").status_code == 404
    work.web.close()


# ---- The real one

@pytest.fixture
def clicks(home):
    """The notebook that a data person has, and its data, beside the app's file."""
    for name in "clicks.ipynb", "clicks.csv":
        shutil.copy(ROOT / "tests" / name, home.dir)
    yield home
    for name in "clicks.ipynb", "clicks.csv":
        (home.dir / name).unlink()


def test_the_notebook_of_a_data_person_runs_as_it_is(clicks, chat):
    page = chat.open()
    form = page.locator("#job-clicks")
    expect(form).to_contain_text("Which pages are clicked most")
    expect(form).to_contain_text("pages that are shown")
    form.locator("summary").click()
    form.get_by_label("Most").fill("3")
    form.get_by_label("Section").select_option("blog")
    form.get_by_role("button", name="Run Clicks by page").click()
    job = page.locator("[data-role=job]")
    expect(job.get_by_label("What is a click worth")).to_be_visible(timeout=60_000)
    expect(job.locator("table")).to_contain_text("/blog/budget")
    expect(job.locator("progress")).to_have_attribute("value", re.compile(r"^50"))
    job.get_by_label("What is a click worth").fill("0.5")
    page.keyboard.press("Enter")
    expect(job).to_have_attribute("data-status", "done", timeout=60_000)
    for words in "Clicks by page", "What it is worth", "2 pages,", "As a picture", "The best one":
        expect(job).to_contain_text(words)
    assert chat.page.locator("[data-status=error]").count() == 0


# ---- As a job in Python

def printed(server, path, **more):
    return subprocess.run([sys.executable, str(server.file), "--job", str(path)], cwd=server.cwd, env=server.env,
                          capture_output=True, text=True, timeout=30, **more)


def by_hand(server, path, name):
    """The file that --job prints, beside the app's."""
    done = printed(server, path)
    assert done.returncode == 0, done.stderr
    compile(done.stdout, name, "exec")
    text = done.stdout if DISPLAY else done.stdout.replace("display(", "chat.send(")
    (server.dir / name).write_text(text)
    return done.stdout


def test_a_job_in_python_runs_as_it_is(clicks, app):
    """It is printed while the app runs."""
    text = by_hand(clicks, "../chatq/clicks.ipynb", "byhand.py")
    assert "most: Annotated[int, 'pages that are shown'] = 5" in text and "display(top)" in text and "%" not in text
    assert re.search(r"(?m)^import pandas as pd$", text) and "    chat.send('''\n\n## As a picture\n\n''')" in text
    fork = Server(name="byhand.py", folder=clicks.dir)
    try:
        work = Work(fork.start())
        ident = work.run("clicks_by_page", most="2", section="all", left_out="/login")
        way = work.shows(ident, "What is a click worth", 60).find("form")["hx-post"]
        work.post(way, answer="2")
        row = work.ended(ident, 60)
        assert row["status"] == "done", row["content"]
        assert "2 pages," in row["content"] and "What it is worth" in row["content"]
        work.web.close()
    finally:
        fork.remove()


def test_a_job_in_python_has_all_that_the_notebook_has(app, tmp_path):
    server = app(start=False)
    (server.dir / "class.ipynb").write_text(notebook(
        "# Class\n\nSays it's 'so'.", (
            "import json; import re\nurls = ['a', 'b']  # one a line\nkey: 'Secret' = ''\n"
            "price: 'Decimal' = 1\ndepth = None", "parameters"),
        "from __future__ import annotations\n%matplotlib inline\nfrom IPython.display import display, HTML, Markdown\n"
        "HTML('<b>bold</b>')",
        "total = 0\ndef add(n):\n    global total\n    total += n  # a comment stays\nadd(2)\ntext = '''\nas it\n  is'''",
        "# It's a \\ and '''quotes'''", "%time n = len(urls)\nn, total", "print(repr(text))", "add(3);"))
    text = by_hand(server, server.dir / "class.ipynb", "byhand.py")
    assert not server.db.exists() and not list(server.dir.glob("data/*"))
    assert "def notebook_class(chat, *," in text and "# a comment stays" in text
    assert "import HTML, Markdown\n" in text and "    pass\n" not in text and "    \n" not in text
    server.file = server.dir / "byhand.py"
    work = Work(server.start())
    text = said(work, work.run("notebook_class", urls="x\ny\nz", price="2"))
    assert "as it\\n  is" in text and "(3, 2)" in text and "'''quotes'''" in text and "None" not in text
    work.web.close()


@pytest.mark.parametrize(("text", "says"), [
    (notebook("!ls"), "cell 1 has `!ls`"), ("{nope", "cannot be read as a notebook"), (None, "cannot be read as a notebook"),
    (notebook("1", "x = ("), "cell 2 of report.ipynb, line 1")])
def test_what_can_be_no_job_is_a_sentence(app, text, says):
    server = app(start=False)
    if text:
        (server.dir / "report.ipynb").write_text(text)
    done = printed(server, server.dir / "report.ipynb")
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr and not done.stdout
