"""``workspace export``: a model as an ONNX file, and the two compared.

In: a config and a checkpoint. Out: a file that takes normalised images float32 (N, C, H, W), any N, and gives the
scores (N, num_classes) that a test sees; and the largest differences between file and model.
"""
from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..apis import init_model, prepare_image
from ..config import Config
from .arguments import add_checkpoint, add_config, checked_output
from .parts import datasets_of
from .scorer import Scorer
from .table import Table

logger = logging.getLogger(__name__)

#: Largest difference of a probability that is put down to the order of float32 sums.
TOLERANCE = 1e-4


def export_onnx(model: Any, output: str | Path, shape: Sequence[int] | None = None, opset: int | None = None,
                batch_size: int | None = None) -> Path:
    """Write a classifier with torch's exporter (dynamo); input `img`, output `scores`, the batch of any size.

    Args:
        model: from `init_model`; a copy of it on the CPU is exported.
        shape: of an image, (C, H, W); default what the model's test pipeline makes of a photograph.
        opset: of ONNX; default the exporter's.
        batch_size: of a file for batches of this size alone; default any.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed.
        RuntimeError: the model does something that ONNX cannot say; the exporter's report follows.
    """
    path = checked_output(output, ('.onnx',), '--output')
    _needs('onnx', 'onnxscript')
    img = torch.randn(batch_size or 2, *(shape or _shape_of(model)))
    scorer = Scorer(copy.deepcopy(model).cpu().eval())
    program = torch.onnx.export(_captured(scorer, img, batch_size is None), (img,), dynamo=True, input_names=['img'],
                                output_names=['scores'], opset_version=opset, verbose=False)
    assert program is not None
    program.save(str(path), external_data=False)
    return path


def _captured(scorer: Scorer, img: torch.Tensor, any_batch: bool) -> Any:
    """The graph. Left to itself torch.onnx would fall back to one for the batch that it is shown, and say nothing."""
    dynamic = ({0: torch.export.Dim('batch', min=1)},) if any_batch else None
    try:
        return torch.export.export(scorer, (img,), dynamic_shapes=dynamic)
    except Exception as error:
        if 'specialized it to be a constant' in str(error):
            raise RuntimeError('the model reads the size of its batch as a number, which would fix it in the file: '
                               'x.shape[0] in place of len(x) or int(...). Or export it for one size: --batch-size 1. '
                               f'torch says: {error}') from error
        raise RuntimeError(f'torch.export cannot follow the model: {type(error).__name__} {error}') from error


def _needs(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"export needs the package {package}: pip install {package}, or all of them: "
                                      "pip install 'workspace-lib[lab]'") from error


def _shape_of(model: Any) -> tuple[int, ...]:
    norm = next((step for step in model.cfg.data.test.pipeline if step['type'] == 'Normalize'), None)
    grey = norm is not None and len(norm['mean']) == 1
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500) if grey else (375, 500, 3), dtype=np.uint8)
    return tuple(prepare_image(model, pixels)['img'].shape[1:])


@dataclass
class Comparison:
    """Model and file on one input: the largest difference of a score, and whether both name the same classes."""

    name: str
    images: int
    difference: float
    same_class: bool

    @property
    def fails(self) -> bool:
        return not (self.same_class and self.difference <= TOLERANCE)  # nan fails


def verify_onnx(model: Any, path: str | Path, images: Sequence[Any] = (),
                shape: Sequence[int] | None = None) -> list[Comparison]:
    """Compare model and file, which onnxruntime runs on the CPU: on noise in batches of 1 and 3, and on `images`.

    A file for one size of batch gets batches of that.

    Args:
        images: files, or uint8 BGR arrays (H, W, 3); each goes through the model's test pipeline, and is resized where
            `shape` is another than the pipeline's.
    """
    _needs('onnxruntime')
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    model = copy.deepcopy(model).cpu().eval()
    size, fixed = shape or _shape_of(model), session.get_inputs()[0].shape[0]
    batches = (fixed,) if isinstance(fixed, int) else (1, 3)
    inputs = [(f'noise, batch of {n}', torch.randn(n, *size)) for n in batches]
    inputs += [(Path(image).name if isinstance(image, str | Path) else f'image {i}',
                _sized(prepare_image(model, image)['img'], size).repeat(batches[0], 1, 1, 1))
               for i, image in enumerate(images)]
    found = []
    for name, img in inputs:
        with torch.no_grad():
            ours = Scorer(model)(img).numpy()
        theirs = session.run(None, {'img': img.numpy()})[0]
        found.append(Comparison(name, len(img), float(np.abs(ours - theirs).max()),
                                bool((ours.argmax(1) == theirs.argmax(1)).all())))
    return found


def _sized(img: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return img if img.shape[1:] == torch.Size(size) else torch.nn.functional.interpolate(img, tuple(size[-2:]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--output', '--output-file', default='model.onnx', help='default model.onnx')
    parser.add_argument('--shape', type=int, nargs=3, metavar=('C', 'H', 'W'),
                        help='of an image; default what the test pipeline gives')
    parser.add_argument('--batch-size', type=int, metavar='N', help='a file for batches of N alone; default any')
    parser.add_argument('--opset', '--opset-version', type=int, help='ONNX operator set; default the exporter\'s')
    parser.add_argument('--verify', action='store_true',
                        help='compare with the model, on noise and on images; status 1 if they differ')
    parser.add_argument('--image', nargs='+', default=[], help='images to compare on (with --verify)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    checked_output(args.output, ('.onnx',), '--output')
    _needs('onnx', 'onnxscript', *['onnxruntime'] * args.verify)
    model = init_model(args.config, args.checkpoint, 'cpu', args.cfg_options)
    path = export_onnx(model, args.output, args.shape, args.opset, args.batch_size)
    print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')
    if not args.verify:
        return 0
    found = verify_onnx(model, path, args.image or _test_images(model.cfg), args.shape)
    rows = [(c.name, c.images, f'{c.difference:.1e}', 'yes' if c.same_class else 'NO') for c in found]
    print(Table(('input', 'images', 'largest difference', 'same class'), rows))
    failed = [c.name for c in found if c.fails]
    print(f'largest difference of a score: {max(c.difference for c in found):.1e} (allowed {TOLERANCE:.0e})'
          + (f'; FAILED: {", ".join(failed)}' if failed else ''))
    return int(bool(failed))


def _test_images(cfg: Config, count: int = 4) -> list[np.ndarray]:
    try:
        dataset = datasets_of(cfg, 'test')[0]
    except OSError as error:
        logger.warning('compared on noise alone: %s. Name real images: --image FILE ...', error)
        return []
    return [dataset.load_image(i) for i in range(0, len(dataset), -(-len(dataset) // count))]
