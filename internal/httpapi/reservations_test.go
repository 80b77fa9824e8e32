package httpapi_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
)

const (
	reservationFields = "closed_at cognito_user_id created_at expires_at late metadata reservation_id shortfall status " +
		"tokens_charged tokens_reserved tokens_returned tokens_used"
	reservationReceiptFields = "closed_at cognito_user_id created_at entry_id expires_at late low_balance metadata reservation_id " +
		"shortfall status tokens_charged tokens_remaining tokens_reserved tokens_returned tokens_used tokens_used_this_month"
)

func (s *service) later(d time.Duration) { s.clock.Set(s.clock.Now().Add(d)) }

// reserve holds tokens, and returns the path of the reservation.
func (s *service) reserve(id string, tokens int, more ...m) string {
	s.t.Helper()
	body := m{"tokens": tokens}
	for _, fields := range more {
		for name, value := range fields {
			body[name] = value
		}
	}
	r := s.post("/user/"+id+"/reservations", body)
	r.want(http.StatusCreated)
	return r.Header.Get("Location")
}

func (s *service) settle(path string, used int) response {
	s.t.Helper()
	return s.post(path+"/settle", m{"tokens_used": used})
}

func (s *service) release(path string) response {
	s.t.Helper()
	return s.do(request{Method: http.MethodPost, Path: path + "/release"})
}

