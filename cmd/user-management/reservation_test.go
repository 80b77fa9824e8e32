package main_test

import (
	"maps"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

func TestReservationsOutliveAServiceThatIsKilled(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	env := []string{"DATABASE_URL=" + dsn, "SWEEP_INTERVAL=1s"}
	s := serve(t, env...)
	s.tester("u")
	reserve := func(body string) string {
		t.Helper()
		_, answer, err := s.call(http.StatusCreated, http.MethodPost, "/user/u/reservations", body, "")
		if err != nil {
			t.Fatal(err)
		}
		return "/user/u/reservations/" + answer["reservation_id"].(string)
	}
	kept, forgotten := reserve(`{"tokens": 10}`), reserve(`{"tokens": 20, "ttl_seconds": 1}`)
	s.end(syscall.SIGKILL)

	s = serve(t, env...)
	db := connect(t, dsn)
	localpgtest.Await(t, "the forgotten one has run out by itself", func() bool {
		return db.number("SELECT count(*) FROM viralpilot.reservations WHERE status = 'expired'") == 1
	})
	_, answer, err := s.call(http.StatusOK, http.MethodGet, kept, "", "")
	if err != nil || answer["status"] != "open" || answer["tokens_reserved"] != 10.0 {
		t.Errorf("after the restart: %v %v", answer, err)
	}
	_, first, err := s.call(http.StatusOK, http.MethodPost, kept+"/settle", `{"tokens_used": 4}`, "")
	if err != nil || first["tokens_charged"] != 4.0 || first["tokens_remaining"] != 996.0 {
		t.Errorf("settled: %v %v", first, err)
	}
	s.end(syscall.SIGKILL) // the answer might have been lost

	s = serve(t, env...)
	if _, again, err := s.call(http.StatusOK, http.MethodPost, kept+"/settle", `{"tokens_used": 4}`, ""); err != nil || !maps.Equal(again, first) {
		t.Errorf("settled again: %v %v, the first time %v", again, err, first)
	}
	if _, late, err := s.call(http.StatusOK, http.MethodPost, forgotten+"/settle", `{"tokens_used": 4}`, ""); err != nil ||
		late["late"] != true || late["tokens_charged"] != 4.0 || late["tokens_returned"] != 20.0 || late["tokens_remaining"] != 992.0 {
		t.Errorf("settled late: %v %v", late, err)
	}
	run(t, t.TempDir(), env, "verify").want(t, 0)
}

func TestVerifyFindsABalanceChangedByHandAndReconcilesIt(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	for _, id := range []string{"u", "other"} {
		s.tester(id)
		if err := s.consume(id, ""); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(want int, args ...string) string {
		t.Helper()
		return run(t, t.TempDir(), env, append([]string{"verify"}, args...)...).want(t, want).stdout
	}
	if out := verify(0); out != "2 accounts and 4 ledger entries checked, 0 discrepancies\n" {
		t.Errorf("verify: %s", out)
	}
	connect(t, dsn).Exec("UPDATE viralpilot.userdata SET tokens_remaining = tokens_remaining + 500 WHERE cognito_user_id = 'u'")
	for _, args := range [][]string{nil, {"--since", "2999-01-01"}} {
		if out := verify(1, args...); !strings.HasPrefix(out, `"u": the account has 1499 tokens, its last entry says 999`) || strings.Contains(out, `"other"`) {
			t.Errorf("verify %q: %s", args, out)
		}
	}
	if out := verify(0, "--reconcile", "u"); !strings.Contains(out, "now explains") {
		t.Errorf("reconcile: %s", out)
	}
	if out := verify(0, "--reconcile", "u"); !strings.Contains(out, "nothing was changed") {
		t.Errorf("reconcile again: %s", out)
	}
	verify(0)
	verify(1, "--reconcile", "nobody")
	if _, status, err := s.call(http.StatusOK, http.MethodGet, "/user/u/status", "", ""); err != nil || status["tokens_remaining"] != 1499.0 || status["top_up_tokens"] != 499.0 {
		t.Errorf("status: %v %v", status, err)
	}
}
