package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/joho/godotenv"
)

// secret is the part of a password that must not appear in any output.
const secret = "S3CR3T"

// setenv makes an environment in which of our variables only those in vars are set.
func setenv(t *testing.T, vars map[string]string) {
	t.Helper()
	for _, field := range variables {
		t.Setenv(name(field), "")
		if err := os.Unsetenv(name(field)); err != nil {
			t.Fatal(err)
		}
	}
	// pgx reads these for what a URL leaves out.
	for _, key := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGSERVICE", "PGSSLMODE", "PGTARGETSESSIONATTRS"} {
		t.Setenv(key, "")
	}
	for key, value := range vars {
		t.Setenv(key, value)
	}
}

// loadWith loads an environment that is vars and, unless they have one, a DATABASE_URL.
func loadWith(t *testing.T, vars map[string]string) (Config, error) {
	t.Helper()
	all := map[string]string{"DATABASE_URL": "postgresql://app:" + secret + "@db.example/app"}
	maps.Copy(all, vars)
	setenv(t, all)
	cfg, err := Load()
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("the error shows the password: %v", err)
	}
	return cfg, err
}

// reasonFor returns what err says about the variable.
func reasonFor(t *testing.T, err error, variable string) string {
	t.Helper()
	var failure *Error
	if !errors.As(err, &failure) {
		t.Fatalf("got error %v, want one about %s", err, variable)
	}
	for _, p := range failure.Problems {
		if p.Variable == variable {
			return p.Reason
		}
	}
	t.Fatalf("got %v, want a problem with %s", err, variable)
	return ""
}

func TestDefaults(t *testing.T) {
	cfg, err := loadWith(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	url, err := ParseDatabaseURL("postgresql://app:" + secret + "@db.example/app")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		DatabaseURL:          url,
		ServiceHost:          "0.0.0.0",
		ServicePort:          8001,
		CORSOrigins:          []string{"*"},
		CORSAllowCredentials: true,
		CognitoUserIDClaim:   "sub",
		TokenResetTimezone:   Timezone{time.UTC},
		MaxOpenReservations:  1000, RefundMaxAge: 2160 * time.Hour, LowBalancePercent: 20,
		UsageDimensions:      Dimensions{"feature", "model"},
		LogLevel:             slog.LevelInfo,
		LogFormat:            "auto",
		LogRequests:          "all",
		ImportPublicUserdata: true,
		DBConnectTimeout:     30 * time.Second,
		DBAcquireTimeout:     2 * time.Second,
		DBStatementTimeout:   5 * time.Second,
		DBMaxConns:           8,
		DBMinConns:           1, DBReadConns: 3,
		DBQueryMode:            "auto",
		UserRateLimitPerMinute: 600,
		FailedLoginsPerMinute:  60,
		HTTPBodyTimeout:        3 * time.Second,
		MaxInFlight:            1024,
		WriteBatchMax:          256, SweepInterval: 30 * time.Second,
		RequestTimeout:        10 * time.Second,
		HTTPReadHeaderTimeout: 5 * time.Second,
		HTTPReadTimeout:       15 * time.Second,
		HTTPWriteTimeout:      30 * time.Second,
		HTTPIdleTimeout:       2 * time.Minute,
		ShutdownTimeout:       15 * time.Second,
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %v\nwant %v", cfg, want)
	}
}

