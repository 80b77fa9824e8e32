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
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
)

const usage = `Usage: user-management [COMMAND]

Commands:
  serve       migrate the database and serve the API (the default)
  migrate     migrate the database and stop
  verify      hold every account against its ledger
  fold        add up the usage of past days again
  export      write the entries of the ledger to a file
  apikey new  make an API key
  health      ask a service on this machine for its health
  version     print version and commit, as does --version

user-management COMMAND --help says more of a command.

Settings, from the environment or from .env in the working directory, with their defaults:
`

// manuals are what commands say of themselves, beside serve, whose is the help itself.
var manuals = map[string]string{
	"migrate": `Usage: user-management migrate

Brings the database of DATABASE_URL to the schema of this version, as a start does, and stops.
`,
	"verify": `Usage: user-management verify [--since TIME | --reconcile ID]

Holds every account in the database of DATABASE_URL against its ledger and its open reservations, and prints those that
disagree. The exit status is 1 when some do.

  --since TIME    check only ledger entries from this time on (2026-11-24 or 2026-11-24T10:00:00Z)
  --reconcile ID  accept the balance of this account, changed by hand, by writing an entry for it
`,
	"export": `Usage: user-management export --from DAY --to DAY --format FORMAT [--output FILE]

Writes the entries of the ledger that were made on these days, in the reset time zone, in the order and with the fields of
the feed, GET /ledger. On a terminal it shows how far it is.

  --from DAY       the first day (2026-11-01)
  --to DAY         the last day (2026-11-30)
  --format FORMAT  csv or ndjson
  --output FILE    where they go instead of stdout; the file appears when it is complete
`,
	"fold": `Usage: user-management fold --from DAY

Adds up the usage of the days from DAY on again, in the time zone and by the dimensions that are set now. It may run beside
the service, which goes on with it where it is ended. Usage of single users is right meanwhile; that of all is refused until
few entries are left. The tiers stay as they were. It is refused where entries of these days have been archived, or belong
to users who have been erased since.

  --from DAY  the first day (2026-11-01)
`,
	"apikey new": `Usage: user-management apikey new --name NAME --scopes SCOPE,SCOPE [--expires DAY] [--comment TEXT]

Makes an API key and prints two lines: the secret for its holder, then the entry for API_KEYS. It needs no settings.

  --name NAME      what logs and the ledger call the holder: letters, digits, dots, underscores and hyphens
  --scopes SCOPES  what it may be used for: read, consume, refund, export, manage, metrics
  --expires DAY    the last day, in UTC, on which it is accepted (2027-06-30)
  --comment TEXT   what it is for
`,
	"health": `Usage: user-management health [--live]

Asks a service on this machine, by SERVICE_HOST, SERVICE_PORT and TLS_CERT_FILE, whether it is healthy. The exit status is
0 when it is.

  --live  ask only whether it lives: it does so without its database, and a restart would not bring that back
`,
	"version": `Usage: user-management version

Prints version and commit.
`,
}

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err == nil {
		return
	}
	format := "text"
	if errors.As(err, new(logged)) {
		format = config.LogFormat()
	}
	app.Report(os.Stderr, format, err)
	os.Exit(1)
}

// logged is an error of a command that writes a log.
type logged struct{ error }

// command is a subcommand once its flags have been read.
type command func(ctx context.Context, stdout io.Writer) error

