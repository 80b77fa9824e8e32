package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

// broken is a database that does what a failing one may do to any call.
type broken struct {
	user.Store // never called
	fail       func(context.Context) error
}

func (b broken) Ping(ctx context.Context) error { return b.fail(ctx) }

func (b broken) Create(ctx context.Context, _ string, _ func(user.State) (user.Change, error)) (user.Change, error) {
	return user.Change{}, b.fail(ctx)
}

func (b broken) Account(ctx context.Context, _ string) (user.Account, error) {
	return user.Account{}, b.fail(ctx)
}

func (b broken) Update(ctx context.Context, _ user.Ref, _ func(user.State) (user.Change, error)) (user.Change, error) {
	return user.Change{}, b.fail(ctx)
}

func (b broken) Horizon(ctx context.Context) (user.Horizon, error) {
	return user.Horizon{}, b.fail(ctx)
}

func (b broken) EntriesAfter(ctx context.Context, _, _ int64, _ user.EntryKind, _ int) ([]user.FeedEntry, error) {
	return nil, b.fail(ctx)
}

// stub is a service without a database.
func stub(t *testing.T, fail func(context.Context) error, change ...func(*httpapi.Options)) (*service, *httpapi.API) {
	t.Helper()
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, clock: &clock{now: time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)}, log: &lockedBuffer{}, private: &privateWords{}}
	t.Cleanup(func() { s.private.checkLog(t, s.log) })
	o := httpapi.Options{
		Users:       &user.Service{Store: broken{fail: fail}, Rules: user.NewRules(tiers, time.UTC), Now: s.clock.Now},
		Feed:        newFeed(t, broken{fail: fail}),
		Database:    broken{fail: fail},
		Log:         slog.New(slog.NewJSONHandler(s.log, nil)),
		Version:     "test",
		CORSOrigins: []string{"*"}, LogRequests: httpapi.LogAll, RequestTimeout: 10 * time.Second,
	}
	for _, c := range change {
		c(&o)
	}
	api := httpapi.New(o)
	s.handler = api.Handler()
	return s, api
}

func works(context.Context) error { return nil }

// lines are the log's, decoded.
func (s *service) lines() (lines []m) {
	s.t.Helper()
	for text := range strings.Lines(s.log.String()) {
		var line m
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			s.t.Fatalf("log line %q: %v", text, err)
		}
		lines = append(lines, line)
	}
	return lines
}

// everyCall is a request for each call that needs the database.
func everyCall(id string) (requests []request) {
	for _, c := range calls(id) {
		requests = append(requests, request{c.method, c.path, nil, `{` + c.members + `}`})
	}
	for _, below := range []string{"", "/status", "/ledger"} {
		requests = append(requests, request{Method: http.MethodGet, Path: "/user/" + id + below})
	}
	return requests
}

func TestHEADIsGETWithoutTheBody(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 5)
	server := httptest.NewServer(s.handler)
	t.Cleanup(server.Close)
	ask := func(t *testing.T, method, path string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", "https://app.example.com")
		r.Header.Set("X-Request-Id", "the-same")
		response, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		response.Header.Del("Date")
		return response, string(body)
	}
	for _, path := range []string{
		"/", "/health", "/livez", "/tiers", "/docs", "/openapi.json", "/openapi.yaml", "/users?limit=1", "/ledger?limit=1", "/user/" + id, "/user/" + id + "/status", "/user/" + id + "/ledger?limit=1",
		"/user/" + id + "/usage", "/user/" + id + "/reservations", "/user/" + id + "/reservations/nope", "/user/nobody/status", "/user/nobody/ledger",
		"/user/" + id + "/ledger?limit=0", "/nope", "/user/%00", "/user//status", "/user", "/user/" + id + "/tier",
	} {
		t.Run(path+" has the same headers", func(t *testing.T) {
			t.Parallel()
			get, body := ask(t, http.MethodGet, path)
			head, none := ask(t, http.MethodHead, path)
			if head.StatusCode != get.StatusCode || none != "" || len(body) == 0 {
				t.Errorf("HEAD %d with %q, GET %d with %q", head.StatusCode, none, get.StatusCode, body)
			}
			if got, want := fmt.Sprint(head.Header), fmt.Sprint(get.Header); got != want {
				t.Errorf("HEAD %s\nGET  %s", got, want)
			}
			if head.ContentLength != int64(len(body)) {
				t.Errorf("Content-Length %d of HEAD, GET has %d bytes", head.ContentLength, len(body))
			}
		})
	}
}

