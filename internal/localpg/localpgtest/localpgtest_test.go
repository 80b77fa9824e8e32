package localpgtest_test

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// leak makes TestNew leave a goroutine behind.
const leak = "LOCALPGTEST_LEAK"

func TestMain(m *testing.M) {
	os.Exit(localpgtest.Main(m, func(ctx context.Context, url string) error {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, "CREATE TABLE migrated AS SELECT 1 AS n")
		return err
	}))
}

func TestNew(t *testing.T) {
	t.Parallel()
	for range 3 {
		t.Run("is migrated and the test's own", func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			if n := query[int](t, url, "UPDATE migrated SET n = n + 1 RETURNING n"); n != 2 {
				t.Errorf("another test's row: %d", n)
			}
		})
	}
	if os.Getenv(leak) != "" {
		go func() { select {} }()
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	url := localpgtest.Empty(t)
	if n := query[int](t, url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"); n != 0 {
		t.Errorf("an empty database has %d tables", n)
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t)
	for range 2 {
		if fsync := query[string](t, server.URL("postgres"), "SHOW fsync"); fsync != "on" {
			t.Errorf("fsync is %s", fsync)
		}
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// A second run of this binary is given the server of the first.
func TestMainOnAServerFromOutside(t *testing.T) {
	url := localpgtest.Empty(t)
	const list = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database"
	before := query[string](t, url, list)
	for _, test := range []struct {
		name   string
		env    string
		passes bool
	}{
		{"passes", "", true},
		{"fails when a goroutine is left", leak + "=1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			run := exec.Command(os.Args[0], "-test.run=^(TestNew|TestEmpty)$")
			run.Env = append(os.Environ(), "TEST_DATABASE_URL="+url, test.env)
			if out, err := run.CombinedOutput(); (err == nil) != test.passes {
				t.Errorf("%v\n%s", err, out)
			}
			if after := query[string](t, url, list); after != before {
				t.Errorf("databases before: %s, after: %s", before, after)
			}
		})
	}
}

func query[T any](t *testing.T, url, sql string) (result T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), sql).Scan(&result); err != nil {
		t.Fatal(err)
	}
	return result
}
