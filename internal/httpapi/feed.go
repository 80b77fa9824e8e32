package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/csv"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"

	"github.com/viralpilot/user-management/internal/user"
)

const nextCursor = "X-Next-Cursor"

type feedEntryBody struct {
	AccountID string `json:"cognito_user_id"`
	entryBody
}

type feedBody struct {
	Entries    []feedEntryBody `json:"entries"`
	NextCursor string          `json:"next_cursor"`
}

// feedFormat is a form in which the feed is sent.
type feedFormat struct {
	contentType string
	maxLimit    int
	write       func(b *bytes.Buffer, page user.FeedPage) error
}

const (
	typeJSON   = "application/json"
	typeNDJSON = "application/x-ndjson"
	typeCSV    = "text/csv"
)

// feedFormatFor is the form that the caller accepts; whoever accepts none of them gets JSON.
func feedFormatFor(r *http.Request) feedFormat {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	switch goautoneg.Negotiate(accept, []string{typeJSON, typeNDJSON, typeCSV}) {
	case typeNDJSON:
		return feedFormat{typeNDJSON, 10_000, writeNDJSON}
	case typeCSV:
		return feedFormat{typeCSV + "; charset=utf-8; header=present", 10_000, writeCSV}
	}
	return feedFormat{typeJSON, 1000, writeJSON}
}

// feedQuery is what a call of the feed asks for.
type feedQuery struct {
	user.FeedQuery
	latest bool
	wait   time.Duration
}

// maxWait is the longest that a call may wait for entries, in seconds.
const maxWait = 25

func readFeedQuery(r *http.Request, format feedFormat) (feedQuery, error) {
	q := feedQuery{FeedQuery: user.FeedQuery{Limit: format.maxLimit}}
	query := newQuery(r)
	query.read("after", func(s string) (err error) {
		if q.latest = s == "latest"; !q.latest {
			q.After, err = parseFeedCursor(s)
		}
		return err
	})
	query.read("kind", func(s string) (err error) { q.Kind, err = parseKind(s); return err })
	query.read("limit", func(s string) (err error) { q.Limit, err = parseCount(s, 1, format.maxLimit); return err })
	query.read("wait", func(s string) error {
		seconds, err := parseCount(s, 0, maxWait)
		q.wait = time.Duration(seconds) * time.Second
		return err
	})
	return q, query.err()
}

// feed answers with a page of all entries. A call that waits for one has neither a slot nor a connection meanwhile, and
// starts its deadline when it goes on.
func (a *API) feed(w http.ResponseWriter, r *http.Request) error {
	format := feedFormatFor(r)
	q, err := readFeedQuery(r, format)
	if err != nil {
		return err
	}
	if q.wait > 0 {
		a.allowWait(w, q.wait)
	}
	until := time.Now().Add(q.wait)
	for answered := false; ; {
		err := a.inSlot(r, func(ctx context.Context) error {
			page, err := a.feedPage(ctx, q)
			if err != nil {
				return err
			}
			q.After, q.latest = page.Next, false
			if answered = len(page.Entries) > 0 || q.wait == 0; answered {
				err = respondFeed(w, format, page)
			}
			return err
		})
		if err != nil || answered {
			return err
		}
		moved, err := a.Feed.Wait(r.Context(), q.After, until)
		if err != nil {
			return err
		}
		if !moved || !time.Now().Before(until) {
			q.wait = 0 // the next answer is the last
		}
	}
}

// allowWait moves the deadlines of the connection: the server's own are for requests that do not wait. Reading has none, as
// the body is there; whoever hangs up is noticed all the same.
func (a *API) allowWait(w http.ResponseWriter, wait time.Duration) {
	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Time{}) // where there are none, none has to be moved
	if a.WriteTimeout > 0 {
		_ = connection.SetWriteDeadline(time.Now().Add(wait + a.WriteTimeout))
	}
}

// inSlot runs f as one of the requests in flight, within the deadline of a request.
func (a *API) inSlot(r *http.Request, f func(context.Context) error) error {
	key := a.callerKey(r)
	if !a.slots.take(key) {
		return user.ErrOverloaded
	}
	defer a.slots.free(key)
	ctx, cancel := context.WithTimeout(r.Context(), a.RequestTimeout)
	defer cancel()
	return f(ctx)
}

