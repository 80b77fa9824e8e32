package user

import (
	"bytes"
	"slices"
	"time"
)

// Rules are the token rules of product.md §3 for one configuration. They do no I/O and read no clock: every method
// is a function of the state, the command and the instant that it is given, and changes none of its arguments.
//
// Methods that return a change and a refusal (an [*Error]) together mean that the change, the touch that came before
// the command, is to be kept although the command was refused. [ErrHoldsNeeded] asks to be called again with the
// holds loaded; nothing is to be kept then.
type Rules struct {
	Tiers Catalogue
	// ResetZone is the time zone whose calendar months are the periods of the monthly reset.
	ResetZone *time.Location
}

// Touch returns due holds and begins the month's term if that has not been done yet (product.md §3.5).
func (r Rules) Touch(s State, now time.Time) (Change, error) {
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	return d.change(), nil
}

// Open makes a new account on the free tier. What that tier grants, if anything, is explained by an opening entry.
func (r Rules) Open(n NewAccount, now time.Time) Change {
	info, _ := r.Tiers.Lookup(TierFree)
	d := r.draft(State{Account: Account{
		ID: n.ID, Username: n.Username, Email: n.Email,
		Tier: TierFree, SubscriptionStatus: StatusActive, Active: true, Adopted: true,
	}}, now)
	at := d.at
	d.account.LastReset, d.account.CreatedAt, d.account.UpdatedAt = &at, at, at
	if info.Allowance > 0 {
		d.account.TokensRemaining = info.Allowance
		d.record(Entry{Kind: KindOpening})
	}
	return d.change()
}

// Read returns the account as a read at now shows it, and whether it must be touched first. A reset that would
// change nothing is left to the account's next command.
func (r Rules) Read(a Account, now time.Time) (read Account, stale bool) {
	d := r.draft(State{Account: a}, now)
	read = d.account
	idle := d.allowance() == 0 && read.TokensUsed == 0 && read.NextHoldExpiry == nil && read.TokensRemaining == read.TopUpsLeft()
	return read, d.holdDue() || d.resetDue() && !idle
}

// Consume charges tokens (product.md §3.1). Refusals: [ErrValidation], [ErrKeyReused], [ErrUserInactive],
// [ErrSubscriptionInactive], [ErrInsufficientTokens]. Where the state has the entry of an earlier command under the
// same key, and it is the same command, nothing is charged and there is no new entry.
func (r Rules) Consume(s State, c Consume, now time.Time) (Change, error) {
	if err := checkAmount("tokens_to_consume", c.Tokens); err != nil {
		return Change{}, err
	}
	d := r.draft(s, now)
	if d.resetDue() {
		if err := d.touch(); err != nil {
			return Change{}, err
		}
	}
	if replayed, err := d.replay(c.hash()); replayed || err != nil {
		return d.change(), err
	}
	if err := d.mayspend(); err != nil {
		return d.change(), err
	}
	if d.tier().Unlimited {
		return d.change(), nil
	}
	// Only a consume that is short of tokens pays for looking at holds (product.md §3.8).
	if c.Tokens > d.account.TokensRemaining {
		if err := d.expireHolds(); err != nil {
			return Change{}, err
		}
	}
	if c.Tokens > d.account.TokensRemaining {
		return d.change(), d.shortage(c.Tokens)
	}
	d.account.TokensRemaining -= c.Tokens
	d.account.TokensUsed += c.Tokens
	d.record(c.entry(Entry{Kind: KindConsume, TokensCharged: c.Tokens, CommandHash: c.hash()}))
	return d.change(), nil
}

// AddTokens tops up (product.md §3.7). Refusals: [ErrValidation], [ErrKeyReused], [ErrBalanceOverflow]. Repeated
// under the same key it adds nothing, as with Consume.
func (r Rules) AddTokens(s State, c AddTokens, now time.Time) (Change, error) {
	if err := checkAmount("tokens_to_add", c.Tokens); err != nil {
		return Change{}, err
	}
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	if replayed, err := d.replay(c.hash()); replayed || err != nil {
		return d.change(), err
	}
	a := &d.account
	if a.TokensRemaining+a.Reserved+a.TokensUsed+c.Tokens > MaxTokens {
		return d.change(), ErrBalanceOverflow
	}
	a.TokensRemaining += c.Tokens
	a.TopUps += c.Tokens
	d.record(c.entry(Entry{Kind: KindTopUp, CommandHash: c.hash()}))
	return d.change(), nil
}

