package batch_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
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
		Serve: func(requests []*request) {
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
					c.Serve = func(requests []*request) {
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

// relay starts a batcher that forwards to another one all calls but those of the group "own".
func relay(t *testing.T, to *bench, then func()) *batcher {
	b := newBench(t, func(c *batch.Config[call, string]) {
		c.Serve = func(requests []*request) {
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
