/**
 * Client of the Viral Pilot User Management Service, for Node 18 and newer and for browsers, without dependencies.
 *
 *     import { UserManagement } from './user-management.mjs'
 *
 *     const users = new UserManagement('https://users.example.com', { apiKey: '...' })
 *     const answer = await users.withReservation('user-1', 100, async (reservation) => {
 *       const answer = await callTheModel()
 *       reservation.tokensUsed = answer.tokens
 *       return answer
 *     })
 *
 * The service hands this file out together with a page that explains it: /clients/user-management.md.
 */

export const version = "VERSION"

// Pauses between attempts are drawn from 0 up to a bound that doubles from the first of these to the second.
const firstPauseMs = 100
const longestPauseMs = 5000
// How long a release is tried: what is not released expires by itself.
const releaseForMs = 3000

const onNode = typeof process !== 'undefined' && Boolean(process.versions?.node)
// Node 18 has it in a module, which a bundler must not look for.
const webCrypto = globalThis.crypto ?? (await import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:crypto')).webcrypto

/**
 * What every failed call throws.
 *
 * outcome is 'none' where the call changed nothing, and 'unknown' where it may have been carried out: call again with
 * idempotencyKey, and it counts once. retryAfterMs is when the service asked to be called again.
 */
export class UserManagementError extends Error {
  outcome = 'none'
  /** @type {string | undefined} */
  idempotencyKey
  /** @type {number | undefined} */
  retryAfterMs
  /** @type {Reservation | undefined} the one that could not be settled */
  reservation
  /** What the function returned whose reservation could not be settled. */
  result

  constructor(message, options) {
    super(message, options)
    this.name = new.target.name
  }

  /** Whether the service could not serve the call, or could not be reached, for as long as it was tried again. */
  get unavailable() {
    return false
  }
}

/** No complete answer came: no connection, or none that lasted, or nothing within the time-out. */
export class NoAnswerError extends UserManagementError {
  get unavailable() {
    return true
  }
}

/** Something answered that is not the service, such as a proxy, or led elsewhere. */
export class UnexpectedAnswerError extends UserManagementError {
  constructor(message, status) {
    super(message)
    this.status = status
  }
}

/** The service refused the call. There is a class for each code; a code that is newer than this file has this one. */
export class ProblemError extends UserManagementError {
  constructor(document) {
    const fields = (document.errors ?? []).map((e) => ` ${e.field} ${e.message}.`).join('')
    super(`${document.detail}${fields} (${document.code}, request ${document.request_id})`)
    /** The whole problem document. */
    this.document = document
    this.code = String(document.code ?? '')
    this.status = Number(document.status ?? 0)
    /** A sentence for people. */
    this.detail = String(document.detail ?? '')
    this.requestId = document.request_id
    /** What is wrong with which field: [{field, message}]. */
    this.errors = document.errors ?? []
    this.requiredScope = document.required_scope
  }

  get unavailable() {
    return ['rate_limited', 'overloaded', 'database_unavailable'].includes(this.code)
  }
}

/** The account may not spend now; the class below says why. */
export class SpendingRefusedError extends ProblemError {}
export class InsufficientTokensError extends SpendingRefusedError {
  get tokensRemaining() {
    return this.document.tokens_remaining
  }

  get tokensRequired() {
    return this.document.tokens_required
  }

  /** When the next allowance comes, null where none will. */
  get nextResetAt() {
    return this.document.next_reset_at
  }
}
export class UserInactiveError extends SpendingRefusedError {}
export class SubscriptionInactiveError extends SpendingRefusedError {}
export class SubscriptionLapsedError extends SpendingRefusedError {}
export class MalformedJSONError extends ProblemError {}
export class InvalidTierError extends ProblemError {}
export class InvalidPathError extends ProblemError {}
export class UnauthenticatedError extends ProblemError {}
/** The key lacks a scope: requiredScope. */
export class ForbiddenError extends ProblemError {}
export class CrossSiteError extends ProblemError {}
export class UserNotFoundError extends ProblemError {}
export class ReservationNotFoundError extends ProblemError {}
export class EntryNotFoundError extends ProblemError {}
/** There is nothing at this path: the base URL is wrong, or the service is older than this file. */
export class NotFoundError extends ProblemError {}
export class MethodNotAllowedError extends ProblemError {}
export class UserExistsError extends ProblemError {}
export class BeingErasedError extends ProblemError {}
export class ReservationClosedError extends ProblemError {}
export class TooManyReservationsError extends ProblemError {}
export class RefundExceedsChargeError extends ProblemError {}
export class RefundTooLateError extends ProblemError {}
export class BalanceOverflowError extends ProblemError {}
export class BodyTooLargeError extends ProblemError {}
export class UnsupportedMediaTypeError extends ProblemError {}
/** Values are wrong: errors says which. */
export class ValidationFailedError extends ProblemError {}
/** The key was used with another command on this account. */
export class IdempotencyKeyReusedError extends ProblemError {}
export class InternalError extends ProblemError {}
export class NotAvailableError extends ProblemError {}
export class RateLimitedError extends ProblemError {}
export class OverloadedError extends ProblemError {}
export class DatabaseUnavailableError extends ProblemError {}

const classes = {
  insufficient_tokens: InsufficientTokensError,
  user_inactive: UserInactiveError,
  subscription_inactive: SubscriptionInactiveError,
  subscription_lapsed: SubscriptionLapsedError,
  malformed_json: MalformedJSONError,
  invalid_tier: InvalidTierError,
  invalid_path: InvalidPathError,
  unauthenticated: UnauthenticatedError,
  forbidden: ForbiddenError,
  cross_site: CrossSiteError,
  user_not_found: UserNotFoundError,
  reservation_not_found: ReservationNotFoundError,
  entry_not_found: EntryNotFoundError,
  not_found: NotFoundError,
  method_not_allowed: MethodNotAllowedError,
  user_exists: UserExistsError,
  being_erased: BeingErasedError,
  reservation_closed: ReservationClosedError,
  too_many_reservations: TooManyReservationsError,
  refund_exceeds_charge: RefundExceedsChargeError,
  refund_too_late: RefundTooLateError,
  balance_overflow: BalanceOverflowError,
  body_too_large: BodyTooLargeError,
  unsupported_media_type: UnsupportedMediaTypeError,
  validation_failed: ValidationFailedError,
  idempotency_key_reused: IdempotencyKeyReusedError,
  internal: InternalError,
  not_available: NotAvailableError,
  rate_limited: RateLimitedError,
  overloaded: OverloadedError,
  database_unavailable: DatabaseUnavailableError,
}

// Codes of answers that are given before the service looks for the key.
const beforeTheKey = ['unauthenticated', 'forbidden', 'cross_site', 'rate_limited', 'overloaded', 'database_unavailable', 'internal']

/**
 * @typedef {{ signal?: AbortSignal }} ReadOptions every call can be ended
 * @typedef {{ idempotencyKey?: string, signal?: AbortSignal }} KeyOptions
 * @typedef {KeyOptions & { metadata?: Record<string, string> }} ChangeOptions
 * @typedef {string | Date} Time RFC 3339, or a Date
 * @typedef {Record<string, any>} Answer the fields of an answer by their names in the API; later versions may have more
 */

/**
 * A client. Answers are the objects of the API, with two properties beside their fields: replayed, whether the command
 * had been carried out before under its key, and requestId, under which the service's log has the request.
 *
 * Calls that change something take { metadata, idempotencyKey, signal }. Their key is made once for the call where none
 * is given: it counts once, however often it had to be sent. metadata are at most 16 texts by names. signal is an
 * AbortSignal, which every call takes.
 */
export class UserManagement {
  #base
  #apiKey
  #timeoutMs
  #retryForMs
  #fetch

  /**
   * @param {string} baseUrl where the service is, such as 'https://users.example.com'
   * @param {object} [options]
   * @param {string | (() => string | Promise<string>)} [options.apiKey] an API key or a token of the user pool, or a
   *   function that returns one for each attempt
   * @param {number} [options.timeoutMs] how long one attempt may take
   * @param {number} [options.retryForMs] after that time a call is not tried again; 0 tries once, Infinity for ever
   * @param {boolean} [options.allowHttp] lets the key go over http:// to other hosts than this one, as inside of a
   *   private network
   * @param {typeof fetch} [options.fetch] a fetch of your own
   */
  constructor(baseUrl, { apiKey, timeoutMs = 15_000, retryForMs = 30_000, allowHttp = false, fetch: ownFetch } = {}) {
    const url = new URL(baseUrl)
    if (!['http:', 'https:'].includes(url.protocol) || url.username || url.password || url.search || url.hash) {
      throw new TypeError('baseUrl must be like https://users.example.com, without a user, a query or a fragment')
    }
    if (apiKey != null && url.protocol === 'http:' && !allowHttp && !isLoopback(url.hostname)) {
      throw new TypeError(
        `the key would go to ${url.hostname} in clear: use https://, or allowHttp: true inside of a private network`
      )
    }
    if (!(timeoutMs > 0) || !(retryForMs >= 0)) {
      throw new RangeError('timeoutMs must be above 0, and retryForMs not below')
    }
    this.#base = url.href.replace(/\/+$/, '')
    this.#apiKey = apiKey
    this.#timeoutMs = timeoutMs
    this.#retryForMs = retryForMs
    this.#fetch = (ownFetch ?? globalThis.fetch).bind(globalThis)
  }

  // The service itself

  /**
   * Name, version and calls of the service, and the versions and sums of the clients that it hands out.
   * @param {ReadOptions} [options]
   */
  info(options) {
    return this.#get('/', {}, options)
  }

  /**
   * Whether the service and its database work: status is 'healthy', 'unhealthy' or 'shutting_down'. Tried once.
   * @param {ReadOptions} [options]
   */
  health(options) {
    return this.#get('/health', {}, options, { retryForMs: 0, accept503: true })
  }

  /**
   * Answers while the process lives. Tried once.
   * @param {ReadOptions} [options]
   */
  livez(options) {
    return this.#get('/livez', {}, options, { retryForMs: 0 })
  }

  /**
   * Name and scopes of the key.
   * @param {ReadOptions} [options]
   */
  whoami(options) {
    return this.#get('/whoami', {}, options)
  }

  /**
   * The catalogue, with tokens_per_month -1 for unlimited.
   * @param {ReadOptions} [options]
   */
  tiers(options) {
    return this.#get('/tiers', {}, options)
  }

  // Users

  /**
   * Makes an account; UserExistsError where there is one.
   * @param {string} userId
   * @param {KeyOptions & { username?: string | null, email?: string | null }} [options]
   */
  createUser(userId, { username, email, ...options } = {}) {
    return this.#change('POST', '/user', { cognito_user_id: userId, username, email }, options)
  }

  /**
   * Makes an account, or sets what is given on the one that there is.
   * @param {string} userId
   * @param {ChangeOptions & { username?: string | null, email?: string | null }} [options]
   */
  async putUser(userId, { username, email, metadata, ...options } = {}) {
    return this.#change('PUT', user(userId), { username, email, metadata }, options)
  }

  /**
   * The account; a free one is made where there is none.
   * @param {string} userId
   * @param {ReadOptions} [options]
   */
  async getUser(userId, options) {
    return this.#get(user(userId), {}, options)
  }

  /**
   * Sets what is given; null clears username and email.
   * @param {string} userId
   * @param {ChangeOptions & { username?: string | null, email?: string | null, subscriptionStatus?: string, isActive?: boolean }} [options]
   */
  async updateUser(userId, { username, email, subscriptionStatus, isActive, metadata, ...options } = {}) {
    const body = { username, email, subscription_status: subscriptionStatus, is_active: isActive, metadata }
    return this.#change('PATCH', user(userId), body, options)
  }

  /**
   * Ends the open reservations and makes the account inactive.
   * @param {string} userId
   * @param {KeyOptions} [options]
   */
  async deactivateUser(userId, { idempotencyKey, signal } = {}) {
    await this.#call('DELETE', user(userId), { key: keyOf(idempotencyKey), signal })
  }

  /**
   * Removes what is personal. False while that goes on by itself; UserNotFoundError once it is done.
   * @param {string} userId
   * @param {ReadOptions} [options]
   */
  async eraseUser(userId, { signal } = {}) {
    try {
      const { status } = await this.#call('DELETE', user(userId), { query: { erase: true }, signal })
      return status === 204
    } catch (error) {
      // An attempt before had no answer: it was the one that erased.
      if (error instanceof UserNotFoundError && error.outcome === 'unknown') return true
      throw error
    }
  }

  /**
   * All accounts that fit, read page by page. q is how an id, a username or an address begins.
   * @param {ReadOptions & { tier?: string, subscriptionStatus?: string, isActive?: boolean, lowBalance?: boolean, renewsBefore?: Time, q?: string, pageSize?: number }} [options]
   */
  users({ tier, subscriptionStatus, isActive, lowBalance, renewsBefore, q, pageSize = 200, signal } = {}) {
    const query = {
      tier,
      subscription_status: subscriptionStatus,
      is_active: isActive,
      low_balance: lowBalance,
      renews_before: renewsBefore,
      q,
      limit: pageSize,
    }
    return this.#items('/users', 'users', query, signal)
  }

  /**
   * Whether the user may make a request (can_make_request), and why not (reason). create makes a new user first.
   * @param {string} userId
   * @param {ReadOptions & { create?: boolean }} [options]
   */
  async status(userId, { create = false, signal } = {}) {
    return this.#get(user(userId, 'status'), { create: create || undefined }, { signal })
  }

  /**
   * Sets the tier and the renewal date, which is cleared where none is given.
   * @param {string} userId
   * @param {string} tier
   * @param {ChangeOptions & { renewalDate?: Time | null }} [options]
   */
  async changeTier(userId, tier, { renewalDate, metadata, ...options } = {}) {
    const body = { tier, renewal_date: timeOf(renewalDate), metadata }
    return this.#change('PUT', user(userId, 'tier'), body, options)
  }

  // Tokens

  /**
   * Charges tokens; SpendingRefusedError where the account may not.
   * @param {string} userId
   * @param {number} [tokens]
   * @param {ChangeOptions} [options]
   */
  async consume(userId, tokens = 1, { metadata, ...options } = {}) {
    return this.#change('POST', user(userId, 'consume-tokens'), { tokens_to_consume: tokens, metadata }, options)
  }

  /**
   * Adds top-ups, which do not lapse.
   * @param {string} userId
   * @param {number} tokens
   * @param {ChangeOptions} [options]
   */
  async addTokens(userId, tokens, { metadata, ...options } = {}) {
    return this.#change('POST', user(userId, 'add-tokens'), { tokens_to_add: tokens, metadata }, options)
  }

  /**
   * Gives back what a consume or settle entry charged: all that is left of it, or a part.
   * @param {string} userId
   * @param {string} entryId
   * @param {ChangeOptions & { tokens?: number }} [options]
   */
  async refund(userId, entryId, { tokens, metadata, ...options } = {}) {
    return this.#change('POST', user(userId, 'refunds'), { entry_id: entryId, tokens, metadata }, options)
  }

  // Reservations

  /**
   * Sets tokens aside for ttlSeconds (600).
   * @param {string} userId
   * @param {number} tokens
   * @param {ChangeOptions & { ttlSeconds?: number }} [options]
   * @returns {Promise<Reservation>} to be settled or released
   */
  async reserve(userId, tokens, { ttlSeconds, metadata, ...options } = {}) {
    const body = { tokens, ttl_seconds: ttlSeconds, metadata }
    const answer = await this.#change('POST', user(userId, 'reservations'), body, options)
    const path = user(userId, 'reservations', answer.reservation_id, 'release')
    const giveBack = async () => {
      await this.#call('POST', path, { body: {}, key: keyOf(), retryForMs: releaseForMs })
    }
    return new Reservation(this, userId, answer, giveBack)
  }

  /**
   * Reserves, and calls use with the reservation. It sets reservation.tokensUsed to what it cost, or calls settle: at its
   * end that is charged. Where it said nothing, or failed, all is given back. Its error comes through whatever becomes of
   * the reservation, which expires by itself.
   * @template T
   * @param {string} userId
   * @param {number} tokens
   * @param {(reservation: Reservation) => T | Promise<T>} use
   * @param {ChangeOptions & { ttlSeconds?: number }} [options] those of the reservation
   * @returns {Promise<T>} what use returns
   */
  async withReservation(userId, tokens, use, options) {
    const reservation = await this.reserve(userId, tokens, options)
    /** @type {T} */
    let result
    try {
      result = await use(reservation)
    } catch (error) {
      await reservation[end]({ error })
      throw error
    }
    try {
      await reservation[end]()
    } catch (error) {
      if (error instanceof UserManagementError) error.result = result
      throw error
    }
    return result
  }

  /**
   * @param {string} userId
   * @param {string} reservationId
   * @param {ReadOptions} [options]
   */
  async getReservation(userId, reservationId, options) {
    return this.#get(user(userId, 'reservations', reservationId), {}, options)
  }

  /**
   * The account's reservations, read page by page: open, settled, released, expired or all.
   * @param {string} userId
   * @param {ReadOptions & { status?: string, pageSize?: number }} [options]
   */
  reservations(userId, { status = 'open', pageSize = 200, signal } = {}) {
    return this.#items(user(userId, 'reservations'), 'reservations', { status, limit: pageSize }, signal)
  }

  /**
   * Lets an open reservation expire ttlSeconds from now.
   * @param {string} userId
   * @param {string} reservationId
   * @param {number} ttlSeconds
   * @param {KeyOptions} [options]
   */
  async extend(userId, reservationId, ttlSeconds, options = {}) {
    return this.#change('POST', user(userId, 'reservations', reservationId, 'extend'), { ttl_seconds: ttlSeconds }, options)
  }

  /**
   * Charges what it cost. For seven days after a reservation has expired it is charged all the same: late is true.
   * @param {string} userId
   * @param {string} reservationId
   * @param {number} tokensUsed
   * @param {ChangeOptions} [options]
   */
  async settle(userId, reservationId, tokensUsed, { metadata, ...options } = {}) {
    const path = user(userId, 'reservations', reservationId, 'settle')
    return this.#change('POST', path, { tokens_used: tokensUsed, metadata }, options)
  }

  /**
   * Gives all of it back.
   * @param {string} userId
   * @param {string} reservationId
   * @param {ChangeOptions} [options]
   */
  async release(userId, reservationId, { metadata, ...options } = {}) {
    return this.#change('POST', user(userId, 'reservations', reservationId, 'release'), { metadata }, options)
  }

  // Ledgers and usage

  /**
   * The entries of one account, newest first, read page by page. since is inclusive, until exclusive.
   * @param {string} userId
   * @param {ReadOptions & { kind?: string, since?: Time, until?: Time, pageSize?: number }} [options]
   */
  ledger(userId, { kind, since, until, pageSize = 200, signal } = {}) {
    return this.#items(user(userId, 'ledger'), 'entries', { kind, since, until, limit: pageSize }, signal)
  }

  /**
   * Pages of the entries of all accounts, oldest first: {entries, next_cursor}.
   *
   * Keep next_cursor together with what became of the page and give it as after to go on there; 'latest' begins with
   * what comes from now on. With wait, in seconds up to 25, there is no end: it waits for more.
   * @param {ReadOptions & { after?: string, kind?: string, wait?: number, pageSize?: number }} [options]
   */
  async *feed({ after, kind, wait = 0, pageSize = 1000, signal } = {}) {
    for (;;) {
      const query = { after, kind, wait: wait || undefined, limit: pageSize }
      const page = await this.#get('/ledger', query, { signal }, { timeoutMs: this.#timeoutMs + 1000 * wait })
      // It moves on past entries of other kinds too.
      if (page.next_cursor !== after) yield page
      else if (!wait) return
      after = page.next_cursor
    }
  }

  /**
   * What the account was charged each day, both dates included; by divides it by a usage dimension.
   * @param {string} userId
   * @param {ReadOptions & { from?: Time, to?: Time, by?: string }} [options]
   */
  async usage(userId, { from, to, by, signal } = {}) {
    return this.#get(user(userId, 'usage'), { from, to, by }, { signal })
  }

  /**
   * What all accounts together were charged each day; by may be 'tier' too.
   * @param {ReadOptions & { from?: Time, to?: Time, by?: string }} [options]
   */
  platformUsage({ from, to, by, signal } = {}) {
    return this.#get('/usage', { from, to, by }, { signal })
  }

  // How a call is made

  async *#items(path, name, query, signal) {
    for (let cursor; ; ) {
      const page = await this.#get(path, { ...query, cursor }, { signal })
      yield* page[name]
      if (page.next_cursor === null) return
      cursor = page.next_cursor
    }
  }

  /** @returns {Promise<Answer>} */
  async #get(path, query, /** @type {ReadOptions} */ { signal } = {}, how = {}) {
    return (await this.#call('GET', path, { query, signal, ...how })).answer
  }

  /** @returns {Promise<Answer>} */
  async #change(method, path, body, /** @type {KeyOptions} */ { idempotencyKey, signal } = {}) {
    return (await this.#call(method, path, { body, key: keyOf(idempotencyKey), signal })).answer
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{ query?: object, body?: object, key?: string, signal?: AbortSignal, timeoutMs?: number, retryForMs?: number, accept503?: boolean }} how
   */
  async #call(method, path, { query, body, key, signal, timeoutMs = this.#timeoutMs, retryForMs = this.#retryForMs, accept503 }) {
    const headers = { Accept: 'application/json' }
    // A browser would have to ask for leave to name another one.
    if (onNode) headers['User-Agent'] = `user-management-javascript/${version}`
    if (key !== undefined) headers['Idempotency-Key'] = key
    if (body !== undefined) headers['Content-Type'] = 'application/json'
    const request = {
      method,
      headers,
      body: body && JSON.stringify(body),
      redirect: 'manual',
      credentials: 'omit',
      cache: 'no-store',
    }
    const url = this.#base + path + queryOf(query)
    const giveUp = performance.now() + Math.min(retryForMs, this.#retryForMs)
    let bound = firstPauseMs
    let patience = timeoutMs
    let uncertain = false
    for (;;) {
      await this.#authorize(headers)
      const { answer, error, again } = await attempt(this.#fetch, url, request, patience, signal, accept503)
      if (answer) return answer
      // The service looks for the key before it judges the account: a refusal then settles what became of the attempts
      // before.
      const settled = key !== undefined && error instanceof ProblemError && !beforeTheKey.includes(error.code)
      if (method === 'GET' || (settled && error.outcome === 'none')) error.outcome = 'none'
      else if (uncertain) error.outcome = 'unknown'
      uncertain ||= error.outcome === 'unknown'
      error.idempotencyKey = key
      const pause = (error.retryAfterMs ?? 0) + Math.random() * bound
      if (!again || performance.now() + pause > giveUp) throw error
      await sleep(pause, signal)
      bound = Math.min(2 * bound, longestPauseMs)
      patience = Math.min(timeoutMs, Math.max(1000, giveUp - performance.now()))
    }
  }

  async #authorize(headers) {
    const key = typeof this.#apiKey === 'function' ? await this.#apiKey() : this.#apiKey
    delete headers.Authorization
    if (key == null) return
    if (!/^[!-~]+$/.test(key)) throw new TypeError('apiKey must be printable ASCII without blanks')
    headers.Authorization = `Bearer ${key}`
  }
}

