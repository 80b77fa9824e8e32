package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg"
)

// accounts is how many there are: user-1 to user-100000, each with top-ups that no measurement uses up.
const accounts = 100_000

// bed is what is measured on: a database, and one running service.
type bed struct {
	settings settings
	dir      string
	binary   string
	database *localpg.Server
	service  *service
	// residentMiB is the service's resident memory at the end of the latest consume under load.
	residentMiB float64
}

func newBed(ctx context.Context, s settings) (_ *bed, err error) {
	if err := localpg.EnsureBinaries(ctx, os.Stderr); err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("wrk"); err != nil {
		return nil, errors.New("wrk is not installed: the package of that name has it")
	}
	b := &bed{settings: s}
	if b.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	b.binary = filepath.Join(b.dir, "user-management")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.binary, "./cmd/user-management")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	if b.database, err = localpg.New(localpg.Options{Dir: filepath.Join(b.dir, "postgres"), Durable: true}); err != nil {
		return nil, err
	}
	if err := b.database.Start(ctx); err != nil {
		return nil, err
	}
	if b.service, err = b.start(ctx, "service"); err != nil {
		return nil, err
	}
	return b, b.sql(ctx, fmt.Sprintf(`
		INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, tokens_remaining, last_token_reset_date)
			SELECT 'user-' || i, 'creator', 1500000000, now() FROM generate_series(1, %[1]d) AS i;
		INSERT INTO viralpilot.account_state (cognito_user_id, allowance, granted_period)
			SELECT 'user-' || i, 1500000000, %[2]d FROM generate_series(1, %[1]d) AS i;
		INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, top_ups_amount, period, created_at)
			SELECT 'user-' || i, 'opening', 1500000000, 1500000000, 0, 0, %[2]d, now() FROM generate_series(1, %[1]d) AS i`,
		accounts, period(time.Now())),
		// The analysis of an empty table would make PostgreSQL plan it as one without pages, and read all of it ever after.
		"VACUUM ANALYZE viralpilot.userdata, viralpilot.account_state, viralpilot.ledger", "CHECKPOINT")
}

// period is the number of a month, as the accounts have it that were granted its allowance.
func period(t time.Time) int {
	year, month, _ := t.UTC().Date()
	return 12*year + int(month)
}

func (b *bed) close() error {
	var err error
	if b.service != nil {
		err = b.service.stop()
	}
	if b.database != nil {
		err = errors.Join(err, b.database.Stop())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

func (b *bed) url() string { return b.database.URL("postgres") }

// sql runs statements, each string in a transaction of its own.
func (b *bed) sql(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, b.url())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// growLedger fills the ledger up to n entries, as consumes of all accounts that took place before. The balances are
// laid out so that the newest entry of each account still explains its row.
func (b *bed) growLedger(ctx context.Context, n int) error {
	fmt.Fprintf(os.Stderr, "%s  loading a ledger of %d entries\n", time.Now().Format(time.TimeOnly), n)
	return b.sql(ctx, fmt.Sprintf(`
		INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged, top_ups_amount, period, created_at)
			SELECT u.cognito_user_id, 'consume', 0, u.tokens_remaining, u.tokens_used_this_month, 0, 0, %d, now()
			FROM generate_series(1, %d) AS i, viralpilot.userdata u`, period(time.Now()), n/accounts),
		"VACUUM ANALYZE viralpilot.ledger", "CHECKPOINT")
}

// service is the binary while it serves, with its log in a file.
type service struct {
	cmd *exec.Cmd
	url string
}

// start starts a service and waits until it is healthy.
func (b *bed) start(ctx context.Context, name string) (*service, error) {
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &service{cmd: exec.Command(b.binary), url: "http://127.0.0.1:" + port}
	s.cmd.Dir = b.dir
	s.cmd.Env = []string{"DATABASE_URL=" + b.url(), "SERVICE_HOST=127.0.0.1", "SERVICE_PORT=" + port}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !healthy(ctx, s.url) {
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("the service did not become healthy: %w", ctx.Err()), s.stop())
		case <-tick.C:
		}
	}
	return s, nil
}

func healthy(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/health", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode == http.StatusOK
}

