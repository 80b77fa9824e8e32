package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// entry returns the entry of a key.
func entry(name, scopes, secret string) string {
	return fmt.Sprintf("%s:%s:%x", name, scopes, sha256.Sum256([]byte(secret)))
}

// keyFile writes a file of API keys and returns its path.
func keyFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	replaceFile(t, path, content)
	return path
}

// replaceFile puts a file in place at once, as a careful operator does.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestKeysAccepted(t *testing.T) {
	t.Parallel()
	one := entry("one", "read", "secret-1")
	two := entry("two", "consume+metrics", "secret-2")
	for _, tt := range []struct{ outcome, list string }{
		{"one after the other", one + "," + two},
		{"blanks and empty entries", " " + one + " , ," + two + ",\n"},
		{"hash in capitals", strings.Replace(strings.ToUpper(one), "ONE:READ", "one:read", 1) + "," + two},
		{"comments and lines", "# keys\r\n\r\n" + one + " # the first\r\n  " + two + "\r\n"},
		{"lines that end in commas", one + ",\n" + two + ","},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			options := []Options{{APIKeysFile: keyFile(t, tt.list)}}
			if !strings.Contains(strings.TrimSpace(tt.list), "\n") {
				options = append(options, Options{APIKeys: tt.list})
			}
			for _, o := range options {
				a := mustNew(t, o)
				got, err := a.Authenticate(t.Context(), bearer("secret-2"))
				if want := (Principal{Name: "two", Scopes: []Scope{Consume, Metrics}}); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("got %+v, %v, want %+v", got, err, want)
				}
				got, err = a.Authenticate(t.Context(), bearer("secret-1"))
				if want := (Principal{Name: "one", Scopes: []Scope{Read}}); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("got %+v, %v, want %+v", got, err, want)
				}
			}
		})
	}
}

