package postgres_test

import (
	"fmt"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

// While the first update of an account waits for its commit, other accounts go on; the account's own updates follow in
// the order in which they came, whatever becomes of the first.
func TestStoreUpdate_OrderOfAnAccount(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// first is what happens to the commit of the first update, and end what lets it go on or fail.
		first string
		end   func(db database, open func())
		// fails is true when the first update is to fail, and ledger what the consumes took in the order of the ledger.
		fails  bool
		ledger string
	}{
		"after a commit that took long": {
			end:    func(_ database, open func()) { open() },
			ledger: "-1 -2 -3 -4",
		},
		"after a commit that failed": {
			first: `CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
				CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON viralpilot.ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
					WHEN (NEW.amount = -1) EXECUTE FUNCTION fail()`,
			end:    func(_ database, open func()) { open() },
			fails:  true,
			ledger: "-2 -3 -4",
		},
		"after a commit of unknown outcome, which is run again": {
			end: func(db database, open func()) {
				db.Exec("UPDATE gate SET shut = false")
				db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND wait_event = 'PgSleep'`)
			},
			ledger: "-1 -2 -3 -4",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := localpgtest.New(t)
			store, db := open(t, url), connect(t, url)
			service := service(t, store)
			create(t, store, "u", 100)
			create(t, store, "other", 100)
			if test.first != "" {
				db.Exec(test.first)
			}
			openGate := db.Gate()
			consume := func(n int) <-chan error {
				return background(t, func() error {
					_, err := service.Do(t.Context(), "u", user.Consume{Tokens: int64(n), Meta: user.Meta{IdempotencyKey: fmt.Sprint("key-", n)}})
					return err
				})
			}
			first := consume(1)
			db.AwaitGated()
			var rest []<-chan error
			for n := 2; n <= 4; n++ {
				rest = append(rest, consume(n))
				localpgtest.Await(t, "the update waits", func() bool { return store.Queued() == n-1 })
			}
			if _, err := service.Do(t.Context(), "other", user.Consume{Tokens: 10}); err != nil {
				t.Errorf("another account: %v", err)
			}
			if n := store.Queued(); n != 3 {
				t.Errorf("%d updates wait for the first", n)
			}
			test.end(db, openGate)
			if err := <-first; (err != nil) != test.fails {
				t.Errorf("the first update: %v", err)
			}
			for _, done := range rest {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if got := db.lines(`SELECT string_agg(amount::text, ' ' ORDER BY entry_id) FROM viralpilot.ledger
				WHERE cognito_user_id = 'u' AND kind = 'consume'`); got != test.ledger {
				t.Errorf("the ledger has %s, want %s", got, test.ledger)
			}
			if got := db.lines(`SELECT (sum(amount) = (SELECT tokens_remaining FROM viralpilot.userdata WHERE cognito_user_id = 'u'))::text
				FROM viralpilot.ledger WHERE cognito_user_id = 'u'`); got != "true" {
				t.Error("the balance is not the sum of the ledger")
			}
		})
	}
}
