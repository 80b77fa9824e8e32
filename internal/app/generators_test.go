//go:build generators

package app_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// oapiCodegen is run from the module cache, so that it is no dependency of this module.
const oapiCodegen = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"

// workshop is a folder with what the tests of generators have, and with the document that the service publishes.
func workshop(t *testing.T) (dir string, r *replica) {
	t.Helper()
	dir, r = t.TempDir(), start(t, localpgtest.New(t))
	if err := os.CopyFS(dir, os.DirFS("testdata/generators")); err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(r.url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	document, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("the document: %s, %v", res.Status, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "openapi.json"), document, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, r
}

// tool runs a command in the folder and returns what it says.
func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "NO_COLOR=1", "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, said)
	}
	return string(said)
}

func TestOapiCodegenMakesAClientThatWorks(t *testing.T) {
	t.Parallel()
	dir, r := workshop(t)
	if err := os.Mkdir(filepath.Join(dir, "um"), 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "go", "mod", "init", "generated")
	tool(t, dir, "go", "run", oapiCodegen, "-generate", "types,client", "-package", "um", "-o", "um/um.go", "openapi.json")
	client, err := os.ReadFile(filepath.Join(dir, "um", "um.go"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(client, []byte("\n")); lines >= 10_000 {
		t.Errorf("the client has %d lines", lines)
	}
	if name := regexp.MustCompile(`(?m)^(?:type |func |\s+)(\w*(?:Nil|LessThan)\w*)`).Find(client); name != nil {
		t.Errorf("the client has the name %s", name)
	}
	problems := regexp.MustCompile(`(?m)^\s+ApplicationproblemJSON\w+ +\*(\w+)$`).FindAllSubmatch(client, -1)
	if len(problems) == 0 {
		t.Error("the client knows no problems")
	}
	for _, problem := range problems {
		if name := string(problem[1]); name != "Problem" && !bytes.Contains(client, []byte("\ntype "+name+" = Problem\n")) {
			t.Errorf("the client has problems of the type %s", name)
		}
	}

	tool(t, dir, "go", "mod", "tidy")
	tool(t, dir, "go", "run", ".", r.url)
}

func TestGeneratorsForTypeScriptAndLintersAreContent(t *testing.T) {
	t.Parallel()
	dir, _ := workshop(t)
	tool(t, dir, "npm", "install", "--no-audit", "--no-fund", "--no-update-notifier")
	npx := func(args ...string) {
		t.Helper()
		said := tool(t, dir, "npx", append([]string{"--no-install"}, args...)...)
		if strings.Contains(strings.ToLower(said), "warn") {
			t.Errorf("%s warns: %s", args[0], said)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, ".spectral.yaml"), []byte("extends: spectral:oas\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	npx("spectral", "lint", "--fail-severity=hint", "--quiet", "openapi.json")
	// Its totals, since it may also warn of the version of Node.js.
	if said := tool(t, dir, "npx", "--no-install", "redocly", "lint", "--extends=recommended", "--format=json", "openapi.json"); !strings.Contains(said, `"warnings": 0`) {
		t.Errorf("redocly warns: %s", said)
	}
	npx("openapi-typescript", "openapi.json", "--output", "openapi-typescript/schema.ts")
	npx("openapi-ts", "--input", "openapi.json", "--output", "hey-api")
	npx("orval", "--input", "openapi.json", "--output", "orval-fetch/api.ts", "--client", "fetch")
	npx("orval", "--input", "openapi.json", "--output", "orval-zod/api.ts", "--client", "zod")
	npx("tsc", "--project", "tsconfig.json")
}
