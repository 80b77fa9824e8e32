package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// connectTimeout bounds the attempt on one host where the URL does not say connect_timeout: the next host of the URL
// may be the one that answers.
const connectTimeout = 3 * time.Second

// parse returns the pool's configuration except for what depends on the session.
func parse(o Options) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		// The driver's own text repeats parts of the URL.
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL, or names a file that cannot be used")
	}
	cfg.MaxConns, cfg.MinConns = o.MaxConns, o.MinConns
	cfg.ShouldPing = markIdle
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

// newPool makes a pool. It connects in the background, so an error is one of the settings.
func newPool(cfg *pgxpool.Config, s session) (*pgxpool.Pool, error) {
	if s.mode == QueryModeTransaction {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		conn.TypeMap().RegisterType(&pgtype.Type{
			Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC},
		})
		if s.onConnect == "" {
			return nil
		}
		// The pool itself would wait for ever, and the connection would keep its slot.
		ctx, cancel := context.WithTimeout(ctx, cfg.ConnConfig.ConnectTimeout)
		defer cancel()
		_, err := conn.Exec(ctx, s.onConnect)
		return err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		return nil, fmt.Errorf("database pool: %w", err)
	}
	return pool, nil
}

// pool is a pool of connections, and how long they are waited for and used.
type pool struct {
	*pgxpool.Pool
	// acquireTimeout bounds the wait for a connection, workTimeout what is done on it then.
	acquireTimeout, workTimeout time.Duration
	// rest, when set, says how long a connection is kept from the next caller after it was used for so long.
	rest     func(used time.Duration) time.Duration
	observer Observer
	// lastReset is when all connections were given up last, in nanoseconds since 1970.
	lastReset atomic.Int64
}

const (
	// maxAttempts bounds how often a transaction is tried that failed because of another one.
	maxAttempts = 5
	// failOverTimeout bounds how long a transaction is tried again whose server was lost or takes no more writes, and
	// failOverPause is the first pause in between; each is twice as long as the one before.
	failOverTimeout = time.Second
	failOverPause   = 5 * time.Millisecond
)

// withConn runs f on a connection, again while f has certainly done nothing and may succeed. The caller's context applies
// while it waits for a connection. What has been started is finished without it, since cancelling would close the
// connection and leave the outcome unknown.
func (p *pool) withConn(ctx context.Context, f func(context.Context, *pgxpool.Conn) error) error {
	giveUp := time.Now().Add(min(p.acquireTimeout, failOverTimeout))
	pause := failOverPause
	lost := false
	for attempt := 1; ; attempt++ {
		err := p.try(ctx, f)
		switch lost = lost || serverLost(err); {
		case err == nil, errors.Is(err, errOutcomeUnknown):
			return translate(err)
		case lost && (serverLost(err) || errors.Is(err, user.ErrDatabaseUnavailable)) && time.Now().Add(pause).Before(giveUp):
			select {
			case <-ctx.Done():
				return translate(err)
			case <-time.After(pause):
			}
			pause *= 2
		case repeatable(err) && attempt < maxAttempts:
		default:
			return translate(err)
		}
		p.observer.Retry()
	}
}

// try runs f once.
func (p *pool) try(ctx context.Context, f func(context.Context, *pgxpool.Conn) error) error {
	conn, err := p.acquire(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	defer func() { p.release(conn, time.Since(begin)) }()
	working, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.workTimeout)
	defer cancel()
	err = f(working, conn)
	var pg *pgconn.PgError
	switch errors.As(err, &pg); {
	case pg != nil && staleStatement(pg):
		p.Reset() // the other connections have prepared it as well
	case serverLost(err), conn.Conn().IsClosed() && !errors.Is(err, context.DeadlineExceeded):
		err = errors.Join(err, p.giveUp(working, conn))
	}
	return errors.Join(err, rollback(working, conn))
}

// giveUp closes a connection whose server is gone or takes no more writes, and all others, which lead to the same server:
// each of them would fail one transaction more. New ones find out which server it is now; they are not given up again
// within a second.
func (p *pool) giveUp(ctx context.Context, conn *pgxpool.Conn) error {
	now, last := time.Now().UnixNano(), p.lastReset.Load()
	if now-last > int64(time.Second) && p.lastReset.CompareAndSwap(last, now) {
		p.Reset()
	}
	return conn.Conn().Close(ctx)
}

// rollback ends a failed transaction. The pool would close the connection instead, and callers who wait while it makes
// another would be told that the database accepts none.
func rollback(ctx context.Context, conn *pgxpool.Conn) error {
	if conn.Conn().IsClosed() || conn.Conn().PgConn().TxStatus() == 'I' {
		return nil
	}
	_, err := conn.Exec(ctx, "rollback")
	return err
}

// release gives a connection back that was used for some time, after its rest.
func (p *pool) release(conn *pgxpool.Conn, used time.Duration) {
	if p.rest != nil && !conn.Conn().IsClosed() {
		if rest := p.rest(used); rest > 0 {
			time.AfterFunc(rest, func() { release(conn) })
			return
		}
	}
	release(conn)
}

// release gives a connection back. A broken one is taken out of the pool at once, because the driver keeps its slot for
// as long as it goes on reading from it.
func release(conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() {
		conn.Hijack()
	} else {
		conn.Release()
	}
}

// acquire takes a connection. It returns ErrOverloaded when all connections stay in use for too long, and
// ErrDatabaseUnavailable when the database accepts none.
func (p *pool) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	waiting, cancel := context.WithTimeout(ctx, p.acquireTimeout)
	defer cancel()
	for {
		conn, err := p.Acquire(waiting)
		if err == nil {
			if pingIfIdle(waiting, conn) {
				return conn, nil
			}
			release(conn)
			continue
		}
		// Idle connections count as used: they are on their way to a call that waits.
		stat := p.Stat()
		if full := stat.AcquiredConns()+stat.IdleConns() == stat.MaxConns(); full && errors.Is(err, context.DeadlineExceeded) {
			return nil, user.ErrOverloaded.Because(err)
		}
		return nil, user.ErrDatabaseUnavailable.Because(fmt.Errorf("acquire a connection: %w", err))
	}
}

// idleFlag is the key under which a connection remembers that it was idle before it was acquired.
const idleFlag = "was idle"

// markIdle is the pool's ShouldPing hook. It never pings, because the pool would keep a dead connection's slot; it marks
// the connection so that pingIfIdle does.
func markIdle(_ context.Context, p pgxpool.ShouldPingParams) bool {
	if p.IdleDuration > time.Second {
		p.Conn.PgConn().CustomData()[idleFlag] = true
	}
	return false
}

// pingIfIdle pings a connection that was idle, since its server may be gone, and reports whether it can be used.
func pingIfIdle(ctx context.Context, conn *pgxpool.Conn) bool {
	data := conn.Conn().PgConn().CustomData()
	if _, idle := data[idleFlag]; !idle {
		return true
	}
	delete(data, idleFlag)
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return conn.Ping(ctx) == nil
}
