package user

import (
	"context"
	"errors"
	"time"
)

// Store keeps accounts and their ledgers. Its methods return [ErrUserNotFound], [ErrUserExists], [ErrOverloaded] (nothing was
// done), [ErrDatabaseUnavailable] (the outcome of a change may be unknown), or an error that is not an [*Error].
type Store interface {
	// Create inserts an account with its side row and the entry, if any, that explains its first balance;
	// ErrUserExists when the id is taken.
	Create(ctx context.Context, change Change) error

	// Account reads one account as it was last committed, without a lock.
	Account(ctx context.Context, id string) (Account, error)

	// Update is the one way in for every change of a balance. It locks the account that ref names, calls apply with
	// its state and commits what apply returns, all of it or nothing, before it answers with the change as written
	// (entries carry their ids).
	//
	// When apply returns a refusal (an *Error) together with a change, the change (the touch that came before the
	// command: expired holds, a due reset) is committed all the same and the refusal is returned. When it returns
	// [ErrHoldsNeeded] it is called again with the holds in the state. apply must be pure: it may be called several
	// times, and an implementation may serve several updates in one transaction.
	Update(ctx context.Context, ref Ref, apply func(State) (Change, error)) (Change, error)

	// Entries reads a page of an account's ledger; empty for an unknown account.
	Entries(ctx context.Context, accountID string, query EntryQuery) ([]Entry, error)

	// Reservation reads one reservation of an account; ErrReservationNotFound when there is none.
	Reservation(ctx context.Context, accountID, reservationID string) (Reservation, error)

	// OpenReservations reads a page of an account's open reservations, by expiry, then id.
	OpenReservations(ctx context.Context, accountID string, query ReservationQuery) ([]Reservation, error)

	// Usage sums what an account was charged and refunded between bounds, which are in rising order: element i of the
	// answer is for the time from bounds[i] (inclusive) to bounds[i+1] (exclusive).
	Usage(ctx context.Context, accountID string, bounds []time.Time) ([]Usage, error)

	// Accounts reads a page of all accounts, by id, as they were last committed.
	Accounts(ctx context.Context, query AccountQuery) ([]Account, error)

	// AccountsWithDueHold reads, without locking, up to limit ids greater than after, in their order, of accounts that
	// have an open reservation with an expiry at or before now.
	AccountsWithDueHold(ctx context.Context, now time.Time, after string, limit int) ([]string, error)
}

// Ref names what an update needs to see. Empty fields name nothing.
type Ref struct {
	AccountID string
	// IdempotencyKey names the entry that an earlier command with this key wrote.
	IdempotencyKey string
	// ReservationID names a reservation; the holds are loaded along with it.
	ReservationID string
	// EntryID names a ledger entry to refund.
	EntryID int64
	// LastEntry asks for the account's newest ledger entry.
	LastEntry bool
}

// State is what an update sees of one account, read under its lock.
type State struct {
	Account Account
	// Holds are all open reservations of the account, in any order; only valid when HoldsLoaded. They are left
	// unread until a rule asks for them with ErrHoldsNeeded, since few commands look at them.
	Holds       []Reservation
	HoldsLoaded bool
	// Prior is the entry stored under the Ref's idempotency key; nil when there is none.
	Prior *Entry
	// Reservation is the one that the Ref names; nil when there is none.
	Reservation *Reservation
	// Charge is what the Ref's EntryID names; nil when there is no such entry.
	Charge *Charge
	// Last is the account's newest entry, when the Ref asks for it and there is one.
	Last *Entry
}

// Charge is a ledger entry as a refund has to see it.
type Charge struct {
	Entry Entry
	// Refunded is what refunds of it have given back so far.
	Refunded int64
	// ThisTerm is true when the present term began before it: no entry that begins a term has a greater id.
	ThisTerm bool
	// FromCarried is the part of what it charged that a carried reservation paid; 0 when it settled none.
	FromCarried int64
}

// Change is what an update writes: the account with its side row, entries to append in this order, and
// reservations that are new or changed. With neither entries nor reservations there is nothing to write.
type Change struct {
	Account      Account
	Entries      []Entry
	Reservations []Reservation
	// Pseudonym, when set, is the id that the account is moved to with all that belongs to it. On the way the metadata,
	// keys and actors that may tell whose it was are removed from its entries.
	Pseudonym string
}

// Empty reports whether there is nothing to write.
func (c Change) Empty() bool {
	return len(c.Entries) == 0 && len(c.Reservations) == 0 && c.Pseudonym == ""
}

// ErrHoldsNeeded is returned by a rule that has to see the account's open reservations and was called without them.
var ErrHoldsNeeded = errors.New("the open reservations are needed")
