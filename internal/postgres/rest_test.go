package postgres_test

import (
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

func TestStore_ConnectionsForReadsRestWhileUpdatesWait(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store := open(t, url, func(o *postgres.Options) { o.ReadConns = 1 })
	db, rival := connect(t, url), connect(t, url)
	create(t, store, "u", 100)
	read := func() error {
		_, err := store.Reservations(t.Context(), "u", user.ReservationQuery{Limit: 10})
		return err
	}
	if rest := store.RestOfReads(time.Second); rest != 0 {
		t.Errorf("it would rest for %s while no update waits", rest)
	}

	openGate := db.Gate()
	consume := func() <-chan error {
		return background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
			return err
		})
	}
	updates := []<-chan error{consume()}
	db.AwaitGated()
	updates = append(updates, consume())
	localpgtest.Await(t, "the second update waits", func() bool { return store.Queued() == 1 })
	if rest := store.RestOfReads(time.Hour); rest != 500*time.Millisecond {
		t.Errorf("it would rest for %s after an hour", rest)
	}
	var used time.Duration
	var unlocked time.Time
	for used == 0 {
		rival.Exec("BEGIN; LOCK TABLE viralpilot.reservations")
		done := background(t, read)
		db.awaitLockWaiters(1)
		begin := time.Now()
		rival.Exec("SELECT pg_sleep(0.02)")
		unlocked = time.Now()
		rival.Exec("COMMIT")
		if err := <-done; err == nil { // else the lock was waited for in vain
			used = unlocked.Sub(begin)
		}
	}
	if err := insist(read); err != nil {
		t.Fatal(err)
	}
	if rested := time.Since(unlocked); rested < min(8*used, 500*time.Millisecond) {
		t.Errorf("after %s of use the connection has rested for less than %s", used, rested)
	}
	openGate()
	for _, done := range updates {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
