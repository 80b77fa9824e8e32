package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestAConnectionThatIsLostDuringTheCommit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		key   string
		fault localpgtest.Fault
	}{
		"with a key":                     {"k", localpgtest.Cut},
		"without a key":                  {"", localpgtest.Cut},
		"with a key, behind a pooler":    {"k", localpgtest.CutByPooler},
		"without a key, behind a pooler": {"", localpgtest.CutByPooler},
	} {
		key := test.key
		// The rule is Service.Consume's: under its key it is done once however often it runs.
		consume := func(s *user.Service) error {
			_, err := s.Do(t.Context(), "u", user.Consume{Tokens: 1, Meta: user.Meta{IdempotencyKey: key}})
			return err
		}
		const consumes = "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'"

		t.Run(name+" after it was done", func(t *testing.T) {
			t.Parallel()
			dsn := localpgtest.New(t)
			proxy := localpgtest.NewProxy(t, dsn)
			store, db := open(t, proxy.URL(), func(o *postgres.Options) { o.MaxConns = 1 }), connect(t, dsn)
			create(t, store, "u", 100)
			lost := proxy.At(localpgtest.Answer("commit"), test.fault, 1)
			err := consume(service(t, store))
			if lost.Left() != 0 {
				t.Error("no answer was lost")
			}
			switch {
			case key != "" && err != nil:
				t.Errorf("got %v", err)
			case key == "":
				wantOutcome(t, err, user.OutcomeUnknown)
			}
			if n := localpgtest.Query[int](db, consumes); n != 1 {
				t.Errorf("done %d times", n)
			}
		})
		t.Run(name+" before it was done", func(t *testing.T) {
			t.Parallel()
			dsn := localpgtest.New(t)
			store, db := open(t, dsn, func(o *postgres.Options) { o.MaxConns = 1 }), connect(t, dsn)
			create(t, store, "u", 100)
			pass := db.Gate()
			updated := background(t, func() error { return consume(service(t, store)) })
			db.AwaitGated()
			db.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'user-management'")
			pass()
			err := <-updated
			if key == "" || err != nil {
				wantOutcome(t, err, user.OutcomeUnknown)
			}
			want := 1
			if err != nil {
				want = 0
			}
			if n := localpgtest.Query[int](db, consumes); n != want {
				t.Errorf("done %d times after %v", n, err)
			}
		})
	}
}

// An error that answers COMMIT mostly says that the transaction was aborted, but not each one does.
func TestStoreUpdate_CommitAnsweredByAnError(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]localpgtest.Fault{
		"that leaves the completion open":                localpgtest.Refuse("40003", ""),
		"of a transaction whose resolution is not known": localpgtest.Refuse("08007", ""),
		"of a coordinator that has lost a shard":         localpgtest.Refuse("XX000", "ErrorIfPostCommitFailedShardPlacements"),
	} {
		for _, key := range []string{"", "k"} {
			t.Run(fmt.Sprintf("%s, key %q", name, key), func(t *testing.T) {
				t.Parallel()
				dsn := localpgtest.New(t)
				proxy := localpgtest.NewProxy(t, dsn)
				store, db := open(t, proxy.URL(), func(o *postgres.Options) { o.MaxConns = 1 }), connect(t, dsn)
				create(t, store, "u", 100)
				refused := proxy.At(localpgtest.Answer("commit"), fault, 1)
				_, err := service(t, store).Do(t.Context(), "u", user.Consume{Tokens: 1, Meta: user.Meta{IdempotencyKey: key}})
				if key == "" {
					wantOutcome(t, err, user.OutcomeUnknown)
				} else if err != nil {
					t.Error(err)
				}
				if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'"); n != 1 || refused.Left() != 0 {
					t.Errorf("done %d times", n)
				}
			})
		}
	}
}

