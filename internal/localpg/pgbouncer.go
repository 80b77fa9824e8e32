package localpg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// PgBouncer is a PgBouncer in front of a Server, in transaction pooling: each
// transaction of a client gets the session that is free. It is safe for
// concurrent use.
type PgBouncer struct {
	server *Server
	port   int
	proc   *process
}

// StartPgBouncer starts the pgbouncer of PATH or of /usr/sbin in front of the
// server, which has to run, and returns when it passes connections on. The
// server's superuser can log in to every database. ctx bounds only the start.
func (s *Server) StartPgBouncer(ctx context.Context) (*PgBouncer, error) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil {
			return nil, errors.New("pgbouncer is not installed: the package of that name has it")
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{server: s, port: port}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	config, err := b.writeConfig()
	if err != nil {
		return nil, fmt.Errorf("writing the configuration of pgbouncer: %w", err)
	}
	attr, err := s.procAttr() // after writing: it may hand the files to another user
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.opts.Dir, "pgbouncer.log"), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, config)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = s.opts.Dir, programEnv(), attr
	cmd.Stdout, cmd.Stderr = log, log
	if b.proc, err = launch(cmd, log.Name()); err != nil {
		return nil, err
	}
	if err := awaitReady(ctx, b.URL(superuser), "pgbouncer", b.proc); err != nil {
		return nil, err
	}
	return b, nil
}

// writeConfig writes the configuration and the list of users, and returns the
// path of the first.
func (b *PgBouncer) writeConfig() (string, error) {
	users := filepath.Join(b.server.opts.Dir, "pgbouncer.users")
	if err := os.WriteFile(users, fmt.Appendf(nil, "%q %q\n", superuser, b.server.password), 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(b.server.opts.Dir, "pgbouncer.ini")
	// Few sessions, so that clients do meet those that others have used.
	return path, os.WriteFile(path, fmt.Appendf(nil, `[databases]
* = host=127.0.0.1 port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %s
pool_mode = transaction
default_pool_size = 6
max_client_conn = 1000
`, b.server.port, b.port, users), 0o600)
}

// URL returns the connection string by way of PgBouncer for the superuser.
func (b *PgBouncer) URL(database string) string {
	return loopback(b.port, b.server.password, database)
}

// Address is the host and the port of PgBouncer.
func (b *PgBouncer) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port)) }

// Stop ends all connections and PgBouncer.
func (b *PgBouncer) Stop() error { return b.proc.kill() }