func TestReserve_HoldsTokens(t *testing.T) {
	t.Parallel()
	s := start(t)
	t.Run("tokens leave the balance and Location leads to the reservation", func(t *testing.T) {
		s := s.in(t)
		id := "a/b é"
		path := "/user/" + url.PathEscape(id)
		s.post("/user", m{"cognito_user_id": id}).want(http.StatusCreated)
		s.put(path+"/tier", m{"tier": "tester"}).want(http.StatusOK)
		r := s.post(path+"/reservations", m{"tokens": 400, "metadata": m{"model": "large"}})
		made := r.want(http.StatusCreated)
		shape(t, made, reservationReceiptFields)
		has(t, made, m{
			"cognito_user_id": id, "status": "open", "tokens_reserved": 400, "tokens_used": nil, "tokens_charged": 0, "tokens_returned": 0,
			"shortfall": 0, "late": false, "metadata": m{"model": "large"}, "low_balance": false,
			"created_at": "2026-11-24T10:00:00.000000Z", "expires_at": "2026-11-24T10:10:00.000000Z", "closed_at": nil,
		})
		tokens(t, made, 600, 0)
		location := r.Header.Get("Location")
		if want := path + "/reservations/" + made["reservation_id"].(string); location != want {
			t.Errorf("Location %q, want %q", location, want)
		}
		read := s.get(location).want(http.StatusOK)
		shape(t, read, reservationFields)
		for field := range read {
			has(t, read, m{field: made[field]})
		}
		s.do(request{Method: http.MethodHead, Path: location}).want(http.StatusOK)
		entry := s.get(path + "/ledger").want(http.StatusOK)["entries"].([]any)[0].(m)
		has(t, entry, m{
			"kind": "reserve", "amount": -400, "tokens_charged": 0, "entry_id": made["entry_id"], "reservation_id": made["reservation_id"],
			"metadata": m{"model": "large"},
		})
		has(t, s.get(path+"/status").want(http.StatusOK), m{"tokens_reserved": 400, "tokens_remaining": 600})
	})
	for ttl, expiry := range map[int]string{1: "2026-11-24T10:00:01.000000Z", 120: "2026-11-24T10:02:00.000000Z", 86400: "2026-11-25T10:00:00.000000Z"} {
		t.Run(fmt.Sprintf("%d seconds end at %s", ttl, expiry), func(t *testing.T) {
			s := s.in(t)
			path := s.reserve(s.account("tester", 0), 1, m{"ttl_seconds": ttl})
			has(t, s.get(path).want(http.StatusOK), m{"expires_at": expiry})
		})
	}
	t.Run("more than there is is insufficient_tokens and holds nothing", func(t *testing.T) {
		s := s.in(t)
		id := s.account("tester", 0)
		s.reserve(id, 600)
		problem := s.post("/user/"+id+"/reservations", m{"tokens": 401}).wantProblem(http.StatusPaymentRequired, "insufficient_tokens")
		has(t, problem, m{"tokens_remaining": 400, "tokens_required": 401, "next_reset_at": "2026-12-01T00:00:00.000000Z"})
		s.consume(id, 401).wantProblem(http.StatusPaymentRequired, "insufficient_tokens") // what is held cannot be spent either
		has(t, s.status(id), m{"tokens_reserved": 600, "tokens_remaining": 400})
	})
	for code, change := range map[string]m{"user_inactive": {"is_active": false}, "subscription_inactive": {"subscription_status": "past_due"}} {
		t.Run(code+" may not reserve, and may settle and release", func(t *testing.T) {
			s := s.in(t)
			id := s.account("tester", 0)
			first, second := s.reserve(id, 5), s.reserve(id, 5)
			s.patch(id, change).want(http.StatusOK)
			s.post("/user/"+id+"/reservations", m{"tokens": 1}).wantProblem(http.StatusForbidden, code)
			tokens(t, s.settle(first, 3).want(http.StatusOK), 992, 3)
			tokens(t, s.release(second).want(http.StatusOK), 997, 3)
		})
	}
	t.Run("a key holds once, and answers with the counters of then and the reservation of now", func(t *testing.T) {
		s := s.in(t)
		id := s.account("tester", 0)
		path, key := "/user/"+id+"/reservations", "key"
		first := s.keyed(path, m{"tokens": 100}, key)
		made := first.want(http.StatusCreated)
		if first.Header.Get("Idempotency-Replayed") != "" {
			t.Error("the first answer claims to be a replay")
		}
		s.consume(id, 50).want(http.StatusOK)
		again := func(body m) m {
			t.Helper()
			r := s.keyed(path, body, key)
			if r.Header.Get("Idempotency-Replayed") != "true" || r.Header.Get("Location") != first.Header.Get("Location") {
				t.Errorf("headers %v", r.Header)
			}
			return r.want(http.StatusCreated)
		}
		if got := again(m{"tokens": 100, "metadata": m{"try": "2"}}); !reflect.DeepEqual(got, made) {
			t.Errorf("%v\nwant %v", got, made)
		}
		s.settle(first.Header.Get("Location"), 30).want(http.StatusOK)
		settled := again(m{"tokens": 100})
		has(t, settled, m{"status": "settled", "tokens_used": 30, "tokens_charged": 30, "tokens_returned": 70, "entry_id": made["entry_id"]})
		tokens(t, settled, 900, 0)
		tokens(t, s.status(id), 920, 80)
		s.keyed(path, m{"tokens": 101}, key).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		s.keyed(path, m{"tokens": 100, "ttl_seconds": 600}, key).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
		s.consume(id, 100, key).wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
	})
	t.Run("a refusal leaves its key unused", func(t *testing.T) {
		s := s.in(t)
		id := s.account("free", 0)
		path := "/user/" + id + "/reservations"
		s.keyed(path, m{"tokens": 5}, "key").wantProblem(http.StatusPaymentRequired, "insufficient_tokens")
		s.add(id, 5).want(http.StatusOK)
		if r := s.keyed(path, m{"tokens": 5}, "key"); r.Status != http.StatusCreated || r.Header.Get("Idempotency-Replayed") != "" {
			t.Errorf("status %d, header %v", r.Status, r.Header)
		}
	})
	t.Run("an unlimited account holds nothing and settles for nothing, whatever its tier by then", func(t *testing.T) {
		s := s.in(t)
		id := s.account("admin", 0)
		path := s.reserve(id, 2147483647)
		has(t, s.get(path).want(http.StatusOK), m{"status": "open", "tokens_reserved": 0})
		s.put("/user/"+id+"/tier", m{"tier": "tester"}).want(http.StatusOK)
		settled := s.settle(path, 500).want(http.StatusOK)
		has(t, settled, m{"status": "settled", "tokens_charged": 0, "tokens_returned": 0, "shortfall": 0, "entry_id": nil})
		tokens(t, settled, 1000, 0)
		if got := s.kinds(id); got != "tier_change +0, tier_change +1000" {
			t.Errorf("ledger: %s", got)
		}
	})
	t.Run("one over MAX_OPEN_RESERVATIONS is too_many_reservations", func(t *testing.T) {
		s := s.with(t, func(o *httpapi.Options) { o.Users.Rules.MaxOpenReservations = 2 })
		id := s.account("tester", 0)
		first := s.reserve(id, 1)
		s.reserve(id, 1)
		s.post("/user/"+id+"/reservations", m{"tokens": 1}).wantProblem(http.StatusConflict, "too_many_reservations")
		s.release(first).want(http.StatusOK)
		s.reserve(id, 1)
	})
}

