// Package demo makes up the history of a service that has been in use for some months, to look at and to try things
// on. Every entry of it is written by the rules, through the store; made up are the people, what they want, and the
// clock. It is for developers' machines and for tests, never part of the image.
package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// TierMonthlyTokens are the allowances, in tokens, that the history is made for, in the form of the setting of that name.
const TierMonthlyTokens = "basic:5000,creator:20000,agency:100000"

// Grace is how long after its renewal date a subscription can be spent from, in the form of SUBSCRIPTION_GRACE.
const Grace = "72h"

// History says what is made up. The same one gives the same people, who do the same at the same times; only the ids of
// their reservations differ.
type History struct {
	// Accounts is how many there are in the end, at least 1. An account makes some 400 entries in 90 days.
	Accounts int
	// Days is how many days it goes back from Until, at least 1.
	Days int
	// Until is the present: nothing is written for a later instant.
	Until time.Time
	// Progress is told after each day how many are done, and may end it with an error; nil for nobody.
	Progress func(days int) error
}

type instantKey struct{}

// Clock is for [postgres.Options]: what a history does happens at the instants that it says, and all else by the
// database's clock.
func Clock(ctx context.Context, database time.Time) time.Time {
	if at, ok := ctx.Value(instantKey{}).(time.Time); ok {
		return at
	}
	return database
}

// step is how much of the history is written at once. Entries of accounts that are written together may get their ids in
// another order than their times: readers expect no more than an hour of that.
const step = time.Hour

// Write writes the history through the service, whose store goes by [Clock] and knows none of its accounts. It returns
// how many commands it sent, refused ones included, and the first error that is no refusal.
func (h History) Write(ctx context.Context, service *user.Service) (commands int, err error) {
	begin := h.Until.AddDate(0, 0, -h.Days).UTC().Truncate(step)
	people := make([]*person, h.Accounts)
	for i := range people {
		people[i] = newPerson(i, h, begin)
	}
	for from := begin; from.Before(h.Until); from = from.Add(step) {
		to := from.Add(step)
		if to.After(h.Until) {
			to = h.Until
		}
		if err := together(people, func(p *person) error {
			return p.live(ctx, service, from, to)
		}); err != nil {
			return 0, err
		}
		if done := to.Sub(begin); h.Progress != nil && done%(24*time.Hour) == 0 {
			if err := h.Progress(int(done / (24 * time.Hour))); err != nil {
				return 0, err
			}
		}
	}
	if err := together(people, func(p *person) error { return p.beAtWork(ctx, service, h.Until) }); err != nil {
		return 0, err
	}
	for _, p := range people {
		commands += p.commands
	}
	return commands, nil
}

// together calls f for all people, many at a time, and returns the first error.
func together(people []*person, f func(*person) error) error {
	const atOnce = 64
	var running sync.WaitGroup
	errs := make([]error, len(people))
	slots := make(chan struct{}, atOnce)
	for i, p := range people {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(p)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// refusals are what the rules may answer to people who do not look at their balance first.
var refusals = []error{
	user.ErrInsufficientTokens, user.ErrUserInactive, user.ErrSubscriptionInactive, user.ErrSubscriptionLapsed,
	user.ErrReservationClosed, user.ErrRefundExceedsCharge,
}

// outcome reports whether a command was done; its error is one that is no refusal.
func (p *person) outcome(err error) (done bool, _ error) {
	p.commands++
	p.refusal = nil
	if err == nil {
		return true, nil
	}
	for _, refusal := range refusals {
		if errors.Is(err, refusal) {
			p.refusal = err
			return false, nil
		}
	}
	return false, fmt.Errorf("account %s: %w", p.id, err)
}
