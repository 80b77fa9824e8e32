-- The earlier version would write every balance by other rules. This comes last, since from here on until a replica of this
-- version listens nobody writes; and it may run again, after a roll-back.

-- It leaves the columns out of its INSERTs, which alone evaluate their default; it reads on, and answers 503 to what it may
-- not write.
CREATE OR REPLACE FUNCTION viralpilot.refuse_earlier_version() RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION 'this database is written by a later version of the service'
        USING ERRCODE = 'cannot_connect_now', HINT = 'Start the version that migrated it.';
END
$$;
ALTER TABLE viralpilot.ledger ALTER COLUMN top_ups_amount SET DEFAULT viralpilot.refuse_earlier_version();
ALTER TABLE viralpilot.reservations ALTER COLUMN period SET DEFAULT viralpilot.refuse_earlier_version();

-- It ends a reservation of no tokens without an INSERT. Of the two versions only it writes this column when it does.
CREATE OR REPLACE FUNCTION viralpilot.refuse_earlier_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM viralpilot.refuse_earlier_version();
    RETURN NULL;
END
$$;
DROP TRIGGER IF EXISTS refuse_earlier_version ON viralpilot.reservations;
CREATE TRIGGER refuse_earlier_version BEFORE UPDATE OF carried ON viralpilot.reservations
    FOR EACH STATEMENT EXECUTE FUNCTION viralpilot.refuse_earlier_update();

-- Other indexes have taken the place of these.
DROP INDEX IF EXISTS viralpilot.ledger_terms, viralpilot.reservations_open;
