package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// What the ledger adds up to is kept by account and day, and by day alone, in tables that follow it in the order of its
// ids: a row says how far. What comes after that is added up when somebody asks. So a change of an account writes
// nothing more than its entry, and each entry counts once, however late it is committed.

const (
	// maxFoldPart is how many ids one transaction folds; fewer where that has taken too long, but never fewer than
	// minFoldPart.
	maxFoldPart, minFoldPart = 20_000, 500
	// maxClearPart is how many rows are cleared at a time where days are made again.
	maxClearPart = 5_000
	// maxValues is how many values of a dimension a day has by their names; what comes beyond them is of otherValue.
	maxValues = 1000
	// maxUnfolded is how many ids may be left to be added up when somebody asks for all accounts.
	maxUnfolded = 200_000
)

// Charges are the entries that charged or refunded tokens, with their day and what they were for. The days ($2) begin at
// the instants $1. A charge is for what its metadata says; the settlement of a reservation that does not say it is for
// what its reservation was. A refund is of its charge.
const (
	chargesBegin = `SELECT l.cognito_user_id AS id, ($2::date[])[greatest(width_bucket(l.created_at, $1::timestamptz[]), 1)] AS day,
			CASE l.kind WHEN 'refund' THEN 0 ELSE l.tokens_charged END AS charged,
			CASE l.kind WHEN 'refund' THEN coalesce(l.tokens_refunded, l.amount) ELSE 0 END AS refunded,
			CASE l.kind WHEN 'refund' THEN 0 ELSE 1 END AS entries, `

	notesOfCharge = `CASE l.kind WHEN 'consume' THEN l.metadata
			WHEN 'refund' THEN (SELECT coalesce(h.metadata, '{}') || coalesce(c.metadata, '{}')
				FROM viralpilot.ledger c LEFT JOIN viralpilot.reservations h
					ON c.kind = 'settle' AND h.cognito_user_id = c.cognito_user_id AND h.reservation_id = c.reservation_id
				WHERE c.cognito_user_id = l.cognito_user_id AND c.entry_id = l.refunded_entry_id)
			ELSE coalesce((SELECT h.metadata FROM viralpilot.reservations h
				WHERE h.cognito_user_id = l.cognito_user_id AND h.reservation_id = l.reservation_id), '{}') || coalesce(l.metadata, '{}')
			END AS notes`

	// The tier is that which the account has now. Entries that are folded again, up to $7, have been counted under one.
	tierOfCharge = `CASE WHEN l.entry_id > $7 THEN (SELECT jsonb_build_object('` + user.TierDimension + `', u.subscription_tier)
			FROM viralpilot.userdata u WHERE u.cognito_user_id = l.cognito_user_id) END AS notes`

	// Of those that are folded again only what was made since $6 counts.
	chargesEnd = ` FROM viralpilot.ledger l
			WHERE (l.tokens_charged > 0 OR l.kind = 'refund') AND l.entry_id > $4 AND l.entry_id <= $5
				AND ($6::timestamptz IS NULL OR l.created_at >= $6 OR l.entry_id > $7)`

	chargesOfDays = ` AND l.created_at >= $8 AND l.created_at < $9`

	// The dimensions are $3.
	valuesOfCharges = `SELECT id, day, d.dimension, left(notes ->> d.dimension, 256) AS value, charged, refunded, entries
		FROM charges JOIN unnest($3::text[]) AS d (dimension) ON notes ->> d.dimension IS NOT NULL`

	sums = `sum(charged)::bigint AS charged, sum(refunded)::bigint AS refunded, sum(entries)::bigint AS entries`
)

