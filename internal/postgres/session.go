package postgres

import (
	"fmt"
	"strings"
	"time"
)

// session says how the server is told our settings: once for each connection, or with each transaction where a pooler
// stands in front of the server.
type session struct {
	mode QueryMode
	// onConnect are the statements for a new connection; empty for none.
	onConnect string
	// begin are the statements that begin a transaction, which waits for locks up to maxLockTimeout, and beginFailFast
	// those of one that waits up to failFastLockTimeout.
	begin, beginFailFast []string
}

const (
	// maxLockTimeout bounds the wait for a row or table that another session has locked.
	maxLockTimeout = time.Second
	// failFastLockTimeout exceeds the time that any of our transactions holds a row lock: between lock and commit they
	// wait only for the disk and a synchronous standby.
	failFastLockTimeout = 100 * time.Millisecond
)

// begin names the isolation level, since the default of a server may be another one: at a stricter level what waited for a
// row lock fails instead of going on, and a transaction that only keeps a lock keeps a snapshot with it.
const begin = "begin isolation level read committed"

func newSession(mode QueryMode, statementTimeout time.Duration) session {
	lockTimeout := min(statementTimeout, maxLockTimeout)
	if mode == QueryModeTransaction {
		beginWith := func(lockTimeout time.Duration) []string {
			return append([]string{begin, "SET LOCAL " + showWarnings}, limits("LOCAL", statementTimeout, lockTimeout)...)
		}
		return session{mode: mode, begin: beginWith(lockTimeout), beginFailFast: beginWith(failFastLockTimeout)}
	}
	return session{
		mode:          mode,
		onConnect:     strings.Join(append(limits("", statementTimeout, lockTimeout), keepalives, "SET "+showWarnings), "; "),
		begin:         []string{begin},
		beginFailFast: []string{begin, limit("LOCAL", "lock_timeout", failFastLockTimeout)},
	}
}

// limits returns statements that set the time-outs of the session, or of the transaction with the scope LOCAL. They
// are not start-up parameters because PgBouncer refuses those. With idle_in_transaction_session_timeout the locks of a
// replica are freed whose host vanishes in the middle of a transaction.
func limits(scope string, statement, lock time.Duration) []string {
	return []string{
		limit(scope, "statement_timeout", statement),
		limit(scope, "idle_in_transaction_session_timeout", statement),
		limit(scope, "lock_timeout", lock),
	}
}

// keepalives make PostgreSQL notice within half a minute that a client's host is gone while it waits for the rest of a
// message. No other time-out applies then, and the session would keep its locks.
const keepalives = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"

func limit(scope, name string, d time.Duration) string {
	return fmt.Sprintf("SET %s %s = %d", scope, name, d.Milliseconds())
}
