// Package localpg runs a PostgreSQL server of our own on the loopback address,
// for `make run` and for tests. It starts the programs that are installed on
// the machine, keeps everything in one folder, and leaves no server behind.
// Nothing of it belongs in the shipped binary.
package localpg

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	superuser = "postgres"

	// startTimeout bounds the wait for readiness, which includes crash recovery.
	startTimeout = time.Minute
	pollInterval = 20 * time.Millisecond

	defaultMaxConnections = 200
)

// Options say what kind of server New makes.
type Options struct {
	// Dir is the folder that holds all the server keeps: its data, its log
	// (postgres.log) and its password. It is created when missing; Stop does
	// not remove it. A later server on the same Dir finds the same rows.
	Dir string

	// Durable keeps PostgreSQL's default durability. Without it the server
	// does not wait for the disk: quick, and good for data that may be lost.
	Durable bool

	// MaxConnections is the server's max_connections, 200 when 0.
	MaxConnections int
}

// Server is one PostgreSQL server. Start and Stop may be called in turn any
// number of times; address and password stay the same. It is safe for
// concurrent use.
type Server struct {
	opts     Options
	bin      string
	port     int
	password string

	// primary is the server whose standby this one is, nil for any other.
	primary *Server

	// noNamespace makes root change to another user at once. For tests.
	noNamespace bool

	mu   sync.Mutex
	proc *process // nil while stopped
	lock *os.File // held while proc is not nil
}

// New finds the PostgreSQL programs, chooses a free port and makes sure of the
// password, but starts nothing: URL is valid from here on. It returns
// ErrNoBinaries when PostgreSQL is not installed, and an error that leaves the
// folder as it was when its data was written by another major version.
func New(opts Options) (*Server, error) {
	if opts.Dir == "" {
		return nil, errors.New("localpg: Options.Dir is empty")
	}
	if opts.MaxConnections == 0 {
		opts.MaxConnections = defaultMaxConnections
	}
	bin, err := FindBinaries()
	if err != nil {
		return nil, err
	}
	if opts.Dir, err = makeDir(opts.Dir); err != nil {
		return nil, err
	}
	s := &Server{opts: opts, bin: bin}
	if err := s.checkVersion(); err != nil {
		return nil, err
	}
	if s.password, err = s.readPassword(); err != nil {
		return nil, err
	}
	if s.port, err = freePort(); err != nil {
		return nil, err
	}
	return s, nil
}

// URL returns the connection string of the named database for the superuser,
// whose own database is "postgres".
func (s *Server) URL(database string) string { return loopback(s.port, s.password, database) }

// loopback is the connection string of the superuser on a port of this machine.
func loopback(port int, password, database string) string {
	u := url.URL{
		Scheme:   "postgresql",
		User:     url.UserPassword(superuser, password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Start starts the server, initialising its data the first time, and returns
// when it accepts connections. A server that a killed process left running on
// the same folder is stopped first; one whose process is alive is an error.
// When the server does not come up, the error ends with the last lines of its
// log. ctx bounds only the start.
func (s *Server) Start(ctx context.Context) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		return errors.New("the PostgreSQL server has been started already")
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()

	lock, err := s.acquireLock()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, releaseLock(lock))
		}
	}()
	if err := s.stopLeftover(ctx); err != nil {
		return err
	}
	attr, err := s.procAttr()
	if err != nil {
		return err
	}
	if err := s.initialise(ctx, attr); err != nil {
		return err
	}
	proc, err := s.launch(s.command(attr, filepath.Join(s.bin, "postgres"), s.serverArgs()...))
	if err != nil {
		return err
	}
	if err := awaitReady(ctx, s.URL(superuser), "the PostgreSQL server", proc); err != nil {
		return err
	}
	s.proc, s.lock = proc, lock
	return nil
}

// Stop ends all sessions, shuts the server down and waits for its end. It does
// nothing when the server is not running. It is an error when the server had
// ended before, or had to be forced.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	err := errors.Join(s.proc.stop(), releaseLock(s.lock))
	s.proc, s.lock = nil, nil
	return err
}

