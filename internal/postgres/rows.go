package postgres

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/viralpilot/user-management/internal/user"
)

// userdataFields are where the columns of userdataColumns go.
func userdataFields(a *user.Account) []any {
	return []any{
		&a.ID, &a.Username, &a.Email, &a.Tier, &a.SubscriptionStatus,
		date{&a.RenewalDate},
		&a.TokensRemaining, &a.TokensUsed,
		date{&a.LastReset},
		instant{&a.CreatedAt},
		instant{&a.UpdatedAt},
		&a.Active,
	}
}

// The columns of userdata may hold what was written by hand: infinity, and years that RFC 3339 cannot write.

// date reads a TIMESTAMP that may be missing; one that cannot be shown is.
type date struct{ at **time.Time }

// ScanTimestamp implements pgtype.TimestampScanner.
func (d date) ScanTimestamp(v pgtype.Timestamp) error {
	*d.at = nil
	if showable(v) {
		*d.at = &v.Time
	}
	return nil
}

// instant reads a TIMESTAMP that is always there; one that cannot be shown is the beginning of time.
type instant struct{ at *time.Time }

// ScanTimestamp implements pgtype.TimestampScanner.
func (i instant) ScanTimestamp(v pgtype.Timestamp) error {
	*i.at = time.Time{}
	if showable(v) {
		*i.at = v.Time
	}
	return nil
}

func showable(v pgtype.Timestamp) bool {
	return v.Valid && v.InfinityModifier == pgtype.Finite && v.Time.Year() >= 1 && v.Time.Year() <= 9999
}

// sideRowFields are where the columns of a side row go; sideRowForm says then what they mean.
func sideRowFields(a *user.Account) []any {
	return []any{
		&a.TopUps, &a.TopUpsUsed, &a.Allowance, &a.AllowanceExcess, &a.CarriedTopUps, &a.GrantedPeriod, &a.Reserved,
		&a.OpenReservations, &a.NextHoldExpiry,
	}
}

// What periodOrForm says of accounts in place of a period.
const (
	earlierSideRow = -1
	noSideRow      = -2
	movingSideRow  = -3
	erasedSideRow  = -4
)

// sideRowForm sets the form of the side row that was read.
func sideRowForm(a *user.Account) {
	switch a.GrantedPeriod {
	case noSideRow:
		a.SideRow, a.GrantedPeriod = user.NoSideRow, 0
	case earlierSideRow:
		a.SideRow, a.GrantedPeriod = user.EarlierSideRow, 0
	case movingSideRow:
		a.SideRow, a.GrantedPeriod = user.MovingSideRow, 0
	case erasedSideRow:
		a.SideRow, a.GrantedPeriod = user.ErasedSideRow, 0
	default:
		a.SideRow = user.CurrentSideRow
	}
}

// entryFields are where the columns of entryColumns go.
func entryFields(e *user.Entry) []any {
	return []any{
		&e.ID, &e.Kind, &e.Amount, &e.BalanceAfter, &e.UsedAfter, &e.TokensCharged, &e.TokensRefunded, &e.TopUpsAmount,
		&e.Period, &e.Changes, &e.ReservationID, &e.RefundedEntryID, &e.IdempotencyKey, &e.CommandHash, &e.Metadata, &e.Actor,
		&e.CreatedAt,
	}
}

// found is a row of a page. One that does not fit only says how far the search for the page came.
type found[T any] struct {
	value T
	fits  bool
	// last is true for the last row that the search for one page may look at.
	last bool
}

func scanFoundAccount(row pgx.CollectableRow) (f found[user.Account], err error) {
	a := &f.value
	err = row.Scan(slices.Concat(userdataFields(a), sideRowFields(a), []any{&f.fits, &f.last})...)
	sideRowForm(a)
	return f, err
}

func scanFoundEntry(row pgx.CollectableRow) (f found[user.Entry], err error) {
	err = row.Scan(append(entryFields(&f.value), &f.fits, &f.last)...)
	return f, err
}

// pageOf returns what of the rows fits, and the row after which the next page begins; nil when these are all. The rows are
// limit at most.
func pageOf[T any](rows []found[T], limit int) (page []T, last *T) {
	for i := range rows {
		r := &rows[i]
		if r.fits {
			page = append(page, r.value)
		}
		if r.last || i == limit-1 {
			last = &r.value
		}
	}
	return page, last
}

