//go:build faults

package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clients are callers who spend tokens while something happens to the service or to its database. Three of four
// commands have an idempotency key and are sent again until they are answered, to another replica each time; the others
// are sent once. One of eight is about an account without tokens.
type clients struct {
	t    *testing.T
	urls []string
	http *http.Client

	stopping atomic.Bool
	running  sync.WaitGroup

	mu       sync.Mutex
	commands map[string]*command
	// requests counts what was sent, answers what came back: "200", the code of a problem, or "none".
	requests int
	answers  map[string]int
	done     int
	// lastDone is when a command was last acknowledged, longestPause the longest time between two of them.
	lastDone     time.Time
	longestPause time.Duration
}

// command is one consume of one token. Its name is its key, or the metadata of one without.
type command struct {
	account string
	keyed   bool
	outcome outcome
}

type outcome int

const (
	// unknown is a command without a certain answer: it may have been done, once.
	unknown outcome = iota
	// acknowledged is one that was answered with 200: it was done once.
	acknowledged
	// refused is one that was answered with a refusal, or with 503 overloaded and not sent again: it was not done.
	refused
)

const (
	richAccounts = 4
	poorAccount  = "poor"
)

// startClients makes the accounts by way of the first of the replicas and lets n clients spend until stop.
func startClients(t *testing.T, n int, replicas ...*service) *clients {
	t.Helper()
	c := &clients{
		t: t, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}, Timeout: patience},
		commands: map[string]*command{}, answers: map[string]int{}, lastDone: time.Now(),
	}
	for _, r := range replicas {
		c.urls = append(c.urls, r.url)
	}
	for i := range richAccounts {
		id := fmt.Sprint("rich-", i)
		if _, _, err := replicas[0].call(http.StatusOK, http.MethodGet, "/user/"+id, "", ""); err != nil {
			t.Fatal(err)
		}
		if _, _, err := replicas[0].call(http.StatusOK, http.MethodPost, "/user/"+id+"/add-tokens", `{"tokens_to_add": 100000000}`, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := replicas[0].call(http.StatusOK, http.MethodGet, "/user/"+poorAccount, "", ""); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		c.running.Go(func() {
			for k := 0; !c.stopping.Load(); k++ {
				cmd := &command{account: fmt.Sprint("rich-", (i+k)%richAccounts), keyed: k%4 != 3}
				if k%8 >= 6 && (i+k)%2 == 0 {
					cmd.account = poorAccount
				}
				c.run(fmt.Sprintf("command-%d-%d", i, k), cmd, i+k)
			}
		})
	}
	t.Cleanup(func() { c.stop() })
	return c
}

// run sends a command, beginning with the replica of that turn, until its outcome is certain or it cannot be sent again.
func (c *clients) run(name string, cmd *command, turn int) {
	c.mu.Lock()
	c.commands[name] = cmd
	c.mu.Unlock()
	var giveUp time.Time
	for ; ; turn++ {
		status, code, err := c.send(c.urls[turn%len(c.urls)], name, cmd)
		c.mu.Lock()
		c.requests++
		switch {
		case err != nil:
			c.answers["none"]++
		case status == http.StatusOK:
			c.answers["200"]++
			cmd.outcome = acknowledged
			c.done++
			now := time.Now()
			c.longestPause, c.lastDone = max(c.longestPause, now.Sub(c.lastDone)), now
		default:
			c.answers[code]++
		}
		c.mu.Unlock()
		switch {
		case err == nil && status == http.StatusOK:
			if cmd.account == poorAccount {
				c.t.Errorf("%s: a consume without tokens was answered with 200", name)
			}
			return
		case err == nil && status == http.StatusPaymentRequired && cmd.account == poorAccount,
			err == nil && code == "overloaded" && !cmd.keyed:
			c.mu.Lock()
			cmd.outcome = refused
			c.mu.Unlock()
			return
		case err == nil && code != "overloaded" && code != "database_unavailable":
			c.t.Errorf("%s: %d %s", name, status, code)
			return
		case !cmd.keyed:
			return
		}
		if c.stopping.Load() {
			if giveUp.IsZero() {
				giveUp = time.Now().Add(patience)
			} else if time.Now().After(giveUp) {
				c.t.Errorf("%s: no certain answer within %s after the end of the fault: %d %s %v", name, patience, status, code, err)
				return
			}
		}
		<-time.After(20 * time.Millisecond) // a client's pause, or it would be the only load
	}
}

