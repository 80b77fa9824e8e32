//go:build clients

package main_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// handouts fetches the clients from the service, and returns the folder that they are in.
func (s *service) handouts() string {
	s.t.Helper()
	dir := s.t.TempDir()
	var root struct {
		Clients map[string]struct{ Path, SHA256 string }
	}
	if err := json.Unmarshal(s.fetch("/"), &root); err != nil {
		s.t.Fatal(err)
	}
	if len(root.Clients) == 0 {
		s.t.Fatal("the service has no clients")
	}
	for name, listed := range root.Clients {
		content := s.fetch(listed.Path)
		if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != listed.SHA256 {
			s.t.Errorf("%s has not the sum that the service tells", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

func (s *service) fetch(path string) []byte {
	s.t.Helper()
	res, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: status %d, %v", path, res.StatusCode, err)
	}
	return content
}

// toldUser is what a program says that became of the calls of a user.
type toldUser struct {
	// Charged are the tokens of the calls that were charged, by the name of a consume or the id of a reservation.
	Charged map[string]int
	// Failed are the reservations whose model failed.
	Failed []string
	Error  string
}

// program is a program of a caller, which works until it is stopped.
type program struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	// done counts the calls of all programs.
	done *atomic.Int64
	told map[string]toldUser
	read chan struct{}
}

func startProgram(t *testing.T, s *service, clients string, users []string, done *atomic.Int64, command ...string) *program {
	t.Helper()
	names, err := json.Marshal(users)
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, name: command[0], cmd: exec.Command(command[0], command[1:]...), done: done, read: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "CLIENTS="+clients, "SERVICE="+s.url, "USERS="+string(names), "PYTHONDONTWRITEBYTECODE=1")
	var complaints strings.Builder
	p.cmd.Stderr = &complaints
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.read)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<26)
		for lines.Scan() {
			var line struct {
				Done int64
				Told map[string]toldUser
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Errorf("%v: %s", err, lines.Text())
			}
			done.Add(line.Done)
			if line.Told != nil {
				p.told = line.Told
			}
		}
	}()
	t.Cleanup(func() {
		p.in.Close()
		<-p.read
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		// What a program tells of reservations that it left to expire is no failure.
		if complaints.Len() > 0 {
			t.Logf("%s: %s", p.name, complaints.String())
		}
	})
	return p
}

// stop lets the program end what it does, and returns what it tells.
func (p *program) stop() map[string]toldUser {
	p.t.Helper()
	p.in.Close()
	<-p.read
	if p.told == nil {
		p.t.Fatalf("%s has told nothing", p.name)
	}
	return p.told
}

