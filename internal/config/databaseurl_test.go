package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestDatabaseURLIsCompletedFromFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const odd = `S3CR3T @/?#&+%'\ ä`
	password, empty := write("password", odd+"\n"), write("empty", "\n")
	ca, none := write("ca.pem", testCA), write("none.pem", "no certificate")
	for _, url := range []string{
		"postgresql://u@h/d", "postgresql://u@h/d?sslmode=require", "postgresql://u@a:1,b:2/d?target_session_attrs=read-write", "host=h user=u dbname=d",
	} {
		cfg, err := loadWith(t, map[string]string{"DATABASE_URL": url, "DATABASE_PASSWORD_FILE": password, "DB_SSL_ROOT_CERT": ca})
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		parsed, err := pgx.ParseConfig(cfg.DatabaseURL.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if parsed.Password != odd || parsed.User != "u" || parsed.Database != "d" {
			t.Errorf("%s: password %q, user %q, database %q", url, parsed.Password, parsed.User, parsed.Database)
		}
		if parsed.TLSConfig == nil || parsed.TLSConfig.RootCAs == nil {
			t.Errorf("%s: the certificate is not checked", url)
		}
		if whole := !strings.Contains(url, "sslmode"); whole && (parsed.TLSConfig.InsecureSkipVerify || parsed.TLSConfig.ServerName == "") {
			t.Errorf("%s: the host is not checked", url)
		}
		if strings.Contains(cfg.String(), "S3CR3T") {
			t.Errorf("the password is printed: %s", cfg)
		}
	}
	for _, c := range []struct{ outcome, url, variable, file, want string }{
		{"password file is missing", "postgresql://u@h/d", "DATABASE_PASSWORD_FILE", filepath.Join(dir, "missing"), "cannot be read"},
		{"password file is empty", "postgresql://u@h/d", "DATABASE_PASSWORD_FILE", empty, "is empty"},
		{"password stands twice", "postgresql://u:S3CR3T@h/d", "DATABASE_PASSWORD_FILE", password, "keep one of the two"},
		{"CA is missing", "postgresql://u@h/d", "DB_SSL_ROOT_CERT", filepath.Join(dir, "missing"), "cannot be read or has no certificate"},
		{"CA is none", "postgresql://u@h/d", "DB_SSL_ROOT_CERT", none, "cannot be read or has no certificate"},
		{"CA stands twice", "postgresql://u@h/d?sslrootcert=" + ca, "DB_SSL_ROOT_CERT", ca, "keep one of the two"},
	} {
		t.Run(c.outcome, func(t *testing.T) {
			_, err := loadWith(t, map[string]string{"DATABASE_URL": c.url, c.variable: c.file})
			if err == nil || !strings.Contains(err.Error(), "\n  "+c.variable+" ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "S3CR3T") {
				t.Errorf("got error %v", err)
			}
		})
	}
	if _, err := ParseDatabaseURL("postgresql://u@h/d?sslmode=verify-full&sslrootcert=" + none); err == nil || err.Error() != errRootCert.Error() {
		t.Errorf("a sslrootcert without a certificate: %v", err)
	}
}