func TestEmptyCountsAsUnset(t *testing.T) {
	want, err := loadWith(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	empty := make(map[string]string)
	for _, field := range variables[1:] {
		empty[name(field)] = ""
	}
	got, err := loadWith(t, empty)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for key := range empty {
		if _, set := os.LookupEnv(key); set {
			t.Errorf("%s is still set", key)
		}
	}
}

func TestAccepted(t *testing.T) {
	for _, tt := range []struct {
		outcome, variable, value string
		got                      func(Config) any
		want                     any
	}{
		{"host is IPv6", "SERVICE_HOST", "::1", func(c Config) any { return c.ServiceHost }, "::1"},
		{"host is a name", "SERVICE_HOST", "localhost", func(c Config) any { return c.ServiceHost }, "localhost"},
		{"port 0 is any", "SERVICE_PORT", "0", func(c Config) any { return c.ServicePort }, 0},
		{"port is the highest", "SERVICE_PORT", "65535", func(c Config) any { return c.ServicePort }, 65535},
		{
			"origins are trimmed", "CORS_ORIGINS", "https://a.example, http://localhost:3000 ,http://[::1]:8080,capacitor://localhost",
			func(c Config) any { return []string(c.CORSOrigins) },
			[]string{"https://a.example", "http://localhost:3000", "http://[::1]:8080", "capacitor://localhost"},
		},
		{"star beside credentials", "CORS_ORIGINS", "*", func(c Config) any { return c.CORSAllowCredentials }, true},
		{"boolean is a digit", "CORS_ALLOW_CREDENTIALS", "0", func(c Config) any { return c.CORSAllowCredentials }, false},
		{"boolean is upper case", "IMPORT_PUBLIC_USERDATA", "FALSE", func(c Config) any { return c.ImportPublicUserdata }, false},
		{"zone has a name", "TOKEN_RESET_TIMEZONE", "Europe/Berlin", func(c Config) any { return c.TokenResetTimezone.Location().String() }, "Europe/Berlin"},
		{"grace is a duration", "SUBSCRIPTION_GRACE", "72h", func(c Config) any { return *c.SubscriptionGrace.Duration }, 72 * time.Hour},
		{"grace may be none at all", "SUBSCRIPTION_GRACE", "0s", func(c Config) any { return *c.SubscriptionGrace.Duration }, time.Duration(0)},
		{"grace without a value has no end", "SUBSCRIPTION_GRACE", "", func(c Config) any { return c.SubscriptionGrace }, Grace{}},
		{"balances are never low but at zero", "LOW_BALANCE_PERCENT", "0", func(c Config) any { return c.LowBalancePercent }, int64(0)},
		{"dimensions have blanks", "USAGE_DIMENSIONS", "campaign, model", func(c Config) any { return c.UsageDimensions }, Dimensions{"campaign", "model"}},
		{"dimensions are none", "USAGE_DIMENSIONS", "none", func(c Config) any { return c.UsageDimensions.String() }, "none"},
		{"level is upper case", "LOG_LEVEL", "DEBUG", func(c Config) any { return c.LogLevel }, slog.LevelDebug},
		{"level is mixed case", "LOG_LEVEL", "Error", func(c Config) any { return c.LogLevel }, slog.LevelError},
		{"format is json", "LOG_FORMAT", "json", func(c Config) any { return c.LogFormat }, "json"},
		{"requests are not logged", "LOG_REQUESTS", "none", func(c Config) any { return c.LogRequests }, "none"},
		{"duration has two units", "HTTP_IDLE_TIMEOUT", "1m30s", func(c Config) any { return c.HTTPIdleTimeout }, 90 * time.Second},
		{"duration is the least", "DB_ACQUIRE_TIMEOUT", "10ms", func(c Config) any { return c.DBAcquireTimeout }, 10 * time.Millisecond},
		{"connections are a pooler's", "DB_QUERY_MODE", "transaction", func(c Config) any { return c.DBQueryMode }, "transaction"},
		{"pool keeps none", "DB_MIN_CONNS", "0", func(c Config) any { return c.DBMinConns }, int32(0)},
		{"pool keeps all", "DB_MIN_CONNS", "8", func(c Config) any { return c.DBMinConns }, int32(8)},
		{
			"tiers are trimmed", "TIER_MONTHLY_TOKENS", " basic : 5000 , free:0,agency:2147483647",
			func(c Config) any { return c.TierMonthlyTokens },
			TierTokens{"basic": 5000, "free": 0, "agency": 2147483647},
		},
		{"keys are taken as they are", "API_KEYS", "a:read:0, b:manage+metrics:1", func(c Config) any { return c.APIKeys.Reveal() }, "a:read:0, b:manage+metrics:1"},
		{"key file", "API_KEYS_FILE", "keys.txt", func(c Config) any { return c.APIKeysFile }, "keys.txt"},
		{"collector ends in a slash", "OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/", func(c Config) any { return c.OTLPEndpoint }, EndpointURL("http://collector:4318")},
		{"collector has a path", "OTEL_EXPORTER_OTLP_ENDPOINT", "https://otlp.example.com/v2", func(c Config) any { return c.OTLPEndpoint }, EndpointURL("https://otlp.example.com/v2")},
		{"stop is delayed", "SHUTDOWN_DELAY", "5s", func(c Config) any { return c.ShutdownDelay }, 5 * time.Second},
		{"metrics have a port", "METRICS_PORT", "9090", func(c Config) any { return c.MetricsPort }, 9090},
		{"user by name", "COGNITO_USER_ID_CLAIM", "username", func(c Config) any { return c.CognitoUserIDClaim }, "username"},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			cfg, err := loadWith(t, map[string]string{tt.variable: tt.value})
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.got(cfg); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct{ outcome, variable, value, reason string }{
		{"host has a port", "SERVICE_HOST", "0.0.0.0:80", `is "0.0.0.0:80", which is not an IP address or a host name`},
		{"host has a space", "SERVICE_HOST", "my host", `is "my host", which is not an IP address or a host name`},
		{"port is a word", "SERVICE_PORT", "http", `is "http", which is not a whole number from 0 to 65535`},
		{"port is too high", "SERVICE_PORT", "65536", `is "65536", which is not a whole number from 0 to 65535`},
		{"port is negative", "SERVICE_PORT", "-1", `is "-1", which is not a whole number from 0 to 65535`},
		{"port looks octal", "SERVICE_PORT", "08001", `is "08001", which is not a whole number from 0 to 65535`},
		{"port is hexadecimal", "SERVICE_PORT", "0x1f41", `is "0x1f41", which is not a whole number from 0 to 65535`},
		{"port has a line end", "SERVICE_PORT", "8001\r", `is "8001\r", which is not a whole number from 0 to 65535`},
		{"port has quotes", "SERVICE_PORT", `"8001"`, "is in quotes, and they are part of the value here: leave them out"},
		{"pool is empty", "DB_MAX_CONNS", "0", `is "0", which is not a whole number from 1 to 1000`},
		{"pool is over 32 bits", "DB_MAX_CONNS", "4294967297", `is "4294967297", which is not a whole number from 1 to 1000`},
		{"origin has no scheme", "CORS_ORIGINS", "app.example.com", `has "app.example.com", where * or scheme://host or scheme://host:port is wanted`},
		{"origins end in slash and path", "CORS_ORIGINS", "https://a.example/,http://b.example,https://c.example/p", `has "https://a.example/", "https://c.example/p", where * or scheme://host or scheme://host:port is wanted`},
		{"origin is any of a letter", "CORS_ORIGINS", "h*", `has "h*", where * or scheme://host or scheme://host:port is wanted`},
		{"origin pattern has no domain", "CORS_ORIGINS", "https://*", `has "https://*", where * or scheme://host or scheme://host:port is wanted`},
		{"origin pattern has two stars", "CORS_ORIGINS", "https://*.example.com:*", `has "https://*.example.com:*", where * or scheme://host or scheme://host:port is wanted`},
		{"origin is empty", "CORS_ORIGINS", "https://a.example,", `has "", where * or scheme://host or scheme://host:port is wanted`},
		{"boolean is a word", "CORS_ALLOW_CREDENTIALS", "yes", `is "yes", which is not true or false`},
		{"zone is unknown", "TOKEN_RESET_TIMEZONE", "Mars/Olympus", `is "Mars/Olympus", which is not the name of a time zone in the IANA database`},
		{"zone is the machine's", "TOKEN_RESET_TIMEZONE", "Local", `is "Local", which is not the name of a time zone in the IANA database`},
		{"zone is a path", "TOKEN_RESET_TIMEZONE", "../etc/passwd", `is "../etc/passwd", which is not the name of a time zone in the IANA database`},
		{"grace has no unit", "SUBSCRIPTION_GRACE", "72", `is "72", which is not a duration from 0s to 8784h0m0s`},
		{"grace is negative", "SUBSCRIPTION_GRACE", "-1h", `is "-1h", which is not a duration from 0s to 8784h0m0s`},
		{"no reservation may be open", "MAX_OPEN_RESERVATIONS", "0", `is "0", which is not a whole number from 1 to 100000`},
		{"share is over all", "LOW_BALANCE_PERCENT", "101", `is "101", which is not a whole number from 0 to 100`},
		{"dimension is the tier", "USAGE_DIMENSIONS", "model,tier", "has tier, by which all usage is told anyway"},
		{"dimension comes twice", "USAGE_DIMENSIONS", "model,model", `has "model" twice`},
		{"dimension is empty", "USAGE_DIMENSIONS", "model,", "has nothing before or after a comma"},
		{"dimension is too long", "USAGE_DIMENSIONS", strings.Repeat("x", 65), `has "` + strings.Repeat("x", 60) + `…", which cannot be a name in metadata`},
		{"dimensions are too many", "USAGE_DIMENSIONS", "a,b,c,d,e,f,g,h,i", "has more than 8 names"},
		{"level is unknown", "LOG_LEVEL", "loud", `is "loud", which is not one of debug, info, warn, error`},
		{"level is between two", "LOG_LEVEL", "INFO+1", `is "INFO+1", which is not one of debug, info, warn, error`},
		{"format is unknown", "LOG_FORMAT", "xml", `is "xml", which is not one of auto, json, text`},
		{"requests are unknown", "LOG_REQUESTS", "some", `is "some", which is not one of all, errors, none`},
		{"duration has no unit", "REQUEST_TIMEOUT", "10", `is "10", which is not a duration with its unit, from 100ms to 5m`},
		{"duration is 0", "REQUEST_TIMEOUT", "0", `is "0", which is not a duration with its unit, from 100ms to 5m`},
		{"duration is negative", "SHUTDOWN_TIMEOUT", "-5s", `is "-5s", which is not a duration with its unit, from 100ms to 10m`},
		{"duration is too long", "DB_CONNECT_TIMEOUT", "11m", `is "11m", which is not a duration with its unit, from 1s to 10m`},
		{"delay is negative", "SHUTDOWN_DELAY", "-1s", `is "-1s", which is not a duration with its unit, from 0s to 5m`},
		{"metrics' port is too high", "METRICS_PORT", "65536", `is "65536", which is not a whole number from 0 to 65535`},
		{"collector has no scheme", "OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "is not a URL such as http://collector:4318, without a login and parameters"},
		{"collector has a login", "OTEL_EXPORTER_OTLP_ENDPOINT", "https://a:" + secret + "@collector:4318", "is not a URL such as http://collector:4318, without a login and parameters"},
		{"collector has parameters", "OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318?key=" + secret, "is not a URL such as http://collector:4318, without a login and parameters"},
		{"tier is unknown", "TIER_MONTHLY_TOKENS", "gold:5", `has the tier "gold", which is not one of admin, tester, free, basic, creator, agency`},
		{"tier is upper case", "TIER_MONTHLY_TOKENS", "Basic:5", `has the tier "Basic", which is not one of admin, tester, free, basic, creator, agency`},
		{"tier comes twice", "TIER_MONTHLY_TOKENS", "basic:5,basic:5", `has the tier "basic" twice`},
		{"tokens are negative", "TIER_MONTHLY_TOKENS", "basic:-1", `has a negative number of tokens in "basic:-1"`},
		{"tokens have a fraction", "TIER_MONTHLY_TOKENS", "basic:1.0", `has a number of tokens that is not written in digits in "basic:1.0"`},
		{"tokens have an exponent", "TIER_MONTHLY_TOKENS", "basic:1e3", `has a number of tokens that is not written in digits in "basic:1e3"`},
		{"tokens are missing", "TIER_MONTHLY_TOKENS", "basic:", `has a number of tokens that is not written in digits in "basic:"`},
		{"tokens are one too many", "TIER_MONTHLY_TOKENS", "basic:2147483648", `has more than 2147483647 tokens in "basic:2147483648"`},
		{"tokens are over 64 bits", "TIER_MONTHLY_TOKENS", "basic:99999999999999999999", `has more than 2147483647 tokens in "basic:99999999999999999999"`},
		{"colon is missing", "TIER_MONTHLY_TOKENS", "basic=5", `has "basic=5", which lacks the colon between tier and tokens`},
		{"comma is too many", "TIER_MONTHLY_TOKENS", "basic:5,", "has nothing before or after a comma"},
		{"every bad pair is named", "TIER_MONTHLY_TOKENS", "basic:x,free:1,gold:1", `has a number of tokens that is not written in digits in "basic:x"; has the tier "gold", which is not one of admin, tester, free, basic, creator, agency`},
		{"keys have a key without hash", "API_KEYS", "a:read:0,vpum_" + secret, "has as entry 2 something that is not NAME:SCOPE+SCOPE:HASH"},
		{"keys have a comma too many", "API_KEYS", "a:read:0,", "has as entry 2 something that is not NAME:SCOPE+SCOPE:HASH"},
		{"keys have six fields", "API_KEYS", "a:read:0:::" + secret, "has as entry 1 something that is not NAME:SCOPE+SCOPE:HASH"},
		{"issuer has no scheme", "COGNITO_ISSUER", "idp.example.com/pool", `is "idp.example.com/pool", which is not a URL that begins with https:// and has no slash at the end`},
		{"issuer ends in a slash", "COGNITO_ISSUER", "https://idp.example.com/pool/", `is "https://idp.example.com/pool/", which is not a URL that begins with https:// and has no slash at the end`},
		{"issuer has parameters", "COGNITO_ISSUER", "https://idp.example.com?a=b", `is "https://idp.example.com?a=b", which is not a URL that begins with https:// and has no slash at the end`},
		{"client is empty", "COGNITO_CLIENT_IDS", "a,,b", "has nothing before or after a comma"},
		{"group is empty", "COGNITO_ADMIN_GROUPS", "admins, ", "has nothing before or after a comma"},
		{"claim is unknown", "COGNITO_USER_ID_CLAIM", "email", `is "email", which is not one of sub, username`},
		{"requirement is a word", "AUTH_REQUIRED", "yes", `is "yes", which is not true or false`},
		{"long value is cut", "LOG_FORMAT", strings.Repeat("x", 61), `is "` + strings.Repeat("x", 60) + `…", which is not one of auto, json, text`},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			_, err := loadWith(t, map[string]string{tt.variable: tt.value})
			if got := reasonFor(t, err, tt.variable); got != tt.reason {
				t.Errorf("got  %s\nwant %s", got, tt.reason)
			}
			if lines := strings.Count(err.Error(), "\n"); lines != 1 {
				t.Errorf("got %d lines after the heading, want 1: %v", lines, err)
			}
		})
	}
}

func TestCombinations(t *testing.T) {
	for _, tt := range []struct {
		outcome string
		vars    map[string]string
		report  string // without the heading; empty when accepted
	}{
		{
			"pool keeps more than it may have",
			map[string]string{"DB_MIN_CONNS": "9"},
			"DB_MIN_CONNS is 9, more than DB_MAX_CONNS, which is 8 (example: DB_MIN_CONNS=8)",
		},
		{
			"stop is over before its delay",
			map[string]string{"SHUTDOWN_DELAY": "15s"},
			"SHUTDOWN_DELAY is 15s, not shorter than SHUTDOWN_TIMEOUT, which is 15s (example: SHUTDOWN_DELAY=7.5s)",
		},
		{
			"metrics have the service's port",
			map[string]string{"METRICS_PORT": "8001"},
			"METRICS_PORT is 8001, and so is SERVICE_PORT: set another port, or 0 to have the metrics there (example: METRICS_PORT=9090)",
		},
		{"both take any port", map[string]string{"METRICS_PORT": "0", "SERVICE_PORT": "0"}, ""},
		{
			"profiles have no port",
			map[string]string{"PPROF_ENABLED": "true"},
			"METRICS_PORT is not set, and PPROF_ENABLED wants the profiles to be served there (example: METRICS_PORT=9090)",
		},
		{"profiles have a port", map[string]string{"PPROF_ENABLED": "true", "METRICS_PORT": "9090"}, ""},
		{
			"pool is not compared with what cannot be read",
			map[string]string{"DB_MIN_CONNS": "9", "DB_MAX_CONNS": "many"},
			`DB_MAX_CONNS is "many", which is not a whole number from 1 to 1000 (example: DB_MAX_CONNS=8)`,
		},
		{
			"pool is not compared with what is out of range",
			map[string]string{"DB_MIN_CONNS": "9", "DB_MAX_CONNS": "0"},
			`DB_MAX_CONNS is "0", which is not a whole number from 1 to 1000 (example: DB_MAX_CONNS=8)`,
		},
		{
			"request may take longer than its answer",
			map[string]string{"HTTP_WRITE_TIMEOUT": "5s", "DB_STATEMENT_TIMEOUT": "1s"},
			"REQUEST_TIMEOUT is 10s, not shorter than HTTP_WRITE_TIMEOUT, which is 5s (example: REQUEST_TIMEOUT=2.5s)",
		},
		{
			"statement may take longer than its answer",
			map[string]string{"DB_STATEMENT_TIMEOUT": "14s"},
			"DB_STATEMENT_TIMEOUT is 14s: twice that and DB_ACQUIRE_TIMEOUT are 30s, not shorter than HTTP_WRITE_TIMEOUT, which is 30s (example: DB_STATEMENT_TIMEOUT=7.5s)",
		},
		{
			"origin pattern meets credentials",
			map[string]string{"CORS_ORIGINS": "https://a.example,https://*.example.com"},
			`CORS_ORIGINS has the pattern "https://*.example.com", which needs CORS_ALLOW_CREDENTIALS=false: list the origins one by one or set that ` +
				"(example: CORS_ORIGINS=https://app.example.com,https://admin.example.com)",
		},
		{
			"keys come twice",
			map[string]string{"API_KEYS": "a:read:0", "API_KEYS_FILE": "keys.txt"},
			"API_KEYS_FILE is set, and so is API_KEYS: keep one of the two (example: API_KEYS_FILE=/run/secrets/api_keys)",
		},
		{
			"issuer has no client",
			map[string]string{"COGNITO_ISSUER": "https://idp.example.com/pool"},
			"COGNITO_CLIENT_IDS is not set, and COGNITO_ISSUER needs it (example: COGNITO_CLIENT_IDS=1example23456789)",
		},
		{
			"client has no issuer",
			map[string]string{"COGNITO_CLIENT_IDS": "a"},
			"COGNITO_ISSUER is not set, and COGNITO_CLIENT_IDS and COGNITO_ADMIN_GROUPS need it (example: COGNITO_ISSUER=https://idp.example.com/pool)",
		},
		{
			"administrators have no issuer",
			map[string]string{"COGNITO_ADMIN_GROUPS": "admins"},
			"COGNITO_ISSUER is not set, and COGNITO_CLIENT_IDS and COGNITO_ADMIN_GROUPS need it (example: COGNITO_ISSUER=https://idp.example.com/pool)",
		},
		{
			"issuer and clients are accepted",
			map[string]string{"COGNITO_ISSUER": "http://localhost:9229/pool", "COGNITO_CLIENT_IDS": "a, b", "COGNITO_ADMIN_GROUPS": "admins", "AUTH_REQUIRED": "true"},
			"",
		},
		{
			"required and open",
			map[string]string{"AUTH_REQUIRED": "true"},
			"API_KEYS is not set, nor are API_KEYS_FILE and COGNITO_ISSUER, and AUTH_REQUIRED wants one of them: user-management apikey new makes an entry (example: API_KEYS=postpilot:read+consume:HASH)",
		},
		{
			"required and locked by what cannot be read",
			map[string]string{"AUTH_REQUIRED": "true", "API_KEYS": "a"},
			"API_KEYS has as entry 1 something that is not NAME:SCOPE+SCOPE:HASH (example: API_KEYS=postpilot:read+consume:HASH)",
		},
		{
			"required and locked by keys is accepted",
			map[string]string{"AUTH_REQUIRED": "true", "API_KEYS": "a:read:0"},
			"",
		},
		{
			"required and locked by a file is accepted",
			map[string]string{"AUTH_REQUIRED": "true", "API_KEYS_FILE": "keys.txt"},
			"",
		},
		{
			"origin pattern without credentials is accepted",
			map[string]string{"CORS_ORIGINS": "https://*.example.com,http://localhost:*", "CORS_ALLOW_CREDENTIALS": "false"},
			"",
		},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			_, err := loadWith(t, tt.vars)
			if tt.report == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("got no error")
			}
			if want := "the configuration cannot be used:\n  " + tt.report; err.Error() != want {
				t.Errorf("got\n%v\nwant\n%v", err, want)
			}
		})
	}
}

