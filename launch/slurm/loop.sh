#!/bin/bash
# The whole loop as jobs that wait for each other: AdvEnt → pseudo-labels → training with them → evaluation.
#   RECIPES=configs/camvid TARGET=… VALIDATION=… SEEDS=0-2 launch/slurm/loop.sh key=value …
# The words go to both trainings. A job that fails ends those behind it, of its seed; the same call again goes on. Nodes,
# GPUs and time of each job stand in its own script, or in OPTIONS.
set -euo pipefail

: "${RECIPES:=configs/gta5_cityscapes}"         # folder of advent.yaml and advent_esl.yaml
: "${TARGET:=data/shards/Cityscapes/train}"     # shards of the target: trained on, and labelled
: "${VALIDATION:=data/shards/Cityscapes/val}"   # shards with labels, on which the result is scored
: "${SEEDS:=0}"                                 # as sbatch --array takes them: 0, 0-4, 1,7
: "${NAME:=$(basename "$RECIPES")}"             # what all names begin with
: "${START:=recipe}"                            # of the second training: as in its recipe, or advent: the first's network
: "${EXPERIMENTS:=experiments}"                 # folder of runs, pseudo-labels, scores and, in slurm/, logs
: "${OPTIONS:=}"                                # of sbatch, for all four jobs: "--partition=gpu --nodes=2"

SCRIPTS=$(cd "$(dirname "$0")" && pwd)
PROJECT=$(cd "$SCRIPTS/../.." && pwd)
: "${PYTHON:=$PROJECT/.venv/bin/python}"
STATES=$EXPERIMENTS/slurm
export PROJECT PYTHON STATES
read -ra OPTIONS <<<"$OPTIONS"

# {seed} is put in where the job runs.
advent="${NAME}_advent_seed_{seed}"
esl="${NAME}_advent_esl_seed_{seed}"
labels="$EXPERIMENTS/pseudo_labels/${NAME}_seed_{seed}"
train=("experiments=$EXPERIMENTS" "target.path=$TARGET" "$@" "seed={seed}")
first=(--config "$RECIPES/advent.yaml" "${train[@]}" "name=$advent")
label=("checkpoint=$EXPERIMENTS/snapshots/$advent" "target.path=$TARGET" "output=$labels")
second=(--config "$RECIPES/advent_esl.yaml" "${train[@]}" "name=$esl" "pseudo_labels=$labels")
score=("checkpoint=$EXPERIMENTS/snapshots/$esl" "data.path=$VALIDATION" "output=$EXPERIMENTS/scores/$esl.json")

fail() {
  echo "error: $*; nothing was submitted" >&2
  exit 2
}

check() { # program, words…
  "$PYTHON" "$SCRIPTS/check.py" "${@//\{seed\}/0}" || fail "$1.py would end with this"
}

# Behind a job that failed, others would wait for ever without the last one.
options=(--array="$SEEDS" --output="$STATES/%x-%A_%a.log" --export=ALL "${OPTIONS[@]}" --kill-on-invalid-dep=yes)

jobs=() cluster=
submit() { # name, script, words…: behind the job before
  local name=$1 script=$2 before=${jobs[*]: -1} said job
  shift 2
  said=$(sbatch --parsable --job-name="$name" ${before:+"--dependency=aftercorr:$before"} "${options[@]}" \
    "$SCRIPTS/$script.sbatch" "$@")
  IFS=';' read -r job cluster <<<"$said" # the second only where OPTIONS names a cluster
  jobs+=("$job")
}

cancel() {
  if [ ${#jobs[@]} -eq 0 ]; then
    echo "error: no job could be submitted"
  elif scancel ${cluster:+"--clusters=$cluster"} "${jobs[@]}"; then
    echo "error: not all jobs could be submitted; those that were are cancelled"
  else
    echo "error: not all jobs could be submitted; cancel those that were: scancel ${jobs[*]}"
  fi >&2
}

case $START in
  recipe) ;;
  advent) second+=("network.start=$EXPERIMENTS/snapshots/$advent") ;;
  *) fail "START=$START is impossible: expected recipe or advent" ;;
esac
[ -x "$PYTHON" ] || fail "$PYTHON: no such program; set PYTHON to that of the environment"
mkdir -p "$STATES" || fail "logs have no place"
names=("${NAME}_advent" "${NAME}_pseudo_label" "${NAME}_advent_esl" "${NAME}_evaluate")
queued=$(IFS=, && squeue --me --noheader --format=%i --name="${names[*]}") || fail "SLURM does not answer"
[ -z "$queued" ] || fail "jobs of NAME=$NAME are in the queue: ${queued//$'\n'/, }; wait for them, or scancel them"
for script in train pseudo_label evaluate; do
  said=$(sbatch --test-only "${options[@]}" "$SCRIPTS/$script.sbatch" 2>&1) || fail "$script.sbatch: $said"
done
check pseudo_label "${label[@]}"
check evaluate "${score[@]}"
check train "${first[@]}"
check train "${second[@]}" pseudo_labels=null

trap cancel EXIT
submit "${names[0]}" train "${first[@]}"
submit "${names[1]}" pseudo_label "${label[@]}"
submit "${names[2]}" train "${second[@]}"
submit "${names[3]}" evaluate "${score[@]}"
trap - EXIT
for step in "${!jobs[@]}"; do echo "${jobs[step]} ${names[step]}"; done
echo "logs: $STATES; scores: $EXPERIMENTS/scores"
