#!/usr/bin/env bash
# A day in the life of a cluster, in a few minutes, under load: two nodes join, one is drained and leaves, shards are split
# and merged, leaderships move, a node is killed and healed, another is replaced. Every acknowledged write is read back at the
# end. Exit 0: no request failed, nothing was lost or doubled.
#
#   ISXCTL=target/release/isxctl examples/drills/elastic.sh [requests per second, default 5000]
#
# It makes a local cluster of its own (ISX_DEV_DIR, or a temporary directory) and removes it.
set -euo pipefail
rate=${1:-5000}
isxctl=${ISXCTL:-isxctl}
work=$(mktemp -d)
export ISX_DEV_DIR=${ISX_DEV_DIR:-$work/dev} XDG_STATE_HOME=$work/state ISX_CONFIG=$work/contexts.toml ISX_NO_INPUT=1
say() { printf '\n== %s  %s\n' "$(date +%H:%M:%S)" "$*"; }
run() { printf "$ isxctl %s\n" "$*"; "$isxctl" --yes "$@"; }
load=
cleanup() { [ -z "$load" ] || kill "$load" 2>/dev/null || true; "$isxctl" dev down --wipe --yes >/dev/null 2>&1 || true; rm -rf "$work"; }
trap cleanup EXIT
tolerance() { "$isxctl" status 2>/dev/null | grep -E '^(health|tolerance|nodes|shards)'; }
# Leaders of a service's shards, one per line: SHARD LEADER.
shards() { "$isxctl" shard list 2>/dev/null --filter SERVICE=campaign -o plain --columns SHARD,LEADER; }
until_healthy() {
  for _ in $(seq 240); do
    "$isxctl" health --exit-code >/dev/null 2>&1 && return 0
    sleep 0.5
  done
  echo "not healthy after two minutes"; "$isxctl" health; return 1
}

say "a new cluster of three nodes"
run dev up --nodes 3 --fresh --presplit 6
run cluster set --heal-after 10s --auto-split false
say "quiet: 15 s of $rate requests per second"
bench=(bench --workload mix --rate "$rate" --clients 256 --keys "${KEYS:-40000}" --value-bytes 1024)
"$isxctl" "${bench[@]}" --preload --duration 1 >/dev/null
sleep 5
run "${bench[@]}" --duration 15 | tee "$work/quiet"

say "the load goes on from here"
"$isxctl" "${bench[@]}" --seed 2 --preload --verify --duration "${LOAD_S:-100}" >"$work/load" 2>&1 &
load=$!
began=$SECONDS
sleep 5
say "two nodes more"
run dev add
run dev add
run rebalance start --pace normal
say "n2 is drained and leaves"
run node drain n2 --for leave
run node leave n2 --confirm n2
say "ten splits"
for shard in $(shards | cut -f1) $(shards | cut -f1); do
  [ "${splits:=0}" -lt 10 ] || break
  run shard split "$shard" --into 2 && splits=$((splits + 1))
done
say "five merges"
merges=0
while [ $merges -lt 5 ]; do
  pair=$(shards | cut -f1 | sed -n "$((merges + 1)),$((merges + 2))p" | paste -sd' ')
  # shellcheck disable=SC2086
  run shard merge $pair && merges=$((merges + 1))
done
say "leaderships move"
for shard in $(shards | cut -f1 | head -5); do
  leader=$(shards | awk -v s="$shard" '$1 == s { print $2 }')
  for node in n1 n3 n4 n5; do
    [ "$node" = "$leader" ] && continue
    run shard lead "$shard" --on "$node" 2>/dev/null && break
  done
done
say "n4 is killed"
tolerance
run dev kill n4
sleep 3
tolerance
say "healing without a hand"
for _ in $(seq 120); do
  under=$("$isxctl" shard list -o plain --columns SHARD,REPLICAS 2>/dev/null | grep -c n4 || true)
  [ "$under" = 0 ] && break
  sleep 1
done
echo "shards that still name n4: $under"
tolerance
say "n4 is replaced"
run dev add
run node replace n4 --with n6 --confirm n4
until_healthy
tolerance
run op list --all
say "the load ran $((SECONDS - began)) s so far; waiting for its end"
wait "$load" && status=0 || status=$?
load=
cat "$work/load"
p99() { sed -n "s/^$1 .* p99 \([0-9.]*\) .*/\1/p" "$2"; }
for verb in put get; do
  awk -v v=$verb -v q="$(p99 $verb "$work/quiet")" -v l="$(p99 $verb "$work/load")" \
    'BEGIN { printf "p99 %s  quiet %s ms, all this while %s ms: %.1f times\n", v, q, l, l / q }'
done
exit $status
