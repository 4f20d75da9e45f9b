-- The role that watches: it reads all clients' tables and writes none. Its password stays out of the log.
\getenv password PASSWORD
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';

SELECT 'CREATE ROLE monitoring_user LOGIN'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'monitoring_user') \gexec
ALTER ROLE monitoring_user WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 10
    PASSWORD :'password';
ALTER ROLE monitoring_user SET default_transaction_read_only = on;
GRANT pg_monitor TO monitoring_user;

-- The databases that come with the server are nobody's to enter but the admin's and the watcher's.
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO monitoring_user;
