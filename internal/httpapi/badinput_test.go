package httpapi_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// bad is a request that must be refused, and how. A field is one that the problem must name.
type bad struct {
	name   string
	r      request
	status int
	code   string
	field  string
}

// call takes a body, and accepts one with these members.
type call struct{ method, path, members string }

// calls are those about accounts.
func calls(id string) map[string]call {
	return map[string]call{
		"create":  {http.MethodPost, "/user", `"cognito_user_id":"unborn"`},
		"put":     {http.MethodPut, "/user/" + id, `"username":"Ann"`},
		"patch":   {http.MethodPatch, "/user/" + id, `"is_active":false`},
		"tier":    {http.MethodPut, "/user/" + id + "/tier", `"tier":"basic"`},
		"consume": {http.MethodPost, "/user/" + id + "/consume-tokens", `"tokens_to_consume":7`},
		"add":     {http.MethodPost, "/user/" + id + "/add-tokens", `"tokens_to_add":7`},
		"reserve": {http.MethodPost, "/user/" + id + "/reservations", `"tokens":7`},
		"refund":  {http.MethodPost, "/user/" + id + "/refunds", `"entry_id":"7"`},
	}
}

// withHold are the calls about an account and about the reservation at the path.
func withHold(id, path string) map[string]call {
	all := calls(id)
	all["settle"] = call{http.MethodPost, path + "/settle", `"tokens_used":7`}
	all["extend"] = call{http.MethodPost, path + "/extend", `"ttl_seconds":7`}
	return all
}

// badBodies are wrong for every call.
func badBodies(calls map[string]call) (cases []bad) {
	const maxBody = 64 << 10
	for call, c := range calls {
		name, _, _ := strings.Cut(c.members, ":")
		for what, body := range map[string]string{
			"nothing":                   ``,
			"blanks":                    " \n",
			"not JSON":                  `tokens=1`,
			"null":                      `null`,
			"an array":                  `[{` + c.members + `}]`,
			"a number":                  `7`,
			"a string":                  `"7"`,
			"true":                      `true`,
			"a second object":           `{` + c.members + `} {` + c.members + `}`,
			"trailing text":             `{` + c.members + `}x`,
			"a trailing NUL":            `{` + c.members + "}\x00",
			"a trailing comma":          `{` + c.members + `,}`,
			"no end":                    `{` + c.members,
			"no comma":                  `{` + c.members + ` "x":1}`,
			"a comment":                 `{` + c.members + `/**/}`,
			"single quotes":             strings.ReplaceAll(`{`+c.members+`}`, `"`, `'`),
			"a name twice":              `{` + c.members + `,` + c.members + `}`,
			"a name twice, once hidden": `{` + c.members + `,` + strings.Replace(c.members, name[:2], fmt.Sprintf(`"\u%04x`, name[1]), 1) + `}`,
			"a byte order mark":         "\ufeff{" + c.members + `}`,
			"UTF-16":                    "\xff\xfe{\x00}\x00",
			"invalid UTF-8":             `{` + c.members + ",\"x\":\"\xff\"}",
			"an overlong UTF-8 form":    `{` + c.members + ",\"x\":\"\xc0\xaf\"}",
			"a surrogate in UTF-8":      `{` + c.members + ",\"x\":\"\xed\xa0\x80\"}",
			"a lone high surrogate":     `{` + c.members + `,"x":"\ud83d"}`,
			"a lone low surrogate":      `{` + c.members + `,"x":"\\\uDE00"}`,
			"surrogates in wrong order": `{` + c.members + `,"x":"\ude00\ud83d"}`,
			"a lone surrogate in name":  `{` + c.members + `,"\ud800":1}`,
			"a raw control character":   `{` + c.members + ",\"x\":\"\x01\"}",
			"a leading zero":            `{` + c.members + `,"x":01}`,
			"a plus sign":               `{` + c.members + `,"x":+1}`,
			"NaN":                       `{` + c.members + `,"x":NaN}`,
			"too deep nesting":          `{"x":` + strings.Repeat(`[`, 30_000) + strings.Repeat(`]`, 30_000) + `}`,
			"deep nesting without end":  strings.Repeat(`{"x":`, 13_000),
		} {
			cases = append(cases, bad{call + " with " + what, request{c.method, c.path, nil, body}, 400, "malformed_json", ""})
		}
		cases = append(cases,
			bad{call + " with an unknown field", request{c.method, c.path, nil, `{` + c.members + `,"user":1}`}, 422, "validation_failed", "user"},
			bad{call + " with an unknown field of null", request{c.method, c.path, nil, `{` + c.members + `,"user":null}`}, 422, "validation_failed", "user"},
			bad{call + " with nested unknown fields", request{c.method, c.path, nil, `{` + c.members + `,"x":` + strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000) + `}`}, 422, "validation_failed", "x"},
			bad{call + " with an empty name", request{c.method, c.path, nil, `{` + c.members + `,"":1}`}, 422, "validation_failed", ""},
			bad{call + " with the wrong case", request{c.method, c.path, nil, `{` + strings.Replace(c.members, name, strings.ToUpper(name), 1) + `}`}, 422, "validation_failed", strings.ToUpper(strings.Trim(name, `"`))},
			bad{call + " with a name that has a NUL", request{c.method, c.path, nil, `{` + c.members + `,"\u0000":1}`}, 422, "validation_failed", "\x00"},
			bad{call + " with 64 KiB and a byte", request{c.method, c.path, nil, padded(c.members, maxBody+1)}, 413, "body_too_large", ""},
			bad{call + " with 64 KiB and a byte of no JSON", request{c.method, c.path, nil, strings.Repeat("x", maxBody+1)}, 413, "body_too_large", ""},
		)
		for _, media := range []string{
			"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/problem+json", "application/json5",
			"application", "application/", "/json", "application/json; charset", "application/json, application/json", "*/*", "application/json; a=1; a=2", "", "application/ json",
		} {
			cases = append(cases, bad{call + " as " + media, request{c.method, c.path, http.Header{"Content-Type": {media}}, `{` + c.members + `}`}, 415, "unsupported_media_type", ""})
		}
	}
	return cases
}

