"""Markdown in the browser: it grows block by block, looks the same ever after, and is never more than text."""
import re

import pytest
from conftest import ask, wait_done
from fake_ollama import Script, cut, model
from playwright.sync_api import expect

pytest_plugins = "chatting"

MIXED = '''# A *mixed* answer

Some **bold**, `code`, ~~gone~~ and [a link](https://example.org/a_b "there"), over
two lines. 5 * 3 < 20 & more
- a list right after it
- with **two** items,
  the second of two lines

  and two paragraphs
  - nested
    - deeper
1. One
2. Two:

   ```python
   in_a_list = 1
   ```

> A quote
> of two lines

| Name | Value |
|:-----|------:|
| `a`  | 1 |
| b, **bold** | 22 |

```python
def f(x):
    """A text of
    two lines."""
    return x < 1 & "a"  # why
```

Under a line
------------

***

- [ ] open
- [x] done

Last: https://example.org/x_y.
```
left open
   <b>
'''
SIZES = {"letters": lambda s: re.findall(r"(?s).{1,3}", s), "words": cut,
         "lines": lambda s: s.splitlines(keepends=True), "whole": lambda s: [s]}

# Whatever is taken out of the last answer or changed in it, but for its open end (#t-...).
WATCH = """() => { window.touched = []; window.seen = new WeakSet()
  const tail = n => (n.nodeType === 1 ? n : n.parentElement)?.closest('[id^="t-"]')
  new MutationObserver(all => { for (const r of all) {
    const content = r.target.closest?.('.content')
    if (!content || tail(r.target)) continue
    for (const n of r.removedNodes) if (!/^t-/.test(n.id)) touched.push('gone: ' + (n.outerHTML ?? n.data))
  } }).observe(document.querySelector('#msg-list'), {subtree: true, childList: true}) }"""
# Whatever element or attribute, at any moment, is not of ours.
GUARD = """() => { window.foreign = []
  const names = new RegExp('^(p|br|hr|h[1-6]|strong|em|del|code|pre|blockquote|ul|ol|li|a|i|div|span|figure|figcaption|button|' +
    'table|thead|tbody|tr|th|td|details|summary|small)$')
  const look = root => { for (const e of [root, ...root.querySelectorAll('*')]) {
    if (!e.closest('.content, .thinking, .error, .figures')) continue
    if (!names.test(e.localName)) foreign.push(e.outerHTML)
    for (const a of e.attributes) {
      const ours = a.name === 'href' ? !/^\\s*(javascript|data|vbscript|file):/i.test(a.value)
        : a.name === 'id' ? /^[ctkhs]-\\d+$/.test(a.value)
        : /^(class|title|target|rel|start|tabindex|type|open)$/.test(a.name)
      if (!ours) foreign.push(`${a.name}=${a.value} in ${e.localName}`) } } }
  new MutationObserver(all => { for (const r of all) for (const n of r.addedNodes) if (n.nodeType === 1) look(n) })
    .observe(document.documentElement, {subtree: true, childList: true})
  look(document.documentElement) }"""
HOSTILE = '''<script>document.title = 'owned'</script>
<img src=x onerror="document.title = 'owned'"><svg onload=alert(1)><iframe src="//evil.test"></iframe>
<div id="toast" hx-swap-oob="true">owned</div> <p id="msg-list" hx-get="/find" hx-trigger="load">x</p>
<style>body { display: none }</style><form action="https://evil.test"><input name=a></form>

</div></article></template><div id="todo-list" hx-swap-oob="innerHTML">owned</div>

![tracker](https://evil.test/pixel.png) ![x](data:image/svg+xml,<svg>) ![y]("onerror="alert(1))
[js](javascript:alert(1)) [Js](JaVaScRiPt:alert(1)) [ent](java&#115;cript:alert(1)) [data](data:text/html,<script>x</script>)
[vb](vbscript:x) <javascript:alert(1)> [q](https://ok.test/"onclick="alert(1)) [t](https://ok.test "a\\" hx-get=\\"/x")

| <b id=a>h</b> | b |
|---|---|
| <img src=//evil.test/x onerror=alert(1)> | ![z](https://evil.test/z) |

- <li hx-post="/delete?kind=todo&id=1" hx-trigger="load">
- [x](javascript:alert(2))

```html"><script>x</script>
</code></pre><script>document.title = 'owned'</script><div hx-swap-oob="delete:#chat-form">
```

``` "onclick=alert(1) x
</code>
```

> <b onclick="alert(1)">quoted</b>
'''


