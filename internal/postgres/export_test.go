package postgres

import "time"

// Queued is how many updates wait to be claimed.
func (s *Store) Queued() int { return s.updates.Waiting() }

// Contended is how many updates of contended accounts wait to be claimed.
func (s *Store) Contended() int { return s.contended.Waiting() }

// SelectFeed is the statement that reads a page of the feed.
const SelectFeed = selectFeed

// SetMaxLooks sets how many rows the search for one page looks at.
func (s *Store) SetMaxLooks(n int) { s.maxLooks = n }

// RestOfReads is how long a connection rests now after a read that took used.
func (s *Store) RestOfReads(used time.Duration) time.Duration { return s.restOfReads(used) }
