package httpapi_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-chi/chi/v5"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

// contract is the strict form of the document, held against every request that service.do sends and every response to it.
type contract struct {
	document *openapi3.T
	// paths has the documented paths, so that a request is found under the same one as by the service.
	paths chi.Routes

	mu       sync.Mutex
	produced map[outcome]bool
}

// outcome is one way in which a documented call can end. Only problems have a code.
type outcome struct {
	method, path string
	status       int
	code         string
}

func (o outcome) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %d %s", o.method, o.path, o.status, o.code))
}

var openAPI = sync.OnceValue(func() *contract {
	for _, text := range []string{
		"text/html", "text/css", "text/javascript", "text/x-python", "image/png", "image/svg+xml", "application/yaml",
		"application/x-ndjson", "text/csv",
	} {
		openapi3filter.RegisterBodyDecoder(text, openapi3filter.PlainBodyDecoder)
	}
	document := loadStrict()
	paths := chi.NewRouter()
	for path := range document.Paths.Map() {
		paths.Handle(path, http.NotFoundHandler())
	}
	return &contract{document: document, paths: paths, produced: map[outcome]bool{}}
})

// operation is one documented call.
type operation struct {
	method, path string
	*openapi3.Operation
}

// operations lists the documented calls.
func (c *contract) operations() (all []operation) {
	for path, item := range c.document.Paths.Map() {
		for method, o := range item.Operations() {
			all = append(all, operation{method, path, o})
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.method, b.method)) })
	return all
}

const problemJSON = "application/problem+json"

// outcomes lists the ways in which o can end.
func (o operation) outcomes() (all []outcome) {
	for status, response := range o.Responses.Map() {
		n, _ := strconv.Atoi(status)
		problem := response.Value.Content[problemJSON]
		if problem == nil {
			all = append(all, outcome{o.method, o.path, n, ""})
			continue
		}
		for _, code := range problem.Schema.Value.AllOf[1].Value.Properties["code"].Value.Enum {
			all = append(all, outcome{o.method, o.path, n, code.(string)})
		}
	}
	return all
}

// check says what in an exchange is not as documented. A request that the service has accepted must fit; of one that it
// has not, only the response is looked at.
func (c *contract) check(r *http.Request, body []byte, answer response) error {
	path, parameters := c.find(r)
	item := c.document.Paths.Value(path)
	if item == nil {
		return c.checkProblem(r, answer, http.StatusNotFound, "not_found")
	}
	o := item.GetOperation(r.Method)
	if o == nil {
		return c.checkOtherMethod(item, r, answer)
	}
	documented := o.Responses.Status(answer.Status)
	if documented == nil && answer.Status == http.StatusInternalServerError {
		return c.checkProblem(r, answer, answer.Status, "internal") // any call may have a mistake
	}
	if documented == nil && answer.Status == http.StatusForbidden {
		return c.checkProblem(r, answer, answer.Status, "cross_site") // whatever the path
	}

	in := &openapi3filter.RequestValidationInput{
		Request:    readable(r, body),
		PathParams: parameters,
		Route:      &routers.Route{Spec: c.document, Path: path, PathItem: item, Method: r.Method, Operation: o},
		Options: &openapi3filter.Options{
			IncludeResponseStatus: true, MultiError: true, SkipSettingDefaults: true,
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, // who may call is for the tests of access
		},
	}
	out := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: answer.Status, Header: answer.Header,
		Body: io.NopCloser(bytes.NewReader(answer.Body)), Options: in.Options,
	}
	if err := openapi3filter.ValidateResponse(r.Context(), out); err != nil {
		return fmt.Errorf("the response is not as documented: %w; body: %s", err, answer.Body)
	}
	if err := checkHeaders(documented.Value, answer.Header); err != nil {
		return err
	}
	if len(documented.Value.Content) == 0 && len(answer.Body) > 0 {
		return fmt.Errorf("the response is documented without a body and has one: %s", answer.Body)
	}
	c.record(outcome{r.Method, path, answer.Status, problemCode(answer)})

	accepted := answer.Status < 400 || answer.Status == http.StatusPaymentRequired || answer.Status == http.StatusConflict
	if accepted {
		if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
			return fmt.Errorf("the service accepts a request that is not as documented: %w", err)
		}
	}
	return nil
}

// find returns the documented path of r and the values of its parameters.
func (c *contract) find(r *http.Request) (string, map[string]string) {
	match := chi.NewRouteContext()
	if !c.paths.Match(match, http.MethodGet, r.URL.EscapedPath()) {
		return "", nil
	}
	parameters := map[string]string{}
	for i, name := range match.URLParams.Keys {
		if value, err := url.PathUnescape(match.URLParams.Values[i]); err == nil {
			parameters[name] = value
		}
	}
	return match.RoutePattern(), parameters
}