func TestNothingMayBeCached(t *testing.T) {
	t.Parallel()
	s, _ := stub(t, func(context.Context) error { return user.ErrOverloaded })
	requests := append(everyCall("u"), request{Method: "BREW", Path: "/user"}, request{Method: http.MethodOptions, Path: "/user"})
	for _, path := range []string{"/", "/health", "/livez", "/tiers", "/nope", "/user/%00", "/user/u/tier"} {
		requests = append(requests, request{Method: http.MethodGet, Path: path})
	}
	for _, r := range requests {
		if got := s.do(r).Header.Values("Cache-Control"); !slices.Equal(got, []string{"no-store"}) {
			t.Errorf("%s %s: Cache-Control %q", r.Method, r.Path, got)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	s, _ := stub(t, func(context.Context) error { return user.ErrUserNotFound })
	for name, id := range map[string]string{
		"a UUID": "0b5a0a3e-6c3e-4b0b-9d5e-1f7b1c9d1a2b", "one letter": "x", "128 characters": strings.Repeat("r", 128), "a trace": "1-5f84c7a1:e7d-host/a+b=._",
	} {
		t.Run(name+" is kept", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			for path, status := range map[string]int{"/tiers": 200, "/user/u/status": 404, "/nope": 404} {
				r := s.do(request{Method: http.MethodGet, Path: path, Header: http.Header{"X-Request-Id": {id}}})
				if got := r.Header.Values("X-Request-Id"); r.Status != status || !slices.Equal(got, []string{id}) {
					t.Errorf("%s: status %d, X-Request-Id %q", path, r.Status, got)
				}
				if body := r.want(status); status == 404 && body["request_id"] != id {
					t.Errorf("request_id %v", body["request_id"])
				}
			}
			if !slices.ContainsFunc(s.lines(), func(line m) bool { return line["request_id"] == id }) {
				t.Errorf("%s is not in the log", id)
			}
		})
	}
	sane := regexp.MustCompile(`^[A-Z2-7]{26}$`)
	for name, ids := range map[string][]string{
		"none": nil, "nothing": {""}, "129 characters": {strings.Repeat("r", 129)}, "a blank": {"a b"}, "a line feed": {"a\nb"}, "a line feed at the end": {"a\n"},
		"a letter outside of ASCII": {"ü"}, "markup": {"<script>"}, "a quote": {`a"b`}, "a control character": {"\x1b[31m"}, "invalid UTF-8": {"\xff"}, "a comma": {"a,b"},
	} {
		t.Run(name+" is replaced", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			seen := map[string]bool{}
			for range 2 {
				r := s.do(request{Method: http.MethodGet, Path: "/nope", Header: http.Header{"X-Request-Id": ids}})
				id := r.wantProblem(http.StatusNotFound, "not_found")["request_id"].(string)
				if !sane.MatchString(id) || seen[id] {
					t.Errorf("request id %q", id)
				}
				seen[id] = true
			}
		})
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	const app, stranger = "https://app.example.com", "https://stranger.example.com"
	cors := func(origins []string, credentials bool) func(*httpapi.Options) {
		return func(o *httpapi.Options) { o.CORSOrigins, o.CORSAllowCredentials = origins, credentials }
	}
	fails := func(ctx context.Context) error { return errors.New("out of order") }
	for name, c := range map[string]struct {
		origins     []string
		credentials bool
		asks        string
		origin      string // allowed
		with        string // credentials
		warns       int
	}{
		"a wildcard allows any origin":                     {[]string{"*"}, false, stranger, "*", "", 0},
		"a wildcard is never paired with credentials":      {[]string{"*"}, true, app, "*", "", 0},
		"nor is one beside a listed origin":                {[]string{app, "*"}, true, app, "*", "", 1},
		"a listed origin is allowed with credentials":      {[]string{"https://b.example.com", app}, true, app, app, "true", 0},
		"a listed origin is allowed without them":          {[]string{app}, false, app, app, "", 0},
		"an origin that is not listed is not allowed":      {[]string{app}, true, stranger, "", "", 0},
		"nor is one that only begins or ends like it":      {[]string{app}, true, app + ".evil.com", "", "", 0},
		"nor the same host on another scheme":              {[]string{app}, true, "http://app.example.com", "", "", 0},
		"nor null":                                         {[]string{app}, true, "null", "", "", 0},
		"a request that is not from a browser has no CORS": {[]string{app}, true, "", "", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := stub(t, fails, cors(c.origins, c.credentials))
			warned := 0
			for _, line := range s.lines() {
				if line["level"] == "WARN" && strings.Contains(line["msg"].(string), "CORS_ALLOW_CREDENTIALS") {
					warned++
				}
			}
			if warned != c.warns {
				t.Errorf("%d warnings, want %d: %s", warned, c.warns, s.log)
			}
			origin := http.Header{}
			if c.asks != "" {
				origin.Set("Origin", c.asks)
			}
			for path, status := range map[string]int{"/tiers": 200, "/nope": 404, "/user": 405, "/user/%00": 400, "/user/u/status": 500, "/health": 503} {
				r := s.do(request{Method: http.MethodGet, Path: path, Header: origin})
				h := r.Header
				if got, want := h.Get("Access-Control-Allow-Origin"), c.origin; got != want || r.Status != status {
					t.Errorf("%s: status %d, allowed origin %q, want %q", path, r.Status, got, want)
				}
				if got := h.Get("Access-Control-Allow-Credentials"); got != c.with {
					t.Errorf("%s: credentials %q, want %q", path, got, c.with)
				}
				exposed := strings.Split(strings.ReplaceAll(h.Get("Access-Control-Expose-Headers"), " ", ""), ",")
				slices.Sort(exposed)
				if got := strings.Join(exposed, " "); c.origin != "" && got != "Idempotency-Replayed Location Retry-After X-Next-Cursor X-Request-Id" {
					t.Errorf("%s: exposed %s", path, got)
				}
				if !slices.Contains(h.Values("Vary"), "Origin") {
					t.Errorf("%s: Vary %q", path, h.Values("Vary"))
				}
			}
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
				if c.asks == "" {
					break
				}
				h := origin.Clone()
				h.Set("Access-Control-Request-Method", method)
				h.Set("Access-Control-Request-Headers", "authorization,content-type,idempotency-key,x-api-key,x-request-id")
				r := s.do(request{Method: http.MethodOptions, Path: "/user/u/tier", Header: h})
				got := []string{r.Header.Get("Access-Control-Allow-Origin"), r.Header.Get("Access-Control-Allow-Credentials"), r.Header.Get("Access-Control-Allow-Methods"), r.Header.Get("Access-Control-Allow-Headers")}
				want := []string{c.origin, c.with, method, h.Get("Access-Control-Request-Headers")}
				if c.origin == "" {
					want = make([]string, 4)
				}
				if r.Status != http.StatusNoContent || len(r.Body) > 0 || !slices.Equal(got, want) {
					t.Errorf("preflight for %s: status %d, %q, want %q", method, r.Status, got, want)
				}
			}
		})
	}
	t.Run("a preflight asks for nothing that is not offered", func(t *testing.T) {
		t.Parallel()
		s, _ := stub(t, fails)
		for name, value := range map[string]string{"Access-Control-Request-Method": "BREW", "Access-Control-Request-Headers": "x-evil"} {
			h := http.Header{"Origin": {app}, "Access-Control-Request-Method": {"GET"}}
			h.Set(name, value)
			r := s.do(request{Method: http.MethodOptions, Path: "/user/u/tier", Header: h})
			if got := r.Header.Get("Access-Control-Allow-Origin"); got != "" {
				t.Errorf("%s: %s is allowed to %s", name, value, got)
			}
		}
	})
}

