package usertest

import (
	"fmt"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// Read asks for the status of the account, through which it is read.
type Read struct{}

// key is the idempotency key of a command; empty when it has none.
func key(command any) string {
	switch c := command.(type) {
	case user.Consume:
		return c.IdempotencyKey
	case user.AddTokens:
		return c.IdempotencyKey
	case user.Reserve:
		return c.IdempotencyKey
	case user.Refund:
		return c.IdempotencyKey
	}
	return ""
}

// identity is what a key protects of a command.
func identity(command any) string {
	switch c := command.(type) {
	case user.Consume:
		return fmt.Sprintf("consume %d", c.Tokens)
	case user.AddTokens:
		return fmt.Sprintf("add %d", c.Tokens)
	case user.Reserve:
		return fmt.Sprintf("reserve %d for %s", c.Tokens, c.TTL)
	case user.Refund:
		return fmt.Sprintf("refund %d of entry %d", c.Tokens, c.EntryID)
	}
	return ""
}

// describe is a command for people.
func describe(command any) string {
	switch c := command.(type) {
	case user.ChangeTier:
		return fmt.Sprintf("tier %q, renewal %s", c.Tier, at(c.RenewalDate))
	case user.Reserve:
		return fmt.Sprintf("%s as %s %s", identity(c), c.ReservationID, key(c))
	case user.Settle:
		return fmt.Sprintf("settle %s with %d", c.ReservationID, c.TokensUsed)
	case user.Release:
		return "release " + c.ReservationID
	}
	if what := identity(command); what != "" {
		return what + " " + key(command)
	}
	return fmt.Sprintf("%T%+v", command, command)
}

// rule is a command that is played through [user.Store.Update] itself, since [user.Service] has no call for it.
type rule interface {
	Apply(r user.Rules, s user.State, now time.Time) (user.Change, error)
}

// Touch is what a background sweep does to an account.
type Touch struct{}

// Apply calls the rule.
func (Touch) Apply(r user.Rules, s user.State, now time.Time) (user.Change, error) {
	return r.Touch(s, now)
}

// Deactivate returns what open reservations hold and lets the account spend no more.
type Deactivate struct{}

// Apply calls the rule.
func (Deactivate) Apply(r user.Rules, s user.State, now time.Time) (user.Change, error) {
	return r.Deactivate(s, "", now)
}

// SetStatus changes whether the account may spend.
type SetStatus struct {
	Active bool
	Status user.SubscriptionStatus
}

// Apply calls the rule.
func (c SetStatus) Apply(r user.Rules, s user.State, now time.Time) (user.Change, error) {
	return r.UpdateProfile(s, user.UpdateProfile{Active: &c.Active, SubscriptionStatus: &c.Status}, now)
}
