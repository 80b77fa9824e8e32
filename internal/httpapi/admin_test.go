package httpapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

func (s *service) patch(id string, body any) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodPatch, Path: "/user/" + id, Body: body})
}

func (s *service) delete(id, query string) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodDelete, Path: "/user/" + id + query})
}

func TestPatch_ChangesWhatItNames(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	active := func(from, to any) m { return m{"is_active": m{"from": from, "to": to}} }
	for name, c := range map[string]struct {
		body    any
		changes m // of the entry; nil where there is none
		want    m
	}{
		"what is absent stays":               {m{}, nil, m{"username": "Ann", "email": "ann@example.com", "subscription_status": "active", "is_active": true}},
		"a name is set":                      {m{"username": "Bea Ö"}, m{"username": m{}}, m{"username": "Bea Ö", "email": "ann@example.com"}},
		"null clears":                        {m{"username": nil, "email": nil}, m{"email": m{}, "username": m{}}, m{"username": nil, "email": nil}},
		"an empty text clears":               {m{"username": "", "email": ""}, m{"email": m{}, "username": m{}}, m{"username": nil, "email": nil}},
		"a status is set":                    {m{"subscription_status": "past_due"}, m{"subscription_status": m{"from": "active", "to": "past_due"}}, m{"subscription_status": "past_due", "is_active": true}},
		"an account is deactivated":          {m{"is_active": false, "metadata": m{"ticket": "4711"}}, active(true, false), m{"is_active": false}},
		"the same again changes nothing":     {m{"username": "Ann", "email": "ann@example.com", "subscription_status": "active", "is_active": true}, nil, m{"username": "Ann"}},
		"only what is new counts as changed": {m{"username": "Ann", "email": "new@example.com"}, m{"email": m{}}, m{"email": "new@example.com"}},
	} {
		t.Run(name, func(t *testing.T) { // one after the other: each looks at all that is stored
			s := s.in(t)
			id := s.account("tester", 5)
			s.patch(id, m{"username": "Ann", "email": "ann@example.com"}).want(http.StatusOK)
			n, before := len(s.entries(id)), snapshot(t, db)
			s.later(time.Second)
			got := s.patch(id, c.body).want(http.StatusOK)
			shape(t, got, userFields)
			has(t, got, c.want)
			tokens(t, got, 1005, 0)
			has(t, s.get("/user/"+id).want(http.StatusOK), got)
			entries := s.entries(id)
			if c.changes == nil {
				if snapshot(t, db) != before {
					t.Error("nothing changed, and something was written")
				}
				return
			}
			if len(entries) != n+1 {
				t.Fatalf("%d entries more", len(entries)-n)
			}
			has(t, entries[0], m{"kind": "profile_change", "amount": 0, "balance_after": 1005, "changes": c.changes, "metadata": c.body.(m)["metadata"]})
			has(t, got, m{"updated_at": s.clock.Now().Format("2006-01-02T15:04:05.000000Z")})
		})
	}
	t.Run("an unknown user is user_not_found, whatever the body", func(t *testing.T) {
		s := s.in(t)
		s.patch("nobody", m{"username": "Ann"}).wantProblem(http.StatusNotFound, "user_not_found")
		s.patch("nobody", "garbage").wantProblem(http.StatusNotFound, "user_not_found")
	})
}

