// Package localpgtest gives tests real PostgreSQL databases: each test its own,
// cloned from one that was migrated once. Only tests import it.
package localpgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/viralpilot/user-management/internal/localpg"
)

// timeout bounds each single step: a start, a migration, a clone.
const timeout = time.Minute

// databases is what the tests of one package share: a server, or the one that
// TEST_DATABASE_URL names, and on it the template.
type databases struct {
	migrate func(ctx context.Context, url string) error

	once     sync.Once
	startErr error

	server  *localpg.Server    // nil with TEST_DATABASE_URL
	bouncer *localpg.PgBouncer // nil without TEST_PGBOUNCER
	dir     string             // of server
	admin   string             // URL of the database from which others are created
	prefix  string             // of all names, so that runs on one server do not meet

	mu       sync.Mutex // one CREATE DATABASE at a time: a template must not be in use
	created  int
	template bool
}

// shared is set by Main for the time the tests run.
var shared *databases

// Main runs the tests of a package, to be used as
//
//	func TestMain(m *testing.M) { os.Exit(localpgtest.Main(m, migrate)) }
//
// The first test that asks for a database starts a server for the package in a
// temporary folder; where TEST_DATABASE_URL is set, databases are created on
// that server instead, and where TEST_PGBOUNCER is set, tests reach the server of
// the package by way of a PgBouncer in transaction pooling. migrate is called once and prepares the template that
// New clones; nil leaves the template empty. When the tests have ended,
// everything is stopped and removed, and goroutines that are still running then
// fail the package.
func Main(m *testing.M, migrate func(ctx context.Context, url string) error) int {
	shared = &databases{migrate: migrate}
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "localpgtest:", err)
		code = max(code, 1)
	}
	if code != 0 {
		return code // a failed test may well leave goroutines behind
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "localpgtest:", err)
		return 1
	}
	return 0
}

// New returns the URL of a fresh migrated database, which is dropped when the
// test has ended, along with the connections it still has.
func New(t testing.TB) string {
	t.Helper()
	return fresh(t, true)
}

// Empty is like New, but nothing was migrated.
func Empty(t testing.TB) string {
	t.Helper()
	return fresh(t, false)
}

// Direct returns the URL of the same database past the PgBouncer, for what a
// test does in one session; without TEST_PGBOUNCER it is the same URL.
func Direct(dsn string) string {
	if shared.bouncer == nil {
		return dsn
	}
	u, err := url.Parse(dsn)
	if err != nil || u.Host != shared.bouncer.Address() {
		return dsn // not by way of it
	}
	return withDatabase(shared.admin, strings.TrimPrefix(u.Path, "/"))
}

// Server starts a server of the test's own, which the test may stop and start
// again. It is durable and, when the test has ended, stopped and removed.
func Server(t testing.TB) *localpg.Server {
	t.Helper()
	// Not t.TempDir: only root could pass through its parent.
	dir, err := os.MkdirTemp("", "localpgtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	server, err := localpg.New(localpg.Options{Dir: dir, Durable: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

func fresh(t testing.TB, migrated bool) string {
	t.Helper()
	if shared == nil {
		t.Fatal("TestMain has to call localpgtest.Main")
	}
	name, err := shared.create(migrated)
	if err != nil {
		t.Fatalf("creating a database: %v", err)
	}
	t.Cleanup(func() {
		if err := shared.drop(name); err != nil {
			t.Errorf("dropping the database: %v", err)
		}
	})
	if shared.bouncer != nil {
		return shared.bouncer.URL(name)
	}
	return withDatabase(shared.admin, name)
}

// start makes sure of a server.
func (d *databases) start() error {
	d.once.Do(func() {
		d.prefix = "test_" + strings.ToLower(rand.Text()[:10]) + "_"
		d.admin = os.Getenv("TEST_DATABASE_URL")
		switch {
		case d.admin == "":
			d.startErr = d.startServer()
		case os.Getenv("TEST_PGBOUNCER") != "":
			d.startErr = errors.New("TEST_PGBOUNCER is for servers of our own, and TEST_DATABASE_URL is set")
		}
	})
	return d.startErr
}

func (d *databases) startServer() (err error) {
	if d.dir, err = os.MkdirTemp("", "localpgtest-"); err != nil {
		return err
	}
	server, err := localpg.New(localpg.Options{Dir: d.dir})
	if err != nil {
		return err
	}
	if err := server.Start(context.Background()); err != nil {
		return err
	}
	d.server, d.admin = server, server.URL("postgres")
	if os.Getenv("TEST_PGBOUNCER") != "" {
		d.bouncer, err = server.StartPgBouncer(context.Background())
	}
	return err
}

// create makes a database and returns its name.
func (d *databases) create(migrated bool) (string, error) {
	if err := d.start(); err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	template := "template0"
	if migrated {
		if err := d.ensureTemplate(); err != nil {
			return "", err
		}
		template = d.templateName()
	}
	d.created++
	name := fmt.Sprintf("%s%d", d.prefix, d.created)
	return name, d.exec("CREATE DATABASE " + quote(name) + " TEMPLATE " + quote(template))
}

func (d *databases) templateName() string { return d.prefix + "template" }

// ensureTemplate makes the template database unless it is there. When migrate
// fails, the next test begins anew and fails with the same message.
func (d *databases) ensureTemplate() error {
	if d.template {
		return nil
	}
	name := d.templateName()
	if err := d.exec("CREATE DATABASE " + quote(name) + " TEMPLATE template0"); err != nil {
		return err
	}
	if d.migrate != nil {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		if err := d.migrate(ctx, withDatabase(d.admin, name)); err != nil {
			return errors.Join(fmt.Errorf("migrating the template: %w", err), d.drop(name))
		}
	}
	d.template = true
	return nil
}

func (d *databases) drop(name string) error {
	return d.exec("DROP DATABASE " + quote(name) + " WITH (FORCE)")
}

// exec runs one statement in the admin database, on a connection of its own.
func (d *databases) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// close removes what is left: of a server of our own everything.
func (d *databases) close() (err error) {
	if d.bouncer != nil {
		err = d.bouncer.Stop()
	}
	switch {
	case d.server != nil:
		err = errors.Join(err, d.server.Stop())
	case d.template:
		err = d.drop(d.templateName())
	}
	if d.dir != "" {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	return err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// withDatabase returns the connection string with another database. It may be a
// URL or keywords with values, of which the last one counts.
func withDatabase(dsn, name string) string {
	u, err := url.Parse(dsn)
	if err != nil || !strings.HasPrefix(u.Scheme, "postgres") {
		return dsn + " dbname=" + name
	}
	u.Path = "/" + name
	return u.String()
}
