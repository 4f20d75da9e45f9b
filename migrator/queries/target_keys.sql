-- The unique keys of the schema's tables, each part as SQL over the table's columns.
SELECT c.relname AS table_name,
       x.relname AS key_name,
       i.indisprimary AS is_primary,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_equal,
       pg_get_expr(i.indpred, i.indrelid, true) AS predicate,
       array(SELECT pg_get_indexdef(i.indexrelid, part, true)
               FROM generate_series(1, i.indnkeyatts) AS part) AS parts,
       array(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u(number, place)
               JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = u.number
              WHERE u.place <= i.indnkeyatts ORDER BY u.place) AS columns,
       i.indexprs IS NULL AS plain
  FROM pg_index AS i
  JOIN pg_class AS c ON c.oid = i.indrelid
  JOIN pg_class AS x ON x.oid = i.indexrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND i.indisunique AND i.indisvalid
 ORDER BY c.relname, i.indisprimary DESC, x.relname
