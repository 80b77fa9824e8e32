// Package app is the composition root: it makes the parts of the service from a configuration, runs them and stops
// them in order. It is the only package that sees all others.
//
// The service starts in this order: traces, the metrics' port where they have one, the keys, the database (waited for,
// then migrated), the sweep, and last the port that it serves.
//
// It stops the other way round, and has SHUTDOWN_TIMEOUT for all of it:
//
//  1. /health answers 503 shutting_down, and calls of the feed that wait for entries are answered. For SHUTDOWN_DELAY everything else is served as before, each connection for
//     one more answer, so that load balancers look elsewhere.
//  2. The port is closed and the requests in flight are finished.
//  3. The sweep ends after the account that it is at, and what adds up the usage after its part of the ledger.
//  4. The pool finishes its transactions and is closed.
//  5. The metrics' port is closed, and the traces that are left are sent.
//
// A second signal ends the process at once, wherever it is in that.
package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/telemetry"
	"github.com/viralpilot/user-management/internal/user"
)

// Both are stamped in by the linker (see the Makefile and the Dockerfile), or known to Go where it has built in a
// repository of git.
var version, commit string

func init() {
	info, ok := debug.ReadBuildInfo()
	if ok && version == "" && info.Main.Version != "(devel)" {
		version = info.Main.Version
	}
	if ok && commit == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	version, commit = cmp.Or(version, "dev"), cmp.Or(commit, "unknown")
}

// Version is the version of this build.
func Version() string { return version }

// Commit is the commit that this build was made from.
func Commit() string { return commit }

// Run serves until ctx is done, then stops as the package comment says. The log goes to stdout. It returns nil after a
// clean stop; otherwise the error is one line for the operator.
func Run(ctx context.Context, cfg config.Config, stdout io.Writer) (err error) {
	log := telemetry.NewLogger(stdout, cfg.LogLevel, cfg.LogFormat)
	log.Info("starting", "version", version, "commit", commit, "config", cfg.Changed())
	log.Debug("settings", "config", cfg)
	for _, wrong := range config.Misspelled() {
		log.Warn("a variable of the environment looks like a misspelled setting and is ignored", "variable", wrong.Variable, "meant", wrong.Meant)
	}
	stopping, cancel := outlive(ctx, cfg.ShutdownTimeout)
	defer cancel()
	defer func() {
		if err == nil {
			log.Info("stopped")
		}
	}()

	tracing, log, err := startTracing(ctx, stopping, cfg, log)
	if err != nil {
		return err
	}
	defer tracing.stop()
	metrics := telemetry.NewMetrics(version, commit, httpapi.Codes())
	stopMetrics, err := serveMetrics(cfg, log, metrics.Handler())
	if err != nil {
		return err
	}
	defer stopMetrics()
	access, stopAccess, err := newAuthenticator(cfg, log)
	if err != nil {
		return err
	}
	defer stopAccess()
	secured, err := serverTLS(cfg, log, metrics)
	if err != nil {
		return err
	}
	metrics.KeyExpiries(func() map[string]time.Time { return keyExpiries(access) })
	if access.Open() {
		metrics.Open()
	}
	if cfg.CognitoIssuer != "" {
		metrics.Issuer(access.IssuerReachable)
	}

	database := databaseOptions(cfg, log)
	database.Observer, database.Tracer, database.GroupSpan = metrics, tracing.database, tracing.group
	store, err := postgres.Open(ctx, database)
	if err != nil {
		return stopped(ctx, err)
	}
	defer func() {
		if !within(stopping, store.Close) && err == nil {
			err = fmt.Errorf("the database was still at work after SHUTDOWN_TIMEOUT (%s)", cfg.ShutdownTimeout)
		}
	}()
	noteClock(ctx, store, log)
	noteLossySettings(ctx, store, log)
	metrics.ClockOffset(store.ClockOffset)
	noteSettings(ctx, store, cfg, log)
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
	users.Observer, users.Span = metrics, tracing.operation
	stopSweep := sweeping(context.WithoutCancel(ctx), users, store.OldestDueHold, metrics, cfg.SweepInterval, log)
	defer within(stopping, stopSweep) // if it does not end, nor does the database

	feed := user.NewFeed(store)
	defer within(stopping, feed.Close)
	metrics.FeedLag(feed.Lag)
	fold := newFold(cfg, users, feed, store)
	stopFold := folding(context.WithoutCancel(ctx), fold, metrics, log)
	defer within(stopping, stopFold)
	metrics.FoldLag(fold.Lag)

	options := httpapi.Options{
		Users:                  users,
		Feed:                   feed,
		Database:               store,
		Log:                    log,
		Version:                version,
		CORSOrigins:            cfg.CORSOrigins,
		CORSAllowCredentials:   cfg.CORSAllowCredentials,
		LogRequests:            httpapi.LogRequests(cfg.LogRequests),
		LogUserIDs:             cfg.LogUserIDs,
		Observer:               metrics,
		Route:                  tracing.route,
		RateLimitPerMinute:     cfg.RateLimitPerMinute,
		UserRateLimitPerMinute: cfg.UserRateLimitPerMinute,
		FailedLoginsPerMinute:  cfg.FailedLoginsPerMinute,
		TrustedProxies:         cfg.TrustedProxies,
		MaxInFlight:            cfg.MaxInFlight,
		BodyTimeout:            min(cfg.HTTPBodyTimeout, cfg.HTTPReadTimeout),
		RequestTimeout:         cfg.RequestTimeout,
		WriteTimeout:           cfg.HTTPWriteTimeout,
	}
	if !access.Open() {
		options.Authenticate = access.Authenticate
	}
	if cfg.MetricsPort == 0 {
		options.MetricsHandler = metrics.Handler()
	}
	api := httpapi.New(options)
	return serve(ctx, stopping, cfg, log, api, tracing.handler(api.Handler()), secured)
}

