package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestConcurrentUpdatesOfAnAccountAreSerial(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	stores, db := [...]user.Store{open(t, url), open(t, url)}, connect(t, url)
	create(t, stores[0], "u", 1000)
	const clients, each = 8, 25
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for range each {
				if err := insist(func() error {
					_, err := stores[i%2].Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	a, err := stores[0].Account(t.Context(), "u")
	if err != nil || a.TokensRemaining != 1000-clients*each || a.TokensUsed != clients*each {
		t.Errorf("account %+v, %v", a, err)
	}
	// In the order of their ids, each entry begins where the one before it ended.
	if broken := localpgtest.Query[int](db, `SELECT count(*) FROM (SELECT amount, balance_after, lag(balance_after, 1, 0) OVER (ORDER BY entry_id) AS before
		FROM viralpilot.ledger) AS entries WHERE balance_after <> before + amount`); broken != 0 {
		t.Errorf("%d entries do not follow from the one before", broken)
	}
}

func TestAKeyCountsOnceHoweverManyUseItAtOnce(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	stores := [...]user.Store{open(t, url), open(t, url)}
	create(t, stores[0], "u", 100)
	const clients = 24
	receipts := make([]user.Receipt, clients)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			if err := insist(func() (err error) {
				receipts[i], err = service(t, stores[i%2]).Do(t.Context(), "u", user.Consume{Tokens: 3, Meta: user.Meta{IdempotencyKey: "k"}})
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	first := 0
	for _, r := range receipts {
		if !r.Replayed {
			first++
		}
		if r.Entry == nil || r.Entry.ID != receipts[0].Entry.ID || r.Account.TokensRemaining != 97 || r.Account.TokensUsed != 3 {
			t.Errorf("receipt %+v", r)
		}
	}
	if a, err := stores[0].Account(t.Context(), "u"); err != nil || first != 1 || a.TokensRemaining != 97 {
		t.Errorf("%d were the first; account %+v, %v", first, a, err)
	}
}

// At READ COMMITTED a statement that waited for a row lock sees that row afresh, but not what it is joined to.
func TestAllThatAnUpdateSeesIsAsOfItsLock(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db, rival := open(t, url), connect(t, url), connect(t, url)
	try := func(id string) error {
		create(t, store, id, 100)
		rival.Exec("BEGIN")
		rival.Exec("SELECT FROM viralpilot.userdata WHERE cognito_user_id = $1 FOR UPDATE", id)
		var seen user.State
		updated := background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: id, IdempotencyKey: "k", ReservationID: hold2}, func(s user.State) (user.Change, error) {
				seen = s
				return user.Change{Account: s.Account}, nil
			})
			return err
		})
		db.awaitLockWaiters(1)
		rival.Exec(strings.ReplaceAll(`UPDATE viralpilot.userdata SET tokens_remaining = 71 WHERE cognito_user_id = '%s';
			UPDATE viralpilot.account_state SET top_ups = 72, tokens_reserved = 11, next_hold_expiry = '2026-11-24' WHERE cognito_user_id = '%s';
			INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, period, created_at, expires_at)
				VALUES ('%s', '`+hold1+`', 'open', 11, 1, '2026-11-23', '2026-11-24'), ('%s', '`+hold2+`', 'released', 5, 1, '2026-11-24', '2026-11-25');
			INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, idempotency_key, created_at)
				VALUES ('%s', 'consume', -1, 71, 1, 0, 'k', '2026-11-24');
			COMMIT`, "%s", id))
		if err := <-updated; err != nil {
			return err
		}
		if a := seen.Account; a.TokensRemaining != 71 || a.TopUps != 72 || a.Reserved != 11 || a.NextHoldExpiry == nil {
			t.Errorf("account %+v", a)
		}
		if seen.Prior == nil || seen.Reservation == nil || len(seen.Holds) != 1 || seen.Holds[0].ID != hold1 {
			t.Errorf("state %+v", seen)
		}
		return nil
	}
	withAccountsUntilInTime(t, try)
}

// withAccountsUntilInTime runs try with an account of its own each time until it is not refused as overloaded: only a
// machine that is very busy lets a lock's time-out pass before the test gives the lock back, and not ten times.
func withAccountsUntilInTime(t *testing.T, try func(id string) error) {
	t.Helper()
	for attempt := range 10 {
		if err := try(fmt.Sprint("u", attempt)); err == nil {
			return
		} else if !errors.Is(err, user.ErrOverloaded) {
			t.Fatal(err)
		}
	}
	t.Error("the lock was never given back in time")
}

// fail makes inserts into the ledger fail with the SQLSTATE as long as times allows, when it is "at once" or "at the
// commit". The count is a sequence: those do not roll back.
func (d database) fail(sqlstate string, times int, when string) {
	d.T.Helper()
	trigger := "CREATE TRIGGER fail AFTER INSERT ON viralpilot.ledger"
	if when == "at the commit" {
		trigger = "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON viralpilot.ledger DEFERRABLE INITIALLY DEFERRED"
	}
	d.Exec(fmt.Sprintf(`CREATE SEQUENCE tries;
		CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF nextval('public.tries') <= %d THEN
				RAISE EXCEPTION 'on purpose' USING ERRCODE = '%s';
			END IF;
			RETURN NULL;
		END $$;
		%s FOR EACH ROW EXECUTE FUNCTION fail()`, times, sqlstate, trigger))
}

func TestDeadlocksAndSerializationFailuresAreRetried(t *testing.T) {
	t.Parallel()
	for _, sqlstate := range []string{"40P01", "40001"} {
		for _, when := range []string{"at once", "at the commit"} {
			t.Run(sqlstate+" "+when, func(t *testing.T) {
				t.Parallel()
				url := localpgtest.New(t)
				store, db := open(t, url), connect(t, url)
				create(t, store, "u", 100)
				db.fail(sqlstate, 3, when)
				change, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k"))
				if err != nil || change.Entries[0].ID == 0 {
					t.Fatalf("change %+v, %v", change, err)
				}
				if tries := localpgtest.Query[int](db, "SELECT last_value FROM tries"); tries != 4 {
					t.Errorf("%d tries", tries)
				}
				if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume' AND balance_after = 99"); n != 1 {
					t.Errorf("%d entries", n)
				}
			})
		}
	}
	t.Run("but not for ever", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		store, db := open(t, url), connect(t, url)
		create(t, store, "u", 100)
		db.fail("40P01", 1_000_000, "at once")
		before := db.content()
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k"))
		wantError(t, err, user.ErrOverloaded)
		if tries := localpgtest.Query[int](db, "SELECT last_value FROM tries"); tries < 2 || tries > 10 {
			t.Errorf("%d tries", tries)
		}
		if after := db.content(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	t.Run("and nothing else is", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		store, db := open(t, url), connect(t, url)
		create(t, store, "u", 100)
		db.fail("53100", 1, "at once") // disk full
		before := db.content()
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k"))
		wantOutcome(t, err, user.OutcomeNone)
		if after := db.content(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

// A real deadlock: the update holds the account and asks for a side row whose holder waits for the account.
func TestAnUpdateSurvivesADeadlock(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db, rival := connect(t, url), connect(t, url)
	create(t, open(t, url), "u", 100)
	// The update's session is the one that looks for deadlocks, and so the one that is ended.
	db.Exec(fmt.Sprintf("ALTER DATABASE %s SET deadlock_timeout = '10ms'", localpgtest.Query[string](db, "SELECT quote_ident(current_database())")))
	store := open(t, url)
	rival.Exec("SET deadlock_timeout = '1h'")
	rival.Exec("BEGIN")
	rival.Exec("SELECT FROM viralpilot.account_state WHERE cognito_user_id = 'u' FOR UPDATE")

	locked, blocked, calls := make(chan struct{}), make(chan struct{}), 0
	updated := background(t, func() error {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, func(s user.State) (user.Change, error) {
			if calls++; calls == 1 {
				close(locked)
				<-blocked
			}
			change, _ := spend("")(s)
			change.Account.TopUps++ // so that the side row is written
			return change, nil
		})
		return err
	})
	<-locked
	waiting := background(t, func() error {
		_, err := rival.Conn.Exec(t.Context(), "UPDATE viralpilot.userdata SET tokens_remaining = 50 WHERE cognito_user_id = 'u'; COMMIT")
		return err
	})
	db.awaitLockWaiters(1)
	close(blocked)
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	if err := <-updated; err != nil {
		t.Fatal(err)
	}
	if a, err := store.Account(t.Context(), "u"); err != nil || calls != 2 || a.TokensRemaining != 49 {
		t.Errorf("%d calls; account %+v, %v", calls, a, err)
	}
}

// lock takes the row locks of accounts and returns what gives them back.
func (d database) lock(ids ...string) (unlock func()) {
	d.T.Helper()
	d.Exec("BEGIN")
	d.Exec("SELECT FROM viralpilot.userdata WHERE cognito_user_id = ANY($1) FOR UPDATE", ids)
	return sync.OnceFunc(func() { d.Exec("COMMIT") })
}

func TestAUsedUpPoolIsOverload(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.MaxConns, o.AcquireTimeout = 1, 100*time.Millisecond })
	db, leisurely := connect(t, url), open(t, url)
	create(t, leisurely, "u", 100)
	create(t, leisurely, "other", 100)
	awaitConnected(t, store, "u")
	pass := db.Gate()
	held := background(t, func() error {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
		return err
	})
	db.AwaitGated()
	before := db.content()
	begin := time.Now()
	_, err := store.Update(t.Context(), user.Ref{AccountID: "other"}, spend(""))
	wantError(t, err, user.ErrOverloaded)
	_, err = store.Account(t.Context(), "other")
	wantError(t, err, user.ErrOverloaded)
	_, err = service(t, store).Create(t.Context(), user.NewAccount{ID: "new"})
	wantError(t, err, user.ErrOverloaded)
	if took := time.Since(begin); took > patience/3 {
		t.Errorf("three calls took %s", took)
	}
	if after := db.content(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	pass()
	if err := <-held; err != nil {
		t.Error(err)
	}
	if err := insist(func() error {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "other"}, spend(""))
		return err
	}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestALockThatIsNotGivenBackIsWaitedForNoLongerThanAStatementMayTake(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.StatementTimeout = time.Second })
	db, rival := connect(t, url), connect(t, url)
	create(t, open(t, url), "u", 100)
	before := db.content()
	unlock := rival.lock("u")
	begin := time.Now()
	_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k"))
	if !errors.Is(err, user.ErrDatabaseUnavailable) && !errors.Is(err, user.ErrOverloaded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > patience/3 {
		t.Errorf("it took %s", took)
	}
	if _, err := store.Account(t.Context(), "u"); err != nil {
		t.Errorf("a read waited: %v", err)
	}
	unlock()
	if after := db.content(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	create(t, open(t, url), "u", 100)
	before := db.content()
	db.Exec(fmt.Sprintf("ALTER DATABASE %s SET default_transaction_read_only = on", localpgtest.Query[string](db, "SELECT quote_ident(current_database())")))
	store := open(t, url) // starts all the same
	t.Run("refuses changes as not available", func(t *testing.T) {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k"))
		wantOutcome(t, err, user.OutcomeNone)
		_, err = service(t, store).Create(t.Context(), user.NewAccount{ID: "new"})
		wantOutcome(t, err, user.OutcomeNone)
		if after := db.content(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	t.Run("serves reads", func(t *testing.T) {
		if a, err := service(t, store).Account(t.Context(), "u"); err != nil || a.TokensRemaining != 100 {
			t.Errorf("account %+v, %v", a, err)
		}
		if _, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 1}); err != nil {
			t.Error(err)
		}
	})
}

func TestACallerThatGoesAway(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.MaxConns = 1 })
	db := connect(t, url)
	create(t, store, "u", 100)
	create(t, store, "other", 100)

	t.Run("before it has begun is told when nothing was done", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		done := 0
		for range 20 {
			if _, err := store.Update(ctx, user.Ref{AccountID: "u"}, spend("")); err == nil {
				done++
			}
		}
		if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'"); n != done {
			t.Errorf("%d updates were done, and %d callers were told so", n, done)
		}
	})
	t.Run("while it waits for a connection changes nothing", func(t *testing.T) {
		pass := db.Gate()
		held := background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("held"))
			return err
		})
		db.AwaitGated()
		ctx, cancel := context.WithCancel(t.Context())
		var called atomic.Bool
		waiting := background(t, func() error {
			_, err := store.Update(ctx, user.Ref{AccountID: "other"}, func(s user.State) (user.Change, error) {
				called.Store(true)
				return spend("")(s)
			})
			return err
		})
		cancel()
		if err := <-waiting; !errors.Is(err, user.ErrOverloaded) && !errors.Is(err, user.ErrDatabaseUnavailable) {
			t.Errorf("got %v", err)
		}
		pass()
		if err := <-held; err != nil {
			t.Error(err)
		}
		if a, err := store.Account(t.Context(), "other"); err != nil || a.TokensRemaining != 100 || called.Load() {
			t.Errorf("account %+v, %v", a, err)
		}
	})
	t.Run("after it has begun is served to the end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := store.Update(ctx, user.Ref{AccountID: "other"}, func(s user.State) (user.Change, error) {
			cancel()
			return spend("")(s)
		})
		if err != nil {
			t.Error(err)
		}
		if a, err := store.Account(t.Context(), "other"); err != nil || a.TokensRemaining != 99 {
			t.Errorf("account %+v, %v", a, err)
		}
	})
}

