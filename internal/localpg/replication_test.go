package localpg

import (
	"context"
	"strings"
	"testing"
)

func TestAPromotedStandbyHasWhatTheKilledPrimaryCommitted(t *testing.T) {
	t.Parallel()
	primary := newServer(t, Options{Dir: tempDir(t), Durable: true})
	start(t, primary)
	url := primary.URL("postgres")
	exec1(t, url, "CREATE TABLE kept (n int)")
	standby := newStandby(t, primary)
	second := standby.URL("postgres")
	if second == url {
		t.Fatalf("both are at %s", url)
	}
	if _, err := primary.Standby(t.Context(), standby.opts.Dir); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("another standby in the same folder: %v", err)
	}
	if got := query(t, second, "SELECT pg_is_in_recovery()::text"); got != "true" {
		t.Errorf("the standby is in recovery: %s", got)
	}
	conn := connect(t, url)
	for n := range 100 {
		if _, err := conn.Exec(t.Context(), "INSERT INTO kept VALUES ($1)", n); err != nil {
			t.Fatal(err)
		}
	}

	pids, err := children(primary.proc.cmd.Process.Pid)
	if err != nil || len(pids) < 5 {
		t.Errorf("the processes of the primary are %v, %v", pids, err)
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if line := commandLine(pid); strings.Contains(line, "postgres") {
			t.Errorf("process %d is still there: %s", pid, line)
		}
	}
	if err := primary.Kill(); err == nil {
		t.Error("it could be killed twice")
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	const sums = "SELECT count(*) || ' ' || sum(n) FROM kept"
	if got := query(t, second, sums); got != "100 4950" {
		t.Errorf("the promoted standby has %s", got)
	}
	exec1(t, second, "INSERT INTO kept VALUES (100)") // waits for nobody

	start(t, primary)
	if got := query(t, url, sums); got != "100 4950" {
		t.Errorf("the killed primary recovered %s", got)
	}
}

func TestThePrimaryWaitsForItsStandby(t *testing.T) {
	t.Parallel()
	primary := newServer(t, Options{Dir: tempDir(t), Durable: true})
	start(t, primary)
	standby := newStandby(t, primary)
	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	conn := connect(t, primary.URL("postgres"))
	go func() {
		_, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 7 AS n")
		committed <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for waits := false; !waits; {
		if err := primary.query(ctx, &waits, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"); err != nil {
			t.Fatal(err)
		}
	}
	start(t, standby)
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	// The standby has written it, and replays it before it is promoted.
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query(t, standby.URL("postgres"), "SELECT n::text FROM kept"); got != "7" {
		t.Errorf("the standby has %q", got)
	}
}

func TestAServerThatIsNotDurableHasNoStandby(t *testing.T) {
	t.Parallel()
	server := newServer(t, Options{Dir: tempDir(t)})
	if _, err := server.Standby(t.Context(), tempDir(t)); err == nil || !strings.Contains(err.Error(), "not durable") {
		t.Errorf("got error %v", err)
	}
}

func newStandby(t *testing.T, primary *Server) *Server {
	t.Helper()
	standby, err := primary.Standby(t.Context(), tempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, standby) })
	return standby
}
