package user

import (
	"fmt"
	"slices"
	"time"
)

// Rules are the token rules of this package's README for one configuration. They do no I/O and read no clock: every
// method is a function of what it is given, and changes none of its arguments.
type Rules struct {
	Tiers Catalogue
	// ResetZone is the time zone whose calendar months are the periods of the monthly reset.
	ResetZone *time.Location
	// MaxOpenReservations is the most open reservations of one account, at least 1.
	MaxOpenReservations int64
	// RefundMaxAge is how old a charge may be to be refunded.
	RefundMaxAge time.Duration
	// Grace is how long after its renewal date a subscription can still be spent from; nil for ever.
	Grace *time.Duration
	// LowBalancePercent is the share of the allowance, 0 to 100, at which a balance counts as low.
	LowBalancePercent int64
}

// Defaults of the settings above.
const (
	DefaultMaxOpenReservations = 1000
	DefaultRefundMaxAge        = 90 * 24 * time.Hour
	DefaultLowBalancePercent   = 20
)

// Ref names what [Rules.Apply] has to see of the account with this id to carry the command out.
func (r Rules) Ref(accountID string, c Command) Ref {
	ref := Ref{AccountID: accountID, IdempotencyKey: c.meta().IdempotencyKey}
	c.names(&ref, r)
	return ref
}

// NewRules returns the rules for a catalogue and a reset zone with the defaults of all other settings.
func NewRules(tiers Catalogue, zone *time.Location) Rules {
	return Rules{
		Tiers: tiers, ResetZone: zone, MaxOpenReservations: DefaultMaxOpenReservations, RefundMaxAge: DefaultRefundMaxAge,
		LowBalancePercent: DefaultLowBalancePercent,
	}
}

// Apply carries a command out on an account: it returns due holds, begins the month when that has not been done yet,
// and then does what the command asks for, or refuses with an [*Error]. A change that comes with a refusal is to be kept
// all the same. A command whose key is stored already changes nothing more; with another command under the same key it
// is refused with [ErrKeyReused].
func (r Rules) Apply(s State, c Command) (Change, error) {
	if err := s.Account.accessible(); err != nil {
		return Change{}, err
	}
	if err := c.validate(r); err != nil {
		return Change{}, err
	}
	d := r.draft(s)
	d.touch()
	if err := c.find(s); err != nil {
		return d.change(), err
	}
	if s.Prior != nil {
		if !sameCommand(c, *s.Prior) {
			return d.change(), ErrKeyReused
		}
		d.repeated = true
		return d.change(), nil
	}
	if err := c.apply(&d); err != nil {
		return d.change(), err
	}
	// A key lives as long as the entry that it is stored with, so there is one also where nothing changed (rule 11).
	if c.meta().IdempotencyKey != "" && !d.recorded && !d.repeated {
		d.recordCommand(c, Entry{})
	}
	return d.change(), d.account.check()
}

// Touch returns due holds and begins the month if that has not been done yet (rules 4 and 8).
type Touch struct{ Meta }

// Kind implements [Command]: what a touch changes has entries of other kinds.
func (Touch) Kind() EntryKind { return "" }

func (Touch) identity() []any    { return nil }
func (Touch) apply(*draft) error { return nil }

// Read returns the account as a read at now shows it, and whether it must be touched first. A reset that would
// change nothing is left to the account's next command.
func (r Rules) Read(a Account, now time.Time) (read Account, stale bool) {
	if a.SideRow == EarlierSideRow { // what its top-ups are depends on its reservations
		return a, true
	}
	d := r.draft(State{Account: a, Now: now})
	read = d.account
	idle := d.allowance() == 0 && read.Allowance == 0 && read.TokensUsed == 0 && read.TopUpsUsed == 0 &&
		read.AllowanceExcess == 0 && read.Reserved == 0 && read.TokensRemaining == read.TopUps
	return read, d.holdDue() || d.resetDue() && !idle
}

// Status answers "may this user make a request?" for an account that has been touched.
func (r Rules) Status(a Account, now time.Time) Status {
	d := r.draft(State{Account: a, Now: now})
	s := Status{Account: d.account, Tier: d.tier(), LowBalance: r.LowBalance(d.account), NextResetAt: d.nextAllowance()}
	if err := d.spendRefusal(); err != nil {
		s.Reason = CodeOf(err)
	} else if !s.Tier.Unlimited && d.account.TokensRemaining == 0 {
		s.Reason = CodeInsufficientTokens
	}
	return s
}

