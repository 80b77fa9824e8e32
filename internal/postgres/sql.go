package postgres

import (
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/viralpilot/user-management/internal/user"
)

// Every statement of the request path names an account or a list of them, but for the search of users and, when an
// account is erased, the entries of others that name it.
const (
	userdataColumns = `cognito_user_id, username, email, subscription_tier, subscription_status, subscription_renewal_date,
		tokens_remaining, tokens_used_this_month, last_token_reset_date, created_at, updated_at, is_active`

	entryColumns = `entry_id, kind, amount, balance_after, used_after, tokens_charged, reservation_id, refunded_entry_id,
		idempotency_key, command_hash, metadata, actor, created_at`

	reservationColumns = `reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall, carried, top_up,
		created_at, expires_at, closed_at, tokens_used`

	// A row without a side row has not been adopted yet.
	accountColumns = userdataColumns + `,
			coalesce(top_ups, 0), coalesce(tokens_reserved, 0), next_hold_expiry, top_ups IS NOT NULL`

	selectAccountsByID = `SELECT ` + accountColumns + `
		FROM viralpilot.userdata LEFT JOIN viralpilot.account_state USING (cognito_user_id)
		WHERE cognito_user_id = ANY($1)`

	lockUserdata = `SELECT ` + userdataColumns + ` FROM viralpilot.userdata
		WHERE cognito_user_id = ANY($1) ORDER BY cognito_user_id FOR UPDATE`

	selectSideRows = `SELECT cognito_user_id, top_ups, tokens_reserved, next_hold_expiry, true
		FROM viralpilot.account_state WHERE cognito_user_id = ANY($1)`

	selectEntriesByKey = `SELECT cognito_user_id, ` + entryColumns + ` FROM viralpilot.ledger
		WHERE (cognito_user_id, idempotency_key) IN (SELECT * FROM unnest($1::text[], $2::text[]))`

	selectReservations = `SELECT cognito_user_id, ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE (cognito_user_id, reservation_id) IN (SELECT id, named::uuid FROM unnest($1::text[], $2::text[]) AS n (id, named))`

	selectHolds = `SELECT cognito_user_id, ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE cognito_user_id = ANY($1) AND status = 'open'`

	// What a refund has to know of the entry it names.
	selectCharges = `SELECT cognito_user_id, ` + entryColumns + `,
			(SELECT coalesce(sum(amount), 0) FROM viralpilot.ledger r
				WHERE r.cognito_user_id = l.cognito_user_id AND r.refunded_entry_id = l.entry_id),
			NOT EXISTS (SELECT FROM viralpilot.ledger t
				WHERE t.cognito_user_id = l.cognito_user_id AND t.entry_id > l.entry_id AND t.kind IN ('monthly_reset', 'tier_change')),
			coalesce((SELECT least(h.tokens_charged, h.tokens) FROM viralpilot.reservations h
				WHERE h.cognito_user_id = l.cognito_user_id AND h.reservation_id = l.reservation_id AND h.carried), 0)
		FROM viralpilot.ledger l
		WHERE (cognito_user_id, entry_id) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))`

	selectLastEntries = `SELECT n.id, ` + entryColumns + ` FROM unnest($1::text[]) AS n (id)
		CROSS JOIN LATERAL (SELECT * FROM viralpilot.ledger WHERE cognito_user_id = n.id ORDER BY entry_id DESC LIMIT 1) l`

	selectReservation = `SELECT ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE cognito_user_id = $1 AND reservation_id = $2`

	// A reservation with its newest entry.
	selectReservationEntry = `SELECT ` + entryColumns + ` FROM viralpilot.ledger
		WHERE cognito_user_id = $1 AND reservation_id = $2 ORDER BY entry_id DESC LIMIT 1`

	selectReservationPage = `SELECT ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE cognito_user_id = $1 AND status = 'open'
			AND ($2::timestamptz IS NULL OR (expires_at, reservation_id) > ($2, $3::uuid))
		ORDER BY expires_at, reservation_id LIMIT $4`

	// width_bucket numbers the stretches between the bounds, from 1.
	selectUsage = `SELECT width_bucket(created_at, $2::timestamptz[]) AS stretch,
			coalesce(sum(tokens_charged), 0), coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0)
		FROM viralpilot.ledger
		WHERE cognito_user_id = $1 AND created_at >= $3 AND created_at < $4
		GROUP BY stretch`

	// The side rows begin where the page does: merged with all of them, a page would cost more the later it is.
	selectAccounts = `SELECT ` + accountColumns + `
		FROM viralpilot.userdata
			LEFT JOIN (SELECT * FROM viralpilot.account_state WHERE cognito_user_id > $1) s USING (cognito_user_id)
		WHERE cognito_user_id > $1` + accountFilters + `
		ORDER BY cognito_user_id LIMIT $5`

	// Each branch walks the index of one column and the outer query merges what they find: one condition with OR would
	// walk all accounts. The operators are those of text_pattern_ops, which LIKE with a parameter does not get to use.
	selectAccountsByPrefix = `WITH found AS (
			(SELECT cognito_user_id FROM viralpilot.userdata
				WHERE cognito_user_id > $1` + accountFilters + ` AND cognito_user_id ~>=~ $6 AND cognito_user_id ~<~ $7
				ORDER BY cognito_user_id LIMIT $5)
			UNION
			(SELECT cognito_user_id FROM viralpilot.userdata
				WHERE cognito_user_id > $1` + accountFilters + ` AND username ~>=~ $6 AND username ~<~ $7
				ORDER BY cognito_user_id LIMIT $5)
			UNION
			(SELECT cognito_user_id FROM viralpilot.userdata
				WHERE cognito_user_id > $1` + accountFilters + ` AND lower(email) ~>=~ $8 AND lower(email) ~<~ $9
				ORDER BY cognito_user_id LIMIT $5)
			ORDER BY cognito_user_id LIMIT $5)
		SELECT ` + accountColumns + `
		FROM found JOIN viralpilot.userdata USING (cognito_user_id)
			LEFT JOIN viralpilot.account_state USING (cognito_user_id)
		ORDER BY cognito_user_id`

	accountFilters = ` AND ($2::text = '' OR subscription_tier = $2) AND ($3::text = '' OR subscription_status = $3)
			AND ($4::boolean IS NULL OR is_active = $4)`

	// Not on the request path: it looks at all accounts.
	selectDueAccounts = `SELECT DISTINCT cognito_user_id FROM viralpilot.reservations
		WHERE status = 'open' AND expires_at <= $1 AND cognito_user_id > $2
		ORDER BY cognito_user_id LIMIT $3`

	selectLinks = `SELECT l.cognito_user_id, entry_id, amount, balance_after,
			coalesce((SELECT balance_after FROM viralpilot.ledger p
				WHERE p.cognito_user_id = l.cognito_user_id AND p.entry_id < l.entry_id
				ORDER BY p.entry_id DESC LIMIT 1), 0),
			NOT EXISTS (SELECT FROM viralpilot.userdata u WHERE u.cognito_user_id = l.cognito_user_id)
		FROM viralpilot.ledger l
		WHERE (l.cognito_user_id, entry_id) > ($1, $2) AND ($3::timestamptz IS NULL OR created_at >= $3)
		ORDER BY l.cognito_user_id, entry_id LIMIT $4`

	selectBalances = `SELECT u.cognito_user_id, tokens_remaining, tokens_used_this_month,
			s.cognito_user_id IS NOT NULL, coalesce(top_ups, 0), coalesce(tokens_reserved, 0),
			coalesce(balance_after, 0), coalesce(used_after, 0),
			(SELECT coalesce(sum(tokens), 0) FROM viralpilot.reservations h
				WHERE h.cognito_user_id = u.cognito_user_id AND status = 'open')
		FROM viralpilot.userdata u
		LEFT JOIN viralpilot.account_state s ON s.cognito_user_id = u.cognito_user_id
		LEFT JOIN LATERAL (SELECT balance_after, used_after FROM viralpilot.ledger l
			WHERE l.cognito_user_id = u.cognito_user_id ORDER BY entry_id DESC LIMIT 1) l ON true
		WHERE u.cognito_user_id > $1
		ORDER BY u.cognito_user_id LIMIT $2`

	// Newest first by the primary key; a page begins where the one before it ended.
	selectEntries = `SELECT ` + entryColumns + ` FROM viralpilot.ledger
		WHERE cognito_user_id = $1 AND ($2::bigint = 0 OR entry_id < $2) AND ($3::text = '' OR kind = $3)
			AND ($4::timestamptz IS NULL OR created_at >= $4) AND ($5::timestamptz IS NULL OR created_at < $5)
		ORDER BY entry_id DESC LIMIT $6`

	insertUserdata = `INSERT INTO viralpilot.userdata (` + userdataColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING`

	updateUserdata = `UPDATE viralpilot.userdata SET username = $2, email = $3, subscription_tier = $4,
			subscription_status = $5, subscription_renewal_date = $6, tokens_remaining = $7,
			tokens_used_this_month = $8, last_token_reset_date = $9, updated_at = $10, is_active = $11
		WHERE cognito_user_id = $1`

	updateCounters = `UPDATE viralpilot.userdata u SET tokens_remaining = n.remaining, tokens_used_this_month = n.used, updated_at = n.updated
		FROM unnest($1::text[], $2::integer[], $3::integer[], $4::timestamp[]) AS n (id, remaining, used, updated)
		WHERE u.cognito_user_id = n.id`

	insertSideRows = `INSERT INTO viralpilot.account_state (cognito_user_id, top_ups, tokens_reserved, next_hold_expiry)
		SELECT * FROM unnest($1::text[], $2::integer[], $3::integer[], $4::timestamptz[])`

	updateSideRows = `UPDATE viralpilot.account_state s SET top_ups = n.top_ups, tokens_reserved = n.reserved, next_hold_expiry = n.expiry
		FROM unnest($1::text[], $2::integer[], $3::integer[], $4::timestamptz[]) AS n (id, top_ups, reserved, expiry)
		WHERE s.cognito_user_id = n.id`

	writtenReservations = `unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[],
				$8::boolean[], $9::integer[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[], $13::integer[])
			AS n (id, reservation, status, tokens, charged, returned, shortfall, carried, top_up, created, expires, closed, used)`

	// One that is there already was made by the same command, which is run again because its commit was not answered. It
	// holds nothing, or an entry would have told of it; but the account may be limited by now.
	insertReservations = `INSERT INTO viralpilot.reservations (cognito_user_id, ` + reservationColumns + `)
		SELECT id, reservation::uuid, status, tokens, charged, returned, shortfall, carried, top_up, created, expires, closed, used
		FROM ` + writtenReservations + `
		ON CONFLICT (cognito_user_id, reservation_id) DO UPDATE SET status = excluded.status, tokens = excluded.tokens,
			tokens_charged = excluded.tokens_charged, tokens_returned = excluded.tokens_returned, shortfall = excluded.shortfall,
			carried = excluded.carried, top_up = excluded.top_up, created_at = excluded.created_at,
			expires_at = excluded.expires_at, closed_at = excluded.closed_at, tokens_used = excluded.tokens_used`

	updateReservations = `UPDATE viralpilot.reservations r SET status = n.status, tokens = n.tokens, tokens_charged = n.charged,
			tokens_returned = n.returned, shortfall = n.shortfall, carried = n.carried, top_up = n.top_up, created_at = n.created,
			expires_at = n.expires, closed_at = n.closed, tokens_used = n.used
		FROM ` + writtenReservations + `
		WHERE r.cognito_user_id = n.id AND r.reservation_id = n.reservation::uuid`

	insertEntries = `INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged,
			reservation_id, refunded_entry_id, idempotency_key, command_hash, metadata, actor, created_at)
		SELECT id, kind, amount, balance, used, charged, reservation::uuid, refunded, key, hash, notes::jsonb, actor, created
		FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::integer[], $6::integer[], $7::text[], $8::bigint[],
				$9::text[], $10::bytea[], $11::text[], $12::text[], $13::timestamptz[]) WITH ORDINALITY
			AS n (id, kind, amount, balance, used, charged, reservation, refunded, key, hash, notes, actor, created, i)
		ORDER BY i RETURNING entry_id`
)

// copyAccount copies an account ($1) and all that belongs to it to a new id ($2) and leaves out what may tell whose it
// was; deleteAccount deletes the original. Ids of accounts are never updated, since tables may be distributed by them.
var copyAccount = []string{
	`INSERT INTO viralpilot.userdata (` + userdataColumns + `)
		SELECT $2, NULL, NULL, subscription_tier, subscription_status, subscription_renewal_date, tokens_remaining,
			tokens_used_this_month, last_token_reset_date, created_at, updated_at, is_active
		FROM viralpilot.userdata WHERE cognito_user_id = $1`,
	`INSERT INTO viralpilot.account_state (cognito_user_id, top_ups, tokens_reserved, next_hold_expiry)
		SELECT $2, top_ups, tokens_reserved, next_hold_expiry
		FROM viralpilot.account_state WHERE cognito_user_id = $1`,
	`INSERT INTO viralpilot.reservations (cognito_user_id, ` + reservationColumns + `)
		SELECT $2, ` + reservationColumns + ` FROM viralpilot.reservations WHERE cognito_user_id = $1`,
	`INSERT INTO viralpilot.ledger (cognito_user_id, ` + entryColumns + `) OVERRIDING SYSTEM VALUE
		SELECT $2, entry_id, kind, amount, balance_after, used_after, tokens_charged, reservation_id, refunded_entry_id,
			NULL, NULL, NULL, CASE WHEN actor NOT IN ($1::text, 'cognito:' || $1::text) THEN actor END, created_at
		FROM viralpilot.ledger WHERE cognito_user_id = $1`,
}

var deleteAccount = []string{
	`DELETE FROM viralpilot.ledger WHERE cognito_user_id = $1`,
	`DELETE FROM viralpilot.reservations WHERE cognito_user_id = $1`,
	`DELETE FROM viralpilot.account_state WHERE cognito_user_id = $1`,
	`DELETE FROM viralpilot.userdata WHERE cognito_user_id = $1`,
	// An administrator is named in the entries of others.
	`UPDATE viralpilot.ledger SET actor = NULL WHERE actor = 'cognito:' || $1::text AND actor LIKE 'cognito:%'`,
}

// userdataFields are where the columns of userdataColumns go.
func userdataFields(a *user.Account) []any {
	return []any{
		&a.ID, &a.Username, &a.Email, &a.Tier, &a.SubscriptionStatus,
		date{&a.RenewalDate},
		&a.TokensRemaining, &a.TokensUsed,
		date{&a.LastReset},
		instant{&a.CreatedAt},
		instant{&a.UpdatedAt},
		&a.Active,
	}
}

// The columns of userdata may hold what was written by hand: infinity, and years that RFC 3339 cannot write.

// date reads a TIMESTAMP that may be missing; one that cannot be shown is.
type date struct{ at **time.Time }

// ScanTimestamp implements pgtype.TimestampScanner.
func (d date) ScanTimestamp(v pgtype.Timestamp) error {
	*d.at = nil
	if showable(v) {
		*d.at = &v.Time
	}
	return nil
}

// instant reads a TIMESTAMP that is always there; one that cannot be shown is the beginning of time.
type instant struct{ at *time.Time }

// ScanTimestamp implements pgtype.TimestampScanner.
func (i instant) ScanTimestamp(v pgtype.Timestamp) error {
	*i.at = time.Time{}
	if showable(v) {
		*i.at = v.Time
	}
	return nil
}

func showable(v pgtype.Timestamp) bool {
	return v.Valid && v.InfinityModifier == pgtype.Finite && v.Time.Year() >= 1 && v.Time.Year() <= 9999
}

// sideRowFields are where the columns of the side row go.
func sideRowFields(a *user.Account) []any {
	return []any{&a.TopUps, &a.Reserved, &a.NextHoldExpiry, &a.Adopted}
}

// entryFields are where the columns of entryColumns go.
func entryFields(e *user.Entry) []any {
	return []any{
		&e.ID, &e.Kind, &e.Amount, &e.BalanceAfter, &e.UsedAfter, &e.TokensCharged, &e.ReservationID,
		&e.RefundedEntryID, &e.IdempotencyKey, &e.CommandHash, &e.Metadata, &e.Actor, &e.CreatedAt,
	}
}

func scanAccount(row pgx.CollectableRow) (a user.Account, err error) {
	err = row.Scan(append(userdataFields(&a), sideRowFields(&a)...)...)
	return a, err
}

func scanEntry(row pgx.CollectableRow) (e user.Entry, err error) {
	err = row.Scan(entryFields(&e)...)
	return e, err
}

// owned is a row of a query that names several accounts, with the account it belongs to.
type owned[T any] struct {
	accountID string
	value     T
}

func scanAccountEntry(row pgx.CollectableRow) (o owned[user.Entry], err error) {
	err = row.Scan(append([]any{&o.accountID}, entryFields(&o.value)...)...)
	return o, err
}

func scanAccountCharge(row pgx.CollectableRow) (o owned[user.Charge], err error) {
	c := &o.value
	err = row.Scan(append(append([]any{&o.accountID}, entryFields(&c.Entry)...), &c.Refunded, &c.ThisTerm, &c.FromCarried)...)
	return o, err
}

func scanAccountReservation(row pgx.CollectableRow) (o owned[user.Reservation], err error) {
	err = row.Scan(append([]any{&o.accountID}, reservationFields(&o.value)...)...)
	return o, err
}

// reservationFields are where the columns of reservationColumns go.
func reservationFields(r *user.Reservation) []any {
	return []any{
		&r.ID, &r.Status, &r.Tokens, &r.Charged, &r.Returned, &r.Shortfall, &r.Carried, &r.TopUp, &r.CreatedAt, &r.ExpiresAt,
		&r.ClosedAt, &r.TokensUsed,
	}
}

func scanReservation(row pgx.CollectableRow) (r user.Reservation, err error) {
	err = row.Scan(reservationFields(&r)...)
	return r, err
}

func scanLink(row pgx.CollectableRow) (l user.Link, err error) {
	err = row.Scan(&l.AccountID, &l.EntryID, &l.Amount, &l.BalanceAfter, &l.BalanceBefore, &l.Orphan)
	return l, err
}

func scanBalance(row pgx.CollectableRow) (b user.Balance, err error) {
	err = row.Scan(&b.AccountID, &b.Remaining, &b.Used, &b.Adopted, &b.TopUps, &b.Reserved, &b.LastBalance, &b.LastUsed, &b.Held)
	return b, err
}
