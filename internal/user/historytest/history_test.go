package historytest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/historytest"
)

const limit = 10 * time.Second

var now = time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)

// memory is a store of accounts that were opened in it. It has faults, some of which a store must not have.
type memory struct {
	user.Store
	rules user.Rules
	// faults are those of updates by their numbers, which begin with 1. With keyed only updates with a key have numbers.
	faults map[int]fault
	keyed  bool
	// forgetful is true for a store that knows no keys.
	forgetful bool

	mu           sync.Mutex
	accounts     map[string]user.Account
	prior        map[string]user.Entry
	reservations map[string]user.Reservation
	charges      map[int64]user.Charge
	entries      int64
	updates      int
	// owed is what was answered and is not done before the account's next update has been answered.
	owed map[string]func()
}

type fault int

const (
	// early answers before it does what it is asked for.
	early fault = iota + 1
	// twice does it twice.
	twice
	// lost answers and never does it.
	lost
	// denied does it and says that nothing was done.
	denied
	// unanswered does it and says that the outcome is not known.
	unanswered
	// nothing does nothing and says that the outcome is not known.
	nothing
)

func newMemory(rules user.Rules, f fault, at ...int) *memory {
	m := &memory{
		rules: rules, faults: map[int]fault{}, accounts: map[string]user.Account{}, prior: map[string]user.Entry{},
		reservations: map[string]user.Reservation{}, charges: map[int64]user.Charge{}, owed: map[string]func(){},
	}
	for _, n := range at {
		m.faults[n] = f
	}
	return m
}

func (m *memory) Account(_ context.Context, id string) (user.Account, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accounts[id], nil
}

func (m *memory) Reservation(_ context.Context, _, id string) (user.Reservation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reservations[id], nil
}

func (m *memory) Update(_ context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if owed := m.owed[ref.AccountID]; owed != nil {
		delete(m.owed, ref.AccountID)
		defer owed()
	}
	number := 0
	if !m.keyed || ref.IdempotencyKey != "" {
		m.updates++
		number = m.updates
	}
	do := func(ref user.Ref) (user.Change, error) {
		change, err := apply(m.state(ref))
		m.keep(ref, change)
		return change, err
	}
	switch m.faults[number] {
	case early:
		m.owed[ref.AccountID] = func() { _, _ = do(ref) }
		return m.number(apply(m.state(ref)))
	case twice:
		again := ref
		again.IdempotencyKey = ""
		defer func() { _, _ = do(again) }()
	case lost:
		return m.number(apply(m.state(ref)))
	case denied:
		_, _ = do(ref)
		return user.Change{}, user.ErrDatabaseUnavailable
	case unanswered:
		_, _ = do(ref)
		return user.Change{}, user.ErrOutcomeUnknown
	case nothing:
		return user.Change{}, user.ErrOutcomeUnknown
	}
	return do(ref)
}

// number gives the entries of a change their ids.
func (m *memory) number(change user.Change, err error) (user.Change, error) {
	for i := range change.Entries {
		m.entries++
		change.Entries[i].ID = m.entries
	}
	return change, err
}

func (m *memory) state(ref user.Ref) user.State {
	s := user.State{Now: now, Account: m.accounts[ref.AccountID]}
	if e, ok := m.prior[ref.AccountID+" "+ref.IdempotencyKey]; ok && ref.IdempotencyKey != "" && !m.forgetful {
		s.Prior = &e
	}
	if r, ok := m.reservations[ref.ReservationID]; ok {
		s.Reservation = &r
	}
	if c, ok := m.charges[ref.EntryID]; ok {
		s.Charge = &c
	}
	return s
}

func (m *memory) keep(ref user.Ref, change user.Change) {
	if change.Empty() {
		return
	}
	_, _ = m.number(change, nil)
	m.accounts[ref.AccountID] = change.Account
	for _, r := range change.Reservations {
		m.reservations[r.ID] = r
	}
	for _, e := range change.Entries {
		if e.IdempotencyKey != nil {
			m.prior[ref.AccountID+" "+*e.IdempotencyKey] = e
		}
		for id, c := range m.charges {
			c.Follow(e)
			m.charges[id] = c
		}
		if e.TokensCharged > 0 {
			m.charges[e.ID] = user.Charge{Entry: e}
		}
	}
}

// caller calls a service and records it.
type caller struct {
	t       *testing.T
	service *user.Service
	history *historytest.History
	name    string
	sent    int
}

func rules(t *testing.T) user.Rules {
	t.Helper()
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		t.Fatal(err)
	}
	return user.NewRules(tiers, time.UTC)
}

// open makes an account of a thousand tokens of allowance and ten top-ups.
func (c *caller) open(id string) {
	m := c.service.Store.(*memory)
	m.accounts[id] = user.Account{
		ID: id, Tier: user.TierTester, SubscriptionStatus: user.StatusActive, Active: true, SideRow: user.CurrentSideRow,
		TokensRemaining: 1010, TopUps: 10, Allowance: 1000, GrantedPeriod: 12*2026 + 11, LastReset: &now,
	}
	c.history.Open(id, user.TierTester, 1010, 10, 0)
}

