package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/usertest"
)

// TestSequencesThroughTheStore plays random histories of many accounts at the same time, so that their updates are
// served in groups, and holds each against the model of product.md §3 after every step.
func TestSequencesThroughTheStore(t *testing.T) {
	t.Parallel()
	const sequences, atOnce = 64, 16
	for name, mode := range map[string]struct {
		replicas, batchMax int
		query              postgres.QueryMode
	}{
		"each update by its own":       {replicas: 1, batchMax: 1},
		"in groups":                    {replicas: 1, batchMax: 256},
		"in groups, from two replicas": {replicas: 2, batchMax: 256},
		"as behind a pooler":           {replicas: 1, batchMax: 256, query: postgres.QueryModeTransaction},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			direct, err := pgxpool.New(t.Context(), localpgtest.Direct(url))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(direct.Close)
			subject := &subject{direct: direct}
			for range mode.replicas {
				subject.replicas = append(subject.replicas, open(t, url, func(o *postgres.Options) {
					o.WriteBatchMax, o.QueryMode = mode.batchMax, mode.query
				}))
			}
			seed := rand.IntN(1 << 30)
			t.Logf("seeds from %d", seed)
			waiting := make(chan int)
			var playing sync.WaitGroup
			for range atOnce {
				playing.Go(func() {
					for i := range waiting {
						id := fmt.Sprintf("user-%d", i)
						if err := usertest.Sequences().Example(seed+i).Run(t.Context(), subject, id); err != nil {
							t.Errorf("seed %d: %v", seed+i, err)
						}
					}
				})
			}
			for i := range sequences {
				waiting <- i
			}
			close(waiting)
			playing.Wait()
			sum, err := user.Verify(t.Context(), subject.replicas[0], time.Time{}, func(d user.Disagreement) {
				t.Errorf("%s: %s", d.AccountID, d.Problem)
			})
			if err != nil || sum.Accounts != sequences || sum.Entries == 0 {
				t.Errorf("verified %+v, %v", sum, err)
			}
		})
	}
}

// subject are replicas on one database, each call at one of them.
type subject struct {
	direct   *pgxpool.Pool // past the stores
	replicas []*postgres.Store
}

func (s *subject) any() *postgres.Store { return s.replicas[rand.IntN(len(s.replicas))] }

func (s *subject) Create(ctx context.Context, c user.Change) error { return s.any().Create(ctx, c) }

func (s *subject) Account(ctx context.Context, id string) (user.Account, error) {
	return s.any().Account(ctx, id)
}

func (s *subject) Accounts(ctx context.Context, q user.AccountQuery) ([]user.Account, error) {
	return s.any().Accounts(ctx, q)
}

func (s *subject) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	return s.any().Update(ctx, ref, apply)
}

func (s *subject) Entries(ctx context.Context, id string, q user.EntryQuery) ([]user.Entry, error) {
	return s.any().Entries(ctx, id, q)
}

func (s *subject) Reservation(ctx context.Context, id, reservationID string) (user.Reservation, error) {
	return s.any().Reservation(ctx, id, reservationID)
}

func (s *subject) OpenReservations(ctx context.Context, id string, q user.ReservationQuery) ([]user.Reservation, error) {
	return s.any().OpenReservations(ctx, id, q)
}

func (s *subject) Usage(ctx context.Context, id string, bounds []time.Time) ([]user.Usage, error) {
	return s.any().Usage(ctx, id, bounds)
}

func (s *subject) AccountsWithDueHold(ctx context.Context, now time.Time, after string, limit int) ([]string, error) {
	return s.any().AccountsWithDueHold(ctx, now, after, limit)
}

// Insert implements usertest.Subject.
func (s *subject) Insert(ctx context.Context, a user.Account) error {
	_, err := s.direct.Exec(ctx, `INSERT INTO viralpilot.userdata VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate, a.TokensRemaining, a.TokensUsed,
		a.LastReset, a.CreatedAt, a.UpdatedAt, a.Active)
	return err
}

// Reservations implements usertest.Subject.
func (s *subject) Reservations(ctx context.Context, id string) ([]user.Reservation, error) {
	rows, err := s.direct.Query(ctx, `SELECT reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall,
			carried, top_up, created_at, expires_at, closed_at, tokens_used
		FROM viralpilot.reservations WHERE cognito_user_id = $1`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r user.Reservation, err error) {
		err = row.Scan(&r.ID, &r.Status, &r.Tokens, &r.Charged, &r.Returned, &r.Shortfall, &r.Carried, &r.TopUp,
			&r.CreatedAt, &r.ExpiresAt, &r.ClosedAt, &r.TokensUsed)
		return r, err
	})
}
