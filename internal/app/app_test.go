package app_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// Each request says with "Expect: 100-continue" when its handler has begun to read it.
func TestWhatIsUnderWayWhenItStopsIsFinished(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r, c, db := start(t, dsn), newClient(t), connect(t, dsn)
	c.tester(r, "u")
	c.tester(r, "other")
	pass := db.Gate()
	const requests = 8
	var begun sync.WaitGroup
	begun.Add(requests)
	answers := make(chan answer, requests)
	for i := range requests {
		go func() {
			c := c
			c.trace = &httptrace.ClientTrace{Got100Continue: begun.Done}
			id := [...]string{"u", "u", "u", "other"}[i%4]
			a, err := c.try(http.MethodPost, r.url+"/user/"+id+"/consume-tokens", `{"tokens_to_consume": 1}`,
				"Expect", "100-continue", "Idempotency-Key", fmt.Sprint("key-", i))
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	begun.Wait()
	db.AwaitGated()
	r.cancel()
	localpgtest.Await(t, "the port is closed", func() bool {
		_, address, _ := strings.Cut(r.url, "://")
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-r.done:
		t.Fatalf("Run returned %v with requests under way", err)
	default:
	}
	pass()
	for range requests {
		if a := <-answers; a.Status != http.StatusOK {
			t.Errorf("%d %v", a.Status, a.Body)
		}
	}
	if err := r.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if n := len(db.keys("u")) + len(db.keys("other")); n != requests {
		t.Errorf("%d consumes in the ledger", n)
	}
	localpgtest.Await(t, "its sessions have ended", func() bool { // the server notices a little later
		return localpgtest.Query[int](db, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'user-management'") == 0
	})
}

func TestStoppedUnderLoadItHasAnsweredAllThatItDid(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r, db := start(t, dsn), connect(t, dsn)
	newClient(t).tester(r, "u")
	const clients = 64
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	enough := make(chan struct{})
	var running sync.WaitGroup
	for i := range clients {
		c := newClient(t)
		running.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("key-%d-%d", i, n)
				a, err := c.consume(r, "u", key)
				if err != nil {
					// The service is gone, or closed the connection before it read the request.
					return
				}
				if a.Status != http.StatusOK {
					t.Errorf("%d %v", a.Status, a.Body)
					return
				}
				mu.Lock()
				acknowledged[key] = true
				if len(acknowledged) == 100 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	r.stop()
	running.Wait()
	ledger := db.keys("u")
	for key := range acknowledged {
		if !ledger[key] {
			t.Errorf("%s was acknowledged and is not in the ledger", key)
		}
	}
	for key := range ledger {
		if !acknowledged[key] {
			t.Errorf("%s was charged, and its client had no answer", key)
		}
	}
	db.checkBooks()
	t.Logf("%d consumes were acknowledged", len(acknowledged))
}

func TestRequestsThatOutliveTheShutdownTimeoutAreCutOff(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) {
		cfg.ShutdownTimeout = 100 * time.Millisecond
	})
	c, db := newClient(t), connect(t, dsn)
	c.tester(r, "u")
	pass := db.Gate()
	answered := make(chan error, 1)
	go func() {
		_, err := c.consume(r, "u", "k")
		answered <- err
	}()
	db.AwaitGated()
	r.cancel()
	wantLine(t, r.wait(), "SHUTDOWN_TIMEOUT")
	if err := <-answered; err == nil {
		t.Error("the client had an answer")
	}
	pass()
}

func TestASweepThatOutlivesTheShutdownTimeoutIsLeftAlone(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) {
		cfg.SweepInterval, cfg.ShutdownTimeout = 20*time.Millisecond, 100*time.Millisecond
	})
	c, db := newClient(t), connect(t, dsn)
	c.tester(r, "u")
	pass := db.Gate()
	c.do(http.StatusCreated, http.MethodPost, r.url+"/user/u/reservations", `{"tokens": 10, "ttl_seconds": 1}`)
	db.AwaitGated()
	r.cancel()
	wantLine(t, r.wait(), "the database was still at work", "SHUTDOWN_TIMEOUT")
	db.AwaitGated()
	pass()
}

// wantLine fails the test unless err is one line with all the parts and without a password.
func wantLine(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	line := err.Error()
	if strings.Contains(line, "\n") || strings.Contains(line, "secret") {
		t.Errorf("not one line without secrets: %s", line)
	}
	for _, part := range parts {
		if !strings.Contains(line, part) {
			t.Errorf("%q is missing in: %s", part, line)
		}
	}
}

func TestAStartThatCannotSucceedEndsWithOneLine(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	with := func(change func(*url.URL)) string {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	for name, test := range map[string]struct {
		database string
		change   func(*config.Config)
		says     []string
	}{
		"taken port": {
			dsn, func(cfg *config.Config) { cfg.ServicePort = port }, []string{"SERVICE_PORT", strconv.Itoa(port)},
		},
		"address of another machine": {
			dsn, func(cfg *config.Config) { cfg.ServiceHost = "192.0.2.1" }, []string{"SERVICE_HOST"},
		},
		"missing database": {
			with(func(u *url.URL) { u.Path = "/not_there" }), nil, []string{"DATABASE_URL", `"not_there"`, "does not exist"},
		},
		"refused login": {
			with(func(u *url.URL) { u.User = url.UserPassword("not_there", "secret") }), nil, []string{"DATABASE_URL", `"not_there"`, "refused"},
		},
		"nothing there": {
			"postgresql://u:secret@127.0.0.1:1/db", func(cfg *config.Config) { cfg.DBConnectTimeout = 100 * time.Millisecond },
			[]string{"DATABASE_URL", "127.0.0.1:1", "100ms"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := configure(test.database)
			if err != nil {
				t.Fatal(err)
			}
			if test.change != nil {
				test.change(&cfg)
			}
			l := &log{listening: make(chan string, 1)}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			wantLine(t, app.Run(ctx, cfg, l), test.says...)
			if strings.Contains(l.String(), "secret") {
				t.Errorf("the log has the password:\n%s", l.String())
			}
		})
	}
}

func TestAStopWhileItWaitsForTheDatabaseIsClean(t *testing.T) {
	t.Parallel()
	cfg, err := configure("postgresql://u:secret@127.0.0.1:1/db")
	if err != nil {
		t.Fatal(err)
	}
	l := &log{listening: make(chan string, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx, cfg, l) }()
	localpgtest.Await(t, "it waits", func() bool { return strings.Contains(l.String(), "waiting for the database") })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// dial opens a connection and writes the text to it.
func (r *replica) dial(text string) net.Conn {
	r.t.Helper()
	_, address, _ := strings.Cut(r.url, "://")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		r.t.Fatal(err)
	}
	return conn
}

// consumeHeader announces a body of 24 bytes; the empty line that ends it is missing.
const consumeHeader = "POST /user/u/consume-tokens HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: 24\r\n"

func TestSlowClientsAreCutOffWhileOthersAreServed(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	db := connect(t, dsn)
	// The other time-out is too long to be the one that ends the connection.
	slowHeader := func(cfg *config.Config) {
		cfg.HTTPReadHeaderTimeout, cfg.HTTPReadTimeout = 200*time.Millisecond, 10*patience
	}
	slowBody := func(cfg *config.Config) {
		cfg.HTTPReadHeaderTimeout, cfg.HTTPReadTimeout, cfg.HTTPBodyTimeout = 10*patience, 10*patience, 200*time.Millisecond
	}
	ca, dir := newAuthority(t), t.TempDir()
	ca.issue(dir+"/tls.crt", dir+"/tls.key", 1, time.Now().Add(time.Hour))
	secured := func(change func(*config.Config)) func(*config.Config) {
		return func(cfg *config.Config) {
			change(cfg)
			cfg.TLSCertFile, cfg.TLSKeyFile = dir+"/tls.crt", dir+"/tls.key"
		}
	}
	for name, test := range map[string]struct {
		sent   string
		change func(*config.Config)
		tls    string // protocol within, if any
	}{
		"header":                      {consumeHeader, slowHeader, ""},
		"nothing at all":              {"", slowHeader, ""},
		"body":                        {consumeHeader + "\r\n" + `{"tokens_to_`, slowBody, ""},
		"header within TLS":           {consumeHeader, secured(slowHeader), "http/1.1"},
		"body within TLS":             {consumeHeader + "\r\n" + `{"tokens_to_`, secured(slowBody), "http/1.1"},
		"handshake of TLS":            {"\x16\x03", secured(slowHeader), ""},
		"nothing at all where TLS is": {"", secured(slowHeader), ""},
		"nothing at all of HTTP/2":    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", secured(func(cfg *config.Config) { cfg.HTTPIdleTimeout = time.Second }), "h2"},
	} {
		t.Run(name, func(t *testing.T) {
			var cfg config.Config
			test.change(&cfg)
			r, c := start(t, dsn, test.change), newClient(t)
			if cfg.TLSCertFile != "" {
				c.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: ca.pool}
				r.url = strings.Replace(r.url, "http:", "https:", 1)
			}
			c.tester(r, "u")
			conns := make([]net.Conn, 20)
			for i := range conns {
				if test.tls == "" {
					conns[i] = r.dial(test.sent)
					continue
				}
				conn := tls.Client(r.dial(""), &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1", NextProtos: []string{test.tls}})
				if _, err := io.WriteString(conn, test.sent); err != nil {
					t.Fatal(err)
				}
				conns[i] = conn
			}
			c.do(http.StatusOK, http.MethodGet, r.url+"/user/u", "")
			for _, conn := range conns {
				// Until the service closes the connection; what it says before that is its own affair.
				_, err := io.Copy(io.Discard, conn)
				if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
			}
		})
	}
	if n := db.count("u", "consume"); n != 0 {
		t.Errorf("%d consumes", n)
	}
}

func TestAClientThatHangsUpLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) { cfg.DBMaxConns = 1 })
	c, db := newClient(t), connect(t, dsn)
	c.tester(r, "u")
	c.tester(r, "other")
	// answered waits until the log has the request with this id: its handler has returned.
	answered := func(id string) {
		t.Helper()
		localpgtest.Await(t, id+" is in the log", func() bool { return hasRequest(r.log.String(), id) })
	}
	request := func(account, id string) string {
		return strings.Replace(consumeHeader, "/user/u/", "/user/"+account+"/", 1) +
			"X-Request-Id: " + id + "\r\nIdempotency-Key: " + id + "\r\n\r\n" + `{"tokens_to_consume": 1}`
	}

	// In the middle of the body.
	whole := request("u", "cut")
	r.dial(whole[:len(whole)-5]).Close()
	answered("cut")
	if n := db.count("u", "consume"); n != 0 {
		t.Errorf("half a request: %d consumes", n)
	}

	// In the middle of its transaction, and while it waits for one.
	pass := db.Gate()
	begun := r.dial(request("u", "begun"))
	db.AwaitGated() // it has the only connection
	r.dial(request("other", "waiting")).Close()
	answered("waiting")
	begun.Close()
	pass()
	answered("begun")
	if n := db.count("other", "consume"); n != 0 {
		t.Errorf("the one that had not begun: %d consumes", n)
	}
	if keys := db.keys("u"); len(keys) != 1 || !keys["begun"] {
		t.Errorf("the one that had begun: %v", keys)
	}

	// The client comes back with the key.
	if a, err := c.consume(r, "u", "begun"); err != nil || a.Status != http.StatusOK || a.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d %v %v", a.Status, a.Header, err)
	}
	db.checkBooks()
}

