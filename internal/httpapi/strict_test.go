package httpapi_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

// loadPublished reads the document as people get it.
func loadPublished() *openapi3.T {
	text, err := httpapi.Published()
	if err != nil {
		panic(err)
	}
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		panic(err)
	}
	return document
}

// loadStrict makes of the published document one that says all that the service does today: also HEAD and the files of
// the documentation, each status with its codes and headers, and of objects and texts the very form.
func loadStrict() *openapi3.T {
	document := loadPublished()
	for _, schema := range document.Components.Schemas {
		narrow(schema.Value)
	}
	// What an account was given before the catalogue had today's names is shown as it is.
	for _, name := range []string{"User", "Receipt", "ConsumeReceipt", "UserStatus"} {
		properties := document.Components.Schemas[name].Value.Properties
		for _, open := range []string{"subscription_tier", "subscription_status"} {
			properties[open] = openapi3.NewStringSchema().WithMaxLength(50).NewRef()
		}
	}
	document.Components.Schemas["UserStatus"].Value.Properties["reason"].Value.Enum = []any{
		nil, "insufficient_tokens", "user_inactive", "subscription_inactive", "subscription_lapsed",
	}
	for _, item := range document.Paths.Map() {
		for _, o := range item.Operations() {
			detail(document, item, o)
		}
	}
	addFiles(document)
	for _, item := range document.Paths.Map() {
		if item.Get != nil {
			item.Head = headOf(item.Get)
		}
	}
	return document
}

// narrow closes the objects in s that leave open what else they may have, makes one of those that have all of another,
// and says of times how they are written.
func narrow(s *openapi3.Schema) {
	for _, part := range s.AllOf {
		narrow(part.Value)
	}
	if len(s.AllOf) > 0 && s.AllOf[0].Value.Type.Is(openapi3.TypeObject) {
		whole := openapi3.NewObjectSchema()
		for _, part := range s.AllOf {
			whole.Required = append(whole.Required, part.Value.Required...)
			maps.Copy(whole.Properties, part.Value.Properties)
		}
		whole.Description = s.Description
		*s = *whole
	}
	if s.Format == "date-time" {
		s.Pattern = `\.\d{6}Z$`
	}
	for _, property := range s.Properties {
		narrow(property.Value)
	}
	if s.Items != nil {
		narrow(s.Items.Value)
	}
	switch more := &s.AdditionalProperties; {
	case more.Schema != nil:
		narrow(more.Schema.Value)
	case more.Has == nil && s.Type.Is(openapi3.TypeObject):
		no := false
		more.Has = &no
	}
}

// detail says of a call which statuses it has, with which codes and headers.
func detail(document *openapi3.T, item *openapi3.PathItem, o *openapi3.Operation) {
	for status, response := range o.Responses.Map() {
		if response.Value.Content[problemJSON] != nil {
			o.Responses.Delete(status)
		}
	}
	keyed := slices.ContainsFunc(append(slices.Clone(item.Parameters), o.Parameters...), func(p *openapi3.ParameterRef) bool {
		return p.Value.Name == "Idempotency-Key"
	})
	for status, response := range o.Responses.Map() {
		addHeaders(response.Value, noStore)
		if keyed && status != "202" {
			addHeaders(response.Value, replayed)
		}
	}
	codes := map[int][]any{}
	for _, code := range codesOf(o) {
		status, _ := httpapi.StatusAndTitle(code)
		codes[status] = append(codes[status], string(code))
	}
	for status, codes := range codes {
		o.AddResponse(status, problemResponse(document, status, codes))
	}
}

// codesOf lists the codes that the published document gives for a call.
func codesOf(o *openapi3.Operation) (codes []user.Code) {
	text, err := json.Marshal(o.Extensions["x-problems"])
	if err == nil {
		err = json.Unmarshal(text, &codes)
	}
	if err != nil {
		panic(err)
	}
	return codes
}

// problemResponse is that of a status which comes with one of the codes.
func problemResponse(document *openapi3.T, status int, codes []any) *openapi3.Response {
	schema := &openapi3.Schema{AllOf: openapi3.SchemaRefs{
		document.Components.Schemas["Problem"],
		openapi3.NewObjectSchema().
			WithProperty("status", openapi3.NewIntegerSchema().WithEnum(float64(status))).
			WithProperty("code", openapi3.NewStringSchema().WithEnum(codes...)).NewRef(),
	}}
	response := openapi3.NewResponse().WithDescription(http.StatusText(status)).
		WithContent(openapi3.NewContentWithSchema(schema, []string{problemJSON}))
	addHeaders(response, noStore)
	switch status {
	case http.StatusUnauthorized:
		addHeaders(response, openapi3.Headers{"WWW-Authenticate": header("Bearer", true)})
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		addHeaders(response, openapi3.Headers{"Retry-After": header("[1-9][0-9]*", true)})
	}
	return response
}

