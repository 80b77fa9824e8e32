package usertest

import "github.com/viralpilot/user-management/internal/user"

// take pays what goes out now, allowance first; the caller notes for what.
func (m *model) take(n int64) {
	fromTopUps := max(0, n-m.allowanceLeft())
	m.topUps -= fromTopUps
	m.paidByTopUps += fromTopUps
}

// giveBack frees what has come back, top-ups first; the caller has noted of what.
func (m *model) giveBack(n int64) {
	toTopUps := min(n, m.paidByTopUps)
	m.topUps += toTopUps
	m.paidByTopUps -= toTopUps
	// After an adoption, a conversion or a reconcile more can come back than is known to have gone out: the allowance
	// was larger.
	if missing := -m.paidByAllowance(); missing > 0 {
		m.limit += missing
		m.charged += missing
		m.largest = max(m.largest, m.limit)
	}
}

// paidByAllowance is what the allowance has paid of what has gone out in this period.
func (m *model) paidByAllowance() int64 { return m.charged + m.heldOfPeriod() - m.paidByTopUps }

func (m *model) allowanceLeft() int64 { return max(0, m.limit-m.paidByAllowance()) }

func (m *model) balance() int64 { return m.topUps + m.allowanceLeft() }

// room is what the account can still take in.
func (m *model) room() int64 { return user.MaxTokens - m.balance() - m.used - m.held() }

// carried reports whether a reservation was made in an earlier period.
func (m *model) carried(r user.Reservation) bool { return r.Period != m.granted }

func (m *model) due(r user.Reservation) bool {
	return r.Status == user.ReservationOpen && !m.at.Before(r.ExpiresAt)
}

func (m *model) heldOfPeriod() (sum int64) {
	for _, r := range m.reservations {
		if r.Status == user.ReservationOpen && !m.carried(r) {
			sum += r.Tokens
		}
	}
	return sum
}

func (m *model) held() (sum int64) {
	for _, r := range m.reservations {
		if r.Status == user.ReservationOpen {
			sum += r.Tokens
		}
	}
	return sum
}
