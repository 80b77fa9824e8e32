//go:build clients

package clients_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/clients"
)

// m is a JSON object.
type m = map[string]any

// driver is a program in one of the languages that makes calls by the client of that language.
type driver struct {
	language string
	in       io.WriteCloser
	out      *bufio.Reader
}

// call is what a driver is told to do. Names of calls and arguments are those of Python.
type call struct {
	Base    string `json:"base"`
	Options m      `json:"options,omitempty"`
	Call    string `json:"call,omitempty"`
	Args    []any  `json:"args,omitempty"`
	Named   m      `json:"named,omitempty"`
	// Take is how many items of an iterator are read at most.
	Take int `json:"take,omitempty"`
	// Block is what is done with the reservation that the call makes: used, settle, release, raise.
	Block m `json:"block,omitzero"`
}

// outcome is what became of a call.
type outcome struct {
	Result    any
	ID        string
	Replayed  bool
	RequestID string `json:"request_id"`
	Error     *failure
}

// failure is the error that a call raised.
type failure struct {
	Class           string
	Bases           []string
	Message         string
	Ours            bool
	Unavailable     bool
	Outcome         string
	Key             string
	RetryAfter      float64 `json:"retry_after"`
	Code, Detail    string
	TokensRemaining int `json:"tokens_remaining"`
	Reservation     string
	Result          any
}

// version is that of the clients under test.
const version = "v1.2.3"

// forEachLanguage runs the test with the drivers of both languages at once.
func forEachLanguage(t *testing.T, test func(t *testing.T, d *driver)) {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	for _, f := range clients.Files(version) {
		if err := os.WriteFile(filepath.Join(dir, f.Name), f.Content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Neither a proxy of the environment nor a password of .netrc may get in between.
	trap := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s went by way of the proxy", r.Method, r.URL)
	}))
	t.Cleanup(trap.Close)
	if err := os.WriteFile(filepath.Join(dir, ".netrc"), []byte("machine 127.0.0.1 login somebody password else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for language, program := range map[string][]string{
		"Python":     {"python3", "testdata/driver.py"},
		"JavaScript": {"node", "testdata/driver.mjs"},
	} {
		t.Run(language, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(program[0], append(program[1:], dir)...)
			cmd.Env = append(os.Environ(), "HOME="+dir, "HTTP_PROXY="+trap.URL, "http_proxy="+trap.URL, "NO_PROXY=", "no_proxy=", "PYTHONDONTWRITEBYTECODE=1")
			var complaints bytes.Buffer
			cmd.Stderr = &complaints
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				in.Close()
				if err := cmd.Wait(); err != nil {
					t.Errorf("%v: %s", err, complaints.String())
				}
			})
			test(t, &driver{language, in, bufio.NewReader(out)})
		})
	}
}

// do makes a call.
func (d *driver) do(t *testing.T, c call) outcome {
	t.Helper()
	line, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.in.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	text, err := d.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the driver has ended: %v", err)
	}
	var o outcome
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return o
}

// want returns the result of a call that must succeed.
func (o outcome) want(t *testing.T) any {
	t.Helper()
	if o.Error != nil {
		t.Fatalf("it failed with %+v", *o.Error)
	}
	return o.Result
}

// wantError returns the error of a call that must fail with one of the class.
func (o outcome) wantError(t *testing.T, class string) failure {
	t.Helper()
	if o.Error == nil {
		t.Fatalf("it succeeded with %v, and not failed with %s", o.Result, class)
	}
	if o.Error.Class != class {
		t.Fatalf("it failed with %+v, and not with %s", *o.Error, class)
	}
	return *o.Error
}

// received is a request that the script got.
type received struct {
	method, uri string
	header      http.Header
	body        string
	at          time.Time
}

// step answers one request.
type step func(w http.ResponseWriter, r *http.Request)

// script is a server that answers each request by the next of its steps; to more than there are it answers 418.
type script struct {
	*httptest.Server
	mu       sync.Mutex
	steps    []step
	requests []received
}

func play(t *testing.T, steps ...step) *script {
	t.Helper()
	s := &script{steps: steps}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.requests = append(s.requests, received{r.Method, r.RequestURI, r.Header.Clone(), string(body), time.Now()})
	next := step(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	if len(s.steps) > 0 {
		next, s.steps = s.steps[0], s.steps[1:]
	}
	s.mu.Unlock()
	next(w, r)
}

// got returns the requests, of which there must be n.
func (s *script) got(t *testing.T, n int) []received {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) != n {
		t.Fatalf("%d requests came, want %d: %+v", len(s.requests), n, s.requests)
	}
	return s.requests
}

// answer answers with JSON; the header is pairs of names and values.
func answer(status int, body any, header ...string) step {
	return func(w http.ResponseWriter, _ *http.Request) {
		contentType := "application/json"
		if status >= 400 {
			contentType = "application/problem+json"
		}
		w.Header().Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		if body != nil {
			_ = json.NewEncoder(w).Encode(body)
		}
	}
}

// problem answers with a problem document.
func problem(status int, code string, more m, header ...string) step {
	body := m{"status": status, "code": code, "title": "A title", "detail": "A sentence.", "request_id": "r1"}
	for name, value := range more {
		body[name] = value
	}
	return answer(status, body, header...)
}

// page answers as a proxy does.
func page(status int, header ...string) step {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<html>")
	}
}

// cut ends the connection without an answer.
func cut(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// half ends the connection in the middle of the answer.
func half(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, `{"tokens_remaining": 1`)
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// garbled answers with what has lost its end, and says nothing of it.
func garbled(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"tokens_remaining": 1`)
}

// hang answers nothing until the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

var ok = answer(http.StatusOK, m{"tokens_remaining": 7}, "X-Request-Id", "r2")

// path is the path of a request as it came.
func (r received) path() string {
	path, _, _ := strings.Cut(r.uri, "?")
	return path
}

// discard is for servers whose clients are meant to hang up.
var discard = log.New(io.Discard, "", 0)
