package user_test

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/usertest"
)

// TestRules_EqualExactBuckets plays random histories on the rules and on the bucket model. make test-rules plays a
// million commands.
func TestRules_EqualExactBuckets(t *testing.T) {
	t.Parallel()
	playSequences(t, usertest.Sequences, map[string]int{
		"with all due holds at once": user.MaxHoldsPerUpdate,
		"with a hold at a time":      1,
		"with three holds at a time": 3,
	})
}

// TestConversion_EqualsExactBuckets plays histories that begin with an account of the version before granted periods.
func TestConversion_EqualsExactBuckets(t *testing.T) {
	t.Parallel()
	playSequences(t, usertest.Conversions, map[string]int{
		"with all due holds at once": user.MaxHoldsPerUpdate,
		"with two holds at a time":   2,
	})
}

// playSequences plays sequences for each number of holds that an update returns. Afterwards [user.Rules.Verify] must have
// nothing to say.
func playSequences(t *testing.T, sequences func(maxHolds int) *rapid.Generator[usertest.Sequence], modes map[string]int) {
	t.Helper()
	for name, maxHolds := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			commands := 0
			rapid.Check(t, func(t *rapid.T) {
				sequence := sequences(maxHolds).Draw(t, "sequence")
				commands += len(sequence.Steps)
				s := &oneAccount{t: t, maxHolds: maxHolds}
				if err := sequence.Run(t.Context(), s, "user-1"); err != nil {
					t.Fatal(err)
				}
				rules := user.Rules{ResetZone: time.UTC}
				_, err := rules.Verify(t.Context(), s, time.Time{}, date("2030-01-01T00:00:00Z"), func(d user.Discrepancy) { t.Error(d.Problem) })
				if err != nil {
					t.Fatal(err)
				}
			})
			t.Logf("%d commands", commands)
		})
	}
}

// oneAccount does with one account what [user.Store] promises of an update, and fails where a rule does not keep to what
// [user.Rules] promises of itself: that it changes no argument, gives the same answer again, also when it sees holds
// that it did not ask for, and changes nothing where it says that there is nothing to write.
type oneAccount struct {
	user.Store // for the calls that no rule is behind

	t rapid.TB
	// now is the clock outside of sequences.
	now time.Time
	// maxHolds is how many holds a state has at most.
	maxHolds     int
	known        bool
	account      user.Account
	entries      []user.Entry
	reservations map[string]user.Reservation
	earlier      map[string]usertest.EarlierReservation
}

func (s *oneAccount) PutRow(_ context.Context, row user.Account) error {
	a := s.account
	if !s.known {
		a = user.Account{}
	}
	a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate = row.ID, row.Username, row.Email, row.Tier, row.SubscriptionStatus, row.RenewalDate
	a.TokensRemaining, a.TokensUsed, a.LastReset = row.TokensRemaining, row.TokensUsed, row.LastReset
	a.CreatedAt, a.UpdatedAt, a.Active = row.CreatedAt, row.UpdatedAt, row.Active
	s.account, s.known = a, true
	return nil
}

func (s *oneAccount) DeleteRow(context.Context, string) error {
	s.account, s.known, s.reservations, s.earlier = user.Account{}, false, nil, nil
	return nil
}

func (s *oneAccount) PutEarlier(_ context.Context, e usertest.Earlier) ([]int64, error) {
	s.account, s.known, s.entries = e.Account, true, slices.Clone(e.Entries)
	s.reservations, s.earlier = map[string]user.Reservation{}, map[string]usertest.EarlierReservation{}
	ids := make([]int64, len(e.Entries))
	for i := range s.entries {
		ids[i] = int64(i + 1)
		s.entries[i].ID = ids[i]
	}
	for _, r := range e.Reservations {
		s.reservations[r.ID], s.earlier[r.ID] = r.Reservation, r
	}
	return ids, nil
}

func (s *oneAccount) Create(ctx context.Context, _ string, open func(user.State) (user.Change, error)) (user.Change, error) {
	if s.known {
		return user.Change{}, user.ErrUserExists
	}
	change, err := open(user.State{Now: s.clock(ctx), Totals: s.totals()})
	if err != nil {
		return user.Change{}, err
	}
	s.known = true
	return s.write(change), nil
}

func (s *oneAccount) Account(context.Context, string) (user.Account, error) {
	if !s.known {
		return user.Account{}, user.ErrUserNotFound
	}
	return s.account, nil
}

func (s *oneAccount) Entries(context.Context, string, user.EntryQuery) ([]user.Entry, int64, error) {
	newestFirst := slices.Clone(s.entries)
	slices.Reverse(newestFirst)
	return newestFirst, 0, nil
}

func (s *oneAccount) Reservations(context.Context, string, user.ReservationQuery) ([]user.Reservation, error) {
	return s.selectReservations(func(user.Reservation) bool { return true }), nil
}

