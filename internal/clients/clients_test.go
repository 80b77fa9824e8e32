//go:build clients

package clients_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
)

// ids are such as have to be encoded, and a few that have not.
var ids = []string{
	"user-1", "us-east-1:1b2c", "a/b", "/", "50%", "%41", "%2e%2e", "%252F", "a b", " leading", "ä ö ü ß", "日本", "😀", "a?b=c", "a#b", "a+b&c",
	"a;b", "..a", "...", "~-_.!*'()", `a\b`, `"quoted"`, "[x]{y}|^`", "a@b.example",
}

func TestIDsAreEncodedOnce(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for _, id := range ids {
			s := play(t, ok, ok)
			d.do(t, call{Base: s.URL, Call: "consume", Args: []any{id, 5}}).want(t)
			// A path in front of the service's own stays.
			d.do(t, call{Base: s.URL + "/um/", Call: "status", Args: []any{id}}).want(t)
			for i, form := range []string{"/user/%s/consume-tokens", "/um/user/%s/status"} {
				prefix, suffix, _ := strings.Cut(form, "%s")
				path := s.got(t, 2)[i].path()
				part := strings.TrimSuffix(strings.TrimPrefix(path, prefix), suffix)
				decoded, err := url.PathUnescape(part)
				if err != nil || decoded != id || strings.Contains(part, "/") || prefix+part+suffix != path {
					t.Errorf("%q is sent as %s", id, path)
				}
			}
		}
	})
}

func TestWhatIsNoIDIsNotSent(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		s := play(t)
		for _, id := range []any{"", ".", "..", 7, nil} {
			for _, c := range []call{
				{Call: "consume", Args: []any{id}},
				{Call: "settle", Args: []any{"u", id, 1}},
				{Call: "get_user", Args: []any{id}},
			} {
				c.Base = s.URL
				o := d.do(t, c)
				if o.Error == nil || o.Error.Ours {
					t.Errorf("%s of %#v: %+v", c.Call, id, o)
				}
			}
		}
		s.got(t, 0)
	})
}

