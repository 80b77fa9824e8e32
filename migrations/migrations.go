// Package migrations holds the SQL files that bring a database to the schema of this version. They only ever go
// forward: an older binary runs on a newer schema, so a rollback needs no way back.
package migrations

import "embed"

// FS has the files, in the form that goose reads.
//
//go:embed *.sql
var FS embed.FS
