package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// keyPrefix begins the keys that NewKey makes, so that scanners for leaked secrets can know them.
const keyPrefix = "vpum_"

// Key describes an API key.
type Key struct {
	// Name is what logs and the ledger call its holder: 1 to 64 letters, digits, dots, underscores and hyphens.
	Name string
	// Scopes are what it may be used for, one at least.
	Scopes []Scope
	// Expires is when it stops being accepted, the first instant of a day in UTC; zero for never.
	Expires time.Time
	// Comment is for people: at most 64 characters, no commas, colons and hash signs.
	Comment string
}

// NewKey makes an API key: the secret that its holder sends, and the entry for [Options] that lets the holder in.
func NewKey(k Key) (secret, entry string, err error) {
	names := make([]string, len(k.Scopes))
	for i, scope := range k.Scopes {
		names[i] = string(scope)
	}
	list := strings.Join(names, "+")
	if err := errors.Join(checkName(k.Name), checkScopes(list), checkComment(k.Comment)); err != nil {
		return "", "", err
	}
	secret = keyPrefix + rand.Text() + rand.Text() // 260 bits
	hash := sha256.Sum256([]byte(secret))
	entry = fmt.Sprintf("%s:%s:%x", k.Name, list, hash)
	if !k.Expires.IsZero() || k.Comment != "" {
		entry += ":"
	}
	if !k.Expires.IsZero() {
		entry += k.Expires.AddDate(0, 0, -1).Format(time.DateOnly)
	}
	if k.Comment != "" {
		entry += ":" + k.Comment
	}
	return secret, entry, nil
}

// ParseExpiry reads the last day on which a key is accepted, and returns the instant from which on it is not.
func ParseExpiry(day string) (time.Time, error) {
	last, err := time.Parse(time.DateOnly, day)
	if err != nil {
		return time.Time{}, errors.New("the expiry is not a day such as 2027-06-30")
	}
	return last.AddDate(0, 0, 1), nil
}

// apiKeys are the keys that are accepted now.
type apiKeys struct {
	file    string // empty when they do not come from a file
	current atomic.Pointer[[]apiKey]
}

type apiKey struct {
	Key
	hash [sha256.Size]byte
}

// newAPIKeys takes the keys from list or, where that is empty, from a file.
func newAPIKeys(list, file string) (*apiKeys, error) {
	if list != "" && file != "" {
		return nil, errors.New("API keys: there is both a list and a file of them")
	}
	k := &apiKeys{file: file}
	if file != "" {
		return k, k.reload()
	}
	parsed, err := parseKeys("entry", strings.Split(list, ","))
	if err != nil {
		return nil, fmt.Errorf("API keys: %w", err)
	}
	k.current.Store(&parsed)
	return k, nil
}

// reload reads the file again, if there is one.
func (k *apiKeys) reload() error {
	if k.file == "" {
		return nil
	}
	content, err := os.ReadFile(k.file)
	if err != nil {
		return fmt.Errorf("API keys: %w", err)
	}
	parsed, err := parseKeys("line", strings.Split(string(content), "\n"))
	if err != nil {
		return fmt.Errorf("API keys: %s: %w", k.file, err)
	}
	k.current.Store(&parsed)
	return nil
}

// find returns the holder of a key. How long it takes tells nothing about the keys but their number.
func (k *apiKeys) find(secret string) (Principal, bool) {
	keys := *k.current.Load()
	hash := sha256.Sum256([]byte(secret))
	found := -1
	for i := range keys {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(keys[i].hash[:], hash[:]), i, found)
	}
	if found < 0 {
		return Principal{}, false
	}
	key := keys[found]
	return Principal{Name: key.Name, Scopes: key.Scopes, ExpiresAt: key.Expires}, true
}

func (k *apiKeys) list() []Key {
	var list []Key
	for _, key := range *k.current.Load() {
		list = append(list, key.Key)
	}
	slices.SortFunc(list, func(a, b Key) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// parseKeys reads the entries in parts, which are separated by commas too. The error tells all that is wrong, each time
// naming the part as noun and number, and the key where it is sure that this is a name: it quotes nothing else, since any
// of it can be a secret in the wrong place.
func parseKeys(noun string, parts []string) ([]apiKey, error) {
	var keys []apiKey
	var wrong []string
	names, hashes := make(map[string]bool), make(map[[sha256.Size]byte]bool)
	for i, part := range parts {
		part, _, _ = strings.Cut(part, "#")
		for entry := range strings.SplitSeq(part, ",") {
			entry = strings.TrimSpace(entry)
			if entry == "" {
				continue
			}
			place := fmt.Sprintf("%s %d", noun, i+1)
			fields := strings.Split(entry, ":")
			if len(fields) < 3 || len(fields) > 5 {
				wrong = append(wrong, place+" is not NAME:SCOPE+SCOPE:HASH, with :EXPIRES and :COMMENT or without")
				continue
			}

			name := fields[0]
			report := func(err error) {
				if err != nil {
					wrong = append(wrong, place+": "+err.Error())
				}
			}
			if err := checkName(name); err != nil {
				report(err)
			} else {
				place += " (" + name + ")"
				if names[name] {
					report(errors.New("the name is used twice"))
				}
				names[name] = true
			}
			report(checkScopes(fields[1]))
			key := apiKey{Key: Key{Name: name, Scopes: splitScopes(fields[1])}}
			if len(fields) > 3 && fields[3] != "" {
				var err error
				key.Expires, err = ParseExpiry(fields[3])
				report(err)
			}
			if len(fields) > 4 {
				key.Comment = fields[4]
				report(checkComment(key.Comment))
			}
			hash, err := hex.DecodeString(fields[2])
			if err != nil || len(hash) != sha256.Size {
				report(errors.New("the hash is not the 64 hexadecimal digits of a SHA-256"))
				continue
			}
			key.hash = [sha256.Size]byte(hash)
			if hashes[key.hash] {
				report(errors.New("the hash is used twice"))
			}
			hashes[key.hash] = true
			keys = append(keys, key)
		}
	}
	if wrong == nil && keys == nil {
		return nil, errors.New("there is none")
	}
	if wrong != nil {
		return nil, errors.New(strings.Join(wrong, "; "))
	}
	return keys, nil
}

var (
	nameShape = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	hashShape = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	// It is printed in logs and stands in a comma separated list.
	commentShape = regexp.MustCompile(`^[^,:#\pC]{0,64}$`)
)

func checkName(name string) error {
	switch {
	case !nameShape.MatchString(name):
		return errors.New("the name is not 1 to 64 letters, digits, dots, underscores and hyphens")
	case hashShape.MatchString(name), strings.HasPrefix(name, keyPrefix):
		return errors.New("a key or a hash stands where the name should be")
	default:
		return nil
	}
}

var errScopes = errors.New("the scopes are not one or more of read, consume, refund, export, manage and metrics")

func checkComment(comment string) error {
	switch {
	case !commentShape.MatchString(comment):
		return errors.New("the comment is not at most 64 characters without commas, colons, hash signs and control characters")
	case hashShape.MatchString(comment), strings.Contains(comment, keyPrefix):
		return errors.New("a key or a hash stands where the comment should be")
	default:
		return nil
	}
}

func checkScopes(list string) error {
	for _, scope := range splitScopes(list) {
		if !slices.Contains(allScopes, scope) {
			return errScopes
		}
	}
	return nil
}

func splitScopes(list string) []Scope {
	var scopes []Scope
	for scope := range strings.SplitSeq(list, "+") {
		scopes = append(scopes, Scope(scope))
	}
	return scopes
}
