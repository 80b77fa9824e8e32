// Package httpapi is the HTTP side of the service: the router, the handlers, the JSON that goes in and out, and the
// problem documents that every failure becomes. openapi.yaml is its contract. It decides nothing about tokens.
package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/cors"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/user"
)

// LogRequests says which requests get a line in the log.
type LogRequests string

// All requests, those answered with 400 or more, or none.
const (
	LogAll    LogRequests = "all"
	LogErrors LogRequests = "errors"
	LogNone   LogRequests = "none"
)

// Database is what the health check asks.
type Database interface {
	// Ping returns nil when the database answers within ctx.
	Ping(ctx context.Context) error
}

// Observer counts requests.
type Observer interface {
	// Begin is called when a request comes, and what it returns when it has been answered.
	Begin() (end func())
	// Request is called with the pattern of the route, empty when none matched.
	Request(method, route string, status int, took time.Duration)
	// Problem is called with the code of each problem document.
	Problem(code user.Code)
}

// Options are what an API is made of.
type Options struct {
	Users    *user.Service
	Feed     *user.Feed
	Database Database
	Log      *slog.Logger
	// Authenticate finds out who sent a request; nil lets everybody do everything. Its errors are those of
	// [auth.Authenticator.Authenticate].
	Authenticate func(ctx context.Context, header http.Header) (auth.Principal, error)
	// Version is shown by / and /health.
	Version string
	// CORSOrigins are the origins that may call from a browser; "*" allows all. While there is no Authenticate, only those
	// listed by name may change something.
	CORSOrigins          []string
	CORSAllowCredentials bool
	LogRequests          LogRequests
	// LogUserIDs puts the account's id on the lines of requests that may change it, and an administrator's on theirs.
	LogUserIDs bool
	// Observer is told of each request; nil for none. MetricsHandler serves /metrics; nil where that is elsewhere.
	Observer       Observer
	MetricsHandler http.Handler
	// Route is told the pattern of a request's route once the request has been answered; nil for none.
	Route func(ctx context.Context, method, route string)
	// RateLimitPerMinute is the most requests about users and tiers of one key in a minute, and of one address while there
	// is no Authenticate; UserRateLimitPerMinute that of one signed-in user who has no scopes. 0 means no limit.
	RateLimitPerMinute, UserRateLimitPerMinute int
	// FailedLoginsPerMinute is the most requests without a known key or token of one address in a minute that are told so;
	// 0 means no limit.
	FailedLoginsPerMinute int
	// TrustedProxies are the prefixes (CIDR) of proxies that are believed when they say whom a request came from.
	TrustedProxies []string
	// MaxInFlight is the most requests about users and tiers at once; 0 means no limit. They are shared between callers.
	MaxInFlight int
	// BodyTimeout is the time that a client has to send the body of such a request; 0 leaves it to the server.
	BodyTimeout time.Duration
	// RequestTimeout bounds the work on one request; what a call waits for entries does not count.
	RequestTimeout time.Duration
	// WriteTimeout is what the server gives a request to be answered, which a call that waits for entries gets beside its
	// wait; 0 means no limit.
	WriteTimeout time.Duration
}

// API answers the calls that openapi.yaml describes.
type API struct {
	Options
	failures *rate // of requests from an address to say who sent them
	slots    *slots
	stopping atomic.Bool
}

// New returns the API for o.
func New(o Options) *API {
	a := &API{Options: o, failures: newRate(o.FailedLoginsPerMinute), slots: newSlots(o.MaxInFlight)}
	if o.Users != nil {
		users := *o.Users
		users.Store = entryNoter{users.Store}
		a.Users = &users
	}
	return a
}

// Stopping makes /health answer 503 from now on, so that load balancers look elsewhere while requests in flight are
// finished. Those that wait for entries are answered at once.
func (a *API) Stopping() {
	a.stopping.Store(true)
	if a.Feed != nil {
		a.Feed.Stop()
	}
}

// Handler is the whole HTTP surface. CORS stands outermost, so that a browser can read errors too.
func (a *API) Handler() http.Handler {
	credentials := a.CORSAllowCredentials
	if credentials && slices.Contains(a.CORSOrigins, "*") {
		// Browsers refuse the pair, and rs/cors would send it.
		credentials = false
		if len(a.CORSOrigins) > 1 { // the defaults are the pair, and nobody's mistake
			a.Log.Warn("CORS_ALLOW_CREDENTIALS has no effect while CORS_ORIGINS has *: a wildcard is never paired with credentials")
		}
	}
	return cors.New(cors.Options{
		AllowedOrigins:   a.CORSOrigins,
		AllowedMethods:   []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		AllowedHeaders:   []string{"Authorization", "Content-Type", idempotencyKey, requestIDHeader, "X-API-Key"},
		ExposedHeaders:   []string{"Location", idempotencyReplayed, "Retry-After", requestIDHeader, nextCursor},
		AllowCredentials: credentials,
		MaxAge:           int((10 * time.Minute).Seconds()),
	}).Handler(exchanging(a.routes()))
}

const (
	idempotencyKey      = "Idempotency-Key"
	idempotencyReplayed = "Idempotency-Replayed"
	requestIDHeader     = "X-Request-Id"
)

// handler is a handler that returns what went wrong instead of writing it.
type handler func(w http.ResponseWriter, r *http.Request) error

// handle adapts h: the one place where an error becomes a response.
func (a *API) handle(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			a.fail(w, r, err)
		}
	}
}

// allowed lists the methods that the path of r has, for the Allow header.
func allowed(match func(method string) bool) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if !match(m) {
			continue
		}
		methods = append(methods, m)
		if m == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
	}
	if methods == nil {
		return ""
	}
	return strings.Join(append(methods, http.MethodOptions), ", ")
}
