# shellcheck shell=bash
# What the batch scripts share: each task a rank, the documented exit code for SLURM, and back to the queue where that
# helps. They source it with PROJECT set; docs/cluster.md says what happens when.

: "${PYTHON:=$PROJECT/.venv/bin/python}"
: "${STATES:=$PWD}"     # folder for each job's state file
: "${MOST_LOSSES:=3}"   # times in a row that a rank may be lost and the training not have got on before; then the job fails

JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
export ESL_DIST_STATE=$STATES/$SLURM_JOB_NAME-$JOB.json
LOSSES=${ESL_DIST_STATE%.json}.losses
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# Of what is printed and what is said of it, the order in the log is that in time.
export PYTHONUNBUFFERED=1

say() { echo "$SLURM_JOB_NAME: $*" >&2; }

from_state() { # key: its number in the state file, nothing where there is none
  sed -n "s/^ *\"$1\": \([0-9][0-9]*\),*\$/\1/p" "$ESL_DIST_STATE" 2>/dev/null
}

# The code that docs/running.md has for what srun says: its highest one may be that of a rank which lost the culprit, and
# a killed rank has none of its own.
documented() { # srun's code
  local code
  code=$(from_state exit_code)
  if [ -n "$code" ]; then echo "$code"
  elif [ "$1" -gt 128 ] && [ "$1" -ne 130 ]; then echo 3
  else echo "$1"
  fi
}

# A rank may be lost to a machine or to its own hunger for memory: what does not get on is not started for ever.
another_start_may_help() {
  local step count=0 furthest=-1
  step=$(from_state step)
  [ ! -s "$LOSSES" ] || read -r count furthest <"$LOSSES"
  [ "${step:-0}" -le "$furthest" ] || { count=0; furthest=${step:-0}; }
  echo "$((count += 1)) $furthest" >"$LOSSES"
  [ "$count" -le "$MOST_LOSSES" ]
}

run() { # program, words…
  local program=$1 code why=
  shift
  mkdir -p "$STATES" && rm -f "$ESL_DIST_STATE" || exit 2
  # SLURM ends a job with SIGTERM: the ranks save, and this script waits for their code.
  trap : TERM
  # The ranks themselves name a lost one; srun would kill those that do.
  srun --kill-on-bad-exit=0 --wait=0 ${RANKS_PER_NODE:+--ntasks-per-node="$RANKS_PER_NODE"} \
    --cpus-per-task="$OMP_NUM_THREADS" "$PYTHON" "$PROJECT/$program" "${@//\{seed\}/${SLURM_ARRAY_TASK_ID:-0}}"
  code=$(documented $?)
  [ "$code" -eq 3 ] || rm -f "$LOSSES"
  if [ "$code" -eq 75 ]; then
    why="stopped, and saved"
  elif [ "$code" -eq 3 ] && another_start_may_help; then
    why="lost a rank"
  elif [ "$code" -eq 3 ]; then
    say "lost ranks in $((MOST_LOSSES + 1)) starts and did not get on: the job ends (code 3)"
  fi
  # Not while SLURM ends it: scancel is for good, and a requeue or a dead node brings the job back without this.
  if [ -n "$why" ] && [ "$(squeue --noheader --jobs="$JOB" --format=%T)" = RUNNING ]; then
    say "$why (code $code): back to the queue"
    scontrol requeue "$JOB"
  fi
  exit "$code"
}
