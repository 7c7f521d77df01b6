#!/bin/bash
# Made by hpcscale 0.1.0 from spec 81d720f66233cd5e for site efa
# (profile of 2026-11-22, fabric efa).
# Runs without hpcscale: `sbatch FILE` starts it with the paths of the machine it was made on.
# Exit code: the command's own; 97 set-up failed; 98 claimed elsewhere; 99 stopped before the command was done.
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --export=NONE
#SBATCH --gpus-per-node=8
#SBATCH --job-name=golden
#SBATCH --mem=0
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=hpcscale-%j.log
#SBATCH --partition=gpu
#SBATCH --time=00:10:00

# shellcheck disable=SC2016,SC2317,SC2329  # values are literal; some functions run in traps alone
unset SLURM_EXPORT_ENV  # else srun would give its tasks no more environment than --export says
set -u -o pipefail

say() { printf 'hpcscale: %s\n' "$*" >&2; }
fail() { say "$*"; exit 97; }

# --- where things are
case "${1-}" in
  hs-*)  # submitted by hpcscale: <submission id> <run directory>
    HPCSCALE_SUBMISSION_ID=$1
    HPCSCALE_RUN_DIR=$2
    shift 2
    HPCSCALE_CODE_DIR=$HPCSCALE_RUN_DIR/code
    ;;
  *)  # plain sbatch
    HPCSCALE_SUBMISSION_ID=plain-$SLURM_JOB_ID
    HPCSCALE_RUN_DIR=$SLURM_SUBMIT_DIR/hpcscale-$SLURM_JOB_ID
    HPCSCALE_CODE_DIR=/home/ada/project
    ;;
esac
job=$SLURM_JOB_ID
HPCSCALE_RESTART_COUNT=${SLURM_RESTART_COUNT:-0}
HPCSCALE_SITE=efa
export HPCSCALE_SITE HPCSCALE_SUBMISSION_ID HPCSCALE_RUN_DIR HPCSCALE_RESTART_COUNT \
  HPCSCALE_CODE_DIR

# --- reports: one small file an event, complete or absent; `hpcscale status` reads them
report() {
  local to=$HPCSCALE_RUN_DIR/events/$HPCSCALE_SUBMISSION_ID.$HPCSCALE_RESTART_COUNT.$1
  (umask 077; mkdir -p "${to%/*}" \
    && printf '{"event":"%s","job":"%s","restart":%d,"nodes":"%s","time":%d%s}\n' "$1" "$job" \
      "$HPCSCALE_RESTART_COUNT" "$SLURM_JOB_NODELIST" "$(date +%s)" "${2-}" > "$to.tmp" \
    && mv -- "$to.tmp" "$to") || say "event '$1' could not be written: $to"
}
requeued=false
finish() {
  local rc=$?
  trap '' HUP INT TERM
  report ended ",\"exit_code\":$rc,\"requeued\":$requeued"
}
trap finish EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM  # an end from outside is no good end

# --- what the command needs
mkdir -p -- "$HPCSCALE_RUN_DIR" || fail "a directory cannot be made"
cd -- "$HPCSCALE_CODE_DIR" || fail "the code's directory cannot be entered"

# --- environment
# fabric efa, as the profile of efa has it
export FI_EFA_USE_HUGE_PAGE='0'  # documented, not run
export NCCL_SOCKET_IFNAME='en'  # documented, not run

# --- where the ranks meet: the first node, a port of this job's own
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
[ -n "$MASTER_ADDR" ] || fail "scontrol does not tell the job's nodes"
MASTER_PORT=$((20000 + (SLURM_JOB_ID + 4854) % 10000))
export MASTER_ADDR MASTER_PORT

