package user

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// ReservationStatus is the state of a reservation. Only open ones hold tokens.
type ReservationStatus string

// The states of a reservation. An expired one can still be settled late, or released.
const (
	ReservationOpen     ReservationStatus = "open"
	ReservationSettled  ReservationStatus = "settled"
	ReservationReleased ReservationStatus = "released"
	ReservationExpired  ReservationStatus = "expired"
)

// ReservationStatuses lists every status.
func ReservationStatuses() []ReservationStatus {
	return []ReservationStatus{ReservationOpen, ReservationSettled, ReservationReleased, ReservationExpired}
}

// Reservation is tokens set aside before a call whose cost is not yet known. While it is open it is called a hold.
type Reservation struct {
	// ID is a UUID.
	ID     string
	Status ReservationStatus
	// Tokens is what was set aside, Charged, Returned and Shortfall what became of it on closing. Returned is what came
	// back into the balance.
	Tokens    int64
	Charged   int64
	Returned  int64
	Shortfall int64
	// Period is the account's granted period when it was made; 0 when the earlier version carried it over the end of a
	// term, PeriodOfConversion when that version made it and has not carried it.
	Period int
	// Late is true when it was settled after it had expired.
	Late bool
	// Metadata is the caller's own notes from when it was made.
	Metadata  map[string]string
	CreatedAt time.Time
	ExpiresAt time.Time
	ClosedAt  *time.Time
	// TokensUsed is the cost that it was settled with; nil unless settled.
	TokensUsed *int64
	// LastEntry is the newest ledger entry that it led to; nil when it led to none. Only Store.Reservation and
	// Store.Reservations fill it in.
	LastEntry *Entry
}

// PeriodOfConversion stands for the period in which the account's side row is converted (rule 15).
const PeriodOfConversion = -1

// ReservationQuery selects reservations of one account, by expiry, then id.
type ReservationQuery struct {
	// Status limits to one status; empty takes all.
	Status ReservationStatus
	// AfterExpiry and AfterID are those of the last reservation of the page before; zero starts with the first.
	AfterExpiry time.Time
	AfterID     string
	// Limit is the most reservations to return, at least 1.
	Limit int
}

// How long a reservation may be open (rule 8).
const (
	MinHold     = time.Second
	DefaultHold = 10 * time.Minute
	MaxHold     = 24 * time.Hour
)

// LateSettle is how long after its expiry a reservation can still be settled (rule 8).
const LateSettle = 7 * 24 * time.Hour

// due reports whether an open reservation has run out: now is at or after its expiry (rule 8).
func (r Reservation) due(now time.Time) bool {
	return r.Status == ReservationOpen && !now.Before(r.ExpiresAt)
}