const (
	selectFold = `SELECT folded_to, again_to, again_since, clear_from, cleared_to FROM viralpilot.usage_fold`

	// To compile a plan takes longer than to run it, and what a part is sorted by fits into memory.
	foldSettings = `SET LOCAL jit = off; SET LOCAL work_mem = '32MB'`

	// Whoever comes second leaves it to the first. Accounts that are being moved do not mind.
	lockFreeFold = selectFold + ` FOR NO KEY UPDATE SKIP LOCKED`
	// All of that has to wait for whoever has days made again.
	lockFold = selectFold + ` FOR UPDATE`

	// An account is being moved, which has to wait while days are being made again.
	keepFold = selectFold + ` FOR KEY SHARE`

	// The usage of an account is being moved; nothing is folded meanwhile.
	holdFold = `SELECT FROM viralpilot.usage_fold FOR SHARE`

	selectDates = `SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM viralpilot.ledger
		WHERE entry_id > $1 AND entry_id <= $2 AND (tokens_charged > 0 OR kind = 'refund')`

	addDay = `ON CONFLICT (cognito_user_id, day, dimension, value) DO UPDATE SET charged = u.charged + excluded.charged,
			refunded = u.refunded + excluded.refunded, entries = u.entries + excluded.entries`

	// A value that the day does not know yet has its name while there is room for it. A user is counted with the first
	// tokens of the day.
	foldCharges = `WITH charges AS MATERIALIZED (` + chargesBegin + notesOfCharge + chargesEnd + `),
		named AS MATERIALIZED (` + valuesOfCharges + `),
		fresh AS (
			SELECT dimension, day, value, row_number() OVER (PARTITION BY dimension, day ORDER BY sum(charged) DESC, value) AS place
			FROM named n WHERE NOT EXISTS (SELECT FROM viralpilot.usage_totals t
				WHERE t.dimension = n.dimension AND t.day = n.day AND t.value = n.value)
			GROUP BY dimension, day, value),
		beyond AS MATERIALIZED (
			SELECT dimension, day, value FROM fresh f
			WHERE place > $8 - (SELECT count(*) FROM viralpilot.usage_totals t
				WHERE t.dimension = f.dimension AND t.day = f.day AND t.value <> '` + user.OtherValue + `')),
		days AS MATERIALIZED (SELECT id, day, ` + sums + ` FROM charges GROUP BY id, day),
		parts AS MATERIALIZED (
			SELECT id, n.day, n.dimension, CASE WHEN b.value IS NULL THEN n.value ELSE '` + user.OtherValue + `' END AS value, ` + sums + `
			FROM named n LEFT JOIN beyond b ON b.dimension = n.dimension AND b.day = n.day AND b.value = n.value
			GROUP BY 1, 2, 3, 4),
		added AS (
			INSERT INTO viralpilot.usage_days AS u (cognito_user_id, day, dimension, value, charged, refunded, entries)
			SELECT id, day, '', '', charged, refunded, entries FROM days ` + addDay + `
			RETURNING u.cognito_user_id AS id, u.day, u.charged),
		parted AS (
			INSERT INTO viralpilot.usage_days AS u (cognito_user_id, day, dimension, value, charged, refunded, entries)
			SELECT id, day, dimension, value, charged, refunded, entries FROM parts ` + addDay + `),
		spenders AS (
			SELECT day, count(*) AS users FROM added a JOIN days d USING (id, day)
			WHERE d.charged > 0 AND a.charged = d.charged GROUP BY day)
		INSERT INTO viralpilot.usage_totals AS t (dimension, day, value, charged, refunded, entries, users)
		SELECT '', day, '', ` + sums + `, coalesce(max(users), 0) FROM days LEFT JOIN spenders USING (day) GROUP BY day
		UNION ALL
		SELECT dimension, day, value, ` + sums + `, 0 FROM parts GROUP BY dimension, day, value
		UNION ALL
		SELECT '` + user.TierDimension + `', day, subscription_tier, ` + sums + `, 0
		FROM days d JOIN viralpilot.userdata u ON u.cognito_user_id = d.id WHERE $5 > $7 GROUP BY day, subscription_tier
		ON CONFLICT (dimension, day, value) DO UPDATE SET charged = t.charged + excluded.charged,
			refunded = t.refunded + excluded.refunded, entries = t.entries + excluded.entries, users = t.users + excluded.users`

	// An instant is on days that are one apart at most in two zones.
	moveFold = `UPDATE viralpilot.usage_fold SET folded_to = $1, zone = $2, mixed_before = CASE WHEN zone <> $2
			THEN (SELECT max(day) + 2 FROM viralpilot.usage_totals WHERE dimension = '') ELSE mixed_before END`

	selectClearEnd = `SELECT cognito_user_id FROM viralpilot.usage_days WHERE cognito_user_id > $1
		ORDER BY cognito_user_id OFFSET $2 LIMIT 1`

	clearDays = `DELETE FROM viralpilot.usage_days WHERE cognito_user_id > $1 AND ($2::text IS NULL OR cognito_user_id <= $2) AND day >= $3`

	moveCleared = `UPDATE viralpilot.usage_fold SET cleared_to = coalesce($1, ''), clear_from = CASE WHEN $1 IS NULL THEN NULL ELSE clear_from END`

	// What an account that has been erased had spent for is not in its entries any more.
	selectLastErasedDay = `SELECT max(d.day) FROM viralpilot.account_state s JOIN viralpilot.usage_days d USING (cognito_user_id)
		WHERE s.erased AND d.dimension <> '' AND d.day >= $1`

	// Whether days from $1 on, in the zone $2, are of no other zone, or all there are; and the first of these.
	selectMixedDays = `SELECT coalesce(zone <> $2, false) OR coalesce($1 < mixed_before, false), $1 < first, first
		FROM viralpilot.usage_fold,
			(SELECT coalesce(min(day) - 1, 'infinity') AS first FROM viralpilot.usage_totals WHERE dimension = '') d`

	selectArchivedBefore = `SELECT archived_before FROM viralpilot.usage_fold`

	selectFirstSince = `SELECT coalesce(min(entry_id) - 1, $2) FROM viralpilot.ledger WHERE created_at >= $1 AND entry_id <= $2`

	deleteTotals = `DELETE FROM viralpilot.usage_totals WHERE day >= $1 AND dimension <> '` + user.TierDimension + `'`

	foldAgain = `UPDATE viralpilot.usage_fold SET folded_to = $1, again_to = $2, again_since = $3, clear_from = $4, cleared_to = '',
			zone = $5, mixed_before = CASE WHEN $6 THEN NULL ELSE mixed_before END`
)

