package httpapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	marshal(&b, body)
	_ = send(w, status, contentType, b.Bytes()) // a client that is gone cannot be told so
}

// marshal writes v and the end of a line.
func marshal(b *bytes.Buffer, v any) {
	if err := encoder(b).Encode(v); err != nil {
		// Wire types marshal whatever they hold: this is a mistake in the code, for recoverPanic to report.
		panic(fmt.Errorf("encode the response: %w", err))
	}
}

func encoder(b *bytes.Buffer) *json.Encoder {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	return enc
}

// send writes a whole response. After an error, which is that the client is gone, the body may still be in use.
func send(w http.ResponseWriter, status int, contentType string, body []byte) error {
	h, values := w.Header(), []string{contentType, strconv.Itoa(len(body))}
	h["Content-Type"], h["Content-Length"] = values[:1:1], values[1:]
	w.WriteHeader(status)
	_, err := w.Write(body)
	return err
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
	if !saysJSON(r.Header.Get("Content-Type")) {
		return errUnsupportedMedia
	}
	body, err := content(w, r)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return errBodyTooLarge
	} else if err != nil {
		return errMalformedJSON.Because(err)
	}
	problems, err := read(body, dst)
	if err != nil {
		return err
	}
	return problems.with(validate.Struct(dst))
}

// saysJSON reports whether a Content-Type is that of JSON, whatever its parameters.
func saysJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == "application/json"
}

// received is a body that readBody has read: what has arrived, and the error that it ended with, if any.
type received struct {
	rest []byte
	err  error
}

// Read implements io.Reader.
func (b *received) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, cmp.Or(b.err, io.EOF)
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (*received) Close() error { return nil }

// content is the body of r.
func content(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if b, ok := r.Body.(*received); ok {
		return b.rest, b.err
	}
	return io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
}

// read is decode without the validation. A field of dst that has a problem has any value.
func read(text []byte, dst any) (fieldErrors, error) {
	members, err := object(text)
	if err != nil {
		return nil, err
	}
	var problems fieldErrors
	target := reflect.ValueOf(dst).Elem()
	for _, m := range members {
		if message := assign(target, m); message != "" {
			problems = append(problems, user.FieldError{Field: m.name, Message: message})
		}
	}
	return problems, nil
}

// decodeOptional is decode for a call whose body may be left out; an empty one may have any type.
func decodeOptional(w http.ResponseWriter, r *http.Request, dst any) error {
	body, err := content(w, r)
	if len(body) == 0 && err == nil {
		return nil
	}
	r.Body = &received{body, err}
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
	if !json.Valid(text) {
		var whole json.RawMessage
		return nil, malformed(text, json.Unmarshal(text, &whole))
	}
	if !utf8.Valid(text) || loneSurrogate(text) {
		return nil, errMalformedJSON.Because(errors.New("text that is not Unicode"))
	}
	return split(text)
}

// fewMembers is up to how many members it is quicker to look through all of them for a name.
const fewMembers = 16

// split is object for text that is known to be JSON, and Unicode.
func split(text []byte) ([]member, error) {
	at := skipSpace(text, 0)
	if text[at] != '{' {
		return nil, errMalformedJSON
	}
	members := make([]member, 0, 4)
	var many map[string]bool // the names, once there are many
	for at = skipSpace(text, at+1); text[at] != '}'; at = skipSpace(text, at) {
		if text[at] == ',' {
			at = skipSpace(text, at+1)
		}
		nameEnd := stringEnd(text, at)
		name, err := unquote(text[at:nameEnd])
		if err != nil {
			return nil, errMalformedJSON.Because(err)
		}
		at = skipSpace(text, nameEnd) // the colon
		at = skipSpace(text, at+1)    // the value
		m := member{name, text[at:valueEnd(text, at)]}
		at += len(m.value)
		if many[name] || many == nil && slices.ContainsFunc(members, func(m member) bool { return m.name == name }) {
			return nil, malformedAt(text, int64(nameEnd), fmt.Sprintf("the name %.64q stands there twice", name))
		}
		members = append(members, m)
		if len(members) == fewMembers {
			many = map[string]bool{}
			for _, m := range members {
				many[m.name] = true
			}
		} else if many != nil {
			many[name] = true
		}
	}
	return members, nil
}

// skipSpace returns where the next byte is that is no white space.
func skipSpace(text []byte, at int) int {
	for text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r' {
		at++
	}
	return at
}

