package usertest

import (
	"cmp"
	"slices"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// model is one account in exact buckets. It knows what has gone out in the period (what was charged, and what holds of
// the period hold) and what of that top-ups paid; the allowance paid the rest. What is left of the allowance, and with it
// the balance, follows from the limit that is in force.
//
// A step is played on a clone that replaces the account only when the step wrote something, as an update does.
type model struct {
	rules user.Rules
	at    time.Time
	// maxHolds is how many holds one update returns.
	maxHolds int
	// known is how many entries there were before the step.
	known int

	// row has the columns that no bucket explains, and all of them until the account is adopted or converted.
	row user.Account

	limit         int64 // the allowance in force
	charged       int64 // to allowance and top-ups of this period and not refunded
	paidByTopUps  int64 // of what has gone out in this period
	topUps        int64 // left
	carriedTopUps int64 // in holds of earlier periods
	used          int64
	granted       int

	// largest is the largest allowance that was in force in this period, and only is true when there was but one from
	// the period's start.
	largest int64
	only    bool

	reservations []user.Reservation // all that ever were
	entries      []user.Entry
	own          []int64 // what of each entry's charge was paid by its period's allowance and top-ups

	// returned is how many due holds the update has returned, and told the top-ups that the ledger knows of.
	returned int
	told     int64

	// earlier is what of open reservations only the earlier version knew; it is used by the conversion.
	earlier    user.EarlierHolds
	converting bool
	wrote      bool
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
	low         bool
	// status is the answer to a Read.
	status *user.Status
	// after is what must be stored then.
	after model
}

// do plays one step.
func (m *model) do(s Step) outcome {
	d := m.clone()
	d.rules, d.at, d.known = s.Rules, s.At.UTC().Truncate(time.Microsecond), len(d.entries)
	var o outcome
	switch c := s.Command.(type) {
	case Replace:
		o = d.replace(c)
	case Reconcile:
		o = d.reconcile(c)
	default:
		if o.refusal = d.unacceptable(c); o.refusal == "" {
			d.begin()
			o = d.play(c)
		}
	}
	d.converting = false
	o.low = d.low(o.answer)
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
	c.entries, c.own = slices.Clip(m.entries), slices.Clip(m.own)
	return c
}

// begin brings an account of an earlier form into this one.
func (m *model) begin() {
	switch m.row.SideRow {
	case user.NoSideRow:
		m.adopt()
	case user.EarlierSideRow:
		m.convert()
	}
}

// open makes the account that the service must make.
func (m *model) open(by user.Command) {
	m.row = user.Account{
		Tier: user.TierFree, SubscriptionStatus: user.StatusActive, Active: true, LastReset: m.instant(), SideRow: user.CurrentSideRow,
	}
	switch c := by.(type) {
	case user.NewAccount:
		m.row.Username, m.row.Email = c.Username, c.Email
	case user.PutProfile:
		m.row.Username, m.row.Email = c.Username, c.Email
	}
	m.granted = month(m.at, m.rules.ResetZone)
	m.grant(m.tier().Allowance)
	if m.limit > 0 || len(m.entries) > 0 || meta(by).IdempotencyKey != "" {
		m.recordCommand(by, user.Entry{Kind: user.KindOpening})
	}
}

// instant is that of the step.
func (m *model) instant() *time.Time {
	at := m.at
	return &at
}

// grant begins a period with an allowance.
func (m *model) grant(allowance int64) {
	m.limit, m.charged, m.paidByTopUps, m.used = allowance, 0, 0, 0
	m.largest, m.only = allowance, true
}

// adopt fills the buckets of a row without side row: what the allowance does not explain of its balance are top-ups.
func (m *model) adopt() {
	m.row.SideRow = user.CurrentSideRow
	m.fill(m.row.TokensRemaining, m.row.TokensUsed)
	m.granted = m.lastGranted()
	if m.balance() > 0 || m.used > 0 || len(m.entries) > 0 {
		wrote := m.wrote
		m.record(user.Entry{Kind: user.KindOpening})
		m.wrote = wrote // an adoption waits for the first change
	}
}

// fill makes buckets of a balance and of used tokens of which nobody knows where they come from.
func (m *model) fill(balance, used int64) {
	balance = min(max(balance, 0), user.MaxTokens-m.held())
	used = min(max(used, 0), user.MaxTokens-m.held()-balance)
	m.topUps = max(0, balance-m.tier().Allowance)
	left := balance - m.topUps
	m.limit = max(m.tier().Allowance, left)
	m.paidByTopUps, m.carriedTopUps = 0, 0
	m.charged = m.limit - left - m.heldOfPeriod()
	m.used = used
	m.largest, m.only = m.limit, false
}

// convert fills the buckets of a side row of the earlier form (rule 15).
func (m *model) convert() {
	owned, balance := m.row.TopUps, m.row.TokensRemaining
	m.row.SideRow = user.CurrentSideRow
	m.granted = m.lastGranted()
	m.topUps = min(owned, balance)
	m.paidByTopUps = owned - m.topUps
	m.carriedTopUps = m.earlier.CarriedTopUps
	left := balance - m.topUps
	m.limit = max(m.tier().Allowance, left+max(0, m.earlier.Own-m.paidByTopUps))
	m.charged = m.limit - left + m.paidByTopUps - m.earlier.Own
	m.used = m.row.TokensUsed
	m.largest, m.only = m.limit, false
	m.told = m.topUps
	m.datePeriods()
	m.converting, m.wrote = true, true
}

// datePeriods tells the reservations of the earlier version in which period they were made.
func (m *model) datePeriods() {
	for i := range m.reservations {
		if r := &m.reservations[i]; r.Period == user.PeriodOfConversion {
			r.Period = m.granted
		}
	}
}

func (m *model) lastGranted() int {
	if m.row.LastReset == nil {
		return 0
	}
	return min(month(*m.row.LastReset, m.rules.ResetZone), month(m.at, m.rules.ResetZone))
}

func (m *model) replace(c Replace) outcome {
	m.reservations = nil
	m.earlier = user.EarlierHolds{}
	m.topUps, m.carriedTopUps = 0, 0
	if slices.ContainsFunc(m.entries, func(e user.Entry) bool { return e.TopUpsAmount == nil }) {
		m.told = 0
	}
	if c.Row == nil {
		m.open(c.By)
	} else {
		m.row = *c.Row
	}
	m.wrote = true
	return m.accepted()
}

// reconcile takes the counters as they have been set by hand. Where nothing has been, the books agree.
func (m *model) reconcile(c Reconcile) outcome {
	if m.row.SideRow == user.CurrentSideRow && (!c.Edited || c.Remaining == m.balance() && c.Used == m.used) {
		return m.accepted()
	}
	balance, used := m.row.TokensRemaining, m.row.TokensUsed
	if m.row.SideRow == user.CurrentSideRow {
		balance, used = m.balance(), m.used
	} else {
		m.granted = m.lastGranted()
		m.datePeriods()
	}
	if c.Edited {
		balance, used = c.Remaining, c.Used
	}
	m.row.SideRow = user.CurrentSideRow
	m.fill(balance, used)
	m.record(user.Entry{Kind: user.KindOpening})
	return m.accepted()
}

// play touches the account and carries a command out.
func (m *model) play(command any) outcome {
	if _, ok := command.(Read); ok {
		return m.read()
	}
	m.touch()
	if refusal := m.missing(command); refusal != "" {
		return outcome{refusal: refusal}
	}
	if o, done := m.replay(command); done {
		if _, ok := command.(user.Deactivate); ok && o.refusal == "" {
			// The first time may not have come that far.
			m.endRest(meta(command), m.entries[o.entry-1].CreatedAt)
		}
		return o
	}
	before := len(m.entries)
	o := m.carryOut(command)
	if o.refusal == "" && !o.replayed && o.entry == 0 && meta(command).IdempotencyKey != "" {
		o.entry = m.recordCommand(command, user.Entry{Kind: command.(user.Command).Kind(), ReservationID: id(o.reservation)})
		if _, ok := command.(user.Deactivate); !ok && len(m.entries) != before+1 {
			panic("a command wrote two entries")
		}
	}
	if _, ok := command.(user.Deactivate); ok {
		m.endRest(meta(command), time.Time{})
	}
	return o
}

// endRest ends the holds that an update has left open, of those that had been opened by then. The service goes on until
// it finds none; its answer is that of the first update.
func (m *model) endRest(by user.Meta, openedBy time.Time) {
	for m.endSome(by, openedBy) {
	}
}

func id(r *user.Reservation) *string {
	if r == nil {
		return nil
	}
	return &r.ID
}

// unacceptable refuses what no account could accept.
func (m *model) unacceptable(command any) user.Code {
	amount := int64(1)
	hold := time.Second
	switch c := command.(type) {
	case user.Consume:
		amount = cmp.Or(c.Tokens, 1)
	case user.AddTokens:
		amount = c.Tokens
	case user.Refund:
		amount = cmp.Or(c.Tokens, 1)
	case user.Settle:
		amount = c.TokensUsed
		if amount == 0 {
			amount = 1
		}
	case user.Reserve:
		amount, hold = c.Tokens, cmp.Or(c.TTL, 10*time.Minute)
	case user.Extend:
		hold = c.TTL
	case user.ChangeTier:
		if _, known := m.rules.Tiers.Lookup(c.Tier); !known {
			return user.CodeInvalidTier
		}
	case user.NewAccount:
		if c.IdempotencyKey == "" {
			return user.CodeUserExists
		}
	case user.UpdateProfile:
		if c.SubscriptionStatus != nil && !slices.Contains(statuses, *c.SubscriptionStatus) {
			return user.CodeValidation
		}
	}
	if amount < 1 || amount > user.MaxTokens || hold < time.Second || hold > 24*time.Hour {
		return user.CodeValidation
	}
	return ""
}

// missing refuses a command that names what is not there.
func (m *model) missing(command any) user.Code {
	var reservation string
	switch c := command.(type) {
	case user.Refund:
		if c.EntryID < 1 || c.EntryID > int64(m.known) {
			return user.CodeEntryNotFound
		}
		return ""
	case user.Extend:
		reservation = c.ReservationID
	case user.Settle:
		reservation = c.ReservationID
	case user.Release:
		reservation = c.ReservationID
	default:
		return ""
	}
	if m.reservation(reservation) == nil {
		return user.CodeReservationNotFound
	}
	return ""
}

// replay answers a command whose key was used before.
func (m *model) replay(command any) (o outcome, done bool) {
	key := meta(command).IdempotencyKey
	for i, e := range m.entries {
		if key == "" || e.IdempotencyKey == nil || *e.IdempotencyKey != key {
			continue
		}
		wrote := string(e.CommandHash) == identity(command)
		if e.Period == nil {
			wrote = string(e.CommandHash) == afterDefaults(command)
		}
		if !wrote {
			return outcome{refusal: user.CodeKeyReused}, true
		}
		return m.first(i + 1), true
	}
	return o, false
}

// first answers a repeated command with what its entry says of the first time.
func (m *model) first(entry int) outcome {
	o := m.acceptedBy(entry)
	o.replayed = true
	o.answer.TokensRemaining, o.answer.TokensUsed = m.entries[entry-1].BalanceAfter, m.entries[entry-1].UsedAfter
	return o
}

func (m *model) carryOut(command any) outcome {
	switch c := command.(type) {
	case user.Consume:
		return m.consume(c)
	case user.AddTokens:
		return m.addTokens(c)
	case user.ChangeTier:
		return m.changeTier(c)
	case user.Reserve:
		return m.reserve(c)
	case user.Extend:
		return m.extend(c)
	case user.Settle:
		return m.settle(c)
	case user.Release:
		return m.release(c)
	case user.Refund:
		return m.refund(c)
	case user.UpdateProfile:
		return m.setProfile(c, c)
	case user.PutProfile:
		return m.setProfile(c, user.UpdateProfile{Username: c.Username, Email: c.Email, SetUsername: c.SetUsername, SetEmail: c.SetEmail})
	case user.NewAccount:
		return outcome{refusal: user.CodeUserExists}
	case user.Deactivate:
		return m.deactivate(c)
	}
	return m.accepted()
}

// read leaves a reset unwritten that would change nothing, on a tier without an allowance.
func (m *model) read() outcome {
	counters := func() [9]int64 {
		a := m.account()
		return [...]int64{
			a.TokensRemaining, a.TokensUsed, a.TopUps, a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps, a.Reserved,
			a.OpenReservations,
		}
	}
	before, entries := counters(), len(m.entries)
	unread := m.clone()
	m.touch()
	if before == counters() && len(m.entries) == entries+1 && m.entries[entries].Kind == user.KindMonthlyReset &&
		m.tier().Allowance == 0 && m.held() == 0 && !m.converting {
		*m = unread
	}
	o := m.accepted()
	reason := m.barred()
	if reason == "" && !m.tier().Unlimited && m.balance() == 0 {
		reason = user.CodeInsufficientTokens
	}
	o.status = &user.Status{Account: o.answer, Tier: m.tier(), Reason: reason, LowBalance: m.low(o.answer), NextResetAt: m.nextAllowance()}
	return o
}

// setProfile changes the profile as c says; the command is the one that is recorded.
func (m *model) setProfile(command any, c user.UpdateProfile) outcome {
	changes := user.Changes{}
	if c.SetUsername && text(c.Username) != text(m.row.Username) {
		m.row.Username, changes["username"] = c.Username, user.FieldChange{}
	}
	if c.SetEmail && text(c.Email) != text(m.row.Email) {
		m.row.Email, changes["email"] = c.Email, user.FieldChange{}
	}
	if s := c.SubscriptionStatus; s != nil && *s != m.row.SubscriptionStatus {
		changes["subscription_status"] = user.FieldChange{From: m.row.SubscriptionStatus, To: *s}
		m.row.SubscriptionStatus = *s
	}
	if c.Active != nil && *c.Active != m.row.Active {
		changes["is_active"] = user.FieldChange{From: m.row.Active, To: *c.Active}
		m.row.Active = *c.Active
	}
	if len(changes) == 0 {
		return m.accepted()
	}
	return m.keyed(command, user.Entry{Kind: user.KindProfileChange, Changes: changes}, 0)
}

// touch returns due holds, then begins the month, once.
func (m *model) touch() {
	m.expire()
	if m.resetDue() {
		m.reset()
	}
}

// reset begins a month: allowance lapses, top-ups stay, and those in open holds come back as such.
func (m *model) reset() {
	if m.converting {
		m.paidByTopUps += m.carriedTopUps
	}
	m.carriedTopUps = min(m.held(), m.paidByTopUps)
	m.granted = month(m.at, m.rules.ResetZone)
	m.grant(min(m.tier().Allowance, user.MaxTokens-m.held()-m.topUps))
	m.row.LastReset = m.instant()
	m.record(user.Entry{Kind: user.KindMonthlyReset})
}

func (m *model) resetDue() bool { return month(m.at, m.rules.ResetZone) > m.granted }

func (m *model) tier() user.TierInfo {
	info, _ := m.rules.Tiers.Lookup(m.row.Tier)
	return info
}

// barred is why the account may not spend, whatever its balance.
func (m *model) barred() user.Code {
	switch {
	case !m.row.Active:
		return user.CodeUserInactive
	case m.row.SubscriptionStatus != "active" && m.row.SubscriptionStatus != "trialing":
		return user.CodeSubscriptionInactive
	case m.rules.Grace == nil || m.row.RenewalDate == nil || m.row.Tier == user.TierFree || m.tier().Unlimited:
		return ""
	case !m.row.RenewalDate.Add(*m.rules.Grace).After(m.at):
		return user.CodeSubscriptionLapsed
	}
	return ""
}

func (m *model) low(a user.Account) bool {
	return !m.tier().Unlimited && (a.TokensRemaining == 0 || a.TokensRemaining*100 <= a.Allowance*m.rules.LowBalancePercent)
}

// nextAllowance is when the next tokens come; nil where none will.
func (m *model) nextAllowance() *time.Time {
	if m.tier().Allowance == 0 {
		return nil
	}
	end := monthEnd(m.at, m.rules.ResetZone)
	return &end
}

func (m *model) short(required int64) outcome {
	return outcome{refusal: user.CodeInsufficientTokens, shortage: &user.Shortage{
		TokensRemaining: m.balance(), TokensRequired: required, NextResetAt: m.nextAllowance(),
	}}
}

// keyed accepts a command with its entry.
func (m *model) keyed(command any, e user.Entry, own int64) outcome {
	number := m.recordCommand(command, e)
	m.own[number-1] = own
	return m.acceptedBy(number)
}

func (m *model) recordCommand(command any, e user.Entry) (number int) {
	by := meta(command)
	e.Actor = optional(by.Actor)
	if e.IdempotencyKey = optional(by.IdempotencyKey); e.IdempotencyKey != nil {
		e.CommandHash = []byte(identity(command))
	}
	m.record(e)
	return len(m.entries)
}

func (m *model) record(e user.Entry) {
	granted, topUps := m.granted, m.topUps-m.told
	e.BalanceAfter, e.UsedAfter, e.CreatedAt, e.Period = m.balance(), m.used, m.at, &granted
	e.Amount = e.BalanceAfter
	if n := len(m.entries); n > 0 {
		e.Amount -= m.entries[n-1].BalanceAfter
	}
	e.TopUpsAmount, m.told = &topUps, m.topUps
	m.entries, m.own = append(m.entries, e), append(m.own, 0)
	m.wrote = true
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

// account is the row as it must be.
func (m *model) account() user.Account {
	a := m.row
	if a.SideRow != user.CurrentSideRow {
		return a
	}
	a.TokensRemaining, a.TokensUsed, a.TopUps, a.TopUpsUsed = m.balance(), m.used, m.topUps, m.paidByTopUps
	a.Allowance, a.AllowanceExcess = m.limit, max(0, m.paidByAllowance()-m.limit)
	a.CarriedTopUps, a.Reserved, a.OpenReservations, a.GrantedPeriod = m.carriedTopUps, m.held(), int64(len(m.holds())), m.granted
	return a
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
