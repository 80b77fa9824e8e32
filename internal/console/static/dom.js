// Making elements. Whatever comes from the service gets into the page by way of h, as text and never as markup.

// h makes an element. Of props, those that begin with "on" are listeners, class and text are what they say, dataset is an
// object, and all others are attributes; false, null and undefined leave them out. Children are nodes or texts.
export function h(tag, props, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === false || value === null || value === undefined) continue
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (name === 'class') element.className = value
    else if (name === 'text') element.textContent = value
    else if (name === 'dataset') Object.assign(element.dataset, value)
    else element.setAttribute(name, value === true ? '' : value)
  }
  append(element, children)
  return element
}

export function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === false || child === null || child === undefined) continue
    element.append(child instanceof Node ? child : String(child))
  }
}

export function fill(element, ...children) {
  element.replaceChildren()
  append(element, children)
}

const svg = 'http://www.w3.org/2000/svg'

// icon draws one of a few paths; it says nothing to a screen reader.
export function icon(name) {
  const element = document.createElementNS(svg, 'svg')
  element.setAttribute('viewBox', '0 0 20 20')
  element.setAttribute('aria-hidden', 'true')
  element.classList.add('icon')
  const path = document.createElementNS(svg, 'path')
  path.setAttribute('d', icons[name])
  element.append(path)
  return element
}

const icons = {
  search: 'M9 3.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11ZM13.2 13.2 17 17',
  back: 'M11.5 5 6.5 10l5 5',
  copy: 'M7 7h9v9H7zM4 13V4h9',
  refresh: 'M16 10a6 6 0 1 1-1.8-4.3M16 3v3.2h-3.2',
  close: 'm5 5 10 10M15 5 5 15',
  away: 'M10 3 2.5 16.5h15zM10 8v4M10 14.2v.3',
}

const integer = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 })
const compact = new Intl.NumberFormat('en-US', { notation: 'compact', maximumFractionDigits: 1 })
const dayMonth = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', timeZone: 'UTC' })
const longDay = new Intl.DateTimeFormat('en-GB', { weekday: 'short', day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' })
const moment = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric', hour: '2-digit', minute: '2-digit' })

export const number = (n) => integer.format(n)
export const short = (n) => compact.format(n)
export const plural = (n, one, many = one + 's') => `${number(n)} ${n === 1 ? one : many}`
// signed uses the sign that is as wide as a plus.
export const signed = (n) => (n > 0 ? '+' : n < 0 ? '−' : '') + number(Math.abs(n))

// A day is a text such as 2026-11-26, of the zone in which months are reset.
export const dayLabel = (day) => dayMonth.format(new Date(day + 'T00:00:00Z'))
export const dayName = (day) => longDay.format(new Date(day + 'T00:00:00Z'))

// time shows an instant in the zone of who looks, with the exact one for the pointer.
export function time(instant) {
  if (!instant) return '–'
  return h('time', { datetime: instant, title: instant, text: moment.format(new Date(instant)) })
}

// date shows the day of an instant in UTC, as it was given for a renewal.
export function date(instant) {
  if (!instant) return '–'
  const at = new Date(instant)
  return h('time', { datetime: instant, title: instant, text: at.toLocaleDateString('en-GB', { day: 'numeric', month: 'short', year: 'numeric', timeZone: 'UTC' }) })
}

// announce tells those who do not see the page what has changed.
export function announce(text) {
  document.getElementById('status').textContent = text
}

// toast shows a short message for a while; it is announced.
export function toast(text) {
  const element = h('div', { class: 'toast', text })
  document.getElementById('toasts').append(element)
  setTimeout(() => element.remove(), 8000)
}

export function copyButton(text, label) {
  const button = h('button', {
    type: 'button', class: 'quiet copy', 'aria-label': label, title: label,
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(text())
        toast('Copied')
      } catch {
        toast('The browser did not let it be copied; mark the text instead')
      }
    },
  }, icon('copy'))
  return button
}

// badge is a word with a tone: good, warn, bad or none.
export const badge = (text, tone = '') => h('span', { class: 'badge ' + tone, text })

export function tierBadge(tier) {
  return h('span', { class: 'badge tier', dataset: { tier }, text: tier })
}

const statusTones = { active: 'good', trialing: 'good', past_due: 'warn', unpaid: 'warn', paused: 'warn', incomplete: 'warn' }

export const statusBadge = (status) => badge(status.replaceAll('_', ' '), statusTones[status] ?? 'bad')

// field is a labelled control.
export function field(label, control, hint) {
  control.id ||= 'field-' + ++fields
  const parts = [h('label', { for: control.id, text: label }), control]
  if (hint) {
    control.setAttribute('aria-describedby', control.id + '-hint')
    parts.push(h('p', { class: 'hint', id: control.id + '-hint', text: hint }))
  }
  return h('div', { class: 'field' }, parts)
}
let fields = 0

export function select(options, value, props) {
  const element = h('select', props, options.map(([v, text]) => h('option', { value: v, text })))
  element.value = value ?? ''
  return element
}

// problemBox shows what went wrong: the sentence for people, what is wrong with which field, and the request's id for
// the log.
export function problemBox(problem, retry) {
  return h('div', { class: 'problem', role: 'alert' },
    h('p', { class: 'problem-detail', text: problem.detail }),
    problem.errors?.length > 0 && h('ul', null, problem.errors.map((e) => h('li', null, h('code', { text: e.field }), ' ', e.message))),
    (problem.code || problem.requestId) && h('p', { class: 'problem-origin' },
      problem.status ? `${problem.status} ` : '', problem.code && h('code', { text: problem.code }),
      problem.requestId && [' · request ', h('code', { class: 'request-id', text: problem.requestId })]),
    retry && h('button', { type: 'button', class: 'secondary', onclick: retry, text: 'Try again' }))
}

// part is a card whose content is loaded: load runs fetch, shows what show makes of it, or the problem. Until then, and
// while it is loaded again or the service is away, it keeps what it had.
export function part(title, { fetch, show, id, controls, wide }) {
  const heading = h('h2', { text: title, id: id + '-title' })
  const body = h('div', { class: 'part-body' }, h('div', { class: 'skeleton', 'aria-hidden': 'true' }))
  const element = h('section', { class: 'card' + (wide ? ' wide' : ''), id, 'aria-labelledby': heading.id }, h('div', { class: 'card-head' }, heading, controls), body)
  let latest = 0
  let loaded = false
  async function load() {
    const mine = ++latest
    element.setAttribute('aria-busy', 'true')
    try {
      const result = await fetch()
      if (mine !== latest) return
      show(body, result)
      loaded = true
    } catch (problem) {
      if (problem.name === 'AbortError' || mine !== latest) return
      if (problem.away && loaded) return // it is loaded again when the service is back
      loaded = false
      fill(body, problemBox(problem, load))
    } finally {
      if (mine === latest) element.removeAttribute('aria-busy')
    }
  }
  return { element, body, load }
}
