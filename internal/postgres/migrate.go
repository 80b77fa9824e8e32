package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"github.com/viralpilot/user-management/migrations"
)

// Both are our own: another user of goose in a shared database keeps its version table and its lock.
const (
	versionTable = "viralpilot.goose_db_version"
	lockID       = 7268_8001
)

const (
	// A replica that waits for the lock of another one asks again after migrationLockPause at first, then ever more seldom.
	migrationLockPause, maxMigrationLockPause = 20 * time.Millisecond, time.Second
	// migrationLockCheck is how often the lock is looked after that a long statement needs.
	migrationLockCheck = 10 * time.Second
	// migrationNews is how often the operator is told what a migration waits for.
	migrationNews = time.Minute
	// tableLockWait is how long a migration waits for a table. Whoever comes after it waits with it, so it gives up before
	// they do and tries again, for tablePatience in all.
	tableLockWait = failFastLockTimeout * 3 / 4
	tablePatience = 5 * time.Minute
)

// migrate brings the database to this version's schema, whoever else is doing so at the same time. A schema that is
// newer already is left as it is.
func migrate(ctx context.Context, cfg *pgx.ConnConfig, mode QueryMode, importPublic bool, log *slog.Logger) (err error) {
	cfg = cfg.Copy()
	cfg.Tracer = nil
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		// That there is nothing to drop is what IF EXISTS is for. The text is in the server's language.
		if n.Routine != "DropErrorMsgNonExistent" && n.Routine != "does_not_exist_skipping" {
			log.Info("migration: " + n.Message)
		}
	}
	afterConnect := noTimeouts
	if mode == QueryModeTransaction { // the pooler would give the setting to somebody else
		afterConnect = func(context.Context, *pgx.Conn) error { return nil }
	}
	lock, err := lockMigrations(ctx, cfg, afterConnect, log)
	if err != nil {
		return fmt.Errorf("migration lock: %w", err)
	}
	defer func() { err = errors.Join(err, lock.close(ctx)) }()

	db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(afterConnect))
	defer db.Close()
	if err := createSchema(ctx, db); err != nil {
		return fmt.Errorf("create schema viralpilot: %w", err)
	}
	provider, err := newProvider(db, lock, importPublic)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	pause := 250 * time.Millisecond
	for deadline := time.Now().Add(tablePatience); ; {
		applied, err := provider.Up(ctx)
		if partly := (*goose.PartialError)(nil); errors.As(err, &partly) {
			applied = partly.Applied
		}
		for _, m := range applied {
			log.Info("migration applied", "version", m.Source.Version, "duration", m.Duration)
		}
		if err == nil {
			return nil
		}
		if !lockTimeout(err) || time.Now().After(deadline) {
			return fmt.Errorf("migrate: %w", err)
		}
		log.Warn("a migration waits for a table that somebody keeps locked", "again_in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// noTimeouts lifts the time-outs that the server, the database or the role may have. To build an index takes as long as it
// takes, and the other connections of a migration are idle meanwhile. Not every server knows all of them.
func noTimeouts(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config(name, '0', false) FROM pg_settings
		WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')`)
	return err
}

// migrationLock keeps other replicas from migrating. It is held by a transaction, since a pooler may give the next
// statement of a session that has none to another session.
type migrationLock struct {
	conn *pgx.Conn
	log  *slog.Logger
}

// lockMigrations waits for the lock, as long as another replica has it. Whoever waits for it holds nothing meanwhile: the
// one that has it may need the last session of a pooler.
func lockMigrations(
	ctx context.Context, cfg *pgx.ConnConfig, afterConnect func(context.Context, *pgx.Conn) error, log *slog.Logger,
) (*migrationLock, error) {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	lock := &migrationLock{conn, log}
	if err := afterConnect(ctx, conn); err != nil {
		return nil, errors.Join(err, lock.close(ctx))
	}
	options := pgx.TxOptions{BeginQuery: strings.Join(append([]string{begin}, limits("LOCAL", 0, 0)...), "; ")}
	pause := migrationLockPause
	for told := (time.Time{}); ; {
		var locked bool
		tx, err := conn.BeginTx(ctx, options)
		if err == nil {
			// The simple protocol leaves no portal open. One would keep its snapshot, which an index that is built concurrently
			// waits for.
			err = tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock($1)", pgx.QueryExecModeSimpleProtocol, lockID).Scan(&locked)
		}
		if err == nil && locked {
			return lock, nil
		}
		if err == nil {
			err = tx.Rollback(ctx)
		}
		if err != nil {
			return nil, errors.Join(err, lock.close(ctx))
		}
		if time.Since(told) >= migrationNews {
			log.Info("waiting for another replica that migrates")
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), lock.close(ctx))
		case <-time.After(pause):
		}
		pause = min(2*pause, maxMigrationLockPause)
	}
}

// close gives the lock back, which goes with the connection, however this ends.
func (l *migrationLock) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return l.conn.Close(ctx)
}

