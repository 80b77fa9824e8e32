//go:build faults

package main_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user/historytest"
)

func TestTwoReplicasWhenAMonthBeginsUnderLoadGrantOnce(t *testing.T) {
	const idle, topUp = 20, 5
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	a, b := serve(t, env...), serve(t, env...)
	for i := range richAccounts {
		a.tester(fmt.Sprint("rich-", i))
	}
	for i := range idle {
		id := fmt.Sprint("idle-", i)
		a.tester(id)
		if _, _, err := a.call(http.StatusOK, http.MethodPost, "/user/"+id+"/add-tokens", fmt.Sprintf(`{"tokens_to_add": %d}`, topUp), ""); err != nil {
			t.Fatal(err)
		}
	}
	load := startClients(t, 16, a, b)
	load.awaitMore(200)
	db := connect(t, dsn)
	var edits []*historytest.Operation
	for _, id := range load.history.Accounts() {
		edit := load.history.Call(id, historytest.Edit(historytest.MonthEnds))
		edit.Send()
		edits = append(edits, edit)
	}
	db.Exec(`BEGIN; UPDATE viralpilot.userdata SET last_token_reset_date = last_token_reset_date - interval '1 month';
		UPDATE viralpilot.account_state SET granted_period = granted_period - 1; COMMIT`)
	for _, edit := range edits {
		edit.Answered(historytest.Answer{})
	}
	var touching sync.WaitGroup
	for i := range idle {
		for _, s := range []*service{a, b} {
			touching.Go(func() {
				code, status, err := s.call(0, http.MethodGet, fmt.Sprintf("/user/idle-%d/status", i), "", "")
				for err == nil && status["code"] == "overloaded" { // on a busy machine, while the other replica has the row
					code, status, err = s.call(0, http.MethodGet, fmt.Sprintf("/user/idle-%d/status", i), "", "")
				}
				if err != nil || code != http.StatusOK || status["tokens_remaining"] != 1000.0+topUp || status["top_up_tokens"] != float64(topUp) {
					t.Errorf("idle-%d: %v %v", i, status, err)
				}
			})
		}
	}
	touching.Wait()
	load.awaitMore(400)
	load.onlyAnswers("200", "insufficient_tokens", "overloaded")
	load.check(db, env)

	resets := db.counts(`SELECT cognito_user_id, count(*) FROM viralpilot.ledger WHERE kind = 'monthly_reset' GROUP BY 1`)
	balances := db.counts("SELECT cognito_user_id, tokens_remaining FROM viralpilot.userdata WHERE subscription_tier = 'tester'")
	if len(balances) != richAccounts+idle {
		t.Errorf("%d testers", len(balances))
	}
	for id := range balances {
		if resets[id] != 1 {
			t.Errorf("%s has %d resets", id, resets[id])
		}
	}
	// The allowance goes first: what was taken from the top-ups is what a month's consumes exceed it by.
	const consumes = `SELECT l.cognito_user_id, count(*) FROM viralpilot.ledger l JOIN viralpilot.ledger r USING (cognito_user_id)
		WHERE l.kind = 'consume' AND r.kind = 'monthly_reset' AND l.entry_id %s r.entry_id GROUP BY 1`
	before, after := db.counts(fmt.Sprintf(consumes, "<")), db.counts(fmt.Sprintf(consumes, ">"))
	for i := range richAccounts {
		id := fmt.Sprint("rich-", i)
		if before[id] == 0 || after[id] == 0 {
			t.Errorf("%s has %d consumes before the reset and %d after it", id, before[id], after[id])
		}
		if want := 100_000_000 - max(0, before[id]-1000) + 1000 - after[id]; balances[id] != want {
			t.Errorf("%s has %d tokens, want %d", id, balances[id], want)
		}
	}
	a.stopped()
	b.stopped()
}

