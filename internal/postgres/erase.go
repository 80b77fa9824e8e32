package postgres

import (
	"cmp"
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// An account is erased in parts, so that no transaction is longer than its part. First an update marks it, from when on no
// command changes it, and makes the row of its pseudonym. Then its entries and reservations move there, the oldest
// first, then its name leaves the entries of others, what it has used goes over, and with the last part the account itself moves. Ids of
// accounts are never updated, since tables may be distributed by them: rows are copied and the originals deleted. At
// every moment each entry has an account, and the two halves of a ledger make one chain.

// A transaction moves up to maxErasePart rows of a table; fewer where that has taken too long, but never fewer than
// minErasePart.
const (
	maxErasePart = 5000
	minErasePart = 50
)

const (
	// The pseudonym's row says nothing of the tokens until the account itself comes.
	insertPseudonym = `INSERT INTO viralpilot.userdata (` + userdataColumns + `)
		VALUES ($1, NULL, NULL, $2, $3, NULL, 0, 0, NULL, $4, $5, false)`

	insertPseudonymSideRow = `INSERT INTO viralpilot.account_state (cognito_user_id, granted_period, erased) VALUES ($1, 0, true)`

	selectAccountsBeingErased = `SELECT cognito_user_id FROM viralpilot.account_state
		WHERE moving_to IS NOT NULL AND cognito_user_id > $1 ORDER BY cognito_user_id LIMIT $2`

	// A hand may have set the period to NULL, as a roll-back does.
	selectMoving = `SELECT moving_to, coalesce(granted_period, 0) FROM viralpilot.account_state WHERE cognito_user_id = $1 AND moving_to IS NOT NULL`

	// The last entry of the next part; none when the part is the last.
	selectPartEnd = `SELECT entry_id FROM viralpilot.ledger WHERE cognito_user_id = $1 ORDER BY entry_id OFFSET $2 LIMIT 1`

	// Who else administered the account is left out as well: that may be somebody who is being erased at the same time.
	copyEntries = `INSERT INTO viralpilot.ledger (cognito_user_id, entry_id, kind, amount, balance_after, used_after, tokens_charged,
			tokens_refunded, top_ups_amount, period, changes, reservation_id, refunded_entry_id, actor, created_at)
			OVERRIDING SYSTEM VALUE
		SELECT $2, entry_id, kind, amount, balance_after, used_after, tokens_charged, tokens_refunded, top_ups_amount, period,
			changes, reservation_id, refunded_entry_id, CASE WHEN actor NOT LIKE 'cognito:%' AND actor <> $1 THEN actor END, created_at
		FROM viralpilot.ledger WHERE cognito_user_id = $1 AND entry_id <= $3`

	deleteEntries = `DELETE FROM viralpilot.ledger WHERE cognito_user_id = $1 AND entry_id <= $2`

	selectReservationPartEnd = `SELECT reservation_id FROM viralpilot.reservations WHERE cognito_user_id = $1
		ORDER BY reservation_id OFFSET $2 LIMIT 1`

	copyReservations = `INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, tokens_charged,
			tokens_returned, shortfall, carried, top_up, period, late, created_at, expires_at, closed_at, tokens_used)
		SELECT $2, reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall, carried, top_up, period, late,
			created_at, expires_at, closed_at, tokens_used
		FROM viralpilot.reservations WHERE cognito_user_id = $1 AND reservation_id <= $3::uuid`

	deleteReservations = `DELETE FROM viralpilot.reservations WHERE cognito_user_id = $1 AND reservation_id <= $2::uuid`

	// An administrator is named in the entries of others.
	clearActor = `UPDATE viralpilot.ledger SET actor = NULL WHERE (cognito_user_id, entry_id) IN (
			SELECT cognito_user_id, entry_id FROM viralpilot.ledger
			WHERE actor = 'cognito:' || $1::text AND actor LIKE 'cognito:%' LIMIT $2)`

	// What of the account's usage had been added up under the pseudonym already is added to.
	moveUsage = `WITH moved AS (
			DELETE FROM viralpilot.usage_days WHERE (cognito_user_id, day, dimension, value) IN (
				SELECT cognito_user_id, day, dimension, value FROM viralpilot.usage_days
				WHERE cognito_user_id = $1 ORDER BY day, dimension, value LIMIT $3)
			RETURNING day, dimension, value, charged, refunded, entries)
		INSERT INTO viralpilot.usage_days AS u (cognito_user_id, day, dimension, value, charged, refunded, entries)
		SELECT $2, day, dimension, value, charged, refunded, entries FROM moved ` + addDay

	deleteUserdata = `DELETE FROM viralpilot.userdata WHERE cognito_user_id = $1`
)

// queueErase queues what marks an account and makes its pseudonym.
func queueErase(b *pgx.Batch, a user.Account, pseudonym string) {
	b.Queue(markMoving, a.ID, pseudonym)
	b.Queue(insertPseudonym, pseudonym, a.Tier, a.SubscriptionStatus, a.CreatedAt, a.UpdatedAt)
	b.Queue(insertPseudonymSideRow, pseudonym)
}

// AccountsBeingErased implements [user.Store].
func (s *Store) AccountsBeingErased(ctx context.Context, after string, limit int) ([]string, error) {
	return list(ctx, s, pgx.RowTo[string], selectAccountsBeingErased, after, limit)
}

// MoveErased implements [user.Store].
func (s *Store) MoveErased(ctx context.Context, accountID string) (done bool, err error) {
	for {
		part := s.erasePart.Load()
		var tooLong bool
		err = s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (err error) {
			done, err = s.moveErased(ctx, conn, accountID, int(part))
			tooLong = statementTimeout(err) || errors.Is(err, context.DeadlineExceeded)
			return err
		})
		// The same part would take too long again, and for ever.
		if !tooLong || part == minErasePart {
			return done, err
		}
		s.erasePart.CompareAndSwap(part, max(part/2, minErasePart))
	}
}

