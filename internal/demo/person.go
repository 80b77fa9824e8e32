package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/viralpilot/user-management/internal/user"
)

// Who makes the commands, as the ledger names them.
const (
	backend = "postpilot"
	billing = "billing"
	support = "support"
)

// plan is what people of a tier are like.
type plan struct {
	tier user.Tier
	// share is how many of a hundred accounts have it.
	share int
	// sessions is how often one of them works on a weekday, and tokens what a single request costs on the average.
	sessions, tokens float64
	// pack is what they buy when they run out.
	pack int64
}

var plans = []plan{
	{user.TierFree, 29, 0.35, 14, 200},
	{user.TierTester, 8, 1.6, 9, 200},
	{user.TierBasic, 36, 1.5, 38, 1000},
	{user.TierCreator, 19, 3.2, 62, 5000},
	{user.TierAgency, 6, 9, 118, 25000},
	{user.TierAdmin, 2, 0.8, 20, 0},
}

// feature is something that people spend tokens on.
type feature struct {
	name, model string
	// weight is how often it is used beside the others, and cost what it takes beside the average.
	weight, cost float64
	// reserved features set their tokens aside first, as their cost is not known before.
	reserved bool
}

var features = []feature{
	{"post-draft", "standard", 34, 1, false},
	{"rewrite", "compact", 22, 0.6, false},
	{"hashtags", "compact", 18, 0.25, false},
	{"image-caption", "vision", 12, 1.1, false},
	{"video-script", "reasoning", 8, 3.4, true},
	{"audience-report", "reasoning", 6, 4.2, true},
}

var firstNames = strings.Fields(`Ada Amara Anton Aylin Ben Bruno Carla Chen Clara David Daria Elif Emil Emma Farid Finn Greta Hana Hugo Ida
	Ines Ivan Jana Jonas Julia Kaan Lara Leon Lina Luca Maja Malik Marta Mila Milan Nadia Nele Noah Nora Olga Omar Paul Pia
	Rafael Rosa Samir Selma Sofia Tariq Theo Tilda Tom Uma Vera Viktor Wanda Yara Yuki Zoe Zora`)

var lastNames = strings.Fields(`Abel Arslan Bauer Becker Berg Brandt Costa Cruz Demir Diaz Engel Fischer Fontana Frank Garcia Haas Hansen Hoffmann Ito
	Jansen Kaya Keller Klein Koch Kovac Kruse Lang Larsen Lehmann Lopez Maier Marino Mendes Meyer Moreau Nakata Neumann Novak Okafor
	Olsen Peters Petrov Pohl Ricci Roth Rossi Sato Schmid Silva Simon Sommer Stein Suzuki Tanaka Vogel Wagner Weber Winter Yilmaz Zimmer`)

// person is one account and what its owner does.
type person struct {
	id, username, email string
	plan                plan
	random              *rand.Rand
	joins               time.Time
	// diligence is how much of it they do beside others of the plan.
	diligence float64
	// buys says whether they top up when they run out; who does not waits for the next month.
	buys bool
	// leaves is when the subscription ends in the way of ending, never when zero.
	leaves time.Time
	ending ending
	// atWork says whether they have reservations open in the end.
	atWork bool

	commands int
	// tier is what they have now, and renews when it is renewed.
	tier   user.Tier
	renews time.Time
	// last is the instant of the latest command.
	last time.Time
	// day is the one that sessions are planned for.
	day      time.Time
	sessions []time.Time
	// dry is the month for which they have given up.
	dry time.Month
	// refusal is that of the latest command, nil when it was done.
	refusal error
	// charge is an entry to refund, 0 when there is none.
	charge int64
}

// ending is how a subscription ends.
type ending int

const (
	lapses   ending = iota // it is renewed no more
	cancels                // its status becomes canceled
	overdue                // its status becomes past_due
	closed                 // the account is deactivated
	endings  = iota
	perMille = 1000
)

