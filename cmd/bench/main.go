// Command bench is the program behind `make bench`, `make bench-compare` and `make bench-growth`. It measures the
// service as it ships, on a PostgreSQL of its own with default durability, against what that PostgreSQL can do by itself,
// against the least that the same requests and rows cost, against another version, or as it grows. The load comes from
// wrk and pgbench. It reads processor times from /proc, so it needs Linux. It is never part of the image.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const usage = "usage: bench | bench compare GIT-REF | bench growth | bench table FILES"

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		return bench(ctx)
	case len(args) == 2 && args[0] == "compare":
		return compare(ctx, args[1])
	case len(args) == 1 && args[0] == "growth":
		return growth(ctx)
	case len(args) > 1 && args[0] == "table":
		return table(args[1:])
	case len(args) == 3 && args[0] == "floor":
		return serveFloor(ctx, args[1], args[2])
	}
	return errors.New(usage)
}

// settings of a run, from the environment.
type settings struct {
	// Seconds is how long one measurement takes, Rounds how often each is made. Both have a default of their own in each
	// command.
	Seconds int `envconfig:"BENCH_SECONDS" json:"seconds"`
	Rounds  int `envconfig:"BENCH_ROUNDS" json:"rounds"`
	// Figures are the keys of those to measure; empty is all of them.
	Figures []string `envconfig:"BENCH_FIGURES" json:"figures,omitempty"`
	// SlowCommits is how much longer every commit takes, up to 100ms, for all figures.
	SlowCommits time.Duration `envconfig:"BENCH_SLOW_COMMITS" json:"slow_commits,omitempty"`
	// Accounts and Entries are how much the large database has of each.
	Accounts int `envconfig:"BENCH_ACCOUNTS" default:"1000000" json:"accounts"`
	Entries  int `envconfig:"BENCH_LEDGER" default:"5000000" json:"ledger_entries"`
	// JSON is the file that keeps what was measured.
	JSON string `envconfig:"BENCH_JSON" json:"-"`
}

// readSettings reads them; seconds and rounds are the defaults of the command.
func readSettings(seconds, rounds int) (settings, error) {
	s := settings{Seconds: seconds, Rounds: rounds}
	if err := envconfig.Process("", &s); err != nil {
		return s, err
	}
	if s.Seconds < 1 || s.Rounds < 1 {
		return s, errors.New("BENCH_SECONDS and BENCH_ROUNDS are numbers above 0")
	}
	if s.SlowCommits < 0 || s.SlowCommits > longestCommitDelay {
		return s, fmt.Errorf("BENCH_SLOW_COMMITS is %s, which is not from 0 to %s", s.SlowCommits, longestCommitDelay)
	}
	if s.Accounts < accounts || s.Entries < s.Accounts || s.Entries%s.Accounts != 0 {
		return s, fmt.Errorf("BENCH_ACCOUNTS is a number from %d on, and BENCH_LEDGER a multiple of it", accounts)
	}
	return s, nil
}

func bench(ctx context.Context) (err error) {
	s, err := readSettings(5, 3)
	if err != nil {
		return err
	}
	chosen, err := choose(figures(), s.Figures)
	if err != nil {
		return err
	}
	b, err := newBed(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.build(ctx, ".", "user-management"); err != nil {
		return err
	}
	subjects := map[bool]*subject{}
	for _, f := range chosen {
		if subjects[f.large] != nil {
			continue
		}
		size, entries, name := accounts, accounts, "small"
		if f.large {
			size, entries, name = s.Accounts, s.Entries, "large"
		}
		if subjects[f.large], err = b.newSubject(ctx, name, "user-management", size, entries); err != nil {
			return err
		}
	}
	rounds := map[string][]result{}
	for round := range s.Rounds {
		for _, f := range chosen {
			r, err := subjects[f.large].measure(ctx, f)
			if err != nil {
				return err
			}
			progress(round, f.name, r)
			rounds[f.key] = append(rounds[f.key], r)
		}
	}
	made := newReport(s, rounds)
	fmt.Print(markdown([]report{made}))
	return keep(s.JSON, made)
}

// progress tells whoever waits what has just been measured.
func progress(round int, name string, r result) {
	fmt.Fprintf(os.Stderr, "%s  round %d  %-55s %s\n", time.Now().Format(time.TimeOnly), round+1, name, r)
}

// keep writes what was measured into the file, unless its name is empty.
func keep(file string, what any) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
