package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

// feedOf returns the feed of a replica of its own, which is closed when the test has ended.
func feedOf(t *testing.T, url string, change ...func(*postgres.Options)) (*user.Feed, *postgres.Store) {
	t.Helper()
	store := open(t, url, change...)
	feed := user.NewFeed(store)
	t.Cleanup(feed.Close)
	return feed, store
}

// follow reads the feed from its beginning up to the last id and returns the ids of the entries, and how many pages it took.
func follow(ctx context.Context, feed *user.Feed, q user.FeedQuery, last func() int64) (ids []int64, pages int, err error) {
	for ; q.After < last(); pages++ {
		if _, err := feed.Wait(ctx, q.After, time.Now().Add(patience)); err != nil {
			return nil, 0, err
		}
		page, err := feed.Page(ctx, q)
		if err != nil {
			return nil, 0, err
		}
		if page.Next < q.After {
			return nil, 0, fmt.Errorf("the feed goes back from %d to %d", q.After, page.Next)
		}
		for _, e := range page.Entries {
			ids = append(ids, e.ID)
		}
		q.After = page.Next
	}
	return ids, pages, nil
}

// failing makes the commit of every eighth entry fail, after its id was drawn.
const failing = `
	CREATE FUNCTION fail_some() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.entry_id % 8 = 0 AND NEW.kind = 'consume' THEN RAISE EXCEPTION 'not this one'; END IF;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER fail_some AFTER INSERT ON viralpilot.ledger DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION fail_some()`

const insertHeld = `INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
	SELECT 'held', 'top_up', 0, 0, 0, 0, now() FROM generate_series(1, 3)`

func TestFeed_HasEveryEntryOnceInOneOrder(t *testing.T) {
	t.Parallel()
	const writers, each, rounds = 10, 60, 8
	url := localpgtest.New(t)
	feedA, storeA := feedOf(t, url)
	feedB, storeB := feedOf(t, url)
	stores, db := []*postgres.Store{storeA, storeB}, connect(t, url)
	for i := range writers {
		create(t, storeA, fmt.Sprint("u", i), 10*each)
	}
	create(t, storeA, "held", 1)
	db.Exec(failing)

	// The end is known once all have written; until then there is always more to come.
	var end atomic.Int64
	end.Store(1 << 62)
	var readers, writing sync.WaitGroup
	passes := make([][]int64, 3)
	for i, feed := range []*user.Feed{feedA, feedB, feedA} {
		readers.Go(func() {
			var err error
			if passes[i], _, err = follow(t.Context(), feed, user.FeedQuery{Limit: 20 + 30*i}, end.Load); err != nil {
				t.Error(err)
			}
		})
	}
	var written atomic.Int64
	for i := range writers {
		writing.Go(func() {
			for range each {
				_, err := stores[i%2].Update(t.Context(), user.Ref{AccountID: fmt.Sprint("u", i)}, spend(""))
				if known := (*user.Error)(nil); errors.As(err, &known) {
					t.Error(err)
					return
				}
				written.Add(1)
			}
		})
	}
	// A transaction that has drawn ids, and waits for others that draw theirs later and commit, ends well or badly.
	holder := connect(t, url)
	for round := range rounds {
		holder.Exec("BEGIN")
		holder.Exec("SELECT FROM viralpilot.userdata WHERE cognito_user_id = 'held' FOR UPDATE")
		holder.Exec(insertHeld)
		enough := min(written.Load()+40, writers*each)
		localpgtest.Await(t, "others have written", func() bool { return written.Load() >= enough })
		if round%2 == 0 {
			db.Exec("VACUUM viralpilot.ledger")
		}
		holder.Exec([]string{"COMMIT", "COMMIT", "ROLLBACK"}[round%3])
	}
	writing.Wait()
	db.Exec("DROP TRIGGER fail_some ON viralpilot.ledger")
	create(t, storeB, "last", 1)
	want := db.ids()
	end.Store(want[len(want)-1])
	readers.Wait()
	if len(want) < writers*each*3/4 {
		t.Fatalf("only %d entries were written", len(want))
	}
	for i, got := range passes {
		if !slices.Equal(got, want) {
			t.Errorf("reader %d has %d entries of %d in its pass; lost %v", i, len(got), len(want), missing(want, got))
		}
	}
}

// ids are those of all entries, in their order.
func (d database) ids() []int64 {
	d.T.Helper()
	rows, err := d.Conn.Query(d.T.Context(), "SELECT entry_id FROM viralpilot.ledger ORDER BY entry_id")
	if err != nil {
		d.T.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		d.T.Fatal(err)
	}
	return ids
}

