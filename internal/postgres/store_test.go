package postgres_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

// Reservations of the tests.
const (
	hold1 = "11111111-1111-4111-8111-111111111111"
	hold2 = "22222222-2222-4222-8222-222222222222"
	hold3 = "33333333-3333-4333-8333-333333333333"
)

// full is a change of everything that an update can write: the row, the side row, two entries, two reservations.
func full(s user.State) (user.Change, error) {
	a := s.Account
	expiry, renewal, by, key := now.Add(time.Hour), now.AddDate(0, 1, 0), "backend", "key-1"
	id1, id2 := hold1, hold2
	a.Username, a.Tier, a.SubscriptionStatus, a.RenewalDate, a.Active = &by, user.TierCreator, "paused", &renewal, false
	a.TokensRemaining, a.TokensUsed, a.TopUps, a.Reserved, a.NextHoldExpiry, a.Adopted = 70, 20, 60, 30, &expiry, true
	a.UpdatedAt = now.Add(time.Second)
	return user.Change{
		Account: a,
		Entries: []user.Entry{
			{
				Kind: user.KindConsume, Amount: -20, BalanceAfter: 80, UsedAfter: 20, TokensCharged: 20, CreatedAt: now,
				IdempotencyKey: &key, CommandHash: []byte{0, 1, 255}, Metadata: map[string]string{"model": "ü\"\\"}, Actor: &by,
			},
			{Kind: user.KindReserve, Amount: -10, BalanceAfter: 70, UsedAfter: 20, ReservationID: &id1, CreatedAt: now},
		},
		Reservations: []user.Reservation{
			{ID: id1, Status: user.ReservationOpen, Tokens: 30, Carried: true, TopUp: 10, CreatedAt: now, ExpiresAt: expiry},
			{
				ID: id2, Status: user.ReservationSettled, Tokens: 5, Charged: 4, Returned: 1, Shortfall: 3, CreatedAt: now,
				ExpiresAt: expiry, ClosedAt: &now,
			},
		},
	}, nil
}

func TestUpdateWritesTheWholeChange(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 100)
	create(t, store, "other", 100)
	other := db.lines("SELECT u::text FROM viralpilot.userdata u WHERE cognito_user_id = 'other'")

	change, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, full)
	if err != nil {
		t.Fatal(err)
	}
	account, err := store.Account(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprintf("%+v", flat(account)), fmt.Sprintf("%+v", flat(change.Account)); got != want {
		t.Errorf("account:\n%s\nwant\n%s", got, want)
	}
	entries, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 10})
	if err != nil || len(entries) != 3 {
		t.Fatalf("entries: %+v, %v", entries, err)
	}
	for i, want := range []user.Entry{change.Entries[1], change.Entries[0]} { // newest first
		if want.ID == 0 {
			t.Error("the change as written has no entry id")
		}
		if got, want := fmt.Sprintf("%+v", flatEntry(entries[i])), fmt.Sprintf("%+v", flatEntry(want)); got != want {
			t.Errorf("entry:\n%s\nwant\n%s", got, want)
		}
	}
	if got := db.lines(`SELECT concat_ws(' ', cognito_user_id, reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall,
			carried, top_up, to_char(created_at, 'HH24:MI:SS.US'), to_char(expires_at, 'HH24:MI'), to_char(closed_at, 'HH24:MI'))
		FROM viralpilot.reservations ORDER BY reservation_id`); got !=
		"u "+hold1+" open 30 0 0 0 t 10 10:00:00.123456 11:00\n"+
			"u "+hold2+" settled 5 4 1 3 f 0 10:00:00.123456 11:00 10:00" {
		t.Errorf("reservations:\n%s", got)
	}
	if got := db.lines("SELECT u::text FROM viralpilot.userdata u WHERE cognito_user_id = 'other'"); got != other {
		t.Errorf("another account was changed: %s", got)
	}
}

// flat is an account with what its pointers point to.
func flat(a user.Account) map[string]any {
	m := map[string]any{"plain": a}
	for name, p := range map[string]*time.Time{"renewal": a.RenewalDate, "reset": a.LastReset, "expiry": a.NextHoldExpiry} {
		if p != nil {
			m[name] = p.UTC().String()
		}
	}
	for name, p := range map[string]*string{"username": a.Username, "email": a.Email} {
		if p != nil {
			m[name] = *p
		}
	}
	a.RenewalDate, a.LastReset, a.NextHoldExpiry, a.Username, a.Email = nil, nil, nil, nil, nil
	m["plain"] = a
	return m
}

