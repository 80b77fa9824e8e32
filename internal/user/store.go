package user

import (
	"context"
	"time"
)

// Store keeps accounts and their ledgers. Its methods return [ErrUserNotFound], [ErrUserExists], [ErrOverloaded] and
// [ErrDatabaseUnavailable], after which nothing was done, or an error that is not an [*Error]. Those that change something
// also return [ErrOutcomeUnknown].
type Store interface {
	// Create calls open with a state that has the database's clock and what an earlier account with this id left in the
	// ledger, and inserts the account that it returns with its side row and entries; ErrUserExists when the id is taken.
	Create(ctx context.Context, id string, open func(State) (Change, error)) (Change, error)

	// Account reads one account as it was last committed, without a lock.
	Account(ctx context.Context, id string) (Account, error)

	// Update is the one way in for every change of a balance. It locks the account that ref names, calls apply with
	// its state and commits what apply returns, all of it or nothing, before it answers with the change as written
	// (entries carry their ids).
	//
	// When apply returns a refusal (an *Error) together with a change, the change (the touch that came before the
	// command: expired holds, a due reset) is committed all the same and the refusal is returned. apply must be pure: it
	// may be called several times, and an implementation may serve several updates in one transaction.
	Update(ctx context.Context, ref Ref, apply func(State) (Change, error)) (Change, error)

	// MoveErased moves a part of what belongs to an account that is being erased to its pseudonym, and the account itself
	// with the last part. It reports whether all has been moved, also when it was done before. It fails with
	// [ErrFoldingAgain] while usage is being added up again.
	MoveErased(ctx context.Context, accountID string) (done bool, err error)

	// AccountsBeingErased reads up to limit ids greater than after, in their order, of accounts that are being erased.
	AccountsBeingErased(ctx context.Context, after string, limit int) ([]string, error)

	// Entries reads a page of an account's ledger; empty for an unknown account. The next page is that of the query with
	// Before set to before; 0 when there is none. A page may be short, or empty, although there is a next one.
	Entries(ctx context.Context, accountID string, query EntryQuery) (page []Entry, before int64, err error)

	// Reservation reads one reservation of an account; ErrReservationNotFound when there is none.
	Reservation(ctx context.Context, accountID, reservationID string) (Reservation, error)

	// Reservations reads a page of an account's reservations, by expiry, then id.
	Reservations(ctx context.Context, accountID string, query ReservationQuery) ([]Reservation, error)

	// Usage reads what an account was charged and refunded on days: a row for each day and, where a dimension is named,
	// one for each of its values; the largest by their names, the rest as OtherValue. Where there was nothing there is no
	// row.
	Usage(ctx context.Context, accountID string, days UsageDays) ([]UsageRow, error)

	// AllUsage is Usage of all accounts together. It returns ErrOverloaded when too much is still to be added up, and
	// ErrNotAvailable where the ledger has no order of all entries.
	AllUsage(ctx context.Context, days UsageDays) ([]UsageRow, error)

	// Accounts reads a page of all accounts, by id, as they were last committed. The next page is that of the query with
	// After set to after; empty when there is none. A page may be short, or empty, although there is a next one. Whether
	// a balance is low is not for it to say.
	Accounts(ctx context.Context, query AccountQuery) (page []Account, after string, err error)

	// SearchesAnywhere reports whether Accounts finds texts anywhere, and not just how something begins.
	SearchesAnywhere(ctx context.Context) (bool, error)

	// AccountsWithDueHold reads, without locking, up to limit ids greater than after, in their order, of accounts that
	// have an open reservation with an expiry at or before now.
	AccountsWithDueHold(ctx context.Context, now time.Time, after string, limit int) ([]string, error)
}

// Ref names what an update has to see. Empty fields name nothing.
type Ref struct {
	AccountID string
	// IdempotencyKey names the entry that an earlier command with this key wrote.
	IdempotencyKey string
	// ReservationID names a reservation.
	ReservationID string
	// EntryID names a ledger entry to refund.
	EntryID int64
	// OpenHolds asks for open reservations that are not due yet, too.
	OpenHolds bool
	// CountOpenFrom asks to count the open reservations of an account whose side row says that it has so many or more; 0
	// for never.
	CountOpenFrom int64
	// Totals asks what the account's ledger and its open reservations add up to.
	Totals bool
}

