package postgres

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

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
