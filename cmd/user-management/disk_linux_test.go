//go:build faults

package main_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// smallDisk mounts a file system of eight megabytes until the test has ended.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "small-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0755"); err != nil {
		t.Fatalf("a disk that can be filled has to be mounted, which only root may do, in a container with CAP_SYS_ADMIN: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

// fill leaves room for no more than that many bytes on the disk of the file.
func fill(t *testing.T, file string, room int64) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var size int64
	for block := make([]byte, 4096); err == nil; {
		var n int
		n, err = f.Write(block)
		size += int64(n)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Truncate(size - room); err != nil {
		t.Fatal(err)
	}
}

func TestADiskThatIsFullForAWhile(t *testing.T) {
	disk := smallDisk(t) // before the server, which has to have ended before the disk is gone
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn, "LOG_REQUESTS=none"}
	s := serve(t, env...)
	db := connect(t, dsn)

	var data string
	if err := db.Conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&data); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	space, ballast := filepath.Join(disk, "space"), filepath.Join(disk, "ballast")
	if err := os.Mkdir(space, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(space, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
	db.Exec("CREATE TABLESPACE small LOCATION '" + space + "'")
	db.Exec("ALTER TABLE viralpilot.ledger SET TABLESPACE small")

	load := startClients(t, 16, s)
	load.awaitMore(100)
	fill(t, ballast, 64<<10)
	load.awaitAnswers("database_unavailable", 100)
	s.awaitLog("SQLSTATE 53100")
	s.lives(http.StatusOK)
	if _, _, err := s.call(http.StatusOK, http.MethodGet, "/user/rich-0/status", "", ""); err != nil {
		t.Error(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	load.recovered()
	load.onlyAnswers("200", "insufficient_tokens", "overloaded", "database_unavailable")
	load.check(db, env)
	s.stopped()
}
