"""Attachments: pictures, texts and PDFs that go with a prompt, and files that jobs take."""
import base64
import io
import json
import re
import zipfile

import httpx
import pytest
from conftest import Server, free_port, until, wait_done
from fake_ollama import FakeOllama, Script, model
from PIL import Image
from playwright.sync_api import expect
from test_access import TWO_SIZES, look, seen  # noqa: F401
from test_backup import run
from wire import Chat as Socket
from working import Work, insert

pytest_plugins = "chatting", "working"

SEES = model("gemma3:4b", "gemma3", "4.0B", ("completion", "vision"))
BLIND = model("gemma3:1b", "gemma3", "1.0B", ("completion",))
JOBS = '''
@job
def count_lines(chat, data: File, unit: str):
    "Counts the lines of a file."
    return f'{type(data).__name__.endswith("Path")} {data.name}: {len(data.read_text().splitlines())} {unit}'
'''


def picture(width=8, height=6, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, kind)
    return file.getvalue()


def pdf(*pages, password=""):
    """A PDF with a line of text on each page, as the format's simplest writers make them."""
    from pypdf import PdfReader, PdfWriter
    kids = " ".join(f"{4 + 2*n} 0 R" for n in range(len(pages)))
    bodies = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
              "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    for n, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        bodies += [f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {5 + 2*n} 0 R"
                   "/Resources<</Font<</F1 3 0 R>>>>>>",
                   f"<</Length {len(stream)}>>stream\n{stream}\nendstream"]
    data, places = b"%PDF-1.4\n", []
    for n, body in enumerate(bodies, 1):
        places.append(len(data))
        data += f"{n} 0 obj{body}endobj\n".encode()
    table = "".join(f"{at:010} 00000 n \n" for at in places)
    data += f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}trailer<</Size {len(bodies) + 1}/Root 1 0 R>>".encode()
    data += b"\nstartxref\n%d\n%%%%EOF" % data.index(b"xref\n0 ")
    if password:
        writer, file = PdfWriter(PdfReader(io.BytesIO(data))), io.BytesIO()
        writer.encrypt(password, algorithm="RC4-128")
        writer.write(file)
        return file.getvalue()
    return data


@pytest.fixture(scope="module")
def server():
    port = free_port()
    server = insert(Server({"OLLAMA_HOST": f"127.0.0.1:{port}"}), JOBS)
    server.ollama = port
    with FakeOllama(port=port):
        server.start()
    yield server
    server.remove()


@pytest.fixture
def work(server):
    """A profile, its open tab, and the fake Ollama, where the first model sees nothing."""
    Server.known.append(server)
    work = Work(server)
    with FakeOllama(port=server.ollama) as work.fake, Socket(server, f"?profile={work.profile}&tab=t") as work.tab:
        yield work
    work.web.close()


def attach(work, name, data, expect=200, chat=0):
    reply = work.web.post(f"/attach?profile={work.profile}&chat={chat}", files={"file": (name, data)})
    assert reply.status_code == expect, (reply.status_code, reply.text)
    return reply.text


def chips(work):
    return work.server.sql("select * from attachment where profile = ? order by id", work.profile)


def ask(work, text="What is this?", script=None):
    work.fake.script(script or Script(text="It is teal."))
    return work.tab.ask(text, work.profile)


def use(work, *models):
    """The only models that there are from now on."""
    work.fake.models[:] = models
    names = [each["name"] for each in models]
    work.post(f"/choose_model?profile={work.profile}&model={names[-1]}")
    until(lambda: re.findall(r'<option value="(\w+:\w+)"', work.html()) == names, what="the models in the picker")


# ---- What is attached, and what the model is given