func newPerson(i int, h History, begin time.Time) *person {
	p := &person{random: rand.New(rand.NewPCG(uint64(i), 2026)), tier: user.TierFree}
	// The plans are dealt out so that every ten accounts have most of them.
	at := (i*37 + 30) % 100
	for _, p.plan = range plans {
		if at -= p.plan.share; at < 0 {
			break
		}
	}
	first, last := firstNames[i%len(firstNames)], lastNames[(i*7+i/len(firstNames))%len(lastNames)]
	p.username = first + " " + last
	p.email = strings.ToLower(first+"."+last) + fmt.Sprintf("%d@example.com", i)
	var id uuid.UUID
	for b := range id {
		id[b] = byte(p.random.IntN(256))
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // version 4, as user pools make them
	p.id = id.String()

	length := h.Until.Sub(begin)
	// Two thirds are there from the beginning, within its first day.
	p.joins = begin.Add(p.within(min(length/2, 20*time.Hour)))
	if i%3 == 2 {
		p.joins = begin.Add(p.within(length * 9 / 10))
	}
	p.diligence = math.Exp(0.45 * p.random.NormFloat64())
	p.buys = p.random.IntN(perMille) < 550
	if p.plan.tier == user.TierFree {
		p.buys = p.random.IntN(perMille) < 300
	}
	p.atWork = i%6 == 1
	if i%11 == 5 {
		p.ending = ending(i / 11 % endings)
		p.leaves = p.joins.Add(h.Until.Sub(p.joins) * time.Duration(500+p.random.IntN(400)) / perMille)
	}
	return p
}

// within returns a length of time below the limit.
func (p *person) within(limit time.Duration) time.Duration {
	return time.Duration(p.random.Int64N(int64(max(limit, time.Second))))
}

// live does what the person does from an instant until another.
func (p *person) live(ctx context.Context, service *user.Service, from, to time.Time) error {
	if !p.joins.Before(to) {
		return nil
	}
	if p.last.IsZero() {
		if err := p.join(ctx, service); err != nil {
			return err
		}
	}
	if !p.leaves.IsZero() && p.leaves.Before(to) {
		if err := p.leave(ctx, service); err != nil {
			return err
		}
	}
	for !p.renews.IsZero() && p.renews.Before(to) {
		p.renews = p.renews.AddDate(0, 1, 0)
		if err := p.do(ctx, service, from, user.ChangeTier{Tier: p.tier, RenewalDate: &p.renews, Meta: user.Meta{Actor: billing}}); err != nil {
			return err
		}
	}
	if day := from.Truncate(24 * time.Hour); !day.Equal(p.day) {
		p.planDay(day)
	}
	for len(p.sessions) > 0 && p.sessions[0].Before(to) {
		at := p.sessions[0]
		p.sessions = p.sessions[1:]
		if at.Before(from) || at.Before(p.last) {
			continue
		}
		if err := p.work(ctx, service, at, to); err != nil {
			return err
		}
	}
	return nil
}

// planDay decides when the person works on the day: less on weekends, mostly in the daytime.
func (p *person) planDay(day time.Time) {
	p.day, p.sessions = day, p.sessions[:0]
	expected := p.plan.sessions * p.diligence
	if weekday := day.Weekday(); weekday == time.Saturday || weekday == time.Sunday {
		expected *= 0.4
	}
	if p.dry == day.Month() {
		expected *= 0.05
	}
	for expected > 0 && p.random.Float64() < expected {
		expected--
		hour := 13.5 + 3.4*p.random.NormFloat64()
		p.sessions = append(p.sessions, day.Add(time.Duration(min(max(hour, 0), 23.9)*float64(time.Hour))))
	}
	slices.SortFunc(p.sessions, time.Time.Compare)
}

// at makes the instant that of the person's next command.
func (p *person) at(ctx context.Context, t time.Time) context.Context {
	if !t.After(p.last) {
		t = p.last.Add(time.Millisecond)
	}
	p.last = t
	return context.WithValue(ctx, instantKey{}, t)
}

// do carries a command out, or is refused.
func (p *person) do(ctx context.Context, service *user.Service, t time.Time, c user.Command) error {
	_, err := service.Do(p.at(ctx, t), p.id, c)
	_, err = p.outcome(err)
	return err
}

func (p *person) join(ctx context.Context, service *user.Service) error {
	_, _, err := service.Put(p.at(ctx, p.joins), p.id, user.PutProfile{
		Username: &p.username, SetUsername: true, Email: &p.email, SetEmail: true,
		Meta: user.Meta{Actor: backend, IdempotencyKey: "sign-up-" + p.id, Metadata: map[string]string{"source": "sign-up"}},
	})
	if _, err := p.outcome(err); err != nil {
		return err
	}
	if p.plan.tier == user.TierFree {
		return nil
	}
	var renewal *time.Time
	if p.plan.tier == user.TierBasic || p.plan.tier == user.TierCreator || p.plan.tier == user.TierAgency {
		p.renews = p.joins.AddDate(0, 1, 0).Truncate(24 * time.Hour)
		renewal = &p.renews
	}
	p.tier = p.plan.tier
	return p.do(ctx, service, p.joins.Add(4*time.Minute), user.ChangeTier{Tier: p.tier, RenewalDate: renewal, Meta: user.Meta{Actor: billing}})
}

func (p *person) leave(ctx context.Context, service *user.Service) error {
	at := p.leaves
	p.leaves = time.Time{}
	set := user.UpdateProfile{Meta: user.Meta{Actor: billing}}
	status := func(s user.SubscriptionStatus, reason string) {
		set.SubscriptionStatus = &s
		set.Metadata = map[string]string{"reason": reason}
	}
	switch p.ending {
	case lapses:
		p.renews = time.Time{}
		return nil
	case cancels:
		status("canceled", "cancelled by the customer")
	case overdue:
		status("past_due", "the card was declined")
	default:
		inactive := false
		set.Active, set.Meta = &inactive, user.Meta{Actor: support, Metadata: map[string]string{"reason": "asked for by e-mail"}}
	}
	p.renews = time.Time{}
	p.plan.sessions *= 0.1 // they try once in a while, and are refused
	return p.do(ctx, service, at, set)
}

// work is one session: a few requests, a minute or so apart, all of them before end.
func (p *person) work(ctx context.Context, service *user.Service, at, end time.Time) error {
	for range 1 + p.random.IntN(4) {
		if !at.Before(end) {
			break
		}
		done, err := p.request(ctx, service, at, end)
		if err == nil && !done {
			done, err = p.goOn(ctx, service, at)
		}
		if err != nil || !done {
			return err
		}
		at = at.Add(20*time.Second + p.within(3*time.Minute))
	}
	// Now and then somebody complains about the latest charge.
	if p.charge != 0 && p.random.IntN(perMille) < 12 {
		refund := user.Refund{EntryID: p.charge, Meta: user.Meta{Actor: support, Metadata: map[string]string{"reason": "the answer was cut off"}}}
		p.charge = 0
		return p.do(ctx, service, at, refund)
	}
	return nil
}

// pick chooses what the person spends tokens on, and how many.
func (p *person) pick() (feature, int64) {
	var sum float64
	for _, f := range features {
		sum += f.weight
	}
	f, left := features[0], p.random.Float64()*sum
	for _, f = range features {
		if left -= f.weight; left < 0 {
			break
		}
	}
	return f, max(1, int64(p.plan.tokens*f.cost*math.Exp(0.4*p.random.NormFloat64())))
}

// request makes one request to a model. It is not done where the account may not spend what it costs.
func (p *person) request(ctx context.Context, service *user.Service, at, end time.Time) (done bool, err error) {
	f, tokens := p.pick()
	meta := user.Meta{
		Actor: backend, IdempotencyKey: fmt.Sprintf("req-%016x", p.random.Uint64()),
		Metadata: map[string]string{"feature": f.name, "model": f.model},
	}
	if !f.reserved {
		receipt, err := service.Do(p.at(ctx, at), p.id, user.Consume{Tokens: tokens, Meta: meta})
		if done, err = p.outcome(err); done && receipt.Entry != nil {
			p.charge = receipt.Entry.ID
		}
		return done, err
	}
	held, err := service.Reserve(p.at(ctx, at), p.id, user.Reserve{Tokens: tokens * 3 / 2, Meta: meta})
	if done, err = p.outcome(err); !done || err != nil {
		return done, err
	}
	at = at.Add(2*time.Second + p.within(40*time.Second))
	meta.IdempotencyKey = ""
	switch luck := p.random.IntN(perMille); {
	case !at.Before(end) || luck < 15: // the caller was never heard of again: the tokens come back by themselves
		return true, nil
	case luck < 60:
		meta.Metadata = map[string]string{"reason": "the model failed"}
		_, err = service.Release(p.at(ctx, at), p.id, user.Release{ReservationID: held.Reservation.ID, Meta: meta})
	default:
		var settled user.ReservationReceipt
		settled, err = service.Settle(p.at(ctx, at), p.id, user.Settle{ReservationID: held.Reservation.ID, TokensUsed: tokens, Meta: meta})
		if err == nil && settled.Entry != nil {
			p.charge = settled.Entry.ID
		}
	}
	_, err = p.outcome(err)
	return true, err
}

// goOn is what the person does about a refusal: who has run out may buy. It reports whether they go on.
func (p *person) goOn(ctx context.Context, service *user.Service, at time.Time) (_ bool, err error) {
	if !errors.Is(p.refusal, user.ErrInsufficientTokens) || !p.buys || p.random.IntN(perMille) < 300 {
		p.dry = at.Month()
		return false, nil
	}
	up := map[user.Tier]user.Tier{user.TierBasic: user.TierCreator, user.TierCreator: user.TierAgency}[p.tier]
	if up != "" && !p.renews.IsZero() && p.random.IntN(perMille) < 120 {
		p.tier = up
		return true, p.do(ctx, service, at.Add(time.Minute), user.ChangeTier{
			Tier: up, RenewalDate: &p.renews, Meta: user.Meta{Actor: billing, Metadata: map[string]string{"reason": "upgrade"}},
		})
	}
	invoice := fmt.Sprintf("in_%06d", p.random.IntN(1_000_000))
	return true, p.do(ctx, service, at.Add(time.Minute), user.AddTokens{
		Tokens: cmp.Or(p.plan.pack, 1), Meta: user.Meta{Actor: billing, IdempotencyKey: invoice, Metadata: map[string]string{"invoice": invoice}},
	})
}

// beAtWork leaves reservations of who is at work open, for as long as may be.
func (p *person) beAtWork(ctx context.Context, service *user.Service, now time.Time) error {
	if p.last.IsZero() || !p.atWork {
		return nil
	}
	at := now.Add(-time.Minute - p.within(20*time.Minute))
	for range 1 + p.random.IntN(3) {
		f, tokens := p.pick()
		_, err := service.Reserve(p.at(ctx, at), p.id, user.Reserve{
			Tokens: tokens, TTL: user.MaxHold - p.within(6*time.Hour),
			Meta: user.Meta{Actor: backend, Metadata: map[string]string{"feature": f.name, "model": f.model}},
		})
		if _, err := p.outcome(err); err != nil {
			return err
		}
	}
	return nil
}
