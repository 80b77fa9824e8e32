// Package batch serves calls that wait at the same time together, which is cheaper where one round trip or one commit
// can serve many. It knows neither what is asked nor how it is answered.
//
// A caller hands its request to [Batcher.Do] and waits. A request joins the queue of its group. A worker takes a group,
// claims everything that is queued there as it is, without waiting for more, and passes it to the serving function as
// one batch; meanwhile the group's next batch gathers. So a lone call is served at once, and the busier a group is the
// larger its batches become.
//
// A batch never mixes groups, and a group has at most one batch at a time: its requests are served in the order in
// which they came. Groups are made by their first request and forgotten with their last.
//
// A request that nobody has claimed yet can be abandoned, by the end of the caller's context or after MaxWait: it is
// then certain that nothing was done. Once claimed it runs to completion, even if its caller has gone.
package batch

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Errors of requests that were not claimed by the serving function: nothing was done.
var (
	// ErrFull is returned when MaxQueue requests of the group wait already.
	ErrFull = errors.New("too many requests wait")
	// ErrTimeout is returned when a request was not claimed within MaxWait.
	ErrTimeout = errors.New("the request was not served in time")
	// ErrCanceled is returned, together with the context's error, when the caller's context ended first.
	ErrCanceled = errors.New("the caller gave up")
	// ErrClosed is returned once the batcher is closed.
	ErrClosed = errors.New("the batcher is closed")
)

// ErrUnanswered is returned when the serving function panicked or returned without an answer to the request. What it
// did before that is not known.
var ErrUnanswered = errors.New("the request was not answered")

// Config says how a Batcher works. All fields are required.
type Config[Q, A any] struct {
	// Group names the group of a request.
	Group func(Q) string
	// Serve finishes, fails or forwards every request of a batch before it returns. It must not change or keep the slice.
	// Requests that it leaves, also because it panics, fail with ErrUnanswered.
	Serve func(batch []*Request[Q, A])
	// Workers is how many batches, of different groups, are served at the same time.
	Workers int
	// MaxBatch is the most requests of one batch.
	MaxBatch int
	// MaxQueue is the most requests that wait in one group.
	MaxQueue int
	// MaxWait is the longest that a request waits to be claimed.
	MaxWait time.Duration
}

// Request is one call on its way: what is asked, and the answer once it is finished.
type Request[Q, A any] struct {
	// Payload is what the caller asked for. It belongs to the serving function once the request is claimed.
	Payload Q
	// Answer is what the caller gets. The serving function sets it before it calls Finish.
	Answer A

	ctx       context.Context
	queued    time.Time
	state     atomic.Int32
	owner     atomic.Pointer[Batcher[Q, A]]
	forwarded bool
	err       error
	done      chan struct{}
}

// The states of a request.
const (
	waiting int32 = iota
	abandoned
	claimed
	finished
)

// Context returns the caller's context. It tells which trace the call belongs to; what it does otherwise is no concern
// of the serving function, since a claimed request runs to completion.
func (r *Request[Q, A]) Context() context.Context { return r.ctx }

// Queued returns when the request began to wait.
func (r *Request[Q, A]) Queued() time.Time { return r.queued }

// Finish gives the caller the Answer, and err, which may come with one. It counts only if the request was not finished
// before.
func (r *Request[Q, A]) Finish(err error) {
	if r.state.CompareAndSwap(claimed, finished) {
		r.err = err
		close(r.done)
	}
}

// Fail gives the caller err and no Answer. It counts only if the request was not finished before.
func (r *Request[Q, A]) Fail(err error) {
	if r.state.CompareAndSwap(claimed, finished) {
		var none A
		r.Answer, r.err = none, err
		close(r.done)
	}
}

// claim reports whether a queued request is to be served. It is not when its caller has abandoned it.
func (r *Request[Q, A]) claim(maxWait time.Duration) bool {
	if !r.forwarded {
		return r.state.CompareAndSwap(waiting, claimed)
	}
	// Its caller cannot abandon it any more.
	if time.Since(r.queued) > maxWait {
		r.Fail(ErrTimeout)
		return false
	}
	return true
}

// Batcher serves waiting requests in batches. It is safe for concurrent use.
type Batcher[Q, A any] struct {
	config  Config[Q, A]
	workers sync.WaitGroup

	mu sync.Mutex
	// groups are those with requests that wait or are being served.
	groups map[string]*group[Q, A]
	// ready are the groups with waiting requests of which no batch is being served, and readied tells the workers.
	ready   []*group[Q, A]
	readied sync.Cond
	closed  bool
}

type group[Q, A any] struct {
	name  string
	queue []*Request[Q, A]
}

