package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/httpapi"
)

// The headers with which browsers send what a page asks for. Sec-Fetch-Site goes to https and to localhost alone.
const (
	chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
	evil   = "https://evil.example"
	listed = "https://app.example.com"
	own    = "http://127.0.0.1:8001"
)

// sent returns the header of a request from a browser, of pairs of names and values.
func sent(pairs ...string) http.Header {
	h := http.Header{"User-Agent": {chrome}}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

func TestAPageOfAnotherOriginChangesNothingWhileTheServiceIsOpen(t *testing.T) {
	t.Parallel()
	wild, db := startSQL(t)
	narrow := wild.with(t, func(o *httpapi.Options) { o.CORSOrigins = []string{listed} })
	both := wild.with(t, func(o *httpapi.Options) { o.CORSOrigins = []string{"*", listed} })
	pattern := wild.with(t, func(o *httpapi.Options) { o.CORSOrigins = []string{"https://*.example.com"} })
	locked := wild.with(t, func(o *httpapi.Options) { o.Authenticate = authenticate }).as(operator)
	for _, c := range []struct {
		outcome string
		by      *service
		header  http.Header
		allowed bool
	}{
		{"another origin", narrow, sent("Origin", evil, "Sec-Fetch-Site", "cross-site"), false},
		{"another origin, whatever * says", wild, sent("Origin", evil, "Sec-Fetch-Site", "cross-site"), false},
		{"another origin without Sec-Fetch-Site", wild, sent("Origin", evil), false},
		{"another port of the same host", wild, sent("Origin", "http://127.0.0.1:3000", "Sec-Fetch-Site", "same-site"), false},
		{"another port without Sec-Fetch-Site", wild, sent("Origin", "http://127.0.0.1:3000"), false},
		{"a sandboxed page", wild, sent("Origin", "null", "Sec-Fetch-Site", "cross-site"), false},
		{"a file", wild, sent("Origin", "null"), false},
		{"an image or a form that hides its origin", wild, sent("Sec-Fetch-Site", "cross-site"), false},
		{"an origin that is listed by a pattern only", pattern, sent("Origin", listed, "Sec-Fetch-Site", "cross-site"), false},
		{"an origin that begins like a listed one", both, sent("Origin", listed+".evil.example"), false},
		{"a listed host on another scheme", both, sent("Origin", "http://app.example.com"), false},
		{"a host name that was rebound", wild, sent("Origin", "http://rebound.example:8001", "Host", "rebound.example:8001", "Sec-Fetch-Site", "same-origin"), false},
		{"a host name that was rebound, over plain HTTP", wild, sent("Origin", "http://rebound.example:8001", "Host", "rebound.example:8001"), false},
		{"a host name that was rebound and says nothing", wild, sent("Host", "rebound.example:8001"), false},
		{"a host name in capitals that was rebound", wild, sent("Host", "REBOUND.example"), false},
		{"a host name with a dot at its end", wild, sent("Host", "rebound.:8001"), false},
		{"a listed origin", narrow, sent("Origin", listed, "Sec-Fetch-Site", "cross-site"), true},
		{"a listed origin beside *", both, sent("Origin", listed), true},
		{"the service's own page", wild, sent("Origin", own, "Sec-Fetch-Site", "same-origin"), true},
		{"the service's own page, where it is told by its host alone", wild, sent("Origin", "http://192.168.1.5:8001", "Host", "192.168.1.5:8001"), true},
		{"its page by IPv6", wild, sent("Origin", "http://[::1]:8001", "Host", "[::1]:8001"), true},
		{"its page by localhost", wild, sent("Origin", "http://localhost:8001", "Host", "localhost:8001", "Sec-Fetch-Site", "same-origin"), true},
		{"its page by a name without a dot", wild, sent("Origin", "http://user-management:8001", "Host", "user-management:8001"), true},
		{"its page by a listed host", both, sent("Origin", "https://app.example.com", "Host", "app.example.com", "Sec-Fetch-Site", "same-origin"), true},
		{"somebody who types", wild, sent("Sec-Fetch-Site", "none"), true},
		{"a backend", wild, http.Header{"User-Agent": {"python-requests/2.32.3"}}, true},
		{"a backend by a name with dots", wild, http.Header{"User-Agent": {"curl/8.5.0"}, "Host": {"users.prod.svc.cluster.local:8001"}}, true},
		{"a page with a key where keys are asked for", locked, sent("Origin", evil, "Host", "users.example.com", "Sec-Fetch-Site", "cross-site"), true},
	} {
		t.Run(c.outcome, func(t *testing.T) { // one after the other: each looks at all that is stored
			by, id := c.by.in(t), wild.in(t).account("tester", 5)
			before := snapshot(t, db)
			for _, r := range []request{
				{Method: http.MethodPost, Path: "/user/" + id + "/add-tokens", Body: m{"tokens_to_add": 1}},
				{Method: http.MethodPut, Path: "/user/" + id + "/tier", Body: m{"tier": "agency"}},
				{Method: http.MethodPatch, Path: "/user/" + id, Body: m{"username": "Eve"}},
				{Method: http.MethodPost, Path: "/user", Body: m{"cognito_user_id": id + "-new"}},
				{Method: http.MethodDelete, Path: "/user/" + id},
			} {
				r.Header = c.header.Clone()
				if r.Body != nil {
					r.Header.Set("Content-Type", "application/json")
				}
				answer := by.do(r)
				if c.allowed && answer.Status >= http.StatusBadRequest {
					t.Errorf("%s is answered with %d %s", r.Method, answer.Status, answer.Body)
				} else if !c.allowed {
					answer.wantProblem(http.StatusForbidden, "cross_site")
				}
			}
			if changed := snapshot(t, db) != before; changed != c.allowed {
				t.Errorf("something was changed: %v", changed)
			}
		})
	}
}

func TestAFormOfAnotherOriginChangesNothing(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	id := s.account("tester", 5)
	before := snapshot(t, db)
	for _, media := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""} {
		h := sent("Origin", evil)
		if media != "" {
			h.Set("Content-Type", media)
		}
		s.do(request{Method: http.MethodPost, Path: "/user/" + id + "/add-tokens", Header: h, Body: `{"tokens_to_add": 1}`}).
			wantProblem(http.StatusForbidden, "cross_site")
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
}

func TestWhatAPageOfAnotherOriginReads(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t, func(o *httpapi.Options) { o.CORSOrigins = []string{"*", listed} })
	id := s.account("tester", 5)
	before := snapshot(t, db)
	for from, header := range map[string]http.Header{
		"an image":         sent("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "image"),
		"another origin":   sent("Origin", evil),
		"another port":     sent("Sec-Fetch-Site", "same-site"),
		"the origin null":  sent("Origin", "null"),
		"a sandboxed page": sent("Origin", "null", "Sec-Fetch-Site", "cross-site"),
	} {
		t.Run(from, func(t *testing.T) {
			get := func(path string) response {
				return s.in(t).do(request{Method: http.MethodGet, Path: path, Header: header.Clone()})
			}
			get("/user/" + id).want(http.StatusOK) // as the earlier service let it
			get("/user/" + id + "/status").want(http.StatusOK)
			get("/tiers").want(http.StatusOK)
			get("/health").want(http.StatusOK)
			get("/user/"+strings.ReplaceAll("of "+from, " ", "-")).wantProblem(http.StatusNotFound, "user_not_found")
			get("/users").wantProblem(http.StatusForbidden, "cross_site")
		})
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
	for i, header := range []http.Header{
		sent("Origin", listed), sent("Sec-Fetch-Site", "same-origin"), sent("Sec-Fetch-Site", "none"), {},
	} {
		s.do(request{Method: http.MethodGet, Path: fmt.Sprint("/user/welcome-", i), Header: header}).want(http.StatusOK)
		s.do(request{Method: http.MethodGet, Path: "/users", Header: header}).want(http.StatusOK)
	}
}

func TestAHostNameThatWasReboundReachesNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/", "/health", "/livez", "/tiers", "/docs", "/openapi.json", "/users", "/user/u", "/user/u/status", "/metrics"} {
		s.do(request{Method: http.MethodGet, Path: path, Header: sent("Host", "rebound.example:8001")}).wantProblem(http.StatusForbidden, "cross_site")
	}
}
