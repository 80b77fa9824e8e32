package usertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// Subject is what sequences are played against: a store, and what hands do to its tables.
//
// The steps of a sequence have instants of their own, all of them long past. Run puts the step's instant into State.Now
// before a rule sees it, so the store needs no clock that can be set: by its own one every open reservation is due, which
// is why it returns all of them in State.Holds, up to [user.MaxHoldsPerUpdate], and the rule picks those that are due at
// the step's instant. A store that wants to know the instant itself finds it by [Instant].
type Subject interface {
	user.Store
	// PutRow writes a row of userdata as a hand does, with its twelve columns, in place of the one that is there if
	// there is one. The side row and all else stay as they are.
	PutRow(ctx context.Context, row user.Account) error
	// DeleteRow deletes a row of userdata as a hand does.
	DeleteRow(ctx context.Context, id string) error
}

// EarlierSubject is a Subject that can take an account as the version before granted periods left it, for sequences
// drawn by [Conversions].
type EarlierSubject interface {
	Subject
	// PutEarlier writes an account with its side row in the earlier form, its ledger and its reservations. It returns
	// the ids of the entries.
	PutEarlier(ctx context.Context, e Earlier) ([]int64, error)
}

type instantKey struct{}

// Instant is the instant of the step that a call of a [Subject] belongs to; zero outside of steps.
func Instant(ctx context.Context) time.Time {
	at, _ := ctx.Value(instantKey{}).(time.Time)
	return at
}

// clocked is a Subject on which it is a given time.
type clocked struct {
	Subject
	at time.Time
}

func (c clocked) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	return c.Subject.Update(ctx, ref, c.clock(apply))
}

func (c clocked) Create(ctx context.Context, id string, open func(user.State) (user.Change, error)) (user.Change, error) {
	return c.Subject.Create(ctx, id, c.clock(open))
}

func (c clocked) clock(rule func(user.State) (user.Change, error)) func(user.State) (user.Change, error) {
	return func(s user.State) (user.Change, error) {
		s.Now = c.at
		return rule(s)
	}
}

// Run plays the sequence on a new account with the given id and returns the first difference between the subject and
// the model, in what is answered, in what is stored, or in the invariants of [Check].
func (q Sequence) Run(ctx context.Context, subject Subject, id string) error {
	p := &player{subject: subject, id: id}
	if err := p.start(ctx, q); err != nil {
		return fmt.Errorf("at the start: %w", err)
	}
	for i, s := range q.Steps {
		if err := p.play(context.WithValue(ctx, instantKey{}, s.At), s, q.outcomes[i]); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, describe(s.Command), err)
		}
	}
	return nil
}

// player is a sequence on its way.
type player struct {
	subject Subject
	id      string
	// entries are what was stored after the step before, granted the period that had been granted.
	entries []user.Entry
	granted int
}

func (p *player) start(ctx context.Context, q Sequence) error {
	switch row := q.Row; {
	case q.Earlier != nil:
		earlier := *q.Earlier
		earlier.Account.ID = p.id
		subject, ok := p.subject.(EarlierSubject)
		if !ok {
			return errors.New("the subject takes no accounts of the earlier version")
		}
		if _, err := subject.PutEarlier(ctx, earlier); err != nil {
			return err
		}
	case row.SideRow == user.NoSideRow:
		row.ID = p.id
		if err := p.subject.PutRow(ctx, row); err != nil {
			return err
		}
	default:
		if _, err := p.create(ctx, p.service(q.opened.rules, q.opened.at), q.by); err != nil {
			return err
		}
	}
	return p.compare(ctx, q.opened)
}

// create makes the account, or does not if it is there.
func (p *player) create(ctx context.Context, service user.Service, by user.Command) (r user.Receipt, err error) {
	switch c := by.(type) {
	case user.NewAccount:
		c.ID = p.id
		return service.Create(ctx, c)
	case user.PutProfile:
		r, _, err = service.Put(ctx, p.id, c)
	}
	return r, err
}

func (p *player) service(rules user.Rules, at time.Time) user.Service {
	return user.Service{Store: clocked{p.subject, at}, Rules: rules, Now: func() time.Time { return at }}
}

