package user

import (
	"errors"
	"fmt"
	"time"
)

// Code names a kind of failure. It is part of the HTTP contract (product.md §4 "Errors"): callers branch on it.
type Code string

// The codes that this package and its stores return, and the one for any other error; see [CodeOf].
const (
	CodeValidation           Code = "validation_failed"
	CodeInvalidTier          Code = "invalid_tier"
	CodeUserNotFound         Code = "user_not_found"
	CodeUserExists           Code = "user_exists"
	CodeUserInactive         Code = "user_inactive"
	CodeSubscriptionInactive Code = "subscription_inactive"
	CodeInsufficientTokens   Code = "insufficient_tokens"
	CodeBalanceOverflow      Code = "balance_overflow"
	CodeKeyReused            Code = "idempotency_key_reused"
	CodeReservationNotFound  Code = "reservation_not_found"
	CodeReservationClosed    Code = "reservation_closed"
	CodeReservationExpired   Code = "reservation_expired"
	CodeEntryNotFound        Code = "entry_not_found"
	CodeRefundExceedsCharge  Code = "refund_exceeds_charge"
	CodeOverloaded           Code = "overloaded"
	CodeDatabaseUnavailable  Code = "database_unavailable"
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
}

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
	NextResetAt     time.Time
}

// One value per code, to be used with [errors.Is].
var (
	ErrValidation           = &Error{Code: CodeValidation, Detail: "The request has invalid values."}
	ErrInvalidTier          = &Error{Code: CodeInvalidTier, Detail: "The tier is not in the catalogue."}
	ErrUserNotFound         = &Error{Code: CodeUserNotFound, Detail: "User not found."}
	ErrUserExists           = &Error{Code: CodeUserExists, Detail: "A user with this cognito_user_id exists already."}
	ErrUserInactive         = &Error{Code: CodeUserInactive, Detail: "The user is deactivated."}
	ErrSubscriptionInactive = &Error{Code: CodeSubscriptionInactive, Detail: "The subscription is not active."}
	ErrInsufficientTokens   = &Error{Code: CodeInsufficientTokens, Detail: "Insufficient tokens."}
	ErrBalanceOverflow      = &Error{Code: CodeBalanceOverflow, Detail: fmt.Sprintf("The account cannot hold more than %d tokens.", MaxTokens)}
	ErrKeyReused            = &Error{Code: CodeKeyReused, Detail: "This Idempotency-Key was used with another command on this account."}
	ErrReservationNotFound  = &Error{Code: CodeReservationNotFound, Detail: "Reservation not found."}
	ErrReservationClosed    = &Error{Code: CodeReservationClosed, Detail: "The reservation has been settled or released already, with another outcome."}
	ErrReservationExpired   = &Error{Code: CodeReservationExpired, Detail: "The reservation has expired and its tokens were returned; charge with consume-tokens instead."}
	ErrEntryNotFound        = &Error{Code: CodeEntryNotFound, Detail: "Ledger entry not found."}
	ErrRefundExceedsCharge  = &Error{Code: CodeRefundExceedsCharge, Detail: "That is more than is left of what the entry charged."}
	ErrOverloaded           = &Error{Code: CodeOverloaded, Detail: "The service is overloaded; nothing was done. Try again shortly."}
	ErrDatabaseUnavailable  = &Error{Code: CodeDatabaseUnavailable, Detail: "The database is not available. The outcome may be unknown: try again with the same Idempotency-Key."}
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
