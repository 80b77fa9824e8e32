package postgres

import (
	"maps"
	"sync"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

// heldUp are accounts of which somebody else keeps the row locked, or did lately. Their updates go past the lanes, where
// they would hold up others: they gather behind the transaction that waits for the row, one an account, until it is free.
type heldUp struct {
	// places is how many accounts may be served at once, each on a connection of its own.
	places int

	mu       sync.Mutex
	serving  int
	accounts map[string]*heldUpAccount
}

type heldUpAccount struct {
	// serving says that there is a transaction under way; gathered are those that come after it.
	serving  bool
	gathered []*update
	// until is how long the account is remembered when there is none.
	until time.Time
}

// heldUpFor is how long an account is remembered after its row was last found locked.
const heldUpFor = 5 * time.Second

func newHeldUp(places int) *heldUp {
	return &heldUp{places: places, accounts: map[string]*heldUpAccount{}}
}

// has reports whether updates of the account have to go past their lane.
func (h *heldUp) has(accountID string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.accounts[accountID]
	return a != nil && (a.serving || time.Now().Before(a.until))
}

// add takes updates of an account. When first is true the caller serves them, and those that next returns after that;
// otherwise somebody does already. The error is that too many wait.
func (h *heldUp) add(accountID string, updates []*update) (first bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.accounts[accountID]
	if a == nil {
		now := time.Now()
		maps.DeleteFunc(h.accounts, func(_ string, a *heldUpAccount) bool { return !a.serving && now.After(a.until) })
		a = &heldUpAccount{until: now.Add(heldUpFor)}
		h.accounts[accountID] = a
	}
	switch {
	case a.serving && len(a.gathered)+len(updates) <= laneQueue:
		a.gathered = append(a.gathered, updates...)
		return false, nil
	case a.serving || h.serving == h.places:
		return false, user.ErrOverloaded
	}
	a.serving = true
	h.serving++
	return true, nil
}

// next returns up to most updates that have gathered, none when their account has been served. It is then forgotten
// unless its row is still locked.
func (h *heldUp) next(accountID string, most int, locked bool) []*update {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.accounts[accountID]
	if n := min(len(a.gathered), most); n > 0 {
		batch := a.gathered[:n]
		a.gathered = a.gathered[n:]
		return batch
	}
	h.serving--
	if locked {
		a.serving, a.until = false, time.Now().Add(heldUpFor)
	} else {
		delete(h.accounts, accountID)
	}
	return nil
}

// serveAside serves updates of one account past its lane. They may wait for its row as long as the connection's
// lock_timeout, and hold up no other account.
func (s *Store) serveAside(accountID string, updates []*update) {
	first, err := s.heldUp.add(accountID, updates)
	if err != nil {
		fail(updates, err)
	}
	if !first {
		return
	}
	s.waiting.Go(func() {
		locked := false
		for batch := updates; len(batch) > 0; batch = s.heldUp.next(accountID, s.updates.batchMax, locked) {
			// As in a lane, nobody waits for ever to be taken.
			if locked && time.Since(batch[0].queued) > s.updates.patience {
				fail(batch, user.ErrOverloaded)
				continue
			}
			ctx, end := s.span(batch)
			s.serveAgain(ctx, batch, patient)
			end()
			locked = lockTimeout(batch[0].err)
		}
	})
}