// check reports a lock that is not held any more: a fail-over frees it, and a pooler that ends what is idle for too long,
// which this also keeps it from. A ping takes no snapshot, for which an index that is built concurrently would wait.
func (l *migrationLock) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, migrationLockCheck)
	defer cancel()
	if err := l.conn.Ping(ctx); err != nil {
		return fmt.Errorf("the migration lock is lost, and another replica may migrate: %w", err)
	}
	return nil
}

// concurrently is how the names of files end whose statements build indexes beside a service that writes, which
// PostgreSQL does outside of transactions only.
const concurrently = "_concurrently.sql"

// runEach runs the statements of a file one by one. They can be run again after they were broken off. That is done at once
// where one met the last statement of a replica that has lost the lock, which PostgreSQL calls an internal error ("tuple
// concurrently updated").
func (l *migrationLock) runEach(ctx context.Context, db *sql.DB, text string) error {
	var version int
	var trigrams bool
	if err := db.QueryRowContext(ctx, selectServer).Scan(&version, &trigrams); err != nil {
		return err
	}
	statements := statementsFor(version, trigrams, text)
	err := l.runAll(ctx, db, statements)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == sqlInternalError {
		l.log.Warn("a migration begins anew", "error", err)
		err = l.runAll(ctx, db, statements)
	}
	return err
}

func (l *migrationLock) runAll(ctx context.Context, db *sql.DB, statements []string) error {
	for _, statement := range statements {
		if err := l.run(ctx, db, statement); err != nil {
			return err
		}
	}
	return nil
}

// selectServer reads the version of the server, and whether indexes of trigrams can be made.
const selectServer = `SELECT current_setting('server_version_num')::integer,
	EXISTS (SELECT FROM pg_opclass WHERE opcname = 'gin_trgm_ops' AND pg_opclass_is_visible(oid))`

// Lines in a statement that is only for servers before PostgreSQL 14, only for later ones, or only where there are trigrams.
const oldServers, newServers, withTrigrams = "-- before PostgreSQL 14", "-- from PostgreSQL 14", "-- with pg_trgm"

// statementsFor splits a file into the statements that are for a server of the version, with trigrams or without.
func statementsFor(version int, trigrams bool, text string) (statements []string) {
	others := []string{oldServers}
	if version < 14_00_00 {
		others[0] = newServers
	}
	if !trigrams {
		others = append(others, withTrigrams)
	}
	for statement := range strings.SplitSeq(text, ";\n") {
		other := func(line string) bool { return slices.Contains(others, line) }
		if statement = strings.TrimSpace(statement); statement != "" && !slices.ContainsFunc(strings.Split(statement, "\n"), other) {
			statements = append(statements, statement)
		}
	}
	return statements
}

// run runs a statement for as long as it takes, unless the lock is lost meanwhile.
func (l *migrationLock) run(ctx context.Context, db *sql.DB, statement string) error {
	if err := l.check(ctx); err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(running, statement)
		done <- err
	}()
	begun := time.Now()
	news, checks := time.NewTicker(migrationNews), time.NewTicker(migrationLockCheck)
	defer news.Stop()
	defer checks.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-news.C:
			l.log.Info("a migration builds an index, or waits for transactions that are older",
				"statement", statement[strings.LastIndex(statement, "\n")+1:], "duration", time.Since(begun))
		case <-checks.C:
			if err := l.check(ctx); err != nil {
				cancel()
				<-done
				return err
			}
		}
	}
}

// newProvider makes the migrations of the files. Each begins with its own settings: a pooler would not keep them from
// one transaction to the next.
func newProvider(db *sql.DB, lock *migrationLock, importPublic bool) (*goose.Provider, error) {
	versions, err := database.NewStore(database.DialectPostgres, versionTable)
	if err != nil {
		return nil, err
	}
	imports := "on"
	if !importPublic {
		imports = "off"
	}
	settings := strings.Join(append(limits("LOCAL", 0, tableLockWait), "SET LOCAL viralpilot.import_public_userdata = "+imports), "; ")
	files, err := fs.Glob(migrations.FS, "*.sql")
	if err != nil {
		return nil, err
	}
	list := make([]*goose.Migration, len(files))
	for i, name := range files {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, err
		}
		text, err := fs.ReadFile(migrations.FS, name)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(name, concurrently) {
			list[i] = goose.NewGoMigration(version, &goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error {
				return lock.runEach(ctx, db, string(text))
			}}, nil)
			continue
		}
		list[i] = goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, settings); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, string(text))
			return err
		}}, nil)
	}
	return goose.NewProvider(goose.DialectCustom, db, nil,
		goose.WithStore(versions), goose.WithDisableGlobalRegistry(true), goose.WithGoMigrations(list...))
}

// createSchema makes the schema in which goose keeps its versions. IF NOT EXISTS would want the CREATE right on the
// database even where the schema is there, so it is only asked for where it is missing.
func createSchema(ctx context.Context, db *sql.DB) error {
	var exists bool
	err := db.QueryRowContext(ctx, "SELECT to_regnamespace('viralpilot') IS NOT NULL").Scan(&exists)
	if exists || err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "CREATE SCHEMA viralpilot")
	return err
}
