package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// m is a JSON object.
type m = map[string]any

// startSQL is start with a way past the API into its database.
func startSQL(t *testing.T, change ...func(*httpapi.Options)) (*service, *pgxpool.Pool) {
	t.Helper()
	s := start(t, change...)
	db, err := pgxpool.New(t.Context(), localpgtest.Direct(s.url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return s, db
}

func exec(t *testing.T, db *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// snapshot is every row that the service keeps, of these accounts if any are named.
func snapshot(t *testing.T, db *pgxpool.Pool, ids ...string) string {
	t.Helper()
	var rows string
	if err := db.QueryRow(t.Context(), `SELECT coalesce(string_agg(r, E'\n' ORDER BY r), '') FROM (
			SELECT 'userdata ' || to_jsonb(u)::text FROM viralpilot.userdata u
			UNION ALL SELECT 'account_state ' || to_jsonb(a)::text FROM viralpilot.account_state a
			UNION ALL SELECT 'ledger ' || to_jsonb(l)::text FROM viralpilot.ledger l
			UNION ALL SELECT 'reservations ' || to_jsonb(r)::text FROM viralpilot.reservations r) AS all_rows (r)
		WHERE $1::text[] IS NULL OR substring(r FROM '\{.*')::jsonb ->> 'cognito_user_id' = ANY($1)`, ids).Scan(&rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

// in is the service for a sub-test: what fails there, fails that one.
func (s *service) in(t *testing.T) *service {
	c := *s
	c.t = t
	return &c
}

var accounts atomic.Int64

// account makes an account on the tier with that many top-ups, and returns its id.
func (s *service) account(tier string, topUps int) string {
	s.t.Helper()
	id := fmt.Sprintf("account-%d", accounts.Add(1))
	s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
	if tier != "free" {
		s.put("/user/"+id+"/tier", m{"tier": tier}).want(http.StatusOK)
	}
	if topUps > 0 {
		s.add(id, topUps).want(http.StatusOK)
	}
	return id
}

func (s *service) consume(id string, tokens int, key ...string) response {
	s.t.Helper()
	return s.keyed("/user/"+id+"/consume-tokens", m{"tokens_to_consume": tokens}, key...)
}

func (s *service) add(id string, tokens int, key ...string) response {
	s.t.Helper()
	return s.keyed("/user/"+id+"/add-tokens", m{"tokens_to_add": tokens}, key...)
}

// keyed posts under an Idempotency-Key, if one is given.
func (s *service) keyed(path string, body any, key ...string) response {
	s.t.Helper()
	r := request{Method: http.MethodPost, Path: path, Body: body}
	if len(key) > 0 {
		r.Header = http.Header{"Idempotency-Key": key}
	}
	return s.do(r)
}

func (s *service) status(id string) m {
	s.t.Helper()
	return s.get("/user/" + id + "/status").want(http.StatusOK)
}

// entries is the newest page of the ledger, newest first.
func (s *service) entries(id string) []m {
	s.t.Helper()
	var entries []m
	for _, e := range s.get("/user/" + id + "/ledger?limit=200").want(http.StatusOK)["entries"].([]any) {
		entries = append(entries, e.(m))
	}
	return entries
}

// kinds says of each entry its kind and amount, oldest first.
func (s *service) kinds(id string) string {
	s.t.Helper()
	var kinds []string
	for _, e := range slices.Backward(s.entries(id)) {
		kinds = append(kinds, fmt.Sprintf("%v %+.0f", e["kind"], e["amount"]))
	}
	return strings.Join(kinds, ", ")
}

// has fails the test unless body has these values in these fields.
func has(t *testing.T, body, want m) {
	t.Helper()
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var wire m // numbers are float64 here too
	if err := json.Unmarshal(text, &wire); err != nil {
		t.Fatal(err)
	}
	for field, value := range wire {
		if got, there := body[field]; !there || !reflect.DeepEqual(got, value) {
			t.Errorf("%s is %v, want %v; body: %v", field, got, value, body)
		}
	}
}

// tokens fails the test unless the counters of body are these.
func tokens(t *testing.T, body m, remaining, used int) {
	t.Helper()
	has(t, body, m{"tokens_remaining": remaining, "tokens_used_this_month": used})
}

const (
	userFields = "cognito_user_id created_at email is_active last_token_reset_date subscription_renewal_date " +
		"subscription_status subscription_tier tokens_remaining tokens_used_this_month updated_at username"
	receiptFields = "cognito_user_id created_at email entry_id is_active last_token_reset_date subscription_renewal_date " +
		"subscription_status subscription_tier tokens_remaining tokens_used_this_month updated_at username"
	consumeFields = "cognito_user_id created_at email entry_id is_active last_token_reset_date low_balance subscription_renewal_date " +
		"subscription_status subscription_tier tokens_remaining tokens_used_this_month top_ups_charged updated_at username"
	statusFields = "allowance allowance_remaining can_make_request cognito_user_id low_balance next_reset_at reason " +
		"subscription_renewal_date subscription_status subscription_tier tier_description tier_name tokens_remaining tokens_reserved " +
		"tokens_used_this_month top_up_tokens unlimited"
	entryFields = "actor amount balance_after changes created_at entry_id idempotency_key kind metadata refunded_entry_id " +
		"reservation_id tokens_charged tokens_refunded top_ups_amount used_after"
	problemFields = "code detail instance request_id status title type"
)

var rfc3339Z = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)

// shape fails the test unless body has exactly these fields, and its times are RFC 3339 in UTC with six digits.
func shape(t *testing.T, body m, fields string) {
	t.Helper()
	if got := strings.Join(slices.Sorted(maps.Keys(body)), " "); got != fields {
		t.Errorf("fields %s\nwant   %s", got, fields)
	}
	for field, value := range body {
		isTime := strings.HasSuffix(field, "_at") || strings.HasSuffix(field, "_date") || field == "timestamp"
		if s, ok := value.(string); isTime && value != nil && (!ok || !rfc3339Z.MatchString(s)) {
			t.Errorf("%s is %v", field, value)
		}
	}
}

func TestAnswers_HaveExactlyTheDocumentedFields(t *testing.T) {
	t.Parallel()
	s := start(t)
	created := s.post("/user", m{"cognito_user_id": "u", "username": "Ann", "email": "ann@example.com"}).want(http.StatusCreated)
	fresh := s.get("/user/u").want(http.StatusOK)
	dated := s.put("/user/u/tier", m{"tier": "tester", "renewal_date": "2026-12-24T10:00:00.123456Z"}).want(http.StatusOK)
	consumed := s.keyed("/user/u/consume-tokens", m{"tokens_to_consume": 1, "metadata": m{"model": "large"}}, "key").want(http.StatusOK)
	for name, c := range map[string]struct {
		body   m
		fields string
	}{
		"a user that was created":       {created, userFields},
		"a user that was read":          {fresh, userFields},
		"a user with a renewal date":    {dated, userFields},
		"a user made by reading it":     {s.get("/user/v").want(http.StatusOK), userFields},
		"the receipt of a consume":      {consumed, consumeFields},
		"the receipt of a replay":       {s.consume("u", 1, "key").want(http.StatusOK), consumeFields},
		"the receipt of a top-up":       {s.add("u", 1).want(http.StatusOK), receiptFields},
		"a status":                      {s.status("u"), statusFields},
		"an entry with all it can have": {s.entries("u")[1], entryFields},
		"an entry with little":          {s.entries("u")[0], entryFields},
		"a page of the ledger":          {s.get("/user/u/ledger").want(http.StatusOK), "entries next_cursor"},
		"an empty page":                 {s.get("/user/v/ledger").want(http.StatusOK), "entries next_cursor"},
		"a problem":                     {s.get("/user/nobody/status").wantProblem(http.StatusNotFound, "user_not_found"), problemFields},
		"a problem with fields":         {s.add("u", 0).wantProblem(http.StatusUnprocessableEntity, "validation_failed"), "code detail errors instance request_id status title type"},
		"a shortage":                    {s.consume("u", 5000).wantProblem(http.StatusPaymentRequired, "insufficient_tokens"), "code detail instance next_reset_at request_id status title tokens_remaining tokens_required type"},
		"the tiers":                     {s.get("/tiers").want(http.StatusOK), "description tiers"},
		"the health":                    {s.get("/health").want(http.StatusOK), "database service status timestamp version"},
		"the root":                      {s.get("/").want(http.StatusOK), "clients endpoints service status version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shape(t, c.body, c.fields)
		})
	}
	has(t, fresh, created)
	has(t, dated, m{"subscription_renewal_date": "2026-12-24T10:00:00.123456Z"})
	has(t, s.get("/").want(http.StatusOK), m{"service": "Viral Pilot User Management Service", "version": "test", "status": "running"})
	if page := s.get("/user/v/ledger").want(http.StatusOK); len(page["entries"].([]any)) != 0 || page["next_cursor"] != nil {
		t.Errorf("the ledger of a new account: %v", page)
	}
}

func TestTiers_AreShownAsConfigured(t *testing.T) {
	t.Parallel()
	s := start(t)
	body := s.get("/tiers").want(http.StatusOK)
	tiers := body["tiers"].(m)
	if len(tiers) != 6 || body["description"] == "" {
		t.Fatalf("%v", body)
	}
	for tier, want := range map[string]m{
		"admin":   {"name": "Admin", "tokens_per_month": -1, "unlimited": true, "defined": true},
		"tester":  {"name": "Tester", "tokens_per_month": 1000, "unlimited": false, "defined": true, "description": "Tester tier with 1000 tokens per month (resets on 1st)"},
		"free":    {"name": "Free", "tokens_per_month": 0, "unlimited": false, "defined": true},
		"basic":   {"name": "Basic", "tokens_per_month": 5000, "unlimited": false, "defined": true},
		"creator": {"name": "Creator", "tokens_per_month": 0, "unlimited": false, "defined": false},
		"agency":  {"name": "Agency", "tokens_per_month": 0, "unlimited": false, "defined": false},
	} {
		shape(t, tiers[tier].(m), "defined description name tokens_per_month unlimited")
		has(t, tiers[tier].(m), want)
	}
}

func TestCreate_MakesFreeAccounts(t *testing.T) {
	t.Parallel()
	s := start(t)
	fresh := m{
		"subscription_tier": "free", "subscription_status": "active", "subscription_renewal_date": nil, "tokens_remaining": 0,
		"tokens_used_this_month": 0, "last_token_reset_date": "2026-11-24T10:00:00.000000Z", "created_at": "2026-11-24T10:00:00.000000Z",
		"updated_at": "2026-11-24T10:00:00.000000Z", "is_active": true,
	}
	for name, c := range map[string]struct{ body, want m }{
		"an id alone leaves name and address null":   {m{}, m{"username": nil, "email": nil}},
		"name and address are kept":                  {m{"username": "Ann Ö", "email": "ann@example.com"}, m{"username": "Ann Ö", "email": "ann@example.com"}},
		"null is none":                               {m{"username": nil, "email": nil}, m{"username": nil, "email": nil}},
		"an empty name is none":                      {m{"username": ""}, m{"username": nil, "email": nil}},
		"an empty address is none":                   {m{"username": "Ann", "email": ""}, m{"username": "Ann", "email": nil}},
		"255 characters are kept whatever the bytes": {m{"username": strings.Repeat("ö", 255)}, m{"username": strings.Repeat("ö", 255)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := fmt.Sprintf("create-%d", accounts.Add(1))
			maps.Copy(c.body, m{"cognito_user_id": id})
			r := s.post("/user", c.body)
			body := r.want(http.StatusCreated)
			has(t, body, fresh)
			has(t, body, c.want)
			if got := r.Header.Get("Location"); got != "/user/"+id {
				t.Errorf("Location %q", got)
			}
			has(t, s.get("/user/"+id).want(http.StatusOK), body)
		})
	}
	t.Run("an id that is taken is user_exists and stays as it was", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		s.post("/user", m{"cognito_user_id": "taken", "username": "first"}).want(http.StatusCreated)
		s.post("/user", m{"cognito_user_id": "taken", "username": "second"}).wantProblem(http.StatusConflict, "user_exists")
		has(t, s.get("/user/taken").want(http.StatusOK), m{"username": "first"})
	})
	t.Run("reading an unknown id makes a free account once", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		s.get("/user/read/status").wantProblem(http.StatusNotFound, "user_not_found")
		first := s.get("/user/read").want(http.StatusOK)
		has(t, first, fresh)
		s.add("read", 5).want(http.StatusOK)
		tokens(t, s.get("/user/read").want(http.StatusOK), 5, 0)
		s.post("/user", m{"cognito_user_id": "read"}).wantProblem(http.StatusConflict, "user_exists")
	})
	t.Run("ids differ by case and by blanks within", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		for _, id := range []string{"Case", "case", "ca se"} {
			s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
		}
	})
}

