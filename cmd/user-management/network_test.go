//go:build faults

package main_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// moments of the transaction that serves a group of updates.
var (
	beforeBegin  = localpgtest.Before("read committed")
	locked       = localpgtest.Answer("FOR UPDATE SKIP LOCKED")
	beforeCommit = localpgtest.Before("commit")
	committed    = localpgtest.Answer("commit")
)

// behindProxy starts the service on a database of its own, with a proxy between them. The service gives up on a
// connection after two seconds without an answer.
func behindProxy(t *testing.T, server *localpg.Server, name string) (s *service, proxy *localpgtest.Proxy, dsn string) {
	t.Helper()
	connect(t, server.URL("postgres")).Exec("CREATE DATABASE " + name)
	dsn = server.URL(name)
	proxy = localpgtest.NewProxy(t, dsn)
	return serve(t, "DATABASE_URL="+proxy.URL(), "DB_STATEMENT_TIMEOUT=1s", "LOG_REQUESTS=none"), proxy, dsn
}

func TestNetworkFailsUnderLoad(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t)
	n := 0
	for _, moment := range []struct {
		name string
		localpgtest.Moment
	}{
		{"while connecting", localpgtest.Connecting},
		{"before BEGIN", beforeBegin},
		{"after the locks", locked},
		{"before COMMIT", beforeCommit},
		{"after COMMIT", committed},
	} {
		for _, fault := range []struct {
			name string
			localpgtest.Fault
			// connects is how many times it happens to new connections; one of those that succeed may be enough.
			connects int
		}{
			{"cut", localpgtest.Cut, 3},
			{"cut in the middle of the message", localpgtest.CutHalfway, 3},
			{"reset", localpgtest.Reset, 3},
			{"half-closed towards the service", localpgtest.HalfCloseClient, 3},
			{"half-closed towards the server", localpgtest.HalfCloseServer, 3},
			{"muted", localpgtest.Mute, 9}, // one more than the pool has places
			{"delayed for less than the service waits", localpgtest.Delay(500 * time.Millisecond), 1},
			{"delayed for longer than the service waits", localpgtest.Delay(2500 * time.Millisecond), 1},
		} {
			n++
			database := fmt.Sprint("load_", n)
			t.Run(fault.name+" "+moment.name, func(t *testing.T) {
				t.Parallel()
				s, proxy, dsn := behindProxy(t, server, database)
				load := startClients(t, 8, s)
				load.awaitMore(50)
				times := 3
				switch {
				case moment.Moment == localpgtest.Connecting:
					times = fault.connects
				case moment.Moment == committed && fault.connects > 1 && fault.Fault != localpgtest.Mute:
					times = 12 // so that some commands without a key are among them
				case moment.Moment == beforeCommit && fault.Fault == localpgtest.Mute:
					times = 1 // several might lock all accounts
				}
				plan := proxy.At(moment.Moment, fault.Fault, times)
				if moment.Moment == localpgtest.Connecting {
					proxy.CutAll()
				}
				localpgtest.Await(t, "the fault has happened", func() bool { return plan.Left() == 0 })
				if moment.Moment == beforeCommit && fault.Fault == localpgtest.Mute {
					// With half of a batch the server waits for the rest and keeps the rows locked until TCP gives up. A group
					// that wrote nothing is a whole one.
					whole := load.acknowledged() + 200
					localpgtest.Await(t, "the service has given up or goes on", func() bool {
						load.mu.Lock()
						defer load.mu.Unlock()
						return load.answers["overloaded"]+load.answers["database_unavailable"] > 0 || load.done >= whole
					})
					proxy.CutAll()
				}
				load.awaitMore(100)
				load.check(connect(t, dsn), []string{"DATABASE_URL=" + dsn})
				proxy.CutAll() // the service would say goodbye to those that are muted
				if load.unknown > 0 && certain(moment.Moment, fault.Fault) {
					t.Errorf("%d were told that the outcome is unknown although nothing had been done", load.unknown)
				}
				if code := s.end(syscall.SIGTERM); code != 0 {
					t.Errorf("exit status %d", code)
				}
			})
		}
	}
}

