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
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/localpg"
)

// accounts is how many there are unless a figure is about more of them.
const accounts = 100_000

// balance is what each account has, more than all measurements use up; the tier of most grants it every month.
const balance = 1_500_000_000

// longestCommitDelay is as far as commit_delay goes.
const longestCommitDelay = 100 * time.Millisecond

// bed is what is measured on: a PostgreSQL server.
type bed struct {
	settings   settings
	dir        string
	server     *localpg.Server
	postmaster int
	subjects   []*subject
}

// newBed starts the server. The caller closes the bed.
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
	if b.server, err = localpg.New(localpg.Options{Dir: filepath.Join(b.dir, "postgres"), Durable: true}); err != nil {
		return nil, err
	}
	if err := b.startServer(ctx); err != nil {
		return nil, err
	}
	// A checkpoint makes what comes after it write whole pages into the log, which would hit now one figure and now
	// another. What that costs is for the measurements of growth.
	return b, errors.Join(
		b.letPgbenchIn(ctx),
		b.set(ctx, map[string]string{"checkpoint_timeout": "1h", "max_wal_size": "20GB"}),
		b.slowCommits(ctx, s.SlowCommits))
}

// pgbenchRole may use the tables that are made for pgbench, and needs no password: pgbench connects anew for each figure,
// and checking passwords would take much of the time that it has.
const pgbenchRole = "pgbench"

// letPgbenchIn makes the role. The server takes the file over when its settings are read again.
func (b *bed) letPgbenchIn(ctx context.Context) error {
	var file string
	if err := b.query(ctx, "postgres", func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SHOW hba_file").Scan(&file)
	}); err != nil {
		return err
	}
	rules, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	rules = append([]byte("host all "+pgbenchRole+" 127.0.0.1/32 trust\n"), rules...)
	return errors.Join(os.WriteFile(file, rules, 0o600), b.sql(ctx, "postgres", "CREATE ROLE "+pgbenchRole+" LOGIN"))
}

func (b *bed) startServer(ctx context.Context) error {
	if err := b.server.Start(ctx); err != nil {
		return err
	}
	return b.query(ctx, "postgres", func(conn *pgx.Conn) error {
		stat, err := readStat(int(conn.PgConn().PID()))
		b.postmaster = stat.parent
		return err
	})
}

