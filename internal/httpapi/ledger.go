package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/user"
)

type entryBody struct {
	EntryID         entryNumber     `json:"entry_id"`
	Kind            user.EntryKind  `json:"kind"`
	Amount          int64           `json:"amount"`
	BalanceAfter    int64           `json:"balance_after"`
	UsedAfter       int64           `json:"used_after"`
	TokensCharged   int64           `json:"tokens_charged"`
	TokensRefunded  int64           `json:"tokens_refunded"`
	TopUpsAmount    *int64          `json:"top_ups_amount"`
	Changes         json.RawMessage `json:"changes"` // in JSON already, without blanks, as Metadata is
	ReservationID   *string         `json:"reservation_id"`
	RefundedEntryID *entryNumber    `json:"refunded_entry_id"`
	IdempotencyKey  *string         `json:"idempotency_key"`
	Metadata        json.RawMessage `json:"metadata"`
	Actor           *string         `json:"actor"`
	CreatedAt       timestamp       `json:"created_at"`
}

type ledgerBody struct {
	Entries    []entryBody `json:"entries"`
	NextCursor *string     `json:"next_cursor"`
}

func (a *API) ledger(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	q, err := entryQuery(r)
	if err != nil {
		return a.unknownFirst(r, id, err)
	}
	limit := q.Limit
	q.Limit++ // see pageOf
	entries, before, err := a.Users.Entries(r.Context(), id, q)
	if err != nil {
		return err
	}
	body := ledgerBody{Entries: []entryBody{}}
	entries, body.NextCursor = pageOf(entries, limit, func(last user.Entry) string { return newCursor(last.ID) })
	if body.NextCursor == nil && before != 0 { // the search for more was given up there
		next := newCursor(before)
		body.NextCursor = &next
	}
	private := !callerOf(r).Can(auth.Read)
	for _, e := range entries {
		if private { // its owner reads it: who works there, and with which keys, is none of their business
			e.Actor, e.IdempotencyKey = nil, nil
		}
		body.Entries = append(body.Entries, newEntryBody(e))
	}
	return respondWith(w, http.StatusOK, body)
}

func newEntryBody(e user.Entry) entryBody {
	b := newBareEntryBody(&e)
	if e.Changes != nil {
		b.Changes = appendValue(nil, e.Changes)
	}
	if e.Metadata != nil {
		b.Metadata = appendMetadata(nil, e.Metadata)
	}
	return b
}

// newBareEntryBody is newEntryBody without changes and metadata.
func newBareEntryBody(e *user.Entry) entryBody {
	return entryBody{
		EntryID: entryNumber(e.ID), Kind: e.Kind, Amount: e.Amount, BalanceAfter: e.BalanceAfter, UsedAfter: e.UsedAfter,
		TokensCharged: e.TokensCharged, TokensRefunded: e.TokensRefunded, TopUpsAmount: e.TopUpsAmount,
		ReservationID: e.ReservationID, RefundedEntryID: (*entryNumber)(e.RefundedEntryID), IdempotencyKey: e.IdempotencyKey,
		Actor: e.Actor, CreatedAt: timestamp{e.CreatedAt},
	}
}

// entryNumber is the id of an entry, which is a text on the wire.
type entryNumber int64

// MarshalJSON writes the text.
func (n entryNumber) MarshalJSON() ([]byte, error) { return n.appendTo(nil), nil }

func (n entryNumber) appendTo(b []byte) []byte {
	return append(strconv.AppendInt(append(b, '"'), int64(n), 10), '"')
}

func entryQuery(r *http.Request) (user.EntryQuery, error) {
	q := user.EntryQuery{Limit: defaultLimit}
	query := newQuery(r)
	query.read("kind", func(s string) (err error) { q.Kind, err = parseKind(s); return err })
	query.read("since", func(s string) (err error) { q.Since, err = parseTimestamp(s); return err })
	query.read("until", func(s string) (err error) { q.Until, err = parseUntil(s); return err })
	query.read("limit", func(s string) (err error) { q.Limit, err = parseLimit(s); return err })
	query.read("cursor", func(s string) (err error) { q.Before, err = parseCursor(s); return err })
	return q, query.err()
}

func parseKind(s string) (user.EntryKind, error) {
	kind := user.EntryKind(s)
	if !slices.Contains(user.EntryKinds(), kind) {
		return "", oneOf(user.EntryKinds())
	}
	return kind, nil
}

// parseUntil reads the end of a list; the zero time, before which there is nothing, would mean no end.
func parseUntil(s string) (time.Time, error) {
	t, err := parseTimestamp(s)
	if err == nil && t.IsZero() {
		err = errTimestamp
	}
	return t, err
}

// A cursor is the id of the last entry of a page, or that was looked at for it, in a form that nobody is tempted to calculate with.

func newCursor(last int64) string {
	return base64.RawURLEncoding.EncodeToString(strconv.AppendInt(nil, last, 10))
}

func parseCursor(s string) (int64, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return 0, errCursor
	}
	id, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || id < 1 || newCursor(id) != s {
		return 0, errCursor
	}
	return id, nil
}

const errCursor = fieldMessage("must be the next_cursor of an earlier page")
