package user

import "time"

// EntryKind says what a ledger entry records (rule 12).
type EntryKind string

// The kinds of entries. Reserve, extend, settle, release and expire name their reservation, refund the charge.
const (
	KindOpening       EntryKind = "opening"
	KindConsume       EntryKind = "consume"
	KindTopUp         EntryKind = "top_up"
	KindMonthlyReset  EntryKind = "monthly_reset"
	KindTierChange    EntryKind = "tier_change"
	KindReserve       EntryKind = "reserve"
	KindExtend        EntryKind = "extend"
	KindSettle        EntryKind = "settle"
	KindRelease       EntryKind = "release"
	KindExpire        EntryKind = "expire"
	KindRefund        EntryKind = "refund"
	KindProfileChange EntryKind = "profile_change"
)

// EntryKinds lists every kind.
func EntryKinds() []EntryKind {
	return []EntryKind{
		KindOpening, KindConsume, KindTopUp, KindMonthlyReset, KindTierChange, KindReserve, KindExtend, KindSettle,
		KindRelease, KindExpire, KindRefund, KindProfileChange,
	}
}

// Entry is one append-only row of the ledger: what changed an account, by how many tokens, and its counters after
// it. Entries of an account are ordered by their ids.
type Entry struct {
	// ID is given by the store; 0 before that. It rises within an account.
	ID   int64
	Kind EntryKind
	// Amount is the signed change of the balance R.
	Amount int64
	// BalanceAfter and UsedAfter are R and U after the entry.
	BalanceAfter int64
	UsedAfter    int64
	// TokensCharged and TokensRefunded are what the entry charged and gave back of an earlier charge, 0 or more.
	TokensCharged  int64
	TokensRefunded int64
	// TopUpsAmount is the signed change of the top-ups T; nil in entries of the earlier version.
	TopUpsAmount *int64
	// Period is the account's granted period when the entry was written; nil in entries of the earlier version.
	Period *int
	// Changes says what else changed; nil when nothing did.
	Changes         Changes
	ReservationID   *string
	RefundedEntryID *int64
	// IdempotencyKey and CommandHash are those of the command that wrote the entry; see [Meta].
	IdempotencyKey *string
	CommandHash    []byte
	Metadata       map[string]string
	// Actor is the caller's name, when known.
	Actor     *string
	CreatedAt time.Time
}

// earlier reports whether the entry was written by the version that did not know of periods.
func (e Entry) earlier() bool { return e.TopUpsAmount == nil }

// EndsPeriod reports whether what was charged before the entry is of an earlier period of the account's books than what
// is charged after it. The earlier version began a term with each change of tier, too (rule 10).
func (e Entry) EndsPeriod() bool {
	return e.Kind == KindMonthlyReset || e.Kind == KindOpening || e.Kind == KindTierChange && e.earlier()
}

// PeriodEnds lists the kinds of which an entry can end a period; see [Entry.EndsPeriod].
func PeriodEnds() []EntryKind { return []EntryKind{KindMonthlyReset, KindOpening, KindTierChange} }

// Changes are the columns of an account that an entry records a change of, by name.
type Changes map[string]FieldChange

// FieldChange is what a column was and became. Both are nil for a name or an address, of which the ledger says only that
// it changed.
type FieldChange struct {
	From any `json:"from,omitempty"`
	To   any `json:"to,omitempty"`
}

// EntryQuery selects entries of one account, newest first.
type EntryQuery struct {
	// Kind limits to one kind; empty takes all.
	Kind EntryKind
	// Since (inclusive) and Until (exclusive) limit by the entry's instant; zero means unbounded.
	Since, Until time.Time
	// Before limits to entries with smaller ids; 0 starts with the newest.
	Before int64
	// Limit is the most entries to return, at least 1.
	Limit int
}

// Charge is a consume or settle entry as a refund has to see it.
type Charge struct {
	Entry Entry
	// Refunded is what refunds of it have given back so far.
	Refunded int64
	// Ended is true when an entry that ends its period came after it; see [Entry.EndsPeriod].
	Ended bool
	// Reservation is the one that a settle entry settled; nil for a consume.
	Reservation *Reservation
}

// Follow takes note of an entry that was written after the charge was read.
func (c *Charge) Follow(e Entry) {
	if e.EndsPeriod() {
		c.Ended = true
	}
	if e.RefundedEntryID != nil && *e.RefundedEntryID == c.Entry.ID {
		c.Refunded += e.TokensRefunded
	}
}

// left is what can still be refunded.
func (c Charge) left() int64 { return c.Entry.TokensCharged - c.Refunded }

// inPeriod reports whether the charge is of the account's granted period (rule 10).
func (c Charge) inPeriod(granted int) bool {
	return !c.Ended && (c.Entry.Period == nil || *c.Entry.Period == granted)
}

// ownLeft is what of the charge was paid by its period's own allowance and top-ups and has not been refunded: they come
// before what a hold of an earlier period paid (rule 9).
func (c Charge) ownLeft() int64 {
	own := c.Entry.TokensCharged
	if h := c.Reservation; h != nil && !h.Late && c.carried(*h) {
		own -= min(own, h.Tokens)
	}
	return max(0, own-c.Refunded)
}

// carried reports whether the reservation was made in an earlier period than it was settled in.
func (c Charge) carried(h Reservation) bool {
	if c.Entry.Period == nil { // the earlier version marked what it carried
		return h.Period == 0
	}
	return h.Period != *c.Entry.Period
}
