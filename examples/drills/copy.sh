#!/usr/bin/env bash
# A shard of 1 GiB gets a copy on another node, under load; the receiver is killed on the way, then the sender. What was staged stays:
# only the rest is sent again. Prints the rate, what was resumed, and the latency of requests before and meanwhile.
#
#   ISXCTL=target/release/isxctl examples/drills/copy.sh [MiB, default 1024] [requests per second, default 500] [pace, default normal]
#
# It makes a local cluster of its own (ISX_DEV_DIR, or a temporary directory) and removes it.
set -euo pipefail
mib=${1:-1024} rate=${2:-500} pace=${3:-normal}
isxctl=${ISXCTL:-isxctl}
work=$(mktemp -d)
export ISX_DEV_DIR=${ISX_DEV_DIR:-$work/dev} XDG_STATE_HOME=$work/state ISX_CONFIG=$work/contexts.toml ISX_NO_INPUT=1
load=
cleanup() { [ -z "$load" ] || kill "$load" 2>/dev/null || true; "$isxctl" dev down --wipe --yes >/dev/null 2>&1 || true; rm -rf "$work"; }
trap cleanup EXIT
say() { printf '\n== %s  %s\n' "$(date +%H:%M:%S)" "$*"; }
keys=$((mib * 64))
bench=("$isxctl" bench --workload mix --rate "$rate" --clients 64 --keys $keys --value-bytes 16384 --warmup 1)
leader() { "$isxctl" shard list --filter SERVICE=campaign -o plain --columns LEADER; }
staged() { du -sm "$ISX_DEV_DIR/$new/data/staging" 2>/dev/null | cut -f1 || echo 0; }
staged_over() {
  for _ in $(seq 1200); do
    [ "$(staged)" -lt "$1" ] || return 0
    sleep 0.1
  done
  echo "only $(staged) MiB are staged"; return 1
}

caught_up() {
  for _ in $(seq 240); do
    [ -n "$("$isxctl" shard list --problem -o plain --columns SHARD 2>/dev/null)" ] || return 0
    sleep 0.5
  done
}

say "three copies of one shard with $keys documents of 16 KiB"
"$isxctl" dev up --nodes 3 --presplit 1 --fresh >/dev/null
"$isxctl" --yes cluster set --auto-split false --auto-rebalance false >/dev/null
"${bench[@]}" --preload --duration 1 >/dev/null
caught_up
new=$("$isxctl" dev add | sed -n 's/ joined.*//p')
"$isxctl" shard list --filter SERVICE=campaign
say "before: 10 s of $rate requests per second"
"${bench[@]}" --duration 10
say "meanwhile"
"${bench[@]}" --duration "${LOAD_S:-300}" --verify >"$work/load" 2>&1 &
load=$!
sleep 2
lead=$(leader)
from=n1
[ "$lead" != n1 ] || from=n2
began=$SECONDS
"$isxctl" --yes shard move s-1 --from $from --to "$new" --pace "$pace" --no-wait
if [ "${KILL:-yes}" = yes ]; then
  staged_over $((mib / 4))
  say "the receiver is killed with $(staged) MiB staged"
  "$isxctl" dev kill "$new" >/dev/null
  sleep 1
  "$isxctl" dev start "$new" >/dev/null
  staged_over $((mib / 2))
  caught_up
  lead=$(leader)
  say "the sender, $lead, is killed with $(staged) MiB staged"
  "$isxctl" dev kill "$lead" >/dev/null
  sleep 1
  "$isxctl" dev start "$lead" >/dev/null
fi
op=$("$isxctl" op list --all -o plain --columns OP | tail -1)
while ! "$isxctl" op list --all -o plain --columns OP,STATE 2>/dev/null | grep -qE "^$op.*(done|failed|cancelled)"; do
  "$isxctl" op list 2>/dev/null | tail -1
  sleep 5
done
"$isxctl" op show "$op"
say "after $((SECONDS - began)) s; what the senders say"
grep -h -o -E 'snapshot of s-1 to .*' "$ISX_DEV_DIR"/n?/log | cut -c1-160
kill -INT $load 2>/dev/null || true
wait $load || true
load=
cat "$work/load"
