package user

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
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
	// Dimensions are the names in metadata whose values usage is told by.
	Dimensions []string
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
}

// Receipt is the outcome of a command.
type Receipt struct {
	// Account is as the command left it. When Replayed, its two counters are those of the first time and its other
	// fields as they are now.
	Account Account
	// Entry is the ledger entry of the command; nil when it needed none.
	Entry *Entry
	// Replayed is true when the command had been done before.
	Replayed bool
	// LowBalance says that the balance is worth a warning; see [Rules.LowBalance].
	LowBalance bool

	reservations []Reservation
}

// reservation returns the reservation with this id that the command created or changed, or the zero value.
func (r Receipt) reservation(id string) Reservation {
	for _, changed := range r.reservations {
		if changed.ID == id {
			return changed
		}
	}
	return Reservation{}
}

// Tiers returns the catalogue in its order.
func (s *Service) Tiers() []TierInfo { return s.Rules.Tiers.All() }

// Create makes an account on the free tier; [ErrUserExists] when the id is taken, unless the same command made it under
// the same key.
func (s *Service) Create(ctx context.Context, n NewAccount) (_ Receipt, err error) {
	ctx, end := s.begin(ctx, "create")
	defer func() { end(err) }()
	if problem := ValidateNewID(n.ID); problem != "" {
		return Receipt{}, invalid("cognito_user_id", problem)
	}
	change, err := s.Store.Create(ctx, n.ID, func(st State) (Change, error) { return s.Rules.Open(st, n), nil })
	if errors.Is(err, ErrUserExists) {
		if n.IdempotencyKey != "" {
			return s.Do(ctx, n.ID, n)
		}
		if gone := s.Exists(ctx, n.ID); errors.Is(gone, ErrBeingErased) {
			err = gone
		}
	}
	s.observe(change)
	return s.receipt(change, nil), err
}

// Put sets what c gives on an account, and makes the account where there is none: created is true then, also when the
// command is repeated under its key.
func (s *Service) Put(ctx context.Context, id string, c PutProfile) (_ Receipt, created bool, err error) {
	if missing := s.Exists(ctx, id); errors.Is(missing, ErrUserNotFound) && !errors.Is(missing, errErased) {
		r, err := s.Create(ctx, NewAccount{ID: id, Username: c.Username, Email: c.Email, Meta: c.Meta, put: &c})
		if !errors.Is(err, ErrUserExists) { // else somebody has made it meanwhile
			return r, err == nil && (!r.Replayed || r.Entry.Kind == KindOpening), err
		}
	}
	r, err := s.Do(ctx, id, c)
	return r, r.Entry != nil && r.Entry.Kind == KindOpening, err
}

// Exists returns [ErrUserNotFound] when there is no such account. Unlike [Service.Account] it changes nothing.
func (s *Service) Exists(ctx context.Context, id string) error {
	a, err := s.Store.Account(ctx, id)
	if err == nil {
		err = a.accessible()
	}
	return err
}

// Account reads an account, after the reset or the expiry that was due; [ErrUserNotFound] when there is none.
func (s *Service) Account(ctx context.Context, id string) (Account, error) {
	a, _, err := s.account(ctx, id)
	return a, err
}

// account also returns the instant by which the account was judged.
func (s *Service) account(ctx context.Context, id string) (_ Account, at time.Time, err error) {
	ctx, end := s.begin(ctx, "account")
	defer func() { end(err) }()
	a, err := s.Store.Account(ctx, id)
	if err == nil {
		err = a.accessible()
	}
	if err != nil {
		return Account{}, time.Time{}, err
	}
	at = s.now()
	a, stale := s.Rules.Read(a, at)
	if !stale {
		return a, at, nil
	}
	change, err := s.update(ctx, s.Rules.Ref(id, Touch{}), func(st State) (Change, error) {
		at = st.Now
		return s.Rules.Apply(st, Touch{})
	})
	return change.Account, at, readError(err)
}

// readError is the error of a read, which has done nothing that its caller asked for, whatever became of the touch or of
// the account that it made.
func readError(err error) error {
	if OutcomeOf(err) == OutcomeUnknown {
		return ErrDatabaseUnavailable.Because(err)
	}
	return err
}

