package user_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/usertest"
)

// monthsEnd is where the stories of these tests turn.
var monthsEnd = date("2026-12-01T00:00:00Z")

// story plays a few commands on one account; each of its methods is one command.
type story struct {
	oneAccount
	rules user.Rules
	now   time.Time
	holds int
}

// tell starts a story ten minutes before the month's end.
func tell(t *testing.T, rules user.Rules, row user.Account) *story {
	t.Helper()
	s := &story{oneAccount: oneAccount{t: t}, rules: rules, now: monthsEnd.Add(-10 * time.Minute)}
	row.ID, row.SubscriptionStatus, row.Active = "user-1", user.StatusActive, true
	change := user.Change{Account: row}
	if row.Adopted {
		change.Entries = []user.Entry{{Kind: user.KindOpening, Amount: row.TokensRemaining, BalanceAfter: row.TokensRemaining, UsedAfter: row.TokensUsed}}
	}
	s.write(change)
	t.Cleanup(func() {
		var all []user.Reservation
		for _, r := range s.reservations {
			all = append(all, r)
		}
		if err := usertest.Check(s.account, s.entries, all, rules.ResetZone); err != nil {
			t.Error(err)
		}
	})
	return s
}

// at lets time pass to an offset from the month's end.
func (s *story) at(offset time.Duration) { s.now = monthsEnd.Add(offset) }

func (s *story) touch() { s.must(s.Update(context.Background(), user.Ref{}, s.touchRule)) }

func (s *story) touchRule(st user.State) (user.Change, error) { return s.rules.Touch(st, s.now) }

func (s *story) consume(tokens int64) { s.must(s.tryConsume(tokens)) }

func (s *story) tryConsume(tokens int64) (user.Change, error) {
	return s.Update(context.Background(), user.Ref{}, func(st user.State) (user.Change, error) {
		return s.rules.Consume(st, user.Consume{Tokens: tokens}, s.now)
	})
}

func (s *story) add(tokens int64) {
	s.must(s.Update(context.Background(), user.Ref{}, func(st user.State) (user.Change, error) {
		return s.rules.AddTokens(st, user.AddTokens{Tokens: tokens}, s.now)
	}))
}

func (s *story) changeTier(tier user.Tier) {
	s.must(s.Update(context.Background(), user.Ref{}, func(st user.State) (user.Change, error) {
		return s.rules.ChangeTier(st, user.ChangeTier{Tier: tier}, s.now)
	}))
}

// reserve makes a hold that runs out at an offset from the month's end. Holds are named hold-1, hold-2, ….
func (s *story) reserve(tokens int64, until time.Duration) {
	s.holds++
	c := user.Reserve{ReservationID: fmt.Sprintf("hold-%d", s.holds), Tokens: tokens, TTL: monthsEnd.Add(until).Sub(s.now)}
	s.must(s.Update(context.Background(), user.Ref{}, func(st user.State) (user.Change, error) { return s.rules.Reserve(st, c, s.now) }))
}

func (s *story) release(hold string) {
	s.must(s.Update(context.Background(), user.Ref{ReservationID: hold}, func(st user.State) (user.Change, error) {
		return s.rules.Release(st, user.Release{ReservationID: hold}, s.now)
	}))
}

func (s *story) settle(hold string, tokens int64) {
	s.must(s.Update(context.Background(), user.Ref{ReservationID: hold}, func(st user.State) (user.Change, error) {
		return s.rules.Settle(st, user.Settle{ReservationID: hold, TokensUsed: tokens}, s.now)
	}))
}

// refund gives back what is left of the charge of an entry.
func (s *story) refund(entry int64) {
	s.must(s.Update(context.Background(), user.Ref{EntryID: entry}, func(st user.State) (user.Change, error) {
		return s.rules.Refund(st, user.Refund{EntryID: entry}, s.now)
	}))
}

