package usertest

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // the reset zones

	"pgregory.net/rapid"

	"github.com/viralpilot/user-management/internal/user"
)

// Sequence is the history of one account and what must come of it.
type Sequence struct {
	// Row is the account at the start, without an id: without a side row as the earlier service left it, or one that the
	// service made, by the rules of the first step.
	Row user.Account
	// Earlier is the account at the start where it is one of the version before granted periods.
	Earlier *Earlier
	Steps   []Step
	// MaxHolds is how many holds an update of the subject must return at most.
	MaxHolds int

	by       user.Command // makes the account, unless Row has it
	opened   model
	outcomes []outcome
}

// Step is a command at an instant, under the configuration of that instant.
type Step struct {
	At    time.Time
	Rules user.Rules
	// Command is a [user.Command], [Read], [Reconcile] or [Replace]. A refund has the number of an entry for its id,
	// counted from 1.
	Command any
}

// GoString lists the steps with their outcomes, for rapid's report.
func (q Sequence) GoString() string {
	var b strings.Builder
	fmt.Fprintf(&b, "at most %d holds an update\n  row %+v", q.MaxHolds, view(q.opened.account()))
	for i, s := range q.Steps {
		fmt.Fprintf(&b, "\n  %d. %s, %s: %s → %s%+v", i+1, s.At.Format(time.RFC3339Nano), s.settings(), describe(s.Command),
			q.outcomes[i].refusal, view(q.outcomes[i].after.account()))
	}
	return b.String()
}

// settings are those of the step that matter most.
func (s Step) settings() string {
	list := []string{s.Rules.ResetZone.String()}
	for _, t := range s.Rules.Tiers.All() {
		if t.Allowance > 0 || t.Unlimited {
			list = append(list, fmt.Sprintf("%s:%d", t.Tier, t.Allowance))
		}
	}
	return strings.Join(list, " ")
}

var (
	zones = []*time.Location{mustLoad("UTC"), mustLoad("Europe/Berlin"), mustLoad("America/Asuncion"), mustLoad("Pacific/Kiritimati")}
	// In Asunción the first midnight of October 1993 does not exist.
	starts = []time.Time{instant("1999-12-30T22:00:00Z"), instant("1993-09-30T12:00:00Z"), instant("1996-02-29T23:59:59.999999Z"), instant("2000-03-01T00:00:00Z")}
	// latest is before which all steps are, so that all holds have run out by the clock of any store.
	latest   = instant("2020-01-01T00:00:00Z")
	tiers    = []user.Tier{user.TierAdmin, user.TierTester, user.TierFree, user.TierBasic, user.TierCreator, user.TierAgency, "legacy"}
	statuses = []user.SubscriptionStatus{"active", "trialing", "past_due", "canceled", "unpaid", "paused", "incomplete", "incomplete_expired"}
)

// Sequences draws histories, most of 5 to 50 steps, that keep to the limits of the rules: amounts to the token around
// what is there, instants to the microsecond around the ends of months and of holds. They are for a subject that returns
// at most maxHolds due holds in one update.
func Sequences(maxHolds int) *rapid.Generator[Sequence] {
	return rapid.Custom(func(t *rapid.T) Sequence {
		w := newWriter(t, maxHolds)
		if rapid.Bool().Draw(t, "opened by the service") {
			w.sequence.by = creation(t)
			w.open(w.sequence.by)
			w.wrote = false
		} else {
			w.row = legacyRow(w.now).Draw(t, "row")
		}
		w.sequence.Row, w.sequence.opened = w.account(), w.clone()
		w.play(history(moves()).Draw(t, "moves"))
		return w.sequence
	})
}

// history draws lists of moves.
func history[T any](moves *rapid.Generator[T]) *rapid.Generator[[][]T] {
	// A slice of slices, since one alone comes out with some six elements and one with a minimum does not shrink.
	return rapid.SliceOfN(rapid.SliceOfN(moves, 1, 20), 1, 20)
}

// legacyRow draws rows as the earlier service, or a hand, could leave them.
func legacyRow(now time.Time) *rapid.Generator[user.Account] {
	tokens := rapid.OneOf(rapid.Int64Range(0, 20), rapid.Int64Range(0, 20), rapid.SampledFrom([]int64{0, 1300, -3, 7, 0, 15, user.MaxTokens - 4, user.MaxTokens}))
	days := rapid.IntRange(-70, 2)
	return rapid.Custom(func(t *rapid.T) user.Account {
		a := user.Account{
			Tier:               rapid.SampledFrom(tiers).Draw(t, "tier"),
			SubscriptionStatus: rapid.SampledFrom([]user.SubscriptionStatus{"active", "active", "active", "trialing", "trialing", "canceled"}).Draw(t, "status"),
			Active:             rapid.IntRange(0, 9).Draw(t, "active") < 9,
			TokensRemaining:    tokens.Draw(t, "remaining"),
			TokensUsed:         tokens.Draw(t, "used"),
			CreatedAt:          now,
			UpdatedAt:          now,
		}
		if rapid.Bool().Draw(t, "was reset") {
			last := now.AddDate(0, 0, days.Draw(t, "days"))
			a.LastReset = &last
		}
		return a
	})
}