// What is missing there keeps its default in a container, whatever .env says.
func TestComposePassesEveryVariable(t *testing.T) {
	content, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range variables {
		if line := "\n      - " + name(field); !strings.Contains(string(content), line+"\n") && !strings.Contains(string(content), line+"=") {
			t.Errorf("docker-compose.yml lacks %s", name(field))
		}
	}
}

func TestTheManualExplainsEveryVariable(t *testing.T) {
	content, err := os.ReadFile("../../cmd/user-management/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range variables {
		if !strings.Contains(string(content), "`"+name(field)+"`") {
			t.Errorf("the manual lacks %s", name(field))
		}
	}
}

func TestEverythingWrongIsReportedAtOnce(t *testing.T) {
	setenv(t, map[string]string{
		"SHUTDOWN_TIMEOUT":     "15",
		"DB_MIN_CONNS":         "9",
		"LOG_LEVEL":            "loud",
		"TIER_MONTHLY_TOKENS":  "gold:1",
		"CORS_ORIGINS":         "example.com",
		"SERVICE_PORT":         "99999",
		"TOKEN_RESET_TIMEZONE": "Local",
	})
	_, err := Load()
	want := `the configuration cannot be used:
  DATABASE_URL is required and not set (example: DATABASE_URL=postgresql://USER:PASSWORD@HOST:5432/DATABASE)
  SERVICE_PORT is "99999", which is not a whole number from 0 to 65535 (example: SERVICE_PORT=8001)
  CORS_ORIGINS has "example.com", where * or scheme://host or scheme://host:port is wanted (example: CORS_ORIGINS=https://app.example.com,https://admin.example.com)
  TIER_MONTHLY_TOKENS has the tier "gold", which is not one of admin, tester, free, basic, creator, agency (example: TIER_MONTHLY_TOKENS=basic:5000,creator:20000,agency:100000)
  TOKEN_RESET_TIMEZONE is "Local", which is not the name of a time zone in the IANA database (example: TOKEN_RESET_TIMEZONE=Europe/Berlin)
  LOG_LEVEL is "loud", which is not one of debug, info, warn, error (example: LOG_LEVEL=info)
  DB_MIN_CONNS is 9, more than DB_MAX_CONNS, which is 8 (example: DB_MIN_CONNS=8)
  SHUTDOWN_TIMEOUT is "15", which is not a duration with its unit, from 100ms to 10m (example: SHUTDOWN_TIMEOUT=15s)`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%v", err, want)
	}
}

