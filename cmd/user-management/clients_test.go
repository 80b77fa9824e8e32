//go:build faults || soak

package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
	"github.com/viralpilot/user-management/internal/user/historytest"
)

// clients are callers who spend tokens while something happens to the service or to its database. Three of four
// commands have an idempotency key and are sent again until they are answered, to another replica each time; the others
// are sent once. One of eight is about an account without tokens.
type clients struct {
	t    *testing.T
	urls []string
	http *http.Client
	// accounts is how many have tokens.
	accounts int
	// ready has an element for each replica where a balancer chooses among those whose /health is 200, nil where each
	// takes its turn. What a balancer could not connect to has got nothing and the next one gets it; any other request
	// without an answer fails the test.
	ready []atomic.Bool

	stopping atomic.Bool
	running  sync.WaitGroup

	// told is what became of the commands of each client, in their order. It is written by the clients and may be read
	// after stop.
	told [][]told
	// history is what was sent to the accounts that the clients were started with, and what came back.
	history *historytest.History
	// endless is true where the histories of these accounts would be too long to be checked: they are not kept.
	endless bool

	mu sync.Mutex
	// noted are commands that the test has sent.
	noted map[string]*command
	// requests counts what was sent, answers what came back: "200", the code of a problem, notAccepted or cutOff.
	requests int
	answers  map[string]int
	// answered are the ids of the requests that had a complete answer; nil where they would be too many.
	answered map[string]bool
	done     int
	// lastDone is when a command was last acknowledged, longestPause the longest time between two of them.
	lastDone     time.Time
	longestPause time.Duration
	// slowest is the longest that an answer took.
	slowest time.Duration
	// unknown is how many answers said that the outcome is not known.
	unknown int
}

const (
	// notAccepted is in place of an answer when nobody listens: nothing was sent.
	notAccepted = "not accepted"
	// cutOff is in place of an answer when a connection ended without a complete one.
	cutOff = "cut off"
)

// command is one consume of one token. Its name is its key, or the metadata of one without.
type command struct {
	account string
	keyed   bool
	// resigns is true for one that is not sent again when its first answer says that nothing was done.
	resigns bool
	// op is its part of the history; nil before it is sent.
	op *historytest.Operation
	told
}

// told is what a caller knows of a command. It is small, since there may be millions.
type told struct {
	outcome outcome
	receipt receipt
}

// receipt is what an acknowledgement says of the entry, and the ledger too.
type receipt struct {
	entry         int64
	balance, used int32
}

type outcome uint8

const (
	// unknown is a command without a certain answer: it may have been done, once.
	unknown outcome = iota
	// acknowledged is one that was answered with 200: it was done once.
	acknowledged
	// refused is one that was answered with a refusal, or with a 503 which says that nothing was done and not sent again,
	// or that nobody accepted: it was not done.
	refused
)

const (
	richAccounts = 4
	poorAccount  = "poor"
)

// startClients makes the accounts by way of the first of the replicas and lets n clients spend until stop.
func startClients(t *testing.T, n int, replicas ...*service) *clients {
	t.Helper()
	c := newClients(t, n, replicas)
	c.start(n, replicas[0])
	return c
}

// startClientsOf is startClients with another number of accounts that have tokens.
func startClientsOf(t *testing.T, accounts, n int, replicas ...*service) *clients {
	t.Helper()
	c := newClients(t, n, replicas)
	c.accounts = accounts
	c.start(n, replicas[0])
	return c
}

// startBalancedClients is startClients with a balancer in front of the replicas.
func startBalancedClients(t *testing.T, n int, replicas ...*service) *clients {
	t.Helper()
	c := newClients(t, n, replicas)
	c.ready = make([]atomic.Bool, len(replicas))
	for i := range c.ready {
		c.running.Go(func() { c.watch(i) })
		c.awaitReady(i, true)
	}
	c.start(n, replicas[0])
	return c
}

