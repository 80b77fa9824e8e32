package httpapi

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"github.com/viralpilot/user-management/internal/user"
)

type reservationBody struct {
	ReservationID  string                 `json:"reservation_id"`
	CognitoUserID  string                 `json:"cognito_user_id"`
	Status         user.ReservationStatus `json:"status"`
	TokensReserved int64                  `json:"tokens_reserved"`
	TokensUsed     *int64                 `json:"tokens_used"`
	TokensCharged  int64                  `json:"tokens_charged"`
	TokensReturned int64                  `json:"tokens_returned"`
	Shortfall      int64                  `json:"shortfall"`
	Late           bool                   `json:"late"`
	Metadata       map[string]string      `json:"metadata"`
	CreatedAt      timestamp              `json:"created_at"`
	ExpiresAt      timestamp              `json:"expires_at"`
	ClosedAt       *timestamp             `json:"closed_at"`
}

// reservationReceiptBody answers a command on a reservation.
type reservationReceiptBody struct {
	reservationBody
	TokensRemaining     int64   `json:"tokens_remaining"`
	TokensUsedThisMonth int64   `json:"tokens_used_this_month"`
	LowBalance          bool    `json:"low_balance"`
	EntryID             *string `json:"entry_id"`
}

func newReservationBody(r user.ReservationReceipt) reservationBody {
	h := r.Reservation
	return reservationBody{
		ReservationID: h.ID, CognitoUserID: r.Account.ID, Status: h.Status,
		TokensReserved: h.Tokens, TokensUsed: h.TokensUsed, TokensCharged: h.Charged, TokensReturned: h.Returned,
		Shortfall: h.Shortfall, Late: h.Late, Metadata: h.Metadata,
		CreatedAt: timestamp{h.CreatedAt}, ExpiresAt: timestamp{h.ExpiresAt}, ClosedAt: instant(h.ClosedAt),
	}
}

func respondReservation(w http.ResponseWriter, status int, r user.ReservationReceipt) error {
	body := reservationReceiptBody{
		reservationBody: newReservationBody(r), TokensRemaining: r.Account.TokensRemaining,
		TokensUsedThisMonth: r.Account.TokensUsed, LowBalance: r.LowBalance,
	}
	if r.Entry != nil {
		body.EntryID = entryID(r.Entry.ID)
	}
	markReplayed(w, r.Replayed)
	return respondWith(w, status, body)
}

type reserveRequest struct {
	Tokens     *int64   `json:"tokens" validate:"required,min=1,max=2147483647"`
	TTLSeconds *int64   `json:"ttl_seconds" validate:"omitnil,min=1,max=86400"`
	Metadata   metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) reserve(w http.ResponseWriter, r *http.Request) error {
	var in reserveRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	c := user.Reserve{Tokens: *in.Tokens, Meta: meta(r, in.Metadata)}
	if in.TTLSeconds != nil {
		c.TTL = time.Duration(*in.TTLSeconds) * time.Second
	}
	receipt, err := a.Users.Reserve(r.Context(), id, c)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/user/"+url.PathEscape(id)+"/reservations/"+receipt.Reservation.ID)
	return respondReservation(w, http.StatusCreated, receipt)
}

type settleRequest struct {
	TokensUsed *int64   `json:"tokens_used" validate:"required,min=0,max=2147483647"`
	Metadata   metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) settle(w http.ResponseWriter, r *http.Request) error {
	var in settleRequest
	read := func() error { return decode(w, r, &in) }
	return a.reservationCommand(w, r, read, func(id, reservationID string) (user.ReservationReceipt, error) {
		return a.Users.Settle(r.Context(), id, user.Settle{
			ReservationID: reservationID, TokensUsed: *in.TokensUsed, Meta: meta(r, in.Metadata),
		})
	})
}

type extendRequest struct {
	TTLSeconds *int64 `json:"ttl_seconds" validate:"required,min=1,max=86400"`
}

func (a *API) extend(w http.ResponseWriter, r *http.Request) error {
	var in extendRequest
	read := func() error { return decode(w, r, &in) }
	return a.reservationCommand(w, r, read, func(id, reservationID string) (user.ReservationReceipt, error) {
		return a.Users.Extend(r.Context(), id, user.Extend{
			ReservationID: reservationID, TTL: time.Duration(*in.TTLSeconds) * time.Second, Meta: meta(r, nil),
		})
	})
}

type releaseRequest struct {
	Metadata metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) release(w http.ResponseWriter, r *http.Request) error {
	var in releaseRequest
	read := func() error { return decodeOptional(w, r, &in) }
	return a.reservationCommand(w, r, read, func(id, reservationID string) (user.ReservationReceipt, error) {
		return a.Users.Release(r.Context(), id, user.Release{ReservationID: reservationID, Meta: meta(r, in.Metadata)})
	})
}