func (s *story) must(_ user.Change, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// has checks the balance, and what of it are top-ups.
func (s *story) has(balance, topUps int64) {
	s.t.Helper()
	if s.account.TokensRemaining != balance || s.account.TopUpsLeft() != topUps {
		s.t.Errorf("R %d with %d top-ups left, want R %d with %d", s.account.TokensRemaining, s.account.TopUpsLeft(), balance, topUps)
	}
}

// TestWorkedCases has those of product.md §3, and more of their kind where a hold runs out instead of being released.
func TestWorkedCases(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"tester": 10, "creator": 20})
	r15p5 := user.Account{Tier: user.TierTester, TokensRemaining: 15, TopUps: 5, LastReset: ptr(date("2026-11-03T08:00:00Z")), Adopted: true}
	r5u5 := user.Account{Tier: user.TierTester, TokensRemaining: 5, TokensUsed: 5, LastReset: r15p5.LastReset, Adopted: true}
	freeR5P5 := user.Account{Tier: user.TierFree, TokensRemaining: 5, TopUps: 5, LastReset: r15p5.LastReset, Adopted: true}

	for _, c := range []struct {
		name string
		row  user.Account
		play func(*story)
	}{
		{"R15 P5, reserve 12, consume 3, release before the month's end", r15p5, func(s *story) {
			s.reserve(12, time.Hour)
			s.consume(3)
			s.at(-time.Microsecond)
			s.release("hold-1")
			s.has(12, 5)
		}},
		{"R15 P5, reserve 12, consume 3, release after the month's end", r15p5, func(s *story) {
			s.reserve(12, time.Hour)
			s.consume(3)
			s.at(0)
			s.release("hold-1")
			s.has(15, 5)
		}},
		{"free R5 P5, reserve 5, to tester, release, month ends", freeR5P5, func(s *story) {
			s.reserve(5, time.Hour)
			s.changeTier(user.TierTester)
			s.release("hold-1")
			s.at(0)
			s.touch()
			s.has(15, 5)
		}},
		{"R15 P5, reserve 10, to creator, release", r15p5, func(s *story) {
			s.reserve(10, time.Hour)
			s.changeTier(user.TierCreator)
			s.release("hold-1")
			s.has(25, 5)
		}},
		{"R5 U5, reserve 4, settle 100 charges 5 and is short of 95", r5u5, func(s *story) {
			s.reserve(4, time.Hour)
			s.settle("hold-1", 100)
			s.has(0, 0)
			if h := s.reservations["hold-1"]; h.Charged != 5 || h.Shortfall != 95 || h.Returned != 0 || s.account.TokensUsed != 10 {
				s.t.Errorf("%+v, U %d", h, s.account.TokensUsed)
			}
		}},
		{"R15 P5, consume 10, reserve 5, refund 10, hold expires, then the month ends", r15p5, func(s *story) {
			s.consume(10)
			s.reserve(5, -time.Minute)
			s.refund(2)
			s.at(-time.Minute)
			s.touch()
			s.has(15, 5)
			s.at(0)
			s.touch()
			s.has(15, 5)
		}},
		{"R15 P5, consume 10, reserve 5, refund 10, month ends, then the hold expires", r15p5, func(s *story) {
			s.consume(10)
			s.reserve(5, time.Minute)
			s.refund(2)
			s.at(0)
			s.touch()
			s.has(15, 5)
			s.at(time.Minute)
			s.touch()
			s.has(15, 5)
		}},
		{"a charge refunded in a later term comes back as top-ups", r15p5, func(s *story) {
			s.consume(15)
			s.at(0)
			s.refund(2)
			s.has(25, 15)
		}},
		{"settling a carried hold returns no more than the top-ups in it", r15p5, func(s *story) {
			s.reserve(12, time.Hour) // 10 of the allowance and 2 top-ups
			s.at(0)
			s.settle("hold-1", 1)
			s.has(15, 5)
			s.refund(s.entries[len(s.entries)-1].ID)
			s.has(16, 6)
		}},
		{"refunding what a carried hold cost in excess mints no top-ups", r15p5, func(s *story) {
			s.reserve(1, time.Hour)
			s.at(0)
			s.has(14, 5)
			s.settle("hold-1", 16)
			s.has(0, 0)
			s.refund(s.entries[len(s.entries)-1].ID)
			s.has(16, 6) // the allowance of 10, the 5 that were topped up, and the one of the hold
			s.changeTier(user.TierFree)
			s.has(6, 6)
		}},
		{"a hold that ends before the month brings the allowance in it back too", r15p5, func(s *story) {
			s.reserve(12, -time.Minute)
			s.consume(3)
			s.at(-time.Microsecond)
			s.touch()
			s.has(12, 5)
		}},
		{"a hold that ends after the month brings back only the top-ups in it", r15p5, func(s *story) {
			s.reserve(12, time.Microsecond)
			s.consume(3)
			s.at(0)
			s.touch()
			s.has(10, 0)
			s.at(time.Microsecond)
			s.touch()
			s.has(15, 5)
		}},
		{"a hold that ended with the month but was noticed after it is returned first", r15p5, func(s *story) {
			s.reserve(12, 0)
			s.consume(3)
			s.at(0)
			s.touch()
			s.has(15, 5)
		}},
		{"top-ups held over a tier change and a month survive both", freeR5P5, func(s *story) {
			s.reserve(5, -time.Minute)
			s.changeTier(user.TierTester)
			s.has(10, 0)
			s.at(-time.Minute)
			s.touch()
			s.has(15, 5)
			s.at(0)
			s.touch()
			s.has(15, 5)
		}},
		{"top-ups held until after the month survive too", freeR5P5, func(s *story) {
			s.reserve(5, time.Minute)
			s.changeTier(user.TierTester)
			s.at(0)
			s.touch()
			s.has(10, 0)
			s.at(time.Minute)
			s.touch()
			s.has(15, 5)
		}},
		{"allowance held over a tier change lapses", r15p5, func(s *story) {
			s.reserve(10, -time.Minute)
			s.changeTier(user.TierCreator)
			s.has(25, 5)
			s.at(-time.Minute)
			s.touch()
			s.has(25, 5)
		}},
		{"hold ends, then the month, after a charge of the whole allowance", r15p5, func(s *story) {
			s.consume(10)
			s.reserve(5, -time.Minute)
			s.at(-time.Minute)
			s.touch()
			s.has(5, 5)
			s.at(0)
			s.touch()
			s.has(15, 5)
		}},
		{"month ends, then the hold, after a charge of the whole allowance", r15p5, func(s *story) {
			s.consume(10)
			s.reserve(5, time.Minute)
			s.at(0)
			s.touch()
			s.has(10, 0)
			s.at(time.Minute)
			s.touch()
			s.has(15, 5)
		}},
		{"top-ups spent are gone, also where there is a hold", r15p5, func(s *story) {
			s.consume(12)
			s.reserve(2, time.Minute)
			s.at(time.Minute)
			s.touch() // the hold, then the month: 3 of 5 top-ups are left
			s.has(13, 3)
		}},
		{"top-ups spent are gone, also where a hold is carried", r15p5, func(s *story) {
			s.consume(12)
			s.reserve(2, time.Minute)
			s.at(0)
			s.touch()
			s.has(11, 1)
			s.at(time.Minute)
			s.touch()
			s.has(13, 3)
		}},
		{"top-ups are in the hold that ends first", r15p5, func(s *story) {
			s.reserve(8, 2*time.Minute)
			s.reserve(4, time.Minute)
			s.at(0)
			s.touch()
			s.has(13, 3)
			s.at(time.Minute)
			s.touch()
			s.has(15, 5)
			s.at(2 * time.Minute)
			s.touch()
			s.has(15, 5)
		}},
		{"of holds that end together top-ups are in the one with the smaller id", r15p5, func(s *story) {
			s.reserve(7, time.Minute)
			s.reserve(7, time.Minute)
			s.at(0)
			s.touch()
			if first, second := s.reservations["hold-1"], s.reservations["hold-2"]; first.TopUp != 4 || second.TopUp != 0 {
				s.t.Errorf("top-ups in the holds: %d and %d, want 4 and 0", first.TopUp, second.TopUp)
			}
		}},
		{"a hold carried once keeps its top-ups over further terms", r15p5, func(s *story) {
			s.reserve(15, 23*time.Hour)
			s.changeTier(user.TierCreator)
			s.has(20, 0)
			s.consume(20)
			s.at(0)
			s.touch()
			s.has(20, 0)
			s.add(1)
			s.changeTier(user.TierTester)
			s.has(11, 1)
			s.at(23 * time.Hour)
			s.touch()
			s.has(16, 6)
		}},
		{"a consume that is short finds the tokens of a hold that ran out", r15p5, func(s *story) {
			s.reserve(10, -time.Minute)
			s.at(-time.Minute)
			s.consume(5)
			s.has(0, 0)
			s.consume(1)
			s.has(9, 5)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.play(tell(t, rules, c.row))
		})
	}
}

