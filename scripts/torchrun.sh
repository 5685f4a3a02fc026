#!/usr/bin/env bash
# torchrun.sh GPUS COMMAND ...: `workspace COMMAND ... --gpus GPUS`, what dist_train.sh and dist_test.sh share. Of several
# machines NNODES, NODE_RANK, MASTER_ADDR and PORT tell where they meet; one takes a free port, so two runs do not meet.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
GPUS=$1
shift
# An activated environment, or the container's, goes before the checkout's own.
python=python
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}${LAB_DEVICE:-}" ] && [ -x "$root/.venv/bin/python" ]; then
    python=$root/.venv/bin/python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m workspace_lib.tools.cli "$@" --gpus "$GPUS" --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" \
    --meet-at "${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
