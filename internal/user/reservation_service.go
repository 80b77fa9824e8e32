package user

import (
	"context"

	"github.com/google/uuid"
)

// ReservationReceipt is a reservation with its account. For a read, Entry is the newest ledger entry of the reservation;
// nil when it was made while the account was unlimited.
type ReservationReceipt struct {
	Receipt
	Reservation Reservation
}

// Reserve holds tokens under a new id, whatever c.ReservationID says; see the command.
func (s *Service) Reserve(ctx context.Context, id string, c Reserve) (ReservationReceipt, error) {
	created, err := uuid.NewRandom()
	if err != nil {
		return ReservationReceipt{}, err
	}
	c.ReservationID = created.String()
	r, err := s.Do(ctx, id, c)
	if err == nil && r.Replayed {
		c.ReservationID = *r.Entry.ReservationID
	}
	return s.reservationReceipt(ctx, id, c.ReservationID, r, err)
}

// Extend moves the expiry of a reservation; see the command.
func (s *Service) Extend(ctx context.Context, id string, c Extend) (ReservationReceipt, error) {
	r, err := s.Do(ctx, id, c)
	return s.reservationReceipt(ctx, id, c.ReservationID, r, err)
}

// Settle charges the true cost of a reservation; see the command.
func (s *Service) Settle(ctx context.Context, id string, c Settle) (ReservationReceipt, error) {
	r, err := s.Do(ctx, id, c)
	return s.reservationReceipt(ctx, id, c.ReservationID, r, err)
}

// Release returns the tokens of a reservation; see the command.
func (s *Service) Release(ctx context.Context, id string, c Release) (ReservationReceipt, error) {
	r, err := s.Do(ctx, id, c)
	return s.reservationReceipt(ctx, id, c.ReservationID, r, err)
}

// reservationReceipt completes the outcome of a command with its reservation. When that had been done before, the
// reservation is read, and the counters are those of its newest entry where no key says of which.
func (s *Service) reservationReceipt(ctx context.Context, id, reservationID string, r Receipt, err error) (ReservationReceipt, error) {
	if err != nil {
		return ReservationReceipt{}, err
	}
	if !r.Replayed {
		return ReservationReceipt{Receipt: r, Reservation: r.reservation(reservationID)}, nil
	}
	reservation, err := s.Store.Reservation(ctx, id, reservationID)
	err = partlyDone(err) // it may be this very call that did it the first time
	if last := reservation.LastEntry; r.Entry == nil && last != nil && (last.Kind == KindSettle || last.Kind == KindRelease) {
		r.replay(*last)
		r.LowBalance = s.Rules.LowBalance(r.Account)
	}
	return ReservationReceipt{Receipt: r, Reservation: reservation}, err
}

// ReservationExists returns [ErrUserNotFound] or [ErrReservationNotFound] when there is no such reservation. Unlike
// [Service.Reservation] it changes nothing.
func (s *Service) ReservationExists(ctx context.Context, id, reservationID string) error {
	if err := s.Exists(ctx, id); err != nil {
		return err
	}
	_, err := s.Store.Reservation(ctx, id, reservationID)
	return err
}

// Reservation reads a reservation; [ErrReservationNotFound] when the account has none of this id.
func (s *Service) Reservation(ctx context.Context, id, reservationID string) (_ ReservationReceipt, err error) {
	ctx, end := s.begin(ctx, "reservation")
	defer func() { end(err) }()
	account, err := s.Account(ctx, id)
	if err != nil {
		return ReservationReceipt{}, err
	}
	r, err := s.Store.Reservation(ctx, id, reservationID)
	return ReservationReceipt{Receipt{Account: account, Entry: r.LastEntry}, r}, err
}

// Reservations reads a page of the account's reservations, those with the earliest expiry first.
func (s *Service) Reservations(ctx context.Context, id string, q ReservationQuery) (_ []ReservationReceipt, err error) {
	ctx, end := s.begin(ctx, "reservations")
	defer func() { end(err) }()
	account, err := s.Account(ctx, id)
	if err != nil {
		return nil, err
	}
	found, err := s.Store.Reservations(ctx, id, q)
	receipts := make([]ReservationReceipt, len(found))
	for i, r := range found {
		receipts[i] = ReservationReceipt{Receipt{Account: account, Entry: r.LastEntry}, r}
	}
	return receipts, err
}
