"""The README is true: what it says to type does what it says, and what it names is there.

What it says about forks is tried in test_forks.py, the proxy in test_proxy.py, Nix in test_nix.py.
"""
import ast
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib

import httpx
import pytest
from conftest import ROOT, Server, until
from fake_ollama import Script
from readme import APP, BANNERS, BLOCKS, ENGINE, SOURCE, TEXT, api, block, forked, names, pasted, rows
from wire import Chat, soup

TOLD = "http://localhost:5001"                              # where the README has the app
HERE = ["python3 -m venv", "tests/run", "cp server.py mytool.py", "cut()", "curl", "import httpx", "import io", "import sqlite3",
        "--job", "--backup", "--restore", "tests/bench.py", "VOICE = "]
IMPORTS = ["from server import *", "class Task:", ".overdue", "def actions", "def report", "def save_links", "def review",
           "SIDE.remove", "git merge-file"]                          # in test_imports.py
ELSEWHERE = ["nix develop", "class Todo:", "def draw_a_bar", "def who_am_i", "reverse_proxy"]
STARTS = ".venv/bin/python mytool.py\n"


@pytest.fixture(scope="module")
def shared():
    """An app for the tests that change little."""
    server = venv(Server()).start()
    yield server
    server.remove()


@pytest.fixture
def shell(shared):
    Server.known.append(shared)
    return shared


def venv(server):
    """The folder .venv that the README's commands speak of."""
    (server.dir / ".venv").symlink_to(sys.prefix)
    return server


def sh(server, command, check=True, **env):
    """What a person types, in the app's folder."""
    return subprocess.run(["bash", "-euc", command], cwd=server.dir, env=server.env | env, timeout=20, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL, check=check)


