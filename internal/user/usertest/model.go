package usertest

import (
	"cmp"
	"slices"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// model is one account in exact buckets. It keeps no balance and no tokens used: a term has what its allowance was
// and what top-ups it had, and from these the allowance pays the term's charges first, then its holds; top-ups pay the
// rest. So whatever comes back reaches the top-ups first.
//
// A step is played on a clone that replaces the account only when the step wrote something, as an update does.
type model struct {
	rules user.Rules
	// at is the instant of the step, which is never before the last reset.
	at time.Time

	// row has the columns that no bucket explains, and all of them until the account is adopted.
	row user.Account

	allowance int64 // granted to the term that runs, spent or not
	topUps    int64 // owned when the term began, and those that came since
	charged   int64 // to these two
	elsewhere int64 // charged in this term to holds carried into it
	begun     int   // the number of the entry that began the term

	reservations []user.Reservation // all that ever were
	entries      []user.Entry
	wrote        bool
}

// outcome is what a caller must get to see of a step.
type outcome struct {
	// refusal is empty when the step is accepted.
	refusal  user.Code
	shortage *user.Shortage
	// answer is the account as it is answered with.
	answer user.Account
	// entry numbers the entry that is answered with, counted from 1; 0 for none.
	entry int
	// reservation is the one that is answered with; nil for none.
	reservation *user.Reservation
	replayed    bool
	// status is the answer to a Read.
	status *user.Status
	// after is what must be stored then.
	after model
}

// open makes the account that Rules.Open must make.
func (m *model) open() {
	m.row.Adopted = true
	m.allowance = m.tier().Allowance
	if m.allowance > 0 {
		m.record(user.Entry{Kind: user.KindOpening})
	}
	m.wrote = false
}

// do plays one step.
func (m *model) do(s Step) outcome {
	d := m.clone()
	d.rules, d.at = s.Rules, s.At.UTC().Truncate(time.Microsecond)
	if last := d.row.LastReset; last != nil && last.After(d.at) {
		d.at = *last
	}
	if !d.row.Adopted {
		d.adopt()
	}
	o := d.play(s.Command)
	if d.wrote {
		d.wrote = false
		*m = d
	}
	o.after = m.clone()
	return o
}

func (m *model) clone() model {
	c := *m
	c.reservations = slices.Clone(m.reservations)
	c.entries = slices.Clip(m.entries)
	return c
}

// adopt fills the buckets of a row without side row: what the allowance does not explain of its balance are top-ups.
func (m *model) adopt() {
	balance := max(m.row.TokensRemaining, 0)
	m.row.Adopted = true
	m.topUps = max(0, balance-m.tier().Allowance)
	m.charged = min(max(m.row.TokensUsed, 0), user.MaxTokens-balance)
	m.allowance = balance - m.topUps + m.charged
	if balance > 0 || m.charged > 0 {
		wrote := m.wrote
		m.record(user.Entry{Kind: user.KindOpening})
		m.wrote = wrote // an adoption waits for the first change
	}
}

func (m *model) play(command any) outcome {
	switch c := command.(type) {
	case user.Consume:
		return m.consume(c)
	case user.AddTokens:
		return m.addTokens(c)
	case user.ChangeTier:
		return m.changeTier(c)
	case Read:
		return m.read()
	case Touch:
		m.touch()
	case user.Reserve:
		return m.reserve(c)
	case user.Settle:
		return m.settle(c)
	case user.Release:
		return m.release(c)
	case user.Refund:
		return m.refund(c)
	case SetStatus:
		m.touch()
		m.setStatus(c)
	case Deactivate:
		m.touch()
		for _, h := range m.holds() {
			m.close(h, user.ReservationReleased, h.Tokens)
			m.explainClosing(h, user.Entry{Kind: user.KindRelease})
		}
		m.setStatus(SetStatus{false, m.row.SubscriptionStatus})
	}
	return m.accepted()
}

func (m *model) setStatus(c SetStatus) {
	if c != (SetStatus{m.row.Active, m.row.SubscriptionStatus}) {
		m.row.Active, m.row.SubscriptionStatus = c.Active, c.Status
		m.record(user.Entry{Kind: user.KindProfileChange})
	}
}

func (m *model) consume(c user.Consume) outcome {
	if c.Tokens < 1 || c.Tokens > user.MaxTokens {
		return outcome{refusal: user.CodeValidation}
	}
	if m.monthIsOver() {
		m.touch()
	}
	if o, done := m.replay(c); done {
		return o
	}
	if barred := m.barred(); barred != "" {
		return outcome{refusal: barred}
	}
	if m.tier().Unlimited {
		return m.accepted()
	}
	if c.Tokens > m.balance() {
		m.expire()
	}
	if c.Tokens > m.balance() {
		return m.short(c.Tokens)
	}
	m.charged += c.Tokens
	return m.keyed(c, user.Entry{Kind: user.KindConsume, TokensCharged: c.Tokens})
}

func (m *model) addTokens(c user.AddTokens) outcome {
	if c.Tokens < 1 || c.Tokens > user.MaxTokens {
		return outcome{refusal: user.CodeValidation}
	}
	m.touch()
	if o, done := m.replay(c); done {
		return o
	}
	if c.Tokens > m.room() {
		return outcome{refusal: user.CodeBalanceOverflow}
	}
	m.topUps += c.Tokens
	return m.keyed(c, user.Entry{Kind: user.KindTopUp})
}

func (m *model) changeTier(c user.ChangeTier) outcome {
	m.touch()
	if _, known := m.rules.Tiers.Lookup(c.Tier); !known {
		return outcome{refusal: user.CodeInvalidTier}
	}
	renewed := at(c.RenewalDate) != at(m.row.RenewalDate)
	m.row.RenewalDate = c.RenewalDate
	switch {
	case c.Tier != m.row.Tier:
		m.row.Tier = c.Tier
		m.beginTerm(user.KindTierChange)
	case renewed:
		m.record(user.Entry{Kind: user.KindProfileChange})
	}
	return m.accepted()
}

// read leaves a reset unwritten that would change nothing.
func (m *model) read() outcome {
	holds := m.holds()
	changesNothing := m.tier().Allowance == 0 && m.used() == 0 && len(holds) == 0 && m.balance() == m.topUpsLeft()
	if !changesNothing {
		m.touch()
	}
	o := m.accepted()
	reason := m.barred()
	if reason == "" && !m.tier().Unlimited && m.balance() == 0 {
		reason = user.CodeInsufficientTokens
	}
	o.status = &user.Status{Account: o.answer, Tier: m.tier(), Reason: reason, NextResetAt: monthEnd(m.at, m.rules.ResetZone)}
	return o
}

func (m *model) reserve(c user.Reserve) outcome {
	if c.Tokens < 1 || c.Tokens > user.MaxTokens || c.TTL < time.Second || c.TTL > 24*time.Hour {
		return outcome{refusal: user.CodeValidation}
	}
	m.touch()
	if o, done := m.replay(c); done {
		return o
	}
	if barred := m.barred(); barred != "" {
		return outcome{refusal: barred}
	}
	hold := user.Reservation{ID: c.ReservationID, Status: user.ReservationOpen, CreatedAt: m.at, ExpiresAt: m.at.Add(c.TTL)}
	if m.tier().Unlimited {
		m.reservations = append(m.reservations, hold)
		m.wrote = true
		o := m.accepted()
		o.reservation = &hold
		return o
	}
	if c.Tokens > m.balance() {
		return m.short(c.Tokens)
	}
	hold.Tokens = c.Tokens
	m.reservations = append(m.reservations, hold)
	return m.keyed(c, user.Entry{Kind: user.KindReserve, ReservationID: &hold.ID})
}

func (m *model) settle(c user.Settle) outcome {
	if c.TokensUsed < 0 || c.TokensUsed > user.MaxTokens {
		return outcome{refusal: user.CodeValidation}
	}
	m.touch()
	h := m.reservation(c.ReservationID)
	if h == nil || h.Status != user.ReservationOpen {
		return m.closed(h, h != nil && h.Status == user.ReservationSettled && *h.TokensUsed == c.TokensUsed)
	}
	cost := c.TokensUsed
	if h.Tokens == 0 {
		cost = 0 // it was made while unlimited
	}
	h.TokensUsed = &c.TokensUsed
	fromHold := min(cost, h.Tokens)
	m.close(h, user.ReservationSettled, h.Tokens-fromHold)
	if h.Carried {
		m.elsewhere += fromHold
	} else {
		m.charged += fromHold
	}
	h.Charged = fromHold
	if excess := cost - fromHold; excess > 0 && !m.tier().Unlimited {
		taken := min(excess, m.balance())
		m.charged += taken
		h.Charged += taken
		h.Shortfall = excess - taken
	}
	return m.explainClosing(h, user.Entry{Kind: user.KindSettle, TokensCharged: h.Charged})
}

func (m *model) release(c user.Release) outcome {
	m.touch()
	h := m.reservation(c.ReservationID)
	if h == nil || h.Status != user.ReservationOpen {
		return m.closed(h, h != nil && h.Status == user.ReservationReleased)
	}
	m.close(h, user.ReservationReleased, h.Tokens)
	return m.explainClosing(h, user.Entry{Kind: user.KindRelease})
}

// closed answers a command on a reservation that is not open; repeated says that it was closed by the same one.
func (m *model) closed(h *user.Reservation, repeated bool) outcome {
	switch {
	case h == nil:
		return outcome{refusal: user.CodeReservationNotFound}
	case h.Status == user.ReservationExpired:
		return outcome{refusal: user.CodeReservationExpired}
	case !repeated:
		return outcome{refusal: user.CodeReservationClosed}
	}
	for i, e := range slices.Backward(m.entries) {
		if e.ReservationID != nil && *e.ReservationID == h.ID {
			o := m.first(i + 1)
			o.reservation = h
			return o
		}
	}
	o := m.accepted()
	o.reservation = h
	return o
}

// refund takes the number of an entry for its id.
func (m *model) refund(c user.Refund) outcome {
	if c.Tokens < 0 || c.Tokens > user.MaxTokens {
		return outcome{refusal: user.CodeValidation}
	}
	m.touch()
	if c.EntryID < 1 || c.EntryID > int64(len(m.entries)) {
		return outcome{refusal: user.CodeEntryNotFound}
	}
	if o, done := m.replay(c); done {
		return o
	}
	left, n := m.refundable(c.EntryID), c.Tokens
	if n == 0 {
		n = left
	}
	switch charge := m.entries[c.EntryID-1]; {
	case n > left || left == 0:
		return outcome{refusal: user.CodeRefundExceedsCharge}
	case c.EntryID <= int64(m.begun):
		if n > m.room() {
			return outcome{refusal: user.CodeBalanceOverflow}
		}
		m.topUps += n
	default:
		fromHold := min(n, m.refundableToHold(charge, left))
		m.elsewhere -= fromHold
		m.topUps += fromHold
		m.charged -= n - fromHold
	}
	return m.keyed(c, user.Entry{Kind: user.KindRefund, RefundedEntryID: &c.EntryID})
}

// refundableToHold is the part of what is left of a charge that a carried hold paid, which comes back as a top-up; it
// comes back before the part that the present term paid.
func (m *model) refundableToHold(charge user.Entry, left int64) int64 {
	if charge.ReservationID == nil {
		return 0
	}
	h := m.reservation(*charge.ReservationID)
	if !h.Carried {
		return 0
	}
	return max(0, left-max(0, h.Charged-h.Tokens))
}

// refundable is what is left of the charge of an entry.
func (m *model) refundable(number int64) int64 {
	left := m.entries[number-1].TokensCharged
	for _, e := range m.entries {
		if e.RefundedEntryID != nil && *e.RefundedEntryID == number {
			left -= e.Amount
		}
	}
	return left
}

// touch returns what due holds held, then begins the month's term, once.
func (m *model) touch() {
	m.expire()
	if m.monthIsOver() {
		m.beginTerm(user.KindMonthlyReset)
	}
}

// expire returns due holds.
func (m *model) expire() {
	for _, h := range m.holds() {
		if !m.at.Before(h.ExpiresAt) {
			m.close(h, user.ReservationExpired, h.Tokens)
			m.explainClosing(h, user.Entry{Kind: user.KindExpire})
		}
	}
}

// close ends a hold, of which the rest was not charged. One of this term frees the buckets that it was paid from. Of a
// carried one only the top-ups come back, as tokens of the present term; the allowance in it lapsed.
func (m *model) close(h *user.Reservation, status user.ReservationStatus, rest int64) {
	h.Status, h.ClosedAt, h.Returned = status, &m.at, rest
	if h.Carried {
		h.Returned = min(h.TopUp, rest)
		m.topUps += h.Returned
	}
	m.wrote = true
}

// explainClosing answers for a closed hold; one that held nothing needs no entry.
func (m *model) explainClosing(h *user.Reservation, e user.Entry) outcome {
	o := m.accepted()
	if h.Tokens > 0 {
		e.ReservationID = &h.ID
		m.record(e)
		o = m.acceptedBy(len(m.entries))
	}
	o.reservation = h
	return o
}

// beginTerm takes what top-ups paid out of their bucket for good: what they paid for charges is spent, what they paid
// for holds goes with the holds, the earliest expiry first.
func (m *model) beginTerm(kind user.EntryKind) {
	paid := m.paidByTopUps()
	inHolds := paid - max(0, m.charged-m.allowance)
	for _, h := range m.holds() {
		if !h.Carried {
			h.Carried, h.TopUp = true, min(inHolds, h.Tokens)
			inHolds -= h.TopUp
		}
	}
	m.topUps -= paid
	m.charged, m.elsewhere = 0, 0
	m.allowance = 0 // so that room is what top-ups and holds leave
	m.allowance = min(m.tier().Allowance, m.room())
	m.row.LastReset = &m.at
	m.record(user.Entry{Kind: kind})
	m.begun = len(m.entries)
}

// keyed accepts a command that may carry a key, with the entry that keeps it.
func (m *model) keyed(command any, e user.Entry) outcome {
	e.IdempotencyKey, e.CommandHash = optional(key(command)), []byte(identity(command))
	m.record(e)
	return m.acceptedBy(len(m.entries))
}

// replay answers a command whose key was used before.
func (m *model) replay(command any) (o outcome, done bool) {
	for i, e := range m.entries {
		if e.IdempotencyKey == nil || *e.IdempotencyKey != key(command) {
			continue
		}
		if string(e.CommandHash) != identity(command) {
			return outcome{refusal: user.CodeKeyReused}, true
		}
		o = m.first(i + 1)
		o.replayed = true
		return o, true
	}
	return o, false
}

// first answers a repeated command with what its entry says of the first time.
func (m *model) first(entry int) outcome {
	o := m.acceptedBy(entry)
	o.answer.TokensRemaining, o.answer.TokensUsed = m.entries[entry-1].BalanceAfter, m.entries[entry-1].UsedAfter
	return o
}

func (m *model) accepted() outcome { return outcome{answer: m.account()} }

func (m *model) acceptedBy(entry int) outcome {
	o := m.accepted()
	o.entry = entry
	if id := m.entries[entry-1].ReservationID; id != nil {
		o.reservation = m.reservation(*id)
	}
	return o
}

func (m *model) short(required int64) outcome {
	return outcome{refusal: user.CodeInsufficientTokens, shortage: &user.Shortage{
		TokensRemaining: m.balance(), TokensRequired: required, NextResetAt: monthEnd(m.at, m.rules.ResetZone),
	}}
}

// barred is why the account may not spend, whatever its balance.
func (m *model) barred() user.Code {
	switch {
	case !m.row.Active:
		return user.CodeUserInactive
	case m.row.SubscriptionStatus != "active" && m.row.SubscriptionStatus != "trialing":
		return user.CodeSubscriptionInactive
	}
	return ""
}

func (m *model) record(e user.Entry) {
	e.BalanceAfter, e.UsedAfter, e.CreatedAt = m.balance(), m.used(), m.at
	e.Amount = e.BalanceAfter
	if n := len(m.entries); n > 0 {
		e.Amount -= m.entries[n-1].BalanceAfter
	}
	m.entries = append(m.entries, e)
	m.wrote = true
}

func (m *model) tier() user.TierInfo {
	info, _ := m.rules.Tiers.Lookup(m.row.Tier)
	return info
}

func (m *model) monthIsOver() bool {
	last := m.row.LastReset
	return last == nil || month(m.at, m.rules.ResetZone) > month(*last, m.rules.ResetZone)
}

// paidByTopUps is what the term's charges and holds took beyond its allowance.
func (m *model) paidByTopUps() int64 { return max(0, m.charged+m.heldInTerm()-m.allowance) }

func (m *model) topUpsLeft() int64 { return m.topUps - m.paidByTopUps() }

func (m *model) balance() int64 { return m.allowance + m.topUps - m.charged - m.heldInTerm() }

func (m *model) used() int64 { return m.charged + m.elsewhere }

// room is what the account can still take in.
func (m *model) room() int64 { return user.MaxTokens - m.balance() - m.used() - m.held() }

func (m *model) heldInTerm() (sum int64) {
	for _, r := range m.reservations {
		if r.Status == user.ReservationOpen && !r.Carried {
			sum += r.Tokens
		}
	}
	return sum
}

func (m *model) held() (sum int64) {
	for _, r := range m.reservations {
		if r.Status == user.ReservationOpen {
			sum += r.Tokens
		}
	}
	return sum
}

// reservation finds one by its id; nil when there is none.
func (m *model) reservation(id string) *user.Reservation {
	for i := range m.reservations {
		if m.reservations[i].ID == id {
			return &m.reservations[i]
		}
	}
	return nil
}

// holds are the open reservations, earliest expiry first, then by id.
func (m *model) holds() (open []*user.Reservation) {
	for i := range m.reservations {
		if m.reservations[i].Status == user.ReservationOpen {
			open = append(open, &m.reservations[i])
		}
	}
	slices.SortFunc(open, func(a, b *user.Reservation) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
	return open
}

// account is the row as it must be.
func (m *model) account() user.Account {
	a := m.row
	if !a.Adopted {
		return a
	}
	a.TokensRemaining, a.TokensUsed, a.TopUps, a.Reserved = m.balance(), m.used(), m.topUps, m.held()
	if holds := m.holds(); len(holds) > 0 {
		a.NextHoldExpiry = &holds[0].ExpiresAt
	}
	return a
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
