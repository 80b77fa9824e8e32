package httpapi_test

import (
	"net/http"
	"testing"
	"time"
)

// refund gives back all that is left of a charge, or so many tokens of it.
func (s *service) refund(id string, entry any, tokens ...int) response {
	s.t.Helper()
	body := m{"entry_id": entry}
	for _, n := range tokens {
		body["tokens"] = n
	}
	return s.post("/user/"+id+"/refunds", body)
}

// charge consumes tokens and returns the id of the entry.
func (s *service) charge(id string, tokens int) any {
	s.t.Helper()
	return s.consume(id, tokens).want(http.StatusOK)["entry_id"]
}

func TestRefund_GivesBackWhatWasCharged(t *testing.T) {
	t.Parallel()
	s := start(t)
	const exceeds = "refund_exceeds_charge"
	for name, run := range map[string]func(t *testing.T, s *service, id string){
		"all of a charge comes back as if it had not been spent": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			got := s.post("/user/"+id+"/refunds", m{"entry_id": entry, "metadata": m{"reason": "failed"}}).want(http.StatusOK)
			shape(t, got, receiptFields)
			tokens(t, got, 1000, 0)
			has(t, s.entries(id)[0], m{
				"kind": "refund", "amount": 100, "refunded_entry_id": entry, "entry_id": got["entry_id"], "tokens_charged": 0,
				"tokens_refunded": 100, "top_ups_amount": 0,
				"metadata": m{"reason": "failed"}, "balance_after": 1000, "used_after": 0,
			})
			has(t, s.status(id), m{"top_up_tokens": 0})
		},
		"parts come back up to the whole": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			tokens(t, s.refund(id, entry, 30).want(http.StatusOK), 930, 70)
			tokens(t, s.refund(id, entry, 30).want(http.StatusOK), 960, 40)
			s.refund(id, entry, 41).wantProblem(http.StatusConflict, exceeds)
			tokens(t, s.refund(id, entry).want(http.StatusOK), 1000, 0)
			s.refund(id, entry, 1).wantProblem(http.StatusConflict, exceeds)
		},
		"too much is refused": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			s.refund(id, entry, 101).wantProblem(http.StatusConflict, exceeds)
			tokens(t, s.refund(id, entry, 100).want(http.StatusOK), 1000, 0)
		},
		"a second time is refused": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			s.refund(id, entry).want(http.StatusOK)
			s.refund(id, entry).wantProblem(http.StatusConflict, exceeds)
			tokens(t, s.status(id), 1000, 0)
		},
		"a key refunds once": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			body := m{"entry_id": entry}
			first := s.keyed("/user/"+id+"/refunds", body, "key").want(http.StatusOK)
			s.consume(id, 1).want(http.StatusOK)
			again := s.keyed("/user/"+id+"/refunds", body, "key")
			if again.Header.Get("Idempotency-Replayed") != "true" {
				t.Errorf("headers %v", again.Header)
			}
			tokens(t, again.want(http.StatusOK), 1000, 0)
			has(t, again.want(http.StatusOK), m{"entry_id": first["entry_id"]})
			s.keyed("/user/"+id+"/refunds", m{"entry_id": entry, "tokens": 1}, "key").wantProblem(http.StatusUnprocessableEntity, "idempotency_key_reused")
			tokens(t, s.status(id), 999, 1)
		},
		"a refund cannot be refunded": func(_ *testing.T, s *service, id string) {
			refund := s.refund(id, s.charge(id, 100)).want(http.StatusOK)
			s.refund(id, refund["entry_id"]).wantProblem(http.StatusConflict, exceeds)
		},
		"a top-up cannot be refunded": func(_ *testing.T, s *service, id string) {
			s.refund(id, s.add(id, 5).want(http.StatusOK)["entry_id"]).wantProblem(http.StatusConflict, exceeds)
		},
		"what is only reserved cannot be refunded": func(_ *testing.T, s *service, id string) {
			s.reserve(id, 5)
			s.refund(id, s.entries(id)[0]["entry_id"]).wantProblem(http.StatusConflict, exceeds)
		},
		"a settle comes back up to what it charged": func(t *testing.T, s *service, id string) {
			settled := s.settle(s.reserve(id, 100), 30).want(http.StatusOK)
			s.refund(id, settled["entry_id"], 31).wantProblem(http.StatusConflict, exceeds)
			tokens(t, s.refund(id, settled["entry_id"]).want(http.StatusOK), 1000, 0)
		},
		"a settle of nothing has nothing to refund": func(_ *testing.T, s *service, id string) {
			s.refund(id, s.settle(s.reserve(id, 100), 0).want(http.StatusOK)["entry_id"]).wantProblem(http.StatusConflict, exceeds)
		},
		"after a tier change it comes back as the allowance that it was": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			s.put("/user/"+id+"/tier", m{"tier": "free"}).want(http.StatusOK)
			tokens(t, s.refund(id, entry, 60).want(http.StatusOK), 0, 40)
			has(t, s.entries(id)[0], m{"kind": "refund", "amount": 0, "tokens_refunded": 60, "tokens_charged": 0})
			s.refund(id, entry, 41).wantProblem(http.StatusConflict, exceeds)
			tokens(t, s.put("/user/"+id+"/tier", m{"tier": "tester"}).want(http.StatusOK), 960, 40)
		},
		"an account may be refunded though it may not spend": func(t *testing.T, s *service, id string) {
			entry := s.charge(id, 100)
			s.patch(id, m{"is_active": false, "subscription_status": "unpaid"}).want(http.StatusOK)
			tokens(t, s.refund(id, entry).want(http.StatusOK), 1000, 0)
		},
		"an unknown entry is entry_not_found": func(_ *testing.T, s *service, id string) {
			for _, entry := range []string{"9223372036854775807", "9223372036854775808", "0", "-1", "", "x", "01", " 1", "1.0"} {
				s.refund(id, entry).wantProblem(http.StatusNotFound, "entry_not_found")
			}
			s.refund("nobody", "x").wantProblem(http.StatusNotFound, "user_not_found")
		},
		"another user's entry is entry_not_found": func(t *testing.T, s *service, id string) {
			other := s.account("tester", 0)
			s.refund(id, s.charge(other, 100)).wantProblem(http.StatusNotFound, "entry_not_found")
			tokens(t, s.status(other), 900, 100)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := s.in(t)
			run(t, s, s.account("tester", 0))
		})
	}
}

