package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/batch"
	"github.com/viralpilot/user-management/internal/user"
)

// update is one call of Store.Update on its way.
type update = batch.Request[*change, user.Change]

// change is what an update asks for.
type change struct {
	ref   user.Ref
	apply func(user.State) (user.Change, error)
	// outcomeUnknown is true once the update was part of a commit of which the outcome is not known.
	outcomeUnknown bool
}

// idempotent reports whether the change counts once however often it is run, because of its key or of the reservation
// that it closes.
func (c *change) idempotent() bool { return c.ref.IdempotencyKey != "" || c.ref.ReservationID != "" }

// outcome is what the caller is told when err ended the update. An update that an earlier transaction may have
// committed must not be reported as not done.
func (c *change) outcome(err error) error {
	if errors.Is(err, batch.ErrUnanswered) || c.outcomeUnknown && user.OutcomeOf(err) == user.OutcomeNone {
		return user.ErrOutcomeUnknown.Because(err)
	}
	return err
}

// commitBatch serves a batch of updates with one transaction, except for those of accounts that are contended. It calls
// release when the next batch, of other accounts, may begin: see leadOfCommit.
func (s *Store) commitBatch(updates []*update, release func()) {
	if s.singly {
		release()
	}
	defer time.AfterFunc(leadOfBatch, release).Stop()
	s.observer.Group(len(updates), time.Since(updates[0].Queued()))
	free := make([]*update, 0, len(updates))
	for _, u := range updates {
		if s.contended.Pending(u.Payload.ref.AccountID) {
			s.waitForRow(u)
		} else {
			free = append(free, u)
		}
	}
	if len(free) > 0 {
		ctx, end := s.span(free)
		defer end()
		s.commitWithRetry(ctx, free, s.batchLocking(), release)
	}
}

// commitWithRetry commits updates and finishes each of them.
//
// It is the one place where a batch falls apart. Accounts whose rows are locked leave it for contention.go; if it has
// waited for them in vain, it is run again without. If a statement takes too long, all accounts leave it; where there is
// only one, all of its updates fail, also those that would not take long: each half of them would have to be given the
// same time again, while more of them queue behind. A batch that fails because of its data is bisected until the offending
// update is alone; each bad update costs at most two extra transactions per level. After a commit of unknown outcome the
// idempotent updates are tried once more. Any other failure is that of all updates.
func (s *Store) commitWithRetry(ctx context.Context, updates []*update, locking rowLocking, release func()) {
	var g *group
	var locked []*accountGroup
	err := s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (err error) {
		g = newGroup(updates)
		g.clock, g.maxHolds, g.release = s.clock, s.maxHolds, release
		locked, err = s.runTransaction(ctx, conn, g, locking)
		return err
	})
	s.noteWait(locking, err)
	var known *user.Error
	switch {
	case err == nil:
		g.finish()
		s.leaveToWait(locked)
	case errors.Is(err, errOutcomeUnknown):
		s.leaveToWait(locked)
		s.retryUnknown(ctx, g, locking, err)
	case lockTimeout(err) && locking == failFast:
		s.observer.Retry()
		s.commitWithRetry(ctx, updates, skipLocked, release)
	case statementTimeout(err) && len(g.accounts) > 1:
		// One of them takes too long. Each account goes on by itself, where it holds up no other.
		s.leaveToWait(append(g.accounts, locked...))
	case len(updates) > 1 && !errors.As(err, &known):
		s.observer.Retry()
		s.commitWithRetry(ctx, updates[:len(updates)/2], locking, release)
		s.commitWithRetry(ctx, updates[len(updates)/2:], locking, release)
	case lockTimeout(err) && locking == waitForLock:
		// Who came later has waited for the same row.
		fail(updates, err)
		fail(s.contended.Take(updates[0].Payload.ref.AccountID), err)
	default:
		fail(updates, err)
	}
}

