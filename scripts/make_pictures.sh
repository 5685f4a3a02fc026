#!/usr/bin/env bash
# The README's pictures, made anew: make up, then `make pictures`. They are what the browser test photographed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
shots=$(mktemp -d)
trap 'rm -rf "$shots"' EXIT
SCREENSHOTS=$shots "$python" -m pytest -q -m browser tests/browser
mkdir -p docs/pictures
"$python" - "$shots" <<'PYTHON'
import sys
from pathlib import Path
from PIL import Image

for shot, name in (('2_opened', 'lab'), ('4_widget', 'tour')):
    target = Path('docs/pictures', f'{name}.webp')
    Image.open(Path(sys.argv[1], f'{shot}.png')).convert('RGB').save(target, quality=80, method=6)
    print(f'{target}: {target.stat().st_size // 1000} KB')
PYTHON
