package usertest

import (
	"flag"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/viralpilot/user-management/internal/user"
)

func TestMain(m *testing.M) {
	// More histories than the 100 that rapid draws of itself; -rapid.checks on the command line wins.
	if err := flag.Set("rapid.checks", "1000"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// TestSequences_Reach counts what a few thousand sequences come to, so that a change of the generator cannot make the
// property tests idle.
func TestSequences_Reach(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for seed := range 2000 {
		q := Sequences([]int{user.MaxHoldsPerUpdate, 1, 3, user.MaxHoldsPerUpdate}[seed%4]).Example(seed)
		before := q.opened
		seen["steps"] += len(q.Steps)
		for i, o := range q.outcomes {
			count(seen, q.Steps[i], before, o)
			before = o.after
		}
	}
	for _, what := range []string{
		"validation_failed", "invalid_tier", "user_inactive", "subscription_inactive", "subscription_lapsed", "insufficient_tokens",
		"balance_overflow", "idempotency_key_reused", "reservation_not_found", "reservation_closed", "too_many_reservations",
		"entry_not_found", "refund_exceeds_charge", "refund_too_late", "user_exists",
		"opening", "consume", "top_up", "monthly_reset", "tier_change", "reserve", "extend", "expire", "settle", "release", "refund", "profile_change",
		"replay", "settle or release repeated under another key", "keyed without a change", "keyed though unlimited",
		"kept with a refusal", "left unwritten", "adopted by a command", "adopted after a deletion", "made again", "reconciled",
		"clock behind the last reset", "earlier month by another zone", "allowance cut", "left due for another update",
		"smaller tier, over its allowance", "there and back", "return to an exceeded allowance", "allowance lifted by a return",
		"several holds carried at once", "same expiry", "carried return of top-ups", "carried return of allowance", "carried top-ups cut to what is held",
		"shortfall", "excess charged", "settled again", "settled late", "settled late of an earlier period", "released when expired", "hold of nothing",
		"extended to its end", "extended when due", "several ended by a deactivation",
		"refund within the period", "refund of an earlier period", "refund of a carried hold", "refund of both parts of a carried hold",
		"refund in part", "refund of a charge of before an opening", "refund under another tier",
		"near 32 bits",
	} {
		if seen[what] < 10 {
			t.Errorf("%s: only %d times", what, seen[what])
		}
	}
	t.Log(seen)
}

func count(seen map[string]int, s Step, before model, o outcome) {
	wrote := len(o.after.entries) > len(before.entries)
	is := func(what string, true bool) {
		if true {
			seen[what]++
		}
	}
	seen[string(o.refusal)]++
	for _, e := range o.after.entries[min(len(before.entries), len(o.after.entries)):] {
		seen[string(e.Kind)]++
		is("allowance cut", (e.Kind == user.KindMonthlyReset || e.Kind == user.KindTierChange) &&
			o.after.balance() < user.MaxTokens && o.after.balance()+o.after.held()+o.after.used == user.MaxTokens)
		is("keyed without a change", e.IdempotencyKey != nil && e.Amount == 0 && e.TokensCharged == 0 && e.TokensRefunded == 0)
	}
	countKinds(is, s, before, o)
	countHolds(is, before, o)
	last := before.row.LastReset
	is("clock behind the last reset", last != nil && s.At.Before(*last))
	is("earlier month by another zone", before.row.SideRow == user.CurrentSideRow && last != nil && !s.At.Before(*last) && month(s.At, s.Rules.ResetZone) < before.granted)
	is("replay", o.replayed)
	is("kept with a refusal", o.refusal != "" && wrote)
	is("adopted by a command", wrote && before.row.SideRow == user.NoSideRow)
	is("adopted after a deletion", wrote && before.row.SideRow == user.NoSideRow && len(before.entries) > 0)
	a := o.after.account()
	is("near 32 bits", a.TokensRemaining+a.TokensUsed+a.Reserved > user.MaxTokens-100)
	is("allowance lifted by a return", o.after.limit > before.limit && o.after.row.Tier == before.row.Tier && o.after.granted == before.granted &&
		before.row.SideRow == user.CurrentSideRow && o.after.row.SideRow == user.CurrentSideRow)
	is("left due for another update", len(due(o.after)) > 0 && o.refusal == "")
}

func due(m model) (list []*user.Reservation) {
	for _, h := range m.holds() {
		if m.due(*h) {
			list = append(list, h)
		}
	}
	return list
}

func countKinds(is func(string, bool), s Step, before model, o outcome) {
	accepted := o.refusal == "" && !o.replayed
	before.rules, before.at = s.Rules, s.At
	switch c := s.Command.(type) {
	case user.Consume:
		is("keyed though unlimited", accepted && o.after.tier().Unlimited && o.entry > 0)
	case Read:
		is("left unwritten", len(o.after.entries) == len(before.entries) && before.resetDue() && before.row.SideRow == user.CurrentSideRow)
	case Replace:
		is("made again", c.Row == nil && len(before.entries) > 0)
	case Reconcile:
		is("reconciled", len(o.after.entries) > len(before.entries))
	case user.ChangeTier:
		a, b := o.after.account(), before.account()
		is("smaller tier, over its allowance", accepted && a.AllowanceExcess > b.AllowanceExcess)
		is("there and back", accepted && b.AllowanceExcess > 0 && a.AllowanceExcess == 0 && a.TokensRemaining > a.TopUps && a.GrantedPeriod == b.GrantedPeriod)
	case user.Deactivate:
		is("several ended by a deactivation", len(before.holds()) > 1 && len(o.after.holds()) == 0)
	case user.Extend:
		h := before.reservation(c.ReservationID)
		is("extended when due", o.refusal == user.CodeReservationClosed && before.due(*h))
		is("extended to its end", accepted && o.reservation.ExpiresAt.Equal(h.CreatedAt.Add(24*time.Hour)))
	case user.Release:
		is("settle or release repeated under another key", o.replayed && c.IdempotencyKey != "" && (o.entry == 0 || text(o.after.entries[o.entry-1].IdempotencyKey) != c.IdempotencyKey))
		is("released when expired", accepted && before.reservation(c.ReservationID).Status == user.ReservationExpired)
	case user.Settle:
		is("settle or release repeated under another key", o.replayed && c.IdempotencyKey != "" && (o.entry == 0 || text(o.after.entries[o.entry-1].IdempotencyKey) != c.IdempotencyKey))
		is("settled again", o.replayed)
		if h := o.reservation; accepted {
			is("shortfall", h.Shortfall > 0)
			is("excess charged", h.Charged > h.Tokens)
			is("hold of nothing", h.Tokens == 0)
			is("settled late", h.Late)
			is("settled late of an earlier period", h.Late && o.after.carried(*h) && h.Charged > 0)
		}
	case user.Refund:
		if accepted {
			countRefund(is, c, before, o)
		}
	}
}

func countRefund(is func(string, bool), c user.Refund, before model, o outcome) {
	charge, refund := o.after.entries[c.EntryID-1], o.after.entries[o.entry-1]
	is("refund in part", o.after.refundable(c.EntryID) > 0)
	if !o.after.chargedInPeriod(c.EntryID) {
		is("refund of an earlier period", true)
		is("refund of a charge of before an opening", *charge.Period == o.after.granted)
		return
	}
	is("refund within the period", true)
	is("refund under another tier", !o.after.only)
	own := o.after.own[c.EntryID-1] - (charge.TokensCharged - o.after.refundable(c.EntryID) - refund.TokensRefunded)
	is("refund of a carried hold", own < refund.TokensRefunded)
	is("refund of both parts of a carried hold", 0 < own && own < refund.TokensRefunded)
	is("return to an exceeded allowance", refund.Amount < refund.TokensRefunded)
}

func countHolds(is func(string, bool), before model, o outcome) {
	if o.after.granted == before.granted {
		for i, r := range o.after.reservations[:min(len(before.reservations), len(o.after.reservations))] {
			was := before.reservations[i]
			if was.Status != user.ReservationOpen || r.Status == user.ReservationOpen || r.Period == o.after.granted {
				continue
			}
			is("carried return of top-ups", r.Returned > 0)
			is("carried return of allowance", r.Tokens-r.Charged > r.Returned)
			is("carried top-ups cut to what is held", o.after.carriedTopUps < before.carriedTopUps-r.Returned)
		}
		return
	}
	carried, expiry := 0, map[time.Time]bool{}
	for _, h := range o.after.holds() {
		if o.after.carried(*h) {
			carried++
			is("same expiry", expiry[h.ExpiresAt])
			expiry[h.ExpiresAt] = true
		}
	}
	is("several holds carried at once", carried > 1)
}
