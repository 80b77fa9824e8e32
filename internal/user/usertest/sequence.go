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
	// ResetZone is the same for all steps; the tiers may change between them.
	ResetZone *time.Location
	// Row is the account at the start, without an id. Adopted means one that the service made, by the rules of the
	// first step; else it is a row of the earlier service.
	Row   user.Account
	Steps []Step

	opened   model
	outcomes []outcome
}

// Step is a command at an instant, under the configuration of that instant.
type Step struct {
	At    time.Time
	Rules user.Rules
	// Command is a [user.Consume], [user.AddTokens], [user.ChangeTier], [user.Reserve], [user.Settle], [user.Release],
	// [user.Refund], [Read], [Touch], [SetStatus] or [Deactivate]. A Refund has the number of an entry for its id, counted from 1.
	Command any
}

// GoString lists the steps with their outcomes, for rapid's report.
func (q Sequence) GoString() string {
	var b strings.Builder
	fmt.Fprintf(&b, "reset zone %s\n  row %+v", q.ResetZone, view(q.opened.account()))
	for i, s := range q.Steps {
		fmt.Fprintf(&b, "\n  %d. %s, %+v: %s → %s%+v", i+1, s.At.Format(time.RFC3339Nano), s.allowances(), describe(s.Command),
			q.outcomes[i].refusal, view(q.outcomes[i].after.account()))
	}
	return b.String()
}

func (s Step) allowances() []string {
	var list []string
	for _, t := range s.Rules.Tiers.All() {
		if t.Allowance > 0 || t.Unlimited {
			list = append(list, fmt.Sprintf("%s:%d", t.Tier, t.Allowance))
		}
	}
	return list
}

var (
	zones = []*time.Location{mustLoad("UTC"), mustLoad("Europe/Berlin"), mustLoad("America/Asuncion"), mustLoad("Pacific/Kiritimati")}
	// In Asunción the first midnight of October 2023 does not exist.
	starts = []time.Time{instant("2026-12-30T22:00:00Z"), instant("2023-09-30T12:00:00Z"), instant("2024-02-29T23:59:59.999999Z"), instant("2027-03-01T00:00:00Z")}
	tiers  = []user.Tier{user.TierAdmin, user.TierTester, user.TierFree, user.TierBasic, user.TierCreator, user.TierAgency, "legacy"}
	keys   = rapid.SampledFrom([]string{"", "", "", "", "", "", "", "", "k1", "k2", "k3", "k4"})
)

// Sequences draws histories, most of 5 to 50 steps, that keep to the limits of the rules: amounts to the token around what is
// there, instants to the microsecond around the ends of months and of holds.
func Sequences() *rapid.Generator[Sequence] {
	// A slice of slices, since one alone comes out with some six elements and one with a minimum does not shrink.
	history := rapid.SliceOfN(rapid.SliceOfN(moves(), 1, 20), 1, 20)
	return rapid.Custom(func(t *rapid.T) Sequence {
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		now := rapid.SampledFrom(starts).Draw(t, "start")
		w := &writer{now: now, rules: user.Rules{Tiers: catalogue().Draw(t, "catalogue"), ResetZone: zone}}
		w.at, w.model.rules = now, w.rules
		if rapid.Bool().Draw(t, "opened by the service") {
			w.row = user.Account{Tier: user.TierFree, SubscriptionStatus: user.StatusActive, Active: true, LastReset: &now}
			w.open()
		} else {
			w.row = legacyRow(now).Draw(t, "row")
		}
		w.sequence = Sequence{ResetZone: zone, Row: w.account(), opened: w.clone()}
		for _, move := range slices.Concat(history.Draw(t, "moves")...) {
			move(w)
		}
		return w.sequence
	})
}

