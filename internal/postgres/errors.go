package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// SQLSTATE codes and classes (PostgreSQL manual, appendix A).
const (
	sqlFeatureNotSupported       = "0A000"
	sqlInvalidCatalogName        = "3D000"
	sqlReadOnlyTransaction       = "25006"
	sqlIdleInTransaction         = "25P03"
	sqlInvalidAuthorization      = "28000"
	sqlSerializationFailure      = "40001"
	sqlDeadlockDetected          = "40P01"
	sqlInsufficientPrivilege     = "42501"
	sqlLockNotAvailable          = "55P03"
	sqlClassConnection           = "08"
	sqlClassInvalidAuthorization = "28"
	sqlClassResources            = "53"
	sqlClassOperatorIntervention = "57"
	sqlClassSystemError          = "58"
)

var (
	// errOutcomeUnknown says that a commit was sent and did not come back as it has to.
	errOutcomeUnknown = errors.New("the outcome of the commit is not known")
	// errUnconfirmed is the one of a commit that may not have reached the standby.
	errUnconfirmed = fmt.Errorf("%w: no standby has confirmed it", errOutcomeUnknown)
)

// translate turns what the driver reports into an error of package user. What it does not know stays as it is, and
// is internal to callers.
func translate(err error) error {
	var known *user.Error
	var pg *pgconn.PgError
	var network net.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, errOutcomeUnknown):
		return user.ErrDatabaseUnavailable.Because(err)
	case errors.As(err, &pg):
		switch pg.Code {
		case sqlSerializationFailure, sqlDeadlockDetected, sqlLockNotAvailable:
			return user.ErrOverloaded.Because(err)
		case sqlReadOnlyTransaction, sqlIdleInTransaction, sqlInvalidCatalogName:
			return user.ErrDatabaseUnavailable.Because(err)
		}
		switch pg.Code[:2] {
		case sqlClassConnection, sqlClassInvalidAuthorization, sqlClassResources, sqlClassOperatorIntervention, sqlClassSystemError:
			return user.ErrDatabaseUnavailable.Because(err)
		}
		return err
	case pgconn.SafeToRetry(err), errors.As(err, &network),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return user.ErrDatabaseUnavailable.Because(err)
	}
	return err
}

// repeatable reports whether a transaction that failed with err has certainly done nothing and may well succeed when
// it is tried again.
func repeatable(err error) bool {
	if errors.Is(err, errOutcomeUnknown) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == sqlSerializationFailure || pg.Code == sqlDeadlockDetected || staleStatement(pg)
	}
	return pgconn.SafeToRetry(err)
}

// staleStatement reports whether PostgreSQL refused a statement because a type of its answer has changed since it was
// prepared. The code is that of everything that is not supported; its routine is not.
func staleStatement(pg *pgconn.PgError) bool {
	return pg.Code == sqlFeatureNotSupported && pg.Routine == "RevalidateCachedQuery"
}

// notDoneError marks a connection that was lost before anything was committed.
type notDoneError struct{ error }

func (e notDoneError) Unwrap() error { return e.error }

// SafeToRetry makes pgconn.SafeToRetry say so.
func (notDoneError) SafeToRetry() bool { return true }

// notDone marks err as repeatable when the connection was lost: PostgreSQL rolls back what it was told before.
func notDone(conn *pgxpool.Conn, err error) error {
	var pg *pgconn.PgError
	if err == nil || !conn.Conn().IsClosed() || errors.As(err, &pg) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return notDoneError{fmt.Errorf("before the commit: %w", err)}
}
