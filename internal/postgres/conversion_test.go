package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

// earlier inserts an account as the version before granted periods left it. A NULL that is written on purpose is what
// the rows of that version have in the columns that it did not know.
func (d database) earlier(id string, tier user.Tier, lastReset string, entries, reservations string, topUps, reserved int) {
	d.T.Helper()
	const entryColumns = `cognito_user_id, kind, amount, balance_after, used_after, tokens_charged, idempotency_key, created_at, top_ups_amount, period`
	d.Exec(`INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, last_token_reset_date, created_at, updated_at)
		VALUES ($1, $2, $3::text::timestamp, '2026-09-01', '2026-11-20')`, id, tier, lastReset)
	d.Exec(fmt.Sprintf(`INSERT INTO viralpilot.ledger (%s)
		SELECT '%s', kind, amount, balance, used, charged, nullif(key, ''), '2026-11-20', NULL, NULL
		FROM (VALUES %s) AS e (kind, amount, balance, used, charged, key)`, entryColumns, id, entries))
	if reservations != "" {
		d.Exec(fmt.Sprintf(`INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, carried, top_up, created_at, expires_at, period)
			SELECT '%s', id::uuid, status, tokens, carried, top_up, '2026-11-23 20:00', '2026-11-24 20:00', NULL
			FROM (VALUES %s) AS r (id, status, tokens, carried, top_up)`, id, reservations))
	}
	d.Exec(`INSERT INTO viralpilot.account_state (cognito_user_id, top_ups, tokens_reserved, next_hold_expiry)
		VALUES ($1, $2, $3, CASE WHEN $3::int > 0 THEN '2026-11-24 20:00'::timestamptz END)`, id, topUps, reserved)
	d.Exec(`UPDATE viralpilot.userdata u SET tokens_remaining = l.balance_after, tokens_used_this_month = l.used_after
		FROM (SELECT * FROM viralpilot.ledger WHERE cognito_user_id = $1 ORDER BY entry_id DESC LIMIT 1) l WHERE u.cognito_user_id = $1`, id)
}

// counters returns what the side row keeps, by the letters of the rules.
func (d database) counters(id string) string {
	d.T.Helper()
	return localpgtest.Query[string](d, `SELECT format('R %s U %s T %s W %s G %s E %s C %s H %s open %s period %s',
			tokens_remaining, tokens_used_this_month, top_ups, top_ups_used, allowance, allowance_excess, carried_top_ups,
			tokens_reserved, open_reservations, coalesce(granted_period::text, 'none'))
		FROM viralpilot.userdata JOIN viralpilot.account_state USING (cognito_user_id) WHERE cognito_user_id = $1`, id)
}