func (a *API) feedPage(ctx context.Context, q feedQuery) (user.FeedPage, error) {
	if q.latest {
		now, err := a.Feed.Latest(ctx)
		return user.FeedPage{Next: now}, err
	}
	return a.Feed.Page(ctx, q.FeedQuery)
}

// respondFeed writes the page to memory first, so that a failure cannot leave half a response.
func respondFeed(w http.ResponseWriter, format feedFormat, page user.FeedPage) error {
	var b bytes.Buffer
	b.Grow(len(page.Entries) * usualEntry)
	if err := format.write(&b, page); err != nil {
		return err
	}
	w.Header().Add("Vary", "Accept")
	w.Header().Set(nextCursor, newFeedCursor(page.Next))
	send(w, http.StatusOK, format.contentType, b.Bytes())
	return nil
}

// usualEntry is about the most bytes that an entry takes.
const usualEntry = 512

func newFeedEntryBody(e user.FeedEntry) feedEntryBody {
	return feedEntryBody{e.AccountID, newEntryBody(e.Entry)}
}

func writeJSON(b *bytes.Buffer, page user.FeedPage) error {
	body := feedBody{make([]feedEntryBody, len(page.Entries)), newFeedCursor(page.Next)}
	for i, e := range page.Entries {
		body.Entries[i] = newFeedEntryBody(e)
	}
	return encoder(b).Encode(body)
}

func writeNDJSON(b *bytes.Buffer, page user.FeedPage) error {
	lines := encoder(b)
	for _, e := range page.Entries {
		if err := lines.Encode(newFeedEntryBody(e)); err != nil {
			return err
		}
	}
	return nil
}

// feedColumns are the names of the fields, in the order of JSON.
var feedColumns = []string{
	"cognito_user_id", "entry_id", "kind", "amount", "balance_after", "used_after", "tokens_charged", "tokens_refunded",
	"top_ups_amount", "changes", "reservation_id", "refunded_entry_id", "idempotency_key", "metadata", "actor", "created_at",
}

func writeCSV(b *bytes.Buffer, page user.FeedPage) error {
	rows := csv.NewWriter(b)
	_ = rows.Write(feedColumns) // its errors are those of Flush
	for _, entry := range page.Entries {
		e := newFeedEntryBody(entry)
		changes, err := jsonCell(e.Changes, e.Changes == nil)
		if err != nil {
			return err
		}
		metadata, err := jsonCell(e.Metadata, e.Metadata == nil)
		if err != nil {
			return err
		}
		topUps := ""
		if e.TopUpsAmount != nil {
			topUps = number(*e.TopUpsAmount)
		}
		_ = rows.Write([]string{
			cell(&e.AccountID), e.EntryID, string(e.Kind), number(e.Amount), number(e.BalanceAfter), number(e.UsedAfter),
			number(e.TokensCharged), number(e.TokensRefunded), topUps, changes, cell(e.ReservationID), cell(e.RefundedEntryID),
			cell(e.IdempotencyKey), metadata, cell(e.Actor), e.CreatedAt.UTC().Format(timestampLayout),
		})
	}
	rows.Flush()
	return rows.Error()
}

// cell is a text of a caller, empty for none. A spreadsheet would take one that begins like a formula for a formula.
func cell(s *string) string {
	if s == nil {
		return ""
	}
	if strings.HasPrefix(*s, "=") || strings.HasPrefix(*s, "+") || strings.HasPrefix(*s, "-") || strings.HasPrefix(*s, "@") {
		return "'" + *s
	}
	return *s
}

// jsonCell is v as JSON, empty for none. It begins with a brace.
func jsonCell(v any, none bool) (string, error) {
	if none {
		return "", nil
	}
	var b bytes.Buffer
	err := encoder(&b).Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// A cursor of the feed is a position in it, with the version of this form. It is good for ever.

const feedCursorVersion = 1

func newFeedCursor(position int64) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64([]byte{feedCursorVersion}, uint64(position)))
}

func parseFeedCursor(s string) (int64, error) {
	const message = fieldMessage("must be latest, or the next_cursor of an earlier page of the feed")
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 9 || b[0] != feedCursorVersion {
		return 0, message
	}
	position := int64(binary.BigEndian.Uint64(b[1:]))
	if position < 0 {
		return 0, message
	}
	return position, nil
}
