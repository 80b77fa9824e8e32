//go:build proxy

package app_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// output is what a process printed.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// process is a program that runs until the test ends.
type process struct {
	*exec.Cmd
	ended chan struct{}
	err   error // once it has ended
}

func run(t *testing.T, environment []string, name string, args ...string) *process {
	t.Helper()
	var out output
	p := &process{Cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.Stdout, p.Stderr, p.Env = &out, &out, environment
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		p.err = p.Wait()
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("%s printed:\n%s", name, out.String())
		}
	})
	return p
}

// serveDNS answers questions for addresses as Docker does, with all of them, and returns where.
func serveDNS(t *testing.T, addresses ...[4]byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var answering sync.WaitGroup
	t.Cleanup(func() {
		conn.Close()
		answering.Wait()
	})
	answering.Go(func() {
		packet := make([]byte, 8192)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(packet[:n]); err != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA && q.Name.String() == "user-management." {
				for _, a := range addresses {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
						Body:   &dnsmessage.AResource{A: a},
					})
				}
			}
			if answer, err := m.Pack(); err == nil {
				conn.WriteTo(answer, from)
			}
		}
	})
	return conn.LocalAddr().String()
}

func TestTheProxyGivesRequestsToHealthyReplicas(t *testing.T) {
	t.Parallel()
	dsn := localpgtest.New(t)
	binary := t.TempDir() + "/user-management"
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, module+"cmd/user-management").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Replicas have one port and an address each, as in Docker.
	port := strconv.Itoa(freePort(t))
	var services []*process
	var urls []string
	for n := 1; n <= 3; n++ {
		host := fmt.Sprint("127.0.1.", n)
		urls = append(urls, "http://"+net.JoinHostPort(host, port))
		services = append(services, run(t, []string{
			"DATABASE_URL=" + dsn, "SERVICE_HOST=" + host, "SERVICE_PORT=" + port, "SHUTDOWN_DELAY=5s", "LOG_REQUESTS=errors",
		}, binary))
	}
	c := newClient(t)
	// The proxy takes all that it finds for healthy until it has looked, and compose starts it after them.
	for _, url := range urls {
		localpgtest.Await(t, "a replica is healthy", func() bool {
			status, _, err := c.get(url + "/health")
			return err == nil && status == http.StatusOK
		})
	}
	listen := "127.0.0.1:" + strconv.Itoa(freePort(t))
	environment := append(os.Environ(), "LISTEN="+listen, "REPLICAS=user-management:"+port,
		"RESOLVER="+serveDNS(t, [4]byte{127, 0, 1, 1}, [4]byte{127, 0, 1, 2}, [4]byte{127, 0, 1, 3}))
	run(t, environment, "haproxy", "-db", "-f", "haproxy.cfg")

	proxy := &replica{t: t, url: "http://" + listen}
	// answered reports whether a replica has answered a request for a status.
	answered := func(url string) bool {
		_, metrics, err := c.get(url + "/metrics")
		return err == nil && strings.Contains(metrics, `http_requests_total{method="GET",route="/user/{cognito_user_id}/status",status="200"}`)
	}
	localpgtest.Await(t, "the proxy has found a replica", func() bool {
		status, _, err := c.get(proxy.url + "/health")
		return err == nil && status == http.StatusOK
	})
	c.tester(proxy, "u")
	c.do(http.StatusOK, http.MethodPost, proxy.url+"/user/u/add-tokens", `{"tokens_to_add": 100000000}`)
	localpgtest.Await(t, "all three have answered", func() bool {
		each(20, 10, func(int) { c.do(http.StatusOK, http.MethodGet, proxy.url+"/user/u/status", "") })
		return answered(urls[0]) && answered(urls[1]) && answered(urls[2])
	})

	// One stops in order under load: nobody notices.
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	for i := range 16 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("key-%d-%d", i, n)
				if a, err := c.consume(proxy, "u", key); err != nil || a.Status != http.StatusOK {
					t.Errorf("while a replica stopped: %d %v %v", a.Status, a.Body, err)
				}
				mu.Lock()
				acknowledged[key] = true
				mu.Unlock()
			}
		})
	}
	if err := services[0].Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-services[0].ended
	if services[0].err != nil {
		t.Errorf("the replica that stopped: %v", services[0].err)
	}
	close(stop)
	clients.Wait()
	ledger := connect(t, dsn).keys("u")
	if len(ledger) != len(acknowledged) {
		t.Errorf("%d consumes in the ledger, %d acknowledged", len(ledger), len(acknowledged))
	}
	t.Logf("%d consumes while a replica stopped", len(acknowledged))

	// One is killed: the last one is found soon.
	if err := services[1].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-services[1].ended
	localpgtest.Await(t, "the last one serves", func() bool {
		for range 20 {
			if a, err := c.try(http.MethodGet, proxy.url+"/user/u/status", ""); err != nil || a.Status != http.StatusOK {
				return false
			}
		}
		return true
	})
}