// certain reports whether the service knows at once that a transaction with this fault did nothing, and repeats it.
func certain(m localpgtest.Moment, f localpgtest.Fault) bool {
	switch f {
	case localpgtest.Cut, localpgtest.CutHalfway, localpgtest.Reset, localpgtest.HalfCloseClient:
		return m == beforeBegin || m == locked
	case localpgtest.HalfCloseServer:
		return m == beforeBegin
	}
	return false
}

func TestNetworkFailsDuringOneRequest(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t)
	const (
		path   = "/user/u/consume-tokens"
		body   = `{"tokens_to_consume": 7}`
		charge = "SELECT count(*) FROM viralpilot.ledger WHERE tokens_charged = 7"
	)
	var n atomic.Int32
	start := func(t *testing.T) (*service, *localpgtest.Proxy, database, []string) {
		t.Helper()
		t.Parallel()
		s, proxy, dsn := behindProxy(t, server, fmt.Sprint("single_", n.Add(1)))
		s.tester("u")
		return s, proxy, connect(t, dsn), []string{"DATABASE_URL=" + dsn}
	}
	late := localpgtest.Delay(2500 * time.Millisecond) // later than the service waits
	for _, test := range []struct {
		name    string
		moment  localpgtest.Moment
		fault   localpgtest.Fault
		key     string
		unknown bool // what the caller is told
		done    int
	}{
		{"with a key after COMMIT", committed, localpgtest.Cut, "k", false, 1},
		{"without a key after COMMIT", committed, localpgtest.Cut, "", true, 1},
		{"with a key when a pooler loses the server after COMMIT", committed, localpgtest.CutByPooler, "k", false, 1},
		{"without a key when a pooler loses the server after COMMIT", committed, localpgtest.CutByPooler, "", true, 1},
		{"with a key in the middle of COMMIT's answer", committed, localpgtest.CutHalfway, "k", false, 1},
		{"without a key in the middle of COMMIT's answer", committed, localpgtest.CutHalfway, "", true, 1},
		{"with a key when COMMIT is never answered", committed, localpgtest.Mute, "k", true, 1},
		{"without a key when COMMIT is never answered", committed, localpgtest.Mute, "", true, 1},
		{"with a key when no answer can come", committed, localpgtest.HalfCloseClient, "k", false, 1},
		{"without a key when no answer can come", committed, localpgtest.HalfCloseClient, "", true, 1},
		{"with a key when COMMIT comes too late", beforeCommit, late, "k", true, 1},
		{"without a key when COMMIT comes too late", beforeCommit, late, "", true, 1},
		{"with a key before COMMIT", beforeCommit, localpgtest.Cut, "k", false, 1},
		{"without a key before COMMIT", beforeCommit, localpgtest.Cut, "", true, 0},
		{"without a key after the locks", locked, localpgtest.Cut, "", false, 1},
		{"without a key before BEGIN", beforeBegin, localpgtest.Cut, "", false, 1},
	} {
		t.Run("consume "+test.name, func(t *testing.T) {
			s, proxy, db, env := start(t)
			plan := proxy.At(test.moment, test.fault, 1)
			status, header, first := s.post(path, body, test.key)
			if plan.Left() != 0 {
				t.Error("the fault did not happen")
			}
			// truthful fails the test unless the answer is about the entry in the ledger.
			truthful := func(status int, answer map[string]any) {
				t.Helper()
				id := db.number("SELECT max(entry_id) FROM viralpilot.ledger WHERE tokens_charged = 7")
				if status != http.StatusOK || answer["entry_id"] != strconv.Itoa(id) ||
					answer["tokens_remaining"] != 993.0 || answer["tokens_used_this_month"] != 7.0 {
					t.Fatalf("entry %d was answered with %d: %v", id, status, answer)
				}
			}
			if test.unknown {
				wantOutcomeUnknown(t, status, header, first)
			} else {
				truthful(status, first)
				replayed := header.Get("Idempotency-Replayed") != ""
				if found := test.key != "" && test.moment == committed; replayed != found {
					t.Errorf("Idempotency-Replayed: %t, want %t", replayed, found)
				}
			}
			if test.key != "" {
				status, header, again := s.post(path, body, test.key)
				for again["code"] == "overloaded" { // the row is locked until a late commit is through
					status, header, again = s.post(path, body, test.key)
				}
				truthful(status, again)
				if header.Get("Idempotency-Replayed") != "true" || !test.unknown && !maps.Equal(again, first) {
					t.Errorf("again: %v %v, the first time %v", header, again, first)
				}
			}
			if test.done > 0 {
				localpgtest.Await(t, "it is done, unknown or not", func() bool { return db.number(charge) > 0 })
			}
			if n := db.number(charge); n != test.done {
				t.Errorf("charged %d times, want %d", n, test.done)
			}
			_, account, err := s.call(http.StatusOK, http.MethodGet, "/user/u/status", "", "")
			if left := float64(1000 - 7*test.done); err != nil || account["tokens_remaining"] != left {
				t.Errorf("%v, want %v left, error %v", account, left, err)
			}
			run(t, t.TempDir(), env, "verify").want(t, 0)
		})
	}
	for _, moment := range []localpgtest.Moment{beforeCommit, committed} {
		t.Run("settle "+map[bool]string{true: "after", false: "before"}[moment == committed]+" COMMIT", func(t *testing.T) {
			s, proxy, db, env := start(t)
			_, _, reservation := s.post("/user/u/reservations", `{"tokens": 20}`, "")
			settle := fmt.Sprintf("/user/u/reservations/%s/settle", reservation["reservation_id"])
			plan := proxy.At(moment, localpgtest.Cut, 1)
			status, _, first := s.post(settle, `{"tokens_used": 7}`, "")
			if status != http.StatusOK || first["tokens_charged"] != 7.0 || first["tokens_remaining"] != 993.0 ||
				plan.Left() != 0 {
				t.Errorf("%d: %v", status, first)
			}
			if status, _, again := s.post(settle, `{"tokens_used": 7}`, ""); status != http.StatusOK || !maps.Equal(again, first) {
				t.Errorf("again: %d %v, the first time %v", status, again, first)
			}
			if n := db.number(charge); n != 1 {
				t.Errorf("charged %d times", n)
			}
			run(t, t.TempDir(), env, "verify").want(t, 0)
		})
	}
	t.Run("a new account after COMMIT", func(t *testing.T) {
		s, proxy, db, env := start(t)
		plan := proxy.At(committed, localpgtest.Cut, 1)
		status, header, answer := s.post("/user", `{"cognito_user_id": "new"}`, "")
		wantOutcomeUnknown(t, status, header, answer)
		if plan.Left() != 0 {
			t.Error("the fault did not happen")
		}
		if _, _, err := s.call(http.StatusOK, http.MethodGet, "/user/new", "", ""); err != nil {
			t.Error(err)
		}
		if n := db.number("SELECT count(*) FROM viralpilot.account_state WHERE cognito_user_id = 'new'"); n != 1 {
			t.Errorf("made %d times", n)
		}
		run(t, t.TempDir(), env, "verify").want(t, 0)
	})
}

// wantOutcomeUnknown fails the test unless the caller was told that the outcome is unknown.
func wantOutcomeUnknown(t *testing.T, status int, header http.Header, problem map[string]any) {
	t.Helper()
	if status != http.StatusServiceUnavailable || problem["code"] != "database_unavailable" ||
		problem["outcome"] != "unknown" || header.Get("Retry-After") == "" {
		t.Errorf("%d %v: %v", status, header, problem)
	}
}

// post sends one request and returns its answer, whatever it is.
func (s *service) post(path, body, key string) (status int, header http.Header, answer map[string]any) {
	s.t.Helper()
	status, header, text, err := s.send(http.MethodPost, path, body, key)
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return status, header, answer
}
