package user

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// FeedStore reads the entries of all accounts in the order of their ids. Its errors are those of [Store], and
// [ErrNotAvailable] where there is no such order.
type FeedStore interface {
	// Horizon looks how far the ledger is settled.
	Horizon(ctx context.Context) (Horizon, error)

	// EntriesAfter reads up to limit entries with ids greater than after and up to upTo, in their order. An empty kind
	// takes all.
	EntriesAfter(ctx context.Context, after, upTo int64, kind EntryKind, limit int) ([]FeedEntry, error)
}

// Horizon is how far the ledger is settled. An id is drawn before its entry is committed, so a greater one may show first.
type Horizon struct {
	// ID is the greatest id for which it is known that no entry up to it is still to come; 0 when nothing is known yet.
	ID int64
	// Drawn is the greatest id that has been drawn.
	Drawn int64
	// PendingSince is when ids were first seen that are beyond ID, because of a transaction that has not ended; the zero
	// time when there are none.
	PendingSince time.Time
}

// FeedEntry is an entry with the account that it belongs to, for whoever passes it on. It has neither a period nor a command's
// hash, and its metadata and its changes are as they are stored.
type FeedEntry struct {
	AccountID string
	Entry
	// StoredMetadata and StoredChanges are those of the entry in JSON; nil for none.
	StoredMetadata, StoredChanges []byte
}

// FeedQuery selects a page of the feed.
type FeedQuery struct {
	// After is the position that the page before ended at; 0 is the beginning.
	After int64
	// Kind limits to one kind; empty takes all.
	Kind EntryKind
	// Limit is the most entries to return, at least 1.
	Limit int
}

// FeedPage is a page of the feed. Next is the position that the next one goes on from; when it is the one that was asked
// for there is nothing more for now.
type FeedPage struct {
	Entries []FeedEntry
	Next    int64
}

const (
	// maxFeedWaiters is how many calls of [Feed.Wait] may wait at once.
	maxFeedWaiters = 256
	// A page looks at feedMargin more ids than its limit, or at feedWindow times as many where it is of one kind: ids that
	// were rolled back, and entries of other kinds, leave gaps. What it looks at and leaves to the next one is looked at
	// twice.
	feedMargin, feedWindow = 100, 2
	// While somebody waits the horizon is looked at after a pause from minFeedPause, when it has just moved, to maxFeedPause.
	minFeedPause, maxFeedPause = 20 * time.Millisecond, 250 * time.Millisecond
)

// Feed reads the ledger of all accounts in one order, each entry once in a pass however late it is committed, and waits for
// new ones. However many wait, the database is asked by one of them. It is safe for concurrent use; Close ends it.
type Feed struct {
	store FeedStore

	// looking is held by whoever looks at the horizon, and looks counts those who began to.
	looking sync.Mutex
	looks   atomic.Int64
	lookErr error // of the last one

	mu      sync.Mutex
	horizon Horizon
	moved   chan struct{} // closed, and replaced, when the horizon moves
	// waiters are the calls of Wait, and waiting all that wait for the horizon.
	waiters, waiting int

	polling bool
	poller  sync.WaitGroup
	running context.Context // until the feed is stopped
	stop    func()
}

// NewFeed returns the feed of what is in store.
func NewFeed(store FeedStore) *Feed {
	running, stop := context.WithCancel(context.Background())
	return &Feed{store: store, moved: make(chan struct{}), running: running, stop: stop}
}

// Stop ends all calls of Wait, also those to come.
func (f *Feed) Stop() {
	f.mu.Lock() // no poller is about to start
	defer f.mu.Unlock()
	f.stop()
}

// Close is Stop, and waits until the feed leaves the store alone. Pages can still be read.
func (f *Feed) Close() {
	f.Stop()
	f.poller.Wait()
}

// Lag is how long entries have been kept back because of a transaction that began before them and has not ended, as far as
// was seen when somebody last read the feed.
func (f *Feed) Lag() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.horizon.PendingSince.IsZero() {
		return 0
	}
	return time.Since(f.horizon.PendingSince)
}

// Latest returns the position after all entries that are settled now; [ErrOverloaded] when that cannot be told yet, because
// transactions are open that began before somebody first read the feed.
func (f *Feed) Latest(ctx context.Context) (int64, error) {
	h, err := f.catchUp(ctx, math.MaxInt64)
	if err == nil && h.ID == 0 && h.Drawn > 0 {
		err = ErrOverloaded
	}
	return h.ID, err
}

