"""Mathematics: formulas are drawn when they are whole, by the browser itself, and what is none stays as it was written."""
import re

import httpx
import pytest
from conftest import wait_done
from fake_ollama import Script
from playwright.sync_api import expect

pytest_plugins = "chatting"

DRAWN = [        # Markdown, and the text of each formula in it
    (r"with \(x^2\) and $y_1$ in it", "x2", "y1"),
    ("\\[\nx\n+ y\n= z\n\\]", "x+y=z"),
    ("Text:\n$$\na\n- b\n$$\nmore", "a−b"),
    (r"in \[\frac{a}{b}\] a line", "ab"),
    ("$$E = mc^2$$.", "E=mc2"),
    ("# A heading with $h$\n\n> \\[\n> q > 0\n> \\]", "h", "q>0"),
    ("- item $i$\n  \\[\n  j\n  \\]\n- two", "i", "j"),
    ("| $a$ | b |\n|---|---|\n| \\(c\\) | $d$ |", "a", "c", "d"),
    (r"half open: $[0, 1)$ and \(a[i]\)", "[0,1)", "a[i]"),
    (r"\begin{x} $\begin{aligned} a &= b \\ c &= d \notag \end{aligned}$", "a=bc=d"),
    (r"$\text{50\% <b>}$ and the $n$th", "50% <b>", "n"),
    (r"\\(no\\) and $x$", "x"),
]
WRITTEN = [      # what is no formula, and what can't be read
    "$5 and $6", "It costs $5-$6, or US$7.", "a 20$ and 30$ note", "$ x $ has spaces", "$x$5",
    r"$x^2^3$", r"\(\left( y\)", r"\[\foo x\]", r"$a & b$", "\\[\n\\left( y\n\\]",
    "$" + "{" * 101 + "x" + "}" * 101 + "$", "$" + "{" * 1000 + "x" + "}" * 1000 + "$",
    "$" + "x" * 10_001 + "$", "\\[" + "x+" * 7000 + "\\]",
]
TEXTS = "all => all.map(m => m.textContent.replaceAll('\\xa0', ' '))"


def shown(chat, text):
    """What a page shows of a text."""
    ident = chat.post("chatq", text=text, profile=chat.profile)
    return chat.page.locator(f"#c-{ident}")


def test_formulas_are_drawn_wherever_they_stand(chat):
    for text, *formulas in DRAWN:
        message = shown(chat, text)
        expect(message.locator("math")).to_have_count(len(formulas))
        assert message.locator("math").evaluate_all(TEXTS) == formulas, text
    assert chat.page.evaluate("document.querySelector('math').namespaceURI.endsWith('MathML')")
    expect(shown(chat, r"\[x\]").locator(".scroll math[display=block]")).to_have_count(1)
    expect(shown(chat, r"a \[x\] b").locator("p > math[display=inline][displaystyle=true]")).to_have_count(1)


def test_what_is_no_formula_or_cant_be_read_stays_as_it_was_written(chat):
    for text in WRITTEN:
        content = shown(chat, text)
        assert content.evaluate("c => c.textContent") == text
        expect(content.locator("math")).to_have_count(0)


def test_a_formula_brings_nothing_but_mathml(chat):
    content = shown(chat, r"$\href{javascript:alert(1)}{x} \style{color:red}{y} \class{hide}{z} \text{<script>t</script>}$")
    expect(content.locator("mtext")).to_have_text("<script>t</script>")
    assert content.locator("[href], [style], [class], script").count() == 0


def test_titles_mean_themselves(chat):
    for title in r"Fix [urgent] $x$", r"\(a\) and \[b\]", r"$\$$":
        chat.post("todo", title=title, profile=chat.profile)
        expect(chat.page.locator("[data-role=event]").last).to_contain_text(f"“{title}”")
    expect(chat.page.locator("[data-role=event] math")).to_have_count(0)


STREAMED = r"""The word is the word \(the word is the word\) and $x^2$ is **bold**, from $5-$6 on.

Text:
\[
a
+ b_{1}
\]
more $[0, 1)$ is half

- one
  $$
  c
  - d
  $$
- two \(e\)

$$E = mc^2$$.

\[
never
+ ended

> \[ nor this

# The end $f$ `$g$`
"""
# In the page: the formulas at each moment, and whether there ever was source.
MOMENTS = r"""() => { window.moments = []
  new MutationObserver(() => {
    const content = [...document.querySelectorAll('.content')].at(-1).cloneNode(true)
    const formulas = [...content.querySelectorAll('math')].map(m => { m.remove(); return m.textContent })
    content.querySelectorAll('code').forEach(c => c.remove())
    moments.push([formulas.join(';'), content.textContent])
  }).observe(document.querySelector('#msg-list'), {subtree: true, childList: true, characterData: true}) }"""


@pytest.mark.parametrize("size", [7])
def test_a_formula_appears_when_it_is_whole(chat, size):
    chat.page.evaluate(MOMENTS)
    pieces = re.findall(f"(?s).{{1,{size}}}", STREAMED)
    chat.ask("Go", Script(tokens=pieces, rate=len(STREAMED) / size / 3))
    wait_done(chat.page)
    assert chat.state() == chat.fresh()
    moments = chat.page.evaluate("moments")
    last = moments[-1][0]
    assert last == "thewordistheword;x2;[0,1);c−d;e;E=mc2;f".replace("x2;", "x2;a+b1;")
    assert len(moments) > 20
    seen = [formulas for formulas, _ in moments]
    assert all(last.startswith(formulas) for formulas in seen), "a half formula"
    assert seen == sorted(seen, key=len), "a formula went away again"
    assert not [text for _, text in moments if re.search(r"[\\^{}]|\$(?!5|6|$)", text.replace("$g$", ""))], "source"


def test_wide_formulas_scroll_in_themselves(chat, open_page):
    wide = " + ".join(f"x_{{{n}}}" for n in range(24))
    chat.post("chatq", text=f"\\[{wide}\\]\n\nIn a text: ${wide}$ and on.", profile=chat.profile)
    page = open_page(viewport={"width": 390, "height": 800})
    page.goto(chat.url)
    for box in ".content .scroll", ".content > p":
        assert page.locator(box).evaluate("e => e.scrollWidth > e.clientWidth + 100 && e.scrollHeight <= e.clientHeight")
    for outer in "#msg-list", "html":
        assert page.locator(outer).evaluate("e => e.scrollWidth <= e.clientWidth"), f"{outer} scrolls sideways"


def test_the_library_is_loaded_with_the_first_formula(app):
    server = app(start=False)
    route = "\n@app.get\ndef seen_modules(): return ' '.join(sys.modules)\n"
    server.file.write_text(re.sub(r"\n# ---- \d+\. Main", lambda m: route + m[0], server.file.read_text()))
    server.start()
    web = httpx.Client(base_url=server.url, trust_env=False)
    web.post("/chatq", data={"text": "**bold** for $5"})
    web.get("/").raise_for_status()
    assert "latex2mathml" not in web.get("/seen_modules").text and "mermaidx" not in web.get("/seen_modules").text
    web.post("/chatq", data={"text": "$x$"})
    assert "<math" in web.get("/").text
    assert "latex2mathml" in web.get("/seen_modules").text
