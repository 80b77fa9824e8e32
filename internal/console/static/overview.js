// The overview: where the tokens go, who spends them, who is there, and who is about to run out.

import { h, fill, append, part, number, plural, field, select, tierBadge, announce } from './dom.js'
import { get } from './api.js'
import { dayBars } from './chart.js'

const ranges = [['month', 'This month'], ['30', 'Last 30 days'], ['90', 'Last 90 days']]
const dimensions = [['feature', 'Feature'], ['model', 'Model'], ['tier', 'Tier']]

// range is what the calls want for one of the ranges. Without an end they go on to that of the month, in their own zone:
// days takes away what is too much.
export function range(value) {
  if (value === 'month') return {}
  return { from: new Date(Date.now() - value * 86_400_000).toISOString().slice(0, 10) }
}

// days are those of a report that belong to the range, up to today in the zone of the report.
export function days(report, value) {
  const today = new Intl.DateTimeFormat('en-CA', { timeZone: report.time_zone, year: 'numeric', month: '2-digit', day: '2-digit' }).format(new Date())
  return report.days.filter((d) => d.date <= today).slice(value === 'month' ? 0 : -value)
}

// charged and refunded are sums of days.
export const charged = (list) => list.reduce((sum, d) => sum + d.tokens_charged, 0)
export const refunded = (list) => list.reduce((sum, d) => sum + d.tokens_refunded, 0)

export { ranges }

// seriesOf turns the values of days into series. What names no value is told apart from the value "none".
export function seriesOf(list) {
  const byName = new Map()
  list.forEach((day, d) => {
    for (const { value, tokens_charged: charged } of day.values) {
      const name = value ?? '(none)'
      if (!byName.has(name)) byName.set(name, list.map(() => 0))
      byName.get(name)[d] += charged
    }
  })
  return [...byName].map(([name, values]) => ({ name, values }))
}

export function overview({ query, title }) {
  title('Overview')
  const stop = new AbortController()
  const by = select(dimensions, query.get('by') ?? 'feature', { name: 'by' })
  const span = select(ranges, query.get('range') ?? '30', { name: 'range' })
  for (const control of [by, span]) {
    control.addEventListener('change', () => {
      history.replaceState(null, '', '#/overview?' + new URLSearchParams({ by: by.value, range: span.value }))
      tokens.load()
    })
  }
  const figures = h('dl', { class: 'tiles' })
  const spenders = part('Users that spent', { id: 'spenders', fetch: async () => null, show() {} })

  const tokens = part('Tokens per day', {
    id: 'tokens', wide: true,
    controls: h('div', { class: 'controls' }, field('By', by), field('Time', span)),
    fetch: () => get('/usage', { by: by.value, ...range(span.value) }, stop.signal),
    show(body, usage) {
      const list = days(usage, span.value)
      const dates = list.map((d) => d.date)
      fill(body, dayBars({ label: `Tokens charged per day by ${by.value}`, days: dates, series: seriesOf(list), unit: 'tokens' }),
        h('p', { class: 'note', text: `Days in ${usage.time_zone}. What was refunded still counts on the day of its charge.` }))
      fill(spenders.body, dayBars({ label: 'Users that spent, per day', days: dates, series: [{ name: 'users', values: list.map((d) => d.users) }], unit: 'users' }))
      const spent = charged(list), back = refunded(list)
      const busy = list.filter((d) => d.users > 0)
      const tile = (label, value, hint) => h('div', { class: 'tile' }, h('dt', { text: label }), h('dd', null, value, hint && h('small', { text: hint })))
      fill(figures,
        tile('Tokens charged', number(spent), ranges.find(([v]) => v === span.value)[1].toLowerCase()),
        tile('A day on average', number(spent / Math.max(1, list.length)), 'tokens'),
        tile('Given back', number(back), spent ? `${(100 * back / spent).toFixed(1)} % of what was charged` : ''),
        tile('Users that spend', number(busy.reduce((sum, d) => sum + d.users, 0) / Math.max(1, busy.length)), `a day on average; ${number(list.at(-1)?.users ?? 0)} today`))
      announce(`${number(spent)} tokens were charged.`)
    },
  })

  const census = counting(stop.signal)
  const low = part('Low balance', {
    id: 'low',
    controls: h('a', { href: '#/users?low_balance=true', text: 'All of them' }),
    fetch: () => get('/users', { low_balance: true, limit: 50 }, stop.signal),
    show(body, { users, next_cursor: cursor }) {
      if (!users.length) return fill(body, h('p', { class: 'empty', text: cursor ? 'Nobody among the first that were looked at.' : 'Nobody is about to run out.' }))
      fill(body, h('ul', { class: 'people' }, users.slice(0, 8).map((u) => h('li', null,
        h('a', { href: '#/user/' + encodeURIComponent(u.cognito_user_id), text: u.username ?? u.cognito_user_id }),
        tierBadge(u.subscription_tier), h('span', { class: 'number', text: plural(u.tokens_remaining, 'token') })))))
    },
  })

  return {
    element: h('div', { class: 'page' }, h('div', { class: 'page-head' }, h('h1', { text: 'Overview' })), figures,
      h('div', { class: 'grid' }, tokens.element, spenders.element, low.element, census.element)),
    load() {
      tokens.load()
      low.load()
      census.load()
    },
    end: () => stop.abort(),
  }
}

