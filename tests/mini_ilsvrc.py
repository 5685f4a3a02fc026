"""A miniature ILSVRC2012: real formats and all the oddities, 20 classes, a few kilobytes an archive.

As a program, `python mini_ilsvrc.py FACTS KILL ARGUMENTS...` is the command line of data preparation with the
miniature's sizes and sums, which is killed at an operation on the disk. KILL is `PHASE:N` (the N-th of a phase),
`PHASE.NAME:N` (the N-th of that name in it), `:N` (the N-th of all), or 0 (none).
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workspace_lib.tools.prepare import cli, download
from workspace_lib.tools.prepare.archives import Archive
from workspace_lib.tools.prepare.coco import CocoFacts
from workspace_lib.tools.prepare.disk import Disk
from workspace_lib.tools.prepare.sources import ImageNetFacts

CLASSES = 20
VAL_EACH = 2
TEST_IMAGES = CLASSES * VAL_EACH
OFFICIAL = ImageNetFacts()


def wnids() -> list[str]:
    return [f'n{number:08}' for number in range(1440764, 1440764 + 7919 * CLASSES, 7919)]


def id_of(label: int) -> int:
    """ILSVRC2012_ID of a label: another order, as in the real devkit."""
    return (label * 7 + 3) % CLASSES + 1


def val_labels() -> list[int]:
    return [(number * 3 + number // CLASSES) % CLASSES for number in range(CLASSES * VAL_EACH)]


def picture(seed: int, kind: str = 'color', size: tuple[int, int] = (48, 36)) -> bytes:
    """A smooth picture of (width, height): 'color', 'gray', 'cmyk', 'png', 'exif' (turned by 90 degrees)."""
    import numpy as np
    from PIL import Image
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    out, options = io.BytesIO(), {'quality': 90}
    if kind == 'exif':
        options['exif'] = (exif := Image.Exif())
        exif[0x0112] = 6
    image = image.convert({'gray': 'L', 'cmyk': 'CMYK'}.get(kind, 'RGB'))
    image.save(out, 'PNG' if kind == 'png' else 'JPEG', **({} if kind == 'png' else options))
    return out.getvalue()


def kind_of(label: int, number: int) -> str:
    odd = {(0, 1): 'png', (1, 0): 'cmyk', (2, 2): 'gray', (3, 1): 'exif', (19, 0): 'cmyk'}
    return odd.get((label, number), 'color')


def images_of(label: int) -> dict[str, bytes]:
    """Name and content of the images of a class: 3 to 6."""
    return {f'{wnids()[label]}_{number * 13 + 5}.JPEG': picture(100 * label + number, kind_of(label, number))
            for number in range(3 + label % 4)}


def add(tar: tarfile.TarFile, name: str, data: bytes, **about: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in about.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def inner_tar(label: int, extra: Iterable[tuple[str, bytes, dict]] = ()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as tar:
        for name, data in images_of(label).items():
            if label == 4:
                add(tar, f'._{name}', b'not an image')
            add(tar, name, data)
        for name, data, about in extra:
            add(tar, name, data, **about)
    return out.getvalue()


def make_devkit(path: Path) -> None:
    write_devkit(path, [(id_of(label), wnid, f'class {label}, kind {label}', len(images_of(label)))
                        for label, wnid in enumerate(wnids())], [id_of(label) for label in val_labels()])


def write_devkit(path: Path, classes: list[tuple[int, str, str, int]], truth: list[int]) -> None:
    """`classes` as (ID, wnid, words, number of images), and the ID of each val image."""
    import numpy as np
    import scipy.io
    fields = ['ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children', 'children', 'wordnet_height',
              'num_train_images']
    rows = [(number, wnid, words, f'about {wnid}', 0, np.zeros(0), 0, count) for number, wnid, words, count in classes]
    rows += [(len(classes) + 1 + number, f'n{number:08}', f'group {number}', '', 2, np.array([1, 2]), 1, 0)
             for number in range(5)]
    rows.sort(key=lambda row: row[0])
    synsets = np.zeros((len(rows), 1), [(field, object) for field in fields])
    for number, row in enumerate(rows):
        synsets[number, 0] = row
    mat = io.BytesIO()
    scipy.io.savemat(mat, {'synsets': synsets})
    lines = ''.join(f'{number}\n' for number in truth).encode()
    with tarfile.open(path, 'w:gz') as tar:
        add(tar, 'ILSVRC2012_devkit_t12/data/meta.mat', mat.getvalue())
        add(tar, 'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt', lines)
        add(tar, 'ILSVRC2012_devkit_t12/readme.txt', b'read me')


def val_images() -> dict[str, bytes]:
    return {f'ILSVRC2012_val_{number:08}.JPEG': picture(5000 + number, 'cmyk' if number == 7 else 'color')
            for number in range(1, CLASSES * VAL_EACH + 1)}


def test_images() -> dict[str, bytes]:
    return {name.replace('_val_', '_test_'): data for name, data in val_images().items()}


def make_test(folder: Path, images: dict[str, bytes]) -> None:
    """The archive of the test images, which lie in a folder of it."""
    with tarfile.open(folder / OFFICIAL.test.name, 'w') as tar:
        add(tar, 'test', b'', type=tarfile.DIRTYPE)
        for name, data in images.items():
            add(tar, f'test/{name}', data)


def make(folder: Path, extra: dict[int, list[tuple[str, bytes, dict]]] | None = None) -> ImageNetFacts:
    """The three archives in `folder`; `extra` members by label. Returns what is true of them."""
    folder.mkdir(parents=True, exist_ok=True)
    make_devkit(folder / OFFICIAL.devkit.name)
    with tarfile.open(folder / OFFICIAL.train.name, 'w') as tar:
        for label, wnid in reversed([*enumerate(wnids())]):
            add(tar, f'{wnid}.tar', inner_tar(label, (extra or {}).get(label, ())))
        add(tar, '._n01440764.tar', b'not a tar')
    with tarfile.open(folder / OFFICIAL.val.name, 'w') as tar:
        add(tar, '._ILSVRC2012_val_00000001.JPEG', b'not an image')
        for name, data in val_images().items():
            add(tar, name, data)
    return facts_of(folder)


def facts_of(folder: Path) -> ImageNetFacts:
    archives = {}
    for key in ('train', 'val', 'devkit'):
        name = getattr(OFFICIAL, key).name
        data = (folder / name).read_bytes()
        archives[key] = Archive(name, len(data), hashlib.md5(data).hexdigest())
    count = sum(len(images_of(label)) for label in range(CLASSES))
    return ImageNetFacts(**archives, classes=CLASSES, train_images=count, val_images=CLASSES * VAL_EACH,
                         test_images=TEST_IMAGES)


def make_kaggle(folder: Path) -> ImageNetFacts:
    """Kaggle's folders."""
    data = folder / 'ILSVRC/Data/CLS-LOC'
    for label, wnid in enumerate(wnids()):
        (data / 'train' / wnid).mkdir(parents=True)
        for name, content in images_of(label).items():
            (data / 'train' / wnid / name).write_bytes(content)
    for part in ('val', 'test'):
        (data / part).mkdir()
    for name, content in val_images().items():
        (data / 'val' / name).write_bytes(content)
    for name, content in test_images().items():
        (data / 'test' / name).write_bytes(content)
    (data / 'val' / '._ILSVRC2012_val_00000001.JPEG').write_bytes(b'not an image')
    (folder / 'LOC_synset_mapping.txt').write_text(''.join(
        f'{wnid} class {label}, kind {label}\n' for label, wnid in enumerate(wnids())))
    lines = [f'ILSVRC2012_val_{number:08},{wnids()[label]} 1 2 3 4 {wnids()[label]} 5 6 7 8 \n'
             for number, label in enumerate(val_labels(), 1)]
    (folder / 'LOC_val_solution.csv').write_text('ImageId,PredictionString\n' + ''.join(reversed(lines)))
    count = sum(len(images_of(label)) for label in range(CLASSES))
    return ImageNetFacts(classes=CLASSES, train_images=count, val_images=CLASSES * VAL_EACH, test_images=TEST_IMAGES)


