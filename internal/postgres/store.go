package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/batch"
	"github.com/viralpilot/user-management/internal/user"
)

// Store is the [user.Store] on PostgreSQL. It is safe for concurrent use, and several of them (replicas) may work on
// one database.
type Store struct {
	// pool serves changes and single accounts, reads what may take longer: ledgers, usage and lists.
	pool, reads *pool
	session     session
	// updates serves the calls of Update, and contended those of them whose row another session has locked. lookups
	// serves the calls of Account.
	updates, contended *batch.Batcher[*change, user.Change]
	lookups            *batch.Batcher[string, user.Account]
	// singly is true where each update has a transaction of its own.
	singly bool
	// rowFreed is marked when a contended row came free, and rowStuck when one stayed locked.
	rowFreed, rowStuck recently
	// clock, when set, takes the place of the database's; maxHolds is the most holds that one transaction returns.
	clock    func(ctx context.Context, database time.Time) time.Time
	maxHolds int
	// maxLooks is how many entries or accounts the search for one page looks at.
	maxLooks int
	// clockOffset is how far the service's clock was ahead of the database's when they were compared last.
	clockOffset atomic.Int64
	// erasePart is how many rows of an account that is being erased are moved at a time.
	erasePart atomic.Int32
	// foldPart is how many ids are folded at a time.
	foldPart  atomic.Int32
	observer  Observer
	groupSpan func([]context.Context) (context.Context, func())
	horizon   horizon
	whole     whole
	search    search
	// probe has one connection of its own, so that a pool that is used up does not make the database look dead.
	probe *pgxpool.Pool
}

var (
	_ user.Store        = (*Store)(nil)
	_ user.LedgerReader = (*Store)(nil)
	_ user.FeedStore    = (*Store)(nil)
	_ user.FoldStore    = (*Store)(nil)
)

// Create implements [user.Store].
func (s *Store) Create(ctx context.Context, id string, open func(user.State) (user.Change, error)) (user.Change, error) {
	if !validText(id) {
		return user.Change{}, user.ErrValidation
	}
	change, err := s.create(ctx, id, open)
	if !keyTaken(err) {
		return change, err
	}
	// An account with this id that is not there any more has used the key. Only the command that it was used for makes the
	// account anew, and leaves the key where it is.
	if same, err := s.commandsRepeated(ctx, id, change.Entries); err != nil || !same {
		return user.Change{}, cmp.Or(err, error(user.ErrKeyReused))
	}
	return s.create(ctx, id, func(state user.State) (user.Change, error) {
		change, err := open(state)
		for i := range change.Entries {
			change.Entries[i].IdempotencyKey, change.Entries[i].CommandHash = nil, nil
		}
		return change, err
	})
}

// commandsRepeated reports whether entries that were not written would be of the commands whose keys they have.
func (s *Store) commandsRepeated(ctx context.Context, id string, entries []user.Entry) (bool, error) {
	for _, e := range entries {
		if e.IdempotencyKey == nil {
			continue
		}
		stored, err := list(ctx, s, scanAccountEntry, selectEntriesByKey, []string{id}, []string{*e.IdempotencyKey})
		if err != nil || len(stored) == 0 || !bytes.Equal(stored[0].value.CommandHash, e.CommandHash) {
			return false, err
		}
	}
	return true, nil
}

// create makes an account once; see Create.
func (s *Store) create(ctx context.Context, id string, open func(user.State) (user.Change, error)) (user.Change, error) {
	var change user.Change
	err := s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (err error) {
		state, err := s.loadForCreate(ctx, conn, id)
		if err != nil {
			return notDone(conn, err)
		}
		if change, err = open(state); err != nil {
			return err
		}
		a := change.Account
		tag, err := conn.Exec(ctx, insertUserdata, a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate,
			a.TokensRemaining, a.TokensUsed, a.LastReset, a.CreatedAt, a.UpdatedAt, a.Active)
		if err != nil {
			return notDone(conn, err)
		}
		var rest pgx.Batch
		if tag.RowsAffected() == 0 {
			return cmp.Or(endTransaction(ctx, conn, &rest, "rollback", nil), error(user.ErrUserExists))
		}
		var side sideColumns
		side.add(a)
		side.queue(&rest, insertSideRows)
		var entries newEntries
		for i := range change.Entries {
			entries.add(a.ID, &change.Entries[i])
		}
		entries.queue(&rest)
		return endTransaction(ctx, conn, &rest, "commit", nil)
	})
	return change, err
}

