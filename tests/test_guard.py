"""Who is let in, what is served, and what becomes of input that no browser of ours would send.

The guard's table, row by row, over plain HTTP and the socket's handshake: no web page that a person
happens to visit may read or change anything, and nothing that comes in may break the app.
"""
import itertools
import json
import os
import re
import socket
import stat
from urllib.parse import quote, urlsplit

import pytest
from conftest import Server
from fake_ollama import FakeOllama
from websockets.exceptions import InvalidStatus
from wire import FORM, Chat, everything, send, soup

LETTERS = itertools.count(1)


@pytest.fixture(scope="module")
def fake():
    with FakeOllama() as fake:
        yield fake


@pytest.fixture(scope="module")
def server(fake):
    server = Server({"OLLAMA_HOST": fake.url}).start()
    send(server, "POST", "/todo", "title=Milk", **FORM)
    with Chat(server) as chat:
        chat.ask("Hello")
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def report(server):
    """What the shared server printed belongs to the report of every test."""
    Server.known.append(server)


@pytest.fixture(scope="module")
def address(server):
    """A socket's host, as a browser would write it."""
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def unchanged(server):
    """For tests after which everything has to be as it was; no traceback either."""
    before, printed = everything(server), len(server.out())
    yield
    assert everything(server) == before
    assert "Traceback" not in server.out()[printed:]


