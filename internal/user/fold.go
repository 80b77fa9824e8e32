package user

import (
	"context"
	"errors"
	"sync"
	"time"
)

// FoldStore adds up the ledger in the order of its ids. Its errors are those of [FeedStore].
type FoldStore interface {
	// FoldUsage goes on from where whoever was before has come to, one part at a time, up to the id upTo at most, up to
	// which the ledger has to be settled. It returns the position that has been reached, and whether there is nothing more
	// to do for now, also because somebody else does it. The days of entries are those that days returns for their dates
	// of UTC; zone is the name of their zone.
	FoldUsage(ctx context.Context, upTo int64, zone string, days func(dates []time.Time) UsageDays, dimensions []string) (position int64, done bool, err error)

	// FoldAgain has the days from day on, which begins at since, added up again by the next calls of FoldUsage, up to the
	// position that it returns, in the time zone of that name. It fails when the entries of these days are not all there any
	// more as they were, when days of another zone are among these or next to them and not all are added up again, and with
	// [ErrFoldingAgain].
	FoldAgain(ctx context.Context, day, since time.Time, zone string) (upTo int64, err error)
}

// ErrFoldingAgain says that days are being added up again already.
var ErrFoldingAgain = errors.New("days are being added up again already: let that come to its end")

// Fold adds up the ledger by account, day and the values of dimensions, behind the changes of accounts. Any number of
// replicas may do so at the same time: one of them gets on with it. It is safe for concurrent use.
type Fold struct {
	Feed  *Feed
	Store FoldStore
	Rules Rules
	// Dimensions are the names in metadata whose values are told apart.
	Dimensions []string

	mu sync.Mutex
	// behind is since when the fold has not come to where the ledger is settled; the zero time when it has.
	behind time.Time
}

// Run folds what there is and returns the position that has been reached; moved is called with that after each part, nil
// for none. It leaves the rest to whoever is at it.
func (f *Fold) Run(ctx context.Context, moved func(position int64)) (position int64, err error) {
	settled, err := f.Feed.settled(ctx)
	if err != nil {
		f.note(false, time.Now())
		return 0, err
	}
	for done := false; ; {
		begun := time.Now()
		position, done, err = f.Store.FoldUsage(ctx, settled, f.Rules.ResetZone.String(), f.Rules.daysAround, f.Dimensions)
		f.note(err == nil && position >= settled, begun)
		if err != nil || done {
			return position, err
		}
		if moved != nil {
			moved(position)
		}
		// Half of the time is for others.
		select {
		case <-ctx.Done():
			return position, ctx.Err()
		case <-time.After(min(time.Since(begun), maxRest)):
		}
	}
}

// Again has the days from the given date on, in the reset time zone, added up again by Run, up to the position that it
// returns. See [FoldStore] for why it fails.
func (f *Fold) Again(ctx context.Context, date time.Time) (upTo int64, err error) {
	return f.Store.FoldAgain(ctx, civil(date, time.UTC), f.Rules.dayStart(date.Date()), f.Rules.ResetZone.String())
}

func (f *Fold) note(caughtUp bool, begun time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if caughtUp {
		f.behind = time.Time{}
	} else if f.behind.IsZero() {
		f.behind = begun
	}
}

// Lag is how long this replica has seen the fold behind what is settled, whoever folds.
func (f *Fold) Lag() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.behind.IsZero() {
		return 0
	}
	return time.Since(f.behind)
}
