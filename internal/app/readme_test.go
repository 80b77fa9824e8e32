package app_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// The two functions of the earlier service's README, as PostPilot's backend has them: the same requests, and the same
// reading of the answers.

// checkUserPermission returns the exception that the function raises, or "".
func (c client) checkUserPermission(r *replica, id string) string {
	c.t.Helper()
	a, err := c.try(http.MethodGet, r.url+"/user/"+id+"/status", "", "Accept", "*/*", "User-Agent", "python-requests/2.32.3")
	if err != nil {
		c.t.Fatal(err)
	}
	if a.Status != 200 {
		return "Failed to check user status"
	}
	can, ok := a.Body["can_make_request"].(bool)
	switch tier := a.Body["subscription_tier"]; {
	case !ok || tier == nil:
		c.t.Fatalf("status: %v", a.Body)
	case can:
		return ""
	case tier == "free":
		return "Please subscribe to a plan to use this feature"
	}
	return "Please top up your account with tokens"
}

// consumeUserTokens returns the warning that the function logs, or "".
func (c client) consumeUserTokens(r *replica, id string, tokens int) string {
	c.t.Helper()
	a, err := c.try(http.MethodPost, r.url+"/user/"+id+"/consume-tokens", fmt.Sprintf(`{"tokens_to_consume": %d}`, tokens),
		"Accept", "*/*", "User-Agent", "python-requests/2.32.3")
	if err != nil {
		c.t.Fatal(err)
	}
	if a.Status != 200 {
		return "Failed to consume tokens for user " + id
	}
	return ""
}

func TestTheCallsOfTheEarlierREADME(t *testing.T) {
	t.Parallel()
	r, c := start(t, localpgtest.New(t)), newClient(t)
	permission := func(id, want string) {
		t.Helper()
		if got := c.checkUserPermission(r, id); got != want {
			t.Errorf("permission of %s: %q, want %q", id, got, want)
		}
	}
	consume := func(id string, tokens int, want string) {
		t.Helper()
		if got := c.consumeUserTokens(r, id, tokens); got != want {
			t.Errorf("consume of %s: %q, want %q", id, got, want)
		}
	}
	const id = "test-user-123"
	permission(id, "Failed to check user status")
	consume(id, 1, "Failed to consume tokens for user "+id)
	c.do(http.StatusOK, http.MethodGet, r.url+"/user/somebody-new/status?create=true", "")
	permission("somebody-new", "Please subscribe to a plan to use this feature")

	c.do(http.StatusOK, http.MethodGet, r.url+"/health", "")
	c.do(http.StatusOK, http.MethodGet, r.url+"/tiers", "")
	a := c.do(http.StatusCreated, http.MethodPost, r.url+"/user", `{"cognito_user_id": "test-user-123", "username": "testuser", "email": "test@example.com"}`)
	if a.Body["username"] != "testuser" || a.Body["email"] != "test@example.com" || a.Body["subscription_tier"] != "free" {
		t.Errorf("created: %v", a.Body)
	}
	permission(id, "Please subscribe to a plan to use this feature")
	consume(id, 1, "Failed to consume tokens for user "+id)

	c.do(http.StatusOK, http.MethodPut, r.url+"/user/"+id+"/tier", `{"tier": "tester", "renewal_date": "2027-01-01T00:00:00"}`)
	permission(id, "")
	consume(id, 1, "")
	consume(id, 999, "")
	permission(id, "Please top up your account with tokens")
	consume(id, 1, "Failed to consume tokens for user "+id)

	c.do(http.StatusOK, http.MethodPost, r.url+"/user/"+id+"/add-tokens", `{"tokens_to_add": 5}`)
	permission(id, "")
	consume(id, 5, "")

	c.do(http.StatusOK, http.MethodPut, r.url+"/user/"+id+"/tier", `{"tier": "admin"}`)
	permission(id, "")
	consume(id, 1_000_000, "")
	a = c.do(http.StatusOK, http.MethodGet, r.url+"/user/"+id, "")
	if a.Body["tokens_used_this_month"] != 1005.0 { // what the month used before stays
		t.Errorf("an unlimited account is counted: %v", a.Body)
	}
}