func flatEntry(e user.Entry) map[string]any {
	m := map[string]any{}
	for name, p := range map[string]*string{"reservation": e.ReservationID, "key": e.IdempotencyKey, "actor": e.Actor} {
		if p != nil {
			m[name] = *p
		}
	}
	e.ReservationID, e.IdempotencyKey, e.Actor = nil, nil, nil
	m["plain"] = e
	return m
}

func TestUpdateWritesNothingWhenAPartFails(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	db.Exec(`CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'`)
	create(t, store, "u", 100)
	before := db.content()
	for _, table := range []string{"userdata", "account_state", "ledger", "reservations"} {
		for when, trigger := range map[string]string{
			"at once":       "CREATE TRIGGER fail AFTER INSERT OR UPDATE ON viralpilot.%s FOR EACH ROW EXECUTE FUNCTION fail()",
			"at the commit": "CREATE CONSTRAINT TRIGGER fail AFTER INSERT OR UPDATE ON viralpilot.%s DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()",
		} {
			t.Run(table+" "+when, func(t *testing.T) {
				db.Exec(fmt.Sprintf(trigger, table))
				defer db.Exec("DROP TRIGGER fail ON viralpilot." + table)
				_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, full)
				if known := (*user.Error)(nil); err == nil || errors.As(err, &known) {
					t.Errorf("got %v, want an unexpected error", err)
				}
				if after := db.content(); after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})
		}
	}
}

func TestARefusal(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 100)
	refuse := func(touch bool, refusal error) func(user.State) (user.Change, error) {
		return func(s user.State) (user.Change, error) {
			if !touch {
				return user.Change{Account: s.Account}, refusal
			}
			change, _ := spend("")(s)
			return change, refusal
		}
	}
	update := func(rule func(user.State) (user.Change, error)) (changed bool, err error) {
		before := db.content()
		_, err = store.Update(t.Context(), user.Ref{AccountID: "u"}, rule)
		return db.content() != before, err
	}
	t.Run("keeps the touch that came before it", func(t *testing.T) {
		changed, err := update(refuse(true, user.ErrInsufficientTokens))
		if wantError(t, err, user.ErrInsufficientTokens); !changed {
			t.Error("nothing was written")
		}
	})
	t.Run("writes nothing where there is nothing", func(t *testing.T) {
		changed, err := update(refuse(false, user.ErrInsufficientTokens))
		if wantError(t, err, user.ErrInsufficientTokens); changed {
			t.Error("something was written")
		}
	})
	t.Run("that is no refusal keeps nothing", func(t *testing.T) {
		unexpected := errors.New("unexpected")
		if changed, err := update(refuse(true, unexpected)); changed || !errors.Is(err, unexpected) {
			t.Errorf("written: %t, error: %v", changed, err)
		}
	})
}

