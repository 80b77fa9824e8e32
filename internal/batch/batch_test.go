package batch_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viralpilot/user-management/internal/batch"
)

// call is a request of the tests: its group, and a name to tell it by.
type call struct{ group, name string }

type (
	request = batch.Request[call, string]
	batcher = batch.Batcher[call, string]
)

// bench is a batcher whose batches are recorded and stand still until they are let go.
type bench struct {
	*batcher
	t *testing.T
	// gate lets one batch go for each value.
	gate chan struct{}

	mu      sync.Mutex
	batches []string
}

// newBench starts a batcher of two workers that answers each call with its name. change may alter it.
func newBench(t *testing.T, change func(*batch.Config[call, string])) *bench {
	b := &bench{t: t, gate: make(chan struct{})}
	config := batch.Config[call, string]{
		Group: func(c call) string { return c.group }, Workers: 2, MaxBatch: 100, MaxQueue: 100, MaxWait: time.Minute,
		Serve: func(requests []*request, _ func()) {
			b.record(requests)
			<-b.gate
			for _, r := range requests {
				r.Answer = "answer to " + r.Payload.name
				r.Finish(nil)
			}
		},
	}
	if change != nil {
		change(&config)
	}
	b.batcher = batch.New(config)
	return b
}

func (b *bench) record(requests []*request) {
	var names []string
	for _, r := range requests {
		names = append(names, r.Payload.group+r.Payload.name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches = append(b.batches, strings.Join(names, " "))
}

// wantBatches fails the test unless these batches have begun, in this order.
func (b *bench) wantBatches(want ...string) {
	b.t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !reflect.DeepEqual(b.batches, want) {
		b.t.Errorf("batches %q, want %q", b.batches, want)
	}
}

// outcome is what a call came back with.
type outcome struct {
	answer string
	err    error
}

// send makes a call in the background, queued when send returns.
func (b *bench) send(ctx context.Context, group, name string) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		answer, err := b.Do(ctx, call{group, name})
		done <- outcome{answer, err}
	}()
	synctest.Wait()
	return done
}

// closeAfter closes the batcher, which refuses what still waits, and lets the n batches end that are being served.
func (b *bench) closeAfter(n int) {
	closed := make(chan struct{})
	go func() {
		b.Close()
		close(closed)
	}()
	synctest.Wait()
	for range n {
		b.gate <- struct{}{}
	}
	<-closed
}

func wantAnswer(t *testing.T, done <-chan outcome, answer string) {
	t.Helper()
	if got := <-done; got.err != nil || got.answer != answer {
		t.Errorf("got %q, %v, want %q", got.answer, got.err, answer)
	}
}

func wantError(t *testing.T, done <-chan outcome, want error) {
	t.Helper()
	if got := <-done; !errors.Is(got.err, want) || got.answer != "" {
		t.Errorf("got %q, %v, want %v", got.answer, got.err, want)
	}
}

func TestBatcherDo_GathersWhileABatchIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		first := b.send(t.Context(), "g", "0")
		b.wantBatches("g0") // at once, without waiting for more
		var rest []<-chan outcome
		for i := range 5 {
			rest = append(rest, b.send(t.Context(), "g", fmt.Sprint(i+1)))
		}
		if n := b.Waiting(); n != 5 {
			t.Errorf("%d wait", n)
		}
		b.gate <- struct{}{}
		wantAnswer(t, first, "answer to 0")
		b.wantBatches("g0", "g1 g2 g3 g4 g5")
		if n := b.Waiting(); n != 0 {
			t.Errorf("%d wait", n)
		}
		b.closeAfter(1)
		for i, done := range rest {
			wantAnswer(t, done, fmt.Sprint("answer to ", i+1))
		}
	})
}

func TestBatcherDo_LimitsBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, func(c *batch.Config[call, string]) { c.MaxBatch = 2 })
		for i := range 5 {
			b.send(t.Context(), "g", fmt.Sprint(i))
		}
		for range 2 {
			b.gate <- struct{}{}
		}
		b.wantBatches("g0", "g1 g2", "g3 g4")
		b.closeAfter(1)
	})
}