// GetOrCreate is Account for callers that meet a user for the first time: an unknown id becomes an account on the
// free tier, one only however many ask at once.
func (s *Service) GetOrCreate(ctx context.Context, id string) (Account, error) {
	a, err := s.Account(ctx, id)
	if !errors.Is(err, ErrUserNotFound) || errors.Is(err, errErased) {
		return a, err
	}
	r, err := s.Create(ctx, NewAccount{ID: id})
	if errors.Is(err, ErrUserExists) {
		return s.Account(ctx, id)
	}
	return r.Account, readError(err)
}

// Status answers whether the user may make a request; [ErrUserNotFound] when there is none.
func (s *Service) Status(ctx context.Context, id string) (Status, error) {
	a, at, err := s.account(ctx, id)
	if err != nil {
		return Status{}, err
	}
	return s.Rules.Status(a, at), nil
}

// Do carries out a command that names no reservation. Refusals are those of the command, and [ErrKeyReused].
func (s *Service) Do(ctx context.Context, id string, c Command) (_ Receipt, err error) {
	ctx, end := s.begin(ctx, operation(c))
	defer func() { end(err) }()
	var prior *Entry
	change, err := s.update(ctx, s.Rules.Ref(id, c), func(st State) (Change, error) {
		prior = st.Prior
		return s.Rules.Apply(st, c)
	})
	if err != nil {
		return Receipt{}, err
	}
	return s.receipt(change, prior), nil
}

// receipt is the outcome of a command that was carried out; prior is the entry that was stored under its key.
func (s *Service) receipt(change Change, prior *Entry) Receipt {
	r := Receipt{Account: change.Account, Replayed: change.Repeated, reservations: change.Reservations}
	if change.Recorded {
		r.Entry = &change.Entries[len(change.Entries)-1]
	} else if prior != nil {
		r.replay(*prior)
	}
	r.LowBalance = s.Rules.LowBalance(r.Account)
	return r
}

// replay makes the receipt that of the first time, which wrote the entry.
func (r *Receipt) replay(e Entry) {
	r.Entry = &e
	r.Account.TokensRemaining, r.Account.TokensUsed = e.BalanceAfter, e.UsedAfter
}

// operation names a command in traces.
func operation(c Command) string { return cmp.Or(string(c.Kind()), "touch") }

// Deactivate lets an account spend no more; see the command. It ends all open reservations, however many there are. Where
// it fails after the first of them, the outcome is unknown, and a repeated Deactivate goes on.
func (s *Service) Deactivate(ctx context.Context, id string, c Deactivate) (Receipt, error) {
	first, err := s.Do(ctx, id, c)
	if err != nil {
		return first, err
	}
	rest := endHolds{Meta: Meta{Actor: c.Actor}}
	if first.Replayed { // what was opened after a later activation stays
		rest.openedBy = first.Entry.CreatedAt
	}
	for left := first.Account.OpenReservations; left > 0; {
		next, err := s.Do(ctx, id, rest)
		if err != nil {
			return first, partlyDone(err)
		}
		if len(next.reservations) == 0 {
			break
		}
		left = next.Account.OpenReservations
	}
	return first, nil
}

// partlyDone is the error of a command that failed after a part of it was done: nobody may be told that nothing was.
func partlyDone(err error) error {
	if OutcomeOf(err) == OutcomeNone {
		return ErrOutcomeUnknown.Because(err)
	}
	return err
}

// eraseWait is how long an erase is waited for; what is left then is done by FinishErases.
const eraseWait = 2 * time.Second

// Erase removes all that leads to the person from an account; see the command. The id is unknown once it is done. When that
// takes long, done is false and FinishErases goes on with it; until then the account is [ErrBeingErased] to all but a repeated
// Erase.
func (s *Service) Erase(ctx context.Context, id, actor string) (done bool, err error) {
	random, err := uuid.NewRandom()
	if err != nil {
		return false, err
	}
	by := Meta{Actor: actor}
	if _, err = s.Deactivate(ctx, id, Deactivate{by}); err == nil {
		if _, err = s.Do(ctx, id, Erase{erasedPrefix + random.String(), by}); err != nil && !errors.Is(err, ErrBeingErased) {
			err = partlyDone(err)
		}
	}
	if err != nil && !errors.Is(err, ErrBeingErased) {
		return false, err
	}
	for until := s.now().Add(eraseWait); !done && s.now().Before(until); {
		if done, err = s.Store.MoveErased(ctx, id); err != nil {
			break // the account is marked: FinishErases goes on with it, and tells of failures
		}
	}
	return done, nil
}

