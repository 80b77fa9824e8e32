//go:build browser

package app_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// TestTheClientForJavaScriptInABrowser is about a page of a listed origin that imports the client from the service.
func TestTheClientForJavaScriptInABrowser(t *testing.T) {
	ctx := browser(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><body>a page</body>")
	})
	mux.Handle("/elsewhere/", http.RedirectHandler("/", http.StatusFound))
	pages := httptest.NewServer(mux)
	t.Cleanup(pages.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(pages.URL, "http://"), ":")
	origin := "http://app.example:" + port // not a secure context: it has no crypto.randomUUID
	r := start(t, localpgtest.New(t), func(cfg *config.Config) {
		if err := cfg.CORSOrigins.Decode(origin); err != nil {
			t.Fatal(err)
		}
	})
	c := newClient(t)
	const id = "ä b/c%d"
	c.do(http.StatusCreated, http.MethodPost, r.url+"/user", `{"cognito_user_id": "ä b/c%d"}`)
	c.do(http.StatusOK, http.MethodPost, r.url+"/user/"+"%C3%A4%20b%2Fc%25d"+"/add-tokens", `{"tokens_to_add": 100}`)

	script := page(t, ctx, origin)
	got := script(fmt.Sprintf(`(async () => {
		const { UserManagement, InsufficientTokensError, UnexpectedAnswerError } = await import('%[1]s/clients/user-management.mjs')
		const users = new UserManagement('%[1]s')
		const answer = await users.withReservation(%[2]q, 50, async (reservation) => {
			reservation.tokensUsed = 30
			return 'an answer'
		})
		const entries = []
		for await (const entry of users.ledger(%[2]q)) entries.push(entry.kind)
		const refused = await users.consume(%[2]q, 71).catch((error) => error instanceof InsufficientTokensError && error.tokensRemaining)
		const astray = await new UserManagement('%[3]s/elsewhere').status('u').catch((error) => error instanceof UnexpectedAnswerError)
		const again = await users.consume(%[2]q, 1, { idempotencyKey: 'k' }).then(() => users.consume(%[2]q, 1, { idempotencyKey: 'k' }))
		return [answer, entries.join('+'), refused, astray, again.replayed, again.tokens_remaining].join(' ')
	})().catch(String)`, r.url, id, origin))
	if want := "an answer settle+reserve+top_up 70 true true 69"; got != want {
		t.Errorf("the page got %q, want %q", got, want)
	}
}