// The reason that a status gives is the code with which a consume is refused.
func TestStatus_SaysWhatAConsumeWouldMeet(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	for name, c := range map[string]struct {
		tier   string
		topUps int
		spend  int
		status string
		active bool
		reason any
		want   m
	}{
		"a free account has nothing":                     {"free", 0, 0, "active", true, "insufficient_tokens", m{"tier_name": "Free", "top_up_tokens": 0}},
		"a free account spends top-ups":                  {"free", 5, 0, "active", true, nil, m{"top_up_tokens": 5, "tokens_remaining": 5}},
		"a tester spends its allowance":                  {"tester", 0, 0, "active", true, nil, m{"tier_name": "Tester", "top_up_tokens": 0, "tokens_remaining": 1000, "allowance": 1000, "allowance_remaining": 1000, "low_balance": false}},
		"the allowance goes before the top-ups":          {"tester", 5, 900, "active", true, nil, m{"top_up_tokens": 5, "tokens_remaining": 105, "tokens_used_this_month": 900, "allowance": 1000, "allowance_remaining": 100, "low_balance": true}},
		"then the top-ups go":                            {"tester", 5, 1002, "active", true, nil, m{"top_up_tokens": 3, "tokens_remaining": 3, "allowance_remaining": 0}},
		"a tester that spent all has to wait":            {"tester", 0, 1000, "active", true, "insufficient_tokens", m{"tokens_used_this_month": 1000}},
		"an undefined tier grants nothing":               {"agency", 0, 0, "active", true, "insufficient_tokens", m{"tier_name": "Agency", "tier_description": "Agency tier (to be defined)"}},
		"an admin spends without limit":                  {"admin", 0, 0, "active", true, nil, m{"unlimited": true, "tokens_remaining": 0, "tier_name": "Admin", "allowance": 0, "low_balance": false}},
		"trialing is as good as active":                  {"tester", 0, 0, "trialing", true, nil, m{"subscription_status": "trialing"}},
		"past_due is subscription_inactive":              {"tester", 0, 0, "past_due", true, "subscription_inactive", m{"tokens_remaining": 1000}},
		"a status nobody knows is subscription_inactive": {"tester", 0, 0, "on the moon", true, "subscription_inactive", m{"subscription_status": "on the moon"}},
		"case counts in a status":                        {"tester", 0, 0, "Active", true, "subscription_inactive", m{}},
		"an admin needs a subscription too":              {"admin", 0, 0, "canceled", true, "subscription_inactive", m{"unlimited": true}},
		"deactivated is user_inactive":                   {"tester", 0, 0, "active", false, "user_inactive", m{}},
		"deactivated counts before the subscription":     {"tester", 0, 0, "unpaid", false, "user_inactive", m{}},
		"a subscription counts before the balance":       {"free", 0, 0, "paused", true, "subscription_inactive", m{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account(c.tier, c.topUps)
			if c.spend > 0 {
				s.consume(id, c.spend).want(http.StatusOK)
			}
			exec(t, db, `UPDATE viralpilot.userdata SET subscription_status = $2, is_active = $3 WHERE cognito_user_id = $1`, id, c.status, c.active)
			var next any // null where no tokens will come
			if c.tier == "tester" {
				next = "2026-12-01T00:00:00.000000Z"
			}
			got := s.status(id)
			has(t, got, m{
				"cognito_user_id": id, "subscription_tier": c.tier, "unlimited": c.tier == "admin", "tokens_reserved": 0,
				"next_reset_at": next, "reason": c.reason, "can_make_request": c.reason == nil,
			})
			has(t, got, c.want)
			before := s.get("/user/" + id).want(http.StatusOK)
			switch c.reason {
			case nil:
				s.consume(id, 1).want(http.StatusOK)
				return
			case "insufficient_tokens":
				p := s.consume(id, 1).wantProblem(http.StatusPaymentRequired, "insufficient_tokens")
				has(t, p, m{"tokens_remaining": 0, "tokens_required": 1, "next_reset_at": next})
				if words := p["detail"].(string); !strings.HasPrefix(words, "Insufficient tokens: 1 required, 0 remaining, 1 missing.") ||
					strings.Contains(words, "2026-12-01T00:00:00Z") != (next != nil) {
					t.Errorf("detail: %s", words)
				}
			default:
				s.consume(id, 1).wantProblem(http.StatusForbidden, c.reason.(string))
			}
			has(t, s.get("/user/"+id).want(http.StatusOK), before)
			s.add(id, 1).want(http.StatusOK) // everything but spending still works
			s.put("/user/"+id+"/tier", m{"tier": "basic"}).want(http.StatusOK)
		})
	}
	t.Run("an unknown id is user_not_found for all but the read that makes it", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		for _, r := range []response{
			s.get("/user/nobody/status"), s.get("/user/nobody/ledger"), s.consume("nobody", 1), s.add("nobody", 1),
			s.put("/user/nobody/tier", m{"tier": "tester"}), s.get("/user/nobody/status"),
		} {
			r.wantProblem(http.StatusNotFound, "user_not_found")
		}
	})
}

