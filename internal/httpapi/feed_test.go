package httpapi_test

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

// accepting gets a page of the feed in the form.
func (s *service) accepting(form, query string) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodGet, Path: "/ledger?" + query, Header: http.Header{"Accept": {form}}})
}

// feed reads n entries of the feed after the cursor, which may be empty. Other tests of the package have transactions on the
// server, so it waits for them.
func (s *service) feed(cursor string, n int, query string) (entries []m, next string) {
	s.t.Helper()
	for next = cursor; len(entries) < n; {
		q := url.Values{"wait": {"25"}}
		if next != "" {
			q.Set("after", next)
		}
		body := s.get("/ledger?" + q.Encode() + query).want(http.StatusOK)
		shape(s.t, body, "entries next_cursor")
		found := body["entries"].([]any)
		if len(found) == 0 {
			s.t.Fatalf("only %d of %d entries come", len(entries), n)
		}
		for _, e := range found {
			entries = append(entries, e.(map[string]any))
		}
		next = body["next_cursor"].(string)
	}
	return entries, next
}

func TestFeed_ShowsEntriesOfAllUsersInTheirOrder(t *testing.T) {
	t.Parallel()
	s := start(t)
	a, b := s.account("tester", 5), s.account("tester", 5)
	for range 3 {
		s.consume(a, 1).want(http.StatusOK)
		s.consume(b, 2).want(http.StatusOK)
	}
	var want []m
	for _, id := range []string{a, b} {
		for _, e := range s.entries(id) {
			e["cognito_user_id"] = id
			want = append(want, e)
		}
	}
	slices.SortFunc(want, func(a, b m) int { return number(a) - number(b) })
	all, end := s.feed("", len(want), "")
	if got := fmt.Sprint(all); got != fmt.Sprint(want) {
		t.Errorf("got %s\nwant %s", got, fmt.Sprint(want))
	}
	t.Run("page by page", func(t *testing.T) {
		s := s.in(t)
		var paged []m
		for cursor := ""; len(paged) < len(want); {
			var page []m
			page, cursor = s.feed(cursor, 1, "&limit=1")
			paged = append(paged, page...)
		}
		if fmt.Sprint(paged) != fmt.Sprint(want) {
			t.Errorf("got %v", paged)
		}
	})
	t.Run("of one kind", func(t *testing.T) {
		of, _ := s.in(t).feed("", 6, "&kind=consume")
		for _, e := range of {
			if e["kind"] != "consume" {
				t.Errorf("kind %v", e["kind"])
			}
		}
	})
	t.Run("and nothing after the end", func(t *testing.T) {
		has(t, s.in(t).get("/ledger?after="+end).want(http.StatusOK), m{"next_cursor": end, "entries": []any{}})
	})
}

func number(e m) (n int) {
	_, _ = fmt.Sscan(e["entry_id"].(string), &n)
	return n
}

