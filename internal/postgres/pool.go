// Package postgres keeps accounts in PostgreSQL: the connection pool, the migrations, the SQL, and the translation of
// what the driver reports into errors of package user. It knows no token rule.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
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
	// QueryMode is what a connection is: a session of PostgreSQL or one of a pooler; empty means QueryModeAuto.
	QueryMode QueryMode
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

// QueryMode says what lasts on a connection from one transaction to the next.
type QueryMode string

const (
	// QueryModeAuto finds out: where another process answers than the one that was connected to, a pooler stands between.
	QueryModeAuto QueryMode = "auto"
	// QueryModeSession is for connections that are a session of PostgreSQL: statements are prepared once, and the
	// time-outs are settings of the session.
	QueryModeSession QueryMode = "session"
	// QueryModeTransaction is for poolers such as PgBouncer that give each transaction the session that is free:
	// nothing is prepared, and each transaction has its own settings.
	QueryModeTransaction QueryMode = "transaction"
)

// connectTimeout bounds the attempt on one host where the URL does not say connect_timeout: the next host of the URL
// may be the one that answers.
const connectTimeout = 3 * time.Second

// parse makes the settings of the pool but for those that depend on the QueryMode.
func parse(o Options) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		// The driver's own text repeats parts of the URL.
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL, or names a file that cannot be used")
	}
	cfg.MaxConns, cfg.MinConns = o.MaxConns, o.MinConns
	cfg.ShouldPing = noteRest
	conn := cfg.ConnConfig
	conn.ConnectTimeout = cmp.Or(conn.ConnectTimeout, connectTimeout)
	conn.RuntimeParams["timezone"] = "UTC"
	conn.RuntimeParams["client_encoding"] = "UTF8" // whatever the role or the database would have
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "user-management"
	}
	conn.OnNotice = noteUnconfirmed
	return cfg, nil
}

// open makes the pool; it connects to nothing yet.
func open(cfg *pgxpool.Config, s settings) (*pgxpool.Pool, error) {
	if s.mode == QueryModeTransaction {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		conn.TypeMap().RegisterType(&pgtype.Type{
			Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC},
		})
		if s.session == "" {
			return nil
		}
		// The pool waits without an end, and the connection would keep its place.
		ctx, cancel := context.WithTimeout(ctx, cfg.ConnConfig.ConnectTimeout)
		defer cancel()
		_, err := conn.Exec(ctx, s.session)
		return err
	}
	// Creating the pool starts connecting in the background; an error here is one of the settings.
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("database pool: %w", err)
	}
	return pool, nil
}

// settings are what a session is told once, or each transaction where sessions do not last.
type settings struct {
	mode QueryMode
	// session are the statements for a new connection; empty for none.
	session string
	// begin are the statements that begin a transaction, by how it waits for locked rows.
	begin [2][]string
}

func newSettings(mode QueryMode, statementTimeout time.Duration) settings {
	lockTimeout := min(statementTimeout, time.Second)
	if mode == QueryModeTransaction {
		begin := func(lockTimeout time.Duration) []string {
			return append([]string{"begin", "SET LOCAL " + showWarnings}, limits("LOCAL", statementTimeout, lockTimeout)...)
		}
		return settings{mode: mode, begin: [2][]string{patient: begin(lockTimeout), hurried: begin(hurriedLockTimeout)}}
	}
	return settings{
		mode:    mode,
		session: strings.Join(append(limits("", statementTimeout, lockTimeout), keepalives, "SET "+showWarnings), "; "),
		begin:   [2][]string{patient: {"begin"}, hurried: {"begin", limit("LOCAL", "lock_timeout", hurriedLockTimeout)}},
	}
}

// limits are statements that set the time-outs: of the session, or with the scope LOCAL of the transaction. They are no
// start-up parameters, which PgBouncer refuses. A row that somebody else keeps locked may not hold up those that are
// locked together with it, and a replica whose host vanishes in the middle of a transaction frees its locks.
func limits(scope string, statement, lock time.Duration) []string {
	return []string{
		limit(scope, "statement_timeout", statement),
		limit(scope, "idle_in_transaction_session_timeout", statement),
		limit(scope, "lock_timeout", lock),
	}
}

// keepalives make PostgreSQL notice within half a minute that the host of a session is gone while it waits for the rest
// of what it was told: no other time-out counts then, and its locks are kept.
const keepalives = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"

func limit(scope, name string, d time.Duration) string {
	return fmt.Sprintf("SET %s %s = %d", scope, name, d.Milliseconds())
}

// waitFor returns once the database answers, and whether a pooler stands in front of it. It goes on trying while the
// database may be starting, and gives up at once when waiting cannot help. The error is one line for the operator.
func waitFor(ctx context.Context, conn *pgx.ConnConfig, timeout time.Duration, log *slog.Logger) (pooled bool, err error) {
	at := addresses(conn)
	deadline := time.Now().Add(timeout)
	pause := 50 * time.Millisecond
	for first := true; ; first = false {
		// Long enough for each host to be given up.
		attempt := time.Duration(1+len(conn.Fallbacks))*conn.ConnectTimeout + 2*time.Second
		pooled, encoding, err := greet(ctx, conn, min(attempt, time.Until(deadline)))
		var refused *pgconn.PgError
		tlsFailed := tlsFailure(conn, at, err)
		switch {
		case err == nil && !slices.Contains([]string{"UTF8", "SQL_ASCII", "" /* a pooler need not say it */}, encoding):
			// What it cannot hold would fail everything that is read or written together with it.
			return false, fmt.Errorf("the database %q on %s has the encoding %s: move it to one with UTF8, or correct DATABASE_URL", conn.Database, at, encoding)
		case err == nil:
			return pooled, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case tlsFailed != "":
			return false, errors.New(tlsFailed)
		case errors.As(err, &refused) && refused.Code == sqlInvalidCatalogName:
			return false, fmt.Errorf("the database %q does not exist on %s: create it or correct DATABASE_URL", conn.Database, at)
		case errors.As(err, &refused) && refused.Code[:2] == sqlClassInvalidAuthorization:
			return false, fmt.Errorf("the database on %s refused the login of user %q: correct DATABASE_URL", at, conn.User)
		case errors.As(err, &refused) && refused.Code == sqlInsufficientPrivilege:
			return false, fmt.Errorf("the user %q may not connect to the database %q on %s: grant it CONNECT or correct DATABASE_URL", conn.User, conn.Database, at)
		case time.Now().Add(pause).After(deadline):
			return false, fmt.Errorf("no database answers on %s within %s (%s): start it or correct DATABASE_URL", at, timeout, reason(err))
		}
		if first {
			log.Info("waiting for the database", "address", at, "reason", reason(err))
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// greet connects once, and says in which encoding the database keeps text. A pooler gives its clients the number of a
// process that is not there, so that it learns of their cancellations.
func greet(ctx context.Context, cfg *pgx.ConnConfig, timeout time.Duration) (pooled bool, encoding string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return false, "", err
	}
	defer conn.Close(ctx)
	var pid uint32
	err = conn.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeExec).Scan(&pid)
	return pid != conn.PgConn().PID(), conn.PgConn().ParameterStatus("server_encoding"), err
}

// addresses are the hosts of the URL.
func addresses(conn *pgx.ConnConfig) string {
	list := []string{net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))}
	for _, other := range conn.Fallbacks {
		// There is one with TLS and one without.
		if at := net.JoinHostPort(other.Host, strconv.Itoa(int(other.Port))); !slices.Contains(list, at) {
			list = append(list, at)
		}
	}
	return strings.Join(list, ",")
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
