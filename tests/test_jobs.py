"""Jobs: the form that a signature makes, what a job says while it runs, and how it ends, whatever it does."""
import json
import re
import stat
from contextlib import contextmanager
from time import monotonic

import pytest
from conftest import Server, open_job, until
from fake_ollama import FakeOllama
from playwright.sync_api import expect
from wire import soup
from working import Work, app_with, insert

pytest_plugins = "chatting", "working"

JOBS = r'''
@job
def all_kinds(chat, text: str, count: int = 3, ratio: float = .5, sure: bool = True, size: Literal['small', 'large'] = 'large',
              level: Literal[1, 2] = 1, day: date = date(2026, 1, 31), several: Lines = '', maybe: int | None = None,
              name: str = '', profile: str = '', plain=''):
    """What the help says.

    And its second paragraph."""
    return Pre(repr((text, count, ratio, sure, size, level, day, several, maybe, name, profile, plain)))

@job
async def gate(chat, word: str = 'nothing', go_on: bool = False):
    chat.progress(0, 100)
    chat.progress(25, 100)
    while await chat.ask('May it go on?', 'Go on', 'Report') == 'Report': chat.send(f'{word} is reported. ')
    return f'The word is {word}.'

@job
def gate_in_thread(chat):
    chat.progress(10)
    return chat.ask('May the thread go on?', 'Yes', 'No')

@job
def many_parts(chat, count: int):
    for n in range(count): chat.send(Samp(f'part {n}'))

@job
def where_sync(chat): return f'in the loop: {threading.get_ident() == chatq.thread}'

@job
async def where_async(chat): return f'in the loop: {threading.get_ident() == chatq.thread}'

@job
async def threads(chat): return ' '.join(t.name for t in threading.enumerate())

@job
def parts(chat):
    class Frame:
        def _repr_html_(self): return '<table><tr><td onclick="x()">framed</td></tr></table><script>alert(1)</script>'
    chat.send('Some **bold** text.\n')
    chat.send(Table(Tr(Td('a cell <b>'))))
    chat.send(Img(src='data:image/png;base64,iVBORw0KGgo=', alt='A plot'))
    chat.send(Frame())
    chat.send(1234)
    chat.send(['<i>list</i>'])
    return P('the last word', id='last')

@job
def nothing(chat): pass

@job
def generated(chat):
    yield 'one '
    yield 'two '
    yield P('three')

@job
async def generated_async(chat):
    yield 'one '
    await asyncio.sleep(0)
    yield 'two '
    yield P('three')

@job
def endless(chat):
    for n in range(10**9): chat.progress(n, 10**9); time.sleep(.001)

@job
def endless_generator(chat):
    while True: yield 'more '; time.sleep(.001)

@job
async def endless_async(chat):
    while True: chat.progress(5); await asyncio.sleep(.001)

@job
def fails(chat):
    raise ValueError('this | is <b>wrong</b> `here`')

@job
async def fails_async(chat): raise ValueError('this | is <b>wrong</b> `here`')

@job
def fails_late(chat):
    yield 'It began. '
    raise OSError('later')

@job
def exits(chat): sys.exit('enough')

@job
async def exits_async(chat): sys.exit(3)

@job
def interrupted(chat): raise KeyboardInterrupt

@job
def blocks(chat):
    chat.send('It blocks. ')
    time.sleep(60)

@job
def prints(chat, times: int, size: int):
    for n in range(times): print('x' * size)

@job
def sends(chat, at_once: bool, sign: str):
    for n in range(1 if at_once else 1000): chat.send(sign * (10**8 if at_once else 10**5))

@job
def reports(chat):
    for n in range(100_000): chat.progress(n + 1, 100_000)
    return 'All reported.'

@job
def updates(chat):
    for n in range(500): chat.update(f'State {n} ' + 'x' * 5000)

@job
def two_threads(chat):
    both = threading.Barrier(2)
    class Slow(deque):
        def append(self, what):
            super().append(what)
            both.wait(5)      # each has left its word before either looks whether somebody reads
    chat.inbox = Slow()
    some = [threading.Thread(target=chat.send, args=['+']) for n in range(2)]
    for t in some: t.start()
    for t in some: t.join()

@job
async def adds_todo(chat, title: str): await todos.add(title=title)

@job
def secretive(chat, password: Secret, port: int = 1, crash: bool = False):
    if crash: raise ValueError(f'{password} is not right')
    return f'It has {len(password)} characters.'

@job
def measure(chat, text: Lines): return f'{len(text):,} characters'

@job
def shy(chat, extra: Secret = '', crash: bool = False):
    if crash: raise ValueError('plain words')
    return f'It is {extra or "empty"}.'
'''
home = app_with(JOBS)
SECRET = "s3cr3t-Gr\u00fc\u00dfe-42"