// stringEnd returns where the string ends that begins at a quote.
func stringEnd(text []byte, at int) int {
	for at++; text[at] != '"'; at++ {
		if text[at] == '\\' {
			at++
		}
	}
	return at + 1
}

// valueEnd returns where the value ends that begins there.
func valueEnd(text []byte, at int) int {
	for depth := 0; ; {
		switch text[at] {
		case '"':
			at = stringEnd(text, at)
		case '{', '[':
			depth++
			at++
		case '}', ']':
			depth--
			at++
		case ' ', '\t', '\n', '\r', ',', ':': // within an object or a list
			at++
		default: // a number or a word
			for at++; at < len(text) && strings.IndexByte(" \t\n\r,:]}", text[at]) < 0; at++ {
			}
		}
		if depth == 0 {
			return at
		}
	}
}

// unquote reads a JSON string.
func unquote(text []byte) (string, error) {
	if bytes.IndexByte(text, '\\') < 0 {
		return string(text[1 : len(text)-1]), nil
	}
	var s string
	err := json.Unmarshal(text, &s)
	return s, err
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

// plainInteger reports whether a value of JSON is a whole number in plain digits; its range is judged later.
func plainInteger(value []byte) bool {
	digits := bytes.TrimPrefix(value, []byte("-"))
	return len(bytes.TrimLeft(digits, "0123456789")) == 0 && string(value) != "-0"
}

// field is what a member of a body sets.
type field struct {
	name  string
	index int
	// null says what null means: "none", as if it had been left out; "clear", which the type knows; "", that it is wrong.
	null string
	// kind is that of the field, or of what it points to.
	kind reflect.Kind
}

// fieldsByType has those of each type of request, of which there are as many as calls.
var fieldsByType sync.Map

func fieldsOf(t reflect.Type) []field {
	if known, ok := fieldsByType.Load(t); ok {
		return known.([]field)
	}
	fields := make([]field, t.NumField())
	for i := range fields {
		f := t.Field(i)
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		fields[i] = field{f.Tag.Get("json"), i, f.Tag.Get("null"), kind.Kind()}
	}
	fieldsByType.Store(t, fields)
	return fields
}

// assign sets the field of target that m names and says what is wrong with m, or "".
func assign(target reflect.Value, m member) string {
	fields := fieldsOf(target.Type())
	i := slices.IndexFunc(fields, func(f field) bool { return f.name == m.name })
	if i < 0 {
		return "is not a field of this call"
	}
	f := fields[i]
	if string(m.value) == "null" {
		switch f.null {
		case "none":
			return ""
		case "": // the type would take it for its zero value
			return "must not be null"
		}
	}
	if f.kind == reflect.Int64 && !plainInteger(m.value) {
		return "must be an integer written in plain digits"
	}
	err := setValue(target.Field(f.index).Addr().Interface(), m.value)
	if err == nil {
		return ""
	}
	if own := fieldMessage(""); errors.As(err, &own) {
		return string(own)
	}
	if f.kind == reflect.Int64 {
		return "is out of range"
	}
	return "must be a " + f.kind.String()
}

// setValue is json.Unmarshal, for a value that is known to be JSON, and by itself for what is usual in bodies.
func setValue(dst any, value []byte) error {
	switch dst := dst.(type) {
	case json.Unmarshaler:
		return dst.UnmarshalJSON(value)
	case **int64:
		n, err := strconv.ParseInt(string(value), 10, 64)
		*dst = &n
		return err
	}
	return json.Unmarshal(value, dst)
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
	members, err := split(text)
	if err != nil {
		return fieldMessage("must be an object with string values")
	}
	*d = make(metadata, len(members))
	size := 0
	for _, m := range members {
		if m.value[0] != '"' {
			return fieldMessage(fmt.Sprintf("must be an object with string values: that of %.64q is none", m.name))
		}
		s, err := unquote(m.value)
		if err != nil {
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
	return t.appendTo(make([]byte, 0, len(timestampLayout)+2)), nil
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
	t, err := parseRenewal(s)
	d.Time = t
	return err
}

func parseRenewal(s string) (time.Time, error) {
	t, err := parseDate(s)
	if errors.Is(err, errDateRange) {
		return time.Time{}, err
	}
	if err != nil {
		t, err = parseTimestamp(s)
	}
	if err != nil {
		return time.Time{}, errRenewal
	}
	return t, nil
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
	if len(p) == 0 && err == nil {
		return nil
	}
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
