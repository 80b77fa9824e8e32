package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/csv"
	"net/http"
	"slices"
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
	// entries is how the entries are written; empty for a page of JSON.
	entries EntryFormat
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
		return feedFormat{typeNDJSON, 10_000, EntriesNDJSON}
	case typeCSV:
		return feedFormat{typeCSV + "; charset=utf-8; header=present", 10_000, EntriesCSV}
	}
	return feedFormat{typeJSON, 1000, ""}
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
			page, err := a.feedPage(ctx, q, format, newPage())
			if err != nil {
				return err
			}
			sent := error(nil)
			defer func() {
				if sent == nil {
					keepPage(page.text)
				}
			}()
			q.After, q.latest = page.next, false
			if answered = page.entries > 0 || q.wait == 0; answered {
				w.Header().Add("Vary", "Accept")
				w.Header().Set(nextCursor, newFeedCursor(page.next))
				sent = send(w, http.StatusOK, format.contentType, page.text)
			}
			return nil
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

// writtenPage is a page as it is sent.
type writtenPage struct {
	text    []byte
	entries int
	next    int64
}

// maxFeedPart is how many entries of a page are read at a time: as text they take less memory.
const maxFeedPart = 2500

// feedPage appends a page to b, whole, so that a failure cannot leave half a response.
func (a *API) feedPage(ctx context.Context, q feedQuery, format feedFormat, b []byte) (page writtenPage, err error) {
	if q.latest {
		q.After, err = a.Feed.Latest(ctx)
		if err != nil {
			return writtenPage{}, err
		}
		q.Limit = 0
	}
	page = writtenPage{append(b, format.entries.Header()...), 0, q.After}
	var part user.FeedPage
	for more := q.Limit > 0; more; {
		wanted := q.FeedQuery
		wanted.After, wanted.Limit = page.next, min(q.Limit-page.entries, maxFeedPart)
		if part, err = a.Feed.Page(ctx, wanted); err != nil {
			return writtenPage{}, err
		}
		page.next = part.Next
		page.entries += len(part.Entries)
		more = len(part.Entries) == wanted.Limit && page.entries < q.Limit
		if format.entries == "" {
			break
		}
		page.text = slices.Grow(page.text, len(part.Entries)*usualEntry)
		if page.text, err = format.entries.Append(page.text, part.Entries); err != nil {
			return writtenPage{}, err
		}
	}
	if format.entries == "" { // one part is all of it
		part.Next = page.next
		page.text = appendFeedJSON(page.text, part)
	}
	return page, nil
}

// usualEntry is about the most bytes that an entry takes.
const usualEntry = 512

// pages are buffers for pages, which are much larger than other bodies: of those that are not in use few are kept.
var pages = make(chan []byte, 2)

func newPage() []byte {
	select {
	case b := <-pages:
		return b[:0]
	default:
		return make([]byte, 0, maxFeedPart*usualEntry)
	}
}

func keepPage(b []byte) {
	select {
	case pages <- b:
	default:
	}
}

// newFeedEntryBody takes the JSON of the entry over.
func newFeedEntryBody(e *user.FeedEntry) feedEntryBody {
	body := newBareEntryBody(&e.Entry)
	body.Changes, body.Metadata = withoutBlanks(e.StoredChanges), withoutBlanks(e.StoredMetadata)
	return feedEntryBody{e.AccountID, body}
}

func appendFeedJSON(b []byte, page user.FeedPage) []byte {
	body := feedBody{make([]feedEntryBody, len(page.Entries)), newFeedCursor(page.Next)}
	for i := range page.Entries {
		body.Entries[i] = newFeedEntryBody(&page.Entries[i])
	}
	return append(body.appendTo(b), '\n')
}

// EntryFormat is a form in which entries are written one after the other.
type EntryFormat string

// The forms of entries: an object of JSON a line, or a row of CSV.
const (
	EntriesNDJSON EntryFormat = "ndjson"
	EntriesCSV    EntryFormat = "csv"
)

// Header is what comes before the first entry.
func (f EntryFormat) Header() []byte {
	if f == EntriesCSV {
		return []byte(strings.Join(feedColumns, ",") + "\n")
	}
	return nil
}

// Append appends the entries to b.
func (f EntryFormat) Append(b []byte, entries []user.FeedEntry) ([]byte, error) {
	if f == EntriesCSV {
		return appendCSV(b, entries)
	}
	for i := range entries {
		b = append(newFeedEntryBody(&entries[i]).appendTo(b), '\n')
	}
	return b, nil
}

// feedColumns are the names of the fields, in the order of JSON.
var feedColumns = []string{
	"cognito_user_id", "entry_id", "kind", "amount", "balance_after", "used_after", "tokens_charged", "tokens_refunded",
	"top_ups_amount", "changes", "reservation_id", "refunded_entry_id", "idempotency_key", "metadata", "actor", "created_at",
}

func appendCSV(b []byte, entries []user.FeedEntry) ([]byte, error) {
	text := bytes.NewBuffer(b)
	rows := csv.NewWriter(text)
	for i := range entries {
		e := newFeedEntryBody(&entries[i])
		topUps, refunded := "", ""
		if e.TopUpsAmount != nil {
			topUps = number(*e.TopUpsAmount)
		}
		if e.RefundedEntryID != nil {
			refunded = number(int64(*e.RefundedEntryID))
		}
		_ = rows.Write([]string{ // its errors are those of Flush
			cell(&e.AccountID), number(int64(e.EntryID)), string(e.Kind), number(e.Amount), number(e.BalanceAfter), number(e.UsedAfter),
			number(e.TokensCharged), number(e.TokensRefunded), topUps, string(e.Changes), cell(e.ReservationID), refunded,
			cell(e.IdempotencyKey), string(e.Metadata), cell(e.Actor), e.CreatedAt.UTC().Format(timestampLayout),
		})
	}
	rows.Flush()
	return text.Bytes(), rows.Error()
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
