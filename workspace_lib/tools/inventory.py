"""Versions inside the lane, for ``make report``: CUDA toolkit, nvcc, cuDNN, PyTorch, every package; JSON on stdout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..jpeg_crop import decoder
from .versions import collect_versions


def inventory() -> dict[str, Any]:
    """What `collect_versions` says, with the CUDA that PyTorch was built for and the one to compile with."""
    packages = {
        dist.metadata['Name']: dist.version for dist in importlib.metadata.distributions() if dist.metadata['Name']
    }
    return {
        **collect_versions(),
        'lab_device': os.environ.get('LAB_DEVICE'),
        'torch_built_for_cuda': torch.version.cuda,
        'torch_archs': torch.cuda.get_arch_list(),
        'cudnn': torch.backends.cudnn.version(),
        'cuda_toolkit': cuda_toolkit(),
        'nvcc': nvcc(),
        'crop_decoding': decoder() is not None,
        'packages': dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def cuda_toolkit(folder: Path = Path('/usr/local/cuda')) -> str | None:
    """The toolkit's own version file: JSON since CUDA 11.1, a line of text before; None without a toolkit."""
    if (folder / 'version.json').exists():
        return json.loads((folder / 'version.json').read_text()).get('cuda', {}).get('version')
    if (folder / 'version.txt').exists():
        return (folder / 'version.txt').read_text().replace('CUDA Version', '').strip()
    return None


def nvcc() -> str | None:
    for program in ('nvcc', '/usr/local/cuda/bin/nvcc'):
        try:
            said = subprocess.run([program, '--version'], capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = re.search(r'release [\d.]+, V([\d.]+)', said)
        return found.group(1) if found else said.strip() or None
    return None


if __name__ == '__main__':
    print(json.dumps(inventory()))
