package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/migrations"
)

// readmeTable is the table as the earlier service's README gives it, word for word.
const readmeTable = `
CREATE TABLE viralpilot.userdata (
    cognito_user_id VARCHAR(255) PRIMARY KEY NOT NULL,
    username VARCHAR(255),
    email VARCHAR(255),
    subscription_tier VARCHAR(50) NOT NULL DEFAULT 'free',
    subscription_status VARCHAR(50) NOT NULL DEFAULT 'active',
    subscription_renewal_date TIMESTAMP,
    tokens_remaining INTEGER NOT NULL DEFAULT 0,
    tokens_used_this_month INTEGER NOT NULL DEFAULT 0,
    last_token_reset_date TIMESTAMP,
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    is_active BOOLEAN NOT NULL DEFAULT TRUE
);`

// tenColumns is the table that the earlier service's code made; its schema is for the caller to put in.
const tenColumns = `
CREATE TABLE %s.userdata (
    cognito_user_id VARCHAR(255) NOT NULL,
    subscription_tier VARCHAR(50),
    subscription_status VARCHAR(50),
    subscription_renewal_date TIMESTAMP,
    tokens_remaining INTEGER,
    tokens_used_this_month INTEGER,
    last_token_reset_date TIMESTAMP,
    created_at TIMESTAMP,
    updated_at TIMESTAMP,
    is_active BOOLEAN
);`

// columns describes the columns of viralpilot.userdata in their order, and constraints its keys and checks.
func (d database) columns() []string {
	d.T.Helper()
	return strings.Split(d.lines(`
		SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'NOT NULL' END,
			'DEFAULT ' || pg_get_expr(adbin, adrelid))
		FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		WHERE attrelid = 'viralpilot.userdata'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`), "\n")
}

func (d database) constraints() string {
	d.T.Helper()
	return d.lines(`SELECT pg_get_constraintdef(oid) FROM pg_constraint
		WHERE conrelid = 'viralpilot.userdata'::regclass AND contype <> 'n' ORDER BY 1`)
}

// schema describes everything in the schema viralpilot, and the versions that have been applied.
func (d database) schema() string {
	d.T.Helper()
	return d.lines(`
		SELECT format('%s.%s %s', table_name, column_name, data_type) FROM information_schema.columns WHERE table_schema = 'viralpilot'
		UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'viralpilot'
		UNION ALL SELECT format('%s: %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
			WHERE connamespace = 'viralpilot'::regnamespace
		UNION ALL SELECT format('version %s', version_id) FROM viralpilot.goose_db_version
		ORDER BY 1`)
}

func TestUserdataIsTheTableOfTheEarlierREADME(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	want := connect(t, url)
	want.Exec("CREATE SCHEMA viralpilot;" + readmeTable)
	wantColumns, wantConstraints := want.columns(), want.constraints()
	if len(wantColumns) != 12 {
		t.Fatalf("%d columns: %q", len(wantColumns), wantColumns)
	}
	check := func(t *testing.T, got database) {
		t.Helper()
		if columns := got.columns(); !slices.Equal(columns, wantColumns) {
			t.Errorf("columns:\n%s\nwant\n%s", strings.Join(columns, "\n"), strings.Join(wantColumns, "\n"))
		}
		if constraints := got.constraints(); constraints != wantConstraints {
			t.Errorf("constraints:\n%s\nwant\n%s", constraints, wantConstraints)
		}
	}
	t.Run("where it is made", func(t *testing.T) { check(t, connect(t, localpgtest.New(t))) })
	t.Run("where it was there", func(t *testing.T) {
		open(t, url)
		check(t, connect(t, url))
	})
}

func TestMigrationsAreSQLAndNothingElse(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := migrations.FS.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// A way back would be run on the way forward.
		if strings.Contains(string(text), "+goose") {
			t.Errorf("%s has an annotation of goose, which has no meaning here", name)
		}
	}
}

