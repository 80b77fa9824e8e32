// Package config reads the settings of the service from the environment and from a .env file: one struct with a
// default, a check and a one-line description for each variable. Nothing else of the service's own code reads the environment.
package config

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"
)

// Config holds every setting of the service. Load returns it complete and checked.
//
// Its tags say all there is to say about a variable: envconfig names it, default is used when it is not set (without
// one it is empty), validate checks the value, example stands in error messages where the default would not help, and
// desc describes it in Usage and in .env.example.
type Config struct {
	// DatabaseURL names the PostgreSQL database and how to log in there. It is the only required setting.
	DatabaseURL DatabaseURL `envconfig:"DATABASE_URL" validate:"required" example:"postgresql://USER:PASSWORD@HOST:5432/DATABASE" desc:"PostgreSQL database: postgresql://USER:PASSWORD@HOST:5432/DATABASE (required)"`

	// ServiceHost is the IP address or host name to listen on.
	ServiceHost string `envconfig:"SERVICE_HOST" default:"0.0.0.0" validate:"ip|hostname_rfc1123" desc:"address to listen on: an IP address or a host name"`
	// ServicePort is the TCP port to listen on, 0 to 65535; 0 takes any free port.
	ServicePort int `envconfig:"SERVICE_PORT" default:"8001" validate:"min=0,max=65535" desc:"port to listen on; 0 takes any free one"`

	// TLSCertFile is the path of the certificate (PEM, the chain behind it) with which ServicePort speaks HTTPS, and
	// TLSKeyFile that of its private key. Both can change while the service runs. Without them it speaks HTTP.
	TLSCertFile string `envconfig:"TLS_CERT_FILE" example:"/run/secrets/tls.crt" desc:"certificate (PEM) with which the service speaks HTTPS; a renewed file is read again by itself"`
	TLSKeyFile  string `envconfig:"TLS_KEY_FILE" example:"/run/secrets/tls.key" desc:"private key (PEM) of that certificate"`

	// MetricsPort is the TCP port that serves /metrics instead of ServicePort, without a key; 0 leaves it on ServicePort.
	MetricsPort int `envconfig:"METRICS_PORT" default:"0" validate:"min=0,max=65535" desc:"port that serves /metrics instead of SERVICE_PORT, without a key; 0 leaves it there"`
	// PprofEnabled serves Go's profiles beside the metrics, on MetricsPort only.
	PprofEnabled bool `envconfig:"PPROF_ENABLED" default:"false" desc:"serve /debug/pprof/ on METRICS_PORT"`
	// OTLPEndpoint is the base URL of the collector that gets traces over OTLP/HTTP; empty for no tracing at all.
	OTLPEndpoint EndpointURL `envconfig:"OTEL_EXPORTER_OTLP_ENDPOINT" example:"http://collector:4318" desc:"base URL of the collector that gets traces over OTLP/HTTP; empty is no tracing"`

	// CORSOrigins are the origins whose pages may call the service: "*", scheme://host[:port], or a pattern with one
	// "*" for the first labels of the host or for the port.
	CORSOrigins Origins `envconfig:"CORS_ORIGINS" default:"*" example:"https://app.example.com,https://admin.example.com" desc:"origins whose pages may call the service, comma separated; * is any"`
	// CORSAllowCredentials lets those pages send cookies and credentials. It may stand beside the origin "*", as it
	// always did in this service's .env, but must then not be acted upon.
	CORSAllowCredentials bool `envconfig:"CORS_ALLOW_CREDENTIALS" default:"true" desc:"let those pages send credentials; never done for the origin *"`

	// APIKeys are the API keys that are let in, with their scopes. Each has three to five fields; whether these are right is for
	// whoever uses them to say.
	APIKeys APIKeys `envconfig:"API_KEYS" example:"postpilot:read+consume:HASH" desc:"API keys, NAME:SCOPE+SCOPE:SHA256[:EXPIRES[:COMMENT]] comma separated, as apikey new prints them"`
	// APIKeysFile is the path of a file that has them instead, and that can change while the service runs.
	APIKeysFile string `envconfig:"API_KEYS_FILE" example:"/run/secrets/api_keys" desc:"file that has the API keys instead, one a line; read again on SIGHUP"`
	// AuthRequired makes the start fail when everybody would be let in.
	AuthRequired bool `envconfig:"AUTH_REQUIRED" default:"false" desc:"refuse to start without API keys and without a Cognito issuer"`
	// CognitoIssuer is the URL of the Cognito user pool whose users are let in, without a slash at the end.
	CognitoIssuer IssuerURL `envconfig:"COGNITO_ISSUER" example:"https://idp.example.com/pool" desc:"URL of the Cognito user pool whose users may read their own account"`
	// CognitoClientIDs are the app clients of the pool whose tokens are accepted; it has some where there is an issuer.
	CognitoClientIDs List `envconfig:"COGNITO_CLIENT_IDS" example:"1example23456789" desc:"app clients of the pool whose tokens are accepted, comma separated"`
	// CognitoUserIDClaim is "sub" or "username": what of a token names the account of its user.
	CognitoUserIDClaim string `envconfig:"COGNITO_USER_ID_CLAIM" default:"sub" validate:"oneof=sub username" desc:"what of a token is the id of the user's account: sub or username"`
	// CognitoAdminGroups are the groups of the pool whose members may manage all accounts.
	CognitoAdminGroups List `envconfig:"COGNITO_ADMIN_GROUPS" example:"admins" desc:"groups of the pool whose members may manage all accounts, comma separated"`

	// TierMonthlyTokens are the monthly allowances, in tokens, that replace those of the catalogue, by tier name.
	TierMonthlyTokens TierTokens `envconfig:"TIER_MONTHLY_TOKENS" example:"basic:5000,creator:20000,agency:100000" desc:"tokens a month by tier, such as basic:5000,creator:20000,agency:100000"`
	// TokenResetTimezone is the zone whose calendar months are the periods of the allowances.
	TokenResetTimezone Timezone `envconfig:"TOKEN_RESET_TIMEZONE" default:"UTC" example:"Europe/Berlin" desc:"time zone whose months begin with a token reset, by its IANA name"`
	// SubscriptionGrace is how long after its renewal date a subscription can still be spent from, 0 to 8784h (366 days);
	// without a value it can for ever.
	SubscriptionGrace Grace `envconfig:"SUBSCRIPTION_GRACE" example:"72h" desc:"how long after its renewal date a subscription can still be spent from, such as 72h; empty for ever"`
	// MaxOpenReservations is the most open reservations of one account, 1 to 100000.
	MaxOpenReservations int64 `envconfig:"MAX_OPEN_RESERVATIONS" default:"1000" validate:"min=1,max=100000" desc:"most open reservations of one account"`
	// RefundMaxAge is how old a charge may be to be refunded, 1h to 87840h (ten years).
	RefundMaxAge time.Duration `envconfig:"REFUND_MAX_AGE" default:"2160h" validate:"min=1h,max=87840h" desc:"how old a charge may be to be refunded; 2160h are 90 days"`
	// LowBalancePercent is the share of the allowance, 0 to 100, at which low_balance becomes true.
	LowBalancePercent int64 `envconfig:"LOW_BALANCE_PERCENT" default:"20" validate:"min=0,max=100" desc:"share of the allowance, in percent, down from which a balance counts as low"`

	// UsageDimensions are the names in metadata whose values usage is told by, at most 8.
	UsageDimensions Dimensions `envconfig:"USAGE_DIMENSIONS" default:"feature,model" desc:"names in metadata by whose values usage is told, comma separated; none for none"`

	// LogLevel is the least severe level that is logged.
	LogLevel slog.Level `envconfig:"LOG_LEVEL" default:"info" validate:"oneof=-4 0 4 8" desc:"least severe level to log: debug, info, warn or error"`
	// LogFormat is "auto", "json" or "text"; "auto" is text on a terminal and JSON elsewhere.
	LogFormat string `envconfig:"LOG_FORMAT" default:"auto" validate:"oneof=auto json text" desc:"auto (text on a terminal, JSON elsewhere), json or text"`
	// LogRequests is "all", "errors" or "none": the requests that get a line in the log.
	LogRequests string `envconfig:"LOG_REQUESTS" default:"all" validate:"oneof=all errors none" desc:"requests to log: all, errors or none"`

	// LogUserIDs puts the id of the account on the log's lines of requests that may change it.
	LogUserIDs bool `envconfig:"LOG_USER_IDS" default:"false" desc:"log the account's id with requests that may change it, for support"`

	// ImportPublicUserdata copies the rows of the earlier service's table public.userdata, when there is one, at the
	// first start.
	ImportPublicUserdata bool `envconfig:"IMPORT_PUBLIC_USERDATA" default:"true" desc:"take over the rows of the earlier service's table public.userdata at the first start"`

	// DBConnectTimeout is how long the start waits for a database that is itself still starting, 1s to 10m.
	DBConnectTimeout time.Duration `envconfig:"DB_CONNECT_TIMEOUT" default:"30s" validate:"min=1s,max=10m" desc:"how long the start waits for a database that is still starting"`
	// DBAcquireTimeout is the longest wait for a connection of the pool, 10ms to 1m.
	DBAcquireTimeout time.Duration `envconfig:"DB_ACQUIRE_TIMEOUT" default:"2s" validate:"min=10ms,max=1m" desc:"longest wait for a connection of the pool"`
	// DBStatementTimeout is the longest run of one SQL statement, 100ms to 5m.
	DBStatementTimeout time.Duration `envconfig:"DB_STATEMENT_TIMEOUT" default:"5s" validate:"min=100ms,max=5m" desc:"longest run of one SQL statement"`
	// DBMaxConns is the size of the connection pool, 1 to 1000 connections.
	DBMaxConns int32 `envconfig:"DB_MAX_CONNS" default:"8" validate:"min=1,max=1000" desc:"most connections in the pool"`
	// DBMinConns is the number of connections that the pool keeps open, 0 to DBMaxConns.
	DBMinConns int32 `envconfig:"DB_MIN_CONNS" default:"1" validate:"min=0,max=1000" desc:"connections that the pool keeps open, at most DB_MAX_CONNS"`
	// DBReadConns is how many connections beside these serve ledgers, usage and lists, 1 to 1000.
	DBReadConns int32 `envconfig:"DB_READ_CONNS" default:"3" validate:"min=1,max=1000" desc:"connections beside these for ledgers, usage and lists"`

	// DBQueryMode is "auto", "session" or "transaction": what a connection to the database is, a session of PostgreSQL or
	// one of a pooler that gives each transaction another session; "auto" finds out.
	DBQueryMode string `envconfig:"DB_QUERY_MODE" default:"auto" validate:"oneof=auto session transaction" desc:"what a connection is: session, transaction (PgBouncer's transaction pooling), or auto, which finds out"`

	// DatabasePasswordFile is the path of a file that has the password which DatabaseURL lacks. Load puts it in there.
	DatabasePasswordFile string `envconfig:"DATABASE_PASSWORD_FILE" example:"/run/secrets/database_password" desc:"file that has the password for DATABASE_URL, which has none then"`
	// DBSSLRootCert is the path of the certificates (PEM) of the CAs that the database's certificate has to be signed by.
	// Load puts it into DatabaseURL, along with sslmode=verify-full where that has no sslmode.
	DBSSLRootCert string `envconfig:"DB_SSL_ROOT_CERT" example:"/run/secrets/database_ca.pem" desc:"file of the CA that has signed the database's certificate, which is checked then (sslmode=verify-full)"`

	// RateLimitPerMinute is the most requests of one API key or administrator in a minute, and of one address while the
	// service is open, 0 to 1000000; 0 is no limit.
	RateLimitPerMinute int `envconfig:"RATE_LIMIT_PER_MINUTE" default:"0" validate:"min=0,max=1000000" desc:"most requests of one API key (of one address while the service is open) in a minute; 0 is no limit"`
	// UserRateLimitPerMinute is the most requests of one signed-in user in a minute, 0 to 1000000; 0 is no limit.
	UserRateLimitPerMinute int `envconfig:"USER_RATE_LIMIT_PER_MINUTE" default:"600" validate:"min=0,max=1000000" desc:"most requests of one signed-in user in a minute; 0 is no limit"`
	// FailedLoginsPerMinute is the most requests of one address in a minute that are answered with 401, 0 to 1000000, and
	// with 429 beyond; 0 is no limit.
	FailedLoginsPerMinute int `envconfig:"FAILED_LOGINS_PER_MINUTE" default:"60" validate:"min=0,max=1000000" desc:"most requests of one address in a minute without a valid key or token; 0 is no limit"`
	// TrustedProxies are the networks of proxies whose X-Forwarded-For is believed.
	TrustedProxies Prefixes `envconfig:"TRUSTED_PROXIES" example:"10.0.0.0/8,127.0.0.1/32" desc:"networks (CIDR) of proxies whose X-Forwarded-For is believed, comma separated"`
	// MaxInFlight is the most requests that are answered at once, 1 to 100000; more are refused as overloaded. Callers
	// share them.
	MaxInFlight int `envconfig:"MAX_IN_FLIGHT" default:"1024" validate:"min=1,max=100000" desc:"most requests at once; more are refused as overloaded"`

	// WriteBatchMax is the most changes of balances that one transaction serves, 1 to 4096; 1 gives each its own.
	WriteBatchMax int `envconfig:"WRITE_BATCH_MAX" default:"256" validate:"min=1,max=4096" desc:"most changes that one transaction serves; 1 gives each its own"`

	// SweepInterval is the pause between two looks for reservations that ran out, 1s to 1h.
	SweepInterval time.Duration `envconfig:"SWEEP_INTERVAL" default:"30s" validate:"min=1s,max=1h" desc:"pause between two looks for reservations that ran out"`

	// RequestTimeout is the deadline of one request, 100ms to 5m, and less than HTTPWriteTimeout.
	RequestTimeout time.Duration `envconfig:"REQUEST_TIMEOUT" default:"10s" validate:"min=100ms,max=5m" desc:"deadline of one request, shorter than HTTP_WRITE_TIMEOUT"`
	// HTTPReadHeaderTimeout is the time a client has to send the header of a request, 100ms to 5m.
	HTTPReadHeaderTimeout time.Duration `envconfig:"HTTP_READ_HEADER_TIMEOUT" default:"5s" validate:"min=100ms,max=5m" desc:"time a client has to send the header of a request"`
	// HTTPReadTimeout is the time a client has to send a whole request, 100ms to 10m.
	HTTPReadTimeout time.Duration `envconfig:"HTTP_READ_TIMEOUT" default:"15s" validate:"min=100ms,max=10m" desc:"time a client has to send a whole request"`
	// HTTPBodyTimeout is the time a client has to send the body of a request, 100ms to 10m, and at most HTTPReadTimeout.
	HTTPBodyTimeout time.Duration `envconfig:"HTTP_BODY_TIMEOUT" default:"3s" validate:"min=100ms,max=10m" desc:"time a client has to send the body of a request, within HTTP_READ_TIMEOUT"`
	// HTTPWriteTimeout is the time from the end of a request's header to the end of its response, 200ms to 10m.
	HTTPWriteTimeout time.Duration `envconfig:"HTTP_WRITE_TIMEOUT" default:"30s" validate:"min=200ms,max=10m" desc:"time from a request's header to the end of its response"`
	// HTTPIdleTimeout is how long an unused keep-alive connection stays open, 1s to 1h.
	HTTPIdleTimeout time.Duration `envconfig:"HTTP_IDLE_TIMEOUT" default:"2m" validate:"min=1s,max=1h" desc:"how long an unused keep-alive connection stays open"`
	// ShutdownDelay is how long a service that is told to stop goes on serving while /health is 503, 0 to 5m, and less
	// than ShutdownTimeout.
	ShutdownDelay time.Duration `envconfig:"SHUTDOWN_DELAY" default:"0s" validate:"min=0s,max=5m" desc:"how long it goes on serving with /health at 503 before it stops, shorter than SHUTDOWN_TIMEOUT"`
	// ShutdownTimeout is the time that the whole stop may take, 100ms to 10m.
	ShutdownTimeout time.Duration `envconfig:"SHUTDOWN_TIMEOUT" default:"15s" validate:"min=100ms,max=10m" desc:"time that a stop may take in all, requests under way included"`
}

