package postgres

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// With synchronous replication PostgreSQL answers a COMMIT once a standby has it. When somebody cancels that wait, the
// transaction is committed all the same but perhaps on this server only, and would be lost with it. PostgreSQL says so
// in a warning and nowhere else, which the settings of a role could suppress.

// showWarnings is a setting of the session, or with "LOCAL" of a transaction.
const showWarnings = "client_min_messages = warning"

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

// forgetUnconfirmed is called before a commit, and unconfirmed after it: errUnconfirmed when it has come back without the
// standby's word.
func forgetUnconfirmed(conn *pgxpool.Conn) {
	delete(conn.Conn().PgConn().CustomData(), unconfirmedCommit)
}

func unconfirmed(conn *pgxpool.Conn) error {
	if warning, ok := conn.Conn().PgConn().CustomData()[unconfirmedCommit]; ok {
		return fmt.Errorf("%w: %s", errUnconfirmed, warning)
	}
	return nil
}
