package user_test

import (
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

var now = date("2026-11-24T10:00:00Z")

// tester is an account in the middle of a term, with 600 of its allowance of 1000 left and 50 top-ups.
func tester() user.Account {
	reset := date("2026-11-01T00:00:03Z")
	return user.Account{
		ID: "user-1", Tier: user.TierTester, SubscriptionStatus: user.StatusActive, Active: true, Adopted: true,
		TokensRemaining: 650, TokensUsed: 400, TopUps: 50, LastReset: &reset, CreatedAt: reset, UpdatedAt: reset,
	}
}

// but is the tester with a difference.
func but(change func(*user.Account)) user.Account {
	a := tester()
	change(&a)
	return a
}

func inactive(a *user.Account)  { a.Active = false }
func canceled(a *user.Account)  { a.SubscriptionStatus = "canceled" }
func unlimited(a *user.Account) { a.Tier = user.TierAdmin }
func monthOld(a *user.Account)  { a.LastReset = ptr(date("2026-10-31T23:59:59.999999Z")) }

// holding gives the account a hold of 10 tokens that is due now.
func holding(a *user.Account) { a.Reserved, a.NextHoldExpiry = 10, &now }

func dueHold() user.Reservation {
	return user.Reservation{ID: "hold", Status: user.ReservationOpen, Tokens: 10, CreatedAt: now.Add(-time.Hour), ExpiresAt: now}
}

// priorOf is the entry that the command left when it was done before under its key.
func priorOf(t *testing.T, run func(user.State) (user.Change, error)) *user.Entry {
	t.Helper()
	change, err := run(user.State{Account: tester()})
	if err != nil || len(change.Entries) != 1 {
		t.Fatalf("%+v, %v", change, err)
	}
	return &change.Entries[0]
}

// rulesCase is one call of a rule. The change must have entries of the kinds in wrote; the counters that it leaves are
// R, U and P, or those before it when nothing is to be written.
type rulesCase[C any] struct {
	name    string
	account user.Account
	command C
	prior   *user.Entry
	holds   []user.Reservation // loaded when not nil

	refusal error
	wrote   []user.EntryKind
	r, u, p int64
}

func checkRule[C any](t *testing.T, rule func(user.State, C, time.Time) (user.Change, error), cases []rulesCase[C]) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			change, err := rule(user.State{Account: c.account, Prior: c.prior, Holds: c.holds, HoldsLoaded: c.holds != nil}, c.command, now)
			if !errors.Is(err, c.refusal) {
				t.Fatalf("answered %v, want %v", err, c.refusal)
			}
			var wrote []user.EntryKind
			for _, e := range change.Entries {
				wrote = append(wrote, e.Kind)
			}
			if !slices.Equal(wrote, c.wrote) {
				t.Errorf("wrote %v, want %v", wrote, c.wrote)
			}
			if change.Empty() && c.refusal != nil {
				return
			}
			if a := change.Account; a.TokensRemaining != c.r || a.TokensUsed != c.u || a.TopUps != c.p {
				t.Errorf("R %d U %d P %d, want R %d U %d P %d", a.TokensRemaining, a.TokensUsed, a.TopUps, c.r, c.u, c.p)
			}
			if want := c.account.UpdatedAt; change.Empty() && !change.Account.UpdatedAt.Equal(want) || !change.Empty() && !change.Account.UpdatedAt.Equal(now) {
				t.Errorf("updated at %s", change.Account.UpdatedAt)
			}
		})
	}
}