const end = Symbol('end')

/** Tokens that are set aside. */
export class Reservation {
  #client
  #giveBack
  #closed = false
  /** @type {unknown} none that can be thrown */
  #settleError = {}

  /**
   * @param {UserManagement} client
   * @param {string} userId
   * @param {Answer} answer
   * @param {() => Promise<void>} giveBack releases it, and does not try for long
   */
  constructor(client, userId, answer, giveBack) {
    this.#client = client
    this.#giveBack = giveBack
    this.userId = userId
    /** @type {string} */
    this.id = answer.reservation_id
    /** The latest answer about the reservation. */
    this.answer = answer
    /** @type {number | undefined} what it cost, once that is known */
    this.tokensUsed = undefined
  }

  /**
   * Charges what it cost. Where it fails nothing is given back: settle it later, from here or by its id.
   * @param {number} tokensUsed
   * @param {ChangeOptions} [options]
   */
  async settle(tokensUsed, options) {
    this.tokensUsed = tokensUsed
    try {
      return this.#close(await this.#client.settle(this.userId, this.id, tokensUsed, options))
    } catch (error) {
      if (error instanceof UserManagementError) error.reservation = this
      this.#settleError = error
      throw error
    }
  }

  /**
   * Gives all of it back.
   * @param {ChangeOptions} [options]
   */
  async release(options) {
    return this.#close(await this.#client.release(this.userId, this.id, options))
  }