func TestEveryCall(t *testing.T) {
	const id, rid = "a/b", "9b2f6c1e-3f0a-4c57-8a54-0d7e3b1c9f10"
	meta := m{"model": "large"}
	reservation := m{"reservation_id": rid}
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for name, c := range map[string]struct {
			call  call
			reply any
			// request is the method and the URI; the body is that of a change.
			request, body string
		}{
			"info":   {call{Call: "info"}, m{}, "GET /", ""},
			"health": {call{Call: "health"}, m{}, "GET /health", ""},
			"livez":  {call{Call: "livez"}, m{}, "GET /livez", ""},
			"whoami": {call{Call: "whoami"}, m{}, "GET /whoami", ""},
			"tiers":  {call{Call: "tiers"}, m{}, "GET /tiers", ""},
			"create user": {
				call{Call: "create_user", Args: []any{id}, Named: m{"username": "Ann"}},
				m{},
				"POST /user", `{"cognito_user_id": "a/b", "username": "Ann"}`,
			},
			"put user":             {call{Call: "put_user", Args: []any{id}, Named: m{"email": nil, "metadata": meta}}, m{}, "PUT /user/a%2Fb", `{"email": null, "metadata": {"model": "large"}}`},
			"put user as it is":    {call{Call: "put_user", Args: []any{id}}, m{}, "PUT /user/a%2Fb", `{}`},
			"get user":             {call{Call: "get_user", Args: []any{id}}, m{}, "GET /user/a%2Fb", ""},
			"update user":          {call{Call: "update_user", Args: []any{id}, Named: m{"username": nil, "is_active": false, "subscription_status": "trialing"}}, m{}, "PATCH /user/a%2Fb", `{"username": null, "is_active": false, "subscription_status": "trialing"}`},
			"deactivate user":      {call{Call: "deactivate_user", Args: []any{id}}, nil, "DELETE /user/a%2Fb", "key"},
			"erase user":           {call{Call: "erase_user", Args: []any{id}}, nil, "DELETE /user/a%2Fb?erase=true", ""},
			"status":               {call{Call: "status", Args: []any{id}}, m{}, "GET /user/a%2Fb/status", ""},
			"status of a newcomer": {call{Call: "status", Args: []any{id}, Named: m{"create": true}}, m{}, "GET /user/a%2Fb/status?create=true", ""},
			"change tier": {
				call{Call: "change_tier", Args: []any{id, "tester"}, Named: m{"renewal_date": "2027-01-01", "metadata": meta}},
				m{},
				"PUT /user/a%2Fb/tier", `{"tier": "tester", "renewal_date": "2027-01-01", "metadata": {"model": "large"}}`,
			},
			"consume one":  {call{Call: "consume", Args: []any{id}}, m{}, "POST /user/a%2Fb/consume-tokens", `{"tokens_to_consume": 1}`},
			"consume":      {call{Call: "consume", Args: []any{id, 5}, Named: m{"metadata": meta}}, m{}, "POST /user/a%2Fb/consume-tokens", `{"tokens_to_consume": 5, "metadata": {"model": "large"}}`},
			"add tokens":   {call{Call: "add_tokens", Args: []any{id, 5}}, m{}, "POST /user/a%2Fb/add-tokens", `{"tokens_to_add": 5}`},
			"refund":       {call{Call: "refund", Args: []any{id, "17"}, Named: m{"tokens": 5}}, m{}, "POST /user/a%2Fb/refunds", `{"entry_id": "17", "tokens": 5}`},
			"refund all":   {call{Call: "refund", Args: []any{id, "17"}}, m{}, "POST /user/a%2Fb/refunds", `{"entry_id": "17"}`},
			"reserve":      {call{Call: "reserve", Args: []any{id, 5}}, reservation, "POST /user/a%2Fb/reservations", `{"tokens": 5}`},
			"reserve long": {call{Call: "reserve", Args: []any{id, 5}, Named: m{"ttl_seconds": 60, "metadata": meta}}, reservation, "POST /user/a%2Fb/reservations", `{"tokens": 5, "ttl_seconds": 60, "metadata": {"model": "large"}}`},
			"reservation":  {call{Call: "get_reservation", Args: []any{id, rid}}, reservation, "GET /user/a%2Fb/reservations/" + rid, ""},
			"extend":       {call{Call: "extend", Args: []any{id, rid, 60}}, reservation, "POST /user/a%2Fb/reservations/" + rid + "/extend", `{"ttl_seconds": 60}`},
			"settle":       {call{Call: "settle", Args: []any{id, rid, 0}}, reservation, "POST /user/a%2Fb/reservations/" + rid + "/settle", `{"tokens_used": 0}`},
			"release":      {call{Call: "release", Args: []any{id, rid}}, reservation, "POST /user/a%2Fb/reservations/" + rid + "/release", `{}`},
			"reservations": {call{Call: "reservations", Args: []any{id}, Named: m{"status": "all"}, Take: 9}, m{"reservations": []any{}, "next_cursor": nil}, "GET /user/a%2Fb/reservations?limit=200&status=all", ""},
			"ledger": {
				call{Call: "ledger", Args: []any{id}, Named: m{"kind": "settle", "since": m{"time": "2026-11-01T00:00:00Z"}}, Take: 9},
				m{"entries": []any{}, "next_cursor": nil},
				"GET /user/a%2Fb/ledger?kind=settle&limit=200&since=2026-11-01T00:00:00Z", "",
			},
			"users": {
				call{Call: "users", Named: m{"tier": "free", "is_active": true, "low_balance": false, "q": "ä &", "page_size": 3}, Take: 9},
				m{"users": []any{}, "next_cursor": nil},
				"GET /users?is_active=true&limit=3&low_balance=false&q=ä &&tier=free", "",
			},
			"usage": {
				call{Call: "usage", Args: []any{id}, Named: m{"from_date": "2026-11-01", "to_date": "2026-11-02", "by": "model"}},
				m{},
				"GET /user/a%2Fb/usage?by=model&from=2026-11-01&to=2026-11-02", "",
			},
			"usage of all": {call{Call: "platform_usage", Named: m{"by": "tier"}}, m{}, "GET /usage?by=tier", ""},
		} {
			status := http.StatusOK
			if c.reply == nil {
				status = http.StatusNoContent
			}
			s := play(t, answer(status, c.reply))
			c.call.Base, c.call.Options = s.URL, m{"api_key": "secret"}
			d.do(t, c.call).want(t)
			r := s.got(t, 1)[0]
			if got := r.method + " " + readableURI(t, r.uri); got != c.request {
				t.Errorf("%s is sent as %s, want %s", name, got, c.request)
			}
			if r.header.Get("Authorization") != "Bearer secret" || !strings.HasPrefix(r.header.Get("User-Agent"), "user-management-") || !strings.HasSuffix(r.header.Get("User-Agent"), "/"+version) {
				t.Errorf("%s is sent with %v", name, r.header)
			}
			if keyed := r.header.Get("Idempotency-Key") != ""; keyed != (c.body != "") {
				t.Errorf("%s is sent with the key %q", name, r.header.Get("Idempotency-Key"))
			}
			if c.body == "" || c.body == "key" {
				if r.body != "" {
					t.Errorf("%s is sent with the body %s", name, r.body)
				}
				continue
			}
			if got, want := jsonOf(t, r.body), jsonOf(t, c.body); !reflect.DeepEqual(withoutNulls(got, want), want) || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s is sent with the body %s, want %s", name, r.body, c.body)
			}
		}
	})
}

