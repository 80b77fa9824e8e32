package httpapi_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

// counted is an observer that counts problems by their code.
type counted struct {
	mu    sync.Mutex
	codes map[user.Code]int
}

func (*counted) Begin() (end func())                        { return func() {} }
func (*counted) Request(string, string, int, time.Duration) {}

func (c *counted) Problem(code user.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.codes[code]++
}

func TestProblem_IsCountedByItsCode(t *testing.T) {
	t.Parallel()
	status := request{Method: http.MethodGet, Path: "/user/u/status"}
	for name, c := range map[string]struct {
		request request
		err     error
		want    user.Code // none when empty
	}{
		"an answer that is none":            {request{Method: http.MethodGet, Path: "/tiers"}, nil, ""},
		"a probe that fails":                {request{Method: http.MethodGet, Path: "/health"}, errors.New("no answer"), ""},
		"a read without a database":         {status, user.ErrDatabaseUnavailable, user.CodeDatabaseUnavailable},
		"a read that nobody foresaw":        {status, errors.New("unforeseen"), user.CodeInternal},
		"a change without a database":       {request{Method: http.MethodPost, Path: "/user/u/add-tokens", Body: m{"tokens_to_add": 1}}, user.ErrDatabaseUnavailable, user.CodeDatabaseUnavailable},
		"a request that is wrong":           {request{Method: http.MethodPost, Path: "/user", Body: m{}}, nil, user.CodeValidation},
		"a path that is none":               {request{Method: http.MethodGet, Path: "/nope"}, nil, "not_found"},
		"a handler that panics is internal": {status, errPanic, user.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := &counted{codes: map[user.Code]int{}}
			s, _ := stub(t, func(context.Context) error {
				if c.err == errPanic {
					panic(c.err)
				}
				return c.err
			}, func(o *httpapi.Options) { o.Observer = got })
			s.do(c.request)
			want := map[user.Code]int{}
			if c.want != "" {
				want[c.want] = 1
			}
			if !maps.Equal(got.codes, want) {
				t.Errorf("counted %v, want %v", got.codes, want)
			}
			for code := range got.codes {
				if !slices.Contains(httpapi.Codes(), code) {
					t.Errorf("%s is not among the codes", code)
				}
			}
		})
	}
}

var errPanic = errors.New("out of order")

func TestProblem_IsCountedWhereTooManyAreInFlight(t *testing.T) {
	t.Parallel()
	got := &counted{codes: map[user.Code]int{}}
	status := request{Method: http.MethodGet, Path: "/user/u/status"}
	var s *service
	s, _ = stub(t, func(context.Context) error {
		s.do(status).want(http.StatusServiceUnavailable)
		return user.ErrUserNotFound
	}, func(o *httpapi.Options) { o.Observer, o.MaxInFlight = got, 1 })
	s.do(status).want(http.StatusNotFound)
	if want := (map[user.Code]int{user.CodeOverloaded: 1, user.CodeUserNotFound: 1}); !maps.Equal(got.codes, want) {
		t.Errorf("counted %v, want %v", got.codes, want)
	}
}
