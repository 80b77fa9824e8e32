package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// binary is the program with a version of its own, stamped in as `make build` does.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "user-management-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "user-management")
	const app = "github.com/viralpilot/user-management/internal/app"
	build := exec.Command("go", "build", "-buildvcs=false",
		"-ldflags", "-s -w -X "+app+".version=v1.2.3 -X "+app+".commit=0123abc", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return localpgtest.Main(m, nil)
}

const patience = localpgtest.Patience

// result is how a run of the program ended.
type result struct {
	code           int // -1 when a signal ended it
	stdout, stderr string
}

// run runs the program to its end, in the folder and with nothing but env in its environment.
func run(t *testing.T, dir string, env []string, args ...string) result {
	t.Helper()
	// Checking a ledger of millions of entries takes a while.
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// want fails the test unless the run ended with the code and with nothing on the other stream than it should.
func (r result) want(t *testing.T, code int) result {
	t.Helper()
	if r.code != code || (code == 0) != (r.stderr == "") {
		t.Fatalf("exit status %d, want %d; output:\n%s\nerrors:\n%s", r.code, code, r.stdout, r.stderr)
	}
	return r
}

// wantLine fails the test unless the program failed with one line that has all the parts, and no password.
func (r result) wantLine(t *testing.T, parts ...string) {
	t.Helper()
	r.want(t, 1)
	if strings.Count(r.stderr, "\n") != 1 || strings.Contains(r.stdout+r.stderr, "secret") {
		t.Errorf("not one line without secrets:\n%s\noutput:\n%s", r.stderr, r.stdout)
	}
	for _, part := range parts {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("%q is missing in: %s", part, r.stderr)
		}
	}
}

// service is the program while it serves.
type service struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	port string
	// log gets the lines after the one that has the address, as many as it holds; it is closed when the program ends.
	log chan string
}

// serve starts the program on a free port and returns once it listens.
func serve(t *testing.T, env ...string) *service {
	t.Helper()
	return serveIn(t, t.TempDir(), env...)
}

// serveIn is serve in a folder that may have a .env file.
func serveIn(t *testing.T, dir string, env ...string) *service {
	t.Helper()
	return serveProgram(t, binary, dir, env...)
}

// serveProgram is serveIn for a program that may be another version.
func serveProgram(t *testing.T, program, dir string, env ...string) *service {
	t.Helper()
	s := &service{t: t, cmd: exec.CommandContext(t.Context(), program), log: make(chan string, 10_000)}
	s.cmd.Dir = dir
	s.cmd.Env = append([]string{"SERVICE_HOST=127.0.0.1", "SERVICE_PORT=0", "LOG_FORMAT=json", "TOKEN_RESET_TIMEZONE=" + localpgtest.CalmZone()}, env...)
	s.cmd.Stderr = os.Stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan string, 1)
	go func() {
		defer close(s.log)
		defer close(listening)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var record struct{ Msg, Address string }
			if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
				t.Errorf("not a line of JSON: %q", lines.Text())
			}
			if record.Msg == "listening" {
				listening <- record.Address
				continue
			}
			select {
			case s.log <- lines.Text():
			default: // nobody reads it, and the program must not wait for a reader
			}
		}
	}()
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			s.end(syscall.SIGKILL)
		}
	})
	address, ok := <-listening
	if !ok {
		t.Fatal("it ended before it listened")
	}
	u, err := url.Parse("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	s.url, s.port = u.String(), u.Port()
	return s
}

// end sends the signal and returns the exit status, -1 when the signal ended the program.
func (s *service) end(signal os.Signal) int {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Error(err)
	}
	return s.wait()
}

func (s *service) wait() int {
	s.t.Helper()
	for range s.log { // until it is closed, which has to come before Wait
	}
	if err := s.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		s.t.Error(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// awaitLog returns once the log has a line with the text.
func (s *service) awaitLog(text string) {
	s.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case line, open := <-s.log:
			if strings.Contains(line, text) {
				return
			}
			if !open {
				s.t.Fatalf("%q was not logged", text)
			}
		case <-deadline:
			s.t.Fatalf("%q was not logged within %s", text, patience)
		}
	}
}