func TestReplicasThatStartAtOnceMakeOneSchema(t *testing.T) {
	t.Parallel()
	want := connect(t, localpgtest.New(t)).schema()
	url := localpgtest.Empty(t)
	db := connect(t, url)
	db.Exec(fmt.Sprintf(tenColumns, "public"))
	db.Exec("INSERT INTO public.userdata (cognito_user_id) SELECT 'user-' || n FROM generate_series(1, 100) n")

	const replicas = 8
	var logs [replicas]log
	var opened [replicas]<-chan error
	for i := range replicas {
		opened[i] = background(t, func() error {
			o := options(url)
			o.MaxConns = 1
			logs[i].into(&o)
			store, err := postgres.Open(t.Context(), o)
			if err != nil {
				return err
			}
			defer store.Close()
			_, err = service(t, store).Account(t.Context(), "user-100")
			return err
		})
	}
	for i := range replicas {
		if err := <-opened[i]; err != nil {
			t.Errorf("replica %d: %v", i, err)
		}
	}
	if got := db.schema(); got != want {
		t.Errorf("schema:\n%s\nwant\n%s", got, want)
	}
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.userdata"); n != 100 {
		t.Errorf("%d accounts were copied, want 100", n)
	}
	migrated := 0
	for i := range replicas {
		migrated += strings.Count(logs[i].String(), "copied 100 accounts")
	}
	if migrated != 1 {
		t.Errorf("%d replicas copied the rows, want 1", migrated)
	}
}

// Rows as they may stand in the table: those of the earlier service, and some that a hand wrote.
const oldRows = `
INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, subscription_status, subscription_renewal_date,
	tokens_remaining, tokens_used_this_month, last_token_reset_date, created_at, updated_at, is_active)
VALUES
	('no dates', 'tester', 'active', NULL, 7, 993, NULL, '2024-01-02 03:04:05.678901', '2024-02-03 04:05:06', TRUE),
	('old dates', 'tester', 'trialing', '2024-03-01', 400, 600, '1999-12-31 23:59:59.999999', '1999-01-01', '1999-01-01', TRUE),
	('unknown tier', 'gold', 'active', NULL, 50, 5, '2026-11-01', '2026-11-01', '2026-11-01', TRUE),
	('inactive', 'tester', 'active', NULL, 1000, 0, '2026-11-01', '2026-11-01', '2026-11-01', FALSE),
	('canceled', 'tester', 'canceled', NULL, 1000, 0, '2026-11-01', '2026-11-01', '2026-11-01', TRUE),
	('overdrawn', 'tester', 'active', NULL, -3, 1003, '2026-11-01', '2026-11-01', '2026-11-01', TRUE),
	('admin', 'admin', 'active', NULL, 0, 0, NULL, '2026-11-01', '2026-11-01', TRUE)`

