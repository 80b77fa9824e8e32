//go:build manual

package main_test

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

var block = regexp.MustCompile("(?ms)^```(sh|sql)\n(.*?)^```$")

// blocks returns the blocks of shell and SQL that the manual has under the heading, which have to be as many as are wanted.
// What is run is the text that people read.
func blocks(t *testing.T, heading string, want int) []string {
	t.Helper()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(content), heading+"\n")
	if !found {
		t.Fatalf("the manual has no %q", heading)
	}
	// Comments of a shell do not begin a line in it.
	section, _, _ = strings.Cut(section, "\n#")
	var texts []string
	for _, match := range block.FindAllStringSubmatch(section, -1) {
		texts = append(texts, match[2])
	}
	if len(texts) != want {
		t.Fatalf("%q has %d blocks, not %d: this test has to follow it", heading, len(texts), want)
	}
	return texts
}

// operator is who pastes the blocks of the manual into a shell.
type operator struct {
	t   *testing.T
	dir string
	// env has the names in capitals, and PATH has what the manual calls by its name.
	env []string
}

func newOperator(t *testing.T, server *localpg.Server, program string, env ...string) operator {
	t.Helper()
	cmd, err := server.Command("sh")
	if err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + filepath.Dir(program)
	for _, v := range cmd.Env {
		if rest, ok := strings.CutPrefix(v, "PATH="); ok {
			path = "PATH=" + filepath.Dir(program) + string(filepath.ListSeparator) + rest
		}
	}
	return operator{t, t.TempDir(), append([]string{path, "DATABASE_URL=" + server.URL("postgres"), "LC_ALL=C"}, env...)}
}

// paste runs a block to its end and returns what it printed.
func (o operator) paste(text string) string {
	o.t.Helper()
	cmd := exec.CommandContext(o.t.Context(), "sh", "-eu")
	cmd.Dir, cmd.Env = o.dir, o.env
	return pasteInto(o.t, cmd, text)
}

// pasteAs is paste as the user of PostgreSQL, whose files nobody else may touch.
func (o operator) pasteAs(server *localpg.Server, text string) string {
	o.t.Helper()
	cmd, err := server.Command("sh", "-eu")
	if err != nil {
		o.t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, o.env[1:]...) // but for PATH, which it has
	return pasteInto(o.t, cmd, text)
}

func pasteInto(t *testing.T, cmd *exec.Cmd, text string) string {
	t.Helper()
	cmd.Stdin = strings.NewReader(text)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v of\n%s\n%s", err, text, output)
	}
	return string(output)
}

// The earlier version has another word for it.
var checked = regexp.MustCompile(`(?m)^([0-9]+) accounts and ([0-9]+) ledger entries checked, 0 (?:discrepancies|disagreements)$`)

// clean wants that the output is that of a verify which found accounts and entries, and nothing wrong.
func clean(t *testing.T, output string) {
	t.Helper()
	match := checked.FindStringSubmatch(output)
	if match == nil || match[1] == "0" || match[2] == "0" {
		t.Errorf("the books were not found in order: %s", output)
	}
}

// do is a call that has to succeed, and returns the answer.
func (s *service) do(method, path, body, key string) map[string]any {
	s.t.Helper()
	status, header, text, err := s.send(method, path, body, key)
	if err != nil || status >= 300 {
		s.t.Fatalf("%s %s: %d %v %s", method, path, status, err, text)
	}
	answer := map[string]any{"replayed": header.Get("Idempotency-Replayed")}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			s.t.Fatal(err)
		}
	}
	return answer
}

// work writes to every table what any version knows how to: the ids of its accounts and its keys begin with the name.
func (s *service) work(name string) {
	s.t.Helper()
	for i := range 5 {
		user := fmt.Sprintf("/user/%s-%d", name, i)
		s.tester(fmt.Sprintf("%s-%d", name, i))
		s.do(http.MethodPost, user+"/add-tokens", `{"tokens_to_add": 100}`, name+"-add")
		entry := s.do(http.MethodPost, user+"/consume-tokens", `{"tokens_to_consume": 1050, "metadata": {"model": "large"}}`, name+"-consume")
		s.do(http.MethodPost, user+"/refunds", fmt.Sprintf(`{"entry_id": "%v", "tokens": 40}`, entry["entry_id"]), "")
		s.do(http.MethodPost, user+"/reservations", `{"tokens": 20, "ttl_seconds": 86400}`, name+"-open")
		held := s.do(http.MethodPost, user+"/reservations", `{"tokens": 30}`, "")
		s.do(http.MethodPost, fmt.Sprintf("%s/reservations/%v/settle", user, held["reservation_id"]), `{"tokens_used": 10}`, "")
	}
	s.do(http.MethodDelete, fmt.Sprintf("/user/%s-4", name), "", "")
}