@contextlib.contextmanager
def first_line(server, command):
    """The line that an app prints which is started like this; it ends with the block."""
    with subprocess.Popen(["bash", "-euc", command], cwd=server.dir, env=server.env, text=True, start_new_session=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as proc:
        try:
            yield proc.stdout.readline()
        finally:
            os.killpg(proc.pid, signal.SIGKILL)


def messages(server):
    return server.sql("select * from message where role = 'job' and not deleted order by id")


def add(server, title, **more):
    return httpx.post(f"{server.url}/todo", data={"title": title, **more}, trust_env=False).raise_for_status().text


def test_every_block_has_its_test():
    """Once, and not more than once."""
    told = [block(words) for words in HERE + IMPORTS + ELSEWHERE] + [STARTS]
    assert sorted(told) == sorted(BLOCKS)


def test_what_people_need_first_is_short():
    """Under 10 kB, in this order; behind it the reference."""
    first, reference = re.split(r"(?m)^# Reference\n", TEXT)
    assert len(first.encode()) < 10_000
    assert re.findall(r"(?m)^## (.*)", first) == [
        "Run it", "What you get", "Make it yours", "Talk to it from a script or a notebook", "Keep your data",
        "Outgrowing the laptop"]
    assert "Settings" in re.findall(r"(?m)^## (.*)", reference)
    assert "\u2014" not in TEXT and "\u2013" not in TEXT


# ---- Run it

def test_the_first_line_brings_what_the_tests_try():
    line = block("python3 -m venv")
    pins = re.findall(r"[\w-]+==[\w.]+", line)
    tried = (ROOT / "tests/requirements.txt").read_text() + (ROOT / "tests/run").read_text()
    assert len(pins) == 2
    for pin in pins:
        assert re.search(rf"(?m)^(model=)?{re.escape(pin)}\s", tried), pin
    assert "-qr requirements.txt" in line and (ROOT / "requirements.txt").exists()


def test_the_first_line_ends_in_an_app_with_a_model_built_in(app):
    server = venv(app(builtin=True, start=False))
    with first_line(server, block("python3 -m venv").split(" && ")[-1]) as line:
        assert f"http://localhost:{server.port}/" in line and str(server.db) in line
        assert "none" not in line.split("model:")[1], "xllamacpp and the model are in the tests' environment"


def test_a_fork_by_import_is_an_app_of_its_own(app):
    """Saved beside server.py, and started as the README says."""
    server = venv(app(start=False))
    (server.dir / "mytool.py").write_text(forked())
    with first_line(server, STARTS) as line:
        assert line.startswith("Crawl desk: ") and str(server.dir / "data/mytool.db") in line
        assert soup(httpx.get(server.url, trust_env=False).text).title.get_text() == "Crawl desk"


def test_a_copy_is_an_app_of_its_own(app):
    server = venv(app(start=False))
    with first_line(server, block("cp server.py mytool.py")) as line:
        assert line.startswith("mytool: ") and str(server.dir / "data/mytool.db") in line
        assert soup(httpx.get(server.url, trust_env=False).text).title.get_text() == "mytool"


def test_the_version_of_python():
    told = re.search(r"Python (3\.\d+) or newer", TEXT)[1]
    assert f'requires-python = ">={told}"' in SOURCE
    assert f"install Python {told} or newer" in (ROOT / "tests/run").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"] == f"py{told.replace('.', '')}"


def test_programs_of_the_tests():
    """They can be started; `tests/run` is what runs this."""
    for name in block("tests/run\n").split():
        assert os.access(ROOT / name, os.X_OK)
    python, bench = block("tests/bench.py").split()
    done = subprocess.run([ROOT / python, ROOT / bench, "--list"], capture_output=True, text=True, timeout=20)
    assert len(done.stderr.splitlines()) > 5 and "Traceback" not in done.stderr


# ---- Take out

OUT = rows("take out | delete")


def told_parts(row):
    """The names of the parts that a row of this table cuts."""
    return [command.removeprefix("cut ") for command in names(row[1])]


def test_parts_are_told_by_their_names():
    titles = [title.split(":")[0] for _, title in BANNERS]
    assert all(titles.count(part) == 1 for row in OUT for part in told_parts(row)) and len(OUT) == 3


@pytest.mark.parametrize("order", [list, reversed], ids=["down", "up"])
def test_parts_are_cut_in_any_order(shell, order):
    """A part is from its banner to the next one, whichever that is by now."""
    parts = list(order([part for row in OUT for part in told_parts(row)]))
    begin, *all_parts = re.split(r"(?m)^(?=# ---- \d+\. )", SOURCE)
    for n in range(1, len(parts) + 1):
        sh(shell, "cp server.py mytool.py\n" + block("cut()").splitlines()[0] + "".join(f"\ncut {part}" for part in parts[:n]))
        gone = tuple(f"{part}:" for part in parts[:n])
        left = begin + "".join(part for part in all_parts if not part.split(". ", 1)[1].startswith(gone))
        assert (shell.dir / "mytool.py").read_text() == left


def test_the_cut_that_is_shown_is_the_first_row(shell):
    sh(shell, "cp server.py mytool.py\n" + block("cut()"))
    left = set(re.findall(r"(?m)^# ---- \d+\. (\w+)", (shell.dir / "mytool.py").read_text()))
    assert {re.match(r"\w+", title)[0] for _, title in BANNERS} - left == {*told_parts(OUT[0])}


def test_what_is_pasted_stays(shell):
    """With a banner of its own, before the last part."""
    [banner] = re.findall(r"a banner\s+like `(# ---- .*?)`", TEXT)
    (shell.dir / "mytool.py").write_text(pasted(f"{banner}\n\nmine = 1\n"))
    sh(shell, block("cut()").splitlines()[0] + "\ncut Audit")
    assert f"{banner}\n\nmine = 1\n" in (shell.dir / "mytool.py").read_text()


# ---- Talk to it

def test_a_message_by_curl(shell):
    ident = sh(shell, block("curl").replace(TOLD, shell.url)).stdout
    row = messages(shell)[-1]
    assert (str(row["id"]), row["content"], row["status"]) == (ident.strip(), "The crawl is **done**", "done")
    page = soup(httpx.get(shell.url, trust_env=False).text)
    assert page.select_one(f"#msg-{ident} .content strong").get_text() == "done"


def test_a_message_that_grows(shell):
    """One message, with a bar while it is open; each step reaches an open page."""
    before, code = len(messages(shell)), block("import httpx").replace(TOLD, shell.url)
    opened, closed = code.rsplit("\n", 2)[:2]
    with Chat(shell) as chat:
        space = {}
        exec(opened, space)
        chat.hear(r"Crawled 4 of 4 sites")
        chat.hear(r'<progress value="100')
        assert messages(shell)[-1]["status"] == "streaming"
        exec(closed, space)
        chat.hear("Crawled 4 sites.*?data-status=\"done\"")
    assert [(r["content"], r["status"]) for r in messages(shell)[before:]] == [("Crawled 4 sites", "done")]
    assert messages(shell)[-1]["id"] == int(space["id"])


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_message_for_a_profile(shell, by):
    made = httpx.post(f"{shell.url}/profile", data={"name": f"Known by {by}"}, trust_env=False).text
    ident = re.search(r'id="profile-(\d+)"', made)[1]
    space = {}
    exec(block("import httpx").replace(TOLD, shell.url).split("\nid = ")[0], space)
    space["say"](text="For you", profile={"id": ident, "name": f"Known by {by}"}[by])
    assert messages(shell)[-1]["profile"] == int(ident)


def test_a_notebook_reads_the_tables(shell):
    add(shell, "Read me")
    done = sh(shell, '.venv/bin/python -c "$CODE"', CODE=block("import sqlite3"))
    assert "('Read me', 0)" in done.stdout


def test_a_figure_from_a_notebook(shared, shell):
    """The four lines, with a stand-in for matplotlib's figure."""
    png = (ROOT / "tests/pictures/light.png").read_bytes()
    figure = type("Figure", (), {"savefig": lambda self, file, format: file.write(png)})()
    exec(block("import io").replace(TOLD, shared.url), {"fig": figure, "httpx": httpx})
    assert "![" in messages(shared)[-1]["content"]


def test_a_notebook_as_a_job_in_python(shared, shell):
    shell_dir = shared.dir / "tests"
    shell_dir.mkdir()
    for name in "clicks.ipynb", "clicks.csv":
        (shell_dir / name).write_bytes((ROOT / "tests" / name).read_bytes())
    sh(shared, block("--job"))
    assert "@job" in (shared.dir / "clicks.py").read_text()


def test_words_from_the_event_loop(app):
    """`await chatq(...)`, and `chatq.open('job')` with send and finish, in a route."""
    line, opens, send, finish = (re.search(rf"`({code})`", TEXT)[1] for code in
                                 (r"await chatq\('.*?'\)", r"chat = chatq\.open\('job'\)",
                                  r"chat\.send\(\.\.\.\)", r"chat\.finish\(\)"))
    steps = line, opens, send.replace("...", "'one '"), send.replace("...", "'two'"), finish
    server = app(start=False)
    server.file.write_text(pasted("@app.post\nasync def crawl():\n" + "".join(f"    {step}\n" for step in steps)))
    httpx.post(f"{server.start().url}/crawl", trust_env=False).raise_for_status()
    told = [(row["content"], row["status"]) for row in server.sql("select * from message order by id")]
    assert told == [("Finished **the crawl**", "done"), ("one two", "done")]


def test_the_notebook_and_the_job_it_became(app):
    """The same table and the same last word for the same text."""
    cells = json.loads((ROOT / "tests/notebook.ipynb").read_text())["cells"]
    space, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), space)
    assert len([cell for cell in cells if cell["cell_type"] == "code"]) == 3 and "tests/notebook.ipynb" in TEXT
    server = app(start=False)
    (server.dir / "mytool.py").write_text(forked())
    server.file = server.dir / "mytool.py"
    data = {"text": space["text"], "most": space["most"]}
    httpx.post(f"{server.start().url}/run/count_words", data=data, trust_env=False).raise_for_status()
    row = until(lambda: next((r for r in messages(server) if r["status"] != "streaming"), None), what="an end of the job")
    assert row["status"] == "done"
    assert row["content"].split() == said.getvalue().split()
    assert "| search | 3 |" in row["content"]


