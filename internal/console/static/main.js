// The frame of the console: who is signed in, which page is shown, and whether the service is there.

import { h, fill, icon, announce, field, problemBox, badge } from './dom.js'
import { session, can, call, connection, Problem } from './api.js'
import { overview } from './overview.js'
import { users } from './users.js'
import { user } from './user.js'

const top = document.getElementById('top')
const main = document.getElementById('main')
const away = document.getElementById('away')

// pages are what there is to see, with what a caller needs for it.
const pages = [
  { name: 'overview', title: 'Overview', may: () => can('export'), make: overview },
  { name: 'users', title: 'Users', may: () => can('export', 'read'), make: users },
  { name: 'user', title: 'User', may: () => can('read'), make: user, hidden: true },
]

// shown is the page that is there: { element, load, end }.
let shown = null
let signedIn = false

// where reads the address: #/NAME, #/user/ID, each with a query.
export function where() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split(/\?(.*)/s)
  const [name, ...rest] = path.split('/')
  let id
  try {
    id = decodeURIComponent(rest.join('/'))
  } catch {
    id = ''
  }
  return { name, id, query: new URLSearchParams(query ?? '') }
}

function route() {
  if (!signedIn) return
  const { name, id, query } = where()
  const wanted = name ? pages.find((p) => p.name === name && p.may()) : pages.find((p) => p.may())
  shown?.end?.()
  shown = wanted ? wanted.make({ id, query, title }) : nothing(name)
  fill(main, shown.element)
  frame(wanted)
  shown.load?.()
  window.scrollTo(0, 0)
  main.focus({ preventScroll: true })
}

function title(text) {
  document.title = text + ' · Viral Pilot'
  announce(text)
}

function nothing(name) {
  title('Nothing to show')
  const known = pages.find((p) => p.name === name)
  return {
    element: h('div', { class: 'page' }, h('h1', { text: known ? known.title : 'Nothing here' }),
      h('p', { class: 'empty', text: known || !name
        ? 'The API key has none of the scopes that this page needs: read for a user, export for the list of users and the overview.'
        : 'There is no such page.' })),
  }
}

function frame(current) {
  const find = h('input', { type: 'search', id: 'find', 'aria-label': 'Find a user', placeholder: can('export') ? 'Find by id, name or e-mail' : 'Open by id', autocomplete: 'off', spellcheck: 'false' })
  fill(top,
    h('div', { class: 'bar' },
      h('a', { class: 'brand', href: '#/' }, h('img', { src: '/console/icon.svg', alt: '', width: '28', height: '28' }), h('span', null, 'Viral Pilot', h('small', { text: 'Console' }))),
      signedIn && h('nav', { 'aria-label': 'Pages' }, pages.filter((p) => !p.hidden && p.may()).map((p) =>
        h('a', { href: '#/' + p.name, 'aria-current': p === current && 'page', text: p.title }))),
      signedIn && can('read', 'export') && h('form', {
        class: 'find', role: 'search',
        onsubmit: (event) => {
          event.preventDefault()
          const text = find.value.trim()
          if (!text) return
          location.hash = can('export') ? '#/users?' + new URLSearchParams({ q: text }) : '#/user/' + encodeURIComponent(text)
        },
      }, icon('search'), find),
      signedIn && h('div', { class: 'who' },
        session.open
          ? h('span', { class: 'who-name', title: 'The service asks for no key: everybody who reaches it may do everything.' }, badge('open service', 'warn'))
          : h('span', { class: 'who-name', title: 'Scopes: ' + [...session.scopes].join(', '), text: session.name }),
        !session.open && h('button', { type: 'button', class: 'quiet', onclick: () => { session.key = null; signOut() }, text: 'Sign out' }))))
}

function signOut(problem) {
  signedIn = false
  session.key = null
  session.scopes = new Set()
  shown?.end?.()
  shown = null
  document.querySelectorAll('dialog').forEach((dialog) => dialog.close())
  frame()
  signIn(problem)
}

session.ended = (problem) => { if (signedIn) signOut(problem) }

// signIn shows the form that asks for a key.
function signIn(problem) {
  document.title = 'Sign in · Viral Pilot'
  const key = h('input', { type: 'password', name: 'key', autocomplete: 'off', spellcheck: 'false', required: true })
  const wrong = h('div', null, problem && problem.code !== 'unauthenticated' ? problemBox(problem) : problem && session.tried ? problemBox(problem) : null)
  const button = h('button', { type: 'submit', class: 'primary', text: 'Sign in' })
  const form = h('form', {
    class: 'card sign-in',
    onsubmit: async (event) => {
      event.preventDefault()
      button.disabled = true
      const tried = key.value.trim()
      try {
        // A header cannot carry it: nothing would be sent.
        if (!/^[!-~]+$/.test(tried)) throw new Problem({ detail: 'That is no key: it has characters that no key has.' })
        await begin(tried)
      } catch (problem) {
        fill(wrong, problemBox(problem))
        key.focus()
        key.select()
      } finally {
        button.disabled = false
      }
    },
  },
  h('h1', { text: 'Sign in' }),
  h('p', { class: 'lead', text: 'With an API key. What it may do decides what you see; it stays in this tab and is forgotten when you close it.' }),
  field('API key', key), wrong, button)
  fill(main, form)
  key.focus()
}

// begin finds out what the key may do, and shows it.
async function begin(key) {
  const { body } = await call('GET', '/whoami', { key })
  session.key = body.open ? null : key
  session.name = body.name || 'somebody'
  session.open = body.open === true
  session.scopes = new Set(body.scopes)
  session.expires = body.expires_at
  session.tried = true
  signedIn = true
  route()
}

async function start() {
  frame()
  try {
    await begin(session.key)
  } catch (problem) {
    session.tried = session.key !== null
    if (problem.status === 401) {
      session.key = null
      signIn(problem)
    } else {
      fill(main, h('div', { class: 'page narrow' }, problemBox(problem, start)))
    }
  }
}

connection.listeners.add((state) => {
  if (state === 'up') {
    fill(away)
    announce('The service is back.')
    if (!signedIn && !main.querySelector('form')) start()
    else shown?.load?.()
    return
  }
  fill(away, h('p', { class: 'away' }, icon('away'), h('strong', { text: connection.reason() }),
    h('span', { text: ' What you have typed is kept. The console goes on by itself when the service is back.' })))
})

window.addEventListener('hashchange', route)
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault() // the address names the page
  main.focus()
})
start()
connection.look(10_000)
