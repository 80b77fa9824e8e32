package app_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// hold reserves tokens; it is "" when they are not there.
func (c client) hold(r *replica, id string, tokens int) string {
	c.t.Helper()
	a, err := c.insist(http.MethodPost, r.url+"/user/"+id+"/reservations", fmt.Sprintf(`{"tokens": %d}`, tokens))
	switch {
	case err == nil && a.Status == http.StatusCreated:
		return a.Body["reservation_id"].(string)
	case err != nil || a.Status != http.StatusPaymentRequired:
		c.t.Errorf("reserve: %d %v %v", a.Status, a.Body, err)
	}
	return ""
}

func (c client) settle(r *replica, id, reservation string, tokens int) (answer, error) {
	c.t.Helper()
	return c.insist(http.MethodPost, r.url+"/user/"+id+"/reservations/"+reservation+"/settle", fmt.Sprintf(`{"tokens_used": %d}`, tokens))
}

func TestClientsThatReserveNeverHoldOrSpendMoreThanThereIs(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	c.tester(replicas[0], "u")
	// Each round, 64 clients reserve until nothing is left; then all that is held is settled for anything up to twice
	// the estimate, while others go on reserving.
	var open, charged atomic.Int64
	watch := func() {
		if n := open.Load(); n > 100 {
			t.Errorf("%d open holds of 10 tokens on an account of 1000", n)
		}
	}
	held := make(chan string, 10_000)
	each(200, 64, func(i int) {
		if id := c.hold(replicas[i%2], "u", 10); id != "" {
			open.Add(1)
			held <- id
		}
		watch()
	})
	if n := open.Load(); n != 100 {
		t.Errorf("200 requests were granted %d holds of 10 of 1000 tokens", n)
	}
	if n := localpgtest.Query[int](db, "SELECT tokens_reserved FROM viralpilot.account_state"); n != 1000 {
		t.Errorf("%d tokens are held", n)
	}
	close(held)
	list := make([]string, 0, len(held))
	for id := range held {
		list = append(list, id)
	}
	each(2*len(list), 64, func(i int) {
		if i%2 == 1 { // settling frees tokens for others
			if id := c.hold(replicas[0], "u", 10); id != "" {
				if a, err := c.insist(http.MethodPost, replicas[1].url+"/user/u/reservations/"+id+"/release", ""); err != nil || a.Status != http.StatusOK {
					t.Errorf("release: %d %v %v", a.Status, a.Body, err)
				}
			}
			return
		}
		used := rand.IntN(21)
		a, err := c.settle(replicas[0], "u", list[i/2], used)
		if err != nil || a.Status != http.StatusOK {
			t.Errorf("settle: %d %v %v", a.Status, a.Body, err)
			return
		}
		got, short := a.Body["tokens_charged"].(float64), a.Body["shortfall"].(float64)
		if int(got+short) != used {
			t.Errorf("settled for %d: charged %v, shortfall %v", used, got, short)
		}
		charged.Add(int64(got))
	})
	if n := charged.Load(); n > 1000 {
		t.Errorf("%d of 1000 tokens were charged", n)
	}
	if a := c.do(http.StatusOK, http.MethodGet, replicas[0].url+"/user/u/status", ""); a.Body["tokens_reserved"] != 0.0 ||
		a.Body["tokens_used_this_month"] != float64(charged.Load()) || a.Body["tokens_remaining"] != float64(1000-charged.Load()) {
		t.Errorf("%d were charged; status %v", charged.Load(), a.Body)
	}
	db.checkBooks()
}

func TestReplicasThatSettleTogetherChargeOnceAndAnswerAlike(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t)
	c.tester(replicas[0], "u")
	for range 20 {
		id := c.hold(replicas[0], "u", 10)
		var answers [8]answer
		each(len(answers), len(answers), func(i int) {
			a, err := c.settle(replicas[i%2], "u", id, 7)
			if err != nil || a.Status != http.StatusOK {
				t.Errorf("%d %v %v", a.Status, a.Body, err)
			}
			answers[i] = a
		})
		for _, a := range answers {
			if !maps.Equal(a.Body, answers[0].Body) {
				t.Errorf("answered with %v and %v", answers[0].Body, a.Body)
			}
		}
	}
	if n, used := db.count("u", "settle"), localpgtest.Query[int](db, "SELECT tokens_used_this_month FROM viralpilot.userdata"); n != 20 || used != 140 {
		t.Errorf("%d entries, %d tokens for 20 reservations settled for 7", n, used)
	}
	db.checkBooks()
}

func TestAReservationThatNobodySettlesRunsOutByItself(t *testing.T) {
	t.Parallel()
	replicas, c, db := pair(t, func(cfg *config.Config) { cfg.SweepInterval = 50 * time.Millisecond })
	c.tester(replicas[0], "u")
	c.do(http.StatusCreated, http.MethodPost, replicas[0].url+"/user/u/reservations", `{"tokens": 10, "ttl_seconds": 1}`)
	localpgtest.Await(t, "the reservation has expired", func() bool { return db.count("u", "expire") == 1 })
	if n := localpgtest.Query[int](db, "SELECT tokens_remaining FROM viralpilot.userdata"); n != 1000 {
		t.Errorf("%d tokens", n)
	}
	db.checkBooks()
}
