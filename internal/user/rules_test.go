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

// tester is an account in the middle of a period, with 600 of its allowance of 1000 left and 50 top-ups.
func tester() user.Account {
	reset := date("2026-11-01T00:00:03Z")
	return user.Account{
		ID: "user-1", Tier: user.TierTester, SubscriptionStatus: user.StatusActive, Active: true, SideRow: user.CurrentSideRow,
		TokensRemaining: 650, TokensUsed: 400, TopUps: 50, Allowance: 1000, GrantedPeriod: november,
		LastReset: &reset, CreatedAt: reset, UpdatedAt: reset,
	}
}

// but is the tester with a difference.
func but(changes ...func(*user.Account)) user.Account {
	a := tester()
	for _, change := range changes {
		change(&a)
	}
	return a
}

func inactive(a *user.Account)  { a.Active = false }
func canceled(a *user.Account)  { a.SubscriptionStatus = "canceled" }
func unlimited(a *user.Account) { a.Tier = user.TierAdmin }
func monthOld(a *user.Account)  { a.GrantedPeriod = november - 1 }
func poor(a *user.Account)      { a.TokensRemaining, a.TopUps, a.Allowance = 0, 0, 400 }

// holding gives the account a hold of 10 tokens that is due now.
func holding(a *user.Account) {
	a.Reserved, a.OpenReservations, a.NextHoldExpiry, a.TokensUsed = 10, 1, &now, 390
}

func dueHold() user.Reservation {
	return user.Reservation{ID: "hold", Status: user.ReservationOpen, Tokens: 10, Period: november, CreatedAt: now.Add(-time.Hour), ExpiresAt: now}
}

// priorOf is the entry that the command left when it was done before under its key.
func priorOf(t *testing.T, c user.Command) *user.Entry {
	t.Helper()
	change, err := rulesOf(t, nil).Apply(user.State{Now: now, Account: tester(), OpenCount: new(int64)}, c)
	if err != nil || len(change.Entries) != 1 {
		t.Fatalf("%+v, %v", change, err)
	}
	return &change.Entries[0]
}

// commandCase is one command. The change must have entries of the kinds in wrote; the counters that it leaves are R, U
// and T, or those before it when nothing is to be written.
type commandCase struct {
	name    string
	account user.Account
	command user.Command
	prior   *user.Entry
	holds   []user.Reservation

	refusal error
	wrote   []user.EntryKind
	r, u, t int64
}

func checkCommands(t *testing.T, rules user.Rules, cases []commandCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			change, err := rules.Apply(user.State{Now: now, Account: c.account, Prior: c.prior, Holds: c.holds}, c.command)
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
			if a := change.Account; a.TokensRemaining != c.r || a.TokensUsed != c.u || a.TopUps != c.t {
				t.Errorf("R %d U %d T %d, want R %d U %d T %d", a.TokensRemaining, a.TokensUsed, a.TopUps, c.r, c.u, c.t)
			}
			want := now
			if change.Empty() {
				want = c.account.UpdatedAt
			}
			if !change.Account.UpdatedAt.Equal(want) {
				t.Errorf("updated at %s", change.Account.UpdatedAt)
			}
		})
	}
}

