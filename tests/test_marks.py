"""No input makes what shows Markdown slow: 20,000 characters of each mark and of each pair of marks."""
import json
import subprocess
import sys

from conftest import Server

SCRIPT = """
import json, re, time
import server
marks = [*'\\\\`*_{}[]()#+-.!~|<>&$=:"\\'/^@%,;? a1\\n\\t\\2']
pairs = marks + [a + b for a in marks for b in marks if a != b]

def feed(text):
    markdown = server.Markdown()
    markdown.feed(text)
    markdown.end()

def seconds(function, text):
    begin = time.process_time()
    function(text)
    return time.process_time() - begin
functions = (server.to_html.__wrapped__, server.inline_html, feed, server.plain, server.readable, server.safe_name,
             server.as_found, *(re.compile(each).findall for each in (server.TAGS, server.BESIDE, server.MARKS, server.MAGIC)))
[function('a $x$') for function in functions]
slow = []
for pair in pairs[:len(marks)] + pairs[len(marks)::STEP]:
    text = (pair*20_000)[:20_000]
    most = .2 if chr(10) in pair else .1
    for function in functions:
        if seconds(function, text) > most and min(seconds(function, text) for _ in range(3)) > most:
            slow.append((pair, function.__name__))
print(json.dumps(slow))
"""
# The parser takes 10 microseconds for a line, and 10,000 of them are more than any text has.
STEP = 37       # every so many of the pairs, since all of them take a minute


def run(script):
    """What a script prints that imports the app."""
    server = Server()
    try:
        done = subprocess.run([sys.executable, "-c", script], cwd=server.dir, env=server.env | {"PYTHONPATH": str(server.dir)},
                              capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    finally:
        server.remove()


def test_no_mark_and_no_pair_of_marks_is_slow():
    assert run(SCRIPT.replace("STEP", str(STEP))) == []


GROWING = """
import json, re, sys
import server
marks = []
for text in 'a ``x ` y`` b', 'a `b *c* d` e', 'see <https://a.b/c> there', '[a `b` c](https://a.b)', 'a ` `b':
    growing, finished = server.Markdown(), re.sub('<[^>]*>', '', server.to_html(text))
    for sign in text:
        growing.feed(sign)
        shown = re.sub('<[^>]*>', '', growing.whole(growing.tail))
        marks += [(text, shown) for mark in ('&lt;', *'`*[') if shown.count(mark) > finished.count(mark)]
print(json.dumps(marks))
"""


def test_what_grows_shows_no_mark_that_goes_again():
    assert run(GROWING) == []