func TestConsume(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	keyed := user.Consume{Tokens: 7, Meta: user.Meta{IdempotencyKey: "key-1"}}
	prior := priorOf(t, func(s user.State) (user.Change, error) { return rules.Consume(s, keyed, now) })
	added := priorOf(t, func(s user.State) (user.Change, error) {
		return rules.AddTokens(s, user.AddTokens{Tokens: 7, Meta: keyed.Meta}, now)
	})
	one := user.Consume{Tokens: 1}
	consume, reset, expire := user.KindConsume, user.KindMonthlyReset, user.KindExpire

	checkRule(t, rules.Consume, []rulesCase[user.Consume]{
		{name: "charges", account: tester(), command: one, wrote: kinds(consume), r: 649, u: 401, p: 50},
		{name: "charges on trial", account: but(func(a *user.Account) { a.SubscriptionStatus = "trialing" }), command: one, wrote: kinds(consume), r: 649, u: 401, p: 50},
		{name: "spends top-ups last and without a trace", account: tester(), command: user.Consume{Tokens: 640}, wrote: kinds(consume), r: 10, u: 1040, p: 50},
		{name: "charges the whole balance", account: tester(), command: user.Consume{Tokens: 650}, wrote: kinds(consume), r: 0, u: 1050, p: 50},
		{name: "refuses one token more", account: tester(), command: user.Consume{Tokens: 651}, refusal: user.ErrInsufficientTokens},
		{name: "refuses no tokens", account: tester(), command: user.Consume{}, refusal: user.ErrValidation},
		{name: "refuses negative tokens", account: tester(), command: user.Consume{Tokens: -1}, refusal: user.ErrValidation},
		{name: "refuses tokens past 32 bits", account: tester(), command: user.Consume{Tokens: user.MaxTokens + 1}, refusal: user.ErrValidation},
		{name: "refuses bad amounts first and keeps nothing", account: but(func(a *user.Account) { inactive(a); monthOld(a) }), command: user.Consume{}, prior: prior, refusal: user.ErrValidation},
		{name: "refuses the inactive before the canceled", account: but(func(a *user.Account) { inactive(a); canceled(a) }), command: one, refusal: user.ErrUserInactive},
		{name: "refuses the canceled before the poor", account: but(canceled), command: user.Consume{Tokens: 651}, refusal: user.ErrSubscriptionInactive},
		{name: "refuses the inactive without looking for holds", account: but(func(a *user.Account) { inactive(a); holding(a) }), command: user.Consume{Tokens: 651}, refusal: user.ErrUserInactive},
		{name: "refuses the inactive who are unlimited", account: but(func(a *user.Account) { inactive(a); unlimited(a) }), command: one, refusal: user.ErrUserInactive},
		{name: "keeps the reset of a refused command", account: but(func(a *user.Account) { inactive(a); monthOld(a) }), command: one, refusal: user.ErrUserInactive, wrote: kinds(reset), r: 1050, u: 0, p: 50},
		{name: "keeps the reset when the new allowance is short", account: but(monthOld), command: user.Consume{Tokens: 1051}, refusal: user.ErrInsufficientTokens, wrote: kinds(reset), r: 1050, u: 0, p: 50},
		{name: "resets before it charges", account: but(monthOld), command: one, wrote: kinds(reset, consume), r: 1049, u: 1, p: 50},
		{name: "counts nothing when unlimited", account: but(unlimited), command: user.Consume{Tokens: user.MaxTokens}, r: 650, u: 400, p: 50},
		{name: "resets when unlimited", account: but(func(a *user.Account) { unlimited(a); monthOld(a) }), command: one, wrote: kinds(reset), r: 50, u: 0, p: 50},
		{name: "leaves due holds alone while there are tokens", account: but(holding), command: user.Consume{Tokens: 650}, wrote: kinds(consume), r: 0, u: 1050, p: 50},
		{name: "asks for holds when short", account: but(holding), command: user.Consume{Tokens: 651}, refusal: user.ErrHoldsNeeded},
		{name: "asks for holds when it resets", account: but(func(a *user.Account) { holding(a); monthOld(a); a.NextHoldExpiry = ptr(now.Add(1)) }), command: one, refusal: user.ErrHoldsNeeded},
		{name: "does not ask for holds that are not due", account: but(func(a *user.Account) { holding(a); a.NextHoldExpiry = ptr(now.Add(time.Microsecond)) }), command: user.Consume{Tokens: 651}, refusal: user.ErrInsufficientTokens},
		{name: "charges what a due hold held", account: but(holding), holds: []user.Reservation{dueHold()}, command: user.Consume{Tokens: 660}, wrote: kinds(expire, consume), r: 0, u: 1060, p: 50},
		{name: "keeps the expiry when still short", account: but(holding), holds: []user.Reservation{dueHold()}, command: user.Consume{Tokens: 661}, refusal: user.ErrInsufficientTokens, wrote: kinds(expire), r: 660, u: 400, p: 50},
		{name: "charges once under a key", account: tester(), prior: prior, command: keyed, r: 650, u: 400, p: 50},
		{name: "replays whatever the metadata", account: tester(), prior: prior, command: user.Consume{Tokens: 7, Meta: user.Meta{IdempotencyKey: "key-1", Metadata: map[string]string{"model": "m"}, Actor: "b"}}, r: 650, u: 400, p: 50},
		{name: "replays before it refuses the inactive", account: but(inactive), prior: prior, command: keyed, r: 650, u: 400, p: 50},
		{name: "replays before it refuses the canceled", account: but(canceled), prior: prior, command: keyed, r: 650, u: 400, p: 50},
		{name: "replays before it refuses the poor", account: but(func(a *user.Account) { a.TokensRemaining = 0 }), prior: prior, command: keyed, r: 0, u: 400, p: 50},
		{name: "replays to those who are unlimited by now", account: but(unlimited), prior: prior, command: keyed, r: 650, u: 400, p: 50},
		{name: "resets before it replays", account: but(monthOld), prior: prior, command: keyed, wrote: kinds(reset), r: 1050, u: 0, p: 50},
		{name: "refuses another amount under the key", account: tester(), prior: prior, command: user.Consume{Tokens: 8, Meta: keyed.Meta}, refusal: user.ErrKeyReused},
		{name: "refuses another call under the key", account: tester(), prior: added, command: keyed, refusal: user.ErrKeyReused},
		{name: "refuses a used key before the inactive", account: but(inactive), prior: added, command: keyed, refusal: user.ErrKeyReused},
	})

	t.Run("says what is short", func(t *testing.T) {
		t.Parallel()
		_, err := rules.Consume(user.State{Account: tester()}, user.Consume{Tokens: 651}, now)
		var e *user.Error
		want := user.Shortage{TokensRemaining: 650, TokensRequired: 651, NextResetAt: monthsEnd}
		if !errors.As(err, &e) || e.Shortage == nil || *e.Shortage != want {
			t.Errorf("%+v, want %+v", err, want)
		}
	})
	t.Run("names the field that is wrong", func(t *testing.T) {
		t.Parallel()
		_, err := rules.Consume(user.State{Account: tester()}, user.Consume{}, now)
		if want := []user.FieldError{{Field: "tokens_to_consume", Message: "must be from 1 to 2147483647"}}; !reflect.DeepEqual(fields(err), want) {
			t.Errorf("%+v, want %+v", fields(err), want)
		}
	})
	t.Run("explains the charge", func(t *testing.T) {
		t.Parallel()
		meta := user.Meta{IdempotencyKey: "key-1", Metadata: map[string]string{"model": "m"}, Actor: "backend"}
		change, err := rules.Consume(user.State{Account: tester()}, user.Consume{Tokens: 7, Meta: meta}, now.Add(999))
		want := user.Entry{
			Kind: user.KindConsume, Amount: -7, BalanceAfter: 643, UsedAfter: 407, TokensCharged: 7,
			IdempotencyKey: ptr("key-1"), CommandHash: prior.CommandHash, Metadata: meta.Metadata, Actor: ptr("backend"), CreatedAt: now,
		}
		if err != nil || !reflect.DeepEqual(change.Entries, []user.Entry{want}) {
			t.Errorf("%+v, %v, want %+v", change.Entries, err, want)
		}
	})
	t.Run("closes the hold that it returns", func(t *testing.T) {
		t.Parallel()
		later := dueHold()
		later.ID, later.ExpiresAt = "later", now.Add(time.Microsecond)
		account := but(func(a *user.Account) { holding(a); a.Reserved = 20 })
		change, err := rules.Consume(user.State{Account: account, Holds: []user.Reservation{later, dueHold()}, HoldsLoaded: true}, user.Consume{Tokens: 655}, now)
		want := dueHold()
		want.Status, want.Returned, want.ClosedAt = user.ReservationExpired, 10, &now
		if err != nil || !reflect.DeepEqual(change.Reservations, []user.Reservation{want}) {
			t.Errorf("%+v, %v, want %+v", change.Reservations, err, want)
		}
		if a := change.Account; a.Reserved != 10 || a.NextHoldExpiry == nil || !a.NextHoldExpiry.Equal(later.ExpiresAt) {
			t.Errorf("reserved %d, next expiry %v", a.Reserved, a.NextHoldExpiry)
		}
	})
}

