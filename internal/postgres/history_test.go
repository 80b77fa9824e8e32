package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/historytest"
)

// historyLimit is how long the search for an order of an account's operations may take. It takes less than a second.
const historyLimit = 20 * time.Second

// caller is a caller of one of several replicas, which records what it sends and what it is told.
type caller struct {
	t        *testing.T
	name     string
	replicas []*user.Service
	history  *historytest.History
	sent     int
	// done counts the commands of all callers that were carried out, unclear those that were sent once and of which it is
	// not known.
	done, unclear *atomic.Int64
}

// do sends a command with a key, or one that closes a reservation, to another replica each time until it is answered, and
// any other once. It reports whether the command was carried out.
func (c *caller) do(id string, command user.Command) (a historytest.Answer, done bool) {
	again := false
	c.sent++
	meta := user.Meta{IdempotencyKey: fmt.Sprintf("%s-%d", c.name, c.sent)}
	switch named := command.(type) {
	case user.Settle, user.Release:
		again = true
	case user.Consume:
		if again = c.sent%4 > 0; again {
			named.Meta = meta
			command = named
		}
	case user.AddTokens:
		again, named.Meta = true, meta
		command = named
	case user.Reserve:
		again, named.Meta = true, meta
		command = named
	}
	op := c.history.Call(id, command)
	for begin := time.Now(); ; c.sent++ {
		op.Send()
		a, err := send(c.t.Context(), c.replicas[c.sent%len(c.replicas)], id, command)
		switch refused := (*user.Error)(nil); {
		case user.OutcomeOf(err) == user.OutcomeNone:
			op.NotDone()
		case user.OutcomeOf(err) == user.OutcomeUnknown:
		case err == nil:
			op.Answered(a)
			c.done.Add(1)
			return a, true
		case errors.As(err, &refused):
			a = historytest.Answer{Code: refused.Code}
			if refused.Shortage != nil {
				a.Remaining = refused.Shortage.TokensRemaining
			}
			op.Answered(a)
			return a, false
		default:
			c.t.Errorf("%T: %v", command, err)
			return a, false
		}
		if !again {
			if user.OutcomeOf(err) == user.OutcomeUnknown {
				c.unclear.Add(1)
			}
			return a, false
		}
		if time.Since(begin) > patience {
			c.t.Errorf("%T: not answered within %s: %v", command, patience, err)
			return a, false
		}
	}
}

func send(ctx context.Context, s *user.Service, id string, command user.Command) (a historytest.Answer, err error) {
	var r user.ReservationReceipt
	switch named := command.(type) {
	case user.Touch:
		r.Account, err = s.Account(ctx, id)
	case user.Reserve:
		r, err = s.Reserve(ctx, id, named)
		a.Reservation = r.Reservation.ID
	case user.Settle:
		r, err = s.Settle(ctx, id, named)
		a.Charged, a.Shortfall = r.Reservation.Charged, r.Reservation.Shortfall
	case user.Release:
		r, err = s.Release(ctx, id, named)
	default:
		r.Receipt, err = s.Do(ctx, id, command)
	}
	a.Remaining, a.Used = r.Account.TokensRemaining, r.Account.TokensUsed
	if r.Entry != nil {
		a.Entry = r.Entry.ID
	}
	return a, err
}

// round is what a caller does with an account each time.
func (c *caller) round(id string, n int) {
	spent, done := c.do(id, user.Consume{Tokens: 5})
	c.do(id, user.Consume{Tokens: 2})
	c.do(id, user.Touch{})
	if done && n%4 == 0 {
		c.do(id, user.Refund{EntryID: spent.Entry, Tokens: 3})
	}
	held, done := c.do(id, user.Reserve{Tokens: 20})
	switch {
	case done && n%3 == 0:
		c.do(id, user.Release{ReservationID: held.Reservation})
	case done:
		c.do(id, user.Settle{ReservationID: held.Reservation, TokensUsed: int64(n % 25)})
	}
	if n%8 == 7 {
		c.do(id, user.AddTokens{Tokens: 50})
	}
}