func TestBatcherDo_Groups(t *testing.T) {
	t.Run("are never mixed and served side by side", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, nil)
			b.send(t.Context(), "a", "0")
			b.send(t.Context(), "b", "0")
			b.send(t.Context(), "a", "1")
			b.send(t.Context(), "b", "1")
			b.wantBatches("a0", "b0") // each group has one batch at a time
			b.closeAfter(2)
		})
	})
	t.Run("take turns where workers are few", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, func(c *batch.Config[call, string]) { c.Workers, c.MaxBatch = 1, 1 })
			for _, name := range []string{"0", "1", "2"} {
				b.send(t.Context(), "a", name)
			}
			b.send(t.Context(), "b", "0")
			b.send(t.Context(), "c", "0")
			for range 4 {
				b.gate <- struct{}{}
				synctest.Wait()
			}
			b.wantBatches("a0", "b0", "c0", "a1", "a2")
			b.closeAfter(1)
		})
	})
	t.Run("are forgotten with their last request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, nil)
			done := b.send(t.Context(), "a", "0")
			if !b.Pending("a") || b.Pending("b") {
				t.Errorf("pending: a %t, b %t", b.Pending("a"), b.Pending("b"))
			}
			b.gate <- struct{}{}
			<-done
			synctest.Wait()
			if b.Pending("a") {
				t.Error("a is still pending")
			}
			b.Close()
		})
	})
}

func TestBatcherDo_Refusals(t *testing.T) {
	t.Run("a full queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, func(c *batch.Config[call, string]) { c.MaxQueue = 2 })
			for i := range 3 { // the first is being served
				b.send(t.Context(), "g", fmt.Sprint(i))
			}
			wantError(t, b.send(t.Context(), "g", "3"), batch.ErrFull)
			b.send(t.Context(), "other", "0")
			b.gate <- struct{}{}
			b.gate <- struct{}{}
			b.wantBatches("g0", "other0", "g1 g2")
			b.closeAfter(1)
		})
	})
	t.Run("a request that is not claimed in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, func(c *batch.Config[call, string]) { c.MaxWait = time.Second })
			first := b.send(t.Context(), "g", "0")
			begin := time.Now()
			wantError(t, b.send(t.Context(), "g", "1"), batch.ErrTimeout)
			if waited := time.Since(begin); waited != time.Second {
				t.Errorf("it waited %s", waited)
			}
			b.closeAfter(1)
			wantAnswer(t, first, "answer to 0") // claimed in time, so it is finished whatever it takes
			b.wantBatches("g0")
		})
	})
	t.Run("a caller that has gone before its call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := b.Do(ctx, call{"g", "0"})
			if !errors.Is(err, batch.ErrCanceled) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			b.wantBatches()
			b.Close()
		})
	})
	t.Run("a caller that goes while it waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, nil)
			b.send(t.Context(), "g", "0")
			ctx, cancel := context.WithCancel(t.Context())
			gone := b.send(ctx, "g", "1")
			stays := b.send(t.Context(), "g", "2")
			cancel()
			wantError(t, gone, batch.ErrCanceled)
			b.gate <- struct{}{}
			b.wantBatches("g0", "g2")
			b.closeAfter(1)
			wantAnswer(t, stays, "answer to 2")
		})
	})
	t.Run("not of a caller that goes while it is served", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			done := b.send(ctx, "g", "0")
			cancel()
			b.closeAfter(1)
			wantAnswer(t, done, "answer to 0")
		})
	})
}

func TestBatcherDo_UnansweredRequestsFail(t *testing.T) {
	for name, serve := range map[string]func([]*request){
		"after a panic": func(requests []*request) { panic("a mistake") },
		"left behind":   func([]*request) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hold := make(chan struct{})
				b := newBench(t, func(c *batch.Config[call, string]) {
					c.Workers = 1
					c.Serve = func(requests []*request, _ func()) {
						<-hold
						if len(requests) == 1 { // the one before and the one after
							requests[0].Finish(nil)
							return
						}
						requests[1].Answer = "in time"
						requests[1].Finish(nil)
						requests[2].Answer = "half done"
						serve(requests)
					}
				})
				b.send(t.Context(), "g", "0")
				var batched []<-chan outcome
				for _, name := range []string{"1", "2", "3"} {
					batched = append(batched, b.send(t.Context(), "g", name))
				}
				close(hold)
				wantError(t, batched[0], batch.ErrUnanswered)
				wantAnswer(t, batched[1], "in time")
				wantError(t, batched[2], batch.ErrUnanswered)
				wantAnswer(t, b.send(t.Context(), "g", "4"), "") // the worker lives on
				b.Close()
			})
		})
	}
}

func TestBatcherClose_FinishesWhatIsServedAndRefusesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		served := b.send(t.Context(), "g", "0")
		waits := b.send(t.Context(), "g", "1")
		closed := make(chan struct{})
		go func() {
			b.Close()
			close(closed)
		}()
		wantError(t, waits, batch.ErrClosed)
		synctest.Wait()
		select {
		case <-closed:
			t.Error("it did not wait for the batch that is served")
		default:
		}
		wantError(t, b.send(t.Context(), "g", "2"), batch.ErrClosed)
		b.gate <- struct{}{}
		wantAnswer(t, served, "answer to 0")
		<-closed
		b.Close() // again
	})
}

// turns is a batcher whose batches are recorded, released and let go by the test, each by its number.
type turns struct {
	*bench
	release []func()
	end     []chan struct{}
}