func TestConsumeAndAdd_MoveTokens(t *testing.T) {
	t.Parallel()
	s := start(t)
	t.Run("absent tokens consume one", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		for i, body := range []any{m{}, `{ }`, m{"metadata": nil}, m{"metadata": m{}}, m{"metadata": m{"a": "b"}}} {
			tokens(t, s.post("/user/"+id+"/consume-tokens", body).want(http.StatusOK), 999-i, i+1)
		}
	})
	t.Run("all of the balance may be spent and not one token more", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 5)
		has(t, s.consume(id, 1006).wantProblem(http.StatusPaymentRequired, "insufficient_tokens"), m{"tokens_remaining": 1005, "tokens_required": 1006})
		tokens(t, s.consume(id, 1005).want(http.StatusOK), 0, 1005)
		has(t, s.consume(id, 2147483647).wantProblem(http.StatusPaymentRequired, "insufficient_tokens"), m{"tokens_remaining": 0, "tokens_required": 2147483647})
		if got := s.kinds(id); got != "tier_change +1000, top_up +5, consume -1005" {
			t.Errorf("ledger: %s", got)
		}
	})
	t.Run("a receipt names its entry", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("free", 0)
		for _, call := range []func(string, int, ...string) response{s.add, s.consume} {
			receipt := call(id, 2).want(http.StatusOK)
			newest := s.entries(id)[0]
			has(t, receipt, m{"entry_id": newest["entry_id"], "tokens_remaining": newest["balance_after"], "tokens_used_this_month": newest["used_after"]})
		}
	})
	t.Run("a consume says what of it was top-ups and that little is left", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 5)
		has(t, s.consume(id, 804).want(http.StatusOK), m{"top_ups_charged": 0, "low_balance": false, "tokens_remaining": 201})
		has(t, s.consume(id, 1).want(http.StatusOK), m{"top_ups_charged": 0, "low_balance": true, "tokens_remaining": 200})
		has(t, s.consume(id, 198, "key").want(http.StatusOK), m{"top_ups_charged": 3, "low_balance": true, "tokens_remaining": 2})
		has(t, s.consume(id, 198, "key").want(http.StatusOK), m{"top_ups_charged": 3, "tokens_remaining": 2})
	})
	t.Run("an unlimited account is not counted", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("admin", 7)
		before := s.kinds(id)
		has(t, s.consume(id, 2147483647).want(http.StatusOK), m{
			"entry_id": nil, "tokens_remaining": 7, "tokens_used_this_month": 0, "top_ups_charged": 0, "low_balance": false,
		})
		if got := s.kinds(id); got != before {
			t.Errorf("ledger: %s, before: %s", got, before)
		}
	})
	t.Run("what would pass 32 bits is balance_overflow", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		s.consume(id, 400).want(http.StatusOK) // used tokens count too: R 600, U 400
		s.add(id, 2147482648).wantProblem(http.StatusConflict, "balance_overflow")
		tokens(t, s.get("/user/"+id).want(http.StatusOK), 600, 400)
		tokens(t, s.add(id, 2147482647).want(http.StatusOK), 2147483247, 400)
		s.add(id, 1).wantProblem(http.StatusConflict, "balance_overflow")
	})
}

