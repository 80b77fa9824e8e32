package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// comparison is one figure of two versions: the medians of each, and of what the later is in multiples of the earlier one.
type comparison struct {
	Key       string  `json:"key"`
	Name      string  `json:"name"`
	Base      result  `json:"base"`
	Tree      result  `json:"tree"`
	Rate      float64 `json:"rate_ratio"`
	Service   float64 `json:"service_ratio"`
	Postgres  float64 `json:"postgres_ratio"`
	Processor float64 `json:"processor_ratio"`
}

// compare measures the working tree against the version of a git ref: both on one server, each on a database of its
// own, since their migrations may differ, and in turn.
func compare(ctx context.Context, ref string) (err error) {
	s, err := readSettings(2, 5)
	if err != nil {
		return err
	}
	chosen, err := ofService(s.Figures)
	if err != nil {
		return err
	}
	b, err := newBed(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	commit, err := checkOut(ctx, ref, filepath.Join(b.dir, "source"))
	if err != nil {
		return err
	}
	var versions [2]*subject
	for i, v := range []struct{ name, source string }{{"base", filepath.Join(b.dir, "source")}, {"tree", "."}} {
		if err := b.build(ctx, v.source, v.name); err != nil {
			return err
		}
		if versions[i], err = b.newSubject(ctx, v.name, v.name, accounts, accounts); err != nil {
			return err
		}
	}
	rounds := map[string]*[2][]result{}
	for round := range s.Rounds {
		for _, f := range chosen {
			if rounds[f.key] == nil {
				rounds[f.key] = new([2][]result)
			}
			for i, version := range versions {
				r, err := version.measure(ctx, f)
				if err != nil {
					return fmt.Errorf("%s: %w", version.database, err)
				}
				progress(round, version.database+": "+f.name, r)
				rounds[f.key][i] = append(rounds[f.key][i], r)
			}
		}
	}
	var made []comparison
	for _, f := range chosen {
		made = append(made, newComparison(f, rounds[f.key][0], rounds[f.key][1]))
	}
	fmt.Print(comparisonTable(commit, s, made))
	return keep(s.JSON, made)
}

// ofService chooses among the figures of the service that do not need a large database.
func ofService(keys []string) ([]figure, error) {
	var all []figure
	for _, f := range figures() {
		if f.own && !f.large && f.key != "consume-small" {
			all = append(all, f)
		}
	}
	return choose(all, keys)
}

func newComparison(f figure, base, tree []result) comparison {
	ratio := func(of func(result) float64) float64 { return paired(each(tree, of), each(base, of)) }
	c := comparison{Key: f.key, Name: f.name, Base: middle(base), Tree: middle(tree)}
	if c.Base.StartMillis > 0 {
		// What is quicker has the higher rate.
		c.Rate = paired(each(base, startup), each(tree, startup))
		return c
	}
	c.Rate, c.Processor = ratio(rate), ratio(processor)
	c.Service = ratio(func(r result) float64 { return r.Service })
	if c.Base.Postgres > 0 {
		c.Postgres = ratio(func(r result) float64 { return r.Postgres })
	}
	return c
}

// comparisonTable shows what two versions come to.
func comparisonTable(commit string, s settings, made []comparison) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The working tree in multiples of %s; medians of the ratios of %d rounds of %d s, measured in turn", commit, s.Rounds, s.Seconds)
	if s.SlowCommits > 0 {
		fmt.Fprintf(&b, ", every commit slower by %s", s.SlowCommits)
	}
	b.WriteString(`.
On a busy machine only processor times can be compared.

| figure | key | rate | processor time | of the service | of PostgreSQL | rates (1/s) | processor time (µs) | p99 (ms) | failed |
|---|---|---|---|---|---|---|---|---|---|
`)
	for _, c := range made {
		if c.Base.StartMillis > 0 {
			fmt.Fprintf(&b, "| %s, %.1f → %.1f ms | `%s` | %.2f | | | | | | | |\n", c.Name, c.Base.StartMillis, c.Tree.StartMillis, c.Key, c.Rate)
			continue
		}
		ofPostgres := ""
		if c.Postgres > 0 {
			ofPostgres = fmt.Sprintf("%.2f", c.Postgres)
		}
		fmt.Fprintf(&b, "| %s | `%s` | %.2f | **%.2f** | %.2f | %s | %.0f → %.0f | %.1f → %.1f | %.1f → %.1f | %d, %d |\n",
			c.Name, c.Key, c.Rate, c.Processor, c.Service, ofPostgres, c.Base.Rate, c.Tree.Rate,
			c.Base.processor(), c.Tree.processor(), c.Base.P99, c.Tree.P99, c.Base.Failed, c.Tree.Failed)
	}
	return b.String()
}

// checkOut writes the files of a git ref into the folder and returns the commit. It leaves nothing behind in the
// repository, however this program ends.
func checkOut(ctx context.Context, ref, dir string) (commit string, err error) {
	git := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("git %s: %w", args[0], err)
		}
		return out, err
	}
	out, err := git("rev-parse", "--short", "--verify", ref+"^{commit}")
	if err != nil {
		return "", fmt.Errorf("BASE is %q, which is not a commit: %w", ref, err)
	}
	commit = strings.TrimSpace(string(out))
	files, err := git("archive", "--format=tar", commit)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	tar := exec.CommandContext(ctx, "tar", "-x", "-C", dir)
	tar.Stdin, tar.Stderr = bytes.NewReader(files), os.Stderr
	if err := tar.Run(); err != nil {
		return "", fmt.Errorf("tar: %w", err)
	}
	return commit, nil
}