// variables are the fields of Config, in order: one for each environment variable.
var variables = reflect.VisibleFields(reflect.TypeFor[Config]())

// name returns the environment variable that a field of Config is read from.
func name(field reflect.StructField) string { return field.Tag.Get("envconfig") }

// Usage lists every variable with its default and a one-line description, in the order of Config, for --help.
func Usage() string {
	width := 0
	for _, field := range variables {
		width = max(width, len(name(field)+"="+field.Tag.Get("default")))
	}
	var b strings.Builder
	for _, field := range variables {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, name(field)+"="+field.Tag.Get("default"), field.Tag.Get("desc"))
	}
	return b.String()
}

// String returns all settings on one line as NAME=value pairs, the login of the database and the API keys left out.
func (c Config) String() string {
	pairs := make([]string, len(variables))
	for i, field := range variables {
		pairs[i] = fmt.Sprintf("%s=%v", name(field), c.value(field))
	}
	return strings.Join(pairs, " ")
}

// LogValue makes slog write the settings as a group, the login of the database and the API keys left out.
func (c Config) LogValue() slog.Value {
	attrs := make([]slog.Attr, len(variables))
	for i, field := range variables {
		attrs[i] = slog.String(name(field), fmt.Sprint(c.value(field)))
	}
	return slog.GroupValue(attrs...)
}

// Changed are the settings that differ from their defaults, as LogValue has them all.
func (c Config) Changed() slog.Value {
	var attrs []slog.Attr
	for _, field := range variables {
		if !c.isDefault(field) {
			attrs = append(attrs, slog.String(name(field), fmt.Sprint(c.value(field))))
		}
	}
	return slog.GroupValue(attrs...)
}

func (c Config) isDefault(field reflect.StructField) bool {
	value, text := c.value(field), field.Tag.Get("default")
	if d, ok := value.(time.Duration); ok {
		other, err := time.ParseDuration(text)
		return err == nil && d == other
	}
	return strings.EqualFold(fmt.Sprint(value), text) // levels print in capitals
}

func (c Config) value(field reflect.StructField) any {
	return reflect.ValueOf(c).FieldByIndex(field.Index).Interface()
}