# --- the claim: a log of who has this attempt, each entry made once; requeued jobs add their own
hpcscale_claims=${HPCSCALE_RUN_DIR%/runs/*}/claims
hpcscale_claim() {  # <log> <restart, or - for an array's own log: any element may have begun it>
  hpcscale_log=$hpcscale_claims/$1
  hpcscale_mine=$hpcscale_log.$SLURM_JOB_ID.$HPCSCALE_RESTART_COUNT.$$.tmp
  (umask 077; mkdir -p -- "$hpcscale_claims" && echo "$HPCSCALE_SUBMISSION_ID $2" > "$hpcscale_mine") \
    || return 97
  hpcscale_entry=0
  while :; do
    ln -T -- "$hpcscale_mine" "$hpcscale_log.$hpcscale_entry" 2> /dev/null
    [ "$hpcscale_mine" -ef "$hpcscale_log.$hpcscale_entry" ] && break
    { read -r hpcscale_owner hpcscale_start < "$hpcscale_log.$hpcscale_entry"; } 2> /dev/null \
      || return 97
    if [ "$hpcscale_owner" = "$HPCSCALE_SUBMISSION_ID" ]; then
      [ "$2" != - ] || break
      # an earlier start; not earlier when Slurm has forgotten one
      [ "$hpcscale_start" -lt "$2" ] || return 1
    elif [ ! -e "$hpcscale_claims/$hpcscale_owner.revoked" ]; then
      return 2
    fi
    hpcscale_entry=$((hpcscale_entry + 1))
  done
  rm -f -- "$hpcscale_mine"
}
hpcscale_take() {  # as hpcscale_claim; a full disk, or a mount that is away, is waited for
  hpcscale_tries=36
  until hpcscale_claim "$@"; do
    hpcscale_no=$?
    [ "$hpcscale_no" = 97 ] && [ "$hpcscale_tries" -gt 0 ] || return "$hpcscale_no"
    [ "$hpcscale_tries" -lt 36 ] \
      || echo "hpcscale: no claim can be made in $hpcscale_claims: tried again for three minutes" >&2
    hpcscale_tries=$((hpcscale_tries - 1))
    sleep 5
  done
}
hpcscale_lost() {
  rm -f -- "$hpcscale_mine"
  case $1 in
    1) echo "hpcscale: start $HPCSCALE_RESTART_COUNT of this job was begun before" >&2 ;;
    2)
      if { read -r hpcscale_code < "$hpcscale_claims/$hpcscale_name.outcome"; } 2> /dev/null; then
        echo "hpcscale: it ran as $hpcscale_owner, and this job ends as that did: $hpcscale_code" >&2
        exit "$hpcscale_code"
      fi
      echo "hpcscale: $hpcscale_owner has the claim: nothing is started here" >&2
      ;;
    *) echo "hpcscale: no claim can be made in $hpcscale_claims" >&2; exit 97 ;;
  esac
  # back into the queue, so that nothing is lost while the owner may still give the claim back
  # (asked again for some minutes while the controller gives no answer)
  hpcscale_tries=60 hpcscale_no=0
  while [ "$HPCSCALE_RESTART_COUNT" -lt 20 ] && command -v scontrol > /dev/null; do
    if timeout 60 scontrol requeue "$job"; then requeued=true; break; fi
    if timeout 60 scontrol ping > /dev/null 2>&1; then hpcscale_no=$((hpcscale_no + 1)); fi
    hpcscale_tries=$((hpcscale_tries - 1))
    if [ "$hpcscale_no" -ge 2 ] || [ "$hpcscale_tries" -le 0 ]; then break; fi
    sleep 5
  done
  exit 98
}
hpcscale_name=${HPCSCALE_RUN_DIR##*/}.$HPCSCALE_SUBMISSION_ID
case $HPCSCALE_SUBMISSION_ID in
  hs-*)
    hpcscale_take "$hpcscale_name" "$HPCSCALE_RESTART_COUNT" || hpcscale_lost "$?"
    export HPCSCALE_CLAIM="$hpcscale_log.$hpcscale_entry"
    ;;
esac

# --- signals: only flags are set here; what follows from them stands at the end
signal=
trap 'signal=TERM' TERM

report started
srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=96 \
  --kill-on-bad-exit=1 --wait=60 \
  bash -c 'agent="import atexit, sys, time; from torch.distributed import TCPStore; \
      from torch.distributed.run import main; \
      node, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]); \
      store = node or TCPStore(host, port, is_master=True, wait_for_workers=False, \
        multi_tenant=True); \
      node or atexit.register(time.sleep, 2); main(sys.argv[4:])"
    # the first node has the store that each agent asks as it leaves: its own agent leaves last
    exec python3 -c "$agent" "$SLURM_NODEID" "$MASTER_ADDR" "$MASTER_PORT" \
      --nnodes=4 --nproc-per-node=8 --node-rank="$SLURM_NODEID" \
      --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" "$@"' \
  bash train.py &
step=$!

# --- wait for the command; a signal cuts bash's wait short
wait "$step"
rc=$?
if [ -n "$signal" ]; then
  kill -TERM "$step" 2>/dev/null  # it had the signal from Slurm; Slurm's KILL follows
  wait "$step"
  rc=$?
fi

trap '' TERM USR1  # Slurm's TERM is for all processes of the job; what follows must not be cut short

# --- will it run again? Only Slurm knows whether the job was preempted, requeued or cancelled
facts=
[ -z "$signal" ] || facts=$(scontrol --oneliner show job "$job")
fact() { case $facts in *" $1="*) set -- "${facts#* "$1"=}"; printf '%s' "${1%% *}" ;; esac; }
restarts=$(fact Restarts)
if [ "${restarts:-0}" -gt "$HPCSCALE_RESTART_COUNT" ]; then
  requeued=true  # by Slurm's preemption or by hand
fi
exit "$rc"