// What the database reports becomes an answer, and its words stay in the log.
func TestFailuresOfTheDatabase(t *testing.T) {
	t.Parallel()
	const secret = "host 10.1.2.3 said no"
	cause := errors.New(secret)
	for name, c := range map[string]struct {
		fail   func(context.Context) error
		status int
		code   string
	}{
		"overload is overloaded":                     {func(context.Context) error { return user.ErrOverloaded.Because(cause) }, 503, "overloaded"},
		"an outage is database_unavailable":          {func(context.Context) error { return user.ErrDatabaseUnavailable.Because(cause) }, 503, "database_unavailable"},
		"one that is wrapped is the same":            {func(context.Context) error { return fmt.Errorf("x: %w", user.ErrDatabaseUnavailable.Because(cause)) }, 503, "database_unavailable"},
		"anything unknown is internal":               {func(context.Context) error { return cause }, 500, "internal"},
		"an unknown code is internal":                {func(context.Context) error { return &user.Error{Code: "strange", Detail: secret} }, 500, "internal"},
		"a panic is internal":                        {func(context.Context) error { panic(secret) }, 500, "internal"},
		"a panic with an error is internal":          {func(context.Context) error { panic(fmt.Errorf("wrapped: %w", cause)) }, 500, "internal"},
		"a panic with a known error is internal too": {func(context.Context) error { panic(user.ErrUserNotFound.Because(cause)) }, 500, "internal"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := stub(t, c.fail)
			for _, r := range everyCall("u") {
				response := s.do(r)
				response.wantProblem(c.status, c.code)
				retry, err := strconv.Atoi(response.Header.Get("Retry-After"))
				if c.status == 503 && (err != nil || retry < 1) || c.status == 500 && response.Header["Retry-After"] != nil {
					t.Errorf("Retry-After %q", response.Header["Retry-After"])
				}
				if strings.Contains(string(response.Body), secret) {
					t.Errorf("the body tells what the log should: %s", response.Body)
				}
				id := response.Header.Get("X-Request-Id")
				if !slices.ContainsFunc(s.lines(), func(line m) bool {
					return line["request_id"] == id && line["level"] == "ERROR" && strings.Contains(fmt.Sprint(line["error"]), secret)
				}) {
					t.Errorf("the log does not have it: %s", s.log)
				}
			}
		})
	}
	t.Run("a panic that cuts the connection off is passed on", func(t *testing.T) {
		t.Parallel()
		s, _ := stub(t, func(context.Context) error { panic(http.ErrAbortHandler) })
		defer func() {
			if p := recover(); p != http.ErrAbortHandler {
				t.Errorf("recovered %v", p)
			}
		}()
		s.get("/user/u")
	})
	t.Run("the time for a request is limited", func(t *testing.T) {
		t.Parallel()
		const limit = 3 * time.Second
		s, _ := stub(t, func(ctx context.Context) error {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > limit {
				t.Errorf("deadline %v, %v", deadline, ok)
			}
			return user.ErrOverloaded
		}, func(o *httpapi.Options) { o.RequestTimeout = limit })
		for _, r := range everyCall("u") {
			s.do(r)
		}
	})
}

