package config

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	_ "time/tzdata" // the container has no zone files
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