func TestAnAccountWhoseCommitIsNotAnswered(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	proxy := localpgtest.NewProxy(t, dsn)
	s, db := service(t, open(t, proxy.URL())), connect(t, dsn)
	lost := proxy.At(localpgtest.Answer("commit"), localpgtest.Cut, 1)
	_, err := s.Create(t.Context(), user.NewAccount{ID: "u"})
	wantOutcome(t, err, user.OutcomeUnknown) // and not that there is one already
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.account_state"); n != 1 || lost.Left() != 0 {
		t.Errorf("made %d times", n)
	}
	_, err = s.Create(t.Context(), user.NewAccount{ID: "u"})
	wantError(t, err, user.ErrUserExists)
}

func TestStoreUpdate_LostCommitOfUnlimitedReserve(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	proxy := localpgtest.NewProxy(t, dsn)
	s, db := service(t, open(t, proxy.URL())), connect(t, dsn)
	create(t, s.Store, "u", 0)
	if _, err := s.Do(t.Context(), "u", user.ChangeTier{Tier: user.TierAdmin}); err != nil {
		t.Fatal(err)
	}
	lost := proxy.At(localpgtest.Answer("commit"), localpgtest.Cut, 1)
	made, err := s.Reserve(t.Context(), "u", user.Reserve{Tokens: 5, TTL: user.DefaultHold, Meta: user.Meta{IdempotencyKey: "k"}})
	if err != nil || lost.Left() != 0 {
		t.Fatalf("%v", err)
	}
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.reservations WHERE reservation_id = $1", made.Reservation.ID); n != 1 {
		t.Errorf("made %d times", n)
	}
}

// gathered lets one update stand at the gate while calls gather behind it, to be served together, and returns their errors.
func gathered(t *testing.T, store *postgres.Store, db database, calls ...func() error) []error {
	t.Helper()
	pass := db.Gate()
	held := background(t, func() error {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
		return err
	})
	db.AwaitGated()
	done := make([]<-chan error, len(calls))
	for i, call := range calls {
		done[i] = background(t, call)
		localpgtest.Await(t, "the call waits", func() bool { return store.Queued() == i+1 })
	}
	pass()
	if err := <-held; err != nil {
		t.Error(err)
	}
	errs := make([]error, len(calls))
	for i := range done {
		errs[i] = <-done[i]
	}
	return errs
}