// padded is an object with these members and a size.
func padded(members string, size int) string {
	return "{" + members + strings.Repeat(" ", size-len(members)-2) + "}"
}

// badFields have a value that the field cannot have.
func badFields(calls map[string]call) (cases []bad) {
	of := func(call, field string, status int, code string, values map[string]string) {
		c := calls[call]
		if c.path == "" {
			return
		}
		name, _, _ := strings.Cut(c.members, ":")
		for what, value := range values {
			body := fmt.Sprintf(`{"%s":%s}`, field, value)
			if field != strings.Trim(name, `"`) {
				body = fmt.Sprintf(`{%s,"%s":%s}`, c.members, field, value)
			}
			named := field
			if status != 422 {
				named = ""
			}
			cases = append(cases, bad{fmt.Sprintf("%s of %s in %s", field, what, call), request{c.method, c.path, nil, body}, status, code, named})
		}
	}
	invalid := func(call, field string, values map[string]string) { of(call, field, 422, "validation_failed", values) }
	long := func(n int) string { return `"` + strings.Repeat("ö", n) + `"` }

	for call, field := range map[string]string{
		"consume": "tokens_to_consume", "add": "tokens_to_add", "reserve": "tokens", "refund": "tokens", "extend": "ttl_seconds",
	} {
		invalid(call, field, map[string]string{
			"null": `null`, "a string": `"7"`, "an empty string": `""`, "1.0": `1.0`, "1e2": `1e2`, "1E0": `1E0`, "half": `0.5`, "-1": `-1`, "0": `0`, "-0": `-0`,
			"32 bits and one": `2147483648`, "64 bits and one": `9223372036854775808`, "-64 bits": `-9223372036854775808`,
			"1e400": `1e400`, "100 digits": strings.Repeat("9", 100), "true": `true`, "an array": `[]`, "an array of one": `[7]`, "an object": `{}`,
		})
	}
	of("reserve", "ttl_seconds", 422, "validation_failed", map[string]string{
		"null": `null`, "0": `0`, "a day and a second": `86401`, "a string": `"60"`, "1.0": `1.0`, "64 bits and one": `9223372036854775808`,
	})
	of("extend", "ttl_seconds", 422, "validation_failed", map[string]string{"a day and a second": `86401`})
	of("settle", "tokens_used", 422, "validation_failed", map[string]string{
		"null": `null`, "-1": `-1`, "-0": `-0`, "a string": `"7"`, "1e2": `1e2`, "32 bits and one": `2147483648`, "an array": `[]`,
	})
	for call := range calls {
		if call == "create" || call == "extend" {
			of(call, "metadata", 422, "validation_failed", map[string]string{"an object": `{"a":"b"}`, "null": `null`}) // it has none
			continue
		}
		invalid(call, "metadata", map[string]string{
			"2 KiB and a byte": `{` + sized(2049) + `}`,
			"17 members":       `{` + strings.Join(numbered(17), ",") + `}`, "a key of 65": `{` + long(65) + `:"x"}`, "a value of 257": `{"x":` + long(257) + `}`,
			"an empty key": `{"":"x"}`, "a number": `{"x":1}`, "a value of true": `{"x":true}`, "a value of null": `{"x":null}`, "an object in it": `{"x":{}}`,
			"NUL": `{"x":"a\u0000"}`, "NUL in a key": `{"\u0000":"x"}`, "a key twice": `{"x":"1","x":"2"}`, "an array": `[]`, "a string": `"x"`, "7": `7`, "false": `false`,
		})
	}
	cases = append(cases, bad{"add without tokens", request{http.MethodPost, calls["add"].path, nil, `{}`}, 422, "validation_failed", "tokens_to_add"})

	texts := map[string]string{
		"256 characters": long(256), "a NUL": `"a\u0000b"`, "a line feed": `"a\nb"`, "a tab": `"\ta"`, "DEL": `"\u007f"`, "a C1 control": `"a\u0085"`,
		"a number": `7`, "an array": `["a"]`, "an object": `{}`, "false": `false`,
	}
	for _, call := range []string{"create", "put", "patch"} {
		invalid(call, "username", texts)
		invalid(call, "email", texts)
		of(call, "tokens_remaining", 422, "validation_failed", map[string]string{"5": `5`})
	}
	invalid("patch", "subscription_status", map[string]string{"null": `null`, "nothing": `""`, "Active": `"Active"`, "asleep": `"asleep"`, "7": `7`, "a list": `["active"]`})
	invalid("patch", "is_active", map[string]string{"null": `null`, "1": `1`, "a string": `"true"`, "an object": `{}`})
	invalid("refund", "entry_id", map[string]string{"null": `null`, "a number": `7`, "an array": `["7"]`, "false": `false`})
	invalid("create", "email", map[string]string{
		"no address": `"ann"`, "no host": `"ann@"`, "no name": `"@example.com"`, "two": `"a@example.com,b@example.com"`, "a display name": `"Ann <ann@example.com>"`,
		"a blank": `" "`, "blanks around": `" ann@example.com "`, "256 characters in all": `"anna@` + strings.Repeat("a.", 124) + `com"`,
	})
	invalid("create", "cognito_user_id", map[string]string{
		"nothing": `""`, "a blank": `" "`, "other blanks": `"\u00a0\u2003"`, "a dot": `"."`, "two dots": `".."`, "256 characters": long(256),
		"a NUL": `"a\u0000"`, "a line feed": `"a\n"`, "a C1 control": `"\u0085"`, "null": `null`, "a number": `7`, "an array": `[]`, "an object": `{}`,
		"a blank before": `" a"`, "a blank after": `"a "`, "an ideographic blank after": `"a\u3000"`, "a zero-width space": `"a\u200bb"`, "a byte order mark": `"\ufeffa"`,
		"an order from right to left": `"a\u202eb"`, "a soft hyphen": `"a\u00adb"`, "a tag": `"a\udb40\udc41"`, "a pseudonym": `"erased-4711"`,
	})
	cases = append(cases, bad{"create without id", request{http.MethodPost, "/user", nil, `{"username":"Ann"}`}, 422, "validation_failed", "cognito_user_id"})

	invalid("tier", "tier", map[string]string{"null": `null`, "7": `7`, "an array": `["basic"]`, "an object": `{}`, "true": `true`})
	of("tier", "tier", 400, "invalid_tier", map[string]string{
		"gold": `"gold"`, "nothing": `""`, "Basic": `"Basic"`, "basic and a blank": `"basic "`, "a NUL": `"basic\u0000"`, "much": long(30_000),
	})
	cases = append(cases, bad{"tier without tier", request{http.MethodPut, calls["tier"].path, nil, `{"renewal_date":null}`}, 422, "validation_failed", "tier"})
	invalid("tier", "renewal_date", map[string]string{
		"nothing": `""`, "garbage": `"tomorrow"`, "a date with blanks": `"2026-12-24 "`, "a short date": `"2026-1-2"`, "a day that is not": `"2026-02-29"`, "year 0 of dates": `"0000-01-01"`, "a time": `"10:00:00Z"`, "a number": `1798106400`, "a short hour": `"2026-12-24T1:00:00Z"`,
		"a comma": `"2026-12-24T10:00:00,5Z"`, "a zone of 24 hours": `"2026-12-24T10:00:00+24:30"`, "no seconds": `"2026-12-24T10:00Z"`, "a blank": `" 2026-12-24T10:00:00Z"`,
		"two zones": `"2026-12-24T10:00:00ZZ"`, "an instant that is not": `"2026-02-29T10:00:00.000000Z"`, "month 13": `"2026-13-01T10:00:00.000000Z"`, "hour 24": `"2026-12-24T24:00:00.000000Z"`,
		"year 0": `"0000-06-01T10:00:00Z"`, "year 10000": `"10000-01-01T00:00:00Z"`, "a zone before year 1": `"0001-01-01T00:30:00+01:00"`,
		"a zone after year 9999": `"9999-12-31T23:30:00-01:00"`, "an array": `[]`, "an object": `{}`, "false": `false`, "a leap second": `"2026-12-31T23:59:60.000000Z"`,
	})
	return cases
}

