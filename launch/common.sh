# What the launchers share; sourced.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

# Exit codes after which the same command resumes: another process or a bucket is not there (75), another process died
# and JAX aborted (134), killed (137), SIGTERM (143). score_st/runtime/exit_codes.py has all of them.
readonly RESTART=(75 134 137 143)

DRY_RUN=${DRY_RUN:-}

# die CODE MESSAGE: prints one line on stderr and exits
die() {
  local code=$1
  shift
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit "$code"
}

# note MESSAGE: prints one line on stderr
note() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# help: prints the comment at the head of the script and exits
help() {
  sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p}' "$0"
  exit 0
}

# quoted WORD...: prints the words so that a shell reads them as they are
quoted() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s\n' "${line# }"
}

# run WORD...: runs a command, or prints it with --dry-run
run() {
  if [[ $DRY_RUN ]]; then quoted "$@"; else "$@"; fi
}

# restarts CODE: whether a job that ended with this exit code should be started again
restarts() {
  [[ " ${RESTART[*]} " == *" $1 "* ]]
}

# bucket_extras WORD...: prints the extras of the package for the buckets in a command: gcs, s3, gcs,s3 or nothing
bucket_extras() {
  local found=""
  [[ "$*" == *gs://* ]] && found=,gcs
  [[ "$*" == *s3://* ]] && found+=,s3
  printf '%s\n' "${found#,}"
}

# integer NAME VALUE [LEAST]: exits with 2 unless VALUE is a whole number, LEAST (1) or more
integer() {
  [[ $2 =~ ^[0-9]+$ && $2 -ge ${3:-1} ]] || die 2 "$1 $2: should be a whole number, ${3:-1} or more"
}

# need COMMAND HINT: exits with 2 unless there is such a command
need() {
  [[ $DRY_RUN ]] || command -v "$1" >/dev/null || die 2 "no $1 on this machine; $2"
}

# options NAMES FLAGS WORD...: sets the variable of each option in NAMES to its value, and of each in FLAGS to 1, with
# underscores for hyphens. The array rest gets what comes after --, or with $bare set from the first word that is not an
# option.
bare="" rest=()
options() {
  local names=" $1 " flags=" $2 " variable
  shift 2
  while (($#)); do
    variable=${1#--} variable=${variable//-/_}
    case $1 in
      --dry-run) DRY_RUN=1 ;;
      --help) help ;;
      --) shift; break ;;
      --*)
        if [[ $names == *" ${1#--} "* ]]; then
          (($# > 1)) || die 2 "$1: needs a value"
          printf -v "$variable" %s "$2"
          shift
        elif [[ $flags == *" ${1#--} "* ]]; then
          printf -v "$variable" 1
        else
          die 2 "unknown option $1; see --help"
        fi
        ;;
      *)
        [[ $bare && $1 != -* ]] || die 2 "unknown option $1; see --help"
        break
        ;;
    esac
    shift
  done
  rest=("$@")
}

# attempt TRANSIENT COMMAND...: runs a command and sets $out to its output and $message to one line of its errors. Tries
# up to five times while the errors match TRANSIENT or a lost connection. With --dry-run prints the command.
out="" message=""
attempt() {
  local transient="$1|timed out|Unable to connect|UNAVAILABLE|onnection (reset|refused|closed)" try code errors
  shift
  out="" message=""
  if [[ $DRY_RUN ]]; then quoted "$@"; return; fi
  errors=$(mktemp)
  for try in 1 2 3 4 5; do
    code=0
    out=$("$@" 2>"$errors") || code=$?
    message=$(grep -v '^[[:space:]]*$' "$errors" | grep -E 'rror|ERROR' | head -n 1 || true)
    [[ $message ]] || message=$(tail -n 1 "$errors")
    [[ $message ]] || message="$1 ended with exit code $code"
    if ((!code || try == 5)) || ! grep -Eq "$transient" "$errors"; then break; fi
    note "$1: ${message}; trying again"
    sleep "${RETRY_SECONDS:-10}"
  done
  rm -f "$errors"
  return "$code"
}