func (s *oneAccount) Reservation(_ context.Context, _, id string) (user.Reservation, error) {
	r, known := s.reservations[id]
	if !known {
		return r, user.ErrReservationNotFound
	}
	for _, e := range s.entries {
		if e.ReservationID != nil && *e.ReservationID == id {
			r.LastEntry = &e
		}
	}
	return r, nil
}

// Chain implements [user.LedgerReader], as the next two do.
func (s *oneAccount) Chain(_ context.Context, _ string, after int64, _ time.Time, limit int) (chain []user.ChainEntry, err error) {
	for i, e := range s.entries {
		link := user.ChainEntry{AccountID: "user-1", Entry: e}
		if i > 0 {
			link.BalanceBefore, link.UsedBefore = s.entries[i-1].BalanceAfter, s.entries[i-1].UsedAfter
		}
		if e.RefundedEntryID != nil {
			link.ChargePeriod = s.entries[*e.RefundedEntryID-1].Period
		}
		if e.ID > after && len(chain) < limit {
			chain = append(chain, link)
		}
	}
	return chain, nil
}

func (s *oneAccount) TopUps(_ context.Context, ids []string, _ []int64) ([]user.TopUpTotals, error) {
	if len(ids) == 0 || s.account.SideRow != user.CurrentSideRow {
		return nil, nil
	}
	return []user.TopUpTotals{{AccountID: "user-1", TopUps: s.account.TopUps, Later: new(int64)}}, nil
}

func (s *oneAccount) AccountTotals(_ context.Context, after string, _ int) ([]user.AccountTotals, error) {
	if after != "" {
		return nil, nil
	}
	return []user.AccountTotals{{Account: s.account, Totals: *s.totals()}}, nil
}

// UsageDifferences finds none: nothing is added up here.
func (s *oneAccount) UsageDifferences(context.Context, []string) ([]user.UsageDifference, error) {
	return nil, nil
}

func (s *oneAccount) AccountsWithDueHold(_ context.Context, now time.Time, after string, _ int) (ids []string, err error) {
	if open := s.open(); after == "" && len(open) > 0 && !open[0].ExpiresAt.After(now) {
		ids = append(ids, s.account.ID)
	}
	return ids, nil
}

func (s *oneAccount) clock(ctx context.Context) time.Time {
	if at := usertest.Instant(ctx); !at.IsZero() {
		return at.UTC().Truncate(time.Microsecond)
	}
	return s.now
}

