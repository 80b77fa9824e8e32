package localpg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// helperDir makes the test binary the program that TestKilledParent kills.
const helperDir = "LOCALPG_TEST_HELPER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		startAndWaitForTheEnd(dir)
	}
	goleak.VerifyTestMain(m)
}

func startAndWaitForTheEnd(dir string) {
	server, err := New(Options{Dir: dir})
	if err == nil {
		err = server.Start(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(server.URL("postgres"))
	bufio.NewScanner(os.Stdin).Scan() // until we are killed
}

func TestStopAndStartAgain(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	server := newServer(t, Options{Dir: dir, Durable: true, MaxConnections: 17})
	start(t, server)
	url := server.URL("postgres")
	exec1(t, url, "CREATE TABLE kept AS SELECT 7 AS n")
	if got := query(t, url, "SELECT current_setting('max_connections') || current_setting('fsync')"); got != "17on" {
		t.Errorf("max_connections and fsync are %s", got)
	}
	stop(t, server)

	start(t, server)
	if got := server.URL("postgres"); got != url {
		t.Errorf("the URL changed from %s to %s", url, got)
	}
	if got := query(t, url, "SELECT n::text FROM kept"); got != "7" {
		t.Errorf("the row is %q after a restart", got)
	}

	t.Run("a second server on the folder is refused", func(t *testing.T) {
		second := newServer(t, Options{Dir: dir})
		if err := second.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use by a process") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("a server left over is stopped first", func(t *testing.T) {
		// As if the process that started it were gone, with its lock.
		if err := releaseLock(server.lock); err != nil {
			t.Fatal(err)
		}
		second := newServer(t, Options{Dir: dir})
		start(t, second)
		if got := query(t, second.URL("postgres"), "SELECT n::text || current_setting('fsync') FROM kept"); got != "7off" {
			t.Errorf("row and fsync are %q", got)
		}
		<-server.proc.done
	})
	if err := server.Stop(); err == nil {
		t.Error("Stop did not tell that the server had been stopped by another")
	}
}

func TestKilledParent(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	helper := exec.Command(os.Args[0])
	helper.Env = append(os.Environ(), helperDir+"="+dir)
	if _, err := helper.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := helper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(url, "postgresql://") {
		t.Fatalf("the helper says %q, %v", url, err)
	}
	url = strings.TrimSpace(url)
	exec1(t, url, "CREATE TABLE kept AS SELECT 7 AS n")
	conn := connect(t, url)

	if err := helper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := helper.Wait(); err == nil {
		t.Fatal("the helper was not killed")
	}
	if diesWithParent {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := conn.WaitForNotification(ctx); errors.Is(err, context.DeadlineExceeded) {
			t.Error("the server outlives its killed parent")
		}
	}

	server := newServer(t, Options{Dir: dir})
	start(t, server)
	if got := query(t, server.URL("postgres"), "SELECT n::text FROM kept"); got != "7" {
		t.Errorf("the row is %q after the parent was killed", got)
	}
}

// Root has two ways; the tests above take the first one where it works.
func TestRootChangesUserWithoutNamespaces(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // nobody else has the choice
	}
	dir := tempDir(t)
	server := newServer(t, Options{Dir: dir})
	server.noNamespace = true
	start(t, server)
	exec1(t, server.URL("postgres"), "CREATE TABLE kept AS SELECT 7 AS n")
	stop(t, server)
	if uid, _, err := owner(dir); err != nil || uid == 0 {
		t.Errorf("the folder belongs to user id %d, %v", uid, err)
	}

	later := newServer(t, Options{Dir: dir})
	attr, err := later.procAttr()
	if err != nil || attr.Credential == nil {
		t.Errorf("the owner of the folder did not decide: %+v, %v", attr, err)
	}
	start(t, later)
	if got := query(t, later.URL("postgres"), "SELECT n::text FROM kept"); got != "7" {
		t.Errorf("the row is %q after a restart", got)
	}
}

// The administrator's programs see the files of the server as its user does, whichever way root has taken.
func TestCommandRunsAsTheUserOfTheServer(t *testing.T) {
	t.Parallel()
	for name, noNamespace := range map[string]bool{"first way": false, "without namespaces": true} {
		t.Run(name, func(t *testing.T) {
			server := newServer(t, Options{Dir: tempDir(t)})
			server.noNamespace = noNamespace
			start(t, server)
			stop(t, server)
			cmd, err := server.Command("sh", "-euc", `pg_controldata "$PWD/data"; mv data other; cp -R other data; id -u`)
			if err != nil {
				t.Fatal(err)
			}
			output, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(output), "shut down") || strings.HasSuffix(string(output), "\n0\n") {
				t.Errorf("%v %s", err, output)
			}
			start(t, server)
		})
	}
}

func TestRootBelowAPrivateFolder(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return
	}
	private := tempDir(t)
	server := newServer(t, Options{Dir: filepath.Join(private, "data")})
	server.noNamespace = true
	if err := server.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "may not enter "+private) {
		t.Errorf("got error %v", err)
	}
	if uid, _, err := owner(server.opts.Dir); err != nil || uid != 0 {
		t.Errorf("the folder was given away all the same: user id %d, %v", uid, err)
	}
}

func TestStartTellsWhyTheServerEnded(t *testing.T) {
	t.Parallel()
	server := newServer(t, Options{Dir: tempDir(t), MaxConnections: 1 << 30})
	if err := server.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "max_connections") {
		t.Errorf("got error %v", err)
	}
}

func TestDataOfAnotherMajorVersionIsRefused(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	file := filepath.Join(dir, "data", "PG_VERSION")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("9.6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "was written by PostgreSQL 9.6") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got error %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("the folder was touched: %v, %v", left, err)
	}
}

func TestDataWithoutItsPasswordIsRefused(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "password is missing") {
		t.Errorf("got error %v", err)
	}
}

// tempDir is a folder whose parents are open to all, unlike those of t.TempDir.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newServer(t *testing.T, opts Options) *Server {
	t.Helper()
	server, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// start starts the server; unless the test stops it, its end does.
func start(t *testing.T, server *Server) {
	t.Helper()
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, server) })
}

func stop(t *testing.T, server *Server) {
	t.Helper()
	if err := server.Stop(); err != nil {
		t.Error(err)
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the server may be gone
	return conn
}

func exec1(t *testing.T, url, sql string) {
	t.Helper()
	if _, err := connect(t, url).Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func query(t *testing.T, url, sql string) (result string) {
	t.Helper()
	if err := connect(t, url).QueryRow(t.Context(), sql).Scan(&result); err != nil {
		t.Fatal(err)
	}
	return result
}
