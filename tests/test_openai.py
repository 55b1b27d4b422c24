"""OpenAI-compatible servers as they are: tools in pieces, what they refuse, what they tell of their models. And, of all
model servers: long lists, thinking that can be switched, a busy one, and who has the model just now."""
import json
from time import time

import pytest
from conftest import Server, free_port, until
from fake_ollama import FakeOllama, Script, model
from playwright.sync_api import expect
from wire import soup
from working import Work, insert

pytest_plugins = "chatting", "working"

JOBS = '''
@job
async def think_aloud(chat): await chat.model('A question of its own')
'''


@pytest.fixture(scope="module")
def openai():
    """An app whose model server speaks OpenAI's protocol, wherever `openai.ollama` comes to listen."""
    port = free_port()
    server = insert(Server({"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}), JOBS)
    server.ollama = port
    yield server.start()
    server.remove()


@pytest.fixture
def fake(openai):
    Server.known.append(openai)
    with FakeOllama(port=openai.ollama) as fake:
        yield fake


class Tab(Work):
    """A profile with an open tab."""

    def asks(self, *scripts):
        """A prompt; its answer's row, once it has ended."""
        self.fake.script(*scripts)
        return self.tab.ask("Go", self.profile)

    def titles(self):
        return [title for title, _ in self.todos()]


@pytest.fixture
def work(openai, fake):
    """A new name of a model each time: what a server refused is remembered by it."""
    fake.models[:] = [model(f"m{time()}", capabilities=("completion", "tools", "thinking"))]
    work = Tab(openai)
    work.fake = fake
    with work.socket() as work.tab:
        yield work
    work.web.close()


def sse(*events, end="data: [DONE]\n\n", kind="text/event-stream"):
    """The bytes of an answer with these events (or deltas)."""
    def event(e):
        known = isinstance(e, str) or {"choices", "error", "usage", "object"} & e.keys()
        return e if isinstance(e, str) else f"data: {json.dumps(e if known else {'choices': [{'delta': e}]})}\n\n"
    body = ("".join(map(event, events)) + end).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return Script(garbage=head.encode() + body)


def piece(name=None, arguments=None, **more):
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return more | {"function": function}


def calls(*pieces):
    return {"tool_calls": [*pieces]}


# ---- Tools

STREAMS = {
    "pieces": [calls(piece("add_todo", "", index=0, id="call_a")), calls(piece(None, '{"ti', index=0)),
               calls(piece(None, 'tle": "one"}', index=0)), calls(piece("add_todo", '{"title": "two"}', index=1, id="call_b"))],
    "interleaved": [calls(piece("add_todo", '{"title"', index=0, id="a"), piece("add_todo", '{"tit', index=1, id="b")),
                    calls(piece(None, 'le": "two"}', index=1), piece(None, ': "one"}', index=0))],
    "whole, without index or id": [calls(piece("add_todo", '{"title": "one"}'), piece("add_todo", '{"title": "two"}'))],
    "pieces without index": [calls(piece("add_todo", '{"title": ', id="a")), calls(piece(None, '"one"}')),
                             calls(piece("add_todo", '{"title": "two"}', id="b"))],
    "objects": [calls(piece("add_todo", {"title": "one"}, index=0)), calls(piece("add_todo", {"title": "two"}, index=1))],
    "the name in each piece": [calls(piece("add_todo", '{"title": ', index=0, id="a")),
                               calls(piece("add_todo", '"one"}', index=0, id="a")),
                               calls(piece("add_todo", '{"title": "two"}', index=1))],
    "the id before the name": [calls({"index": 0, "id": "a", "function": {}}), calls(piece("add_todo", '{"title": ', index=0)),
                               calls(piece(None, '"one"}', index=0), piece("add_todo", '{"title": "two"}', index=1))],
    "one index for all": [calls(piece("add_todo", '{"title": "one"}', index=0, id="a"),
                                piece("add_todo", '{"title": "two"}', index=0, id="b"))]}


@pytest.mark.parametrize("name", STREAMS)
def test_calls_are_put_together_however_they_come(work, name):
    row = work.asks(sse(*STREAMS[name]), Script(text="Both are there."))
    assert (row["status"], row["content"]) == ("done", "Both are there."), row["error"]
    assert work.titles() == ["one", "two"]
    first, second = work.fake.chats
    assert {t["function"]["name"] for t in first["tools"]} > {"add_todo", "list_todos"}
    *_, said, one, two = second["messages"]
    assert said["role"] == "assistant" and [c["type"] for c in said["tool_calls"]] == ["function"] * 2
    assert [json.loads(c["function"]["arguments"]) for c in said["tool_calls"]] == [{"title": "one"}, {"title": "two"}]
    ids = [c["id"] for c in said["tool_calls"]]
    assert len({*ids}) == 2 and [m["tool_call_id"] for m in (one, two)] == ids
    if name == "pieces":
        assert ids == ["call_a", "call_b"]
    assert all(m.keys() == {"role", "tool_call_id", "content"} for m in (one, two))
    assert all(c.keys() == {"id", "type", "function"} for c in said["tool_calls"])


def test_arguments_that_are_broken_go_back_as_json_and_do_nothing(work):
    row = work.asks(sse(calls(piece("add_todo", '{"title": "on', index=0, id="a"))), Script(text="Sorry."))
    assert (row["status"], row["content"], work.titles()) == ("done", "Sorry.", [])
    said, told = work.fake.chats[1]["messages"][-2:]
    assert isinstance(json.loads(said["tool_calls"][0]["function"]["arguments"]), dict)
    assert told["content"].startswith("This did not work: ")


@pytest.mark.parametrize(("unknown", "says"), [
    ("tools", (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')),
    ("tools", (500, "tools param requires --jinja flag")), ("tools", (404, "No endpoints found that support tool use")),
    ("stream_options", (422, "Extra inputs are not permitted: stream_options")), ("tools", (400, "Bad request"))])
def test_what_a_server_refuses_is_left_out_and_not_offered_again(work, unknown, says):
    work.fake.unknown = {unknown: says}
    assert work.asks(Script(text="Yes"))["content"] == "Yes"
    assert work.asks(Script(text="Again"))["content"] == "Again"
    assert [unknown in chat for chat in work.fake.chats] == [True, False, False]
    other = {"tools": "stream_options", "stream_options": "tools"}[unknown]
    assert other in work.fake.chats[-1] or says[1] == "Bad request"


def test_a_refusal_that_has_other_reasons_is_told_and_nothing_is_forgotten(work):
    work.fake.unknown = {"messages": (400, "Conversation roles must alternate")}
    row = work.asks()
    assert row["status"] == "error" and "roles must alternate" in row["error"]
    work.fake.unknown = {}
    work.asks(Script(text="Yes"))
    assert {"tools", "stream_options"} <= work.fake.chats[-1].keys()


def test_tools_without_a_word_are_an_end_of_their_own(work):
    row = work.asks(sse(calls(piece("add_todo", '{"title": "one"}', index=0, id="a"))), sse({"content": ""}))
    assert (row["status"], row["error"], work.titles()) == ("done", "", ["one"])
    shown = work.shown(row["id"])
    assert "used tools and said nothing further" in shown.get_text()
    assert not shown.find("button", string="Try again")


# ---- What comes

ODD = {
    "<think>": [{"content": "<think>Hm"}, {"content": "</think>Yes"}], "reasoning": [{"reasoning": "Hm"}, {"content": "Yes"}],
    "reasoning_content": [{"reasoning_content": "Hm"}, {"content": "Yes"}],
    "its end alone": [{"content": "H"}, {"content": "m\n</thi"}, {"content": "nk>\n\nYes"}],
    "comments, events, no space": [": ping\r\n\r\n", 'event: message\r\ndata:{"choices":[{"delta":{"reasoning":"Hm"}}]}\r\n\r\n',
                                   'id: 5\ndata:{"choices":[{"delta":{"content":"Yes"}}]}\n\n', "retry: 5\n\n"]}


@pytest.mark.parametrize("name", ODD)
def test_thinking_and_text_come_in_many_ways(work, name):
    usage = {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 7}}
    row = work.asks(sse(*ODD[name], usage))
    assert (row["status"], row["content"], row["thinking"]) == ("done", "Yes", "Hm"), row["error"]
    assert (row["tokens"], row["prompt_tokens"]) == (7, 30)


def test_an_answer_that_does_not_stream_is_one_too(work):
    whole = {"object": "chat.completion", "usage": {"completion_tokens": 7}, "choices": [
        {"message": {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}, "finish_reason": "stop"}]}
    row = work.asks(sse(json.dumps(whole, indent=2), end="", kind="application/json; charset=utf-8"))
    assert (row["status"], row["content"], row["thinking"], row["tokens"]) == ("done", "Yes", "Hm", 7), row["error"]


WORDS = {"halves": [{"reasoning": "\ud83d"}, {"reasoning": "\ude42"}, {"content": "Yes"}],
         "<thinking>": [{"content": "<thinking>"}, {"content": "\U0001f642</thin"}, {"content": "king>Yes"}],
         "parts of text": [{"reasoning": ["\U0001f642"]}, {"content": ["Ye", "s"]}],
         "a refusal": [{"reasoning": "\U0001f642"}, {"refusal": "Yes"}]}


@pytest.mark.parametrize("name", WORDS)
def test_no_spelling_loses_a_word(work, name):
    row = work.asks(sse(*WORDS[name], {"choices": [], "usage": {"completion_tokens": "7", "prompt_tokens": "some"}}))
    assert (row["status"], row["content"], row["thinking"]) == ("done", "Yes", "\U0001f642"), row["error"]
    assert (row["tokens"], row["prompt_tokens"]) == (7, 0)


@pytest.mark.parametrize("pieces", [["<think>\n", "\n</think>\n\nYes"], ["<think>\n", "\n", "</think>\n\nYes"]])
def test_an_empty_thought_is_none(work, pieces):
    row = work.asks(sse(*({"content": piece} for piece in pieces)))
    assert (row["content"], row["thinking"], row["thought"]) == ("Yes", "", 0)
    assert not work.shown(row["id"]).select(".thinking")


def test_marks_in_a_field_for_thinking_are_text(work):
    row = work.asks(sse({"reasoning": "Is </think> a tag? "}, {"reasoning": "It is."}, {"content": "Yes"}))
    assert (row["content"], row["thinking"]) == ("Yes", "Is </think> a tag? It is.")


def test_marks_of_thinking_in_an_answer_are_text(work):
    text = "So:\n```\n<think>\n</think>\n```"
    assert work.asks(sse(*({"content": piece} for piece in text.splitlines(True))))["content"] == text


def test_an_answer_that_a_filter_ended_says_so(work):
    row = work.asks(sse({"content": "Ye"}, {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}))
    assert (row["status"], row["content"]) == ("error", "Ye") and "A filter" in row["error"]


@pytest.mark.parametrize("event", [
    {"error": {"message": "GPU on fire", "code": 500}}, {"object": "error", "message": "GPU on fire", "code": 500},
    {"error": "GPU on fire"}, 'error: {"message": "GPU on fire", "code": 500}\n\n',
    'event: error\ndata: {"detail": "GPU on fire"}\n\n'])
def test_an_error_in_the_stream_is_told_and_what_came_is_kept(work, event):
    row = work.asks(sse({"content": "Ye"}, event, end=""))
    assert (row["status"], row["content"]) == ("error", "Ye")
    assert "GPU on fire" in row["error"] and not set("{}") & set(row["error"])


# ---- A busy server

def test_a_server_that_says_when_is_asked_again_then(work):
    begin = time()
    work.fake.script(Script(text="At last", busy=1, retry_after="2"))
    work.tab.say("Go")
    work.tab.hear(r"The model server is busy: trying again in 2 s")
    until(lambda: work.rows("role = 'assistant' and status = 'done'"), what="the answer")
    assert time() - begin > 1.9 and len(work.fake.chats) == 2


def test_longer_than_a_minute_is_a_sentence(work):
    row = work.asks(Script(busy=1, retry_after="600"))
    assert row["status"] == "error" and "busy for the next 10 minutes" in row["error"] and len(work.fake.chats) == 1


# ---- What models can

def offered(work):
    html = soup(work.html())
    return [o["value"] for o in html.select("#model option")], html.select_one("#think")


def listed(work, *names):
    """What is offered once the app has asked for the list as it is now."""
    work.asks()
    got = offered(work)
    assert got[0] == [*names]
    return got


def test_what_a_list_tells_is_used(work):
    work.fake.models[:] = [model("chatty"), model("nomic-embed-text"), model("bert"), model("deep")]
    work.fake.tells = {"bert": {"capabilities": ["embeddings"]}, "deep": {"capabilities": ["tool_use", "reasoning"]}}
    assert listed(work, "chatty", "deep")[1].has_attr("hidden")
    work.post("choose_model", profile=work.profile, model="deep")
    assert [o["value"] for o in offered(work)[1].select("option")] == ["", "off", "on"]


@pytest.mark.parametrize("told", [{"max_model_len": 50_000}, {"context_length": 50_000}, {"meta": {"n_ctx": 50_000}}])
def test_what_fits_is_what_a_list_tells(work, told):
    name = work.fake.models[0]["name"]
    work.fake.tells = {name: told}
    assert work.asks(Script(text="word " * 4000))["window"] == 50_000
    work.asks()
    assert len(str(work.fake.chats[-1]["messages"])) > 20_000          # nothing was left out
    work.web.post(f"/attach?profile={work.profile}", files={"file": ("long.txt", b"word " * 8000)})
    assert "context" in work.html()
    work.fake.tells = {}
    assert work.asks()["window"] == 4096


def test_how_a_model_thinks_is_chosen(work):
    work.fake.models[:] = [model("gpt-oss-20b"), model("qwen3-4b")]
    listed(work, "gpt-oss-20b", "qwen3-4b")
    work.post("choose_think", profile=work.profile, think="low")
    assert [o["value"] for o in offered(work)[1].select("option")] == ["", "low", "medium", "high"]
    work.asks()
    assert work.fake.chats[-1]["reasoning_effort"] == "low"
    work.post("choose_model", profile=work.profile, model="qwen3-4b")
    work.asks()                                            # which has no such level
    assert "reasoning_effort" not in work.fake.chats[-1]
    work.post("choose_think", profile=work.profile, think="off")
    work.asks()
    assert work.fake.chats[-1]["reasoning_effort"] == "none"
    assert work.fake.chats[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert work.web.post("/choose_think", data={"profile": work.profile, "think": "much"}).status_code == 400


@pytest.mark.parametrize("old", [False, True])
def test_ollama_is_told_how_to_think_only_where_the_model_can(chat, old):
    chat.fake.old = old
    name = f"gpt-oss:{old}"
    chat.fake.models[:] = [model("llama3.2:latest"), model("qwen3:4b", capabilities=("completion", "thinking")),
                           model(name, capabilities=("completion", "tools", "thinking"))]
    chat.answered()
    chat.page.reload()
    think = chat.page.get_by_label("Thinking", exact=True)
    expect(think).to_be_hidden()
    chat.page.locator("#model").focus()
    chat.page.locator("#model").select_option("qwen3:4b")
    expect(think).to_be_visible()
    expect(chat.page.locator("#model")).to_be_focused()
    for way, sent in ("off", False), ("on", True):
        with chat.page.expect_response(lambda r: "choose_think" in r.url):
            think.select_option(way)
        chat.answered()
        assert chat.fake.chats[-1]["think"] is sent and "tools" not in chat.fake.chats[-1]
    chat.page.locator("#model").select_option(name)
    with chat.page.expect_response(lambda r: "choose_think" in r.url):
        think.select_option("high")
    chat.answered()
    assert chat.fake.chats[-1]["think"] == "high" and "tools" in chat.fake.chats[-1]
    chat.page.locator("#model").select_option("llama3.2:latest")
    expect(think).to_be_hidden()
    chat.answered()
    assert "think" not in chat.fake.chats[-1]


def test_a_long_list_can_be_searched_by_keyboard(chat):
    page, field = chat.page, chat.page.get_by_label("Find a model")
    expect(page.locator("#model option")).to_have_count(4, timeout=10_000)    # it looks every 5 s
    expect(field).to_have_count(0)
    chat.fake.models += [model(f"vendor-{n}/some-{n % 7}b-model:q{n}") for n in range(300)]
    chat.answered()
    page.reload()
    page.locator("#msg").fill("A draft")
    field.fill("some 299")
    field.press("Enter")
    expect(page.locator("#model")).to_have_value("vendor-299/some-5b-model:q299")
    expect(field).to_be_focused()
    expect(field).to_have_value("")
    chat.window.allow_errors = "400"
    field.fill("nonesuch")
    field.press("Enter")
    expect(page.locator("#toast")).to_contain_text("No model is called “nonesuch”.")
    expect(field).to_have_value("nonesuch")
    expect(page.locator("#msg")).to_have_value("A draft")
    assert len(chat.rows()) == 2


# ---- In line

def test_a_prompt_says_who_is_before_it(work):
    other = Tab(work.server)
    work.fake.script(Script(text="The job's", gate=True))
    job = work.run("think_aloud")
    work.fake.wait_chat()
    with other.socket() as tab:
        tab.say("First")
        tab.hear("In line: Think aloud is before it")
        answering = other.rows("role = 'assistant'")[0]["id"]
        tab.say("Second")
        tab.hear("In line: the answer above is before it")
        work.tab.say("From elsewhere")
        work.tab.hear("In line: the answer in “First” is before it")
        work.fake.release()
        work.ended(job)
        assert other.ended(answering)["status"] == "done"
        until(lambda: not work.rows("status in ('queued', 'streaming')"), what="the end of all")
    other.web.close()
