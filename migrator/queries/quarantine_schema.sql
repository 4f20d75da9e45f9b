-- The job's own schema in the client's database; made by the client's role, safe to run again.
CREATE SCHEMA IF NOT EXISTS migrator;
CREATE TABLE IF NOT EXISTS migrator.rejected_rows (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL,
    table_name text NOT NULL,
    row_number bigint NOT NULL,
    verdict text NOT NULL,
    column_name text,
    value jsonb,
    reason text NOT NULL,
    sqlstate text,
    "row" jsonb NOT NULL,
    mended jsonb,
    target_row jsonb,
    target_key text,
    found_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz
);
COMMENT ON TABLE migrator.rejected_rows IS
    'Rows of the SQLite source that are not in this database as they were, each whole and with the reason.';
COMMENT ON COLUMN migrator.rejected_rows.row_number IS
    'The row''s rowid in SQLite, or its place by primary key in a table without rowids.';
COMMENT ON COLUMN migrator.rejected_rows.mended IS
    'Put the mended row here, in the form of "row", and run ''migrator retry-rejected''.';
CREATE INDEX IF NOT EXISTS rejected_rows_by_row ON migrator.rejected_rows (table_name, row_number);
CREATE TABLE IF NOT EXISTS migrator.foreign_rows (
    table_name text PRIMARY KEY,
    rows bigint NOT NULL
);
COMMENT ON TABLE migrator.foreign_rows IS
    'How many rows a table held at the first migration that did not come from SQLite.';
