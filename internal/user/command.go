package user

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"
)

// Command is a change that is asked of one account. The types of this package that have these methods are all the
// commands that there are; [Rules.Apply] carries them out.
type Command interface {
	// Kind is the kind of the entry that records the command; empty for one that has no entry of its own.
	Kind() EntryKind

	// meta is what the command carries beside what it asks for.
	meta() Meta
	// names adds what the command names beside the account and its key.
	names(ref *Ref, r Rules)
	// validate refuses what no account could accept.
	validate(r Rules) error
	// identity is what an idempotency key protects: the call, then what its path and body say, nil for what they leave
	// out.
	identity() []any
	// find refuses when what the command names is not there.
	find(s State) error
	// apply carries the command out on an account that has been touched, once.
	apply(d *draft) error
}

// Meta is what a command carries beside what it asks for.
type Meta struct {
	// IdempotencyKey makes a command count once however often it is sent; 1 to 255 printable ASCII characters, empty
	// for none (rule 11).
	IdempotencyKey string
	// Metadata is kept on the entry; it is no part of what the key protects.
	Metadata map[string]string
	// Actor is the caller's name, empty when unknown.
	Actor string
}

func (m Meta) meta() Meta         { return m }
func (Meta) names(*Ref, Rules)    {}
func (Meta) validate(Rules) error { return nil }
func (Meta) find(State) error     { return nil }

// entry fills in what the command carries beside what it asks for.
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

// identityHash is stored with a key, so its form must not change.
func identityHash(identity []any) []byte {
	text, err := json.Marshal(identity)
	if err != nil {
		panic(err) // the values of an identity always marshal
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

// sameCommand reports whether c is the command that wrote the entry which is stored under its key. The earlier version
// hashed in another form, after defaults.
func sameCommand(c Command, e Entry) bool {
	if bytes.Equal(e.CommandHash, identityHash(c.identity())) {
		return true
	}
	if !e.earlier() {
		return false
	}
	var call string
	var amounts []int64
	switch c := c.(type) {
	case Consume:
		call, amounts = "consume-tokens", []int64{c.tokens()}
	case AddTokens:
		call, amounts = "add-tokens", []int64{c.Tokens}
	case Reserve:
		call, amounts = "reserve", []int64{c.Tokens, c.ttl().Milliseconds()}
	case Refund:
		call, amounts = "refund", []int64{c.EntryID, c.Tokens}
	}
	sum := sha256.Sum256(fmt.Append(nil, call, amounts))
	return bytes.Equal(e.CommandHash, sum[:])
}

// given is nil for the zero value, which stands for what was left out.
func given[T comparable](value T) any {
	if value == *new(T) {
		return nil
	}
	return value
}

func checkAmount(field string, tokens int64) error {
	if tokens < 1 || tokens > MaxTokens {
		return invalid(field, fmt.Sprintf("must be from 1 to %d", MaxTokens))
	}
	return nil
}

func checkHold(ttl time.Duration) error {
	if ttl < MinHold || ttl > MaxHold {
		return invalid("ttl_seconds", fmt.Sprintf("must be from %.0f to %.0f", MinHold.Seconds(), MaxHold.Seconds()))
	}
	return nil
}
