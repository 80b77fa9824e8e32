package user

import (
	"context"
	"fmt"
	"time"
)

// Books is what verification reads. Each call is one short snapshot.
type Books interface {
	// Links reads up to limit ledger entries of all accounts that were made at or after since, in the order of account
	// and entry, after the given one.
	Links(ctx context.Context, afterAccount string, afterEntry int64, since time.Time, limit int) ([]Link, error)
	// Balances reads up to limit accounts with ids greater than after, in their order.
	Balances(ctx context.Context, after string, limit int) ([]Balance, error)
}

// Link is one entry of an account's chain.
type Link struct {
	AccountID    string
	EntryID      int64
	Amount       int64
	BalanceAfter int64
	// BalanceBefore is the BalanceAfter of the account's previous entry; 0 for the first.
	BalanceBefore int64
	// Orphan is true when the account of the entry does not exist.
	Orphan bool
}

// Balance is an account as its own row, its side row, its last entry and its reservations tell it.
type Balance struct {
	AccountID string
	// Remaining and Used are the row's.
	Remaining, Used int64
	// Adopted is true when there is a side row; TopUps and Reserved are its.
	Adopted          bool
	TopUps, Reserved int64
	// LastBalance and LastUsed are the last entry's; 0 when there is none.
	LastBalance, LastUsed int64
	// Held is the sum of the open reservations.
	Held int64
}

// Disagreement is an account of which the books do not agree, and how.
type Disagreement struct {
	AccountID string
	Problem   string
}

// VerifySummary counts what was looked at.
type VerifySummary struct {
	Accounts, Entries, Disagreements int
}

const verifyPage = 5000

// Verify checks what product.md §3.11 promises of every account: each entry continues the balance of the one before,
// the last one explains the account's counters, and the open reservations what is held. Entries before since are
// taken as checked; accounts are always all checked. It reads in pages while the service runs, and calls report for
// each disagreement.
func Verify(ctx context.Context, books Books, since time.Time, report func(Disagreement)) (VerifySummary, error) {
	var sum VerifySummary
	disagree := func(id, format string, args ...any) {
		sum.Disagreements++
		report(Disagreement{id, fmt.Sprintf(format, args...)})
	}

	for last := (Link{}); ; {
		page, err := books.Links(ctx, last.AccountID, last.EntryID, since, verifyPage)
		if err != nil {
			return sum, err
		}
		for _, l := range page {
			sum.Entries++
			if l.BalanceBefore+l.Amount != l.BalanceAfter {
				disagree(l.AccountID, "entry %d: a balance of %d and an amount of %d do not make %d", l.EntryID, l.BalanceBefore, l.Amount, l.BalanceAfter)
			}
			if l.Orphan && l.AccountID != last.AccountID {
				disagree(l.AccountID, "there are ledger entries of an account that does not exist")
			}
			last = l
		}
		if len(page) < verifyPage {
			break
		}
	}

	for last := ""; ; {
		page, err := books.Balances(ctx, last, verifyPage)
		if err != nil {
			return sum, err
		}
		for _, b := range page {
			sum.Accounts++
			last = b.AccountID
			if !b.Adopted {
				continue // nothing has been promised of it yet
			}
			if b.Remaining != b.LastBalance {
				disagree(b.AccountID, "the account has %d tokens, its last entry says %d", b.Remaining, b.LastBalance)
			}
			if b.Used != b.LastUsed {
				disagree(b.AccountID, "the account has used %d tokens, its last entry says %d", b.Used, b.LastUsed)
			}
			if b.Reserved != b.Held {
				disagree(b.AccountID, "the account holds %d tokens, its open reservations %d", b.Reserved, b.Held)
			}
			if b.Remaining < 0 || b.Used < 0 || b.TopUps < 0 || b.Remaining+b.Used+b.Reserved > MaxTokens {
				disagree(b.AccountID, "out of range: %d tokens, %d used, %d held, %d topped up", b.Remaining, b.Used, b.Reserved, b.TopUps)
			}
		}
		if len(page) < verifyPage {
			return sum, nil
		}
	}
}

// Accept makes the ledger explain an account whose row was changed by hand: an opening entry takes the difference, and
// what is held is again what the open reservations say. What is above the tier's allowance counts as topped up, as
// with an account that is adopted (product.md §3.12). There is no change when the books agree.
func (r Rules) Accept(s State, actor string, now time.Time) (Change, error) {
	if !s.HoldsLoaded {
		return Change{}, ErrHoldsNeeded
	}
	var last Entry
	if s.Last != nil {
		last = *s.Last
	}
	row, topUps := s.Account, s.Account.TopUps
	s.Account.Reserved, s.Account.NextHoldExpiry, s.Account.Adopted = 0, nil, false
	for _, h := range byExpiry(s.Holds) {
		if s.Account.NextHoldExpiry == nil {
			s.Account.NextHoldExpiry = &h.ExpiresAt
		}
		s.Account.Reserved += h.Tokens
	}
	d := r.draft(s, now)
	a := &d.account
	a.TopUps = max(a.TopUps, topUps)
	agree := last.BalanceAfter == a.TokensRemaining && last.UsedAfter == a.TokensUsed
	if row.Adopted && agree && row.Reserved == a.Reserved && row.TokensRemaining == a.TokensRemaining && row.TokensUsed == a.TokensUsed {
		return Change{Account: row}, nil
	}
	d.opening, d.balance = nil, last.BalanceAfter
	d.record(Meta{Actor: actor}.entry(Entry{Kind: KindOpening}))
	return d.change(), nil
}

// Accept is [Rules.Accept] for one account; it reports whether anything had to be changed. [ErrUserNotFound] when
// there is no such account.
func (s *Service) Accept(ctx context.Context, id, actor string) (bool, error) {
	now := s.now()
	change, err := s.update(ctx, Ref{AccountID: id, LastEntry: true}, func(st State) (Change, error) {
		return s.Rules.Accept(st, actor, now)
	})
	return !change.Empty(), err
}
