"""Messages from scripts: POST /chatq from cron, a notebook or curl, and what becomes of them."""
import json
import re
import shutil
import subprocess
from time import perf_counter

import httpx
import pytest
from conftest import Server, until
from playwright.sync_api import expect
from wire import everything, send
from working import Work, app_with

pytest_plugins = "chatting", "working"

JOBS = '''
@job
async def waits(chat):
    chat.send('It waits.')
    await chat.ask('Shall it end?', 'End')
'''
home = app_with(JOBS)


def curl(server, *args):
    """What curl prints: the reply's text and its status."""
    done = subprocess.run([shutil.which("curl"), "-sS", "-w", " %{http_code}", *args, f"{server.url}/chatq"],
                          capture_output=True, timeout=20, env={"LANG": "C.UTF-8", "NO_PROXY": "*"})
    assert done.returncode == 0, done.stderr
    text, _, status = done.stdout.decode().rpartition(" ")
    return text, int(status)


def parts(work, ident):
    """Status, text and bar of a message in the page."""
    shown = work.shown(ident)
    return (shown["data-status"], shown.find(class_="content").get_text().strip(),
            shown.progress and float(shown.progress["value"]))


# ---- What is taken

def test_text_alone_is_a_finished_message(work):
    ident = work.say(text="The backup is **done**: [log](https://example.org/x)\n\n- one\n- two")
    shown = work.shown(ident)
    assert (shown["data-role"], shown["data-status"], shown.progress) == ("job", "done", None)
    assert shown.strong.get_text() == "done" and len(shown.find_all("li")) == 2 and shown.a["href"] == "https://example.org/x"
    assert "Cancel" not in shown.get_text() and "Try again" not in shown.get_text()


def test_it_stays_open_until_done(work):
    ident = work.say(text="Copying", progress="0")
    assert parts(work, ident) == ("streaming", "Copying", 0)
    assert work.shown(ident).find("button", string="Cancel")
    assert work.say(id=str(ident), progress="12.5") == ident
    assert parts(work, ident) == ("streaming", "Copying", 12.5)
    assert work.say(id=str(ident), text="Half *way*", progress="50") == ident
    assert parts(work, ident) == ("streaming", "Half way", 50)
    assert work.say(id=str(ident), text="Still half way") == ident
    assert parts(work, ident) == ("streaming", "Still half way", 50)
    assert work.say(id=str(ident), progress="100", done="1") == ident
    assert parts(work, ident) == ("done", "Still half way", 100)
    assert not work.shown(ident).find("button", string="Cancel")


def test_a_finished_one_can_be_corrected_and_taken_up_again(work):
    ident = work.say(text="It failed")
    assert work.say(id=str(ident), text="It did not fail") == ident
    assert parts(work, ident)[:2] == ("done", "It did not fail")
    work.say(id=str(ident), text="Once more", progress="10")
    assert parts(work, ident) == ("streaming", "Once more", 10)
    work.say(id=str(ident), done="1")
    assert parts(work, ident)[:2] == ("done", "Once more") and len(work.rows()) == 1


def test_a_correction_stays(work):
    """No save that was due when the message ended writes the old text over the new one."""
    ident = work.say(text="Old 0", progress="0")
    for n in range(1, 5):
        work.say(id=str(ident), text=f"Old {n}")
    work.say(id=str(ident), done="1")
    work.say(id=str(ident), text="New")
    other = work.run("waits")
    until(lambda: "It waits." in work.row(other)["content"], what="a save that was due after those")
    work.reply(other, "End")
    assert work.row(ident)["content"] == "New"


def test_the_profile_is_chosen_by_id_or_name(work):
    name = f"Scripts & {work.profile}"
    other = int(re.search(r'id="profile-(\d+)"', work.post("/profile", name=name))[1])

    def profile(**data):
        return work.row(int(work.post("/chatq", text="x", **data)))["profile"]
    assert profile(profile=str(other)) == profile(profile=name) == profile(profile=f" {name} ") == other
    first = work.server.sql("select id from profile where not deleted order by priority, id limit 1")[0]["id"]
    assert profile() == profile(profile="") == first
    ident = work.say(text="mine", progress="1")
    work.say(id=str(ident), profile=str(other), done="1")           # a message stays where it is
    assert work.row(ident)["profile"] == work.profile


