#!/usr/bin/env bash
# One node of five is lost under load and never comes back. Nobody does anything: every shard, and the directory, is at three
# copies again after the time that the cluster is set to wait. Exit 0: it was, no request failed, no acknowledged write is
# missing.
#
#   ISXCTL=target/release/isxctl examples/drills/loss.sh [requests per second, default 1000]
#
# It makes a local cluster of its own (ISX_DEV_DIR, or a temporary directory) and removes it.
set -euo pipefail
rate=${1:-1000}
isxctl=${ISXCTL:-isxctl}
work=$(mktemp -d)
export ISX_DEV_DIR=${ISX_DEV_DIR:-$work/dev} XDG_STATE_HOME=$work/state ISX_CONFIG=$work/contexts.toml ISX_NO_INPUT=1
say() { printf '\n== %s  %s\n' "$(date +%H:%M:%S)" "$*"; }
run() { printf "$ isxctl %s\n" "$*"; "$isxctl" --yes "$@"; }
load=
cleanup() { [ -z "$load" ] || kill "$load" 2>/dev/null || true; "$isxctl" dev down --wipe --yes >/dev/null 2>&1 || true; rm -rf "$work"; }
trap cleanup EXIT
state() { "$isxctl" status 2>/dev/null | grep -vE '^(next|finding|cluster)' || true; }
# Shards, the directory among them, with fewer than three copies or one on n4.
short() { "$isxctl" shard list -o plain --columns SHARD,REPLICAS 2>/dev/null | awk '$2 ~ /n4/ || split($2, _, ",") < 3' | wc -l; }

say "a new cluster of five nodes, under load"
run dev up --nodes 5 --fresh --presplit 6
run cluster set --heal-after 10s
"$isxctl" bench --workload mix --rate "$rate" --clients 64 --keys 10000 --value-bytes 1024 --preload --verify \
  --duration "${LOAD_S:-60}" >"$work/load" 2>&1 &
load=$!
sleep 8
state
say "n4 is lost"
run dev kill n4
lost=$SECONDS
sleep 5
state
sleep 7
say "being made good"
state
for _ in $(seq 120); do
  left=$(short)
  [ "$left" = 0 ] && break
  sleep 0.5
done
say "$left shards are short of a copy, $((SECONDS - lost)) s after the loss"
state
run op list --all
wait "$load" && status=0 || status=$?
load=
cat "$work/load"
[ "$left" = 0 ] || exit 1
exit $status