func TestConsume_Outcomes(t *testing.T) {
	t.Parallel()
	keyed := user.Consume{Tokens: 7, Meta: user.Meta{IdempotencyKey: "key-1"}}
	prior := priorOf(t, keyed)
	added := priorOf(t, user.AddTokens{Tokens: 7, Meta: keyed.Meta})
	one := user.Consume{Tokens: 1}
	consume, reset, expire := user.KindConsume, user.KindMonthlyReset, user.KindExpire

	checkCommands(t, rulesOf(t, nil), []commandCase{
		{name: "charges", account: tester(), command: one, wrote: kinds(consume), r: 649, u: 401, t: 50},
		{
			name:    "charges one by default",
			account: tester(), command: user.Consume{},
			wrote: kinds(consume), r: 649, u: 401, t: 50,
		},
		{
			name:    "charges on trial",
			account: but(func(a *user.Account) { a.SubscriptionStatus = "trialing" }), command: one,
			wrote: kinds(consume), r: 649, u: 401, t: 50,
		},
		{
			name:    "spends top-ups last",
			account: tester(), command: user.Consume{Tokens: 640},
			wrote: kinds(consume), r: 10, u: 1040, t: 10,
		},
		{
			name:    "charges the whole balance",
			account: tester(), command: user.Consume{Tokens: 650},
			wrote: kinds(consume), r: 0, u: 1050, t: 0,
		},
		{
			name:    "refuses one token more",
			account: tester(), command: user.Consume{Tokens: 651},
			refusal: user.ErrInsufficientTokens,
		},
		{
			name:    "refuses negative tokens",
			account: tester(), command: user.Consume{Tokens: -1},
			refusal: user.ErrValidation,
		},
		{
			name:    "refuses tokens past 32 bits",
			account: tester(), command: user.Consume{Tokens: user.MaxTokens + 1},
			refusal: user.ErrValidation,
		},
		{
			name:    "refuses bad amounts first and keeps nothing",
			account: but(inactive, monthOld), command: user.Consume{Tokens: -1}, prior: prior,
			refusal: user.ErrValidation,
		},
		{
			name:    "refuses the inactive before the canceled",
			account: but(inactive, canceled), command: one,
			refusal: user.ErrUserInactive,
		},
		{
			name:    "refuses the canceled before the poor",
			account: but(canceled), command: user.Consume{Tokens: 651},
			refusal: user.ErrSubscriptionInactive,
		},
		{
			name:    "refuses the inactive who are unlimited",
			account: but(inactive, unlimited), command: one,
			refusal: user.ErrUserInactive,
		},
		{
			name:    "keeps the reset of a refused command",
			account: but(inactive, monthOld), command: one,
			refusal: user.ErrUserInactive, wrote: kinds(reset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "keeps the reset when the new allowance is short",
			account: but(monthOld), command: user.Consume{Tokens: 1051},
			refusal: user.ErrInsufficientTokens, wrote: kinds(reset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "resets before it charges",
			account: but(monthOld), command: one,
			wrote: kinds(reset, consume), r: 1049, u: 1, t: 50,
		},
		{
			name:    "counts nothing when unlimited",
			account: but(unlimited), command: user.Consume{Tokens: user.MaxTokens},
			r: 650, u: 400, t: 50,
		},
		{
			name:    "keeps its key when unlimited",
			account: but(unlimited), command: keyed,
			wrote: kinds(consume), r: 650, u: 400, t: 50,
		},
		{
			name:    "resets when unlimited",
			account: but(unlimited, monthOld), command: one,
			wrote: kinds(reset), r: 50, u: 0, t: 50,
		},
		{
			name:    "charges what a due hold held",
			account: but(holding), holds: []user.Reservation{dueHold()}, command: user.Consume{Tokens: 660},
			wrote: kinds(expire, consume), r: 0, u: 1050, t: 0,
		},
		{
			name:    "keeps the expiry when still short",
			account: but(holding), holds: []user.Reservation{dueHold()}, command: user.Consume{Tokens: 661},
			refusal: user.ErrInsufficientTokens, wrote: kinds(expire), r: 660, u: 390, t: 50,
		},
		{name: "charges once under a key", account: tester(), prior: prior, command: keyed, r: 650, u: 400, t: 50},
		{
			name:    "replays whatever the metadata",
			account: tester(), prior: prior, command: user.Consume{Tokens: 7, Meta: user.Meta{IdempotencyKey: "key-1", Metadata: map[string]string{"model": "m"}, Actor: "b"}},
			r: 650, u: 400, t: 50,
		},
		{
			name:    "replays before it refuses the inactive",
			account: but(inactive), prior: prior, command: keyed,
			r: 650, u: 400, t: 50,
		},
		{
			name:    "replays before it refuses the canceled",
			account: but(canceled), prior: prior, command: keyed,
			r: 650, u: 400, t: 50,
		},
		{
			name:    "replays before it refuses the poor",
			account: but(poor), prior: prior, command: keyed,
			r: 0, u: 400, t: 0,
		},
		{
			name:    "replays to those who are unlimited by now",
			account: but(unlimited), prior: prior, command: keyed,
			r: 650, u: 400, t: 50,
		},
		{
			name:    "resets before it replays",
			account: but(monthOld), prior: prior, command: keyed,
			wrote: kinds(reset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "refuses another amount under the key",
			account: tester(), prior: prior, command: user.Consume{Tokens: 8, Meta: keyed.Meta},
			refusal: user.ErrKeyReused,
		},
		{
			name:    "refuses another call under the key",
			account: tester(), prior: added, command: keyed,
			refusal: user.ErrKeyReused,
		},
		{
			name:    "refuses a used key before the inactive",
			account: but(inactive), prior: added, command: keyed,
			refusal: user.ErrKeyReused,
		},
	})

	rules := rulesOf(t, nil)
	t.Run("says what is short", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			account user.Account
			next    *time.Time
		}{{tester(), &monthsEnd}, {but(func(a *user.Account) { a.Tier = user.TierFree }), nil}} {
			_, err := rules.Apply(user.State{Now: now, Account: c.account}, user.Consume{Tokens: 651})
			var e *user.Error
			want := user.Shortage{TokensRemaining: 650, TokensRequired: 651, NextResetAt: c.next}
			if !errors.As(err, &e) || e.Shortage == nil || !reflect.DeepEqual(*e.Shortage, want) {
				t.Errorf("%+v, want %+v", err, want)
			}
		}
	})
	t.Run("names the field that is wrong", func(t *testing.T) {
		t.Parallel()
		_, err := rules.Apply(user.State{Now: now, Account: tester()}, user.Consume{Tokens: -1})
		if want := []user.FieldError{{Field: "tokens_to_consume", Message: "must be from 1 to 2147483647"}}; !reflect.DeepEqual(fields(err), want) {
			t.Errorf("%+v, want %+v", fields(err), want)
		}
	})
	t.Run("explains the charge", func(t *testing.T) {
		t.Parallel()
		meta := user.Meta{IdempotencyKey: "key-1", Metadata: map[string]string{"model": "m"}, Actor: "backend"}
		change, err := rules.Apply(user.State{Now: now.Add(999), Account: tester()}, user.Consume{Tokens: 607, Meta: meta})
		want := user.Entry{
			Kind: user.KindConsume, Amount: -607, BalanceAfter: 43, UsedAfter: 1007, TokensCharged: 607, TopUpsAmount: ptr(int64(-7)), Period: ptr(november),
			IdempotencyKey: ptr("key-1"), Metadata: meta.Metadata, Actor: ptr("backend"), CreatedAt: now,
		}
		if err != nil || len(change.Entries) != 1 {
			t.Fatalf("%+v, %v", change.Entries, err)
		}
		got := change.Entries[0]
		if got.CommandHash = nil; !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
	t.Run("closes the hold that it returns", func(t *testing.T) {
		t.Parallel()
		later := dueHold()
		later.ID, later.ExpiresAt = "later", now.Add(time.Microsecond)
		account := but(holding, func(a *user.Account) { a.Reserved, a.OpenReservations = 20, 2 })
		for _, state := range []user.State{
			{Now: now, Account: account, Holds: []user.Reservation{dueHold(), later}},
			{Now: now, Account: account, Holds: []user.Reservation{dueHold()}, NextExpiry: &later.ExpiresAt},
		} {
			change, err := rules.Apply(state, user.Consume{Tokens: 655})
			want := dueHold()
			want.Status, want.Returned, want.ClosedAt = user.ReservationExpired, 10, &now
			if err != nil || !reflect.DeepEqual(change.Reservations, []user.Reservation{want}) {
				t.Errorf("%+v, %v, want %+v", change.Reservations, err, want)
			}
			if a := change.Account; a.Reserved != 10 || a.OpenReservations != 1 || a.NextHoldExpiry == nil || !a.NextHoldExpiry.Equal(later.ExpiresAt) {
				t.Errorf("reserved %d in %d, next expiry %v", a.Reserved, a.OpenReservations, a.NextHoldExpiry)
			}
		}
	})
}

func TestAddTokens_Outcomes(t *testing.T) {
	t.Parallel()
	keyed := user.AddTokens{Tokens: 7, Meta: user.Meta{IdempotencyKey: "key-1"}}
	prior := priorOf(t, keyed)
	topUp, reset, expire := user.KindTopUp, user.KindMonthlyReset, user.KindExpire
	held := func(a *user.Account) { holding(a); a.TokensUsed, a.NextHoldExpiry = 400, ptr(now.Add(time.Hour)) }
	const room = user.MaxTokens - 650 - 400

	checkCommands(t, rulesOf(t, nil), []commandCase{
		{
			name:    "adds top-ups",
			account: tester(), command: user.AddTokens{Tokens: 1},
			wrote: kinds(topUp), r: 651, u: 400, t: 51,
		},
		{
			name:    "adds for the inactive and canceled",
			account: but(inactive, canceled), command: user.AddTokens{Tokens: 1},
			wrote: kinds(topUp), r: 651, u: 400, t: 51,
		},
		{
			name:    "adds for the unlimited",
			account: but(unlimited), command: user.AddTokens{Tokens: 1},
			wrote: kinds(topUp), r: 651, u: 400, t: 51,
		},
		{
			name:    "fills 32 bits",
			account: tester(), command: user.AddTokens{Tokens: room},
			wrote: kinds(topUp), r: user.MaxTokens - 400, u: 400, t: room + 50,
		},
		{
			name:    "refuses one token past 32 bits",
			account: tester(), command: user.AddTokens{Tokens: room + 1},
			refusal: user.ErrBalanceOverflow,
		},
		{
			name:    "fills 32 bits less what is held",
			account: but(held), command: user.AddTokens{Tokens: room - 10},
			wrote: kinds(topUp), r: user.MaxTokens - 410, u: 400, t: room + 40,
		},
		{
			name:    "refuses one token past 32 bits less what is held",
			account: but(held), command: user.AddTokens{Tokens: room - 9},
			refusal: user.ErrBalanceOverflow,
		},
		{
			name:    "keeps the reset when refused",
			account: but(monthOld), command: user.AddTokens{Tokens: user.MaxTokens},
			refusal: user.ErrBalanceOverflow, wrote: kinds(reset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "resets before it adds",
			account: but(monthOld), command: user.AddTokens{Tokens: 1},
			wrote: kinds(reset, topUp), r: 1051, u: 0, t: 51,
		},
		{
			name:    "returns due holds",
			account: but(holding), holds: []user.Reservation{dueHold()}, command: user.AddTokens{Tokens: 1},
			wrote: kinds(expire, topUp), r: 661, u: 390, t: 51,
		},
		{name: "refuses no tokens", account: but(monthOld), command: user.AddTokens{}, refusal: user.ErrValidation},
		{
			name:    "refuses negative tokens",
			account: tester(), command: user.AddTokens{Tokens: -1},
			refusal: user.ErrValidation,
		},
		{
			name:    "refuses tokens past 32 bits",
			account: tester(), command: user.AddTokens{Tokens: user.MaxTokens + 1},
			refusal: user.ErrValidation,
		},
		{name: "adds once under a key", account: tester(), prior: prior, command: keyed, r: 650, u: 400, t: 50},
		{
			name:    "replays before it refuses the full",
			account: but(func(a *user.Account) { a.TokensUsed = user.MaxTokens - 650 }), prior: prior, command: keyed,
			r: 650, u: user.MaxTokens - 650, t: 50,
		},
		{
			name:    "refuses another amount under the key",
			account: tester(), prior: prior, command: user.AddTokens{Tokens: 8, Meta: keyed.Meta},
			refusal: user.ErrKeyReused,
		},
		{
			name:    "refuses a used key before the full",
			account: tester(), prior: prior, command: user.AddTokens{Tokens: user.MaxTokens, Meta: keyed.Meta},
			refusal: user.ErrKeyReused,
		},
	})
}

func TestChangeTier_Outcomes(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"creator": 420, "agency": user.MaxTokens})
	renewal := date("2026-12-24T10:00:00Z")
	elsewhere := renewal.In(time.FixedZone("", 3600))
	renewed := func(a *user.Account) { a.RenewalDate = &renewal }
	keyed := user.Meta{IdempotencyKey: "key-1"}
	change, reset, expire, profile := user.KindTierChange, user.KindMonthlyReset, user.KindExpire, user.KindProfileChange

	checkCommands(t, rules, []commandCase{
		{
			name:    "counts what the month has used of a larger allowance",
			account: tester(), command: user.ChangeTier{Tier: "agency"},
			wrote: kinds(change), r: user.MaxTokens - 400, u: 400, t: 50,
		},
		{
			name:    "counts what the month has used of a smaller allowance",
			account: tester(), command: user.ChangeTier{Tier: "creator"},
			wrote: kinds(change), r: 70, u: 400, t: 50,
		},
		{
			name:    "grants nothing on the free tier",
			account: tester(), command: user.ChangeTier{Tier: "free"},
			wrote: kinds(change), r: 50, u: 400, t: 50,
		},
		{
			name:    "grants nothing on an undefined tier",
			account: tester(), command: user.ChangeTier{Tier: "basic"},
			wrote: kinds(change), r: 50, u: 400, t: 50,
		},
		{
			name:    "grants nothing countable on the unlimited tier",
			account: tester(), command: user.ChangeTier{Tier: "admin"},
			wrote: kinds(change), r: 50, u: 400, t: 50,
		},
		{
			name:    "grants nothing to the same tier",
			account: tester(), command: user.ChangeTier{Tier: "tester"},
			r: 650, u: 400, t: 50,
		},
		{
			name:    "keeps its key where nothing changes",
			account: tester(), command: user.ChangeTier{Tier: "tester", Meta: keyed},
			wrote: kinds(change), r: 650, u: 400, t: 50,
		},
		{
			name:    "sets the renewal date of the same tier",
			account: tester(), command: user.ChangeTier{Tier: "tester", RenewalDate: &renewal},
			wrote: kinds(profile), r: 650, u: 400, t: 50,
		},
		{
			name:    "clears the renewal date of the same tier",
			account: but(renewed), command: user.ChangeTier{Tier: "tester"},
			wrote: kinds(profile), r: 650, u: 400, t: 50,
		},
		{
			name:    "writes nothing for the same renewal date",
			account: but(renewed), command: user.ChangeTier{Tier: "tester", RenewalDate: &elsewhere},
			r: 650, u: 400, t: 50,
		},
		{
			name:    "sets tier and renewal date with one entry",
			account: tester(), command: user.ChangeTier{Tier: "free", RenewalDate: &renewal},
			wrote: kinds(change), r: 50, u: 400, t: 50,
		},
		{
			name:    "changes the inactive and canceled",
			account: but(inactive, canceled), command: user.ChangeTier{Tier: "free"},
			wrote: kinds(change), r: 50, u: 400, t: 50,
		},
		{
			name:    "leaves a tier that is not in the catalogue",
			account: but(func(a *user.Account) { a.Tier = "gold" }), command: user.ChangeTier{Tier: "creator"},
			wrote: kinds(change), r: 70, u: 400, t: 50,
		},
		{
			name:    "refuses an unknown tier",
			account: tester(), command: user.ChangeTier{Tier: "gold"},
			refusal: user.ErrInvalidTier,
		},
		{
			name:    "refuses an unknown tier that the account has",
			account: but(func(a *user.Account) { a.Tier = "gold" }), command: user.ChangeTier{Tier: "gold"},
			refusal: user.ErrInvalidTier,
		},
		{
			name:    "refuses a tier in other letters",
			account: tester(), command: user.ChangeTier{Tier: "Creator"},
			refusal: user.ErrInvalidTier,
		},
		{
			name:    "resets the old tier before the change",
			account: but(monthOld), command: user.ChangeTier{Tier: "creator"},
			wrote: kinds(reset, change), r: 470, u: 0, t: 50,
		},
		{
			name:    "resets though the tier stays",
			account: but(monthOld), command: user.ChangeTier{Tier: "tester"},
			wrote: kinds(reset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "returns due holds first",
			account: but(holding), holds: []user.Reservation{dueHold()}, command: user.ChangeTier{Tier: "creator"},
			wrote: kinds(expire, change), r: 80, u: 390, t: 50,
		},
	})

	t.Run("says what changed", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			command user.ChangeTier
			kind    user.EntryKind
			changes user.Changes
		}{
			{user.ChangeTier{Tier: "creator"}, change, user.Changes{"subscription_tier": {From: "tester", To: "creator"}}},
			{user.ChangeTier{Tier: "creator", RenewalDate: &renewal}, change, user.Changes{"subscription_tier": {From: "tester", To: "creator"}, "subscription_renewal_date": {}}},
			{user.ChangeTier{Tier: "tester", RenewalDate: &renewal}, profile, user.Changes{"subscription_renewal_date": {}}},
		} {
			got, err := rules.Apply(user.State{Now: now, Account: tester()}, c.command)
			if err != nil || got.Entries[0].Kind != c.kind || !reflect.DeepEqual(got.Entries[0].Changes, c.changes) || !got.Account.LastReset.Equal(*tester().LastReset) {
				t.Errorf("%+v: %+v, %v", c.command, got, err)
			}
		}
	})
}

func TestReserve_Limits(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	rules.MaxOpenReservations = 3
	open := func(n int64) func(*user.Account) {
		return func(a *user.Account) { a.OpenReservations, a.NextHoldExpiry = n, ptr(now.Add(time.Hour)) }
	}
	c := user.Reserve{ReservationID: "r", Tokens: 1}
	if ref := rules.Ref("user-1", c); ref.CountOpenFrom != 3 || ref.AccountID != "user-1" {
		t.Errorf("%+v", ref)
	}
	for _, test := range []struct {
		name    string
		account user.Account
		counted *int64
		refusal error
	}{
		{"makes the last one", but(open(2)), nil, nil},
		{"refuses one more", but(open(3)), ptr(int64(3)), user.ErrTooManyReservations},
		{"refuses one more before what is short", but(open(3), poor), ptr(int64(3)), user.ErrTooManyReservations},
		{"believes what was counted", but(open(3)), ptr(int64(2)), nil},
		{"refuses one more when unlimited", but(open(3), unlimited), ptr(int64(3)), user.ErrTooManyReservations},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			change, err := rules.Apply(user.State{Now: now, Account: test.account, OpenCount: test.counted}, c)
			if !errors.Is(err, test.refusal) {
				t.Fatalf("%v, want %v", err, test.refusal)
			}
			if err == nil && change.Account.OpenReservations != 3 {
				t.Errorf("%d open", change.Account.OpenReservations)
			}
		})
	}
	t.Run("holds from a second to a day, ten minutes by default", func(t *testing.T) {
		t.Parallel()
		for ttl, want := range map[time.Duration]time.Duration{
			0: 10 * time.Minute, time.Second: time.Second, 24 * time.Hour: 24 * time.Hour,
			time.Second - 1: -1, 24*time.Hour + 1: -1, -time.Second: -1,
		} {
			change, err := rules.Apply(user.State{Now: now, Account: tester()}, user.Reserve{ReservationID: "r", Tokens: 1, TTL: ttl})
			switch {
			case want < 0 && !errors.Is(err, user.ErrValidation):
				t.Errorf("%s: %v", ttl, err)
			case want > 0 && (err != nil || !change.Reservations[0].ExpiresAt.Equal(now.Add(want))):
				t.Errorf("%s: %+v, %v", ttl, change, err)
			}
		}
	})
}