// settled looks up to which id the ledger is settled.
func (f *Feed) settled(ctx context.Context) (int64, error) {
	err := f.look(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.horizon.ID, err
}

// Page reads a page. It costs what it looks at, however long the ledger is.
func (f *Feed) Page(ctx context.Context, q FeedQuery) (FeedPage, error) {
	window := int64(q.Limit + feedMargin)
	if q.Kind != "" {
		window = int64(feedWindow * q.Limit)
	}
	h, err := f.catchUp(ctx, q.After+min(window, math.MaxInt64-q.After))
	if err != nil {
		return FeedPage{}, err
	}
	if h.ID <= q.After {
		return FeedPage{Next: q.After}, nil
	}
	upTo := q.After + min(h.ID-q.After, window)
	entries, err := f.store.EntriesAfter(ctx, q.After, upTo, q.Kind, q.Limit)
	if err != nil {
		return FeedPage{}, err
	}
	if len(entries) == q.Limit {
		upTo = entries[len(entries)-1].ID
	}
	return FeedPage{entries, upTo}, nil
}

// Wait returns when there is something to look at after a position, which moved tells, until is over, the feed is stopped
// or ctx is done. It returns [ErrOverloaded] at once when too many wait.
func (f *Feed) Wait(ctx context.Context, after int64, until time.Time) (moved bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiters >= maxFeedWaiters {
		return false, ErrOverloaded
	}
	f.waiters++
	defer func() { f.waiters-- }()
	f.await(ctx, after, until)
	return f.horizon.ID > after, nil
}

// catchUp returns a horizon that has come to id, or as far as it comes now. It gives transactions that are about to end the
// time to do so.
func (f *Feed) catchUp(ctx context.Context, id int64) (Horizon, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.horizon.ID >= id {
		return f.horizon, nil
	}
	f.mu.Unlock()
	err := f.look(ctx)
	f.mu.Lock()
	if err == nil {
		f.await(ctx, min(id, f.horizon.Drawn)-1, time.Now().Add(maxFeedPause))
	}
	return f.horizon, err
}

// await returns when the horizon is beyond a position, until is over, the feed is stopped or ctx is done. The caller holds
// mu.
func (f *Feed) await(ctx context.Context, after int64, until time.Time) {
	if f.horizon.ID > after {
		return
	}
	f.waiting++
	defer func() { f.waiting-- }()
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for f.horizon.ID <= after && ctx.Err() == nil && f.running.Err() == nil {
		f.keepPolling()
		moved := f.moved
		f.mu.Unlock()
		select {
		case <-moved:
		case <-f.running.Done():
		case <-ctx.Done():
		}
		f.mu.Lock()
	}
}

// look looks at the horizon, or waits for somebody else who began to after it was called.
func (f *Feed) look(ctx context.Context) error {
	before := f.looks.Load()
	f.looking.Lock()
	defer f.looking.Unlock()
	if f.looks.Load() > before {
		return f.lookErr
	}
	f.looks.Add(1)
	var h Horizon
	h, f.lookErr = f.store.Horizon(context.WithoutCancel(ctx)) // others may want its answer
	if f.lookErr != nil {
		return f.lookErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.ID != f.horizon.ID {
		close(f.moved)
		f.moved = make(chan struct{})
	}
	f.horizon = h
	if !h.PendingSince.IsZero() {
		f.keepPolling()
	}
	return nil
}

// keepPolling starts the poller unless it runs. The caller holds mu.
func (f *Feed) keepPolling() {
	if !f.polling && f.running.Err() == nil {
		f.polling = true
		f.poller.Go(f.poll)
	}
}

// poll looks at the horizon from time to time for as long as somebody waits for it, or entries are kept back: how long they
// have been is a figure to watch.
func (f *Feed) poll() {
	pause := minFeedPause
	for moved, last := false, int64(-1); f.wanted(); {
		select {
		case <-f.running.Done():
		case <-time.After(pause):
			// A database that does not answer is asked again; whoever reads a page is told.
			_ = f.look(f.running)
		}
		if moved, last = f.since(last); moved {
			pause = minFeedPause
		} else {
			pause = min(2*pause, maxFeedPause)
		}
	}
}

// since returns the horizon, and whether it is another one.
func (f *Feed) since(last int64) (moved bool, now int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.horizon.ID != last, f.horizon.ID
}

// wanted reports whether the poller is to go on.
func (f *Feed) wanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.polling = f.running.Err() == nil && (f.waiting > 0 || !f.horizon.PendingSince.IsZero())
	return f.polling
}
