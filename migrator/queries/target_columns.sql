-- The columns of the schema's tables, with the base type of each and what fills it when it is left out.
SELECT c.relname AS table_name,
       a.attname AS column_name,
       CASE WHEN t.typtype = 'b' THEN t.typname ELSE 'other' END AS type_name,
       format_type(a.atttypid, a.atttypmod) AS type_sql,
       a.atttypmod AS type_modifier,
       a.attnotnull AS not_null,
       a.attidentity AS identity,
       a.attgenerated <> '' AS generated,
       a.atthasdef OR a.attidentity <> '' AS has_default,
       pg_get_serial_sequence(quote_ident(n.nspname) || '.' || quote_ident(c.relname), a.attname) AS owned_sequence,
       pg_get_expr(d.adbin, d.adrelid) AS default_sql
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
 ORDER BY c.relname, a.attnum