def handshake(server, query="", **headers):
    """The status with which a socket is answered: 101, or a refusal before it is accepted."""
    return send(server, "GET", f"/ws{query}", upgrade="websocket", connection="Upgrade", sec_websocket_version="13",
                sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==", **headers).status


def refused(answer):
    """Refused in a sentence, with nothing of the app in it."""
    assert "Traceback" not in answer.text
    assert "Milk" not in answer.text
    return answer.status


# ---- Host: a page of another site that has pointed its name at this machine (DNS rebinding)

GOOD_HOSTS = ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost"]
BAD_HOSTS = ["evil.example:{port}", "evil.example", "localhost.evil.example:{port}", "127.0.0.1.evil.example:{port}",
             "127.0.0.1.nip.io", "evil.example@localhost:{port}", "evil.example#localhost", "localhost evil.example",
             "0.0.0.0:{port}",
             "127.0.0.2:{port}",
             "192.168.0.1:{port}", "[::2]:{port}", "[::1", "[]", "]", ":{port}", "null", "\xff"]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_this_machine_is_let_in(server, host):
    host = host.format(port=server.port)
    assert send(server, "GET", "/", host=host).status == 200
    assert handshake(server, host=host) == 101


@pytest.mark.parametrize("host", BAD_HOSTS)
@pytest.mark.parametrize("how", ["GET", "POST", "socket", "file"])
def test_another_host_is_refused(server, unchanged, host, how):
    host = host.format(port=server.port)
    if how == "socket":
        assert handshake(server, host=host) in (400, 403)
    else:
        path = {"GET": "/", "POST": "/toggle/1", "file": "/static/app.js"}[how]
        assert refused(send(server, "POST" if how == "POST" else "GET", path, host=host)) in (400, 403)


def test_no_host_is_refused(server, unchanged):
    assert refused(send(server, "POST", "/toggle/1", host="")) in (400, 403)


# ---- Origin and Sec-Fetch-Site: a page of another site, or of another app on this machine

BAD_ORIGINS = ["http://evil.example", "https://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "http://localhost:{port}",
               "http://127.0.0.1:{port}.evil.example", "http://evil.example#127.0.0.1:{port}",
               "http://127.0.0.1:{port}@evil.example",
               "null", "", "file://", "127.0.0.1:{port}", "http://[", "http://[::1", "\xff"]


@pytest.mark.parametrize("origin", BAD_ORIGINS)
@pytest.mark.parametrize("how", ["GET", "POST", "socket"])
def test_another_origin_is_refused(server, unchanged, origin, how):
    """Another port of localhost is another app."""
    origin = origin.format(port=server.port)
    if how == "socket":
        assert handshake(server, origin=origin) == 403
    else:
        assert refused(send(server, how, "/toggle/1" if how == "POST" else "/", origin=origin)) == 403


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_its_own_page_is_let_in(server, host):
    host = host.format(port=server.port)
    assert send(server, "POST", "/toggle/1", host=host, origin=f"http://{host}", sec_fetch_site="same-origin").status == 200
    assert handshake(server, host=host, origin=f"http://{host}") == 101


def test_a_script_is_let_in(server):
    """It sends neither Origin nor Sec-Fetch-Site, which no browser can be made to leave out."""
    assert send(server, "POST", "/toggle/1").status == 200
    assert handshake(server) == 101


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense", ""])
@pytest.mark.parametrize("origin", [None, "http://{address}"], ids=["no origin", "own origin"])
def test_another_site_changes_nothing(server, unchanged, address, site, origin):
    more = {"origin": origin.format(address=address)} if origin else {}
    assert refused(send(server, "POST", "/toggle/1", sec_fetch_site=site, sec_fetch_mode="navigate", **more)) == 403
    assert handshake(server, sec_fetch_site=site, **more) == 403


@pytest.mark.parametrize("path", ["/", "/profile/1", "/static/app.js"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("mode", ["no-cors", "cors"])
def test_another_site_reads_nothing(server, path, site, mode):
    """An <img>, a <script> or a fetch of another page: it sends no Origin, but it tells its site."""
    assert refused(send(server, "GET", path, sec_fetch_site=site, sec_fetch_mode=mode)) == 403


@pytest.mark.parametrize("site", ["none", "same-origin", "cross-site"])
def test_a_link_may_be_followed(server, site):
    """Typed, bookmarked, or clicked in a page of notes elsewhere: the person goes there, the page does not."""
    answer = send(server, "GET", "/", sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="document")
    assert answer.status == 200


@pytest.mark.parametrize("dest", ["iframe", "frame", "embed", "object"])
def test_another_site_frames_nothing(server, dest):
    answer = send(server, "GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest=dest)
    assert answer.status == 403 or "frame-ancestors 'none'" in answer.headers["content-security-policy"]


# ---- changes by POST only

def addresses(server):
    """All that the page posts to."""
    html = soup(send(server, "GET", "/").text)
    return sorted({tag["hx-post"] for tag in html.select("[hx-post]")})


def test_a_get_changes_nothing(server, unchanged):
    """<img src=/delete?id=1> must not delete."""
    found = [*addresses(server), "/todo?title=x", "/toggle/1", "/profile?name=x"]
    assert len(found) > 8
    for path in found:
        for method in "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS":
            assert send(server, method, path).status in (404, 405), (method, path)


# ---- headers

PAGES = ["/", "/profile/1", "/static/app.css", "/static/app.js", "/static/icon.svg", "/nowhere", "/profile/99", "/static/x"]


def policy(answer):
    parts = (part.split() for part in answer.headers["content-security-policy"].split(";"))
    return {name: set(values) for name, *values in filter(None, parts)}


def hardened(answer):
    csp = policy(answer)
    assert csp["default-src"] == {"'self'"}
    assert csp["img-src"] == {"'self'", "data:"}
    assert csp["frame-ancestors"] == csp["base-uri"] == {"'none'"}
    assert csp["form-action"] == {"'self'"}
    assert not any("unsafe" in value or "*" in value or "http" in value for values in csp.values() for value in values)
    assert all(csp.get(name, {"'self'"}) <= {"'self'", "'none'"} for name in
               ("script-src", "style-src", "style-src-attr", "style-src-elem", "script-src-attr", "connect-src", "font-src",
                "object-src"))
    assert answer.headers["x-content-type-options"] == "nosniff"
    return True


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_hardened(server, path):
    assert hardened(send(server, "GET", path))
    assert hardened(send(server, "GET", path, accept="text/html"))


def test_every_refusal_is_hardened(server):
    assert hardened(send(server, "GET", "/", host="evil.example"))
    assert hardened(send(server, "GET", "/toggle/1"))
    assert hardened(send(server, "POST", "/todo", "title=", **FORM))
    assert hardened(send(server, "POST", "/todo", "x" * 2**21, **FORM))


@pytest.mark.parametrize("path", ["/", "/profile/99"])
def test_nothing_stands_inline(server, path):
    """The policy would stop it, and the app would be broken without a word."""
    html = soup(send(server, "GET", path, accept="text/html").text)
    assert not html.find_all("style")
    assert not [s for s in html.find_all("script") if not s.get("src") or s.get_text()]
    assert not [(tag.name, name) for tag in html.find_all(True) for name in tag.attrs
                if name in ("style", "srcdoc") or name.startswith(("on", "hx-on", "hx-vars", "hx-vals", "data-hx-on"))]


@pytest.mark.parametrize("tag", ["src", "href", "action", "hx-get", "hx-post", "ws-connect"])
def test_the_page_leads_nowhere_else(server, tag):
    html = soup(send(server, "GET", "/").text)
    found = [t[tag] for t in html.select(f"[{tag}]")]
    assert found
    assert not [url for url in found if urlsplit(url).scheme or urlsplit(url).netloc]


@pytest.mark.parametrize("header", ["server", "x-powered-by"])
def test_it_does_not_boast(server, header):
    assert header not in send(server, "GET", "/").headers


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1"])
def test_no_other_site_is_invited(server, origin):
    answer = send(server, "OPTIONS", "/todo", origin=origin, access_control_request_method="POST")
    assert answer.status in (403, 404, 405)
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


# ---- files

SECRETS = ["/server.py", "/server", "/requirements.txt", "/README.md", "/.git/config", "/.sesskey", "/data", "/data/",
           "/data/server.db", "/data/server.db-wal", "/data/server.key", "/tests/conftest.py", "/favicon.ico/../server.py",
           "/static",
           "/static/", "/static//",
           "/htmx", "/htmx/", "/htmx/hx-ws-2.min.js", "/etc/passwd"]
UP = ["../", "%2e%2e/", "..%2f", "%2e%2e%2f", ".%2e/", "%2e./", "..%5c", "%2e%2e%5c", "..%252f", "....//", "..;/",
      "%c0%ae%c0%ae/", "%ef%bc%8e%ef%bc%8e/"]
WANTED = ["server.py", "data/server.db", "data/server.key"]
CLIMBS = [f"{base}{up}{file}" for base in ("/", "/static/", "/htmx/", "/profile/") for up in UP for file in WANTED]
CLIMBS += [f"/static/{up * 8}etc/passwd" for up in UP]
ODD = ["/static/%00", "/static/app.js%00", "/static/%00/app.js", "/static/%2fetc/passwd", "/static//etc/passwd",
       "/static/" + "x" * 5000, "/static/" + "a/" * 3000, "/static/%ff", "/static/%0a", "/htmx/%00", "/htmx/..%2f..%2fhtmx.js",
       "/htmx/" + "x" * 5000,
       "/%00", "/%ff", "//", "//evil.example/", "/profile/%00",
       "/static/.", "/static/..", "/static/./app.js/..", "/static/CON"]


@pytest.mark.parametrize("path", SECRETS + ODD)
def test_it_is_no_file(server, path):
    answer = send(server, "GET", path)
    assert answer.status in (400, 404, 405) or answer.headers["location"].endswith(f"{path}/")
    assert refused(answer) and "import" not in answer.text


def test_nobody_climbs_out(server):
    """By no spelling of "..", from no folder; one test for all, since there are many."""
    assert [(path, answer.status) for path in CLIMBS if (answer := send(server, "GET", path)).status not in (400, 404)] == []


def test_a_link_out_of_static_is_not_followed(server, app, fake):
    """static/ is a folder of files for all to see; what merely points out of it is not meant to be."""
    mine = app(env={"OLLAMA_HOST": fake.url}, start=False)
    static = mine.dir / "static"
    files = {file.name: file.read_bytes() for file in static.iterdir()}
    static.unlink()
    static.mkdir()
    for name, data in files.items():
        (static / name).write_bytes(data)
    (static / "leak.py").symlink_to(mine.file)
    mine.start()
    assert send(mine, "GET", "/static/app.js").status == 200
    assert send(mine, "GET", "/static/leak.py").status == 404


@pytest.mark.parametrize(("path", "kind"),
                         [("/static/app.css", "text/css"), ("/static/app.js", "javascript"), ("/static/icon.svg", "image/svg")])
def test_its_own_files_are_served(server, path, kind):
    answer = send(server, "GET", path)
    assert answer.status == 200
    assert kind in answer.headers["content-type"]
    assert len(answer.body) > 100


def test_every_file_of_the_page_is_there(server):
    html = soup(send(server, "GET", "/").text)
    files = [tag.get("src") or tag.get("href") for tag in html.select("script, link")]
    assert len(files) >= 4                    # ours, htmx and its socket extension
    assert {send(server, "GET", file).status for file in files} == {200}
    types = {send(server, "GET", tag["src"]).headers["content-type"].split(";")[0] for tag in html.select("script")}
    assert types <= {"text/javascript", "application/javascript"}


# ---- the key

def test_the_key_is_private(app, fake):
    """It signs the cookies: readable by its owner alone, under data/, whatever the umask; and it stays."""
    old = os.umask(0)
    try:
        server = app(env={"OLLAMA_HOST": fake.url})
    finally:
        os.umask(old)
    keys = [f for f in server.top.rglob("*") if re.search("key", f.name)]
    assert [f.parent for f in keys] == [server.dir / "data"]
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    key = keys[0].read_bytes()
    assert len(key) >= 32
    server.restart()
    assert keys[0].read_bytes() == key
    assert list(server.cwd.iterdir()) == []


def test_an_empty_key_is_made_anew(app, fake):
    """What a kill -9 between making the file and writing it leaves. An empty key can be guessed."""
    server = app(env={"OLLAMA_HOST": fake.url}, start=False)
    key = server.dir / "data" / "server.key"
    key.parent.mkdir()
    key.touch()
    server.start()
    assert len(key.read_bytes()) >= 32


# ---- another address wants the token

@pytest.fixture(scope="module")
def guarded(fake):
    """The app on all interfaces, with a token such as `openssl rand -base64 12` gives."""
    server = Server({"OLLAMA_HOST": fake.url, "HOST": "0.0.0.0", "TOKEN": "p+ss/w&rd=="})
    yield server.start()
    server.remove()


@pytest.fixture
def link(guarded):
    """The printed link's path."""
    assert guarded.link
    at = urlsplit(guarded.link)
    return f"{at.path}?{at.query}"


def token_cookie(server, link):
    answer = send(server, "GET", link)
    return "; ".join(c.split(";")[0] for c in answer.headers.get_all("set-cookie") or [])


def test_a_token_is_made_and_printed(app, fake):
    """Another one at each start, and long enough not to be guessed."""
    server = app(env={"OLLAMA_HOST": fake.url, "HOST": "0.0.0.0"})
    server.restart()
    tokens = re.findall(r"token=([\w%.~-]+)", server.out())
    assert len(set(tokens)) == 2
    assert min(map(len, tokens)) >= 20


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "192.168.0.7:{port}", "evil.example"])
@pytest.mark.parametrize("path", ["/", "/profile/1", "/static/app.js", "/?token=", "/?token=wrong", "/?token=%ff%00",
                                  "/?token=p%2Bss"])
def test_without_the_token_nothing_is_read(guarded, host, path):
    assert refused(send(guarded, "GET", path, host=host.format(port=guarded.port))) in (401, 403)


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "},
                                    {"authorization": "Bearer"}, {"authorization": "\xff"},
                                    {"authorization": "Basic cCtzcw=="}, {"cookie": "chatq_token=wrong"},
                                    {"cookie": "chatq_token="}, {"cookie": "\xff=;=;"}])
