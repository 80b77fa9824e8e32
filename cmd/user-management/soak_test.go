//go:build soak

package main_test

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

const (
	// soakConsumers, soakHolders and soakWitnesses make 64 connections.
	soakConsumers = 52
	soakHolders   = 8
	soakWitnesses = 4
	// witnessCommands is how many commands each witness sends to an account.
	witnessCommands = 50

	// sampleInterval is the pause between two looks at the replicas' memory and goroutines.
	sampleInterval = 5 * time.Second
	// mostMemory is what a replica may have resident, memoryGrowth how much more at the end than after the warm-up.
	mostMemory   = 64 << 20
	memoryGrowth = 1.3
	// moreGoroutines is how many more there may be after the load than before it.
	moreGoroutines = 3
)

// TestSoak lets clients work for SOAK_DURATION while one fault after the other happens, and then holds what they were
// told against the ledger. One of three replicas is never restarted and has its connections by way of a proxy: its
// memory and its goroutines have to stay what they were. SOAK_SEED repeats the order of the faults.
func TestSoak(t *testing.T) {
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK_DURATION"), "10m"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("SOAK_SEED"), fmt.Sprint(time.Now().UnixNano())), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, SOAK_SEED=%d", duration, seed)

	server := localpgtest.Server(t)
	dsn := server.URL("postgres")
	proxy := localpgtest.NewProxy(t, dsn)
	s := &soak{
		t: t, server: server, dsn: dsn, proxy: proxy, chance: rand.New(rand.NewPCG(seed, 0)), happened: map[string]int{},
		env: []string{"DATABASE_URL=" + dsn, "DB_STATEMENT_TIMEOUT=2s", "SWEEP_INTERVAL=1s", "LOG_REQUESTS=none"},
	}
	metrics := freePort(t)
	s.replicas = []*service{
		serve(t, append(s.env, "DATABASE_URL="+proxy.URL(), "PPROF_ENABLED=true", "METRICS_PORT="+metrics)...),
		serve(t, append(s.env, "SERVICE_PORT="+freePort(t))...),
		serve(t, append(s.env, "SERVICE_PORT="+freePort(t))...),
	}
	s.watched = []string{"http://127.0.0.1:" + metrics, s.replicas[1].url, s.replicas[2].url}
	s.serving()
	before := s.sample(0)

	s.load = newClients(t, soakConsumers+soakHolders+soakWitnesses, s.replicas)
	s.load.answered, s.load.endless = nil, true
	s.load.start(soakConsumers, s.replicas[0])
	for i := range soakHolders {
		h := &holder{clients: s.load, number: i, chance: rand.New(rand.NewPCG(seed, uint64(i+1)))}
		s.holders = append(s.holders, h)
		s.load.running.Go(h.work)
	}
	s.load.running.Go(s.witness)
	s.load.awaitMore(200)

	s.begin = time.Now()
	done := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() { s.sampleUntil(done) })
	sampled := sync.OnceFunc(func() {
		close(done)
		sampling.Wait()
	})
	defer sampled() // a fault that does not end ends the test
	s.faultsUntil(s.begin.Add(duration))
	lasted := time.Since(s.begin)
	sampled()
	s.load.stop()

	after := s.settled(before)
	db := connect(t, dsn)
	localpgtest.Await(t, "no more sessions than the replicas may have", func() bool {
		// Those of the pool and the one of /health.
		return db.number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'user-management'") <= len(s.replicas)*(8+1)
	})
	holds := s.checkHolds(db)
	sum := s.load.check(db, s.env)
	s.checkFeed(db)
	s.checkUsage(db)
	s.load.onlyAnswers("200", "201", "insufficient_tokens", "overloaded", "database_unavailable", notAccepted, cutOff)
	s.report(sum, holds, lasted, before, after)
	for _, r := range s.replicas {
		r.stopped()
	}
}

type soak struct {
	t        *testing.T
	server   *localpg.Server
	dsn      string
	env      []string
	proxy    *localpgtest.Proxy
	chance   *rand.Rand
	replicas []*service
	load     *clients
	holders  []*holder
	begin    time.Time
	happened map[string]int
	// slowest is the fault of the longest pause.
	slowest string

	// watched are the URLs that have /metrics, samples what it said, by replica; those of one that is down are missing.
	watched []string
	samples [3][]sample
}

