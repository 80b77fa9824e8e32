package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/httprate"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/user"
)

// needs says who may make a call: callers with one of the scopes or, with owner, those whose own account the path names.
// Without scopes every caller may whom the service knows.
type needs struct {
	scopes []auth.Scope
	owner  bool
}

func scope(oneOf ...auth.Scope) needs { return needs{scopes: oneOf} }

func (n needs) orOwner() needs {
	n.owner = true
	return n
}

// check returns nil when the caller may make r, and otherwise what they lack.
func (n needs) check(r *http.Request, c auth.Principal) error {
	if len(n.scopes) == 0 || slices.ContainsFunc(n.scopes, c.Can) {
		return nil
	}
	if n.owner {
		if id, err := pathID(r); err == nil && c.Owns(id) {
			return nil
		}
	}
	return lacksScope(n.scopes)
}

// lacksScope is the refusal of a caller who has none of the scopes.
type lacksScope []auth.Scope

func (l lacksScope) Error() string {
	names := make([]string, len(l))
	for i, scope := range l {
		names[i] = string(scope)
	}
	return "This call needs the scope " + strings.Join(names, " or ") + ", which the caller does not have."
}

// require finds out who calls and lets in who may.
func (a *API) require(n needs) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			caller := auth.Anyone()
			if a.Authenticate != nil {
				var err error
				if caller, err = a.Authenticate(r.Context(), r.Header); err != nil {
					return err
				}
			}
			about(r.Context()).caller = caller
			if err := n.check(r, caller); err != nil {
				return err
			}
			next.ServeHTTP(w, r)
			return nil
		})
	}
}

// clientIP finds the address that a request came from, where a limit wants to know. X-Forwarded-For is believed as far as
// trusted proxies wrote it.
func (a *API) clientIP() func(http.Handler) http.Handler {
	switch {
	case a.RateLimitPerMinute == 0:
		return func(next http.Handler) http.Handler { return next }
	case len(a.TrustedProxies) == 0:
		return middleware.ClientIPFromRemoteAddr
	}
	return middleware.ClientIPFromXFF(a.TrustedProxies...)
}

// limitRate lets each caller make so many requests a minute; where callers are not known, each address.
func (a *API) limitRate() func(http.Handler) http.Handler {
	if a.RateLimitPerMinute == 0 {
		return func(next http.Handler) http.Handler { return next }
	}
	return httprate.LimitBy(a.RateLimitPerMinute, time.Minute,
		func(r *http.Request) (string, error) {
			// Signed-in users share a name.
			if c := callerOf(r); c.Name != "" {
				return c.Name + " " + c.UserID, nil
			}
			return httprate.CanonicalizeIP(middleware.GetClientIP(r.Context())), nil
		},
		httprate.WithResponseHeaders(httprate.ResponseHeaders{RetryAfter: "Retry-After"}),
		httprate.WithLimitHandler(a.handle(func(http.ResponseWriter, *http.Request) error { return errRateLimited })),
	)
}

// limitInFlight refuses requests over MaxInFlight at once: they would only wait, and hold up others.
func (a *API) limitInFlight() func(http.Handler) http.Handler {
	var inFlight atomic.Int64
	return func(next http.Handler) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			defer inFlight.Add(-1)
			if most := int64(a.MaxInFlight); inFlight.Add(1) > most && most > 0 {
				return user.ErrOverloaded
			}
			next.ServeHTTP(w, r)
			return nil
		})
	}
}

// info is what is known about a request, filled in on its way inwards.
type info struct {
	requestID string
	caller    auth.Principal
	crossSite bool // see siteGuard
}

type infoKey struct{}

func about(ctx context.Context) *info {
	if i, ok := ctx.Value(infoKey{}).(*info); ok {
		return i
	}
	return &info{caller: auth.Anyone()}
}

func requestID(ctx context.Context) string { return about(ctx).requestID }

// callerOf is who sent r, once a route has let them in.
func callerOf(r *http.Request) auth.Principal { return about(r.Context()).caller }

// actor is the caller's name for the ledger.
func actor(r *http.Request) string { return callerOf(r).Name }
