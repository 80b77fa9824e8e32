//go:build faults || soak

package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// drained is an environment with a stop that leaves the balancer of the clients time to look elsewhere.
func drained(dsn string) []string {
	return []string{"DATABASE_URL=" + dsn, "SHUTDOWN_DELAY=2s"}
}

// restart ends a replica as an operator does and starts it again on its port.
func (c *clients) restart(i int, s *service, env []string) *service {
	c.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	c.awaitReady(i, false)
	if code := s.wait(); code != 0 {
		c.t.Errorf("exit status %d", code)
	}
	s = serve(c.t, append(env, "SERVICE_PORT="+s.port)...)
	c.awaitReady(i, true)
	return s
}

func TestARollingRestartFailsNoRequest(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := drained(dsn)
	replicas := []*service{serve(t, env...), serve(t, env...)}
	load := startBalancedClients(t, 16, replicas...)
	for range 4 {
		for i := range replicas {
			load.awaitMore(100)
			replicas[i] = load.restart(i, replicas[i], env)
		}
	}
	load.awaitMore(100)
	sum := load.check(connect(t, dsn), env)
	load.onlyAnswers("200", "insufficient_tokens", "overloaded", notAccepted)
	if sum.unknown != 0 {
		t.Errorf("%d commands without a certain answer", sum.unknown)
	}
	for _, s := range replicas {
		s.stopped()
	}
}

// newerSchema are migrations that a later version could bring, one transaction each: a version that does not know of
// them has to go on.
var newerSchema = []string{
	"ALTER TABLE viralpilot.userdata ADD COLUMN locale text",
	// Which makes PostgreSQL refuse the statements that were prepared before.
	"ALTER TABLE viralpilot.userdata ALTER COLUMN username TYPE text",
	"ALTER TABLE viralpilot.account_state ADD COLUMN note text, ADD COLUMN frozen_at timestamptz",
	"ALTER TABLE viralpilot.ledger ADD COLUMN source text",
	"ALTER TABLE viralpilot.reservations ADD COLUMN note text",
	"CREATE TABLE viralpilot.notes (cognito_user_id VARCHAR(255) REFERENCES viralpilot.userdata ON DELETE CASCADE, note text)",
	"CREATE FUNCTION viralpilot.later() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
	"INSERT INTO viralpilot.goose_db_version (version_id, is_applied) SELECT max(version_id) + 1, true FROM viralpilot.goose_db_version",
	"INSERT INTO viralpilot.goose_db_version (version_id, is_applied) SELECT max(version_id) + 1, true FROM viralpilot.goose_db_version",
}

// migrate runs a statement in a transaction that waits for no lock for long, again until it got them.
func (d database) migrate(sql string) {
	d.T.Helper()
	localpgtest.Await(d.T, sql, func() bool {
		err := pgx.BeginFunc(d.T.Context(), d.Conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(d.T.Context(), "SET LOCAL lock_timeout = 200; "+sql)
			return err
		})
		var refused *pgconn.PgError
		if errors.As(err, &refused) && refused.Code == "55P03" {
			return false
		}
		if err != nil {
			d.T.Fatalf("%v\n%s", err, sql)
		}
		return true
	})
}

// tour makes an account and calls what reads and writes the tables in other ways than a consume does. It leaves nothing
// used.
func (s *service) tour(round int) {
	s.t.Helper()
	id := fmt.Sprintf("tour-%d-%s", round, s.port)
	s.tester(id)
	user := "/user/" + id
	_, answer, err := s.call(http.StatusCreated, http.MethodPost, user+"/reservations", `{"tokens": 5}`, "")
	if err != nil {
		s.t.Fatal(err)
	}
	reservation := fmt.Sprintf("%s/reservations/%s", user, answer["reservation_id"])
	for _, c := range []struct{ method, path, body string }{
		{http.MethodGet, user, ""},
		{http.MethodGet, user + "/status", ""},
		{http.MethodGet, user + "/ledger", ""},
		{http.MethodGet, user + "/usage", ""},
		{http.MethodGet, user + "/reservations", ""},
		{http.MethodGet, reservation, ""},
		{http.MethodPost, reservation + "/release", ""},
		{http.MethodPost, user + "/add-tokens", `{"tokens_to_add": 1}`},
		{http.MethodPatch, user, `{"email": "tour@example.com"}`},
		{http.MethodGet, "/users?q=tour", ""},
		{http.MethodGet, "/users", ""},
	} {
		if _, _, err := s.call(http.StatusOK, c.method, c.path, c.body, ""); err != nil {
			s.t.Error(err)
		}
	}
}

func TestASchemaOfALaterVersionComesUnderLoad(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := drained(dsn)
	replicas := []*service{serve(t, env...), serve(t, env...)}
	load := startBalancedClients(t, 16, replicas...)
	rounds := 0
	tours := func() {
		t.Helper()
		// Several times, so that each connection has statements from before and uses them afterwards.
		for range 10 {
			rounds++
			for _, s := range replicas {
				s.tour(rounds)
			}
		}
	}
	tours()
	db := connect(t, dsn)
	for _, sql := range newerSchema {
		load.awaitMore(50)
		db.migrate(sql)
	}
	for _, table := range []string{"userdata", "ledger", "account_state", "reservations"} {
		db.Exec("CREATE INDEX CONCURRENTLY later_" + table + " ON viralpilot." + table + " (cognito_user_id)")
	}
	load.awaitMore(200)
	tours()

	// Back from the later version: this one starts and serves on what the later one has left.
	before := db.number("SELECT max(version_id) FROM viralpilot.goose_db_version")
	for i := range replicas {
		replicas[i] = load.restart(i, replicas[i], env)
		load.awaitMore(200)
	}
	tours()
	run(t, t.TempDir(), env, "migrate").want(t, 0)
	if after := db.number("SELECT max(version_id) FROM viralpilot.goose_db_version"); after != before {
		t.Errorf("the schema's version went from %d to %d", before, after)
	}
	load.check(db, env)
	load.onlyAnswers("200", "insufficient_tokens", "overloaded", notAccepted)
	for _, s := range replicas {
		s.stopped()
	}
}
