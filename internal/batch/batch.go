// Package batch serves calls that wait at the same time together, which is cheaper where one round trip or one commit
// can serve many. It knows neither what is asked nor how it is answered.
//
// A caller hands its request to [Batcher.Do] and waits. A request joins the queue of its group. A worker takes a group,
// claims everything that is queued there as it is, without waiting for more, and passes it to the serving function as
// one batch; meanwhile the group's next batch gathers. So a lone call is served at once, and the busier a group is the
// larger its batches become.
//
// A batch never mixes groups. A group's next batch begins when the one before has ended or, sooner, when the serving
// function releases the group because all it does is wait: one large batch costs less than two small ones, but two that
// wait cost no more than one. Requests of the same key are never in two batches at once, so that they are served in the
// order in which they came, whenever a group is released. Groups are made by their first request and forgotten with
// their last.
//
// A request that nobody has claimed yet can be abandoned, by the end of the caller's context or after MaxWait: it is
// then certain that nothing was done. Once claimed it runs to completion, even if its caller has gone.
package batch

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
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

// Config says how a Batcher works. All fields but Key are required.
type Config[Q, A any] struct {
	// Group names the group of a request.
	Group func(Q) string
	// Key names what a request has to itself while it is served; nil when requests may be served side by side.
	Key func(Q) string
	// Serve finishes, fails or forwards every request of a batch before it returns. It must not change or keep the slice.
	// Requests that it leaves, also because it panics, fail with ErrUnanswered. It may call release, from any goroutine and
	// also after it has returned, to let the group's next batch begin before this one has ended.
	Serve func(batch []*Request[Q, A], release func())
	// Workers is how many batches are served at the same time.
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
	// ready are the groups of which a worker may claim a batch, and readied tells the workers.
	ready   []*group[Q, A]
	readied sync.Cond
	closed  bool
}

// group is what waits and is served under one name.
type group[Q, A any] struct {
	name  string
	queue []*Request[Q, A]
	// ready is true while the group is among those that are ready.
	ready bool
	// turns is how many batches are being served, and held whether one of them has not released the group.
	turns int
	held  bool
	// busy are the keys of the batches that have.
	busy map[string]struct{}
}

// turn is the serving of one batch.
type turn[Q, A any] struct {
	group    *group[Q, A]
	batch    []*Request[Q, A]
	released bool
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

// Take claims, for the serving function, all requests that wait in a group. They are then its to answer, like those of
// its batch; ErrUnanswered does not watch over them.
func (b *Batcher[Q, A]) Take(name string) []*Request[Q, A] {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.groups[name]
	if g == nil {
		return nil
	}
	return b.claim(g, nil, len(g.queue))
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
	case len(g.queue) >= b.config.MaxQueue:
		return ErrFull
	}
	r.owner.Store(b)
	g.queue = append(g.queue, r)
	if !b.isBusy(g, r) && b.offer(g) {
		b.readied.Signal()
	}
	return nil
}

// offer makes a group ready unless it is, or has no need to, or is held by a batch. It reports whether it did.
func (b *Batcher[Q, A]) offer(g *group[Q, A]) bool {
	if g.ready || g.held || len(g.queue) == 0 {
		return false
	}
	g.ready = true
	b.ready = append(b.ready, g)
	return true
}

// isBusy reports whether a batch that is being served has the request's key to itself.
func (b *Batcher[Q, A]) isBusy(g *group[Q, A], r *Request[Q, A]) bool {
	if len(g.busy) == 0 {
		return false
	}
	_, busy := g.busy[b.config.Key(r.Payload)]
	return busy
}

// claim takes up to limit requests whose keys are free out of the queue and appends those that have not been abandoned
// to batch.
func (b *Batcher[Q, A]) claim(g *group[Q, A], batch []*Request[Q, A], limit int) []*Request[Q, A] {
	kept := 0
	for i, r := range g.queue {
		if len(batch) == limit {
			kept += copy(g.queue[kept:], g.queue[i:])
			break
		}
		if b.isBusy(g, r) {
			g.queue[kept] = r
			kept++
		} else if r.claim(b.config.MaxWait) {
			batch = append(batch, r)
		}
	}
	clear(g.queue[kept:])
	g.queue = g.queue[:kept]
	return batch
}

// work is a worker: it serves one batch after the other until the batcher is closed.
func (b *Batcher[Q, A]) work() {
	batch := make([]*Request[Q, A], 0, b.config.MaxBatch)
	for {
		t := b.next(batch[:0])
		if t == nil {
			return
		}
		b.serve(t)
		b.end(t)
		clear(t.batch)
	}
}

// next waits for a group that is ready, in turn, and claims its next batch, which it appends to batch. It returns nil
// when the batcher is closed.
func (b *Batcher[Q, A]) next(batch []*Request[Q, A]) *turn[Q, A] {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		for len(b.ready) == 0 && !b.closed {
			b.readied.Wait()
		}
		if b.closed {
			return nil
		}
		g := b.ready[0]
		b.ready[0] = nil
		b.ready = b.ready[1:]
		g.ready = false
		if batch = b.claim(g, batch, b.config.MaxBatch); len(batch) > 0 {
			g.turns++
			g.held = true
			return &turn[Q, A]{group: g, batch: batch}
		}
		b.forget(g)
	}
}

// release lets the group's next batch begin, with other keys than those of this one.
func (b *Batcher[Q, A]) release(t *turn[Q, A]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.released {
		return
	}
	t.released = true
	g := t.group
	g.held = false
	if b.config.Key != nil {
		if g.busy == nil {
			g.busy = map[string]struct{}{}
		}
		for _, r := range t.batch {
			g.busy[b.config.Key(r.Payload)] = struct{}{}
		}
	}
	if b.offer(g) {
		b.readied.Signal()
	}
}

// end gives the group back after its batch has been served. The worker that calls it looks for its next batch itself, so
// that no other one has to be woken.
func (b *Batcher[Q, A]) end(t *turn[Q, A]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := t.group
	g.turns--
	switch {
	case !t.released:
		t.released = true
		g.held = false
	case b.config.Key != nil:
		for _, r := range t.batch {
			delete(g.busy, b.config.Key(r.Payload))
		}
	}
	b.offer(g)
	b.forget(g)
}

// forget drops a group of which nothing waits or is being served.
func (b *Batcher[Q, A]) forget(g *group[Q, A]) {
	if g.turns == 0 && len(g.queue) == 0 && b.groups[g.name] == g {
		delete(b.groups, g.name)
	}
}

// serve passes a batch to the serving function and fails what that leaves.
func (b *Batcher[Q, A]) serve(t *turn[Q, A]) {
	err := ErrUnanswered
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic: %v\n%s", ErrUnanswered, p, debug.Stack())
		}
		for _, r := range t.batch {
			if r.owner.Load() == b {
				r.Fail(err)
			}
		}
	}()
	b.config.Serve(t.batch, func() { b.release(t) })
}