def test_a_text_goes_whole_into_the_prompt_with_its_name(work):
    attach(work, "sales.csv", "month,sum\nJan,1\n```\nFeb,2")
    attach(work, "grüße.log", "\x1b[31mGrüße\x1b[0m".encode("utf-16"))
    assert [row["name"] for row in chips(work)] == ["sales.csv", "grüße.log"]
    ask(work, "Add it up")
    said = work.fake.chats[-1]["messages"][-1]["content"]
    assert said == "sales.csv\n``````\nmonth,sum\nJan,1\n```\nFeb,2\n``````\n\ngrüße.log\n```\nGrüße\n```\n\nAdd it up"
    assert not chips(work)
    prompt = work.rows("role = 'user'")[-1]
    assert prompt["content"] == "Add it up"
    assert [file["name"] for file in json.loads(prompt["files"])] == ["sales.csv", "grüße.log"]
    assert work.web.get(f"/source?id={prompt['id']}").text == "[File: sales.csv]\n\n[File: grüße.log]\n\nAdd it up"
    assert "[File: sales.csv]" in work.web.get(f"/export?chat={prompt['chat']}").text
    assert f"msg-{prompt['id']}" in work.web.get("/find?q=sales").text      # found by its file's name, too,
    assert "Nothing found" in work.web.get("/find?q=address").text          # and by nothing else of it


def test_a_picture_is_seen_and_stays_in_sight(work):
    use(work, SEES)
    data = picture()
    attach(work, "shot.png", data)
    ask(work, "")
    ask(work, "And its corners?")
    first, second = (chat["messages"] for chat in work.fake.chats)
    assert (first[1]["content"], [base64.b64decode(p) for p in first[1]["images"]]) == ("", [data])
    assert second[1] == first[1] and "images" not in second[-1]
    assert work.server.sql("select title from chat where profile = ?", work.profile)[0]["title"] == "shot.png"


@pytest.mark.parametrize(("kind", "width", "sent"), [
    ("JPEG", 3000, (2048, 1024)), ("WEBP", 2500, (2048, 1024)), ("GIF", 40, (40, 20)), ("PNG", 2048, (2048, 1024))])
