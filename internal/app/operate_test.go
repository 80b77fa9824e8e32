package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/telemetry"
	"github.com/viralpilot/user-management/internal/user"
)

// lines returns the log's lines with this message.
func (r *replica) lines(message string) (lines []map[string]any) {
	r.t.Helper()
	for text := range strings.Lines(r.log.String()) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			r.t.Fatal(err)
		}
		if line["msg"] == message {
			lines = append(lines, line)
		}
	}
	return lines
}

// get returns status and body of what may be no JSON.
func (c client) get(url string, header ...string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return res.StatusCode, string(content), err
}

// newKey returns the secret of a key and its entry for API_KEYS.
func newKey(t *testing.T, name, scopes string) (secret, entry string) {
	t.Helper()
	var out strings.Builder
	if err := app.NewAPIKey(name, scopes, "", "", &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(out.String())
	return lines[0], lines[1]
}

// freePort returns a port that nothing listened on a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func TestTheLogAndAMetricNameKeysThatRunOut(t *testing.T) {
	t.Parallel()
	entry := func(name string, days int) string {
		var out strings.Builder
		last := time.Now().UTC().AddDate(0, 0, days).Format(time.DateOnly)
		if err := app.NewAPIKey(name, "metrics", last, "of "+name, &out); err != nil {
			t.Fatal(err)
		}
		_, entry, _ := strings.Cut(strings.TrimSpace(out.String()), "\n")
		return entry
	}
	secret, lasting := newKey(t, "lasting", "metrics")
	expired := strings.Replace(entry("expired", 0), time.Now().UTC().Format(time.DateOnly), "2026-01-01", 1)
	r := start(t, localpgtest.New(t), func(cfg *config.Config) {
		if err := cfg.APIKeys.Decode(strings.Join([]string{lasting, entry("soon", 12), entry("later", 20), expired}, ",")); err != nil {
			t.Fatal(err)
		}
	})
	named := map[any]bool{}
	for _, message := range []string{
		"an API key expires soon: make a new one (user-management apikey new)",
		"an API key has expired and is refused: make a new one or remove it",
	} {
		for _, line := range r.lines(message) {
			named[line["key"]] = true
			if line["comment"] != fmt.Sprint("of ", line["key"]) || line["level"] != "WARN" {
				t.Errorf("line %v", line)
			}
		}
	}
	if len(named) != 2 || !named["soon"] || !named["expired"] {
		t.Errorf("named are %v", named)
	}
	_, metrics, err := newClient(t).get(r.url+"/metrics", "X-API-Key", secret)
	if err != nil || strings.Count(metrics, "user_management_api_key_expires_timestamp_seconds{") != 3 {
		t.Errorf("%v\n%s", err, metrics)
	}
	if err := app.NewAPIKey("late", "read", "2026-01-01", "", io.Discard); err == nil {
		t.Error("a key that has expired already was made")
	}
}

func TestMetrics_AreThereFromTheStart(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	secret, entry := newKey(t, "prometheus", "metrics")
	for name, c := range map[string]struct {
		change func(*config.Config)
		open   string
		issuer bool
	}{
		"of an open service": {func(*config.Config) {}, "1", false},
		"of one with keys":   {func(cfg *config.Config) { _ = cfg.APIKeys.Decode(entry) }, "0", false},
		"of one with an issuer": {func(cfg *config.Config) {
			_ = cfg.APIKeys.Decode(entry)
			cfg.CognitoIssuer, cfg.CognitoClientIDs = "http://127.0.0.1:1/pool", config.List{"client"}
		}, "0", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, dsn, c.change)
			_, metrics, err := newClient(t).get(r.url+"/metrics", "X-API-Key", secret)
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"user_management_open " + c.open, "user_management_oldest_due_reservation_age_seconds 0"}
			for _, code := range httpapi.Codes() {
				want = append(want, fmt.Sprintf("user_management_problems_total{code=%q} 0", code))
			}
			if c.issuer {
				want = append(want, "user_management_token_issuer_reachable 0")
			}
			for _, line := range want {
				if !strings.Contains(metrics, "\n"+line+"\n") {
					t.Errorf("%q is missing in\n%s", line, metrics)
				}
			}
			if strings.Contains(metrics, "issuer_reachable ") != c.issuer {
				t.Errorf("an issuer is in the metrics, or is not:\n%s", metrics)
			}
		})
	}
}