// Report writes to stderr why the program ends: as a line of the log where that is JSON, and else as one for people.
func Report(stderr io.Writer, format string, err error) {
	if telemetry.WritesJSON(stderr, format) {
		telemetry.NewLogger(stderr, slog.LevelError, format).Error("failed", "error", err.Error())
		return
	}
	fmt.Fprintln(stderr, "user-management:", err)
}

// outlive returns a context that ends that much later than ctx.
func outlive(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return longer, func() {
		stop()
		cancel()
	}
}

// within calls f and reports whether it returned before ctx was done. Otherwise f is left alone: the process ends soon.
func within(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// sweeping returns the tokens of reservations that ran out and goes on with erases, each every interval until ctx is done
// or the function it returns is called, which waits for what is under way. Replicas that were started together begin at
// different times. What is left and what failed is in metrics; oldestDue finds what is left.
func sweeping(ctx context.Context, users *user.Service, oldestDue func(context.Context) (time.Duration, error), metrics *telemetry.Metrics,
	interval time.Duration, log *slog.Logger,
) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	repeat := func(do func()) {
		running.Go(func() {
			timer := time.NewTimer(rand.N(interval))
			defer timer.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-timer.C:
					do()
					timer.Reset(interval)
				}
			}
		})
	}
	repeat(func() {
		expired, err := users.Sweep(ctx)
		age, ageErr := oldestDue(ctx)
		if ageErr == nil {
			metrics.OldestDueReservation(age)
		}
		if err = errors.Join(err, ageErr); err != nil && ctx.Err() == nil {
			metrics.SweepFailed(telemetry.SweepReservations)
			log.Warn("the sweep of reservations failed in part", "expired", expired, "error", err)
		} else if expired > 0 {
			log.Info("reservations expired", "expired", expired)
		}
	})
	repeat(func() {
		if err := users.FinishErases(ctx); err != nil && ctx.Err() == nil {
			metrics.SweepFailed(telemetry.SweepErases)
			log.Warn("an erase was not finished, the next sweep goes on with it", "error", err)
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// foldInterval is the pause between two looks for entries that are not added up: what has come since is added up when
// somebody asks.
const foldInterval = time.Second

// folding adds up the ledger until ctx is done or the function it returns is called, which waits for what is under way.
// What fails is tried again; the log tells of the first of several failures.
func folding(ctx context.Context, fold *user.Fold, metrics *telemetry.Metrics, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		ticks := time.NewTicker(foldInterval)
		defer ticks.Stop()
		for failed := false; ; {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
			_, err := fold.Run(ctx, nil)
			if ctx.Err() != nil {
				return
			}
			if errors.Is(err, user.ErrNotAvailable) {
				log.Info("the ledger is distributed: there is no feed, and usage is told by account alone")
				return
			}
			if err != nil {
				metrics.SweepFailed(telemetry.SweepUsage)
				if !failed {
					log.Warn("the usage was not added up, which is tried again", "error", err)
				}
			}
			failed = err != nil
		}
	})
	return func() {
		cancel()
		running.Wait()
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

// OpenService is the service without its HTTP surface and its sweeps, on a store that goes by the clock (see
// [postgres.Options]; nil for the database's own): for programs that write histories. It is to be closed by stop.
func OpenService(ctx context.Context, cfg config.Config, clock func(ctx context.Context, database time.Time) time.Time, log *slog.Logger) (service *user.Service, stop func(), err error) {
	options := databaseOptions(cfg, log)
	options.Clock = clock
	store, err := postgres.Open(ctx, options)
	if err != nil {
		return nil, nil, err
	}
	if service, err = newService(cfg, store); err != nil {
		store.Close()
		return nil, nil, err
	}
	return service, store.Close, nil
}

func newService(cfg config.Config, store user.Store) (*user.Service, error) {
	tiers, err := user.NewCatalogue(cfg.TierMonthlyTokens)
	if err != nil {
		return nil, fmt.Errorf("TIER_MONTHLY_TOKENS: %w", err)
	}
	return &user.Service{
		Store: store,
		Rules: user.Rules{
			Tiers:               tiers,
			ResetZone:           cfg.TokenResetTimezone.Location(),
			MaxOpenReservations: cfg.MaxOpenReservations,
			RefundMaxAge:        cfg.RefundMaxAge,
			Grace:               cfg.SubscriptionGrace.Duration,
			LowBalancePercent:   cfg.LowBalancePercent,
		},
		Dimensions: cfg.UsageDimensions,
		Now:        time.Now,
	}, nil
}

func newFold(cfg config.Config, users *user.Service, feed *user.Feed, store user.FoldStore) *user.Fold {
	return &user.Fold{Feed: feed, Store: store, Rules: users.Rules, Dimensions: cfg.UsageDimensions}
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
		ReadConns:            cfg.DBReadConns,
		ConnectTimeout:       cfg.DBConnectTimeout,
		AcquireTimeout:       cfg.DBAcquireTimeout,
		StatementTimeout:     cfg.DBStatementTimeout,
		QueryMode:            postgres.QueryMode(cfg.DBQueryMode),
		WriteBatchMax:        cfg.WriteBatchMax,
		ImportPublicUserdata: cfg.ImportPublicUserdata,
		Log:                  log,
	}
}

// maxHeader is the most bytes of a request's header.
const maxHeader = 64 << 10

// serve answers requests until ctx is done and finishes those in flight then, until stopping is. Without secured it speaks
// plain HTTP.
func serve(ctx, stopping context.Context, cfg config.Config, log *slog.Logger, api *httpapi.API, handler http.Handler, secured *tls.Config) error {
	listener, err := listen(cfg.ServiceHost, cfg.ServicePort, "SERVICE_PORT")
	if err != nil {
		return err
	}
	server := &http.Server{
		TLSConfig: secured,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Closing connections that rest would cut off who is just about to use one.
			if ctx.Err() != nil {
				w.Header().Set("Connection", "close")
			}
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: cfg.HTTPReadHeaderTimeout,
		ReadTimeout:       cfg.HTTPReadTimeout,
		WriteTimeout:      cfg.HTTPWriteTimeout,
		IdleTimeout:       cfg.HTTPIdleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	accept := server.Serve
	if secured != nil {
		accept = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	log.Info("listening", "address", listener.Addr().String(), "tls", secured != nil, "url", browserURL(listener.Addr(), secured != nil))

	failed := make(chan error, 1)
	go func() { failed <- accept(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}

	log.Info("stopping: requests under way are finished", "delay", cfg.ShutdownDelay, "within", cfg.ShutdownTimeout)
	api.Stopping()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-time.After(cfg.ShutdownDelay):
	}
	if err := server.Shutdown(stopping); err != nil {
		return errors.Join(fmt.Errorf("requests were still under way after SHUTDOWN_TIMEOUT (%s)", cfg.ShutdownTimeout), server.Close())
	}
	return nil
}

// browserURL is where a browser on this machine finds what listens on the address.
func browserURL(address net.Addr, secured bool) string {
	host, port, err := net.SplitHostPort(address.String())
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if secured {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// listen opens a port; the error names the variable that has it.
func listen(host string, port int, variable string) (net.Listener, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is taken: stop what listens there or set %s to another one", port, variable)
	} else if err != nil {
		return nil, fmt.Errorf("cannot listen on SERVICE_HOST:%s: %w", variable, err)
	}
	return listener, nil
}
