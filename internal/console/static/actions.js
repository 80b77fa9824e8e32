// What can be done to a user. Each action asks for what it needs, repeats what it is going to do and to whom, shows the
// call, and sends it with a key of its own, so that it counts once however often it is sent.

import { h, fill, icon, field, plural, problemBox, copyButton, toast, select } from './dom.js'
import { call, connection, curl, userPath, get } from './api.js'

const amount = (props) => h('input', { type: 'number', min: '1', max: '2147483647', step: '1', inputmode: 'numeric', autocomplete: 'off', ...props })

// Reasons are kept as metadata, whose values have at most 256 characters.
const reasonInput = () => h('input', { name: 'reason', maxlength: '256', autocomplete: 'off' })

const withReason = (body, reason) => reason ? { ...body, metadata: { reason } } : body

export function topUp(id, done) {
  const tokens = amount({ name: 'tokens', required: true })
  open({
    id, done, title: 'Top up', verb: 'Add tokens',
    fields: [field('Tokens to add', tokens, 'They are spent after the allowance and do not lapse.')],
    plan: (reason) => ({
      sentence: `Add ${plural(Number(tokens.value), 'token')} to`,
      method: 'POST', path: userPath(id, 'add-tokens'), body: withReason({ tokens_to_add: Number(tokens.value) }, reason),
    }),
    said: () => `${plural(Number(tokens.value), 'token')} added`,
  })
}

export function refund(id, entry, done) {
  const tokens = amount({ name: 'tokens', max: String(entry.tokens_charged), placeholder: 'all that is left' })
  open({
    id, subject: entry.entry_id, done, title: 'Refund a charge', verb: 'Refund',
    fields: [
      h('p', { class: 'lead', text: `Entry ${entry.entry_id} charged ${plural(entry.tokens_charged, 'token')}.` }),
      field('Tokens to give back', tokens, 'Left empty, all that has not been given back yet.'),
    ],
    plan: (reason) => ({
      sentence: `Give ${tokens.value ? plural(Number(tokens.value), 'token') : 'all that is left'} of the charge ${entry.entry_id} back to`,
      method: 'POST', path: userPath(id, 'refunds'),
      body: withReason({ entry_id: entry.entry_id, ...(tokens.value && { tokens: Number(tokens.value) }) }, reason),
    }),
    said: () => 'The charge was refunded',
  })
}

export function release(id, reservation, done) {
  open({
    id, subject: reservation.reservation_id, done, title: 'Release a hold', verb: 'Release',
    fields: [h('p', { class: 'lead', text: `The reservation holds ${plural(reservation.tokens_reserved, 'token')}; whoever made it cannot settle it any more.` })],
    plan: (reason) => ({
      sentence: `Release the reservation ${reservation.reservation_id}, ${plural(reservation.tokens_reserved, 'token')}, of`,
      method: 'POST', path: userPath(id, 'reservations', reservation.reservation_id, 'release'), body: withReason({}, reason),
    }),
    said: () => 'The hold was released',
  })
}

export async function changeTier(id, account, done) {
  const before = account.subscription_renewal_date
  const renewal = h('input', { type: 'date', name: 'renewal_date' })
  renewal.value = before?.slice(0, 10) ?? ''
  const tier = select([[account.subscription_tier, account.subscription_tier]], account.subscription_tier, { name: 'tier' })
  const tiers = h('div', null, field('Tier', tier, 'The allowance is in force at once; what the month has used so far counts against it.'))
  open({
    id, done, title: 'Change tier', verb: 'Change tier',
    fields: [tiers, field('Renewal date', renewal, 'Without a date there is none, also where there was one.')],
    plan: (reason) => ({
      sentence: `Put on the tier ${tier.value}, ${renewal.value ? 'renewing ' + renewal.value : 'without a renewal date'},`,
      method: 'PUT', path: userPath(id, 'tier'),
      // A date that was left alone keeps its time of day.
      body: withReason({ tier: tier.value, renewal_date: renewal.value === before?.slice(0, 10) ? before : renewal.value || null }, reason),
    }),
    said: () => `The tier is ${tier.value}`,
  })
  try {
    const { tiers: known } = await get('/tiers')
    const chosen = tier.value
    tier.replaceChildren(...Object.entries(known).map(([name, t]) => h('option', {
      value: name, text: `${t.name} – ${t.unlimited ? 'unlimited' : t.defined ? plural(t.tokens_per_month, 'token') + ' a month' : 'not defined yet'}`,
    })))
    if (!known[chosen]) tier.append(h('option', { value: chosen, text: chosen }))
    tier.value = chosen
  } catch (problem) {
    tiers.append(problemBox(problem))
  }
}

export function setActive(id, active, done) {
  open({
    id, done, danger: !active, title: active ? 'Activate' : 'Deactivate', verb: active ? 'Activate' : 'Deactivate',
    fields: [h('p', { class: 'lead', text: active
      ? 'The user may spend again, as far as subscription and balance let them.'
      : 'The user can spend no more. Balance, ledger and open reservations stay, and it can be undone.' })],
    plan: (reason) => ({
      sentence: active ? 'Activate' : 'Deactivate', method: 'PATCH', path: userPath(id), body: withReason({ is_active: active }, reason),
    }),
    said: () => active ? 'The user is active' : 'The user is deactivated',
  })
}

export function erase(id, done) {
  open({
    id, done, danger: true, typed: true, reasoned: false, title: 'Erase', verb: 'Erase for ever',
    fields: [h('p', { class: 'lead', text: 'Name, address, metadata and keys are removed, and the entries move to a pseudonym, so that the ledger still balances. It cannot be undone, and no reason can be kept.' })],
    plan: () => ({ sentence: 'Erase', method: 'DELETE', path: userPath(id), query: { erase: 'true' }, keyless: true }),
    said: ({ status }) => status === 202 ? 'The user is being erased, which goes on by itself' : 'The user was erased',
  })
}