// Status is what a backend needs to know before it makes a request for a user (rule 3).
type Status struct {
	Account Account
	Tier    TierInfo
	// Reason is empty when the user may make a request, else the code with which the smallest consume would be refused.
	Reason Code
	// LowBalance says that the balance is worth a warning; see [Rules.LowBalance].
	LowBalance bool
	// NextResetAt is the first instant of the next period; nil where it brings no tokens.
	NextResetAt *time.Time
}

// LowBalance reports whether the balance of an account has come down to LowBalancePercent of its allowance, or to 0. That
// of an unlimited one never has.
func (r Rules) LowBalance(a Account) bool {
	if tier, _ := r.Tiers.Lookup(a.Tier); tier.Unlimited {
		return false
	}
	return a.TokensRemaining == 0 || 100*a.TokensRemaining <= r.LowBalancePercent*a.Allowance
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
	// balance and topUps are R and T after the last entry.
	balance, topUps int64
	// holds are State.Holds as the update leaves them, and changed says which of them differ.
	holds   []Reservation
	changed []bool
	// other is the reservation that the update makes, or changes without having found it among the holds.
	other *Reservation
	// recorded is true once the command has its own entry.
	recorded bool
	// repeated is true when the command has been done before, under whatever key.
	repeated bool
	// conversion is set when the account's side row was of the earlier form.
	conversion *Conversion
	// pseudonym is where the account is moved to; empty when it stays.
	pseudonym string
}

func (r Rules) draft(s State) draft {
	d := draft{rules: r, state: s, at: s.Now.UTC().Truncate(time.Microsecond), account: s.Account}
	if s.Account.SideRow == NoSideRow && s.Totals != nil {
		d.account.holdAsIn(*s.Totals)
	}
	d.account.clamp()
	switch s.Account.SideRow {
	case NoSideRow:
		d.adopt()
	case EarlierSideRow:
		d.convert()
	default:
		d.balance, d.topUps = d.account.TokensRemaining, s.Account.TopUps
	}
	if s.OpenCount != nil {
		d.account.OpenReservations = *s.OpenCount
	}
	if len(s.Holds) > 0 {
		d.holds, d.changed = slices.Clone(s.Holds), make([]bool, len(s.Holds))
		for i := range d.holds {
			d.conversion.Convert(&d.holds[i])
		}
	}
	return d
}

// change is what the draft comes to.
func (d *draft) change() Change {
	c := Change{Account: d.account, Entries: d.entries, Recorded: d.recorded, Repeated: d.repeated, Conversion: d.conversion, Pseudonym: d.pseudonym}
	for i, h := range d.holds {
		if d.changed[i] {
			c.Reservations = append(c.Reservations, h)
		}
	}
	if d.other != nil {
		c.Reservations = append(c.Reservations, *d.other)
	}
	c.SideRow = d.conversion != nil || !sameInstant(d.state.Account.NextHoldExpiry, d.account.NextHoldExpiry)
	if !c.Empty() && d.opening != nil { // a hold of nothing adopts the account without an entry of its own
		c.Entries = append([]Entry{*d.opening}, c.Entries...)
	}
	if len(c.Entries) > 0 || len(c.Reservations) > 0 || c.Pseudonym != "" {
		c.Account.UpdatedAt = d.at
	}
	return c
}

// record appends e as the entry for what has changed in the account since the last one.
func (d *draft) record(e Entry) {
	if d.opening != nil {
		d.entries, d.opening = append(d.entries, *d.opening), nil
	}
	d.entries = append(d.entries, d.next(e))
	d.balance, d.topUps = d.account.TokensRemaining, d.account.TopUps
}

// next completes an entry for what has changed in the account since the last one.
func (d *draft) next(e Entry) Entry {
	a := &d.account
	topUps, period := a.TopUps-d.topUps, a.GrantedPeriod
	e.Amount, e.TopUpsAmount, e.Period = a.TokensRemaining-d.balance, &topUps, &period
	e.BalanceAfter, e.UsedAfter, e.CreatedAt = a.TokensRemaining, a.TokensUsed, d.at
	return e
}

// recordCommand appends the command's own entry, which is its last.
func (d *draft) recordCommand(c Command, e Entry) {
	m := c.meta()
	if e.Kind == "" {
		e.Kind = c.Kind()
	}
	if m.IdempotencyKey != "" {
		e.CommandHash = identityHash(c.identity())
	}
	d.record(m.entry(e))
	d.recorded = true
}