func TestSubscription_Lapses(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	renews := func(at time.Time) func(*user.Account) { return func(a *user.Account) { a.RenewalDate = &at } }
	free := func(a *user.Account) { a.Tier = user.TierFree }
	ended := renews(now.Add(-time.Hour))
	for _, c := range []struct {
		name    string
		grace   *time.Duration
		account user.Account
		lapsed  bool
	}{
		{"never without the setting", nil, but(ended), false},
		{"at the end of the grace", ptr(time.Hour), but(ended), true},
		{"not before the end of the grace", ptr(time.Hour + 1), but(ended), false},
		{"at the date without a grace", ptr(time.Duration(0)), but(renews(now)), true},
		{"not before the date", ptr(time.Duration(0)), but(renews(now.Add(time.Microsecond))), false},
		{"not without a date", ptr(time.Duration(0)), tester(), false},
		{"not on the free tier", ptr(time.Duration(0)), but(ended, free), false},
		{"not when unlimited", ptr(time.Duration(0)), but(ended, unlimited), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rules := rules
			rules.Grace = c.grace
			var want error
			var reason user.Code
			if c.lapsed {
				want, reason = user.ErrSubscriptionLapsed, user.CodeSubscriptionLapsed
			}
			for _, command := range []user.Command{user.Consume{Tokens: 1}, user.Reserve{ReservationID: "r", Tokens: 1}} {
				if _, err := rules.Apply(user.State{Now: now, Account: c.account}, command); !errors.Is(err, want) {
					t.Errorf("%T: %v, want %v", command, err, want)
				}
			}
			if s := rules.Status(c.account, now); s.Reason != reason {
				t.Errorf("status says %q", s.Reason)
			}
			if _, err := rules.Apply(user.State{Now: now, Account: c.account}, user.AddTokens{Tokens: 1}); err != nil {
				t.Errorf("add: %v", err)
			}
		})
	}
}

