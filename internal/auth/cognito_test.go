package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func TestTokensAccepted(t *testing.T) {
	t.Parallel()
	pool := newIDP()
	pool.listen(t)
	options := pool.options()
	options.transport = nil // over the socket
	bySub := mustNew(t, options)
	options.UserIDClaim = "username"
	byUsername := mustNew(t, options)

	admin := func(id string) Principal {
		return Principal{Name: "cognito:" + id, UserID: id, Scopes: []Scope{Manage}}
	}
	user := func(id string) Principal { return Principal{Name: "end user", UserID: id} }
	for _, tt := range []struct {
		outcome string
		by      *Authenticator
		claims  jwt.MapClaims
		want    Principal
	}{
		{"access token is a user by sub", bySub, pool.access(nil), user("sub-1")},
		{"ID token is a user by sub", bySub, pool.id(nil), user("sub-1")},
		{"access token is a user by name", byUsername, pool.access(nil), user("ann")},
		{"ID token is a user by name", byUsername, pool.id(nil), user("ann")},
		{"access token needs no name by sub", bySub, pool.access(jwt.MapClaims{"username": nil}), user("sub-1")},
		{"any of the clients will do", bySub, pool.access(jwt.MapClaims{"client_id": "client-0"}), user("sub-1")},
		{"group makes an administrator", bySub, pool.access(jwt.MapClaims{"cognito:groups": []string{"x", "ops"}}), admin("sub-1")},
		{"group in an ID token makes an administrator", byUsername, pool.id(jwt.MapClaims{"cognito:groups": []string{"admins"}}), admin("ann")},
		{"other groups make nothing", bySub, pool.access(jwt.MapClaims{"cognito:groups": []string{"admin", "Admins", ""}}), user("sub-1")},
		{"groups that are no list make nothing", bySub, pool.access(jwt.MapClaims{"cognito:groups": "admins"}), user("sub-1")},
		{"scope of the token makes nothing", bySub, pool.access(jwt.MapClaims{"scope": "manage admins"}), user("sub-1")},
		{"just expired is within the leeway", bySub, pool.access(jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()}), user("sub-1")},
		{"soon valid is within the leeway", bySub, pool.access(jwt.MapClaims{"nbf": time.Now().Add(leeway / 2).Unix()}), user("sub-1")},
		{"longest name", bySub, pool.access(jwt.MapClaims{"sub": strings.Repeat("é", 247)}), user(strings.Repeat("é", 247))},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			got, err := tt.by.Authenticate(t.Context(), bearer(genuine(t, tt.claims)))
			if got.ExpiresAt.IsZero() {
				t.Error("it does not say when it expires")
			}
			got.ExpiresAt = time.Time{}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestForgedTokensRefused(t *testing.T) {
	t.Parallel()
	pool := newIDP()
	pool.keys["second"] = secondKey()
	pool.listen(t)
	options := pool.options()
	options.transport = nil // over the socket
	a := mustNew(t, options)

	der, err := x509.MarshalPKIXPublicKey(&firstKey().PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger := newRSAKey()
	kid := map[string]any{"kid": "first"}
	good := genuine(t, pool.access(nil))
	parts := strings.Split(good, ".")
	other := strings.Split(genuine(t, pool.access(jwt.MapClaims{"sub": "sub-2"})), ".")
	with := func(changes jwt.MapClaims) string { return genuine(t, pool.access(changes)) }
	raw := base64.RawURLEncoding.EncodeToString

	for _, tt := range []struct {
		outcome, token string
		want           error
	}{
		{"algorithm none", signed(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, kid, pool.access(nil)), errTokenSignature},
		{"algorithm none in capitals", raw([]byte(`{"alg":"NONE","kid":"first"}`)) + "." + parts[1] + ".", errToken},
		{"no algorithm", raw([]byte(`{"kid":"first"}`)) + "." + parts[1] + "." + parts[2], errToken},
		{"HS256 with the public key in PEM", signed(t, jwt.SigningMethodHS256, publicPEM, kid, pool.access(nil)), errTokenSignature},
		{"HS256 with the public key in DER", signed(t, jwt.SigningMethodHS256, der, kid, pool.access(nil)), errTokenSignature},
		{"HS256 with the modulus", signed(t, jwt.SigningMethodHS256, firstKey().N.Bytes(), kid, pool.access(nil)), errTokenSignature},
		{"RS384", signed(t, jwt.SigningMethodRS384, firstKey(), kid, pool.access(nil)), errTokenSignature},
		{"RS512", signed(t, jwt.SigningMethodRS512, firstKey(), kid, pool.access(nil)), errTokenSignature},
		{"PS256", signed(t, jwt.SigningMethodPS256, firstKey(), kid, pool.access(nil)), errTokenSignature},
		{"ES256", signed(t, jwt.SigningMethodES256, ec, kid, pool.access(nil)), errTokenSignature},
		{"signed by a stranger", signed(t, jwt.SigningMethodRS256, stranger, kid, pool.access(nil)), errTokenSignature},
		{"key of a stranger in the header", signed(t, jwt.SigningMethodRS256, stranger, map[string]any{"kid": "first", "jwk": publicJWK("first", &stranger.PublicKey)}, pool.access(nil)), errTokenSignature},
		{"key id of another key", signed(t, jwt.SigningMethodRS256, firstKey(), map[string]any{"kid": "second"}, pool.access(nil)), errTokenSignature},
		{"key id is unknown", signed(t, jwt.SigningMethodRS256, firstKey(), map[string]any{"kid": "third"}, pool.access(nil)), errTokenKey},
		{"key id is missing", signed(t, jwt.SigningMethodRS256, firstKey(), nil, pool.access(nil)), errTokenKey},
		{"key id is a number", signed(t, jwt.SigningMethodRS256, firstKey(), map[string]any{"kid": 1}, pool.access(nil)), errTokenKey},
		{"critical extension", signed(t, jwt.SigningMethodRS256, firstKey(), map[string]any{"kid": "first", "crit": []string{"exp"}}, pool.access(nil)), errToken},
		{"claims of another token", parts[0] + "." + other[1] + "." + parts[2], errTokenSignature},
		{"signature of another token", parts[0] + "." + parts[1] + "." + other[2], errTokenSignature},
		{"signature is empty", parts[0] + "." + parts[1] + ".", errTokenSignature},
		{"signature is truncated", good[:len(good)-2], errTokenSignature},
		{"signature with spare bits", good[:len(good)-1] + string(base64URL[strings.IndexByte(base64URL, good[len(good)-1])+1]), errToken},
		{"signature is padded", good + "==", errToken},
		{"two parts", parts[0] + "." + parts[1], errUnknownKey},
		{"four parts", good + "." + parts[2], errUnknownKey},
		{"dots", "..", errToken},
		{"garbage", "abc.def.ghi", errToken},
		{"garbage in base64", raw([]byte("{")) + "." + parts[1] + "." + parts[2], errToken},
		{"header is null", raw([]byte("null")) + "." + parts[1] + "." + parts[2], errToken},
		{"claims are null", parts[0] + "." + raw([]byte("null")) + "." + parts[2], errTokenIssuer},
		{"claims are a list", parts[0] + "." + raw([]byte("[]")) + "." + parts[2], errToken},
		{"claims are truncated", parts[0] + "." + parts[1][:20] + "." + parts[2], errToken},
		{"huge", with(jwt.MapClaims{"x": strings.Repeat("x", maxCredential)}), errBearer},

		{"expired", with(jwt.MapClaims{"exp": time.Now().Add(-2 * leeway).Unix()}), errTokenExpired},
		{"expired in 1970", with(jwt.MapClaims{"exp": 1}), errTokenExpired},
		{"no expiry", with(jwt.MapClaims{"exp": nil}), errTokenIncomplete},
		{"expiry is a word", with(jwt.MapClaims{"exp": "never"}), errToken},
		{"not yet valid", with(jwt.MapClaims{"nbf": time.Now().Add(leeway + time.Hour).Unix()}), errTokenNotYet},
		{"other issuer", with(jwt.MapClaims{"iss": "https://idp.example.com/other"}), errTokenIssuer},
		{"issuer with a slash", with(jwt.MapClaims{"iss": pool.issuer + "/"}), errTokenIssuer},
		{"no issuer", with(jwt.MapClaims{"iss": nil}), errTokenIssuer},
		{"issuer in capitals", with(jwt.MapClaims{"iss": nil, "ISS": pool.issuer}), errTokenIssuer},
		{"other client", with(jwt.MapClaims{"client_id": "client-2"}), errTokenClient},
		{"no client", with(jwt.MapClaims{"client_id": nil}), errTokenClient},
		{"access token with the client as audience", with(jwt.MapClaims{"client_id": nil, "aud": clientID}), errTokenClient},
		{"ID token with the client as client", genuine(t, pool.id(jwt.MapClaims{"aud": nil, "client_id": clientID})), errTokenClient},
		{"ID token for other clients too", genuine(t, pool.id(jwt.MapClaims{"aud": []string{clientID, "client-2"}})), errTokenClient},
		{"ID token for another client", genuine(t, pool.id(jwt.MapClaims{"aud": "client-2"})), errTokenClient},
		{"refresh token", with(jwt.MapClaims{"token_use": "refresh"}), errTokenUse},
		{"no use", with(jwt.MapClaims{"token_use": nil}), errTokenUse},
		{"use is a list", with(jwt.MapClaims{"token_use": []string{"access"}}), errTokenUse},
		{"no subject", with(jwt.MapClaims{"sub": nil}), errTokenIncomplete},
		{"subject is a number", with(jwt.MapClaims{"sub": 1}), errTokenIncomplete},
		{"subject is too long for a name", with(jwt.MapClaims{"sub": strings.Repeat("é", 248)}), errTokenIncomplete},
		{"subject has a control character", with(jwt.MapClaims{"sub": "a\nb"}), errTokenIncomplete},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			got, err := a.Authenticate(t.Context(), bearer(tt.token))
			if !errors.Is(err, tt.want) || !errors.Is(err, ErrUnauthenticated) || errors.Is(err, ErrUnavailable) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
			if !reflect.DeepEqual(got, Principal{}) {
				t.Errorf("got %+v besides", got)
			}
		})
	}
}

