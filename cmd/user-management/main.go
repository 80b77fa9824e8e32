// Command user-management is the service. Run it with --help for its subcommands and settings.
package main

import (
	"context"
	"crypto/tls"
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
  verify   hold every account against its ledger; exit status 1 when some disagree
             --since TIME    check only ledger entries from this time on (2026-11-24 or 2026-11-24T10:00:00Z)
             --reconcile ID  accept the balance of this account, changed by hand, by writing an entry for it
  apikey new --name NAME --scopes SCOPE,SCOPE
           make an API key: prints the secret, then the entry for API_KEYS; scopes are read, consume, refund, export,
           manage and metrics
             --expires DAY   the last day, in UTC, on which the key is accepted (2027-06-30)
             --comment TEXT  what it is for
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

// command is a subcommand once its flags have been read.
type command func(ctx context.Context, cfg config.Config, stdout io.Writer) error

func run(args []string, stdout io.Writer) error {
	name := "serve"
	if len(args) > 0 && (len(args[0]) == 0 || args[0][0] != '-') {
		name, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var do command
	switch name {
	case "serve":
		do = app.Run
	case "migrate":
		do = app.Migrate
	case "health":
		do = health
	case "verify":
		do = verify(flags)
	case "apikey":
		return newAPIKey(flags, args, stdout)
	case "version":
	case "help":
		args = []string{"--help"}
	default:
		return fmt.Errorf("there is no command %q (see --help)", name)
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return help(stdout)
	} else if err != nil {
		return fmt.Errorf("%w (see --help)", err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s does not take %q (see --help)", name, flags.Arg(0))
	}
	if name == "version" {
		_, err := fmt.Fprintln(stdout, app.Version(), app.Commit())
		return err
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

func help(stdout io.Writer) error {
	_, err := fmt.Fprint(stdout, usage, config.Usage())
	return err
}

// newAPIKey needs no settings.
func newAPIKey(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	name := flags.String("name", "", "")
	scopes := flags.String("scopes", "", "")
	expires := flags.String("expires", "", "")
	comment := flags.String("comment", "", "")
	if len(args) == 1 && (args[0] == "--help" || args[0] == "-h") {
		return help(stdout)
	}
	if len(args) == 0 || args[0] != "new" {
		return errors.New("want: apikey new --name NAME --scopes read,consume (see --help)")
	}
	if err := flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		return help(stdout)
	} else if err != nil {
		return fmt.Errorf("apikey new: %w (see --help)", err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("apikey new does not take %q (see --help)", flags.Arg(0))
	}
	return app.NewAPIKey(*name, *scopes, *expires, *comment, stdout)
}

func verify(flags *flag.FlagSet) command {
	var since time.Time
	flags.Func("since", "", func(s string) (err error) {
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if since, err = time.Parse(layout, s); err == nil {
				return nil
			}
		}
		return errors.New("want a time such as 2026-11-24 or 2026-11-24T10:00:00Z")
	})
	reconcile := flags.String("reconcile", "", "")
	return func(ctx context.Context, cfg config.Config, stdout io.Writer) error {
		if *reconcile != "" && !since.IsZero() {
			return errors.New("verify takes --since or --reconcile, not both")
		}
		if *reconcile != "" {
			return app.Reconcile(ctx, cfg, *reconcile, stdout)
		}
		return app.Verify(ctx, cfg, since, stdout)
	}
}

// health is the check of the container: the image has no shell and no curl.
func health(ctx context.Context, cfg config.Config, _ io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	host := cfg.ServiceHost
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	scheme, transport := "http", http.DefaultTransport.(*http.Transport).Clone()
	if cfg.TLSCertFile != "" {
		scheme = "https"
		// The certificate is for the names by which others come. Nothing secret is sent or believed here.
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	}
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(cfg.ServicePort)) + "/health"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("unhealthy: %s", res.Status)
	}
	return nil
}
