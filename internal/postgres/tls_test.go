package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
)

// selfSigned returns a certificate for 127.0.0.1, which is its own CA, and its key, in PEM.
func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func TestTLSToTheDatabase(t *testing.T) {
	t.Parallel()
	server := localpgtest.Server(t)
	dsn := server.URL("postgres")
	db := connect(t, dsn)
	with := func(parameters string) string {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		u.RawQuery = parameters
		return u.String()
	}
	t.Run("a server without TLS", func(t *testing.T) {
		for _, mode := range []string{"require", "verify-ca", "verify-full"} {
			wantLine(t, openAtOnce(t, with("sslmode="+mode)), "does not speak TLS", "sslmode", "DATABASE_URL")
		}
	})

	cert, key := selfSigned(t)
	// The server writes its files itself: they have to be its own.
	place := func(name string, content []byte) {
		db.Exec(fmt.Sprintf("COPY (SELECT '%s') TO PROGRAM 'umask 077; base64 -d > %s'", base64.StdEncoding.EncodeToString(content), name))
	}
	place("server.crt", cert)
	place("server.key", key)
	place("pg_hba.conf", []byte("hostssl all all all scram-sha-256\n"))
	db.Exec("ALTER SYSTEM SET ssl = on")
	db.Exec("SELECT pg_reload_conf()")
	localpgtest.Await(t, "the server speaks TLS", func() bool { return localpgtest.Query[string](db, "SHOW ssl") == "on" })

	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	otherCert, _ := selfSigned(t)
	other := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(other, otherCert, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("a certificate that is not trusted", func(t *testing.T) {
		for _, parameters := range []string{
			"sslmode=verify-full", "sslmode=verify-full&sslrootcert=" + other, "sslmode=verify-ca&sslrootcert=" + other, "sslmode=require&sslrootcert=" + other,
		} {
			wantLine(t, openAtOnce(t, with(parameters)), "is not trusted", "DB_SSL_ROOT_CERT", "sslrootcert")
		}
	})
	t.Run("a certificate for another host", func(t *testing.T) {
		u, err := url.Parse(with("sslmode=verify-full&sslrootcert=" + ca))
		if err != nil {
			t.Fatal(err)
		}
		u.Host = net.JoinHostPort("localhost", u.Port())
		wantLine(t, openAtOnce(t, u.String()), "is for another host", "DATABASE_URL")
	})
	t.Run("a server that insists on TLS", func(t *testing.T) {
		wantLine(t, openAtOnce(t, with("sslmode=disable")), "without TLS", "sslmode=verify-full", "DATABASE_URL")
	})
	t.Run("all is right", func(t *testing.T) {
		for _, parameters := range []string{"", "sslmode=require", "sslmode=verify-ca&sslrootcert=" + ca, "sslmode=verify-full&sslrootcert=" + ca} {
			store, err := postgres.Open(t.Context(), options(with(parameters)))
			if err != nil {
				t.Errorf("%q: %v", parameters, err)
				continue
			}
			store.Close()
		}
	})
}