func TestAddTokens(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	keyed := user.AddTokens{Tokens: 7, Meta: user.Meta{IdempotencyKey: "key-1"}}
	prior := priorOf(t, func(s user.State) (user.Change, error) { return rules.AddTokens(s, keyed, now) })
	topUp, reset, expire := user.KindTopUp, user.KindMonthlyReset, user.KindExpire
	const room = user.MaxTokens - 650 - 400

	checkRule(t, rules.AddTokens, []rulesCase[user.AddTokens]{
		{name: "adds top-ups", account: tester(), command: user.AddTokens{Tokens: 1}, wrote: kinds(topUp), r: 651, u: 400, p: 51},
		{name: "adds for the inactive and canceled", account: but(func(a *user.Account) { inactive(a); canceled(a) }), command: user.AddTokens{Tokens: 1}, wrote: kinds(topUp), r: 651, u: 400, p: 51},
		{name: "adds for the unlimited", account: but(unlimited), command: user.AddTokens{Tokens: 1}, wrote: kinds(topUp), r: 651, u: 400, p: 51},
		{name: "fills 32 bits", account: tester(), command: user.AddTokens{Tokens: room}, wrote: kinds(topUp), r: user.MaxTokens - 400, u: 400, p: room + 50},
		{name: "refuses one token past 32 bits", account: tester(), command: user.AddTokens{Tokens: room + 1}, refusal: user.ErrBalanceOverflow},
		{name: "fills 32 bits less what is held", account: but(func(a *user.Account) { a.Reserved, a.NextHoldExpiry = 10, ptr(now.Add(1000)) }), command: user.AddTokens{Tokens: room - 10}, wrote: kinds(topUp), r: user.MaxTokens - 410, u: 400, p: room + 40},
		{name: "refuses one token past 32 bits less what is held", account: but(func(a *user.Account) { a.Reserved, a.NextHoldExpiry = 10, ptr(now.Add(1000)) }), command: user.AddTokens{Tokens: room - 9}, refusal: user.ErrBalanceOverflow},
		{name: "keeps the reset when refused", account: but(monthOld), command: user.AddTokens{Tokens: user.MaxTokens}, refusal: user.ErrBalanceOverflow, wrote: kinds(reset), r: 1050, u: 0, p: 50},
		{name: "resets before it adds", account: but(monthOld), command: user.AddTokens{Tokens: 1}, wrote: kinds(reset, topUp), r: 1051, u: 0, p: 51},
		{name: "asks for due holds", account: but(holding), command: user.AddTokens{Tokens: 1}, refusal: user.ErrHoldsNeeded},
		{name: "returns due holds", account: but(holding), holds: []user.Reservation{dueHold()}, command: user.AddTokens{Tokens: 1}, wrote: kinds(expire, topUp), r: 661, u: 400, p: 51},
		{name: "refuses no tokens", account: but(monthOld), command: user.AddTokens{}, refusal: user.ErrValidation},
		{name: "refuses negative tokens", account: tester(), command: user.AddTokens{Tokens: -1}, refusal: user.ErrValidation},
		{name: "refuses tokens past 32 bits", account: tester(), command: user.AddTokens{Tokens: user.MaxTokens + 1}, refusal: user.ErrValidation},
		{name: "adds once under a key", account: tester(), prior: prior, command: keyed, r: 650, u: 400, p: 50},
		{name: "replays before it refuses the full", account: but(func(a *user.Account) { a.TokensUsed = user.MaxTokens - 650 }), prior: prior, command: keyed, r: 650, u: user.MaxTokens - 650, p: 50},
		{name: "refuses another amount under the key", account: tester(), prior: prior, command: user.AddTokens{Tokens: 8, Meta: keyed.Meta}, refusal: user.ErrKeyReused},
		{name: "refuses a used key before the full", account: tester(), prior: prior, command: user.AddTokens{Tokens: user.MaxTokens, Meta: keyed.Meta}, refusal: user.ErrKeyReused},
	})

	t.Run("explains the top-up", func(t *testing.T) {
		t.Parallel()
		want := user.Entry{Kind: user.KindTopUp, Amount: 7, BalanceAfter: 657, UsedAfter: 400, IdempotencyKey: ptr("key-1"), CommandHash: prior.CommandHash, CreatedAt: now}
		if !reflect.DeepEqual(*prior, want) {
			t.Errorf("%+v, want %+v", *prior, want)
		}
	})
	t.Run("names the field that is wrong", func(t *testing.T) {
		t.Parallel()
		_, err := rules.AddTokens(user.State{Account: tester()}, user.AddTokens{}, now)
		if f := fields(err); len(f) != 1 || f[0].Field != "tokens_to_add" {
			t.Errorf("%+v", f)
		}
	})
}

