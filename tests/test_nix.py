"""flake.nix, tried with the real nix program.

nixpkgs itself is out of reach of a test: tests/nixpkgs/flake.nix stands in for it, its packages
being links to this machine's programs. So these tests show that our names, the shell hook and
`nix run` work; they don't show that nixpkgs builds Python and Ollama.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
NEEDED = ["nix", "git", "bash", "curl", "shellcheck"]
MISSING = [name for name in NEEDED if not shutil.which(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"needs {', '.join(MISSING)}: "
    "apt-get install --no-install-recommends nix-bin git curl shellcheck",
)
SYSTEMS = ["x86_64-linux", "aarch64-linux", "aarch64-darwin", "x86_64-darwin"]
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

# Enough of Ollama to be started and asked; it leaves its id behind for the test to end it.
OLLAMA = f"""#!{PYTHON}
import http.server, os, sys
assert sys.argv[1:] == ["serve"], sys.argv
if "BROKEN" in os.environ: sys.exit("no such luck")
with open(os.environ["STARTED"], "a") as f: print(os.getpid(), file=f)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/version" else 404)
        self.end_headers()
host, port = os.environ["OLLAMA_HOST"].split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""
SERVER = "import os, sys; print('served', sys.prefix, os.getcwd(), *sys.argv)\n"


def wheel(folder, name, version, code="", script=""):
    """A wheel of one small module, so that pip has something to install without a network."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as z:
        z.writestr(f"{name}/__init__.py", f"version = {version!r}\n{code}")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        if script:
            z.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{script} = {name}:main\n")
        z.writestr(f"{info}/RECORD", "")


class Clone:
    """A clone of the project with a small requirements.txt, and nix to try it with."""

    def __init__(self, top):
        self.top, self.folder, self.started = top, top / "clone", top / "started"
        for name in ("clone", "home", "nixpkgs", "wheels", "programs"):
            (top / name).mkdir()
        for version in ("1.0", "2.0"):
            wheel(top / "wheels", "tiny", version)
        self.pin = (REPO / "flake.nix").read_text().split("jupyterlab==")[1].split('"')[0]
        wheel(top / "wheels", "jupyterlab", self.pin, "def main(): print(version)\n", "jupyter-lab")

        ollama = top / "programs" / "ollama"
        ollama.write_text(OLLAMA)
        ollama.chmod(0o755)
        shutil.copy(REPO / "tests" / "nixpkgs" / "flake.nix", top / "nixpkgs")
        programs = {name: shutil.which(name) for name in ("bash", "curl", "shellcheck")}
        programs |= {"python3": PYTHON, "ollama": str(ollama), "PATH": os.environ["PATH"]}
        programs["version"] = f"{sys.version_info.major}.{sys.version_info.minor}"
        (top / "nixpkgs" / "programs.json").write_text(json.dumps(programs))

        # Nothing of the person's own environment, such as CI or OLLAMA_HOST, gets in.
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(top / "home"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(top / "wheels"),
            "STARTED": str(self.started),
            "NIX_STORE_DIR": str(top / "store"),
            "NIX_STATE_DIR": str(top / "var"),
            "NIX_LOG_DIR": str(top / "log"),
            "NIX_CONFIG": "experimental-features = nix-command flakes\nsandbox = false\n"
            "build-users-group =\nsubstituters =\nflake-registry =\nwarn-dirty = false\n",
        }
        for name in ("flake.nix", "flake.lock"):
            shutil.copy(REPO / name, self.folder)
        self.require("tiny==1.0")
        (self.folder / "server.py").write_text(SERVER)
        (self.folder / ".gitignore").write_text(".venv\ndata\n")
        self.git("init", "--quiet")
        self.git("add", ".")

    def require(self, *lines):
        (self.folder / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))

    def git(self, *args):
        subprocess.run(["git", *args], cwd=self.folder, env=self.env, check=True)

    def run(self, *command, cwd=None, **env):
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        print(*command, done.stdout, done.stderr, sep="\n")
        return done

    def nix(self, *command, cwd=None, **env):
        at = command.index("--command") if "--command" in command else len(command)
        at = min(at, command.index("--") if "--" in command else at)
        stand_in = ["--override-input", "nixpkgs", f"path:{self.top}/nixpkgs"]
        options = [*stand_in, "--no-write-lock-file"]
        return self.run("nix", *command[:at], *options, *command[at:], cwd=cwd, **env)

    def enter(self, *command, shell=".", cwd=None, **env):
        """`nix develop --command ...`; the hook's own words are on stderr."""
        env = {"CI": "true"} | env
        return self.nix("develop", shell, "--command", *command, cwd=cwd, **env)

    def source(self, hook, cwd=None, path="", **env):
        """The hook alone, in a bash that says whether it is still there afterwards."""
        env = {"PATH": f"{path}:{self.env['PATH']}"} | env
        return self.run("bash", "-c", f"{hook}\necho alive; type -t chatq_enter", cwd=cwd, **env)


