package httpapi_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/httpapi"
)

// unknown is the refusal of a caller whom nobody knows.
type unknown string

func (u unknown) Error() string { return string(u) }

func (unknown) Is(target error) bool { return target == auth.ErrUnauthenticated }

// authenticate takes keys that say themselves who sends them: NAME/SCOPE+SCOPE for the holder of a key, NAME/SCOPE/ID for
// a user who is signed in.
func authenticate(_ context.Context, header http.Header) (auth.Principal, error) {
	name, rest, ok := strings.Cut(header.Get("X-API-Key"), "/")
	if !ok {
		return auth.Principal{}, unknown("An API key or a token is required.")
	}
	scopes, id, _ := strings.Cut(rest, "/")
	p := auth.Principal{Name: name, UserID: id}
	for _, scope := range strings.FieldsFunc(scopes, func(r rune) bool { return r == '+' }) {
		p.Scopes = append(p.Scopes, auth.Scope(scope))
	}
	return p, nil
}

// as is the service for the caller with this key.
func (s *service) as(key string) *service {
	c := *s
	c.key = key
	return &c
}

const operator = "operator/read+consume+refund+export+manage+metrics"

// startLocked returns a service that wants to know who calls, for an operator who may do everything.
func startLocked(t *testing.T) (*service, *pgxpool.Pool) {
	t.Helper()
	s, db := startSQL(t, func(o *httpapi.Options) { o.Authenticate = authenticate })
	return s.as(operator), db
}

// Who calls, by name; ID stands for the account that is asked for.
var callers = map[string]string{
	"nobody":  "",
	"read":    "reader/read",
	"consume": "consumer/consume",
	"refund":  "support/refund",
	"export":  "billing/export",
	"manage":  "manager/manage",
	"metrics": "scraper/metrics",
	"self":    "end user//ID",
	"other":   "end user//ID2",
	"admin":   "cognito:admin/manage/admin",
}

const everybody = "nobody read consume refund export manage metrics self other admin"

// access says which callers a route lets in; an open service lets in everybody.
var access = map[string]struct{ callers, said string }{
	"GET /":             {everybody, ""},
	"GET /health":       {everybody, ""},
	"GET /livez":        {everybody, ""},
	"GET /docs":         {everybody, ""},
	"GET /docs/{file}":  {everybody, ""},
	"GET /redoc":        {everybody, ""},
	"GET /openapi.json": {everybody, ""},
	"GET /openapi.yaml": {everybody, ""},
	"GET /metrics":      {"metrics", "Scope: `metrics`."},
	"GET /whoami":       {"read consume refund export manage metrics self other admin", "Any caller."},
	"GET /tiers":        {"read manage admin", "Scope: `read`."},

	"GET /clients/{client}": {everybody, ""},

	"GET /user/{cognito_user_id}":        {"read manage self admin", "Scope: `read`, or the user's own token."},
	"GET /user/{cognito_user_id}/status": {"read manage self admin", "Scope: `read`, or the user's own token."},
	"GET /user/{cognito_user_id}/ledger": {"read manage self admin", "Scope: `read`, or the user's own token."},
	"GET /user/{cognito_user_id}/usage":  {"read manage self admin", "Scope: `read`, or the user's own token."},

	"GET /user/{cognito_user_id}/reservations":                  {"read manage admin", "Scope: `read`."},
	"GET /user/{cognito_user_id}/reservations/{reservation_id}": {"read manage admin", "Scope: `read`."},

	"POST /user/{cognito_user_id}/consume-tokens":                        {"consume", "Scope: `consume`."},
	"POST /user/{cognito_user_id}/reservations":                          {"consume", "Scope: `consume`."},
	"POST /user/{cognito_user_id}/reservations/{reservation_id}/extend":  {"consume", "Scope: `consume`."},
	"POST /user/{cognito_user_id}/reservations/{reservation_id}/settle":  {"consume", "Scope: `consume`."},
	"POST /user/{cognito_user_id}/reservations/{reservation_id}/release": {"consume manage admin", "Scope: `consume` or `manage`."},
	"POST /user/{cognito_user_id}/refunds":                               {"refund manage admin", "Scope: `refund`."},

	"GET /users":  {"export manage admin", "Scope: `export`."},
	"GET /usage":  {"export manage admin", "Scope: `export`."},
	"GET /ledger": {"export manage admin", "Scope: `export`."},

	"POST /user":                              {"manage admin", "Scope: `manage`."},
	"PUT /user/{cognito_user_id}":             {"manage admin", "Scope: `manage`."},
	"PATCH /user/{cognito_user_id}":           {"manage admin", "Scope: `manage`."},
	"DELETE /user/{cognito_user_id}":          {"manage admin", "Scope: `manage`."},
	"PUT /user/{cognito_user_id}/tier":        {"manage admin", "Scope: `manage`."},
	"POST /user/{cognito_user_id}/add-tokens": {"manage admin", "Scope: `manage`."},

	"GET /console":        {everybody, ""},
	"GET /console/{file}": {everybody, ""},
}

