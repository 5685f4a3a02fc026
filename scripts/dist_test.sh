#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT GPUS [options of `workspace test`]: so many processes here, each tests its share.
# Of several machines, each runs it with NNODES=2 NODE_RANK=0|1 MASTER_ADDR=first PORT=29500 in its environment.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of workspace test]" >&2
    exit 2
fi
CONFIG=$1 CHECKPOINT=$2 GPUS=$3
shift 3
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" "$GPUS" test "$CONFIG" "$CHECKPOINT" "$@"
