package httpapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed" // for the page
	"encoding/base64"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/go-chi/chi/v5"
	"github.com/swaggest/swgui/v5/static"
)

// docs are the files that describe the service. They stay the same as long as the process lives.
type docs struct {
	page file
	// json and yaml make the document when somebody asks for it, so that a start does not wait.
	json, yaml func() file
	// assets are what the page loads, by the last segment of their paths.
	assets map[string]file
}

// The page of the documentation, and what it loads beside Swagger UI.
var (
	//go:embed docs/page.html
	docsPage []byte
	//go:embed docs/docs.css
	docsStyle []byte
	//go:embed docs/docs.js
	docsScript []byte
)

// newDocs makes the documentation of this version of a service that is open or asks for keys. All of it is part of the
// binary, so that anything wrong with it is a mistake in the code: it panics, and tests see it.
func newDocs(version string, open bool) docs {
	access := "locked"
	if open {
		access = "open"
	}
	d := docs{
		page: newFile("text/html; charset=utf-8", bytes.Replace(docsPage, []byte("ACCESS"), []byte(access), 1)),
		json: sync.OnceValue(func() file { return newFile("application/json", documentOf(version).json) }),
		yaml: sync.OnceValue(func() file { return newFile("application/yaml", documentOf(version).yaml) }),
		assets: map[string]file{
			"docs.css": newFile("text/css; charset=utf-8", docsStyle),
			"docs.js":  newFile("text/javascript; charset=utf-8", docsScript),
		},
	}
	d.page.policy = pagePolicy
	for name, contentType := range map[string]string{
		"swagger-ui.css.gz":       "text/css; charset=utf-8",
		"swagger-ui-bundle.js.gz": "text/javascript; charset=utf-8",
		"favicon-32x32.png":       "image/png",
	} {
		content, err := static.FS.ReadFile(name)
		if err != nil {
			panic(err)
		}
		f := newFile(contentType, content)
		if path.Ext(name) == ".gz" {
			f.unpacked = sync.OnceValues(func() ([]byte, error) { return unpack(content) })
		}
		d.assets[strings.TrimSuffix(name, ".gz")] = f
	}
	return d
}

func (d docs) asset(w http.ResponseWriter, r *http.Request) error {
	f, ok := d.assets[chi.URLParam(r, "file")]
	if !ok {
		return errNotFound
	}
	return f.serve(w, r)
}

// redoc leads to the page of the documentation, where clients of the earlier service look for it.
func redoc(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Location", "/docs")
	w.WriteHeader(http.StatusFound)
	return nil
}

// pagePolicy lets the page run its own files and nothing else that might find its way into it, and load nothing from
// another host.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; " +
	"img-src 'self' data:; " + // Swagger UI's style sheet carries its icons along
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// file is a response that is the same for everybody.
type file struct {
	contentType string
	content     []byte
	// unpacked is for clients that cannot unpack content themselves; nil when it is not compressed.
	unpacked func() ([]byte, error)
	// tag is the strong ETag of content, without its quotes.
	tag string
	// policy is the Content-Security-Policy, if any.
	policy string
}

func newFile(contentType string, content []byte) file {
	sum := sha256.Sum256(content)
	return file{contentType: contentType, content: content, tag: base64.RawURLEncoding.EncodeToString(sum[:16])}
}

func unpack(gzipped []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(gzipped))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// serve answers with the file, or with 304 when the client has it already.
func (f file) serve(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache")
	if f.policy != "" {
		h.Set("Content-Security-Policy", f.policy)
	}
	tag, content := f.tag, f.content
	if f.unpacked != nil {
		h.Add("Vary", "Accept-Encoding")
		if accepts(r, "gzip") {
			h.Set("Content-Encoding", "gzip")
		} else {
			tag += "-unpacked"
			var err error
			if content, err = f.unpacked(); err != nil {
				return err
			}
		}
	}
	h.Set("ETag", `"`+tag+`"`)
	if hasTag(r, tag) {
		h.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", f.contentType)
	h.Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method != http.MethodHead {
		// A client that is gone cannot be told so.
		_, _ = w.Write(content)
	}
	return nil
}

// accepts reports whether the client can unpack the encoding.
func accepts(r *http.Request, encoding string) bool {
	for offer := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, weight, _ := strings.Cut(offer, ";")
		if strings.EqualFold(strings.TrimSpace(name), encoding) {
			_, q, _ := strings.Cut(weight, "=")
			return strings.Trim(q, "0. ") != "" || strings.TrimSpace(q) == ""
		}
	}
	return false
}

// hasTag reports whether the client has the content with this tag.
func hasTag(r *http.Request, tag string) bool {
	for known := range strings.SplitSeq(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		switch known = strings.TrimPrefix(strings.TrimSpace(known), "W/"); known {
		case "*", `"` + tag + `"`:
			return true
		}
	}
	return false
}
