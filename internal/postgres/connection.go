package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// attempts bounds how often an update is tried that certainly did nothing the time before.
const attempts = 5

// work runs f on a connection of the pool, again when it certainly did nothing and may succeed. The caller's context
// counts while it waits for the connection; what has been started is finished without it, since cancelling would
// close the connection and leave the outcome unknown.
func (s *Store) work(ctx context.Context, f func(context.Context, *pgxpool.Conn) error) error {
	for attempt := 1; ; attempt++ {
		conn, err := s.acquire(ctx)
		if err != nil {
			return err
		}
		err = func() error {
			defer release(conn)
			working, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.workTimeout)
			defer cancel()
			err := f(working, conn)
			var pg *pgconn.PgError
			switch {
			case !errors.As(err, &pg):
			case pg.Code == sqlReadOnlyTransaction:
				// After a fail-over another server may be the one that takes writes: a new connection finds out.
				err = errors.Join(err, conn.Conn().Close(working))
			case staleStatement(pg):
				s.pool.Reset() // the other connections have it as well
			}
			return errors.Join(err, leave(working, conn))
		}()
		if err == nil || !repeatable(err) || attempt == attempts {
			return translate(err)
		}
		s.observer.Retry()
	}
}

// leave ends the transaction that failed on a connection. The pool would close the connection, and while it made another
// who waits for one would be told that the database lets none in.
func leave(ctx context.Context, conn *pgxpool.Conn) error {
	if conn.Conn().IsClosed() || conn.Conn().PgConn().TxStatus() == 'I' {
		return nil
	}
	_, err := conn.Exec(ctx, "rollback")
	return err
}

// release gives a connection back. One that broke is taken out of the pool at once: the driver goes on listening to it for
// some time, and its place would not be free before that ends.
func release(conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() {
		conn.Hijack()
	} else {
		conn.Release()
	}
}

// acquire takes a connection. When none comes free in time nothing was done, which is overload, unless the database
// does not let new ones in.
func (s *Store) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	waiting, cancel := context.WithTimeout(ctx, s.acquireTimeout)
	defer cancel()
	for {
		conn, err := s.pool.Acquire(waiting)
		if err == nil {
			if alive(waiting, conn) {
				return conn, nil
			}
			release(conn)
			continue
		}
		// Idle ones are on their way from one update to the next that waits.
		stat := s.pool.Stat()
		if full := stat.AcquiredConns()+stat.IdleConns() == stat.MaxConns(); full && errors.Is(err, context.DeadlineExceeded) {
			return nil, user.ErrOverloaded.Because(err)
		}
		return nil, user.ErrDatabaseUnavailable.Because(fmt.Errorf("acquire a connection: %w", err))
	}
}

// hasRested is where a connection keeps that it was unused for a while before it was acquired.
const hasRested = "has rested"

// noteRest is the pool's question whether to try a connection out. The pool itself would keep the place of one that is
// dead.
func noteRest(_ context.Context, p pgxpool.ShouldPingParams) bool {
	if p.IdleDuration > time.Second {
		p.Conn.PgConn().CustomData()[hasRested] = true
	}
	return false
}

// alive tries a connection out that has rested: its server may be gone.
func alive(ctx context.Context, conn *pgxpool.Conn) bool {
	data := conn.Conn().PgConn().CustomData()
	if _, rested := data[hasRested]; !rested {
		return true
	}
	delete(data, hasRested)
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return conn.Ping(ctx) == nil
}
