package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/batch"
	"github.com/viralpilot/user-management/internal/user"
)

// lookup is one call of Store.Account on its way.
type lookup = batch.Request[string, user.Account]

// lookupBatch reads the accounts of a batch with one statement. It calls release when that takes longer than expected.
func (s *Store) lookupBatch(lookups []*lookup, release func()) {
	defer time.AfterFunc(leadOfRead, release).Stop()
	found := make(map[string]user.Account, len(lookups))
	ids := make([]string, len(lookups))
	for i, l := range lookups {
		ids[i] = l.Payload
	}
	err := s.withConn(context.WithoutCancel(lookups[0].Context()), func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectAccountsByID, ids)
		if err != nil {
			return err
		}
		var a user.Account
		_, err = pgx.ForEachRow(rows, append(userdataFields(&a), sideRowFields(&a)...), func() error {
			sideRowForm(&a)
			found[a.ID] = a
			a = user.Account{}
			return nil
		})
		return err
	})
	for _, l := range lookups {
		a, ok := found[l.Payload]
		switch {
		case err != nil:
			l.Fail(err)
		case !ok:
			l.Fail(user.ErrUserNotFound)
		default:
			l.Answer = a
			l.Finish(nil)
		}
	}
}
