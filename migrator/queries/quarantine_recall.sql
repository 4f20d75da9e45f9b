-- The rows that earlier runs kept back and that nobody has mended since.
SELECT table_name, row_number, verdict, column_name, value::text, reason, sqlstate, "row"::text, target_row::text
  FROM migrator.rejected_rows
 WHERE resolved_at IS NULL
 ORDER BY table_name, row_number
