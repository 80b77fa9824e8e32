package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// group is a batch of updates in one transaction: the accounts are locked and read together, the rules run in the
// order in which the updates came, each on what the one before it left, and what all of them changed is written
// together.
type group struct {
	// accounts are in the order of their first update.
	accounts []*member
	byID     map[string]*member
}

// member is one account of a group.
type member struct {
	id      string
	updates []*update
	// outcomes has an element for each update that has run: its refusal or failure, or nil.
	outcomes []error

	// found is false when there is no such account, or when it has been moved to a pseudonym.
	found bool
	// before is the account as it was read, state.Account as the updates so far have left it.
	before user.Account
	state  user.State
	// The rest of what updates may name, read at the start and kept up to date.
	prior        map[string]*user.Entry
	reservations map[string]*user.Reservation
	charges      map[int64]*user.Charge

	// What is to be written: entries wait for their ids.
	entries   []*user.Entry
	changed   map[string]*user.Reservation
	pseudonym string
	// stored are the reservations that are in the table already.
	stored map[string]bool
}

func newGroup(batch []*update) *group {
	g := &group{byID: make(map[string]*member, len(batch))}
	for _, u := range batch {
		m := g.byID[u.request.ref.AccountID]
		if m == nil {
			m = &member{id: u.request.ref.AccountID}
			g.byID[m.id] = m
			g.accounts = append(g.accounts, m)
		}
		m.updates = append(m.updates, u)
	}
	return g
}

// put sets an element of a map that is made with its first one: most accounts of a group need none of theirs.
func put[K comparable, V any](m *map[K]V, key K, value V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[key] = value
}

// pairs are two columns of equal length: accounts, and what is named of each.
type pairs[T any] struct {
	ids    []string
	values []T
}

func (p *pairs[T]) add(id string, value T) {
	p.ids, p.values = append(p.ids, id), append(p.values, value)
}

// lock begins the transaction, takes the row locks of all accounts in the order of their ids, so that groups of
// several replicas cannot deadlock, and reads what the updates may look at. At READ COMMITTED each statement sees what
// was committed before it began: all else is read by statements of their own, after the locks were waited for, or it
// would be older than the accounts.
func (g *group) lock(ctx context.Context, conn *pgxpool.Conn, begin []string) error {
	ids := make([]string, 0, len(g.accounts))
	var keys, reservations pairs[string]
	var charges pairs[int64]
	var held, last []string
	for _, m := range g.accounts {
		ids = append(ids, m.id)
		var holds, newest bool
		for _, u := range m.updates {
			if u.request.ref.IdempotencyKey != "" {
				keys.add(m.id, u.request.ref.IdempotencyKey)
			}
			if u.request.ref.ReservationID != "" {
				reservations.add(m.id, u.request.ref.ReservationID)
				holds = true
			}
			if u.request.ref.EntryID != 0 {
				charges.add(m.id, u.request.ref.EntryID)
			}
			newest = newest || u.request.ref.LastEntry
		}
		if holds {
			held = append(held, m.id)
		}
		if newest {
			last = append(last, m.id)
		}
	}

	var b pgx.Batch
	for _, sql := range begin {
		b.Queue(sql)
	}
	b.Queue(lockUserdata, ids).Query(func(rows pgx.Rows) error {
		var a user.Account
		_, err := pgx.ForEachRow(rows, userdataFields(&a), func() error {
			m := g.byID[a.ID]
			m.found, m.before, m.state.Account = true, a, a
			a = user.Account{}
			return nil
		})
		return err
	})
	b.Queue(selectSideRows, ids).Query(func(rows pgx.Rows) error {
		var id string
		var side user.Account
		_, err := pgx.ForEachRow(rows, append([]any{&id}, sideRowFields(&side)...), func() error {
			m := g.byID[id]
			for _, a := range []*user.Account{&m.before, &m.state.Account} {
				a.TopUps, a.Reserved, a.NextHoldExpiry, a.Adopted = side.TopUps, side.Reserved, side.NextHoldExpiry, true
			}
			side.NextHoldExpiry = nil
			return nil
		})
		return err
	})
	if keys.ids != nil {
		queueEach(&b, scanAccountEntry, func(id string, e user.Entry) { put(&g.byID[id].prior, *e.IdempotencyKey, &e) },
			selectEntriesByKey, keys.ids, keys.values)
	}
	if reservations.ids != nil {
		queueEach(&b, scanAccountReservation, func(id string, r user.Reservation) {
			m := g.byID[id]
			put(&m.reservations, r.ID, &r)
			put(&m.stored, r.ID, true)
		}, selectReservations, reservations.ids, reservations.values)
	}
	if charges.ids != nil {
		queueEach(&b, scanAccountCharge, func(id string, c user.Charge) { put(&g.byID[id].charges, c.Entry.ID, &c) },
			selectCharges, charges.ids, charges.values)
	}
	if last != nil {
		queueEach(&b, scanAccountEntry, func(id string, e user.Entry) { g.byID[id].state.Last = &e }, selectLastEntries, last)
	}
	g.queueHolds(&b, held)
	return conn.SendBatch(ctx, &b).Close()
}

