"""The app over the wire, without a browser: HTTP byte by byte, the socket, parsed HTML."""
import contextlib
import http.client
import json
import re
from time import monotonic
from types import SimpleNamespace

from bs4 import BeautifulSoup, SoupStrainer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

PROMPTS = "select * from message where role = 'user' and profile = ? order by id"
ANSWERS = "select * from message where role = 'assistant' and profile = ? order by id"
EVENTS = "select * from message where role = 'event' and profile = ? order by id"


def soup(html, only=None):
    """The parsed HTML, or only what stands in this element: that is quicker."""
    return BeautifulSoup(html, "html.parser", parse_only=only and SoupStrainer(only))


def send(server, method, path, body=None, host=None, **headers):
    """One request with exactly this path and these headers (`sec_fetch_site` is Sec-Fetch-Site)."""
    web = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(web):
        web.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host != "":
            web.putheader("Host", host or f"127.0.0.1:{server.port}")
        for name, value in headers.items():
            web.putheader(name.replace("_", "-"), value)
        chunked = not isinstance(body, (str, bytes, type(None)))
        if chunked:
            web.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            web.putheader("Content-Length", str(len(body)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before it has read all
            web.endheaders(body.encode() if isinstance(body, str) else body, encode_chunked=chunked)
        got = web.getresponse()
        return SimpleNamespace(status=got.status, headers=got.headers, body=(raw := got.read()),
                               text=raw.decode(errors="replace"))


FORM = {"content_type": "application/x-www-form-urlencoded"}


def press(client, html, label, typed=None):
    """Press the button of this name, as it stands in `html`; where that opens an editor, type and save."""
    buttons = [b for b in soup(html).find_all("button") if label in (b.get("aria-label"), b.get_text(strip=True))]
    assert len(buttons) == 1, f"{len(buttons)} buttons are called {label}"
    button = buttons[0]
    if typed is None:
        return client.post(button["hx-post"])
    editor = soup(client.get(button["hx-get"]).text)
    return client.post(editor.form["hx-post"], data={editor.input["name"]: typed})


def everything(server):
    """All that is stored: what a refused request must not have changed."""
    return [tuple(row) for table in ("profile", "todo", "chat", "message") for row in server.sql(f"select * from {table}")]


class Chat:
    """An open chat: what a tab sends and hears."""

    def __init__(self, server, query="", cookie=None, **headers):
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        if cookie:
            headers["Cookie"] = cookie
        self.server, self.heard = server, ""
        self._open = connect(f"ws://127.0.0.1:{server.port}/ws{query}", additional_headers=headers, proxy=None,
                             max_size=None, close_timeout=2, open_timeout=10)

    def __enter__(self):
        self.ws = self._open.__enter__()
        return self

    def __exit__(self, *exc):
        self._open.__exit__(*exc)

    def say(self, text):
        self.ws.send(json.dumps({"msg": text, "HEADERS": {"HX-Request": "true"}}))

    def until(self, true, timeout=10, what="that"):
        """Listen until true() holds; it is asked again after every frame."""
        end = monotonic() + timeout
        while not (value := true()):
            try:
                self.heard += self.ws.recv(max(0, end - monotonic()))
            except (TimeoutError, ConnectionClosed) as e:
                raise AssertionError(f"{what} did not happen ({e}); heard:\n{self.heard[-2000:]}") from None
        return value

    def hear(self, pattern, timeout=10):
        """Listen until this has been said since the last time."""
        found = self.until(lambda: re.search(pattern, self.heard, re.DOTALL), timeout, pattern)
        self.heard = self.heard[found.end():]
        return found

    def ask(self, text, profile=1):
        """A prompt, and its answer as it stands in the database once it has ended."""
        before = len(self.server.sql(ANSWERS, profile))
        self.say(text)

        def ended():
            rows = self.server.sql(ANSWERS, profile)
            return len(rows) > before and rows[-1]["status"] not in ("queued", "streaming") and rows[-1]
        return self.until(ended, what=f"an answer to {text!r}")