// freePort picks a port below those that the system gives to outgoing connections, so that what listens there finds it
// free when it starts again.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(15000 + rand.IntN(15000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// rest waits, but not for what has failed already.
func (s *soak) rest(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end) && !s.t.Failed(); {
		<-time.After(50 * time.Millisecond)
	}
}

// between is a random time.
func (s *soak) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.chance.Int64N(int64(most-least)))
}

// serving waits until every replica reaches the database.
func (s *soak) serving() {
	s.t.Helper()
	for i, r := range s.replicas {
		localpgtest.Await(s.t, fmt.Sprintf("replica %d serves", i), func() bool {
			status, _, err := r.call(0, http.MethodGet, "/user/rich-0", "", "")
			return err == nil && status == http.StatusOK
		})
	}
}

// faultsUntil makes faults happen in a random order, each kind as often as the others, and lets the load recover from
// each.
func (s *soak) faultsUntil(end time.Time) {
	kinds := []struct {
		name   string
		happen func()
	}{
		{"database stopped and started", func() { s.outage((*localpg.Server).Stop) }},
		{"database killed and started", func() { s.outage((*localpg.Server).Kill) }},
		{"database paused", s.pauseDatabase},
		{"sessions terminated", s.terminateSessions},
		{"rows locked", s.lockRows},
		{"replica killed and started", func() { s.restart(syscall.SIGKILL, -1) }},
		{"replica terminated and started", func() { s.restart(syscall.SIGTERM, 0) }},
		{"connections cut", s.proxy.CutAll},
		{"connections cut between COMMIT and its answer", func() {
			s.network(localpgtest.Answer("commit"), localpgtest.Cut, 5)
		}},
		{"connection muted", func() {
			s.network(s.moment(), localpgtest.Mute, 1)
			// The service gives up by itself; its session stays, and with half of a batch keeps its locks, as long as the
			// connection seems to be there.
			s.rest(3 * time.Second)
			s.proxy.CutAll()
		}},
		{"connections half-closed", func() {
			f := []localpgtest.Fault{localpgtest.HalfCloseClient, localpgtest.HalfCloseServer}[s.chance.IntN(2)]
			s.network(s.moment(), f, 3)
		}},
	}
	for {
		for _, i := range s.chance.Perm(len(kinds)) {
			s.rest(s.between(3*time.Second, 8*time.Second))
			if s.t.Failed() || time.Now().After(end) {
				return
			}
			s.t.Logf("after %s: %s", time.Since(s.begin).Round(time.Second), kinds[i].name)
			before := s.longestPause()
			kinds[i].happen()
			s.happened[kinds[i].name]++
			s.load.recovered()
			s.serving()
			if s.longestPause() > before {
				s.slowest = kinds[i].name
			}
		}
	}
}

// checkFeed reads the feed from its beginning: each entry comes once, in the order of the ids, and what it says of each
// account adds up to its balance.
func (s *soak) checkFeed(db database) {
	s.t.Helper()
	balances := map[string]int64{}
	last, entries := int64(0), 0
	total := db.number("SELECT count(*) FROM viralpilot.ledger")
	for after := ""; entries < total; {
		var page struct {
			Entries []struct {
				AccountID string `json:"cognito_user_id"`
				ID        int64  `json:"entry_id,string"`
				Amount    int64
			}
			NextCursor string `json:"next_cursor"`
		}
		_, _, text, err := s.replicas[1].send(http.MethodGet, "/ledger?limit=1000&wait=5"+after, "", "")
		if err == nil {
			err = json.Unmarshal(text, &page)
		}
		if err != nil || len(page.Entries) == 0 {
			s.t.Errorf("the feed ends after %d of %d entries: %s, %v", entries, total, text, err)
			return
		}
		for _, e := range page.Entries {
			if e.ID <= last {
				s.t.Errorf("entry %d comes after %d", e.ID, last)
			}
			last = e.ID
			balances[e.AccountID] += e.Amount
		}
		entries += len(page.Entries)
		after = "&after=" + page.NextCursor
	}
	db.each("SELECT cognito_user_id, tokens_remaining FROM viralpilot.userdata", func(rows pgx.Rows) error {
		var id string
		var balance int64
		if err := rows.Scan(&id, &balance); err != nil {
			return err
		}
		if balances[id] != balance {
			s.t.Errorf("%s has %d tokens, and %d by the feed", id, balance, balances[id])
		}
		return nil
	})
}