def test_without_the_token_nothing_is_changed(guarded, header):
    before = everything(guarded)
    assert refused(send(guarded, "POST", "/todo", "title=x", **FORM, **header)) in (401, 403)
    assert handshake(guarded, **header) in (401, 403)
    assert everything(guarded) == before


def test_the_link_lets_in(guarded, link):
    """The token leaves the address at once (and so the history), and a cookie stands in for it."""
    answer = send(guarded, "GET", link)
    assert answer.status in (302, 303, 307)
    assert "token" not in answer.headers["location"]
    cookie = token_cookie(guarded, link)
    assert cookie
    assert send(guarded, "GET", answer.headers["location"], cookie=cookie).status == 200
    assert send(guarded, "POST", "/todo", "title=x", cookie=cookie, **FORM).status == 200
    assert handshake(guarded, cookie=cookie) == 101
    for header in answer.headers.get_all("set-cookie"):
        assert "httponly" in header.lower()
        assert re.search("samesite=(lax|strict)", header.lower())


def test_the_link_of_any_page_lets_in(guarded, link):
    answer = send(guarded, "GET", "/profile/1?" + urlsplit(link).query)
    assert answer.headers["location"].startswith("/profile/1")


def test_the_link_keeps_what_else_stands_in_it(guarded, link):
    """A search hit's link, say, with the token put behind it."""
    answer = send(guarded, "GET", "/profile/1?show=todo-1&" + urlsplit(link).query)
    assert answer.headers["location"] == "/profile/1?show=todo-1"