// An example in an error message must not lead to the next error.
func TestExamplesAreAccepted(t *testing.T) {
	for _, field := range variables {
		example := field.Tag.Get("example")
		if example == "" {
			continue
		}
		t.Run(name(field), func(t *testing.T) {
			vars := map[string]string{name(field): example}
			switch name(field) { // which need each other, or a file
			case "TLS_CERT_FILE", "TLS_KEY_FILE":
				vars["TLS_CERT_FILE"], vars["TLS_KEY_FILE"] = "/tls.crt", "/tls.key"
			case "DATABASE_PASSWORD_FILE", "DB_SSL_ROOT_CERT":
				return
			case "COGNITO_ISSUER":
				vars["COGNITO_CLIENT_IDS"] = "a"
			case "COGNITO_CLIENT_IDS":
				vars["COGNITO_ISSUER"] = "https://idp.example.com"
			case "COGNITO_ADMIN_GROUPS":
				vars["COGNITO_CLIENT_IDS"], vars["COGNITO_ISSUER"] = "a", "https://idp.example.com"
			}
			if _, err := loadWith(t, vars); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUsageAndExampleFileAgreeWithConfig(t *testing.T) {
	content, err := os.ReadFile("../../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	inFile, err := godotenv.UnmarshalBytes(content)
	if err != nil {
		t.Fatal(err)
	}
	usage, example := strings.Split(strings.TrimSuffix(Usage(), "\n"), "\n"), string(content)
	if len(usage) != len(variables) {
		t.Errorf("Usage has %d lines, want one for each of %d variables", len(usage), len(variables))
	}

	for i, field := range variables {
		assignment := name(field) + "=" + field.Tag.Get("default")
		if line := usage[i]; !strings.HasPrefix(line, "  "+assignment+" ") || !strings.HasSuffix(line, "  "+field.Tag.Get("desc")) {
			t.Errorf("Usage's line %d is %q, want %s and its description", i+1, line, assignment)
		}
		// The raw text, in the order of the struct: docker run --env-file would keep quotes and comments.
		before, after, found := strings.Cut(example, "# "+field.Tag.Get("desc")+"\n"+assignment+"\n")
		if !found {
			t.Fatalf(".env.example lacks, or has not in the order of Config:\n# %s\n%s", field.Tag.Get("desc"), assignment)
		}
		if i > 0 && before != "\n" {
			t.Errorf(".env.example has %q before %s", before, assignment)
		}
		example = after
		delete(inFile, name(field))
	}
	if len(inFile) > 0 {
		t.Errorf(".env.example has variables that Config lacks: %v", slices.Sorted(maps.Keys(inFile)))
	}
}

func TestPrintedConfigHidesPasswordAndKeys(t *testing.T) {
	cfg, err := loadWith(t, map[string]string{"TIER_MONTHLY_TOKENS": "creator:2,basic:1", "API_KEYS": "a:read:" + secret})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("start", "config", cfg, "pointer", &cfg, "nested", struct{ C Config }{cfg})
	slog.New(slog.NewTextHandler(&log, nil)).Info("start", "config", cfg, "pointer", &cfg, "nested", struct{ C Config }{cfg})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X"} {
		fmt.Fprintf(&log, verb+" "+verb+" "+verb+"\n", cfg, &cfg, struct{ C *Config }{&cfg})
	}
	if strings.Contains(log.String(), secret) || strings.Contains(log.String(), fmt.Sprintf("%x", secret)) {
		t.Errorf("the password or a key is in\n%s", log.String())
	}
	for _, want := range []string{"API_KEYS=*** API_KEYS_FILE= ", "DATABASE_URL=postgresql://***@db.example:5432/app SERVICE_HOST=0.0.0.0", "TIER_MONTHLY_TOKENS=basic:1,creator:2 ", `"config":{"DATABASE_URL":"postgresql://***@db.example:5432/app","SERVICE_HOST"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in\n%s", want, log.String())
		}
	}
}

func TestChanged_HasWhatDiffersFromTheDefaults(t *testing.T) {
	defaults := map[string]string{}
	for _, field := range variables {
		defaults[name(field)] = field.Tag.Get("default")
	}
	delete(defaults, "DATABASE_URL")
	for outcome, c := range map[string]struct {
		set  map[string]string
		want string
	}{
		"nothing is set":              {nil, ""},
		"the defaults are set":        {defaults, ""},
		"the same in another writing": {map[string]string{"HTTP_IDLE_TIMEOUT": "120s", "LOG_LEVEL": "INFO"}, ""},
		"some differ": {
			map[string]string{"HTTP_IDLE_TIMEOUT": "3m", "LOG_LEVEL": "debug", "API_KEYS": "a:read:" + secret, "SUBSCRIPTION_GRACE": "72h"},
			" API_KEYS=*** SUBSCRIPTION_GRACE=72h0m0s LOG_LEVEL=DEBUG HTTP_IDLE_TIMEOUT=3m0s",
		},
	} {
		t.Run(outcome, func(t *testing.T) {
			cfg, err := loadWith(t, c.set)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, attr := range cfg.Changed().Group() {
				got = append(got, attr.String())
			}
			if want := "DATABASE_URL=postgresql://***@db.example:5432/app" + c.want; strings.Join(got, " ") != want {
				t.Errorf("got %q, want %s", got, want)
			}
		})
	}
}
