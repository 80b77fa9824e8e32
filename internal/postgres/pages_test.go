package postgres_test

import (
	"cmp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// buffersOf returns in how many buffers of a table and its indexes PostgreSQL looks for one call of ask, with plans for
// any parameters. PostgreSQL takes to these from a statement's sixth time on, where it believes that they are no worse.
func (d database) buffersOf(table string, ask func() error) int {
	d.T.Helper()
	d.Exec("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET plan_cache_mode = force_generic_plan', current_database()); END $$")
	// A session reports what it has looked at a second late, or at its end.
	read := func() int {
		d.Exec("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
		return localpgtest.Query[int](d, `SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))::int
			FROM pg_statio_all_tables WHERE schemaname = 'viralpilot' AND relname = $1`, table)
	}
	const calls = 5
	before := read()
	for range calls {
		if err := ask(); err != nil {
			d.T.Fatal(err)
		}
	}
	return (read() - before) / calls
}

func TestStoreReservations_CostIsThatOfThePage(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
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

// looking makes a page look at so many rows.
func looking(store *postgres.Store, n int) *postgres.Store {
	store.SetMaxLooks(n)
	return store
}

func TestStoreEntries_PagesThatGiveUpLeadToAll(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := looking(open(t, url), 7), connect(t, url)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	db.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
		SELECT CASE WHEN n % 3 = 0 THEN 'other' ELSE 'u' END,
			CASE WHEN n BETWEEN 60 AND 200 THEN 'settle' WHEN n % 5 = 0 THEN 'top_up' ELSE 'consume' END, 0, 0, 0, 0,
			$1::timestamptz + n * interval '1 minute'
		FROM generate_series(1, 260) n`, begin)
	for name, q := range map[string]user.EntryQuery{
		"consumes":                 {Kind: user.KindConsume},
		"top-ups":                  {Kind: user.KindTopUp},
		"what there is none of":    {Kind: user.KindRefund},
		"all":                      {},
		"since":                    {Since: begin.Add(100 * time.Minute)},
		"until":                    {Until: begin.Add(150 * time.Minute)},
		"consumes of some minutes": {Kind: user.KindConsume, Since: begin.Add(20 * time.Minute), Until: begin.Add(215 * time.Minute)},
		"settles of some minutes":  {Kind: user.KindSettle, Since: begin.Add(90 * time.Minute), Until: begin.Add(110 * time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			want := db.lines(`SELECT l.entry_id::text FROM viralpilot.ledger l
				WHERE cognito_user_id = 'u' AND ($1 = '' OR kind = $1) AND created_at >= $2 AND created_at < $3 ORDER BY l.entry_id DESC`,
				string(q.Kind), q.Since, cmp.Or(q.Until, now))
			var found []string
			pages := 0
			for q.Limit = 3; ; pages++ {
				page, before, err := store.Entries(t.Context(), "u", q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) > q.Limit || pages > 100 {
					t.Fatalf("page %d has %d entries", pages, len(page))
				}
				for _, e := range page {
					found = append(found, strconv.FormatInt(e.ID, 10))
				}
				if before == 0 {
					break
				}
				q.Before = before
			}
			if got := strings.Join(found, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if q.Kind == user.KindConsume && pages < 10 {
				t.Errorf("all in %d pages", pages)
			}
		})
	}
	if page, before, err := store.Entries(t.Context(), "nobody", user.EntryQuery{Kind: user.KindConsume, Limit: 3}); len(page) != 0 || before != 0 || err != nil {
		t.Errorf("of nobody: %v, %d, %v", page, before, err)
	}
}

func TestStoreAccounts_PagesThatGiveUpLeadToAll(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := looking(open(t, url), 7), connect(t, url)
	db.Exec(`INSERT INTO viralpilot.userdata (cognito_user_id, username, subscription_tier, is_active, subscription_renewal_date)
		SELECT 'u' || lpad(n::text, 3, '0'), CASE WHEN n % 3 = 0 THEN 'Joanna' END, CASE WHEN n % 20 = 0 THEN 'tester' ELSE 'free' END,
			n % 50 <> 0, CASE n % 10 WHEN 1 THEN timestamp '-infinity' WHEN 2 THEN 'infinity' WHEN 3 THEN '2026-12-01' WHEN 4 THEN '2026-11-30 23:59:59' END
		FROM generate_series(1, 100) n`)
	soon := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	// Whoever is erased is in no list, but pages go on after them.
	db.Exec(`INSERT INTO viralpilot.account_state (cognito_user_id, erased) SELECT cognito_user_id, true
		FROM viralpilot.userdata WHERE cognito_user_id < 'u012' OR cognito_user_id = 'u040'`)
	inactive := false
	for name, c := range map[string]struct {
		query user.AccountQuery
		want  string // of what they are
	}{
		"all":                   {user.AccountQuery{}, "true"},
		"a tier":                {user.AccountQuery{Tier: "tester"}, "subscription_tier = 'tester'"},
		"a tier that is nobody": {user.AccountQuery{Tier: "gold"}, "false"},
		"who is not active":     {user.AccountQuery{Active: &inactive}, "NOT is_active"},
		"a prefix":              {user.AccountQuery{Text: "u0"}, "cognito_user_id < 'u100'"},
		"a text that few have":  {user.AccountQuery{Text: "040"}, "cognito_user_id = 'u040'"},
		"a text that many have": {user.AccountQuery{Text: "ann"}, "username IS NOT NULL"},
		"a text and a filter":   {user.AccountQuery{Text: "ann", Tier: "tester"}, "username IS NOT NULL AND subscription_tier = 'tester'"},
		"who renews soon":       {user.AccountQuery{RenewsBefore: soon}, "subscription_renewal_date < '2026-12-01' AND isfinite(subscription_renewal_date)"},
	} {
		t.Run(name, func(t *testing.T) {
			want := db.lines(`SELECT cognito_user_id FROM viralpilot.userdata u
				WHERE ` + c.want + ` AND NOT EXISTS (SELECT FROM viralpilot.account_state s WHERE s.cognito_user_id = u.cognito_user_id)
				ORDER BY cognito_user_id`)
			var found []string
			q := c.query
			pages := 0
			for q.Limit = 3; ; pages++ {
				page, after, err := store.Accounts(t.Context(), q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) > q.Limit || pages > 100 {
					t.Fatalf("page %d has %d accounts", pages, len(page))
				}
				for _, a := range page {
					found = append(found, a.ID)
				}
				if after == "" {
					break
				}
				q.After = after
			}
			if got := strings.Join(found, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if q.Tier == "gold" && pages < 100/7 {
				t.Errorf("all in %d pages", pages)
			}
		})
	}
}

// Where a filter leaves nearly all out, a page costs a bounded search, and one without it what is on it.
func TestPagesOfWhatIsRare_CostABoundedSearch(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := looking(open(t, url), 1000), connect(t, url)
	create(t, store, "u", 1)
	for _, table := range []string{"ledger", "userdata", "account_state"} {
		db.Exec("ALTER TABLE viralpilot." + table + " SET (autovacuum_enabled = off)")
	}
	filler := connect(t, url)
	filler.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
		SELECT 'u', CASE n WHEN 20 THEN 'consume' ELSE 'settle' END, 0, 0, 0, 0, timestamptz '2026-01-01' + n * interval '1 second'
		FROM generate_series(1, 50000) n`)
	filler.Exec(`INSERT INTO viralpilot.userdata (cognito_user_id) SELECT gen_random_uuid() FROM generate_series(1, 50000)`)
	filler.Exec(`INSERT INTO viralpilot.account_state (cognito_user_id) SELECT cognito_user_id FROM viralpilot.userdata WHERE cognito_user_id <> 'u'`)
	for _, table := range []string{"ledger", "userdata", "account_state"} {
		filler.Exec("VACUUM ANALYZE viralpilot." + table)
	}
	entries := func(q user.EntryQuery) func() error {
		return func() error { _, _, err := store.Entries(t.Context(), "u", q); return err }
	}
	accounts := func(q user.AccountQuery) func() error {
		return func() error { _, _, err := store.Accounts(t.Context(), q); return err }
	}
	middle := time.Date(2026, 1, 1, 6, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		table string
		ask   func() error
		most  int
	}{
		"consumes":                  {"ledger", entries(user.EntryQuery{Kind: user.KindConsume, Limit: 51}), 100},
		"settles until":             {"ledger", entries(user.EntryQuery{Kind: user.KindSettle, Until: middle, Limit: 51}), 300},
		"a page of all entries":     {"ledger", entries(user.EntryQuery{Limit: 51}), 20},
		"a tier that nobody has":    {"userdata", accounts(user.AccountQuery{Tier: "gold", Limit: 51}), 1200},
		"a page of all accounts":    {"userdata", accounts(user.AccountQuery{Limit: 51}), 100},
		"side rows of a page":       {"account_state", accounts(user.AccountQuery{Limit: 51}), 300},
		"side rows of a tier":       {"account_state", accounts(user.AccountQuery{Tier: "gold", Limit: 51}), 20},
		"side rows of a late page":  {"account_state", accounts(user.AccountQuery{After: "f", Limit: 51}), 300},
		"a late page of a tier":     {"userdata", accounts(user.AccountQuery{Tier: "gold", After: "e", Limit: 51}), 1200},
		"a late page of all of one": {"userdata", accounts(user.AccountQuery{Tier: "free", After: "e", Limit: 51}), 100},
	} {
		n := db.buffersOf(c.table, c.ask)
		t.Logf("%s: %d buffers", name, n)
		if n > c.most || n == 0 {
			t.Errorf("%s: %d buffers, more than %d", name, n, c.most)
		}
	}
}

func TestStoreAccounts_WithoutTrigrams(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	db := connect(t, url)
	// A server that has no such extension to make.
	db.Exec(`CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
			'BEGIN RAISE EXCEPTION USING ERRCODE = ''insufficient_privilege'', MESSAGE = ''permission denied to create extension''; END';
		CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') EXECUTE FUNCTION refuse()`)
	var l log
	store := open(t, url, l.into)
	if !strings.Contains(l.String(), "users are found by how their texts begin") {
		t.Errorf("nothing is said of it:\n%s", l.String())
	}
	create(t, store, "joanna", 0)
	if anywhere, err := store.SearchesAnywhere(t.Context()); anywhere || err != nil {
		t.Errorf("anywhere %t, %v", anywhere, err)
	}
	for text, want := range map[string]int{"joan": 1, "anna": 0} {
		if page, _, err := store.Accounts(t.Context(), user.AccountQuery{Text: text, Limit: 10}); err != nil || len(page) != want {
			t.Errorf("%s: %v, %v", text, page, err)
		}
	}
}

// Texts that few or many have are found at a bounded cost, and the index costs a consume nothing.
func TestStoreAccounts_SearchCostsABoundedSearch(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := looking(open(t, url), 1000), connect(t, url)
	filler := connect(t, url) // what it has looked at is reported when it ends, before the first question
	filler.Exec("ALTER TABLE viralpilot.userdata SET (autovacuum_enabled = off)")
	filler.Exec(`INSERT INTO viralpilot.userdata (cognito_user_id, email) SELECT gen_random_uuid(), 'user' || n || '@example.com' FROM generate_series(1, 50000) n`)
	create(t, store, "needle", 100) // where its page has room
	filler.Exec("VACUUM ANALYZE viralpilot.userdata")
	for text, most := range map[string]int{"eedl": 200, "example": 4500, "nothing like it": 200, "@exam": 4500} {
		n := db.buffersOf("userdata", func() error {
			_, _, err := store.Accounts(t.Context(), user.AccountQuery{Text: text, Limit: 51})
			return err
		})
		t.Logf("%s: %d buffers", text, n)
		if n > most {
			t.Errorf("%s: %d buffers, more than %d", text, n, most)
		}
	}
	hot := func() int64 {
		db.Exec("SELECT pg_stat_clear_snapshot()")
		return localpgtest.Query[int64](db, "SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'userdata' AND schemaname = 'viralpilot'")
	}
	before := hot()
	for range 5 {
		if _, err := store.Update(t.Context(), user.Ref{AccountID: "needle"}, spend("")); err != nil {
			t.Fatal(err)
		}
	}
	store.Close() // with the connection its figures are told
	localpgtest.Await(t, "each consume was a heap-only update", func() bool { return hot()-before >= 5 })
}