// readable is r as it was before the service read it, in the form that the validators take: HEAD as GET, since they do
// not look at responses to HEAD, and a media type as the service sees it.
func readable(r *http.Request, body []byte) *http.Request {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	c := httptest.NewRequest(method, r.URL.RequestURI(), bytes.NewReader(body))
	c.Header = r.Header.Clone()
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil {
		c.Header.Set("Content-Type", media)
	}
	return c
}

// checkHeaders looks for those that are documented and missing, and for those of the contract that are not documented.
func checkHeaders(documented *openapi3.Response, given http.Header) error {
	for name, header := range documented.Headers {
		if header.Value.Required && given.Get(name) == "" {
			return fmt.Errorf("the response header %s is missing", name)
		}
	}
	for _, name := range []string{
		"X-Request-Id", "Cache-Control", "ETag", "Location", "Retry-After", "Allow", "Idempotency-Replayed", "WWW-Authenticate", "X-Next-Cursor",
	} {
		if given.Get(name) != "" && documented.Headers[name] == nil {
			return fmt.Errorf("the response header %s is not documented", name)
		}
	}
	return nil
}

// checkOtherMethod looks at the answer to a method that is not documented for a path.
func (c *contract) checkOtherMethod(item *openapi3.PathItem, r *http.Request, answer response) error {
	if r.Header.Get("Access-Control-Request-Method") != "" {
		return nil // a preflight, which CORS answers
	}
	want := append(slices.Collect(maps.Keys(item.Operations())), http.MethodOptions)
	given := strings.Split(answer.Header.Get("Allow"), ", ")
	slices.Sort(want)
	slices.Sort(given)
	if !slices.Equal(want, given) {
		return fmt.Errorf("Allow names %v, and the document %v", given, want)
	}
	if r.Method != http.MethodOptions {
		return c.checkProblem(r, answer, http.StatusMethodNotAllowed, "method_not_allowed")
	}
	if answer.Status != http.StatusNoContent || len(answer.Body) > 0 {
		return fmt.Errorf("OPTIONS is answered with %d and %q", answer.Status, answer.Body)
	}
	return nil
}

// checkProblem looks at a problem that belongs to no documented call.
func (c *contract) checkProblem(r *http.Request, answer response, status int, code string) error {
	if answer.Status != status || answer.Header.Get("Content-Type") != problemJSON {
		return fmt.Errorf("status %d and type %q, want the problem %d", answer.Status, answer.Header.Get("Content-Type"), status)
	}
	if r.Method == http.MethodHead {
		return nil
	}
	var problem any
	if err := json.Unmarshal(answer.Body, &problem); err != nil {
		return err
	}
	if got := problemCode(answer); got != code {
		return fmt.Errorf("code %q, want %q", got, code)
	}
	return c.document.Components.Schemas["Problem"].Value.VisitJSON(problem, openapi3.VisitAsResponse())
}

// problemCode returns the code of a problem document, and "" for anything else.
func problemCode(answer response) string {
	var problem struct{ Code string }
	if answer.Header.Get("Content-Type") != problemJSON || json.Unmarshal(answer.Body, &problem) != nil {
		return ""
	}
	return problem.Code
}

func (c *contract) record(o outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.produced[o] = true
}

// unproduced lists the documented outcomes that no test has seen.
func (c *contract) unproduced() (missing []outcome) {
	for _, o := range c.operations() {
		for _, documented := range o.outcomes() {
			if !c.produced[documented] {
				missing = append(missing, documented)
			}
		}
	}
	return missing
}

// allTestsRan reports whether no flag has left tests out.
func allTestsRan() bool {
	for _, name := range []string{"test.run", "test.skip", "test.list"} {
		if flag.Lookup(name).Value.String() != "" {
			return false
		}
	}
	return true
}

