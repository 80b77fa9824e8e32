-- Users are found by what stands anywhere in their ids, names and addresses where trigrams can be had. Whoever may not make
-- the extension, or has a server without it, finds how they begin.

DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
    RAISE NOTICE 'the extension pg_trgm cannot be made (%): users are found by how their texts begin', SQLERRM;
END
$$;