// Of the range, the largest values by their names, and the rest of them together.
const (
	topValues = `,
		top AS (SELECT value FROM found WHERE dimension <> '' AND value <> '` + user.OtherValue + `'
			GROUP BY value ORDER BY sum(charged) DESC, value LIMIT $10)
		SELECT day, CASE WHEN dimension = '' THEN NULL WHEN value IN (SELECT value FROM top) THEN value ELSE '` + user.OtherValue + `' END,
			` + sums + `, sum(users)::bigint
		FROM found GROUP BY 1, 2`

	liveRows = `
			SELECT day, '' AS dimension, '' AS value, ` + sums + `, %s AS users FROM charges GROUP BY day
			UNION ALL
			SELECT day, dimension, value, ` + sums + `, 0 FROM (` + valuesOfCharges + `) v GROUP BY day, dimension, value`

	selectUsage = `WITH charges AS MATERIALIZED (` + chargesBegin + notesOfCharge + chargesEnd + chargesOfDays + ` AND l.cognito_user_id = $11),
		found AS MATERIALIZED (
			SELECT day, dimension, value, charged, refunded, entries, 0 AS users FROM viralpilot.usage_days
			WHERE cognito_user_id = $11 AND (dimension = '' OR dimension = ANY($3)) AND day >= ($2::date[])[1]
				AND day <= ($2::date[])[cardinality($2::date[])] AND day < $12
			UNION ALL ` + liveRows + `)` + topValues

	// Whoever has spent on the day before is in the totals already.
	selectAllUsage = `,
		found AS MATERIALIZED (
			SELECT day, dimension, value, charged, refunded, entries, users FROM viralpilot.usage_totals
			WHERE (dimension = '' OR dimension = ANY($3)) AND day >= ($2::date[])[1] AND day <= ($2::date[])[cardinality($2::date[])]
			UNION ALL ` + liveRows + `)` + topValues

	newSpenders = `count(DISTINCT id) FILTER (WHERE charged > 0 AND NOT EXISTS (SELECT FROM viralpilot.usage_days u
				WHERE u.cognito_user_id = id AND u.day = charges.day AND u.dimension = '' AND u.value = '' AND u.charged > 0))`

	allCharges     = `WITH charges AS MATERIALIZED (` + chargesBegin + notesOfCharge + chargesEnd + chargesOfDays + `)`
	allTierCharges = `WITH charges AS MATERIALIZED (` + chargesBegin + tierOfCharge + chargesEnd + chargesOfDays + `)`
)

