package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-playground/validator/v10"

	"github.com/viralpilot/user-management/internal/user"
)

const maxBody = 64 << 10

// encode writes body as JSON. It is marshalled first, so that a failure cannot leave half a response.
func encode(w http.ResponseWriter, status int, contentType string, body any) {
	var b bytes.Buffer
	if err := encoder(&b).Encode(body); err != nil {
		// Wire types marshal whatever they hold: this is a mistake in the code, for recoverPanic to report.
		panic(fmt.Errorf("encode the response: %w", err))
	}
	send(w, status, contentType, b.Bytes())
}

func encoder(b *bytes.Buffer) *json.Encoder {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	return enc
}

// send writes a whole response.
func send(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	// A client that is gone cannot be told so.
	_, _ = w.Write(body)
}

func respond(w http.ResponseWriter, status int, body any) error {
	encode(w, status, "application/json", body)
	return nil
}

// decode reads the body of r, one JSON object, into the struct that dst points to, and validates it. encoding/json
// by itself is too lenient to count tokens by: it takes null for a number without changing it, matches names whatever
// their case, lets the last of two equal names win and repairs broken text.
//
// Failures: unsupported_media_type, body_too_large, malformed_json, and validation_failed with all that is wrong.
func decode(w http.ResponseWriter, r *http.Request, dst any) error {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return errUnsupportedMedia
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return errBodyTooLarge
	} else if err != nil {
		return errMalformedJSON.Because(err)
	}
	members, err := object(body)
	if err != nil {
		return err
	}
	var problems fieldErrors
	target := reflect.ValueOf(dst).Elem()
	for _, m := range members {
		if message := assign(target, m); message != "" {
			problems = append(problems, user.FieldError{Field: m.name, Message: message})
		}
	}
	return problems.with(validate.Struct(dst))
}

// decodeOptional is decode for a call whose body may be left out; an empty one may have any type.
func decodeOptional(w http.ResponseWriter, r *http.Request, dst any) error {
	body := bufio.NewReader(r.Body)
	if _, err := body.Peek(1); errors.Is(err, io.EOF) {
		return nil
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{body, r.Body}
	return decode(w, r, dst)
}

// refuseBody refuses a body where a call takes none.
func refuseBody(r *http.Request) error {
	if _, err := r.Body.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		return nil
	}
	e := *errMalformedJSON
	e.Detail = "This call takes no body."
	return &e
}

// member is one name of a JSON object with its value as written.
type member struct {
	name  string
	value json.RawMessage
}

// object splits a JSON object into its members. Equal names are refused.
func object(text []byte) ([]member, error) {
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, malformed(text, err)
	}
	if !utf8.Valid(text) || loneSurrogate(text) {
		return nil, errMalformedJSON.Because(errors.New("text that is not Unicode"))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errMalformedJSON
	}
	var members []member
	seen := map[string]bool{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, errMalformedJSON.Because(err)
		}
		m, at := member{name: name.(string)}, dec.InputOffset()
		if err := dec.Decode(&m.value); err != nil {
			return nil, errMalformedJSON.Because(err)
		}
		if seen[m.name] {
			return nil, malformedAt(text, at, fmt.Sprintf("the name %.64q stands there twice", m.name))
		}
		seen[m.name] = true
		members = append(members, m)
	}
	return members, nil
}

// malformed says where a text stops being JSON.
func malformed(text []byte, err error) error {
	var syntax *json.SyntaxError
	if len(bytes.TrimSpace(text)) == 0 || !errors.As(err, &syntax) {
		return errMalformedJSON.Because(err)
	}
	return malformedAt(text, syntax.Offset, syntax.Error())
}

// malformedAt counts lines and characters up to and with the byte before offset, both from 1.
func malformedAt(text []byte, offset int64, problem string) error {
	before := text[:min(max(offset-1, 0), int64(len(text)))]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	e := *errMalformedJSON
	e.Detail = fmt.Sprintf("The body must be one JSON object: line %d, column %d: %s.", line, column, problem)
	return &e
}

