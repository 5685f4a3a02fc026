"""How fast ImageNet is unpacked and resized, against the usual script, a plain copy, and the codecs alone; and in how
much memory. Exit status 1 where an aim is missed.

    python benchmarks/bench_prepare.py                        # 2 GB of archives, 23 GB of disk for a while
    python benchmarks/bench_prepare.py --size 0.2 --rounds 1 --folder /mnt/data

Contestants take turns (A B A B ...); the archives are out of the page cache before each turn. What they leave is
removed at the end and not between turns: ext4 hands no inode out again for minutes, but looks at each of those for
every new file, so that whoever comes after thousands of deletions pays for them.
"""
from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 20
LEAST = 2.0  # GB
VAL_SHARE = 6.7 / 148  # of the bytes, as in the real archives
USUAL = r'''
set -e
mkdir -p "$2/train" "$2/val"; cd "$2/train"
tar -xf "$1/ILSVRC2012_img_train.tar"
for file in *.tar; do mkdir -p "${file%.tar}"; tar -xf "$file" -C "${file%.tar}"; rm -f "$file"; done
cd ../val
tar -xf "$1/ILSVRC2012_img_val.tar"
while read -r name class; do mkdir -p "$class"; mv "$name" "$class/"; done < "$1/val_classes.txt"
'''


def wnids() -> list[str]:
    return [f'n{number:08}' for number in range(1440764, 1440764 + CLASSES)]


