package httpapi

import (
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/viralpilot/user-management/internal/auth"
)

// routes is every path that the service answers. Each group says what its callers need.
func (a *API) routes() chi.Router {
	r := chi.NewRouter()
	r.Use(withRequestID, a.observe, a.recoverPanic, routeEscapedPath, middleware.GetHead, secure, a.clientIP())
	if a.Authenticate == nil {
		r.Use(newSiteGuard(a.CORSOrigins).wrap(a))
	}
	r.NotFound(a.handle(func(http.ResponseWriter, *http.Request) error { return errNotFound }))
	r.MethodNotAllowed(a.handle(a.otherMethod(r)))

	handouts := newHandouts(a.Version)
	r.Get("/", a.handle(a.root(handouts.listed)))
	r.Get("/clients/{client}", a.handle(handouts.serve))
	r.Get("/health", a.handle(a.health))
	r.Get("/livez", a.handle(a.livez))

	if a.MetricsHandler != nil {
		r.With(a.require(scope(auth.Metrics))).Get("/metrics", a.MetricsHandler.ServeHTTP)
	}

	// Whoever is not known, asks for too much or sends slowly takes no slot from others.
	limited, bounded := a.limitRate(), a.limitInFlight()
	group := func(n needs, routes func(r chi.Router)) {
		r.Group(func(r chi.Router) {
			r.Use(a.deadline, a.require(n), limited, a.readBody, bounded)
			routes(r)
		})
	}
	group(scope(), func(r chi.Router) {
		r.Get("/whoami", a.handle(a.whoami))
	})
	group(scope(auth.Read).orOwner(), func(r chi.Router) {
		r.Get("/user/{cognito_user_id}", a.handle(a.getUser))
		r.Get("/user/{cognito_user_id}/status", a.handle(a.userStatus))
		r.Get("/user/{cognito_user_id}/ledger", a.handle(a.ledger))
		r.Get("/user/{cognito_user_id}/usage", a.handle(a.usage))
	})
	group(scope(auth.Read), func(r chi.Router) {
		r.Get("/tiers", a.handle(a.tiers))
		r.Get("/user/{cognito_user_id}/reservations", a.handle(a.listReservations))
		r.Get("/user/{cognito_user_id}/reservations/{reservation_id}", a.handle(a.getReservation))
	})
	group(scope(auth.Consume), func(r chi.Router) {
		r.Post("/user/{cognito_user_id}/consume-tokens", a.handle(a.consumeTokens))
		r.Post("/user/{cognito_user_id}/reservations", a.handle(a.reserve))
		r.Post("/user/{cognito_user_id}/reservations/{reservation_id}/settle", a.handle(a.settle))
		r.Post("/user/{cognito_user_id}/reservations/{reservation_id}/extend", a.handle(a.extend))
	})
	group(scope(auth.Consume, auth.Manage), func(r chi.Router) {
		r.Post("/user/{cognito_user_id}/reservations/{reservation_id}/release", a.handle(a.release))
	})
	group(scope(auth.Refund), func(r chi.Router) {
		r.Post("/user/{cognito_user_id}/refunds", a.handle(a.refund))
	})
	group(scope(auth.Export), func(r chi.Router) {
		r.Use(a.refuseCrossSite)
		r.Get("/users", a.handle(a.listUsers))
		r.Get("/usage", a.handle(a.allUsage))
	})
	// Calls that wait for entries take neither a slot nor a deadline before they go on.
	r.With(a.require(scope(auth.Export)), limited, a.readBody, a.refuseCrossSite).Get("/ledger", a.handle(a.feed))
	group(scope(auth.Manage), func(r chi.Router) {
		r.Post("/user", a.handle(a.createUser))
		r.Put("/user/{cognito_user_id}", a.handle(a.putUser))
		r.Patch("/user/{cognito_user_id}", a.handle(a.patchUser))
		r.Delete("/user/{cognito_user_id}", a.handle(a.deleteUser))
		r.Put("/user/{cognito_user_id}/tier", a.handle(a.changeTier))
		r.Post("/user/{cognito_user_id}/add-tokens", a.handle(a.addTokens))
	})

	docs := newDocs(a.Version, a.Authenticate == nil)
	r.Get("/docs", a.handle(docs.page.serve))
	r.Get("/docs/{file}", a.handle(docs.asset))
	r.Get("/redoc", a.handle(redoc))
	console := newConsole()
	r.Get("/console", a.handle(console.page))
	r.Get("/console/{file}", a.handle(console.asset))
	r.Get("/openapi.json", a.handle(func(w http.ResponseWriter, r *http.Request) error { return docs.json().serve(w, r) }))
	r.Get("/openapi.yaml", a.handle(func(w http.ResponseWriter, r *http.Request) error { return docs.yaml().serve(w, r) }))
	return r
}

// otherMethod answers a method that the path does not have: OPTIONS says which it has, any other is 405. chi sends
// methods that it has never heard of here whatever the path.
func (a *API) otherMethod(routes chi.Routes) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		methods := allowed(func(method string) bool {
			return routes.Match(chi.NewRouteContext(), method, r.URL.RawPath)
		})
		if methods == "" {
			return errNotFound
		}
		w.Header().Set("Allow", methods)
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return errMethodNotAllowed
	}
}
