package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	_ "time/tzdata" // the container has no zone files

	"github.com/viralpilot/user-management/internal/user"
)

// TierTokens holds numbers of tokens, 0 to 2147483647, by the name of a tier.
type TierTokens map[string]int64

var (
	tiers  = []string{"admin", "tester", "free", "basic", "creator", "agency"}
	digits = regexp.MustCompile(`^[0-9]+$`)
)

// Decode reads TIER:TOKENS pairs that are separated by commas, such as "basic:5000,creator:20000". The error names
// every pair that is wrong.
func (t *TierTokens) Decode(value string) error {
	tokens := make(TierTokens)
	var wrong []string
	for pair := range strings.SplitSeq(value, ",") {
		tier, amount, err := tierAmount(pair)
		if _, twice := tokens[tier]; twice {
			err = fmt.Errorf("has the tier %s twice", quote(tier))
		}
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		tokens[tier] = amount
	}
	if wrong != nil {
		return errors.New(strings.Join(wrong, "; "))
	}
	*t = tokens
	return nil
}

func tierAmount(pair string) (tier string, amount int64, err error) {
	pair = strings.TrimSpace(pair)
	tier, number, hasColon := strings.Cut(pair, ":")
	tier, number = strings.TrimSpace(tier), strings.TrimSpace(number)
	switch {
	case pair == "":
		return "", 0, errors.New("has nothing before or after a comma")
	case !hasColon:
		return "", 0, fmt.Errorf("has %s, which lacks the colon between tier and tokens", quote(pair))
	case !slices.Contains(tiers, tier):
		return "", 0, fmt.Errorf("has the tier %s, which is not one of %s", quote(tier), strings.Join(tiers, ", "))
	case strings.HasPrefix(number, "-") && digits.MatchString(number[1:]):
		return "", 0, fmt.Errorf("has a negative number of tokens in %s", quote(pair))
	case !digits.MatchString(number):
		return "", 0, fmt.Errorf("has a number of tokens that is not written in digits in %s", quote(pair))
	}
	amount, err = strconv.ParseInt(number, 10, 64)
	if err != nil || amount > math.MaxInt32 {
		return "", 0, fmt.Errorf("has more than %d tokens in %s", math.MaxInt32, quote(pair))
	}
	return tier, amount, nil
}

// String returns the pairs as Decode reads them, sorted by tier.
func (t TierTokens) String() string {
	pairs := make([]string, 0, len(t))
	for _, tier := range slices.Sorted(maps.Keys(t)) {
		pairs = append(pairs, fmt.Sprintf("%s:%d", tier, t[tier]))
	}
	return strings.Join(pairs, ",")
}

// Origins is a list of web origins: "*" for any, scheme://host[:port], or a pattern in which one "*" stands for the
// first labels of the host or for the port, such as https://*.example.com and http://localhost:*.
type Origins []string

// What a browser sends as its origin, or a pattern for that: no path, no slash at the end, no user.
var originShape = regexp.MustCompile(`^(?i:[a-z][a-z0-9+.-]*)://(\*\.)?((?i:[a-z0-9_-]+)(\.(?i:[a-z0-9_-]+))*|\[[0-9a-fA-F:.]+\])(:([0-9]{1,5}|\*))?$`)

// Decode reads origins that are separated by commas. The error names every one that is wrong.
func (o *Origins) Decode(value string) error {
	var origins Origins
	var wrong []string
	for origin := range strings.SplitSeq(value, ",") {
		origin = strings.TrimSpace(origin)
		if origin != "*" && (!originShape.MatchString(origin) || strings.Count(origin, "*") > 1) {
			wrong = append(wrong, quote(origin))
		}
		origins = append(origins, origin)
	}
	if wrong != nil {
		return fmt.Errorf("has %s, where * or scheme://host or scheme://host:port is wanted", strings.Join(wrong, ", "))
	}
	*o = origins
	return nil
}

// String returns the list as Decode reads it.
func (o Origins) String() string { return strings.Join(o, ",") }

// pattern returns the first pattern of the list, or nothing. "*" alone is none: rs/cors treats it on its own.
func (o Origins) pattern() string {
	for _, origin := range o {
		if origin != "*" && strings.Contains(origin, "*") {
			return origin
		}
	}
	return ""
}

// List is a list of words.
type List []string

// Decode reads words that are separated by commas.
func (l *List) Decode(value string) error {
	var list List
	for word := range strings.SplitSeq(value, ",") {
		word = strings.TrimSpace(word)
		if word == "" {
			return errors.New("has nothing before or after a comma")
		}
		list = append(list, word)
	}
	*l = list
	return nil
}

// String returns the list as Decode reads it.
func (l List) String() string { return strings.Join(l, ",") }

// Dimensions are names in metadata, each once.
type Dimensions []string

const (
	// maxDimensions is the most of them, and maxDimension the most characters of one.
	maxDimensions, maxDimension = 8, 64
	noDimensions                = "none"
)

