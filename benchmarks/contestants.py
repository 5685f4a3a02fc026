"""The loaders that are compared, each in a process of its own, so that no library sees another's.

    python benchmarks/contestants.py NAME FOLDER BATCH WORKERS

In: a folder of class folders of JPEGs. Out: JSON lines; the first says what a batch is, then each line of the standard
input runs one epoch and answers with its figures. Everyone does the same: decode, RandomResizedCrop to 224 px, flip,
batches with labels, in random order, with each library's own means. uint8 batches are what a GPU that normalises takes;
float32 ones are normalised, NCHW.
"""
from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from side_by_side import tree, tree_cpu

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Maker = Callable[[str, int, int], Iterable[Any]]


def _torch_loader(dataset: Any, batch: int, workers: int, **options: Any) -> Any:
    import torch
    return torch.utils.data.DataLoader(dataset, batch, shuffle=True, num_workers=workers,
                                       persistent_workers=workers > 0, worker_init_fn=_calm, **options)


def _calm(worker: int) -> None:
    if 'cv2' in sys.modules:
        sys.modules['cv2'].setNumThreads(0)


def ours(folder: str, batch: int, workers: int) -> Any:
    """What is left to the CPU where a GPU normalises; 'meta' is a device that takes batches and computes nothing."""
    return _ours(folder, batch, workers, device='meta')


def ours_float32(folder: str, batch: int, workers: int) -> Any:
    return _ours(folder, batch, workers)


def _ours(folder: str, batch: int, workers: int, **options: Any) -> Any:
    from images import train_steps

    from workspace_lib.datasets import CustomDataset, build_dataloader
    return build_dataloader(CustomDataset(folder, train_steps()), batch, workers, **options)


def mmcls_float32(folder: str, batch: int, workers: int) -> Any:
    from images import train_steps
    from mmcls.datasets import CustomDataset, build_dataloader
    return build_dataloader(CustomDataset(folder, train_steps()), batch, workers, dist=False, pin_memory=False,
                            persistent_workers=workers > 0)


def torchvision_pil_float32(folder: str, batch: int, workers: int) -> Any:
    from torchvision import datasets, transforms
    steps = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
                                transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return _torch_loader(datasets.ImageFolder(folder, steps), batch, workers)


def torchvision_v2_float32(folder: str, batch: int, workers: int) -> Any:
    import torch
    from torchvision.transforms import v2
    return _torchvision_v2(folder, batch, workers, [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def torchvision_v2_uint8(folder: str, batch: int, workers: int) -> Any:
    return _torchvision_v2(folder, batch, workers, [])


def _torchvision_v2(folder: str, batch: int, workers: int, end: list[Any]) -> Any:
    from torchvision import datasets
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    steps = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), *end])
    dataset = datasets.ImageFolder(folder, steps, loader=lambda path: decode_image(path, ImageReadMode.RGB))
    return _torch_loader(dataset, batch, workers)


def timm_uint8(folder: str, batch: int, workers: int) -> Any:
    """Its plain augmentation with its collate function, as its prefetcher takes them."""
    from timm.data import create_transform
    from timm.data.loader import fast_collate
    from torchvision import datasets
    steps = create_transform(224, is_training=True, use_prefetcher=True, color_jitter=None, auto_augment=None,
                             interpolation='bilinear')
    return _torch_loader(datasets.ImageFolder(folder, steps), batch, workers, collate_fn=fast_collate)


def albumentations_uint8(folder: str, batch: int, workers: int) -> Any:
    """cv2 decodes, torch's default collate."""
    os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'
    import albumentations
    import cv2
    from torchvision import datasets
    steps = albumentations.Compose([albumentations.RandomResizedCrop((224, 224)), albumentations.HorizontalFlip()])
    return _torch_loader(datasets.ImageFolder(
        folder, lambda img: steps(image=img)['image'],
        loader=lambda path: cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)), batch, workers)


