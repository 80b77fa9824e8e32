//go:build faults

package main_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// standbyOf makes a synchronous standby of the server, which is stopped and removed when the test has ended.
func standbyOf(t *testing.T, primary *localpg.Server) *localpg.Server {
	t.Helper()
	// Not t.TempDir: only root could pass through its parent.
	dir, err := os.MkdirTemp("", "standby-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	standby, err := primary.Standby(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	return standby
}

// either is the URL of whichever of the servers takes writes.
func either(t *testing.T, servers ...*localpg.Server) string {
	t.Helper()
	var hosts string
	var u *url.URL
	for _, server := range servers {
		var err error
		if u, err = url.Parse(server.URL("postgres")); err != nil {
			t.Fatal(err)
		}
		hosts += "," + u.Host
	}
	u.Host = hosts[1:]
	u.RawQuery += "&target_session_attrs=read-write"
	return u.String()
}

func TestThePrimaryIsKilledAndItsStandbyPromoted(t *testing.T) {
	for name, c := range map[string]struct {
		standbyFirst bool
		// refused is how many requests are answered that there is no database before the standby is promoted.
		refused int
	}{
		"the first host of the URL, at once":  {},
		"the second host of the URL, at once": {standbyFirst: true},
		"the first host, after an outage":     {refused: 64},
	} {
		t.Run(name, func(t *testing.T) {
			primary := localpgtest.Server(t)
			standby := standbyOf(t, primary)
			hosts := []*localpg.Server{primary, standby}
			if c.standbyFirst {
				slices.Reverse(hosts)
			}
			env := []string{"DATABASE_URL=" + either(t, hosts...)}
			a, b := serve(t, env...), serve(t, env...)
			a.awaitHealthy()
			b.awaitHealthy()
			load := startClients(t, 16, a, b)
			load.awaitMore(500)

			begin := time.Now()
			if err := primary.Kill(); err != nil {
				t.Fatal(err)
			}
			killed := time.Since(begin)
			if c.refused > 0 {
				load.awaitAnswers("database_unavailable", c.refused)
			}
			if err := standby.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			promoted := time.Since(begin)
			load.awaitMore(1)
			answered := time.Since(begin)
			if answered > 10*time.Second {
				t.Errorf("the service did not answer before %s had passed", answered)
			}
			t.Logf("the primary was gone after %s, the standby took writes after %s, the service answered again after %s",
				killed.Round(time.Millisecond), promoted.Round(time.Millisecond), answered.Round(time.Millisecond))
			load.awaitMore(500)
			a.awaitHealthy()
			b.awaitHealthy()

			// One that is started now finds the dead host in its URL from the beginning.
			b.stopped()
			b = serve(t, append(env, "SERVICE_PORT="+b.port)...)
			load.awaitMore(500)
			direct := standby.URL("postgres")
			load.check(connect(t, direct), []string{"DATABASE_URL=" + direct})
			run(t, t.TempDir(), env, "verify").want(t, 0)
			a.stopped()
			b.stopped()
		})
	}
}

// awaitHealthy waits until the replica would get requests from a balancer.
func (s *service) awaitHealthy() {
	s.t.Helper()
	localpgtest.Await(s.t, "a replica is healthy", func() bool {
		status, _, err := s.call(0, http.MethodGet, "/health", "", "")
		return err == nil && status == http.StatusOK
	})
}

func TestWhatNoStandbyHasConfirmedIsNotAcknowledged(t *testing.T) {
	primary := localpgtest.Server(t)
	standby := standbyOf(t, primary)
	direct := primary.URL("postgres")
	env := []string{"DATABASE_URL=" + direct, "DB_STATEMENT_TIMEOUT=1s"}
	// It may be set that warnings are not shown.
	connect(t, direct).Exec("ALTER ROLE postgres SET client_min_messages = 'error'")
	s := serve(t, env...)
	s.tester("u")
	if err := s.consume("u", "before"); err != nil {
		t.Fatal(err)
	}

	// Its time-outs end nothing before the test does.
	lasting := serve(t, "DATABASE_URL="+direct, "DB_STATEMENT_TIMEOUT=20s", "REQUEST_TIMEOUT=25s", "HTTP_WRITE_TIMEOUT=50s")

	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	const consume, body = "/user/u/consume-tokens", `{"tokens_to_consume": 1}`
	refused := func(s *service, method, path, body, key string) {
		t.Helper()
		begin := time.Now()
		_, answer, err := s.call(http.StatusServiceUnavailable, method, path, body, key)
		if err != nil || answer["code"] != "database_unavailable" {
			t.Errorf("%s %s with key %q without a standby: %v %v", method, path, key, answer, err)
		}
		t.Logf("%s %s with key %q: %v after %s", method, path, key, answer["code"], time.Since(begin).Round(time.Millisecond))
	}
	for _, key := range []string{"after", "after", "before"} {
		refused(s, http.MethodPost, consume, body, key)
	}
	// The wait is cancelled: PostgreSQL keeps what is committed here alone, and says so in a warning.
	db := connect(t, direct)
	for _, request := range []struct{ method, path, body, key string }{
		{http.MethodPost, consume, body, "cancelled"},
		{http.MethodPost, consume, body, "cancelled"},
		{http.MethodPost, consume, body, "before"},
		{http.MethodPost, consume, body, ""},
		{http.MethodPut, "/user/u/tier", `{"tier": "basic"}`, ""},
		{http.MethodPut, "/user/u/tier", `{"tier": "basic"}`, ""},
		{http.MethodPatch, "/user/u", `{"username": "v"}`, ""},
		{http.MethodPatch, "/user/u", `{"username": "v"}`, ""},
		{http.MethodGet, "/user/new", "", ""},
	} {
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			refused(lasting, request.method, request.path, request.body, request.key)
		}()
		localpgtest.Await(t, "the answer", func() bool {
			db.number("SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
			select {
			case <-answered:
				return true
			default:
				return false
			}
		})
	}

	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	localpgtest.Await(t, "the standby has caught up", func() bool {
		return db.number("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 1
	})
	for _, key := range []string{"before", "after", "cancelled"} {
		for _, s := range []*service{s, lasting} {
			if err := s.consume("u", key); err != nil {
				t.Fatal(err)
			}
		}
		if n := db.number(fmt.Sprintf("SELECT count(*) FROM viralpilot.ledger WHERE idempotency_key = '%s'", key)); n != 1 {
			t.Errorf("%q is in the ledger %d times", key, n)
		}
	}
	run(t, t.TempDir(), env, "verify").want(t, 0)
	s.stopped()
	lasting.stopped()
}

func TestTheStandbyIsKilledUnderLoad(t *testing.T) {
	primary := localpgtest.Server(t)
	standby := standbyOf(t, primary)
	env := []string{"DATABASE_URL=" + either(t, primary, standby), "DB_STATEMENT_TIMEOUT=1s"}
	a, b := serve(t, env...), serve(t, env...)
	load := startClients(t, 16, a, b)
	load.awaitMore(500)
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	load.awaitAnswers("database_unavailable", 32)
	if err := standby.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	load.recovered()
	// What was acknowledged is on the standby, whatever becomes of the primary now.
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	load.awaitMore(500)
	direct := standby.URL("postgres")
	load.check(connect(t, direct), []string{"DATABASE_URL=" + direct})
	a.stopped()
	b.stopped()
}
