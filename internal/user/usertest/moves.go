package usertest

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/viralpilot/user-management/internal/user"
)

// move is what to write next. All that is random in it is drawn before the state is known, so that rapid can take
// moves away to find the shortest failing sequence.
type move = func(*writer)

func moves() *rapid.Generator[move] {
	return rapid.OneOf(slices.Concat(
		times(1, configure()), times(2, pass()), times(2, jump()), times(1, stepBack()),
		times(4, consume()), times(3, addTokens()), times(6, reserve()), times(3, changeTier()), times(2, look()),
		times(1, updateProfile()), times(2, retry()), times(4, closeHold()), times(3, overMonthsEnd()), times(2, returnLate()), times(2, extend()), times(3, refund()),
		times(1, rapid.OneOf(byHand(), look(), create())),
	)...)
}

func times[T any](n int, element T) []T { return slices.Repeat([]T{element}, n) }

// configure draws another configuration, as of a new release or of another replica.
func configure() *rapid.Generator[move] {
	return rapid.OneOf(
		rapid.Map(catalogue(), func(c user.Catalogue) move { return func(w *writer) { w.rules.Tiers = c } }),
		rapid.Map(rapid.SampledFrom(zones), func(z *time.Location) move { return func(w *writer) { w.rules.ResetZone = z } }),
		rapid.Map(limits(), func(r user.Rules) move {
			return func(w *writer) { r.Tiers, r.ResetZone = w.rules.Tiers, w.rules.ResetZone; w.rules = r }
		}),
	)
}

// pass draws how time passes while nothing in particular happens.
func pass() *rapid.Generator[move] {
	return rapid.OneOf(slices.Concat(
		times(3, later(time.Second, 1, 120)), times(2, later(time.Hour, 1, 30)), times(1, later(24*time.Hour, 1, 10)), times(1, later(24*time.Hour, 1, 400)),
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
		end := rapid.IntRange(-3, 4).Draw(t, "the month's end, that of a hold or of its late settle")
		nudge := rapid.SampledFrom([]time.Duration{0, -time.Microsecond, time.Microsecond, 999}).Draw(t, "nudge")
		return func(w *writer) {
			switch holds := w.holds(); {
			case end < 0:
				w.now = monthEnd(w.now, w.rules.ResetZone).Add(nudge)
			case end == 4:
				for _, r := range slices.Backward(w.reservations) {
					if r.Status == user.ReservationExpired {
						w.now = r.ExpiresAt.Add(7*24*time.Hour + nudge)
						break
					}
				}
			case len(holds) > 0:
				w.now = holds[end%len(holds)].ExpiresAt.Add(nudge)
			}
		}
	})
}

// Generators are made anew wherever they are used: rapid's must not be shared by tests that run at the same time.

func keys() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{"", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "k1", "k2", "k3", "k4", "k5"})
}

func actors() *rapid.Generator[string] { return rapid.SampledFrom([]string{"", "", "backend"}) }

// by draws what a command carries beside what it asks for.
func by(t *rapid.T) user.Meta {
	return user.Meta{IdempotencyKey: keys().Draw(t, "key"), Actor: actors().Draw(t, "actor")}
}

func consume() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		tokens, meta := spend().Draw(t, "tokens"), by(t)
		return func(w *writer) { w.write(user.Consume{Tokens: tokens(w), Meta: meta}) }
	})
}

func addTokens() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		tokens, meta := grow().Draw(t, "tokens"), by(t)
		return func(w *writer) { w.write(user.AddTokens{Tokens: tokens(w), Meta: meta}) }
	})
}

// ttls draws how many seconds to hold, mostly allowed ones.
func ttls() *rapid.Generator[int] {
	return rapid.SampledFrom([]int{600, 600, 30, 600, 1, 600, 3600, 600, 86400, 600, 3600, 0, 86401})
}

func reserve() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		tokens, meta := spend().Draw(t, "tokens"), by(t)
		seconds := ttls().Draw(t, "seconds")
		prefix := rapid.Uint8().Draw(t, "id") // so that ids do not rise in the order of the holds
		return func(w *writer) {
			w.write(user.Reserve{
				ReservationID: w.newID(prefix), Tokens: tokens(w), TTL: time.Duration(seconds) * time.Second, Meta: meta,
			})
		}
	})
}

