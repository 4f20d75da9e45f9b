#!/bin/sh
# Makes databases, roles and grants for the clients named in CLIENTS. Safe to run again: what is there
# stays, passwords and grants are set anew. The image's entrypoint runs it on the first start;
# 'make add-client' runs it on a running server.
set -eu

here=$(dirname "$0")
clients=${CLIENTS:-client_001,client_002,client_003}
admin=${POSTGRES_USER:-booking_admin}
secrets=${SECRETS_DIR:-/run/booking-secrets}

say() { printf 'provision: %s\n' "$*"; }
fail() { printf 'provision: %s\n' "$*" >&2; exit 1; }

run() { # DATABASE FILE [psql variables]
  database=$1 file=$2
  shift 2
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --no-password \
    --username "$admin" --dbname "$database" "$@" --file "$here/sql/$file"
}

read_password() { # FILE
  [ -s "$1" ] || fail "no password in $1. Run 'make secrets', which makes one for each client of CLIENTS"
  [ -r "$1" ] || fail "$1 cannot be read by uid $(id -u)"
  PASSWORD=$(cat "$1")
  export PASSWORD
}

run postgres 00-require-version.sql
read_password "$secrets/monitoring_user_password"
run postgres 10-monitoring.sql

for client in $(printf '%s' "$clients" | tr ',' ' '); do
  printf '%s' "$client" | grep -Eq '^[a-z][a-z0-9_]{0,47}$' ||
    fail "CLIENTS holds '$client': a client id has lower-case letters, digits and _, such as client_001"
  read_password "$secrets/clients/${client}_password"
  run postgres 20-role.sql --set role="${client}_user"
  run postgres 30-database.sql --set database="${client}_db" --set role="${client}_user"
  run "${client}_db" 40-grants.sql --set database="${client}_db" --set role="${client}_user"
  say "$client is ready: database ${client}_db, role ${client}_user"
done