@pytest.mark.parametrize("path", ["//evil.example/", "//evil.example/%2f..", "/%5cevil.example", "/\\evil.example"])
def test_the_link_leads_nowhere_else(guarded, link, path):
    """A link of this app that ends on another site would be a gift to whoever fishes for passwords."""
    answer = send(guarded, "GET", path + "?" + urlsplit(link).query)
    location = answer.headers.get("location", "/")
    assert re.match(r"/(?![/\\])", location), location


def test_a_script_has_it_in_a_header(guarded):
    bearer = f"Bearer {guarded.env['TOKEN']}"
    assert send(guarded, "GET", "/", authorization=bearer).status == 200
    assert send(guarded, "POST", "/todo", "title=x", authorization=bearer, **FORM).status == 200
    assert handshake(guarded, authorization=bearer) == 101


def test_the_token_does_not_excuse_another_site(guarded, link):
    """With the cookie in the browser, the person's other tabs are as far away as ever."""
    cookie = token_cookie(guarded, link)
    before = everything(guarded)
    for header in {"origin": "http://evil.example"}, {"sec_fetch_site": "cross-site"}, {"origin": "null"}:
        assert send(guarded, "POST", "/todo", "title=x", cookie=cookie, **FORM, **header).status == 403
        assert handshake(guarded, cookie=cookie, **header) == 403
    assert everything(guarded) == before


