package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/viralpilot/user-management/internal/user"
)

// Tracing tells a collector what each request did and how long it took: a span for its route, one for the service's
// operation below it, and one for each statement below that, all in the trace of the caller (W3C Trace Context). None
// names a user: see harmless.
type Tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// NewTracing sends traces to the collector at endpoint, the base URL of its OTLP over HTTP, as this version of the
// service. The variables of the OpenTelemetry SDK for headers, sampling and resource are honoured. A collector that
// does not answer is reported to log and does no other harm. The caller closes the Tracing.
func NewTracing(ctx context.Context, endpoint, version string, log *slog.Logger) (*Tracing, error) {
	sender, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint+"/v1/traces"))
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(semconv.ServiceName("user-management"), semconv.ServiceVersion(version)),
		resource.WithHost(), // tells replicas apart
		resource.WithTelemetrySDK(),
		resource.WithFromEnv(),
	)
	if err != nil {
		log.Warn("traces lack a part of what describes this process", "error", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter{sender, log}),
		sdktrace.WithResource(about),
	)
	return &Tracing{provider, provider.Tracer("github.com/viralpilot/user-management")}, nil
}

// Close sends what has not been sent yet, until ctx is done.
func (t *Tracing) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Handler traces the requests that next answers, but for those of probes.
func (t *Tracing) Handler(next http.Handler) http.Handler {
	return otelhttp.NewHandler(next, "HTTP",
		otelhttp.WithTracerProvider(t.provider),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		// No baggage, which may hold anything.
		otelhttp.WithPropagators(propagation.TraceContext{}),
		// Until Route knows better; the method may be anything that a stranger sends.
		otelhttp.WithSpanNameFormatter(func(operation string, _ *http.Request) string { return operation }),
		otelhttp.WithFilter(func(r *http.Request) bool { return !slices.Contains(probes, r.URL.Path) }),
	)
}

// probes are asked all day, and by nobody who waits.
var probes = []string{"/health", "/livez", "/metrics"}

// Route names the span of the request with this context after its route, when it has one.
func (t *Tracing) Route(ctx context.Context, method, route string) {
	if route == "" {
		return
	}
	span := trace.SpanFromContext(ctx)
	span.SetName(method + " " + route)
	span.SetAttributes(semconv.HTTPRoute(route))
}

// Operation begins the span of an operation of the service.
func (t *Tracing) Operation(ctx context.Context, operation string) (spanned context.Context, end func(error)) {
	spanned, span := t.tracer.Start(ctx, "user."+operation)
	return spanned, func(err error) {
		defer span.End()
		if err == nil {
			return
		}
		code := user.CodeOf(err)
		span.SetAttributes(semconv.ErrorTypeKey.String(string(code)))
		switch code { // any other is a refusal, which is an answer
		case user.CodeInternal, user.CodeOverloaded, user.CodeDatabaseUnavailable:
			span.SetStatus(codes.Error, "")
		}
	}
}

// Group begins the span of a transaction that serves several callers. It belongs to the trace of the first that has
// one; the spans of the others link to it.
func (t *Tracing) Group(callers []context.Context) (spanned context.Context, end func()) {
	first := slices.IndexFunc(callers, func(ctx context.Context) bool { return trace.SpanFromContext(ctx).IsRecording() })
	if first < 0 {
		return context.WithoutCancel(callers[0]), func() {}
	}
	spanned, span := t.tracer.Start(context.WithoutCancel(callers[first]), "commit group",
		trace.WithAttributes(groupSizeKey.Int(len(callers))))
	for _, other := range callers[first+1:] {
		trace.SpanFromContext(other).AddLink(trace.Link{SpanContext: span.SpanContext()})
	}
	return spanned, func() { span.End() }
}

// Database traces what is done to the database for something that is traced itself. It sees SQL without its arguments.
func (t *Tracing) Database() pgx.QueryTracer {
	return otelpgx.NewTracer(
		otelpgx.WithTracerProvider(t.provider),
		otelpgx.WithMeterProvider(noop.NewMeterProvider()),
		otelpgx.WithDisableConnectionDetailsInAttributes(),
	)
}

// Logger returns a log whose lines have the trace_id of what they are about.
func (t *Tracing) Logger(log *slog.Logger) *slog.Logger { return slog.New(traced{log.Handler()}) }

// traced is a handler that adds the id of the context's trace.
type traced struct{ slog.Handler }

// Handle implements slog.Handler.
func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.HasTraceID() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler { return traced{h.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (h traced) WithGroup(name string) slog.Handler { return traced{h.Handler.WithGroup(name)} }

// exporter lets nothing out that might name a user, and logs what goes wrong.
type exporter struct {
	sdktrace.SpanExporter
	log *slog.Logger
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the SDK would print it past the log.
func (e exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	clean := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, span := range spans {
		clean[i] = harmless{span}
	}
	if err := e.SpanExporter.ExportSpans(ctx, clean); err != nil {
		e.log.Warn("traces were not exported", "spans", len(spans), "error", err)
	}
	return nil
}

// harmless is a span of which only attributes are left that can name no user. What instruments requests and
// statements says more: the path, which has the account's id, the client's address, the texts of the database's
// errors, which may quote what was stored. Those are in the log, under the trace's id, as far as they may be.
type harmless struct{ sdktrace.ReadOnlySpan }

// groupSizeKey is how many updates a transaction served.
const groupSizeKey = attribute.Key("user_management.group_size")

var harmlessKeys = []attribute.Key{
	semconv.HTTPRequestMethodKey, semconv.HTTPRouteKey, semconv.HTTPResponseStatusCodeKey,
	semconv.HTTPRequestBodySizeKey, semconv.HTTPResponseBodySizeKey, semconv.ErrorTypeKey,
	semconv.DBSystemNameKey, semconv.DBQueryTextKey, semconv.DBOperationNameKey, semconv.DBOperationBatchSizeKey,
	otelpgx.RowsAffectedKey, otelpgx.SQLStateKey, groupSizeKey,
}

// Attributes implements sdktrace.ReadOnlySpan.
func (s harmless) Attributes() []attribute.KeyValue {
	var kept []attribute.KeyValue
	for _, a := range s.ReadOnlySpan.Attributes() {
		if slices.Contains(harmlessKeys, a.Key) {
			kept = append(kept, a)
		}
	}
	return kept
}

// Events implements sdktrace.ReadOnlySpan.
func (harmless) Events() []sdktrace.Event { return nil }

// Status implements sdktrace.ReadOnlySpan.
func (s harmless) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}
