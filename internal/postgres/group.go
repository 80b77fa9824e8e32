package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// group is a batch of updates in one transaction: the accounts are locked and read together, the rules run in the
// order in which the updates came, each on what the one before it left, and what all of them changed is written
// together.
type group struct {
	// accounts are in the order of their first update.
	accounts []*accountGroup
	byID     map[string]*accountGroup
	// maxHolds is the most holds that the transaction returns, over all accounts.
	maxHolds int
	// release lets the next batch of updates begin.
	release func()
	// now is the database's clock after the locks; clock, when set, says by which clock an account is judged instead.
	now   time.Time
	clock func(ctx context.Context, now time.Time) time.Time
}

// accountGroup is one account of a group, with its updates.
type accountGroup struct {
	id      string
	updates []*update
	// outcomes has an element for each update that has run: its refusal or failure, or nil.
	outcomes []error

	// found is false when there is no such account.
	found bool
	// before is the account as it was read, state.Account as the updates so far have left it.
	before user.Account
	state  user.State
	// openHolds is true when an update wants to see holds that are not due.
	openHolds bool
	// The rest of what updates may name, read at the start and kept up to date.
	prior        map[string]*user.Entry
	reservations map[string]*user.Reservation
	charges      map[int64]*user.Charge

	// What is to be written, if anything is: entries wait for their ids.
	dirty      bool
	entries    []*user.Entry
	changed    map[string]*user.Reservation
	conversion *user.Conversion
	pseudonym  string
}

