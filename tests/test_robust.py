"""What users of such programs have reported: odd text, locks of other programs, foreign cookies, names that clash."""
import contextlib
import json
import re
import socket
import sqlite3
import threading
from time import monotonic

import httpx
import psutil
import pytest
from conftest import ask, until, wait_done
from fake_ollama import Script, model
from playwright.sync_api import expect
from readme import pasted
from wire import send, soup
from working import Work, app_with, insert

pytest_plugins = "chatting", "working"

JOBS = r'''
from fractions import Fraction

@job
def odd_text(chat, fail: bool = False):
    print(os.fsdecode(b'caf\xe9.txt'))
    chat.note(os.fsdecode(b'\xe9'))
    if fail: raise ValueError(os.fsdecode(b'no caf\xe9'))
    return os.fsdecode(b'the end \xe9')

@job
async def odd_question(chat):
    return await chat.ask(os.fsdecode(b'Open caf\xe9?'), os.fsdecode(b'caf\xe9'), 2)

@job
def colours(chat):
    print('\x1b[1;31mred\x1b(B\x1b[m and \x1b]8;;http://x\x07linked\x1b]8;;\x07 text')

@job
def red_words(chat):
    chat.ask('\x1b[31mRed\x1b[0m?', '\x1b[31mYes\x1b[0m')
    raise ValueError('\x1b[31mRed\x1b[0m indeed')

@job
async def too_far(chat):
    chat.progress(210, 100)
    await chat.ask('Go on?', 'Go on')

@job
async def two_loops(chat):
    for n in range(1000): chat.progress(n + 1, 1000)
    chat.progress(1, 1000)
    await chat.ask('Go on?', 'Go on')

@job
def fractions(chat):
    chat.progress(Fraction(1, 3), 1)
    return 'done with it'

@job
async def waits(chat):
    await chat.ask('Go on?', 'Go on')
    return 'the very end'

@job
def adds_in_thread(chat):
    time.sleep(.3)
    todos.change(todos.add(title='Added'), done=True)

@job
async def adds_on_loop(chat):
    await asyncio.sleep(.3)
    await todos.change(await todos.add(title='Added'), done=True)

@job
def first_service(chat, api_key: Secret): return f'first: {api_key}'

@job
def second_service(chat, api_key: Secret): return f'second: {api_key}'

@job
def third_service(chat, key: Secret('shared')): return f'third: {key}'

@app.post
async def ask_it(): return await ask_model('Hi')

@app.post
def add_wrong(column: str, value: str = ''): todos.add(**{column: value})

class Size(Enum):
    SMALL = 's'
    LARGE = 'l'

def doubled(f):
    @functools.wraps(f)
    def call(*args, **values): return f(*args, **values)
    return call

@job
def signatures(chat, level: Literal['a', 'b'] | None = None, most=5, size: Size = Size.LARGE, price: Decimal = Decimal('1.5')):
    return Pre(repr((level, most, size, price)))

@job
@doubled
async def decorated(chat): return 'from within'

def shout(n):
    for i in range(300): print('from a child', flush=True)
    return n * 2

@job
def children(chat, way: Literal['fork', 'spawn'] = 'fork'):
    import multiprocessing
    with multiprocessing.get_context(way).Pool(2) as pool: return f'sum {sum(pool.map(shout, range(4)))}'

def adds(n): return todos.add(title='From a child')

@job
def child_adds(chat):
    import multiprocessing
    with multiprocessing.get_context('fork').Pool(1) as pool: pool.map(adds, [1])

def sleeps(n):
    import time
    time.sleep(60)

@job
def pool(chat, way: Literal['fork', 'spawn', 'executor', 'process'] = 'fork'):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    if way == 'executor':
        with ProcessPoolExecutor(2) as executor: list(executor.map(sleeps, range(4)))
    elif way == 'process':
        child = multiprocessing.Process(target=sleeps, args=[1])
        child.start()
        child.join()
    else:
        with multiprocessing.get_context(way).Pool(2) as pool: pool.map(sleeps, range(4))

@job
def shows(chat):
    chat.send(Table(Tr(Th('Fruit')), Tr(Td('Papaya'))))
    chat.send(Div(P('Quince'), Ul(Li('Medlar'), Li('Sorb', Br(), 'Service')), Table(Tr(Td('a|b'), Td('c\nd', Strong('e'))))))
    return 'It was shown.'

@job
def fourth_service(chat, token: Secret('shared')): return f'fourth: {token}'
'''
home = app_with(JOBS)


