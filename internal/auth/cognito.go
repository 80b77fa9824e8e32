package auth

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/viralpilot/user-management/internal/user"
)

const (
	errToken           = refusal("The token is not valid.")
	errTokenSignature  = refusal("The token is not signed with RS256 by its issuer.")
	errTokenKey        = refusal("The token is signed with an unknown key.")
	errTokenExpired    = refusal("The token has expired.")
	errTokenNotYet     = refusal("The token is not valid yet.")
	errTokenIssuer     = refusal("The token is from another issuer.")
	errTokenClient     = refusal("The token is for another client.")
	errTokenUse        = refusal("The token is neither an access token nor an ID token.")
	errTokenIncomplete = refusal("The token lacks a claim that is needed here, or has one that cannot be used.")
)

// leeway is how far the clocks of the issuer and of this machine may differ: a token is accepted so long before its
// beginning and after its end.
const leeway = 30 * time.Second

// verifier checks the access and ID tokens of one Cognito user pool.
type verifier struct {
	issuer      string
	clientIDs   []string
	byUsername  bool
	adminGroups []string
	keys        *keySet
	parser      *jwt.Parser
}

// newVerifier returns a verifier whose keys are not fetched before they are started.
func newVerifier(o Options) (*verifier, error) {
	err := errors.Join(checkIssuer(o.Issuer), checkClientIDs(o.ClientIDs), checkUserIDClaim(o.UserIDClaim))
	if err != nil {
		return nil, err
	}
	return &verifier{
		issuer:      o.Issuer,
		clientIDs:   o.ClientIDs,
		byUsername:  o.UserIDClaim == "username",
		adminGroups: o.AdminGroups,
		keys:        newKeySet(o.Issuer+"/.well-known/jwks.json", o.transport, o.Logger),
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodRS256.Alg()}),
			jwt.WithStrictDecoding(),
			jwt.WithIssuer(o.Issuer),
			jwt.WithExpirationRequired(),
			jwt.WithLeeway(leeway),
		),
	}, nil
}

func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(issuer, "/"):
		return errors.New("issuer: it is not a URL such as https://idp.example.com/pool, without a slash at the end")
	case u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())):
		return errors.New("issuer: it is neither https nor on a loopback host")
	default:
		return nil
	}
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

func checkClientIDs(ids []string) error {
	if len(ids) == 0 || slices.Contains(ids, "") {
		return errors.New("client ids: there is none, or an empty one")
	}
	return nil
}

func checkUserIDClaim(claim string) error {
	if !slices.Contains([]string{"", "sub", "username"}, claim) {
		return errors.New("user id claim: it is neither sub nor username")
	}
	return nil
}

// verify returns the user whom a token is for.
func (v *verifier) verify(ctx context.Context, raw string) (Principal, error) {
	// A map, since the names of claims must match exactly, which those of struct fields need not.
	claims := make(jwt.MapClaims)
	var keyErr error
	_, err := v.parser.ParseWithClaims(raw, claims, func(t *jwt.Token) (any, error) {
		key, err := v.key(ctx, t.Header, claims)
		keyErr = err
		return key, err
	})
	if keyErr != nil {
		return Principal{}, keyErr
	}
	if err != nil {
		return Principal{}, reason(err)
	}
	return v.principal(claims)
}

// key returns the key that a token says it is signed with.
func (v *verifier) key(ctx context.Context, header map[string]any, claims jwt.MapClaims) (any, error) {
	// Whoever makes tokens up should not be able to make us fetch keys for them.
	if text(claims, "iss") != v.issuer {
		return nil, errTokenIssuer
	}
	// It would name extensions that must be understood, and none is.
	if _, critical := header["crit"]; critical {
		return nil, errToken
	}
	return v.keys.find(ctx, text(header, "kid"))
}

// reason tells what the parser has against a token.
func reason(err error) error {
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return errTokenSignature
	case errors.Is(err, jwt.ErrTokenExpired):
		return errTokenExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return errTokenNotYet
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing):
		return errTokenIncomplete
	default:
		return errToken
	}
}

// principal makes the caller out of the claims of a token whose signature, issuer and times are right.
func (v *verifier) principal(claims jwt.MapClaims) (Principal, error) {
	var client, username string
	switch text(claims, "token_use") {
	case "access":
		client, username = text(claims, "client_id"), text(claims, "username")
	case "id":
		client, username = text(claims, "aud"), text(claims, "cognito:username")
	default:
		return Principal{}, errTokenUse
	}
	if !slices.Contains(v.clientIDs, client) {
		return Principal{}, errTokenClient
	}

	sub := text(claims, "sub")
	id := sub
	if v.byUsername {
		id = username
	}
	// A name may be as long as an id.
	name := "cognito:" + id // what erasing the account looks for
	if sub == "" || user.ValidateID(name) != "" || user.ValidateID(id) != "" {
		return Principal{}, errTokenIncomplete
	}
	p := Principal{Name: endUser, UserID: id}
	if v.isAdmin(claims) {
		p.Name, p.Scopes = name, []Scope{Manage}
	}
	if expires, err := claims.GetExpirationTime(); err == nil && expires != nil {
		p.ExpiresAt = expires.UTC()
	}
	return p, nil
}

func (v *verifier) isAdmin(claims jwt.MapClaims) bool {
	groups, _ := claims["cognito:groups"].([]any)
	return slices.ContainsFunc(groups, func(group any) bool {
		name, ok := group.(string)
		return ok && slices.Contains(v.adminGroups, name)
	})
}

// text returns the string at key, and nothing when something else is there.
func text(from map[string]any, key string) string {
	s, _ := from[key].(string)
	return s
}