def photograph(noise: Any) -> bytes:
    """A JPEG of 500 x 375 pixels and 108 KB with contrast at every scale: resized to 256 and 400 pixels it takes 27 and
    35 KB, as ImageNet's 110 KB become 28 and 35."""
    import cv2
    import numpy as np
    img, cells = np.full((375, 500, 3), 128, np.float32), 2
    while cells <= 375:
        layer = noise.normal(0, 1, (cells, cells * 4 // 3, 1)) + 0.3 * noise.normal(0, 1, (cells, cells * 4 // 3, 3))
        img += cv2.resize(layer.astype(np.float32), (500, 375), interpolation=cv2.INTER_CUBIC) * 60 * (2 / cells) ** 0.5
        cells *= 2
    img += noise.normal(0, 6, img.shape).astype(np.float32)
    return cv2.imencode('.jpg', img.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 96])[1].tobytes()


def pictures(count: int) -> list[bytes]:
    import numpy as np
    noise = np.random.default_rng(0)
    return [photograph(noise) for _ in range(count)]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def generate(folder: Path, size: float, images: list[bytes]) -> dict[str, Any]:
    """Train, val and devkit in `folder`; returns what `ImageNetFacts` says of them, without sums."""
    import numpy as np
    import scipy.io
    mean = sum(map(len, images)) / len(images)
    each, val_each = round(size / CLASSES / mean), max(1, round(size * VAL_SHARE / CLASSES / mean))
    with tarfile.open(folder / 'ILSVRC2012_img_train.tar', 'w') as tar:
        for label, wnid in enumerate(wnids()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode='w') as one:
                for number in range(each):
                    add(one, f'{wnid}_{number}.JPEG', images[(label * each + number) % len(images)])
            add(tar, f'{wnid}.tar', inner.getvalue())
    count = CLASSES * val_each
    with tarfile.open(folder / 'ILSVRC2012_img_val.tar', 'w') as tar:
        for number in range(1, count + 1):
            add(tar, f'ILSVRC2012_val_{number:08}.JPEG', images[number % len(images)])
    classes = [number % CLASSES for number in range(1, count + 1)]
    (folder / 'val_classes.txt').write_text(''.join(
        f'ILSVRC2012_val_{number:08}.JPEG {wnids()[label]}\n' for number, label in enumerate(classes, 1)))
    synsets = np.zeros((CLASSES, 1), [(name, object) for name in ('ILSVRC2012_ID', 'WNID', 'words', 'num_children')])
    for label, wnid in enumerate(wnids()):
        synsets[label, 0] = label + 1, wnid, wnid, 0
    mat = io.BytesIO()
    scipy.io.savemat(mat, {'synsets': synsets})
    with tarfile.open(folder / 'ILSVRC2012_devkit_t12.tar.gz', 'w:gz') as tar:
        add(tar, 'data/meta.mat', mat.getvalue())
        add(tar, 'data/ILSVRC2012_validation_ground_truth.txt', ''.join(f'{label + 1}\n' for label in classes).encode())
    return {'classes': CLASSES, 'train_images': CLASSES * each, 'val_images': count}


def child(facts: str, archives: str, dest: str, options: str) -> None:
    """What runs in a process of its own: one preparation."""
    from workspace_lib.tools.prepare import prepare_imagenet
    from workspace_lib.tools.prepare.archives import Archive
    from workspace_lib.tools.prepare.sources import ImageNetFacts
    official = ImageNetFacts()
    unsummed = {key: Archive(getattr(official, key).name) for key in ('train', 'val', 'devkit')}
    prepare_imagenet(archives or None, dest, facts=ImageNetFacts(**unsummed, **json.loads(facts)), progress=False,
                     val_layout='folders', **json.loads(options))


def forget(folder: Path) -> None:
    """Put the archives out of the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def tree_pss(pid: int) -> int:
    """Bytes of a process and all below it in memory; pages that several share count once."""
    total, pids = 0, [pid]
    while pids:
        try:
            at = pids.pop()
            pss = re.search(r'^Pss: +(\d+) kB', Path(f'/proc/{at}/smaps_rollup').read_text(), re.MULTILINE)
            total += int(pss[1]) * 1024 if pss else 0
            for task in Path(f'/proc/{at}/task').iterdir():
                pids += map(int, (task / 'children').read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


class Bench:
    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.archives, self.facts, self.folder = folder / 'archives', facts, folder
        self.peak = 0

    def usual(self, out: Path) -> float:
        """Seconds of the script alone; then comes a sync."""
        start = time.perf_counter()
        subprocess.run(['bash', '-c', USUAL, 'usual', str(self.archives), str(out)], check=True)
        seconds = time.perf_counter() - start
        subprocess.run(['sync', '-f', str(self.folder)], check=True)
        return seconds

    def copied(self, out: Path) -> None:
        out.mkdir()
        for path in self.archives.iterdir():
            with path.open('rb') as source, (out / path.name).open('wb') as target:
                shutil.copyfileobj(source, target, 1 << 20)
                os.fsync(target.fileno())

    def unpacked(self, out: Path) -> None:
        self.ours(out, str(self.archives))

    def ours(self, out: Path, archives: str = '', **options: Any) -> None:
        running = subprocess.Popen([sys.executable, __file__, '--child', json.dumps(self.facts), archives, str(out),
                                    json.dumps(options)],
                                   env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.DEVNULL)
        while running.poll() is None:
            self.peak = max(self.peak, tree_pss(running.pid))
            time.sleep(0.1)  # often enough to see the peak, and no load of its own
        if running.returncode:
            raise SystemExit(f'the preparation ended with {running.returncode}')

    def in_turns(self, contestants: dict[str, Callable[[Path], float | None]], rounds: int) -> dict[str, list[float]]:
        """Seconds of each; of one that says how long its first part took, that, too."""
        seconds: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        for turn in range(rounds):
            for name, run in contestants.items():
                forget(self.archives)
                subprocess.run(['sync', '-f', str(self.folder)], check=True)
                start, start_cpu = time.perf_counter(), cpu_seconds()
                out = self.folder / f'{run.__name__}{turn}'
                part = run(out)
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                cpu.setdefault(name, []).append(cpu_seconds() - start_cpu)
                if part:
                    seconds.setdefault(f'{name}, without its sync', []).append(part)
                if run == self.copied:
                    shutil.rmtree(out)  # a few large files
        print('\nCPU seconds: ' + ', '.join(f'{name} {statistics.median(used):.1f}' for name, used in cpu.items()))
        return seconds


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def codec_rate(images: list[bytes], rounds: int) -> float:
    """Pictures a second of one core, for the decode, resize and encode calls alone."""
    import cv2
    import simplejpeg
    cv2.setNumThreads(0)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for data in images:
            img = simplejpeg.decode_jpeg(data, 'BGR')
            height, width = img.shape[:2]
            scale = 256 / min(height, width)
            small = cv2.resize(img, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
            cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 90])
        seconds.append(time.process_time() - start)
    return len(images) / statistics.median(seconds)


def md5_rate(path: Path) -> float:
    start, digest = time.perf_counter(), hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return path.stat().st_size / (time.perf_counter() - start)


def show(title: str, figures: dict[str, list[float]], amount: float) -> dict[str, float]:
    print(f'\n{title}\n{"":34}{"seconds":>10}{"least":>9}{"most":>9}{"MB/s":>9}')
    for name, seconds in figures.items():
        median = statistics.median(seconds)
        print(f'{name:34}{median:10.2f}{min(seconds):9.2f}{max(seconds):9.2f}{amount / median / 1e6:9.0f}')
    return {name: statistics.median(seconds) for name, seconds in figures.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=float, default=2.0, help='GB of images')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--folder', help='where there is room; default: the folder for temporary files')
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True,
                            cwd=ROOT).stdout.strip()
    print(f'{" ".join(sys.argv)}\ncommit {commit}, Python {platform.python_version()}, {cores} cores, '
          f'{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds')
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder, need = Path(temporary), args.size * (4.5 + 2.4 * args.rounds)
        if shutil.disk_usage(folder).free < need * 1e9:
            print(f'skipped: {folder} has no {need:.0f} GB free; --folder names another place')
            return 0
        (folder / 'archives').mkdir()
        images = pictures(256)
        bench = Bench(folder, generate(folder / 'archives', args.size * 1e9, images))
        return judged([*unpacking(bench, args.rounds), *copying(bench, images, args.rounds, cores)], args.size)


def judged(aims: list[tuple[str, bool]], size: float) -> int:
    """Say which aims are met, and give the exit status."""
    print()
    for text, is_met in aims:
        print(f'{"met   " if is_met else "MISSED"}  {text}')
    if size < LEAST:
        print(f'(the aims are for archives of {LEAST:g} GB and more)')
        return 0
    return int(not all(is_met for _, is_met in aims))


def unpacking(bench: Bench, rounds: int) -> list[tuple[str, bool]]:
    """The aims for the archives, and whether each is met."""
    amount = sum(path.stat().st_size for path in bench.archives.iterdir())
    count = bench.facts['train_images'] + bench.facts['val_images']
    found = show(f'{count:,} images, {amount / 1e9:.2f} GB', bench.in_turns({
        'the usual script': bench.usual, 'copy of the archives, fsync': bench.copied, 'unpacked': bench.unpacked},
        rounds), amount)
    ours, usual, copy = found['unpacked'], found['the usual script'], found['copy of the archives, fsync']
    print(f'over the usual script: {usual / ours:.2f}x '
          f'({found["the usual script, without its sync"] / ours:.2f}x over it without a sync); '
          f'over the copy: {copy / ours:.2f}')
    print(f'MD5 before the first run: {md5_rate(bench.archives / "ILSVRC2012_img_train.tar") / 1e6:.0f} MB/s, one core')
    print(f'memory of all processes at most: {bench.peak / 1e6:.0f} MB')
    return [(f'unpacking in {ours:.2f} s: 3x as fast as the usual script ({usual / 3:.2f} s), or 0.8 as fast as the '
             f'copy ({copy / 0.8:.2f} s)', ours <= max(usual / 3, copy / 0.8))]


def copying(bench: Bench, images: list[bytes], rounds: int, cores: int) -> list[tuple[str, bool]]:
    """The aims for training copies, which are added to the tree of the last round."""
    tree, count = bench.folder / f'unpacked{rounds - 1}', bench.facts['train_images']
    shares, rates, cpu_shares = [], [], []
    for turn in range(rounds):
        before = codec_rate(images, 3)
        start, start_cpu = time.perf_counter(), cpu_seconds()
        bench.ours(tree, short=256)
        rates.append(count / (time.perf_counter() - start))
        used = cpu_seconds() - start_cpu
        alone = (before + codec_rate(images, 3)) / 2
        shares.append(rates[-1] / (cores * alone))
        cpu_shares.append(count / used / alone)
        for made in ('train_short256', '.prepare/units/train_short256'):
            (tree / made).rename(bench.folder / f'{Path(made).parent.name}{turn}')
    share = statistics.median(shares)
    print(f'\n--resize 256: {statistics.median(rates):.0f} images/s, {share:.1%} of {cores} cores '
          f'x the rate of decode, resize and encode alone (least {min(shares):.1%}, most {max(shares):.1%})')
    print(f'of the CPU time that it used, {statistics.median(cpu_shares):.1%} went into those calls')
    start = time.perf_counter()
    bench.ours(tree, short=256, pack=True)
    print(f'--pack: {count / (time.perf_counter() - start):.0f} images/s')
    print(f'memory of all processes at most: {bench.peak / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}')
    return [(f'--resize: 90 % of the cores at the rate of decode, resize and encode alone: {share:.1%}', share >= 0.9),
            (f'memory below 500 MB: {bench.peak / 1e6:.0f} MB', bench.peak < 500e6)]


if __name__ == '__main__':
    sys.exit(child(*sys.argv[2:]) if sys.argv[1:2] == ['--child'] else main())  # type: ignore[func-returns-value]