// Accounts reads a page of all accounts, by id. It touches none of them: a reset that is due shows with the account's
// next call. See [Store] for the next page.
func (s *Service) Accounts(ctx context.Context, q AccountQuery) (page []Account, after string, err error) {
	ctx, end := s.begin(ctx, "accounts")
	defer func() { end(err) }()
	now := s.now()
	if q.LowBalance != nil {
		return s.accountsByBalance(ctx, q, now)
	}
	page, after, err = s.Store.Accounts(ctx, q)
	for i := range page {
		page[i], _ = s.Rules.Read(page[i], now)
	}
	return page, after, err
}

const (
	// Whether balances are low is looked at for lowBalancePage accounts at a time, and lowBalancePages times for one page.
	lowBalancePage, lowBalancePages = 1000, 5
)

// accountsByBalance reads a page of the accounts whose balance is low, or is not. That is in no index: each consume would
// have to change it.
func (s *Service) accountsByBalance(ctx context.Context, q AccountQuery, now time.Time) (page []Account, after string, err error) {
	limit := q.Limit
	q.Limit = max(limit, lowBalancePage)
	for range lowBalancePages {
		found, next, err := s.Store.Accounts(ctx, q)
		if err != nil {
			return nil, "", err
		}
		for _, a := range found {
			shown, _ := s.Rules.Read(a, now)
			if s.Rules.LowBalance(shown) != *q.LowBalance {
				continue
			}
			if page = append(page, shown); len(page) == limit {
				return page, shown.ID, nil
			}
		}
		if q.After = next; next == "" {
			break
		}
	}
	return page, q.After, nil
}

// SearchesAnywhere reports whether a text of [MinAnywhere] characters is found anywhere in an account.
func (s *Service) SearchesAnywhere(ctx context.Context) (bool, error) {
	return s.Store.SearchesAnywhere(ctx)
}

// Entries returns a page of the account's ledger, newest first; [ErrUserNotFound] when there is no such account. See
// [Store] for the next page.
func (s *Service) Entries(ctx context.Context, id string, q EntryQuery) (page []Entry, before int64, err error) {
	ctx, end := s.begin(ctx, "entries")
	defer func() { end(err) }()
	if _, err := s.Account(ctx, id); err != nil {
		return nil, 0, err
	}
	return s.Store.Entries(ctx, id, q)
}

// Usage sums per day of the reset time zone, from the day of q.From to that of q.To, both inclusive.
func (s *Service) Usage(ctx context.Context, id string, q UsageQuery) (_ UsageReport, err error) {
	ctx, end := s.begin(ctx, "usage")
	defer func() { end(err) }()
	now := s.now()
	if _, err := s.Account(ctx, id); err != nil {
		return UsageReport{}, err
	}
	return s.usage(q, now, s.Dimensions, func(days UsageDays) ([]UsageRow, error) { return s.Store.Usage(ctx, id, days) })
}

// AllUsage is Usage of all accounts together, also by their tiers.
func (s *Service) AllUsage(ctx context.Context, q UsageQuery) (_ UsageReport, err error) {
	ctx, end := s.begin(ctx, "all usage")
	defer func() { end(err) }()
	return s.usage(q, s.now(), append(slices.Clone(s.Dimensions), TierDimension), func(days UsageDays) ([]UsageRow, error) {
		return s.Store.AllUsage(ctx, days)
	})
}

func (s *Service) usage(q UsageQuery, now time.Time, dimensions []string, read func(UsageDays) ([]UsageRow, error)) (UsageReport, error) {
	if q.By != "" && !slices.Contains(dimensions, q.By) {
		message := "names no dimension: usage is told by none"
		if len(dimensions) > 0 {
			message = "must be one of: " + strings.Join(dimensions, ", ")
		}
		return UsageReport{}, invalid("by", message)
	}
	days, err := s.Rules.usageDays(q, now)
	if err != nil {
		return UsageReport{}, err
	}
	rows, err := read(days)
	if err != nil {
		return UsageReport{}, err
	}
	return s.Rules.report(days, rows), nil
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
	s.observe(change)
	return change, err
}

// observe tells the Observer of the entries of a change. Those without an id were not written.
func (s *Service) observe(change Change) {
	if s.Observer == nil {
		return
	}
	for _, e := range change.Entries {
		if e.ID != 0 {
			s.Observer.Entry(e)
		}
	}
}

func (s *Service) now() time.Time { return s.Now().UTC().Truncate(time.Microsecond) }