func TestRefund_InALaterMonthIsATopUp(t *testing.T) {
	t.Parallel()
	s := start(t)
	id, held := s.account("tester", 0), s.account("tester", 0)
	entry := s.charge(id, 100)
	s.clock.Set(time.Date(2026, 11, 30, 23, 59, 59, 0, time.UTC))
	path := s.reserve(held, 100)
	s.later(time.Second)
	tokens(t, s.refund(id, entry, 60).want(http.StatusOK), 1060, 0) // the refund is the month's first touch
	has(t, s.status(id), m{"top_up_tokens": 60})
	settled := s.settle(path, 40).want(http.StatusOK)
	tokens(t, settled, 1000, 40)
	s.later(31 * 24 * time.Hour)
	tokens(t, s.refund(id, entry).want(http.StatusOK), 1100, 0) // top-ups stayed
	has(t, s.status(id), m{"top_up_tokens": 100})
	tokens(t, s.refund(held, settled["entry_id"]).want(http.StatusOK), 1040, 0)
	s.add(held, 2147483647-1040).want(http.StatusOK)
	charge := s.charge(held, 1)
	s.later(31 * 24 * time.Hour) // the allowance comes again
	s.refund(held, charge).wantProblem(http.StatusConflict, "balance_overflow")
	s.later(60 * 24 * time.Hour)
	s.refund(held, charge).wantProblem(http.StatusConflict, "refund_too_late")
}
