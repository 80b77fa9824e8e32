package usertest

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/viralpilot/user-management/internal/user"
)

// Earlier is an account as the version before granted periods left it, with all that belongs to it. A refund has the
// number of an entry in place of its id, counted from 1.
type Earlier struct {
	Account      user.Account
	Entries      []user.Entry
	Reservations []EarlierReservation
}

// EarlierReservation is a reservation of that version. Carried says that the term in which it was made has ended, TopUp
// what of it was paid with top-ups then.
type EarlierReservation struct {
	user.Reservation
	Carried bool
	TopUp   int64
}

// earlier is one account by the rules of the version before granted periods, as far as the conversion has to do with
// them. A term began with each month and with each change of tier, and had an allowance and the top-ups that there were
// then; the allowance paid its charges first, then its holds. Each hold that a term's end met was marked with the
// top-ups in it.
type earlier struct {
	rules user.Rules
	at    time.Time

	tier      user.Tier
	lastReset time.Time
	allowance int64 // granted to the term that runs, spent or not
	topUps    int64 // owned when the term began, and those that came since
	charged   int64 // to these two
	elsewhere int64 // charged in this term to holds carried into it
	begun     int   // the number of the entry that began the term

	reservations []EarlierReservation
	entries      []user.Entry
}

// newEarlier is an account with a balance of which all that is over the allowance are top-ups.
func newEarlier(rules user.Rules, at time.Time, tier user.Tier, balance, used int64) *earlier {
	e := &earlier{rules: rules, at: at, tier: tier, lastReset: at, charged: used}
	e.topUps = max(0, balance-e.grant())
	e.allowance = balance - e.topUps + used
	e.record(user.Entry{Kind: user.KindOpening})
	return e
}

func (e *earlier) clone() *earlier {
	c := *e
	c.reservations, c.entries = slices.Clone(e.reservations), slices.Clip(e.entries)
	return &c
}

// do carries a command out and reports whether it was accepted. One that is refused changes nothing but what was due.
func (e *earlier) do(command any, at time.Time) bool {
	if e.at = at; at.Before(e.lastReset) {
		e.at = e.lastReset
	}
	e.touch()
	switch c := command.(type) {
	case user.Consume:
		if c.Tokens < 1 || c.Tokens > e.balance() {
			return false
		}
		e.charged += c.Tokens
		return e.keyed(c.Meta, "consume-tokens", user.Entry{Kind: user.KindConsume, TokensCharged: c.Tokens}, c.Tokens)
	case user.AddTokens:
		if c.Tokens < 1 || c.Tokens > user.MaxTokens-e.balance()-e.used()-e.held() {
			return false
		}
		e.topUps += c.Tokens
		return e.keyed(c.Meta, "add-tokens", user.Entry{Kind: user.KindTopUp}, c.Tokens)
	case user.ChangeTier:
		if c.Tier != e.tier {
			e.tier = c.Tier
			e.beginTerm(user.KindTierChange)
		}
		return true
	case user.Reserve:
		if c.Tokens < 1 || c.Tokens > e.balance() {
			return false
		}
		e.reservations = append(e.reservations, EarlierReservation{Reservation: user.Reservation{
			ID: c.ReservationID, Status: user.ReservationOpen, Tokens: c.Tokens, CreatedAt: e.at, ExpiresAt: e.at.Add(c.TTL),
			Period: user.PeriodOfConversion,
		}})
		return e.keyed(c.Meta, "reserve", user.Entry{Kind: user.KindReserve, ReservationID: &c.ReservationID}, c.Tokens, c.TTL.Milliseconds())
	case user.Settle:
		return e.settle(c)
	case user.Release:
		h := e.hold(c.ReservationID)
		if h != nil {
			e.close(h, user.ReservationReleased, h.Tokens)
			e.record(user.Entry{Kind: user.KindRelease, ReservationID: &h.ID})
		}
		return h != nil
	case user.Refund:
		return e.refund(c)
	}
	return true
}