// checkUsage holds the usage of the last days, as far as it is added up and beyond, against the ledger.
func (s *soak) checkUsage(db database) {
	s.t.Helper()
	var usage struct {
		Days []struct {
			Date    string
			Charged int64 `json:"tokens_charged"`
			Users   int
		}
	}
	today := time.Now().UTC()
	_, _, text, err := s.replicas[1].send(http.MethodGet,
		"/usage?from="+today.AddDate(0, 0, -1).Format(time.DateOnly)+"&to="+today.Format(time.DateOnly), "", "")
	if err == nil {
		err = json.Unmarshal(text, &usage)
	}
	if err != nil || len(usage.Days) != 2 {
		s.t.Fatalf("usage: %s, %v", text, err)
	}
	for _, day := range usage.Days {
		charged := int64(db.number("SELECT coalesce(sum(tokens_charged), 0) FROM viralpilot.ledger WHERE (created_at AT TIME ZONE 'UTC')::date = '" + day.Date + "'"))
		users := db.number("SELECT count(DISTINCT cognito_user_id) FROM viralpilot.ledger WHERE tokens_charged > 0 AND (created_at AT TIME ZONE 'UTC')::date = '" + day.Date + "'")
		if day.Charged != charged || day.Users != users {
			s.t.Errorf("on %s %d users were charged %d tokens by the usage, and %d users %d by the ledger", day.Date, day.Users, day.Charged, users, charged)
		}
	}
}

func (s *soak) longestPause() time.Duration {
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	return s.load.longestPause
}

func (s *soak) outage(end func(*localpg.Server) error) {
	if err := end(s.server); err != nil {
		s.t.Fatal(err)
	}
	s.rest(s.between(0, 2*time.Second))
	if err := s.server.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// pauseDatabase lets no process of the server run for a while, but the one that told of the others.
func (s *soak) pauseDatabase() {
	db := connect(s.t, s.dsn)
	defer s.close(db)
	var stopped []int
	defer func() {
		for _, pid := range slices.Backward(stopped) {
			s.signal(pid, syscall.SIGCONT)
		}
	}()
	stop := func(pid int) {
		s.signal(pid, syscall.SIGSTOP)
		stopped = append(stopped, pid)
	}
	// The first, which would start others.
	stop(db.number(`SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)::integer`))
	db.each("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()", func(rows pgx.Rows) error {
		var pid int
		if err := rows.Scan(&pid); err != nil {
			return err
		}
		stop(pid)
		return nil
	})
	s.rest(s.between(time.Second/2, 2*time.Second))
}

func (s *soak) signal(pid int, signal syscall.Signal) {
	// A session may have ended.
	if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		s.t.Error(err)
	}
}

func (s *soak) terminateSessions() {
	db := connect(s.t, s.dsn)
	defer s.close(db)
	n := db.number("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'user-management'")
	if n == 0 {
		s.t.Error("there were no sessions")
	}
}

func (s *soak) lockRows() {
	db := connect(s.t, s.dsn)
	defer s.close(db)
	db.Exec("BEGIN")
	db.Exec("SELECT FROM viralpilot.userdata ORDER BY cognito_user_id FOR UPDATE")
	s.rest(2 * time.Second)
	db.Exec("COMMIT")
}

func (s *soak) close(db database) {
	if err := db.Conn.Close(s.t.Context()); err != nil {
		s.t.Error(err)
	}
}

// restart ends one of the replicas that may be and starts it again.
func (s *soak) restart(signal os.Signal, code int) {
	i := 1 + s.chance.IntN(len(s.replicas)-1)
	port := s.replicas[i].port
	if got := s.replicas[i].end(signal); got != code {
		s.t.Errorf("exit status %d after signal %v", got, signal)
	}
	s.rest(s.between(0, time.Second))
	s.replicas[i] = serve(s.t, append(s.env, "SERVICE_PORT="+port)...)
}

// moment is one of the transaction that serves a group of updates.
func (s *soak) moment() localpgtest.Moment {
	return []localpgtest.Moment{
		localpgtest.Before("read committed"), localpgtest.Answer("FOR UPDATE SKIP LOCKED"), localpgtest.Before("commit"), localpgtest.Answer("commit"),
	}[s.chance.IntN(4)]
}

func (s *soak) network(m localpgtest.Moment, f localpgtest.Fault, times int) {
	plan := s.proxy.At(m, f, times)
	localpgtest.Await(s.t, "the fault has happened", func() bool { return plan.Left() == 0 })
}

// sample is what a replica says of itself.
type sample struct{ goroutines, memory float64 }