func TestAnExistingTableKeepsItsRowsAndServes(t *testing.T) {
	t.Parallel()
	want := connect(t, localpgtest.New(t)).columns()
	slices.Sort(want)
	for name, table := range map[string]string{
		"as in the README": readmeTable,
		"without username and email, keys and defaults": fmt.Sprintf(tenColumns, "viralpilot"),
		"with a column more":                            strings.Replace(readmeTable, "email VARCHAR(255),", "email VARCHAR(255), notes TEXT,", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.Empty(t)
			db := connect(t, url)
			db.Exec("CREATE SCHEMA viralpilot;" + table + oldRows)
			const rows = `SELECT (to_jsonb(u) - 'username' - 'email')::text FROM viralpilot.userdata u ORDER BY cognito_user_id`
			before := db.lines(rows)
			s := service(t, open(t, url))
			if after := db.lines(rows); after != before {
				t.Fatalf("rows before:\n%s\nafter:\n%s", before, after)
			}
			columns := slices.DeleteFunc(db.columns(), func(c string) bool { return c == "notes text" })
			if slices.Sort(columns); !slices.Equal(columns, want) {
				t.Errorf("columns:\n%s\nwant\n%s", strings.Join(columns, "\n"), strings.Join(want, "\n"))
			}
			for id, w := range map[string]struct {
				err             *user.Error // of a consume of one token
				remaining, used int64       // after it
			}{
				"no dates":     {nil, 999, 1}, // a reset was due
				"old dates":    {nil, 999, 1},
				"unknown tier": {nil, 49, 6},
				"inactive":     {user.ErrUserInactive, 1000, 0},
				"canceled":     {user.ErrSubscriptionInactive, 1000, 0},
				"overdrawn":    {user.ErrInsufficientTokens, 0, 1003},
				"admin":        {nil, 0, 0},
			} {
				_, err := s.Do(t.Context(), id, user.Consume{Tokens: 1})
				if w.err == nil && err != nil || w.err != nil && !errors.Is(err, w.err) {
					t.Errorf("%s: consume: %v, want %v", id, err, w.err)
				}
				status, err := s.Status(t.Context(), id)
				if err != nil {
					t.Errorf("%s: status: %v", id, err)
				}
				if a := status.Account; a.TokensRemaining != w.remaining || a.TokensUsed != w.used {
					t.Errorf("%s: %d remaining and %d used, want %d and %d", id, a.TokensRemaining, a.TokensUsed, w.remaining, w.used)
				}
			}
			if a, err := s.Account(t.Context(), "no dates"); err != nil || !a.CreatedAt.Equal(time.Date(2024, 1, 2, 3, 4, 5, 678901000, time.UTC)) {
				t.Errorf("created at %v, %v", a.CreatedAt, err)
			}
		})
	}
}

func TestAnExistingTableWithNULLsGetsTheDefaults(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	db := connect(t, url)
	db.Exec("CREATE SCHEMA viralpilot;" + fmt.Sprintf(tenColumns, "viralpilot") +
		"INSERT INTO viralpilot.userdata (cognito_user_id, tokens_remaining) VALUES ('null', 7)")
	a, err := service(t, open(t, url)).Account(t.Context(), "null")
	if err != nil {
		t.Fatal(err)
	}
	if a.Tier != user.TierFree || a.SubscriptionStatus != user.StatusActive || !a.Active || a.TokensRemaining != 7 || a.TokensUsed != 0 {
		t.Errorf("account: %+v", a)
	}
	if age := time.Since(a.CreatedAt); age < -time.Minute || age > time.Minute {
		t.Errorf("created %s ago", age)
	}
}

