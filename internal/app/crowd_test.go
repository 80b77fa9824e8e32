package app_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// consumes sends n consumes from 16 good callers, none of which may be refused, and returns how long they took.
func (c client) consumes(r *replica, n int, header ...string) time.Duration {
	c.t.Helper()
	begin := time.Now()
	each(n, 16, func(i int) {
		path := fmt.Sprintf("%s/user/good-%d/consume-tokens", r.url, i%16)
		if a, err := c.try(http.MethodPost, path, `{"tokens_to_consume": 1}`, header...); err != nil || a.Status != http.StatusOK {
			c.t.Errorf("a good caller is answered with %d %v %v", a.Status, a.Body, err)
		}
	})
	return time.Since(begin)
}

// fill makes the accounts of the good callers.
func (c client) fill(r *replica, header ...string) {
	c.t.Helper()
	for i := range 16 {
		url := fmt.Sprintf("%s/user/good-%d", r.url, i)
		c.do(http.StatusOK, http.MethodGet, url, "", header...)
		c.do(http.StatusOK, http.MethodPost, url+"/add-tokens", `{"tokens_to_add": 1000}`, header...)
	}
}

func TestASlowCrowdRefusesNobody(t *testing.T) {
	t.Parallel()
	r := start(t, localpgtest.New(t), func(cfg *config.Config) { cfg.HTTPBodyTimeout, cfg.HTTPReadTimeout = 10*patience, 10*patience })
	c := newClient(t)
	c.fill(r)
	c.consumes(r, 200)
	quiet := c.consumes(r, 4000)
	for range 1024 { // as many as MAX_IN_FLIGHT
		r.dial(consumeHeader + "\r\n" + `{"tokens_to_`)
	}
	beside := c.consumes(r, 4000)
	t.Logf("beside 1024 clients that dribble a body: %.2f of the quiet rate (%s, %s)", quiet.Seconds()/beside.Seconds(), quiet, beside)
}

func TestTokensWhileTheIssuerHangsRefuseNobody(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	issuer := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	t.Cleanup(issuer.Close)
	t.Cleanup(func() { close(hang) })
	secret, entry := newKey(t, "backend", "consume,manage")
	r := start(t, localpgtest.New(t), func(cfg *config.Config) {
		cfg.MaxInFlight, cfg.FailedLoginsPerMinute = 64, 0
		cfg.CognitoIssuer, cfg.CognitoClientIDs = config.IssuerURL(issuer.URL), config.List{"client"}
		if err := cfg.APIKeys.Decode(entry); err != nil {
			t.Fatal(err)
		}
	})
	good, crowd := newClient(t), newClient(t)
	good.fill(r, "X-API-Key", secret)
	good.consumes(r, 200, "X-API-Key", secret)
	quiet := good.consumes(r, 4000, "X-API-Key", secret)

	part := func(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }
	token := part(`{"alg":"RS256","kid":"made up"}`) + "." + part(`{"iss":"`+issuer.URL+`"}`) + "." + part("signature")
	stop := make(chan struct{})
	var senders sync.WaitGroup
	var arrived sync.WaitGroup
	arrived.Add(200)
	for range 200 {
		senders.Go(func() {
			for first := true; ; first = false {
				a, err := crowd.try(http.MethodGet, r.url+"/user/u/status", "", "Authorization", "Bearer "+token)
				if err != nil || a.code() != "overloaded" {
					t.Errorf("a token of nobody is answered with %d %v %v", a.Status, a.Body, err)
				}
				if first {
					arrived.Done()
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Second): // as Retry-After says
				}
			}
		})
	}
	beside := good.consumes(r, 4000, "X-API-Key", secret)
	t.Logf("beside 200 clients with tokens of nobody: %.2f of the quiet rate (%s, %s)", quiet.Seconds()/beside.Seconds(), quiet, beside)
	close(stop)
	arrived.Wait()
	senders.Wait()
}
