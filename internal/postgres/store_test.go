package postgres_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
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
	a.TokensRemaining, a.TokensUsed, a.TopUps, a.Reserved, a.NextHoldExpiry, a.SideRow = 70, 20, 60, 30, &expiry, user.CurrentSideRow
	a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps, a.GrantedPeriod, a.OpenReservations = 1, 2, 3, 4, 24323, 1
	topUps, none, period, cost := int64(-20), int64(0), 24323, int64(7)
	a.UpdatedAt = now.Add(time.Second)
	return user.Change{
		Account: a,
		Entries: []user.Entry{
			{
				Kind: user.KindConsume, Amount: -20, BalanceAfter: 80, UsedAfter: 20, TokensCharged: 20, TokensRefunded: 3, TopUpsAmount: &topUps, Period: &period, CreatedAt: now,
				Changes:        user.Changes{"subscription_tier": {From: "free", To: "creator"}, "username": {}},
				IdempotencyKey: &key, CommandHash: []byte{0, 1, 255}, Metadata: map[string]string{"model": "ü\"\\"}, Actor: &by,
			},
			{Kind: user.KindReserve, Amount: -10, BalanceAfter: 70, UsedAfter: 20, TopUpsAmount: &none, Period: &period, ReservationID: &id1, CreatedAt: now},
		},
		Reservations: []user.Reservation{
			{ID: id1, Status: user.ReservationOpen, Tokens: 30, Period: period, Metadata: map[string]string{"model": "x"}, CreatedAt: now, ExpiresAt: expiry},
			{
				ID: id2, Status: user.ReservationSettled, Tokens: 5, Charged: 4, Returned: 1, Shortfall: 3, Period: 24322, Late: true,
				CreatedAt: now, ExpiresAt: expiry, ClosedAt: &now, TokensUsed: &cost,
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
	entries, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 10})
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
			period, late, metadata, tokens_used, to_char(created_at, 'HH24:MI:SS.US'), to_char(expires_at, 'HH24:MI'), to_char(closed_at, 'HH24:MI'))
		FROM viralpilot.reservations ORDER BY reservation_id`); got !=
		"u "+hold1+" open 30 0 0 0 24323 f {\"model\": \"x\"} 10:00:00.123456 11:00\n"+
			"u "+hold2+" settled 5 4 1 3 24322 t 7 10:00:00.123456 11:00 10:00" {
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
	if e.TopUpsAmount != nil && e.Period != nil {
		m["top-ups"], m["period"] = *e.TopUpsAmount, *e.Period
	}
	e.ReservationID, e.IdempotencyKey, e.Actor, e.TopUpsAmount, e.Period = nil, nil, nil, nil, nil
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

func TestStoreUpdate_State(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	hold := func(account, id string, expiry time.Time) {
		t.Helper()
		db.Exec(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, period, created_at, expires_at)
			VALUES ($1, $2, 'open', 5, 24323, $3, $4)`, account, id, now.Add(-time.Hour), expiry)
		db.Exec(`UPDATE viralpilot.account_state SET tokens_reserved = tokens_reserved + 5, open_reservations = open_reservations + 1,
			next_hold_expiry = least(next_hold_expiry, $2) WHERE cognito_user_id = $1`, account, expiry)
	}
	for _, id := range []string{"quiet", "due", "other"} {
		create(t, store, id, 100)
	}
	hold("quiet", hold1, now.Add(time.Hour))
	hold("due", hold2, now)
	hold("due", hold3, now.Add(time.Hour))
	hold("other", hold1, now)
	state := func(t *testing.T, ref user.Ref) (seen user.State) {
		t.Helper()
		_, err := store.Update(t.Context(), ref, func(s user.State) (user.Change, error) {
			seen = s
			return user.Change{Account: s.Account}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	ids := func(holds []user.Reservation) (ids []string) {
		for _, h := range holds {
			ids = append(ids, h.ID)
		}
		return ids
	}
	for name, test := range map[string]struct {
		ref        user.Ref
		holds      []string
		nextExpiry bool
	}{
		"has no hold that is not due":                  {ref: user.Ref{AccountID: "quiet"}},
		"has holds that are due, and when the next is": {user.Ref{AccountID: "due"}, []string{hold2}, true},
		"has all holds when they are asked for":        {ref: user.Ref{AccountID: "quiet", OpenHolds: true}, holds: []string{hold1}},
		"has them in the order of their expiry":        {user.Ref{AccountID: "due", OpenHolds: true}, []string{hold2, hold3}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := state(t, test.ref)
			if got := ids(s.Holds); !slices.Equal(got, test.holds) || s.MoreHolds {
				t.Errorf("holds %v, more: %t; want %v", got, s.MoreHolds, test.holds)
			}
			if (s.NextExpiry != nil) != test.nextExpiry || s.NextExpiry != nil && !s.NextExpiry.Equal(now.Add(time.Hour)) {
				t.Errorf("next expiry: %v", s.NextExpiry)
			}
			if s.OpenCount != nil || s.Totals != nil || s.Earlier != nil || s.Reservation != nil || s.Charge != nil || s.Prior != nil {
				t.Errorf("more than was asked for: %+v", s)
			}
		})
	}
	t.Run("has the reservation that is named and no other", func(t *testing.T) {
		if s := state(t, user.Ref{AccountID: "quiet", ReservationID: hold1}); s.Reservation == nil || s.Reservation.ID != hold1 || s.Holds != nil {
			t.Errorf("state %+v", s)
		}
		if s := state(t, user.Ref{AccountID: "quiet", ReservationID: hold2}); s.Reservation != nil { // of another account
			t.Errorf("state %+v", s)
		}
	})
	t.Run("counts open reservations from as many on as the ref says", func(t *testing.T) {
		if s := state(t, user.Ref{AccountID: "due", CountOpenFrom: 3}); s.OpenCount != nil {
			t.Errorf("counted %d", *s.OpenCount)
		}
		if s := state(t, user.Ref{AccountID: "due", CountOpenFrom: 2}); s.OpenCount == nil || *s.OpenCount != 2 {
			t.Errorf("counted %v", s.OpenCount)
		}
	})
	t.Run("has totals when they are asked for", func(t *testing.T) {
		s := state(t, user.Ref{AccountID: "due", Totals: true})
		if s.Totals == nil || s.Totals.Last.Kind != user.KindTopUp || *s.Totals.TopUps != 100 || s.Totals.Reserved != 10 || s.Totals.Open != 2 ||
			!s.Totals.NextExpiry.Equal(now) {
			t.Errorf("totals %+v", s.Totals)
		}
	})
	t.Run("has the database's clock", func(t *testing.T) {
		begin := localpgtest.Query[time.Time](db, "SELECT clock_timestamp()")
		var at time.Time
		_, err := open(t, url, realClock).Update(t.Context(), user.Ref{AccountID: "other"}, func(s user.State) (user.Change, error) {
			at = s.Now
			return user.Change{Account: s.Account}, nil
		})
		if end := localpgtest.Query[time.Time](db, "SELECT clock_timestamp()"); err != nil || at.Before(begin) || at.After(end) {
			t.Errorf("%s is not between %s and %s; %v", at, begin, end, err)
		}
	})
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
	if entries, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Limit: 1}); len(entries) != 0 || err != nil {
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
	rules := service(t, store).Rules
	for i, id := range ids { // the service makes some of them no more
		_, err := store.Create(t.Context(), id, func(s user.State) (user.Change, error) { return rules.Open(s, user.NewAccount{ID: id}), nil })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := service(t, store).Do(t.Context(), id, user.AddTokens{Tokens: int64(i + 1)}); err != nil {
			t.Fatal(err)
		}
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
	db.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
		SELECT 'u', CASE WHEN n % 3 = 0 THEN 'top_up' ELSE 'consume' END, n, 0, 0, n, timestamptz '2026-11-01 00:00:00Z' + n * interval '1 minute'
		FROM generate_series(1, 20) n`)
	minute := func(n int) time.Time { return time.Date(2026, 11, 1, 0, n, 0, 0, time.UTC) }
	read := func(t *testing.T, q user.EntryQuery) (numbers []int64, last int64) {
		t.Helper()
		entries, _, err := store.Entries(t.Context(), "u", q)
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
			if _, err := service(t, store).Do(t.Context(), "u", user.AddTokens{Tokens: 1000}); err != nil {
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
	rules := service(t, stores[0]).Rules
	errs := make([]error, 32)
	var clients sync.WaitGroup
	for i := range errs {
		clients.Go(func() {
			_, errs[i] = stores[i%2].Create(t.Context(), "u", func(s user.State) (user.Change, error) {
				return rules.Open(s, user.NewAccount{ID: "u", Meta: user.Meta{IdempotencyKey: fmt.Sprint(i)}}), nil
			})
		})
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

func TestStoreCreate_KeyOfAnAccountThatIsGone(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	made := user.NewAccount{ID: "u", Meta: user.Meta{IdempotencyKey: "k"}}
	if _, err := service(t, store).Create(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	remove := func() { db.Exec("DELETE FROM viralpilot.userdata") }
	t.Run("is not for another command", func(t *testing.T) {
		remove()
		before, name := db.content(), "name"
		another := made
		another.Username = &name
		_, err := service(t, store).Create(t.Context(), another)
		wantError(t, err, user.ErrKeyReused)
		if after := db.content(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
	t.Run("makes the account again", func(t *testing.T) {
		remove()
		if r, err := service(t, store).Create(t.Context(), made); err != nil || r.Replayed {
			t.Errorf("%+v, %v", r, err)
		}
		if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.userdata"); n != 1 {
			t.Errorf("%d accounts", n)
		}
		wantVerified(t, service(t, store))
		if r, err := service(t, store).Create(t.Context(), made); err != nil || !r.Replayed {
			t.Errorf("repeated: %+v, %v", r, err)
		}
	})
	t.Run("leaves others free", func(t *testing.T) {
		remove()
		another := made
		another.IdempotencyKey = "another"
		if _, err := service(t, store).Create(t.Context(), another); err != nil {
			t.Error(err)
		}
		wantVerified(t, service(t, store))
	})
}

func TestARowWithoutSideRow(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	db.Exec("INSERT INTO viralpilot.userdata (cognito_user_id, tokens_remaining) VALUES ('u', 7)")
	a, err := store.Account(t.Context(), "u")
	if err != nil || a.SideRow != user.NoSideRow || a.TopUps != 0 || a.TokensRemaining != 7 {
		t.Fatalf("account %+v, %v", a, err)
	}
	t.Run("is no account to be created", func(t *testing.T) {
		_, err := service(t, store).Create(t.Context(), user.NewAccount{ID: "u"})
		wantError(t, err, user.ErrUserExists)
	})
	t.Run("gets one with its first change", func(t *testing.T) {
		_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, func(s user.State) (user.Change, error) {
			if s.Account.SideRow != user.NoSideRow {
				t.Error("the rule was told that it has one")
			}
			s.Account.TopUps, s.Account.TopUpsUsed = 1, -1 // so that spend leaves no column of the side row changed
			return spend("")(s)
		})
		if err != nil {
			t.Fatal(err)
		}
		if a, err := store.Account(t.Context(), "u"); err != nil || a.SideRow != user.CurrentSideRow || a.TokensRemaining != 6 {
			t.Errorf("account %+v, %v", a, err)
		}
	})
}

// Each bound is found in a ledger whose ids have gaps, those of other accounts, and where clocks were apart.
func TestStoreEntries_Bounds(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	db.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
		SELECT CASE WHEN n % 7 = 0 THEN 'u' ELSE 'other' END, 'consume', n, 0, 0, 0,
			$1::timestamptz + n * interval '1 hour' - CASE WHEN n % 5 = 0 THEN interval '59 minutes' ELSE interval '0' END
		FROM generate_series(1, 3000) n`, begin)
	for range 200 {
		from, to := begin.Add(time.Duration(rand.Int64N(3100))*time.Hour), begin.Add(time.Duration(rand.Int64N(3100))*time.Hour)
		want := localpgtest.Query[int](db, `SELECT count(*) FROM viralpilot.ledger WHERE cognito_user_id = 'u' AND created_at >= $1 AND created_at < $2`, from, to)
		entries, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Since: from, Until: to, Limit: 5000})
		if err != nil || len(entries) != want {
			t.Errorf("from %s to %s: %d entries, %v, want %d", from, to, len(entries), err, want)
		}
	}
	for _, q := range []user.EntryQuery{{Since: begin.AddDate(1, 0, 0), Limit: 9}, {Until: begin, Limit: 9}} {
		if entries, _, err := store.Entries(t.Context(), "u", q); err != nil || len(entries) != 0 {
			t.Errorf("%+v: %v, %v", q, entries, err)
		}
	}
	if entries, _, err := store.Entries(t.Context(), "nobody", user.EntryQuery{Since: begin, Until: begin.AddDate(1, 0, 0), Limit: 9}); err != nil || len(entries) != 0 {
		t.Errorf("of nobody: %v, %v", entries, err)
	}
}

