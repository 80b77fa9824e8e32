package httpapi_test

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// under is the request with an Idempotency-Key.
func (r request) under(key string) request {
	r.Header = http.Header{"Idempotency-Key": {key}}
	return r
}

// changing is a call that changes something.
type changing struct {
	r request
	// other is another command, which must not run under the same key.
	other  request
	status int
}

// changingCalls has every call that takes a key, for an account on the tier that the calls before it have made ready.
// It returns the account of each, too.
func (s *service) changingCalls(tier string) (calls map[string]changing, ids map[string]string) {
	s.t.Helper()
	calls, ids = map[string]changing{}, map[string]string{}
	add := func(name string, status int, make func(id string) (r, other request)) {
		s.t.Helper()
		id := s.account("tester", 50)
		r, other := make(id)
		calls[name], ids[name] = changing{r, other, status}, id
	}
	to := func(method, path string, body any) request { return request{Method: method, Path: path, Body: body} }
	post := func(path string, body any) request { return to(http.MethodPost, path, body) }
	onTier := func(id string) string {
		s.put("/user/"+id+"/tier", m{"tier": tier}).want(http.StatusOK)
		return "/user/" + id
	}
	for name, call := range map[string]struct{ below, field string }{
		"consume": {"/consume-tokens", "tokens_to_consume"}, "add": {"/add-tokens", "tokens_to_add"}, "reserve": {"/reservations", "tokens"},
	} {
		status := http.StatusOK
		if name == "reserve" {
			status = http.StatusCreated
		}
		add(name, status, func(id string) (r, other request) {
			path := onTier(id) + call.below
			return post(path, m{call.field: 7}), post(path, m{call.field: 8})
		})
	}
	for name, bodies := range map[string][2]any{
		"settle": {m{"tokens_used": 7}, m{"tokens_used": 8}}, "extend": {m{"ttl_seconds": 700}, m{"ttl_seconds": 800}},
	} {
		add(name, http.StatusOK, func(id string) (r, other request) {
			onTier(id)
			path := s.reserve(id, 10) + "/" + name
			return post(path, bodies[0]), post(path, bodies[1])
		})
	}
	add("release", http.StatusOK, func(id string) (r, other request) {
		onTier(id)
		path := s.reserve(id, 10)
		return post(path+"/release", nil), post(path+"/settle", m{"tokens_used": 0})
	})
	add("refund", http.StatusOK, func(id string) (r, other request) {
		entry := s.charge(id, 10)
		path := onTier(id) + "/refunds"
		return post(path, m{"entry_id": entry}), post(path, m{"entry_id": entry, "tokens": 10})
	})
	add("tier", http.StatusOK, func(id string) (r, other request) {
		path := onTier(id) + "/tier"
		return to(http.MethodPut, path, m{"tier": "basic"}), to(http.MethodPut, path, m{"tier": tier})
	})
	add("put", http.StatusOK, func(id string) (r, other request) {
		path := onTier(id)
		return to(http.MethodPut, path, m{"username": "Ann"}), to(http.MethodPut, path, m{"username": nil})
	})
	add("patch", http.StatusOK, func(id string) (r, other request) {
		path := onTier(id)
		return to(http.MethodPatch, path, m{"username": "Ann"}), to(http.MethodPatch, path, m{"username": "Ann", "is_active": true})
	})
	add("delete", http.StatusNoContent, func(id string) (r, other request) {
		path := onTier(id)
		s.reserve(id, 10)
		return to(http.MethodDelete, path, nil), to(http.MethodPatch, path, m{"is_active": false})
	})
	for name, call := range map[string]changing{
		"create":            {post("/user", m{"cognito_user_id": "ID", "username": "Ann"}), post("/user", m{"cognito_user_id": "ID"}), http.StatusCreated},
		"create by PUT":     {to(http.MethodPut, "/user/ID", m{"username": "Ann"}), to(http.MethodPut, "/user/ID", m{}), http.StatusCreated},
		"create by PUT, 2":  {to(http.MethodPut, "/user/ID", m{}), post("/user", m{"cognito_user_id": "ID"}), http.StatusCreated},
		"create by POST, 2": {post("/user", m{"cognito_user_id": "ID"}), to(http.MethodPut, "/user/ID", m{}), http.StatusCreated},
	} {
		id := fmt.Sprintf("keyed-%d", accounts.Add(1))
		for _, r := range []*request{&call.r, &call.other} {
			r.Path = strings.Replace(r.Path, "ID", id, 1)
			if body := r.Body.(m); body["cognito_user_id"] != nil {
				body["cognito_user_id"] = id
			}
		}
		calls[name], ids[name] = call, id
	}
	return calls, ids
}

