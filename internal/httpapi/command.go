package httpapi

import (
	"errors"
	"net/http"

	"github.com/viralpilot/user-management/internal/user"
)

// markReplayed tells a caller that the command had been done before under its key.
func markReplayed(w http.ResponseWriter, replayed bool) {
	if replayed {
		w.Header().Set(idempotencyReplayed, "true")
	}
}

// command reads the path id, the body and the idempotency key of a call that changes an account. That there is no
// such account counts before anything that is wrong with the rest, so it is looked up when something is.
func (a *API) command(w http.ResponseWriter, r *http.Request, in any) (string, error) {
	id, err := pathID(r)
	if err != nil {
		return "", err
	}
	if err = decode(w, r, in); err == nil {
		err = refuseQuery(r, checkKey(r))
	}
	return id, a.unknownFirst(r, id, err)
}

// unknownFirst returns err, or that the account does not exist when err is not nil and it does not.
func (a *API) unknownFirst(r *http.Request, id string, err error) error {
	if err == nil {
		return nil
	}
	if lookup := a.Users.Exists(r.Context(), id); errors.Is(lookup, user.ErrUserNotFound) {
		return lookup
	}
	return err
}

// checkKey refuses an Idempotency-Key that is not 1 to 255 printable ASCII characters. An empty one is none.
func checkKey(r *http.Request) error {
	values := r.Header.Values(idempotencyKey)
	problem := ""
	switch {
	case len(values) > 1:
		problem = "must be given once"
	case len(values) == 1 && len(values[0]) > 255:
		problem = "must have at most 255 characters"
	case len(values) == 1 && !printableASCII(values[0]):
		problem = "must be printable ASCII"
	default:
		return nil
	}
	return keyProblem(problem)
}

func keyProblem(problem string) error {
	e := *user.ErrValidation
	e.Fields = []user.FieldError{{Field: idempotencyKey, Message: problem}}
	return &e
}

func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// meta is what the call carries beside its body.
func meta(r *http.Request, m metadata) user.Meta {
	return user.Meta{IdempotencyKey: r.Header.Get(idempotencyKey), Metadata: m, Actor: actor(r)}
}