// base64URL is the alphabet, in which the neighbour of a last character differs in bits that are not used.
const base64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

func TestTokenOfAUserWithoutTheClaimRefused(t *testing.T) {
	t.Parallel()
	pool := newIDP()
	pool.listen(t)
	options := pool.options()
	options.transport = nil
	options.UserIDClaim = "username"
	a := mustNew(t, options)
	for outcome, claims := range map[string]jwt.MapClaims{
		"of a machine":                          pool.access(jwt.MapClaims{"username": nil}),
		"access token with the other's claim":   pool.access(jwt.MapClaims{"username": nil, "cognito:username": "ann"}),
		"ID token with the other's claim":       pool.id(jwt.MapClaims{"cognito:username": nil, "username": "ann"}),
		"name that no account can have as id":   pool.access(jwt.MapClaims{"username": ".."}),
		"name without subject":                  pool.access(jwt.MapClaims{"sub": nil}),
		"administrator is refused all the same": pool.access(jwt.MapClaims{"username": nil, "cognito:groups": []string{"admins"}}),
	} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			if _, err := a.Authenticate(t.Context(), bearer(genuine(t, claims))); !errors.Is(err, errTokenIncomplete) {
				t.Errorf("got error %v", err)
			}
		})
	}
}

func TestTokensAreNotKeysInXAPIKey(t *testing.T) {
	t.Parallel()
	pool := newIDP()
	pool.listen(t)
	options := pool.options()
	options.transport = nil
	a := mustNew(t, options)
	header := bearer(genuine(t, pool.access(nil)))
	header["X-Api-Key"] = []string{strings.TrimPrefix(header["Authorization"][0], "Bearer ")}
	if _, err := a.Authenticate(t.Context(), header); err != nil {
		t.Errorf("the same in both: got error %v", err)
	}
	delete(header, "Authorization")
	if _, err := a.Authenticate(t.Context(), header); !errors.Is(err, errUnknownKey) {
		t.Errorf("as key alone: got error %v", err)
	}
}

