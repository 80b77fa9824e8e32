package httpapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/user"
)

// page is one page of the ledger with the amounts on it, and where the next one begins.
func (s *service) page(id, query, cursor string) (amounts []int, next string) {
	s.t.Helper()
	if cursor != "" {
		query += "&cursor=" + cursor
	}
	body := s.get("/user/" + id + "/ledger?" + query).want(http.StatusOK)
	amounts = []int{}
	for _, e := range body["entries"].([]any) {
		amounts = append(amounts, int(e.(m)["amount"].(float64)))
	}
	switch c := body["next_cursor"].(type) {
	case nil:
	case string:
		if next = c; !regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(c) {
			s.t.Errorf("cursor %q", c)
		}
	default:
		s.t.Errorf("next_cursor is %v", c)
	}
	return amounts, next
}

// pages is the ledger page by page.
func (s *service) pages(id, query string) (pages [][]int) {
	s.t.Helper()
	for cursor := ""; ; {
		var amounts []int
		amounts, cursor = s.page(id, query, cursor)
		if pages = append(pages, amounts); cursor == "" {
			return pages
		}
		if len(pages) > 100 {
			s.t.Fatalf("no end: %v", pages)
		}
	}
}

func down(from, to int) (numbers []int) {
	for n := from; n >= to; n-- {
		numbers = append(numbers, n)
	}
	return numbers
}

// brief is a store of which the search for a page looks at two entries or accounts.
type brief struct{ user.Store }

func (b brief) Entries(ctx context.Context, id string, q user.EntryQuery) (page []user.Entry, before int64, err error) {
	kind := q.Kind
	q.Kind, q.Limit = "", min(q.Limit, 2)
	page, before, err = b.Store.Entries(ctx, id, q)
	return slices.DeleteFunc(page, func(e user.Entry) bool { return e.Kind != kind }), before, err
}

func (b brief) Accounts(ctx context.Context, q user.AccountQuery) (page []user.Account, after string, err error) {
	tier := q.Tier
	q.Tier, q.Limit = "", min(q.Limit, 2)
	page, after, err = b.Store.Accounts(ctx, q)
	return slices.DeleteFunc(page, func(a user.Account) bool { return a.Tier != tier }), after, err
}

func TestListsOfWhatIsRare_ComeInShortPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 5)
	for range 5 {
		s.consume(id, 1).want(http.StatusOK)
	}
	s.post("/user/"+id+"/add-tokens", m{"tokens_to_add": 7}).want(http.StatusOK)
	for _, other := range []string{"a", "b", "c", "d", "e", "f"} {
		s.post("/user", m{"cognito_user_id": other}).want(http.StatusCreated)
	}
	short := s.with(t, func(o *httpapi.Options) { o.Users.Store = brief{o.Users.Store} })
	var consumed []int
	pages := 0
	for cursor, more := "", true; more; pages++ {
		var amounts []int
		amounts, cursor = short.page(id, "kind=consume&limit=50", cursor)
		consumed, more = append(consumed, amounts...), cursor != ""
	}
	if !slices.Equal(consumed, []int{-1, -1, -1, -1, -1}) || pages < 4 {
		t.Errorf("%v in %d pages", consumed, pages)
	}
	var found []string
	pages = 0
	for cursor, more := "", true; more; pages++ {
		query := "?tier=tester&limit=50"
		if cursor != "" {
			query += "&cursor=" + cursor
		}
		var page string
		page, cursor = short.usersPage(query)
		found, more = append(found, strings.Fields(page)...), cursor != ""
	}
	if !slices.Equal(found, []string{id}) || pages < 3 {
		t.Errorf("%v in %d pages", found, pages)
	}
}

func TestLedger_ComesInPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	const n = 23
	id, other := s.account("free", 0), s.account("free", 0)
	for i := range n {
		s.add(id, i+1).want(http.StatusOK)
		s.add(other, 1000).want(http.StatusOK) // between them, so that the ids have gaps
	}
	for _, c := range []struct {
		query string
		want  [][]int
	}{
		{"limit=5", [][]int{down(23, 19), down(18, 14), down(13, 9), down(8, 4), down(3, 1)}},
		{"limit=1", func() (want [][]int) {
			for i := range n {
				want = append(want, []int{n - i})
			}
			return want
		}()},
		{"limit=12", [][]int{down(23, 12), down(11, 1)}},
		{"limit=22", [][]int{down(23, 2), {1}}},
		{"limit=23", [][]int{down(23, 1)}}, // full, and there is nothing after it
		{"limit=24", [][]int{down(23, 1)}},
		{"limit=200", [][]int{down(23, 1)}},
		{"", [][]int{down(23, 1)}},
		{"limit=0005&kind=top_up", [][]int{down(23, 19), down(18, 14), down(13, 9), down(8, 4), down(3, 1)}},
		{"kind=consume", [][]int{{}}},
	} {
		t.Run(fmt.Sprintf("%q makes %d pages", c.query, len(c.want)), func(t *testing.T) {
			t.Parallel()
			if got := s.in(t).pages(id, c.query); !slices.EqualFunc(got, c.want, slices.Equal) {
				t.Errorf("pages %v, want %v", got, c.want)
			}
		})
	}
	t.Run("ids fall over all pages", func(t *testing.T) {
		t.Parallel()
		last := 1 << 62
		for _, e := range s.in(t).entries(id) {
			n, err := strconv.Atoi(e["entry_id"].(string))
			if err != nil || n >= last {
				t.Errorf("%v after %d: %v", e["entry_id"], last, err)
			}
			last = n
		}
	})
	t.Run("a cursor of one account opens no other one", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		_, cursor := s.page(id, "limit=5", "")
		got, _ := s.page(other, "limit=200", cursor)
		if !slices.Equal(got, slices.Repeat([]int{1000}, 18)) {
			t.Errorf("the other account's ledger: %v", got)
		}
	})
	t.Run("the default is 50 entries", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("free", 0)
		for range 51 {
			s.add(id, 1).want(http.StatusOK)
		}
		if got := s.pages(id, ""); len(got) != 2 || len(got[0]) != 50 || len(got[1]) != 1 {
			t.Errorf("pages %v", got)
		}
	})
	t.Run("new entries do not move the pages after a cursor", func(t *testing.T) {
		t.Parallel()
		s := s.in(t)
		id := s.account("free", 0)
		for i := range 10 {
			s.add(id, i+1).want(http.StatusOK)
		}
		var got []int
		cursor := ""
		for {
			var amounts []int
			amounts, cursor = s.page(id, "limit=3", cursor)
			if got = append(got, amounts...); cursor == "" {
				break
			}
			s.add(id, 77).want(http.StatusOK)
			again, _ := s.page(id, "limit=200", cursor) // another limit may follow
			if want := down(10-len(got), 1); !slices.Equal(again, want) {
				t.Errorf("after %v comes %v", got, again)
			}
		}
		if !slices.Equal(got, down(10, 1)) {
			t.Errorf("entries %v", got)
		}
	})
}