def facts_text(facts: ImageNetFacts | CocoFacts) -> str:
    return json.dumps(asdict(facts))


def facts_from(text: str) -> Any:
    found = {key: Archive(**value) if isinstance(value, dict) else value for key, value in json.loads(text).items()}
    return (ImageNetFacts if 'devkit' in found else CocoFacts)(**found)


def make_official(folder: Path, facts: ImageNetFacts) -> None:
    """In `folder`, what makes the real scripts take the miniature for the official archives, if it is in PYTHONPATH."""
    folder.mkdir()
    (folder / 'facts.json').write_text(facts_text(facts))
    (folder / 'sitecustomize.py').write_text("""import json
from pathlib import Path

from workspace_lib.tools.prepare import run
from workspace_lib.tools.prepare.archives import Archive

found = json.loads(Path(__file__).with_name('facts.json').read_text())
facts = run.ImageNetFacts(**{
    key: Archive(**value) if isinstance(value, dict) else value for key, value in found.items()})
run.ImageNetFacts = lambda: facts
""")


PHASES = ('checks', 'train', 'val', 'copy', 'map', 'meta', 'manifest')


def phase_of(path: Path) -> str:
    """What an operation on `path` belongs to."""
    places = {'meta': 'meta', 'train_short24.pack': 'map', 'train_short24': 'copy', 'train': 'train', 'val': 'val',
              'val.txt': 'val'}
    if path.name.startswith('manifest.json'):
        return 'manifest'
    return next((phase for place, phase in places.items() if place in path.parts), 'checks')


