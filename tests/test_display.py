"""What a notebook shows, the chat shows: pictures, tables, printed output; and the model is told of it."""
import io
import json
import stat

import pytest
from conftest import Server, until
from fake_ollama import FakeOllama, Script
from PIL import Image
from playwright.sync_api import expect
from test_tools import Acting, call
from wire import send, soup
from working import Work, app_with, insert

pytest_plugins = "chatting", "working"

JOBS = r'''
def frame(rows=200, columns=3):
    import pandas
    return pandas.DataFrame({f'c{n}': [(n + 1)*row/3 for row in range(rows)] for n in range(columns)})

class Shows:
    "Something with the given _repr_*_ methods; an exception is raised."
    def __init__(self, **forms):
        for name, form in forms.items():
            setattr(self, f'_repr_{name}_', functools.partial(self.give, form))
    def give(self, form, **_):
        if isinstance(form, Exception): raise form
        return form
    def __repr__(self): return 'plain *repr* | ```'

def png(width=8, height=4, colour='red'):
    from PIL import Image
    file = io.BytesIO()
    Image.new('RGB', (width, height), colour).save(file, 'png')
    return file.getvalue()

import io, functools, logging, warnings, subprocess, base64

@job
def shows_figures(chat):
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots()
    axes.plot([1, 3, 2])
    axes.set_title('Clicks by [page]')
    chat.send(figure)
    plt.plot([3, 4])
    plt.show()
    chat.send(f'open: {plt.get_fignums()}')
    chat.send(plt.subplots()[1])
    plt.figure().suptitle('Left open')
    assert plt.get_backend().lower() == 'agg'

@job
def plots_beside(chat):
    import matplotlib.pyplot as plt
    plt.figure().suptitle('Of this one')
    chat.ask('Go on?', 'Yes')
    plt.show()

@job
def shows_frames(chat):
    import pandas
    chat.send(frame())
    yield pandas.DataFrame({'a|b': ['x_y*', '=1+1', None, '<br>'], 'n': [1, 22, 333, 4]}, index=list('abcd'))
    display(pandas.Series([1, 2], index=['x', 'y'], name='counts'))
    yield pandas.Series([5, 6])
    yield pandas.Index(['k', 'l'])
    yield [{'word': 'one', 'times': 1}, {'word': 'two', 'link': 'z'}]

@job
def shows_large_frames(chat):
    import pandas
    yield pandas.DataFrame({'n': range(1_000_000)})
    yield frame(5, 2000)
    yield pandas.DataFrame()

@job
async def shows_a_large_frame(chat):
    import pandas
    display(pandas.DataFrame({'n': range(1_000_000)}))

@job
def shows_forms(chat):
    yield Shows(html='<table><tr><td onclick="x()">framed</td><td>1,5</td></tr><tr><td colspan="2" id="x">7</td></tr></table>'
                     '<b>bold</b><script>alert(1)</script>')
    yield Shows(html=None, markdown='some **bold**')
    yield Shows(html=ValueError('broken'), mimebundle=None, latex='$x^2$')
    yield Shows(mimebundle=({'image/png': base64.b64encode(png()).decode()}, {}))
    yield Shows(svg='<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>')
    yield Shows(html='<img src="http://192.0.2.1/x.png">', png=png(9, 9))
    yield Shows(html='<p>inline <img alt="kept" src="data:image/png;base64,' + base64.b64encode(png(7)).decode() + '"></p>')
    yield Shows(html='x' * 50_000_000)
    yield Shows(html='<script>only()</script>', png=OSError('gone'))
    yield Shows
    yield 1234

@job
def shows_large_pictures(chat):
    from PIL import Image
    yield Image.new('1', (12_000, 9000))
    yield Shows(png=png()[:16] + b'\0\0\x40\0\0\0\x40\0' + png()[24:])

@job
def shows_drawings(chat):
    class Figure:
        def to_image(self, kind, scale): return png(20, 10)
        def _repr_mimebundle_(self, **_): return {'application/vnd.plotly.v1+json': {}}
    class Chart:
        def save(self, file, format, scale_factor): file.write(png(40, 10))
    Figure.__module__, Chart.__module__ = 'plotly.graph_objs', 'altair.vegalite'
    yield Figure()
    yield Chart()

@job
def shows_polars(chat):
    class DataFrame:
        shape, columns = (2, 2), ['a', 'b']
        def head(self, n): return self
        def write_csv(self): return 'a,b\n1,x\n2,"y,z"\n'
    return DataFrame()

@job
def prints(chat):
    from tqdm import tqdm
    print('a | b\n*c*  <i>  \x1b[31mred\x1b[0m')
    print('`' * 50)
    chat.send('Some **bold** text')
    print('after', end='')
    display(1)
    for n in tqdm(range(7), desc='Reading'): pass
    print('crawled', 7)
    warnings.warn('deprecated')
    logging.warning('a %s', 'log')
    logging.info('not this')
    sys.stderr.write('direct\n')
    thread = threading.Thread(target=lambda: (print('of a thread'), display(Shows(markdown='**shown there**'))))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, '-c', 'import os; assert os.environ["MPLBACKEND"] == "agg"'], check=True)

@job
async def prints_async(chat):
    async def inner(): print('in a task')
    await asyncio.create_task(inner())
    display(frame(2, 1))

@job
def prints_much(chat):
    for n in range(10_000): print(n)

@job
async def bars(chat):
    print('\r 30%|███       | 3/10 [00:01<00:02,  3.00it/s]', end='', file=sys.stderr)
    await chat.ask('Go on?', 'Yes', 'No')
    print('\r5it [00:01,  3.00it/s]', end='', file=sys.stderr)

@job
def raises(chat, kind: str):
    if kind == 'note':
        error = ValueError('first line\nsecond line')
        error.add_note('a note')
        raise error
    if kind == 'group': raise ExceptionGroup('several', [ValueError('one'), OSError('two')])
    if kind == 'stop': next(iter([]))
    if kind == 'status': httpx.Response(404, request=httpx.Request('GET', 'http://x.org/y')).raise_for_status()

@job
def slow(chat):
    chat.ask('Wait?', 'Go')
    return 'At last.'

@job
def counts(chat): return frame(30, 2)
'''
home = app_with(JOBS)


