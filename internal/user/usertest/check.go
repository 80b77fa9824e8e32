package usertest

import (
	"fmt"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// Check holds an account against its whole ledger, oldest entry first, and all its reservations: the invariants of
// product.md §3 that one can see without knowing what was done. The periods are those of the zone.
func Check(a user.Account, entries []user.Entry, reservations []user.Reservation, zone *time.Location) error {
	var balance, used, toppedUp int64
	resets := map[int]bool{}
	for i, e := range entries {
		balance += e.Amount
		switch {
		case i > 0 && e.ID <= entries[i-1].ID:
			return fmt.Errorf("entry %d comes after entry %d", e.ID, entries[i-1].ID)
		case e.BalanceAfter != balance:
			return fmt.Errorf("%s entry %d: balance_after is %d, the amounts make %d", e.Kind, e.ID, e.BalanceAfter, balance)
		case e.TokensCharged < 0:
			return fmt.Errorf("%s entry %d: charged %d", e.Kind, e.ID, e.TokensCharged)
		}
		used = e.UsedAfter
		switch e.Kind {
		case user.KindOpening, user.KindTopUp, user.KindRefund: // a late refund comes back as a top-up
			toppedUp += e.Amount
		case user.KindMonthlyReset:
			if period := month(e.CreatedAt, zone); resets[period] {
				return fmt.Errorf("entry %d: second monthly reset of %s", e.ID, e.CreatedAt.In(zone).Format("2006-01"))
			} else {
				resets[period] = true
			}
		}
	}
	if !a.Adopted {
		if len(entries)+len(reservations) > 0 {
			return fmt.Errorf("there is a ledger but no side row")
		}
		return nil
	}
	var held int64
	var next *time.Time
	for _, r := range reservations {
		if r.Status != user.ReservationOpen {
			continue
		}
		held += r.Tokens
		if next == nil || r.ExpiresAt.Before(*next) {
			next = &r.ExpiresAt
		}
	}
	switch {
	case a.TokensRemaining != balance || a.TokensUsed != used:
		return fmt.Errorf("balance %d and used %d, the last entry has %d and %d", a.TokensRemaining, a.TokensUsed, balance, used)
	case a.Reserved != held:
		return fmt.Errorf("reserved %d, open reservations hold %d", a.Reserved, held)
	case at(a.NextHoldExpiry) != at(next):
		return fmt.Errorf("next hold expiry %s, the earliest is %s", at(a.NextHoldExpiry), at(next))
	case min(a.TokensRemaining, a.TokensUsed, a.TopUps, a.Reserved) < 0:
		return fmt.Errorf("a counter is negative: %+v", view(a))
	case a.TokensRemaining+a.TokensUsed+a.Reserved > user.MaxTokens || a.TopUps > user.MaxTokens:
		return fmt.Errorf("counters past 32 bits: %+v", view(a))
	case a.TopUpsLeft() > toppedUp:
		return fmt.Errorf("top-ups left %d of %d", a.TopUpsLeft(), toppedUp)
	}
	return nil
}
