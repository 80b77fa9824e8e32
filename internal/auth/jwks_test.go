package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// These tests run in bubbles, in which time passes only when everybody waits for it, and then at once.

// unknown returns a token that is signed with a key that the pool may not have.
func (p *idp) unknown(t testing.TB, kid string) http.Header {
	t.Helper()
	return bearer(signed(t, jwt.SigningMethodRS256, secondKey(), map[string]any{"kid": kid}, p.access(nil)))
}

func (p *idp) known(t testing.TB) http.Header {
	t.Helper()
	return bearer(genuine(t, p.access(nil)))
}

// expect authenticates once, and compares the error and the number of fetches so far.
func (p *idp) expect(t *testing.T, a *Authenticator, header http.Header, want error, fetches int) {
	t.Helper()
	if _, err := a.Authenticate(t.Context(), header); !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
	if got := p.fetched(); got != fetches {
		t.Errorf("the keys were fetched %d times, want %d", got, fetches)
	}
}

// pass lets d of the bubble's time pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// prepare makes the keys that all tests share, which must not be made in a bubble.
func prepare(t *testing.T) *idp {
	t.Parallel()
	secondKey()
	return newIDP()
}

func TestIssuerReachable_FollowsTheLastFetch(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, pool.options())
		want := func(reachable bool) {
			t.Helper()
			if got := a.IssuerReachable(); got != reachable {
				t.Errorf("got %v, want %v", got, reachable)
			}
		}
		synctest.Wait()
		want(true)
		pool.change(func() { pool.away = true })
		pass(refreshPause)
		want(false)
		pool.change(func() { pool.away = false })
		pass(fetchPause)
		want(true)
	})
}

func TestUnknownKeyIsFetchedOnce(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, pool.options())
		pool.expect(t, a, pool.known(t), nil, 1)
		pass(fetchPause - 1)
		pool.expect(t, a, pool.unknown(t, "x"), errTokenKey, 1) // they were just fetched
		pass(1)
		pool.expect(t, a, pool.unknown(t, "x"), errTokenKey, 2)
		for range 100 {
			pool.expect(t, a, pool.unknown(t, "y"), errTokenKey, 2)
		}
		pass(fetchPause)
		if pool.fetched() != 2 {
			t.Error("a fetch that was not allowed has been made up for")
		}
		pool.expect(t, a, pool.unknown(t, "y"), errTokenKey, 3)
		pool.expect(t, a, pool.known(t), nil, 3)
	})
}

func TestFewWaitForAnIssuerThatHangs(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		options := pool.options()
		options.APIKeys = entry("a", "read", "secret")
		options.transport = silent{}
		a := mustNew(t, options)
		started := time.Now()
		token := pool.unknown(t, "x")
		var callers sync.WaitGroup
		var atOnce atomic.Int64
		for range 200 {
			callers.Go(func() {
				_, err := a.Authenticate(t.Context(), token)
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("got error %v", err)
				}
				if time.Since(started) == 0 {
					atOnce.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := atOnce.Load(); n != 200-maxWaiting {
			t.Errorf("%d of 200 were answered at once, want all but %d", n, maxWaiting)
		}
		if p, err := a.Authenticate(t.Context(), bearer("secret")); err != nil || p.Name != "a" || time.Since(started) != 0 {
			t.Errorf("the holder of a key: got %+v, %v after %v", p, err, time.Since(started))
		}
		callers.Wait()
		if passed := time.Since(started); passed > fetchTimeout {
			t.Errorf("they waited for %v", passed)
		}
	})
}

func TestForeignTokensFetchNothing(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, pool.options())
		pass(fetchPause)
		foreign := signed(t, jwt.SigningMethodRS256, secondKey(), map[string]any{"kid": "x"}, pool.access(jwt.MapClaims{"iss": "https://other.example.com"}))
		pool.expect(t, a, bearer(foreign), errTokenIssuer, 1)
		pool.expect(t, a, bearer(signed(t, jwt.SigningMethodHS256, []byte("x"), map[string]any{"kid": "x"}, pool.access(nil))), errTokenSignature, 1)
	})
}

func TestUnknownKeyOfManyIsFetchedOnce(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, pool.options())
		pass(fetchPause)
		pool.change(func() { pool.keys["second"] = secondKey() })
		header := pool.unknown(t, "second")
		for range 16 { // as many as may wait
			go func() {
				if _, err := a.Authenticate(t.Context(), header); err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		if got := pool.fetched(); got != 2 {
			t.Errorf("the keys were fetched %d times, want 2", got)
		}
	})
}

func TestRotationIsNoticed(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, pool.options())
		pool.expect(t, a, pool.known(t), nil, 1)
		pass(fetchPause)

		pool.change(func() { pool.keys["second"] = secondKey() })
		pool.expect(t, a, pool.unknown(t, "second"), nil, 2) // at once
		pool.expect(t, a, pool.known(t), nil, 2)

		pool.change(func() { delete(pool.keys, "first") })
		old := bearer(genuine(t, pool.access(jwt.MapClaims{"exp": time.Now().Add(2 * refreshPause).Unix()})))
		pass(refreshPause - 1)
		pool.expect(t, a, old, nil, 2)
		pass(1)
		pool.expect(t, a, old, errTokenKey, 3) // in the background
	})
}

