"""What ran: versions of everything that can change a result, for ``report.json`` beside a run and in a report."""
from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..dist import get_dist_info

logger = logging.getLogger(__name__)

PACKAGES = ('torch', 'torchvision', 'numpy', 'opencv-python-headless', 'simplejpeg', 'timm', 'mmcv', 'mmcv-full',
            'mmcls', 'jupyterlab')


def collect_versions() -> dict[str, Any]:
    """A flat dictionary of strings and numbers: library, commit, Python, packages (None: not there), hardware."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {'workspace-lib': __version__, 'commit': _commit(), 'python': sys.version.split()[0],
            **{name: _version(name) for name in PACKAGES},
            'cuda': torch.version.cuda if gpus else None,
            'cudnn': torch.backends.cudnn.version() if gpus else None,
            'gpus': ', '.join(gpus) or None, 'cpu': torch.backends.cpu.get_cpu_capability(),
            'system': platform.platform(), 'cores': os.cpu_count()}


def collect_run(config: str, arguments: dict[str, Any], weights: str | None = None) -> dict[str, Any]:
    """What ``workspace rerun`` needs besides config and versions.

    Args:
        config: the name of the dumped config in the run's folder.
        arguments: of ``commands.train``, those that the dumped config does not hold.
        weights: the checkpoint that the run begins with; of a file, the report keeps the SHA-256.
    """
    return dict(config=config, arguments=arguments, folder=os.getcwd(), threads=torch.get_num_threads(),
                processes=get_dist_info()[1], weights=weights, weights_sha256=sha256(weights))


def earlier_parts(folder: Path, resume_from: str | None) -> dict[str, list[dict[str, Any]]]:
    """``earlier``: the reports of what the run in `folder` did before it goes on from `resume_from`, oldest first.

    Returns:
        Nothing of a run that begins. A report that cannot be read is passed over with a warning: the training matters.
    """
    file = folder / 'report.json'
    if not resume_from or Path(resume_from).resolve().parent != folder.resolve() or not file.is_file():
        return {}
    try:
        report = json.loads(file.read_text())
        earlier = report.pop('earlier', [])
        return dict(earlier=[*earlier, report] if 'run' in report else earlier)
    except (ValueError, AttributeError) as error:
        logger.warning('%s cannot be read, so what it tells of the earlier parts is lost: %s', file, error)
        return {}


def sha256(file: str | None) -> str | None:
    """Of a file on this machine; None for none, and for a name or an address."""
    if file is None or not Path(file).is_file():
        return None
    with open(file, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def uncommitted_changes() -> str:
    """What the checkout's files have beyond its commit, as a patch; new files that git does not know are not in it."""
    return _git('diff', 'HEAD', '--binary') or ''


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a plus sign if files differ from it; None for an installed package."""
    return (_git('describe', '--always', '--dirty=+', '--abbrev=12') or '').strip() or None


def _git(*words: str) -> str | None:
    root = Path(__file__).parents[2]
    if not (root / '.git').exists():
        return None
    try:
        return subprocess.run(['git', '-C', str(root), *words], capture_output=True, text=True, timeout=10,
                              errors='replace').stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
