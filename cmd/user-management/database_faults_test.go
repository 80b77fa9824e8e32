//go:build faults || soak

package main_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

func TestADatabaseThatIsStoppedAndStartedAgainUnderLoad(t *testing.T) {
	outage(t, (*localpg.Server).Stop)
}

func TestADatabaseThatIsKilledAndRecoversUnderLoad(t *testing.T) {
	outage(t, (*localpg.Server).Kill)
}

// outage takes the database away under load and brings it back.
func outage(t *testing.T, end func(*localpg.Server) error) {
	server := localpgtest.Server(t)
	dsn := server.URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	load := startClients(t, 16, s)
	for range 2 {
		load.awaitMore(200)
		if err := end(server); err != nil {
			t.Fatal(err)
		}
		s.lives(http.StatusServiceUnavailable)
		_, answer, err := s.call(http.StatusServiceUnavailable, http.MethodGet, "/user/rich-0/status", "", "")
		if err != nil || answer["code"] != "database_unavailable" {
			t.Errorf("%v %v", answer, err)
		}
		load.awaitAnswers("database_unavailable", 40)
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		load.recovered()
		s.lives(http.StatusOK)
	}
	load.onlyAnswers("200", "insufficient_tokens", "overloaded", "database_unavailable")
	load.check(connect(t, dsn), env)
	s.stopped()
}

func TestAPoolThatIsUsedUpIsAnsweredAndFreeAgainAfterwards(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn, "DB_MAX_CONNS=2", "DB_MIN_CONNS=2", "DB_READ_CONNS=1", "DB_ACQUIRE_TIMEOUT=100ms"}
	s := serve(t, env...)
	db := connect(t, dsn)
	const sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'user-management'"
	// To make one may take longer than the wait for a free one, which is another answer.
	localpgtest.Await(t, "both connections are there", func() bool { return db.number(sessions) == 2 })
	load := startClients(t, 16, s)
	load.awaitMore(100)
	for _, lock := range []struct {
		sql   string
		reads bool // whether they wait too
	}{
		{"SELECT FROM viralpilot.userdata ORDER BY cognito_user_id FOR UPDATE", false},
		{"LOCK TABLE viralpilot.userdata IN ACCESS EXCLUSIVE MODE", true},
	} {
		db.Exec("BEGIN")
		db.Exec(lock.sql)
		load.awaitAnswers("overloaded", 200)
		s.lives(http.StatusOK)
		if lock.reads {
			begin := time.Now()
			_, answer, err := s.call(http.StatusServiceUnavailable, http.MethodGet, "/user/rich-0/status", "", "")
			if took := time.Since(begin); err != nil || answer["code"] != "overloaded" || took > recovery {
				t.Errorf("after %s: %v %v", took, answer, err)
			}
		}
		db.Exec("COMMIT")
		load.recovered()
	}
	load.onlyAnswers("200", "insufficient_tokens", "overloaded")
	load.check(db, env)
	if load.slowest > recovery {
		t.Errorf("an answer took %s", load.slowest)
	}
	localpgtest.Await(t, "no more connections than before", func() bool {
		// The pool's, that of reads and the one of /health.
		return db.number(sessions) <= 2+1+1
	})
	s.stopped()
}

// retried wants transactions that were tried again, by the count of the replicas.
func (c *clients) retried(replicas ...*service) {
	c.t.Helper()
	sum := 0.0
	for _, s := range replicas {
		sum += s.metric("user_management_commit_group_retries_total")
	}
	c.t.Logf("%v transactions were tried again, %d requests overloaded", sum, c.answeredSo("overloaded"))
	if sum == 0 {
		c.t.Error("none was tried again")
	}
}

// metric is the value of a metric without labels.
func (s *service) metric(name string) float64 {
	s.t.Helper()
	_, _, text, err := s.send(http.MethodGet, "/metrics", "", "")
	if err != nil {
		s.t.Fatal(err)
	}
	_, value, ok := strings.Cut(string(text), "\n"+name+" ")
	value, _, _ = strings.Cut(value, "\n")
	number, err := strconv.ParseFloat(value, 64)
	if !ok || err != nil {
		s.t.Fatalf("no %s: %v", name, err)
	}
	return number
}

func TestDeadlocksUnderLoadAreRetried(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	db := connect(t, dsn)
	// The service's sessions look for deadlocks, and so they are the ones that are ended: before they would give up
	// waiting for the lock.
	db.Exec("ALTER DATABASE postgres SET deadlock_timeout = '10ms'")
	s := serve(t, env...)
	load := startClients(t, 16, s)
	load.awaitMore(100)
	rival := connect(t, dsn)
	rival.Exec("SET deadlock_timeout = '1h'")
	localpgtest.Await(t, "ten deadlocks", func() bool {
		// The service locks an account before its side row.
		for i := range richAccounts {
			id := fmt.Sprint("rich-", i)
			rival.Exec("BEGIN")
			rival.Exec("SELECT FROM viralpilot.account_state WHERE cognito_user_id = $1 FOR UPDATE", id)
			<-time.After(5 * time.Millisecond) // for the service to lock the account
			rival.Exec("SELECT FROM viralpilot.userdata WHERE cognito_user_id = $1 FOR UPDATE", id)
			rival.Exec("COMMIT")
		}
		return db.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") >= 10
	})
	load.recovered()
	load.onlyAnswers("200", "insufficient_tokens", "overloaded")
	load.check(db, env)
	load.retried(s)
	s.stopped()
}

func TestTwoReplicasOnAServerOfStricterIsolation(t *testing.T) {
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			dsn := localpgtest.Server(t).URL("postgres")
			env := []string{"DATABASE_URL=" + dsn}
			db := connect(t, dsn)
			db.Exec("ALTER DATABASE postgres SET default_transaction_isolation = '" + level + "'")
			a, b := serve(t, env...), serve(t, env...)
			load := startClientsOf(t, 1, 16, a, b)
			load.awaitMore(500)
			load.onlyAnswers("200", "insufficient_tokens", "overloaded")
			load.check(db, env)
			a.stopped()
			b.stopped()
		})
	}
}

func TestADatabaseThatIsReadOnlyForAWhile(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	a, b := serve(t, env...), serve(t, env...)
	load := startClients(t, 16, a, b)
	load.awaitMore(200)
	db := connect(t, dsn)
	set := func(value string) {
		t.Helper()
		db.Exec("ALTER SYSTEM SET default_transaction_read_only = " + value)
		db.Exec("SELECT pg_reload_conf()")
	}
	set("on")
	load.awaitAnswers("database_unavailable", 100)
	for _, s := range []*service{a, b} {
		s.lives(http.StatusOK)
		if _, _, err := s.call(http.StatusOK, http.MethodGet, "/user/rich-0/status", "", ""); err != nil {
			t.Error(err)
		}
		if _, _, err := s.call(http.StatusServiceUnavailable, http.MethodGet, "/user/new", "", ""); err != nil {
			t.Error(err)
		}
	}
	set("off")
	load.recovered()
	load.onlyAnswers("200", "insufficient_tokens", "overloaded", "database_unavailable")
	load.check(db, env)
	a.stopped()
	b.stopped()
}
