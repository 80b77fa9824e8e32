package httpapi_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/httpapi"
	"github.com/viralpilot/user-management/internal/telemetry"
	"github.com/viralpilot/user-management/internal/user"
)

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header           { return d.header }
func (*discard) Write(p []byte) (int, error)     { return len(p), nil }
func (*discard) WriteHeader(int)                 {}
func (*discard) SetReadDeadline(time.Time) error { return nil }

// BenchmarkRouter is what a request costs beside net/http and the database: an open service as it is shipped, with its
// log and metrics, on a store that answers at once.
func BenchmarkRouter(b *testing.B) {
	tiers, err := user.NewCatalogue(nil)
	if err != nil {
		b.Fatal(err)
	}
	store := &recorder{balance: user.MaxTokens}
	h := httpapi.New(httpapi.Options{
		Users:          &user.Service{Store: store, Rules: user.NewRules(tiers, time.UTC), Now: store.now},
		Log:            telemetry.NewLogger(io.Discard, slog.LevelInfo, "json"),
		Observer:       telemetry.NewMetrics("test", "test", httpapi.Codes()),
		CORSOrigins:    []string{"*"},
		LogRequests:    httpapi.LogAll,
		MaxInFlight:    1024,
		BodyTimeout:    3 * time.Second,
		RequestTimeout: 10 * time.Second,
	}).Handler()
	for _, c := range []struct{ name, method, path, body string }{
		{"livez", http.MethodGet, "/livez", ""},
		{"user", http.MethodGet, "/user/user-1", ""},
		{"status", http.MethodGet, "/user/user-1/status", ""},
		{"consume", http.MethodPost, "/user/user-1/consume-tokens", `{"tokens_to_consume": 1}`},
		{"refused", http.MethodPost, "/user/user-1/consume-tokens", `{"tokens_to_consume": 0}`},
	} {
		b.Run(c.name, func(b *testing.B) {
			template := httptest.NewRequestWithContext(b.Context(), c.method, c.path, http.NoBody)
			template.Host, template.RemoteAddr = "127.0.0.1:8001", "127.0.0.1:50000"
			if c.body != "" {
				template.Header.Set("Content-Type", "application/json")
				template.ContentLength = int64(len(c.body))
			}
			b.ReportAllocs()
			for b.Loop() {
				r, u := *template, *template.URL
				r.URL = &u
				if c.body != "" {
					r.Body = io.NopCloser(strings.NewReader(c.body))
				}
				h.ServeHTTP(&discard{http.Header{}}, &r)
			}
		})
	}
}