func newClients(t *testing.T, n int, replicas []*service) *clients {
	c := &clients{
		t: t, accounts: richAccounts, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}, Timeout: patience},
		told: make([][]told, n), noted: map[string]*command{}, answers: map[string]int{}, answered: map[string]bool{}, lastDone: time.Now(),
	}
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.history = historytest.New(user.NewRules(tiers, time.UTC))
	for _, r := range replicas {
		c.urls = append(c.urls, r.url)
	}
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *clients) start(n int, replica *service) {
	c.t.Helper()
	for i := range c.accounts {
		id := fmt.Sprint("rich-", i)
		if _, _, err := replica.call(http.StatusOK, http.MethodGet, "/user/"+id, "", ""); err != nil {
			c.t.Fatal(err)
		}
		if _, _, err := replica.call(http.StatusOK, http.MethodPost, "/user/"+id+"/add-tokens", `{"tokens_to_add": 100000000}`, ""); err != nil {
			c.t.Fatal(err)
		}
		c.openHistory(id, replica)
	}
	if _, _, err := replica.call(http.StatusOK, http.MethodGet, "/user/"+poorAccount, "", ""); err != nil {
		c.t.Fatal(err)
	}
	c.openHistory(poorAccount, replica)
	for i := range n {
		c.running.Go(func() {
			for k := 0; !c.stopping.Load(); k++ {
				name, cmd := c.command(i, k)
				// Every account at every replica: turns in step with the accounts would keep them apart.
				c.carryOut(name, &cmd, i+k/c.accounts)
				c.told[i] = append(c.told[i], cmd.told)
			}
		})
	}
}

// openHistory begins the history of an account with what a replica says of it.
func (c *clients) openHistory(id string, replica *service) {
	c.t.Helper()
	if c.endless {
		return
	}
	_, _, text, err := replica.send(http.MethodGet, "/user/"+id+"/status", "", "")
	if err != nil {
		c.t.Fatal(err)
	}
	var status struct {
		Tier      user.Tier `json:"subscription_tier"`
		Remaining int64     `json:"tokens_remaining"`
		TopUps    int64     `json:"top_up_tokens"`
		Used      int64     `json:"tokens_used_this_month"`
	}
	if err := json.Unmarshal(text, &status); err != nil {
		c.t.Fatal(err)
	}
	c.history.Open(id, status.Tier, status.Remaining, status.TopUps, status.Used)
}

// call begins the part of a command in the history.
func (c *clients) call(cmd *command) *historytest.Operation {
	if cmd.op == nil {
		cmd.op = c.history.Call(cmd.account, user.Consume{Tokens: 1})
	}
	return cmd.op
}

// command is the command number k of client i.
func (c *clients) command(i, k int) (name string, cmd command) {
	cmd = command{account: fmt.Sprint("rich-", (i+k)%c.accounts), keyed: k%4 != 3, resigns: k%8 == 2}
	if k%8 >= 6 && (i+k)%2 == 0 {
		cmd.account = poorAccount
	}
	return fmt.Sprintf("command-%d-%d", i, k), cmd
}

// watch asks a replica for its health until stop.
func (c *clients) watch(i int) {
	for !c.stopping.Load() {
		res, err := client.Get(c.urls[i] + "/health")
		if err == nil {
			res.Body.Close()
		}
		c.ready[i].Store(err == nil && res.StatusCode == http.StatusOK)
		<-time.After(20 * time.Millisecond) // a balancer's interval
	}
}

// awaitReady waits until the balancer gives requests to a replica, or no longer does.
func (c *clients) awaitReady(i int, ready bool) {
	c.t.Helper()
	localpgtest.Await(c.t, fmt.Sprintf("replica %d is ready: %t", i, ready), func() bool { return c.ready[i].Load() == ready })
}

// replica is whose turn it is.
func (c *clients) replica(turn int) (url string) {
	for i := range c.ready {
		if n := (turn + i) % len(c.urls); c.ready[n].Load() {
			return c.urls[n]
		}
	}
	return c.urls[turn%len(c.urls)]
}

// run carries out a command that the test has made.
func (c *clients) run(name string, cmd *command, turn int) {
	c.note(name, cmd)
	c.carryOut(name, cmd, turn)
}