def words(done):
    """What the hook said, without what nix says of itself."""
    ours = (".venv", "pip", "Ollama", "numpy", "clone")
    theirs = ("building ", "warning: ", "path '", "→")
    lines = [line.strip() for line in done.stderr.splitlines()]
    return [s for s in lines if any(w in s for w in ours) and not s.startswith(theirs)]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return Clone(tmp_path_factory.mktemp("nix"))


@pytest.fixture(scope="module")
def first_entry(fresh):
    return fresh.enter("python", "-c", "import sys, tiny; print(sys.prefix, tiny.version)")


@pytest.fixture
def clone(fresh, first_entry):
    """One clone for all, each test finding it as after the first entry."""
    yield fresh
    fresh.require("tiny==1.0")
    fresh.enter("true")


@pytest.fixture
def ollamas(fresh):
    """The ids of the Ollamas that were started; they end with the test."""
    fresh.started.unlink(missing_ok=True)

    def ids():
        return [int(i) for i in fresh.started.read_text().split()] if fresh.started.exists() else []

    yield ids
    for i in ids():
        os.kill(i, signal.SIGKILL)


@pytest.fixture(scope="module")
def hooks(fresh):
    """The hook of every shell on every system."""
    apply = "s: builtins.mapAttrs (_: builtins.mapAttrs (_: shell: shell.shellHook)) s"
    done = fresh.nix("eval", "--json", ".#devShells", "--apply", apply)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hook(hooks, fresh):
    current = fresh.run("nix", "eval", "--raw", "--impure", "--expr", "builtins.currentSystem")
    return hooks[current.stdout]["default"]


# ---- The flake ----


def test_the_lock_is_that_of_the_inputs(fresh):
    # Without the stand-in and without a network: a lock that doesn't fit would have to be fetched.
    done = fresh.run("nix", "flake", "metadata", "--json", "--no-update-lock-file")
    node = json.loads(done.stdout)["locks"]["nodes"]["nixpkgs"]
    assert node["original"]["ref"] == "nixos-26.05"
    assert len(node["locked"]["rev"]) == 40 and node["locked"]["narHash"].startswith("sha256-")


def test_flake_check_is_clean(fresh):
    done = fresh.nix("flake", "check")
    assert done.returncode == 0
    # The stand-in's lock isn't kept, and a newer Nix leaves out the systems it can't build for.
    usual = ("warning: not writing modified lock file", "warning: The check omitted")
    warnings = [s for s in done.stderr.splitlines() if s.startswith("warning")]
    assert [s for s in warnings if not s.startswith(usual)] == []


def test_flake_check_finds_a_fault_in_the_hook(fresh):
    file = fresh.folder / "flake.nix"
    good = file.read_text()
    bad = good.replace('chatq_ollama "$root"', "chatq_ollama $root")
    assert bad != good
    try:
        file.write_text(bad)
        done = fresh.nix("flake", "check")
    finally:
        file.write_text(good)
    assert done.returncode != 0 and "SC2086" in done.stderr