func TestDelete_Deactivates(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 5)
	held, settled := s.reserve(id, 100), s.reserve(id, 50)
	s.settle(settled, 20).want(http.StatusOK)
	s.delete(id, "").want(http.StatusNoContent)

	has(t, s.get(held).want(http.StatusOK), m{"status": "expired", "tokens_returned": 100})
	has(t, s.status(id), m{
		"can_make_request": false, "reason": "user_inactive", "tokens_reserved": 0, "tokens_remaining": 985, "tokens_used_this_month": 20,
	})
	kinds := "tier_change +1000, top_up +5, reserve -100, reserve -50, settle +30, expire +100, profile_change +0"
	if got := s.kinds(id); got != kinds {
		t.Errorf("ledger: %s", got)
	}
	has(t, s.entries(id)[0], m{"metadata": nil, "changes": m{"is_active": m{"from": true, "to": false}}})
	s.consume(id, 1).wantProblem(http.StatusForbidden, "user_inactive")
	s.post("/user/"+id+"/reservations", m{"tokens": 1}).wantProblem(http.StatusForbidden, "user_inactive")
	has(t, s.get("/user/"+id).want(http.StatusOK), m{"is_active": false})
	if found := s.users("?is_active=false&q=" + id); found != id {
		t.Errorf("the list has %q", found)
	}

	for _, query := range []string{"", "?erase=false"} { // again is as good
		s.delete(id, query).want(http.StatusNoContent)
	}
	if got := s.kinds(id); got != kinds {
		t.Errorf("ledger after a second time: %s", got)
	}
	for _, query := range []string{"?erase", "?erase=", "?erase=1", "?erase=True", "?erase=true&erase=true"} {
		s.delete(id, query).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		s.delete("nobody", query).wantProblem(http.StatusNotFound, "user_not_found")
	}
	s.delete("nobody", "").wantProblem(http.StatusNotFound, "user_not_found")
	has(t, s.settle(held, 10).want(http.StatusOK), m{"late": true, "tokens_charged": 10}) // that call was on its way
	s.patch(id, m{"is_active": true}).want(http.StatusOK)
	tokens(t, s.consume(id, 5).want(http.StatusOK), 970, 35)
}

// dump is the content of every table of the database.
func dump(t *testing.T, db *pgxpool.Pool) string {
	t.Helper()
	var text string
	err := db.QueryRow(t.Context(), `SELECT string_agg(query_to_xml(format('SELECT * FROM %I.%I', schemaname, tablename), true, false, '')::text, '')
		FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')`).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestErase_LeavesNoTrace(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	const id = "person-4711"
	traces := []string{id, "Ann Traceable", "ann.traceable@example.com", "key-of-ann", "note-of-ann"}
	meta := m{"note": "note-of-ann"}
	s.post("/user", m{"cognito_user_id": id, "username": traces[1], "email": traces[2]}).want(http.StatusCreated)
	s.put("/user/"+id+"/tier", m{"tier": "tester"}).want(http.StatusOK)
	s.keyed("/user/"+id+"/add-tokens", m{"tokens_to_add": 5, "metadata": meta}, "key-of-ann-1").want(http.StatusOK)
	charge := s.keyed("/user/"+id+"/consume-tokens", m{"tokens_to_consume": 7, "metadata": meta}, "key-of-ann-2").want(http.StatusOK)
	s.reserve(id, 100, m{"metadata": meta})
	s.post(s.reserve(id, 50)+"/settle", m{"tokens_used": 20, "metadata": meta}).want(http.StatusOK)
	s.keyed("/user/"+id+"/refunds", m{"entry_id": charge["entry_id"], "tokens": 3, "metadata": meta}, "key-of-ann-3").want(http.StatusOK)
	other := s.account("tester", 0)
	s.consume(other, 1, "key").want(http.StatusOK)
	untouched := s.entries(other)
	kinds := s.kinds(id)
	for _, trace := range traces {
		if !strings.Contains(dump(t, db), trace) {
			t.Fatalf("%s is not there to begin with", trace)
		}
	}

	keyed := request{Method: http.MethodDelete, Path: "/user/" + id + "?erase=true", Header: http.Header{"Idempotency-Key": {"key"}}}
	s.do(keyed).wantProblem(http.StatusUnprocessableEntity, "validation_failed") // it would not be kept
	s.delete(id, "?erase=true").want(http.StatusNoContent)

	stored := dump(t, db)
	for _, trace := range traces {
		if strings.Contains(stored, trace) {
			t.Errorf("%s is still there", trace)
		}
	}
	if listed := s.users("?q=erased-"); listed != "" {
		t.Errorf("the list has %s", listed)
	}
	var pseudonym, ledger string
	err := db.QueryRow(t.Context(), `SELECT u.cognito_user_id, string_agg(kind || to_char(amount, 'SG999999'), ',' ORDER BY entry_id)
		FROM viralpilot.userdata u JOIN viralpilot.ledger USING (cognito_user_id)
		WHERE starts_with(u.cognito_user_id, 'erased-') AND tokens_remaining = 981 AND tokens_used_this_month = 24
		GROUP BY 1`).Scan(&pseudonym, &ledger)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(strings.Split(ledger, ",")); got != len(strings.Split(kinds, ", "))+3 { // an expiry, and that it is inactive and nameless
		t.Errorf("the pseudonym has the ledger %s, and the account had %s", ledger, kinds)
	}
	for path, method := range map[string]string{"": http.MethodGet, "/status": http.MethodGet, "/status?create=true": http.MethodGet, "/ledger": http.MethodGet, "/usage": http.MethodGet, "/reservations": http.MethodGet, "?erase=true": http.MethodDelete} {
		s.do(request{Method: method, Path: "/user/" + pseudonym + path}).wantProblem(http.StatusNotFound, "user_not_found")
	}
	for path, body := range map[string]m{"/consume-tokens": {}, "/add-tokens": {"tokens_to_add": 1}, "/reservations": {"tokens": 1}, "/refunds": {"entry_id": charge["entry_id"]}} {
		s.post("/user/"+pseudonym+path, body).wantProblem(http.StatusNotFound, "user_not_found")
	}
	s.put("/user/"+pseudonym, m{}).wantProblem(http.StatusNotFound, "user_not_found")
	s.put("/user/"+pseudonym+"/tier", m{"tier": "free"}).wantProblem(http.StatusNotFound, "user_not_found")
	s.patch(pseudonym, m{}).wantProblem(http.StatusNotFound, "user_not_found")
	sum, err := s.options.Users.Rules.Verify(t.Context(), s.store, time.Time{}, s.clock.Now(), func(d user.Discrepancy) { t.Errorf("%s: %s", d.AccountID, d.Problem) })
	if err != nil || sum.Accounts != 2 {
		t.Errorf("%+v, %v", sum, err)
	}
	if got := s.entries(other); fmt.Sprint(got) != fmt.Sprint(untouched) {
		t.Errorf("another ledger has changed: %v", got)
	}

	s.get("/user/"+id+"/status").wantProblem(http.StatusNotFound, "user_not_found")
	s.get("/user/"+id+"/ledger").wantProblem(http.StatusNotFound, "user_not_found")
	s.delete(id, "?erase=true").wantProblem(http.StatusNotFound, "user_not_found")
	s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated) // somebody new
	if got := s.kinds(id); got != "" {
		t.Errorf("the ledger of a new account: %s", got)
	}
	s.delete(other, "").want(http.StatusNoContent)
	s.delete(other, "?erase=true").want(http.StatusNoContent)
	s.get("/user/"+other+"/status").wantProblem(http.StatusNotFound, "user_not_found")
}

