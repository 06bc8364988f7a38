#!/usr/bin/env bash
# Submits a command to SLURM, one process per GPU. The job resumes after preemption and after its time limit.
#
# launch/slurm.sh [options] [--] COMMAND...
#
#   --nodes N          (default 1)
#   --gpus N           per node (default 8)
#   --time H:MM:SS     time limit until the job is queued again (default 24:00:00)
#   --grace SECONDS    time to save before the limit (default 300)
#   --turns N          how often the job is queued again at most (default 100)
#   --name NAME        (default score_st)
#   --partition NAME, --account NAME
#   --log FILE         (default slurm-%j.log)
#   --setup COMMAND    run first on the first node, such as 'source env/bin/activate'
#   --dry-run          prints the command and the batch script
#   --help             prints this help
#
# The working folder should be on a file system that all nodes share, and so should the workdir unless it is a bucket.
# At the time limit and on preemption, SIGTERM makes all processes save at the same step, and the job queues itself
# again. It also does so after a process or a node has died, or when a bucket is not there.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus=8 time=24:00:00 grace=300 turns=100 name=score_st partition="" account="" log=slurm-%j.log setup=:
bare=1
options "nodes gpus time grace turns name partition account log setup" "" "$@"
set -- "${rest[@]}"
integer --nodes "$nodes"
integer --gpus "$gpus"
integer --grace "$grace"
integer --turns "$turns" 0
[[ $time =~ ^([0-9]+-)?[0-9]+:[0-9]{2}:[0-9]{2}$ ]] || die 2 "--time $time: should be like 24:00:00"
(($#)) || die 2 "no command; for example -- python -m score_st.train --config ... --workdir ..."
need sbatch "this is for a login node of a SLURM cluster"

script=$(
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --signal=TERM@$grace
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$log
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}$setup
code=0
srun --kill-on-bad-exit=1 $(quoted "$@") || code=\$?
case \$code in
  ${RESTART[0]}$(printf ' | %s' "${RESTART[@]:1}"))
    if ((\${SLURM_RESTART_COUNT:-0} < $turns)); then
      echo "srun ended with exit code \$code; queued again"
      scontrol requeue "\$SLURM_JOB_ID" && sleep 60
    fi
    ;;
esac
exit \$code
EOF
)
if [[ $DRY_RUN ]]; then
  quoted sbatch --parsable
  printf '%s\n' "$script"
  exit 0
fi
file=$(mktemp)
trap 'rm -f "$file"' EXIT
printf '%s\n' "$script" >"$file"
attempt 'Unable to contact slurm controller|Resource temporarily unavailable' sbatch --parsable "$file" || die 1 "$message"
job=${out%%;*}
echo "job $job: squeue --job $job shows it, scancel $job ends it"
