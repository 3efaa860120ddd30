#!/bin/sh
# Moves every stream, with its consumers, out of one NATS account and into another: docs/UPGRADING.md, "Accounts".
#
#   accounts.sh backup DIR     with the old nats.conf, while no program of usersync runs
#   accounts.sh restore DIR    with the new one
#
# Needs the `nats` CLI, and NATS_URL, NATS_USER and NATS_PASSWORD of a user who may do everything. DIR holds every user
# in the clear afterwards: keep it as you keep the store, and remove it.
set -eu
umask 077

# What has to be the same on both sides: how far the stream is, how many messages it has (unless they age meanwhile), and
# where each consumer stands.
standing() {
  info=$(nats stream info "$1" --json </dev/null | tr -d ' \n')
  echo "$info" | grep -o '"last_seq":[0-9]*'
  case $info in *'"max_age":0,'*) echo "$info" | grep -o '"messages":[0-9]*' ;; esac
  nats consumer ls "$1" --names | sort | while read -r consumer; do
    [ -n "$consumer" ] || continue
    # What isn't durable goes away by itself, before this or after.
    info=$(nats consumer info "$1" "$consumer" --json </dev/null 2>/dev/null | tr -d ' \n') || continue
    case $info in *'"durable_name":"'*) ;; *) continue ;; esac
    echo "$consumer"
    echo "$info" | grep -o '"\(delivered\|ack_floor\)":{"consumer_seq":[0-9]*,"stream_seq":[0-9]*\|"num_\(ack_pending\|pending\)":[0-9]*'
  done
}

case "${1-} ${2-}" in
"backup "?*)
  mkdir "$2"
  nats stream ls --all --names >"$2/streams"
  [ -s "$2/streams" ] || { rm -r "$2"; echo "this user's account has no streams: is it the old account?" >&2; exit 1; }
  while read -r stream; do
    standing "$stream" </dev/null >"$2/$stream.standing"
    nats stream backup "$stream" "$2/$stream" --no-progress </dev/null
  done <"$2/streams"
  : >"$2/ended"
  ;;
"restore "?*)
  [ -e "$2/ended" ] || { echo "$2 is no backup that ended well" >&2; exit 1; }
  while read -r stream; do
    nats stream restore "$2/$stream" --no-progress </dev/null
    standing "$stream" </dev/null | diff "$2/$stream.standing" - || {
      echo "$stream isn't as it was: see the difference above. Nothing was removed; stop here." >&2
      exit 1
    }
  done <"$2/streams"
  echo "all streams and consumers are as they were"
  ;;
*)
  sed -n '2,8p' "$0" >&2
  exit 64
  ;;
esac