// newTurns starts a batcher of three workers, where the first letter of a call's name is its key.
func newTurns(t *testing.T) *turns {
	b := &turns{}
	b.bench = newBench(t, func(c *batch.Config[call, string]) {
		c.Workers = 3
		c.Key = func(c call) string { return c.name[:1] }
		c.Serve = func(requests []*request, release func()) {
			end := make(chan struct{})
			b.record(requests)
			b.mu.Lock()
			b.release, b.end = append(b.release, release), append(b.end, end)
			b.mu.Unlock()
			<-end
			for _, r := range requests {
				r.Finish(nil)
			}
		}
	})
	return b
}

// close lets go the batches with these numbers and closes the batcher.
func (b *turns) close(numbers ...int) {
	for _, n := range numbers {
		close(b.end[n])
	}
	synctest.Wait()
	b.Close()
}

func TestBatcherRelease(t *testing.T) {
	t.Run("lets the next batch of the group begin", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTurns(t)
			b.send(t.Context(), "g", "a0")
			b.send(t.Context(), "g", "b0")
			b.wantBatches("ga0")
			b.release[0]()
			b.wantBatches("ga0", "gb0")
			b.close(0, 1)
		})
	})
	t.Run("keeps what has the key of a released batch waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTurns(t)
			for _, name := range []string{"a0", "a1", "b0", "a2", "b1"} {
				b.send(t.Context(), "g", name)
			}
			b.release[0]()
			b.wantBatches("ga0", "gb0 gb1")
			b.release[1]()
			b.send(t.Context(), "g", "a3")
			b.send(t.Context(), "g", "b2")
			b.wantBatches("ga0", "gb0 gb1")
			close(b.end[0])
			b.wantBatches("ga0", "gb0 gb1", "ga1 ga2 ga3")
			close(b.end[1])
			b.wantBatches("ga0", "gb0 gb1", "ga1 ga2 ga3") // that one has not released the group
			close(b.end[2])
			b.wantBatches("ga0", "gb0 gb1", "ga1 ga2 ga3", "gb2")
			b.close(3)
		})
	})
	t.Run("takes a free key that comes after one that is not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTurns(t)
			b.send(t.Context(), "g", "a0")
			b.release[0]()
			b.send(t.Context(), "g", "a1")
			b.wantBatches("ga0")
			b.send(t.Context(), "g", "b0")
			b.wantBatches("ga0", "gb0")
			close(b.end[0])
			b.wantBatches("ga0", "gb0")
			b.release[1]()
			b.wantBatches("ga0", "gb0", "ga1")
			b.close(1, 2)
		})
	})
	t.Run("does no more than workers allow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTurns(t)
			for i, name := range []string{"a0", "b0", "c0"} {
				b.send(t.Context(), "g", name)
				synctest.Wait()
				b.release[i]()
			}
			b.send(t.Context(), "g", "d0")
			b.wantBatches("ga0", "gb0", "gc0")
			close(b.end[1])
			b.wantBatches("ga0", "gb0", "gc0", "gd0")
			b.close(0, 2, 3)
		})
	})
	t.Run("is of no effect after its batch or a second time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newTurns(t)
			b.send(t.Context(), "g", "a0")
			b.release[0]()
			b.send(t.Context(), "g", "b0")
			synctest.Wait()
			b.release[0]()
			close(b.end[0])
			synctest.Wait()
			b.release[0]()
			b.send(t.Context(), "g", "c0")
			b.wantBatches("ga0", "gb0") // the second has not released the group
			close(b.end[1])
			b.wantBatches("ga0", "gb0", "gc0")
			b.close(2)
			if b.Pending("g") {
				t.Error("the group is still pending")
			}
		})
	})
	t.Run("lets requests without keys be served side by side", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, func(c *batch.Config[call, string]) {
				serve := c.Serve
				c.Serve = func(requests []*request, release func()) {
					release()
					serve(requests, release)
				}
			})
			b.send(t.Context(), "g", "a")
			b.send(t.Context(), "g", "a")
			b.wantBatches("ga", "ga")
			b.closeAfter(2)
		})
	})
}

