package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// foldOf returns a fold of a replica of its own, by feature and model, with its service.
func foldOf(t *testing.T, url string, change ...func(*postgres.Options)) (*user.Fold, *user.Service, *postgres.Store) {
	t.Helper()
	feed, store := feedOf(t, url, change...)
	s := service(t, store)
	s.Dimensions = []string{"feature", "model"}
	return &user.Fold{Feed: feed, Store: store, Rules: s.Rules, Dimensions: s.Dimensions}, s, store
}

// folded runs the fold until it has come to the last entry: a transaction of another test may keep it waiting.
func folded(t *testing.T, fold *user.Fold, db database) {
	t.Helper()
	localpgtest.Await(t, "everything is folded", func() bool {
		if _, err := fold.Run(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		return localpgtest.Query[bool](db, `SELECT folded_to >= (SELECT coalesce(max(entry_id), 0) FROM viralpilot.ledger)
			AND clear_from IS NULL AND folded_to >= again_to FROM viralpilot.usage_fold`)
	})
}

// told is a report in short: the days that have usage, charged/refunded by value, and users where there are any.
func told(t *testing.T, report user.UsageReport, err error) (days []string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range report.Days {
		if d.Usage == (user.Usage{}) && d.Values == nil {
			continue
		}
		text := fmt.Sprintf("%s %d/%d %d entries", d.Date.Format("01-02"), d.Charged, d.Refunded, d.Entries)
		if d.Users > 0 {
			text += fmt.Sprintf(" %d users", d.Users)
		}
		values := slices.Clone(d.Values)
		if len(values) < 10 { // else their order is looked at
			slices.SortFunc(values, func(a, b user.ValueUsage) int { return strings.Compare(valueName(a), valueName(b)) })
		}
		for _, v := range values {
			name := valueName(v)
			text += fmt.Sprintf(" %s:%d/%d*%d", name, v.Charged, v.Refunded, v.Entries)
		}
		days = append(days, text)
	}
	return days
}

func valueName(v user.ValueUsage) string {
	if v.Value == nil {
		return "none"
	}
	return *v.Value
}

func notes(pairs ...string) user.Meta {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return user.Meta{Metadata: m}
}

var november = user.UsageQuery{From: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2026, 12, 31, 0, 0, 0, 0, time.UTC)}

func by(dimension string) user.UsageQuery {
	q := november
	q.By = dimension
	return q
}

// booking is an entry as a hand would add it up.
type booking struct {
	account           string
	at                time.Time
	charged, refunded int64
	notes             map[string]string
}

// bookings reads the ledger as whoever does not know of the fold would.
func (d database) bookings() (list []booking) {
	d.T.Helper()
	held := map[string]map[string]string{}
	rows, err := d.Conn.Query(d.T.Context(), "SELECT reservation_id::text, coalesce(metadata, '{}') FROM viralpilot.reservations")
	if err != nil {
		d.T.Fatal(err)
	}
	var id string
	var notes map[string]string
	if _, err := pgx.ForEachRow(rows, []any{&id, &notes}, func() error {
		held[id], notes = notes, nil
		return nil
	}); err != nil {
		d.T.Fatal(err)
	}
	rows, err = d.Conn.Query(d.T.Context(), `SELECT cognito_user_id, entry_id, kind, tokens_charged, coalesce(tokens_refunded, 0), created_at,
		coalesce(metadata, '{}'), coalesce(reservation_id::text, ''), coalesce(refunded_entry_id, 0) FROM viralpilot.ledger ORDER BY entry_id`)
	if err != nil {
		d.T.Fatal(err)
	}
	charges := map[int64]booking{}
	var b booking
	var entry, refunded int64
	var kind, reservation string
	if _, err := pgx.ForEachRow(rows, []any{&b.account, &entry, &kind, &b.charged, &b.refunded, &b.at, &b.notes, &reservation, &refunded}, func() error {
		switch kind {
		case "settle":
			all := maps.Clone(held[reservation])
			maps.Copy(all, b.notes)
			b.notes = all
		case "refund":
			b.notes = charges[refunded].notes
		}
		if charges[entry] = b; b.charged > 0 || b.refunded > 0 {
			list = append(list, b)
		}
		b.notes = nil
		return nil
	}); err != nil {
		d.T.Fatal(err)
	}
	return list
}