// loadHolds reads the open reservations of accounts.
func (g *group) loadHolds(ctx context.Context, conn *pgxpool.Conn, ids []string) error {
	var b pgx.Batch
	g.queueHolds(&b, ids)
	return conn.SendBatch(ctx, &b).Close()
}

func (g *group) queueHolds(b *pgx.Batch, ids []string) {
	if ids == nil {
		return
	}
	for _, id := range ids {
		m := g.byID[id]
		m.state.HoldsLoaded = true
		// Those that the group itself has made are not in the table yet.
		for _, r := range m.changed {
			m.state.Holds = append(m.state.Holds, *r)
		}
	}
	queueEach(b, scanAccountReservation, func(id string, r user.Reservation) {
		m := g.byID[id]
		put(&m.stored, r.ID, true)
		if m.changed[r.ID] == nil {
			m.state.Holds = append(m.state.Holds, r)
		}
	}, selectHolds, ids)
}

// queueEach queues a query and passes each of its rows, which begin with the account, to keep.
func queueEach[T any](b *pgx.Batch, scan pgx.RowToFunc[owned[T]], keep func(id string, value T), sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, scan)
		for _, row := range found {
			keep(row.accountID, row.value)
		}
		return err
	})
}

// run runs the updates that have not run yet, in order, and returns the accounts where one asks for the holds: it and
// those after it wait until they are loaded.
func (g *group) run() (needHolds []string) {
	for _, m := range g.accounts {
		for len(m.outcomes) < len(m.updates) {
			u := m.updates[len(m.outcomes)]
			err := m.run(u)
			if errors.Is(err, user.ErrHoldsNeeded) && !m.state.HoldsLoaded {
				needHolds = append(needHolds, m.id)
				break
			}
			m.outcomes = append(m.outcomes, err)
		}
	}
	return needHolds
}

// run applies one update and keeps what it changed. The error is the update's own outcome.
func (m *member) run(u *update) (err error) {
	if !m.found {
		u.answer = user.Change{}
		return user.ErrUserNotFound
	}
	// A rule that panics fails its own update and none of the others.
	defer func() {
		if p := recover(); p != nil {
			u.answer, err = user.Change{}, fmt.Errorf("panic in a rule: %v", p)
		}
	}()
	s := m.state
	s.Prior = m.prior[u.request.ref.IdempotencyKey]
	s.Reservation = m.reservations[u.request.ref.ReservationID]
	s.Charge = m.charges[u.request.ref.EntryID]
	change, err := u.request.apply(s)
	if refused := (*user.Error)(nil); err != nil && !errors.As(err, &refused) {
		u.answer = user.Change{}
		return err
	}
	u.answer = change
	if !change.Empty() {
		m.keep(&u.answer)
	}
	return err
}

// keep makes the change part of the state that the account's next update sees, and of what will be written.
func (m *member) keep(c *user.Change) {
	m.state.Account = c.Account
	for i := range c.Entries {
		e := &c.Entries[i]
		m.entries = append(m.entries, e)
		m.state.Last = e
		if e.IdempotencyKey != nil {
			put(&m.prior, *e.IdempotencyKey, e)
		}
		for id, charge := range m.charges {
			switch {
			case e.Kind == user.KindMonthlyReset || e.Kind == user.KindTierChange:
				charge.ThisTerm = false
			case e.RefundedEntryID != nil && *e.RefundedEntryID == id:
				charge.Refunded += e.Amount
			}
		}
	}
	if len(c.Reservations) > 0 {
		m.keepReservations(c.Reservations)
	}
	if c.Pseudonym != "" {
		m.pseudonym, m.found = c.Pseudonym, false
	}
}

