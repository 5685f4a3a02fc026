"""The images of a benchmark: a folder of class folders, of real photographs or of generated ones.

In: `--images DIR` or how many to generate. Out: a folder, and the paths of its JPEGs.
"""
from __future__ import annotations

import os
from pathlib import Path

from bench_prepare import pictures

#: What a training pipeline of ImageNet says, but for the size.
END = [dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
       dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['gt_label']),
       dict(type='Collect', keys=['img', 'gt_label'])]


def train_steps(size: int = 224) -> list[dict]:
    return [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', size=size), dict(type='RandomFlip'), *END]


def files_of(folder: str | Path) -> list[str]:
    """The JPEGs in the class folders, sorted.

    Raises:
        SystemExit: there is none.
    """
    found = sorted(str(path) for path in Path(folder).glob('*/*') if path.suffix.lower() in ('.jpg', '.jpeg'))
    if not found:
        raise SystemExit(f'--images {folder}: no JPEG in folders of classes there')
    return found


def prepare(source: str | None, generated: int, folder: Path, copies: int = 1,
            most: int | None = None) -> tuple[str, str]:
    """A folder of links to the images of `source`, or to generated ones; and what they are, in words.

    Args:
        copies: names for each image, so that an epoch is long enough to measure.
        most: images that are taken, spread over the classes; None takes all.
    """
    if source is None:
        _generate(folder / 'generated', generated)
    files = files_of(source or folder / 'generated')
    files = files[::-(-len(files) // most)] if most else files
    for number, path in enumerate(files):
        name = Path(path)
        (folder / 'images' / name.parent.name).mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            os.symlink(os.path.abspath(path), folder / 'images' / name.parent.name / f'{copy}_{number}.jpg')
    size = sum(os.path.getsize(path) for path in files) / len(files) / 1e3
    return str(folder / 'images'), f'{len(files)} {"real" if source else "generated"} images, mean {size:.0f} KB'


def _generate(folder: Path, count: int) -> None:
    for number, data in enumerate(pictures(count)):
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (folder / str(number % 2) / f'{number}.jpg').write_bytes(data)
