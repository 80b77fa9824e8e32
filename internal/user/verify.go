package user

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// LedgerReader is what verification reads. Each call is one short snapshot.
type LedgerReader interface {
	// Chain reads up to limit ledger entries of all accounts that were made at or after since, in the order of account
	// and entry, after the given one.
	Chain(ctx context.Context, afterAccount string, afterEntry int64, since time.Time, limit int) ([]ChainEntry, error)
	// TopUps reads the top-ups of accounts and what entries after the given ones have added to them, in the order of the
	// arguments; an account that does not exist any more, or whose side row is not of this version, has none.
	TopUps(ctx context.Context, accountIDs []string, afterEntries []int64) ([]TopUpTotals, error)
	// AccountTotals reads up to limit accounts with ids greater than after, in their order.
	AccountTotals(ctx context.Context, after string, limit int) ([]AccountTotals, error)
	// UsageDifferences reads where the usage of accounts that is added up is not what their entries up to there add up to.
	// It says nothing of accounts with very many entries, and while days are being added up again.
	UsageDifferences(ctx context.Context, accountIDs []string) ([]UsageDifference, error)
}

// UsageDifference is usage that is added up, and what the entries say. The dimension is empty for all of an account.
type UsageDifference struct {
	AccountID, Dimension, Value string
	Kept, Entries               Usage
}

// ChainEntry is one entry of an account's chain. Of the entry, only what is a number or a kind is read.
type ChainEntry struct {
	AccountID string
	Entry
	// BalanceBefore and UsedBefore are those of the account's previous entry; 0 for the first.
	BalanceBefore, UsedBefore int64
	// ChargePeriod is the period of the charge that a refund names.
	ChargePeriod *int
	// Orphan is true when the account of the entry does not exist, Moving when it is being erased, so that the entries
	// before are those of its pseudonym.
	Orphan, Moving bool
}

// TopUpTotals are the top-ups of an account by its side row, and by the newest entries of its ledger.
type TopUpTotals struct {
	AccountID string
	TopUps    int64
	// Later is the sum of the entries that came after those already read; nil when one of them has none.
	Later *int64
}

// AccountTotals are what each table says of one account.
type AccountTotals struct {
	Account Account
	Totals  Totals
}

// Discrepancy is a way in which an account disagrees with its ledger or its reservations.
type Discrepancy struct {
	AccountID string
	Problem   string
}

// VerifySummary counts what was looked at.
type VerifySummary struct {
	Accounts, Entries, Discrepancies int
}

// Entries and accounts are read in pages of this many. Of the accounts of a page, one in usageSample has its usage held
// against its entries, usagePage at a time.
const (
	verifyPage  = 5000
	usageSample = 50
	usagePage   = 20
)

// Verify checks what rule 12 promises of every account: each entry continues the one before, the last one explains the
// account's counters, and the open reservations what is held. Of a sample of accounts the usage that is added up is what the
// entries say. Entries before since are taken as checked; accounts are
// always all checked. It reads in pages while the service runs, and calls report for each discrepancy. No account may
// have been granted a period later than that of now.
func (r Rules) Verify(ctx context.Context, reader LedgerReader, since, now time.Time, report func(Discrepancy)) (VerifySummary, error) {
	v := verification{rules: r, reader: reader, since: since, now: now, report: report}
	if err := v.chains(ctx); err != nil {
		return v.sum, err
	}
	err := v.accounts(ctx)
	return v.sum, err
}

// verification is one run of Verify.
type verification struct {
	rules      Rules
	reader     LedgerReader
	since, now time.Time
	report     func(Discrepancy)
	sum        VerifySummary

	// The chain that is being read: its account, its last entry, the last one that ended a period, and the sum of
	// top-ups.
	last    ChainEntry
	ended   int64
	topUps  int64
	partial bool
	// Chains that have been read to their end, whose top-ups are to be compared with the account's.
	ids   []string
	ends  []int64
	known []int64
}

func (v *verification) fail(id, format string, args ...any) {
	v.sum.Discrepancies++
	v.report(Discrepancy{id, fmt.Sprintf(format, args...)})
}

func (v *verification) chains(ctx context.Context) error {
	for {
		page, err := v.reader.Chain(ctx, v.last.AccountID, v.last.ID, v.since, verifyPage)
		if err != nil {
			return err
		}
		for _, e := range page {
			v.sum.Entries++
			if e.AccountID != v.last.AccountID {
				v.endChain()
				if e.Orphan {
					v.fail(e.AccountID, "there are ledger entries of an account that does not exist")
				}
			}
			v.link(e)
		}
		if len(page) < verifyPage {
			v.endChain()
			return v.compareTopUps(ctx)
		}
		if len(v.ids) >= verifyPage {
			if err := v.compareTopUps(ctx); err != nil {
				return err
			}
		}
	}
}