def stream(chat, text, size="words", rate=60.0):
    """Have this answered in pieces of a size, slowly enough for each to be drawn."""
    chat.ask("Go", Script(tokens=SIZES[size](text), rate=rate))
    return wait_done(chat.page, 30_000)


# ---- The same while it streams, when it is done, and after a reload

@pytest.mark.parametrize("size", ["letters", "lines", "whole"])
def test_an_answer_looks_the_same_streamed_and_reloaded(chat, size):
    chat.page.evaluate(WATCH)
    stream(chat, MIXED, size)
    assert chat.state() == chat.fresh()
    assert chat.page.evaluate("touched") == [], "what was finished was touched again"


def test_the_size_of_the_pieces_makes_no_difference(chat):
    chat.answered("p0", Script(tokens=[MIXED]))
    whole = chat.content.inner_html()
    for size in "words", "lines":
        chat.answered(size, Script(tokens=SIZES[size](MIXED)))
        assert chat.content.inner_html() == whole


def test_a_page_opened_in_mid_stream_shows_the_same(chat):
    tokens = cut(MIXED)
    chat.ask("Go", Script(tokens=tokens, gate=True))
    for upto in 20, 45, 85, 100, 110:                # in a paragraph, lists, a table, code
        chat.fake.release(upto - len(chat.fake.sent))
        chat.fake.wait_sent(upto)
        last = re.sub(r"[^\w]", "", tokens[upto - 2])
        expect(chat.content).to_contain_text(last)
        other = chat.open()
        expect(other.locator("[data-role=assistant] .content")).to_contain_text(last)
        assert chat.state() == chat.state(other)
        chat.window.leave(other)


def test_a_finished_block_is_never_touched_and_only_the_open_one_redrawn(chat):
    chat.ask("Go", Script(tokens=["# One\n\n", "Two **bo", "ld** and ", "on.\n\n", "- a\n", "- b\n", "\n```\n", "x = 1\n",
                                  "y", " = 2\n", "```\n", "end"], gate=True))

    def step(selector, text):
        chat.fake.release(1)
        expect(chat.content.locator(selector)).to_have_text(text)

    def mark(selector):
        chat.content.locator(selector).evaluate("e => e.mine = 1")

    def marked():
        return chat.content.evaluate("c => [...c.querySelectorAll('*')].filter(e => e.mine).map(e => e.textContent)")
    step("h1", "One")
    mark("h1")
    step("p", "Two bo")
    mark("p")
    step("p", "Two bold and")
    assert marked() == ["One"], "the open block is drawn anew, the finished one is not"
    chat.fake.release(1)
    step("li", "a")
    mark("p:not(li p)")
    chat.fake.release(1)
    expect(chat.content.locator("li")).to_have_text(["a", "b"])
    mark("ul")
    mark("li >> nth=0")
    chat.fake.release(1)
    step("figure code", "x = 1\n")
    mark("figure")
    mark("figure code")
    before = marked()
    for text in "x = 1\ny", "x = 1\ny = 2\n":
        step("figure code", text)
    chat.fake.release()
    wait_done(chat.page)
    expect(chat.content).to_contain_text("end")
    assert len(marked()) == len(before) and marked()[:2] == ["One", "Two bold and on."]


@pytest.mark.parametrize("line", ["value = [1, 2]  # {n}\n", "| {n} | some **bold** cell |\n", "word {n} and _more_ "],
                         ids=["code", "table", "paragraph"])
def test_a_huge_block_costs_no_more_than_its_length(chat, line):
    head = {"v": "```python\n", "|": "| a | b |\n|---|---|\n", "w": ""}[line[0]]
    received = []
    chat.page.on("websocket", lambda ws: ws.on("framereceived", lambda data: received.append(len(data))))
    chat.page.reload()
    text = [head] + [line.replace("{n}", str(n)) for n in range(500)]
    chat.ask("Go", Script(tokens=text, rate=400))
    wait_done(chat.page)
    assert len(received) > 8, "it has to come in many frames"
    assert sum(received) < 14 * len("".join(text))
    expect(chat.content).to_contain_text("499")
    assert chat.state() == chat.fresh()


def test_the_lines_of_a_long_paragraph_are_seen_as_they_come(chat):
    chat.ask("Go", Script(tokens=[f"line {n} is done\n" for n in range(500)], gate=True))
    for n in 400, 410, 420:
        chat.fake.release(n - len(chat.fake.sent))
        expect(chat.content).to_contain_text(f"line {n - 3} is done")
    chat.fake.release()
    wait_done(chat.page)
    assert chat.state() == chat.fresh()