func TestTouch_Outcomes(t *testing.T) {
	t.Parallel()
	early := dueHold()
	early.ExpiresAt = now.Add(time.Microsecond)
	carried := dueHold()
	carried.Period = november - 1
	empty := dueHold()
	empty.Tokens = 0
	touch := user.Touch{}

	checkCommands(t, rulesOf(t, nil), []commandCase{
		{name: "changes nothing within the month", account: tester(), command: touch, r: 650, u: 400, t: 50},
		{
			name:    "resets in the next month",
			account: but(monthOld), command: touch,
			wrote: kinds(user.KindMonthlyReset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "resets in the same month of another year",
			account: but(func(a *user.Account) { a.GrantedPeriod -= 12 }), command: touch,
			wrote: kinds(user.KindMonthlyReset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "resets when nothing was granted yet",
			account: but(func(a *user.Account) { a.GrantedPeriod = 0 }), command: touch,
			wrote: kinds(user.KindMonthlyReset), r: 1050, u: 0, t: 50,
		},
		{
			name:    "goes by the period and not by the date",
			account: but(func(a *user.Account) { a.LastReset = nil }), command: touch,
			r: 650, u: 400, t: 50,
		},
		{
			name:    "does not reset backwards",
			account: but(func(a *user.Account) { a.GrantedPeriod++ }), command: touch,
			r: 650, u: 400, t: 50,
		},
		{
			name:    "resets with amount 0 what changes nothing",
			account: but(monthOld, func(a *user.Account) { a.Tier, a.TokensRemaining, a.TokensUsed, a.Allowance = "free", 50, 0, 0 }), command: touch,
			wrote: kinds(user.KindMonthlyReset), r: 50, u: 0, t: 50,
		},
		{
			name:    "returns a hold at its expiry",
			account: but(holding), holds: []user.Reservation{dueHold()}, command: touch,
			wrote: kinds(user.KindExpire), r: 660, u: 390, t: 50,
		},
		{
			name:    "returns of a carried hold the top-ups",
			account: but(holding, func(a *user.Account) { a.CarriedTopUps = 4 }), holds: []user.Reservation{carried}, command: touch,
			wrote: kinds(user.KindExpire), r: 654, u: 390, t: 54,
		},
		{
			name:    "closes a hold of nothing without an entry",
			account: but(holding, func(a *user.Account) { a.Reserved = 0 }), holds: []user.Reservation{empty}, command: touch,
			r: 650, u: 390, t: 50,
		},
		{
			name:    "returns holds before it resets",
			account: but(holding, monthOld), holds: []user.Reservation{carried}, command: touch,
			wrote: kinds(user.KindExpire, user.KindMonthlyReset), r: 1050, u: 0, t: 50,
		},
	})
	t.Run("sets the bound of the next expiry right", func(t *testing.T) {
		t.Parallel()
		change, err := rulesOf(t, nil).Apply(user.State{Now: now, Account: but(holding), NextExpiry: &early.ExpiresAt}, touch)
		if err != nil || !change.SideRow || len(change.Entries) > 0 || !change.Account.NextHoldExpiry.Equal(early.ExpiresAt) || !change.Account.UpdatedAt.Equal(tester().UpdatedAt) {
			t.Errorf("%+v, %v", change, err)
		}
	})
	t.Run("leaves the bound where more holds are due", func(t *testing.T) {
		t.Parallel()
		account := but(holding, func(a *user.Account) { a.Reserved, a.OpenReservations = 20, 2 })
		change, err := rulesOf(t, nil).Apply(user.State{Now: now, Account: account, Holds: []user.Reservation{dueHold()}, MoreHolds: true}, touch)
		if err != nil || change.Account.NextHoldExpiry == nil || change.Account.NextHoldExpiry.After(now) || change.Account.Reserved != 10 {
			t.Errorf("%+v, %v", change, err)
		}
	})
}

func TestOpen_MakesAFreeAccount(t *testing.T) {
	t.Parallel()
	n := user.NewAccount{ID: "user-1", Username: ptr("ann"), Email: ptr("ann@example.com")}
	want := user.Account{
		ID: "user-1", Username: n.Username, Email: n.Email, Tier: user.TierFree, SubscriptionStatus: user.StatusActive, Active: true,
		SideRow: user.CurrentSideRow, GrantedPeriod: november, LastReset: &now, CreatedAt: now, UpdatedAt: now,
	}
	none := &user.Totals{TopUps: new(int64)}
	t.Run("empty, without an entry", func(t *testing.T) {
		t.Parallel()
		if c := rulesOf(t, nil).Open(user.State{Now: now.Add(999), Totals: none}, n); !reflect.DeepEqual(c, user.Change{Account: want}) {
			t.Errorf("%+v, want %+v", c, want)
		}
	})
	t.Run("with the allowance that the free tier has", func(t *testing.T) {
		t.Parallel()
		want := want
		want.TokensRemaining, want.Allowance = 25, 25
		opening := user.Entry{Kind: user.KindOpening, Amount: 25, BalanceAfter: 25, TopUpsAmount: new(int64), Period: ptr(november), CreatedAt: now}
		c := rulesOf(t, map[string]int64{"free": 25}).Open(user.State{Now: now, Totals: none}, n)
		if !reflect.DeepEqual(c.Account, want) || !reflect.DeepEqual(c.Entries, []user.Entry{opening}) {
			t.Errorf("%+v, want %+v", c, want)
		}
	})
	t.Run("with an entry that ends the ledger of an earlier account", func(t *testing.T) {
		t.Parallel()
		earlier := &user.Totals{Last: &user.Entry{BalanceAfter: 30, UsedAfter: 7}, TopUps: ptr(int64(12))}
		c := rulesOf(t, nil).Open(user.State{Now: now, Totals: earlier}, n)
		if len(c.Entries) != 1 || c.Entries[0].Amount != -30 || *c.Entries[0].TopUpsAmount != -12 || c.Entries[0].UsedAfter != 0 || !c.Entries[0].EndsPeriod() {
			t.Errorf("%+v", c.Entries)
		}
	})
	t.Run("with an entry that keeps its key", func(t *testing.T) {
		t.Parallel()
		n := n
		n.IdempotencyKey = "key-1"
		c := rulesOf(t, nil).Open(user.State{Now: now, Totals: none}, n)
		if len(c.Entries) != 1 || !c.Recorded || *c.Entries[0].IdempotencyKey != "key-1" || len(c.Entries[0].CommandHash) == 0 {
			t.Errorf("%+v", c)
		}
	})
}

func TestStatus_SaysWhy(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"basic": 0})
	left := func(n int64) func(*user.Account) {
		return func(a *user.Account) { a.TokensRemaining, a.TopUps = n, min(n, a.TopUps) }
	}
	on := func(tier user.Tier) func(*user.Account) {
		return func(a *user.Account) { a.Tier, a.TokensRemaining, a.Allowance = tier, a.TopUps, 0 }
	}
	for _, c := range []struct {
		name    string
		account user.Account
		reason  user.Code
		low     bool
		resets  bool
	}{
		{"may spend", tester(), "", false, true},
		{"may spend the last token", but(left(1)), "", true, true},
		{"is low at a fifth of the allowance", but(left(200)), "", true, true},
		{"is not low above it", but(left(201)), "", false, true},
		{"may spend on trial", but(func(a *user.Account) { a.SubscriptionStatus = user.StatusTrialing }), "", false, true},
		{"may spend top-ups on the free tier", but(on("free")), "", false, false},
		{"may spend top-ups on a tier with an allowance of 0", but(on("basic")), "", false, false},
		{"may spend top-ups on an unknown tier", but(on("gold")), "", false, false},
		{"may not without tokens", but(poor), user.CodeInsufficientTokens, true, true},
		{"may not though its tokens are held", but(holding, left(0)), user.CodeInsufficientTokens, true, true},
		{"may without tokens when unlimited", but(poor, unlimited), "", false, false},
		{"is refused as inactive first", but(poor, canceled, inactive), user.CodeUserInactive, true, true},
		{"is refused as canceled second", but(poor, canceled), user.CodeSubscriptionInactive, true, true},
		{"is refused as inactive when unlimited", but(unlimited, inactive), user.CodeUserInactive, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := rules.Status(c.account, now)
			if s.Reason != c.reason || s.LowBalance != c.low || s.Tier.Tier != c.account.Tier || !reflect.DeepEqual(s.Account, c.account) {
				t.Errorf("%+v, want reason %q, low %t", s, c.reason, c.low)
			}
			if (s.NextResetAt != nil) != c.resets || s.NextResetAt != nil && !s.NextResetAt.Equal(monthsEnd) {
				t.Errorf("next reset %v", s.NextResetAt)
			}
		})
	}
}

