// What HTMX and CSS cannot do: the socket's address, the keyboard, following the stream, the clipboard.
const $ = (q, in_ = document) => in_.querySelector(q), on = (event, f) => document.addEventListener(event, f)
const tab = Math.random().toString(36).slice(2)  // so that the server does not send us what we did ourselves
const log = () => $('#msg-list'), byId = id => document.getElementById(id)
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches && 'dark')) === 'dark'
let online = false, waiting = null, restored = null, unsent = false, follow = !location.hash.startsWith('#msg'), hide

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
on('htmx:wsConfigSend', e => {
  const empty = !$('#msg').value.trim()
  if (empty) say('Type a message first.')
  if (unsent = !empty && !online, empty || unsent) e.preventDefault()  // the text stays where it is until the connection is back
})
on('htmx:wsAfterSend', () => { waiting = $('#msg').value; type(''); follow = true; unsent = false })
on('htmx:oobBeforeSwap', e => {
  const { fragment, target } = e.detail
  for (const el of [...fragment.children]) {
    if (el.dataset.role === 'user') {  // our prompt is stored: it need not be kept here
      if (restored && $('#msg').value === restored && $('.content', el).textContent === restored) type('')
      waiting = restored = null
    }
    if (el.id.startsWith('f-')) {  // the foot of a message tells its state
      Object.assign($('#msg-' + el.id.slice(2))?.dataset ?? {}, { status: el.dataset.status, rev: el.dataset.rev })
      if (el.dataset.status === 'done') tell('The answer is here.')
    }
  }
  if (!target.matches('ul[id$=-list]')) return
  const rows = [...fragment.children], editing = $('.editing', target)
  e.detail.shouldSwap = !rows[0]?.dataset.put && !editing
  if (rows[0]?.dataset.put) return place(target, rows[0])
  for (const el of editing ? [...target.children] : []) if (el !== editing) el.remove()
  if (editing) fill(target, rows, editing)
})
function fill(list, rows, at) {  // puts rows in front of `at`; one that is there already moves, but for what somebody is typing
  for (const li of rows) {
    const old = byId(li.id)
    if (old === at || old?.matches('.editing')) at = old?.nextElementSibling
    if (old?.matches('.editing')) continue
    old?.remove()
    list.insertBefore(li, at ?? null)
    htmx.process(li)
  }
}
function place(list, li) {  // a row that was added, changed, moved or deleted elsewhere
  const old = byId(li.id), { put } = li.dataset, focused = old?.contains(document.activeElement) && (document.activeElement.id || li.id)
  if (old?.matches('.editing')) return  // it shows when the typing there is done
  const at = put === 'here' ? old : byId(put) ?? byId(put + '-part')
  if (at || put === 'end' && !$('.part', list)) fill(list, [li], at)
  else old?.remove()  // gone, or to a part that has not come yet
  if (focused) byId(focused)?.focus()
}

// ---- Reading: the view follows the stream only while the reader is at its end.
const atEnd = () => log().scrollHeight - log().scrollTop - log().clientHeight < 60
const toEnd = () => { if (follow) log().scrollTop = log().scrollHeight; $('#more').hidden = follow || atEnd() }
on('htmx:wsAfterMessage', toEnd)
document.addEventListener('scroll', e => { if (e.target === log() && (follow = atEnd())) $('#more').hidden = true }, true)
on('DOMContentLoaded', () => {
  if (!log()) return  // the page of an error
  type(sessionStorage.draft ?? '')
  Object.assign($('#single-keys'), { checked: localStorage.keys !== 'off', onchange: e => { localStorage.keys = e.target.checked ? 'on' : 'off' } })
  new ResizeObserver(toEnd).observe(log())
})

// ---- Writing
function type(text) { $('#msg').value = text; grow() }
function grow(m = $('#msg')) {
  sessionStorage.draft = m.value  // a reload keeps what is being written
  m.style.height = 'auto'; m.style.height = m.scrollHeight + 2 + 'px'
}
on('input', e => {
  if (e.target.id === 'msg') grow()
  const left = e.target.maxLength - e.target.value?.length
  if (e.target.maxLength > 0 && left < e.target.maxLength / 10) say(`${left} characters left.`)
})
on('keydown', e => {
  if (e.key === 'Enter' && e.target.id === 'msg' && !e.shiftKey && !e.isComposing) { e.preventDefault(); $('#chat-form').requestSubmit() }
  const form = e.target.closest?.('[data-cancel]')
  if (e.key === 'Escape') form ? htmx.ajax('GET', form.dataset.cancel, { target: form.parentElement, swap: 'outerHTML' }) : shut()
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.matches?.('input:not([type=checkbox]), textarea, select') || localStorage.keys === 'off') return
  ;({ '?': () => $('#keys')?.togglePopover(), '/': () => $('#search')?.focus() })[e.key]?.(e.preventDefault())
})
on('htmx:afterRequest', e => {
  const field = e.detail.successful && e.target.dataset?.reset && $('input', e.target)
  if (!field) return
  if (field.value === e.detail.requestConfig.parameters[field.name]) e.target.reset()  // else the next one is being typed
  tell('Added.')
})
function shut(but) {  // a panel is closed by Escape and by a click elsewhere
  for (const d of document.querySelectorAll('.drop[open]')) if (!but || !d.contains(but) && but.isConnected) { d.open = false; if (!but) $('summary', d).focus() }
}