func TestRowsOfPublicUserdata(t *testing.T) {
	t.Parallel()
	const rows = `INSERT INTO public.userdata (cognito_user_id, subscription_tier, subscription_status, subscription_renewal_date,
			tokens_remaining, tokens_used_this_month, last_token_reset_date, created_at, updated_at, is_active)
		VALUES ('full', 'tester', 'canceled', '2026-12-01', 400, 600, '2026-11-01', '2025-01-01', '2025-02-02', FALSE);
		INSERT INTO public.userdata (cognito_user_id) VALUES ('null'), ('null too');`
	const full = `(full,,,tester,canceled,"2026-12-01 00:00:00",400,600,"2026-11-01 00:00:00","2025-01-01 00:00:00","2025-02-02 00:00:00",f)`
	ten := fmt.Sprintf(tenColumns, "public")
	for name, test := range map[string]struct {
		setUp  string
		off    bool
		copied int
		full   string // the copy of the row with that id
	}{
		"are copied": {setUp: ten + rows, copied: 3, full: full},
		"are copied with username and email where those were added": {
			setUp: ten + "ALTER TABLE public.userdata ADD email TEXT, ADD username TEXT;" + rows +
				"UPDATE public.userdata SET username = 'name', email = 'a@example.com' WHERE cognito_user_id = 'full'",
			copied: 3, full: strings.Replace(full, ",,,", ",name,a@example.com,", 1),
		},
		"are copied when there are none":                 {setUp: ten, copied: 0},
		"are left alone when that is off":                {setUp: ten + rows, off: true, copied: -1},
		"are left alone when viralpilot.userdata exists": {setUp: ten + rows + "CREATE SCHEMA viralpilot;" + readmeTable, copied: -1},
		"are left alone when a column is missing":        {setUp: ten + rows + "ALTER TABLE public.userdata DROP tokens_used_this_month", copied: -1},
		"of another program are left alone":              {setUp: "CREATE TABLE public.userdata (id INT); INSERT INTO public.userdata VALUES (1);", copied: -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.Empty(t)
			db := connect(t, url)
			db.Exec(test.setUp)
			const old = "SELECT u::text FROM public.userdata u ORDER BY 1"
			before := db.lines(old)
			var l log
			for range 2 { // the second start finds its table and copies nothing
				store := open(t, url, l.into, func(o *postgres.Options) { o.ImportPublicUserdata = !test.off })
				store.Close()
			}
			if after := db.lines(old); after != before {
				t.Errorf("the old table before:\n%s\nafter:\n%s", before, after)
			}
			if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.userdata"); n != max(test.copied, 0) {
				t.Errorf("%d rows were copied, want %d", n, test.copied)
			}
			line, wantLines := "copied", 0
			if test.copied >= 0 {
				line, wantLines = fmt.Sprintf("copied %d accounts from public.userdata", test.copied), 1
			}
			if n := strings.Count(l.String(), line); n != wantLines {
				t.Errorf("%d lines say %q, want %d:\n%s", n, line, wantLines, l.String())
			}
			if test.copied > 0 {
				if row := localpgtest.Query[string](db, "SELECT u::text FROM viralpilot.userdata u WHERE cognito_user_id = 'full'"); row != test.full {
					t.Errorf("row %s, want %s", row, test.full)
				}
				defaults := localpgtest.Query[string](db, `SELECT concat_ws(' ', subscription_tier, subscription_status, tokens_remaining,
					tokens_used_this_month, is_active, last_token_reset_date, created_at > now() AT TIME ZONE 'UTC' - interval '1 minute')
					FROM viralpilot.userdata WHERE cognito_user_id = 'null'`)
				if defaults != "free active 0 0 t t" {
					t.Errorf("in place of NULLs: %s", defaults)
				}
			}
		})
	}
}

func TestARestartDoesNotBringBackARemovedRow(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	db := connect(t, url)
	db.Exec(fmt.Sprintf(tenColumns, "public") + "INSERT INTO public.userdata (cognito_user_id) VALUES ('gone'), ('kept')")
	open(t, url)
	db.Exec("DELETE FROM viralpilot.userdata WHERE cognito_user_id = 'gone'")
	open(t, url)
	if ids := db.lines("SELECT cognito_user_id FROM viralpilot.userdata"); ids != "kept" {
		t.Errorf("accounts: %s", ids)
	}
}

// login makes a role of its own for the test and returns the URL with it; each %s in grants becomes its name.
func login(t *testing.T, db database, dsn, grants string) string {
	t.Helper()
	role := localpgtest.Query[string](db, "SELECT 'role_of_' || current_database()")
	db.Exec(strings.ReplaceAll("CREATE ROLE %s LOGIN PASSWORD 'role-secret';"+grants, "%s", role))
	t.Cleanup(func() {
		if _, err := db.Conn.Exec(context.Background(), strings.ReplaceAll("DROP OWNED BY %s; DROP ROLE %s", "%s", role)); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "role-secret")
	return u.String()
}

func TestARoleThatOwnsNothing(t *testing.T) {
	t.Parallel()
	t.Run("serves on an existing schema", func(t *testing.T) {
		t.Parallel()
		dsn := localpgtest.New(t)
		db := connect(t, dsn)
		store := open(t, login(t, db, dsn, `GRANT USAGE ON SCHEMA viralpilot TO %s;
			GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA viralpilot TO %s`))
		create(t, store, "u", 5)
		if _, err := service(t, store).Do(t.Context(), "u", user.Consume{Tokens: 5}); err != nil {
			t.Error(err)
		}
	})
	t.Run("makes the schema with no more than CREATE on the database", func(t *testing.T) {
		t.Parallel()
		dsn := localpgtest.Empty(t)
		db := connect(t, dsn)
		create(t, open(t, login(t, db, dsn, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %%s",
			localpgtest.Query[string](db, "SELECT quote_ident(current_database())")))), "u", 5)
	})
	t.Run("is told in one line when the schema is missing", func(t *testing.T) {
		t.Parallel()
		dsn := localpgtest.Empty(t)
		_, err := postgres.Open(t.Context(), options(login(t, connect(t, dsn), dsn, "")))
		wantLine(t, err, "create schema viralpilot", "permission denied")
	})
}

