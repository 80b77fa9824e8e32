package user

import (
	"crypto/sha256"
	"fmt"
	"time"
)

// Meta is what a command carries beside its amounts.
type Meta struct {
	// IdempotencyKey makes a command count once however often it is sent; 1 to 255 printable ASCII characters, empty
	// for none (product.md §3.10).
	IdempotencyKey string
	// Metadata is kept on the entry; it is no part of what the key protects.
	Metadata map[string]string
	// Actor is the caller's name, empty when unknown.
	Actor string
}

// NewAccount asks for a new account on the free tier.
type NewAccount struct {
	ID       string
	Username *string
	Email    *string
}

// Consume charges tokens that were spent.
type Consume struct {
	// Tokens to charge, 1 to MaxTokens.
	Tokens int64
	Meta
}

// AddTokens tops an account up with tokens that do not lapse.
type AddTokens struct {
	// Tokens to add, 1 to MaxTokens.
	Tokens int64
	Meta
}

// ChangeTier moves an account to a tier and sets its renewal date.
type ChangeTier struct {
	Tier Tier
	// RenewalDate is when the subscription renews; nil clears it.
	RenewalDate *time.Time
	Actor       string
}

// Reserve sets tokens aside before a call whose cost is not yet known.
type Reserve struct {
	// ReservationID is the UUID of the new reservation.
	ReservationID string
	// Tokens to hold, 1 to MaxTokens.
	Tokens int64
	// TTL is how long they are held, MinHold to MaxHold.
	TTL time.Duration
	Meta
}

// How long a reservation may be open (product.md §3.8).
const (
	MinHold     = time.Second
	DefaultHold = 10 * time.Minute
	MaxHold     = 24 * time.Hour
)

// Settle closes a reservation with the true cost.
type Settle struct {
	ReservationID string
	// TokensUsed is the cost, 0 to MaxTokens; it may be less or more than what is held.
	TokensUsed int64
	Meta
}

// Release closes a reservation whose call was not made.
type Release struct {
	ReservationID string
	Actor         string
}

// Refund gives back what an entry charged, whole or in part.
type Refund struct {
	EntryID int64
	// Tokens to give back, 1 to MaxTokens; 0 for all that is left of the charge.
	Tokens int64
	Meta
}

func (c Consume) hash() []byte   { return commandHash("consume-tokens", c.Tokens) }
func (c AddTokens) hash() []byte { return commandHash("add-tokens", c.Tokens) }
func (c Reserve) hash() []byte   { return commandHash("reserve", c.Tokens, c.TTL.Milliseconds()) }

// hash of a refund has 0 for all that is left: how much that is depends on when it is asked.
func (c Refund) hash() []byte { return commandHash("refund", c.EntryID, c.Tokens) }

// commandHash identifies a command by its call and its amounts after defaults. It is stored, so its form must not
// change.
func commandHash(call string, amounts ...int64) []byte {
	sum := sha256.Sum256(fmt.Append(nil, call, amounts))
	return sum[:]
}

func checkAmount(field string, tokens int64) error {
	if tokens < 1 || tokens > MaxTokens {
		return invalid(field, fmt.Sprintf("must be from 1 to %d", MaxTokens))
	}
	return nil
}
