package app_test

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// receiver is a collector that keeps the spans that it gets.
type receiver struct {
	t      *testing.T
	url    string
	status int // of its answers

	mu    sync.Mutex
	spans []*trace.Span
}

func newReceiver(t *testing.T, status int) *receiver {
	r := &receiver{t: t, status: status}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil || req.URL.Path != "/v1/traces" {
		r.t.Errorf("%s: %v", req.URL, err)
	}
	var export collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &export); err != nil {
		r.t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range export.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			r.spans = append(r.spans, scope.Spans...)
		}
	}
	w.WriteHeader(r.status)
}

// inTrace returns the spans of a trace that have come.
func (r *receiver) inTrace(id string) (spans []*trace.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, span := range r.spans {
		if hex.EncodeToString(span.TraceId) == id {
			spans = append(spans, span)
		}
	}
	return spans
}

func attribute(span *trace.Span, key string) string {
	for _, a := range span.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

func TestATraceHasRouteServiceAndDatabaseUnderTheCallersID(t *testing.T) {
	t.Parallel()
	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	collector := newReceiver(t, http.StatusOK)
	r, c := start(t, localpgtest.New(t), func(cfg *config.Config) { cfg.OTLPEndpoint = config.EndpointURL(collector.url) }), newClient(t)
	// The amount is too long to be in an instant or a port by chance.
	const account, mail, key, amount = "account-of-somebody", "somebody@mail.example", "key-of-somebody", "2039481756"
	traced := func(method, path, body string, want int, header ...string) {
		t.Helper()
		c.do(want, method, r.url+path, body, append(header, "Traceparent", "00-"+id+"-"+parent+"-01", "Baggage", "id="+account)...)
	}
	traced(http.MethodPost, "/user", `{"cognito_user_id": "`+account+`", "email": "`+mail+`"}`, http.StatusCreated)
	traced(http.MethodPut, "/user/"+account+"/tier", `{"tier": "tester"}`, http.StatusOK)
	traced(http.MethodPost, "/user/"+account+"/consume-tokens", `{"metadata": {"note": "`+mail+`"}}`, http.StatusOK, "Idempotency-Key", key)
	traced(http.MethodGet, "/user/"+account+"/status", "", http.StatusOK)
	traced(http.MethodGet, "/users?q="+mail, "", http.StatusOK)
	traced(http.MethodPost, "/user/"+account+"/consume-tokens", `{"tokens_to_consume": `+amount+`}`, http.StatusPaymentRequired)
	c.do(http.StatusOK, http.MethodGet, r.url+"/health", "", "Traceparent", "00-"+id+"-"+parent+"-01")
	r.stop() // sends what is left

	spans := collector.inTrace(id)
	byID := map[string]*trace.Span{}
	for _, span := range spans {
		byID[hex.EncodeToString(span.SpanId)] = span
		for _, word := range []string{account, mail, key, "somebody", amount} {
			if strings.Contains(span.String(), word) {
				t.Errorf("%s is in %v", word, span)
			}
		}
	}
	// path is the names of the spans above one, from the route's down.
	path := func(span *trace.Span) (names []string) {
		for ; span != nil; span = byID[hex.EncodeToString(span.ParentSpanId)] {
			names = append(names, span.Name)
		}
		slices.Reverse(names)
		return names
	}
	var paths []string
	for _, span := range spans {
		if attribute(span, "db.query.text") == "" {
			continue
		}
		names := path(span)
		paths = append(paths, strings.Join(names[:len(names)-1], " / "))
		root := span
		for byID[hex.EncodeToString(root.ParentSpanId)] != nil {
			root = byID[hex.EncodeToString(root.ParentSpanId)]
		}
		if hex.EncodeToString(root.ParentSpanId) != parent || root.Kind != trace.Span_SPAN_KIND_SERVER || root.Name != attribute(root, "http.request.method")+" "+attribute(root, "http.route") {
			t.Errorf("%v is below %v", names, root)
		}
	}
	for _, want := range []string{
		"POST /user / user.create / batch start",
		"PUT /user/{cognito_user_id}/tier / user.tier_change / commit group / batch start",
		"POST /user/{cognito_user_id}/consume-tokens / user.consume / commit group / batch start",
		"GET /user/{cognito_user_id}/status / user.account",
		"GET /users / user.accounts",
	} {
		if !slices.Contains(paths, want) {
			t.Errorf("no statement below %s in %q", want, slices.Compact(slices.Sorted(slices.Values(paths))))
		}
	}
	if slices.ContainsFunc(spans, func(s *trace.Span) bool { return strings.Contains(s.Name, "health") }) {
		t.Error("a probe is traced")
	}
	for _, line := range r.lines("request") {
		if got := line["trace_id"]; (got == id) != (line["route"] != "/health") {
			t.Errorf("%v has the trace %v", line["route"], got)
		}
	}
}

func TestACollectorThatRefusesHarmsNobody(t *testing.T) {
	t.Parallel()
	collector := newReceiver(t, http.StatusBadRequest)
	r, c := start(t, localpgtest.New(t), func(cfg *config.Config) { cfg.OTLPEndpoint = config.EndpointURL(collector.url) }), newClient(t)
	c.tester(r, "u")
	r.stop()
	if len(r.lines("traces were not exported")) == 0 {
		t.Errorf("the log does not say so:\n%s", r.log)
	}
}

func TestACallerWhoWantsNoTraceGetsNone(t *testing.T) {
	t.Parallel()
	collector := newReceiver(t, http.StatusOK)
	r, c := start(t, localpgtest.New(t), func(cfg *config.Config) { cfg.OTLPEndpoint = config.EndpointURL(collector.url) }), newClient(t)
	const id = "0af7651916cd43dd8448eb211c80319d"
	c.do(http.StatusOK, http.MethodGet, r.url+"/user/u", "", "Traceparent", "00-"+id+"-b7ad6b7169203331-00")
	r.stop()
	if spans := collector.inTrace(id); len(spans) > 0 {
		t.Errorf("%v", spans)
	}
}
