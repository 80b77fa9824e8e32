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

func (c Consume) hash() []byte   { return commandHash("consume-tokens", c.Tokens) }
func (c AddTokens) hash() []byte { return commandHash("add-tokens", c.Tokens) }

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