func TestWhatCallersSeeWhileConnectionsAreLost_IsLinearizable(t *testing.T) {
	t.Parallel()
	const accounts, callers = 16, 16
	dsn := localpgtest.New(t)
	proxy := localpgtest.NewProxy(t, dsn)
	replicas := make([]*user.Service, 2)
	for i := range replicas {
		replicas[i] = service(t, open(t, proxy.URL()))
	}
	history := historytest.New(replicas[0].Rules)
	for i := range accounts {
		id := fmt.Sprint("u", i)
		create(t, replicas[0].Store, id, 500)
		history.Open(id, user.TierFree, 500, 500, 0)
	}
	var done, unclear atomic.Int64
	var stop atomic.Bool
	var running sync.WaitGroup
	defer running.Wait()
	defer stop.Store(true)
	for i := range callers {
		c := &caller{t: t, name: fmt.Sprint("caller-", i), replicas: replicas, history: history, done: &done, unclear: &unclear}
		running.Go(func() {
			for n := 0; !stop.Load(); n++ {
				c.round(fmt.Sprint("u", (i+n)%accounts), n)
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		want := done.Load() + n
		localpgtest.Await(t, fmt.Sprintf("%d more commands", n), func() bool { return done.Load() >= want })
	}
	more(100)
	for _, lost := range []struct {
		localpgtest.Moment
		localpgtest.Fault
	}{
		{localpgtest.Before("begin isolation level read committed"), localpgtest.Reset},
		{localpgtest.Before("begin isolation level read committed"), localpgtest.Cut},
		{localpgtest.Before("commit"), localpgtest.Cut},
		{localpgtest.Before("commit"), localpgtest.Reset},
		{localpgtest.Answer("commit"), localpgtest.HalfCloseClient},
	} {
		plan := proxy.At(lost.Moment, lost.Fault, 2)
		localpgtest.Await(t, "the fault has happened", func() bool { return plan.Left() == 0 })
		more(20)
	}
	plan := proxy.At(localpgtest.Answer("commit"), localpgtest.Cut, 1)
	localpgtest.Await(t, "some commands have no clear answer", func() bool {
		if plan.Left() == 0 {
			plan = proxy.At(localpgtest.Answer("commit"), localpgtest.Cut, 1)
		}
		return unclear.Load() >= 5
	})
	for range 3 {
		proxy.CutAll()
		more(50)
	}
	stop.Store(true)
	running.Wait()
	last := &caller{t: t, name: "last", replicas: replicas, history: history, done: &done, unclear: &unclear}
	for i := range accounts {
		last.do(fmt.Sprint("u", i), user.Touch{})
	}
	begin := time.Now()
	sum, err := history.Check(historyLimit)
	if err != nil {
		t.Error(err)
	}
	if sum.Unanswered < int(unclear.Load()) {
		t.Errorf("%s, but %d had no clear answer", sum, unclear.Load())
	}
	t.Logf("%s, checked in %s", sum, time.Since(begin).Round(time.Millisecond))
}

// hasty is a store that answers one update before its commit, and lets that commit come when the test says so.
type hasty struct {
	*postgres.Store
	commit chan struct{}
	done   chan error
}

func (h *hasty) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	answer := make(chan user.Change, 1)
	go func() {
		_, err := h.Store.Update(ctx, ref, func(s user.State) (user.Change, error) {
			change, err := apply(s)
			select {
			case answer <- change:
			default: // it is tried again
			}
			<-h.commit
			return change, err
		})
		h.done <- err
	}()
	return <-answer, nil
}

// doubling is a store that carries out twice what has a key.
type doubling struct{ *postgres.Store }

func (d doubling) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	change, err := d.Store.Update(ctx, ref, apply)
	if err != nil || ref.IdempotencyKey == "" {
		return change, err
	}
	_, err = d.Store.Update(ctx, user.Ref{AccountID: ref.AccountID}, func(s user.State) (user.Change, error) {
		again, err := apply(s)
		for i := range again.Entries {
			again.Entries[i].IdempotencyKey, again.Entries[i].CommandHash = nil, nil
		}
		return again, err
	})
	return change, err
}

func TestAStoreThatAnswersBeforeItsCommitOrChargesTwice_IsNotLinearizable(t *testing.T) {
	t.Parallel()
	store := open(t, localpgtest.New(t))
	for name, faulty := range map[string]user.Store{
		"none":                         store,
		"answers before it does":       &hasty{store, make(chan struct{}), make(chan error, 1)},
		"charges what has a key twice": doubling{store},
	} {
		id := strings.ReplaceAll(name, " ", "-")
		create(t, store, id, 100)
		sound, history, done := service(t, store), historytest.New(service(t, store).Rules), new(atomic.Int64)
		history.Open(id, user.TierFree, 100, 100, 0)
		first := &caller{t: t, name: "first", replicas: []*user.Service{service(t, faulty)}, history: history, done: done, unclear: done}
		second := &caller{t: t, name: "second", replicas: []*user.Service{sound}, history: history, done: done, unclear: done}
		first.do(id, user.Consume{Tokens: 5})
		second.do(id, user.Touch{})
		if h, ok := faulty.(*hasty); ok {
			close(h.commit)
			if err := <-h.done; err != nil {
				t.Error(err)
			}
		}
		second.do(id, user.Consume{Tokens: 5})
		sum, err := history.Check(historyLimit)
		if found := err != nil; found == (faulty == user.Store(store)) || sum.Operations != 3 {
			t.Errorf("a store whose fault is %q: %s, %v", name, sum, err)
		}
		t.Logf("%s: %v", name, err)
	}
}
