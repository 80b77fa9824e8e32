-- The accounts, in the form that the earlier service's README gives. The table may exist already, with rows: then it
-- is brought to that form. Where it is made here, the rows of the earlier service, whose code wrote to
-- public.userdata, are taken over unless viralpilot.import_public_userdata is off.

DO $$
DECLARE
    imported bigint;
    missing record;
BEGIN
    IF to_regclass('viralpilot.userdata') IS NULL THEN
        CREATE TABLE viralpilot.userdata (
            cognito_user_id VARCHAR(255) PRIMARY KEY NOT NULL,
            username VARCHAR(255),
            email VARCHAR(255),
            subscription_tier VARCHAR(50) NOT NULL DEFAULT 'free',
            subscription_status VARCHAR(50) NOT NULL DEFAULT 'active',
            subscription_renewal_date TIMESTAMP,
            tokens_remaining INTEGER NOT NULL DEFAULT 0,
            tokens_used_this_month INTEGER NOT NULL DEFAULT 0,
            last_token_reset_date TIMESTAMP,
            created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
            updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
            is_active BOOLEAN NOT NULL DEFAULT TRUE
        );

        IF current_setting('viralpilot.import_public_userdata', true) IS DISTINCT FROM 'off' AND 10 = (
            SELECT count(*) FROM pg_attribute
            WHERE attrelid = to_regclass('public.userdata') AND NOT attisdropped AND attname IN (
                'cognito_user_id', 'subscription_tier', 'subscription_status', 'subscription_renewal_date',
                'tokens_remaining', 'tokens_used_this_month', 'last_token_reset_date', 'created_at', 'updated_at',
                'is_active')
        ) THEN
            -- Its columns allowed NULL, and some deployments added username and email by hand: to_jsonb finds them
            -- where they are.
            INSERT INTO viralpilot.userdata
            SELECT cognito_user_id, to_jsonb(u) ->> 'username', to_jsonb(u) ->> 'email',
                coalesce(subscription_tier, 'free'), coalesce(subscription_status, 'active'), subscription_renewal_date,
                coalesce(tokens_remaining, 0), coalesce(tokens_used_this_month, 0), last_token_reset_date,
                coalesce(created_at, CURRENT_TIMESTAMP), coalesce(updated_at, CURRENT_TIMESTAMP), coalesce(is_active, TRUE)
            FROM public.userdata u;
            GET DIAGNOSTICS imported = ROW_COUNT;
            RAISE NOTICE 'copied % accounts from public.userdata', imported;
        END IF;
        RETURN;
    END IF;

    -- ALTER TABLE wants the owner even where it has nothing to do, so each is made only where something is missing.
    FOR missing IN
        SELECT name, type FROM (VALUES ('username', 'VARCHAR(255)'), ('email', 'VARCHAR(255)')) AS wanted (name, type)
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = 'viralpilot.userdata'::regclass AND attname = wanted.name AND NOT attisdropped)
    LOOP
        EXECUTE format('ALTER TABLE viralpilot.userdata ADD COLUMN %I %s', missing.name, missing.type);
    END LOOP;

    FOR missing IN
        SELECT name, value FROM (VALUES
            ('subscription_tier', '''free'''), ('subscription_status', '''active'''),
            ('tokens_remaining', '0'), ('tokens_used_this_month', '0'),
            ('created_at', 'CURRENT_TIMESTAMP'), ('updated_at', 'CURRENT_TIMESTAMP'), ('is_active', 'TRUE')
        ) AS wanted (name, value)
        JOIN pg_attribute ON attrelid = 'viralpilot.userdata'::regclass AND attname = wanted.name
            AND NOT (attnotnull AND atthasdef)
    LOOP
        EXECUTE format('UPDATE viralpilot.userdata SET %1$I = %2$s WHERE %1$I IS NULL', missing.name, missing.value);
        EXECUTE format('ALTER TABLE viralpilot.userdata ALTER COLUMN %1$I SET DEFAULT %2$s, ALTER COLUMN %1$I SET NOT NULL',
            missing.name, missing.value);
    END LOOP;

    IF NOT EXISTS (SELECT FROM pg_index WHERE indrelid = 'viralpilot.userdata'::regclass AND indisprimary) THEN
        ALTER TABLE viralpilot.userdata ADD PRIMARY KEY (cognito_user_id);
    END IF;
END
$$;