func TestAClientThatHangsUpSaysNothingAboutTheDatabase(t *testing.T) {
	t.Parallel()
	s, _ := stub(t, context.Context.Err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	recorder := httptest.NewRecorder()
	s.handler.ServeHTTP(recorder, httptest.NewRequestWithContext(ctx, http.MethodGet, "/health", nil))
	if recorder.Code != http.StatusOK || strings.Contains(s.log.String(), "health check failed") {
		t.Errorf("%d %s\n%s", recorder.Code, recorder.Body, s.log)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	const secret = "host 10.1.2.3 said no"
	for name, c := range map[string]struct {
		fail     func(context.Context) error
		stopping bool
		status   int
		want     m
	}{
		"a database that answers is healthy":   {works, false, 200, m{"status": "healthy", "database": "connected"}},
		"a database that is away is unhealthy": {func(context.Context) error { return errors.New(secret) }, false, 503, m{"status": "unhealthy", "database": "disconnected"}},
		"one that does not answer within 2 s is unhealthy": {func(ctx context.Context) error {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 2*time.Second {
				return nil
			}
			return context.DeadlineExceeded
		}, false, 503, m{"status": "unhealthy", "database": "disconnected"}},
		"a service that stops is shutting_down":  {works, true, 503, m{"status": "shutting_down", "database": "connected"}},
		"one that stops without database is too": {func(context.Context) error { return errors.New(secret) }, true, 503, m{"status": "shutting_down", "database": "disconnected"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, api := stub(t, c.fail)
			if c.stopping {
				api.Stopping()
			}
			r := s.get("/health")
			body := r.want(c.status)
			shape(t, body, "database service status timestamp version")
			has(t, body, m{"service": "user-management", "version": "test", "timestamp": "2026-11-24T10:00:00.000000Z"})
			has(t, body, c.want)
			if got := r.Header.Get("Content-Type"); got != "application/json" || strings.Contains(string(r.Body), secret) {
				t.Errorf("%s: %s", got, r.Body)
			}
			s.get("/livez").want(http.StatusOK)
			s.get("/tiers").want(http.StatusOK)
		})
	}
}

func TestTheLogNamesRoutesAndNoOne(t *testing.T) {
	t.Parallel()
	s := start(t)
	const id, name, mail, note = "id-of-someone", "Name Of Someone", "someone@example.com", "note-of-someone"
	s.post("/user", m{"cognito_user_id": id, "username": name, "email": mail}).want(http.StatusCreated)
	s.post("/user", m{"cognito_user_id": id, "email": mail}).want(http.StatusConflict)
	s.post("/user", m{"cognito_user_id": id, "email": mail + "@"}).want(http.StatusUnprocessableEntity)
	s.post("/user", `{"cognito_user_id":"`+id+`"`).want(http.StatusBadRequest)
	for _, r := range everyCall(id) {
		s.do(r)
	}
	s.keyed("/user/"+id+"/consume-tokens", m{"metadata": m{note: note}}, note)
	for _, path := range []string{"/user/" + id + "/nope", "/user/" + id + "/", "/user/" + id + "%ff", "/user/" + id + "/tier", "/nope?id=" + id, "/user/" + id + "/ledger?cursor=" + id} {
		s.get(path)
	}
	b, _ := stub(t, func(context.Context) error { return user.ErrOverloaded })
	p, _ := stub(t, func(context.Context) error { panic("out of order") })
	for _, r := range everyCall(id) {
		b.do(r)
		p.do(r)
	}
	log := s.log.String() + b.log.String() + p.log.String()
	for _, word := range []string{id, name, mail, note, "someone"} {
		if strings.Contains(log, word) {
			t.Errorf("%s is in the log:\n%s", word, log)
		}
	}
	routes := map[any]int{}
	for _, line := range s.lines() {
		if line["msg"] != "request" {
			continue
		}
		routes[line["route"]]++
		for _, field := range strings.Fields("bytes duration level method request_id route status time") {
			if line[field] == nil {
				t.Errorf("%s is missing: %v", field, line)
			}
		}
	}
	for _, route := range []string{
		"/user", "/user/{cognito_user_id}", "/user/{cognito_user_id}/status", "/user/{cognito_user_id}/ledger", "/user/{cognito_user_id}/tier",
		"/user/{cognito_user_id}/consume-tokens", "/user/{cognito_user_id}/add-tokens",
	} {
		if routes[route] == 0 {
			t.Errorf("no line for %s: %v", route, routes)
		}
	}
}

func TestProbes_AreLoggedWhereTheyFail(t *testing.T) {
	t.Parallel()
	for level, want := range map[slog.Level]string{
		slog.LevelInfo:  "INFO  405, INFO /health 503",
		slog.LevelDebug: "DEBUG /health 200, DEBUG /health 200, DEBUG /livez 200, DEBUG /metrics 200, INFO  405, INFO /health 503",
	} {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			var away error
			log := &lockedBuffer{}
			s, _ := stub(t, func(context.Context) error { return away }, func(o *httpapi.Options) {
				o.Log = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: level}))
				o.MetricsHandler = metrics
			})
			s.log = log
			s.get("/health").want(http.StatusOK)
			s.do(request{Method: http.MethodHead, Path: "/health"}).want(http.StatusOK)
			s.get("/livez").want(http.StatusOK)
			s.handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
			s.do(request{Method: http.MethodPost, Path: "/livez"}).want(http.StatusMethodNotAllowed)
			away = errors.New("no answer")
			s.get("/health").want(http.StatusServiceUnavailable)
			var got []string
			for _, line := range s.lines() {
				if line["msg"] == "request" {
					got = append(got, fmt.Sprintf("%v %v %v", line["level"], line["route"], line["status"]))
				}
			}
			if strings.Join(got, ", ") != want {
				t.Errorf("lines: %q, want %s", got, want)
			}
		})
	}
}