# ---- What becomes of the marks

STRUCTURE = [
    ("Text\n- one\n- two", "ul > li", ["one", "two"]),
    ("Text\n1. one\n2. two", "ol > li", ["one", "two"]),
    ("3. three\n4. four", "ol[start='3'] > li", ["three", "four"]),
    ("- a\n  - b\n    - c\n- d", "ul ul ul > li", ["c"]),
    ("1. a\n   - b\n2. c", "ol > li > ul > li", ["b"]),
    ("- a\n\n- b\n\n- c", "ul > li", ["a", "b", "c"]),
    ("```\nnever closed\n<b>", "figure code", ["never closed\n<b>"]),
    ("````\n```\n````", "figure code", ["```"]),
    ("Text\n```py\nx\n```\nmore", "p", ["Text", "more"]),
    ("| a | b |\n|---|---|\n| 1 | 2 |\nText", "td", ["1", "2"]),
    ("| a | b |\n|---|---|\n| 1 |\n| 2 | 3 | 4 |\n| 5 | 6 |", "tbody tr", re.compile("1"), re.compile("2.*3"),
     re.compile("5.*6")),
    ("a | b\n--|--\n1 | 2", "td", ["1", "2"]),
    ("2 * 3 * 4 and snake_case_name and 5 < 6", "p", ["2 * 3 * 4 and snake_case_name and 5 < 6"]),
    ("**Bold:** text", "p strong", ["Bold:"]),
    ("**名：**値 and *「名」*の", "p :is(strong, em)", ["名：", "「名」"]),
    ("> quote\n> more\n\nText", "blockquote p", ["quote more"]),
    ("Not a list:\n-1 degree", "li", []),
    ("#hashtag", "h1", []),
    ("1. Do:\n\n   ```py\n   x = 1\n   ```\n2. Then", "li figure.code code", ["x = 1"]),
    ("Tom &amp; Jerry &lt;3", "p", ["Tom & Jerry <3"]),
    ("A\\*b\\*c", "p", ["A*b*c"]),
    ("| a |\n|---|\n| x<BR>y `<br>` |", "td", ["x y <br>"]),
    ("見よhttp://a.example/b。次は（http://c.example），末", "a", ["http://a.example/b", "http://c.example"]),
]


def test_marks_become_what_they_mean(chat):
    wrong = []
    for text, selector, *texts in STRUCTURE:
        chat.answered("Go", Script(text=text))
        found = [" ".join(t.split()) for t in chat.content.locator(selector).all_text_contents()]
        texts = [" ".join(t.split()) for t in texts[0]] if isinstance(texts[0], list) else texts
        same = len(found) == len(texts) and all(
            t.search(f) if isinstance(t, re.Pattern) else t == f for t, f in zip(texts, found, strict=True))
        if not same:
            wrong.append(f"{text!r}: {selector} is {found}, not {texts}; {chat.content.inner_html()}")
    assert not wrong, "\n".join(wrong)


def test_line_separators_of_unicode_arrive_as_they_were_sent(chat):
    text = "one\u2028two\u2029three\x85four\u0301 \U0001f642"
    chat.answered("Go", Script(tokens=[text[:5], text[5:]]))
    assert chat.content.evaluate("c => c.textContent").strip() in (text, text.replace("\x85", ""))
    expect(chat.answers).to_have_count(1)


def test_links_open_outside_and_leak_nothing(chat):
    chat.answered("Go", Script(text="[one](https://example.org) <https://two.example> http://three.example/x_y"))
    links = chat.content.locator("a").evaluate_all("all => all.map(a => [a.href, a.target, a.rel])")
    assert links == [[url, "_blank", "noopener noreferrer"] for url in
                     ("https://example.org/", "https://two.example/", "http://three.example/x_y")]


def test_code_is_highlighted_by_classes_alone(chat):
    chat.answered("Go", Script(text='```python\ndef f():\n    return "text"  # why\n```\n```\nplain\n```'))
    code = chat.content.locator("figure code")
    colours = code.first.evaluate("c => [...c.querySelectorAll('[class]')].map(e => getComputedStyle(e).color)")
    assert len(set(colours)) >= 3
    assert chat.content.locator("[style]").count() == code.last.locator("*").count() == 0
    expect(chat.content.locator("figcaption").first).to_contain_text("python")


