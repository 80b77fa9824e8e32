package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/telemetry"
)

// tracing is what the parts of the service are given so that they are traced: hooks that are nil where nothing is.
type tracing struct {
	handler   func(http.Handler) http.Handler
	route     func(ctx context.Context, method, route string)
	operation func(ctx context.Context, operation string) (context.Context, func(error))
	database  pgx.QueryTracer
	group     func(callers []context.Context) (context.Context, func())
	stop      func()
}

// lastTraces is how long a stop waits for a collector that does not answer.
const lastTraces = 3 * time.Second

// startTracing starts what the configuration asks for, which may be nothing. It returns the log to go on with.
func startTracing(ctx, stopping context.Context, cfg config.Config, log *slog.Logger) (tracing, *slog.Logger, error) {
	if cfg.OTLPEndpoint == "" {
		return tracing{handler: func(h http.Handler) http.Handler { return h }, stop: func() {}}, log, nil
	}
	t, err := telemetry.NewTracing(ctx, string(cfg.OTLPEndpoint), version, log)
	if err != nil {
		return tracing{}, nil, err
	}
	return tracing{t.Handler, t.Route, t.Operation, t.Database(), t.Group, func() {
		ctx, cancel := context.WithTimeout(stopping, lastTraces)
		defer cancel()
		if err := t.Close(ctx); err != nil {
			log.Warn("the last traces were not sent", "error", err)
		}
	}}, t.Logger(log), nil
}

// serveMetrics serves the metrics, and the profiles where they are wanted, on a port of their own until stop is called;
// nothing where they have none. It asks for no key: that port is for the operator's network alone.
func serveMetrics(cfg config.Config, log *slog.Logger, metrics http.Handler) (stop func(), err error) {
	if cfg.MetricsPort == 0 {
		return func() {}, nil
	}
	listener, err := listen(cfg.ServiceHost, cfg.MetricsPort, "METRICS_PORT")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	if cfg.PprofEnabled {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: cfg.HTTPReadHeaderTimeout,
		ReadTimeout:       cfg.HTTPReadTimeout,
		IdleTimeout:       cfg.HTTPIdleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		// No limit for the answer: a profile takes as long as it was asked for.
	}
	log.Info("serving metrics", "address", listener.Addr().String(), "pprof", cfg.PprofEnabled)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "error", err)
		}
	}()
	return func() {
		if err := server.Close(); err != nil {
			log.Warn("the metrics' port was not closed", "error", err)
		}
		<-done
	}, nil
}
