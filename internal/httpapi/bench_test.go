package httpapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// The codec alone. Compare two versions with benchstat: go test ./internal/httpapi -run '^$' -bench . -count 10.

func BenchmarkDecodeConsume(b *testing.B) {
	for name, body := range map[string]string{
		"plain":         `{"tokens_to_consume": 250}`,
		"with metadata": `{"tokens_to_consume": 250, "metadata": {"model": "large", "feature": "captions"}}`,
	} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodPost, "/user/u/consume-tokens", http.NoBody)
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			b.ReportAllocs()
			for b.Loop() {
				var in consumeRequest
				r.Body = io.NopCloser(strings.NewReader(body))
				if err := decode(w, r, &in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncodeReceipt(b *testing.B) {
	now := time.Date(2026, 11, 24, 10, 0, 0, 123456000, time.UTC)
	receipt := user.Receipt{
		Account: user.Account{ID: "user-1", Tier: user.TierTester, SubscriptionStatus: user.StatusActive, LastReset: &now, CreatedAt: now, UpdatedAt: now},
		Entry:   &user.Entry{ID: 4711},
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := respondWith(httptest.NewRecorder(), http.StatusOK, newReceiptBody(receipt)); err != nil {
			b.Fatal(err)
		}
	}
}
