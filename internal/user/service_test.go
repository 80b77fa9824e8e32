package user_test

import (
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

func TestSweep_EndsAllDueHoldsInPieces(t *testing.T) {
	t.Parallel()
	s := tell(t, rulesOf(t, map[string]int64{"tester": 10}), user.Account{Tier: user.TierTester, TokensRemaining: 10})
	s.maxHolds = 2
	for range 5 {
		s.reserve(1, 0)
	}
	s.reserve(1, time.Minute)
	if ended, err := s.service().Sweep(t.Context()); ended != 0 || err != nil {
		t.Errorf("ended %d, %v", ended, err)
	}
	s.at(0)
	if ended, err := s.service().Sweep(t.Context()); ended != 5 || err != nil {
		t.Errorf("ended %d, %v", ended, err)
	}
	if s.account.OpenReservations != 1 || !s.account.NextHoldExpiry.Equal(monthsEnd.Add(time.Minute)) {
		t.Errorf("%+v", s.account)
	}
}

func TestDeactivate_EndsAllHoldsOnce(t *testing.T) {
	t.Parallel()
	s := tell(t, rulesOf(t, map[string]int64{"tester": 10}), user.Account{Tier: user.TierTester, TokensRemaining: 10})
	s.maxHolds = 2
	for range 5 {
		s.reserve(1, time.Hour)
	}
	c := user.Deactivate{Meta: user.Meta{IdempotencyKey: "key-1"}}
	deactivate := func() user.Receipt {
		r, err := s.service().Deactivate(t.Context(), "user-1", c)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := deactivate(); r.Replayed || r.Entry == nil || r.Entry.Kind != user.KindProfileChange || s.account.OpenReservations != 0 || s.account.Active {
		t.Errorf("%+v, %+v", r, s.account)
	}
	s.has(10, 0)
	s.do(user.UpdateProfile{Active: ptr(true)})
	s.reserve(4, time.Hour)
	if r := deactivate(); !r.Replayed || s.account.OpenReservations != 1 || !s.account.Active {
		t.Errorf("repeated: %+v, %+v", r, s.account)
	}
}

func TestRelease_RepeatedAnswersAsTheFirstTime(t *testing.T) {
	t.Parallel()
	s := tell(t, rulesOf(t, map[string]int64{"tester": 10}), user.Account{Tier: user.TierTester, TokensRemaining: 10})
	s.reserve(4, -time.Minute)
	s.at(-time.Minute)
	s.consume(3)
	for _, replayed := range []bool{false, true} {
		r, err := s.service().Release(t.Context(), "user-1", user.Release{ReservationID: "hold-1"})
		if err != nil || r.Replayed != replayed || r.Entry != nil || r.Account.TokensRemaining != 7 || r.Reservation.Status != user.ReservationReleased {
			t.Errorf("%+v, %v", r, err)
		}
	}
}
