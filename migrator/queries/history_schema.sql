-- What each committed run did, in the client's own database; made by the client's role, safe to run again.
CREATE TABLE IF NOT EXISTS migrator.runs (
    run_id text PRIMARY KEY,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker text NOT NULL,
    source_digest text,
    manner text NOT NULL,
    target_mark text,
    report jsonb NOT NULL
);
COMMENT ON TABLE migrator.runs IS
    'Every run that was committed; one that finds file and tables as the last one left them does nothing.';
COMMENT ON COLUMN migrator.runs.source_digest IS
    'Of the SQLite file with its journals; NULL where it was written to while it was copied.';
COMMENT ON COLUMN migrator.runs.target_mark IS
    'Of the tables'' shapes and of the server''s counters of changed rows, read just after the commit.';
