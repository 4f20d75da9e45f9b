-- A mark that changes with any row written to the client's tables and with any change of their shape.
-- The counters are those of https://www.postgresql.org/docs/current/monitoring-stats.html; a server that
-- lost them in a crash gives another mark, and so does a restored database, whose oids are others.
SELECT md5(string_agg(
           concat_ws(' ', c.oid, c.xmin, c.relfilenode,
                     pg_stat_get_tuples_inserted(c.oid),
                     pg_stat_get_tuples_updated(c.oid),
                     pg_stat_get_tuples_deleted(c.oid)),
           E'\n' ORDER BY c.oid))
  FROM pg_class AS c
  JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p')
   AND (n.nspname = current_schema() OR (n.nspname = 'migrator' AND c.relname <> 'runs'))
   AND current_setting('track_counts')::boolean