// What is read is counted by PostgreSQL.
func TestStoreEntries_CostIsThatOfThePage(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url, func(o *postgres.Options) { o.ReadConns = 1 }), connect(t, url)
	create(t, store, "u", 1)
	db.Exec(`ALTER TABLE viralpilot.ledger SET (autovacuum_enabled = off)`) // it looks, too
	filler := connect(t, url)
	filler.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
		SELECT 'u', CASE n WHEN 20 THEN 'refund' ELSE 'consume' END, 0, 0, 0, 0, timestamptz '2026-01-01' + n * interval '1 minute'
		FROM generate_series(1, 100000) n`)
	filler.Exec("ANALYZE viralpilot.ledger")
	// A session reports what it has looked at a second late, or at its end.
	end := func() {
		db.Exec("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	}
	end()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// In how many buffers of the ledger and its indexes PostgreSQL has looked.
	read := func() int {
		return localpgtest.Query[int](db, `SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::int
			FROM pg_statio_all_tables WHERE relname = 'ledger'`)
	}
	for name, ask := range map[string]func() error{
		"a page of a day": func() error {
			_, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Since: begin, Until: begin.Add(time.Hour), Limit: 50})
			return err
		},
		"a page of a kind": func() error {
			_, _, err := store.Entries(t.Context(), "u", user.EntryQuery{Kind: user.KindRefund, Limit: 50})
			return err
		},
		"the usage of an hour": func() error {
			_, err := store.Usage(t.Context(), "u", user.UsageDays{Days: []time.Time{begin}, Bounds: []time.Time{begin, begin.Add(time.Hour)}})
			return err
		},
	} {
		before := read()
		for range 10 { // from the sixth time on with a plan for whatever is asked for
			if err := ask(); err != nil {
				t.Fatal(err)
			}
		}
		end()
		if n := (read() - before) / 10; n > 300 || n == 0 { // 100,000 entries and their index are in more than 1000
			t.Errorf("%s: %d buffers", name, n)
		}
	}
}
