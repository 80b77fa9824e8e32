// Package auth tells who calls and what they may do: API keys with scopes, and tokens of an Amazon Cognito user pool. It
// knows headers, keys and tokens; it knows no routes and no database.
package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// ErrUnauthenticated is matched by the errors of callers that are not known. The text of such an error is a plain
// sentence that may be shown to the caller.
var ErrUnauthenticated = errors.New("unauthenticated")

// ErrUnavailable is matched by the errors of callers that cannot be told apart now, because the keys of the token issuer
// are out of reach. The same request may succeed later. The text of such an error is for the log.
var ErrUnavailable = errors.New("the keys of the token issuer are out of reach")

// refusal is an error that is ErrUnauthenticated. It is a constant sentence, so that nothing of what the caller sent
// gets into an answer or a log.
type refusal string

func (r refusal) Error() string { return string(r) }

func (r refusal) Is(target error) bool { return target == ErrUnauthenticated }

const (
	errNoCredentials  = refusal("An API key or a token is required.")
	errBearer         = refusal("The Authorization header must be one Bearer followed by one key or token.")
	errAPIKeyHeader   = refusal("The X-API-Key header must be one key.")
	errTwoCredentials = refusal("Authorization and X-API-Key name different callers.")
	errUnknownKey     = refusal("The API key is not known.")
	errKeyExpired     = refusal("The API key has expired.")
)

// maxCredential is the length in bytes from which on a key or token is not looked at. Cognito's tokens have one to three
// thousand.
const maxCredential = 8 << 10

// Options say who is let in: the holders of API keys, the users of a Cognito user pool, or both. With neither, everybody
// is, and may do everything.
type Options struct {
	// APIKeys are NAME:SCOPE+SCOPE:HASH[:EXPIRES[:COMMENT]] entries that are separated by commas, HASH being the SHA-256
	// of the whole key in hexadecimal and EXPIRES the last day, in UTC, on which it is accepted (2027-06-30).
	APIKeys string
	// APIKeysFile names a file of such entries instead, one a line or separated by commas, with comments from # to the end
	// of a line. [Authenticator.Reload] reads it again.
	APIKeysFile string

	// Issuer is the URL of the user pool, as in the claim iss of its tokens: https, or http on a loopback host.
	Issuer string
	// ClientIDs are the app clients of the pool whose tokens are accepted.
	ClientIDs []string
	// UserIDClaim is "sub", also when empty, or "username": what of a token names the account of its user.
	UserIDClaim string
	// AdminGroups are the groups of the pool whose members have the scope manage.
	AdminGroups []string

	// Logger gets a line when the keys of the issuer go out of reach, and when they are back. Nil is none.
	Logger *slog.Logger

	// transport stands in for the network in tests.
	transport http.RoundTripper
}

// Authenticator finds out who sent a request. It may be used by many goroutines at once.
type Authenticator struct {
	keys   *apiKeys  // nil without API keys
	tokens *verifier // nil without an issuer
}

// New returns an Authenticator, which must be closed. It does not wait for the keys of the issuer: they are fetched in the
// background. The error lists everything that is wrong with the options, without any key or hash.
func New(o Options) (*Authenticator, error) {
	a := &Authenticator{}
	var keysErr, tokensErr error
	if o.APIKeys != "" || o.APIKeysFile != "" {
		a.keys, keysErr = newAPIKeys(o.APIKeys, o.APIKeysFile)
	}
	if o.Issuer != "" {
		a.tokens, tokensErr = newVerifier(o)
	}
	if err := errors.Join(keysErr, tokensErr); err != nil {
		return nil, err
	}
	if a.tokens != nil {
		a.tokens.keys.start()
	}
	return a, nil
}

// Close ends the work in the background. Tokens that are signed with a key not yet fetched are ErrUnavailable from then on.
func (a *Authenticator) Close() {
	if a.tokens != nil {
		a.tokens.keys.close()
	}
}

// Open reports whether everybody is let in, because there are neither API keys nor an issuer. That does not change: a
// key file that loses its last key is not accepted by Reload.
func (a *Authenticator) Open() bool { return a.keys == nil && a.tokens == nil }

// Reload reads the file of the API keys again, if there is one. Requests under way are answered by the old keys or by the
// new ones. When the file cannot be used, the error says all that is wrong with it and the old keys stay.
func (a *Authenticator) Reload() error {
	if a.keys == nil {
		return nil
	}
	return a.keys.reload()
}

// Keys lists the API keys that are accepted now, expired ones included, by name.
func (a *Authenticator) Keys() []Key {
	if a.keys == nil {
		return nil
	}
	return a.keys.list()
}

// IssuerReachable reports whether the keys of the issuer could be fetched when that was last tried.
func (a *Authenticator) IssuerReachable() bool { return a.tokens != nil && a.tokens.keys.reachable() }

// Authenticate returns the caller that the headers Authorization: Bearer and X-API-Key name. A bearer value may be an API
// key or, where there is an issuer, a token; X-API-Key must be a key. The error is ErrUnauthenticated or ErrUnavailable.
// It waits, as long as ctx lasts and for a few seconds at most, for keys of the issuer that are being fetched.
func (a *Authenticator) Authenticate(ctx context.Context, header http.Header) (Principal, error) {
	if a.Open() {
		return Anyone(), nil
	}
	credential, bearer, err := credentialOf(header)
	if err != nil {
		return Principal{}, err
	}
	if a.keys != nil {
		if p, ok := a.keys.find(credential); ok {
			if !p.ExpiresAt.IsZero() && !time.Now().Before(p.ExpiresAt) {
				return Principal{}, errKeyExpired
			}
			return p, nil
		}
	}
	if a.tokens != nil && bearer && strings.Count(credential, ".") == 2 {
		return a.tokens.verify(ctx, credential)
	}
	return Principal{}, errUnknownKey
}

// credentialOf returns the one key or token in header, and whether it is a bearer token.
func credentialOf(header http.Header) (credential string, bearer bool, err error) {
	authorization, keys := header.Values("Authorization"), header.Values("X-API-Key")
	if len(authorization) == 0 && len(keys) == 0 {
		return "", false, errNoCredentials
	}

	var token, key string
	if len(authorization) > 0 {
		scheme, rest, _ := strings.Cut(authorization[0], " ")
		token = strings.TrimLeft(rest, " ")
		if len(authorization) > 1 || !strings.EqualFold(scheme, "Bearer") || !presentable(token) {
			return "", false, errBearer
		}
	}
	if len(keys) > 0 {
		key = keys[0]
		if len(keys) > 1 || !presentable(key) {
			return "", false, errAPIKeyHeader
		}
	}
	switch {
	case token == "":
		return key, false, nil
	case key != "" && key != token:
		return "", false, errTwoCredentials
	default:
		return token, true, nil
	}
}

// presentable reports whether s can be a key or token: one word of visible ASCII, and not too long.
func presentable(s string) bool {
	return s != "" && len(s) <= maxCredential &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