func TestTheDocumentIsValid(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]*openapi3.T{"published": loadPublished(), "strict": openAPI().document} {
		// That examples fit is for the strict form.
		if err := document.Validate(t.Context(), openapi3.EnableMultiError(), openapi3.DisableExamplesValidation()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestThePublishedDocumentIsLean(t *testing.T) {
	t.Parallel()
	document := loadPublished()
	answers := maps.Clone(document.Components.Schemas)
	for path, item := range document.Paths.Map() {
		if strings.HasPrefix(path, "/docs") || strings.HasPrefix(path, "/openapi") || strings.HasPrefix(path, "/clients") || item.Head != nil {
			t.Errorf("%s is nothing that people call", path)
		}
		for method, o := range item.Operations() {
			if o.RequestBody != nil {
				body := o.RequestBody.Value.Content["application/json"].Schema
				if has := body.Value.AdditionalProperties.Has; has == nil || *has {
					t.Errorf("%s %s: the body leaves open what else it may have", method, path)
				}
				delete(answers, strings.TrimPrefix(body.Ref, "#/components/schemas/"))
			}
			for status, response := range o.Responses.Map() {
				for _, name := range []string{"X-Request-Id", "Cache-Control", "Idempotency-Replayed"} {
					if response.Value.Headers[name] != nil {
						t.Errorf("%s %s %s repeats the header %s", method, path, status, name)
					}
				}
				problem := response.Value.Content[problemJSON]
				if problem != nil && problem.Schema.Ref != "#/components/schemas/Problem" {
					t.Errorf("%s %s %s has a problem of its own type", method, path, status)
				}
			}
		}
	}
	for name, schema := range answers {
		if has := schema.Value.AdditionalProperties.Has; has != nil {
			t.Errorf("schema %s says what else an answer may have", name)
		}
		for property, p := range schema.Value.Properties {
			if slices.Contains(p.Value.Enum, nil) {
				t.Errorf("null is a value of the enum %s.%s", name, property)
			}
		}
	}
	for name, codes := range map[string]int{"TierName": 6, "SubscriptionStatus": 8, "EntryKind": 12, "ProblemCode": len(httpapi.Codes())} {
		if got := len(document.Components.Schemas[name].Value.Enum); got != codes {
			t.Errorf("%s has %d values, want %d", name, got, codes)
		}
	}
}

func TestRoutesAndDocumentedPathsAgree(t *testing.T) {
	t.Parallel()
	var routes, documented []string
	router := httpapi.New(httpapi.Options{MetricsHandler: metrics}).Routes()
	err := chi.Walk(router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		routes = append(routes, method+" "+route)
		if method == http.MethodGet {
			routes = append(routes, http.MethodHead+" "+route)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range openAPI().operations() {
		documented = append(documented, o.method+" "+o.path)
	}
	for _, route := range routes {
		if !slices.Contains(documented, route) {
			t.Errorf("%s is routed and not documented", route)
		}
	}
	for _, path := range documented {
		if !slices.Contains(routes, path) {
			t.Errorf("%s is documented and not routed", path)
		}
	}
}

// What the document's examples are about.
const (
	exampleUser        = "test-user-123"
	exampleEntry       = "1042"
	exampleReservation = "9b2f6c1e-3f0a-4c57-8a54-0d7e3b1c9f10"
)

// startForExamples returns a service that has the user of the examples.
func startForExamples(t *testing.T) *service {
	t.Helper()
	s := start(t)
	s.post("/user", map[string]string{"cognito_user_id": exampleUser}).want(http.StatusCreated)
	s.put("/user/"+exampleUser+"/tier", map[string]string{"tier": "tester"}).want(http.StatusOK)
	return s
}

// real puts ids that the service has given in place of those that only examples have: of a reservation that is open,
// and of an entry that charged some tokens.
func (s *service) real(r request) request {
	s.t.Helper()
	if !strings.Contains(r.Path, exampleReservation) && !strings.HasSuffix(r.Path, "/refunds") {
		return r
	}
	s.add(exampleUser, 5).want(http.StatusOK)
	if strings.Contains(r.Path, exampleReservation) {
		made := s.post("/user/"+exampleUser+"/reservations", m{"tokens": 5}).want(http.StatusCreated)
		r.Path = strings.Replace(r.Path, exampleReservation, made["reservation_id"].(string), 1)
	}
	if strings.HasSuffix(r.Path, "/refunds") {
		charge := s.consume(exampleUser, 5).want(http.StatusOK)
		text, err := json.Marshal(r.Body)
		if raw, ok := r.Body.(string); ok {
			text = []byte(raw)
		} else if err != nil {
			s.t.Fatal(err)
		}
		r.Body = strings.Replace(string(text), `"`+exampleEntry+`"`, `"`+charge["entry_id"].(string)+`"`, 1)
	}
	return r
}

// requests returns the requests that the examples of o make, by the name of the body's example.
func (o operation) requests(c *contract) map[string]request {
	r := request{Method: o.method, Path: o.path}
	for _, p := range c.document.Paths.Value(o.path).Parameters {
		if p.Value.In == openapi3.ParameterInPath {
			r.Path = strings.Replace(r.Path, "{"+p.Value.Name+"}", url.PathEscape(fmt.Sprint(p.Value.Example)), 1)
		}
	}
	all := map[string]request{}
	if o.RequestBody == nil || !o.RequestBody.Value.Required {
		all["without body"] = r
	}
	if o.RequestBody == nil {
		return all
	}
	for name, example := range o.RequestBody.Value.Content["application/json"].Examples {
		r.Body = example.Value.Value
		all[name] = r
	}
	return all
}

// anyRequest returns one of the requests that the examples of o make.
func (o operation) anyRequest(c *contract) request {
	for _, r := range o.requests(c) {
		return r
	}
	panic(o.OperationID + " has no example of a body")
}

func TestEveryRequestExampleSucceeds(t *testing.T) {
	t.Parallel()
	c, empty, filled := openAPI(), start(t), startForExamples(t)
	all := c.operations()
	last := []string{http.MethodPatch, http.MethodDelete} // the others need a user who may spend
	slices.SortStableFunc(all, func(a, b operation) int {
		return cmp.Compare(slices.Index(last, a.method), slices.Index(last, b.method))
	})
	for _, o := range all {
		s := filled
		if o.OperationID == "createUser" {
			s = empty
		}
		requests := o.requests(c)
		if len(requests) == 0 {
			t.Errorf("%s %s has no example of a body", o.method, o.path)
		}
		for name, r := range requests {
			if o.OperationID != "createUser" {
				r = s.real(r)
			}
			if got := s.do(r); got.Status >= http.StatusBadRequest {
				t.Errorf("%s %s, %s: status %d; body: %s", r.Method, r.Path, name, got.Status, got.Body)
			}
		}
	}
}

// files are the paths of the documentation, the clients and the console.
var files = []string{
	"/docs", "/docs/{file}", "/redoc", "/openapi.json", "/openapi.yaml", "/clients/{client}", "/console", "/console/{file}",
}

func TestEveryResponseHasExamplesThatFit(t *testing.T) {
	t.Parallel()
	for _, o := range openAPI().operations() {
		for status, response := range o.Responses.Map() {
			for mediaType, content := range response.Value.Content {
				if mediaType == problemJSON || slices.Contains(files, o.path) {
					continue // made by the tests
				}
				at := fmt.Sprintf("%s %s %s %s", o.method, o.path, status, mediaType)
				if len(content.Examples) == 0 {
					t.Errorf("%s has no example", at)
				}
				for name, example := range content.Examples {
					if err := content.Schema.Value.VisitJSON(example.Value.Value, openapi3.VisitAsResponse()); err != nil {
						t.Errorf("%s, example %s: %v", at, name, err)
					}
				}
			}
		}
	}
}

func TestEveryExampleOfAProblemFits(t *testing.T) {
	t.Parallel()
	problem := openAPI().document.Components.Schemas["Problem"].Value
	for path, item := range loadPublished().Paths.Map() {
		for method, o := range item.Operations() {
			refusals := 0
			for status, response := range o.Responses.Map() {
				content := response.Value.Content[problemJSON]
				if content == nil {
					continue
				}
				if status != "default" {
					refusals++
				}
				at := fmt.Sprintf("%s %s %s", method, path, status)
				if len(content.Examples) == 0 {
					t.Errorf("%s has no example", at)
				}
				for name, example := range content.Examples {
					code := user.Code(name)
					if err := problem.VisitJSON(example.Value.Value, openapi3.VisitAsResponse()); err != nil {
						t.Errorf("%s, example %s: %v", at, code, err)
					}
					want, _ := httpapi.StatusAndTitle(code)
					got := example.Value.Value.(map[string]any)
					if got["code"] != name || got["status"] != float64(want) || status != "default" && status != strconv.Itoa(want) || !slices.Contains(codesOf(o), code) {
						t.Errorf("%s has as the example of %s: %v", at, code, got)
					}
					if !strings.Contains(*response.Value.Description, "`"+name+"`") {
						t.Errorf("%s does not say what %s is: %s", at, code, *response.Value.Description)
					}
				}
			}
			if refusals == 0 {
				t.Errorf("%s %s has no refusal of its own", method, path)
			}
		}
	}
}

// brokenStore fails whatever is asked of it.
type brokenStore struct {
	user.Store
	err error
}

func (b brokenStore) Create(context.Context, string, func(user.State) (user.Change, error)) (user.Change, error) {
	return user.Change{}, b.err
}

func (b brokenStore) AllUsage(context.Context, user.UsageDays) ([]user.UsageRow, error) {
	return nil, b.err
}

func (b brokenStore) Account(context.Context, string) (user.Account, error) {
	return user.Account{}, b.err
}

func (b brokenStore) Accounts(context.Context, user.AccountQuery) ([]user.Account, string, error) {
	return nil, "", b.err
}

func (b brokenStore) Update(context.Context, user.Ref, func(user.State) (user.Change, error)) (user.Change, error) {
	return user.Change{}, b.err
}

// provocation makes a call that would succeed end in a problem.
type provocation struct {
	// store is what the store answers, in place of a real one, to commands that reach it.
	store error
	// caller is who calls, in place of one who may do everything, and denied why they are not known.
	caller *auth.Principal
	denied error
	// limited leaves the caller no request to make.
	limited bool
	// spoil changes the request.
	spoil func(*request)
}

func withBody(body any) provocation {
	return provocation{spoil: func(r *request) { r.Body = body }}
}

func withPath(old, replacement string) provocation {
	return provocation{spoil: func(r *request) { r.Path = strings.Replace(r.Path, old, replacement, 1) }}
}

func withQuery(query string) provocation {
	return provocation{spoil: func(r *request) { r.Path += "?" + query }}
}

// provocations has one for every code that a documented call can answer with, and for calls that need another than most,
// one with the call's name before it.
var provocations = map[string]provocation{
	"malformed_json":  withBody("["),
	"invalid_tier":    withBody(`{"tier": "gold"}`),
	"invalid_path":    withPath(exampleUser, "%00"),
	"unauthenticated": {denied: unknown("The API key is not known.")},
	"forbidden":       {caller: &auth.Principal{Name: "stranger"}},
	"cross_site": {spoil: func(r *request) {
		r.Header = http.Header{"Origin": {"http://rebound.example"}, "Host": {"rebound.example"}}
	}},
	"insufficient_tokens":    withBody(`{"tokens_to_consume": 2147483647}`),
	"user_inactive":          {store: user.ErrUserInactive},
	"subscription_inactive":  {store: user.ErrSubscriptionInactive},
	"being_erased":           {store: user.ErrBeingErased},
	"user_not_found":         withPath(exampleUser, "nobody"),
	"reservation_not_found":  withPath(exampleReservation, "00000000-0000-4000-8000-000000000000"),
	"entry_not_found":        withBody(`{"entry_id": "9223372036854775807"}`),
	"not_found":              withPath("docs.css", "nothing"),
	"user_exists":            withBody(`{"cognito_user_id": "` + exampleUser + `"}`),
	"reservation_closed":     {store: user.ErrReservationClosed},
	"subscription_lapsed":    {store: user.ErrSubscriptionLapsed},
	"too_many_reservations":  {store: user.ErrTooManyReservations},
	"refund_too_late":        {store: user.ErrRefundTooLate},
	"refund_exceeds_charge":  withBody(`{"entry_id": "` + exampleEntry + `", "tokens": 6}`),
	"balance_overflow":       withBody(`{"tokens_to_add": 2147483647}`),
	"body_too_large":         withBody(`{"` + strings.Repeat("x", 64<<10) + `": 1}`),
	"validation_failed":      withBody(`{"no_such_field": 1}`),
	"idempotency_key_reused": {store: user.ErrKeyReused},
	"rate_limited":           {limited: true},
	"internal":               {store: errors.New("a mistake")},
	"overloaded":             {denied: auth.ErrUnavailable},
	"database_unavailable":   {store: user.ErrDatabaseUnavailable},
	"not_available":          {store: user.ErrNotAvailable},
	"unsupported_media_type": {spoil: func(r *request) {
		r.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		r.Body = "tokens=1"
	}},

	"getConsoleFile not_found": withPath("console.css", "nothing"),

	"putUser user_not_found": {store: user.ErrUserNotFound},
	"getUser user_not_found": {
		caller: &auth.Principal{Name: "reader", Scopes: []auth.Scope{auth.Read}},
		spoil:  func(r *request) { r.Path = "/user/nobody" },
	},
	"reserveTokens insufficient_tokens":  withBody(`{"tokens": 2147483647}`),
	"refundTokens balance_overflow":      {store: user.ErrBalanceOverflow},
	"getUser validation_failed":          withQuery("limit=1"),
	"getUserStatus validation_failed":    withQuery("create=yes"),
	"getReservation validation_failed":   withQuery("limit=1"),
	"listTiers validation_failed":        withQuery("limit=1"),
	"getWhoami validation_failed":        withQuery("limit=1"),
	"listEntries validation_failed":      withQuery("limit=0"),
	"listUsers validation_failed":        withQuery("limit=0"),
	"listReservations validation_failed": withQuery("limit=0"),
	"readFeed validation_failed":         withQuery("limit=0"),
	"getClient not_found":                withPath("user_management.py", "nothing"),
	"getUsage validation_failed":         withQuery("from=yesterday"),
	"getAllUsage validation_failed":      withQuery("by=nothing"),
	"deleteUser validation_failed":       withQuery("erase=yes"),
}

// provocation finds the one that makes o end so.
func (o operation) provocation(code string) (provocation, bool) {
	p, ok := provocations[o.OperationID+" "+code]
	if !ok {
		p, ok = provocations[code]
	}
	return p, ok
}

func TestEveryDocumentedProblem(t *testing.T) {
	t.Parallel()
	c, sound := openAPI(), startForExamples(t)
	for _, o := range c.operations() {
		if o.method == http.MethodHead {
			continue // provoked with its GET
		}
		for _, documented := range o.outcomes() {
			if documented.code == "" {
				continue
			}
			p, ok := o.provocation(documented.code)
			if !ok {
				t.Errorf("%s: nobody knows how to provoke it", documented)
				continue
			}
			s := sound.with(t, func(o *httpapi.Options) {
				if p.store != nil {
					o.Users.Store = brokenStore{err: p.store}
					o.Feed = newFeed(t, broken{fail: func(context.Context) error { return p.store }})
				}
				if p.caller != nil || p.denied != nil {
					o.Authenticate = func(context.Context, http.Header) (auth.Principal, error) {
						if p.denied != nil {
							return auth.Principal{}, p.denied
						}
						return *p.caller, nil
					}
				}
				if p.limited {
					o.RateLimitPerMinute = 1
				}
			})
			if p.limited {
				s.get("/tiers").want(http.StatusOK)
			}
			r := o.anyRequest(c)
			if p.spoil != nil {
				p.spoil(&r)
			}
			r = sound.real(r)
			problem := s.do(r).wantProblem(documented.status, documented.code)
			if _, want := httpapi.StatusAndTitle(user.Code(documented.code)); problem["title"] != want {
				t.Errorf("%s: the title is %q, want %q", documented, problem["title"], want)
			}
			if o.method == http.MethodGet {
				r.Method = http.MethodHead
				s.do(r).want(documented.status)
			}
		}
	}
}

// absent is a database that does not answer.
type absent struct{}

func (absent) Ping(context.Context) error { return errors.New("no answer") }

func TestHealthIsDocumentedForADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *httpapi.Options) { o.Database = absent{} })
	s.get("/health").want(http.StatusServiceUnavailable)
	s.do(request{Method: http.MethodHead, Path: "/health"}).want(http.StatusServiceUnavailable)
}

// bodies are what the document and the service have to judge alike, by call.
var bodies = map[string]struct{ good, bad []string }{
	"createUser": {
		good: []string{
			`{"cognito_user_id": "u"}`,
			`{"cognito_user_id": "a/b%2F c"}`,
			`{"cognito_user_id": "..."}`,
			`{"cognito_user_id": "` + strings.Repeat("é", 255) + `"}`,
			`{"cognito_user_id": "u1", "username": null, "email": null}`,
			`{"cognito_user_id": "u2", "username": "", "email": ""}`,
			`{"cognito_user_id": "u3", "username": "` + strings.Repeat("ö", 255) + `", "email": "a.b+c@mail.example.com"}`,
		},
		bad: []string{
			`{}`,
			`{"username": "u"}`,
			`{"cognito_user_id": null}`,
			`{"cognito_user_id": 7}`,
			`{"cognito_user_id": ""}`,
			`{"cognito_user_id": "  "}`,
			`{"cognito_user_id": "."}`,
			`{"cognito_user_id": ".."}`,
			`{"cognito_user_id": " u"}`,
			`{"cognito_user_id": "u\u2003"}`,
			`{"cognito_user_id": "u\u200b"}`,
			`{"cognito_user_id": "\ufeffu"}`,
			`{"cognito_user_id": "u\u202ev"}`,
			`{"cognito_user_id": "erased-4711"}`,
			`{"cognito_user_id": "a\u0007b"}`,
			`{"cognito_user_id": "a\u0085b"}`,
			`{"cognito_user_id": "` + strings.Repeat("é", 256) + `"}`,
			`{"Cognito_User_ID": "x"}`,
			`{"cognito_user_id": "x", "tier": "admin"}`,
			`{"cognito_user_id": "x", "username": 7}`,
			`{"cognito_user_id": "x", "username": "a\nb"}`,
			`{"cognito_user_id": "x", "username": "` + strings.Repeat("ö", 256) + `"}`,
			`{"cognito_user_id": "x", "email": "nonsense"}`,
			`{"cognito_user_id": "x", "email": "user@two words"}`,
			`{"cognito_user_id": "x", "email": false}`,
		},
	},
	"changeTier": {
		good: []string{
			`{"tier": "admin"}`,
			`{"tier": "tester"}`,
			`{"tier": "free"}`,
			`{"tier": "basic"}`,
			`{"tier": "creator"}`,
			`{"tier": "agency"}`,
			`{"tier": "basic", "renewal_date": null}`,
			`{"tier": "basic", "renewal_date": "2027-01-01T00:00:00.000000Z"}`,
			`{"tier": "basic", "renewal_date": "2027-01-01T00:00:00.123456+05:30"}`,
			`{"tier": "basic", "renewal_date": "2027-01-01", "metadata": {"reason": "upgrade"}}`,
			`{"tier": "basic", "renewal_date": "2027-01-01T00:00:00"}`,
		},
		bad: []string{
			`{}`,
			`{"renewal_date": "2027-01-01T00:00:00.000000Z"}`,
			`{"tier": null}`,
			`{"tier": 7}`,
			`{"tier": ""}`,
			`{"tier": "Basic"}`,
			`{"tier": "gold"}`,
			`{"tier": "basic", "renewal_date": 7}`,
			`{"tier": "basic", "renewal_date": ""}`,
			`{"tier": "basic", "renewal_date": "2027-1-1"}`,
			`{"tier": "basic", "metadata": ["note"]}`,
			`{"tier": "basic", "renewal_date": "2027-01-01 00:00:00"}`,
			`{"tier": "basic", "renewal_date": "tomorrow"}`,
			`{"tier": "basic", "renewal": null}`,
		},
	},
	"consumeTokens": {
		good: []string{
			`{}`,
			`{"tokens_to_consume": 1}`,
			`{"tokens_to_consume": 700, "metadata": {"model": "m", "feature": ""}}`,
			`{"metadata": null}`,
			`{"metadata": {}}`,
			`{"metadata": {` + members(16) + `}}`,
			`{"metadata": {"note": "` + strings.Repeat("é", 256) + `"}}`,
		},
		bad: []string{
			`{"tokens_to_consume": null}`,
			`{"tokens_to_consume": 0}`,
			`{"tokens_to_consume": -1}`,
			`{"tokens_to_consume": 1.5}`,
			`{"tokens_to_consume": 2147483648}`,
			`{"tokens_to_consume": "7"}`,
			`{"tokens_to_consume": true}`,
			`{"tokens_to_consume": [7]}`,
			`{"tokens": 7}`,
			`{"metadata": []}`,
			`{"metadata": "note"}`,
			`{"metadata": {"note": 7}}`,
			`{"metadata": {"note": null}}`,
			`{"metadata": {"note": "\u0000"}}`,
			`{"metadata": {` + members(17) + `}}`,
			`{"metadata": {"note": "` + strings.Repeat("é", 257) + `"}}`,
		},
	},
	"updateUser": {
		good: []string{
			`{}`,
			`{"username": "Ann Ö"}`,
			`{"username": null, "email": null}`,
			`{"username": "", "email": ""}`,
			`{"email": "a.b+c@mail.example.com"}`,
			`{"subscription_status": "active"}`,
			`{"subscription_status": "trialing"}`,
			`{"subscription_status": "past_due"}`,
			`{"subscription_status": "canceled"}`,
			`{"subscription_status": "unpaid"}`,
			`{"subscription_status": "paused"}`,
			`{"subscription_status": "incomplete"}`,
			`{"subscription_status": "incomplete_expired", "is_active": false}`,
			`{"subscription_status": "active", "is_active": true}`,
			`{"metadata": {"ticket": "4711"}}`,
		},
		bad: []string{
			`{"username": 7}`,
			`{"username": "a\u0000b"}`,
			`{"username": "` + strings.Repeat("ö", 256) + `"}`,
			`{"email": "nonsense"}`,
			`{"email": ["a@example.com"]}`,
			`{"subscription_status": null}`,
			`{"subscription_status": ""}`,
			`{"subscription_status": "Active"}`,
			`{"subscription_status": "asleep"}`,
			`{"subscription_status": 1}`,
			`{"is_active": null}`,
			`{"is_active": "true"}`,
			`{"is_active": 1}`,
			`{"cognito_user_id": "other"}`,
			`{"tokens_remaining": 5}`,
			`{"subscription_tier": "admin"}`,
		},
	},
	"reserveTokens": {
		good: []string{
			`{"tokens": 1}`,
			`{"tokens": 2, "ttl_seconds": 1}`,
			`{"tokens": 2, "ttl_seconds": 86400}`,
			`{"tokens": 2, "metadata": {"model": "m"}}`,
			`{"tokens": 2147483647, "metadata": null}`,
		},
		bad: []string{
			`{}`,
			`{"ttl_seconds": 60}`,
			`{"tokens": null}`,
			`{"tokens": 0}`,
			`{"tokens": -1}`,
			`{"tokens": 1.5}`,
			`{"tokens": 2147483648}`,
			`{"tokens": "7"}`,
			`{"tokens": 1, "ttl_seconds": null}`,
			`{"tokens": 1, "ttl_seconds": 0}`,
			`{"tokens": 1, "ttl_seconds": 86401}`,
			`{"tokens": 1, "ttl_seconds": 0.5}`,
			`{"tokens": 1, "ttl_seconds": "60"}`,
			`{"tokens": 1, "ttl": 60}`,
			`{"tokens": 1, "metadata": {"note": 7}}`,
		},
	},
	"settleReservation": {
		good: []string{
			`{"tokens_used": 0}`,
			`{"tokens_used": 5}`,
			`{"tokens_used": 2147483647}`,
			`{"tokens_used": 1, "metadata": {"model": "m"}}`,
			`{"tokens_used": 1, "metadata": null}`,
		},
		bad: []string{
			`{}`,
			`{"tokens_used": null}`,
			`{"tokens_used": -1}`,
			`{"tokens_used": 0.5}`,
			`{"tokens_used": 2147483648}`,
			`{"tokens_used": "1"}`,
			`{"tokens": 1}`,
			`{"tokens_used": 1, "metadata": "note"}`,
		},
	},
	"releaseReservation": {
		good: []string{`{}`, `{"metadata": {}}`, `{"metadata": null}`, `{"metadata": {"reason": "the model failed"}}`},
		bad:  []string{`{"tokens_used": 0}`, `{"metadata": {"n": 5}}`, `{"metadata": "note"}`},
	},
	"extendReservation": {
		good: []string{`{"ttl_seconds": 1}`, `{"ttl_seconds": 86400}`},
		bad: []string{
			`{}`,
			`{"ttl_seconds": null}`,
			`{"ttl_seconds": 0}`,
			`{"ttl_seconds": 86401}`,
			`{"ttl_seconds": 0.5}`,
			`{"ttl_seconds": "60"}`,
			`{"ttl_seconds": 60, "metadata": {}}`,
		},
	},
	"putUser": {
		good: []string{
			`{}`,
			`{"username": "Ann Ö", "email": "a.b+c@mail.example.com"}`,
			`{"username": null, "email": ""}`,
			`{"metadata": {"source": "sign-up"}}`,
		},
		bad: []string{
			`{"username": 7}`,
			`{"email": "nonsense"}`,
			`{"cognito_user_id": "other"}`,
			`{"is_active": true}`,
			`{"metadata": {"n": 5}}`,
		},
	},
	"refundTokens": {
		good: []string{
			`{"entry_id": "` + exampleEntry + `"}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": 1}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": 2147483647}`,
			`{"entry_id": "` + exampleEntry + `", "metadata": {"reason": "r"}}`,
			`{"entry_id": "` + exampleEntry + `", "metadata": null}`,
			`{"entry_id": "0"}`,
			`{"entry_id": ""}`,
			`{"entry_id": "no number"}`,
		},
		bad: []string{
			`{}`,
			`{"tokens": 1}`,
			`{"entry_id": null}`,
			`{"entry_id": 1042}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": null}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": 0}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": -1}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": 1.5}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": 2147483648}`,
			`{"entry_id": "` + exampleEntry + `", "tokens": "1"}`,
			`{"entry_id": "` + exampleEntry + `", "amount": 1}`,
			`{"entry_id": "` + exampleEntry + `", "metadata": []}`,
		},
	},
	"addTokens": {
		good: []string{
			`{"tokens_to_add": 1}`,
			`{"tokens_to_add": 5000, "metadata": {"invoice": "in_1234"}}`,
		},
		bad: []string{
			`{}`,
			`{"tokens_to_add": null}`,
			`{"tokens_to_add": 0}`,
			`{"tokens_to_add": -5}`,
			`{"tokens_to_add": 0.5}`,
			`{"tokens_to_add": 2147483648}`,
			`{"tokens_to_add": "5"}`,
			`{"tokens_to_add": 5, "tokens_to_consume": 5}`,
			`{"tokens_to_add": 5, "metadata": 5}`,
		},
	},
}

// members returns n members of a JSON object.
func members(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`"key%d": ""`, i)
	}
	return strings.Join(list, ", ")
}

