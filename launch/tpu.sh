#!/usr/bin/env bash
# Runs a command on all hosts of a TPU VM pod, and resumes it after preemption.
#
# launch/tpu.sh ACTION --name NAME --zone ZONE [options] [-- COMMAND...]
#
#   create   requests a queued resource        logs     follows the command's output
#   wait     until the resource is active      stop     SIGTERM: all hosts save at the same step and stop
#   setup    copies and installs the package   delete   deletes the resource
#   run      runs COMMAND on all hosts until it ends; after a lost connection, run finds it again
#   all      create, wait, setup, run; starts over when the pod was preempted
#
#   --name NAME        of the queued resource and of its node
#   --zone ZONE        such as us-west4-a
#   --type TYPE        (default v5litepod-16)
#   --runtime VERSION  (default v2-alpha-tpuv5-lite)
#   --project NAME     (default: that of gcloud)
#   --spot             cheaper, but may be preempted
#   --service-account EMAIL   of the hosts, which should be let into the bucket (default: that of Compute Engine)
#   --extras NAMES     of the package, such as fid,lsun; gcs and s3 are added for the buckets in COMMAND
#   --setup COMMAND    also run by setup on every host, for example to mount a shared folder
#   --turns N          how often all and run restart the command at most (default 100)
#   --worker N         whose output logs follows (default 0, which prints)
#   --dry-run          prints the commands
#   --help             prints this help
#
# The workdir should be in a bucket, as in --workdir gs://bucket/run, or in a folder that all hosts share. all and run
# come back to it after preemption; setup by itself takes COMMAND too, for its buckets.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly BUSY='RESOURCE_EXHAUSTED: .*try again|code=503|INTERNAL'
name="" zone="" type=v5litepod-16 runtime=v2-alpha-tpuv5-lite project="" spot="" setup=: turns=100 worker=0
service_account="" extras=""
[[ ${1-} == --help ]] && help
action=${1-}
[[ " create wait setup run all logs stop delete " == *" $action "* && $action ]] || die 2 "unknown action '$action'; see --help"
shift
options "name zone type runtime project service-account extras setup turns worker" "spot" "$@"
set -- "${rest[@]}"
for extra in $(bucket_extras "$@" | tr , ' '); do
  [[ ,$extras, == *,$extra,* ]] || extras+=${extras:+,}$extra
done
[[ $name && $zone ]] || die 2 "--name and --zone are needed"
integer --turns "$turns" 0
[[ $action != run && $action != all ]] || (($#)) || die 2 "no command; for example -- python -m score_st.train ..."
need gcloud "see cloud.google.com/sdk"
where=(--zone "$zone" --quiet)
[[ $project ]] && where+=(--project "$project")

# on WORKER COMMAND: runs a command on one host, or on all
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker "$1" --command "$2"
}

create() {
  attempt "$BUSY" gcloud compute tpus queued-resources create "$name" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "$runtime" ${spot:+--spot} ${service_account:+--service-account "$service_account"} \
    "${where[@]}" && return
  [[ $message == *ALREADY_EXISTS* || $message == *"already exists"* ]] || die 1 "create: $message"
  note "$name exists already"
}

# state: sets $out to the state of the queued resource, or to NOT_FOUND
state() {
  attempt "$BUSY" gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" &&
    return
  [[ $message == *NOT_FOUND* || $message == *"not found"* ]] || die 1 "describe: $message"
  out=NOT_FOUND
}

# await: waits until the resource is active; returns 1 if it never will be
await() {
  local last=""
  while true; do
    state
    [[ $DRY_RUN || $out == ACTIVE ]] && return
    [[ $out == "$last" ]] || note "$name: $out"
    last=$out
    case $out in FAILED | SUSPENDING | SUSPENDED | DELETING | NOT_FOUND) return 1 ;; esac
    sleep "${POLL_SECONDS:-30}"
  done
}

