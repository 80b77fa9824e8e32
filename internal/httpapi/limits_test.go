package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

func TestRequestsOverTheLimitAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	inside, release := make(chan struct{}), make(chan struct{})
	s, _ := stub(t, func(context.Context) error {
		inside <- struct{}{}
		<-release
		return user.ErrUserNotFound
	}, func(o *httpapi.Options) { o.MaxInFlight = 3 })
	var senders sync.WaitGroup
	for range 3 {
		senders.Go(func() { s.get("/user/u/status").wantProblem(http.StatusNotFound, "user_not_found") })
		<-inside
	}
	s.get("/user/u/status").wantProblem(http.StatusServiceUnavailable, "overloaded")
	s.get("/livez").want(http.StatusOK)
	close(release)
	senders.Wait()
}

func TestWhoeverIsNotKnownYetTakesNoSlot(t *testing.T) {
	t.Parallel()
	inside, release := make(chan struct{}), make(chan struct{})
	s, _ := stub(t, works, func(o *httpapi.Options) {
		o.MaxInFlight = 1
		o.Authenticate = func(ctx context.Context, header http.Header) (auth.Principal, error) {
			if header.Get("X-API-Key") == "slow" {
				inside <- struct{}{}
				<-release
				return auth.Principal{}, auth.ErrUnavailable
			}
			return authenticate(ctx, header)
		}
	})
	var senders sync.WaitGroup
	for range 50 {
		senders.Go(func() {
			s.as("slow").get("/tiers").wantProblem(http.StatusServiceUnavailable, "overloaded")
		})
		<-inside
	}
	s.as("reader/read").get("/tiers").want(http.StatusOK)
	close(release)
	senders.Wait()
}

func TestASlowBodyTakesNoSlotAndIsGivenUp(t *testing.T) {
	t.Parallel()
	for protocol, version := range map[string]int{"HTTP/1.1": 1, "HTTP/2": 2} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(o *httpapi.Options) { o.MaxInFlight, o.BodyTimeout = 1, 300*time.Millisecond })
			id := s.account("tester", 5)
			server := httptest.NewUnstartedServer(s.handler)
			server.EnableHTTP2 = version == 2
			server.StartTLS()
			t.Cleanup(server.Close)
			const slow = 50
			var begun, senders sync.WaitGroup
			send := func(body io.Reader) (status int, text string) {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/user/"+id+"/consume-tokens", body)
				if err != nil {
					t.Error(err)
					return 0, ""
				}
				r.Header.Set("Content-Type", "application/json")
				response, err := server.Client().Do(r)
				if err != nil {
					return 0, err.Error() // the connection was cut while the rest was to be sent
				}
				defer response.Body.Close()
				if response.ProtoMajor != version {
					t.Errorf("%s is spoken", response.Proto)
				}
				content, err := io.ReadAll(response.Body)
				if err != nil {
					return 0, err.Error()
				}
				return response.StatusCode, string(content)
			}
			for range slow {
				body, client := io.Pipe() // of which the end never comes
				begun.Go(func() {
					if _, err := io.WriteString(client, `{"tokens_to_`); err != nil {
						t.Error(err)
					}
				})
				senders.Go(func() {
					defer client.Close()
					status, text := send(body)
					if status != 0 && (status != http.StatusBadRequest || !strings.Contains(text, "did not arrive in time")) {
						t.Errorf("a slow body is answered with %d %s", status, text)
					}
				})
			}
			begun.Wait()
			if status, text := send(strings.NewReader(`{"tokens_to_consume": 1}`)); status != http.StatusOK {
				t.Errorf("beside %d slow ones: %d %s", slow, status, text)
			}
			senders.Wait()
			if status, text := send(strings.NewReader(`{"tokens_to_consume": 1}`)); status != http.StatusOK {
				t.Errorf("after them: %d %s", status, text)
			}
			if got := s.get("/user/" + id).want(http.StatusOK)["tokens_remaining"]; got != 1003.0 {
				t.Errorf("%v tokens are left, want 1003", got)
			}
		})
	}
}

func TestABodyDoesNotEndTheRequestThatItBelongsTo(t *testing.T) {
	t.Parallel()
	const timeout = 50 * time.Millisecond
	s, _ := stub(t, func(ctx context.Context) error {
		<-time.After(4 * timeout) // the answer takes longer than a body may
		return context.Cause(ctx)
	}, func(o *httpapi.Options) { o.BodyTimeout = timeout })
	server := httptest.NewServer(s.handler)
	t.Cleanup(server.Close)
	for range 2 { // on one connection
		response, err := server.Client().Post(server.URL+"/user/u/consume-tokens", "application/json", strings.NewReader(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Error(err)
		}
		response.Body.Close()
		for _, line := range s.lines() {
			if line["error"] != nil {
				t.Errorf("the request was ended: %v", line)
			}
		}
	}
}

func TestRatesOfKeysAndOfUsersAreCountedApart(t *testing.T) {
	t.Parallel()
	s, _ := startLocked(t)
	s = s.with(t, func(o *httpapi.Options) { o.UserRateLimitPerMinute = 3 })
	for _, id := range []string{"ann", "bob"} {
		s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
	}
	for range 3 {
		s.as("end user//ann").get("/user/ann").want(http.StatusOK)
	}
	s.as("end user//ann").get("/user/ann").wantProblem(http.StatusTooManyRequests, "rate_limited")
	s.as("end user//bob").get("/user/bob").want(http.StatusOK)
	for range 10 {
		s.as("reader/read").get("/user/ann").want(http.StatusOK)
		s.as("cognito:ann/manage/ann").get("/user/ann").want(http.StatusOK)
	}
	limited := s.with(t, func(o *httpapi.Options) { o.RateLimitPerMinute = 2 })
	for _, name := range []string{"reader/read", "other/read"} {
		for range 2 {
			limited.as(name).get("/tiers").want(http.StatusOK)
		}
		limited.as(name).get("/tiers").wantProblem(http.StatusTooManyRequests, "rate_limited")
	}
}

func TestFailedLoginsOfAnAddressAreLimited(t *testing.T) {
	t.Parallel()
	s, _ := startLocked(t)
	s = s.with(t, func(o *httpapi.Options) { o.FailedLoginsPerMinute, o.TrustedProxies = 60, []string{"192.0.2.0/24"} })
	from := func(address, key string) response {
		return s.as(key).do(request{Method: http.MethodGet, Path: "/tiers", Header: http.Header{"X-Forwarded-For": {address}}})
	}
	for i := range 60 {
		from("198.51.100.1", fmt.Sprint("guess-", i)).wantProblem(http.StatusUnauthorized, "unauthenticated")
	}
	problem := from("198.51.100.1", "guess-60")
	problem.wantProblem(http.StatusTooManyRequests, "rate_limited")
	if problem.Header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	from("198.51.100.1", "").wantProblem(http.StatusTooManyRequests, "rate_limited")
	from("198.51.100.1", "reader/read").want(http.StatusOK) // whoever has a key passes
	from("198.51.100.2", "guess").wantProblem(http.StatusUnauthorized, "unauthenticated")
}
