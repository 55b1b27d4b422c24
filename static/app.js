// What HTMX, CSS and the platform do not do: the socket's address, following the stream,
// keyboard and focus, lists that change while somebody works in them, the clipboard.

const $ = htmx.find  // the first in the document, or in the element that stands before the selector
const $$ = (...where) => [...htmx.findAll(...where)]
const byId = id => document.getElementById(id)
const number = el => el?.id.split('-')[1] ?? 0  // of msg-5 or todo-5

// Parts that stay as long as the page does; a page of an app's own has no chat.
const log = byId('msg-list')
const msg = byId('msg')
const form = byId('chat-form')
const edited = byId('edit')  // holds the id of the prompt that is edited
const fileField = byId('files')
const singleKeys = byId('single-keys')
const more = byId('more')
const root = document.documentElement.dataset

// On their way down, since some events (scroll, toggle, load) do not bubble.
function on(events, handler) {
  for (const event of events.split(' ')) document.addEventListener(event, handler, true)
}

// What the browser keeps for the page. One that blocks all cookies throws: then nothing is kept.
function storage(name) {
  try {
    return window[name]
  } catch {
    return {}
  }
}

const session = storage('sessionStorage')
const local = storage('localStorage')

const reveal = el => el.scrollIntoView({ block: 'nearest' })

// What goes wrong with a request is said by the listener under "Words at the edge".
const request = (...args) => htmx.ajax(...args).catch(() => {})

// ---- The socket

const TAB = Math.random()  // the server does not send us what we did ourselves
let online = false
let sending = ''     // the prompt on its way, until the server has stored it
let waiting = false  // a prompt is to be sent as soon as that is possible

// The chat that this page shows; a new one has no number before its first message.
const openChat = () => byId('chat-title')?.dataset.chat

// When its row stands in the list of chats, a new chat has its address.
function showChat() {
  const address = '/chat/' + openChat()
  const link = $(`#chat-list [href="${address}"]`)
  if (!link) return
  link.ariaCurrent = 'page'
  document.title = link.textContent + ' · ' + $('.brand').textContent
  if (location.pathname === '/chat/new') history.replaceState({}, '', address)
}

// Every connection says what this page has seen, and gets what it missed.
htmx.createWebSocket = address => {
  const shown = $$('#msg-list > [id^=msg-]')
  const seen = Math.max($('main').dataset.rev, ...shown.map(el => el.dataset.rev || 0))
  const has = { tab: TAB, seen, first: number(shown[0]), last: number(shown.at(-1)) }
  if (openChat()) has.chat = openChat()
  return new WebSocket(address + '&' + new URLSearchParams(has))
}

htmx.config.wsReconnectDelay = () => 300  // the app is on this machine: it is worth asking often

const showConnection = () => { byId('offline').hidden = online }

on('htmx:wsOpen', () => {
  online = true
  showConnection()
  sendWhatWaits()
})

on('htmx:wsClose', ({ detail }) => {
  online = false
  setTimeout(showConnection, 400)  // a short break is not worth a word
  putBack()
  if ([1006, 1011, 1012, 1013].includes(detail.event.code)) return  // htmx connects again
  setTimeout(detail.socketWrapper.reconnect, 1000)
})

// While the connection is down, or a file is on its way, a prompt waits where it was typed.
on('htmx:wsConfigSend', event => {
  const isAttaching = fileField.matches('.htmx-request')
  waiting = isAttaching || !online
  if (waiting) event.preventDefault()
  if (isAttaching) toast('It is sent as soon as the file is here.')
})

on('htmx:afterRequest', ({ target, detail }) => {
  if (target !== fileField) return
  waiting &&= detail.successful
  queueMicrotask(sendWhatWaits)  // when the next file is on its way
})

function sendWhatWaits() {
  if (waiting) form.requestSubmit()
}

on('htmx:wsAfterSend', () => {
  sending = msg.value.trim()
  type('')
  follow = true
})

