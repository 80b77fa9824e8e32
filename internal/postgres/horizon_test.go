package postgres

import (
	"slices"
	"testing"
	"time"
)

func TestHorizon_SettlesWhatNoRunningTransactionCanHaveDrawn(t *testing.T) {
	t.Parallel()
	var h horizon
	h.on(time.Unix(1, 0), 10)
	h.add(mark{drawn: 10, xid: 100})
	h.add(mark{drawn: 20, xid: 110})
	for _, c := range []struct{ oldest, want int64 }{{99, 0}, {100, 10}, {109, 10}, {110, 20}, {50, 20}} {
		if h.settle(c.oldest); h.settled != c.want {
			t.Errorf("while %d is the oldest transaction %d is settled, want %d", c.oldest, h.settled, c.want)
		}
	}
}

func TestHorizon_ForgetsWhatAnotherServerSaid(t *testing.T) {
	t.Parallel()
	first, second := time.Unix(1, 0), time.Unix(2, 0)
	for name, c := range map[string]struct {
		server time.Time
		drawn  int64
		want   int64
	}{
		"the same goes on":                   {first, 10, 10},
		"one that was started later":         {second, 30, 0},
		"one whose sequence has gone back":   {first, 9, 0},
		"one that was restored to an old id": {second, 9, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h horizon
			h.on(first, 10)
			h.add(mark{drawn: 10, xid: 100})
			h.settle(100)
			if h.on(c.server, c.drawn); h.settled != c.want {
				t.Errorf("%d is settled, want %d", h.settled, c.want)
			}
		})
	}
}

func TestHorizon_RemembersABoundedNumberOfMarks(t *testing.T) {
	t.Parallel()
	var h horizon
	start := time.Unix(1, 0)
	h.on(start, 1)
	for i := range int64(10 * maxMarks) {
		h.add(mark{drawn: i + 1, xid: 100 + i, made: start.Add(time.Duration(i) * time.Second)})
	}
	if len(h.marks) != maxMarks || !h.marks[0].made.Equal(start) {
		t.Errorf("%d marks, the oldest of %v", len(h.marks), h.marks[0].made)
	}
	if h.settle(100 + 10*maxMarks); h.settled != 10*maxMarks {
		t.Errorf("%d is settled of %d", h.settled, 10*maxMarks)
	}
}

func TestStatementsFor_PicksThoseOfTheServersVersion(t *testing.T) {
	t.Parallel()
	const file = "-- why\nA;\n-- from PostgreSQL 14\nB;\n\n-- before PostgreSQL 14\nC;\n-- for search\n-- with pg_trgm\nD;\n"
	for _, c := range []struct {
		version  int
		trigrams bool
		want     []string
	}{
		{13_00_20, false, []string{"-- why\nA", "-- before PostgreSQL 14\nC"}},
		{14_00_00, false, []string{"-- why\nA", "-- from PostgreSQL 14\nB"}},
		{14_00_00, true, []string{"-- why\nA", "-- from PostgreSQL 14\nB", "-- for search\n-- with pg_trgm\nD"}},
	} {
		if got := statementsFor(c.version, c.trigrams, file); !slices.Equal(got, c.want) {
			t.Errorf("%d, trigrams %t: %q, want %q", c.version, c.trigrams, got, c.want)
		}
	}
}
