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

// ErrDiscrepancy is returned by Verify when some account's books do not agree.
var ErrDiscrepancy = errors.New("the books do not agree")

// Verify holds every account against its ledger (rule 12 of package user) and prints the accounts that disagree with it,
// then a summary. Ledger entries from before since are taken as checked. It may run beside the service.
func Verify(ctx context.Context, cfg config.Config, since time.Time, stdout io.Writer) error {
	store, err := postgres.Connect(ctx, databaseOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer store.Close()
	users, err := newService(cfg, store)
	if err != nil {
		return err
	}
	var failed error
	say := func(format string, args ...any) {
		if _, err := fmt.Fprintf(stdout, format+"\n", args...); failed == nil {
			failed = err
		}
	}
	sum, err := users.Rules.Verify(ctx, store, since, users.Now(), func(d user.Discrepancy) { say("%q: %s", d.AccountID, d.Problem) })
	if err != nil {
		return err
	}
	say("%d accounts and %d ledger entries checked, %d discrepancies", sum.Accounts, sum.Entries, sum.Discrepancies)
	if failed == nil && sum.Discrepancies > 0 {
		return ErrDiscrepancy
	}
	return failed
}

// Reconcile makes the ledger explain the balance of an account that was changed by hand, and says whether there was
// anything to explain.
func Reconcile(ctx context.Context, cfg config.Config, id string, stdout io.Writer) error {
	store, err := postgres.Connect(ctx, databaseOptions(cfg, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer store.Close()
	users, err := newService(cfg, store)
	if err != nil {
		return err
	}
	changed, err := users.Reconcile(ctx, id, "verify --reconcile")
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
