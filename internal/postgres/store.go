package postgres

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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
	updates     *lanes[change, user.Change]
	lookups     *lanes[string, user.Account]
	heldUp      *heldUp
	waiting     sync.WaitGroup
	observer    Observer
	groupSpan   func([]context.Context) (context.Context, func())
	begin       [2][]string // of settings
	// probe has one connection of its own: a pool that is used up does not make the database look dead.
	probe *pgxpool.Pool
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Group(int, time.Duration) {}
func (nobody) Retry()                   {}

var (
	_ user.Store = (*Store)(nil)
	_ user.Books = (*Store)(nil)
)

// Open is Connect, after which the database is brought to this version's schema.
func Open(ctx context.Context, o Options) (*Store, error) {
	store, err := Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, store.pool.Config().ConnConfig, o.ImportPublicUserdata, o.Log); err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

// Connect waits for the database and returns the store. An error is one line for the operator, without secrets. The
// caller closes the store.
func Connect(ctx context.Context, o Options) (*Store, error) {
	cfg, err := parse(o)
	if err != nil {
		return nil, err
	}
	pooled, err := waitFor(ctx, cfg.ConnConfig, o.ConnectTimeout, o.Log)
	if err != nil {
		return nil, err
	}
	mode := cmp.Or(o.QueryMode, QueryModeAuto)
	if mode == QueryModeAuto {
		mode = QueryModeSession
		if pooled {
			mode = QueryModeTransaction
			o.Log.Info("a pooler stands in front of the database: nothing is prepared or set for longer than a transaction")
		}
	}
	settings := newSettings(mode, o.StatementTimeout)
	alone := cfg.Copy()
	alone.MaxConns, alone.MinConns = 1, 0
	cfg.ConnConfig.Tracer = o.Tracer
	pool, err := open(cfg, settings)
	if err != nil {
		return nil, err
	}
	probe, err := open(alone, settings)
	if err != nil {
		pool.Close()
		return nil, err
	}
	s := &Store{
		pool: pool, probe: probe, acquireTimeout: o.AcquireTimeout, workTimeout: 2 * o.StatementTimeout,
		heldUp: newHeldUp(max(1, int(o.MaxConns)/2)), observer: o.Observer, groupSpan: o.GroupSpan, begin: settings.begin,
	}
	if s.observer == nil {
		s.observer = nobody{}
	}
	n, most := min(groupLanes, int(o.MaxConns)), o.WriteBatchMax
	if most == 1 {
		n = int(o.MaxConns) // every connection its own transaction
	}
	s.updates = startLanes(n, cmp.Or(most, DefaultWriteBatch), s.acquireTimeout, s.serveBatch)
	s.lookups = startLanes(n, DefaultWriteBatch, s.acquireTimeout, s.serveLookups)
	return s, nil
}

// groupLanes is how many groups are on their way at once: one commits while the next is prepared. More of them would
// be smaller and cost more each, and take connections from reads.
const groupLanes = 2

// DefaultWriteBatch is the most updates that one transaction serves.
const DefaultWriteBatch = 256

// Close finishes the updates under way, waits for connections in use and closes all.
func (s *Store) Close() {
	s.updates.close()
	s.waiting.Wait()
	s.lookups.close()
	s.pool.Close()
	s.probe.Close()
}

// Stat are the figures of the connection pool.
func (s *Store) Stat() *pgxpool.Stat { return s.pool.Stat() }

// Ping asks the database for a sign of life within ctx, also while the pool is used up.
func (s *Store) Ping(ctx context.Context) error {
	conn, err := s.probe.Acquire(ctx)
	if err == nil {
		err = conn.Ping(ctx)
		release(conn)
	}
	if err != nil {
		return user.ErrDatabaseUnavailable.Because(err)
	}
	return nil
}

// Create implements [user.Store].
func (s *Store) Create(ctx context.Context, change user.Change) error {
	return s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		var b pgx.Batch
		for _, sql := range s.begin[patient] {
			b.Queue(sql)
		}
		var created int64
		a := change.Account
		b.Queue(insertUserdata, a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate, a.TokensRemaining,
			a.TokensUsed, a.LastReset, a.CreatedAt, a.UpdatedAt, a.Active,
		).Exec(func(ct pgconn.CommandTag) error {
			created = ct.RowsAffected()
			return nil
		})
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return notDone(conn, err)
		}
		var rest pgx.Batch
		if created == 0 {
			return cmp.Or(end(ctx, conn, &rest, "rollback"), error(user.ErrUserExists))
		}
		var side sideColumns
		side.add(a)
		side.queue(&rest, insertSideRows)
		var entries newEntries
		for i := range change.Entries {
			entries.add(a.ID, &change.Entries[i])
		}
		entries.queue(&rest)
		return end(ctx, conn, &rest, "commit")
	})
}

// Account implements [user.Store]. Accounts that are asked for at the same time are read together.
func (s *Store) Account(ctx context.Context, id string) (user.Account, error) {
	// What PostgreSQL does not take as text can name nothing that is stored.
	if !validText(id) {
		return user.Account{}, user.ErrUserNotFound
	}
	return s.lookups.do(ctx, id, id)
}

// Entries implements [user.Store].
func (s *Store) Entries(ctx context.Context, accountID string, q user.EntryQuery) ([]user.Entry, error) {
	return list(ctx, s, scanEntry, selectEntries, accountID, q.Before, q.Kind, optional(q.Since), optional(q.Until), q.Limit)
}