// loadForCreate begins a transaction and reads the clock, and what an earlier account with this id left in the ledger.
func (s *Store) loadForCreate(ctx context.Context, conn *pgxpool.Conn, id string) (user.State, error) {
	var b pgx.Batch
	for _, sql := range s.session.begin {
		b.Queue(sql)
	}
	state := user.State{Totals: &user.Totals{}}
	b.Queue(selectNow).QueryRow(func(row pgx.Row) error { return row.Scan(&state.Now) })
	queueOne(&b, &state.Totals.Last, scanEntry, selectLastEntry, id)
	var topUps *owned[*int64]
	queueOne(&b, &topUps, scanOwned[*int64], sumTopUps, []string{id})
	err := conn.SendBatch(ctx, &b).Close()
	if topUps != nil {
		state.Totals.TopUps = topUps.value
	}
	if s.clock != nil {
		state.Now = s.clock(ctx, state.Now)
	}
	return state, err
}

// Account implements [user.Store]. Accounts that are asked for at the same time are read together.
func (s *Store) Account(ctx context.Context, id string) (user.Account, error) {
	// What PostgreSQL does not take as text can name nothing that is stored.
	if !validText(id) {
		return user.Account{}, user.ErrUserNotFound
	}
	a, err := s.lookups.Do(ctx, id)
	return a, translate(err)
}

// Entries implements [user.Store]. A page costs what is on it, and where a filter leaves entries out, no more than a look
// at maxLooks of them, however long the ledger is.
func (s *Store) Entries(ctx context.Context, accountID string, q user.EntryQuery) (page []user.Entry, before int64, err error) {
	var rows []found[user.Entry]
	err = s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		low, high, err := entryRange(ctx, conn, accountID, q.Since, q.Until)
		if err != nil {
			return err
		}
		if q.Before != 0 {
			high = min(high, q.Before)
		}
		sql, args := selectAnyEntries, []any{
			accountID, low, high, optional(q.Since), optional(q.Until), q.Limit, max(s.maxLooks, q.Limit),
		}
		switch q.Kind {
		case "":
		case user.KindConsume:
			sql = selectConsumes
		default:
			sql, args = selectOtherEntries, append(args, q.Kind)
		}
		answer, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(answer, scanFoundEntry)
		return err
	})
	page, last := pageOf(rows, q.Limit)
	if last != nil {
		before = last.ID
	}
	return page, before, err
}

// clockSlack is how much older an entry may be than one before it, which another replica has written by its own clock: the
// earlier version had no other.
const clockSlack = time.Hour

// entryRange returns the ids, from low to below high, of the account's entries between two instants; zero is no bound.
func entryRange(ctx context.Context, conn *pgxpool.Conn, accountID string, since, until time.Time) (low, high int64, err error) {
	high = math.MaxInt64
	var b pgx.Batch
	search := func(at time.Time, found *int64) {
		b.Queue(searchEntry, accountID, at).QueryRow(func(row pgx.Row) error { return row.Scan(found) })
	}
	if !since.IsZero() {
		search(since.Add(-clockSlack), &low)
	}
	if !until.IsZero() {
		search(until.Add(clockSlack), &high)
	}
	if b.Len() == 0 {
		return low, high, nil
	}
	return low, high, conn.SendBatch(ctx, &b).Close()
}