func TestMetricsStandOnOnePortOnly(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	secret, entry := newKey(t, "prometheus", "metrics")
	locked := func(cfg *config.Config) {
		if err := cfg.APIKeys.Decode(entry); err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t)
	want := func(status int, url string, header ...string) {
		t.Helper()
		if got, _, err := c.get(url, header...); err != nil || got != status {
			t.Errorf("%s: %d %v, want %d", url, got, err, status)
		}
	}
	t.Run("the public one, with a key", func(t *testing.T) {
		r := start(t, dsn, locked)
		want(http.StatusUnauthorized, r.url+"/metrics")
		want(http.StatusOK, r.url+"/metrics", "X-API-Key", secret)
	})
	for _, profiles := range []bool{false, true} {
		t.Run(fmt.Sprint("their own, without a key; profiles ", profiles), func(t *testing.T) {
			port := freePort(t)
			r := start(t, dsn, locked, func(cfg *config.Config) { cfg.MetricsPort, cfg.PprofEnabled = port, profiles })
			own := "http://127.0.0.1:" + strconv.Itoa(port)
			want(http.StatusNotFound, r.url+"/metrics", "X-API-Key", secret)
			want(http.StatusNotFound, r.url+"/debug/pprof/", "X-API-Key", secret)
			want(http.StatusOK, own+"/metrics")
			want(http.StatusNotFound, own+"/health")
			status := http.StatusNotFound
			if profiles {
				status = http.StatusOK
			}
			for _, path := range []string{"", "heap", "goroutine?debug=1", "cmdline", "symbol", "profile?seconds=1"} {
				want(status, own+"/debug/pprof/"+path)
			}
		})
	}
	t.Run("a taken one ends the start", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		cfg, err := configure(dsn)
		if err != nil {
			t.Fatal(err)
		}
		cfg.MetricsPort = listener.Addr().(*net.TCPAddr).Port
		wantLine(t, app.Run(t.Context(), cfg, io.Discard), "METRICS_PORT", strconv.Itoa(cfg.MetricsPort))
	})
}

func TestForTheDelayOfAStopItServesAndSaysThatItEnds(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) { cfg.ShutdownDelay = 5 * time.Second })
	c := newClient(t)
	c.tester(r, "u")
	r.cancel()
	localpgtest.Await(t, "/health says so", func() bool {
		a, err := c.try(http.MethodGet, r.url+"/health", "")
		return err == nil && a.Status == http.StatusServiceUnavailable && a.Body["status"] == "shutting_down"
	})
	if a, err := c.consume(r, "u", "k"); err != nil || a.Status != http.StatusOK {
		t.Errorf("a consume during the delay: %d %v %v", a.Status, a.Body, err)
	}
	if res, err := c.http.Get(r.url + "/livez"); err != nil || !res.Close {
		t.Errorf("its connection stays open: %v", err)
	} else {
		res.Body.Close()
	}
	if err := r.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if n := connect(t, dsn).count("u", "consume"); n != 1 {
		t.Errorf("%d consumes", n)
	}
	if len(r.lines("stopped")) != 1 {
		t.Errorf("log:\n%s", r.log)
	}
}

