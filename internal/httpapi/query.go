package httpapi

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/viralpilot/user-management/internal/user"
)

// query reads the parameters of a list, and keeps all that is wrong with them.
type query struct {
	values   url.Values
	problems fieldErrors
}

func newQuery(r *http.Request) *query {
	values, err := url.ParseQuery(r.URL.RawQuery)
	q := &query{values: values}
	if err != nil {
		q.problems = fieldErrors{{Field: "query", Message: "must be percent-encoded pairs"}}
	}
	return q
}

// read passes the parameter to set, if it is there.
func (q *query) read(name string, set func(string) error) {
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

// err is validation_failed when anything was wrong.
func (q *query) err() error { return q.problems.with(nil) }

// Pages of a list.
const (
	defaultLimit = 50
	maxLimit     = 200
)

func parseLimit(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n < 1 || n > maxLimit {
		return 0, fieldMessage(fmt.Sprintf("must be from 1 to %d", maxLimit))
	}
	return int(n), nil
}
