package user

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// SubscriptionStatus is the state of a subscription as the payment provider names it. Rows may carry any text.
type SubscriptionStatus string

// The statuses with which an account may spend (product.md §3.2); all others refuse.
const (
	StatusActive   SubscriptionStatus = "active"
	StatusTrialing SubscriptionStatus = "trialing"
)

// Account is one row of viralpilot.userdata with its side row. Instants are UTC with microseconds.
type Account struct {
	// ID is the cognito_user_id; see [ValidateID].
	ID                 string
	Username           *string
	Email              *string
	Tier               Tier
	SubscriptionStatus SubscriptionStatus
	RenewalDate        *time.Time
	// TokensRemaining is the balance R: allowance and top-ups left, without what open reservations hold.
	TokensRemaining int64
	// TokensUsed is U: tokens charged in this term.
	TokensUsed int64
	// LastReset is when the present term began; nil in rows of the earlier service.
	LastReset *time.Time
	CreatedAt time.Time
	UpdatedAt time.Time
	Active    bool

	// TopUps is P: the top-ups owned at the start of the term plus those that came since.
	TopUps int64
	// Reserved is H: the tokens that open reservations hold.
	Reserved int64
	// NextHoldExpiry is the earliest expiry of the open reservations; nil when there is none.
	NextHoldExpiry *time.Time
	// Adopted is true once the account has a side row; see product.md §3.12.
	Adopted bool
}

// AccountQuery selects accounts. Zero fields select all.
type AccountQuery struct {
	Tier               Tier
	SubscriptionStatus SubscriptionStatus
	Active             *bool
	// Prefix is how the id, the username or the e-mail address begins; the address whatever its case.
	Prefix string
	// After is the id of the last account of the page before.
	After string
	// Limit is the most accounts to return, at least 1.
	Limit int
}

// TopUpsLeft is the part of the balance that will outlive the term: the allowance is spent first, so it is
// min(P, R) (product.md §3.3).
func (a Account) TopUpsLeft() int64 { return min(a.TopUps, a.TokensRemaining) }

// adopt gives an account without a side row (from the earlier service, or inserted by hand) the top-ups that its
// balance implies: all that is over the allowance of its tier (product.md §3.12). The earlier service could
// overdraw, and nothing stops a hand from writing what does not fit, so counters are brought into range; the
// balance wins over the used tokens.
func (a Account) adopt(allowance int64) Account {
	if a.Adopted {
		return a
	}
	a.TokensRemaining = min(max(a.TokensRemaining, 0), MaxTokens-a.Reserved)
	a.TokensUsed = min(max(a.TokensUsed, 0), MaxTokens-a.TokensRemaining-a.Reserved)
	a.TopUps = max(0, a.TokensRemaining-allowance)
	a.Adopted = true
	return a
}

const maxIDLength = 255

// ValidateID says what is wrong with an account id, or "" when nothing is: 1 to 255 characters of valid UTF-8, no
// control characters, not only blanks, not "." or ".." (product.md §4 "Ids").
func ValidateID(id string) string {
	switch {
	case id == "":
		return "must not be empty"
	case !utf8.ValidString(id):
		return "must be valid UTF-8"
	case utf8.RuneCountInString(id) > maxIDLength:
		return "must have at most 255 characters"
	case strings.ContainsFunc(id, unicode.IsControl):
		return "must not contain control characters"
	case strings.TrimSpace(id) == "":
		return "must not consist of blanks only"
	case id == "." || id == "..":
		return "must not be a dot segment"
	}
	return ""
}