// requestFor makes a request for a route that succeeds, once, and returns it with the account that it is for.
func (s *service) requestFor(route string) (r request, id string) {
	s.t.Helper()
	id = s.account("tester", 0)
	method, path, _ := strings.Cut(route, " ")
	held := s.post("/user/"+id+"/reservations", m{"tokens": 5}).want(http.StatusCreated)["reservation_id"].(string)
	path = strings.NewReplacer("/console/{file}", "/console/console.css", "{cognito_user_id}", id, "{reservation_id}", held,
		"{file}", "swagger-ui.css", "{client}", "user_management.py").Replace(path)
	r = request{Method: method, Path: path}
	switch last := path[strings.LastIndex(path, "/")+1:]; {
	case method == http.MethodPatch || method == http.MethodPut && last == id:
		r.Body = m{"username": "Ann"}
	case last == "user":
		r.Body = m{"cognito_user_id": id + "-new"}
	case last == "tier":
		r.Body = m{"tier": "basic"}
	case last == "consume-tokens":
		r.Body = m{}
	case last == "add-tokens":
		r.Body = m{"tokens_to_add": 1}
	case last == "reservations" && method == http.MethodPost:
		r.Body = m{"tokens": 1}
	case last == "extend":
		r.Body = m{"ttl_seconds": 60}
	case last == "settle":
		r.Body = m{"tokens_used": 1}
	case last == "refunds":
		r.Body = m{"entry_id": s.consume(id, 1).want(http.StatusOK)["entry_id"]}
	}
	return r, id
}

