// One user: the balance, where it went, and what can be done about it.

import { h, fill, append, part, icon, number, plural, signed, field, select, tierBadge, statusBadge, badge, time, date, copyButton, announce, problemBox } from './dom.js'
import { can, get, userPath } from './api.js'
import { dayBars, levels } from './chart.js'
import { charged, days, range, ranges, refunded, seriesOf } from './overview.js'
import { kinds, kindName, explain, changed } from './words.js'
import * as actions from './actions.js'

// How many entries a page of the ledger and the chart of the balance have.
const entriesPage = 25
const chartPage = 200

const why = {
  insufficient_tokens: 'no tokens are left',
  user_inactive: 'the account is deactivated',
  subscription_inactive: 'the subscription is not active',
  subscription_lapsed: 'the subscription has lapsed',
}

// nobody are the codes of an id under which there is nothing to see.
const nobody = ['user_not_found', 'being_erased', 'invalid_path']

export function user({ id, title }) {
  title('User ' + id)
  const stop = new AbortController()
  const read = (path, query) => get(userPath(id, path), query, stop.signal)
  const head = h('div', { class: 'page-head' }, h('h1', { text: id }))
  const parts = h('div', { class: 'grid' })
  const page = h('div', { class: 'page' }, h('a', { class: 'back', href: '#/users' }, icon('back'), 'Users'), head, parts)

  const balance = part('Balance', { id: 'balance', wide: true, fetch: status, show: showBalance })
  // GET of a user would make one that is not there: the status is asked first.
  async function status() {
    try {
      const state = await read('status')
      return { state, account: await get(userPath(id), {}, stop.signal) }
    } catch (problem) {
      if (nobody.includes(problem.code)) { // nor is there anything else to show
        fill(parts, h('section', { class: 'card wide' }, problemBox(problem)))
        announce(problem.detail)
      }
      throw problem
    }
  }

  function showBalance(body, { state, account }) {
    identify(account, state)
    fill(body, state.unlimited ? h('p', { class: 'amount' }, 'Unlimited', h('small', { text: 'nothing is counted' })) : [
      h('p', { class: 'amount' }, h('strong', { text: number(state.tokens_remaining) }), h('small', { text: state.tokens_remaining === 1 ? 'token to spend' : 'tokens to spend' }), state.low_balance && badge('low', 'warn')),
      bar(state),
    ],
    h('dl', { class: 'facts' },
      fact('Can make a request', state.can_make_request ? badge('yes', 'good') : [badge('no', 'bad'), ' ', why[state.reason] ?? state.reason]),
      fact('Tier', `${state.tier_name}: ${state.unlimited ? 'unlimited' : plural(state.allowance, 'token') + ' this month'}`),
      !state.unlimited && fact('Next allowance', state.next_reset_at ? time(state.next_reset_at) : 'none'),
      fact('Renews', date(state.subscription_renewal_date)),
      fact('Last change', time(account.updated_at)),
      fact('There since', time(account.created_at))))
    announce(`${account.username ?? id}: ${state.unlimited ? 'unlimited' : plural(state.tokens_remaining, 'token')}.`)
  }

  // identify shows who it is, and what may be done.
  function identify(account, state) {
    const name = account.username || account.email || id
    title(name)
    const button = (scope, text, onclick, danger) => can(...scope) && h('button', { type: 'button', class: danger ? 'secondary danger' : 'secondary', onclick, text })
    fill(head,
      h('div', { class: 'identity' },
        h('h1', { text: name }),
        h('p', { class: 'badges' }, tierBadge(account.subscription_tier), statusBadge(account.subscription_status), !account.is_active && badge('deactivated', 'bad'), state.reason === 'subscription_lapsed' && badge('lapsed', 'warn')),
        h('p', { class: 'sub' }, account.email && account.email !== name && h('span', { class: 'email', text: account.email }), h('span', { class: 'id' }, h('code', { text: id }), copyButton(() => id, 'Copy the id')))),
      h('div', { class: 'actions', role: 'group', 'aria-label': 'Actions' },
        button(['manage'], 'Top up', () => actions.topUp(id, refresh)),
        button(['manage'], 'Change tier', () => actions.changeTier(id, account, refresh)),
        button(['manage'], account.is_active ? 'Deactivate' : 'Activate', () => actions.setActive(id, !account.is_active, refresh)),
        button(['manage'], 'Erase', () => actions.erase(id, () => { location.hash = '#/users' }), true),
        h('button', { type: 'button', class: 'quiet', 'aria-label': 'Refresh', title: 'Refresh', onclick: refresh }, icon('refresh'))))
  }

  const history = part('Balance over time', {
    id: 'history',
    fetch: () => read('ledger', { limit: chartPage }),
    show(body, { entries, next_cursor: cursor }) {
      const seen = [...entries]
      draw()
      function draw() {
        if (!seen.length) return fill(body, h('p', { class: 'empty', text: 'The ledger is empty.' }))
        const points = seen.toReversed().map((e) => [e.created_at, e.balance_after])
        fill(body, levels({ label: 'Balance after each entry of the ledger', points, until: Date.now() }),
          h('p', { class: 'note more' }, `${cursor ? 'The latest ' : ''}${plural(seen.length, 'entry', 'entries')}`,
            cursor && [' · ', h('button', { type: 'button', class: 'secondary', onclick: older, text: 'Go further back' })]))
      }
      async function older(event) {
        event.target.disabled = true
        try {
          const next = await read('ledger', { limit: chartPage, cursor })
          seen.push(...next.entries)
          cursor = next.next_cursor
          draw()
        } catch (problem) {
          if (problem.name !== 'AbortError') append(body, [problemBox(problem)])
        }
      }
    },
  })

  const by = select([['feature', 'Feature'], ['model', 'Model']], 'feature', { name: 'by' })
  const span = select(ranges, 'month', { name: 'range' })
  for (const control of [by, span]) control.addEventListener('change', () => usage.load())
  const usage = part('Tokens per day', {
    id: 'usage',
    controls: h('div', { class: 'controls' }, field('By', by), field('Time', span)),
    fetch: () => read('usage', { by: by.value, ...range(span.value) }),
    show(body, report) {
      const list = days(report, span.value)
      fill(body, dayBars({ label: `Tokens charged per day by ${by.value}`, days: list.map((d) => d.date), series: seriesOf(list), unit: 'tokens' }),
        h('p', { class: 'note', text: `${plural(charged(list), 'token')} charged, ${number(refunded(list))} given back. Days in ${report.time_zone}.` }))
    },
  })

  const holds = part('Open reservations', {
    id: 'holds', wide: true,
    fetch: () => read('reservations', { limit: 50 }),
    show(body, { reservations, next_cursor: cursor }) {
      if (!reservations.length) return fill(body, h('p', { class: 'empty', text: 'Nothing is held.' }))
      fill(body, h('div', { class: 'scroll' }, h('table', { class: 'stacks' },
        h('caption', { class: 'hidden', text: 'Open reservations' }),
        h('thead', null, h('tr', null, h('th', { scope: 'col', text: 'Reservation' }), h('th', { scope: 'col', class: 'number', text: 'Tokens' }), h('th', { scope: 'col', text: 'For' }), h('th', { scope: 'col', text: 'Made' }), h('th', { scope: 'col', text: 'Runs out' }), h('th', { scope: 'col' }, h('span', { class: 'hidden', text: 'Action' })))),
        h('tbody', null, reservations.map((r) => h('tr', null,
          h('td', null, h('code', { text: r.reservation_id })),
          h('td', { class: 'number', dataset: { label: 'Tokens' }, text: number(r.tokens_reserved) }),
          h('td', { dataset: { label: 'For' }, text: [r.metadata?.feature, r.metadata?.model].filter(Boolean).join(', ') || '–' }),
          h('td', { dataset: { label: 'Made' } }, time(r.created_at)),
          h('td', { dataset: { label: 'Runs out' } }, time(r.expires_at)),
          h('td', { class: 'row-action' }, can('consume', 'manage') && h('button', { type: 'button', class: 'secondary', onclick: () => actions.release(id, r, refresh), text: 'Release' })))))),
      cursor && h('p', { class: 'note', text: 'There are more than these, which run out first.' })))
    },
  })

  const ledger = ledgerPart(id, read, refresh)

  const all = [balance, history, usage, holds, ledger]
  function refresh() {
    if (!parts.contains(balance.element)) fill(parts, all.map((p) => p.element))
    for (const p of all) p.load()
  }

  return { element: page, load: refresh, end: () => stop.abort() }
}