// legacyRow draws rows as the earlier service, or a hand, could leave them.
func legacyRow(now time.Time) *rapid.Generator[user.Account] {
	tokens := rapid.OneOf(rapid.Int64Range(0, 20), rapid.SampledFrom([]int64{0, 1300, -3, user.MaxTokens - 4, user.MaxTokens}))
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
	allowance := rapid.SampledFrom([]int64{builtIn, 10, 20, 0, 10, 3, builtIn, user.MaxTokens - 9, user.MaxTokens})
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

// writer lengthens a sequence. It plays every step on the model, so that the next one can depend on what is there.
type writer struct {
	model
	now      time.Time
	rules    user.Rules
	sequence Sequence
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

// move is what to write next. All that is random in it is drawn before the state is known, so that rapid can take
// moves away to find the shortest failing sequence.
type move = func(*writer)

func moves() *rapid.Generator[move] {
	return rapid.OneOf(slices.Concat(
		times(1, configure()), times(2, pass()), times(2, jump()), times(1, stepBack()),
		times(4, consume()), times(3, addTokens()), times(6, reserve()), times(2, changeTier()), times(2, look()),
		times(1, setStatus()), times(2, retry()), times(4, closeHold()), times(3, refund()),
	)...)
}

func times[T any](n int, element T) []T { return slices.Repeat([]T{element}, n) }

func configure() *rapid.Generator[move] {
	return rapid.Map(catalogue(), func(c user.Catalogue) move { return func(w *writer) { w.rules.Tiers = c } })
}

// pass draws how time passes while nothing in particular happens.
func pass() *rapid.Generator[move] {
	return rapid.OneOf(slices.Concat(
		times(3, later(time.Second, 1, 120)), times(1, later(time.Hour, 1, 30)), times(1, later(24*time.Hour, 1, 400)),
	)...)
}

// stepBack draws how a clock is set back.
func stepBack() *rapid.Generator[move] {
	return rapid.OneOf(later(time.Microsecond, -2, -1), later(time.Second, -600, -1), later(time.Hour, -1000, -1))
}

func later(unit time.Duration, least, most int) *rapid.Generator[move] {
	return rapid.Map(rapid.IntRange(least, most), func(n int) move {
		return func(w *writer) { w.now = w.now.Add(time.Duration(n) * unit) }
	})
}

// jump draws a leap to where something ends, or right beside it.
func jump() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		end := rapid.IntRange(-3, 3).Draw(t, "the month's end or that of a hold")
		nudge := rapid.SampledFrom([]time.Duration{0, -time.Microsecond, time.Microsecond, 999}).Draw(t, "nudge")
		return func(w *writer) {
			if end < 0 {
				w.now = monthEnd(w.now, w.rules.ResetZone).Add(nudge)
			} else if holds := w.holds(); len(holds) > 0 {
				w.now = holds[end%len(holds)].ExpiresAt.Add(nudge)
			}
		}
	})
}

func consume() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		tokens, key := spend.Draw(t, "tokens"), keys.Draw(t, "key")
		return func(w *writer) { w.write(user.Consume{Tokens: tokens(w), Meta: user.Meta{IdempotencyKey: key}}) }
	})
}

func addTokens() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		tokens, key := grow.Draw(t, "tokens"), keys.Draw(t, "key")
		return func(w *writer) { w.write(user.AddTokens{Tokens: tokens(w), Meta: user.Meta{IdempotencyKey: key}}) }
	})
}

func reserve() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		tokens, key := spend.Draw(t, "tokens"), keys.Draw(t, "key")
		seconds := rapid.SampledFrom([]int{600, 600, 30, 600, 1, 600, 3600, 600, 86400, 600, 3600, 0, 86401}).Draw(t, "seconds")
		prefix := rapid.Uint8().Draw(t, "id") // so that ids do not rise in the order of the holds
		return func(w *writer) {
			w.write(user.Reserve{
				ReservationID: w.newID(prefix),
				Tokens:        tokens(w), TTL: time.Duration(seconds) * time.Second, Meta: user.Meta{IdempotencyKey: key},
			})
		}
	})
}

// closeHold draws the end of a reservation, mostly of an open one. Settling costs some tokens more or less than it holds.
func closeHold() *rapid.Generator[move] {
	costs := rapid.OneOf(
		rapid.Map(rapid.Int64Range(-2, 3), func(d int64) func(*writer, user.Reservation) int64 {
			return func(_ *writer, h user.Reservation) int64 { return h.Tokens + d }
		}),
		rapid.Map(rapid.Int64Range(0, 12), func(n int64) func(*writer, user.Reservation) int64 {
			return func(*writer, user.Reservation) int64 { return n }
		}),
		rapid.SampledFrom([]func(*writer, user.Reservation) int64{
			func(w *writer, h user.Reservation) int64 { return h.Tokens + w.balance() },
			func(w *writer, h user.Reservation) int64 { return h.Tokens + w.balance() + 1 },
			func(_ *writer, h user.Reservation) int64 { return h.Tokens - h.TopUp },
			func(*writer, user.Reservation) int64 { return user.MaxTokens },
		}),
	)
	return rapid.Custom(func(t *rapid.T) move {
		i, release, cost := rapid.IntRange(0, 3).Draw(t, "hold"), rapid.IntRange(0, 2).Draw(t, "release") == 0, costs.Draw(t, "cost")
		stray := rapid.IntRange(0, 5).Draw(t, "open or not") == 5
		return func(w *writer) {
			h := user.Reservation{ID: "ffffffff-ffff-4fff-8fff-ffffffffffff"}
			switch holds := w.holds(); {
			case !stray && len(holds) == 0:
				return
			case !stray:
				h = *holds[i%len(holds)]
			case i < len(w.reservations):
				h = w.reservations[len(w.reservations)-1-i]
			}
			if release {
				w.write(user.Release{ReservationID: h.ID})
			} else {
				w.write(user.Settle{ReservationID: h.ID, TokensUsed: cost(w, h)})
			}
		}
	})
}

