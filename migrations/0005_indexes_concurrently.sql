-- Each of these waits for every transaction that was there before it. The earlier version goes on meanwhile, and keeps its
-- own indexes. A run that was broken off leaves an index that is not valid: each is dropped first.

-- Refunds find what ended a period after their charge, and pages of one kind their entries. Consumes stay out of it.
DROP INDEX CONCURRENTLY IF EXISTS viralpilot.ledger_kinds;
CREATE INDEX CONCURRENTLY ledger_kinds ON viralpilot.ledger (cognito_user_id, kind, entry_id) WHERE kind <> 'consume';

-- Pages of reservations by status, and the holds of an account that are due.
DROP INDEX CONCURRENTLY IF EXISTS viralpilot.reservations_status;
CREATE INDEX CONCURRENTLY reservations_status ON viralpilot.reservations (cognito_user_id, status, expires_at, reservation_id);

-- Erases that are under way, and what they lead to.
DROP INDEX CONCURRENTLY IF EXISTS viralpilot.account_state_moving;
CREATE INDEX CONCURRENTLY account_state_moving ON viralpilot.account_state (moving_to, cognito_user_id) WHERE moving_to IS NOT NULL;
