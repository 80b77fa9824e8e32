package auth

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
)

const (
	// refreshPause is the time from a fetch that succeeded to the next, unless an unknown key asks for one before.
	refreshPause = time.Hour
	// fetchPause is the least time between two fetches, and the time from one that failed to the next.
	fetchPause = 10 * time.Second
	// fetchTimeout is the longest that a fetch may take.
	fetchTimeout = 5 * time.Second
	// maxKeySet is the size of a key set in bytes that is not read to its end.
	maxKeySet = 1 << 20
	// minKeyBits is the size below which an RSA key is not used.
	minKeyBits = 2048
	// maxWaiting is how many requests may wait for a fetch. Anybody can send tokens that are signed with a key not known
	// yet; while the issuer is slow, more of them are answered at once.
	maxWaiting = 16
)

// keySet holds the public keys of an issuer. One goroutine fetches them; everybody else reads what it found last or waits
// for what it is about to find. (jwkset can fetch key sets too, but there the first fetch blocks the start, requests queue
// for the rate limiter, and a set that is out of reach looks like one that lacks the key.)
type keySet struct {
	url    string
	client *http.Client
	log    *slog.Logger

	latest atomic.Pointer[fetched]
	wanted chan struct{} // has room for one wish to fetch
	places chan struct{} // has room for one element for each request that waits
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
}

// fetched is what is known after a fetch. It does not change.
type fetched struct {
	keys map[string]*rsa.PublicKey // by kid, from the last fetch that succeeded
	err  error                     // why this fetch failed
	at   time.Time                 // when it ended; zero before the first one
	next chan struct{}             // closed when the next one has ended
}

func newKeySet(url string, transport http.RoundTripper, log *slog.Logger) *keySet {
	if transport == nil {
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &keySet{
		url: url,
		client: &http.Client{
			Transport: transport,
			Timeout:   fetchTimeout,
			// The keys are taken from the issuer and from nobody whom it names.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		log:    log,
		wanted: make(chan struct{}, 1),
		places: make(chan struct{}, maxWaiting),
		done:   make(chan struct{}),
	}
	s.latest.Store(&fetched{next: make(chan struct{})})
	return s
}

// start begins to fetch the keys, at once and then again and again until close.
func (s *keySet) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(ctx)
}

func (s *keySet) close() {
	s.cancel()
	<-s.done
	s.client.CloseIdleConnections()
}

// find returns the key with the id kid. When there is none, it has the keys fetched again, unless that was just done. The
// error is errTokenKey when the issuer has no such key, and ErrUnavailable when the issuer could not be asked, or when
// enough others wait for its answer already.
func (s *keySet) find(ctx context.Context, kid string) (*rsa.PublicKey, error) {
	latest := s.latest.Load()
	if key := latest.keys[kid]; key != nil {
		return key, nil
	}
	if time.Since(latest.at) >= fetchPause {
		select {
		case s.wanted <- struct{}{}:
		default: // somebody else's wish serves us too
		}
		select {
		case s.places <- struct{}{}:
			defer func() { <-s.places }()
		default:
			return nil, fmt.Errorf("%w: enough others wait for them", ErrUnavailable)
		}
		select {
		case <-latest.next:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		case <-s.done:
			return nil, fmt.Errorf("%w: they are no longer fetched", ErrUnavailable)
		}
		latest = s.latest.Load()
	}
	switch key := latest.keys[kid]; {
	case key != nil:
		return key, nil
	case latest.err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, latest.err)
	default:
		return nil, errTokenKey
	}
}

// reachable reports whether the last fetch succeeded; it is false before the first one.
func (s *keySet) reachable() bool {
	latest := s.latest.Load()
	return latest.err == nil && !latest.at.IsZero()
}

func (s *keySet) run(ctx context.Context) {
	defer close(s.done)
	for {
		latest := s.refresh(ctx)
		pause := refreshPause
		if latest.err != nil {
			pause = fetchPause
		}
		timer := time.After(pause)
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-timer:
				due = true
			case <-s.wanted:
				// A wish can be as old as the fetch that has fulfilled it.
				due = time.Since(latest.at) >= fetchPause
			}
		}
	}
}

// refresh fetches the keys and puts them in the place of the old ones, which stay when that fails.
func (s *keySet) refresh(ctx context.Context) *fetched {
	before := s.latest.Load()
	keys, err := s.fetch(ctx)
	switch {
	case ctx.Err() != nil:
		// Closed: nobody's fault, and no news.
	case err != nil && (before.err == nil || before.at.IsZero()):
		s.log.LogAttrs(ctx, slog.LevelWarn, "cannot fetch the keys of the token issuer; those known already stay in use",
			slog.String("error", err.Error()), slog.Int("keys", len(before.keys)))
	case err == nil && before.err != nil:
		s.log.LogAttrs(ctx, slog.LevelInfo, "the keys of the token issuer can be fetched again", slog.Int("keys", len(keys)))
	}
	if err != nil {
		keys = before.keys
	}
	after := &fetched{keys: keys, err: err, at: time.Now(), next: make(chan struct{})}
	s.latest.Store(after)
	close(before.next)
	return after
}

func (s *keySet) fetch(ctx context.Context) (map[string]*rsa.PublicKey, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // nothing is lost
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: status %d", s.url, response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxKeySet))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", s.url, err)
	}
	keys, err := parseKeySet(body)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", s.url, err)
	}
	return keys, nil
}

// parseKeySet returns the keys of a JSON Web Key Set that can verify RS256 signatures. Others are passed over.
func parseKeySet(body []byte) (map[string]*rsa.PublicKey, error) {
	var set jwkset.JWKSMarshal
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("it is not a key set: %w", err)
	}
	keys := make(map[string]*rsa.PublicKey)
	for _, k := range set.Keys {
		if k.KID == "" || k.KTY != jwkset.KtyRSA || k.USE != "" && k.USE != jwkset.UseSig || k.ALG != "" && k.ALG != jwkset.AlgRS256 {
			continue
		}
		// Only what the key itself is made of: certificates and the like are of no use here.
		jwk, err := jwkset.NewJWKFromMarshal(jwkset.JWKMarshal{KTY: k.KTY, N: k.N, E: k.E}, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil {
			continue
		}
		if key, ok := jwk.Key().(*rsa.PublicKey); ok && key.N.BitLen() >= minKeyBits {
			keys[k.KID] = key
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("it has no key for RS256")
	}
	return keys, nil
}
