package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// spent gives an account with 1,000,000 top-ups a ledger of so many consumes, each with all that may tell whose it is, and
// as many closed reservations.
func (d database) spent(id string, n int) {
	d.T.Helper()
	for _, sql := range []string{
		`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged, top_ups_amount,
				period, actor, metadata, idempotency_key, created_at)
			SELECT $1, 'consume', -1, 1000000 - i, i, 1, -1, 24323, $1, '{"name": "ann"}', 'ann-' || i, '2026-11-24T10:00:00Z'
			FROM generate_series(1, $2::integer) i`,
		`UPDATE viralpilot.userdata SET tokens_remaining = 1000000 - $2::integer, tokens_used_this_month = $2 WHERE cognito_user_id = $1`,
		`UPDATE viralpilot.account_state SET top_ups = 1000000 - $2::integer, top_ups_used = $2 WHERE cognito_user_id = $1`,
		`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, period, metadata, created_at, expires_at)
			SELECT $1, gen_random_uuid(), 'released', 0, 24323, '{"name": "ann"}', '2026-11-24T10:00:00Z', '2026-11-24T10:00:00Z'
			FROM generate_series(1, $2::integer) i`,
	} {
		d.Exec(sql, id, n)
	}
}

// hurried is a clock on which every look is an hour later, so that no erase is waited for.
func hurried() func() time.Time {
	at := now
	return func() time.Time {
		at = at.Add(time.Hour)
		return at
	}
}

func TestMoveErased_GoesOnInParts(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, other := open(t, url), open(t, url)
	db, s := connect(t, url), service(t, store)
	username := "Ann"
	if _, err := s.Create(t.Context(), user.NewAccount{ID: "ann", Username: &username}); err != nil {
		t.Fatal(err)
	}
	do(t, s, "ann", user.AddTokens{Tokens: 1000000})
	db.spent("ann", 12000)
	create(t, store, "somebody", 10)
	do(t, s, "somebody", user.Consume{Tokens: 1, Meta: user.Meta{Actor: "cognito:ann"}})

	if done, err := serviceAt(t, store, hurried()).Erase(t.Context(), "ann", ""); err != nil || done {
		t.Fatalf("done %t, %v, want an erase that takes longer", done, err)
	}
	parts := 0
	for done := false; !done; parts++ {
		wantVerified(t, s)
		if orphans := db.lines(`SELECT count(*)::text FROM viralpilot.ledger WHERE cognito_user_id NOT IN (SELECT cognito_user_id FROM viralpilot.userdata)`); orphans != "0" {
			t.Fatalf("%s entries have no account", orphans)
		}
		_, err := s.Status(t.Context(), "ann")
		wantError(t, err, user.ErrBeingErased)
		_, err = s.Do(t.Context(), "ann", user.AddTokens{Tokens: 1})
		wantError(t, err, user.ErrBeingErased)
		if list, _, err := s.Accounts(t.Context(), user.AccountQuery{Limit: 10}); err != nil || len(list) != 1 {
			t.Fatalf("%d accounts are listed, %v", len(list), err)
		}
		if done, err = other.MoveErased(t.Context(), "ann"); err != nil { // another replica goes on
			t.Fatal(err)
		}
	}
	if parts < 5 {
		t.Errorf("12,000 entries and reservations moved in %d parts", parts)
	}
	wantVerified(t, s)
	if content := db.content(); strings.Contains(strings.ToLower(content), "ann") {
		t.Error("something of the person is left")
	}
	_, err := s.Status(t.Context(), "ann")
	wantError(t, err, user.ErrUserNotFound)
	if done, err := other.MoveErased(t.Context(), "ann"); err != nil || !done {
		t.Errorf("moved once more: %t, %v", done, err)
	}

	pseudonym := db.lines(`SELECT cognito_user_id FROM viralpilot.account_state WHERE erased`)
	if got := db.lines(`SELECT count(*)::text FROM viralpilot.ledger WHERE cognito_user_id = $1`, pseudonym); got != "12003" {
		t.Errorf("the pseudonym has the ledger %s", got)
	}
	_, err = s.Status(t.Context(), pseudonym)
	wantError(t, err, user.ErrUserNotFound)
	_, err = s.GetOrCreate(t.Context(), pseudonym)
	wantError(t, err, user.ErrUserNotFound)
	_, _, err = s.Put(t.Context(), pseudonym, user.PutProfile{})
	wantError(t, err, user.ErrUserNotFound)
	_, err = s.Do(t.Context(), pseudonym, user.AddTokens{Tokens: 1})
	wantError(t, err, user.ErrUserNotFound)
	if list, _, err := s.Accounts(t.Context(), user.AccountQuery{Limit: 10, Text: "erased-"}); err != nil || len(list) != 0 {
		t.Errorf("the list has the pseudonym: %v, %v", list, err)
	}
}

