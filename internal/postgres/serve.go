package postgres

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// update is one call of Store.Update on its way.
type update = call[change, user.Change]

// change is what an update asks for.
type change struct {
	ref   user.Ref
	apply func(user.State) (user.Change, error)
	// uncertain is true once it was part of a commit of which the outcome is not known.
	uncertain bool
}

// countsOnce reports whether the change may be run again when it is not known whether it was committed: its key, or the
// reservation it closes, makes it count once.
func (c change) countsOnce() bool { return c.ref.IdempotencyKey != "" || c.ref.ReservationID != "" }

// lookup is one call of Store.Account on its way.
type lookup = call[string, user.Account]

// serveLookups reads the accounts of a batch with one statement.
func (s *Store) serveLookups(batch []*lookup) {
	found := make(map[string]user.Account, len(batch))
	ids := make([]string, len(batch))
	for i, l := range batch {
		ids[i] = l.request
	}
	err := s.work(context.WithoutCancel(batch[0].ctx), func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectAccountsByID, ids)
		if err != nil {
			return err
		}
		var a user.Account
		_, err = pgx.ForEachRow(rows, append(userdataFields(&a), sideRowFields(&a)...), func() error {
			found[a.ID] = a
			a = user.Account{}
			return nil
		})
		return err
	})
	for _, l := range batch {
		a, ok := found[l.request]
		switch {
		case err != nil:
			l.finish(user.Account{}, err)
		case !ok:
			l.finish(user.Account{}, user.ErrUserNotFound)
		default:
			l.finish(a, nil)
		}
	}
}

// serveBatch commits a batch and finishes each of its updates. What fails for a reason of the data is halved until the
// update that is to blame stands alone, so that it fails none of the others: for each such one at most two
// transactions per halving more.
func (s *Store) serveBatch(batch []*update) {
	s.observer.Group(len(batch), time.Since(batch[0].queued))
	together := make([]*update, 0, len(batch))
	var aside []*update
	for _, u := range batch {
		if s.heldUp.has(u.request.ref.AccountID) {
			aside = append(aside, u)
		} else {
			together = append(together, u)
		}
	}
	for _, m := range newGroup(aside).accounts {
		s.serveAside(m.id, m.updates)
	}
	if len(together) > 0 {
		ctx, end := s.span(together)
		defer end()
		s.serveAgain(ctx, together, hurried)
	}
}

// span begins the span of the transaction that serves a batch, where there are any.
func (s *Store) span(batch []*update) (spanned context.Context, end func()) {
	if s.groupSpan == nil {
		return context.Background(), func() {}
	}
	callers := make([]context.Context, len(batch))
	for i, u := range batch {
		callers[i] = u.ctx
	}
	return s.groupSpan(callers)
}

// lockWait is how long a transaction waits for a row that somebody else keeps locked.
type lockWait int

const (
	// hurried is for groups in a lane, where others would wait with it.
	hurried lockWait = iota
	// patient is for one account aside: as long as the connection's lock_timeout.
	patient
)

// hurriedLockTimeout is long enough for every transaction of ours, which between its lock and its end waits for nothing but
// the disk and, where there is one, the standby.
const hurriedLockTimeout = 100 * time.Millisecond

func (s *Store) serveAgain(ctx context.Context, batch []*update, wait lockWait) {
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		return commitGroup(ctx, conn, batch, s.begin[wait])
	})
	var known *user.Error
	switch {
	case err == nil:
	case errors.Is(err, errOutcomeUnknown):
		// Those that count once are run once more: they find what they have written, or write it now. Not when the commit
		// waited in vain: the next would, too.
		inVain := errors.Is(err, errUnconfirmed) || errors.Is(err, context.DeadlineExceeded)
		var again []*update
		for _, u := range batch {
			if u.request.uncertain || inVain || !u.request.countsOnce() {
				fail([]*update{u}, err)
				continue
			}
			u.request.uncertain = true
			again = append(again, u)
		}
		if len(again) > 0 {
			s.serveAgain(ctx, again, wait)
		}
	case lockTimeout(err) && wait == hurried:
		s.observer.Retry()
		accounts := newGroup(batch).accounts
		if len(accounts) == 1 {
			s.serveAside(accounts[0].id, batch)
			return
		}
		// Each by itself, to find out whose row it is.
		var serving sync.WaitGroup
		for _, m := range accounts {
			serving.Go(func() { s.serveAgain(ctx, m.updates, hurried) })
		}
		serving.Wait()
	case len(batch) > 1 && !errors.As(err, &known):
		s.observer.Retry()
		s.serveAgain(ctx, batch[:len(batch)/2], wait)
		s.serveAgain(ctx, batch[len(batch)/2:], wait)
	default:
		fail(batch, err)
	}
}

// fail finishes updates that no transaction could serve. Of one that an earlier transaction may have done nobody can say
// that nothing was done.
func fail(updates []*update, err error) {
	for _, u := range updates {
		if u.request.uncertain {
			u.finish(user.Change{}, user.ErrDatabaseUnavailable.Because(err))
		} else {
			u.finish(user.Change{}, err)
		}
	}
}

// lockTimeout reports whether somebody else held the row of an account for too long.
func lockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == sqlLockNotAvailable
}

// commitGroup runs a batch in one transaction, which the statements begin. It finishes the updates only when it returns
// nil; otherwise nothing was done, unless the error is errOutcomeUnknown.
func commitGroup(ctx context.Context, conn *pgxpool.Conn, batch []*update, begin []string) error {
	g := newGroup(batch)
	err := func() error {
		if err := g.lock(ctx, conn, begin); err != nil {
			return notDone(conn, err)
		}
		for needed := g.run(); len(needed) > 0; needed = g.run() {
			if err := g.loadHolds(ctx, conn, needed); err != nil {
				return notDone(conn, err)
			}
		}
		return g.commit(ctx, conn)
	}()
	if err != nil {
		return err
	}
	for _, a := range g.accounts {
		for i, u := range a.updates {
			u.finish(u.answer, a.outcomes[i])
		}
	}
	return nil
}

// validText reports whether PostgreSQL takes s as text: one value that it refuses would fail a whole group.
func validText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
