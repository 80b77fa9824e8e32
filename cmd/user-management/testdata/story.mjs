// Makes every call of the client once, and looks at what comes back: see handouts_test.go.

import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

const { InsufficientTokensError, UserExistsError, UserManagement, UserNotFoundError } = await import(
  pathToFileURL(`${process.env.CLIENTS}/user-management.mjs`)
)

const users = new UserManagement(process.env.SERVICE)
const user = 'ä b/c%d?e#f'
const all = async (items) => {
  const list = []
  for await (const item of items) list.push(item)
  return list
}

assert.equal((await users.info()).status, 'running')
assert.equal((await users.health()).status, 'healthy')
assert.equal((await users.livez()).status, 'alive')
assert.ok((await users.whoami()).open)
assert.equal((await users.tiers()).tiers.tester.tokens_per_month, 1000)

assert.equal((await users.createUser(user, { email: 'ann@example.com' })).cognito_user_id, user)
await assert.rejects(users.createUser(user), (e) => e instanceof UserExistsError && e.status === 409 && e.outcome === 'none')
assert.equal((await users.putUser(user, { username: 'Ann', metadata: { why: 'sign-up' } })).email, 'ann@example.com')
assert.equal((await users.updateUser(user, { email: null, subscriptionStatus: 'trialing' })).email, null)
assert.equal((await users.getUser('seen first')).subscription_tier, 'free')
assert.equal((await users.status('also new', { create: true })).reason, 'insufficient_tokens')
const changed = await users.changeTier(user, 'tester', { renewalDate: new Date('2027-01-01'), metadata: { why: 'paid' } })
assert.equal(changed.subscription_renewal_date, '2027-01-01T00:00:00.000000Z')

assert.equal((await users.addTokens(user, 10)).tokens_remaining, 1010)
const first = await users.consume(user, 10, { idempotencyKey: 'call 1', metadata: { model: 'large' } })
const again = await users.consume(user, 10, { idempotencyKey: 'call 1' })
assert.deepEqual([first.tokens_remaining, again.entry_id, first.replayed, again.replayed], [1000, first.entry_id, false, true])
assert.equal((await users.refund(user, first.entry_id, { tokens: 4 })).tokens_remaining, 1004)
assert.equal((await users.refund(user, first.entry_id)).tokens_remaining, 1010)
await assert.rejects(
  users.consume(user, 2000),
  (e) => e instanceof InsufficientTokensError && e.tokensRemaining === 1010 && e.tokensRequired === 2000
)

const reservation = await users.reserve(user, 100, { ttlSeconds: 60, metadata: { model: 'large' } })
assert.equal((await reservation.extend(120)).status, 'open')
assert.deepEqual((await all(users.reservations(user))).map((r) => r.reservation_id), [reservation.id])
assert.equal((await reservation.settle(80)).tokens_returned, 20)
assert.equal((await users.getReservation(user, reservation.id)).status, 'settled')
assert.equal((await (await users.reserve(user, 30)).release()).tokens_remaining, 930)
let late
await users.withReservation(
  user,
  5,
  async (r) => {
    late = r
    while ((await users.getReservation(user, r.id)).status === 'open') await sleep(100)
    r.tokensUsed = 7
  },
  { ttlSeconds: 1 }
)
assert.ok(late.answer.late && late.answer.tokens_charged === 7)

const kinds = (await all(users.ledger(user, { pageSize: 2 }))).map((entry) => entry.kind)
assert.equal(kinds.filter((kind) => kind === 'reserve').length, 3)
assert.equal(kinds.filter((kind) => kind === 'refund').length, 2)
const consumed = await all(users.ledger(user, { kind: 'consume', since: new Date('2026-01-01') }))
assert.deepEqual(consumed.map((entry) => entry.kind), ['consume'])
assert.equal((await users.usage(user)).total_charged, 97)
assert.equal((await users.platformUsage({ by: 'tier' })).total_charged, 97)
const ids = (await all(users.users({ q: '', pageSize: 1 }))).map((account) => account.cognito_user_id)
assert.deepEqual(new Set(ids), new Set([user, 'seen first', 'also new']))
assert.deepEqual((await all(users.users({ tier: 'tester', isActive: true }))).map((account) => account.username), ['Ann'])
const pages = await all(users.feed({ pageSize: 3 }))
assert.equal(pages.flatMap((page) => page.entries).length, kinds.length)
assert.deepEqual(await all(users.feed({ after: pages.at(-1).next_cursor })), [])

await users.deactivateUser('also new')
assert.equal((await users.getUser('also new')).is_active, false)
assert.equal(await users.eraseUser('also new'), true)
await assert.rejects(users.eraseUser('also new'), UserNotFoundError)