func (e *earlier) settle(c user.Settle) bool {
	h := e.hold(c.ReservationID)
	if h == nil || c.TokensUsed < 0 {
		return false
	}
	fromHold := min(c.TokensUsed, h.Tokens)
	e.close(h, user.ReservationSettled, h.Tokens-fromHold)
	if h.Carried {
		e.elsewhere += fromHold
	} else {
		e.charged += fromHold
	}
	more := min(c.TokensUsed-fromHold, e.balance())
	e.charged += more
	h.TokensUsed, h.Charged, h.Shortfall = &c.TokensUsed, fromHold+more, c.TokensUsed-fromHold-more
	e.record(user.Entry{Kind: user.KindSettle, ReservationID: &h.ID, TokensCharged: h.Charged})
	return true
}

// refund gives back all that a charge has left.
func (e *earlier) refund(c user.Refund) bool {
	if c.EntryID < 1 || c.EntryID > int64(len(e.entries)) {
		return false
	}
	charge := e.entries[c.EntryID-1]
	n := charge.TokensCharged
	for _, other := range e.entries {
		if other.RefundedEntryID != nil && *other.RefundedEntryID == c.EntryID {
			n = 0
		}
	}
	late := c.EntryID <= int64(e.begun)
	if n == 0 || late && n > user.MaxTokens-e.balance()-e.used()-e.held() {
		return false
	}
	if late {
		e.topUps += n
	} else {
		fromHold := int64(0)
		if charge.Kind == user.KindSettle {
			if h := e.reservation(*charge.ReservationID); h.Carried {
				fromHold = min(n, h.Tokens)
			}
		}
		e.elsewhere -= fromHold
		e.topUps += fromHold
		e.charged -= n - fromHold
	}
	e.record(user.Entry{Kind: user.KindRefund, RefundedEntryID: &c.EntryID, TokensRefunded: n})
	return true
}

func (e *earlier) touch() {
	for _, h := range e.holds() {
		if !e.at.Before(h.ExpiresAt) {
			e.close(h, user.ReservationExpired, h.Tokens)
			e.record(user.Entry{Kind: user.KindExpire, ReservationID: &h.ID})
		}
	}
	if month(e.at, e.rules.ResetZone) > month(e.lastReset, e.rules.ResetZone) {
		e.beginTerm(user.KindMonthlyReset)
	}
}

func (e *earlier) close(h *EarlierReservation, status user.ReservationStatus, rest int64) {
	closed := e.at
	h.Status, h.ClosedAt, h.Returned = status, &closed, rest
	if h.Carried {
		h.Returned = min(h.TopUp, rest)
		e.topUps += h.Returned
	}
}

// beginTerm takes what top-ups paid for good: what they paid for holds goes with the holds, the earliest expiry first.
func (e *earlier) beginTerm(kind user.EntryKind) {
	paid := e.paidByTopUps()
	inHolds := paid - max(0, e.charged-e.allowance)
	for _, h := range e.holds() {
		if !h.Carried {
			h.Carried, h.TopUp, h.Period = true, min(inHolds, h.Tokens), 0
			inHolds -= h.TopUp
		}
	}
	e.topUps -= paid
	e.charged, e.elsewhere, e.lastReset = 0, 0, e.at
	e.allowance = min(e.grant(), user.MaxTokens-e.topUps-e.held())
	e.record(user.Entry{Kind: kind})
	e.begun = len(e.entries)
}

// keyed writes the entry of a command, with its key and the hash of that version.
func (e *earlier) keyed(m user.Meta, call string, entry user.Entry, amounts ...int64) bool {
	if entry.IdempotencyKey = optional(m.IdempotencyKey); entry.IdempotencyKey != nil {
		sum := sha256.Sum256(fmt.Append(nil, call, amounts))
		entry.CommandHash = sum[:]
	}
	e.record(entry)
	return true
}

func (e *earlier) record(entry user.Entry) {
	entry.BalanceAfter, entry.UsedAfter, entry.CreatedAt = e.balance(), e.used(), e.at
	entry.Amount = entry.BalanceAfter
	if n := len(e.entries); n > 0 {
		entry.Amount -= e.entries[n-1].BalanceAfter
	}
	e.entries = append(e.entries, entry)
}

func (e *earlier) grant() int64 {
	info, _ := e.rules.Tiers.Lookup(e.tier)
	return info.Allowance
}

func (e *earlier) paidByTopUps() int64 { return max(0, e.charged+e.heldInTerm()-e.allowance) }
func (e *earlier) topUpsLeft() int64   { return e.topUps - e.paidByTopUps() }
func (e *earlier) used() int64         { return e.charged + e.elsewhere }

func (e *earlier) balance() int64 { return e.allowance + e.topUps - e.charged - e.heldInTerm() }

