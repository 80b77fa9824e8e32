package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/user"
)

// Failures that only HTTP knows.
var (
	errMalformedJSON    = &user.Error{Code: "malformed_json", Detail: "The body must be one JSON object."}
	errInvalidPath      = &user.Error{Code: "invalid_path", Detail: "The user id in the path is not valid."}
	errNotFound         = &user.Error{Code: "not_found", Detail: "There is nothing at this path."}
	errMethodNotAllowed = &user.Error{Code: "method_not_allowed", Detail: "The path does not have this method; Allow lists those it has."}
	errBodyTooLarge     = &user.Error{Code: "body_too_large", Detail: "The body is larger than 64 KiB."}
	errUnsupportedMedia = &user.Error{Code: "unsupported_media_type", Detail: "The body must be sent as application/json."}
	errUnauthenticated  = &user.Error{Code: "unauthenticated", Detail: "An API key or a token is required."}
	errForbidden        = &user.Error{Code: "forbidden", Detail: "The caller may not do this."}
	errRateLimited      = &user.Error{Code: "rate_limited", Detail: "Too many requests; Retry-After says when to try again."}
	errTooManyFailures  = &user.Error{Code: errRateLimited.Code, Detail: "Too many requests from this address had no key or token that is known; Retry-After says when to try again."}
	errSlowBody         = &user.Error{Code: errMalformedJSON.Code, Detail: "The body did not arrive in time."}
	errInternal         = &user.Error{Code: user.CodeInternal, Detail: "Something went wrong on our side."}
)

// failures is the one mapping of errors to HTTP. Each error has the code, and what is said where nothing more is known.
var failures = []failure{
	{errMalformedJSON, http.StatusBadRequest, "Malformed JSON"},
	{user.ErrInvalidTier, http.StatusBadRequest, "Invalid tier"},
	{errInvalidPath, http.StatusBadRequest, "Invalid path"},
	{errUnauthenticated, http.StatusUnauthorized, "Unauthenticated"},
	{errCrossSite, http.StatusForbidden, "Cross-site request"},
	{errForbidden, http.StatusForbidden, "Forbidden"},
	{user.ErrInsufficientTokens, http.StatusPaymentRequired, "Insufficient tokens"},
	{user.ErrUserInactive, http.StatusForbidden, "User inactive"},
	{user.ErrSubscriptionInactive, http.StatusForbidden, "Subscription inactive"},
	{user.ErrSubscriptionLapsed, http.StatusForbidden, "Subscription lapsed"},
	{user.ErrUserNotFound, http.StatusNotFound, "User not found"},
	{user.ErrReservationNotFound, http.StatusNotFound, "Reservation not found"},
	{user.ErrEntryNotFound, http.StatusNotFound, "Entry not found"},
	{errNotFound, http.StatusNotFound, "Not found"},
	{errMethodNotAllowed, http.StatusMethodNotAllowed, "Method not allowed"},
	{user.ErrUserExists, http.StatusConflict, "User exists"},
	{user.ErrBeingErased, http.StatusConflict, "Being erased"},
	{user.ErrReservationClosed, http.StatusConflict, "Reservation closed"},
	{user.ErrTooManyReservations, http.StatusConflict, "Too many reservations"},
	{user.ErrRefundExceedsCharge, http.StatusConflict, "Refund exceeds charge"},
	{user.ErrRefundTooLate, http.StatusConflict, "Refund too late"},
	{user.ErrBalanceOverflow, http.StatusConflict, "Balance overflow"},
	{errBodyTooLarge, http.StatusRequestEntityTooLarge, "Body too large"},
	{errUnsupportedMedia, http.StatusUnsupportedMediaType, "Unsupported media type"},
	{user.ErrValidation, http.StatusUnprocessableEntity, "Validation failed"},
	{user.ErrKeyReused, http.StatusUnprocessableEntity, "Idempotency key reused"},
	{errRateLimited, http.StatusTooManyRequests, "Rate limited"},
	{errInternal, http.StatusInternalServerError, "Internal error"},
	{user.ErrNotAvailable, http.StatusNotImplemented, "Not available"},
	{user.ErrOverloaded, http.StatusServiceUnavailable, "Overloaded"},
	{user.ErrDatabaseUnavailable, http.StatusServiceUnavailable, "Database unavailable"},
}