func newGroup(batch []*update) *group {
	g := &group{byID: make(map[string]*accountGroup, len(batch))}
	for _, u := range batch {
		a := g.byID[u.Payload.ref.AccountID]
		if a == nil {
			a = &accountGroup{id: u.Payload.ref.AccountID}
			g.byID[a.id] = a
			g.accounts = append(g.accounts, a)
		}
		a.updates = append(a.updates, u)
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

// lockAndLoad begins the transaction, locks the rows of all accounts with lockRows, and reads what the updates may look
// at. Rows are locked in the order of their ids, so that transactions that wait for several cannot deadlock. At READ
// COMMITTED each statement sees what was committed before it began: all else, the clock too, is read by statements of
// their own, after the locks were waited for, or it would be older than the accounts.
func (g *group) lockAndLoad(ctx context.Context, conn *pgxpool.Conn, begin []string, lockRows string) error {
	ids := make([]string, 0, len(g.accounts))
	var keys, reservations pairs[string]
	var charges pairs[int64]
	for _, a := range g.accounts {
		ids = append(ids, a.id)
		for _, u := range a.updates {
			ref := u.Payload.ref
			if ref.IdempotencyKey != "" {
				keys.add(a.id, ref.IdempotencyKey)
			}
			if ref.ReservationID != "" {
				reservations.add(a.id, ref.ReservationID)
			}
			if ref.EntryID != 0 {
				charges.add(a.id, ref.EntryID)
			}
			a.openHolds = a.openHolds || ref.OpenHolds
		}
	}

	var b pgx.Batch
	for _, sql := range begin {
		b.Queue(sql)
	}
	b.Queue(lockRows, ids).Query(func(rows pgx.Rows) error {
		var read user.Account
		_, err := pgx.ForEachRow(rows, userdataFields(&read), func() error {
			a, err := g.account(read.ID)
			if err == nil {
				a.found, a.state.Account = true, read
				read = user.Account{}
			}
			return err
		})
		return err
	})
	b.Queue(selectSideRows, ids).Query(func(rows pgx.Rows) error {
		var id string
		var side user.Account
		_, err := pgx.ForEachRow(rows, append([]any{&id}, sideRowFields(&side)...), func() error {
			a, err := g.account(id)
			if err != nil {
				return err
			}
			sideRowForm(&side)
			read := &a.state.Account
			read.SideRow, read.TopUps, read.TopUpsUsed, read.Allowance = side.SideRow, side.TopUps, side.TopUpsUsed, side.Allowance
			read.AllowanceExcess, read.CarriedTopUps, read.GrantedPeriod = side.AllowanceExcess, side.CarriedTopUps, side.GrantedPeriod
			read.Reserved, read.OpenReservations, read.NextHoldExpiry = side.Reserved, side.OpenReservations, side.NextHoldExpiry
			side.NextHoldExpiry = nil
			return nil
		})
		return err
	})
	b.Queue(selectNow).QueryRow(func(row pgx.Row) error { return row.Scan(&g.now) })
	if keys.ids != nil {
		queueEach(&b, g, scanAccountEntry, func(a *accountGroup, e user.Entry) { put(&a.prior, *e.IdempotencyKey, &e) },
			selectEntriesByKey, keys.ids, keys.values)
	}
	if reservations.ids != nil {
		queueEach(&b, g, scanAccountReservation, func(a *accountGroup, r user.Reservation) { put(&a.reservations, r.ID, &r) },
			selectReservations, reservations.ids, reservations.values)
	}
	if charges.ids != nil {
		g.queueCharges(&b, charges)
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	return g.loadDue(ctx, conn)
}

// account is the member of the group with this id. A collation that takes different ids for equal finds rows that were
// not asked for.
func (g *group) account(id string) (*accountGroup, error) {
	if a := g.byID[id]; a != nil {
		return a, nil
	}
	return nil, fmt.Errorf("the database found an account that was not asked for: the collation of cognito_user_id takes different ids for equal")
}

// queueCharges queues what refunds have to see of the entries that they name.
func (g *group) queueCharges(b *pgx.Batch, charges pairs[int64]) {
	queueEach(b, g, scanAccountCharge, func(a *accountGroup, c user.Charge) { put(&a.charges, c.Entry.ID, &c) },
		selectCharges, charges.ids, charges.values)
	queueEach(b, g, scanSettled, func(a *accountGroup, s settled) {
		if c := a.charges[s.entryID]; c != nil {
			c.Reservation = &s.Reservation
		}
	},
		selectSettled, charges.ids, charges.values)
	queueEach(b, g, scanPeriodEnd, func(a *accountGroup, e periodEnd) {
		if c := a.charges[e.chargeID]; c != nil {
			c.Follow(e.Entry)
		}
	},
		selectPeriodEnds, charges.ids, charges.values, user.PeriodEnds())
}

// loadDue reads what only few accounts need, which their rows tell: holds that are due, and what adopts, converts or
// reconciles an account.
func (g *group) loadDue(ctx context.Context, conn *pgxpool.Conn) error {
	var holds, due pairs[time.Time]
	var counted, earlier, totals []string
	for _, a := range g.accounts {
		if !a.found {
			continue
		}
		a.before = a.state.Account
		a.state.Now = g.now
		if g.clock != nil {
			a.state.Now = g.clock(a.updates[0].Context(), g.now)
		}
		next := a.before.NextHoldExpiry
		isDue := next != nil && !a.state.Now.Before(*next)
		if isDue {
			due.add(a.id, a.state.Now)
		}
		if a.openHolds {
			holds.add(a.id, endOfTime)
		} else if isDue {
			holds.add(a.id, a.state.Now)
		}
		count, total := false, a.before.SideRow == user.NoSideRow
		for _, u := range a.updates {
			from := u.Payload.ref.CountOpenFrom
			count = count || from > 0 && a.before.OpenReservations >= from
			total = total || u.Payload.ref.Totals
		}
		if count {
			counted = append(counted, a.id)
		}
		if total {
			totals = append(totals, a.id)
		}
		if a.before.SideRow == user.EarlierSideRow {
			earlier = append(earlier, a.id)
		}
	}

	var b pgx.Batch
	if holds.ids != nil {
		g.queueHolds(&b, holds)
	}
	if due.ids != nil {
		queueEach(&b, g, scanOwned[*time.Time], func(a *accountGroup, expiry *time.Time) { a.state.NextExpiry = expiry },
			selectNextExpiries, due.ids, due.values)
	}
	if counted != nil {
		for _, id := range counted {
			g.byID[id].state.OpenCount = new(int64)
		}
		queueEach(&b, g, scanOwned[int64], func(a *accountGroup, n int64) { a.state.OpenCount = &n }, countOpenReservations, counted)
	}
	if earlier != nil {
		queueEach(&b, g, scanEarlierHolds, func(a *accountGroup, h user.EarlierHolds) { a.state.Earlier = &h }, selectEarlierHolds, earlier)
	}
	if totals != nil {
		g.queueTotals(&b, totals)
	}
	if b.Len() == 0 {
		return nil
	}
	return conn.SendBatch(ctx, &b).Close()
}

// endOfTime is later than the expiry of any reservation.
var endOfTime = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func (g *group) queueHolds(b *pgx.Batch, bounds pairs[time.Time]) {
	left := g.maxHolds
	b.Queue(selectHolds, bounds.ids, bounds.values, left+1).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, scanAccountReservation)
		if len(found) > left {
			found = found[:left]
			for _, id := range bounds.ids { // whose holds are left is not known
				g.byID[id].state.MoreHolds = true
			}
		}
		for _, h := range found {
			a, err := g.account(h.accountID)
			if err != nil {
				return err
			}
			a.state.Holds = append(a.state.Holds, h.value)
		}
		return err
	})
}

