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
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/batch"
	"github.com/viralpilot/user-management/internal/user"
)

// Open is Connect, after which the database is brought to this version's schema.
func Open(ctx context.Context, o Options) (*Store, error) {
	store, err := Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, store.pool.Config().ConnConfig, store.session.mode, o.ImportPublicUserdata, o.Log); err != nil {
		store.Close()
		return nil, err
	}
	return store, nil
}

// Connect waits for the database and returns the store. An error is one line for the operator, without secrets. The
// caller closes the store.
func Connect(ctx context.Context, o Options) (*Store, error) {
	cfg, err := parse(o)
	if err != nil {
		return nil, err
	}
	pooled, err := waitFor(ctx, cfg.ConnConfig, o.ConnectTimeout, o.Log)
	if err != nil {
		return nil, err
	}
	mode := cmp.Or(o.QueryMode, QueryModeAuto)
	if mode == QueryModeAuto {
		mode = QueryModeSession
		if pooled {
			mode = QueryModeTransaction
			o.Log.Info("a pooler stands in front of the database: nothing is prepared or set for longer than a transaction")
		}
	}
	s := &Store{
		session: newSession(mode, o.StatementTimeout), clock: o.Clock, maxHolds: user.MaxHoldsPerUpdate, maxLooks: defaultLooks,
		observer: o.Observer, groupSpan: o.GroupSpan,
	}
	s.erasePart.Store(maxErasePart)
	s.foldPart.Store(maxFoldPart)
	if s.observer == nil {
		s.observer = nopObserver{}
	}
	if err := s.openPools(cfg, o); err != nil {
		return nil, err
	}
	s.startBatchers(int(o.MaxConns), cmp.Or(o.WriteBatchMax, DefaultWriteBatch))
	return s, nil
}

// openPools makes the pools of the store. They connect in the background.
func (s *Store) openPools(cfg *pgxpool.Config, o Options) error {
	probe, reads := cfg.Copy(), cfg.Copy()
	probe.MaxConns, probe.MinConns = 1, 0
	reads.MaxConns, reads.MinConns = cmp.Or(o.ReadConns, DefaultReadConns), 0
	cfg.ConnConfig.Tracer, reads.ConnConfig.Tracer = o.Tracer, o.Tracer
	var opened []*pgxpool.Pool
	for _, c := range []*pgxpool.Config{cfg, reads, probe} {
		p, err := newPool(c, s.session)
		if err != nil {
			for _, p := range opened {
				p.Close()
			}
			return err
		}
		opened = append(opened, p)
	}
	s.pool = &pool{Pool: opened[0], acquireTimeout: o.AcquireTimeout, workTimeout: 2 * o.StatementTimeout, observer: s.observer}
	s.reads = &pool{
		Pool: opened[1], acquireTimeout: o.AcquireTimeout, workTimeout: 2 * o.StatementTimeout, observer: s.observer,
		rest: s.restOfReads,
	}
	s.probe = opened[2]
	return nil
}

// DefaultReadConns is how many connections serve ledgers, usage and lists.
const DefaultReadConns = 3

// restOfReads is how long a connection that was used for a read rests. Reads that never pause would take from the updates
// what processor time they share; so while updates wait, each connection works a ninth of the time.
func (s *Store) restOfReads(used time.Duration) time.Duration {
	if s.updates.Waiting() == 0 {
		return 0
	}
	return min(8*used, maxRest)
}

// maxRest bounds the rest after a read that took long.
const maxRest = 500 * time.Millisecond

// defaultLooks is how many rows the search for one page looks at: some ten milliseconds.
const defaultLooks = 5000

// DefaultWriteBatch is the most updates that one transaction serves.
const DefaultWriteBatch = 256

// A batch of updates is the cheaper for each of them the larger it is, and one at a time makes the largest. But where
// a commit takes long, because of the disk or of a standby, the next batch goes on its way meanwhile.
const (
	// concurrentBatches is how many batches of updates are on their way at most, and concurrentLookups how many of reads.
	concurrentBatches, concurrentLookups = 3, 2
	// leadOfCommit is how long the commit of a batch is waited for before the next one begins, leadOfBatch how long a whole
	// batch of updates, and leadOfRead one of reads. A disk that syncs in a tenth of a millisecond answers within them.
	leadOfCommit, leadOfBatch, leadOfRead = 2 * time.Millisecond, 50 * time.Millisecond, 5 * time.Millisecond
	// maxQueue is how many calls may wait in a group of a batcher; more are refused at once.
	maxQueue = 2048
)

// startBatchers starts what serves the calls of Update and Account. Updates of one account follow each other in the
// order in which they came. Those whose row is locked wait on half of the connections at most.
func (s *Store) startBatchers(maxConns, maxBatch int) {
	account := func(c *change) string { return c.ref.AccountID }
	waiting := max(1, maxConns/2)
	workers := max(1, min(concurrentBatches, maxConns-waiting))
	if s.singly = maxBatch == 1; s.singly {
		workers = maxConns
	}
	s.updates = batch.New(batch.Config[*change, user.Change]{
		Group: func(*change) string { return "" }, Key: account, Serve: s.commitBatch,
		Workers: workers, MaxBatch: maxBatch, MaxQueue: maxQueue, MaxWait: s.pool.acquireTimeout,
	})
	s.contended = batch.New(batch.Config[*change, user.Change]{
		Group: account, Serve: s.commitContended,
		Workers: waiting, MaxBatch: maxBatch, MaxQueue: maxQueue, MaxWait: s.pool.acquireTimeout,
	})
	s.lookups = batch.New(batch.Config[string, user.Account]{
		Group: func(string) string { return "" }, Serve: s.lookupBatch,
		Workers: min(concurrentLookups, maxConns), MaxBatch: DefaultWriteBatch, MaxQueue: maxQueue, MaxWait: s.pool.acquireTimeout,
	})
}

// Close finishes the updates that are being served, refuses those that wait, waits for connections in use and closes
// them all.
func (s *Store) Close() {
	s.updates.Close()
	s.contended.Close()
	s.lookups.Close()
	s.pool.Close()
	s.reads.Close()
	s.probe.Close()
}

// Stat are the figures of the connection pool.
func (s *Store) Stat() *pgxpool.Stat { return s.pool.Stat() }

// Ping reports whether the database answers within ctx, also while the pool is used up.
func (s *Store) Ping(ctx context.Context) error {
	conn, err := s.probe.Acquire(ctx)
	if err == nil {
		err = conn.Ping(ctx)
		release(conn)
	}
	if err != nil {
		return user.ErrDatabaseUnavailable.Because(err)
	}
	return nil
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
		pooled, encoding, err := probe(ctx, conn, min(attempt, time.Until(deadline)))
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

// probe connects once and reports in which encoding the database keeps text. A pooler hands out backend PIDs of its
// own, so a PID that differs from pg_backend_pid() gives it away.
func probe(ctx context.Context, cfg *pgx.ConnConfig, timeout time.Duration) (pooled bool, encoding string, err error) {
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