// overMonthsEnd draws some holds that the month's end meets, and often what becomes of the first of them.
func overMonthsEnd() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		before := time.Duration(rapid.IntRange(1, 600).Draw(t, "minutes before the month's end")) * time.Minute
		after := time.Duration(rapid.IntRange(0, 20).Draw(t, "minutes after it")) * time.Minute
		holds := rapid.SliceOfN(spend(), 1, 3).Draw(t, "holds")
		ttls := rapid.SliceOfN(rapid.SampledFrom([]time.Duration{time.Hour, 12 * time.Hour, 24 * time.Hour}), 3, 3).Draw(t, "ttls")
		ending, release, cost := rapid.Bool().Draw(t, "end one"), rapid.IntRange(0, 3).Draw(t, "release") == 0, costs().Draw(t, "cost")
		return func(w *writer) {
			if end := monthEnd(w.now, w.rules.ResetZone); w.now.Before(end.Add(-before)) {
				w.now = end.Add(-before)
			}
			end := monthEnd(w.now, w.rules.ResetZone)
			first := len(w.reservations)
			for i, tokens := range holds {
				w.write(user.Reserve{ReservationID: w.newID(uint8(len(holds) - i)), Tokens: min(tokens(w), 12), TTL: ttls[i]})
			}
			w.now = end.Add(after)
			if ending && first < len(w.reservations) {
				w.writeEnd(w.reservations[first], release, cost, user.Meta{})
			}
		}
	})
}

// named draws a reservation, mostly an open one; none where there is none to draw.
func named(t *rapid.T) func(*writer) *user.Reservation {
	i, stray := rapid.IntRange(0, 3).Draw(t, "hold"), rapid.IntRange(0, 5).Draw(t, "open or not") == 5
	return func(w *writer) *user.Reservation {
		switch holds := w.holds(); {
		case !stray && len(holds) == 0:
			return nil
		case !stray:
			return holds[i%len(holds)]
		case i < len(w.reservations):
			return &w.reservations[len(w.reservations)-1-i]
		}
		return &user.Reservation{ID: "ffffffff-ffff-4fff-8fff-ffffffffffff"}
	}
}

// costs draws what a call has cost in the end, mostly some tokens more or less than it holds.
func costs() *rapid.Generator[cost] {
	return rapid.OneOf(
		rapid.Map(rapid.Int64Range(-2, 3), func(d int64) cost { return func(_ *writer, h user.Reservation) int64 { return h.Tokens + d } }),
		rapid.Map(rapid.Int64Range(0, 12), func(n int64) cost { return func(*writer, user.Reservation) int64 { return n } }),
		rapid.SampledFrom([]cost{
			func(w *writer, h user.Reservation) int64 { return h.Tokens + w.balance() },
			func(w *writer, h user.Reservation) int64 { return h.Tokens + w.balance() + 1 },
			func(w *writer, h user.Reservation) int64 { return h.Tokens - w.carriedTopUps },
			func(*writer, user.Reservation) int64 { return user.MaxTokens },
		}),
	)
}

type cost = func(*writer, user.Reservation) int64

// closeHold draws the end of a reservation.
func closeHold() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		name, release, cost := named(t), rapid.IntRange(0, 2).Draw(t, "release") == 0, costs().Draw(t, "cost")
		meta := by(t)
		return func(w *writer) {
			if h := name(w); h != nil {
				w.writeEnd(*h, release, cost, meta)
			}
		}
	})
}

// returnLate draws the end of a reservation that has expired, mostly within the time that it may be settled in.
func returnLate() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		i, release, cost := rapid.IntRange(0, 3).Draw(t, "hold"), rapid.IntRange(0, 4).Draw(t, "release") == 0, costs().Draw(t, "cost")
		meta := by(t)
		return func(w *writer) {
			var expired []user.Reservation
			for _, r := range slices.Backward(w.reservations) {
				if r.Status == user.ReservationExpired {
					expired = append(expired, r)
				}
			}
			if len(expired) > 0 {
				w.writeEnd(expired[i%len(expired)], release, cost, meta)
			}
		}
	})
}