// Reservation implements [user.Store].
func (s *Store) Reservation(ctx context.Context, accountID, reservationID string) (user.Reservation, error) {
	var found *user.Reservation
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		var b pgx.Batch
		var entry *user.Entry
		queueOne(&b, &found, scanReservation, selectReservation, accountID, reservationID)
		queueOne(&b, &entry, scanEntry, selectReservationEntry, accountID, reservationID)
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		if found == nil {
			return user.ErrReservationNotFound
		}
		found.LastEntry = entry
		return nil
	})
	if err != nil {
		return user.Reservation{}, err
	}
	return *found, nil
}

// OpenReservations implements [user.Store].
func (s *Store) OpenReservations(ctx context.Context, accountID string, q user.ReservationQuery) ([]user.Reservation, error) {
	var page []user.Reservation
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectReservationPage, accountID, optional(q.AfterExpiry), nullable(q.AfterID), q.Limit)
		if err != nil {
			return err
		}
		if page, err = pgx.CollectRows(rows, scanReservation); err != nil || len(page) == 0 {
			return err
		}
		var b pgx.Batch
		for i := range page {
			queueOne(&b, &page[i].LastEntry, scanEntry, selectReservationEntry, accountID, page[i].ID)
		}
		return conn.SendBatch(ctx, &b).Close()
	})
	return page, err
}

// Usage implements [user.Store].
func (s *Store) Usage(ctx context.Context, accountID string, bounds []time.Time) ([]user.Usage, error) {
	sums := make([]user.Usage, len(bounds)-1)
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectUsage, accountID, bounds, bounds[0], bounds[len(bounds)-1])
		if err != nil {
			return err
		}
		var stretch int
		var sum user.Usage
		_, err = pgx.ForEachRow(rows, []any{&stretch, &sum.Charged, &sum.Refunded}, func() error {
			sums[stretch-1] = sum
			return nil
		})
		return err
	})
	return sums, err
}

// Accounts implements [user.Store].
func (s *Store) Accounts(ctx context.Context, q user.AccountQuery) ([]user.Account, error) {
	args := []any{q.After, q.Tier, q.SubscriptionStatus, q.Active, q.Limit}
	if q.Prefix == "" {
		return list(ctx, s, scanAccount, selectAccounts, args...)
	}
	from, to := prefixRange(q.Prefix)
	lowerFrom, lowerTo := prefixRange(strings.ToLower(q.Prefix))
	// A plan for this prefix, never one for any: that would walk all accounts.
	args = append([]any{pgx.QueryExecModeCacheDescribe}, args...)
	return list(ctx, s, scanAccount, selectAccountsByPrefix, append(args, from, to, lowerFrom, lowerTo)...)
}

// prefixRange is the range of texts that begin with prefix, by code points: from it to the first text after all of
// them, exclusive.
func prefixRange(prefix string) (from, to string) {
	runes := []rune(prefix)
	for i := len(runes) - 1; i >= 0; i-- {
		next := runes[i] + 1
		if next == surrogatesBegin {
			next = surrogatesEnd
		}
		if next <= utf8.MaxRune {
			return prefix, string(runes[:i]) + string(next)
		}
	}
	// Only texts of the greatest character have nothing after them; no id begins so, and a longer run of it will do.
	return prefix, prefix + strings.Repeat(string(utf8.MaxRune), maxColumn)
}

const (
	// Code points that no text can have (RFC 3629 §3).
	surrogatesBegin, surrogatesEnd = 0xD800, 0xE000
	// maxColumn is the most characters of an id, a username or an e-mail address.
	maxColumn = 255
)

// AccountsWithDueHold implements [user.Store].
func (s *Store) AccountsWithDueHold(ctx context.Context, now time.Time, after string, limit int) ([]string, error) {
	return list(ctx, s, pgx.RowTo[string], selectDueAccounts, now, after, limit)
}

// Links implements [user.Books].
func (s *Store) Links(ctx context.Context, afterAccount string, afterEntry int64, since time.Time, limit int) ([]user.Link, error) {
	return list(ctx, s, scanLink, selectLinks, afterAccount, afterEntry, optional(since), limit)
}

// Balances implements [user.Books].
func (s *Store) Balances(ctx context.Context, after string, limit int) ([]user.Balance, error) {
	return list(ctx, s, scanBalance, selectBalances, after, limit)
}

// list reads all rows of a query.
func list[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	var found []T
	err := s.work(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		found, err = pgx.CollectRows(rows, scan)
		return err
	})
	return found, err
}

// Update implements [user.Store]. Updates that wait at the same time are served by one transaction.
func (s *Store) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	// What PostgreSQL does not take as text can name nothing that is stored.
	if !validText(ref.AccountID) {
		return user.Change{}, user.ErrUserNotFound
	}
	if !validText(ref.IdempotencyKey) || !validText(ref.ReservationID) {
		return user.Change{}, user.ErrValidation
	}
	return s.updates.do(ctx, ref.AccountID, change{ref: ref, apply: apply})
}

// queueOne queues a query for at most one row, to be found at dst.
func queueOne[T any](b *pgx.Batch, dst **T, scan pgx.RowToFunc[T], sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectOneRow(rows, scan)
		if err == nil {
			*dst = &found
		} else if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	})
}

// optional is NULL for the zero time.
func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// nullable is NULL for the empty string.
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