func TestRead_LeavesWhatIsNotDue(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"basic": 0})
	// idle is an account to which a reset would change nothing.
	idle := func(changes ...func(*user.Account)) user.Account {
		return but(append([]func(*user.Account){monthOld, func(a *user.Account) {
			a.Tier, a.TokensRemaining, a.TokensUsed, a.Allowance = "free", 50, 0, 0
		}}, changes...)...)
	}
	for _, c := range []struct {
		name    string
		account user.Account
		stale   bool
	}{
		{"is fresh within the month", tester(), false},
		{"is stale after the month", but(monthOld), true},
		{"leaves a reset that would change nothing", idle(), false},
		{"leaves it also on a tier with an allowance of 0", idle(func(a *user.Account) { a.Tier = "basic" }), false},
		{"leaves it also on the unlimited tier", idle(unlimited), false},
		{"leaves it also on an unknown tier", idle(func(a *user.Account) { a.Tier = "gold" }), false},
		{"is stale where the tier has an allowance", idle(func(a *user.Account) { a.Tier = "tester" }), true},
		{"is stale where tokens were used", idle(func(a *user.Account) { a.TokensUsed = 1 }), true},
		{"is stale where top-ups were used", idle(func(a *user.Account) { a.TopUpsUsed = 1 }), true},
		{"is stale where an allowance was exceeded", idle(func(a *user.Account) { a.AllowanceExcess = 1 }), true},
		{"is stale where another tier's allowance was in force", idle(func(a *user.Account) { a.Allowance = 1 }), true},
		{"is stale where allowance of another tier is left", idle(func(a *user.Account) { a.TopUps = 49 }), true},
		{"is stale where a hold is open", idle(func(a *user.Account) {
			a.Reserved, a.OpenReservations, a.NextHoldExpiry = 1, 1, ptr(now.Add(time.Hour))
		}), true},
		{"is stale when a hold is due", but(holding), true},
		{"is fresh until a hold is due", but(holding, func(a *user.Account) { a.NextHoldExpiry = ptr(now.Add(time.Microsecond)) }), false},
		{"is fresh when a later month was granted", but(func(a *user.Account) { a.GrantedPeriod++ }), false},
		{"is stale before the conversion", but(func(a *user.Account) { a.SideRow = user.EarlierSideRow }), true},
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
		want := user.Account{Tier: "free", TokensRemaining: 40, TopUps: 40, LastReset: &now, SideRow: user.CurrentSideRow, GrantedPeriod: november}
		if stale || !reflect.DeepEqual(read, want) {
			t.Errorf("stale %t, %+v, want %+v", stale, read, want)
		}
	})
}

