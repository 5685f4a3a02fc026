"""lock.py FILE...: one lock from those that are there. A later one wins; torch stays as this environment has it."""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

# What comes with a base image, or belongs to a torch that was built otherwise than the repository's lock says.
OF_THE_BASE = re.compile(r'torch|torchvision|torchaudio|triton|mmcv|(nvidia|cuda)-(?!ml-py)')


def pins(file: str) -> dict[str, str]:
    lines = (line.partition('#')[0].strip() for line in Path(file).read_text().splitlines())
    return {line.partition('==')[0].lower().replace('_', '-'): line for line in lines if '==' in line}


def installed(name: str) -> str | None:
    try:
        return f'{name}=={importlib.metadata.version(name)}'
    except importlib.metadata.PackageNotFoundError:
        return None


lock: dict[str, str] = {}
for path in filter(os.path.exists, sys.argv[1:]):
    lock.update(pins(path))
kept = {name: line for name, line in lock.items() if not OF_THE_BASE.match(name)}
kept.update({name: line for name in ('torch', 'torchvision', 'triton') if (line := installed(name))})
print('\n'.join(kept[name] for name in sorted(kept)))