func TestAdoption(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	this, old := ptr(date("2026-11-03T08:00:00Z")), ptr(date("2026-08-20T00:00:00Z"))
	type entry struct {
		kind            user.EntryKind
		amount, r, used int64
	}
	for _, c := range []struct {
		name    string
		row     user.Account
		do      func(*story)
		r, u, p int64
		entries []entry
	}{
		{
			"of a free account with tokens takes them for top-ups, which a tier change keeps",
			user.Account{Tier: "free", TokensRemaining: 40, LastReset: this},
			func(s *story) { s.changeTier(user.TierTester) },
			1040, 0, 40,
			[]entry{{"opening", 40, 40, 0}, {"tier_change", 1000, 1040, 0}},
		},
		{
			"of a tester takes what is over the allowance for top-ups, which the reset keeps",
			user.Account{Tier: "tester", TokensRemaining: 1300, LastReset: old},
			(*story).touch,
			1300, 0, 300,
			[]entry{{"opening", 1300, 1300, 0}, {"monthly_reset", 0, 1300, 0}},
		},
		{
			"resets where the date of the last reset is NULL",
			user.Account{Tier: "tester", TokensRemaining: 250, TokensUsed: 750},
			(*story).touch,
			1000, 0, 0,
			[]entry{{"opening", 250, 250, 750}, {"monthly_reset", 750, 1000, 0}},
		},
		{
			"of an unknown tier takes everything for top-ups and grants nothing",
			user.Account{Tier: "gold", TokensRemaining: 70, TokensUsed: 5, LastReset: old},
			(*story).touch,
			70, 0, 70,
			[]entry{{"opening", 70, 70, 5}, {"monthly_reset", 0, 70, 0}},
		},
		{
			"of an undefined tier takes everything for top-ups",
			user.Account{Tier: "agency", TokensRemaining: 70, LastReset: this},
			func(s *story) { s.consume(30) },
			40, 30, 70,
			[]entry{{"opening", 70, 70, 0}, {"consume", -30, 40, 30}},
		},
		{
			"of an unlimited account takes everything for top-ups",
			user.Account{Tier: "admin", TokensRemaining: 999, LastReset: old},
			(*story).touch,
			999, 0, 999,
			[]entry{{"opening", 999, 999, 0}, {"monthly_reset", 0, 999, 0}},
		},
		{
			"of an unlimited account by a hold of nothing still has its opening entry",
			user.Account{Tier: "admin", TokensRemaining: 40, TokensUsed: 2, LastReset: this},
			func(s *story) { s.reserve(5, time.Hour) },
			40, 2, 40,
			[]entry{{"opening", 40, 40, 2}},
		},
		{
			"brings negative counters to 0, which need no opening entry",
			user.Account{Tier: "tester", TokensRemaining: -5, TokensUsed: -2},
			(*story).touch,
			1000, 0, 0,
			[]entry{{"monthly_reset", 1000, 1000, 0}},
		},
		{
			"keeps the balance where both counters together pass 32 bits",
			user.Account{Tier: "free", TokensRemaining: user.MaxTokens - 3, TokensUsed: 10, LastReset: this},
			func(s *story) { s.consume(1) },
			user.MaxTokens - 4, 4, user.MaxTokens - 3,
			[]entry{{"opening", user.MaxTokens - 3, user.MaxTokens - 3, 3}, {"consume", -1, user.MaxTokens - 4, 4}},
		},
		{
			"cuts the allowance of a full account",
			user.Account{Tier: "free", TokensRemaining: user.MaxTokens - 3, TokensUsed: 10, LastReset: this},
			func(s *story) { s.changeTier(user.TierTester) },
			user.MaxTokens, 0, user.MaxTokens - 3,
			[]entry{{"opening", user.MaxTokens - 3, user.MaxTokens - 3, 3}, {"tier_change", 3, user.MaxTokens, 0}},
		},
		{
			"of an empty account needs no opening entry",
			user.Account{Tier: "free", LastReset: this},
			func(s *story) { s.add(5) },
			5, 0, 5,
			[]entry{{"top_up", 5, 5, 0}},
		},
		{
			"of an account that only used tokens explains those",
			user.Account{Tier: "free", TokensUsed: 30, LastReset: this},
			func(s *story) { s.add(5) },
			5, 30, 5,
			[]entry{{"opening", 0, 0, 30}, {"top_up", 5, 5, 30}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := tell(t, rules, c.row)
			c.do(s)
			if a := s.account; a.TokensRemaining != c.r || a.TokensUsed != c.u || a.TopUps != c.p || !a.Adopted {
				t.Errorf("R %d U %d P %d, adopted %t; want R %d U %d P %d", a.TokensRemaining, a.TokensUsed, a.TopUps, a.Adopted, c.r, c.u, c.p)
			}
			var got []entry
			for _, e := range s.entries {
				got = append(got, entry{e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter})
			}
			if fmt.Sprint(got) != fmt.Sprint(c.entries) {
				t.Errorf("entries %v, want %v", got, c.entries)
			}
		})
	}

	t.Run("waits for a change", func(t *testing.T) {
		t.Parallel()
		s := tell(t, rules, user.Account{Tier: "free", TokensRemaining: 40, LastReset: this})
		if _, err := s.tryConsume(41); !errors.Is(err, user.ErrInsufficientTokens) || s.account.Adopted || len(s.entries) > 0 {
			t.Errorf("refused with %v, stored %+v and %d entries", err, s.account, len(s.entries))
		}
	})
	t.Run("comes with the touch of a refused command", func(t *testing.T) {
		t.Parallel()
		for _, change := range []func(*user.Account){
			func(a *user.Account) { a.Active = false },
			func(a *user.Account) { a.SubscriptionStatus = "canceled" },
		} {
			s := tell(t, rules, user.Account{Tier: "tester", TokensRemaining: 1300, LastReset: old})
			change(&s.account)
			if _, err := s.tryConsume(1); err == nil {
				t.Error("an account that may not spend was charged")
			}
			s.has(1300, 300)
			s.add(5)
			s.has(1305, 305)
		}
	})
}