// TestPeriods_BeginByTheZone has for each zone the first instant of a month: the microsecond before it belongs to the
// month before.
func TestPeriods_BeginByTheZone(t *testing.T) {
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
			last, begins := date(c.last), date(c.begins)
			granted, err := rules.Apply(user.State{Now: last, Account: but(func(a *user.Account) { a.GrantedPeriod = 0 })}, user.Touch{})
			if err != nil {
				t.Fatal(err)
			}
			account := granted.Account

			if _, stale := rules.Read(account, begins.Add(-time.Microsecond)); stale {
				t.Error("the month ends early")
			}
			if _, stale := rules.Read(account, begins); !stale {
				t.Error("the month ends late")
			}
			for _, at := range []time.Time{last, begins.Add(-time.Nanosecond)} {
				if got := rules.Status(account, at).NextResetAt; got == nil || !got.Equal(begins) || got.Location() != time.UTC {
					t.Errorf("next reset seen from %s: %s", at, got)
				}
			}
			change, err := rules.Apply(user.State{Now: begins, Account: account}, user.Touch{})
			if err != nil || !change.Account.LastReset.Equal(begins) || change.Account.GrantedPeriod != account.GrantedPeriod+1 {
				t.Errorf("%+v, %v", change, err)
			}
			if again, err := rules.Apply(user.State{Now: begins, Account: change.Account}, user.Touch{}); err != nil || !again.Empty() {
				t.Errorf("a second reset: %+v, %v", again, err)
			}
		})
	}
	t.Run("a change of the zone grants no month again", func(t *testing.T) {
		t.Parallel()
		rules := rulesOf(t, nil)
		at := date("2026-12-01T00:30:00Z")
		granted, err := rules.Apply(user.State{Now: at, Account: tester()}, user.Touch{})
		if err != nil || granted.Account.GrantedPeriod != november+1 {
			t.Fatalf("%+v, %v", granted, err)
		}
		west := rules
		if west.ResetZone, err = time.LoadLocation("America/New_York"); err != nil {
			t.Fatal(err)
		}
		for _, rules := range []user.Rules{west, rules, west} {
			for _, later := range []time.Duration{0, time.Hour, 5 * time.Hour} {
				if change, err := rules.Apply(user.State{Now: at.Add(later), Account: granted.Account}, user.Touch{}); err != nil || !change.Empty() {
					t.Errorf("%s: %+v, %v", rules.ResetZone, change, err)
				}
			}
		}
	})
}

