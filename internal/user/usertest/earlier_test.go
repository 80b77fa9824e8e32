package usertest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/viralpilot/user-management/internal/user"
)

// TestConversion_KeepsTopUps plays histories by the earlier rules, converts the account, and plays it on by both: it must
// never have fewer top-ups than the earlier rules give (rule 15). That the rules are those of the model is shown where
// the sequences of Conversions are played on them.
func TestConversion_KeepsTopUps(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		if b := playedByBoth().Draw(t, "account"); b.err != nil {
			t.Fatal(b.err)
		}
	})
}

// TestPlayedByBoth_Reaches counts what some such histories come to, so that the test above cannot idle.
func TestPlayedByBoth_Reaches(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for seed := range 2000 {
		for what, times := range playedByBoth().Example(seed).seen {
			seen[what] += times
		}
	}
	for _, what := range []string{
		"reset due", "reset due with carried top-ups", "carried top-ups", "own holds", "carried to the next month", "more top-ups than before", "same top-ups as before",
	} {
		if seen[what] < 10 {
			t.Errorf("%s: only %d times", what, seen[what])
		}
	}
	t.Log(seen)
}

// TestConversions_Reach counts what sequences do with what the earlier version has left.
func TestConversions_Reach(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for seed := range 2000 {
		q := Conversions(user.MaxHoldsPerUpdate).Example(seed)
		before := q.opened
		for i, o := range q.outcomes {
			countEarlier(seen, q.Steps[i], before, o)
			before = o.after
		}
	}
	for _, what := range []string{
		"converted", "converted with due holds", "converted with a reset due", "reconciled before the conversion", "replaced before the conversion",
		"refund within the period", "refund of an earlier month", "refund of before a tier change", "refund of a settled carried hold",
		"settled", "settled when carried", "settled late", "released", "replay", "other command under the key",
	} {
		if seen[what] < 10 {
			t.Errorf("%s: only %d times", what, seen[what])
		}
	}
	t.Log(seen)
}

func countEarlier(seen map[string]int, s Step, before model, o outcome) {
	is := func(what string, true bool) {
		if true {
			seen[what]++
		}
	}
	was := before.row.SideRow == user.EarlierSideRow
	converted := was && o.after.row.SideRow == user.CurrentSideRow
	key := meta(s.Command).IdempotencyKey
	for _, e := range before.entries {
		if e.Period == nil && key != "" && text(e.IdempotencyKey) == key {
			is("replay", o.replayed)
			is("other command under the key", o.refusal == user.CodeKeyReused)
		}
	}
	before.at = s.At
	switch c := s.Command.(type) {
	case Reconcile:
		is("reconciled before the conversion", was)
		return
	case Replace:
		is("replaced before the conversion", was)
		return
	case user.Refund:
		if o.refusal != "" || o.replayed || o.after.entries[c.EntryID-1].Period != nil {
			return
		}
		charge := o.after.entries[c.EntryID-1]
		is("refund within the period", o.after.chargedInPeriod(c.EntryID))
		is("refund of a settled carried hold", o.after.own[c.EntryID-1] < charge.TokensCharged)
		for _, e := range o.after.entries[c.EntryID:] {
			is("refund of an earlier month", e.Kind == user.KindMonthlyReset)
			is("refund of before a tier change", e.Kind == user.KindTierChange && e.Period == nil)
		}
	case user.Settle:
		h := before.reservation(c.ReservationID)
		if h == nil || !strings.Contains(h.ID, "-9000-") || o.refusal != "" {
			return
		}
		is("settled", h.Status == user.ReservationOpen)
		is("settled when carried", h.Status == user.ReservationOpen && h.Period == 0)
		is("settled late", h.Status == user.ReservationExpired)
	case user.Release:
		is("released", o.refusal == "" && strings.Contains(c.ReservationID, "-9000-"))
	}
	is("converted", converted)
	is("converted with due holds", converted && len(due(before)) > 0)
	is("converted with a reset due", converted && text(o.after.row.LastReset) != text(before.row.LastReset))
}

// playedByBoth draws an account that was played by both versions.
func playedByBoth() *rapid.Generator[*both] {
	return rapid.Custom(func(t *rapid.T) *both {
		w := newWriter(t, user.MaxHoldsPerUpdate)
		w.rules.MaxOpenReservations, w.rules.RefundMaxAge, w.rules.Grace = 1000, 100*365*24*time.Hour, nil // what was not before
		e := drawEarlier(t, w)
		w.takeOver(e)
		moves := rapid.SliceOfN(rapid.SliceOfN(onMoves(), 1, 8), 1, 6).Draw(t, "moves")
		b := &both{writer: w, earlier: e, seen: map[string]int{}}
		b.step(user.Touch{})
		for _, move := range slices.Concat(moves...) {
			move(b)
		}
		return b
	})
}

