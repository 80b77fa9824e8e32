package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

// recorder is a store with one account, whatever its id, that remembers what it was asked.
type recorder struct {
	user.Store // never called
	balance    int64
	id         string
	change     user.Change
	query      user.EntryQuery
}

func (s *recorder) account() user.Account {
	now := s.now()
	return user.Account{
		ID: s.id, Tier: user.TierFree, SubscriptionStatus: user.StatusActive, Active: true, SideRow: user.CurrentSideRow,
		GrantedPeriod: 2026*12 + 11, TokensRemaining: s.balance, TopUps: s.balance, LastReset: &now, CreatedAt: now, UpdatedAt: now,
	}
}

func (s *recorder) Create(_ context.Context, id string, open func(user.State) (user.Change, error)) (user.Change, error) {
	change, err := open(user.State{Now: s.now()})
	s.id, s.change = id, change
	return change, err
}

func (*recorder) now() time.Time { return time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC) }

func (s *recorder) Account(_ context.Context, id string) (user.Account, error) {
	s.id = id
	return s.account(), nil
}

func (s *recorder) Update(_ context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	s.id = ref.AccountID
	change, err := apply(user.State{Account: s.account(), Now: s.now()})
	s.change = change
	return change, err
}

// Entries returns a full page, and one entry more, that ends with the entry that the query begins after.
func (s *recorder) Entries(_ context.Context, id string, q user.EntryQuery) ([]user.Entry, int64, error) {
	s.id, s.query = id, q
	return slices.Repeat([]user.Entry{{ID: max(q.Before, 1), Kind: user.KindConsume}}, q.Limit), max(q.Before, 1), nil
}

// fuzzed is a service on a recorder.
func fuzzed(f *testing.F) (*recorder, http.Handler) {
	f.Helper()
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		f.Fatal(err)
	}
	store := &recorder{}
	return store, httpapi.New(httpapi.Options{
		Users: &user.Service{Store: store, Rules: user.NewRules(tiers, time.UTC), Now: store.now},
		Log:   slog.New(slog.DiscardHandler), LogRequests: httpapi.LogNone, RequestTimeout: time.Minute,
	}).Handler()
}

// send sends one request to the path and query of u and checks what holds for every response.
func send(t *testing.T, h http.Handler, method string, u *url.URL, body string) (status int, got m) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.URL = u
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("status %d with body %q: %v", w.Code, w.Body, err)
	}
	media := w.Header().Get("Content-Type")
	if w.Code >= 500 || w.Code >= 400 && (media != "application/problem+json" || got["status"] != float64(w.Code)) || w.Code < 400 && media != "application/json" {
		t.Fatalf("status %d with %s: %s", w.Code, media, w.Body)
	}
	return w.Code, got
}