func TestFeed_Forms(t *testing.T) {
	t.Parallel()
	s := start(t)
	const formula = "=HYPERLINK(\"http://evil\")"
	ids := []string{formula, "+1", "-1", "@sum", "plain, with \"quotes\""}
	for _, id := range ids {
		s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
		s.do(request{
			Method: http.MethodPost, Path: "/user/" + url.PathEscape(id) + "/add-tokens", Header: http.Header{"Idempotency-Key": {"=1+1"}},
			Body: m{"tokens_to_add": 5, "metadata": m{"note": "a<b, \"c\"\nü"}},
		}).want(http.StatusOK)
		s.post("/user/"+url.PathEscape(id)+"/consume-tokens", m{}).want(http.StatusOK)
	}
	all, end := s.feed("", 2*len(ids), "")
	for form, media := range map[string]string{
		"application/x-ndjson": "application/x-ndjson", "text/csv": "text/csv; charset=utf-8; header=present",
		"": "application/json", "*/*": "application/json", "text/html": "application/json", "nonsense": "application/json",
		"text/csv;q=0.5, application/json": "application/json", "text/html, text/csv;q=0.1": "text/csv; charset=utf-8; header=present",
	} {
		r := s.accepting(form, "")
		if got := r.Header.Get("Content-Type"); r.Status != http.StatusOK || got != media {
			t.Errorf("%q is answered with %d and %q", form, r.Status, got)
		}
		if r.Header.Get("X-Next-Cursor") != end || !slices.Contains(r.Header.Values("Vary"), "Accept") {
			t.Errorf("%q: headers %v", form, r.Header)
		}
	}
	t.Run("NDJSON has an entry a line", func(t *testing.T) {
		lines := json.NewDecoder(strings.NewReader(string(s.accepting("application/x-ndjson", "").Body)))
		for i, want := range all {
			var got m
			if err := lines.Decode(&got); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("line %d: %v, %v, want %v", i, got, err, want)
			}
		}
		if lines.More() {
			t.Error("there are more lines")
		}
	})
	t.Run("CSV has the fields in their order and no formula", func(t *testing.T) {
		rows, err := csv.NewReader(strings.NewReader(string(s.accepting("text/csv", "").Body))).ReadAll()
		if err != nil || len(rows) != 1+len(all) {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		var fields []string
		if err := json.Unmarshal([]byte(`["`+strings.Join(rows[0], `","`)+`"]`), &fields); err != nil || len(fields) != len(all[0]) {
			t.Fatalf("fields %v, %v", rows[0], err)
		}
		for i, row := range rows[1:] {
			for j, name := range fields {
				want := fmt.Sprint(all[i][name])
				switch v := all[i][name].(type) {
				case nil:
					want = ""
				case map[string]any:
					var got any
					if err := json.Unmarshal([]byte(row[j]), &got); err != nil || fmt.Sprint(got) != fmt.Sprint(v) {
						t.Errorf("%s is %q, want %v", name, row[j], v)
					}
					want = row[j]
				case string:
					if strings.ContainsAny(v[:1], "=+-@") {
						want = "'" + v
					}
				}
				if row[j] != want {
					t.Errorf("%s is %q, want %q", name, row[j], want)
				}
			}
		}
	})
	t.Run("that are cut off at their limit", func(t *testing.T) {
		for form, limit := range map[string]int{"application/json": 1000, "text/csv": 10000, "application/x-ndjson": 10000} {
			if got := s.accepting(form, fmt.Sprint("limit=", limit)).Status; got != http.StatusOK {
				t.Errorf("%s with a limit of %d: %d", form, limit, got)
			}
			s.accepting(form, fmt.Sprint("limit=", limit+1)).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		}
	})
}

func TestFeed_QueryThatIsNotValid(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.account("tester", 5)
	_, cursor := s.feed("", 1, "")
	for _, query := range []string{
		"after=", "after=latest1", "after=" + cursor + "A", "after=" + cursor[:11], "after=MTA0Mg", "after=AgAAAAAAAAQS", "after=Af__________",
		"after=" + cursor + "%3D", "after=" + cursor + "&after=" + cursor,
		"kind=", "kind=nope", "limit=0", "limit=-1", "limit=x", "wait=26", "wait=-1", "wait=1.5", "wait=", "cursor=" + cursor, "since=2026-01-01",
	} {
		s.get("/ledger?"+query).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
	}
}

func TestFeed_CursorIsGoodForEver(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.account("tester", 5)
	for _, cursor := range []string{"AQAAAAAAAAAA", "AQAAAAAAAAAB", "AX__________"} { // of 0, 1 and the last of all
		if got := s.get("/ledger?after=" + cursor).Status; got != http.StatusOK {
			t.Errorf("%s is answered with %d", cursor, got)
		}
	}
}

