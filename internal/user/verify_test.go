package user_test

import (
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// handChanged is the state of a tester with an allowance of 10 whose row says other things than a rule could have
// written, beside what its ledger adds up to.
func handChanged(change func(*user.Account)) (user.Rules, user.State) {
	tiers, err := user.NewCatalogue(map[string]int64{"tester": 10})
	if err != nil {
		panic(err)
	}
	now := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	a := user.Account{
		ID: "u", Tier: user.TierTester, SubscriptionStatus: user.StatusActive, Active: true, SideRow: user.CurrentSideRow,
		GrantedPeriod: 2026*12 + 11, TokensRemaining: 15, TopUps: 5, Allowance: 10, LastReset: &now,
	}
	topUps := a.TopUps
	totals := &user.Totals{Last: &user.Entry{ID: 7, BalanceAfter: a.TokensRemaining}, TopUps: &topUps}
	change(&a)
	return user.NewRules(tiers, time.UTC), user.State{Now: now, Account: a, Totals: totals}
}

func TestRulesApply_RowChangedByHand(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change          func(*user.Account)
		balance, topUps int64
	}{
		"fewer tokens than top-ups": {func(a *user.Account) { a.TokensRemaining = 3 }, 2, 2},
		"more tokens than granted":  {func(a *user.Account) { a.TokensRemaining = 100 }, 99, 5},
		"less than nothing used":    {func(a *user.Account) { a.TokensUsed = -5 }, 14, 5},
		"more than 32 bits in all":  {func(a *user.Account) { a.TokensUsed = user.MaxTokens }, 14, 5},
	} {
		t.Run(name, func(t *testing.T) {
			rules, s := handChanged(tt.change)
			change, err := rules.Apply(s, user.Consume{Tokens: 1})
			a := change.Account
			if err != nil || a.TokensRemaining != tt.balance || a.TopUps != tt.topUps {
				t.Fatalf("R %d, T %d, %v, want R %d, T %d", a.TokensRemaining, a.TopUps, err, tt.balance, tt.topUps)
			}
			if e := change.Entries[0]; *e.TopUpsAmount != tt.topUps-s.Account.TopUps {
				t.Errorf("the entry says that the top-ups changed by %d", *e.TopUpsAmount)
			}
		})
	}
}

func TestRulesReconcile_RowChangedByHand(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change                             func(*user.Account)
		balance, topUps, allowance, amount int64
	}{
		"fewer tokens":              {func(a *user.Account) { a.TokensRemaining = 3 }, 3, 0, 10, -12},
		"more tokens than granted":  {func(a *user.Account) { a.TokensRemaining = 100 }, 100, 90, 10, 85},
		"holds that are not there":  {func(a *user.Account) { a.Reserved, a.OpenReservations = 4, 1 }, 15, 5, 10, 0},
		"a month to come":           {func(a *user.Account) { a.GrantedPeriod++ }, 15, 5, 10, 0},
		"more top-ups than entries": {func(a *user.Account) { a.TopUps = 9 }, 15, 5, 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			rules, s := handChanged(tt.change)
			change := rules.Reconcile(s, user.Meta{Actor: "operator"})
			a := change.Account
			if a.TokensRemaining != tt.balance || a.TopUps != tt.topUps || a.Allowance != tt.allowance || a.Reserved != 0 || a.OpenReservations != 0 {
				t.Errorf("%+v", a)
			}
			if len(change.Entries) != 1 || change.Entries[0].Kind != user.KindOpening || change.Entries[0].Amount != tt.amount {
				t.Errorf("entries %+v", change.Entries)
			}
			s.Account = a
			s.Totals.Follow(change)
			if again := rules.Reconcile(s, user.Meta{}); !again.Empty() {
				t.Errorf("a second time it still finds something: %+v", again.Entries)
			}
		})
	}
	t.Run("entries that have been archived", func(t *testing.T) {
		rules, s := handChanged(func(*user.Account) {})
		s.Totals.TopUps = nil
		if change := rules.Reconcile(s, user.Meta{}); !change.Empty() {
			t.Errorf("entries %+v", change.Entries)
		}
	})
	t.Run("books that agree", func(t *testing.T) {
		rules, s := handChanged(func(*user.Account) {})
		if change := rules.Reconcile(s, user.Meta{}); !change.Empty() {
			t.Errorf("entries %+v", change.Entries)
		}
	})
}
