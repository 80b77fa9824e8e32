package user

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

// Service is the UserService: every call of the API that concerns users ends here. It is safe for concurrent use and
// keeps no state of its own, so that any number of replicas may run on one database.
//
// Beside the errors that a method names, all of them return those of [Store].
type Service struct {
	Store Store
	Rules Rules
	// Now is the clock; it is read once per operation.
	Now func() time.Time
	// Observer is told what happened; nil for none.
	Observer Observer
	// Span begins a span around an operation, to be ended with its outcome; nil for none. A command's operation is the
	// kind of its entry.
	Span func(ctx context.Context, operation string) (spanned context.Context, end func(error))
}

// Observer counts what commands do. It may be called by many goroutines at once.
type Observer interface {
	// Entry is called with each entry that has been written.
	Entry(e Entry)
	// Refusal is called with the code of each refused or failed change.
	Refusal(code Code)
}

// Receipt is the outcome of a command that may carry an idempotency key.
type Receipt struct {
	// Account is as the command left it. When Replayed, its two counters are those of the first time and its other
	// fields as they are now.
	Account Account
	// Entry is the ledger entry of the command; nil when an unlimited account consumed.
	Entry *Entry
	// Replayed is true when the command had been done before under the same key.
	Replayed bool

	reservations []Reservation
}

// reservation is the one of this id that the command made or changed; zero when it did neither.
func (r Receipt) reservation(id string) Reservation {
	for _, made := range r.reservations {
		if made.ID == id {
			return made
		}
	}
	return Reservation{}
}

// Tiers returns the catalogue in its order.
func (s *Service) Tiers() []TierInfo { return s.Rules.Tiers.All() }

// Create makes an account on the free tier; [ErrUserExists] when the id is taken.
func (s *Service) Create(ctx context.Context, n NewAccount) (_ Account, err error) {
	ctx, end := s.begin(ctx, "create")
	defer func() { end(err) }()
	if problem := ValidateID(n.ID); problem != "" {
		return Account{}, invalid("cognito_user_id", problem)
	}
	change := s.Rules.Open(n, s.now())
	return change.Account, s.observe(change, s.Store.Create(ctx, change))
}

// Account reads an account, after the reset or the expiry that was due; [ErrUserNotFound] when there is none.
func (s *Service) Account(ctx context.Context, id string) (Account, error) {
	return s.account(ctx, id, s.now())
}

func (s *Service) account(ctx context.Context, id string, now time.Time) (_ Account, err error) {
	ctx, end := s.begin(ctx, "account")
	defer func() { end(err) }()
	a, err := s.Store.Account(ctx, id)
	if err != nil {
		return Account{}, err
	}
	a, stale := s.Rules.Read(a, now)
	if !stale {
		return a, nil
	}
	change, err := s.update(ctx, Ref{AccountID: id}, func(st State) (Change, error) {
		return s.Rules.Touch(st, now)
	})
	return change.Account, err
}

// GetOrCreate is Account for callers that meet a user for the first time: an unknown id becomes an account on the
// free tier, one only however many ask at once.
func (s *Service) GetOrCreate(ctx context.Context, id string) (Account, error) {
	a, err := s.Account(ctx, id)
	if !errors.Is(err, ErrUserNotFound) {
		return a, err
	}
	a, err = s.Create(ctx, NewAccount{ID: id})
	if errors.Is(err, ErrUserExists) {
		return s.Account(ctx, id)
	}
	return a, err
}

// Status answers whether the user may make a request; [ErrUserNotFound] when there is none.
func (s *Service) Status(ctx context.Context, id string) (Status, error) {
	now := s.now()
	a, err := s.account(ctx, id, now)
	if err != nil {
		return Status{}, err
	}
	return s.Rules.Status(a, now), nil
}

// Consume charges tokens; see [Rules.Consume].
func (s *Service) Consume(ctx context.Context, id string, c Consume) (Receipt, error) {
	return s.execute(ctx, Ref{AccountID: id, IdempotencyKey: c.IdempotencyKey}, KindConsume, func(st State, now time.Time) (Change, error) {
		return s.Rules.Consume(st, c, now)
	})
}

// AddTokens tops up; see [Rules.AddTokens].
func (s *Service) AddTokens(ctx context.Context, id string, c AddTokens) (Receipt, error) {
	return s.execute(ctx, Ref{AccountID: id, IdempotencyKey: c.IdempotencyKey}, KindTopUp, func(st State, now time.Time) (Change, error) {
		return s.Rules.AddTokens(st, c, now)
	})
}

// Refund gives back a charge; see [Rules.Refund].
func (s *Service) Refund(ctx context.Context, id string, c Refund) (Receipt, error) {
	ref := Ref{AccountID: id, IdempotencyKey: c.IdempotencyKey, EntryID: c.EntryID}
	return s.execute(ctx, ref, KindRefund, func(st State, now time.Time) (Change, error) {
		return s.Rules.Refund(st, c, now)
	})
}

// ChangeTier moves an account to a tier; see [Rules.ChangeTier].
func (s *Service) ChangeTier(ctx context.Context, id string, c ChangeTier) (Account, error) {
	r, err := s.execute(ctx, Ref{AccountID: id}, KindTierChange, func(st State, now time.Time) (Change, error) {
		return s.Rules.ChangeTier(st, c, now)
	})
	return r.Account, err
}

