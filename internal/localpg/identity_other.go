//go:build !linux

package localpg

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent does nothing: only Linux knows it. A server left over by a
// killed process is stopped by the next Start.
func dieWithParent(*syscall.SysProcAttr) {}

// useNamespace reports false: only Linux has user namespaces.
func useNamespace(_ *syscall.SysProcAttr, _, _ uint32, _, _ string) bool { return false }

// commandLine returns the words of a process joined by blanks, nothing when
// there is no such process.
func commandLine(pid int) string {
	out, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// children returns the processes that the process has started.
func children(pid int) (pids []int, err error) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("looking for the children of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(out)) {
		var child, parent int
		if _, err := fmt.Sscan(line, &child, &parent); err != nil {
			return nil, fmt.Errorf("reading the list of processes: %w", err)
		}
		if parent == pid {
			pids = append(pids, child)
		}
	}
	return pids, nil
}
