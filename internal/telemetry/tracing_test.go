package telemetry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/viralpilot/user-management/internal/user"
)

// record returns a Tracing whose spans can be read, as they leave the process, once they have ended.
func record(t *testing.T) (*Tracing, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter{spans, slog.New(slog.DiscardHandler)}))
	t.Cleanup(func() {
		if err := provider.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &Tracing{provider, provider.Tracer("test")}, spans
}

func attributes(s tracetest.SpanStub) map[attribute.Key]string {
	m := map[attribute.Key]string{}
	for _, a := range s.Attributes {
		m[a.Key] = a.Value.String()
	}
	return m
}

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestASpanOfARequestHasItsRouteAndNothingOfItsUser(t *testing.T) {
	t.Parallel()
	tracing, spans := record(t)
	handler := tracing.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tracing.Route(r.Context(), r.Method, "/user/{id}")
		trace.SpanFromContext(r.Context()).RecordError(errors.New("of secret"))
		w.WriteHeader(http.StatusInternalServerError)
	}))
	request := httptest.NewRequest(http.MethodGet, "/user/secret?q=secret", nil)
	request.Header.Set("Traceparent", traceparent)
	request.Header.Set("Baggage", "user=secret")
	request.Header.Set("User-Agent", "secret")
	request.Header.Set("X-Forwarded-For", "secret")
	handler.ServeHTTP(httptest.NewRecorder(), request)

	got := spans.GetSpans()
	if len(got) != 1 {
		t.Fatalf("%d spans, want 1", len(got))
	}
	span := got[0]
	if span.Name != "GET /user/{id}" || span.SpanContext.TraceID().String() != traceparent[3:35] || span.Parent.SpanID().String() != traceparent[36:52] {
		t.Errorf("%s in %s below %s", span.Name, span.SpanContext.TraceID(), span.Parent.SpanID())
	}
	want := map[attribute.Key]string{"http.request.method": "GET", "http.route": "/user/{id}", "http.response.status_code": "500"}
	for key, value := range attributes(span) {
		if want[key] == value {
			delete(want, key)
		}
		if strings.Contains(value, "secret") {
			t.Errorf("%s is %s", key, value)
		}
	}
	if len(want) > 0 || len(span.Events) > 0 || span.Status.Code != codes.Error || span.Status.Description != "" {
		t.Errorf("lacks %v, has the events %v and the status %v", want, span.Events, span.Status)
	}
}

func TestProbesAndStrangersPathsAreNoNamesOfSpans(t *testing.T) {
	t.Parallel()
	tracing, spans := record(t)
	handler := tracing.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { tracing.Route(r.Context(), r.Method, "") }))
	for _, path := range append([]string{"/secret"}, probes...) {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("SECRET", path, nil))
	}
	if got := spans.GetSpans(); len(got) != 1 || got[0].Name != "HTTP" || attributes(got[0])["http.request.method"] != "_OTHER" {
		t.Errorf("%v", got)
	}
}

func TestARefusalIsNoFailureOfItsSpan(t *testing.T) {
	t.Parallel()
	tracing, spans := record(t)
	for _, tt := range []struct {
		err    error
		kind   string
		status codes.Code
	}{
		{nil, "", codes.Unset},
		{user.ErrUserNotFound, "user_not_found", codes.Unset},
		{user.ErrDatabaseUnavailable.Because(errors.New("secret")), "database_unavailable", codes.Error},
		{errors.New("secret"), "internal", codes.Error},
	} {
		_, end := tracing.Operation(t.Context(), "consume")
		end(tt.err)
		got := spans.GetSpans()
		span := got[len(got)-1]
		if span.Name != "user.consume" || attributes(span)["error.type"] != tt.kind || span.Status != (sdktrace.Status{Code: tt.status}) {
			t.Errorf("%v: %s, %v, %v", tt.err, span.Name, span.Attributes, span.Status)
		}
	}
}

func TestAGroupIsInTheTraceOfItsFirstCallerAndTheOthersLinkToIt(t *testing.T) {
	t.Parallel()
	tracing, spans := record(t)
	callers := []context.Context{t.Context()} // one is not traced
	var ends []func(error)
	for range 3 {
		ctx, end := tracing.Operation(t.Context(), "consume")
		callers, ends = append(callers, ctx), append(ends, end)
	}
	ctx, end := tracing.Group(callers)
	group := trace.SpanContextFromContext(ctx)
	end()
	for _, end := range ends {
		end(nil)
	}

	got := spans.GetSpans()
	if span := got[0]; span.Name != "commit group" || span.Parent.SpanID() != trace.SpanContextFromContext(callers[1]).SpanID() ||
		attributes(span)[groupSizeKey] != "4" {
		t.Errorf("%s below %s, %v", span.Name, span.Parent.SpanID(), span.Attributes)
	}
	for i, span := range got[1:] {
		linked := len(span.Links) == 1 && span.Links[0].SpanContext.Equal(group)
		if first := i == 0; linked == first {
			t.Errorf("caller %d has the links %v", i, span.Links)
		}
	}
}

func TestAGroupOfUntracedCallersHasNoSpanAndOutlivesThem(t *testing.T) {
	t.Parallel()
	tracing, spans := record(t)
	caller, hangUp := context.WithCancel(t.Context())
	hangUp()
	ctx, end := tracing.Group([]context.Context{caller})
	end()
	if got := spans.GetSpans(); len(got) != 0 || ctx.Err() != nil {
		t.Errorf("spans %v, context %v", got, ctx.Err())
	}
}

type brokenExporter struct{ sdktrace.SpanExporter }

func (brokenExporter) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	return errors.New("the collector is away")
}

func TestWhatIsNotExportedIsLogged(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	e := exporter{brokenExporter{}, NewLogger(&out, slog.LevelInfo, "json")}
	if err := e.ExportSpans(t.Context(), make([]sdktrace.ReadOnlySpan, 3)); err != nil {
		t.Errorf("%v, want no error: it would be printed beside the log", err)
	}
	if !strings.Contains(out.String(), `"spans":3,"error":"the collector is away"`) {
		t.Errorf("log: %s", out.String())
	}
}

func TestLinesOfATraceHaveItsID(t *testing.T) {
	t.Parallel()
	tracing, _ := record(t)
	var out bytes.Buffer
	log := tracing.Logger(NewLogger(&out, slog.LevelInfo, "json")).With("a", 1)
	log.InfoContext(t.Context(), "outside")
	ctx, end := tracing.Operation(t.Context(), "consume")
	log.InfoContext(ctx, "inside")
	log.WithGroup("group").InfoContext(ctx, "inside a group")
	end(nil)
	lines := strings.Split(out.String(), "\n")
	id := trace.SpanContextFromContext(ctx).TraceID().String()
	if strings.Contains(lines[0], "trace_id") || !strings.Contains(lines[1], `"a":1,"trace_id":"`+id) || !strings.Contains(lines[2], id) {
		t.Errorf("log:\n%s", out.String())
	}
}