// readableURI is a URI with its query in order and decoded, and instants in one form.
func readableURI(t *testing.T, uri string) string {
	t.Helper()
	path, query, found := strings.Cut(uri, "?")
	if !found {
		return path
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for name, given := range values {
		if at, err := time.Parse(time.RFC3339Nano, given[0]); err == nil {
			given[0] = at.UTC().Format(time.RFC3339Nano)
		}
		pairs = append(pairs, name+"="+strings.Join(given, ","))
	}
	slices.Sort(pairs)
	return path + "?" + strings.Join(pairs, "&")
}

func jsonOf(t *testing.T, text string) (object m) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return object
}

// withoutNulls leaves out the nulls that want has not: they mean the same where the client may send either.
func withoutNulls(got, want m) m {
	for name, value := range got {
		if _, wanted := want[name]; value == nil && !wanted && (name == "username" || name == "email" || name == "renewal_date") {
			delete(got, name)
		}
	}
	return got
}

func TestAnswersAreTheObjectsOfTheAPI(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		s := play(t, ok, answer(http.StatusOK, m{"tokens_remaining": 7}, "Idempotency-Replayed", "true"), answer(http.StatusCreated, m{"reservation_id": "r-1"}),
			answer(http.StatusAccepted, nil), answer(http.StatusNoContent, nil),
			answer(http.StatusServiceUnavailable, m{"status": "unhealthy"}, "Content-Type", "application/json"))
		o := d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u"}})
		if got := o.want(t); !reflect.DeepEqual(got, m{"tokens_remaining": 7.0}) || o.Replayed || o.RequestID != "r2" {
			t.Errorf("consume: %+v", o)
		}
		if o := d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u"}}); !o.Replayed {
			t.Errorf("a consume that is replayed: %+v", o)
		}
		if o := d.do(t, call{Base: s.URL, Call: "reserve", Args: []any{"u", 5}}); o.ID != "r-1" {
			t.Errorf("reserve: %+v", o)
		}
		for _, want := range []bool{false, true} {
			if got := d.do(t, call{Base: s.URL, Call: "erase_user", Args: []any{"u"}}).want(t); got != want {
				t.Errorf("erased: %v, want %v", got, want)
			}
		}
		if got := d.do(t, call{Base: s.URL, Call: "health"}).want(t); !reflect.DeepEqual(got, m{"status": "unhealthy"}) {
			t.Errorf("health: %v", got)
		}
		s.got(t, 6)
	})
}

