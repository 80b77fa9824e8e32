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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// A call waits until its lane takes it; from then on it is finished whoever still wants to know.
const (
	waiting int32 = iota
	taken
	dropped
)

// call is a request on its way through a lane, and its answer or error once done is closed.
type call[Q, A any] struct {
	// ctx is the caller's. It says in which trace the call belongs; what ends it, do minds.
	ctx     context.Context
	request Q
	// queued is when it began to wait.
	queued time.Time
	state  atomic.Int32
	answer A
	err    error
	done   chan struct{}
}

func (c *call[Q, A]) finish(answer A, err error) {
	c.answer, c.err = answer, err
	close(c.done)
}

// lanes serve calls in groups: each takes what waits for it as it is, without a delay, and serves it together, while
// the next group gathers. Calls about one account are always in the same lane, which keeps them in order.
type lanes[Q, A any] struct {
	queues   []chan *call[Q, A]
	batchMax int
	// patience is the longest that a call waits to be taken.
	patience time.Duration
	// serve finishes every call of the batch.
	serve   func([]*call[Q, A])
	stop    chan struct{}
	running sync.WaitGroup
	closing sync.Once
}

// laneQueue is how many calls may wait in a lane; more are refused at once.
const laneQueue = 1024

func startLanes[Q, A any](n, batchMax int, patience time.Duration, serve func([]*call[Q, A])) *lanes[Q, A] {
	l := &lanes[Q, A]{
		queues: make([]chan *call[Q, A], n), batchMax: batchMax, patience: patience, serve: serve, stop: make(chan struct{}),
	}
	for i := range l.queues {
		queue := make(chan *call[Q, A], laneQueue)
		l.queues[i] = queue
		l.running.Go(func() { l.run(queue) })
	}
	return l
}

func (l *lanes[Q, A]) run(queue chan *call[Q, A]) {
	batch := make([]*call[Q, A], 0, l.batchMax)
	take := func(c *call[Q, A]) {
		if c.state.CompareAndSwap(waiting, taken) { // else its caller has gone
			batch = append(batch, c)
		}
	}
	for {
		batch = batch[:0]
		select {
		case <-l.stop:
			return
		case c := <-queue:
			take(c)
		}
	gather:
		for len(batch) < l.batchMax {
			select {
			case c := <-queue:
				take(c)
			default:
				break gather
			}
		}
		if len(batch) > 0 {
			l.serve(batch)
		}
	}
}

// close waits for the groups under way. Calls that still wait are refused.
func (l *lanes[Q, A]) close() {
	l.closing.Do(func() { close(l.stop) })
	l.running.Wait()
}

// do sends a request about an account on its way and waits for the answer.
func (l *lanes[Q, A]) do(ctx context.Context, accountID string, request Q) (none A, err error) {
	if err := ctx.Err(); err != nil {
		return none, user.ErrOverloaded.Because(err)
	}
	c := &call[Q, A]{ctx: ctx, request: request, queued: time.Now(), done: make(chan struct{})}
	hash := fnv.New32a()
	hash.Write([]byte(accountID))
	select {
	case l.queues[hash.Sum32()%uint32(len(l.queues))] <- c:
	default:
		return none, user.ErrOverloaded
	}
	impatient := time.NewTimer(l.patience)
	defer impatient.Stop()
	var gone error
	select {
	case <-c.done:
		return c.answer, c.err
	case <-ctx.Done():
		gone = ctx.Err()
	case <-impatient.C:
		gone = fmt.Errorf("it was not taken within %s", l.patience)
	case <-l.stop:
		gone = errors.New("the store is closed")
	}
	if c.state.CompareAndSwap(waiting, dropped) {
		return none, user.ErrOverloaded.Because(gone)
	}
	<-c.done
	return c.answer, c.err
}

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

var (
	// errOutcomeUnknown says that a commit was sent and did not come back as it has to.
	errOutcomeUnknown = errors.New("the outcome of the commit is not known")
	// errUnconfirmed is the one of a commit that may not have reached the standby.
	errUnconfirmed = fmt.Errorf("%w: no standby has confirmed it", errOutcomeUnknown)
)

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
		s.serveAside(ctx, m.id, m.updates, true)
	}
	if len(together) > 0 {
		s.serveAgain(ctx, together, true, hurried)
	}
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

// serveAside serves updates of one account past its lane, because somebody else seems to keep its row locked: they may
// wait for it as long as the connection's lock_timeout, and hold up no other account. Until the row is free again the
// account's later updates come here too.
func (s *Store) serveAside(ctx context.Context, accountID string, updates []*update, repeat bool) {
	s.heldUp.add(accountID)
	select {
	case s.aside <- struct{}{}:
	default: // enough connections wait for locks
		fail(updates, user.ErrOverloaded)
		return
	}
	s.waiting.Go(func() {
		defer func() { <-s.aside }()
		s.serveAgain(ctx, updates, repeat, patient)
		if !lockTimeout(updates[0].err) {
			s.heldUp.remove(accountID)
		}
	})
}

// heldUp are accounts of which somebody else lately kept the row locked.
type heldUp struct{ until sync.Map }

// heldUpFor is how long an account is remembered after its row was last found locked.
const heldUpFor = 5 * time.Second

func (h *heldUp) add(accountID string) { h.until.Store(accountID, time.Now().Add(heldUpFor)) }

func (h *heldUp) remove(accountID string) { h.until.Delete(accountID) }

func (h *heldUp) has(accountID string) bool {
	until, ok := h.until.Load(accountID)
	if ok && time.Now().After(until.(time.Time)) {
		h.remove(accountID)
		return false
	}
	return ok
}

func (s *Store) serveAgain(ctx context.Context, batch []*update, repeat bool, wait lockWait) {
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		return commitGroup(ctx, conn, batch, s.begin[wait])
	})
	var known *user.Error
	switch {
	case err == nil:
	case errors.Is(err, errOutcomeUnknown):
		// Those that count once are run again: they find what they have written, or write it now. Not when the commit waited
		// in vain: the next would, too.
		repeat = repeat && !errors.Is(err, errUnconfirmed) && !errors.Is(err, context.DeadlineExceeded)
		var again []*update
		for _, u := range batch {
			u.request.uncertain = true
			if repeat && u.request.countsOnce() {
				again = append(again, u)
			} else {
				fail([]*update{u}, err)
			}
		}
		if len(again) > 0 {
			s.serveAgain(ctx, again, false, wait)
		}
	case lockTimeout(err) && wait == hurried:
		s.observer.Retry()
		accounts := newGroup(batch).accounts
		if len(accounts) == 1 {
			s.serveAside(ctx, accounts[0].id, batch, repeat)
			return
		}
		// Each by itself, to find out whose row it is.
		var serving sync.WaitGroup
		for _, m := range accounts {
			serving.Go(func() { s.serveAgain(ctx, m.updates, repeat, hurried) })
		}
		serving.Wait()
	case len(batch) > 1 && !errors.As(err, &known):
		s.observer.Retry()
		s.serveAgain(ctx, batch[:len(batch)/2], repeat, wait)
		s.serveAgain(ctx, batch[len(batch)/2:], repeat, wait)
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
			u.finish(u.answer, a.outcomes[i])
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