func TestProgramsWithTheClientsCountEachCallOnceWhateverFails(t *testing.T) {
	const users = 50
	database := localpgtest.Server(t)
	dsn := database.URL("postgres")
	env := []string{"DATABASE_URL=" + dsn, "LOG_REQUESTS=none"}
	s := serve(t, env...)
	clients := s.handouts()

	var done atomic.Int64
	var programs []*program
	forms := []string{"%s/%d", "%s%%%d", "%s %d", "ä-%s-ö-%d", "%s%%2F%d", "%s?%d#", "日本/%s/%d", "%s+%d", "%s%%C3%%28%d", "../%s/..%d"}
	for _, command := range [][]string{{"python3", "testdata/program.py"}, {"node", "testdata/program.mjs"}} {
		plain, odd := make([]string, users), make([]string, users)
		for i := range users {
			plain[i], odd[i] = fmt.Sprintf("%s-%d", command[0], i), fmt.Sprintf(forms[i%len(forms)], command[0], i)
		}
		programs = append(programs, startProgram(t, s, clients, plain, &done, command...), startProgram(t, s, clients, odd, &done, command...))
	}
	awaitCalls := func(n int64) {
		t.Helper()
		before := done.Load()
		localpgtest.Await(t, fmt.Sprintf("%d calls more", n), func() bool { return done.Load() >= before+n })
	}
	const some = 8 * users
	awaitCalls(some)
	if code := s.end(syscall.SIGKILL); code != -1 {
		t.Errorf("exit status %d", code)
	}
	s = serve(t, append(env, "SERVICE_PORT="+s.port)...)
	awaitCalls(some)
	if err := database.Stop(); err != nil {
		t.Error(err)
	}
	if err := database.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitCalls(some)

	db := connect(t, dsn)
	failed, charged := 0, 0
	for _, p := range programs {
		told := p.stop()
		if len(told) != users {
			t.Errorf("%s told of %d users", p.name, len(told))
		}
		for user, mine := range told {
			if mine.Error != "" {
				t.Errorf("%s: %s", user, mine.Error)
			}
			books := localpgtest.Query[map[string]int](db, `SELECT coalesce(jsonb_object_agg(call, tokens), '{}') FROM (
				SELECT coalesce(reservation_id::text, metadata->>'call') AS call, sum(tokens_charged) AS tokens
				FROM viralpilot.ledger WHERE cognito_user_id = $1 AND kind IN ('consume', 'settle') GROUP BY 1) charges`, user)
			if len(books) != len(mine.Charged) {
				t.Errorf("%s: %d calls are in the ledger, and the program told of %d", user, len(books), len(mine.Charged))
			}
			total := 0
			for call, tokens := range mine.Charged {
				total += tokens
				if books[call] != tokens {
					t.Errorf("%s: %s cost %d, and is charged %d", user, call, tokens, books[call])
				}
			}
			charged += len(mine.Charged)
			failed += len(mine.Failed)
			var entries, spent, balance int
			if err := db.Conn.QueryRow(t.Context(), `SELECT
				(SELECT count(*) FROM viralpilot.ledger WHERE cognito_user_id = $1 AND kind IN ('consume', 'settle')),
				tokens_used_this_month, tokens_remaining + coalesce((SELECT sum(tokens) FROM viralpilot.reservations
					WHERE cognito_user_id = $1 AND status = 'open'), 0)
				FROM viralpilot.userdata WHERE cognito_user_id = $1`, user).Scan(&entries, &spent, &balance); err != nil {
				t.Fatalf("%s: %v", user, err)
			}
			if entries != len(mine.Charged) || spent != total || balance != 1_000_000-total {
				t.Errorf("%s: %d entries, %d used and %d left, of %d calls that cost %d", user, entries, spent, balance, len(mine.Charged), total)
			}
			for _, id := range mine.Failed {
				if status := localpgtest.Query[string](db, `SELECT status FROM viralpilot.reservations WHERE cognito_user_id = $1 AND reservation_id = $2::uuid`, user, id); status == "settled" {
					t.Errorf("%s: %s is settled, though its model failed", user, id)
				}
			}
		}
	}
	t.Logf("%d calls were charged and %d given back", charged, failed)
	if charged < some || failed == 0 {
		t.Errorf("%d calls charged and %d failed are too few to tell anything", charged, failed)
	}
	if known := db.number(`SELECT count(*) FROM viralpilot.userdata`); known != 4*users {
		t.Errorf("there are %d accounts, want %d", known, 4*users)
	}
	run(t, t.TempDir(), []string{"DATABASE_URL=" + dsn}, "verify").want(t, 0)
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestEveryCallOfTheClients has each client make each call, of a service of its own.
func TestEveryCallOfTheClients(t *testing.T) {
	for _, command := range [][]string{{"python3", "testdata/story.py"}, {"node", "testdata/story.mjs"}} {
		t.Run(command[0], func(t *testing.T) {
			t.Parallel()
			s := serve(t, "DATABASE_URL="+localpgtest.Empty(t))
			cmd := exec.Command(command[0], command[1:]...)
			cmd.Env = append(os.Environ(), "CLIENTS="+s.handouts(), "SERVICE="+s.url, "PYTHONDONTWRITEBYTECODE=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
		})
	}
}

var pythonBlock = regexp.MustCompile("(?s)```python\n(.*?)```")

// TestTheREADMEsFunctionsWithTheClients runs PostPilot's two functions and what else the README has in Python that uses the
// client.
func TestTheREADMEsFunctionsWithTheClients(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, block := range pythonBlock.FindAllSubmatch(readme, -1) {
		if strings.Contains(string(block[1]), "users.") {
			code.Write(block[1])
			code.WriteString("\n")
		}
	}
	s := serve(t, "DATABASE_URL="+localpgtest.Empty(t))
	const service = "http://user-management:8001"
	if !strings.Contains(code.String(), service) {
		t.Fatalf("the README's functions do not call the service:\n%s", code.String())
	}
	const story = `
def permission(user):
    try:
        return check_user_permission(user)["subscription_tier"]
    except Exception as error:
        return str(error)

assert permission("a/new user") == "Please subscribe to a plan to use this feature", permission("a/new user")
consume_user_tokens("a/new user")  # logs that it failed
users.change_tier("a/new user", "tester")
assert permission("a/new user") == "tester", permission("a/new user")
consume_user_tokens("a/new user", 990)
assert users.status("a/new user")["tokens_remaining"] == 10

def model(used):
    def call():
        return "an answer", used
    return call

assert call_with_reservation("a/new user", 10, model(4)) == "an answer"
assert users.status("a/new user")["tokens_remaining"] == 6
consume_user_tokens("a/new user", 6)
assert permission("a/new user") == "Please top up your account with tokens", permission("a/new user")
`
	cmd := exec.Command("python3", "-c", strings.ReplaceAll(code.String(), service, s.url)+story)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+s.handouts(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "Failed to consume tokens for user a/new user") != 1 {
		t.Errorf("%v:\n%s\n%s", err, out, code.String())
	}
}