// TestWhatMayPassIsSentAgain is about a first attempt that fails in a way that another one may not.
func TestWhatMayPassIsSentAgain(t *testing.T) {
	const noAnswer = "no answer in time"
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for name, first := range map[string]step{
			"a cut connection":          cut,
			"half an answer":            half,
			"a garbled answer":          garbled,
			noAnswer:                    hang,
			"429":                       problem(http.StatusTooManyRequests, "rate_limited", nil),
			"overloaded":                problem(http.StatusServiceUnavailable, "overloaded", m{"outcome": "none"}),
			"no database":               problem(http.StatusServiceUnavailable, "database_unavailable", m{"outcome": "none"}),
			"an unknown outcome":        problem(http.StatusServiceUnavailable, "database_unavailable", m{"outcome": "unknown"}),
			"a proxy without a service": page(http.StatusBadGateway),
			"a proxy that waits":        page(http.StatusGatewayTimeout),
			"a proxy that is full":      page(http.StatusServiceUnavailable),
			"a limit of a proxy":        page(http.StatusTooManyRequests),
		} {
			for _, c := range []call{
				{Call: "consume", Args: []any{"u", 5}},
				{Call: "consume", Args: []any{"u", 5}, Named: m{"idempotency_key": "key 1"}},
				{Call: "status", Args: []any{"u"}},
				{Call: "reserve", Args: []any{"u", 5}},
				{Call: "settle", Args: []any{"u", "r", 5}},
				{Call: "deactivate_user", Args: []any{"u"}},
			} {
				s := play(t, first, answer(http.StatusOK, m{"reservation_id": "r"}))
				c.Base = s.URL
				if name == noAnswer {
					c.Options = m{"timeout": 1}
				}
				if o := d.do(t, c); o.Error != nil {
					t.Errorf("%s: %s failed with %+v", name, c.Call, *o.Error)
					continue
				}
				r := s.got(t, 2)
				key := r[0].header.Get("Idempotency-Key")
				if key != r[1].header.Get("Idempotency-Key") || r[0].body != r[1].body || (key == "") != (c.Call == "status") || c.Named != nil && key != "key 1" {
					t.Errorf("%s: %s was sent first with the key %q, then with %q", name, c.Call, key, r[1].header.Get("Idempotency-Key"))
				}
			}
		}
	})
}

func TestEveryCallHasAKeyOfItsOwn(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		const calls = 20
		s := play(t, slices.Repeat([]step{ok}, calls)...)
		for range calls {
			d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u"}}).want(t)
		}
		keys := map[string]bool{}
		for _, r := range s.got(t, calls) {
			if key := r.header.Get("Idempotency-Key"); len(key) < 32 || keys[key] {
				t.Errorf("the key %q", key)
			} else {
				keys[key] = true
			}
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for name, header := range map[string]func() string{
			"seconds": func() string { return "1" },
			"a date":  func() string { return time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat) }, // cut to a second
		} {
			s := play(t, func(w http.ResponseWriter, r *http.Request) {
				problem(http.StatusTooManyRequests, "rate_limited", nil, "Retry-After", header())(w, r)
			}, ok)
			d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u"}}).want(t)
			r := s.got(t, 2)
			if pause := r[1].at.Sub(r[0].at); pause < 900*time.Millisecond {
				t.Errorf("%s: it was sent again after %s", name, pause)
			}
		}
		// A pause that is longer than the call may be tried is not begun.
		s := play(t, problem(http.StatusTooManyRequests, "rate_limited", nil, "Retry-After", "3600"))
		begin := time.Now()
		e := d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u"}}).wantError(t, "RateLimitedError")
		if took := time.Since(begin); took > 10*time.Second || e.RetryAfter != 3600 || e.Outcome != "none" || !e.Unavailable {
			t.Errorf("after %s: %+v", took, e)
		}
	})
}

func TestPausesGrowAndDiffer(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		refuse := problem(http.StatusServiceUnavailable, "overloaded", m{"outcome": "none"})
		s := play(t, slices.Repeat([]step{refuse}, 1000)...)
		e := d.do(t, call{Base: s.URL, Options: m{"retry_for": 2}, Call: "consume", Args: []any{"u"}}).wantError(t, "OverloadedError")
		s.mu.Lock()
		defer s.mu.Unlock()
		// The bounds of the pauses are 0.1, 0.2, 0.4 … seconds: with pauses of half of them, six attempts.
		if n := len(s.requests); n < 2 || n > 40 {
			t.Errorf("%d attempts in two seconds", n)
		}
		for _, r := range s.requests {
			if r.header.Get("Idempotency-Key") != e.Key {
				t.Errorf("the key %q is not that of the error, %q", r.header.Get("Idempotency-Key"), e.Key)
			}
		}
		if e.Outcome != "none" || !e.Unavailable || e.Code != "overloaded" {
			t.Errorf("%+v", e)
		}
	})
}

