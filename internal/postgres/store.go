package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// Store is the [user.Store] on PostgreSQL. It is safe for concurrent use, and several of them (replicas) may work on
// one database.
type Store struct {
	pool           *pgxpool.Pool
	acquireTimeout time.Duration
	// workTimeout bounds what is done on a connection once it has been acquired.
	workTimeout time.Duration
}

var _ user.Store = (*Store)(nil)

// Open waits for the database, migrates it and returns the store. An error is one line for the operator, without
// secrets. The caller closes the store.
func Open(ctx context.Context, o Options) (*Store, error) {
	pool, err := open(o)
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, pool, o); err != nil {
		pool.Close()
		return nil, err
	}
	return &Store{pool: pool, acquireTimeout: o.AcquireTimeout, workTimeout: 2 * o.StatementTimeout}, nil
}

func prepare(ctx context.Context, pool *pgxpool.Pool, o Options) error {
	if err := waitFor(ctx, pool, o.ConnectTimeout, o.Log); err != nil {
		return err
	}
	return migrate(ctx, pool.Config().ConnConfig, o.ImportPublicUserdata, o.Log)
}

// Close waits for connections in use and closes all.
func (s *Store) Close() { s.pool.Close() }

// Ping asks the database for a sign of life within ctx.
func (s *Store) Ping(ctx context.Context) error { return translate(s.pool.Ping(ctx)) }

// attempts bounds how often an update is tried that certainly did nothing the time before.
const attempts = 5

// Create implements [user.Store].
func (s *Store) Create(ctx context.Context, change user.Change) error {
	return s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			a := change.Account
			tag, err := tx.Exec(ctx, insertUserdata, a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus,
				a.RenewalDate, a.TokensRemaining, a.TokensUsed, a.LastReset, a.CreatedAt, a.UpdatedAt, a.Active)
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return user.ErrUserExists
			}
			var b pgx.Batch
			queueSideRow(&b, a)
			queueEntries(&b, a.ID, change.Entries)
			return tx.SendBatch(ctx, &b).Close()
		})
	})
}

// Account implements [user.Store].
func (s *Store) Account(ctx context.Context, id string) (user.Account, error) {
	var account user.Account
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		err := conn.QueryRow(ctx, selectAccount, id).Scan(append(userdataFields(&account), sideRowFields(&account)...)...)
		if errors.Is(err, pgx.ErrNoRows) {
			return user.ErrUserNotFound
		}
		return err
	})
	return account, err
}

// Entries implements [user.Store].
func (s *Store) Entries(ctx context.Context, accountID string, q user.EntryQuery) ([]user.Entry, error) {
	var entries []user.Entry
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectEntries, accountID, q.Before, q.Kind, optional(q.Since), optional(q.Until), q.Limit)
		if err != nil {
			return err
		}
		entries, err = pgx.CollectRows(rows, scanEntry)
		return err
	})
	return entries, err
}

// Update implements [user.Store]: one transaction an update.
func (s *Store) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	var change user.Change
	var refusal error
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			state, err := lockState(ctx, tx, ref)
			if err != nil {
				return err
			}
			change, refusal = apply(state)
			if errors.Is(refusal, user.ErrHoldsNeeded) {
				if state.Holds, err = openHolds(ctx, tx, ref.AccountID); err != nil {
					return err
				}
				state.HoldsLoaded = true
				change, refusal = apply(state)
			}
			if refused := (*user.Error)(nil); refusal != nil && !errors.As(refusal, &refused) {
				return refusal
			}
			return write(ctx, tx, state, &change)
		})
	})
	if err != nil {
		return user.Change{}, err
	}
	return change, refusal
}

// work runs f on a connection of the pool, again when it certainly did nothing and may succeed. The caller's context
// counts while it waits for the connection; what has been started is finished without it, since cancelling would
// close the connection and leave the outcome unknown.
func (s *Store) work(ctx context.Context, f func(context.Context, *pgxpool.Conn) error) error {
	for attempt := 1; ; attempt++ {
		conn, err := s.acquire(ctx)
		if err != nil {
			return err
		}
		err = func() error {
			defer conn.Release()
			working, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.workTimeout)
			defer cancel()
			return f(working, conn)
		}()
		if err == nil || !repeatable(err) || attempt == attempts {
			return translate(err)
		}
	}
}

