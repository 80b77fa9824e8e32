package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// Export says what is exported, and where to.
type Export struct {
	// From and To are the first and the last day, in the reset time zone.
	From, To time.Time
	// Format is csv or ndjson.
	Format string
	// File is where the entries go; empty for stdout.
	File string
}

// exportPage is how many entries are in memory at a time.
const exportPage = 2000

// Run writes the entries of the days, in the order of the feed, and shows on stderr how far it is. A file appears under its
// name when it is complete.
func (e Export) Run(ctx context.Context, cfg config.Config, stdout, stderr io.Writer) error {
	format := httpapi.EntryFormat(e.Format)
	if format != httpapi.EntriesCSV && format != httpapi.EntriesNDJSON {
		return errors.New("--format must be csv or ndjson")
	}
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
	since, until := users.Rules.Days(e.From, e.To)
	if e.File == "" {
		_, err := e.write(ctx, stdout, newProgressUnless(stdout, stderr), feed, store, since, until)
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(e.File), filepath.Base(e.File)+".*")
	if err != nil {
		return err
	}
	n, err := e.write(ctx, file, func(end int64) progress { return newProgress(stderr, end, "entries") }, feed, store, since, until)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), e.File)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	_, err = fmt.Fprintf(stdout, "%d entries exported to %s\n", n, e.File)
	return err
}

// newProgressUnless shows no progress where the entries themselves are on the terminal.
func newProgressUnless(stdout, stderr io.Writer) func(end int64) progress {
	return func(end int64) progress {
		if onTerminal(stdout) {
			return progress{}
		}
		return newProgress(stderr, end, "entries")
	}
}

// write writes the entries made at or after since and before until, as far as they are settled now, and returns how many.
func (e Export) write(ctx context.Context, w io.Writer, show func(end int64) progress, feed *user.Feed, store *postgres.Store, since, until time.Time) (n int, err error) {
	first, last, err := store.EntryBounds(ctx, since, until)
	if err != nil {
		return 0, err
	}
	format, out := httpapi.EntryFormat(e.Format), bufio.NewWriter(w)
	if _, err := out.Write(format.Header()); err != nil {
		return 0, err
	}
	bar := show(last - first + 1)
	var text []byte
	for q := (user.FeedQuery{After: first - 1, Limit: exportPage}); q.After < last; {
		page, err := feed.Page(ctx, q)
		if err != nil {
			return n, err
		}
		if page.Next == q.After {
			break // a transaction that is open keeps back what comes after
		}
		q.After = page.Next
		wanted := page.Entries[:0]
		for _, entry := range page.Entries {
			if !entry.CreatedAt.Before(since) && entry.CreatedAt.Before(until) {
				wanted = append(wanted, entry)
			}
		}
		n += len(wanted)
		if text, err = format.Append(text[:0], wanted); err == nil {
			_, err = out.Write(text)
		}
		if err != nil {
			return n, err
		}
		bar.set(q.After - first + 1)
	}
	bar.done()
	return n, out.Flush()
}
