package historytest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/viralpilot/user-management/internal/user"
)

// mostOperations is how many operations one account may have: the checker's memory grows with their square.
const mostOperations = 40_000

// Sum is what a check has looked at.
type Sum struct{ Accounts, Operations, Unanswered int }

func (s Sum) String() string {
	return fmt.Sprintf("%d operations on %d accounts, %d without an answer", s.Operations, s.Accounts, s.Unanswered)
}

// Check returns an error that names each account whose history the rules cannot explain, or for which that could not be
// found out within the limit. All callers must have ended.
func (h *History) Check(limit time.Duration) (Sum, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var sum Sum
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(h.accounts)) {
		m := newModel(h.rules, h.accounts[id])
		sum.Accounts++
		sum.Operations += len(m.operations)
		for _, o := range m.operations {
			if o.answer == nil {
				sum.Unanswered++
			}
		}
		if err := m.check(limit); err != nil {
			errs = append(errs, fmt.Errorf("account %s: %w", id, err))
		}
	}
	return sum, errors.Join(errs...)
}

// operation is one that the model may be asked to carry out.
type operation struct {
	command          any
	called, answered time.Duration
	answer           *Answer
	// place is, of one that was answered with an entry, how many others were answered with smaller entries; of one without
	// an answer, how many of the same class were called before it.
	place int
	// class numbers commands without an answer that are the same; -1 for one that has no like.
	class int
}

// model carries the commands of one account out by the rules.
type model struct {
	rules      user.Rules
	first      *state
	operations []*operation
	// refunded are the entries that refunds name.
	refunded map[int64]bool

	mu sync.Mutex
	// furthest is the most operations in any order that the rules explain, at is the state after them, and stuck are those
	// that were tried next in vain.
	furthest int
	at       *state
	stuck    []string
}

// state is what the model knows after some operations. It is never changed.
type state struct {
	account user.Account
	done    int
	// entries is how many operations with an entry there were, and unanswered how many without an answer, by class.
	entries    int
	unanswered []int
	// reservations are all that were made under a known id, charges those that a refund names.
	reservations []user.Reservation
	charges      []user.Charge
}

func newModel(rules user.Rules, a *account) *model {
	m := &model{rules: rules, refunded: map[int64]bool{}}
	for _, o := range a.operations {
		if c, ok := o.command.(user.Refund); ok {
			m.refunded[c.EntryID] = true
		}
		if o.answer != nil {
			m.operations = append(m.operations, &operation{command: o.command, called: o.called, answered: o.answered, answer: o.answer})
		}
		// It may still be carried out when it was refused, if it was on its way several times.
		if o.unsure > 0 && o.answer == nil || o.unsure > 1 && o.answer.Code != "" {
			m.operations = append(m.operations, &operation{command: o.command, called: o.called, answered: never})
		}
	}
	slices.SortStableFunc(m.operations, func(a, b *operation) int { return cmp.Compare(a.called, b.called) })
	var entries []*operation
	classes := map[string]int{}
	var called []int
	for _, o := range m.operations {
		switch {
		case o.answer != nil && o.answer.Entry != 0:
			entries = append(entries, o)
		case o.answer == nil:
			name := class(o.command)
			if name == "" {
				o.class = -1
				continue
			}
			number, known := classes[name]
			if !known {
				number = len(classes)
				classes[name], called = number, append(called, 0)
			}
			o.class, o.place = number, called[number]
			called[number]++
		}
	}
	slices.SortStableFunc(entries, func(a, b *operation) int { return cmp.Compare(a.answer.Entry, b.answer.Entry) })
	for i, o := range entries {
		o.place = i
	}
	m.first = &state{account: a.first, unanswered: make([]int, len(classes))}
	return m
}

// class names what a command does, where it does the same as others that have nothing but another key.
func class(command any) string {
	switch c := command.(type) {
	case user.Consume:
		return fmt.Sprint("consume ", c.Tokens)
	case user.AddTokens:
		return fmt.Sprint("add ", c.Tokens)
	case user.Reserve: // an unknown reservation
		return fmt.Sprint("reserve ", c.Tokens)
	}
	return ""
}

func (m *model) check(limit time.Duration) error {
	if len(m.operations) > mostOperations {
		return fmt.Errorf("a history of %d operations is too long to be checked, the most is %d", len(m.operations), mostOperations)
	}
	history := make([]porcupine.Operation, len(m.operations))
	for i, o := range m.operations {
		history[i] = porcupine.Operation{Input: o, Call: int64(o.called), Return: int64(o.answered)}
	}
	switch porcupine.CheckOperationsTimeout(porcupine.Model{
		Init:  func() any { return m.first },
		Step:  func(s, o, _ any) (bool, any) { return m.step(s.(*state), o.(*operation)) },
		Equal: func(a, b any) bool { return reflect.DeepEqual(a, b) },
		Hash: func(s any) uint64 {
			a := &s.(*state).account
			return uint64(a.TokensRemaining)<<32 ^ uint64(a.TokensUsed)
		},
	}, history, limit) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		return fmt.Errorf("no order of its %d operations explains the answers: %s", len(m.operations), m.progress())
	default:
		return fmt.Errorf("it could not be found out within %s whether an order of its %d operations explains the answers: %s",
			limit, len(m.operations), m.progress())
	}
}

