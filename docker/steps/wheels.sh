#!/bin/bash
# wheels.sh OUT: everything a build of this image fetches, into OUT/pip. (System packages: stage debs.)
set -euo pipefail
out=$1
here=$(dirname "$0")
mkdir -p "$out/pip"
python "$here/wanted.py" /pyproject.toml lab demo > /tmp/wanted.txt
# What is missing beside the base, and not what is there: torch alone would be 3 GB.
"$here/pip.sh" install --dry-run --report /tmp/missing.json --requirement /tmp/wanted.txt --requirement /requirements/image.txt
python - /tmp/missing.json > /tmp/missing.txt << 'PYTHON'
import json, sys
for package in json.load(open(sys.argv[1]))['install']:
    print(f"{package['metadata']['name']}=={package['metadata']['version']}")
PYTHON
"$here/pip.sh" wheel --wheel-dir "$out/pip" --no-deps --requirement /tmp/missing.txt pip setuptools wheel packaging ninja
"$here/pip.sh" wheel --wheel-dir "$out/pip" --no-deps mmcls
# One source under two names: its setup.py takes the name from this variable, and pip refuses one that is not as asked for.
for package in mmcv-full mmcv; do
    MMCV_WITH_OPS=$([ "$package" = mmcv ] && echo 0 || echo 1) \
        "$here/pip.sh" download --dest "$out/pip" --no-deps --no-build-isolation --no-binary "$package" "$package==1.7.2"
done
# torch is in the base; where this image had to bring the CPU build, so must the next.
if python -c 'import sys, torch; sys.exit(not torch.__file__.startswith(sys.prefix))'; then
    "$here/pip.sh" download --dest "$out/pip" --extra-index-url "$TORCH_INDEX" --requirement /requirements/cpu.txt
fi
rm /tmp/wanted.txt /tmp/missing.json /tmp/missing.txt