func (s *Store) moveErased(ctx context.Context, conn *pgxpool.Conn, accountID string, part int) (done bool, err error) {
	var b pgx.Batch
	for _, sql := range s.session.begin {
		b.Queue(sql)
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return false, notDone(conn, err)
	}
	if done, err = movePart(ctx, conn, accountID, part); err != nil {
		return false, notDone(conn, err)
	}
	return done, endTransaction(ctx, conn, &pgx.Batch{}, "commit", nil)
}

// movePart moves the next part of an account, of so many rows, within a transaction. It fails with [user.ErrFoldingAgain]
// while days are being made again: what is moved does not say any more what it was for.
func movePart(ctx context.Context, conn *pgxpool.Conn, id string, part int) (done bool, err error) {
	account, pseudonym, err := lockMoving(ctx, conn, id)
	if account == nil || err != nil {
		return err == nil, err
	}
	if f, err := scanFold(conn.QueryRow(ctx, keepFold)); err != nil || f.again() {
		return false, cmp.Or(err, user.ErrFoldingAgain)
	}
	last, more, err := partEnd[int64](ctx, conn, selectPartEnd, id, part, maxEntryID)
	if err == nil {
		err = execEach(ctx, conn, copyEntries, []any{id, pseudonym, last}, deleteEntries, []any{id, last})
	}
	if more || err != nil {
		return false, err
	}
	reservation, more, err := partEnd[string](ctx, conn, selectReservationPartEnd, id, part, maxUUID)
	if err == nil {
		err = execEach(ctx, conn, copyReservations, []any{id, pseudonym, reservation}, deleteReservations, []any{id, reservation})
	}
	if more || err != nil {
		return false, err
	}
	cleared, err := conn.Exec(ctx, clearActor, id, part)
	if err != nil || cleared.RowsAffected() == int64(part) {
		return false, err
	}
	// No entry has the account's name any more, so nothing is added up under it once what is being folded has ended.
	if _, err := conn.Exec(ctx, holdFold); err != nil {
		return false, err
	}
	moved, err := conn.Exec(ctx, moveUsage, id, pseudonym, part)
	if err != nil || moved.RowsAffected() == int64(part) {
		return false, err
	}
	return true, moveAccount(ctx, conn, *account, pseudonym)
}

const (
	maxEntryID = int64(1<<63 - 1)
	maxUUID    = "ffffffff-ffff-ffff-ffff-ffffffffffff"
)

// lockMoving locks the row of an account that is being erased, and reads it and where it moves to; nil when there is no
// such account.
func lockMoving(ctx context.Context, conn *pgxpool.Conn, id string) (*user.Account, string, error) {
	var account *user.Account
	rows, err := conn.Query(ctx, lockUserdata, []string{id})
	if err != nil {
		return nil, "", err
	}
	var a user.Account
	_, err = pgx.ForEachRow(rows, userdataFields(&a), func() error {
		account = &a
		return nil
	})
	if account == nil || err != nil {
		return nil, "", err
	}
	var pseudonym string
	var period int
	if err := conn.QueryRow(ctx, selectMoving, id).Scan(&pseudonym, &period); errors.Is(err, pgx.ErrNoRows) {
		return nil, "", nil
	} else if err != nil {
		return nil, "", err
	}
	rows, err = conn.Query(ctx, selectSideRows, []string{id})
	if err != nil {
		return nil, "", err
	}
	_, err = pgx.ForEachRow(rows, append([]any{&a.ID}, sideRowFields(&a)...), func() error { return nil })
	a.GrantedPeriod = period
	return account, pseudonym, err
}

// partEnd reads where the next part ends, and whether more comes after it.
func partEnd[T any](ctx context.Context, conn *pgxpool.Conn, sql, id string, part int, end T) (last T, more bool, err error) {
	err = conn.QueryRow(ctx, sql, id, part-1).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return end, false, nil
	}
	return last, true, err
}

// execEach runs a copy and the delete that follows it.
func execEach(ctx context.Context, conn *pgxpool.Conn, copySQL string, copyArgs []any, deleteSQL string, deleteArgs []any) error {
	if _, err := conn.Exec(ctx, copySQL, copyArgs...); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, deleteSQL, deleteArgs...)
	return err
}

// moveAccount gives the pseudonym what the account was and deletes the account.
func moveAccount(ctx context.Context, conn *pgxpool.Conn, a user.Account, pseudonym string) error {
	var b pgx.Batch
	id := a.ID
	a.ID = pseudonym
	var row rowColumns
	row.add(a)
	row.queue(&b)
	var side sideColumns
	side.add(a)
	side.queue(&b, updateSideRows)
	b.Queue(deleteUserdata, id) // its side row goes with it
	return conn.SendBatch(ctx, &b).Close()
}