func TestHoldsAreReadWhenTheyAreAskedFor(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 100)
	create(t, store, "other", 100)
	db.Exec(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, created_at, expires_at) VALUES
		('u', '` + hold1 + `', 'open', 5, '2026-11-24', '2026-11-25'), ('u', '` + hold2 + `', 'released', 6, '2026-11-24', '2026-11-25'),
		('other', '` + hold3 + `', 'open', 7, '2026-11-24', '2026-11-25')`)
	var seen []user.State
	change, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, func(s user.State) (user.Change, error) {
		seen = append(seen, s)
		if !s.HoldsLoaded {
			// What comes with it is to be forgotten.
			return user.Change{Account: s.Account, Entries: make([]user.Entry, 1)}, user.ErrHoldsNeeded
		}
		return spend("")(s)
	})
	if err != nil || len(change.Entries) != 1 || change.Entries[0].Kind != user.KindConsume {
		t.Fatalf("change %+v, %v", change, err)
	}
	if len(seen) != 2 || seen[0].HoldsLoaded || len(seen[0].Holds) != 0 || len(seen[1].Holds) != 1 || seen[1].Holds[0].ID != hold1 {
		t.Errorf("states: %+v", seen)
	}
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE cognito_user_id = 'u' AND kind <> 'top_up'"); n != 1 {
		t.Errorf("%d entries", n)
	}
}

func TestUnknownUser(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	before := db.content()
	_, err := store.Update(t.Context(), user.Ref{AccountID: "u", IdempotencyKey: "k"}, func(user.State) (user.Change, error) {
		t.Error("the rule was called")
		return user.Change{}, nil
	})
	wantError(t, err, user.ErrUserNotFound)
	_, err = store.Account(t.Context(), "u")
	wantError(t, err, user.ErrUserNotFound)
	if entries, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 1}); len(entries) != 0 || err != nil {
		t.Errorf("entries: %v, %v", entries, err)
	}
	if after := db.content(); after != before {
		t.Errorf("written: %s", after)
	}
}

func TestIdsAreTakenAsTheyAre(t *testing.T) {
	t.Parallel()
	store := open(t, localpgtest.New(t))
	ids := []string{"a", "A", "a ", " a", "%", "_", "'; DROP TABLE viralpilot.userdata; --", "\u00e9", "e\u0301", "\u202e", strings.Repeat("ü", 255)}
	for i, id := range ids {
		create(t, store, id, int64(i+1))
	}
	for i, id := range ids {
		if a, err := store.Account(t.Context(), id); err != nil || a.TokensRemaining != int64(i+1) || a.ID != id {
			t.Errorf("%q: %+v, %v", id, a, err)
		}
	}
}

func TestTheEntryUnderAKey(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 100)
	create(t, store, "other", 100)
	first, err := store.Update(t.Context(), user.Ref{AccountID: "u", IdempotencyKey: "k"}, spend("k"))
	if err != nil {
		t.Fatal(err)
	}
	prior := func(t *testing.T, account, key string) (prior *user.Entry) {
		t.Helper()
		_, err := store.Update(t.Context(), user.Ref{AccountID: account, IdempotencyKey: key}, func(s user.State) (user.Change, error) {
			prior = s.Prior
			return user.Change{Account: s.Account}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return prior
	}
	t.Run("is found", func(t *testing.T) {
		if p := prior(t, "u", "k"); p == nil || p.ID != first.Entries[0].ID || string(p.CommandHash) != "hash of k" {
			t.Errorf("entry: %+v", p)
		}
	})
	t.Run("is not found under another key", func(t *testing.T) {
		for _, key := range []string{"", "K", "k "} {
			if p := prior(t, "u", key); p != nil {
				t.Errorf("%q: %+v", key, p)
			}
		}
	})
	t.Run("belongs to one account", func(t *testing.T) {
		if p := prior(t, "other", "k"); p != nil {
			t.Errorf("entry: %+v", p)
		}
		if _, err := store.Update(t.Context(), user.Ref{AccountID: "other", IdempotencyKey: "k"}, spend("k")); err != nil {
			t.Error(err)
		}
	})
	t.Run("cannot be written twice", func(t *testing.T) {
		before := db.content()
		if _, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("k")); err == nil {
			t.Error("it was")
		}
		if after := db.content(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

func TestEntriesOfAnAccount(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "u", 0)
	create(t, store, "other", 9)
	db.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, created_at)
		SELECT 'u', CASE WHEN n % 3 = 0 THEN 'top_up' ELSE 'consume' END, n, 0, 0, timestamptz '2026-11-01 00:00:00Z' + n * interval '1 minute'
		FROM generate_series(1, 20) n`)
	minute := func(n int) time.Time { return time.Date(2026, 11, 1, 0, n, 0, 0, time.UTC) }
	read := func(t *testing.T, q user.EntryQuery) (numbers []int64, last int64) {
		t.Helper()
		entries, err := store.Entries(t.Context(), "u", q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			numbers, last = append(numbers, e.Amount), e.ID
		}
		return numbers, last
	}
	for name, test := range map[string]struct {
		query user.EntryQuery
		want  []int64
	}{
		"come newest first":                 {user.EntryQuery{Limit: 3}, []int64{20, 19, 18}},
		"are limited to a kind":             {user.EntryQuery{Limit: 3, Kind: user.KindTopUp}, []int64{18, 15, 12}},
		"begin with since":                  {user.EntryQuery{Limit: 9, Since: minute(19)}, []int64{20, 19}},
		"end before until":                  {user.EntryQuery{Limit: 2, Until: minute(5)}, []int64{4, 3}},
		"are limited by all of them":        {user.EntryQuery{Limit: 9, Kind: user.KindTopUp, Since: minute(6), Until: minute(12)}, []int64{9, 6}},
		"are none where none match":         {user.EntryQuery{Limit: 9, Kind: user.KindRefund}, nil},
		"are none of another zone's minute": {user.EntryQuery{Limit: 9, Since: minute(21).In(time.FixedZone("", 3600))}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if got, _ := read(t, test.query); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	t.Run("come in pages while others are written", func(t *testing.T) {
		var all []int64
		for before := int64(0); ; {
			numbers, last := read(t, user.EntryQuery{Limit: 7, Before: before})
			if len(numbers) == 0 {
				break
			}
			all, before = append(all, numbers...), last
			if _, err := service(t, store).AddTokens(t.Context(), "u", user.AddTokens{Tokens: 1000}); err != nil {
				t.Fatal(err)
			}
		}
		slices.Reverse(all)
		if len(all) != 20 || all[0] != 1 || !slices.IsSorted(all) {
			t.Errorf("pages: %v", all)
		}
	})
}

func TestAnAccountIsCreatedOnce(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	stores, db := [...]user.Store{open(t, url), open(t, url)}, connect(t, url)
	change := service(t, stores[0]).Rules.Open(user.NewAccount{ID: "u"}, now)
	change.Entries = []user.Entry{{Kind: user.KindOpening, CreatedAt: now}}
	errs := make([]error, 32)
	var clients sync.WaitGroup
	for i := range errs {
		clients.Go(func() { errs[i] = stores[i%2].Create(t.Context(), change) })
	}
	clients.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else {
			wantError(t, err, user.ErrUserExists)
		}
	}
	if made != 1 {
		t.Errorf("it was made %d times", made)
	}
	for _, table := range []string{"userdata", "account_state", "ledger"} {
		if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot."+table); n != 1 {
			t.Errorf("%d rows in %s", n, table)
		}
	}
}

