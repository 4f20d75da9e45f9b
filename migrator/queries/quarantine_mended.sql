-- The rows that were loaded after they had been rejected, as they were in SQLite.
SELECT table_name, row_number, "row"::text
  FROM migrator.rejected_rows
 WHERE resolved_at IS NOT NULL
 ORDER BY id
