package auth

import (
	"slices"
	"time"
)

// Scope names a group of calls that a caller may make.
type Scope string

// The scopes that an API key can have.
const (
	Read    Scope = "read"    // look at accounts, ledgers, usage and reservations
	Consume Scope = "consume" // spend, reserve, settle and release tokens
	Refund  Scope = "refund"  // give charged tokens back
	Export  Scope = "export"  // read what concerns all accounts at once
	Manage  Scope = "manage"  // create, change and delete accounts, add tokens; includes Read, Refund and Export
	Metrics Scope = "metrics" // read the metrics
)

var allScopes = []Scope{Read, Consume, Refund, Export, Manage, Metrics}

// included are the scopes that come with Manage.
var included = []Scope{Read, Refund, Export}

// Anyone is the caller of a service that is open to all: it has no name and every scope.
func Anyone() Principal { return Principal{Scopes: allScopes} }

// endUser is the name of every signed-in user who is not an administrator. It does not say which, as it may be kept where
// it outlives the account; no API key can have it.
const endUser = "end user"

// Principal is who sent a request. The zero value may do nothing.
type Principal struct {
	// Name is what logs and the ledger call the caller: the name of the API key, cognito:ID for an administrator of the
	// user pool, "end user" for its other users, and nothing where everybody is let in. It has at most 255 characters.
	Name string
	// UserID is the account of a signed-in user, and empty for an API key.
	UserID string
	// Scopes are those that it was given; see [Principal.Can] for what they include.
	Scopes []Scope
	// ExpiresAt is when the key or token runs out; zero when it does not.
	ExpiresAt time.Time
}

// Can reports whether the caller has scope. A signed-in user who is not an administrator has none.
func (p Principal) Can(scope Scope) bool {
	return slices.Contains(p.Scopes, scope) || slices.Contains(included, scope) && slices.Contains(p.Scopes, Manage)
}

// Owns reports whether the account is that of the signed-in user, who may then read it.
func (p Principal) Owns(accountID string) bool {
	return p.UserID != "" && p.UserID == accountID
}
