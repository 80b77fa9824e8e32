package usertest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/viralpilot/user-management/internal/user"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSequencesReach counts what three thousand sequences come to, so that a change of the generator cannot make the
// property tests idle.
func TestSequencesReach(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for seed := range 3000 {
		q := Sequences().Example(seed)
		before := q.opened
		seen["steps"] += len(q.Steps)
		for i, o := range q.outcomes {
			count(seen, q.Steps[i], before, o)
			before = o.after
		}
	}
	for _, what := range []string{
		"validation_failed", "invalid_tier", "user_inactive", "subscription_inactive", "insufficient_tokens",
		"balance_overflow", "idempotency_key_reused", "reservation_not_found", "reservation_closed", "reservation_expired",
		"entry_not_found", "refund_exceeds_charge",
		"opening", "consume", "top_up", "monthly_reset", "tier_change", "reserve", "expire", "settle", "release", "refund", "profile_change",
		"replay", "unlimited", "kept with a refusal", "left unwritten", "adopted by a command", "clock behind the last reset",
		"several holds carried at once", "same expiry", "top-ups of a hold in part", "top-ups in several holds", "carried return", "allowance cut",
		"overspent allowance carried", "shortfall", "excess charged", "settled again", "refund within the term", "late refund",
		"refund of a carried hold", "refund in part", "hold of nothing",
	} {
		if seen[what] < 10 {
			t.Errorf("%s: only %d times", what, seen[what])
		}
	}
	t.Log(seen)
}

func count(seen map[string]int, s Step, before model, o outcome) {
	countClosing(seen, s, before, o)
	wrote := len(o.after.entries) > len(before.entries)
	seen[string(o.refusal)]++
	for _, e := range o.after.entries[len(before.entries):] {
		seen[string(e.Kind)]++
		if (e.Kind == user.KindMonthlyReset || e.Kind == user.KindTierChange) && o.after.tier().Allowance > e.BalanceAfter {
			seen["allowance cut"]++
		}
	}
	if c, ok := s.Command.(user.Consume); ok && o.refusal == "" && o.entry == 0 && c.Tokens > 0 {
		seen["unlimited"]++
	}
	if last := before.row.LastReset; last != nil && s.At.Before(*last) {
		seen["clock behind the last reset"]++
	}
	if _, ok := s.Command.(Read); ok && !wrote && before.monthIsOverAt(s) {
		seen["left unwritten"]++
	}
	if o.replayed {
		seen["replay"]++
	}
	if o.refusal != "" && wrote {
		seen["kept with a refusal"]++
	}
	if wrote && !before.row.Adopted {
		seen["adopted by a command"]++
	}
	var carried, withTopUps int
	for i, r := range o.after.reservations {
		if i < len(before.reservations) {
			was := before.reservations[i]
			if was.Carried && was.Status != r.Status && r.Returned > 0 {
				seen["carried return"]++
			}
			if was.Carried || !r.Carried {
				continue
			}
			carried++
			if r.TopUp > 0 {
				withTopUps++
			}
			if 0 < r.TopUp && r.TopUp < r.Tokens {
				seen["top-ups of a hold in part"]++
			}
			if before.charged > before.allowance && before.allowance > 0 {
				seen["overspent allowance carried"]++
			}
			if i > 0 && r.ExpiresAt.Equal(before.reservations[i-1].ExpiresAt) {
				seen["same expiry"]++
			}
		}
	}
	if carried > 1 {
		seen["several holds carried at once"]++
	}
	if withTopUps > 1 {
		seen["top-ups in several holds"]++
	}
}

func countClosing(seen map[string]int, s Step, before model, o outcome) {
	switch c := s.Command.(type) {
	case user.Settle:
		if o.refusal != "" {
			return
		}
		h, was := o.reservation, before.reservation(c.ReservationID)
		if was.Status == user.ReservationSettled {
			seen["settled again"]++
			return
		}
		if h.Shortfall > 0 {
			seen["shortfall"]++
		}
		if h.Charged > h.Tokens {
			seen["excess charged"]++
		}
		if h.Tokens == 0 {
			seen["hold of nothing"]++
		}
	case user.Refund:
		if o.refusal != "" || o.replayed {
			return
		}
		charge := o.after.entries[c.EntryID-1]
		switch {
		case c.EntryID <= int64(o.after.begun):
			seen["late refund"]++
		case charge.ReservationID != nil && o.after.reservation(*charge.ReservationID).Carried:
			seen["refund of a carried hold"]++
		default:
			seen["refund within the term"]++
		}
		if o.after.refundable(c.EntryID) > 0 {
			seen["refund in part"]++
		}
	}
}

func (m model) monthIsOverAt(s Step) bool {
	m.at, m.rules = s.At, s.Rules
	return m.monthIsOver()
}
