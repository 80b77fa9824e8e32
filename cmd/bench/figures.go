package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Lua for wrk, behind a line that says how many accounts there are. Requests are drawn at random over all of them.
const (
	luaPrelude = `
math.randomseed(os.time())
local n = 0
local run = math.random(1e9)
local function anyone(kind) return "/user/" .. (kind or "user-") .. math.random(accounts) end
local function post(path, body, key)
  local headers = { ["Content-Type"] = "application/json" }
  if key then n = n + 1; headers["Idempotency-Key"] = "bench-" .. run .. "-" .. n end
  return wrk.format("POST", path, headers, body)
end
local one = '{"tokens_to_consume": 1}'
`
	luaLive    = `request = function() return wrk.format("GET", "/livez") end`
	luaStatus  = `request = function() return wrk.format("GET", anyone() .. "/status") end`
	luaConsume = `request = function() return post(anyone() .. "/consume-tokens", one) end`
	luaKeyed   = `request = function() return post(anyone() .. "/consume-tokens", one, true) end`
	luaHot     = `request = function() return post("/user/user-1/consume-tokens", one) end`
	luaTopUps  = `request = function() return post(anyone("topup-") .. "/consume-tokens", one) end`
	// What a client asks for without saying how much: fifty entries, where there are as many.
	luaLedger = `request = function() return wrk.format("GET", anyone() .. "/ledger") end`

	// Each account once: the step has no divisor in common with how many there are.
	luaEach = `
local at = math.random(accounts)
request = function()
  at = (at + 61803) % accounts
  return post("/user/user-" .. (at + 1) .. "/consume-tokens", one)
end
`

	// Reads and changes in turn, so that connections have prepared what both need.
	luaWarm = `
local i = 0
request = function()
  i = i + 1
  if i % 2 == 0 then return wrk.format("GET", anyone() .. "/status") end
  return post(anyone() .. "/consume-tokens", one)
end
`

	// Reservations that have been made are settled before new ones are.
	luaReserveSettle = `
local open = {}
request = function()
  local settle = table.remove(open)
  if settle then return post(settle .. "/settle", '{"tokens_used": 1}') end
  return post(anyone() .. "/reservations", '{"tokens": 10}')
end
response = function(status, headers, body)
  if status == 201 then
    local id, account = body:match('"reservation_id":"([^"]+)","cognito_user_id":"([^"]+)"')
    table.insert(open, "/user/" .. account .. "/reservations/" .. id)
  end
end
`

	// What a client that does everything wrong sends: too much, nonsense, and a key again and again.
	luaBad = `
local i = 0
request = function()
  i = i + 1
  if i % 3 == 0 then return post(anyone() .. "/consume-tokens", '{"tokens_to_consume": 2000000000}') end
  if i % 3 == 1 then return post(anyone() .. "/consume-tokens", '{"tokens_to_consume": "7"}') end
  return wrk.format("POST", "/user/user-2/consume-tokens",
    { ["Content-Type"] = "application/json", ["Idempotency-Key"] = "again" }, one)
end
`
)

// The same work in pgbench: what a consume writes, in a transaction of its own. %[1]s and %[2]s are what a ledger of the
// present form asks for besides.
const (
	anyAccount = `\set i random(1, :accounts)` + "\n"
	sqlConsume = `BEGIN;
UPDATE bench.userdata SET tokens_remaining = tokens_remaining - 1, tokens_used_this_month = tokens_used_this_month + 1,
  updated_at = now() WHERE cognito_user_id = 'user-' || :i;
INSERT INTO bench.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged%[1]s, created_at)
  VALUES ('user-' || :i, 'consume', -1, 0, 0, 1%[2]s, now());
COMMIT;
`
	sqlSelect = anyAccount + `SELECT * FROM bench.userdata WHERE cognito_user_id = 'user-' || :i;
`
)

// figure is something to measure.
type figure struct {
	// key names it in BENCH_FIGURES and in what BENCH_JSON keeps.
	key, name string
	measure   func(context.Context, *subject) (result, error)
	// own is whether it measures the service, which another version of it may do better or worse.
	own bool
	// slow makes every commit take slowCommit longer, as on a disk that syncs in milliseconds.
	slow bool
	// large is whether it is measured on the large database.
	large bool
}

// slowCommit is how much longer a slow commit takes.
const slowCommit = 5 * time.Millisecond

