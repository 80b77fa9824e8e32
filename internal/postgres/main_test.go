package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestMain(m *testing.M) {
	os.Exit(localpgtest.Main(m, func(ctx context.Context, url string) error {
		store, err := postgres.Open(ctx, options(url))
		if err != nil {
			return err
		}
		store.Close()
		return nil
	}))
}

const patience = localpgtest.Patience

func options(url string) postgres.Options {
	return postgres.Options{
		URL: url, MaxConns: 4, ConnectTimeout: patience, AcquireTimeout: patience, StatementTimeout: patience,
		ImportPublicUserdata: true, Log: slog.New(slog.DiscardHandler),
		Clock: func(context.Context, time.Time) time.Time { return now },
	}
}

// open returns a store that is closed when the test has ended; change may alter its options.
func open(t *testing.T, url string, change ...func(*postgres.Options)) *postgres.Store {
	t.Helper()
	o := options(url)
	for _, c := range change {
		c(&o)
	}
	store, err := postgres.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// at makes a store judge by a clock of the test instead of the database's, which tests of the store have stand still at
// the instant now.
func at(clock func() time.Time) func(*postgres.Options) {
	return func(o *postgres.Options) { o.Clock = func(context.Context, time.Time) time.Time { return clock() } }
}

// realClock makes a store judge by the database's clock.
func realClock(o *postgres.Options) { o.Clock = nil }

// database is a connection past the store, for one goroutine.
type database struct{ localpgtest.Database }

func connect(t *testing.T, url string) database {
	t.Helper()
	return database{localpgtest.Connect(t, url)}
}

// lines returns the only column of all rows, a line a row.
func (d database) lines(sql string, args ...any) string {
	d.T.Helper()
	rows, err := d.Conn.Query(d.T.Context(), sql, args...)
	if err != nil {
		d.T.Fatalf("%v\n%s", err, sql)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.T.Fatalf("%v\n%s", err, sql)
	}
	return strings.Join(values, "\n")
}

// content returns every row of the tables that accounts live in.
func (d database) content() string {
	d.T.Helper()
	var b strings.Builder
	for _, table := range []string{"userdata", "account_state", "ledger", "reservations"} {
		fmt.Fprintf(&b, "%s:\n%s\n", table, d.lines("SELECT t::text FROM viralpilot."+table+" AS t ORDER BY 1"))
	}
	return b.String()
}

// awaitLockWaiters returns once n sessions of the database wait for a lock.
func (d database) awaitLockWaiters(n int) {
	d.T.Helper()
	localpgtest.Await(d.T, fmt.Sprintf("%d sessions wait for a lock", n), func() bool {
		return localpgtest.Query[int](d, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`) == n
	})
}

// awaitConnected returns once a store that gives up soon has a connection to serve with.
func awaitConnected(t *testing.T, store user.Store, id string) {
	t.Helper()
	localpgtest.Await(t, "it has its connection", func() bool {
		_, err := store.Account(t.Context(), id)
		return err == nil
	})
}

// insist runs f until it fails in another way than by overload, or succeeds: a busy machine may keep a row locked for
// longer than updates wait.
func insist(f func() error) error {
	for begin := time.Now(); ; {
		if err := f(); !errors.Is(err, user.ErrOverloaded) || time.Since(begin) > patience {
			return err
		}
	}
}

// background runs f in a goroutine that the test waits for, and returns where its error arrives.
func background(t *testing.T, f func() error) <-chan error {
	done := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { done <- f() })
	t.Cleanup(running.Wait)
	return done
}

// wantError fails the test unless err is the error of that code.
func wantError(t testing.TB, err error, want *user.Error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %s", err, want.Code)
	}
}

// wantOutcome fails the test unless the database was not available and left the change like that.
func wantOutcome(t testing.TB, err error, want user.Outcome) {
	t.Helper()
	if wantError(t, err, user.ErrDatabaseUnavailable); user.OutcomeOf(err) != want {
		t.Fatalf("the outcome is %q, want %q: %v", user.OutcomeOf(err), want, err)
	}
}

// log collects what is logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *log) into(o *postgres.Options) { o.Log = slog.New(slog.NewTextHandler(l, nil)) }

// now is the instant at which most tests play.
var now = time.Date(2026, 11, 24, 10, 0, 0, 123456000, time.UTC)

// service is the service at the instant now, with the built-in tiers.
func service(t testing.TB, store user.Store) *user.Service {
	t.Helper()
	return serviceAt(t, store, func() time.Time { return now })
}

func serviceAt(t testing.TB, store user.Store, clock func() time.Time) *user.Service {
	t.Helper()
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &user.Service{Store: store, Now: clock, Rules: user.Rules{
		Tiers: tiers, ResetZone: time.UTC, MaxOpenReservations: user.DefaultMaxOpenReservations,
		RefundMaxAge: user.DefaultRefundMaxAge, LowBalancePercent: user.DefaultLowBalancePercent,
	}}
}

// create makes an account on the free tier with that many top-ups.
func create(t testing.TB, store user.Store, id string, tokens int64) {
	t.Helper()
	s := service(t, store)
	if _, err := s.Create(t.Context(), user.NewAccount{ID: id}); err != nil {
		t.Fatal(err)
	}
	if tokens == 0 {
		return
	}
	if _, err := s.Do(t.Context(), id, user.AddTokens{Tokens: tokens}); err != nil {
		t.Fatal(err)
	}
}

// spend is a rule that charges one top-up and writes an entry for it under the key.
func spend(key string) func(user.State) (user.Change, error) {
	return func(s user.State) (user.Change, error) {
		a := s.Account
		a.TokensRemaining--
		a.TokensUsed++
		a.TopUps--
		a.TopUpsUsed++
		a.SideRow = user.CurrentSideRow
		topUps := int64(-1)
		e := user.Entry{
			Kind: user.KindConsume, Amount: -1, BalanceAfter: a.TokensRemaining, UsedAfter: a.TokensUsed, TokensCharged: 1,
			TopUpsAmount: &topUps, Period: &a.GrantedPeriod, CreatedAt: now,
		}
		if key != "" {
			e.IdempotencyKey, e.CommandHash = &key, []byte("hash of "+key)
		}
		return user.Change{Account: a, Entries: []user.Entry{e}}, nil
	}
}
