package httpapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/viralpilot/user-management/internal/user"
)

// openapi describes the calls that people make, by hand and without what follows from it: how they are refused.
//
//go:embed openapi.yaml
var openapi []byte

// document is the description in both of its published forms, with "VERSION" in place of the version. Tests hold it,
// made stricter, against what the service does.
type document struct{ json, yaml []byte }

// published makes the document once.
var published = sync.OnceValues(func() (document, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(openapi, &root); err != nil {
		return document{}, err
	}
	if err := addProblems(root.Content[0]); err != nil {
		return document{}, err
	}
	asYAML, err := yaml.Dump(&root, yaml.WithIndent(2))
	if err != nil {
		return document{}, err
	}
	asJSON, err := appendJSON(nil, root.Content[0])
	return document{asJSON, asYAML}, err
})

// documentOf returns the document of a version of the service.
func documentOf(version string) document {
	d, err := published()
	if err != nil {
		panic(fmt.Errorf("openapi.yaml: %w", err))
	}
	quoted, err := json.Marshal(version) // a string of JSON is one of YAML too
	if err != nil {
		panic(err)
	}
	of := func(form []byte) []byte { return bytes.Replace(form, []byte(`"VERSION"`), quoted, 1) }
	return document{of(d.json), of(d.yaml)}
}

// problemsMember has, in openapi.yaml, the codes with which one call is refused in particular, and in the published
// document all of its codes.
const problemsMember = "x-problems"

// addProblems adds to every call how it is refused, and to the type of the codes all there are.
func addProblems(doc *yaml.Node) error {
	for path, item := range members(valueOf(doc, "paths")) {
		for method, call := range members(item) {
			if method == "parameters" {
				continue
			}
			var own []user.Code
			if named := valueOf(call, problemsMember); named != nil {
				if err := named.Decode(&own); err != nil {
					return err
				}
			}
			common := commonProblems(path, method, item, call)
			all := slices.Concat(own, common)
			for _, code := range all {
				if _, ok := kinds[code]; !ok {
					return fmt.Errorf("%s %s: there is no code %s", method, path, code)
				}
			}
			set(call, problemsMember, list(all))
			if err := addResponses(valueOf(call, "responses"), path, own, common); err != nil {
				return err
			}
		}
	}
	codes := make([]user.Code, len(failures))
	for i, f := range failures {
		codes[i] = f.Code
	}
	set(valueOf(valueOf(valueOf(doc, "components"), "schemas"), "ProblemCode"), "enum", list(codes))
	return nil
}

// commonProblems lists the codes of a call that follow from what it takes.
func commonProblems(path, method string, item, call *yaml.Node) (codes []user.Code) {
	add := func(applies bool, more ...user.Code) {
		if applies {
			codes = append(codes, more...)
		}
	}
	security := valueOf(call, "security")
	var (
		known    = security == nil || len(security.Content) > 0 // callers have to be
		ofUser   = strings.Contains(path, "{cognito_user_id}")
		body     = valueOf(call, "requestBody") != nil
		keyed    = takes(item, "IdempotencyKey") || takes(call, "IdempotencyKey")
		metrics  = path == "/metrics"                    // answered by Prometheus, which looks at no query
		whoami   = path == "/whoami"                     // everybody may
		ordered  = path == "/ledger" || path == "/usage" // of all accounts
		database = known && !metrics && !whoami && path != "/tiers"
	)
	add(keyed, errMalformedJSON.Code)
	add(ofUser, errInvalidPath.Code)
	add(known, errUnauthenticated.Code)
	add(known && !whoami, errForbidden.Code)
	add(true, errCrossSite.Code)
	add(ofUser, user.CodeUserNotFound)
	add(strings.Contains(path, "{reservation_id}"), user.CodeReservationNotFound)
	add(ofUser, user.CodeBeingErased)
	add(body, errBodyTooLarge.Code, errUnsupportedMedia.Code)
	add(known && !metrics, user.CodeValidation)
	add(keyed, user.CodeKeyReused)
	add(known && !metrics, errRateLimited.Code)
	add(database, errInternal.Code)
	add(ordered, user.CodeNotAvailable)
	add(known, user.CodeOverloaded)
	add(database, user.CodeDatabaseUnavailable)
	return codes
}

