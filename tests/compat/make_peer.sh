#!/usr/bin/env bash
# Make .venv-peer: mmcv (without ops), mmcls and mmengine over the packages of .venv. Instant when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PEER=.venv-peer
WANTED=tests/compat/requirements.txt
STAMP=$PEER/.installed
BASE=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

fingerprint() { { cat $WANTED "${BASH_SOURCE[0]}"; printf '%s|%s' "$PWD" "$BASE"; } | cksum; }

if [ -f $STAMP ] && [ "$(cat $STAMP)" = "$(fingerprint)" ]; then exit 0; fi
.venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
    { echo 'make test-compat: mmcv 1.7.2 does not build on Python 3.13; use 3.11 or 3.12' >&2; exit 1; }
echo "Installing the peer into $PEER"
.venv/bin/python -m venv --clear $PEER
# addsitedir, unlike a bare path, also reads the .pth files there: the library is installed as one of them.
.venv/bin/python - "$BASE" $PEER <<'PY'
import pathlib, sys
base, peer = sys.argv[1:]
site = next(pathlib.Path(peer).glob('lib/python*/site-packages'))
(site / 'base.pth').write_text(f'import site; site.addsitedir({base!r})\n')
PY
export MMCV_WITH_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# Without dependencies: .venv has them, and mmengine would bring a second OpenCV.
$PEER/bin/python -m pip install --quiet --ignore-installed --no-deps --no-build-isolation --no-cache-dir --requirement $WANTED
fingerprint > $STAMP
