-- The schema's tables: who may change them, and the triggers that must not fire for migrated rows.
SELECT c.relname AS table_name,
       pg_get_userbyid(c.relowner) AS owner,
       pg_has_role(c.relowner, 'USAGE') AS owned,
       has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'SELECT') AS writable,
       coalesce((SELECT array_agg(t.tgname::text || ' ' || t.tgenabled::text ORDER BY t.tgname)
                   FROM pg_trigger AS t
                  WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'), '{}') AS triggers
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
 ORDER BY c.relname