func (p *player) play(ctx context.Context, s Step, want outcome) error {
	got, err := p.execute(ctx, s)
	if !errors.Is(err, want.err()) {
		return fmt.Errorf("answered %w, want refusal %q", err, want.refusal)
	}
	var refused *user.Error
	if errors.As(err, &refused) && !sameShortage(refused.Shortage, want.shortage) {
		return fmt.Errorf("shortage %s, want %s", text(refused.Shortage), text(want.shortage))
	}
	if err := p.compare(ctx, want.after); err != nil || refused != nil {
		return err
	}
	switch s.Command.(type) {
	case Replace, Reconcile:
		return nil
	}
	return p.compareAnswer(got, want)
}

func (p *player) compareAnswer(got answer, want outcome) error {
	account, wanted := view(got.Account), view(want.answer)
	account.SideRow, wanted.SideRow = 0, 0 // not for the caller to know
	if account != wanted {
		return fmt.Errorf("answered with\n%+v, want\n%+v", account, wanted)
	}
	if r := got.reservation; r != nil && viewReservation(*r) != viewReservation(*want.reservation) {
		return fmt.Errorf("answered with\n%+v, want\n%+v", viewReservation(*r), viewReservation(*want.reservation))
	}
	if got.Replayed != want.replayed {
		return fmt.Errorf("replayed: %t, want %t", got.Replayed, want.replayed)
	}
	if (got.Entry == nil) != (want.entry == 0) || got.Entry != nil && got.Entry.ID != p.entries[want.entry-1].ID {
		return fmt.Errorf("answered with entry %+v, want number %d", got.Entry, want.entry)
	}
	if w := want.status; w != nil {
		if g := got.status; g.Reason != w.Reason || g.Tier != w.Tier || g.LowBalance != w.LowBalance || at(g.NextResetAt) != at(w.NextResetAt) {
			return fmt.Errorf("status %+v, want %+v", g, *w)
		}
	} else if got.LowBalance != want.low {
		return fmt.Errorf("low balance: %t, want %t", got.LowBalance, want.low)
	}
	return nil
}

func sameShortage(a, b *user.Shortage) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.TokensRemaining == b.TokensRemaining && a.TokensRequired == b.TokensRequired && at(a.NextResetAt) == at(b.NextResetAt)
}

// answer is what the service answers to any command.
type answer struct {
	user.Receipt
	reservation *user.Reservation
	status      user.Status
}

func (p *player) execute(ctx context.Context, s Step) (a answer, err error) {
	service := p.service(s.Rules, s.At)
	switch c := s.Command.(type) {
	case user.Refund:
		c.EntryID = p.entryID(c.EntryID)
		a.Receipt, err = service.Do(ctx, p.id, c)
	case user.Extend:
		err = a.about(service.Extend(ctx, p.id, c))
	case user.Settle:
		err = a.about(service.Settle(ctx, p.id, c))
	case user.Release:
		err = a.about(service.Release(ctx, p.id, c))
	case user.Deactivate:
		a.Receipt, err = service.Deactivate(ctx, p.id, c)
	case user.NewAccount, user.PutProfile:
		a.Receipt, err = p.create(ctx, service, c.(user.Command))
	case user.Command: // a reserve too: Service.Reserve would make an id of its own
		a.Receipt, err = service.Do(ctx, p.id, c)
	case Read:
		a.status, err = service.Status(ctx, p.id)
		a.Account = a.status.Account
	case Reconcile:
		err = p.reconcile(ctx, service, c)
	case Replace:
		if err := p.subject.DeleteRow(ctx, p.id); err != nil {
			return a, err
		}
		p.granted = 0
		if c.Row == nil {
			_, err = p.create(ctx, service, c.By)
			return a, err
		}
		row := *c.Row
		row.ID = p.id
		err = p.subject.PutRow(ctx, row)
	default:
		panic(fmt.Sprintf("no such command: %T", c))
	}
	return a, err
}