func scrape(url string) (m sample, err error) {
	res, err := client.Get(url + "/metrics")
	if err != nil {
		return m, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		into := map[string]*float64{"go_goroutines": &m.goroutines, "process_resident_memory_bytes": &m.memory}[name]
		if into == nil {
			continue
		}
		if *into, err = strconv.ParseFloat(value, 64); err != nil {
			return m, err
		}
	}
	if m.goroutines == 0 || m.memory == 0 {
		return m, errors.Join(errors.New("not all metrics are there"), lines.Err())
	}
	return m, nil
}

func (s *soak) sample(i int) sample {
	s.t.Helper()
	m, err := scrape(s.watched[i])
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *soak) sampleUntil(done <-chan struct{}) {
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		for i, url := range s.watched {
			m, err := scrape(url)
			if err == nil {
				s.samples[i] = append(s.samples[i], m)
			} else if i == 0 {
				s.t.Errorf("the replica that is never restarted: %v", err)
			}
		}
	}
}

// settled waits until the replica that was never restarted has come to rest, and returns what it is then.
func (s *soak) settled(before sample) (after sample) {
	s.t.Helper()
	s.proxy.CutAll()
	for deadline := time.Now().Add(patience); ; <-time.After(100 * time.Millisecond) {
		after = s.sample(0)
		if after.goroutines <= before.goroutines+moreGoroutines {
			return after
		}
		if time.Now().After(deadline) {
			break
		}
	}
	s.t.Errorf("%.0f goroutines before the load, %.0f after it", before.goroutines, after.goroutines)
	res, err := client.Get(s.watched[0] + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	s.t.Logf("%s %v", text, err)
	return after
}

// holder is a client that sets tokens aside and reads, each time until it is answered.
type holder struct {
	*clients
	number int
	chance *rand.Rand
	turn   int
	holds  []hold
}

// hold is a reservation that was acknowledged.
type hold struct {
	id      uuid.UUID
	end     holdEnd
	charged int32
}

type holdEnd uint8

const (
	holdSettled holdEnd = iota
	holdReleased
	// holdExpired is what becomes of one that is left alone.
	holdExpired
)

func (e holdEnd) String() string { return [...]string{"settled", "released", "expired"}[e] }

// work goes on until stop, or until it has failed.
func (h *holder) work() {
	for k := 0; !h.stopping.Load(); k++ {
		user := fmt.Sprint("/user/rich-", (h.number+k)%h.accounts)
		if !h.reserve(user, fmt.Sprintf("reserve-%d-%d", h.number, k)) || !h.read(user) {
			return
		}
	}
}

// witness lets a few clients spend from one account after the other, each of which has a history that is short enough to be
// held against the rules.
func (s *soak) witness() {
	maker := &holder{clients: s.load, number: soakHolders}
	for n := 0; !s.load.stopping.Load(); n++ {
		id := fmt.Sprint("witness-", n)
		const tokens, body = 1000, `{"tokens_to_add": 1000}`
		if !maker.ask(http.StatusOK, http.MethodGet, "/user/"+id, "", "", &struct{}{}) ||
			!maker.ask(http.StatusOK, http.MethodPost, "/user/"+id+"/add-tokens", body, "tokens", &struct{}{}) {
			return
		}
		s.load.history.Open(id, user.TierFree, tokens, tokens, 0)
		var sending sync.WaitGroup
		for i := range soakWitnesses {
			sending.Go(func() {
				for k := 0; k < witnessCommands && !s.load.stopping.Load(); k++ {
					s.load.run(fmt.Sprintf("%s-%d-%d", id, i, k), &command{account: id, keyed: k%4 != 3}, i+k)
					<-time.After(5 * time.Millisecond) // a client's pause: all that they send is kept
				}
			})
		}
		sending.Wait()
	}
}

// reserve sets tokens aside; what comes of them is settled or released, or left to run out one time of eight.
func (h *holder) reserve(user, key string) bool {
	tokens, ttl, end := 1+h.chance.IntN(10), 3600, holdSettled
	switch n := h.chance.IntN(8); {
	case n == 0:
		end, ttl = holdExpired, 1+h.chance.IntN(5)
	case n <= 2:
		end = holdReleased
	}
	type answer struct {
		ID      string `json:"reservation_id"`
		Status  string
		Charged int `json:"tokens_charged"`
	}
	var made answer
	if !h.ask(http.StatusCreated, http.MethodPost, user+"/reservations", fmt.Sprintf(`{"tokens": %d, "ttl_seconds": %d}`, tokens, ttl), key, &made) {
		return false
	}
	id, err := uuid.Parse(made.ID)
	if err != nil {
		h.t.Errorf("%s: %v", key, err)
		return false
	}
	if end == holdExpired {
		h.holds = append(h.holds, hold{id, end, 0})
		return true
	}
	path, body, cost := fmt.Sprintf("%s/reservations/%s/release", user, id), "", 0
	if end == holdSettled {
		cost = h.chance.IntN(tokens + 3) // sometimes more than it holds
		path, body = fmt.Sprintf("%s/reservations/%s/settle", user, id), fmt.Sprintf(`{"tokens_used": %d}`, cost)
	}
	for range 1 + h.chance.IntN(2) { // sometimes again
		var closed answer
		if !h.ask(http.StatusOK, http.MethodPost, path, body, "", &closed) {
			return false
		}
		if want := (answer{made.ID, end.String(), cost}); closed != want {
			h.t.Errorf("%s: %+v, want %+v", path, closed, want)
		}
	}
	h.holds = append(h.holds, hold{id, end, int32(cost)})
	return true
}

// read reads an account, and a page of its ledger, whose balances must follow from each other.
func (h *holder) read(user string) bool {
	var page struct {
		Entries []struct {
			Amount  int
			Balance int `json:"balance_after"`
		}
	}
	if !h.ask(http.StatusOK, http.MethodGet, user+"/status", "", "", &struct{}{}) ||
		!h.ask(http.StatusOK, http.MethodGet, user+"/ledger?limit=20", "", "", &page) {
		return false
	}
	for i := 1; i < len(page.Entries); i++ {
		if newer, older := page.Entries[i-1], page.Entries[i]; older.Balance+newer.Amount != newer.Balance {
			h.t.Errorf("%s: the balance goes from %d to %d by an entry of %d", user, older.Balance, newer.Balance, newer.Amount)
		}
	}
	return true
}

// ask sends a request until it is answered with the status.
func (h *holder) ask(want int, method, path, body, key string, answer any) bool {
	var giveUp time.Time
	for {
		h.turn++
		begin := time.Now()
		status, text, err := h.exchange(method, h.replica(h.turn)+path, fmt.Sprintf("holder-%d-%d", h.number, h.turn), body, key)
		var problem struct{ Code string }
		if err == nil {
			err = json.Unmarshal(text, &problem)
		}
		came := cmp.Or(problem.Code, strconv.Itoa(status))
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			came = notAccepted
		case err != nil:
			came = cutOff
		}
		h.mu.Lock()
		h.requests++
		h.answers[came]++
		if err == nil {
			h.slowest = max(h.slowest, time.Since(begin))
		}
		h.mu.Unlock()
		switch {
		case err == nil && status == want:
			if err := json.Unmarshal(text, answer); err != nil {
				h.t.Errorf("%s %s: %v: %s", method, path, err, text)
				return false
			}
			return true
		case err == nil && came != "overloaded" && came != "database_unavailable":
			h.t.Errorf("%s %s: %d %s", method, path, status, text)
			return false
		}
		if h.stopping.Load() {
			if giveUp.IsZero() {
				giveUp = time.Now().Add(patience)
			} else if time.Now().After(giveUp) {
				h.t.Errorf("%s %s: no answer within %s after the end of the faults: %s %v", method, path, patience, came, err)
				return false
			}
		}
		<-time.After(20 * time.Millisecond)
	}
}

