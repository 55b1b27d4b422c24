// What HTMX and CSS cannot do: the socket's address, the keyboard and its focus, following the stream, the clipboard.
const $ = (q, in_ = document) => in_.querySelector(q), on = (events, f) => events.split(' ').forEach(e => document.addEventListener(e, f))
const tab = Math.random().toString(36).slice(2)  // so that the server does not send us what we did ourselves
const send = (...args) => htmx.ajax(...args).catch(() => {})  // what went wrong is said below
const log = () => $('#msg-list'), byId = id => document.getElementById(id), tell = text => { if (text) $('#announce').textContent = text }
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches && 'dark')) === 'dark'
let online = false, waiting = null, restored = null, unsent = false, follow = !location.hash.startsWith('#msg'), hide, near = [], area

// ---- The socket: on every connection it says what this page has seen, and gets what it missed.
htmx.createWebSocket = url => {
  const messages = [...document.querySelectorAll('#msg-list > [id^=msg-]')]
  const seen = Math.max($('main').dataset.rev, ...messages.map(m => m.dataset.rev || 0))
  const first = messages[0]?.id.slice(4) ?? 0, last = Math.max(0, ...messages.map(m => m.id.slice(4)))
  return new WebSocket(`${url}&tab=${tab}&seen=${seen}&first=${first}&last=${last}`)
}
htmx.config.wsReconnectDelay = tries => Math.min(250 * 2 ** tries, 3000)
on('htmx:configRequest', e => {
  e.detail.headers['X-Tab'] = tab
  if (e.detail.path.startsWith('/run/')) follow = true
  if (e.detail.path === '/switch_theme') e.detail.parameters.theme = document.documentElement.dataset.theme = dark() ? 'light' : 'dark'
})
on('htmx:wsOpen', () => { $('#offline').hidden = online = true; if (unsent) $('#chat-form').requestSubmit() })
on('htmx:wsClose', e => {
  online = false; setTimeout(() => { $('#offline').hidden = online }, 400)
  if (waiting && !$('#msg').value) type(restored = waiting)  // it may not have arrived: nothing is lost
  waiting = null
  if (![1006, 1011, 1012, 1013].includes(e.detail.event.code)) setTimeout(e.detail.socketWrapper.reconnect, 1000)
})
on('htmx:wsConfigSend', e => { if (unsent = !online && $('#msg').value.trim(), !online) e.preventDefault() })  // it waits where it was typed
on('htmx:wsAfterSend', () => { waiting = $('#msg').value.trim(); type(''); follow = true; unsent = false })
on('htmx:oobBeforeSwap', e => {
  const { fragment, target } = e.detail, rows = [...fragment.children], editing = $('.editing', target)
  for (const el of rows) {
    if (restored && $('#msg').value === restored && $('.content', el)?.textContent === restored) type('')
    if (el.dataset.role === 'user') waiting = restored = null  // our prompt is stored: it need not be kept here
    const foot = el.id.startsWith('f-'), { status, rev } = el.dataset  // the foot of a message tells its state, or the whole of it does
    if (foot) Object.assign($('#msg-' + el.id.slice(2))?.dataset ?? {}, { status, rev })
    if (foot || el.dataset.role === 'assistant') tell({ done: 'The answer is here.', stopped: 'Stopped.', error: 'It ended with an error.' }[status])
  }
  if (!target.matches('ul[id$=-list]')) return
  e.detail.shouldSwap = false
  if (rows[0]?.dataset.put) return place(target, rows[0])
  const above = () => target.scrollTop - (editing?.offsetTop ?? 0), was = above(), old = [...target.children]  // one sees what one saw
  fill(target, rows, editing)
  for (const el of old) if (!el.matches('.editing')) el.remove()
  target.scrollTop += was - above()
})
function fill(list, rows, at) {  // puts rows in front of `at`; one that is there already moves, but for what somebody is typing
  for (const li of rows) {
    const old = byId(li.id), editing = old?.matches('.editing')
    if (old === at || editing) at = old?.nextElementSibling
    if (!editing) { old?.remove(); list.insertBefore(li, at || null); htmx.process(li) }
  }
}
function place(list, li) {  // a row that was added, changed, moved or deleted elsewhere
  const old = byId(li.id), { put } = li.dataset, at = byId(put) ?? byId(put + '-part') ?? (old?.nextElementSibling?.matches('.part') && old)
  if (old?.matches('.editing')) return  // it shows when the typing there is done
  delete li.dataset.put
  if (put !== 'gone' && (at || put === 'end' && !$('.part', list))) fill(list, [li], at)
  else old?.remove()  // gone, or to a part that has not come yet
}

