package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// holds makes n open reservations of one token each, the first of which runs out at that instant and each other one a
// second after the one before, in the form that the service writes.
func (d database) holds(accountID string, n int, first time.Time) {
	d.T.Helper()
	d.Exec(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, period, created_at, expires_at)
		SELECT s.cognito_user_id, gen_random_uuid(), 'open', 1, s.granted_period, $3::timestamptz - interval '1 hour', $3::timestamptz + (i - 1) * interval '1 second'
		FROM generate_series(1, $2) i, viralpilot.account_state s WHERE s.cognito_user_id = $1`, accountID, n, first)
	d.Exec(`WITH entry AS (INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, period, created_at)
			SELECT cognito_user_id, 'reserve', -$2::int, tokens_remaining - $2, tokens_used_this_month, -$2, s.granted_period, $3
			FROM viralpilot.userdata JOIN viralpilot.account_state s USING (cognito_user_id) WHERE cognito_user_id = $1),
		side AS (UPDATE viralpilot.account_state SET tokens_reserved = tokens_reserved + $2, open_reservations = open_reservations + $2,
			top_ups = top_ups - $2, top_ups_used = top_ups_used + $2, next_hold_expiry = least(next_hold_expiry, $3) WHERE cognito_user_id = $1)
		UPDATE viralpilot.userdata SET tokens_remaining = tokens_remaining - $2 WHERE cognito_user_id = $1`, accountID, n, first)
}

// sideRow returns what is open and held, and when the account is to be touched next.
func (d database) sideRow(accountID string) string {
	d.T.Helper()
	return localpgtest.Query[string](d, `SELECT format('%s open, %s held, next %s', open_reservations, tokens_reserved,
		coalesce(to_char(next_hold_expiry, 'HH24:MI:SS'), 'never')) FROM viralpilot.account_state WHERE cognito_user_id = $1`, accountID)
}

// wantVerified fails the test unless the books of all accounts agree.
func wantVerified(t *testing.T, s *user.Service) {
	t.Helper()
	reader := s.Store.(user.LedgerReader)
	if _, err := s.Rules.Verify(t.Context(), reader, time.Time{}, s.Now(), func(d user.Discrepancy) { t.Error(d) }); err != nil {
		t.Error(err)
	}
}

func TestReserve_TooManyOpen(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url, func(o *postgres.Options) { o.MaxConns = 1 }), connect(t, url)
	s := service(t, store)
	reserve := func(id string) (string, error) {
		r, err := s.Reserve(t.Context(), id, user.Reserve{Tokens: 1, TTL: time.Hour})
		return r.Reservation.ID, err
	}

	t.Run("is refused until one is closed", func(t *testing.T) {
		create(t, store, "full", 2000)
		db.holds("full", user.DefaultMaxOpenReservations-1, now.Add(time.Hour))
		last, err := reserve("full")
		if err != nil {
			t.Fatal(err)
		}
		before := db.content()
		_, err = reserve("full")
		if wantError(t, err, user.ErrTooManyReservations); db.content() != before {
			t.Error("something was written")
		}
		if _, err := s.Release(t.Context(), "full", user.Release{ReservationID: last}); err != nil {
			t.Fatal(err)
		}
		if _, err := reserve("full"); err != nil {
			t.Error(err)
		}
	})
	t.Run("is counted anew before it is refused", func(t *testing.T) {
		create(t, store, "miscounted", 100)
		db.holds("miscounted", 3, now.Add(time.Hour))
		db.Exec("UPDATE viralpilot.account_state SET open_reservations = 1000 WHERE cognito_user_id = 'miscounted'")
		if _, err := reserve("miscounted"); err != nil {
			t.Fatal(err)
		}
		if got := db.sideRow("miscounted"); got != "4 open, 4 held, next 11:00:00" {
			t.Error(got)
		}
	})
	t.Run("counts those that come in one group", func(t *testing.T) {
		create(t, store, "u", 100) // which stands at the gate
		create(t, store, "group", 2000)
		db.holds("group", user.DefaultMaxOpenReservations-2, now.Add(time.Hour))
		calls := make([]func() error, 5)
		for i := range calls {
			calls[i] = func() error {
				_, err := reserve("group")
				return err
			}
		}
		made := 0
		for _, err := range gathered(t, store, db, calls...) {
			if err == nil {
				made++
			} else {
				wantError(t, err, user.ErrTooManyReservations)
			}
		}
		if made != 2 {
			t.Errorf("%d were made", made)
		}
	})
	wantVerified(t, s)
}

// statements collects what is sent in batches to the database, and how many rows each statement found or changed.
type statements struct {
	mu   sync.Mutex
	list []string
}

func (*statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (*statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (s *statements) TraceBatchQuery(_ context.Context, _ *pgx.Conn, q pgx.TraceBatchQueryData) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, fmt.Sprintf("%s: %s", q.CommandTag, strings.Join(strings.Fields(q.SQL), " ")))
}
func (*statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func TestSettle_ReadsTheReservationItNames(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	sent := &statements{}
	store, db := open(t, url, func(o *postgres.Options) { o.Tracer = sent }), connect(t, url)
	s := service(t, store)
	settle := func(id string, others int) []string {
		t.Helper()
		create(t, store, id, 2000)
		if others > 0 {
			db.holds(id, others, now.Add(time.Minute))
		}
		r, err := s.Reserve(t.Context(), id, user.Reserve{Tokens: 5, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		sent.list = nil
		if _, err := s.Settle(t.Context(), id, user.Settle{ReservationID: r.Reservation.ID, TokensUsed: 3}); err != nil {
			t.Fatal(err)
		}
		return sent.list
	}
	alone, among := settle("alone", 0), settle("among", user.DefaultMaxOpenReservations-1)
	if !slices.Equal(alone, among) {
		t.Errorf("alone:\n%s\namong others:\n%s", strings.Join(alone, "\n"), strings.Join(among, "\n"))
	}
	if len(alone) == 0 || len(alone) > 16 { // of them four are settings behind a pooler
		t.Errorf("%d statements", len(alone))
	}
	wantVerified(t, s)
}

func TestStoreUpdate_DueHolds(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.MaxConns = 1 })
	db, s := connect(t, url), service(t, store)
	const others = 8
	create(t, store, "u", 100) // which stands at the gate
	for i := range others {
		create(t, store, fmt.Sprint("other-", i), 100)
	}
	// Their expiries lie between each other, the last ones before now.
	create(t, store, "many", 5000)
	db.holds("many", 1700, now.Add(-2000*time.Second))
	create(t, store, "more", 5000)
	db.holds("more", 1700, now.Add(-2000*time.Second-time.Millisecond))
	create(t, store, "later", 100)
	db.holds("later", 20, now.Add(-2*time.Second))

	var calls []func() error
	for _, id := range []string{"many", "more", "later"} {
		calls = append(calls, func() error {
			_, err := s.Do(t.Context(), id, user.Touch{})
			return err
		})
	}
	for i := range others {
		calls = append(calls, func() error {
			_, err := s.Do(t.Context(), fmt.Sprint("other-", i), user.Consume{Tokens: 1})
			return err
		})
	}
	for i, err := range gathered(t, store, db, calls...) {
		if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if got := db.lines(`SELECT format('%s: %s', cognito_user_id, count(*)) FROM viralpilot.reservations
		WHERE status = 'expired' GROUP BY cognito_user_id ORDER BY 1`); got != "many: 250\nmore: 250" {
		t.Errorf("the first group returned\n%s", got)
	}
	if n, err := s.Sweep(t.Context()); err != nil || n != 2*1700+3-500 {
		t.Errorf("the sweep ended %d, %v", n, err)
	}
	if most := localpgtest.Query[int](db, `SELECT max(n) FROM (SELECT count(*) AS n FROM viralpilot.reservations
		WHERE status = 'expired' GROUP BY xmin::text) t`); most != user.MaxHoldsPerUpdate {
		t.Errorf("at most %d were returned by one transaction", most)
	}
	if n := localpgtest.Query[int](db, `SELECT count(*) FROM (SELECT expires_at, lag(expires_at) OVER (PARTITION BY l.cognito_user_id ORDER BY entry_id) AS before
		FROM viralpilot.ledger l JOIN viralpilot.reservations r USING (cognito_user_id, reservation_id) WHERE kind = 'expire') t
		WHERE expires_at < before`); n != 0 {
		t.Errorf("%d were returned before earlier ones", n)
	}
	for id, want := range map[string]string{"many": "0 open, 0 held, next never", "later": "17 open, 17 held, next 10:00:01"} {
		if got := db.sideRow(id); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	wantVerified(t, s)
}

func TestStore_OldestDueHold(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 100)
	want := func(least time.Duration) {
		t.Helper()
		if age, err := store.OldestDueHold(t.Context()); err != nil || age < least || age > least+patience || least == 0 && age != 0 {
			t.Errorf("got %s, %v, want %s", age, err, least)
		}
	}
	want(0)
	db.holds("u", 1, time.Now().Add(time.Hour))
	want(0)
	db.holds("u", 1, time.Now().Add(-time.Hour))
	db.holds("u", 1, time.Now().Add(-2*time.Hour))
	want(2 * time.Hour)
	db.Exec("UPDATE viralpilot.reservations SET status = 'expired', closed_at = now() WHERE expires_at < now()")
	want(0)
}

func TestStoreUpdate_NextHoldExpiryIsSetRight(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	s := service(t, store)
	create(t, store, "none open", 100)
	create(t, store, "open", 100)
	db.holds("open", 2, now.Add(time.Hour))
	db.Exec("UPDATE viralpilot.account_state SET next_hold_expiry = $1", now.Add(-time.Minute))
	entries := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger")
	for id, want := range map[string]string{"none open": "0 open, 0 held, next never", "open": "2 open, 2 held, next 11:00:00"} {
		if _, err := s.Account(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got := db.sideRow(id); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger"); n != entries {
		t.Errorf("%d entries were written", n-entries)
	}
}

func TestStoreReservations_Pages(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	s := service(t, store)
	create(t, store, "u", 1000)
	db.holds("u", 10, now.Add(time.Hour))
	db.Exec(`UPDATE viralpilot.reservations SET expires_at = $1`, now.Add(time.Hour)) // so that the ids decide
	for i := range 5 {
		r, err := s.Reserve(t.Context(), "u", user.Reserve{Tokens: 1, TTL: time.Minute * time.Duration(i+1)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Settle(t.Context(), "u", user.Settle{ReservationID: r.Reservation.ID, TokensUsed: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for status, want := range map[user.ReservationStatus]int{"": 15, user.ReservationOpen: 10, user.ReservationSettled: 5, user.ReservationExpired: 0} {
		t.Run(fmt.Sprintf("of status %q", status), func(t *testing.T) {
			var all []user.Reservation
			for q := (user.ReservationQuery{Status: status, Limit: 4}); ; {
				page, err := store.Reservations(t.Context(), "u", q)
				if err != nil {
					t.Fatal(err)
				}
				if len(page) == 0 {
					break
				}
				all = append(all, page...)
				last := page[len(page)-1]
				q.AfterExpiry, q.AfterID = last.ExpiresAt, last.ID
			}
			seen := map[string]bool{}
			for i, r := range all {
				seen[r.ID] = true
				if i > 0 && r.ExpiresAt.Before(all[i-1].ExpiresAt) {
					t.Errorf("%s comes after %s", r.ExpiresAt, all[i-1].ExpiresAt)
				}
				if (r.LastEntry != nil) != (r.Status == user.ReservationSettled) { // the holds were made without one
					t.Errorf("%s %s: newest entry %+v", r.Status, r.ID, r.LastEntry)
				}
			}
			if len(all) != want || len(seen) != want {
				t.Errorf("%d reservations, %d different ones, want %d", len(all), len(seen), want)
			}
		})
	}
	if _, err := store.Reservation(t.Context(), "u", hold1); !errors.Is(err, user.ErrReservationNotFound) {
		t.Errorf("got %v", err)
	}
}