def test_a_picture_is_as_large_as_the_model_can_use(work, kind, width, sent):
    use(work, SEES)
    attach(work, f"shot.{kind.lower()}", picture(width, width // 2, kind))
    ask(work)
    given = Image.open(io.BytesIO(base64.b64decode(work.fake.chats[-1]["messages"][-1]["images"][0])))
    assert (given.size, given.format) == (sent, kind.replace("GIF", "PNG"))


def test_a_model_that_sees_nothing_is_told_before(work):
    use(work, SEES, BLIND)
    attach(work, "shot.png", picture())
    work.tab.say("What is this?")
    said = work.tab.hear(r'id="toast"[^>]*data-refused.*?</button>|data-refused.*?</button>')[0]
    assert "gemma3:1b can see no pictures. gemma3:4b can" in said and "Use gemma3:4b" in said
    assert len(chips(work)) == 1 and not work.rows() and not work.fake.chats
    work.post(re.search(r'hx-post="/(choose_model[^"]*)"', said)[1].replace("&amp;", "&"))
    ask(work)
    assert work.fake.chats[-1]["model"] == "gemma3:4b" and work.fake.chats[-1]["messages"][-1]["images"]
    work.post(f"/choose_model?profile={work.profile}&model=gemma3:1b")    # in a chat with pictures
    ask(work, "Thanks")
    assert "images" not in str(work.fake.chats[-1]) and "picture that you cannot see" in str(work.fake.chats[-1])


def test_where_the_server_does_not_tell_it_is_sent(app):
    with FakeOllama() as fake:
        server = app({"OPENAI_BASE_URL": f"{fake.url}/v1"})
        work, data = Work(server), picture()
        work.fake = fake
        attach(work, "shot.png", data)
        with Socket(server, f"?profile={work.profile}") as work.tab:
            ask(work)
        text, image = fake.chats[-1]["messages"][-1]["content"]
        assert text == {"type": "text", "text": "What is this?"}
        assert image == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def test_a_pdf_is_read(work):
    attach(work, "report.pdf", pdf("First page", "Second page"))
    ask(work)
    said = work.fake.chats[-1]["messages"][-1]["content"]
    assert said.startswith("report.pdf\n```\nFirst page") and "Second page" in said


def test_a_text_that_is_too_long_is_refused_and_kept(work):
    attach(work, "long.txt", "x" * 30_000)
    work.tab.say("Sum up")
    said = work.tab.hear(r"about ([\d,]+) characters too long")
    assert 15_000 < int(said[1].replace(",", "")) < 25_000
    assert len(chips(work)) == 1 and not work.rows()
    work.post(f"/settings?profile={work.profile}", context="32768")
    ask(work)
    assert "x" * 30_000 in work.fake.chats[-1]["messages"][-1]["content"]


# ---- Bad input: each a sentence, and nothing is attached

HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (50_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
BAD = {
    "nothing": ("empty.txt", b"", 400, "is empty"),
    "blanks": ("blank.txt", b" \n ", 400, "is empty"),
    "no picture": ("shot.png", b"<html>", 400, "no PNG that can be read"),
    "half a picture": ("shot.jpg", b"\xff\xd8\xff\xe0", 400, "no JPEG that can be read"),
    "no PDF": ("paper.pdf", b"text", 400, "no PDF that can be read"),
    "a phone's picture": ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 400, "picture (PNG, JPEG, WebP, GIF)"),
    "a program": ("a.exe", b"MZ\0\1\2\3", 400, "no text in it"),
    "huge": ("huge.png", HUGE, 400, "50,000 x 50,000 pixels"),
    "large": ("large.bin", b"x" * (21 * 2**20), 413, "more than 20 MB"),
    "locked": ("locked.pdf", pdf("Secret", password="x"), 400, "it is locked"),
    "broken": ("broken.pdf", b"%PDF-1.4 and so on", 400, "could not be read"),
    "pictures of text": ("scan.pdf", pdf(""), 400, "no text in it"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_attached_is_said(work, what):
    name, data, status, says = BAD[what]
    said = attach(work, name, data, status)
    assert says in said and "\n" not in said and "Traceback" not in said and not chips(work)


def test_a_bomb_is_given_up(app):
    work = Work(insert(app(start=False), "PDF_TIME = .01").start())
    assert "takes more than 0.01 s" in attach(work, "bomb.pdf", pdf("x"), 400)


def test_without_pypdf_it_says_what_to_install(app):
    server = app(start=False)
    hidden = "sys.modules['pypdf'] = None"
    work = Work(insert(server, hidden).start())
    assert "pip install pypdf" in attach(work, "paper.pdf", pdf("x"), 400)


def test_fifty_at_once(work):
    files = [("file", (f"{n}.txt", f"{n}")) for n in range(50)]
    reply = work.web.post(f"/attach?profile={work.profile}", files=files)
    assert (reply.status_code, reply.text) == (400, "At most 20 files go with a prompt: send these first.")
    reply = work.web.post(f"/attach?profile={work.profile}", files=files[:20])
    assert reply.status_code == 200 and len(chips(work)) == 20
    attach(work, "more.txt", "x", 400)
    assert work.web.post(f"/attach?profile={work.profile}").status_code == 400
    assert work.web.post(f"/attach?profile={work.profile}", data={"file": "x"}).status_code == 400
    assert work.web.post("/attach?profile=99999", files=files[:1]).status_code == 404
    assert work.web.post(f"/attach?profile={work.profile}&chat=99999", files=files[:1]).status_code == 404


@pytest.mark.parametrize(("name", "shown"), [
    ("../../etc/passwd", "passwd"), ("..\\..\\x.txt", "x.txt"), ("<b>x</b>.txt", "b>.txt"), ("..", "file"),
    ("a" * 300 + ".csv", "a" * 49 + "….csv")])
def test_names_are_names(work, name, shown):
    attach(work, name, "text")
    assert chips(work)[0]["name"] == shown
    assert "<b>" not in work.html()


def test_markup_that_is_attached_never_runs(work):
    for name, data in ("a.svg", "<svg onload='alert(1)'/>"), ("a.html", "<script>alert(1)</script>"):
        attach(work, name, data)
        reply = work.web.get(chips(work)[-1]["address"])
        assert reply.headers["content-type"].startswith("text/plain") and reply.text == data
        assert "sandbox" in reply.headers["content-security-policy"]


def test_what_was_deleted_on_disk_is_said(work):
    attach(work, "notes.txt", "some text of its own")
    attach(work, "other.txt", "Hi")
    gone = work.server.dir / "data/server.files" / chips(work)[0]["address"].rpartition("/")[2]
    text = gone.read_bytes()
    gone.unlink()
    work.tab.say("Sum up")
    work.tab.hear("notes.txt was deleted on the disk")
    assert len(chips(work)) == 2
    gone.write_bytes(text)
    ask(work)
    gone.unlink()
    ask(work, "Again")
    assert "(The file notes.txt is not there any more.)" in work.fake.chats[-1]["messages"][1]["content"]


# ---- What becomes of the files

def test_files_live_as_long_as_what_names_them_and_are_in_backups(app, fake, tmp_path):
    server = app({"OLLAMA_HOST": fake.url})
    work = Work(server)
    work.fake = fake
    with Socket(server, f"?profile={work.profile}") as work.tab:
        attach(work, "sent.txt", "sent with a prompt")
        ask(work)
        attach(work, "chip.txt", "not sent yet", chat=work.rows()[0]["chat"])
    kept = server.dir / "data/server.files"
    (kept / f"{'a' * 64}.txt").write_text("nobody's")
    server.restart()
    assert sorted(path.read_text() for path in kept.iterdir()) == ["not sent yet", "sent with a prompt"]
    done = run(server, "--backup", tmp_path / "copy.zip")
    assert done.returncode == 0, done
    assert len(zipfile.ZipFile(tmp_path / "copy.zip").namelist()) == 3
    assert len([*tmp_path.iterdir()]) == 1
    other = app({"OLLAMA_HOST": fake.url}, start=False)
    done = run(other, "--restore", tmp_path / "copy.zip")
    assert (done.returncode, done.stderr) == (0, "")
    other.start()
    assert httpx.get(other.url + chips(work)[0]["address"], trust_env=False).text == "not sent yet"
    assert sorted(p.name for p in (other.dir / "data").iterdir() if p.suffix not in (".db-wal", ".db-shm")) == [
        "server.db", "server.files", "server.key", "server.lock"]
    (tmp_path / "broken.zip").write_bytes((tmp_path / "copy.zip").read_bytes()[:-90])
    other.stop()
    done = run(other, "--restore", tmp_path / "broken.zip")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Nothing was changed" in done.stderr


def test_a_job_takes_a_file(work):
    reply = work.web.post(f"/run/count_lines?profile={work.profile}", files={"data": ("../käse <b>.csv", "1\n2\n3")})
    assert reply.status_code == 422 and "Fill this in" in reply.text and "käse &lt;b&gt;.csv" in reply.text
    kept = re.search(r'type="hidden"[^>]*value="([^"]*)"|value="([^"]*)"[^>]*type="hidden"', reply.text)
    kept = next(filter(None, kept.groups())).replace("&lt;", "<").replace("&gt;", ">")
    reply = work.web.post(f"/run/count_lines?profile={work.profile}", data={"data": kept, "unit": "rows"},
                          files={"data": ("", b"")})
    assert reply.status_code == 200, reply.text
    ident = work.rows("role = 'job'")[-1]["id"]
    assert work.ended(ident)["content"].strip() == "True käse <b>.csv: 3 rows"
    work.post(f"try_again?id={ident}")
    assert until(lambda: work.ended(ident)["content"].strip(), what="an answer") == "True käse <b>.csv: 3 rows"
    (work.server.dir / "data/server.files" / kept.partition(" ")[0].rpartition("/")[2]).unlink()
    assert "start it from its form" in work.web.post(f"/try_again?id={ident}").text
    large = work.web.post(f"/run/count_lines?profile={work.profile}", files={"data": ("x.csv", b"x" * (21 * 2**20))})
    assert large.status_code == 413


# ---- The page

@pytest.fixture
def page(chat):
    """With two models to choose from, the first of which can see."""
    chat.fake.models[:] = [SEES, BLIND]
    expect(chat.page.locator("#model option")).to_have_count(2, timeout=10_000)
    yield chat.page


def files(page, *names_and_data):
    page.locator("#files").set_input_files(
        [{"name": name, "mimeType": "", "buffer": data} for name, data in names_and_data])


DROP = """([selector, files]) => {
  const data = new DataTransfer()
  for (const [name, text] of files) data.items.add(new File([text], name))
  const at = document.querySelector(selector)
  for (const type of ['dragover', 'drop']) {
    const event = new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true })
    at.dispatchEvent(event)
    if (!event.defaultPrevented) throw new Error(`${type} was left to the browser`)
  }
  return document.body.matches('.dropping') }"""
PASTE = """([text, file]) => {
  const data = new DataTransfer()
  if (text) data.setData('text/plain', text)
  if (file) data.items.add(new File(['x'], file))
  const event = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })
  document.querySelector('#msg').dispatchEvent(event)
  return event.defaultPrevented }"""


def test_a_person_attaches_and_sends(chat, page):
    files(page, ("shot.png", picture(400, 300)), ("notes.md", b"# Notes\n" * 100))
    chips = page.locator("#chips li")
    expect(chips).to_have_count(2)
    expect(chips.nth(1)).to_contain_text("notes.md0.8 kB · 6% of the context")
    page.reload()
    expect(chips).to_have_count(2)
    other = chat.open()
    expect(other.locator("#chips li")).to_have_count(2)
    files(page, ("more.txt", b"more"))
    expect(other.locator("#chips li")).to_have_count(3)
    other.get_by_role("button", name="Remove more.txt", exact=True).click()
    expect(chips).to_have_count(2)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.locator("#msg").press("Enter")
    assert wait_done(page)
    expect(chips).to_have_count(0)
    prompt = chat.prompts.first
    expect(prompt.get_by_role("link")).to_have_count(2)
    prompt.get_by_role("link", name="shot.png").click()
    expect(page.get_by_role("dialog", name="shot.png")).to_be_visible()
    page.keyboard.press("Escape")
    prompt.hover()
    prompt.get_by_role("button", name="Delete message").click()
    expect(chat.prompts).to_have_count(0)
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(prompt.get_by_role("link")).to_have_count(2)


def test_drops_and_pastes_are_caught(chat, page):
    chips = page.locator("#chips li")
    assert page.evaluate(DROP, ["#sidebar", [["a.txt", "a"], ["b.txt", "b"]]])
    expect(chips).to_have_count(2)
    expect(page.locator("body.dropping")).to_have_count(0)
    assert page.evaluate(PASTE, ["", "image.txt"])
    expect(chips).to_have_count(3)
    assert not page.evaluate(PASTE, ["short", ""])
    assert page.evaluate(PASTE, ["x" * 32_001, ""])
    expect(chips.last).to_contain_text("pasted.txt32.0 kB · 223% of the context")
    page.locator("#msg").fill("Sum up")
    page.locator("#msg").press("Enter")
    expect(page.locator("#toast")).to_contain_text("too long")
    expect(page.locator("#msg")).to_have_value("Sum up")
    expect(chips).to_have_count(4)


def test_a_prompt_waits_for_its_files(chat, page):
    held = []
    page.goto(chat.url)
    page.route("**/attach?*", lambda route: held.append(route))

    def take():
        until(lambda: held or page.wait_for_timeout(20))
        held.pop().continue_()
    for prompt, data in ("sent", b"Some notes"), ("kept", b""):
        page.set_input_files("#files", [{"name": f"{n}.txt", "mimeType": "", "buffer": data} for n in (1, 2)])
        page.locator("#msg").fill(prompt)
        page.locator("#msg").press("Enter")
        expect(page.locator("#toast")).to_have_text("It is sent as soon as the file is here.")
        take()
        expect(page.locator("#chips li" if data else "#toast:has-text('is empty')")).to_have_count(1)
        expect(page.locator("#msg")).to_have_value(prompt)
        take()
        expect(page.locator("#msg")).to_have_value("" if data else "kept")
        expect(page.locator("#files")).not_to_have_class(re.compile("htmx-request"))
    wait_done(page)
    [row] = chat.rows("role = 'user'")
    assert row["content"] == "sent" and len(json.loads(row["files"])) == 2
    chat.window.allow_errors = "400"


def test_what_is_too_large_or_too_many_is_said_in_the_page(chat, page):
    chat.window.allow_errors = "400|Response Status Error"
    toast = page.locator("#toast")
    page.evaluate("""() => {
      const data = new DataTransfer()
      data.items.add(new File([new Uint8Array(21 * 2 ** 20)], 'large.bin'))
      const field = document.querySelector('#files')
      field.files = data.files
      field.dispatchEvent(new Event('change', { bubbles: true })) }""")
    expect(toast).to_have_text("large.bin is larger than 20 MB: it was not taken.")
    files(page, *((f"{n}.txt", b"text") for n in range(22)))
    expect(toast).to_have_text("At most 20 files go with a prompt: send these first.")
    expect(page.locator("#chips li")).to_have_count(20)


def test_the_button_of_a_refusal_chooses_a_model_that_sees(chat, page):
    page.locator("#model").select_option("gemma3:1b")
    files(page, ("shot.png", picture()))
    page.locator("#msg").fill("What is this?")
    page.locator("#msg").press("Enter")
    page.get_by_role("button", name="Use gemma3:4b").click()
    expect(page.locator("#toast")).to_be_empty()
    expect(page.locator("#model")).to_have_value("gemma3:4b")
    expect(page.locator("#msg")).to_have_value("What is this?")
    page.locator("#msg").press("Enter")
    assert wait_done(page)
    assert chat.fake.chats[-1]["messages"][-1]["images"]


@TWO_SIZES
def test_attachments_are_for_everybody(chat, page, seen, look):  # noqa: F811
    files(page, ("shot.png", picture(400, 300)), ("a name of some length.md", b"# Notes\n" * 100))
    expect(page.locator("#chips li")).to_have_count(2)
    look.at("chips")
    page.evaluate("document.body.classList.add('dropping')")
    look.at("dropping")
    page.evaluate("document.body.classList.remove('dropping')")
    page.get_by_role("button", name="Remove shot.png").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#chips li")).to_have_count(1)
    expect(page.get_by_role("button", name="Remove a name of some length.md")).to_be_focused()
    files(page, ("shot.png", picture(400, 300)))
    expect(page.locator("#msg")).to_be_focused()
    expect(page.locator("#chips li")).to_have_count(2)
    page.keyboard.press("Enter")
    assert wait_done(page)
    look.at("sent")
    look.done()


def test_a_drop_on_a_job_is_its_file(work, server, window):
    page = window.open(server.url + work.path)
    page.locator("#job-count_lines summary").click()
    page.evaluate(DROP, ["#job-count_lines p", [["a.csv", "1\n2"]]])
    page.get_by_label("Unit").fill("rows")
    page.get_by_role("button", name="Run Count lines").click()
    expect(page.locator("[data-role=job] .content")).to_have_text("True a.csv: 2 rows")
    expect(page.locator("#chips li")).to_have_count(0)