func (d *draft) tier() TierInfo {
	info, _ := d.rules.Tiers.Lookup(d.account.Tier)
	return info
}

// allowance is what the tier grants: 0 for unlimited, undefined and unknown tiers.
func (d *draft) allowance() int64 { return d.tier().Allowance }

func (d *draft) resetDue() bool { return d.rules.period(d.at) > d.account.GrantedPeriod }

func (d *draft) holdDue() bool {
	next := d.account.NextHoldExpiry
	return next != nil && !d.at.Before(*next)
}

// touch returns due holds, then begins the month: a hold that ran out in the month before is returned in it.
func (d *draft) touch() {
	d.expireHolds()
	if d.resetDue() {
		d.reset()
	}
}

// expireHolds returns the holds that have run out, earliest first. Where there are more of them than the state has,
// the account's next touches go on.
func (d *draft) expireHolds() {
	if !d.holdDue() {
		return
	}
	for i := range d.holds {
		if d.holds[i].due(d.at) {
			d.expireHold(i, Meta{})
		}
	}
	d.boundExpiry()
}

// boundExpiry sets NextHoldExpiry right once all due holds of the state have been returned.
func (d *draft) boundExpiry() {
	a := &d.account
	switch open := slices.IndexFunc(d.holds, func(h Reservation) bool { return h.Status == ReservationOpen }); {
	case a.OpenReservations == 0:
		a.NextHoldExpiry = nil
	case open >= 0:
		expiry := d.holds[open].ExpiresAt // of its own: the command may move that of the hold
		a.NextHoldExpiry = &expiry
	case d.state.MoreHolds:
		// It stays due: those that are left have run out, or may have.
	default:
		a.NextHoldExpiry = d.state.NextExpiry
	}
}

// reset grants the tier's allowance for the month (rule 4): what is left of the old one lapses, top-ups stay, and those
// that open reservations hold come back as such.
func (d *draft) reset() {
	a := &d.account
	if d.conversion != nil { // what was carried so far is carried on
		a.TopUpsUsed += a.CarriedTopUps
	}
	a.CarriedTopUps = min(a.Reserved, a.TopUpsUsed)
	a.TopUpsUsed, a.AllowanceExcess, a.TokensUsed = 0, 0, 0
	a.Allowance = min(d.allowance(), MaxTokens-a.Reserved-a.TopUps)
	a.TokensRemaining = a.Allowance + a.TopUps
	a.GrantedPeriod = d.rules.period(d.at)
	at := d.at
	a.LastReset = &at
	d.record(Entry{Kind: KindMonthlyReset})
}

// spendRefusal is why the account may not spend, whatever its balance; nil if it may (rules 3 and 7).
func (d *draft) spendRefusal() error {
	a := &d.account
	switch {
	case !a.Active:
		return ErrUserInactive
	case a.SubscriptionStatus != StatusActive && a.SubscriptionStatus != StatusTrialing:
		return ErrSubscriptionInactive
	case d.lapsed():
		return ErrSubscriptionLapsed
	}
	return nil
}

// lapsed reports whether the subscription should have been renewed by now.
func (d *draft) lapsed() bool {
	a := &d.account
	if d.rules.Grace == nil || a.RenewalDate == nil || a.Tier == TierFree || d.tier().Unlimited {
		return false
	}
	return !a.RenewalDate.Add(*d.rules.Grace).After(d.at)
}

// nextAllowance is when the next tokens come; nil where none will.
func (d *draft) nextAllowance() *time.Time {
	if d.allowance() == 0 {
		return nil
	}
	next := d.rules.nextReset(d.at)
	return &next
}

func (d *draft) shortage(required int64) error {
	s := Shortage{TokensRemaining: d.account.TokensRemaining, TokensRequired: required, NextResetAt: d.nextAllowance()}
	e := *ErrInsufficientTokens
	e.Shortage, e.Detail = &s, s.detail()
	return &e
}

// detail says in words how many tokens are missing and when more come.
func (s Shortage) detail() string {
	text := fmt.Sprintf("Insufficient tokens: %d required, %d remaining, %d missing.",
		s.TokensRequired, s.TokensRemaining, s.TokensRequired-s.TokensRemaining)
	if s.NextResetAt != nil {
		text += fmt.Sprintf(" The next monthly allowance comes at %s.", s.NextResetAt.UTC().Format(time.RFC3339))
	}
	return text
}

func sameInstant(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}