func (e *earlier) heldInTerm() (sum int64) {
	for _, h := range e.holds() {
		if !h.Carried {
			sum += h.Tokens
		}
	}
	return sum
}

func (e *earlier) held() (sum int64) {
	for _, h := range e.holds() {
		sum += h.Tokens
	}
	return sum
}

func (e *earlier) reservation(id string) *EarlierReservation {
	for i := range e.reservations {
		if e.reservations[i].ID == id {
			return &e.reservations[i]
		}
	}
	return nil
}

// hold is an open reservation; nil when there is none of this id.
func (e *earlier) hold(id string) *EarlierReservation {
	if r := e.reservation(id); r != nil && r.Status == user.ReservationOpen {
		return r
	}
	return nil
}

// holds are the open reservations, earliest expiry first, then by id.
func (e *earlier) holds() (open []*EarlierReservation) {
	for i := range e.reservations {
		if e.reservations[i].Status == user.ReservationOpen {
			open = append(open, &e.reservations[i])
		}
	}
	slices.SortFunc(open, func(a, b *EarlierReservation) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
	return open
}

// stored is the account as that version keeps it.
func (e *earlier) stored() Earlier {
	last := e.lastReset
	a := user.Account{
		Tier: e.tier, SubscriptionStatus: user.StatusActive, Active: true, TokensRemaining: e.balance(), TokensUsed: e.used(),
		LastReset: &last, CreatedAt: e.entries[0].CreatedAt, UpdatedAt: e.at, SideRow: user.EarlierSideRow, TopUps: e.topUps, Reserved: e.held(),
	}
	if holds := e.holds(); len(holds) > 0 {
		expiry := holds[0].ExpiresAt
		a.NextHoldExpiry = &expiry
	}
	return Earlier{Account: a, Entries: slices.Clone(e.entries), Reservations: slices.Clone(e.reservations)}
}

// takeOver makes the model that of an account of the earlier version, which is not converted yet.
func (m *model) takeOver(e *earlier) {
	m.row = e.stored().Account
	m.row.CreatedAt, m.row.UpdatedAt = time.Time{}, time.Time{}
	m.entries = slices.Clone(e.entries)
	for i, entry := range m.entries {
		own := entry.TokensCharged
		if entry.Kind == user.KindSettle {
			if h := e.reservation(*entry.ReservationID); h.Carried {
				own = max(0, own-h.Tokens)
			}
		}
		m.own = append(m.own, own)
		if entry.IdempotencyKey != nil {
			m.entries[i].CommandHash = []byte(earlierIdentity(entry, e))
		}
	}
	for _, r := range e.reservations {
		m.reservations = append(m.reservations, r.Reservation)
		if r.Status != user.ReservationOpen {
			continue
		}
		m.earlier.Count++
		if r.Carried {
			m.earlier.CarriedTopUps += r.TopUp
		} else {
			m.earlier.Own += r.Tokens
		}
	}
}

// earlierIdentity is what a key of that version protects. It took the amounts after defaults.
func earlierIdentity(entry user.Entry, e *earlier) string {
	switch entry.Kind {
	case user.KindConsume:
		return afterDefaults(user.Consume{Tokens: entry.TokensCharged})
	case user.KindReserve:
		r := e.reservation(*entry.ReservationID)
		return afterDefaults(user.Reserve{Tokens: r.Tokens, TTL: r.ExpiresAt.Sub(r.CreatedAt)})
	}
	return afterDefaults(user.AddTokens{Tokens: entry.Amount})
}

// afterDefaults is the identity of a command in which nothing is left out.
func afterDefaults(command any) string {
	switch c := command.(type) {
	case user.Consume:
		c.Tokens = cmp.Or(c.Tokens, 1)
		return identity(c)
	case user.Reserve:
		c.TTL = cmp.Or(c.TTL, 10*time.Minute)
		return identity(c)
	}
	return identity(command)
}

// Conversions draws histories that begin with an account of the version before granted periods (rule 15).
func Conversions(maxHolds int) *rapid.Generator[Sequence] {
	return rapid.Custom(func(t *rapid.T) Sequence {
		w := newWriter(t, maxHolds)
		e := drawEarlier(t, w)
		w.takeOver(e)
		stored := e.stored()
		w.sequence.Row, w.sequence.Earlier, w.sequence.opened = stored.Account, &stored, w.clone()
		w.play(history(moves()).Draw(t, "moves"))
		return w.sequence
	})
}

// drawEarlier draws an account with a history by the rules of that version.
func drawEarlier(t *rapid.T, w *writer) *earlier {
	tier := rapid.SampledFrom([]user.Tier{user.TierTester, user.TierFree, user.TierBasic, user.TierCreator}).Draw(t, "tier")
	balance, used := rapid.Int64Range(0, 20).Draw(t, "balance"), rapid.Int64Range(0, 10).Draw(t, "used")
	e := newEarlier(w.rules, w.now, tier, balance, used)
	moves := rapid.SliceOfN(rapid.SliceOfN(earlierMoves(), 1, 8), 1, 8)
	for _, move := range slices.Concat(moves.Draw(t, "earlier moves")...) {
		move(e, w)
	}
	return e
}

// toMonthEnd lets time pass to an offset from the month's end, if that is to come.
func (w *writer) toMonthEnd(offset time.Duration) {
	if at := monthEnd(w.now, w.rules.ResetZone).Add(offset); at.After(w.now) {
		w.now = at
	}
}

// earlierMove is what comes next on an account of that version; the writer has the clock.
type earlierMove = func(*earlier, *writer)

func earlierMoves() *rapid.Generator[earlierMove] {
	return rapid.Custom(func(t *rapid.T) earlierMove {
		n, i := rapid.Int64Range(1, 12).Draw(t, "tokens"), rapid.IntRange(0, 3).Draw(t, "which")
		meta := user.Meta{IdempotencyKey: rapid.SampledFrom([]string{"", "", "", "", "", "", "k1", "k2", "k3"}).Draw(t, "key")}
		what := rapid.IntRange(0, 17).Draw(t, "what")
		minutes := rapid.SampledFrom([]int{1, 10, 60, 1440}).Draw(t, "minutes")
		id := fmt.Sprintf("%08x", rapid.Uint8().Draw(t, "id"))
		return func(e *earlier, w *writer) {
			for _, entry := range e.entries {
				if entry.IdempotencyKey != nil && *entry.IdempotencyKey == meta.IdempotencyKey {
					meta.IdempotencyKey = ""
				}
			}
			ttl := time.Duration(minutes) * time.Minute
			switch {
			case what < 2:
				e.do(user.Consume{Tokens: n, Meta: meta}, w.now)
			case what < 4:
				e.do(user.AddTokens{Tokens: n, Meta: meta}, w.now)
			case what < 9:
				id := fmt.Sprintf("%s-0000-4000-9000-%012d", id, len(e.reservations))
				e.do(user.Reserve{ReservationID: id, Tokens: n, TTL: ttl, Meta: meta}, w.now)
			case what < 11:
				if holds := e.holds(); len(holds) > 0 {
					e.do(user.Settle{ReservationID: holds[i%len(holds)].ID, TokensUsed: n}, w.now)
				}
			case what < 12:
				if holds := e.holds(); len(holds) > 0 {
					e.do(user.Release{ReservationID: holds[i%len(holds)].ID}, w.now)
				}
			case what < 13:
				e.do(user.Refund{EntryID: int64(len(e.entries) - i)}, w.now)
			case what < 14:
				e.do(user.ChangeTier{Tier: []user.Tier{user.TierTester, user.TierFree, user.TierCreator, user.TierBasic}[i]}, w.now)
			case what < 15:
				w.now = w.now.Add(time.Duration(n) * ttl / 4)
			case what < 16:
				w.toMonthEnd(time.Duration(n-6) * time.Minute)
			default: // a hold that a change of tier carries, and then the month's end meets
				end := monthEnd(w.now, w.rules.ResetZone)
				if before := end.Add(-time.Duration(n) * time.Hour); w.now.Before(before) {
					w.now = before
				}
				id := fmt.Sprintf("%s-0000-4000-9000-%012d", id, len(e.reservations))
				e.do(user.Reserve{ReservationID: id, Tokens: e.balance(), TTL: 24 * time.Hour}, w.now)
				if i > 0 {
					e.do(user.ChangeTier{Tier: []user.Tier{user.TierTester, user.TierFree, user.TierCreator, user.TierBasic}[i]}, w.now)
				}
				if what > 16 {
					w.now = end
				}
			}
		}
	})
}
