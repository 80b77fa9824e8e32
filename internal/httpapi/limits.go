package httpapi

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/httprate"

	"github.com/viralpilot/user-management/internal/user"
)

// clientIP finds the address that a request came from where proxies are trusted: X-Forwarded-For is believed as far as
// they wrote it.
func (a *API) clientIP() func(http.Handler) http.Handler {
	if len(a.TrustedProxies) == 0 {
		return func(next http.Handler) http.Handler { return next }
	}
	return middleware.ClientIPFromXFF(a.TrustedProxies...)
}

// address is the one that r came from; of IPv6 the network, in which one client has all addresses.
func (a *API) address(r *http.Request) string {
	ip := middleware.GetClientIP(r.Context())
	if len(a.TrustedProxies) == 0 {
		ip, _, _ = net.SplitHostPort(r.RemoteAddr)
	}
	return httprate.CanonicalizeIP(ip)
}

// callerKey tells callers apart: by the name of their key, signed-in users by their account, and by their address while
// nobody has to say who they are.
func (a *API) callerKey(r *http.Request) string {
	x := about(r.Context())
	switch {
	case x.callerKey != "":
	case x.caller.UserID != "":
		x.callerKey = "user " + x.caller.UserID // no key has a space in its name
	case x.caller.Name != "":
		x.callerKey = x.caller.Name
	default:
		x.callerKey = a.address(r)
	}
	return x.callerKey
}

// rate bounds requests a minute; nil bounds nothing.
type rate struct{ limiter *httprate.RateLimiter }

func newRate(perMinute int) *rate {
	if perMinute == 0 {
		return nil
	}
	return &rate{httprate.NewRateLimiter(perMinute, time.Minute,
		httprate.WithResponseHeaders(httprate.ResponseHeaders{RetryAfter: "Retry-After"}))}
}

// exceeded counts r under the key, and reports whether there were too many already.
func (l *rate) exceeded(w http.ResponseWriter, r *http.Request, key string) bool {
	return l != nil && l.limiter.OnLimit(w, r, key)
}

// limitRate lets each caller make so many requests a minute; where callers are not known, each address.
func (a *API) limitRate() func(http.Handler) http.Handler {
	callers, endUsers := newRate(a.RateLimitPerMinute), newRate(a.UserRateLimitPerMinute)
	return func(next http.Handler) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			limit := callers
			if c := callerOf(r); c.UserID != "" && len(c.Scopes) == 0 {
				limit = endUsers
			}
			if limit != nil && limit.exceeded(w, r, a.callerKey(r)) {
				return errRateLimited
			}
			next.ServeHTTP(w, r)
			return nil
		})
	}
}

// readBody reads the body, for which a client has BodyTimeout, so that nobody waits for a slow client from here on. What
// else is wrong with it is left for the handler to find, since a user who does not exist counts more.
func (a *API) readBody(next http.Handler) http.Handler {
	return a.handle(func(w http.ResponseWriter, r *http.Request) error {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return nil
		}
		connection := http.NewResponseController(w)
		bounded := a.BodyTimeout > 0 && connection.SetReadDeadline(time.Now().Add(a.BodyTimeout)) == nil
		body, err := readAll(w, r)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The deadline stays, so that the server does not wait for the rest either.
			if r.ProtoMajor == 1 { // HTTP/2 ends this stream alone
				w.Header().Set("Connection", "close")
			}
			return errSlowBody
		case err == nil && bounded:
			// Otherwise it would end the request while it is being answered.
			_ = connection.SetReadDeadline(time.Time{})
		}
		r.Body = &received{body, err}
		next.ServeHTTP(w, r)
		return nil
	})
}

// smallBody is up to how many bytes of memory a body gets before any of it has come.
const smallBody = 512

// readAll reads the body of r to its end; maxBody bounds it.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	length := r.ContentLength
	if length <= 0 || length >= smallBody {
		return io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	body := make([]byte, length+1) // the end is seen when more was asked for than there is
	n, err := io.ReadFull(r.Body, body)
	if int64(n) == length && errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return body[:n], err
}

// limitInFlight refuses requests over MaxInFlight at once: they would only wait, and hold up others.
func (a *API) limitInFlight() func(http.Handler) http.Handler {
	if a.slots == nil {
		return func(next http.Handler) http.Handler { return next }
	}
	return func(next http.Handler) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			key := a.callerKey(r)
			if !a.slots.take(key) {
				return user.ErrOverloaded
			}
			defer a.slots.free(key)
			next.ServeHTTP(w, r)
			return nil
		})
	}
}

// slots are shared between callers. The last eighth of them is only for callers who have less than their share, so that
// one who takes all that there is leaves room for the others.
type slots struct {
	most int

	mu    sync.Mutex
	all   int
	taken map[string]int // by caller, of those who have any
}

// newSlots returns so many slots; none at all, which is nil, do not bound anything.
func newSlots(most int) *slots {
	if most == 0 {
		return nil
	}
	return &slots{most: most, taken: map[string]int{}}
}

// take gives the caller a slot, unless there is none for them.
func (s *slots) take(caller string) bool {
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	share := max(1, s.most/(len(s.taken)+1)) // there is always one more to come
	if s.all >= s.most || s.all >= s.most-s.most/8 && s.taken[caller] >= share {
		return false
	}
	s.all++
	s.taken[caller]++
	return true
}

// free gives a slot of the caller back.
func (s *slots) free(caller string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.taken[caller]--; s.taken[caller] == 0 {
		delete(s.taken, caller)
	}
}
