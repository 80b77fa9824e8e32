package auth

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const clientID = "client-1"

// Making keys takes long, so all tests share these.
var (
	firstKey  = sync.OnceValue(newRSAKey)
	secondKey = sync.OnceValue(newRSAKey)
)

func newRSAKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// idp stands in for a user pool: it serves a key set, over a socket or, in a bubble of synctest, as a RoundTripper.
type idp struct {
	issuer string

	mu      sync.Mutex
	keys    map[string]*rsa.PrivateKey
	answer  func(http.ResponseWriter) // instead of the key set, when set
	away    bool                      // nobody answers
	fetches int
}

// newIDP returns a pool whose only key is firstKey, with the id "first".
func newIDP() *idp {
	return &idp{issuer: "https://idp.example.com/pool", keys: map[string]*rsa.PrivateKey{"first": firstKey()}}
}

// listen serves the pool on a loopback socket.
func (p *idp) listen(t *testing.T) {
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	p.issuer = server.URL + "/pool"
}

func (p *idp) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *idp) fetched() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches
}

func (p *idp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetches++
	if r.URL.Path != "/pool/.well-known/jwks.json" {
		http.NotFound(w, r)
		return
	}
	if p.answer != nil {
		p.answer(w)
		return
	}
	var set struct {
		Keys []map[string]string `json:"keys"`
	}
	for kid, key := range p.keys {
		set.Keys = append(set.Keys, publicJWK(kid, &key.PublicKey))
	}
	_ = json.NewEncoder(w).Encode(set)
}

func publicJWK(kid string, key *rsa.PublicKey) map[string]string {
	return map[string]string{
		"kid": kid, "kty": "RSA", "alg": "RS256", "use": "sig",
		"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
		"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
	}
}

var errAway = errors.New("no route to host")

func (p *idp) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	away := p.away
	if away {
		p.fetches++
	}
	p.mu.Unlock()
	if away {
		return nil, errAway
	}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result(), nil
}

// options accept the tokens of p, fetching its keys without a socket.
func (p *idp) options() Options {
	return Options{Issuer: p.issuer, ClientIDs: []string{"client-0", clientID}, AdminGroups: []string{"admins", "ops"}, transport: p}
}

// access returns the claims of an access token that is accepted, with changes: a nil value removes the claim.
func (p *idp) access(changes jwt.MapClaims) jwt.MapClaims {
	return changed(jwt.MapClaims{
		"iss": p.issuer, "token_use": "access", "client_id": clientID, "sub": "sub-1", "username": "ann",
		"exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
	}, changes)
}

// id returns the claims of an ID token that is accepted, with changes.
func (p *idp) id(changes jwt.MapClaims) jwt.MapClaims {
	return changed(jwt.MapClaims{
		"iss": p.issuer, "token_use": "id", "aud": clientID, "sub": "sub-1", "cognito:username": "ann",
		"exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(),
	}, changes)
}

func changed(claims, changes jwt.MapClaims) jwt.MapClaims {
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// signed returns a token; a nil value in header removes the field.
func signed(t testing.TB, method jwt.SigningMethod, key any, header map[string]any, claims jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	maps.Copy(token.Header, header)
	maps.DeleteFunc(token.Header, func(_ string, v any) bool { return v == nil })
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// genuine returns a token that is signed with firstKey, as the pool would.
func genuine(t testing.TB, claims jwt.Claims) string {
	t.Helper()
	return signed(t, jwt.SigningMethodRS256, firstKey(), map[string]any{"kid": "first"}, claims)
}

func bearer(credential string) http.Header {
	return http.Header{"Authorization": {"Bearer " + credential}}
}

// mustNew returns an Authenticator that is closed at the end of the test.
func mustNew(t testing.TB, o Options) *Authenticator {
	t.Helper()
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}
