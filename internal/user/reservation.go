package user

import (
	"cmp"
	"slices"
	"time"
)

// ReservationStatus is the state of a reservation. Only open ones hold tokens.
type ReservationStatus string

// The states of a reservation; all but open are final.
const (
	ReservationOpen     ReservationStatus = "open"
	ReservationSettled  ReservationStatus = "settled"
	ReservationReleased ReservationStatus = "released"
	ReservationExpired  ReservationStatus = "expired"
)

// Reservation is tokens set aside before a call whose cost is not yet known. While it is open it is called a hold.
type Reservation struct {
	// ID is a UUID.
	ID     string
	Status ReservationStatus
	// Tokens is what was set aside, Charged, Returned and Shortfall what became of it on closing.
	Tokens    int64
	Charged   int64
	Returned  int64
	Shortfall int64
	// Carried is true once the term in which it was made has ended. The allowance in it lapsed then: only TopUp, the
	// part of Tokens that was paid with top-ups, can come back (product.md §3.4).
	Carried   bool
	TopUp     int64
	CreatedAt time.Time
	ExpiresAt time.Time
	ClosedAt  *time.Time
}

// due reports whether an open reservation has run out: now is at or after its expiry (product.md §3.8).
func (r Reservation) due(now time.Time) bool {
	return r.Status == ReservationOpen && !now.Before(r.ExpiresAt)
}

// byExpiry orders reservations by their expiry, then by id.
func byExpiry(reservations []Reservation) []Reservation {
	return slices.SortedFunc(slices.Values(reservations), func(a, b Reservation) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
}