func (w *writer) writeEnd(h user.Reservation, release bool, cost cost, meta user.Meta) {
	if release {
		w.write(user.Release{ReservationID: h.ID, Meta: meta})
	} else {
		w.write(user.Settle{ReservationID: h.ID, TokensUsed: cost(w, h), Meta: meta})
	}
}

func extend() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		name, seconds, meta := named(t), ttls().Draw(t, "seconds"), by(t)
		return func(w *writer) {
			if h := name(w); h != nil {
				w.write(user.Extend{ReservationID: h.ID, TTL: time.Duration(seconds) * time.Second, Meta: meta})
			}
		}
	})
}

// refund draws one of an entry that charged something, or of one of the last whatever it is.
func refund() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		back, stray := rapid.IntRange(0, 5).Draw(t, "entry"), rapid.IntRange(0, 5).Draw(t, "charge or not") == 5
		part := rapid.SampledFrom([]int64{0, 1, 2, 5, -1, -2, -3}).Draw(t, "tokens")
		meta := by(t)
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
			w.write(user.Refund{EntryID: number, Tokens: tokens, Meta: meta})
		}
	})
}

func changeTier() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		c := user.ChangeTier{Tier: rapid.SampledFrom(tiers).Draw(t, "tier"), Meta: by(t)}
		days := rapid.IntRange(0, 40).Draw(t, "renewal")
		thereAndBack := rapid.IntRange(0, 3).Draw(t, "there and back") == 0
		return func(w *writer) {
			c, before := c, w.row.Tier
			if days > 4 { // so that a retry may have the date of before
				renewal := w.now.Truncate(24*time.Hour).AddDate(0, 0, days-5)
				c.RenewalDate = &renewal
			}
			if w.write(c); thereAndBack {
				w.write(user.ChangeTier{Tier: before, RenewalDate: c.RenewalDate})
			}
		}
	})
}

// look draws what only notices that time has passed.
func look() *rapid.Generator[move] {
	return rapid.Map(rapid.SampledFrom([]any{Read{}, user.Touch{}}), func(c any) move { return func(w *writer) { w.write(c) } })
}

// updateProfile draws who may spend, mostly that one may, and names.
func updateProfile() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		meta := by(t)
		if what := rapid.IntRange(0, 5).Draw(t, "deactivate"); what > 3 {
			return func(w *writer) {
				if w.write(user.Deactivate{Meta: meta}); what > 4 {
					w.write(user.UpdateProfile{Active: ptr(true)})
				}
			}
		}
		c := user.UpdateProfile{
			Active:             ptr(rapid.IntRange(0, 5).Draw(t, "active") > 0),
			SubscriptionStatus: ptr(rapid.SampledFrom([]user.SubscriptionStatus{"active", "active", "active", "trialing", "past_due", "unknown"}).Draw(t, "status")),
			Meta:               meta,
		}
		if name := rapid.IntRange(0, 5).Draw(t, "name"); name > 2 {
			c.Active, c.SubscriptionStatus = nil, nil
			c.SetUsername, c.SetEmail = name != 3, name != 4
			if name != 5 {
				c.Username, c.Email = ptr("bob"), ptr("bob@example.com")
			}
			if put := rapid.Bool().Draw(t, "put"); put {
				return func(w *writer) {
					w.write(user.PutProfile{Username: c.Username, Email: c.Email, SetUsername: c.SetUsername, SetEmail: c.SetEmail, Meta: meta})
				}
			}
		}
		return func(w *writer) { w.write(c) }
	})
}

// creation draws how the service makes an account. Its key is not one of those that other commands have.
func creation(t *rapid.T) user.Command {
	meta, name := user.Meta{IdempotencyKey: rapid.SampledFrom([]string{"", "n1"}).Draw(t, "key of the account")}, ptr("ann")
	if rapid.Bool().Draw(t, "put") {
		return user.PutProfile{Username: name, SetUsername: true, Meta: meta}
	}
	return user.NewAccount{Username: name, Meta: meta}
}

// create draws a call that makes an account which is there.
func create() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		meta, again := by(t), rapid.IntRange(0, 3).Draw(t, "again") > 0
		return func(w *writer) {
			if again && w.sequence.by != nil {
				w.write(w.sequence.by)
				return
			}
			w.write(user.NewAccount{Meta: meta})
		}
	})
}