def content(work, job, timeout=20, status="done", **values):
    """What a job shows in the end, as the page has it."""
    ident = work.run(job, **values)
    row = work.ended(ident, timeout)
    assert row["status"] == status, (row["error"], row["content"])
    found = work.shown(ident).find(class_="content")
    found.ident, found.row, found.source = ident, row, work.web.get(f"/source?id={ident}").text
    return found


def cells(table):
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]


# ---- Pictures

def test_figures_are_pictures_that_lie_as_files(work):
    shown = content(work, "shows_figures")
    pictures = shown.find_all("img")
    names = ["Clicks by [page]", "Figure 1 of Shows figures", "Figure 2 of Shows figures", "Left open"]
    assert [p["alt"] for p in pictures] == names
    assert "open: []" in shown.get_text()
    for picture in pictures:
        got = work.web.get(picture["src"])
        assert got.headers["content-type"] == "image/png" and "sandbox" in got.headers["content-security-policy"]
        size = Image.open(io.BytesIO(got.content)).size
        assert (int(picture["width"]), int(picture["height"])) == (size[0] // 2, size[1] // 2)
    save = shown.find("a", class_="save")
    assert save.get_text() == "Save picture" and save["href"] == pictures[0]["src"] and save["download"] == "Clicks by [page]"
    file = work.server.dir / "data" / "server.files" / pictures[0]["src"].split("/")[-1]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "[Picture: Clicks by [page]]" in shown.source and "/file/" not in shown.source
    hits = soup(work.web.get("/find?q=Clicks+by").text)
    assert "Clicks by [page]" in hits.get_text() and "/file/" not in hits.get_text()


def test_each_job_shows_its_own_figures(work):
    first = work.run("plots_beside")
    work.shows(first, "Go on?")
    assert "Of this one" not in str(content(work, "shows_figures"))
    work.reply(first, "Yes")
    assert work.ended(first)["content"].count("![Of this one]") == 1


def test_large_pictures_are_left_out(work):
    shown = content(work, "shows_large_pictures")
    for size in "12000 x 9000", "16384 x 16384":
        assert f"Picture, {size} is too large to be shown here: Save picture" in shown.get_text()


def test_drawings_of_browsers(work):
    """Neither kaleido nor vl-convert-python is installed here: a sentence says what to do."""
    shown = content(work, "shows_drawings")
    assert [c.get_text() for c in shown.find_all("code")] == ["pip install kaleido", "pip install vl-convert-python"]


def test_drawings_with_what_draws_them(work, app):
    server = app(start=False)
    insert(server, JOBS)
    for name in "kaleido", "vl_convert":
        (server.dir / f"{name}.py").touch()
    shown = content(Work(server.start()), "shows_drawings")
    assert [(p["width"], p["height"]) for p in shown.find_all("img")] == [("10", "5"), ("20", "5")]


# ---- Tables

def test_frames_are_tables(work):
    shown = content(work, "shows_frames")
    long, odd, series, unnamed, dicts = shown.find_all("figure", class_="table")
    assert cells(long)[0] == ["c0", "c1", "c2"] and len(cells(long)) == 201 and cells(long)[2] == ["0.333333", "0.666667", "1.0"]
    assert all("right" in cell["class"] for cell in long.find_all(["th", "td"]))
    assert cells(odd) == [["", "a|b", "n"], ["a", "x_y*", "1"], ["b", "=1+1", "22"], ["c", "", "333"], ["d", "<br>", "4"]]
    assert cells(series) == [["", "counts"], ["x", "1"], ["y", "2"]]
    assert cells(unnamed) == [[""], ["5"], ["6"]] and "Index(['k', 'l']" in shown.find(class_="output").get_text()
    assert cells(dicts) == [["word", "times", "link"], ["one", "1", ""], ["two", "", "z"]]
    link = shown.find("a", string="Save as CSV")
    assert link["download"] == "table.csv" and "200 rows × 3 columns" in link.parent.get_text()
    lines = work.web.get(link["href"]).text.splitlines()
    assert len(lines) == 201 and lines[2].startswith("0.3333333333333333,")
    assert "| word | times | link |" in shown.source and "/file/" not in shown.source


def test_large_frames_are_bounded(work):
    with work.responsive(5):
        shown = content(work, "shows_large_frames", 60)
    one, wide = shown.find_all("table")
    assert len(cells(one)) == 1001 and len(cells(wide)[0]) == 50
    text = shown.get_text()
    assert "1,000,000 rows × 1 column, here the first 1,000 × 1" in text
    assert "5 rows × 2,000 columns, here the first 5 × 50" in text
    assert "0 rows × 0 columns" in text
    whole = work.web.get(shown.find("a", string="Save as CSV")["href"]).text
    assert whole.count("\n") == 1_000_001 and "here the first 1,000 × 1, in the file all" in text


def test_a_large_frame_does_not_hold_up_the_app(work):
    """What an `async def` shows is written on the event loop: as much as takes no time."""
    with work.responsive(5):
        shown = content(work, "shows_a_large_frame")
    assert "here the first 1,000 × 1, in the file the first 250,000 rows" in shown.get_text()


def test_a_polars_frame(work):
    assert cells(content(work, "shows_polars")) == [["a", "b"], ["1", "x"], ["2", "y,z"]]


def test_what_objects_offer_to_notebooks(work):
    shown = content(work, "shows_forms")
    assert cells(shown.table) == [["framed", "1,5"], ["7"]] and shown.table.find_all("td")[1]["class"] == ["right"]
    assert shown.find("td").attrs == {} and not shown.find("script") and "broken" not in shown.get_text()
    assert shown.source.strip().startswith("| framed | 1,5 |\n| 7 |\n") and "Copy table" not in shown.source
    assert shown.table.find_all("td")[2].attrs == {"class": ["right"], "colspan": "2"}
    assert shown.strong.get_text() == shown.b.get_text() == "bold" and shown.find("math").get_text() == "x2"
    names = [(p["alt"], p["src"][-4:]) for p in shown.find_all("img")]
    assert names == [("Picture, 8 x 4", ".png"), ("Picture", ".svg"), ("Picture, 9 x 9", ".png"), ("kept", ".png")]
    assert all(p["src"].startswith("/file/") for p in shown.find_all("img"))
    svg = work.web.get(shown.find_all("img")[1]["src"])
    assert svg.headers["content-security-policy"] == "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    assert svg.headers["x-content-type-options"] == "nosniff" and svg.headers["x-frame-options"] == "DENY"
    assert "more than 1,000,000 characters" in shown.get_text() and len(shown.row["content"]) < 20_000
    output = [o.get_text().strip() for o in shown.find_all("figure", class_="output")]
    assert output[0] == "plain *repr* | ```" and "class" in output[1] and output[2] == "1234"


# ---- Printed output

def test_what_is_printed_stands_as_it_was(work):
    shown = content(work, "prints")
    blocks = [b.get_text() for b in shown.find_all("figure", class_="output")]
    assert blocks[0].splitlines()[:2] == ["a | b", "*c*  <i>  red"] and blocks[0].count("`") == 50
    assert [b.strip() for b in blocks[1:4]] == ["after", "1", "crawled 7\nof a thread"]
    assert [s.get_text() for s in shown.find_all("strong")] == ["bold", "shown there"] and not shown.find(["i", "em"])
    [fold] = shown.find_all("details")
    said = fold.pre.get_text()
    assert fold.summary.get_text() == "Warnings" and not fold.has_attr("open")
    assert "UserWarning: deprecated" in said and "a log" in said and "direct" in said and "not this" not in said
    assert "7/7" not in shown.get_text() and "Reading" not in shown.get_text()
    assert "```\na | b" in shown.source


def test_prints_in_tasks(work):
    shown = content(work, "prints_async")
    assert shown.find(class_="output").get_text().strip() == "in a task" and cells(shown.table)[0] == ["c0"]


def test_many_prints_are_one_block(work):
    with work.responsive():
        shown = content(work, "prints_much", 30)
    [block] = shown.find_all("figure", class_="output")
    assert block.get_text() == "".join(f"{n}\n" for n in range(10_000))


def test_a_bar_and_a_question(work):
    """What tqdm writes moves the message's bar and leaves no text; the question and the answer stay."""
    ident = work.run("bars")
    shown = work.shows(ident, "Go on?")
    assert float(shown.progress["value"]) == 30
    work.reply(ident, "Yes")
    row = work.ended(ident)
    assert row["content"].strip() == "Go on? – Yes" and work.shown(ident).find("div", id=f"q-{ident}").get_text() == ""


@pytest.mark.parametrize(("kind", "headline"), [
    ("note", "ValueError: first line"), ("group", "ExceptionGroup: several (2 sub-exceptions)"), ("stop", "StopIteration"),
    ("status", "HTTPStatusError: Client error '404 Not Found' for url 'http://x.org/y'")])
def test_the_headline_of_a_traceback(work, kind, headline):
    shown = content(work, "raises", status="error", kind=kind)
    assert shown.row["error"] == headline and shown.details.summary.get_text() == "Traceback"


# ---- The model

@pytest.fixture
def acting(home):
    Server.known.append(home)
    with FakeOllama(port=home.ollama) as fake:
        acting = Acting(home, fake)
        with acting.socket() as acting.tab:
            yield acting
        until(lambda: not acting.rows("status in ('queued', 'streaming')"), what="the end of all")
        acting.web.close()


def test_the_model_has_the_result_of_a_short_job(acting):
    ident = acting.asks(call("counts"))
    acting.reply(ident, "Start Counts")
    acting.ended(ident)
    told = acting.fake.chats[-1]["messages"][-1]["content"]
    assert told.startswith("done: ") and "| c0 | c1 |" in told and "(and 20 more rows)" in told and "30 rows × 2 columns" in told


def test_the_model_is_told_that_a_long_job_runs(acting):
    ident = acting.asks(call("slow"))
    acting.reply(ident, "Start Slow")
    assert acting.ended(ident, 15)["status"] == "done"
    assert acting.fake.chats[-1]["messages"][-1]["content"] == "It runs, and reports in the chat."
    acting.reply(acting.rows("role = 'job'")[-1]["id"], "Go")


def test_the_model_sees_what_the_person_sees(acting):
    content(acting, "shows_figures")
    content(acting, "shows_frames")
    acting.tab.ask("What is in it?", acting.profile)
    said = json.dumps(acting.fake.chats[-1]["messages"])
    assert "[Picture: Clicks by [page]]" in said and "| c0 | c1 | c2 |" in said and "(and 190 more rows)" in said
    assert "/file/" not in said


# ---- From outside

def post(work, name, data, expect=200, **fields):
    files = {"file": (name, data)} if name else None
    reply = work.web.post("/chatq", data={"profile": str(work.profile)} | fields, files=files)
    assert reply.status_code == expect, (reply.status_code, reply.text)
    return work.shown(reply.text).find(class_="content") if expect == 200 else reply.text


def image(kind="png", size=(30, 20)):
    file = io.BytesIO()
    Image.new("RGB", size, "blue").save(file, kind)
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>'


def test_files_are_taken(work):
    for name, data in ("Plot.png", image()), ("photo.jpg", image("jpeg")), ("x.svg", SVG):
        shown = post(work, name, data, text="Look: **this**")
        assert shown.strong.get_text() == "this" and shown.img["alt"] == name.split(".")[0]
        assert work.web.get(shown.img["src"]).content == data
    assert shown.img["src"].endswith(".svg") and post(work, "Plot.png", image()).img["width"] == "30"
    assert cells(post(work, "t.csv", "a;b\n1;ü\n".encode())) == [["a", "b"], ["1", "ü"]]
    assert cells(post(work, "t.csv", b'a,b,c\r\n1\r\n2,"x\r\ny",3\r\n')) == [["a", "b", "c"], ["1", "", ""], ["2", "x\ny", "3"]]
    assert "2 rows" in post(work, "t.csv", b'a\n"x\n"\n"\ny"\n').get_text()
    for coding in "cp1252", "utf-16":         # as Excel saves them
        assert cells(post(work, "t.csv", "a;b\n1;ü\n".encode(coding))) == [["a", "b"], ["1", "ü"]]
    two = [("file", ("a.csv", b"a\n1")), ("file", ("b.csv", b"a\n1"))]
    assert "One file at a time" in work.web.post("/chatq", files=two).text
    assert "Say something" in post(work, None, None, 400)
    assert "file=@plot.png" in post(work, None, None, 400, file="plot.png")


@pytest.mark.parametrize(("name", "data"), [
    ("x.png", b"GIF89a"), ("x.jpg", b"\xff\xd8\xff"), ("x.png", b"\x89PNG\r\n\x1a\n"), ("x.svg", b"<html>"),
    ("x.csv", b"\0\1\xff\xfe"),
    ("x.exe", b"MZ"), ("x.html", b"<p>"), ("x.csv", b"  ")])
def test_what_is_not_what_it_says_is_refused(work, name, data):
    assert "is not what its name says: send a PNG, JPEG, SVG or CSV." in post(work, name, data, 400)
    assert not work.rows()


def test_a_large_picture_is_not_decoded_by_the_page(work):
    large = image("jpeg", (10_000, 10_000))
    assert "photo is too large to be shown here" in post(work, "photo.jpg", large).get_text()


def test_only_files_may_be_large(work):
    rows = "a,b\n" + "1,2\n" * 1_000_000
    shown = post(work, "t.csv", rows.encode())
    assert "1,000,000 rows × 2 columns, here the first 1,000 × 2" in shown.get_text()
    assert "20 MB" in post(work, "t.csv", b"x" * (20 * 2**20 + 2**17), 413)
    kind = "multipart/form-data; boundary=x"
    assert send(work.server, "POST", "/todo", b"x" * 2_000_000, content_type=kind).status == 413
    assert send(work.server, "POST", "/chatq", b"x" * 2_000_000, content_type="application/x-www-form-urlencoded").status == 413


# ---- In the page

def test_tables_and_pictures_in_the_page(chat):
    page = chat.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#job-shows_frames").get_by_role("button", name="Run").click()
    job = page.locator("[data-role=job]")
    expect(job).to_have_attribute("data-status", "done", timeout=20_000)
    long, odd = job.locator(".table").nth(0), job.locator(".table").nth(1)
    expect(long.locator("td:visible")).to_have_count(60)
    assert chat.state() == chat.fresh()
    long.get_by_role("button", name="Show all 200 rows").click()
    expect(long.locator("td:visible")).to_have_count(600)
    assert long.locator(".scroll").evaluate("el => el.scrollHeight > el.clientHeight && el.clientHeight < innerHeight")
    long.locator(".scroll").evaluate("el => el.scrollTop = 500")
    top = "(el) => el.getBoundingClientRect().top"
    assert abs(long.locator("th").first.evaluate(top) - long.locator(".scroll").evaluate(top)) < 2
    odd.get_by_role("button", name="Copy table").click()
    expect(odd.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "\ta|b\tn\na\tx_y*\t1\nb\t'=1+1\t22\nc\t\t333\nd\t<br>\t4"
    with page.expect_download() as save:
        job.get_by_role("link", name="Save as CSV").first.click()
    assert save.value.suggested_filename == "table.csv"


def test_a_table_that_the_model_wrote(chat):
    table = "| page | clicks |\n|---|--:|\n| a, b | 1 |\n| c | 2 |\n"
    chat.answered("Hi", Script(text=table))
    with chat.page.expect_download() as save:
        chat.answer.get_by_role("button", name="Save as CSV").click()
    assert save.value.path().read_bytes().decode() == 'page,clicks\r\n"a, b",1\r\nc,2'
    expect(chat.answer.get_by_role("button", name="Show all")).to_have_count(0)


def test_a_picture_opens_large_and_the_view_follows(chat):
    page = chat.page
    page.locator("#job-shows_figures").get_by_role("button", name="Run").click()
    job = page.locator("[data-role=job]")
    expect(job).to_have_attribute("data-status", "done", timeout=20_000)
    last = job.locator("img").last
    expect(last).to_have_js_property("complete", True)
    assert page.evaluate("el => el.scrollHeight - el.scrollTop - el.clientHeight < 5", page.locator("#msg-list").element_handle())
    last.click()
    dialog = page.get_by_role("dialog", name="Left open")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    last.click()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert job.locator("img").first.bounding_box()["width"] <= 360
    page.set_viewport_size({"width": 1280, "height": 720})