const ENDS = { done: 'The answer is here.', stopped: 'Stopped.', error: 'It ended with an error.' }

on('htmx:oobBeforeSwap', ({ target, detail }) => {
  const { fragment } = detail
  if (fragment.dataset?.refused) {
    putBack()
    if (!$(`#msg-${edited.value}[data-role]`)) endEdit()  // what was edited is gone
  }
  const el = fragment.firstElementChild
  if (!el || fragment.id) return  // with an id it is an element of which the inside comes anew
  const { role, status, reload } = el.dataset
  const isFoot = el.matches('footer')
  if (isFoot) Object.assign(target.parentElement.dataset, el.dataset)  // the state of its message
  if (isFoot || role === 'assistant') announce(ENDS[status])
  if (role === 'user') promptArrived(el)
  if (el.matches('.question:has(button)')) ask(el)
  if (role) keepOpen(target, el)
  if (reload) {
    detail.shouldSwap = false
    reloadList(target, reload)
  }
})

// Our prompt is stored: it need not be kept here, nor in its field where it was put back.
function promptArrived(message) {
  const text = $(message, '.content').textContent
  if (text === sending && text === msg.value) type('')
  if (text === sending) endEdit()
  sending = ''
}

// A prompt that was refused, or may not have arrived, goes back to where it was typed.
function putBack() {
  if (!msg.value) type(sending)
}

// A question is heard, and comes into sight.
function ask({ id, textContent }) {
  announce(textContent)
  queueMicrotask(() => reveal(byId(id)))  // after the swap
}

// A message that comes anew has open what is open now.
function keepOpen(before, now) {
  const folds = $$(before, 'details')
  $$(now, 'details').forEach((fold, n) => { fold.open = folds[n]?.open })
}

// ---- Requests

on('htmx:configRequest', ({ target, detail: { headers, parameters, path } }) => {
  headers['X-Tab'] = TAB
  if (target.matches('.part')) parameters.after = number(target.previousElementSibling)
  if (path === '/switch_theme') parameters.theme = switchTheme()
})

// At once, since the server keeps the theme for the next page only.
function switchTheme() {
  const system = matchMedia('(prefers-color-scheme: dark)').matches && 'dark'
  root.theme = (root.theme ?? system) === 'dark' ? 'light' : 'dark'
  return root.theme
}

// A job has been started: the chat shows how it goes.
on('htmx:afterRequest', ({ detail: { xhr, requestConfig } }) => {
  if (xhr.status !== 200 || !requestConfig.path.startsWith('/run/')) return
  closeDrawer()
  showEnd()
})

// What was added leaves its field, unless the next one is being typed there already.
on('htmx:afterRequest', ({ target, detail }) => {
  if (!detail.successful || !target.matches('.add')) return
  announce('Added.')
  const field = $(target, 'input')
  if (field.value !== detail.requestConfig.parameters[field.name]) return
  target.reset()
  field.focus()
})

// ---- Reading: the view follows the stream only while the reader is at its end

let follow = !location.hash.startsWith('#msg')
let lastTop = 0  // where the view was when it was last looked at
const below = el => el.scrollHeight - el.scrollTop - el.clientHeight  // pixels out of sight

// Any move upward by the reader ends the following; reaching the end takes it up again.
function noticeReader() {
  const moved = log.scrollTop - lastTop
  if (moved) follow = below(log) < (moved > 0 ? 60 : 5)
  lastTop += moved
  more.hidden = below(log) < 60
}

function toEnd() {
  if (!log) return
  noticeReader()
  if (!follow) return
  log.scrollTop = log.scrollHeight
  noticeReader()
}

function showEnd() {
  follow = true
  toEnd()
}

log?.addEventListener('scroll', noticeReader)

// Before more comes: the browser tells of a move only later, when the end is elsewhere.
on('htmx:wsBeforeMessage', noticeReader)