// Decode reads names that are separated by commas, or "none". The error names every one that is wrong.
func (d *Dimensions) Decode(value string) error {
	*d = nil
	if value == noDimensions {
		return nil
	}
	var list Dimensions
	var wrong []string
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "":
			wrong = append(wrong, "has nothing before or after a comma")
		case name == user.TierDimension:
			wrong = append(wrong, "has tier, by which all usage is told anyway")
		case slices.Contains(list, name):
			wrong = append(wrong, fmt.Sprintf("has %s twice", quote(name)))
		case utf8.RuneCountInString(name) > maxDimension || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			wrong = append(wrong, fmt.Sprintf("has %s, which cannot be a name in metadata", quote(name)))
		}
		list = append(list, name)
	}
	if len(list) > maxDimensions {
		wrong = append(wrong, fmt.Sprintf("has more than %d names", maxDimensions))
	}
	if wrong != nil {
		return errors.New(strings.Join(wrong, "; "))
	}
	*d = list
	return nil
}

// String returns the list as Decode reads it.
func (d Dimensions) String() string {
	if len(d) == 0 {
		return noDimensions
	}
	return strings.Join(d, ",")
}

// Prefixes are networks in CIDR notation.
type Prefixes []string

// Decode reads networks that are separated by commas.
func (p *Prefixes) Decode(value string) error {
	var list Prefixes
	for word := range strings.SplitSeq(value, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(word))
		if err != nil {
			return fmt.Errorf("has %s, which is not a network such as 10.0.0.0/8", quote(word))
		}
		list = append(list, prefix.String())
	}
	*p = list
	return nil
}

// String returns the networks as Decode reads them.
func (p Prefixes) String() string { return strings.Join(p, ",") }

// IssuerURL is the URL of a token issuer.
type IssuerURL string

// As in the claim iss: no login, no parameters, no slash at the end.
var issuerShape = regexp.MustCompile(`^https?://[^/?#@\s]+(/[^/?#@\s]+)*$`)

// Decode reads a URL that tokens can have as their issuer.
func (u *IssuerURL) Decode(value string) error {
	if !issuerShape.MatchString(value) {
		return fmt.Errorf("is %s, which is not a URL that begins with https:// and has no slash at the end", quote(value))
	}
	*u = IssuerURL(value)
	return nil
}

// EndpointURL is the base URL of a service that this one sends to, without a slash at the end.
type EndpointURL string

// A login in it would appear in the log.
var endpointShape = regexp.MustCompile(`^https?://[^/?#@\s]+(/[^/?#@\s]+)*/?$`)

// Decode reads an http or https URL without a login and parameters.
func (u *EndpointURL) Decode(value string) error {
	if !endpointShape.MatchString(value) {
		return errors.New("is not a URL such as http://collector:4318, without a login and parameters")
	}
	*u = EndpointURL(strings.TrimSuffix(value, "/"))
	return nil
}

// APIKeys are API keys, of which the hashes are known. However they are printed, logged or encoded, it only appears
// whether there are some; Reveal returns them.
type APIKeys struct{ secret string }

// Decode reads NAME:SCOPES:HASH entries, with :EXPIRES and :COMMENT or without, that are separated by commas. It looks no
// further into them. The error quotes none:
// a key may have been written in the place of its hash.
func (k *APIKeys) Decode(value string) error {
	for i, entry := range strings.Split(value, ",") {
		if colons := strings.Count(entry, ":"); colons < 2 || colons > 4 {
			return fmt.Errorf("has as entry %d something that is not NAME:SCOPE+SCOPE:HASH", i+1)
		}
	}
	k.secret = value
	return nil
}

// Reveal returns the entries as they were written.
func (k APIKeys) Reveal() string { return k.secret }

// String returns "***", or nothing where there are no keys.
func (k APIKeys) String() string {
	if k.secret == "" {
		return ""
	}
	return "***"
}

// GoString returns the same as String.
func (k APIKeys) GoString() string { return k.String() }

// Format writes the same as String for every verb: left to itself, fmt prints the fields for a verb such as %d.
func (k APIKeys) Format(w fmt.State, _ rune) {
	_, _ = io.WriteString(w, k.String()) // a fmt.State cannot fail, and there is nobody to tell
}

// LogValue returns the same as String, for slog.
func (k APIKeys) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText returns the same as String, for encoding/json and others.
func (k APIKeys) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Grace is a time that a subscription may be overdue, or no end of it.
type Grace struct {
	// Duration is nil for no end.
	Duration *time.Duration
}

// maxGrace is the longest time that a Grace can be.
const maxGrace = 366 * 24 * time.Hour

// Decode reads a duration such as 72h.
func (g *Grace) Decode(value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > maxGrace {
		return fmt.Errorf("is %s, which is not a duration from 0s to %s", quote(value), maxGrace)
	}
	g.Duration = &d
	return nil
}

// String returns the duration as Decode reads it.
func (g Grace) String() string {
	if g.Duration == nil {
		return ""
	}
	return g.Duration.String()
}

// Timezone is a time zone of the IANA database. The zero value is UTC.
type Timezone struct{ location *time.Location }

// Decode reads the name of a zone, such as "Europe/Berlin". "Local" is refused: it would be another zone on every
// machine.
func (z *Timezone) Decode(value string) error {
	location, err := time.LoadLocation(value)
	if err != nil || location == time.Local {
		return fmt.Errorf("is %s, which is not the name of a time zone in the IANA database", quote(value))
	}
	z.location = location
	return nil
}

// Location returns the zone; it is never nil.
func (z Timezone) Location() *time.Location {
	if z.location == nil {
		return time.UTC
	}
	return z.location
}

// String returns the name of the zone.
func (z Timezone) String() string { return z.Location().String() }
