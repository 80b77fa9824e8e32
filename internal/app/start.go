package app

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/viralpilot/user-management/internal/config"
)

// maxClockOffset is how far the service's clock may be from the database's before the log warns of it.
const maxClockOffset = 5 * time.Second

// noteClock warns of a clock that differs from the database's. Accounts are judged by the database's alone, but what a
// read shows, and when it finds something due, depends on the service's.
func noteClock(ctx context.Context, store interface {
	CompareClocks(ctx context.Context) (time.Duration, error)
}, log *slog.Logger,
) {
	ahead, err := store.CompareClocks(ctx)
	switch {
	case err != nil:
		log.Warn("the clock was not compared with the database's", "error", err)
	case ahead.Abs() > maxClockOffset:
		log.Warn("the clock of this machine differs from the database's: set one of them right", "ahead_seconds", ahead.Round(time.Millisecond).Seconds())
	}
}

// noteLossySettings warns of a server that may lose in a crash what it has answered.
func noteLossySettings(ctx context.Context, store interface {
	LossySettings(ctx context.Context) ([]string, error)
}, log *slog.Logger,
) {
	off, err := store.LossySettings(ctx)
	switch {
	case err != nil:
		log.Warn("the settings of the database server cannot be read", "error", err)
	case len(off) > 0:
		log.Warn("settings of the database server let it lose changes in a crash that were answered: switch them on", "off", strings.Join(off, ","))
	}
}

// noteSettings logs the settings on which balances depend where they differ from those of the last start on this
// database, which may have been that of another replica, and keeps them for the next one. A database that does not let
// them be kept is served all the same.
func noteSettings(ctx context.Context, store interface {
	Settings(ctx context.Context) (map[string]string, error)
	KeepSetting(ctx context.Context, name, value string) error
}, cfg config.Config, log *slog.Logger,
) {
	last, err := store.Settings(ctx)
	if err != nil {
		log.Warn("the settings of the last start cannot be read", "error", err)
		return
	}
	for _, setting := range []struct{ name, value string }{
		{"TIER_MONTHLY_TOKENS", cfg.TierMonthlyTokens.String()},
		{"TOKEN_RESET_TIMEZONE", cfg.TokenResetTimezone.String()},
	} {
		was, known := last[setting.name]
		if known && was == setting.value {
			continue
		}
		if known {
			log.Warn("a setting differs from the one that was last used on this database", "name", setting.name, "was", was, "is", setting.value)
		}
		if err := store.KeepSetting(ctx, setting.name, setting.value); err != nil {
			log.Warn("a setting cannot be kept for the next start", "name", setting.name, "error", err)
		}
	}
}