// selectReservations has the earliest expiry first.
func (s *oneAccount) selectReservations(which func(user.Reservation) bool) (selected []user.Reservation) {
	for _, r := range s.reservations {
		if which(r) {
			selected = append(selected, r)
		}
	}
	slices.SortFunc(selected, func(a, b user.Reservation) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
	return selected
}

func (s *oneAccount) Update(ctx context.Context, ref user.Ref, rule func(user.State) (user.Change, error)) (user.Change, error) {
	s.t.Helper()
	if !s.known {
		return user.Change{}, user.ErrUserNotFound
	}
	state, open := s.state(ctx, ref), s.open()
	change, err := s.try(rule, state)
	again, errAgain := s.try(rule, state)
	s.same("again", again, errAgain, change, err)
	if len(open) <= s.maxHolds {
		seeing := state
		seeing.Holds, seeing.MoreHolds, seeing.NextExpiry = open, false, nil
		if !ref.OpenHolds {
			all, errAll := s.try(rule, seeing)
			s.same("with all holds", all, errAll, change, err)
		}
	}

	var refusal *user.Error
	if err != nil && !errors.As(err, &refusal) {
		s.t.Fatalf("a rule failed with an error that is no refusal: %v", err)
	}
	switch {
	case !change.Empty():
		change = s.write(change)
	case s.account.SideRow == user.CurrentSideRow && !reflect.DeepEqual(change.Account, s.account) && !reflect.DeepEqual(change.Account, user.Account{}):
		s.t.Fatalf("nothing is to be written, though the account is\n%+v, and was\n%+v", change.Account, s.account)
	}
	if err != nil {
		return user.Change{}, err
	}
	return change, nil
}

func (s *oneAccount) open() []user.Reservation {
	return s.selectReservations(func(r user.Reservation) bool { return r.Status == user.ReservationOpen })
}

// state has what the ref names, and the due holds only where the side row says that there are any.
func (s *oneAccount) state(ctx context.Context, ref user.Ref) user.State {
	now := s.clock(ctx)
	state := user.State{Now: now, Account: s.account, Prior: s.prior(ref.IdempotencyKey), Charge: s.charge(ref.EntryID)}
	if r, known := s.reservations[ref.ReservationID]; known {
		state.Reservation = &r
	}
	open := s.open()
	due, next := open, (*time.Time)(nil)
	if i := slices.IndexFunc(open, func(r user.Reservation) bool { return r.ExpiresAt.After(now) }); i >= 0 {
		due, next = open[:i], &open[i].ExpiresAt
	}
	switch expiry := s.account.NextHoldExpiry; {
	case ref.OpenHolds:
		state.Holds, state.NextExpiry = open, next
	case expiry != nil && !expiry.After(now):
		state.Holds, state.NextExpiry = due, next
	}
	if len(state.Holds) > s.maxHolds {
		state.Holds, state.MoreHolds = state.Holds[:s.maxHolds:s.maxHolds], true
	}
	if ref.CountOpenFrom > 0 && s.account.OpenReservations >= ref.CountOpenFrom {
		state.OpenCount = ptr(int64(len(open)))
	}
	if ref.Totals || s.account.SideRow == user.NoSideRow {
		state.Totals = s.totals()
	}
	if s.account.SideRow == user.EarlierSideRow {
		state.Earlier = s.earlierHolds()
	}
	return state
}

func (s *oneAccount) totals() *user.Totals {
	t := &user.Totals{TopUps: new(int64)}
	for i, e := range s.entries {
		t.Last = &e
		if e.TopUpsAmount == nil || i == 0 && e.BalanceAfter != e.Amount {
			t.TopUps = nil
		} else if t.TopUps != nil {
			*t.TopUps += *e.TopUpsAmount
		}
	}
	for _, r := range s.open() {
		t.Reserved += r.Tokens
		if t.Open++; t.NextExpiry == nil {
			t.NextExpiry = &r.ExpiresAt
		}
	}
	return t
}

func (s *oneAccount) earlierHolds() *user.EarlierHolds {
	h := &user.EarlierHolds{}
	for _, r := range s.open() {
		h.Count++
		if e := s.earlier[r.ID]; e.Carried {
			h.CarriedTopUps += e.TopUp
		} else {
			h.Own += r.Tokens
		}
	}
	return h
}

// try calls the rule with a state that must not be changed by it.
func (s *oneAccount) try(rule func(user.State) (user.Change, error), state user.State) (user.Change, error) {
	s.t.Helper()
	given := copied(state)
	change, err := rule(given)
	given.Now = state.Now // it may have been set by who called
	if !reflect.DeepEqual(given, state) {
		s.t.Fatalf("the rule changed its argument from\n%+v to\n%+v", state, given)
	}
	return change, err
}

// copied shares nothing with s that a rule could reach and change.
func copied(s user.State) user.State {
	s.Holds = slices.Clone(s.Holds)
	for _, at := range []**time.Time{&s.Account.RenewalDate, &s.Account.LastReset, &s.Account.NextHoldExpiry, &s.NextExpiry} {
		if *at != nil {
			instant := **at
			*at = &instant
		}
	}
	clone(&s.Prior)
	clone(&s.Reservation)
	clone(&s.OpenCount)
	clone(&s.Earlier)
	if clone(&s.Charge); s.Charge != nil {
		clone(&s.Charge.Reservation)
	}
	if clone(&s.Totals); s.Totals != nil {
		clone(&s.Totals.Last)
		clone(&s.Totals.TopUps)
		clone(&s.Totals.NextExpiry)
	}
	return s
}

func clone[T any](p **T) {
	if *p != nil {
		value := **p
		*p = &value
	}
}

func (s *oneAccount) same(when string, got user.Change, gotErr error, want user.Change, wantErr error) {
	s.t.Helper()
	byID := func(a, b user.Reservation) int { return cmp.Compare(a.ID, b.ID) }
	for _, c := range []*user.Change{&got, &want} {
		c.Reservations = slices.SortedFunc(slices.Values(c.Reservations), byID)
	}
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
	c := user.Charge{Entry: s.entries[id-1]}
	for _, e := range s.entries[id:] {
		c.Follow(e)
	}
	if c.Entry.Kind == user.KindSettle {
		if r, known := s.reservations[*c.Entry.ReservationID]; known {
			c.Reservation = &r
		}
	}
	return &c
}

func (s *oneAccount) write(change user.Change) user.Change {
	s.account = change.Account
	change.Entries = slices.Clone(change.Entries)
	for i := range change.Entries {
		if key := change.Entries[i].IdempotencyKey; key != nil && s.prior(*key) != nil {
			s.t.Fatalf("a second entry under key %s: %+v", *key, change.Entries[i])
		}
		change.Entries[i].ID = int64(len(s.entries) + 1)
		s.entries = append(s.entries, change.Entries[i])
	}
	if s.reservations == nil {
		s.reservations = map[string]user.Reservation{}
	}
	for id, r := range s.reservations {
		change.Conversion.Convert(&r)
		s.reservations[id] = r
	}
	for _, r := range change.Reservations {
		s.reservations[r.ID] = r
	}
	return change
}