// goesOn wants that what the keys of work(name) have done is still known, and that there can be more.
func (s *service) goesOn(name string) {
	s.t.Helper()
	user := fmt.Sprintf("/user/%s-0", name)
	if again := s.do(http.MethodPost, user+"/add-tokens", `{"tokens_to_add": 100}`, name+"-add"); again["replayed"] != "true" {
		s.t.Errorf("a key is not known any more: %v", again)
	}
	s.do(http.MethodPost, user+"/consume-tokens", `{"tokens_to_consume": 1}`, "")
}

// remaining is the balance of the first account of work(name).
func (s *service) remaining(name string) float64 {
	s.t.Helper()
	return s.do(http.MethodGet, fmt.Sprintf("/user/%s-0", name), "", "")["tokens_remaining"].(float64)
}

// fed is how many entries a new reader of the feed gets.
func (s *service) fed() (entries int) {
	s.t.Helper()
	for path, last := "/ledger", ""; ; {
		page := s.do(http.MethodGet, path, "", "")
		entries += len(page["entries"].([]any))
		next := page["next_cursor"].(string)
		if next == last {
			return entries
		}
		path, last = "/ledger?after="+next, next
	}
}

// quit ends the service and wants a clean stop.
func (s *service) quit() {
	s.t.Helper()
	if code := s.end(syscall.SIGTERM); code != 0 {
		s.t.Errorf("exit status %d", code)
	}
}

// content is a fingerprint of all rows of the schema, table by table. A service that runs may change them by itself.
func (d database) content() string {
	d.T.Helper()
	var sums strings.Builder
	for _, table := range strings.Fields(localpgtest.Query[string](d, `SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
		WHERE relnamespace = 'viralpilot'::regnamespace AND relkind = 'r'`)) {
		fmt.Fprintln(&sums, table, localpgtest.Query[string](d, `SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\n' ORDER BY t::text)), '')
			FROM viralpilot.`+table+" t"))
	}
	return sums.String()
}

func TestManual_DumpAndRestore(t *testing.T) {
	text := blocks(t, "### Dump and restore", 2)
	server := localpgtest.Server(t)
	restored := "DATABASE_URL=" + server.URL("restored")
	o := newOperator(t, server, binary, "RESTORED_URL="+server.URL("restored"))
	s := serve(t, "DATABASE_URL="+server.URL("postgres"))
	s.work("before")
	s.quit()
	want := connect(t, server.URL("postgres")).content()
	o.paste(text[0])
	s = serve(t, "DATABASE_URL="+server.URL("postgres"))
	s.work("lost")
	s.quit()

	clean(t, o.paste(text[1]))
	if got := connect(t, server.URL("restored")).content(); got != want {
		t.Errorf("restored was\n%s\nof\n%s", got, want)
	}
	s = serve(t, restored)
	s.goesOn("before")
	s.work("after")
	if got, want := s.fed(), connect(t, server.URL("restored")).number("SELECT count(*) FROM viralpilot.ledger"); got != want {
		t.Errorf("the feed has %d entries, the ledger %d", got, want)
	}
	s.quit()
	clean(t, run(t, t.TempDir(), []string{restored}, "verify").want(t, 0).stdout)
}