func TestKey_CountsOnceOverTwoReplicas(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	replicas := []*service{s, s.replica()}
	for _, tier := range []string{"tester", "admin"} {
		calls, ids := s.changingCalls(tier)
		for name, c := range calls {
			t.Run(name+" of an account on "+tier, func(t *testing.T) {
				t.Parallel()
				const key = "the key"
				id, r, other := ids[name], c.r.under(key), c.other.under(key)
				s := s.in(t)
				answers := make([]response, 20)
				var all sync.WaitGroup
				for i := range answers {
					all.Go(func() { answers[i] = replicas[i%2].in(t).do(r) })
				}
				all.Wait()
				first := answers[0].want(c.status)
				replays := 0
				for _, a := range answers {
					switch got := a.want(c.status); {
					case !reflect.DeepEqual(got, first):
						t.Errorf("one answer is %v\nand another %v", got, first)
					case a.Header.Get("Location") != answers[0].Header.Get("Location"):
						t.Errorf("Location %q and %q", a.Header.Get("Location"), answers[0].Header.Get("Location"))
					case slices.Equal(a.Header.Values("Idempotency-Replayed"), []string{"true"}):
						replays++
					}
				}
				if replays != len(answers)-1 {
					t.Errorf("%d answers are marked as replayed", replays)
				}
				keyed := 0
				for _, e := range s.entries(id) {
					if e["idempotency_key"] == key {
						keyed++
						if first["entry_id"] != nil && e["entry_id"] != first["entry_id"] {
							t.Errorf("the answer has entry %v, and the ledger %v", first["entry_id"], e["entry_id"])
						}
					}
				}
				if keyed != 1 {
					t.Errorf("%d entries: %s", keyed, s.kinds(id))
				}

				before := snapshot(t, db, id)
				s.do(other).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
				replicas[1].in(t).do(other).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
				if after := snapshot(t, db, id); after != before {
					t.Errorf("another command under the key has changed something:\n%s\nbefore:\n%s", after, before)
				}

				// The first answer, also once the same command would be refused or cost something.
				s.put("/user/"+id+"/tier", m{"tier": "free"}).want(http.StatusOK)
				s.add(id, 3).want(http.StatusOK)
				s.patch(id, m{"is_active": false}).want(http.StatusOK)
				before = snapshot(t, db, id)
				for _, replica := range replicas {
					again := replica.in(t).do(r)
					got := again.want(c.status)
					if again.Header.Get("Idempotency-Replayed") != "true" {
						t.Errorf("headers %v", again.Header)
					}
					for _, field := range []string{"entry_id", "tokens_remaining", "tokens_used_this_month", "reservation_id", "top_ups_charged", "created_at"} {
						if got[field] != first[field] {
							t.Errorf("%s is %v, and was %v", field, got[field], first[field])
						}
					}
				}
				if after := snapshot(t, db, id); after != before {
					t.Errorf("a retry has changed something:\n%s\nbefore:\n%s", after, before)
				}
			})
		}
	}
}

func TestKey_OfACommandThatChangesNothingIsKept(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 5)
	path := "/user/" + id
	s.patch(id, m{"username": "Ann"}).want(http.StatusOK)
	for i, r := range []request{
		{Method: http.MethodPatch, Path: path, Body: m{}},
		{Method: http.MethodPatch, Path: path, Body: m{"username": "Ann"}},
		{Method: http.MethodPut, Path: path, Body: m{"username": "Ann"}},
		{Method: http.MethodPut, Path: path + "/tier", Body: m{"tier": "tester"}},
		{Method: http.MethodPost, Path: s.reserve(id, 5) + "/settle", Body: m{"tokens_used": 5}},
		{Method: http.MethodPost, Path: s.reserve(id, 5) + "/extend", Body: m{"ttl_seconds": 600}},
		{Method: http.MethodDelete, Path: path},
		{Method: http.MethodDelete, Path: path}, // once more, under another key
	} {
		key := fmt.Sprintf("key %d", i)
		if got := s.do(r.under(key)); got.Status >= 400 || got.Header.Get("Idempotency-Replayed") != "" {
			t.Errorf("%s %s: %d, %v", r.Method, r.Path, got.Status, got.Header)
		}
		has(t, s.entries(id)[0], m{"amount": 0, "tokens_refunded": 0, "idempotency_key": key})
		if got := s.do(r.under(key)); got.Status >= 400 || got.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%s %s again: %d, %v", r.Method, r.Path, got.Status, got.Header)
		}
		s.add(id, 1, key).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
	}
}

