package app

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows on a terminal how far a command has come, and nothing elsewhere.
type progress struct{ bar *progressbar.ProgressBar }

// newProgress shows progress towards the end on w, in units of what. Its failures are those of a terminal that is gone,
// which ends the command by itself.
func newProgress(w io.Writer, end int64, what string) progress {
	if !onTerminal(w) {
		return progress{}
	}
	return progress{progressbar.NewOptions64(max(end, 1),
		progressbar.OptionSetWriter(w), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(what),
		progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())}
}

func onTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// set shows the position that has been reached.
func (p progress) set(position int64) {
	if p.bar != nil {
		_ = p.bar.Set64(min(position, p.bar.GetMax64()))
	}
}

// done takes the bar away.
func (p progress) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
