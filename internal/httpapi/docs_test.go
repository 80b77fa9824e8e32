package httpapi_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/httpapi"
)

// docsFiles are the paths of the documentation that have content.
var docsFiles = []string{
	"/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/docs.css", "/docs/docs.js",
	"/docs/favicon-32x32.png", "/openapi.json", "/openapi.yaml",
	"/clients/user_management.py", "/clients/user_management.md", "/clients/user-management.mjs", "/clients/user-management.md",
	"/console", "/console/main.js", "/console/console.css", "/console/icon.svg",
}

func TestBothFormsOfTheDocumentSayTheSame(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *httpapi.Options) { o.Version = `v1.2.3-"dirty"` })
	var fromJSON, fromYAML any
	if err := json.Unmarshal(s.get("/openapi.json").Body, &fromJSON); err != nil {
		t.Fatal(err)
	}
	text := s.get("/openapi.yaml").Body
	if err := yaml.Unmarshal(text, &fromYAML); err != nil {
		t.Fatal(err)
	}
	// By way of JSON, so that numbers are of the same type.
	again, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &fromYAML); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(fromJSON, fromYAML) {
		t.Error("/openapi.json and /openapi.yaml differ")
	}
	if got := fromJSON.(map[string]any)["info"].(map[string]any)["version"]; got != `v1.2.3-"dirty"` {
		t.Errorf("info.version is %v", got)
	}
	if bytes.Contains(text, []byte("VERSION")) {
		t.Error("the version's placeholder is left in the document")
	}
}

func TestTheJSONFormKeepsTheOrder(t *testing.T) {
	t.Parallel()
	document := start(t).get("/openapi.json").Body
	last := 0
	for _, member := range []string{`"openapi":`, `"info":`, `"tags":`, `"paths":`, `"/user/{cognito_user_id}/status":`, `"/user":`, `"/metrics":`, `"components":`} {
		at := bytes.Index(document, []byte(member))
		if at < last {
			t.Errorf("%s is out of order", member)
		}
		last = at
	}
}

func TestDocsFilesAreKnownByTheirTags(t *testing.T) {
	t.Parallel()
	s := start(t)
	tags := map[string]string{}
	for _, path := range docsFiles {
		tag := s.get(path).Header.Get("ETag")
		if other, ok := tags[tag]; ok {
			t.Errorf("%s and %s have the same tag", path, other)
		}
		tags[tag] = path
		for known, want := range map[string]int{
			tag:                        http.StatusNotModified,
			`"other", W/` + tag:        http.StatusNotModified,
			"*":                        http.StatusNotModified,
			`"other"`:                  http.StatusOK,
			strings.Trim(tag, `"`):     http.StatusOK,
			strings.ToUpper(tag) + `x`: http.StatusOK,
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				got := s.do(request{Method: method, Path: path, Header: http.Header{"If-None-Match": {known}}})
				if got.Status != want {
					t.Errorf("%s %s, If-None-Match %s: status %d, want %d", method, path, known, got.Status, want)
				}
			}
		}
	}
}

func TestANewVersionHasANewTag(t *testing.T) {
	t.Parallel()
	old := start(t)
	updated := old.with(t, func(o *httpapi.Options) { o.Version = "next" })
	for _, path := range []string{"/openapi.json", "/openapi.yaml", "/clients/user_management.py", "/clients/user-management.mjs"} {
		if tag := old.get(path).Header.Get("ETag"); tag == updated.get(path).Header.Get("ETag") {
			t.Errorf("%s has the tag %s in both versions", path, tag)
		}
	}
}

func TestAssetsAreCompressedForThoseWhoCanUnpackThem(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"} {
		plain := s.get(path)
		for accepted, compressed := range map[string]bool{
			"gzip": true, "deflate, GZIP;q=0.5, br": true, "gzip;q=1": true,
			"gzip;q=0": false, "gzip; q=0.000": false, "br": false, "x-gzip": false,
		} {
			got := s.do(request{Method: http.MethodGet, Path: path, Header: http.Header{"Accept-Encoding": {accepted}}})
			body := got.Body
			if encoding := got.Header.Get("Content-Encoding"); (encoding == "gzip") != compressed {
				t.Errorf("%s, Accept-Encoding %s: encoding %q", path, accepted, encoding)
				continue
			}
			if compressed {
				r, err := gzip.NewReader(bytes.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				if body, err = io.ReadAll(r); err != nil {
					t.Fatal(err)
				}
				if got.Header.Get("ETag") == plain.Header.Get("ETag") {
					t.Errorf("%s has one tag for different bytes", path)
				}
			}
			if !bytes.Equal(body, plain.Body) {
				t.Errorf("%s, Accept-Encoding %s: another content", path, accepted)
			}
			if got.Header.Get("Vary") == "" {
				t.Errorf("%s does not say that it varies", path)
			}
		}
	}
}

func TestHeadOfADocsFileHasTheHeadersOfGet(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range docsFiles {
		header := http.Header{"X-Request-Id": {"one"}, "Accept-Encoding": {"gzip"}}
		get := s.do(request{Method: http.MethodGet, Path: path, Header: header})
		head := s.do(request{Method: http.MethodHead, Path: path, Header: header})
		if !reflect.DeepEqual(get.Header, head.Header) {
			t.Errorf("%s: GET has %v, HEAD has %v", path, get.Header, head.Header)
		}
	}
}

func TestThePageRunsItsOwnScriptsOnly(t *testing.T) {
	t.Parallel()
	s := start(t)
	got := s.get("/docs")
	page, policy := string(got.Body), got.Header.Get("Content-Security-Policy")
	for _, directive := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, directive) {
			t.Errorf("the policy lacks %s: %s", directive, policy)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") || strings.Contains(policy, "*") {
		t.Errorf("the policy allows too much: %s", policy)
	}
	if regexp.MustCompile(`<script>|\son\w+=`).MatchString(page) {
		t.Errorf("the page has a script within, which the policy forbids: %s", page)
	}
	for _, link := range regexp.MustCompile(`(?:src|href)="(.*?)"`).FindAllStringSubmatch(page, -1) {
		if s.get(link[1]).Status != http.StatusOK {
			t.Errorf("the page refers to %s, which is not there", link[1])
		}
	}
	if strings.Contains(page, "//") || strings.Contains(page, "style=") || strings.Contains(page, "<style") {
		t.Errorf("the page has what the policy forbids: %s", page)
	}
}

func TestRedocLeadsToThePage(t *testing.T) {
	t.Parallel()
	s := start(t)
	got := s.get("/redoc")
	got.want(http.StatusFound)
	if location := got.Header.Get("Location"); location != "/docs" {
		t.Errorf("Location is %q", location)
	}
}

func TestThePageSaysWhetherTheServiceIsOpen(t *testing.T) {
	t.Parallel()
	open := start(t)
	locked := open.with(t, func(o *httpapi.Options) {
		o.Authenticate = func(context.Context, http.Header) (auth.Principal, error) { return auth.Principal{}, nil }
	})
	for access, s := range map[string]*service{"open": open, "locked": locked} {
		if page := string(s.get("/docs").Body); !strings.Contains(page, `data-access="`+access+`"`) {
			t.Errorf("the page of a service that is %s does not say so: %s", access, page)
		}
	}
	if open.get("/docs").Header.Get("ETag") == locked.get("/docs").Header.Get("ETag") {
		t.Error("both pages have the same tag")
	}
}
