package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/viralpilot/user-management/migrations"
)

// Both are our own: another user of goose in a shared database keeps its version table and its lock.
const (
	versionTable = "viralpilot.goose_db_version"
	lockID       = 7268_8001
)

// migrate brings the database to this version's schema, whoever else is doing so at the same time. A schema that is
// newer already is left as it is.
func migrate(ctx context.Context, cfg *pgx.ConnConfig, importPublic bool, log *slog.Logger) error {
	cfg = cfg.Copy()
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { log.Info("migration: " + n.Message) }
	db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		setting := "on"
		if !importPublic {
			setting = "off"
		}
		_, err := conn.Exec(ctx, "SELECT set_config('viralpilot.import_public_userdata', $1, false)", setting)
		return err
	}))
	defer db.Close()

	// The default probes every five seconds: too long for replicas that start together.
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(lockID), lock.WithLockTimeout(1, 300))
	if err != nil {
		return fmt.Errorf("migration lock: %w", err)
	}
	if err := createSchema(ctx, db, locker); err != nil {
		return fmt.Errorf("create schema viralpilot: %w", err)
	}
	versions, err := database.NewStore(database.DialectPostgres, versionTable)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	provider, err := goose.NewProvider("", db, migrations.FS, goose.WithStore(versions), goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	applied, err := provider.Up(ctx)
	for _, m := range applied {
		log.Info("migration applied", "file", m.Source.Path, "duration", m.Duration)
	}
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// createSchema makes the schema in which goose keeps its versions. IF NOT EXISTS would want the CREATE right on the
// database even where the schema is there, so it is only asked for where it is missing.
func createSchema(ctx context.Context, db *sql.DB, locker lock.SessionLocker) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if exists, err := schemaExists(ctx, conn); exists || err != nil {
		return err
	}
	if err := locker.SessionLock(ctx, conn); err != nil {
		return err
	}
	defer func() {
		if unlock := locker.SessionUnlock(context.WithoutCancel(ctx), conn); err == nil {
			err = unlock
		}
	}()
	if exists, err := schemaExists(ctx, conn); exists || err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, "CREATE SCHEMA viralpilot")
	return err
}

func schemaExists(ctx context.Context, conn *sql.Conn) (exists bool, err error) {
	err = conn.QueryRowContext(ctx, "SELECT to_regnamespace('viralpilot') IS NOT NULL").Scan(&exists)
	return exists, err
}