func scanEntry(row pgx.CollectableRow) (e user.Entry, err error) {
	err = row.Scan(entryFields(&e)...)
	return e, err
}

// owned is a row of a query that names several accounts, with the account it belongs to.
type owned[T any] struct {
	accountID string
	value     T
}

func scanAccountEntry(row pgx.CollectableRow) (o owned[user.Entry], err error) {
	err = row.Scan(append([]any{&o.accountID}, entryFields(&o.value)...)...)
	return o, err
}

func scanAccountCharge(row pgx.CollectableRow) (o owned[user.Charge], err error) {
	c := &o.value
	err = row.Scan(append(append([]any{&o.accountID}, entryFields(&c.Entry)...), &c.Refunded)...)
	return o, err
}

func scanOwned[T any](row pgx.CollectableRow) (o owned[T], err error) {
	err = row.Scan(&o.accountID, &o.value)
	return o, err
}

// settled is the reservation that an entry settled.
type settled struct {
	entryID int64
	user.Reservation
}

func scanSettled(row pgx.CollectableRow) (o owned[settled], err error) {
	r := &o.value
	err = row.Scan(&o.accountID, &r.entryID, &r.Tokens, &r.Period, &r.Late)
	return o, err
}

// periodEnd is an entry that came after a charge.
type periodEnd struct {
	chargeID int64
	user.Entry
}

func scanPeriodEnd(row pgx.CollectableRow) (o owned[periodEnd], err error) {
	err = row.Scan(&o.accountID, &o.value.chargeID, &o.value.Kind, &o.value.TopUpsAmount)
	return o, err
}

func scanEarlierHolds(row pgx.CollectableRow) (o owned[user.EarlierHolds], err error) {
	err = row.Scan(&o.accountID, &o.value.CarriedTopUps, &o.value.Own, &o.value.Count)
	return o, err
}

func scanOpenTotals(row pgx.CollectableRow) (o owned[user.Totals], err error) {
	err = row.Scan(&o.accountID, &o.value.Reserved, &o.value.Open, &o.value.NextExpiry)
	return o, err
}

func scanAccountReservation(row pgx.CollectableRow) (o owned[user.Reservation], err error) {
	err = row.Scan(append([]any{&o.accountID}, reservationFields(&o.value)...)...)
	return o, err
}

// reservationFields are where the columns of reservationColumns go.
func reservationFields(r *user.Reservation) []any {
	return []any{
		&r.ID, &r.Status, &r.Tokens, &r.Charged, &r.Returned, &r.Shortfall, &r.Period, &r.Late, &r.Metadata, &r.CreatedAt,
		&r.ExpiresAt, &r.ClosedAt, &r.TokensUsed,
	}
}

func scanReservation(row pgx.CollectableRow) (r user.Reservation, err error) {
	err = row.Scan(reservationFields(&r)...)
	return r, err
}

func scanChainEntry(row pgx.CollectableRow) (e user.ChainEntry, err error) {
	err = row.Scan(&e.AccountID, &e.ID, &e.Kind, &e.Amount, &e.BalanceAfter, &e.UsedAfter, &e.TokensCharged, &e.TokensRefunded,
		&e.TopUpsAmount, &e.Period, &e.RefundedEntryID, &e.BalanceBefore, &e.UsedBefore, &e.ChargePeriod, &e.Orphan, &e.Moving)
	return e, err
}

func scanTopUpTotals(row pgx.CollectableRow) (t user.TopUpTotals, err error) {
	err = row.Scan(&t.AccountID, &t.TopUps, &t.Later)
	return t, err
}

func scanAccountTotals(row pgx.CollectableRow) (t user.AccountTotals, err error) {
	var last user.Entry
	err = row.Scan(slices.Concat(userdataFields(&t.Account), sideRowFields(&t.Account), []any{
		&last.BalanceAfter, &last.UsedAfter, &t.Totals.Reserved, &t.Totals.Open, &t.Totals.NextExpiry,
	})...)
	sideRowForm(&t.Account)
	t.Totals.Last = &last
	return t, err
}
