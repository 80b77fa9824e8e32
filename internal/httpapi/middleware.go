package httpapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// saneRequestID tells ids from outside that may end up in logs and in headers: anything unusual is replaced.
func saneRequestID(id string) bool {
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && strings.IndexByte("._:/+=-", c) < 0 {
			return false
		}
	}
	return id != "" && len(id) <= 128
}

// withRequestID gives every request an id, the caller's own when it is sane.
func withRequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := about(r.Context())
		if x.requestID = r.Header.Get(requestIDHeader); !saneRequestID(x.requestID) {
			x.requestID = rand.Text()
		}
		x.set(0, requestIDHeader, x.requestID)
		next.ServeHTTP(w, r)
	})
}

// probes are asked all day, and by nobody who waits.
var probes = []string{"/health", "/livez", "/metrics"}

// observe counts and logs a request once it has been answered. It names the route's pattern and never the path, which
// has the user's id.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		if a.Observer != nil {
			defer a.Observer.Begin()()
		}
		next.ServeHTTP(w, r)
		about := about(r.Context())
		status := cmp.Or(about.status, http.StatusOK) // the handler wrote nothing: net/http says 200
		route, took := about.route.RoutePattern(), time.Since(start)
		if a.Route != nil {
			a.Route(r.Context(), r.Method, route)
		}
		if a.Observer != nil {
			a.Observer.Request(r.Method, route, status, took)
		}
		if a.LogRequests == LogNone || a.LogRequests == LogErrors && status < http.StatusBadRequest {
			return
		}
		level := slog.LevelInfo
		if status == http.StatusOK && slices.Contains(probes, route) {
			level = slog.LevelDebug
		}
		if !a.Log.Enabled(r.Context(), level) {
			return
		}
		attrs := append(make([]slog.Attr, 0, 9), // room for all, on the stack
			slog.String("method", r.Method),
			slog.String("route", route),
			slog.Int("status", status),
			slog.Duration("duration", took),
			slog.Int("bytes", about.bytes),
			slog.String("request_id", about.requestID),
			slog.String("caller", a.callerForLog(r)),
		)
		if len(about.entries) > 0 {
			attrs = append(attrs, slog.String("entry_id", strings.Join(about.entries, " ")))
		}
		if changing := r.Method != http.MethodGet && r.Method != http.MethodHead; changing && a.LogUserIDs && about.accountID != "" {
			attrs = append(attrs, slog.String("cognito_user_id", about.accountID))
		}
		// A line of the log's own would first find out from where in the code it comes, which nobody is told.
		line := slog.NewRecord(time.Now(), level, "request", 0)
		line.AddAttrs(attrs...)
		_ = a.Log.Handler().Handle(r.Context(), line) // as the log itself does
	})
}

// callerForLog is the caller's name, without the id that is part of an administrator's.
func (a *API) callerForLog(r *http.Request) string {
	if c := callerOf(r); c.UserID == "" || len(c.Scopes) == 0 || a.LogUserIDs {
		return c.Name
	}
	return "administrator"
}

// entryNoter notes the ledger entries that a request has written, for its line in the log.
type entryNoter struct{ user.Store }

// Update implements user.Store.
func (s entryNoter) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	change, err := s.Store.Update(ctx, ref, apply)
	return note(ctx, change, err)
}

// Create implements user.Store.
func (s entryNoter) Create(ctx context.Context, id string, open func(user.State) (user.Change, error)) (user.Change, error) {
	change, err := s.Store.Create(ctx, id, open)
	return note(ctx, change, err)
}

func note(ctx context.Context, change user.Change, err error) (user.Change, error) {
	if err == nil {
		about := about(ctx)
		for _, e := range change.Entries {
			about.entries = append(about.entries, *entryID(e.ID))
		}
	}
	return change, err
}

// recoverPanic answers 500 for a handler that panicked; the rest of the service goes on.
func (a *API) recoverPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler: // the way to cut a connection off: net/http expects it
				panic(p)
			default:
				a.fail(w, r, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// routeEscapedPath makes chi route by the path as it was sent. Without it a parameter is sometimes decoded already
// and sometimes not; with it never, so that pathID decodes every one exactly once. What was sent must not be escaped
// anew: beside a character that should have been escaped (é as it is), EscapedPath turns %2F into a slash.
func routeEscapedPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawPath == "" {
			r.URL.RawPath = r.URL.EscapedPath()
		}
		next.ServeHTTP(w, r)
	})
}

// secure sets what every answer should have unless its handler knows better: nothing is stored, and a browser takes it
// for nothing but data.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := about(r.Context())
		x.set(1, "Cache-Control", "no-store")
		x.set(2, "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		x.set(3, "Referrer-Policy", "no-referrer")
		x.set(4, "X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

func (a *API) deadline(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), a.RequestTimeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
