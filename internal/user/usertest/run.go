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

// Subject is what sequences are played against: a store, and what it takes to set it up and to look behind it.
type Subject interface {
	user.Store
	// Insert writes a row as the earlier service left it, without a side row.
	Insert(ctx context.Context, row user.Account) error
	// Reservations reads all reservations of an account, open or not, in any order.
	Reservations(ctx context.Context, accountID string) ([]user.Reservation, error)
}

// Run plays the sequence on a new account with the given id and returns the first difference between the subject and
// the model, in what is answered, in what is stored, or in the invariants of [Check].
func (q Sequence) Run(ctx context.Context, subject Subject, id string) error {
	row := q.Row
	row.ID = id
	if row.Adopted {
		first := user.Service{Store: subject, Rules: q.opened.rules, Now: func() time.Time { return *row.LastReset }}
		if _, err := first.Create(ctx, user.NewAccount{ID: id}); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	} else if err := subject.Insert(ctx, row); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	player := &player{subject: subject, id: id}
	if err := player.compare(ctx, q.opened); err != nil {
		return fmt.Errorf("at the start: %w", err)
	}
	for i, s := range q.Steps {
		if err := player.play(ctx, s, q.outcomes[i]); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, describe(s.Command), err)
		}
	}
	return nil
}

// player is a sequence on its way.
type player struct {
	subject Subject
	id      string
	// entries and lastReset are what was stored after the step before.
	entries   []user.Entry
	lastReset *time.Time
}

func (p *player) play(ctx context.Context, s Step, want outcome) error {
	got, err := p.execute(ctx, s)
	if !errors.Is(err, want.err()) {
		return fmt.Errorf("answered %w, want refusal %q", err, want.refusal)
	}
	var refused *user.Error
	if errors.As(err, &refused) && text(refused.Shortage) != text(want.shortage) {
		return fmt.Errorf("shortage %s, want %s", text(refused.Shortage), text(want.shortage))
	}
	if err := p.compare(ctx, want.after); err != nil || refused != nil {
		return err
	}
	account, wanted := view(got.Account), view(want.answer)
	account.Adopted, wanted.Adopted = true, true // not for the caller to know
	if account != wanted {
		return fmt.Errorf("answered with %+v, want %+v", account, wanted)
	}
	if r := got.reservation; r != nil && viewReservation(*r) != viewReservation(*want.reservation) {
		return fmt.Errorf("answered with %+v, want %+v", viewReservation(*r), viewReservation(*want.reservation))
	}
	if got.Replayed != want.replayed {
		return fmt.Errorf("replayed: %t, want %t", got.Replayed, want.replayed)
	}
	if (got.Entry == nil) != (want.entry == 0) || got.Entry != nil && got.Entry.ID != p.entries[want.entry-1].ID {
		return fmt.Errorf("answered with entry %+v, want number %d", got.Entry, want.entry)
	}
	if w := want.status; w != nil && (got.status.Reason != w.Reason || got.status.Tier != w.Tier || !got.status.NextResetAt.Equal(w.NextResetAt)) {
		return fmt.Errorf("status %+v, want %+v", got.status, *w)
	}
	return nil
}

// answer is what the service answers to any command.
type answer struct {
	user.Receipt
	reservation *user.Reservation
	status      user.Status
}

func (p *player) execute(ctx context.Context, s Step) (a answer, err error) {
	service := user.Service{Store: p.subject, Rules: s.Rules, Now: func() time.Time { return s.At }}
	switch c := s.Command.(type) {
	case user.Consume:
		a.Receipt, err = service.Consume(ctx, p.id, c)
	case user.AddTokens:
		a.Receipt, err = service.AddTokens(ctx, p.id, c)
	case user.ChangeTier:
		a.Account, err = service.ChangeTier(ctx, p.id, c)
	case user.Refund:
		c.EntryID = p.entryID(c.EntryID)
		a.Receipt, err = service.Refund(ctx, p.id, c)
	case user.Settle:
		err = a.about(service.Settle(ctx, p.id, c))
	case user.Release:
		err = a.about(service.Release(ctx, p.id, c))
	case user.Reserve:
		a.Receipt, err = p.reserve(ctx, s, c)
	case Read:
		a.status, err = service.Status(ctx, p.id)
		a.Account = a.status.Account
	case rule:
		var change user.Change
		change, err = p.subject.Update(ctx, user.Ref{AccountID: p.id}, func(st user.State) (user.Change, error) {
			return c.Apply(s.Rules, st, s.At)
		})
		a.Account = change.Account
	default:
		panic(fmt.Sprintf("no such command: %T", c))
	}
	return a, err
}

func (a *answer) about(r user.ReservationReceipt, err error) error {
	a.Receipt = user.Receipt{Account: r.Account, Entry: r.Entry, Replayed: r.Replayed}
	a.reservation = &r.Reservation
	return err
}

// reserve does as the service does, but with the id that the step has.
func (p *player) reserve(ctx context.Context, s Step, c user.Reserve) (r user.Receipt, err error) {
	var prior *user.Entry
	change, err := p.subject.Update(ctx, user.Ref{AccountID: p.id, IdempotencyKey: c.IdempotencyKey}, func(st user.State) (user.Change, error) {
		prior = st.Prior
		return s.Rules.Reserve(st, c, s.At)
	})
	r.Account = change.Account
	if prior != nil {
		r.Entry, r.Replayed = prior, true
		r.Account.TokensRemaining, r.Account.TokensUsed = prior.BalanceAfter, prior.UsedAfter
	} else if n := len(change.Entries); n > 0 && change.Entries[n-1].Kind == user.KindReserve {
		r.Entry = &change.Entries[n-1]
	}
	return r, err
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
	entries, err := p.subject.Entries(ctx, p.id, user.EntryQuery{Limit: len(want.entries) + 1})
	if err != nil {
		return fmt.Errorf("entries: %w", err)
	}
	slices.Reverse(entries)
	reservations, err := p.subject.Reservations(ctx, p.id)
	if err != nil {
		return fmt.Errorf("reservations: %w", err)
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
	if err := compareAll("reservation", slices.SortedFunc(slices.Values(reservations), byID), wanted, viewReservation); err != nil {
		return err
	}
	if last := p.lastReset; last != nil && (account.LastReset == nil || account.LastReset.Before(*last)) {
		return fmt.Errorf("the last reset went back from %s to %s", at(last), at(account.LastReset))
	}
	p.entries, p.lastReset = entries, account.LastReset
	return Check(account, entries, reservations, want.rules.ResetZone)
}

// err is the refusal as an error to compare with.
func (o outcome) err() error {
	if o.refusal == "" {
		return nil
	}
	return &user.Error{Code: o.refusal}
}