def test_every_system_has_everything(fresh, hooks):
    shown = json.loads(fresh.nix("flake", "show", "--json").stdout)
    assert set(shown) == {"apps", "checks", "devShells", "formatter"}
    for output in shown.values():
        assert sorted(output) == sorted(SYSTEMS)
    for system in SYSTEMS:
        assert set(hooks[system]) == {"default", "jupyter"}
    described = fresh.nix("eval", "--raw", f".#apps.{SYSTEMS[0]}.default.meta.description")
    assert described.stdout


def test_nothing_looks_at_the_host():
    flake = (REPO / "flake.nix").read_text()
    for word in ("getEnv", "pathExists", "currentSystem", "flake-utils", "/usr", "/etc"):
        assert word not in flake


def test_the_hook_is_good_bash_that_never_exits(hooks, fresh):
    for system in SYSTEMS:
        for name in ("default", "jupyter"):
            hook = fresh.top / "hook.sh"
            hook.write_text(hooks[system][name])
            assert fresh.run("bash", "-n", str(hook)).returncode == 0
            assert "exit" not in hook.read_text()
            # Wheels need two libraries on Linux; elsewhere the variable would only do harm.
            assert ("LD_LIBRARY_PATH" in hook.read_text()) == system.endswith("-linux")
    assert fresh.run("shellcheck", "--shell=bash", str(hook)).returncode == 0


# ---- nix develop ----


def test_the_first_entry_makes_the_venv(first_entry, fresh):
    assert first_entry.returncode == 0
    assert first_entry.stdout.split() == [str(fresh.folder / ".venv"), "1.0"]
    assert "Bringing .venv up to requirements.txt" in first_entry.stderr


def test_the_second_entry_is_instant_and_silent(clone):
    start = time.monotonic()
    done = clone.enter("python", "-c", "import tiny; print(tiny.version)")
    assert time.monotonic() - start < 2
    assert (done.stdout, words(done)) == ("1.0\n", [])


def test_the_tools_are_those_of_nix(clone):
    done = clone.enter("bash", "-c", "command -v ollama curl python3; echo $LD_LIBRARY_PATH")
    ollama, curl, python, libraries = done.stdout.split()
    assert ollama.startswith(str(clone.top / "store")) and curl.startswith(str(clone.top / "store"))
    assert python == str(clone.folder / ".venv/bin/python3")
    if sys.platform == "linux":
        assert "libstdcxx/lib:" in libraries and libraries.endswith("zlib/lib")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has LD_LIBRARY_PATH")
def test_a_library_path_of_ones_own_comes_first(clone):
    done = clone.enter("bash", "-c", "echo $LD_LIBRARY_PATH", LD_LIBRARY_PATH="/mine")
    assert done.stdout.startswith("/mine:") and "::" not in done.stdout
    done = clone.enter("bash", "-c", "echo $LD_LIBRARY_PATH")
    assert not done.stdout.startswith(":")  # an empty part would mean the folder one stands in


def test_a_change_of_requirements_is_installed_and_one_back_too(clone):
    for version in ("2.0", "1.0"):
        clone.require(f"tiny=={version}")
        done = clone.enter("python", "-c", "import tiny; print(tiny.version)")
        assert done.stdout == f"{version}\n"
        assert len(words(done)) == 1


def test_from_a_folder_below_it_is_the_same_venv(clone):
    below = clone.folder / "data" / "below"
    below.mkdir(parents=True, exist_ok=True)
    done = clone.enter("python", "-c", "import sys; print(sys.prefix)", cwd=below)
    assert done.stdout.strip() == str(clone.folder / ".venv")
    assert not (below / ".venv").exists() and words(done) == []


