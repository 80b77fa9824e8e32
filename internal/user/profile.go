package user

import (
	"slices"
	"time"
)

// SubscriptionStatuses are the statuses that a profile update may set.
func SubscriptionStatuses() []SubscriptionStatus {
	return []SubscriptionStatus{
		StatusActive, StatusTrialing, "past_due", "canceled", "unpaid", "paused", "incomplete", "incomplete_expired",
	}
}

// NewAccount asks for a new account on the free tier. [Rules.Open] makes it. Carried out on an account that is there, it
// is refused with [ErrUserExists], unless it is what made the account.
type NewAccount struct {
	ID       string
	Username *string
	Email    *string
	Meta
	// put is the command that makes the account because there is none to change; nil for a call that only makes one.
	put *PutProfile
}

// Kind implements [Command].
func (NewAccount) Kind() EntryKind { return KindOpening }

func (n NewAccount) identity() []any {
	if n.put != nil {
		return n.put.identity()
	}
	return []any{"create", n.Username, n.Email}
}

func (NewAccount) apply(*draft) error { return ErrUserExists }

// Open makes a new account. What its tier grants, if anything, is explained by an opening entry; so is what an earlier
// account with the same id left in the ledger, and a key or metadata are kept by one.
func (r Rules) Open(s State, n NewAccount) Change {
	at := s.Now.UTC().Truncate(time.Microsecond)
	d := draft{rules: r, state: s, at: at, account: Account{
		ID: n.ID, Username: n.Username, Email: n.Email, Tier: TierFree, SubscriptionStatus: StatusActive, Active: true,
		LastReset: &at, CreatedAt: at, UpdatedAt: at, SideRow: CurrentSideRow, GrantedPeriod: r.period(at),
	}}
	a := &d.account
	a.Allowance = d.allowance()
	a.TokensRemaining = a.Allowance
	d.continueFrom(s.Totals)
	if a.TokensRemaining > 0 || s.Totals.hasEntries() || n.IdempotencyKey != "" || len(n.Metadata) > 0 {
		d.recordCommand(n, Entry{})
	}
	return d.change()
}

// UpdateProfile changes what an account is beside its tokens. A field without its Set flag, or nil where there is
// none, stays as it is. An entry says which fields changed, of names and addresses without their values; there is none
// when nothing did. Refusal: [ErrValidation].
type UpdateProfile struct {
	Username, Email       *string
	SetUsername, SetEmail bool
	// SubscriptionStatus is one of SubscriptionStatuses.
	SubscriptionStatus *SubscriptionStatus
	Active             *bool
	Meta
}

// Kind implements [Command].
func (UpdateProfile) Kind() EntryKind { return KindProfileChange }

func (c UpdateProfile) validate(Rules) error {
	if c.SubscriptionStatus != nil && !slices.Contains(SubscriptionStatuses(), *c.SubscriptionStatus) {
		return invalid("subscription_status", "must be one of the known statuses")
	}
	return nil
}

func (c UpdateProfile) identity() []any {
	return []any{"update", c.SetUsername, c.Username, c.SetEmail, c.Email, c.SubscriptionStatus, c.Active}
}

func (c UpdateProfile) apply(d *draft) error {
	d.setText(&d.account.Username, c.Username, c.SetUsername)
	d.setText(&d.account.Email, c.Email, c.SetEmail)
	if c.SubscriptionStatus != nil {
		d.account.SubscriptionStatus = *c.SubscriptionStatus
	}
	if c.Active != nil {
		d.account.Active = *c.Active
	}
	if d.recordChanges(c); !d.recorded && len(c.Metadata) > 0 { // a reason is kept also where the account is as asked already
		d.recordCommand(c, Entry{})
	}
	return nil
}

// PutProfile sets what it is given on an account. [Service.Put] makes the account where there is none.
type PutProfile struct {
	Username, Email       *string
	SetUsername, SetEmail bool
	Meta
}

// Kind implements [Command].
func (PutProfile) Kind() EntryKind { return KindProfileChange }

func (c PutProfile) identity() []any {
	return []any{"put", c.SetUsername, c.Username, c.SetEmail, c.Email}
}

func (c PutProfile) apply(d *draft) error {
	d.setText(&d.account.Username, c.Username, c.SetUsername)
	d.setText(&d.account.Email, c.Email, c.SetEmail)
	d.recordChanges(c)
	return nil
}