// What is kept of accounts ($8), and what their entries say. A value may be kept as another one, or as none where its
// dimension came later; and where entries were archived ($9) they add up to less.
const selectUsageDifferences = `WITH charges AS MATERIALIZED (` + chargesBegin + notesOfCharge + chargesEnd + ` AND l.cognito_user_id = ANY($8)
			AND l.cognito_user_id NOT IN (SELECT cognito_user_id FROM viralpilot.usage_days
				WHERE cognito_user_id = ANY($8) AND dimension = '' GROUP BY 1 HAVING sum(entries) > 500000)),
		kept AS (
			SELECT cognito_user_id AS id, dimension, value, ` + sums + ` FROM viralpilot.usage_days
			WHERE cognito_user_id = ANY($8) GROUP BY 1, 2, 3 HAVING sum(entries) <= 500000),
		entries AS (
			SELECT id, '' AS dimension, '' AS value, ` + sums + ` FROM charges GROUP BY id
			UNION ALL
			SELECT id, dimension, value, ` + sums + ` FROM (` + valuesOfCharges + `) v GROUP BY id, dimension, value)
		SELECT id, dimension, value, coalesce(k.charged, 0), coalesce(k.refunded, 0), coalesce(k.entries, 0),
			coalesce(e.charged, 0), coalesce(e.refunded, 0), coalesce(e.entries, 0)
		FROM kept k FULL JOIN entries e USING (id, dimension, value)
		WHERE CASE WHEN dimension = '' AND NOT $9 THEN (k.charged, k.refunded, k.entries) IS DISTINCT FROM (e.charged, e.refunded, e.entries)
			WHEN dimension = '' THEN coalesce(k.charged, 0) < e.charged
			ELSE NOT $9 AND value <> '` + user.OtherValue + `' AND (k.charged > coalesce(e.charged, 0) OR k.refunded > coalesce(e.refunded, 0)) END
		ORDER BY id, dimension, value`

const selectDimensionsKept = `SELECT DISTINCT dimension FROM viralpilot.usage_days WHERE cognito_user_id = ANY($1) AND dimension <> ''`

var (
	usageOfAccount = fmt.Sprintf(selectUsage, "0")
	usageOfAll     = fmt.Sprintf(allCharges+selectAllUsage, newSpenders)
	usageByTier    = fmt.Sprintf(allTierCharges+selectAllUsage, newSpenders)
)

// fold is how far the ledger is added up.
type fold struct {
	foldedTo, againTo int64
	againSince        *time.Time
	clearFrom         *time.Time
	clearedTo         string
}

func scanFold(row pgx.Row) (f fold, err error) {
	err = row.Scan(&f.foldedTo, &f.againTo, &f.againSince, &f.clearFrom, &f.clearedTo)
	return f, err
}

// since is from when on entries after folded_to count, as far as these have been folded before.
func (f fold) since() *time.Time {
	if f.foldedTo < f.againTo {
		return f.againSince
	}
	return nil
}