func (b *bed) close() error {
	var err error
	for _, s := range b.subjects {
		err = errors.Join(err, s.stop())
	}
	if b.server != nil {
		err = errors.Join(err, b.server.Stop())
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// slowCommits makes every commit take longer by as much, however many there are at once.
func (b *bed) slowCommits(ctx context.Context, by time.Duration) error {
	return b.set(ctx, map[string]string{"commit_delay": strconv.FormatInt(by.Microseconds(), 10), "commit_siblings": "0"})
}

// set changes settings of the server that it takes over at once.
func (b *bed) set(ctx context.Context, values map[string]string) error {
	var statements []string
	for name, value := range values {
		statements = append(statements, fmt.Sprintf("ALTER SYSTEM SET %s = '%s'", name, value))
	}
	return b.sql(ctx, "postgres", append(statements, "SELECT pg_reload_conf()")...)
}

// sql runs statements, each string in a transaction of its own.
func (b *bed) sql(ctx context.Context, database string, statements ...string) error {
	return b.query(ctx, database, func(conn *pgx.Conn) error {
		for _, s := range statements {
			if _, err := conn.Exec(ctx, s); err != nil {
				return fmt.Errorf("%w: %s", err, s)
			}
		}
		return nil
	})
}

func (b *bed) query(ctx context.Context, database string, use func(*pgx.Conn) error) (err error) {
	conn, err := pgx.Connect(ctx, b.server.URL(database))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	return use(conn)
}

// build makes the binary of that name from the source in dir, as `make build` does.
func (b *bed) build(ctx context.Context, dir, name string) error {
	say("building %s", name)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", filepath.Join(b.dir, name), "./cmd/user-management")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build of %s: %w", name, err)
	}
	return nil
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// subject is one version of the service with a database of its own.
type subject struct {
	*bed
	database string
	binary   string
	accounts int
	// periods is whether the database has the columns of granted periods, which came with migration 4.
	periods bool
	// running are the service, then other replicas of it and the floor server where a figure has asked for them.
	running []*process
	floor   *process
	// ownTables is whether pgbench and the floor server have their tables.
	ownTables bool
}

// newSubject starts the binary on a new database of that name, and gives it accounts and entries, of which there are a
// multiple.
func (b *bed) newSubject(ctx context.Context, database, binary string, accounts, entries int) (*subject, error) {
	s := &subject{bed: b, database: database, binary: filepath.Join(b.dir, binary), accounts: accounts}
	b.subjects = append(b.subjects, s)
	if err := b.sql(ctx, "postgres", "CREATE DATABASE "+database); err != nil {
		return nil, err
	}
	if _, err := s.start(ctx); err != nil {
		return nil, err
	}
	say("loading %d accounts and %d entries into the database %s", accounts, entries, database)
	if err := s.load(ctx, entries); err != nil {
		return nil, err
	}
	_, err := s.wrk(ctx, wrkRun{url: s.running[0].url, connections: 64, script: luaWarm, time: 2 * time.Second})
	return s, err
}

// load fills the database past the service, with what it would have written itself: accounts user-1, … whose tier
// grants the balance, and as many others topup-1, … that have it from top-ups.
func (s *subject) load(ctx context.Context, entries int) error {
	if err := s.query(ctx, s.database, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM information_schema.columns
			WHERE table_schema = 'viralpilot' AND table_name = 'account_state' AND column_name = 'granted_period')`).Scan(&s.periods)
	}); err != nil {
		return err
	}
	sideColumns, sideOfAllowance, sideOfTopUps, ledgerColumns, ledgerValues := "", "", "", "", ""
	if s.periods {
		sideColumns = ", allowance, granted_period"
		sideOfAllowance = fmt.Sprintf(", %d, %d", balance, period(time.Now()))
		sideOfTopUps = fmt.Sprintf(", 0, %d", period(time.Now()))
		ledgerColumns, ledgerValues = ", top_ups_amount, period", fmt.Sprintf(", 0, %d", period(time.Now()))
	}
	return s.sql(ctx, s.database,
		fmt.Sprintf(`INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, tokens_remaining, last_token_reset_date)
			SELECT 'user-' || i, 'creator', %[1]d, now() FROM generate_series(1, %[2]d) AS i
			UNION ALL SELECT 'topup-' || i, 'free', %[1]d, now() FROM generate_series(1, %[3]d) AS i`, balance, s.accounts, accounts),
		fmt.Sprintf(`INSERT INTO viralpilot.account_state (cognito_user_id, top_ups%s)
			SELECT 'user-' || i, 0%s FROM generate_series(1, %d) AS i
			UNION ALL SELECT 'topup-' || i, %d%s FROM generate_series(1, %d) AS i`,
			sideColumns, sideOfAllowance, s.accounts, balance, sideOfTopUps, accounts),
		// Consumes that cost nothing stand for those of the past, so that the newest entry of each account explains its row.
		fmt.Sprintf(`INSERT INTO viralpilot.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged, created_at%s)
			SELECT 'user-' || i, CASE n WHEN 1 THEN 'opening' ELSE 'consume' END, CASE n WHEN 1 THEN %[2]d ELSE 0 END, %[2]d, 0, 0, now()%[3]s
			FROM generate_series(1, %[4]d) AS n, generate_series(1, %[5]d) AS i`,
			ledgerColumns, balance, ledgerValues, entries/s.accounts, s.accounts),
		// The analysis of an empty table would make PostgreSQL plan it as one without pages, and read all of it ever after.
		"VACUUM ANALYZE viralpilot.userdata, viralpilot.account_state, viralpilot.ledger", "CHECKPOINT")
}

// period is the number of a month, as the accounts have it that were granted its allowance.
func period(t time.Time) int {
	year, month, _ := t.UTC().Date()
	return 12*year + int(month)
}

// start starts one more replica of the service.
func (s *subject) start(ctx context.Context) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.binary)
	cmd.Env = []string{
		"DATABASE_URL=" + s.server.URL(s.database), "SERVICE_HOST=127.0.0.1", "SERVICE_PORT=" + port,
		fmt.Sprintf("TIER_MONTHLY_TOKENS=creator:%d", balance),
	}
	return s.launch(ctx, cmd, port)
}

// launch starts a server that will listen on a port, with its log in a file, and waits until it is healthy.
func (s *subject) launch(ctx context.Context, cmd *exec.Cmd, port string) (*process, error) {
	log, err := os.Create(filepath.Join(s.dir, s.database+"-"+port+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, url: "http://127.0.0.1:" + port}
	s.running = append(s.running, p)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !p.healthy(ctx) {
		select {
		case <-ctx.Done():
			said, err := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("%s did not become healthy: %w\n%s", filepath.Base(cmd.Path), ctx.Err(), said), err)
		case <-poll.C:
		}
	}
	return p, nil
}

// stopAfter stops all that was started after the first n of those that run.
func (s *subject) stopAfter(n int) (err error) {
	for len(s.running) > n {
		last := len(s.running) - 1
		err = errors.Join(err, s.running[last].stop())
		s.running = s.running[:last]
	}
	return err
}

func (s *subject) stop() error {
	s.floor = nil
	return s.stopAfter(0)
}

// process is a server that a load can be sent to.
type process struct {
	cmd *exec.Cmd
	url string
}

func (p *process) healthy(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/health", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode == http.StatusOK
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.cmd.Wait()
}

var residentLine = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

// resident is the resident memory in MiB, as /proc has it.
func (p *process) resident() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	match := residentLine.FindSubmatch(status)
	if match == nil {
		return 0, errors.New("no VmRSS in /proc")
	}
	kib, err := strconv.ParseFloat(string(match[1]), 64)
	return kib / 1024, err
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
