"""Training speed on a GPU: beside eager peers, over layouts and batch sizes, fed from files, CIFAR-10 to accuracy.

    python benchmarks/bench_gpu.py [--images DIR] [--cifar10 DIR] [--minutes 9] [--part speed fed] [--out DIR]
    python benchmarks/bench_gpu.py --device cpu --part keys      # what keys are worth on a CPU: processor time
    python benchmarks/bench_gpu.py --device cpu --toy            # does it run, not how fast

The part `keys` is an A/B of each key of speed, one switched at a time (docs/performance.md has their table). Each part
is a process with a share of the time; it writes gpu_PART.json after every figure, so that what ends it early, the time
or a crash, costs the rest of that part alone. 20 steps of warm-up and 100 timed by the device's events, contestants in
turns (A B A B ...). Needs torch, torchvision and what the library imports (OpenCV, simplejpeg, PyYAML, tqdm, scipy);
timm and nvidia-ml-py take part where they are installed.
"""
from __future__ import annotations

import argparse
import gc
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_steps import Endless, Enough, NotCompiled, Size, Synthetic, Training, between, check_compiled, moment, turns
from side_by_side import ROOT, Results, arguments, counted, parsed, ratio, write_readme
from torch import nn

from workspace_lib.apis import build_loader, build_training, load_config, set_random_seed, single_gpu_test
from workspace_lib.datasets import CustomDataset, build_dataset
from workspace_lib.device import Precision
from workspace_lib.hooks import Hook
from workspace_lib.models import build_classifier

#: Part: its share of the time. Those with aims come first.
PARTS = {'speed': 0.3, 'fed': 0.18, 'cifar10': 0.2, 'keys': 0.14, 'sweep': 0.18}
OURS = 'ours: bf16, NHWC, compile'
CIFAR10_AIM = '>= 95'  # of ResNet-18 in 200 epochs; 94 is the mark of the speed run, another recipe


