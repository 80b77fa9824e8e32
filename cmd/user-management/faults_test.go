//go:build faults

package main_test

import (
	"syscall"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

func TestTheServiceIsKilledUnderLoad(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	load := startClients(t, 16, s)
	for range 3 {
		load.awaitMore(200)
		if code := s.end(syscall.SIGKILL); code != -1 {
			t.Errorf("exit status %d", code)
		}
		load.awaitAnswers("none", 20)
		s = serve(t, append(env, "SERVICE_PORT="+s.port)...)
	}
	load.awaitMore(200)
	load.check(connect(t, dsn), env)
	if code := s.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
}
