package httpapi

import (
	"context"
	"net/http"
	"sync"

	"github.com/go-chi/chi/v5"

	"github.com/viralpilot/user-management/internal/auth"
)

// exchange is a request on its way through the service, with its answer: the context of the one and the writer of the
// other. It has what middleware and handlers find out about it, in one piece, of which each request needs a new one.
type exchange struct {
	context.Context
	http.ResponseWriter
	route *chi.Context

	requestID string
	caller    auth.Principal
	crossSite bool // see siteGuard
	// callerKey is what API.callerKey returns, once it has been asked for.
	callerKey string
	// accountID is the account that the request is about, and entries are those that it wrote.
	accountID string
	entries   []string

	// status is 0 until the answer begins, and bytes are those of its body.
	status, bytes int
	// header are the values of headers that every answer has, so that none of them is on the heap by itself or shared with
	// another answer.
	header [5]string
}

type exchangeKey struct{}

// about is what is known about the request of ctx.
func about(ctx context.Context) *exchange {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		return x
	}
	return &exchange{caller: auth.Anyone()}
}

// routeContexts are chi's, for one request after the other.
var routeContexts = sync.Pool{New: func() any { return chi.NewRouteContext() }}

// exchanging passes each request on as an exchange. What chi keeps about it goes along with ours, or chi would make a
// context and a copy of the request of its own.
func exchanging(routes chi.Router) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := routeContexts.Get().(*chi.Context)
		route.Reset()
		route.Routes = routes
		x := &exchange{Context: r.Context(), ResponseWriter: w, route: route, caller: auth.Anyone()}
		routes.ServeHTTP(x, r.WithContext(x))
		routeContexts.Put(route)
	})
}

// Value implements context.Context.
func (x *exchange) Value(key any) any {
	switch key {
	case exchangeKey{}:
		return x
	case chi.RouteCtxKey:
		return x.route
	}
	return x.Context.Value(key)
}

// WriteHeader implements http.ResponseWriter. Only the first status of an answer counts.
func (x *exchange) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols { // others announce an answer
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	n, err := x.ResponseWriter.Write(p)
	x.bytes += n
	return n, err
}

// Unwrap is for [http.ResponseController].
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// set is Header.Set for the i-th header that every answer has, whose name is in its canonical form.
func (x *exchange) set(i int, name, value string) {
	x.header[i] = value
	x.Header()[name] = x.header[i : i+1 : i+1]
}