func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

// resident is the resident memory in MiB, as /proc has it.
func (s *service) resident() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		return 0, errors.New("no VmRSS in /proc")
	}
	kib, err := strconv.ParseFloat(string(match[1]), 64)
	return kib / 1024, err
}

// startTimes measures from the start of the process to its first healthy answer, on a migrated database, in
// milliseconds.
func (b *bed) startTimes(ctx context.Context, n int) (result, error) {
	var list []result
	for i := range n {
		begin := time.Now()
		s, err := b.start(ctx, fmt.Sprintf("start-%d", i))
		if err != nil {
			return result{}, err
		}
		list = append(list, result{Value: float64(time.Since(begin).Microseconds()) / 1000})
		if err := s.stop(); err != nil {
			return result{}, err
		}
	}
	return median(list), nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// wrk loads url for the settings' seconds from that many connections with a Lua script.
func (b *bed) wrk(ctx context.Context, url string, connections int, script string) (result, error) {
	return b.wrkNamed(ctx, "load", url, connections, script)
}

// wrkNamed is wrk for loads that run at the same time: each needs a name of its own.
func (b *bed) wrkNamed(ctx context.Context, name, url string, connections int, script string) (result, error) {
	file := filepath.Join(b.dir, name+".lua")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return result{}, err
	}
	out, err := exec.CommandContext(ctx, "wrk", "-t1", "-c"+strconv.Itoa(connections), fmt.Sprintf("-d%ds", b.settings.Seconds),
		"--latency", "-s", file, url).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("%w: %s", err, out)
	}
	return parseWrk(string(out))
}

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkP99    = regexp.MustCompile(`99%\s+([\d.]+)(us|ms|s)`)
	wrkFailed = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	wrkSocket = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
)

func parseWrk(out string) (r result, err error) {
	rate, p99 := wrkRate.FindStringSubmatch(out), wrkP99.FindStringSubmatch(out)
	if rate == nil || p99 == nil {
		return r, fmt.Errorf("wrk printed no figures: %s", out)
	}
	if r.Value, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return r, err
	}
	if r.P99, err = strconv.ParseFloat(p99[1], 64); err != nil {
		return r, err
	}
	r.P99 *= map[string]float64{"us": 0.001, "ms": 1, "s": 1000}[p99[2]]
	failed := wrkFailed.FindStringSubmatch(out)
	if socket := wrkSocket.FindStringSubmatch(out); socket != nil {
		failed = append(failed, socket[1:]...)
	}
	for _, n := range failed[min(1, len(failed)):] {
		count, err := strconv.Atoi(n)
		if err != nil {
			return r, err
		}
		r.Failed += count
	}
	return r, nil
}

// findPgbench looks beside the server's programs, which may be links to where all of them are.
func findPgbench() (string, error) {
	dir, err := localpg.FindBinaries()
	if err != nil {
		return "", err
	}
	server, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		return "", err
	}
	for _, dir := range []string{dir, filepath.Dir(server)} {
		if program, err := exec.LookPath(filepath.Join(dir, "pgbench")); err == nil {
			return program, nil
		}
	}
	return exec.LookPath("pgbench")
}

// pgbench runs a script of one transaction from that many clients.
func (b *bed) pgbench(ctx context.Context, clients int, script string) (result, error) {
	program, err := findPgbench()
	if err != nil {
		return result{}, err
	}
	file := filepath.Join(b.dir, "pgbench.sql")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return result{}, err
	}
	out, err := exec.CommandContext(ctx, program, "-n", "-M", "prepared", "-c", strconv.Itoa(clients),
		"-j", "1", "-T", strconv.Itoa(b.settings.Seconds), "-f", file, b.url()).CombinedOutput()
	if err != nil {
		return result{}, fmt.Errorf("%w: %s", err, out)
	}
	_, rest, found := strings.Cut(string(out), "tps = ")
	if !found {
		return result{}, fmt.Errorf("pgbench printed no tps: %s", out)
	}
	rate, _, _ := strings.Cut(rest, " ")
	tps, err := strconv.ParseFloat(rate, 64)
	return result{Value: tps}, err
}
