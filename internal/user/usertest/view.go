package usertest

import (
	"fmt"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// accountView is what is compared of an account: all that the rules decide.
type accountView struct {
	Tier                    user.Tier
	Status                  user.SubscriptionStatus
	Active                  bool
	R, U, P, H              int64
	LastReset, Renewal, Due string
	Adopted                 bool
}

func view(a user.Account) accountView {
	return accountView{
		a.Tier, a.SubscriptionStatus, a.Active, a.TokensRemaining, a.TokensUsed, a.TopUps, a.Reserved,
		at(a.LastReset), at(a.RenewalDate), at(a.NextHoldExpiry), a.Adopted,
	}
}

type entryView struct {
	Kind                             user.EntryKind
	Amount, Balance, Used, Charged   int64
	Reservation, Refunded, Key, Made string
}

func viewEntry(e user.Entry) entryView {
	return entryView{
		e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter, e.TokensCharged,
		text(e.ReservationID), text(e.RefundedEntryID), text(e.IdempotencyKey), at(&e.CreatedAt),
	}
}

type reservationView struct {
	ID                                           string
	Status                                       user.ReservationStatus
	Tokens, Charged, Returned, Shortfall, TopUps int64
	Carried                                      bool
	Made, Expires, Closed, Cost                  string
}

func viewReservation(r user.Reservation) reservationView {
	return reservationView{
		r.ID, r.Status, r.Tokens, r.Charged, r.Returned, r.Shortfall, r.TopUp, r.Carried,
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
