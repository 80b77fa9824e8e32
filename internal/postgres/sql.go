package postgres

// Every statement of the request path names an account or a list of them, but for the search of users, the feed and, when
// an account is erased, the entries of others that name it.
const (
	userdataColumns = `cognito_user_id, username, email, subscription_tier, subscription_status, subscription_renewal_date,
		tokens_remaining, tokens_used_this_month, last_token_reset_date, created_at, updated_at, is_active`

	// Of an entry of the earlier version the amount of a refund is all that it gave back.
	entryColumns = `entry_id, kind, amount, balance_after, used_after, tokens_charged,
		coalesce(tokens_refunded, CASE WHEN kind = 'refund' AND top_ups_amount IS NULL THEN amount ELSE 0 END),
		top_ups_amount, period, changes, reservation_id, refunded_entry_id, idempotency_key, command_hash, metadata, actor,
		created_at`

	// The earlier version marked the reservations that it carried over the end of a term, and gave none a period.
	reservationColumns = `reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall,
		coalesce(period, CASE WHEN carried THEN 0 ELSE -1 END), late, metadata, created_at, expires_at, closed_at, tokens_used`

	sideRowColumns = `top_ups, top_ups_used, allowance, allowance_excess, carried_top_ups, granted_period, tokens_reserved,
		open_reservations, next_hold_expiry`

	accountColumns = userdataColumns + `,
		coalesce(top_ups, 0), coalesce(top_ups_used, 0), coalesce(allowance, 0), coalesce(allowance_excess, 0),
		coalesce(carried_top_ups, 0), ` + periodOrForm + `, coalesce(tokens_reserved, 0), coalesce(open_reservations, 0),
		next_hold_expiry`

	// The granted period, or one of the numbers below zero that stand for other forms of a side row than the usual one.
	periodOrForm = `CASE WHEN erased THEN -4 WHEN moving_to IS NOT NULL THEN -3
			ELSE coalesce(granted_period, CASE WHEN top_ups IS NULL THEN -2 ELSE -1 END) END`

	selectAccountsByID = `SELECT ` + accountColumns + `
		FROM viralpilot.userdata LEFT JOIN viralpilot.account_state USING (cognito_user_id)
		WHERE cognito_user_id = ANY($1)`

	lockUserdata = `SELECT ` + userdataColumns + ` FROM viralpilot.userdata
		WHERE cognito_user_id = ANY($1) ORDER BY cognito_user_id FOR UPDATE`

	// Rows that another session has locked are left out.
	lockFreeUserdata = lockUserdata + ` SKIP LOCKED`

	selectExistingIDs = `SELECT cognito_user_id FROM viralpilot.userdata WHERE cognito_user_id = ANY($1)`

	selectSideRows = `SELECT cognito_user_id, top_ups, top_ups_used, allowance, allowance_excess, carried_top_ups,
			` + periodOrForm + `, tokens_reserved, open_reservations, next_hold_expiry
		FROM viralpilot.account_state WHERE cognito_user_id = ANY($1)`

	selectNow = `SELECT clock_timestamp()`

	selectEntriesByKey = `SELECT cognito_user_id, ` + entryColumns + ` FROM viralpilot.ledger
		WHERE (cognito_user_id, idempotency_key) IN (SELECT * FROM unnest($1::text[], $2::text[]))`

	selectReservations = `SELECT cognito_user_id, ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE (cognito_user_id, reservation_id) IN (SELECT id, named::uuid FROM unnest($1::text[], $2::text[]) AS n (id, named))`

	// Each account's bound ($2) says which of its open reservations are wanted. No account needs more than the limit
	// of all of them.
	selectHolds = `SELECT u.id, ` + reservationColumns + `
		FROM ` + existingAccounts + ` JOIN unnest($1::text[], $2::timestamptz[]) AS n (id, bound) USING (id)
		CROSS JOIN LATERAL (SELECT * FROM viralpilot.reservations r
			WHERE r.cognito_user_id = u.id AND status = 'open' AND expires_at <= n.bound
			ORDER BY expires_at, reservation_id LIMIT $3) r
		ORDER BY expires_at, reservation_id LIMIT $3`

	selectNextExpiries = `SELECT u.id, expires_at
		FROM ` + existingAccounts + ` JOIN unnest($1::text[], $2::timestamptz[]) AS n (id, now) USING (id)
		CROSS JOIN LATERAL (SELECT expires_at FROM viralpilot.reservations r
			WHERE r.cognito_user_id = u.id AND status = 'open' AND expires_at > n.now
			ORDER BY expires_at LIMIT 1) r`

	// The accounts of a list ($1), for a lateral look at each.
	existingAccounts = `(SELECT cognito_user_id AS id FROM viralpilot.userdata WHERE cognito_user_id = ANY($1)) u`

	countOpenReservations = `SELECT cognito_user_id, count(*) FROM viralpilot.reservations
		WHERE cognito_user_id = ANY($1) AND status = 'open' GROUP BY cognito_user_id`

	selectEarlierHolds = `SELECT cognito_user_id, coalesce(sum(top_up) FILTER (WHERE carried), 0),
			coalesce(sum(tokens) FILTER (WHERE NOT carried), 0), count(*)
		FROM viralpilot.reservations WHERE cognito_user_id = ANY($1) AND status = 'open' GROUP BY cognito_user_id`

	// What a refund has to know of the entry it names: what has been given back of it, the reservation that it settled,
	// and what may have ended its period since, the first entry of each kind.
	selectCharges = `SELECT cognito_user_id, ` + entryColumns + `,
			(SELECT coalesce(sum(coalesce(tokens_refunded, amount)), 0) FROM viralpilot.ledger r
				WHERE r.cognito_user_id = l.cognito_user_id AND r.refunded_entry_id = l.entry_id)
		FROM viralpilot.ledger l
		WHERE (cognito_user_id, entry_id) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) AND cognito_user_id = ANY($1)`

	selectSettled = `SELECT l.cognito_user_id, l.entry_id, ` + settledColumns + `
		FROM viralpilot.ledger l JOIN viralpilot.reservations h
			ON h.cognito_user_id = l.cognito_user_id AND h.reservation_id = l.reservation_id
		WHERE (l.cognito_user_id, l.entry_id) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) AND l.cognito_user_id = ANY($1)`

	settledColumns = `h.tokens, coalesce(h.period, CASE WHEN h.carried THEN 0 ELSE -1 END), h.late`

	selectPeriodEnds = `SELECT l.cognito_user_id, l.entry_id, e.kind, e.top_ups_amount
		FROM viralpilot.ledger l CROSS JOIN unnest($3::text[]) AS k (kind)
		CROSS JOIN LATERAL (SELECT kind, top_ups_amount FROM viralpilot.ledger e
			WHERE e.cognito_user_id = l.cognito_user_id AND e.kind = k.kind AND e.kind <> 'consume' AND e.entry_id > l.entry_id
			ORDER BY e.entry_id LIMIT 1) e
		WHERE (l.cognito_user_id, l.entry_id) IN (SELECT * FROM unnest($1::text[], $2::bigint[])) AND l.cognito_user_id = ANY($1)`

	selectLastEntries = `SELECT u.id, ` + entryColumns + ` FROM ` + existingAccounts + `
		CROSS JOIN LATERAL (SELECT * FROM viralpilot.ledger l
			WHERE l.cognito_user_id = u.id ORDER BY entry_id DESC LIMIT 1) l`

	// Of an account that is not there yet.
	selectLastEntry = `SELECT ` + entryColumns + ` FROM viralpilot.ledger
		WHERE cognito_user_id = $1 ORDER BY entry_id DESC LIMIT 1`

	// The sum is NULL when an entry has none, or when the entries that the first one continues are not there any more.
	sumTopUps = `SELECT cognito_user_id, CASE WHEN count(*) = count(top_ups_amount)
			AND (array_agg(balance_after - amount ORDER BY entry_id))[1] = 0 THEN sum(top_ups_amount) END
		FROM viralpilot.ledger WHERE cognito_user_id = ANY($1) GROUP BY cognito_user_id`

	sumOpenReservations = `SELECT cognito_user_id, sum(tokens), count(*), min(expires_at) FROM viralpilot.reservations
		WHERE cognito_user_id = ANY($1) AND status = 'open' GROUP BY cognito_user_id`

	selectReservation = `SELECT ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE cognito_user_id = $1 AND reservation_id = $2`

	// A reservation with its newest entry.
	selectReservationEntry = `SELECT ` + entryColumns + ` FROM viralpilot.ledger
		WHERE cognito_user_id = $1 AND reservation_id = $2 ORDER BY entry_id DESC LIMIT 1`

	// The first page has a bound, too. Were it "$3 IS NULL OR", a plan for any bound could not begin there: it would read all
	// the pages before.
	selectReservationPage = `SELECT ` + reservationColumns + ` FROM viralpilot.reservations
		WHERE cognito_user_id = $1 AND status = $2 AND (expires_at, reservation_id)
			> (coalesce($3::timestamptz, '-infinity'), coalesce($4::uuid, '00000000-0000-0000-0000-000000000000'))
		ORDER BY expires_at, reservation_id LIMIT $5`

	// The id of the account's first entry that was made at or after an instant, or what comes after its last: a search by
	// halves, since instants rise with ids.
	searchEntry = `WITH RECURSIVE search (low, high) AS (
			SELECT coalesce(min(entry_id), 0), coalesce(max(entry_id), -1) + 1 FROM viralpilot.ledger WHERE cognito_user_id = $1
			UNION ALL
			SELECT CASE WHEN m.created_at < $2 THEN m.entry_id + 1 ELSE low END, CASE WHEN m.created_at < $2 THEN high ELSE (low + high) / 2 END
			FROM search LEFT JOIN LATERAL (SELECT entry_id, created_at FROM viralpilot.ledger
				WHERE cognito_user_id = $1 AND entry_id >= (low + high) / 2 ORDER BY entry_id LIMIT 1) m ON true
			WHERE low < high)
		SELECT low FROM search WHERE low >= high`

	// No more than $7 accounts are looked at. The last of these is on the page whether it fits or not, so that the next one
	// can go on from there. The side rows are looked up one by one: a join could read all of them.
	selectAccounts = accountsLookedAt + lookedAtAccounts

	accountsLookedAt = `SELECT ` + accountColumns + `, fits AND ` + notErased + `, place = $7
		FROM (SELECT *, row_number() OVER (ORDER BY cognito_user_id) AS place, ` + accountFits

	lookedAtAccounts = ` AS fits
				FROM viralpilot.userdata WHERE cognito_user_id > $1 ORDER BY cognito_user_id LIMIT $7) u
			LEFT JOIN LATERAL (SELECT * FROM viralpilot.account_state s
				WHERE s.cognito_user_id = u.cognito_user_id LIMIT 1) s USING (cognito_user_id)
		WHERE fits OR place = $7
		ORDER BY cognito_user_id LIMIT $6`

	// What a search finds that finds much: like selectAccounts, it looks at no more than $7 accounts.
	selectAccountsWith = accountsLookedAt + ` AND (cognito_user_id LIKE $8 OR username LIKE $8 OR lower(email) LIKE $9) IS TRUE` + lookedAtAccounts

	// No more than $6 ids are looked for in the index of trigrams, in whatever order they come.
	selectIDsWith = `SELECT cognito_user_id FROM viralpilot.userdata
		WHERE cognito_user_id > $1 AND ` + accountFits + ` AND (cognito_user_id LIKE $7 OR username LIKE $7 OR lower(email) LIKE $8)
		LIMIT $6`

	selectAccountsOf = `SELECT ` + accountColumns + `, ` + notErased + `, false
		FROM viralpilot.userdata LEFT JOIN viralpilot.account_state USING (cognito_user_id)
		WHERE cognito_user_id = ANY($1) ORDER BY cognito_user_id LIMIT $2`

	selectSearchIndex = `SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('viralpilot.userdata_search') AND indisvalid)`

	// Each branch walks the index of one column and the outer query merges what they find: one condition with OR would
	// walk all accounts. The operators are those of text_pattern_ops, which LIKE with a parameter does not get to use.
	selectAccountsByPrefix = `WITH found AS (
			(SELECT cognito_user_id FROM viralpilot.userdata
				WHERE cognito_user_id > $1 AND ` + accountFits + ` AND cognito_user_id ~>=~ $7 AND cognito_user_id ~<~ $8
				ORDER BY cognito_user_id LIMIT $6)
			UNION
			(SELECT cognito_user_id FROM viralpilot.userdata
				WHERE cognito_user_id > $1 AND ` + accountFits + ` AND username ~>=~ $7 AND username ~<~ $8
				ORDER BY cognito_user_id LIMIT $6)
			UNION
			(SELECT cognito_user_id FROM viralpilot.userdata
				WHERE cognito_user_id > $1 AND ` + accountFits + ` AND lower(email) ~>=~ $9 AND lower(email) ~<~ $10
				ORDER BY cognito_user_id LIMIT $6)
			ORDER BY cognito_user_id LIMIT $6)
		SELECT ` + accountColumns + `, ` + notErased + `, false
		FROM found JOIN viralpilot.userdata USING (cognito_user_id)
			LEFT JOIN viralpilot.account_state USING (cognito_user_id)
		ORDER BY cognito_user_id`

	// Who is being erased, or has been, is in no list.
	notErased = `erased IS NOT TRUE AND moving_to IS NULL`

	accountFits = `($2::text = '' OR subscription_tier = $2) AND ($3::text = '' OR subscription_status = $3)
			AND ($4::boolean IS NULL OR is_active = $4)
			AND ($5::timestamp IS NULL OR (subscription_renewal_date < $5 AND isfinite(subscription_renewal_date)) IS TRUE)`

	// A sequence that nothing was drawn from shows its first value.
	selectLastDrawnID = `SELECT pg_postmaster_start_time(), CASE WHEN is_called THEN last_value ELSE last_value - 1 END
		FROM viralpilot.ledger_entry_id_seq`

	drawTransactionID = `SELECT pg_current_xact_id()::text::bigint`

	selectOldestTransactionID = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`

	// Without what only the rules look at.
	selectFeed = `SELECT cognito_user_id, entry_id, kind, amount, balance_after, used_after, tokens_charged,
			coalesce(tokens_refunded, CASE WHEN kind = 'refund' AND top_ups_amount IS NULL THEN amount ELSE 0 END),
			top_ups_amount, changes, reservation_id, refunded_entry_id, idempotency_key, metadata, actor, created_at
		FROM viralpilot.ledger
		WHERE entry_id > $1 AND entry_id <= $2 AND ($3 = '' OR kind = $3) ORDER BY entry_id LIMIT $4`

	selectEntryBounds = `SELECT coalesce(min(entry_id), 1), coalesce(max(entry_id), 0) FROM viralpilot.ledger
		WHERE created_at >= $1 AND created_at < $2`

	// Not on the request path: it looks at all accounts.
	selectDueAccounts = `SELECT DISTINCT cognito_user_id FROM viralpilot.reservations
		WHERE status = 'open' AND expires_at <= $1 AND cognito_user_id > $2
		ORDER BY cognito_user_id LIMIT $3`

	// One look at the end of reservations_due.
	selectOldestDueHold = `SELECT greatest(extract(epoch FROM now() - min(expires_at)), 0)::float8
		FROM viralpilot.reservations WHERE status = 'open'`

	// The page is taken before it is joined: where the statistics know little of an account, a plan that joins first reads the
	// whole ledger. The ledger of an account that is being erased goes on from that of its pseudonym.
	selectChain = `SELECT l.cognito_user_id, l.entry_id, l.kind, l.amount, l.balance_after, l.used_after, l.tokens_charged,
			coalesce(l.tokens_refunded, CASE WHEN l.kind = 'refund' AND l.top_ups_amount IS NULL THEN l.amount ELSE 0 END),
			l.top_ups_amount, l.period, l.refunded_entry_id,
			coalesce(p.balance_after, q.balance_after, 0), coalesce(p.used_after, q.used_after, 0),
			(SELECT c.period FROM viralpilot.ledger c
				WHERE c.cognito_user_id = l.cognito_user_id AND c.entry_id = l.refunded_entry_id),
			NOT EXISTS (SELECT FROM viralpilot.userdata u WHERE u.cognito_user_id = l.cognito_user_id), moving_to IS NOT NULL
		FROM (SELECT * FROM viralpilot.ledger
			WHERE (cognito_user_id, entry_id) > ($1, $2) AND ($3::timestamptz IS NULL OR created_at >= $3)
			ORDER BY cognito_user_id, entry_id LIMIT $4) l
		LEFT JOIN viralpilot.account_state s ON s.cognito_user_id = l.cognito_user_id
		LEFT JOIN LATERAL (SELECT balance_after, used_after FROM viralpilot.ledger p
			WHERE p.cognito_user_id = l.cognito_user_id AND p.entry_id < l.entry_id ORDER BY p.entry_id DESC LIMIT 1) p ON true
		LEFT JOIN LATERAL (SELECT balance_after, used_after FROM viralpilot.ledger q
			WHERE q.cognito_user_id = s.moving_to AND p.balance_after IS NULL ORDER BY q.entry_id DESC LIMIT 1) q ON true
		ORDER BY l.cognito_user_id, l.entry_id`

	selectTopUps = `SELECT s.cognito_user_id, s.top_ups, l.later
		FROM unnest($1::text[], $2::bigint[]) AS n (id, entry) JOIN viralpilot.account_state s ON s.cognito_user_id = n.id
		CROSS JOIN LATERAL (SELECT CASE WHEN count(*) = count(top_ups_amount) THEN coalesce(sum(top_ups_amount), 0) END AS later
			FROM viralpilot.ledger l WHERE l.cognito_user_id = s.cognito_user_id AND l.entry_id > n.entry) l
		WHERE s.granted_period IS NOT NULL AND s.moving_to IS NULL
			AND NOT EXISTS (SELECT FROM viralpilot.account_state m WHERE m.moving_to = s.cognito_user_id)`

	// A pseudonym to which entries still come is as good as its other half, which is looked at.
	selectAccountTotals = `SELECT ` + accountColumns + `, coalesce(l.balance_after, q.balance_after, 0),
			coalesce(l.used_after, q.used_after, 0), coalesce(held, 0), open, earliest
		FROM viralpilot.userdata u LEFT JOIN viralpilot.account_state s USING (cognito_user_id)
		LEFT JOIN LATERAL (SELECT balance_after, used_after FROM viralpilot.ledger l
			WHERE l.cognito_user_id = u.cognito_user_id ORDER BY entry_id DESC LIMIT 1) l ON true
		LEFT JOIN LATERAL (SELECT balance_after, used_after FROM viralpilot.ledger q
			WHERE q.cognito_user_id = s.moving_to AND l.balance_after IS NULL ORDER BY entry_id DESC LIMIT 1) q ON true
		CROSS JOIN LATERAL (SELECT sum(tokens) AS held, count(*) AS open, min(expires_at) AS earliest
			FROM viralpilot.reservations h WHERE h.cognito_user_id = u.cognito_user_id AND status = 'open') h
		WHERE u.cognito_user_id > $1 AND NOT EXISTS (SELECT FROM viralpilot.account_state m WHERE m.moving_to = u.cognito_user_id)
		ORDER BY u.cognito_user_id LIMIT $2`

	// Newest first by the primary key; a page begins where the one before it ended. No more than $7 entries are looked at.
	// The last of these is on the page whether it fits or not, so that the next one can go on from there.
	entriesLookedAt = `SELECT ` + entryColumns + `, fits, place = $7
		FROM (SELECT *, row_number() OVER (ORDER BY entry_id DESC) AS place,
				($4::timestamptz IS NULL OR created_at >= $4) AND ($5::timestamptz IS NULL OR created_at < $5)`

	entriesOfAccount = ` AS fits
			FROM viralpilot.ledger WHERE cognito_user_id = $1 AND entry_id >= $2 AND entry_id < $3`

	newestEntries = `
			ORDER BY entry_id DESC LIMIT $7) l
		WHERE fits OR place = $7 ORDER BY entry_id DESC LIMIT $6`

	// Consumes are most of most ledgers, and an index of them would cost each of them a write. The other kinds have one.
	selectConsumes     = entriesLookedAt + ` AND kind = 'consume'` + entriesOfAccount + newestEntries
	selectOtherEntries = entriesLookedAt + entriesOfAccount + ` AND kind = $8 AND kind <> 'consume'` + newestEntries
	selectAnyEntries   = entriesLookedAt + entriesOfAccount + newestEntries

	insertUserdata = `INSERT INTO viralpilot.userdata (` + userdataColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING`

	updateUserdata = `UPDATE viralpilot.userdata u SET username = n.username, email = n.email, subscription_tier = n.tier,
			subscription_status = n.status, subscription_renewal_date = n.renewal, tokens_remaining = n.remaining,
			tokens_used_this_month = n.used, last_token_reset_date = n.reset, updated_at = n.updated, is_active = n.active
		FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamp[], $7::integer[], $8::integer[],
				$9::timestamp[], $10::timestamp[], $11::boolean[])
			AS n (id, username, email, tier, status, renewal, remaining, used, reset, updated, active)
		WHERE u.cognito_user_id = n.id AND u.cognito_user_id = ANY($1)`

	updateCounters = `UPDATE viralpilot.userdata u SET tokens_remaining = n.remaining, tokens_used_this_month = n.used, updated_at = n.updated
		FROM unnest($1::text[], $2::integer[], $3::integer[], $4::timestamp[]) AS n (id, remaining, used, updated)
		WHERE u.cognito_user_id = n.id AND u.cognito_user_id = ANY($1)`

	writtenSideRows = `unnest($1::text[], $2::integer[], $3::integer[], $4::integer[], $5::integer[], $6::integer[],
				$7::integer[], $8::integer[], $9::integer[], $10::timestamptz[])
			AS n (id, top_ups, used, allowance, excess, carried, period, reserved, open, expiry)`

	insertSideRows = `INSERT INTO viralpilot.account_state (cognito_user_id, ` + sideRowColumns + `)
		SELECT * FROM ` + writtenSideRows

	updateSideRows = `UPDATE viralpilot.account_state s SET top_ups = n.top_ups, top_ups_used = n.used, allowance = n.allowance,
			allowance_excess = n.excess, carried_top_ups = n.carried, granted_period = n.period, tokens_reserved = n.reserved,
			open_reservations = n.open, next_hold_expiry = n.expiry
		FROM ` + writtenSideRows + `
		WHERE s.cognito_user_id = n.id AND s.cognito_user_id = ANY($1)`

	// The open reservations of accounts that are converted get the period that the earlier version did not know.
	convertReservations = `UPDATE viralpilot.reservations r SET period = CASE WHEN carried THEN 0 ELSE n.period END
		FROM unnest($1::text[], $2::integer[]) AS n (id, period)
		WHERE r.cognito_user_id = n.id AND r.cognito_user_id = ANY($1) AND r.status = 'open' AND r.period IS NULL`

	// One statement for reservations that are new and those that were there. The period of one of the earlier version that
	// is closed by now stays NULL.
	upsertReservations = `INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, tokens_charged,
			tokens_returned, shortfall, period, late, metadata, created_at, expires_at, closed_at, tokens_used)
		SELECT id, reservation::uuid, status, tokens, charged, returned, shortfall, nullif(period, -1), late, notes::jsonb,
			created, expires, closed, used
		FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[],
				$8::integer[], $9::boolean[], $10::text[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[], $14::integer[])
			AS n (id, reservation, status, tokens, charged, returned, shortfall, period, late, notes, created, expires, closed, used)
		ON CONFLICT (cognito_user_id, reservation_id) DO UPDATE SET status = excluded.status, tokens = excluded.tokens,
			tokens_charged = excluded.tokens_charged, tokens_returned = excluded.tokens_returned, shortfall = excluded.shortfall,
			period = excluded.period, late = excluded.late, metadata = excluded.metadata, created_at = excluded.created_at,
			expires_at = excluded.expires_at, closed_at = excluded.closed_at, tokens_used = excluded.tokens_used`

	// A refund of 0 is written as NULL, which takes no room.
	insertEntries = `INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged,
			tokens_refunded, top_ups_amount, period, changes, reservation_id, refunded_entry_id, idempotency_key, command_hash,
			metadata, actor, created_at)
		SELECT id, kind, amount, balance, used, charged, nullif(given_back, 0), top_ups, period, changes::jsonb, reservation::uuid,
			refunded, key, hash, notes::jsonb, actor, created
		FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::integer[], $6::integer[], $7::integer[],
				$8::integer[], $9::integer[], $10::text[], $11::text[], $12::bigint[], $13::text[], $14::bytea[], $15::text[],
				$16::text[], $17::timestamptz[]) WITH ORDINALITY
			AS n (id, kind, amount, balance, used, charged, given_back, top_ups, period, changes, reservation, refunded, key, hash,
				notes, actor, created, i)
		ORDER BY i RETURNING entry_id`

	// An account that is being erased, with the id that it moves to. The condition keeps a statement that is run again from
	// marking it for another one.
	markMoving = `UPDATE viralpilot.account_state SET moving_to = $2 WHERE cognito_user_id = $1 AND moving_to IS NULL`

	// As they are for this role and database.
	selectLossySettings = `SELECT name FROM pg_settings
		WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off' ORDER BY name`

	selectSettings = `SELECT name, value FROM viralpilot.settings`

	upsertSetting = `INSERT INTO viralpilot.settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE settings.value <> excluded.value`
)