// wholeDay stands for all values of a day.
const wholeDay = "\x00"

// report is what the bookings of an account, or of all, add up to.
func report(bookings []booking, zone *time.Location, account, dimension string) (days []string) {
	type sum struct{ charged, refunded, entries int64 }
	sums, users := map[string]map[string]*sum{}, map[string]map[string]bool{}
	for _, b := range bookings {
		if account != "" && b.account != account {
			continue
		}
		day := b.at.In(zone).Format("01-02")
		value, known := b.notes[dimension]
		if !known {
			value = "none"
		}
		if sums[day] == nil {
			sums[day], users[day] = map[string]*sum{}, map[string]bool{}
		}
		for _, v := range []string{wholeDay, value} {
			s := sums[day][v]
			if s == nil {
				s = &sum{}
				sums[day][v] = s
			}
			s.charged, s.refunded = s.charged+b.charged, s.refunded+b.refunded
			if b.charged > 0 {
				s.entries++
				users[day][b.account] = true
			}
		}
	}
	for _, day := range slices.Sorted(maps.Keys(sums)) {
		all := sums[day][wholeDay]
		text := fmt.Sprintf("%s %d/%d %d entries", day, all.charged, all.refunded, all.entries)
		if account == "" && len(users[day]) > 0 {
			text += fmt.Sprintf(" %d users", len(users[day]))
		}
		for _, v := range slices.Sorted(maps.Keys(sums[day])) {
			if s := sums[day][v]; v != wholeDay && dimension != "" {
				text += fmt.Sprintf(" %s:%d/%d*%d", v, s.charged, s.refunded, s.entries)
			}
		}
		days = append(days, text)
	}
	return days
}