func TestTwoHundredClientsOfTwoConnectionsGetAnAnswerEach(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) {
		cfg.DBMaxConns, cfg.DBAcquireTimeout, cfg.DBStatementTimeout = 2, 200*time.Millisecond, 4*patience
	})
	c, db := newClient(t), connect(t, dsn)
	c.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 200
	c.tester(r, "u")
	pass := db.Gate()
	// One connection, the one for changes, stands at the gate.
	stuck := make(chan answer, 1)
	go func() {
		a, err := c.consume(r, "u", "stuck")
		if err != nil {
			t.Error(err)
		}
		stuck <- a
	}()
	db.AwaitGated()
	// And the other is there: to make one may take longer than the wait for a free one, which is another answer.
	localpgtest.Await(t, "a read is answered", func() bool {
		a, err := c.try(http.MethodGet, r.url+"/user/u/status", "")
		return err == nil && a.Status == http.StatusOK
	})

	// storm sends n requests of 200 clients and counts their answers by status.
	storm := func(n int) map[int]int {
		var mu sync.Mutex
		counts, took := map[int]int{}, []time.Duration{}
		each(n, 200, func(i int) {
			begin := time.Now()
			var a answer
			var err error
			switch i % 3 {
			case 0:
				a, err = c.try(http.MethodGet, r.url+"/user/"+fmt.Sprint("user-", i%50), "")
			case 1:
				a, err = c.try(http.MethodPost, r.url+"/user/u/add-tokens", `{"tokens_to_add": 1}`)
			default:
				a, err = c.try(http.MethodGet, r.url+"/user/u/status", "")
			}
			if err != nil {
				t.Errorf("no answer: %v", err)
			}
			if a.Status == http.StatusServiceUnavailable && (a.code() != "overloaded" || a.Header.Get("Retry-After") == "") {
				t.Errorf("%v %v", a.Header, a.Body)
			}
			mu.Lock()
			defer mu.Unlock()
			counts[a.Status]++
			took = append(took, time.Since(begin))
		})
		slices.Sort(took)
		t.Logf("%d requests: %v, median %s, p99 %s, longest %s", n, counts, took[n/2], took[n*99/100], took[n-1])
		return counts
	}
	// All are answered while the gate is still shut: nobody waits for it.
	counts := storm(2000)
	c.do(http.StatusOK, http.MethodGet, r.url+"/livez", "")
	c.do(http.StatusOK, http.MethodGet, r.url+"/health", "")
	delete(counts, http.StatusOK)
	if len(counts) != 1 || counts[http.StatusServiceUnavailable] == 0 {
		t.Errorf("answers: %v, want some refused as overloaded and none otherwise", counts)
	}

	pass()
	if a := <-stuck; a.Status != http.StatusOK {
		t.Errorf("the one that held up the others: %d %v", a.Status, a.Body)
	}
	each(200, 2, func(int) {
		if a, err := c.insist(http.MethodGet, r.url+"/user/u/status", ""); err != nil || a.Status != http.StatusOK {
			t.Errorf("afterwards: %d %v %v", a.Status, a.Body, err)
		}
	})
	db.checkBooks()
}

func TestHealthDoesNotWaitForTheRequests(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) { cfg.DBMaxConns = 1 })
	c, db := newClient(t), connect(t, dsn)
	c.tester(r, "u")
	pass := db.Gate()
	done := make(chan error, 1)
	go func() {
		_, err := c.consume(r, "u", "k")
		done <- err
	}()
	db.AwaitGated() // it has the only connection
	each(20, 20, func(int) { c.do(http.StatusOK, http.MethodGet, r.url+"/health", "") })
	pass()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// personal is what a log may never have: an e-mail address or the secret of an API key.
var personal = regexp.MustCompile(`[\w.+-]+@[\w-]+\.[a-z]{2,}|vpum_[\w-]{8,}`)

