#!/usr/bin/env bash
# What prepare_imagenet.sh and prepare_coco.sh share: find the Python of the lab, and hand over.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${LAB_DEVICE:-}" ]; then
    python=python  # in a container, where a .venv of the checkout would be the host's
elif [ -x "$root/.venv/bin/python" ]; then
    python=$root/.venv/bin/python
else
    echo "There is no $root/.venv; make it with \`make venv\`, or use the container: make prepare" >&2
    exit 1
fi
exec env PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -m workspace_lib.tools.prepare "$@"
