package user_test

import (
	"context"
	"errors"
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
	s.at(-9 * time.Minute)
	s.do(user.UpdateProfile{Active: ptr(true)})
	s.reserve(4, time.Hour)
	for _, active := range []bool{true, false} {
		s.do(user.UpdateProfile{Active: &active})
		if r := deactivate(); !r.Replayed || s.account.OpenReservations != 1 || s.account.Active != active {
			t.Errorf("repeated while active is %v: %+v, %+v", active, r, s.account)
		}
	}
}

// failing is a store whose updates fail after so many that do not.
type failing struct {
	user.Store
	updates int
}

func (s *failing) Update(ctx context.Context, ref user.Ref, rule func(user.State) (user.Change, error)) (user.Change, error) {
	if s.updates--; s.updates < 0 {
		return user.Change{}, user.ErrOverloaded
	}
	return s.Store.Update(ctx, ref, rule)
}

func TestDeactivateAndErase_OutcomeOfWhatIsDoneInPart(t *testing.T) {
	t.Parallel()
	for updates, want := range []user.Outcome{user.OutcomeNone, user.OutcomeUnknown, user.OutcomeUnknown} {
		for name, run := range map[string]func(*user.Service) error{
			"deactivate": func(s *user.Service) error {
				_, err := s.Deactivate(t.Context(), "user-1", user.Deactivate{Meta: user.Meta{IdempotencyKey: "key-1"}})
				return err
			},
			"erase": func(s *user.Service) error { _, err := s.Erase(t.Context(), "user-1", "admin"); return err },
		} {
			s := tell(t, rulesOf(t, map[string]int64{"tester": 10}), user.Account{Tier: user.TierTester, TokensRemaining: 10})
			s.maxHolds = 2
			for range 6 {
				s.reserve(1, time.Hour)
			}
			service := s.service()
			service.Store = &failing{s, updates}
			if err := run(service); user.OutcomeOf(err) != want {
				t.Errorf("%s with %d updates: %v", name, updates, err)
			}
			if _, err := s.service().Deactivate(t.Context(), "user-1", user.Deactivate{Meta: user.Meta{IdempotencyKey: "key-1"}}); err != nil {
				t.Fatal(err)
			}
			s.has(10, 0)
		}
	}
}

func TestDeactivate_CounterOfReservationsThatIsOff(t *testing.T) {
	t.Parallel()
	s := tell(t, rulesOf(t, map[string]int64{"tester": 10}), user.Account{Tier: user.TierTester, TokensRemaining: 10})
	s.reserve(1, time.Hour)
	s.account.OpenReservations = 4
	r, err := s.service().Deactivate(t.Context(), "user-1", user.Deactivate{})
	if err != nil || r.Account.OpenReservations != 0 || s.account.OpenReservations != 0 {
		t.Errorf("%+v, %v", r.Account, err)
	}
}

func TestAdoption_OfOpenReservations(t *testing.T) {
	t.Parallel()
	s := tell(t, rulesOf(t, map[string]int64{"tester": 10}), user.Account{Tier: user.TierTester, TokensRemaining: 10})
	s.reserve(4, time.Hour)
	s.account.SideRow, s.account.Reserved, s.account.OpenReservations, s.account.NextHoldExpiry = user.NoSideRow, 0, 0, nil
	s.consume(1)
	s.do(user.Settle{ReservationID: "hold-1", TokensUsed: 3})
	s.has(6, 0)
	if s.account.Reserved != 0 || s.account.OpenReservations != 0 {
		t.Errorf("%+v", s.account)
	}
}

func TestReconcile_AccountThatIsErased(t *testing.T) {
	t.Parallel()
	for row, want := range map[user.SideRow]error{user.MovingSideRow: user.ErrBeingErased, user.ErasedSideRow: user.ErrUserNotFound} {
		s := tell(t, rulesOf(t, nil), user.Account{})
		s.account.SideRow = row
		if changed, err := s.service().Reconcile(t.Context(), "user-1", "operator"); changed || !errors.Is(err, want) {
			t.Errorf("%v, %v", changed, err)
		}
	}
}

func TestPatch_KeepsAReasonAlsoWhereNothingChanges(t *testing.T) {
	t.Parallel()
	s := tell(t, rulesOf(t, nil), user.Account{})
	reason := user.Meta{Metadata: map[string]string{"reason": "fraud"}}
	s.do(user.UpdateProfile{Active: ptr(false)})
	before := len(s.entries)
	s.do(user.UpdateProfile{Active: ptr(false), Meta: reason})
	s.do(user.UpdateProfile{Active: ptr(false)})
	if len(s.entries) != before+1 || s.entries[before].Metadata["reason"] != "fraud" {
		t.Errorf("%+v", s.entries)
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
