package postgres_test

import (
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// buffersOf returns in how many buffers of a table and its indexes PostgreSQL looks for one call of ask, when it is
// called so often that the statements have got a plan for any parameters. The store has one connection for reads.
func (d database) buffersOf(table string, ask func() error) int {
	d.T.Helper()
	// A session reports what it has looked at a second late, or at its end.
	read := func() int {
		d.Exec("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		return localpgtest.Query[int](d, `SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))::int
			FROM pg_statio_all_tables WHERE schemaname = 'viralpilot' AND relname = $1`, table)
	}
	const warm, counted = 10, 10
	run := func(n int) {
		for range n {
			if err := ask(); err != nil {
				d.T.Fatal(err)
			}
		}
	}
	before := read()
	run(warm)
	first := read()
	run(warm + counted)
	return ((read() - first) - (first - before)) / counted
}

func oneReader(o *postgres.Options) { o.ReadConns = 1 }

func TestStoreReservations_CostIsThatOfThePage(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url, oneReader), connect(t, url)
	create(t, store, "u", 1)
	db.Exec(`ALTER TABLE viralpilot.reservations SET (autovacuum_enabled = off)`) // it looks, too
	filler := connect(t, url)
	filler.Exec(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, period, created_at, expires_at)
		SELECT 'u', gen_random_uuid(), 'settled', 1, 0, $1, $1::timestamptz + n * interval '1 second' FROM generate_series(1, 50000) n`, now)
	filler.Exec("VACUUM ANALYZE viralpilot.reservations")
	last := user.ReservationQuery{
		Status: user.ReservationSettled, Limit: 50,
		AfterExpiry: now.Add(49900 * time.Second), AfterID: "ffffffff-ffff-ffff-ffff-ffffffffffff",
	}
	n := db.buffersOf("reservations", func() error {
		page, err := store.Reservations(t.Context(), "u", last)
		if err == nil && len(page) != 50 {
			t.Errorf("a page of %d", len(page))
		}
		return err
	})
	if n > 100 || n == 0 {
		t.Errorf("%d buffers", n)
	}
}