def test_a_message_arrives_in_every_tab(chat):
    work, other = Work(chat.server), chat.open()
    work.profile = chat.profile
    ident = work.say(text="| a | b |\n|---|---|\n| 1 | 2 |\n\nThat is it", progress="30")
    for page in chat.page, other:
        job = page.locator(f"#msg-{ident}")
        expect(job.locator("td")).to_have_text(["1", "2"])
        expect(job.locator("progress")).to_have_attribute("value", "30.0")
    work.say(id=str(ident), text="<img src=x onerror=alert(1)> is <b>text</b>", progress="60")
    for page in chat.page, other:
        expect(page.locator(f"#msg-{ident} .content")).to_have_text("<img src=x onerror=alert(1)> is <b>text</b>")
        expect(page.locator(f"#msg-{ident} progress")).to_have_attribute("value", "60.0")
    work.say(id=str(ident), done="1")
    for page in chat.page, other:
        expect(page.locator(f"#msg-{ident}")).to_have_attribute("data-status", "done")
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert chat.state() == chat.fresh()


def test_curl(work):
    to = ["-d", f"profile={work.profile}"]
    text, status = curl(work.server, "-d", "text=Grüße & *mehr*", "-d", "progress=5", *to)
    assert status == 200 and text.isdigit()
    assert parts(work, int(text)) == ("streaming", "Grüße", 5)      # an & ends a field
    text, status = curl(work.server, "--data-urlencode", "text=Grüße & *mehr*", "-d", "done=1", "-d", f"id={text}", *to)
    assert status == 200 and parts(work, int(text))[:2] == ("done", "Grüße & mehr")
    text, status = curl(work.server, "-F", "text=as a form", "-F", f"profile={work.profile}")
    assert status == 200 and parts(work, int(text))[:2] == ("done", "as a form")
    assert curl(work.server, "-d", "id=999999999", "-d", "text=x") == ("There is nothing here (any more). "
                                                                     "It may have been deleted elsewhere.", 404)


def test_two_hundred_one_after_another(work):
    with work.socket() as tab:
        ids = [work.say(text=f"Line {n}.") for n in range(200)]
        assert ids == sorted(set(ids))
        assert [r["content"] for r in work.rows()] == [f"Line {n}." for n in range(200)]
        tab.hear(r"Line 199\.")
    assert re.findall(r"Line \d+\.", work.html().partition('id="msg-list"')[2]) == [f"Line {n}." for n in range(150, 200)]


def test_an_answer_does_not_wait_for_an_acknowledgement(work):
    """Without TCP_NODELAY a reply's second part would leave 40 ms after its first."""
    def took():
        start = perf_counter()
        work.say(text="x")
        return perf_counter() - start
    assert min(took() for _ in range(20)) < 0.03


def test_two_hundred_updates_of_one(work):
    """And more text in all than one message may hold."""
    with work.socket() as tab:
        ident = work.say(text="Start", progress="0")
        for n in range(200):
            work.say(id=str(ident), text=f"State {n} " + "x" * 8000, progress=str(n / 2))
        work.say(id=str(ident), text="The end.", done="1")
        tab.hear(r"The end\.")
    assert parts(work, ident) == ("done", "The end.", 99.5)


# ---- What is not

@pytest.mark.parametrize("data", [
    {}, {"text": ""}, {"text": " \n"}, {"progress": "5"}, {"text": "x", "progress": "-1"}, {"text": "x", "progress": "101"},
    {"text": "x", "progress": "nan"}, {"text": "x", "progress": "inf"}, {"text": "x", "progress": "half"},
    {"text": "x", "done": "yes"}, {"text": "x", "id": "abc"}, {"text": "x", "id": "-1"}, {"text": "x", "id": "²"},
    {"text": "x", "id": "9" * 30}, {"text": "x", "profile": "nobody"}, {"text": "x", "profile": "999999"},
    {"text": "x" * 32_001}, {"text": "a\0b"}])