// FoldUsage implements [user.FoldStore].
func (s *Store) FoldUsage(ctx context.Context, upTo int64, zone string, days func([]time.Time) user.UsageDays, dimensions []string) (position int64, done bool, err error) {
	for {
		part := s.foldPart.Load()
		var tooLong bool
		err = s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) (err error) {
			position, done, err = s.foldUsage(ctx, conn, upTo, int64(part), zone, days, dimensions)
			tooLong = statementTimeout(err) || errors.Is(err, context.DeadlineExceeded)
			return err
		})
		// The same part would take too long again, and for ever.
		if !tooLong || part == minFoldPart {
			return position, done, err
		}
		s.foldPart.CompareAndSwap(part, max(part/2, minFoldPart))
	}
}

func (s *Store) foldUsage(ctx context.Context, conn *pgxpool.Conn, upTo, part int64, zone string, days func([]time.Time) user.UsageDays, dimensions []string) (position int64, done bool, err error) {
	if err := s.begin(ctx, conn); err != nil {
		return 0, false, err
	}
	f, err := scanFold(conn.QueryRow(ctx, lockFreeFold))
	if errors.Is(err, pgx.ErrNoRows) { // somebody else is at it
		f, err = scanFold(conn.QueryRow(ctx, selectFold))
		if err == nil {
			err = rollback(ctx, conn)
		}
		return f.foldedTo, true, notDone(conn, err)
	}
	if err != nil {
		return 0, false, notDone(conn, err)
	}
	if f.clearFrom != nil {
		if err := clearPart(ctx, conn, f); err != nil {
			return 0, false, notDone(conn, err)
		}
		return f.foldedTo, false, endTransaction(ctx, conn, &pgx.Batch{}, "commit", nil)
	}
	again := f.foldedTo < f.againTo
	if again {
		upTo = f.againTo
	}
	if f.foldedTo >= upTo {
		return f.foldedTo, true, notDone(conn, rollback(ctx, conn))
	}
	position = f.foldedTo + min(part, upTo-f.foldedTo)
	if err := foldPart(ctx, conn, f, position, days, dimensions); err != nil {
		return 0, false, notDone(conn, err)
	}
	var b pgx.Batch
	b.Queue(moveFold, position, zone)
	return position, position == upTo && !again, endTransaction(ctx, conn, &b, "commit", nil)
}

// begin begins a transaction that changes something.
func (s *Store) begin(ctx context.Context, conn *pgxpool.Conn) error {
	var b pgx.Batch
	for _, sql := range s.session.begin {
		b.Queue(sql)
	}
	return notDone(conn, conn.SendBatch(ctx, &b).Close())
}

// foldPart adds up the entries to a position.
func foldPart(ctx context.Context, conn *pgxpool.Conn, f fold, position int64, days func([]time.Time) user.UsageDays, dimensions []string) error {
	if _, err := conn.Exec(ctx, foldSettings); err != nil {
		return err
	}
	// Plans for these ids, never for any: those would walk the whole ledger.
	rows, err := conn.Query(ctx, selectDates, pgx.QueryExecModeCacheDescribe, f.foldedTo, position)
	if err != nil {
		return err
	}
	dates, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil || len(dates) == 0 {
		return err
	}
	d := days(dates)
	_, err = conn.Exec(ctx, foldCharges, pgx.QueryExecModeCacheDescribe, d.Bounds[:len(d.Days)], d.Days, dimensions,
		f.foldedTo, position, f.since(), f.againTo, maxValues)
	return err
}

// clearPart removes the next rows of days that are to be made again.
func clearPart(ctx context.Context, conn *pgxpool.Conn, f fold) error {
	var end *string
	err := conn.QueryRow(ctx, selectClearEnd, f.clearedTo, maxClearPart).Scan(&end)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if _, err := conn.Exec(ctx, clearDays, f.clearedTo, end, f.clearFrom); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, moveCleared, end)
	return err
}

