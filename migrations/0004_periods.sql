-- What the rules of granted periods keep beside userdata. No row is touched: an account is converted by the service when
-- it changes it for the first time, which granted_period tells. It can be run where some of it is there already.

ALTER TABLE viralpilot.account_state
    ADD COLUMN IF NOT EXISTS top_ups_used      INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS allowance         INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS allowance_excess  INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS carried_top_ups   INTEGER NOT NULL DEFAULT 0,
    -- Year × 12 + month of the last reset; NULL in a row of the earlier version.
    ADD COLUMN IF NOT EXISTS granted_period    INTEGER,
    ADD COLUMN IF NOT EXISTS open_reservations INTEGER NOT NULL DEFAULT 0,
    -- The pseudonym that an account which is being erased moves to, and the mark of one that has been moved.
    ADD COLUMN IF NOT EXISTS moving_to         VARCHAR(255),
    ADD COLUMN IF NOT EXISTS erased            BOOLEAN NOT NULL DEFAULT FALSE,
    DROP CONSTRAINT IF EXISTS account_state_counters,
    ADD CONSTRAINT account_state_counters CHECK (
        least(top_ups_used, allowance, allowance_excess, carried_top_ups, open_reservations) >= 0) NOT VALID;

ALTER TABLE viralpilot.ledger
    ADD COLUMN IF NOT EXISTS tokens_refunded INTEGER,
    -- NULL, like period, in an entry of the earlier version.
    ADD COLUMN IF NOT EXISTS top_ups_amount  INTEGER,
    ADD COLUMN IF NOT EXISTS period          INTEGER,
    ADD COLUMN IF NOT EXISTS changes         JSONB;

ALTER TABLE viralpilot.reservations
    ADD COLUMN IF NOT EXISTS period   INTEGER,
    ADD COLUMN IF NOT EXISTS late     BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN IF NOT EXISTS metadata JSONB;

-- The earlier version would write every balance by other rules. It leaves these columns out of its INSERTs, which alone
-- evaluate their default; it reads on, and answers 503 to what it may not write. A column that is added with such a
-- default would be filled by it, so it is set afterwards.
CREATE OR REPLACE FUNCTION viralpilot.refuse_earlier_version() RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION 'this database is written by a later version of the service'
        USING ERRCODE = 'cannot_connect_now', HINT = 'Start the version that migrated it.';
END
$$;
ALTER TABLE viralpilot.ledger ALTER COLUMN top_ups_amount SET DEFAULT viralpilot.refuse_earlier_version();
ALTER TABLE viralpilot.reservations ALTER COLUMN period SET DEFAULT viralpilot.refuse_earlier_version();

-- The settings that balances depend on, as the service was last started with them.
CREATE TABLE IF NOT EXISTS viralpilot.settings (
    name  VARCHAR(50) PRIMARY KEY,
    value TEXT NOT NULL
);
