package postgres

// Queued is how many updates wait to be taken.
func (s *Store) Queued() (n int) {
	for _, queue := range s.updates.queues {
		n += len(queue)
	}
	return n
}