// hasRequest reports whether the log has the line of a request with this id.
func hasRequest(log, id string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"msg":"request"`) && strings.Contains(line, `"request_id":"`+id+`"`) {
			return true
		}
	}
	return false
}

func TestAUsedUpPoolIsAnsweredAndDoesNotReachOtherAnswers(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	r := start(t, dsn, func(cfg *config.Config) { cfg.DBMaxConns, cfg.DBAcquireTimeout = 1, time.Second })
	c, db := newClient(t), connect(t, dsn)
	c.tester(r, "u")
	c.tester(r, "other")
	pass := db.Gate()
	done := make(chan error, 1)
	go func() {
		_, err := c.consume(r, "u", "k")
		done <- err
	}()
	db.AwaitGated()
	a, err := c.consume(r, "other", "k")
	if err != nil || a.Status != http.StatusServiceUnavailable || a.code() != "overloaded" || a.Header.Get("Retry-After") == "" {
		t.Errorf("%d %v %v", a.Status, a.Body, err)
	}
	c.do(http.StatusOK, http.MethodGet, r.url+"/livez", "")
	if a, err := c.try(http.MethodGet, r.url+"/health", ""); err != nil || a.Body["service"] != "user-management" {
		t.Errorf("/health: %v %v", a.Body, err)
	}
	pass()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := db.count("other", "consume"); n != 0 {
		t.Errorf("%d consumes were done and refused", n)
	}
}