// send sends one request. The error says that there was no complete answer.
func (s *service) send(method, path, body, key string) (status int, header http.Header, text []byte, err error) {
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	text, err = io.ReadAll(res.Body)
	return res.StatusCode, res.Header, text, err
}

// call is send for an answer in JSON, which has to have the status unless that is 0.
func (s *service) call(want int, method, path, body, key string) (status int, answer map[string]any, err error) {
	status, _, text, err := s.send(method, path, body, key)
	if err != nil {
		return 0, nil, err
	}
	if want != 0 && status != want {
		s.t.Errorf("%s %s: %d, want %d: %s", method, path, status, want, text)
	}
	return status, answer, json.Unmarshal(text, &answer)
}

// client keeps no connections, so that none is left when a test has ended.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}

// tester makes an account of the tester tier: 1000 tokens.
func (s *service) tester(id string) {
	s.t.Helper()
	for _, call := range []struct{ method, path, body string }{
		{http.MethodGet, "/user/" + id, ""}, {http.MethodPut, "/user/" + id + "/tier", `{"tier": "tester"}`},
	} {
		if _, _, err := s.call(http.StatusOK, call.method, call.path, call.body, ""); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *service) consume(id, key string) error {
	_, _, err := s.call(http.StatusOK, http.MethodPost, "/user/"+id+"/consume-tokens", `{"tokens_to_consume": 1}`, key)
	return err
}

// database is a connection past the service, for one goroutine.
type database struct{ localpgtest.Database }

func connect(t *testing.T, url string) database {
	t.Helper()
	return database{localpgtest.Connect(t, url)}
}

func (d database) number(sql string) int {
	d.T.Helper()
	return localpgtest.Query[int](d, sql)
}

var variable = regexp.MustCompile(`(?m)^ *([A-Z][A-Z0-9_]+)=`)

func variables(text string) (names []string) {
	for _, m := range variable.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return slices.Sorted(slices.Values(names))
}

func TestHelpListsEveryCommandAndVariable(t *testing.T) {
	t.Parallel()
	example, err := os.ReadFile("../../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}, {"serve", "--help"}} {
		help := run(t, t.TempDir(), nil, args...).want(t, 0).stdout
		if got, want := variables(help), variables(string(example)); !slices.Equal(got, want) || len(want) < 20 {
			t.Errorf("%q lists %q, .env.example %q", args, got, want)
		}
		for _, command := range []string{"serve", "migrate", "verify", "apikey new", "health", "version"} {
			if !strings.Contains(help, "\n  "+command+" ") {
				t.Errorf("%q does not list %s", args, command)
			}
		}
	}
}

func TestHelpOfACommand_SaysWhatItTakes(t *testing.T) {
	t.Parallel()
	for command, flags := range map[string][]string{
		"migrate": nil, "verify": {"--since", "--reconcile"}, "health": {"--live"}, "version": nil,
		"apikey": {"--name", "--scopes", "--expires", "--comment"}, "apikey new": {"--name", "--scopes", "--expires", "--comment"},
	} {
		for _, asks := range []string{"--help", "-h"} {
			help := run(t, t.TempDir(), nil, append(strings.Fields(command), asks)...).want(t, 0).stdout
			if !strings.HasPrefix(help, "Usage: user-management "+command) || strings.Count(help, "\n") > 12 || len(variables(help)) > 0 {
				t.Errorf("%s %s prints\n%s", command, asks, help)
			}
			for _, name := range flags {
				if !strings.Contains(help, "\n  "+name+" ") {
					t.Errorf("%s is missing in\n%s", name, help)
				}
			}
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"version", "--version"} {
		if out := run(t, t.TempDir(), nil, arg).want(t, 0).stdout; out != "v1.2.3 0123abc\n" {
			t.Errorf("%s printed %q", arg, out)
		}
	}
}

func TestAPIKey_SaysWhatItWants(t *testing.T) {
	t.Parallel()
	for args, says := range map[string]string{
		"":                               "apikey new --name NAME --scopes SCOPE,SCOPE",
		"old":                            "apikey new --name NAME --scopes SCOPE,SCOPE",
		"new":                            "--name NAME and --scopes SCOPE,SCOPE",
		"new --name a":                   "--name NAME and --scopes SCOPE,SCOPE",
		"new --name a --scopes read,foo": `there is no scope "foo": --scopes takes read, consume, refund, export, manage and metrics, with commas`,
		"new --name a/b --scopes read":   "letters, digits, dots, underscores and hyphens",
		"new --name a --scopes read --expires soon":  "--expires: the expiry is not a day such as 2027-06-30",
		"new --name a --scopes read and more":        "does not take",
		"new --name a --scopes read --until forever": "not defined",
	} {
		run(t, t.TempDir(), nil, append([]string{"apikey"}, strings.Fields(args)...)...).wantLine(t, says, "--help")
	}
	for _, scopes := range []string{"read,consume", "read+consume", "read, consume"} {
		out := run(t, t.TempDir(), nil, "apikey", "new", "--name", "a", "--scopes", scopes).want(t, 0).stdout
		if !strings.Contains(out, "\na:read+consume:") {
			t.Errorf("%s: %s", scopes, out)
		}
	}
}

func TestTheLastLineOfALog_IsOneOfTheLog(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env  []string
		args []string
		json bool
	}{
		"in a container":                 {nil, nil, true},
		"with LOG_FORMAT=json":           {[]string{"LOG_FORMAT=json"}, []string{"migrate"}, true},
		"with a format that is none":     {[]string{"LOG_FORMAT=xml"}, []string{"serve"}, true},
		"as text":                        {[]string{"LOG_FORMAT=text"}, nil, false},
		"of a command that logs nothing": {[]string{"LOG_FORMAT=json"}, []string{"verify"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, t.TempDir(), c.env, c.args...).want(t, 1)
			var line struct{ Time, Level, Msg, Error string }
			err := json.Unmarshal([]byte(r.stderr), &line)
			if c.json && (err != nil || line.Time == "" || line.Level != "ERROR" || line.Msg != "failed" || !strings.Contains(line.Error, "DATABASE_URL is required")) {
				t.Errorf("%v: %s", err, r.stderr)
			}
			if !c.json && !strings.HasPrefix(r.stderr, "user-management: ") {
				t.Errorf("got %s", r.stderr)
			}
		})
	}
}

