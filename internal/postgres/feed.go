package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/google/uuid"
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
	var entries []user.FeedEntry
	err := s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, selectFeed, pgx.QueryExecModeCacheDescribe, pgx.QueryResultFormats{pgx.BinaryFormatCode},
			after, upTo, kind, limit)
		if err != nil {
			return err
		}
		most := make([]user.FeedEntry, 0, min(int64(limit), upTo-after))
		entries, err = pgx.AppendRows(most, rows, new(feedScanner).scan)
		return err
	})
	return entries, err
}

// EntryBounds returns the least and the greatest id of entries made at or after since and before until; 1 and 0 when there
// are none.
func (s *Store) EntryBounds(ctx context.Context, since, until time.Time) (first, last int64, err error) {
	err = s.read(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		return conn.QueryRow(ctx, selectEntryBounds, pgx.QueryExecModeCacheDescribe, since, until).Scan(&first, &last)
	})
	return first, last, err
}

// feedScanner reads rows of selectFeed from PostgreSQL's binary form: the general way takes several times as long, and the
// feed goes through the whole ledger.
type feedScanner struct {
	// rest is what is left of the row that is read, and err why it cannot be.
	rest [][]byte
	err  error
	// The kinds and the actors are few: an entry shares them with the ones before.
	kinds  map[string]user.EntryKind
	actors map[string]*string
}

// maxActors bounds how many actors are remembered.
const maxActors = 1000

func (f *feedScanner) scan(row pgx.CollectableRow) (e user.FeedEntry, err error) {
	if f.kinds == nil {
		f.kinds, f.actors = map[string]user.EntryKind{}, map[string]*string{}
	}
	f.rest = row.RawValues()
	if columns := 16; len(f.rest) != columns {
		return e, fmt.Errorf("an entry of the feed has %d columns, not %d", len(f.rest), columns)
	}
	e.AccountID = string(f.next())
	e.ID = f.integer()
	e.Kind = f.kind()
	e.Amount, e.BalanceAfter, e.UsedAfter = f.integer(), f.integer(), f.integer()
	e.TokensCharged, e.TokensRefunded = f.integer(), f.integer()
	e.TopUpsAmount = f.optionalInteger()
	e.StoredChanges = f.json()
	e.ReservationID = f.uuid()
	e.RefundedEntryID = f.optionalInteger()
	e.IdempotencyKey = f.text()
	e.StoredMetadata = f.json()
	e.Actor = f.actor()
	e.CreatedAt = f.instant()
	return e, f.err
}

// next is the next value of the row; nil for NULL.
func (f *feedScanner) next() []byte {
	value := f.rest[0]
	f.rest = f.rest[1:]
	return value
}

// integer reads an integer or a bigint.
func (f *feedScanner) integer() int64 {
	switch value := f.next(); len(value) {
	case 4:
		return int64(int32(binary.BigEndian.Uint32(value)))
	case 8:
		return int64(binary.BigEndian.Uint64(value))
	default:
		f.err = fmt.Errorf("an integer of the feed has %d bytes", len(value))
		return 0
	}
}

func (f *feedScanner) optionalInteger() *int64 {
	if f.rest[0] == nil {
		f.next()
		return nil
	}
	n := f.integer()
	return &n
}

func (f *feedScanner) text() *string {
	value := f.next()
	if value == nil {
		return nil
	}
	s := string(value)
	return &s
}

func (f *feedScanner) kind() user.EntryKind {
	value := f.next()
	kind, known := f.kinds[string(value)]
	if !known {
		kind = user.EntryKind(value)
		f.kinds[string(kind)] = kind
	}
	return kind
}

func (f *feedScanner) actor() *string {
	value := f.rest[0]
	if actor, known := f.actors[string(value)]; known && value != nil {
		f.next()
		return actor
	}
	actor := f.text()
	if actor != nil && len(f.actors) < maxActors {
		f.actors[*actor] = actor
	}
	return actor
}

// json reads a JSONB, whose binary form is a version before its text.
func (f *feedScanner) json() []byte {
	value := f.next()
	if value == nil {
		return nil
	}
	if len(value) == 0 || value[0] != 1 {
		f.err = errors.New("a JSONB of the feed has a form that is not known")
		return nil
	}
	return bytes.Clone(value[1:])
}

func (f *feedScanner) uuid() *string {
	value := f.next()
	if value == nil {
		return nil
	}
	id, err := uuid.FromBytes(value)
	if err != nil {
		f.err = err
	}
	s := id.String()
	return &s
}

// instant reads a timestamptz: microseconds since 2000.
func (f *feedScanner) instant() time.Time {
	const epoch = 946_684_800_000_000
	micros := f.integer()
	if micros == math.MaxInt64 || micros == math.MinInt64 {
		f.err = errors.New("an entry of the feed has an infinite instant")
	}
	return time.UnixMicro(micros + epoch).UTC()
}