func TestExtend_MovesTheExpiry(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 0)
	path := s.reserve(id, 600)
	extend := func(seconds int) response {
		t.Helper()
		return s.post(path+"/extend", m{"ttl_seconds": seconds})
	}
	s.later(5 * time.Minute)
	later := extend(600).want(http.StatusOK)
	shape(t, later, reservationReceiptFields)
	has(t, later, m{
		"status": "open", "created_at": "2026-11-24T10:00:00.000000Z", "expires_at": "2026-11-24T10:15:00.000000Z", "entry_id": nil,
		"low_balance": false,
	})
	tokens(t, later, 400, 0)
	has(t, extend(60).want(http.StatusOK), m{"expires_at": "2026-11-24T10:06:00.000000Z"})
	has(t, extend(86400).want(http.StatusOK), m{"expires_at": "2026-11-25T10:00:00.000000Z"}) // 24 hours after it was made
	if got := s.kinds(id); got != "tier_change +1000, reserve -600" {
		t.Errorf("ledger: %s", got)
	}
	extend(1).want(http.StatusOK)
	s.later(time.Second)
	extend(60).wantProblem(http.StatusConflict, "reservation_closed")
	has(t, s.get(path).want(http.StatusOK), m{"status": "expired", "tokens_returned": 600})
}

func TestSettle_ChargesTheTrueCost(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, c := range map[string]struct {
		held, spent, cost                             int
		charged, returned, shortfall, remaining, used int
	}{
		"less returns the rest":                 {100, 0, 30, 30, 70, 0, 970, 30},
		"nothing returns all":                   {100, 0, 0, 0, 100, 0, 1000, 0},
		"more is taken from the balance":        {100, 0, 150, 150, 0, 0, 850, 150},
		"more than there is leaves a shortfall": {100, 890, 150, 110, 0, 40, 0, 1000},
		"more with nothing left is a shortfall": {100, 900, 2147483647, 100, 0, 2147483547, 0, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account("tester", 0)
			path := s.reserve(id, c.held)
			if c.spent > 0 {
				s.consume(id, c.spent).want(http.StatusOK)
			}
			settled := s.post(path+"/settle", m{"tokens_used": c.cost, "metadata": m{"model": "large"}}).want(http.StatusOK)
			shape(t, settled, reservationReceiptFields)
			has(t, settled, m{
				"status": "settled", "tokens_reserved": c.held, "tokens_used": c.cost, "tokens_charged": c.charged,
				"tokens_returned": c.returned, "shortfall": c.shortfall, "late": false, "closed_at": "2026-11-24T10:00:00.000000Z",
				"low_balance": c.remaining <= 200,
			})
			tokens(t, settled, c.remaining, c.used)
			has(t, s.entries(id)[0], m{
				"kind": "settle", "tokens_charged": c.charged, "entry_id": settled["entry_id"], "metadata": m{"model": "large"},
				"reservation_id": settled["reservation_id"], "balance_after": c.remaining, "used_after": c.used,
			})
			has(t, s.status(id), m{"tokens_reserved": 0, "tokens_remaining": c.remaining})

			// Whatever happens since, the same again is answered as it was, under any key.
			s.add(id, 7).want(http.StatusOK)
			for _, key := range [][]string{nil, {"another key"}} {
				again := s.keyed(path+"/settle", m{"tokens_used": c.cost}, key...)
				delete(settled, "low_balance") // as it is now
				has(t, again.want(http.StatusOK), settled)
				if got := again.Header.Values("Idempotency-Replayed"); !slices.Equal(got, []string{"true"}) {
					t.Errorf("Idempotency-Replayed: %q", got)
				}
			}
			s.settle(path, c.cost^1).wantProblem(http.StatusConflict, "reservation_closed")
			s.release(path).wantProblem(http.StatusConflict, "reservation_closed")
			s.post(path+"/extend", m{"ttl_seconds": 1}).wantProblem(http.StatusConflict, "reservation_closed")
			tokens(t, s.status(id), c.remaining+7, c.used)
		})
	}
	t.Run("an account that is unlimited by now pays no more than what it held", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("tester", 0)
		path := s.reserve(id, 5)
		s.put("/user/"+id+"/tier", m{"tier": "admin"}).want(http.StatusOK)
		has(t, s.settle(path, 100).want(http.StatusOK), m{"tokens_charged": 5, "shortfall": 0, "tokens_returned": 0})
	})
}