# ---- Keep your data

def test_a_copy_and_the_way_back(app):
    """A copy while it runs, and back to it: what was there since is kept beside it."""
    server = venv(app())
    add(server, "Before")
    sh(server, block("--backup"))
    assert sh(server, block("--backup"), check=False).returncode == 1, "a copy never overwrites another one"
    add(server, "Since")
    refused = sh(server, block("--restore"), check=False)
    assert refused.returncode == 1 and "runs already" in refused.stderr
    server.stop()
    said = sh(server, block("--restore")).stdout
    [kept] = server.db.parent.glob("server-before-*.db")
    assert str(kept) in said
    server.start()
    assert [row["title"] for row in server.sql("select title from todo")] == ["Before"]
    server.stop()
    sh(server, block("--restore").replace("copy.db", str(kept)))
    assert [row["title"] for row in server.start().sql("select title from todo")] == ["Before", "Since"]


# ---- Names

def test_the_settings():
    """The table of environment variables is what the app reads, in its order."""
    told = [names(row[0])[0] for row in rows("name | meaning | default")]
    assert told == re.search(r"'([A-Z_ ]+)'\.split\(\)\}", SOURCE)[1].split()
    for setting in re.findall(r"(?m)^(\w+) = ", block("VOICE = ")):
        assert re.search(rf"(?m)^{setting} = ", SOURCE.split("# ---- 2. ")[0]), setting
    assert re.findall(r"`(\w+)`", re.search(r"The other accents are (.*?)\.", TEXT)[1]) == re.findall(
        r"(\w+)", re.search(r"(?m)^ACCENT = .*static/app\.css: (.*)$", SOURCE)[1].replace("indigo", ""))
    first, last = re.search(r"first free one from (\d+) to (\d+)", TEXT).groups()
    assert f"PORTS = range({first}, {int(last) + 1})" in SOURCE and TOLD.endswith(first)


