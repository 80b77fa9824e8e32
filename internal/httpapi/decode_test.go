package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/viralpilot/user-management/internal/user"
)

// The reference reads a body by the tokens of encoding/json alone: slower, and simple enough to be believed. It is what
// read has to agree with about every text, to the letter of what is said about a bad one.

func referenceRead(text []byte, dst any) (fieldErrors, error) {
	members, err := referenceObject(text)
	if err != nil {
		return nil, err
	}
	var problems fieldErrors
	target := reflect.ValueOf(dst).Elem()
	for _, m := range members {
		if message := referenceAssign(target, m); message != "" {
			problems = append(problems, user.FieldError{Field: m.name, Message: message})
		}
	}
	return problems, nil
}

func referenceObject(text []byte) ([]member, error) {
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

var referenceInteger = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

func referenceAssign(target reflect.Value, m member) string {
	for field, value := range target.Fields() {
		if field.Tag.Get("json") != m.name {
			continue
		}
		if string(m.value) == "null" {
			switch field.Tag.Get("null") {
			case "none":
				return ""
			case "":
				return "must not be null"
			}
		}
		kind := field.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		if kind.Kind() == reflect.Int64 && !referenceInteger.Match(m.value) {
			return "must be an integer written in plain digits"
		}
		var err error
		if notes, ok := value.Addr().Interface().(*metadata); ok {
			err = referenceMetadata(notes, m.value)
		} else {
			err = json.Unmarshal(m.value, value.Addr().Interface())
		}
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

func referenceMetadata(d *metadata, text []byte) error {
	members, err := referenceObject(text)
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

// decodedTypes are requests that together have fields of every type.
var decodedTypes = []reflect.Type{
	reflect.TypeFor[consumeRequest](), reflect.TypeFor[createUserRequest](), reflect.TypeFor[changeTierRequest](),
	reflect.TypeFor[patchUserRequest](), reflect.TypeFor[refundRequest](), reflect.TypeFor[reserveRequest](),
}

// FuzzRead holds the reader of bodies against the reference.
func FuzzRead(f *testing.F) {
	many := []byte(`{"a":0`)
	for i := range 2 * fewMembers {
		many = fmt.Appendf(many, `,"a%d":%d`, i, i)
	}
	for _, body := range []string{
		`{}`, `{"tokens_to_consume":250,"metadata":{"model":"large","feature":"captions"}}`, ` { "metadata" : null , "tokens" : 7 } `,
		`{"cognito_user_id":"u","username":null,"email":""}`, `{"cognito_user_id":"a/b\u0020😀\"\\","email":"ann@example.com"}`,
		`{"tier":"tester","renewal_date":"2026-12-24T10:00:00.123456789+05:30"}`, `{"renewal_date":null,"tier":7}`, `{"tier":"basic","renewal_date":"2026-13-01"}`,
		`{"subscription_status":"active","is_active":true}`, `{"subscription_status":null,"is_active":"true"}`, `{"subscription_status":"none","is_active":1}`,
		`{"entry_id":"1","tokens":-0}`, `{"tokens":1.0,"ttl_seconds":1e2}`, `{"tokens":9223372036854775808}`, `{"tokens":-9223372036854775808,"ttl_seconds":0}`,
		`{"tokens":1,"tokens":2}`, "{\n\"tokens\":1,\n\"é\":[{\"b\":\"]}\\\"\"}],\"\\u00e9\":2}", `{"metadata":{"a":"b","a":"c"}}`, `{"metadata":{"a":"\ud83d\ude00","b":1}}`,
		`{"metadata":{"a":"\ud83d"}}`, `{"metadata":["a"]}`, `{"metadata":{"":""}}`, `{"Tokens":1,"tokens ":1,"":null}`, `{"a":{"a":[[],{},"",null,true,1]}}`,
		``, ` `, `null`, `[]`, `"{}"`, `7`, `{`, `{}}`, `{} {}`, `{"a"}`, `{"a":}`, `{"a":1,}`, "{\"a\":\"\x00\"}", "{\"a\":\"\xff\"}", `{"a":01}`, "\ufeff{}", `{'a':1}`,
		string(many) + `}`, string(many) + `,"a":1}`, string(many) + `,"a31":1}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, kind := range decodedTypes {
			got, want := reflect.New(kind), reflect.New(kind)
			problems, err := read(bytes.Clone(text), got.Interface())
			wantProblems, wantErr := referenceRead(bytes.Clone(text), want.Interface())
			if !reflect.DeepEqual(problems, wantProblems) || !reflect.DeepEqual(err, wantErr) {
				t.Fatalf("%v: %v, %+v; want %v, %+v", kind, problems, err, wantProblems, wantErr)
			}
			for _, p := range problems {
				if i := slices.IndexFunc(fieldsOf(kind), func(f field) bool { return f.name == p.Field }); i >= 0 {
					got.Elem().Field(i).SetZero()
					want.Elem().Field(i).SetZero()
				}
			}
			if !reflect.DeepEqual(got.Interface(), want.Interface()) {
				t.Fatalf("%v: read as %+v, want %+v", kind, got.Elem(), want.Elem())
			}
		}
	})
}
