package localpgtest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

func TestProxyPassesEverythingOn(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	words := fmt.Sprintf("host=%s port=%d user=%s password=%s dbname=%s sslmode=prefer",
		config.Host, config.Port, config.User, config.Password, config.Database)
	for name, dsn := range map[string]string{"a URL": dsn, "keywords": words} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.NewProxy(t, dsn).URL()
			ctx, db := t.Context(), connect(t, url)
			for range 2 { // prepared, and prepared before
				var b pgx.Batch
				b.Queue("SELECT repeat('x', $1)", 1<<20)
				b.Queue("SELECT 1 / $1::int", 0)
				b.Queue("SELECT 2")
				results := db.SendBatch(ctx, &b)
				var long string
				if err := results.QueryRow().Scan(&long); err != nil || len(long) != 1<<20 {
					t.Errorf("got %d bytes, %v", len(long), err)
				}
				_, err := results.Exec()
				wantCode(t, err, "22012")
				wantCode(t, results.Close(), "22012")
			}
			if _, err := db.Exec(ctx, "CREATE TEMP TABLE copied (n int); SELECT 1"); err != nil {
				t.Error(err)
			}
			rows := [][]any{{1}, {2}}
			n, err := db.CopyFrom(ctx, pgx.Identifier{"copied"}, []string{"n"}, pgx.CopyFromRows(rows))
			if err != nil || n != 2 {
				t.Errorf("copied %d, %v", n, err)
			}
			_, err = db.Exec(ctx, "SET statement_timeout = '50ms'; SELECT pg_sleep(30)")
			wantCode(t, err, "57014")

			slow := connect(t, url)
			asleep := make(chan error, 1)
			go func() {
				_, err := slow.Exec(ctx, "SELECT pg_sleep(30)")
				asleep <- err
			}()
			localpgtest.Await(t, "it is cancelled", func() bool { // at first it may not have begun yet
				if err := slow.PgConn().CancelRequest(ctx); err != nil {
					t.Fatal(err)
				}
				return len(asleep) == 1
			})
			wantCode(t, <-asleep, "57014")
		})
	}
	t.Run("a login that is refused", func(t *testing.T) {
		t.Parallel()
		wrong := strings.Replace(words, config.Password, "wrong", 1)
		_, err := pgx.Connect(t.Context(), localpgtest.NewProxy(t, wrong).URL())
		wantCode(t, err, "28P01")
	})
}

func TestProxyFaults(t *testing.T) {
	t.Parallel()
	lost, unknown := result{connected: true}, result{connected: true, done: true}
	all := result{connected: true, done: true, known: true}
	for name, test := range map[string]struct {
		fault                                     localpgtest.Fault
		connecting, begin, locks, commit, commits result
	}{
		"cut":              {localpgtest.Cut, result{}, lost, lost, lost, unknown},
		"cut halfway":      {localpgtest.CutHalfway, result{}, lost, lost, lost, unknown},
		"cut by a pooler":  {localpgtest.CutByPooler, result{}, lost, lost, lost, unknown},
		"reset":            {localpgtest.Reset, result{}, lost, lost, lost, unknown},
		"mute":             {localpgtest.Mute, result{}, lost, lost, lost, unknown},
		"half-closed here": {localpgtest.HalfCloseClient, result{}, lost, lost, unknown, unknown},
		// The answers to what the server still got do arrive.
		"half-closed there": {localpgtest.HalfCloseServer, result{}, lost, lost, lost, all},
		"delay":             {localpgtest.Delay(20 * time.Millisecond), all, all, all, all, all},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := localpgtest.New(t)
			proxy := localpgtest.NewProxy(t, dsn)
			for _, at := range []struct {
				name   string
				moment localpgtest.Moment
				want   result
			}{
				{"connecting", localpgtest.Connecting, test.connecting},
				{"before begin", localpgtest.Before("BEGIN"), test.begin},
				{"after the locks", localpgtest.Answer("for update"), test.locks},
				{"before commit", localpgtest.Before("commit"), test.commit},
				{"after the commit", localpgtest.Answer("commit"), test.commits},
			} {
				t.Run(at.name, func(t *testing.T) {
					sessions := connect(t, dsn)
					before := query[int](t, dsn, "SELECT n FROM migrated")
					plan := proxy.At(at.moment, test.fault, 1)
					// What is muted says nothing for the time of a wait that begins with the fault.
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if test.fault == localpgtest.Mute {
						go func() {
							for plan.Left() > 0 && ctx.Err() == nil {
								<-time.After(5 * time.Millisecond)
							}
							<-time.After(200 * time.Millisecond)
							cancel()
						}()
					}
					got := attempt(ctx, t, proxy.URL())
					if plan.Left() != 0 {
						t.Error("the fault did not happen")
					}
					if test.fault == localpgtest.Mute {
						proxy.CutAll() // or the server would go on waiting
					}
					localpgtest.Await(t, "the server has done with it", func() bool {
						var n int
						const count = `SELECT count(*) FROM pg_stat_activity
							WHERE datname = current_database()`
						if err := sessions.QueryRow(t.Context(), count).Scan(&n); err != nil {
							t.Fatal(err)
						}
						return n == 1
					})
					got.done = query[int](t, dsn, "SELECT n FROM migrated") == before+1
					if got != at.want {
						t.Errorf("got %+v, want %+v", got, at.want)
					}
					if got := attempt(t.Context(), t, proxy.URL()); !got.known {
						t.Errorf("the next time: %+v", got)
					}
				})
			}
		})
	}
}

// result is what became of a transaction.
type result struct{ connected, done, known bool }

// attempt makes a transaction and closes its connection.
func attempt(ctx context.Context, t *testing.T, url string) (r result) {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	dial := config.DialFunc
	dialled := false
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialled { // to cancel what may still be done
			return nil, net.ErrClosed
		}
		dialled = true
		return dial(ctx, network, addr)
	}
	db, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return r
	}
	r.connected = true
	r.known = transaction(ctx, db) == nil
	// It says that it was closed already, after most faults.
	_ = db.Close(t.Context())
	return r
}

// transaction counts up, in the two round trips of a group of updates.
func transaction(ctx context.Context, db *pgx.Conn) error {
	var lock, write pgx.Batch
	lock.Queue("begin")
	lock.Queue("SELECT n FROM migrated WHERE n > $1 FOR UPDATE", 0)
	write.Queue("UPDATE migrated SET n = n + $1", 1)
	write.Queue("commit")
	if err := db.SendBatch(ctx, &lock).Close(); err != nil {
		return err
	}
	return db.SendBatch(ctx, &write).Close()
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != code {
		t.Errorf("got %v, want SQLSTATE %s", err, code)
	}
}
