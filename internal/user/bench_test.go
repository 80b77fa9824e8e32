package user_test

import (
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// The rules alone, without a store. Compare two versions with benchstat:
// go test ./internal/user -run '^$' -bench . -count 10.

func benchmarkRule(b *testing.B, rule func(user.Rules, user.State, time.Time) (user.Change, error)) {
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		b.Fatal(err)
	}
	rules := user.Rules{Tiers: tiers, ResetZone: time.UTC}
	now := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	reset := now.AddDate(0, 0, -1)
	state := user.State{HoldsLoaded: true, Account: user.Account{
		ID: "u", Tier: user.TierTester, SubscriptionStatus: user.StatusActive, Active: true, Adopted: true,
		TokensRemaining: 1000, LastReset: &reset,
	}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rule(rules, state, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConsume(b *testing.B) {
	benchmarkRule(b, func(r user.Rules, s user.State, now time.Time) (user.Change, error) {
		return r.Consume(s, user.Consume{Tokens: 7}, now)
	})
}

func BenchmarkReserve(b *testing.B) {
	benchmarkRule(b, func(r user.Rules, s user.State, now time.Time) (user.Change, error) {
		return r.Reserve(s, user.Reserve{ReservationID: "r", Tokens: 7, TTL: user.DefaultHold}, now)
	})
}

func BenchmarkMonthlyReset(b *testing.B) {
	benchmarkRule(b, func(r user.Rules, s user.State, now time.Time) (user.Change, error) {
		return r.Touch(s, now.AddDate(0, 1, 0))
	})
}