// ChangeTier begins a term on another tier; to the same tier it only sets the renewal date (product.md §3.6).
// Refusal: [ErrInvalidTier].
func (r Rules) ChangeTier(s State, c ChangeTier, now time.Time) (Change, error) {
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	if _, known := r.Tiers.Lookup(c.Tier); !known {
		return d.change(), ErrInvalidTier
	}
	a := &d.account
	from, renewed := a.Tier, !sameInstant(a.RenewalDate, c.RenewalDate)
	a.Tier, a.RenewalDate = c.Tier, c.RenewalDate
	by := Meta{Actor: c.Actor}
	if from != c.Tier {
		by.Metadata = map[string]string{"from_tier": string(from), "to_tier": string(c.Tier)}
		if err := d.beginTerm(by.entry(Entry{Kind: KindTierChange})); err != nil {
			return Change{}, err
		}
	} else if renewed {
		by.Metadata = map[string]string{"fields": "subscription_renewal_date"}
		d.record(by.entry(Entry{Kind: KindProfileChange}))
	}
	return d.change(), nil
}

// Status answers "may this user make a request?" for an account that has been touched.
func (r Rules) Status(a Account, now time.Time) Status {
	d := r.draft(State{Account: a}, now)
	s := Status{Account: d.account, Tier: d.tier(), NextResetAt: r.nextReset(d.at)}
	if err := d.mayspend(); err != nil {
		s.Reason = err.Code
	} else if !s.Tier.Unlimited && d.account.TokensRemaining == 0 {
		s.Reason = CodeInsufficientTokens
	}
	return s
}

// Status is what a backend needs to know before it makes a request for a user (product.md §3.2).
type Status struct {
	Account Account
	Tier    TierInfo
	// Reason is empty when the user may make a request, else the code with which the smallest consume would be refused.
	Reason Code
	// NextResetAt is the first instant of the next period.
	NextResetAt time.Time
}

// period numbers the calendar months of the reset time zone.
func (r Rules) period(t time.Time) int {
	year, month, _ := t.In(r.ResetZone).Date()
	return 12*year + int(month)
}

// nextReset is the first instant of the period after t's.
func (r Rules) nextReset(t time.Time) time.Time {
	year, month, _ := t.In(r.ResetZone).Date()
	return r.dayStart(year, month+1, 1)
}

// dayStart is the first instant of a day in the reset time zone. Where clocks change at midnight that is neither
// always 00:00 nor what time.Date picks: midnight may not exist, or come twice.
func (r Rules) dayStart(year int, month time.Month, day int) time.Time {
	t := time.Date(year, month, day, 0, 0, 0, 0, r.ResetZone)
	candidates := []time.Time{t}
	if since, until := t.ZoneBounds(); !since.IsZero() {
		_, offset := t.Zone()
		_, before := since.Add(-1).Zone()
		earlier := t.Add(time.Duration(offset-before) * time.Second) // the same wall clock before the last change
		candidates = []time.Time{earlier, t, since, until}
	}
	wanted := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	for _, c := range candidates {
		if !civil(c, r.ResetZone).Before(wanted) && civil(c.Add(-1), r.ResetZone).Before(wanted) {
			return c.UTC()
		}
	}
	return t.UTC()
}

