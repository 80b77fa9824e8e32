-- What has been added up of the ledger. These tables come behind migration 7, after whose roll-back this one is applied
-- again to a database that has them: whatever was folded stays so, since the position in the ledger is kept with it.

-- How far the ledger is added up, in the order of its ids. One row, which whoever goes on with it locks.
CREATE TABLE IF NOT EXISTS viralpilot.usage_fold (
    singleton       BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (singleton),
    folded_to       BIGINT NOT NULL DEFAULT 0,
    -- The time zone of the days that were added to last, and the first day from which on none is of another zone.
    zone            TEXT,
    mixed_before    DATE,
    -- Entries from before may have been archived: see the manual.
    archived_before TIMESTAMPTZ,
    -- While the days from some day on are made again: of the entries up to again_to only those since again_since count,
    -- and the rows of accounts up to cleared_to, by their ids, are gone. Rows from clear_from on are to be taken for gone.
    again_to        BIGINT NOT NULL DEFAULT 0,
    again_since     TIMESTAMPTZ,
    clear_from      DATE,
    cleared_to      VARCHAR(255) COLLATE "C" NOT NULL DEFAULT ''
);
INSERT INTO viralpilot.usage_fold DEFAULT VALUES ON CONFLICT DO NOTHING;

-- The sums of an account on a day: of all its charges where the dimension is empty, and of those with a value of a
-- dimension. Bytes are compared faster than letters.
CREATE TABLE IF NOT EXISTS viralpilot.usage_days (
    cognito_user_id VARCHAR(255) COLLATE "C" NOT NULL,
    day             DATE NOT NULL,
    dimension       VARCHAR(64) COLLATE "C" NOT NULL,
    value           VARCHAR(256) COLLATE "C" NOT NULL,
    charged         BIGINT NOT NULL,
    refunded        BIGINT NOT NULL,
    entries         BIGINT NOT NULL,
    PRIMARY KEY (cognito_user_id, day, dimension, value)
) WITH (fillfactor = 85);

-- The same of all accounts together, with how many have spent where the dimension is empty.
CREATE TABLE IF NOT EXISTS viralpilot.usage_totals (
    dimension VARCHAR(64) COLLATE "C" NOT NULL,
    day       DATE NOT NULL,
    value     VARCHAR(256) COLLATE "C" NOT NULL,
    charged   BIGINT NOT NULL,
    refunded  BIGINT NOT NULL,
    entries   BIGINT NOT NULL,
    users     BIGINT NOT NULL,
    PRIMARY KEY (dimension, day, value)
) WITH (fillfactor = 50);
