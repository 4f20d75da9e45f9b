-- The CHECKs and foreign keys of the schema's tables.
SELECT c.relname AS table_name,
       k.conname AS constraint_name,
       k.contype AS kind,
       pg_get_expr(k.conbin, k.conrelid) AS expression,
       k.convalidated AS validated,
       k.condeferrable AS deferrable,
       k.condeferred AS deferred,
       pg_get_constraintdef(k.oid) AS definition,
       p.relname AS parent_name,
       pn.nspname AS parent_schema,
       array(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u(number, place)
               JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.number
              ORDER BY u.place) AS columns,
       array(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u(number, place)
               JOIN pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.number
              ORDER BY u.place) AS parent_columns
  FROM pg_constraint AS k
  JOIN pg_class AS c ON c.oid = k.conrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_class AS p ON p.oid = k.confrelid
  LEFT JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
 WHERE n.nspname = $1 AND k.contype IN ('c', 'f')
 ORDER BY c.relname, k.conname