func TestTierChange_SetsTierAndDate(t *testing.T) {
	t.Parallel()
	s := start(t)
	t.Run("another tier grants its allowance less what the month has used", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 50)
		s.consume(id, 300).want(http.StatusOK)
		body := s.put("/user/"+id+"/tier", m{"tier": "basic", "metadata": m{"reason": "upgrade"}}).want(http.StatusOK)
		shape(t, body, userFields)
		tokens(t, body, 4750, 300)
		has(t, body, m{"subscription_tier": "basic", "last_token_reset_date": "2026-11-24T10:00:00.000000Z"})
		has(t, s.entries(id)[0], m{
			"kind": "tier_change", "amount": 4000, "balance_after": 4750, "used_after": 300, "top_ups_amount": 0,
			"changes": m{"subscription_tier": m{"from": "tester", "to": "basic"}}, "metadata": m{"reason": "upgrade"},
		})
		has(t, s.status(id), m{"allowance": 5000, "allowance_remaining": 4700, "top_up_tokens": 50})
	})
	t.Run("the same tier changes the date and nothing else", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		s.consume(id, 300).want(http.StatusOK)
		before, ledger := s.get("/user/"+id).want(http.StatusOK), s.kinds(id)
		for range 2 {
			has(t, s.put("/user/"+id+"/tier", m{"tier": "tester"}).want(http.StatusOK), before)
		}
		if got := s.kinds(id); got != ledger {
			t.Errorf("ledger: %s, before: %s", got, ledger)
		}
		tokens(t, s.put("/user/"+id+"/tier", m{"tier": "tester", "renewal_date": "2027-01-01T00:00:00.000000Z"}).want(http.StatusOK), 700, 300)
		has(t, s.entries(id)[0], m{
			"kind": "profile_change", "amount": 0, "balance_after": 700, "used_after": 300, "metadata": nil,
			"changes": m{"subscription_renewal_date": m{}},
		})
	})
	t.Run("a tier outside of the catalogue is invalid_tier and keeps the tier", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		refused := s.put("/user/"+id+"/tier", m{"tier": "gold", "renewal_date": "2027-01-01T00:00:00.000000Z"})
		problem := refused.wantProblem(http.StatusBadRequest, "invalid_tier")
		if words := problem["detail"].(string); !strings.Contains(words, `"gold"`) || !strings.Contains(words, "admin, tester, free, basic, creator, agency") {
			t.Errorf("detail: %s", words)
		}
		has(t, s.get("/user/"+id).want(http.StatusOK), m{"subscription_tier": "tester", "subscription_renewal_date": nil})
	})
	for name, c := range map[string]struct{ sent, want any }{
		"Z is kept":                        {"2026-12-24T10:00:00.000000Z", "2026-12-24T10:00:00.000000Z"},
		"a zone is turned into UTC":        {"2026-12-24T10:00:00+05:30", "2026-12-24T04:30:00.000000Z"},
		"no zone is UTC":                   {"2026-12-24T10:00:00", "2026-12-24T10:00:00.000000Z"},
		"no zone with a fraction is UTC":   {"2026-12-24T10:00:00.25", "2026-12-24T10:00:00.250000Z"},
		"more than microseconds are cut":   {"2026-12-24T10:00:00.123456789Z", "2026-12-24T10:00:00.123456Z"},
		"a leap day is a day":              {"2028-02-29T00:00:00.000000Z", "2028-02-29T00:00:00.000000Z"},
		"the past is allowed":              {"0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"},
		"the last instant is allowed":      {"9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"},
		"a zone may lead out of year zero": {"0000-12-31T23:30:00-01:00", "0001-01-01T00:30:00.000000Z"},
		"a date is its first instant":      {"2026-12-24", "2026-12-24T00:00:00.000000Z"},
		"null clears":                      {nil, nil},
	} {
		t.Run("renewal date: "+name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account("free", 0)
			s.put("/user/"+id+"/tier", m{"tier": "free", "renewal_date": "2030-01-01T00:00:00.000000Z"}).want(http.StatusOK)
			want := m{"subscription_renewal_date": c.want}
			has(t, s.put("/user/"+id+"/tier", m{"tier": "free", "renewal_date": c.sent}).want(http.StatusOK), want)
			has(t, s.get("/user/"+id).want(http.StatusOK), want)
			has(t, s.status(id), want)
			has(t, s.put("/user/"+id+"/tier", m{"tier": "free"}).want(http.StatusOK), m{"subscription_renewal_date": nil})
		})
	}
}