// sized is members of an object of strings of n bytes, 1 to 2 of each name and up to 256 of each value.
func sized(n int) string {
	var members []string
	for i := 0; n > 0; i++ {
		name := strconv.Itoa(i)
		value := min(256, n-len(name))
		members = append(members, fmt.Sprintf(`"%s":"%s"`, name, strings.Repeat("v", value)))
		n -= len(name) + value
	}
	return strings.Join(members, ",")
}

// numbered is n members of an object of strings.
func numbered(n int) []string {
	members := make([]string, n)
	for i := range members {
		members[i] = fmt.Sprintf(`"key %d":""`, i)
	}
	return members
}

func badKeys(calls map[string]call) (cases []bad) {
	for call, c := range calls {
		for what, key := range map[string][]string{
			"256 characters": {strings.Repeat("k", 256)}, "a letter outside of ASCII": {"schlüssel"}, "invalid UTF-8": {"\xff"}, "a control character": {"a\x01"},
			"a tab": {"a\tb"}, "DEL": {"a\x7f"}, "two values": {"a", "b"}, "the same twice": {"a", "a"},
		} {
			cases = append(cases, bad{call + " under a key of " + what, request{c.method, c.path, http.Header{"Idempotency-Key": key}, `{` + c.members + `}`}, 422, "validation_failed", "Idempotency-Key"})
		}
		cases = append(cases, bad{call + " with a parameter", request{c.method, c.path + "?tokens=7", nil, `{` + c.members + `}`}, 422, "validation_failed", "tokens"})
	}
	return cases
}

