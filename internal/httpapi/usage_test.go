package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

// days are those of a report that are not zero, as date:charged/refunded, and how many days it has.
func (s *service) days(id, query string) (used string, n int) {
	s.t.Helper()
	body := s.get("/user/" + id + "/usage" + query).want(http.StatusOK)
	shape(s.t, body, "days time_zone total_charged total_refunded")
	var charged, refunded float64
	list := body["days"].([]any)
	for i, d := range list {
		day := d.(m)
		date, err := time.Parse(time.DateOnly, day["date"].(string))
		if err != nil {
			s.t.Error(err)
		}
		if i > 0 && date.AddDate(0, 0, -1).Format(time.DateOnly) != list[i-1].(m)["date"] {
			s.t.Errorf("%v comes after %v", day["date"], list[i-1])
		}
		c, r := day["tokens_charged"].(float64), day["tokens_refunded"].(float64)
		charged, refunded = charged+c, refunded+r
		if c != 0 || r != 0 {
			used += fmt.Sprintf(" %v:%v/%v", day["date"], c, r)
		}
	}
	has(s.t, body, m{"total_charged": charged, "total_refunded": refunded, "time_zone": s.options.Users.Rules.ResetZone.String()})
	return strings.TrimSpace(used), len(list)
}

func TestUsage_IsSummedByDay(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("basic", 10)
	if used, n := s.days(id, ""); used != "" || n != 30 {
		t.Errorf("a new account: %q on %d days", used, n)
	}
	first := s.charge(id, 100)
	s.charge(id, 20)
	held := s.reserve(id, 50, m{"ttl_seconds": 86400})
	s.refund(id, first, 30).want(http.StatusOK)
	s.later(14*time.Hour - time.Microsecond) // the last instant of the 24th
	s.charge(id, 1)
	s.later(time.Microsecond)
	s.charge(id, 2)
	s.settle(held, 40).want(http.StatusOK)
	s.refund(id, first, 5).want(http.StatusOK)
	s.release(s.reserve(id, 7)).want(http.StatusOK)
	s.later(7 * 24 * time.Hour) // into December
	s.charge(id, 3)
	s.refund(id, first, 6).want(http.StatusOK)
	for name, c := range map[string]struct {
		query, used string
		days        int
	}{
		"the present month without a query":           {"", "2026-12-02:3/6", 31},
		"the present month from its first day":        {"?from=2026-12-01", "2026-12-02:3/6", 31},
		"the month of the last day":                   {"?to=2026-11-24", "2026-11-24:121/30", 24},
		"one day, both ends included":                 {"?from=2026-11-25&to=2026-11-25", "2026-11-25:42/5", 1},
		"a refund on its own day":                     {"?from=2026-12-02&to=2026-12-02", "2026-12-02:3/6", 1},
		"days over the month's end":                   {"?from=2026-11-24&to=2026-12-02", "2026-11-24:121/30 2026-11-25:42/5 2026-12-02:3/6", 9},
		"zeros in the past":                           {"?from=2000-02-28&to=2000-03-01", "", 3},
		"zeros in the future":                         {"?from=2030-01-01&to=2030-01-31", "", 31},
		"366 days, and a year has 365":                {"?from=2025-12-02&to=2026-12-02", "2026-11-24:121/30 2026-11-25:42/5 2026-12-02:3/6", 366},
		"366 days in the future, with the last there": {"?from=9997-12-31&to=9998-12-31", "", 366},
		"the first day that there is":                 {"?from=0001-01-02&to=0001-01-03", "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if used, n := s.in(t).days(id, c.query); used != c.used || n != c.days {
				t.Errorf("%q on %d days, want %q on %d", used, n, c.used, c.days)
			}
		})
	}
	for query, field := range map[string]string{
		"from=2025-12-01&to=2026-12-02": "from", "from=2025-12-01": "from", "from=2026-12-03&to=2026-12-02": "from", "from=2027-01-01": "from",
		"from=": "from", "from=today": "from", "from=2026-13-01": "from", "from=2026-02-29": "from", "from=2026-2-1": "from", "from=20261201": "from",
		"from=2026-12-01T00:00:00Z": "from", "from=0000-01-01": "from", "to=9999-12-31": "to", "to=2026-12-32": "to", "to=%2B2026-12-01": "to",
		"to=2026-12-01&to=2026-12-01": "to", "to=2026-12-01%20": "to", "%zz": "query",
	} {
		t.Run(query+" is refused", func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			problem := s.get("/user/"+id+"/usage?"+query).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
			if got := problem["errors"].([]any)[0].(m)["field"]; got != field {
				t.Errorf("%v is named, want %s", got, field)
			}
			s.get("/user/nobody/usage?"+query).wantProblem(http.StatusNotFound, "user_not_found")
		})
	}
}

