// Command user-management is the service. Run it with --help for its subcommands and settings.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
)

const usage = `Usage: user-management [COMMAND]

Commands:
  serve    migrate the database and serve the API (the default)
  migrate  migrate the database and stop
  health   ask a service that runs on this machine for its health; exit status 0 when it is healthy
  version  print version and commit

Settings, from the environment or from .env in the working directory, with their defaults:
`

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "user-management:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("user-management", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		_, err := fmt.Fprint(stdout, usage, config.Usage())
		return err
	} else if err != nil {
		return fmt.Errorf("%w (see --help)", err)
	}
	command := "serve"
	if flags.NArg() > 0 {
		command = flags.Arg(0)
	}
	if flags.NArg() > 1 {
		return fmt.Errorf("%s takes no arguments (see --help)", command)
	}
	if command == "version" {
		_, err := fmt.Fprintln(stdout, app.Version(), app.Commit())
		return err
	}
	do, ok := map[string]func(context.Context, config.Config, io.Writer) error{
		"serve": app.Run, "migrate": app.Migrate, "health": health,
	}[command]
	if !ok {
		return fmt.Errorf("there is no command %q (see --help)", command)
	}

	if err := config.ReadDotenv(); err != nil {
		return err
	}
	cfg, err := config.Load()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The first signal asks for a stop in good order; with the handler gone a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	return do(ctx, cfg, stdout)
}

// health is the check of the container: the image has no shell and no curl.
func health(ctx context.Context, cfg config.Config, _ io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	host := cfg.ServiceHost
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, strconv.Itoa(cfg.ServicePort)) + "/health"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s", res.Status)
	}
	return nil
}
