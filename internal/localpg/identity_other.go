//go:build !linux

package localpg

import (
	"os/exec"
	"strconv"
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
