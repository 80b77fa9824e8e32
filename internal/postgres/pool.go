// Package postgres keeps accounts in PostgreSQL: the connection pool, the migrations, the SQL, and the translation of
// what the driver reports into errors of package user. It knows no token rule.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options say how to reach the database and how long to wait for it.
type Options struct {
	// URL is a postgresql:// URL or a libpq keyword string.
	URL string
	// MaxConns and MinConns bound the pool.
	MaxConns, MinConns int32
	// ConnectTimeout is how long Open waits for a database that is still starting.
	ConnectTimeout time.Duration
	// AcquireTimeout is the longest wait for a free connection.
	AcquireTimeout time.Duration
	// StatementTimeout is the longest that the database works on one statement, waits for row locks included.
	StatementTimeout time.Duration
	// WriteBatchMax is the most updates that one transaction serves, 1 to serve each by its own; 0 means
	// DefaultWriteBatch.
	WriteBatchMax int
	// ImportPublicUserdata copies the rows of the earlier service when viralpilot.userdata is made.
	ImportPublicUserdata bool
	Log                  *slog.Logger
	// Observer is told of each group of updates; nil for none.
	Observer Observer
	// Tracer is told of everything that is sent to the database; nil for none.
	Tracer pgx.QueryTracer
	// GroupSpan begins a span around the transaction that serves a group of updates, whose callers had these contexts.
	// The context that it returns must not end with any of theirs. Nil for none.
	GroupSpan func(callers []context.Context) (spanned context.Context, end func())
}

// Observer counts the transactions that serve updates. It may be called by many goroutines at once.
type Observer interface {
	// Group is called with the size of a group and how long its first update waited to be taken.
	Group(size int, wait time.Duration)
	// Retry is called when a transaction is tried again or a group is split.
	Retry()
}

// open makes the pool; it connects to nothing yet.
func open(o Options) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		// The driver's own text repeats parts of the URL.
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL")
	}
	cfg.MaxConns, cfg.MinConns = o.MaxConns, o.MinConns
	cfg.ConnConfig.Tracer = o.Tracer
	cfg.ConnConfig.RuntimeParams["timezone"] = "UTC"
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "user-management"
	}
	// Not start-up parameters, which PgBouncer refuses. A row that somebody else keeps locked may not hold up those that
	// are locked together with it, and a replica whose host vanishes in the middle of a transaction frees its locks.
	limits := fmt.Sprintf("SET statement_timeout = %[1]d; SET idle_in_transaction_session_timeout = %[1]d; SET lock_timeout = %[2]d",
		o.StatementTimeout.Milliseconds(), min(o.StatementTimeout, time.Second).Milliseconds())
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		conn.TypeMap().RegisterType(&pgtype.Type{
			Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC},
		})
		_, err := conn.Exec(ctx, limits)
		return err
	}
	// Creating the pool starts connecting in the background; an error here is one of the settings.
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("database pool: %w", err)
	}
	return pool, nil
}

// waitFor returns once the database answers. It goes on trying while the database may be starting, and gives up at
// once when waiting cannot help. The error is one line for the operator.
func waitFor(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration, log *slog.Logger) error {
	conn := pool.Config().ConnConfig
	at := net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))
	deadline := time.Now().Add(timeout)
	pause := 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		err := ping(ctx, pool, min(5*time.Second, time.Until(deadline)))
		var refused *pgconn.PgError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &refused) && refused.Code == sqlInvalidCatalogName:
			return fmt.Errorf("the database %q does not exist on %s: create it or correct DATABASE_URL", conn.Database, at)
		case errors.As(err, &refused) && refused.Code[:2] == sqlClassInvalidAuthorization:
			return fmt.Errorf("the database on %s refused the login of user %q: correct DATABASE_URL", at, conn.User)
		case errors.As(err, &refused) && refused.Code == sqlInsufficientPrivilege:
			return fmt.Errorf("the user %q may not connect to the database %q on %s: grant it CONNECT or correct DATABASE_URL", conn.User, conn.Database, at)
		case time.Now().Add(pause).After(deadline):
			return fmt.Errorf("no database answers on %s within %s (%s): start it or correct DATABASE_URL", at, timeout, reason(err))
		}
		if attempt == 1 {
			log.Info("waiting for the database", "address", at, "reason", reason(err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func ping(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return pool.Ping(ctx)
}

// reason is the innermost cause in a few words: what wraps it repeats the connection's settings.
func reason(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Message
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return "connection failed"
}
