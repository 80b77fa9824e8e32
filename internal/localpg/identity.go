package localpg

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// procAttr says as whom PostgreSQL's programs run. They refuse root: for root
// they run in a user namespace in which root's files belong to an ordinary
// user or, where that is not possible, as another user who is given the folder.
// The owner of the folder tells later starts which of the two it was.
func (s *Server) procAttr() (*syscall.SysProcAttr, error) {
	// A group of its own keeps the terminal's Ctrl-C from stopping the server
	// before whoever uses it has finished.
	attr := &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(attr)
	if os.Geteuid() != 0 {
		return attr, nil
	}
	uid, gid, err := owner(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	if uid == 0 {
		if uid, gid, err = serverAccount(); err != nil {
			return nil, err
		}
		if !s.noNamespace && useNamespace(attr, uid, gid, s.bin, s.opts.Dir) {
			return attr, nil
		}
	}
	if err := handOver(s.opts.Dir, uid, gid); err != nil {
		return nil, err
	}
	attr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	return attr, nil
}

// serverAccount returns the unprivileged user that stands in for root. It has
// to be one the system knows by name, because initdb looks that up.
func serverAccount() (uid, gid uint32, err error) {
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("PostgreSQL refuses to run as root, and there is no other user to run it: %w", err)
	}
	u, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	g, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	return uint32(u), uint32(g), errors.Join(uidErr, gidErr)
}

// handOver gives the folder and all in it to the user, if that user can reach it.
func handOver(dir string, uid, gid uint32) error {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		ok, err := mayEnter(parent, uid, gid)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("PostgreSQL refuses to run as root, and user id %d, who has to run it, may not enter %s: move the project to a folder that is open to all, or do not work as root", uid, parent)
		}
		if parent == filepath.Dir(parent) {
			break
		}
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(uid), int(gid))
	})
}

func mayEnter(dir string, uid, gid uint32) (bool, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	ownerUID, ownerGID, err := owner(dir)
	if err != nil {
		return false, err
	}
	switch {
	case uid == ownerUID:
		return info.Mode()&0o100 != 0, nil
	case gid == ownerGID:
		return info.Mode()&0o010 != 0, nil
	default:
		return info.Mode()&0o001 != 0, nil
	}
}

func owner(path string) (uid, gid uint32, err error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, 0, fmt.Errorf("finding the owner of %s: %w", path, err)
	}
	return st.Uid, st.Gid, nil
}