func TestKey_IsUnusedAfterARefusal(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, c := range map[string]struct {
		tier   string
		r      request
		status int
		mend   func(s *service, id string)
	}{
		"consume before a top-up": {"free", request{Method: http.MethodPost, Path: "/consume-tokens", Body: m{"tokens_to_consume": 5}}, 402, func(s *service, id string) { s.add(id, 5) }},
		"reserve before a top-up": {"free", request{Method: http.MethodPost, Path: "/reservations", Body: m{"tokens": 5}}, 402, func(s *service, id string) { s.add(id, 5) }},
		"consume while inactive": {"tester", request{Method: http.MethodPost, Path: "/consume-tokens", Body: m{}}, 403, func(s *service, id string) {
			s.patch(id, m{"is_active": true})
		}},
		"add before there is room": {"tester", request{Method: http.MethodPost, Path: "/add-tokens", Body: m{"tokens_to_add": 2147483647}}, 409, func(s *service, id string) {
			s.put("/user/"+id+"/tier", m{"tier": "free"})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account(c.tier, 0)
			if c.status == http.StatusForbidden {
				s.patch(id, m{"is_active": false}).want(http.StatusOK)
			}
			c.r.Path = "/user/" + id + c.r.Path
			for range 2 {
				s.do(c.r.under("key")).want(c.status)
			}
			c.mend(s, id)
			done := s.do(c.r.under("key"))
			again := s.do(c.r.under("key"))
			if done.Status >= 400 || done.Header.Get("Idempotency-Replayed") != "" || again.Header.Get("Idempotency-Replayed") != "true" {
				t.Errorf("%d %v, again %d %v", done.Status, done.Header, again.Status, again.Header)
			}
		})
	}
	t.Run("a key of a refused POST /user serves another command", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		s.keyed("/user", m{"cognito_user_id": id}, "key").wantProblem(http.StatusConflict, "user_exists")
		s.consume(id, 1, "key").want(http.StatusOK)
		s.keyed("/user", m{"cognito_user_id": id}, "key").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
	})
}

func TestKey_IsTakenAsItStands(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, key := range map[string]string{"255 characters": strings.Repeat("k", 255), "blanks": "a  b", "one character": "~"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			calls, ids := s.changingCalls("tester")
			for name, c := range calls {
				s.do(c.r.under(key)).want(c.status)
				if newest := s.entries(ids[name])[0]; newest["idempotency_key"] != key {
					t.Errorf("%s: %v", name, newest)
				}
			}
		})
	}
}

// The ledger of an account whose row was deleted by hand still has its keys.
func TestKey_OfAnAccountThatWasDeletedByHand(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	for first, other := range map[*request]request{
		{Method: http.MethodPost, Path: "/user", Body: m{"cognito_user_id": "u"}}: {
			Method: http.MethodPost, Path: "/user", Body: m{"cognito_user_id": "u", "username": "Eve"},
		},
		{Method: http.MethodPut, Path: "/user/v", Body: m{}}: {Method: http.MethodPut, Path: "/user/v", Body: m{"username": "Eve"}},
	} {
		s.do(first.under("key")).want(http.StatusCreated)
		exec(t, db, `DELETE FROM viralpilot.userdata`)
		s.do(other.under("key")).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		s.do(first.under("key")).want(http.StatusCreated)
	}
}

func TestNewAccount_IsMadeOnceByManyAtOnce(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	replicas := []*service{s, s.replica()}
	for name, c := range map[string]struct {
		call func(s *service, id string, client int) response
		want string // the statuses in order
	}{
		"by POST": {func(s *service, id string, _ int) response { return s.post("/user", m{"cognito_user_id": id}) }, "201 409 409 409 409 409 409 409 409 409"},
		"by PUT": {func(s *service, id string, client int) response {
			return s.put("/user/"+id, m{"username": fmt.Sprint("client ", client)})
		}, "200 200 200 200 200 200 200 200 200 201"},
		"by PUT under keys": {func(s *service, id string, client int) response {
			return s.do(request{Method: http.MethodPut, Path: "/user/" + id, Body: m{"username": "Ann"}}.under(fmt.Sprint("key ", client)))
		}, "200 200 200 200 200 200 200 200 200 201"},
		"by GET": {func(s *service, id string, _ int) response { return s.get("/user/" + id) }, "200 200 200 200 200 200 200 200 200 200"},
		"by GET of the status": {func(s *service, id string, _ int) response {
			return s.get("/user/" + id + "/status?create=true")
		}, "200 200 200 200 200 200 200 200 200 200"},
		"by all of them": {func(s *service, id string, client int) response {
			switch client % 3 {
			case 0:
				return s.put("/user/"+id, m{"email": "ann@example.com"})
			case 1:
				return s.get("/user/" + id)
			}
			return s.get("/user/" + id + "/status?create=true")
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 5 {
				id := fmt.Sprintf("born-%d", accounts.Add(1))
				statuses := make([]int, 10)
				var all sync.WaitGroup
				for client := range statuses {
					all.Go(func() { statuses[client] = c.call(replicas[client%2].in(t), id, client).Status })
				}
				all.Wait()
				slices.Sort(statuses)
				if got := strings.Trim(fmt.Sprint(statuses), "[]"); c.want != "" && got != c.want || slices.Max(statuses) >= 500 {
					t.Errorf("statuses %s", got)
				}
				if got := strings.Count(snapshot(t, db, id), "userdata {"); got != 1 {
					t.Errorf("%d accounts", got)
				}
			}
		})
	}
}