// refund draws one of an entry that charged something, or of one of the last whatever it is.
func refund() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		back, stray := rapid.IntRange(0, 5).Draw(t, "entry"), rapid.IntRange(0, 5).Draw(t, "charge or not") == 5
		part := rapid.SampledFrom([]int64{0, 1, 2, 5, -1, -2, -3}).Draw(t, "tokens")
		key := keys.Draw(t, "key")
		return func(w *writer) {
			number := int64(len(w.entries) - back)
			if !stray {
				var charges []int64
				for i, e := range slices.Backward(w.entries) {
					if e.TokensCharged > 0 {
						charges = append(charges, int64(i+1))
					}
				}
				if len(charges) == 0 {
					return
				}
				number = charges[back%len(charges)]
			}
			tokens := part
			if part < 0 && number > 0 && number <= int64(len(w.entries)) {
				tokens = w.refundable(number) + part + 2 // one less, just that, one more than what is left
			}
			w.write(user.Refund{EntryID: number, Tokens: tokens, Meta: user.Meta{IdempotencyKey: key}})
		}
	})
}

func changeTier() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		c := user.ChangeTier{Tier: rapid.SampledFrom(tiers).Draw(t, "tier")}
		if days := rapid.IntRange(0, 2).Draw(t, "renewal"); days > 0 {
			renewal := starts[0].AddDate(0, 0, days)
			c.RenewalDate = &renewal
		}
		return func(w *writer) { w.write(c) }
	})
}

// look draws what only notices that time has passed.
func look() *rapid.Generator[move] {
	return rapid.Map(rapid.SampledFrom([]any{Read{}, Touch{}}), func(c any) move { return func(w *writer) { w.write(c) } })
}

// setStatus draws who may spend, mostly that one may.
func setStatus() *rapid.Generator[move] {
	may := []any{SetStatus{true, user.StatusActive}, SetStatus{true, user.StatusTrialing}}
	mayNot := []any{SetStatus{true, "past_due"}, SetStatus{false, user.StatusActive}, Deactivate{}}
	return rapid.Map(rapid.SampledFrom(slices.Concat(times(3, may[0]), may, mayNot)), func(c any) move {
		return func(w *writer) { w.write(c) }
	})
}

// retry draws which earlier command is sent once more, as it was.
func retry() *rapid.Generator[move] {
	return rapid.Map(rapid.IntRange(1, 6), func(back int) move {
		return func(w *writer) {
			left := back
			for _, s := range slices.Backward(w.sequence.Steps) {
				switch s.Command.(type) {
				case user.Settle, user.Release:
				default:
					if key(s.Command) == "" {
						continue
					}
				}
				if left--; left == 0 {
					if c, ok := s.Command.(user.Reserve); ok {
						c.ReservationID = w.newID(0)
						s.Command = c
					}
					w.write(s.Command)
					return
				}
			}
		}
	})
}

var (
	spend = amount(
		func(w *writer) int64 { return max(1, w.balance()) },
		func(w *writer) int64 { return w.balance() + 1 },
		func(w *writer) int64 { return w.balance() - w.topUpsLeft() + 1 },
		func(w *writer) int64 { return max(1, w.balance()+w.held()) },
		func(w *writer) int64 { return w.balance() - 1 },
	)
	grow = amount(
		func(w *writer) int64 { return w.room() },
		func(w *writer) int64 { return w.room() + 1 },
		func(*writer) int64 { return user.MaxTokens },
		func(*writer) int64 { return -1 },
	)
)

// amount draws a few tokens, or one of the amounts that are on the edge.
func amount(edges ...func(*writer) int64) *rapid.Generator[func(*writer) int64] {
	few := rapid.Map(rapid.Int64Range(1, 12), func(n int64) func(*writer) int64 { return func(*writer) int64 { return n } })
	return rapid.OneOf(few, few, few, rapid.SampledFrom(edges))
}

// month numbers the calendar months of a zone.
func month(t time.Time, zone *time.Location) int {
	year, month, _ := t.In(zone).Date()
	return year*12 + int(month) - 1
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