func TestManual_GoBackToAMoment(t *testing.T) {
	text := blocks(t, "### Go back to a moment", 5)
	server := localpgtest.Server(t)
	db := connect(t, server.URL("postgres"))
	data := localpgtest.Query[string](db, "SHOW data_directory")
	backup := filepath.Join(filepath.Dir(data), "backup")
	o := newOperator(t, server, binary, "PGDATA="+data, "ARCHIVE="+filepath.Join(filepath.Dir(data), "archive"), "BACKUP="+backup)
	restart := func() {
		t.Helper()
		if err := server.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	o.pasteAs(server, text[0])
	restart()
	env := "DATABASE_URL=" + server.URL("postgres")
	s := serve(t, env)
	s.work("backed-up")
	o.pasteAs(server, text[1])
	s.work("before")
	s.quit()
	db = connect(t, server.URL("postgres"))
	want, moment := db.content(), localpgtest.Query[string](db, "SELECT clock_timestamp()::text")
	s = serve(t, env)
	s.work("lost")
	s.quit()

	// The loss of the server, which leaves what was written last out of the archive.
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	days, err := os.ReadDir(backup)
	if err != nil || len(days) != 1 {
		t.Fatalf("the base backups are %v, %v", days, err)
	}
	o.env = append(o.env, "MOMENT="+moment, "DAY="+days[0].Name())
	o.pasteAs(server, text[2])
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	clean(t, o.paste(text[3]))
	if got := connect(t, server.URL("postgres")).content(); got != want {
		t.Errorf("at that moment there was\n%s\nand not\n%s", want, got)
	}
	o.pasteAs(server, text[4])
	s = serve(t, env)
	s.goesOn("before")
	// Sent again, what was lost counts.
	s.work("lost")
	if got, want := s.fed(), connect(t, server.URL("postgres")).number("SELECT count(*) FROM viralpilot.ledger"); got != want {
		t.Errorf("the feed has %d entries, the ledger %d", got, want)
	}
	s.quit()
	restart()
	clean(t, run(t, t.TempDir(), []string{env}, "verify").want(t, 0).stdout)
}

func TestManual_ArchiveOfOldEntries(t *testing.T) {
	text := blocks(t, "## How the ledger grows", 2)
	server := localpgtest.Server(t)
	o := newOperator(t, server, binary)
	env := "DATABASE_URL=" + server.URL("postgres")
	s := serve(t, env)
	s.work("old")
	balance := s.remaining("old")
	db := connect(t, server.URL("postgres"))
	// Whose reset has to stay, since it ended a period.
	db.Exec("INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, tokens_remaining) VALUES ('adopted', 'tester', 500)")
	for range 3 {
		if err := s.consume("adopted", ""); err != nil {
			t.Fatal(err)
		}
	}
	day := localpgtest.Query[time.Time](db, "SELECT clock_timestamp()").UTC().Format("2006-01-02T15:04:05.000000Z")
	s.goesOn("old")
	s.work("new")
	all := db.number("SELECT count(*) FROM viralpilot.ledger")
	closed := db.number("SELECT count(*) FROM viralpilot.reservations WHERE status <> 'open'")
	localpgtest.Await(t, "the usage is added up, before which no entry is archived", func() bool {
		return localpgtest.Query[bool](db, "SELECT folded_to >= (SELECT max(entry_id) FROM viralpilot.ledger) FROM viralpilot.usage_fold")
	})

	if err := os.WriteFile(filepath.Join(o.dir, "archive.sql"), []byte(text[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	const example = "2025-11-01"
	if strings.Count(text[1], example) != 2 {
		t.Fatalf("%s is not what both commands name", example)
	}
	clean(t, o.paste(strings.ReplaceAll(text[1], example, day)))
	file, err := os.Open(filepath.Join(o.dir, "ledger.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	kept := db.number("SELECT count(*) FROM viralpilot.ledger")
	if archived := len(rows) - 1; archived < 20 || archived+kept != all {
		t.Errorf("%d entries were archived and %d kept of %d", archived, kept, all)
	}
	if left := db.number("SELECT count(*) FROM viralpilot.reservations WHERE status <> 'open'"); left != closed/2 {
		t.Errorf("%d of %d closed reservations are left", left, closed)
	}
	if kept := db.number("SELECT count(*) FROM viralpilot.ledger WHERE cognito_user_id = 'adopted' AND kind IN ('monthly_reset', 'consume')"); kept != 2 {
		t.Errorf("of a reset and three consumes %d are kept", kept)
	}
	// The service worked on meanwhile, and does.
	if got := s.remaining("old"); got != balance-1 {
		t.Errorf("the balance is %v, not %v", got, balance-1)
	}
	s.goesOn("new")
	s.work("later")
	s.quit()
	clean(t, o.paste("user-management verify --since "+day))
}

func TestManual_ChangeAKeyWithoutARestart(t *testing.T) {
	text := blocks(t, "### Change a key without a restart", 2)
	server := localpgtest.Server(t)
	keys := filepath.Join(t.TempDir(), "api_keys")
	o := newOperator(t, server, binary, "API_KEYS_FILE="+keys)
	secret := func(printed string) string { return strings.SplitN(printed, "\n", 2)[0] }
	made := o.paste("user-management apikey new --name postpilot --scopes read,consume; user-management apikey new --name backoffice --scopes manage")
	lines := strings.Split(strings.TrimSpace(made), "\n")
	if len(lines) != 4 {
		t.Fatalf("two keys are %q", made)
	}
	if err := os.WriteFile(keys, []byte(lines[1]+"\n"+lines[3]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, "DATABASE_URL="+server.URL("postgres"), "API_KEYS_FILE="+keys, "AUTH_REQUIRED=true")
	o.env = append(o.env, "PID="+strconv.Itoa(s.cmd.Process.Pid))
	accepted := func(key string, want bool) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/user/u/status?create=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if status := map[bool]int{true: http.StatusOK, false: http.StatusUnauthorized}[want]; res.StatusCode != status {
			t.Errorf("status %d, want %d", res.StatusCode, status)
		}
	}
	accepted(lines[0], true)
	o.paste(text[0])
	s.awaitLog("the API keys were read again")
	printed, err := os.ReadFile(filepath.Join(o.dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	accepted(lines[0], true)
	accepted(secret(string(printed)), true)
	o.paste(text[1])
	s.awaitLog("the API keys were read again")
	accepted(lines[0], false)
	accepted(secret(string(printed)), true)
	accepted(lines[2], true)
	s.quit()
	run(t, t.TempDir(), []string{"DATABASE_URL=" + server.URL("postgres")}, "verify").want(t, 0)
}

// earlierVersion builds the version before migration 4 from the history of the repository. It returns "" where there is
// none to build it from, as in a shallow clone.
func earlierVersion(t *testing.T) (program string) {
	t.Helper()
	git := func(args ...string) (string, error) {
		// A checkout of another user is read, and nothing of it run.
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "safe.directory=*", "-C", "../.."}, args...)...)
		output, err := cmd.Output()
		return strings.TrimSpace(string(output)), err
	}
	added, err := git("log", "--format=%H", "--diff-filter=A", "--", "migrations/0004_periods.sql")
	if err != nil || added == "" {
		t.Logf("there is no history: %v", err)
		return ""
	}
	commits := strings.Fields(added)
	commit, err := git("rev-parse", "--verify", "--quiet", commits[len(commits)-1]+"^")
	if err != nil {
		t.Logf("the history begins with %s", added)
		return ""
	}
	archive := filepath.Join(t.TempDir(), "earlier.tar")
	if output, err := git("archive", "--format=tar", "--output="+archive, commit); err != nil {
		t.Fatalf("%v %s", err, output)
	}
	source := t.TempDir()
	program = filepath.Join(t.TempDir(), "user-management")
	for _, cmd := range []*exec.Cmd{
		exec.CommandContext(t.Context(), "tar", "-xf", archive),
		exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "./cmd/user-management"),
	} {
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "PWD="+source)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, output)
		}
	}
	return program
}

func TestManual_UpgradeAndRollBack(t *testing.T) {
	text := blocks(t, "## Upgrade and roll back", 4)
	migrate, verify, sql, rollBack := text[0], text[1], text[2], text[3]
	server := localpgtest.Server(t)
	env := "DATABASE_URL=" + server.URL("postgres")
	now := newOperator(t, server, binary)
	if err := os.WriteFile(filepath.Join(now.dir, "rollback.sql"), []byte(sql), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses := func(s *service, name string) {
		t.Helper()
		if _, _, err := s.call(http.StatusServiceUnavailable, http.MethodPost, "/user/"+name+"-1/add-tokens", `{"tokens_to_add": 1}`, ""); err != nil {
			t.Error(err)
		}
	}

	earlier := earlierVersion(t)
	var before operator
	names := []string{}
	if earlier != "" {
		before = newOperator(t, server, earlier)
		s := serveProgram(t, earlier, before.dir, env)
		s.work("earlier")
		names = append(names, "earlier")
		now.paste(migrate)
		refuses(s, "earlier")
		clean(t, now.paste(verify))
		s.quit()
	} else {
		now.paste(migrate)
	}
	s := serve(t, env)
	for _, name := range names {
		s.goesOn(name)
	}
	s.work("now")
	names = append(names, "now")
	s.quit()
	clean(t, now.paste(verify))

	now.paste(rollBack)
	if earlier != "" {
		s := serveProgram(t, earlier, before.dir, env)
		s.goesOn("earlier")
		if err := s.consume("now-0", ""); err != nil {
			t.Error(err)
		}
		if _, _, err := s.call(http.StatusUnprocessableEntity, http.MethodPost, "/user/now-0/add-tokens", `{"tokens_to_add": 100}`, "now-add"); err != nil {
			t.Error(err)
		}
		s.work("again")
		names = append(names, "again")
		clean(t, before.paste(verify))
		now.paste(migrate)
		refuses(s, "again")
		s.quit()
	} else {
		now.paste(migrate)
	}
	clean(t, now.paste(verify))
	s = serve(t, env)
	for _, name := range names {
		s.goesOn(name)
	}
	s.work("end")
	s.quit()
	clean(t, now.paste(verify))
}