// byHand draws what is done to the row past the service.
func byHand() *rapid.Generator[move] {
	tokens := rapid.OneOf(
		rapid.Map(rapid.Int64Range(0, 30), func(n int64) func(int64) int64 { return func(int64) int64 { return n } }),
		rapid.Map(rapid.Int64Range(-2, 2), func(d int64) func(int64) int64 { return func(n int64) int64 { return n + d } }),
		rapid.SampledFrom([]func(int64) int64{func(int64) int64 { return user.MaxTokens }, func(int64) int64 { return -1 }}),
	)
	return rapid.Custom(func(t *rapid.T) move {
		what := rapid.IntRange(0, 9).Draw(t, "what")
		remaining, used := tokens.Draw(t, "remaining"), tokens.Draw(t, "used")
		row := legacyRow(starts[0]).Draw(t, "row")
		sinceReset := rapid.IntRange(0, 40).Draw(t, "days since the reset")
		return func(w *writer) {
			switch what {
			case 0:
				w.write(Replace{By: user.NewAccount{Meta: user.Meta{IdempotencyKey: fmt.Sprintf("n%d", len(w.sequence.Steps)+2)}}})
			case 1:
				row := row
				row.CreatedAt, row.UpdatedAt = w.now.Truncate(time.Microsecond), w.now.Truncate(time.Microsecond)
				if row.LastReset != nil {
					row.LastReset = ptr(w.now.AddDate(0, 0, -sinceReset).Truncate(time.Microsecond))
				}
				w.write(Replace{Row: &row})
			default:
				if month(w.now, w.rules.ResetZone) < w.granted {
					return // whether the period is then taken back is not for a rule to say
				}
				a := w.account()
				w.write(Reconcile{
					Edited:    what > 2,
					Remaining: min(remaining(a.TokensRemaining), user.MaxTokens), // the columns take no more
					Used:      min(used(a.TokensUsed), user.MaxTokens),
				})
			}
		}
	})
}

// retry draws which earlier command is sent once more, as it was or under another key.
func retry() *rapid.Generator[move] {
	return rapid.Custom(func(t *rapid.T) move {
		back, otherKey := rapid.IntRange(1, 6).Draw(t, "back"), keys().Draw(t, "other key")
		return func(w *writer) {
			left := back
			for _, s := range slices.Backward(w.sequence.Steps) {
				command := s.Command
				switch c := command.(type) {
				case user.Settle:
					if c.IdempotencyKey == "" {
						c.IdempotencyKey = otherKey
						command = c
					}
				case user.Release:
					if c.IdempotencyKey == "" {
						c.IdempotencyKey = otherKey
						command = c
					}
				default:
					if meta(command).IdempotencyKey == "" {
						continue
					}
				}
				if left--; left > 0 {
					continue
				}
				if c, ok := command.(user.Reserve); ok {
					c.ReservationID = w.newID(0)
					command = c
				}
				w.write(command)
				return
			}
		}
	})
}

// spend draws what to spend.
func spend() *rapid.Generator[func(*writer) int64] {
	return amount(
		func(w *writer) int64 { return max(1, w.balance()) },
		func(w *writer) int64 { return w.balance() + 1 },
		func(w *writer) int64 { return w.balance() - w.topUps + 1 },
		func(w *writer) int64 { return max(1, w.balance()+w.held()) },
		func(w *writer) int64 { return w.balance() - 1 },
	)
}

// grow draws what to add.
func grow() *rapid.Generator[func(*writer) int64] {
	return amount(
		func(w *writer) int64 { return w.room() },
		func(w *writer) int64 { return w.room() + 1 },
		func(*writer) int64 { return user.MaxTokens },
		func(*writer) int64 { return -1 },
	)
}

// amount draws a few tokens, or one of the amounts that are on the edge.
func amount(edges ...func(*writer) int64) *rapid.Generator[func(*writer) int64] {
	few := rapid.Map(rapid.Int64Range(1, 12), func(n int64) func(*writer) int64 { return func(*writer) int64 { return n } })
	return rapid.OneOf(slices.Concat(times(6, few), times(1, rapid.SampledFrom(edges)))...)
}
