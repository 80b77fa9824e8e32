package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// Whoever grants first decides which month it is.
func TestReset_ReplicasWithDifferentZonesGrantOnce(t *testing.T) {
	t.Parallel()
	newYork, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	october := time.Date(2026, 10, 20, 12, 0, 0, 0, time.UTC)
	first := time.Date(2026, 11, 1, 0, 30, 0, 0, time.UTC) // still October in New York
	for name, order := range map[string][]*time.Location{
		"to New York and back":      {time.UTC, newYork, time.UTC, newYork, time.UTC},
		"from New York and back":    {newYork, time.UTC, newYork, time.UTC, newYork},
		"New York alone until five": {newYork, newYork, newYork},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			instant := october
			clock := func() time.Time { return instant }
			replica := map[*time.Location]*user.Service{}
			for _, zone := range []*time.Location{time.UTC, newYork} {
				s := serviceAt(t, open(t, url, at(clock)), clock)
				s.Rules.ResetZone = zone
				replica[zone] = s
			}
			if _, err := replica[time.UTC].Create(t.Context(), user.NewAccount{ID: "u"}); err != nil {
				t.Fatal(err)
			}
			if _, err := replica[time.UTC].Do(t.Context(), "u", user.ChangeTier{Tier: user.TierTester}); err != nil {
				t.Fatal(err)
			}
			if _, err := replica[newYork].Do(t.Context(), "u", user.Consume{Tokens: 900}); err != nil {
				t.Fatal(err)
			}
			for i, zone := range order {
				instant = first.Add(time.Duration(i) * time.Hour)
				if _, err := replica[zone].Do(t.Context(), "u", user.Consume{Tokens: 1}); err != nil {
					t.Fatal(err)
				}
				if _, err := replica[zone].Status(t.Context(), "u"); err != nil {
					t.Fatal(err)
				}
			}
			instant = first.Add(6 * time.Hour) // November for both
			for range 2 {
				for _, s := range replica {
					if _, err := s.Do(t.Context(), "u", user.Consume{Tokens: 1}); err != nil {
						t.Fatal(err)
					}
				}
			}
			entries, _, err := replica[time.UTC].Entries(t.Context(), "u", user.EntryQuery{Kind: user.KindMonthlyReset, Limit: 9})
			if err != nil || len(entries) != 1 {
				t.Fatalf("grants: %+v, %v", entries, err)
			}
			if a, err := replica[newYork].Account(t.Context(), "u"); err != nil || a.TokensRemaining+a.TokensUsed != 1000 {
				t.Errorf("account %+v, %v", a, err)
			}
			wantVerified(t, replica[time.UTC])
		})
	}
}

// A replica whose own clock is ahead changes accounts by the database's.
func TestReset_ReplicaWithAFastClockGrantsNothingEarly(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	zone, err := time.LoadLocation(localpgtest.CalmZone())
	if err != nil {
		t.Fatal(err)
	}
	ahead := serviceAt(t, open(t, url, realClock), func() time.Time { return time.Now().AddDate(0, 0, 30).Add(24 * time.Hour) })
	right := serviceAt(t, open(t, url, realClock), time.Now)
	ahead.Rules.ResetZone, right.Rules.ResetZone = zone, zone
	begin := localpgtest.Query[time.Time](db, "SELECT clock_timestamp()")
	if _, err := ahead.Create(t.Context(), user.NewAccount{ID: "u"}); err != nil {
		t.Fatal(err)
	}
	if _, err := right.Do(t.Context(), "u", user.ChangeTier{Tier: user.TierTester}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*user.Service{ahead, right, ahead} {
		if _, err := s.Do(t.Context(), "u", user.Consume{Tokens: 10}); err != nil {
			t.Fatal(err)
		}
		if status, err := s.Status(t.Context(), "u"); err != nil || status.Account.TokensRemaining+status.Account.TokensUsed != 1000 {
			t.Errorf("status %+v, %v", status, err)
		}
	}
	r, err := ahead.Reserve(t.Context(), "u", user.Reserve{Tokens: 5, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := ahead.Account(t.Context(), "u"); err != nil || a.Reserved != 5 {
		t.Errorf("account %+v, %v", a, err)
	}
	if n, err := ahead.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("the sweep ended %d, %v", n, err)
	}
	end := localpgtest.Query[time.Time](db, "SELECT clock_timestamp()")
	if h := r.Reservation; h.CreatedAt.Before(begin) || h.ExpiresAt.After(end.Add(time.Hour)) {
		t.Errorf("reservation made at %s, runs out at %s", h.CreatedAt, h.ExpiresAt)
	}
	entries, _, err := right.Entries(t.Context(), "u", user.EntryQuery{Limit: 20})
	if err != nil || len(entries) != 5 {
		t.Errorf("entries %+v, %v", entries, err)
	}
	for _, e := range entries {
		if e.Kind == user.KindMonthlyReset || e.CreatedAt.Before(begin) || e.CreatedAt.After(end) {
			t.Errorf("entry %+v", e)
		}
	}
	if created := localpgtest.Query[time.Time](db, "SELECT created_at FROM viralpilot.userdata"); created.Before(begin) || created.After(end) {
		t.Errorf("created at %s", created)
	}
	wantVerified(t, right)
}

func TestStore_ClockOffset(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	behind := func(o *postgres.Options) {
		o.Clock = func(_ context.Context, database time.Time) time.Time { return database.Add(-time.Hour) }
	}
	store := open(t, url, behind)
	if ahead, err := store.CompareClocks(t.Context()); err != nil || ahead < time.Hour || ahead > time.Hour+patience {
		t.Errorf("%s ahead, %v", ahead, err)
	}
	create(t, store, "u", 1) // which looks at the database's own
	if ahead := store.ClockOffset(); ahead > patience || ahead < -patience {
		t.Errorf("%s ahead after a change", ahead)
	}
}

func TestStore_Settings(t *testing.T) {
	t.Parallel()
	store := open(t, localpgtest.New(t))
	for _, value := range []string{"UTC", "America/New_York", "America/New_York"} {
		if err := store.KeepSetting(t.Context(), "TOKEN_RESET_TIMEZONE", value); err != nil {
			t.Fatal(err)
		}
		if settings, err := store.Settings(t.Context()); err != nil || len(settings) != 1 || settings["TOKEN_RESET_TIMEZONE"] != value {
			t.Errorf("settings %v, %v", settings, err)
		}
	}
}
