// What HTMX and CSS cannot do: the socket's address, the keyboard, following the stream, the clipboard.
const $ = (q, in_ = document) => in_.querySelector(q), on = (event, f) => document.addEventListener(event, f)
const tab = Math.random().toString(36).slice(2)  // so that the server does not send us what we did ourselves
const log = () => $('#msg-list')
let online = false, waiting = null, unsent = false, follow = true, hide

// ---- The socket: on every connection it says what this page has seen, and gets what it missed.
htmx.createWebSocket = url => {
  const messages = [...document.querySelectorAll('#msg-list > [id^=msg-]')]
  const seen = Math.max($('main').dataset.rev, ...messages.map(m => m.dataset.rev || 0))
  const first = messages[0]?.id.slice(4) ?? 0, last = Math.max(0, ...messages.map(m => m.id.slice(4)))
  return new WebSocket(`${url}&tab=${tab}&seen=${seen}&first=${first}&last=${last}`)
}
htmx.config.wsReconnectDelay = tries => Math.min(250 * 2 ** tries, 3000)
on('htmx:configRequest', e => { e.detail.headers['X-Tab'] = tab })
on('htmx:wsOpen', () => {
  online = true
  $('#offline').hidden = true
  if (unsent) $('#chat-form').requestSubmit()
})
on('htmx:wsClose', e => {
  online = false
  setTimeout(() => { $('#offline').hidden = online }, 400)
  if (waiting && !$('#msg').value) type(waiting)  // it may not have arrived: nothing is lost
  waiting = null
  if (![1006, 1011, 1012, 1013].includes(e.detail.event.code)) setTimeout(e.detail.socketWrapper.reconnect, 1000)
})
on('htmx:wsConfigSend', e => {
  unsent = !online  // the text stays where it is until the connection is back
  if (unsent || !$('#msg').value.trim()) e.preventDefault()
  if (!unsent && !$('#msg').value.trim()) say('Type a message first.')
})
on('htmx:wsAfterSend', () => { waiting = $('#msg').value; type(''); follow = true; unsent = false })
on('htmx:oobBeforeSwap', e => {
  for (const el of e.detail.fragment.children) {
    if (!el.id) continue
    if (el.dataset.role === 'user') waiting = null  // our prompt is stored
    const old = document.getElementById(el.id)
    if (old && old !== e.detail.target) old.remove()  // a list's new item that came by two ways
    if (el.id.startsWith('f-')) Object.assign(document.getElementById('msg-' + el.id.slice(2))?.dataset ?? {}, { status: el.dataset.status, rev: el.dataset.rev })
  }
})

// ---- Reading: the view follows the stream only while the reader is at its end.
const atEnd = () => log().scrollHeight - log().scrollTop - log().clientHeight < 60
const toEnd = () => { if (follow) log().scrollTop = log().scrollHeight; $('#more').hidden = follow || atEnd() }
on('htmx:wsAfterMessage', toEnd)
document.addEventListener('scroll', e => { if (e.target === log()) { follow = atEnd(); if (follow) $('#more').hidden = true } }, true)
on('DOMContentLoaded', () => { toEnd(); new ResizeObserver(toEnd).observe(log()) })

// ---- Writing
function type(text) { $('#msg').value = text; grow() }
function grow() { const m = $('#msg'); m.style.height = 'auto'; m.style.height = m.scrollHeight + 2 + 'px' }
on('input', e => {
  if (e.target.id === 'msg') grow()
  const left = e.target.maxLength - e.target.value?.length
  if (e.target.maxLength > 0 && left < e.target.maxLength / 10) say(`${left} characters left.`)
})
on('keydown', e => {
  if (e.key === 'Enter' && e.target.id === 'msg' && !e.shiftKey && !e.isComposing) { e.preventDefault(); $('#chat-form').requestSubmit() }
  const cancel = e.key === 'Escape' && e.target.closest('[data-cancel]')
  if (cancel) htmx.ajax('GET', cancel.dataset.cancel, { target: cancel.parentElement, swap: 'outerHTML' })
})
on('dblclick', e => e.target.closest('li .title') && e.target.matches('span') && e.target.parentElement.querySelector('[hx-get]').click())
on('htmx:afterRequest', e => { if (e.detail.successful && e.target.dataset.reset) e.target.reset() })
on('htmx:afterSwap', () => $('[autofocus]:not(#msg)')?.select())

// ---- Words at the edge
function say(text) { const t = $('#toast'); t.textContent = text; shown() }
function shown() { clearTimeout(hide); hide = setTimeout(() => $('#toast').replaceChildren(), 7000) }
on('htmx:oobAfterSwap', e => e.detail.target.id === 'toast' && shown())
on('htmx:responseError', e => say(e.detail.xhr.responseText))
on('htmx:sendError', () => say('The app does not answer. Is it still running in its terminal?'))
on('theme', e => { document.documentElement.dataset.theme = e.detail.value })
on('htmx:configRequest', e => {
  if (e.detail.path !== '/switch_theme') return
  const { theme } = document.documentElement.dataset
  e.detail.parameters.dark = (theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches) ? '1' : ''
})
on('click', async e => {
  if (e.target.id === 'more') { follow = true; toEnd() }
  const copy = e.target.closest('.copy')
  if (!copy) return
  const text = copy.dataset.text ? await (await fetch(copy.dataset.text)).text() : $('code', copy.closest('.code')).textContent
  await navigator.clipboard.writeText(text)
  copy.textContent = 'Copied'
  setTimeout(() => { copy.textContent = 'Copy' }, 1500)
})