// carryOut sends a command, beginning with the replica of that turn, until its outcome is certain or it cannot be sent
// again.
func (c *clients) carryOut(name string, cmd *command, turn int) {
	var giveUp time.Time
	op := c.call(cmd)
	for first := turn; ; turn++ {
		id := fmt.Sprint(name, "-", turn-first)
		begin := time.Now()
		op.Send()
		status, answer, err := c.send(c.replica(turn), id, name, cmd)
		code, receipt := answer.code, answer.receipt
		nobody := errors.Is(err, syscall.ECONNREFUSED)
		if c.ready != nil && err != nil && !nobody {
			c.t.Errorf("%s: %v", name, err)
		}
		switch {
		case nobody, err == nil && answer.outcome == user.OutcomeNone:
			op.NotDone()
		case err == nil && answer.outcome == "":
			op.Answered(answer.history())
		}
		c.mu.Lock()
		c.requests++
		if err == nil {
			if c.answered != nil {
				c.answered[id] = true
			}
			c.slowest = max(c.slowest, time.Since(begin))
		}
		switch {
		case nobody:
			c.answers[notAccepted]++
		case err != nil:
			c.answers[cutOff]++
		case status == http.StatusOK:
			c.answers["200"]++
			cmd.told = told{acknowledged, receipt}
			c.done++
			now := time.Now()
			c.longestPause, c.lastDone = max(c.longestPause, now.Sub(c.lastDone)), now
		default:
			c.answers[code]++
		}
		switch {
		case status == http.StatusServiceUnavailable && answer.outcome == user.OutcomeUnknown && code == "database_unavailable":
			c.unknown++
		case status == http.StatusServiceUnavailable && answer.outcome != user.OutcomeNone:
			c.t.Errorf("%s: %s says of the outcome: %q", name, code, answer.outcome)
		}
		c.mu.Unlock()
		switch {
		case nobody && c.ready != nil: // the balancer gives it to the next
		case err == nil && status == http.StatusOK:
			if cmd.account == poorAccount {
				c.t.Errorf("%s: a consume without tokens was answered with 200", name)
			}
			return
		case err == nil && status == http.StatusPaymentRequired && cmd.account == poorAccount,
			err == nil && answer.outcome == user.OutcomeNone && (!cmd.keyed || cmd.resigns && turn == first),
			nobody && !cmd.keyed:
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

// note makes check look for a command; one that is not sent by run too.
func (c *clients) note(name string, cmd *command) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted[name] = cmd
}

// consumeBody is the body of a command.
func consumeBody(name string) string {
	return fmt.Sprintf(`{"tokens_to_consume": 1, "metadata": {"command": %q}}`, name)
}

// answer is what a client is told.
type answer struct {
	// code is that of a problem, and outcome what it says of the command.
	code    string
	outcome user.Outcome
	receipt receipt
}

// history is what the history has of it.
func (a answer) history() historytest.Answer {
	return historytest.Answer{
		Code: user.Code(a.code), Remaining: int64(a.receipt.balance), Used: int64(a.receipt.used), Entry: a.receipt.entry,
	}
}

// send sends one request. The error says that there was no complete answer.
func (c *clients) send(url, id, name string, cmd *command) (status int, a answer, err error) {
	key := ""
	if cmd.keyed {
		key = name
	}
	status, text, err := c.exchange(http.MethodPost, url+"/user/"+cmd.account+"/consume-tokens", id, consumeBody(name), key)
	if err == nil {
		a, err = readAnswer(text)
	}
	return status, a, err
}

// readAnswer reads a problem or an acknowledgement.
func readAnswer(text []byte) (answer, error) {
	var a struct {
		Code      string
		Outcome   user.Outcome
		Entry     int64 `json:"entry_id,string"`
		Remaining int32 `json:"tokens_remaining"`
		Used      int32 `json:"tokens_used_this_month"`
	}
	err := json.Unmarshal(text, &a)
	return answer{a.Code, a.Outcome, receipt{a.Entry, a.Remaining, a.Used}}, err
}

// exchange sends one request and reads its answer.
func (c *clients) exchange(method, url, id, body, key string) (status int, text []byte, err error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	// The transport would send what has a key again by itself, and what came of the first would not be known.
	req.GetBody = nil
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", id)
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	if text, err = io.ReadAll(res.Body); err != nil {
		return 0, nil, err
	}
	if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") == "" {
		c.t.Errorf("a 503 without Retry-After: %s", text)
	}
	if kind := res.Header.Get("Content-Type"); res.StatusCode >= http.StatusBadRequest && kind != "application/problem+json" {
		c.t.Errorf("%s is %s: %s", res.Status, kind, text)
	}
	return res.StatusCode, text, nil
}

// awaitMore waits until that many more commands have been acknowledged, and returns how long it took.
func (c *clients) awaitMore(n int) time.Duration {
	c.t.Helper()
	begin, want := time.Now(), c.acknowledged()+n
	localpgtest.Await(c.t, fmt.Sprintf("%d more acknowledged commands", n), func() bool { return c.acknowledged() >= want })
	return time.Since(begin)
}

// awaitAnswers waits until that many more requests were answered so: "200", the code of a problem, notAccepted or
// cutOff.
func (c *clients) awaitAnswers(answer string, n int) {
	c.t.Helper()
	want := c.answeredSo(answer) + n
	localpgtest.Await(c.t, fmt.Sprintf("%d more answers %s", n, answer), func() bool { return c.answeredSo(answer) >= want })
}

// onlyAnswers fails the test for every answer beside these.
func (c *clients) onlyAnswers(expected ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, answer := range slices.Sorted(maps.Keys(c.answers)) {
		if !slices.Contains(expected, answer) {
			c.t.Errorf("%d answers %s", c.answers[answer], answer)
		}
	}
}

// answeredSo is how many requests were.
func (c *clients) answeredSo(answer string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers[answer]
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
	// verified is what the check of the books says that it has looked at.
	verified string
}

// found is what the ledger has of a command.
type found struct {
	times   uint8
	receipt receipt
}

// check stops the clients and holds what they were told against the ledger: what was acknowledged is in it once and as
// it was told, what was refused is not, and what has a key has an outcome. Then it checks the books.
func (c *clients) check(db database, env []string) tally {
	c.t.Helper()
	c.stop()
	entries, others := c.entries(db)
	sum := tally{requests: c.requests}
	judge := func(name string, cmd command, entry found) {
		n := entry.times
		sum.commands++
		switch {
		case n > 1:
			c.t.Errorf("%s is in the ledger %d times", name, n)
		case cmd.outcome == acknowledged && n == 0:
			c.t.Errorf("%s was acknowledged and is not in the ledger", name)
		case cmd.outcome == acknowledged && cmd.receipt != entry.receipt:
			c.t.Errorf("%s was answered with %+v, the ledger has %+v", name, cmd.receipt, entry.receipt)
		case cmd.outcome == refused && n > 0:
			c.t.Errorf("%s was refused and is in the ledger", name)
		case cmd.outcome == unknown && cmd.keyed:
			c.t.Errorf("%s has a key and no outcome", name)
		}
		sum.inLedger += int(min(n, 1))
		switch cmd.outcome {
		case acknowledged:
			sum.acknowledged++
		case refused:
			sum.refused++
		case unknown:
			sum.unknown++
			sum.unknownDone += int(n)
		}
	}
	for i, all := range c.told {
		for k, told := range all {
			name, cmd := c.command(i, k)
			cmd.told = told
			judge(name, cmd, entries[i][k])
		}
	}
	for name, cmd := range c.noted {
		judge(name, *cmd, others[name])
		delete(others, name)
	}
	for name := range others {
		c.t.Errorf("%s is in the ledger and was never sent", name)
	}
	const ofTheTerm = `SELECT count(*) FILTER (WHERE kind = 'consume') + coalesce(sum(tokens_charged) FILTER (WHERE kind = 'settle'), 0)
		FROM viralpilot.ledger l WHERE kind IN ('consume', 'settle') AND NOT EXISTS (
		SELECT FROM viralpilot.ledger t
		WHERE t.cognito_user_id = l.cognito_user_id AND t.entry_id > l.entry_id AND t.kind IN ('monthly_reset', 'tier_change'))`
	if used, consumes := db.number("SELECT sum(tokens_used_this_month) FROM viralpilot.userdata"), db.number(ofTheTerm); used != consumes {
		c.t.Errorf("%d tokens used, %d consumed and settled in the term by the ledger", used, consumes)
	}
	c.checkHistory(db)
	sum.verified = run(c.t, c.t.TempDir(), env, "verify").want(c.t, 0).stdout
	c.t.Logf("commands %d (requests %d), acknowledged %d, in the ledger %d, refused %d, unknown %d (%d of them done); answers %v; longest pause %s, slowest answer %s",
		sum.commands, sum.requests, sum.acknowledged, sum.inLedger, sum.refused, sum.unknown, sum.unknownDone, c.answers,
		c.longestPause.Round(time.Millisecond), c.slowest.Round(time.Millisecond))
	return sum
}

// historyLimit is how long the search for an order of what was done to one account may take.
const historyLimit = time.Minute

// checkHistory holds what the clients were told for linearizable by the rules, up to what the accounts have in the end.
func (c *clients) checkHistory(db database) {
	c.t.Helper()
	last := map[string]*historytest.Operation{}
	for _, id := range c.history.Accounts() {
		last[id] = c.history.Call(id, user.Touch{})
		last[id].Send()
	}
	const counters = "SELECT cognito_user_id, tokens_remaining, tokens_used_this_month FROM viralpilot.userdata"
	db.each(counters, func(rows pgx.Rows) error {
		var id string
		var a historytest.Answer
		if err := rows.Scan(&id, &a.Remaining, &a.Used); err != nil {
			return err
		}
		if read := last[id]; read != nil {
			read.Answered(a)
		}
		return nil
	})
	begin := time.Now()
	sum, err := c.history.Check(historyLimit)
	if err != nil {
		c.t.Errorf("what the clients were told is not linearizable: %v", err)
	}
	c.t.Logf("history of %s, checked in %s", sum, time.Since(begin).Round(time.Millisecond))
}

// entries returns what the ledger has of the commands of each client, and by name of what it has beside them.
func (c *clients) entries(db database) (ofClients [][]found, others map[string]found) {
	c.t.Helper()
	ofClients, others = make([][]found, len(c.told)), map[string]found{}
	for i, all := range c.told {
		ofClients[i] = make([]found, len(all))
	}
	db.each(`SELECT coalesce(idempotency_key, metadata ->> 'command'), entry_id, balance_after, used_after
		FROM viralpilot.ledger WHERE kind = 'consume'`, func(rows pgx.Rows) error {
		var name string
		var r receipt
		if err := rows.Scan(&name, &r.entry, &r.balance, &r.used); err != nil {
			return err
		}
		if numbers, ok := strings.CutPrefix(name, "command-"); ok {
			client, number, _ := strings.Cut(numbers, "-")
			i, errI := strconv.Atoi(client)
			k, errK := strconv.Atoi(number)
			if errI == nil && errK == nil && i < len(ofClients) && k < len(ofClients[i]) {
				ofClients[i][k] = found{ofClients[i][k].times + 1, r}
				return nil
			}
		}
		others[name] = found{others[name].times + 1, r}
		return nil
	})
	return ofClients, others
}

// each reads rows.
func (d database) each(sql string, row func(pgx.Rows) error) {
	d.T.Helper()
	rows, err := d.Conn.Query(d.T.Context(), sql)
	if err != nil {
		d.T.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			d.T.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		d.T.Fatal(err)
	}
}

// counts reads pairs of a name and a number.
func (d database) counts(sql string) map[string]int {
	d.T.Helper()
	counts := map[string]int{}
	d.each(sql, func(rows pgx.Rows) error {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			return err
		}
		counts[name] = n
		return nil
	})
	return counts
}
