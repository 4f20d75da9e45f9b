-- A client's database: its own role may enter it, make schemas and use temporary tables; PUBLIC may not.
SELECT format('CREATE DATABASE %I ENCODING ''UTF8'' TEMPLATE template0', :'database')
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT, TEMPORARY, CREATE ON DATABASE :"database" TO :"role";
GRANT CONNECT ON DATABASE :"database" TO monitoring_user;
