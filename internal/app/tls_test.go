package app_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/app"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// authority signs certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of a test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.sign(template, nil)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(template *x509.Certificate, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// issue puts a certificate with this serial number, and its key, in place of what is there.
func (a *authority) issue(certFile, keyFile string, serial int64, expires time.Time) {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: expires,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, a.cert)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	replace(a.t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	replace(a.t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

func replace(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func TestACertificateIsRenewedUnderLoadWithoutAFailedRequest(t *testing.T) {
	t.Parallel()
	ca, dir := newAuthority(t), t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	lasting := time.Now().Add(30 * 24 * time.Hour)
	ca.issue(certFile, keyFile, 100, lasting)
	r := start(t, localpgtest.New(t), func(cfg *config.Config) { cfg.TLSCertFile, cfg.TLSKeyFile = certFile, keyFile })
	url := strings.Replace(r.url, "http:", "https:", 1)

	newClient := func(keep bool) client {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool}, ForceAttemptHTTP2: keep, DisableKeepAlives: !keep}
		t.Cleanup(transport.CloseIdleConnections)
		return client{t: t, http: &http.Client{Transport: transport, Timeout: patience}}
	}
	kept, fresh := newClient(true), newClient(false)
	response, err := kept.http.Get(url + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.ProtoMajor != 2 {
		t.Errorf("%s is spoken, want HTTP/2", response.Proto)
	}
	if _, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "http://"), &tls.Config{RootCAs: ca.pool, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}

	stop := make(chan struct{})
	var load sync.WaitGroup
	var served atomic.Int64
	for _, c := range []client{kept, kept, fresh, fresh} {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if a, err := c.try(http.MethodGet, url+"/livez", ""); err != nil || a.Status != http.StatusOK {
					t.Errorf("%d %v", a.Status, err)
					return
				}
				served.Add(1)
			}
		})
	}
	presented := func() int64 {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "http://"), &tls.Config{RootCAs: ca.pool})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	for serial := int64(101); serial < 104; serial++ {
		ca.issue(certFile, keyFile, serial, lasting)
		localpgtest.Await(t, "the renewed certificate is shown", func() bool { return presented() == serial })
	}
	const refused = "the TLS certificate was not read again, the old one stays"
	for i, spoil := range []func(){
		func() { replace(t, certFile, []byte("no certificate")) },
		func() { ca.issue(certFile, filepath.Join(dir, "other.key"), 110, lasting) },
		func() { ca.issue(certFile, keyFile, 111, time.Now().Add(-time.Hour)) },
	} {
		spoil()
		localpgtest.Await(t, "the log says so", func() bool { presented(); return len(r.lines(refused)) > i })
		if got := presented(); got != 103 {
			t.Errorf("spoiled, %d is shown", got)
		}
	}
	_, metrics, err := fresh.get(url + "/metrics")
	if err != nil || !strings.Contains(metrics, "\nuser_management_tls_certificate_failures_total 3\n") {
		t.Errorf("%v\n%s", err, metrics)
	}
	close(stop)
	load.Wait()
	if len(r.lines("the TLS certificate was read again")) != 3 || served.Load() < 100 {
		t.Errorf("%d requests; log:\n%s", served.Load(), r.log)
	}
}

func TestACertificateThatCannotBeUsedEndsTheStart(t *testing.T) {
	t.Parallel()
	ca, dir := newAuthority(t), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ca.issue(file("good.crt"), file("good.key"), 1, time.Now().Add(time.Hour))
	ca.issue(file("other.crt"), file("other.key"), 2, time.Now().Add(time.Hour))
	ca.issue(file("old.crt"), file("old.key"), 3, time.Now().Add(-time.Hour))
	for outcome, names := range map[string][2]string{
		"missing": {"none.crt", "good.key"}, "of another key": {"good.crt", "other.key"}, "expired": {"old.crt", "old.key"},
	} {
		t.Run(outcome, func(t *testing.T) {
			cfg, err := configure(localpgtest.Empty(t))
			if err != nil {
				t.Fatal(err)
			}
			cfg.TLSCertFile, cfg.TLSKeyFile = file(names[0]), file(names[1])
			wantLine(t, app.Run(t.Context(), cfg, io.Discard), "TLS_CERT_FILE")
		})
	}
}
