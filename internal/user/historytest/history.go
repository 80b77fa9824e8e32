// Package historytest holds what concurrent callers of the service saw against the token rules. Only tests import it.
//
// Callers record in a [History] when they sent which command and when they were answered what, whatever happened to the
// service, its database or the network meanwhile. [History.Check] then asks of each account by itself whether its history
// is linearizable: whether each command can be given an instant between its call and its answer such that the rules,
// carrying the commands out in that order one at a time, give these very answers. A command that was not answered may have
// been carried out at any instant after its call, or never.
//
//	op := history.Call("u", user.Consume{Tokens: 1})
//	op.Send()
//	switch answer, err := consume(); {
//	case err == nil:
//		op.Answered(answer)
//	case nothing was done:
//		op.NotDone()
//	} // or else its outcome is not known
package historytest

import (
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// History is what callers sent to some accounts and what came back. It is safe for concurrent use.
type History struct {
	rules user.Rules
	begin time.Time

	mu       sync.Mutex
	accounts map[string]*account
}

// account is what is known of one account.
type account struct {
	first      user.Account
	operations []*Operation
}

// instant is when the rules carry every command out: no month ends in a history, and no reservation runs out, unless an
// [Edit] says so.
var instant = time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)

// period is the number of the month of instant.
const period = 12*2026 + 6

// New returns an empty history of accounts that live by these rules.
func New(rules user.Rules) *History {
	return &History{rules: rules, begin: time.Now(), accounts: map[string]*account{}}
}

// Open begins the history of an account without reservations of which the tier, the balance, the top-ups and the tokens
// used are known. Nothing that changes it may be under way.
func (h *History) Open(id string, tier user.Tier, remaining, topUps, used int64) {
	granted := instant
	info, _ := h.rules.Tiers.Lookup(tier)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.accounts[id] = &account{first: user.Account{
		ID: id, Tier: tier, SubscriptionStatus: user.StatusActive, Active: true, SideRow: user.CurrentSideRow,
		TokensRemaining: remaining, TokensUsed: used, TopUps: topUps, Allowance: info.Allowance,
		GrantedPeriod: period, LastReset: &granted, CreatedAt: granted, UpdatedAt: granted,
	}}
}

// Accounts returns the ids of the accounts that were opened.
func (h *History) Accounts() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.accounts))
}

// Edit is a change of an account by other means than a command, such as SQL.
type Edit func(user.Account) user.Account

// MonthEnds is the edit that makes the monthly reset due.
func MonthEnds(a user.Account) user.Account {
	a.GrantedPeriod--
	return a
}

// Answer is what a caller was told.
type Answer struct {
	// Code is that of a refusal; empty for a command that was carried out.
	Code user.Code
	// Remaining and Used are the account's counters after the command. Of a refusal only Remaining is looked at, and only
	// with [user.CodeInsufficientTokens].
	Remaining, Used int64
	// Entry is the id of the ledger entry; 0 where the caller was not told of any.
	Entry int64
	// Reservation is the id of the reservation that was made.
	Reservation string
	// Charged and Shortfall are what became of a reservation that was settled.
	Charged, Shortfall int64
}

// Operation is one command, however often it was sent. A command that is sent again has an idempotency key, or closes a
// reservation. It is for one goroutine.
type Operation struct {
	history *History
	command any
	// called and answered are when, since the history's begin.
	called, answered time.Duration
	// unsure is how many times it was sent without an answer that says what was done.
	unsure int
	answer *Answer
}

// never is when a command is answered that is not.
const never = time.Duration(math.MaxInt64)

// Call notes a command that is going to be sent: a [user.Command] that the rules can carry out on what the history knows,
// with [user.Touch] for a read of the counters, or an [Edit]. What is sent to accounts that were not opened is not kept.
func (h *History) Call(id string, command any) *Operation {
	o := &Operation{history: h, command: command, answered: never}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.accounts[id]; a != nil {
		a.operations = append(a.operations, o)
	}
	return o
}

// Send says that the command is now sent, perhaps again.
func (o *Operation) Send() {
	if o.unsure == 0 {
		o.called = time.Since(o.history.begin)
	}
	o.unsure++
}

// NotDone says that the last time it was sent nothing was done.
func (o *Operation) NotDone() { o.unsure-- }

// Answered says that the command has just been answered for good.
func (o *Operation) Answered(a Answer) {
	o.answered = time.Since(o.history.begin)
	o.answer = &a
}
