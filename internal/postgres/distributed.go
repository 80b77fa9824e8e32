package postgres

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// Where Citus has distributed the ledger, ids are drawn by several servers and nobody sees one moment of all of them: there
// is no order of all entries.
const (
	selectCitus = `SELECT to_regclass('pg_dist_partition') IS NOT NULL`

	selectDistributed = `SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrel = 'viralpilot.ledger'::regclass)`
)

var errDistributed = user.ErrNotAvailable.Because(errors.New("the ledger is distributed over several servers"))

// whole remembers what was found, nil or errDistributed. A ledger is distributed while the service is down, or the service
// started anew.
type whole = atomic.Pointer[error]

// wholeLedger returns [user.ErrNotAvailable] where the entries of all accounts have no order.
func (s *Store) wholeLedger(ctx context.Context) error {
	if found := s.whole.Load(); found != nil {
		return *found
	}
	var distributed bool
	err := s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		var citus bool
		if err := conn.QueryRow(ctx, selectCitus).Scan(&citus); err != nil || !citus {
			return err
		}
		return conn.QueryRow(ctx, selectDistributed).Scan(&distributed)
	})
	if err != nil {
		return err
	}
	var found error
	if distributed {
		found = errDistributed
	}
	s.whole.Store(&found)
	return found
}
