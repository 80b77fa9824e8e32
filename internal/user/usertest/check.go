package usertest

import (
	"fmt"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// Check holds an account against its whole ledger, oldest entry first, and all its reservations: the invariants of rules
// 3, 8 and 12 that one can see without knowing what was done.
func Check(a user.Account, entries []user.Entry, reservations []user.Reservation) error {
	l := ledger{entries: entries, reservations: map[string]user.Reservation{}, numbers: map[int64]int{}, refunded: map[int]int64{}}
	for _, r := range reservations {
		l.reservations[r.ID] = r
	}
	for i := range entries {
		if err := l.add(i); err != nil {
			return fmt.Errorf("%s entry %d: %w", entries[i].Kind, entries[i].ID, err)
		}
	}
	if a.SideRow == user.NoSideRow {
		return nil
	}
	if a.TokensRemaining != l.balance || a.TokensUsed != l.used {
		return fmt.Errorf("balance %d and used %d, the last entry has %d and %d", a.TokensRemaining, a.TokensUsed, l.balance, l.used)
	}
	held, open, next := int64(0), int64(0), (*time.Time)(nil)
	for _, r := range reservations {
		if r.Status != user.ReservationOpen {
			continue
		}
		open++
		held += r.Tokens
		if next == nil || r.ExpiresAt.Before(*next) {
			next = &r.ExpiresAt
		}
	}
	switch {
	case a.Reserved != held:
		return fmt.Errorf("reserved %d, open reservations hold %d", a.Reserved, held)
	case next == nil && a.NextHoldExpiry != nil, next != nil && (a.NextHoldExpiry == nil || a.NextHoldExpiry.After(*next)):
		return fmt.Errorf("next hold expiry %s, the earliest is %s", at(a.NextHoldExpiry), at(next))
	case a.TokensRemaining+a.TokensUsed+a.Reserved > user.MaxTokens:
		return fmt.Errorf("counters past 32 bits: %+v", view(a))
	case a.SideRow == user.EarlierSideRow:
		return nil
	case a.OpenReservations != open:
		return fmt.Errorf("%d open reservations, there are %d", a.OpenReservations, open)
	}
	left := a.TokensRemaining - a.TopUps
	switch least := min(a.TokensRemaining, a.TokensUsed, a.TopUps, a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps, left); {
	case least < 0:
		return fmt.Errorf("a counter is negative: %+v", view(a))
	case max(a.TopUpsUsed, a.Allowance, a.AllowanceExcess) > user.MaxTokens:
		return fmt.Errorf("a counter is past 32 bits: %+v", view(a))
	case a.CarriedTopUps > held:
		return fmt.Errorf("%d carried top-ups in %d held tokens", a.CarriedTopUps, held)
	case left > 0 && a.AllowanceExcess > 0:
		return fmt.Errorf("allowance is exceeded by %d while %d are left", a.AllowanceExcess, left)
	case l.topUpsKnown && l.topUps != a.TopUps:
		return fmt.Errorf("top-ups %d, the entries add up to %d", a.TopUps, l.topUps)
	}
	if !l.wholePeriod || l.period == nil {
		return nil
	}
	for _, r := range reservations {
		if r.Status == user.ReservationOpen && r.Period == *l.period {
			l.out += r.Tokens
		}
	}
	if paid := a.Allowance - left + a.AllowanceExcess + a.TopUpsUsed; paid != l.out || *l.period != a.GrantedPeriod {
		return fmt.Errorf("allowance and top-ups of period %d have paid %d, entries and holds of period %d come to %d: %+v",
			a.GrantedPeriod, paid, *l.period, l.out, view(a))
	}
	return nil
}

// ledger is what the entries of an account say, as far as they have been read.
type ledger struct {
	entries      []user.Entry
	reservations map[string]user.Reservation
	numbers      map[int64]int // of entries, by id
	refunded     map[int]int64 // of entries, by number

	balance, used, topUps int64
	topUpsKnown           bool
	// period is the last entry's.
	period *int
	// wholePeriod is true when the period began with a reset, so that out, what was charged to its own allowance and
	// top-ups and not refunded, is all.
	wholePeriod bool
	out         int64
}

func (l *ledger) add(i int) error {
	e := l.entries[i]
	l.balance += e.Amount
	l.numbers[e.ID] = i
	l.topUpsKnown = e.TopUpsAmount != nil && (i == 0 || l.topUpsKnown)
	if e.TopUpsAmount != nil {
		l.topUps += *e.TopUpsAmount
	}
	switch {
	case i > 0 && e.ID <= l.entries[i-1].ID:
		return fmt.Errorf("comes after entry %d", l.entries[i-1].ID)
	case e.BalanceAfter != l.balance:
		return fmt.Errorf("balance_after is %d, the amounts make %d", e.BalanceAfter, l.balance)
	case min(e.TokensCharged, e.TokensRefunded, e.BalanceAfter, e.UsedAfter) < 0:
		return fmt.Errorf("charged %d, refunded %d, %d remaining, %d used", e.TokensCharged, e.TokensRefunded, e.BalanceAfter, e.UsedAfter)
	}
	if err := l.addPeriod(e); err != nil {
		return err
	}
	ofPeriod, err := l.refund(i)
	if err != nil {
		return err
	}
	switch {
	case e.Kind == user.KindOpening:
		l.used, l.out, l.wholePeriod = e.UsedAfter, 0, false
	case e.Kind == user.KindMonthlyReset:
		l.used, l.out, l.wholePeriod = 0, 0, e.Period != nil
	case e.Kind == user.KindTierChange && e.Period == nil:
		l.used, l.out, l.wholePeriod = 0, 0, false
	default:
		l.used += e.TokensCharged - ofPeriod
		l.out += l.own(i)
	}
	if e.UsedAfter != l.used {
		return fmt.Errorf("used_after is %d, charges and refunds make %d", e.UsedAfter, l.used)
	}
	return nil
}

// addPeriod checks that a month is granted once, and never after a later one.
func (l *ledger) addPeriod(e user.Entry) error {
	before := l.period
	if l.period = e.Period; before == nil || e.Period == nil || e.Kind == user.KindOpening {
		return nil
	}
	switch rises := *e.Period > *before; {
	case e.Kind == user.KindMonthlyReset && !rises:
		return fmt.Errorf("period %d is granted after period %d", *e.Period, *before)
	case e.Kind != user.KindMonthlyReset && *e.Period != *before:
		return fmt.Errorf("period %d follows %d without a reset", *e.Period, *before)
	}
	return nil
}

// refund returns what a refund takes off the tokens used, and notes what it gives back.
func (l *ledger) refund(i int) (ofPeriod int64, err error) {
	e := l.entries[i]
	if e.RefundedEntryID == nil {
		return 0, nil
	}
	number, known := l.numbers[*e.RefundedEntryID]
	if !known {
		return 0, fmt.Errorf("refunds entry %d, which does not exist", *e.RefundedEntryID)
	}
	ownLeft := max(0, l.own(number)-l.refunded[number])
	if l.refunded[number] += e.TokensRefunded; l.refunded[number] > l.entries[number].TokensCharged {
		return 0, fmt.Errorf("entry %d charged %d, refunded are %d", *e.RefundedEntryID, l.entries[number].TokensCharged, l.refunded[number])
	}
	if !l.samePeriod(number, i) {
		return 0, nil
	}
	ofPeriod = min(l.used, e.TokensRefunded)
	l.out -= min(ofPeriod, ownLeft)
	return ofPeriod, nil
}

// samePeriod reports whether a charge was of the period that its refund was made in (rule 10).
func (l *ledger) samePeriod(charge, refund int) bool {
	of := l.entries[charge].Period
	for _, e := range l.entries[charge+1 : refund] {
		if e.Kind == user.KindOpening || of == nil && (e.Kind == user.KindMonthlyReset || e.Kind == user.KindTierChange && e.Period == nil) {
			return false
		}
	}
	return of == nil || *of == *l.entries[refund].Period
}

// own is what of a charge was paid by the allowance and the top-ups of its period: not what a hold of an earlier one
// paid.
func (l *ledger) own(i int) int64 {
	e := l.entries[i]
	if e.Kind != user.KindSettle {
		return e.TokensCharged
	}
	r, known := l.reservations[*e.ReservationID]
	if !known || r.Late || e.Period != nil && r.Period == *e.Period || e.Period == nil && r.Period != 0 {
		return e.TokensCharged
	}
	return e.TokensCharged - min(e.TokensCharged, r.Tokens)
}