func FuzzBody(f *testing.F) {
	store, h := fuzzed(f)
	for i, names := range []string{"create", "tier", "consume", "add"} {
		for _, c := range slices.Concat(badBodies(calls("u")), badFields(calls("u"))) {
			if body, ok := c.r.Body.(string); ok && strings.Contains(c.name, names) && len(body) < 300 {
				f.Add(uint8(i), body)
			}
		}
	}
	for i, body := range []string{
		`{"cognito_user_id":"a/b\u0020😀","username":"","email":"ann@example.com"}`, `{"tier":"tester","renewal_date":"2026-12-24T10:00:00.123456789+05:30"}`,
		`{"tokens_to_consume":2147483647,"metadata":{"a":"b","\u00fc":"\ud83d\ude00"}}`, `{ "metadata" : null , "tokens_to_add" : 1 }`,
	} {
		f.Add(uint8(i), body)
	}
	f.Fuzz(func(t *testing.T, call uint8, body string) {
		name := []string{"create", "tier", "consume", "add"}[call%4]
		c := calls("u")[name]
		store.change, store.balance = user.Change{}, map[string]int64{"consume": user.MaxTokens}[name]
		status, got := send(t, h, c.method, &url.URL{Path: c.path}, body)
		if status >= 400 {
			if !slices.Contains([]int{400, 413, 422}, status) || len(store.change.Entries) > 0 || name == "create" && store.change.Account.ID != "" {
				t.Fatalf("status %d, written %+v", status, store.change)
			}
			return
		}
		// What was accepted is what another decoder reads, and nothing of it is lost.
		var sent map[string]json.RawMessage
		if err := json.Unmarshal([]byte(body), &sent); err != nil {
			t.Fatalf("accepted: %v", err)
		}
		text := func(field string) any { // nil for none
			var s *string
			if err := json.Unmarshal(sent[field], &s); sent[field] != nil && err != nil {
				t.Fatalf("%s is accepted: %v", field, err)
			}
			if s == nil || *s == "" {
				return nil
			}
			return *s
		}
		known := map[string]string{
			"create": "cognito_user_id username email", "tier": "tier renewal_date metadata", "consume": "tokens_to_consume metadata", "add": "tokens_to_add metadata",
		}[name]
		for field := range sent {
			if !slices.Contains(strings.Fields(known), field) {
				t.Fatalf("%q is accepted", field)
			}
		}
		switch name {
		case "create":
			has(t, got, m{"cognito_user_id": text("cognito_user_id"), "username": text("username"), "email": text("email")})
			if problem := user.ValidateNewID(store.change.Account.ID); problem != "" {
				t.Fatalf("the id %s", problem)
			}
		case "tier":
			has(t, got, m{"subscription_tier": text("tier")})
			date := got["subscription_renewal_date"]
			if (date == nil) != (text("renewal_date") == nil) {
				t.Fatalf("renewal date %v", date)
			}
			again, err := json.Marshal(m{"tier": got["subscription_tier"], "renewal_date": date})
			if err != nil {
				t.Fatal(err)
			}
			if _, got := send(t, h, c.method, &url.URL{Path: c.path}, string(again)); got["subscription_renewal_date"] != date {
				t.Fatalf("%v is read as %v", date, got["subscription_renewal_date"])
			}
		default:
			entry := store.change.Entries[len(store.change.Entries)-1]
			field := map[string]string{"consume": "tokens_to_consume", "add": "tokens_to_add"}[name]
			want := "1"
			if raw, given := sent[field]; given {
				want = string(bytes.TrimSpace(raw))
			}
			if amount := strconv.FormatInt(max(entry.Amount, -entry.Amount), 10); amount != want {
				t.Fatalf("%s tokens, %s were sent", amount, want)
			}
			var notes map[string]string
			if raw := sent["metadata"]; raw != nil {
				if err := json.Unmarshal(raw, &notes); err != nil {
					t.Fatalf("metadata: %v", err)
				}
			}
			if !maps.Equal(entry.Metadata, notes) {
				t.Fatalf("metadata %q, sent %q", entry.Metadata, notes)
			}
		}
	})
}

func FuzzPathID(f *testing.F) {
	store, h := fuzzed(f)
	for _, raw := range []string{
		"u", "a%2Fb", "user%40x.com", "us-east-1%3A1b2c", "%2541", "é%2Fstatus", "ö%2Fb", "%C3%A9", "a+b", "a b", "..", "%2e", "", "%20", "%00", "%ff", "a%", "a/b", "a?b", "a#b", "a;b", "*", "[", "\\", "\"%2F",
		"{cognito_user_id}", "%e2%98%83", strings.Repeat("%C3%A9", 255), strings.Repeat("a", 256), "a%2Fledger", "//", "@", "a:b", "%F0%9F%98%80",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		const below = "/status"
		u, err := url.ParseRequestURI("/user/" + raw + below)
		if err != nil || strings.ContainsAny(raw, "?#") { // net/http refuses it, or the id ends there
			return
		}
		store.id = ""
		status, got := send(t, h, http.MethodGet, u, "")
		id, err := url.PathUnescape(raw)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(raw, "/"):
			if status != http.StatusNotFound || store.id != "" {
				t.Fatalf("status %d, asked for %q", status, store.id)
			}
			return
		case user.ValidateID(id) != "":
			if status != http.StatusBadRequest || got["code"] != "invalid_path" || store.id != "" {
				t.Fatalf("status %d, asked for %q", status, store.id)
			}
			return
		case status != http.StatusOK || store.id != id || got["cognito_user_id"] != id:
			t.Fatalf("status %d, asked for %q, want %q: %v", status, store.id, id, got)
		}
		// The id in another form, and that which Location has, mean the same.
		if user.ValidateNewID(id) != "" {
			return
		}
		body, err := json.Marshal(m{"cognito_user_id": id})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/user", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		for _, path := range []string{w.Header().Get("Location"), "/user/" + strings.ReplaceAll(url.QueryEscape(id), "+", "%20")} {
			u, err := url.ParseRequestURI(path)
			if err != nil {
				t.Fatal(err)
			}
			store.id = ""
			if status, got := send(t, h, http.MethodGet, u, ""); status != http.StatusOK || store.id != id || got["cognito_user_id"] != id {
				t.Fatalf("%s: status %d, asked for %q, want %q", path, status, store.id, id)
			}
		}
	})
}