// badDeletes are DELETE of the account.
func badDeletes(id string) (cases []bad) {
	key := func(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }
	for what, c := range map[string]struct {
		query string
		r     request
		code  string
		field string
	}{
		"a key of an erase":       {"?erase=true", request{Header: key("key")}, "validation_failed", "Idempotency-Key"},
		"a key that is none":      {"", request{Header: key("schlüssel")}, "validation_failed", "Idempotency-Key"},
		"an unknown parameter":    {"?force=true", request{}, "validation_failed", "force"},
		"a parameter in capitals": {"?Erase=true", request{}, "validation_failed", "Erase"},
		"erase of yes":            {"?erase=yes", request{}, "validation_failed", "erase"},
		"a body":                  {"", request{Body: `{}`}, "malformed_json", ""},
		"a body of an erase":      {"?erase=true", request{Body: `{"erase":true}`}, "malformed_json", ""},
	} {
		status := 422
		if c.code == "malformed_json" {
			status = 400
		}
		c.r.Method, c.r.Path = http.MethodDelete, "/user/"+id+c.query
		cases = append(cases, bad{"delete with " + what, c.r, status, c.code, c.field})
	}
	return cases
}

func badPaths(id string) (cases []bad) {
	for what, raw := range map[string]string{
		"a blank": "%20", "blanks": "%20%09", "an ideographic blank": "%E3%80%80", "a dot": ".", "two dots": "..", "escaped dots": "%2e%2E", "256 letters": strings.Repeat("a", 256),
		"256 characters": strings.Repeat("%C3%A9", 256), "NUL": "a%00", "a line feed": "a%0A", "DEL": "%7F", "a C1 control": "%C2%85", "byte ff": "%ff", "half a character": "a%C3",
		"an overlong form": "%C0%AF", "a surrogate": "%ED%A0%80", "nothing": "",
	} {
		for call, c := range calls(raw) {
			if call != "create" && c.path != "/user/" {
				cases = append(cases, bad{call + " for an id of " + what, request{c.method, c.path, nil, `{` + c.members + `}`}, 400, "invalid_path", ""})
			}
		}
		for _, below := range []string{"", "/status", "/ledger"} {
			if raw+below != "" {
				cases = append(cases, bad{"read" + below + " for an id of " + what, request{Method: http.MethodGet, Path: "/user/" + raw + below}, 400, "invalid_path", ""})
			}
		}
	}
	for _, path := range []string{
		"/nope", "/user/", "/user/" + id + "/", "/user/" + id + "/nope", "/user/" + id + "//status", "//user/" + id, "//", "/user/a/b/status", "/User/" + id, "/tiers/", "/health/live",
		"/user/" + id + "/status/", "/user/" + id + "/consume_tokens", "/%75ser/" + id, "/user%2F" + id, "/.", "/..",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, "BREW"} {
			cases = append(cases, bad{method + " of unknown path " + path, request{Method: method, Path: path}, 404, "not_found", ""})
		}
	}
	return cases
}

func badQueries(id string) (cases []bad) {
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=201": "limit", "limit=-1": "limit", "limit=": "limit", "limit=x": "limit", "limit=1.0": "limit", "limit=1e1": "limit", "limit=%2B5": "limit",
		"limit=99999999999999999999": "limit", "limit=5&limit=5": "limit", "limit=٣": "limit",
		"cursor=": "cursor", "cursor=x": "cursor", "cursor=MQ%3D%3D": "cursor", "cursor=MQ==": "cursor", "cursor=MR": "cursor", "cursor=MDE": "cursor", "cursor=LTE": "cursor", "cursor=KzE": "cursor",
		"cursor=MA": "cursor", "cursor=MSAg": "cursor", "cursor=M%20Q": "cursor", "cursor=MQ%0A": "cursor", "cursor=12": "cursor", "cursor=OTIyMzM3MjAzNjg1NDc3NTgwOA": "cursor",
		"cursor=MQ&cursor=MQ": "cursor", "cursor=%00": "cursor", "cursor=%ff": "cursor",
		"kind=gold": "kind", "kind=": "kind", "kind=Consume": "kind", "kind=consume,top_up": "kind", "kind=consume%00": "kind", "kind=consume&kind=top_up": "kind",
		"since=yesterday": "since", "since=": "since", "since=2026-11-24": "since", "since=1798106400": "since", "since=2026-11-24T10:00:00+01:00": "since", "since=9999-12-31T23:59:59-01:00": "since",
		"until=0000-01-01T00:00:00Z": "until", "until=x": "until", "until=2026-11-24T10:00:00Z&until=2026-11-25T10:00:00Z": "until",
		"%zz": "query", "limit=%": "query", "limit=5;kind=consume": "query", "limit=5&x=%f": "query",
		"limti=5": "limti", "Limit=5": "Limit", "limit=5&order=desc": "order", "x": "x", "=": "", "after=7": "after",
	} {
		cases = append(cases, bad{"ledger?" + query, request{Method: http.MethodGet, Path: "/user/" + id + "/ledger?" + query}, 422, "validation_failed", field})
	}
	for path, field := range map[string]string{
		"?create=true": "create", "/status?create=yes": "create", "/status?create=": "create", "/status?create=true&create=true": "create", "/status?Create=true": "Create",
		"/usage?from=yesterday": "from", "/usage?from=2026-11-24T00:00:00Z": "from", "/usage?to=2026-02-30": "to", "/usage?from=2025-01-01&to=2026-11-24": "from", "/usage?day=2026-11-24": "day",
		"/reservations?status=": "status", "/reservations?status=Open": "status", "/reservations?status=closed": "status", "/reservations?kind=open": "kind", "/reservations?cursor=MQ": "cursor",
	} {
		cases = append(cases, bad{"read of " + path, request{Method: http.MethodGet, Path: "/user/" + id + path}, 422, "validation_failed", field})
	}
	return cases
}