func newCaller(t *testing.T, store *memory) *caller {
	return &caller{
		t: t, service: &user.Service{Store: store, Rules: store.rules, Now: func() time.Time { return now }},
		history: historytest.New(store.rules), name: "one",
	}
}

// do sends a command, one that may be sent again until it is answered. A key is replaced by one that is new.
func (c *caller) do(id string, command user.Command) (a historytest.Answer, done bool) {
	op := c.history.Call(id, command)
	again := false
	switch named := command.(type) {
	case user.Consume:
		if again = named.IdempotencyKey != ""; again {
			c.sent++
			named.IdempotencyKey = fmt.Sprint(c.name, "-", c.sent)
			command = named
		}
	case user.Settle:
		again = true
	}
	for {
		op.Send()
		a, err := c.send(id, command)
		switch refused := (*user.Error)(nil); {
		case user.OutcomeOf(err) == user.OutcomeNone:
			op.NotDone()
		case user.OutcomeOf(err) == user.OutcomeUnknown:
		case errors.As(err, &refused):
			a = historytest.Answer{Code: refused.Code}
			if refused.Shortage != nil {
				a.Remaining = refused.Shortage.TokensRemaining
			}
			op.Answered(a)
			return a, false
		default:
			op.Answered(a)
			return a, true
		}
		if !again {
			return a, false
		}
	}
}

func (c *caller) send(id string, command user.Command) (historytest.Answer, error) {
	switch cmd := command.(type) {
	case user.Touch:
		account, err := c.service.Store.Account(c.t.Context(), id)
		return historytest.Answer{Remaining: account.TokensRemaining, Used: account.TokensUsed}, err
	case user.Reserve:
		cmd.ReservationID = uuid.NewString()
		r, err := c.service.Do(c.t.Context(), id, cmd)
		return answer(r, cmd.ReservationID), err
	case user.Settle:
		r, err := c.service.Settle(c.t.Context(), id, cmd)
		a := answer(r.Receipt, "")
		a.Charged, a.Shortfall = r.Reservation.Charged, r.Reservation.Shortfall
		return a, err
	}
	r, err := c.service.Do(c.t.Context(), id, command)
	return answer(r, ""), err
}

func answer(r user.Receipt, reservation string) historytest.Answer {
	a := historytest.Answer{Remaining: r.Account.TokensRemaining, Used: r.Account.TokensUsed, Reservation: reservation}
	if r.Entry != nil {
		a.Entry = r.Entry.ID
	}
	return a
}

var keyed = user.Meta{IdempotencyKey: "any"}

// spendTogether lets eight callers spend from two accounts until most is gone.
func spendTogether(t *testing.T, store *memory) *caller {
	t.Helper()
	first := newCaller(t, store)
	first.open("u")
	first.open("v")
	var running sync.WaitGroup
	for i := range 8 {
		c := *first
		c.name = fmt.Sprint("caller-", i)
		running.Go(func() {
			for n := range 30 {
				id := "u"
				if (i+n)%2 == 1 {
					id = "v"
				}
				spent, done := c.do(id, user.Consume{Tokens: 5, Meta: keyed})
				c.do(id, user.Consume{Tokens: 2})
				c.do(id, user.Touch{})
				if done && n%3 == 0 {
					c.do(id, user.Refund{EntryID: spent.Entry, Tokens: 3})
				}
				if held, ok := c.do(id, user.Reserve{Tokens: 20}); ok {
					c.do(id, user.Settle{ReservationID: held.Reservation, TokensUsed: int64(n)})
				}
			}
		})
	}
	running.Wait()
	for _, id := range []string{"u", "v"} {
		first.do(id, user.Touch{})
	}
	return first
}

func TestCheck_TakesWhatAStoreMayDo(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]*memory{
		"no fault":                     newMemory(rules(t), 0),
		"some without an answer":       newMemory(rules(t), unanswered, 10, 11, 12, 13, 14, 50, 100, 200, 201, 202, 203, 400),
		"some not done without answer": newMemory(rules(t), nothing, 10, 11, 12, 13, 14, 50, 100, 200, 201, 202, 203, 400),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sum, err := spendTogether(t, store).history.Check(limit)
			if err != nil || sum.Operations < 1000 {
				t.Errorf("%s: %v", sum, err)
			}
			t.Log(sum)
		})
	}
}

func TestCheck_FindsWhatAStoreMustNotDo(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{
		"one answered before its commit": early, "one done twice": twice, "one lost": lost,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newMemory(rules(t), f, 20)
			store.keyed = true
			sum, err := spendTogether(t, store).history.Check(limit)
			if err == nil || !strings.Contains(err.Error(), "no order") {
				t.Errorf("%s: %v", sum, err)
			}
			t.Log(err)
		})
	}
}