func TestEveryRouteForEveryCaller(t *testing.T) {
	t.Parallel()
	s, db := startLocked(t)
	open := s.with(t, func(o *httpapi.Options) { o.Authenticate = nil })
	walked := map[string]bool{}
	err := chi.Walk(httpapi.New(s.options).Routes(), func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		walked[method+" "+path] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for route := range access {
		if !walked[route] {
			t.Errorf("%s is not routed", route)
		}
	}
	for route := range walked {
		row, ok := access[route]
		if !ok {
			t.Errorf("nobody has said who may call %s", route)
			continue
		}
		methods := []string{strings.Fields(route)[0]}
		if methods[0] == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
		for _, method := range methods {
			t.Run(method+strings.TrimPrefix(route, methods[0]), func(t *testing.T) {
				s, open := s.in(t), open.in(t)
				r, id := s.requestFor(route)
				r.Method = method
				before := snapshot(t, db)
				for name, key := range callers {
					if slices.Contains(strings.Fields(row.callers), name) {
						continue
					}
					status, code := http.StatusForbidden, "forbidden"
					if name == "nobody" {
						status, code = http.StatusUnauthorized, "unauthenticated"
					}
					answer := s.as(strings.ReplaceAll(key, "ID", id)).do(r)
					if status == http.StatusForbidden && method != http.MethodHead {
						if scope := answer.want(status)["required_scope"]; !strings.Contains(row.said, fmt.Sprintf("`%v`", scope)) {
							t.Errorf("%s is told to need the scope %v", name, scope)
						}
					}
					if answer.Status != status || method != http.MethodHead && problemCode(answer) != code {
						t.Errorf("%s is answered with %d %s, want %d %s", name, answer.Status, answer.Body, status, code)
					}
				}
				if snapshot(t, db) != before {
					t.Error("a refused call has changed something")
				}
				for _, name := range append(strings.Fields(row.callers), "open") {
					r, id := s.requestFor(route)
					r.Method = method
					asked := s.as(strings.ReplaceAll(callers[name], "ID", id))
					if name == "open" {
						asked = open
					}
					if answer := asked.do(r); answer.Status >= http.StatusBadRequest {
						t.Errorf("%s is answered with %d %s", name, answer.Status, answer.Body)
					}
				}
			})
		}
	}
}

func TestWhoamiTellsCallersWhatTheyAre(t *testing.T) {
	t.Parallel()
	expires := time.Date(2027, 7, 1, 0, 0, 0, 0, time.UTC)
	for outcome, c := range map[string]struct {
		caller *auth.Principal // nil while the service is open
		want   m
	}{
		"a key that expires":  {&auth.Principal{Name: "postpilot", Scopes: []auth.Scope{auth.Read, auth.Consume}, ExpiresAt: expires}, m{"name": "postpilot", "scopes": []any{"read", "consume"}, "expires_at": "2027-07-01T00:00:00.000000Z"}},
		"a key that does not": {&auth.Principal{Name: "backoffice", Scopes: []auth.Scope{auth.Manage}}, m{"name": "backoffice", "scopes": []any{"manage"}, "expires_at": nil}},
		"a user":              {&auth.Principal{Name: "end user", UserID: "u"}, m{"name": "end user", "scopes": []any{}, "expires_at": nil}},
		"an open service":     {nil, m{"name": "", "scopes": []any{"read", "consume", "refund", "export", "manage", "metrics"}, "expires_at": nil, "open": true}},
	} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(o *httpapi.Options) {
				if c.caller != nil {
					o.Authenticate = func(context.Context, http.Header) (auth.Principal, error) { return *c.caller, nil }
				}
			})
			if got := s.get("/whoami").want(http.StatusOK); !reflect.DeepEqual(got, map[string]any(c.want)) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestTheDocumentSaysWhoMayCall(t *testing.T) {
	t.Parallel()
	for _, o := range openAPI().operations() {
		row := access[strings.Replace(o.method, http.MethodHead, http.MethodGet, 1)+" "+o.path]
		public := o.Security != nil && len(*o.Security) == 0
		if public != (row.said == "") {
			t.Errorf("%s %s: needs no credentials by the document: %v", o.method, o.path, public)
		}
		if o.method != http.MethodHead && !slices.Contains(files, o.path) && !strings.HasSuffix(strings.TrimSpace(o.Description), row.said) {
			t.Errorf("%s %s: the description should end with %s", o.method, o.path, row.said)
		}
	}
}

func TestReadingAnUnknownUser_CreatesForSomeCallers(t *testing.T) {
	t.Parallel()
	s, db := startLocked(t)
	for name, c := range map[string]struct {
		key    string
		status int
	}{
		"a reader finds nobody":                         {"reader/read", http.StatusNotFound},
		"a user who is new finds nobody":                {"end user//ID", http.StatusNotFound},
		"a user who may consume finds nobody":           {"end user/consume/ID", http.StatusNotFound},
		"another user is refused":                       {"end user//other", http.StatusForbidden},
		"a key that may only consume is refused":        {"consumer/consume", http.StatusForbidden},
		"a key that may only refund is refused":         {"support/refund", http.StatusForbidden},
		"a key that may only export is refused":         {"billing/export", http.StatusForbidden},
		"a key that may only read metrics is refused":   {"scraper/metrics", http.StatusForbidden},
		"nobody is refused":                             {"", http.StatusUnauthorized},
		"a manager creates the account":                 {"manager/manage", http.StatusOK},
		"a reader who may consume creates it":           {"backend/read+consume", http.StatusOK},
		"an administrator creates it":                   {"cognito:admin/manage/admin", http.StatusOK},
		"a user who may read and consume creates it":    {"end user/read+consume/ID", http.StatusOK},
		"a user who may consume does not create others": {"end user/consume/other", http.StatusForbidden},
	} {
		for path, creates := range map[string]bool{"": true, "/status?create=true": true, "/status": false, "/status?create=false": false, "/ledger": false} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				t.Run(name+"/"+method+path, func(t *testing.T) { // one after the other: each looks at all that is stored
					id, want := fmt.Sprintf("unborn-%d", accounts.Add(1)), c.status
					if want == http.StatusOK && (method == http.MethodHead || !creates) {
						want = http.StatusNotFound
					}
					before := snapshot(t, db)
					caller := s.in(t).as(strings.ReplaceAll(c.key, "ID", id))
					body := caller.do(request{Method: method, Path: "/user/" + id + path}).want(want)
					if created := snapshot(t, db) != before; created != (want == http.StatusOK) {
						t.Errorf("status %d, and something was written: %v", want, created)
					}
					if want == http.StatusOK {
						has(t, body, m{"cognito_user_id": id, "subscription_tier": "free", "tokens_remaining": 0})
					}
				})
			}
		}
	}
	t.Run("an id that no account can be given is invalid_path after the look-up", func(t *testing.T) {
		before := snapshot(t, db)
		for _, raw := range []string{"%20a", "a%20", "a%E2%80%8Bb", "erased-1", "%EF%BB%BFa"} {
			for _, below := range []string{"", "/status?create=true"} {
				s.in(t).get("/user/"+raw+below).wantProblem(http.StatusBadRequest, "invalid_path")
				s.in(t).as("reader/read").get("/user/"+raw+below).wantProblem(http.StatusNotFound, "user_not_found")
			}
			s.in(t).put("/user/"+raw, m{}).wantProblem(http.StatusBadRequest, "invalid_path")
			s.in(t).get("/user/"+raw+"/status").wantProblem(http.StatusNotFound, "user_not_found")
		}
		if after := snapshot(t, db); after != before {
			t.Errorf("something was written: %s", after)
		}
		exec(t, db, `INSERT INTO viralpilot.userdata (cognito_user_id) VALUES (' a'), ('erased-1')`)
		for _, raw := range []string{"%20a", "erased-1"} { // of an earlier time, or a pseudonym
			for _, below := range []string{"", "/status?create=true"} {
				s.in(t).get("/user/" + raw + below).want(http.StatusOK)
			}
			s.in(t).put("/user/"+raw, m{}).want(http.StatusOK)
		}
	})
}