func TestARowWithoutSideRow(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	db.Exec("INSERT INTO viralpilot.userdata (cognito_user_id, tokens_remaining) VALUES ('u', 7)")
	a, err := store.Account(t.Context(), "u")
	if err != nil || a.Adopted || a.TopUps != 0 || a.TokensRemaining != 7 {
		t.Fatalf("account %+v, %v", a, err)
	}
	t.Run("is no account to be created", func(t *testing.T) {
		wantError(t, store.Create(t.Context(), user.Change{Account: user.Account{ID: "u", Tier: user.TierFree}}), user.ErrUserExists)
	})
	t.Run("gets one with its first change", func(t *testing.T) {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, func(s user.State) (user.Change, error) {
			if s.Account.Adopted {
				t.Error("the rule was told that it has one")
			}
			return spend("")(s) // which changes no column of the side row
		})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := store.Account(t.Context(), "u"); err != nil || !a.Adopted || a.TokensRemaining != 6 {
			t.Errorf("account %+v, %v", a, err)
		}
	})
}

// It measures what the process allocates, so no other test may run beside it.
func TestHoldsThatRunOutTogetherAreNotCopiedForEachOther(t *testing.T) {
	dsn := localpgtest.New(t)
	store, db := open(t, dsn), connect(t, dsn)
	create(t, store, "u", 4000)
	db.Exec(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, created_at, expires_at)
		SELECT 'u', gen_random_uuid(), 'open', 1, $1, $1 FROM generate_series(1, 4000)`, now)
	db.Exec(`UPDATE viralpilot.account_state SET tokens_reserved = 4000, next_hold_expiry = $1`, now)
	db.Exec(`UPDATE viralpilot.userdata SET tokens_remaining = 0`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a, err := service(t, store).Account(t.Context(), "u")
	runtime.ReadMemStats(&after)
	if err != nil || a.TokensRemaining != 4000 || a.Reserved != 0 {
		t.Errorf("account %+v, %v", a, err)
	}
	if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > 100 {
		t.Errorf("%d MiB for 4000 holds", mib)
	} else {
		t.Logf("%d MiB", mib)
	}
}