func TestDatabaseURLAccepted(t *testing.T) {
	for _, tt := range []struct{ outcome, value, reveal, public string }{
		{
			"as in the original README", "postgresql://u:S3CR3T@h:5432/postgres",
			"postgresql://u:S3CR3T@h:5432/postgres", "postgresql://***@h:5432/postgres",
		},
		{"short scheme", "postgres://u:S3CR3T@h/d", "postgresql://u:S3CR3T@h/d", "postgresql://***@h:5432/d"},
		{"scheme in capitals", "PostgreSQL://u:S3CR3T@h/d", "postgresql://u:S3CR3T@h/d", "postgresql://***@h:5432/d"},
		{"SQLAlchemy with psycopg2", "postgresql+psycopg2://u:S3CR3T@h/d", "postgresql://u:S3CR3T@h/d", "postgresql://***@h:5432/d"},
		{"SQLAlchemy with asyncpg", "postgresql+asyncpg://u:S3CR3T@h/d", "postgresql://u:S3CR3T@h/d", "postgresql://***@h:5432/d"},
		{"spaces around", " postgresql://u:S3CR3T@h/d\r\n", "postgresql://u:S3CR3T@h/d", "postgresql://***@h:5432/d"},
		{
			"several hosts", "postgresql://u:S3CR3T@a:5433,b,[::1]:5434/d?target_session_attrs=read-write",
			"postgresql://u:S3CR3T@a:5433,b,[::1]:5434/d?target_session_attrs=read-write", "postgresql://***@a:5433,b:5432,[::1]:5434/d",
		},
		{
			"parameters", "postgresql://h/d?user=u&password=S3CR3T&sslmode=require&application_name=users",
			"postgresql://h/d?user=u&password=S3CR3T&sslmode=require&application_name=users", "postgresql://***@h:5432/d",
		},
		{"percent-encoded password", "postgresql://u:S3CR3T%40%2F%25@h/d", "postgresql://u:S3CR3T%40%2F%25@h/d", "postgresql://***@h:5432/d"},
		{"special characters that need no code", "postgresql://u:S3CR3T#?&:=!$@h/d", "postgresql://u:S3CR3T#?&:=!$@h/d", "postgresql://***@h:5432/d"},
		{
			"Unix socket", "postgresql:///d?host=/run/postgresql&user=u&password=S3CR3T",
			"postgresql:///d?host=/run/postgresql&user=u&password=S3CR3T", "postgresql://***@/run/postgresql:5432/d",
		},
		{
			"keywords", "host=h port=5433 user=u password='S3CR3T x' dbname=d",
			"host=h port=5433 user=u password='S3CR3T x' dbname=d", "postgresql://***@h:5433/d",
		},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			setenv(t, nil)
			url, err := ParseDatabaseURL(tt.value)
			if err != nil {
				t.Fatal(err)
			}
			if url.Reveal() != tt.reveal {
				t.Errorf("got %s, want %s", url.Reveal(), tt.reveal)
			}
			if url.String() != tt.public {
				t.Errorf("prints as %s, want %s", url, tt.public)
			}
			parsed, err := pgx.ParseConfig(url.Reveal())
			if err != nil {
				t.Fatal(err)
			}
			if parsed.User != "u" || !strings.HasPrefix(parsed.Password, secret) {
				t.Errorf("pgx reads user %q and password %q", parsed.User, parsed.Password)
			}
		})
	}
}