// Escapes of UTF-16: a whole pair, or, in the group, half of one.
var surrogates = regexp.MustCompile(`(?i)\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(\\ud[89a-f][0-9a-f]{2})`)

// loneSurrogate reports whether an escape stands for half a character, which encoding/json would replace.
func loneSurrogate(text []byte) bool {
	if !bytes.Contains(text, []byte(`\u`)) {
		return false
	}
	for _, m := range surrogates.FindAllSubmatch(text, -1) {
		if m[1] != nil {
			return true
		}
	}
	return false
}

// plainInteger is how whole numbers are written; their range is judged later.
var plainInteger = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

// assign sets the field of target that m names and says what is wrong with m, or "".
func assign(target reflect.Value, m member) string {
	for field, value := range target.Fields() {
		if field.Tag.Get("json") != m.name {
			continue
		}
		if string(m.value) == "null" {
			switch field.Tag.Get("null") {
			case "none": // as if it had been left out
				return ""
			case "": // the type would take it for its zero value
				return "must not be null"
			}
		}
		kind := field.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		if kind.Kind() == reflect.Int64 && !plainInteger.Match(m.value) {
			return "must be an integer written in plain digits"
		}
		err := json.Unmarshal(m.value, value.Addr().Interface())
		if err == nil {
			return ""
		}
		if own := fieldMessage(""); errors.As(err, &own) {
			return string(own)
		}
		if kind.Kind() == reflect.Int64 {
			return "is out of range"
		}
		return "must be a " + kind.Kind().String()
	}
	return "is not a field of this call"
}

// fieldMessage is an error of a type's own UnmarshalJSON that may be shown.
type fieldMessage string

func (m fieldMessage) Error() string { return string(m) }

// metadata is a caller's own notes on a command.
type metadata map[string]string

// maxMetadata is the most bytes of names and values together.
const maxMetadata = 2048

// UnmarshalJSON takes an object of strings and nothing else.
func (d *metadata) UnmarshalJSON(text []byte) error {
	members, err := object(text)
	if err != nil {
		return fieldMessage("must be an object with string values")
	}
	*d = metadata{}
	size := 0
	for _, m := range members {
		var s string
		if err := json.Unmarshal(m.value, &s); err != nil || m.value[0] != '"' {
			return fieldMessage(fmt.Sprintf("must be an object with string values: that of %.64q is none", m.name))
		}
		(*d)[m.name] = s
		size += len(m.name) + len(s)
	}
	if size > maxMetadata {
		return fieldMessage(fmt.Sprintf("must have at most %d bytes of names and values", maxMetadata))
	}
	return nil
}

// clearable is a text that may be left out, given, or cleared with null or "".
type clearable struct {
	given bool
	value *string
}

// UnmarshalJSON takes a string or null.
func (c *clearable) UnmarshalJSON(text []byte) error {
	var s *string
	if err := json.Unmarshal(text, &s); err != nil {
		return fieldMessage("must be a string or null")
	}
	if s != nil && *s == "" {
		s = nil
	}
	*c = clearable{given: true, value: s}
	return nil
}

// timestampLayout has six digits always, so that the texts sort like the instants.
const timestampLayout = "2006-01-02T15:04:05.000000Z07:00"

// timestamp is an instant on the wire: RFC 3339 in UTC.
type timestamp struct{ time.Time }

// MarshalJSON writes the instant.
func (t timestamp) MarshalJSON() ([]byte, error) {
	text := make([]byte, 0, len(timestampLayout)+2)
	text = append(text, '"')
	text = t.UTC().AppendFormat(text, timestampLayout)
	return append(text, '"'), nil
}

// UnmarshalJSON reads RFC 3339, or a date-time without zone as UTC.
func (t *timestamp) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return errTimestamp
	}
	parsed, err := parseTimestamp(s)
	t.Time = parsed
	return err
}

const errTimestamp = fieldMessage("must be a date-time such as 2026-11-24T10:00:00Z")