// What is being read stays where it is when older messages come in above it, and so does a row
// that was just added at the end of a list when a part of the list comes in above it.
on('htmx:beforeSwap', ({ target }) => {
  const box = target.parentElement
  const before = below(box)
  if (!target.matches(before < 60 ? '.older, .part:not(:last-child)' : '.older')) return
  queueMicrotask(() => { box.scrollTop += below(box) - before })  // after the swap
})

// ---- Writing

// The key under which a reload finds which prompt is edited, and the one for what is typed: of the
// chat, or of the edited prompt. A new chat that has got its number leaves nothing to the next one.
const editKey = () => 'edit ' + (openChat() ?? $('main').getAttribute('ws-connect'))
const draft = () => editKey() + ' ' + edited.value

function type(text) {
  msg.value = session[draft()] = text
  // The composer grows with its text, where the browser does not see to it.
  if (!CSS.supports('field-sizing', 'content')) msg.style.height = msg.scrollHeight + 'px'
}

on('input', ({ target }) => {
  if (target === msg) {
    type(msg.value)
    sending = ''
    waiting = false  // who types on sends again
  }
  const left = target.maxLength - target.value.length
  if (left >= 0 && left < target.maxLength / 10) toast(left + ' characters left.')
})

// A prompt that is edited stands in the composer, and what stood there is kept meanwhile.
function edit(prompt) {
  edited.value = session[editKey()] = number(prompt)
  propose($(prompt, '.content').textContent)
  if ($(`#${prompt.id} ~ [data-role=assistant][data-status=streaming]`)) byId('stop-btn').click()
}

function endEdit() {
  edited.value = session[editKey()] = ''
  type(msg.value || session[draft()] || '')
}

function giveUpEdit() {
  type('')
  endEdit()
  msg.focus()
}

function propose(text) {
  type(text)
  msg.focus()
}

msg?.addEventListener('keydown', event => {
  const last = $('#msg-list > :nth-last-child(1 of [data-role=user])')
  const isComposing = event.keyCode === 229  // its last Enter sends nothing
  if (event.key === 'Enter' && !event.shiftKey && !isComposing) {
    event.preventDefault()
    form.requestSubmit()
  }
  if (event.key === 'ArrowUp' && last && !msg.value) {
    event.preventDefault()
    edit(last)
  }
})

// A field has one line: several pasted ones are several rows.
on('paste', event => {
  const field = event.target
  const source = field.closest('.add')
  const text = event.clipboardData.getData('text').trim()
  if (!source || !text.includes('\n')) return
  event.preventDefault()
  request('POST', source.getAttribute('hx-post'), { source, values: { [field.name]: text } })
})

// ---- Attachments: by button, drop and paste

const isSmall = ({ name, size }) =>
  size <= fileField.dataset.most || toast(name + ' is larger than 20 MB: it was not taken.')

function attach(files) {
  const chat = openChat() ?? 0
  for (const file of files.filter(isSmall)) {
    request('POST', fileField.dataset.to, { source: fileField, values: { file, chat } })
  }
  msg.focus()
}

on('change', ({ target }) => {
  if (target.type !== 'file') return
  const files = [...target.files]
  if (target === fileField) attach(files)
  else if (files.every(isSmall)) return
  target.value = ''
})

let dragEnd

// What is dropped goes to the job's form that it falls on, else to the composer.
on('dragover drop', event => {
  const { target, type, dataTransfer } = event
  if (!log || !dataTransfer.types.includes('Files')) return
  event.preventDefault()
  document.body.classList.add('dropping')
  clearTimeout(dragEnd)
  dragEnd = setTimeout(() => document.body.classList.remove('dropping'), 300)
  if (type === 'dragover') return
  if ([...dataTransfer.items].some(item => item.webkitGetAsEntry()?.isDirectory)) {
    return toast('A folder cannot be attached: drop the files in it.')
  }
  const field = $(target.closest('form:has([type=file])') ?? form, '[type=file]')
  field.files = dataTransfer.files
  field.dispatchEvent(new Event('change'))
})