func TestBodiesAreJudgedAlike(t *testing.T) {
	t.Parallel()
	c, s := openAPI(), startForExamples(t)
	for _, o := range c.operations() {
		if o.RequestBody == nil {
			continue
		}
		table, ok := bodies[o.OperationID]
		if !ok {
			t.Errorf("there are no bodies for %s", o.OperationID)
		}
		schema := o.RequestBody.Value.Content["application/json"].Schema.Value
		path := strings.NewReplacer("{cognito_user_id}", exampleUser, "{reservation_id}", exampleReservation).Replace(o.path)
		judge := func(body string, good bool) {
			var value any
			if err := json.Unmarshal([]byte(body), &value); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if err := schema.VisitJSON(value, openapi3.VisitAsRequest()); (err == nil) != good {
				t.Errorf("%s %s by the document: %v", o.OperationID, body, err)
			}
			got := s.do(s.real(request{Method: o.method, Path: path, Body: body}))
			if refused := got.Status == http.StatusBadRequest || got.Status == http.StatusUnprocessableEntity; refused == good {
				t.Errorf("%s %s by the service: status %d, %s", o.OperationID, body, got.Status, got.Body)
			}
		}
		for _, body := range table.good {
			judge(body, true)
		}
		for _, body := range append(table.bad, `null`, `[]`, `"text"`, `7`) {
			judge(body, false)
		}
	}
}
