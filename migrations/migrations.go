// Package migrations holds the SQL files that bring a database to the schema of this version. They only ever go
// forward: an older binary runs on a newer schema, so a rollback needs no way back.
package migrations

import "embed"

// FS has the files: SQL that one transaction runs as a whole, by the number that its name begins with. Annotations of
// goose have no meaning in them.
//
//go:embed *.sql
var FS embed.FS
