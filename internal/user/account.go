package user

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// SubscriptionStatus is the state of a subscription as the payment provider names it. Rows may carry any text.
type SubscriptionStatus string

// The statuses with which an account may spend (rule 3); all others refuse.
const (
	StatusActive   SubscriptionStatus = "active"
	StatusTrialing SubscriptionStatus = "trialing"
)

// Account is one row of viralpilot.userdata with its side row in viralpilot.account_state. Instants are UTC with
// microseconds, amounts are tokens from 0 to [MaxTokens]. The letters are those of the rules' README.
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
	// TokensUsed is U: tokens charged in this period.
	TokensUsed int64
	// LastReset is when the present period's allowance was granted; nil in rows of the earlier service.
	LastReset *time.Time
	CreatedAt time.Time
	UpdatedAt time.Time
	Active    bool

	// SideRow says whether the account has a side row, which the following fields are read from.
	SideRow SideRow
	// TopUps is T: the top-ups left. In a side row of the earlier form it is P: the top-ups owned at the start of the
	// term plus those that came since.
	TopUps int64
	// TopUpsUsed is W: top-ups that were charged or held in this period and have not come back.
	TopUpsUsed int64
	// Allowance is G: the allowance in force.
	Allowance int64
	// AllowanceExcess is E: what was used of the allowance in this period beyond G.
	AllowanceExcess int64
	// CarriedTopUps is C: the top-ups in open reservations of an earlier period.
	CarriedTopUps int64
	// GrantedPeriod numbers the month whose allowance was granted last: year × 12 + month in the reset time zone. It
	// only rises.
	GrantedPeriod int
	// Reserved is H: the tokens that open reservations hold.
	Reserved int64
	// OpenReservations is how many reservations are open.
	OpenReservations int64
	// NextHoldExpiry is never later than the earliest expiry of an open reservation; nil when none is open.
	NextHoldExpiry *time.Time
}

// SideRow is the form of an account's side row.
type SideRow int

// The forms of side rows.
const (
	// NoSideRow is the account of the earlier service, or one that was inserted by hand: it is adopted at its first
	// change (rule 13).
	NoSideRow SideRow = iota
	// EarlierSideRow was written by the version before granted periods: it is converted at its first change (rule 15).
	EarlierSideRow
	// CurrentSideRow was written by this version.
	CurrentSideRow
	// MovingSideRow is that of an account that is being erased: its entries are on their way to a pseudonym, and no command
	// changes it any more.
	MovingSideRow
	// ErasedSideRow is that of a pseudonym: callers find no account under it.
	ErasedSideRow
)

// AccountQuery selects accounts. Zero fields select all.
type AccountQuery struct {
	Tier               Tier
	SubscriptionStatus SubscriptionStatus
	Active             *bool
	// RenewsBefore limits to accounts whose renewal date is before it.
	RenewsBefore time.Time
	// LowBalance limits to accounts with a low balance, or to those without; see [Rules.LowBalance].
	LowBalance *bool
	// Text stands in the id, the username or the e-mail address, in the address whatever its case: anywhere where it has
	// MinAnywhere characters and the store searches anywhere, else at the beginning.
	Text string
	// After is the id of the last account of the page before.
	After string
	// Limit is the most accounts to return, at least 1.
	Limit int
}

// MinAnywhere is how many characters a text has to have to be found anywhere.
const MinAnywhere = 3

// AllowanceRemaining is A: the part of the balance that lapses at the end of the period.
func (a Account) AllowanceRemaining() int64 { return a.TokensRemaining - a.TopUps }

// total is R + H + U, which never exceeds [MaxTokens].
func (a *Account) total() int64 { return a.TokensRemaining + a.Reserved + a.TokensUsed }

// spend takes n tokens (0 to R) out of the balance, allowance first, then top-ups (rule 1).
func (a *Account) spend(n int64) {
	topUps := n - min(n, a.AllowanceRemaining())
	a.TokensRemaining -= n
	a.TopUps -= topUps
	a.TopUpsUsed += topUps
}

