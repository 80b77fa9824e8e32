package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// ErrDisagreement is returned by Verify when some account's books do not agree.
var ErrDisagreement = errors.New("the books do not agree")

// Verify holds every account against its ledger (product.md §3.11) and prints the accounts of which they disagree,
// then a summary. Ledger entries from before since are taken as checked. It may run beside the service.
func Verify(ctx context.Context, cfg config.Config, since time.Time, stdout io.Writer) error {
	store, err := postgres.Connect(ctx, databaseOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer store.Close()
	var failed error
	say := func(format string, args ...any) {
		if _, err := fmt.Fprintf(stdout, format+"\n", args...); failed == nil {
			failed = err
		}
	}
	sum, err := user.Verify(ctx, store, since, func(d user.Disagreement) { say("%q: %s", d.AccountID, d.Problem) })
	if err != nil {
		return err
	}
	say("%d accounts and %d ledger entries checked, %d disagreements", sum.Accounts, sum.Entries, sum.Disagreements)
	if failed == nil && sum.Disagreements > 0 {
		return ErrDisagreement
	}
	return failed
}

// Accept makes the ledger explain the balance of an account that was changed by hand, and says whether there was
// anything to explain.
func Accept(ctx context.Context, cfg config.Config, id string, stdout io.Writer) error {
	store, err := postgres.Connect(ctx, databaseOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer store.Close()
	users, err := newService(cfg, store)
	if err != nil {
		return err
	}
	changed, err := users.Accept(ctx, id, "verify --adopt")
	if err != nil {
		return fmt.Errorf("%q: %w", id, err)
	}
	message := "its books agree, nothing was changed"
	if changed {
		message = "an entry now explains its balance"
	}
	_, err = fmt.Fprintf(stdout, "%q: %s\n", id, message)
	return err
}