func TestBadInput_IsRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	id := s.account("tester", 5)
	s.consume(id, 1, "key").want(http.StatusOK)
	all := withHold(id, s.reserve(id, 5))
	before := snapshot(t, db)
	for _, cases := range [][]bad{badBodies(all), badFields(all), badKeys(all), badDeletes(id), badPaths(id), badQueries(id)} {
		for _, c := range cases {
			t.Run(fmt.Sprintf("%d %s: %s", c.status, c.code, c.name), func(t *testing.T) {
				defer func() {
					if after := snapshot(t, db); after != before {
						t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
						before = after
					}
				}()
				problem := s.in(t).do(c.r).wantProblem(c.status, c.code)
				named := c.field == ""
				for _, e := range asList(problem["errors"]) {
					field, _ := e.(m)["field"].(string)
					named = named || field == c.field || strings.HasPrefix(field, c.field+"[")
					if message, _ := e.(m)["message"].(string); message == "" {
						t.Errorf("no message: %v", e)
					}
				}
				if len(asList(problem["errors"])) > 20 || !named || c.status == 422 != (problem["errors"] != nil) {
					t.Errorf("%s is not named, or it should not be: %v", c.field, problem)
				}
				path, _, _ := strings.Cut(c.r.Path, "?")
				if problem["instance"] != path {
					t.Errorf("instance %v", problem["instance"])
				}
			})
		}
	}
}

func asList(v any) []any {
	list, _ := v.([]any)
	return list
}

func TestBadInput_IsNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	problem := s.post("/user", `{"username":7,"email":"x","extra":1,"Email":null}`).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
	var fields []string
	for _, e := range asList(problem["errors"]) {
		fields = append(fields, e.(m)["field"].(string))
	}
	slices.Sort(fields)
	if got := strings.Join(fields, " "); got != "Email cognito_user_id email extra username" {
		t.Errorf("fields: %s", got)
	}
	t.Run("up to 20 faults", func(t *testing.T) {
		s := s.in(t)
		problem := s.post("/user", `{`+strings.Join(numbered(4000), ",")+`}`).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		if n := len(asList(problem["errors"])); n != 20 {
			t.Errorf("%d errors", n)
		}
	})
}

func TestMalformedJSON_SaysWhere(t *testing.T) {
	t.Parallel()
	s := start(t)
	for body, where := range map[string]string{
		`{"cognito_user_id": "u",}`:             "line 1, column 25: ",
		"{\n  \"cognito_user_id\": \"é\", x\n}": "line 2, column 27: ",
		`{"cognito_user_id": "u"`:               "line 1, column 23: ",
		"{\r\n\"a\": 1\r\n\"b\": 2}":            "line 3, column 1: ",
		`{"a": 1, "a": 2}`:                      `line 1, column 12: the name "a" stands there twice`,
		`{} {}`:                                 "line 1, column 4: ",
	} {
		problem := s.post("/user", body).wantProblem(http.StatusBadRequest, "malformed_json")
		if words := problem["detail"].(string); !strings.HasPrefix(words, "The body must be one JSON object: "+where) {
			t.Errorf("%q: %s, want %s", body, words, where)
		}
	}
	for _, body := range []string{"", " ", "null", "[]", `"text"`} {
		has(t, s.post("/user", body).wantProblem(http.StatusBadRequest, "malformed_json"), m{"detail": "The body must be one JSON object."})
	}
}

