# What the launchers share; sourced.
# shellcheck shell=bash disable=SC2034
set -euo pipefail

# Exit codes of the commands after which the same command goes on: another process died or did not come (75), the
# runtime aborted as one died (134), killed (137), SIGTERM (143).
readonly AGAIN=(75 134 137 143)

DRY_RUN=${DRY_RUN:-}

# die CODE MESSAGE: one line, and the end
die() {
  local code=$1
  shift
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit "$code"
}

# note MESSAGE: one line on stderr
note() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# help: the comment at the head of the script
help() {
  sed -n '2,/^[^#]/{/^# shellcheck/d;s/^# \{0,1\}//p}' "$0"
  exit 0
}

# quoted WORD...: as the shell would read them
quoted() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s\n' "${line# }"
}

# run WORD...: runs a command, or prints it under --dry-run
run() {
  if [[ $DRY_RUN ]]; then quoted "$@"; else "$@"; fi
}

# again CODE: whether a job that ended with it goes on when started again
again() {
  [[ " ${AGAIN[*]} " == *" $1 "* ]]
}

# whole NAME VALUE [LEAST]: exits with 2 unless VALUE is a whole number
whole() {
  [[ $2 =~ ^[0-9]+$ && $2 -ge ${3:-1} ]] || die 2 "$1 $2: should be a whole number, ${3:-1} or more"
}

# need COMMAND WHERE: exits with 2 unless there is such a command
need() {
  [[ $DRY_RUN ]] || command -v "$1" >/dev/null || die 2 "no $1 on this machine; $2"
}

# options NAMES FLAGS WORD...: the variable of each option in NAMES becomes its value, of each in FLAGS 1; what comes
# after --, or with $bare set after the first word that is no option, is left in the array rest
bare="" rest=()
options() {
  local names=" $1 " flags=" $2 "
  shift 2
  while (($#)); do
    case $1 in
      --dry-run) DRY_RUN=1 ;;
      --help) help ;;
      --) shift; break ;;
      --*)
        if [[ $names == *" ${1#--} "* ]]; then
          (($# > 1)) || die 2 "$1: needs a value"
          printf -v "${1#--}" %s "$2"
          shift
        elif [[ $flags == *" ${1#--} "* ]]; then
          printf -v "${1#--}" 1
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

# attempt TRANSIENT COMMAND...: its output into $out, and the last line of its errors into $said; tries again, five
# times in all, while the errors match TRANSIENT or tell of a lost connection. Under --dry-run prints the command.
out="" said=""
attempt() {
  local transient="$1|timed out|Unable to connect|UNAVAILABLE|onnection (reset|refused|closed)" try code errors
  shift
  out="" said=""
  if [[ $DRY_RUN ]]; then quoted "$@"; return; fi
  errors=$(mktemp)
  for try in 1 2 3 4 5; do
    code=0
    out=$("$@" 2>"$errors") || code=$?
    said=$(grep -v '^[[:space:]]*$' "$errors" | grep -E 'rror|ERROR' | head -n 1 || true)
    [[ $said ]] || said=$(tail -n 1 "$errors")
    [[ $said ]] || said="$1 ended with exit code $code"
    if ((!code || try == 5)) || ! grep -Eq "$transient" "$errors"; then break; fi
    note "$1: ${said}; trying again"
    sleep "${RETRY_SECONDS:-10}"
  done
  rm -f "$errors"
  return "$code"
}
