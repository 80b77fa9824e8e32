-- What the rules of granted periods keep beside userdata. No row is touched: an account is converted by the service when
-- it changes it for the first time, which granted_period tells.

ALTER TABLE viralpilot.account_state
    ADD COLUMN top_ups_used      INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN allowance         INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN allowance_excess  INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN carried_top_ups   INTEGER NOT NULL DEFAULT 0,
    -- Year × 12 + month of the last reset; NULL in a row of the earlier version.
    ADD COLUMN granted_period    INTEGER,
    ADD COLUMN open_reservations INTEGER NOT NULL DEFAULT 0,
    -- The pseudonym that an account which is being erased moves to, and the mark of one that has been moved.
    ADD COLUMN moving_to         VARCHAR(255),
    ADD COLUMN erased            BOOLEAN NOT NULL DEFAULT FALSE,
    ADD CONSTRAINT account_state_counters CHECK (
        least(top_ups_used, allowance, allowance_excess, carried_top_ups, open_reservations) >= 0) NOT VALID;

ALTER TABLE viralpilot.ledger
    ADD COLUMN tokens_refunded INTEGER,
    -- NULL, like period, in an entry of the earlier version, which goes on writing until migration 7.
    ADD COLUMN top_ups_amount  INTEGER,
    ADD COLUMN period          INTEGER,
    ADD COLUMN changes         JSONB;

ALTER TABLE viralpilot.reservations
    ADD COLUMN period   INTEGER,
    ADD COLUMN late     BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN metadata JSONB;

-- The settings that balances depend on, as the service was last started with them.
CREATE TABLE viralpilot.settings (
    name  VARCHAR(50) PRIMARY KEY,
    value TEXT NOT NULL
);
