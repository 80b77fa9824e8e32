// Command dev is the program behind `make run`: the service as it ships, with a
// PostgreSQL server of its own unless DATABASE_URL names another. It is for
// developers' machines and never part of the image.
//
// `dev demo` is behind `make demo`: the same on a database of its own, with a
// history that is made up the first time.
//
// `dev ensure-postgres` only installs what `make test` needs to start servers,
// if that is possible and they are not there.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg"
)

// dataDir holds the database between runs, below the current directory.
const dataDir = ".data"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The first signal stops everything in order, a second one at once.
	context.AfterFunc(ctx, stop)

	var err error
	switch args := os.Args[1:]; {
	case len(args) == 0:
		err = run(ctx)
	case len(args) == 1 && args[0] == "demo":
		err = runDemo(ctx)
	case len(args) == 1 && args[0] == "ensure-postgres":
		if os.Getenv("TEST_DATABASE_URL") == "" {
			err = localpg.EnsureBinaries(ctx, os.Stderr)
		}
	default:
		err = errors.New("usage: dev [demo | ensure-postgres]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the service until ctx ends, and the database for a little longer.
func run(ctx context.Context) (err error) {
	if err := config.ReadDotenv(); err != nil {
		return err
	}
	var database *localpg.Server // nil when there is another
	if os.Getenv("DATABASE_URL") == "" {
		if database, err = newDatabase(ctx); err != nil {
			return err
		}
	}
	cfg, err := config.Load()
	if err != nil {
		return err
	}
	if database != nil {
		fmt.Fprintf(os.Stderr, "Starting PostgreSQL; its data and its log are kept in %s\n", dataDir)
		if err := database.Start(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, database.Stop()) }()
	}
	return serve(ctx, cfg)
}

// serve says where the service is going to listen, and runs it.
func serve(ctx context.Context, cfg config.Config) error {
	url := "http://" + net.JoinHostPort(localHost(cfg.ServiceHost), strconv.Itoa(cfg.ServicePort))
	fmt.Fprintf(os.Stderr, "API: %s  documentation: %s/docs  console: %s/console  (Ctrl-C stops)\n", url, url, url)
	return app.Run(ctx, cfg, os.Stdout)
}

// newDatabase prepares a server of our own and makes it the one that the
// configuration names. What else a developer's machine needs is set along with
// it, unless it was set before.
func newDatabase(ctx context.Context) (*localpg.Server, error) {
	if err := localpg.EnsureBinaries(ctx, os.Stderr); err != nil {
		return nil, err
	}
	database, err := localpg.New(localpg.Options{Dir: dataDir, Durable: true})
	if err != nil {
		return nil, err
	}
	return database, setDefaults(map[string]string{
		"DATABASE_URL": database.URL("postgres"),
		"SERVICE_HOST": "127.0.0.1",
		"LOG_FORMAT":   "text",
	})
}

// setDefaults sets variables of the environment that have no value.
func setDefaults(defaults map[string]string) error {
	for name, value := range defaults {
		if os.Getenv(name) != "" {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// localHost is where a browser on this machine finds a service on host.
func localHost(host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return "127.0.0.1"
	}
	return host
}
