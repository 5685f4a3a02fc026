"""``workspace verify_dataset``: decodes every file of a data set, in parallel, before a training stumbles over one.

In: a config. Out: a `Finding` for each file that is missing, broken or odd, and a log file of them.
"""
from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..config import Config
from ..datasets.decode import DecodeError, decode
from ..datasets.formatting import LoadImageFromFile
from ..recipes import load_config
from .arguments import add_config, add_part, checked_output
from .commands import write_whole
from .parts import datasets_of
from .table import Table

FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.png': 'PNG', '.bmp': 'BMP', '.ppm': 'PPM', '.pgm': 'PPM', '.tif': 'TIFF'}
SMALL = 16  # pixels: a shorter side than that is odd for a photograph


@dataclass(frozen=True, order=True)
class Finding:
    """`kind` is 'missing' or 'broken' (a training fails there) or 'odd' (it goes on)."""

    kind: str
    file: str
    reason: str


@dataclass
class Verification:
    """Of `count` samples, `findings` are not as they should be; `fails` if a training would stumble over one."""

    count: int
    findings: list[Finding]

    @property
    def fails(self) -> bool:
        return any(finding.kind != 'odd' for finding in self.findings)

    @property
    def table(self) -> Table:
        return Table(('kind', 'file', 'reason'), [(f.kind, f.file, f.reason) for f in self.findings])

    def __str__(self) -> str:
        kinds = Counter(finding.kind for finding in self.findings)
        return f'{self.count:,} samples: ' + ', '.join(f'{kinds[kind]} {kind}' for kind in ('missing', 'broken', 'odd'))


def verify_dataset(config: str | Config, part: str = 'train', workers: int | None = None, options: dict | None = None,
                   progress: bool = True) -> Verification:
    """Decode every file of a part of a config, as its pipeline would.

    Odd is a file with the ending of another format, in CMYK colours, of a side below 16 pixels (where most others are
    larger), of one colour only, with damage that decoders pass over, or one that is listed twice.

    Args:
        part: 'train', 'val' or 'test'.
        workers: processes; default one a core. 0 decodes in this one.

    Raises:
        ValueError: the samples are no files, but arrays in memory, which were decoded when they were loaded.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    cfg = load_config(config, options)
    results: list[tuple[str, list[Finding], int]] = []
    for dataset in datasets_of(cfg, part):
        if len(dataset) and 'img_info' not in dataset.data_infos[0]:
            raise ValueError(f'{type(dataset).__name__} holds its images in memory; there is no file to verify')
        loader: Any = DataLoader(_Checks(dataset), batch_size=32, num_workers=workers, collate_fn=list)
        with tqdm(total=len(dataset), unit='file', desc=f'verify {part}', disable=None if progress else True) as bar:
            for batch in loader:
                results += batch
                bar.update(len(batch))
    return Verification(len(results), sorted(_together(results)))


def _together(results: Sequence[tuple[str, list[Finding], int]]) -> list[Finding]:
    """What one file shows, and what only the whole set does: files listed twice, images smaller than all others."""
    findings = [finding for _, found, _ in results for finding in found]
    sides = [side for *_, side in results if side]
    if sides and np.median(sides) >= 2 * SMALL:
        findings += [Finding('odd', file, f'its shorter side is {side} pixels, the median is {np.median(sides):.0f}')
                     for file, _, side in results if 0 < side < SMALL]
    counts = Counter(file for file, *_ in results)
    return findings + [Finding('odd', file, f'listed {count} times') for file, count in counts.items() if count > 1]


class _Checks(Dataset):
    """Item i: (file, findings, shorter side in pixels or 0) of sample i."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        loads = [step for step in dataset.pipeline.steps if isinstance(step, LoadImageFromFile)]
        load = loads[0] if loads else LoadImageFromFile()
        self.decode = partial(decode, color=load.color_type, backend=load.imdecode_backend)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, list[Finding], int]:
        file = self.dataset.filename(index)
        try:
            data = Path(file).read_bytes()
            image = self.decode(data)
        except FileNotFoundError:
            return file, [Finding('missing', file, 'there is no such file')], 0
        except (DecodeError, OSError) as error:
            reason = str(error).removeprefix('<bytes>: ').partition('; replace the file')[0]
            return file, [Finding('broken', file, reason)], 0
        return file, [Finding('odd', file, reason) for reason in _oddities(file, data, image)], min(image.shape[:2])


def _oddities(file: str, data: bytes, image: np.ndarray) -> list[str]:
    reasons = []
    if (image == image[:1, :1]).all():
        reasons.append('all of it has one colour')
    try:
        with Image.open(file) as header:
            form, mode = header.format, header.mode
    except (UnidentifiedImageError, OSError):
        return [*reasons, 'Pillow does not know the format']
    expected = FORMATS.get(Path(file).suffix.lower())
    if expected and form != expected:
        reasons.append(f'the file is a {form} by its content')
    if mode == 'CMYK':
        reasons.append('CMYK colours')
    if form == 'JPEG' and mode != 'CMYK' and (damage := _damage(data)):
        reasons.append(f'decoders pass over damage: {damage}')
    return reasons


def _damage(data: bytes) -> str:
    """What libjpeg warns of; on an eighth of the size, which costs a fraction of a full decoding."""
    try:
        simplejpeg.decode_jpeg(data, 'GRAY', min_height=1, min_width=1, strict=True)
    except ValueError as error:
        return str(error)
    return ''


def write_log(verification: Verification, path: str | Path) -> None:
    """`kind<TAB>file<TAB>reason` a line, under a first line that counts them."""
    lines = [f'# {verification}', *('\t'.join((f.kind, f.file, f.reason)) for f in verification.findings)]
    write_whole(path, '\n'.join(lines) + '\n')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Exit status 1 when a file is missing or broken; odd ones alone give 0.'
    add_config(parser)
    add_part(parser, 'train')
    parser.add_argument('--workers', '--num-process', type=int, help='processes (default: one a core)')
    parser.add_argument('--out-path', default='brokenfiles.log', help='log file (default brokenfiles.log)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    log = checked_output(args.out_path, (), '--out-path')
    found = verify_dataset(args.config, args.part, args.workers, args.cfg_options)
    write_log(found, log)
    if found.findings:
        print(found.table)
    print(f'{found}; log: {log}')
    return int(found.fails)