// wantNoSecret fails the test when the log of a service has something personal or its database's password.
func wantNoSecret(t *testing.T, cfg config.Config, log string) {
	t.Helper()
	if found := personal.FindString(log); found != "" {
		t.Errorf("the log has %s", found)
	}
	if login, err := url.Parse(cfg.DatabaseURL.Reveal()); err == nil {
		if password, ok := login.User.Password(); ok && strings.Contains(log, password) {
			t.Error("the log has the database's password")
		}
	}
}

// memory is a store of which every id is an account, for what looks at nothing but the way there.
type memory struct{ user.Store }

func (memory) account(id string) user.Account {
	return user.Account{
		ID: id, Tier: user.TierTester, SubscriptionStatus: "active", Active: true, TokensRemaining: 1000, LastReset: new(time.Now()),
		SideRow: user.CurrentSideRow, GrantedPeriod: 9999 * 12, // so that no month begins
	}
}

func (m memory) Account(_ context.Context, id string) (user.Account, error) {
	return m.account(id), nil
}

func (m memory) Update(_ context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	return apply(user.State{Now: time.Now(), Account: m.account(ref.AccountID)})
}

func (memory) Ping(context.Context) error { return nil }

// newHandler is the API on memory, observed by metrics, and traced where there is a Tracing.
func newHandler(tb testing.TB, metrics *telemetry.Metrics, tracing *telemetry.Tracing) http.Handler {
	tb.Helper()
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		tb.Fatal(err)
	}
	users := &user.Service{Store: memory{}, Rules: user.Rules{Tiers: tiers, ResetZone: time.UTC}, Now: time.Now, Observer: metrics}
	options := httpapi.Options{
		Users: users, Database: memory{}, Log: slog.New(slog.DiscardHandler), LogRequests: httpapi.LogNone,
		Observer: metrics, MetricsHandler: metrics.Handler(), RequestTimeout: patience,
	}
	if tracing == nil {
		return httpapi.New(options).Handler()
	}
	users.Span, options.Route = tracing.Operation, tracing.Route
	return tracing.Handler(httpapi.New(options).Handler())
}

func TestTenThousandUsersMakeNoMoreSeriesThanOne(t *testing.T) {
	t.Parallel()
	handler := newHandler(t, telemetry.NewMetrics("v1", "abc", httpapi.Codes()), nil)
	call := func(method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		handler.ServeHTTP(w, r)
		return w
	}
	use := func(id string) {
		if w := call(http.MethodGet, "/user/"+id+"/status", ""); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w := call(http.MethodPost, "/user/"+id+"/consume-tokens", `{"tokens_to_consume": 5000}`); w.Code != http.StatusPaymentRequired {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w := call(http.MethodGet, "/"+id, ""); w.Code != http.StatusNotFound {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	series := func() (list []string) {
		for line := range strings.Lines(call(http.MethodGet, "/metrics", "").Body.String()) {
			if !strings.HasPrefix(line, "#") {
				list = append(list, line[:strings.LastIndexByte(line, ' ')])
			}
		}
		return list
	}
	use("user-first")
	series() // /metrics itself makes some
	before := series()
	for i := range 10_000 {
		use(fmt.Sprint("user-", i))
	}
	after := series()
	if !slices.Equal(before, after) {
		t.Errorf("%d series, then %d", len(before), len(after))
	}
	if all := strings.Join(after, "\n"); strings.Contains(all, "user-") || !strings.Contains(all, `route="/user/{cognito_user_id}/status"`) {
		t.Errorf("series:\n%s", all)
	}
	t.Logf("%d series before and %d after 10,000 users", len(before), len(after))
}

// BenchmarkTracing shows what a request costs without tracing, which is what it cost before there was any, and with it.
func BenchmarkTracing(b *testing.B) {
	discard := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer discard.Close()
	tracing, err := telemetry.NewTracing(b.Context(), discard.URL, "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := tracing.Close(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	for name, t := range map[string]*telemetry.Tracing{"off": nil, "on": tracing} {
		handler := newHandler(b, telemetry.NewMetrics("v1", "abc", httpapi.Codes()), t)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/user/u/status", nil))
				if w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			}
		})
	}
}