// The retry finds the reservation of an unlimited account, though the account is limited by then.
func TestStoreUpdate_LostCommitOfUnlimitedReserveAndTierChange(t *testing.T) {
	t.Parallel()
	for name, looking := range map[string]bool{"alone": false, "and a release": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := localpgtest.New(t)
			proxy := localpgtest.NewProxy(t, dsn)
			store := open(t, proxy.URL(), func(o *postgres.Options) { o.MaxConns = 1 })
			db, s := connect(t, dsn), service(t, store)
			create(t, store, "u", 100)
			create(t, store, "a", 0)
			if _, err := s.Do(t.Context(), "a", user.ChangeTier{Tier: user.TierAdmin}); err != nil {
				t.Fatal(err)
			}
			early, err := s.Reserve(t.Context(), "a", user.Reserve{Tokens: 1, TTL: user.DefaultHold})
			if err != nil {
				t.Fatal(err)
			}
			var made user.ReservationReceipt
			calls := []func() error{func() (err error) {
				made, err = s.Reserve(t.Context(), "a", user.Reserve{Tokens: 5, TTL: user.DefaultHold, Meta: user.Meta{IdempotencyKey: "k"}})
				return err
			}, func() error {
				_, err := s.Do(t.Context(), "a", user.ChangeTier{Tier: user.TierTester})
				return err
			}}
			if looking {
				calls = append(calls, func() error {
					_, err := s.Release(t.Context(), "a", user.Release{ReservationID: early.Reservation.ID})
					return err
				})
			}
			proxy.At(localpgtest.Answer("commit"), localpgtest.Delay(0), 1) // of the one that they wait for
			lost := proxy.At(localpgtest.Answer("commit"), localpgtest.Cut, 1)
			errs := gathered(t, store, db, calls...)
			if lost.Left() != 0 {
				t.Error("no answer was lost")
			}
			if errs[0] != nil || !made.Replayed || made.Reservation.Tokens != 0 {
				t.Errorf("made %+v, %v", made.Reservation, errs[0])
			}
			wantOutcome(t, errs[1], user.OutcomeUnknown)
			if looking && errs[2] != nil {
				t.Error(errs[2])
			}
			if r, err := s.Release(t.Context(), "a", user.Release{ReservationID: made.Reservation.ID}); err != nil || r.Account.TokensRemaining != 1000 {
				t.Errorf("released: %+v, %v", r, err)
			}
			if _, err := s.Rules.Verify(t.Context(), store, time.Time{}, now, func(d user.Discrepancy) { t.Error(d) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// Whoever is told "overloaded" may rely on it that nothing was done.
func TestACommitThatIsNotAnsweredAndCannotBeLookedUp(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	proxy := localpgtest.NewProxy(t, dsn)
	store, db, rival := open(t, proxy.URL()), connect(t, dsn), connect(t, dsn)
	create(t, store, "u", 100)
	pass := db.Gate()
	consumed := background(t, func() error {
		_, err := service(t, store).Do(t.Context(), "u", user.Consume{Tokens: 1, Meta: user.Meta{IdempotencyKey: "k"}})
		return err
	})
	db.AwaitGated()
	// It gets the row as soon as the commit is done, and keeps it.
	locked := background(t, func() error {
		_, err := rival.Conn.Exec(t.Context(), "BEGIN; SELECT FROM viralpilot.userdata FOR UPDATE")
		return err
	})
	db.awaitLockWaiters(1)
	lost := proxy.At(localpgtest.Answer("commit"), localpgtest.Cut, 1)
	proxy.At(localpgtest.Connecting, localpgtest.Delay(500*time.Millisecond), 1) // so that the rival comes first
	pass()
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, <-consumed, user.OutcomeUnknown)
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'"); n != 1 || lost.Left() != 0 {
		t.Errorf("done %d times", n)
	}
}

// crowded is a store that is too busy to read reservations.
type crowded struct{ user.Store }

func (crowded) Reservation(context.Context, string, string) (user.Reservation, error) {
	return user.Reservation{}, user.ErrOverloaded
}

// The store has perhaps found it done because the answer of its commit was lost.
func TestACommandThatWasDoneAndWhoseReservationCannotBeRead(t *testing.T) {
	t.Parallel()
	store := open(t, localpgtest.New(t))
	create(t, store, "u", 100)
	reserve := user.Reserve{Tokens: 5, TTL: user.DefaultHold, Meta: user.Meta{IdempotencyKey: "k"}}
	made, err := service(t, store).Reserve(t.Context(), "u", reserve)
	if err != nil {
		t.Fatal(err)
	}
	_, err = service(t, crowded{store}).Reserve(t.Context(), "u", reserve)
	wantOutcome(t, err, user.OutcomeUnknown)
	settle := user.Settle{ReservationID: made.Reservation.ID, TokensUsed: 3}
	if _, err := service(t, store).Settle(t.Context(), "u", settle); err != nil {
		t.Fatal(err)
	}
	_, err = service(t, crowded{store}).Settle(t.Context(), "u", settle)
	wantOutcome(t, err, user.OutcomeUnknown)
}

func TestAServerThatFallsSilentRightAfterALogin(t *testing.T) {
	t.Parallel()
	proxy := localpgtest.NewProxy(t, localpgtest.Direct(localpgtest.New(t)))
	store := open(t, proxy.URL()+"&connect_timeout=1", func(o *postgres.Options) {
		o.MaxConns, o.AcquireTimeout = 1, 100*time.Millisecond
	})
	create(t, open(t, proxy.URL()), "u", 100) // by way of a store with time to connect
	awaitConnected(t, store, "u")
	silent := proxy.At(localpgtest.Before("client_min_messages = warning"), localpgtest.Mute, 1)
	proxy.CutAll()
	localpgtest.Await(t, "the server falls silent", func() bool {
		_, err := store.Account(t.Context(), "u")
		return err != nil && silent.Left() == 0
	})
	localpgtest.Await(t, "another connection takes its place", func() bool {
		_, err := store.Account(t.Context(), "u")
		return err == nil
	})
}