// link checks that an entry continues the one before.
func (v *verification) link(e ChainEntry) {
	if e.BalanceBefore+e.Amount != e.BalanceAfter {
		v.fail(e.AccountID, "entry %d: a balance of %d and an amount of %d do not make %d", e.ID, e.BalanceBefore, e.Amount, e.BalanceAfter)
	}
	if want, known := v.usedAfter(e); known && e.UsedAfter != want {
		v.fail(e.AccountID, "entry %d: %d tokens used before it, %d charged and %d refunded do not make %d",
			e.ID, e.UsedBefore, e.TokensCharged, e.TokensRefunded, e.UsedAfter)
	}
	if e.TopUpsAmount == nil {
		v.partial = true
	} else {
		v.topUps += *e.TopUpsAmount
	}
	if e.EndsPeriod() {
		v.ended = e.ID
	}
	v.last = e
}

// usedAfter is what UsedAfter of an entry must be. It is not known of a refund when what is checked may not go back to its
// charge.
func (v *verification) usedAfter(e ChainEntry) (used int64, known bool) {
	switch {
	case e.Kind == KindOpening:
		return e.UsedAfter, true
	case e.EndsPeriod():
		return 0, true
	case e.RefundedEntryID == nil:
		return e.UsedBefore + e.TokensCharged, true
	case v.last.AccountID != e.AccountID || (!v.since.IsZero() || e.Moving) && v.ended == 0:
		return 0, false
	}
	charge := Charge{Entry: Entry{Period: e.ChargePeriod}, Ended: v.ended > *e.RefundedEntryID}
	inPeriod := !charge.Ended
	if e.Period != nil {
		inPeriod = charge.inPeriod(*e.Period)
	}
	if !inPeriod {
		return e.UsedBefore, true
	}
	return e.UsedBefore - min(e.UsedBefore, e.TokensRefunded), true
}

// endChain keeps the sum of a whole chain for compareTopUps.
func (v *verification) endChain() {
	if v.last.AccountID != "" && !v.last.Orphan && !v.partial && v.since.IsZero() {
		v.ids, v.ends, v.known = append(v.ids, v.last.AccountID), append(v.ends, v.last.ID), append(v.known, v.topUps)
	}
	v.ended, v.topUps, v.partial = 0, 0, false
}

func (v *verification) compareTopUps(ctx context.Context) error {
	if len(v.ids) == 0 {
		return nil
	}
	page, err := v.reader.TopUps(ctx, v.ids, v.ends)
	if err != nil {
		return err
	}
	sums := make(map[string]int64, len(v.ids))
	for i, id := range v.ids {
		sums[id] = v.known[i]
	}
	for _, t := range page {
		if t.Later != nil && sums[t.AccountID]+*t.Later != t.TopUps {
			v.fail(t.AccountID, "the account has %d top-ups, its entries add up to %d", t.TopUps, sums[t.AccountID]+*t.Later)
		}
	}
	v.ids, v.ends, v.known = v.ids[:0], v.ends[:0], v.known[:0]
	return nil
}

func (v *verification) accounts(ctx context.Context) error {
	for after := ""; ; {
		page, err := v.reader.AccountTotals(ctx, after, verifyPage)
		if err != nil {
			return err
		}
		for _, t := range page {
			v.sum.Accounts++
			after = t.Account.ID
			for _, problem := range v.rules.problems(t.Account, t.Totals, v.now) {
				v.fail(t.Account.ID, "%s", problem)
			}
		}
		if err := v.usage(ctx, page); err != nil {
			return err
		}
		if len(page) < verifyPage {
			return nil
		}
	}
}

// usage checks a sample of a page of accounts. The entries of those that are erased do not say any more what they were for.
func (v *verification) usage(ctx context.Context, page []AccountTotals) error {
	var ids []string
	for i := 0; i < len(page); i += usageSample {
		if form := page[i].Account.SideRow; form != ErasedSideRow && form != MovingSideRow {
			ids = append(ids, page[i].Account.ID)
		}
	}
	for part := range slices.Chunk(ids, usagePage) {
		differences, err := v.reader.UsageDifferences(ctx, part)
		if err != nil {
			return err
		}
		for _, d := range differences {
			of := "the usage"
			if d.Dimension != "" {
				of = fmt.Sprintf("the usage with the %s %q", d.Dimension, d.Value)
			}
			v.fail(d.AccountID, "%s is kept as %d tokens charged and %d refunded by %d entries, the ledger has %d and %d by %d", of,
				d.Kept.Charged, d.Kept.Refunded, d.Kept.Entries, d.Entries.Charged, d.Entries.Refunded, d.Entries.Entries)
		}
	}
	return nil
}

