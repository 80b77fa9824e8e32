package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	a := mustNew(t, Options{})
	if !a.Open() {
		t.Error("neither keys nor issuer: closed")
	}
	for _, header := range []http.Header{nil, bearer("anything"), {"Authorization": {"Basic x", ""}}} {
		p, err := a.Authenticate(t.Context(), header)
		if err != nil || p.Name != "" || p.UserID != "" {
			t.Errorf("%v: got %+v, %v", header, p, err)
		}
		for _, scope := range []Scope{Read, Consume, Refund, Export, Manage, Metrics} {
			if !p.Can(scope) {
				t.Errorf("%v: cannot %s", header, scope)
			}
		}
	}

	pool := newIDP()
	pool.listen(t)
	options := pool.options()
	options.transport = nil
	for outcome, o := range map[string]Options{"keys": {APIKeys: entry("a", "read", "x")}, "issuer": options} {
		a := mustNew(t, o)
		if a.Open() {
			t.Errorf("%s: open", outcome)
		}
		if _, err := a.Authenticate(t.Context(), nil); !errors.Is(err, errNoCredentials) {
			t.Errorf("%s: got error %v", outcome, err)
		}
	}
}

func TestScopes(t *testing.T) {
	t.Parallel()
	all := []Scope{Read, Consume, Refund, Export, Manage, Metrics}
	for _, tt := range []struct {
		outcome string
		by      Principal
		want    []Scope
	}{
		{"nobody can nothing", Principal{}, nil},
		{"user can nothing", Principal{Name: endUser, UserID: "u"}, nil},
		{"read is read", Principal{Scopes: []Scope{Read}}, []Scope{Read}},
		{"consume is not read", Principal{Scopes: []Scope{Consume}}, []Scope{Consume}},
		{"manage includes read, refund and export", Principal{Scopes: []Scope{Manage}}, []Scope{Read, Refund, Export, Manage}},
		{"refund is not consume", Principal{Scopes: []Scope{Refund}}, []Scope{Refund}},
		{"export is not read", Principal{Scopes: []Scope{Export}}, []Scope{Export}},
		{"metrics is not read", Principal{Scopes: []Scope{Metrics}}, []Scope{Metrics}},
		{"several", Principal{Scopes: []Scope{Read, Consume}}, []Scope{Read, Consume}},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			var got []Scope
			for _, scope := range all {
				if tt.by.Can(scope) {
					got = append(got, scope)
				}
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if tt.by.Can("") || tt.by.Can("admin") {
				t.Error("has a scope that does not exist")
			}
		})
	}
}

func TestUsersOwnTheirAccount(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		outcome, user, account string
		want                   bool
	}{
		{"own", "ann", "ann", true},
		{"another's", "ann", "bob", false},
		{"another's that begins alike", "ann", "anna", false},
		{"in capitals", "ann", "Ann", false},
		{"key owns none", "", "ann", false},
		{"key owns not even the empty one", "", "", false},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			if got := (Principal{Name: "x", UserID: tt.user, Scopes: allScopes}).Owns(tt.account); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	a := mustNew(t, Options{APIKeys: entry("one", "read", "secret-1") + "," + entry("two", "read", "secret-2") + "," + entry("dots", "read", "a.b.c")})
	long := strings.Repeat("x", maxCredential+1)
	for _, tt := range []struct {
		outcome string
		header  http.Header
		name    string // empty when refused
		want    error
	}{
		{"bearer", http.Header{"Authorization": {"Bearer secret-1"}}, "one", nil},
		{"scheme in small letters", http.Header{"Authorization": {"bearer secret-1"}}, "one", nil},
		{"scheme in capitals and spaces", http.Header{"Authorization": {"BEARER   secret-1"}}, "one", nil},
		{"X-API-Key", http.Header{"X-Api-Key": {"secret-2"}}, "two", nil},
		{"key like a token", http.Header{"X-Api-Key": {"a.b.c"}}, "dots", nil},
		{"both and the same", http.Header{"Authorization": {"Bearer secret-1"}, "X-Api-Key": {"secret-1"}}, "one", nil},

		{"both and different", http.Header{"Authorization": {"Bearer secret-1"}, "X-Api-Key": {"secret-2"}}, "", errTwoCredentials},
		{"both and one unknown", http.Header{"Authorization": {"Bearer secret-1"}, "X-Api-Key": {"secret-3"}}, "", errTwoCredentials},
		{"none", http.Header{"Accept": {"*/*"}}, "", errNoCredentials},
		{"another header", http.Header{"Api-Key": {"secret-1"}, "Cookie": {"key=secret-1"}, "Proxy-Authorization": {"Bearer secret-1"}}, "", errNoCredentials},
		{"unknown key", http.Header{"X-Api-Key": {"secret-3"}}, "", errUnknownKey},
		{"unknown bearer", http.Header{"Authorization": {"Bearer secret-3"}}, "", errUnknownKey},
		{"token without an issuer", http.Header{"Authorization": {"Bearer d.e.f"}}, "", errUnknownKey},
		{"another scheme", http.Header{"Authorization": {"Basic secret-1"}}, "", errBearer},
		{"another scheme beside a key", http.Header{"Authorization": {"Basic secret-1"}, "X-Api-Key": {"secret-1"}}, "", errBearer},
		{"scheme that begins alike", http.Header{"Authorization": {"Bearers secret-1"}}, "", errBearer},
		{"no scheme", http.Header{"Authorization": {"secret-1"}}, "", errBearer},
		{"scheme only", http.Header{"Authorization": {"Bearer"}}, "", errBearer},
		{"scheme and space", http.Header{"Authorization": {"Bearer "}}, "", errBearer},
		{"scheme and tab", http.Header{"Authorization": {"Bearer\tsecret-1"}}, "", errBearer},
		{"empty", http.Header{"Authorization": {""}}, "", errBearer},
		{"empty key", http.Header{"X-Api-Key": {""}}, "", errAPIKeyHeader},
		{"empty key beside a bearer", http.Header{"Authorization": {"Bearer secret-1"}, "X-Api-Key": {""}}, "", errAPIKeyHeader},
		{"two words", http.Header{"Authorization": {"Bearer secret-1 secret-1"}}, "", errBearer},
		{"two in one", http.Header{"Authorization": {"Bearer secret-1, Bearer secret-1"}}, "", errBearer},
		{"two bearers", http.Header{"Authorization": {"Bearer secret-1", "Bearer secret-1"}}, "", errBearer},
		{"two keys", http.Header{"X-Api-Key": {"secret-1", "secret-1"}}, "", errAPIKeyHeader},
		{"control character", http.Header{"X-Api-Key": {"secret-1\x00"}}, "", errAPIKeyHeader},
		{"other script", http.Header{"Authorization": {"Bearer sécret-1"}}, "", errBearer},
		{"not UTF-8", http.Header{"Authorization": {"Bearer \xff"}}, "", errBearer},
		{"long bearer", http.Header{"Authorization": {"Bearer " + long}}, "", errBearer},
		{"long key", http.Header{"X-Api-Key": {long}}, "", errAPIKeyHeader},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			p, err := a.Authenticate(t.Context(), tt.header)
			if p.Name != tt.name || !errors.Is(err, tt.want) {
				t.Errorf("got %+v, %v, want %s, %v", p, err, tt.name, tt.want)
			}
			if refused := tt.want != nil; errors.Is(err, ErrUnauthenticated) != refused {
				t.Errorf("got error %v", err)
			}
		})
	}
}

