package app_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

var (
	bashBlock = regexp.MustCompile("(?s)```bash\n(.*?)```")
	// A status in a comment, then a command, which may go on after a backslash.
	statusAndCommand = regexp.MustCompile(`(?m)^# (\d{3})\n((?:[A-Z]+=\$\()?curl (?:.*\\\n)*.*)$`)
	aCurl            = regexp.MustCompile(`\bcurl `)
)

// noteStatus makes a shell's curl write the status of each answer to the file STATUSES, and its body as ever.
const noteStatus = `
curl() {
	: >"$STATUSES.body"
	command curl -sS -o "$STATUSES.body" -w '%{http_code}\n' "$@" >>"$STATUSES" || exit
	cat "$STATUSES.body"
}
`

// TestTheCurlLinesOfTheREADME pastes them into a shell as they are, and those of every call in detail after them, but for
// the address.
func TestTheCurlLinesOfTheREADME(t *testing.T) {
	t.Parallel()
	r := start(t, localpgtest.New(t))
	script, written := noteStatus, 0
	var statuses, commands []string
	for _, file := range []string{"../../README.md", "../httpapi/README.md"} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range bashBlock.FindAllSubmatch(content, -1) {
			script += string(block[1])
			written += len(aCurl.FindAll(block[1], -1))
			for _, match := range statusAndCommand.FindAllSubmatch(block[1], -1) {
				statuses, commands = append(statuses, string(match[1])), append(commands, string(match[2]))
				if !strings.Contains(commands[len(commands)-1], "http://localhost:8001") {
					t.Errorf("it does not call the service: %s", match[2])
				}
			}
		}
	}
	if len(commands) < 30 || len(commands) != written {
		t.Fatalf("%d of %d curl lines have a status", len(commands), written)
	}
	file := filepath.Join(t.TempDir(), "statuses")
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(script, "http://localhost:8001", r.url))
	cmd.Env = append(os.Environ(), "STATUSES="+file)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(content))
	if len(got) != len(commands) {
		t.Fatalf("%d answers to %d commands:\n%s", len(got), len(commands), output)
	}
	for i, command := range commands {
		if got[i] != statuses[i] {
			t.Errorf("%s\nwant %s, got %s", command, statuses[i], got[i])
		}
	}
	if t.Failed() {
		t.Logf("the answers:\n%s", output)
	}
}
