#!/usr/bin/env bash
# dist_train.sh CONFIG GPUS [options of `workspace train`]: GPUS processes on this machine, as in mmclassification.
# Of several machines, each runs it with NNODES=2 NODE_RANK=0|1 MASTER_ADDR=first PORT=29500 in its environment.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of workspace train]" >&2
    exit 2
fi
CONFIG=$1 GPUS=$2
shift 2
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" "$GPUS" train "$CONFIG" "$@"
