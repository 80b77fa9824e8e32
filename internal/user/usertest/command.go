package usertest

import (
	"fmt"

	"github.com/viralpilot/user-management/internal/user"
)

// Read asks for the status of the account, through which it is read.
type Read struct{}

// Reconcile accepts the account as it is, after its counters have been set by hand where Edited.
type Reconcile struct {
	Edited          bool
	Remaining, Used int64
}

// Replace deletes the account's row by hand, with all that hangs on it except the ledger. It is made again by hand, or
// when Row is nil by a [user.NewAccount] or [user.PutProfile].
type Replace struct {
	Row *user.Account
	By  user.Command
}

// meta is what a command carries beside what it asks for.
func meta(command any) user.Meta {
	switch c := command.(type) {
	case user.Consume:
		return c.Meta
	case user.AddTokens:
		return c.Meta
	case user.ChangeTier:
		return c.Meta
	case user.Reserve:
		return c.Meta
	case user.Extend:
		return c.Meta
	case user.Settle:
		return c.Meta
	case user.Release:
		return c.Meta
	case user.Refund:
		return c.Meta
	case user.UpdateProfile:
		return c.Meta
	case user.Deactivate:
		return c.Meta
	case user.PutProfile:
		return c.Meta
	case user.NewAccount:
		return c.Meta
	}
	return user.Meta{}
}

// identity is what a key protects of a command: the call and what it says.
func identity(command any) string {
	switch c := command.(type) {
	case user.Consume:
		return fmt.Sprintf("consume %s", stated(c.Tokens))
	case user.AddTokens:
		return fmt.Sprintf("add %d", c.Tokens)
	case user.ChangeTier:
		return fmt.Sprintf("tier %q, renewal %s", c.Tier, at(c.RenewalDate))
	case user.Reserve:
		return fmt.Sprintf("reserve %d for %s", c.Tokens, stated(c.TTL))
	case user.Extend:
		return fmt.Sprintf("extend %s by %s", c.ReservationID, c.TTL)
	case user.Settle:
		return fmt.Sprintf("settle %s with %d", c.ReservationID, c.TokensUsed)
	case user.Release:
		return "release " + c.ReservationID
	case user.Refund:
		return fmt.Sprintf("refund %s of entry %d", stated(c.Tokens), c.EntryID)
	case user.UpdateProfile:
		return fmt.Sprintf("profile: name %t %s, address %t %s, status %s, active %s", c.SetUsername, text(c.Username),
			c.SetEmail, text(c.Email), text(c.SubscriptionStatus), text(c.Active))
	case user.PutProfile:
		return fmt.Sprintf("put: name %t %s, address %t %s", c.SetUsername, text(c.Username), c.SetEmail, text(c.Email))
	case user.NewAccount:
		return fmt.Sprintf("create: name %s, address %s", text(c.Username), text(c.Email))
	case user.Deactivate:
		return "deactivate"
	}
	return fmt.Sprintf("%T%+v", command, command)
}

// stated tells an amount that was left out from any that was given.
func stated[T comparable](value T) string {
	if value == *new(T) {
		return "the default"
	}
	return fmt.Sprint(value)
}

// describe is a command for people.
func describe(command any) string {
	what := identity(command)
	switch c := command.(type) {
	case user.Reserve:
		what += " as " + c.ReservationID
	case Replace:
		if what = "row deleted"; c.By != nil {
			what += ", " + describe(c.By)
		}
		if c.Row != nil {
			what = fmt.Sprintf("row deleted, made again as %+v", view(*c.Row))
		}
	}
	if key := meta(command).IdempotencyKey; key != "" {
		what += " under " + key
	}
	return what
}
