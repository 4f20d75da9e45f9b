#!/bin/sh
# Hands the secret files to the user that runs the server, then starts the official entrypoint. On a
# host they have mode 0600 and belong to whoever made them; only root in this container can read them.
set -eu

source=${SECRETS_SOURCE:-/run/secrets}
copy=/run/booking-secrets

fail() {
  printf 'postgres-shared: %s\n' "$*" >&2
  exit 1
}

if [ "$(id -u)" = 0 ]; then
  for name in booking_admin_password monitoring_user_password; do
    [ -s "$source/$name" ] || fail "no password in secrets/$name. Run 'make secrets' once, then start again"
  done
  for client in $(printf '%s' "${CLIENTS:-client_001,client_002,client_003}" | tr ',' ' '); do
    [ -s "$source/clients/${client}_password" ] ||
      fail "no password in secrets/clients/${client}_password. Run 'make secrets' once, then start again"
  done
  mkdir -p "$copy/clients"
  cp "$source/booking_admin_password" "$source/monitoring_user_password" "$copy/"
  cp "$source"/clients/*_password "$copy/clients/"
  chown -R postgres:postgres "$copy"
  chmod -R u=rX,go= "$copy"
fi

export POSTGRES_PASSWORD_FILE="$copy/booking_admin_password"
exec docker-entrypoint.sh "$@"