  /**
   * Lets it expire ttlSeconds from now, at most 24 hours after it was made.
   * @param {number} ttlSeconds
   * @param {KeyOptions} [options]
   */
  async extend(ttlSeconds, options) {
    this.answer = await this.#client.extend(this.userId, this.id, ttlSeconds, options)
    return this.answer
  }

  #close(answer) {
    this.#closed = true
    this.answer = answer
    return answer
  }

  /** What withReservation does at the end. Where the function has failed it throws no error of its own. */
  async [end](failure) {
    if (this.#closed || (failure && failure.error === this.#settleError)) return
    if (this.tokensUsed === undefined) {
      // What is not given back now expires by itself, and costs nobody anything.
      await this.#giveBack().catch((failed) => {
        console.warn(`reservation ${this.id} is left to expire: ${failed}`)
      })
    } else if (!failure) {
      await this.settle(this.tokensUsed)
    } else {
      await this.settle(this.tokensUsed).catch((failed) => {
        console.error(`reservation ${this.id} has to be settled with ${this.tokensUsed} later: ${failed}`)
      })
    }
  }
}

/** Sends a request once: the answer, or what is wrong and whether it may pass. */
async function attempt(fetch, url, request, timeoutMs, signal, accept503) {
  signal?.throwIfAborted()
  const controller = new AbortController()
  const stop = () => controller.abort()
  const timer = setTimeout(stop, timeoutMs)
  signal?.addEventListener('abort', stop)
  try {
    const response = await fetch(url, { ...request, signal: controller.signal })
    return read(response, await response.text(), accept503)
  } catch (/** @type {any} */ cause) {
    signal?.throwIfAborted()
    const why = controller.signal.aborted ? `within ${timeoutMs} ms` : cause.cause?.message || cause.message
    const error = new NoAnswerError(`${request.method} ${new URL(url).pathname}: no answer: ${why}`, { cause })
    const code = String(cause.cause?.code ?? '')
    const untrusted = /CERT|SELF_SIGNED|UNABLE_TO_/.test(code)
    const unsent = untrusted || ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'UND_ERR_CONNECT_TIMEOUT'].includes(code)
    error.outcome = unsent ? 'none' : 'unknown'
    return { error, again: !untrusted }
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
  }
}

