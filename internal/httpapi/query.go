package httpapi

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/viralpilot/user-management/internal/user"
)

// query reads the parameters of a list, and keeps all that is wrong with them.
type query struct {
	values   url.Values
	problems fieldErrors
	known    []string
}

func newQuery(r *http.Request) *query {
	if r.URL.RawQuery == "" {
		return &query{}
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	q := &query{values: values}
	if err != nil {
		q.problems = fieldErrors{{Field: "query", Message: "must be percent-encoded pairs"}}
	}
	return q
}

// read passes the parameter to set, if it is there.
func (q *query) read(name string, set func(string) error) {
	if len(q.values) == 0 {
		return
	}
	q.known = append(q.known, name)
	given := q.values[name]
	if len(given) == 0 {
		return
	}
	err := set(given[0])
	if len(given) > 1 {
		err = fieldMessage("must be given once")
	}
	if err != nil {
		q.problems = append(q.problems, user.FieldError{Field: name, Message: err.Error()})
	}
}

// err is validation_failed when anything was wrong, or a parameter was given that the call does not have.
func (q *query) err() error {
	if len(q.values) == 0 {
		return q.problems.with(nil)
	}
	for _, name := range slices.Sorted(maps.Keys(q.values)) {
		if !slices.Contains(q.known, name) {
			q.problems = append(q.problems, user.FieldError{Field: name, Message: "is not a parameter of this call"})
		}
	}
	return q.problems.with(nil)
}

// refuseQuery returns err, or what is wrong with the query of a call that has no parameters.
func refuseQuery(r *http.Request, err error) error {
	if err != nil || r.URL.RawQuery == "" {
		return err
	}
	return newQuery(r).err()
}

// oneOf says what a value must be.
func oneOf[T ~string](values []T) fieldMessage {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	last := len(words) - 1
	return fieldMessage("must be " + strings.Join(words[:last], ", ") + " or " + words[last])
}

// Pages of a list.
const (
	defaultLimit = 50
	maxLimit     = 200
)

// pageOf cuts what was found, of which one more than limit was asked for, to a page. The next one begins at the cursor of
// the page's last item; there is none where the one more is missing.
func pageOf[T any](found []T, limit int, cursor func(last T) string) (page []T, next *string) {
	if len(found) <= limit {
		return found, nil
	}
	c := cursor(found[limit-1])
	return found[:limit], &c
}

func parseLimit(s string) (int, error) { return parseCount(s, 1, maxLimit) }

func parseCount(s string, least, most int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || int(n) < least || int(n) > most {
		return 0, fieldMessage(fmt.Sprintf("must be from %d to %d", least, most))
	}
	return int(n), nil
}