// takes reports whether n, a path or a call, has the parameter of that name among the components.
func takes(n *yaml.Node, parameter string) bool {
	given := valueOf(n, "parameters")
	return given != nil && slices.ContainsFunc(given.Content, func(p *yaml.Node) bool {
		ref := valueOf(p, "$ref")
		return ref != nil && strings.HasSuffix(ref.Value, "/"+parameter)
	})
}

// addResponses adds the responses of a call that is refused: one for each status that it has for reasons of its own, or
// the most telling of the common ones, and one for whatever else may happen.
func addResponses(responses *yaml.Node, path string, own, common []user.Code) error {
	telling := own
	if len(own) == 0 {
		telling = common[:1]
		if slices.Contains(common, user.CodeUserNotFound) {
			telling = []user.Code{user.CodeUserNotFound}
		}
	}
	byStatus := map[int][]user.Code{}
	for _, code := range telling {
		byStatus[kinds[code].status] = nil
	}
	var rest []user.Code
	for _, code := range slices.Concat(own, common) {
		if _, named := byStatus[kinds[code].status]; named {
			byStatus[kinds[code].status] = append(byStatus[kinds[code].status], code)
		} else {
			rest = append(rest, code)
		}
	}
	for _, status := range slices.Sorted(maps.Keys(byStatus)) {
		var said []string
		for _, code := range byStatus[status] {
			said = append(said, fmt.Sprintf("`%s`: %s", code, kinds[code].Detail))
		}
		description := said[0]
		if len(said) > 1 {
			description = "- " + strings.Join(said, "\n- ")
		}
		if err := addResponse(responses, strconv.Itoa(status), path, description, byStatus[status]); err != nil {
			return err
		}
	}
	if len(rest) == 0 {
		return nil
	}
	said := "Anything else, as with other calls: "
	for i, code := range rest {
		if i > 0 {
			said += ", "
		}
		said += fmt.Sprintf("`%s` (%d)", code, kinds[code].status)
	}
	return addResponse(responses, "default", path, said+".", rest[len(rest)-1:])
}

// addResponse adds a response that is a problem with one of the codes.
func addResponse(responses *yaml.Node, status, path, description string, codes []user.Code) error {
	var examples []pair
	for _, code := range codes {
		example, err := exampleProblem(path, code)
		if err != nil {
			return err
		}
		examples = append(examples, pair{string(code), mapping(pair{"summary", text(kinds[code].title)}, pair{"value", example})})
	}
	set(responses, status, mapping(
		pair{"description", text(description)},
		pair{"content", mapping(pair{"application/problem+json", mapping(
			pair{"schema", mapping(pair{"$ref", text("#/components/schemas/Problem")})},
			pair{"examples", mapping(examples...)},
		)})},
	))
	return nil
}

// exampleProblem is a problem of the code as a call of the path may answer it.
func exampleProblem(path string, code user.Code) (*yaml.Node, error) {
	kind := kinds[code]
	e := *kind.Error
	if code == user.CodeInsufficientTokens {
		reset := time.Date(2026, time.December, 1, 0, 0, 0, 0, time.UTC)
		e.Shortage = &user.Shortage{TokensRemaining: 3, TokensRequired: 7, NextResetAt: &reset}
	}
	instance := strings.NewReplacer("{cognito_user_id}", "test-user-123", "{reservation_id}", "9b2f6c1e-3f0a-4c57-8a54-0d7e3b1c9f10").Replace(path)
	body, err := json.Marshal(kind.problem(&e, instance, "4f9d2c1be07a"))
	if err != nil {
		return nil, err
	}
	var parsed yaml.Node
	if err := yaml.Unmarshal(body, &parsed); err != nil { // JSON is YAML too
		return nil, err
	}
	example := parsed.Content[0]
	example.Style = 0
	for _, n := range example.Content {
		n.Style = 0
	}
	return example, nil
}