def test_a_refusal_does_not_tell_the_token(guarded):
    answer = send(guarded, "GET", "/")
    assert guarded.env["TOKEN"] not in answer.text + str(answer.headers)
    assert not answer.headers.get_all("set-cookie")


def test_a_token_may_be_wanted_here_too(app, fake):
    """TOKEN on the default address: others who use this machine are kept out."""
    server = app(env={"OLLAMA_HOST": fake.url, "TOKEN": "mine"})
    assert send(server, "GET", "/").status in (401, 403)
    assert send(server, "GET", "/", authorization="Bearer mine").status == 200
    assert handshake(server) in (401, 403)
    assert "token=mine" in server.link


# ---- too much

MULTIPART = "multipart/form-data; boundary=x"
STARTS = {FORM["content_type"]: b"title=", MULTIPART: b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\n',
          "application/json": b'{"title": "', "text/plain": b""}


@pytest.mark.parametrize("path", ["/todo", "/toggle/1", "/profile", "/nowhere"])
@pytest.mark.parametrize("body", ["whole", "chunked"])
@pytest.mark.parametrize("kind", STARTS)
def test_a_body_of_more_than_1_mb_is_refused(server, unchanged, path, body, kind):
    """By its announced length, and where it announces none, as soon as it is too long."""
    if body == "chunked" and kind == MULTIPART:
        pytest.skip("the framework reads no multipart body without a length")
    pieces = [STARTS[kind], *[b"x" * 2**16] * 20]
    answer = send(server, "POST", path, b"".join(pieces) if body == "whole" else iter(pieces), content_type=kind)
    assert answer.status == 413 or (path == "/nowhere" and answer.status in (404, 405))
    assert answer.text.strip()


