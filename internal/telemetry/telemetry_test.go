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
	if _, text := NewLogger(device, slog.LevelInfo, "auto").Handler().(*slog.TextHandler); !text {
		t.Error("got another handler, want text")
	}
}

func TestADurationIsLoggedAsMilliseconds(t *testing.T) {
	for format, want := range map[string]string{"json": `"duration_ms":1.234`, "text": "duration_ms=1.234"} {
		var out bytes.Buffer
		NewLogger(&out, slog.LevelInfo, format).Info("request", "duration", 1_234_567*time.Nanosecond)
		if !strings.Contains(out.String(), want) {
			t.Errorf("got %s, want %s", out.String(), want)
		}
	}
}
