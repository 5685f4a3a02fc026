#!/usr/bin/env bash
# torchrun.sh GPUS COMMAND ...: `workspace COMMAND ...` in GPUS processes of this machine; what dist_train.sh and
# dist_test.sh share. One machine takes a free port unless PORT names one, so that two runs do not meet.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GPUS=$1
shift
NNODES=${NNODES:-1}
if [ "$NNODES" = 1 ] && [ -z "${PORT:-}" ]; then
    meet=(--standalone)
else
    meet=(--nnodes "$NNODES" --node-rank "${NODE_RANK:-0}"
        --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
# An activated environment, or the container's, goes before the checkout's own.
python=python
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}${LAB_DEVICE:-}" ] && [ -x "$root/.venv/bin/python" ]; then
    python=$root/.venv/bin/python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m torch.distributed.run "${meet[@]}" --nproc-per-node "$GPUS" "$root/scripts/$1.py" "${@:2}"