/** The answer, or what is wrong and whether it may pass. */
function read(response, text, accept503) {
  const { status } = response
  const mime = (response.headers.get('Content-Type') ?? '').split(';')[0].trim().toLowerCase()
  const json = mime === 'application/json' || mime === 'application/problem+json'
  let document
  try {
    document = json ? JSON.parse(text) : undefined
  } catch {
    // Not all of it came.
  }
  const complete = typeof document === 'object' && document !== null && !Array.isArray(document)
  const success = status === 204 || (status === 202 && text === '') || (complete && status >= 200 && status < 300)
  if (success || (accept503 && status === 503 && complete && mime === 'application/json')) {
    const answer = document ?? {}
    Object.defineProperties(answer, {
      replayed: { value: response.headers.get('Idempotency-Replayed') === 'true' },
      requestId: { value: response.headers.get('X-Request-Id') },
    })
    return { answer: { answer, status } }
  }
  let error
  if (complete && mime === 'application/problem+json') {
    error = new (Object.hasOwn(classes, document.code) ? classes[document.code] : ProblemError)(document)
    error.outcome = document.outcome ?? (status === 500 ? 'unknown' : 'none')
  } else if (response.type === 'opaqueredirect' || (status >= 300 && status < 400)) {
    const where = response.headers.get('Location') ?? 'another place'
    error = new UnexpectedAnswerError(
      `it leads to ${where}, which is not followed so that no key goes along: correct the base URL`,
      status
    )
  } else {
    error = new UnexpectedAnswerError(`status ${status} without an answer of the service`, status)
    error.outcome = status < 300 || status >= 500 ? 'unknown' : 'none'
  }
  error.retryAfterMs = retryAfterMs(response.headers.get('Retry-After'))
  return { error, again: [429, 502, 503, 504].includes(status) || (json && !complete) }
}

