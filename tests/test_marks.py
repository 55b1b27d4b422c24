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
             server.as_found, re.compile(server.MAGIC).match,
             *(re.compile(each).findall for each in (server.TAGS, server.BESIDE, server.MARKS)))
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


LONG = """
import json, time
import server

def seconds(text):
    begin = time.process_time()
    server.to_html.__wrapped__(text)
    return max(time.process_time() - begin, .01)
texts = ['\\\\[ a\\n', '> \\\\[ a\\n', '<figcaption>mermaid<b>']
texts = [(text*1000, text*4000) for text in texts]
texts = [[f'\\2{text}\\3' if '<' in text else text for text in pair] for pair in texts]
print(json.dumps([short[:20] for short, long in texts if seconds(long) > 8*seconds(short)]))
"""


def test_what_does_not_end_costs_no_more_than_its_length():
    """Formulas, and the HTML of others, which may look like the beginning of a diagram."""
    assert run(LONG) == []


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
growing = server.Markdown()
growing.feed('A job says $$x$$')
marks += [] if '<math' in growing.tail else [growing.tail]
print(json.dumps(marks))
"""


def test_what_grows_shows_no_mark_that_goes_again():
    assert run(GROWING) == []
