#!/usr/bin/env bash
# Runs a command in several processes on this machine, each with its own simulated CPU devices.
#
# launch/local.sh [--processes N] [--devices M] [--restart [TIMES]] [--dry-run] [--] COMMAND...
#
#   --processes N      number of processes (default 2)
#   --devices M        CPU devices per process (default 4)
#   --restart [TIMES]  restarts all after exit code 75, 134, 137 or 143, at most TIMES times (default 100)
#   --dry-run          prints the commands
#   --help             prints this help
#
# Example:
#   launch/local.sh --processes 2 --devices 4 -- python -m score_st.train \
#       --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
#
# SIGTERM and SIGINT are passed on to the processes. If one dies, the others are stopped. The exit code is that of the
# first process that failed, or 128 + the signal that killed it.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 devices=4 max_restarts=0
while (($#)); do
  case $1 in
    --processes) processes=${2-}; shift ;;
    --devices) devices=${2-}; shift ;;
    --restart)
      max_restarts=100
      if [[ ${2-} =~ ^[0-9]+$ ]]; then max_restarts=$2; shift; fi
      ;;
    --dry-run) DRY_RUN=1 ;;
    --help) help ;;
    --) shift; break ;;
    -*) die 2 "unknown option $1; see --help" ;;
    *) break ;;
  esac
  shift
done
integer --processes "$processes"
integer --devices "$devices"
(($#)) || die 2 "no command; for example -- python -m score_st.train --config ... --workdir ..."

port() {
  if [[ $DRY_RUN ]]; then echo PORT; return; fi
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# by which the processes know each other, see score_st/runtime/rendezvous.py
export SCORE_ST_TOKEN=${SCORE_ST_TOKEN:-$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')}

# all PORT COMMAND...: runs all processes once and returns the exit code
all() {
  local coordinator=localhost:$1 i pid first=0 code left pids=()
  shift
  for ((i = 0; i < processes; i++)); do
    local line=(env JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
      "SCORE_ST_COORDINATOR=$coordinator" "SCORE_ST_PROCESSES=$processes" "SCORE_ST_PROCESS=$i" "$@")
    if [[ $DRY_RUN ]]; then quoted "${line[@]}"; continue; fi
    "${line[@]}" &
    pids[i]=$!
  done
  trap 'stopping=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
  left=${#pids[@]}
  while ((left)); do
    code=0
    wait -n -p pid "${pids[@]}" 2>/dev/null || code=$? # hides bash's message about a signal
    if [[ ! ${pid-} ]]; then # interrupted by a signal to this script
      ((code != 127)) || break
      continue
    fi
    for i in "${!pids[@]}"; do
      [[ ${pids[i]} == "$pid" ]] || continue
      unset "pids[i]"
      left=$((left - 1))
      if ((code && !first)); then
        first=$code
        ((code == 137)) && note "error: process $i was killed; the others are stopped"
        stop_later "$code"
      fi
    done
  done
  trap - TERM INT
  [[ ${watcher-} ]] && kill "$watcher" 2>/dev/null && wait "$watcher" 2>/dev/null
  watcher=""
  return "$first"
}

# stop_later CODE: kills the other processes, after time to save (SIGTERM) or to print their own error
stop_later() {
  local seconds=5
  case $1 in
    137 | 134) kill -KILL "${pids[@]}" 2>/dev/null || true; return ;;
    143) seconds=300; kill -TERM "${pids[@]}" 2>/dev/null || true ;; # for those that have not begun to train
  esac
  (sleep "$seconds"; kill -KILL "${pids[@]}" 2>/dev/null) >/dev/null 2>&1 &
  watcher=$!
}

stopping="" watcher=""
for ((round = 0; ; round++)); do
  code=0
  all "$(port)" "$@" || code=$?
  [[ $DRY_RUN ]] && exit 0
  if ((round >= max_restarts)) || [[ $stopping ]] || ! restarts "$code"; then exit "$code"; fi
  note "ended with exit code $code; started again"
done