/** Reads a header that has seconds, or a date. */
function retryAfterMs(value) {
  if (!value) return undefined
  if (/^\d+$/.test(value)) return 1000 * Number(value)
  const at = Date.parse(value)
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now())
}

/** The key of a call, made here where none is given: before the first attempt, and for all of them. */
function keyOf(key) {
  if (key === undefined) {
    // crypto.randomUUID is not there on pages that came over http://.
    return Array.from(webCrypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('')
  }
  if (typeof key !== 'string' || !/^[!-~]([ -~]{0,253}[!-~])?$/.test(key)) {
    throw new TypeError('idempotencyKey must be 1 to 255 printable ASCII characters without blanks around them')
  }
  return key
}

/** The path of what belongs to a user, whose id may have any characters. */
function user(userId, ...rest) {
  const parts = [userId, ...rest]
  for (const part of parts) {
    if (typeof part !== 'string') throw new TypeError(`an id must be a string, not ${typeof part}`)
    if (['', '.', '..'].includes(part)) throw new TypeError(`"${part}" is no id`)
  }
  return ['/user', ...parts.map(encodeURIComponent)].join('/')
}

function queryOf(query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null)
  const text = new URLSearchParams(pairs.map(([name, value]) => [name, String(timeOf(value))])).toString()
  return text && `?${text}`
}

function timeOf(value) {
  return value instanceof Date ? value.toISOString() : value
}

function isLoopback(hostname) {
  return /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(hostname)
}

async function sleep(ms, signal) {
  signal?.throwIfAborted()
  /** @type {Promise<void>} */
  const slept = new Promise((resolve, reject) => {
    const aborted = () => {
      clearTimeout(timer)
      reject(signal.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', aborted)
      resolve()
    }, ms)
    signal?.addEventListener('abort', aborted, { once: true })
  })
  return slept
}
