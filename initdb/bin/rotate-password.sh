#!/bin/sh
# Gives a client's role a new password: on the server, in its secret file and in the client's .env.
# The new password is on the disk before the server knows it, so that a run that was stopped halfway is
# finished by the next one.
set -eu
umask 077

client=$1
secrets=${SECRETS_DIR:-secrets}
file=$secrets/clients/${client}_password
environment=${CLIENTS_DIR:-clients}/$client/.env

say() { printf 'rotate: %s\n' "$*"; }
fail() { printf 'rotate: %s\n' "$*" >&2; exit 1; }

printf '%s' "$client" | grep -Eq '^[a-z][a-z0-9_]{0,47}$' || fail "'$client' cannot be a client id"
[ -s "$file" ] || fail "no password in $file; 'make add-client CLIENT=$client' makes a client"

if [ -s "$file.new" ]; then
  say "finishing a rotation that was stopped halfway"
else
  cp -p "$file" "$file.partial" # keeps owner and mode
  head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$file.partial"
  mv "$file.partial" "$file.new"
fi

PASSWORD=$(cat "$file.new")
export PASSWORD
docker compose exec -T --env PASSWORD postgres psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
  --username booking_admin --dbname postgres --set role="${client}_user" \
  --file /docker-entrypoint-initdb.d/sql/20-role.sql || fail "the server did not take the new password; nothing was changed"
say "the server has the new password"

if [ -f "$environment" ] && grep -q '^DATABASE_URL=' "$environment"; then
  cp -p "$environment" "$environment.new"
  sed "s#^\(DATABASE_URL=[a-z]*://[^:/@]*:\)[^@]*@#\1$PASSWORD@#" "$environment" >"$environment.new"
  mv "$environment.new" "$environment"
  say "$environment has it; restart the bot so that it reads it"
fi
mv "$file.new" "$file"
say "$file has it"