// allOpen asks for all open reservations, and for their number whatever the side row says.
func (r *Ref) allOpen() { r.OpenHolds, r.CountOpenFrom = true, 1 }

// MaxHoldsPerUpdate is the most holds that one transaction returns, over all of its accounts (rule 8).
const MaxHoldsPerUpdate = 500

// State is what an update sees of one account, read under its lock.
type State struct {
	// Now is the database's clock, read after the lock: UTC with microseconds (rule 14).
	Now     time.Time
	Account Account
	// Holds are open reservations, the earliest expiry first: those that are due, and with Ref.OpenHolds others. Of
	// all accounts that share a transaction there are at most MaxHoldsPerUpdate.
	Holds []Reservation
	// MoreHolds is true when there are more than these.
	MoreHolds bool
	// NextExpiry is the earliest expiry of the open reservations that are not due; nil when there is none. It is read
	// when the account's NextHoldExpiry is due.
	NextExpiry *time.Time
	// Prior is the entry stored under the Ref's idempotency key; nil when there is none.
	Prior *Entry
	// Reservation is the one that the Ref names; nil when there is none.
	Reservation *Reservation
	// Charge is what the Ref's EntryID names; nil when there is no such entry.
	Charge *Charge
	// OpenCount is how many open reservations there are; nil unless they were counted.
	OpenCount *int64
	// Earlier is set when the side row is of the earlier form.
	Earlier *EarlierHolds
	// Totals are set when the Ref asks for them, when the account has no side row, and when it is about to be created.
	Totals *Totals
}

// EarlierHolds are the open reservations of an account whose side row is of the earlier form (rule 15).
type EarlierHolds struct {
	// CarriedTopUps is what of those that were carried over the end of a term was paid with top-ups.
	CarriedTopUps int64
	// Own is what those hold that were not carried.
	Own int64
	// Count is how many there are.
	Count int64
}

// Totals are what the tables beside userdata say of an account.
type Totals struct {
	// Last is the newest entry; nil when there is none.
	Last *Entry
	// TopUps is the sum of TopUpsAmount of all entries; nil when one of them, of the earlier version, has none, or when the
	// entries that the first one continues have been deleted.
	TopUps *int64
	// Reserved, Open and NextExpiry are the tokens, the number and the earliest expiry of the open reservations.
	Reserved   int64
	Open       int64
	NextExpiry *time.Time
}

// Follow takes note of a change that was made after the totals were read.
func (t *Totals) Follow(c Change) {
	for i := range c.Entries {
		e := &c.Entries[i]
		t.Last = e
		if t.TopUps != nil && e.TopUpsAmount != nil {
			sum := *t.TopUps + *e.TopUpsAmount
			t.TopUps = &sum
		}
	}
	t.Reserved, t.Open, t.NextExpiry = c.Account.Reserved, c.Account.OpenReservations, c.Account.NextHoldExpiry
}

// Change is what an update writes: the account with its side row, entries to append in this order, and
// reservations that are new or changed. With neither entries nor reservations there is nothing to write, unless
// SideRow says so.
type Change struct {
	Account      Account
	Entries      []Entry
	Reservations []Reservation
	// Recorded is true when the last of the entries is the command's own.
	Recorded bool
	// Repeated is true when the command had been done before, under the same key or, for the end of a reservation, under
	// any.
	Repeated bool
	// SideRow is true when the side row is to be written although there are neither entries nor reservations.
	SideRow bool
	// Conversion is set when the account's side row was of the earlier form.
	Conversion *Conversion
	// Pseudonym, when set, is the id that the account is going to be moved to; see Store.MoveErased.
	Pseudonym string
}

// Conversion says in which period the account's open reservations were made that the earlier version has not carried.
type Conversion struct{ Period int }

// Empty reports whether there is nothing to write.
func (c Change) Empty() bool {
	return len(c.Entries) == 0 && len(c.Reservations) == 0 && !c.SideRow && c.Pseudonym == ""
}
