"""What ran: versions of everything that can change a result, for ``report.json`` beside a run and in a report."""
from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .. import __version__

PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python-headless', 'simplejpeg', 'timm', 'mmcv', 'mmcv-full',
            'mmcls', 'jupyterlab')


def collect_versions() -> dict[str, Any]:
    """A flat dictionary of strings and numbers: library, commit, Python, packages (None: not there), hardware."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {'workspace-lib': __version__, 'commit': _commit(), 'python': sys.version.split()[0],
            **{name: _version(name) for name in PACKAGES},
            'cuda': torch.version.cuda if gpus else None,
            'cudnn': torch.backends.cudnn.version() if gpus else None,
            'gpus': ', '.join(gpus) or None, 'system': platform.platform(), 'cores': os.cpu_count()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a plus sign if files differ from it; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / '.git').exists():
        return None
    try:
        described = subprocess.run(['git', '-C', str(root), 'describe', '--always', '--dirty=+', '--abbrev=12'],
                                   capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