// send sends one request. The error says that there was no complete answer.
func (c *clients) send(url, name string, cmd *command) (status int, code string, err error) {
	req, err := http.NewRequest(http.MethodPost, url+"/user/"+cmd.account+"/consume-tokens",
		strings.NewReader(fmt.Sprintf(`{"tokens_to_consume": 1, "metadata": {"command": %q}}`, name)))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if cmd.keyed {
		req.Header.Set("Idempotency-Key", name)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, "", err
	}
	var problem struct{ Code string }
	if err := json.Unmarshal(text, &problem); err != nil {
		return 0, "", err
	}
	if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") == "" {
		c.t.Errorf("a 503 without Retry-After: %s", text)
	}
	return res.StatusCode, problem.Code, nil
}

// awaitMore waits until that many more commands have been acknowledged, and returns how long it took.
func (c *clients) awaitMore(n int) time.Duration {
	c.t.Helper()
	begin, want := time.Now(), c.acknowledged()+n
	await(c.t, fmt.Sprintf("%d more acknowledged commands", n), func() bool { return c.acknowledged() >= want })
	return time.Since(begin)
}

// awaitAnswers waits until that many more requests were answered so: "200", the code of a problem, or "none".
func (c *clients) awaitAnswers(answer string, n int) {
	c.t.Helper()
	count := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.answers[answer]
	}
	want := count() + n
	await(c.t, fmt.Sprintf("%d more answers %s", n, answer), func() bool { return count() >= want })
}

func (c *clients) acknowledged() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// stop ends the load once every command under way has an outcome.
func (c *clients) stop() {
	c.stopping.Store(true)
	c.running.Wait()
	c.http.CloseIdleConnections()
}

// tally is what the commands came to.
type tally struct {
	commands, requests, acknowledged, refused, unknown int
	// inLedger are commands of which there is an entry, unknownDone those of them whose outcome was not known.
	inLedger, unknownDone int
}

// check stops the clients and holds what they were told against the ledger: what was acknowledged is in it once, what
// was refused is not, and what has a key has an outcome. Then it checks the books.
func (c *clients) check(db database, env []string) tally {
	c.t.Helper()
	c.stop()
	entries := db.counts("SELECT coalesce(idempotency_key, metadata ->> 'command'), count(*) FROM viralpilot.ledger WHERE kind = 'consume' GROUP BY 1")
	sum := tally{commands: len(c.commands), requests: c.requests, inLedger: len(entries)}
	for name, cmd := range c.commands {
		n := entries[name]
		switch {
		case n > 1:
			c.t.Errorf("%s is in the ledger %d times", name, n)
		case cmd.outcome == acknowledged && n == 0:
			c.t.Errorf("%s was acknowledged and is not in the ledger", name)
		case cmd.outcome == refused && n > 0:
			c.t.Errorf("%s was refused and is in the ledger", name)
		case cmd.outcome == unknown && cmd.keyed:
			c.t.Errorf("%s has a key and no outcome", name)
		}
		switch cmd.outcome {
		case acknowledged:
			sum.acknowledged++
		case refused:
			sum.refused++
		case unknown:
			sum.unknown++
			sum.unknownDone += n
		}
	}
	for name := range entries {
		if c.commands[name] == nil {
			c.t.Errorf("%s is in the ledger and was never sent", name)
		}
	}
	if used := db.number("SELECT sum(tokens_used_this_month) FROM viralpilot.userdata"); used != sum.inLedger {
		c.t.Errorf("%d tokens used, %d consumes in the ledger", used, sum.inLedger)
	}
	run(c.t, c.t.TempDir(), env, "verify").want(c.t, 0)
	c.t.Logf("commands %d (requests %d), acknowledged %d, in the ledger %d, refused %d, unknown %d (%d of them done); answers %v; longest pause %s",
		sum.commands, sum.requests, sum.acknowledged, sum.inLedger, sum.refused, sum.unknown, sum.unknownDone, c.answers,
		c.longestPause.Round(time.Millisecond))
	return sum
}

// counts reads pairs of a name and a number.
func (d database) counts(sql string) map[string]int {
	d.t.Helper()
	rows, err := d.conn.Query(d.t.Context(), sql)
	if err != nil {
		d.t.Fatal(err)
	}
	counts := map[string]int{}
	var name string
	var n int
	for rows.Next() {
		if err := rows.Scan(&name, &n); err != nil {
			d.t.Fatal(err)
		}
		counts[name] = n
	}
	if err := rows.Err(); err != nil {
		d.t.Fatal(err)
	}
	return counts
}
