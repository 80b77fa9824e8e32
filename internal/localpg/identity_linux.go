package localpg

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// dieWithParent makes the kernel stop the server when this process is killed.
func dieWithParent(attr *syscall.SysProcAttr) {
	attr.Pdeathsig = syscall.SIGINT
}

// useNamespace makes attr start programs in a user namespace where root appears
// as the given user, and reports whether that works here: containers often
// forbid it, and then attr is left as it was.
func useNamespace(attr *syscall.SysProcAttr, uid, gid uint32, bin, dir string) bool {
	inside := *attr
	inside.Cloneflags = syscall.CLONE_NEWUSER
	inside.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(uid), HostID: os.Geteuid(), Size: 1}}
	inside.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(gid), HostID: os.Getegid(), Size: 1}}

	probe := exec.Command(filepath.Join(bin, "postgres"), "--version")
	probe.Dir = dir
	probe.SysProcAttr = &inside
	if probe.Run() != nil {
		return false
	}
	*attr = inside
	return true
}

// commandLine returns the words of a process joined by blanks, nothing when
// there is no such process.
func commandLine(pid int) string {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return ""
	}
	return string(bytes.ReplaceAll(content, []byte{0}, []byte{' '}))
}

// children returns the processes that the process has started.
func children(pid int) (pids []int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// Behind the name, which may contain anything, are state and parent.
		rest := bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
		if len(rest) < 2 || string(rest[1]) != strconv.Itoa(pid) {
			continue
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, fmt.Errorf("looking for the children of process %d: %w", pid, err)
		}
		pids = append(pids, child)
	}
	return pids, nil
}