// The tier of these accounts grants 1000; November 2026 is the period 24323.
func TestConversion(t *testing.T) {
	t.Parallel()
	const (
		thisMonth, lastMonth = "2026-11-01 00:00:01", "2026-10-01 00:00:01"
		own, carried         = `('` + hold1 + `', 'open', 100, false, 0)`, `('` + hold2 + `', 'open', 80, true, 30)`
		closed               = `('` + hold3 + `', 'expired', 5, false, 0)`
	)
	touch := func(t *testing.T, s *user.Service, id string) { t.Helper(); do(t, s, id, user.AddTokens{Tokens: 7}) }
	for name, test := range map[string]struct {
		lastReset             string
		entries, reservations string
		topUps, reserved      int
		// then plays on; the counters are those afterwards.
		then     func(t *testing.T, s *user.Service, id string)
		counters string
		// periods are those of the reservations, by id.
		periods string
	}{
		"allowance is left": {
			thisMonth, `('monthly_reset', 1000, 1000, 0, 0, ''), ('top_up', 50, 1050, 0, 0, ''), ('consume', -300, 750, 300, 300, '')`, closed,
			50, 0, touch, "R 757 U 300 T 57 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "none",
		},
		"a hold of this period is settled": {
			thisMonth, `('monthly_reset', 1000, 1000, 0, 0, ''), ('top_up', 50, 1050, 0, 0, ''), ('consume', -300, 750, 300, 300, ''), ('reserve', -100, 650, 300, 0, '')`, own,
			50, 100, func(t *testing.T, s *user.Service, id string) {
				do(t, s, id, user.Settle{ReservationID: hold1, TokensUsed: 40})
			}, "R 710 U 340 T 50 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "24323",
		},
		"a hold that top-ups paid is released": {
			thisMonth, `('monthly_reset', 1000, 1000, 0, 0, ''), ('top_up', 500, 1500, 0, 0, ''), ('consume', -1200, 300, 1200, 1200, ''), ('reserve', -100, 200, 1200, 0, '')`, own,
			500, 100, func(t *testing.T, s *user.Service, id string) { do(t, s, id, user.Release{ReservationID: hold1}) },
			"R 300 U 1200 T 300 W 200 G 1000 E 0 C 0 H 0 open 0 period 24323", "24323",
		},
		"a carried hold is released": {
			thisMonth, `('top_up', 500, 500, 0, 0, ''), ('reserve', -80, 420, 0, 0, ''), ('monthly_reset', 1050, 1470, 0, 0, ''), ('reserve', -100, 1370, 0, 0, '')`, own + ", " + carried,
			470, 180, func(t *testing.T, s *user.Service, id string) { do(t, s, id, user.Release{ReservationID: hold2}) },
			"R 1400 U 0 T 500 W 0 G 1000 E 0 C 0 H 100 open 1 period 24323", "24323\n0",
		},
		"a reset is due": {
			lastMonth, `('top_up', 500, 500, 0, 0, ''), ('reserve', -80, 420, 0, 0, ''), ('monthly_reset', 1050, 1470, 0, 0, ''), ('reserve', -100, 1370, 0, 0, '')`, own + ", " + carried,
			470, 180, func(t *testing.T, s *user.Service, id string) { do(t, s, id, user.Touch{}) },
			"R 1470 U 0 T 470 W 0 G 1000 E 0 C 30 H 180 open 2 period 24323", "24322\n0",
		},
		"a reset is due, and holds come back after it": {
			lastMonth, `('top_up', 500, 500, 0, 0, ''), ('reserve', -80, 420, 0, 0, ''), ('monthly_reset', 1050, 1470, 0, 0, ''), ('reserve', -100, 1370, 0, 0, '')`, own + ", " + carried,
			470, 180, func(t *testing.T, s *user.Service, id string) {
				do(t, s, id, user.Release{ReservationID: hold1})
				do(t, s, id, user.Release{ReservationID: hold2})
			}, "R 1500 U 0 T 500 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "24322\n0",
		},
		"a charge of this period is refunded": {
			thisMonth, `('monthly_reset', 1000, 1000, 0, 0, ''), ('consume', -300, 700, 300, 300, 'charge')`, "",
			0, 0, refundOf("charge", 100), "R 800 U 200 T 0 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "",
		},
		"a charge from before a tier change is refunded": {
			thisMonth, `('monthly_reset', 1000, 1000, 0, 0, ''), ('consume', -300, 700, 300, 300, 'charge'), ('tier_change', 300, 1000, 0, 0, '')`, "",
			0, 0, refundOf("charge", 100), "R 1100 U 0 T 100 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "",
		},
		"a charge from before the last reset is refunded": {
			thisMonth, `('consume', 0, 0, 300, 300, 'charge'), ('monthly_reset', 1000, 1000, 0, 0, '')`, "",
			0, 0, refundOf("charge", 100), "R 1100 U 0 T 100 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "",
		},
		"an expired hold is settled late": {
			thisMonth, `('monthly_reset', 1000, 1000, 0, 0, '')`, closed,
			0, 0, func(t *testing.T, s *user.Service, id string) {
				do(t, s, id, user.Settle{ReservationID: hold3, TokensUsed: 40})
			}, "R 960 U 40 T 0 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "24323",
		},
		"an account without tokens": {
			lastMonth, `('opening', 0, 0, 0, 0, '')`, "", 0, 0, touch, "R 1007 U 0 T 7 W 0 G 1000 E 0 C 0 H 0 open 0 period 24323", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			db, s := connect(t, url), service(t, open(t, url))
			db.earlier("u", user.TierTester, test.lastReset, test.entries, test.reservations, test.topUps, test.reserved)
			wantVerified(t, s)
			before := db.content()
			if _, _, err := s.Accounts(t.Context(), user.AccountQuery{Limit: 1}); err != nil || db.content() != before {
				t.Errorf("a list of accounts: %v", err)
			}
			if got := db.counters("u"); !strings.HasSuffix(got, "period none") {
				t.Errorf("before: %s", got)
			}
			test.then(t, s, "u")
			if got := db.counters("u"); got != test.counters {
				t.Errorf("%s, want\n%s", got, test.counters)
			}
			if got := db.lines("SELECT coalesce(period::text, 'none') FROM viralpilot.reservations ORDER BY reservation_id"); got != test.periods {
				t.Errorf("periods %q, want %q", got, test.periods)
			}
			wantVerified(t, s)
		})
	}
}