func TestKey_CountsOnce(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	replayed := func(t *testing.T, r response, want bool) m {
		t.Helper()
		body := r.want(http.StatusOK)
		if got := r.Header.Values("Idempotency-Replayed"); want != slices.Equal(got, []string{"true"}) || !want && got != nil {
			t.Errorf("Idempotency-Replayed: %q, replayed: %v", got, want)
		}
		return body
	}
	for name, call := range map[string]func(*service, string, int, ...string) response{
		"consume": (*service).consume, "add": (*service).add,
	} {
		t.Run(name+" again is the first answer, with the other columns of now", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account("tester", 10)
			first := replayed(t, call(s, id, 7, "key"), false)
			s.consume(id, 100).want(http.StatusOK)
			s.put("/user/"+id+"/tier", m{"tier": "basic"}).want(http.StatusOK)
			now, ledger := s.get("/user/"+id).want(http.StatusOK), s.kinds(id)
			again := replayed(t, call(s, id, 7, "key"), true)
			has(t, again, m{
				"entry_id": first["entry_id"], "tokens_remaining": first["tokens_remaining"],
				"tokens_used_this_month": first["tokens_used_this_month"], "subscription_tier": "basic",
			})
			has(t, s.get("/user/"+id).want(http.StatusOK), now)
			if got := s.kinds(id); got != ledger {
				t.Errorf("ledger: %s, before: %s", got, ledger)
			}
		})
		t.Run(name+" of another amount under the key is refused", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account("tester", 10)
			call(s, id, 7, "key").want(http.StatusOK)
			before := s.kinds(id)
			call(s, id, 8, "key").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
			if got := s.kinds(id); got != before {
				t.Errorf("ledger: %s, before: %s", got, before)
			}
		})
		t.Run(name+" under a key of another account counts", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			for range 2 {
				replayed(t, call(s, s.account("tester", 10), 7, "shared"), false)
			}
		})
	}
	t.Run("an empty key is none", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		for range 2 { // not by do: no document can describe an empty header
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/user/"+id+"/consume-tokens", strings.NewReader(`{}`))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Idempotency-Key", "")
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			replayed(t, response{t, w.Code, w.Header(), w.Body.Bytes()}, false)
		}
		has(t, s.entries(id)[0], m{"balance_after": 998, "idempotency_key": nil})
	})
	t.Run("another call under the key is refused", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		s.consume(id, 7, "consumed").want(http.StatusOK)
		s.add(id, 7, "consumed").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		s.add(id, 7, "added").want(http.StatusOK)
		s.consume(id, 7, "added").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		tokens(t, s.get("/user/"+id).want(http.StatusOK), 1000, 7)
	})
	t.Run("metadata makes no other command", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		path := "/user/" + id + "/consume-tokens"
		first := replayed(t, s.keyed(path, m{"metadata": m{"try": "1"}}, "key"), false)
		for _, body := range []m{{}, {"metadata": m{"try": "2"}}} {
			has(t, replayed(t, s.keyed(path, body, "key"), true), first)
		}
		// What is left out and what is said are two commands.
		s.keyed(path, m{"tokens_to_consume": 1}, "key").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		has(t, s.entries(id)[0], m{"metadata": m{"try": "1"}, "idempotency_key": "key"})
	})
	t.Run("a refused command may be sent again after a top-up", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("free", 0)
		for range 2 {
			s.consume(id, 5, "key").wantProblem(http.StatusPaymentRequired, "insufficient_tokens")
		}
		s.add(id, 8).want(http.StatusOK)
		tokens(t, replayed(t, s.consume(id, 5, "key"), false), 3, 5)
		tokens(t, replayed(t, s.consume(id, 5, "key"), true), 3, 5)
	})
	t.Run("the first answer is found before any refusal", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("free", 0)
		added := s.add(id, 2147483647, "added").want(http.StatusOK)
		first := s.consume(id, 2147483647, "key").want(http.StatusOK)
		has(t, replayed(t, s.consume(id, 2147483647, "key"), true), m{"entry_id": first["entry_id"], "tokens_remaining": 0}) // before 402
		has(t, replayed(t, s.add(id, 2147483647, "added"), true), m{"entry_id": added["entry_id"]})                          // before 409
		exec(t, db, `UPDATE viralpilot.userdata SET is_active = false WHERE cognito_user_id = $1`, id)
		has(t, replayed(t, s.consume(id, 2147483647, "key"), true), m{"is_active": false}) // before 403
		s.consume(id, 1, "key").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		s.put("/user/"+id+"/tier", m{"tier": "admin"}).want(http.StatusOK)
		has(t, replayed(t, s.consume(id, 2147483647, "key"), true), m{"entry_id": first["entry_id"], "subscription_tier": "admin"})
	})
	for name, key := range map[string]string{
		"255 characters": strings.Repeat("k", 255), "every printable character": "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~ x",
	} {
		t.Run("a key of "+name+" is kept as it is", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account("tester", 0)
			s.consume(id, 1, key).want(http.StatusOK)
			replayed(t, s.consume(id, 1, key), true)
			has(t, s.entries(id)[0], m{"idempotency_key": key})
		})
	}
}