func TestChangeTier(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"creator": 20, "agency": user.MaxTokens})
	renewal := date("2026-12-24T10:00:00Z")
	elsewhere := renewal.In(time.FixedZone("", 3600))
	renewed := func(a *user.Account) { a.RenewalDate = &renewal }
	change, reset, expire, profile := user.KindTierChange, user.KindMonthlyReset, user.KindExpire, user.KindProfileChange

	checkRule(t, rules.ChangeTier, []rulesCase[user.ChangeTier]{
		{name: "begins a term with the new allowance and the top-ups", account: tester(), command: user.ChangeTier{Tier: "creator"}, wrote: kinds(change), r: 70, u: 0, p: 50},
		{name: "grants nothing on the free tier", account: tester(), command: user.ChangeTier{Tier: "free"}, wrote: kinds(change), r: 50, u: 0, p: 50},
		{name: "grants nothing on an undefined tier", account: tester(), command: user.ChangeTier{Tier: "basic"}, wrote: kinds(change), r: 50, u: 0, p: 50},
		{name: "grants nothing countable on the unlimited tier", account: tester(), command: user.ChangeTier{Tier: "admin"}, wrote: kinds(change), r: 50, u: 0, p: 50},
		{name: "keeps of the top-ups what the balance has", account: but(func(a *user.Account) { a.TokensRemaining = 30 }), command: user.ChangeTier{Tier: "creator"}, wrote: kinds(change), r: 50, u: 0, p: 30},
		{name: "cuts an allowance that does not fit", account: tester(), command: user.ChangeTier{Tier: "agency"}, wrote: kinds(change), r: user.MaxTokens, u: 0, p: 50},
		{name: "grants nothing to the same tier", account: tester(), command: user.ChangeTier{Tier: "tester"}, r: 650, u: 400, p: 50},
		{name: "sets the renewal date of the same tier", account: tester(), command: user.ChangeTier{Tier: "tester", RenewalDate: &renewal}, wrote: kinds(profile), r: 650, u: 400, p: 50},
		{name: "clears the renewal date of the same tier", account: but(renewed), command: user.ChangeTier{Tier: "tester"}, wrote: kinds(profile), r: 650, u: 400, p: 50},
		{name: "writes nothing for the same renewal date", account: but(renewed), command: user.ChangeTier{Tier: "tester", RenewalDate: &elsewhere}, r: 650, u: 400, p: 50},
		{name: "sets tier and renewal date with one entry", account: tester(), command: user.ChangeTier{Tier: "free", RenewalDate: &renewal}, wrote: kinds(change), r: 50, u: 0, p: 50},
		{name: "changes the inactive and canceled", account: but(func(a *user.Account) { inactive(a); canceled(a) }), command: user.ChangeTier{Tier: "free"}, wrote: kinds(change), r: 50, u: 0, p: 50},
		{name: "leaves a tier that is not in the catalogue", account: but(func(a *user.Account) { a.Tier = "gold" }), command: user.ChangeTier{Tier: "creator"}, wrote: kinds(change), r: 70, u: 0, p: 50},
		{name: "refuses an unknown tier", account: tester(), command: user.ChangeTier{Tier: "gold"}, refusal: user.ErrInvalidTier},
		{name: "refuses an unknown tier that the account has", account: but(func(a *user.Account) { a.Tier = "gold" }), command: user.ChangeTier{Tier: "gold"}, refusal: user.ErrInvalidTier},
		{name: "refuses a tier in other letters", account: tester(), command: user.ChangeTier{Tier: "Creator"}, refusal: user.ErrInvalidTier},
		{name: "keeps the reset when refused", account: but(monthOld), command: user.ChangeTier{Tier: "gold"}, refusal: user.ErrInvalidTier, wrote: kinds(reset), r: 1050, u: 0, p: 50},
		{name: "resets the old tier before the change", account: but(monthOld), command: user.ChangeTier{Tier: "creator"}, wrote: kinds(reset, change), r: 70, u: 0, p: 50},
		{name: "resets though the tier stays", account: but(monthOld), command: user.ChangeTier{Tier: "tester"}, wrote: kinds(reset), r: 1050, u: 0, p: 50},
		{name: "returns due holds first", account: but(holding), holds: []user.Reservation{dueHold()}, command: user.ChangeTier{Tier: "creator"}, wrote: kinds(expire, change), r: 70, u: 0, p: 50},
		{name: "asks for holds that it must carry", account: but(func(a *user.Account) { holding(a); a.NextHoldExpiry = ptr(now.Add(1000)) }), command: user.ChangeTier{Tier: "creator"}, refusal: user.ErrHoldsNeeded},
		{name: "asks for no holds for the same tier", account: but(func(a *user.Account) { holding(a); a.NextHoldExpiry = ptr(now.Add(1000)) }), command: user.ChangeTier{Tier: "tester"}, r: 650, u: 400, p: 50},
	})

	t.Run("sets what was asked for", func(t *testing.T) {
		t.Parallel()
		c, err := rules.ChangeTier(user.State{Account: tester()}, user.ChangeTier{Tier: "creator", RenewalDate: &renewal, Actor: "billing"}, now)
		a := c.Account
		if err != nil || a.Tier != "creator" || a.RenewalDate == nil || !a.RenewalDate.Equal(renewal) || !a.LastReset.Equal(now) {
			t.Fatalf("%+v, %v", a, err)
		}
		want := user.Entry{
			Kind: user.KindTierChange, Amount: 70 - 650, BalanceAfter: 70, Actor: ptr("billing"), CreatedAt: now,
			Metadata: map[string]string{"from_tier": "tester", "to_tier": "creator"},
		}
		if !reflect.DeepEqual(c.Entries, []user.Entry{want}) {
			t.Errorf("%+v, want %+v", c.Entries, want)
		}
	})
	t.Run("names the field of the same tier's renewal date, never its value", func(t *testing.T) {
		t.Parallel()
		c, err := rules.ChangeTier(user.State{Account: tester()}, user.ChangeTier{Tier: "tester", RenewalDate: &renewal}, now)
		want := user.Entry{
			Kind: user.KindProfileChange, BalanceAfter: 650, UsedAfter: 400, CreatedAt: now,
			Metadata: map[string]string{"fields": "subscription_renewal_date"},
		}
		if err != nil || !reflect.DeepEqual(c.Entries, []user.Entry{want}) || c.Account.RenewalDate == nil || !c.Account.LastReset.Equal(*tester().LastReset) {
			t.Errorf("%+v, %v, want %+v", c, err, want)
		}
	})
	t.Run("begins no term before the last reset when the clock stepped back", func(t *testing.T) {
		t.Parallel()
		c, err := rules.ChangeTier(user.State{Account: tester()}, user.ChangeTier{Tier: "creator"}, date("2026-10-20T00:00:00Z"))
		if last := *tester().LastReset; err != nil || !c.Account.LastReset.Equal(last) || !c.Entries[0].CreatedAt.Equal(last) {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

func TestTouch(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	touch := func(s user.State, _ struct{}, at time.Time) (user.Change, error) { return rules.Touch(s, at) }
	early := dueHold()
	early.ExpiresAt = now.Add(time.Microsecond)
	carried := dueHold()
	carried.Carried, carried.TopUp = true, 4
	empty := dueHold()
	empty.Tokens = 0

	checkRule(t, touch, []rulesCase[struct{}]{
		{name: "changes nothing within the month", account: tester(), r: 650, u: 400, p: 50},
		{name: "resets in the next month", account: but(monthOld), wrote: kinds(user.KindMonthlyReset), r: 1050, u: 0, p: 50},
		{name: "resets in the same month of another year", account: but(func(a *user.Account) { a.LastReset = ptr(now.AddDate(-1, 0, 0)) }), wrote: kinds(user.KindMonthlyReset), r: 1050, u: 0, p: 50},
		{name: "resets without a date", account: but(func(a *user.Account) { a.LastReset = nil }), wrote: kinds(user.KindMonthlyReset), r: 1050, u: 0, p: 50},
		{name: "does not reset backwards", account: but(func(a *user.Account) { a.LastReset = ptr(now.AddDate(0, 1, 0)) }), r: 650, u: 400, p: 50},
		{name: "resets with amount 0 what changes nothing", account: but(func(a *user.Account) { monthOld(a); a.Tier, a.TokensRemaining, a.TokensUsed = "free", 50, 0 }), wrote: kinds(user.KindMonthlyReset), r: 50, u: 0, p: 50},
		{name: "returns a hold at its expiry", account: but(holding), holds: []user.Reservation{dueHold()}, wrote: kinds(user.KindExpire), r: 660, u: 400, p: 50},
		{name: "returns no hold before its expiry", account: but(func(a *user.Account) { a.NextHoldExpiry = &early.ExpiresAt }), holds: []user.Reservation{early}, r: 650, u: 400, p: 50},
		{name: "returns of a carried hold the top-ups", account: but(holding), holds: []user.Reservation{carried}, wrote: kinds(user.KindExpire), r: 654, u: 400, p: 54},
		{name: "closes a hold of nothing without an entry", account: but(func(a *user.Account) { a.NextHoldExpiry = &now }), holds: []user.Reservation{empty}, r: 650, u: 400, p: 50},
		{name: "returns holds before it resets", account: but(func(a *user.Account) { holding(a); monthOld(a); a.TokensRemaining = 45 }), holds: []user.Reservation{dueHold()}, wrote: kinds(user.KindExpire, user.KindMonthlyReset), r: 1050, u: 0, p: 50},
	})
}

func TestOpen(t *testing.T) {
	t.Parallel()
	n := user.NewAccount{ID: "user-1", Username: ptr("ann"), Email: ptr("ann@example.com")}
	want := user.Account{
		ID: "user-1", Username: n.Username, Email: n.Email, Tier: user.TierFree, SubscriptionStatus: user.StatusActive, Active: true,
		Adopted: true, LastReset: &now, CreatedAt: now, UpdatedAt: now,
	}
	t.Run("makes an empty free account without an entry", func(t *testing.T) {
		t.Parallel()
		if c := rulesOf(t, nil).Open(n, now.Add(999)); !reflect.DeepEqual(c, user.Change{Account: want}) {
			t.Errorf("%+v, want %+v", c, want)
		}
	})
	t.Run("explains the allowance of a free tier that has one", func(t *testing.T) {
		t.Parallel()
		want := want
		want.TokensRemaining = 25
		opening := user.Entry{Kind: user.KindOpening, Amount: 25, BalanceAfter: 25, CreatedAt: now}
		if c := rulesOf(t, map[string]int64{"free": 25}).Open(n, now); !reflect.DeepEqual(c, user.Change{Account: want, Entries: []user.Entry{opening}}) {
			t.Errorf("%+v, want %+v", c, want)
		}
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	poor := func(a *user.Account) { a.TokensRemaining = 0 }
	for _, c := range []struct {
		name    string
		account user.Account
		reason  user.Code
	}{
		{"may spend", tester(), ""},
		{"may spend the last token", but(func(a *user.Account) { a.TokensRemaining = 1 }), ""},
		{"may spend on trial", but(func(a *user.Account) { a.SubscriptionStatus = user.StatusTrialing }), ""},
		{"may spend top-ups on the free tier", but(func(a *user.Account) { a.Tier, a.TokensRemaining = "free", 50 }), ""},
		{"may spend top-ups on an unknown tier", but(func(a *user.Account) { a.Tier, a.TokensRemaining = "gold", 50 }), ""},
		{"may not without tokens", but(poor), user.CodeInsufficientTokens},
		{"may not though its tokens are held", but(func(a *user.Account) { holding(a); poor(a) }), user.CodeInsufficientTokens},
		{"may without tokens when unlimited", but(func(a *user.Account) { poor(a); unlimited(a) }), ""},
		{"is refused as inactive first", but(func(a *user.Account) { poor(a); canceled(a); inactive(a) }), user.CodeUserInactive},
		{"is refused as canceled second", but(func(a *user.Account) { poor(a); canceled(a) }), user.CodeSubscriptionInactive},
		{"is refused as inactive when unlimited", but(func(a *user.Account) { unlimited(a); inactive(a) }), user.CodeUserInactive},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := rules.Status(c.account, now)
			if s.Reason != c.reason || s.Tier.Tier != c.account.Tier || !s.NextResetAt.Equal(monthsEnd) || !reflect.DeepEqual(s.Account, c.account) {
				t.Errorf("%+v, want reason %q", s, c.reason)
			}
		})
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"basic": 0})
	// idle is an account to which a reset would change nothing.
	idle := func(change func(*user.Account)) user.Account {
		return but(func(a *user.Account) {
			monthOld(a)
			a.Tier, a.TokensRemaining, a.TokensUsed = "free", 50, 0
			change(a)
		})
	}
	unchanged := func(*user.Account) {}
	for _, c := range []struct {
		name    string
		account user.Account
		stale   bool
	}{
		{"is fresh within the month", tester(), false},
		{"is stale after the month", but(monthOld), true},
		{"is stale without a date", but(func(a *user.Account) { a.LastReset = nil }), true},
		{"leaves a reset that would change nothing", idle(unchanged), false},
		{"leaves it also on a tier with an allowance of 0", idle(func(a *user.Account) { a.Tier = "basic" }), false},
		{"leaves it also on the unlimited tier", idle(unlimited), false},
		{"leaves it also on an unknown tier", idle(func(a *user.Account) { a.Tier = "gold" }), false},
		{"leaves it also without a date", idle(func(a *user.Account) { a.LastReset = nil }), false},
		{"is stale where the tier has an allowance", idle(func(a *user.Account) { a.Tier = "tester" }), true},
		{"is stale where tokens were used", idle(func(a *user.Account) { a.TokensUsed = 1 }), true},
		{"is stale where allowance of another tier is left", idle(func(a *user.Account) { a.TopUps = 49 }), true},
		{"is stale where a hold is open", idle(func(a *user.Account) { a.Reserved, a.NextHoldExpiry = 1, ptr(now.Add(time.Hour)) }), true},
		{"is stale where a hold of nothing is open", idle(func(a *user.Account) { a.NextHoldExpiry = ptr(now.Add(time.Hour)) }), true},
		{"is stale when a hold is due", but(holding), true},
		{"is fresh until a hold is due", but(func(a *user.Account) { a.Reserved, a.NextHoldExpiry = 10, ptr(now.Add(time.Microsecond)) }), false},
		{"is fresh when the clock stepped back", but(func(a *user.Account) { a.LastReset = ptr(now.AddDate(0, 1, 0)) }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			read, stale := rules.Read(c.account, now)
			if stale != c.stale || !reflect.DeepEqual(read, c.account) {
				t.Errorf("stale %t, %+v; want %t, %+v", stale, read, c.stale, c.account)
			}
		})
	}
	t.Run("shows a row of the earlier service as it would be adopted", func(t *testing.T) {
		t.Parallel()
		read, stale := rules.Read(user.Account{Tier: "free", TokensRemaining: 40, TokensUsed: -1, LastReset: &now}, now)
		if want := (user.Account{Tier: "free", TokensRemaining: 40, TopUps: 40, LastReset: &now, Adopted: true}); stale || !reflect.DeepEqual(read, want) {
			t.Errorf("stale %t, %+v, want %+v", stale, read, want)
		}
	})
}

// TestPeriods has for each zone the first instant of a month: the microsecond before it belongs to the month before,
// which began at the instant after which the account was reset last.
func TestPeriods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zone, last, begins string }{
		{"UTC", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"},
		{"UTC", "2026-12-31T23:59:59.999998Z", "2027-01-01T00:00:00Z"},
		{"UTC", "2028-02-29T12:00:00Z", "2028-03-01T00:00:00Z"},
		{"Europe/Berlin", "2026-11-01T00:00:00+01:00", "2026-11-30T23:00:00Z"},
		{"Europe/Berlin", "2026-03-15T00:00:00Z", "2026-03-31T22:00:00Z"},
		{"Pacific/Kiritimati", "2026-11-30T10:00:00Z", "2026-12-31T10:00:00Z"},
		{"America/Asuncion", "2017-09-01T12:00:00Z", "2017-10-01T04:00:00Z"}, // its first midnight does not exist
		{"America/Asuncion", "2017-10-01T04:00:00Z", "2017-11-01T03:00:00Z"},
		{"America/Havana", "2026-10-15T00:00:00Z", "2026-11-01T04:00:00Z"}, // its first hour comes twice
		{"America/St_Johns", "2026-10-15T00:00:00Z", "2026-11-01T02:30:00Z"},
	} {
		t.Run(c.zone+" "+c.begins, func(t *testing.T) {
			t.Parallel()
			rules := rulesOf(t, nil)
			zone, err := time.LoadLocation(c.zone)
			if err != nil {
				t.Fatal(err)
			}
			rules.ResetZone = zone
			begins := date(c.begins)
			account := but(func(a *user.Account) { a.LastReset = ptr(date(c.last)) })

			if _, stale := rules.Read(account, begins.Add(-time.Microsecond)); stale {
				t.Error("the month ends early")
			}
			if _, stale := rules.Read(account, begins); !stale {
				t.Error("the month ends late")
			}
			for _, at := range []time.Time{date(c.last), begins.Add(-time.Nanosecond)} {
				if got := rules.Status(account, at).NextResetAt; !got.Equal(begins) || got.Location() != time.UTC {
					t.Errorf("next reset seen from %s: %s", at, got)
				}
			}
			change, err := rules.Touch(user.State{Account: account}, begins)
			if err != nil || !change.Account.LastReset.Equal(begins) {
				t.Errorf("%+v, %v", change, err)
			}
			if again, err := rules.Touch(user.State{Account: change.Account}, begins); err != nil || !again.Empty() {
				t.Errorf("a second reset: %+v, %v", again, err)
			}
		})
	}
}

// TestCommandHashes pins what is stored with every keyed entry: after a new release a key must still replay.
func TestCommandHashes(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	consumed := priorOf(t, func(s user.State) (user.Change, error) { return rules.Consume(s, user.Consume{Tokens: 7}, now) })
	added := priorOf(t, func(s user.State) (user.Change, error) { return rules.AddTokens(s, user.AddTokens{Tokens: 7}, now) })
	for _, c := range []struct {
		entry *user.Entry
		want  string
	}{
		{consumed, "ba8cffbab7bc584212339cf60ff9a3df168228b44ac0af3721e94dd39f549c17"},
		{added, "1fcc0a06125dff172bd88c50ebf83d7c028f97053b925ba82d2bc242b71553fd"},
	} {
		if got := hex.EncodeToString(c.entry.CommandHash); got != c.want {
			t.Errorf("%s: %s, want %s", c.entry.Kind, got, c.want)
		}
	}
}

func rulesOf(t *testing.T, overrides map[string]int64) user.Rules {
	t.Helper()
	catalogue, err := user.NewCatalogue(overrides)
	if err != nil {
		t.Fatal(err)
	}
	return user.Rules{Tiers: catalogue, ResetZone: time.UTC}
}

func fields(err error) []user.FieldError {
	var e *user.Error
	if !errors.As(err, &e) {
		return nil
	}
	return e.Fields
}

func kinds(k ...user.EntryKind) []user.EntryKind { return k }

func ptr[T any](v T) *T { return &v }

func date(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}
