package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Lua for wrk. Requests are drawn at random over all accounts.
const (
	luaPrelude = `
wrk.headers["Content-Type"] = "application/json"
math.randomseed(os.time())
local n = 0
local run = math.random(1e9)
local function anyone() return "/user/user-" .. math.random(100000) end
local function post(path, body, key)
  local headers = { ["Content-Type"] = "application/json" }
  if key then n = n + 1; headers["Idempotency-Key"] = "bench-" .. run .. "-" .. n end
  return wrk.format("POST", path, headers, body)
end
`
	luaStatus  = luaPrelude + `request = function() return wrk.format("GET", anyone() .. "/status") end`
	luaConsume = luaPrelude + `request = function() return post(anyone() .. "/consume-tokens", '{"tokens_to_consume": 1}') end`
	luaKeyed   = luaPrelude + `request = function() return post(anyone() .. "/consume-tokens", '{"tokens_to_consume": 1}', true) end`
	luaHot     = luaPrelude + `request = function() return post("/user/user-1/consume-tokens", '{"tokens_to_consume": 1}') end`
	// One entry, so that it costs the same to send however many there are.
	luaLedgerPage = luaPrelude + `request = function() return wrk.format("GET", anyone() .. "/ledger?limit=1") end`
	luaLive       = `request = function() return wrk.format("GET", "/livez") end`

	// Reservations that have been made are settled before new ones are.
	luaReserveSettle = luaPrelude + `
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
	luaBad = luaPrelude + `
local i = 0
request = function()
  i = i + 1
  if i % 3 == 0 then return post(anyone() .. "/consume-tokens", '{"tokens_to_consume": 2000000000}') end
  if i % 3 == 1 then return post(anyone() .. "/consume-tokens", '{"tokens_to_consume": "7"}') end
  return wrk.format("POST", "/user/user-2/consume-tokens",
    { ["Content-Type"] = "application/json", ["Idempotency-Key"] = "again" }, '{"tokens_to_consume": 1}')
end
`
)

const (
	updateOne = `\set i random(1, 100000)
UPDATE viralpilot.userdata SET tokens_remaining = tokens_remaining - 1, tokens_used_this_month = tokens_used_this_month + 1 WHERE cognito_user_id = 'user-' || :i;
`
	updateHot = `UPDATE viralpilot.userdata SET tokens_remaining = tokens_remaining - 1, tokens_used_this_month = tokens_used_this_month + 1 WHERE cognito_user_id = 'user-1';
`
	// pgbench changes the rows past the ledger, which the service must not take for its own: it has accounts of its own
	// to change.
	restoreRows = `UPDATE viralpilot.userdata u SET tokens_remaining = l.balance_after, tokens_used_this_month = l.used_after
		FROM (SELECT DISTINCT ON (cognito_user_id) cognito_user_id, balance_after, used_after FROM viralpilot.ledger
			ORDER BY cognito_user_id, entry_id DESC) l
		WHERE u.cognito_user_id = l.cognito_user_id AND u.tokens_remaining <> l.balance_after`
)

// Names of figures that ratios refer to.
const (
	floor       = "pgbench, one UPDATE a transaction, 64 clients"
	floorBest   = "pgbench, one UPDATE a transaction, 8 clients"
	floorHot    = "pgbench, one hot row, 64 clients"
	live        = "GET /livez"
	status      = "status"
	consume     = "consume"
	consumeFew  = "consume, 8 connections"
	consumeMany = "consume, 256 connections"
	keyed       = "consume with a fresh key"
	hot         = "consume on one hot user"
	pair        = "reserve and settle (requests)"
	goodAlone   = "consume, 48 connections"
	goodAmong   = "consume, 48 connections beside 16 of another good client"
	goodMixed   = "consume, 48 connections beside 16 of a bad client"
	twoReplicas = "consume, two replicas, 32 connections each"
	ledgerPage  = "newest ledger entry"
)

func figures() []figure {
	return append([]figure{
		pgbench(floor, 64, updateOne), pgbench(floorBest, 8, updateOne), pgbench(floorHot, 64, updateHot),
		load(live, 64, luaLive), load(status, 64, luaStatus),
		{consume, func(ctx context.Context, b *bed) (result, error) {
			r, err := b.wrk(ctx, b.service.url, 64, luaConsume)
			if err != nil {
				return r, err
			}
			b.residentMiB, err = b.service.resident()
			return r, err
		}},
		load(consumeFew, 8, luaConsume), load(consumeMany, 256, luaConsume),
		load(keyed, 64, luaKeyed), load(hot, 64, luaHot), load(pair, 64, luaReserveSettle),
		load(goodAlone, 48, luaConsume),
		{goodAmong, besideGoodClient},
		{goodMixed, besideBadClient},
		{twoReplicas, fromTwoReplicas},
	}, load(ledgerPage, 64, luaLedgerPage))
}

// ledgerFigures are those that could depend on the size of the ledger.
func ledgerFigures() []figure {
	return []figure{load(consume, 64, luaConsume), load(ledgerPage, 64, luaLedgerPage)}
}

func load(name string, connections int, script string) figure {
	return figure{name, func(ctx context.Context, b *bed) (result, error) {
		return b.wrk(ctx, b.service.url, connections, script)
	}}
}

func pgbench(name string, clients int, script string) figure {
	return figure{name, func(ctx context.Context, b *bed) (result, error) {
		r, err := b.pgbench(ctx, clients, script)
		if err != nil {
			return r, err
		}
		return r, b.sql(ctx, restoreRows)
	}}
}

// besideGoodClient measures the traffic of three clients of four while the fourth does the same.
func besideGoodClient(ctx context.Context, b *bed) (result, error) {
	_, good, err := b.beside(ctx, luaConsume)
	return good, err
}

// besideBadClient measures it while the fourth sends nothing but bad requests.
func besideBadClient(ctx context.Context, b *bed) (result, error) {
	bad, good, err := b.beside(ctx, luaBad)
	if err == nil && bad.Failed == 0 {
		err = errors.New("none of the bad requests was refused")
	}
	return good, err
}

// beside measures consumes from 48 connections while 16 others send something else.
func (b *bed) beside(ctx context.Context, script string) (other, good result, err error) {
	var otherErr, goodErr error
	var running sync.WaitGroup
	running.Go(func() { other, otherErr = b.wrkNamed(ctx, "other", b.service.url, 16, script) })
	running.Go(func() { good, goodErr = b.wrkNamed(ctx, "good", b.service.url, 48, luaConsume) })
	running.Wait()
	return other, good, errors.Join(otherErr, goodErr)
}

func fromTwoReplicas(ctx context.Context, b *bed) (sum result, err error) {
	other, err := b.start(ctx, "replica")
	if err != nil {
		return sum, err
	}
	var results [2]result
	var errs [2]error
	var running sync.WaitGroup
	for i, url := range []string{b.service.url, other.url} {
		running.Go(func() { results[i], errs[i] = b.wrkNamed(ctx, fmt.Sprint("replica-", i), url, 32, luaConsume) })
	}
	running.Wait()
	for i, r := range results {
		if errs[i] != nil {
			err = errs[i]
		}
		sum.Value += r.Value
		sum.P99 = max(sum.P99, r.P99)
		sum.Failed += r.Failed
	}
	if stop := other.stop(); err == nil {
		err = stop
	}
	return sum, err
}