// do carries out a command that must succeed.
func do(t *testing.T, s *user.Service, id string, c user.Command) user.Receipt {
	t.Helper()
	r, err := s.Do(t.Context(), id, c)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return r
}

// refundOf refunds that many tokens of the charge that was made under the key.
func refundOf(key string, tokens int64) func(t *testing.T, s *user.Service, id string) {
	return func(t *testing.T, s *user.Service, id string) {
		t.Helper()
		entries, _, err := s.Store.Entries(t.Context(), id, user.EntryQuery{Kind: user.KindConsume, Limit: 9})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IdempotencyKey != nil && *e.IdempotencyKey == key {
				do(t, s, id, user.Refund{EntryID: e.ID, Tokens: tokens})
				return
			}
		}
		t.Fatal("there is no such charge")
	}
}

// The statements with which the version before granted periods writes entries and reservations, word for word.
const (
	earlierInsertEntries = `INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged,
			reservation_id, refunded_entry_id, idempotency_key, command_hash, metadata, actor, created_at)
		SELECT id, kind, amount, balance, used, charged, reservation::uuid, refunded, key, hash, notes::jsonb, actor, created
		FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::integer[], $6::integer[], $7::text[], $8::bigint[],
				$9::text[], $10::bytea[], $11::text[], $12::text[], $13::timestamptz[]) WITH ORDINALITY
			AS n (id, kind, amount, balance, used, charged, reservation, refunded, key, hash, notes, actor, created, i)
		ORDER BY i RETURNING entry_id`
	earlierInsertReservations = `INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall, carried, top_up, created_at,
		expires_at, closed_at, tokens_used)
		SELECT id, reservation::uuid, status, tokens, charged, returned, shortfall, carried, top_up, created, expires, closed, used
		FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[],
				$8::boolean[], $9::integer[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[], $13::integer[])
			AS n (id, reservation, status, tokens, charged, returned, shortfall, carried, top_up, created, expires, closed, used)
		ON CONFLICT (cognito_user_id, reservation_id) DO UPDATE SET status = excluded.status, tokens = excluded.tokens,
			tokens_charged = excluded.tokens_charged, tokens_returned = excluded.tokens_returned, shortfall = excluded.shortfall,
			carried = excluded.carried, top_up = excluded.top_up, created_at = excluded.created_at,
			expires_at = excluded.expires_at, closed_at = excluded.closed_at, tokens_used = excluded.tokens_used`
	earlierUpdateReservations = `UPDATE viralpilot.reservations r SET status = n.status, tokens = n.tokens, tokens_charged = n.charged,
			tokens_returned = n.returned, shortfall = n.shortfall, carried = n.carried, top_up = n.top_up, created_at = n.created,
			expires_at = n.expires, closed_at = n.closed, tokens_used = n.used
		FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[],
				$8::boolean[], $9::integer[], $10::timestamptz[], $11::timestamptz[], $12::timestamptz[], $13::integer[])
			AS n (id, reservation, status, tokens, charged, returned, shortfall, carried, top_up, created, expires, closed, used)
		WHERE r.cognito_user_id = n.id AND r.reservation_id = n.reservation::uuid`
	earlierCopyReservations = `INSERT INTO viralpilot.reservations (cognito_user_id, reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall, carried, top_up, created_at,
		expires_at, closed_at, tokens_used)
		SELECT $2, reservation_id, status, tokens, tokens_charged, tokens_returned, shortfall, carried, top_up, created_at,
		expires_at, closed_at, tokens_used FROM viralpilot.reservations WHERE cognito_user_id = $1`
	earlierCopyEntries = `INSERT INTO viralpilot.ledger (cognito_user_id, entry_id, kind, amount, balance_after, used_after, tokens_charged, reservation_id, refunded_entry_id, idempotency_key,
		command_hash, metadata, actor, created_at) OVERRIDING SYSTEM VALUE
		SELECT $2, entry_id, kind, amount, balance_after, used_after, tokens_charged, reservation_id, refunded_entry_id,
			NULL, NULL, NULL, CASE WHEN actor NOT IN ($1::text, 'cognito:' || $1::text) THEN actor END, created_at
		FROM viralpilot.ledger WHERE cognito_user_id = $1`
	earlierUpdateCounters = `UPDATE viralpilot.userdata u SET tokens_remaining = n.remaining, tokens_used_this_month = n.used, updated_at = n.updated
		FROM unnest($1::text[], $2::integer[], $3::integer[], $4::timestamp[]) AS n (id, remaining, used, updated)
		WHERE u.cognito_user_id = n.id`
)