func TestKeySet(t *testing.T) {
	t.Parallel()
	good := publicJWK("first", &firstKey().PublicKey)
	with := func(name, value string) map[string]string {
		jwk := publicJWK("first", &firstKey().PublicKey)
		if jwk[name] = value; value == "" {
			delete(jwk, name)
		}
		return jwk
	}
	small := map[string]string{"kid": "first", "kty": "RSA", "n": base64.RawURLEncoding.EncodeToString(firstKey().N.Bytes()[:128]), "e": "AQAB"}
	for _, tt := range []struct {
		outcome string
		keys    []map[string]string
		want    int
	}{
		{"one", []map[string]string{good}, 1},
		{"neither algorithm nor use", []map[string]string{{"kid": "k", "kty": "RSA", "n": good["n"], "e": good["e"]}}, 1},
		{"others are passed over", []map[string]string{{"kid": "x", "kty": "EC"}, good, {"kty": "new"}, {}}, 1},
		{"none", nil, 0},
		{"another algorithm", []map[string]string{with("alg", "RS512")}, 0},
		{"for encryption", []map[string]string{with("use", "enc")}, 0},
		{"without id", []map[string]string{with("kid", "")}, 0},
		{"without modulus", []map[string]string{with("n", "")}, 0},
		{"modulus is garbage", []map[string]string{with("n", "!")}, 0},
		{"symmetric", []map[string]string{{"kid": "first", "kty": "oct", "k": good["n"]}}, 0},
		{"too small", []map[string]string{small}, 0},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			body, err := json.Marshal(map[string]any{"keys": tt.keys})
			if err != nil {
				t.Fatal(err)
			}
			keys, err := parseKeySet(body)
			if len(keys) != tt.want || (err == nil) != (tt.want > 0) {
				t.Errorf("got %d keys, %v, want %d", len(keys), err, tt.want)
			}
		})
	}
}

