package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viralpilot/user-management/internal/telemetry"
	"github.com/viralpilot/user-management/internal/user"
)

// sweepable is a store in which nothing is due, and whose parts may fail.
type sweepable struct {
	user.Store
	holds, erases, age error
}

func (s *sweepable) AccountsWithDueHold(context.Context, time.Time, string, int) ([]string, error) {
	return nil, s.holds
}

func (s *sweepable) AccountsBeingErased(context.Context, string, int) ([]string, error) {
	return nil, s.erases
}

func (s *sweepable) OldestDueHold(context.Context) (time.Duration, error) {
	return 90 * time.Second, s.age
}

func TestSweeping_CountsWhatFailsAndTellsWhatItLeaves(t *testing.T) {
	t.Parallel()
	broken := errors.New("out of order")
	const holds, erases = `user_management_sweep_failures_total{task="reservations"} `, `user_management_sweep_failures_total{task="erases"} `
	for name, c := range map[string]struct {
		store sweepable
		want  []string
	}{
		"nothing fails":       {sweepable{}, []string{holds + "0", erases + "0", "reservation_age_seconds 90"}},
		"due holds":           {sweepable{holds: broken}, []string{holds + "2", erases + "0", "reservation_age_seconds 90"}},
		"erases":              {sweepable{erases: broken}, []string{holds + "0", erases + "2", "reservation_age_seconds 90"}},
		"the age of the rest": {sweepable{age: broken}, []string{holds + "2", erases + "0", "reservation_age_seconds 0"}},
		"everything":          {sweepable{holds: broken, erases: broken, age: broken}, []string{holds + "2", erases + "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				metrics := telemetry.NewMetrics("v1", "abc", nil)
				users := &user.Service{Store: &c.store, Now: time.Now}
				stop := sweeping(t.Context(), users, c.store.OldestDueHold, metrics, time.Minute, slog.New(slog.DiscardHandler))
				<-time.After(2 * time.Minute) // the first run of each comes within the first
				stop()
				w := httptest.NewRecorder()
				metrics.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
				for _, line := range c.want {
					if !strings.Contains(w.Body.String(), line+"\n") {
						t.Errorf("%q is missing in\n%s", line, w.Body)
					}
				}
			})
		})
	}
}
