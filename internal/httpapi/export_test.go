package httpapi

import (
	"github.com/go-chi/chi/v5"

	"github.com/viralpilot/user-management/internal/user"
)

// Routes is the router itself, for tests that list what it has.
func (a *API) Routes() chi.Routes { return a.routes() }

// Published is the document in its form as JSON, without a version.
func Published() ([]byte, error) {
	d, err := published()
	return d.json, err
}

// StatusAndTitle returns how problems of the code are answered.
func StatusAndTitle(code user.Code) (status int, title string) {
	return kinds[code].status, kinds[code].title
}
