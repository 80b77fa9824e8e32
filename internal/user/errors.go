package user

import (
	"errors"
	"fmt"
	"time"
)

// Code names a kind of failure. It is part of the HTTP contract: callers branch on it.
type Code string

// The codes that this package and its stores return, and the one for any other error; see [CodeOf].
const (
	CodeValidation           Code = "validation_failed"
	CodeInvalidTier          Code = "invalid_tier"
	CodeUserNotFound         Code = "user_not_found"
	CodeUserExists           Code = "user_exists"
	CodeBeingErased          Code = "being_erased"
	CodeUserInactive         Code = "user_inactive"
	CodeSubscriptionInactive Code = "subscription_inactive"
	CodeSubscriptionLapsed   Code = "subscription_lapsed"
	CodeInsufficientTokens   Code = "insufficient_tokens"
	CodeBalanceOverflow      Code = "balance_overflow"
	CodeKeyReused            Code = "idempotency_key_reused"
	CodeReservationNotFound  Code = "reservation_not_found"
	CodeReservationClosed    Code = "reservation_closed"
	CodeTooManyReservations  Code = "too_many_reservations"
	CodeEntryNotFound        Code = "entry_not_found"
	CodeRefundExceedsCharge  Code = "refund_exceeds_charge"
	CodeRefundTooLate        Code = "refund_too_late"
	CodeOverloaded           Code = "overloaded"
	CodeDatabaseUnavailable  Code = "database_unavailable"
	CodeNotAvailable         Code = "not_available"
	CodeInternal             Code = "internal"
)

// Error is the one error type of the domain. Detail is a plain sentence that may be shown to the caller; Err is the
// cause, for the log only.
type Error struct {
	Code   Code
	Detail string
	Err    error

	// Fields says what is wrong with which input; set with [CodeValidation].
	Fields []FieldError
	// Shortage is set with [CodeInsufficientTokens].
	Shortage *Shortage
	// Outcome is set with [CodeOverloaded] and [CodeDatabaseUnavailable].
	Outcome Outcome
}

// Outcome says what is known of a change that the database did not answer.
type Outcome string

// The outcomes. Of a read it is always none.
const (
	// OutcomeNone means that nothing was done.
	OutcomeNone Outcome = "none"
	// OutcomeUnknown means that the change may have been made.
	OutcomeUnknown Outcome = "unknown"
)

// FieldError is one thing wrong with one named input.
type FieldError struct {
	Field   string
	Message string
}

// Shortage tells a caller who was refused for lack of tokens what is there, what was asked for and when the next
// allowance comes.
type Shortage struct {
	TokensRemaining int64
	TokensRequired  int64
	// NextResetAt is nil where no tokens will come.
	NextResetAt *time.Time
}

// One value per code, to be used with [errors.Is], and ErrOutcomeUnknown, which has that of ErrDatabaseUnavailable.
var (
	ErrValidation           = &Error{Code: CodeValidation, Detail: "The request has invalid values."}
	ErrInvalidTier          = &Error{Code: CodeInvalidTier, Detail: "The tier is not in the catalogue."}
	ErrUserNotFound         = &Error{Code: CodeUserNotFound, Detail: "User not found."}
	ErrUserExists           = &Error{Code: CodeUserExists, Detail: "A user with this cognito_user_id exists already."}
	ErrBeingErased          = &Error{Code: CodeBeingErased, Detail: "The user is being erased."}
	ErrUserInactive         = &Error{Code: CodeUserInactive, Detail: "The user is deactivated."}
	ErrSubscriptionInactive = &Error{Code: CodeSubscriptionInactive, Detail: "The subscription is not active."}
	ErrSubscriptionLapsed   = &Error{Code: CodeSubscriptionLapsed, Detail: "The subscription has lapsed: its renewal date has passed."}
	ErrInsufficientTokens   = &Error{Code: CodeInsufficientTokens, Detail: "Insufficient tokens."}
	ErrBalanceOverflow      = &Error{Code: CodeBalanceOverflow, Detail: fmt.Sprintf("The account cannot hold more than %d tokens.", MaxTokens)}
	ErrKeyReused            = &Error{Code: CodeKeyReused, Detail: "This Idempotency-Key was used with another command on this account."}
	ErrReservationNotFound  = &Error{Code: CodeReservationNotFound, Detail: "Reservation not found."}
	ErrReservationClosed    = &Error{Code: CodeReservationClosed, Detail: "The reservation is closed: it was settled or released with another outcome, or expired too long ago."}
	ErrTooManyReservations  = &Error{Code: CodeTooManyReservations, Detail: "The account has too many open reservations; settle or release some first."}
	ErrEntryNotFound        = &Error{Code: CodeEntryNotFound, Detail: "Ledger entry not found."}
	ErrRefundTooLate        = &Error{Code: CodeRefundTooLate, Detail: "The charge is too old to be refunded."}
	ErrRefundExceedsCharge  = &Error{Code: CodeRefundExceedsCharge, Detail: "That is more than is left of what the entry charged."}
	ErrOverloaded           = &Error{Code: CodeOverloaded, Outcome: OutcomeNone, Detail: "The service is overloaded; nothing was done. Try again shortly."}
	ErrDatabaseUnavailable  = &Error{Code: CodeDatabaseUnavailable, Outcome: OutcomeNone, Detail: "The database is not available; nothing was done. Try again shortly."}
	ErrNotAvailable         = &Error{Code: CodeNotAvailable, Detail: "This is not available here: the ledger is distributed over several servers and has no order of all entries."}
	ErrOutcomeUnknown       = &Error{Code: CodeDatabaseUnavailable, Outcome: OutcomeUnknown, Detail: "The database did not answer whether the change was made. Send it again with the same Idempotency-Key."}
)

// Error returns the code, the detail and the cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Detail, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Detail)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error of the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Because returns a copy of e with err as its cause.
func (e *Error) Because(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// OutcomeOf is the outcome of a change that failed with err; empty when that is no failure of the store.
func OutcomeOf(err error) Outcome {
	if known := (*Error)(nil); errors.As(err, &known) {
		return known.Outcome
	}
	return ""
}

// CodeOf is the code of an error: that of an [*Error], of any other [CodeInternal].
func CodeOf(err error) Code {
	if known := (*Error)(nil); errors.As(err, &known) {
		return known.Code
	}
	return CodeInternal
}

// invalid is a validation error about one field.
func invalid(field, message string) *Error {
	e := *ErrValidation
	e.Fields = []FieldError{{Field: field, Message: message}}
	return &e
}
