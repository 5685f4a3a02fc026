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
# Schedulers also send SIGUSR1; the processes then save and end, which may take longer than torchrun's 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
exec "$python" -m torch.distributed.run "${meet[@]}" --nproc-per-node "$GPUS" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 "$root/scripts/$1.py" "${@:2}"