// ---- Lists: edit, move and delete by keyboard; move by mouse and finger; several lines at once
const ITEM = 'li[id]', act = (li, what) => $(`[aria-label^="${what} "]`, li)?.click()
on('dblclick', e => e.target.matches('#todo-list .title') && act(e.target.closest(ITEM), 'Rename'))
on('keydown', e => {
  if (!e.target.matches?.(ITEM) || e.target.matches('.editing')) return
  if (e.key === 'Enter' || e.key === 'F2') act(e.target, 'Rename')
  else if (e.key === 'Delete') act(e.target, 'Delete')
  else if (e.key === ' ') $('[type=checkbox]', e.target)?.click()
  else if (e.altKey && e.key === 'ArrowUp') step(e.target, -1)
  else if (e.altKey && e.key === 'ArrowDown') step(e.target, 1)
  else return
  e.preventDefault()
})
on('htmx:beforeSwap', ({ detail, detail: { target: li } }) => {
  if (li.matches?.('.part')) {
    fill(li.parentElement, [...new DOMParser().parseFromString(detail.serverResponse, 'text/html').body.children], li)
    return detail.shouldSwap = li.remove()
  }
  const below = log().scrollHeight - log().scrollTop  // older messages come in above: what is being read stays where it is
  if (li.matches?.('.older')) addEventListener('htmx:afterSettle', () => { log().scrollTop = log().scrollHeight - below }, { once: true })
  if (!li.matches?.(ITEM) || !li.contains(document.activeElement)) return
  // The focus stays where one works: on the row that comes instead, or on its neighbour.
  const near = [li.id, li.nextElementSibling?.id, li.previousElementSibling?.id], list = li.parentElement
  setTimeout(() => {
    const to = near.map(byId).find(x => x?.offsetParent) ?? $('.add', list.parentElement)
    if (document.activeElement === document.body) (to.matches('[tabindex]') ? to : $('button, input', to)).focus()
  })
})
const visible = list => [...list.children].filter(li => li.offsetParent)
function step(li, by) {
  const all = visible(li.parentElement), place = all.indexOf(li) + by
  if (all[place] && !all[place].matches('.part')) drop(li, all[by < 0 ? place : place + 1] ?? null)  // what the next part begins with is not known yet
}
function drop(li, before) {
  const list = li.parentElement, [kind, id] = li.id.split('-')
  list.insertBefore(li, before)
  li.focus()
  const all = visible(list), more = $('.part', list)
  tell(`Moved to place ${all.indexOf(li) + 1} of ${more ? `more than ${all.length - 1}` : all.length}.`)
  htmx.ajax('POST', `/move?kind=${kind}&id=${id}&before=${li.nextElementSibling?.id.split('-')[1] ?? 0}`, { source: li, swap: 'none' })
}
on('pointerdown', e => {
  const li = e.target.closest?.('.grip')?.parentElement, end = li?.nextElementSibling
  if (!li) return
  const move = m => {
    const list = li.parentElement, { top: upper, bottom } = list.getBoundingClientRect()
    list.scrollTop += m.clientY > bottom - 20 ? 10 : m.clientY < upper + 20 ? -10 : 0
    const over = document.elementFromPoint(m.clientX, m.clientY)?.closest(ITEM)
    if (!over || over === li || over.parentElement !== list) return
    const { top, height } = over.getBoundingClientRect()
    m.clientY < top + height / 2 ? over.before(li) : over.after(li)
  }
  e.preventDefault()
  li.classList.add('moving')
  const drag = new AbortController(), done = () => {
    drag.abort(); li.classList.remove('moving')
    if (li.nextElementSibling !== end) drop(li, li.nextElementSibling)
  }
  for (const [event, f] of [['pointermove', move], ['pointerup', done], ['pointercancel', done]]) addEventListener(event, f, drag)
})
on('paste', e => {
  const text = e.clipboardData.getData('text').trim(), form = e.target.closest?.('[hx-post="/todo"]'), most = e.target.maxLength
  if (!form || !text.includes('\n')) return most > 0 && text.length > most && say(`Only the first ${most} of ${text.length} characters fit here.`)
  e.preventDefault()
  htmx.ajax('POST', '/todo', { source: form, values: { title: text }, target: '#todo-list', swap: 'beforeend scroll:bottom' })
})

// ---- Words at the edge
function tell(text) { $('#announce').textContent = text }
function say(text) { $('#toast').textContent = text; shown() }
function shown() { clearTimeout(hide); hide = setTimeout(() => $('#toast').replaceChildren(), 7000) }
on('htmx:oobAfterSwap', e => e.detail.target.id === 'toast' && shown())
on('htmx:responseError', e => {
  say(e.detail.xhr.responseText)
  if (e.detail.xhr.status === 404 && e.detail.requestConfig.verb === 'get') e.detail.target.closest('.editing')?.remove()  // given up, and deleted meanwhile
})
on('htmx:sendError', e => e.detail.pathInfo.requestPath.startsWith('/warm') || say('The app does not answer. Is it still running in its terminal?'))
on('click', async e => {
  shut(e.target)
  if (e.target.id === 'more') { follow = true; toEnd() }
  const copy = e.target.closest('.copy')
  if (!copy) return
  if (!navigator.clipboard) return say('Browsers copy only for localhost and https: select the text instead.')
  const text = copy.dataset.text ? await (await fetch(copy.dataset.text)).text() : $('code', copy.closest('.code')).textContent
  await navigator.clipboard.writeText(text)
  const name = copy.dataset.name ??= copy.textContent
  copy.textContent = 'Copied'
  setTimeout(() => { copy.textContent = name }, 1500)
})
