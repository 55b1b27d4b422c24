"""The fake Ollama itself: what all the other tests lean on has to be right."""
import json
import threading
import time

import httpx
import pytest
from fake_ollama import FakeOllama, Pull, Script

HELLO = {"model": "llama3.2", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def web(fake):
    with httpx.Client(base_url=fake.url, trust_env=False, timeout=10) as web:
        yield web


def lines(web, path="/api/chat", body=HELLO, headers=None):
    """Every line of a stream, parsed, as a careful client reads it."""
    with web.stream("POST", path, json=body, headers=headers) as reply:
        assert reply.status_code == 200
        rest = b""
        for data in reply.iter_raw():
            *whole, rest = (rest + data).split(b"\n")
            objects = (line.removeprefix(b"data: ") for line in whole)       # NDJSON, or events
            yield from (json.loads(line) for line in objects if line.startswith(b"{"))
        assert rest == b""


def text(chunks, key="content"):
    return "".join(c["message"].get(key, "") for c in chunks)


def test_a_stream_is_ndjson_in_chunks_of_their_own(fake, web):
    tokens = ["One\x85", "\u2028two\n", " <b>", "\u00e9\U0001f642"]
    fake.script(Script(tokens=tokens, thinking=["hm"]))
    with web.stream("POST", "/api/chat", json=HELLO) as reply:
        raw = b"".join(reply.iter_raw())
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert reply.headers["transfer-encoding"] == "chunked"
    assert "One\x85".encode() in raw and "\u2028two".encode() in raw
    first, *middle, last = map(json.loads, raw.decode().removesuffix("\n").split("\n"))
    assert first["message"] == {"role": "assistant", "content": "", "thinking": "hm"}
    assert [c["message"]["content"] for c in middle] == tokens
    assert last["done"] and last["done_reason"] == "stop" and last["message"]["content"] == ""
    assert last["eval_count"] == 5 and last["eval_duration"] > 0 and last["prompt_eval_count"] > 0
    assert [token for token, _ in fake.sent] == ["hm", *tokens]
    assert fake.chats == [HELLO]


def test_one_connection_serves_many_requests(fake, web):
    for _ in range(3):
        assert text(lines(web)) == fake.default.text
        assert web.get("/").text == "Ollama is running" and web.head("/").status_code == 200
    assert fake.hangups == []


def test_a_gate_holds_each_token_until_it_is_released(fake, web):
    fake.script(Script(text="one two three", gate=True), Script(text="four", gate=True))
    stream = lines(web)
    fake.release(1)
    assert next(stream)["message"]["content"] == "one"
    assert len(fake.sent) == 1
    fake.release()
    assert text(stream) == " two three"
    stream = lines(web)
    threading.Thread(target=lambda: (fake.wait_chat(2), fake.release())).start()
    assert text(stream) == "four"


def test_a_hang_up_is_noticed_at_once_even_while_nothing_is_sent(fake, web):
    fake.script(Script(text="one two three", gate=True))
    stream = lines(web)
    fake.release(1)
    next(stream)
    stream.close()
    closed = time.time()
    hangup = fake.wait_hangup()
    assert hangup.time - closed < 0.1 and hangup.sent == 1 and hangup.body == HELLO


def test_an_error_before_the_first_chunk_is_a_status(fake, web):
    fake.script(Script(status=500, error='{"error": "out of memory"}'), Script(busy=2, text="ok"))
    reply = web.post("/api/chat", json=HELLO)
    assert (reply.status_code, reply.json()) == (500, {"error": '{"error": "out of memory"}'})
    assert [web.post("/api/chat", json=HELLO).status_code for _ in range(3)] == [503, 503, 200]
    reply = web.post("/api/chat", json=HELLO | {"model": "nope"})
    assert (reply.status_code, reply.json()) == (404, {"error": "model 'nope' not found"})
    assert web.post("/api/chat", json=HELLO | {"think": True}).status_code == 400
    assert web.post("/api/chat", content=b"{").status_code == 400


def test_an_error_in_mid_stream_is_a_line(fake, web):
    fake.script(Script(text="one two three", error="boom", error_after=2))
    *before, last = lines(web)
    assert text(before) == "one two" and last == {"error": "boom"}


def test_a_stream_may_end_without_done_or_be_cut(fake, web):
    fake.script(Script(text="one two", no_done=True), Script(text="one two three", cut_after=2))
    assert [c["done"] for c in lines(web)] == [False, False]
    got = []
    with pytest.raises(httpx.RemoteProtocolError):
        got.extend(lines(web))
    assert len(fake.sent) == 2 and fake.hangups == []


def test_not_a_byte_comes_while_a_model_loads(fake, web):
    fake.script(Script(text="ok", load_gate=True))
    assert web.get("/api/ps").json() == {"models": []}
    got = []
    reader = threading.Thread(target=lambda: got.extend(lines(web)))
    reader.start()
    fake.wait_chat()
    assert httpx.get(f"{fake.url}/api/ps", trust_env=False).json() == {"models": []} and fake.sent == []
    fake.load()
    reader.join(5)
    assert text(got) == "ok"
    loaded, = web.get("/api/ps").json()["models"]
    assert (loaded["name"], loaded["context_length"]) == ("llama3.2:latest", 4096)


def test_a_preload_is_no_chat(fake, web):
    reply = web.post("/api/chat", json={"model": "qwen3:4b", "options": {"num_ctx": 8192}}).json()
    assert (reply["done"], reply["done_reason"]) == (True, "load")
    assert web.get("/api/ps").json()["models"][0]["context_length"] == 8192
    assert fake.chats == [] and len(fake.requests) == 2


def test_a_second_chat_on_the_same_model_waits_without_a_word(fake, web):
    fake.script(Script(text="one", gate=True), Script(text="two"))
    with httpx.Client(base_url=fake.url, trust_env=False) as other:
        first = threading.Thread(target=lambda: list(lines(other)))
        first.start()
        fake.wait_chat(1)
        got = []
        second = threading.Thread(target=lambda: got.extend(lines(web)))
        second.start()
        fake.wait_chat(2)
        assert got == [] and fake.sent == []
        fake.release()
        second.join(5)
        first.join(5)
    assert text(got) == "two"


def test_models_are_listed_and_shown(fake, web):
    models = web.get("/api/tags").json()["models"]
    assert {"name", "model", "size", "digest", "modified_at", "details", "capabilities"} == models[0].keys()
    fake.old = True
    assert "capabilities" not in web.get("/api/tags").json()["models"][0]
    about = web.post("/api/show", json={"model": "llama3.2"}).json()
    assert "tools" in about["capabilities"] and about["model_info"]["llama.context_length"] == 131072


def test_tool_calls_come_whole(fake, web):
    call = {"function": {"name": "add_todo", "arguments": {"title": "Milk"}}}
    fake.script(Script(tool_calls=[call]), Script(text="ok", tool_calls=[call], tool_calls_in_last=True))
    first, last = lines(web)
    assert first["message"]["tool_calls"] == [call] and not last["message"].get("tool_calls")
    assert list(lines(web))[-1]["message"]["tool_calls"] == [call]


def test_a_pull_resumes_where_it_was_left(fake, web):
    fake.library["new:1b"] = Pull(layers={"a" * 64: 100, "b" * 64: 10}, steps=2, gate=True)
    pull = lines(web, "/api/pull", {"model": "new:1b"})
    fake.release(1)
    seen = [next(pull) for _ in range(3)]
    assert seen[0] == {"status": "pulling manifest"} and "completed" not in seen[1]
    assert (seen[2]["digest"], seen[2]["total"], seen[2]["completed"]) == ("sha256:" + "a" * 64, 100, 50)
    pull.close()
    assert fake.wait_hangup().path == "/api/pull"
    fake.release()
    seen = list(lines(web, "/api/pull", {"model": "new:1b"}))
    assert seen[1]["completed"] == 50 and seen[-1] == {"status": "success"}
    assert web.post("/api/show", json={"model": "new:1b"}).status_code == 200
    assert "error" in list(lines(web, "/api/pull", {"model": "nope"}))[-1]


def test_it_speaks_openai_too(fake, web):
    fake.api_key, path = "secret", "/v1/chat/completions"
    body = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    assert web.post(path, json=body).json()["error"]["message"] == "Incorrect API key provided"
    headers = {"Authorization": "Bearer secret"}
    assert "llama3.2:latest" in [m["id"] for m in web.get("/v1/models", headers=headers).json()["data"]]
    fake.script(Script(text="one two", thinking=["hm"]), Script(text="one", error="boom", error_after=1))
    *chunks, usage = lines(web, path, body, headers)
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0]["reasoning_content"] == "hm" and [d["content"] for d in deltas[1:3]] == ["one", " two"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and usage["usage"]["completion_tokens"] == 3
    assert list(lines(web, path, body, headers))[-1]["error"]["message"] == "boom"
    reply = web.post(path, json=body | {"model": "nope"}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "model 'nope' not found")
    assert fake.requests[-1].headers["authorization"] == "Bearer secret"


def test_it_can_be_no_ollama_at_all(fake, web):
    fake.script(Script(garbage=b"SSH-2.0-OpenSSH_9.9\r\n"))
    with pytest.raises(httpx.RemoteProtocolError):
        web.post("/api/chat", json=HELLO)
    fake.impostor = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<h1>x</h1>"[:-1]
    assert web.get("/api/tags").text == "<h1>x</h1"


def test_it_comes_back_on_the_same_port(fake):
    url = fake.url
    fake.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    fake.start()
    assert fake.url == url and httpx.get(url, trust_env=False).status_code == 200


def test_a_stop_cuts_what_streams():
    with FakeOllama() as fake, httpx.Client(base_url=fake.url, trust_env=False) as web:
        fake.script(Script(text="one two", gate=True))
        stream = lines(web)
        fake.release(1)
        next(stream)
        fake.stop()
        with pytest.raises(httpx.TransportError):
            next(stream)