// figures are all there are. Those that are compared with each other stand close together.
func figures() []figure {
	const hotAccount = `\set i 1` + "\n"
	return []figure{
		{key: "floor-get", name: "floor: GET", measure: onFloor(luaLive)},
		load("livez", "GET /livez", 64, luaLive),
		load("status", "status", 64, luaStatus),
		{key: "select", name: "pgbench: SELECT, 64 clients", measure: inPgbench(64, sqlSelect)},
		{key: "floor", name: "floor: consume", measure: onFloor(luaConsume)},
		load("consume", "consume", 64, luaConsume),
		load("consume256", "consume, 256 connections", 256, luaConsume),
		{key: "sql", name: "pgbench: UPDATE and INSERT, 64 clients", measure: inPgbench(64, anyAccount+sqlConsume)},
		load("consume8", "consume, 8 connections", 8, luaConsume),
		{key: "sql8", name: "pgbench: UPDATE and INSERT, 8 clients", measure: inPgbench(8, anyAccount+sqlConsume)},
		load("keyed", "consume with a fresh key", 64, luaKeyed),
		load("pair", "reserve and settle (requests)", 64, luaReserveSettle),
		load("topups", "consume of top-ups", 64, luaTopUps),
		{key: "month", name: "first consume of a month", measure: firstOfMonth, own: true},
		load("hot", "consume on one hot user", 64, luaHot),
		{key: "sql-hot", name: "pgbench: UPDATE and INSERT, one hot row", measure: inPgbench(64, hotAccount+sqlConsume)},
		{key: "good", name: "consume, 48 connections beside 16 of a good client", measure: beside(luaConsume), own: true},
		{key: "bad", name: "consume, 48 connections beside 16 of a bad client", measure: besideBadClient, own: true},
		{key: "replicas2", name: "consume, two replicas, 32 connections each", measure: fromReplicas(2), own: true},
		{key: "replicas4", name: "consume, four replicas, 16 connections each", measure: fromReplicas(4), own: true},
		slow(load("slow", "consume, slow commits", 64, luaConsume)),
		slow(figure{key: "sql-slow", name: "pgbench: UPDATE and INSERT, 64 clients, slow commits", measure: inPgbench(64, anyAccount+sqlConsume)}),
		slow(load("slow8", "consume, 8 connections, slow commits", 8, luaConsume)),
		slow(figure{key: "sql8-slow", name: "pgbench: UPDATE and INSERT, 8 clients, slow commits", measure: inPgbench(8, anyAccount+sqlConsume)}),
		{key: "start", name: "start to ready", measure: startToReady, own: true},
		load("ledger", "ledger page", 64, luaLedger),
		large(load("ledger-large", "ledger page, large database", 64, luaLedger)),
		large(load("consume-large", "consume, large database", 64, luaConsume)),
		load("consume-small", "consume, beside a large database", 64, luaConsume),
	}
}

func slow(f figure) figure  { f.slow = true; return f }
func large(f figure) figure { f.large = true; return f }