// TestCommands_AreKnownAgain pins what is stored with every keyed entry: after a new release a key must still replay.
func TestCommands_AreKnownAgain(t *testing.T) {
	t.Parallel()
	meta := user.Meta{IdempotencyKey: "key-1"}
	t.Run("by the hash of this version", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			command user.Command
			want    string
		}{
			{user.Consume{Tokens: 7, Meta: meta}, "66d41e0c33de53ad0369da847742b5cce1a5fdaf3f3f9cb1e132187fdd7f47e1"},
			{user.Consume{Meta: meta}, "b70944078b35044812e5cb041cddd3376bc5e80e27217f79f0a07dd827997499"},
			{user.AddTokens{Tokens: 7, Meta: meta}, "2974f4e4fce46fed08a11e36b312267d850e3c604f41112c2726dc07e1a63a6f"},
			{user.ChangeTier{Tier: "creator", RenewalDate: &monthsEnd, Meta: meta}, "38bd6d8562ac5a318d8b7f8ccedf81979be91b1cddaa7bbc475c0950232ac915"},
			{user.Reserve{ReservationID: "r", Tokens: 7, Meta: meta}, "13d28f5e109a0601e883c165598f91999e98bc96ece16228d053578f763eb333"},
			{user.UpdateProfile{Active: ptr(false), Meta: meta}, "07747b9f8a5f934a1a4a798b486c42daa90d37c35a437d5dd9b9937935b734aa"},
			{user.Deactivate{Meta: meta}, "17dd9c5f1713b1ed6c7f95e39d8c0d17427c0f4f3f87ee1e258c18c88b20b4e1"},
		} {
			if got := hex.EncodeToString(priorOf(t, c.command).CommandHash); got != c.want {
				t.Errorf("%T: %s, want %s", c.command, got, c.want)
			}
		}
	})
	t.Run("by the hash of the earlier version", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			kind    user.EntryKind
			hash    string
			same    []user.Command
			another user.Command
		}{
			{
				user.KindConsume, "ba8cffbab7bc584212339cf60ff9a3df168228b44ac0af3721e94dd39f549c17",
				[]user.Command{user.Consume{Tokens: 7, Meta: meta}},
				user.Consume{Tokens: 8, Meta: meta},
			},
			{
				user.KindTopUp, "1fcc0a06125dff172bd88c50ebf83d7c028f97053b925ba82d2bc242b71553fd",
				[]user.Command{user.AddTokens{Tokens: 7, Meta: meta}},
				user.Consume{Tokens: 7, Meta: meta},
			},
		} {
			hash, err := hex.DecodeString(c.hash)
			if err != nil {
				t.Fatal(err)
			}
			prior := &user.Entry{Kind: c.kind, CommandHash: hash, IdempotencyKey: ptr("key-1")}
			for _, command := range c.same {
				if change, err := rulesOf(t, nil).Apply(user.State{Now: now, Account: tester(), Prior: prior}, command); err != nil || !change.Repeated {
					t.Errorf("%+v: %+v, %v", command, change, err)
				}
			}
			if _, err := rulesOf(t, nil).Apply(user.State{Now: now, Account: tester(), Prior: prior}, c.another); !errors.Is(err, user.ErrKeyReused) {
				t.Errorf("%+v: %v", c.another, err)
			}
			prior.TopUpsAmount = new(int64)
			if _, err := rulesOf(t, nil).Apply(user.State{Now: now, Account: tester(), Prior: prior}, c.same[0]); !errors.Is(err, user.ErrKeyReused) {
				t.Errorf("an entry of this version has another hash: %v", err)
			}
		}
	})
}