// A text that does not fit is attached, and never cut. Spreadsheets offer text as a picture, too.
on('paste', event => {
  const { target, clipboardData } = event
  if (!log || target.matches('input, textarea:not(#msg)')) return
  const text = clipboardData.getData('text')
  const isRich = text && clipboardData.types.includes('text/html')
  const isLong = text.length + msg.value.length > msg.maxLength
  let files = isRich ? [] : [...clipboardData.files]
  if (isLong) files = [new File([text], 'pasted.txt')]
  if (!files.length) return
  event.preventDefault()
  attach(files)
})

// ---- The keyboard

const ROW = 'li[id]'

const press = selector => place => $(place, selector)?.click()
const rename = press('[aria-label^="Rename "]')

const ROW_KEYS = {
  'Enter': press('a.title, [aria-label^="Rename "]'),
  'F2': rename,
  'Delete': press('[aria-label^="Delete "]'),
  ' ': press('[type=checkbox]'),
  'ArrowUp': row => beside(row, -1)?.focus(),
  'ArrowDown': row => beside(row, 1)?.focus(),
  'Alt ArrowUp': row => step(row, -1),
  'Alt ArrowDown': row => step(row, 1)
}

const PAGE_KEYS = {
  '?': press('[popovertarget=keys]'),
  '/': search,
  'Alt KeyN': press('#new-chat'),
  'Alt KeyM': () => msg?.focus(),
  'Alt KeyT': press('[hx-post="/switch_theme"]'),
  'Ctrl z': press('#toast button')
}

on('keydown', event => {
  const { target, altKey, key } = event
  if (key === 'Escape') return giveUp(target)
  const control = event.ctrlKey || event.metaKey ? 'Ctrl ' : ''
  // With Alt a Mac writes other signs: what counts is the key itself.
  const name = control + (altKey ? 'Alt ' + event.code : key)
  const isTyping = !altKey && target.matches('input:not([type=checkbox]), textarea, select')
  const isOff = name.length === 1 && !singleKeys?.checked
  const rowAction = target.matches(ROW) && ROW_KEYS[name]
  const action = rowAction || !isTyping && !isOff && PAGE_KEYS[name]
  if (!action) return
  event.preventDefault()
  if (rowAction && $(target, '.htmx-request')) return  // its form is coming
  action(rowAction ? target : document)
})

function search() {
  const field = byId('search')
  if (field && !field.checkVisibility()) sideButton().click()
  field?.focus()
}

// From the search's field to what it has found, and from hit to hit.
on('keydown', event => {
  const distance = { ArrowDown: 1, ArrowUp: -1 }[event.key]
  if (!distance || !event.target.closest('.search')) return
  event.preventDefault()
  const stops = $$('#search, #search-results a')
  stops[stops.indexOf(event.target) + distance]?.focus()
})

$('.search')?.addEventListener('submit', event => {
  event.preventDefault()
  $('#search-results a')?.focus()
})

// Escape gives up a drag or an edit, or else closes what is open.
function giveUp(target) {
  if (dragged) return endDrag(showAgain)
  if (target === msg && edited.value) return giveUpEdit()
  const row = target.closest('.editing, .asking')
  if (row) return showAgain(row)
  if (target.closest('#search-results')) return search()
  const panel = $('.drop[open] > summary')
  if (!panel) return closeDrawer()
  panel.focus()
  closePanels()
}

// The part of an address that names a row: ?kind=todo&id=5
const nameOf = row => '?kind=' + row.id.replace('-', '&id=')

// A row as it is stored, in its place.
const showAgain = row => request('GET', '/item_view' + nameOf(row), { source: row })

on('dblclick', ({ target }) => {
  if (target.matches('.title:not(a)')) rename(target.closest(ROW))
})

// Panels are closed by Escape and by a click elsewhere.
function closePanels(clicked) {
  for (const panel of $$('.drop[open]')) panel.open = panel.contains(clicked)
}

// ---- The sidebar: folded away on a wide page, a drawer on a phone

