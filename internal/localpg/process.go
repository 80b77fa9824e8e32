package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// stopTimeout is how long a fast shutdown may take, which writes a
	// checkpoint; quitTimeout how long an immediate one may take.
	stopTimeout = 30 * time.Second
	quitTimeout = 10 * time.Second
)

// process is a child that has been started. err is valid once done is closed.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// launch starts cmd, whose output goes to the file log.
func launch(cmd *exec.Cmd, log string) (*process, error) {
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Linux sends the parent-death signal when the thread that started the
		// child ends, so the thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting PostgreSQL: %w", err)
	}
	return p, nil
}

// stop ends the process: politely, then less so. It returns after its end.
func (p *process) stop() error {
	select {
	case <-p.done:
		return p.failure("the PostgreSQL server")
	default:
	}
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{
		{syscall.SIGINT, stopTimeout},
		{syscall.SIGQUIT, quitTimeout},
	} {
		if err := p.cmd.Process.Signal(step.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stopping PostgreSQL: %w", err)
		}
		select {
		case <-p.done:
			if p.err != nil {
				return p.failure("the PostgreSQL server")
			}
			return nil
		case <-time.After(step.wait):
		}
	}
	return errors.Join(errors.New("the PostgreSQL server did not stop and was killed"), p.kill())
}

// kill ends the process and its children at once. It returns after its end.
func (p *process) kill() error {
	err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("killing PostgreSQL: %w", err)
	}
	return nil
}

// crash ends the server and all that it has started at once. A killed process
// group would be the server alone: each of its children begins a session.
func (p *process) crash() error {
	// While it is stopped it starts no others, and does not end them its way
	// when one is gone.
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing PostgreSQL: %w", err)
	}
	pids, err := children(p.cmd.Process.Pid)
	for _, pid := range pids {
		if killErr := syscall.Kill(pid, syscall.SIGKILL); killErr != nil && !errors.Is(killErr, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("killing PostgreSQL's process %d: %w", pid, killErr))
		}
	}
	if err := errors.Join(err, p.kill()); err != nil {
		return err
	}
	// A process that is still ending would keep the next server from starting.
	deadline := time.Now().Add(quitTimeout)
	for _, pid := range pids {
		for strings.Contains(commandLine(pid), "postgres") {
			if time.Now().After(deadline) {
				return fmt.Errorf("PostgreSQL's process %d was killed and does not end", pid)
			}
			<-time.After(pollInterval)
		}
	}
	return nil
}

// failure tells of a process that has ended by itself.
func (p *process) failure(name string) error {
	return fmt.Errorf("%s ended (%s), its last words:\n%s", name, p.cmd.ProcessState, p.lastLines())
}

// lastLines returns the end of the log.
func (p *process) lastLines() string {
	const most = 8
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}