func TestCognitoOptionsRefused(t *testing.T) {
	t.Parallel()
	for outcome, change := range map[string]func(*Options){
		"issuer is plain http":      func(o *Options) { o.Issuer = "http://idp.example.com/pool" },
		"issuer looks like a local": func(o *Options) { o.Issuer = "http://localhost.example.com" },
		"issuer has no host":        func(o *Options) { o.Issuer = "https:///pool" },
		"issuer has no scheme":      func(o *Options) { o.Issuer = "idp.example.com/pool" },
		"issuer is a file":          func(o *Options) { o.Issuer = "file://localhost/pool" },
		"issuer ends in a slash":    func(o *Options) { o.Issuer += "/" },
		"issuer has a query":        func(o *Options) { o.Issuer += "?a=b" },
		"issuer has a fragment":     func(o *Options) { o.Issuer += "#a" },
		"issuer has a login":        func(o *Options) { o.Issuer = "https://me:pw@idp.example.com/pool" },
		"issuer has a space":        func(o *Options) { o.Issuer = "https://idp.example .com/pool" },
		"no client":                 func(o *Options) { o.ClientIDs = nil },
		"empty client":              func(o *Options) { o.ClientIDs = []string{"a", ""} },
		"unknown claim":             func(o *Options) { o.UserIDClaim = "email" },
	} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			options := newIDP().options()
			change(&options)
			if a, err := New(options); err == nil {
				a.Close()
				t.Error("got no error")
			}
		})
	}
}

func TestLoopbackIssuerMayBePlain(t *testing.T) {
	t.Parallel()
	for _, issuer := range []string{"http://localhost:9229/pool", "http://127.0.0.1", "http://[::1]:80/pool", "https://idp.example.com"} {
		if err := checkIssuer(issuer); err != nil {
			t.Errorf("%s: %v", issuer, err)
		}
	}
}
