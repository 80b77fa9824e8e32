package localpgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Patience bounds every wait for something that happens soon unless the code
// is wrong.
const Patience = 30 * time.Second

// CalmZone is the name of a time zone in which no month ends within the next
// hour, for tests that play at the present.
func CalmZone() string {
	now := time.Now().UTC()
	if now.Add(time.Hour).Month() != now.Month() {
		return "Etc/GMT+12"
	}
	return "UTC"
}

// Await polls until ok, and fails the test after Patience.
func Await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", Patience, what)
		}
	}
}

// Database is a connection past what is tested, for one goroutine. An error of
// a statement fails the test.
type Database struct {
	T    testing.TB
	Conn *pgx.Conn
}

// Connect returns a connection, past the PgBouncer and in UTC, that is closed
// when the test has ended.
func Connect(t testing.TB, dsn string) Database {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), Direct(dsn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	d := Database{t, conn}
	d.Exec("SET timezone = 'UTC'")
	return d
}

// Exec runs SQL; without arguments it may be several statements.
func (d Database) Exec(sql string, args ...any) {
	d.T.Helper()
	if _, err := d.Conn.Exec(d.T.Context(), sql, args...); err != nil {
		d.T.Fatalf("%v\n%s", err, sql)
	}
}

// Querier is a Database, or what embeds one.
type Querier interface {
	scan(value any, sql string, args ...any)
}

// Query returns the only value of the only row.
func Query[T any](d Querier, sql string, args ...any) (value T) {
	d.scan(&value, sql, args...)
	return value
}

func (d Database) scan(value any, sql string, args ...any) {
	d.T.Helper()
	if err := d.Conn.QueryRow(d.T.Context(), sql, args...).Scan(value); err != nil {
		d.T.Fatalf("%v\n%s", err, sql)
	}
}

// Gate holds the transactions that write a consume of the account u, or that a
// hold of it has run out, until what it returns is called. A row lock would not
// do: those are waited for no longer than a second.
func (d Database) Gate() (open func()) {
	d.T.Helper()
	d.Exec(`CREATE TABLE gate (shut BOOLEAN); INSERT INTO gate VALUES (true);
		CREATE FUNCTION pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			WHILE EXISTS (SELECT FROM public.gate WHERE shut) LOOP
				PERFORM pg_sleep(0.02);
			END LOOP;
			RETURN NULL;
		END $$;
		CREATE TRIGGER pass_gate AFTER INSERT ON viralpilot.ledger FOR EACH ROW
			WHEN (NEW.cognito_user_id = 'u' AND NEW.kind IN ('consume', 'expire')) EXECUTE FUNCTION pass_gate()`)
	return func() {
		d.T.Helper()
		d.Exec("UPDATE gate SET shut = false")
	}
}

// AwaitGated returns once a transaction stands at the gate.
func (d Database) AwaitGated() {
	d.T.Helper()
	Await(d.T, "a transaction stands at the gate", func() bool {
		return Query[int](d, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'") > 0
	})
}
