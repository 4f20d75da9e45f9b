#!/bin/sh
# Adds a client to CLIENTS in .env, so that the health check of the next container knows it too.
set -eu
client=$1
known=$(sed -n 's/^CLIENTS=//p' .env 2>/dev/null | tail -n 1)
known=${known:-client_001,client_002,client_003}
case ",$known," in *",$client,"*) exit 0 ;; esac
if grep -q '^CLIENTS=' .env 2>/dev/null; then
  sed -i "s/^CLIENTS=.*/CLIENTS=$known,$client/" .env
else
  printf 'CLIENTS=%s,%s\n' "$known" "$client" >>.env
fi
printf 'provision: CLIENTS in .env is now %s,%s\n' "$known" "$client"
