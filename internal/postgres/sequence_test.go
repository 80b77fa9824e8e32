package postgres_test

import (
	"context"
	"flag"
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

var sequences = flag.Int("sequences", 64, "how many random histories to play through each kind of store")

// TestStore_RandomHistories plays random histories of many accounts at the same time, so that their updates are served in
// groups, and holds each against the model of the token rules after every step. A quarter begin with an account of the
// version before granted periods.
func TestStore_RandomHistories(t *testing.T) {
	t.Parallel()
	const atOnce = 16
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
					o.WriteBatchMax, o.QueryMode, o.Clock = mode.batchMax, mode.query, instantOfStep
				}))
			}
			seed := rand.IntN(1 << 30)
			t.Logf("seeds from %d", seed)
			waiting := make(chan int)
			var playing sync.WaitGroup
			for range atOnce {
				playing.Go(func() {
					for i := range waiting {
						draw := usertest.Sequences
						if i%4 == 0 {
							draw = usertest.Conversions
						}
						sequence := draw(user.MaxHoldsPerUpdate).Example(seed + i)
						if err := sequence.Run(t.Context(), subject, fmt.Sprintf("user-%d", i)); err != nil {
							t.Errorf("seed %d: %v", seed+i, err)
						}
					}
				})
			}
			for i := range *sequences {
				waiting <- i
			}
			close(waiting)
			playing.Wait()
		})
	}
}

// instantOfStep is the clock of a store on which sequences are played: each call has the instant of its step.
func instantOfStep(ctx context.Context, database time.Time) time.Time {
	if at := usertest.Instant(ctx); !at.IsZero() {
		return at
	}
	return database
}

// subject are replicas on one database, each call at one of them.
type subject struct {
	user.Store               // for the calls that no sequence makes
	direct     *pgxpool.Pool // past the stores
	replicas   []*postgres.Store
}

var _ usertest.EarlierSubject = (*subject)(nil)

func (s *subject) any() *postgres.Store { return s.replicas[rand.IntN(len(s.replicas))] }

func (s *subject) Create(ctx context.Context, id string, open func(user.State) (user.Change, error)) (user.Change, error) {
	return s.any().Create(ctx, id, open)
}

func (s *subject) Account(ctx context.Context, id string) (user.Account, error) {
	return s.any().Account(ctx, id)
}

func (s *subject) Accounts(ctx context.Context, q user.AccountQuery) ([]user.Account, string, error) {
	return s.any().Accounts(ctx, q)
}

func (s *subject) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	return s.any().Update(ctx, ref, apply)
}

func (s *subject) Entries(ctx context.Context, id string, q user.EntryQuery) ([]user.Entry, int64, error) {
	return s.any().Entries(ctx, id, q)
}

func (s *subject) Reservation(ctx context.Context, id, reservationID string) (user.Reservation, error) {
	return s.any().Reservation(ctx, id, reservationID)
}

func (s *subject) Reservations(ctx context.Context, id string, q user.ReservationQuery) ([]user.Reservation, error) {
	return s.any().Reservations(ctx, id, q)
}

// PutRow implements usertest.Subject.
func (s *subject) PutRow(ctx context.Context, a user.Account) error {
	_, err := s.direct.Exec(ctx, `INSERT INTO viralpilot.userdata VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
		ON CONFLICT (cognito_user_id) DO UPDATE SET username = excluded.username, email = excluded.email,
			subscription_tier = excluded.subscription_tier, subscription_status = excluded.subscription_status,
			subscription_renewal_date = excluded.subscription_renewal_date, tokens_remaining = excluded.tokens_remaining,
			tokens_used_this_month = excluded.tokens_used_this_month, last_token_reset_date = excluded.last_token_reset_date,
			created_at = excluded.created_at, updated_at = excluded.updated_at, is_active = excluded.is_active`,
		a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate, a.TokensRemaining, a.TokensUsed,
		a.LastReset, a.CreatedAt, a.UpdatedAt, a.Active)
	return err
}

// DeleteRow implements usertest.Subject.
func (s *subject) DeleteRow(ctx context.Context, id string) error {
	_, err := s.direct.Exec(ctx, `DELETE FROM viralpilot.userdata WHERE cognito_user_id = $1`, id)
	return err
}

// PutEarlier implements usertest.EarlierSubject with the columns that the version before granted periods knew.
func (s *subject) PutEarlier(ctx context.Context, e usertest.Earlier) ([]int64, error) {
	a := e.Account
	if err := s.PutRow(ctx, a); err != nil {
		return nil, err
	}
	_, err := s.direct.Exec(ctx, `INSERT INTO viralpilot.account_state (cognito_user_id, top_ups, tokens_reserved, next_hold_expiry)
		VALUES ($1, $2, $3, $4)`, a.ID, a.TopUps, a.Reserved, a.NextHoldExpiry)
	if err != nil {
		return nil, err
	}
	ids := make([]int64, len(e.Entries))
	for i, entry := range e.Entries {
		refunded := entry.RefundedEntryID
		if refunded != nil {
			refunded = &ids[*refunded-1]
		}
		err := s.direct.QueryRow(ctx, `INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after,
				tokens_charged, reservation_id, refunded_entry_id, idempotency_key, command_hash, metadata, actor, created_at, top_ups_amount)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, NULL) RETURNING entry_id`,
			a.ID, entry.Kind, entry.Amount, entry.BalanceAfter, entry.UsedAfter, entry.TokensCharged, entry.ReservationID, refunded,
			entry.IdempotencyKey, entry.CommandHash, entry.Metadata, entry.Actor, entry.CreatedAt).Scan(&ids[i])
		if err != nil {
			return nil, err
		}
	}
	var b pgx.Batch
	for _, r := range e.Reservations {
		b.Queue(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, tokens_charged,
				tokens_returned, shortfall, carried, top_up, created_at, expires_at, closed_at, tokens_used, period)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, NULL)`,
			a.ID, r.ID, r.Status, r.Tokens, r.Charged, r.Returned, r.Shortfall, r.Carried, r.TopUp, r.CreatedAt, r.ExpiresAt,
			r.ClosedAt, r.TokensUsed)
	}
	return ids, s.direct.SendBatch(ctx, &b).Close()
}
