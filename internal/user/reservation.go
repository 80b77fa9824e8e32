package user

import (
	"cmp"
	"fmt"
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
	// TokensUsed is the cost that it was settled with; nil unless settled.
	TokensUsed *int64
	// LastEntry is the newest ledger entry that it led to; nil when it led to none. Only Store.Reservation and
	// Store.OpenReservations fill it in.
	LastEntry *Entry
}

// ReservationQuery selects open reservations of one account.
type ReservationQuery struct {
	// AfterExpiry and AfterID are those of the last reservation of the page before; zero starts with the first.
	AfterExpiry time.Time
	AfterID     string
	// Limit is the most reservations to return, at least 1.
	Limit int
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

// Reserve holds tokens (product.md §3.8). Refusals: [ErrValidation], [ErrKeyReused], [ErrUserInactive],
// [ErrSubscriptionInactive], [ErrInsufficientTokens]. Repeated under the same key it holds nothing more, as with
// Consume. An unlimited account gets a hold of 0 tokens.
func (r Rules) Reserve(s State, c Reserve, now time.Time) (Change, error) {
	if err := checkAmount("tokens", c.Tokens); err != nil {
		return Change{}, err
	}
	if c.TTL < MinHold || c.TTL > MaxHold {
		return Change{}, invalid("ttl_seconds", "must be from 1 to 86400")
	}
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	if replayed, err := d.replay(c.hash()); replayed || err != nil {
		return d.change(), err
	}
	if err := d.mayspend(); err != nil {
		return d.change(), err
	}
	a := &d.account
	hold := Reservation{ID: c.ReservationID, Status: ReservationOpen, CreatedAt: d.at, ExpiresAt: d.at.Add(c.TTL)}
	if !d.tier().Unlimited {
		if c.Tokens > a.TokensRemaining {
			return d.change(), d.shortage(c.Tokens)
		}
		hold.Tokens = c.Tokens
		a.TokensRemaining -= c.Tokens
		a.Reserved += c.Tokens
		d.record(c.entry(Entry{Kind: KindReserve, ReservationID: &hold.ID, CommandHash: c.hash()}))
	}
	d.made = &hold
	return d.change(), nil
}

// Settle charges the true cost of a reservation and returns the rest (product.md §3.8). A cost beyond what was held
// is taken from the balance as far as it goes; what is then missing is the reservation's Shortfall. Refusals:
// [ErrReservationNotFound], [ErrReservationClosed], [ErrReservationExpired]. Settled again with the same cost nothing
// changes.
func (r Rules) Settle(s State, c Settle, now time.Time) (Change, error) {
	if c.TokensUsed < 0 || c.TokensUsed > MaxTokens {
		return Change{}, invalid("tokens_used", fmt.Sprintf("must be from 0 to %d", MaxTokens))
	}
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	h, done, err := d.named(func(h Reservation) bool {
		return h.Status == ReservationSettled && *h.TokensUsed == c.TokensUsed
	})
	if done || err != nil {
		return d.change(), err
	}
	a := &d.account
	var excess int64
	if h.Tokens > 0 { // a hold made while unlimited settles for nothing
		h.Charged = min(c.TokensUsed, h.Tokens)
		excess = c.TokensUsed - h.Charged
	}
	rest := h.Tokens - h.Charged
	if excess > 0 && !d.tier().Unlimited {
		taken := min(excess, a.TokensRemaining)
		a.TokensRemaining -= taken
		h.Charged += taken
		h.Shortfall = excess - taken
	}
	a.TokensUsed += h.Charged
	h.TokensUsed = &c.TokensUsed
	d.close(h, ReservationSettled, rest, c.entry(Entry{Kind: KindSettle, TokensCharged: h.Charged}))
	return d.change(), nil
}

// Release returns the tokens of a reservation (product.md §3.8). Refusals as with Settle; released again nothing
// changes.
func (r Rules) Release(s State, c Release, now time.Time) (Change, error) {
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	h, done, err := d.named(func(h Reservation) bool { return h.Status == ReservationReleased })
	if done || err != nil {
		return d.change(), err
	}
	d.close(h, ReservationReleased, h.Tokens, Meta{Actor: c.Actor}.entry(Entry{Kind: KindRelease}))
	return d.change(), nil
}

// named is the open hold that the update names. It is done when the reservation was closed as the command would close
// it, and an error when it was closed otherwise or there is none.
func (d *draft) named(done func(Reservation) bool) (*Reservation, bool, error) {
	stored := d.state.Reservation
	if stored == nil {
		return nil, false, ErrReservationNotFound
	}
	h := *stored
	// The touch may just have changed it.
	if i := slices.IndexFunc(d.holds, func(r Reservation) bool { return r.ID == h.ID }); i >= 0 {
		if d.holds[i].Status == ReservationOpen {
			return &d.holds[i], false, nil
		}
		h = d.holds[i]
	}
	switch {
	case done(h):
		return nil, true, nil
	case h.Status == ReservationExpired:
		return nil, false, ErrReservationExpired
	}
	return nil, false, ErrReservationClosed
}

// close ends an open hold of the draft: of the rest that was not charged comes back what product.md §3.8 says, all of
// it within the reservation's term and of a carried one only the top-ups in it.
func (d *draft) close(h *Reservation, status ReservationStatus, rest int64, e Entry) {
	a := &d.account
	at := d.at
	h.Status, h.ClosedAt, h.Returned = status, &at, rest
	if h.Carried {
		h.Returned = min(h.TopUp, rest)
		a.TopUps += h.Returned
	}
	a.Reserved -= h.Tokens
	a.TokensRemaining += h.Returned
	d.changed[h.ID] = true
	if h.Tokens > 0 { // a hold made while unlimited holds nothing, so there is nothing to explain
		e.ReservationID = &h.ID
		d.record(e)
	}
}
