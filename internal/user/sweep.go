package user

import (
	"context"
	"errors"
	"time"
)

// sweepPage is how many accounts a sweep reads at a time.
const sweepPage = 100

// Sweep touches every account that has a hold which ran out, so that tokens come back also where nobody asks. It
// returns how many reservations it ended. An account that fails is passed over; the errors come back joined. Any number
// of replicas may sweep at the same time: whoever comes second finds nothing to do.
func (s *Service) Sweep(ctx context.Context) (expired int, err error) {
	ctx, end := s.begin(ctx, "sweep")
	defer func() { end(err) }()
	now := s.now()
	due := func(ctx context.Context, after string, limit int) ([]string, error) {
		return s.Store.AccountsWithDueHold(ctx, now, after, limit)
	}
	err = forEach(ctx, due, func(id string) error {
		n, err := s.sweepAccount(ctx, id)
		expired += n
		return err
	})
	return expired, err
}

// FinishErases goes on with erases that were broken off or take long, and returns when there are none left. As with
// Sweep, what fails is passed over.
func (s *Service) FinishErases(ctx context.Context) (err error) {
	ctx, end := s.begin(ctx, "erase")
	defer func() { end(err) }()
	return forEach(ctx, s.Store.AccountsBeingErased, func(id string) error { return s.moveErased(ctx, id) })
}

// forEach reads ids page by page and calls do with each.
func forEach(ctx context.Context, read func(ctx context.Context, after string, limit int) ([]string, error), do func(id string) error) error {
	var failed []error
	for after := ""; ; {
		ids, err := read(ctx, after, sweepPage)
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		for _, id := range ids {
			if err := ctx.Err(); err != nil {
				return errors.Join(append(failed, err)...)
			}
			if err := do(id); err != nil {
				failed = append(failed, err)
			}
		}
		if len(ids) < sweepPage {
			return errors.Join(failed...)
		}
		after = ids[len(ids)-1]
	}
}

// What works in pieces in the background rests after each of them for restFactor times as long as the piece took, maxRest at
// most, so that it leaves most of the database to others.
const (
	restFactor = 4
	maxRest    = time.Second
)

func (s *Service) rest(ctx context.Context, begun time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(restFactor*s.now().Sub(begun), maxRest)):
		return nil
	}
}

// sweepAccount touches an account until none of its holds is due any more. One transaction returns no more than
// MaxHoldsPerUpdate.
func (s *Service) sweepAccount(ctx context.Context, id string) (ended int, err error) {
	for {
		var at time.Time
		begun := s.now()
		change, err := s.update(ctx, s.Rules.Ref(id, Touch{}), func(st State) (Change, error) {
			at = st.Now
			return s.Rules.Apply(st, Touch{})
		})
		ended += len(change.Reservations)
		next := change.Account.NextHoldExpiry
		if err != nil || len(change.Reservations) == 0 || next == nil || next.After(at) {
			return ended, err
		}
		if err := s.rest(ctx, begun); err != nil {
			return ended, err
		}
	}
}

// moveErased moves all that belongs to an account that is being erased.
func (s *Service) moveErased(ctx context.Context, id string) error {
	for {
		begun := s.now()
		done, err := s.Store.MoveErased(ctx, id)
		if errors.Is(err, ErrFoldingAgain) {
			return nil // the next sweep goes on
		}
		if done || err != nil {
			return err
		}
		if err := s.rest(ctx, begun); err != nil {
			return err
		}
	}
}
