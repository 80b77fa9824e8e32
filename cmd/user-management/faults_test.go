//go:build faults || soak

package main_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// recovery is the longest that a service may take to serve again once a fault is over, or to answer during one. A busy
// machine does not come near it.
const recovery = 10 * time.Second

// recovered waits until commands are acknowledged again after a fault that has just ended.
func (c *clients) recovered() {
	c.t.Helper()
	took := c.awaitMore(1)
	if took > recovery {
		c.t.Errorf("served again %s after the fault", took)
	}
	c.t.Logf("served again %s after the fault", took.Round(time.Millisecond))
	c.awaitMore(200)
}

// stopped ends the service, which has lived through the fault, and wants a clean stop.
func (s *service) stopped() {
	s.t.Helper()
	if code := s.end(syscall.SIGTERM); code != 0 {
		s.t.Errorf("exit status %d", code)
	}
}

// lives wants the answer of /health, and that of a process that lives, in less time than a probe waits.
func (s *service) lives(health int) {
	s.t.Helper()
	for path, want := range map[string]int{"/livez": http.StatusOK, "/health": health} {
		begin := time.Now()
		if _, _, err := s.call(want, http.MethodGet, path, "", ""); err != nil {
			s.t.Error(err)
		}
		if took := time.Since(begin); took > recovery {
			s.t.Errorf("%s took %s", path, took)
		}
	}
}

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
		load.awaitAnswers(notAccepted, 20)
		s = serve(t, append(env, "SERVICE_PORT="+s.port)...)
	}
	load.recovered()
	load.check(connect(t, dsn), env)
	s.stopped()
}

// dial opens a connection past the HTTP client and writes the text to it.
func (s *service) dial(text string) *net.TCPConn {
	s.t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+s.port)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// request is a command as it goes over the wire.
func request(name string, cmd *command, fields ...string) (header, body string) {
	body = consumeBody(name)
	fields = append(fields, "Host: service", "Content-Type: application/json", fmt.Sprint("Content-Length: ", len(body)))
	if cmd.keyed {
		fields = append(fields, "Idempotency-Key: "+name)
	}
	return "POST /user/" + cmd.account + "/consume-tokens HTTP/1.1\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n", body
}

// terminate sends SIGTERM, calls then once the service says that it stops, and returns the requests that it handled by
// their ids, with the status that it answered.
func (s *service) terminate(then func()) map[string]int {
	s.t.Helper()
	if len(s.log) == cap(s.log) {
		s.t.Fatal("the log is not complete")
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	handled := map[string]int{}
	for line := range s.log {
		var record struct {
			Msg       string
			RequestID string `json:"request_id"`
			Status    int
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			s.t.Fatal(err)
		}
		switch {
		case record.Msg == "request":
			handled[record.RequestID] = record.Status
		case strings.HasPrefix(record.Msg, "stopping"):
			then()
		}
	}
	if code := s.wait(); code != 0 {
		s.t.Errorf("exit status %d after SIGTERM", code)
	}
	return handled
}

func TestSIGTERMUnderLoadCutsOffNothingThatWasAccepted(t *testing.T) {
	const timeout = 5 * time.Second
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn, "SHUTDOWN_TIMEOUT=" + timeout.String()}
	replicas := [2]*service{serve(t, env...), serve(t, env...)}
	load := startClients(t, 16, replicas[:]...)
	var handled []map[string]int
	for i, s := range replicas {
		load.awaitMore(200)

		// One that has begun and takes its time: the body comes after the stop has begun.
		name, cmd := fmt.Sprint("begun-", i), &command{account: "rich-0", told: told{outcome: acknowledged}}
		header, body := request(name, cmd, "Expect: 100-continue")
		op := load.call(cmd)
		op.Send()
		begun := s.dial(header)
		reader := bufio.NewReader(begun)
		if line, err := reader.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
			t.Fatalf("%q %v", line, err)
		}
		if _, err := reader.ReadString('\n'); err != nil {
			t.Fatal(err)
		}

		begin := time.Now()
		handled = append(handled, s.terminate(func() {
			if _, err := io.WriteString(begun, body); err != nil {
				t.Error(err)
			}
		}))
		if took := time.Since(begin); took > timeout {
			t.Errorf("it stopped within %s", took)
		}
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		var told answer
		if err == nil {
			told, err = readAnswer(text)
		}
		if err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("%s %q %v", res.Status, text, err)
		}
		cmd.receipt = told.receipt
		op.Answered(told.history())
		load.note(name, cmd)
		load.awaitAnswers(notAccepted, 20)
		replicas[i] = serve(t, append(env, "SERVICE_PORT="+s.port)...)
	}
	load.recovered()
	// A connection that rests may be closed just when a request is on its way, which is then not handled at all.
	sum := load.check(connect(t, dsn), env)
	if sum.unknownDone > 0 {
		t.Errorf("%d commands were done and not answered", sum.unknownDone)
	}
	for i := range handled {
		if len(handled[i]) < 50 {
			t.Errorf("replica %d logged %d requests", i, len(handled[i]))
		}
		for id, status := range handled[i] {
			if strings.HasPrefix(id, "command-") && !load.answered[id] {
				t.Errorf("%s was handled (%d) and its client had no complete answer", id, status)
			}
		}
	}
	for _, s := range replicas {
		s.stopped()
	}
}

