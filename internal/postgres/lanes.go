package postgres

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// An update waits until its lane takes it; from then on it is finished whoever still wants to know.
const (
	waiting int32 = iota
	taken
	dropped
)

// update is one call of Store.Update on its way.
type update struct {
	// ctx is the caller's. It says in which trace the update belongs; what ends it, do minds.
	ctx   context.Context
	ref   user.Ref
	apply func(user.State) (user.Change, error)
	// queued is when it began to wait.
	queued time.Time
	state  atomic.Int32
	// change and err are the outcome once done is closed.
	change user.Change
	err    error
	done   chan struct{}
}

func (u *update) finish(change user.Change, err error) {
	u.change, u.err = change, err
	close(u.done)
}

// repeatable reports whether the update may be run again when it is not known whether it was committed: its key, or
// the reservation it closes, makes it count once.
func (u *update) repeatable() bool { return u.ref.IdempotencyKey != "" || u.ref.ReservationID != "" }

// lanes serve updates in groups: each takes what waits for it as it is, without a delay, and commits it in one
// transaction, while the next group gathers. An account is always in the same lane, which keeps its updates in order.
type lanes struct {
	queues   []chan *update
	batchMax int
	// patience is the longest that an update waits to be taken.
	patience time.Duration
	serve    func([]*update)
	stop     chan struct{}
	running  sync.WaitGroup
	closing  sync.Once
}

// laneQueue is how many updates may wait in a lane; more are refused at once.
const laneQueue = 1024

func startLanes(n, batchMax int, patience time.Duration, serve func([]*update)) *lanes {
	l := &lanes{queues: make([]chan *update, n), batchMax: batchMax, patience: patience, serve: serve, stop: make(chan struct{})}
	for i := range l.queues {
		queue := make(chan *update, laneQueue)
		l.queues[i] = queue
		l.running.Go(func() { l.run(queue) })
	}
	return l
}

func (l *lanes) run(queue chan *update) {
	batch := make([]*update, 0, l.batchMax)
	for {
		select {
		case <-l.stop:
			return
		case u := <-queue:
			batch = take(batch[:0], u)
		}
	gather:
		for len(batch) < l.batchMax {
			select {
			case u := <-queue:
				batch = take(batch, u)
			default:
				break gather
			}
		}
		if len(batch) > 0 {
			l.serve(batch)
		}
	}
}

// take adds u to the batch unless its caller has gone.
func take(batch []*update, u *update) []*update {
	if u.state.CompareAndSwap(waiting, taken) {
		return append(batch, u)
	}
	return batch
}

// close waits for the groups under way. Updates that still wait are refused.
func (l *lanes) close() {
	l.closing.Do(func() { close(l.stop) })
	l.running.Wait()
}

// do sends u on its way and waits for the outcome.
func (l *lanes) do(ctx context.Context, u *update) (user.Change, error) {
	if err := ctx.Err(); err != nil {
		return user.Change{}, user.ErrOverloaded.Because(err)
	}
	hash := fnv.New32a()
	hash.Write([]byte(u.ref.AccountID))
	select {
	case l.queues[hash.Sum32()%uint32(len(l.queues))] <- u:
	default:
		return user.Change{}, user.ErrOverloaded
	}
	ctx, cancel := context.WithTimeout(ctx, l.patience)
	defer cancel()
	var gone error
	select {
	case <-u.done:
		return u.change, u.err
	case <-ctx.Done():
		gone = ctx.Err()
	case <-l.stop:
		gone = errors.New("the store is closed")
	}
	if u.state.CompareAndSwap(waiting, dropped) {
		return user.Change{}, user.ErrOverloaded.Because(gone)
	}
	<-u.done
	return u.change, u.err
}

// errOutcomeUnknown says that the connection was lost between COMMIT and its answer.
var errOutcomeUnknown = errors.New("the connection was lost during the commit")

// serveBatch commits a batch and finishes each of its updates. What fails for a reason of the data is halved until the
// update that is to blame stands alone, so that it fails none of the others: for each such one at most two
// transactions per halving more.
func (s *Store) serveBatch(batch []*update) {
	s.observer.Group(len(batch), time.Since(batch[0].queued))
	ctx := context.Background()
	if s.groupSpan != nil {
		callers := make([]context.Context, len(batch))
		for i, u := range batch {
			callers[i] = u.ctx
		}
		spanned, end := s.groupSpan(callers)
		defer end()
		ctx = spanned
	}
	s.serveAgain(ctx, batch, true)
}

func (s *Store) serveAgain(ctx context.Context, batch []*update, repeat bool) {
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		return commitGroup(ctx, conn, batch)
	})
	var known *user.Error
	switch {
	case err == nil:
	case errors.Is(err, errOutcomeUnknown):
		// Those that count once are run again: they find what they have written, or write it now.
		var again []*update
		for _, u := range batch {
			if repeat && u.repeatable() {
				again = append(again, u)
			} else {
				u.finish(user.Change{}, user.ErrDatabaseUnavailable.Because(err))
			}
		}
		if len(again) > 0 {
			s.serveAgain(ctx, again, false)
		}
	case lockTimeout(err) && len(newGroup(batch).accounts) > 1:
		// Whoever else holds one of the accounts holds up the others only this once: each goes by itself now.
		s.observer.Retry()
		var serving sync.WaitGroup
		for _, m := range newGroup(batch).accounts {
			serving.Go(func() { s.serveAgain(ctx, m.updates, repeat) })
		}
		serving.Wait()
	case len(batch) > 1 && !errors.As(err, &known):
		s.observer.Retry()
		s.serveAgain(ctx, batch[:len(batch)/2], repeat)
		s.serveAgain(ctx, batch[len(batch)/2:], repeat)
	default:
		for _, u := range batch {
			u.finish(user.Change{}, err)
		}
	}
}

// lockTimeout reports whether somebody else held the row of an account for too long.
func lockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == sqlLockNotAvailable
}

// commitGroup runs a batch in one transaction. It finishes the updates only when it returns nil; otherwise nothing
// was done, unless the error is errOutcomeUnknown.
func commitGroup(ctx context.Context, conn *pgxpool.Conn, batch []*update) error {
	g := newGroup(batch)
	err := func() error {
		if err := g.lock(ctx, conn); err != nil {
			return notDone(err)
		}
		for needed := g.run(); len(needed) > 0; needed = g.run() {
			if err := g.loadHolds(ctx, conn, needed); err != nil {
				return notDone(err)
			}
		}
		return g.commit(ctx, conn)
	}()
	if err != nil {
		return err // the pool closes a connection that comes back in a transaction
	}
	for _, a := range g.accounts {
		for i, u := range a.updates {
			u.finish(u.change, a.outcomes[i])
		}
	}
	return nil
}

// validText reports whether PostgreSQL takes s as text: one value that it refuses would fail a whole group.
func validText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// notDoneError marks a connection that was lost before anything was committed.
type notDoneError struct{ error }

func (e notDoneError) Unwrap() error { return e.error }

// SafeToRetry makes pgconn.SafeToRetry say so.
func (notDoneError) SafeToRetry() bool { return true }

// notDone marks err as repeatable when it is one of the connection: PostgreSQL rolls back what it was told before.
func notDone(err error) error {
	var pg *pgconn.PgError
	if err == nil || errors.As(err, &pg) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return notDoneError{fmt.Errorf("before the commit: %w", err)}
}