func TestTimeOutsEndACall(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		s := play(t, hang)
		begin := time.Now()
		e := d.do(t, call{Base: s.URL, Options: m{"timeout": 0.2, "retry_for": 0}, Call: "consume", Args: []any{"u"}}).wantError(t, "NoAnswerError")
		if took := time.Since(begin); took > 10*time.Second || e.Outcome != "unknown" || e.Key == "" || !e.Unavailable {
			t.Errorf("after %s: %+v", took, e)
		}
		// A call of the feed waits for as long as it was told to.
		s = play(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(500 * time.Millisecond) // what the service does
			answer(http.StatusOK, m{"entries": []any{}, "next_cursor": "c1"})(w, r)
		})
		d.do(t, call{Base: s.URL, Options: m{"timeout": 0.2, "retry_for": 0}, Call: "feed", Named: m{"wait": 25}, Take: 1}).want(t)
		s.got(t, 1)
	})
}

// TestOutcomes is about what the error of a change says of it.
func TestOutcomes(t *testing.T) {
	refused := problem(http.StatusPaymentRequired, "insufficient_tokens", m{"tokens_remaining": 3, "tokens_required": 5, "next_reset_at": nil})
	later := problem(http.StatusTooManyRequests, "rate_limited", nil, "Retry-After", "3600")
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for name, c := range map[string]struct {
			steps   []step
			class   string
			outcome string
		}{
			"refused":                          {[]step{refused}, "InsufficientTokensError", "none"},
			"refused after a cut":              {[]step{cut, refused}, "InsufficientTokensError", "none"},
			"refused after an unknown outcome": {[]step{problem(503, "database_unavailable", m{"outcome": "unknown"}), refused}, "InsufficientTokensError", "none"},
			"limited":                          {[]step{later}, "RateLimitedError", "none"},
			"limited after a cut":              {[]step{cut, later}, "RateLimitedError", "unknown"},
			"a lost key after a cut":           {[]step{cut, problem(401, "unauthenticated", nil)}, "UnauthenticatedError", "unknown"},
			"no database":                      {[]step{problem(503, "database_unavailable", m{"outcome": "none"}, "Retry-After", "3600")}, "DatabaseUnavailableError", "none"},
			"no database after a cut":          {[]step{cut, problem(503, "database_unavailable", m{"outcome": "none"}, "Retry-After", "3600")}, "DatabaseUnavailableError", "unknown"},
			"an unknown outcome":               {[]step{problem(503, "database_unavailable", m{"outcome": "unknown"}, "Retry-After", "3600")}, "DatabaseUnavailableError", "unknown"},
			"a mistake of the service":         {[]step{problem(500, "internal", nil)}, "InternalError", "unknown"},
			"another server":                   {[]step{page(http.StatusOK)}, "UnexpectedAnswerError", "unknown"},
			"a proxy that refuses":             {[]step{page(http.StatusForbidden)}, "UnexpectedAnswerError", "none"},
			"a code of the future":             {[]step{problem(409, "tokens_on_strike", nil)}, "ProblemError", "none"},
		} {
			s := play(t, c.steps...)
			e := d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u", 5}}).wantError(t, c.class)
			if e.Outcome != c.outcome || !e.Ours || e.Key == "" {
				t.Errorf("%s: %+v, want the outcome %s", name, e, c.outcome)
			}
			if e.Class == "InsufficientTokensError" && (e.TokensRemaining != 3 || e.Detail != "A sentence." || !slices.Contains(e.Bases, "SpendingRefusedError")) {
				t.Errorf("%s: %+v", name, e)
			}
			s.got(t, len(c.steps)) // and not sent again

			// A read leaves nothing open.
			s = play(t, c.steps...)
			if e := d.do(t, call{Base: s.URL, Call: "status", Args: []any{"u"}}).wantError(t, c.class); e.Outcome != "none" || e.Key != "" {
				t.Errorf("%s, of a read: %+v", name, e)
			}
		}
		nobody := httptest.NewServer(http.NotFoundHandler())
		nobody.Close()
		e := d.do(t, call{Base: nobody.URL, Options: m{"retry_for": 0.5}, Call: "consume", Args: []any{"u"}}).wantError(t, "NoAnswerError")
		if e.Outcome != "none" || !e.Unavailable {
			t.Errorf("nobody listens: %+v", e)
		}
		// An account whose erasure had no answer is not found any more.
		s := play(t, cut, problem(404, "user_not_found", nil), problem(404, "user_not_found", nil))
		if got := d.do(t, call{Base: s.URL, Call: "erase_user", Args: []any{"u"}}).want(t); got != true {
			t.Errorf("erased: %v", got)
		}
		d.do(t, call{Base: s.URL, Call: "erase_user", Args: []any{"u"}}).wantError(t, "UserNotFoundError")
	})
}