// Command is a program that runs as the user of the server, in the server's
// folder and with PostgreSQL's programs before all others on PATH: what its
// administrator does to the folder, also while the server is stopped.
func (s *Server) Command(name string, args ...string) (*exec.Cmd, error) {
	attr, err := s.procAttr()
	if err != nil {
		return nil, err
	}
	postgres, err := s.clientProgram("postgres")
	if err != nil {
		return nil, err
	}
	cmd := s.command(attr, name, args...)
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(postgres)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return cmd, nil
}

// Kill ends all processes of the server at once, as the loss of its machine
// does: no session is told anything, and nothing is written any more. Start
// recovers what was committed. It is an error when the server is not running.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return errors.New("the PostgreSQL server is not running")
	}
	err := errors.Join(s.proc.crash(), releaseLock(s.lock))
	s.proc, s.lock = nil, nil
	return err
}

func (s *Server) dataDir() string      { return filepath.Join(s.opts.Dir, "data") }
func (s *Server) passwordFile() string { return filepath.Join(s.opts.Dir, "password") }
func (s *Server) logFile() string      { return filepath.Join(s.opts.Dir, "postgres.log") }

// makeDir creates the folder and returns its real path, under which a server
// left running on it is recognised.
func makeDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of the PostgreSQL server: %w", err)
	}
	return filepath.EvalSymlinks(dir)
}

// checkVersion refuses data that the programs found cannot read.
func (s *Server) checkVersion() error {
	data, err := os.ReadFile(filepath.Join(s.dataDir(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the version of the PostgreSQL data: %w", err)
	}
	have, err := majorVersion(s.bin)
	if err != nil {
		return err
	}
	if want := strings.TrimSpace(string(data)); want != have {
		return fmt.Errorf("%s was written by PostgreSQL %s but %s holds version %s: set PG_BINDIR to the programs of version %s, or move the folder away to begin anew",
			s.dataDir(), want, s.bin, have, want)
	}
	return nil
}

// readPassword returns the password kept beside the data, making one up for a
// new folder.
func (s *Server) readPassword() (string, error) {
	password, err := os.ReadFile(s.passwordFile())
	if err == nil {
		return strings.TrimSpace(string(password)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the password of the PostgreSQL server: %w", err)
	}
	if _, err := os.Stat(s.dataDir()); err == nil {
		return "", fmt.Errorf("%s is missing, and nothing else opens the data beside it: put it back, or move the folder away to begin anew", s.passwordFile())
	}
	if err := s.writePassword(rand.Text()); err != nil {
		return "", fmt.Errorf("writing the password of the PostgreSQL server: %w", err)
	}
	// Read, not remembered: another process may have been first.
	password, err = os.ReadFile(s.passwordFile())
	return strings.TrimSpace(string(password)), err
}

// writePassword links a complete file into place, so that two processes that
// start on a new folder at once end up with one password.
func (s *Server) writePassword(password string) error {
	f, err := os.CreateTemp(s.opts.Dir, "password-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(password + "\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), s.passwordFile()); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// freePort picks a port below the range from which Linux and macOS take the
// ports of outgoing connections, so that the port stays free between Stop and
// Start while other programs connect here and there.
func freePort() (int, error) {
	const first, count = 15000, 15000
	var err error
	for range 100 {
		n, randErr := rand.Int(rand.Reader, big.NewInt(count))
		if randErr != nil {
			return 0, randErr
		}
		port := first + int(n.Int64())
		var l net.Listener
		if l, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port for PostgreSQL on 127.0.0.1: %w", err)
}

// acquireLock keeps a second process off the folder. The lock goes when this
// process ends, however it ends, and the server does not inherit it: that
// tells a server in use from one that was left over.
func (s *Server) acquireLock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.opts.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the folder of the PostgreSQL server: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = fmt.Errorf("the PostgreSQL data in %s is in use by a process that is still running: stop that one first", s.opts.Dir)
	case err != nil:
		err = fmt.Errorf("locking %s: %w", f.Name(), err)
	default:
		return f, nil
	}
	return nil, errors.Join(err, f.Close())
}

// releaseLock unlocks before it closes: a child that another goroutine has
// forked and that has not come to its exec yet still has the file open.
func releaseLock(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}

// stopLeftover stops a server that outlived its process: elsewhere than on
// Linux nothing else does, and on Linux it may still be shutting down.
func (s *Server) stopLeftover(ctx context.Context) error {
	content, err := os.ReadFile(filepath.Join(s.dataDir(), "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for a PostgreSQL server left over: %w", err)
	}
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return nil // half written; the server itself judges it
	}
	// The number may belong to another program by now, hence the command line.
	running := func() bool { return strings.Contains(commandLine(pid), " -D "+s.dataDir()+" ") }
	if !running() {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping the PostgreSQL server left over as process %d: %w", pid, err)
	}
	for running() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the PostgreSQL server left over as process %d does not stop: %w", pid, context.Cause(ctx))
		case <-time.After(pollInterval):
		}
	}
	return nil
}

