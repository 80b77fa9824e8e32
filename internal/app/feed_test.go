package app_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// measures reports whether the replica's metrics have a line.
func (c client) measures(r *replica, metric string) bool {
	c.t.Helper()
	_, body, err := c.get(r.url + "/metrics")
	return err == nil && strings.Contains(body, "\n"+metric+"\n")
}

func TestFeedWait_OfTwoReplicas(t *testing.T) {
	t.Parallel()
	replicas, c, _ := pair(t)
	c.tester(replicas[0], "u")
	end := ""
	for len(end) == 0 { // other tests have transactions on the server
		a := c.do(http.StatusOK, http.MethodGet, replicas[0].url+"/ledger?wait=25", "")
		if entries := a.Body["entries"].([]any); len(entries) > 0 {
			end = a.Body["next_cursor"].(string)
		}
	}
	var waiting sync.WaitGroup
	ask := func(r *replica, entries int) {
		waiting.Go(func() {
			a, err := c.try(http.MethodGet, r.url+"/ledger?wait=25&after="+url.QueryEscape(end), "")
			if err != nil || a.Status != http.StatusOK || len(a.Body["entries"].([]any)) != entries {
				t.Errorf("%d %v, %v; want %d entries", a.Status, a.Body, err, entries)
			}
		})
	}
	t.Run("is answered with what another one has written", func(*testing.T) {
		ask(replicas[0], 1)
		ask(replicas[1], 1)
		if a, err := c.consume(replicas[1], "u", ""); err != nil || a.Status != http.StatusOK {
			t.Errorf("%d %v", a.Status, err)
		}
		waiting.Wait()
	})
	t.Run("is answered when the service stops", func(t *testing.T) {
		end = "AX__________" // after which nothing comes
		ask(replicas[0], 0)
		localpgtest.Await(t, "it waits", func() bool { return c.measures(replicas[0], "http_requests_in_flight 2") })
		replicas[0].stop()
		waiting.Wait()
	})
}
