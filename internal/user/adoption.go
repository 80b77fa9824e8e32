package user

// adopt gives an account without a side row (of the earlier service, or inserted by hand) the top-ups that its balance
// implies: all that is over the allowance of its tier (rule 13).
func (d *draft) adopt() {
	a := &d.account
	a.SideRow = CurrentSideRow
	a.TopUps, a.Allowance = max(0, a.TokensRemaining-d.allowance()), d.allowance()
	a.TopUpsUsed, a.AllowanceExcess, a.CarriedTopUps = 0, 0, 0
	a.GrantedPeriod = d.rules.lastGranted(*a, d.at)
	if d.continueFrom(d.state.Totals); a.TokensRemaining != 0 || a.TokensUsed != 0 || d.state.Totals.hasEntries() {
		opening := d.next(Entry{Kind: KindOpening})
		d.opening = &opening
	}
	d.balance, d.topUps = a.TokensRemaining, a.TopUps
}

// holdAsIn makes the account hold what its open reservations do.
func (a *Account) holdAsIn(t Totals) {
	a.Reserved, a.OpenReservations, a.NextHoldExpiry = t.Reserved, t.Open, t.NextExpiry
}

// continueFrom makes the draft's next entry continue what the account's ledger says.
func (d *draft) continueFrom(t *Totals) {
	d.balance, d.topUps = 0, 0
	if t.hasEntries() {
		d.balance = t.Last.BalanceAfter
	}
	if t != nil && t.TopUps != nil {
		d.topUps = *t.TopUps
	}
}

func (t *Totals) hasEntries() bool { return t != nil && t.Last != nil }

// convert gives a side row of the earlier form, in which top-ups were counted from the start of a term, the counters of
// this version (rule 15).
func (d *draft) convert() {
	a := &d.account
	var holds EarlierHolds
	if d.state.Earlier != nil {
		holds = *d.state.Earlier
	}
	owned := d.state.Account.TopUps
	a.SideRow = CurrentSideRow
	a.TopUpsUsed = owned - a.TopUps
	a.CarriedTopUps, a.AllowanceExcess = holds.CarriedTopUps, 0
	a.Allowance = max(d.allowance(), a.AllowanceRemaining()+max(0, holds.Own-a.TopUpsUsed))
	a.OpenReservations = holds.Count
	a.GrantedPeriod = d.rules.lastGranted(*a, d.at)
	d.conversion = &Conversion{Period: a.GrantedPeriod}
	d.balance, d.topUps = a.TokensRemaining, a.TopUps
}

// Convert sets the period of a reservation of the earlier version.
func (c *Conversion) Convert(r *Reservation) {
	if c != nil && r.Period == PeriodOfConversion {
		r.Period = c.Period
	}
}
