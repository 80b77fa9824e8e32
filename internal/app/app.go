// Package app is the composition root: it makes the parts of the service from a configuration, runs them and stops
// them in order. It is the only package that sees all others.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/telemetry"
	"github.com/viralpilot/user-management/internal/user"
)

// Both are stamped in by the linker (see the Makefile and the Dockerfile).
var (
	version = "dev"
	commit  = "unknown"
)

// Version is the version of this build.
func Version() string { return version }

// Commit is the commit that this build was made from.
func Commit() string { return commit }

// Run serves until ctx is done, then stops: /health says so, the port is closed, requests under way are finished
// within cfg.ShutdownTimeout, and the database pool is closed last. The log goes to stdout. It returns nil after a
// clean stop; otherwise the error is one line for the operator.
func Run(ctx context.Context, cfg config.Config, stdout io.Writer) error {
	log := telemetry.NewLogger(stdout, cfg.LogLevel, cfg.LogFormat)
	log.Info("starting", "version", version, "commit", commit, "config", cfg)

	access, stopAccess, err := newAuthenticator(cfg, log)
	if err != nil {
		return err
	}
	defer stopAccess()
	metrics := telemetry.NewMetrics(version, commit)
	database := databaseOptions(cfg, log)
	database.Observer = metrics
	store, err := postgres.Open(ctx, database)
	if err != nil {
		return stopped(ctx, err)
	}
	defer store.Close()
	metrics.Pool(func() telemetry.PoolStats {
		s := store.Stat()
		return telemetry.PoolStats{
			Acquired: s.AcquiredConns(), Idle: s.IdleConns(), Max: s.MaxConns(),
			Waits: s.EmptyAcquireCount(), WaitTime: s.EmptyAcquireWaitTime(),
		}
	})

	users, err := newService(cfg, store)
	if err != nil {
		return err
	}
	users.Observer = metrics
	defer sweeping(ctx, users, cfg.SweepInterval, log)()
	api := httpapi.New(httpapi.Options{
		Users:                users,
		Database:             store,
		Log:                  log,
		Authenticate:         authenticate(access),
		Version:              version,
		CORSOrigins:          cfg.CORSOrigins,
		CORSAllowCredentials: cfg.CORSAllowCredentials,
		LogRequests:          httpapi.LogRequests(cfg.LogRequests),
		Observer:             metrics,
		MetricsHandler:       metrics.Handler(),
		RateLimitPerMinute:   cfg.RateLimitPerMinute,
		TrustedProxies:       cfg.TrustedProxies,
		MaxInFlight:          cfg.MaxInFlight,
		RequestTimeout:       cfg.RequestTimeout,
	})
	return serve(ctx, cfg, log, api)
}

// sweeping returns the tokens of reservations that ran out, every interval until ctx is done or the function it returns
// is called, which waits for the sweep under way.
func sweeping(ctx context.Context, users *user.Service, interval time.Duration, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			touched, err := users.Sweep(ctx)
			if err != nil && ctx.Err() == nil {
				log.Warn("sweep of reservations failed in part", "accounts", touched, "error", err)
			} else if touched > 0 {
				log.Info("reservations ran out", "accounts", touched)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// Migrate brings the database to this version's schema and does nothing else.
func Migrate(ctx context.Context, cfg config.Config, stdout io.Writer) error {
	store, err := postgres.Open(ctx, databaseOptions(cfg, telemetry.NewLogger(stdout, cfg.LogLevel, cfg.LogFormat)))
	if err != nil {
		return err
	}
	store.Close()
	return nil
}

func newService(cfg config.Config, store user.Store) (*user.Service, error) {
	tiers, err := user.NewCatalogue(cfg.TierMonthlyTokens)
	if err != nil {
		return nil, fmt.Errorf("TIER_MONTHLY_TOKENS: %w", err)
	}
	return &user.Service{
		Store: store,
		Rules: user.Rules{Tiers: tiers, ResetZone: cfg.TokenResetTimezone.Location()},
		Now:   time.Now,
	}, nil
}

// stopped is nil for an error that only says that ctx was done.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

func databaseOptions(cfg config.Config, log *slog.Logger) postgres.Options {
	return postgres.Options{
		URL:                  cfg.DatabaseURL.Reveal(),
		MaxConns:             cfg.DBMaxConns,
		MinConns:             cfg.DBMinConns,
		ConnectTimeout:       cfg.DBConnectTimeout,
		AcquireTimeout:       cfg.DBAcquireTimeout,
		StatementTimeout:     cfg.DBStatementTimeout,
		WriteBatchMax:        cfg.WriteBatchMax,
		ImportPublicUserdata: cfg.ImportPublicUserdata,
		Log:                  log,
	}
}

// maxHeader is the most bytes of a request's header.
const maxHeader = 64 << 10

func serve(ctx context.Context, cfg config.Config, log *slog.Logger, api *httpapi.API) error {
	address := net.JoinHostPort(cfg.ServiceHost, strconv.Itoa(cfg.ServicePort))
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("port %d is taken: stop what listens there or set SERVICE_PORT to another one", cfg.ServicePort)
	} else if err != nil {
		return fmt.Errorf("cannot listen on SERVICE_HOST:SERVICE_PORT: %w", err)
	}
	server := &http.Server{
		Handler:           api.Handler(),
		ReadHeaderTimeout: cfg.HTTPReadHeaderTimeout,
		ReadTimeout:       cfg.HTTPReadTimeout,
		WriteTimeout:      cfg.HTTPWriteTimeout,
		IdleTimeout:       cfg.HTTPIdleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	log.Info("listening", "address", listener.Addr().String())

	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}

	log.Info("stopping: requests under way are finished", "within", cfg.ShutdownTimeout)
	api.Stopping()
	// ctx is done already: what is under way has its own time.
	finishing, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.ShutdownTimeout)
	defer cancel()
	if err := server.Shutdown(finishing); err != nil {
		return errors.Join(fmt.Errorf("requests were still under way after SHUTDOWN_TIMEOUT (%s)", cfg.ShutdownTimeout), server.Close())
	}
	log.Info("stopped")
	return nil
}