func TestLedger_IsFiltered(t *testing.T) {
	t.Parallel()
	s := start(t)
	at := func(minute int) time.Time { return time.Date(2026, 11, 25, 10, minute, 0, 250_000_000, time.UTC) }
	id := s.account("tester", 0) // before: 2026-11-24T10:00:00Z
	for i := range 6 {
		s.clock.Set(at(i))
		s.add(id, 10+i).want(http.StatusOK)
		s.consume(id, 1+i).want(http.StatusOK)
	}
	quote := func(t time.Time) string { return url.QueryEscape(t.Format(time.RFC3339Nano)) }
	for query, want := range map[string][]int{
		"":                      {-6, 15, -5, 14, -4, 13, -3, 12, -2, 11, -1, 10, 1000},
		"kind=consume":          {-6, -5, -4, -3, -2, -1},
		"kind=top_up":           {15, 14, 13, 12, 11, 10},
		"kind=tier_change":      {1000},
		"kind=monthly_reset":    {},
		"since=" + quote(at(4)): {-6, 15, -5, 14},
		"since=" + quote(at(4).Add(time.Microsecond)):                         {-6, 15},
		"until=" + quote(at(1)):                                               {-1, 10, 1000},
		"until=" + quote(at(0)):                                               {1000},
		"until=" + quote(at(0).Add(time.Microsecond)):                         {-1, 10, 1000},
		"since=" + quote(at(1)) + "&until=" + quote(at(3)):                    {-3, 12, -2, 11},
		"since=" + quote(at(1)) + "&until=" + quote(at(3)) + "&kind=consume":  {-3, -2},
		"since=" + quote(at(3)) + "&until=" + quote(at(1)):                    {},
		"since=" + quote(at(3)) + "&until=" + quote(at(3)):                    {},
		"since=2026-11-25T10:05:00":                                           {-6, 15},
		"since=2026-11-25T12:05:00%2B02:00":                                   {-6, 15},
		"since=2030-01-01T00:00:00Z":                                          {},
		"until=0001-01-01T00:00:01Z":                                          {},
		"since=0001-01-01T00:00:00Z&until=9999-12-31T23:59:59Z&kind=t%6Fp_up": {15, 14, 13, 12, 11, 10},
	} {
		t.Run(fmt.Sprintf("%q gives %d entries", query, len(want)), func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			for _, limit := range []string{"200", "2", "1"} {
				got := slices.Concat(s.pages(id, strings.TrimPrefix(query+"&limit="+limit, "&"))...)
				if !slices.Equal(got, want) {
					t.Errorf("limit %s: %v, want %v", limit, got, want)
				}
			}
		})
	}
}

func TestEntries_ShowWhatTheCommandCarried(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.account("tester", 0)
	plain := m{"reservation_id": nil, "refunded_entry_id": nil, "idempotency_key": nil, "metadata": nil, "actor": nil, "created_at": "2026-11-24T10:00:00.000000Z"}
	has(t, s.entries(id)[0], m{"kind": "tier_change", "amount": 1000, "balance_after": 1000, "used_after": 0, "tokens_charged": 0})
	s.consume(id, 7).want(http.StatusOK)
	has(t, s.entries(id)[0], plain)
	has(t, s.entries(id)[0], m{"kind": "consume", "amount": -7, "balance_after": 993, "used_after": 7, "tokens_charged": 7})
	s.add(id, 9).want(http.StatusOK)
	has(t, s.entries(id)[0], plain)
	has(t, s.entries(id)[0], m{"kind": "top_up", "amount": 9, "balance_after": 1002, "used_after": 7, "tokens_charged": 0})
	notes := m{"model": "large", "feature": "post", "request_id": "ü 😀 <&>"}
	s.keyed("/user/"+id+"/consume-tokens", m{"metadata": notes}, "the key").want(http.StatusOK)
	has(t, s.entries(id)[0], m{"kind": "consume", "amount": -1, "idempotency_key": "the key", "metadata": notes, "actor": nil})
	s.keyed("/user/"+id+"/add-tokens", m{"tokens_to_add": 2147481000, "metadata": notes}, "another key").want(http.StatusOK)
	has(t, s.entries(id)[0], m{"kind": "top_up", "amount": 2147481000, "idempotency_key": "another key", "metadata": notes})
	for _, query := range []string{"", "?limit=1", "?kind=consume", "?limit=x"} {
		s.get("/user/nobody/ledger"+query).wantProblem(http.StatusNotFound, "user_not_found")
	}
}
