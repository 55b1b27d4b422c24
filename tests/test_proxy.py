"""A few colleagues: the README's Caddyfile, run by a real Caddy in front of the app with its token."""
import contextlib
import os
import re
import shutil
import ssl
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from conftest import Server, ask, free_port, wait_done, until
from fake_ollama import FakeOllama, Script
from playwright.sync_api import expect
from readme import TEXT, block

pytestmark = pytest.mark.skipif(not shutil.which("caddy"), reason="needs caddy: apt-get install --no-install-recommends caddy")
TOKEN = re.search(r"`TOKEN=([^`]+)`", TEXT)[1]
NAME = block("reverse_proxy").split()[0]
# Neither root rights nor a change to this machine: no port 80, no certificate for its trust store.
ASIDE = """{
	admin off
	skip_install_trust
	auto_https disable_redirects
	default_bind 127.0.0.1
}
"""


@pytest.fixture(scope="module")
def proxied():
    """The app, and Caddy in front of it; at .port is Caddy, which answers to the README's name and to localhost."""
    with FakeOllama() as fake:
        server, port = Server({"OLLAMA_HOST": fake.url, "TOKEN": TOKEN}), free_port()
        file, home = server.top / "Caddyfile", server.top / "caddy"
        given = block("reverse_proxy").replace("127.0.0.1:5001", f"127.0.0.1:{server.port}")
        file.write_text(ASIDE + given.replace(NAME + " {", f"{NAME}:{port}, localhost:{port} {{\n\ttls internal"))
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        server.start()
        caddy = subprocess.Popen(["caddy", "run", "--adapter", "caddyfile", "--config", file], env=env, text=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = []
        for line in caddy.stderr:
            said.append(line)
            if "serving initial configuration" in line:
                break
        else:
            pytest.fail("Caddy did not start:\n" + "".join(said))
        rest = threading.Thread(target=caddy.stderr.read, daemon=True)          # so that it never waits for a reader
        rest.start()
        url = f"https://localhost:{port}"

        def shakes_hands():                       # its certificates may not be made yet
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(url, verify=False, trust_env=False)
        until(shakes_hands, 20, "a handshake")
        yield SimpleNamespace(server=server, fake=fake, port=port, url=url, root=home / "caddy/pki/authorities/local/root.crt")
        caddy.terminate()
        caddy.wait(10)
        rest.join(5)
        caddy.stderr.close()
        server.remove()


@pytest.fixture
def proxy(proxied):
    Server.known.extend([proxied.server, SimpleNamespace(port=proxied.port, file=Path("caddy"), out=str)])
    return proxied


@pytest.fixture
def trust(proxy):
    """What a colleague's machine does: it knows Caddy's root certificate."""
    return ssl.create_default_context(cafile=proxy.root)


@pytest.fixture
def web(proxy, trust):
    with httpx.Client(base_url=proxy.url, verify=trust, trust_env=False, timeout=10) as client:
        yield client


KNOCK = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
         "Sec-WebSocket-Key": "QUFBQUFBQUFBQUFBQUFBQQ=="}


def handshake(web, **headers):
    """The status that a socket gets. By hand: two threads, as `websockets` has them, must not share a TLS connection."""
    with web.stream("GET", "/ws?profile=1", headers=KNOCK | headers) as answer:
        return answer.status_code


def test_the_page_and_the_chat_for_a_colleague(proxy, open_page):
    """By the link with the token once, then without it: the page, a todo, an answer over wss, a second tab."""
    page, sockets = open_page(ignore_https_errors=True), []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(f"{proxy.url}/?token={TOKEN}")
    assert page.url == f"{proxy.url}/", "the token leaves the address"
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    token = cookies["chatq_token"]
    assert (token["value"], token["secure"], token["httpOnly"], token["sameSite"]) == (TOKEN, True, True, "Strict")
    page.goto(f"{proxy.url}/profile/1")

    page.get_by_label("What needs to be done?").fill("Milk")
    page.get_by_label("What needs to be done?").press("Enter")
    page.get_by_role("checkbox", name="Milk", exact=True).check()
    expect(page.locator("#todo-count")).to_have_text("0 items left")

    proxy.fake.script(Script(tokens=["Well", " then", "."], gate=True))
    ask(page, "Hi")
    proxy.fake.wait_chat()
    proxy.fake.release(1)
    content = page.locator("[data-role=assistant] .content")
    expect(content).to_have_text("Well")
    other = page.context.new_page()
    other.goto(proxy.url)
    expect(other.locator("[data-role=assistant] .content")).to_have_text("Well")
    proxy.fake.release()
    wait_done(page)
    expect(other.locator("[data-role=assistant] .content")).to_have_text("Well then.")
    assert sockets and all(url.startswith(f"wss://localhost:{proxy.port}/ws?") for url in sockets)


def test_the_app_answers_to_the_proxys_name(proxy, web):
    """And to whatever name it is given: the token is what counts then."""
    name = f"{NAME}:{proxy.port}"
    page = web.get(f"/?token={TOKEN}", headers={"Host": name}, extensions={"sni_hostname": NAME})
    assert page.status_code == 303 and "Secure" in page.headers["set-cookie"] and TOKEN not in page.headers["location"]
    secret = {"Host": name, "Authorization": f"Bearer {TOKEN}"}
    assert web.get("/", headers=secret, extensions={"sni_hostname": NAME}).status_code == 200
    own = secret | {"Origin": f"https://{name}"}
    assert web.post("/todo", data={"title": "Bread"}, headers=own, extensions={"sni_hostname": NAME}).status_code == 200


@pytest.mark.parametrize("token", ["", "?token=wrong"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/profile/1"), ("GET", "/static/app.js"),
                                               ("POST", "/todo"), ("POST", "/chatq")])
def test_without_the_token_there_is_nothing(proxy, web, method, path, token):
    before = [len(proxy.server.sql(f"select * from {table}")) for table in ("todo", "message")]
    answer = web.request(method, path + token, data={"title": "Mine", "text": "Mine"} if method == "POST" else None)
    assert answer.status_code == 401 and "token" in answer.text
    assert "set-cookie" not in answer.headers and TOKEN not in answer.text
    assert [len(proxy.server.sql(f"select * from {table}")) for table in ("todo", "message")] == before


def test_with_the_token_a_script_is_heard(proxy, web):
    answer = web.post("/chatq", data={"text": "From a script"}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert proxy.server.sql("select content from message where id = ?", int(answer.text))[0][0] == "From a script"


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:{app}", "https://localhost", "null"])
def test_another_site_is_refused(proxy, web, origin):
    """Though the browser sends the cookie along: a form and a socket."""
    origin = origin.format(app=proxy.server.port)
    web.cookies.set("chatq_token", TOKEN)
    assert web.post("/todo", data={"title": "Theirs"}, headers={"Origin": origin}).status_code == 403
    assert not proxy.server.sql("select * from todo where title = 'Theirs'")
    assert handshake(web, Origin=origin) == 403
    assert handshake(web, Origin=proxy.url) == 101


def test_a_socket_without_the_token(proxy, web):
    assert handshake(web, Origin=proxy.url) == 403
