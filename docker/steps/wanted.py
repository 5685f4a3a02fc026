"""wanted.py PYPROJECT EXTRA...: print what the library and its extras ask for, without torch and mmcv.

torch is the base image's; mmcv with its ops comes from a stage of its own, and mmcls beside it.
"""

import re
import sys
import tomllib
from pathlib import Path

ELSEWHERE = re.compile(r'(torch|torchvision|mmcv|mmcls)\b')

project = tomllib.loads(Path(sys.argv[1]).read_text())['project']
wanted = [
    *project['dependencies'],
    *(line for extra in sys.argv[2:] for line in project['optional-dependencies'][extra]),
]
print('\n'.join(line for line in dict.fromkeys(wanted) if not ELSEWHERE.match(line)))