// New starts a batcher. The caller closes it.
func New[Q, A any](config Config[Q, A]) *Batcher[Q, A] {
	b := &Batcher[Q, A]{config: config, groups: map[string]*group[Q, A]{}}
	b.readied.L = &b.mu
	for range config.Workers {
		b.workers.Go(b.work)
	}
	return b
}

// Close waits for the batches that are being served. Requests that still wait fail with ErrClosed, as do later ones.
func (b *Batcher[Q, A]) Close() {
	b.mu.Lock()
	b.closed = true
	for _, g := range b.groups {
		for _, r := range g.queue {
			if r.claim(b.config.MaxWait) {
				r.Fail(ErrClosed)
			}
		}
		g.queue = nil
	}
	b.readied.Broadcast()
	b.mu.Unlock()
	b.workers.Wait()
}

// Do queues a request and waits for its answer. Errors other than those of the serving function are this package's.
func (b *Batcher[Q, A]) Do(ctx context.Context, payload Q) (A, error) {
	var none A
	if err := ctx.Err(); err != nil {
		return none, fmt.Errorf("%w: %w", ErrCanceled, err)
	}
	r := &Request[Q, A]{Payload: payload, ctx: ctx, queued: time.Now(), done: make(chan struct{})}
	if err := b.enqueue(r); err != nil {
		return none, err
	}
	timer := time.NewTimer(b.config.MaxWait)
	defer timer.Stop()
	var gaveUp error
	select {
	case <-r.done:
		return r.Answer, r.err
	case <-ctx.Done():
		gaveUp = fmt.Errorf("%w: %w", ErrCanceled, ctx.Err())
	case <-timer.C:
		gaveUp = ErrTimeout
	}
	if r.state.CompareAndSwap(waiting, abandoned) {
		return none, gaveUp
	}
	<-r.done
	return r.Answer, r.err
}

// Forward passes a claimed request from the serving function of one batcher on to another, b, where it queues behind
// those of its group. Its caller goes on waiting. It is not claimed again once MaxWait has passed since its call. After
// an error, ErrFull or ErrClosed, it is still the serving function's to finish.
func (b *Batcher[Q, A]) Forward(r *Request[Q, A]) error {
	r.forwarded = true
	return b.enqueue(r)
}

// Pending reports whether requests of a group wait or are being served.
func (b *Batcher[Q, A]) Pending(group string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.groups[group] != nil
}

// Waiting returns how many requests wait to be claimed, abandoned ones included.
func (b *Batcher[Q, A]) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, g := range b.groups {
		n += len(g.queue)
	}
	return n
}

func (b *Batcher[Q, A]) enqueue(r *Request[Q, A]) error {
	name := b.config.Group(r.Payload)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	g := b.groups[name]
	switch {
	case g == nil:
		g = &group[Q, A]{name: name}
		b.groups[name] = g
		b.ready = append(b.ready, g)
		b.readied.Signal()
	case len(g.queue) >= b.config.MaxQueue:
		return ErrFull
	}
	r.owner.Store(b)
	g.queue = append(g.queue, r)
	return nil
}

// work is a worker: it serves one batch after the other until the batcher is closed.
func (b *Batcher[Q, A]) work() {
	batch := make([]*Request[Q, A], 0, b.config.MaxBatch)
	var served *group[Q, A]
	for {
		served, batch = b.next(served, batch[:0])
		if served == nil {
			return
		}
		if len(batch) > 0 {
			b.serve(batch)
		}
		clear(batch)
	}
}

// next gives the group of the last batch back, waits for one that is ready, in turn, and claims its next batch, which
// it appends to batch. The group is nil when the batcher is closed.
func (b *Batcher[Q, A]) next(served *group[Q, A], batch []*Request[Q, A]) (*group[Q, A], []*Request[Q, A]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if served != nil {
		if len(served.queue) > 0 {
			b.ready = append(b.ready, served)
		} else {
			delete(b.groups, served.name)
		}
	}
	for len(b.ready) == 0 && !b.closed {
		b.readied.Wait()
	}
	if b.closed {
		return nil, nil
	}
	g := b.ready[0]
	b.ready = slices.Delete(b.ready, 0, 1)
	n := 0
	for ; n < len(g.queue) && len(batch) < b.config.MaxBatch; n++ {
		if r := g.queue[n]; r.claim(b.config.MaxWait) {
			batch = append(batch, r)
		}
	}
	g.queue = slices.Delete(g.queue, 0, n)
	return g, batch
}

// serve passes a batch to the serving function and fails what that leaves.
func (b *Batcher[Q, A]) serve(batch []*Request[Q, A]) {
	err := ErrUnanswered
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic: %v\n%s", ErrUnanswered, p, debug.Stack())
		}
		for _, r := range batch {
			if r.owner.Load() == b {
				r.Fail(err)
			}
		}
	}()
	b.config.Serve(batch)
}
