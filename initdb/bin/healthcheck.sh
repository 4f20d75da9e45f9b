#!/bin/sh
# Green only when the init scripts have finished (until then the server does not listen on TCP) and
# every client's database accepts connections with its grants complete.
set -eu

admin=${POSTGRES_USER:-booking_admin}
pg_isready --quiet --host 127.0.0.1 --username "$admin" || { echo "the server does not accept connections yet"; exit 1; }

for client in $(printf '%s' "${CLIENTS:-client_001,client_002,client_003}" | tr ',' ' '); do
  found=$(psql --no-psqlrc --quiet --no-align --tuples-only --no-password --username "$admin" --dbname "${client}_db" \
    --command "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()" 2>&1) || {
    echo "${client}_db does not accept connections: $found. Run 'make add-client CLIENT=$client'"
    exit 1
  }
  [ "$found" = 'booking client, provisioned' ] || {
    echo "${client}_db is not provisioned completely. Run 'make add-client CLIENT=$client'"
    exit 1
  }
done
