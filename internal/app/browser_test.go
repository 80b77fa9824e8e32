//go:build browser

package app_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// browser starts Chromium, for which every host below example is this machine.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("host-resolver-rules", "MAP *.example 127.0.0.1"),
		chromedp.WSURLReadTimeout(patience),
	)
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	if err := chromedp.Do(ctx); err != nil { // starts it, without a time limit that would end it
		t.Fatal(err)
	}
	return ctx
}

// page opens a page and returns a function that runs a script in it, which may be a promise.
func page(t *testing.T, ctx context.Context, url string) (script func(string) string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return func(js string) string {
		t.Helper()
		ctx, stop := context.WithTimeout(ctx, patience)
		defer stop()
		result, err := chromedp.Run(ctx, chromedp.Evaluate[string](js, chromedp.EvalAwaitPromise))
		if err != nil {
			t.Fatalf("%s: %v", js, err)
		}
		return result
	}
}

// attacks are what a page may send to the service at BASE about the account victim and the new one. Each is a promise of
// what became of it, as far as the page can tell.
var attacks = map[string]string{
	"POST of JSON":           `fetch('BASE/user/victim/add-tokens', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"tokens_to_add": 1}'})`,
	"POST of text":           `fetch('BASE/user/victim/add-tokens', {method: 'POST', mode: 'no-cors', body: '{"tokens_to_add": 1}'})`,
	"POST without a type":    `fetch('BASE/user/victim/add-tokens', {method: 'POST', mode: 'no-cors', body: new Blob(['{"tokens_to_add": 1}'])})`,
	"PUT":                    `fetch('BASE/user/victim/tier', {method: 'PUT', headers: {'Content-Type': 'application/json'}, body: '{"tier": "agency"}'})`,
	"DELETE":                 `fetch('BASE/user/victim', {method: 'DELETE'})`,
	"POST of a new account":  `fetch('BASE/user', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"cognito_user_id": "ACCOUNT"}'})`,
	"GET of a new account":   `fetch('BASE/user/ACCOUNT')`,
	"image of a new account": `new Promise(done => { const i = new Image(); i.onload = i.onerror = () => done({status: 'image'}); i.src = 'BASE/user/ACCOUNT' })`,
	"list of all users":      `fetch('BASE/users')`,
	"form": `new Promise(done => {
		const frame = document.createElement('iframe'), form = document.createElement('form'), field = document.createElement('input')
		frame.name = 'target'
		form.target = 'target'; form.method = 'POST'; form.enctype = 'text/plain'; form.action = 'BASE/user/victim/add-tokens'
		field.name = '{"tokens_to_add": 1, "metadata": {"a": "'; field.value = '"}}'
		form.append(field)
		document.body.append(frame, form)
		frame.onload = () => done({status: 'form'})
		form.submit()
	})`,
}