// initialise makes the data folder the first time. It works under another name
// until all is done, so that what an interrupted run leaves is never started.
func (s *Server) initialise(ctx context.Context, attr *syscall.SysProcAttr) error {
	if _, err := os.Stat(s.dataDir()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unfinished := s.dataDir() + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	fill := s.initdb
	if s.primary != nil {
		fill = s.copyPrimary
	}
	if err := fill(ctx, attr, unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, s.dataDir())
}

func (s *Server) initdb(ctx context.Context, attr *syscall.SysProcAttr, dir string) error {
	args := []string{
		"-D", dir, "-U", superuser, "-E", "UTF8", "--locale=C",
		"--auth=scram-sha-256", "--pwfile=" + s.passwordFile(),
	}
	if !s.opts.Durable {
		args = append(args, "--no-sync")
	}
	return s.run(ctx, s.command(attr, filepath.Join(s.bin, "initdb"), args...))
}

func (s *Server) serverArgs() []string {
	args := []string{
		"-D", s.dataDir(),
		"-c", "listen_addresses=127.0.0.1",
		"-c", "port=" + strconv.Itoa(s.port),
		// TCP is enough, and socket paths have a limit of about 100 bytes.
		"-c", "unix_socket_directories=",
		"-c", "max_connections=" + strconv.Itoa(s.opts.MaxConnections),
	}
	if !s.opts.Durable {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
	}
	if s.primary != nil {
		// How long it may be deaf to its promotion once the primary is gone.
		args = append(args, "-c", "wal_retrieve_retry_interval=100ms")
	}
	return args
}

// command is one of PostgreSQL's programs, which has not been started yet.
func (s *Server) command(attr *syscall.SysProcAttr, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = s.opts.Dir
	cmd.Env = programEnv()
	cmd.SysProcAttr = attr
	return cmd
}

// launch starts a program with its output in the log file.
func (s *Server) launch(cmd *exec.Cmd) (*process, error) {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of the PostgreSQL server: %w", err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	return launch(cmd, s.logFile())
}

// run starts a program that makes the data folder and waits for its end.
func (s *Server) run(ctx context.Context, cmd *exec.Cmd) error {
	proc, err := s.launch(cmd)
	if err != nil {
		return err
	}
	select {
	case <-proc.done:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("making the PostgreSQL data folder: %w", context.Cause(ctx)), proc.kill())
	}
	if proc.err != nil {
		return proc.failure(filepath.Base(cmd.Path))
	}
	return nil
}

// programEnv is our environment without what would configure the server behind
// our back. LC_ALL keeps its messages English, and macOS needs it set.
func programEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "LC_ALL=") {
			env = append(env, v)
		}
	}
	return append(env, "LC_ALL=C")
}

// awaitReady waits until what listens at the URL accepts connections. Where it
// returns an error, the process that is to listen there has ended.
func awaitReady(ctx context.Context, url, name string, proc *process) error {
	for {
		conn, err := pgx.Connect(ctx, url)
		if err == nil {
			err = conn.Close(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-proc.done:
			return proc.failure(name)
		case <-ctx.Done():
			err := fmt.Errorf("%s does not accept connections: %w\n%s", name, context.Cause(ctx), proc.lastLines())
			return errors.Join(err, proc.stop())
		case <-time.After(pollInterval):
		}
	}
}