func TestClientsThatHangUpLeaveNothingHalfDone(t *testing.T) {
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn}
	s := serve(t, env...)
	load := startClients(t, 8, s)
	load.awaitMore(100)
	comeBack := map[string]*command{}
	for i := range 160 {
		name, cmd := fmt.Sprint("hangup-", i), &command{account: fmt.Sprint("rich-", i%richAccounts)}
		cmd.keyed = i%4 == 3
		header, body := request(name, cmd)
		sent := header + body
		switch i % 4 {
		case 0: // nothing but the header, or a part of it
			sent, cmd.outcome = header[:len(header)-2*(i/4%2)], refused
		case 1: // half a body
			sent, cmd.outcome = header+body[:len(body)/2], refused
		case 3: // all of it, and the client comes back with the key
			comeBack[name] = cmd
		}
		load.note(name, cmd)
		if cmd.outcome == unknown {
			load.call(cmd).Send()
		}
		conn := s.dial(sent)
		// So that some are at work already, and others get a reset in place of an end.
		<-time.After(time.Duration(i%16) * time.Millisecond / 2)
		if i/8%2 == 0 {
			if err := conn.SetLinger(0); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s.lives(http.StatusOK)
	load.awaitMore(100)
	for name, cmd := range comeBack {
		load.run(name, cmd, 0)
	}
	load.onlyAnswers("200", "insufficient_tokens")
	db := connect(t, dsn)
	sum := load.check(db, env)
	t.Logf("%d of 40 were done that were sent without a key and given up", sum.unknownDone)
	if sum.unknown != 40 {
		t.Errorf("%d commands without an outcome", sum.unknown)
	}
	s.stopped()
}

func TestAHundredSlowClientsDoNotHarmTheOthers(t *testing.T) {
	const header, whole = time.Second, 2 * time.Second
	dsn := localpgtest.Server(t).URL("postgres")
	env := []string{"DATABASE_URL=" + dsn, "HTTP_READ_HEADER_TIMEOUT=" + header.String(), "HTTP_READ_TIMEOUT=" + whole.String()}
	s := serve(t, env...)
	load := startClients(t, 8, s)
	load.awaitMore(100)
	var slow sync.WaitGroup
	for i := range 100 {
		name, cmd := fmt.Sprint("slow-", i), &command{account: "rich-0", told: told{outcome: refused}}
		load.note(name, cmd)
		text, body := request(name, cmd, "X-Slow: "+strings.Repeat("a", 1000))
		begun, timeout := strings.Index(text, "aaa"), header
		if i%2 == 1 {
			text, body = request(name, cmd)
			begun, timeout = len(text), whole
		}
		begin := time.Now()
		conn := s.dial(text[:begun])
		slow.Go(func() {
			// Bytes now and then until the service has closed the connection.
			for _, b := range []byte((text + body)[begun:]) {
				<-time.After(100 * time.Millisecond)
				if _, err := conn.Write([]byte{b}); err != nil {
					break
				}
			}
			took := time.Since(begin)
			_, err := io.Copy(io.Discard, conn)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) || took < timeout/2 || took > timeout+recovery {
				t.Errorf("%s was cut off after %s: %v", name, took, err)
			}
		})
	}
	took := load.awaitMore(200)
	s.lives(http.StatusOK)
	t.Logf("200 more commands took %s while 100 clients were slow", took.Round(time.Millisecond))
	slow.Wait()
	load.awaitMore(100)
	load.onlyAnswers("200", "insufficient_tokens")
	load.check(connect(t, dsn), env)
	s.stopped()
}
