package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/config"
)

// newAuthenticator makes who is let in from the settings, and has its key file read again on SIGHUP until stop is
// called.
func newAuthenticator(cfg config.Config, log *slog.Logger) (a *auth.Authenticator, stop func(), err error) {
	a, err = auth.New(auth.Options{
		APIKeys:     cfg.APIKeys.Reveal(),
		APIKeysFile: cfg.APIKeysFile,
		Issuer:      string(cfg.CognitoIssuer),
		ClientIDs:   cfg.CognitoClientIDs,
		UserIDClaim: cfg.CognitoUserIDClaim,
		AdminGroups: cfg.CognitoAdminGroups,
		Logger:      log,
	})
	if err != nil {
		return nil, nil, err
	}
	if a.Open() {
		log.Warn("THE SERVICE IS OPEN: whoever reaches it may change every account, but for web pages of other origins. " +
			"To lock it, run user-management apikey new for each caller and set API_KEYS to the entries that it prints, and AUTH_REQUIRED=true")
	}
	warnOfExpiry(a, log)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	daily := time.NewTicker(24 * time.Hour)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			case <-daily.C:
				warnOfExpiry(a, log)
			case <-hangups:
				reloadKeys(a, cfg.APIKeysFile, log)
			}
		}
	}()
	return a, func() {
		signal.Stop(hangups)
		daily.Stop()
		close(done)
		<-stopped
		a.Close()
	}, nil
}

func reloadKeys(a *auth.Authenticator, file string, log *slog.Logger) {
	if file == "" {
		log.Warn("nothing was read again: API_KEYS_FILE is not set, and API_KEYS is read at the start only")
		return
	}
	if err := a.Reload(); err != nil {
		log.Error("the API keys were not read again, the old ones stay", "error", err)
		return
	}
	log.Info("the API keys were read again", "keys", len(a.Keys()))
	warnOfExpiry(a, log)
}

// expiryNotice is how long before its end the log begins to name a key.
const expiryNotice = 14 * 24 * time.Hour

// warnOfExpiry names the keys that have run out or will soon.
func warnOfExpiry(a *auth.Authenticator, log *slog.Logger) {
	for _, key := range a.Keys() {
		left := time.Until(key.Expires)
		switch {
		case key.Expires.IsZero() || left > expiryNotice:
		case left > 0:
			log.Warn("an API key expires soon: make a new one (user-management apikey new)", "key", key.Name, "expires_at", key.Expires, "comment", key.Comment)
		default:
			log.Warn("an API key has expired and is refused: make a new one or remove it", "key", key.Name, "expires_at", key.Expires, "comment", key.Comment)
		}
	}
}

// keyExpiries are when the API keys that expire do so, by name.
func keyExpiries(a *auth.Authenticator) map[string]time.Time {
	expiries := make(map[string]time.Time)
	for _, key := range a.Keys() {
		if !key.Expires.IsZero() {
			expiries[key.Name] = key.Expires
		}
	}
	return expiries
}

// NewAPIKey makes an API key and prints two lines: the secret for its holder, and the entry for API_KEYS. Scopes are
// separated by commas, or by + as in that entry; expires is the last day on which the key is accepted, such as
// 2027-06-30, and may be empty, as may comment.
func NewAPIKey(name, scopes, expires, comment string, stdout io.Writer) error {
	if name == "" || scopes == "" {
		return errors.New("a key needs --name NAME and --scopes SCOPE,SCOPE")
	}
	key := auth.Key{Name: name, Comment: comment}
	for scope := range strings.FieldsFuncSeq(scopes, func(r rune) bool { return r == ',' || r == '+' }) {
		key.Scopes = append(key.Scopes, auth.Scope(strings.TrimSpace(scope)))
	}
	for _, scope := range key.Scopes {
		if !slices.Contains(auth.Anyone().Scopes, scope) {
			return fmt.Errorf("there is no scope %q: --scopes takes read, consume, refund, export, manage and metrics, with commas between them", scope)
		}
	}
	if expires != "" {
		var err error
		if key.Expires, err = auth.ParseExpiry(expires); err != nil {
			return fmt.Errorf("--expires: %w", err)
		}
		if time.Until(key.Expires) < 0 {
			return fmt.Errorf("--expires: %s has passed already", expires)
		}
	}
	secret, entry, err := auth.NewKey(key)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n%s\n", secret, entry)
	return err
}
