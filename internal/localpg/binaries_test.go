package localpg

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindBinaries(t *testing.T) {
	found := programs(t, t.TempDir(), "initdb", "postgres")
	half := programs(t, t.TempDir(), "postgres")
	packages := t.TempDir()
	for _, version := range []string{"9", "15", "17"} {
		programs(t, filepath.Join(packages, version, "bin"), "initdb", "postgres")
	}
	programs(t, filepath.Join(packages, "18", "bin"), "psql")

	for name, test := range map[string]struct {
		bindir, path string
		folders      []string
		want         string
		wantErr      string
	}{
		"PG_BINDIR is first":              {bindir: found, path: packages, want: found},
		"a wrong PG_BINDIR is an error":   {bindir: half, path: found, wantErr: "PG_BINDIR=" + half},
		"PATH is next":                    {path: half + ":" + found, folders: []string{packages + "/*/bin"}, want: found},
		"the highest version of packages": {path: half, folders: []string{half, packages + "/*/bin"}, want: packages + "/17/bin"},
		"none":                            {path: half, folders: []string{half}, wantErr: ErrNoBinaries.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PG_BINDIR", test.bindir)
			t.Setenv("PATH", test.path)
			dir, err := findBinaries(test.folders)
			if test.wantErr == "" && (err != nil || dir != test.want) {
				t.Errorf("found %s, %v", dir, err)
			}
			if test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
				t.Errorf("got error %v", err)
			}
		})
	}
}

func TestEnsureBinaries(t *testing.T) {
	t.Setenv("PG_BINDIR", "")
	t.Setenv("PATH", programs(t, t.TempDir(), "manager", "broken"))
	installer := func(program, script string) packageManager {
		return packageManager{program: program, commands: [][]string{{"/bin/sh", "-c", script}}}
	}
	folder := t.TempDir()
	install := "cd " + folder + " && echo '#!/bin/sh' >initdb && /bin/cp initdb postgres && /bin/chmod +x initdb postgres"

	for _, test := range []struct {
		name     string
		managers []packageManager
		wantOut  string
		wantErr  string
	}{
		{name: "without a package manager", managers: []packageManager{installer("absent", "true")}, wantErr: ErrNoBinaries.Error()},
		{name: "when installing fails", managers: []packageManager{installer("broken", "exit 3")}, wantErr: "with broken failed (exit status 3)"},
		{name: "installs", managers: []packageManager{installer("absent", "false"), installer("manager", install)}, wantOut: "installing it with manager"},
		{name: "does nothing when installed", managers: []packageManager{installer("manager", "false")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			err := ensureBinaries(t.Context(), &out, []string{folder}, test.managers)
			if test.wantErr == "" && err != nil || test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
				t.Errorf("got error %v", err)
			}
			if !strings.Contains(out.String(), test.wantOut) || test.wantOut == "" && test.wantErr == "" && out.Len() > 0 {
				t.Errorf("got output %q", out.String())
			}
		})
	}
}

func TestErrNoBinariesIsOneSentenceWithThreeWaysOut(t *testing.T) {
	text := ErrNoBinaries.Error()
	for _, way := range []string{"install PostgreSQL", "docker compose up --build", "DATABASE_URL", "TEST_DATABASE_URL"} {
		if !strings.Contains(text, way) {
			t.Errorf("%q does not name %s", text, way)
		}
	}
	if strings.ContainsAny(text, "\n.") {
		t.Errorf("%q is more than a sentence", text)
	}
}

func TestKeepClusterAway(t *testing.T) {
	t.Parallel()
	const line = "create_main_cluster = false\n"
	for name, test := range map[string]struct{ before, after string }{
		"a new file":                 {"", line},
		"a file with other settings": {"ssl = on", "ssl = on\n" + line},
		"a comment does not count":   {"#create_main_cluster = false\n", "#create_main_cluster = false\n" + line},
		"a file that says it":        {"create_main_cluster=false\nssl = on\n", "create_main_cluster=false\nssl = on\n"},
	} {
		t.Run(name, func(t *testing.T) {
			conf := filepath.Join(t.TempDir(), "etc", "createcluster.conf")
			if test.before != "" {
				if err := os.Mkdir(filepath.Dir(conf), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(conf, []byte(test.before), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := keepClusterAway(conf); err != nil {
				t.Fatal(err)
			}
			if after, err := os.ReadFile(conf); err != nil || string(after) != test.after {
				t.Errorf("the file is %q, %v", after, err)
			}
		})
	}
}

// programs puts executable files into the folder and returns it.
func programs(t *testing.T, dir string, names ...string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