func TestKeysRefused(t *testing.T) {
	t.Parallel()
	hash := strings.TrimPrefix(entry("", "", "secret"), "::")
	other := strings.TrimPrefix(entry("", "", "other"), "::")
	const (
		shape  = "is not NAME:SCOPE+SCOPE:HASH, with :EXPIRES and :COMMENT or without"
		name   = "the name is not 1 to 64 letters, digits, dots, underscores and hyphens"
		secret = "a key or a hash stands where the name should be"
		scopes = "the scopes are not one or more of read, consume, refund, export, manage and metrics"
		expiry = "the expiry is not a day such as 2027-06-30"
		digits = "the hash is not the 64 hexadecimal digits of a SHA-256"
	)
	for _, tt := range []struct{ outcome, list, report string }{
		{"empty", ",", "there is none"},
		{"comment only", "#a:read:" + hash, "there is none"},
		{"no colon", "vpum_secret", "entry 1 " + shape},
		{"one colon", "a:" + hash, "entry 1 " + shape},
		{"five colons", "a:read:" + hash + ":::x", "entry 1 " + shape},
		{"expiry is no day", "a:read:" + hash + ":x", "entry 1 (a): " + expiry},
		{"expiry is a day that there is not", "a:read:" + hash + ":2027-02-30", "entry 1 (a): " + expiry},
		{"expiry is an instant", "a:read:" + hash + ":2027-02-20T10", "entry 1 (a): " + expiry},
		{"expiry and hash change places", "a:read:2027-02-20:" + hash, "entry 1 (a): " + expiry + "; entry 1 (a): " + digits},
		{"comment is too long", "a:read:" + hash + "::" + strings.Repeat("x", 65), "entry 1 (a): the comment is not at most 64 characters without commas, colons, hash signs and control characters"},
		{"comment is a hash", "a:read:" + hash + "::" + other, "entry 1 (a): a key or a hash stands where the comment should be"},
		{"comment has the key", "a:read:" + hash + "::the vpum_SECRET", "entry 1 (a): a key or a hash stands where the comment should be"},
		{"name is empty", ":read:" + hash, "entry 1: " + name},
		{"name is too long", strings.Repeat("a", 65) + ":read:" + hash, "entry 1: " + name},
		{"name has a space", "a b:read:" + hash, "entry 1: " + name},
		{"name has a letter of another script", "ä:read:" + hash, "entry 1: " + name},
		{"name is a hash", other + ":read:" + hash, "entry 1: " + secret},
		{"name is a key", "vpum_SECRET:read:" + hash, "entry 1: " + secret},
		{"name comes twice", "a:read:" + hash + ",a:read:" + other, "entry 2 (a): the name is used twice"},
		{"hash comes twice", "a:read:" + hash + ",b:read:" + strings.ToUpper(hash), "entry 2 (b): the hash is used twice"},
		{"no scope", "a::" + hash, "entry 1 (a): " + scopes},
		{"scope is unknown", "a:read+admin:" + hash, "entry 1 (a): " + scopes},
		{"scope is in capitals", "a:READ:" + hash, "entry 1 (a): " + scopes},
		{"scope is empty", "a:read+:" + hash, "entry 1 (a): " + scopes},
		{"scopes and hash change places", "a:" + hash + ":read", "entry 1 (a): " + scopes + "; entry 1 (a): " + digits},
		{"hash is short", "a:read:" + hash[1:], "entry 1 (a): " + digits},
		{"hash is long", "a:read:" + hash + "00", "entry 1 (a): " + digits},
		{"hash is the key", "a:read:vpum_SECRET", "entry 1 (a): " + digits},
		{"hash has a blank before it", "a:read: " + hash[1:], "entry 1 (a): " + digits},
		{"everything at once", "a:read:" + hash + ",,b,a:x:y", "entry 3 " + shape + "; entry 4 (a): the name is used twice; entry 4 (a): " + scopes + "; entry 4 (a): " + digits},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			t.Parallel()
			a, err := New(Options{APIKeys: tt.list})
			if err == nil {
				a.Close()
				t.Fatal("got no error")
			}
			if want := "API keys: " + tt.report; err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestKeyFileRefused(t *testing.T) {
	t.Parallel()
	t.Run("lines are named", func(t *testing.T) {
		t.Parallel()
		path := keyFile(t, "# keys\n"+entry("a", "read", "x")+"\n\nb:read\nc:none:0\n")
		_, err := New(Options{APIKeysFile: path})
		if err == nil || !strings.HasPrefix(err.Error(), "API keys: "+path+": line 4 is not NAME:SCOPE+SCOPE:HASH, with :EXPIRES and :COMMENT or without; line 5 (c): the scopes are not") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		t.Parallel()
		if _, err := New(Options{APIKeysFile: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("empty does not open the service", func(t *testing.T) {
		t.Parallel()
		if _, err := New(Options{APIKeysFile: keyFile(t, "")}); err == nil {
			t.Error("got no error")
		}
	})
	t.Run("beside a list", func(t *testing.T) {
		t.Parallel()
		if _, err := New(Options{APIKeys: entry("a", "read", "x"), APIKeysFile: keyFile(t, entry("a", "read", "x"))}); err == nil {
			t.Error("got no error")
		}
	})
}

func TestEverythingWrongIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(Options{APIKeys: "a", Issuer: "http://idp.example.com", UserIDClaim: "email"})
	for _, want := range []string{"API keys: entry 1", "issuer: ", "client ids: ", "user id claim: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}

func TestNewKey(t *testing.T) {
	t.Parallel()
	secret, made, err := NewKey(Key{Name: "postpilot", Scopes: []Scope{Read, Consume}})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^vpum_[A-Z2-7]{52}$`).MatchString(secret) {
		t.Errorf("the key has the form of %s", secret)
	}
	if want := entry("postpilot", "read+consume", secret); made != want {
		t.Errorf("got  %s\nwant %s", made, want)
	}
	a := mustNew(t, Options{APIKeys: made})
	if p, err := a.Authenticate(t.Context(), bearer(secret)); err != nil || p.Name != "postpilot" || !p.Can(Consume) || p.Can(Manage) {
		t.Errorf("got %+v, %v", p, err)
	}
	if another, _, _ := NewKey(Key{Name: "postpilot", Scopes: []Scope{Read}}); another == secret {
		t.Error("two keys are the same")
	}
	for outcome, wrong := range map[string]struct {
		name   string
		scopes []Scope
	}{
		"name is empty":         {"", []Scope{Read}},
		"name would be a field": {"a:b", []Scope{Read}},
		"no scope":              {"a", nil},
		"scope is unknown":      {"a", []Scope{"admin"}},
		"scope is empty":        {"a", []Scope{""}},
	} {
		if secret, made, err := NewKey(Key{Name: wrong.name, Scopes: wrong.scopes}); err == nil || secret != "" || made != "" {
			t.Errorf("%s: got %q, %q, %v", outcome, secret, made, err)
		}
	}
}

func TestKeyExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		expires, err := ParseExpiry(time.Now().UTC().Format(time.DateOnly))
		if err != nil {
			t.Fatal(err)
		}
		secret, made, err := NewKey(Key{Name: "guest", Scopes: []Scope{Read}, Expires: expires, Comment: "for the fair"})
		if err != nil {
			t.Fatal(err)
		}
		if want := entry("guest", "read", secret) + time.Now().UTC().Format(":2006-01-02:") + "for the fair"; made != want {
			t.Errorf("got  %s\nwant %s", made, want)
		}
		a := mustNew(t, Options{APIKeys: made})
		if got, want := a.Keys(), (Key{"guest", []Scope{Read}, expires, "for the fair"}); len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		pass(time.Until(expires) - 1)
		if p, err := a.Authenticate(t.Context(), bearer(secret)); err != nil || !p.ExpiresAt.Equal(expires) {
			t.Errorf("in the last moment of its last day: got %+v, %v", p, err)
		}
		pass(1)
		if p, err := a.Authenticate(t.Context(), bearer(secret)); !errors.Is(err, errKeyExpired) || p.Name != "" {
			t.Errorf("after its last day: got %+v, %v", p, err)
		}
	})
}

func TestKeyWithoutExpiryNorComment(t *testing.T) {
	t.Parallel()
	for _, tail := range []string{"", ":", "::", "::a comment"} {
		a := mustNew(t, Options{APIKeys: entry("a", "read", "x") + tail})
		if p, err := a.Authenticate(t.Context(), bearer("x")); err != nil || !p.ExpiresAt.IsZero() {
			t.Errorf("%q: got %+v, %v", tail, p, err)
		}
	}
}

func TestEveryKeyIsFound(t *testing.T) {
	t.Parallel()
	const n = 200
	entries := make([]string, n)
	for i := range entries {
		entries[i] = entry(fmt.Sprint("key-", i), "read", fmt.Sprint("secret-", i))
	}
	a := mustNew(t, Options{APIKeys: strings.Join(entries, ",")})
	for i := range n {
		if p, err := a.Authenticate(t.Context(), bearer(fmt.Sprint("secret-", i))); err != nil || p.Name != fmt.Sprint("key-", i) {
			t.Errorf("secret-%d: got %+v, %v", i, p, err)
		}
	}
	hash := strings.TrimPrefix(entry("", "", "secret-0"), "::")
	for _, wrong := range []string{"secret-200", "secret-", "Secret-0", "secret-0x", hash, entries[0]} {
		if p, err := a.Authenticate(t.Context(), bearer(wrong)); !errors.Is(err, errUnknownKey) {
			t.Errorf("%s: got %+v, %v", wrong, p, err)
		}
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	old, latest := entry("old", "read", "secret-old"), entry("new", "manage", "secret-new")
	path := keyFile(t, old)
	a := mustNew(t, Options{APIKeysFile: path})
	accepted := func(secret string) bool {
		_, err := a.Authenticate(t.Context(), bearer(secret))
		return err == nil
	}

	for outcome, content := range map[string]string{"bad": latest + "\nx", "empty": "", "only comments": "# " + latest} {
		replaceFile(t, path, content)
		if err := a.Reload(); err == nil || !accepted("secret-old") || accepted("secret-new") {
			t.Errorf("a file that is %s: got error %v, old key %v, new key %v", outcome, err, accepted("secret-old"), accepted("secret-new"))
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := a.Reload(); !errors.Is(err, os.ErrNotExist) || !accepted("secret-old") {
		t.Errorf("no file: got error %v", err)
	}
	replaceFile(t, path, latest)
	if err := a.Reload(); err != nil || accepted("secret-old") || !accepted("secret-new") {
		t.Errorf("a good file: got error %v, old key %v, new key %v", err, accepted("secret-old"), accepted("secret-new"))
	}

	for outcome, o := range map[string]Options{"open": {}, "list": {APIKeys: old}} {
		if err := mustNew(t, o).Reload(); err != nil {
			t.Errorf("%s: got error %v", outcome, err)
		}
	}
}

func TestReloadUnderLoadRefusesNobody(t *testing.T) {
	t.Parallel()
	kept := entry("kept", "read", "secret-kept")
	path := keyFile(t, kept)
	a := mustNew(t, Options{APIKeysFile: path})

	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				if p, err := a.Authenticate(ctx, bearer("secret-kept")); err != nil || p.Name != "kept" {
					t.Errorf("got %+v, %v", p, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		content := kept + "\n" + entry("other", "read", fmt.Sprint("secret-", i))
		if i%2 == 1 {
			content = entry("first", "read", "secret-first") + "," + content
		}
		if i%5 == 4 {
			content += "\nbad"
		}
		replaceFile(t, path, content)
		if err := a.Reload(); (err != nil) != (i%5 == 4) {
			t.Errorf("reload %d: got error %v", i, err)
		}
	}
	stop()
	callers.Wait()
}

func FuzzParseKeys(f *testing.F) {
	const secret = "0123456789ABCDEF"
	hash := strings.Repeat(secret, 4)
	for _, seed := range []string{
		"", ",", "#", "a", "a:read:" + hash, "a:read:" + hash + ",b:consume+manage+metrics:" + hash, "a:read:" + hash + ",a:x:" + hash,
		hash + ":read:a", "a:" + hash + ":read", "vpum_" + secret + ":read:" + hash, "a:b:" + secret, "a:read+:" + hash, " a : read : " + hash,
		"# c\r\na:read:" + hash + " # d\n", "a:read:" + hash + ":", "\xff:\x00:\u2028", "vpum_" + secret + secret,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		for _, separator := range []string{",", "\n"} {
			keys, err := parseKeys("entry", strings.Split(list, separator))
			if (err == nil) == (len(keys) == 0) {
				t.Fatalf("%q: got %d keys, %v", list, len(keys), err)
			}
			if err != nil {
				if strings.Contains(err.Error(), hash) || strings.Contains(err.Error(), "vpum_") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%q: the error shows a secret or has more than one line: %v", list, err)
				}
				continue
			}
			seen := make(map[any]bool)
			for _, k := range keys {
				if !nameShape.MatchString(k.Name) || len(k.Scopes) == 0 || seen[k.hash] || seen[k.Name] {
					t.Errorf("%q: key %+v", list, k.Key)
				}
				seen[k.hash], seen[k.Name] = true, true
			}
		}
	})
}
