package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
)

// ErrNoBinaries says that PostgreSQL's server programs are not installed, and
// what to do about it.
var ErrNoBinaries = errors.New("no PostgreSQL server is installed here: install PostgreSQL, or run `docker compose up --build` instead, or set DATABASE_URL (for tests TEST_DATABASE_URL) to a database of your own")

// binaryFolders are where packages put the server's programs outside PATH.
var binaryFolders = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                   // Fedora, RHEL with PostgreSQL's own packages
	"/usr/bin",                                           // Fedora, RHEL
	"/usr/libexec/postgresql*",                           // Alpine
	"/opt/homebrew/opt/postgresql@*/bin",                 // macOS on ARM
	"/usr/local/opt/postgresql@*/bin",                    // macOS on Intel
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
}

// FindBinaries returns the folder of PostgreSQL's server programs: the one that
// PG_BINDIR names, else the first on PATH, else the highest version among those
// that packages install. It returns ErrNoBinaries when there is none.
func FindBinaries() (dir string, err error) {
	return findBinaries(binaryFolders)
}

func findBinaries(folders []string) (dir string, err error) {
	if dir := os.Getenv("PG_BINDIR"); dir != "" {
		dir, err := filepath.Abs(dir)
		if err == nil && !hasServer(dir) {
			err = fmt.Errorf("PG_BINDIR=%s is not a folder with PostgreSQL's programs initdb and postgres", dir)
		}
		return dir, err
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) && hasServer(dir) {
			return dir, nil
		}
	}
	highest := -1
	for _, pattern := range folders {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, match := range matches {
			if v := versionInPath(match); v > highest && hasServer(match) {
				dir, highest = match, v
			}
		}
	}
	if dir == "" {
		return "", ErrNoBinaries
	}
	return dir, nil
}

// hasServer reports whether the folder has the two programs we start.
func hasServer(dir string) bool {
	for _, program := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(dir, program))
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

var digits = regexp.MustCompile(`\d+`)

// versionInPath returns the last number in the path, 0 when it has none.
func versionInPath(path string) int {
	numbers := digits.FindAllString(path, -1)
	if len(numbers) == 0 {
		return 0
	}
	version, err := strconv.Atoi(numbers[len(numbers)-1])
	if err != nil {
		return 0 // too long for a version
	}
	return version
}

// majorVersion asks the server program, as in "postgres (PostgreSQL) 15.18".
func majorVersion(bin string) (string, error) {
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", filepath.Join(bin, "postgres"), err)
	}
	return digits.FindString(string(out)), nil
}

// A packageManager can install PostgreSQL with nobody there to answer questions.
type packageManager struct {
	program  string
	prepare  func() error // may be nil
	commands [][]string
}

// packageManagers are those that may install something for this user: without
// asking for a password, and never through sudo.
func packageManagers() []packageManager {
	switch {
	case os.Geteuid() == 0:
		return []packageManager{
			{
				program: "apt-get",
				prepare: func() error { return keepClusterAway("/etc/postgresql-common/createcluster.conf") },
				commands: [][]string{
					{"apt-get", "update", "-q"},
					{"apt-get", "install", "-q", "-y", "--no-install-recommends", "postgresql"},
				},
			},
			{program: "dnf", commands: [][]string{{"dnf", "install", "-y", "postgresql-server"}}},
			{program: "apk", commands: [][]string{{"apk", "add", "--no-cache", "postgresql"}}},
		}
	case runtime.GOOS == "darwin":
		return []packageManager{{program: "brew", commands: [][]string{{"brew", "install", "postgresql@17"}}}}
	default:
		return nil
	}
}

// EnsureBinaries installs PostgreSQL with the system's package manager when
// FindBinaries finds none and no password is needed for that: as root, or with
// Homebrew. It starts no server of the system's. What it does goes to out.
// Where it cannot help it returns ErrNoBinaries.
func EnsureBinaries(ctx context.Context, out io.Writer) error {
	return ensureBinaries(ctx, out, binaryFolders, packageManagers())
}

func ensureBinaries(ctx context.Context, out io.Writer, folders []string, managers []packageManager) error {
	if _, err := findBinaries(folders); !errors.Is(err, ErrNoBinaries) {
		return err
	}
	for _, pm := range managers {
		if _, err := exec.LookPath(pm.program); err != nil {
			continue
		}
		fmt.Fprintf(out, "No PostgreSQL server is installed here: installing it with %s, without starting a system-wide one.\n", pm.program)
		if err := pm.install(ctx, out); err != nil {
			return fmt.Errorf("installing PostgreSQL with %s failed (%w): %w", pm.program, err, ErrNoBinaries)
		}
		_, err := findBinaries(folders)
		return err
	}
	return ErrNoBinaries
}

func (pm packageManager) install(ctx context.Context, out io.Writer) error {
	if pm.prepare != nil {
		if err := pm.prepare(); err != nil {
			return err
		}
	}
	for _, command := range pm.commands {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	return nil
}

var clusterKeptAway = regexp.MustCompile(`(?m)^\s*create_main_cluster\s*=\s*false\b`)

// keepClusterAway tells Debian's packages not to start a server on port 5432
// when they are installed.
func keepClusterAway(conf string) error {
	content, err := os.ReadFile(conf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if clusterKeptAway.Match(content) {
		return nil
	}
	if len(content) > 0 && !bytes.HasSuffix(content, []byte("\n")) {
		content = append(content, '\n')
	}
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		return err
	}
	return os.WriteFile(conf, append(content, "create_main_cluster = false\n"...), 0o644)
}