// wantUsage holds what is told of accounts and of all together against the ledger.
func wantUsage(t *testing.T, s *user.Service, db database, accounts ...string) {
	t.Helper()
	bookings, zone := db.bookings(), s.Rules.ResetZone
	for _, dimension := range []string{"", "feature", "model"} {
		q := by(dimension)
		all, err := s.AllUsage(t.Context(), q)
		if got, want := told(t, all, err), report(bookings, zone, "", dimension); !slices.Equal(got, want) {
			t.Errorf("all by %q:\n%s\nwant\n%s", dimension, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		for _, id := range accounts {
			own, err := s.Usage(t.Context(), id, q)
			if got, want := told(t, own, err), report(bookings, zone, id, dimension); !slices.Equal(got, want) {
				t.Errorf("%s by %q:\n%s\nwant\n%s", id, dimension, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
}

// spender does at random what charges and refunds tokens.
type spender struct {
	random  *rand.Rand
	charges []int64
}

func (p *spender) notes() user.Meta {
	m := map[string]string{}
	if p.random.IntN(4) > 0 {
		m["feature"] = []string{"captions", "ideas", "other", ""}[p.random.IntN(4)]
	}
	if p.random.IntN(3) > 0 {
		m["model"] = []string{"large", "small"}[p.random.IntN(2)]
	}
	return user.Meta{Metadata: m}
}

func (p *spender) act(ctx context.Context, s *user.Service, id string) error {
	var r user.Receipt
	var err error
	switch p.random.IntN(4) {
	case 0, 1:
		r, err = s.Do(ctx, id, user.Consume{Tokens: 1 + p.random.Int64N(50), Meta: p.notes()})
	case 2:
		var held, settled user.ReservationReceipt
		if held, err = s.Reserve(ctx, id, user.Reserve{Tokens: 20, TTL: time.Hour, Meta: p.notes()}); err == nil {
			settled, err = s.Settle(ctx, id, user.Settle{ReservationID: held.Reservation.ID, TokensUsed: p.random.Int64N(30), Meta: p.notes()})
			r = settled.Receipt
		}
	default:
		if len(p.charges) == 0 {
			return nil
		}
		last := len(p.charges) - 1
		_, err = s.Do(ctx, id, user.Refund{EntryID: p.charges[last], Tokens: p.random.Int64N(2)})
		p.charges = p.charges[:last]
	}
	if err == nil && r.Entry != nil && r.Entry.TokensCharged > 0 {
		p.charges = append(p.charges, r.Entry.ID)
	}
	return err
}

func TestUsage_IsWhatTheLedgerAddsUpTo(t *testing.T) {
	t.Parallel()
	const accounts, each = 6, 60
	url := localpgtest.New(t)
	var hours atomic.Int64
	clock := func() time.Time { return now.Add(time.Duration(hours.Load()) * time.Hour) }
	fold, s, store := foldOf(t, url, at(clock))
	other, _, _ := foldOf(t, url, at(clock))
	s.Now = clock
	db := connect(t, url)
	var ids []string
	for i := range accounts {
		ids = append(ids, fmt.Sprint("u", i))
		create(t, store, ids[i], 100_000)
	}
	done, stop := context.WithCancel(t.Context())
	var folding, writing sync.WaitGroup
	for _, f := range []*user.Fold{fold, other} {
		folding.Go(func() {
			for done.Err() == nil {
				if _, err := f.Run(t.Context(), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i, id := range ids {
		writing.Go(func() {
			p := spender{random: rand.New(rand.NewPCG(7, uint64(i)))}
			for range each {
				if err := insist(func() error { return p.act(t.Context(), s, id) }); err != nil {
					t.Error(err)
					return
				}
				hours.Add(p.random.Int64N(2))
			}
		})
	}
	writing.Wait()
	wantUsage(t, s, db, ids...)
	stop()
	folding.Wait()
	wantUsage(t, s, db, ids...)
	folded(t, fold, db)
	wantUsage(t, s, db, ids...)
	wantVerified(t, s)
	t.Run("without the ledger, once it is folded", func(t *testing.T) {
		before, err := s.AllUsage(t.Context(), by("feature"))
		want := told(t, before, err)
		db.Exec("TRUNCATE viralpilot.ledger")
		db.Exec("TRUNCATE viralpilot.usage_days")
		after, err := s.AllUsage(t.Context(), by("feature"))
		if got := told(t, after, err); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func TestFold_CountsOnceWhateverIsLost(t *testing.T) {
	t.Parallel()
	for name, moment := range map[string]localpgtest.Moment{
		"before the commit":               localpgtest.Before("commit"),
		"the answer to the commit":        localpgtest.Answer("commit"),
		"after the position has moved on": localpgtest.Answer("zone = $2"),
		"the lock":                        localpgtest.Answer("SKIP LOCKED"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			proxy := localpgtest.NewProxy(t, url)
			_, s, store := foldOf(t, url)
			db := connect(t, url)
			create(t, store, "u", 100_000)
			p := spender{random: rand.New(rand.NewPCG(1, 2))}
			fold, _, _ := foldOf(t, proxy.URL())
			for round := range 4 {
				for range 20 {
					if err := p.act(t.Context(), s, "u"); err != nil {
						t.Fatal(err)
					}
				}
				lost := proxy.At(moment, localpgtest.Cut, 1+round)
				localpgtest.Await(t, "the connection is lost", func() bool {
					// That it fails is what happens to whoever is killed.
					_, _ = fold.Run(t.Context(), nil)
					return lost.Left() == 0 || localpgtest.Query[bool](db, "SELECT folded_to >= (SELECT max(entry_id) FROM viralpilot.ledger) FROM viralpilot.usage_fold")
				})
				wantUsage(t, s, db, "u")
			}
			again, _, _ := foldOf(t, url)
			folded(t, again, db)
			wantUsage(t, s, db, "u")
			wantVerified(t, s)
		})
	}
}

func TestFold_WaitsForWhatIsCommittedLate(t *testing.T) {
	t.Parallel()
	url := localpgtest.Server(t).URL("postgres")
	fold, s, store := foldOf(t, url)
	db, holder := connect(t, url), connect(t, url)
	create(t, store, "u", 100)
	create(t, store, "late", 100)
	folded(t, fold, db)
	holder.Exec("BEGIN")
	holder.Exec("SELECT FROM viralpilot.userdata WHERE cognito_user_id = 'late' FOR UPDATE")
	holder.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged, top_ups_amount, created_at)
		VALUES ('late', 'consume', -5, 95, 5, 5, -5, $1)`, now)
	do(t, s, "u", user.Consume{Tokens: 3})
	for range 3 {
		if _, err := fold.Run(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	wantUsage(t, s, db, "u") // live, for now
	holder.Exec("COMMIT")
	wantUsage(t, s, db, "u", "late")
	folded(t, fold, db)
	wantUsage(t, s, db, "u", "late")
}

func TestFold_KeepsDaysInTheZoneTheyWereFoldedIn(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	clock := now.Truncate(24 * time.Hour).Add(23 * time.Hour)
	fold, s, store := foldOf(t, url, at(func() time.Time { return clock }))
	db := connect(t, url)
	create(t, store, "u", 100)
	do(t, s, "u", user.Consume{Tokens: 1})
	folded(t, fold, db)
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	fold.Rules.ResetZone, s.Rules.ResetZone = berlin, berlin
	do(t, s, "u", user.Consume{Tokens: 10})
	want := []string{"11-24 1/0 1 entries", "11-25 10/0 1 entries"}
	check := func(t *testing.T) {
		t.Helper()
		got, err := s.Usage(t.Context(), "u", november)
		if days := told(t, got, err); !slices.Equal(days, want) {
			t.Errorf("%q, want %q", days, want)
		}
	}
	check(t)
	folded(t, fold, db)
	check(t)
	if zone := db.lines("SELECT zone FROM viralpilot.usage_fold"); zone != "Europe/Berlin" {
		t.Errorf("the zone is %s", zone)
	}
	t.Run("until they are folded again", func(t *testing.T) {
		if _, err := fold.Again(t.Context(), november.From); err != nil {
			t.Fatal(err)
		}
		want = []string{"11-25 11/0 2 entries"}
		check(t)
		folded(t, fold, db)
		check(t)
	})
}

func TestFold_Again(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	clock := now
	fold, s, store := foldOf(t, url, at(func() time.Time { return clock }))
	db := connect(t, url)
	p := spender{random: rand.New(rand.NewPCG(3, 4))}
	for _, id := range []string{"u", "v"} {
		create(t, store, id, 100_000)
		for range 60 {
			if err := p.act(t.Context(), s, id); err != nil {
				t.Fatal(err)
			}
			clock = clock.Add(time.Hour)
		}
		p.charges = nil
	}
	folded(t, fold, db)
	tiers, err := s.AllUsage(t.Context(), by(user.TierDimension))
	wantTiers := told(t, tiers, err)
	do(t, s, "u", user.ChangeTier{Tier: user.TierBasic})
	db.Exec("UPDATE viralpilot.usage_days SET charged = charged + 1 WHERE day >= '2026-11-26'")
	db.Exec("UPDATE viralpilot.usage_totals SET users = 7, charged = charged - 1 WHERE day >= '2026-11-26' AND dimension <> 'tier'")
	clock = clock.Add(time.Hour)
	do(t, s, "u", user.Consume{Tokens: 4, Meta: notes("feature", "late")}) // not folded yet
	if _, err := fold.Again(t.Context(), time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	if _, err := fold.Again(t.Context(), november.From); !errors.Is(err, user.ErrFoldingAgain) {
		t.Errorf("again while it goes on: %v", err)
	}
	own, err := s.Usage(t.Context(), "u", by("feature"))
	if got, want := told(t, own, err), report(db.bookings(), time.UTC, "u", "feature"); !slices.Equal(got, want) {
		t.Errorf("while it goes on %q, want %q", got, want)
	}
	_, err = s.AllUsage(t.Context(), by("feature"))
	wantError(t, err, user.ErrOverloaded)
	folded(t, fold, db)
	wantUsage(t, s, db, "u", "v")
	wantVerified(t, s)
	tiers, err = s.AllUsage(t.Context(), by(user.TierDimension))
	got := told(t, tiers, err)
	if len(got) < len(wantTiers) || !slices.Equal(got[:len(wantTiers)-1], wantTiers[:len(wantTiers)-1]) || !strings.Contains(got[len(got)-1], "basic:4/0*1") {
		t.Errorf("the tiers are %q, were %q", got, wantTiers)
	}
	t.Run("with a dimension that is new", func(t *testing.T) {
		if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.usage_days WHERE dimension = 'model'"); n == 0 {
			t.Fatal("nothing is told by model")
		}
		db.Exec("DELETE FROM viralpilot.usage_days WHERE dimension = 'model'")
		db.Exec("DELETE FROM viralpilot.usage_totals WHERE dimension = 'model'")
		r, err := s.AllUsage(t.Context(), by("model"))
		for _, day := range told(t, r, err) {
			if !strings.Contains(day, " none:") || strings.Contains(day, "large") {
				t.Errorf("before it is folded: %s", day)
			}
		}
		if _, err := fold.Again(t.Context(), november.From); err != nil {
			t.Fatal(err)
		}
		folded(t, fold, db)
		wantUsage(t, s, db, "u", "v")
	})
	t.Run("not what has been erased", func(t *testing.T) {
		if done, err := s.Erase(t.Context(), "v", ""); err != nil || !done {
			t.Fatal(done, err)
		}
		_, err := fold.Again(t.Context(), november.From)
		if err == nil || !strings.Contains(err.Error(), "erased, up to 2026-11-29") {
			t.Errorf("%v", err)
		}
	})
	t.Run("not what has been archived", func(t *testing.T) {
		db.Exec("UPDATE viralpilot.usage_fold SET archived_before = '2026-11-25'")
		_, err := fold.Again(t.Context(), november.From)
		if err == nil || !strings.Contains(err.Error(), "before 2026-11-25T00:00:00Z have been archived") {
			t.Errorf("%v", err)
		}
	})
}

func TestFold_OutlivesTheArchiveOfEntries(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	fold, s, store := foldOf(t, url)
	db := connect(t, url)
	create(t, store, "u", 1000)
	for range 5 {
		do(t, s, "u", user.Consume{Tokens: 7, Meta: notes("feature", "captions")})
	}
	folded(t, fold, db)
	db.Exec("DELETE FROM viralpilot.ledger WHERE kind = 'consume' AND entry_id < (SELECT max(entry_id) FROM viralpilot.ledger)")
	db.Exec("UPDATE viralpilot.usage_fold SET archived_before = '2026-11-24T10:00:00Z'")
	do(t, s, "u", user.Consume{Tokens: 1, Meta: notes("feature", "ideas")})
	want := []string{"11-24 36/0 6 entries captions:35/0*5 ideas:1/0*1"}
	for range 2 {
		got, err := s.Usage(t.Context(), "u", by("feature"))
		if days := told(t, got, err); !slices.Equal(days, want) {
			t.Errorf("%q, want %q", days, want)
		}
		folded(t, fold, db)
	}
	differences, err := store.UsageDifferences(t.Context(), []string{"u"})
	if err != nil || len(differences) != 0 {
		t.Errorf("%v, %v", differences, err)
	}
}

func TestFold_WhileAccountsAreErased(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	fold, s, store := foldOf(t, url)
	db := connect(t, url)
	const accounts = 12
	for i := range accounts {
		id := fmt.Sprint("ann", i)
		create(t, store, id, 1_000_000)
		db.spent(id, 500)
	}
	before, err := s.AllUsage(t.Context(), by(""))
	want := told(t, before, err)
	want[0] = strings.Split(want[0], " entries")[0]
	done, stop := context.WithCancel(t.Context())
	folding := background(t, func() error {
		for done.Err() == nil {
			if _, err := fold.Run(t.Context(), nil); err != nil {
				return err
			}
		}
		return nil
	})
	var erasing sync.WaitGroup
	for i := range accounts {
		erasing.Go(func() {
			id := fmt.Sprint("ann", i)
			if err := insist(func() error { _, err := s.Erase(t.Context(), id, ""); return err }); err != nil {
				t.Error(id, err)
			}
		})
	}
	erasing.Wait()
	if err := insist(func() error { return s.FinishErases(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-folding; err != nil {
		t.Fatal(err)
	}
	folded(t, fold, db)
	if left := db.lines("SELECT DISTINCT cognito_user_id::text FROM viralpilot.usage_days WHERE cognito_user_id LIKE 'ann%'"); left != "" {
		t.Errorf("usage is kept of %s", left)
	}
	for _, table := range []string{"usage_days", "usage_totals"} {
		if n := localpgtest.Query[int](db, "SELECT sum(entries) FROM viralpilot."+table+" WHERE dimension = ''"); n != accounts*500 {
			t.Errorf("%s has %d entries, want %d", table, n, accounts*500)
		}
	}
	after, err := s.AllUsage(t.Context(), by(""))
	got := told(t, after, err)
	if got[0] = strings.Split(got[0], " entries")[0]; got[0] != want[0] {
		t.Errorf("%q, want %q", got, want)
	}
	wantVerified(t, s)
}

func TestFold_HasRoomForAThousandValues(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	fold, s, store := foldOf(t, url)
	db := connect(t, url)
	create(t, store, "u", 1000)
	grow := func(from, to int) {
		db.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged, top_ups_amount, metadata, created_at)
			SELECT 'u', 'consume', -i, 0, 0, i, 0, jsonb_build_object('feature', 'f' || i), $3 FROM generate_series($1::integer, $2::integer) i`, from, to, now)
	}
	grow(1, 900)
	folded(t, fold, db)
	grow(801, 1200)
	folded(t, fold, db)
	if got := db.lines(`SELECT format('%s values, %s other', count(*), max(entries) FILTER (WHERE value = 'other')) FROM viralpilot.usage_totals WHERE dimension = 'feature'`); got != "1001 values, 200 other" {
		t.Errorf("there are %s", got)
	}
	for name, read := range map[string]func() (user.UsageReport, error){
		"of all":        func() (user.UsageReport, error) { return s.AllUsage(t.Context(), by("feature")) },
		"of an account": func() (user.UsageReport, error) { return s.Usage(t.Context(), "u", by("feature")) },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := read()
			days := told(t, r, err)
			if len(days) != 1 {
				t.Fatalf("%q", days)
			}
			values := strings.Fields(strings.Split(days[0], "entries ")[1])
			values = slices.DeleteFunc(values, func(v string) bool { return !strings.Contains(v, ":") })
			sum := 0
			for _, v := range values {
				var charged int
				if _, err := fmt.Sscanf(v[strings.Index(v, ":")+1:], "%d", &charged); err != nil {
					t.Fatal(err)
				}
				sum += charged
			}
			// From 801 to 900 there are two of each.
			if len(values) != 51 || !strings.HasPrefix(values[0], "f900:1800/0*2") || !strings.HasPrefix(values[50], "other:") {
				t.Errorf("%d values: %q", len(values), values)
			}
			if want := 900*901/2 + (801+1200)*400/2; sum != want {
				t.Errorf("they add up to %d, want %d", sum, want)
			}
		})
	}
}

func TestVerify_HoldsTheUsageAgainstTheLedger(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	fold, s, store := foldOf(t, url)
	db := connect(t, url)
	create(t, store, "u", 1000)
	do(t, s, "u", user.Consume{Tokens: 7, Meta: notes("feature", "captions")})
	folded(t, fold, db)
	do(t, s, "u", user.Consume{Tokens: 2}) // not folded
	wantVerified(t, s)
	for sql, want := range map[string]string{
		"charged = charged + 1 WHERE dimension = ''":        "the usage is kept as 8 tokens charged and 0 refunded by 1 entries, the ledger has 7 and 0 by 1",
		"charged = charged + 1 WHERE dimension = 'feature'": `the usage with the feature "captions" is kept as 8 tokens charged and 0 refunded by 1 entries, the ledger has 7 and 0 by 1`,
		"value = 'ideas' WHERE dimension = 'feature'":       `the usage with the feature "ideas" is kept as 7 tokens charged and 0 refunded by 1 entries, the ledger has 0 and 0 by 0`,
	} {
		t.Run(want, func(t *testing.T) {
			db.Exec("CREATE TEMPORARY TABLE kept AS SELECT * FROM viralpilot.usage_days")
			db.Exec("UPDATE viralpilot.usage_days SET " + sql)
			var got []string
			if _, err := s.Rules.Verify(t.Context(), store, time.Time{}, now, func(d user.Discrepancy) { got = append(got, d.Problem) }); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, []string{want}) {
				t.Errorf("%q, want %q", got, want)
			}
			db.Exec("TRUNCATE viralpilot.usage_days")
			db.Exec("INSERT INTO viralpilot.usage_days SELECT * FROM kept")
			db.Exec("DROP TABLE kept")
		})
	}
}

func TestADistributedLedger(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	db := connect(t, url)
	fold, s, store := foldOf(t, url)
	create(t, store, "u", 100)
	do(t, s, "u", user.Consume{Tokens: 3, Meta: notes("feature", "captions")})
	// What Citus keeps of tables that it has distributed.
	db.Exec("CREATE TABLE public.pg_dist_partition (logicalrel regclass)")
	db.Exec("INSERT INTO public.pg_dist_partition VALUES ('viralpilot.ledger')")
	t.Run("has no feed", func(t *testing.T) {
		_, err := fold.Feed.Page(t.Context(), user.FeedQuery{Limit: 1})
		wantError(t, err, user.ErrNotAvailable)
	})
	t.Run("is not folded", func(t *testing.T) {
		_, err := fold.Run(t.Context(), nil)
		wantError(t, err, user.ErrNotAvailable)
		_, err = fold.Again(t.Context(), november.From)
		wantError(t, err, user.ErrNotAvailable)
	})
	t.Run("tells nothing of all accounts", func(t *testing.T) {
		_, err := s.AllUsage(t.Context(), november)
		wantError(t, err, user.ErrNotAvailable)
	})
	t.Run("tells the usage of each", func(t *testing.T) {
		r, err := s.Usage(t.Context(), "u", by("feature"))
		if got := told(t, r, err); !slices.Equal(got, []string{"11-24 3/0 1 entries captions:3/0*1"}) {
			t.Errorf("%q", got)
		}
	})
	t.Run("that lies in one place has all of it", func(t *testing.T) {
		db.Exec("DELETE FROM public.pg_dist_partition")
		fold, s, _ := foldOf(t, url)
		folded(t, fold, db)
		wantUsage(t, s, db, "u")
	})
}

func TestFoldAgain_WaitsForWhoIsBeingErased(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	fold, s, store := foldOf(t, url)
	db := connect(t, url)
	for _, id := range []string{"u", "zoe"} {
		create(t, store, id, 100)
		do(t, s, id, user.Consume{Tokens: 7, Meta: notes("feature", "captions")})
	}
	folded(t, fold, db)
	all, err := s.AllUsage(t.Context(), by("feature"))
	before := told(t, all, err)
	if _, err := fold.Again(t.Context(), november.From); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Erase(t.Context(), "zoe", ""); done || err != nil {
		t.Errorf("erased while days are made again: %t, %v", done, err)
	}
	if err := s.FinishErases(t.Context()); err != nil {
		t.Error(err)
	}
	if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger WHERE cognito_user_id = 'zoe'"); n == 0 {
		t.Error("entries have been moved while days are made again")
	}
	folded(t, fold, db)
	if err := insist(func() error { return s.FinishErases(t.Context()) }); err != nil {
		t.Error(err)
	}
	_, err = s.Account(t.Context(), "zoe")
	wantError(t, err, user.ErrUserNotFound)
	all, err = s.AllUsage(t.Context(), by("feature"))
	if after := told(t, all, err); !slices.Equal(after, before) {
		t.Errorf("%q, was %q", after, before)
	}
	wantVerified(t, s)
	if _, err := fold.Again(t.Context(), november.From); err == nil || !strings.Contains(err.Error(), "erased") {
		t.Errorf("days of an erased account are made again: %v", err)
	}
}

func TestFoldAgain_AfterAChangeOfTheZone(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	clock := time.Date(2026, 11, 20, 23, 30, 0, 0, time.UTC)
	fold, s, store := foldOf(t, url, at(func() time.Time { return clock }))
	db := connect(t, url)
	create(t, store, "u", 100)
	for range 4 {
		do(t, s, "u", user.Consume{Tokens: 1})
		clock = clock.Add(24 * time.Hour)
	}
	folded(t, fold, db)
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	fold.Rules.ResetZone, s.Rules.ResetZone = berlin, berlin
	day := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	refused := func(d int) {
		t.Helper()
		if _, err := fold.Again(t.Context(), day(d)); err == nil || !strings.Contains(err.Error(), "from a day before 2026-11-19 on") {
			t.Errorf("from the %dth on: %v", d, err)
		}
	}
	refused(22)
	do(t, s, "u", user.Consume{Tokens: 1})
	folded(t, fold, db)
	for _, d := range []int{19, 22, 24} {
		refused(d)
	}
	if _, err := fold.Again(t.Context(), day(27)); err != nil { // behind them all
		t.Error(err)
	}
	folded(t, fold, db)
	if _, err := fold.Again(t.Context(), day(18)); err != nil {
		t.Error(err)
	}
	folded(t, fold, db)
	wantUsage(t, s, db, "u")
	if _, err := fold.Again(t.Context(), day(22)); err != nil { // all are of one zone now
		t.Error(err)
	}
	folded(t, fold, db)
	wantUsage(t, s, db, "u")
}
