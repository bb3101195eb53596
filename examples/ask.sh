#!/bin/sh
# Asks an agent over MQTT and prints its result, as JSON: ./ask.sh "Turn on the fan."
set -eu
prompt=${1:?usage: ask.sh PROMPT}
root=edge/v1 agent=${AGENT:-edge-01} client=${CLIENT:-me}
job=$(cat /proc/sys/kernel/random/uuid)

# A session that nobody can guess and take from us. It keeps for an hour what comes while nobody listens.
session=$client.$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
inbox="$root/clients/$client/inbox/$agent/$job"
set -- -V mqttv5 -h "${MQTT_HOST:-127.0.0.1}" -p "${MQTT_PORT:-1883}"
if [ -n "${MQTT_PASSWORD:-}" ]; then set -- "$@" -u "$client" -P "$MQTT_PASSWORD"; fi
listen() { exec mosquitto_sub "$@" -q 1 -c -i "$session" -x 3600 -t "$inbox/status" -t "$inbox/result"; }

(listen "$@" -E) # subscribes and leaves: nothing can be missed from now on
text=$(printf %s "$prompt" | sed 's/\\/\\\\/g; s/"/\\"/g' | tr '\n\t' '  ')
mosquitto_pub "$@" -q 1 -t "$root/agents/$agent/cmd/job/$client" \
  -m "{\"job_id\": \"$job\", \"prompt\": \"$text\", \"max_tokens\": 200}"

# -W: who is not answered for so many seconds gives up.
folder=$(mktemp -d)
trap 'kill "$listener" 2>/dev/null || true; rm -rf "$folder"' EXIT
mkfifo "$folder/said"
listen "$@" -W 300 -F '%t %p' >"$folder/said" &
listener=$!
while read -r topic body; do
  case $topic:$body in
    */result:*'"state":"succeeded"'*) printf '%s\n' "$body" && exit 0 ;;
    */result:*) printf '%s\n' "$body" >&2 && exit 1 ;;
    *'"state":"rejected"'*) printf '%s\n' "$body" >&2 && exit 1 ;;
  esac
done <"$folder/said"
echo "no answer from $agent" >&2
exit 1