func TestMonth_BeginsWithTheFirstTouch(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	const reset = "2026-12-01T00:00:00.000000Z"
	half := func() string { // R 705 with 5 top-ups, U 300
		id := s.account("tester", 5)
		s.consume(id, 300).want(http.StatusOK)
		return id
	}
	noReset := func(t *testing.T, s *service, id string) {
		t.Helper()
		has(t, s.status(id), m{"tokens_remaining": 705, "tokens_used_this_month": 300, "next_reset_at": reset})
	}
	type check = func(t *testing.T, s *service, id string)
	once := func(call check) check {
		return func(t *testing.T, s *service, id string) {
			call(t, s, id)
			has(t, s.get("/user/"+id).want(http.StatusOK), m{"last_token_reset_date": reset})
			if got := strings.Count(s.kinds(id), "monthly_reset"); got != 1 {
				t.Errorf("%d resets: %s", got, s.kinds(id))
			}
		}
	}
	cases := map[string]struct {
		id   string
		then check
	}{
		"a status shows the new month": {half(), once(func(t *testing.T, s *service, id string) {
			has(t, s.status(id), m{"tokens_remaining": 1005, "tokens_used_this_month": 0, "top_up_tokens": 5, "next_reset_at": "2027-01-01T00:00:00.000000Z"})
			has(t, s.entries(id)[0], m{"kind": "monthly_reset", "amount": 300, "balance_after": 1005, "used_after": 0, "created_at": reset})
		})},
		"a read shows the new month": {half(), once(func(t *testing.T, s *service, id string) {
			tokens(t, s.get("/user/"+id).want(http.StatusOK), 1005, 0)
		})},
		"the ledger shows the reset": {half(), once(func(t *testing.T, s *service, id string) {
			has(t, s.entries(id)[0], m{"kind": "monthly_reset"})
		})},
		"a consume spends the new month's tokens": {half(), once(func(t *testing.T, s *service, id string) {
			tokens(t, s.consume(id, 1001).want(http.StatusOK), 4, 1001)
		})},
		"a consume that is refused keeps the reset": {half(), once(func(t *testing.T, s *service, id string) {
			has(t, s.consume(id, 1006).wantProblem(http.StatusPaymentRequired, "insufficient_tokens"), m{"tokens_remaining": 1005, "next_reset_at": "2027-01-01T00:00:00.000000Z"})
			row(t, db, id, 1005, 0)
		})},
		"a call that no account could take leaves it to the next": {half(), once(func(t *testing.T, s *service, id string) {
			before := snapshot(t, db, id)
			s.put("/user/"+id+"/tier", m{"tier": "gold"}).wantProblem(http.StatusBadRequest, "invalid_tier")
			for _, c := range calls(id) {
				s.do(request{c.method, c.path, nil, `{"nonsense":1}`})
				s.do(request{c.method, c.path, nil, `{`})
				s.do(request{c.method, c.path, http.Header{"Content-Type": {"text/plain"}}, `{}`})
				s.do(request{c.method, c.path, http.Header{"Idempotency-Key": {"ü"}}, `{` + c.members + `}`})
				s.do(request{c.method, c.path + "?x=1", nil, `{` + c.members + `}`})
			}
			for _, below := range []string{"", "/status", "/ledger", "/usage", "/reservations"} {
				s.get("/user/"+id+below+"?x=1").wantProblem(http.StatusUnprocessableEntity, "validation_failed")
			}
			s.delete(id, "?x=1").wantProblem(http.StatusUnprocessableEntity, "validation_failed")
			if after := snapshot(t, db, id); after != before {
				t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
			}
		})},
		"a deactivated account is reset all the same": {half(), once(func(t *testing.T, s *service, id string) {
			exec(t, db, `UPDATE viralpilot.userdata SET is_active = false WHERE cognito_user_id = $1`, id)
			s.consume(id, 1).wantProblem(http.StatusForbidden, "user_inactive")
			row(t, db, id, 1005, 0)
		})},
		"many at once reset once": {half(), once(func(t *testing.T, s *service, id string) {
			var all sync.WaitGroup
			for range 16 {
				for _, r := range []request{{http.MethodPost, "/user/" + id + "/consume-tokens", nil, m{}}, {Method: http.MethodGet, Path: "/user/" + id + "/status"}} {
					all.Go(func() {
						if got := s.do(r); got.Status != http.StatusOK {
							t.Errorf("%s %s: status %d, %s", r.Method, r.Path, got.Status, got.Body)
						}
					})
				}
			}
			all.Wait()
			tokens(t, s.get("/user/"+id).want(http.StatusOK), 989, 16)
		})},
		"a date of last reset that is missing means due": {half(), func(t *testing.T, s *service, id string) {
			exec(t, db, `UPDATE viralpilot.userdata SET last_token_reset_date = NULL WHERE cognito_user_id = $1`, id)
			tokens(t, s.get("/user/"+id).want(http.StatusOK), 1005, 0)
		}},
	}
	quiet := s.account("free", 5)
	replay := half()
	first := s.consume(replay, 5, "last month").want(http.StatusOK)

	s.clock.Set(time.Date(2026, 11, 30, 23, 59, 59, 999_999_999, time.UTC))
	noReset(t, s, cases["a status shows the new month"].id)
	s.clock.Set(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC))
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.then(t, s.in(t), c.id)
		})
	}
	t.Run("an account with nothing to reset is left alone by reads", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		tokens(t, s.get("/user/"+quiet).want(http.StatusOK), 5, 0)
		if got := s.kinds(quiet); got != "top_up +5" {
			t.Errorf("ledger: %s", got)
		}
		s.consume(quiet, 5).want(http.StatusOK)
		if got := s.kinds(quiet); got != "top_up +5, monthly_reset +0, consume -5" {
			t.Errorf("ledger: %s", got)
		}
	})
	t.Run("a key of the last month is replayed with the counters of then", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		has(t, s.consume(replay, 5, "last month").want(http.StatusOK), m{
			"entry_id": first["entry_id"], "tokens_remaining": 700, "tokens_used_this_month": 305, "last_token_reset_date": reset,
		})
		tokens(t, s.get("/user/"+replay).want(http.StatusOK), 1005, 0)
	})
}