// progress tells how far the rules could explain the history.
func (m *model) progress() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		return "none was tried in vain"
	}
	a := m.at.account
	return fmt.Sprintf("after %d of them it has R=%d U=%d H=%d T=%d, and next cannot be\n%s",
		m.furthest, a.TokensRemaining, a.TokensUsed, a.Reserved, a.TopUps, strings.Join(m.stuck, "\n"))
}

// step carries an operation out and reports whether its answer is that of the rules.
func (m *model) step(s *state, o *operation) (bool, *state) {
	// The ids of an account's entries rise, so those that were answered with one have a known order.
	if o.answer != nil && o.answer.Entry != 0 && o.place != s.entries {
		return false, nil
	}
	// Of commands that are the same and open-ended, the order makes no difference.
	if o.answer == nil && o.class >= 0 && o.place != s.unanswered[o.class] {
		return false, nil
	}
	next, got := m.apply(s, o)
	if o.answer != nil && !agree(o, got) {
		m.note(s, o, got)
		return false, nil
	}
	next.done++
	if o.answer == nil && o.class >= 0 {
		next.unanswered = slices.Clone(s.unanswered)
		next.unanswered[o.class]++
	}
	if o.answer != nil && o.answer.Entry != 0 {
		next.entries++
	}
	return true, next
}

// agree reports whether the operation was answered as the rules do.
func agree(o *operation, got Answer) bool {
	if _, edited := o.command.(Edit); edited {
		return true
	}
	want := *o.answer
	want.Entry, want.Reservation = 0, ""
	if want.Code != "" && want.Code != user.CodeInsufficientTokens {
		want.Remaining = got.Remaining
	}
	if want.Code != "" {
		want.Used = got.Used
	}
	return got == want
}

// apply lets the rules carry an operation out, and returns what they answer.
func (m *model) apply(s *state, o *operation) (*state, Answer) {
	next := *s
	if edit, ok := o.command.(Edit); ok {
		next.account = edit(s.account)
		return &next, Answer{}
	}
	in := user.State{Now: instant, Account: s.account}
	command := o.command.(user.Command)
	ref := m.rules.Ref(s.account.ID, command)
	if i := slices.IndexFunc(s.reservations, func(r user.Reservation) bool { return r.ID == ref.ReservationID }); i >= 0 {
		in.Reservation = &s.reservations[i]
	}
	if i := slices.IndexFunc(s.charges, func(c user.Charge) bool { return c.Entry.ID == ref.EntryID }); i >= 0 {
		in.Charge = &s.charges[i]
	}
	if c, ok := command.(user.Reserve); ok && o.answer != nil {
		c.ReservationID = o.answer.Reservation
		command = c
	}
	change, err := m.rules.Apply(in, command)
	if change.Account.ID != "" { // or else it was refused before the rules looked at the account
		next.account = change.Account
	}
	got := Answer{Remaining: next.account.TokensRemaining, Used: next.account.TokensUsed}
	if err != nil {
		got.Code = user.CodeOf(err)
	}
	if len(change.Reservations) > 0 {
		next.reservations = slices.Clone(s.reservations)
		for _, r := range change.Reservations {
			if i := slices.IndexFunc(next.reservations, func(old user.Reservation) bool { return old.ID == r.ID }); i >= 0 {
				next.reservations[i] = r
			} else if r.ID != "" {
				next.reservations = append(next.reservations, r)
			}
			if r.Status == user.ReservationSettled {
				got.Charged, got.Shortfall = r.Charged, r.Shortfall
			}
		}
	}
	if len(s.charges) > 0 && len(change.Entries) > 0 {
		next.charges = slices.Clone(s.charges)
		for i := range next.charges {
			for _, e := range change.Entries {
				next.charges[i].Follow(e)
			}
		}
	}
	if change.Recorded && o.answer != nil && m.refunded[o.answer.Entry] {
		e := change.Entries[len(change.Entries)-1]
		e.ID = o.answer.Entry
		charge := user.Charge{Entry: e}
		if len(change.Reservations) > 0 {
			charge.Reservation = &change.Reservations[len(change.Reservations)-1]
		}
		next.charges = append(slices.Clone(next.charges), charge)
	}
	return &next, got
}

// note remembers what came next in vain after the longest order that the rules explain.
func (m *model) note(s *state, o *operation, got Answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil || s.done > m.furthest {
		m.furthest, m.at, m.stuck = s.done, s, nil
	}
	if s.done == m.furthest && len(m.stuck) < 8 {
		m.stuck = append(m.stuck, fmt.Sprintf("  from %s to %s: %T%+v, answered with %+v, by the rules %+v",
			o.called, o.answered, o.command, o.command, *o.answer, got))
	}
}