func TestRelease_ReturnsAll(t *testing.T) {
	t.Parallel()
	s := start(t)
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for name, c := range map[string]struct {
		header http.Header
		body   any
		status int
		code   string
	}{
		"no body is fine":                            {nil, nil, 200, ""},
		"an empty body is fine":                      {nil, "", 200, ""},
		"an empty body of a form is fine":            {form, "", 200, ""},
		"an empty object is fine":                    {nil, `{}`, 200, ""},
		"an object of blanks is fine":                {nil, " {\n} ", 200, ""},
		"a field is refused":                         {nil, `{"tokens_used":0}`, 422, "validation_failed"},
		"garbage is refused":                         {nil, `garbage`, 400, "malformed_json"},
		"blanks are refused":                         {nil, " ", 400, "malformed_json"},
		"null is refused":                            {nil, `null`, 400, "malformed_json"},
		"an array is refused":                        {nil, `[]`, 400, "malformed_json"},
		"a form is refused":                          {form, `tokens_used=0`, 415, "unsupported_media_type"},
		"more than 64 KiB are refused":               {nil, strings.Repeat(" ", 64<<10) + "{}", 413, "body_too_large"},
		"an object of another media type is refused": {form, `{}`, 415, "unsupported_media_type"},
		"an object of no media type is refused":      {http.Header{"Content-Type": nil}, `{}`, 415, "unsupported_media_type"},
		"metadata is kept":                           {nil, m{"metadata": m{"why": "failed"}}, 200, ""},
		"metadata of numbers is refused":             {nil, m{"metadata": m{"why": 7}}, 422, "validation_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			id := s.account("tester", 0)
			path := s.reserve(id, 100)
			r := s.do(request{http.MethodPost, path + "/release", c.header, c.body})
			if c.status != http.StatusOK {
				r.wantProblem(c.status, c.code)
				has(t, s.get(path).want(http.StatusOK), m{"status": "open"})
				return
			}
			released := r.want(http.StatusOK)
			shape(t, released, reservationReceiptFields)
			has(t, released, m{"status": "released", "tokens_charged": 0, "tokens_returned": 100, "shortfall": 0})
			tokens(t, released, 1000, 0)
			if got := s.kinds(id); got != "tier_change +1000, reserve -100, release +100" {
				t.Errorf("ledger: %s", got)
			}
			if sent, ok := c.body.(m); ok {
				has(t, s.entries(id)[0], sent)
			}
			s.consume(id, 1).want(http.StatusOK)
			again := s.release(path)
			if got := again.want(http.StatusOK); !reflect.DeepEqual(got, released) || again.Header.Get("Idempotency-Replayed") != "true" {
				t.Errorf("again: %v %v\nfirst: %v", again.Header, got, released)
			}
			s.settle(path, 0).wantProblem(http.StatusConflict, "reservation_closed")
			tokens(t, s.status(id), 999, 1)
		})
	}
}

func TestRelease_TakesAnEmptyBodyOfAnyType(t *testing.T) {
	t.Parallel()
	s := start(t)
	path := s.reserve(s.account("tester", 0), 100) + "/release"
	unknownLength := struct{ io.Reader }{strings.NewReader("")} // as with chunks
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, unknownLength)
	r.Header.Set("Content-Type", "text/plain")
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Errorf("status %d, %s", w.Code, w.Body)
	}
}

