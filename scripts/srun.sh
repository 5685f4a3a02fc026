#!/usr/bin/env bash
# srun.sh PARTITION JOB_NAME train|test CONFIG SECOND ...: scripts/train.py or test.py in a process for each GPU, what
# slurm_train.sh and slurm_test.sh share. Theirs are the settings: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS, PY_ARGS.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PARTITION=$1 JOB_NAME=$2 SCRIPT=$root/scripts/$3.py CONFIG=$4 SECOND=$5
shift 5
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
read -ra srun_args <<< "${SRUN_ARGS:-}"
read -ra py_args <<< "${PY_ARGS:-}"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 "${srun_args[@]}" \
    python -u "$SCRIPT" "$CONFIG" "$SECOND" --launcher=slurm "${py_args[@]}" "$@"
