package main

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 4}, 3},
	} {
		before := slices.Clone(test.values)
		if got := median(test.values); got != test.want {
			t.Errorf("the median of %v is %v", test.values, got)
		}
		if !slices.Equal(test.values, before) {
			t.Errorf("%v has become %v", before, test.values)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

// The second round was slow for everybody, which no ratio may show.
func TestRatiosAreOfOneRound(t *testing.T) {
	t.Parallel()
	if got := paired([]float64{200, 20, 210}, []float64{100, 10, 70}); got != 2 {
		t.Errorf("got %v", got)
	}
	if got := paired([]float64{200, 20, 210}, []float64{100}); got != 2 {
		t.Errorf("with one pair: got %v", got)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	rounds := map[string][]result{
		"consume": {
			{Rate: 1000, P99: 8, Service: 90, Postgres: 30, ResidentMiB: 40},
			{Rate: 100, P99: 80, Service: 180, Postgres: 60, ResidentMiB: 42, Failed: 1},
			{Rate: 1100, P99: 7, Service: 80, Postgres: 40, ResidentMiB: 41, Failed: 2},
		},
		"floor": {{Rate: 2000, Service: 40, Postgres: 20}, {Rate: 200, Service: 80, Postgres: 40}, {Rate: 2000, Service: 45, Postgres: 15}},
		"start": {{StartMillis: 120}, {StartMillis: 130}, {StartMillis: 110}},
		"sql":   {{Rate: 500, Postgres: 300}, {Rate: 25, Postgres: 600}, {Rate: 440, Postgres: 300}},
	}
	r := newReport(settings{Seconds: 5, Rounds: 3}, rounds)
	want := []ratio{
		{"processor time of a consume / of the floor's", 2, 0, 1.7},
		{"consume / pgbench same work, 64 clients", 2.5, 2.6, 0},
		{"p99 of consume (ms)", 8, 0, 9},
		{"resident memory after consumes (MiB)", 41, 0, 64},
		{"start to ready (ms)", 120, 0, 100},
	}
	if !slices.Equal(r.Ratios, want) {
		t.Errorf("got  %+v\nwant %+v", r.Ratios, want)
	}
	if got, want := r.Figures["consume"], (result{Rate: 1000, P99: 8, Service: 90, Postgres: 40, ResidentMiB: 41, Failed: 3}); got != want {
		t.Errorf("consume is %+v", got)
	}

	text := markdown([]report{r})
	for _, line := range []string{
		"| processor time of a consume / of the floor's | 2.00 | ≤ 1.7 | missed |",
		"| p99 of consume (ms) | 8.00 | ≤ 9 | met |",
		"| consume | `consume` | 1000 |  | 8.0 | 90.0 | 40.0 | 0.0 | 3 |",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the report lacks %s:\n%s", line, text)
		}
	}

	better := r
	better.Ratios = slices.Clone(r.Ratios)
	better.Ratios[0].Value = 1.5
	text = markdown([]report{r, better, better})
	if line := "| processor time of a consume / of the floor's | 2.00, 1.50, 1.50 | 1.50 | ≤ 1.7 | met |\n"; !strings.Contains(text, line) {
		t.Errorf("the report of three sittings lacks %s:\n%s", line, text)
	}
}

func TestEveryComparisonIsOfFiguresThatThereAre(t *testing.T) {
	t.Parallel()
	var keys []string
	for _, f := range figures() {
		if slices.Contains(keys, f.key) {
			t.Errorf("two figures have the key %s", f.key)
		}
		keys = append(keys, f.key)
	}
	for _, c := range comparisons {
		for _, key := range []string{c.figure, c.other} {
			if key != "" && !slices.Contains(keys, key) {
				t.Errorf("%s: there is no figure %q", c.name, key)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	chosen, err := choose(figures(), []string{"status", "floor"})
	if err != nil || len(chosen) != 2 || chosen[0].key != "status" || chosen[1].key != "floor" {
		t.Errorf("got %v, %v", chosen, err)
	}
	if all, err := choose(figures(), nil); err != nil || len(all) != len(figures()) {
		t.Errorf("got %d figures, %v", len(all), err)
	}
	if _, err := choose(figures(), []string{"consume", "consumption"}); err == nil || !strings.Contains(err.Error(), `"consumption"`) {
		t.Errorf("got %v", err)
	}
}

func TestAComparisonIsOfPairs(t *testing.T) {
	t.Parallel()
	f := figure{key: "consume", name: "consume"}
	c := newComparison(f,
		[]result{{Rate: 1000, Service: 80, Postgres: 20}, {Rate: 100, Service: 160, Postgres: 40}, {Rate: 1000, Service: 90, Postgres: 30}},
		[]result{{Rate: 1200, Service: 60, Postgres: 20}, {Rate: 120, Service: 120, Postgres: 40}, {Rate: 1000, Service: 90, Postgres: 15}})
	if c.Rate != 1.2 || c.Service != 0.75 || c.Postgres != 1 || c.Processor != 0.8 {
		t.Errorf("got %+v", c)
	}
	text := comparisonTable("abc1234", settings{Seconds: 2, Rounds: 3}, []comparison{c})
	if line := "| consume | `consume` | 1.20 | **0.80** | 0.75 | 1.00 | 1000 → 1000 |"; !strings.Contains(text, line) {
		t.Errorf("the table lacks %s:\n%s", line, text)
	}
}

func TestGrowthTable(t *testing.T) {
	t.Parallel()
	for want, values := range map[string]map[string]string{
		"PostgreSQL's defaults":                       {},
		"shared_buffers = 1GB, wal_compression = lz4": {"wal_compression": "lz4", "shared_buffers": "1GB"},
	} {
		if got := settingsText(values); got != want {
			t.Errorf("%v is shown as %q", values, got)
		}
	}
	text := growthTable(settings{Accounts: 1000, Entries: 5000}, "ledger 1 MB + 2 MB of indexes", []grown{{
		Settings: "x = 1",
		Stretches: []stretchResult{
			{result{Rate: 900, P99: 9, Service: 70, Postgres: 50}, 100, 5000, 0.6},
			{result{Rate: 1000, P99: 8, Service: 70, Postgres: 40}, 110, 600, 0.05},
		},
		Ledger: result{Service: 80, Postgres: 30},
	}})
	for _, line := range []string{
		"| x = 1 | 0 to 100 | 5000 | 0.60 | 70.0 | 50.0 | 900 | 9.0 | 80 + 30 |",
		"|  | 100 to 210 | 600 | 0.05 | 70.0 | 40.0 | 1000 | 8.0 |  |",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the table lacks %s:\n%s", line, text)
		}
	}
}
