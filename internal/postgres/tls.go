package postgres

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// tlsFailure returns a line for the operator when a connection failed for what the two sides want of TLS, and "" when it
// did not. Waiting does not help then.
func tlsFailure(conn *pgx.ConnConfig, at string, err error) string {
	var (
		unverified *tls.CertificateVerificationError
		unknown    x509.UnknownAuthorityError
		invalid    x509.CertificateInvalidError
		otherHost  x509.HostnameError
		refused    *pgconn.PgError
	)
	switch {
	case err == nil:
		return ""
	case errors.As(err, &otherHost):
		return fmt.Sprintf("the certificate of the database on %s is for another host (%s): correct the host in DATABASE_URL", at, otherHost)
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &unverified):
		return fmt.Sprintf("the certificate of the database on %s is not trusted (%s): name the file of its CA in DB_SSL_ROOT_CERT, or as sslrootcert in DATABASE_URL", at, cause(err))
	case strings.Contains(err.Error(), "server refused TLS connection"): // the driver has no type for it
		return fmt.Sprintf("the database on %s does not speak TLS, and the sslmode of DATABASE_URL asks for it: set ssl = on there, or correct DATABASE_URL", at)
	case errors.As(err, &refused) && refused.Code == sqlInvalidAuthorization && !wantsTLS(conn):
		return fmt.Sprintf("the database on %s refused the user %q without TLS (%s): put sslmode=verify-full, or sslmode=require, into DATABASE_URL", at, conn.User, refused.Message)
	}
	return ""
}

// cause is the innermost error.
func cause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// wantsTLS reports whether some connection may use it.
func wantsTLS(conn *pgx.ConnConfig) bool {
	for _, other := range conn.Fallbacks {
		if other.TLSConfig != nil {
			return true
		}
	}
	return conn.TLSConfig != nil
}
