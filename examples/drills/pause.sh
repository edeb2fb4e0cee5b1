#!/usr/bin/env bash
# How long a split and a merge of a 64 MiB shard hold writes up. All keys are in one shard, writes arrive at a fixed rate whatever
# the answers do, and the longest of them shows the pause; a run without splits shows what else the machine does: three nodes
# share one disk here, and a checkpoint of one makes the others' syncs wait. ISX_DEV_DIR=/dev/shm/isx leaves the disk out.
#
#   ISXCTL=target/release/isxctl examples/drills/pause.sh [writes per second, default 2000] [rounds, default 5]
#
# It makes a local cluster of its own (ISX_DEV_DIR, or a temporary directory) and removes it.
set -euo pipefail
rate=${1:-2000} rounds=${2:-5}
isxctl=${ISXCTL:-isxctl}
work=$(mktemp -d)
export ISX_DEV_DIR=${ISX_DEV_DIR:-$work/dev} XDG_STATE_HOME=$work/state ISX_CONFIG=$work/contexts.toml ISX_NO_INPUT=1
load=
cleanup() { [ -z "$load" ] || kill "$load" 2>/dev/null || true; "$isxctl" dev down --wipe --yes >/dev/null 2>&1 || true; rm -rf "$work"; }
trap cleanup EXIT
shards() { "$isxctl" shard list --filter SERVICE=campaign -o plain --columns SHARD; }
bench() {
  "$isxctl" bench --workload put --rate "$rate" --clients 256 --keys 65536 --value-bytes 1024 --warmup 1 "$@"
}

"$isxctl" dev up --nodes 3 --presplit 1 --fresh >/dev/null
"$isxctl" --yes cluster set --auto-split false --auto-rebalance false >/dev/null
bench --preload --duration 1 >/dev/null
"$isxctl" shard list --filter SERVICE=campaign
echo "== $((rounds * 4)) s without"
bench --duration $((rounds * 4))
echo "== $((rounds * 4)) s with $rounds splits and $rounds merges"
bench --duration $((rounds * 4)) >"$work/load" & load=$!
sleep 2
for _ in $(seq "$rounds"); do
  "$isxctl" --yes shard split "$(shards)" --by size | grep epoch
  sleep 1
  # shellcheck disable=SC2046
  "$isxctl" --yes shard merge $(shards) | tail -1
  sleep 1
done
wait $load
load=
cat "$work/load"
echo "== from a freeze until the right half is served again, on each node"
for node in n1 n2 n3; do
  awk -v node=$node '
    function seconds(t) { return substr(t, 12, 2) * 3600 + substr(t, 15, 2) * 60 + substr(t, 18, 9) }
    / stands still for / { began = seconds($1) }
    / took over /        { printf "%s %s %.1f", (n++ ? "" : node " "), "", (seconds($1) - began) * 1000 }
    END { print " ms" }' "$ISX_DEV_DIR/$node/log"
done
