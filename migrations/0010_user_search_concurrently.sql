-- with pg_trgm
DROP INDEX CONCURRENTLY IF EXISTS viralpilot.userdata_search;
-- No column in it is changed by a consume.
-- with pg_trgm
CREATE INDEX CONCURRENTLY userdata_search ON viralpilot.userdata
    USING gin (cognito_user_id gin_trgm_ops, username gin_trgm_ops, lower(email) gin_trgm_ops);