// users are the ids of a page of all users.
func (s *service) users(query string) string {
	s.t.Helper()
	ids, _ := s.usersPage(query)
	return ids
}

func (s *service) usersPage(query string) (ids, next string) {
	s.t.Helper()
	body := s.get("/users" + query).want(http.StatusOK)
	fields := "next_cursor users"
	if _, searched := body["searched"]; searched {
		fields = "next_cursor searched users"
	}
	shape(s.t, body, fields)
	var list []string
	for _, u := range body["users"].([]any) {
		shape(s.t, u.(m), userFields)
		list = append(list, u.(m)["cognito_user_id"].(string))
	}
	next, _ = body["next_cursor"].(string)
	return strings.Join(list, " "), next
}

func TestUsers_AreFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	if found, next := s.usersPage(""); found != "" || next != "" {
		t.Errorf("nobody is there, and %q is found, then %q", found, next)
	}
	for _, u := range []m{
		{"cognito_user_id": "a1", "username": "Zoe", "email": "Zoe@Example.com"},
		{"cognito_user_id": "a2", "username": "zoe", "email": "other@example.com"},
		{"cognito_user_id": "b%1", "username": "100%"},
		{"cognito_user_id": "b_2", "username": "under_score", "email": "a_b@example.com"},
		{"cognito_user_id": `b\3`, "username": `back\slash`},
		{"cognito_user_id": "bx4", "username": "100 more", "email": "axb@example.com"},
		{"cognito_user_id": "zoe-id", "username": nil, "email": nil},
		{"cognito_user_id": "émile", "username": "Ünal", "email": "ünal@example.com"},
	} {
		s.post("/user", u).want(http.StatusCreated)
	}
	s.put("/user/a1/tier", m{"tier": "tester", "renewal_date": "2027-01-01"}).want(http.StatusOK)
	s.put("/user/a2/tier", m{"tier": "tester"}).want(http.StatusOK)
	s.patch("a2", m{"subscription_status": "past_due"}).want(http.StatusOK)
	s.delete("bx4", "").want(http.StatusNoContent)
	all := s.users("")
	if n := len(strings.Fields(all)); n != 8 {
		t.Fatalf("all: %q", all)
	}
	for name, c := range map[string]struct{ query, want string }{
		"a tier":                           {"tier=tester", "a1 a2"},
		"a tier that nobody has":           {"tier=gold", ""},
		"a status":                         {"subscription_status=past_due", "a2"},
		"those who are deactivated":        {"is_active=false", "bx4"},
		"filters together":                 {"tier=tester&subscription_status=active&is_active=true", "a1"},
		"a filter and a search":            {"tier=tester&q=zoe", "a1 a2"},
		"an id, a name and an address":     {"q=zoe", "a1 a2 zoe-id"},
		"an address whatever the case":     {"q=ZOE@EXAMPLE", "a1"},
		"a name in its case":               {"q=Zoe", "a1"},
		"nothing inside for two letters":   {"q=oe", ""},
		"three letters inside of a text":   {"q=e-i", "zoe-id"},
		"the middle of a name":             {"q=nder_sc", "b_2"},
		"the end of an address":            {"q=R%40EXAMPLE.COM", "a2"},
		"a percent sign inside":            {"q=" + url.QueryEscape("00%"), "b%1"},
		"who renews before a day":          {"renews_before=2027-01-02", "a1"},
		"nobody who renews later":          {"renews_before=2027-01-01", ""},
		"who renews before an instant":     {"renews_before=2027-01-01T00:00:01Z", "a1"},
		"a low balance":                    {"low_balance=true&tier=free", "b%1 b\\3 b_2 bx4 zoe-id émile"},
		"no low balance":                   {"low_balance=false", "a1 a2"},
		"low balances among others":        {"low_balance=true&tier=tester", ""},
		"a whole id":                       {"q=b_2", "b_2"},
		"a percent sign as it is":          {"q=" + url.QueryEscape("b%"), "b%1"},
		"a percent sign in a name":         {"q=" + url.QueryEscape("100%"), "b%1"},
		"an underscore as it is":           {"q=b_", "b_2"},
		"an underscore in an address":      {"q=a_b", "b_2"},
		"a backslash as it is":             {"q=" + url.QueryEscape(`b\`), `b\3`},
		"a backslash in a name":            {"q=" + url.QueryEscape(`back\s`), `b\3`},
		"a percent sign alone finds none":  {"q=%25", ""},
		"an underscore alone finds none":   {"q=_", ""},
		"letters with marks":               {"q=" + url.QueryEscape("ÜNAL@"), "émile"},
		"the last character that there is": {"q=%F4%8F%BF%BF", ""},
		"quotes are nothing special":       {"q=" + url.QueryEscape(`' OR 1=1 --`), ""},
		"an empty search selects all":      {"q=&tier=&subscription_status=", all},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := s.in(t).users("?" + c.query); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	for _, query := range []string{
		"limit=0", "limit=201", "limit=x", "is_active=", "is_active=1", "is_active=TRUE", "q=%00", "q=%ff", "tier=a%0Ab", "subscription_status=%7F",
		"q=" + strings.Repeat("a", 256), "q=a&q=b", "tier=a&tier=b", "cursor=", "cursor=*", "cursor=AA", "cursor=YTE=", "%zz", "order=email", "limti=5", "Limit=5",
		"low_balance=yes", "low_balance=", "renews_before=soon", "renews_before=", "renews_before=0001-01-01T00:00:00Z",
	} {
		t.Run(query[:min(len(query), 20)]+" is refused", func(t *testing.T) {
			t.Parallel()
			s.in(t).get("/users?"+query).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		})
	}
}

func TestUsers_SayWhereTheySearched(t *testing.T) {
	t.Parallel()
	s := start(t)
	for query, want := range map[string]any{"": nil, "?q=": nil, "?q=ab": "prefix", "?q=abc": "anywhere", "?q=" + url.QueryEscape("üöä"): "anywhere"} {
		if got := s.get("/users" + query).want(http.StatusOK)["searched"]; got != want {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}

func TestUsers_WithALowBalanceComeInPages(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	// One in 500 runs low; of 6,000 looks at 5,000 are made for one page.
	if _, err := db.Exec(t.Context(), `INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, tokens_remaining, last_token_reset_date)
		SELECT 'u' || lpad(n::text, 4, '0'), 'tester', CASE WHEN n % 500 = 0 THEN 3 ELSE 900 END, '2026-11-02' FROM generate_series(1, 6000) n`); err != nil {
		t.Fatal(err)
	}
	for query, pages := range map[string]int{"?low_balance=true": 2, "?low_balance=true&limit=3": 4} {
		var found []string
		n := 0
		for cursor := ""; n == 0 || cursor != ""; n++ {
			page, next := s.usersPage(query + cursor)
			found = append(found, strings.Fields(page)...)
			if cursor = ""; next != "" {
				cursor = "&cursor=" + next
			}
		}
		if got := strings.Join(found, " "); got != "u0500 u1000 u1500 u2000 u2500 u3000 u3500 u4000 u4500 u5000 u5500 u6000" || n != pages {
			t.Errorf("%s: %q on %d pages, want %d", query, got, n, pages)
		}
	}
}

func TestUsers_ComeInPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	create := func(id, name string) {
		t.Helper()
		s.post("/user", m{"cognito_user_id": id, "username": name}).want(http.StatusCreated)
	}
	for i := range 9 {
		create(fmt.Sprintf("u%d", i), fmt.Sprintf("name%d", 9-i))
	}
	rest := func(query, pages, next string) string {
		t.Helper()
		for next != "" {
			var page string
			page, next = s.usersPage(query + "&cursor=" + next)
			pages += " | " + page
		}
		return pages
	}
	first, next := s.usersPage("?limit=4")
	create("a", "name") // before all that was read
	create("u9", "name")
	if got := rest("?limit=4", first, next); got != "u0 u1 u2 u3 | u4 u5 u6 u7 | u8 u9" {
		t.Errorf("pages while users come: %s", got)
	}
	for query, want := range map[string]string{
		"?limit=5&q=name":             "a u0 u1 u2 u3 | u4 u5 u6 u7 u8 | u9",
		"?limit=5&q=u":                "u0 u1 u2 u3 u4 | u5 u6 u7 u8 u9",
		"?limit=11":                   "a u0 u1 u2 u3 u4 u5 u6 u7 u8 u9",
		"?limit=10&is_active=true":    "a u0 u1 u2 u3 u4 u5 u6 u7 u8 | u9",
		"?limit=200&tier=free&q=name": "a u0 u1 u2 u3 u4 u5 u6 u7 u8 u9",
	} {
		first, next := s.usersPage(query)
		if got := rest(query, first, next); got != want {
			t.Errorf("%s: %s\nwant %s", query, got, want)
		}
	}
}

func TestUsers_OfForeignIDsComeInPages(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	exec(t, db, `INSERT INTO viralpilot.userdata (cognito_user_id) VALUES ('a'), (E'b\tc'), ('d')`)
	first, next := s.usersPage("?limit=2")
	second, none := s.usersPage("?limit=2&cursor=" + next)
	if first != "a b\tc" || second != "d" || none != "" {
		t.Errorf("%q, then %q, then %q", first, second, none)
	}
}

// slowErase is a store on which an erase does not get done.
type slowErase struct{ user.Store }

func (slowErase) MoveErased(context.Context, string) (bool, error) {
	return false, user.ErrDatabaseUnavailable
}

func TestErase_TakesLonger(t *testing.T) {
	t.Parallel()
	s := start(t)
	slow := s.with(t, func(o *httpapi.Options) { o.Users.Store = slowErase{o.Users.Store} })
	id := s.account("tester", 5)
	s.delete(id, "?erase=nonsense").wantProblem(http.StatusUnprocessableEntity, "validation_failed")
	slow.delete(id, "?erase=true").want(http.StatusAccepted)
	slow.delete(id, "?erase=true").want(http.StatusAccepted)
	for _, path := range []string{"", "/status", "/ledger", "/usage", "/reservations"} {
		s.get("/user/"+id+path).wantProblem(http.StatusConflict, "being_erased")
	}
	s.consume(id, 1).wantProblem(http.StatusConflict, "being_erased")
	s.post("/user", m{"cognito_user_id": id}).wantProblem(http.StatusConflict, "being_erased")
	s.put("/user/"+id, m{}).wantProblem(http.StatusConflict, "being_erased")
	s.delete(id, "").wantProblem(http.StatusConflict, "being_erased")
	if listed := s.users(""); listed != "" {
		t.Errorf("the list has %s", listed)
	}
	if err := s.options.Users.FinishErases(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.get("/user/"+id+"/status").wantProblem(http.StatusNotFound, "user_not_found")
}
