package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// stretch is how many consumes one line of the table of growth is about, counted from a checkpoint on. What they touch
// for the first time since then goes into the write-ahead log as a whole page, so lines of other machines can only be
// compared when they are about as many.
const stretch = 100_000

// serverSettings are what the growth is measured with: what an operator may choose beside PostgreSQL's defaults.
var serverSettings = []map[string]string{
	{},
	{"wal_compression": "pglz"},
	{"wal_compression": "lz4"},
	{"max_wal_size": "16GB"},
	{"shared_buffers": "1GB"},
	{"shared_buffers": "1GB", "max_wal_size": "16GB", "wal_compression": "lz4"},
}

// grown is what was measured with one choice of the server's settings.
type grown struct {
	Settings string `json:"settings"`
	// Stretches are one after the other, from a checkpoint on.
	Stretches []stretchResult `json:"stretches"`
	// Ledger is the page of a ledger, after them.
	Ledger result `json:"ledger_page"`
}

type stretchResult struct {
	result
	Requests int `json:"requests"`
	// WAL is the bytes of the write-ahead log a request, Pages how many whole pages are in it.
	WAL   float64 `json:"wal_bytes"`
	Pages float64 `json:"wal_pages"`
}

// growth measures consumes of a large database from a checkpoint on, under several settings of the server.
func growth(ctx context.Context) (err error) {
	s, err := readSettings(5, 3)
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
	large, err := b.newSubject(ctx, "large", "user-management", s.Accounts, s.Entries)
	if err != nil {
		return err
	}
	var made []grown
	for _, values := range serverSettings {
		g, err := large.grow(ctx, values)
		if err != nil {
			return fmt.Errorf("%s: %w", g.Settings, err)
		}
		made = append(made, g)
	}
	size, err := large.size(ctx)
	if err != nil {
		return err
	}
	fmt.Print(growthTable(s, size, made))
	return keep(s.JSON, made)
}

// grow starts the server anew with the settings and measures.
func (s *subject) grow(ctx context.Context, values map[string]string) (g grown, err error) {
	g.Settings = settingsText(values)
	if err := s.restart(ctx, values); err != nil {
		return g, err
	}
	warm := wrkRun{url: s.running[0].url, connections: 64, script: luaWarm}
	if _, err := s.wrk(ctx, warm); err != nil {
		return g, err
	}
	if err := s.sql(ctx, s.database, "CHECKPOINT"); err != nil {
		return g, err
	}
	for round := range s.settings.Rounds {
		r, err := s.stretch(ctx)
		if err != nil {
			return g, err
		}
		progress(round, g.Settings, r.result)
		g.Stretches = append(g.Stretches, r)
	}
	page, err := choose(figures(), []string{"ledger-large"})
	if err != nil {
		return g, err
	}
	if g.Ledger, err = s.measure(ctx, page[0]); err != nil {
		return g, err
	}
	progress(0, g.Settings+", ledger page", g.Ledger)
	return g, nil
}

func settingsText(values map[string]string) string {
	if len(values) == 0 {
		return "PostgreSQL's defaults"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		parts = append(parts, name+" = "+values[name])
	}
	return strings.Join(parts, ", ")
}

// restart starts server and service anew, with PostgreSQL's defaults for all but these settings.
func (s *subject) restart(ctx context.Context, values map[string]string) error {
	if err := s.stop(); err != nil {
		return err
	}
	if err := s.sql(ctx, "postgres", "ALTER SYSTEM RESET ALL"); err != nil {
		return err
	}
	if err := errors.Join(s.set(ctx, values), s.slowCommits(ctx, s.settings.SlowCommits)); err != nil {
		return err
	}
	if err := s.server.Stop(); err != nil {
		return err
	}
	if err := s.startServer(ctx); err != nil {
		return err
	}
	_, err := s.start(ctx)
	return err
}

// walPosition is how far the write-ahead log has come, in bytes and in whole pages.
type walPosition struct{ bytes, pages int64 }

func (s *subject) wal(ctx context.Context) (p walPosition, err error) {
	err = s.query(ctx, s.database, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, wal_fpi FROM pg_stat_wal`).Scan(&p.bytes, &p.pages)
	})
	return p, err
}

// stretch measures so many consumes, in as many loads as they take.
func (s *subject) stretch(ctx context.Context) (r stretchResult, err error) {
	before, err := s.wal(ctx)
	if err != nil {
		return r, err
	}
	loads := 0
	r.result, err = s.timed(func() (sum result, err error) {
		for sum.requests < stretch {
			one, err := s.wrk(ctx, wrkRun{url: s.running[0].url, connections: 64, script: luaConsume})
			if err != nil {
				return sum, err
			}
			loads++
			sum.Rate += one.Rate
			sum.P99 = max(sum.P99, one.P99)
			sum.Failed += one.Failed
			sum.requests += one.requests
			sum.generator += one.generator
		}
		sum.Rate /= float64(loads)
		return sum, nil
	})
	if err != nil {
		return r, err
	}
	after, err := s.wal(ctx)
	if err != nil {
		return r, err
	}
	r.Requests = r.requests
	r.WAL = float64(after.bytes-before.bytes) / float64(r.requests)
	r.Pages = float64(after.pages-before.pages) / float64(r.requests)
	return r, nil
}

// size tells how large tables and indexes are by now.
func (s *subject) size(ctx context.Context) (text string, err error) {
	err = s.query(ctx, s.database, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT string_agg(format('%s %s + %s of indexes', relname, pg_size_pretty(pg_table_size(oid)),
				pg_size_pretty(pg_indexes_size(oid))), ', ' ORDER BY relname)
			FROM pg_class WHERE relnamespace = 'viralpilot'::regnamespace AND relname IN ('userdata', 'account_state', 'ledger')`).Scan(&text)
	})
	return text, err
}

func growthTable(s settings, size string, made []grown) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d accounts, a ledger of %d entries and those of the consumes; at the end %s.\n\n", s.Accounts, s.Entries, size)
	b.WriteString("| settings of the server | consumes since the checkpoint | WAL each (bytes) | whole pages each | service (µs) | PostgreSQL (µs) |" +
		" a second | p99 (ms) | ledger page, service + PostgreSQL (µs) |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, g := range made {
		first := 0
		for i, r := range g.Stretches {
			name, page := "", ""
			if i == 0 {
				name, page = g.Settings, fmt.Sprintf("%.0f + %.0f", g.Ledger.Service, g.Ledger.Postgres)
			}
			fmt.Fprintf(&b, "| %s | %d to %d | %.0f | %.2f | %.1f | %.1f | %.0f | %.1f | %s |\n", name, first, first+r.Requests,
				r.WAL, r.Pages, r.Service, r.Postgres, r.Rate, r.P99, page)
			first += r.Requests
		}
	}
	return b.String()
}
