package postgres

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/user"
)

// What a group writes goes to PostgreSQL column by column: one statement for all accounts, however many there are.

type counterColumns struct {
	ids             []string
	remaining, used []int64
	updated         []time.Time
}

func (c *counterColumns) add(a user.Account) {
	c.ids = append(c.ids, a.ID)
	c.remaining, c.used = append(c.remaining, a.TokensRemaining), append(c.used, a.TokensUsed)
	c.updated = append(c.updated, a.UpdatedAt)
}

func (c *counterColumns) queue(b *pgx.Batch) {
	if c.ids != nil {
		b.Queue(updateCounters, c.ids, c.remaining, c.used, c.updated)
	}
}

type sideColumns struct {
	ids              []string
	topUps, reserved []int64
	expiries         []*time.Time
}

func (c *sideColumns) add(a user.Account) {
	c.ids = append(c.ids, a.ID)
	c.topUps, c.reserved = append(c.topUps, a.TopUps), append(c.reserved, a.Reserved)
	c.expiries = append(c.expiries, a.NextHoldExpiry)
}

func (c *sideColumns) queue(b *pgx.Batch, sql string) {
	if c.ids != nil {
		b.Queue(sql, c.ids, c.topUps, c.reserved, c.expiries)
	}
}

func queueUserdata(b *pgx.Batch, a user.Account) {
	b.Queue(updateUserdata, a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, a.RenewalDate,
		a.TokensRemaining, a.TokensUsed, a.LastReset, a.UpdatedAt, a.Active)
}

func queueMove(b *pgx.Batch, id, pseudonym string) {
	for _, sql := range copyAccount {
		b.Queue(sql, id, pseudonym)
	}
	for _, sql := range deleteAccount {
		b.Queue(sql, id)
	}
}

type holdColumns struct {
	ids, reservations, statuses                  []string
	tokens, charged, returned, shortfall, topUps []int64
	carried                                      []bool
	created, expires                             []time.Time
	closed                                       []*time.Time
	used                                         []*int64
}

func (c *holdColumns) add(accountID string, r *user.Reservation) {
	c.ids, c.reservations, c.statuses = append(c.ids, accountID), append(c.reservations, r.ID), append(c.statuses, string(r.Status))
	c.tokens, c.charged = append(c.tokens, r.Tokens), append(c.charged, r.Charged)
	c.returned, c.shortfall = append(c.returned, r.Returned), append(c.shortfall, r.Shortfall)
	c.carried, c.topUps = append(c.carried, r.Carried), append(c.topUps, r.TopUp)
	c.created, c.expires = append(c.created, r.CreatedAt), append(c.expires, r.ExpiresAt)
	c.closed, c.used = append(c.closed, r.ClosedAt), append(c.used, r.TokensUsed)
}

func (c *holdColumns) queue(b *pgx.Batch, sql string) {
	if c.ids != nil {
		b.Queue(sql, c.ids, c.reservations, c.statuses, c.tokens, c.charged, c.returned, c.shortfall, c.carried,
			c.topUps, c.created, c.expires, c.closed, c.used)
	}
}

func (g *group) queueReservations(b *pgx.Batch) {
	var made, changed holdColumns
	for _, m := range g.accounts {
		for _, r := range m.changed {
			if m.stored[r.ID] {
				changed.add(m.id, r)
			} else {
				made.add(m.id, r)
			}
		}
	}
	made.queue(b, insertReservations)
	changed.queue(b, updateReservations)
}

func (g *group) queueEntries(b *pgx.Batch) {
	var all newEntries
	for _, m := range g.accounts {
		all.add(m.id, m.entries...)
	}
	all.queue(b)
}

// newEntries are entries to insert, column by column.
type newEntries struct {
	entries                           []*user.Entry
	ids, kinds                        []string
	amounts, balances, used, charged  []int64
	reservations, keys, notes, actors []*string
	refunded                          []*int64
	hashes                            [][]byte
	created                           []time.Time
}

func (c *newEntries) add(accountID string, entries ...*user.Entry) {
	for _, e := range entries {
		c.entries = append(c.entries, e)
		c.ids, c.kinds = append(c.ids, accountID), append(c.kinds, string(e.Kind))
		c.amounts, c.balances = append(c.amounts, e.Amount), append(c.balances, e.BalanceAfter)
		c.used, c.charged = append(c.used, e.UsedAfter), append(c.charged, e.TokensCharged)
		c.reservations, c.refunded = append(c.reservations, e.ReservationID), append(c.refunded, e.RefundedEntryID)
		c.keys, c.hashes = append(c.keys, e.IdempotencyKey), append(c.hashes, e.CommandHash)
		c.notes, c.actors = append(c.notes, jsonText(e.Metadata)), append(c.actors, e.Actor)
		c.created = append(c.created, e.CreatedAt)
	}
}

// queue queues the insert, which gives ids in the order of the rows and returns them in that order.
func (c *newEntries) queue(b *pgx.Batch) {
	if c.ids == nil {
		return
	}
	b.Queue(insertEntries, c.ids, c.kinds, c.amounts, c.balances, c.used, c.charged, c.reservations, c.refunded, c.keys,
		c.hashes, c.notes, c.actors, c.created,
	).Query(func(rows pgx.Rows) error {
		given, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		slices.SortFunc(given, cmp.Compare[int64])
		for i, id := range given {
			c.entries[i].ID = id
		}
		return nil
	})
}

// jsonText is metadata as the column takes it; NULL when there is none.
func jsonText(m map[string]string) *string {
	if len(m) == 0 {
		return nil
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // a map of strings always marshals
	}
	s := string(text)
	return &s
}
