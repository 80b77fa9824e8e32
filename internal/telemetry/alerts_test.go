//go:build alerts

package telemetry

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// seriesOf are values, one a minute in promtool's notation, by the name of their series, in which JOB stands for the
// labels of a replica.
type seriesOf map[string]string

// incident is the case that an alert is for.
type incident struct {
	alert string
	// fires is what makes the alert fire by the given minute, once, with these labels beside its severity and with this
	// summary.
	fires   seriesOf
	minute  int
	labels  map[string]string
	summary string
	// near is what comes close and leaves the alert silent.
	near seriesOf
}

const (
	requests = `http_requests_total{JOB,method="GET",route="/user/{cognito_user_id}/status",status="200"}`
	failed   = `http_requests_total{JOB,method="GET",route="/user/{cognito_user_id}/status",status="503"}`
	health   = `http_requests_total{JOB,method="GET",route="/health",status="200"}`
	fast     = `http_request_duration_seconds_bucket{JOB,route="/user/{cognito_user_id}",le="0.25"}`
	slow     = `http_request_duration_seconds_bucket{JOB,route="/user/{cognito_user_id}",le="0.5"}`
	all      = `http_request_duration_seconds_bucket{JOB,route="/user/{cognito_user_id}",le="+Inf"}`
	acquired = `user_management_db_pool_connections{JOB,state="acquired"}`
	most     = `user_management_db_pool_max_connections{JOB}`
	waited   = `user_management_db_pool_wait_seconds_total{JOB}`
	retries  = `user_management_commit_group_retries_total{JOB}`
	groups   = `user_management_commit_group_size_count{JOB}`
	sweeps   = `user_management_sweep_failures_total{JOB,task="reservations"}`
	oldest   = `user_management_oldest_due_reservation_age_seconds{JOB}`
	offset   = `user_management_clock_offset_seconds{JOB}`
	feedLag  = `user_management_feed_lag_seconds{JOB}`
	foldLag  = `user_management_usage_fold_lag_seconds{JOB}`
	issuer   = `user_management_token_issuer_reachable{JOB}`
	open     = `user_management_open{JOB}`
	cert     = `user_management_tls_certificate_expires_timestamp_seconds{JOB}`
	renewals = `user_management_tls_certificate_failures_total{JOB}`
	key      = `user_management_api_key_expires_timestamp_seconds{JOB,key="postpilot"}`
	started  = `process_start_time_seconds{JOB}`
)

func problems(code string) string { return `user_management_problems_total{JOB,code="` + code + `"}` }

func build(version string) string {
	return `user_management_build_info{JOB,version="` + version + `",commit="c"}`
}

var (
	replica = map[string]string{"job": "user-management", "instance": "a"}
	none    = map[string]string{}
)

