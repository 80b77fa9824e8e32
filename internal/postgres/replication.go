package postgres

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// With synchronous replication PostgreSQL answers a COMMIT once a standby has it. When that wait is cancelled, the
// transaction is committed all the same, but perhaps on this server only, and would be lost with it. Only a warning says
// so, which the settings of a role could suppress.

// showWarnings is a setting of the session, or with "LOCAL" of a transaction.
const showWarnings = "client_min_messages = warning"

// syncWait is the routine that the warning names. Its text depends on the server's language.
const syncWait = "SyncRepWaitForLSN"

// unconfirmedFlag is the key under which a connection keeps the warning.
const unconfirmedFlag = "unconfirmed commit"

// noteUnconfirmed is called with each notice of a connection and keeps the warning.
func noteUnconfirmed(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == syncWait {
		conn.CustomData()[unconfirmedFlag] = n.Message
	}
}

// clearUnconfirmed is called before a commit and checkUnconfirmed after it. The latter returns errUnconfirmed when the
// server warned that no standby has confirmed the commit.
func clearUnconfirmed(conn *pgxpool.Conn) {
	delete(conn.Conn().PgConn().CustomData(), unconfirmedFlag)
}

func checkUnconfirmed(conn *pgxpool.Conn) error {
	if warning, ok := conn.Conn().PgConn().CustomData()[unconfirmedFlag]; ok {
		return fmt.Errorf("%w: %s", errUnconfirmed, warning)
	}
	return nil
}
