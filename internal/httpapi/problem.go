package httpapi

import (
	"context"
	"errors"
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

// kinds is the one mapping of codes to HTTP.
var kinds = map[user.Code]struct {
	status int
	title  string
}{
	errMalformedJSON.Code:         {http.StatusBadRequest, "Malformed JSON"},
	user.CodeInvalidTier:          {http.StatusBadRequest, "Invalid tier"},
	errInvalidPath.Code:           {http.StatusBadRequest, "Invalid path"},
	errUnauthenticated.Code:       {http.StatusUnauthorized, "Unauthenticated"},
	errCrossSite.Code:             {http.StatusForbidden, "Cross-site request"},
	errForbidden.Code:             {http.StatusForbidden, "Forbidden"},
	user.CodeInsufficientTokens:   {http.StatusPaymentRequired, "Insufficient tokens"},
	user.CodeUserInactive:         {http.StatusForbidden, "User inactive"},
	user.CodeSubscriptionInactive: {http.StatusForbidden, "Subscription inactive"},
	user.CodeSubscriptionLapsed:   {http.StatusForbidden, "Subscription lapsed"},
	user.CodeUserNotFound:         {http.StatusNotFound, "User not found"},
	user.CodeReservationNotFound:  {http.StatusNotFound, "Reservation not found"},
	user.CodeEntryNotFound:        {http.StatusNotFound, "Entry not found"},
	errNotFound.Code:              {http.StatusNotFound, "Not found"},
	errMethodNotAllowed.Code:      {http.StatusMethodNotAllowed, "Method not allowed"},
	user.CodeUserExists:           {http.StatusConflict, "User exists"},
	user.CodeBeingErased:          {http.StatusConflict, "Being erased"},
	user.CodeReservationClosed:    {http.StatusConflict, "Reservation closed"},
	user.CodeTooManyReservations:  {http.StatusConflict, "Too many reservations"},
	user.CodeRefundExceedsCharge:  {http.StatusConflict, "Refund exceeds charge"},
	user.CodeRefundTooLate:        {http.StatusConflict, "Refund too late"},
	user.CodeBalanceOverflow:      {http.StatusConflict, "Balance overflow"},
	errBodyTooLarge.Code:          {http.StatusRequestEntityTooLarge, "Body too large"},
	errUnsupportedMedia.Code:      {http.StatusUnsupportedMediaType, "Unsupported media type"},
	user.CodeValidation:           {http.StatusUnprocessableEntity, "Validation failed"},
	user.CodeKeyReused:            {http.StatusUnprocessableEntity, "Idempotency key reused"},
	errRateLimited.Code:           {http.StatusTooManyRequests, "Rate limited"},
	errInternal.Code:              {http.StatusInternalServerError, "Internal error"},
	user.CodeOverloaded:           {http.StatusServiceUnavailable, "Overloaded"},
	user.CodeDatabaseUnavailable:  {http.StatusServiceUnavailable, "Database unavailable"},
}

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
	p := problem{
		Type: "urn:viralpilot:problem:" + string(e.Code), Title: kind.title, Status: kind.status, Detail: e.Detail,
		Instance: r.URL.EscapedPath(), Code: e.Code, RequestID: requestID(r.Context()), Outcome: e.Outcome,
	}
	for _, f := range e.Fields[:min(len(e.Fields), maxErrors)] {
		p.Errors = append(p.Errors, fieldError(f))
	}
	if lacking := lacksScope(nil); errors.As(err, &lacking) {
		p.RequiredScope = lacking[0]
	}
	if s := e.Shortage; s != nil {
		p.shortage = &shortage{s.TokensRemaining, s.TokensRequired, instant(s.NextResetAt)}
	}
	encode(w, kind.status, "application/problem+json", p)
}