var incidents = []incident{
	{
		"UserManagementDown",
		seriesOf{`up{JOB}`: "1x10 0x20"},
		15, replica, "a does not answer",
		seriesOf{`up{JOB}`: "1x14 0 1x20"},
	},
	{
		"UserManagementDown",
		seriesOf{`up{job="user-management",instance="gone"}`: "1x10 stale"},
		15,
		map[string]string{"job": "user-management"},
		"Prometheus has no target of the job",
		seriesOf{`up{JOB}`: "1x30", `up{job="user-management",instance="gone"}`: "1x10 stale"},
	},
	{
		"UserManagementDatabaseUnavailable",
		seriesOf{problems("database_unavailable"): "0x10 0+5x20"},
		15, none,
		"Requests fail because the database does not answer",
		seriesOf{problems("overloaded"): "0+5x30"},
	},
	{
		"UserManagementErrors",
		seriesOf{requests: "0+300x30", failed: "0+10x30", health: "0+6000x30"},
		20, none,
		"More than one request in a hundred fails",
		seriesOf{requests: "0+3000x30", failed: "0+10x30", health: "0+60x30"},
	},
	{
		"UserManagementInternalErrors",
		seriesOf{problems("internal"): "0x10 1x20"},
		15, none,
		"A request failed in a way that nobody foresaw",
		seriesOf{problems("internal"): "7x30", problems("validation_failed"): "0+5x30"},
	},
	{
		"UserManagementOverloaded",
		seriesOf{problems("overloaded"): "0x5 0+5x30"},
		20, none,
		"Requests are refused for lack of capacity",
		seriesOf{problems("overloaded"): "0x5 5x30", problems("rate_limited"): "0+5x40"},
	},
	{
		"UserManagementSlow",
		seriesOf{fast: "0+90x30", slow: "0+100x30", all: "0+100x30"},
		20, none,
		"One request in a hundred takes more than 250 ms",
		seriesOf{fast: "0+995x30", slow: "0+1000x30", all: "0+1000x30"},
	},
	{
		"UserManagementPoolExhausted",
		seriesOf{acquired: "8x30", most: "8x30", waited: "0+120x30"},
		20, replica,
		"Requests of a wait for connections to the database",
		seriesOf{acquired: "8x30", most: "8x30", waited: "0+30x30"},
	},
	{
		"UserManagementCommitsRetried",
		seriesOf{retries: "0+20x60", groups: "0+100x60"},
		40, none,
		"More than one transaction in ten is tried again",
		seriesOf{retries: "0+5x60", groups: "0+100x60"},
	},
	{
		"UserManagementSweepFails",
		seriesOf{sweeps: "0x5 0+2x60"},
		30,
		map[string]string{"task": "reservations"},
		"The sweep of reservations has been failing for a quarter of an hour",
		seriesOf{sweeps: "0x20 2 4x60"},
	},
	{
		"UserManagementReservationsNotSwept",
		seriesOf{oldest: "0+60x60"},
		30, none,
		"A reservation ran out 30m 0s ago, and its tokens are not back",
		seriesOf{oldest: "590x60"},
	},
	{
		"UserManagementClock",
		seriesOf{offset: "-6x30"},
		15, replica,
		"The clock of a differs from the database's by more than 5 seconds",
		seriesOf{offset: "-5x30"},
	},
	{
		"UserManagementFeedHeldUp",
		seriesOf{feedLag: "0x5 0+60x10"},
		12, none,
		"A transaction that stays open keeps entries out of the feed",
		seriesOf{feedLag: "60x30"},
	},
	{
		"UserManagementUsageBehind",
		seriesOf{foldLag: "0x5 0+60x20"},
		20, none,
		"The usage that is added up has been behind the ledger for 14m 0s",
		seriesOf{foldLag: "300x40"},
	},
	{
		"UserManagementIssuerUnreachable",
		seriesOf{issuer: "1x5 0x30"},
		15, replica,
		"a cannot fetch the keys by which users' tokens are checked",
		seriesOf{issuer: "1x10 0x3 1x30"},
	},
	{
		"UserManagementCallersRefused",
		seriesOf{requests: "0+80x40", problems("unauthenticated"): "0+20x40"},
		30, none,
		"More than one request in ten has no key or token that is known",
		seriesOf{requests: "0+300x40", problems("unauthenticated"): "0+20x40"},
	},
	{
		"UserManagementOpen",
		seriesOf{open: "1x30"},
		10, replica,
		"Whoever reaches a may change every account, without a key",
		seriesOf{open: "0x30"},
	},
	{
		"UserManagementCertificate",
		seriesOf{cert: "518400x30"},
		10, replica,
		"The TLS certificate of a expires within a week, or its renewal cannot be used",
		seriesOf{cert: "691200x30"},
	},
	{
		"UserManagementCertificate",
		seriesOf{cert: "9999999x30", renewals: "0x5 1x30"},
		10, replica,
		"The TLS certificate of a expires within a week, or its renewal cannot be used",
		seriesOf{cert: "9999999x30", renewals: "1x30"},
	},
	{
		"UserManagementKeyExpires",
		seriesOf{key: "1123200x30"},
		10,
		map[string]string{"key": "postpilot"},
		"The API key postpilot expires within 14 days, or has expired",
		seriesOf{key: "1296000x30"},
	},
	{
		"UserManagementRestarts",
		seriesOf{started: "1x5 2x5 3x5 4x30"},
		30, replica,
		"a restarted more than twice in an hour",
		seriesOf{started: "1x5 2x5 3x30"},
	},
	{
		"UserManagementMixedVersions",
		seriesOf{build("v1"): "1x100", build("v2"): "1x100"},
		90, none,
		"Replicas of different builds have been running for an hour",
		seriesOf{build("v1"): "1x100", build("v2"): "1x50 stale"},
	},
}

