// Package clients has the clients that the service hands out, in Python and JavaScript, each with a page that explains
// it. It is files, and the sums that tell them apart.
package clients

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
)

var (
	//go:embed user_management.py
	python []byte
	//go:embed user_management.md
	pythonPage []byte
	//go:embed user-management.mjs
	javaScript []byte
	//go:embed user-management.md
	javaScriptPage []byte
)

// File is a client, or the page that explains one, as it is handed out.
type File struct {
	// Name is what the file is called, and what clients import.
	Name        string
	ContentType string
	Content     []byte
	// Page is the name of the file that explains this one; empty for such a page itself.
	Page string
}

// Files returns the clients and their pages. The version of the API is theirs, since they change together.
func Files(version string) []File {
	quoted, err := json.Marshal(version) // which Python and JavaScript read as well
	if err != nil {
		panic(err) // of a string there is none
	}
	of := func(source []byte) []byte { return bytes.Replace(source, []byte(`"VERSION"`), quoted, 1) }
	// Pages are sent as plain text: browsers show that, and save Markdown.
	const text = "text/plain; charset=utf-8"
	return []File{
		{"user_management.py", "text/x-python; charset=utf-8", of(python), "user_management.md"},
		{"user-management.mjs", "text/javascript; charset=utf-8", of(javaScript), "user-management.md"},
		{"user_management.md", text, pythonPage, ""},
		{"user-management.md", text, javaScriptPage, ""},
	}
}

// SHA256 is the sum of the content in hexadecimal digits, as sha256sum prints it.
func (f File) SHA256() string {
	sum := sha256.Sum256(f.Content)
	return hex.EncodeToString(sum[:])
}