func (p *player) reconcile(ctx context.Context, service user.Service, c Reconcile) error {
	row, err := p.subject.Account(ctx, p.id)
	if err != nil {
		return err
	}
	edited := c.Edited && (row.TokensRemaining != c.Remaining || row.TokensUsed != c.Used)
	if edited {
		row.TokensRemaining, row.TokensUsed = c.Remaining, c.Used
		if err := p.subject.PutRow(ctx, row); err != nil {
			return err
		}
	}
	changed, err := service.Reconcile(ctx, p.id, "")
	if want := edited || row.SideRow != user.CurrentSideRow; err == nil && changed != want {
		return fmt.Errorf("reconciled: %t, want %t", changed, want)
	}
	return err
}

func (a *answer) about(r user.ReservationReceipt, err error) error {
	a.Receipt = r.Receipt
	a.reservation = &r.Reservation
	return err
}

// entryID is the id of the entry of a number; where there is none, one that no entry has.
func (p *player) entryID(number int64) int64 {
	if number < 1 || number > int64(len(p.entries)) {
		return math.MaxInt64
	}
	return p.entries[number-1].ID
}

// compare holds what is stored against the model and against the invariants.
func (p *player) compare(ctx context.Context, want model) error {
	account, err := p.subject.Account(ctx, p.id)
	if err != nil {
		return fmt.Errorf("account: %w", err)
	}
	entries, _, err := p.subject.Entries(ctx, p.id, user.EntryQuery{Limit: len(want.entries) + 1})
	if err != nil {
		return fmt.Errorf("entries: %w", err)
	}
	slices.Reverse(entries)
	reservations, err := p.subject.Reservations(ctx, p.id, user.ReservationQuery{Limit: len(want.reservations) + 1})
	if err != nil {
		return fmt.Errorf("reservations: %w", err)
	}
	if err := want.sound(); err != nil {
		return err
	}
	if got, want := view(account), view(want.account()); got != want {
		return fmt.Errorf("stored\n%+v, want\n%+v", got, want)
	}
	numbers := map[int64]int64{}
	numbered := slices.Clone(entries)
	for i := range entries {
		numbers[entries[i].ID] = int64(i + 1)
		if id := entries[i].RefundedEntryID; id != nil {
			number := numbers[*id]
			numbered[i].RefundedEntryID = &number
		}
	}
	if err := compareAll("entry", numbered, want.entries, viewEntry); err != nil {
		return err
	}
	byID := func(a, b user.Reservation) int { return strings.Compare(a.ID, b.ID) }
	wanted := slices.SortedFunc(slices.Values(want.reservations), byID)
	reservations = slices.SortedFunc(slices.Values(reservations), byID)
	for i := range min(len(reservations), len(wanted)) {
		// Whether those that were closed before the conversion are given a period is left to the store.
		if r := &reservations[i]; r.Period == user.PeriodOfConversion && r.Status != user.ReservationOpen {
			r.Period = wanted[i].Period
		}
	}
	if err := compareAll("reservation", reservations, wanted, viewReservation); err != nil {
		return err
	}
	if account.GrantedPeriod < p.granted {
		return fmt.Errorf("the granted period went back from %d to %d", p.granted, account.GrantedPeriod)
	}
	p.entries, p.granted = entries, account.GrantedPeriod
	return Check(account, entries, reservations)
}

// sound checks what the model promises of the buckets themselves.
func (m *model) sound() error {
	if m.row.SideRow != user.CurrentSideRow {
		return nil
	}
	paid, out := m.paidByAllowance(), m.charged+m.heldOfPeriod()
	switch {
	case paid < 0 || m.paidByTopUps < 0:
		return fmt.Errorf("allowance has paid %d, top-ups %d", paid, m.paidByTopUps)
	case paid > m.largest:
		return fmt.Errorf("allowance has paid %d, the largest one of the period was %d", paid, m.largest)
	case m.only && m.paidByTopUps != max(0, out-m.limit):
		return fmt.Errorf("of %d that went out allowance has paid %d of %d, top-ups %d", out, paid, m.limit, m.paidByTopUps)
	}
	return nil
}

// err is the refusal as an error to compare with.
func (o outcome) err() error {
	if o.refusal == "" {
		return nil
	}
	return &user.Error{Code: o.refusal}
}
