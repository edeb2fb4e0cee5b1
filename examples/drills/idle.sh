#!/usr/bin/env bash
# Thousands of shards that nobody asks anything: what they cost, how long a put to one of them takes, and how soon all that a killed
# node led has a leader elsewhere.
#
#   ISXCTL=target/release/isxctl examples/drills/idle.sh [shards of each of two services, default 5000]
#
# It makes a local cluster of its own (ISX_DEV_DIR, or a temporary directory) and removes it.
set -euo pipefail
shards=${1:-5000}
isxctl=${ISXCTL:-isxctl}
work=$(mktemp -d)
export ISX_DEV_DIR=${ISX_DEV_DIR:-$work/dev} XDG_STATE_HOME=$work/state ISX_CONFIG=$work/contexts.toml ISX_NO_INPUT=1
trap '"$isxctl" dev down --wipe --yes >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
say() { printf '\n== %s  %s\n' "$(date +%H:%M:%S)" "$*"; }
pid() { cat "$ISX_DEV_DIR/$1/pid"; }
ticks() { awk '{ print $14 + $15 }' "/proc/$(pid "$1")/stat"; }
idle() {
  declare -A before
  for node in "$@"; do before[$node]=$(ticks "$node"); done
  sleep 30
  for node in "$@"; do
    echo "$node  $(((($(ticks "$node") - before[$node])) * 10000 / 30 / $(getconf CLK_TCK)))e-4 of a core, $(awk '/VmRSS/ { print $2 }' "/proc/$(pid "$node")/status") kB resident"
  done
}
leaders() { cat "$ISX_DEV_DIR"/n?/log | grep -c 'role="leader"'; }

say "three nodes, $((2 * shards)) shards, three copies of each"
"$isxctl" dev up --fresh --presplit "$shards" | head -1
sleep 20
say "idle for 30 s"
idle n1 n2 n3
say "puts to any of them"
"$isxctl" bench --workload put --rate 100 --clients 64 --keys 100000 --duration 20
sleep 5
say "n1 is killed"
led=$("$isxctl" shard list -o plain --columns LEADER | grep -c n1)
before=$(leaders)
kill -9 "$(pid n1)"
began=$(date +%s%N)
for _ in $(seq 2000); do
  [ $(($(leaders) - before)) -ge "$led" ] && break
  sleep 0.05
done
echo "it led $led; $(($(leaders) - before)) elections won $((($(date +%s%N) - began) / 1000000)) ms later"
sleep 15
say "idle for 30 s without n1"
idle n2 n3
