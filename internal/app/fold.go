package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// longStatementTimeout is how long a look at the whole ledger may take.
const longStatementTimeout = 10 * time.Minute

// FoldAgain adds up the usage of the days from the given one on again and shows on stderr how far it has come. It may run beside the
// service, which goes on with it where this is ended.
func FoldAgain(ctx context.Context, cfg config.Config, from time.Time, stdout, stderr io.Writer) error {
	cfg.DBStatementTimeout = longStatementTimeout
	store, err := postgres.Connect(ctx, databaseOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer store.Close()
	users, err := newService(cfg, store)
	if err != nil {
		return err
	}
	feed := user.NewFeed(store)
	defer feed.Close()
	fold := newFold(cfg, users, feed, store)
	upTo, err := fold.Again(ctx, from)
	if err != nil {
		return fmt.Errorf("the days from %s on cannot be added up again: %w", from.Format(time.DateOnly), err)
	}
	progress := newProgress(stderr, upTo, "entries")
	for position := int64(-1); position < upTo; {
		if position, err = fold.Run(ctx, progress.set); err != nil {
			return err
		}
		if progress.set(position); position < upTo {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(foldInterval):
			}
		}
	}
	progress.done()
	_, err = fmt.Fprintf(stdout, "the usage from %s on is added up again, to entry %d\n", from.Format(time.DateOnly), upTo)
	return err
}
