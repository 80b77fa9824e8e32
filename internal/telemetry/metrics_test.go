package telemetry

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v4"

	"github.com/viralpilot/user-management/internal/user"
)

// used returns metrics that have counted something of everything.
func used() *Metrics {
	m := NewMetrics("v1", "abc", []user.Code{user.CodeInternal, user.CodeInsufficientTokens})
	m.Begin()()
	m.Request(http.MethodGet, "/user/{cognito_user_id}", http.StatusOK, time.Millisecond)
	m.Entry(user.Entry{Kind: user.KindConsume, Amount: -3, TokensCharged: 3})
	m.Entry(user.Entry{Kind: user.KindSettle, Amount: 1, TokensCharged: 4})
	m.Entry(user.Entry{Kind: user.KindTopUp, Amount: 5})
	m.Entry(user.Entry{Kind: user.KindReserve, Amount: -6})
	m.Entry(user.Entry{Kind: user.KindRefund, Amount: 2, TokensRefunded: 2})
	m.Entry(user.Entry{Kind: user.KindMonthlyReset})
	m.Problem(user.CodeInsufficientTokens)
	m.SweepFailed(SweepErases)
	m.OldestDueReservation(90 * time.Second)
	m.Open()
	m.Group(2, time.Millisecond)
	m.Retry()
	m.FeedLag(func() time.Duration { return 1500 * time.Millisecond })
	m.FoldLag(func() time.Duration { return 2 * time.Second })
	m.Pool(func() PoolStats { return PoolStats{Acquired: 1, Idle: 2, Max: 8, Waits: 3, WaitTime: 4 * time.Second} })
	m.Certificate(func() time.Time { return time.Unix(1814400000, 0) }, func() int64 { return 1 })
	m.KeyExpiries(func() map[string]time.Time { return map[string]time.Time{"postpilot": time.Unix(1814400000, 0)} })
	m.Issuer(func() bool { return true })
	m.ClockOffset(func() time.Duration { return -2 * time.Second })
	return m
}