// ---- Reading and writing: the view follows the stream only while the reader is at its end.
const atEnd = el => el.scrollHeight - el.scrollTop - el.clientHeight < 60
const toEnd = () => { if (follow) log().scrollTop = log().scrollHeight; $('#more').hidden = follow || atEnd(log()) }
document.addEventListener('scroll', e => { if (e.target === log() && (follow = atEnd(log()))) $('#more').hidden = true }, true)
on('DOMContentLoaded', () => {
  if (!log()) return  // the page of an error
  if (innerWidth > 768 && !/[?#]/.test(location.href)) $('#msg').focus()  // on a phone it would scroll the lists away, and open the keyboard
  type(sessionStorage[draft()] ?? '')
  Object.assign($('#single-keys'), { checked: localStorage.keys !== 'off', onchange: e => { localStorage.keys = e.target.checked ? 'on' : 'off' } })
  new ResizeObserver(toEnd).observe(log())
  new MutationObserver(fade).observe($('#toast'), { childList: true })
  fade()
})
const draft = () => $('main').getAttribute('ws-connect')
function type(text) { $('#msg').value = sessionStorage[draft()] = text }
on('input', ({ target: { id, value, maxLength } }) => {
  if (id === 'msg') sessionStorage[draft()] = value, unsent = false  // a reload keeps it; who types on sends again
  if (maxLength > 0 && value.length > maxLength * .9) say(`${maxLength - value.length} characters left.`)
})
on('htmx:afterRequest', ({ target, detail }) => {
  const field = detail.successful && target.dataset?.reset && $('input', target)
  if (field) tell('Added.')
  if (field && field.value === detail.requestConfig.parameters[field.name]) target.reset(field.focus())  // else the next one is being typed
})
on('submit', e => { if (e.target.matches('.search')) { e.preventDefault(); $('#search-results a')?.focus() } })
function shut(but) {  // a panel is closed by Escape and by a click elsewhere
  for (const d of document.querySelectorAll('.drop[open]')) if (!but || !d.contains(but) && but.isConnected) { d.open = false; if (!but) $('summary', d).focus() }
}
on('paste', e => {  // several lines are several todos
  const text = e.clipboardData.getData('text').trim(), form = e.target.closest?.('[hx-post="/todo"]')
  if (!form || !text.includes('\n')) return
  e.preventDefault()
  send('POST', '/todo', { source: form, values: { title: text }, target: '#todo-list', swap: 'beforeend scroll:bottom' })
})
const ITEM = 'li[id]', act = (li, what) => $(`[aria-label^="${what} "]`, li)?.click()
const ROW = { Enter: li => act(li, 'Rename'), F2: li => act(li, 'Rename'), Delete: li => act(li, 'Delete'), ' ': li => $('[type=checkbox]', li)?.click(),
  'Alt ArrowUp': li => step(li, -1), 'Alt ArrowDown': li => step(li, 1), ArrowUp: li => beside(li, -1)?.focus(), ArrowDown: li => beside(li, 1)?.focus() }
const PAGE = { '?': () => $('#keys').togglePopover(), '/': () => $('#search').focus(), 'Ctrl z': () => $('#toast button')?.click() }
on('dblclick', e => e.target.matches('#todo-list .title') && act(e.target.closest(ITEM), 'Rename'))
on('keydown', e => {
  const el = e.target.closest ? e.target : document.body, open = el.closest('[data-cancel]')
  if (e.key === 'Enter' && el.id === 'msg' && !e.shiftKey && !e.isComposing) $('#chat-form').requestSubmit(e.preventDefault())
  if (e.key === 'Escape') open ? send('GET', open.dataset.cancel, { target: open.closest(ITEM), swap: 'outerHTML' }) : shut()
  const key = (e.ctrlKey || e.metaKey ? 'Ctrl ' : '') + (e.altKey ? 'Alt ' : '') + e.key
  const typing = el.matches('input:not([type=checkbox]), textarea, select') || key.length === 1 && localStorage.keys === 'off'
  const does = el.matches(ITEM) && !el.matches('.editing') && ROW[key] || !typing && log() && PAGE[key]
  if (does) does(el, e.preventDefault())
})

// ---- Lists: moved by mouse, finger and keyboard, and their further parts
const visible = list => [...list.children].filter(li => li.offsetParent)
const beside = (li, by, all = visible(li.parentElement)) => all[all.indexOf(li) + by]
on('htmx:afterSettle', ({ target: li }) => li.dataset?.put && place(li.parentElement, li))  // a row that was edited
on('htmx:beforeSwap', ({ detail, detail: { target: el } }) => {
  const below = log().scrollHeight - log().scrollTop  // older messages come in above: what is being read stays where it is
  if (el.matches?.('.older')) addEventListener('htmx:afterSettle', () => { log().scrollTop = log().scrollHeight - below }, { once: true })
  if (!el.matches?.('.part')) return
  const list = el.parentElement, added = el.nextElementSibling && atEnd(list)  // what was just added behind it stays in view
  fill(list, [...new DOMParser().parseFromString(detail.serverResponse, 'text/html').body.children], el)
  detail.shouldSwap = el.remove()
  if (added) list.scrollTop = list.scrollHeight
})
const step = (li, by, to = beside(li, by)) =>  // what the next part begins with is not known yet
  to && !to.matches('.part') && drop(li, by < 0 ? to : beside(to, 1) ?? null)
function drop(li, before) {
  const list = li.parentElement, [kind, id] = li.id.split('-')
  list.insertBefore(li, before)
  li.focus()
  const all = visible(list)
  tell(`Moved to place ${all.indexOf(li) + 1} of ${$('.part', list) ? `more than ${all.length - 1}` : all.length}.`)
  send('POST', `/move?kind=${kind}&id=${id}&before=${li.nextElementSibling?.id.split('-')[1] ?? 0}`, { source: li, swap: 'none' })
}
on('pointerdown', e => {
  let at, id = e.target.closest?.('.grip')?.parentElement.id, end = byId(id)?.nextElementSibling?.id, drag = new AbortController()
  if (!document.activeElement.contains(e.target) && !e.target.closest('#toast')) near = []  // who presses elsewhere leaves
  if (!id || e.button) return
  e.preventDefault()
  const move = () => {  // the row is looked up each time, since what comes meanwhile may redraw it
    const li = byId(id), list = li?.parentElement
    if (!at || !li) return
    const { top: upper, bottom } = list.getBoundingClientRect(), y = Math.min(Math.max(at.clientY, upper + 8), bottom - 8)
    const over = document.elementFromPoint(at.clientX, y)?.closest(ITEM)
    li.classList.add('moving')
    list.scrollTop += y > bottom - 20 ? 10 : y < upper + 20 ? -10 : 0
    if (!over || over === li || over.parentElement !== list) return
    const { top, height } = over.getBoundingClientRect(), next = y < top + height / 2 ? over : over.nextElementSibling
    if (next !== li && next !== li.nextElementSibling) list.insertBefore(li, next)
  }
  const timer = setInterval(move, 16)  // it scrolls on while the pointer rests at the edge of the list
  const done = ({ type, key = 'Escape' }) => {
    if (key !== 'Escape') return
    if (type === 'pointerup') move()
    drag.abort(clearInterval(timer))
    const li = byId(id), [kind, n] = id.split('-')
    li?.classList.remove('moving')
    if (type !== 'pointerup') send('GET', `/item_view?kind=${kind}&id=${n}`, { target: li, swap: 'outerHTML' })  // given up: where it belongs
    else if (li && li.nextElementSibling?.id !== end) drop(li, li.nextElementSibling)
  }
  addEventListener('pointermove', m => { at = m }, drag)
  for (const event of ['pointerup', 'pointercancel', 'keydown']) addEventListener(event, done, drag)
})

// ---- The focus stays where one works: on what comes in the place of what had it, on a neighbour, or in that part of the page.
on('focusin', ({ target }) => {
  if (target.closest('#toast')) return  // from there it goes back
  if (target.matches('.editing [autofocus]')) target.setSelectionRange(999, 999)
  const row = target.closest(ITEM), all = row ? visible(row.parentElement) : [], n = all.indexOf(row)
  near = [target, row, target.closest('[id]'), all[n + 1], all[n - 1]].map(el => el?.id); area = target.closest('section')
})
function refocus() {
  if (!near.length || document.activeElement?.offsetParent) return
  const able = 'button, input, select, textarea, [tabindex]', places = [...near.map(byId), $('.add button', area ?? document), log()]
  places.map(el => el?.offsetParent && (el.matches(able) ? el : $(able, el))).find(el => el)?.focus({ preventScroll: true })
}
on('htmx:afterSettle htmx:wsAfterMessage', () => { refocus(); toEnd() })

// ---- Words at the edge
function say(text) { $('#toast').textContent = text }
function fade() { refocus(); clearTimeout(hide); hide = setTimeout(() => $('#toast').matches(':hover, :focus-within') ? fade() : say(''), 7000) }
on('htmx:responseError htmx:sendError', ({ target: el, detail: { xhr, target, pathInfo, requestConfig } }) => {
  if (!pathInfo.requestPath.startsWith('/warm')) say(xhr.responseText || 'The app does not answer. Is it still running in its terminal?')
  if (el.type === 'checkbox') el.checked = el.defaultChecked
  const gone = xhr.status === 404 && target.closest('.editing')  // deleted meanwhile: what was typed can be added anew
  if (gone && requestConfig.verb === 'post') $('.add input', gone.parentElement.parentElement).value ||= $('input', gone).value
  if (gone) refocus(htmx.swap(gone, '', { swapStyle: 'delete' }))
})
on('click', async e => {
  shut(e.target)
  if (e.target.id === 'more') { follow = true; toEnd() }
  const copy = e.target.closest('.copy')
  if (!copy) return
  if (!navigator.clipboard) return say('Browsers copy only for localhost and https: select the text instead.')
  await navigator.clipboard.writeText(copy.dataset.text ? await (await fetch(copy.dataset.text)).text() : $('code', copy.closest('.code')).textContent)
  const name = copy.dataset.name ??= copy.textContent
  tell(copy.textContent = 'Copied')
  setTimeout(() => { copy.textContent = name }, 1500)
})