func (m *member) keepReservations(changed []user.Reservation) {
	newer := make(map[string]bool, len(changed))
	for i := range changed {
		r := &changed[i]
		newer[r.ID] = true
		put(&m.changed, r.ID, r)
		put(&m.reservations, r.ID, r)
	}
	if !m.state.HoldsLoaded {
		return
	}
	// A new slice: the rules may still look at the one that they were given.
	holds := slices.DeleteFunc(slices.Clone(m.state.Holds), func(h user.Reservation) bool { return newer[h.ID] })
	for _, r := range changed {
		if r.Status == user.ReservationOpen {
			holds = append(holds, r)
		}
	}
	m.state.Holds = holds
}

// commit writes what the updates changed and commits, in one round trip. It fills in the ids of the entries.
func (g *group) commit(ctx context.Context, conn *pgxpool.Conn) error {
	var b pgx.Batch
	var rest []*member
	var counters counterColumns
	var sides, newSides sideColumns
	for _, m := range g.accounts {
		if len(m.entries) == 0 && len(m.changed) == 0 && m.pseudonym == "" {
			continue
		}
		if onlyCountersChanged(m.before, m.state.Account) {
			counters.add(m.state.Account)
		} else {
			rest = append(rest, m)
		}
		switch {
		case !m.before.Adopted:
			newSides.add(m.state.Account)
		case sideRowChanged(m.before, m.state.Account):
			sides.add(m.state.Account)
		}
	}
	counters.queue(&b)
	for _, m := range rest {
		queueUserdata(&b, m.state.Account)
	}
	newSides.queue(&b, insertSideRows)
	sides.queue(&b, updateSideRows)
	g.queueReservations(&b)
	g.queueEntries(&b)
	for _, m := range g.accounts {
		if m.pseudonym != "" {
			queueMove(&b, m.id, m.pseudonym)
		}
	}
	// Where all were refused there is nothing to wait for. What succeeds without a change may be a repetition of what was
	// committed without the word of a standby, though: the row locks make a commit that comes after it and waits for the
	// standby too.
	how := "rollback"
	if b.Len() > 0 || slices.ContainsFunc(g.accounts, func(m *member) bool { return slices.Contains(m.outcomes, nil) }) {
		how = "commit"
	}
	return end(ctx, conn, &b, how)
}

// end sends the batch and ends the transaction with it, by "commit" or "rollback". Unless it returns nil or
// errOutcomeUnknown, nothing was done.
func end(ctx context.Context, conn *pgxpool.Conn, b *pgx.Batch, how string) error {
	forgetUnconfirmed(conn)
	var tag pgconn.CommandTag
	b.Queue(how).Exec(func(ct pgconn.CommandTag) error {
		tag = ct
		return nil
	})
	err := conn.SendBatch(ctx, b).Close()
	var pg *pgconn.PgError
	var unsent pgx.ErrPreprocessingBatch
	switch {
	case err == nil && tag.String() != strings.ToUpper(how):
		return fmt.Errorf("%s answered %s", how, tag)
	case err == nil:
		return unconfirmed(conn)
	case errors.As(err, &unsent), pgconn.SafeToRetry(err), errors.As(err, &pg) && !lost(pg):
		return err
	case how == "rollback":
		return notDone(conn, err)
	}
	return fmt.Errorf("%w: %w", errOutcomeUnknown, err)
}

// lost reports whether an error ends the session: it does not answer what was sent last. A pooler that has lost the
// server says so without the field that no language changes.
func lost(pg *pgconn.PgError) bool {
	severity := cmp.Or(pg.SeverityUnlocalized, pg.Severity)
	return severity == "FATAL" || severity == "PANIC"
}

// onlyCountersChanged reports whether an account differs from what it was in its two counters at most, as it does
// after nearly every update.
func onlyCountersChanged(before, after user.Account) bool {
	after.TokensRemaining, after.TokensUsed, after.UpdatedAt = before.TokensRemaining, before.TokensUsed, before.UpdatedAt
	after.TopUps, after.Reserved, after.NextHoldExpiry, after.Adopted = before.TopUps, before.Reserved, before.NextHoldExpiry, before.Adopted
	return after == before
}

// sideRowChanged compares instants by their pointers: a rule that keeps one keeps its pointer.
func sideRowChanged(before, after user.Account) bool {
	return before.TopUps != after.TopUps || before.Reserved != after.Reserved ||
		before.NextHoldExpiry != after.NextHoldExpiry
}
