package usertest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// accountView is what is compared of an account: all that the rules decide. NextHoldExpiry is left out, since it is no
// more than a bound; [Check] has it.
type accountView struct {
	Tier                   user.Tier
	Status                 user.SubscriptionStatus
	Active                 bool
	Name, Address          string
	R, U, T, W, G, E, C, H int64
	Open                   int64
	Granted                int
	LastReset, Renewal     string
	SideRow                user.SideRow
}

func view(a user.Account) accountView {
	return accountView{
		a.Tier, a.SubscriptionStatus, a.Active, text(a.Username), text(a.Email), a.TokensRemaining, a.TokensUsed,
		a.TopUps, a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps, a.Reserved, a.OpenReservations,
		a.GrantedPeriod, at(a.LastReset), at(a.RenewalDate), a.SideRow,
	}
}

type entryView struct {
	Kind                                    user.EntryKind
	Amount, Balance, Used, Charged, Back    int64
	TopUps, Period, Changes                 string
	Reservation, Refunded, Key, Actor, Made string
}

func viewEntry(e user.Entry) entryView {
	var changes []byte
	if len(e.Changes) > 0 {
		var err error
		if changes, err = json.Marshal(e.Changes); err != nil {
			panic(err)
		}
	}
	v := entryView{
		e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter, e.TokensCharged, e.TokensRefunded, text(e.TopUpsAmount), "",
		string(changes), text(e.ReservationID), text(e.RefundedEntryID), text(e.IdempotencyKey), text(e.Actor), at(&e.CreatedAt),
	}
	if e.Kind == user.KindConsume || e.Kind == user.KindSettle {
		v.Period = text(e.Period)
	}
	return v
}

type reservationView struct {
	ID                                   string
	Status                               user.ReservationStatus
	Tokens, Charged, Returned, Shortfall int64
	Period                               int
	Late                                 bool
	Made, Expires, Closed, Cost          string
}

// viewReservation leaves the period of a closed reservation out: one that the earlier version closed has none.
func viewReservation(r user.Reservation) reservationView {
	if r.Status != user.ReservationOpen {
		r.Period = 0
	}
	return reservationView{
		r.ID, r.Status, r.Tokens, r.Charged, r.Returned, r.Shortfall, r.Period, r.Late,
		at(&r.CreatedAt), at(&r.ExpiresAt), at(r.ClosedAt), text(r.TokensUsed),
	}
}

// compareAll compares the views of two lists.
func compareAll[T any, V comparable](what string, got, want []T, view func(T) V) error {
	for i := range min(len(got), len(want)) {
		if g, w := view(got[i]), view(want[i]); g != w {
			return fmt.Errorf("%s %d is\n%+v, want\n%+v", what, i+1, g, w)
		}
	}
	switch {
	case len(got) > len(want):
		return fmt.Errorf("%s %d should not be there: %+v", what, len(want)+1, view(got[len(want)]))
	case len(got) < len(want):
		return fmt.Errorf("%s %d is missing: %+v", what, len(got)+1, view(want[len(got)]))
	}
	return nil
}

// at is an instant in UTC.
func at(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func text[T any](p *T) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(*p)
}
