// Package telemetry is what the service tells its operators about itself.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"os"
)

// NewLogger returns a logger that writes records of level and above to w. The format is "text", "json" or "auto", which
// is text when w is a terminal and JSON otherwise. A duration becomes a number of milliseconds, and its name ends in _ms.
func NewLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if WritesJSON(w, format) {
		return slog.New(inMilliseconds{slog.NewJSONHandler(w, options)})
	}
	return slog.New(inMilliseconds{slog.NewTextHandler(w, options)})
}

// WritesJSON reports whether a logger of the format writes JSON to w.
func WritesJSON(w io.Writer, format string) bool {
	return format == "json" || format != "text" && !isTerminal(w)
}

// inMilliseconds is a handler that makes durations numbers of milliseconds. The ReplaceAttr of slog's own could do it,
// and would make them write every line, level and time among them, in a much slower way.
type inMilliseconds struct{ slog.Handler }

// Handle implements slog.Handler.
func (h inMilliseconds) Handle(ctx context.Context, r slog.Record) error {
	var few [12]slog.Attr // more would be on the heap
	attrs, changed := few[:0], false
	r.Attrs(func(a slog.Attr) bool {
		converted, yes := milliseconds(a)
		attrs, changed = append(attrs, converted), changed || yes
		return true
	})
	if changed {
		r = slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
		r.AddAttrs(attrs...)
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h inMilliseconds) WithAttrs(attrs []slog.Attr) slog.Handler {
	attrs, _ = allMilliseconds(attrs)
	return inMilliseconds{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h inMilliseconds) WithGroup(name string) slog.Handler {
	return inMilliseconds{h.Handler.WithGroup(name)}
}

// milliseconds returns a with durations as milliseconds, and whether there were any.
func milliseconds(a slog.Attr) (converted slog.Attr, changed bool) {
	switch a.Value.Kind() {
	case slog.KindDuration:
		return slog.Float64(a.Key+"_ms", float64(a.Value.Duration().Microseconds())/1000), true
	case slog.KindLogValuer:
		converted, _ = milliseconds(slog.Attr{Key: a.Key, Value: a.Value.Resolve()})
		return converted, true // it is not asked twice
	case slog.KindGroup:
		group, changed := allMilliseconds(a.Value.Group())
		return slog.Attr{Key: a.Key, Value: slog.GroupValue(group...)}, changed
	}
	return a, false
}

func allMilliseconds(attrs []slog.Attr) (converted []slog.Attr, changed bool) {
	converted = make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		var yes bool
		converted[i], yes = milliseconds(a)
		changed = changed || yes
	}
	return converted, changed
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
