package app_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/viralpilot/user-management/"

// arrows says which packages of ours each one may import: everything points at internal/user, and adapters never at
// each other, but that the API knows who calls and has files to hand out. What only tests import is not in it.
var arrows = map[string][]string{
	"cmd/user-management": {"internal/app", "internal/config"},
	"cmd/bench":           {"internal/localpg"},
	"cmd/dev":             {"internal/app", "internal/config", "internal/demo", "internal/localpg"},
	"internal/app": {
		"internal/auth", "internal/config", "internal/httpapi", "internal/postgres", "internal/telemetry", "internal/user",
	},
	"internal/auth":      {"internal/user"},
	"internal/batch":     nil,
	"internal/clients":   nil,
	"internal/config":    {"internal/user"},
	"internal/console":   nil,
	"internal/demo":      {"internal/user"},
	"internal/httpapi":   {"internal/auth", "internal/clients", "internal/console", "internal/user"},
	"internal/localpg":   nil,
	"internal/postgres":  {"internal/batch", "internal/user", "migrations"},
	"internal/telemetry": {"internal/user"},
	"internal/user":      nil,
	"migrations":         nil,
}

func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	t.Parallel()
	for _, line := range goList(t, "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "-deps", module+"cmd/...") {
		imports := strings.Fields(line)
		name, ours := strings.CutPrefix(imports[0], module)
		if !ours {
			continue
		}
		allowed, known := arrows[name]
		if !known {
			t.Errorf("%s is part of a program and not in the picture: which packages may it import?", name)
		}
		for _, path := range imports[1:] {
			if imported, ours := strings.CutPrefix(path, module); ours && !slices.Contains(allowed, imported) {
				t.Errorf("%s must not import %s", name, imported)
			}
		}
	}
}

func TestTheDomainKnowsNoDatabaseNoHTTPAndNoEnvironment(t *testing.T) {
	t.Parallel()
	refuse(t, module+"internal/user",
		"net/http", "github.com/go-chi", "github.com/jackc", "github.com/kelseyhightower", "github.com/pressly",
		"github.com/prometheus", "go.opentelemetry.io")
}

func TestTheServiceContainsNothingThatIsForTests(t *testing.T) {
	t.Parallel()
	refuse(t, module+"cmd/user-management",
		"testing", "net/http/httptest", "github.com/anishathalye", "github.com/getkin", "go.uber.org/goleak", "pgregory.net/rapid",
		module+"internal/demo", module+"internal/localpg", module+"internal/user/historytest", module+"internal/user/usertest")
}

// refuse fails the test for each package below one of the prefixes that pkg depends on.
func refuse(t *testing.T, pkg string, prefixes ...string) {
	t.Helper()
	for _, dependency := range goList(t, "-deps", pkg) {
		for _, prefix := range prefixes {
			if dependency == prefix || strings.HasPrefix(dependency, prefix+"/") {
				t.Errorf("%s depends on %s", pkg, dependency)
			}
		}
	}
}

// goList returns the lines that go list prints.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