// While one transaction is held up, the updates after it gather and are served together.
func TestAnUpdateThatFailsFailsNoneOfThoseServedWithIt(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]int{"in groups": 0, "each by itself": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			store := open(t, url, func(o *postgres.Options) { o.MaxConns, o.WriteBatchMax = 1, most })
			db := connect(t, url)
			const accounts, each = 5, 10
			create(t, store, "u", 100)
			for i := range accounts {
				create(t, store, fmt.Sprint("a", i), 100)
			}
			// Metadata that the service never writes, and does not read.
			db.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, idempotency_key,
					command_hash, metadata, created_at)
				SELECT cognito_user_id, 'top_up', 0, 100, 0, 0, 'unreadable', '', '{"n": 1}', now() FROM viralpilot.userdata`)
			pass := db.Gate()
			held := background(t, func() error {
				_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
				return err
			})
			db.AwaitGated()

			// Of each account's updates a rule refuses one, and six fail.
			unexpected := errors.New("unexpected")
			bad := map[int]func(user.State) (user.Change, error){
				1: func(s user.State) (user.Change, error) {
					return user.Change{Account: s.Account}, user.ErrInsufficientTokens
				},
				2: func(s user.State) (user.Change, error) { return user.Change{}, unexpected },
				3: func(s user.State) (user.Change, error) { panic("a mistake in a rule") },
				4: func(s user.State) (user.Change, error) { // what the column does not take
					c, _ := spend("")(s)
					c.Account.SubscriptionStatus = user.SubscriptionStatus(strings.Repeat("x", 51))
					return c, nil
				},
				5: func(s user.State) (user.Change, error) { // a key that was used
					c, _ := spend("used")(s)
					c.Entries = append(c.Entries, c.Entries[0])
					return c, nil
				},
				6: func(s user.State) (user.Change, error) { // what the driver does not take
					c, _ := spend("")(s)
					c.Entries[0].Amount = user.MaxTokens + 1
					return c, nil
				},
				7: spend(""), // see below
			}
			var running, sent sync.WaitGroup
			errs := make([]error, accounts*each)
			for i := range errs {
				rule, fails := bad[i%each]
				if !fails {
					rule = spend("")
				}
				ref := user.Ref{AccountID: fmt.Sprint("a", i/each)}
				if i%each == 7 {
					ref.IdempotencyKey = "unreadable"
				}
				sent.Add(1)
				running.Go(func() {
					sent.Done()
					_, errs[i] = store.Update(t.Context(), ref, rule)
				})
			}
			sent.Wait()
			pass()
			if err := <-held; err != nil {
				t.Error(err)
			}
			running.Wait()
			good := int64(0)
			for i, err := range errs {
				switch known := (*user.Error)(nil); i % each {
				case 1:
					wantError(t, err, user.ErrInsufficientTokens)
				case 2:
					if !errors.Is(err, unexpected) {
						t.Errorf("got %v", err)
					}
				case 3, 4, 5, 6, 7:
					if err == nil || errors.As(err, &known) {
						t.Errorf("number %d: got %v", i%each, err)
					}
				default:
					if err != nil {
						t.Errorf("number %d: %v", i%each, err)
					}
				}
				if err == nil {
					good++
				}
			}
			if n := localpgtest.Query[int64](db, "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume' AND cognito_user_id <> 'u'"); n != good {
				t.Errorf("%d entries of %d updates", n, good)
			}
			for i := range accounts {
				a, err := store.Account(t.Context(), fmt.Sprint("a", i))
				if err != nil || a.TokensRemaining+a.TokensUsed != 100 || a.TokensUsed*accounts != good {
					t.Errorf("account %+v, %v", a, err)
				}
			}
		})
	}
}

func TestStoreUpdate_StatementTimeout(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 100)
	for _, id := range []string{"slow", "a", "b", "c"} {
		create(t, store, id, 100)
	}
	db.Exec(`CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';
		CREATE TRIGGER sleep AFTER INSERT ON viralpilot.ledger FOR EACH ROW WHEN (NEW.cognito_user_id = 'slow') EXECUTE FUNCTION sleep()`)
	single := open(t, url, func(o *postgres.Options) { o.MaxConns, o.StatementTimeout = 1, 3*time.Second })
	awaitConnected(t, single, "u")
	calls := make([]func() error, 0, 4)
	for _, id := range []string{"a", "slow", "b", "c"} {
		calls = append(calls, func() error {
			_, err := single.Update(t.Context(), user.Ref{AccountID: id}, spend(""))
			return err
		})
	}
	for i, err := range gathered(t, single, db, calls...) {
		if i == 1 {
			wantOutcome(t, err, user.OutcomeNone)
		} else if err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if got := db.lines("SELECT cognito_user_id FROM viralpilot.ledger WHERE kind = 'consume' ORDER BY 1"); got != "a\nb\nc\nu" {
		t.Errorf("charged were %q", got)
	}
}

func TestTextThatTheDatabaseCannotHold(t *testing.T) {
	t.Parallel()
	store := open(t, localpgtest.New(t))
	create(t, store, "u", 100)
	for _, text := range []string{"a\x00b", "\xff"} {
		_, err := store.Update(t.Context(), user.Ref{AccountID: text}, spend(""))
		wantError(t, err, user.ErrUserNotFound)
		_, err = store.Update(t.Context(), user.Ref{AccountID: "u", IdempotencyKey: text}, spend(""))
		wantError(t, err, user.ErrValidation)
	}
}

// Two replicas whose clocks are a little apart touch one account together while the month begins.
func TestTwoReplicasAtTheMonthsFirstInstantGrantOnce(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	month := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	before := month.Add(-time.Microsecond)
	var clock [2]atomic.Pointer[time.Time]
	var replicas [2]*user.Service
	for i := range replicas {
		clock[i].Store(&before)
		now := func() time.Time { return *clock[i].Load() }
		replicas[i] = serviceAt(t, open(t, url, at(now)), now)
	}
	s := replicas[0]
	if _, err := s.Create(t.Context(), user.NewAccount{ID: "u"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do(t.Context(), "u", user.ChangeTier{Tier: user.TierTester}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Do(t.Context(), "u", user.AddTokens{Tokens: 50}); err != nil {
		t.Fatal(err)
	}
	const clients, each = 8, 10
	var spent atomic.Int64
	burst := func() {
		var running sync.WaitGroup
		for i := range clients {
			running.Go(func() {
				for range each {
					if err := insist(func() error {
						_, err := replicas[i%2].Do(t.Context(), "u", user.Consume{Tokens: 1})
						return err
					}); err != nil {
						t.Error(err)
					} else {
						spent.Add(1)
					}
					if err := insist(func() error {
						_, err := replicas[i%2].Status(t.Context(), "u")
						return err
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		running.Wait()
	}
	burst() // the last of November
	if a, err := s.Account(t.Context(), "u"); err != nil || a.TokensRemaining != 1050-clients*each || a.TokensUsed != clients*each {
		t.Fatalf("in November: %+v, %v", a, err)
	}
	clock[1].Store(&month) // December, says one of them only
	burst()
	clock[0].Store(&month)
	burst()
	a, err := s.Account(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	// What the replica that was late charged before the grant belongs to November, the rest to December.
	const grants = "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'monthly_reset'"
	late := localpgtest.Query[int64](db, `SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'
		AND entry_id < (SELECT min(entry_id) FROM viralpilot.ledger WHERE kind = 'monthly_reset')`)
	if n := localpgtest.Query[int](db, grants); n != 1 {
		t.Errorf("%d grants", n)
	}
	if used := spent.Load() - late; a.TokensUsed != used || a.TokensRemaining != 1050-used || !a.LastReset.Equal(month) {
		t.Errorf("in December: %+v, of %d charged, %d before the grant", a, spent.Load(), late)
	}
	if spent.Load() != 3*clients*each {
		t.Errorf("%d consumes", spent.Load())
	}
}

func TestAnAccountThatSomebodyElseLocksFailsNoOther(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url)
	rival := connect(t, url)
	create(t, store, "locked", 100)
	const others = 20
	for i := range others {
		create(t, store, fmt.Sprint("other-", i), 100)
	}
	unlock := rival.lock("locked")
	locked := background(t, func() error {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "locked"}, spend(""))
		return err
	})
	var done []<-chan error
	for i := range others {
		done = append(done, background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: fmt.Sprint("other-", i)}, spend(""))
			return err
		}))
	}
	for i, d := range done {
		if err := <-d; err != nil {
			t.Errorf("other %d: %v", i, err)
		}
	}
	wantError(t, <-locked, user.ErrOverloaded)
	unlock()
	if _, err := store.Update(t.Context(), user.Ref{AccountID: "locked"}, spend("")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAnAccountThatStaysLockedDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url)
	rival := connect(t, url)
	create(t, store, "locked", 100)
	const others = 8 // of every group of calls
	for i := range others {
		create(t, store, fmt.Sprint("other-", i), 100_000)
	}
	unlock := rival.lock("locked")

	// One client asks for the locked account again and again; meanwhile the others are served at once.
	asking := make(chan struct{})
	asked := background(t, func() error {
		for {
			_, err := store.Update(t.Context(), user.Ref{AccountID: "locked"}, spend(""))
			if !errors.Is(err, user.ErrOverloaded) {
				return err
			}
			select {
			case <-asking:
				return nil
			default:
			}
		}
	})
	wait := func() (slow int) {
		for begin, i := time.Now(), 0; time.Since(begin) < 4*time.Second; i++ {
			before := time.Now()
			if _, err := store.Update(t.Context(), user.Ref{AccountID: fmt.Sprint("other-", i%others)}, spend("")); err != nil {
				t.Fatal(err)
			}
			if time.Since(before) > 500*time.Millisecond {
				slow++
			}
		}
		return slow
	}
	slow := wait()
	for tries := 1; slow > 1 && tries < 3; tries++ { // a very busy machine stands still by itself, but not each time
		slow = wait()
	}
	if slow > 1 {
		t.Errorf("other accounts waited %d times for longer than half a second", slow)
	}
	close(asking)
	if err := <-asked; err != nil {
		t.Error(err)
	}
	unlock()
	if _, err := store.Update(t.Context(), user.Ref{AccountID: "locked"}, spend("")); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// More of them than there are connections to wait with.
func TestUpdatesOfAnAccountThatSomebodyElseLocksWaitInOnePlace(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.WriteBatchMax = 2 })
	db, rival := connect(t, url), connect(t, url)
	create(t, store, "other", 100)
	try := func(id string) error {
		create(t, store, id, 100)
		unlock := rival.lock(id)
		var done []<-chan error
		var sent sync.WaitGroup
		for range 40 {
			sent.Add(1)
			done = append(done, background(t, func() error {
				sent.Done()
				_, err := store.Update(t.Context(), user.Ref{AccountID: id}, spend(""))
				return err
			}))
		}
		sent.Wait()
		localpgtest.Await(t, "they have left their group", func() bool { return store.Queued() == 0 })
		db.awaitLockWaiters(1)
		if _, err := store.Update(t.Context(), user.Ref{AccountID: "other"}, spend("")); err != nil {
			t.Errorf("another account: %v", err)
		}
		unlock()
		served := 0
		var refused error
		for _, d := range done {
			if err := <-d; err != nil {
				refused = errors.Join(refused, err)
			} else {
				served++
			}
		}
		if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume' AND cognito_user_id = $1", id); n != served {
			t.Errorf("%d of %d are in the ledger", n, served)
		}
		return refused
	}
	withAccountsUntilInTime(t, try)
}