// Whatever is released when, requests of one key are served one at a time and each is answered.
func TestBatcherRelease_UnderRandomTraffic(t *testing.T) {
	var serving [5]atomic.Int32
	key := func(c call) string { return c.name }
	b := batch.New(batch.Config[call, string]{
		Group: func(c call) string { return c.group }, Key: key,
		Workers: 4, MaxBatch: 3, MaxQueue: 1000, MaxWait: time.Minute,
		Serve: func(requests []*request, release func()) {
			seen := map[string]bool{}
			for _, r := range requests {
				if k := int(r.Payload.name[0] - '0'); !seen[r.Payload.name] && serving[k].Add(1) != 1 {
					t.Errorf("two batches have the key %d", k)
				}
				seen[r.Payload.name] = true
			}
			if rand.IntN(2) == 0 {
				go release()
			}
			runtime.Gosched()
			for name := range seen {
				serving[name[0]-'0'].Add(-1)
			}
			for _, r := range requests {
				r.Answer = r.Payload.name
				r.Finish(nil)
			}
		},
	})
	defer b.Close()
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			for range 500 {
				name := fmt.Sprint(rand.IntN(len(serving)))
				if answer, err := b.Do(t.Context(), call{"g", name}); err != nil || answer != name {
					t.Errorf("got %q, %v, want %q", answer, err, name)
				}
			}
		})
	}
	clients.Wait()
}

func TestBatcherTake_ClaimsWhatWaitsInTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *bench
		b = newBench(t, func(c *batch.Config[call, string]) {
			c.Serve = func(requests []*request, _ func()) {
				<-b.gate
				for _, r := range slices.Concat(requests, b.Take("g")) {
					r.Answer = "answer to " + r.Payload.name
					r.Finish(nil)
				}
			}
		})
		first := b.send(t.Context(), "g", "0")
		second := b.send(t.Context(), "g", "1")
		ctx, cancel := context.WithCancel(t.Context())
		gone := b.send(ctx, "g", "2")
		cancel()
		wantError(t, gone, batch.ErrCanceled)
		b.gate <- struct{}{}
		wantAnswer(t, first, "answer to 0")
		wantAnswer(t, second, "answer to 1")
		synctest.Wait()
		if b.Pending("g") || b.Take("g") != nil {
			t.Error("the group is still pending")
		}
		b.Close()
	})
}

// relay starts a batcher that forwards to another one all calls but those of the group "own".
func relay(t *testing.T, to *bench, then func()) *batcher {
	b := newBench(t, func(c *batch.Config[call, string]) {
		c.Serve = func(requests []*request, _ func()) {
			for _, r := range requests {
				if r.Payload.group == "own" {
					r.Finish(nil)
				} else if err := to.Forward(r); err != nil {
					r.Fail(err)
				}
			}
			then()
		}
	})
	return b.batcher
}

func TestBatcherForward(t *testing.T) {
	t.Run("keeps the order of a group", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			to := newBench(t, nil)
			from := &bench{batcher: relay(t, to, func() {})}
			var done []<-chan outcome
			for i := range 4 {
				done = append(done, from.send(t.Context(), "g", fmt.Sprint(i)))
			}
			to.wantBatches("g0")
			to.gate <- struct{}{}
			to.wantBatches("g0", "g1 g2 g3")
			from.Close()
			to.closeAfter(1)
			for i, d := range done {
				wantAnswer(t, d, fmt.Sprint("answer to ", i))
			}
		})
	})
	t.Run("outlives a panic of the batcher it came from", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			to := newBench(t, nil)
			from := &bench{batcher: relay(t, to, func() { panic("a mistake") })}
			done := from.send(t.Context(), "g", "0")
			from.Close()
			to.closeAfter(1)
			wantAnswer(t, done, "answer to 0")
		})
	})
	t.Run("refuses what waits for too long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			to := newBench(t, nil)
			from := &bench{batcher: relay(t, to, func() {})}
			served := from.send(t.Context(), "g", "0")
			ctx, cancel := context.WithCancel(t.Context())
			late := from.send(ctx, "g", "1")
			cancel()                      // changes nothing: it was claimed
			<-time.After(2 * time.Minute) // by the clock of the bubble
			to.gate <- struct{}{}
			wantAnswer(t, served, "answer to 0")
			wantError(t, late, batch.ErrTimeout)
			from.Close()
			to.Close()
		})
	})
	t.Run("leaves what does not fit to the batcher it came from", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			to := newBench(t, func(c *batch.Config[call, string]) { c.MaxQueue = 1 })
			from := &bench{batcher: relay(t, to, func() {})}
			from.send(t.Context(), "g", "0")
			from.send(t.Context(), "g", "1")
			wantError(t, from.send(t.Context(), "g", "2"), batch.ErrFull)
			from.Close()
			to.closeAfter(1)
			wantError(t, from.send(t.Context(), "own", "3"), batch.ErrClosed)
		})
	})
	t.Run("is refused by a closed batcher", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			to := newBench(t, nil)
			from := &bench{batcher: relay(t, to, func() {})}
			served := from.send(t.Context(), "g", "0")
			waits := from.send(t.Context(), "g", "1")
			to.closeAfter(1)
			wantAnswer(t, served, "answer to 0")
			wantError(t, waits, batch.ErrClosed)
			wantError(t, from.send(t.Context(), "g", "2"), batch.ErrClosed)
			from.Close()
		})
	})
}
