#!/usr/bin/env bash
# Make .venv-peer: mmcv (without ops), mmcls and mmengine over the packages of .venv. Instant when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PEER=.venv-peer
WANTED=tests/compat/requirements.txt
. scripts/over_venv.sh
if is_current; then exit 0; fi
.venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
    { echo 'make test-compat: mmcv 1.7.2 does not build on Python 3.13; use 3.11 or 3.12' >&2; exit 1; }
echo "Installing the peer into $PEER"
make_over_venv
export MMCV_WITH_OPS=0
# Without dependencies: .venv has them, and mmengine would bring a second OpenCV.
$PEER/bin/python -m pip install --quiet --ignore-installed --no-deps --no-build-isolation --no-cache-dir --requirement $WANTED
note_current
