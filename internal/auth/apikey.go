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
)

// keyPrefix begins the keys that NewKey makes, so that scanners for leaked secrets can know them.
const keyPrefix = "vpum_"

// NewKey makes an API key: the secret that its holder sends, and the entry for [Options] that lets the holder in. The
// name is 1 to 64 letters, digits, dots, underscores and hyphens.
func NewKey(name string, scopes []Scope) (secret, entry string, err error) {
	names := make([]string, len(scopes))
	for i, scope := range scopes {
		names[i] = string(scope)
	}
	list := strings.Join(names, "+")
	if err := errors.Join(checkName(name), checkScopes(list)); err != nil {
		return "", "", err
	}
	secret = keyPrefix + rand.Text() + rand.Text() // 260 bits
	hash := sha256.Sum256([]byte(secret))
	return secret, fmt.Sprintf("%s:%s:%x", name, list, hash), nil
}

// apiKeys are the keys that are accepted now.
type apiKeys struct {
	file    string // empty when they do not come from a file
	current atomic.Pointer[[]apiKey]
}

type apiKey struct {
	holder Principal
	hash   [sha256.Size]byte
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
	return keys[found].holder, true
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
			if len(fields) != 3 {
				wrong = append(wrong, place+" is not NAME:SCOPE+SCOPE:HASH")
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
			hash, err := hex.DecodeString(fields[2])
			if err != nil || len(hash) != sha256.Size {
				report(errors.New("the hash is not the 64 hexadecimal digits of a SHA-256"))
				continue
			}
			key := apiKey{holder: Principal{Name: name, Scopes: splitScopes(fields[1])}, hash: [sha256.Size]byte(hash)}
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

func checkScopes(list string) error {
	for _, scope := range splitScopes(list) {
		if !slices.Contains(allScopes, scope) {
			return errors.New("the scopes are not one or more of read, consume, manage and metrics, with + between them")
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