// queueTotals queues what the tables beside userdata say of accounts.
func (g *group) queueTotals(b *pgx.Batch, ids []string) {
	for _, id := range ids {
		none := int64(0)
		g.byID[id].state.Totals = &user.Totals{TopUps: &none}
	}
	queueEach(b, g, scanAccountEntry, func(a *accountGroup, e user.Entry) { a.state.Totals.Last = &e }, selectLastEntries, ids)
	queueEach(b, g, scanOwned[*int64], func(a *accountGroup, sum *int64) { a.state.Totals.TopUps = sum }, sumTopUps, ids)
	queueEach(b, g, scanOpenTotals, func(a *accountGroup, t user.Totals) {
		a.state.Totals.Reserved, a.state.Totals.Open, a.state.Totals.NextExpiry = t.Reserved, t.Open, t.NextExpiry
	}, sumOpenReservations, ids)
}

// queueEach queues a query and passes each of its rows, which begin with the account, to keep.
func queueEach[T any](b *pgx.Batch, g *group, scan pgx.RowToFunc[owned[T]], keep func(a *accountGroup, value T), sql string, args ...any) {
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, scan)
		for _, row := range found {
			a, err := g.account(row.accountID)
			if err != nil {
				return err
			}
			keep(a, row.value)
		}
		return err
	})
}

// runRules runs the updates of each account in their order.
func (g *group) runRules() {
	for _, a := range g.accounts {
		for _, u := range a.updates {
			a.outcomes = append(a.outcomes, a.runRule(u))
		}
	}
}

// runRule applies one update and keeps what it changed. The error is the update's own outcome.
func (a *accountGroup) runRule(u *update) (err error) {
	if !a.found {
		u.Answer = user.Change{}
		return user.ErrUserNotFound
	}
	// A rule that panics fails its own update and none of the others.
	defer func() {
		if p := recover(); p != nil {
			u.Answer, err = user.Change{}, fmt.Errorf("panic in a rule: %v", p)
		}
	}()
	s := a.state
	s.Prior = a.prior[u.Payload.ref.IdempotencyKey]
	s.Reservation = a.reservations[u.Payload.ref.ReservationID]
	s.Charge = a.charges[u.Payload.ref.EntryID]
	change, err := u.Payload.apply(s)
	if refused := (*user.Error)(nil); err != nil && !errors.As(err, &refused) {
		u.Answer = user.Change{}
		return err
	}
	u.Answer = change
	if !change.Empty() {
		a.keep(&u.Answer)
	}
	return err
}

// keep makes the change part of the state that the account's next update sees, and of what will be written.
func (a *accountGroup) keep(c *user.Change) {
	a.dirty = true
	a.state.Account, a.state.OpenCount, a.state.Earlier = c.Account, nil, nil
	if c.Conversion != nil {
		a.conversion = c.Conversion
		for _, r := range a.reservations {
			c.Conversion.Convert(r)
		}
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		a.entries = append(a.entries, e)
		if e.IdempotencyKey != nil {
			put(&a.prior, *e.IdempotencyKey, e)
		}
		for _, charge := range a.charges {
			charge.Follow(*e)
		}
	}
	if a.state.Totals != nil {
		a.state.Totals.Follow(*c)
	}
	if len(c.Reservations) > 0 {
		a.keepReservations(c.Reservations)
	}
	if c.Pseudonym != "" {
		a.pseudonym = c.Pseudonym
	}
}