// time.Parse also takes an hour of one digit, a comma before the fraction and a zone of 24 hours.
var dateTime = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)?$`)

func parseTimestamp(s string) (time.Time, error) {
	if !dateTime.MatchString(s) {
		return time.Time{}, errTimestamp
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		t = t.UTC().Truncate(time.Microsecond)
		// Outside of these RFC 3339 cannot write it, and a zone can move a year over the edge.
		if t.Year() < 1 || t.Year() > 9999 {
			break
		}
		return t, nil
	}
	return time.Time{}, errTimestamp
}

// renewal is a date-time, or a date, which stands for its first instant in UTC.
type renewal struct{ time.Time }

// UnmarshalJSON reads either.
func (d *renewal) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return errRenewal
	}
	t, err := parseDate(s)
	if errors.Is(err, errDateRange) {
		return err
	}
	if err != nil {
		t, err = parseTimestamp(s)
	}
	if err != nil {
		return errRenewal
	}
	d.Time = t
	return nil
}

const errRenewal = fieldMessage("must be a date such as 2026-11-24, or a date-time such as 2026-11-24T10:00:00Z")

// instant is the wire form of an optional instant.
func instant(t *time.Time) *timestamp {
	if t == nil {
		return nil
	}
	return &timestamp{*t}
}

// validate checks what the tags of request types say.
var validate = newValidator()

func newValidator() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string { return f.Tag.Get("json") })
	for tag, ok := range map[string]func(string) bool{
		"new_id":              func(s string) bool { return user.ValidateNewID(s) == "" },
		"no_control":          func(s string) bool { return !strings.ContainsFunc(s, unicode.IsControl) },
		"subscription_status": knownStatus,
		"no_nul":              func(s string) bool { return !strings.ContainsRune(s, 0) },
	} {
		if err := v.RegisterValidation(tag, func(f validator.FieldLevel) bool { return ok(f.Field().String()) }); err != nil {
			panic(err) // only for a tag that is empty or reserved
		}
	}
	v.RegisterAlias("metadata", "max=16,dive,keys,min=1,max=64,no_nul,endkeys,max=256,no_nul")
	v.RegisterCustomTypeFunc(func(v reflect.Value) any {
		if value := v.Interface().(clearable).value; value != nil {
			return *value
		}
		return ""
	}, clearable{})
	return v
}

// fieldErrors is what is wrong with a request so far.
type fieldErrors []user.FieldError

// with adds what the validator found in fields that have no error yet, and returns it all as one error, or nil.
func (p fieldErrors) with(err error) error {
	known := map[string]bool{}
	for _, f := range p {
		known[f.Field] = true
	}
	var found validator.ValidationErrors
	if err != nil && !errors.As(err, &found) {
		return err
	}
	for _, f := range found {
		// The namespace begins with the Go type, and goes on into maps and lists.
		_, name, _ := strings.Cut(f.Namespace(), ".")
		if top, _, _ := strings.Cut(name, "["); !known[top] {
			p = append(p, user.FieldError{Field: name, Message: message(f)})
		}
	}
	if len(p) == 0 {
		return nil
	}
	e := *user.ErrValidation
	e.Fields = p
	return &e
}

// message says in words what a validator tag wants.
func message(f validator.FieldError) string {
	switch f.ActualTag() {
	case "required":
		return "is required"
	case "new_id":
		return user.ValidateNewID(f.Value().(string))
	case "subscription_status":
		return string(oneOf(user.SubscriptionStatuses()))
	case "email":
		return "must be a valid e-mail address"
	case "no_control":
		return "must not contain control characters"
	case "no_nul":
		return "must not contain a NUL character"
	}
	bound := map[string]string{"min": "at least", "max": "at most"}[f.ActualTag()]
	switch f.Kind() {
	case reflect.String:
		return fmt.Sprintf("must have %s %s characters", bound, f.Param())
	case reflect.Map:
		return fmt.Sprintf("must have %s %s members", bound, f.Param())
	}
	return fmt.Sprintf("must be %s %s", bound, f.Param())
}
