// The calls of the service. A call ends with its body, or with a Problem.

const storedKey = 'viralpilot-api-key'

// The key lives as long as the tab; it is in no address, no cookie and no other storage.
export const session = {
  get key() { return sessionStorage.getItem(storedKey) },
  set key(key) {
    if (key) sessionStorage.setItem(storedKey, key)
    else sessionStorage.removeItem(storedKey)
  },
  name: '',
  open: false,
  scopes: new Set(),
  expires: null,
}

const included = { read: 'manage', refund: 'manage', export: 'manage' }

// can reports whether the caller has one of the scopes, by itself or as part of another.
export const can = (...scopes) => scopes.some((s) => session.scopes.has(s) || session.scopes.has(included[s]))

// Problem is why a call did not do what it was asked. unknown is true where it may have been done all the same: it is to be
// sent again under the same key. away is true where the service, or its database, was not there.
export class Problem extends Error {
  constructor({ status = 0, code = '', detail, requestId = '', errors = [], unknown = false, away = false }) {
    super(detail)
    this.name = 'Problem'
    Object.assign(this, { status, code, detail, requestId, errors, unknown, away })
  }
}

// patience is how long an answer may take, longer than the service's own limits.
const patience = 30_000

// call sends a request. path is encoded already; query leaves out what is empty.
export async function call(method, path, { query, body, idempotencyKey, signal, key = session.key } = {}) {
  const headers = { Accept: 'application/json' }
  if (key) headers.Authorization = 'Bearer ' + key
  if (body !== undefined) headers['Content-Type'] = 'application/json'
  if (idempotencyKey) headers['Idempotency-Key'] = idempotencyKey
  const limit = AbortSignal.timeout(patience)
  let response, text
  try {
    response = await fetch(withQuery(path, query), {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      cache: 'no-store', credentials: 'omit', redirect: 'error', referrerPolicy: 'no-referrer',
    })
    text = await response.text()
  } catch (error) {
    if (signal?.aborted) throw error
    connection.lost()
    throw new Problem({
      unknown: true,
      away: true,
      detail: method === 'GET' ? 'The service did not answer.'
        : 'The service did not answer, so that it is not known whether the change was made. Trying again is safe: it counts once.',
    })
  }
  let answer
  try {
    answer = text ? JSON.parse(text) : null
  } catch {
    answer = null
  }
  if (response.ok) return { status: response.status, body: answer, replayed: response.headers.get('Idempotency-Replayed') === 'true' }
  const between = response.status === 502 || response.status === 504 // somebody between has no answer of it
  const problem = new Problem({
    status: response.status,
    code: answer?.code,
    detail: answer?.detail ?? `The service answered ${response.status} ${response.statusText}.`,
    requestId: answer?.request_id ?? response.headers.get('X-Request-Id') ?? '',
    errors: answer?.errors,
    unknown: between || (response.status === 503 && answer?.outcome !== 'none'),
    away: between || answer?.code === 'database_unavailable',
  })
  if (problem.away) connection.lost()
  if (response.status === 401 && key === session.key) session.ended?.(problem)
  throw problem
}

export const get = async (path, query, signal) => (await call('GET', path, { query, signal })).body

export const userPath = (id, ...rest) => ['/user', encodeURIComponent(id), ...rest].join('/')

export function withQuery(path, query) {
  const parameters = new URLSearchParams()
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== '') parameters.set(name, value)
  }
  const text = parameters.toString()
  return text ? path + '?' + text : path
}

const quoted = (text) => "'" + text.replaceAll("'", `'\\''`) + "'"

// curl is a call as a line for a shell; the key stays in a variable.
export function curl({ method, path, query, body, idempotencyKey }) {
  const parts = [`curl -X ${method} ${quoted(location.origin + withQuery(path, query))}`]
  if (!session.open) parts.push('-H "Authorization: Bearer $API_KEY"')
  if (idempotencyKey) parts.push('-H ' + quoted('Idempotency-Key: ' + idempotencyKey))
  if (body !== undefined) parts.push("-H 'Content-Type: application/json'", '-d ' + quoted(JSON.stringify(body)))
  return parts.join(' \\\n  ')
}

// connection notices when the service goes away and when it is back. state is up, silent (no answer), unhealthy (its
// database is away) or stopping.
export const connection = {
  state: 'up',
  listeners: new Set(),
  timer: 0,
  // reason says in words what is the matter, and nothing while all is well.
  reason() {
    return { silent: 'The service does not answer.', unhealthy: 'The service cannot reach its database.', stopping: 'The service is being stopped.' }[this.state] ?? ''
  },
  // lost is called when a call got no answer.
  lost() {
    if (this.state === 'up') this.become('silent')
    this.look(0)
  },
  become(state) {
    if (state === this.state) return
    this.state = state
    for (const listener of [...this.listeners]) listener(state)
  },
  // look asks how the service is, after a while, and goes on doing so.
  look(after) {
    clearTimeout(this.timer)
    this.timer = setTimeout(async () => {
      this.become(await health())
      this.look(this.state === 'up' ? 10_000 : 1500)
    }, after)
  },
}

async function health() {
  try {
    const response = await fetch('/health', { cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(8000) })
    const { status } = await response.json()
    if (response.ok) return 'up'
    return status === 'shutting_down' ? 'stopping' : 'unhealthy'
  } catch {
    return 'silent'
  }
}
