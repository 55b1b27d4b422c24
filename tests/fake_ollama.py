"""A fake Ollama that speaks the real protocol and does what a test tells it to.

Source of the protocol: Ollama's own API documentation (docs/api.md and the OpenAI
compatibility page, v0.33) and what its server is known to do beyond them: NDJSON lines in
chunks of their own, errors under status 200 once a stream has begun, streams that just end,
silence while a model loads, one answer at a time per model.

    with FakeOllama() as fake:
        fake.script(Script(text="Hello there", gate=True))
        ...                        # have the app ask something
        fake.wait_chat()           # the request is here; no token has been sent
        fake.release(1)            # "Hello" goes out
        fake.wait_hangup()         # the client closed the connection

HTTP is written by hand, since a web framework between a test and the bytes would cost more
time than the app under test may take: 8,000 tokens, each in a chunk of its own, leave in 50 to 100 ms.
"""
import asyncio
import contextlib
import copy
import hashlib
import json
import re
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import responses
from math import inf

# Raw U+0085 and U+2028 inside strings: this is what breaks readers that split "lines".
dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
BUSY = "server busy, please try again.  maximum pending requests exceeded"


def cut(text):
    """Tokens as a model would write them: a word with the space before it."""
    return re.findall(r"\s*\S+|\s+$", text)


def stamp():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


@dataclass
class Script:
    """How one chat goes. An empty one answers with the default text at full speed."""
    text: str = ""                   # cut into tokens, where `tokens` is empty
    tokens: list = field(default_factory=list)
    thinking: list = field(default_factory=list)
    tool_calls: list = field(default_factory=list)   # [{"function": {"name", "arguments": {}}}]
    tool_calls_in_last: bool = False                 # in the chunk that says done
    rate: float = 0                  # tokens a second, 0: as fast as it goes
    gate: bool = False               # every chunk before the last waits for fake.release()
    status: int = 0                  # a real status with `error`, before the first chunk
    error: str = ""
    error_after: int | None = None   # chunks, then a line {"error": error} under status 200
    cut_after: int | None = None     # chunks, then the connection drops
    no_done: bool = False            # ends cleanly, but without done
    load_seconds: float = 0          # not a byte until loaded, and not in /api/ps either
    load_gate: bool = False          # the same until fake.load()
    busy: int = 0                    # so many 503 first
    retry_after: str = ""            # so many 429 with this header instead
    garbage: bytes | None = None     # these very bytes instead of an HTTP reply
    prompt_eval_count: int | None = None
    done_reason: str = "stop"

    def chunks(self, think):
        """[(kind, value)] in the order they go out, the last one apart."""
        pieces = [("thinking", t) for t in self.thinking if think]
        pieces += [("content", t) for t in self.tokens or cut(self.text)]
        if self.tool_calls and not self.tool_calls_in_last:
            pieces += [("tool_calls", [call]) for call in self.tool_calls]
        return pieces


@dataclass
class Pull:
    """What /api/pull finds under a name: layers of so many bytes, told in so many steps each."""
    layers: dict = field(default_factory=lambda: {"a" * 64: 1_300_000_000, "b" * 64: 12_000})
    steps: int = 4
    gate: bool = False               # every progress line waits for fake.release()
    error: str = ""                  # after `error_after` progress lines
    error_after: int = 0


@dataclass
class Request:
    """One HTTP request as it came."""
    method: str
    path: str
    headers: dict
    body: object
    time: float


@dataclass
class Hangup:
    """A client that closed its connection before the answer was complete."""
    path: str
    body: object
    sent: int                        # chunks sent before
    time: float


class HungUp(Exception):
    pass


def model(name, family="llama", size="3.2B", capabilities=("completion", "tools"), context=131072):
    """One entry of fake.models (as in /api/tags; the context is for /api/show)."""
    return {"name": name, "model": name, "modified_at": stamp(), "size": int(float(size[:-1]) * 6.3e8),
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "context": context, "capabilities": list(capabilities),
            "details": {"parent_model": "", "format": "gguf", "family": family, "families": [family],
                        "parameter_size": size, "quantization_level": "Q4_K_M"}}


