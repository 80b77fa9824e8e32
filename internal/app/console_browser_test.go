//go:build browser

package app_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	browserlog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/viralpilot/user-management/internal/config"
	"github.com/viralpilot/user-management/internal/demo"
	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
)

// tab is a tab of the browser that shows the console of a service. Whatever it asks another host for, an error on its
// console, an exception, or what its policy forbids, fails the test at its end.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string
	// refusals are the statuses that the test provokes: the browser writes each of them to its console.
	refusals []int

	mu       sync.Mutex
	errors   []string
	requests []*network.Request
}

// openTab opens a tab with nothing in it.
func openTab(t *testing.T, base string, refusals ...int) *tab {
	t.Helper()
	c := &tab{t: t, ctx: browser(t), base: base, refusals: refusals}
	if err := chromedp.Listen(c.ctx, c.note); err != nil {
		t.Fatal(err)
	}
	_, err := chromedp.Call(c.ctx, cdppage.AddScriptToEvaluateOnNewDocument, cdppage.AddScriptToEvaluateOnNewDocumentParams{
		Source: `addEventListener('securitypolicyviolation', e => console.error('the policy forbids', e.violatedDirective, e.blockedURI))`,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.screen(1280, 900)
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, text := range c.errors {
			t.Errorf("on the console: %s", text)
		}
		for _, r := range c.requests {
			if !strings.HasPrefix(r.URL, c.base+"/") && !strings.HasPrefix(r.URL, "data:") {
				t.Errorf("it asks another host: %s", r.URL)
			}
		}
		if len(c.requests) < 5 {
			t.Errorf("only %d requests were seen", len(c.requests))
		}
	})
	return c
}

// note takes note of what the browser tells; it must not wait.
func (c *tab) note(event any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		c.requests = append(c.requests, e.Request)
	case *runtime.EventExceptionThrown:
		c.errors = append(c.errors, fmt.Sprintf("%s %+v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			texts := make([]string, len(e.Args))
			for i, arg := range e.Args {
				texts[i] = string(arg.Value)
			}
			c.errors = append(c.errors, strings.Join(texts, " "))
		}
	case *browserlog.EventEntryAdded:
		if e.Entry.Level == "error" && !c.provoked(e.Entry) {
			c.errors = append(c.errors, fmt.Sprintf("%s %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	}
}

func (c *tab) provoked(e *browserlog.Entry) bool {
	return e.Source == "network" && slices.ContainsFunc(c.refusals, func(status int) bool {
		return strings.Contains(e.Text, fmt.Sprintf("status of %d", status)) || status == 0 && strings.Contains(e.Text, "net::ERR")
	})
}

// sent are the requests of a method whose path begins so.
func (c *tab) sent(method, path string) (requests []*network.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.requests {
		if r.Method == method && strings.HasPrefix(r.URL, c.base+path) {
			requests = append(requests, r)
		}
	}
	return requests
}

func (c *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, patience)
	defer stop()
	if err := chromedp.Do(ctx, steps...); err != nil {
		c.t.Fatalf("%v; the page says: %s", err, c.text("body"))
	}
}

// eval returns what an expression of JavaScript is, or what it promises.
func (c *tab) eval(js string) (result string) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, patience)
	defer stop()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[string](`Promise.resolve(`+js+`).then(String)`, chromedp.EvalAwaitPromise))
	if err != nil {
		c.t.Fatalf("%s: %v", js, err)
	}
	return result
}

// until waits until an expression is true.
func (c *tab) until(js string) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, patience)
	defer stop()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](`Boolean(`+js+`)`)); err != nil {
		c.t.Fatalf("it does not become true that %s: %v; the page says: %s", js, err, c.text("body"))
	}
}