func TestAClockThatGoesBackAMonth(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	for i := range richAccounts {
		s.tester(fmt.Sprint("rich-", i))
	}
	load := startClients(t, 16, s)
	load.awaitMore(200)
	db := connect(t, dsn)
	// What was written an hour ago by a clock that was a month ahead.
	db.Exec(`UPDATE viralpilot.userdata SET last_token_reset_date = last_token_reset_date + interval '1 month',
		created_at = created_at + interval '1 month', updated_at = updated_at + interval '1 month'`)
	db.Exec("UPDATE viralpilot.ledger SET created_at = created_at + interval '1 month'")
	const dates = "SELECT cognito_user_id, extract(epoch FROM last_token_reset_date)::bigint FROM viralpilot.userdata"
	before, newest := db.counts(dates), db.counts("SELECT cognito_user_id, max(entry_id) FROM viralpilot.ledger GROUP BY 1")
	load.awaitMore(200)
	s.stopped()
	s = serve(t, append(env, "SERVICE_PORT="+s.port)...)
	load.recovered()
	for i := range richAccounts {
		id := fmt.Sprint("rich-", i)
		for _, path := range []string{"", "/status", "/ledger?limit=200", "/usage"} {
			if _, _, err := s.call(http.StatusOK, http.MethodGet, "/user/"+id+path, "", ""); err != nil {
				t.Error(err)
			}
		}
	}
	load.check(db, env)

	if n := db.number("SELECT count(*) FROM viralpilot.ledger WHERE kind = 'monthly_reset'"); n != 0 {
		t.Errorf("%d resets", n)
	}
	after := db.counts(dates)
	for id, date := range before {
		if after[id] < date {
			t.Errorf("%s was last reset at %d and then at %d", id, date, after[id])
		}
	}
	// What came later has the greater id: the chain of balances, which verify has followed, would break otherwise.
	grown := db.counts("SELECT cognito_user_id, max(entry_id) FROM viralpilot.ledger GROUP BY 1")
	for i := range richAccounts {
		id := fmt.Sprint("rich-", i)
		if grown[id] <= newest[id] {
			t.Errorf("%s: the newest entry was %d and is %d", id, newest[id], grown[id])
		}
	}
	s.stopped()
}

func TestADatabaseOfANewerVersionWithRowsNobodyExpects(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	s.tester("moved")
	s.stopped()
	db := connect(t, dsn)
	db.Exec("INSERT INTO viralpilot.goose_db_version (version_id, is_applied) VALUES (9999, true)")
	db.Exec("ALTER TABLE viralpilot.userdata ADD COLUMN of_the_newer TEXT")
	db.Exec("ALTER TABLE viralpilot.ledger ADD COLUMN of_the_newer TEXT")
	db.Exec("UPDATE viralpilot.userdata SET subscription_tier = 'platinum', of_the_newer = 'x'")
	db.Exec(`INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, tokens_remaining, subscription_renewal_date, last_token_reset_date)
		VALUES ('platinum', 'platinum', 7, NULL, NULL), ('dateless', 'tester', 7, NULL, NULL), ('empty', 'platinum', 0, NULL, NULL)`)
	run(t, t.TempDir(), env, "migrate").want(t, 0)

	s = serve(t, env...)
	load := startClients(t, 8, s)
	load.awaitMore(50)
	for _, id := range []string{"moved", "platinum", "dateless", "empty"} {
		call := func(want int, method, path, body string) map[string]any {
			t.Helper()
			_, answer, err := s.call(want, method, path, body, "")
			if err != nil {
				t.Errorf("%s %s: %v", method, path, err)
			}
			return answer
		}
		user := "/user/" + id
		call(http.StatusOK, http.MethodGet, user, "")
		call(http.StatusOK, http.MethodGet, user+"/status", "")
		call(http.StatusPaymentRequired, http.MethodPost, user+"/consume-tokens", `{"tokens_to_consume": 1000000}`)
		call(http.StatusOK, http.MethodPost, user+"/add-tokens", `{"tokens_to_add": 5}`)
		load.run("consume of "+id, &command{account: id, keyed: true}, 0)
		held := call(http.StatusCreated, http.MethodPost, user+"/reservations", `{"tokens": 2}`)
		call(http.StatusOK, http.MethodPost, fmt.Sprintf("%s/reservations/%v/release", user, held["reservation_id"]), "")
		call(http.StatusOK, http.MethodPatch, user, `{"email": "u@example.com"}`)
		call(http.StatusBadRequest, http.MethodPut, user+"/tier", `{"tier": "platinum"}`)
		call(http.StatusOK, http.MethodGet, user+"/ledger", "")
		call(http.StatusOK, http.MethodGet, user+"/usage", "")
	}
	for _, path := range []string{"/users", "/users?tier=platinum", "/users?q=plat", "/tiers"} {
		if _, _, err := s.call(http.StatusOK, http.MethodGet, path, "", ""); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	s.lives(http.StatusOK)
	load.onlyAnswers("200", "insufficient_tokens")
	load.check(db, env)
	s.stopped()
	if n := db.number("SELECT max(version_id) FROM viralpilot.goose_db_version"); n != 9999 {
		t.Errorf("the schema is of version %d", n)
	}
}