func TestTheLogNamesNoUserAndNoSecret(t *testing.T) {
	t.Parallel()
	const account, mail, note = "account-of-somebody", "somebody@mail.example", "note-of-somebody"
	reader, readerEntry := newKey(t, "reader", "read,metrics")
	manager, managerEntry := newKey(t, "manager", "manage,consume")
	dsn := localpgtest.New(t)
	login, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	password, there := login.User.Password()
	if !there || password == "" {
		t.Fatal("the database has no password to look for")
	}
	r := start(t, dsn, func(cfg *config.Config) {
		cfg.LogLevel = slog.LevelDebug
		if err := cfg.APIKeys.Decode(readerEntry + "," + managerEntry); err != nil {
			t.Fatal(err)
		}
	})
	c, db := newClient(t), connect(t, dsn)
	call := func(method, path, body string, header ...string) {
		t.Helper()
		if _, err := c.try(method, r.url+path, body, header...); err != nil {
			t.Error(err)
		}
	}
	calls := func() {
		for _, key := range []string{"", "wrong-" + manager, reader, manager} {
			call(http.MethodPost, "/user", `{"cognito_user_id": "`+account+`", "email": "`+mail+`"}`, "X-API-Key", key)
			call(http.MethodPatch, "/user/"+account, `{"email": "`+mail+`", "nonsense": "`+note+`"}`, "Authorization", "Bearer "+key)
			call(http.MethodPost, "/user/"+account+"/add-tokens", `{"tokens_to_add": 5, "metadata": {"note": "`+note+`"}}`, "X-API-Key", key, "Idempotency-Key", note)
			call(http.MethodPost, "/user/"+account+"/consume-tokens", `{"tokens_to_consume": 6}`, "X-API-Key", key, "Idempotency-Key", note)
			call(http.MethodGet, "/users?q="+mail, "", "X-API-Key", key)
			call(http.MethodGet, "/user/"+account+"/ledger?cursor="+note, "", "X-API-Key", key, "X-Request-Id", "of "+mail)
		}
	}
	calls()
	db.Exec("ALTER TABLE viralpilot.ledger RENAME TO away")
	db.Exec("ALTER TABLE viralpilot.userdata ADD CHECK (email <> '" + mail + "') NOT VALID")
	calls()
	r.stop()
	log := r.log.String()
	for _, word := range []string{password, account, mail, note, "somebody", reader, manager, strings.Split(readerEntry, ":")[2], strings.Split(managerEntry, ":")[2]} {
		if strings.Contains(log, word) {
			t.Errorf("%s is in the log:\n%s", word, log)
		}
	}
	if len(r.lines("request failed")) == 0 || len(r.lines("request")) < 40 {
		t.Errorf("the log is not the one of this test:\n%s", log)
	}
}

func TestRun_SettingsThatDifferFromTheLastStart(t *testing.T) {
	t.Parallel()
	database := localpgtest.New(t)
	const line = "a setting differs from the one that was last used on this database"
	first := start(t, database)
	first.stop()
	again := start(t, database)
	if log := first.log.String() + again.log.String(); strings.Contains(log, line) {
		t.Errorf("logged without reason: %s", log)
	}
	other := start(t, database, func(cfg *config.Config) { cfg.TierMonthlyTokens = config.TierTokens{"agency": 100000} })
	if log := other.log.String(); strings.Count(log, line) != 1 || !strings.Contains(log, `"name":"TIER_MONTHLY_TOKENS","was":"","is":"agency:100000"`) {
		t.Errorf("log: %s", log)
	}
	if _, metrics, err := newClient(t).get(other.url + "/metrics"); err != nil || !strings.Contains(metrics, "user_management_clock_offset_seconds ") {
		t.Errorf("the metrics do not have the offset of the clock, or cannot be read: %v", err)
	}
}