// text is what there is to read in the first element that a selector finds.
func (c *tab) text(selector string) string {
	c.t.Helper()
	text, err := chromedp.Run(c.ctx, chromedp.Evaluate[string](`(document.querySelector(`+quote(selector)+`)?.innerText ?? '')`))
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

// sees waits until a text can be read in the element.
func (c *tab) sees(selector, text string) {
	c.t.Helper()
	c.until(`document.querySelector(` + quote(selector) + `)?.innerText.includes(` + quote(text) + `)`)
}

func quote(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(quoted)
}

// open shows a page of the console, loaded anew.
func (c *tab) open(hash string) {
	c.t.Helper()
	c.do(chromedp.Navigate("about:blank"), chromedp.Navigate(c.base+"/console"+hash))
}

// click clicks the button or link of this text, with the mouse, as soon as it is there; of an open dialog where there is one.
func (c *tab) click(text string) {
	c.t.Helper()
	find := `[...(document.querySelector('dialog[open]') ?? document).querySelectorAll('button, a')].find(e => e.textContent === ` + quote(text) + ` && !e.disabled && e.checkVisibility())`
	c.until(find)
	var at struct{ X, Y float64 }
	place := c.eval(`(() => { const e = ` + find + `; e.scrollIntoView({block: 'center'}); const r = e.getClientRects()[0], x = r.x + r.width / 2, y = r.y + r.height / 2
		return e.contains(document.elementFromPoint(x, y)) ? JSON.stringify({x, y}) : 'covered' })()`)
	if err := json.Unmarshal([]byte(place), &at); err != nil {
		c.t.Fatalf("%q cannot be clicked: %s", text, place)
	}
	c.do(chromedp.MouseClickXY(at.X, at.Y))
}

// enter types a text into a field, in the place of what it has.
func (c *tab) enter(selector, text string) {
	c.t.Helper()
	field := `document.querySelector(` + quote(selector) + `)`
	c.until(field + `?.checkVisibility()`)
	c.eval(field + `.focus(), ` + field + `.select()`)
	c.do(chromedp.KeyEvent(kb.Delete), chromedp.KeyEvent(text))
}

// settled waits until everything on the page is loaded.
func (c *tab) settled() {
	c.t.Helper()
	c.until(`document.querySelector('main h1') && !document.querySelector('.sign-in') && !document.querySelector('[aria-busy]') && !document.querySelector('main .skeleton')`)
}

func (c *tab) signIn(key string) {
	c.t.Helper()
	c.enter("input[name=key]", key)
	c.click("Sign in")
}

func (c *tab) screen(width, height int64) {
	c.t.Helper()
	_, err := chromedp.Call(c.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 500,
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *tab) scheme(scheme string) {
	c.t.Helper()
	_, err := chromedp.Call(c.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// locked starts a service that asks for keys, and returns a secret for each of the scopes asked for.
func locked(t *testing.T, dsn string, port int, scopes ...string) (r *replica, secrets []string) {
	t.Helper()
	var entries []string
	for i, s := range scopes {
		secret, entry := newKey(t, fmt.Sprint("caller-", i), s)
		secrets, entries = append(secrets, secret), append(entries, entry)
	}
	return start(t, dsn, func(cfg *config.Config) {
		cfg.ServicePort = port
		if err := cfg.APIKeys.Decode(strings.Join(entries, ",")); err != nil {
			t.Fatal(err)
		}
	}), secrets
}

// account makes an account of the tester tier with a name, 1000 tokens, charges of two features, and a reservation.
func (c client) account(r *replica, key, id, name string) {
	c.t.Helper()
	auth := []string{"Authorization", "Bearer " + key}
	at := r.url + "/user/" + url.PathEscape(id)
	c.do(http.StatusCreated, http.MethodPut, at, fmt.Sprintf(`{"username": %s, "email": "someone@example.com"}`, quote(name)), auth...)
	c.do(http.StatusOK, http.MethodPut, at+"/tier", `{"tier": "tester", "renewal_date": "2027-01-01"}`, auth...)
	for feature, tokens := range map[string]int{"post-draft": 120, "hashtags": 30, "rewrite": 50} {
		c.do(http.StatusOK, http.MethodPost, at+"/consume-tokens",
			fmt.Sprintf(`{"tokens_to_consume": %d, "metadata": {"feature": %q, "model": "standard"}}`, tokens, feature), auth...)
	}
	c.do(http.StatusCreated, http.MethodPost, at+"/reservations", `{"tokens": 70, "ttl_seconds": 86400, "metadata": {"feature": "video-script"}}`, auth...)
}

func (c client) status(r *replica, key, id string) map[string]any {
	c.t.Helper()
	return c.do(http.StatusOK, http.MethodGet, r.url+"/user/"+url.PathEscape(id)+"/status", "", "Authorization", "Bearer "+key).Body
}

func TestTheConsoleServesSupportInABrowser(t *testing.T) {
	r, keys := locked(t, localpgtest.New(t), 0, "manage+consume")
	key, c := keys[0], newClient(t)
	const id = "us-east-1:ann/%41"
	c.account(r, key, id, "Ann Archer")
	c.account(r, key, "bob", "Bob Baker")
	page := openTab(t, r.url, http.StatusUnauthorized)

	page.open("")
	page.signIn("vp_wrong")
	page.sees("main .problem", "The API key is not known.")
	page.sees("main .problem", "unauthenticated")
	if request := page.text("main .request-id"); len(request) < 10 || strings.Contains(page.eval(`JSON.stringify(sessionStorage)`), "wrong") {
		t.Errorf("the request's id is %q, and stored is %s", request, page.eval(`JSON.stringify(sessionStorage)`))
	}
	page.accessible()
	page.eval(`document.querySelector('input[name=key]').value = 'with a blank of no width \u200b'.replaceAll(' ', '-')`)
	page.click("Sign in")
	page.sees("main .problem", "characters that no key has")
	page.until(`document.querySelector('#away').textContent === ''`)
	page.signIn(key)
	page.sees("h1", "Overview")
	page.settled()
	for storage, want := range map[string]bool{"sessionStorage": true, "localStorage": false, "document.cookie": false, "location.href": false} {
		if got := strings.Contains(page.eval(`JSON.stringify(`+storage+`)`), key); got != want {
			t.Errorf("the key in %s: %v", storage, got)
		}
	}

	// Find a user.
	page.enter("#find", "Ann")
	page.do(chromedp.KeyEvent(kb.Enter))
	page.sees("#results", "Ann Archer")
	page.settled()
	if text := page.text("#results"); strings.Contains(text, "Bob") || !strings.Contains(text, id) {
		t.Errorf("found is %s", text)
	}
	page.click("Ann Archer")
	page.sees("h1", "Ann Archer")
	page.settled()
	page.sees("#balance .amount", "730")
	page.sees("#holds", "70")
	page.chartAgrees(r, c, key, "/user/"+url.PathEscape(id)+"/usage?by=feature", "#usage")

	// Top up.
	page.click("Top up")
	page.enter("dialog input[name=tokens]", "500")
	page.enter("dialog input[name=reason]", "it's a gift")
	page.click("Continue")
	page.sees("dialog .sentence", "Add 500 tokens to "+id+"?")
	line := page.text("dialog .curl")
	if !strings.Contains(line, `-H "Authorization: Bearer $API_KEY"`) || strings.Contains(page.eval(`document.documentElement.outerHTML`), key) {
		t.Errorf("the call is shown as %s", line)
	}
	if page.sent(http.MethodPost, "/user") != nil {
		t.Error("something is sent before it is confirmed")
	}
	page.click("Add tokens")
	page.sees("#toasts", "500 tokens added")
	page.settled()
	page.sees("#balance .amount", "1,230")
	page.sees("#ledger", "“it's a gift”")
	if got := c.status(r, key, id)["top_up_tokens"]; got != 500.0 {
		t.Errorf("top-ups: %v", got)
	}
	posts := page.sent(http.MethodPost, "/user/")
	if sent, ok := posts[0].Headers["Idempotency-Key"]; len(posts) != 1 || !ok || !strings.Contains(line, fmt.Sprint("Idempotency-Key: ", strings.Trim(fmt.Sprint(sent), `"`))) {
		t.Errorf("%d calls were sent, the first with the key %v, and shown is %s", len(posts), sent, line)
	}
	c.runsAsShown(key, line)
	if got := c.status(r, key, id)["top_up_tokens"]; got != 500.0 {
		t.Errorf("the same by curl counts once more: %v", got)
	}

	// Refund the charge of 120 in part, then the rest.
	refund := `[...document.querySelectorAll('#ledger tbody tr')].find(tr => tr.innerText.includes('Charged 120')).querySelector('button')`
	for i, tokens := range []string{"20", ""} {
		page.eval(refund + `.click()`)
		page.enter("dialog input[name=tokens]", tokens)
		page.click("Continue")
		page.sees("dialog .sentence", id)
		page.click("Refund")
		page.until(fmt.Sprintf(`document.querySelectorAll('#toasts .toast').length >= %d`, i+1))
		page.settled()
	}
	page.sees("#ledger", "Gave back 100 tokens of the charge")
	page.until(`!(` + refund + `)`)
	if got := c.status(r, key, id)["tokens_used_this_month"]; got != 80.0 {
		t.Errorf("used: %v", got)
	}

	page.click("Release")
	page.click("Continue")
	page.click("Release")
	page.sees("#holds", "Nothing is held.")

	page.click("Change tier")
	page.until(`document.querySelectorAll('dialog select[name=tier] option').length > 3`)
	page.eval(`document.querySelector('dialog select[name=tier]').value = 'free'`)
	page.click("Continue")
	page.sees("dialog .curl", `"renewal_date":"2027-01-01T00:00:00`) // what was not touched stays
	page.click("Change tier")
	page.until(`document.querySelector('.badges').innerText.includes('free')`)

	page.click("Deactivate")
	page.click("Continue")
	page.click("Deactivate")
	page.sees(".badges", "deactivated")
	if got := c.status(r, key, id)["reason"]; got != "user_inactive" {
		t.Errorf("reason: %v", got)
	}
	page.click("Activate")
	page.click("Continue")
	page.click("Activate")
	page.until(`!document.querySelector('.badges').innerText.includes('deactivated')`)

	page.click("Erase")
	page.click("Continue")
	page.enter("dialog input[name=typed]", "somebody else")
	page.click("Erase for ever")
	page.sees("dialog .problem", "another id")
	page.enter("dialog input[name=typed]", id)
	page.click("Erase for ever")
	page.sees("h1", "Users")
	c.do(http.StatusNotFound, http.MethodGet, r.url+"/user/"+url.PathEscape(id)+"/status", "", "Authorization", "Bearer "+key)

	page.click("Sign out")
	page.sees("h1", "Sign in")
	if stored := page.eval(`sessionStorage.length`); stored != "0" {
		t.Errorf("%s things are still stored", stored)
	}
}

// runsAsShown sends the command by the curl of this machine.
func (c client) runsAsShown(key, line string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), "sh", "-c", line+` -sS -o /dev/null -w '%{http_code}'`)
	cmd.Env = append(os.Environ(), "API_KEY="+key)
	if status, err := cmd.CombinedOutput(); err != nil || string(status) != "200" {
		c.t.Errorf("%s: %s %v", line, status, err)
	}
}

// chartAgrees holds the table below the chart of a part, and what the pointer shows over each of its days, against an
// answer of the API.
func (c *tab) chartAgrees(r *replica, api client, key, path, part string) {
	c.t.Helper()
	answer := api.do(http.StatusOK, http.MethodGet, r.url+path, "", "Authorization", "Bearer "+key).Body
	days := answer["days"].([]any)
	for len(days) > 0 && days[len(days)-1].(map[string]any)["tokens_charged"] == 0.0 { // those that are to come
		days = days[:len(days)-1]
	}
	if len(days) == 0 {
		c.t.Fatal("there is nothing to compare with")
	}
	last := days[len(days)-1].(map[string]any)
	want := map[string]float64{}
	for _, v := range last["values"].([]any) {
		value := v.(map[string]any)
		want[fmt.Sprint(value["value"])] = value["tokens_charged"].(float64)
	}
	if len(want) < 2 {
		c.t.Fatalf("there is nothing to compare with: %v", last)
	}
	c.eval(`document.querySelector('` + part + ` details.figures').open = true`)
	c.until(`document.querySelector('` + part + ` details.figures tbody')`)
	var table [][]string
	text := c.eval(`JSON.stringify([...document.querySelectorAll('` + part + ` details.figures tr')].map(tr => [...tr.cells].map(td => td.textContent)))`)
	if err := json.Unmarshal([]byte(text), &table); err != nil {
		c.t.Fatal(err)
	}
	if len(table) != len(days)+1 || table[len(table)-1][0] != last["date"] {
		c.t.Fatalf("the table has %d rows for %d days: %v", len(table), len(days), table)
	}
	for column, name := range table[0][1:] {
		expected := want[name]
		if name == "all" {
			expected = last["tokens_charged"].(float64)
		}
		got, err := strconv.ParseFloat(strings.ReplaceAll(table[len(table)-1][column+1], ",", ""), 64)
		if err != nil || got != expected {
			c.t.Errorf("%s: the table has %v, the API %v", name, got, expected)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		c.t.Errorf("the table lacks %v", want)
	}
	// The same by pointing at the last day.
	var box struct{ X, Y float64 }
	place := c.eval(`(() => { const over = document.querySelector('` + part + ` .u-over'); over.scrollIntoView({block: 'center'}); const r = over.getBoundingClientRect();
		return JSON.stringify({x: r.right - r.width / ` + strconv.Itoa(len(days)) + ` / 2, y: r.top + r.height / 2}) })()`)
	if err := json.Unmarshal([]byte(place), &box); err != nil {
		c.t.Fatal(err)
	}
	c.do(chromedp.MouseEvent("mouseMoved", box.X-1, box.Y), chromedp.MouseEvent("mouseMoved", box.X, box.Y))
	c.until(`document.querySelector('` + part + ` .tooltip:not([hidden])')`)
	shown := strings.ReplaceAll(c.text(part+" .tooltip"), ",", "")
	for _, v := range last["values"].([]any) {
		value := v.(map[string]any)
		if charged := value["tokens_charged"].(float64); charged > 0 && !regexp.MustCompile(fmt.Sprintf(`%v\s*%.0f\b`, value["value"], charged)).MatchString(shown) {
			c.t.Errorf("pointed at, the day is %s, and the API says %v", shown, value)
		}
	}
	if !strings.Contains(shown, fmt.Sprintf("%.0f tokens", last["tokens_charged"])) {
		c.t.Errorf("pointed at, the day is %s, and the API says %v", shown, last["tokens_charged"])
	}
}

func TestTheConsoleShowsWhatAKeyMayDoInABrowser(t *testing.T) {
	r, keys := locked(t, localpgtest.New(t), 0, "manage+consume", "read", "export+read", "metrics", "read+refund")
	c := newClient(t)
	c.account(r, keys[0], "ann", "Ann Archer")
	for _, caller := range []struct {
		scopes, key      string
		pages            string
		actions, refunds string
		profile          bool
	}{
		{"manage", keys[0], "Overview Users", "Top up,Change tier,Deactivate,Erase", "3", true},
		{"read", keys[1], "Users", "", "0", true},
		{"export and read", keys[2], "Overview Users", "", "0", true},
		{"metrics", keys[3], "", "", "0", false},
		{"read and refund", keys[4], "Users", "", "3", true},
	} {
		t.Run(caller.scopes, func(t *testing.T) {
			page := openTab(t, r.url, http.StatusUnauthorized)
			page.open("#/user/ann")
			page.signIn(caller.key)
			page.settled()
			if got := page.eval(`[...document.querySelectorAll('nav a')].map(a => a.textContent).join(' ')`); got != caller.pages {
				t.Errorf("pages are %q", got)
			}
			if !caller.profile {
				page.sees("main", "none of the scopes that this page needs")
				if calls := page.sent(http.MethodGet, "/user/"); calls != nil {
					t.Errorf("it asks in vain: %v", calls[0].URL)
				}
				return
			}
			page.sees("#balance .amount", "730")
			if got := page.eval(`[...document.querySelectorAll('.actions button')].map(b => b.textContent).filter(Boolean).join(',')`); got != caller.actions {
				t.Errorf("actions are %q", got)
			}
			if got := page.eval(`document.querySelectorAll('#ledger td button').length`); got != caller.refunds {
				t.Errorf("%s charges can be refunded", got)
			}
		})
	}

	t.Run("a call that is refused all the same", func(t *testing.T) {
		page := openTab(t, r.url, http.StatusUnauthorized, http.StatusForbidden)
		page.open("#/user/ann")
		page.signIn(keys[0])
		page.settled()
		page.click("Top up")
		page.enter("dialog input[name=tokens]", "5")
		page.click("Continue")
		page.eval(`sessionStorage.setItem('viralpilot-api-key', ` + quote(keys[1]) + `)`) // what another key would be told
		page.click("Add tokens")
		page.sees("dialog .problem", "This call needs the scope manage, which the caller does not have.")
		page.sees("dialog .problem", "forbidden")
		if len(page.text("dialog .request-id")) < 10 {
			t.Error("the problem has no request id")
		}
	})
}

func TestTheConsoleNeverTakesTextForMarkupInABrowser(t *testing.T) {
	r, keys := locked(t, localpgtest.New(t), 0, "manage+consume")
	key, c := keys[0], newClient(t)
	const attack = `<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>`
	id := `"><svg onload=alert(1)>'` + "`"
	c.account(r, key, id, attack)
	c.do(http.StatusOK, http.MethodPost, r.url+"/user/"+url.PathEscape(id)+"/add-tokens", fmt.Sprintf(`{"tokens_to_add": 1, "metadata": {"reason": %s, %s: "v"}}`, quote(attack), quote(attack[:60])),
		"Authorization", "Bearer "+key, "Idempotency-Key", `<b>key</b>`)
	c.do(http.StatusOK, http.MethodPost, r.url+"/user/"+url.PathEscape(id)+"/consume-tokens", fmt.Sprintf(`{"tokens_to_consume": 3, "metadata": {"feature": %s, "model": %s}}`, quote(attack), quote(attack)),
		"Authorization", "Bearer "+key)
	page := openTab(t, r.url, http.StatusUnauthorized)
	page.open("")
	page.signIn(key)
	page.settled()
	page.click("Users")
	page.sees("#results", attack)
	page.settled()
	page.click(attack)
	page.sees("h1", attack)
	page.settled()
	page.sees("#ledger", "“"+attack+"”")
	page.eval(`document.querySelectorAll('details').forEach(d => d.open = true)`)
	page.sees("#ledger", "<b>key</b>")
	page.sees("#usage", attack)
	page.click("Top up")
	page.enter("dialog input[name=tokens]", "1")
	page.click("Continue")
	page.sees("dialog .sentence", id)
	if found := page.eval(`document.querySelectorAll('main img, main script, dialog img, dialog script, svg[onload], b').length + document.title`); !strings.HasPrefix(found, "0") || strings.HasSuffix(found, "taken") {
		t.Errorf("markup is taken for what it says: %s", found)
	}
	line := page.text("dialog .curl")
	c.runsAsShown(key, line)
	if got := c.status(r, key, id)["top_up_tokens"]; got != 2.0 {
		t.Errorf("the line for the shell has done another thing: %v", got)
	}
}

func TestTheConsoleNoticesAServiceThatGoesAwayInABrowser(t *testing.T) {
	dsn, port := localpgtest.New(t), freePort(t)
	r := start(t, dsn, func(cfg *config.Config) { cfg.ServicePort = port })
	c := newClient(t)
	c.tester(r, "ann")
	page := openTab(t, r.url, 0, http.StatusServiceUnavailable)
	page.open("#/user/ann") // the service is open: nobody has to sign in
	page.sees("#balance .amount", "1,000")
	page.sees("header", "open service")
	page.settled()
	page.enter("#find", "half a na")
	page.click("Top up")
	page.enter("dialog input[name=tokens]", "25")
	page.enter("dialog input[name=reason]", "half a senten")
	typed := `document.querySelector('#find').value + '|' + document.querySelector('dialog input[name=tokens]').value + '|' + document.querySelector('dialog input[name=reason]').value`
	page.click("Continue")

	r.stop()
	page.click("Add tokens")
	page.sees("dialog .problem", "Trying again is safe")
	page.sees("#away", "The service does not answer.")
	page.sees("dialog .dialog-away", "The service does not answer.")
	page.sees("#balance .amount", "1,000") // what was there stays

	r = start(t, dsn, func(cfg *config.Config) { cfg.ServicePort = port })
	page.until(`document.querySelector('#away').textContent === ''`)
	page.click("Back")
	if got := page.eval(typed); got != "half a na|25|half a senten" {
		t.Errorf("what was typed is %q", got)
	}
	page.click("Continue")
	page.click("Add tokens")
	page.sees("#balance .amount", "1,025")

	loseNextAnswer := func() {
		page.eval(`(() => { const real = fetch; fetch = async (...args) => { if (args[1]?.method === 'POST') { fetch = real; await real(...args); throw new TypeError('lost') } return real(...args) } })()`)
	}
	// An answer that is lost: the change was made, and the same click once more does not make it again.
	page.click("Top up")
	page.enter("dialog input[name=tokens]", "100")
	page.click("Continue")
	loseNextAnswer()
	page.click("Add tokens")
	page.sees("dialog .problem", "Trying again is safe")
	back := `document.querySelector('.dialog-away').textContent === ''` // what is said of the service moves the buttons
	page.until(back)
	page.click("Try again")
	page.until(`!document.querySelector('dialog')`)
	page.sees("#balance .amount", "1,125")
	page.settled()
	db := connect(t, dsn)
	if n := db.count("ann", "top_up"); n != 2 {
		t.Errorf("%d top-ups were made", n)
	}

	// Whoever goes back, or closes the dialog and comes again, sends the same call with its key; another call is told apart.
	for i, way := range []func(){
		func() { page.click("Back") },
		func() {
			page.eval(`document.querySelector('dialog').close()`)
			page.click("Top up")
			page.enter("dialog input[name=tokens]", "31")
			page.click("Continue")
			page.sees("dialog [role=alert].lead", "may have been done as well")
			page.click("Back")
			page.enter("dialog input[name=tokens]", "30")
		},
	} {
		page.click("Top up")
		page.enter("dialog input[name=tokens]", "30")
		page.click("Continue")
		loseNextAnswer()
		page.click("Add tokens")
		page.sees("dialog .problem", "Trying again is safe")
		page.until(back)
		way()
		page.click("Continue")
		page.click("Add tokens")
		page.until(`!document.querySelector('dialog')`)
		page.sees("#balance .amount", fmt.Sprintf("1,1%d", 55+30*i))
		page.settled()
		if n := db.count("ann", "top_up"); n != 3+i {
			t.Errorf("%d top-ups were made, want %d", n, 3+i)
		}
	}

	// A refusal that comes before the service looks for the key tells nothing of the first time, nor does what becomes of
	// another call.
	answerNext := func(status int) {
		page.eval(fmt.Sprintf(`(() => { const real = fetch; fetch = async (...args) => { if (args[1]?.method === 'POST') { fetch = real; return new Response('{"code": "refused", "detail": "Refused for now."}', {status: %d}) } return real(...args) } })()`, status))
	}
	for i, way := range []func(){
		func() {
			answerNext(http.StatusTooManyRequests)
			page.click("Try again")
			page.sees("dialog .problem", "Refused for now.")
			page.click("Back")
		},
		func() {
			page.click("Back")
			page.enter("dialog input[name=tokens]", "41")
			page.click("Continue")
			page.sees("dialog [role=alert].lead", "may have been done as well")
			answerNext(http.StatusConflict)
			page.click("Add tokens")
			page.sees("dialog .problem", "Refused for now.")
			page.click("Back")
			page.enter("dialog input[name=tokens]", "40")
		},
	} {
		page.click("Top up")
		page.enter("dialog input[name=tokens]", "40")
		page.click("Continue")
		loseNextAnswer()
		page.click("Add tokens")
		page.sees("dialog .problem", "Trying again is safe")
		page.until(back)
		way()
		page.click("Continue")
		page.click("Add tokens")
		page.until(`!document.querySelector('dialog')`)
		page.settled()
		if n := db.count("ann", "top_up"); n != 5+i {
			t.Errorf("%d top-ups were made, want %d", n, 5+i)
		}
	}

	// Nor does it count twice when the dialog is closed, and the same is asked for, before there is an answer.
	page.eval(`(() => { const real = fetch; fetch = async (...args) => { if (args[1]?.method !== 'POST') return real(...args); fetch = real; const answer = await real(...args); await new Promise(go => { window.goOn = go }); return answer } })()`)
	for range 2 {
		page.click("Top up")
		page.enter("dialog input[name=tokens]", "50")
		page.click("Continue")
		page.click("Add tokens")
		page.until(`window.goOn`)
		page.eval(`document.querySelector('dialog')?.close()`)
	}
	page.until(`document.querySelector('#balance .amount').innerText.includes('1,315')`)
	page.eval(`goOn()`)
	page.settled()
	if n := db.count("ann", "top_up"); n != 7 {
		t.Errorf("%d top-ups were made, want 7", n)
	}

	// What puts the user into a state is sent anew: an earlier answer says nothing of what has happened in between.
	page.eval(`(() => { const real = fetch; fetch = async (...args) => { if (args[1]?.method === 'PATCH') { fetch = real; await real(...args); throw new TypeError('lost') } return real(...args) } })()`)
	page.click("Deactivate")
	page.click("Continue")
	page.click("Deactivate")
	page.sees("dialog .problem", "Trying again is safe")
	page.until(back)
	page.eval(`document.querySelector('dialog').close()`)
	for _, text := range []string{"Activate", "Deactivate", "Activate"} {
		page.settled()
		page.click(text)
		page.click("Continue")
		page.click(text)
		page.until(`!document.querySelector('dialog')`)
		page.settled()
		active := page.eval(`!document.querySelector('.badges').innerText.includes('deactivated')`)
		if want := fmt.Sprint(text == "Activate"); active != want {
			t.Fatalf("after %s the user is active: %s", text, active)
		}
	}

	// Without anybody doing anything, too, and when it comes back the page shows what has changed meanwhile.
	r.stop()
	page.sees("#away", "The service does not answer.")
	r = start(t, dsn, func(cfg *config.Config) { cfg.ServicePort = port })
	c.do(http.StatusOK, http.MethodPost, r.url+"/user/ann/consume-tokens", `{"tokens_to_consume": 5}`)
	page.sees("#balance .amount", "1,310")
	page.until(`document.querySelector('#away').textContent === ''`)
}

var pictures = flag.String("pictures", "", "folder to keep the pictures of all pages of the console in, those of a long history")

// views are the pages of the console, by the name of their picture, with what is clicked there.
var views = []struct {
	name, hash string
	clicks     []string
}{
	{"overview", "#/overview", nil},
	{"users", "#/users?tier=basic", nil},
	{"user", "#/user/ID", nil},
	{"top-up", "#/user/ID", []string{"Top up", "Continue"}},
	{"erase", "#/user/ID", []string{"Erase", "Continue"}},
	{"nobody", "#/user/nobody-of-this-name", nil},
	{"nothing", "#/nothing", nil},
}

// TestThePagesOfTheConsoleInABrowser looks at each page wide, narrow and dark: nothing may be wider than the screen, and
// axe may find nothing serious.
func TestThePagesOfTheConsoleInABrowser(t *testing.T) {
	history := demo.History{Accounts: 40, Days: 32, Until: time.Now()}
	if *pictures != "" {
		history.Accounts, history.Days = 300, 90
	}
	dsn := localpgtest.New(t)
	tell(t, dsn, history)
	r := start(t, dsn, demoSettings(t))
	db := connect(t, dsn)
	id := localpgtest.Query[string](db, `SELECT cognito_user_id FROM viralpilot.userdata JOIN viralpilot.account_state USING (cognito_user_id)
		WHERE is_active AND tokens_remaining > 0 AND subscription_tier = 'creator' ORDER BY tokens_reserved > 0 DESC, top_ups DESC, cognito_user_id LIMIT 1`)
	page := openTab(t, r.url, http.StatusNotFound)
	for _, look := range []struct {
		name, scheme  string
		width, height int64
	}{{"1280", "light", 1280, 900}, {"1280-dark", "dark", 1280, 900}, {"390", "light", 390, 844}, {"390-dark", "dark", 390, 844}} {
		page.screen(look.width, look.height)
		page.scheme(look.scheme)
		for _, view := range views {
			t.Run(view.name+" "+look.name, func(t *testing.T) {
				page := &tab{t: t, ctx: page.ctx, base: page.base}
				page.open(strings.ReplaceAll(view.hash, "ID", id))
				page.settled()
				for _, text := range view.clicks {
					page.click(text)
					if text == "Top up" {
						page.enter("dialog input[name=tokens]", "500")
						page.enter("dialog input[name=reason]", "as promised on the phone")
					}
				}
				if width := page.eval(`document.documentElement.scrollWidth`); width != fmt.Sprint(look.width) {
					t.Errorf("the page is %s wide on a screen of %d", width, look.width)
				}
				page.accessible()
				if *pictures != "" {
					page.picture(filepath.Join(*pictures, view.name+"-"+look.name+".png"))
				}
			})
		}
	}
}

// accessible fails the test for each finding of axe, serious or not.
func (c *tab) accessible() {
	c.t.Helper()
	axe, err := os.ReadFile("../../bin/axe.min.js")
	if err != nil {
		c.t.Fatalf("axe-core is fetched by make test-browser: %v", err)
	}
	c.eval(`(() => { ` + string(axe) + ` })()`)
	var findings []struct {
		ID, Impact, Help string
		Nodes            []struct{ HTML string }
	}
	text := c.eval(`axe.run(document, {resultTypes: ['violations']}).then(result => JSON.stringify(result.violations.map(({id, impact, help, nodes}) => ({id, impact, help, nodes: nodes.map(({html}) => ({html}))}))))`)
	if err := json.Unmarshal([]byte(text), &findings); err != nil {
		c.t.Fatal(err)
	}
	for _, f := range findings {
		c.t.Errorf("axe finds something %s: %s (%s) in %v", f.Impact, f.Help, f.ID, f.Nodes)
	}
}

// picture keeps what is to be seen: of a dialog the screen, and else the beginning of the page.
func (c *tab) picture(file string) {
	c.t.Helper()
	ctx, stop := context.WithTimeout(c.ctx, patience)
	defer stop()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(file, png, 0o644)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}