// Reservation implements [user.Store].
func (s *Store) Reservation(ctx context.Context, accountID, reservationID string) (user.Reservation, error) {
	var found *user.Reservation
	err := s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
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

// Reservations implements [user.Store].
func (s *Store) Reservations(ctx context.Context, accountID string, q user.ReservationQuery) ([]user.Reservation, error) {
	statuses := []user.ReservationStatus{q.Status}
	if q.Status == "" {
		statuses = user.ReservationStatuses()
	}
	var page []user.Reservation
	err := s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		// The index has one order for each status: a page of all is merged from a page of each.
		var b pgx.Batch
		page = nil
		for _, status := range statuses {
			b.Queue(selectReservationPage, accountID, status, optional(q.AfterExpiry), nullable(q.AfterID), q.Limit).Query(
				func(rows pgx.Rows) error {
					found, err := pgx.CollectRows(rows, scanReservation)
					page = append(page, found...)
					return err
				})
		}
		if err := conn.SendBatch(ctx, &b).Close(); err != nil || len(page) == 0 {
			return err
		}
		user.SortByExpiry(page)
		page = page[:min(len(page), q.Limit)]
		b = pgx.Batch{}
		for i := range page {
			queueOne(&b, &page[i].LastEntry, scanEntry, selectReservationEntry, accountID, page[i].ID)
		}
		return conn.SendBatch(ctx, &b).Close()
	})
	return page, err
}

// Accounts implements [user.Store]. Where no text is looked for, or one that many have, a page costs no more than a look at
// maxLooks accounts, however many there are that a filter leaves out.
func (s *Store) Accounts(ctx context.Context, q user.AccountQuery) (page []user.Account, after string, err error) {
	args := []any{q.After, q.Tier, q.SubscriptionStatus, q.Active, optional(q.RenewsBefore), q.Limit}
	var rows []found[user.Account]
	switch anywhere, searchErr := s.searchesAnywhere(ctx, q.Text); {
	case searchErr != nil:
		err = searchErr
	case q.Text == "":
		rows, err = list(ctx, s, scanFoundAccount, selectAccounts, append(args, max(s.maxLooks, q.Limit))...)
	case anywhere:
		rows, err = s.accountsWith(ctx, q, args)
	default:
		from, to := prefixRange(q.Text)
		lowerFrom, lowerTo := prefixRange(strings.ToLower(q.Text))
		// A plan for this prefix, never one for any: that would walk all accounts.
		args = append(append([]any{pgx.QueryExecModeCacheDescribe}, args...), from, to, lowerFrom, lowerTo)
		rows, err = list(ctx, s, scanFoundAccount, selectAccountsByPrefix, args...)
	}
	page, last := pageOf(rows, q.Limit)
	if last != nil {
		after = last.ID
	}
	return page, after, err
}

// SearchesAnywhere implements [user.Store].
func (s *Store) SearchesAnywhere(ctx context.Context) (bool, error) {
	s.search.mu.Lock()
	defer s.search.mu.Unlock()
	if s.search.known {
		return s.search.anywhere, nil
	}
	found, err := list(ctx, s, pgx.RowTo[bool], selectSearchIndex)
	if err != nil {
		return false, err
	}
	s.search.known, s.search.anywhere = true, found[0]
	return s.search.anywhere, nil
}

// search remembers whether there is an index of trigrams. It is made by a migration.
type search struct {
	mu              sync.Mutex
	known, anywhere bool
}

// searchesAnywhere reports whether the text is looked for anywhere: it has to have a trigram.
func (s *Store) searchesAnywhere(ctx context.Context, text string) (bool, error) {
	if utf8.RuneCountInString(text) < user.MinAnywhere {
		return false, nil
	}
	return s.SearchesAnywhere(ctx)
}

// accountsWith reads a page of the accounts that have the text somewhere. Those that few have are found by the index, which
// knows no order; what many have is met on the way along all accounts.
func (s *Store) accountsWith(ctx context.Context, q user.AccountQuery, args []any) (rows []found[user.Account], err error) {
	pattern, lower := likeAnywhere(q.Text), likeAnywhere(strings.ToLower(q.Text))
	few := max(s.maxLooks, q.Limit)
	search := append(append([]any{pgx.QueryExecModeCacheDescribe}, args[:len(args)-1]...), few+1, pattern, lower)
	ids, err := list(ctx, s, pgx.RowTo[string], selectIDsWith, search...)
	if err != nil {
		return nil, err
	}
	if len(ids) <= few {
		return list(ctx, s, scanFoundAccount, selectAccountsOf, ids, q.Limit)
	}
	return list(ctx, s, scanFoundAccount, selectAccountsWith, append(args, few, pattern, lower)...)
}