// civil is the date of t in a zone, as midnight UTC.
func civil(t time.Time, zone *time.Location) time.Time {
	year, month, day := t.In(zone).Date()
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

// draft is one account on its way through an update. Nothing keeps a pointer into it, so that it need not be on the
// heap.
type draft struct {
	rules   Rules
	state   State
	at      time.Time
	account Account
	// opening is the entry that explains the balance of an account that is being adopted; it is written before the
	// first other entry, and not at all when there is none.
	opening *Entry
	entries []Entry
	// balance is TokensRemaining after the last entry.
	balance int64
	// holds are the account's open reservations by expiry, and changed has the ids of those that the update changed.
	holds   []Reservation
	changed map[string]bool
	// termBegun is true once the update has begun a term.
	termBegun bool
	// made is the reservation that the update makes.
	made *Reservation
}

func (r Rules) draft(s State, now time.Time) draft {
	d := draft{rules: r, state: s, at: now.UTC().Truncate(time.Microsecond)}
	if last := s.Account.LastReset; last != nil && d.at.Before(*last) {
		d.at = *last // the clock stepped back: time does not (product.md §3.5)
	}
	d.account = s.Account
	d.account = d.account.adopt(d.allowance())
	d.balance = d.account.TokensRemaining
	if a := d.account; !s.Account.Adopted && (a.TokensRemaining != 0 || a.TokensUsed != 0) {
		d.opening = &Entry{
			Kind: KindOpening, Amount: a.TokensRemaining, BalanceAfter: a.TokensRemaining, UsedAfter: a.TokensUsed, CreatedAt: d.at,
		}
	}
	d.holds = byExpiry(s.Holds)
	if len(d.holds) > 0 {
		d.changed = map[string]bool{}
	}
	return d
}

// change is what the draft comes to.
func (d *draft) change() Change {
	c := Change{Account: d.account, Entries: d.entries}
	var open []Reservation
	for _, h := range d.holds {
		if d.changed[h.ID] {
			c.Reservations = append(c.Reservations, h)
		}
		if h.Status == ReservationOpen {
			open = append(open, h)
		}
	}
	if len(c.Reservations) > 0 {
		c.Account.NextHoldExpiry = nil
		if len(open) > 0 {
			c.Account.NextHoldExpiry = &open[0].ExpiresAt
		}
	}
	if d.made != nil {
		c.Reservations = append(c.Reservations, *d.made)
		if next := c.Account.NextHoldExpiry; next == nil || d.made.ExpiresAt.Before(*next) {
			c.Account.NextHoldExpiry = &d.made.ExpiresAt
		}
	}
	if !c.Empty() {
		c.Account.UpdatedAt = d.at
		if d.opening != nil { // a hold of nothing adopts the account without an entry of its own
			c.Entries = []Entry{*d.opening}
		}
	}
	return c
}

// record appends e as the entry for what has changed in the account since the last one.
func (d *draft) record(e Entry) {
	if d.opening != nil {
		d.entries, d.opening = append(d.entries, *d.opening), nil
	}
	e.Amount = d.account.TokensRemaining - d.balance
	e.BalanceAfter, e.UsedAfter, e.CreatedAt = d.account.TokensRemaining, d.account.TokensUsed, d.at
	d.balance = d.account.TokensRemaining
	d.entries = append(d.entries, e)
}

func (d *draft) tier() TierInfo {
	info, _ := d.rules.Tiers.Lookup(d.account.Tier)
	return info
}

func (d *draft) allowance() int64 { return d.tier().Allowance }

func (d *draft) resetDue() bool {
	last := d.account.LastReset
	return last == nil || d.rules.period(*last) < d.rules.period(d.at)
}

func (d *draft) holdDue() bool {
	next := d.account.NextHoldExpiry
	return next != nil && !d.at.Before(*next)
}

// touch returns due holds, then begins the month's term: a hold that ran out is returned in the term it was in.
func (d *draft) touch() error {
	if err := d.expireHolds(); err != nil {
		return err
	}
	if !d.resetDue() {
		return nil
	}
	return d.beginTerm(Entry{Kind: KindMonthlyReset})
}

// expireHolds returns the holds that have run out, earliest first.
func (d *draft) expireHolds() error {
	if !d.holdDue() {
		return nil
	}
	if !d.state.HoldsLoaded {
		return ErrHoldsNeeded
	}
	for i := range d.holds {
		if h := &d.holds[i]; h.due(d.at) {
			d.close(h, ReservationExpired, h.Tokens, Entry{Kind: KindExpire})
		}
	}
	return nil
}

// beginTerm grants the tier's allowance afresh; the old one lapses and top-ups stay (product.md §3.4). Top-ups that
// are not in the balance were spent or are held: they are laid on the holds of the term that ends.
func (d *draft) beginTerm(e Entry) error {
	a := &d.account
	if a.NextHoldExpiry != nil && !d.state.HoldsLoaded {
		return ErrHoldsNeeded
	}
	left := a.TopUpsLeft()
	gone := a.TopUps - left
	for i := range d.holds {
		h := &d.holds[i]
		if h.Status != ReservationOpen || h.Carried {
			continue
		}
		h.Carried, h.TopUp = true, min(gone, h.Tokens)
		gone -= h.TopUp
		d.changed[h.ID] = true
	}
	d.termBegun = true
	a.TopUps = left
	a.TokensUsed = 0
	a.TokensRemaining = left + min(d.allowance(), MaxTokens-a.Reserved-left)
	at := d.at
	a.LastReset = &at
	d.record(e)
	return nil
}

// replay reports whether the command with this hash is the one already done under the update's key. Another command
// under the same key is refused.
func (d *draft) replay(hash []byte) (bool, error) {
	prior := d.state.Prior
	if prior == nil {
		return false, nil
	}
	if !bytes.Equal(prior.CommandHash, hash) {
		return false, ErrKeyReused
	}
	return true, nil
}

// mayspend refuses for an account that may not make requests whatever its balance (product.md §3.2).
func (d *draft) mayspend() *Error {
	switch {
	case !d.account.Active:
		return ErrUserInactive
	case !slices.Contains([]SubscriptionStatus{StatusActive, StatusTrialing}, d.account.SubscriptionStatus):
		return ErrSubscriptionInactive
	}
	return nil
}

func (d *draft) shortage(required int64) error {
	e := *ErrInsufficientTokens
	e.Shortage = &Shortage{
		TokensRemaining: d.account.TokensRemaining, TokensRequired: required, NextResetAt: d.rules.nextReset(d.at),
	}
	return &e
}

// entry fills in what the command carries beside its amounts.
func (m Meta) entry(e Entry) Entry {
	e.Metadata = m.Metadata
	if m.IdempotencyKey != "" {
		e.IdempotencyKey = &m.IdempotencyKey
	}
	if m.Actor != "" {
		e.Actor = &m.Actor
	}
	return e
}

func sameInstant(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}