// wantLine fails the test unless err is one line with all the parts and without a password of these tests.
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

func TestANewerSchemaStillServes(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	db.Exec(`INSERT INTO viralpilot.goose_db_version (version_id, is_applied) VALUES (9999, true);
		ALTER TABLE viralpilot.userdata ADD nickname TEXT;
		ALTER TABLE viralpilot.ledger ADD reason TEXT NOT NULL DEFAULT 'none'`)
	before := db.schema()
	store := open(t, url)
	create(t, store, "u", 5)
	if _, err := service(t, store).Do(t.Context(), "u", user.Consume{Tokens: 5}); err != nil {
		t.Error(err)
	}
	if after := db.schema(); after != before {
		t.Errorf("schema before:\n%s\nafter:\n%s", before, after)
	}
}

func TestAnotherUserOfGooseIsLeftAlone(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	db := connect(t, url)
	db.Exec(`CREATE TABLE public.goose_db_version (id INT PRIMARY KEY, version_id BIGINT NOT NULL, is_applied BOOLEAN NOT NULL, tstamp TIMESTAMP);
		INSERT INTO public.goose_db_version VALUES (1, 0, true), (2, 1, true), (3, 2, true), (4, 17, true)`)
	const rows = "SELECT v::text FROM public.goose_db_version v ORDER BY 1"
	before := db.lines(rows)
	create(t, open(t, url), "u", 5) // so its versions 1 and 2 are not taken for ours
	if after := db.lines(rows); after != before {
		t.Errorf("versions before:\n%s\nafter:\n%s", before, after)
	}
}

func TestAMigrationThatFailsLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ setUp, says, repair string }{
		"of an existing table": {
			setUp: "CREATE SCHEMA viralpilot;" + fmt.Sprintf(tenColumns, "viralpilot") +
				"INSERT INTO viralpilot.userdata (cognito_user_id) VALUES ('twice'), ('twice')",
			says:   "could not create unique index",
			repair: "DELETE FROM viralpilot.userdata WHERE ctid = (SELECT min(ctid) FROM viralpilot.userdata)",
		},
		"of the earlier service's rows": {
			setUp: fmt.Sprintf(tenColumns, "public") +
				"INSERT INTO public.userdata (cognito_user_id) VALUES ('once'), ('twice'), ('twice')",
			says:   "duplicate key",
			repair: "DELETE FROM public.userdata WHERE ctid = (SELECT min(ctid) FROM public.userdata WHERE cognito_user_id = 'twice')",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.Empty(t)
			db := connect(t, url)
			db.Exec(test.setUp)
			const everything = `SELECT format('%s.%s.%s %s', table_schema, table_name, column_name, is_nullable) FROM information_schema.columns
				WHERE table_name <> 'goose_db_version' AND table_schema IN ('public', 'viralpilot') ORDER BY 1`
			before := db.lines(everything)
			for range 2 {
				_, err := postgres.Open(t.Context(), options(url))
				wantLine(t, err, "migrate", test.says)
				if after := db.lines(everything); after != before {
					t.Fatalf("before:\n%s\nafter:\n%s", before, after)
				}
			}
			db.Exec(test.repair)
			create(t, open(t, url), "u", 5)
		})
	}
}