// earlierEntry are the arguments of earlierInsertEntries for a consume of one token.
func earlierEntry(id string, balance int) []any {
	none := []*string{nil}
	return []any{
		[]string{id},
		[]string{"consume"},
		[]int{-1},
		[]int{balance},
		[]int{1},
		[]int{1},
		none,
		[]*int64{nil},
		none,
		[][]byte{nil},
		none, none,
		[]time.Time{now},
	}
}

// earlierReservation are the arguments of earlierInsertReservations and earlierUpdateReservations for a hold of one token.
func earlierReservation(id, status string) []any {
	return []any{
		[]string{id},
		[]string{hold1},
		[]string{status},
		[]int{1},
		[]int{0},
		[]int{0},
		[]int{0},
		[]bool{false},
		[]int{0},
		[]time.Time{now},
		[]time.Time{now.Add(time.Hour)},
		[]*time.Time{nil},
		[]*int{nil},
	}
}

func TestMigration_EarlierVersionMayNotWrite(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db, s := connect(t, url), service(t, open(t, url))
	create(t, s.Store, "u", 100)
	if _, err := s.Reserve(t.Context(), "u", user.Reserve{Tokens: 5}); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]struct {
		sql  string
		args []any
	}{
		"entries":                           {earlierInsertEntries, earlierEntry("u", 94)},
		"reservations":                      {earlierInsertReservations, earlierReservation("u", "open")},
		"the end of a reservation":          {earlierUpdateReservations, earlierReservation("u", "released")},
		"reservations of an erased account": {earlierCopyReservations, []any{"u", "pseudonym"}},
		"entries of an erased account":      {earlierCopyEntries, []any{"u", "pseudonym"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := db.content()
			// It changes balances before it writes what explains them.
			db.Exec("BEGIN")
			db.Exec(earlierUpdateCounters, []string{"u"}, []int{94}, []int{1}, []time.Time{now})
			_, err := db.Conn.Exec(t.Context(), write.sql, write.args...)
			db.Exec("ROLLBACK")
			if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != "57P03" {
				t.Errorf("got %v", err)
			}
			if after := db.content(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	do(t, s, "u", user.Consume{Tokens: 1})
	wantVerified(t, s)
}

// Rows as the earlier service or a hand left them, with what they can still spend.
func TestAdoption_RowsOfTheEarlierService(t *testing.T) {
	t.Parallel()
	shapes := map[string]string{
		"no dates":        `'tester', 'active', NULL, 7, 993, NULL, TRUE`,
		"old dates":       `'tester', 'trialing', '2024-03-01', 400, 600, '1999-12-31 23:59:59.999999', TRUE`,
		"this month":      `'tester', 'active', NULL, 400, 600, '2026-11-02', TRUE`,
		"more than given": `'tester', 'active', NULL, 5000, 600, '2026-11-02', TRUE`,
		"unknown tier":    `'gold', 'active', NULL, 50, 5, '2026-11-01', TRUE`,
		"free":            `'free', 'active', NULL, 0, 0, '2026-11-01', TRUE`,
		"inactive":        `'tester', 'active', NULL, 500, 0, '2026-11-02', FALSE`,
		"inactive, empty": `'free', 'active', NULL, 0, 0, '2026-11-02', FALSE`,
		"canceled":        `'tester', 'canceled', NULL, 1000, 0, '2026-11-02', TRUE`,
		"overdrawn":       `'tester', 'active', NULL, -3, 1003, '2026-11-02', TRUE`,
		"negative use":    `'tester', 'active', NULL, 3, -1003, '2026-11-02', TRUE`,
		"all there is":    `'tester', 'active', NULL, 2147483647, 2147483647, '2026-11-02', TRUE`,
		"admin":           `'admin', 'active', NULL, 0, 0, NULL, TRUE`,
		"reset to come":   `'tester', 'active', NULL, 400, 600, '2027-11-02', TRUE`,
	}
	insert := func(db database, id, shape string) {
		db.Exec(fmt.Sprintf(`INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, subscription_status, subscription_renewal_date,
			tokens_remaining, tokens_used_this_month, last_token_reset_date, is_active) VALUES ('%s', %s)`, id, shape))
	}
	inRange := func(t *testing.T, a user.Account) {
		t.Helper()
		if min(a.TokensRemaining, a.TokensUsed, a.TopUps, a.TopUpsUsed, a.Allowance, a.AllowanceExcess) < 0 ||
			a.TokensRemaining+a.TokensUsed+a.Reserved > user.MaxTokens || a.TopUps > a.TokensRemaining {
			t.Errorf("out of range: %+v", a)
		}
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			db, s := connect(t, url), service(t, open(t, url))

			t.Run("is read, adopted and erased", func(t *testing.T) {
				insert(db, "read", shape)
				a, err := s.Account(t.Context(), "read")
				if err != nil {
					t.Fatal(err)
				}
				inRange(t, a)
				wantVerified(t, s)
				if done, err := s.Erase(t.Context(), "read", ""); err != nil || !done {
					t.Fatal(err)
				}
				wantVerified(t, s)
			})
			t.Run("is erased at once", func(t *testing.T) {
				insert(db, "erased", shape)
				if done, err := s.Erase(t.Context(), "erased", ""); err != nil || !done {
					t.Fatal(err)
				}
				wantVerified(t, s)
			})
			t.Run("spends, gets a refund and is made again after a hand deleted it", func(t *testing.T) {
				insert(db, "again", shape)
				// Room for what is added, where there is none.
				db.Exec("UPDATE viralpilot.userdata SET tokens_remaining = least(tokens_remaining, 2147000000), is_active = true, subscription_status = 'active' WHERE cognito_user_id = 'again'")
				db.Exec("UPDATE viralpilot.userdata SET tokens_used_this_month = least(tokens_used_this_month, 2147483647::bigint - greatest(tokens_remaining, 0) - 1000) WHERE cognito_user_id = 'again'")
				do(t, s, "again", user.AddTokens{Tokens: 500})
				charge := do(t, s, "again", user.Consume{Tokens: 300, Meta: user.Meta{IdempotencyKey: "k"}})
				if charge.Entry.TokensCharged > 0 { // unlimited accounts are charged nothing
					do(t, s, "again", user.Refund{EntryID: charge.Entry.ID, Tokens: 100})
				}
				if _, err := s.Reserve(t.Context(), "again", user.Reserve{Tokens: 50}); err != nil {
					t.Fatal(err)
				}
				wantVerified(t, s)
				db.Exec("DELETE FROM viralpilot.userdata WHERE cognito_user_id = 'again'")
				if name == "admin" || name == "free" { // made again by hand
					insert(db, "again", shape)
				} else if _, err := s.Create(t.Context(), user.NewAccount{ID: "again"}); err != nil {
					t.Fatal(err)
				}
				if charge.Entry.TokensCharged > 0 {
					r := do(t, s, "again", user.Refund{EntryID: charge.Entry.ID, Tokens: 100})
					inRange(t, r.Account)
					if r.Account.TokensUsed != 0 || r.Account.TopUps != 100 {
						t.Errorf("a charge of the account before it was refunded: %+v", r.Account)
					}
				}
				wantVerified(t, s)
			})
		})
	}
}
