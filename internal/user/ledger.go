package user

import "time"

// EntryKind says what a ledger entry records (product.md §3.11).
type EntryKind string

// The kinds of entries. Settle, release, expire and refund name the reservation or the charge they belong to.
const (
	KindOpening       EntryKind = "opening"
	KindConsume       EntryKind = "consume"
	KindTopUp         EntryKind = "top_up"
	KindMonthlyReset  EntryKind = "monthly_reset"
	KindTierChange    EntryKind = "tier_change"
	KindReserve       EntryKind = "reserve"
	KindSettle        EntryKind = "settle"
	KindRelease       EntryKind = "release"
	KindExpire        EntryKind = "expire"
	KindRefund        EntryKind = "refund"
	KindProfileChange EntryKind = "profile_change"
)

// EntryKinds lists every kind.
func EntryKinds() []EntryKind {
	return []EntryKind{
		KindOpening, KindConsume, KindTopUp, KindMonthlyReset, KindTierChange, KindReserve, KindSettle, KindRelease,
		KindExpire, KindRefund, KindProfileChange,
	}
}

// Entry is one append-only row of the ledger: what changed an account, by how many tokens, and its counters after
// it. Entries of an account are ordered by their ids.
type Entry struct {
	// ID is given by the store; 0 before that. It rises within an account.
	ID   int64
	Kind EntryKind
	// Amount is the signed change of the balance.
	Amount int64
	// BalanceAfter and UsedAfter are the account's counters after the entry.
	BalanceAfter int64
	UsedAfter    int64
	// TokensCharged is what the entry charged, 0 or more.
	TokensCharged   int64
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