def mmpretrain_uint8(folder: str, batch: int, workers: int) -> Any:
    _stand_in_for_modelindex()
    import mmpretrain.datasets
    from mmengine.dataset import default_collate
    from mmengine.utils import import_modules_from_strings
    import_modules_from_strings(['mmpretrain.datasets'])
    dataset = mmpretrain.datasets.CustomDataset(data_prefix=folder, pipeline=[
        dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=224),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')])
    return _torch_loader(dataset, batch, workers, collate_fn=default_collate)


def _stand_in_for_modelindex() -> None:
    """mmpretrain imports it for its model zoo alone; the wheel of version 0.0.2 is empty."""
    for name, member in (('', ''), ('.load_model_index', 'load'), ('.models', ''), ('.models.Model', 'Model')):
        module = types.ModuleType(f'modelindex{name}')
        module.__path__ = []  # type: ignore[attr-defined]
        setattr(module, member or '_', None)
        sys.modules[module.__name__] = module


class Dali:
    """DALI's CPU operators, `workers` threads; random crops are decoded, not whole images."""

    def __init__(self, folder: str, batch: int, workers: int) -> None:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=batch, num_threads=max(workers, 1), device_id=None, seed=0)
        def train() -> Any:
            data, label = fn.readers.file(file_root=folder, random_shuffle=True, name='reader')
            img = fn.decoders.image_random_crop(data, device='cpu', output_type=types.RGB, random_area=[0.08, 1],
                                                random_aspect_ratio=[3 / 4, 4 / 3])
            img = fn.resize(img, resize_x=224, resize_y=224, interp_type=types.INTERP_LINEAR, antialias=False)
            return fn.flip(img, horizontal=fn.random.coin_flip()), label

        self.pipeline = train()
        self.pipeline.build()
        self.batches = -(-self.pipeline.epoch_size('reader') // batch)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.batches):
            img, label = self.pipeline.run()
            yield img.as_array(), label.as_array()


def ffcv_uint8(folder: str, batch: int, workers: int) -> Any:
    """The files' own bytes in its format; its threads are numba's."""
    os.environ.setdefault('NUMBA_NUM_THREADS', str(max(workers, 1)))
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
    path = _beton(folder)
    return Loader(path, batch_size=batch, num_workers=max(workers, 1), order=OrderOption.RANDOM, os_cache=True,
                  drop_last=False, pipelines={
                      'image': [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor(),
                                ToTorchImage()],
                      'label': [IntDecoder(), ToTensor(), Squeeze()]})


def _beton(folder: str) -> str:
    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.writer import DatasetWriter
    from images import files_of
    from PIL import Image

    def as_it_is(self: Any, destination: Any, field: Any, malloc: Any) -> None:
        """Takes (bytes, width, height): its own encoder would write other JPEGs than everyone reads."""
        data, destination['width'], destination['height'] = field
        destination['mode'] = IMAGE_MODES['jpg']
        destination['data_ptr'], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, np.uint8)

    RGBImageField.encode = as_it_is
    files = files_of(folder)
    classes = {name: number for number, name in enumerate(sorted({Path(file).parent.name for file in files}))}

    class Files:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            with Image.open(files[index]) as img:
                return (Path(files[index]).read_bytes(), *img.size), classes[Path(files[index]).parent.name]

    path = f'{folder}.beton'
    with _output_to(os.devnull):  # its progress bar
        writer = DatasetWriter(path, {'image': RGBImageField(), 'label': IntField()}, num_workers=1)
        writer.from_indexed_dataset(Files())
    return path