func missing(want, got []int64) (ids []int64) {
	for _, id := range want {
		if !slices.Contains(got, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// TestFeed_KeepsBackWhatMayHaveEntriesBeforeIt has a server of its own: a transaction that is open in any database counts.
func TestFeed_KeepsBackWhatMayHaveEntriesBeforeIt(t *testing.T) {
	t.Parallel()
	url := localpgtest.Server(t).URL("postgres")
	feed, store := feedOf(t, url)
	after, err := feed.Latest(t.Context())
	if err != nil || after != 0 {
		t.Fatalf("the end of an empty ledger is %d, %v", after, err)
	}
	// next returns the accounts of the entries that came.
	next := func(t *testing.T) (accounts []string) {
		t.Helper()
		page, err := feed.Page(t.Context(), user.FeedQuery{After: after, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			accounts = append(accounts, e.AccountID)
		}
		after = page.Next
		return accounts
	}
	wantNext := func(t *testing.T, want ...string) {
		t.Helper()
		if got := next(t); !slices.Equal(got, want) {
			t.Errorf("entries of %v come, want %v", got, want)
		}
	}
	create(t, store, "u", 5)
	t.Run("not the first of all", func(t *testing.T) { wantNext(t, "u") })

	holder := connect(t, url)
	holder.Exec("BEGIN")
	holder.Exec("INSERT INTO viralpilot.userdata (cognito_user_id) VALUES ('held')")
	holder.Exec(insertHeld)
	if _, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend("")); err != nil {
		t.Fatal(err)
	}
	t.Run("an entry after those of a transaction that is open", func(t *testing.T) {
		if wantNext(t); feed.Lag() == 0 {
			t.Error("there is no lag")
		}
	})
	t.Run("on a replica that starts now, which does not guess where the end is", func(t *testing.T) {
		other, _ := feedOf(t, url)
		_, err := other.Latest(t.Context())
		wantError(t, err, user.ErrOverloaded)
	})
	holder.Exec("COMMIT")
	t.Run("until it has ended", func(t *testing.T) {
		if moved, err := feed.Wait(t.Context(), after, time.Now().Add(patience)); !moved || err != nil {
			t.Errorf("moved %t, %v", moved, err)
		}
		wantNext(t, "held", "held", "held", "u")
		localpgtest.Await(t, "there is no lag", func() bool { return feed.Lag() == 0 })
	})
}

func TestFeed_OfOneKindMovesOnOverOthers(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	feed, store := feedOf(t, url)
	for i := range 5 {
		id := fmt.Sprint("u", i)
		create(t, store, id, 5)
		for range 5 {
			if _, err := store.Update(t.Context(), user.Ref{AccountID: id}, spend("")); err != nil {
				t.Fatal(err)
			}
		}
	}
	q := user.FeedQuery{Kind: user.KindTopUp, Limit: 2}
	got, pages, err := follow(t.Context(), feed, q, func() int64 { return 30 })
	if want := []int64{1, 7, 13, 19, 25}; err != nil || !slices.Equal(got, want) || pages < 7 {
		t.Errorf("top-ups %v on %d pages, want %v; %v", got, pages, want, err)
	}
}

// growLedger adds entries of the account load, with that much metadata.
func (d database) growLedger(entries, width int) {
	d.T.Helper()
	d.Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, metadata, created_at)
		SELECT 'load', 'consume', -1, 0, 0, 0, CASE WHEN $2 > 0 THEN jsonb_build_object('note', repeat('x', $2::integer)) END, now()
		FROM generate_series(1, $1::integer)`, entries, width)
}

// blocks are the pages of the database that one page of the feed reads.
func (d database) blocks(after int64, limit int) int {
	d.T.Helper()
	var plan []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
			Rows int `json:"Actual Rows"`
		}
	}
	var text string
	err := d.Conn.QueryRow(d.T.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+postgres.SelectFeed, pgx.QueryExecModeCacheDescribe,
		after, after+2*int64(limit), "", limit).Scan(&text)
	if err == nil {
		err = json.Unmarshal([]byte(text), &plan)
	}
	if err != nil {
		d.T.Fatal(err)
	}
	if plan[0].Plan.Rows != limit {
		d.T.Fatalf("a page after %d has %d rows", after, plan[0].Plan.Rows)
	}
	return plan[0].Plan.Hit + plan[0].Plan.Read
}

func TestFeed_PageCostsWhatThePageCosts(t *testing.T) {
	t.Parallel()
	const limit = 200
	db := connect(t, localpgtest.New(t))
	pages := func() int {
		return localpgtest.Query[int](db, "SELECT pg_relation_size('viralpilot.ledger') / current_setting('block_size')::integer")
	}
	// worst is the most pages that one of the feed reads, after the first so many entries.
	worst := func(from int64) (most int) {
		db.Exec("VACUUM ANALYZE viralpilot.ledger")
		last := localpgtest.Query[int64](db, "SELECT max(entry_id) FROM viralpilot.ledger")
		for i := range int64(20) {
			most = max(most, db.blocks(from+(last-2*limit-from)*i/20, limit))
		}
		return most
	}
	db.growLedger(40_000, 0)
	fresh, size := worst(10_000), pages()
	// Old entries are removed here and there, and what VACUUM has freed is filled with new ones of other widths.
	db.Exec("DELETE FROM viralpilot.ledger WHERE entry_id BETWEEN 2000 AND 30000 AND entry_id / 1000 % 2 = 0 AND entry_id % 3 = 0")
	db.Exec("VACUUM viralpilot.ledger")
	for i := range 10 {
		db.growLedger(400, 40*i)
	}
	db.growLedger(80_000, 100)
	spoilt, grown := worst(10_000), pages()
	t.Logf("a page of %d entries reads %d of %d pages, later %d of %d", limit, fresh, size, spoilt, grown)
	if fresh > size/4 || spoilt > grown/8 {
		t.Errorf("a page of the feed reads %d pages of %d, and read %d of %d before the ledger grew", spoilt, grown, fresh, size)
	}
}

func TestMigrations_LedgerHasIndexesOfSeveralRanges(t *testing.T) {
	t.Parallel()
	db := connect(t, localpgtest.New(t))
	got := db.lines(`SELECT indexdef FROM pg_indexes WHERE indexname IN ('ledger_ids', 'ledger_time') ORDER BY indexname`)
	for _, want := range []string{"int8_minmax_multi_ops", "timestamptz_minmax_multi_ops"} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no index by %s:\n%s", want, got)
		}
	}
}

func TestFeed_ReadsEveryColumn(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	feed, store := feedOf(t, url)
	s := service(t, store)
	create(t, store, "u\u00fc", 1000)
	charge := do(t, s, "u\u00fc", user.Consume{Tokens: 9, Meta: user.Meta{
		IdempotencyKey: "k", Actor: "postpilot", Metadata: map[string]string{"model": "a b", "note": "c, \"d\": é"},
	}})
	do(t, s, "u\u00fc", user.Refund{EntryID: charge.Entry.ID, Tokens: 4, Meta: user.Meta{Actor: "postpilot"}})
	if _, err := s.Reserve(t.Context(), "u\u00fc", user.Reserve{Tokens: 5, Meta: user.Meta{Actor: "other"}}); err != nil {
		t.Fatal(err)
	}
	do(t, s, "u\u00fc", user.ChangeTier{Tier: user.TierTester})
	// As the earlier version wrote it.
	connect(t, url).Exec(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, created_at)
		VALUES ('uü', 'refund', 3, 2147483647, 0, NULL, '1999-12-31T23:59:59.999999Z')`)
	want, _, err := store.Entries(t.Context(), "u\u00fc", user.EntryQuery{Limit: 100})
	if err != nil || len(want) != 6 {
		t.Fatalf("%d entries in the ledger, %v", len(want), err)
	}
	slices.Reverse(want)
	var page user.FeedPage
	// A transaction of another test may keep the feed waiting.
	localpgtest.Await(t, "all entries are in the feed", func() bool {
		page, err = feed.Page(t.Context(), user.FeedQuery{Limit: 100})
		return err != nil || len(page.Entries) == len(want)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range page.Entries {
		if got.AccountID != "u\u00fc" {
			t.Errorf("an entry of %q", got.AccountID)
		}
		for _, stored := range []struct {
			text []byte
			into any
		}{{got.StoredMetadata, &got.Metadata}, {got.StoredChanges, &got.Changes}} {
			if stored.text != nil {
				if err := json.Unmarshal(stored.text, stored.into); err != nil {
					t.Error(err)
				}
			}
		}
		want[i].Period, want[i].CommandHash = nil, nil
		if !reflect.DeepEqual(got.Entry, want[i]) {
			t.Errorf("the feed has\n%+v, the ledger\n%+v", got.Entry, want[i])
		}
	}
}
