#!/usr/bin/env bash
# Runs a command in several processes on this machine, each with its own fake CPU devices.
#
# launch/local.sh [--processes N] [--devices M] [--restart [TIMES]] [--dry-run] [--] COMMAND...
#
#   --processes N      how many (default 2)
#   --devices M        CPU devices of each (default 4)
#   --restart [TIMES]  starts all again when they end with 75, 134, 137 or 143, at most TIMES (default 100)
#   --dry-run          prints the commands
#   --help             prints this
#
# For example
#   launch/local.sh --processes 2 --devices 4 -- python -m score_st.train \
#       --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
#
# SIGTERM and SIGINT are passed on. If a process dies, the others are stopped. The exit code is that of the first
# process that failed, 128 + the signal for one that was killed.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 devices=4 restarts=0
while (($#)); do
  case $1 in
    --processes) processes=${2-}; shift ;;
    --devices) devices=${2-}; shift ;;
    --restart)
      restarts=100
      if [[ ${2-} =~ ^[0-9]+$ ]]; then restarts=$2; shift; fi
      ;;
    --dry-run) DRY_RUN=1 ;;
    --help) help ;;
    --) shift; break ;;
    -*) die 2 "unknown option $1; see --help" ;;
    *) break ;;
  esac
  shift
done
whole --processes "$processes"
whole --devices "$devices"
(($#)) || die 2 "no command; for example -- python -m score_st.train --config ... --workdir ..."

port() {
  if [[ $DRY_RUN ]]; then echo PORT; return; fi
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# all PORT COMMAND...: one round; its exit code
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
    wait -n -p pid "${pids[@]}" 2>/dev/null || code=$? # without bash's notice of a signal
    if [[ ! ${pid-} ]]; then # a signal of ours
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

# stop_later CODE: kills the rest: after SIGTERM they may save first, after an error they may say it themselves
stop_later() {
  local seconds=5
  case $1 in
    137 | 134) kill -KILL "${pids[@]}" 2>/dev/null || true; return ;;
    143) seconds=300; kill -TERM "${pids[@]}" 2>/dev/null || true ;; # one that has not begun waits for nobody
  esac
  (sleep "$seconds"; kill -KILL "${pids[@]}" 2>/dev/null) >/dev/null 2>&1 &
  watcher=$!
}

stopping="" watcher=""
for ((round = 0; ; round++)); do
  code=0
  all "$(port)" "$@" || code=$?
  [[ $DRY_RUN ]] && exit 0
  if ((round >= restarts)) || [[ $stopping ]] || ! again "$code"; then exit "$code"; fi
  note "ended with exit code $code; started again"
done