func TestValuesFromAList_AreListedForPeople(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 0)
	for name, c := range map[string]struct {
		r       response
		message string
	}{
		"a subscription_status": {s.patch(id, m{"subscription_status": "asleep"}), "must be active, trialing, past_due, canceled, unpaid, paused, incomplete or incomplete_expired"},
		"a kind":                {s.get("/user/" + id + "/ledger?kind=gold"), "must be opening, consume, top_up, monthly_reset, tier_change, reserve, extend, settle, release, expire, refund or profile_change"},
		"a status":              {s.get("/user/" + id + "/reservations?status=gold"), "must be open, settled, released, expired or all"},
		"a parameter":           {s.get("/user/" + id + "/ledger?limti=5"), "is not a parameter of this call"},
	} {
		problem := c.r.wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		if got := asList(problem["errors"])[0].(m)["message"]; got != c.message {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestGoodInput_IsTaken(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 0)
	consume, add := "/user/"+id+"/consume-tokens", "/user/"+id+"/add-tokens"
	media := func(v ...string) http.Header { return http.Header{"Content-Type": v} }
	long := func(n int) string { return strings.Repeat("é", n) }
	for name, c := range map[string]struct {
		r    request
		want m // of the newest entry
	}{
		"64 KiB exactly":             {request{http.MethodPost, consume, nil, padded(`"tokens_to_consume":2`, 64<<10)}, m{"amount": -2}},
		"white space":                {request{http.MethodPost, consume, nil, "\r\n\t { \"tokens_to_consume\" : 3 } \n"}, m{"amount": -3}},
		"a name with escapes":        {request{http.MethodPost, consume, nil, `{"\u0074okens_to_consum\u0065":4}`}, m{"amount": -4}},
		"a charset":                  {request{http.MethodPost, consume, media("application/json; charset=utf-8"), `{}`}, m{"amount": -1}},
		"a content type in capitals": {request{http.MethodPost, consume, media("Application/JSON ;Charset=\"UTF-8\""), `{}`}, m{"amount": -1}},
		"all of the metadata":        {request{http.MethodPost, add, nil, `{"tokens_to_add":1,"metadata":{` + strings.Join(numbered(16), ",") + `}}`}, m{"amount": 1}},
		"a long key and value":       {request{http.MethodPost, add, nil, m{"tokens_to_add": 1, "metadata": m{long(64): long(256)}}}, m{"metadata": m{long(64): long(256)}}},
		"any text in metadata":       {request{http.MethodPost, add, nil, `{"tokens_to_add":1,"metadata":{"a\n\u2028\"\\ud800":"\ud83d\ude00\u0001<&>"}}`}, m{"metadata": m{"a\n\u2028\"\\ud800": "😀\x01<&>"}}},
		"metadata of null":           {request{http.MethodPost, add, nil, `{"metadata":null,"tokens_to_add":1}`}, m{"metadata": nil}},
		"metadata of nothing":        {request{http.MethodPost, add, nil, `{"metadata":{},"tokens_to_add":1}`}, m{"metadata": nil}},
		"2 KiB of metadata":          {request{http.MethodPost, add, nil, `{"tokens_to_add":8,"metadata":{` + sized(2048) + `}}`}, m{"amount": 8}},
		"a question mark alone":      {request{http.MethodPost, add + "?", nil, `{"tokens_to_add":9}`}, m{"amount": 9}},
	} {
		t.Run(name+" is taken", func(t *testing.T) { // one after the other: each looks at the newest entry
			s := s.in(t)
			s.do(c.r).want(http.StatusOK)
			has(t, s.entries(id)[0], c.want)
		})
	}
}

// Checks come in this order: the user, the body, the replay, the refusals of the rules.
func TestBadInput_FirstThingWrongIsTheAnswer(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	before := snapshot(t, db)
	t.Run("an unknown user before all that is wrong with the request", func(t *testing.T) {
		s := s.in(t)
		all := withHold("nobody", "/user/nobody/reservations/0b5a0a3e-6c3e-4b0b-9d5e-1f7b1c9d1a2b")
		delete(all, "put") // makes the user
		cases := slices.Concat(badBodies(all), badFields(all), badKeys(all), badDeletes("nobody"), badQueries("nobody"))
		for _, c := range cases {
			if !strings.Contains(c.r.Path, "nobody") || strings.Contains(c.r.Path, "?create=") {
				continue // there is no user to be unknown, or it is to be made
			}
			if r := s.do(c.r); r.Status != http.StatusNotFound {
				t.Errorf("%s: status %d", c.name, r.Status)
			} else {
				r.wantProblem(http.StatusNotFound, "user_not_found")
			}
		}
		if after := snapshot(t, db); after != before {
			t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
		}
	})
	id := s.account("free", 10)
	s.consume(id, 10, "key").want(http.StatusOK)
	path := "/user/" + id + "/consume-tokens"
	key := func(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }
	text := http.Header{"Idempotency-Key": {"key"}, "Content-Type": {"text/plain"}}
	for _, c := range []bad{
		{"the path before the media type", request{http.MethodPost, "/user/%00/consume-tokens", text, `{}`}, 400, "invalid_path", ""},
		{"the media type before the size", request{http.MethodPost, path, text, padded("", 64<<10+1)}, 415, "unsupported_media_type", ""},
		{"the media type before the key that was used", request{http.MethodPost, path, text, `{"tokens_to_consume":10}`}, 415, "unsupported_media_type", ""},
		{"the size before the key that was used", request{http.MethodPost, path, key("key"), padded(`"tokens_to_consume":10`, 64<<10+1)}, 413, "body_too_large", ""},
		{"the body before the key that was used", request{http.MethodPost, path, key("key"), `{"tokens_to_consume":10,}`}, 400, "malformed_json", ""},
		{"the fields before the key that was used", request{http.MethodPost, path, key("key"), `{"tokens_to_consume":10,"x":1}`}, 422, "validation_failed", "x"},
		{"the fields before the shortage", request{http.MethodPost, path, nil, `{"tokens_to_consume":11,"x":1}`}, 422, "validation_failed", "x"},
		{"the key before the shortage", request{http.MethodPost, path, key("schlüssel"), `{"tokens_to_consume":11}`}, 422, "validation_failed", "Idempotency-Key"},
		{"the key that was used before the shortage", request{http.MethodPost, path, key("key"), `{"tokens_to_consume":11}`}, 422, "idempotency_key_reused", ""},
		{"the method before the path's id", request{http.MethodDelete, "/user/%00/consume-tokens", text, `{}`}, 405, "method_not_allowed", ""},
		{"the date before the tier", request{http.MethodPut, "/user/" + id + "/tier", nil, `{"tier":"gold","renewal_date":"x"}`}, 422, "validation_failed", "renewal_date"},
		{"an id before whether it is taken", request{http.MethodPost, "/user", nil, m{"cognito_user_id": id, "x": 1}}, 422, "validation_failed", "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s.in(t).do(c.r).wantProblem(c.status, c.code)
		})
	}
	t.Run("an unknown reservation before all that is wrong with the request", func(t *testing.T) {
		s := s.in(t)
		id := s.account("tester", 0)
		before := snapshot(t, db)
		unknown := map[string]call{}
		for name, c := range withHold(id, "/user/"+id+"/reservations/0b5a0a3e-6c3e-4b0b-9d5e-1f7b1c9d1a2b") {
			if name == "settle" || name == "extend" {
				unknown[name] = c
			}
		}
		for _, c := range slices.Concat(badBodies(unknown), badFields(unknown), badKeys(unknown)) {
			if strings.Contains(c.r.Path, id) {
				s.do(c.r).wantProblem(http.StatusNotFound, "reservation_not_found")
			}
		}
		if after := snapshot(t, db); after != before {
			t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
		}
	})
	t.Run("the key that was used before an account that may not spend", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		s.consume(id, 7, "key").want(http.StatusOK)
		exec(t, db, `UPDATE viralpilot.userdata SET is_active = false, subscription_status = 'paused' WHERE cognito_user_id = $1`, id)
		s.consume(id, 7, "key").want(http.StatusOK)
		s.consume(id, 8, "key").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		s.consume(id, 0).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		s.consume(id, 7, "other").wantProblem(http.StatusForbidden, "user_inactive")
	})
}