func TestInstantsAreStoredInUTCWhateverTheServersTimeZone(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	db := connect(t, url)
	db.Exec(fmt.Sprintf("ALTER DATABASE %s SET timezone = 'Asia/Tokyo'", localpgtest.Query[string](db, "SELECT quote_ident(current_database())")))
	db.Exec(fmt.Sprintf(tenColumns, "public") + "INSERT INTO public.userdata (cognito_user_id) VALUES ('copied')")
	store := open(t, url)
	var copied time.Time
	if copied = localpgtest.Query[time.Time](db, "SELECT created_at FROM viralpilot.userdata WHERE cognito_user_id = 'copied'"); time.Since(copied).Abs() > time.Minute {
		t.Errorf("a row was copied at %s, and it is %s", copied, time.Now().UTC())
	}
	db.Exec(`CREATE TABLE zones (zone TEXT);
		CREATE FUNCTION note_zone() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN INSERT INTO public.zones VALUES (current_setting(''TimeZone'')); RETURN NULL; END';
		CREATE TRIGGER note_zone AFTER INSERT ON viralpilot.ledger FOR EACH ROW EXECUTE FUNCTION note_zone()`)
	create(t, store, "u", 5)
	if zones := db.lines("SELECT DISTINCT zone FROM zones"); zones != "UTC" {
		t.Errorf("time zone of the session: %s", zones)
	}
	if stored := localpgtest.Query[string](db, "SELECT created_at::text FROM viralpilot.userdata WHERE cognito_user_id = 'u'"); stored != "2026-11-24 10:00:00.123456" {
		t.Errorf("stored: %s", stored)
	}
	a, err := store.Account(t.Context(), "u")
	if err != nil || !a.CreatedAt.Equal(now) || a.CreatedAt.Location() != time.UTC {
		t.Errorf("read: %v, %v", a.CreatedAt, err)
	}
	entries, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 1})
	if err != nil || len(entries) != 1 || !entries[0].CreatedAt.Equal(now) || entries[0].CreatedAt.Location() != time.UTC {
		t.Errorf("entries: %+v, %v", entries, err)
	}
}

func TestOpen_ServerOfStricterIsolation(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.Empty(t)
			db := connect(t, url)
			db.Exec(fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = '%s'", localpgtest.Query[string](db, "SELECT quote_ident(current_database())"), level))
			store := open(t, url) // where an index that is built concurrently would wait for the snapshot of the migration's own lock
			db.Exec(`CREATE TABLE levels (level TEXT);
				CREATE FUNCTION note_level() RETURNS trigger LANGUAGE plpgsql AS
					'BEGIN INSERT INTO public.levels VALUES (current_setting(''transaction_isolation'')); RETURN NULL; END';
				CREATE TRIGGER note_level AFTER INSERT ON viralpilot.account_state FOR EACH ROW EXECUTE FUNCTION note_level();
				CREATE TRIGGER note_level AFTER INSERT ON viralpilot.ledger FOR EACH ROW EXECUTE FUNCTION note_level()`)
			create(t, store, "u", 5)
			if got := db.lines("SELECT level FROM levels"); got != "read committed\nread committed" {
				t.Errorf("levels %q", got)
			}
		})
	}
}

// unmigrate brings the tables back to what they were before migration 4, and the versions to before the given one.
func (d database) unmigrate(version int) {
	d.T.Helper()
	d.Exec(`ALTER TABLE viralpilot.account_state DROP top_ups_used, DROP allowance, DROP allowance_excess, DROP carried_top_ups,
			DROP granted_period, DROP open_reservations, DROP moving_to, DROP erased;
		ALTER TABLE viralpilot.ledger DROP tokens_refunded, DROP top_ups_amount, DROP period, DROP changes;
		ALTER TABLE viralpilot.reservations DROP period, DROP late, DROP metadata;
		DROP TRIGGER refuse_earlier_version ON viralpilot.reservations;
		DROP FUNCTION viralpilot.refuse_earlier_version, viralpilot.refuse_earlier_update;
		DROP TABLE viralpilot.settings`)
	d.Exec("DELETE FROM viralpilot.goose_db_version WHERE version_id >= $1", version)
}

