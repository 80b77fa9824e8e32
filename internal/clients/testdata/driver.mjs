// Makes the calls that come as lines of JSON, and answers each with a line: see driver_test.go.

import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const { Reservation, UserManagement, UserManagementError } = await import(
  pathToFileURL(`${process.argv[2]}/user-management.mjs`)
)

class ModelError extends Error {}

const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase())
const others = { from_date: 'from', to_date: 'to' }
const value = (given) => (given?.time ? new Date(given.time) : given)
const named = (given = {}) =>
  Object.fromEntries(Object.entries(given).map(([name, v]) => [others[name] ?? camel(name), value(v)]))

async function run({ base, options: { timeout, retry_for: retryFor, api_keys: keys, ...rest } = {}, ...command }) {
  const options = named(rest)
  if (timeout !== undefined) options.timeoutMs = 1000 * timeout
  if (retryFor !== undefined) options.retryForMs = 1000 * retryFor
  let turn = 0
  if (keys) options.apiKey = async () => keys[turn++ % keys.length]
  const users = new UserManagement(base, options)
  if (!command.call) return { result: 'made' }
  const args = [...(command.args ?? [])]
  if (command.call === 'consume' && args.length === 1) args.push(undefined) // as many as there are
  const { block } = command
  if (block) {
    const use = async (reservation) => {
      if ('settle' in block) await reservation.settle(block.settle)
      if (block.release) await reservation.release()
      if ('used' in block) reservation.tokensUsed = block.used
      if ('raise' in block) throw new ModelError(block.raise)
      return 'answer'
    }
    return { result: await users.withReservation(...args, use, named(command.named)) }
  }
  const answer = users[camel(command.call)](...args, named(command.named))
  if ('take' in command) {
    const items = []
    for await (const item of answer) {
      items.push(item)
      if (items.length === command.take) break
    }
    return { result: items }
  }
  const result = await answer
  if (result instanceof Reservation) return { result: result.answer, id: result.id }
  return { result: result ?? null, replayed: result?.replayed, request_id: result?.requestId }
}

async function attempt(command) {
  try {
    return await run(command)
  } catch (error) {
    const bases = []
    for (let p = Object.getPrototypeOf(error); p; p = Object.getPrototypeOf(p)) bases.push(p.constructor.name)
    return {
      error: {
        class: error.constructor.name,
        bases,
        message: error.message,
        ours: error instanceof UserManagementError,
        unavailable: Boolean(error.unavailable),
        outcome: error.outcome,
        key: error.idempotencyKey,
        retry_after: error.retryAfterMs === undefined ? undefined : error.retryAfterMs / 1000,
        code: error.code,
        detail: error.detail,
        tokens_remaining: error.tokensRemaining,
        reservation: error.reservation?.id,
        result: error.result,
      },
    }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await attempt(JSON.parse(line)))}\n`)
}