// retryUnknown serves the updates of a group whose commit ended with err and may have been done. It retries idempotent
// updates once: they either find their earlier write or make it now. After a time-out it does not, since the retry
// would time out as well.
func (s *Store) retryUnknown(ctx context.Context, g *group, locking rowLocking, err error) {
	futile := errors.Is(err, errUnconfirmed) || errors.Is(err, context.DeadlineExceeded)
	var again []*update
	for _, a := range g.accounts {
		for _, u := range a.updates {
			if u.Payload.outcomeUnknown || futile || !u.Payload.idempotent() {
				fail([]*update{u}, err)
				continue
			}
			u.Payload.outcomeUnknown = true
			again = append(again, u)
		}
	}
	if len(again) > 0 {
		s.commitWithRetry(ctx, again, locking, g.release)
	}
}

// fail finishes updates that no transaction could serve.
func fail(updates []*update, err error) {
	for _, u := range updates {
		if u.Payload.outcomeUnknown {
			u.Fail(user.ErrOutcomeUnknown.Because(err))
		} else {
			u.Fail(err)
		}
	}
}

// span begins the span of the transaction that serves updates, if spans are wanted.
func (s *Store) span(updates []*update) (spanned context.Context, end func()) {
	if s.groupSpan == nil {
		return context.Background(), func() {}
	}
	callers := make([]context.Context, len(updates))
	for i, u := range updates {
		callers[i] = u.Context()
	}
	return s.groupSpan(callers)
}

// runTransaction serves the group with one transaction. It returns the accounts that skipLocked left out, and removed
// from the group, because their rows are locked. Unless the error is nil or errOutcomeUnknown, nothing was done.
func (s *Store) runTransaction(ctx context.Context, conn *pgxpool.Conn, g *group, locking rowLocking) (locked []*accountGroup, err error) {
	begin, lockRows := s.session.begin, lockUserdata
	switch locking {
	case failFast:
		begin = s.session.beginFailFast
	case skipLocked:
		lockRows = lockFreeUserdata
	}
	if err := g.lockAndLoad(ctx, conn, begin, lockRows); err != nil {
		return nil, notDone(conn, err)
	}
	s.noteClock(g.now)
	if locking == skipLocked {
		if locked, err = g.removeLocked(ctx, conn); err != nil {
			return nil, notDone(conn, err)
		}
	}
	g.runRules()
	return locked, g.commit(ctx, conn)
}

// finish answers the updates of a group that was committed.
func (g *group) finish() {
	for _, a := range g.accounts {
		for i, u := range a.updates {
			u.Finish(a.outcomes[i])
		}
	}
}

// endTransaction sends the batch and ends the transaction with it, by "commit" or "rollback". Unless it returns nil or
// errOutcomeUnknown, nothing was done.
//
// A transaction that is the last that a batch waits for calls release, unless it is nil, once it has waited for the
// answer for leadOfCommit.
func endTransaction(ctx context.Context, conn *pgxpool.Conn, b *pgx.Batch, how string, release func()) error {
	clearUnconfirmed(conn)
	var tag pgconn.CommandTag
	last := false // the answer that is read is the one to how
	b.Queue(how).Fn = func(answers pgx.BatchResults) (err error) {
		last = true
		tag, err = answers.Exec()
		return err
	}
	answers := conn.SendBatch(ctx, b)
	if release != nil {
		defer time.AfterFunc(leadOfCommit, release).Stop()
	}
	err := answers.Close()
	var pg *pgconn.PgError
	var unsent pgx.ErrPreprocessingBatch
	switch {
	case err == nil && tag.String() != strings.ToUpper(how):
		return fmt.Errorf("%s answered %s", how, tag)
	case err == nil:
		return checkUnconfirmed(conn)
	case errors.As(err, &unsent), pgconn.SafeToRetry(err):
		return err
	case errors.As(err, &pg) && !sessionLost(pg) && !(last && mayHaveCommitted(pg)):
		return err
	case how == "rollback":
		return notDone(conn, err)
	}
	return fmt.Errorf("%w: %w", errOutcomeUnknown, err)
}

// sessionLost reports whether an error ends the session, so that it is not the answer to what was sent last. PgBouncer
// reports a lost server without SeverityUnlocalized.
func sessionLost(pg *pgconn.PgError) bool {
	severity := cmp.Or(pg.SeverityUnlocalized, pg.Severity)
	return severity == "FATAL" || severity == "PANIC"
}

// validText reports whether PostgreSQL takes s as text: one value that it refuses would fail a whole group.
func validText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