func TestWhichRequestsAreLogged(t *testing.T) {
	t.Parallel()
	for mode, want := range map[httpapi.LogRequests]string{
		httpapi.LogAll:    "GET /tiers 200, POST /user 422, OPTIONS  204, GET /user/{cognito_user_id}/status 503, BREW  404",
		httpapi.LogErrors: "POST /user 422, GET /user/{cognito_user_id}/status 503, BREW  404",
		httpapi.LogNone:   "",
	} {
		t.Run("LOG_REQUESTS="+string(mode), func(t *testing.T) {
			t.Parallel()
			s, _ := stub(t, func(context.Context) error { return user.ErrOverloaded }, func(o *httpapi.Options) { o.LogRequests = mode })
			var sizes []int
			for _, r := range []request{
				{Method: http.MethodGet, Path: "/tiers"},
				{Method: http.MethodPost, Path: "/user", Body: m{}},
				{Method: http.MethodOptions, Path: "/user"},
				{Method: http.MethodGet, Path: "/user/u/status"},
				{Method: "BREW", Path: "/nope"},
			} {
				sizes = append(sizes, len(s.do(r).Body))
			}
			var got []string
			failures := 0
			for _, line := range s.lines() {
				if line["msg"] == "request" {
					got = append(got, fmt.Sprintf("%v %v %v", line["method"], line["route"], line["status"]))
					if size := int(line["bytes"].(float64)); !slices.Contains(sizes, size) || line["duration"].(float64) <= 0 {
						t.Errorf("%v, sizes %v", line, sizes)
					}
				} else if line["level"] == "ERROR" {
					failures++
				}
			}
			if strings.Join(got, ", ") != want || failures != 1 {
				t.Errorf("lines: %q, want %s; %d failures", got, want, failures)
			}
		})
	}
}