func TestVersionIsFoundInTheFilesOfGit(t *testing.T) {
	t.Parallel()
	const commit, other = "0123456789abcdef0123456789abcdef01234567", "1111111111111111111111111111111111111111"
	for outcome, c := range map[string]struct {
		files map[string]string
		env   []string
		want  string
	}{
		"nothing is there":        {nil, nil, "dev unknown"},
		"arguments win":           {map[string]string{"HEAD": commit}, []string{"VERSION=v2", "COMMIT=abc"}, "v2 abc"},
		"one argument":            {map[string]string{"HEAD": commit}, []string{"VERSION=v2"}, "v2 " + commit},
		"a detached head":         {map[string]string{"HEAD": commit}, nil, "0123456789ab " + commit},
		"a branch":                {map[string]string{"HEAD": "ref: refs/heads/a/b", "refs/heads/a/b": commit}, nil, "0123456789ab " + commit},
		"a packed branch":         {map[string]string{"HEAD": "ref: refs/heads/main", "packed-refs": "# pack-refs with: peeled\n" + other + " refs/heads/m\n" + commit + " refs/heads/main"}, nil, "0123456789ab " + commit},
		"a branch without commit": {map[string]string{"HEAD": "ref: refs/heads/main"}, nil, "dev unknown"},
		"a tag":                   {map[string]string{"HEAD": commit, "refs/tags/v1.2.3": commit, "refs/tags/v1.2.2": other}, nil, "v1.2.3 " + commit},
		"a packed tag":            {map[string]string{"HEAD": commit, "packed-refs": commit + " refs/tags/v1.2.3\n" + other + " refs/tags/v1.2.4"}, nil, "v1.2.3 " + commit},
		"a packed tag with text":  {map[string]string{"HEAD": commit, "packed-refs": other + " refs/tags/v1.2.3\n^" + commit}, nil, "v1.2.3 " + commit},
	} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, content := range c.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			script := exec.CommandContext(t.Context(), "./version.sh", dir)
			script.Env = append([]string{"PATH=" + os.Getenv("PATH")}, c.env...)
			out, err := script.CombinedOutput()
			if err != nil || string(out) != c.want+"\n" {
				t.Errorf("got %q, %v, want %q", out, err, c.want)
			}
		})
	}
}

func TestAWrongCommandLineIsRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"serv"}, {"serve", "now"}, {"--port", "80"}, {"version", "--all"}, {""}} {
		run(t, t.TempDir(), []string{"DATABASE_URL=postgresql://127.0.0.1:1/db"}, args...).wantLine(t, "--help")
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	t.Run("no database is one clear line", func(t *testing.T) {
		t.Parallel()
		for _, command := range []string{"serve", "migrate"} {
			r := run(t, t.TempDir(), nil, command).want(t, 1)
			if strings.Count(r.stderr, "DATABASE_URL") != 2 || !strings.Contains(r.stderr, "required") || r.stdout != "" {
				t.Errorf("%s: %s%s", command, r.stdout, r.stderr)
			}
		}
	})
	t.Run("wrong ones are named all at once", func(t *testing.T) {
		t.Parallel()
		r := run(t, t.TempDir(), []string{
			"DATABASE_URL=mysql://u:secret@h/d", "SERVICE_PORT=99999", "LOG_LEVEL=loud", "TIER_MONTHLY_TOKENS=gold:5",
			"DB_MAX_CONNS=many", "REQUEST_TIMEOUT=10", "SHUTDOWN_TIMEOUT=1s", "LOG_FORMAT=text",
		}).want(t, 1)
		for _, name := range []string{"DATABASE_URL", "SERVICE_PORT", "LOG_LEVEL", "TIER_MONTHLY_TOKENS", "DB_MAX_CONNS", "REQUEST_TIMEOUT"} {
			if n := strings.Count(r.stderr, "\n  "+name+" "); n != 1 {
				t.Errorf("%s has %d lines in:\n%s", name, n, r.stderr)
			}
		}
		if strings.Contains(r.stderr, "SHUTDOWN_TIMEOUT") || strings.Contains(r.stderr, "secret") {
			t.Errorf("too much is said:\n%s", r.stderr)
		}
	})
	t.Run("come from .env too, where the environment has none", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		content := "DATABASE_URL=" + localpgtest.Empty(t) + "\nLOG_LEVEL=loud\n"
		if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, dir, []string{"LOG_LEVEL=info"}, "migrate").want(t, 0)
		if r := run(t, dir, nil, "migrate").want(t, 1); !strings.Contains(r.stderr, "LOG_LEVEL") {
			t.Errorf("errors: %s", r.stderr)
		}
	})
	t.Run("that reach no database are one clear line", func(t *testing.T) {
		t.Parallel()
		env := []string{"DATABASE_URL=postgresql://u:secret@127.0.0.1:1/db", "DB_CONNECT_TIMEOUT=1s"}
		for _, command := range []string{"serve", "migrate", "verify"} {
			run(t, t.TempDir(), env, command).wantLine(t, "127.0.0.1:1", "DATABASE_URL")
		}
	})
}

// The .env of the earlier service's README, comments and all.
const earlierDotenv = `# Database Configuration
DATABASE_URL=%s

# Service Configuration
SERVICE_HOST=0.0.0.0
SERVICE_PORT=8001

# CORS Configuration
CORS_ORIGINS=*
CORS_ALLOW_CREDENTIALS=true
`