def test_the_parts_are_the_banners_in_order():
    for half, code in ("engine", ENGINE), ("app", APP):
        told = [row[0] for row in rows(f"part of the {half} | what lives there")]
        assert told == re.findall(r"(?m)^# ---- \d+\. (\w+)", code)
    assert [int(number) for number, _ in BANNERS] == [*range(1, len(BANNERS) + 1)]


def test_the_names_an_app_uses():
    """The table is `__all__`: each name once, and no other."""
    told = [name for row in rows("name | what it is") for name in names(row[0])]
    assert sorted(told) == sorted(api())


@pytest.mark.parametrize(("head", "what"), [("name | what it does", "links"), ("method | what it does", "chat")])
def test_the_methods(head, what):
    """Those of a list and of a message are there, with the parameters that the README gives them."""
    classes = {node.name: node for node in ast.parse(SOURCE).body if isinstance(node, ast.ClassDef)}
    nodes = [classes[name] for name in {"links": ("Rows", "Listing"), "chat": ("Chatter",)}[what]]
    methods = {node.name: re.findall(r"\w+", ast.unparse(node.args)) for each in nodes for node in each.body
               if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    told = [names(row[0])[0] for row in rows(head)]
    for call in told:
        name, given = re.fullmatch(rf"{what}\.(\w+)(?:\((.*)\))?", call).groups()
        if given is None:
            assert f"self.{name}" in ast.unparse(nodes[0]), call
        else:
            assert {*re.findall(r"\w+", given.replace("**fields", ""))} <= {*methods[name]}, call
    assert len(told) == {"links": 9, "chat": 8}[what]


def test_the_files_are_there():
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', TEXT)
    local = {a or b for a, b in links if "://" not in a + b}
    prose = re.sub(r"(?ms)^```.*?^```$", "", TEXT)
    told = {name for name in names(prose) if re.fullmatch(r"(tests|static)/\S+|[\w.-]+\.(py|txt|nix)", name)}
    assert {"tests/notebook.ipynb", "tests/pictures/dark.png"} <= local and {"server.py", "static/app.js"} <= told
    for name in (local | told) - {"mytool.py", "static/mytool.css", "static/mytool.js"}:       # yours
        assert (ROOT / name).exists(), name
    assert "MIT licence." in TEXT and (ROOT / "LICENSE").read_text().startswith("MIT ")


def test_what_a_job_can_use():
    """The types that the README gives to the person who writes one are those that the engine names."""
    types = re.search(r"by their types \((.*?)\)", TEXT.replace("\n", " "))[1]
    kinds = re.search(r"is the form \((.*?);", SOURCE.split("def job(f):")[1].split('"""')[1], re.DOTALL)[1]
    assert {*names(types)} == {*re.findall(r"\w+", kinds)}


def test_no_recipe_takes_a_name_of_the_engine():
    """In a copy both stand in one file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    engine = {node.name for node in ast.parse(ENGINE).body if isinstance(node, kinds)}
    for code in BLOCKS:
        assert not engine & {*re.findall(r"(?m)^(?:async )?(?:def|class) (\w+)", code)}, code


@pytest.fixture(scope="module")
def wired():
    """What the table of names on the wire needs to see of the app: a page with a bit of everything."""
    from fake_ollama import FakeOllama
    with FakeOllama() as fake:
        server = Server({"OLLAMA_HOST": fake.url}).start()
        add(server, "Milk")
        fake.models = [m for m in fake.models if "thinking" in m["capabilities"]]
        fake.script(Script(thinking=["Well"], text="Hello"))
        with Chat(server) as chat:
            answer = chat.ask("Hi")
        httpx.post(f"{server.url}/toggle/1", trust_env=False)
        yield server, soup(httpx.get(server.url, trust_env=False).text), answer["id"]
        server.remove()


def words(row):
    return re.sub(r"\W+", "-", row[0])


@pytest.mark.parametrize("row", rows("what | name"), ids=words)
def test_the_names_on_the_wire(wired, row):
    """Elements are in the page, addresses answer, fields are taken."""
    server, page, answer = wired
    Server.known.append(server)
    with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as client:
        for name in names(row[1]):
            if "{hash}" in name:
                client.post("/chatq", files={"file": ("a.csv", b"a,b\n1,2\n")}).raise_for_status()
                name = "GET " + re.search(r"/file/[\w.]+", messages(server)[-1]["content"])[0]
            name = name.replace("{id}", str(answer) if "msg" in name else "1")
            if " " in name:
                method, path = name.split()
                data = {"title": "Bread", "text": "Said", "name": "Ada"} if method == "POST" else None
                assert client.request(method, path.replace("{name}", "summarise_my_todos"), data=data).status_code == 200, name
            elif name.startswith("/ws"):
                with Chat(server, name.removeprefix("/ws").replace("ID", "1")) as chat:
                    chat.say("Hello")
                    chat.hear('data-role="user"')
            elif re.search("[#.]", name):
                assert page.select(name), name
            elif name.startswith("data-"):
                assert page.select(f"#msg-{answer}[{name}]"), name
        if row[0] == "todo":
            other = re.search(r'id="profile-(\d+)"', client.post("/profile", data={"name": "Bob"}).text)[1]
            assert re.search(r"`POST /todo` \((.*?)\)", row[1])[1] == "`title`, `profile`"
            client.post("/todo", data={"title": "Bob's", "profile": other})
            assert server.sql("select title from todo where profile = ?", other)[0][0] == "Bob's"
            assert page.select("li#todo-1.done")
        if row[0] == "scripts":
            fields = names(re.search(r"\((.*?)\)", row[1])[1])
            ident = client.post("/chatq", data={"text": "Less", "progress": "1"}).text
            said = {"text": "More", "progress": "50", "done": "1", "profile": "Default", "id": ident, "chat": "1"}
            assert sorted(fields) == sorted([*said, "file"])
            client.post("/chatq", data=said).raise_for_status()
            assert [(r["content"], r["status"]) for r in messages(server) if r["id"] == int(said["id"])] == [("More", "done")]
