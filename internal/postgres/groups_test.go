package postgres_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// recorded is one command of a recorded sequence.
type recorded struct {
	account string
	at      time.Time
	// key and reservation are what it names; refunds is the number of the command whose entry it refunds, -1 or less for
	// none.
	key, reservation string
	refunds          int
	rule             func(r user.Rules, s user.State, entry int64, at time.Time) (user.Change, error)
}

// record makes rounds of commands about a few accounts, with keys that come again and reservations that are settled
// twice or never. Each round plays in another month, which carries reservations and resets allowances.
func record(seed uint64, rounds, each int) (sequence [][]recorded) {
	random := rand.New(rand.NewPCG(seed, seed))
	type held struct{ account, id string }
	var holds []held
	var earlier []recorded // of the rounds before, in which their entries have got their ids
	for round := range rounds {
		commands := make([]recorded, each)
		at := now.AddDate(0, round, 0)
		for i := range commands {
			at = at.Add(time.Duration(random.IntN(5)) * time.Second)
			c := recorded{account: fmt.Sprint("u", random.IntN(4)), at: at, refunds: -1}
			tokens := 1 + random.Int64N(40)
			var meta user.Meta
			if random.IntN(3) == 0 {
				c.key = fmt.Sprint("key-", random.IntN(20))
				meta.IdempotencyKey = c.key
			}
			hold := held{c.account, "00000000-0000-4000-8000-ffffffffffff"} // there is none
			if n := len(holds); n > 0 {
				hold = holds[n-1-random.IntN(min(n, 12))]
			}
			switch random.IntN(16) {
			case 0, 1, 2, 3:
				c.rule = func(r user.Rules, s user.State, _ int64, at time.Time) (user.Change, error) {
					return r.Consume(s, user.Consume{Tokens: tokens, Meta: meta}, at)
				}
			case 4, 5:
				c.rule = func(r user.Rules, s user.State, _ int64, at time.Time) (user.Change, error) {
					return r.AddTokens(s, user.AddTokens{Tokens: tokens, Meta: meta}, at)
				}
			case 6, 7, 8, 9:
				made := fmt.Sprintf("00000000-0000-4000-8000-%012d", len(holds))
				holds = append(holds, held{c.account, made})
				ttl := time.Duration(1+random.IntN(100)) * time.Second
				c.rule = func(r user.Rules, s user.State, _ int64, at time.Time) (user.Change, error) {
					return r.Reserve(s, user.Reserve{ReservationID: made, Tokens: tokens, TTL: ttl, Meta: meta}, at)
				}
			case 10, 11:
				c.account, c.key, c.reservation = hold.account, "", hold.id
				c.rule = func(r user.Rules, s user.State, _ int64, at time.Time) (user.Change, error) {
					return r.Settle(s, user.Settle{ReservationID: hold.id, TokensUsed: tokens}, at)
				}
			case 12:
				c.account, c.key, c.reservation = hold.account, "", hold.id
				c.rule = func(r user.Rules, s user.State, _ int64, at time.Time) (user.Change, error) {
					return r.Release(s, user.Release{ReservationID: hold.id}, at)
				}
			case 13:
				c.key = ""
				tier := [...]user.Tier{user.TierTester, user.TierFree}[random.IntN(2)]
				c.rule = func(r user.Rules, s user.State, _ int64, at time.Time) (user.Change, error) {
					return r.ChangeTier(s, user.ChangeTier{Tier: tier}, at)
				}
			default:
				// Few to choose from, so that some are refunded several times.
				if c.refunds = len(earlier) - 1 - random.IntN(20); c.refunds >= 0 {
					c.account = earlier[c.refunds].account
				}
				c.rule = func(r user.Rules, s user.State, entry int64, at time.Time) (user.Change, error) {
					return r.Refund(s, user.Refund{EntryID: entry, Tokens: tokens, Meta: meta}, at)
				}
			}
			commands[i] = c
		}
		sequence, earlier = append(sequence, commands), append(earlier, commands...)
	}
	return sequence
}

// groupSizes counts the updates of the largest group.
type groupSizes struct{ largest atomic.Int64 }

func (g *groupSizes) Retry() {}

func (g *groupSizes) Group(size int, _ time.Duration) {
	for {
		n := g.largest.Load()
		if int64(size) <= n || g.largest.CompareAndSwap(n, int64(size)) {
			return
		}
	}
}

