-- Default privileges on schemas and the monitoring grants as used here need PostgreSQL 14.
SELECT current_setting('server_version_num')::int >= 140000 AS new_enough \gset
\if :new_enough
\else
    \warn 'provision: this server is older than PostgreSQL 14; use 14 or newer'
    DO $$ BEGIN RAISE EXCEPTION 'the server is older than PostgreSQL 14'; END $$;
\endif