const fact = (name, ...value) => h('div', null, h('dt', { text: name }), h('dd', null, value))

// bar shows what the tokens of this month are: left of the allowance, topped up, held, and spent.
function bar(state) {
  const pieces = [
    ['allowance', 'Allowance left', state.allowance_remaining],
    ['top-ups', 'Top-ups left', state.top_up_tokens],
    ['held', 'Held by reservations', state.tokens_reserved],
    ['used', 'Used this month', state.tokens_used_this_month],
  ]
  const total = pieces.reduce((sum, [, , n]) => sum + n, 0)
  const strip = h('div', { class: 'strip', 'aria-hidden': 'true' }, pieces.map(([name, , n]) => {
    const piece = h('span', { class: 'piece', dataset: { piece: name } })
    piece.style.flexGrow = String(n)
    piece.hidden = n === 0
    return piece
  }))
  if (total === 0) strip.classList.add('nothing')
  return h('div', { class: 'balance-bar' }, strip, h('dl', { class: 'pieces' }, pieces.map(([name, text, n]) =>
    h('div', null, h('dt', null, h('span', { class: 'swatch', 'aria-hidden': 'true', dataset: { piece: name } }), text), h('dd', { text: number(n) })))))
}

function ledgerPart(id, read, refresh) {
  const kind = select([['', 'all'], ...Object.entries(kinds)], '', { name: 'kind' })
  const since = h('input', { type: 'date', name: 'since' })
  const until = h('input', { type: 'date', name: 'until' })
  const rows = h('tbody')
  let cursor, seen
  const refunded = new Map() // by charge, as far as the entries that were seen say

  // A day is one of the zone of who looks; until takes the whole of it.
  const instant = (day, after) => {
    if (!day) return ''
    const [year, month, date] = day.split('-').map(Number)
    return new Date(year, month - 1, date + after).toISOString()
  }
  const query = () => ({ kind: kind.value, since: instant(since.value, 0), until: instant(until.value, 1), limit: entriesPage })

  const card = part('Ledger', {
    id: 'ledger', wide: true,
    controls: h('div', { class: 'controls' }, field('Kind', kind), field('Since', since), field('Until', until)),
    fetch: () => read('ledger', query()),
    show(body, page) {
      seen = 0
      refunded.clear()
      rows.replaceChildren()
      add(page)
      show(body)
    },
  })
  for (const control of [kind, since, until]) control.addEventListener('change', () => card.load())

  function add(page) {
    cursor = page.next_cursor
    seen += page.entries.length
    for (const e of page.entries) {
      if (e.refunded_entry_id) refunded.set(e.refunded_entry_id, (refunded.get(e.refunded_entry_id) ?? 0) + e.tokens_refunded)
    }
    rows.append(...page.entries.map(row))
  }

  function row(e) {
    const back = refunded.get(e.entry_id) ?? 0
    const more = facts(e)
    return h('tr', null,
      h('td', { class: 'when' }, time(e.created_at)),
      h('td', { dataset: { label: 'Kind' } }, h('span', { class: 'badge kind', dataset: { kind: e.kind }, text: kindName(e.kind) })),
      h('td', { class: 'words' }, h('p', { text: explain(e) }), back > 0 && h('p', { class: 'note', text: `${number(back)} given back.` }),
        e.metadata?.reason && h('p', { class: 'reason', text: '“' + e.metadata.reason + '”' }),
        h('details', null, h('summary', { text: 'Entry ' + e.entry_id }), more)),
      h('td', { class: 'number amount-cell' + (e.amount > 0 ? ' gain' : ''), dataset: { label: 'Change' }, text: e.amount ? signed(e.amount) : '0' }),
      h('td', { class: 'number', dataset: { label: 'Balance' }, text: number(e.balance_after) }),
      h('td', { class: 'row-action' }, can('refund') && e.tokens_charged > back && h('button', {
        type: 'button', class: 'secondary', 'aria-label': 'Refund entry ' + e.entry_id, onclick: () => actions.refund(id, e, refresh), text: 'Refund',
      })))
  }

  function show(body) {
    if (seen === 0 && !cursor) {
      return fill(body, h('p', { class: 'empty', text: kind.value || since.value || until.value ? 'No entry is like that.' : 'The ledger is empty.' }))
    }
    fill(body, h('div', { class: 'scroll' }, h('table', { class: 'stacks ledger' },
      h('caption', { class: 'hidden', text: 'Entries of the ledger, the newest first' }),
      h('thead', null, h('tr', null, h('th', { scope: 'col', text: 'Time' }), h('th', { scope: 'col', text: 'Kind' }), h('th', { scope: 'col', text: 'What happened' }), h('th', { scope: 'col', class: 'number', text: 'Change' }), h('th', { scope: 'col', class: 'number', text: 'Balance' }), h('th', { scope: 'col' }, h('span', { class: 'hidden', text: 'Action' })))),
      rows)),
    h('p', { class: 'note more' }, `${plural(seen, 'entry', 'entries')}${cursor ? ' so far' : ''}`,
      cursor && [' · ', h('button', { type: 'button', class: 'secondary', onclick: (event) => more(body, event.target), text: 'Show older' })]))
  }

  async function more(body, button) {
    button.disabled = true
    try {
      const first = seen
      add(await read('ledger', { ...query(), cursor }))
      show(body)
      rows.rows[first]?.querySelector('summary')?.focus()
    } catch (problem) {
      button.disabled = false
      if (problem.name !== 'AbortError') append(body, [problemBox(problem)])
    }
  }
  return card
}

// facts is all that an entry says.
function facts(e) {
  const list = [
    ['Time', e.created_at], ['By', e.actor], ['Used this month after it', number(e.used_after)],
    ['Charged', e.tokens_charged && number(e.tokens_charged)], ['Given back', e.tokens_refunded && number(e.tokens_refunded)],
    ['Top-ups', e.top_ups_amount && signed(e.top_ups_amount)], ['Changed', changed(e.changes).join(', ')],
    ['Reservation', e.reservation_id], ['Of the charge', e.refunded_entry_id], ['Idempotency-Key', e.idempotency_key],
    ...Object.entries(e.metadata ?? {}).map(([name, value]) => ['metadata: ' + name, value]),
  ]
  return h('dl', { class: 'facts entry' }, list.filter(([, value]) => value).map(([name, value]) => fact(name, value)))
}