func gather(t *testing.T, m *Metrics) []*dto.MetricFamily {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func TestMetricsFollowTheConventionsOfPrometheus(t *testing.T) {
	t.Parallel()
	problems, err := testutil.GatherAndLint(used().registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestMetricsCountWhatTheyAreNamedFor(t *testing.T) {
	t.Parallel()
	err := testutil.GatherAndCompare(used().registry, strings.NewReader(`
# HELP user_management_tokens_consumed_total Tokens charged by consume and settle.
# TYPE user_management_tokens_consumed_total counter
user_management_tokens_consumed_total 7
# HELP user_management_tokens_topped_up_total Tokens added as top-ups.
# TYPE user_management_tokens_topped_up_total counter
user_management_tokens_topped_up_total 5
# HELP user_management_tokens_reserved_total Tokens set aside by reservations.
# TYPE user_management_tokens_reserved_total counter
user_management_tokens_reserved_total 6
# HELP user_management_tokens_refunded_total Tokens given back by refunds.
# TYPE user_management_tokens_refunded_total counter
user_management_tokens_refunded_total 2
# HELP user_management_monthly_resets_total Monthly resets of accounts.
# TYPE user_management_monthly_resets_total counter
user_management_monthly_resets_total 1
# HELP user_management_problems_total Requests answered with a problem document, by its code.
# TYPE user_management_problems_total counter
user_management_problems_total{code="insufficient_tokens"} 1
user_management_problems_total{code="internal"} 0
# HELP user_management_sweep_failures_total Rounds of the sweep that failed, if only in part, by task.
# TYPE user_management_sweep_failures_total counter
user_management_sweep_failures_total{task="erases"} 1
user_management_sweep_failures_total{task="reservations"} 0
user_management_sweep_failures_total{task="usage"} 0
# HELP user_management_oldest_due_reservation_age_seconds How long ago the oldest reservation ran out that the last sweep has left open; 0 when it left none.
# TYPE user_management_oldest_due_reservation_age_seconds gauge
user_management_oldest_due_reservation_age_seconds 90
# HELP user_management_open 1 while nobody needs a key or a token, 0 otherwise.
# TYPE user_management_open gauge
user_management_open 1
# HELP user_management_token_issuer_reachable 1 while the keys of the token issuer can be fetched, 0 otherwise.
# TYPE user_management_token_issuer_reachable gauge
user_management_token_issuer_reachable 1
# HELP user_management_clock_offset_seconds How far the service's clock is ahead of the database's, by which accounts are judged; negative when it is behind.
# TYPE user_management_clock_offset_seconds gauge
user_management_clock_offset_seconds -2
# HELP user_management_db_pool_connections Connections of the database pool, by state.
# TYPE user_management_db_pool_connections gauge
user_management_db_pool_connections{state="acquired"} 1
user_management_db_pool_connections{state="idle"} 2
# HELP user_management_db_pool_max_connections Most connections that the database pool may have.
# TYPE user_management_db_pool_max_connections gauge
user_management_db_pool_max_connections 8
# HELP user_management_db_pool_waits_total Times that a connection had to be waited for.
# TYPE user_management_db_pool_waits_total counter
user_management_db_pool_waits_total 3
# HELP user_management_db_pool_wait_seconds_total Time spent waiting for connections.
# TYPE user_management_db_pool_wait_seconds_total counter
user_management_db_pool_wait_seconds_total 4
# HELP user_management_build_info Version and commit of the running binary; always 1.
# TYPE user_management_build_info gauge
user_management_build_info{commit="abc",version="v1"} 1
# HELP http_requests_total Requests answered, by method, route pattern and status.
# TYPE http_requests_total counter
http_requests_total{method="GET",route="/user/{cognito_user_id}",status="200"} 1
# HELP http_requests_in_flight Requests that are being answered.
# TYPE http_requests_in_flight gauge
http_requests_in_flight 0
`), "user_management_tokens_consumed_total", "user_management_tokens_topped_up_total", "user_management_tokens_reserved_total",
		"user_management_tokens_refunded_total", "user_management_monthly_resets_total", "user_management_problems_total",
		"user_management_sweep_failures_total", "user_management_oldest_due_reservation_age_seconds", "user_management_open",
		"user_management_token_issuer_reachable", "user_management_clock_offset_seconds",
		"user_management_db_pool_connections", "user_management_db_pool_max_connections", "user_management_db_pool_waits_total",
		"user_management_db_pool_wait_seconds_total", "user_management_build_info", "http_requests_total", "http_requests_in_flight")
	if err != nil {
		t.Error(err)
	}
}

func TestWhatStrangersSendMakesNoSeries(t *testing.T) {
	t.Parallel()
	m := NewMetrics("v1", "abc", []user.Code{user.CodeInternal, user.CodeInsufficientTokens})
	count := func() (n int) {
		for _, f := range gather(t, m) {
			n += len(f.Metric)
		}
		return n
	}
	m.Request("BREW", "", http.StatusNotFound, time.Millisecond)
	before := count()
	m.Request("ANOTHER", "", http.StatusNotFound, time.Millisecond)
	if after := count(); after != before {
		t.Errorf("%d series, then %d", before, after)
	}
}

// series are the names that can be asked for: a histogram has three.
func series(t *testing.T) []string {
	t.Helper()
	names := []string{"up"} // Prometheus' own
	for _, f := range gather(t, used()) {
		if f.GetType() != dto.MetricType_HISTOGRAM {
			names = append(names, f.GetName())
			continue
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			names = append(names, f.GetName()+suffix)
		}
	}
	return names
}

var (
	// Label matchers, label lists and ranges hold no names of metrics; a word before ( is a function.
	noNames = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|([a-z]+\s+by|ignoring)\s*\([^)]*\)|\b(and|or)\b|[a-z_]+\s*\(`)
	names   = regexp.MustCompile(`[a-z_][a-z0-9_]*`)
)

// askedFor returns the names of metrics in a PromQL expression.
func askedFor(expr string) []string {
	return names.FindAllString(noNames.ReplaceAllString(expr, " "), -1)
}

func TestAskedFor(t *testing.T) {
	t.Parallel()
	got := askedFor(`histogram_quantile(0.99, sum by (le, x) (rate(a_bucket{b=~"c.*"}[5m]))) > 2 * count(d) and ignoring (e) f{g="h"} == 0`)
	if !slices.Equal(got, []string{"a_bucket", "d", "f"}) {
		t.Errorf("got %v", got)
	}
}

// queries returns every expr of the dashboard.
func queries(t *testing.T) (all []string) {
	t.Helper()
	var dashboard struct {
		Title  string
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read(t, "dashboard.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 && panel.Type != "row" {
			t.Errorf("the panel %q asks for nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

// expressions returns every expr of the dashboard and of the rules.
func expressions(t *testing.T) []string {
	t.Helper()
	all := queries(t)
	for _, rule := range rules(t) {
		all = append(all, rule.Expr)
	}
	return all
}

// rule is an alert.
type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func rules(t *testing.T) (all []rule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []rule
		}
	}
	if err := yaml.Unmarshal(read(t, "alerts.yaml"), &file); err != nil {
		t.Fatal(err)
	}
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestTheDashboardAndTheAlertsAskForMetricsThatExist(t *testing.T) {
	t.Parallel()
	known := series(t)
	asked := map[string]bool{}
	for _, expr := range expressions(t) {
		found := askedFor(expr)
		if len(found) == 0 {
			t.Errorf("no metric in %s", expr)
		}
		for _, name := range found {
			asked[name] = true
			if !slices.Contains(known, name) {
				t.Errorf("there is no %s, which is asked for by %s", name, expr)
			}
		}
	}
	for _, name := range known {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		ours := strings.HasPrefix(name, "user_management_") || strings.HasPrefix(name, "http_")
		if ours && !slices.ContainsFunc(slices.Collect(maps.Keys(asked)), func(n string) bool { return strings.HasPrefix(n, base) }) {
			t.Errorf("nothing asks for %s", base)
		}
	}
}

func TestTheManualExplainsEveryMetricAndEveryAlert(t *testing.T) {
	t.Parallel()
	manual := string(read(t, "../../cmd/user-management/README.md"))
	for _, f := range gather(t, used()) {
		if name := f.GetName(); !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "promhttp_") &&
			!strings.Contains(manual, "`"+name+"`") {
			t.Errorf("the manual lacks the metric %s", name)
		}
	}
	for _, r := range rules(t) {
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
			t.Errorf("%s has no severity or no summary", r.Alert)
		}
		if !strings.Contains(manual, "`"+r.Alert+"`") {
			t.Errorf("the manual has no runbook for %s", r.Alert)
		}
	}
}

// With labels on the left, only on() keeps the 0 from being one more line beside them.
var orZero = regexp.MustCompile(`( or vector\(0\)| or on\(\) vector\(0\))$`)

func TestDashboard_ShowsZeroWhereASeriesMayBeMissing(t *testing.T) {
	t.Parallel()
	for _, expr := range queries(t) {
		if !orZero.MatchString(expr) {
			t.Errorf("without a 0: %s", expr)
		}
	}
}

// matchers are what a query demands of the series of a metric.
var matchers = regexp.MustCompile(`[a-z_]+(\{[^}]*\}|\[)`)

func TestAlerts_SelectTheirJob(t *testing.T) {
	t.Parallel()
	for _, r := range rules(t) {
		found := matchers.FindAllString(r.Expr, -1)
		if len(found) != len(askedFor(r.Expr)) {
			t.Errorf("%s asks for %q, with matchers only %q", r.Alert, askedFor(r.Expr), found)
		}
		for _, m := range found {
			if !strings.Contains(m, `job="user-management"`) {
				t.Errorf("%s takes %s of any job", r.Alert, m)
			}
		}
	}
}
