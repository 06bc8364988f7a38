#!/usr/bin/env bash
# Runs a command on a TPU slice of a GKE cluster, one pod per host. Kubernetes restarts preempted pods.
#
# launch/gke.sh ACTION --name NAME [options] [-- COMMAND...]
#
#   build    builds and pushes the image       logs     follows the output of host 0
#   submit   starts COMMAND as a job           status   shows the job and its pods
#   wait     until the job is done or failed   stop     SIGTERM: all hosts save at the same step; deletes the job
#
#   --name NAME            of the job
#   --image IMAGE          such as europe-docker.pkg.dev/PROJECT/REPOSITORY/score_st:1 (build, submit)
#   --jax EXTRA            of the image: tpu or cuda12 (default tpu)
#   --extras NAMES         of the package in the image (default gcs; gcs,s3 for buckets of both kinds)
#   --accelerator NAME     (default tpu-v5-lite-podslice)
#   --topology AxB         (default 4x4)
#   --chips N              per host (default 4); the number of hosts follows
#   --claim NAME           a ReadWriteMany volume claim, mounted at /work; by default score-st if COMMAND has a path
#                          under /work, else none
#   --service-account NAME of Kubernetes, which Workload Identity lets into the bucket; see docs/pods.md
#   --turns N              how often pods are recreated at most (default 100)
#   --grace SECONDS        between SIGTERM and SIGKILL (default 300; spot nodes give 25)
#   --namespace NAME
#   --dry-run              prints the commands and the job
#   --help                 prints this help
#
# The workdir should be in a bucket, as in --workdir gs://bucket/run, or under /work, where all hosts share a volume.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly BUSY='TooManyRequests|etcdserver|i/o timeout|TLS handshake'
name="" image="" jax=tpu extras=gcs accelerator=tpu-v5-lite-podslice topology=4x4 chips=4 claim="" turns=100 grace=300
namespace="" service_account=""
[[ ${1-} == --help ]] && help
action=${1-}
[[ " build submit wait logs status stop " == *" $action "* && $action ]] || die 2 "unknown action '$action'; see --help"
shift
options "name image jax extras accelerator topology chips claim service-account turns grace namespace" "" "$@"
set -- "${rest[@]}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
integer --chips "$chips"
integer --turns "$turns" 0
integer --grace "$grace"
[[ $action == build || $name =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] ||
  die 2 "--name '$name': should be lower-case letters, digits and hyphens"
[[ ($action != build && $action != submit) || $image ]] || die 2 "--image is needed"
need "$([[ $action == build ]] && echo docker || echo kubectl)" "$action needs it"
kubectl=(kubectl ${namespace:+--namespace "$namespace"})

# shared_folder COMMAND...: whether a command has a path under /work
shared_folder() {
  local word
  for word in "$@"; do
    [[ $word =~ (^|[[:space:]=:,\"\'])/work(/|$) ]] && return
  done
  return 1
}

# check_workdir COMMAND...: warns of a --workdir that is lost with the pod
check_workdir() {
  local workdir=""
  while (($#)); do
    case $1 in
      --workdir) workdir=${2-} ;;
      --workdir=*) workdir=${1#--workdir=} ;;
    esac
    shift
  done
  case $workdir in
    "" | gs://* | s3://*) ;;
    /work | /work/*) [[ $claim != none ]] || note "--workdir ${workdir}: there is no volume with --claim none" ;;
    *) note "--workdir ${workdir}: is lost with the pod; should be gs://bucket/run, or under /work" ;;
  esac
}

# job COMMAND...: prints the template, filled in
job() {
  local hosts=1 side word command=""
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die 2 "--topology $topology: should be like 4x4"
  for side in ${topology//x/ }; do hosts=$((hosts * side)); done
  ((hosts % chips == 0)) || die 2 "--topology $topology: $hosts chips can't be divided among hosts with $chips"
  hosts=$((hosts / chips))
  for word in "$@"; do
    word=${word//\\/\\\\}
    command+=", \"${word//\"/\\\"}\""
  done
  local text drop=(-e '/^#/d')
  [[ $claim != none ]] || drop+=(-e '/ # @claim$/d')
  [[ $service_account ]] || drop+=(-e '/ # @service-account$/d')
  text=$(sed "${drop[@]}" -e 's/ # @[a-z-]*$//' "$root/launch/job.yaml")
  text=${text//@NAME@/"$name"} text=${text//@IMAGE@/"$image"} text=${text//@HOSTS@/"$hosts"}
  text=${text//@ACCELERATOR@/"$accelerator"} text=${text//@TOPOLOGY@/"$topology"} text=${text//@CHIPS@/"$chips"}
  text=${text//@TURNS@/"$turns"} text=${text//@GRACE@/"$grace"} text=${text//@CLAIM@/"$claim"}
  text=${text//@ACCOUNT@/"$service_account"}
  printf '%s\n' "${text//@COMMAND@/"[${command#, }]"}"
}

# condition: sets $out to the condition of the job: Complete, Failed, or nothing yet
condition() {
  attempt "$BUSY" "${kubectl[@]}" get job "$name" \
    "-o=jsonpath={.status.conditions[?(@.status==\"True\")].type}{\" \"}{.status.conditions[0].message}" || die 1 "$message"
}

case $action in
  build)
    attempt "$BUSY" docker build --file "$root/launch/Dockerfile" --build-arg "JAX=$jax" --build-arg "EXTRAS=$extras" \
      --tag "$image" "$root" || die 1 "build: $message"
    attempt "$BUSY" docker push "$image" || die 1 "push: $message"
    ;;
  submit)
    (($#)) || die 2 "no command; for example -- python -m score_st.train --config ... --workdir gs://bucket/run"
    if [[ ! $claim ]]; then
      claim=none
      if shared_folder "$@"; then claim=score-st; fi
    fi
    check_workdir "$@"
    file=$(mktemp)
    trap 'rm -f "$file"' EXIT
    job "$@" >"$file"
    attempt "$BUSY" "${kubectl[@]}" create --filename "$([[ $DRY_RUN ]] && echo - || echo "$file")" || die 1 "$message"
    [[ ! $DRY_RUN ]] || cat "$file"
    ;;
  wait)
    while true; do
      condition
      [[ $DRY_RUN || $out == *Complete* ]] && exit
      [[ $out == *Failed* ]] && die 1 "$name: ${out}; see launch/gke.sh logs"
      sleep "${POLL_SECONDS:-30}"
    done
    ;;
  logs) run "${kubectl[@]}" logs --follow --selector \
    "job-name=$name,batch.kubernetes.io/job-completion-index=0" || die 1 "no output of $name" ;;
  status) run "${kubectl[@]}" get job,pods --selector "job-name=$name" || die 1 "no status of $name" ;;
  stop) attempt "$BUSY" "${kubectl[@]}" delete job,service "$name" || die 1 "$message" ;;
esac
