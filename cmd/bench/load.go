package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/viralpilot/user-management/internal/localpg"
)

// result is one measurement.
type result struct {
	// Rate is requests or transactions a second.
	Rate float64 `json:"rate,omitempty"`
	// P50 and P99 are in milliseconds; 0 where they were not measured.
	P50 float64 `json:"p50_ms,omitempty"`
	P99 float64 `json:"p99_ms,omitempty"`
	// Service, Postgres and Generator are the microseconds of processor time that a request took in each.
	Service   float64 `json:"service_us,omitempty"`
	Postgres  float64 `json:"postgres_us,omitempty"`
	Generator float64 `json:"generator_us,omitempty"`
	// Failed is how many requests of a kind that must not fail did.
	Failed int `json:"failed,omitempty"`
	// ResidentMiB is the service's resident memory after it.
	ResidentMiB float64 `json:"resident_mib,omitempty"`
	// StartMillis is the time from the start of the service to its first healthy answer.
	StartMillis float64 `json:"start_ms,omitempty"`

	// requests are all that were sent while it was measured, of whatever kind, and generator the time of who sent them.
	requests  int
	generator time.Duration
}

// processor is the processor time of a request in service and PostgreSQL together.
func (r result) processor() float64 { return r.Service + r.Postgres }

func (r result) String() string {
	if r.StartMillis > 0 {
		return fmt.Sprintf("%.1f ms", r.StartMillis)
	}
	text := fmt.Sprintf("%7.0f/s  p99 %5.1f ms  %5.1f us + %5.1f us PostgreSQL", r.Rate, r.P99, r.Service, r.Postgres)
	if r.Failed > 0 {
		text += fmt.Sprintf("  FAILED %d", r.Failed)
	}
	return text
}

// measure measures one figure.
func (s *subject) measure(ctx context.Context, f figure) (r result, err error) {
	if f.slow {
		if err := s.slowCommits(ctx, slowCommit); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, s.slowCommits(ctx, s.settings.SlowCommits)) }()
	}
	if r, err = f.measure(ctx, s); err != nil {
		return r, fmt.Errorf("%s: %w", f.name, err)
	}
	return r, nil
}

// timed adds to what load measures the processor time that it took.
func (s *subject) timed(load func() (result, error)) (r result, err error) {
	spent := func() (service, postgres time.Duration, err error) {
		for _, p := range s.running {
			ran, err := threadsTime(p.cmd.Process.Pid)
			if err != nil {
				return 0, 0, err
			}
			service += ran
		}
		postgres, err = familyTime(s.postmaster)
		return service, postgres, err
	}
	service, postgres, err := spent()
	if err != nil {
		return r, err
	}
	if r, err = load(); err != nil {
		return r, err
	}
	serviceAfter, postgresAfter, err := spent()
	if err != nil {
		return r, err
	}
	if r.requests == 0 {
		return r, errors.New("nothing was answered")
	}
	each := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(r.requests) }
	r.Service, r.Postgres, r.Generator = each(serviceAfter-service), each(postgresAfter-postgres), each(r.generator)
	return r, nil
}

// wrkRun is a load from wrk.
type wrkRun struct {
	url         string
	connections int
	// script is Lua, behind a prelude.
	script string
	// time is the settings' seconds where it is 0.
	time time.Duration
}

// wrk runs one load.
func (s *subject) wrk(ctx context.Context, w wrkRun) (r result, err error) {
	file, err := os.CreateTemp(s.dir, "*.lua")
	if err != nil {
		return r, err
	}
	_, err = fmt.Fprintf(file, "local accounts = %d\n%s%s", s.accounts, luaPrelude, w.script)
	if err := errors.Join(err, file.Close()); err != nil {
		return r, err
	}
	if w.time == 0 {
		w.time = time.Duration(s.settings.Seconds) * time.Second
	}
	cmd := exec.CommandContext(ctx, "wrk", "-t1", "-c"+strconv.Itoa(w.connections), fmt.Sprintf("-d%.0fs", w.time.Seconds()),
		"--latency", "-s", file.Name(), w.url)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("wrk: %w: %s", err, out)
	}
	if r, err = parseWrk(string(out)); err != nil {
		return r, err
	}
	r.generator = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return r, os.Remove(file.Name())
}

// together runs several loads at once.
func (s *subject) together(ctx context.Context, loads ...wrkRun) ([]result, error) {
	results, errs := make([]result, len(loads)), make([]error, len(loads))
	var running sync.WaitGroup
	for i, w := range loads {
		running.Go(func() { results[i], errs[i] = s.wrk(ctx, w) })
	}
	running.Wait()
	return results, errors.Join(errs...)
}

var (
	wrkRate     = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkRequests = regexp.MustCompile(`(\d+) requests in `)
	wrkLatency  = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([\d.]+)(us|ms|s)\b`)
	wrkFailed   = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	wrkSocket   = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
)

func parseWrk(out string) (r result, err error) {
	rate, requests, latencies := wrkRate.FindStringSubmatch(out), wrkRequests.FindStringSubmatch(out), wrkLatency.FindAllStringSubmatch(out, -1)
	if rate == nil || requests == nil || len(latencies) != 2 {
		return r, fmt.Errorf("wrk printed no figures: %s", out)
	}
	if r.Rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return r, err
	}
	if r.requests, err = strconv.Atoi(requests[1]); err != nil {
		return r, err
	}
	for i, into := range []*float64{&r.P50, &r.P99} {
		if *into, err = strconv.ParseFloat(latencies[i][2], 64); err != nil {
			return r, err
		}
		*into *= map[string]float64{"us": 0.001, "ms": 1, "s": 1000}[latencies[i][3]]
	}
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

// pgbench runs a script of one transaction from that many clients, on the tables that are PostgreSQL's own to change.
func (s *subject) pgbench(ctx context.Context, clients int, script string) (r result, err error) {
	program, err := findPgbench()
	if err != nil {
		return r, err
	}
	database, err := url.Parse(s.server.URL(s.database))
	if err != nil {
		return r, err
	}
	database.User = url.User(pgbenchRole)
	file := filepath.Join(s.dir, "pgbench.sql")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, program, "-n", "-M", "prepared", "-c", strconv.Itoa(clients), "-j", "1",
		"-T", strconv.Itoa(s.settings.Seconds), "-D", "accounts="+strconv.Itoa(s.accounts), "-f", file, database.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	r, err = parsePgbench(string(out))
	r.generator = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return r, err
}

func parsePgbench(out string) (r result, err error) {
	value := func(before string) string {
		_, rest, _ := strings.Cut(out, before)
		word, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		word, _, _ = strings.Cut(word, "\n")
		return word
	}
	if r.requests, err = strconv.Atoi(value("transactions actually processed:")); err != nil {
		return r, fmt.Errorf("pgbench printed no transactions: %s", out)
	}
	if r.requests == 0 {
		return r, errors.New("pgbench had no time left once it was connected: choose more BENCH_SECONDS")
	}
	if r.Rate, err = strconv.ParseFloat(value("tps = "), 64); err != nil {
		return r, fmt.Errorf("pgbench printed no tps: %s", out)
	}
	return r, nil
}
