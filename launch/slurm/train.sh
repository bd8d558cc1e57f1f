#!/usr/bin/env bash
# Trains on several hosts of 8 GPUs, one process a host, and resumes by itself until the run is done.
#
#   sbatch --nodes=8 launch/slurm/train.sh configs/bagel_7b_pod.py /shared/out/pod_7b [--config.rows=128 ...]
#
# Submit from the checkout, which all hosts must see, like the data and the run's folder. Python is .venv/bin/python
# of the checkout, or PDGEN_PYTHON. Ten minutes before the time limit, and on preemption, the processes save and
# end; then, and after any crash, the job is queued again and resumes from the newest complete checkpoint. Wrong
# input (status 2) ends the job.
#SBATCH --job-name=pdgen
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

MAX_RESTARTS=20

if [[ $# -lt 2 ]]; then
  echo "usage: sbatch --nodes=N launch/slurm/train.sh CONFIG WORKDIR [--config.KEY=VALUE ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
cd "${SLURM_SUBMIT_DIR:-.}"
set -a
. launch/gpu.env
set +a
# By default JAX gives each Slurm process one GPU. Here a process has all GPUs of its host.
gpus=${SLURM_GPUS_ON_NODE:-8}
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
export JAX_LOCAL_DEVICE_IDS

status=0
srun --kill-on-bad-exit=1 "${PDGEN_PYTHON:-.venv/bin/python}" launch/train.py --distributed \
  --config="$config" --workdir="$workdir" "$@" || status=$?

if [[ $status -eq 0 || $status -eq 2 ]]; then
  exit "$status"
fi
if [[ ${SLURM_RESTART_COUNT:-0} -ge $MAX_RESTARTS ]]; then
  echo "train.sh: status $status after $MAX_RESTARTS restarts; see the log above, then submit again" >&2
  exit "$status"
fi
echo "train.sh: status $status, queued again (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $MAX_RESTARTS)" >&2
scontrol requeue "$SLURM_JOB_ID"
