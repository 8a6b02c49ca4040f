#!/bin/bash
# A SLURM of two nodes (n1, n2) on this machine, for tests. As root, with Debian's slurm-wlm and munge:
#   apt-get install -y --no-install-recommends slurm-wlm munge
# cluster.sh start      start what does not run yet; return when both nodes are idle
# cluster.sh stop       end its daemons, by pid
# cluster.sh node n2    start one slurmd again (after a kill)
# Clients need: export SLURM_CONF=$DIR/slurm.conf. All it writes lies in DIR ($SLURM_TEST_DIR, else run/ beside this file).
# SLURM_TEST_PORT (default 36817) and the two behind it are its ports; two clusters at once need others each.
# PROCTRACK=cgroup (default linuxproc) tracks processes as real clusters do: what a dead task leaves is killed at once.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
DIR=${SLURM_TEST_DIR:-$HERE/run}
export SLURM_CONF=$DIR/slurm.conf
NODES=(n1 n2)
PORT=${SLURM_TEST_PORT:-36817}

alive() { # pid file; a zombie that nobody reaps is not alive
  local pid state
  pid=$(cat "$1" 2>/dev/null) && state=$(ps -o stat= -p "$pid") && [[ $state != Z* ]]
}

until_true() { # seconds, command…
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ $SECONDS -lt $end ] || { echo "cluster.sh: gave up on: $*" >&2; return 1; }; sleep 0.2; done
}

dead() { ! alive "$1"; }
idle() { [ "$(sinfo -h -N -o %T 2>/dev/null | sort -u)" = idle ]; }
answers() { scontrol ping 2>/dev/null | grep -q UP; }
start_node() { alive "$DIR/slurmd.$1.pid" || slurmd -N "$1" -f "$SLURM_CONF"; }

start() {
  mkdir -p "$DIR"/{munge,state} "${NODES[@]/#/$DIR/spool.}"
  chmod 755 "$DIR" "$DIR/munge"
  [ -s "$DIR/munge/key" ] || (umask 077; head -c 128 /dev/urandom > "$DIR/munge/key")
  sed -e "s|@DIR@|$DIR|g; s|@HOST@|$(hostname -s)|g; s|@PROCTRACK@|${PROCTRACK:-linuxproc}|" \
    -e "s|@PORT@|$PORT|; s|@PORT1@|$((PORT + 1))|; s|@PORT2@|$((PORT + 2))|; s|@FIRST@|$((PORT * 1000))|" \
    "$HERE/slurm.conf.in" > "$SLURM_CONF"
  printf 'CgroupPlugin=autodetect\nCgroupMountpoint=/sys/fs/cgroup\n' > "$DIR/cgroup.conf"
  alive "$DIR/munge/pid" || munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/socket" \
    --pid-file="$DIR/munge/pid" --seed-file="$DIR/munge/seed" --log-file="$DIR/munge/log"
  until_true 10 test -S "$DIR/munge/socket"
  alive "$DIR/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  until_true 20 answers
  for node in "${NODES[@]}"; do start_node "$node"; done
  until_true 30 idle
}

stop() {
  local file pid
  for file in "$DIR"/slurmd.{n1,n2}.pid "$DIR/slurmctld.pid" "$DIR/munge/pid"; do
    alive "$file" || continue
    pid=$(cat "$file")
    kill "$pid"
    until_true 15 dead "$file" || kill -9 "$pid"
    rm -f "$file"
  done
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  node) start_node "$2" ;;
  *) sed -n '2,10p' "$0"; exit 2 ;;
esac
