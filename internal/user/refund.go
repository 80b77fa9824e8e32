package user

import "time"

// Refund gives back what an entry charged (product.md §3.9): within the charge's term as if it had not been spent,
// later as a top-up. Refusals: [ErrValidation], [ErrEntryNotFound], [ErrKeyReused], [ErrRefundExceedsCharge] (also
// for an entry that charged nothing, such as a refund), [ErrBalanceOverflow]. Repeated under the same key it gives
// nothing more, as with Consume.
func (r Rules) Refund(s State, c Refund, now time.Time) (Change, error) {
	if c.Tokens != 0 {
		if err := checkAmount("tokens", c.Tokens); err != nil {
			return Change{}, err
		}
	}
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	charge := s.Charge
	if charge == nil {
		return d.change(), ErrEntryNotFound
	}
	if replayed, err := d.replay(c.hash()); replayed || err != nil {
		return d.change(), err
	}
	left := charge.Entry.TokensCharged - charge.Refunded
	n := c.Tokens
	if n == 0 {
		n = left
	}
	if n > left || left == 0 {
		return d.change(), ErrRefundExceedsCharge
	}
	a := &d.account
	inTerm := charge.ThisTerm && !d.termBegun
	switch {
	case inTerm:
		a.TokensUsed -= n
	case a.TokensRemaining+a.Reserved+a.TokensUsed+n > MaxTokens:
		return d.change(), ErrBalanceOverflow
	}
	a.TokensRemaining += n
	if inTerm {
		// What a carried hold paid comes back first, as a top-up; what the present term paid in excess of it does not.
		a.TopUps += min(n, max(0, charge.FromCarried-charge.Refunded))
	} else {
		a.TopUps += n
	}
	d.record(c.entry(Entry{Kind: KindRefund, RefundedEntryID: &charge.Entry.ID, CommandHash: c.hash()}))
	return d.change(), nil
}