func TestIssuerOutOfReach(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		options := pool.options()
		options.Logger = slog.New(slog.NewTextHandler(&log, nil))
		a := mustNew(t, options)
		pool.expect(t, a, pool.known(t), nil, 1)
		pool.change(func() { pool.away = true })
		pass(fetchPause)

		pool.expect(t, a, pool.unknown(t, "second"), ErrUnavailable, 2)
		pool.expect(t, a, pool.unknown(t, "second"), errAway, 2) // the cause, and no other fetch
		pool.expect(t, a, pool.known(t), nil, 2)                 // known keys stay
		if _, err := a.Authenticate(t.Context(), pool.unknown(t, "second")); errors.Is(err, ErrUnauthenticated) {
			t.Error("a caller who may be right is refused")
		}
		pass(10 * fetchPause)
		pool.expect(t, a, pool.known(t), nil, 12) // tried again and again

		pool.change(func() { pool.away, pool.keys["second"] = false, secondKey() })
		pass(fetchPause)
		pool.expect(t, a, pool.unknown(t, "second"), nil, 13) // noticed without anybody asking
		pass(fetchPause)
		pool.expect(t, a, pool.unknown(t, "third"), errTokenKey, 14)
		if lines := strings.Count(log.String(), "\n"); lines != 2 {
			t.Errorf("got %d lines in the log, want one for each change:\n%s", lines, log.String())
		}
	})
}

func TestIssuerOutOfReachAtTheStart(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		pool.away = true
		a := mustNew(t, pool.options())
		pool.expect(t, a, pool.known(t), ErrUnavailable, 1)
		pool.expect(t, a, bearer("abc.def.ghi"), errToken, 1)
		pool.change(func() { pool.away = false })
		pass(fetchPause)
		pool.expect(t, a, pool.known(t), nil, 2)
	})
}

func TestUselessAnswersLeaveTheKeys(t *testing.T) {
	for outcome, answer := range map[string]func(http.ResponseWriter){
		"error": func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
		"redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "/pool/.well-known/jwks.json")
			w.WriteHeader(302)
		},
		"page":    func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") },
		"null":    func(w http.ResponseWriter) { _, _ = io.WriteString(w, "null") },
		"no keys": func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"keys":[]}`) },
		"too much": func(w http.ResponseWriter) {
			good, _ := json.Marshal(publicJWK("first", &firstKey().PublicKey))
			_, _ = fmt.Fprintf(w, `{"keys":[%s]%s}`, good, strings.Repeat(" ", maxKeySet))
		},
		"nothing":      func(http.ResponseWriter) {},
		"other object": func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"message":"throttled"}`) },
	} {
		t.Run(outcome, func(t *testing.T) {
			pool := prepare(t)
			synctest.Test(t, func(t *testing.T) {
				a := mustNew(t, pool.options())
				pool.expect(t, a, pool.known(t), nil, 1)
				pool.change(func() { pool.answer = answer })
				pass(fetchPause)
				pool.expect(t, a, pool.unknown(t, "second"), ErrUnavailable, 2)
				pool.expect(t, a, pool.known(t), nil, 2)
			})
		})
	}
}

// silent never answers.
type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestSilentIssuer(t *testing.T) {
	t.Run("holds up neither start nor end", func(t *testing.T) {
		pool := prepare(t)
		synctest.Test(t, func(t *testing.T) {
			options := pool.options()
			options.transport = silent{}
			start := time.Now()
			a := mustNew(t, options)
			synctest.Wait()
			a.Close()
			select {
			case <-a.tokens.keys.done:
			default:
				t.Error("something still runs")
			}
			if took := time.Since(start); took != 0 {
				t.Errorf("it took %v", took)
			}
			for range 2 {
				if _, err := a.Authenticate(t.Context(), pool.known(t)); !errors.Is(err, ErrUnavailable) {
					t.Errorf("after the end: got error %v", err)
				}
				pass(fetchPause)
			}
		})
	})
	t.Run("holds up a request for the time of a fetch", func(t *testing.T) {
		pool := prepare(t)
		synctest.Test(t, func(t *testing.T) {
			options := pool.options()
			options.transport = silent{}
			a := mustNew(t, options)
			start := time.Now()
			if _, err := a.Authenticate(t.Context(), pool.known(t)); !errors.Is(err, ErrUnavailable) {
				t.Errorf("got error %v", err)
			}
			if took := time.Since(start); took != fetchTimeout {
				t.Errorf("it took %v", took)
			}
		})
	})
	t.Run("holds up no request that is over", func(t *testing.T) {
		pool := prepare(t)
		synctest.Test(t, func(t *testing.T) {
			options := pool.options()
			options.transport = silent{}
			a := mustNew(t, options)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			if _, err := a.Authenticate(ctx, pool.known(t)); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got error %v", err)
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("it took %v", took)
			}
		})
	})
}

func TestClosingEndsTheWaitForKeys(t *testing.T) {
	pool := prepare(t)
	synctest.Test(t, func(t *testing.T) {
		options := pool.options()
		options.transport = silent{}
		a := mustNew(t, options)
		header := pool.known(t)
		ended := make(chan error, 1)
		go func() {
			_, err := a.Authenticate(t.Context(), header)
			ended <- err
		}()
		synctest.Wait()
		a.Close()
		if err := <-ended; !errors.Is(err, ErrUnavailable) {
			t.Errorf("got error %v", err)
		}
	})
}

func FuzzKeySet(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kid":"a","kty":"RSA","alg":"RS256","use":"sig","n":"` + strings.Repeat("z", 342) + `","e":"AQAB"}]}`))
	f.Add([]byte(`{"keys":[{"kid":"a","kty":"RSA","n":"AA","e":"AAAAAAAAAAAA"}]}`))
	f.Add([]byte(`{"keys":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := parseKeySet(body)
		if (err == nil) == (len(keys) == 0) {
			t.Errorf("%q: got %d keys, %v", body, len(keys), err)
		}
		for _, key := range keys {
			// Must not panic either, whatever the key is.
			if err := jwt.SigningMethodRS256.Verify("x", make([]byte, key.Size()), key); err == nil {
				t.Errorf("a key of %q verifies a signature that is none", body)
			}
		}
	})
}
