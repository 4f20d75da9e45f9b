-- The last committed run, and how many seconds ago it ended by the server's own clock.
SELECT run_id, source_digest, manner, target_mark, worker, report::text AS report, finished_at,
       extract(epoch FROM clock_timestamp() - finished_at)::float8 AS age_seconds
  FROM migrator.runs
 ORDER BY finished_at DESC, run_id DESC
 LIMIT 1
