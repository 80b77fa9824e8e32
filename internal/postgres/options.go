package postgres

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options say how to reach the database and how long to wait for it.
type Options struct {
	// URL is a postgresql:// URL or a libpq keyword string.
	URL string
	// MaxConns and MinConns bound the pool.
	MaxConns, MinConns int32
	// ReadConns are as many connections beside these, for ledgers, usage and lists; 0 means DefaultReadConns.
	ReadConns int32
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
	// Clock, when set, takes the place of the database's clock, which it is given: for histories that are made up, and
	// for tests. The context is that of a caller.
	Clock func(ctx context.Context, database time.Time) time.Time
	Log   *slog.Logger
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

// nopObserver discards all events.
type nopObserver struct{}

func (nopObserver) Group(int, time.Duration) {}
func (nopObserver) Retry()                   {}