func TestTheEarlierDotenvStartsAServiceThatPostPilotCanUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".env"), fmt.Appendf(nil, earlierDotenv, localpgtest.Empty(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serveIn(t, dir) // whose environment has a free port of this machine
	// By the name of its container, and by one of a cluster.
	for i, host := range []string{"user-management:8001", "user-management.prod.svc.cluster.local:8001"} {
		id := fmt.Sprint("test-user-12", i)
		ask := func(want int, method, path, body string) (answer map[string]any) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			req.Header.Set("User-Agent", "python-requests/2.32.3")
			req.Header.Set("Accept", "*/*")
			if body != "" {
				req.Header.Set("Content-Type", "application/json")
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != want {
				t.Errorf("%s %s by %s: %d %v %v, want %d", method, path, host, res.StatusCode, answer, err, want)
			}
			return answer
		}
		ask(http.StatusOK, http.MethodGet, "/health", "")
		ask(http.StatusCreated, http.MethodPost, "/user", `{"cognito_user_id": "`+id+`"}`)
		ask(http.StatusOK, http.MethodPut, "/user/"+id+"/tier", `{"tier": "tester"}`)
		if status := ask(http.StatusOK, http.MethodGet, "/user/"+id+"/status", ""); status["can_make_request"] != true || status["subscription_tier"] != "tester" {
			t.Errorf("check_user_permission sees %v", status)
		}
		if receipt := ask(http.StatusOK, http.MethodPost, "/user/"+id+"/consume-tokens", `{"tokens_to_consume": 1}`); receipt["tokens_remaining"] != 999.0 {
			t.Errorf("consume_user_tokens gets %v", receipt)
		}
	}
}

func TestHealthSpeaksTLSWhereTheServiceDoes(t *testing.T) {
	t.Parallel()
	service := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(service.Close)
	env := []string{"SERVICE_PORT=" + service.URL[strings.LastIndex(service.URL, ":")+1:], "TLS_CERT_FILE=/tls.crt"}
	run(t, t.TempDir(), env, "health").want(t, 0)
	run(t, t.TempDir(), env[:1], "health").want(t, 1)
}

func TestHealth_NamesASettingOfItsOwnThatIsWrong(t *testing.T) {
	t.Parallel()
	r := run(t, t.TempDir(), []string{"SERVICE_PORT=http", "DB_MAX_CONNS=many"}, "health").want(t, 1)
	if !strings.Contains(r.stderr, "SERVICE_PORT") || strings.Contains(r.stderr, "DB_MAX_CONNS") {
		t.Errorf("errors: %s", r.stderr)
	}
}

func TestAServiceFromItsMigrationToItsEnd(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	env := "DATABASE_URL=" + dsn
	run(t, t.TempDir(), []string{env}, "migrate").want(t, 0)
	db := connect(t, dsn)
	migrations := "SELECT count(*) FROM viralpilot.goose_db_version"
	applied := db.number(migrations)

	s := serve(t, env)
	if n := db.number(migrations); n != applied {
		t.Errorf("serve applied %d migrations after migrate", n-applied)
	}
	s.tester("u")
	if err := s.consume("u", "k"); err != nil {
		t.Fatal(err)
	}
	health := []string{"SERVICE_PORT=" + s.port}
	run(t, t.TempDir(), health, "health").want(t, 0)
	run(t, t.TempDir(), health, "health", "--live").want(t, 0)
	run(t, t.TempDir(), []string{env}, "verify").want(t, 0)

	taken := run(t, t.TempDir(), append(health, env, "SERVICE_HOST=127.0.0.1"), "serve")
	taken.wantLine(t, "SERVICE_PORT", s.port)

	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
	run(t, t.TempDir(), health, "health").wantLine(t, s.port)

	s = serve(t, env)
	if code := s.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit status %d after SIGINT", code)
	}
	db.Exec("UPDATE viralpilot.userdata SET tokens_remaining = tokens_remaining + 1")
	if r := run(t, t.TempDir(), []string{env}, "verify").want(t, 1); !strings.Contains(r.stdout, `"u"`) {
		t.Errorf("verify: %s", r.stdout)
	}
}

func TestTheCollectorWaitsLongerUnlessGOGCIsSet(t *testing.T) {
	t.Parallel()
	for env, want := range map[string]string{"GOGC=": "200", "GOGC=150": "150", "GOGC=50": "50"} {
		s := serve(t, "DATABASE_URL="+localpgtest.New(t), env)
		status, _, text, err := s.send(http.MethodGet, "/metrics", "", "")
		if got := regexp.MustCompile(`(?m)^go_gc_gogc_percent (.*)$`).FindSubmatch(text); err != nil || status != http.StatusOK || got == nil || string(got[1]) != want {
			t.Errorf("with %s the percentage is %q, want %s (status %d, %v)", env, got, want, status, err)
		}
	}
}

var healthCheckCommand = regexp.MustCompile(`(?m)^HEALTHCHECK .*CMD (\[.*\])$`)

// healthCheck returns the arguments of the program with which the image asks whether it is healthy.
func healthCheck(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var command []string
	found := healthCheckCommand.FindSubmatch(content)
	if found == nil || json.Unmarshal(found[1], &command) != nil || command[0] != "/user-management" {
		t.Fatalf("no HEALTHCHECK by the program in\n%s", content)
	}
	return command[1:]
}