// reservationCommand reads ids, body and key, in the order in which their failures count: the user, the reservation, the
// rest.
func (a *API) reservationCommand(w http.ResponseWriter, r *http.Request, read func() error, do func(id, reservationID string) (user.ReservationReceipt, error)) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	reservationID, err := pathReservationID(r)
	if err != nil {
		return a.unknownFirst(r, id, err)
	}
	if err = read(); err == nil {
		err = refuseQuery(r, checkKey(r))
	}
	if err != nil {
		return a.unknownReservationFirst(r, id, reservationID, err)
	}
	receipt, err := do(id, reservationID)
	if err != nil {
		return err
	}
	return respondReservation(w, http.StatusOK, receipt)
}

// unknownReservationFirst returns err, or that the account or the reservation does not exist when it does not.
func (a *API) unknownReservationFirst(r *http.Request, id, reservationID string, err error) error {
	lookup := a.Users.ReservationExists(r.Context(), id, reservationID)
	if errors.Is(lookup, user.ErrUserNotFound) || errors.Is(lookup, user.ErrReservationNotFound) {
		return lookup
	}
	return err
}

func (a *API) getReservation(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	reservationID, err := pathReservationID(r)
	if err != nil {
		return a.unknownFirst(r, id, err)
	}
	if err := refuseQuery(r, nil); err != nil {
		return a.unknownReservationFirst(r, id, reservationID, err)
	}
	receipt, err := a.Users.Reservation(r.Context(), id, reservationID)
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, newReservationBody(receipt))
}

type reservationsBody struct {
	Reservations []reservationBody `json:"reservations"`
	NextCursor   *string           `json:"next_cursor"`
}

func (a *API) listReservations(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	q := user.ReservationQuery{Status: user.ReservationOpen, Limit: defaultLimit}
	query := newQuery(r)
	query.read("status", func(s string) (err error) { q.Status, err = parseReservationStatus(s); return err })
	query.read("limit", func(s string) (err error) { q.Limit, err = parseLimit(s); return err })
	query.read("cursor", func(s string) (err error) { q.AfterExpiry, q.AfterID, err = parseReservationCursor(s); return err })
	if err := query.err(); err != nil {
		return a.unknownFirst(r, id, err)
	}
	limit := q.Limit
	q.Limit++ // see pageOf
	found, err := a.Users.Reservations(r.Context(), id, q)
	if err != nil {
		return err
	}
	body := reservationsBody{Reservations: []reservationBody{}}
	found, body.NextCursor = pageOf(found, limit, func(last user.ReservationReceipt) string {
		return newReservationCursor(last.Reservation)
	})
	for _, receipt := range found {
		body.Reservations = append(body.Reservations, newReservationBody(receipt))
	}
	return respond(w, http.StatusOK, body)
}

// parseReservationStatus reads a status, or "all", which is none in particular.
func parseReservationStatus(s string) (user.ReservationStatus, error) {
	status := user.ReservationStatus(s)
	switch {
	case s == "all":
		return "", nil
	case !slices.Contains(user.ReservationStatuses(), status):
		return "", oneOf(append(user.ReservationStatuses(), "all"))
	}
	return status, nil
}

// pathReservationID takes a UUID in its usual form; anything else names no reservation.
func pathReservationID(r *http.Request) (string, error) {
	text := chi.URLParam(r, "reservation_id")
	id, err := uuid.Parse(text)
	if err != nil || !strings.EqualFold(id.String(), text) {
		return "", user.ErrReservationNotFound
	}
	return id.String(), nil
}

// A cursor of reservations is the expiry, in microseconds, and the id of the last one of a page.

func newReservationCursor(last user.Reservation) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(last.ExpiresAt.UnixMicro(), 10) + "." + last.ID))
}

func parseReservationCursor(s string) (time.Time, string, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return time.Time{}, "", errCursor
	}
	micros, id, _ := strings.Cut(string(text), ".")
	at, err := strconv.ParseInt(micros, 10, 64)
	if _, invalid := uuid.Parse(id); err != nil || invalid != nil {
		return time.Time{}, "", errCursor
	}
	expiry := time.UnixMicro(at).UTC()
	if expiry.Year() < 1 || expiry.Year() > 9999 || newReservationCursor(user.Reservation{ID: id, ExpiresAt: expiry}) != s {
		return time.Time{}, "", errCursor
	}
	return expiry, id, nil
}
