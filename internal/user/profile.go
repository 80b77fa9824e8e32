package user

import (
	"slices"
	"strings"
	"time"
)

// SubscriptionStatuses are the statuses that a profile update may set (product.md §4).
func SubscriptionStatuses() []SubscriptionStatus {
	return []SubscriptionStatus{
		StatusActive, StatusTrialing, "past_due", "canceled", "unpaid", "paused", "incomplete", "incomplete_expired",
	}
}

// UpdateProfile changes what an account is beside its tokens. A field without its Set flag, or nil where there is
// none, stays as it is.
type UpdateProfile struct {
	Username, Email       *string
	SetUsername, SetEmail bool
	// SubscriptionStatus is one of SubscriptionStatuses.
	SubscriptionStatus *SubscriptionStatus
	Active             *bool
	Actor              string
}

// UpdateProfile writes one entry that names the fields that changed, never their values; none when nothing did.
// Refusal: [ErrValidation].
func (r Rules) UpdateProfile(s State, c UpdateProfile, now time.Time) (Change, error) {
	if c.SubscriptionStatus != nil && !slices.Contains(SubscriptionStatuses(), *c.SubscriptionStatus) {
		return Change{}, invalid("subscription_status", "must be one of the known statuses")
	}
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return Change{}, err
	}
	a := &d.account
	if c.SetUsername {
		a.Username = c.Username
	}
	if c.SetEmail {
		a.Email = c.Email
	}
	if c.SubscriptionStatus != nil {
		a.SubscriptionStatus = *c.SubscriptionStatus
	}
	if c.Active != nil {
		a.Active = *c.Active
	}
	d.recordProfile(c.Actor)
	return d.change(), nil
}

// Deactivate releases the open holds of an account and lets it spend no more. Done again it changes nothing.
func (r Rules) Deactivate(s State, actor string, now time.Time) (Change, error) {
	d, err := r.deactivated(s, actor, now)
	if err != nil {
		return Change{}, err
	}
	d.recordProfile(actor)
	return d.change(), nil
}

// Erase deactivates an account, removes what tells whose it was and moves it with its entries to a pseudonym, so that
// the ledger still balances and nothing in it leads to the person.
func (r Rules) Erase(s State, pseudonym, actor string, now time.Time) (Change, error) {
	d, err := r.deactivated(s, actor, now)
	if err != nil {
		return Change{}, err
	}
	d.account.Username, d.account.Email = nil, nil
	d.recordProfile(actor)
	c := d.change()
	c.Pseudonym = pseudonym
	return c, nil
}

func (r Rules) deactivated(s State, actor string, now time.Time) (*draft, error) {
	d := r.draft(s, now)
	if err := d.touch(); err != nil {
		return nil, err
	}
	if d.account.NextHoldExpiry != nil && !s.HoldsLoaded {
		return nil, ErrHoldsNeeded
	}
	for i := range d.holds {
		if h := &d.holds[i]; h.Status == ReservationOpen {
			d.close(h, ReservationReleased, h.Tokens, Meta{Actor: actor}.entry(Entry{Kind: KindRelease}))
		}
	}
	d.account.Active = false
	return &d, nil
}

// recordProfile writes the entry for the profile fields in which the account differs from what it was, if any do.
func (d *draft) recordProfile(actor string) {
	was, is := d.state.Account, d.account
	var fields []string
	for name, changed := range map[string]bool{
		"username":            !sameText(was.Username, is.Username),
		"email":               !sameText(was.Email, is.Email),
		"subscription_status": was.SubscriptionStatus != is.SubscriptionStatus,
		"is_active":           was.Active != is.Active,
	} {
		if changed {
			fields = append(fields, name)
		}
	}
	if fields == nil {
		return
	}
	slices.Sort(fields)
	d.record(Meta{Actor: actor, Metadata: map[string]string{"fields": strings.Join(fields, ",")}}.entry(Entry{Kind: KindProfileChange}))
}

func sameText(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
