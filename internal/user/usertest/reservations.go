package usertest

import (
	"cmp"
	"slices"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

func (m *model) reserve(c user.Reserve) outcome {
	if barred := m.barred(); barred != "" {
		return outcome{refusal: barred}
	}
	if int64(len(m.holds())) >= m.rules.MaxOpenReservations {
		return outcome{refusal: user.CodeTooManyReservations}
	}
	hold := user.Reservation{
		ID: c.ReservationID, Status: user.ReservationOpen, Period: m.granted, CreatedAt: m.at,
		ExpiresAt: m.at.Add(cmp.Or(c.TTL, 10*time.Minute)),
	}
	if m.tier().Unlimited {
		m.reservations = append(m.reservations, hold)
		m.wrote = true
		o := m.accepted()
		o.reservation = &hold
		return o
	}
	if c.Tokens > m.balance() {
		return m.short(c.Tokens)
	}
	hold.Tokens = c.Tokens
	m.take(c.Tokens)
	m.reservations = append(m.reservations, hold)
	return m.keyed(c, user.Entry{Kind: user.KindReserve, ReservationID: &hold.ID}, 0)
}

func (m *model) extend(c user.Extend) outcome {
	h := m.reservation(c.ReservationID)
	if h.Status != user.ReservationOpen || m.due(*h) {
		return outcome{refusal: user.CodeReservationClosed}
	}
	h.ExpiresAt = m.at.Add(c.TTL)
	if latest := h.CreatedAt.Add(24 * time.Hour); latest.Before(h.ExpiresAt) {
		h.ExpiresAt = latest
	}
	m.wrote = true
	o := m.accepted()
	o.reservation = h
	return o
}

func (m *model) settle(c user.Settle) outcome {
	h := m.reservation(c.ReservationID)
	cost := c.TokensUsed
	if h.Tokens == 0 {
		cost = 0 // it was made while unlimited
	}
	var fromHold int64
	switch {
	case h.Status == user.ReservationOpen:
		fromHold = min(cost, h.Tokens)
		m.end(h, user.ReservationSettled, fromHold)
	case h.Status == user.ReservationExpired && !m.at.After(h.ExpiresAt.Add(7*24*time.Hour)):
		h.Status, h.ClosedAt, h.Late = user.ReservationSettled, m.instant(), true
	case h.Status == user.ReservationSettled && *h.TokensUsed == c.TokensUsed:
		return m.repeated(h, user.KindSettle)
	default:
		return outcome{refusal: user.CodeReservationClosed}
	}
	own := fromHold
	if m.carried(*h) {
		own = 0
	}
	h.TokensUsed, h.Charged = &c.TokensUsed, fromHold
	if !m.tier().Unlimited {
		more := min(cost-fromHold, m.balance())
		m.charge(more)
		own += more
		h.Charged += more
		h.Shortfall = cost - h.Charged
	}
	m.wrote = true
	if h.Tokens == 0 {
		o := m.accepted()
		o.reservation = h
		return o
	}
	return m.keyed(c, user.Entry{Kind: user.KindSettle, ReservationID: &h.ID, TokensCharged: h.Charged}, own)
}

func (m *model) release(c user.Release) outcome {
	h := m.reservation(c.ReservationID)
	switch h.Status {
	case user.ReservationOpen:
		m.end(h, user.ReservationReleased, 0)
		if h.Tokens > 0 {
			return m.keyed(c, user.Entry{Kind: user.KindRelease, ReservationID: &h.ID}, 0)
		}
	case user.ReservationExpired:
		h.Status, h.ClosedAt = user.ReservationReleased, m.instant()
		m.wrote = true
	case user.ReservationReleased:
		return m.repeated(h, user.KindRelease)
	default:
		return outcome{refusal: user.CodeReservationClosed}
	}
	o := m.accepted()
	o.reservation = h
	return o
}

// repeated answers the end of a reservation that had been ended like this, with the entry of the first time if there is
// one.
func (m *model) repeated(h *user.Reservation, kind user.EntryKind) outcome {
	o := m.accepted()
	for i, e := range m.entries {
		if e.Kind == kind && e.ReservationID != nil && *e.ReservationID == h.ID {
			o = m.first(i + 1)
		}
	}
	o.reservation, o.replayed = h, true
	return o
}

// end closes an open hold, of which some tokens were spent. What is left of one of this period frees the buckets that it
// was paid from. Of a carried one only top-ups come back; the allowance in it lapsed.
func (m *model) end(h *user.Reservation, status user.ReservationStatus, spent int64) {
	before := m.balance()
	rest := h.Tokens - spent
	h.Status, h.ClosedAt = status, m.instant()
	if m.carried(*h) {
		back := min(rest, m.carriedTopUps)
		m.carriedTopUps -= back
		m.topUps += back
	} else {
		m.charged += spent
		m.giveBack(rest)
	}
	m.carriedTopUps = min(m.carriedTopUps, m.held())
	h.Returned = m.balance() - before
	m.used += spent
	m.wrote = true
}

// deactivate ends as many holds as one update can; play ends the others.
func (m *model) deactivate(c user.Deactivate) outcome {
	m.endFirst(m.maxHolds-m.returned, c.Meta, time.Time{})
	if !m.row.Active {
		return m.accepted()
	}
	m.row.Active = false
	return m.keyed(c, user.Entry{Kind: user.KindProfileChange, Changes: user.Changes{"is_active": {From: true, To: false}}}, 0)
}

// endSome ends the holds that another update can, those that are due first and without an actor.
func (m *model) endSome(by user.Meta, openedBy time.Time) bool {
	before := len(m.holds())
	m.expire()
	m.endFirst(m.maxHolds-m.returned, by, openedBy)
	return len(m.holds()) < before
}

func (m *model) endFirst(n int, by user.Meta, openedBy time.Time) {
	for i, h := range m.holds() {
		if i < n && (openedBy.IsZero() || !h.CreatedAt.After(openedBy)) {
			m.runOut(h, by.Actor)
		}
	}
}

// expire returns the earliest of the due holds.
func (m *model) expire() {
	m.returned = 0
	for _, h := range m.holds() {
		if m.due(*h) && m.returned < m.maxHolds {
			m.runOut(h, "")
			m.returned++
		}
	}
}

// runOut ends a hold as expired; one that held nothing needs no entry.
func (m *model) runOut(h *user.Reservation, actor string) {
	m.end(h, user.ReservationExpired, 0)
	if h.Tokens > 0 {
		m.record(user.Entry{Kind: user.KindExpire, ReservationID: &h.ID, Actor: optional(actor)})
	}
}

// reservation finds one by its id; nil when there is none.
func (m *model) reservation(id string) *user.Reservation {
	for i := range m.reservations {
		if m.reservations[i].ID == id {
			return &m.reservations[i]
		}
	}
	return nil
}

// holds are the open reservations, earliest expiry first, then by id.
func (m *model) holds() (open []*user.Reservation) {
	for i := range m.reservations {
		if m.reservations[i].Status == user.ReservationOpen {
			open = append(open, &m.reservations[i])
		}
	}
	slices.SortFunc(open, func(a, b *user.Reservation) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), cmp.Compare(a.ID, b.ID))
	})
	return open
}
