package httpapi

import (
	"io/fs"
	"net/http"
	"path"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/viralpilot/user-management/internal/console"
)

// consolePolicy lets the console's page load and call this service, and nothing else.
const consolePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// consoleTypes are the media types of the console's files, by extension.
var consoleTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

// consoleFiles are the files of the console by name. They are part of the binary: anything wrong with them is a mistake in
// the code, and panics.
type consoleFiles map[string]file

func newConsole() consoleFiles {
	files := consoleFiles{}
	names, err := fs.Glob(console.Files(), "*")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		content, err := fs.ReadFile(console.Files(), name)
		if err != nil {
			panic(err)
		}
		contentType, ok := consoleTypes[path.Ext(name)]
		if !ok {
			panic("the console's file " + name + " has no media type")
		}
		f := newFile(contentType, content)
		if strings.HasPrefix(contentType, "text/html") {
			f.policy = consolePolicy
		}
		files[name] = f
	}
	return files
}

func (c consoleFiles) page(w http.ResponseWriter, r *http.Request) error {
	return c[console.Page].serve(w, r)
}

// asset serves what the page refers to. The page itself has one address only.
func (c consoleFiles) asset(w http.ResponseWriter, r *http.Request) error {
	name := chi.URLParam(r, "file")
	f, ok := c[name]
	if !ok || name == console.Page {
		return errNotFound
	}
	return f.serve(w, r)
}
