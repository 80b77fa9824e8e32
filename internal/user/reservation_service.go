package user

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

// ReservationReceipt is a reservation with its account.
type ReservationReceipt struct {
	Reservation Reservation
	// Account has the counters as the command left them the first time, or as they are now for a read.
	Account Account
	// Entry is the newest ledger entry of the reservation; nil when it was made while the account was unlimited.
	Entry *Entry
	// Replayed is true when the reservation had been made before under the same key.
	Replayed bool
}

// Reserve holds tokens under a new id, whatever c.ReservationID says; see [Rules.Reserve].
func (s *Service) Reserve(ctx context.Context, id string, c Reserve) (ReservationReceipt, error) {
	made, err := uuid.NewRandom()
	if err != nil {
		return ReservationReceipt{}, err
	}
	c.ReservationID = made.String()
	ref := Ref{AccountID: id, IdempotencyKey: c.IdempotencyKey}
	r, err := s.execute(ctx, ref, KindReserve, func(st State, now time.Time) (Change, error) {
		return s.Rules.Reserve(st, c, now)
	})
	if err != nil {
		return ReservationReceipt{}, err
	}
	if !r.Replayed {
		return ReservationReceipt{Reservation: r.reservation(c.ReservationID), Account: r.Account, Entry: r.Entry}, nil
	}
	reservation, err := s.replayed(ctx, id, *r.Entry.ReservationID)
	return ReservationReceipt{Reservation: reservation, Account: r.Account, Entry: r.Entry, Replayed: true}, err
}

// Settle charges the true cost of a reservation; see [Rules.Settle].
func (s *Service) Settle(ctx context.Context, id string, c Settle) (ReservationReceipt, error) {
	return s.closeReservation(ctx, id, c.ReservationID, KindSettle, func(st State, now time.Time) (Change, error) {
		return s.Rules.Settle(st, c, now)
	})
}

// Release returns the tokens of a reservation; see [Rules.Release].
func (s *Service) Release(ctx context.Context, id string, c Release) (ReservationReceipt, error) {
	return s.closeReservation(ctx, id, c.ReservationID, KindRelease, func(st State, now time.Time) (Change, error) {
		return s.Rules.Release(st, c, now)
	})
}

// closeReservation runs a command that closes a reservation. One that had been closed in the same way before is
// answered as it was then.
func (s *Service) closeReservation(ctx context.Context, id, reservationID string, kind EntryKind, rule func(State, time.Time) (Change, error)) (ReservationReceipt, error) {
	r, err := s.execute(ctx, Ref{AccountID: id, ReservationID: reservationID}, kind, rule)
	if err != nil {
		return ReservationReceipt{}, err
	}
	out := ReservationReceipt{Reservation: r.reservation(reservationID), Account: r.Account, Entry: r.Entry}
	if out.Reservation.ClosedAt != nil {
		return out, nil
	}
	out.Reservation, err = s.replayed(ctx, id, reservationID)
	if out.Entry = out.Reservation.LastEntry; out.Entry != nil {
		out.Account.TokensRemaining, out.Account.TokensUsed = out.Entry.BalanceAfter, out.Entry.UsedAfter
	}
	return out, err
}

// replayed reads the reservation of a command that has been done. It may be this very call that did it: when the
// reservation cannot be read, nobody may be told that nothing was done.
func (s *Service) replayed(ctx context.Context, id, reservationID string) (Reservation, error) {
	r, err := s.Store.Reservation(ctx, id, reservationID)
	if errors.Is(err, ErrOverloaded) {
		err = ErrDatabaseUnavailable.Because(err)
	}
	return r, err
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
	return ReservationReceipt{Reservation: r, Account: account, Entry: r.LastEntry}, err
}

// OpenReservations reads a page of the account's open reservations, those that run out first first.
func (s *Service) OpenReservations(ctx context.Context, id string, q ReservationQuery) (_ []ReservationReceipt, err error) {
	ctx, end := s.begin(ctx, "open_reservations")
	defer func() { end(err) }()
	account, err := s.Account(ctx, id)
	if err != nil {
		return nil, err
	}
	open, err := s.Store.OpenReservations(ctx, id, q)
	receipts := make([]ReservationReceipt, len(open))
	for i, r := range open {
		receipts[i] = ReservationReceipt{Reservation: r, Account: account, Entry: r.LastEntry}
	}
	return receipts, err
}

// sweepPage is how many accounts a sweep reads at a time.
const sweepPage = 100

// Sweep touches every account that has a hold which ran out, so that tokens come back also where nobody asks. It
// returns how many accounts it touched. An account that fails is passed over; the errors come back joined. Any number
// of replicas may sweep at the same time: whoever comes second finds nothing to do.
func (s *Service) Sweep(ctx context.Context) (_ int, err error) {
	ctx, end := s.begin(ctx, "sweep")
	defer func() { end(err) }()
	now := s.now()
	touched := 0
	var failed []error
	for after := ""; ; {
		ids, err := s.Store.AccountsWithDueHold(ctx, now, after, sweepPage)
		if err != nil {
			return touched, errors.Join(append(failed, err)...)
		}
		for _, id := range ids {
			if err := ctx.Err(); err != nil {
				return touched, errors.Join(append(failed, err)...)
			}
			_, err := s.update(ctx, Ref{AccountID: id}, func(st State) (Change, error) {
				return s.Rules.Touch(st, now)
			})
			if err != nil {
				failed = append(failed, err)
				continue
			}
			touched++
		}
		if len(ids) < sweepPage {
			return touched, errors.Join(failed...)
		}
		after = ids[len(ids)-1]
	}
}