func TestReconcile_AcceptsWhatAHandHasChanged(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	books := func(a user.Account) *user.Totals {
		return &user.Totals{
			Last:   &user.Entry{BalanceAfter: a.TokensRemaining, UsedAfter: a.TokensUsed, TopUpsAmount: new(int64)},
			TopUps: &a.TopUps, Reserved: a.Reserved, Open: a.OpenReservations, NextExpiry: a.NextHoldExpiry,
		}
	}
	for _, c := range []struct {
		name   string
		edit   func(*user.Account, *user.Totals)
		writes bool
	}{
		{"nothing where the books agree", func(*user.Account, *user.Totals) {}, false},
		{"a balance", func(a *user.Account, _ *user.Totals) { a.TokensRemaining += 3 }, true},
		{"tokens used", func(a *user.Account, _ *user.Totals) { a.TokensUsed = 0 }, true},
		{"top-ups", func(a *user.Account, _ *user.Totals) { a.TopUps-- }, true},
		{"what is held", func(_ *user.Account, t *user.Totals) { t.Reserved = 4 }, true},
		{"how many are open", func(_ *user.Account, t *user.Totals) { t.Open = 1 }, true},
		{"an expiry that is not known", func(_ *user.Account, t *user.Totals) { t.NextExpiry = &now }, true},
		{"more carried top-ups than are held", func(a *user.Account, _ *user.Totals) { a.CarriedTopUps = 1 }, true},
		{"an excess beside an allowance", func(a *user.Account, _ *user.Totals) { a.AllowanceExcess = 1 }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := tester()
			totals := books(a)
			c.edit(&a, totals)
			change := rules.Reconcile(user.State{Now: now, Account: a, Totals: totals}, user.Meta{Actor: "ops"})
			if change.Empty() == c.writes {
				t.Fatalf("%+v", change)
			}
			if !c.writes {
				return
			}
			got := change.Account
			if e := change.Entries[0]; len(change.Entries) != 1 || e.Kind != user.KindOpening || *e.Actor != "ops" || e.BalanceAfter != a.TokensRemaining || e.UsedAfter != a.TokensUsed ||
				e.Amount != a.TokensRemaining-totals.Last.BalanceAfter || *e.TopUpsAmount != got.TopUps-*totals.TopUps {
				t.Errorf("%+v", change.Entries)
			}
			if got.TopUps != max(0, a.TokensRemaining-1000) || got.Allowance != 1000 || got.TopUpsUsed+got.AllowanceExcess+got.CarriedTopUps != 0 ||
				got.Reserved != totals.Reserved || got.OpenReservations != totals.Open || got.GrantedPeriod != november {
				t.Errorf("%+v", got)
			}
		})
	}
}

func rulesOf(t *testing.T, overrides map[string]int64) user.Rules {
	t.Helper()
	catalogue, err := user.NewCatalogue(overrides)
	if err != nil {
		t.Fatal(err)
	}
	return user.NewRules(catalogue, time.UTC)
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
