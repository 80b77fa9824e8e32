package app_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

var (
	bashBlock = regexp.MustCompile("(?s)```bash\n(.*?)```")
	// A status in a comment, then a command, which may go on after a backslash.
	statusAndCommand = regexp.MustCompile(`(?m)^# (\d{3})\n(curl (?:.*\\\n)*.*)$`)
)

// TestTheCurlLinesOfTheREADME runs them as they are, in their order, but for the address.
func TestTheCurlLinesOfTheREADME(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, localpgtest.New(t))
	ran, written := 0, 0
	for _, block := range bashBlock.FindAllSubmatch(readme, -1) {
		written += strings.Count("\n"+string(block[1]), "\ncurl ")
		for _, match := range statusAndCommand.FindAllStringSubmatch(string(block[1]), -1) {
			ran++
			status, command := match[1], match[2]
			if !strings.Contains(command, "http://localhost:8001") {
				t.Errorf("it does not call the service: %s", command)
				continue
			}
			here := strings.ReplaceAll(command, "http://localhost:8001", r.url)
			out, err := exec.CommandContext(t.Context(), "sh", "-c", here+` -sS -w '\n%{http_code}'`).CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "\n"+status) {
				t.Errorf("%s\nwant %s, %v, got %s", command, status, err, out)
			}
		}
	}
	if ran < 15 || ran != written {
		t.Errorf("%d of %d curl lines have a status and were run", ran, written)
	}
}
