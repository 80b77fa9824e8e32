// Package migrations holds the SQL files that bring a database to the schema of this version. They only ever go
// forward: an older binary runs on a newer schema, unless a migration says otherwise as 0007 does.
package migrations

import "embed"

// FS has the files, by the number that the name begins with: SQL that one transaction runs as a whole, or statement by
// statement outside of one where the name ends with _concurrently. Annotations of goose have no meaning in them.
//
//go:embed *.sql
var FS embed.FS