// again reports whether what has been folded is being folded again.
func (f fold) again() bool { return f.clearFrom != nil || f.foldedTo < f.againTo }

// FoldAgain implements [user.FoldStore].
func (s *Store) FoldAgain(ctx context.Context, day, since time.Time, zone string) (upTo int64, err error) {
	if err := s.wholeLedger(ctx); err != nil {
		return 0, err
	}
	var first int64
	// Looked for without a transaction that would keep the feed waiting. What is folded is settled, so nothing comes before
	// it later.
	err = s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		f, err := scanFold(conn.QueryRow(ctx, selectFold))
		if err != nil {
			return err
		}
		return conn.QueryRow(ctx, selectFirstSince, pgx.QueryExecModeCacheDescribe, since, f.foldedTo).Scan(&first)
	})
	if err != nil {
		return 0, err
	}
	err = s.withConn(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		if err := s.begin(ctx, conn); err != nil {
			return err
		}
		f, err := scanFold(conn.QueryRow(ctx, lockFold))
		if err == nil && f.again() {
			err = user.ErrFoldingAgain
		}
		var whole bool
		if err == nil {
			whole, err = refuseAgain(ctx, conn, day, since, zone)
		}
		if err != nil {
			return notDone(conn, err)
		}
		var b pgx.Batch
		b.Queue(deleteTotals, day)
		b.Queue(foldAgain, first, f.foldedTo, since, day, zone, whole)
		upTo = f.foldedTo
		return endTransaction(ctx, conn, &b, "commit", nil)
	})
	return upTo, err
}

// refuseAgain says why days cannot be made again: what was charged on them is not in the ledger any more as it was, or the
// first of them begins within a day of another zone. Otherwise it reports whether these are all days.
func refuseAgain(ctx context.Context, conn *pgxpool.Conn, day, since time.Time, zone string) (whole bool, err error) {
	var archived, erased *time.Time
	if err := conn.QueryRow(ctx, selectArchivedBefore).Scan(&archived); err != nil {
		return false, err
	}
	if archived != nil && since.Before(*archived) {
		return false, fmt.Errorf("entries from before %s have been archived", archived.UTC().Format(time.RFC3339))
	}
	if err := conn.QueryRow(ctx, selectLastErasedDay, day).Scan(&erased); err != nil {
		return false, err
	}
	if erased != nil {
		return false, fmt.Errorf("entries of accounts that have been erased, up to %s, do not say any more what they were for", erased.Format(time.DateOnly))
	}
	var mixed bool
	var first pgtype.Date
	if err := conn.QueryRow(ctx, selectMixedDays, day, zone).Scan(&mixed, &whole, &first); err != nil {
		return false, err
	}
	if mixed && !whole {
		return false, fmt.Errorf("there are days of another time zone: only all of them can be added up again, from a day before %s on", first.Time.Format(time.DateOnly))
	}
	return whole, nil
}

// Usage implements [user.Store].
func (s *Store) Usage(ctx context.Context, accountID string, q user.UsageDays) (rows []user.UsageRow, err error) {
	err = s.readFolded(ctx, func(ctx context.Context, conn *pgxpool.Conn, f fold) error {
		low, high, err := entryRange(ctx, conn, accountID, q.Bounds[0], q.Bounds[len(q.Bounds)-1])
		if err != nil {
			return err
		}
		cleared := time.Date(9999, time.December, 31, 0, 0, 0, 0, time.UTC)
		if f.clearFrom != nil {
			cleared = *f.clearFrom
		}
		rows, err = usageRows(ctx, conn, usageOfAccount, usageArgs(q, f, max(low-1, f.foldedTo), high-1, accountID, cleared)...)
		return err
	})
	return rows, err
}