func TestCheck_FindsItInFewCalls(t *testing.T) {
	t.Parallel()
	consume, again, read := user.Consume{Tokens: 5}, user.Consume{Tokens: 5, Meta: keyed}, user.Touch{}
	forgetful := newMemory(rules(t), unanswered, 1)
	forgetful.forgetful = true
	for name, test := range map[string]struct {
		store *memory
		calls []user.Command
	}{
		"a read does not see what was answered":    {newMemory(rules(t), early, 1), []user.Command{consume, read, read}},
		"a consume does not see what was answered": {newMemory(rules(t), early, 1), []user.Command{consume, consume}},
		"a read sees a consume twice":              {newMemory(rules(t), twice, 1), []user.Command{consume, read}},
		"a consume is lost":                        {newMemory(rules(t), lost, 1), []user.Command{consume, read}},
		"a key is forgotten":                       {forgetful, []user.Command{again, read}},
		"a consume is done and denied":             {newMemory(rules(t), denied, 1), []user.Command{consume, read}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCaller(t, test.store)
			c.open("u")
			for _, command := range test.calls {
				c.do("u", command)
			}
			if sum, err := c.history.Check(limit); err == nil {
				t.Errorf("nothing was found in %s", sum)
			}
		})
	}
}

func TestCheck_CommandWithoutAnswerMayBeDoneLateOrNever(t *testing.T) {
	t.Parallel()
	for remaining, want := range map[int64]bool{1010: true, 1005: true, 1000: false} {
		h := historytest.New(rules(t))
		h.Open("u", user.TierTester, 1010, 10, 0)
		h.Call("u", user.Consume{Tokens: 5}).Send()
		denied := h.Call("u", user.Consume{Tokens: 5})
		denied.Send()
		denied.NotDone()
		read := func(remaining int64) {
			op := h.Call("u", user.Touch{})
			op.Send()
			op.Answered(historytest.Answer{Remaining: remaining, Used: 1010 - remaining})
		}
		read(1010) // it has not been done yet
		read(remaining)
		if sum, err := h.Check(limit); (err == nil) != want {
			t.Errorf("%d remaining in %s: %v", remaining, sum, err)
		}
	}
}

// A refusal says nothing of the times that the command was sent before and not answered.
func TestCheck_RefusedCommandMayStillBeOnItsWay(t *testing.T) {
	t.Parallel()
	for times, want := range map[int]bool{1: false, 2: true} {
		h := historytest.New(rules(t))
		h.Open("u", user.TierFree, 3, 3, 0)
		op := h.Call("u", user.Consume{Tokens: 5, Meta: keyed})
		for range times {
			op.Send()
		}
		op.Answered(historytest.Answer{Code: user.CodeInsufficientTokens, Remaining: 3})
		add := h.Call("u", user.AddTokens{Tokens: 7})
		add.Send()
		add.Answered(historytest.Answer{Remaining: 10})
		read := h.Call("u", user.Touch{})
		read.Send()
		read.Answered(historytest.Answer{Remaining: 5, Used: 5})
		if sum, err := h.Check(limit); (err == nil) != want {
			t.Errorf("sent %d times, %s: %v", times, sum, err)
		}
	}
}

// What is denied and then done under the same key was not done in between.
func TestCheck_CommandThatWasDeniedBeginsAnew(t *testing.T) {
	t.Parallel()
	for remaining, want := range map[int64]bool{1010: true, 1005: false} {
		h := historytest.New(rules(t))
		h.Open("u", user.TierTester, 1010, 10, 0)
		op := h.Call("u", user.Consume{Tokens: 5, Meta: keyed})
		op.Send()
		op.NotDone()
		read := h.Call("u", user.Touch{})
		read.Send()
		read.Answered(historytest.Answer{Remaining: remaining, Used: 1010 - remaining})
		op.Send()
		op.Answered(historytest.Answer{Remaining: 1005, Used: 5})
		if sum, err := h.Check(limit); (err == nil) != want {
			t.Errorf("%d remaining in %s: %v", remaining, sum, err)
		}
	}
}

func TestCheck_MonthThatEndsBringsTheAllowanceAnew(t *testing.T) {
	t.Parallel()
	for remaining, want := range map[int64]bool{1005: true, 2005: false} {
		h := historytest.New(rules(t))
		h.Open("u", user.TierTester, 10, 5, 995)
		edit := h.Call("u", historytest.Edit(historytest.MonthEnds))
		edit.Send()
		edit.Answered(historytest.Answer{})
		read := h.Call("u", user.Touch{})
		read.Send()
		read.Answered(historytest.Answer{Remaining: remaining})
		if sum, err := h.Check(limit); (err == nil) != want {
			t.Errorf("%d remaining in %s: %v", remaining, sum, err)
		}
	}
}

func TestCheck_WhatCannotBeFoundOutInTimeIsAnError(t *testing.T) {
	t.Parallel()
	c := spendTogether(t, newMemory(rules(t), 0))
	if _, err := c.history.Check(time.Nanosecond); err == nil || !strings.Contains(err.Error(), "could not be found out") {
		t.Errorf("got %v", err)
	}
}
