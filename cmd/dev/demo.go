package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/demo"
	"github.com/viralpilot/user-management/internal/localpg"
)

const (
	// demoDir holds the database of the demo between runs, below the current directory.
	demoDir = ".data-demo"
	// The history is written into a database that gets the demo's name when it is complete.
	demoDatabase, unfinishedDatabase = "demo", "demo_unfinished"

	demoAccounts, demoDays = 300, 90
)

// runDemo runs the service on a database with a made-up history, which it
// writes the first time, until ctx ends. Settings come from the environment
// alone, as those in .env are likely to be about a database that is none of
// its business.
func runDemo(ctx context.Context) (err error) {
	if err := localpg.EnsureBinaries(ctx, os.Stderr); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "Starting PostgreSQL; its data and its log are kept in %s, and made anew when that is removed\n", demoDir)
	if err := writeDemo(ctx); err != nil {
		return err
	}
	database, err := localpg.New(localpg.Options{Dir: demoDir, Durable: true})
	if err != nil {
		return err
	}
	cfg, err := demoConfig(database.URL(demoDatabase))
	if err != nil {
		return err
	}
	if err := database.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Stop()) }()
	return serve(ctx, cfg)
}

// demoConfig is the configuration of a service on a database of the demo. Its
// tiers are those that the history is made for.
func demoConfig(databaseURL string) (config.Config, error) {
	for name, value := range map[string]string{
		"DATABASE_URL":         databaseURL,
		"TIER_MONTHLY_TOKENS":  demo.TierMonthlyTokens,
		"SUBSCRIPTION_GRACE":   demo.Grace,
		"TOKEN_RESET_TIMEZONE": "UTC",
	} {
		if err := os.Setenv(name, value); err != nil {
			return config.Config{}, err
		}
	}
	if err := setDefaults(map[string]string{"SERVICE_HOST": "127.0.0.1", "LOG_FORMAT": "text"}); err != nil {
		return config.Config{}, err
	}
	return config.Load()
}

// writeDemo writes the history if it is not there. The disk is not waited for
// while it does: what is lost in a crash is written again.
func writeDemo(ctx context.Context) (err error) {
	database, err := localpg.New(localpg.Options{Dir: demoDir})
	if err != nil {
		return err
	}
	if err := database.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Stop()) }()
	server, err := pgx.Connect(ctx, database.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close(context.WithoutCancel(ctx))) }()
	var complete bool
	if err := server.QueryRow(ctx, "SELECT count(*) > 0 FROM pg_database WHERE datname = $1", demoDatabase).Scan(&complete); err != nil || complete {
		return err
	}
	for _, statement := range []string{"DROP DATABASE IF EXISTS " + unfinishedDatabase, "CREATE DATABASE " + unfinishedDatabase} {
		if _, err := server.Exec(ctx, statement); err != nil {
			return err
		}
	}
	cfg, err := demoConfig(database.URL(unfinishedDatabase))
	if err != nil {
		return err
	}
	if err := writeHistory(ctx, cfg); err != nil {
		return err
	}
	_, err = server.Exec(ctx, "ALTER DATABASE "+unfinishedDatabase+" RENAME TO "+demoDatabase)
	return err
}

// writeHistory writes the history into the database that cfg names.
func writeHistory(ctx context.Context, cfg config.Config) (err error) {
	begin := time.Now()
	fmt.Fprintf(os.Stderr, "Making up %d days of %d users, which takes about a minute the first time\n", demoDays, demoAccounts)
	// Nothing is asked for but by the history itself: it may wait for the machine.
	cfg.DBAcquireTimeout, cfg.DBStatementTimeout = time.Minute, time.Minute
	service, stop, err := app.OpenService(ctx, cfg, demo.Clock, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		return err
	}
	defer stop()
	database, err := pgx.Connect(ctx, cfg.DatabaseURL.Reveal())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close(context.WithoutCancel(ctx))) }()
	commands, err := demo.History{
		Accounts: demoAccounts, Days: demoDays, Until: begin,
		Progress: func(days int) error {
			if days%15 == 0 {
				fmt.Fprintf(os.Stderr, "  day %d of %d\n", days, demoDays)
			}
			if days == 2 || days%15 == 0 { // autovacuum would find out late that the tables are not empty any more
				_, err := database.Exec(ctx, "ANALYZE")
				return err
			}
			return nil
		},
	}.Write(ctx, service)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "Made up by %d commands in %s\n", commands, time.Since(begin).Round(time.Second))
	return nil
}