// UpdateProfile changes what an account is beside its tokens; see [Rules.UpdateProfile].
func (s *Service) UpdateProfile(ctx context.Context, id string, c UpdateProfile) (Account, error) {
	r, err := s.execute(ctx, Ref{AccountID: id}, KindProfileChange, func(st State, now time.Time) (Change, error) {
		return s.Rules.UpdateProfile(st, c, now)
	})
	return r.Account, err
}

// Deactivate lets an account spend no more; see [Rules.Deactivate].
func (s *Service) Deactivate(ctx context.Context, id, actor string) error {
	_, err := s.execute(ctx, Ref{AccountID: id}, KindProfileChange, func(st State, now time.Time) (Change, error) {
		return s.Rules.Deactivate(st, actor, now)
	})
	return err
}

// Erase removes all that leads to the person from an account; see [Rules.Erase]. The id is unknown afterwards.
func (s *Service) Erase(ctx context.Context, id, actor string) error {
	random, err := uuid.NewRandom()
	if err != nil {
		return err
	}
	_, err = s.execute(ctx, Ref{AccountID: id}, KindProfileChange, func(st State, now time.Time) (Change, error) {
		return s.Rules.Erase(st, "erased-"+random.String(), actor, now)
	})
	return err
}

// Accounts reads a page of all accounts, by id. It touches none of them: a reset that is due shows with the account's
// next call.
func (s *Service) Accounts(ctx context.Context, q AccountQuery) (_ []Account, err error) {
	ctx, end := s.begin(ctx, "accounts")
	defer func() { end(err) }()
	now := s.now()
	accounts, err := s.Store.Accounts(ctx, q)
	for i := range accounts {
		accounts[i], _ = s.Rules.Read(accounts[i], now)
	}
	return accounts, err
}

// Entries returns a page of the account's ledger, newest first; [ErrUserNotFound] when there is no such account.
func (s *Service) Entries(ctx context.Context, id string, q EntryQuery) (_ []Entry, err error) {
	ctx, end := s.begin(ctx, "entries")
	defer func() { end(err) }()
	if _, err := s.Account(ctx, id); err != nil {
		return nil, err
	}
	return s.Store.Entries(ctx, id, q)
}

// Usage sums per day of the reset time zone, from the day of q.From to that of q.To, both inclusive.
func (s *Service) Usage(ctx context.Context, id string, q UsageQuery) (_ UsageReport, err error) {
	ctx, end := s.begin(ctx, "usage")
	defer func() { end(err) }()
	now := s.now()
	if _, err := s.account(ctx, id, now); err != nil {
		return UsageReport{}, err
	}
	days, err := s.Rules.usageDays(q, now)
	if err != nil {
		return UsageReport{}, err
	}
	bounds := make([]time.Time, 0, len(days)+1)
	for _, day := range days {
		bounds = append(bounds, s.Rules.dayStart(day.Date()))
	}
	bounds = append(bounds, s.Rules.dayStart(days[len(days)-1].AddDate(0, 0, 1).Date()))
	sums, err := s.Store.Usage(ctx, id, bounds)
	return UsageReport{Zone: s.Rules.ResetZone, Days: days, Sums: sums}, err
}

// execute runs one command whose own entry, the last it writes if it writes any, is of the given kind.
func (s *Service) execute(ctx context.Context, ref Ref, kind EntryKind, rule func(State, time.Time) (Change, error)) (_ Receipt, err error) {
	ctx, end := s.begin(ctx, string(kind))
	defer func() { end(err) }()
	now := s.now()
	var prior *Entry
	change, err := s.update(ctx, ref, func(st State) (Change, error) {
		prior = st.Prior
		return rule(st, now)
	})
	if err != nil {
		return Receipt{}, err
	}
	r := Receipt{Account: change.Account, reservations: change.Reservations}
	if prior != nil {
		r.Entry, r.Replayed = prior, true
		r.Account.TokensRemaining, r.Account.TokensUsed = prior.BalanceAfter, prior.UsedAfter
	} else if n := len(change.Entries); n > 0 && change.Entries[n-1].Kind == kind {
		r.Entry = &change.Entries[n-1]
	}
	return r, nil
}

// begin begins a span where there are any.
func (s *Service) begin(ctx context.Context, operation string) (spanned context.Context, end func(error)) {
	if s.Span == nil {
		return ctx, func(error) {}
	}
	return s.Span(ctx, operation)
}

// update is Store.Update, observed.
func (s *Service) update(ctx context.Context, ref Ref, apply func(State) (Change, error)) (Change, error) {
	change, err := s.Store.Update(ctx, ref, apply)
	return change, s.observe(change, err)
}

// observe tells the Observer of a change and returns the error of having made it. Entries without an id were not
// written.
func (s *Service) observe(change Change, err error) error {
	if s.Observer == nil {
		return err
	}
	for _, e := range change.Entries {
		if e.ID != 0 {
			s.Observer.Entry(e)
		}
	}
	if err != nil {
		s.Observer.Refusal(CodeOf(err))
	}
	return err
}

func (s *Service) now() time.Time { return s.Now().UTC().Truncate(time.Microsecond) }