// GoString lists the ledgers of both, for rapid's report.
func (b *both) GoString() string {
	var text strings.Builder
	for i, e := range b.earlier.entries {
		fmt.Fprintf(&text, "\n  earlier %d. %+v", i+1, viewEntry(e))
	}
	for i, e := range b.writer.entries {
		fmt.Fprintf(&text, "\n  %d. %+v", i+1, viewEntry(e))
	}
	return text.String()
}

// both is an account that is played by both versions.
type both struct {
	writer  *writer
	earlier *earlier
	seen    map[string]int
	// err is the first difference that must not be.
	err error
	// apart is true once the account may have fewer top-ups: a hold that a change of tier had carried was open at the
	// next month's end.
	apart bool
}

// step plays a command by both, if the earlier version accepts it and has the tokens: who has got more top-ups back could
// be charged more.
func (b *both) step(command any) {
	w := b.writer
	before, wasEarlier := w.clone(), w.row.SideRow == user.EarlierSideRow
	e := b.earlier.clone()
	if !e.do(command, w.now) || e.short() {
		e = b.earlier.clone()
		e.do(user.Touch{}, w.now)
		command = user.Touch{}
	}
	o := w.do(Step{At: w.now, Rules: w.rules, Command: command})
	b.count(before, wasEarlier)
	if !wasEarlier && w.granted != before.granted {
		for _, h := range before.holds() {
			b.apart = b.apart || h.Period == 0 && !before.due(*h)
		}
	}
	b.earlier = e
	// An account that has got more top-ups back is full earlier.
	b.apart = b.apart || o.refusal == user.CodeBalanceOverflow
	switch {
	case b.apart || b.err != nil:
	case o.refusal != "":
		b.err = fmt.Errorf("%s at %s is refused: %s", describe(command), w.now, o.refusal)
	case w.topUps < e.topUpsLeft():
		b.err = fmt.Errorf("%s at %s: %+v, the earlier version has %d top-ups in %d",
			describe(command), w.now, view(w.account()), e.topUpsLeft(), e.balance())
	}
	if w.topUps > e.topUpsLeft() {
		b.seen["more top-ups than before"]++
	} else {
		b.seen["same top-ups as before"]++
	}
}

// short reports whether the last entry is of a settle that lacked tokens.
func (e *earlier) short() bool {
	last := e.entries[len(e.entries)-1]
	return last.Kind == user.KindSettle && e.reservation(*last.ReservationID).Shortfall > 0
}

func (b *both) count(before model, wasEarlier bool) {
	is := func(what string, true bool) {
		if true {
			b.seen[what]++
		}
	}
	w := b.writer
	if !wasEarlier {
		is("carried to the next month", w.granted != before.granted && w.carriedTopUps > 0)
		return
	}
	last := w.entries[len(w.entries)-1]
	reset := last.Kind == user.KindMonthlyReset && last.Period != nil
	is("reset due", reset)
	is("reset due with carried top-ups", reset && before.earlier.CarriedTopUps > 0 && w.carriedTopUps > 0)
	is("carried top-ups", !reset && w.carriedTopUps > 0)
	is("own holds", !reset && before.earlier.Own > 0)
}

// onMoves draws what both versions do in the same way: no change of tier, no settle of what has expired, no refund in
// parts.
func onMoves() *rapid.Generator[func(*both)] {
	return rapid.Custom(func(t *rapid.T) func(*both) {
		n, i, what := rapid.Int64Range(1, 12).Draw(t, "tokens"), rapid.IntRange(0, 3).Draw(t, "which"), rapid.IntRange(0, 12).Draw(t, "what")
		minutes := rapid.SampledFrom([]int{1, 10, 60, 1440}).Draw(t, "minutes")
		return func(b *both) {
			w := b.writer
			holds := b.earlier.holds()
			switch ttl := time.Duration(minutes) * time.Minute; {
			case what < 2:
				b.step(user.Consume{Tokens: n})
			case what < 3:
				b.step(user.AddTokens{Tokens: n})
			case what < 5:
				b.step(user.Reserve{ReservationID: fmt.Sprintf("00000000-0000-4000-8000-%012d", len(w.reservations)), Tokens: n, TTL: ttl})
			case what < 8 && len(holds) > 0:
				b.step(user.Settle{ReservationID: holds[i%len(holds)].ID, TokensUsed: n})
			case what < 9 && len(holds) > 0:
				b.step(user.Release{ReservationID: holds[i%len(holds)].ID})
			case what < 10:
				b.step(user.Refund{EntryID: int64(len(b.earlier.entries) - i)})
			case what < 11:
				w.toMonthEnd(time.Duration(n-6) * time.Minute)
				b.step(user.Touch{})
			default:
				w.now = w.now.Add(time.Duration(n) * ttl / 4)
				b.step(user.Touch{})
			}
		}
	})
}