// AllUsage implements [user.Store].
func (s *Store) AllUsage(ctx context.Context, q user.UsageDays) (rows []user.UsageRow, err error) {
	if err := s.wholeLedger(ctx); err != nil {
		return nil, err
	}
	sql := usageOfAll
	if q.Dimension == user.TierDimension {
		sql = usageByTier
	}
	err = s.readFolded(ctx, func(ctx context.Context, conn *pgxpool.Conn, f fold) error {
		if f.clearFrom != nil {
			return beingFolded("Days are being added up again. Try again shortly.")
		}
		var server time.Time
		var drawn int64
		if err := conn.QueryRow(ctx, selectLastDrawnID).Scan(&server, &drawn); err != nil {
			return err
		}
		if drawn-f.foldedTo > maxUnfolded {
			return beingFolded(fmt.Sprintf("%d entries are still to be added up. Try again shortly.", drawn-f.foldedTo))
		}
		rows, err = usageRows(ctx, conn, sql, usageArgs(q, f, f.foldedTo, math.MaxInt64)...)
		return err
	})
	return rows, err
}

func beingFolded(detail string) error {
	e := *user.ErrOverloaded
	e.Detail = detail
	return &e
}

func usageArgs(q user.UsageDays, f fold, after, upTo int64, more ...any) []any {
	dimensions := []string{}
	if q.Dimension != "" {
		dimensions = append(dimensions, q.Dimension)
	}
	n := len(q.Days)
	return append([]any{
		pgx.QueryExecModeCacheDescribe, q.Bounds[:n], q.Days, dimensions, after, upTo, f.since(), f.againTo, q.Bounds[0], q.Bounds[n], q.Top,
	}, more...)
}

func usageRows(ctx context.Context, conn *pgxpool.Conn, sql string, args ...any) ([]user.UsageRow, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r user.UsageRow, err error) {
		err = row.Scan(&r.Day, &r.Value, &r.Charged, &r.Refunded, &r.Entries, &r.Users)
		return r, err
	})
}

// readFolded calls f with how far the ledger is added up, within a transaction that sees one moment: what is added up
// meanwhile would count twice.
func (s *Store) readFolded(ctx context.Context, f func(context.Context, *pgxpool.Conn, fold) error) error {
	return s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		var b pgx.Batch
		b.Queue("begin isolation level repeatable read read only")
		b.Queue("SET LOCAL jit = off")
		for _, sql := range s.session.begin[1:] {
			b.Queue(sql)
		}
		var state fold
		b.Queue(selectFold).QueryRow(func(row pgx.Row) (err error) {
			state, err = scanFold(row)
			return err
		})
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		if err := f(ctx, conn, state); err != nil {
			return err
		}
		return rollback(ctx, conn)
	})
}

// UsageDifferences implements [user.LedgerReader].
func (s *Store) UsageDifferences(ctx context.Context, accountIDs []string) (differences []user.UsageDifference, err error) {
	err = s.readFolded(ctx, func(ctx context.Context, conn *pgxpool.Conn, f fold) error {
		if f.again() {
			return nil
		}
		var archived *time.Time
		if err := conn.QueryRow(ctx, selectArchivedBefore).Scan(&archived); err != nil {
			return err
		}
		rows, err := conn.Query(ctx, selectDimensionsKept, accountIDs)
		if err != nil {
			return err
		}
		dimensions, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		always := []time.Time{time.Unix(0, 0).UTC()}
		rows, err = conn.Query(ctx, selectUsageDifferences, pgx.QueryExecModeCacheDescribe, always, always, dimensions, 0, f.foldedTo,
			nil, 0, accountIDs, archived != nil)
		if err != nil {
			return err
		}
		differences, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d user.UsageDifference, err error) {
			err = row.Scan(&d.AccountID, &d.Dimension, &d.Value, &d.Kept.Charged, &d.Kept.Refunded, &d.Kept.Entries,
				&d.Entries.Charged, &d.Entries.Refunded, &d.Entries.Entries)
			return d, err
		})
		return err
	})
	return differences, err
}