func TestEveryCodeHasAnErrorOfItsOwn(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for _, code := range httpapi.Codes() {
			s := play(t, problem(409, string(code), nil))
			e := d.do(t, call{Base: s.URL, Options: m{"retry_for": 0}, Call: "consume", Args: []any{"u"}}).Error
			if e == nil {
				t.Fatalf("%s: no error", code)
			}
			name := strings.ToLower(strings.TrimSuffix(e.Class, "Error"))
			if name != strings.ReplaceAll(string(code), "_", "") || !slices.Contains(e.Bases, "ProblemError") || e.Code != string(code) {
				t.Errorf("%s is a %s of %v", code, e.Class, e.Bases)
			}
		}
	})
}

func TestKeysStayWithTheService(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for base, allowed := range map[string]bool{
			"http://users.example.com": false, "http://user-management:8001": false, "http://10.0.0.7": false, "http://localhost.example.com": false,
			"http://127.0.0.1.example.com": false, "http://[2001:db8::1]": false, "https://users.example.com": true, "http://localhost:8001": true,
			"http://127.0.0.1": true, "http://127.5.5.5": true, "http://[::1]:8001": true, "http://app.localhost": true, "HTTP://USERS.EXAMPLE.COM": false,
		} {
			if o := d.do(t, call{Base: base, Options: m{"api_key": "secret"}}); (o.Error == nil) != allowed {
				t.Errorf("a key for %s: %+v", base, o.Error)
			}
			if o := d.do(t, call{Base: base}); o.Error != nil {
				t.Errorf("no key for %s: %+v", base, o.Error)
			}
			if o := d.do(t, call{Base: base, Options: m{"api_key": "secret", "allow_http": true}}); o.Error != nil {
				t.Errorf("a key that is allowed for %s: %+v", base, o.Error)
			}
		}
		for _, base := range []string{"users.example.com", "ftp://users.example.com", "http://", "http://key@users.example.com", "https://users.example.com?a=b", "https://users.example.com#a"} {
			if o := d.do(t, call{Base: base}); o.Error == nil {
				t.Errorf("%s is taken for the service", base)
			}
		}
		for _, status := range []int{301, 302, 303, 307, 308} {
			elsewhere := play(t)
			s := play(t, page(status, "Location", elsewhere.URL+"/user/u/status"), page(status, "Location", "/user/u/status"))
			for i := range 2 {
				e := d.do(t, call{Base: s.URL, Options: m{"api_key": "secret"}, Call: "status", Args: []any{"u"}}).wantError(t, "UnexpectedAnswerError")
				if i == 0 && !strings.Contains(e.Message, elsewhere.URL) {
					t.Errorf("it does not say where it leads: %s", e.Message)
				}
			}
			s.got(t, 2)
			elsewhere.got(t, 0)
		}
		// Whom nobody vouches for gets no key, and no second call.
		s := &script{steps: []step{ok}}
		var connections atomic.Int32
		s.Server = httptest.NewUnstartedServer(s)
		s.Config.ErrorLog = discard
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		}
		s.StartTLS()
		defer s.Close()
		e := d.do(t, call{Base: s.URL, Options: m{"api_key": "secret"}, Call: "consume", Args: []any{"u"}}).wantError(t, "NoAnswerError")
		if n := connections.Load(); n != 1 || e.Outcome != "none" {
			t.Errorf("after %d connections: %+v", n, e)
		}
		s.got(t, 0)
	})
}