def test_a_package_that_cannot_be_had_is_said(clone, hook):
    clone.require("tiny==1.0", "nowhere==1.0")
    # The shell opens all the same, with what is there; the next entry tries again.
    done = clone.enter("python", "-c", "import tiny; print(tiny.version)")
    assert (done.returncode, done.stdout) == (0, "1.0\n")
    assert words(done)[-1].startswith("pip could not install all of requirements.txt")
    assert "nowhere" in done.stderr  # pip's own reason
    done = clone.source(hook, CI="1")
    assert done.stdout == "alive\n" and "pip could not" in done.stderr
    # The app can't start without its packages.
    done = clone.nix("run", CI="1")
    assert (done.returncode, done.stdout) == (1, "") and "pip could not" in done.stderr


@pytest.mark.parametrize("why", ["another folder", "another Python"])
def test_a_venv_of_another_folder_or_python_is_made_anew(clone, hook, tmp_path, why):
    # A Python that notes what it is asked, since making a venv takes seconds.
    fake, folder = tmp_path / "python", tmp_path / "copy"
    fake.write_text(f"""#!/bin/sh
echo "$@" >>{tmp_path}/log
[ "$2" != venv ] || {{ mkdir -p "$4/bin"; ln -s {fake} "$4/bin/python"; }}
""")
    fake.chmod(0o755)
    python = hook.split(" python=")[1].split()[0]
    shutil.copytree(clone.folder, folder, ignore=lambda *_: ["bin", "lib", "lib64"])
    made_for = {"another folder": (clone.folder, fake), "another Python": (folder, python)}[why]
    (folder / ".venv/made-for").write_text("{}/.venv {}\n".format(*made_for))
    hook = hook.replace(python, str(fake))
    done = clone.source(hook, cwd=folder, CI="1")
    venv, pip = (tmp_path / "log").read_text().splitlines()
    assert venv == f"-m venv --clear {folder}/.venv"
    assert pip.startswith("-m pip install -q") and f"-r {folder}/requirements.txt" in pip
    assert "made anew" in done.stderr
    assert clone.source(hook, cwd=folder, CI="1").stderr == ""


def test_the_litmus_test_speaks_only_of_a_numpy_that_fails(clone):
    [site] = clone.folder.glob(".venv/lib/python*/site-packages")
    (site / "numpy").mkdir()
    try:
        (site / "numpy/__init__.py").write_text("print('never on stdout')\n")
        done = clone.enter("true")
        assert (done.stdout, words(done)) == ("", [])
        (site / "numpy/__init__.py").write_text("import libstdcxx\n")
        [line] = words(clone.enter("true"))
        assert line.startswith("numpy is installed but does not import")
    finally:
        shutil.rmtree(site / "numpy")


def test_the_hook_returns_whatever_happens(clone, hook):
    elsewhere = clone.top / "elsewhere"
    elsewhere.mkdir()
    done = clone.source(hook, cwd=elsewhere, CI="1")
    assert done.stdout == "alive\n" and list(elsewhere.iterdir()) == []
    assert "This is not a chatq folder" in done.stderr
    assert clone.source(hook, CI="1").stdout == "alive\n"
    assert clone.source(f"set -eu; {hook}", CI="1").stdout.startswith("alive\n")


def test_jupyter_is_in_the_same_venv(clone):
    lab = clone.folder / ".venv/bin/jupyter-lab"
    assert not lab.exists()
    done = clone.enter("jupyter-lab", shell=".#jupyter")
    assert lab.exists() and done.stdout.strip() == clone.pin
    assert words(clone.enter("true", shell=".#jupyter")) == []
    assert words(clone.enter("true")) == []  # going back and forth costs nothing
    assert words(clone.enter("true", shell=".#jupyter")) == []
    # What the one shell changes, the other takes note of.
    clone.require("tiny==2.0")
    clone.enter("true")
    clone.require("tiny==1.0")
    done = clone.enter("python", "-c", "import tiny; print(tiny.version)", shell=".#jupyter")
    assert done.stdout == "1.0\n"