// The one of its buttons that is in sight.
function sideButton() {
  return $$('button[data-side]').find(button => button.checkVisibility())
}

// What was pressed goes out of sight: the focus goes to the button of the way back.
function showSide(side) {
  root.side = side
  if (side !== 'open') local.side = side
  sideButton().focus()
}

function closeDrawer() {
  if (root.side === 'open') showSide('shown')
}

on('click focusin', ({ target }) => {
  if (!target.closest('#sidebar, #toast, button[data-side]')) closeDrawer()
})

// A form that opens below the edge comes into sight.
on('toggle', ({ target }) => {
  if (target.open && target.closest('#job-list')) reveal(target)
})

// ---- Lists: rows that come while somebody works in them

let listChanges = 0  // to the lists, to see that an answer is older than what came meanwhile

on('htmx:beforeSwap htmx:oobBeforeSwap', ({ target }) => {
  if (target.closest('ul[id$=-list]')) listChanges++
})

// A row that came stands above the row that data-before names (else where HTMX has put it). It
// takes the place of the one with its id, unless that one is being edited.
on('htmx:load', ({ target: row }) => {
  if (!row.matches(ROW)) return
  const list = row.parentElement
  const old = $$('#' + row.id).find(other => other !== row)
  if (old?.matches('.editing')) return row.remove()
  old?.remove()
  const { before } = row.dataset
  if (!before) return
  const next = byId(before) ?? byId(before + '-part')
  const part = $(list, '.part')
  if (next || before === 'end' && !part) return list.insertBefore(row, next)
  row.remove()  // it is gone, or in a part that has not come yet
  // That part may be on its way, without the row: it stood further up when the part was asked for.
  if (before !== 'gone' && old && part) reloadList(list, part.getAttribute('hx-get'))
})

// A whole list has changed: as many rows as it shows are asked for.
async function reloadList(list, address) {
  try {
    const asked = listChanges
    const headers = { 'HX-Request': 'true' }  // rows alone, and not in a page
    const answer = await fetch(address + '&count=' + list.children.length, { headers })
    const html = await answer.text()
    if (asked !== listChanges) return reloadList(list, address)
    if (answer.ok) merge(list, html)
  } catch {}  // when the connection is back, the page is told anew what has changed
}

// Replaces the rows of a list but for those being edited: nothing moves under who edits or reads.
function merge(list, html) {
  const position = () => list.scrollTop - ($(list, '.editing')?.offsetTop ?? 0)
  const before = position()
  const fresh = list.cloneNode()
  fresh.innerHTML = html
  for (const old of $$(list, 'li:not(.editing)')) old.remove()
  let next = list.firstElementChild
  for (const row of [...fresh.children]) {
    const editing = byId(row.id)
    if (editing) next = editing.nextElementSibling
    else list.insertBefore(row, next)
  }
  list.scrollTop += before - position()
  htmx.process(list)
  refocus()
}

// ---- Lists: rows that are moved by mouse, finger and keyboard

const visible = list => [...list.children].filter(row => row.offsetParent)

function beside(row, distance) {
  const rows = visible(row.parentElement)
  return rows[rows.indexOf(row) + distance]
}

function step(row, distance) {
  const over = beside(row, distance)
  if (!over || over.matches('.part')) return  // what the next part begins with is not known yet
  if (distance < 0) over.before(row)
  else over.after(row)
  drop(row)
}

// A row has been moved in the page: its place is told and stored.
function drop(row) {
  row.focus()
  const rows = visible(row.parentElement)
  const hasMore = rows.at(-1).matches('.part')
  const total = hasMore ? 'more than ' + (rows.length - 1) : rows.length
  announce(`Moved to place ${rows.indexOf(row) + 1} of ${total}.`)
  const address = '/move' + nameOf(row) + '&before=' + number(row.nextElementSibling)
  request('POST', address, { source: row, swap: 'none' })
}

let dragged = null  // the row by its id, since what comes meanwhile may replace it

