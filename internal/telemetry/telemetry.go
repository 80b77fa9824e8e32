// Package telemetry is what the service tells its operators about itself.
package telemetry

import (
	"io"
	"log/slog"
	"os"
)

// NewLogger returns a logger that writes records of level and above to w. The format is "text", "json" or "auto", which
// is text when w is a terminal and JSON otherwise. A duration becomes a number of milliseconds, and its name ends in _ms.
func NewLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: milliseconds}
	if WritesJSON(w, format) {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// WritesJSON reports whether a logger of the format writes JSON to w.
func WritesJSON(w io.Writer, format string) bool {
	return format == "json" || format != "text" && !isTerminal(w)
}

func milliseconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() != slog.KindDuration {
		return a
	}
	return slog.Float64(a.Key+"_ms", float64(a.Value.Duration().Microseconds())/1000)
}

// isTerminal reports whether w is a character device. That is true of /dev/null too, where it makes no difference.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
