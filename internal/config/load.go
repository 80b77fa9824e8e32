package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-playground/validator/v10"
	"github.com/kelseyhightower/envconfig"
)

// Error lists everything that is wrong with the environment.
type Error struct {
	// Problems has one element for each variable that cannot be used, in the order of Config, and at least one.
	Problems []Problem
}

// Problem says what is wrong with one variable.
type Problem struct {
	// Variable is the name of the environment variable.
	Variable string
	// Reason says on one line what is wrong. It quotes the value, unless that is a secret.
	Reason string
	// Example is a value that would do.
	Example string
}

// Error returns a heading and a line for each problem, with the variable's name, what is wrong and an example.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("the configuration cannot be used:")
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n  %s %s (example: %s=%s)", p.Variable, p.Reason, p.Variable, p.Example)
	}
	return b.String()
}

var validate = validator.New(validator.WithRequiredStructEnabled())

// Load reads the settings from the environment, and from nowhere else: call ReadDotenv before. A variable that is set
// to nothing counts as not set, and is unset. Where settings cannot be used the error is an *Error that lists all of
// them, without any secret.
func Load() (Config, error) {
	// envconfig gives no default to a variable that is set to nothing.
	if err := unsetEmpty(); err != nil {
		return Config{}, err
	}

	cfg, reasons, err := read(variables)
	if err != nil {
		return Config{}, err
	}
	examples := make(map[string]string) // by name of the field
	if reasons["DatabaseURL"] == "" {
		completeDatabaseURL(&cfg, reasons)
	}
	for _, c := range conflicts(cfg) {
		if !slices.ContainsFunc(c.fields, func(field string) bool { return reasons[field] != "" }) {
			reasons[c.fields[0]] = c.reason
			examples[c.fields[0]] = c.example
		}
	}

	if len(reasons) > 0 {
		return Config{}, failure(reasons, examples)
	}
	return cfg, nil
}

// LoadEndpoint is Load for a program that only calls the service: it reads where that listens and whether it speaks TLS
// there, SERVICE_HOST, SERVICE_PORT and TLS_CERT_FILE, and leaves the rest empty.
func LoadEndpoint() (Config, error) {
	if err := unsetEmpty(); err != nil {
		return Config{}, err
	}
	var fields []reflect.StructField
	for _, field := range variables {
		if slices.Contains([]string{"ServiceHost", "ServicePort", "TLSCertFile"}, field.Name) {
			fields = append(fields, field)
		}
	}
	cfg, reasons, err := read(fields)
	if err != nil {
		return Config{}, err
	}
	if len(reasons) > 0 {
		return Config{}, failure(reasons, nil)
	}
	return cfg, nil
}

// LogFormat is LOG_FORMAT as far as it can be used, for a line that has to be written although Load has failed.
func LogFormat() string {
	field, _ := reflect.TypeFor[Config]().FieldByName("LogFormat")
	cfg, _, _ := read([]reflect.StructField{field})
	return cfg.LogFormat
}

// read reads the fields and checks each by itself. The reasons say of those that cannot be used, by name, why.
func read(fields []reflect.StructField) (cfg Config, reasons map[string]string, err error) {
	reasons = make(map[string]string)
	var parsed []string
	for _, field := range fields {
		if err := load(reflect.ValueOf(&cfg).Elem(), field); err != nil {
			reasons[field.Name] = err.Error()
			continue
		}
		parsed = append(parsed, field.Name)
	}
	var invalid validator.ValidationErrors
	if err := validate.StructPartial(cfg, parsed...); errors.As(err, &invalid) {
		for _, failed := range invalid {
			field, _ := reflect.TypeFor[Config]().FieldByName(failed.StructField())
			reasons[field.Name] = refusal(field, os.Getenv(name(field))).Error()
		}
	} else if err != nil {
		return Config{}, nil, fmt.Errorf("check the configuration: %w", err)
	}
	return cfg, reasons, nil
}

// failure is the error for the reasons; the examples are those that the fields do not have themselves.
func failure(reasons, examples map[string]string) *Error {
	failure := &Error{}
	for _, field := range variables {
		if reason := reasons[field.Name]; reason != "" {
			failure.Problems = append(failure.Problems, Problem{
				Variable: name(field),
				Reason:   reason,
				Example:  cmp.Or(examples[field.Name], field.Tag.Get("example"), field.Tag.Get("default")),
			})
		}
	}
	return failure
}

