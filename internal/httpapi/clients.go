package httpapi

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/viralpilot/user-management/internal/clients"
)

// handouts are the clients that the service hands out and the pages that explain them.
type handouts struct {
	files map[string]file
	// listed are the clients, by their names, as the root tells of them.
	listed map[string]clientBody
}

type clientBody struct {
	Path          string `json:"path"`
	Documentation string `json:"documentation"`
	Version       string `json:"version"`
	SHA256        string `json:"sha256"`
}

func newHandouts(version string) handouts {
	h := handouts{map[string]file{}, map[string]clientBody{}}
	for _, f := range clients.Files(version) {
		h.files[f.Name] = newFile(f.ContentType, f.Content)
		if f.Page != "" {
			h.listed[f.Name] = clientBody{"/clients/" + f.Name, "/clients/" + f.Page, version, f.SHA256()}
		}
	}
	return h
}

func (h handouts) serve(w http.ResponseWriter, r *http.Request) error {
	f, ok := h.files[chi.URLParam(r, "client")]
	if !ok {
		return errNotFound
	}
	return f.serve(w, r)
}
