package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// defaults is what the service runs with when only DATABASE_URL is set.
var defaults config.Config

func TestMain(m *testing.M) {
	environment := os.Environ()
	os.Clearenv()
	err := os.Setenv("DATABASE_URL", "postgresql://localhost/db")
	if err == nil {
		defaults, err = config.Load()
	}
	for _, pair := range environment {
		name, value, _ := strings.Cut(pair, "=")
		err = errors.Join(err, os.Setenv(name, value))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(localpgtest.Main(m, func(ctx context.Context, url string) error {
		cfg, err := configure(url)
		if err != nil {
			return err
		}
		return app.Migrate(ctx, cfg, io.Discard)
	}))
}

const patience = localpgtest.Patience

// configure returns the defaults for the database, on a port of its own. The time-outs that a busy machine could run
// into are longer, and the month is nowhere about to end.
func configure(url string) (config.Config, error) {
	cfg := defaults
	cfg.ServiceHost, cfg.ServicePort = "127.0.0.1", 0
	cfg.LogFormat = "json"
	cfg.DBConnectTimeout, cfg.DBAcquireTimeout, cfg.DBStatementTimeout = patience, patience, patience
	cfg.RequestTimeout, cfg.HTTPWriteTimeout, cfg.ShutdownTimeout = 2*patience, 3*patience, patience
	if err := cfg.TokenResetTimezone.Decode(localpgtest.CalmZone()); err != nil {
		return cfg, err
	}
	return cfg, cfg.DatabaseURL.Decode(url)
}

// replica is one running service.
type replica struct {
	t      *testing.T
	url    string
	log    *log
	cancel context.CancelFunc
	// done gets what Run returns.
	done chan error
}

// start runs the service on the database until the test ends; change may alter its configuration.
func start(t *testing.T, database string, change ...func(*config.Config)) *replica {
	t.Helper()
	cfg, err := configure(database)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{t: t, log: &log{listening: make(chan string, 1)}, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- app.Run(ctx, cfg, r.log) }()
	select {
	case address := <-r.log.listening:
		r.url = "http://" + address
	case err := <-r.done:
		cancel()
		t.Fatalf("Run: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		r.wait()
		wantNoSecret(t, cfg, r.log.String())
		if !cfg.LogUserIDs {
			r.wantNoID()
		}
	})
	return r
}

// wait returns what Run returned.
func (r *replica) wait() error {
	err := <-r.done
	r.done <- err
	return err
}

// stop is what SIGTERM does.
func (r *replica) stop() {
	r.t.Helper()
	r.cancel()
	if err := r.wait(); err != nil {
		r.t.Errorf("Run: %v", err)
	}
}

// log collects what a replica logs.
type log struct {
	mu        sync.Mutex
	b         bytes.Buffer
	listening chan string
}

func (l *log) Write(line []byte) (int, error) {
	var record struct{ Msg, Address string }
	if err := json.Unmarshal(line, &record); err != nil {
		return 0, fmt.Errorf("not a line of JSON: %q", line)
	}
	if record.Msg == "listening" {
		l.listening <- record.Address
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(line)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// client calls replicas, over connections that it keeps.
type client struct {
	t     *testing.T
	http  *http.Client
	trace *httptrace.ClientTrace // of its requests, or nil
}

func newClient(t *testing.T) client {
	transport := &http.Transport{MaxIdleConnsPerHost: 100, ExpectContinueTimeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	return client{t: t, http: &http.Client{Transport: transport, Timeout: 3 * patience}}
}

// answer is a complete response.
type answer struct {
	Status int
	Header http.Header
	Body   map[string]any
}

func (a answer) code() string {
	code, _ := a.Body["code"].(string)
	return code
}

// account is one that a request to a replica named in its path; requested has all of them.
type account struct{ host, id string }

var requested sync.Map

// wantNoID fails the test when the log of the replica has the id of an account that was asked for.
func (r *replica) wantNoID() {
	r.t.Helper()
	text := r.log.String()
	requested.Range(func(key, _ any) bool {
		a := key.(account)
		// Shorter ones are part of other words.
		if strings.HasSuffix(r.url, "/"+a.host) && len(a.id) > 5 && strings.Contains(text, a.id) {
			r.t.Errorf("the log has the id %s", a.id)
		}
		return true
	})
}

// try sends one request with pairs of header names and values. The error says that no complete response came.
func (c client) try(method, url, body string, header ...string) (answer, error) {
	ctx := c.t.Context()
	if c.trace != nil {
		ctx = httptrace.WithClientTrace(ctx, c.trace)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if _, rest, ok := strings.Cut(req.URL.Path, "/user/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		requested.Store(account{req.URL.Host, id}, true)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{Status: res.StatusCode, Header: res.Header}
	if err := json.Unmarshal(content, &a.Body); err != nil {
		return answer{}, fmt.Errorf("%w: %q", err, content)
	}
	if res.StatusCode >= 400 && method != http.MethodGet && res.Header.Get("Content-Type") != "application/problem+json" {
		return answer{}, fmt.Errorf("%s without a problem document: %q", res.Status, content)
	}
	return a, nil
}

// do is try for a request that has to be answered with the status.
func (c client) do(want int, method, url, body string, header ...string) answer {
	c.t.Helper()
	a, err := c.try(method, url, body, header...)
	if err != nil || a.Status != want {
		c.t.Fatalf("%s %s: %d %v %v, want %d", method, url, a.Status, a.Body, err, want)
	}
	return a
}

// tester makes an account of the tester tier: 1000 tokens.
func (c client) tester(r *replica, id string) {
	c.t.Helper()
	c.do(http.StatusOK, http.MethodGet, r.url+"/user/"+id, "")
	c.do(http.StatusOK, http.MethodPut, r.url+"/user/"+id+"/tier", `{"tier": "tester"}`)
}

// insist is try until the answer is another than that nothing was done because of overload: a busy machine may keep a row
// locked for longer than requests wait.
func (c client) insist(method, url, body string, header ...string) (a answer, err error) {
	for begin := time.Now(); ; {
		a, err = c.try(method, url, body, header...)
		if err != nil || a.code() != "overloaded" || time.Since(begin) > patience {
			return a, err
		}
	}
}

// consume charges the account one token under the key.
func (c client) consume(r *replica, id, key string) (answer, error) {
	return c.try(http.MethodPost, r.url+"/user/"+id+"/consume-tokens", `{"tokens_to_consume": 1}`, "Idempotency-Key", key)
}

// each runs f for 0 to n-1, that many at once.
func each(n, atOnce int, f func(i int)) {
	next := make(chan int)
	var running sync.WaitGroup
	for range atOnce {
		running.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	running.Wait()
}

// database is a connection past the service, for one goroutine.
type database struct{ localpgtest.Database }

func connect(t *testing.T, url string) database {
	t.Helper()
	return database{localpgtest.Connect(t, url)}
}

// keys returns the idempotency keys of the account's consumes.
func (d database) keys(id string) map[string]bool {
	d.T.Helper()
	rows, err := d.Conn.Query(d.T.Context(), `SELECT coalesce(idempotency_key, '') FROM viralpilot.ledger
		WHERE cognito_user_id = $1 AND kind = 'consume'`, id)
	if err != nil {
		d.T.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.T.Fatal(err)
	}
	keys := map[string]bool{}
	for _, key := range list {
		if key == "" || keys[key] {
			d.T.Errorf("the key %q is in the ledger of %s more than once, or an entry has none", key, id)
		}
		keys[key] = true
	}
	return keys
}

// count returns how many entries of the kind the account has.
func (d database) count(id, kind string) int {
	d.T.Helper()
	return localpgtest.Query[int](d, "SELECT count(*) FROM viralpilot.ledger WHERE cognito_user_id = $1 AND kind = $2", id, kind)
}

// checkBooks holds every account against its ledger and its open reservations (rule 12 of package user).
func (d database) checkBooks() {
	d.T.Helper()
	if wrong := localpgtest.Query[string](d, `
		WITH entries AS (
			SELECT *, lag(balance_after, 1, 0) OVER account AS before, row_number() OVER (PARTITION BY cognito_user_id ORDER BY entry_id DESC) AS n
			FROM viralpilot.ledger WINDOW account AS (PARTITION BY cognito_user_id ORDER BY entry_id))
		SELECT coalesce(string_agg(format('%s: %s', cognito_user_id, problem), E'\n'), '') FROM (
			SELECT cognito_user_id, format('entry %s does not follow from the one before', entry_id) AS problem
				FROM entries WHERE balance_after <> before + amount
			UNION ALL SELECT cognito_user_id, format('%s tokens, but %s in the ledger', tokens_remaining, balance_after)
				FROM viralpilot.userdata JOIN entries USING (cognito_user_id) WHERE n = 1 AND tokens_remaining <> balance_after
			UNION ALL SELECT cognito_user_id, format('%s used, but %s in the ledger', tokens_used_this_month, used_after)
				FROM viralpilot.userdata JOIN entries USING (cognito_user_id) WHERE n = 1 AND tokens_used_this_month <> used_after
			UNION ALL SELECT cognito_user_id, format('%s tokens without a ledger', tokens_remaining)
				FROM viralpilot.userdata WHERE tokens_remaining <> 0 AND cognito_user_id NOT IN (SELECT cognito_user_id FROM entries)
			UNION ALL SELECT cognito_user_id, format('%s reserved, but %s in open reservations', tokens_reserved, held)
				FROM viralpilot.account_state CROSS JOIN LATERAL (SELECT coalesce(sum(tokens), 0) AS held FROM viralpilot.reservations r
					WHERE r.cognito_user_id = account_state.cognito_user_id AND status = 'open') AS holds WHERE tokens_reserved <> held
			UNION ALL SELECT cognito_user_id, 'below zero' FROM viralpilot.userdata JOIN viralpilot.account_state USING (cognito_user_id)
				WHERE least(tokens_remaining, tokens_used_this_month, top_ups, tokens_reserved) < 0
		) AS problems`); wrong != "" {
		d.T.Errorf("the books do not balance:\n%s", wrong)
	}
}