# install: copies and installs the package; returns 1, with $message, if that fails
install() {
  local archive=${TMPDIR:-/tmp}/score_st-$name.tar.gz root unpack
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  run tar -czf "$archive" -C "$root" score_st configs setup.py pyproject.toml README.md || die 1 "setup: no archive"
  attempt "$BUSY|exited with return code \[255\]" gcloud compute tpus tpu-vm scp "$archive" "$name:score_st.tar.gz" \
    "${where[@]}" --worker all || return 1
  unpack="mkdir -p score_st && tar -xzf score_st.tar.gz -C score_st && cd score_st"
  attempt "exited with return code \[255\]" gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker all --command \
    "$unpack && pip install -q 'jax[tpu]' -e '.${extras:+[$extras]}' && $setup"
}

# prepare: create, wait and setup; starts over when the pod is preempted meanwhile
prepare() {
  local round problem
  for ((round = 0; ; round++)); do
    create
    if await; then
      install && return
      problem="setup: $message"
      state
      [[ $out != ACTIVE ]] || die 1 "$problem"
    fi
    [[ $out == SUSPEND* && $round -lt $turns ]] || die 1 "$name: $out"
    note "$name was preempted ($out)"
    give_back
  done
}

# once COMMAND...: starts the command on all hosts unless it runs there, waits for it and returns its exit code. Sets
# $stopped if stop ended it.
stopped=""
once() {
  local start code=0
  start="cd score_st; if ! kill -0 \$(cat run.pid 2>/dev/null) 2>/dev/null; then rm -f run.exit run.stop; nohup sh -c '"
  start+="$(quoted "$@" | sed "s/'/'\\\\''/g") >>run.log 2>&1 & echo \$! >run.pid; wait \$!; echo \$? >run.exit"
  start+="' >/dev/null 2>&1 & sleep 1; fi; while [ ! -e run.exit ]; do sleep 2; done"
  on all "$start" || code=$?
  [[ $DRY_RUN ]] && return
  # ssh may return a code of its own; that of the command is in the file
  if attempt "$BUSY" gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker 0 --command \
    "cd score_st && cat run.exit && if [ -e run.stop ]; then echo stopped; fi" &&
    [[ $out =~ ^([0-9]+)[[:space:]]*(stopped)?$ ]]; then
    stopped=${BASH_REMATCH[2]}
    return "${BASH_REMATCH[1]}"
  fi
  sleep "${RETRY_SECONDS:-10}" # preemption shows in the state of the resource a little later
  return 75
}

# repeatedly COMMAND...: restarts the command after preemption and deaths
repeatedly() {
  local round code
  for ((round = 0; ; round++)); do
    code=0
    once "$@" || code=$?
    [[ $DRY_RUN ]] && return
    if ((code == 0 || round >= turns)) || [[ $stopped ]] || ! restarts "$code"; then break; fi
    state
    if [[ $out != ACTIVE ]]; then
      note "$name was preempted ($out)"
      [[ $action == all ]] || die "$code" "$name is $out; launch/tpu.sh all would resume"
      give_back
      prepare
    fi
    note "ended with exit code $code; started again"
  done
  ((code == 0)) || die "$code" "the command ended with exit code $code; see launch/tpu.sh logs"
}

give_back() {
  attempt "$BUSY" gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force && return
  [[ $message == *NOT_FOUND* || $message == *"not found"* ]] || die 1 "delete: $message"
  note "$name does not exist"
}

case $action in
  create) create ;;
  wait) await || die 1 "$name: $out" ;;
  setup) install || die 1 "setup: $message" ;;
  run) repeatedly "$@" ;;
  all)
    prepare
    repeatedly "$@"
    ;;
  logs) on "$worker" "tail -n 100 -F score_st/run.log" || die 1 "no output of worker $worker" ;;
  stop) attempt "$BUSY" gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker all --command \
    "cd score_st && touch run.stop && kill -TERM \$(cat run.pid)" || die 1 "stop: $message" ;;
  delete) give_back ;;
esac
