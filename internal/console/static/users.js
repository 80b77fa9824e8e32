// Finding users: by how their id, name or address begins, and by filters.

import { h, fill, part, number, plural, field, select, tierBadge, statusBadge, badge, date, announce } from './dom.js'
import { can, get } from './api.js'

const statuses = ['active', 'trialing', 'past_due', 'canceled', 'unpaid', 'paused', 'incomplete', 'incomplete_expired']
const filters = ['q', 'tier', 'subscription_status', 'is_active', 'low_balance', 'renews_before']

// enough is how many users a page of the console shows, and most how many calls it makes to find them.
const enough = 50
const most = 5

export function users({ query, title }) {
  title('Users')
  return can('export') ? search(query) : byID()
}

// byID is for callers who may read a user but not list them.
function byID() {
  const id = h('input', { name: 'id', required: true, autocomplete: 'off', spellcheck: 'false' })
  return {
    element: h('div', { class: 'page narrow' }, h('div', { class: 'page-head' }, h('h1', { text: 'Users' })),
      h('form', {
        class: 'card', id: 'by-id',
        onsubmit: (event) => {
          event.preventDefault()
          location.hash = '#/user/' + encodeURIComponent(id.value.trim())
        },
      },
      field('User id', id, 'This key may read a user whose id you know. Listing and searching them needs the scope export.'),
      h('button', { type: 'submit', class: 'primary', text: 'Open' }))),
  }
}

function search(query) {
  const stop = new AbortController()
  const any = ['', 'any']
  const controls = {
    q: h('input', { type: 'search', name: 'q', autocomplete: 'off', spellcheck: 'false', maxlength: '255' }),
    tier: select([any], '', { name: 'tier' }),
    subscription_status: select([any, ...statuses.map((s) => [s, s.replaceAll('_', ' ')])], '', { name: 'subscription_status' }),
    is_active: select([any, ['true', 'active'], ['false', 'deactivated']], '', { name: 'is_active' }),
    low_balance: select([any, ['true', 'low'], ['false', 'not low']], '', { name: 'low_balance' }),
    renews_before: h('input', { type: 'date', name: 'renews_before' }),
  }
  for (const name of filters) controls[name].value = query.get(name) ?? ''
  // The tiers are in the catalogue; one that the address names is offered at once.
  const offer = (tier) => {
    if (tier && ![...controls.tier.options].some((o) => o.value === tier)) controls.tier.append(h('option', { value: tier, text: tier }))
  }
  offer(query.get('tier'))
  controls.tier.value = query.get('tier') ?? ''
  get('/tiers', {}, stop.signal).then(({ tiers }) => Object.keys(tiers).forEach(offer), () => {}) // without it the filter knows what the address says

  const wanted = () => Object.fromEntries(filters.map((name) => [name, controls[name].value.trim()]).filter(([, value]) => value))
  // applied is what the filters were when the search began, found what it has found, and searching whether it goes on.
  let applied, found, cursor, searching
  let pass = 0 // a search that was begun anew leaves the one before it
  const body = h('tbody')
  const list = h('div', { class: 'scroll' }, h('table', { class: 'stacks users' },
    h('caption', { class: 'hidden', text: 'Users' }),
    h('thead', null, h('tr', null, ['User', 'Tier', 'Status', 'Balance', 'Used this month', 'Renews'].map((text) =>
      h('th', { scope: 'col', class: (text === 'Balance' || text.startsWith('Used')) && 'number', text })))),
    body))

  function row(u) {
    const link = h('a', { href: '#/user/' + encodeURIComponent(u.cognito_user_id), text: u.username || u.email || u.cognito_user_id })
    return h('tr', null,
      h('td', { class: 'who-cell' }, link, h('span', { class: 'sub' }, u.username && u.email && [h('span', { text: u.email }), ' '], h('code', { text: u.cognito_user_id }))),
      h('td', { dataset: { label: 'Tier' } }, tierBadge(u.subscription_tier)),
      h('td', { dataset: { label: 'Status' } }, statusBadge(u.subscription_status), !u.is_active && [' ', badge('deactivated', 'bad')]),
      h('td', { class: 'number', dataset: { label: 'Balance' }, text: u.subscription_tier === 'admin' ? 'unlimited' : number(u.tokens_remaining) }),
      h('td', { class: 'number', dataset: { label: 'Used this month' }, text: number(u.tokens_used_this_month) }),
      h('td', { dataset: { label: 'Renews' } }, date(u.subscription_renewal_date)))
  }

  // next reads a page of the list. One that is filtered may be short, or empty, although there are more.
  async function next() {
    const page = await get('/users', { ...applied, limit: enough, cursor }, stop.signal)
    return { users: page.users, cursor: page.next_cursor }
  }

  const results = part('Results', {
    id: 'results', wide: true,
    fetch() {
      pass++
      applied = wanted()
      cursor = null
      return next()
    },
    show(element, page) {
      found = []
      body.replaceChildren()
      add(page)
      goOn(element, enough, most - 1)
    },
  })

  function add(page) {
    found.push(...page.users)
    cursor = page.cursor
    body.append(...page.users.map(row))
  }

  // goOn searches further, showing what there is, until so many are found or so many calls were made.
  async function goOn(element, until, calls) {
    const mine = pass
    try {
      for (searching = true; cursor && found.length < until && calls > 0; calls--) {
        show(element)
        const page = await next()
        if (mine !== pass) return
        add(page)
      }
      searching = false
      show(element)
    } catch (problem) {
      if (problem.name === 'AbortError' || mine !== pass) return
      searching = false
      show(element)
      element.querySelector('.more').append(' ', h('span', { role: 'alert', class: 'bad-text', text: problem.detail }))
    }
  }

  function show(element) {
    const count = cursor ? `The first ${plural(found.length, 'user')}` : plural(found.length, 'user')
    if (!searching) announce(found.length ? count + ' found.' : 'No user found.')
    fill(element,
      found.length > 0 && list,
      found.length === 0 && h('p', { class: 'empty', text: cursor ? 'None so far among those that were looked at.' : 'No user is like that.' }),
      h('p', { class: 'note more' }, count, searching ? ' · searching further…' : cursor && [' · ', h('button', { type: 'button', class: 'secondary', onclick: () => more(element), text: found.length ? 'Show more' : 'Search further' })]))
  }

  async function more(element) {
    const first = found.length
    await goOn(element, first + enough, most)
    body.rows[first]?.querySelector('a')?.focus()
  }

  function apply() {
    history.replaceState(null, '', '#/users?' + new URLSearchParams(wanted()))
    results.load()
  }
  const form = h('form', {
    class: 'card filters', role: 'search', 'aria-label': 'Users',
    onsubmit: (event) => {
      event.preventDefault()
      apply()
    },
    onchange: (event) => { if (event.target !== controls.q) apply() },
  },
  field('Id, name or e-mail', controls.q), field('Tier', controls.tier), field('Subscription', controls.subscription_status),
  field('Account', controls.is_active), field('Balance', controls.low_balance), field('Renews before', controls.renews_before),
  h('div', { class: 'filters-actions' },
    h('button', { type: 'submit', class: 'primary', text: 'Search' }),
    h('button', {
      type: 'button', class: 'secondary', text: 'Clear',
      onclick: () => {
        for (const name of filters) controls[name].value = ''
        apply()
        controls.q.focus()
      },
    })))

  return {
    element: h('div', { class: 'page' }, h('div', { class: 'page-head' }, h('h1', { text: 'Users' })), form, results.element),
    load: () => results.load(),
    end: () => stop.abort(),
  }
}
