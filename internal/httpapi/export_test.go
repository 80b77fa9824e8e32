package httpapi

import "github.com/go-chi/chi/v5"

// Routes is the router itself, for tests that list what it has.
func (a *API) Routes() chi.Routes { return a.routes() }