func TestFinishErases_AfterACrash(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	for _, id := range []string{"ann", "bob"} {
		create(t, store, id, 1000000)
		db.spent(id, 6000)
		if done, err := serviceAt(t, store, hurried()).Erase(t.Context(), id, ""); err != nil || done {
			t.Fatalf("done %t, %v", done, err)
		}
	}
	store.Close()

	replicas := []*postgres.Store{open(t, url), open(t, url)}
	var finishing sync.WaitGroup
	for _, replica := range replicas {
		s := service(t, replica)
		finishing.Go(func() {
			if err := insist(func() error { return s.FinishErases(t.Context()) }); err != nil {
				t.Error(err)
			}
		})
	}
	finishing.Wait()
	s := service(t, replicas[0])
	for _, id := range []string{"ann", "bob"} {
		if _, err := s.Status(t.Context(), id); !errors.Is(err, user.ErrUserNotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
	wantVerified(t, s)
	if got := db.lines(`SELECT count(*)::text FROM viralpilot.ledger WHERE kind = 'consume'`); got != fmt.Sprint(2*6000) {
		t.Errorf("%s entries of 12000", got)
	}
}

func TestErase_AgainWhileItGoesOn(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "ann", 1000000)
	db.spent("ann", 11000)
	for range 3 {
		if done, err := serviceAt(t, store, hurried()).Erase(t.Context(), "ann", ""); err != nil || done {
			t.Fatalf("done %t, %v", done, err)
		}
		if _, err := store.MoveErased(t.Context(), "ann"); err != nil {
			t.Fatal(err)
		}
	}
	if done, err := serviceAt(t, store, time.Now).Erase(t.Context(), "ann", ""); err != nil || !done {
		t.Fatalf("done %t, %v", done, err)
	}
	if got := db.lines(`SELECT count(*)::text FROM viralpilot.userdata`); got != "1" {
		t.Errorf("%s accounts, want one pseudonym", got)
	}
	_, err := serviceAt(t, store, hurried()).Erase(t.Context(), "ann", "")
	wantError(t, err, user.ErrUserNotFound)
}

func TestMoveErased_AfterARollBack(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	create(t, store, "ann", 1000000)
	db.spent("ann", 6000)
	if done, err := serviceAt(t, store, hurried()).Erase(t.Context(), "ann", ""); err != nil || done {
		t.Fatalf("done %t, %v", done, err)
	}
	db.Exec("UPDATE viralpilot.account_state SET granted_period = NULL")
	if err := service(t, store).FinishErases(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := service(t, store).Status(t.Context(), "ann")
	wantError(t, err, user.ErrUserNotFound)
}

func TestMoveErased_WhereAPartTakesTooLong(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.StatementTimeout = 500 * time.Millisecond })
	db := connect(t, url)
	create(t, store, "ann", 1000000)
	db.spent("ann", 1000)
	db.Exec(`CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END';
		CREATE TRIGGER linger BEFORE INSERT ON viralpilot.ledger FOR EACH ROW WHEN (NEW.kind = 'consume') EXECUTE FUNCTION linger()`)
	s := service(t, store)
	if done, err := serviceAt(t, store, hurried()).Erase(t.Context(), "ann", ""); err != nil || done {
		t.Fatalf("done %t, %v", done, err)
	}
	if err := s.FinishErases(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := s.Status(t.Context(), "ann")
	wantError(t, err, user.ErrUserNotFound)
	wantVerified(t, s)
}