func FuzzCursor(f *testing.F) {
	store, h := fuzzed(f)
	for _, cursor := range []string{"MQ", "OTIyMzM3MjAzNjg1NDc3NTgwNw", "OTIyMzM3MjAzNjg1NDc3NTgwOA", "MR", "MDE", "LTE", "MQ==", "", " ", "MQ\n", "M\nQ", "x", "12", "_-8", "\xff", "MTIzNDU2Nzg5MA"} {
		f.Add(cursor)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		store.query = user.EntryQuery{}
		status, got := send(t, h, http.MethodGet, &url.URL{Path: "/user/u/ledger", RawQuery: "limit=1&cursor=" + url.QueryEscape(cursor)}, "")
		if status == http.StatusOK {
			// The page ends with the entry after which it began, so its cursor is the one that was sent.
			if got["next_cursor"] != cursor || store.query.Before < 1 {
				t.Fatalf("%q is read as %d and answered with %v", cursor, store.query.Before, got["next_cursor"])
			}
		} else if status != http.StatusUnprocessableEntity || store.query.Limit != 0 {
			t.Fatalf("status %d", status)
		}
	})
}

func FuzzLedgerQuery(f *testing.F) {
	store, h := fuzzed(f)
	for _, c := range badQueries("u") {
		_, query, _ := strings.Cut(c.r.Path, "?")
		f.Add(query)
	}
	for _, query := range []string{
		"", "kind=consume&since=2026-11-24T10:00:00.123456789%2B05:30&until=9999-12-31T23:59:59.999999&limit=200&cursor=MQ", "a=b&&=&limit=007", "since=0001-01-01T00:00:00Z", "%6Bind=top_up",
	} {
		f.Add(query)
	}
	ask := func(t *testing.T, query string) (int, user.EntryQuery) {
		t.Helper()
		store.query = user.EntryQuery{}
		status, got := send(t, h, http.MethodGet, &url.URL{Path: "/user/u/ledger", RawQuery: query}, "")
		if status != http.StatusOK && (status != http.StatusUnprocessableEntity || store.query.Limit != 0 || got["errors"] == nil) {
			t.Fatalf("status %d, asked for %+v", status, store.query)
		}
		return status, store.query
	}
	f.Fuzz(func(t *testing.T, query string) {
		status, read := ask(t, query)
		if status != http.StatusOK {
			return
		}
		if read.Limit < 2 || read.Limit > 201 || read.Before < 0 || read.Kind != "" && !slices.Contains(user.EntryKinds(), read.Kind) {
			t.Fatalf("%+v is accepted", read)
		}
		// Written anew, it means the same.
		sent, err := url.ParseQuery(query)
		if err != nil {
			t.Fatalf("accepted: %v", err)
		}
		values := url.Values{"limit": {strconv.Itoa(read.Limit - 1)}}
		for name, value := range map[string]string{"kind": string(read.Kind), "since": instant(read.Since), "until": instant(read.Until), "cursor": sent.Get("cursor")} {
			if value != "" {
				values.Set(name, value)
			}
		}
		if status, again := ask(t, values.Encode()); status != http.StatusOK || !reflect.DeepEqual(again, read) {
			t.Fatalf("%s is %+v, and %s is %+v", query, read, values.Encode(), again)
		}
	})
}

// instant is t in RFC 3339, or nothing.
func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}
