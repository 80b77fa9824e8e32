// What the entries of a ledger mean, in words.

import { number, plural } from './dom.js'

export const kinds = {
  opening: 'Opening', consume: 'Charge', top_up: 'Top-up', monthly_reset: 'New month', tier_change: 'Tier', reserve: 'Held',
  extend: 'Hold extended', settle: 'Settled', release: 'Released', expire: 'Ran out', refund: 'Refund', profile_change: 'Profile',
}

export const kindName = (kind) => kinds[kind] ?? kind.replaceAll('_', ' ')

const tokens = (n) => plural(n, 'token')

// forWhat says what a charge was for, by the metadata that callers usually send.
function forWhat({ metadata }) {
  const { feature, model } = metadata ?? {}
  return (feature ? ` for ${feature}` : '') + (model ? ` (${model})` : '')
}

const fields = {
  subscription_tier: 'tier', subscription_status: 'subscription', is_active: 'account', username: 'name', email: 'e-mail address',
  subscription_renewal_date: 'renewal date',
}

const value = (v) => v === true ? 'active' : v === false ? 'deactivated' : v === null || v === undefined ? 'none' : String(v).replaceAll('_', ' ')

// changed lists what an entry changed beside the balance. Of some, such as names and addresses, the ledger says only that
// they changed.
export function changed(changes) {
  const order = Object.keys(fields)
  const list = Object.entries(changes ?? {}).sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))
  return list.map(([name, { from, to }]) => {
    const field = fields[name] ?? name.replaceAll('_', ' ')
    return from === undefined && to === undefined ? `${field} changed` : `${field}: ${value(from)} → ${value(to)}`
  })
}

const sentence = (list) => list.length ? (list.join(', ').replace(/^./, (first) => first.toUpperCase())) : ''

// explain is one sentence about an entry.
export function explain(entry) {
  const moved = Math.abs(entry.amount)
  const topUps = entry.top_ups_amount < 0 ? `, ${number(-entry.top_ups_amount)} of them top-ups` : ''
  const list = changed(entry.changes)
  switch (entry.kind) {
    case 'opening':
      return entry.amount ? `The ledger begins with ${tokens(entry.amount)}.` : 'The account was made.'
    case 'consume':
      return entry.tokens_charged ? `Charged ${tokens(entry.tokens_charged)}${forWhat(entry)}${topUps}.` : `Used${forWhat(entry)} without being counted: the tier is unlimited.`
    case 'top_up':
      return `Topped up by ${tokens(moved)}, which do not lapse.`
    case 'monthly_reset':
      return `A new month began: ${tokens(entry.balance_after)} to spend${entry.amount < 0 ? `; ${number(moved)} that were left of the allowance have lapsed` : ''}.`
    case 'tier_change':
      return `${sentence(list) || 'The tier changed'}${entry.amount ? `: ${tokens(moved)} ${entry.amount > 0 ? 'more' : 'less'} this month` : ''}.`
    case 'reserve':
      return entry.amount ? `Set ${tokens(moved)} aside${forWhat(entry)}${topUps}.` : `Set nothing aside${forWhat(entry)}: the tier is unlimited.`
    case 'extend':
      return 'The time of a reservation was changed.'
    case 'settle': {
      const back = entry.amount > 0 ? `, ${tokens(moved)} of what was held came back` : entry.amount < 0 ? `, ${number(moved)} more than was held` : ''
      return `A reservation was settled: charged ${tokens(entry.tokens_charged)}${forWhat(entry)}${back}.`
    }
    case 'release':
      return `A reservation was given up: ${tokens(moved)} came back.`
    case 'expire':
      return `A reservation ran out: ${tokens(moved)} came back.`
    case 'refund':
      return `Gave back ${tokens(entry.tokens_refunded)} of the charge ${entry.refunded_entry_id}.`
    case 'profile_change':
      return `${sentence(list) || 'Nothing but a note'}.`
    default:
      return `${sentence(list) || `The balance changed by ${number(entry.amount)}`}.`
  }
}
