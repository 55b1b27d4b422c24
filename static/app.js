// What HTMX, CSS and the platform do not do: the socket's address, following the stream,
// keyboard and focus, lists that change while somebody works in them, the clipboard.

const $ = htmx.find  // the first in the document, or in the element that stands before the selector
const byId = id => document.getElementById(id)
const log = () => byId('msg-list')  // looked up each time: it may be sent anew
const number = el => el?.id.split('-')[1] ?? 0  // of msg-5 or todo-5

function on(events, handler) {
  for (const event of events.split(' ')) document.addEventListener(event, handler)
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

// What goes wrong with a request is said by the listener under "Words at the edge".
const request = (...args) => htmx.ajax(...args).catch(() => {})

// ---- The socket

// The server does not send us what we did ourselves.
const TAB = Math.random().toString(36).slice(2)
let online = false
let sending = ''  // the prompt on its way, until the server has stored it
let unsent = ''   // the prompt that is to be sent as soon as that is possible

// The chat that this page shows; a new one has no number before its first message.
const openChat = () => byId('chat-title')?.dataset.chat

// Its title has come, or a row of the list of chats: a new chat has its address now.
function showChat() {
  const title = byId('chat-title')
  if (!title) return
  const address = `/chat/${openChat()}`
  const isListed = $(`#chat-${openChat()}`)
  if (isListed) document.title = `${title.textContent} · ${$('.brand').textContent}`
  if (isListed && location.pathname === '/chat/new') history.replaceState({}, '', address)
  for (const link of htmx.findAll('#chat-list a')) {
    link.ariaCurrent = link.pathname === address ? 'page' : null
  }
}

// Every connection says what this page has seen, and gets what it missed.
htmx.createWebSocket = address => {
  const place = openChat() ? address.replace(/\?.*/, `?chat=${openChat()}`) : address
  const messages = [...htmx.findAll('#msg-list > [id^=msg-]')]
  const seen = Math.max($('main').dataset.rev, ...messages.map(el => el.dataset.rev || 0))
  const first = number(messages[0])
  const last = number(messages.at(-1))
  return new WebSocket(`${place}&tab=${TAB}&seen=${seen}&first=${first}&last=${last}`)
}

// The app is on this machine: it is worth asking often.
htmx.config.wsReconnectDelay = tries => Math.min(250 * 2 ** tries, 3000)

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
  const isAttaching = $('#files.htmx-request')
  if (online && !isAttaching) return
  event.preventDefault()
  unsent = byId('msg').value
  if (isAttaching) toast('It is sent as soon as the file is here.')
})

on('htmx:afterRequest', ({ target, detail }) => {
  if (target.id !== 'files') return
  if (!detail.successful) unsent = ''
  queueMicrotask(sendWhatWaits)  // when the next file is on its way
})

function sendWhatWaits() {
  if (unsent && online && !$('#files.htmx-request')) byId('chat-form').requestSubmit()
}

on('htmx:wsAfterSend', () => {
  sending = byId('msg').value.trim()
  unsent = ''
  type('')
  follow = true
})

const ENDS = { done: 'The answer is here.', stopped: 'Stopped.', error: 'It ended with an error.' }

on('htmx:oobBeforeSwap', ({ target, detail }) => {
  if (detail.fragment.dataset?.refused) {
    putBack()
    if (!$(`#msg-${byId('edit').value}[data-role]`)) endEdit()  // what was edited is gone
  }
  if (target === log()) lastTop = 0  // it comes anew, and is not scrolled yet
  const el = detail.fragment.firstElementChild
  const { role, status, reload } = el?.dataset ?? {}
  const isFoot = el?.matches('footer')
  if (isFoot) Object.assign(target.parentElement.dataset, el.dataset)  // the state of its message
  if (isFoot || role === 'assistant') announce(ENDS[status])
  if (role === 'user') promptArrived(el)
  if (el?.matches('.question:has(button)')) ask(el)
  if (role) keepOpen(target, el)
  if (reload) {
    detail.shouldSwap = false
    reloadList(target, reload)
  }
})