func TestReservation_NotThereIsNotFound(t *testing.T) {
	t.Parallel()
	s := start(t)
	mine := s.reserve(s.account("tester", 0), 1)
	before, rid, _ := strings.Cut(mine, "/reservations/")
	other := "/user/" + s.account("tester", 0)
	for name, c := range map[string]struct{ path, code string }{
		"another id is reservation_not_found":          {before + "/reservations/00000000-0000-4000-8000-000000000000", "reservation_not_found"},
		"another user's id is reservation_not_found":   {other + "/reservations/" + rid, "reservation_not_found"},
		"a number is reservation_not_found":            {before + "/reservations/7", "reservation_not_found"},
		"braces are reservation_not_found":             {before + "/reservations/%7B" + rid + "%7D", "reservation_not_found"},
		"a URN is reservation_not_found":               {before + "/reservations/urn:uuid:" + rid, "reservation_not_found"},
		"digits alone are reservation_not_found":       {before + "/reservations/" + strings.ReplaceAll(rid, "-", ""), "reservation_not_found"},
		"a blank after it is reservation_not_found":    {mine + "%20", "reservation_not_found"},
		"an escaped digit is reservation_not_found":    {before + "/reservations/%30" + rid[1:], "reservation_not_found"},
		"an unknown user is user_not_found":            {"/user/nobody/reservations/" + rid, "user_not_found"},
		"an unknown user of a bad id is as unknown":    {"/user/nobody/reservations/7", "user_not_found"},
		"a path without an id is not_found altogether": {before + "/reservations/", "not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			s.get(c.path).wantProblem(http.StatusNotFound, c.code)
			if c.code != "not_found" {
				s.settle(c.path, 1).wantProblem(http.StatusNotFound, c.code)
				s.release(c.path).wantProblem(http.StatusNotFound, c.code)
				s.post(c.path+"/settle", "garbage").wantProblem(http.StatusNotFound, c.code) // before what is wrong with the body
				s.post(c.path+"/release", "garbage").wantProblem(http.StatusNotFound, c.code)
				s.post(c.path+"/extend", m{"ttl_seconds": 1}).wantProblem(http.StatusNotFound, c.code)
				s.post(c.path+"/extend", m{"ttl_seconds": 0}).wantProblem(http.StatusNotFound, c.code)
				s.get(c.path+"?limit=1").wantProblem(http.StatusNotFound, c.code)
				s.keyed(c.path+"/settle?limit=1", m{"tokens_used": 1}, "ü").wantProblem(http.StatusNotFound, c.code)
			}
		})
	}
	t.Run("capitals name the same reservation", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		has(t, s.get(before+"/reservations/"+strings.ToUpper(rid)).want(http.StatusOK), m{"reservation_id": rid})
	})
}

func TestReservations_ComeInPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 0)
	page := func(query string) (amounts string, next string) {
		t.Helper()
		body := s.get("/user/" + id + "/reservations" + query).want(http.StatusOK)
		shape(t, body, "next_cursor reservations")
		for _, r := range body["reservations"].([]any) {
			shape(t, r.(m), reservationFields)
			amounts += fmt.Sprintf(" %v", r.(m)["tokens_reserved"])
		}
		next, _ = body["next_cursor"].(string)
		return strings.TrimSpace(amounts), next
	}
	if amounts, next := page(""); amounts != "" || next != "" {
		t.Errorf("nothing is held, and the page has %q, then %q", amounts, next)
	}
	for tokens, ttl := range map[int]int{1: 100, 2: 200, 3: 300, 5: 500, 6: 600} {
		s.reserve(id, tokens, m{"ttl_seconds": ttl})
	}
	s.reserve(id, 4, m{"ttl_seconds": 300}) // the same expiry as another
	closed := s.reserve(id, 10)
	s.release(closed).want(http.StatusOK)
	has(t, s.status(id), m{"tokens_reserved": 21, "tokens_remaining": 979})

	first, next := page("?limit=2")
	second, next := page("?limit=2&cursor=" + next)
	s.reserve(id, 9, m{"ttl_seconds": 50}) // before all that was read
	third, end := page("?limit=2&cursor=" + next)
	if got := first + " | " + second + " | " + third; end != "" || got != "1 2 | 3 4 | 5 6" && got != "1 2 | 4 3 | 5 6" {
		t.Errorf("pages %s, then %q", got, end)
	}
	if all, end := page("?limit=7"); end != "" || !strings.HasPrefix(all, "9 1 2 ") {
		t.Errorf("all: %s, then %q", all, end)
	}
	for status, want := range map[string]string{"open": "9 1 2", "all": "9 1 2", "released": "10", "settled": "", "expired": ""} {
		if got, _ := page("?status=" + status); !strings.HasPrefix(got+" ", want+" ") {
			t.Errorf("%s: %s, want %s", status, got, want)
		}
	}
	for _, query := range []string{
		"cursor=x", "cursor=", "cursor=MQ", "limit=0", "limit=201", "limit=2&limit=3", "cursor=" + next + "&cursor=" + next,
		"status=", "status=Open", "status=closed", "status=open,settled", "status=open&status=all", "order=asc",
	} {
		s.get("/user/"+id+"/reservations?"+query).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
		s.get("/user/nobody/reservations?"+query).wantProblem(http.StatusNotFound, "user_not_found")
	}

	s.later(300 * time.Second) // a hold has expired when its expiry has come
	if left, _ := page(""); left != "5 6" {
		t.Errorf("left: %s", left)
	}
	has(t, s.status(id), m{"tokens_reserved": 11, "tokens_remaining": 989})
}