func TestFeedWait_IsAnsweredAsSoonAsAnEntryComes(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *httpapi.Options) { o.MaxInFlight = 2 })
	id := s.account("tester", 50)
	_, end := s.feed("", len(s.entries(id)), "")
	other := s.replica()
	const readers = 20 // more than there are slots
	var waiting sync.WaitGroup
	arrived := make(chan struct{}, readers)
	for range readers {
		waiting.Go(func() {
			by := s
			for {
				r := by.get("/ledger?wait=25&after=" + end)
				if r.Status == http.StatusServiceUnavailable { // all of them go on at once
					continue
				}
				if entries := r.want(http.StatusOK)["entries"].([]any); len(entries) != 1 {
					t.Errorf("%d entries come", len(entries))
				}
				arrived <- struct{}{}
				return
			}
		})
	}
	other.consume(id, 1).want(http.StatusOK)
	waiting.Wait()
	if len(arrived) != readers {
		t.Errorf("%d of %d were answered", len(arrived), readers)
	}
}

// empty is a ledger without entries. It says when somebody has looked at it, to wait for some.
type empty struct {
	broken
	looked chan struct{}
}

func (e empty) Horizon(context.Context) (user.Horizon, error) {
	select {
	case e.looked <- struct{}{}:
	default:
	}
	return user.Horizon{}, nil
}

func TestFeedWait_EndsWhenTheServiceStops(t *testing.T) {
	t.Parallel()
	ledger := empty{looked: make(chan struct{})}
	s, api := stub(t, works, func(o *httpapi.Options) {
		o.Feed = newFeed(t, ledger)
		o.MaxInFlight, o.RequestTimeout = 1, time.Nanosecond // neither counts what they wait for
	})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		has(t, s.get("/ledger?wait=25").want(http.StatusOK), m{"entries": []any{}, "next_cursor": "AQAAAAAAAAAA"})
	})
	for range 3 { // the call itself, and the poller while it waits
		<-ledger.looked
	}
	s.get("/ledger").want(http.StatusOK)
	api.Stopping()
	waiting.Wait()
	s.get("/ledger?wait=25").want(http.StatusOK) // waits for nothing any more
}

func TestFeedWait_IsBounded(t *testing.T) {
	t.Parallel()
	s, api := stub(t, works, func(o *httpapi.Options) { o.Feed = newFeed(t, empty{looked: make(chan struct{})}) })
	refused := make(chan response)
	var waiting sync.WaitGroup
	const most, more = 256, 10
	for range most + more {
		waiting.Go(func() {
			if r := s.get("/ledger?wait=25"); r.Status != http.StatusOK {
				refused <- r
			}
		})
	}
	for range more {
		(<-refused).wantProblem(http.StatusServiceUnavailable, "overloaded")
	}
	api.Stopping()
	waiting.Wait()
}

func TestFeedWait_OutlivesTheDeadlinesOfTheServer(t *testing.T) {
	t.Parallel()
	for protocol, version := range map[string]int{"HTTP/1.1": 1, "HTTP/2": 2} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const timeout = 200 * time.Millisecond
			s := start(t, func(o *httpapi.Options) { o.WriteTimeout = localpgtest.Patience })
			server := httptest.NewUnstartedServer(s.handler)
			server.EnableHTTP2 = version == 2
			server.Config.ReadTimeout, server.Config.WriteTimeout = timeout, timeout
			server.StartTLS()
			t.Cleanup(server.Close)
			for range 2 { // on one connection
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/ledger?wait=1", http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				response, err := server.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				var body m
				err = json.NewDecoder(response.Body).Decode(&body)
				response.Body.Close()
				if err != nil || response.StatusCode != http.StatusOK || response.ProtoMajor != version {
					t.Errorf("%s %s %v, %v", response.Proto, response.Status, body, err)
				}
			}
		})
	}
}

func TestFeed_PagesOfOtherOriginsReadNoneOfIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.do(request{Method: http.MethodGet, Path: "/ledger", Header: sent("Origin", evil)}).wantProblem(http.StatusForbidden, "cross_site")
	locked := s.with(t, func(o *httpapi.Options) { o.Authenticate = authenticate }).as(operator)
	r := locked.do(request{Method: http.MethodGet, Path: "/ledger", Header: sent("Origin", evil)})
	r.want(http.StatusOK)
	if got := r.Header.Get("Access-Control-Expose-Headers"); !strings.Contains(got, "X-Next-Cursor") {
		t.Errorf("scripts may read %s", got)
	}
}
