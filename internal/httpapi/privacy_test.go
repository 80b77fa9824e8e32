package httpapi_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/viralpilot/user-management/internal/httpapi"
)

// privateWords are what the requests of a test had in them that is nobody's business: ids, names, addresses, keys and
// cursors. None of it may be in the log, whatever becomes of the request.
type privateWords struct {
	mu    sync.Mutex
	words map[string]bool
}

// Members of bodies and query parameters that say who somebody is, and what is written in them.
var (
	privateMember    = regexp.MustCompile(`"(cognito_user_id|username|email)": ?"([^"\\]*)"`)
	privateParameter = []string{"q", "cursor", "email"}
)

func (p *privateWords) note(r *http.Request, body string) {
	words := []string{r.Header.Get("Idempotency-Key"), r.Header.Get("X-API-Key"), r.Header.Get("Authorization")}
	if _, rest, ok := strings.Cut(r.URL.EscapedPath(), "/user/"); ok {
		segment, _, _ := strings.Cut(rest, "/")
		id, _ := url.PathUnescape(segment)
		words = append(words, segment, id)
	}
	if _, key, ok := strings.Cut(r.Header.Get("X-API-Key"), "/"); ok {
		_, id, _ := strings.Cut(key, "/")
		words = append(words, id)
	}
	for _, m := range privateMember.FindAllStringSubmatch(body, -1) {
		words = append(words, m[2])
	}
	for _, name := range privateParameter {
		words = append(words, r.URL.Query()[name]...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.words == nil {
		p.words = map[string]bool{}
	}
	for _, word := range words {
		if len(word) > 3 && len(word) < 200 && word != r.Header.Get("X-Request-Id") { // shorter ones are part of other words
			p.words[word] = true
		}
	}
}

// usual are private words of some test that are also what a line may say.
var usual = []string{"status", "request", "user", "tier"}

func (p *privateWords) checkLog(t *testing.T, log *lockedBuffer) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	text := log.String()
	for word := range p.words {
		if !strings.Contains(text, word) || slices.Contains(usual, word) {
			continue
		}
		alone := regexp.MustCompile(`(^|[^A-Za-z0-9_.-])` + regexp.QuoteMeta(word) + `($|[^A-Za-z0-9_.-])`)
		for line := range strings.Lines(text) {
			if alone.MatchString(line) {
				t.Errorf("%q is in the log: %s", word, line)
				break
			}
		}
	}
}

func TestAUserSeesNeitherActorsNorKeysInTheirOwnLedger(t *testing.T) {
	t.Parallel()
	s, _ := startLocked(t)
	id := s.account("tester", 5)
	s.do(request{
		Method: http.MethodPost, Path: "/user/" + id + "/consume-tokens", Body: m{"tokens_to_consume": 1, "metadata": m{"model": "large"}},
		Header: http.Header{"Idempotency-Key": {"key-of-the-backend"}},
	}).want(http.StatusOK)
	for key, private := range map[string]bool{"end user//" + id: true, "reader/read": false, "cognito:" + id + "/manage/" + id: false} {
		entries := s.as(key).get("/user/" + id + "/ledger").want(http.StatusOK)["entries"].([]any)
		newest := entries[0].(map[string]any)
		want := [2]any{"operator", "key-of-the-backend"}
		if private {
			want = [2]any{}
		}
		if got := [2]any{newest["actor"], newest["idempotency_key"]}; got != want {
			t.Errorf("%s sees %v, want %v", key, got, want)
		}
		if got := newest["metadata"]; !reflect.DeepEqual(got, map[string]any{"model": "large"}) {
			t.Errorf("%s sees the metadata %v", key, got)
		}
	}
}

// requestLine returns the log's line of the request with this id.
func (s *service) requestLine(id string) m {
	s.t.Helper()
	for _, line := range s.lines() {
		if line["msg"] == "request" && line["request_id"] == id {
			return line
		}
	}
	s.t.Fatalf("no line of %s in %s", id, s.log)
	return nil
}

func TestTheLineOfACommandNamesTheEntryThatItWrote(t *testing.T) {
	t.Parallel()
	s, _ := startLocked(t)
	n := 0
	for route := range access {
		if strings.HasPrefix(route, "GET ") || route == "POST /user" || strings.HasSuffix(route, "/extend") {
			continue // a read, without a user in its path, without an entry
		}
		r, id := s.requestFor(route)
		n++
		r.Header = http.Header{"X-Request-Id": {fmt.Sprint("command-", n)}}
		answer := s.do(r)
		newest := s.get("/user/" + id + "/ledger?limit=1").want(http.StatusOK)["entries"].([]any)[0].(map[string]any)
		line := s.requestLine(fmt.Sprint("command-", n))
		if got := strings.Fields(fmt.Sprint(line["entry_id"])); answer.Status >= 300 || got[len(got)-1] != newest["entry_id"] {
			t.Errorf("%s, status %d: the line has the entries %v, want %v", route, answer.Status, got, newest["entry_id"])
		}
	}
	id := s.account("tester", 0)
	s.do(request{Method: http.MethodGet, Path: "/user/" + id, Header: http.Header{"X-Request-Id": {"read"}}}).want(http.StatusOK)
	s.do(request{Method: http.MethodPost, Path: "/user/" + id + "/consume-tokens", Body: m{"tokens_to_consume": 5000}, Header: http.Header{"X-Request-Id": {"refused"}}}).
		want(http.StatusPaymentRequired)
	for _, request := range []string{"read", "refused"} {
		if line := s.requestLine(request); line["entry_id"] != nil {
			t.Errorf("%s has written nothing, and its line says %v", request, line)
		}
	}
}

func TestIDsAreLoggedForSupportOnly(t *testing.T) {
	t.Parallel()
	quiet, _ := startLocked(t)
	log := &lockedBuffer{}
	support := quiet.with(t, func(o *httpapi.Options) { o.Log, o.LogUserIDs = slog.New(slog.NewJSONHandler(log, nil)), true })
	support.log = log
	id := quiet.account("tester", 0)
	for name, c := range map[string]struct {
		by      *service
		request request
		id      any
		caller  string
	}{
		"off":                         {quiet, request{Method: http.MethodPost, Path: "/user/" + id + "/consume-tokens", Body: m{}}, nil, "administrator"},
		"on, a change":                {support, request{Method: http.MethodPost, Path: "/user/" + id + "/add-tokens", Body: m{"tokens_to_add": 1}}, id, "cognito:boss-4711"},
		"on, a change that was wrong": {support, request{Method: http.MethodPost, Path: "/user/" + id + "/add-tokens", Body: m{}}, id, "cognito:boss-4711"},
		"on, a new account":           {support, request{Method: http.MethodPost, Path: "/user", Body: m{"cognito_user_id": id + "-new"}}, id + "-new", "cognito:boss-4711"},
		"on, a read":                  {support, request{Method: http.MethodGet, Path: "/user/" + id}, nil, "cognito:boss-4711"},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.by.in(t).as("cognito:boss-4711/manage+consume/boss-4711")
			c.request.Header = http.Header{"X-Request-Id": {strings.NewReplacer(" ", "-", ",", "").Replace(name)}}
			s.do(c.request)
			line := s.requestLine(c.request.Header.Get("X-Request-Id"))
			if line["cognito_user_id"] != c.id || line["caller"] != c.caller {
				t.Errorf("the line is %v", line)
			}
		})
	}
}