// checkHolds waits until those that were left alone have run out, and holds what the holders were told against the
// reservations and their entries. It returns how many ended in which way.
func (s *soak) checkHolds(db database) map[string]int {
	s.t.Helper()
	localpgtest.Await(s.t, "no reservation is open", func() bool {
		return db.number("SELECT count(*) FROM viralpilot.reservations WHERE status = 'open'") == 0
	})
	holds := map[uuid.UUID]hold{}
	for _, h := range s.holders {
		for _, made := range h.holds {
			holds[made.id] = made
		}
	}
	db.each("SELECT reservation_id, status, tokens_charged FROM viralpilot.reservations", func(rows pgx.Rows) error {
		var got hold
		var status string
		if err := rows.Scan((*[16]byte)(&got.id), &status, &got.charged); err != nil {
			return err
		}
		want, ok := holds[got.id]
		switch {
		case !ok:
			s.t.Errorf("reservation %s, %s, was made and not acknowledged", got.id, status)
		case status != want.end.String() || got.charged != want.charged:
			s.t.Errorf("reservation %s is %s with %d charged, want %s with %d", got.id, status, got.charged, want.end, want.charged)
		}
		delete(holds, got.id)
		return nil
	})
	for id := range holds {
		s.t.Errorf("reservation %s was acknowledged and is not there", id)
	}
	const unexplained = `SELECT count(*) FROM (
		SELECT reservation_id FROM viralpilot.reservations r LEFT JOIN viralpilot.ledger l USING (cognito_user_id, reservation_id)
		GROUP BY cognito_user_id, reservation_id, r.tokens_charged
		HAVING count(*) FILTER (WHERE l.kind = 'reserve') <> 1 OR count(l.kind) <> 2 OR sum(l.amount) <> -r.tokens_charged) AS wrong`
	if n := db.number(unexplained); n > 0 {
		s.t.Errorf("of %d reservations the entries are not one that reserves and one that closes, or do not make what was charged", n)
	}
	return db.counts("SELECT status, count(*) FROM viralpilot.reservations GROUP BY 1")
}