func TestIDs_AreDecodedExactlyOnce(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	for raw, id := range map[string]string{
		"a%2Fb": "a/b", "user%40x.com": "user@x.com", "user@y.com": "user@y.com", "us-east-1%3A1b2c": "us-east-1:1b2c", "us-west-2:1b2c": "us-west-2:1b2c", "%2541": "%41",
		"%25": "%", "a%252Fb": "a%2Fb", "%25252F": "%252F", "%C3%A9": "é", "ü": "ü", "e%CC%81": "e\u0301", "%F0%9F%98%80": "😀", "a%20b": "a b",
		"a+b": "a+b", "a%2Bc": "a+c", "...": "...", "%2e%2e%2e%2e": "....", "a%3Fb": "a?b", "a%23b": "a#b", "a%3Bb;c": "a;b;c", "a&b=c": "a&b=c", "%2F": "/", "..%2F..%2Fhealth": "../../health",
		"status": "status", "a%2Fledger": "a/ledger", "a%5Cb": `a\b`, "%22%27%3C%3E": `"'<>`, "*": "*", "~!$'(),": "~!$'(),", "%e2%98%83": "☃",
		strings.Repeat("a", 255): strings.Repeat("a", 255), strings.Repeat("%E2%82%AC", 255): strings.Repeat("€", 255),
	} {
		t.Run(raw+" is "+id, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			head := s.do(request{Method: http.MethodHead, Path: "/user/" + raw})
			if head.Status != http.StatusNotFound {
				t.Errorf("HEAD of an unknown id: status %d", head.Status)
			}
			s.get("/user/"+raw+"/status").wantProblem(http.StatusNotFound, "user_not_found") // and HEAD made nothing
			var body m
			if strings.Contains(raw, "%") { // half of them by the body, half by the path
				r := s.post("/user", m{"cognito_user_id": id})
				body = r.want(http.StatusCreated)
				location := r.Header.Get("Location")
				if u, err := url.Parse(location); err != nil || u.EscapedPath() != location || u.Path != "/user/"+id {
					t.Errorf("Location %q: %v", location, err)
				}
				has(t, s.get(location).want(http.StatusOK), body)
				s.get(location + "/status").want(http.StatusOK)
			} else {
				body = s.get("/user/" + raw).want(http.StatusOK)
			}
			has(t, body, m{"cognito_user_id": id})
			for _, got := range []m{
				s.get("/user/" + raw).want(http.StatusOK), s.status(raw), s.put("/user/"+raw+"/tier", m{"tier": "tester"}).want(http.StatusOK), s.consume(raw, 1).want(http.StatusOK),
				s.add(raw, 1).want(http.StatusOK),
			} {
				has(t, got, m{"cognito_user_id": id})
			}
			if got := s.kinds(raw); got != "tier_change +1000, consume -1, top_up +1" {
				t.Errorf("ledger: %s", got)
			}
			if r := s.do(request{Method: http.MethodHead, Path: "/user/" + raw}); r.Status != http.StatusOK {
				t.Errorf("HEAD: status %d", r.Status)
			}
			var rows int
			if err := db.QueryRow(t.Context(), `SELECT count(*) FROM viralpilot.userdata WHERE cognito_user_id = $1`, id).Scan(&rows); err != nil || rows != 1 {
				t.Errorf("%d rows, %v", rows, err)
			}
		})
	}
}

func TestAnIDThatIsEncodedTwiceIsToldSo(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	const hint = "encoded twice: decoded once it is"
	for raw, id := range map[string]string{
		"us-east-1%253A1b2c": "us-east-1%3A1b2c", "x%252Fy": "x%2Fy", "caf%25C3%25A9": "caf%C3%A9", "a%2520b:c": "a%20b:c", "100%2525": "100%25", "x%25257B": "x%257B",
	} {
		t.Run(id, func(t *testing.T) {
			s := s.in(t)
			before := snapshot(t, db)
			for _, path := range []string{"/status", "/ledger", "/usage", "/reservations"} {
				if detail := s.get("/user/"+raw+path).wantProblem(http.StatusNotFound, "user_not_found")["detail"].(string); !strings.Contains(detail, fmt.Sprintf("%s %q", hint, id)) {
					t.Errorf("%s: %s", path, detail)
				}
			}
			if after := snapshot(t, db); after != before {
				t.Errorf("something was written:\n%s", after)
			}
			has(t, s.get("/user/"+raw).want(http.StatusOK), m{"cognito_user_id": id}) // it may be meant so
			s.get("/user/" + raw + "/status").want(http.StatusOK)
		})
	}
	for raw, id := range map[string]string{
		"%2542": "%42", "50%25": "50%", "50%2520%20off": "50%20 off", "%2500": "%00", "%25zz": "%zz", "a%252": "a%2", "%25e9": "%e9", "z%252Fy%2Fx": "z%2Fy/x", "plain": "plain",
	} {
		t.Run(id+" is nothing that encoders make", func(t *testing.T) {
			s := s.in(t)
			if detail := s.get("/user/"+raw+"/ledger").wantProblem(http.StatusNotFound, "user_not_found")["detail"].(string); strings.Contains(detail, hint) {
				t.Error(detail)
			}
			has(t, s.get("/user/"+raw).want(http.StatusOK), m{"cognito_user_id": id})
		})
	}
}

