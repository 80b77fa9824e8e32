package usertest

import (
	"cmp"

	"github.com/viralpilot/user-management/internal/user"
)

func (m *model) consume(c user.Consume) outcome {
	n := cmp.Or(c.Tokens, 1)
	if barred := m.barred(); barred != "" {
		return outcome{refusal: barred}
	}
	if m.tier().Unlimited {
		return m.accepted()
	}
	if n > m.balance() {
		return m.short(n)
	}
	m.charge(n)
	return m.keyed(c, user.Entry{Kind: user.KindConsume, TokensCharged: n}, n)
}

// charge takes tokens out of the period's buckets for good.
func (m *model) charge(n int64) {
	m.take(n)
	m.charged += n
	m.used += n
}

func (m *model) addTokens(c user.AddTokens) outcome {
	if c.Tokens > m.room() {
		return outcome{refusal: user.CodeBalanceOverflow}
	}
	m.topUps += c.Tokens
	return m.keyed(c, user.Entry{Kind: user.KindTopUp}, 0)
}

func (m *model) changeTier(c user.ChangeTier) outcome {
	changes := user.Changes{}
	kind := user.KindProfileChange
	if c.Tier != m.row.Tier {
		kind = user.KindTierChange
		changes["subscription_tier"] = user.FieldChange{From: m.row.Tier, To: c.Tier}
		m.row.Tier = c.Tier
		m.limitTo(m.tier().Allowance)
	}
	if at(c.RenewalDate) != at(m.row.RenewalDate) {
		changes["subscription_renewal_date"] = user.FieldChange{}
		m.row.RenewalDate = c.RenewalDate
	}
	if len(changes) == 0 {
		return m.accepted()
	}
	return m.keyed(c, user.Entry{Kind: kind, Changes: changes}, 0)
}

// limitTo puts another allowance in force within a period, or as much of it as fits 32 bits.
func (m *model) limitTo(allowance int64) {
	fits := m.paidByAllowance() + user.MaxTokens - m.topUps - m.held() - m.used
	if allowance > m.paidByAllowance() {
		allowance = min(allowance, fits)
	}
	m.limit = allowance
	m.largest, m.only = max(m.largest, allowance), false
}

func (m *model) refund(c user.Refund) outcome {
	charge, left := m.entries[c.EntryID-1], m.refundable(c.EntryID)
	n := cmp.Or(c.Tokens, left)
	switch {
	case m.at.After(charge.CreatedAt.Add(m.rules.RefundMaxAge)):
		return outcome{refusal: user.CodeRefundTooLate}
	case n > left || left == 0:
		return outcome{refusal: user.CodeRefundExceedsCharge}
	}
	ofPeriod := int64(0)
	if m.chargedInPeriod(c.EntryID) {
		ofPeriod = min(n, m.used)
	}
	if n-ofPeriod > m.room() {
		return outcome{refusal: user.CodeBalanceOverflow}
	}
	own := min(ofPeriod, max(0, m.own[c.EntryID-1]-(charge.TokensCharged-left)))
	m.used -= ofPeriod
	m.charged -= own
	m.giveBack(own)
	m.topUps += n - own
	return m.keyed(c, user.Entry{Kind: user.KindRefund, RefundedEntryID: &c.EntryID, TokensRefunded: n}, 0)
}

// refundable is what is left of the charge of an entry.
func (m *model) refundable(number int64) int64 {
	left := m.entries[number-1].TokensCharged
	for _, e := range m.entries {
		if e.RefundedEntryID != nil && *e.RefundedEntryID == number {
			left -= e.TokensRefunded
		}
	}
	return left
}

// chargedInPeriod reports whether the charge of an entry is of the period that runs (rule 10).
func (m *model) chargedInPeriod(number int64) bool {
	charge := m.entries[number-1]
	for _, e := range m.entries[number:] {
		switch {
		case e.Kind == user.KindOpening,
			charge.Period == nil && e.Kind == user.KindMonthlyReset,
			charge.Period == nil && e.Kind == user.KindTierChange && e.Period == nil:
			return false
		}
	}
	return charge.Period == nil || *charge.Period == m.granted
}