// automatic is how many accounts are counted unasked.
const automatic = 2000

// counting tells how many users there are of each tier and status. The list is read to its end, a page at a time; a long
// one only when somebody asks for it.
function counting(signal) {
  const columns = ['active', 'trialing', 'other status', 'deactivated']
  let rows, counted, cursor, running
  let pass = 0 // a count that was begun anew leaves the one before it

  const begin = () => {
    rows = new Map()
    counted = 0
    cursor = null
  }
  const count = (accounts) => {
    for (const u of accounts) {
      if (!rows.has(u.subscription_tier)) rows.set(u.subscription_tier, [0, 0, 0, 0])
      const column = !u.is_active ? 3 : u.subscription_status === 'active' ? 0 : u.subscription_status === 'trialing' ? 1 : 2
      rows.get(u.subscription_tier)[column]++
    }
    counted += accounts.length
  }
  const order = ['free', 'tester', 'basic', 'creator', 'agency', 'admin']
  const rank = (tier) => (order.indexOf(tier) + order.length + 1) % (order.length + 1)

  function show(body) {
    const tiers = [...rows].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1))
    const cell = (n) => h('td', { class: 'number' + (n ? '' : ' none'), text: number(n) })
    const sum = (list) => list.reduce((a, b) => a + b, 0)
    fill(body,
      h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Table of users by tier and status' }, h('table', { class: 'census' },
        h('thead', null, h('tr', null, h('th', { scope: 'col', text: 'Tier' }), columns.map((c) => h('th', { scope: 'col', class: 'number', text: c })), h('th', { scope: 'col', class: 'number', text: 'all' }))),
        h('tbody', null, tiers.map(([tier, counts]) => h('tr', null, h('th', { scope: 'row' }, h('a', { href: '#/users?' + new URLSearchParams({ tier }) }, tierBadge(tier))), counts.map(cell), cell(sum(counts))))),
        h('tfoot', null, h('tr', null, h('th', { scope: 'row', text: 'all' }), columns.map((_, c) => cell(sum(tiers.map(([, counts]) => counts[c])))), cell(counted))))))
    if (!cursor) return
    append(body, [h('p', { class: 'note' },
      `Counted are the first ${number(counted)} users, by id; there are more. `,
      running ? h('button', { type: 'button', class: 'secondary', onclick: () => { running = false }, text: 'Stop' })
        : h('button', { type: 'button', class: 'secondary', onclick: () => { running = true; goOn(body, Infinity) }, text: 'Count all' }))])
  }

  // more counts a page, and reports whether to go on.
  async function more(mine) {
    const page = await get('/users', { limit: 200, cursor }, signal)
    if (mine !== pass) return false
    count(page.users)
    cursor = page.next_cursor
    return cursor !== null
  }

  // goOn counts further, until there is no more, somebody stops it, or a call fails: what has been counted is shown as that.
  async function goOn(body, until) {
    const mine = pass
    try {
      while (running && counted < until && cursor && await more(mine)) show(body)
    } catch (problem) {
      if (problem.name === 'AbortError') return
    }
    if (mine !== pass) return
    running = false
    show(body)
  }

  return part('Users by tier and status', {
    id: 'census', wide: true,
    async fetch() {
      running = false
      begin()
      await more(++pass)
    },
    show(body) {
      running = cursor !== null
      show(body)
      goOn(body, automatic)
    },
  })
}