// in gives the series the labels of a replica of the job, and their values.
func (s seriesOf) in(job string) (input []map[string]string) {
	for name, values := range s {
		name = strings.Replace(name, "JOB", fmt.Sprintf("job=%q,instance=%q", job, "a"), 1)
		input = append(input, map[string]string{"series": name, "values": values})
	}
	return input
}

// promtool fails the test unless `promtool test rules` passes the cases on alerts.yaml.
func promtool(t *testing.T, cases ...map[string]any) {
	t.Helper()
	rules, err := filepath.Abs("alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		c["interval"] = "1m"
	}
	content, err := json.Marshal(map[string]any{"rule_files": []string{rules}, "evaluation_interval": "1m", "tests": cases}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cases.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "promtool", "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestAlerts_AreValid(t *testing.T) {
	t.Parallel()
	if out, err := exec.CommandContext(t.Context(), "promtool", "check", "rules", "alerts.yaml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestAlerts_FireInTheirCaseAlone(t *testing.T) {
	t.Parallel()
	severity := map[string]string{}
	for _, r := range rules(t) {
		severity[r.Alert] = r.Labels["severity"]
	}
	tried := map[string]bool{}
	for _, c := range incidents {
		tried[c.alert] = true
		t.Run(c.alert, func(t *testing.T) {
			t.Parallel()
			labels := map[string]string{"severity": severity[c.alert]}
			for name, value := range c.labels {
				labels[name] = value
			}
			firing := []map[string]any{{"exp_labels": labels, "exp_annotations": map[string]string{"summary": c.summary}}}
			at := func(alerts []map[string]any) []map[string]any {
				return []map[string]any{{"eval_time": fmt.Sprint(c.minute, "m"), "alertname": c.alert, "exp_alerts": alerts}}
			}
			up := seriesOf{`up{JOB}`: "1x120"}.in("user-management")
			if _, own := c.near[`up{JOB}`]; own {
				up = nil
			}
			promtool(t,
				map[string]any{"name": "its case", "input_series": c.fires.in("user-management"), "alert_rule_test": at(firing)},
				map[string]any{"name": "another service", "input_series": append(c.fires.in("shop"), seriesOf{`up{JOB}`: "1x120"}.in("user-management")...), "alert_rule_test": at(nil)},
				map[string]any{"name": "close to it", "input_series": append(c.near.in("user-management"), up...), "alert_rule_test": at(nil)},
				map[string]any{"name": "a service without a request", "input_series": fresh(t), "alert_rule_test": at(nil)},
			)
		})
	}
	for alert := range severity {
		if !tried[alert] {
			t.Errorf("there is no case of %s", alert)
		}
	}
}

// fresh are the series of a service that has keys and no request yet.
func fresh(t *testing.T) (input []map[string]string) {
	t.Helper()
	m := NewMetrics("v1", "abc", nil)
	m.Pool(func() PoolStats { return PoolStats{Max: 8} })
	m.ClockOffset(func() time.Duration { return 0 })
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		name, labels, labelled := strings.Cut(series, "{")
		if !labelled {
			name, value, _ = strings.Cut(series, " ")
		}
		series = name + `{job="user-management",instance="a",` + labels + "}"
		input = append(input, map[string]string{"series": series, "values": value + "x120"})
	}
	return append(input, seriesOf{`up{JOB}`: "1x120"}.in("user-management")...)
}

func TestDashboard_HasDataOrZeroBeforeTheFirstRequest(t *testing.T) {
	t.Parallel()
	var want []map[string]any
	for _, expr := range queries(t) {
		expr = strings.NewReplacer("$job", "user-management", "$__rate_interval", "5m").Replace(expr)
		want = append(want, map[string]any{ // nothing where there is nothing, or nothing that is a number
			"eval_time": "30m", "expr": "count((" + expr + ") > -Inf) > bool 0", "exp_samples": []map[string]any{{"labels": "{}", "value": 1}},
		})
	}
	promtool(t, map[string]any{"name": "the dashboard", "input_series": fresh(t), "promql_expr_test": want})
}