// openInBackground opens a store in the background and closes it again.
func openInBackground(t *testing.T, url string, l *log) <-chan error {
	return background(t, func() error {
		o := options(url)
		l.into(&o)
		store, err := postgres.Open(t.Context(), o)
		if err == nil {
			store.Close()
		}
		return err
	})
}

// migrating opens a store in the background, whose migration of a database before migration 4 waits for a transaction that
// end ends.
func migrating(t *testing.T, db database, url string, l *log, settings ...string) (opened <-chan error, end func()) {
	t.Helper()
	other := connect(t, url)
	db.unmigrate(4)
	other.Exec(strings.Join(settings, ";"))
	other.Exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")
	opened = openInBackground(t, url, l)
	db.awaitLockWaiters(1)
	return opened, func() { other.Exec("COMMIT") }
}

// Building the indexes may take long, and no replica of this version listens before the end.
func TestOpen_EarlierVersionWritesWhileIndexesAreBuilt(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	db.Exec("INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, tokens_remaining, last_token_reset_date) VALUES ('u', 'tester', 1000, '2026-11-01')")
	db.Exec("INSERT INTO viralpilot.account_state (cognito_user_id) VALUES ('u')")
	var l log
	opened, end := migrating(t, db, url, &l)
	opening := earlierEntry("u", 1000)
	opening[1], opening[2], opening[4], opening[5] = []string{"opening"}, []int{1000}, []int{0}, []int{0}
	db.Exec(earlierInsertEntries, opening...)
	db.Exec(earlierUpdateCounters, []string{"u"}, []int{999}, []int{1}, []time.Time{now})
	db.Exec(earlierInsertEntries, earlierEntry("u", 999)...)
	db.Exec(earlierUpdateCounters, []string{"u"}, []int{998}, []int{1}, []time.Time{now})
	db.Exec("UPDATE viralpilot.account_state SET tokens_reserved = 1, next_hold_expiry = $1", now.Add(time.Hour))
	db.Exec(earlierInsertReservations, earlierReservation("u", "open")...)
	reserved := earlierEntry("u", 998)
	reserved[1], reserved[5], reserved[6] = []string{"reserve"}, []int{0}, []string{hold1}
	db.Exec(earlierInsertEntries, reserved...)
	end()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if strings.Contains(l.String(), "does not exist") {
		t.Errorf("what is not there is told of:\n%s", l.String())
	}
	if _, err := db.Conn.Exec(t.Context(), earlierInsertEntries, earlierEntry("u", 997)...); err == nil {
		t.Error("the earlier version writes on")
	}
	s := service(t, open(t, url))
	wantVerified(t, s)
	do(t, s, "u", user.Settle{ReservationID: hold1, TokensUsed: 1})
	wantVerified(t, s)
	if got := db.counters("u"); got != "R 998 U 2 T 0 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323" {
		t.Error(got)
	}
}

