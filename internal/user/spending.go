package user

// Consume charges tokens that were spent (rule 2). Refusals: [ErrValidation], [ErrUserInactive],
// [ErrSubscriptionInactive], [ErrSubscriptionLapsed], [ErrInsufficientTokens]. An unlimited account is charged nothing.
type Consume struct {
	// Tokens to charge, 1 to MaxTokens; 0 stands for the default of 1.
	Tokens int64
	Meta
}

// Kind implements [Command].
func (Consume) Kind() EntryKind { return KindConsume }

func (c Consume) tokens() int64 {
	if c.Tokens == 0 {
		return 1
	}
	return c.Tokens
}

func (c Consume) validate(Rules) error { return checkAmount("tokens_to_consume", c.tokens()) }
func (c Consume) identity() []any      { return []any{"consume-tokens", given(c.Tokens)} }

func (c Consume) apply(d *draft) error {
	if err := d.spendRefusal(); err != nil {
		return err
	}
	if d.tier().Unlimited {
		return nil
	}
	n := c.tokens()
	if n > d.account.TokensRemaining {
		return d.shortage(n)
	}
	d.account.spend(n)
	d.account.TokensUsed += n
	d.recordCommand(c, Entry{TokensCharged: n})
	return nil
}

// AddTokens tops an account up with tokens that do not lapse (rule 6). Refusals: [ErrValidation], [ErrBalanceOverflow].
type AddTokens struct {
	// Tokens to add, 1 to MaxTokens.
	Tokens int64
	Meta
}

// Kind implements [Command].
func (AddTokens) Kind() EntryKind { return KindTopUp }

func (c AddTokens) validate(Rules) error { return checkAmount("tokens_to_add", c.Tokens) }
func (c AddTokens) identity() []any      { return []any{"add-tokens", c.Tokens} }

func (c AddTokens) apply(d *draft) error {
	if d.account.total()+c.Tokens > MaxTokens {
		return ErrBalanceOverflow
	}
	d.account.addTopUps(c.Tokens)
	d.recordCommand(c, Entry{})
	return nil
}

// Refund gives back what a consume or settle entry charged, whole or in part (rule 9). Refusals: [ErrValidation],
// [ErrEntryNotFound], [ErrRefundTooLate], [ErrRefundExceedsCharge] (also for an entry that charged nothing, such as a
// refund), [ErrBalanceOverflow].
type Refund struct {
	EntryID int64
	// Tokens to give back, 1 to MaxTokens; 0 stands for all that is left of the charge.
	Tokens int64
	Meta
}

// Kind implements [Command].
func (Refund) Kind() EntryKind { return KindRefund }

func (c Refund) names(ref *Ref, _ Rules) { ref.EntryID = c.EntryID }

func (c Refund) validate(Rules) error {
	if c.Tokens == 0 {
		return nil
	}
	return checkAmount("tokens", c.Tokens)
}

// How much all that is left comes to depends on when it is asked for, so it is no part of the identity.
func (c Refund) identity() []any { return []any{"refund", c.EntryID, given(c.Tokens)} }

func (c Refund) find(s State) error {
	if s.Charge == nil {
		return ErrEntryNotFound
	}
	return nil
}

func (c Refund) apply(d *draft) error {
	a, charge := &d.account, *d.state.Charge
	for _, e := range d.entries {
		charge.Follow(e)
	}
	charge.Ended = charge.Ended || d.opening != nil
	n := c.Tokens
	if n == 0 {
		n = charge.left()
	}
	switch {
	case d.at.Sub(charge.Entry.CreatedAt) > d.rules.RefundMaxAge:
		return ErrRefundTooLate
	case n > charge.left() || n == 0:
		return ErrRefundExceedsCharge
	}
	// The part that this period's charges do not explain any more is as of an earlier period: a gift of the operator.
	var late int64
	if late = n; charge.inPeriod(a.GrantedPeriod) {
		late = n - min(n, a.TokensUsed)
	}
	if a.total()+late > MaxTokens {
		return ErrBalanceOverflow
	}
	own := min(n-late, charge.ownLeft())
	a.TokensUsed -= n - late
	a.giveBack(own)
	a.addTopUps(n - own)
	d.recordCommand(c, Entry{TokensRefunded: n, RefundedEntryID: &charge.Entry.ID})
	return nil
}
