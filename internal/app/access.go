package app

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

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
		log.Warn("THE SERVICE IS OPEN: whoever reaches it may change every account. Set API_KEYS to lock it (user-management apikey new)")
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range hangups {
			if cfg.APIKeysFile == "" {
				log.Warn("nothing was read again: API_KEYS_FILE is not set, and API_KEYS is read at the start only")
			} else if err := a.Reload(); err != nil {
				log.Error("the API keys were not read again, the old ones stay", "error", err)
			} else {
				log.Info("the API keys were read again")
			}
		}
	}()
	return a, func() {
		signal.Stop(hangups)
		close(hangups)
		<-done
		a.Close()
	}, nil
}

// NewAPIKey makes an API key and prints two lines: the secret for its holder, and the entry for API_KEYS. Scopes are
// separated by commas.
func NewAPIKey(name, scopes string, stdout io.Writer) error {
	var list []auth.Scope
	for scope := range strings.SplitSeq(scopes, ",") {
		list = append(list, auth.Scope(strings.TrimSpace(scope)))
	}
	secret, entry, err := auth.NewKey(name, list)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n%s\n", secret, entry)
	return err
}
