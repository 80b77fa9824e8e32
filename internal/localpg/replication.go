package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby makes a copy of the running server in a folder of its own and starts
// it as a standby, on another port and with the same password. From then on
// the server confirms a commit only when a standby has it on its disk. The
// standby may be stopped, killed and started like any server; its own Standby
// works once it has been promoted.
func (s *Server) Standby(ctx context.Context, dir string) (*Server, error) {
	if !s.opts.Durable {
		return nil, errors.New("localpg: a server that is not durable waits for no standby")
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	opts := s.opts
	var err error
	if opts.Dir, err = makeDir(dir); err != nil {
		return nil, err
	}
	if err := (&Server{opts: opts}).writePassword(s.password); err != nil {
		return nil, fmt.Errorf("writing the password of the PostgreSQL server: %w", err)
	}
	standby, err := New(opts)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(standby.dataDir()); !errors.Is(err, fs.ErrNotExist) || standby.password != s.password {
		return nil, errors.Join(fmt.Errorf("%s has a PostgreSQL server already", opts.Dir), err)
	}
	standby.primary, standby.noNamespace = s, s.noNamespace
	if err := standby.Start(ctx); err != nil {
		return nil, err
	}
	if err := s.awaitStandby(ctx); err != nil {
		return nil, errors.Join(err, standby.Stop())
	}
	return standby, nil
}

// Promote makes a standby the primary. It returns when it takes writes.
func (s *Server) Promote(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var promoted bool
	err := s.query(ctx, &promoted, "SELECT pg_promote(true, $1)", int(startTimeout.Seconds()))
	if err == nil && !promoted {
		err = errors.New("it is still in recovery")
	}
	if err != nil {
		return fmt.Errorf("promoting the PostgreSQL standby: %w", err)
	}
	return nil
}

// copyPrimary fills the data folder of a standby.
func (s *Server) copyPrimary(ctx context.Context, attr *syscall.SysProcAttr, dir string) error {
	u, err := url.Parse(s.primary.URL(superuser))
	if err != nil {
		return err
	}
	u.User = url.User(superuser)
	program, err := s.clientProgram("pg_basebackup")
	if err != nil {
		return err
	}
	cmd := s.command(attr, program, "-D", dir, "-d", u.String(), "--checkpoint=fast", "--write-recovery-conf")
	cmd.Env = append(cmd.Env, "PGPASSWORD="+s.password) // which all may read in a command line
	if err := s.run(ctx, cmd); err != nil {
		return err
	}
	// Not earlier, or the promoted copy would wait for a standby too.
	return s.primary.requireStandby(ctx)
}

// clientProgram is the path of one of PostgreSQL's other programs, which are in
// the folder that the server's really are in: on PATH it may be a link alone.
func (s *Server) clientProgram(name string) (string, error) {
	server, err := filepath.EvalSymlinks(filepath.Join(s.bin, "postgres"))
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", name, err)
	}
	return filepath.Join(filepath.Dir(server), name), nil
}

// requireStandby makes commits wait for a standby, whether there is one or not.
func (s *Server) requireStandby(ctx context.Context) error {
	var loaded bool
	err := s.query(ctx, nil, "ALTER SYSTEM SET synchronous_standby_names = '*'")
	if err == nil {
		err = s.query(ctx, &loaded, "SELECT pg_reload_conf()")
	}
	if err == nil && !loaded {
		err = errors.New("it does not read its settings")
	}
	if err != nil {
		return fmt.Errorf("making the PostgreSQL server wait for a standby: %w", err)
	}
	return nil
}

// awaitStandby waits until a standby has all there is and commits wait for it.
func (s *Server) awaitStandby(ctx context.Context) error {
	for {
		var synchronous bool
		err := s.query(ctx, &synchronous, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming')")
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the PostgreSQL standby: %w", err)
		case synchronous:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the PostgreSQL standby does not keep up: %w", context.Cause(ctx))
		case <-time.After(pollInterval):
		}
	}
}

// query runs a statement on a connection of its own and reads its one value,
// nil for none.
func (s *Server) query(ctx context.Context, value any, sql string, args ...any) error {
	conn, err := pgx.Connect(ctx, s.URL(superuser))
	if err != nil {
		return err
	}
	if value == nil {
		_, err = conn.Exec(ctx, sql, args...)
	} else {
		err = conn.QueryRow(ctx, sql, args...).Scan(value)
	}
	return errors.Join(err, conn.Close(ctx))
}