func TestHealth_FailsWithoutTheDatabaseUnlessItAsksForLifeOnly(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	s := serve(t, "DATABASE_URL="+dsn)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	db := connect(t, localpgtest.Empty(t))
	db.Exec(fmt.Sprintf("ALTER DATABASE %q ALLOW_CONNECTIONS false", name))
	db.Exec("SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = $1", name)
	env := []string{"SERVICE_PORT=" + s.port}
	run(t, t.TempDir(), env, "health").wantLine(t, "503")
	run(t, t.TempDir(), env, "health", "--live").want(t, 0)
	run(t, t.TempDir(), env, healthCheck(t)...).want(t, 0)
}

func TestAHangupSaysWhetherKeysWereReadAgain(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	entry := "reader:read:" + strings.Repeat("0f", 32)
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(entry), 0o600); err != nil {
		t.Fatal(err)
	}
	for variable, says := range map[string]string{
		"API_KEYS=" + entry: "nothing was read again", "API_KEYS_FILE=" + file: "the API keys were read again",
	} {
		s := serve(t, "DATABASE_URL="+dsn, variable)
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.awaitLog(says)
	}
}

func TestASecondSignalEndsItAtOnce(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	s := serve(t, "DATABASE_URL="+dsn, "DB_STATEMENT_TIMEOUT=30s", "HTTP_WRITE_TIMEOUT=70s")
	s.tester("u")
	db := connect(t, dsn)
	db.Exec(`CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); RETURN NULL; END';
		CREATE TRIGGER linger AFTER INSERT ON viralpilot.ledger FOR EACH ROW EXECUTE FUNCTION linger()`)
	answered := make(chan error, 1)
	go func() { answered <- s.consume("u", "k") }()
	localpgtest.Await(t, "the consume lingers", func() bool {
		return db.number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'") == 1
	})
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.awaitLog("stopping")
	// Again until it takes effect: one that comes along with the first may still count as the first.
	localpgtest.Await(t, "it has ended", func() bool {
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		select {
		case _, open := <-s.log:
			return !open
		default:
			return false
		}
	})
	if code := s.wait(); code != -1 {
		t.Errorf("exit status %d", code)
	}
	if err := <-answered; err == nil {
		t.Error("the request was answered")
	}
}

func TestKilledUnderLoadAndStartedAgainItCountsEachKeyOnce(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.Empty(t)
	env := []string{"DATABASE_URL=" + dsn, "LOG_REQUESTS=none"}
	s := serve(t, env...)
	s.tester("u")
	const clients = 12
	var mu sync.Mutex
	acknowledged, unclear := map[string]bool{}, map[string]bool{}
	enough := make(chan struct{})
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("key-%d-%d", i, n)
				err := s.consume("u", key)
				mu.Lock()
				if err != nil {
					unclear[key] = true
				} else if acknowledged[key] = true; len(acknowledged) == 150 {
					close(enough)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	<-enough
	if code := s.end(syscall.SIGKILL); code != -1 {
		t.Errorf("exit status %d", code)
	}
	running.Wait()

	db := connect(t, dsn)
	const consumes = "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'"
	s = serve(t, env...)
	// Once more for those without an answer, and for some that had theirs.
	done := 0
	for key := range unclear {
		if err := s.consume("u", key); err != nil {
			t.Error(err)
		}
	}
	for key := range acknowledged {
		if done++; done > 20 {
			break
		}
		if err := s.consume("u", key); err != nil {
			t.Error(err)
		}
	}
	all := len(acknowledged) + len(unclear)
	if n := db.number(consumes); n != all {
		t.Errorf("%d consumes in the ledger, want %d", n, all)
	}
	for key := range acknowledged {
		if n := db.number("SELECT count(*) FROM viralpilot.ledger WHERE idempotency_key = '" + key + "'"); n != 1 {
			t.Errorf("%s was acknowledged and is in the ledger %d times", key, n)
		}
	}
	if used := db.number("SELECT tokens_used_this_month FROM viralpilot.userdata"); used != all {
		t.Errorf("%d tokens used, want %d", used, all)
	}
	t.Logf("%d consumes were acknowledged, %d not", len(acknowledged), len(unclear))
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	run(t, t.TempDir(), env, "verify").want(t, 0)
}
