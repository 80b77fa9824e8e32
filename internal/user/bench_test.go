package user_test

import (
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// The rules alone, without a store. Compare two versions with benchstat:
// go test ./internal/user -run '^$' -bench . -count 10.

func benchmarkCommand(b *testing.B, c user.Command, after time.Duration) {
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		b.Fatal(err)
	}
	rules := user.Rules{Tiers: tiers, ResetZone: time.UTC, MaxOpenReservations: user.DefaultMaxOpenReservations}
	now := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	reset := now.AddDate(0, 0, -1)
	state := user.State{Now: now.Add(after), Account: user.Account{
		ID: "u", Tier: user.TierTester, SubscriptionStatus: user.StatusActive, Active: true, SideRow: user.CurrentSideRow,
		TokensRemaining: 1000, Allowance: 1000, LastReset: &reset, GrantedPeriod: 12*2026 + 11,
	}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := rules.Apply(state, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConsume(b *testing.B) { benchmarkCommand(b, user.Consume{Tokens: 7}, 0) }

func BenchmarkReserve(b *testing.B) {
	benchmarkCommand(b, user.Reserve{ReservationID: "r", Tokens: 7}, 0)
}

func BenchmarkMonthlyReset(b *testing.B) { benchmarkCommand(b, user.Touch{}, 31*24*time.Hour) }