// acquire takes a connection. When none comes free in time nothing was done, which is overload, unless the database
// does not let new ones in.
func (s *Store) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	waiting, cancel := context.WithTimeout(ctx, s.acquireTimeout)
	defer cancel()
	conn, err := s.pool.Acquire(waiting)
	if err == nil {
		return conn, nil
	}
	if stat := s.pool.Stat(); errors.Is(err, context.DeadlineExceeded) && stat.AcquiredConns() == stat.MaxConns() {
		return nil, user.ErrOverloaded.Because(err)
	}
	return nil, translate(fmt.Errorf("acquire a connection: %w", err))
}

// lockState takes the account's row lock and reads what the update may look at. At READ COMMITTED each statement sees
// what was committed before it began: the side row and the entry are read by statements of their own, after the lock
// was waited for, or they would be older than the account.
func lockState(ctx context.Context, tx pgx.Tx, ref user.Ref) (state user.State, err error) {
	var b pgx.Batch
	b.Queue(lockUserdata, ref.AccountID)
	b.Queue(selectSideRow, ref.AccountID)
	if ref.IdempotencyKey != "" {
		b.Queue(selectEntryByKey, ref.AccountID, ref.IdempotencyKey)
	}
	results := tx.SendBatch(ctx, &b)
	defer func() {
		if closing := results.Close(); err == nil {
			err = closing
		}
	}()
	a := &state.Account
	if err := results.QueryRow().Scan(userdataFields(a)...); errors.Is(err, pgx.ErrNoRows) {
		return state, user.ErrUserNotFound
	} else if err != nil {
		return state, err
	}
	if err := results.QueryRow().Scan(sideRowFields(a)...); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return state, err
	}
	if ref.IdempotencyKey != "" {
		rows, err := results.Query()
		if err != nil {
			return state, err
		}
		prior, err := pgx.CollectExactlyOneRow(rows, scanEntry)
		if err == nil {
			state.Prior = &prior
		} else if !errors.Is(err, pgx.ErrNoRows) {
			return state, err
		}
	}
	return state, nil
}

func openHolds(ctx context.Context, tx pgx.Tx, accountID string) ([]user.Reservation, error) {
	rows, err := tx.Query(ctx, selectOpenReservations, accountID)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanReservation)
}

// write writes the change and fills in the ids of its entries.
func write(ctx context.Context, tx pgx.Tx, before user.State, change *user.Change) error {
	if change.Empty() {
		return nil
	}
	a := change.Account
	var b pgx.Batch
	b.Queue(updateUserdata, a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate,
		a.TokensRemaining, a.TokensUsed, a.LastReset, a.UpdatedAt, a.Active)
	if sideRowChanged(before.Account, a) {
		queueSideRow(&b, a)
	}
	for _, r := range change.Reservations {
		b.Queue(upsertReservation, a.ID, r.ID, r.Status, r.Tokens, r.Charged, r.Returned, r.Shortfall,
			r.Carried, r.TopUp, r.CreatedAt, r.ExpiresAt, r.ClosedAt)
	}
	queueEntries(&b, a.ID, change.Entries)
	return tx.SendBatch(ctx, &b).Close()
}

func sideRowChanged(before, after user.Account) bool {
	return !before.Adopted || before.TopUps != after.TopUps || before.Reserved != after.Reserved ||
		before.NextHoldExpiry != after.NextHoldExpiry
}

func queueSideRow(b *pgx.Batch, a user.Account) {
	b.Queue(upsertSideRow, a.ID, a.TopUps, a.Reserved, a.NextHoldExpiry)
}

func queueEntries(b *pgx.Batch, accountID string, entries []user.Entry) {
	for i := range entries {
		e := &entries[i]
		b.Queue(insertEntry, accountID, e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter, e.TokensCharged,
			e.ReservationID, e.RefundedEntryID, e.IdempotencyKey, e.CommandHash, metadata(e.Metadata), e.Actor, e.CreatedAt,
		).QueryRow(func(row pgx.Row) error { return row.Scan(&e.ID) })
	}
}

// metadata is NULL when there is none.
func metadata(m map[string]string) any {
	if len(m) == 0 {
		return nil
	}
	return m
}

// optional is NULL for the zero time.
func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