def test_what_is_wrong_is_refused_with_one_sentence(work, data):
    before = everything(work.server)
    sentence = work.say(400, **data)
    assert sentence[0].isupper() or sentence.split()[0] in ("id", "progress", "done"), sentence
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 200
    assert everything(work.server) == before


@pytest.mark.parametrize("data", [{"id": "999999"}, {"id": "0"}, {"id": "999999", "text": "x", "progress": "5"}])
def test_an_unknown_id_is_404(work, data):
    assert "nothing here" in work.say(404, **data) and not work.rows()


def test_a_deleted_message_is_404(work):
    ident = work.say(text="x")
    work.post(f"/delete_message?id={ident}")
    assert "nothing here" in work.say(404, id=str(ident), text="y")


def test_only_messages_of_scripts_can_be_changed(work):
    """Not an event, and not a job of the app, while it runs or later."""
    work.post("/todo", title="Milk", profile=work.profile)
    event, job = work.rows()[-1]["id"], work.run("waits")
    for ident in event, job:
        assert "none that came from a script" in work.say(400, id=str(ident), text="mine now")
    work.reply(job, "End")
    work.ended(job)
    assert "none that came from a script" in work.say(400, id=str(job), text="mine now")
    assert "mine now" not in work.html()


@pytest.mark.parametrize("headers", [
    {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"}, {"origin": "http://localhost"},
    {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}, {"host": "evil.example"}])
def test_no_web_page_can_speak(work, headers):
    before = everything(work.server)
    for kind in "application/x-www-form-urlencoded", "text/plain", "application/json":
        body = json.dumps({"text": "evil"}) if kind.endswith("json") else "text=evil"
        assert send(work.server, "POST", "/chatq", body, content_type=kind, **headers).status == 403
    assert everything(work.server) == before


def test_a_link_cannot_speak(work):
    assert send(work.server, "GET", "/chatq?text=evil", sec_fetch_mode="navigate", sec_fetch_site="cross-site"
                ).status in (404, 405)
    assert not work.rows()


def test_cancel_tells_the_script(work):
    ident = work.say(text="Working", progress="40")
    work.post(f"/cancel?id={ident}")
    shown = work.shown(ident)
    assert shown["data-status"] == "stopped" and "Cancelled" in shown.get_text()
    for more in {"progress": "50"}, {"text": "more"}, {"done": "1"}:
        assert work.say(400, id=str(ident), **more) == f"Message {ident} was cancelled by the person."
    work.post(f"/cancel?id={ident}")
    assert parts(work, ident) == ("stopped", "Working", 40)


# ---- kill -9

def test_what_was_acknowledged_survives_kill_9():
    server = Server().start()
    try:
        work = Work(server)
        done = work.say(text="A finished one")
        going = work.say(text="First words", progress="10")
        work.say(id=str(going), text="Second words", progress="20")
        last = [work.say(text=f"Line {n}") for n in range(10)]
        server.kill()
        assert (work.row(going)["content"], work.row(going)["progress"]) == ("Second words", 20)
        server.start()
        assert parts(work, done)[:2] == ("done", "A finished one")
        assert parts(work, going) == ("stopped", "Second words", 20)
        assert [work.row(i)["content"] for i in last] == [f"Line {n}" for n in range(10)]
        work.say(id=str(going), progress="30")                      # the script has not noticed and goes on
        assert parts(work, going) == ("streaming", "Second words", 30)
        work.say(id=str(going), text="Third words", done="1")
        assert parts(work, going)[:2] == ("done", "Third words")
    finally:
        server.remove()


def test_a_token_is_wanted_where_there_is_one(app):
    server = app(env={"TOKEN": "abc123"})
    say = {"data": {"text": "x"}, "trust_env": False}
    assert httpx.post(f"{server.url}/chatq", **say).status_code == 401
    reply = httpx.post(f"{server.url}/chatq", headers={"authorization": "Bearer abc123"}, **say)
    assert reply.status_code == 200 and reply.text.isdigit()