@pytest.fixture
def form(work):
    """The form of a job, as it stands in the page."""
    return lambda job: soup(work.html(), "form").find(id=f"job-{job}")


# ---- The form

def test_there_is_one_form_for_each_job(work):
    jobs = soup(work.html()).find(id="job-list")
    names = re.findall(r"^(?:async )?def (\w+)\(chat", JOBS, re.MULTILINE)
    assert [f["id"] for f in jobs.find_all("form")] == [f"job-{n}" for n in ["summarise_my_todos", "audit_pages", *names]]
    assert all(f["hx-post"].startswith(f"/run/{f['id'][4:]}") for f in jobs.find_all("form"))


def test_the_signature_makes_the_form(form):
    f = form("all_kinds")
    assert f.h3.get_text() == "All kinds" and "What the help says." in f.p.get_text()
    fields = {x["name"]: x for x in f.find_all(["input", "textarea", "select"])}
    assert list(fields) == ["text", "count", "ratio", "sure", "size", "level", "day", "several", "maybe", "name", "profile",
                            "plain"]
    got = {k: (x.name, x.get("type"), x.get("value"), x.get("inputmode")) for k, x in fields.items()}
    assert got["text"] == ("input", "text", "", None)
    assert got["count"] == ("input", "text", "3", "numeric")
    assert got["ratio"] == ("input", "text", "0.5", "decimal")
    assert got["day"] == ("input", "date", "2026-01-31", None)
    assert got["maybe"] == ("input", "text", "", "numeric")
    assert got["sure"][1] == "checkbox" and fields["sure"].has_attr("checked")
    assert fields["several"].name == "textarea"
    assert [(o.get_text(), o.has_attr("selected")) for o in fields["size"].find_all("option")] == [
        ("small", False), ("large", True)]
    assert all(x.find_parent("label") for x in fields.values())


def test_the_values_arrive_in_their_types(work):
    def values(**data):
        return soup(work.ended(work.run("all_kinds", **data))["content"].strip("\n\x02\x03")).pre.get_text()
    assert values(text="Grüße", count="-7", ratio="1e3", sure="1", size="small", level="2", day="2024-02-29",
                  several="a\r\nb", maybe="0", name="n", profile="p", plain="q") == (
        "('Grüße', -7, 1000.0, True, 'small', 2, datetime.date(2024, 2, 29), 'a\\nb', 0, 'n', 'p', 'q')")
    assert values(text=" x ", profile="") == (
        "('x', 3, 0.5, False, 'large', 1, datetime.date(2026, 1, 31), '', None, '', '', '')")


@pytest.mark.parametrize(("field", "value", "word"), [
    ("text", "", "Fill this in."), ("text", " \n", "Fill this in."), ("text", "x" * 32_001, "characters long"),
    ("text", "a\0b", "no text"), ("count", "1.5", "whole number"), ("count", "9" * 5000, "whole number"),
    ("ratio", "nan", "a number"), ("size", "huge", "small, large"), ("level", "3", "1, 2"),
    ("day", "31.1.2026", "2026-01-31"), ("day", "2026-02-30", "2026-01-31"), ("maybe", "x", "whole number")])