func TestMethods_AreThoseOfThePath(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	id := s.account("tester", 5)
	before := snapshot(t, db)
	hold := "/user/" + id + "/reservations/0b5a0a3e-6c3e-4b0b-9d5e-1f7b1c9d1a2b"
	for path, allow := range map[string]string{
		"/": "GET, HEAD, OPTIONS", "/health": "GET, HEAD, OPTIONS", "/livez": "GET, HEAD, OPTIONS", "/tiers": "GET, HEAD, OPTIONS", "/users": "GET, HEAD, OPTIONS", "/whoami": "GET, HEAD, OPTIONS",
		"/docs": "GET, HEAD, OPTIONS", "/redoc": "GET, HEAD, OPTIONS", "/openapi.json": "GET, HEAD, OPTIONS", "/openapi.yaml": "GET, HEAD, OPTIONS",
		"/user": "POST, OPTIONS", "/user/" + id: "GET, HEAD, PUT, PATCH, DELETE, OPTIONS", "/user/a%2Fb": "GET, HEAD, PUT, PATCH, DELETE, OPTIONS",
		"/user/" + id + "/status": "GET, HEAD, OPTIONS", "/user/" + id + "/ledger": "GET, HEAD, OPTIONS", "/user/" + id + "/usage": "GET, HEAD, OPTIONS", "/user/nobody/status": "GET, HEAD, OPTIONS",
		"/user/" + id + "/tier": "PUT, OPTIONS", "/user/" + id + "/consume-tokens": "POST, OPTIONS", "/user/" + id + "/add-tokens": "POST, OPTIONS", "/user/" + id + "/refunds": "POST, OPTIONS",
		"/user/" + id + "/reservations": "GET, HEAD, POST, OPTIONS", hold: "GET, HEAD, OPTIONS", hold + "/extend": "POST, OPTIONS", hold + "/settle": "POST, OPTIONS", hold + "/release": "POST, OPTIONS",
	} {
		allowed := strings.Split(allow, ", ")
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "BREW", "get", "OPTIONS"} {
			if slices.Contains(allowed, method) {
				continue
			}
			t.Run("405 "+method+" "+path, func(t *testing.T) {
				r := s.in(t).do(request{Method: method, Path: path, Body: m{}})
				if method != http.MethodHead {
					r.wantProblem(http.StatusMethodNotAllowed, "method_not_allowed")
				}
				if got := r.Header.Values("Allow"); r.Status != http.StatusMethodNotAllowed || len(got) != 1 || got[0] != allow {
					t.Errorf("status %d, Allow %q, want %s", r.Status, got, allow)
				}
			})
		}
		t.Run("204 OPTIONS "+path, func(t *testing.T) {
			r := s.in(t).do(request{Method: http.MethodOptions, Path: path})
			if got := r.Header.Values("Allow"); r.Status != http.StatusNoContent || len(r.Body) != 0 || len(got) != 1 || got[0] != allow {
				t.Errorf("status %d, Allow %q, want %s; body: %s", r.Status, got, allow, r.Body)
			}
		})
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
}

// What net/http refuses by itself never reaches a handler; it is refused all the same.
func TestBrokenRequest_IsRefusedOnTheWire(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	id := s.account("tester", 5)
	before := snapshot(t, db)
	server := httptest.NewServer(s.handler)
	t.Cleanup(server.Close)
	post := "POST /user/" + id + "/consume-tokens HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	for name, raw := range map[string]string{
		"a bad escape in the path":                 "GET /user/%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"half an escape in the path":               "GET /user/a%2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a blank in the path":                      "GET /user/a b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a NUL in the path":                        "GET /user/a\x00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"a control character in a key":             post + "Idempotency-Key: a\x01b\r\nContent-Length: 2\r\n\r\n{}",
		"a length that is no number":               post + "Content-Length: x\r\n\r\n{}",
		"two lengths":                              post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
		"a chunk size that is no number":           post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
		"a body that ends too early":               post + "Content-Length: 9\r\n\r\n{}",
		"a chunked body without end":               post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
		"a chunked body that is too large":         post + "Transfer-Encoding: chunked\r\n\r\n10001\r\n" + padded("", 0x10001) + "\r\n0\r\n\r\n",
		"a body that is too large, not sent whole": post + "Content-Length: 100000000\r\n\r\n" + padded("", 0x10001),
	} {
		t.Run(name+" is a 4xx", func(t *testing.T) {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, raw); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			var status int
			if _, err := fmt.Fscanf(conn, "HTTP/1.1 %d", &status); err != nil || status < 400 || status > 499 {
				t.Errorf("status %d, %v", status, err)
			}
		})
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
}
