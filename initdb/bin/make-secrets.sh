#!/bin/sh
# Prepares a host: a strong password for each role in secrets/ (mode 0600), the folders that the job
# writes, and in .env the uid under which it runs. What is there stays.
set -eu
umask 077

say() { printf 'secrets: %s\n' "$*"; }
setting() { # NAME: the value in .env, or nothing
  [ -f .env ] && sed -n "s/^$1=//p" .env | tail -n 1 || true
}
remember() { # NAME VALUE
  [ -n "$(setting "$1")" ] && return
  printf '%s=%s\n' "$1" "$2" >>.env
  say "wrote $1=$2 to .env"
}
owner() { # FILE: its uid:gid
  stat -c '%u:%g' "$1"
}

secrets=${SECRETS_DIR:-$(setting SECRETS_DIR)}
secrets=${secrets:-secrets}
clients_dir=${CLIENTS_DIR:-$(setting CLIENTS_DIR)}
clients_dir=${clients_dir:-clients}
clients=${CLIENTS:-$(setting CLIENTS)}
clients=${clients:-client_001,client_002,client_003}

generate() { # FILE
  [ -s "$1" ] && return
  head -c 24 /dev/urandom | base64 | tr '+/' '-_' >"$1"
  say "made $1"
}

mkdir -p "$secrets/clients"
chmod 700 "$secrets" "$secrets/clients"
for name in booking_admin_password monitoring_user_password pgadmin_password; do generate "$secrets/$name"; done
for client in $(printf '%s' "$clients" | tr ',' ' '); do generate "$secrets/clients/${client}_password"; done

# The job runs as the owner of the clients' files, which may be readable by nobody else.
uid=${MIGRATOR_UID:-$(setting MIGRATOR_UID)}
gid=${MIGRATOR_GID:-$(setting MIGRATOR_GID)}
if [ -z "$uid" ]; then
  owners=$(for file in "$clients_dir"/*/bookings.db; do [ -e "$file" ] && owner "$file"; done | sort -u)
  case $owners in
    '' | 0:*) ids="$(id -u):$(id -g)" ;;
    *' '* | *"
"*) ids="$(id -u):$(id -g)"; say "the clients' files belong to several users; set MIGRATOR_UID and MIGRATOR_GID in .env" ;;
    *) ids=$owners ;;
  esac
  [ "${ids%%:*}" = 0 ] && ids=10001:10001
  uid=${ids%%:*} gid=${ids##*:}
fi
gid=${gid:-$uid}
remember MIGRATOR_UID "$uid"
remember MIGRATOR_GID "$gid"

mkdir -p reports backups
if [ "$(id -u)" = 0 ]; then
  chown -R "$uid:$gid" "$secrets/clients" reports backups
  # The job passes through this folder to its own passwords, and can list nothing in it.
  chmod 711 "$secrets"
elif [ "$(id -u)" != "$uid" ]; then
  say "the job is to run as uid $uid, which is not yours: run 'sudo make secrets' so that it can read its passwords"
fi
chmod 600 "$secrets"/*_password "$secrets"/clients/*_password
say "ready: $secrets/ (keep it out of backups that others read), the job runs as uid $uid"
