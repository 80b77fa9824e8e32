package app_test

import (
	"fmt"
	"maps"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// pair is two replicas on one database.
func pair(t *testing.T, change ...func(*config.Config)) (replicas [2]*replica, c client, db database) {
	t.Helper()
	url := localpgtest.New(t)
	return [2]*replica{start(t, url, change...), start(t, url, change...)}, newClient(t), connect(t, url)
}

// spend sends n consumes of one token from 64 clients to both replicas and returns how many were charged. Every other
// one has to be refused for lack of tokens.
func spend(c client, replicas [2]*replica, id string, n int) (charged int64) {
	var ok atomic.Int64
	each(n, 64, func(i int) {
		a, err := c.insist(http.MethodPost, replicas[i%2].url+"/user/"+id+"/consume-tokens", `{"tokens_to_consume": 1}`)
		switch {
		case err == nil && a.Status == http.StatusOK:
			ok.Add(1)
		case err != nil || a.Status != http.StatusPaymentRequired || a.code() != "insufficient_tokens":
			c.t.Errorf("consume: %d %v %v", a.Status, a.Body, err)
		}
	})
	return ok.Load()
}

func TestClientsOfTwoReplicasSpendWhatIsThereAndNotOneTokenMore(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	c.tester(replicas[0], "u")
	if charged := spend(c, replicas, "u", 2000); charged != 1000 {
		t.Errorf("%d of 1000 tokens were spent", charged)
	}
	if n := db.count("u", "consume"); n != 1000 {
		t.Errorf("%d entries", n)
	}
	if a := c.do(http.StatusOK, http.MethodGet, replicas[1].url+"/user/u", ""); a.Body["tokens_remaining"] != 0.0 || a.Body["tokens_used_this_month"] != 1000.0 {
		t.Errorf("account %v", a.Body)
	}
	db.checkBooks()
}

// lastMonth makes a reset due.
const lastMonth = `UPDATE viralpilot.account_state SET granted_period = granted_period - 1;
	UPDATE viralpilot.userdata SET last_token_reset_date = last_token_reset_date - interval '35 days'`

func TestAResetThatIsDueUnderLoadGrantsOnceAndKeepsTopUps(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	c.tester(replicas[0], "u")
	c.do(http.StatusOK, http.MethodPost, replicas[0].url+"/user/u/add-tokens", `{"tokens_to_add": 50}`)
	c.do(http.StatusOK, http.MethodPost, replicas[0].url+"/user/u/consume-tokens", `{"tokens_to_consume": 700}`)
	db.Exec(lastMonth)
	if charged := spend(c, replicas, "u", 1100); charged != 1050 {
		t.Errorf("%d tokens were spent of 1000 granted and 50 top-ups", charged)
	}
	if n := db.count("u", "monthly_reset"); n != 1 {
		t.Errorf("%d resets", n)
	}
	db.Exec(lastMonth)
	if a := c.do(http.StatusOK, http.MethodGet, replicas[1].url+"/user/u", ""); a.Body["tokens_remaining"] != 1000.0 {
		t.Errorf("a month later, the top-ups spent: %v", a.Body)
	}
	db.checkBooks()
}

func TestReadsThatFindAResetDueGrantOnce(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	c.tester(replicas[0], "u")
	db.Exec(lastMonth)
	each(100, 32, func(i int) {
		path := [...]string{"/user/u", "/user/u/status", "/user/u/ledger"}[i%3]
		if a, err := c.insist(http.MethodGet, replicas[i%2].url+path, ""); err != nil || a.Status != http.StatusOK {
			t.Errorf("%s: %d %v", path, a.Status, err)
		}
	})
	if n := db.count("u", "monthly_reset"); n != 1 {
		t.Errorf("%d resets", n)
	}
	db.checkBooks()
}

func TestFirstRequestsMakeOneAccount(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	const requests = 200
	created := make([]any, requests)
	each(requests, 64, func(i int) {
		a, err := c.insist(http.MethodGet, replicas[i%2].url+"/user/new", "")
		if err != nil || a.Status != http.StatusOK {
			t.Errorf("%d %v %v", a.Status, a.Body, err)
		}
		created[i] = a.Body["created_at"]
	})
	for _, at := range created {
		if at == nil || at != created[0] {
			t.Errorf("created at %v and at %v", created[0], at)
		}
	}
	for _, table := range []string{"userdata", "account_state"} {
		if n := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot."+table); n != 1 {
			t.Errorf("%d rows in %s", n, table)
		}
	}
}

func TestAKeySentManyTimesCountsOnceAndIsAnsweredAlike(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	c.tester(replicas[0], "u")
	const keys, times = 10, 20
	answers, replayed := make([]answer, keys*times), make([]atomic.Int64, keys)
	each(keys*times, 40, func(i int) {
		a, err := c.insist(http.MethodPost, replicas[i%2].url+"/user/u/consume-tokens", `{"tokens_to_consume": 7}`,
			"Idempotency-Key", fmt.Sprint("key-", i/times))
		if err != nil || a.Status != http.StatusOK {
			t.Errorf("%d %v %v", a.Status, a.Body, err)
		}
		if a.Header.Get("Idempotency-Replayed") == "true" {
			replayed[i/times].Add(1)
		}
		delete(a.Body, "updated_at") // as it is now: other keys move it
		answers[i] = a
	})
	entries := map[any]bool{}
	for i, a := range answers {
		if first := answers[i/times*times]; !maps.Equal(a.Body, first.Body) {
			t.Errorf("key %d was answered with %v and %v", i/times, first.Body, a.Body)
		}
		entries[a.Body["entry_id"]] = true
	}
	for key := range replayed {
		if n := replayed[key].Load(); n != times-1 {
			t.Errorf("key %d: %d of %d answers are marked as repeated", key, n, times)
		}
	}
	if n := db.count("u", "consume"); n != keys || len(entries) != keys {
		t.Errorf("%d entries in the ledger, %d in the answers", n, len(entries))
	}
	if used := localpgtest.Query[int](db, "SELECT tokens_used_this_month FROM viralpilot.userdata"); used != 7*keys {
		t.Errorf("%d tokens used", used)
	}
	db.checkBooks()
}
