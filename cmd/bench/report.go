package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

// report is what a run comes to.
type report struct {
	Date     string            `json:"date"`
	Machine  string            `json:"machine"`
	Settings settings          `json:"settings"`
	Figures  map[string]result `json:"figures"`
	Targets  []target          `json:"targets"`
}

// target compares figures with what they should be.
type target struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Want  string  `json:"want"`
	Met   bool    `json:"met"`
}

func newReport(s settings, figures map[string]result) report {
	r := report{
		Date:     time.Now().UTC().Format(time.DateOnly),
		Machine:  fmt.Sprintf("%d cores (%s/%s) shared by load, service and PostgreSQL", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH),
		Settings: s, Figures: figures,
	}
	atLeast := func(name string, value, want float64) {
		r.Targets = append(r.Targets, target{name, value, fmt.Sprintf("≥ %g", want), value >= want})
	}
	atMost := func(name string, value, want float64) {
		r.Targets = append(r.Targets, target{name, value, fmt.Sprintf("≤ %g", want), value <= want})
	}
	ratio := func(a, b string) float64 { return figures[a].Value / figures[b].Value }
	atLeast("consume / pgbench, 64 clients", ratio(consume, floor), 3)
	atLeast("consume / pgbench at its best", figures[consume].Value/max(figures[floor].Value, figures[floorBest].Value), 1.8)
	atLeast("consume with a fresh key / without", ratio(keyed, consume), 0.7)
	atLeast("consume on one hot user / pgbench on one hot row", ratio(hot, floorHot), 12)
	atLeast("consume / GET /livez", ratio(consume, live), 0.6)
	atLeast("status / GET /livez", ratio(status, live), 0.5)
	atMost("status p99 (ms)", figures[status].P99, 15)
	atLeast("reserve and settle / two consumes", ratio(pair, consume), 0.8)
	atLeast("three clients beside a bad one / beside a good one", ratio(goodMixed, goodAmong), 0.8)
	atLeast("three clients beside a bad one / alone", ratio(goodMixed, goodAlone), 0.8)
	atMost("consume p99 (ms)", figures[consume].P99, 15)
	atMost("resident memory under load (MiB)", figures["resident memory under load"].Value, 64)
	atMost("start to ready (ms)", figures["start to ready"].Value, 250)
	if s.Ledger > 0 {
		atLeast("consume, large ledger / small", ratio(consume+", large ledger", consume), 0.9)
		atLeast("newest ledger entry, large ledger / small", ratio(ledgerPage+", large ledger", ledgerPage), 0.9)
	}
	return r
}

// markdown is the report as tables.
func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s; medians of %d rounds of %d s, 64 connections unless said.\n\n", r.Date, r.Machine, r.Settings.Rounds, r.Settings.Seconds)
	b.WriteString("| target | measured | wanted | |\n|---|---|---|---|\n")
	for _, t := range r.Targets {
		mark := "met"
		if !t.Met {
			mark = "missed"
		}
		fmt.Fprintf(&b, "| %s | %.2f | %s | %s |\n", t.Name, t.Value, t.Want, mark)
	}
	b.WriteString("\n| figure | a second | p99 (ms) |\n|---|---|---|\n")
	names := []string{}
	for _, f := range figures() {
		names = append(names, f.name)
	}
	for _, f := range ledgerFigures() {
		names = append(names, f.name+", large ledger")
	}
	for _, name := range names {
		f, ok := r.Figures[name]
		if !ok {
			continue
		}
		p99 := ""
		if f.P99 > 0 {
			p99 = fmt.Sprintf("%.1f", f.P99)
		}
		fmt.Fprintf(&b, "| %s | %.0f | %s |\n", name, f.Value, p99)
	}
	return b.String()
}