func TestKeysAndTokensSideBySide(t *testing.T) {
	t.Parallel()
	pool := newIDP()
	pool.listen(t)
	options := pool.options()
	options.transport = nil
	options.APIKeys = entry("one", "read", "secret-1")
	a := mustNew(t, options)
	for credential, want := range map[string]string{"secret-1": "one", genuine(t, pool.access(nil)): endUser} {
		if p, err := a.Authenticate(t.Context(), bearer(credential)); err != nil || p.Name != want {
			t.Errorf("got %+v, %v, want %s", p, err, want)
		}
	}
	if _, err := a.Authenticate(t.Context(), bearer("secret-2")); !errors.Is(err, errUnknownKey) {
		t.Errorf("got error %v", err)
	}
}

// FuzzAuthenticate sends headers to an Authenticator with one key and one issuer: nobody gets in but the holder of the
// key, however the header is written, and the one who has the token.
func FuzzAuthenticate(f *testing.F) {
	pool := newIDP()
	options := pool.options()
	options.transport = pool
	options.APIKeys = entry("one", "read", "secret-1")
	a := mustNew(f, options)
	token := genuine(f, pool.access(nil))
	parts := strings.Split(token, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"first"}`))

	for _, seed := range []string{
		"", "Bearer", "Bearer ", "Bearer secret-1", "bearer  secret-1", "Basic secret-1", "Bearer secret-1 x", "Bearer " + token, "Bearer ..",
		"Bearer " + token[:len(token)-2], "Bearer " + parts[0] + "." + parts[1] + ".", "Bearer " + none + "." + parts[1] + ".",
		"Bearer " + signed(f, jwt.SigningMethodHS256, []byte("x"), map[string]any{"kid": "first"}, pool.access(nil)),
		"Bearer " + genuine(f, pool.access(jwt.MapClaims{"token_use": "refresh"})), "Bearer a.b.c", "Bearer e30.e30.", "\xff\x00",
	} {
		f.Add(seed, "")
		f.Add("", strings.TrimPrefix(seed, "Bearer "))
	}
	f.Add("Bearer secret-1", "secret-1")
	f.Add("Bearer secret-1", "secret-2")
	f.Add("Bearer "+token, token)

	f.Fuzz(func(t *testing.T, authorization, key string) {
		header := make(http.Header)
		if authorization != "" {
			header.Set("Authorization", authorization)
		}
		if key != "" {
			header.Set("X-API-Key", key)
		}
		p, err := a.Authenticate(t.Context(), header)
		if err != nil {
			if !errors.Is(err, ErrUnauthenticated) || !reflect.DeepEqual(p, Principal{}) {
				t.Errorf("got %+v, %v", p, err)
			}
			return
		}
		for _, sent := range []string{authorization, key} {
			if sent != "" && !strings.HasSuffix(sent, "secret-1") && !strings.HasSuffix(sent, token) {
				t.Errorf("%q and %q are let in as %+v", authorization, key, p)
			}
		}
	})
}