func TestPagesOfOtherOriginsInABrowser(t *testing.T) {
	ctx := browser(t)
	// The page of a name that was rebound is the attacker's, although it is read from the service here.
	ignorePolicies := func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, cdppage.SetBypassCSP, cdppage.SetBypassCSPParams{Enabled: true})
		return chromedp.Void{}, err
	}
	if err := chromedp.Do(ctx, ignorePolicies); err != nil {
		t.Fatal(err)
	}
	blank := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<!doctype html><body>a page</body>")
	}))
	t.Cleanup(blank.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(blank.URL, "http://"), ":")
	origin := func(host string) string { return "http://" + host + ":" + port }

	for _, c := range []struct {
		outcome, origins string
		page             func(service string) string
		allowed          bool
	}{
		{"another site, CORS_ORIGINS=*", "*", func(string) string { return origin("evil.example") }, false},
		{"another site, CORS_ORIGINS without *", "https://app.test", func(string) string { return origin("evil.example") }, false},
		{"another port of this host", "*", func(string) string { return origin("127.0.0.1") }, false},
		{"a name that was rebound, CORS_ORIGINS=*", "*", func(service string) string {
			return strings.Replace(service, "127.0.0.1", "rebound.example", 1) + "/livez"
		}, false},
		{"a name that was rebound, CORS_ORIGINS without *", "https://app.test", func(service string) string {
			return strings.Replace(service, "127.0.0.1", "rebound.example", 1) + "/livez"
		}, false},
		{"a listed origin", origin("friend.example"), func(string) string { return origin("friend.example") }, true},
		{"a listed origin beside *", "*," + origin("friend.example"), func(string) string { return origin("friend.example") }, true},
	} {
		t.Run(c.outcome, func(t *testing.T) {
			dsn := localpgtest.New(t)
			r := start(t, dsn, func(cfg *config.Config) {
				if err := cfg.CORSOrigins.Decode(c.origins); err != nil {
					t.Fatal(err)
				}
			})
			direct, db := newClient(t), connect(t, dsn)
			direct.tester(r, "victim")
			state := func() string {
				return localpgtest.Query[string](db, `SELECT string_agg(concat_ws(' ', cognito_user_id, subscription_tier, tokens_remaining, is_active), E'\n'
					ORDER BY cognito_user_id) || (SELECT E'\n' || count(*) FROM viralpilot.ledger) FROM viralpilot.userdata`)
			}
			from := c.page(r.url)
			script := page(t, ctx, from)
			base := r.url
			if strings.Contains(from, "rebound.example") {
				base = "" // the page believes that it is the service's own
			}
			n := 0
			for name, attack := range attacks {
				n++
				before := state()
				js := strings.NewReplacer("BASE", base, "ACCOUNT", fmt.Sprint("account-", n)).Replace(attack)
				result := script(`(` + js + `).then(r => String(r.status), e => 'refused: ' + e)`)
				changed := state() != before
				reads := name == "list of all users" || name == "GET of a new account"
				switch {
				case !c.allowed && strings.Contains(from, "rebound") && strings.HasPrefix(result, "refused"):
					t.Errorf("%s has not reached the service: %s", name, result)
				case !c.allowed && changed:
					t.Errorf("%s has changed something: %s", name, result)
				case !c.allowed && reads && result == "200":
					t.Errorf("%s is answered", name)
				case c.allowed && reads && result != "200":
					t.Errorf("%s of a listed origin: %s", name, result)
				case c.allowed && !changed && (strings.HasPrefix(name, "POST of JSON") || name == "PUT" || name == "POST of a new account" || name == "GET of a new account"):
					t.Errorf("%s of a listed origin has changed nothing: %s", name, result)
				}
				t.Logf("%s: %s, changed %v", name, result, changed)
			}
		})
	}
}

func TestSwaggerUITriesCallsOutInABrowser(t *testing.T) {
	ctx := browser(t)
	for _, origins := range []string{"*", "https://app.test"} {
		t.Run("CORS_ORIGINS="+origins, func(t *testing.T) {
			r := start(t, localpgtest.New(t), func(cfg *config.Config) {
				if err := cfg.CORSOrigins.Decode(origins); err != nil {
					t.Fatal(err)
				}
			})
			const call = "#operations-Accounts-createUser "
			ctx, stop := context.WithTimeout(ctx, 2*patience)
			defer stop()
			err := chromedp.Do(ctx,
				chromedp.Navigate(r.url+"/docs"),
				chromedp.Click(chromedp.CSS(call+".opblock-summary-control"), chromedp.NodeVisible),
				chromedp.Click(chromedp.CSS(call+"button.try-out__btn"), chromedp.NodeVisible),
				chromedp.Click(chromedp.CSS(call+"button.execute"), chromedp.NodeVisible),
			)
			if err != nil {
				t.Fatal(err)
			}
			status, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(call+".live-responses-table tbody .response-col_status"), chromedp.NodeVisible))
			if err != nil || !strings.HasPrefix(status, "201") {
				t.Errorf("the call is answered with %q, %v", status, err)
			}
		})
	}
}

