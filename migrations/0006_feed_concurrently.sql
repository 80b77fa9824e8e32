-- A run that was broken off leaves an index that is not valid: each is dropped first.

-- The ledger grows in the order of its ids, so an index of ranges finds a page of all accounts and costs writes nothing.
-- What VACUUM frees in old pages is filled with new rows: several ranges for a stretch of pages leave those few to
-- themselves, where one range would span the whole ledger.
DROP INDEX CONCURRENTLY IF EXISTS viralpilot.ledger_ids;
-- from PostgreSQL 14
CREATE INDEX CONCURRENTLY ledger_ids ON viralpilot.ledger USING brin (entry_id int8_minmax_multi_ops)
    WITH (pages_per_range = 32, autosummarize = on);
-- before PostgreSQL 14
CREATE INDEX CONCURRENTLY ledger_ids ON viralpilot.ledger (entry_id);

-- The same for the days.
-- from PostgreSQL 14
DROP INDEX CONCURRENTLY IF EXISTS viralpilot.ledger_time;
-- from PostgreSQL 14
CREATE INDEX CONCURRENTLY ledger_time ON viralpilot.ledger USING brin (created_at timestamptz_minmax_multi_ops)
    WITH (pages_per_range = 32, autosummarize = on);