func TestAUserGetsNoFurtherThanTheirOwnAccount(t *testing.T) {
	t.Parallel()
	s, db := startLocked(t)
	for _, id := range []string{"me", "victim", "me/../victim", "%6de"} {
		s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
	}
	user := s.as("end user//me")
	before := snapshot(t, db)
	for path, status := range map[string]int{
		"/user/me":                               http.StatusOK,
		"/user/%6de":                             http.StatusOK,
		"/user/%6D%65":                           http.StatusOK,
		"/user/me?cognito_user_id=victim":        http.StatusUnprocessableEntity,
		"/user/me?/../victim":                    http.StatusUnprocessableEntity,
		"/user/victim":                           http.StatusForbidden,
		"/user/%76ictim":                         http.StatusForbidden,
		"/user/ME":                               http.StatusForbidden,
		"/user/me%20":                            http.StatusForbidden,
		"/user/%256de":                           http.StatusForbidden,
		"/user/me%00":                            http.StatusForbidden,
		"/user/me%00/../victim":                  http.StatusNotFound,
		"/user/victim%00me":                      http.StatusForbidden,
		"/user/me%2F..%2Fvictim":                 http.StatusForbidden,
		"/user/me%252F..%252Fvictim":             http.StatusForbidden,
		"/user/me%5C..%5Cvictim":                 http.StatusForbidden,
		"/user/me%2fstatus":                      http.StatusForbidden,
		"/user/me;victim":                        http.StatusForbidden,
		"/user/me%3Fvictim":                      http.StatusForbidden,
		"/user/me%23":                            http.StatusForbidden,
		"/user/me%ff":                            http.StatusForbidden,
		"/user/m%C3%A9":                          http.StatusForbidden,
		"/user/%2e%2e":                           http.StatusForbidden,
		"/user/%2e%2e%2fvictim":                  http.StatusForbidden,
		"/user/..":                               http.StatusForbidden,
		"/user/":                                 http.StatusNotFound,
		"/user//me":                              http.StatusNotFound,
		"/user//victim":                          http.StatusNotFound,
		"//user/victim":                          http.StatusNotFound,
		"/./user/me":                             http.StatusNotFound,
		"/user/me/":                              http.StatusNotFound,
		"/user/me/../victim":                     http.StatusNotFound,
		"/user/me/%2e%2e/victim":                 http.StatusNotFound,
		"/user/me/status/../../victim/status":    http.StatusNotFound,
		"/user%2Fme":                             http.StatusNotFound,
		"/%75ser/me":                             http.StatusNotFound,
		"/USER/me":                               http.StatusNotFound,
		"/user/me/status":                        http.StatusOK,
		"/user/victim/status":                    http.StatusForbidden,
		"/user//status":                          http.StatusForbidden,
		"/user/me%2F..%2Fvictim/ledger":          http.StatusForbidden,
		"/user/victim/usage":                     http.StatusForbidden,
		"/user/victim/usage?cognito_user_id=me":  http.StatusForbidden,
		"/user/me/reservations":                  http.StatusForbidden,
		"/user/me/reservations?erase=1&limit=-1": http.StatusForbidden,
		"/users":                                 http.StatusForbidden,
		"/users?q=me":                            http.StatusForbidden,
		"/tiers":                                 http.StatusForbidden,
	} {
		t.Run(fmt.Sprintf("%d %s", status, path), func(t *testing.T) {
			user := user.in(t)
			got := user.get(path).want(status)
			if status == http.StatusOK {
				has(t, got, m{"cognito_user_id": "me"})
			}
			user.do(request{Method: http.MethodHead, Path: path}).want(status)
		})
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
}

func TestHeadersThatWouldChangeTheCallAreIgnored(t *testing.T) {
	t.Parallel()
	s, db := startLocked(t)
	id := s.account("tester", 5)
	victim := s.account("tester", 5)
	before := snapshot(t, db)
	for name, value := range map[string]string{
		"X-HTTP-Method-Override": "DELETE",
		"X-HTTP-Method":          "DELETE",
		"X-Method-Override":      "PATCH",
		"X-Original-URL":         "/user/" + victim,
		"X-Rewrite-URL":          "/user/" + victim,
		"X-Forwarded-Prefix":     "/user/" + victim,
		"X-Forwarded-User":       "operator",
		"X-Remote-User":          "operator",
		"X-Amzn-Oidc-Identity":   victim,
		"Cookie":                 "X-API-Key=" + operator,
	} {
		t.Run(name+" is ignored", func(t *testing.T) {
			s, header := s.in(t).as("end user//"+id), http.Header{http.CanonicalHeaderKey(name): {value}}
			got := s.do(request{Method: http.MethodGet, Path: "/user/" + id, Header: header})
			has(t, got.want(http.StatusOK), m{"cognito_user_id": id, "is_active": true})
			s.do(request{Method: http.MethodGet, Path: "/user/" + id + "?_method=DELETE", Header: header}).
				wantProblem(http.StatusUnprocessableEntity, "validation_failed")
			s.do(request{Method: http.MethodPost, Path: "/user/" + id, Header: header, Body: m{}}).
				wantProblem(http.StatusMethodNotAllowed, "method_not_allowed")
			s.do(request{Method: http.MethodGet, Path: "/user/" + victim, Header: header}).
				wantProblem(http.StatusForbidden, "forbidden")
		})
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
}

func TestEntriesNameWhoMadeThem(t *testing.T) {
	t.Parallel()
	s, _ := startLocked(t)
	id := "named"
	path := "/user/" + id
	s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
	by := func(name string) *service { return s.as(name + "/consume+manage") }
	reserve := func(name string) string {
		return path + "/reservations/" + by(name).post(path+"/reservations", m{"tokens": 5}).want(http.StatusCreated)["reservation_id"].(string)
	}
	by("tier").put(path+"/tier", m{"tier": "tester"}).want(http.StatusOK)
	by("renewal").put(path+"/tier", m{"tier": "tester", "renewal_date": "2027-01-01T00:00:00.000000Z"}).want(http.StatusOK)
	by("add").add(id, 5).want(http.StatusOK)
	charge := by("consume").consume(id, 5).want(http.StatusOK)
	by("settle").post(reserve("reserve")+"/settle", m{"tokens_used": 3}).want(http.StatusOK)
	by("release").post(reserve("reserve again")+"/release", nil).want(http.StatusOK)
	s.as("refund/refund").post(path+"/refunds", m{"entry_id": charge["entry_id"]}).want(http.StatusOK)
	by("patch").do(request{Method: http.MethodPatch, Path: path, Body: m{"username": "Ann"}}).want(http.StatusOK)
	reserve("expire")
	s.clock.Set(s.clock.Now().Add(10 * time.Minute))
	by("touch").add(id, 1).want(http.StatusOK)
	reserve("held")
	by("delete").do(request{Method: http.MethodDelete, Path: path}).want(http.StatusNoContent)
	s.with(t, func(o *httpapi.Options) { o.Authenticate = nil }).add(id, 1).want(http.StatusOK)

	var got []string
	for _, e := range slices.Backward(s.entries(id)) {
		got = append(got, fmt.Sprintf("%v by %v", e["kind"], e["actor"]))
	}
	want := []string{
		"tier_change by tier", "profile_change by renewal", "top_up by add", "consume by consume", "reserve by reserve",
		"settle by settle", "reserve by reserve again", "release by release", "refund by refund", "profile_change by patch",
		"reserve by expire", "expire by <nil>", "top_up by touch", "reserve by held", "expire by delete",
		"profile_change by delete", "top_up by <nil>",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("entries %q\nwant    %q", got, want)
	}
	if callers := s.log.String(); !strings.Contains(callers, `"caller":"refund"`) {
		t.Error("the log does not name the caller")
	}
}

func TestNobodyGetsInWithWhatIsForgedOrExpired(t *testing.T) {
	t.Parallel()
	secret, entry, err := auth.NewKey(auth.Key{Name: "operator", Scopes: []auth.Scope{auth.Read, auth.Consume, auth.Manage, auth.Metrics}})
	if err != nil {
		t.Fatal(err)
	}
	expired, expiredEntry, err := auth.NewKey(auth.Key{Name: "former", Scopes: []auth.Scope{auth.Manage}, Expires: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	authenticator, err := auth.New(auth.Options{
		APIKeys: entry + "," + expiredEntry, Issuer: "http://127.0.0.1:1/pool", ClientIDs: []string{"client"}, AdminGroups: []string{"admins"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(authenticator.Close)
	s, db := startSQL(t, func(o *httpapi.Options) { o.Authenticate = authenticator.Authenticate })
	before := snapshot(t, db)

	part := func(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }
	claims := part(`{"iss":"http://127.0.0.1:1/pool","sub":"u","token_use":"access","client_id":"client","exp":4102444800,"cognito:groups":["admins"]}`)
	bearer := func(s string) http.Header { return http.Header{"Authorization": {"Bearer " + s}} }
	forged := map[string]http.Header{
		"no key":                       {},
		"an unknown key":               {"X-Api-Key": {strings.Replace(secret, "vpum_", "vpum_A", 1)[:len(secret)]}},
		"a key cut short":              {"X-Api-Key": {secret[:len(secret)-1]}},
		"a key in small letters":       {"X-Api-Key": {strings.ToLower(secret)}},
		"the hash of a key":            {"X-Api-Key": {strings.Split(entry, ":")[2]}},
		"the entry of a key":           {"X-Api-Key": {entry}},
		"the name of a key":            bearer("operator"),
		"an expired key":               {"X-Api-Key": {expired}},
		"an expired key as bearer":     bearer(expired),
		"two keys":                     {"X-Api-Key": {secret}, "Authorization": {"Bearer " + expired}},
		"a key with another scheme":    {"Authorization": {"Basic " + secret}},
		"a token that is not signed":   bearer(part(`{"alg":"none"}`) + "." + claims + "."),
		"a token of another algorithm": bearer(part(`{"alg":"HS256","kid":"k"}`) + "." + claims + "." + part("signature")),
		"a token of another issuer":    bearer(part(`{"alg":"RS256","kid":"k"}`) + "." + part(`{"iss":"https://evil.example"}`) + "." + part("signature")),
		"three parts of nothing":       bearer("a.b.c"),
	}
	for route, row := range access {
		method, path, _ := strings.Cut(route, " ")
		path = strings.NewReplacer("{cognito_user_id}", "u", "{reservation_id}", exampleReservation).Replace(path)
		if row.said == "" {
			continue
		}
		for name, header := range forged {
			if answer := s.do(request{Method: method, Path: path, Header: header.Clone()}); answer.Status != http.StatusUnauthorized || problemCode(answer) != "unauthenticated" {
				t.Errorf("%s with %s is answered with %d %s", route, name, answer.Status, answer.Body)
			}
		}
	}
	if snapshot(t, db) != before {
		t.Error("something has changed")
	}
	for outcome, header := range map[string]http.Header{"as a key": {"X-Api-Key": {secret}}, "as bearer": bearer(secret)} {
		if answer := s.do(request{Method: http.MethodGet, Path: "/whoami", Header: header}); answer.Status != http.StatusOK {
			t.Errorf("the key itself, %s: %d %s", outcome, answer.Status, answer.Body)
		}
	}
}