// choose returns the figures with those keys, all of them where there are none.
func choose(all []figure, keys []string) ([]figure, error) {
	if len(keys) == 0 {
		return all, nil
	}
	var chosen []figure
	var known []string
	for _, f := range all {
		known = append(known, f.key)
		if slices.Contains(keys, f.key) {
			chosen = append(chosen, f)
		}
	}
	for _, key := range keys {
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("BENCH_FIGURES names %q; there are %s", key, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// load is a figure of the service under one kind of request.
func load(key, name string, connections int, script string) figure {
	return figure{key: key, name: name, own: true, measure: func(ctx context.Context, s *subject) (result, error) {
		r, err := s.timed(func() (result, error) {
			return s.wrk(ctx, wrkRun{url: s.running[0].url, connections: connections, script: script})
		})
		if err != nil {
			return r, err
		}
		r.ResidentMiB, err = s.running[0].resident()
		return r, err
	}}
}

func onFloor(script string) func(context.Context, *subject) (result, error) {
	return func(ctx context.Context, s *subject) (result, error) {
		floor, err := s.startFloor(ctx)
		if err != nil {
			return result{}, err
		}
		return s.timed(func() (result, error) {
			return s.wrk(ctx, wrkRun{url: floor.url, connections: 64, script: script})
		})
	}
}

func inPgbench(clients int, script string) func(context.Context, *subject) (result, error) {
	return func(ctx context.Context, s *subject) (result, error) {
		if err := s.useOwnTables(ctx); err != nil {
			return result{}, err
		}
		columns, values := s.ownLedger()
		return s.timed(func() (result, error) {
			return s.pgbench(ctx, clients, strings.NewReplacer("%[1]s", columns, "%[2]s", values).Replace(script))
		})
	}
}

// firstOfMonth measures what every account's first consume of a month costs: the reset comes with it.
func firstOfMonth(ctx context.Context, s *subject) (r result, err error) {
	setBack := `UPDATE viralpilot.userdata SET last_token_reset_date = last_token_reset_date - interval '1 month'
		WHERE cognito_user_id LIKE 'user-%'`
	setRight := `UPDATE viralpilot.userdata SET last_token_reset_date = now()
		WHERE cognito_user_id LIKE 'user-%' AND last_token_reset_date < date_trunc('month', now())`
	if s.periods {
		setBack = fmt.Sprintf(`UPDATE viralpilot.account_state SET granted_period = %d WHERE cognito_user_id LIKE 'user-%%'`, period(time.Now())-1)
		setRight = fmt.Sprintf(`UPDATE viralpilot.account_state SET granted_period = %[1]d WHERE granted_period < %[1]d`, period(time.Now()))
	}
	const clean = `VACUUM viralpilot.userdata, viralpilot.account_state`
	if err := s.sql(ctx, s.database, setBack, clean); err != nil {
		return r, err
	}
	r, err = s.timed(func() (result, error) {
		return s.wrk(ctx, wrkRun{url: s.running[0].url, connections: 64, script: luaEach})
	})
	if err != nil {
		return r, err
	}
	if r.requests > s.accounts {
		return r, fmt.Errorf("%d consumes of %d accounts were not all the first: choose fewer BENCH_SECONDS", r.requests, s.accounts)
	}
	return r, s.sql(ctx, s.database, setRight, clean)
}

// beside measures consumes from 48 connections, the traffic of three clients of four, while 16 others send the script.
func beside(script string) func(context.Context, *subject) (result, error) {
	return func(ctx context.Context, s *subject) (result, error) {
		good, _, err := s.crowd(ctx, script)
		return good, err
	}
}

func besideBadClient(ctx context.Context, s *subject) (result, error) {
	good, bad, err := s.crowd(ctx, luaBad)
	if err == nil && bad.Failed == 0 {
		err = errors.New("none of the bad requests was refused")
	}
	return good, err
}

func (s *subject) crowd(ctx context.Context, script string) (good, other result, err error) {
	good, err = s.timed(func() (result, error) {
		results, err := s.together(ctx,
			wrkRun{url: s.running[0].url, connections: 48, script: luaConsume},
			wrkRun{url: s.running[0].url, connections: 16, script: script})
		other = results[1]
		results[0].requests += other.requests
		results[0].generator += other.generator
		return results[0], err
	})
	return good, other, err
}

// fromReplicas measures consumes that n replicas share.
func fromReplicas(n int) func(context.Context, *subject) (result, error) {
	return func(ctx context.Context, s *subject) (r result, err error) {
		others := len(s.running)
		defer func() { err = errors.Join(err, s.stopAfter(others)) }()
		loads := []wrkRun{{url: s.running[0].url}}
		for len(loads) < n {
			replica, err := s.start(ctx)
			if err != nil {
				return r, err
			}
			loads = append(loads, wrkRun{url: replica.url})
		}
		for i := range loads {
			loads[i].connections, loads[i].script, loads[i].time = 64/n, luaWarm, time.Second
		}
		if _, err := s.together(ctx, loads...); err != nil {
			return r, err
		}
		for i := range loads {
			loads[i].script, loads[i].time = luaConsume, 0
		}
		return s.timed(func() (sum result, err error) {
			results, err := s.together(ctx, loads...)
			for _, r := range results {
				sum.Rate += r.Rate
				sum.P50 = max(sum.P50, r.P50)
				sum.P99 = max(sum.P99, r.P99)
				sum.Failed += r.Failed
				sum.requests += r.requests
				sum.generator += r.generator
			}
			return sum, err
		})
	}
}

// startToReady measures from the start of a process to its first healthy answer, on a migrated database: the median of
// five starts.
func startToReady(ctx context.Context, s *subject) (r result, err error) {
	var starts []float64
	for range 5 {
		others := len(s.running)
		begin := time.Now()
		if _, err := s.start(ctx); err != nil {
			return r, err
		}
		starts = append(starts, float64(time.Since(begin).Microseconds())/1000)
		if err := s.stopAfter(others); err != nil {
			return r, err
		}
	}
	return result{StartMillis: median(starts)}, nil
}