// Our prompt is stored: it need not be kept here, nor in its field where it was put back.
function promptArrived(message) {
  const text = $(message, '.content').textContent
  if (text === sending && text === byId('msg').value) type('')
  if (text === sending) endEdit()
  sending = ''
}

// A prompt that was refused, or may not have arrived, goes back to where it was typed.
function putBack() {
  if (!byId('msg').value) type(sending)
}

// A question is heard, and comes into sight.
function ask({ id, textContent }) {
  announce(textContent)
  queueMicrotask(() => byId(id).scrollIntoView({ block: 'nearest' }))  // after the swap
}

// A message that comes anew has open what is open now.
function keepOpen(before, now) {
  const folds = htmx.findAll(now, 'details')
  htmx.findAll(before, 'details').forEach(({ open }, n) => folds[n]?.toggleAttribute('open', open))
}

// ---- Requests

on('htmx:configRequest', ({ target, detail: { headers, parameters, path } }) => {
  headers['X-Tab'] = TAB
  if (target.matches('.part')) parameters.after = number(target.previousElementSibling)
  if (path.startsWith('/run/')) follow = true
  if (path === '/switch_theme') parameters.theme = switchTheme()
})

// At once, since the server keeps the theme for the next page only.
function switchTheme() {
  const { dataset } = document.documentElement
  const system = matchMedia('(prefers-color-scheme: dark)').matches && 'dark'
  dataset.theme = (dataset.theme ?? system) === 'dark' ? 'light' : 'dark'
  return dataset.theme
}

