package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// DatabaseURL says how to reach and log in to a PostgreSQL database. However it is printed, logged or encoded, only
// its hosts, ports and database appear; Reveal returns the whole of it. The zero value names no database.
type DatabaseURL struct {
	secret      string
	public      string
	hasPassword bool
}

var (
	scheme      = regexp.MustCompile(`^(?i:postgres|postgresql)(\+[A-Za-z0-9_]+)?://`)
	otherScheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:`)
	badPercent  = regexp.MustCompile(`%([^0-9A-Fa-f]|[0-9A-Fa-f][^0-9A-Fa-f]|[0-9A-Fa-f]?$)`)
)

// None of these may quote the value, or what pgx says about it: any part of a malformed URL can be the password.
var (
	errNotPostgres = errors.New("is not a PostgreSQL URL")
	errPercent     = errors.New("has a % without two hexadecimal digits after it: write a % in the password as %25")
	errSpecial     = errors.New("has an @ or a / in user name, password or parameters: write @ as %40 and / as %2F")
	errRootCert    = errors.New("names in sslrootcert a file that cannot be read or has no certificate")
	errNotParsed   = errors.New("cannot be parsed as a PostgreSQL URL (it is not shown because of the password): check host, port and parameters such as sslmode")
)

// ParseDatabaseURL accepts postgresql:// and postgres:// URLs, also with several hosts and with parameters, those of
// SQLAlchemy, which name a driver (postgresql+psycopg2://), and the keyword form of libpq (host=… user=…). Its error
// does not quote s.
func ParseDatabaseURL(s string) (DatabaseURL, error) {
	s = strings.TrimSpace(s)
	if prefix := scheme.FindString(s); prefix != "" {
		rest := s[len(prefix):]
		if badPercent.MatchString(rest) {
			return DatabaseURL{}, errPercent
		}
		// pgx ends the password at the first @ and takes what follows for a host or a database, which are printed.
		login, place, hasLogin := strings.Cut(rest, "@")
		if hasLogin && (strings.Contains(login, "/") || strings.Contains(place, "@")) {
			return DatabaseURL{}, errSpecial
		}
		s = "postgresql://" + rest
	} else if otherScheme.MatchString(s) || !strings.Contains(s, "=") {
		return DatabaseURL{}, errNotPostgres
	}

	return parseConnString(s)
}

func parseConnString(s string) (DatabaseURL, error) {
	pool, err := pgxpool.ParseConfig(s)
	if file := (*fs.PathError)(nil); err != nil && (errors.As(err, &file) || strings.Contains(err.Error(), "CA to cert pool")) {
		return DatabaseURL{}, errRootCert
	} else if err != nil {
		return DatabaseURL{}, errNotParsed
	}
	parsed := pool.ConnConfig
	hosts := []string{address(parsed.Host, parsed.Port)}
	for _, fallback := range parsed.Fallbacks {
		// pgx lists a host once with TLS and once without.
		if host := address(fallback.Host, fallback.Port); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return DatabaseURL{
		secret:      s,
		public:      fmt.Sprintf("postgresql://***@%s/%s", strings.Join(hosts, ","), parsed.Database),
		hasPassword: parsed.Password != "",
	}, nil
}

// with returns u with another parameter of libpq.
func (u DatabaseURL) with(parameter, value string) (DatabaseURL, error) {
	if !scheme.MatchString(u.secret) {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value)
		return parseConnString(fmt.Sprintf("%s %s='%s'", u.secret, parameter, quoted))
	}
	separator := "?"
	if place := u.secret[strings.LastIndex(u.secret, "@")+1:]; strings.Contains(place, "?") { // the login may have one too
		separator = "&"
	}
	// The driver takes a plus sign for itself.
	return parseConnString(u.secret + separator + parameter + "=" + strings.ReplaceAll(url.QueryEscape(value), "+", "%20"))
}

// names reports whether u has the parameter.
func (u DatabaseURL) names(parameter string) bool {
	return regexp.MustCompile(`[?& ]` + parameter + ` *=`).MatchString(" " + u.secret)
}

func address(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// Decode sets u to what ParseDatabaseURL makes of value; envconfig calls it.
func (u *DatabaseURL) Decode(value string) error {
	parsed, err := ParseDatabaseURL(value)
	if err != nil {
		return err
	}
	*u = parsed
	return nil
}

// Reveal returns the connection string with user name and password, fit for pgx: a postgresql:// URL or the keyword
// form.
func (u DatabaseURL) Reveal() string { return u.secret }

// String returns hosts, ports and database as a URL without the login.
func (u DatabaseURL) String() string { return u.public }

// GoString returns the same as String.
func (u DatabaseURL) GoString() string { return u.public }

// Format writes the same as String for every verb: left to itself, fmt prints the fields for a verb such as %d.
func (u DatabaseURL) Format(w fmt.State, _ rune) {
	_, _ = io.WriteString(w, u.public) // a fmt.State cannot fail, and there is nobody to tell
}

// LogValue returns the same as String, for slog.
func (u DatabaseURL) LogValue() slog.Value { return slog.StringValue(u.public) }

// MarshalText returns the same as String, for encoding/json and others.
func (u DatabaseURL) MarshalText() ([]byte, error) { return []byte(u.public), nil }
