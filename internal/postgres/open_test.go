package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestOpenWaitsForADatabaseThatStartsLater(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	var l log
	opened := background(t, func() error {
		o := options(server.URL("postgres"))
		l.into(&o)
		store, err := postgres.Open(t.Context(), o)
		if err == nil {
			store.Close()
		}
		return err
	})
	localpgtest.Await(t, "the log says what is waited for", func() bool { return strings.Contains(l.String(), "waiting for the database") })
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
	if n := strings.Count(l.String(), "waiting for the database"); n != 1 {
		t.Errorf("%d lines say that it waits:\n%s", n, l.String())
	}

	t.Run("refused login", func(t *testing.T) { // here, since this server asks for a password
		u, err := url.Parse(server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		address := u.Host
		for name, login := range map[string]*url.Userinfo{
			"wrong password": url.UserPassword("postgres", "secret"),
			"unknown user":   url.UserPassword("nobody", "secret"),
		} {
			t.Run(name, func(t *testing.T) {
				u.User = login
				err := openAtOnce(t, u.String())
				wantLine(t, err, address, "refused the login", login.Username(), "DATABASE_URL")
			})
		}
	})
}

func TestOpenGivesUpAtOnceWhereWaitingCannotHelp(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	db := connect(t, dsn)
	t.Run("missing database", func(t *testing.T) {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		u.User, u.Path = url.UserPassword(u.User.Username(), password(u)), "/not_there"
		err = openAtOnce(t, u.String())
		wantLine(t, err, u.Host, `"not_there"`, "does not exist", "DATABASE_URL")
		if p := password(u); p != "" && strings.Contains(err.Error(), p) {
			t.Error("the line has the password")
		}
	})
	t.Run("no right to connect", func(t *testing.T) {
		closed := login(t, db, dsn, "")
		db.Exec(fmt.Sprintf("REVOKE CONNECT ON DATABASE %s FROM PUBLIC", localpgtest.Query[string](db, "SELECT quote_ident(current_database())")))
		err := openAtOnce(t, closed)
		wantLine(t, err, "may not connect to the database", "DATABASE_URL")
	})
	t.Run("encoding that cannot hold every id", func(t *testing.T) {
		name := "latin_" + localpgtest.Query[string](db, "SELECT current_database()")
		db.Exec(fmt.Sprintf("CREATE DATABASE %q ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", name))
		defer db.Exec(fmt.Sprintf("DROP DATABASE %q WITH (FORCE)", name))
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		u.Path = "/" + name
		err = openAtOnce(t, u.String())
		wantLine(t, err, u.Host, name, "LATIN1", "UTF8", "DATABASE_URL")
	})
	t.Run("not a URL", func(t *testing.T) {
		err := openAtOnce(t, "postgresql://u:secret@h:port/d")
		wantLine(t, err, "DATABASE_URL")
	})
}

// openAtOnce opens a store that would wait for an hour if it waited at all, and returns the error.
func openAtOnce(t *testing.T, url string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o := options(url)
	o.ConnectTimeout = time.Hour
	store, err := postgres.Open(ctx, o)
	if err == nil {
		store.Close()
	}
	return err
}

func password(u *url.URL) string {
	p, _ := u.User.Password()
	return p
}

func TestOpenGivesUpAfterTheConnectTimeout(t *testing.T) {
	t.Parallel()
	// The first never accepts a connection, the second accepts and then says nothing.
	closed, silent := listen(t), listen(t)
	closed.Close()
	for name, test := range map[string]struct{ address, says string }{
		"nothing listens":        {closed.Addr().String(), "connection refused"},
		"what listens is silent": {silent.Addr().String(), "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options("postgresql://user:secret@" + test.address + "/db?sslmode=disable")
			o.ConnectTimeout = 2 * time.Second
			begin := time.Now()
			_, err := postgres.Open(t.Context(), o)
			wantLine(t, err, test.address, "2s", test.says, "DATABASE_URL")
			if took := time.Since(begin); took > patience/2 {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestOpenFindsTheHostThatAnswers(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	// More hosts that accept and say nothing than one attempt has patience for at once.
	silent := listen(t).Addr().String()
	u.Host = silent + "," + silent + "," + u.Host
	u.RawQuery += "&connect_timeout=3&target_session_attrs=read-write"
	if err := open(t, u.String()).Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	t.Parallel()
	nobody := listen(t)
	nobody.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := options("postgresql://user:secret@" + nobody.Addr().String() + "/db")
	o.ConnectTimeout = time.Hour
	var l log
	l.into(&o)
	opened := background(t, func() error {
		_, err := postgres.Open(ctx, o)
		return err
	})
	localpgtest.Await(t, "it waits", func() bool { return strings.Contains(l.String(), "waiting") })
	cancel()
	if err := <-opened; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if strings.Contains(l.String(), "secret") {
		t.Errorf("the log has the password: %s", l.String())
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	t.Run("is nil when the database answers", func(t *testing.T) {
		t.Parallel()
		if err := open(t, localpgtest.New(t)).Ping(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("is nil again as soon as the database answers again", func(t *testing.T) {
		t.Parallel()
		proxy := localpgtest.NewProxy(t, localpgtest.New(t))
		store := open(t, proxy.URL())
		if err := store.Ping(t.Context()); err != nil { // on a busy machine the connection takes longer than the wait below
			t.Fatal(err)
		}
		silent := proxy.At(localpgtest.Before("-- ping"), localpgtest.Mute, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		wantError(t, store.Ping(ctx), user.ErrDatabaseUnavailable)
		if silent.Left() != 0 { // or the next one would wait without an end
			t.Fatal("it did not fall silent")
		}
		begin := time.Now()
		if err := store.Ping(t.Context()); err != nil || time.Since(begin) > 5*time.Second {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		proxy.CutAll()
	})
	t.Run("says that the database is gone", func(t *testing.T) {
		t.Parallel()
		dsn := localpgtest.New(t)
		store, db := open(t, dsn), connect(t, localpgtest.Empty(t))
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(u.Path, "/")
		db.Exec(fmt.Sprintf("ALTER DATABASE %q ALLOW_CONNECTIONS false", name))
		db.Exec("SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = $1", name)
		_, err = store.Account(t.Context(), "u") // may still meet a connection that was open
		wantError(t, err, user.ErrDatabaseUnavailable)
		wantError(t, store.Ping(t.Context()), user.ErrDatabaseUnavailable)
		_, err = store.Account(t.Context(), "u")
		wantError(t, err, user.ErrDatabaseUnavailable)
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Of a server that ends its sessions, or takes no more writes, no connection is good any more.
func TestStore_FailOver(t *testing.T) {
	t.Parallel()
	const conns = 8
	warm := func(t *testing.T, url string) *postgres.Store {
		store := open(t, url, func(o *postgres.Options) { o.MaxConns, o.MinConns = conns, conns })
		localpgtest.Await(t, "all connections are there", func() bool { return store.Stat().IdleConns() == conns })
		return store
	}
	each := func(t *testing.T, store *postgres.Store) {
		t.Helper()
		if _, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("")); err != nil {
			t.Errorf("a change: %v", err)
		}
		if _, err := store.Account(t.Context(), "u"); err != nil {
			t.Errorf("an account: %v", err)
		}
		if _, err := service(t, store).Create(t.Context(), user.NewAccount{ID: "new"}); err != nil {
			t.Errorf("a new account: %v", err)
		}
		if _, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 1}); err != nil {
			t.Errorf("entries: %v", err)
		}
	}
	t.Run("of a server that was stopped", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		db := connect(t, url)
		create(t, open(t, url), "u", 100)
		store := warm(t, url)
		if _, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 1}); err != nil { // so that there is a connection for reads
			t.Fatal(err)
		}
		db.Exec("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'user-management'")
		each(t, store)
	})
	t.Run("of a server that has become read-only", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		db := connect(t, url)
		create(t, open(t, url), "u", 100)
		name := localpgtest.Query[string](db, "SELECT quote_ident(current_database())")
		db.Exec(fmt.Sprintf("ALTER DATABASE %s SET default_transaction_read_only = on", name))
		store := warm(t, url)
		db.Exec(fmt.Sprintf("ALTER DATABASE %s RESET default_transaction_read_only", name)) // new connections find the one that writes
		each(t, store)
	})
}

func TestStore_LossySettings(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t) // of its own, with all of them on
	url := server.URL("postgres")
	if off, err := open(t, url).LossySettings(t.Context()); err != nil || len(off) != 0 {
		t.Errorf("off: %q, %v", off, err)
	}
	connect(t, url).Exec("ALTER ROLE postgres SET synchronous_commit = off")
	if off, err := open(t, url).LossySettings(t.Context()); err != nil || len(off) != 1 || off[0] != "synchronous_commit" {
		t.Errorf("off: %q, %v", off, err)
	}
}
