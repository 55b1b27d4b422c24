"""README.md and server.py as the tests read them: what the README says to type is what they type."""
import ast
import re

from conftest import ROOT

TEXT = (ROOT / "README.md").read_text()
SOURCE = (ROOT / "server.py").read_text()
BLOCKS = re.findall(r"(?ms)^```\w*\n(.*?)^```$", TEXT)
BANNERS = re.findall(r"(?m)^# ---- (\d+)\. (.*?)[ -]*$", SOURCE)
ENGINE, APP = re.split(r"(?m)^# =+\n# ==== The app", SOURCE)
START = "if __name__ == '__main__':\n    run()\n"


def block(words):
    """The one block of code with these words in it."""
    found = [code for code in BLOCKS if words in code]
    assert len(found) == 1, f"{len(found)} blocks of the README say {words!r}"
    return found[0]


def rows(head):
    """The cells of the table with this head."""
    lines = TEXT.split(f"\n| {head} |\n")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell):
    """What stands `between ticks`."""
    return re.findall(r"`([^`]+)`", cell)


def api():
    """The names that `from server import *` gives, as server.py says it."""
    lists = [node.value for node in ast.parse(SOURCE).body
             if isinstance(node, ast.Assign | ast.AugAssign) and "__all__" in ast.unparse(node).split("=")[0]]
    return [name for each in lists for name in ast.literal_eval(each)]


def forked(*code):
    """The README's fork by import, with this code before its last lines."""
    fork = block("from server import *")
    assert fork.endswith(f"\n{START}") and fork.count(START) == 1
    return "\n".join([fork.removesuffix(START), *code, START])


def links_and_job():
    """What the README's fork adds, without its settings and imports, and without what it takes out."""
    return block("from server import *").split("from server import *\n")[1].split("JOBS.remove")[0]


def pasted(code, part=int(BANNERS[-1][0]), source=SOURCE):
    """The app with this code before a part, by default the last one."""
    [at] = [found.start() for found in re.finditer(rf"(?m)^# ---- {part}\. ", source)]
    return f"{source[:at]}{code}\n{source[at:]}"


def replaced(code, source=SOURCE):
    """The app with lines like `NAME = 'Crawl desk'` in place of its own."""
    for line in code.splitlines():
        source, times = re.subn(rf"(?m)^{line.split(' = ')[0]} = .*$", lambda _, line=line: line, source)
        assert times == 1, f"{times} lines to be replaced by {line}"
    return source


def with_lines_in_classes(code, source=SOURCE):
    """The app with these classes' lines in its own classes, which have the same heads."""
    for node in ast.parse(code).body:
        head, *added = code.splitlines()[node.lineno - 1:node.end_lineno]
        assert source.count(f"\n{head}\n") == 1, head
        [own] = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == node.name]
        lines = source.split("\n")
        lines[own.end_lineno:own.end_lineno] = added
        source = "\n".join(lines)
    return source
