// Package console has the files of the web console at /console: plain modules, style sheets and pictures that a browser
// runs as they are. The console knows nothing but the calls of the API, and may do what the key that it was given may do.
//
// main.js is the frame and the routes (#/overview, #/users, #/user/ID), api.js the calls, one file each the pages, and
// dom.js the only place where elements are made: whatever comes from the service gets into the page as text. Charts are
// drawn by uPlot 1.6.32, which is kept here with its licence.
package console

import (
	"embed"
	"io/fs"
)

//go:embed static
var static embed.FS

// Page is the name of the page among the files; it refers to the others as /console/NAME.
const Page = "index.html"

// Files are the files by their names, without folders.
func Files() fs.FS {
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // the name of a folder is wrong in this file
	}
	return files
}
