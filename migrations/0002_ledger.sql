-- What the twelve columns of userdata have no room for. Every primary key begins with the account, so that the
-- tables can be distributed by it.

CREATE TABLE viralpilot.account_state (
    cognito_user_id  VARCHAR(255) PRIMARY KEY REFERENCES viralpilot.userdata ON DELETE CASCADE,
    top_ups          INTEGER NOT NULL DEFAULT 0 CHECK (top_ups >= 0),
    tokens_reserved  INTEGER NOT NULL DEFAULT 0 CHECK (tokens_reserved >= 0),
    next_hold_expiry TIMESTAMPTZ
);

-- No foreign key: the ledger outlives what it explains.
CREATE TABLE viralpilot.ledger (
    cognito_user_id   VARCHAR(255) NOT NULL,
    -- Drawn under the account's row lock, so it rises within an account.
    entry_id          BIGINT GENERATED ALWAYS AS IDENTITY,
    kind              VARCHAR(20) NOT NULL,
    amount            INTEGER NOT NULL,
    balance_after     INTEGER NOT NULL,
    used_after        INTEGER NOT NULL,
    tokens_charged    INTEGER NOT NULL DEFAULT 0,
    reservation_id    UUID,
    refunded_entry_id BIGINT,
    idempotency_key   VARCHAR(255),
    command_hash      BYTEA,
    metadata          JSONB,
    actor             VARCHAR(255),
    created_at        TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (cognito_user_id, entry_id)
);

CREATE UNIQUE INDEX ledger_idempotency_key ON viralpilot.ledger (cognito_user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- Refunds and reservations find their entries, and terms their beginning, without a walk along the ledger. They stay
-- out of the way of a plain consume.
CREATE INDEX ledger_refunds ON viralpilot.ledger (cognito_user_id, refunded_entry_id) WHERE refunded_entry_id IS NOT NULL;
CREATE INDEX ledger_reservations ON viralpilot.ledger (cognito_user_id, reservation_id, entry_id) WHERE reservation_id IS NOT NULL;
CREATE INDEX ledger_terms ON viralpilot.ledger (cognito_user_id, entry_id) WHERE kind IN ('monthly_reset', 'tier_change');
CREATE INDEX ledger_administrators ON viralpilot.ledger (actor) WHERE actor LIKE 'cognito:%';
-- The table grows in the order of time, so this tiny index skips what is outside of the days asked for.
CREATE INDEX ledger_time ON viralpilot.ledger USING brin (created_at);

CREATE TABLE viralpilot.reservations (
    cognito_user_id VARCHAR(255) NOT NULL REFERENCES viralpilot.userdata ON DELETE CASCADE,
    reservation_id  UUID NOT NULL,
    status          VARCHAR(10) NOT NULL,
    tokens          INTEGER NOT NULL CHECK (tokens >= 0),
    tokens_charged  INTEGER NOT NULL DEFAULT 0,
    tokens_returned INTEGER NOT NULL DEFAULT 0,
    shortfall       INTEGER NOT NULL DEFAULT 0,
    -- Whether the term in which it was made has ended, and the top-ups in it then.
    carried         BOOLEAN NOT NULL DEFAULT FALSE,
    top_up          INTEGER NOT NULL DEFAULT 0,
    created_at      TIMESTAMPTZ NOT NULL,
    expires_at      TIMESTAMPTZ NOT NULL,
    closed_at       TIMESTAMPTZ,
    -- The cost it was settled with, which a retry has to repeat.
    tokens_used     INTEGER,
    PRIMARY KEY (cognito_user_id, reservation_id)
);

CREATE INDEX reservations_open ON viralpilot.reservations (cognito_user_id, expires_at, reservation_id) WHERE status = 'open';
CREATE INDEX reservations_due ON viralpilot.reservations (expires_at) WHERE status = 'open';
