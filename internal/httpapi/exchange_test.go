package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
)

func TestTheFirstStatusOfAnAnswerCountsAndEveryByteOfItsBody(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		write         func(w http.ResponseWriter)
		status, bytes int
	}{
		"nothing":          {func(http.ResponseWriter) {}, 0, 0},
		"a body alone":     {func(w http.ResponseWriter) { _, _ = w.Write([]byte("body")) }, http.StatusOK, 4},
		"two statuses":     {func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot); w.WriteHeader(http.StatusOK) }, http.StatusTeapot, 0},
		"a body in pieces": {func(w http.ResponseWriter) { _, _ = w.Write([]byte("a")); _, _ = w.Write([]byte("bc")) }, http.StatusOK, 3},
		"announced first": {func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
		}, http.StatusTeapot, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *exchange
			routes := chi.NewRouter()
			routes.Get("/{id}", func(w http.ResponseWriter, r *http.Request) {
				got = about(r.Context())
				tt.write(w)
			})
			server := httptest.NewServer(exchanging(routes))
			defer server.Close()
			res, err := http.Get(server.URL + "/u")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if sent := max(tt.status, http.StatusOK); res.StatusCode != sent || got.status != tt.status || got.bytes != tt.bytes {
				t.Errorf("status %d, noted %d with %d bytes; want %d, %d, %d", res.StatusCode, got.status, got.bytes, sent, tt.status, tt.bytes)
			}
		})
	}
}

// A value that some middleware alters in place is altered in its own answer only.
func TestHeaderValuesBelongToOneAnswer(t *testing.T) {
	t.Parallel()
	h := New(Options{Log: slog.New(slog.DiscardHandler), LogRequests: LogNone, CORSOrigins: []string{"*"}, RequestTimeout: time.Minute}).Handler()
	answer := func() http.Header {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/livez", http.NoBody))
		return w.Header()
	}
	want := answer().Clone()
	first := answer()
	for name, values := range first {
		if name == "Vary" { // rs/cors shares it
			continue
		}
		values[0] = "altered"
		first[name] = append(values, "appended")
	}
	second := answer()
	for name := range want {
		if name != requestIDHeader && second.Get(name) != want.Get(name) || len(second[name]) != 1 {
			t.Errorf("%s is %q, want %q", name, second[name], want[name])
		}
	}
	if first.Get("Referrer-Policy") != "altered" || first[requestIDHeader][1] != "appended" {
		t.Errorf("the first answer has %q", first)
	}
}

func TestAnExchangeIsTheContextOfItsRequest(t *testing.T) {
	t.Parallel()
	type key struct{}
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	x := &exchange{Context: parent, route: chi.NewRouteContext()}
	bounded, stop := context.WithTimeout(x, time.Hour)
	defer stop()
	if about(bounded) != x || chi.RouteContext(bounded) != x.route || bounded.Value(key{}) != "value" {
		t.Error("what it holds is not found below it")
	}
	cancel()
	<-bounded.Done()
	if bounded.Err() != context.Canceled {
		t.Errorf("ended with %v after its parent was cancelled", bounded.Err())
	}
}