OPERATIONS = ('make_folder', 'write', 'allocate', 'write_at', 'sync', 'sync_folder', 'sync_file', 'rename', 'remove')


def counted(disk: type[Disk]) -> type[Disk]:
    """`disk` whose operations first call its `step(name, path, *args)`."""
    def count(name: str) -> Any:
        def method(self: Any, path: Path, *args: Any) -> Any:
            self.step(name, path, *args)
            return getattr(Disk, name)(self, path, *args)
        return method
    return type(disk.__name__, (disk,), {name: count(name) for name in OPERATIONS})


@counted
class KillingDisk(Disk):
    """Kills the main process at its `at`-th operation that belongs to `where`, counted over all processes: before
    it, and of what is written half is there."""

    def __init__(self, where: str, at: int, log: str) -> None:
        self.where, self.at, self.log, self.main = where, at, log, os.getpid()

    def step(self, name: str, path: Path, *args: Any) -> None:
        with open(self.log, 'a+') as log:
            print(f'{phase_of(path)}.{name}', file=log, flush=True)
            log.seek(0)
            fatal = self.at and count_of(log.read(), self.where) >= self.at
        if fatal:
            if name == 'write':
                data = b''.join(args[0])
                path.write_bytes(data[:len(data) // 2])
            elif name == 'write_at':
                Disk().write_at(path, args[0], bytes(args[1])[:len(args[1]) // 2])
            os.kill(self.main, signal.SIGKILL)
            time.sleep(60)


def count_of(log: str, where: str) -> int:
    """How many of the operations in a log belong to `PHASE`, `PHASE.NAME` or '' (all)."""
    return sum(where in ('', line, line.partition('.')[0]) for line in log.split())


def tree_of(dest: Path) -> dict[str, str | None]:
    """Every file below with the hash of its content, every folder with None; but for locks, which name a process
    where that was killed."""
    return {str(path.relative_to(dest)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            for path in sorted(dest.rglob('*')) if path.name not in ('lock', '.download.lock')}


if __name__ == '__main__':
    facts_file, kill, *arguments = sys.argv[1:]
    log_file = facts_file + '.log'
    Path(log_file).unlink(missing_ok=True)
    download.CHUNK = 1000  # archives of a few kilobytes come in several pieces, too
    sys.exit(cli.main(arguments, facts_from(Path(facts_file).read_text()), KillingDisk(
        kill.partition(':')[0], int(kill.rpartition(':')[2]), log_file)))
