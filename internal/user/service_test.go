package user_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// failing is a store that fails all updates.
type failing struct {
	user.Store // never called
	err        error
}

func (f failing) Update(context.Context, user.Ref, func(user.State) (user.Change, error)) (user.Change, error) {
	return user.Change{}, f.err
}

// refusals are the codes that an observer is told of.
type refusals []user.Code

func (r *refusals) Entry(user.Entry)       {}
func (r *refusals) Refusal(code user.Code) { *r = append(*r, code) }

func TestEveryFailureIsObservedByItsCode(t *testing.T) {
	t.Parallel()
	var observed refusals
	for _, err := range []error{
		user.ErrInsufficientTokens, fmt.Errorf("wrapped: %w", user.ErrOverloaded.Because(errors.New("full"))), errors.New("unforeseen"), nil,
	} {
		s := user.Service{Store: failing{err: err}, Now: time.Now, Observer: &observed}
		if _, got := s.Consume(t.Context(), "u", user.Consume{Tokens: 1}); !errors.Is(got, err) {
			t.Errorf("got %v, want %v", got, err)
		}
	}
	if want := (refusals{user.CodeInsufficientTokens, user.CodeOverloaded, user.CodeInternal}); !slices.Equal(observed, want) {
		t.Errorf("observed %v, want %v", observed, want)
	}
}
