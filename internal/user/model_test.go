package user_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/usertest"
)

// TestRulesEqualExactBuckets plays random histories on the rules and on the bucket model of product.md §3. For longer
// runs: go test ./internal/user -run ExactBuckets -rapid.checks=1000000.
func TestRulesEqualExactBuckets(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sequence := usertest.Sequences().Draw(t, "sequence")
		if err := sequence.Run(t.Context(), &oneAccount{t: t}, "user-1"); err != nil {
			t.Fatal(err)
		}
	})
}

// oneAccount does with one account what [user.Store] promises of an update, and fails where a rule does not keep to
// what [user.Rules] promises of itself: that it changes no argument, gives the same answer again, also when it sees
// holds that it did not ask for or sees them in another order, and keeps nothing when it asks for them.
type oneAccount struct {
	user.Store // for the calls that no rule is behind

	t            rapid.TB
	account      user.Account
	entries      []user.Entry
	reservations map[string]user.Reservation
}

func (s *oneAccount) Insert(_ context.Context, row user.Account) error {
	s.account = row
	return nil
}

func (s *oneAccount) Create(_ context.Context, change user.Change) error {
	s.write(change)
	return nil
}

func (s *oneAccount) Account(context.Context, string) (user.Account, error) { return s.account, nil }

func (s *oneAccount) Entries(context.Context, string, user.EntryQuery) ([]user.Entry, error) {
	newestFirst := slices.Clone(s.entries)
	slices.Reverse(newestFirst)
	return newestFirst, nil
}

func (s *oneAccount) Reservations(context.Context, string) ([]user.Reservation, error) {
	return slices.Collect(maps.Values(s.reservations)), nil
}

func (s *oneAccount) Reservation(_ context.Context, _, id string) (user.Reservation, error) {
	r := s.reservations[id]
	for _, e := range s.entries {
		if e.ReservationID != nil && *e.ReservationID == id {
			r.LastEntry = &e
		}
	}
	return r, nil
}

func (s *oneAccount) Update(_ context.Context, ref user.Ref, rule func(user.State) (user.Change, error)) (user.Change, error) {
	s.t.Helper()
	blind := user.State{Account: s.account, Prior: s.prior(ref.IdempotencyKey), Charge: s.charge(ref.EntryID)}
	if r, known := s.reservations[ref.ReservationID]; known {
		blind.Reservation = &r
	}
	seeing := blind
	seeing.HoldsLoaded = true
	for _, r := range s.reservations {
		if r.Status == user.ReservationOpen {
			seeing.Holds = append(seeing.Holds, r)
		}
	}

	change, err := s.try(rule, seeing)
	rand.Shuffle(len(seeing.Holds), func(i, j int) { seeing.Holds[i], seeing.Holds[j] = seeing.Holds[j], seeing.Holds[i] })
	again, errAgain := s.try(rule, seeing)
	s.same("again", again, errAgain, change, err)

	if ref.ReservationID == "" {
		switch first, errFirst := s.try(rule, blind); {
		case errors.Is(errFirst, user.ErrHoldsNeeded):
			s.same("asking for the holds", first, nil, user.Change{}, nil)
		default:
			s.same("without holds", first, errFirst, change, err)
		}
	}

	var refusal *user.Error
	if err != nil && !errors.As(err, &refusal) {
		s.t.Fatalf("a rule failed with an error that is no refusal: %v", err)
	}
	if !change.Empty() {
		change = s.write(change)
	}
	if err != nil {
		return user.Change{}, err
	}
	return change, nil
}

// try calls the rule with a state that must not be changed by it.
func (s *oneAccount) try(rule func(user.State) (user.Change, error), state user.State) (user.Change, error) {
	s.t.Helper()
	given := copied(state)
	change, err := rule(given)
	if !reflect.DeepEqual(given, state) {
		s.t.Fatalf("the rule changed its argument from\n%+v to\n%+v", state, given)
	}
	return change, err
}

// copied shares nothing with s that a rule could reach and change.
func copied(s user.State) user.State {
	s.Holds = slices.Clone(s.Holds)
	for _, at := range []**time.Time{&s.Account.RenewalDate, &s.Account.LastReset, &s.Account.NextHoldExpiry} {
		if *at != nil {
			instant := **at
			*at = &instant
		}
	}
	if s.Prior != nil {
		prior := *s.Prior
		s.Prior = &prior
	}
	if s.Reservation != nil {
		reservation := *s.Reservation
		s.Reservation = &reservation
	}
	if s.Charge != nil {
		charge := *s.Charge
		s.Charge = &charge
	}
	return s
}

func (s *oneAccount) same(when string, got user.Change, gotErr error, want user.Change, wantErr error) {
	s.t.Helper()
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotErr, wantErr) {
		s.t.Fatalf("%s: the rule returned\n%+v, %v, want\n%+v, %v", when, got, gotErr, want, wantErr)
	}
}

func (s *oneAccount) prior(key string) *user.Entry {
	for _, e := range s.entries {
		if key != "" && e.IdempotencyKey != nil && *e.IdempotencyKey == key {
			return &e
		}
	}
	return nil
}

func (s *oneAccount) charge(id int64) *user.Charge {
	if id < 1 || id > int64(len(s.entries)) {
		return nil
	}
	c := user.Charge{Entry: s.entries[id-1], ThisTerm: true}
	for _, e := range s.entries {
		if e.RefundedEntryID != nil && *e.RefundedEntryID == id {
			c.Refunded += e.Amount
		}
		if e.ID > id && (e.Kind == user.KindMonthlyReset || e.Kind == user.KindTierChange) {
			c.ThisTerm = false
		}
	}
	if c.Entry.Kind == user.KindSettle {
		if r := s.reservations[*c.Entry.ReservationID]; r.Carried {
			c.FromCarried = min(r.Charged, r.Tokens)
		}
	}
	return &c
}

func (s *oneAccount) write(change user.Change) user.Change {
	s.account = change.Account
	for i := range change.Entries {
		change.Entries[i].ID = int64(len(s.entries) + 1)
		s.entries = append(s.entries, change.Entries[i])
	}
	if s.reservations == nil {
		s.reservations = map[string]user.Reservation{}
	}
	for _, r := range change.Reservations {
		s.reservations[r.ID] = r
	}
	return change
}