func TestPut_MakesTheAccountOrSetsWhatIsGiven(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	const path = "/user/a%2Fb"
	made := s.put(path, m{"username": "Ann", "email": "ann@example.com"})
	body := made.want(http.StatusCreated)
	shape(t, body, userFields)
	has(t, body, m{
		"cognito_user_id": "a/b", "username": "Ann", "email": "ann@example.com", "subscription_tier": "free", "subscription_status": "active",
		"tokens_remaining": 0, "is_active": true, "created_at": "2026-11-24T10:00:00.000000Z",
	})
	if got := made.Header.Get("Location"); got != path {
		t.Errorf("Location %q", got)
	}
	s.later(time.Second)
	before := snapshot(t, db)
	for _, same := range []m{{}, {"username": "Ann"}, {"username": "Ann", "email": "ann@example.com", "metadata": m{"source": "sign-up"}}} {
		r := s.put(path, same)
		if got := r.want(http.StatusOK); !reflect.DeepEqual(got, body) || r.Header.Get("Location") != "" {
			t.Errorf("%v: %v %v", same, r.Header, got)
		}
	}
	if after := snapshot(t, db); after != before {
		t.Errorf("something changed:\n%s\nbefore:\n%s", after, before)
	}
	for _, bad := range []any{`{`, m{"username": 7}, m{"email": "x"}, m{"cognito_user_id": "unborn"}} {
		if got := s.put("/user/unborn", bad); got.Status != http.StatusBadRequest && got.Status != http.StatusUnprocessableEntity {
			t.Errorf("%v: %d", bad, got.Status)
		}
	}
	s.get("/user/unborn/status").wantProblem(http.StatusNotFound, "user_not_found")
	has(t, s.put(path, m{"email": nil, "metadata": m{"source": "support"}}).want(http.StatusOK), m{
		"username": "Ann", "email": nil, "updated_at": "2026-11-24T10:00:01.000000Z",
	})
	has(t, s.entries("a%2Fb")[0], m{"kind": "profile_change", "changes": m{"email": m{}}, "metadata": m{"source": "support"}})
}

func TestEntries_NeverHaveNamesOrAddresses(t *testing.T) {
	t.Parallel()
	s, db := startSQL(t)
	notes := m{"reason": "support"}
	s.keyed("/user", m{"cognito_user_id": "u", "username": "Name One", "email": "one@example.com"}, "a").want(http.StatusCreated)
	for i, r := range []request{
		{Method: http.MethodPut, Path: "/user/u", Body: m{"username": "Name Two", "email": "two@example.com", "metadata": notes}},
		{Method: http.MethodPatch, Path: "/user/u", Body: m{"username": "Name Three", "email": "three@example.com", "is_active": false, "metadata": notes}},
		{Method: http.MethodPut, Path: "/user/v", Body: m{"username": "Name Four", "email": "four@example.com", "metadata": notes}},
	} {
		if got := s.do(r.under(fmt.Sprint("key ", i))); got.Status >= 400 {
			t.Fatalf("%d: %s", got.Status, got.Body)
		}
	}
	entries := s.entries("u")
	has(t, entries[0], m{"metadata": notes, "changes": m{"username": m{}, "email": m{}, "is_active": m{"from": true, "to": false}}})
	has(t, entries[1], m{"metadata": notes, "changes": m{"username": m{}, "email": m{}}})
	has(t, entries[2], m{"kind": "opening", "metadata": nil, "changes": nil, "idempotency_key": "a"})
	has(t, s.entries("v")[0], m{"kind": "opening", "metadata": notes})
	for line := range strings.Lines(snapshot(t, db)) {
		if strings.HasPrefix(line, "ledger ") && (strings.Contains(line, "Name ") || strings.Contains(line, "@example.com")) {
			t.Errorf("an entry has a name or an address: %s", line)
		}
	}
}
