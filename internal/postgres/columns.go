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

// rowColumns are whole rows of userdata.
type rowColumns struct {
	ids, tiers, statuses []string
	usernames, emails    []*string
	remaining, used      []int64
	renewals, resets     []*time.Time
	updated              []time.Time
	active               []bool
}

func (c *rowColumns) add(a user.Account) {
	c.ids, c.tiers, c.statuses = append(c.ids, a.ID), append(c.tiers, string(a.Tier)), append(c.statuses, string(a.SubscriptionStatus))
	c.usernames, c.emails = append(c.usernames, a.Username), append(c.emails, a.Email)
	c.remaining, c.used = append(c.remaining, a.TokensRemaining), append(c.used, a.TokensUsed)
	c.renewals, c.resets = append(c.renewals, a.RenewalDate), append(c.resets, a.LastReset)
	c.updated, c.active = append(c.updated, a.UpdatedAt), append(c.active, a.Active)
}

func (c *rowColumns) queue(b *pgx.Batch) {
	if c.ids != nil {
		b.Queue(updateUserdata, c.ids, c.usernames, c.emails, c.tiers, c.statuses, c.renewals, c.remaining, c.used, c.resets,
			c.updated, c.active)
	}
}

// sideColumns are side rows.
type sideColumns struct {
	ids                                                      []string
	topUps, used, allowance, excess, carried, reserved, open []int64
	periods                                                  []int
	expiries                                                 []*time.Time
}

func (c *sideColumns) add(a user.Account) {
	c.ids = append(c.ids, a.ID)
	c.topUps, c.used = append(c.topUps, a.TopUps), append(c.used, a.TopUpsUsed)
	c.allowance, c.excess = append(c.allowance, a.Allowance), append(c.excess, a.AllowanceExcess)
	c.carried, c.periods = append(c.carried, a.CarriedTopUps), append(c.periods, a.GrantedPeriod)
	c.reserved, c.open = append(c.reserved, a.Reserved), append(c.open, a.OpenReservations)
	c.expiries = append(c.expiries, a.NextHoldExpiry)
}

func (c *sideColumns) queue(b *pgx.Batch, sql string) {
	if c.ids != nil {
		b.Queue(sql, c.ids, c.topUps, c.used, c.allowance, c.excess, c.carried, c.periods, c.reserved, c.open, c.expiries)
	}
}

// holdColumns are reservations.
type holdColumns struct {
	ids, reservations, statuses          []string
	tokens, charged, returned, shortfall []int64
	periods                              []int
	late                                 []bool
	notes                                []*string
	created, expires                     []time.Time
	closed                               []*time.Time
	used                                 []*int64
}

func (c *holdColumns) add(accountID string, r *user.Reservation) {
	c.ids, c.reservations, c.statuses = append(c.ids, accountID), append(c.reservations, r.ID), append(c.statuses, string(r.Status))
	c.tokens, c.charged = append(c.tokens, r.Tokens), append(c.charged, r.Charged)
	c.returned, c.shortfall = append(c.returned, r.Returned), append(c.shortfall, r.Shortfall)
	c.periods, c.late, c.notes = append(c.periods, r.Period), append(c.late, r.Late), append(c.notes, jsonText(r.Metadata))
	c.created, c.expires = append(c.created, r.CreatedAt), append(c.expires, r.ExpiresAt)
	c.closed, c.used = append(c.closed, r.ClosedAt), append(c.used, r.TokensUsed)
}

func (g *group) queueReservations(b *pgx.Batch) {
	var c holdColumns
	for _, m := range g.accounts {
		for _, r := range m.changed {
			c.add(m.id, r)
		}
	}
	if c.ids != nil {
		b.Queue(upsertReservations, c.ids, c.reservations, c.statuses, c.tokens, c.charged, c.returned, c.shortfall, c.periods,
			c.late, c.notes, c.created, c.expires, c.closed, c.used)
	}
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
	entries                                    []*user.Entry
	ids, kinds                                 []string
	amounts, balances, used, charged, refunded []int64
	topUps                                     []*int64
	periods                                    []*int
	changes, reservations, keys, notes, actors []*string
	refundOf                                   []*int64
	hashes                                     [][]byte
	created                                    []time.Time
}

func (c *newEntries) add(accountID string, entries ...*user.Entry) {
	for _, e := range entries {
		c.entries = append(c.entries, e)
		c.ids, c.kinds = append(c.ids, accountID), append(c.kinds, string(e.Kind))
		c.amounts, c.balances = append(c.amounts, e.Amount), append(c.balances, e.BalanceAfter)
		c.used, c.charged = append(c.used, e.UsedAfter), append(c.charged, e.TokensCharged)
		c.refunded, c.topUps = append(c.refunded, e.TokensRefunded), append(c.topUps, e.TopUpsAmount)
		c.periods, c.changes = append(c.periods, e.Period), append(c.changes, jsonText(e.Changes))
		c.reservations, c.refundOf = append(c.reservations, e.ReservationID), append(c.refundOf, e.RefundedEntryID)
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
	b.Queue(insertEntries, c.ids, c.kinds, c.amounts, c.balances, c.used, c.charged, c.refunded, c.topUps, c.periods, c.changes,
		c.reservations, c.refundOf, c.keys, c.hashes, c.notes, c.actors, c.created,
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

// jsonText is a map as a JSONB column takes it; NULL when there is nothing in it.
func jsonText[M ~map[string]V, V any](m M) *string {
	if len(m) == 0 {
		return nil
	}
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // notes and changes always marshal
	}
	s := string(text)
	return &s
}