@contextlib.contextmanager
def locked(server):
    """Another program that holds the write lock."""
    with contextlib.closing(sqlite3.connect(server.db, isolation_level=None)) as db:
        db.execute("begin immediate")
        try:
            yield
        finally:
            with contextlib.suppress(sqlite3.Error):
                db.execute("rollback")


# ---- Cookies of other apps

def test_cookies_of_other_apps_reach_no_handler(work):
    for title in "Eggs", "Bread":
        work.post("/todo", title=title, profile=work.profile)
    eggs, bread = (row["id"] for row in work.server.sql("select id from todo order by id desc limit 2")[::-1])
    answer = send(work.server, "POST", f"/delete?kind=todo&id={eggs}", cookie=f"id={bread}; kind=profile; sure=1; x_tab=y")
    assert answer.status == 200 and work.todos() == [("Bread", False)]
    light = send(work.server, "POST", "/switch_theme?theme=dark", cookie="theme=light")
    assert light.status == 200


JOT = """
@app.post
def jot(priority: str, origin: str):
    return f'{priority} from {origin}'

"""


def test_what_browsers_say_of_a_request_is_no_field_of_a_form(app):
    server = app(start=False)
    server.file.write_text(re.sub(r"\n# ---- \d+\. Main", lambda m: JOT + m[0], server.file.read_text()))
    server.start()
    said = {"priority": "u=1, i", "origin": server.url}
    form = {"priority": "high", "origin": "Rome"}
    assert httpx.post(f"{server.url}/jot", data=form, headers=said, trust_env=False).text == "high from Rome"


