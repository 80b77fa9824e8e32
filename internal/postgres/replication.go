package postgres

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// With synchronous replication PostgreSQL answers a COMMIT once a standby has it. When somebody cancels that wait, the
// transaction is committed all the same but perhaps on this server only, and would be lost with it. PostgreSQL says so
// in a warning and nowhere else.

// syncWait is the routine of PostgreSQL that the warning names; its text depends on the server's language.
const syncWait = "SyncRepWaitForLSN"

// unconfirmedCommit is where a connection keeps the warning.
const unconfirmedCommit = "unconfirmed commit"

// noteUnconfirmed is called with each notice of a connection.
func noteUnconfirmed(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == syncWait {
		conn.CustomData()[unconfirmedCommit] = n.Message
	}
}

// unconfirmed is errUnconfirmed when a commit of the connection has come back without the standby's word since it was
// last asked.
func unconfirmed(conn *pgxpool.Conn) error {
	data := conn.Conn().PgConn().CustomData()
	warning, ok := data[unconfirmedCommit]
	if !ok {
		return nil
	}
	delete(data, unconfirmedCommit)
	return fmt.Errorf("%w: %s", errUnconfirmed, warning)
}
