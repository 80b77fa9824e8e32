package telemetry

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

func TestNewLogger(t *testing.T) {
	for _, tt := range []struct {
		outcome, format, prefix string
	}{
		{"json is JSON", "json", `{"time":`},
		{"text is text", "text", "time="},
		{"auto into a buffer is JSON", "auto", `{"time":`},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			var out bytes.Buffer
			log := NewLogger(&out, slog.LevelWarn, tt.format)
			log.Info("quiet")
			log.Warn("loud")
			if got := out.String(); !strings.HasPrefix(got, tt.prefix) || !strings.Contains(got, "loud") || strings.Contains(got, "quiet") {
				t.Errorf("got %s, want the warning only, beginning with %s", got, tt.prefix)
			}
		})
	}
}

func TestAutoIntoAFileIsJSON(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	NewLogger(file, slog.LevelInfo, "auto").Info("hello")
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(file); err != nil || !bytes.HasPrefix(got, []byte("{")) {
		t.Errorf("got %s, %v, want JSON", got, err)
	}
}

func TestAutoOnATerminalIsText(t *testing.T) {
	// Every character device counts as a terminal; this one is there on every Unix machine.
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if _, text := NewLogger(device, slog.LevelInfo, "auto").Handler().(inMilliseconds).Handler.(*slog.TextHandler); !text {
		t.Error("got another handler, want text")
	}
}

func TestADurationIsLoggedAsMilliseconds(t *testing.T) {
	took := 1_234_567 * time.Nanosecond
	for outcome, tt := range map[string]struct {
		log        func(*slog.Logger)
		json, text string
	}{
		"alone":            {func(l *slog.Logger) { l.Info("request", "duration", took) }, `"duration_ms":1.234`, "duration_ms=1.234"},
		"among more":       {func(l *slog.Logger) { l.Info("request", "a", 1, "duration", took, "b", "c") }, `"a":1,"duration_ms":1.234,"b":"c"`, "a=1 duration_ms=1.234 b=c"},
		"in a group":       {func(l *slog.Logger) { l.Info("request", slog.Group("g", "a", 1, "wait", took)) }, `"g":{"a":1,"wait_ms":1.234}`, "g.a=1 g.wait_ms=1.234"},
		"of a value":       {func(l *slog.Logger) { l.Info("request", "v", valuer{took}) }, `"v":{"wait_ms":1.234}`, "v.wait_ms=1.234"},
		"of the log":       {func(l *slog.Logger) { l.With("wait", took).Info("request", "a", 1) }, `"wait_ms":1.234,"a":1`, "wait_ms=1.234 a=1"},
		"in a log's group": {func(l *slog.Logger) { l.WithGroup("g").Info("request", "wait", took) }, `"g":{"wait_ms":1.234}`, "g.wait_ms=1.234"},
		"none":             {func(l *slog.Logger) { l.Info("request", "v", valuer{"text"}, "n", nil) }, `"v":{"wait":"text"},"n":null`, `v.wait=text n=<nil>`},
	} {
		t.Run(outcome, func(t *testing.T) {
			for format, want := range map[string]string{"json": tt.json, "text": tt.text} {
				var out bytes.Buffer
				tt.log(NewLogger(&out, slog.LevelInfo, format))
				if !strings.Contains(out.String(), want) {
					t.Errorf("got %s, want %s", out.String(), want)
				}
			}
		})
	}
}

// valuer is logged as a group that has what it holds.
type valuer struct{ wait any }

func (v valuer) LogValue() slog.Value { return slog.GroupValue(slog.Any("wait", v.wait)) }
