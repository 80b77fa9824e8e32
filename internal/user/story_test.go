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

const november = 12*2026 + 11

// story plays a few commands on one account; each of its methods is one command.
type story struct {
	oneAccount
	rules user.Rules
	holds int
}

// tell starts a story ten minutes before the month's end.
func tell(t *testing.T, rules user.Rules, row user.Account) *story {
	t.Helper()
	s := &story{oneAccount: oneAccount{t: t, now: monthsEnd.Add(-10 * time.Minute), maxHolds: user.MaxHoldsPerUpdate, known: true}, rules: rules}
	row.ID, row.SubscriptionStatus, row.Active = "user-1", user.StatusActive, true
	change := user.Change{Account: row}
	if row.SideRow == user.CurrentSideRow {
		change.Entries = []user.Entry{{
			Kind: user.KindOpening, Amount: row.TokensRemaining, BalanceAfter: row.TokensRemaining, UsedAfter: row.TokensUsed,
			TopUpsAmount: &row.TopUps, Period: &row.GrantedPeriod, CreatedAt: s.now,
		}}
	}
	s.write(change)
	t.Cleanup(func() {
		all, err := s.Reservations(context.Background(), "", user.ReservationQuery{})
		if err == nil {
			err = usertest.Check(s.account, s.entries, all)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return s
}

// at lets time pass to an offset from the month's end.
func (s *story) at(offset time.Duration) { s.now = monthsEnd.Add(offset) }

func (s *story) service() *user.Service {
	return &user.Service{Store: s, Rules: s.rules, Now: func() time.Time { return s.now }}
}

func (s *story) attempt(c user.Command) error {
	_, err := s.service().Do(context.Background(), "user-1", c)
	return err
}

func (s *story) do(c user.Command) {
	s.t.Helper()
	if err := s.attempt(c); err != nil {
		s.t.Fatal(err)
	}
}

// refuses plays a command that must be refused.
func (s *story) refuses(c user.Command, want error) {
	s.t.Helper()
	if err := s.attempt(c); !errors.Is(err, want) {
		s.t.Errorf("%T: %v, want %v", c, err, want)
	}
}

func (s *story) touch()               { s.t.Helper(); s.do(user.Touch{}) }
func (s *story) consume(tokens int64) { s.t.Helper(); s.do(user.Consume{Tokens: tokens}) }
func (s *story) add(tokens int64)     { s.t.Helper(); s.do(user.AddTokens{Tokens: tokens}) }

func (s *story) changeTier(tier user.Tier) { s.t.Helper(); s.do(user.ChangeTier{Tier: tier}) }

// reserve makes a hold that runs out at an offset from the month's end. Holds are named hold-1, hold-2, ….
func (s *story) reserve(tokens int64, until time.Duration) {
	s.t.Helper()
	s.holds++
	s.do(user.Reserve{ReservationID: fmt.Sprintf("hold-%d", s.holds), Tokens: tokens, TTL: monthsEnd.Add(until).Sub(s.now)})
}

func (s *story) release(hold string) { s.t.Helper(); s.do(user.Release{ReservationID: hold}) }

func (s *story) settle(hold string, tokens int64) {
	s.t.Helper()
	s.do(user.Settle{ReservationID: hold, TokensUsed: tokens})
}

func (s *story) extend(hold string, ttl time.Duration) {
	s.t.Helper()
	s.do(user.Extend{ReservationID: hold, TTL: ttl})
}

// refund gives back what is left of the charge of the newest entry that charged something.
func (s *story) refund() {
	s.t.Helper()
	s.do(user.Refund{EntryID: s.lastCharge()})
}

func (s *story) lastCharge() (id int64) {
	for _, e := range s.entries {
		if e.TokensCharged > 0 {
			id = e.ID
		}
	}
	return id
}

func (s *story) last() user.Entry { return s.entries[len(s.entries)-1] }

// has checks the balance, and what of it are top-ups.
func (s *story) has(balance, topUps int64) {
	s.t.Helper()
	if a := s.account; a.TokensRemaining != balance || a.TopUps != topUps {
		s.t.Errorf("R %d T %d, want R %d T %d", a.TokensRemaining, a.TopUps, balance, topUps)
	}
}

// counts checks the other counters: used, top-ups used, allowance, its excess, carried top-ups.
func (s *story) counts(used, topUpsUsed, allowance, excess, carried int64) {
	s.t.Helper()
	a := s.account
	got := [...]int64{a.TokensUsed, a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps}
	if want := [...]int64{used, topUpsUsed, allowance, excess, carried}; got != want {
		s.t.Errorf("U, W, G, E, C are %d, want %d", got, want)
	}
}

// TestWorkedCases_OfTheRules has those of the rules' README and more of their kind.
func TestWorkedCases_OfTheRules(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, map[string]int64{"tester": 10, "creator": 20})
	account := func(tier user.Tier, balance, topUps, used, allowance int64) user.Account {
		return user.Account{
			Tier: tier, TokensRemaining: balance, TopUps: topUps, TokensUsed: used, Allowance: allowance,
			LastReset: ptr(date("2026-11-03T08:00:00Z")), GrantedPeriod: november, SideRow: user.CurrentSideRow,
		}
	}
	r15t5 := account(user.TierTester, 15, 5, 0, 10)
	r10 := account(user.TierTester, 10, 0, 0, 10)
	r5u5 := account(user.TierTester, 5, 0, 5, 10)
	freeR5T5 := account(user.TierFree, 5, 5, 0, 0)

	for _, c := range []struct {
		name string
		row  user.Account
		play func(*story)
	}{
		{"R15 T5, reserve 12, consume 3, release", r15t5, func(s *story) {
			s.reserve(12, time.Hour)
			s.consume(3)
			s.at(-time.Microsecond)
			s.release("hold-1")
			s.has(12, 5)
		}},
		{"R15 T5, reserve 12, consume 3, release after the month's end", r15t5, func(s *story) {
			s.reserve(12, time.Hour)
			s.consume(3)
			s.at(0)
			s.release("hold-1")
			s.has(15, 5)
		}},
		{"free R5 T5, reserve 5, to tester, release", freeR5T5, func(s *story) {
			s.reserve(5, time.Hour)
			s.changeTier(user.TierTester)
			s.has(10, 0)
			s.counts(0, 5, 10, 0, 0)
			s.release("hold-1")
			s.has(15, 5)
		}},
		{"R10, consume 6, to free, to tester", r10, func(s *story) {
			s.consume(6)
			s.changeTier(user.TierFree)
			s.has(0, 0)
			s.counts(6, 0, 0, 6, 0)
			s.changeTier(user.TierTester)
			s.has(4, 0)
			s.counts(6, 0, 10, 0, 0)
		}},
		{"R10, consume 6, to creator", r10, func(s *story) {
			s.consume(6)
			s.changeTier(user.TierCreator)
			s.has(14, 0)
			s.counts(6, 0, 20, 0, 0)
		}},
		{"R10, consume 6, to free, refund 6, and again", r10, func(s *story) {
			s.consume(6)
			charge := s.last().ID
			s.changeTier(user.TierFree)
			s.do(user.Refund{EntryID: charge, Tokens: 6})
			s.has(0, 0)
			s.counts(0, 0, 0, 0, 0)
			if e := s.last(); e.TokensRefunded != 6 || e.Amount != 0 {
				s.t.Errorf("refunded %d, amount %d", e.TokensRefunded, e.Amount)
			}
			s.refuses(user.Refund{EntryID: charge}, user.ErrRefundExceedsCharge)
		}},
		{"R10, reserve 4, to free, release, to tester", r10, func(s *story) {
			s.reserve(4, time.Hour)
			s.changeTier(user.TierFree)
			s.has(0, 0)
			s.counts(0, 0, 0, 4, 0)
			s.release("hold-1")
			s.has(0, 0)
			s.counts(0, 0, 0, 0, 0)
			s.changeTier(user.TierTester)
			s.has(10, 0)
		}},
		{"R5 U5, reserve 4, settle 100", r5u5, func(s *story) {
			s.reserve(4, time.Hour)
			s.settle("hold-1", 100)
			s.has(0, 0)
			s.counts(10, 0, 10, 0, 0)
			if h := s.reservations["hold-1"]; h.Charged != 5 || h.Shortfall != 95 || h.Returned != 0 {
				s.t.Errorf("%+v", h)
			}
		}},
		{"R15 T5, reserve 12, month's end, release", r15t5, func(s *story) {
			s.reserve(12, time.Hour)
			s.counts(0, 2, 10, 0, 0)
			s.at(0)
			s.touch()
			s.has(13, 3)
			s.counts(0, 0, 10, 0, 2)
			s.release("hold-1")
			s.has(15, 5)
		}},
		{"R15 T5, reserve 12, month's end, settle 11", r15t5, func(s *story) {
			s.reserve(12, time.Hour)
			s.at(0)
			s.settle("hold-1", 11)
			s.has(14, 4)
			s.counts(11, 0, 10, 0, 0)
		}},
		{"R10, reserve 10 for a second, month's end, late settle 10, refund of it", r10, func(s *story) {
			s.do(user.Reserve{ReservationID: "hold-1", Tokens: 10, TTL: time.Second})
			s.at(0)
			s.touch()
			s.has(10, 0)
			s.settle("hold-1", 10)
			s.has(0, 0)
			s.counts(10, 0, 10, 0, 0)
			if h := s.reservations["hold-1"]; !h.Late || h.Charged != 10 || h.Returned != 10 || h.Status != user.ReservationSettled {
				s.t.Errorf("%+v", h)
			}
			s.refund()
			s.has(10, 0)
			s.counts(0, 0, 10, 0, 0)
		}},
		{"there and back five times in a month spends one allowance", freeR5T5, func(s *story) {
			for range 5 {
				s.changeTier(user.TierCreator)
				if n := s.account.TokensRemaining - s.account.TopUps; n > 0 {
					s.consume(n)
				}
				s.changeTier(user.TierFree)
			}
			s.has(5, 5)
			s.counts(20, 0, 0, 20, 0)
		}},
		{"consume, free, refund three times make no top-ups", r10, func(s *story) {
			for range 3 {
				s.changeTier(user.TierTester)
				s.consume(10)
				s.changeTier(user.TierFree)
				s.refund()
				s.has(0, 0)
			}
			s.at(0)
			s.touch()
			s.has(0, 0)
		}},
		{"a charge refunded in a later period comes back as top-ups", r15t5, func(s *story) {
			s.consume(15)
			s.at(0)
			s.refund()
			s.has(25, 15)
		}},
		{"of a carried hold what it cost beyond it is refunded first, the rest as top-ups", r15t5, func(s *story) {
			s.reserve(1, time.Hour)
			s.at(0)
			s.has(14, 5)
			s.settle("hold-1", 16)
			s.has(0, 0)
			charge := s.lastCharge()
			s.do(user.Refund{EntryID: charge, Tokens: 15})
			s.has(15, 5)
			s.do(user.Refund{EntryID: charge})
			s.has(16, 6)
		}},
		{"what is above the tokens used is refunded as of an earlier period", r10, func(s *story) {
			s.consume(6)
			s.account.TokensUsed = 2 // by hand
			s.entries[len(s.entries)-1].UsedAfter = 2
			s.entries[len(s.entries)-1].TokensCharged = 6
			s.refund()
			s.has(10, 4)
			s.counts(0, 0, 10, 0, 0)
			s.entries[len(s.entries)-2].UsedAfter = 6 // for the books
		}},
		{"a hold ends before the month, and the allowance in it comes back", r15t5, func(s *story) {
			s.reserve(12, -time.Minute)
			s.consume(3)
			s.at(-time.Microsecond)
			s.touch()
			s.has(12, 5)
		}},
		{"a hold ends after the month, and only the top-ups in it come back", r15t5, func(s *story) {
			s.reserve(12, time.Microsecond)
			s.consume(3)
			s.at(0)
			s.touch()
			s.has(10, 0)
			s.at(time.Microsecond)
			s.touch()
			s.has(15, 5)
		}},
		{"a hold of the month before is noticed after it", r15t5, func(s *story) {
			s.reserve(12, 0)
			s.consume(3)
			s.at(0)
			s.touch()
			s.has(15, 5)
		}},
		{"two carried holds have the top-ups in common", r15t5, func(s *story) {
			s.reserve(8, 2*time.Minute)
			s.reserve(6, time.Minute)
			s.at(0)
			s.touch()
			s.has(11, 1)
			s.counts(0, 0, 10, 0, 4)
			s.settle("hold-1", 8)
			s.has(11, 1)
			s.counts(8, 0, 10, 0, 4)
			s.at(time.Minute)
			s.touch()
			s.has(15, 5)
			s.counts(8, 0, 10, 0, 0)
		}},
		{"a hold is extended to 24 hours after it was made", r15t5, func(s *story) {
			s.reserve(12, time.Minute)
			made := s.now
			s.at(0)
			s.extend("hold-1", 24*time.Hour)
			if h := s.reservations["hold-1"]; !h.ExpiresAt.Equal(made.Add(24 * time.Hour)) {
				s.t.Errorf("expires at %s", h.ExpiresAt)
			}
			s.extend("hold-1", time.Second)
			s.at(time.Second)
			s.refuses(user.Extend{ReservationID: "hold-1", TTL: time.Hour}, user.ErrReservationClosed)
			s.has(15, 5)
		}},
		{"a hold that is due is not extended though it is not returned yet", r10, func(s *story) {
			s.reserve(1, -2*time.Minute)
			s.reserve(2, -time.Minute)
			s.at(0)
			s.maxHolds = 1
			s.refuses(user.Extend{ReservationID: "hold-2", TTL: time.Hour}, user.ErrReservationClosed)
			s.settle("hold-2", 1)
			s.has(9, 0)
		}},
		{"a hold is extended past another, which is still known to end first", r10, func(s *story) {
			s.reserve(1, -9*time.Minute)
			s.reserve(1, -8*time.Minute)
			s.reserve(1, -7*time.Minute)
			s.at(-9 * time.Minute)
			s.extend("hold-2", time.Hour)
			s.at(-7 * time.Minute)
			s.touch()
			s.has(9, 0)
		}},
		{"a hold that is settled late settles for what there is", r10, func(s *story) {
			s.reserve(4, -time.Minute)
			s.at(-time.Minute)
			s.consume(8)
			s.settle("hold-1", 4)
			s.has(0, 0)
			s.counts(10, 0, 10, 0, 0)
			if h := s.reservations["hold-1"]; h.Charged != 2 || h.Shortfall != 2 || h.Returned != 4 {
				s.t.Errorf("%+v", h)
			}
		}},
		{"a hold made while unlimited settles for nothing, also on a tier that counts", r10, func(s *story) {
			s.changeTier(user.TierAdmin)
			s.reserve(4, time.Hour)
			s.reserve(4, -time.Minute)
			s.changeTier(user.TierTester)
			s.settle("hold-1", 4)
			s.at(-time.Minute)
			s.settle("hold-2", 4)
			s.has(10, 0)
			if h := s.reservations["hold-2"]; h.Charged != 0 || h.Shortfall != 0 || *h.TokensUsed != 4 || !h.Late {
				s.t.Errorf("%+v", h)
			}
		}},
		{"a hold is settled for seven days after it has expired", r10, func(s *story) {
			s.reserve(4, 0)
			s.reserve(4, 0)
			s.at(7 * 24 * time.Hour)
			s.settle("hold-1", 3)
			s.has(7, 0)
			s.at(7*24*time.Hour + time.Microsecond)
			s.refuses(user.Settle{ReservationID: "hold-2", TokensUsed: 3}, user.ErrReservationClosed)
		}},
		{"an expired hold is released for good", r10, func(s *story) {
			s.reserve(4, -time.Minute)
			s.at(-time.Minute)
			s.release("hold-1")
			s.has(10, 0)
			s.refuses(user.Settle{ReservationID: "hold-1", TokensUsed: 4}, user.ErrReservationClosed)
		}},
		{"the allowance of a full account is cut to what fits", account(user.TierFree, user.MaxTokens-3, user.MaxTokens-3, 1, 0), func(s *story) {
			s.changeTier(user.TierTester)
			s.has(user.MaxTokens-1, user.MaxTokens-3)
			s.counts(1, 0, 2, 0, 0)
			s.at(0)
			s.touch()
			s.has(user.MaxTokens, user.MaxTokens-3)
			s.counts(0, 0, 3, 0, 0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.play(tell(t, rules, c.row))
		})
	}
}

func TestAdoption_OfARowOfTheEarlierService(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, nil)
	this, old := ptr(date("2026-11-03T08:00:00Z")), ptr(date("2026-08-20T00:00:00Z"))
	type entry struct {
		kind                    user.EntryKind
		amount, r, used, topUps int64
	}
	for _, c := range []struct {
		name    string
		row     user.Account
		do      func(*story)
		r, u, t int64
		entries []entry
	}{
		{
			"of a free account takes its tokens for top-ups, which a tier change keeps",
			user.Account{Tier: "free", TokensRemaining: 40, LastReset: this},
			func(s *story) { s.changeTier(user.TierTester) },
			1040, 0, 40,
			[]entry{{"opening", 40, 40, 0, 40}, {"tier_change", 1000, 1040, 0, 0}},
		},
		{
			"of a tester takes what is over the allowance for top-ups, which the reset keeps",
			user.Account{Tier: "tester", TokensRemaining: 1300, LastReset: old},
			(*story).touch,
			1300, 0, 300,
			[]entry{{"opening", 1300, 1300, 0, 300}, {"monthly_reset", 0, 1300, 0, 0}},
		},
		{
			"resets where the date of the last reset is NULL",
			user.Account{Tier: "tester", TokensRemaining: 250, TokensUsed: 750},
			(*story).touch,
			1000, 0, 0,
			[]entry{{"opening", 250, 250, 750, 0}, {"monthly_reset", 750, 1000, 0, 0}},
		},
		{
			"of an unknown tier takes everything for top-ups and grants nothing",
			user.Account{Tier: "gold", TokensRemaining: 70, TokensUsed: 5, LastReset: old},
			(*story).touch,
			70, 0, 70,
			[]entry{{"opening", 70, 70, 5, 70}, {"monthly_reset", 0, 70, 0, 0}},
		},
		{
			"of an undefined tier takes everything for top-ups",
			user.Account{Tier: "agency", TokensRemaining: 70, LastReset: this},
			func(s *story) { s.consume(30) },
			40, 30, 40,
			[]entry{{"opening", 70, 70, 0, 70}, {"consume", -30, 40, 30, -30}},
		},
		{
			"of an unlimited account takes everything for top-ups",
			user.Account{Tier: "admin", TokensRemaining: 999, LastReset: old},
			(*story).touch,
			999, 0, 999,
			[]entry{{"opening", 999, 999, 0, 999}, {"monthly_reset", 0, 999, 0, 0}},
		},
		{
			"of an unlimited account by a hold of nothing still has its opening entry",
			user.Account{Tier: "admin", TokensRemaining: 40, TokensUsed: 2, LastReset: this},
			func(s *story) { s.reserve(5, time.Hour) },
			40, 2, 40,
			[]entry{{"opening", 40, 40, 2, 40}},
		},
		{
			"brings negative counters to 0, which need no opening entry",
			user.Account{Tier: "tester", TokensRemaining: -5, TokensUsed: -2},
			(*story).touch,
			1000, 0, 0,
			[]entry{{"monthly_reset", 1000, 1000, 0, 0}},
		},
		{
			"keeps the balance where both counters together pass 32 bits",
			user.Account{Tier: "free", TokensRemaining: user.MaxTokens - 3, TokensUsed: 10, LastReset: this},
			func(s *story) { s.consume(1) },
			user.MaxTokens - 4, 4, user.MaxTokens - 4,
			[]entry{{"opening", user.MaxTokens - 3, user.MaxTokens - 3, 3, user.MaxTokens - 3}, {"consume", -1, user.MaxTokens - 4, 4, -1}},
		},
		{
			"of a full account leaves no room for another tier's allowance",
			user.Account{Tier: "free", TokensRemaining: user.MaxTokens - 3, TokensUsed: 10, LastReset: this},
			func(s *story) { s.changeTier(user.TierTester) },
			user.MaxTokens - 3, 3, user.MaxTokens - 3,
			[]entry{{"opening", user.MaxTokens - 3, user.MaxTokens - 3, 3, user.MaxTokens - 3}, {"tier_change", 0, user.MaxTokens - 3, 3, 0}},
		},
		{
			"of an empty account needs no opening entry",
			user.Account{Tier: "free", LastReset: this},
			func(s *story) { s.add(5) },
			5, 0, 5,
			[]entry{{"top_up", 5, 5, 0, 5}},
		},
		{
			"of an account that only used tokens explains those",
			user.Account{Tier: "free", TokensUsed: 30, LastReset: this},
			func(s *story) { s.add(5) },
			5, 30, 5,
			[]entry{{"opening", 0, 0, 30, 0}, {"top_up", 5, 5, 30, 5}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := tell(t, rules, c.row)
			c.do(s)
			if a := s.account; a.TokensRemaining != c.r || a.TokensUsed != c.u || a.TopUps != c.t || a.SideRow != user.CurrentSideRow {
				t.Errorf("%+v; want R %d U %d T %d", a, c.r, c.u, c.t)
			}
			var got []entry
			for _, e := range s.entries {
				got = append(got, entry{e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter, *e.TopUpsAmount})
			}
			if fmt.Sprint(got) != fmt.Sprint(c.entries) {
				t.Errorf("entries %v, want %v", got, c.entries)
			}
		})
	}

	t.Run("waits for a change", func(t *testing.T) {
		t.Parallel()
		s := tell(t, rules, user.Account{Tier: "free", TokensRemaining: 40, LastReset: this})
		s.refuses(user.Consume{Tokens: 41}, user.ErrInsufficientTokens)
		if s.account.SideRow != user.NoSideRow || len(s.entries) > 0 {
			t.Errorf("stored %+v and %d entries", s.account, len(s.entries))
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
			if err := s.attempt(user.Consume{Tokens: 1}); err == nil {
				t.Error("an account that may not spend was charged")
			}
			s.has(1300, 300)
			s.add(5)
			s.has(1305, 305)
		}
	})
}