class FakeOllama:
    """See the module's docstring. Methods are for the test's thread; all else runs in its own."""

    def __init__(self, port=0):
        self.port = port
        self.models = [model("llama3.1:8b", size="8.0B"), model("llama3.2:latest"),
                       model("gemma3:1b", "gemma3", "1B", ("completion",)),
                       model("qwen3:4b", "qwen3", "4.0B", ("completion", "tools", "thinking"))]
        self.library = {"llama3.2:1b": Pull()}
        self.default = Script(text="This is what a small model says when nobody told it what.")
        self.context = 4096               # what it takes where options.num_ctx does not say
        self.old = False                  # before 2026: no capabilities in /api/tags
        self.api_key = None               # wanted as a bearer token under /v1
        self.impostor = None              # these bytes for whatever is asked; b"": silence
        self.prefix = ""                  # a base path, as behind a reverse proxy
        self.unknown = {}                 # parts of a body that it does not know -> (status, what it says)
        self.no_prefill = None            # (status, what it says) where the last message is the assistant's
        self.tells = {}                   # name -> what /v1/models tells of it besides
        self.requests, self.chats, self.hangups, self.sent = [], [], [], []
        self.loaded = {}                  # name -> context length in force
        self._scripts, self._partial = [], {}
        self._cond, self._thread = threading.Condition(), None

    # ---- the test's side

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Listen: on a free port first, on the same one again after stop()."""
        started = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), daemon=True)
        self._thread.start()
        self.port = started.result(5)
        return self

    def stop(self):
        """As if killed: nobody listens any more, and whatever streamed is cut."""
        if self._thread:
            self._call(self._end.set)
            self._thread.join(5)
            self._thread = None

    __enter__ = start

    def __exit__(self, *exc):
        self.stop()

    def script(self, *scripts):
        """Queue what the next chats do, one each; after that, `default` again."""
        with self._cond:
            self._scripts += scripts

    def release(self, n=inf):
        """Let n more chunks through the gate (all that is left, without n)."""
        self._call(self._grant, n)

    def load(self):
        """The model that a load_gate held back is loaded now."""
        self._call(self._load_open.set)

    def wait(self, true, timeout=5, what="that"):
        """Wait until true() holds; looked at again whenever something happened here."""
        with self._cond:
            value = self._cond.wait_for(true, timeout)
        assert value, f"{what} did not happen in {timeout} s; requests: {[r.path for r in self.requests]}"
        return value

    def wait_chat(self, n=1, timeout=5):
        """The body of the nth chat, once it is here."""
        self.wait(lambda: len(self.chats) >= n, timeout, f"chat {n}")
        return self.chats[n - 1]

    def wait_sent(self, n, timeout=5):
        """Wait until n chunks of the current stream have been sent."""
        self.wait(lambda: len(self.sent) >= n, timeout, f"chunk {n}")

    def wait_hangup(self, timeout=5, n=1):
        """The nth hang-up, once it was noticed."""
        self.wait(lambda: len(self.hangups) >= n, timeout, f"hang-up {n}")
        return self.hangups[n - 1]

    def wait_request(self, path, n=1, timeout=5):
        """The nth request to this path, once it is here."""
        found = self.wait(lambda: [r for r in self.requests if r.path == path][n - 1:], timeout, path)
        return found[0]

    def _call(self, do, *args):
        with contextlib.suppress(RuntimeError):      # a loop that has just stopped
            self._loop.call_soon_threadsafe(do, *args)

    # ---- the server's side

    async def _main(self, started):
        self._loop, self._end, self._conns = asyncio.get_running_loop(), asyncio.Event(), set()
        self._credit, self._granted, self._load_open = 0, asyncio.Event(), asyncio.Event()
        self._turns = {}
        self.loaded = {}
        try:
            server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        except OSError as e:
            return started.set_exception(e)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._end.wait()
        server.close()
        for _ in range(5):           # who has just been let in is on the list, too
            await asyncio.sleep(0)
        for conn in self._conns:
            conn.task.cancel()
            conn.writer.transport.abort()

    def _grant(self, n):
        self._credit += n
        self._granted.set()

    @contextlib.contextmanager
    def _changed(self):
        with self._cond:
            yield
            self._cond.notify_all()

    async def _client(self, reader, writer):
        conn = Conn(reader, writer, asyncio.current_task())
        self._conns.add(conn)
        try:
            while request := await conn.request():
                lost = not request.path.startswith(self.prefix + "/")
                request.path = f"(outside) {request.path}" if lost else request.path[len(self.prefix):]
                with self._changed():
                    self.requests.append(request)
                if self.impostor is not None:
                    writer.write(self.impostor)
                    await conn.until(asyncio.sleep(0 if self.impostor else 3600))
                    break
                try:
                    await self._route(conn, request)
                except HungUp:
                    with self._changed():
                        self.hangups.append(Hangup(request.path, request.body, conn.chunks, time.time()))
                if conn.over:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, HungUp):
            pass
        finally:
            self._conns.discard(conn)
            writer.close()

    async def _route(self, conn, r):
        known = {"GET /": self._root, "HEAD /": self._root, "GET /api/version": self._version,
                 "GET /api/tags": self._tags, "GET /api/ps": self._ps, "POST /api/show": self._show,
                 "POST /api/chat": self._chat, "POST /api/pull": self._pull,
                 "GET /v1/models": self._v1_models,
                 "POST /v1/chat/completions": self._chat}
        do = known.get(f"{r.method} {r.path}")
        if not do:
            return conn.reply(404, b"404 page not found", "text/plain")
        if r.method == "POST" and not isinstance(r.body, dict):
            return conn.json({"error": "invalid character in body"}, 400)
        if r.path.startswith("/v1") and self.api_key and \
                r.headers.get("authorization") != f"Bearer {self.api_key}":
            return conn.json(OpenAI.failure("Incorrect API key provided", 401), 401)
        await do(conn, r)

    async def _root(self, conn, r):
        conn.reply(200, b"Ollama is running" if r.method == "GET" else b"", "text/plain; charset=utf-8")

    async def _version(self, conn, r):
        conn.json({"version": "0.33.0"})

    async def _tags(self, conn, r):
        hidden = ("context", "capabilities") if self.old else ("context",)
        conn.json({"models": [{k: v for k, v in m.items() if k not in hidden} for m in self.models]})

    async def _ps(self, conn, r):
        keys = ("name", "model", "size", "digest", "details")
        conn.json({"models": [{k: m[k] for k in keys} | {
            "expires_at": stamp(), "size_vram": m["size"], "context_length": self.loaded[m["name"]]}
            for m in self.models if m["name"] in self.loaded]})

    async def _show(self, conn, r):
        if not (m := self._find(r.body)):
            return conn.json(Native.failure(f"model '{r.body.get('model')}' not found", 404), 404)
        arch = m["details"]["family"]
        conn.json({"modelfile": "", "template": "{{ .Prompt }}", "details": m["details"], "modified_at":
                   m["modified_at"], "capabilities": m["capabilities"],
                   "model_info": {"general.architecture": arch, f"{arch}.context_length": m["context"]}})

    async def _v1_models(self, conn, r):
        data = [{"id": m["name"], "object": "model", "created": 1767225600, "owned_by": "library"}
                | self.tells.get(m["name"], {}) for m in self.models]
        conn.json({"object": "list", "data": data})

    def _find(self, body):
        name = body.get("model") or body.get("name") or ""
        return next((m for m in self.models if m["name"] in (name, f"{name}:latest")), None)

    async def _chat(self, conn, r):
        body, messages = r.body, r.body.get("messages") or []
        native = r.path == "/api/chat"
        if messages:
            with self._changed():
                self.chats.append(body)
        m = self._find(body)
        talk = (Native if native else OpenAI)(m and m["name"], body)

        def refuse(status, text):
            conn.json(talk.failure(text, status), status)
        if not m:
            return refuse(404, f"model '{body.get('model')}' not found")
        for part, (status, text) in self.unknown.items():
            if part in body:
                return refuse(status, text)
        if self.no_prefill and messages and messages[-1]["role"] == "assistant":
            return refuse(*self.no_prefill)
        for want, able in ("think", "thinking"), ("tools", "tools"):
            if body.get(want) and able not in m["capabilities"]:
                return refuse(400, f"\"{m['name']}\" does not support {able}")
        ctx = int((body.get("options") or {}).get("num_ctx") or self.context)
        prompt = sum(len(str(msg.get("content"))) for msg in messages) // 4 + 8
        if prompt > ctx and body.get("truncate") is False:
            return refuse(400, "the input length exceeds the context length")
        if not messages and native:
            with self._cond:
                script = self._scripts[0] if self._scripts else copy.copy(self.default)
            reason = "unload" if body.get("keep_alive") == 0 else "load"
            await self._load(conn, m, script, ctx, reason)
            return conn.json(talk.last("", {"done_reason": reason}))
        async with contextlib.AsyncExitStack() as turn:
            lock = self._turns.setdefault(m["name"], asyncio.Lock())     # OLLAMA_NUM_PARALLEL=1
            await conn.until(lock.acquire())
            turn.callback(lock.release)
            with self._cond:
                script = self._scripts[0] if self._scripts else copy.copy(self.default)
                script.busy -= 1
                if script.busy < 0 and self._scripts:
                    self._scripts.pop(0)
            if script.busy >= 0 and script.retry_after:
                body = dumps(talk.failure("Rate limit reached", 429)).encode()
                return conn.reply(429, body, f"application/json\r\nRetry-After: {script.retry_after}")
            if script.busy >= 0:
                return refuse(503, BUSY)
            if script.garbage is not None:
                return conn.raw(script.garbage)
            await self._load(conn, m, script, ctx)
            if script.status or (script.error and script.error_after is None):
                return refuse(script.status or 500, script.error)
            await self._answer(conn, talk, script, min(prompt, ctx))
            if body.get("keep_alive") == 0:
                self.loaded.pop(m["name"], None)

    async def _load(self, conn, m, script, ctx, reason="load"):
        """Preload and chat wait for one and the same load, as they do in the real one."""
        if script.load_gate or script.load_seconds:
            self.loaded.pop(m["name"], None)
            script._due = getattr(script, "_due", time.monotonic() + script.load_seconds)
            await conn.until(self._load_open.wait() if script.load_gate
                             else asyncio.sleep(script._due - time.monotonic()))
        self.loaded[m["name"]] = ctx
        if reason == "unload":
            del self.loaded[m["name"]]

    async def _answer(self, conn, talk, script, prompt):
        pieces = script.chunks(talk.body.get("think") is not False)
        if script.prompt_eval_count is not None:
            prompt = script.prompt_eval_count
        figures = talk.figures(len(pieces), prompt)
        if not talk.stream:
            return conn.json(talk.whole(pieces, script, figures))
        with self._changed():
            self.sent = sent = []
        conn.begin(talk.content_type)
        start, now, put = time.perf_counter(), time.time, conn.chunk
        ends = script.error_after, script.cut_after
        for i, (kind, value) in enumerate(pieces):
            if i in ends:
                break
            if script.gate:
                while self._credit < 1:
                    self._granted.clear()
                    await conn.until(self._granted.wait())
                self._credit -= 1
            if script.rate:
                await conn.until(asyncio.sleep(start + i / script.rate - time.perf_counter()))
            elif not i % 256:        # at full speed the hang-up and a full buffer get a look now and then
                await conn.until(conn.writer.drain())
            sent.append((value, now()))
            put(talk.piece(kind, value))
            if script.gate or script.rate or not i % 256:
                with self._changed():
                    pass
        if script.gate:
            self._credit = 0         # what a test released too much is not for the next answer
        with self._changed():
            pass
        if script.cut_after is not None:
            conn.over = True         # closed with the last chunk missing
            return
        if script.error_after is not None:
            put(talk.error(script.error))
        elif not script.no_done:
            calls = script.tool_calls if script.tool_calls_in_last else None
            for line in talk.end(script.done_reason, figures, calls, bool(script.tool_calls)):
                put(line)
        conn.end()

    async def _pull(self, conn, r):
        name = r.body.get("model") or r.body.get("name")
        pull, lines = self.library.get(name), 0
        conn.begin(Native.content_type)

        def say(**line):
            conn.chunk(dumps(line).encode() + b"\n")
        say(status="pulling manifest")
        if not pull:
            say(error="pull model manifest: file does not exist")
            return conn.end()
        for digest, total in pull.layers.items():
            about = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": total}
            done = self._partial.get(digest, 0)
            say(**about, **({"completed": done} if done else {}))
            while done < total:
                if pull.error and lines == pull.error_after:
                    say(error=pull.error)
                    return conn.end()
                while pull.gate and self._credit < 1:
                    self._granted.clear()
                    await conn.until(self._granted.wait())
                self._credit -= pull.gate
                await conn.until(asyncio.sleep(0))
                done = self._partial[digest] = min(total, done + -(-total // pull.steps))
                say(**about, completed=done)
                lines += 1
        if pull.gate:
            self._credit = 0
        for status in "verifying sha256 digest", "writing manifest", "success":
            say(status=status)
        self.models.append(model(name))
        conn.end()


class Native:
    """The lines of /api/chat."""
    content_type = "application/x-ndjson"

    def __init__(self, name, body):
        self.name, self.body, self.stream = name, body, body.get("stream", True)
        self.start = time.perf_counter()
        self._head = f'{{"model":{dumps(name)},"created_at":"{stamp()}","message":{{"role":"assistant",'

    @staticmethod
    def failure(text, status):
        return {"error": text}

    def error(self, text):
        return dumps({"error": text}).encode() + b"\n"

    def piece(self, kind, value):
        content = "" if kind == "content" else '"content":"",'
        return f'{self._head}{content}"{kind}":{dumps(value)}}},"done":false}}\n'.encode()

    def figures(self, evals, prompt):
        spent = int((time.perf_counter() - self.start) * 1e9)
        return {"total_duration": spent + 20_000_000 * evals, "load_duration": spent,
                "prompt_eval_count": prompt, "prompt_eval_duration": 1_000_000 * prompt,
                "eval_count": evals, "eval_duration": 20_000_000 * evals}

    def last(self, content, more, calls=None, thinking=""):
        message = {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})
        message |= {"tool_calls": calls} if calls else {}
        return {"model": self.name, "created_at": stamp(), "message": message, "done": True} | more

    def end(self, reason, figures, calls, called):
        figures = {k: v for k, v in figures.items() if v}        # Go's omitempty
        yield dumps(self.last("", {"done_reason": reason} | figures, calls)).encode() + b"\n"

    def whole(self, pieces, script, figures):
        text = {k: "".join(v for kind, v in pieces if kind == k) for k in ("content", "thinking")}
        return self.last(text["content"], {"done_reason": script.done_reason} | figures, script.tool_calls,
                         text["thinking"])


class OpenAI:
    """The events of /v1/chat/completions, as vLLM, llama-server and LM Studio send them."""
    content_type = "text/event-stream"

    def __init__(self, name, body):
        self.name, self.body, self.stream = name, body, body.get("stream", False)

    @staticmethod
    def failure(text, status):
        kind = {400: "invalid_request_error", 401: "invalid_request_error", 404: "not_found_error"}
        about = {"type": kind.get(status, "api_error"), "param": None, "code": None}
        return {"error": {"message": text} | about}

    def error(self, text):
        return f"data: {dumps(self.failure(text, 500))}\n\n".encode()

    def _event(self, delta, reason=None, **more):
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        return f"data: {dumps(self._about('.chunk') | {'choices': choices} | more)}\n\n".encode()

    def _about(self, chunk=""):
        return {"id": "chatcmpl-1", "object": f"chat.completion{chunk}", "created": int(time.time()),
                "model": self.name}

    @staticmethod
    def _calls(calls):
        return [{"index": i, "id": f"call_{i}", "type": "function", "function": {
            "name": c["function"]["name"], "arguments": dumps(c["function"]["arguments"])}}
            for i, c in enumerate(calls)]

    def piece(self, kind, value):
        return self._event({"role": "assistant"} | {
            "content": {"content": value}, "thinking": {"reasoning_content": value},
            "tool_calls": {"tool_calls": kind == "tool_calls" and self._calls(value)}}[kind])

    def figures(self, evals, prompt):
        return {"prompt_tokens": prompt, "completion_tokens": evals, "total_tokens": prompt + evals}

    def end(self, reason, figures, calls, called):
        last = {"tool_calls": self._calls(calls)} if calls else {}
        yield self._event(last, "tool_calls" if called else reason)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield self._event(None, usage=figures)
        yield b"data: [DONE]\n\n"

    def whole(self, pieces, script, figures):
        text = {k: "".join(v for kind, v in pieces if kind == k) for k in ("content", "thinking")}
        message = {"role": "assistant", "content": text["content"], "reasoning_content": text["thinking"]}
        message |= {"tool_calls": self._calls(script.tool_calls)} if script.tool_calls else {}
        reason = "tool_calls" if script.tool_calls else script.done_reason
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return self._about() | {"choices": [choice], "usage": figures}


class Conn:
    """One connection: a minimal HTTP/1.1 with keep-alive, and an eye on a client that leaves."""

    def __init__(self, reader, writer, task):
        self.reader, self.writer, self.task = reader, writer, task
        self.over, self.chunks, self._gone = False, 0, None

    async def request(self):
        if self._gone:               # the watch must not swallow the first byte of this request
            self._gone.cancel()
            await asyncio.wait({self._gone})
            self._gone = None
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        raw = await self.reader.readexactly(int(headers.get("content-length", 0)))
        self.over, self.chunks = headers.get("connection", "").lower() == "close", 0
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = raw
        return Request(method, path, headers, body, time.time())

    async def until(self, what):
        """Await it, unless the client hangs up first: a reader that ends tells so at once."""
        if not self._gone:
            self._gone = asyncio.ensure_future(self.reader.read(1))
            self._gone.add_done_callback(lambda t: t.cancelled() or t.exception())
        task = asyncio.ensure_future(what)
        if not self._gone.done():
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():          # first: a lock that was taken must not be forgotten
                return task.result()
        task.cancel()
        self.over = True
        raise HungUp

    def _head(self, status, kind, more):
        more += "Connection: close\r\n" if self.over else ""
        self.writer.write(f"HTTP/1.1 {status} {responses.get(status, '')}\r\n"
                          f"Content-Type: {kind}\r\n{more}\r\n".encode())

    def reply(self, status, body, kind):
        self._head(status, kind, f"Content-Length: {len(body)}\r\n")
        self.writer.write(body)

    def json(self, what, status=200):
        self.reply(status, dumps(what).encode(), "application/json; charset=utf-8")

    def raw(self, data):
        self.over = True
        self.writer.write(data)

    def begin(self, kind):
        self._head(200, kind, "Transfer-Encoding: chunked\r\n")

    def chunk(self, data):
        if self.writer.transport.is_closing():       # a broken pipe, seen while writing
            self.over = True
            raise HungUp
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.chunks += 1

    def end(self):
        self.writer.write(b"0\r\n\r\n")