on('pointerdown', event => {
  if (event.button || !event.target.matches('.grip')) return
  event.preventDefault()
  const { id } = event.target.closest(ROW)
  dragged = { id, timer: setInterval(drag, 50) }  // the list scrolls while the pointer rests
})

on('pointermove', ({ clientY }) => {
  if (dragged) dragged.y = clientY
})

on('pointerup', () => {
  drag()
  endDrag(drop)
})

addEventListener('pointercancel', () => endDrag(showAgain))

function drag() {
  const row = byId(dragged?.id)
  if (!row || !dragged.y) return
  const isBelow = other => {
    const { top, height } = other.getBoundingClientRect()
    return other !== row && (other.matches('.part') || top + height / 2 > dragged.y)
  }
  const next = [...row.parentElement.children].find(isBelow) ?? null
  if (next !== row.nextElementSibling) {
    row.parentElement.insertBefore(row, next)
    row.classList.add('moving')
  }
  reveal(row)  // and its neighbours, by the style sheet
}

function endDrag(finish) {
  const row = byId(dragged?.id)
  clearInterval(dragged?.timer)
  dragged = null
  if (!row?.matches('.moving')) return
  row.classList.remove('moving')
  finish(row)
}

// ---- The focus stays where one works: on what comes in the place of what had it, on a
// neighbour, or in that part of the page

const FOCUSABLE = 'button, input, select, textarea, [tabindex]'
let near = []  // what may take the focus, or what comes in its place, the best first

on('focusin', ({ target }) => {
  if (target.closest('#toast')) return  // from there it goes back
  if (target.matches('.editing [autofocus]')) {
    target.selectionStart = 999
    reveal(target.form)  // its other fields too
  }
  const row = target.closest(ROW)
  const send = $('#chat-form:focus-within #send-btn')  // Stop turns into it
  const add = $(target.closest('section') ?? document, '.add button')
  const after = row && beside(row, 1)
  const before = row && beside(row, -1)
  near = [target.closest('[id]'), row, after, before, send, add, log]
})

// Who presses elsewhere leaves.
on('pointerdown', ({ target }) => {
  if (!document.activeElement.contains(target) && !target.closest('#toast')) near = []
})

function refocus() {
  if (document.activeElement.offsetParent) return
  for (const el of near) {
    const place = byId(el?.id) ?? el
    if (!place?.offsetParent) continue
    const able = place.matches(FOCUSABLE) ? place : $(place, FOCUSABLE)
    if (able) return able.focus({ preventScroll: true })
  }
}

function settled() {
  showChat()
  countRows()
  refocus()
  toEnd()
}

on('htmx:afterSettle htmx:wsAfterMessage', settled)
on('load', toEnd)  // a picture may have come

// ---- Words at the edge: a toast is seen and heard, an announcement is heard alone

let fading

function toast(text) { byId('toast').textContent = text }

function announce(text) {
  if (text) byId('announce').textContent = text
}

// A toast goes after some seconds, but not while somebody is about to use it.
function fade() {
  refocus()
  clearTimeout(fading)
  fading = setTimeout(() => $('#toast:is(:hover, :focus-within)') ? fade() : toast(''), 7000)
}

on('htmx:responseError htmx:sendError', ({ target: source, detail }) => {
  const { xhr, target, requestConfig } = detail
  if (source === msg) return  // it only wanted the model warm
  toast(xhr.responseText || 'The app does not answer. Is it still running in its terminal?')
  source.checked = source.defaultChecked  // a box shows what is stored
  const row = target.closest('.editing')
  if (!row || xhr.status !== 404) return
  // The row was deleted while it was edited: what was typed can be added anew.
  const field = $(row.parentElement.parentElement, '.add input')
  if (field && requestConfig.verb === 'post') field.value ||= $(row, 'input').value
  htmx.swap(row, '', { swapStyle: 'delete' })
  refocus()
})

// ---- What is clicked