def test_a_body_that_announces_more_is_not_waited_for(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        sock.sendall(b"POST /todo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 413"


def test_a_body_of_less_than_1_mb_is_read(server, unchanged):
    """And then the title is too long, which is another matter."""
    assert send(server, "POST", "/todo", b"title=" + b"x" * (2**20 - 100), **FORM).status == 400


# ---- bad input over HTTP

def part(name, value, more=""):
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n--x--\r\n'.encode("latin-1")


BAD_TODOS = {
    "nothing": b"",
    "no title": b"x=1",
    "empty": b"title=",
    "white space": b"title=%20%09%0a%C2%A0%E3%80%80",
    "too long": b"title=" + b"x" * 501,
    "too long in parrots": b"title=" + quote("🦜" * 501).encode(),
    "a NUL": b"title=a%00b",
    "a raw NUL": b"title=a\0b",
    "NUL alone": b"title=%00",
    "invalid UTF-8": b"title=a%ff%feb",
    "half a character": b"title=%e2%82",
    "overlong UTF-8": b"title=%c0%af",
    "a surrogate": b"title=%ed%a0%80",
    "raw invalid UTF-8": b"title=\xff\xfe",
    "no form": b"\xff\0\xfe&&==%%",
    "an unknown profile": b"title=x&profile=99999",
    "a word for a profile": b"title=x&profile=abc",
    "a fraction for a profile": b"title=x&profile=1.5",
    "profile 0": b"title=x&profile=0",
    "profile -1": b"title=x&profile=-1",
    "a profile beyond SQLite": b"title=x&profile=9223372036854775808",
    "a profile of 5000 digits": b"title=x&profile=" + b"9" * 5000,
    "a profile with NUL": b"title=x&profile=1%00",
}


@pytest.mark.parametrize("name", BAD_TODOS)
def test_a_bad_todo_is_refused_in_a_sentence(server, unchanged, name):
    answer = send(server, "POST", "/todo", BAD_TODOS[name], **FORM)
    assert 400 <= answer.status < 500
    assert 0 < len(answer.text.strip()) < 500


BAD_BODIES = {
    "broken multipart": (b"--x\r\nnonsense", MULTIPART),
    "multipart without an end": (part("title", "x")[:-8], MULTIPART),
    "no boundary": (part("title", "x"), "multipart/form-data"),
    "a file for a title": (part("title", "x", '; filename="x.txt"'), MULTIPART),
    "a NUL in multipart": (part("title", "a\0b"), MULTIPART),
    "2000 fields": (b"&".join(b"a%d=1" % n for n in range(2000)), FORM["content_type"]),
    "text": (b"title=x", "text/plain"),
    "an odd type": (b"title=x", "\xff"),
    "no type": (b"title=x", ""),
} | {f"JSON {body[:20]!r}": (body, "application/json") for body in (
    b'{"title": ', b"null", b"[1]", b"5", b'"x"', b'{"title": 5}', b'{"title": {"a": 1}}', b'{"title": null}',
    b'{"title": "\\ud800"}', b'{"title": "\xff"}', b"[" * 100_000)}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_in_a_sentence(server, unchanged, name):
    body, kind = BAD_BODIES[name]
    answer = send(server, "POST", "/todo", body, content_type=kind)
    assert 400 <= answer.status < 500
    assert 0 < len(answer.text.strip()) < 500


@pytest.mark.parametrize("name", [b"", b" %09%C2%A0", b"x" * 501, b"a%00b", b"%ff"])
def test_a_bad_name_is_refused_in_a_sentence(server, unchanged, name):
    answer = send(server, "POST", "/profile", b"name=" + name, **FORM)
    assert 400 <= answer.status < 500
    assert 0 < len(answer.text.strip()) < 500


def test_a_form_is_utf_8(server):
    """`curl -d title=Grüße` sends the bytes as they are; a browser writes them as %C3%BC."""
    for body in "title=Grüße", "title=Gr%C3%BC%C3%9Fe", part("title", "Grüße".encode().decode("latin-1")):
        kind = MULTIPART if isinstance(body, bytes) else FORM["content_type"]
        assert "Grüße" in send(server, "POST", "/todo", body if isinstance(body, bytes) else body.encode(),
                               content_type=kind).text


def test_two_titles_are_one_or_none(server):
    """A field given twice must not end in half a list of letters."""
    answer = send(server, "POST", "/todo", "title=first&title=second", **FORM)
    assert answer.status < 500
    assert server.sql("select title from todo order by id desc")[0]["title"] in ("Milk", "first", "second")


@pytest.mark.parametrize("bad", ["99999", "0", "-1", "x", "1.5", "1e3", "%00", "%ff", "1%00", "9223372036854775808", "9" * 30,
                                 "9" * 5000, "", "1;2", "null"])
def test_a_bad_id_is_refused_wherever_it_is_sent(server, unchanged, bad):
    """Every address in the page that has a number in it, with this in the number's place."""
    html = soup(send(server, "GET", "/").text)
    kinds = ("POST", "hx-post"), ("GET", "hx-get"), ("GET", "href"), ("GET", "data-text")
    paths = ((method, element[name]) for method, name in kinds for element in html.select(f"[{name}]"))
    found = {(method, re.sub(r"(?<=[/=])\d+", bad, path)) for method, path in paths
             if re.search(r"[/=]\d", path) and "?v=" not in path}
    assert len(found) > 8
    wrong = [(method, path[:60], answer.status) for method, path in sorted(found)
             if not 400 <= (answer := send(server, method, path)).status < 500 or "Traceback" in answer.text]
    assert wrong == []


@pytest.mark.parametrize("kind", ["message", "sqlite_master", "", "%00", "todo%27--", "__class__"])
def test_an_unknown_list_is_refused(server, unchanged, kind):
    """Where an address names a list, no other table can be put in its place."""
    html = soup(send(server, "GET", "/").text)
    found = {("POST" if "hx-post" in t.attrs else "GET", t.get("hx-post") or t.get("hx-get"))
             for t in html.select("#todo-list [hx-post], #todo-list [hx-get]")}
    named = {(method, path.replace("todo", kind)) for method, path in found if "todo" in path}
    for method, path in named:
        assert 400 <= send(server, method, path).status < 500, path


@pytest.mark.parametrize("query", ["?q=%ff", "?q=%00", "?q=a&q=b", "?q[]=1", "?%ff=%ff",
                                   "?" + "&".join(f"a{n}=1" for n in range(5000)), "?q=" + "x" * 60_000])
def test_an_odd_query_is_no_accident(server, unchanged, query):
    search = soup(send(server, "GET", "/").text).select_one("#search")["hx-get"]
    for path in "/", "/profile/1", search:
        assert send(server, "GET", path + query).status < 500


@pytest.mark.parametrize("cookie", ["chatq_session=nonsense", "chatq_session=", "\xff=\xff", "=", ";;;",
                                    "chatq_session=eyJwcm9maWxlIjogIngifQ==.x.y", "a" * 8000])
def test_an_odd_cookie_is_no_cookie(server, unchanged, cookie):
    assert send(server, "GET", "/", cookie=cookie).status in (200, 431)


# ---- bad input over the socket

BAD_FRAMES = {
    "nothing": "",
    "no JSON": "hello",
    "half an object": '{"msg": ',
    "an array": "[1]",
    "an empty array": "[]",
    "null": "null",
    "a number": "5",
    "a text": '"hello"',
    "true": "true",
    "NaN": "NaN",
    "no message": "{}",
    "an unknown key": '{"nonsense": "hello"}',
    "a number for a message": '{"msg": 5}',
    "null for a message": '{"msg": null}',
    "a list for a message": '{"msg": ["a", "b"]}',
    "an object for a message": '{"msg": {"a": 1}}',
    "true for a message": '{"msg": true}',
    "an empty message": '{"msg": ""}',
    "white space": '{"msg": " \\n\\t\\u00a0\\u3000"}',
    "too long": json.dumps({"msg": "x" * 32_001}),
    "a NUL": '{"msg": "a\\u0000b"}',
    "a raw NUL": '{"msg": "a\0b"}',
    "half a surrogate pair": '{"msg": "a\\ud83eb"}',
    "deep": "[" * 100_000,
    "deep inside": '{"msg": ' + "[" * 100_000,
    "10,000 digits": f'{{"msg": {"9" * 10_000}}}',
    "a key twice": '{"msg": "a", "msg": null}',
    "headers that are none": '{"msg": "", "HEADERS": 5}',
    "bytes": b"\xff\xfe\x00",
    "no bytes": b"",
    "JSON null in bytes": b"null",
    "bytes in invalid UTF-8": b'{"msg": "\xff"}',
    "UTF-16": '{"msg": ""}'.encode("utf-16"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_gets_a_message(server, name):
    """It stores nothing, it tells the person, and the socket goes on working: the next prompt is answered."""
    before, printed = everything(server), server.out()
    with Chat(server) as chat:
        chat.ws.send(BAD_FRAMES[name])
        said = soup(chat.hear(r'<div[^>]*id="toast".*?</div>')[0]).get_text()
        assert len(said) > 5
        assert not re.search("Traceback|Error|NoneType|expected", said)
        assert everything(server) == before
        good = f"Good {next(LETTERS)}"
        assert chat.ask(good)["status"] == "done"
    assert server.out() == printed


def test_many_bad_frames_at_once(server):
    before = everything(server)
    with Chat(server) as chat:
        for frame in BAD_FRAMES.values():
            chat.ws.send(frame)
        for _ in BAD_FRAMES:
            chat.hear('id="toast"')
        assert everything(server) == before
        assert chat.ask("Still there?")["status"] == "done"


def test_a_message_at_the_limit_is_taken(server):
    with Chat(server) as chat:
        text = "🦜" * 32_000
        assert chat.ask(text)["status"] == "done"
    assert server.sql("select content from message where role = 'user' order by id desc")[0]["content"] == text


def test_a_huge_frame_ends_one_socket_at_most(server):
    before = everything(server)
    with Chat(server) as chat:
        chat.ws.send(json.dumps({"msg": "x" * 2**21}))
        with Chat(server) as other:
            assert other.ask("Still there?")["status"] == "done"
    assert not [row for row in everything(server) if row not in before and "xxx" in str(row)]


@pytest.mark.parametrize("profile", ["99999", "0", "-1", "x", "1.5", "%00", "%ff", "9223372036854775808", "9" * 30, "9" * 5000])
def test_a_socket_of_an_unknown_profile_stores_nothing(server, profile):
    """Refused, or told so: a prompt must not land in somebody else's chat."""
    before = everything(server)
    try:
        with Chat(server, f"?profile={profile}") as chat:
            chat.say("For nobody")
            chat.hear('id="toast"')
    except InvalidStatus as refused:
        assert 400 <= refused.response.status_code < 500
    assert everything(server) == before


@pytest.mark.parametrize("query", ["?profile=1&seen=x&last=y&tab=%00", "?profile=1&seen=-1&last=" + "9" * 30,
                                   "?profile=1&seen=" + "9" * 5000, "?seen=%ff", "?" + "a" * 8000])
def test_a_socket_with_an_odd_query_works(server, query):
    with Chat(server, query) as chat:
        assert chat.ask("Hello")["status"] == "done"


def test_a_socket_that_vanishes_disturbs_nobody(server):
    """A tab whose laptop was closed: no goodbye, just gone, with an answer on its way."""
    printed = len(server.out())
    with Chat(server) as other:
        gone = Chat(server).__enter__()
        gone.say("Going")
        gone.ws.socket.close()
        assert other.ask("Still there?")["status"] == "done"
    assert "Traceback" not in server.out()[printed:]


@pytest.mark.parametrize("path", ["/ws/", "/ws2", "/", "/static/app.js", "/todo"])
def test_there_is_one_socket(server, path):
    try:
        with Chat(server, "/../" + path.lstrip("/")):
            raise AssertionError("accepted")
    except InvalidStatus as refused:
        assert refused.response.status_code in (403, 404)
