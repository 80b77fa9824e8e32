// Lets users spend tokens by the client until its input ends, and then says what they were told: see handouts_test.go.

import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

const { UserManagement } = await import(pathToFileURL(`${process.env.CLIENTS}/user-management.mjs`))

const users = new UserManagement(process.env.SERVICE, { retryForMs: 90_000, timeoutMs: 10_000 })
let stopping = false

class ModelError extends Error {}

const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`)

async function spend(user, told) {
  await users.putUser(user, { username: 'somebody' })
  await users.addTokens(user, 1_000_000)
  for (let call = 1; !stopping; call++) {
    const name = `call-${call}`
    const turn = call % 4
    if (turn === 0) {
      await users.consume(user, 3, { metadata: { call: name } })
      told.charged[name] = 3
    } else {
      let id
      try {
        await users.withReservation(user, 10, async (reservation) => {
          id = reservation.id
          await sleep(20) // the model
          if (turn === 1) await reservation.settle(7, { metadata: { call: name } })
          else if (turn === 2) reservation.tokensUsed = 12
          else throw new ModelError()
        })
        told.charged[id] = turn === 1 ? 7 : 12
      } catch (error) {
        if (!(error instanceof ModelError)) throw error
        told.failed.push(id)
      }
    }
    tell({ done: 1 })
  }
}

const told = Object.fromEntries(JSON.parse(process.env.USERS).map((user) => [user, { charged: {}, failed: [] }]))
process.stdin.resume()
process.stdin.on('end', () => {
  stopping = true
})
await Promise.all(
  Object.entries(told).map(([user, mine]) =>
    spend(user, mine).catch((error) => {
      mine.error = String(error)
    })
  )
)
tell({ told })