func (a *accountGroup) keepReservations(changed []user.Reservation) {
	newer := make(map[string]bool, len(changed))
	for i := range changed {
		r := &changed[i]
		newer[r.ID] = true
		put(&a.changed, r.ID, r)
		put(&a.reservations, r.ID, r)
	}
	// A new slice: the rules may still look at the one that they were given.
	holds := slices.DeleteFunc(slices.Clone(a.state.Holds), func(h user.Reservation) bool { return newer[h.ID] })
	for _, r := range changed {
		if a.openHolds && r.Status == user.ReservationOpen {
			holds = append(holds, r)
		}
	}
	user.SortByExpiry(holds)
	a.state.Holds = holds
}

// commit writes what the updates changed and commits, in one round trip. It fills in the ids of the entries.
func (g *group) commit(ctx context.Context, conn *pgxpool.Conn) error {
	var b pgx.Batch
	var counters counterColumns
	var rows rowColumns
	var sides, newSides sideColumns
	var converted pairs[int]
	for _, a := range g.accounts {
		if !a.dirty {
			continue
		}
		before, after := a.before, a.state.Account
		switch {
		case !sameProfile(before, after):
			rows.add(after)
		case !sameCounters(before, after):
			counters.add(after)
		}
		switch {
		case before.SideRow == user.NoSideRow:
			newSides.add(after)
		case !sameSideRow(before, after):
			sides.add(after)
		}
		if a.conversion != nil {
			converted.add(a.id, a.conversion.Period)
		}
	}
	counters.queue(&b)
	rows.queue(&b)
	newSides.queue(&b, insertSideRows)
	sides.queue(&b, updateSideRows)
	if converted.ids != nil {
		b.Queue(convertReservations, converted.ids, converted.values)
	}
	g.queueReservations(&b)
	g.queueEntries(&b)
	for _, a := range g.accounts {
		if a.pseudonym != "" {
			queueErase(&b, a.state.Account, a.pseudonym)
		}
	}
	// If every update was refused, roll back. A success without a change may replay a commit that no standby has confirmed;
	// committing behind its row locks waits for the standby.
	how := "rollback"
	if b.Len() > 0 || slices.ContainsFunc(g.accounts, func(a *accountGroup) bool { return slices.Contains(a.outcomes, nil) }) {
		how = "commit"
	}
	return endTransaction(ctx, conn, &b, how, g.release)
}

// sameProfile reports whether two states of an account differ in their counters at most, as they do after nearly every
// update. What is there through a pointer differs when it was set, be it to the same.
func sameProfile(a, b user.Account) bool {
	return a.Tier == b.Tier && a.SubscriptionStatus == b.SubscriptionStatus && a.Active == b.Active &&
		a.LastReset == b.LastReset && a.RenewalDate == b.RenewalDate && a.Username == b.Username && a.Email == b.Email
}

// sameCounters does not go by UpdatedAt alone: a clock that was set back can give two changes the same instant.
func sameCounters(a, b user.Account) bool {
	return a.TokensRemaining == b.TokensRemaining && a.TokensUsed == b.TokensUsed && a.UpdatedAt.Equal(b.UpdatedAt)
}

func sameSideRow(a, b user.Account) bool {
	return a.SideRow == b.SideRow && a.TopUps == b.TopUps && a.TopUpsUsed == b.TopUpsUsed && a.Allowance == b.Allowance &&
		a.AllowanceExcess == b.AllowanceExcess && a.CarriedTopUps == b.CarriedTopUps && a.GrantedPeriod == b.GrantedPeriod &&
		a.Reserved == b.Reserved && a.OpenReservations == b.OpenReservations && a.NextHoldExpiry == b.NextHoldExpiry
}