// SortByExpiry orders reservations by their expiry, then by id.
func SortByExpiry(reservations []Reservation) {
	slices.SortFunc(reservations, func(a, b Reservation) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
}

// Reserve sets tokens aside before a call whose cost is not yet known (rule 8). Refusals: [ErrValidation],
// [ErrUserInactive], [ErrSubscriptionInactive], [ErrSubscriptionLapsed], [ErrTooManyReservations],
// [ErrInsufficientTokens]. An unlimited account gets a hold of 0 tokens.
type Reserve struct {
	// ReservationID is the UUID of the new reservation.
	ReservationID string
	// Tokens to hold, 1 to MaxTokens.
	Tokens int64
	// TTL is how long they are held, MinHold to MaxHold; 0 stands for DefaultHold.
	TTL time.Duration
	Meta
}

// Kind implements [Command].
func (Reserve) Kind() EntryKind { return KindReserve }

// Before one is refused for being too many, the open ones are counted.
func (Reserve) names(ref *Ref, r Rules) { ref.CountOpenFrom = r.MaxOpenReservations }

func (c Reserve) ttl() time.Duration { return cmp.Or(c.TTL, DefaultHold) }

func (c Reserve) validate(Rules) error {
	if err := checkAmount("tokens", c.Tokens); err != nil {
		return err
	}
	return checkHold(c.ttl())
}

func (c Reserve) identity() []any { return []any{"reserve", c.Tokens, given(c.TTL.Milliseconds())} }

func (c Reserve) apply(d *draft) error {
	if err := d.spendRefusal(); err != nil {
		return err
	}
	a := &d.account
	if a.OpenReservations >= d.rules.MaxOpenReservations {
		return ErrTooManyReservations
	}
	hold := Reservation{
		ID: c.ReservationID, Status: ReservationOpen, Period: a.GrantedPeriod, Metadata: c.Metadata,
		CreatedAt: d.at, ExpiresAt: d.at.Add(c.ttl()),
	}
	if !d.tier().Unlimited {
		if c.Tokens > a.TokensRemaining {
			return d.shortage(c.Tokens)
		}
		hold.Tokens = c.Tokens
		a.spend(c.Tokens)
		a.Reserved += c.Tokens
	}
	a.OpenReservations++
	d.expireBy(hold.ExpiresAt)
	d.other = &hold
	if hold.Tokens > 0 || c.IdempotencyKey != "" {
		d.recordCommand(c, Entry{ReservationID: &hold.ID})
	}
	return nil
}

// expireBy makes sure that the account is touched when a hold runs out.
func (d *draft) expireBy(expiry time.Time) {
	if next := d.account.NextHoldExpiry; next == nil || expiry.Before(*next) {
		d.account.NextHoldExpiry = &expiry
	}
}

// Extend moves the expiry of an open reservation (rule 8). Refusals: [ErrValidation], [ErrReservationNotFound],
// [ErrReservationClosed].
type Extend struct {
	ReservationID string
	// TTL is how long it is held from now on, MinHold to MaxHold, but no longer than MaxHold after it was made.
	TTL time.Duration
	Meta
}

// Kind implements [Command].
func (Extend) Kind() EntryKind { return KindExtend }

func (c Extend) names(ref *Ref, _ Rules) { ref.ReservationID = c.ReservationID }

func (c Extend) validate(Rules) error { return checkHold(c.TTL) }
func (Extend) find(s State) error     { return s.findReservation() }

func (c Extend) identity() []any {
	return []any{"extend", c.ReservationID, c.TTL.Milliseconds()}
}

func (c Extend) apply(d *draft) error {
	h := d.namedReservation()
	if h.Status != ReservationOpen || h.due(d.at) {
		return ErrReservationClosed
	}
	h.ExpiresAt = d.at.Add(c.TTL)
	if latest := h.CreatedAt.Add(MaxHold); h.ExpiresAt.After(latest) {
		h.ExpiresAt = latest
	}
	d.expireBy(h.ExpiresAt)
	d.keepReservation(h)
	if c.IdempotencyKey != "" {
		d.recordCommand(c, Entry{ReservationID: &h.ID})
	}
	return nil
}

// Settle closes a reservation with the true cost (rule 8). A cost beyond what was held is taken from the balance as far
// as it goes; what is then missing is the reservation's Shortfall. One that has expired is charged like that in whole.
// Refusals: [ErrValidation], [ErrReservationNotFound], [ErrReservationClosed]. Settled again with the same cost nothing
// changes.
type Settle struct {
	ReservationID string
	// TokensUsed is the cost, 0 to MaxTokens; it may be less or more than what is held.
	TokensUsed int64
	Meta
}

// Kind implements [Command].
func (Settle) Kind() EntryKind { return KindSettle }

func (c Settle) names(ref *Ref, _ Rules) { ref.ReservationID = c.ReservationID }

func (c Settle) validate(Rules) error {
	if c.TokensUsed < 0 || c.TokensUsed > MaxTokens {
		return invalid("tokens_used", fmt.Sprintf("must be from 0 to %d", MaxTokens))
	}
	return nil
}

func (Settle) find(s State) error { return s.findReservation() }
func (c Settle) identity() []any  { return []any{"settle", c.ReservationID, c.TokensUsed} }

func (c Settle) apply(d *draft) error {
	h := d.namedReservation()
	switch {
	case h.Status == ReservationOpen:
	case h.Status == ReservationExpired && d.at.Sub(h.ExpiresAt) <= LateSettle:
		h.Late = true
	case h.Status == ReservationSettled && *h.TokensUsed == c.TokensUsed:
		d.repeated = true
		return nil
	default:
		return ErrReservationClosed
	}
	cost := c.TokensUsed
	if h.Tokens == 0 { // a hold made while unlimited settles for nothing
		cost = 0
	}
	a := &d.account
	var paid, more int64
	if !h.Late {
		paid = min(cost, h.Tokens)
		d.endHold(&h, h.Tokens-paid)
	}
	if !d.tier().Unlimited {
		more = min(cost-paid, a.TokensRemaining)
		h.Shortfall = cost - paid - more
		a.spend(more)
	}
	h.Charged, h.TokensUsed = paid+more, &c.TokensUsed
	a.TokensUsed += h.Charged
	d.closeReservation(&h, ReservationSettled)
	d.keepReservation(h)
	if h.Tokens > 0 || c.IdempotencyKey != "" {
		d.recordCommand(c, Entry{ReservationID: &h.ID, TokensCharged: h.Charged})
	}
	return nil
}

// Release closes a reservation whose call was not made (rule 8). Refusals: [ErrReservationNotFound],
// [ErrReservationClosed]. Released again nothing changes.
type Release struct {
	ReservationID string
	Meta
}

// Kind implements [Command].
func (Release) Kind() EntryKind { return KindRelease }

func (c Release) names(ref *Ref, _ Rules) { ref.ReservationID = c.ReservationID }

func (Release) find(s State) error { return s.findReservation() }
func (c Release) identity() []any  { return []any{"release", c.ReservationID} }

func (c Release) apply(d *draft) error {
	h := d.namedReservation()
	open := h.Status == ReservationOpen
	switch {
	case open:
		d.endHold(&h, h.Tokens)
	case h.Status == ReservationExpired: // its tokens are back
	case h.Status == ReservationReleased:
		d.repeated = true
		return nil
	default:
		return ErrReservationClosed
	}
	d.closeReservation(&h, ReservationReleased)
	d.keepReservation(h)
	if open && h.Tokens > 0 || c.IdempotencyKey != "" {
		d.recordCommand(c, Entry{ReservationID: &h.ID})
	}
	return nil
}

func (s State) findReservation() error {
	if s.Reservation == nil {
		return ErrReservationNotFound
	}
	return nil
}

// namedReservation returns the reservation that the command names, as the touch has left it.
func (d *draft) namedReservation() Reservation {
	h := *d.state.Reservation
	if i := d.holdIndex(h.ID); i >= 0 {
		return d.holds[i]
	}
	d.conversion.Convert(&h)
	return h
}

// keepReservation keeps what has become of the reservation that the command names.
func (d *draft) keepReservation(h Reservation) {
	if i := d.holdIndex(h.ID); i >= 0 {
		d.holds[i], d.changed[i] = h, true
		return
	}
	d.other = &h
}

func (d *draft) holdIndex(id string) int {
	return slices.IndexFunc(d.holds, func(h Reservation) bool { return h.ID == id })
}

// expireHold returns what a hold of the draft holds, for its time has come or nobody is to use it any more.
func (d *draft) expireHold(i int, m Meta) {
	h := &d.holds[i]
	d.endHold(h, h.Tokens)
	d.closeReservation(h, ReservationExpired)
	d.changed[i] = true
	if h.Tokens > 0 { // a hold made while unlimited holds nothing, so there is nothing to explain
		d.record(m.entry(Entry{Kind: KindExpire, ReservationID: &h.ID}))
	}
}

// endHold takes an open reservation out of what the account holds and returns the rest that was not charged.
func (d *draft) endHold(h *Reservation, rest int64) {
	a := &d.account
	before := a.TokensRemaining
	if h.Period == a.GrantedPeriod {
		a.giveBack(rest)
	} else {
		a.giveBackCarried(rest)
	}
	h.Returned = a.TokensRemaining - before
	a.Reserved -= h.Tokens
	a.CarriedTopUps = min(a.CarriedTopUps, a.Reserved)
	if a.OpenReservations = max(0, a.OpenReservations-1); a.OpenReservations == 0 {
		a.NextHoldExpiry = nil
	}
}

func (d *draft) closeReservation(h *Reservation, status ReservationStatus) {
	at := d.at
	h.Status, h.ClosedAt = status, &at
}