func TestKeysAndCredentialsAreHeaders(t *testing.T) {
	forEachLanguage(t, func(t *testing.T, d *driver) {
		s := play(t)
		for _, key := range []string{"", " ", "a ", " a", "a\r\nX: y", "ä", strings.Repeat("k", 256)} {
			if o := d.do(t, call{Base: s.URL, Call: "consume", Args: []any{"u"}, Named: m{"idempotency_key": key}}); o.Error == nil || o.Error.Ours {
				t.Errorf("the key %q: %+v", key, o)
			}
		}
		for _, key := range []string{"", "a b", "a\nb", "ä"} {
			if o := d.do(t, call{Base: s.URL, Options: m{"api_key": key}, Call: "status", Args: []any{"u"}}); o.Error == nil || o.Error.Ours {
				t.Errorf("the API key %q: %+v", key, o)
			}
		}
		s.got(t, 0)
		// A function is asked before every attempt.
		s = play(t, cut, ok)
		d.do(t, call{Base: s.URL, Options: m{"api_keys": []string{"one", "two"}}, Call: "consume", Args: []any{"u"}}).want(t)
		r := s.got(t, 2)
		if r[0].header.Get("Authorization") != "Bearer one" || r[1].header.Get("Authorization") != "Bearer two" {
			t.Errorf("sent with %q, then with %q", r[0].header.Get("Authorization"), r[1].header.Get("Authorization"))
		}
		// Without one nothing of .netrc goes along.
		s = play(t, ok)
		d.do(t, call{Base: s.URL, Call: "status", Args: []any{"u"}}).want(t)
		if got := s.got(t, 1)[0].header.Get("Authorization"); got != "" {
			t.Errorf("sent with %q", got)
		}
	})
}