func run(args []string, stdout io.Writer) error {
	name := "serve"
	switch {
	case len(args) > 0 && args[0] == "--version":
		name, args = "version", args[1:]
	case len(args) > 0 && (len(args[0]) == 0 || args[0][0] != '-'):
		name, args = args[0], args[1:]
	}
	if name == "apikey" {
		name = "apikey new"
		switch {
		case len(args) > 0 && args[0] == "new":
			args = args[1:]
		case len(args) == 0 || args[0] != "--help" && args[0] != "-h":
			return errors.New("want: user-management apikey new --name NAME --scopes SCOPE,SCOPE (see apikey --help)")
		}
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var do command
	switch name {
	case "serve":
		do = logging(configured(serve))
	case "migrate":
		do = logging(configured(app.Migrate))
	case "health":
		do = health(flags)
	case "verify":
		do = configured(verify(flags))
	case "export":
		do = configured(export(flags))
	case "fold":
		do = configured(fold(flags))
	case "apikey new":
		do = newAPIKey(flags)
	case "version":
		do = version
	case "help":
		args = []string{"--help"}
	default:
		return fmt.Errorf("there is no command %q (see --help)", name)
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return help(name, stdout)
	} else if err != nil {
		return fmt.Errorf("%s: %w (see %[1]s --help)", name, err)
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s does not take %q (see %[1]s --help)", name, flags.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The first signal asks for a stop in good order; with the handler gone a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	return do(ctx, stdout)
}

func help(name string, stdout io.Writer) error {
	if manual, ok := manuals[name]; ok {
		_, err := fmt.Fprint(stdout, manual)
		return err
	}
	_, err := fmt.Fprint(stdout, usage, config.Usage())
	return err
}

// configured is a command that needs the settings.
func configured(do func(ctx context.Context, cfg config.Config, stdout io.Writer) error) command {
	return func(ctx context.Context, stdout io.Writer) error {
		if err := config.ReadDotenv(); err != nil {
			return err
		}
		cfg, err := config.Load()
		if err != nil {
			return err
		}
		return do(ctx, cfg, stdout)
	}
}

// gcPercent is the GOGC of a service whose environment has none. Requests leave much garbage and little else: with twice
// Go's own percentage they take about a tenth less time of the processor, for a few MB of memory.
const gcPercent = 200

func serve(ctx context.Context, cfg config.Config, stdout io.Writer) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return app.Run(ctx, cfg, stdout)
}

// logging marks the errors of a command that writes a log.
func logging(do command) command {
	return func(ctx context.Context, stdout io.Writer) error {
		if err := do(ctx, stdout); err != nil {
			return logged{err}
		}
		return nil
	}
}

func version(_ context.Context, stdout io.Writer) error {
	_, err := fmt.Fprintln(stdout, app.Version(), app.Commit())
	return err
}

func newAPIKey(flags *flag.FlagSet) command {
	name := flags.String("name", "", "")
	scopes := flags.String("scopes", "", "")
	expires := flags.String("expires", "", "")
	comment := flags.String("comment", "", "")
	return func(_ context.Context, stdout io.Writer) error {
		if err := app.NewAPIKey(*name, *scopes, *expires, *comment, stdout); err != nil {
			return fmt.Errorf("%w (see apikey new --help)", err)
		}
		return nil
	}
}

func verify(flags *flag.FlagSet) func(context.Context, config.Config, io.Writer) error {
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

// day reads a flag that is a date.
func day(flags *flag.FlagSet, name string) *time.Time {
	var date time.Time
	flags.Func(name, "", func(s string) (err error) {
		if date, err = time.Parse(time.DateOnly, s); err != nil {
			return errors.New("want a day such as 2026-11-24")
		}
		return nil
	})
	return &date
}

func fold(flags *flag.FlagSet) func(context.Context, config.Config, io.Writer) error {
	from := day(flags, "from")
	return func(ctx context.Context, cfg config.Config, stdout io.Writer) error {
		if from.IsZero() {
			return errors.New("want: user-management fold --from DAY (see fold --help)")
		}
		return app.FoldAgain(ctx, cfg, *from, stdout, os.Stderr)
	}
}

func export(flags *flag.FlagSet) func(context.Context, config.Config, io.Writer) error {
	from, to := day(flags, "from"), day(flags, "to")
	format := flags.String("format", "", "")
	file := flags.String("output", "", "")
	return func(ctx context.Context, cfg config.Config, stdout io.Writer) error {
		e := app.Export{From: *from, To: *to, Format: *format, File: *file}
		switch {
		case from.IsZero() || to.IsZero():
			return errors.New("want: user-management export --from DAY --to DAY --format FORMAT (see export --help)")
		case to.Before(*from):
			return errors.New("--to is a day before --from")
		}
		return e.Run(ctx, cfg, stdout, os.Stderr)
	}
}

// health is the check of the container: the image has no shell and no curl.
func health(flags *flag.FlagSet) command {
	live := flags.Bool("live", false, "")
	return func(ctx context.Context, _ io.Writer) error {
		if err := config.ReadDotenv(); err != nil {
			return err
		}
		cfg, err := config.LoadEndpoint()
		if err != nil {
			return err
		}
		path := "/health"
		if *live {
			path = "/livez"
		}
		return probe(ctx, cfg, path)
	}
}

// probe returns nil when the service answers 200 at the path.
func probe(ctx context.Context, cfg config.Config, path string) error {
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
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(cfg.ServicePort)) + path
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
