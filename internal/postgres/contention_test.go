package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestStoreUpdate_LockedRow(t *testing.T) {
	t.Parallel()
	update := func(t *testing.T, store *postgres.Store, id, key string) <-chan error {
		return background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: id, IdempotencyKey: key}, spend(key))
			return err
		})
	}

	t.Run("costs the accounts of its batch nothing", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		store := open(t, url)
		db, rival := connect(t, url), connect(t, url)
		create(t, store, "u", 100)
		for i := range 20 {
			create(t, store, fmt.Sprint("other-", i), 100)
		}
		try := func(id string) error {
			create(t, store, id, 100)
			unlock := rival.lock(id)
			db.Exec("DROP TABLE IF EXISTS gate; DROP FUNCTION IF EXISTS pass_gate CASCADE")
			pass := db.Gate()
			held := update(t, store, "u", "")
			db.AwaitGated()
			locked := update(t, store, id, "")
			missing := update(t, store, "missing", "")
			var others []<-chan error
			for i := range 20 {
				others = append(others, update(t, store, fmt.Sprint("other-", i), ""))
			}
			pass()
			for _, done := range append(others, held) {
				if err := <-done; err != nil {
					t.Errorf("another account: %v", err)
				}
			}
			wantError(t, <-missing, user.ErrUserNotFound)
			select {
			case err := <-locked: // after it has waited for as long as it may
				wantError(t, err, user.ErrOverloaded)
				unlock()
				return err
			default:
			}
			unlock()
			return <-locked
		}
		withAccountsUntilInTime(t, try)
	})

	t.Run("keeps its updates in order", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		store := open(t, url)
		db, rival := connect(t, url), connect(t, url)
		try := func(id string) error {
			create(t, store, id, 100)
			unlock := rival.lock(id)
			var done []<-chan error
			var want []string
			for i := range 10 {
				want = append(want, fmt.Sprint("key-", i))
				done = append(done, update(t, store, id, want[i]))
				if i == 0 {
					db.awaitLockWaiters(1)
				}
				localpgtest.Await(t, "the call waits for the row, or the first has waited for too long", func() bool {
					return store.Contended() == i || len(done[0]) > 0
				})
			}
			unlock()
			var err error
			for _, d := range done {
				if e := <-d; e != nil {
					err = e
				}
			}
			if err != nil {
				return err
			}
			if got := db.lines("SELECT idempotency_key FROM viralpilot.ledger WHERE kind = 'consume' AND cognito_user_id = $1 ORDER BY entry_id", id); got != strings.Join(want, "\n") {
				t.Errorf("in the ledger are\n%s", got)
			}
			return nil
		}
		withAccountsUntilInTime(t, try)
	})

	t.Run("does not refuse more accounts than connections may wait", func(t *testing.T) {
		t.Parallel()
		url := localpgtest.New(t)
		store := open(t, url) // two of its four connections
		db, rival := connect(t, url), connect(t, url)
		create(t, store, "other", 100)
		try := func(id string) error {
			ids := make([]string, 5)
			for i := range ids {
				ids[i] = fmt.Sprint(id, "-", i)
				create(t, store, ids[i], 100)
			}
			unlock := rival.lock(ids...)
			var done []<-chan error
			for _, id := range ids {
				done = append(done, update(t, store, id, ""))
			}
			db.awaitLockWaiters(2)
			localpgtest.Await(t, "the others wait for a connection, or one has waited for too long", func() bool {
				return store.Contended() == 3 || slices.ContainsFunc(done, func(d <-chan error) bool { return len(d) > 0 })
			})
			if err := <-update(t, store, "other", ""); err != nil {
				t.Errorf("another account: %v", err)
			}
			unlock()
			var err error
			for _, d := range done {
				if e := <-d; e != nil {
					err = e
				}
			}
			return err
		}
		withAccountsUntilInTime(t, try)
	})
}
