package httpapi_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestMain(m *testing.M) {
	code := localpgtest.Main(m, func(ctx context.Context, url string) error {
		store, err := postgres.Open(ctx, options(url))
		if err != nil {
			return err
		}
		store.Close()
		return nil
	})
	if code == 0 && allTestsRan() {
		for _, missing := range openAPI().unproduced() {
			fmt.Fprintln(os.Stderr, "documented, and not produced by any test:", missing)
			code = 1
		}
	}
	os.Exit(code)
}

func options(url string) postgres.Options {
	return postgres.Options{
		URL: url, MaxConns: 4, ConnectTimeout: localpgtest.Patience, AcquireTimeout: localpgtest.Patience,
		StatementTimeout: localpgtest.Patience, Log: slog.New(slog.DiscardHandler),
	}
}

// clock is the service's clock, moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

// service is the API on a database of its own, called through the real router.
type service struct {
	t       *testing.T
	options httpapi.Options
	handler http.Handler
	// url leads to the database; see replica.
	url     string
	store   *postgres.Store
	clock   *clock
	log     *lockedBuffer
	private *privateWords
	// key is sent with every request, if there is one; see as.
	key string
}

// start returns a service with the built-in tiers, except that basic has 5000 tokens; change may alter its options.
func start(t *testing.T, change ...func(*httpapi.Options)) *service {
	t.Helper()
	url, clock := localpgtest.New(t), &clock{now: time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)}
	store := open(t, url, clock)
	tiers, err := user.NewCatalogue(map[string]int64{"basic": 5000})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, url: url, store: store, clock: clock, log: &lockedBuffer{}, private: &privateWords{}}
	t.Cleanup(func() { s.private.checkLog(t, s.log) })
	s.options = httpapi.Options{
		Users: &user.Service{
			Store: store, Rules: user.NewRules(tiers, time.UTC), Now: s.clock.Now, Dimensions: []string{"feature", "model"},
		},
		Feed:           newFeed(t, store),
		Database:       store,
		Log:            slog.New(slog.NewJSONHandler(s.log, nil)),
		Version:        "test",
		CORSOrigins:    []string{"*"},
		LogRequests:    httpapi.LogAll,
		MetricsHandler: metrics,
		RequestTimeout: 2 * localpgtest.Patience,
	}
	return s.with(t, change...)
}

// open returns a store on the database whose clock, too, is the test's.
func open(t *testing.T, url string, clock *clock) *postgres.Store {
	t.Helper()
	o := options(url)
	o.Clock = func(context.Context, time.Time) time.Time { return clock.Now() }
	store, err := postgres.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// newFeed returns the feed of a store, which is closed before it.
func newFeed(t *testing.T, store user.FeedStore) *user.Feed {
	t.Helper()
	feed := user.NewFeed(store)
	t.Cleanup(feed.Close)
	return feed
}

// replica returns a second service on the same database, with connections of its own.
func (s *service) replica() *service {
	s.t.Helper()
	store := open(s.t, s.url, s.clock)
	feed := newFeed(s.t, store)
	other := s.with(s.t, func(o *httpapi.Options) { o.Users.Store, o.Feed, o.Database = store, feed, store })
	other.store = store
	return other
}

// with returns a service on the same database with other options.
func (s *service) with(t *testing.T, change ...func(*httpapi.Options)) *service {
	other, users := *s, *s.options.Users
	other.t, other.options.Users = t, &users
	for _, c := range change {
		c(&other.options)
	}
	other.handler = httpapi.New(other.options).Handler()
	return &other
}

// metrics stands in for those of Prometheus.
var metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = io.WriteString(w, "up 1\n")
})

// request is one call; a Body that is not a string is marshalled. Host is 127.0.0.1:8001 unless the header has another.
type request struct {
	Method, Path string
	Header       http.Header
	Body         any
}

// response is what came back.
type response struct {
	t      *testing.T
	Status int
	Header http.Header
	Body   []byte
}

// do sends one request through the router, and fails the test when the exchange is not as openapi.yaml says.
func (s *service) do(r request) response {
	s.t.Helper()
	var body []byte
	switch b := r.Body.(type) {
	case nil:
	case string:
		body = []byte(b)
	default:
		var err error
		if body, err = json.Marshal(b); err != nil {
			s.t.Fatal(err)
		}
	}
	req := httptest.NewRequestWithContext(s.t.Context(), r.Method, r.Path, bytes.NewReader(body))
	if r.Body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if s.key != "" {
		req.Header.Set("X-API-Key", s.key)
	}
	req.Host = cmp.Or(r.Header.Get("Host"), "127.0.0.1:8001")
	for name, values := range r.Header {
		req.Header[name] = values
	}
	if !s.options.LogUserIDs {
		s.private.note(req, string(body))
	}
	recorder := httptest.NewRecorder()
	s.handler.ServeHTTP(recorder, req)
	if r.Method == http.MethodHead {
		recorder.Body.Reset() // as net/http does
	}
	answer := response{s.t, recorder.Code, recorder.Header(), recorder.Body.Bytes()}
	if err := openAPI().check(req, body, answer); err != nil {
		s.t.Errorf("%s %s: %v", r.Method, r.Path, err)
	}
	return answer
}

func (s *service) get(path string) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodGet, Path: path})
}

func (s *service) post(path string, body any) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodPost, Path: path, Body: body})
}

func (s *service) put(path string, body any) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodPut, Path: path, Body: body})
}

// want fails the test unless the response has the status, and returns its body.
func (r response) want(status int) map[string]any {
	r.t.Helper()
	if r.Status != status {
		r.t.Fatalf("status %d, want %d; body: %s", r.Status, status, r.Body)
	}
	if len(r.Body) == 0 {
		return nil
	}
	var body map[string]any
	if err := json.Unmarshal(r.Body, &body); err != nil {
		r.t.Fatalf("body %q: %v", r.Body, err)
	}
	return body
}

// wantProblem fails the test unless the response is the problem document of that code, whole, and returns it.
func (r response) wantProblem(status int, code string) map[string]any {
	r.t.Helper()
	body := r.want(status)
	if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
		r.t.Fatalf("content type %q of a problem", got)
	}
	for field, want := range map[string]any{
		"type": "urn:viralpilot:problem:" + code, "status": float64(status), "code": code,
		"request_id": r.Header.Get("X-Request-Id"),
	} {
		if body[field] != want {
			r.t.Fatalf("%s is %v, want %v; body: %s", field, body[field], want, r.Body)
		}
	}
	for _, field := range []string{"title", "detail", "instance"} {
		if s, ok := body[field].(string); !ok || s == "" {
			r.t.Fatalf("%s is missing; body: %s", field, r.Body)
		}
	}
	return body
}

// lockedBuffer is a log that several requests write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestConsume_IsChargedAndShownInTheLedger(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.post("/user", map[string]string{"cognito_user_id": "u"}).want(http.StatusCreated)
	s.put("/user/u/tier", map[string]string{"tier": "tester"}).want(http.StatusOK)
	if got := s.post("/user/u/consume-tokens", map[string]int{"tokens_to_consume": 7}).want(http.StatusOK); got["tokens_remaining"] != 993.0 {
		t.Fatalf("tokens_remaining is %v after 7 of 1000", got["tokens_remaining"])
	}
	entries := s.get("/user/u/ledger").want(http.StatusOK)["entries"].([]any)
	newest := entries[0].(map[string]any)
	if len(entries) != 2 || newest["kind"] != "consume" || newest["amount"] != -7.0 || newest["balance_after"] != 993.0 {
		t.Fatalf("ledger: %v", entries)
	}
}
