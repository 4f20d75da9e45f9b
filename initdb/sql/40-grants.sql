-- Inside a client's database. Default privileges belong to the role that makes a table, so they are
-- set for the client's role, which makes nearly all of them, and for the admin.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO :"role";
GRANT USAGE ON SCHEMA public TO monitoring_user;

ALTER DEFAULT PRIVILEGES FOR ROLE :"role" GRANT USAGE ON SCHEMAS TO monitoring_user;
ALTER DEFAULT PRIVILEGES FOR ROLE :"role" GRANT SELECT ON TABLES TO monitoring_user;
ALTER DEFAULT PRIVILEGES FOR ROLE :"role" GRANT SELECT ON SEQUENCES TO monitoring_user;
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO monitoring_user;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO monitoring_user;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON SEQUENCES TO monitoring_user;

-- Tables that were there before.
SELECT format('GRANT USAGE ON SCHEMA %I TO monitoring_user', nspname),
       format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO monitoring_user', nspname)
  FROM pg_namespace
 WHERE nspname IN ('public', 'migrator') \gexec

-- Read by the health check: the database is not only there, its grants are complete.
COMMENT ON DATABASE :"database" IS 'booking client, provisioned';