func TestDatabaseURLRefused(t *testing.T) {
	for _, tt := range []struct {
		outcome, value string
		want           error
	}{
		{"MySQL", "mysql://u:S3CR3T@h/d", errNotPostgres},
		{"MySQL by SQLAlchemy", "mysql+pymysql://u:S3CR3T@h/d?charset=utf8", errNotPostgres},
		{"SQLite", "sqlite:///S3CR3T.db", errNotPostgres},
		{"JDBC", "jdbc:postgresql://h/d?user=u&password=S3CR3T", errNotPostgres},
		{"no scheme", "u:S3CR3T@h:5432/d", errNotPostgres},
		{"no scheme but a parameter", "u:S3CR3T@h:5432/d?sslmode=require", errNotPostgres},
		{"blank", "  ", errNotPostgres},
		{"lone percent in the password", "postgresql://u:S3CR3T%@h/d", errPercent},
		{"percent before the password", "postgresql://u:%zzS3CR3T@h/d", errPercent},
		{"percent at the end", "postgresql://u:S3CR3T@h/d%2", errPercent},
		{"at sign in the password", "postgresql://u:p@S3CR3T@h/d", errSpecial},
		{"at sign at the end of the password", "postgresql://u:S3CR3T@@h/d", errSpecial},
		{"slash in the password", "postgresql://u:12/S3CR3T@h/d", errSpecial},
		{"slash after a question mark", "postgresql://u:12?a/S3CR3T@h/d", errSpecial},
		{"at sign in a parameter", "postgresql://u:p@h/d?options=S3CR3T@x", errSpecial},
		{"password for port", "postgresql://u:S3CR3T", errNotParsed},
		{"port out of range", "postgresql://u:S3CR3T@h:65536/d", errNotParsed},
		{"port in letters", "postgresql://u:S3CR3T@h:port/d", errNotParsed},
		{"two ports for three hosts", "postgresql://u:S3CR3T@/d?host=a,b,c&port=1,2", errNotParsed},
		{"NUL in code", "postgresql://u:S3CR3T%00@h/d", errNotParsed},
		{"bracket not closed", "postgresql://u:S3CR3T@[::1/d", errNotParsed},
		{"sslmode is unknown", "postgresql://u:S3CR3T@h/d?sslmode=maybe", errNotParsed},
		{"pool parameter in letters", "postgresql://u:S3CR3T@h/d?pool_max_conns=many", errNotParsed},
		{"parameter without value", "postgresql://u:p@h/d?S3CR3T", errNotParsed},
		{"certificate is not there", "postgresql://u:S3CR3T@h/d?sslmode=verify-ca&sslrootcert=none.pem", errRootCert},
		{"keyword quote not closed", "host=h password='S3CR3T", errNotParsed},
		{"keyword password with a space", "host=h password=my S3CR3T dbname=d", errNotParsed},
		{"keyword port in letters", "host=h port=S3CR3T", errNotParsed},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			setenv(t, nil)
			url, err := ParseDatabaseURL(tt.value)
			if err != tt.want {
				t.Fatalf("got %v and error %v, want %v", url, err, tt.want)
			}
			_, err = loadWith(t, map[string]string{"DATABASE_URL": tt.value}) // looks for the secret
			if got := reasonFor(t, err, "DATABASE_URL"); got != tt.want.Error() {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	t.Run("quotes around", func(t *testing.T) {
		_, err := loadWith(t, map[string]string{"DATABASE_URL": `"postgresql://u:S3CR3T@h/d"`})
		if got := reasonFor(t, err, "DATABASE_URL"); !strings.Contains(got, "quotes") {
			t.Errorf("got %s, want something about the quotes", got)
		}
	})
}

func TestDatabaseURLIsEncodedWithoutTheLogin(t *testing.T) {
	url, err := ParseDatabaseURL("postgresql://u:S3CR3T@h/d")
	if err != nil {
		t.Fatal(err)
	}
	const want = "postgresql://***@h:5432/d"
	encoded, err := json.Marshal(url)
	if err != nil {
		t.Fatal(err)
	}
	for how, got := range map[string]string{
		"JSON":     string(encoded),
		"GoString": `"` + url.GoString() + `"`,
		"LogValue": `"` + url.LogValue().String() + `"`,
		"%d":       fmt.Sprintf(`"%d"`, url),
		"%#v":      fmt.Sprintf(`"%#v"`, url),
		"pointer":  fmt.Sprintf(`"%v"`, &url),
	} {
		if got != `"`+want+`"` {
			t.Errorf("%s: got %s, want %s", how, got, want)
		}
	}
}

// testCA is a certificate; nobody has its key.
const testCA = `-----BEGIN CERTIFICATE-----
MIIBhjCCASugAwIBAgIUFQ7rmC6gM7iN8iFGiuLAUkdkTOQwCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMQ0Egb2YgYSB0ZXN0MCAXDTI2MTEyNjIwMjQ0NloYDzIxMjYx
MTAyMjAyNDQ2WjAXMRUwEwYDVQQDDAxDQSBvZiBhIHRlc3QwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAASEgodsTPL0VXCEbsb2JkezW395rBEOAKzzmQWNV7CUph/b
P1DbcosNziBiXefA5H3Es3kWOxR7ui9FZ7I7vQslo1MwUTAdBgNVHQ4EFgQUbCes
NunH7A9I9qXEavuwWeHS6XkwHwYDVR0jBBgwFoAUbCesNunH7A9I9qXEavuwWeHS
6XkwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEAkxpH7i0hiNgJ
rw2Hz2tGM0SBZPnldAFibMwF6c3vkGUCIQCEMjWj4jAdvcs8chcrAgsBGrTFY35H
OemumMZBsczm8w==
-----END CERTIFICATE-----
`
