package user_test

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/viralpilot/user-management/internal/user"
)

func TestValidateID_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, id := range []string{
		"a", "us-east-1:1b2c3d4e-0000-4000-8000-000000000000", "user@x.com", "a/b", "%41", "%", "..." /* no dot segment */, ".a", "a b",
		" a", "ünï", "😀", "a\u00a0", strings.Repeat("x", 255), strings.Repeat("ü", 255), "'; DROP TABLE userdata; --",
	} {
		if problem := user.ValidateID(id); problem != "" {
			t.Errorf("%q is refused: %s", id, problem)
		}
	}
	for id, want := range map[string]string{
		"":                       "must not be empty",
		"\xff":                   "must be valid UTF-8",
		"a\xc3":                  "must be valid UTF-8",
		"\xed\xa0\x80":           "must be valid UTF-8",
		strings.Repeat("x", 256): "must have at most 255 characters",
		strings.Repeat("ü", 256): "must have at most 255 characters",
		"a\x00b":                 "must not contain control characters",
		"a\n":                    "must not contain control characters",
		"\t":                     "must not contain control characters",
		"\x7f":                   "must not contain control characters",
		"a\u0085":                "must not contain control characters",
		" ":                      "must not consist of blanks only",
		"\u00a0\u2003\u3000":     "must not consist of blanks only",
		".":                      "must not be a dot segment",
		"..":                     "must not be a dot segment",
	} {
		if got := user.ValidateID(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

// FuzzValidateID reads ids character by character.
func FuzzValidateID(f *testing.F) {
	f.Fuzz(func(t *testing.T, id string) {
		ok, characters, dark := id != "." && id != "..", 0, 0
		for i, r := range id {
			characters++
			if r == unicode.ReplacementChar && !strings.HasPrefix(id[i:], "\ufffd") || r < ' ' || '\x7f' <= r && r < '\u00a0' {
				ok = false
			}
			if !unicode.IsSpace(r) {
				dark++
			}
		}
		if want := ok && dark > 0 && characters <= 255; (user.ValidateID(id) == "") != want {
			t.Errorf("%q: %q, want valid: %t", id, user.ValidateID(id), want)
		}
	})
}

func TestError_HasCodeAndCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("no route to host")
	err := error(user.ErrDatabaseUnavailable.Because(cause))
	if !errors.Is(err, user.ErrDatabaseUnavailable) || !errors.Is(err, cause) || errors.Is(err, user.ErrOverloaded) {
		t.Errorf("%v is not what it should be", err)
	}
	if !strings.HasPrefix(err.Error(), "database_unavailable: ") || !strings.HasSuffix(err.Error(), ": no route to host") {
		t.Errorf("%v does not say its code and cause", err)
	}
	if user.ErrDatabaseUnavailable.Err != nil || strings.Contains(user.ErrDatabaseUnavailable.Error(), "route") {
		t.Error("a cause was left on the shared value")
	}
}