// unanswered are the calls of which it is not known whether they were done: for each action on a user, the keys by request.
// They outlive the dialog, so that whoever closes it and comes back sends the same call, with its key. Only what counts each
// time (POST) is kept: a state is set anew, since the answer of the first time may not be true any more.
const unanswered = new Map()

// knowing are the statuses of refusals that come after the service has looked for the key: the call was not done before
// either. Others, such as 401 or 429, say nothing of an earlier time.
const knowing = new Set([404, 409])

// open shows the dialog: first the fields, then what is going to be done. subject is what of the user it is done to, if not to
// the user as a whole.
function open({ id, subject = '', title, verb, fields, plan, said, done, danger = false, typed = false, reasoned = true }) {
  const reason = reasonInput()
  const heading = h('h2', { id: 'dialog-title', tabindex: '-1', text: title })
  const content = h('div')
  // What is outside of an open dialog is not read out: it says by itself when the service is away.
  const away = h('p', { class: 'dialog-away', role: 'alert' })
  const watch = () => { away.textContent = connection.reason() && connection.reason() + ' What you have typed is kept.' }
  connection.listeners.add(watch)
  const dialog = h('dialog', {
    class: 'action', 'aria-labelledby': heading.id,
    onclose: () => {
      connection.listeners.delete(watch)
      dialog.remove()
    },
  },
  h('div', { class: 'dialog-head' }, heading, h('button', { type: 'button', class: 'quiet', 'aria-label': 'Close', onclick: () => dialog.close() }, icon('close'))),
  away, content)
  const form = h('form', {
    onsubmit: (event) => {
      event.preventDefault()
      confirm()
    },
  },
  whom(id), fields, reasoned && field('Reason', reason, 'Kept in the ledger as metadata.'),
  h('div', { class: 'dialog-actions' }, h('button', { type: 'button', class: 'secondary', onclick: () => dialog.close(), text: 'Cancel' }), h('button', { type: 'submit', class: 'primary', text: 'Continue' })))

  function ask() {
    fill(content, form)
    form.querySelector('input, select, button.primary').focus()
  }

  // confirm shows the very call that is sent. Its key is that of the same call before, where that had no answer.
  function confirm() {
    const { sentence, keyless, ...request } = plan(reason.value.trim())
    const action = JSON.stringify([title, id, subject])
    const text = JSON.stringify(request)
    const keys = unanswered.get(action) ?? new Map()
    const other = keys.size > 0 && !keys.has(text)
    if (!keyless) request.idempotencyKey = keys.get(text) ?? crypto.randomUUID?.() ?? randomKey()
    const forget = () => {
      keys.delete(text)
      if (!keys.size && unanswered.get(action) === keys) unanswered.delete(action)
    }
    const wrong = h('div')
    const go = h('button', { type: 'submit', class: danger ? 'primary danger' : 'primary', text: verb })
    const back = h('button', { type: 'button', class: 'secondary', onclick: ask, text: 'Back' })
    const again = h('input', { name: 'typed', autocomplete: 'off', spellcheck: 'false', required: true })
    const lines = curl(request)
    const sentenceLine = h('p', { class: 'sentence', tabindex: '-1' }, sentence, ' ', h('code', { class: 'confirm-id', text: id }), '?')
    const question = h('form', {
      onsubmit: async (event) => {
        event.preventDefault()
        if (typed && again.value !== id) {
          fill(wrong, problemBox({ detail: 'That is another id.' }))
          again.focus()
          return
        }
        go.disabled = back.disabled = true
        fill(wrong)
        const earlier = keys.has(text)
        if (request.method === 'POST') unanswered.set(action, keys.set(text, request.idempotencyKey)) // it can be closed meanwhile
        try {
          const answer = await call(request.method, request.path, request)
          forget()
          dialog.close()
          toast(said(answer) + (answer.replayed ? ', the first time already' : ''))
          done(answer)
        } catch (problem) {
          fill(wrong, problemBox(problem))
          if (!problem.unknown && (!earlier || knowing.has(problem.status))) forget()
          go.textContent = problem.unknown ? 'Try again' : verb
        } finally {
          go.disabled = back.disabled = false
        }
      },
    },
    sentenceLine,
    other && h('p', { class: 'lead', role: 'alert', text: 'This is another call than the one before, which had no answer: that one may have been done as well. Go back and leave the fields as they were to send it again instead.' }),
    reason.value.trim() && h('p', { class: 'lead', text: 'Reason: ' + reason.value.trim() }),
    typed && field('Type the id once more', again),
    h('div', { class: 'call' }, h('div', { class: 'call-head' }, h('h3', { text: 'The same by curl' }), copyButton(() => lines, 'Copy the curl command')),
      h('pre', { class: 'curl', tabindex: '0', role: 'region', 'aria-label': 'The call as a curl command', text: lines })),
    wrong, h('div', { class: 'dialog-actions' }, back, go))
    fill(content, question)
    // Not the button: Enter pressed twice must not do it unread.
    if (typed) again.focus()
    else sentenceLine.focus()
  }

  document.body.append(dialog)
  dialog.showModal()
  ask()
  watch()
}

const whom = (id) => h('p', { class: 'whom' }, 'User ', h('code', { text: id }))

// randomKey is for pages without a secure context (plain HTTP on another host), where there is no randomUUID.
function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, '0')).join('')
}
