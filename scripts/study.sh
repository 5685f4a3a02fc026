#!/usr/bin/env bash
# mmclassification's source into third_party/mmcls, editable, to step into with the debugger. Runs in the lab's lane.
# In a container PYTHONPATH names that folder already; in .venv it is installed from there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TARGET=third_party/mmcls

if [ ! -d "$TARGET/mmcls" ]; then
    mkdir -p third_party
    work=$(mktemp -d third_party/.fetch.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary mmcls --dest "$work" mmcls==0.25.0
    mkdir "$work/mmcls"
    tar -xzf "$work"/mmcls-*.tar.gz -C "$work/mmcls" --strip-components 1
    mv "$work/mmcls" "$TARGET"
fi
if [ -z "${LAB_DEVICE:-}" ]; then
    python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$TARGET"
fi
python - <<'PYTHON'
import importlib.util
print('mmcls is imported from', importlib.util.find_spec('mmcls').origin, '- breakpoints there are hit')
PYTHON