def peer(model: nn.Module, loader: Synthetic, size: Size, device: torch.device) -> Callable[[], float]:
    """A bare eager loop in bf16 autocast, NHWC. Measures images a second."""
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def measure() -> float:
        moments = []
        for step, batch in zip(range(size.warm + size.timed + 1), loader, strict=False):
            if step in (size.warm, size.warm + size.timed):
                moments.append(moment(device))
            if step == size.warm + size.timed:
                break
            with torch.autocast(device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(model(batch['img']), batch['gt_label'])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return len(loader.batch['img']) * size.timed / between(*moments)
    return measure


def on_an_h200(results: Results, what: str, figure: float | None, bound: str, unit: str = 'x') -> None:
    """An aim that was set for one card; on another the figure is told, and not judged. None: it could not compile."""
    name = results.content['device']
    results.aim(what, figure, bound, unit, 'not compiled',
                unjudged='' if 'H200' in name else f'on {name}; the aim is for an H200')


def speed(results: Results, size: Size, device: torch.device, until: float, args: argparse.Namespace) -> None:
    """ResNet-50 of a config against eager torchvision and timm, on the same synthetic batch."""
    cudnn = torch.backends.cudnn.benchmark
    loader, training = Synthetic(size, device, size.batch), Training(size, device)
    torch.backends.cudnn.benchmark = True  # for everyone
    contestants = {OURS: lambda: size.batch / training.seconds(loader, size)}
    for name, make in (('torchvision eager', _of_torchvision), ('timm eager', _of_timm)):
        try:
            contestants[name] = peer(make(size.depth), loader, size, device)
        except ImportError as error:
            results.missing(name, str(error))
    title = f'ResNet-{size.depth} training, bf16, batch {size.batch}, {size.pixels} px, synthetic'
    figures = turns(contestants, size, until, lambda figures: results.section(
        title, 'images/s', figures, OURS if OURS in figures else next(iter(figures))), results.missing)
    compiled = OURS in figures
    for name in [name for name in contestants if name != OURS]:
        on_an_h200(results, f'ResNet-50, ours over {name}', ratio(figures, OURS, name) if compiled else None, '>= 1.3')
    on_an_h200(results, 'ResNet-50 bf16, synthetic', statistics.median(figures[OURS]) if compiled else None,
               '>= 6000', 'images/s')
    torch.backends.cudnn.benchmark = cudnn


def _of_torchvision(depth: int) -> nn.Module:
    from torchvision import models
    return getattr(models, f'resnet{depth}')()


def _of_timm(depth: int) -> nn.Module:
    import timm
    return timm.create_model(f'resnet{depth}')


def fed(results: Results, size: Size, device: torch.device, until: float, args: argparse.Namespace) -> None:
    """The same training from JPEG files against synthetic batches; how busy the GPU is; that nothing waits for it."""
    from images import prepare, train_steps
    with tempfile.TemporaryDirectory() as temporary:
        folder, what = prepare(args.images, size.images, Path(temporary), size.copies)
        results.content['images'] = f'{what}, {size.copies} names each; {size.workers} workers'
        dataset = CustomDataset(folder, train_steps(size.pixels), classes=None)
        training = Training(size, device, dataset, **{'data.workers_per_gpu': size.workers})
        synthetic, files = Synthetic(size, device, size.batch), Endless(training.loader)
        busy: list[int] = []

        def from_files() -> float:
            with _Watched(device, busy):
                return size.batch / training.seconds(files, size)

        contestants = {'synthetic': lambda: size.batch / training.seconds(synthetic, size),
                       'ours: from files': from_files}
        figures = turns(contestants, size, until, lambda figures: results.section(
            f'ResNet-{size.depth} training, batch {size.batch}', 'images/s', figures, next(iter(figures))),
            results.missing)
        over = ratio(figures, 'ours: from files', 'synthetic') if len(figures) == 2 else None
        on_an_h200(results, 'fed by the loader, over synthetic', over, '>= 0.95')
        if busy:
            results.section('GPU busy while fed from files', '%', {'ours: from files': [float(one) for one in busy]},
                            'ours: from files')
        else:
            results.missing('GPU utilisation', 'NVML told none: no GPU, or no package nvidia-ml-py')
        for name, loader in ('synthetic', synthetic), ('from files', files):
            sync_free(results, name, training, loader, size, device)


class _Watched:
    """Collects the utilisation of the GPU inside, ten samples a second; none where NVML does not answer."""

    def __init__(self, device: torch.device, busy: list[int]) -> None:
        self.device, self.busy = device, busy
        self.sampler: Any = None

    def __enter__(self) -> None:
        if self.device.type != 'cuda':
            return
        try:
            from workspace_lib.tools.gpu_hook import _card
            from workspace_lib.tools.nvml import Sampler, open_nvml
            self.sampler = Sampler(_card(open_nvml(), self.device).read, 0.1)
        except (RuntimeError, ImportError) as error:
            print(f'(without utilisation: {error})')

    def __exit__(self, *error: object) -> None:
        if self.sampler is not None:
            self.sampler.stop()
            found = [sample.utilisation for sample in self.sampler.take() if sample.utilisation is not None]
            self.busy += found[len(found) // 4:]  # what came before is the warm-up


class _NoSync(Hook):
    """From the fifth step on, a call that makes the host wait for the GPU is an error."""

    priority = 99

    def __init__(self) -> None:
        self.done = 0

    def after_train_iter(self, runner: Any) -> None:
        self.done += 1
        if self.done == 5:  # never again: it stays with the runner
            torch.cuda.set_sync_debug_mode('error')


def sync_free(results: Results, name: str, training: Training, loader: Any, size: Size, device: torch.device) -> None:
    """50 steps between two log lines without one call that waits for the GPU."""
    what = f'calls that wait for the GPU in 50 steps between logs, {name}'
    if device.type != 'cuda':
        results.aim(what, None, '<= 0', reason='no CUDA device')
        return
    training.runner.register_hook(_NoSync())
    try:
        training.watch.start(5, 50)
        training.runner.run([loader], [('train', 10**9)])
    except Enough:
        results.aim(what, 0, '<= 0')
    except RuntimeError as error:
        if 'synchroniz' not in str(error):
            raise
        traceback.print_exc()
        frames = reversed(traceback.extract_tb(error.__traceback__))
        place = next((f'{frame.filename}:{frame.lineno}' for frame in frames if 'workspace_lib' in frame.filename),
                     'outside the library')
        results.aim(what, 1, '<= 0', note=f'the first at {place}')
    finally:
        torch.cuda.set_sync_debug_mode('default')


#: What is measured beside the defaults: the one key that is other.
SWITCHED: dict[str, dict[str, Any]] = {
    'optimizer.fused=False': {'optimizer.fused': False}, 'channels_last=False': {'channels_last': False},
    'bf16=False': {'bf16': False}, 'cudnn_benchmark=False': {'cudnn_benchmark': False}}
#: What is off on a CPU, and is switched on there.
CPU_DEFAULTS = {'optimizer.fused': False, 'channels_last': False, 'bf16': False}


def keys(results: Results, size: Size, device: torch.device, until: float, args: argparse.Namespace) -> None:
    """Eager, one key switched at a time; then what compiling and CUDA graphs do for a small network."""
    on_cpu = device.type == 'cpu' and not args.toy
    short = Size(args.toy, on_cpu)
    short.batch = size.batches[-1]
    now = time.perf_counter()
    variants = {'defaults': {}, **SWITCHED} if not on_cpu else {
        'defaults': CPU_DEFAULTS, 'defaults again': CPU_DEFAULTS,
        **{f'{key}=True': {**CPU_DEFAULTS, key: True} for key in CPU_DEFAULTS}}
    _in_turns(results, short, device, now + 0.5 * (until - now),
              f'ResNet-{short.depth} training, batch {short.batch}, eager, {short.pixels} px: one key switched',
              variants, {'compile': False})
    short.batch, short.pixels = (4, 32) if args.toy else (8, 32) if on_cpu else (128, 32)
    small = {'model.backbone.type': 'ResNet_CIFAR', 'model.backbone.depth': 18, 'model.head.in_channels': 512}
    modes = {"compile=dict(backend='eager')": size.compile} if args.toy else {'compile=True': True}
    if on_cpu:  # an eighth as wide: compiling takes a minute or two
        small |= {'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8, 'model.head.in_channels': 64,
                  **CPU_DEFAULTS}
    elif not args.toy:
        modes["compile=dict(mode='reduce-overhead')"] = dict(mode='reduce-overhead')
    _in_turns(results, short, device, until,
              f'ResNet-18{", an eighth as wide," if on_cpu else ""} training, 32 px, batch {short.batch}: compiling',
              {'eager': {'compile': False}, **{name: {'compile': mode} for name, mode in modes.items()}}, small)


def _in_turns(results: Results, size: Size, device: torch.device, until: float, title: str,
              variants: dict[str, dict[str, Any]], common: dict[str, Any]) -> None:
    """Images a second of trainings that differ in `variants`, over the first of them."""
    loaders = {nhwc: Synthetic(size, device, size.batch, nhwc) for nhwc in (True, False)}
    trainings = {name: Training(size, device, **{'data.samples_per_gpu': size.batch, **common, **options})
                 for name, options in variants.items()}

    def measure(name: str) -> float:
        torch.backends.cudnn.benchmark = variants[name].get('cudnn_benchmark', True)  # the last one's, else
        loader = loaders[{**common, **variants[name]}.get('channels_last', True)]
        return size.batch / trainings[name].seconds(loader, size)

    first, unit = next(iter(variants)), 'images/s' if device.type == 'cuda' else 'images a processor second'
    turns({name: partial(measure, name) for name in variants}, size, until,
          lambda figures: results.section(title, unit, figures, first), results.missing)


def sweep(results: Results, size: Size, device: torch.device, until: float, args: argparse.Namespace) -> None:
    """NCHW and NHWC, eager and compiled, over batch sizes: those that compile last, as far as the time goes."""
    figures: dict[str, list[float]] = {}
    short = Size(args.toy)
    short.warm, short.timed = (1, 2) if args.toy else (10, 20)
    combinations = [(compiled, nhwc, batch) for compiled in (False, True) for nhwc in (True, False)
                    for batch in size.batches]
    for compiled, nhwc, batch in combinations:
        name = f'{"NHWC" if nhwc else "NCHW"}, {"compile" if compiled else "eager"}, batch {batch}'
        if time.perf_counter() > until:
            results.missing(name, 'no time left: --minutes, or --part sweep')
            continue
        try:
            training = Training(size, device, channels_last=nhwc, compile=size.compile if compiled else None,
                                **{'data.samples_per_gpu': batch})
            loader = Synthetic(size, device, batch, nhwc)
            figures[name] = [batch / training.seconds(loader, short)]
        except torch.cuda.OutOfMemoryError:
            results.missing(name, 'out of memory')
        except NotCompiled as error:
            results.missing(name, str(error))
        else:
            results.section(f'ResNet-{size.depth} training, bf16, {size.pixels} px, synthetic', 'images/s', figures,
                            next(iter(figures)))
        training = loader = None  # type: ignore[assignment]
        gc.collect()
        if device.type == 'cuda':
            torch.cuda.empty_cache()


def cifar10(results: Results, size: Size, device: torch.device, until: float, args: argparse.Namespace) -> None:
    """ResNet-18 on CIFAR-10, trained from the config with fewer epochs; accuracy on the test set and wall time."""
    if args.cifar10 is None and not args.toy:
        results.aim('CIFAR-10, ResNet-18, accuracy', None, CIFAR10_AIM, '%', '--cifar10 names the folder of the data')
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.cifar10 or _toy_cifar(Path(temporary)))
        cfg = _cifar_config(folder, size)
        dataset = build_dataset(cfg.data.train)
        steps = size.epochs * len(dataset) // size.cifar_batch
        cfg.lr_config = dict(policy='CosineAnnealing', min_lr=0., by_epoch=False, warmup='linear',
                             warmup_iters=max(1, steps // 10), warmup_ratio=0.01)
        set_random_seed(0)
        model = build_classifier(cfg.model)
        model.init_weights()
        start = time.perf_counter()
        runner, loaders = build_training(model, dataset, cfg, device=device)
        runner.register_hook(Progress(results, len(dataset)))
        runner.run(loaders, [('train', 1)])
        if device.type == 'cuda':
            torch.cuda.synchronize()
        seconds, ours = time.perf_counter() - start, 'ours'
        try:
            check_compiled(model, cfg.compile)
        except NotCompiled as error:
            ours = 'ours, eager'
            results.missing('ours, compiled', str(error))
        test = build_dataset(cfg.data.test, dict(test_mode=True))
        scores = single_gpu_test(model, build_loader(cfg, 'test', test, device),
                                 precision=Precision(device, None, True))
        accuracy = test.evaluate(scores, 'accuracy', dict(topk=(1,)))
        epochs = counted(size.epochs, 'epoch')
        results.section(f'CIFAR-10, ResNet-18, {epochs}, from the first step to the last', 's',
                        {ours: [seconds]}, ours)
        figure = float(next(value for key, value in accuracy.items() if key.startswith('accuracy')))
        results.aim(f'CIFAR-10, ResNet-18, accuracy after {epochs}', figure, CIFAR10_AIM, '%',
                    note='the aim is for 200 epochs')


class Progress(Hook):
    """Keeps the rate of the epochs so far, start and compilation included: there if the time ends the training."""

    def __init__(self, results: Results, images: int) -> None:
        self.results, self.images, self.start = results, images, time.perf_counter()

    def after_train_epoch(self, runner: Any) -> None:
        done = f'ours: {counted(runner.epoch + 1, "epoch")}'
        rate = (runner.epoch + 1) * self.images / (time.perf_counter() - self.start)
        self.results.section('CIFAR-10, ResNet-18, from the start', 'images/s', {done: [rate]}, done)


def _cifar_config(folder: Path, size: Size) -> Any:
    """The packaged recipe in `size.epochs` epochs of large batches; class folders of images, or the original files."""
    cfg = load_config('resnet/resnet18_8xb16_cifar10.py', {
        'bf16': True, 'channels_last': True, 'compile': size.compile, 'cudnn_benchmark': True, 'seed': 0,
        'data.samples_per_gpu': size.cifar_batch, 'data.workers_per_gpu': size.workers,
        'runner.max_epochs': size.epochs})
    cfg.optimizer = dict(type='SGD', lr=0.1 * size.cifar_batch / 128, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cfg.checkpoint_config, cfg.workflow = None, [('train', 1)]
    cfg.data.train.data_prefix = cfg.data.test.data_prefix = str(folder)
    if (folder / 'train').is_dir():
        for part in ('train', 'test'):
            section = cfg.data[part]
            # their files are BGR once decoded, and the recipe's pixels are RGB
            steps = [{**step, 'to_rgb': True} if step['type'] == 'Normalize' else step for step in section.pipeline]
            cfg.data[part] = dict(type='CustomDataset', data_prefix=str(folder / part),
                                  pipeline=[dict(type='LoadImageFromFile'), *steps])
    return cfg


def _toy_cifar(folder: Path) -> Path:
    import cv2
    import numpy as np
    noise = np.random.default_rng(0)
    for part in ('train', 'test'):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(2):
                img = noise.integers(0, 256, (32, 32, 3), np.uint8)
                cv2.imwrite(str(folder / part / str(label) / f'{number}.jpg'), img)
    return folder


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'


def quiet() -> None:
    """Of the logs, errors alone, and why something was not compiled."""
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger('workspace_lib').setLevel(logging.ERROR)
    logging.getLogger('workspace_lib.device').setLevel(logging.WARNING)


def one_part(name: str, args: argparse.Namespace) -> None:
    quiet()
    device = torch.device(args.device)
    size = Size(args.toy, device.type == 'cpu')
    if device.type == 'cpu':
        torch.set_num_threads(1)  # beside other work, threads that spin cost minutes
    until = time.perf_counter() + 60 * args.minutes
    results = Results(f'gpu_{name}', args.out, size.rounds, args.toy, device=device_name(device))
    globals()[name](results, size, device, until, args)
    results.finish()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument('--device', default='cuda', help='cuda (default), cuda:N or cpu')
    parser.add_argument('--toy', action='store_true', help='a small network, few steps')
    parser.add_argument('--cifar10', help='its folder: the original files, or train/ and test/ of class folders')
    parser.add_argument('--minutes', type=float, default=9, help='for all of it (default 9)')
    parser.add_argument('--part', nargs='+', choices=[*PARTS], help='these parts alone')
    parser.add_argument('--child', choices=[*PARTS], help=argparse.SUPPRESS)
    args = parsed(parser)
    if args.child:
        one_part(args.child, args)
        return
    if args.device != 'cpu' and not torch.cuda.is_available():
        raise SystemExit('no CUDA device: make doctor tells why; --device cpu --toy tries the benchmark itself')
    if args.device == 'cpu' and not args.toy and args.part != ['keys']:
        raise SystemExit('on a CPU only --part keys measures something; --toy tries the other parts')
    chosen, failed = args.part or [*PARTS], []
    whole = sum(PARTS[name] for name in chosen)
    for name in chosen:
        minutes = args.minutes * PARTS[name] / whole
        words = [*sys.argv[1:], '--out', str(args.out)]
        start = time.perf_counter()
        print(f'\n== {name}: {minutes:.1f} minutes', flush=True)
        try:
            code: Any = subprocess.run([sys.executable, '-W', 'ignore', __file__, *words, '--child', name, '--minutes',
                                        str(0.8 * minutes)], cwd=ROOT, timeout=60 * minutes + 5).returncode
        except subprocess.TimeoutExpired:
            code = 'ended: its time was over'
        print(f'== {name}: {time.perf_counter() - start:.0f} s' + (f', FAILED ({code})' if code else ''), flush=True)
        failed += [name] if code else []
    print(f'\nall of it: {write_readme(args.out)}')
    if failed:
        raise SystemExit(f'failed: {", ".join(failed)}; what was measured before is kept')


if __name__ == '__main__':
    main()
