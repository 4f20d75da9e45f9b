-- The rejected rows that are not in yet, mended where a person has mended them.
SELECT table_name, row_number, coalesce(mended, "row")::text AS "row"
  FROM migrator.rejected_rows
 WHERE verdict = 'rejected' AND resolved_at IS NULL
 ORDER BY table_name, row_number
