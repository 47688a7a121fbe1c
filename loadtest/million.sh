#!/bin/sh
# A million connections on one machine: gateway, a backend that answers, and the generator.
#
#   loadtest/million.sh [connections] [folder]        1000000 and ./million by default
#
# Needs about 8.5 GiB of memory per million (most of it the kernel's), Linux, and limits that hold so many sockets
# in one process; `moorload doctor -c 1m 127.0.0.1:7000` says which are missing. Run as root it raises
# them itself, for this run only, except sysctls, which it prints when they are too low.
# Times it: RAMP (connects per second), HEARTBEAT, HOLD (how long to measure). RESTARTS=3 hands all of them over to a new
# process so often while they are held.
set -eu

connections=${1:-1000000}
folder=${2:-million}
ramp=${RAMP:-5000/s}
heartbeat=${HEARTBEAT:-240s}
hold=${HOLD:-60s}
restarts=${RESTARTS:-0}
gateway=127.0.0.1:7000
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/target/release:$PATH"

command -v moorline >/dev/null && command -v moorload >/dev/null || {
    echo "million.sh: moorline and moorload are not there: cargo build --release --workspace" >&2
    exit 2
}
needed=$((connections + 1000))
[ "$(ulimit -n)" -ge "$needed" ] 2>/dev/null || ulimit -n "$needed" 2>/dev/null || {
    echo "million.sh: open files are limited to $(ulimit -Hn), $needed are needed: raise LimitNOFILE or nofile" >&2
    exit 2
}
mkdir -p "$folder"

facts() { # what the kernel says, into a file
    { date; cat /proc/meminfo /proc/net/sockstat; } >"$folder/$1.txt"
}

moorline backend --set handler=acker --set listen=127.0.0.1:7100 --log-level error >"$folder/backend.log" 2>&1 &
backend=$!
moorline run --set 'backend.endpoints=["127.0.0.1:7100"]' --set auth.mode=dev \
    --set "listener.address=$gateway" --set admin.address=127.0.0.1:7001 \
    --set "handover.pid_file=$folder/pid" --set handover.timeout=10m --set handover.pause_max=5m \
    --set "limits.connections_max=$((connections + 500))" >"$folder/gateway.log" 2>&1 &
process=$!
trap 'kill $(cat "$folder/pid") $process $backend 2>/dev/null || true' EXIT
tries=0
until grep -q ' ready ' "$folder/gateway.log" && grep -q ' ready ' "$folder/backend.log"; do
    kill -0 $process && kill -0 $backend || { cat "$folder/gateway.log" "$folder/backend.log"; exit 3; }
    tries=$((tries + 1))
    [ $tries -lt 120 ] || { echo "million.sh: the gateway is not ready after a minute" >&2; exit 3; }
    sleep 0.5
done

facts before
moorload doctor -c "$connections" --pid $process "$gateway" || echo "million.sh: goes on all the same"
# A process that hands over is not there to be measured at the end.
measured="--pid $process"
[ "$restarts" = 0 ] || measured=
moorload hold -c "$connections" -R "$ramp" --at-once 128 --heartbeat "$heartbeat" --warmup 10s -d "$hold" \
    --drain 30s $measured -o "$folder/run" "$gateway" &
load=$!
# Looks every ten seconds; the look with the most descriptors counts.
most=0
cp "$folder/before.txt" "$folder/during.txt"
while kill -0 $load 2>/dev/null; do
    sleep 10
    descriptors=$(ls "/proc/$(cat "$folder/pid")/fd" 2>/dev/null | wc -l)
    [ "$descriptors" -ge "$most" ] || continue
    most=$descriptors
    facts during
    # As good as everybody is there.
    if [ "$restarts" -gt 0 ] && [ "$descriptors" -ge "$((connections - connections / 1000))" ]; then
        tries=0
        while [ $tries -lt "$restarts" ]; do
            tries=$((tries + 1))
            moorline upgrade --admin 127.0.0.1:7001 --timeout 10m | tee -a "$folder/restarts.txt" || exit 5
            grep -E 'VmRSS|VmHWM' "/proc/$(cat "$folder/pid")/status" | tee -a "$folder/restarts.txt"
        done
        restarts=0
    fi
done
result=0
wait $load || result=$?

value() { # a figure of a file, in KiB
    awk -v name="$2" '$1 == name { print $2 }' "$folder/$1.txt"
}
ends=$(awk '$1 == "TCP:" { print $3 }' "$folder/during.txt")
slab=$(($(value during Slab:) - $(value before Slab:)))
used=$(($(value before MemAvailable:) - $(value during MemAvailable:)))
echo "kernel     slab +$((slab / 1024)) MiB for $ends sockets, $((slab * 1024 / (ends > 0 ? ends : 1))) bytes each; all memory +$((used / 1024)) MiB"
echo "descriptors $most of the gateway's process"
# It has to outlive the end of all of them, too.
kill -0 "$(cat "$folder/pid")" 2>/dev/null || { echo "million.sh: the gateway is gone: $(tail -1 "$folder/gateway.log")" >&2; exit 4; }
exit $result
