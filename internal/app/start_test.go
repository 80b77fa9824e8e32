package app

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/config"
)

// started stands for the store at a start.
type started struct {
	ahead    time.Duration
	settings map[string]string
	off      []string
	err      error
}

func (s *started) LossySettings(context.Context) ([]string, error) { return s.off, s.err }

func (s *started) CompareClocks(context.Context) (time.Duration, error) { return s.ahead, s.err }
func (s *started) Settings(context.Context) (map[string]string, error)  { return s.settings, s.err }
func (s *started) KeepSetting(_ context.Context, name, value string) error {
	s.settings[name] = value
	return s.err
}

// logged returns what f logs.
func logged(f func(log *slog.Logger)) string {
	var b bytes.Buffer
	f(slog.New(slog.NewTextHandler(&b, nil)))
	return b.String()
}

func TestNoteClock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		store started
		says  string // nothing when empty
	}{
		"is silent about a clock that is right":  {started{ahead: -4 * time.Second}, ""},
		"warns of a clock that is ahead":         {started{ahead: 30 * 24 * time.Hour}, "ahead_seconds=2.592e+06"},
		"warns of a clock that is behind":        {started{ahead: -6 * time.Second}, "ahead_seconds=-6"},
		"says that the clocks were not compared": {started{err: errors.New("no answer")}, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			got := logged(func(log *slog.Logger) { noteClock(t.Context(), &test.store, log) })
			if test.says == "" && got != "" || !strings.Contains(got, test.says) {
				t.Errorf("logged %q", got)
			}
		})
	}
}

func TestNoteLossySettings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		store started
		says  string // nothing when empty
	}{
		"is silent about a server that loses nothing": {started{}, ""},
		"warns of settings that are off":              {started{off: []string{"fsync", "synchronous_commit"}}, "off=fsync,synchronous_commit"},
		"says that they cannot be read":               {started{err: errors.New("no answer")}, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			got := logged(func(log *slog.Logger) { noteLossySettings(t.Context(), &test.store, log) })
			if test.says == "" && got != "" || !strings.Contains(got, test.says) {
				t.Errorf("logged %q", got)
			}
		})
	}
}

func TestNoteSettings(t *testing.T) {
	t.Parallel()
	store := &started{settings: map[string]string{}}
	start := func(tokens config.TierTokens, zone string) string {
		t.Helper()
		cfg := config.Config{TierMonthlyTokens: tokens}
		if err := cfg.TokenResetTimezone.Decode(zone); err != nil {
			t.Fatal(err)
		}
		return logged(func(log *slog.Logger) { noteSettings(t.Context(), store, cfg, log) })
	}
	agency := config.TierTokens{"agency": 100000}
	if got := start(agency, "UTC") + start(agency, "UTC"); got != "" {
		t.Errorf("settings that are new or the same: %q", got)
	}
	if got := start(agency, "America/New_York"); strings.Count(got, "\n") != 1 ||
		!strings.Contains(got, "name=TOKEN_RESET_TIMEZONE was=UTC is=America/New_York") {
		t.Errorf("another zone: %q", got)
	}
	if got := start(nil, "America/New_York"); strings.Count(got, "\n") != 1 ||
		!strings.Contains(got, `name=TIER_MONTHLY_TOKENS was=agency:100000 is=""`) {
		t.Errorf("other allowances: %q", got)
	}
	store.err = errors.New("permission denied")
	if got := start(agency, "UTC"); !strings.Contains(got, "permission denied") {
		t.Errorf("settings that cannot be read: %q", got)
	}
}

func TestBrowserURL(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"0.0.0.0:8001": "http://localhost:8001", "[::]:8001": "http://localhost:8001", "127.0.0.1:80": "http://127.0.0.1:80", "[::1]:80": "http://[::1]:80",
	} {
		at, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := browserURL(at, false); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
		if got, want := browserURL(at, true), strings.Replace(want, "http", "https", 1); got != want {
			t.Errorf("%s with TLS: %s, want %s", address, got, want)
		}
	}
}
