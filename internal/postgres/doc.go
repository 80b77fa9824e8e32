// Package postgres keeps accounts in PostgreSQL: connections, migrations, SQL, and the translation of driver errors into
// those of package user. It knows no token rule.
//
// # The trip of one update
//
//  1. store.go: Store.Update checks that PostgreSQL takes the names as text and hands the update to a batcher (package
//     batch), which keeps updates of one account in order. The caller waits.
//  2. commit.go: commitBatch is called with what has gathered. Unless an account is known to be contended, its updates
//     become a group, which one transaction serves. The next batch begins when this one is done, or when its commit has
//     been waited for in vain for some time.
//  3. pool.go: withConn acquires a connection, and runs the transaction again when it has certainly done nothing and may
//     succeed, as after a deadlock. session.go says with which statements a transaction begins.
//  4. group.go: lockAndLoad locks the rows that are free and reads what the rules may look at. runRules calls the
//     rules, account by account, in the order in which the updates came. commit writes what all of them changed, column
//     by column (columns.go), and ends the transaction in the same round trip. The statements are in sql.go, and what
//     their rows become in rows.go.
//  5. commit.go: endTransaction tells from the answer to COMMIT whether it was done. commitWithRetry then answers the
//     callers. A batch that failed because of its data is bisected until the offending update is alone, and after a
//     commit of unknown outcome (replication.go knows one of them) the idempotent updates are tried once more.
//  6. contention.go: accounts whose rows were locked have left the batch. For each of them a transaction of its own
//     waits for the row, and later updates queue behind it, until none are left. It takes the same trip from step 3 on.
//
// Errors become those of package user in errors.go.
//
// # The rest
//
// An account is read without a lock: lookup.go reads those that are asked for at the same time with one statement. Other
// reads, in store.go, have a connection each. feed.go knows up to which id all entries can be seen. connect.go starts all
// this from the Options in options.go, once the database answers, and migrate.go brings its schema up to date.
package postgres
