package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// misspellings are names that people have typed, or may, and what they meant.
var misspellings = map[string]string{
	"DATABASE_UR":            "DATABASE_URL",
	"DATABSE_URL":            "DATABASE_URL",
	"DATABASE_URI":           "DATABASE_URL",
	"DATABASEURL":            "DATABASE_URL",
	"DATABASE__URL":          "DATABASE_URL",
	"database_url":           "DATABASE_URL",
	"DATABASE_PASSWORDFILE":  "DATABASE_PASSWORD_FILE",
	"DB_SSL_ROOTCERT":        "DB_SSL_ROOT_CERT",
	"SERVICE_PROT":           "SERVICE_PORT",
	"SERVCE_HOST":            "SERVICE_HOST",
	"METRIC_PORT":            "METRICS_PORT",
	"PPROF_ENABLE":           "PPROF_ENABLED",
	"CORS_ORIGIN":            "CORS_ORIGINS",
	"COR_ORIGINS":            "CORS_ORIGINS",
	"CORS_ALLOW_CREDENTIAL":  "CORS_ALLOW_CREDENTIALS",
	"API_KEY":                "API_KEYS",
	"APIKEYS":                "API_KEYS",
	"API_KEY_FILE":           "API_KEYS_FILE",
	"AUTH_REQURED":           "AUTH_REQUIRED",
	"AUTH_REQUIERD":          "AUTH_REQUIRED",
	"COGNITO_ISSUR":          "COGNITO_ISSUER",
	"COGNITO_CLIENT_ID":      "COGNITO_CLIENT_IDS",
	"COGNITO_ADMIN_GROUP":    "COGNITO_ADMIN_GROUPS",
	"TIER_MONTHLY_TOKEN":     "TIER_MONTHLY_TOKENS",
	"TIERS_MONTHLY_TOKENS":   "TIER_MONTHLY_TOKENS",
	"TOKEN_RESET_TIME_ZONE":  "TOKEN_RESET_TIMEZONE",
	"TOKENS_RESET_TIMEZONE":  "TOKEN_RESET_TIMEZONE",
	"LOG_LEVL":               "LOG_LEVEL",
	"LOGLEVEL":               "LOG_LEVEL",
	"DB_MAX_CONN":            "DB_MAX_CONNS",
	"RATELIMIT_PER_MINUTE":   "RATE_LIMIT_PER_MINUTE",
	"TRUSTED_PROXIE":         "TRUSTED_PROXIES",
	"TLS_CERTFILE":           "TLS_CERT_FILE",
	"MAX_INFLIGHT":           "MAX_IN_FLIGHT",
	"HTTP_BODY_TIME_OUT":     "HTTP_BODY_TIMEOUT",
	"SHUTDOWN_TIMOUT":        "SHUTDOWN_TIMEOUT",
	"IMPORT_PUBLIC_USERDATE": "IMPORT_PUBLIC_USERDATA",
}

func TestMisspelledNamesInDotenvStopTheStart(t *testing.T) {
	for wrong, meant := range misspellings {
		t.Run(wrong, func(t *testing.T) {
			setenv(t, nil)
			inDirectory(t, "DATABASE_URL=postgresql://u:S3CR3T@h/d\n"+wrong+"=S3CR3T\n")
			want := fmt.Sprintf(".env: %s is no setting (is %s meant?): correct or remove it", wrong, meant)
			if err := ReadDotenv(); err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestMisspelledNamesOfTheEnvironmentAreListed(t *testing.T) {
	setenv(t, map[string]string{"AUTH_REQURED": "true", "AUTH_REQUIRED": "true", "API_KEY": "of somebody else", "HOME": "/"})
	want := []Misspelling{{"API_KEY", "API_KEYS"}, {"AUTH_REQURED", "AUTH_REQUIRED"}}
	if got := Misspelled(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNamesOfOthersPass(t *testing.T) {
	names := []string{
		"PATH", "HOME", "HOSTNAME", "PORT", "HOST", "PUBLISH_HOST", "PUBLISH_PORT", "VERSION", "COMMIT", "OTEL_SERVICE_NAME",
		"OTEL_EXPORTER_OTLP_ENDPOINTS", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "COMPOSE_PROJECT_NAME", "PGHOST", "PGPASSWORD",
		"AWS_REGION", "HTTP_PROXY", "NO_PROXY", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "USER_MANAGEMENT_PORT", "TZ",
		"TEST_DATABASE_URL", "BENCH_JSON", "GOMEMLIMIT", "LOG_DIR", "REDIS_URL", "TRUSTED_PROXY_LIST",
	}
	for _, field := range variables {
		names = append(names, name(field))
	}
	if found := misspelled(names); len(found) > 0 {
		t.Errorf("taken for misspelled: %v", found)
	}
}

// What an error proposes must be what it asks for.
func TestNoExampleAdvisesTheOpposite(t *testing.T) {
	for _, vars := range []map[string]string{
		{"AUTH_REQUIRED": "true"},
		{"PPROF_ENABLED": "true"},
		{"TLS_CERT_FILE": "/x"},
		{"TLS_KEY_FILE": "/x"},
		{"COGNITO_ADMIN_GROUPS": "a"},
		{"CORS_ORIGINS": "https://*.example.com"},
	} {
		_, err := loadWith(t, vars)
		if err == nil {
			t.Errorf("%v is accepted", vars)
			continue
		}
		for variable := range vars {
			if strings.Contains(err.Error(), "example: "+variable+"=false") || strings.Contains(err.Error(), "example: "+variable+"=)") {
				t.Errorf("%v: %v", vars, err)
			}
		}
	}
}

// inDirectory makes the test run in a directory of its own that has this .env.
func inDirectory(t *testing.T, content string) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile(dotenv, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