func TestPagesAreReadToTheirEnd(t *testing.T) {
	entry := func(n int) m { return m{"entry_id": fmt.Sprint(n)} }
	page := func(next any, entries ...any) step {
		return answer(http.StatusOK, m{"entries": append([]any{}, entries...), "next_cursor": next})
	}
	forEachLanguage(t, func(t *testing.T, d *driver) {
		s := play(t, page("c1", entry(3)), page("c2"), cut, page("c3", entry(2)), page(nil, entry(1)))
		got := d.do(t, call{Base: s.URL, Call: "ledger", Args: []any{"u"}, Named: m{"kind": "consume"}, Take: 99}).want(t)
		if want := []any{m{"entry_id": "3"}, m{"entry_id": "2"}, m{"entry_id": "1"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("the ledger: %v", got)
		}
		for i, want := range []string{"", "c1", "c2", "c2", "c3"} {
			u, err := url.ParseRequestURI(s.got(t, 5)[i].uri)
			if err != nil || u.Query().Get("cursor") != want || u.Query().Get("kind") != "consume" {
				t.Errorf("page %d was asked for by %s", i, u)
			}
		}

		// The feed ends where it does not move on any more, and passes over what another kind has moved.
		s = play(t, page("c1", entry(1)), page("c2"), page("c2"))
		got = d.do(t, call{Base: s.URL, Call: "feed", Named: m{"after": "c0"}, Take: 99}).want(t)
		if want := []any{m{"entries": []any{entry(1)}, "next_cursor": "c1"}, m{"entries": []any{}, "next_cursor": "c2"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("the feed: %v", got)
		}
		for i, want := range []string{"c0", "c1", "c2"} {
			u, err := url.ParseRequestURI(s.got(t, 3)[i].uri)
			if err != nil || u.Query().Get("after") != want {
				t.Errorf("page %d was asked for by %s", i, u)
			}
		}
		// With a wait it goes on.
		s = play(t, page("c0"), page("c0"), page("c1", entry(1)))
		got = d.do(t, call{Base: s.URL, Call: "feed", Named: m{"after": "c0", "wait": 25}, Take: 1}).want(t)
		if want := []any{m{"entries": []any{entry(1)}, "next_cursor": "c1"}}; !reflect.DeepEqual(got, want) {
			t.Errorf("the feed that waits: %v", got)
		}
		if u := s.got(t, 3)[2].uri; !strings.Contains(u, "wait=25") {
			t.Errorf("it waits by %s", u)
		}
	})
}

func TestReservationsEndWithTheirBlock(t *testing.T) {
	made := answer(http.StatusCreated, m{"reservation_id": "r-1"})
	closed := answer(http.StatusOK, m{"reservation_id": "r-1", "late": true})
	away := problem(503, "database_unavailable", m{"outcome": "none"}, "Retry-After", "3600")
	gone := problem(409, "reservation_closed", nil)
	forEachLanguage(t, func(t *testing.T, d *driver) {
		for name, c := range map[string]struct {
			block m
			steps []step // after the reservation was made
			// class is that of the error, empty for none; sent is what ended the reservation.
			class string
			sent  []string
		}{
			"it says what it cost":              {m{"used": 5}, []step{closed}, "", []string{"settle 5"}},
			"it cost nothing":                   {m{"used": 0}, []step{closed}, "", []string{"settle 0"}},
			"it settles by itself":              {m{"settle": 6}, []step{closed}, "", []string{"settle 6"}},
			"it releases by itself":             {m{"release": true}, []step{closed}, "", []string{"release"}},
			"it says nothing":                   {m{}, []step{closed}, "", []string{"release"}},
			"it fails":                          {m{"raise": "model"}, []step{closed}, "ModelError", []string{"release"}},
			"it fails, and release too":         {m{"raise": "model"}, []step{away}, "ModelError", []string{"release"}},
			"it fails, and is closed":           {m{"raise": "model"}, []step{gone}, "ModelError", []string{"release"}},
			"it fails after it has cost":        {m{"used": 5, "raise": "model"}, []step{closed}, "ModelError", []string{"settle 5"}},
			"it fails, and settle too":          {m{"used": 5, "raise": "model"}, []step{away}, "ModelError", []string{"settle 5"}},
			"it fails after it was settled":     {m{"settle": 5, "raise": "model"}, []step{closed}, "ModelError", []string{"settle 5"}},
			"it says nothing and release fails": {m{}, []step{away}, "", []string{"release"}},
			"settle fails at its end":           {m{"used": 5}, []step{away}, "DatabaseUnavailableError", []string{"settle 5"}},
			"settle fails in it":                {m{"settle": 5}, []step{away}, "DatabaseUnavailableError", []string{"settle 5"}},
			"settle is lost and sent again":     {m{"used": 5}, []step{cut, closed}, "", []string{"settle 5", "settle 5"}},
		} {
			s := play(t, append([]step{made}, c.steps...)...)
			o := d.do(t, call{Base: s.URL, Call: "reserve", Args: []any{"u", 100}, Block: c.block})
			if c.class == "" {
				if got := o.want(t); got != "answer" {
					t.Errorf("%s: the result is %v", name, got)
				}
			} else if e := o.wantError(t, c.class); c.class == "ModelError" && e.Message != "model" || c.class != "ModelError" && e.Reservation != "r-1" {
				t.Errorf("%s: %+v", name, e)
			} else if d.language == "JavaScript" && name == "settle fails at its end" && e.Result != "answer" {
				t.Errorf("%s: the result is lost: %+v", name, e)
			}
			var sent []string
			for _, r := range s.got(t, 1+len(c.steps))[1:] {
				what := strings.TrimPrefix(r.path(), "/user/u/reservations/r-1/")
				if what == "settle" {
					what += fmt.Sprint(" ", jsonOf(t, r.body)["tokens_used"])
				}
				sent = append(sent, what)
			}
			if !slices.Equal(sent, c.sent) {
				t.Errorf("%s: sent was %v, want %v", name, sent, c.sent)
			}
		}
		// What cannot be reserved is not begun.
		s := play(t, problem(402, "insufficient_tokens", m{"tokens_remaining": 3, "tokens_required": 5, "next_reset_at": nil}))
		d.do(t, call{Base: s.URL, Call: "reserve", Args: []any{"u", 100}, Block: m{"raise": "model"}}).wantError(t, "InsufficientTokensError")
		s.got(t, 1)
	})
}
