package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what a sitting comes to.
type report struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Settings settings          `json:"settings"`
	Figures  map[string]result `json:"figures"`
	Ratios   []ratio           `json:"ratios"`
}

// ratio is a figure compared with another one, or with what it should be.
type ratio struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// AtLeast or AtMost is what it should be; both are 0 where it is only told.
	AtLeast float64 `json:"at_least,omitempty"`
	AtMost  float64 `json:"at_most,omitempty"`
}

func (r ratio) want() string {
	switch {
	case r.AtLeast > 0:
		return fmt.Sprintf("≥ %g", r.AtLeast)
	case r.AtMost > 0:
		return fmt.Sprintf("≤ %g", r.AtMost)
	}
	return ""
}

func (r ratio) verdict() string {
	switch {
	case r.AtLeast > 0 && r.Value < r.AtLeast, r.AtMost > 0 && r.Value > r.AtMost:
		return "missed"
	case r.AtLeast > 0 || r.AtMost > 0:
		return "met"
	}
	return ""
}

func rate(r result) float64      { return r.Rate }
func processor(r result) float64 { return r.processor() }
func p99(r result) float64       { return r.P99 }
func resident(r result) float64  { return r.ResidentMiB }
func startup(r result) float64   { return r.StartMillis }

// comparisons are the ratios that a sitting is judged by. Where a figure has no other, it is compared with 1.
var comparisons = []struct {
	name            string
	of              func(result) float64
	figure, other   string
	atLeast, atMost float64
}{
	{"processor time of a consume / of the floor's", processor, "consume", "floor", 0, 1.7},
	{"consume / pgbench same work, 64 clients", rate, "consume", "sql", 2.6, 0},
	{"consume / pgbench same work, 8 clients", rate, "consume8", "sql8", 0.9, 0},
	{"one hot user / pgbench same work on one hot row", rate, "hot", "sql-hot", 17, 0},
	{"consume / pgbench same work, 64 clients, slow commits", rate, "slow", "sql-slow", 0, 0},
	{"consume / pgbench same work, 8 clients, slow commits", rate, "slow8", "sql8-slow", 0, 0},
	{"consume without a key / with a fresh one, processor time", processor, "consume", "keyed", 0.9, 0},
	{"two consumes / reserve and settle, processor time", processor, "consume", "pair", 0.75, 0},
	{"GET /livez / status, processor time", processor, "livez", "status", 0.55, 0},
	{"status / pgbench SELECT, 64 clients", rate, "status", "select", 0.75, 0},
	{"consume of top-ups / of the allowance, processor time", processor, "topups", "consume", 0, 1.15},
	{"first consume of a month / any other, processor time", processor, "month", "consume", 0, 1.6},
	{"first consumes of a month / others, rate", rate, "month", "consume", 0.6, 0},
	{"p99 of consume (ms)", p99, "consume", "", 0, 9},
	{"p99 of status (ms)", p99, "status", "", 0, 6.5},
	{"three clients beside a bad one / beside a good one", rate, "bad", "good", 0.9, 0},
	{"two replicas / one, rate", rate, "replicas2", "consume", 0, 0},
	{"two replicas / one, processor time", processor, "replicas2", "consume", 0, 0},
	{"four replicas / one, rate", rate, "replicas4", "consume", 0, 0},
	{"four replicas / one, processor time", processor, "replicas4", "consume", 0, 0},
	{"resident memory after consumes (MiB)", resident, "consume", "", 0, 64},
	{"start to ready (ms)", startup, "start", "", 0, 100},
	{"consume, large database / small, processor time", processor, "consume-large", "consume-small", 0, 1.25},
	{"ledger page, large database / small, processor time", processor, "ledger-large", "ledger", 0, 0},
}

// newReport sums up rounds: the results of each figure by its key, one a round.
func newReport(s settings, rounds map[string][]result) report {
	r := report{
		Date:     time.Now().UTC().Format(time.DateOnly),
		Machine:  fmt.Sprintf("%d cores (%s/%s) shared by load, service and PostgreSQL", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH),
		Settings: s, Figures: map[string]result{},
	}
	for key, results := range rounds {
		r.Figures[key] = middle(results)
	}
	for _, c := range comparisons {
		values := rounds[c.figure]
		if len(values) == 0 || c.other != "" && len(rounds[c.other]) == 0 {
			continue
		}
		value := median(each(values, c.of))
		if c.other != "" {
			value = paired(each(values, c.of), each(rounds[c.other], c.of))
		}
		r.Ratios = append(r.Ratios, ratio{Name: c.name, Value: value, AtLeast: c.atLeast, AtMost: c.atMost})
	}
	return r
}