def test_the_link_does_not_lead_to_another_program(app):
    """A browser takes `localhost` for ::1 where something listens there."""
    server = app(start=False)
    try:
        other = socket.create_server(("::1", server.port), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with other:
        assert f"http://127.0.0.1:{server.port}/" in server.start().link


# ---- Text that is no UTF-8

@pytest.mark.parametrize("fail", [False, True])
def test_a_job_may_print_what_is_no_text(work, fail):
    row = work.ended(work.run("odd_text", **{"fail": "1"} if fail else {}))
    assert "caf\ufffd.txt" in row["content"]
    assert (row["status"], "no caf\ufffd" in row["error"]) == (("error", True) if fail else ("done", False))
    assert "caf\ufffd.txt" in work.html()


def test_a_job_may_ask_what_is_no_text(work):
    ident = work.run("odd_question")
    work.reply(ident, "caf\ufffd")
    row = work.ended(ident)
    assert row["status"] == "done" and "Open caf\ufffd? – caf\ufffd" in row["content"]


def test_a_prompt_with_a_replacement_character_is_a_prompt(chat):
    chat.answered("a pasted \ufffd log", Script(text="Seen"))
    expect(chat.prompts.locator(".content")).to_have_text("a pasted \ufffd log")


def test_colours_of_a_terminal_are_left_out(work):
    row = work.ended(work.run("colours"))
    assert work.shown(row["id"]).find(class_="output").get_text().strip() == "red and linked text"


def test_colours_are_left_out_of_questions_and_errors(work):
    ident = work.run("red_words")
    work.reply(ident, "Yes")
    row = work.ended(ident)
    assert row["error"] == "ValueError: Red indeed" and "Red? – Yes" in row["content"] and "\x1b" not in row["content"]


# ---- Locks of other programs

def test_a_lock_is_waited_for_and_holds_up_nobody(work):
    took, answers = [], []

    def add():
        answers.append(work.web.post("/todo", data={"title": "Waited", "profile": work.profile}).status_code)
    adding = threading.Thread(target=add)
    with locked(work.server), httpx.Client(base_url=work.server.url, trust_env=False) as web:
        adding.start()
        for _ in range(10):
            begin = monotonic()
            assert web.get("/static/app.js").status_code == web.get(f"/todo_markdown?profile={work.profile}").status_code == 200
            took.append(monotonic() - begin)
        assert not answers
    adding.join(10)
    assert answers == [200] and work.todos() == [("Waited", False)]
    assert max(took) < 1, took


@pytest.mark.parametrize("way", ["in_thread", "on_loop"])
def test_a_job_that_waits_for_a_lock_holds_up_nobody(work, way):
    ident = work.run(f"adds_{way}")
    with locked(work.server):
        begin = monotonic()
        while monotonic() - begin < 1.5:
            since = monotonic()
            assert work.web.get("/static/app.js").is_success and monotonic() - since < 1
            threading.Event().wait(.1)
    row = work.ended(ident)
    assert (row["status"], work.todos()) == ("done", [("Added", True)]), row["error"]


def test_a_message_that_ends_while_the_database_is_locked_is_stored_later(work):
    ident = work.run("waits")
    button = until(lambda: work.shown(ident).find("button", string="Go on"), what="its question")
    with work.socket() as tab, locked(work.server):
        tab.hear("")
        threading.Thread(target=work.web.post, args=[button["hx-post"]]).start()
        assert work.row(ident)["status"] == "streaming"
    row = work.ended(ident)
    assert row["status"] == "done" and "the very end" in row["content"]


def test_a_prompt_that_was_refused_stays_where_it_was_typed(chat):
    chat.window.allow_errors = "503"
    with locked(chat.server):
        chat.page.locator("#msg").fill("Not now")
        chat.page.locator("#msg").press("Enter")
        expect(chat.page.locator("#toast")).to_contain_text("locked", timeout=15_000)
        expect(chat.page.locator("#msg")).to_have_value("Not now")
    assert not chat.rows()


# ---- Progress

def test_progress_over_its_total_is_full_and_says_nothing_odd(work):
    ident = work.run("too_far")
    shown = until(lambda: (m := work.shown(ident)).find("progress") and m, what="the bar")
    assert shown.progress["value"] == "100.0" and "-" not in shown.get_text() and "210" not in shown.get_text()


def test_a_second_loop_has_its_own_rate(work):
    ident = work.run("two_loops")
    shown = until(lambda: (m := work.shown(ident)).find("button", string="Go on") and m, what="the question")
    assert shown.progress["value"] == "0.1" and "/s" not in shown.get_text()


def test_progress_takes_any_number(work):
    assert "done with it" in work.ended(work.run("fractions"))["content"]


# ---- Signatures and processes

def test_signatures_make_what_they_say(work):
    def values(**data):
        content = work.ended(work.run("signatures", **data))["content"]
        return soup(content.strip("\n\x02\x03")).pre.get_text()
    assert values() == "(None, 5, <Size.LARGE: 'l'>, Decimal('1.5'))"
    assert values(level="b", most="7", size="s", price="2,25") == "('b', 7, <Size.SMALL: 's'>, Decimal('2.25'))"
    assert "from within" in work.ended(work.run("decorated"))["content"]


@pytest.mark.parametrize(("code", "word"), [
    ("@job\ndef sums(chat, tags: list[str]): pass", "tags"), ("@job\ndef sums(chat, *more): pass", "more"),
    ("@job\ndef sums(chat, first: int, /): pass", "first"),
    ("@job\ndef sums(): pass", "first parameter"), ("class Odd:\n    name: str\ntable(Odd)", "no column `id: int`"),
    ("class Odd:\n    id: int\n    tags: list[str] = None\ntable(Odd)", "column tags")])
def test_what_can_be_no_form_or_table_is_a_sentence_at_the_start(app, code, word):
    server = app(start=False)
    server.file.write_text(pasted(code))
    server.start(wait=False)
    assert server.wait() == 1
    assert word in server.out() and "Traceback" not in server.out()


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_child_processes_open_nothing_and_print_to_the_terminal(work, way):
    row = work.ended(work.run("children", way=way), timeout=30)
    assert (row["status"], row["content"].strip()) == ("done", "sum 12"), row["error"]
    until(lambda: work.server.out().count("from a child") >= 1200, what="what the children printed")


def test_a_forked_child_can_not_change_a_list(work):
    row = work.ended(work.run("child_adds"))
    assert row["status"] == "error" and "a child process has no lists" in row["error"] and work.todos() == []


def test_a_child_that_is_left_does_not_keep_the_port(app):
    work = Work(insert(app(start=False), JOBS).start())
    work.run("pool", way="fork")
    left = until(lambda: len(found := children(work.server)) == 2 and found, what="two children")
    try:
        work.server.restart("kill")
    finally:
        for pid in left:
            psutil.Process(pid).kill()


# ---- What is copied

def test_what_is_copied_and_exported_is_what_a_person_sees(work):
    ident = work.run("shows")
    work.ended(ident)
    for path in f"/source?id={ident}", f"/export?chat={work.row(ident)['chat']}":
        text = work.web.get(path).text
        assert "| Fruit |\n|---|\n| Papaya |" in text and "| a\\|b | c de |" in text
        assert re.search(r"Quince\n+- Medlar\n- Sorb\nService\n", text), text
        assert "<t" not in text and "\x02" not in text
    assert all(f"msg-{ident}" in work.web.get("/find", params={"q": word}).text for word in ("Medlar", "Service"))


# ---- Names and secrets

@pytest.mark.parametrize("code", [
    "def page(n): return n", "@job\ndef export(chat): return 'x'", "@job\ndef list(chat): return 'x'",
    "@job\ndef run(chat): return 'x'", "from time import time", "class Article: id: int"])
def test_a_name_of_the_engine_is_refused_at_the_start(app, code):
    server = app(start=False)
    server.file.write_text(pasted(code))
    server.start(wait=False)
    assert server.wait() == 1
    name = re.search(r"(?:def|class|import) (\w+)", code)[1]
    assert f"{name} is a name that the engine uses" in server.out() and "Traceback" not in server.out()


def test_a_name_that_the_engine_does_not_use_is_free(app):
    server = app(start=False)
    server.file.write_text(pasted("class Link: id: int\n\n@job\ndef hex(chat): return 'x'\n\nfrom math import *"))
    with httpx.Client(base_url=server.start().url, trust_env=False) as web:
        assert web.get("/").status_code == 200


def test_each_job_has_its_own_secret_unless_it_is_shared_by_name(work):
    assert "first: one" in work.ended(work.run("first_service", api_key="one"))["content"]
    assert work.submit("second_service").status_code == 422
    assert "second: two" in work.ended(work.run("second_service", api_key="two"))["content"]
    assert "first: one" in work.ended(work.run("first_service"))["content"]
    assert "third: both" in work.ended(work.run("third_service", key="both"))["content"]
    assert "fourth: both" in work.ended(work.run("fourth_service"))["content"]


def test_a_broken_file_of_secrets_is_a_sentence_in_the_form(work):
    file = work.server.dir / "data/server.secrets.json"
    before = file.read_text() if file.exists() else None
    file.write_text("{broken")
    try:
        reply = work.submit("first_service", api_key="x")
        assert reply.status_code == 422 and "cannot be read" in reply.text and file.read_text() == "{broken"
        assert work.web.get(work.path).status_code == 200
    finally:
        file.write_text(before) if before else file.unlink()


@pytest.mark.parametrize(("path", "words"), [
    ("/ask_it", "No model answers"), ("/add_wrong?column=titel", "todo has no titel"), ("/add_wrong?column=title", "it is empty"),
    ("/add_wrong?column=profile&value=many", "Type a whole number")])
def test_what_goes_wrong_in_a_route_of_ones_own_is_a_sentence(work, path, words):
    reply = work.web.post(path)
    assert reply.status_code == 400 and words in reply.text


# ---- Model servers

@pytest.mark.parametrize("tokens", [["<think>Hm</think>Yes"], ["<th", "ink>H", "m</thi", "nk>\n\nYe", "s"]])
def test_thinking_in_the_content_is_thinking(chat, tokens):
    answer = chat.answered("Go", Script(tokens=tokens))
    expect(answer.locator(".content")).to_have_text("Yes")
    expect(answer.locator(".thinking > div")).to_have_text("Hm")


def test_an_answer_without_a_word_is_named(chat):
    answer = chat.answered("Go", Script(thinking=["Hm"], tokens=[""]))
    expect(answer).to_have_attribute("data-status", "error")
    expect(answer.locator(".error")).to_contain_text("answered nothing")
    expect(answer.locator(".figures")).to_contain_text("context")        # which may be why


def test_a_model_that_only_embeds_is_not_offered(chat):
    chat.fake.models[:] = [model("nomic-embed-text:latest", capabilities=("embedding",)), model("qwen3:4b")]
    expect(chat.page.locator("#model")).to_have_value("qwen3:4b", timeout=15_000)
    expect(chat.page.locator("#model option")).to_have_count(1)


def test_a_model_that_answers_may_be_called_as_if_it_embeds(chat):
    chat.fake.models[:] = [model("embedded-c:7b"), model("qwen3:4b")]
    expect(chat.page.locator("#model option")).to_have_text([re.compile("embedded-c"), re.compile("qwen3")], timeout=15_000)


def test_what_models_can_is_asked_once_even_where_nobody_tells(chat):
    chat.fake.old = True
    chat.fake.models[:] = [model("first:1b", capabilities=()), model("second:1b", capabilities=())]
    for n in range(3):
        chat.answered(f"p{n}", Script(text="Yes"))
    asked = [r.path for r in chat.fake.requests]
    assert asked.count("/api/chat") >= 3 and asked.count("/api/show") <= 2


EVENTS = [{"choices": [{"delta": {"content": [{"type": "text", "text": "One "}]}}]},
          {"choices": [{"delta": {"content": "\ud83d"}}]}, {"choices": [{"delta": {"content": "\ude42 two"}}]}]


def test_an_openai_server_may_be_odd(app, fake):
    """Content as a list of parts, an emoji in two halves, no finish_reason before [DONE]."""
    body = "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in EVENTS) + ": a comment\n\ndata: [DONE]\n\n"
    reply = ("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
             f"Content-Length: {len(body.encode())}\r\n\r\n{body}").encode()
    server = app({"OPENAI_BASE_URL": f"{fake.url}/v1"})
    fake.script(Script(garbage=reply))
    work = Work(server)
    with work.socket() as tab:
        row = tab.ask("Go", work.profile)
    assert (row["status"], row["content"]) == ("done", "One \U0001f642 two"), row["error"]


# ---- The page

LINES = [f"Line {n} of an answer that is longer than the window.\n\n" for n in range(400)]


def test_a_small_move_upward_ends_the_following(chat):
    chat.ask("Go", Script(tokens=LINES, rate=100))
    log = chat.page.locator("#msg-list")
    chat.page.wait_for_function("() => document.querySelector('#msg-list').scrollTop > 500")
    log.hover()
    chat.page.mouse.wheel(0, -15)
    chat.page.wait_for_function("() => !document.querySelector('#more').hidden")
    top = log.evaluate("el => el.scrollTop")
    chat.fake.wait_sent(len(chat.fake.sent) + 40)
    assert abs(log.evaluate("el => el.scrollTop") - top) < 5
    log.evaluate("el => { el.scrollTop = el.scrollHeight }")
    wait_done(chat.page, 20_000)
    assert log.evaluate("el => el.scrollHeight - el.scrollTop - el.clientHeight") < 5


def test_enter_that_ends_a_composition_in_safari_sends_nothing(chat):
    chat.page.locator("#msg").fill("half")
    chat.page.locator("#msg").evaluate(
        "el => el.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))")
    expect(chat.page.locator("#msg")).to_have_value("half")
    ask(chat.page, "whole")
    expect(chat.prompts).to_have_count(1)


def test_copy_of_an_error_copies_nothing(chat):
    chat.answered("Go", Script(text="Copy me"))
    chat.window.allow_errors = "500|Failed to load"
    chat.page.route("**/source*", lambda route: route.fulfill(status=500, body="an error page"))
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.page.evaluate("navigator.clipboard.writeText('before')")
    chat.answer.hover()
    chat.button("Copy").click()
    expect(chat.page.locator("#toast")).to_contain_text("Nothing was copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "before"


def test_a_browser_that_keeps_nothing_still_chats(server, fake, open_page):
    page = open_page()
    page.add_init_script("for (const name of ['sessionStorage', 'localStorage']) "
                         "Object.defineProperty(window, name, {get() { throw new DOMException('denied') }})")
    page.goto(server.url)
    fake.script(Script(text="Here"))
    ask(page, "Hi")
    wait_done(page)
    expect(page.locator("[data-role=user]")).to_have_count(1)
    assert len(fake.chats) == 1


# ---- Processes of a job

def children(server):
    """The processes below it; not the one in which multiprocessing keeps its books."""
    found = set()
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


@pytest.mark.parametrize("way", ["fork", "spawn", "executor", "process"])
def test_cancel_leaves_no_children_and_those_of_others_alone(work, way):
    before, count = children(work.server), 1 if way == "process" else 2
    kept = work.run("pool", way=way)
    of_kept = until(lambda: len(new := children(work.server) - before) == count and new, what="the first job's children")
    gone = work.run("pool", way=way)
    until(lambda: len(children(work.server)) == len(before) + 2*count, what="the second job's children")
    work.post(f"/cancel?id={gone}")
    until(lambda: children(work.server) == before | of_kept, what="the end of the second job's children")
    assert work.row(kept)["status"] == "streaming" and work.ended(gone)["status"] == "stopped"
    work.post(f"/cancel?id={kept}")
    until(lambda: children(work.server) == before, what="the end of the others")


def test_opened_thinking_stays_open_on_a_reconnection(chat, wire):
    chat.ask("Go", Script(thinking=["Hm. ", "Well. "], tokens=["One ", "two ", "three"], gate=True))
    chat.fake.release(3)
    fold = chat.answer.locator("details.thinking")
    fold.locator("summary").click()
    expect(fold).to_have_attribute("open", "")
    wire.cut()
    expect(chat.page.locator("#offline")).to_be_visible()
    chat.fake.release(1)
    wire.mend()
    expect(chat.content).to_have_text("One two", timeout=15_000)
    expect(fold).to_have_attribute("open", "")
    chat.fake.release(1)
    wait_done(chat.page)
    expect(fold).to_have_attribute("open", "")
    expect(fold.locator("div")).to_be_visible()
