package httpapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/viralpilot/user-management/internal/auth"
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

// require finds out who calls and lets in who may. Of those whom nobody knows an address has only so many attempts a
// minute; whoever is known passes however many others have failed there.
func (a *API) require(n needs) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			caller := auth.Anyone()
			if a.Authenticate != nil {
				var err error
				caller, err = a.Authenticate(r.Context(), r.Header)
				if errors.Is(err, auth.ErrUnauthenticated) && a.failures.exceeded(w, r, a.address(r)) {
					return errTooManyFailures
				} else if err != nil {
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

func requestID(ctx context.Context) string { return about(ctx).requestID }

// callerOf is who sent r, once a route has let them in.
func callerOf(r *http.Request) auth.Principal { return about(r.Context()).caller }

// actor is the caller's name for the ledger.
func actor(r *http.Request) string { return callerOf(r).Name }