// setText sets a column that the command gives a value for.
func (d *draft) setText(column **string, value *string, given bool) {
	if given && !sameText(*column, value) {
		*column = value
	}
}

// Deactivate ends the open reservations of an account as expired, so that calls on their way can still settle, and lets
// it spend no more. Where there are more than MaxHoldsPerUpdate, [Service.Deactivate] ends those that are left.
type Deactivate struct{ Meta }

// Kind implements [Command].
func (Deactivate) Kind() EntryKind { return KindProfileChange }

func (Deactivate) names(ref *Ref, _ Rules) { ref.allOpen() }
func (Deactivate) identity() []any         { return []any{"deactivate"} }

func (c Deactivate) apply(d *draft) error {
	d.endHolds(c.Actor, time.Time{})
	d.account.Active = false
	d.recordChanges(c)
	return nil
}

// endHolds goes on with ending the reservations of an account that was deactivated.
type endHolds struct {
	// openedBy leaves out those that were opened later; zero for none.
	openedBy time.Time
	Meta
}

// Kind implements [Command]: each reservation has an entry of its own.
func (endHolds) Kind() EntryKind { return "" }

func (endHolds) names(ref *Ref, _ Rules) { ref.allOpen() }
func (endHolds) identity() []any         { return nil }

func (c endHolds) apply(d *draft) error {
	d.endHolds(c.Actor, c.openedBy)
	return nil
}

// Erase deactivates an account, removes what tells whose it was and marks it as one that is moved to a pseudonym, so that
// the ledger still balances and nothing in it leads to the person. From then on every command is refused with
// [ErrBeingErased], and [Store.MoveErased] moves it. It takes no key, since none would be left. Refusal: [ErrOverloaded]
// when more reservations are open than one update can end.
type Erase struct {
	// Pseudonym is the new id of the account.
	Pseudonym string
	Meta
}

// Kind implements [Command].
func (Erase) Kind() EntryKind { return KindProfileChange }

func (Erase) names(ref *Ref, _ Rules) { ref.allOpen() }
func (Erase) identity() []any         { return nil }

func (c Erase) apply(d *draft) error {
	d.endHolds(c.Actor, time.Time{})
	if d.account.OpenReservations > 0 {
		return ErrOverloaded
	}
	d.account.Active = false
	d.account.Username, d.account.Email = nil, nil
	d.account.SideRow, d.pseudonym = MovingSideRow, c.Pseudonym
	d.recordChanges(c)
	return nil
}

// endHolds ends the reservations that had been opened by then as expired; all of them when it is zero.
func (d *draft) endHolds(actor string, openedBy time.Time) {
	for i := range d.holds {
		if h := d.holds[i]; h.Status == ReservationOpen && (openedBy.IsZero() || !h.CreatedAt.After(openedBy)) {
			d.expireHold(i, Meta{Actor: actor})
		}
	}
}

// recordChanges records the columns that the command changed, if it changed any.
func (d *draft) recordChanges(c Command) {
	if changes := d.changes(); changes != nil {
		d.recordCommand(c, Entry{Changes: changes})
	}
}

// changes says which columns beside the counters differ from what they were; nil when none does.
func (d *draft) changes() Changes {
	was, is := d.state.Account, d.account
	var changes Changes
	note := func(column string, c FieldChange) {
		if changes == nil {
			changes = Changes{}
		}
		changes[column] = c
	}
	if was.Tier != is.Tier {
		note("subscription_tier", FieldChange{string(was.Tier), string(is.Tier)})
	}
	if was.SubscriptionStatus != is.SubscriptionStatus {
		note("subscription_status", FieldChange{string(was.SubscriptionStatus), string(is.SubscriptionStatus)})
	}
	if was.Active != is.Active {
		note("is_active", FieldChange{was.Active, is.Active})
	}
	if !sameInstant(was.RenewalDate, is.RenewalDate) {
		note("subscription_renewal_date", FieldChange{})
	}
	if !sameText(was.Username, is.Username) {
		note("username", FieldChange{})
	}
	if !sameText(was.Email, is.Email) {
		note("email", FieldChange{})
	}
	return changes
}

func sameText(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