// A job has been started: the chat shows how it goes.
on('htmx:afterRequest', ({ detail: { xhr, requestConfig } }) => {
  if (xhr.status === 200 && requestConfig.path.startsWith('/run/')) closeDrawer()
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
const atEnd = (el, within = 60) => el.scrollHeight - el.scrollTop - el.clientHeight < within

// Any move upward by the reader ends the following; reaching the end takes it up again.
function noticeReader() {
  const { scrollTop } = log()
  if (scrollTop < lastTop && !atEnd(log(), 5)) follow = false
  if (scrollTop > lastTop && atEnd(log(), 120)) follow = true
  lastTop = scrollTop
}

function toEnd() {
  if (!log()) return  // a page of an app's own has no chat
  noticeReader()
  if (follow) log().scrollTop = log().scrollHeight
  lastTop = log().scrollTop
  byId('more').hidden = follow || atEnd(log())
}

// Before more comes: the browser tells of a move only later, when the end is elsewhere.
on('htmx:wsBeforeMessage', () => log() && noticeReader())

document.addEventListener('scroll', ({ target }) => {
  if (target !== log()) return
  noticeReader()
  if (follow) byId('more').hidden = true
}, true)  // scrolling does not bubble

// What is being read stays where it is when older messages come in above it, and so does a row
// that was just added at the end of a list when a part of the list comes in above it.
on('htmx:beforeSwap', ({ target }) => {
  const box = target.parentElement
  const aboveNewRow = target.matches('.part:not(:last-child)') && atEnd(box)
  if (!aboveNewRow && !target.matches('.older')) return
  const below = box.scrollHeight - box.scrollTop
  queueMicrotask(() => { box.scrollTop = box.scrollHeight - below })  // after the swap
})

// ---- Writing

// The key under which a reload finds what is in the composer, and of what kind. A new chat that
// has got its number leaves nothing to the next new one.
const draft = (kind = '') => (openChat() ?? $('main').getAttribute('ws-connect')) + kind

function type(text) {
  byId('msg').value = text
  session[draft()] = text
  grow()
}

// The composer grows with its text, where the browser does not see to it.
function grow() {
  const { style, scrollHeight } = byId('msg')
  if (!CSS.supports('field-sizing', 'content')) style.height = `${scrollHeight}px`
}

on('input', ({ target: { id, value, maxLength } }) => {
  if (id === 'msg') {
    session[draft()] = value
    sending = unsent = ''  // who types on sends again
    grow()
  }
  const left = maxLength - value.length
  if (left >= 0 && left < maxLength / 10) toast(`${left} characters left.`)
})

// A prompt that is edited stands in the composer, and what stood there is kept meanwhile.
function edit(prompt) {
  if (!byId('edit').value) session[draft('kept')] = byId('msg').value
  byId('edit').value = session[draft('edit')] = number(prompt)
  propose($(prompt, '.content').textContent)
  if ($(`#${prompt.id} ~ [data-role=assistant][data-status=streaming]`)) byId('stop-btn').click()
}

function endEdit() {
  byId('edit').value = session[draft('edit')] = ''
  if (byId('msg').value) return
  type(session[draft('kept')] ?? '')
  session[draft('kept')] = ''
}

function giveUpEdit() {
  type('')
  endEdit()
  byId('msg').focus()
}

on('keydown', event => {
  const last = $('#msg-list > :nth-last-child(1 of [data-role=user])')
  if (event.key !== 'ArrowUp' || !last || !event.target.matches('#msg:placeholder-shown')) return
  event.preventDefault()
  edit(last)
})

// A field has one line: several pasted ones are several rows.
on('paste', event => {
  const field = event.target
  const source = field.closest('.add[data-lines]')
  const text = event.clipboardData.getData('text').trim()
  if (!source || !text.includes('\n')) return
  event.preventDefault()
  request('POST', source.getAttribute('hx-post'), { source, values: { [field.name]: text } })
})

on('submit', event => {
  if (!event.target.matches('.search')) return
  event.preventDefault()
  $('#search-results a')?.focus()
})

// ---- Attachments: by button, drop and paste

const isSmall = ({ name, size }) =>
  size <= byId('files').dataset.most || toast(`${name} is larger than 20 MB: it was not taken.`)

function attach(files) {
  const source = byId('files')
  const address = `${source.dataset.to}&chat=${openChat() ?? 0}`
  for (const file of files.filter(isSmall)) {
    request('POST', address, { source, values: { file }, swap: 'none' })
  }
  byId('msg').focus()
}

on('change', ({ target }) => {
  if (target.type !== 'file') return
  const files = [...target.files]
  const isComposer = target.id === 'files'
  if (isComposer) attach(files)
  if (isComposer || !files.every(isSmall)) target.value = ''
})

let dragEnd

// What is dropped goes to the job's form that it falls on, else to the composer.
on('dragover drop', event => {
  const { target, type, dataTransfer } = event
  if (!log() || !dataTransfer.types.includes('Files')) return
  event.preventDefault()
  document.body.classList.add('dropping')
  clearTimeout(dragEnd)
  dragEnd = setTimeout(() => document.body.classList.remove('dropping'), 300)
  if (type === 'dragover') return
  if ([...dataTransfer.items].some(item => item.webkitGetAsEntry()?.isDirectory)) {
    return toast('A folder cannot be attached: drop the files in it.')
  }
  const form = target.closest('form') ?? byId('chat-form')
  const field = $(form, '[type=file]') ?? byId('files')
  field.files = dataTransfer.files
  field.dispatchEvent(new Event('change', { bubbles: true }))
})

// A text that does not fit is attached, and never cut. Spreadsheets offer text as a picture, too.
on('paste', event => {
  const { target, clipboardData } = event
  if (!log() || target.matches('input, textarea:not(#msg)')) return
  const text = clipboardData.getData('text')
  const isRich = text && clipboardData.types.includes('text/html')
  const isLong = text.length + target.value?.length > target.maxLength
  let files = isRich ? [] : [...clipboardData.files]
  if (isLong) files = [new File([text], 'pasted.txt')]
  if (!files.length) return
  event.preventDefault()
  attach(files)
})

// ---- The keyboard

const ROW = 'li[id]'

const press = selector => row => $(row, selector)?.click()
const rename = press('[aria-label^="Rename "]')
const openRow = row => ($(row, 'a.title') ?? $(row, '[aria-label^="Rename "]'))?.click()

const ROW_KEYS = {
  'Enter': openRow,
  'F2': rename,
  'Delete': press('[aria-label^="Delete "]'),
  ' ': press('[type=checkbox]'),
  'ArrowUp': row => beside(row, -1)?.focus(),
  'ArrowDown': row => beside(row, 1)?.focus(),
  'Alt ArrowUp': row => step(row, -1),
  'Alt ArrowDown': row => step(row, 1)
}

const PAGE_KEYS = {
  '?': () => byId('keys')?.togglePopover(),
  '/': () => {
    const field = byId('search')
    if (field && !field.checkVisibility()) showSide(innerWidth < 720 ? 'open' : 'shown')
    field?.focus()
  },
  'Alt N': () => byId('new-chat')?.click(),
  'Alt M': () => byId('msg')?.focus(),
  'Alt T': () => $('[hx-post="/switch_theme"]').click(),
  'Ctrl z': () => $('#toast button')?.click()
}

on('keydown', event => {
  const { target, altKey } = event
  // With Alt a Mac writes other signs: what counts is the key itself.
  const key = altKey ? event.code.replace('Key', '') : event.key
  if (key === 'Escape') return giveUp(target)
  const control = event.ctrlKey || event.metaKey ? 'Ctrl ' : ''
  const name = control + (altKey ? 'Alt ' : '') + key
  const isTyping = !altKey && target.matches('input:not([type=checkbox]), textarea, select')
  const isOff = name.length === 1 && local.keys === 'off'
  const rowAction = target.matches(ROW) && ROW_KEYS[name]
  if (rowAction && $(target, '.htmx-request')) return event.preventDefault()  // its form is coming
  const action = rowAction || !isTyping && !isOff && PAGE_KEYS[name]
  if (!action) return
  event.preventDefault()
  action(target)
})

// From the search's field to what it has found, and from hit to hit.
on('keydown', event => {
  const distance = { ArrowDown: 1, ArrowUp: -1 }[event.key]
  if (!distance || !event.target.closest('.search')) return
  event.preventDefault()
  const stops = [...htmx.findAll('#search, #search-results a')]
  stops[stops.indexOf(event.target) + distance]?.focus()
})

on('keydown', event => {
  const { key, target, shiftKey } = event
  const isComposing = event.isComposing || event.keyCode === 229  // Safari: after the composition
  if (target.id !== 'msg' || key !== 'Enter' || shiftKey || isComposing) return
  event.preventDefault()
  byId('chat-form').requestSubmit()
})

// Escape gives up a drag or an edit, or else closes what is open.
function giveUp(target) {
  if (dragged) return endDrag(showAgain)
  if (target.id === 'msg' && byId('edit').value) return giveUpEdit()
  const row = target.closest('.editing, .asking')
  if (row) return showAgain(row)
  if (target.closest('#search-results')) return byId('search').focus()
  if ($('.drop[open]')) closePanels()
  else closeDrawer()
}

// A row as it is stored, in its place.
function showAgain(row) {
  const [kind, id] = row.id.split('-')
  request('GET', `/item_view?kind=${kind}&id=${id}`, { source: row })
}

on('dblclick', ({ target }) => {
  if (target.matches('.title:not(a)')) rename(target.closest(ROW))
})

// Panels are closed by Escape and by a click elsewhere.
function closePanels(clicked) {
  for (const panel of htmx.findAll('.drop[open]')) {
    if (panel.contains(clicked)) continue
    panel.open = false
    if (!clicked) $(panel, 'summary').focus()
  }
}

// ---- The sidebar: folded away on a wide page, a drawer on a phone

const sides = document.documentElement.dataset

// What was pressed goes out of sight: the focus goes to the button of the way back.
function showSide(side) {
  sides.side = side
  if (side !== 'open') local.side = side
  const buttons = [...htmx.findAll('button[data-side]')]
  buttons.find(button => button.checkVisibility()).focus()
}

// A form that opens below the edge comes into sight.
document.addEventListener('toggle', ({ target }) => {
  if (target.open && target.closest('#job-list')) target.scrollIntoView({ block: 'nearest' })
}, true)  // toggle does not bubble

function closeDrawer() {
  if (sides.side === 'open') showSide('shown')
}

on('click focusin', ({ target }) => {
  if (!target.closest('#sidebar, #toast, button[data-side]')) closeDrawer()
})

// ---- Lists: rows that come while somebody works in them

let listChanges = 0  // to the lists, to see that an answer is older than what came meanwhile

on('htmx:beforeSwap htmx:oobBeforeSwap', ({ target }) => {
  if (target.closest('ul[id$=-list]')) listChanges++
})

on('htmx:load', ({ target }) => {
  if (target.matches(ROW)) place(target)
})

// A row that came stands above the row that data-before names (else where HTMX has put it). It
// takes the place of the one with its id, unless that one is being edited.
function place(row) {
  const list = row.parentElement
  const others = [...htmx.findAll(`#${row.id}`)].filter(old => old !== row)
  if (others.some(old => old.matches('.editing'))) return row.remove()
  for (const old of others) old.remove()
  const { before } = row.dataset
  if (!before) return
  const below = byId(before) ?? byId(`${before}-part`)
  const part = $(list, '.part')
  if (below || before === 'end' && !part) return list.insertBefore(row, below)
  row.remove()  // it is gone, or in a part that has not come yet
  // That part may be on its way, without the row: it stood further up when the part was asked for.
  if (before !== 'gone' && others.length && part) reloadList(list, part.getAttribute('hx-get'))
}

// A whole list has changed: as many rows as it shows are asked for.
async function reloadList(list, address) {
  try {
    const asked = listChanges
    const answer = await fetch(`${address}&count=${list.children.length}`)
    const html = await answer.text()
    if (asked !== listChanges) return reloadList(list, address)
    const { body } = new DOMParser().parseFromString(html, 'text/html')
    if (answer.ok) merge(list, [...body.children])
  } catch {
    setTimeout(reloadList, 1000, list, address)
  }
}

// Replaces the rows of a list but for those being edited: nothing moves under who edits or reads.
function merge(list, rows) {
  const editing = $(list, '.editing')
  const position = () => list.scrollTop - (editing?.offsetTop ?? 0)
  const before = position()
  for (const old of htmx.findAll(list, 'li:not(.editing)')) old.remove()
  let next = list.firstElementChild
  for (const row of rows) {
    const edited = byId(row.id)
    if (edited) next = edited.nextElementSibling
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
  row.parentElement.insertBefore(row, distance < 0 ? over : beside(over, 1))
  drop(row)
}

// A row has been moved in the page: its place is told and stored.
function drop(row) {
  row.focus()
  const list = row.parentElement
  const rows = visible(list)
  const total = $(list, '.part') ? `more than ${rows.length - 1}` : rows.length
  announce(`Moved to place ${rows.indexOf(row) + 1} of ${total}.`)
  const [kind, id] = row.id.split('-')
  const address = `/move?kind=${kind}&id=${id}&before=${number(row.nextElementSibling)}`
  request('POST', address, { source: row, swap: 'none' })
}

let dragged = null  // the row by its id, since what comes meanwhile may replace it

on('pointerdown', event => {
  if (event.button || !event.target.matches('.grip')) return
  event.preventDefault()
  const { id, nextElementSibling } = event.target.closest(ROW)
  const timer = setInterval(drag, 16)  // the list scrolls while the pointer rests at its edge
  dragged = { id, timer, start: nextElementSibling?.id }
})

on('pointermove', ({ clientY }) => {
  if (dragged) dragged.pointerY = clientY
})

on('pointerup', () => {
  drag()
  endDrag((row, start) => row.nextElementSibling?.id !== start && drop(row))
})

addEventListener('pointercancel', () => endDrag(showAgain))

function drag() {
  const row = byId(dragged?.id)
  if (!row || !dragged.pointerY) return
  const list = row.parentElement
  const { top, bottom } = list.getBoundingClientRect()
  const y = Math.min(Math.max(dragged.pointerY, top + 8), bottom - 8)
  row.classList.add('moving')
  if (y < top + 20) list.scrollTop -= 10
  if (y > bottom - 20) list.scrollTop += 10
  const isBelow = other => {
    const box = other.getBoundingClientRect()
    return other.matches('.part') || box.top + box.height / 2 > y
  }
  const below = [...list.children].find(other => other !== row && isBelow(other)) ?? null
  if (below !== row.nextElementSibling) list.insertBefore(row, below)
}

function endDrag(finish) {
  if (!dragged) return
  const { id, timer, start } = dragged
  const row = byId(id)
  clearInterval(timer)
  dragged = null
  row?.classList.remove('moving')
  if (row) finish(row, start)
}

// ---- The focus stays where one works: on what comes in the place of what had it, on a
// neighbour, or in that part of the page

const FOCUSABLE = 'button, input, select, textarea, [tabindex]'
let near = []  // the ids of what may take the focus, the best first
let area = null

on('focusin', ({ target }) => {
  if (target.closest('#toast')) return  // from there it goes back
  if (target.matches('.editing [autofocus]')) {
    target.selectionStart = 999
    target.form.scrollIntoView({ block: 'nearest' })  // its other fields too
  }
  const row = target.closest(ROW)
  const neighbours = row ? [beside(row, 1), beside(row, -1)] : []
  const send = $('#chat-form:focus-within #send-btn')  // Stop turns into it
  near = [target.closest('[id]'), row, ...neighbours, send].map(el => el?.id)
  area = target.closest('section')
})

// Who presses elsewhere leaves.
on('pointerdown', ({ target }) => {
  if (!document.activeElement.contains(target) && !target.closest('#toast')) near = []
})

function refocus() {
  if (!near.length || document.activeElement.offsetParent) return
  for (const place of [...near.map(byId), $(area ?? document, '.add button'), log()]) {
    if (!place?.offsetParent) continue
    const able = place.matches(FOCUSABLE) ? place : $(place, FOCUSABLE)
    if (able) return able.focus({ preventScroll: true })
  }
}

on('htmx:afterSettle htmx:wsAfterMessage', () => {
  showChat()
  refocus()
  toEnd()
})

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
  if (requestConfig.path.startsWith('/warm')) return
  toast(xhr.responseText || 'The app does not answer. Is it still running in its terminal?')
  if (source.type === 'checkbox') source.checked = source.defaultChecked
  const row = target.closest('.editing')
  if (xhr.status === 404 && row) rowIsGone(row, requestConfig.verb === 'post')
})

// The row was deleted while it was edited: what was typed can be added anew.
function rowIsGone(row, saving) {
  const field = $(row.parentElement.parentElement, '.add input')
  if (saving) field.value ||= $(row, 'input').value
  htmx.swap(row, '', { swapStyle: 'delete' })
  refocus()
}

on('click', ({ target }) => {
  closePanels(target)
  const button = target.closest('button')
  if (button?.matches('.copy')) copy(button)
  if (button?.matches('.attach')) byId('files').click()
  if (button?.dataset.side) showSide(button.dataset.side)
  if (button?.matches('.idea')) propose(button.textContent)
  if (button?.matches('.edit')) edit(button.closest('.msg'))
  if (button?.id === 'no-edit') giveUpEdit()
  if (target.id !== 'more') return
  follow = true
  toEnd()
})

function propose(text) {
  type(text)
  byId('msg').focus()
}

async function copy(button) {
  const refused = 'Browsers copy only for localhost and https: select the text instead.'
  if (!navigator.clipboard) return toast(refused)
  try {  // Safari wants the promise of the text within the click
    await navigator.clipboard.write([new ClipboardItem({ 'text/plain': textOf(button) })])
  } catch {
    return toast('Nothing was copied: the app does not answer, or the browser does not allow it.')
  }
  announce('Copied')
  const icon = $(button, 'use')
  const show = (sign, name) => icon ? icon.setAttribute('href', sign) : button.textContent = name
  button.dataset.name ??= button.textContent
  show('#i-check', 'Copied')
  setTimeout(show, 1500, '#i-copy', button.dataset.name)
}

async function textOf(button) {
  const { text: address } = button.dataset
  const table = button.closest('.table')
  if (table) return asBlob(cells(table).map(row => row.join('\t')).join('\n'))
  if (!address) return asBlob($(button.closest('.code'), 'code').textContent)
  const answer = await fetch(address)
  if (!answer.ok) throw new Error(answer.status)
  return asBlob(await answer.text())
}

const asBlob = text => new Blob([text], { type: 'text/plain' })

// ---- Pictures and tables

// A cell that a spreadsheet would run as a formula stays text.
const cellText = cell => cell.innerText.trim().replace(/\s+/g, ' ').replace(/^(?=[=@]|[+-]\D)/, "'")
const cells = table => [...$(table, 'table').rows].map(row => [...row.cells].map(cellText))

function saveTable(table) {
  const quoted = text => /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
  const text = cells(table).map(row => row.map(quoted).join(',')).join('\r\n')
  const link = document.createElement('a')
  link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(text)}`
  link.download = 'table.csv'
  link.click()
}

// A click on a picture shows it large, as far as the window allows.
function enlarge(link) {
  const dialog = document.createElement('dialog')
  const picture = document.createElement('img')
  const close = document.createElement('button')
  Object.assign(picture, { src: link.href, alt: $(link, 'img').alt || $(link, 'span').textContent })
  close.textContent = 'Close'
  dialog.className = 'large'
  dialog.ariaLabel = picture.alt
  dialog.append(picture, close)
  dialog.onclick = () => dialog.close()
  dialog.onclose = () => dialog.remove()
  document.body.append(dialog)
  dialog.showModal()
}

on('click', event => {
  const { target, ctrlKey, metaKey } = event
  const link = target.closest('.zoom, .thumb')
  const table = target.closest('.table')
  if (link && !ctrlKey && !metaKey) {
    event.preventDefault()
    enlarge(link)
  }
  if (target.matches('.all')) table.classList.add('open')
  if (target.matches('.csv')) saveTable(table)
})

function countRows() {
  for (const button of htmx.findAll('.table .all')) {
    const { tBodies } = $(button.closest('.table'), 'table')
    const rows = Math.max(tBodies.length, tBodies[0]?.rows.length ?? 0)
    const label = `Show all ${rows} rows`
    if (rows > 20 && button.textContent !== label) button.textContent = label
  }
}

on('htmx:afterSettle htmx:wsAfterMessage', countRows)
countRows()
document.addEventListener('load', toEnd, true)  // a picture may have come

// ---- The start, where there is a chat (the page of an error has none)

function start() {
  if (local.side) sides.side = local.side
  const isPhone = innerWidth < 720  // it would open its keyboard
  const isNew = location.pathname === '/chat/new'
  if (isNew || !isPhone && !/[?#]/.test(location.href)) byId('msg').focus()
  type(session[draft()] ?? '')
  byId('edit').value = session[draft('edit')] ?? ''
  showChat()
  const singleKeys = byId('single-keys')
  singleKeys.checked = local.keys !== 'off'
  singleKeys.onchange = () => { local.keys = singleKeys.checked ? 'on' : 'off' }
  new ResizeObserver(toEnd).observe(log())
}

new MutationObserver(fade).observe(byId('toast'), { childList: true })
fade()
if (log()) start()