// completeDatabaseURL puts what other settings say about the database into its URL.
func completeDatabaseURL(cfg *Config, reasons map[string]string) {
	u := cfg.DatabaseURL
	if file := cfg.DatabasePasswordFile; file != "" {
		content, err := os.ReadFile(file)
		password := strings.TrimRight(string(content), "\r\n")
		switch {
		case err != nil:
			reasons["DatabasePasswordFile"] = fmt.Sprintf("names a file that cannot be read (%v)", err)
		case password == "":
			reasons["DatabasePasswordFile"] = fmt.Sprintf("names the file %s, which is empty", quote(file))
		case u.hasPassword:
			reasons["DatabasePasswordFile"] = "is set, and DATABASE_URL has a password too: keep one of the two"
		default:
			if u, err = u.with("password", password); err != nil {
				reasons["DatabasePasswordFile"] = fmt.Sprintf("names the file %s, of which the password cannot be used", quote(file))
			}
		}
	}
	if file := cfg.DBSSLRootCert; file != "" {
		var err error
		if u.names("sslrootcert") {
			reasons["DBSSLRootCert"] = "is set, and DATABASE_URL has sslrootcert too: keep one of the two"
			return
		}
		// Whoever gives a certificate to check by wants it checked.
		if !u.names("sslmode") {
			u, err = u.with("sslmode", "verify-full")
		}
		if err == nil {
			u, err = u.with("sslrootcert", file)
		}
		if err != nil {
			reasons["DBSSLRootCert"] = fmt.Sprintf("names the file %s, which cannot be read or has no certificate", quote(file))
		}
	}
	cfg.DatabaseURL = u
}

// load reads one field of cfg. envconfig.Process stops at the first error, so each field is processed in a struct of
// its own. The error says on one line what is wrong with the value.
func load(cfg reflect.Value, field reflect.StructField) error {
	value := os.Getenv(name(field))
	if quoted.MatchString(value) {
		return errors.New("is in quotes, and they are part of the value here: leave them out")
	}
	// envconfig takes 0x10 and reads 010 as 8: nobody means that by a port or a number of connections.
	if isInteger(field.Type) && value != "" && !plainInteger.MatchString(value) {
		return refusal(field, value)
	}

	one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	var parse *envconfig.ParseError
	switch err := envconfig.Process("", one.Interface()); {
	case errors.As(err, &parse):
		if _, ours := one.Elem().Field(0).Addr().Interface().(envconfig.Decoder); ours {
			return parse.Err
		}
		return refusal(field, value)
	case err != nil:
		return err
	}
	cfg.FieldByIndex(field.Index).Set(one.Elem().Field(0))
	return nil
}

var (
	quoted       = regexp.MustCompile(`^(".*"|'.*')$`)
	plainInteger = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)
)

// isInteger reports whether t is a plain integer, which a duration and a log level are not.
func isInteger(t reflect.Type) bool {
	return t == reflect.TypeFor[int]() || t == reflect.TypeFor[int32]() || t == reflect.TypeFor[int64]()
}

// conflict is a group of settings that are sound each by itself and cannot be had together.
type conflict struct {
	fields          []string // names of the fields; the problem is reported for the first
	reason, example string
}

