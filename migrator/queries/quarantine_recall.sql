-- The rows that are not in the target as they are in SQLite: kept back by earlier runs, or mended since.
SELECT table_name, row_number, CASE WHEN resolved_at IS NULL THEN verdict ELSE 'mended' END, column_name,
       value::text, reason, sqlstate, "row"::text, target_row::text
  FROM migrator.rejected_rows
 ORDER BY table_name, row_number