// manual returns the SQL in the operator's manual that begins after a text.
func manual(t *testing.T, after string) string {
	t.Helper()
	text, err := os.ReadFile("../../cmd/user-management/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), after)
	_, rest, block := strings.Cut(rest, "```sql\n")
	sql, _, end := strings.Cut(rest, "```")
	if !found || !block || !end {
		t.Fatalf("the manual has no SQL after %q", after)
	}
	return sql
}

func TestOpen_RolledBackByTheManualAndForwardAgain(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	fold, s, store := foldOf(t, url)
	create(t, store, "u", 100)
	do(t, s, "u", user.Consume{Tokens: 1, Meta: notes("feature", "captions")})
	folded(t, fold, db)
	schema := db.schema()
	for range 2 {
		db.Exec(manual(t, "until `rollback.sql` lets it write"))
		db.Exec(earlierInsertEntries, earlierEntry("u", 98)...)
		again := open(t, url)
		if got := db.schema(); got != schema {
			t.Errorf("the schema is\n%s\nand was\n%s", got, schema)
		}
		if _, err := db.Conn.Exec(t.Context(), earlierInsertEntries, earlierEntry("u", 97)...); err == nil {
			t.Error("the earlier version writes on")
		}
		if _, err := again.Account(t.Context(), "u"); err != nil {
			t.Error(err)
		}
	}
	wantUsage(t, s, db, "u")
	folded(t, fold, db)
	wantUsage(t, s, db, "u")
}

func TestOpen_MigrationHasNoTimeouts(t *testing.T) {
	t.Parallel()
	url := localpgtest.Direct(localpgtest.New(t)) // a pooler keeps no setting of ours
	db := connect(t, url)
	database := localpgtest.Query[string](db, "SELECT quote_ident(current_database())")
	for _, name := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"} {
		db.Exec(fmt.Sprintf("ALTER DATABASE %s SET %s = '500ms'", database, name))
	}
	var l log
	opened, end := migrating(t, db, url, &l, "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
	localpgtest.Await(t, "the index and the lock have outlasted the time-outs", func() bool {
		return db.lines(`SELECT count(DISTINCT state)::text FROM pg_stat_activity WHERE datname = current_database()
			AND application_name = 'user-management' AND state IN ('active', 'idle in transaction')
			AND clock_timestamp() - greatest(query_start, state_change) > '700ms'`) == "2"
	})
	end()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// Its replica must not go on: the one that has the lock now works on the same indexes.
func TestOpen_MigrationLockIsLost(t *testing.T) {
	t.Parallel()
	url := localpgtest.Direct(localpgtest.New(t))
	db := connect(t, url)
	var l log
	opened, end := migrating(t, db, url, &l)
	if n := db.lines(`SELECT count(pg_terminate_backend(pid))::text FROM pg_locks JOIN pg_database d ON d.oid = database
		WHERE datname = current_database() AND locktype = 'advisory'`); n != "1" {
		t.Fatalf("%s locks", n)
	}
	end()
	wantLine(t, <-opened, "the migration lock is lost")
	open(t, url)
	if got, want := db.schema(), connect(t, localpgtest.New(t)).schema(); got != want {
		t.Errorf("schema:\n%s\nwant\n%s", got, want)
	}
}

func TestOpen_MigrationMeetsAnother(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	proxy := localpgtest.NewProxy(t, url)
	// As PostgreSQL refuses it where two sessions drop an index at once.
	plan := proxy.At(localpgtest.Answer("CREATE INDEX CONCURRENTLY reservations_status ON viralpilot.reservations (cognito_user_id, status, expires_at, reservation_id)"),
		localpgtest.Refuse("XX000", "simple_heap_update"), 1)
	open(t, proxy.URL())
	if plan.Left() != 0 {
		t.Error("it met none")
	}
	if got, want := connect(t, url).schema(), connect(t, localpgtest.New(t)).schema(); got != want {
		t.Errorf("schema:\n%s\nwant\n%s", got, want)
	}
}

// Somebody works on a table that a migration wants for itself, and does not end: the migration waits, and gives way to
// those who came after it.
func TestOpen_MigrationHoldsUpNobody(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db, other, worker := connect(t, url), connect(t, url), connect(t, url)
	create(t, open(t, url), "u", 5)
	db.Exec("DROP INDEX viralpilot.userdata_id_prefix, viralpilot.userdata_username_prefix, viralpilot.userdata_email_prefix")
	db.unmigrate(3)
	other.Exec("BEGIN; LOCK TABLE viralpilot.userdata IN ROW EXCLUSIVE MODE")
	var l log
	opened := openInBackground(t, url, &l)
	worker.Exec("SET lock_timeout = '1s'")
	localpgtest.Await(t, "the migration has waited three times in vain", func() bool {
		worker.Exec("UPDATE viralpilot.userdata SET updated_at = updated_at")
		return strings.Count(l.String(), "a migration waits for a table") >= 3
	})
	select {
	case err := <-opened:
		t.Fatalf("the migration ended while the table was locked: %v", err)
	default:
	}
	other.Exec("COMMIT")
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if got, want := db.schema(), connect(t, localpgtest.New(t)).schema(); got != want {
		t.Errorf("schema:\n%s\nwant\n%s", got, want)
	}
}
