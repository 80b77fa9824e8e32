package postgres

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A batch does not wait for a row that another session has locked, so that it costs the other accounts nothing. It
// passes the account's updates on to a batcher of their own, Store.contended, whose groups are accounts: one transaction
// per account waits for the row, and later updates queue behind it until none are left.
//
// Only where rows are locked that soon come free, as by other replicas for the time of a commit, do batches wait for
// them: a transaction for each such account would cost more. When one does not come free they skip locked rows again.

// rowLocking says how a transaction locks the rows of its accounts.
type rowLocking int

const (
	// skipLocked leaves locked rows out.
	skipLocked rowLocking = iota
	// failFast waits for locked rows up to failFastLockTimeout.
	failFast
	// waitForLock waits for locked rows up to maxLockTimeout.
	waitForLock
)

// batchLocking returns how batches lock their rows at present.
func (s *Store) batchLocking() rowLocking {
	if s.rowFreed.happened() && !s.rowStuck.happened() {
		return failFast
	}
	return skipLocked
}

// noteWait remembers how a transaction that may have waited for rows ended.
func (s *Store) noteWait(locking rowLocking, err error) {
	switch {
	case lockTimeout(err):
		s.rowStuck.mark()
	case err == nil && locking == waitForLock:
		s.rowFreed.mark()
	}
}

// recently tells whether something happened in the last few seconds.
type recently struct{ at atomic.Pointer[time.Time] }

func (r *recently) mark() {
	now := time.Now()
	r.at.Store(&now)
}

func (r *recently) happened() bool {
	at := r.at.Load()
	return at != nil && time.Since(*at) < 5*time.Second
}

// removeLocked removes the accounts whose rows are locked from a group that took only the free ones, and returns them.
// Of an account without a row it cannot be told whether the row is locked or does not exist, so it is read once more
// without a lock. A row that came or went in between is waited for or not found, and both are right.
func (g *group) removeLocked(ctx context.Context, conn *pgxpool.Conn) (locked []*accountGroup, err error) {
	var missing []string
	for _, a := range g.accounts {
		if !a.found {
			missing = append(missing, a.id)
		}
	}
	if missing == nil {
		return nil, nil
	}
	rows, err := conn.Query(ctx, selectExistingIDs, missing)
	if err != nil {
		return nil, err
	}
	existing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	isLocked := func(a *accountGroup) bool { return !a.found && slices.Contains(existing, a.id) }
	for _, a := range g.accounts {
		if isLocked(a) {
			locked = append(locked, a)
		}
	}
	g.accounts = slices.DeleteFunc(g.accounts, isLocked)
	return locked, nil
}

// leaveToWait passes on the accounts that a group has left out.
func (s *Store) leaveToWait(locked []*accountGroup) {
	if len(locked) > 0 {
		s.observer.Retry()
	}
	for _, a := range locked {
		for _, u := range a.updates {
			s.waitForRow(u)
		}
	}
}

// waitForRow passes an update on to where it waits for its account's row.
func (s *Store) waitForRow(u *update) {
	if err := s.contended.Forward(u); err != nil {
		fail([]*update{u}, translate(err))
	}
}

// commitContended serves updates of one contended account.
func (s *Store) commitContended(updates []*update, _ func()) {
	ctx, end := s.span(updates)
	defer end()
	s.commitWithRetry(ctx, updates, waitForLock, nil)
}