// catalogue draws the allowances of a configuration; also the administrator may be given one.
func catalogue() *rapid.Generator[user.Catalogue] {
	const builtIn = -1
	allowance := rapid.SampledFrom([]int64{builtIn, 10, 20, 0, 10, 3, 12, 10, 5, 20, 0, 10, 15, builtIn, 8, 10, 20, user.MaxTokens - 9, user.MaxTokens})
	return rapid.Custom(func(t *rapid.T) user.Catalogue {
		overrides := map[string]int64{}
		for _, tier := range tiers[:6] {
			if tokens := allowance.Draw(t, string(tier)); tokens != builtIn {
				overrides[string(tier)] = tokens
			}
		}
		c, err := user.NewCatalogue(overrides)
		if err != nil {
			panic(err)
		}
		return c
	})
}

// limits draws the settings beside the tiers and the zone.
func limits() *rapid.Generator[user.Rules] {
	hours := func(n time.Duration) *time.Duration { n *= time.Hour; return &n }
	return rapid.Custom(func(t *rapid.T) user.Rules {
		return user.Rules{
			MaxOpenReservations: rapid.SampledFrom([]int64{8, 8, 8, 2, 1}).Draw(t, "most reservations"),
			RefundMaxAge:        rapid.SampledFrom([]time.Duration{90 * 24 * time.Hour, 90 * 24 * time.Hour, 12 * time.Hour}).Draw(t, "refunds"),
			Grace:               rapid.SampledFrom([]*time.Duration{nil, nil, hours(0), hours(72)}).Draw(t, "grace"),
			LowBalancePercent:   rapid.SampledFrom([]int64{20, 20, 0, 50, 100}).Draw(t, "low"),
		}
	})
}

// writer lengthens a sequence. It plays every step on the model, so that the next one can depend on what is there.
type writer struct {
	model
	now      time.Time
	rules    user.Rules
	sequence Sequence
}

func newWriter(t *rapid.T, maxHolds int) *writer {
	w := &writer{now: rapid.SampledFrom(starts).Draw(t, "start"), rules: limits().Draw(t, "limits")}
	w.rules.Tiers, w.rules.ResetZone = catalogue().Draw(t, "catalogue"), rapid.SampledFrom(zones).Draw(t, "zone")
	w.at, w.model.rules, w.maxHolds = w.now, w.rules, maxHolds
	w.sequence.MaxHolds = maxHolds
	return w
}

func (w *writer) play(moves [][]move) {
	for _, move := range slices.Concat(moves...) {
		if move(w); !w.now.Before(latest) {
			w.now = latest.Add(-time.Microsecond)
		}
	}
}

// write appends a command.
func (w *writer) write(command any) {
	s := Step{At: w.now, Rules: w.rules, Command: command}
	w.sequence.Steps = append(w.sequence.Steps, s)
	w.sequence.outcomes = append(w.sequence.outcomes, w.do(s))
}

func (w *writer) newID(prefix uint8) string {
	return fmt.Sprintf("%08x-0000-4000-8000-%012d", prefix, len(w.sequence.Steps))
}

// month numbers the calendar months of a zone.
func month(t time.Time, zone *time.Location) int {
	year, month, _ := t.In(zone).Date()
	return year*12 + int(month)
}

// monthEnd finds the first instant of the month after t's by halving, without arithmetic on local times.
func monthEnd(t time.Time, zone *time.Location) time.Time {
	this := month(t, zone)
	before := t.Truncate(time.Microsecond)
	after := before.AddDate(0, 0, 32)
	for after.Sub(before) > time.Microsecond {
		middle := before.Add(after.Sub(before) / 2).Truncate(time.Microsecond)
		if month(middle, zone) > this {
			after = middle
		} else {
			before = middle
		}
	}
	return after
}

func instant(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t
}

func mustLoad(zone string) *time.Location {
	l, err := time.LoadLocation(zone)
	if err != nil {
		panic(err)
	}
	return l
}

func ptr[T any](v T) *T { return &v }
