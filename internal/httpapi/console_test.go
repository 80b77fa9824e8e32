package httpapi_test

import (
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/console"
)

func TestTheConsoleLoadsNothingButItsOwnFiles(t *testing.T) {
	t.Parallel()
	s := start(t)
	got := s.get("/console")
	const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
	if is := got.Header.Get("Content-Security-Policy"); is != policy {
		t.Errorf("the policy is %s", is)
	}
	page := string(got.Body)
	links := regexp.MustCompile(`(?:src|href)="(.*?)"`).FindAllStringSubmatch(page, -1)
	if len(links) < 4 {
		t.Fatalf("the page refers to nothing: %s", page)
	}
	for _, link := range links {
		if !strings.HasPrefix(link[1], "#") && s.get(link[1]).Status != http.StatusOK {
			t.Errorf("the page refers to %s, which is not there", link[1])
		}
	}
	for _, forbidden := range []string{"//", "style=", "<style", "<script>", "onclick="} {
		if strings.Contains(page, forbidden) {
			t.Errorf("the page has %q, which the policy forbids", forbidden)
		}
	}
}

func TestTheModulesOfTheConsoleFindEachOther(t *testing.T) {
	t.Parallel()
	s := start(t)
	imports := regexp.MustCompile(`from '\./(.*?)'`)
	for _, name := range consoleNames(t) {
		if !strings.HasSuffix(name, ".js") {
			continue
		}
		got := s.get("/console/" + name)
		if mediaType := got.Header.Get("Content-Type"); mediaType != "text/javascript; charset=utf-8" {
			t.Errorf("%s is served as %s, which no browser runs", name, mediaType)
		}
		for _, imported := range imports.FindAllStringSubmatch(string(got.Body), -1) {
			if s.get("/console/"+imported[1]).Status != http.StatusOK {
				t.Errorf("%s imports %s, which is not there", name, imported[1])
			}
		}
	}
}

// Values of users get into the page as text only, so there must be no way to give it markup.
func TestTheConsoleMakesNoMarkupOfTexts(t *testing.T) {
	t.Parallel()
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc|\beval\b|new Function|javascript:`)
	for _, name := range consoleNames(t) {
		if !strings.HasSuffix(name, ".js") || strings.HasPrefix(name, "uPlot") {
			continue
		}
		content, err := fs.ReadFile(console.Files(), name)
		if err != nil {
			t.Fatal(err)
		}
		if found := forbidden.Find(content); found != nil {
			t.Errorf("%s uses %s", name, found)
		}
	}
}

func TestThePageOfTheConsoleHasOneAddress(t *testing.T) {
	t.Parallel()
	start(t).get("/console/"+console.Page).wantProblem(http.StatusNotFound, "not_found")
}

// consoleNames are the names of the console's files.
func consoleNames(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(console.Files(), "*")
	if err != nil || len(names) < 10 {
		t.Fatalf("files %v, %v", names, err)
	}
	return names
}
