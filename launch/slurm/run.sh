# shellcheck shell=bash
# What the batch scripts share: each task a rank, the documented exit code for SLURM, and back to the queue where that
# helps. They source it with PROJECT set; docs/cluster.md says what happens when.

: "${PYTHON:=$PROJECT/.venv/bin/python}"
: "${STATES:=$PWD}"     # folder for each job's state file
: "${MOST_LOSSES:=3}"   # starts in a row that may end early with no step more than before; then the job fails

JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
export ESL_DIST_STATE=$STATES/${SLURM_JOB_NAME//\//_}-$JOB.json
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

# A rank may be lost to a machine or to its own hunger for memory, and a time limit be too short to save anything: what
# does not get on is not started for ever. Only a training has a step; one that is killed as a whole, that of its start.
another_start_may_help() { # code
  local step count=0 furthest=-1
  step=$(from_state step)
  [ ! -s "$LOSSES" ] || read -r count furthest <"$LOSSES"
  count=$((count + 1))
  # A stop that saved new steps is no loss.
  [ "${step:--1}" -le "$furthest" ] || { count=$(($1 == 3)); furthest=$step; }
  echo "$count $furthest" >"$LOSSES" || { say "starts cannot be counted: the job ends (code $1)"; return 1; }
  [ "$count" -le "$MOST_LOSSES" ] ||
    { say "$((MOST_LOSSES + 1)) starts ended early with no step more than before: the job ends (code $1)"; return 1; }
}

# SLURM may be slow to answer, or down for a moment.
insist() { # command, words…
  local pause
  for pause in 1 5 25; do
    "$@" && return
    sleep "$pause"
  done
  "$@"
}

# While SLURM sends a signal, ahead of the time limit, that hides what else holds.
job_state() { squeue --noheader --jobs="$JOB" --format=%T | grep -vx -e "" -e SIGNALING; }

# Not while SLURM ends it: scancel is for good, and a requeue or a dead node brings the job back without this.
put_back_if_it_helps() { # code
  local state why="lost a rank"
  [ "$1" -eq 3 ] || why="stopped"
  if ! state=$(insist job_state); then
    say "$why (code $1), and not put back to the queue: squeue does not tell its state"
  elif [ "$state" = RUNNING ] && another_start_may_help "$1"; then
    say "$why (code $1): back to the queue"
    insist scontrol requeue "$JOB" || say "scontrol cannot put it back: the job ends (code $1)"
  fi
}

run() { # program, words…
  local program=$1 code
  shift
  if [[ -z ${SLURM_ARRAY_TASK_ID-} && $* == *"{seed}"* ]]; then
    say "error: {seed} is the number of a job array's task, and this job has none; add --array=0-4, or write the seed"
    exit 2
  fi
  mkdir -p "$STATES" && rm -f "$ESL_DIST_STATE" || exit 2
  # SLURM ends a job with SIGTERM, and scancel --full sends this script what it sends the ranks: they save, and this
  # script waits for their code.
  trap : TERM USR1 HUP
  # The ranks themselves name a lost one; srun would kill those that do. And what is set here is for them, too, whatever
  # sbatch --export says.
  srun --export=ALL --kill-on-bad-exit=0 --wait=0 ${RANKS_PER_NODE:+--ntasks-per-node="$RANKS_PER_NODE"} \
    --cpus-per-task="$OMP_NUM_THREADS" "$PYTHON" "$PROJECT/$program" "${@//\{seed\}/${SLURM_ARRAY_TASK_ID-}}"
  code=$(documented $?)
  case $code in
    3 | 75) put_back_if_it_helps "$code" ;;
    *) rm -f "$LOSSES" ;;
  esac
  exit "$code"
}
