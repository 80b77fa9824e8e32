package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/viralpilot/user-management/internal/user"
)

// horizon is how far the ledger is settled: up to which id every entry that will ever be there can be seen.
//
// A writer has its transaction id, by the lock on the account's row or its INSERT, before it draws the id of an entry. So a
// transaction id that is drawn after the sequence was read (a mark) is greater than those of all writers of the ids up to
// there; once no transaction with a smaller one runs, these have ended. A commit that waits for a standby counts as running.
// It has to be an id of our own: the next id of a snapshot (its xmax) is not above all that run.
type horizon struct {
	mu sync.Mutex
	// server is when the server was started that all this was read from. Another one, and one after a crash, may draw ids
	// again.
	server time.Time
	// drawn is the last id of the sequence, and settled the one up to which the ledger is.
	drawn, settled int64
	// marks are in the order in which they were made.
	marks []mark
}

// mark says that the ids up to drawn belong to transactions below xid.
type mark struct {
	drawn, xid int64
	made       time.Time
}

// maxMarks bounds what is remembered while a transaction stays open.
const maxMarks = 64

// on forgets everything when what is read does not follow it: the last id was drawn elsewhere, or is behind.
func (h *horizon) on(server time.Time, drawn int64) {
	if !server.Equal(h.server) || drawn < h.drawn {
		h.server, h.drawn, h.settled, h.marks = server, 0, 0, nil
	}
}

// add keeps a mark; of too many the newest is replaced, so that what it stood for is settled a little later.
func (h *horizon) add(m mark) {
	if len(h.marks) == maxMarks {
		m.made = h.marks[maxMarks-1].made
		h.marks = h.marks[:maxMarks-1]
	}
	h.marks = append(h.marks, m)
	h.drawn = m.drawn
}

// settle drops the marks below the oldest transaction that runs.
func (h *horizon) settle(oldest int64) {
	for len(h.marks) > 0 && h.marks[0].xid <= oldest {
		h.settled = h.marks[0].drawn
		h.marks = h.marks[1:]
	}
}

// Horizon implements [user.FeedStore]. Each of its statements is a transaction of its own.
func (s *Store) Horizon(ctx context.Context) (user.Horizon, error) {
	if err := s.wholeLedger(ctx); err != nil {
		return user.Horizon{}, err
	}
	h := &s.horizon
	h.mu.Lock()
	defer h.mu.Unlock()
	err := s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		m := mark{made: time.Now()}
		var server time.Time
		if err := conn.QueryRow(ctx, selectLastDrawnID).Scan(&server, &m.drawn); err != nil {
			return err
		}
		if h.on(server, m.drawn); m.drawn > h.drawn {
			if err := conn.QueryRow(ctx, drawTransactionID).Scan(&m.xid); err != nil {
				return err
			}
			h.add(m)
		}
		if len(h.marks) == 0 {
			return nil
		}
		var oldest int64
		if err := conn.QueryRow(ctx, selectOldestTransactionID).Scan(&oldest); err != nil {
			return err
		}
		h.settle(oldest)
		return nil
	})
	if err != nil {
		return user.Horizon{}, err
	}
	now := user.Horizon{ID: h.settled, Drawn: h.drawn}
	if len(h.marks) > 0 {
		now.PendingSince = h.marks[0].made
	}
	return now, nil
}

// EntriesAfter implements [user.FeedStore].
func (s *Store) EntriesAfter(ctx context.Context, after, upTo int64, kind user.EntryKind, limit int) ([]user.FeedEntry, error) {
	// A plan for these ids, never one for any: that would walk the whole ledger.
	return list(ctx, s, scanFeedEntry, selectFeed, pgx.QueryExecModeCacheDescribe, after, upTo, kind, limit)
}

func scanFeedEntry(row pgx.CollectableRow) (e user.FeedEntry, err error) {
	err = row.Scan(append([]any{&e.AccountID}, entryFields(&e.Entry)...)...)
	return e, err
}