// report judges the samples of the replica that was never restarted and prints all figures.
func (s *soak) report(sum tally, holds map[string]int, lasted time.Duration, before, after sample) {
	s.t.Helper()
	all := s.samples[0]
	third := len(all) / 3
	if third == 0 {
		s.t.Errorf("%s are too short for a comparison", lasted)
		return
	}
	memory := func(samples []sample) float64 {
		var values []float64
		for _, m := range samples {
			values = append(values, m.memory)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	peak := func(samples []sample) (p sample) {
		for _, m := range samples {
			p.goroutines, p.memory = max(p.goroutines, m.goroutines), max(p.memory, m.memory)
		}
		return p
	}
	warm, end := memory(all[third:2*third]), memory(all[len(all)-third:])
	if end > memoryGrowth*warm {
		s.t.Errorf("%.1f MiB resident after the warm-up, %.1f at the end", warm/(1<<20), end/(1<<20))
	}
	if most := max(peak(all).memory, after.memory); most > mostMemory {
		s.t.Errorf("%.1f MiB resident", most/(1<<20))
	}

	var table strings.Builder
	row := func(name, format string, args ...any) { fmt.Fprintf(&table, "| "+name+" | "+format+" |\n", args...) }
	table.WriteString("\n| | |\n|---|---|\n")
	row("duration", "%s at %d connections", lasted.Round(time.Second), soakConsumers+soakHolders+soakWitnesses)
	faults := 0
	for _, n := range s.happened {
		faults += n
	}
	row("faults", "%d", faults)
	for _, name := range slices.Sorted(maps.Keys(s.happened)) {
		row("– "+name, "%d", s.happened[name])
	}
	row("commands", "%d, %.0f a second", sum.commands, float64(sum.commands)/lasted.Seconds())
	row("– acknowledged", "%d", sum.acknowledged)
	row("– in the ledger", "%d", sum.inLedger)
	row("– refused", "%d", sum.refused)
	row("– unknown", "%d, of them done %d", sum.unknown, sum.unknownDone)
	row("reservations", "%d settled, %d released, %d expired", holds["settled"], holds["released"], holds["expired"])
	row("requests", "%d, %.0f a second", sum.requests, float64(sum.requests)/lasted.Seconds())
	for _, answer := range slices.Sorted(maps.Keys(s.load.answers)) {
		row("– "+answer, "%d", s.load.answers[answer])
	}
	row("longest pause", "%s: %s", s.load.longestPause.Round(time.Millisecond), s.slowest)
	row("slowest answer", "%s", s.load.slowest.Round(time.Millisecond))
	row("memory of the lasting replica at the start, after the warm-up, at the end, at most", "%.1f, %.1f, %.1f, %.1f MiB",
		before.memory/(1<<20), warm/(1<<20), end/(1<<20), peak(all).memory/(1<<20))
	row("goroutines of the lasting replica at the start, at most, at the end", "%.0f, %.0f, %.0f",
		before.goroutines, peak(all).goroutines, after.goroutines)
	others := peak(slices.Concat(s.samples[1:]...))
	row("the restarted replicas at most", "%.1f MiB, %.0f goroutines", others.memory/(1<<20), others.goroutines)
	row("verify", "%s", strings.TrimSpace(sum.verified))
	s.t.Log(table.String())
}