func each(results []result, of func(result) float64) []float64 {
	values := make([]float64, len(results))
	for i, r := range results {
		values[i] = of(r)
	}
	return values
}

// paired is the median of the ratios of what was measured in the same round: what made a whole round slow is in both.
func paired(of, to []float64) float64 {
	ratios := make([]float64, min(len(of), len(to)))
	for i := range ratios {
		ratios[i] = of[i] / to[i]
	}
	return median(ratios)
}

// median is the mean of the two in the middle where there is an even number of values, and no number where there are
// none. It leaves the values as they are.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// middle has the median of each number on its own, but all that failed.
func middle(results []result) (m result) {
	of := func(value func(result) float64) float64 { return median(each(results, value)) }
	m = result{
		Rate: of(rate), P50: of(func(r result) float64 { return r.P50 }), P99: of(p99),
		Service:     of(func(r result) float64 { return r.Service }),
		Postgres:    of(func(r result) float64 { return r.Postgres }),
		Generator:   of(func(r result) float64 { return r.Generator }),
		ResidentMiB: of(resident), StartMillis: of(startup),
	}
	for _, r := range results {
		m.Failed += r.Failed
	}
	return m
}

// markdown shows sittings of the same figures beside each other, and the medians over them.
func markdown(sittings []report) string {
	var b strings.Builder
	first := sittings[0]
	fmt.Fprintf(&b, "%s, %s; ", first.Date, first.Machine)
	if len(sittings) > 1 {
		fmt.Fprintf(&b, "%d sittings, each the ", len(sittings))
	}
	fmt.Fprintf(&b, "medians of %d rounds of %d s, 64 connections unless said", first.Settings.Rounds, first.Settings.Seconds)
	if first.Settings.SlowCommits > 0 {
		fmt.Fprintf(&b, ", every commit slower by %s", first.Settings.SlowCommits)
	}
	b.WriteString(".\n\n| ratio | measured |")
	if len(sittings) > 1 {
		b.WriteString(" median |")
	}
	b.WriteString(" wanted | |\n|---|---|---|---|")
	if len(sittings) > 1 {
		b.WriteString("---|")
	}
	b.WriteString("\n")
	for i, r := range first.Ratios {
		values, texts := make([]float64, len(sittings)), make([]string, len(sittings))
		for j, s := range sittings {
			values[j] = s.Ratios[i].Value
			texts[j] = fmt.Sprintf("%.2f", values[j])
		}
		r.Value = median(values)
		fmt.Fprintf(&b, "| %s | %s |", r.Name, strings.Join(texts, ", "))
		if len(sittings) > 1 {
			fmt.Fprintf(&b, " %.2f |", r.Value)
		}
		fmt.Fprintf(&b, " %s | %s |\n", r.want(), r.verdict())
	}
	b.WriteString("\n| figure | key | a second | p50 (ms) | p99 (ms) | service (µs) | PostgreSQL (µs) | generator (µs) | failed |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, f := range figures() {
		var results []result
		for _, s := range sittings {
			if r, ok := s.Figures[f.key]; ok && r.Rate > 0 {
				results = append(results, r)
			}
		}
		if len(results) == 0 {
			continue
		}
		r := middle(results)
		fmt.Fprintf(&b, "| %s | `%s` | %.0f | %s | %s | %s | %.1f | %.1f | %d |\n", f.name, f.key, r.Rate,
			unlessZero(r.P50), unlessZero(r.P99), unlessZero(r.Service), r.Postgres, r.Generator, r.Failed)
	}
	return b.String()
}

func unlessZero(value float64) string {
	if value == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", value)
}

// table prints the sittings that files of BENCH_JSON have kept.
func table(files []string) error {
	var sittings []report
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var r report
		if err := json.Unmarshal(text, &r); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		sittings = append(sittings, r)
		if !slices.EqualFunc(r.Ratios, sittings[0].Ratios, func(a, b ratio) bool { return a.Name == b.Name }) {
			return errors.New("the files do not have the same figures")
		}
	}
	fmt.Print(markdown(sittings))
	return nil
}