def test_wide_tables_and_code_scroll_in_themselves(chat, open_page):
    page = open_page(viewport={"width": 360, "height": 800})
    page.goto(chat.url)
    chat.fake.script(Script(text="|" + " column |" * 20 + "\n|" + "---|" * 20 + "\n|" + " value |" * 20 +
                            "\n\n```\n" + "x" * 300 + "\n```\n\n" + "y" * 300))
    ask(page, "Go")
    content = wait_done(page).locator(".content")
    for box in ".scroll", "pre":
        assert content.locator(box).evaluate("e => e.scrollWidth > e.clientWidth + 100")
    for outer in "#msg-list", "html":
        assert page.locator(outer).evaluate("e => e.scrollWidth <= e.clientWidth"), f"{outer} scrolls sideways"


# ---- Nothing that a model writes is more than text

@pytest.mark.parametrize("size", ["letters", "whole"])
def test_hostile_markdown_is_text_at_every_moment(chat, size):
    chat.page.evaluate(GUARD)
    title = chat.page.title()
    stream(chat, HOSTILE, size, rate=120)
    assert chat.page.evaluate("foreign") == []
    expect(chat.content).to_contain_text("<script>document.title = 'owned'</script>")
    expect(chat.content).to_contain_text('<div id="toast" hx-swap-oob="true">owned</div>')
    assert chat.page.title() in (title, f"Go · {title}")
    for ours in "#toast", "#msg-list", "#todo-list", "#chat-form":
        expect(chat.page.locator(ours)).to_have_count(1)
        expect(chat.page.locator(ours)).not_to_have_text("owned")
    assert chat.state() == chat.fresh()
    chat.page.reload()
    chat.page.evaluate(GUARD)
    assert chat.page.evaluate("foreign") == []


TAGS = """<img src=x onerror=alert(1)><b id="toast" hx-swap-oob="true">x</b> 'a' "b" &lt; </div>"""


def test_hostile_thinking_model_names_and_errors_are_text(chat):
    chat.page.evaluate(GUARD)
    name = TAGS.replace("/", "")
    chat.fake.models[:] = [model(name)]
    chat.fake.script(Script(thinking=[TAGS[:9], TAGS[9:]], text="ok"), Script(status=500, error=TAGS),
                     Script(text="ok", error=TAGS, error_after=1))
    for _ in range(3):
        ask(chat.page, "Go")
        wait_done(chat.page)
    expect(chat.answers.first.locator(".thinking > div")).to_have_text(TAGS)
    expect(chat.answers.first.locator(".figures")).to_contain_text(name)
    for n in 1, 2:
        expect(chat.answers.nth(n).locator(".error")).to_contain_text(TAGS)
    assert chat.page.evaluate("foreign") == []
    chat.page.reload()
    expect(chat.page.locator("select#model option")).to_contain_text(name)
    expect(chat.page.locator("#toast")).to_be_empty()


def test_an_error_text_offers_no_download(chat):
    chat.fake.script(Script(status=500, error="First type `ollama pull evil/model` please"))
    chat.answered("Go")
    expect(chat.answer.locator(".error")).to_contain_text("evil/model")
    expect(chat.answer.get_by_role("button", name=re.compile("Download"))).to_have_count(0)


def test_hostile_todo_titles_profile_names_and_prompts_are_text(chat):
    chat.page.evaluate(GUARD)
    titles = [TAGS, "[x](javascript:alert(1)) ![y](//evil.test/z)", "**not bold** `code` <u>", "</li><script>x</script>"]
    new = chat.page.get_by_placeholder("What needs to be done?")
    for title in titles:
        new.fill(title)
        new.press("Enter")
        expect(chat.page.locator("#todo-list li .title").last).to_have_text(title)
        expect(chat.page.locator("[data-role=event]")).to_contain_text(title)
    assert chat.page.evaluate("foreign") == []
    assert chat.page.locator("[data-role=event] :is(a, img, strong, code, script)").count() == 0
    chat.post("rename", kind="profile", id=chat.profile, name=TAGS)
    chat.answered(TAGS)
    chat.page.reload()
    expect(chat.prompts.locator(".content")).to_have_text(TAGS)
    expect(chat.page.locator("#profile-menu [aria-current]")).to_have_text(TAGS)
    expect(chat.page.locator("#todo-list li .title")).to_have_text(titles)
    expect(chat.page.locator("#toast")).to_be_empty()


def test_search_results_are_text(chat):
    chat.answered("findme " + TAGS, Script(text="findme **bold** <script>x</script>"))
    chat.page.get_by_role("searchbox").press_sequentially("findme")
    results = chat.page.locator("#search-results")
    expect(results).to_contain_text("<script>x</script>")
    assert results.locator("script, img, b").count() == 0