func TestExpiry_IsNoticedAtTheNextTouch(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, touch := range map[string]func(s *service, id, path string){
		"by the status":       func(s *service, id, _ string) { s.status(id) },
		"by reading the user": func(s *service, id, _ string) { s.get("/user/" + id).want(http.StatusOK) },
		"by reading it":       func(s *service, _, path string) { has(s.t, s.get(path).want(http.StatusOK), m{"status": "expired"}) },
		"by the ledger":       func(s *service, id, _ string) { s.entries(id) },
		"by the usage":        func(s *service, id, _ string) { s.get("/user/" + id + "/usage").want(http.StatusOK) },
		"by the list":         func(s *service, id, _ string) { s.get("/user/" + id + "/reservations").want(http.StatusOK) },
		"by an extend": func(s *service, _, path string) {
			s.post(path+"/extend", m{"ttl_seconds": 60}).wantProblem(http.StatusConflict, "reservation_closed")
		},
		"by a consume": func(s *service, id, _ string) {
			s.consume(id, 1000).want(http.StatusOK)
			s.add(id, 1000).want(http.StatusOK)
		},
		"by a consume too high": func(s *service, id, _ string) {
			s.consume(id, 1001).wantProblem(http.StatusPaymentRequired, "insufficient_tokens")
		},
	} {
		t.Run(name, func(t *testing.T) { // one after the other: they move the clock
			s := s.in(t)
			id := s.account("tester", 0)
			path := s.reserve(id, 600, m{"ttl_seconds": 60})
			s.later(60*time.Second - time.Microsecond)
			has(t, s.get(path).want(http.StatusOK), m{"status": "open"})
			s.later(time.Microsecond)
			touch(s, id, path)
			if got := s.kinds(id); !strings.HasPrefix(got, "tier_change +1000, reserve -600, expire +600") {
				t.Errorf("ledger: %s", got)
			}
			has(t, s.get(path).want(http.StatusOK), m{"status": "expired", "tokens_used": nil, "tokens_charged": 0, "tokens_returned": 600})
			has(t, s.status(id), m{"tokens_reserved": 0, "tokens_remaining": 1000})
		})
	}
}

// A cost that was incurred is not lost for being late.
func TestExpiredReservation_IsSettledLateOrReleased(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 0)
	expired := func() string {
		path := s.reserve(id, 100, m{"ttl_seconds": 1})
		s.later(time.Second)
		return path
	}
	path := expired()
	late := s.settle(path, 30).want(http.StatusOK)
	shape(t, late, reservationReceiptFields)
	has(t, late, m{
		"status": "settled", "late": true, "tokens_used": 30, "tokens_charged": 30, "tokens_returned": 100, "shortfall": 0,
		"expires_at": "2026-11-24T10:00:01.000000Z", "closed_at": "2026-11-24T10:00:01.000000Z",
	})
	tokens(t, late, 970, 30)
	if again := s.settle(path, 30); again.Header.Get("Idempotency-Replayed") != "true" || !reflect.DeepEqual(again.want(http.StatusOK), late) {
		t.Errorf("again: %v %s", again.Header, again.Body)
	}
	path = expired()
	has(t, s.settle(path, 1000).want(http.StatusOK), m{"late": true, "tokens_charged": 970, "shortfall": 30})
	s.add(id, 100).want(http.StatusOK)

	path = expired()
	released := s.release(path).want(http.StatusOK)
	has(t, released, m{"status": "released", "late": false, "tokens_charged": 0, "tokens_returned": 100, "entry_id": nil})
	tokens(t, released, 100, 1000)
	s.settle(path, 1).wantProblem(http.StatusConflict, "reservation_closed")

	path = expired()
	s.later(7 * 24 * time.Hour)
	s.settle(path, 1).want(http.StatusOK)
	path = expired()
	s.later(7*24*time.Hour + time.Microsecond)
	s.settle(path, 1).wantProblem(http.StatusConflict, "reservation_closed")
}