// problems says in what an account disagrees with its ledger, its reservations or itself.
func (r Rules) problems(a Account, t Totals, now time.Time) (problems []string) {
	if a.SideRow == NoSideRow {
		return nil // nothing has been promised of it yet
	}
	var last Entry
	if t.Last != nil {
		last = *t.Last
	}
	say := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
	}
	say(a.TokensRemaining != last.BalanceAfter, "the account has %d tokens, its last entry says %d", a.TokensRemaining, last.BalanceAfter)
	say(a.TokensUsed != last.UsedAfter, "the account has used %d tokens, its last entry says %d", a.TokensUsed, last.UsedAfter)
	say(a.Reserved != t.Reserved, "the account holds %d tokens, its open reservations %d", a.Reserved, t.Reserved)
	say(min(a.TokensRemaining, a.TokensUsed) < 0 || a.total() > MaxTokens, "out of range: %d tokens, %d used, %d held", a.TokensRemaining, a.TokensUsed, a.Reserved)
	if t.NextExpiry != nil {
		say(a.NextHoldExpiry == nil || a.NextHoldExpiry.After(*t.NextExpiry), "a reservation runs out at %s, which the account does not know of", t.NextExpiry.UTC().Format(time.RFC3339Nano))
	}
	if a.SideRow == EarlierSideRow || a.SideRow == MovingSideRow {
		return problems
	}
	say(a.OpenReservations != t.Open, "the account has %d open reservations, there are %d", a.OpenReservations, t.Open)
	say(a.TopUps > a.TokensRemaining, "of %d tokens %d are top-ups", a.TokensRemaining, a.TopUps)
	say(a.CarriedTopUps > a.Reserved, "of %d held tokens %d are top-ups of an earlier period", a.Reserved, a.CarriedTopUps)
	say(a.AllowanceRemaining() > 0 && a.AllowanceExcess > 0, "the allowance is exceeded by %d, and %d of it are left", a.AllowanceExcess, a.AllowanceRemaining())
	say(a.GrantedPeriod > latestPeriod(now), "the allowance of a month to come was granted")
	return problems
}

// Reconcile makes the ledger explain an account whose row was changed by hand: an opening entry takes the difference, and
// what is held is again what the open reservations say (rule 12). What is above the tier's allowance counts as topped
// up, as with an account that is adopted. There is no change when the books agree. The state must have Totals.
func (r Rules) Reconcile(s State, m Meta) Change {
	t := *s.Totals
	var problems []string
	if t.TopUps != nil && *t.TopUps != s.Account.TopUps {
		problems = append(problems, "the top-ups differ")
	}
	if problems = append(problems, r.problems(s.Account, t, s.Now)...); problems == nil && s.Account.SideRow == CurrentSideRow {
		return Change{Account: s.Account}
	}
	was := s.Account
	s.Account.SideRow, s.Holds, s.OpenCount = NoSideRow, nil, nil
	d := r.draft(s)
	a := &d.account
	a.Allowance = max(a.Allowance, a.AllowanceRemaining())
	if was.SideRow == CurrentSideRow && was.GrantedPeriod <= latestPeriod(d.at) {
		a.GrantedPeriod = was.GrantedPeriod
	}
	if was.SideRow == EarlierSideRow {
		d.conversion = &Conversion{Period: a.GrantedPeriod}
	}
	d.opening = nil
	d.continueFrom(&t)
	if t.TopUps == nil && was.SideRow == CurrentSideRow { // the entries do not say, the side row does
		d.topUps = was.TopUps
	}
	d.record(m.entry(Entry{Kind: KindOpening}))
	d.recorded = true
	return d.change()
}

// Reconcile is [Rules.Reconcile] for one account; it reports whether anything had to be changed. [ErrUserNotFound] when
// there is no such account, [ErrBeingErased] while its entries are in two places.
func (s *Service) Reconcile(ctx context.Context, id, actor string) (bool, error) {
	change, err := s.update(ctx, Ref{AccountID: id, Totals: true}, func(st State) (Change, error) {
		if err := st.Account.accessible(); err != nil {
			return Change{}, err
		}
		return s.Rules.Reconcile(st, Meta{Actor: actor}), nil
	})
	return !change.Empty(), err
}