def test_a_wrong_value_is_told_beside_its_field(work, field, value, word):
    reply = work.submit("all_kinds", **{"text": "kept as typed", "count": "8", field: value})
    assert reply.status_code == 422 and not work.rows()
    form = soup(reply.text)
    bad = form.find_all(attrs={"aria-invalid": "true"})
    assert [b["name"] for b in bad] == [field]
    assert word in form.find(id=bad[0]["aria-describedby"]).get_text()
    assert field == "count" or form.find(attrs={"name": "count"})["value"] == "8"
    assert field == "text" or form.find(attrs={"name": "text"})["value"] == "kept as typed"


def test_an_unknown_job_is_not_found(work):
    assert work.submit("no_such").status_code == 404
    assert work.submit("__import__").status_code == 404
    assert work.web.get("/run/nothing").status_code in (404, 405) and not work.rows()


def test_a_job_in_the_page(chat):
    page, form = chat.page, chat.page.locator("#job-gate")
    chat.window.allow_errors = "422|ResponseError"
    open_job(page, "gate").get_by_label("Word").fill("")
    open_job(page, "all_kinds")
    page.locator("#job-all_kinds").get_by_role("button", name="Run All kinds").click()
    expect(page.locator("#job-all_kinds [aria-invalid]")).to_have_accessible_description("Fill this in.")
    expect(page.locator("[data-role=job]")).to_have_count(0)
    form.get_by_label("Word").fill("<b>this</b>")
    form.get_by_role("button", name="Run Gate").click()
    job = page.locator("[data-role=job]")
    expect(job).to_have_attribute("data-status", "streaming")
    expect(job.locator("progress")).to_have_attribute("value", "25.0")
    expect(job).to_contain_text(re.compile(r"25 of 100 · [\d,.]+/s · .+ left"))
    expect(job.get_by_role("button", name="Cancel")).to_be_visible()
    job.get_by_role("button", name="Go on").click()
    expect(job).to_contain_text("The word is <b>this</b>.")
    expect(job).to_have_attribute("data-status", "done")
    expect(job.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(job.get_by_role("button", name="Go on")).to_have_count(0)
    assert "left" not in job.inner_text()
    assert chat.state() == chat.fresh()


def test_reload_and_second_tab_show_it_running(chat):
    open_job(chat.page, "gate").get_by_role("button", name="Run Gate").click()
    chat.page.get_by_role("button", name="Report", exact=True).click()
    chat.page.get_by_text("nothing is reported").wait_for()
    chat.page.reload()
    other = chat.open()
    for page in chat.page, other:
        job = page.locator("[data-role=job]")
        expect(job).to_have_attribute("data-status", "streaming")
        expect(job).to_contain_text("nothing is reported")
        expect(job.locator("progress")).to_have_attribute("value", "25.0")
        expect(job.get_by_role("button", name="Go on")).to_be_visible()
    other.get_by_role("button", name="Cancel").click()
    for page in chat.page, other:
        expect(page.locator("[data-role=job]")).to_have_attribute("data-status", "stopped")
        expect(page.get_by_role("button", name="Go on")).to_have_count(0)
        expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_what_a_job_changes_shows_where_it_was_started(chat):
    form = open_job(chat.page, "adds_todo")
    form.get_by_label("Title").fill("By a job")
    form.get_by_role("button", name="Run Adds todo").click()
    expect(chat.page.locator("#todo-list")).to_contain_text("By a job")


# ---- What it says

def test_a_function_runs_in_a_thread_and_a_coroutine_in_the_loop(work):
    assert "in the loop: False" in work.ended(work.run("where_sync"))["content"]
    assert "in the loop: True" in work.ended(work.run("where_async"))["content"]


def test_parts_that_come_in_a_burst_are_each_sent_once(work):
    with work.socket() as tab:
        ident = work.run("many_parts", count="3000")
        tab.until(lambda: re.search(f'<footer data-status="done"[^>]* id="f-{ident}"', tab.heard), 30, "the end")
    assert re.findall(r"part (\d+)<", tab.heard) == [str(n) for n in range(3000)]


def test_it_sends_markdown_components_and_anything_else(work):
    ident = work.run("parts")
    assert work.ended(ident)["status"] == "done"
    content = work.shown(ident).find(class_="content")
    assert content.strong.get_text() == "bold" and content.find("td").get_text() == "a cell <b>"
    assert content.img["src"].startswith("data:image/png") and content.img["alt"] == "A plot"
    assert content.find("td", string="framed").attrs == {} and not content.script
    text = content.get_text()
    assert "1234" in text and "['<i>list</i>']" in text and not content.i
    assert text.rstrip().endswith("the last word")


@pytest.mark.parametrize("job", ["generated", "generated_async"])
def test_the_parts_of_a_generator_are_sent(work, job):
    ident = work.run(job)
    assert work.ended(ident)["status"] == "done"
    assert work.shown(ident).find(class_="content").get_text(" ", strip=True).split() == ["one", "two", "three"]


def test_a_job_that_returns_nothing_is_done(work):
    row = work.ended(work.run("nothing"))
    assert (row["status"], row["content"].strip(), row["error"]) == ("done", "", "")


def test_progress_reaches_a_tab_at_screen_speed(work):
    """Frames are counted at the socket, and the bar is complete in the end."""
    with work.socket() as tab:
        tab.hear("")
        frames, heard, start = 0, "", monotonic()
        work.run("reports")
        while "All reported." not in heard or 'value="100.0"' not in heard:
            heard += tab.ws.recv(20)
            frames += 1
        took = monotonic() - start
    assert frames <= 60 * took + 10, f"{frames} frames in {took:.2f} s"
    assert frames >= 3


def test_a_text_may_be_replaced_without_end(work):
    """What was replaced does not count as output."""
    row = work.ended(work.run("updates"))
    assert row["content"].startswith("State 499 ") and len(row["content"]) == 5010


def test_a_job_may_speak_from_several_threads(work):
    row = work.ended(work.run("two_threads"))
    assert (row["status"], row["content"].strip()) == ("done", "++")


# ---- Several at once, and cancelled

def test_several_run_at_once_and_the_rest_wait_in_line(work):
    first = [work.run("gate", word=str(n)) for n in range(3)]
    waiting = [work.run("gate", word=str(n)) for n in range(3, 6)]
    for ident in first:
        assert work.shows(ident, "May it go on?")["data-status"] == "streaming"
    for ident in waiting:
        job = work.shown(ident)
        assert job["data-status"] == "queued" and "in line" in job.get_text() and "May it" not in job.get_text()
    work.post(f"/cancel?id={waiting[0]}")
    assert work.ended(waiting[0])["status"] == "stopped"
    work.reply(first[1], "Go on")
    assert work.ended(first[1])["status"] == "done"
    assert work.shows(waiting[1], "May it go on?")["data-status"] == "streaming"
    assert work.shown(waiting[2])["data-status"] == "queued"
    for ident in first[0], first[2], waiting[1], waiting[2]:
        work.reply(ident, "Go on")
        assert work.ended(ident)["status"] == "done"


@pytest.mark.parametrize("job", ["endless", "endless_generator", "endless_async", "gate", "gate_in_thread", "blocks"])
def test_cancel_ends_a_job(work, job):
    """Also twice, and after its end; a thread ends at the next word that it says."""
    ident = work.run(job)
    until(lambda: work.shown(ident).find("button", string="Cancel") and (
        work.shown(ident).progress or work.shown(ident).find(class_="content").get_text().strip()), what="a sign of life")
    work.post(f"/cancel?id={ident}")
    work.post(f"/cancel?id={ident}")
    row = work.ended(ident, 2)
    assert (row["status"], row["error"]) == ("stopped", "")
    if job != "blocks":
        until(lambda: job not in work.ended(work.run("threads"))["content"].split(), what="the end of its thread")
    work.post(f"/cancel?id={ident}")
    last = work.row(ident)
    assert last["status"] == "stopped" and last["content"] == row["content"]
    assert "Try again" in work.shown(ident).get_text()


def test_a_question_is_answered_once(work):
    ident = work.run("gate_in_thread")
    buttons = work.shows(ident, "May the thread go on?").find("div", id=f"q-{ident}").find_all("button")
    assert [b.get_text() for b in buttons] == ["Yes", "No"]
    for wrong in "2", "-1":
        assert work.web.post(f"/reply?id={ident}&n={wrong}").status_code == 400
    work.post(buttons[1]["hx-post"])
    assert work.ended(ident)["content"].split("\n\n")[-2:] == ["No", "May the thread go on? – No"]
    late = work.web.post(buttons[0]["hx-post"])
    assert (late.status_code, late.text) == (400, "This question is not open any more.")


# ---- Bad jobs

@pytest.mark.parametrize("job", ["fails", "fails_async", "fails_late", "exits", "exits_async", "interrupted"])
def test_a_crash_is_told(work, job):
    """Its last line in the chat, the traceback folded away and in the log; and the app goes on."""
    last = {"fails_late": "OSError: later", "exits": "SystemExit: enough", "exits_async": "SystemExit: 3",
            "interrupted": "KeyboardInterrupt"}.get(job, "ValueError: this | is <b>wrong</b> 'here'")
    ident = work.run(job)
    assert work.ended(ident)["status"] == "error"
    shown = work.shown(ident)
    assert shown.find("p", class_="error").get_text() == last
    assert shown.details.summary.get_text() == "Traceback" and not shown.details.has_attr("open")
    assert f"in {job}" in shown.details.pre.get_text() and not shown.b
    assert "Try again" in shown.get_text()
    work.server.wait_out(f"in {job}\n")
    work.server.wait_out(last.replace("'here'", "`here`"))
    assert work.ended(work.run("nothing"))["status"] == "done"


def test_a_text_of_lines_may_be_long_and_is_not_cut(work):
    """A browser would cut what is pasted at a maxlength without a word; what is too long is told instead."""
    assert soup(work.html()).find(id="measure-text").get("maxlength") is None
    assert work.ended(work.run("measure", text="x" * 100_000))["content"].strip() == "100,000 characters"
    reply = work.submit("measure", text="x" * 2**20)
    assert reply.status_code == 413 and "1 MB" in reply.text


def test_what_a_job_prints_stands_in_the_chat(work):
    row = work.ended(work.run("prints", times=2, size=10))
    shown = work.shown(row["id"]).find("figure", class_="output")
    assert shown.get_text() == "xxxxxxxxxx\nxxxxxxxxxx\n"
    assert "xxxx" not in work.server.out()


def test_a_job_that_prints_100_mb(work):
    with work.responsive():
        row = work.ended(work.run("prints", times=100, size=10**6), 20)
    assert row["status"] == "done" and "the rest is left out" in row["content"]


@pytest.mark.parametrize("sign", ["x", "ü"])
@pytest.mark.parametrize("at_once", ["1", ""])
def test_a_job_that_sends_100_mb(work, at_once, sign):
    with work.responsive():
        ident = work.run("sends", at_once=at_once, sign=sign)
        row = work.ended(ident, 20)
    assert row["status"] == "done" and len(row["content"]) < 1_100_000
    assert "the rest is left out" in row["content"]
    with work.responsive():
        assert "the rest is left out" in work.shown(ident).get_text()


@pytest.fixture(scope="module")
def killed():
    """An app with a job in the middle and one in line, whose server was killed; and its profile and messages."""
    server = insert(Server(), JOBS, replace={"JOBS_AT_ONCE = 3": "JOBS_AT_ONCE = 1"}).start()
    work = Work(server)
    jobs = [work.run("gate", word=word, go_on="1") for word in ("first", "second")]
    work.reply(jobs[0], "Report")
    work.shows(jobs[0], "first is reported")
    until(lambda: "first is reported" in work.row(jobs[0])["content"], what="the save of what it said")
    server.restart("kill")
    yield work, jobs
    server.remove()


def test_a_killed_server_leaves_its_jobs_to_be_tried_again(killed):
    work, jobs = killed
    Server.known.append(work.server)
    for ident in jobs:
        shown = work.shown(ident)
        assert shown["data-status"] == "stopped" and not shown.find("button", string="Cancel")
    assert "first is reported" in work.shown(jobs[0]).get_text()
    again = work.shown(jobs[1]).find("button", string="Try again")["hx-post"]
    work.post(again)
    work.shows(jobs[1], "May it go on?")
    assert work.web.post(again).status_code == 400        # it runs
    work.reply(jobs[1], "Go on")
    assert work.ended(jobs[1])["content"].strip() == "The word is second.\n\nMay it go on? – Go on"
    assert json.loads(work.row(jobs[1])["job"]) == {"name": "gate", "values": {"word": "second", "go_on": True}}


def test_a_server_with_a_blocked_job_ends_quickly(killed):
    """While one blocks, one waits in line and one has been cancelled."""
    work, _ = killed
    Server.known.append(work.server)
    ident = work.run("blocks")
    work.shows(ident, "It blocks.")
    work.post(f"/cancel?id={ident}")
    assert work.ended(ident, 2)["status"] == "stopped"
    ident, waiting = work.run("blocks"), work.run("gate")
    with work.responsive():
        work.shows(ident, "It blocks.")
    start = monotonic()
    work.server.stop()
    assert monotonic() - start < 4
    assert [work.row(i)["status"] for i in (ident, waiting)] == ["stopped", "stopped"]


# ---- Secrets

@contextmanager
def forgotten(work):
    """No secret is kept afterwards."""
    yield
    for job, name in ("secretive", "password"), ("shy", "extra"):
        work.post("/forget", job=job, name=name)


def traces(server, secret):
    """Where a secret can be read that should be nowhere but in its file."""
    return [str(p.relative_to(server.top)) for p in server.top.rglob("*") if p.is_file() and not p.is_symlink() and any(
        form in p.read_bytes() for form in (secret.encode(), json.dumps(secret).encode(), repr(secret).encode()))]


def test_a_secret_is_asked_for_once_and_shown_nowhere(work, form):
    with forgotten(work), FakeOllama(port=work.server.ollama) as fake:
        assert form("secretive").find(attrs={"name": "password"})["type"] == "password"
        assert work.submit("secretive", password="").status_code == 422
        wrong = work.submit("secretive", password=SECRET, port="x")
        assert wrong.status_code == 422 and SECRET not in wrong.text
        file = work.server.dir / "data" / "server.secrets.json"
        first = work.run("secretive", password=SECRET)
        assert f"It has {len(SECRET)} characters." in work.ended(first)["content"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and json.loads(file.read_text())["secretive.password"] == SECRET
        kept = form("secretive")
        assert not kept.find(attrs={"name": "password"}) and "kept on this machine" in kept.get_text()
        crashed = work.run("secretive", crash="1")                     # it is not asked for again
        row = work.ended(crashed)
        assert row["error"] == "ValueError: ••• is not right" and SECRET not in row["content"]
        work.post(f"/try_again?id={first}")
        assert "It has" in work.ended(first)["content"]
        with work.socket() as tab:
            tab.ask("What went wrong?", work.profile)
        work.server.wait_out("••• is not right")
        assert SECRET not in work.server.out() and SECRET not in work.html()
        said = json.dumps(fake.chats, ensure_ascii=False)
        assert "It has" in said and SECRET not in said and '"password"' not in said
        assert traces(work.server, SECRET) == ["chatq/data/server.secrets.json"]


def test_a_secret_can_be_forgotten(work, form):
    with forgotten(work):
        ident = work.run("secretive", password=SECRET)
        work.ended(ident)
        button = form("secretive").find("button", attrs={"aria-label": "Forget Password"})
        assert 'type="password"' in work.post(button["hx-post"])
        assert form("secretive").find(attrs={"name": "password"})
        assert traces(work.server, SECRET) == []
        assert work.submit("secretive").status_code == 422
        again = work.web.post(f"/try_again?id={ident}")
        assert again.status_code == 400 and "form" in again.text
        assert work.row(ident)["status"] == "done"


def test_a_secret_that_may_stay_empty(work, form):
    """It is not kept as one, and a traceback can still be read."""
    with forgotten(work):
        assert "It is empty." in work.ended(work.run("shy"))["content"]
        assert form("shy").find(attrs={"name": "extra"})
        assert work.ended(work.run("shy", crash="1"))["error"] == "ValueError: plain words"
        assert f"It is {SECRET}." in work.ended(work.run("shy", extra=SECRET))["content"]
