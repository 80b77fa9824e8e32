package main_test

import (
	"encoding/csv"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

func TestExportAndFold(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	s.tester("u")
	if _, _, err := s.call(http.StatusOK, http.MethodPost, "/user/u/consume-tokens", `{"tokens_to_consume": 7, "metadata": {"feature": "a, b"}}`, ""); err != nil {
		t.Fatal(err)
	}
	db := connect(t, dsn)
	entries := db.number("SELECT count(*) FROM viralpilot.ledger")
	dir := t.TempDir()
	t.Run("export to stdout", func(t *testing.T) {
		r := run(t, dir, env, "export", "--from", "2000-01-01", "--to", "2100-01-01", "--format", "ndjson")
		r.want(t, 0)
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		var last map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if len(lines) != entries || last["kind"] != "consume" || last["metadata"].(map[string]any)["feature"] != "a, b" {
			t.Errorf("%d lines of %d, the last is %v", len(lines), entries, last)
		}
	})
	t.Run("export to a file", func(t *testing.T) {
		file := filepath.Join(dir, "ledger.csv")
		run(t, dir, env, "export", "--from", "2000-01-01", "--to", "2100-01-01", "--format", "csv", "--output", file).want(t, 0)
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		rows, err := csv.NewReader(f).ReadAll()
		if err != nil || len(rows) != entries+1 || rows[0][1] != "entry_id" {
			t.Errorf("%d rows, %v", len(rows), err)
		}
		if left, err := filepath.Glob(file + ".*"); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	})
	t.Run("export of days without entries", func(t *testing.T) {
		r := run(t, dir, env, "export", "--from", "2000-01-01", "--to", "2000-01-31", "--format", "ndjson")
		if r.want(t, 0); r.stdout != "" {
			t.Errorf("%s", r.stdout)
		}
	})
	t.Run("fold", func(t *testing.T) {
		localpgtest.Await(t, "the service has added it up", func() bool {
			return db.number("SELECT coalesce(sum(charged), 0) FROM viralpilot.usage_totals WHERE dimension = 'feature'") == 7
		})
		db.Exec("UPDATE viralpilot.usage_totals SET charged = 5")
		run(t, dir, env, "fold", "--from", "2000-01-01").want(t, 0)
		if n := db.number("SELECT sum(charged) FROM viralpilot.usage_totals WHERE dimension = 'feature'"); n != 7 {
			t.Errorf("%d tokens charged", n)
		}
		run(t, dir, env, "verify").want(t, 0)
	})
	for _, args := range [][]string{
		{"export"},
		{"export", "--from", "2026-01-01", "--to", "2025-01-01", "--format", "csv"},
		{"export", "--from", "2026-01-01", "--to", "2026-01-02", "--format", "xml"},
		{"fold"},
		{"fold", "--from", "yesterday"},
	} {
		t.Run(strings.Join(args, " ")+" is refused", func(t *testing.T) { run(t, dir, env, args...).want(t, 1) })
	}
	if code := s.end(os.Interrupt); code != 0 {
		t.Errorf("the service ends with %d", code)
	}
}