const CLICKS = {
  '.copy': copy,
  '.attach': () => fileField.click(),
  'button[data-side]': button => showSide(button.dataset.side),
  '.idea': button => propose(button.textContent),
  '.edit': button => edit(button.closest('.msg')),
  '#no-edit': giveUpEdit,
  '#more': showEnd,
  '.all': button => button.closest('.table').classList.add('open'),
  '.csv': button => saveTable(button.closest('.table')),
  '.zoom, .thumb': enlarge
}

on('click', event => {
  closePanels(event.target)
  for (const [selector, action] of Object.entries(CLICKS)) {
    const clicked = event.target.closest(selector)
    if (clicked) action(clicked, event)
  }
})

async function copy(button) {
  const refused = 'Browsers copy only for localhost and https: select the text instead.'
  if (!navigator.clipboard) return toast(refused)
  try {  // Safari wants the promise of the text within the click
    const text = textOf(button).then(text => new Blob([text], { type: 'text/plain' }))
    await navigator.clipboard.write([new ClipboardItem({ 'text/plain': text })])
  } catch {
    return toast('Nothing was copied: the app does not answer, or the browser does not allow it.')
  }
  announce('Copied')
  const icon = $(button, 'use')
  button.dataset.before ??= button.innerHTML
  if (icon) icon.setAttribute('href', '#i-check')
  else button.textContent = 'Copied'
  setTimeout(() => { button.innerHTML = button.dataset.before }, 1500)
}

async function textOf(button) {
  const { text: address } = button.dataset
  const table = button.closest('.table')
  if (table) return cells(table).map(row => row.join('\t')).join('\n')
  if (!address) return $(button.closest('.code'), 'code').textContent
  const answer = await fetch(address)
  if (!answer.ok) throw new Error(answer.status)
  return answer.text()
}

// ---- Pictures and tables

// A cell that a spreadsheet would run as a formula stays text.
const cellText = cell => cell.innerText.trim().replace(/\s+/g, ' ').replace(/^(?=[=@]|[+-]\D)/, "'")
const cells = table => [...$(table, 'table').rows].map(row => [...row.cells].map(cellText))

function saveTable(table) {
  const quoted = text => /[",]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text
  const text = cells(table).map(row => row.map(quoted).join(',')).join('\r\n')
  const href = 'data:text/csv;charset=utf-8,' + encodeURIComponent(text)
  Object.assign(document.createElement('a'), { href, download: 'table.csv' }).click()
}

// A click on a picture shows it large, as far as the window allows.
function enlarge(link, event) {
  if (event.ctrlKey || event.metaKey) return
  event.preventDefault()
  const html = '<dialog class="large"><img alt=""><button>Close</button></dialog>'
  document.body.insertAdjacentHTML('beforeend', html)
  const dialog = $('dialog.large')
  dialog.ariaLabel = $(link, 'img').alt || $(link, 'span').textContent
  $(dialog, 'img').src = link.href
  dialog.onclick = () => dialog.close()
  dialog.onclose = () => dialog.remove()
  dialog.showModal()
}

function countRows() {
  for (const button of $$('.table .all')) {
    const rows = $$(button.closest('.table'), 'tbody > tr').length
    const label = `Show all ${rows} rows`
    if (rows > 20 && button.textContent !== label) button.textContent = label
  }
}

// ---- The start, where there is a chat (the page of an error has none)

function start() {
  if (local.side) root.side = local.side
  const isNew = location.pathname === '/chat/new'
  const isPhone = innerWidth < 720  // it would open its keyboard
  if (isNew || !isPhone && !/[?#]/.test(location.href)) msg.focus()
  edited.value = session[editKey()] ?? ''
  type(session[draft()] ?? '')
  singleKeys.checked = local.keys !== 'off'
  singleKeys.onchange = () => { local.keys = singleKeys.checked ? 'on' : 'off' }
  new ResizeObserver(toEnd).observe(log)
}

new MutationObserver(fade).observe(byId('toast'), { childList: true })
fade()
if (log) start()
settled()