// likeAnywhere is the pattern of texts that have the given one somewhere.
func likeAnywhere(text string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(text) + "%"
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

// OldestDueHold returns how long ago the oldest open reservation ran out, by the database's clock; 0 when none has.
func (s *Store) OldestDueHold(ctx context.Context) (time.Duration, error) {
	ages, err := list(ctx, s, pgx.RowTo[float64], selectOldestDueHold)
	if err != nil {
		return 0, err
	}
	return time.Duration(ages[0] * float64(time.Second)), nil
}

// Chain implements [user.LedgerReader].
func (s *Store) Chain(ctx context.Context, afterAccount string, afterEntry int64, since time.Time, limit int) ([]user.ChainEntry, error) {
	return list(ctx, s, scanChainEntry, selectChain, afterAccount, afterEntry, optional(since), limit)
}

// TopUps implements [user.LedgerReader].
func (s *Store) TopUps(ctx context.Context, accountIDs []string, afterEntries []int64) ([]user.TopUpTotals, error) {
	return list(ctx, s, scanTopUpTotals, selectTopUps, accountIDs, afterEntries)
}

// AccountTotals implements [user.LedgerReader].
func (s *Store) AccountTotals(ctx context.Context, after string, limit int) ([]user.AccountTotals, error) {
	return list(ctx, s, scanAccountTotals, selectAccountTotals, after, limit)
}

// Settings returns the settings that the service was last started with on this database.
func (s *Store) Settings(ctx context.Context) (map[string]string, error) {
	settings := map[string]string{}
	err := s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectSettings)
		if err != nil {
			return err
		}
		var name, value string
		_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
			settings[name] = value
			return nil
		})
		return err
	})
	return settings, err
}

// KeepSetting notes a setting for the next start.
func (s *Store) KeepSetting(ctx context.Context, name, value string) error {
	return s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, upsertSetting, name, value)
		return err
	})
}

// CompareClocks returns how far the service's clock is ahead of the database's, by which accounts are judged; negative
// when it is behind.
func (s *Store) CompareClocks(ctx context.Context) (time.Duration, error) {
	err := s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		var database time.Time
		err := conn.QueryRow(ctx, selectNow).Scan(&database)
		if err == nil && s.clock != nil {
			database = s.clock(ctx, database)
		}
		if err == nil {
			s.noteClock(database)
		}
		return err
	})
	return s.ClockOffset(), err
}

// ClockOffset is what CompareClocks returned, or what a change of an account has found since.
func (s *Store) ClockOffset() time.Duration { return time.Duration(s.clockOffset.Load()) }

func (s *Store) noteClock(database time.Time) { s.clockOffset.Store(int64(time.Since(database))) }

func (s *Store) withConn(ctx context.Context, f func(context.Context, *pgxpool.Conn) error) error {
	return s.pool.withConn(ctx, f)
}

// read runs f, which only reads, on a connection for reads.
func (s *Store) read(ctx context.Context, f func(context.Context, *pgxpool.Conn) error) error {
	return s.reads.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error { return notDone(conn, f(ctx, conn)) })
}

// LossySettings names the settings of the server that are off and let it lose, in a crash, changes that were answered.
func (s *Store) LossySettings(ctx context.Context) ([]string, error) {
	var off []string
	err := s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectLossySettings)
		if err != nil {
			return err
		}
		off, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return off, err
}

// list reads all rows of a query.
func list[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	var found []T
	err := s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
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
	c := &change{ref: ref, apply: apply}
	written, err := s.updates.Do(ctx, c)
	return written, c.outcome(translate(err))
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
