package httpapi_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/httpapi"
)

func TestTheRootTellsWhichClientsTheServiceHandsOut(t *testing.T) {
	t.Parallel()
	const version = `v1.2.3-"dirty"`
	s := start(t, func(o *httpapi.Options) { o.Version = version })
	document := string(s.get("/openapi.json").Body)
	listed := s.get("/").want(http.StatusOK)["clients"].(map[string]any)
	for name, line := range map[string]string{
		"user_management.py":  "\n" + `__version__ = "v1.2.3-\"dirty\""` + "\n",
		"user-management.mjs": "\n" + `export const version = "v1.2.3-\"dirty\""` + "\n",
	} {
		told := listed[name].(map[string]any)
		file := s.get(told["path"].(string))
		sum := sha256.Sum256(file.Body)
		if file.Status != http.StatusOK || told["version"] != version || told["sha256"] != hex.EncodeToString(sum[:]) || !strings.HasSuffix(told["path"].(string), "/"+name) {
			t.Errorf("%s: the root tells %v", name, told)
		}
		if strings.Count(string(file.Body), line) != 1 || strings.Contains(string(file.Body), "VERSION") {
			t.Errorf("%s has not the version in a line of its own", name)
		}
		page := s.get(told["documentation"].(string))
		if page.Status != http.StatusOK || !strings.Contains(string(page.Body), "curl -O") || !strings.Contains(string(page.Body), name) {
			t.Errorf("the page of %s does not say how one gets it", name)
		}
		if !strings.Contains(document, "("+told["documentation"].(string)+")") {
			t.Errorf("the document has no link to the page of %s", name)
		}
	}
	if len(listed) != 2 {
		t.Errorf("the root lists %v", listed)
	}
}