class _output_to:
    """Sends what this process and its children print elsewhere."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.kept = os.dup(1), os.dup(2)
        with open(self.path, 'w') as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)

    def __exit__(self, *error: object) -> None:
        for number, kept in enumerate(self.kept, 1):
            os.dup2(kept, number)
            os.close(kept)


#: name: (what a batch holds, how the loader is made, the group of peers.txt that it needs)
CONTESTANTS: dict[str, tuple[str, Maker, str]] = {
    'ours': ('uint8', ours, ''),
    'torchvision v2 uint8': ('uint8', torchvision_v2_uint8, ''),
    'timm': ('uint8', timm_uint8, ''),
    'albumentations': ('uint8', albumentations_uint8, 'albumentations'),
    'mmpretrain': ('uint8', mmpretrain_uint8, 'mmpretrain'),
    'DALI CPU': ('uint8', Dali, 'dali'),
    'FFCV jpg': ('uint8', ffcv_uint8, 'ffcv'),
    'ours float32': ('float32', ours_float32, ''),
    'mmcls': ('float32', mmcls_float32, ''),
    'torchvision v2 float32': ('float32', torchvision_v2_float32, ''),
    'torchvision PIL float32': ('float32', torchvision_pil_float32, ''),
}
PATIENCE = 120  # seconds for an epoch, or for the import of a library
BENCH = Path(__file__).resolve().parents[1] / '.venv-bench'


class Absent(RuntimeError):
    """A contestant that does not take part, with the reason."""


class Contestant:
    """A loader in its process. A call runs an epoch: CPU milliseconds an image of all its processes, images a second.

    Raises:
        Absent: it is not installed, or does not start.
    """

    def __init__(self, name: str, folder: str, batch: int, workers: int) -> None:
        self.name, self.kind, group = name, CONTESTANTS[name][0], CONTESTANTS[name][2]
        python = BENCH / 'bin' / 'python' if group else Path(sys.executable)
        if group and not python.exists():
            raise Absent('not installed: benchmarks/make_peers.sh makes .venv-bench')
        if group and (reason := _reasons().get(group)):
            raise Absent(f'not installed: {reason}')
        self.errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen([str(python), __file__, name, folder, str(batch), str(workers)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        weakref.finalize(self, _end, self.process)
        self.batch = self._answer()

    def __call__(self) -> tuple[float, float]:
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        found = self._answer()
        return found['cpu_ms'], found['rate']

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        ready = select.select([self.process.stdout], [], [], PATIENCE)[0]
        line = self.process.stdout.readline() if ready else ''
        if not line:
            for pid in reversed(tree(self.process.pid) if not ready else []):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ['it said nothing']
            raise Absent(f'does not run: {said[-1]}' if ready else f'no answer in {PATIENCE} s: {said[-1]}')
        return json.loads(line)


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.communicate(timeout=20)  # the end of its input is its end
    except subprocess.TimeoutExpired:
        process.kill()


def _reasons() -> dict[str, str]:
    """What make_peers.sh could not install."""
    missing = BENCH / 'missing.txt'
    lines = missing.read_text().splitlines() if missing.exists() else []
    return {name: reason for name, _, reason in (line.partition('\t') for line in lines)}


def _image_and_label(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, dict) and 'inputs' in batch:  # mmpretrain
        return batch['inputs'], batch['data_samples']
    return (batch['img'], batch['gt_label']) if isinstance(batch, dict) else batch


def serve(name: str, folder: str, batch: int, workers: int) -> None:
    """What the process of a contestant does."""
    import logging

    import torch
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), 'w')  # libraries print what they like
    os.dup2(2, 1)
    loader = CONTESTANTS[name][1](folder, batch, workers)
    if 'cv2' in sys.modules:
        sys.modules['cv2'].setNumThreads(0)
    img, label = _image_and_label(next(iter(loader)))
    print(json.dumps(dict(shape=[*img.shape], dtype=str(img.dtype), labels=len(label))), file=answers, flush=True)
    before = tree_cpu()
    for _ in sys.stdin:
        count, start = 0, time.perf_counter()
        for one in loader:
            count += len(_image_and_label(one)[0])
        seconds, now = time.perf_counter() - start, tree_cpu()
        # since the end of the epoch before: some (DALI) go on with the next batches while others have their turn
        used, before = now - before, now
        print(json.dumps(dict(cpu_ms=used / count * 1e3, rate=count / seconds)), file=answers, flush=True)


if __name__ == '__main__':
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
