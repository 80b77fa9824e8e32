// Command bench is the program behind `make bench`: it measures the service as it ships, on a PostgreSQL of its own with
// default durability, against what that PostgreSQL can do by itself. The load comes from wrk and pgbench. Each figure
// is the median of rounds in which all of them are measured in turn. It is never part of the image.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings of a run, from the environment.
type settings struct {
	// Seconds is how long one measurement takes, Rounds how often each is made.
	Seconds, Rounds int
	// Ledger is the number of entries of the large ledger; 0 leaves it out.
	Ledger int
}

func readSettings() (s settings, err error) {
	for name, field := range map[string]struct {
		value *int
		byDef int
	}{
		"BENCH_SECONDS": {&s.Seconds, 5}, "BENCH_ROUNDS": {&s.Rounds, 3}, "BENCH_LEDGER": {&s.Ledger, 10_000_000},
	} {
		*field.value = field.byDef
		if text := os.Getenv(name); text != "" {
			n, parse := strconv.Atoi(text)
			if parse != nil || n < 0 || n == 0 && name != "BENCH_LEDGER" {
				err = errors.Join(err, fmt.Errorf("%s is %q, which is not a number above 0", name, text))
			}
			*field.value = n
		}
	}
	return s, err
}

func run(ctx context.Context) (err error) {
	settings, err := readSettings()
	if err != nil {
		return err
	}
	b, err := newBed(ctx, settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	results, err := b.measure(ctx, figures(), settings.Rounds)
	if err != nil {
		return err
	}
	if results["start to ready"], err = b.startTimes(ctx, 5); err != nil {
		return err
	}
	results["resident memory under load"] = result{Value: b.residentMiB}
	if settings.Ledger > 0 {
		if err := b.growLedger(ctx, settings.Ledger); err != nil {
			return err
		}
		large, err := b.measure(ctx, ledgerFigures(), settings.Rounds)
		if err != nil {
			return err
		}
		for name, r := range large {
			results[name+", large ledger"] = r
		}
	}

	report := newReport(settings, results)
	fmt.Print(report.markdown())
	if path := os.Getenv("BENCH_JSON"); path != "" {
		text, err := json.MarshalIndent(report, "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(path, append(text, '\n'), 0o644)
	}
	return nil
}

// result is one measurement, or the median of several.
type result struct {
	// Value is requests or transactions a second, unless its name says otherwise.
	Value float64 `json:"value"`
	// P99 is in milliseconds; 0 where it was not measured.
	P99 float64 `json:"p99_ms,omitempty"`
	// Failed is how many requests of a kind that must not fail did.
	Failed int `json:"failed,omitempty"`
}

// figure is something to measure.
type figure struct {
	name    string
	measure func(context.Context, *bed) (result, error)
}

// measure makes the rounds, all figures in turn in each, and returns the medians.
func (b *bed) measure(ctx context.Context, figures []figure, rounds int) (map[string]result, error) {
	all := map[string][]result{}
	for round := range rounds {
		for _, f := range figures {
			r, err := f.measure(ctx, b)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			fmt.Fprintf(os.Stderr, "%s  round %d  %-50s %10.0f  p99 %.1f ms  failed %d\n",
				time.Now().Format(time.TimeOnly), round+1, f.name, r.Value, r.P99, r.Failed)
			all[f.name] = append(all[f.name], r)
		}
	}
	medians := map[string]result{}
	for name, list := range all {
		medians[name] = median(list)
	}
	return medians, nil
}

func median(list []result) result {
	middle := func(of func(result) float64) float64 {
		values := make([]float64, len(list))
		for i, r := range list {
			values[i] = of(r)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	failed := 0
	for _, r := range list {
		failed += r.Failed
	}
	return result{
		Value:  middle(func(r result) float64 { return r.Value }),
		P99:    middle(func(r result) float64 { return r.P99 }),
		Failed: failed,
	}
}
