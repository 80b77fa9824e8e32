package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/telemetry"
)

// certificate is the service's own, read from two files and read again when they change.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	current  atomic.Pointer[tls.Certificate]
	failures atomic.Int64 // changes of the files that could not be used

	mu     sync.Mutex
	read   fileState // of what was read last, whether it could be used or not
	looked time.Time
}

// recheck is the least time between two looks at the files.
const recheck = time.Second

// newCertificate reads the files. The error is one line that names the setting.
func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.read, _ = c.state()
	pair, err := c.load()
	if err != nil {
		return nil, fmt.Errorf("TLS_CERT_FILE and TLS_KEY_FILE: %w", err)
	}
	c.current.Store(pair)
	return c, nil
}

// load reads a certificate that can be used now.
func (c *certificate) load() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, err
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate expired at %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &pair, nil
}

// serverTLS is how the service speaks TLS, and nil where it has no certificate.
func serverTLS(cfg config.Config, log *slog.Logger, metrics *telemetry.Metrics) (*tls.Config, error) {
	if cfg.TLSCertFile == "" {
		return nil, nil
	}
	c, err := newCertificate(cfg.TLSCertFile, cfg.TLSKeyFile, log)
	if err != nil {
		return nil, err
	}
	metrics.Certificate(c.expires, c.failures.Load)
	return c.config(), nil
}

// config makes a server speak TLS 1.2 and later with it.
func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c.renew()
		return c.current.Load(), nil
	}}
}

// renew reads the files again if they have changed. What cannot be used leaves the old certificate in force.
func (c *certificate) renew() {
	if !c.mu.TryLock() { // somebody else is looking, and the one there is will do until then
		return
	}
	defer c.mu.Unlock()
	if time.Since(c.looked) < recheck {
		return
	}
	c.looked = time.Now()
	now, err := c.state()
	if now == c.read {
		return
	}
	c.read = now
	pair, loadErr := c.load()
	if err = errors.Join(err, loadErr); err != nil {
		c.failures.Add(1)
		c.log.Error("the TLS certificate was not read again, the old one stays", "error", err, "expires_at", c.expires())
		return
	}
	c.current.Store(pair)
	c.log.Info("the TLS certificate was read again", "expires_at", c.expires())
}

// expires is when the certificate in force does.
func (c *certificate) expires() time.Time { return c.current.Load().Leaf.NotAfter }

// fileState tells a changed file from one that is the same.
type fileState struct {
	cert, key         time.Time
	certSize, keySize int64
}

func (c *certificate) state() (fileState, error) {
	cert, err := os.Stat(c.certFile)
	if err != nil {
		return fileState{}, err
	}
	key, err := os.Stat(c.keyFile)
	if err != nil {
		return fileState{}, err
	}
	return fileState{cert.ModTime(), key.ModTime(), cert.Size(), key.Size()}, nil
}