// row fails the test unless the counters in the database are these.
func row(t *testing.T, db *pgxpool.Pool, id string, remaining, used int) {
	t.Helper()
	var r, u int
	if err := db.QueryRow(context.WithoutCancel(t.Context()),
		`SELECT tokens_remaining, tokens_used_this_month FROM viralpilot.userdata WHERE cognito_user_id = $1`, id).Scan(&r, &u); err != nil {
		t.Fatal(err)
	}
	if r != remaining || u != used {
		t.Errorf("the row has R %d U %d, want R %d U %d", r, u, remaining, used)
	}
}

func TestForeignRows_AreShownAndAdopted(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	// Columns that are not named have the table's defaults; last_token_reset_date is NULL then, which means due.
	insert := func(t *testing.T, columns, values string) string {
		id := fmt.Sprintf("row-%d", accounts.Add(1))
		exec(t, db, `INSERT INTO viralpilot.userdata (cognito_user_id, `+columns+`) VALUES ($1, `+values+`)`, id)
		return id
	}
	const now = `, '2026-11-20 00:00'`
	for name, c := range map[string]struct {
		columns, values string
		shown           m
		then            string // the ledger after a top-up of 1
	}{
		"nothing but an id is a free account": {"username", "NULL", m{"subscription_tier": "free", "tokens_remaining": 0}, "monthly_reset +0, top_up +1"},
		"a balance over the allowance is top-ups": {
			"subscription_tier, tokens_remaining, tokens_used_this_month, last_token_reset_date", "'tester', 1200, 30" + now,
			m{"tokens_remaining": 1200, "tokens_used_this_month": 30, "top_up_tokens": 200},
			"opening +1200, top_up +1",
		},
		"a balance within the allowance has none": {
			"subscription_tier, tokens_remaining, tokens_used_this_month, last_token_reset_date", "'tester', 400, 600" + now,
			m{"tokens_remaining": 400, "top_up_tokens": 0},
			"opening +400, top_up +1",
		},
		"an overdrawn balance is none": {
			"subscription_tier, tokens_remaining, tokens_used_this_month, last_token_reset_date", "'tester', -615, 1615" + now,
			m{"tokens_remaining": 0, "tokens_used_this_month": 1615, "reason": "insufficient_tokens"},
			"opening +0, top_up +1",
		},
		"counters that do not fit are cut": {
			"subscription_tier, tokens_remaining, tokens_used_this_month, last_token_reset_date", "'free', 2147483640, 2147483647" + now,
			m{"tokens_remaining": 2147483640, "tokens_used_this_month": 7, "top_up_tokens": 2147483640},
			"",
		},
		"an old month is reset after the opening": {
			"subscription_tier, tokens_remaining, tokens_used_this_month, last_token_reset_date", "'tester', 1100, 50, '2026-03-01'",
			m{"tokens_remaining": 1100, "tokens_used_this_month": 0, "top_up_tokens": 100},
			"opening +1100, monthly_reset +0, top_up +1",
		},
		"an unknown tier is shown and grants nothing": {
			"subscription_tier, tokens_remaining, tokens_used_this_month, last_token_reset_date", "'gold', 8, 1, '2026-03-01'",
			m{"subscription_tier": "gold", "tier_name": "gold", "unlimited": false, "tokens_remaining": 8, "top_up_tokens": 8, "can_make_request": true},
			"opening +8, monthly_reset +0, top_up +1",
		},
		"an empty tier is shown": {"subscription_tier", "''", m{"subscription_tier": "", "reason": "insufficient_tokens"}, "monthly_reset +0, top_up +1"},
		"a reset in the future is one of this month": {
			"subscription_tier, tokens_remaining, last_token_reset_date", "'tester', 10, '2027-05-01'",
			m{"tokens_remaining": 10, "next_reset_at": "2026-12-01T00:00:00.000000Z"},
			"opening +10, top_up +1",
		},
		"odd dates are shown": {
			"subscription_renewal_date, created_at, updated_at, last_token_reset_date", "'0001-01-01', '1970-01-01', '9999-12-31 23:59:59.999999'" + now,
			m{"subscription_renewal_date": "0001-01-01T00:00:00.000000Z"},
			"top_up +1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := insert(t, c.columns, c.values)
			shape(t, s.get("/user/"+id).want(http.StatusOK), userFields)
			has(t, s.status(id), c.shown)
			if c.then == "" {
				s.add(id, 1).wantProblem(http.StatusConflict, "balance_overflow")
				return
			}
			s.add(id, 1).want(http.StatusOK)
			if got := s.kinds(id); got != c.then {
				t.Errorf("ledger: %s, want %s", got, c.then)
			}
		})
	}
	t.Run("a consume adopts", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := insert(t, "subscription_tier, tokens_remaining, last_token_reset_date", "'tester', 1010"+now)
		tokens(t, s.consume(id, 1005).want(http.StatusOK), 5, 1005)
		has(t, s.status(id), m{"top_up_tokens": 5})
		if got := s.kinds(id); got != "opening +1010, consume -1005" {
			t.Errorf("ledger: %s", got)
		}
	})
	t.Run("a tier change away from an unknown tier adopts", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := insert(t, "subscription_tier, tokens_remaining, last_token_reset_date", "'gold', 10"+now)
		tokens(t, s.put("/user/"+id+"/tier", m{"tier": "tester"}).want(http.StatusOK), 1010, 0)
		s.put("/user/"+id+"/tier", m{"tier": "gold"}).wantProblem(http.StatusBadRequest, "invalid_tier")
	})
	t.Run("reads and refused commands adopt nothing", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := insert(t, "subscription_tier, tokens_remaining, last_token_reset_date", "'tester', 10"+now)
		s.status(id)
		s.get("/user/" + id).want(http.StatusOK)
		s.consume(id, 11).wantProblem(http.StatusPaymentRequired, "insufficient_tokens")
		s.put("/user/"+id+"/tier", m{"tier": "tester"}).want(http.StatusOK)
		if got := s.kinds(id); got != "" {
			t.Errorf("ledger: %s", got)
		}
	})
}