// header is one whose whole value the pattern matches.
func header(pattern string, required bool) *openapi3.HeaderRef {
	return &openapi3.HeaderRef{Value: &openapi3.Header{Parameter: openapi3.Parameter{
		Required: required, Schema: openapi3.NewStringSchema().WithPattern("^(" + pattern + ")$").NewRef(),
	}}}
}

// Headers that many responses have.
var (
	noStore = openapi3.Headers{
		"X-Request-Id": header("[A-Za-z0-9._:/+=-]{1,128}", true), "Cache-Control": header("no-store", true),
	}
	noCache = openapi3.Headers{
		"X-Request-Id": header("[A-Za-z0-9._:/+=-]{1,128}", true), "Cache-Control": header("no-cache", true),
		"ETag": header(`"[A-Za-z0-9_-]+"`, true),
	}
	replayed = openapi3.Headers{"Idempotency-Replayed": header("true", false)}
)

func addHeaders(response *openapi3.Response, more openapi3.Headers) {
	if response.Headers == nil {
		response.Headers = openapi3.Headers{}
	}
	maps.Copy(response.Headers, more)
}

// addFiles adds the documentation itself, the clients and the console, which people do not call.
func addFiles(document *openapi3.T) {
	ok := func(mediaTypes ...string) *openapi3.Response {
		return openapi3.NewResponse().WithDescription("The file.").
			WithContent(openapi3.NewContentWithSchema(openapi3.NewSchema(), mediaTypes))
	}
	add := func(path, id string, parameters openapi3.Parameters, responses map[int]*openapi3.Response) {
		o := openapi3.NewOperation()
		o.OperationID, o.Security, o.Responses = id, openapi3.NewSecurityRequirements(), openapi3.NewResponsesWithCapacity(len(responses))
		for status, response := range responses {
			o.AddResponse(status, response)
		}
		o.AddResponse(http.StatusForbidden, problemResponse(document, http.StatusForbidden, []any{"cross_site"}))
		document.Paths.Set(path, &openapi3.PathItem{Get: o, Parameters: parameters})
	}
	file := func(mediaTypes ...string) map[int]*openapi3.Response {
		responses := map[int]*openapi3.Response{
			http.StatusOK: ok(mediaTypes...), http.StatusNotModified: openapi3.NewResponse().WithDescription("Not modified."),
		}
		for _, response := range responses {
			addHeaders(response, noCache)
		}
		return responses
	}
	add("/docs", "getDocs", nil, file("text/html"))
	add("/openapi.json", "getOpenAPIJSON", nil, file("application/json"))
	add("/openapi.yaml", "getOpenAPIYAML", nil, file("application/yaml"))

	asset := file("text/css", "text/javascript", "image/png")
	asset[http.StatusNotFound] = problemResponse(document, http.StatusNotFound, []any{"not_found"})
	name := openapi3.NewPathParameter("file").WithSchema(openapi3.NewStringSchema())
	name.Example = "docs.css"
	add("/docs/{file}", "getDocsFile", openapi3.Parameters{{Value: name}}, asset)

	client := file("text/x-python", "text/javascript", "text/plain")
	client[http.StatusNotFound] = problemResponse(document, http.StatusNotFound, []any{"not_found"})
	name = openapi3.NewPathParameter("client").WithSchema(openapi3.NewStringSchema())
	name.Example = "user_management.py"
	add("/clients/{client}", "getClient", openapi3.Parameters{{Value: name}}, client)

	add("/console", "getConsole", nil, file("text/html"))
	asset = file("text/css", "text/javascript", "image/svg+xml", "text/plain")
	asset[http.StatusNotFound] = problemResponse(document, http.StatusNotFound, []any{"not_found"})
	name = openapi3.NewPathParameter("file").WithSchema(openapi3.NewStringSchema())
	name.Example = "console.css"
	add("/console/{file}", "getConsoleFile", openapi3.Parameters{{Value: name}}, asset)

	redirect := openapi3.NewResponse().WithDescription("The page is there.")
	addHeaders(redirect, noStore)
	addHeaders(redirect, openapi3.Headers{"Location": header("/docs", true)})
	add("/redoc", "getRedoc", nil, map[int]*openapi3.Response{http.StatusFound: redirect})
}

// headOf is the HEAD that a GET has: the same statuses and headers, and no body.
func headOf(get *openapi3.Operation) *openapi3.Operation {
	head := *get
	head.OperationID = "head" + strings.TrimPrefix(get.OperationID, "get")
	head.Responses = openapi3.NewResponsesWithCapacity(get.Responses.Len())
	for status, response := range get.Responses.Map() {
		bodiless := *response.Value
		bodiless.Content = nil
		head.Responses.Set(status, &openapi3.ResponseRef{Value: &bodiless})
	}
	return &head
}