func TestTheDocumentationIsReadableInABrowser(t *testing.T) {
	ctx := browser(t)
	r := start(t, localpgtest.New(t))
	script := page(t, ctx, r.url+"/docs")
	// Resolves as soon as the calls are there.
	const shown = `window.pending = (async () => { while (!document.querySelector('.opblock')) await new Promise(requestAnimationFrame); return '' })()`
	script(shown)

	t.Run("the first call is the one that is made first", func(t *testing.T) {
		if first := script(`document.querySelector('.opblock').id`); first != "operations-Spending-getUserStatus" {
			t.Errorf("it is %s", first)
		}
	})
	t.Run("nothing asks to be unlocked", func(t *testing.T) {
		if locks := script(`String([...document.querySelectorAll('.authorization__btn, .authorize')].filter(e => e.offsetParent).length)`); locks != "0" {
			t.Errorf("%s padlocks are shown", locks)
		}
	})
	for _, scheme := range []string{"light", "dark"} {
		look := func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return chromedp.Void{}, err
		}
		if err := chromedp.Do(ctx, look); err != nil {
			t.Fatal(err)
		}
		t.Run("the page is "+scheme+" when the browser is", func(t *testing.T) {
			// The sums of red, green and blue.
			colours := script(`[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.opblock-summary-path')).color]
				.map(c => c.match(/\d+/g).slice(0, 3).reduce((sum, n) => sum + Number(n), 0)).join(' ')`)
			var page, text int
			if _, err := fmt.Sscan(colours, &page, &text); err != nil {
				t.Fatal(err)
			}
			if dark := page < 200 && text > 500; dark != (scheme == "dark") {
				t.Errorf("the page's colours are %s", colours)
			}
		})
	}
	t.Run("all calls fit a screen of 390 pixels", func(t *testing.T) {
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(390, 844)); err != nil {
			t.Fatal(err)
		}
		calls := strings.Fields(script(`[...document.querySelectorAll('.opblock')].map(call => call.id).join(' ')`))
		if len(calls) < 20 {
			t.Errorf("there are %d calls", len(calls))
		}
		for _, call := range calls {
			// The promise is kept, since otherwise it is collected while nothing but a timer knows it.
			width := script(`window.pending = (async () => {
				const call = document.getElementById('` + call + `'), pause = () => new Promise(done => setTimeout(done, 10))
				call.querySelector('.opblock-summary-control').click()
				while (!call.querySelector('.responses-wrapper')) await pause()
				call.querySelector('.try-out__btn').click()
				while (!call.querySelector('.execute')) await pause()
				const width = document.documentElement.scrollWidth
				call.querySelector('.opblock-summary-control').click()
				return String(width)
			})()`)
			if width != "390" {
				t.Errorf("%s is %s pixels wide", call, width)
			}
		}
	})
}

func TestKeysStayInABrowserOnlyWhenAsked(t *testing.T) {
	ctx := browser(t)
	_, entry, err := auth.NewKey(auth.Key{Name: "reader", Scopes: []auth.Scope{auth.Read}})
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, localpgtest.New(t), func(cfg *config.Config) {
		if err := cfg.APIKeys.Decode(entry); err != nil {
			t.Fatal(err)
		}
	})
	const (
		give  = `(ui.authActions.authorizeWithPersistOption({apiKeyAuth: {name: 'apiKeyAuth', schema: {type: 'apiKey', in: 'header', name: 'X-API-Key'}, value: 'SECRET'}}), '')`
		kept  = `String(Object.values(localStorage).some(v => v.includes('SECRET')))`
		known = `String(JSON.stringify(ui.authSelectors.authorized()).includes('SECRET'))`
	)
	open := func() (script func(string) string) { return page(t, ctx, r.url+"/docs") }

	script := open()
	script(give)
	if got := script(kept); got != "false" {
		t.Error("a key is kept though nobody asked for it")
	}
	if script = open(); script(known) != "false" {
		t.Error("a key outlives the page though nobody asked for it")
	}

	ask := func() {
		t.Helper()
		ctx, stop := context.WithTimeout(ctx, patience)
		defer stop()
		if _, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS("#keep"), chromedp.NodeVisible)); err != nil { // the page reloads
			t.Fatal(err)
		}
	}
	script(give)
	ask()
	if script = open(); script(known) != "true" || script(kept) != "true" {
		t.Error("a key is not kept though somebody asked for it")
	}

	ask()
	if script = open(); script(known) != "false" || script(kept) != "false" {
		t.Error("a key is kept though nobody asks for it any more")
	}
}
