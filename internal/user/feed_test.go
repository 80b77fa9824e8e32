package user_test

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// far is a time that no test reaches.
func far() time.Time { return time.Now().Add(time.Hour) }

// settled is a ledger whose entries are all settled; it has one for each id.
type settled struct {
	last  atomic.Int64
	looks atomic.Int64
	// gate, when set, holds each look until something is sent.
	gate chan struct{}
}

func (s *settled) Horizon(context.Context) (user.Horizon, error) {
	last := s.last.Load()
	s.looks.Add(1)
	if s.gate != nil {
		<-s.gate
	}
	return user.Horizon{ID: last, Drawn: last}, nil
}

func (s *settled) EntriesAfter(_ context.Context, after, upTo int64, _ user.EntryKind, limit int) (entries []user.FeedEntry, err error) {
	for id := after + 1; id <= upTo && len(entries) < limit; id++ {
		entries = append(entries, user.FeedEntry{Entry: user.Entry{ID: id}})
	}
	return entries, nil
}

func newFeed(t *testing.T, store user.FeedStore) *user.Feed {
	t.Helper()
	feed := user.NewFeed(store)
	t.Cleanup(feed.Close)
	return feed
}

func TestFeedWait_EndsForEverybodyWhenAnEntryComes(t *testing.T) {
	t.Parallel()
	store := &settled{}
	feed := newFeed(t, store)
	var waiting sync.WaitGroup
	for range 100 {
		waiting.Go(func() {
			if moved, err := feed.Wait(t.Context(), 0, far()); !moved || err != nil {
				t.Errorf("moved %t, %v", moved, err)
			}
		})
	}
	store.last.Store(1)
	waiting.Wait()
}

func TestFeedWait_RefusesMoreThanSoMany(t *testing.T) {
	t.Parallel()
	feed := newFeed(t, &settled{})
	refused := make(chan error)
	var waiting sync.WaitGroup
	for range 300 {
		waiting.Go(func() {
			if _, err := feed.Wait(t.Context(), 0, far()); err != nil {
				refused <- err
			}
		})
	}
	for range 300 - 256 {
		if err := <-refused; !errors.Is(err, user.ErrOverloaded) {
			t.Error(err)
		}
	}
	feed.Stop()
	waiting.Wait()
}

func TestFeedWait_EndsWithoutAnEntry(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx   context.Context
		until time.Time
		stop  bool
	}{
		"when its time is over":       {t.Context(), time.Now(), false},
		"when the caller has gone":    {canceled, far(), false},
		"when the feed was stopped":   {t.Context(), far(), true},
		"when it is over and stopped": {t.Context(), time.Now(), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			feed := newFeed(t, &settled{})
			if c.stop {
				feed.Stop()
			}
			if moved, err := feed.Wait(c.ctx, 0, c.until); moved || err != nil {
				t.Errorf("moved %t, %v", moved, err)
			}
		})
	}
}

func TestFeedWait_WaitsAtTheLastPositionOfAll(t *testing.T) {
	t.Parallel()
	store := &settled{}
	store.last.Store(5)
	feed := newFeed(t, store)
	until := time.Now().Add(100 * time.Millisecond)
	if moved, err := feed.Wait(t.Context(), math.MaxInt64, until); moved || err != nil || time.Now().Before(until) {
		t.Errorf("moved %t, %v, before its time: %t", moved, err, time.Now().Before(until))
	}
}

func TestFeedPage_LooksOnceForAllWhoAskAtOnce(t *testing.T) {
	t.Parallel()
	store := &settled{gate: make(chan struct{})}
	store.last.Store(5)
	feed := newFeed(t, store)
	var begun, reading sync.WaitGroup
	const readers = 50
	begun.Add(readers)
	for range readers {
		reading.Go(func() {
			begun.Done()
			page, err := feed.Page(t.Context(), user.FeedQuery{Limit: 10})
			if err != nil || len(page.Entries) != 5 || page.Next != 5 {
				t.Errorf("%+v, %v", page, err)
			}
		})
	}
	begun.Wait()
	done := make(chan struct{})
	go func() {
		reading.Wait()
		close(done)
	}()
	for ended := false; !ended; {
		select {
		case store.gate <- struct{}{}:
		case <-done:
			ended = true
		}
	}
	if looks := store.looks.Load(); looks >= readers {
		t.Errorf("%d looks for %d readers", looks, readers)
	}
}

func TestFeedPage_GoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	store := &settled{}
	store.last.Store(25)
	feed := newFeed(t, store)
	var next []int64
	for q := (user.FeedQuery{Limit: 10}); ; {
		page, err := feed.Page(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		next = append(next, page.Next)
		if page.Next == q.After {
			break
		}
		q.After = page.Next
	}
	if len(next) != 4 || next[0] != 10 || next[1] != 20 || next[2] != 25 || next[3] != 25 {
		t.Errorf("pages end at %v", next)
	}
	t.Run("also when it is beyond what is there", func(t *testing.T) {
		page, err := feed.Page(t.Context(), user.FeedQuery{After: math.MaxInt64, Limit: 10})
		if err != nil || page.Next != 1<<63-1 || len(page.Entries) != 0 {
			t.Errorf("%+v, %v", page, err)
		}
	})
}