# ---- Ollama ----


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_ollama_is_started_once_where_none_answers(clone, ollamas):
    host = f"127.0.0.1:{free_port()}"
    done = clone.enter("echo", "in", CI="", OLLAMA_HOST=host)
    [pid] = ollamas()
    assert done.stdout == "in\n" and f"kill {pid} ends it" in done.stderr
    os.kill(pid, 0)  # still there, the shell being gone,
    assert os.getsid(pid) == pid  # and out of reach of a Ctrl-C
    assert (clone.folder / "data" / "ollama.log").exists()
    done = clone.enter("true", CI="", OLLAMA_HOST=host)
    assert ollamas() == [pid] and words(done) == []


def test_ollama_that_fails_to_start_is_said(clone, ollamas, hook, tmp_path):
    env = {"OLLAMA_HOST": f"127.0.0.1:{free_port()}", "BROKEN": "1"}
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    (tmp_path / "sleep").chmod(0o755)
    done = clone.source(hook, path=f"{tmp_path}:{clone.top}/programs", **env)
    assert done.stdout == "alive\n" and "Ollama did not start" in done.stderr
    assert "no such luck" in (clone.folder / "data" / "ollama.log").read_text()


@pytest.mark.parametrize(
    "env",
    [
        {"CI": "true", "OLLAMA_HOST": "127.0.0.1:1"},
        {"OPENAI_BASE_URL": "http://gpu:8000/v1", "OLLAMA_HOST": "127.0.0.1:1"},
        {"OLLAMA_HOST": "gpu:11434"},
    ],
    ids=["CI", "another protocol", "another machine"],
)
def test_ollama_is_not_started(clone, ollamas, hook, env):
    done = clone.source(hook, path=f"{clone.top}/programs", **env)
    assert (ollamas(), done.stdout, done.stderr) == ([], "alive\n", "")


@pytest.mark.parametrize(
    "setting, asked",
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:99", "http://127.0.0.1:99"),
        ("::", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::]:8080", "http://[::1]:8080"),
        ("http://localhost", "http://localhost:80"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        (" \"localhost:8080' ", "http://localhost:8080"),
        ("localhost:65536", "http://localhost:11434"),
        ("http://localhost:port", "http://localhost:80"),
        ("localhost:08080", "http://localhost:08080"),
        ("https://localhost", None),
        ("localhost:8080/ollama", None),
        ("gpu", None),
        ("10.0.0.7:11434", None),
        ("http://host.docker.internal:11434", None),
        ("::1:8080", None),  # an address of eight parts, which is another machine's
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(clone, hook, tmp_path, setting, asked):
    log, curl = tmp_path / "log", tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\nfor url; do :; done\necho "$url" >>{log}\n')
    curl.chmod(0o755)
    env = {} if setting is None else {"OLLAMA_HOST": setting}
    done = clone.source(hook, path=str(tmp_path), **env)
    assert done.stdout == "alive\n"
    assert (log.read_text() if log.exists() else None) == (asked and f"{asked}/api/version\n")


# ---- nix run ----


def test_nix_run_starts_the_app_of_the_folder(clone, ollamas):
    host = f"127.0.0.1:{free_port()}"
    done = clone.nix("run", ".", "--", "one", "two words", OLLAMA_HOST=host)
    folder = clone.folder
    assert done.stdout == f"served {folder / '.venv'} {folder} server.py one two words\n"
    assert len(ollamas()) == 1


def test_nix_run_from_elsewhere_says_what_to_do(clone, tmp_path):
    for names in ([], ["server.py"], ["requirements.txt"]):
        for name in names:
            (tmp_path / name).touch()
        done = clone.nix("run", str(clone.folder), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        [line] = words(done)
        assert line.startswith("git clone the project, cd into the clone and nix run again")
        assert [p.name for p in tmp_path.iterdir()] == names
        for path in tmp_path.iterdir():
            path.unlink()