type failure struct {
	*user.Error
	status int
	title  string
}

// kinds has the failures by their codes.
var kinds = func() map[user.Code]failure {
	byCode := make(map[user.Code]failure, len(failures))
	for _, f := range failures {
		byCode[f.Code] = f
	}
	return byCode
}()

// Codes lists the codes that problems have, in their order.
func Codes() []user.Code { return slices.Sorted(maps.Keys(kinds)) }

// problem is an RFC 9457 problem document.
type problem struct {
	Type      string    `json:"type"`
	Title     string    `json:"title"`
	Status    int       `json:"status"`
	Detail    string    `json:"detail"`
	Instance  string    `json:"instance"`
	Code      user.Code `json:"code"`
	RequestID string    `json:"request_id"`
	// Outcome says with a 503 whether the change may have been made.
	Outcome user.Outcome `json:"outcome,omitempty"`
	// RequiredScope is a scope that would do.
	RequiredScope auth.Scope   `json:"required_scope,omitempty"`
	Errors        []fieldError `json:"errors,omitempty"`
	*shortage
}

// maxErrors is the most errors that one problem lists.
const maxErrors = 20

type fieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

type shortage struct {
	TokensRemaining int64      `json:"tokens_remaining"`
	TokensRequired  int64      `json:"tokens_required"`
	NextResetAt     *timestamp `json:"next_reset_at"`
}

// problem is e, which is of this kind, as a document.
func (f failure) problem(e *user.Error, instance, requestID string) problem {
	p := problem{
		Type: "urn:viralpilot:problem:" + string(e.Code), Title: f.title, Status: f.status, Detail: e.Detail,
		Instance: instance, Code: e.Code, RequestID: requestID, Outcome: e.Outcome,
	}
	for _, field := range e.Fields[:min(len(e.Fields), maxErrors)] {
		p.Errors = append(p.Errors, fieldError(field))
	}
	if s := e.Shortage; s != nil {
		p.shortage = &shortage{s.TokensRemaining, s.TokensRequired, instant(s.NextResetAt)}
	}
	return p
}

// known returns err as an error that has a code: internal where nobody foresaw it.
func known(err error) *user.Error {
	if e := (*user.Error)(nil); errors.As(err, &e) {
		return e
	}
	var lacking lacksScope
	switch {
	case errors.As(err, &lacking):
		e := *errForbidden
		e.Detail = lacking.Error()
		return &e
	case errors.Is(err, auth.ErrUnauthenticated):
		e := *errUnauthenticated
		e.Detail = err.Error() // a sentence for the caller
		return &e
	case errors.Is(err, auth.ErrUnavailable):
		e := *user.ErrOverloaded
		e.Detail = "The caller cannot be checked now; nothing was done. Try again shortly."
		return &e
	}
	return errInternal
}

// fail is the one writer of problem documents. What it does not know is internal: the log gets it, the caller does
// not.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := known(err)
	if id := about(r.Context()).accountID; e.Code == user.CodeUserNotFound && encodedTwice(id) {
		hint := *e
		hint.Detail += fmt.Sprintf(" The id in the path seems to be encoded twice: decoded once it is %q.", id)
		e = &hint
	}
	kind, ok := kinds[e.Code]
	if !ok {
		e = errInternal
		kind = kinds[e.Code]
	}
	if a.Observer != nil {
		a.Observer.Problem(e.Code)
	}
	if kind.status >= http.StatusInternalServerError {
		level := slog.LevelError
		if r.Context().Err() == context.Canceled { // the caller hung up: nobody waits for this answer
			level = slog.LevelInfo
		}
		a.Log.LogAttrs(r.Context(), level, "request failed",
			slog.String("code", string(e.Code)), slog.String("request_id", requestID(r.Context())), slog.Any("error", err))
	}
	switch kind.status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	p := kind.problem(e, r.URL.EscapedPath(), requestID(r.Context()))
	if lacking := lacksScope(nil); errors.As(err, &lacking) {
		p.RequiredScope = lacking[0]
	}
	encode(w, kind.status, "application/problem+json", p)
}
