package app_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// outcomes are the keys that clients sent, by what they were answered: "ok", a problem's code, or "none".
type outcomes struct {
	mu   sync.Mutex
	keys map[string]map[string]bool
}

func (o *outcomes) add(outcome, key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keys[outcome] == nil {
		o.keys[outcome] = map[string]bool{}
	}
	o.keys[outcome][key] = true
}

func (o *outcomes) count(outcome string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.keys[outcome])
}

func TestAnOutageOfTheDatabaseLosesNothingAndEndsByItself(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t)
	dsn := server.URL("postgres")
	// As it ships, except for the pace of the log.
	shipped := func(cfg *config.Config) {
		cfg.DBAcquireTimeout, cfg.DBStatementTimeout = defaults.DBAcquireTimeout, defaults.DBStatementTimeout
		cfg.RequestTimeout, cfg.HTTPWriteTimeout = defaults.RequestTimeout, defaults.HTTPWriteTimeout
		cfg.LogRequests = "none"
	}
	replicas, c := [2]*replica{start(t, dsn, shipped), start(t, dsn, shipped)}, newClient(t)
	for _, id := range []string{"rich", "poor"} {
		c.do(http.StatusOK, http.MethodGet, replicas[0].url+"/user/"+id, "")
	}
	c.do(http.StatusOK, http.MethodPost, replicas[0].url+"/user/rich/add-tokens", `{"tokens_to_add": 1000000}`)

	sent := outcomes{keys: map[string]map[string]bool{}}
	var stop atomic.Bool
	var running sync.WaitGroup
	defer running.Wait()
	defer stop.Store(true)
	for i := range 12 {
		running.Go(func() {
			for n := 0; !stop.Load(); n++ {
				key, id := fmt.Sprintf("key-%d-%d", i, n), "rich"
				if n%8 == 7 {
					id = "poor"
				}
				a, err := c.consume(replicas[(i+n)%2], id, key)
				switch {
				case err != nil:
					t.Errorf("no answer, or not a problem document: %v", err)
					sent.add("none", key)
				case a.Status == http.StatusOK && id == "rich":
					sent.add("ok", key)
				case a.Status == http.StatusPaymentRequired && id == "poor":
					sent.add("insufficient_tokens", key)
				case a.Status == http.StatusServiceUnavailable && a.Header.Get("Retry-After") != "":
					sent.add(a.code(), key)
					<-time.After(10 * time.Millisecond) // a client's pause, or it would be the only load
				default:
					t.Errorf("%s: %d %v", id, a.Status, a.Body)
				}
			}
		})
	}
	localpgtest.Await(t, "consumes before the outage", func() bool { return sent.count("ok") >= 100 })
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		begin := time.Now()
		a := c.do(http.StatusServiceUnavailable, http.MethodGet, r.url+"/health", "")
		if took := time.Since(begin); took > 4*time.Second || a.Body["status"] != "unhealthy" || a.Body["database"] != "disconnected" {
			t.Errorf("/health after %s: %v", took, a.Body)
		}
		c.do(http.StatusOK, http.MethodGet, r.url+"/livez", "")
		a = c.do(http.StatusServiceUnavailable, http.MethodGet, r.url+"/user/rich/status", "")
		if a.code() != "database_unavailable" || a.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("status: %v %v", a.Header, a.Body)
		}
	}
	refused := sent.count("database_unavailable")
	localpgtest.Await(t, "refusals during the outage", func() bool { return sent.count("database_unavailable") >= refused+40 })
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := sent.count("ok")
	localpgtest.Await(t, "consumes after the outage", func() bool { return sent.count("ok") >= done+100 })
	for _, r := range replicas {
		c.do(http.StatusOK, http.MethodGet, r.url+"/health", "")
	}
	stop.Store(true)
	running.Wait()

	db := connect(t, dsn)
	ledger := db.keys("rich")
	for key := range sent.keys["ok"] {
		if !ledger[key] {
			t.Errorf("%s was acknowledged and is not in the ledger", key)
		}
	}
	for key := range ledger {
		if !sent.keys["ok"][key] && !sent.keys["database_unavailable"][key] {
			t.Errorf("%s was refused and is in the ledger", key)
		}
	}
	if n := db.count("poor", "consume"); n != 0 {
		t.Errorf("%d consumes without a token", n)
	}
	db.checkBooks()
	unclear := 0
	for key := range sent.keys["database_unavailable"] {
		if ledger[key] {
			unclear++
		}
	}
	t.Logf("acknowledged %d, refused for lack of tokens %d, overloaded %d, unavailable %d, of these done %d",
		len(sent.keys["ok"]), len(sent.keys["insufficient_tokens"]), len(sent.keys["overloaded"]), len(sent.keys["database_unavailable"]), unclear)

	// Sent again with their keys, those that had an unclear answer count once.
	unavailable := make([]string, 0, len(sent.keys["database_unavailable"]))
	for key := range sent.keys["database_unavailable"] {
		unavailable = append(unavailable, key)
	}
	repeat := unavailable[:min(len(unavailable), 100)]
	each(len(repeat), 8, func(i int) {
		a, err := c.consume(replicas[i%2], "rich", repeat[i])
		if err != nil || a.Status != http.StatusOK || (a.Header.Get("Idempotency-Replayed") == "true") != ledger[repeat[i]] {
			t.Errorf("%s, in the ledger: %t: %d %v %v", repeat[i], ledger[repeat[i]], a.Status, a.Header, err)
		}
	})
	again := db.keys("rich")
	for _, key := range repeat {
		ledger[key] = true
	}
	if len(again) != len(ledger) {
		t.Errorf("%d consumes in the ledger, want %d", len(again), len(ledger))
	}
	db.checkBooks()
}
