-- The list of users finds how an id, a username or an e-mail address begins. The pattern operators compare characters,
-- whatever the collation of the database; the counters are in no index, so that a consume stays a heap-only update.

CREATE INDEX userdata_id_prefix ON viralpilot.userdata (cognito_user_id text_pattern_ops);
CREATE INDEX userdata_username_prefix ON viralpilot.userdata (username text_pattern_ops);
CREATE INDEX userdata_email_prefix ON viralpilot.userdata (lower(email) text_pattern_ops);