// giveBack returns n tokens that were spent in this period, top-ups first, then allowance (rule 1). What pays off an
// excess of the allowance does not reach the balance.
func (a *Account) giveBack(n int64) {
	topUps := min(n, a.TopUpsUsed)
	a.TopUpsUsed -= topUps
	a.addTopUps(topUps)
	excess := min(n-topUps, a.AllowanceExcess)
	a.AllowanceExcess -= excess
	a.TokensRemaining += n - topUps - excess
	// Only after a conversion or a reconcile can more come back than the allowance in force.
	a.Allowance = max(a.Allowance, a.AllowanceRemaining())
}

// giveBackCarried returns n tokens of a reservation of an earlier period: the top-ups in it; its allowance has lapsed.
func (a *Account) giveBackCarried(n int64) {
	topUps := min(n, a.CarriedTopUps)
	a.CarriedTopUps -= topUps
	a.addTopUps(topUps)
}

// addTopUps adds n tokens that do not lapse.
func (a *Account) addTopUps(n int64) {
	a.TopUps += n
	a.TokensRemaining += n
}

// allowanceUsed is D: what of the allowance has been used or is held in this period.
func (a *Account) allowanceUsed() int64 {
	return a.Allowance - a.AllowanceRemaining() + a.AllowanceExcess
}

// accessible returns ErrBeingErased or ErrUserNotFound when no caller may see the account any more.
func (a *Account) accessible() error {
	switch a.SideRow {
	case MovingSideRow:
		return ErrBeingErased
	case ErasedSideRow:
		return ErrUserNotFound.Because(errErased)
	}
	return nil
}

// errErased is the cause of the ErrUserNotFound of a pseudonym, under which no account is made.
var errErased = errors.New("the account has been erased")

// clamp brings counters into range that a hand, or the earlier service, which could overdraw, has written: the balance wins
// over the used tokens.
func (a *Account) clamp() {
	a.TokensRemaining = min(max(a.TokensRemaining, 0), MaxTokens-a.Reserved)
	a.TokensUsed = min(max(a.TokensUsed, 0), MaxTokens-a.TokensRemaining-a.Reserved)
	a.TopUps = min(a.TopUps, a.TokensRemaining)
}

// check fails for counters that no rule can have made from sound ones: the account was changed by hand.
func (a *Account) check() error {
	least := min(a.TokensRemaining, a.TokensUsed, a.TopUps, a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps, a.Reserved)
	if least < 0 || a.TopUps > a.TokensRemaining || a.total() > MaxTokens || max(a.TopUpsUsed, a.Allowance, a.AllowanceExcess) > MaxTokens {
		return fmt.Errorf("the counters of the account do not fit together: R=%d U=%d H=%d T=%d W=%d G=%d E=%d C=%d",
			a.TokensRemaining, a.TokensUsed, a.Reserved, a.TopUps, a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps)
	}
	return nil
}

const maxIDLength = 255

// erasedPrefix is how the pseudonyms of erased accounts begin.
const erasedPrefix = "erased-"

// ValidateNewID says what is wrong with the id of an account that is to be made, or "" when nothing is. Beyond
// [ValidateID] it refuses what people cannot see, and what looks like a pseudonym. Accounts that are there already may have
// such ids.
func ValidateNewID(id string) string {
	switch problem := ValidateID(id); {
	case problem != "":
		return problem
	case strings.TrimSpace(id) != id:
		return "must not begin or end with blanks"
	case strings.ContainsFunc(id, func(r rune) bool { return unicode.Is(unicode.Cf, r) }):
		return "must not contain format characters"
	case strings.HasPrefix(id, erasedPrefix):
		return "must not begin with " + erasedPrefix
	}
	return ""
}

// ValidateID says what is wrong with an account id, or "" when nothing is: 1 to 255 characters of valid UTF-8, no
// control characters, not only blanks, not "." or "..".
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
