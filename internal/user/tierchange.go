package user

import "time"

// ChangeTier moves an account to a tier and sets its renewal date; to the same tier it only sets the date (rule 5).
// Refusal: [ErrInvalidTier].
type ChangeTier struct {
	Tier Tier
	// RenewalDate is when the subscription renews; nil clears it.
	RenewalDate *time.Time
	Meta
}

// Kind implements [Command].
func (ChangeTier) Kind() EntryKind { return KindTierChange }

func (c ChangeTier) validate(r Rules) error {
	if _, known := r.Tiers.Lookup(c.Tier); !known {
		return r.Tiers.invalid(c.Tier)
	}
	return nil
}

func (c ChangeTier) identity() []any { return []any{"tier", c.Tier, c.RenewalDate} }

func (c ChangeTier) apply(d *draft) error {
	a := &d.account
	kind := KindProfileChange
	if a.Tier != c.Tier {
		kind = KindTierChange
		a.Tier = c.Tier
		d.changeAllowance()
	}
	if !sameInstant(a.RenewalDate, c.RenewalDate) {
		a.RenewalDate = c.RenewalDate
	}
	if changes := d.changes(); changes != nil {
		d.recordCommand(c, Entry{Kind: kind, Changes: changes})
	}
	return nil
}

// changeAllowance puts the allowance of the account's new tier in force. What the month has used of the old one counts
// against it, so that a month never gives more allowance than the largest tier held in it.
func (d *draft) changeAllowance() {
	a := &d.account
	used, allowance := a.allowanceUsed(), d.allowance()
	room := MaxTokens - a.TopUps - a.Reserved - a.TokensUsed
	left := max(0, allowance-used)
	a.Allowance, a.AllowanceExcess = allowance, max(0, used-allowance)
	if left > room {
		left = room
		a.Allowance = used + left
	}
	a.TokensRemaining = a.TopUps + left
}
