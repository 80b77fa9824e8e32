package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/viralpilot/user-management/internal/user"
)

var (
	errCrossSite = &user.Error{Code: "cross_site", Detail: "While this service asks for no key, pages of other origins may not do this: " +
		"list the origin by its name in CORS_ORIGINS, or set API_KEYS."}
	errForeignHost = &user.Error{Code: "cross_site", Detail: "While this service asks for no key, browsers may reach it by an IP address, by localhost, " +
		"by a name without a dot and by the host of an origin in CORS_ORIGINS: list its own origin there, or set API_KEYS."}
)

// siteGuard protects a service that asks for no key from the browsers of people who can reach it: any page that they
// look at could otherwise call it for whoever made the page.
type siteGuard struct {
	protection *http.CrossOriginProtection
	hosts      map[string]bool // those of the origins that are listed by name
}

// newSiteGuard trusts the origins in the list that are names. Patterns, "*" among them, say who may read answers, and not
// whom to trust with accounts.
func newSiteGuard(origins []string) *siteGuard {
	g := &siteGuard{http.NewCrossOriginProtection(), map[string]bool{}}
	for _, origin := range origins {
		u, err := url.Parse(strings.ToLower(origin))
		if err != nil || strings.Contains(origin, "*") || g.protection.AddTrustedOrigin(u.String()) != nil {
			continue
		}
		g.hosts[u.Hostname()] = true
	}
	return g
}

// wrap refuses what pages of other origins may not do, and marks what else they send: see crossSite.
func (g *siteGuard) wrap(a *API) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return a.handle(func(w http.ResponseWriter, r *http.Request) error {
			if !fromBrowser(r) { // which the rest is about
				next.ServeHTTP(w, r)
				return nil
			}
			if !g.knowsHost(r.Host) {
				return errForeignHost
			}
			if g.protection.Check(r) != nil { // of methods that change something
				return errCrossSite
			}
			asChange := *r
			asChange.Method = http.MethodPost
			about(r.Context()).crossSite = g.protection.Check(&asChange) != nil
			next.ServeHTTP(w, r)
			return nil
		})
	}
}

// fromBrowser reports whether a browser sent r. Over plain HTTP, and to other hosts than localhost, browsers send neither
// of the first two with a GET, and all of them begin their name in this way.
func fromBrowser(r *http.Request) bool {
	return r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" || strings.HasPrefix(r.UserAgent(), "Mozilla/")
}

// knowsHost reports whether a browser may have been led to this service by that name. An attacker can have any name in
// the public DNS answered with the service's address, so that a page below that name has the service's own origin.
func (g *siteGuard) knowsHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return !strings.Contains(host, ".") || g.hosts[host]
}

// crossSite reports whether a page of an origin that is not listed by name sent r to an open service.
func crossSite(r *http.Request) bool { return about(r.Context()).crossSite }

// refuseCrossSite keeps what concerns all accounts from such pages, whatever CORS lets them read.
func (a *API) refuseCrossSite(next http.Handler) http.Handler {
	return a.handle(func(w http.ResponseWriter, r *http.Request) error {
		if crossSite(r) {
			return errCrossSite
		}
		next.ServeHTTP(w, r)
		return nil
	})
}