// playRecorded plays the sequence in its order and returns what was answered, a line a command, and what is stored at
// the end. Entries have the number of their command instead of their id, which is drawn in the order of writing.
func playRecorded(t *testing.T, sequence [][]recorded, batchMax int) (answers, stored string, largest int64) {
	t.Helper()
	url := localpgtest.New(t)
	sizes := &groupSizes{}
	store := open(t, url, func(o *postgres.Options) { o.MaxConns, o.WriteBatchMax, o.Observer = 1, batchMax, sizes })
	db := connect(t, url)
	rules := service(t, store).Rules
	create(t, store, "u", 100) // which stands at the gate
	for i, tier := range []user.Tier{user.TierTester, user.TierTester, user.TierFree, user.TierAdmin} {
		id := fmt.Sprint("u", i)
		create(t, store, id, 50)
		if _, err := service(t, store).ChangeTier(t.Context(), id, user.ChangeTier{Tier: tier}); err != nil {
			t.Fatal(err)
		}
	}
	pass := db.Gate()
	var b strings.Builder
	entryOf := map[int]int64{} // by the number of its command
	first := 0
	for _, round := range sequence {
		type outcome struct {
			change user.Change
			err    error
		}
		outcomes := make([]outcome, len(round))
		// While the gate is shut all of them gather, in their order.
		db.Exec("UPDATE gate SET shut = true")
		held := background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
			return err
		})
		db.AwaitGated()
		var running sync.WaitGroup
		for i, c := range round {
			entry := entryOf[c.refunds]
			if entry == 0 {
				entry = 1 << 40 // none has it
			}
			ref := user.Ref{AccountID: c.account, IdempotencyKey: c.key, ReservationID: c.reservation}
			if c.refunds >= 0 {
				ref.EntryID = entry
			}
			running.Go(func() {
				outcomes[i].change, outcomes[i].err = store.Update(t.Context(), ref, func(s user.State) (user.Change, error) {
					return c.rule(rules, s, entry, c.at)
				})
			})
			for store.Queued() != i+1 {
				runtime.Gosched()
			}
		}
		pass()
		if err := <-held; err != nil {
			t.Fatal(err)
		}
		running.Wait()
		for i, o := range outcomes {
			for _, e := range o.change.Entries {
				entryOf[first+i] = e.ID
			}
		}
		for i, o := range outcomes {
			fmt.Fprintf(&b, "%d: ", first+i)
			var refused *user.Error
			if o.err != nil && !errors.As(o.err, &refused) {
				t.Fatalf("command %d: %v", first+i, o.err)
			} else if refused != nil {
				fmt.Fprintf(&b, "%s ", refused.Code)
			}
			a := o.change.Account
			fmt.Fprintf(&b, "R %d U %d P %d H %d reset %v", a.TokensRemaining, a.TokensUsed, a.TopUps, a.Reserved, a.LastReset)
			for _, e := range o.change.Entries {
				fmt.Fprintf(&b, "; %s %d %d %d", e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter)
			}
			reservations := slices.Clone(o.change.Reservations)
			slices.SortFunc(reservations, func(a, b user.Reservation) int { return strings.Compare(a.ID, b.ID) })
			for _, r := range reservations {
				fmt.Fprintf(&b, "; %s %s %d %d %d %d %t %d", r.ID, r.Status, r.Tokens, r.Charged, r.Returned, r.Shortfall, r.Carried, r.TopUp)
			}
			b.WriteByte('\n')
		}
		first += len(round)
	}
	rank := `row_number() OVER (PARTITION BY cognito_user_id ORDER BY entry_id)`
	stored = db.lines(`SELECT u::text FROM viralpilot.userdata u ORDER BY 1`) + db.lines(`SELECT s::text FROM viralpilot.account_state s ORDER BY 1`) +
		db.lines(`SELECT r::text FROM viralpilot.reservations r ORDER BY 1`) +
		db.lines(`WITH numbered AS (SELECT *, `+rank+` AS n FROM viralpilot.ledger)
			SELECT concat_ws(' ', l.cognito_user_id, l.n, l.kind, l.amount, l.balance_after, l.used_after, l.tokens_charged, l.reservation_id, r.n,
				l.idempotency_key, CASE WHEN l.kind <> 'refund' THEN l.command_hash END, l.created_at)
			FROM numbered l LEFT JOIN numbered r ON r.entry_id = l.refunded_entry_id ORDER BY l.cognito_user_id, l.n`)
	return b.String(), stored, sizes.largest.Load()
}

func TestGroupsAnswerAndStoreWhatSingleUpdatesDo(t *testing.T) {
	t.Parallel()
	const rounds, each = 4, 150
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			sequence := record(seed, rounds, each)
			singleAnswers, singleStored, one := playRecorded(t, sequence, 1)
			groupAnswers, groupStored, most := playRecorded(t, sequence, 256)
			if one != 1 || most != each {
				t.Errorf("the largest groups had %d and %d updates", one, most)
			}
			if difference := firstDifference(groupAnswers, singleAnswers); difference != "" {
				t.Errorf("answers: %s", difference)
			}
			if difference := firstDifference(groupStored, singleStored); difference != "" {
				t.Errorf("stored: %s", difference)
			}
			for _, what := range []string{
				"insufficient_tokens", "idempotency_key_reused", "reservation_closed", "reservation_expired", "refund_exceeds_charge",
				"refund 1", "monthly_reset", "expire", "settled", "released", "true",
			} {
				if !strings.Contains(singleAnswers, what) {
					t.Errorf("the sequence has no %s", what)
				}
			}
		})
	}
}

// firstDifference shows the first lines in which two texts differ.
func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		line := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "nothing"
		}
		if line(g) != line(w) {
			return fmt.Sprintf("line %d:\n%s\nwant\n%s", i+1, line(g), line(w))
		}
	}
	return ""
}