func TestUsageDaysAreThoseOfTheZone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		zone string
		at   []string // a consume of 1, 10, 100 … tokens at each
		used string
	}{
		"a day of 25 hours": {
			"Europe/Berlin",
			[]string{"2026-10-24T21:59:59.999999Z", "2026-10-24T22:00:00.000000Z", "2026-10-25T22:59:59.999999Z", "2026-10-25T23:00:00.000000Z"},
			"2026-10-24:1/0 2026-10-25:110/0 2026-10-26:1000/0",
		},
		"a day of 23 hours": {
			"Europe/Berlin",
			[]string{"2026-03-28T22:59:59.999999Z", "2026-03-28T23:00:00.000000Z", "2026-03-29T21:59:59.999999Z", "2026-03-29T22:00:00.000000Z"},
			"2026-03-28:1/0 2026-03-29:110/0 2026-03-30:1000/0",
		},
		"a day without a midnight": {
			"Africa/Cairo",
			[]string{"2026-04-23T21:59:59.999999Z", "2026-04-23T22:00:00.000000Z", "2026-04-24T20:59:59.999999Z", "2026-04-24T21:00:00.000000Z"},
			"2026-04-23:1/0 2026-04-24:110/0 2026-04-25:1000/0",
		},
		"a day whose last hour comes twice": {
			"Africa/Cairo",
			[]string{"2026-10-28T20:59:59.999999Z", "2026-10-28T21:00:00.000000Z", "2026-10-29T21:59:59.999999Z", "2026-10-29T22:00:00.000000Z"},
			"2026-10-28:1/0 2026-10-29:110/0 2026-10-30:1000/0",
		},
	} {
		t.Run(name+" in "+c.zone, func(t *testing.T) {
			t.Parallel()
			zone, err := time.LoadLocation(c.zone)
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, func(o *httpapi.Options) { o.Users.Rules.ResetZone = zone })
			id, tokens := "", 1
			for _, text := range c.at {
				at, err := time.Parse(time.RFC3339, text)
				if err != nil {
					t.Fatal(err)
				}
				s.clock.Set(at)
				if id == "" {
					id = s.account("basic", 0)
				}
				s.charge(id, tokens)
				tokens *= 10
			}
			if used, _ := s.days(id, ""); used != c.used {
				t.Errorf("%q, want %q", used, c.used)
			}
		})
	}
}

// folded adds up what there is.
func (s *service) folded() {
	s.t.Helper()
	users := s.options.Users
	fold := &user.Fold{Feed: s.options.Feed, Store: s.store, Rules: users.Rules, Dimensions: users.Dimensions}
	last := len(s.get("/ledger").want(http.StatusOK)["entries"].([]any))
	localpgtest.Await(s.t, "all is added up", func() bool {
		most := int64(0)
		if _, err := fold.Run(s.t.Context(), func(position int64) { most = position }); err != nil {
			s.t.Fatal(err)
		}
		return most >= int64(last) || fold.Lag() == 0
	})
}

// by is the usage of a path by day and value: those that are there.
func (s *service) by(path string) (told string) {
	s.t.Helper()
	for _, d := range s.get(path).want(http.StatusOK)["days"].([]any) {
		day := d.(m)
		values := day["values"].([]any)
		if len(values) == 0 {
			continue
		}
		told += fmt.Sprintf(" %v %v/%v", day["date"].(string)[5:], day["tokens_charged"], day["tokens_refunded"])
		if users, there := day["users"]; there {
			told += fmt.Sprintf(" of %v", users)
		}
		for _, v := range values {
			value := v.(m)
			name := value["value"]
			if name == nil {
				name = "null"
			}
			told += fmt.Sprintf(" %v:%v/%v*%v", name, value["tokens_charged"], value["tokens_refunded"], value["entries"])
		}
	}
	return strings.TrimSpace(told)
}

func TestUsage_ByDimension(t *testing.T) {
	t.Parallel()
	s := start(t)
	a, b := s.account("basic", 0), s.account("tester", 0)
	for _, c := range []struct {
		id     string
		tokens int
		notes  m
	}{
		{a, 100, m{"feature": "captions", "model": "large"}},
		{a, 20, m{"feature": "ideas"}},
		{b, 3, m{"feature": "captions", "model": "small"}},
		{b, 4, nil},
	} {
		body := m{"tokens_to_consume": c.tokens}
		if c.notes != nil {
			body["metadata"] = c.notes
		}
		s.post("/user/"+c.id+"/consume-tokens", body).want(http.StatusOK)
	}
	s.later(24 * time.Hour)
	held := s.reserve(a, 50, m{"metadata": m{"feature": "captions", "model": "large"}})
	entry := s.post(held+"/settle", m{"tokens_used": 30, "metadata": m{"model": "small"}}).want(http.StatusOK)["entry_id"].(string)
	s.refund(a, entry, 10).want(http.StatusOK)
	for i := range 2 {
		when := []string{"live", "added up"}[i]
		if i == 1 {
			s.folded()
		}
		for path, want := range map[string]string{
			"/user/" + a + "/usage?by=feature": "11-24 120/0 captions:100/0*1 ideas:20/0*1 11-25 30/10 captions:30/10*1",
			"/user/" + a + "/usage?by=model":   "11-24 120/0 large:100/0*1 null:20/0*1 11-25 30/10 small:30/10*1",
			"/user/" + b + "/usage?by=model":   "11-24 7/0 small:3/0*1 null:4/0*1",
			"/usage?by=feature":                "11-24 127/0 of 2 captions:103/0*2 ideas:20/0*1 null:4/0*1 11-25 30/10 of 1 captions:30/10*1",
			"/usage?by=tier":                   "11-24 127/0 of 2 basic:120/0*2 tester:7/0*2 11-25 30/10 of 1 basic:30/10*1",
			"/usage?by=tier&to=2026-11-24":     "11-24 127/0 of 2 basic:120/0*2 tester:7/0*2",
		} {
			t.Run(path+" "+when, func(t *testing.T) {
				if got := s.in(t).by(path); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			})
		}
	}
	has(t, s.get("/usage").want(http.StatusOK), m{"total_charged": 157.0, "total_refunded": 10.0, "time_zone": "UTC"})
	for _, path := range []string{"/usage?by=cost", "/usage?by=", "/user/" + a + "/usage?by=tier", "/user/" + a + "/usage?by=Feature"} {
		t.Run(path+" is refused", func(t *testing.T) {
			problem := s.in(t).get(path).wantProblem(http.StatusUnprocessableEntity, "validation_failed")
			if got := problem["errors"].([]any)[0].(m)["field"]; got != "by" {
				t.Errorf("%v is named", got)
			}
		})
	}
}
