package config

import (
	"fmt"
	"math"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func FuzzTierTokens(f *testing.F) {
	for _, seed := range []string{
		"", "basic:5000,creator:20000,agency:100000", " free : 0 ", "basic:2147483648", "basic:-1", "basic:+1", "gold:1",
		"basic:1,basic:2", "basic", "basic:", ":1", ",", "basic:1:2", "basic:٣", "basic:1\n", "\xff:1", "admin:00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		var got TierTokens
		if err := got.Decode(value); err != nil {
			if got != nil {
				t.Errorf("%q is refused and leaves %v", value, got)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: the error has more than one line: %v", value, err)
			}
			return
		}
		for tier, tokens := range got {
			if tokens < 0 || tokens > math.MaxInt32 {
				t.Errorf("%q: tier %s has %d tokens", value, tier, tokens)
			}
		}
		var again TierTokens
		if err := again.Decode(got.String()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%q: %v reads as %v, %v", value, got, again, err)
		}
	})
}

// FuzzLoad puts any value into any variable, and a password with any characters around a known part into DATABASE_URL,
// as it is or percent-encoded, and looks for that part in all that can be printed.
func FuzzLoad(f *testing.F) {
	for i := range variables {
		f.Add(uint8(i), "1", "p", "p", "/d?sslmode=disable", false)
	}
	for _, around := range []string{"@", "/", "12/", "%", "%4", "?", "12?", "#", ":", "[", "]", ",", "&password=", "'", `"`, " ", "\\", "\n", "é", "\xff", "=", "://"} {
		f.Add(uint8(1), "localhost", around, around, "/d", false)
		f.Add(uint8(1), "localhost", around, around, ":x", false)
		f.Add(uint8(1), "localhost", around, around, ",b:1,c/d", true)
	}
	f.Fuzz(func(t *testing.T, variable uint8, value, before, after, place string, encode bool) {
		field := variables[int(variable)%len(variables)]
		password := before + secret + after
		if encode {
			password = url.QueryEscape(password)
		}
		if strings.Contains(value+password+place, "\x00") || strings.Contains(value+place, secret) {
			return // cannot be in an environment, or has the secret elsewhere
		}
		vars := map[string]string{name(field): value}
		vars["DATABASE_URL"] = "postgresql://user:" + password + "@host" + place
		setenv(t, vars)

		cfg, err := Load()
		if err != nil {
			cfg = Config{}
		}
		printed := fmt.Sprintln(cfg, err)
		for _, verb := range []string{"%+v", "%#v", "%d"} {
			printed += fmt.Sprintf(verb, cfg)
		}
		if strings.Contains(printed, secret) {
			t.Errorf("the password %q is in %s", password, printed)
		}
		if err == nil && !strings.Contains(cfg.DatabaseURL.Reveal(), secret) {
			t.Errorf("the password %q is not in %s", password, cfg.DatabaseURL.Reveal())
		}
	})
}
