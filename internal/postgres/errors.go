package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/batch"
	"github.com/viralpilot/user-management/internal/user"
)

// SQLSTATE codes and classes (PostgreSQL manual, appendix A).
const (
	sqlFeatureNotSupported       = "0A000"
	sqlInvalidCatalogName        = "3D000"
	sqlReadOnlyTransaction       = "25006"
	sqlIdleInTransaction         = "25P03"
	sqlInvalidAuthorization      = "28000"
	sqlUniqueViolation           = "23505"
	sqlSerializationFailure      = "40001"
	sqlCompletionUnknown         = "40003"
	sqlDeadlockDetected          = "40P01"
	sqlInsufficientPrivilege     = "42501"
	sqlLockNotAvailable          = "55P03"
	sqlQueryCanceled             = "57014"
	sqlInternalError             = "XX000"
	sqlClassConnection           = "08"
	sqlClassInvalidAuthorization = "28"
	sqlClassResources            = "53"
	sqlClassOperatorIntervention = "57"
	sqlClassSystemError          = "58"
)

var (
	// errOutcomeUnknown is returned when a commit was sent and no answer says whether it was done.
	errOutcomeUnknown = errors.New("the outcome of the commit is not known")
	// errUnconfirmed is returned when a commit may not have reached the standby.
	errUnconfirmed = fmt.Errorf("%w: no standby has confirmed it", errOutcomeUnknown)
)

// translate turns an error of the driver or of a batcher into one of package user. Others stay as they are: to callers
// they are internal.
func translate(err error) error {
	var known *user.Error
	var pg *pgconn.PgError
	var network net.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, errOutcomeUnknown):
		return user.ErrOutcomeUnknown.Because(err)
	case errors.Is(err, batch.ErrFull), errors.Is(err, batch.ErrTimeout), errors.Is(err, batch.ErrCanceled), errors.Is(err, batch.ErrClosed):
		return user.ErrOverloaded.Because(err)
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

// repeatable reports whether a transaction that failed with err has certainly done nothing and may succeed when it is
// tried again.
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

// serverLost reports whether a transaction has certainly done nothing because its server ended the session, was lost, or
// takes no more writes: after a fail-over another one may be the one that does.
func serverLost(err error) bool {
	var known *user.Error
	if errors.Is(err, errOutcomeUnknown) || errors.As(err, &known) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == sqlReadOnlyTransaction || sessionLost(pg)
	}
	return pgconn.SafeToRetry(err)
}

// mayHaveCommitted reports whether an error that answers COMMIT leaves open whether the transaction was committed: the
// server says so, or a coordinator has lost the server that it had sent the COMMIT to. Any other error is that of a
// transaction which was aborted.
func mayHaveCommitted(pg *pgconn.PgError) bool {
	return pg.Code == sqlCompletionUnknown || pg.Code[:2] == sqlClassConnection ||
		pg.Routine == "ErrorIfPostCommitFailedShardPlacements" // of Citus, whose code is that of an internal error
}

// statementTimeout reports whether the server gave a statement up that took too long.
func statementTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == sqlQueryCanceled
}

// lockTimeout reports whether another session kept a row or table locked for too long.
func lockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == sqlLockNotAvailable
}

// keyTaken reports whether an entry of the account has the idempotency key already.
func keyTaken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == sqlUniqueViolation && pg.ConstraintName == "ledger_idempotency_key"
}

// staleStatement reports whether PostgreSQL refused a statement because the type of its result has changed since it was
// prepared. The code covers everything that is not supported, so the routine has to tell.
func staleStatement(pg *pgconn.PgError) bool {
	return pg.Code == sqlFeatureNotSupported && pg.Routine == "RevalidateCachedQuery"
}

// notDoneError marks a connection that was lost before anything was committed.
type notDoneError struct{ error }

func (e notDoneError) Unwrap() error { return e.error }

// SafeToRetry makes pgconn.SafeToRetry say so.
func (notDoneError) SafeToRetry() bool { return true }

// notDone marks err as repeatable when the connection was lost before a commit was sent: PostgreSQL rolls back.
func notDone(conn *pgxpool.Conn, err error) error {
	var pg *pgconn.PgError
	if err == nil || !conn.Conn().IsClosed() || errors.As(err, &pg) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return notDoneError{fmt.Errorf("before the commit: %w", err)}
}
