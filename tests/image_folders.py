"""A data set of noise, one folder a class: what a training can be tried on in seconds."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np


def image_folders(root: Path, classes: Iterable[str], each: int, size: int) -> Path:
    """`each` square PNGs of `size` pixels in the folder of each class, the same at every call."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            cv2.imwrite(str(root / name / f'{number}.png'), rng.integers(0, 256, (size, size, 3), np.uint8))
    return root
