package postgres_test

import (
	"context"
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
	// refunds is the number of the command whose entry it refunds, -1 or less for none.
	refunds int
	command func(entry int64) user.Command
}

// recordedRound is what is asked for at the same instant.
type recordedRound struct {
	at       time.Time
	commands []recorded
}

// recordedAt is when the rounds of a sequence are played, so that reservations run out, are settled late or are carried
// over the end of a month.
var recordedAt = []time.Time{
	now, time.Date(2026, 11, 30, 23, 50, 0, 0, time.UTC), time.Date(2026, 12, 1, 0, 10, 0, 0, time.UTC),
	time.Date(2026, 12, 1, 0, 10, 30, 0, time.UTC), time.Date(2026, 12, 2, 1, 0, 0, 0, time.UTC),
	time.Date(2026, 12, 20, 0, 0, 0, 0, time.UTC),
}

// record makes rounds of commands about a few accounts, with keys that come again and reservations that are settled
// twice or never.
func record(seed uint64, each int) (sequence []recordedRound) {
	random := rand.New(rand.NewPCG(seed, seed))
	type held struct{ account, id string }
	var holds []held
	var earlier []recorded // of the rounds before, in which their entries have got their ids
	for _, at := range recordedAt {
		commands := make([]recorded, each)
		for i := range commands {
			c := recorded{account: fmt.Sprint("u", random.IntN(4)), refunds: -1}
			tokens := 1 + random.Int64N(60)
			var meta user.Meta
			if random.IntN(3) == 0 {
				meta.IdempotencyKey = fmt.Sprint("key-", random.IntN(60))
			}
			hold := held{c.account, "00000000-0000-4000-8000-ffffffffffff"} // there is none
			if n := len(holds); n > 0 {
				hold = holds[n-1-random.IntN(min(n, 40))]
			}
			var command user.Command
			switch random.IntN(18) {
			case 0, 1, 2, 3:
				command = user.Consume{Tokens: tokens, Meta: meta}
			case 4, 5:
				command = user.AddTokens{Tokens: tokens, Meta: meta}
			case 6, 7, 8, 9:
				made := fmt.Sprintf("00000000-0000-4000-8000-%012d", len(holds))
				holds = append(holds, held{c.account, made})
				ttl := [...]time.Duration{10 * time.Second, time.Minute, user.MaxHold}[random.IntN(3)]
				command = user.Reserve{ReservationID: made, Tokens: tokens, TTL: ttl, Meta: meta}
			case 10, 11, 12:
				c.account = hold.account
				command = user.Settle{ReservationID: hold.id, TokensUsed: tokens, Meta: meta}
			case 13:
				c.account = hold.account
				command = user.Release{ReservationID: hold.id, Meta: meta}
			case 14:
				c.account = hold.account
				command = user.Extend{ReservationID: hold.id, TTL: 2 * time.Hour, Meta: meta}
			case 15:
				tier := [...]user.Tier{user.TierTester, user.TierFree}[random.IntN(2)]
				command = user.ChangeTier{Tier: tier, Meta: meta}
			case 16:
				if random.IntN(6) == 0 {
					command = user.Deactivate{Meta: meta}
				} else {
					active := true
					command = user.UpdateProfile{Active: &active, Meta: meta}
				}
			default:
				// Few to choose from, so that some are refunded several times.
				if c.refunds = len(earlier) - 1 - random.IntN(20); c.refunds >= 0 {
					c.account = earlier[c.refunds].account
				}
				c.command = func(entry int64) user.Command { return user.Refund{EntryID: entry, Tokens: tokens, Meta: meta} }
			}
			if command != nil {
				c.command = func(int64) user.Command { return command }
			}
			commands[i] = c
		}
		sequence, earlier = append(sequence, recordedRound{at, commands}), append(earlier, commands...)
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
func playRecorded(t *testing.T, sequence []recordedRound, batchMax int) (answers, stored string, largest int64) {
	t.Helper()
	url := localpgtest.New(t)
	sizes := &groupSizes{}
	at := now
	store := open(t, url, func(o *postgres.Options) {
		o.MaxConns, o.WriteBatchMax, o.Observer = 1, batchMax, sizes
		o.Clock = func(context.Context, time.Time) time.Time { return at }
	})
	db := connect(t, url)
	rules := service(t, store).Rules
	create(t, store, "u", 100) // which stands at the gate
	for i, tier := range []user.Tier{user.TierTester, user.TierTester, user.TierFree, user.TierAdmin} {
		id := fmt.Sprint("u", i)
		create(t, store, id, 50)
		if _, err := service(t, store).Do(t.Context(), id, user.ChangeTier{Tier: tier}); err != nil {
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
		outcomes := make([]outcome, len(round.commands))
		at = round.at
		// While the gate is shut all of them gather, in their order.
		db.Exec("UPDATE gate SET shut = true")
		held := background(t, func() error {
			_, err := store.Update(t.Context(), user.Ref{AccountID: "u"}, spend(""))
			return err
		})
		db.AwaitGated()
		var running sync.WaitGroup
		for i, c := range round.commands {
			entry := entryOf[c.refunds]
			if entry == 0 {
				entry = 1 << 40 // none has it
			}
			command := c.command(entry)
			running.Go(func() {
				outcomes[i].change, outcomes[i].err = store.Update(t.Context(), rules.Ref(c.account, command), func(s user.State) (user.Change, error) {
					return rules.Apply(s, command)
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
			fmt.Fprintf(&b, "R %d U %d T %d W %d G %d E %d C %d H %d open %d period %d", a.TokensRemaining, a.TokensUsed, a.TopUps,
				a.TopUpsUsed, a.Allowance, a.AllowanceExcess, a.CarriedTopUps, a.Reserved, a.OpenReservations, a.GrantedPeriod)
			for _, e := range o.change.Entries {
				fmt.Fprintf(&b, "; %s %d %d %d", e.Kind, e.Amount, e.BalanceAfter, e.UsedAfter)
			}
			reservations := slices.Clone(o.change.Reservations)
			slices.SortFunc(reservations, func(a, b user.Reservation) int { return strings.Compare(a.ID, b.ID) })
			for _, r := range reservations {
				fmt.Fprintf(&b, "; %s %s %d %d %d %d late %t", r.ID, r.Status, r.Tokens, r.Charged, r.Returned, r.Shortfall, r.Late)
			}
			b.WriteByte('\n')
		}
		first += len(round.commands)
	}
	rank := `row_number() OVER (PARTITION BY cognito_user_id ORDER BY entry_id)`
	stored = db.lines(`SELECT u::text FROM viralpilot.userdata u ORDER BY 1`) + db.lines(`SELECT s::text FROM viralpilot.account_state s ORDER BY 1`) +
		db.lines(`SELECT r::text FROM viralpilot.reservations r ORDER BY 1`) +
		db.lines(`WITH numbered AS (SELECT *, `+rank+` AS n FROM viralpilot.ledger)
			SELECT concat_ws(' ', l.cognito_user_id, l.n, l.kind, l.amount, l.balance_after, l.used_after, l.tokens_charged, l.tokens_refunded,
				l.top_ups_amount, l.period, l.changes, l.reservation_id, r.n,
				l.idempotency_key, CASE WHEN l.kind <> 'refund' THEN l.command_hash END, l.created_at)
			FROM numbered l LEFT JOIN numbered r ON r.entry_id = l.refunded_entry_id ORDER BY l.cognito_user_id, l.n`)
	return b.String(), stored, sizes.largest.Load()
}

func TestGroupsAnswerAndStoreWhatSingleUpdatesDo(t *testing.T) {
	t.Parallel()
	const each = 120
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			sequence := record(seed, each)
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
				"insufficient_tokens", "idempotency_key_reused", "reservation_closed", "refund_exceeds_charge",
				"; refund ", "monthly_reset", "; expire ", "; extend ", "; tier_change ", "settled", "released", "late true", "user_inactive",
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
