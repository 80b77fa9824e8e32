package app_test

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/demo"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// demoSettings are the settings that a made-up history is for.
func demoSettings(t *testing.T) func(*config.Config) {
	return func(cfg *config.Config) {
		err := errors.Join(cfg.TierMonthlyTokens.Decode(demo.TierMonthlyTokens), cfg.SubscriptionGrace.Decode(demo.Grace), cfg.TokenResetTimezone.Decode("UTC"))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tell writes the history into the database and returns by how many commands.
func tell(t *testing.T, dsn string, history demo.History) (commands int) {
	t.Helper()
	cfg, err := configure(dsn)
	if err != nil {
		t.Fatal(err)
	}
	demoSettings(t)(&cfg)
	service, stop, err := app.OpenService(t.Context(), cfg, demo.Clock, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if commands, err = history.Write(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	return commands
}

func TestTheDemoIsAHistoryOfTheRules(t *testing.T) {
	t.Parallel()
	dsn, until := localpgtest.New(t), time.Now()
	days := 0
	history := demo.History{Accounts: 24, Days: 33, Until: until, Progress: func(done int) error {
		days = done
		return nil
	}}
	commands := tell(t, dsn, history)
	db := connect(t, dsn)
	db.checkBooks()
	entries := localpgtest.Query[int](db, "SELECT count(*) FROM viralpilot.ledger")
	if commands < 500 || entries < commands*9/10 || days < 32 {
		t.Errorf("%d commands of %d days made %d entries", commands, days, entries)
	}
	rows, err := db.Conn.Query(t.Context(), "SELECT DISTINCT kind FROM viralpilot.ledger")
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"opening", "consume", "top_up", "monthly_reset", "tier_change", "reserve", "settle", "profile_change"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("there is no %s, only %v", kind, kinds)
		}
	}
	for claim, query := range map[string]string{
		"is within the time of the history": `SELECT bool_and(created_at BETWEEN $1::timestamptz - interval '33 days 1 hour' AND $1) FROM viralpilot.ledger`,
		"is in order, within an hour":       `SELECT bool_and(created_at > before - interval '1 hour') FROM (SELECT created_at, lag(created_at, 1, '-infinity') OVER (ORDER BY entry_id) AS before FROM viralpilot.ledger) AS l WHERE $1::timestamptz IS NOT NULL`,
		"has open reservations":             `SELECT count(*) > 0 FROM viralpilot.reservations WHERE status = 'open' AND expires_at > $1`,
		"has every account":                 `SELECT count(*) = 24 FROM viralpilot.userdata WHERE $1::timestamptz IS NOT NULL`,
		"has accounts that run out":         `SELECT count(*) > 0 FROM viralpilot.userdata WHERE tokens_remaining < 100 AND tokens_used_this_month > 0 AND $1::timestamptz IS NOT NULL`,
	} {
		var holds bool
		if err := db.Conn.QueryRow(t.Context(), query, until).Scan(&holds); err != nil || !holds {
			t.Errorf("it is not so that the history %s: %v", claim, err)
		}
	}
	// The service goes on from there.
	r, c := start(t, dsn, demoSettings(t)), newClient(t)
	users := c.do(http.StatusOK, http.MethodGet, r.url+"/users?limit=200", "").Body["users"].([]any)
	for _, u := range users {
		c.do(http.StatusOK, http.MethodGet, r.url+"/user/"+u.(map[string]any)["cognito_user_id"].(string)+"/status", "")
	}
	db.checkBooks()
}