// conflicts makes the checks that concern more than one field.
func conflicts(cfg Config) []conflict {
	var found []conflict
	if cfg.DBMinConns > cfg.DBMaxConns {
		found = append(found, conflict{
			fields:  []string{"DBMinConns", "DBMaxConns"},
			reason:  fmt.Sprintf("is %d, more than DB_MAX_CONNS, which is %d", cfg.DBMinConns, cfg.DBMaxConns),
			example: fmt.Sprint(cfg.DBMaxConns),
		})
	}
	// The connection would be cut before the answer that the deadline has passed could be written.
	if cfg.RequestTimeout >= cfg.HTTPWriteTimeout {
		found = append(found, conflict{
			fields:  []string{"RequestTimeout", "HTTPWriteTimeout"},
			reason:  fmt.Sprintf("is %v, not shorter than HTTP_WRITE_TIMEOUT, which is %v", cfg.RequestTimeout, cfg.HTTPWriteTimeout),
			example: fmt.Sprint(cfg.HTTPWriteTimeout / 2),
		})
	}
	// What has a connection is finished, so that its caller learns the outcome: it must not take longer than the answer may.
	if longest := cfg.DBAcquireTimeout + 2*cfg.DBStatementTimeout; longest >= cfg.HTTPWriteTimeout {
		found = append(found, conflict{
			fields:  []string{"DBStatementTimeout", "DBAcquireTimeout", "HTTPWriteTimeout"},
			reason:  fmt.Sprintf("is %v: twice that and DB_ACQUIRE_TIMEOUT are %v, not shorter than HTTP_WRITE_TIMEOUT, which is %v", cfg.DBStatementTimeout, longest, cfg.HTTPWriteTimeout),
			example: fmt.Sprint(cfg.HTTPWriteTimeout / 4),
		})
	}
	// With credentials, the pages of whoever gets hold of one host that matches could act for the user.
	if pattern := cfg.CORSOrigins.pattern(); pattern != "" && cfg.CORSAllowCredentials {
		found = append(found, conflict{
			fields: []string{"CORSOrigins", "CORSAllowCredentials"},
			reason: fmt.Sprintf("has the pattern %s, which needs CORS_ALLOW_CREDENTIALS=false: list the origins one by one or set that", quote(pattern)),
		})
	}
	if cfg.ShutdownDelay >= cfg.ShutdownTimeout {
		found = append(found, conflict{
			fields:  []string{"ShutdownDelay", "ShutdownTimeout"},
			reason:  fmt.Sprintf("is %v, not shorter than SHUTDOWN_TIMEOUT, which is %v", cfg.ShutdownDelay, cfg.ShutdownTimeout),
			example: fmt.Sprint(cfg.ShutdownTimeout / 2),
		})
	}
	if (cfg.TLSCertFile == "") != (cfg.TLSKeyFile == "") {
		missing, other := "TLSKeyFile", "TLSCertFile"
		if cfg.TLSCertFile == "" {
			missing, other = other, missing
		}
		field, _ := reflect.TypeFor[Config]().FieldByName(other)
		found = append(found, conflict{
			fields: []string{missing, other},
			reason: "is not set, and " + name(field) + " needs it",
		})
	}
	if cfg.MetricsPort != 0 && cfg.MetricsPort == cfg.ServicePort {
		found = append(found, conflict{
			fields:  []string{"MetricsPort", "ServicePort"},
			reason:  fmt.Sprintf("is %d, and so is SERVICE_PORT: set another port, or 0 to have the metrics there", cfg.MetricsPort),
			example: "9090",
		})
	}
	// Profiles show what is in memory, and taking one costs time: they never stand on the public port.
	if cfg.PprofEnabled && cfg.MetricsPort == 0 {
		found = append(found, conflict{
			fields:  []string{"MetricsPort", "PprofEnabled"},
			reason:  "is not set, and PPROF_ENABLED wants the profiles to be served there",
			example: "9090",
		})
	}
	if cfg.APIKeysFile != "" && cfg.APIKeys.Reveal() != "" {
		found = append(found, conflict{
			fields: []string{"APIKeysFile", "APIKeys"},
			reason: "is set, and so is API_KEYS: keep one of the two",
		})
	}
	if cfg.CognitoIssuer != "" && len(cfg.CognitoClientIDs) == 0 {
		found = append(found, conflict{
			fields: []string{"CognitoClientIDs", "CognitoIssuer"},
			reason: "is not set, and COGNITO_ISSUER needs it",
		})
	}
	// Whoever sets these wants the service locked, and it would be open.
	if cfg.CognitoIssuer == "" && len(cfg.CognitoClientIDs)+len(cfg.CognitoAdminGroups) > 0 {
		found = append(found, conflict{
			fields: []string{"CognitoIssuer", "CognitoClientIDs", "CognitoAdminGroups"},
			reason: "is not set, and COGNITO_CLIENT_IDS and COGNITO_ADMIN_GROUPS need it",
		})
	}
	if cfg.AuthRequired && cfg.APIKeys.Reveal() == "" && cfg.APIKeysFile == "" && cfg.CognitoIssuer == "" {
		found = append(found, conflict{
			fields: []string{"APIKeys", "AuthRequired", "APIKeysFile", "CognitoIssuer"},
			reason: "is not set, nor are API_KEYS_FILE and COGNITO_ISSUER, and AUTH_REQUIRED wants one of them: user-management apikey new makes an entry",
		})
	}
	return found
}

// refusal says that value is not what the type and the validate tag of field want.
func refusal(field reflect.StructField, value string) error {
	if value == "" {
		return errors.New("is required and not set")
	}
	return fmt.Errorf("is %s, which is not %s", quote(value), wanted(field))
}

// wanted describes the values that field accepts, from its type and its validate tag.
func wanted(field reflect.StructField) string {
	rules := make(map[string]string)
	for rule := range strings.SplitSeq(field.Tag.Get("validate"), ",") {
		key, param, _ := strings.Cut(rule, "=")
		rules[key] = param
	}
	switch {
	case field.Type == reflect.TypeFor[time.Duration]():
		return fmt.Sprintf("a duration with its unit, from %s to %s", rules["min"], rules["max"])
	case field.Type == reflect.TypeFor[slog.Level]():
		return "one of debug, info, warn, error"
	case isInteger(field.Type):
		return fmt.Sprintf("a whole number from %s to %s", rules["min"], rules["max"])
	case field.Type.Kind() == reflect.Bool:
		return "true or false"
	case rules["oneof"] != "":
		return "one of " + strings.ReplaceAll(rules["oneof"], " ", ", ")
	default:
		return "an IP address or a host name"
	}
}

// quote returns a value fit for an error message: on one line, and not too long a one.
func quote(value string) string {
	const most = 60
	if runes := []rune(value); len(runes) > most {
		value = string(runes[:most]) + "…"
	}
	return fmt.Sprintf("%q", value)
}
