"""``workspace vis_cam``: where on an image the model saw a class. Grad-CAM and its relatives, for convnets and ViT.

In: a model and an image. Out: a map (H, W) from 0 to 1, or a `Plot` of it over the image.
"""
from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..apis import init_model, prepare_image
from ..config.merge import near_names
from .arguments import add_checkpoint, add_config, add_device, checked_output
from .plots import Plot, displayed, short_name, styled
from .scorer import Scorer
from .table import Table


def _gradcam(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean((1, 2), keepdim=True) * a).sum(0)


def _gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Equation 19 of arXiv:1710.11063, with the powers of the gradient for the higher derivatives."""
    alpha = g**2 / (2 * g**2 + a.sum((1, 2), keepdim=True) * g**3 + 1e-6)
    alpha = torch.where(g == 0, 0, alpha)
    return ((alpha * g.relu()).sum((1, 2), keepdim=True) * a).sum(0)


def _xgradcam(a: Tensor, g: Tensor) -> Tensor:
    """arXiv:2008.02312: gradients weighted by each channel's share of its own activation."""
    return ((g * a).sum((1, 2), keepdim=True) / (a.sum((1, 2), keepdim=True) + 1e-7) * a).sum(0)


def _layercam(a: Tensor, g: Tensor) -> Tensor:
    return (g.relu() * a).sum(0)


def _principal(a: Tensor) -> Tensor:
    """The first principal component over the positions (its sign is arbitrary), high where activations are strong."""
    flat = a.flatten(1).T  # (positions, channels)
    centred = flat - flat.mean(0)
    component = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return (component * (component @ flat.norm(dim=1)).sign()).view(a.shape[1:])


#: f(activations, gradients), both (C, h, w), to a map (h, w); what is below 0 in it counts as 0.
METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'gradcam': _gradcam, 'gradcam++': _gradcam_plus_plus, 'xgradcam': _xgradcam, 'layercam': _layercam,
    'eigencam': lambda a, g: _principal(a), 'eigengradcam': lambda a, g: _principal(a * g)}


def class_activation_map(model: Any, img: Tensor, category: int | None = None, layers: Sequence[str] = (),
                         method: str = 'gradcam') -> tuple[np.ndarray, int, list[str]]:
    """Where one image speaks for a class.

    Args:
        model: a classifier in evaluation mode. img: normalised, float (1, C, H, W).
        category: of the class; default the likeliest.
        layers: names of modules whose outputs are feature maps (1, C, h, w) or tokens (1, n, C); the maps of several
            are averaged. Default the last normalisation whose positions the score depends on: for a convnet the
            last one, for a ViT with a class token that before the last attention.
        method: of `METHODS`.

    Returns:
        float32 (H, W), 0 to 1; the category; the names of the layers.

    Raises:
        KeyError: no such layer or method. ValueError: no such category, or a layer without positions.
    """
    if method not in METHODS:
        raise KeyError(f'no method {method!r}; known: {", ".join(METHODS)}')
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise KeyError(f'the model has no layer {name!r}{near_names(name, modules)}; --preview-model lists them')
    names = list(layers) or _candidates(model)
    with _recorded({name: modules[name] for name in names}) as outputs, torch.enable_grad():
        logits = Scorer(model, logits=True)(img.detach().clone().requires_grad_())[0]
    category = int(logits.argmax()) if category is None else category
    if not 0 <= category < len(logits):
        raise ValueError(f'category {category} is out of range; the model has {len(logits)} classes, from 0')
    size = (int(img.shape[2]), int(img.shape[3]))
    maps = _maps(outputs, logits[category], modules, size)
    chosen = list(layers) if layers else [name for name, (_, g) in maps.items() if g[0].numel() > 1 and g.any()][-1:]
    if not chosen or not set(chosen) <= set(maps):
        raise ValueError(f'{", ".join(sorted(set(layers) - set(maps))) or "no layer"}: the score depends on no map of '
                         'positions there; name an earlier one with --target-layers (--preview-model lists them)')
    return np.mean([_scaled(METHODS[method](*maps[name]), size) for name in chosen], axis=0), category, chosen


def _candidates(model: Any) -> list[str]:
    """The normalisations of the backbone in order; where it has none, its convolutions."""
    parts = [(f'backbone.{name}', module) for name, module in model.backbone.named_modules()]
    norms = [name for name, module in parts if isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm)]
    return norms or [name for name, module in parts if isinstance(module, nn.Conv2d)]


@contextmanager
def _recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of `modules` while it is open, in the order in which they come."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            outputs.pop(name, None)
            outputs[name] = output
            return output.clone()  # an in-place activation behind it is to leave our copy alone
        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _maps(outputs: dict[str, Tensor], score: Tensor, modules: dict[str, nn.Module],
          size: tuple[int, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """(activations, gradients), both (C, h, w), of each output that has positions and that `score` depends on."""
    gradients = torch.autograd.grad(score, list(outputs.values()), allow_unused=True)
    maps = {}
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        both = [None if t is None else _by_position(t[0].detach(), modules[name], size) for t in (output, gradient)]
        if both[0] is not None and both[1] is not None:
            maps[name] = (both[0], both[1])
    return maps


def _by_position(output: Tensor, module: nn.Module, size: tuple[int, int]) -> Tensor | None:
    """Feature maps (C, h, w) or (h, w, C), or tokens (n, C), as (C, h, w); None for what is none of these."""
    if output.dim() == 3:
        width = module.normalized_shape[-1] if isinstance(module, nn.LayerNorm) else output.shape[0]
        return output if output.shape[0] == width else output.permute(2, 0, 1)
    if output.dim() != 2:
        return None
    for extra in range(3):  # class tokens come first: none, one, or one more for distillation
        count = len(output) - extra
        height = round(math.sqrt(count * size[0] / size[1])) if count > 0 else 0
        if height and count % height == 0 and size[0] * (count // height) == size[1] * height:
            return output[extra:].T.reshape(-1, height, count // height)
    return None


def _scaled(cam: Tensor, size: tuple[int, int]) -> np.ndarray:
    cam = cam.relu()[None, None]
    cam = nn.functional.interpolate(cam, size, mode='bilinear', align_corners=False)[0, 0]
    return (cam / cam.max().clamp(min=1e-12)).cpu().numpy()


@styled
def cam_plot(model: Any, image: str | os.PathLike | np.ndarray, category: int | None = None,
             layers: Sequence[str] = (), method: str = 'gradcam') -> Plot:
    """The image as the model gets it, and the map of `class_activation_map` over it; arguments as there."""
    img = prepare_image(model, image)['img']
    cam, category, names = class_activation_map(model, img, category, layers, method)
    probability = float(Scorer(model)(img)[0, category].detach())
    seen = displayed(img[0].cpu(), bgr=False)
    figure = Figure(figsize=(8.4, 4))
    left, right = figure.subplots(1, 2)
    left.imshow(seen, cmap='gray')
    left.set_xlabel('what the model gets')
    right.imshow(seen if seen.ndim == 2 else seen.mean(axis=2), cmap='gray')
    shown = right.imshow(cam, cmap='inferno', alpha=0.25 + 0.55 * cam, vmin=0, vmax=1)
    right.set_xlabel(f'{method} at {", ".join(names)}')
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=right, label='share of the highest', fraction=0.046)
    label = short_name(str(model.CLASSES[category]))
    figure.suptitle(f'{label}: {100 * probability:.1f} %')
    row, column = (int(v) for v in np.unravel_index(int(cam.argmax()), cam.shape))
    hot = 100 * float((cam > 0.5).mean())
    return Plot(figure, f'{method} for {label} ({100 * probability:.1f} %): highest at row {row}, column {column} of '
                f'{cam.shape[0]}x{cam.shape[1]}; {hot:.0f} % of the image is above half of it.',
                Table(('class', 'probability (%)', 'row', 'column', 'above half (%)'),
                      [(label, 100 * probability, row, column, hot)]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('image')
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--target-layers', nargs='+', default=[], metavar='NAME',
                        help='default the last normalisation whose positions the score depends on')
    parser.add_argument('--target-category', nargs='+', type=int, default=[None], metavar='N',
                        help='class indices, a picture each; default the likeliest')
    parser.add_argument('--method', type=str.lower, choices=METHODS, default='gradcam', help='default gradcam')
    parser.add_argument('--preview-model', action='store_true', help='list the names of the layers, draw nothing')
    parser.add_argument('--save-path', default='vis_cam.png', help='picture (default vis_cam.png)')
    add_device(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    path = checked_output(args.save_path, ('.png', '.svg', '.pdf'), '--save-path')
    model = init_model(args.config, args.checkpoint, args.device, args.cfg_options)
    if args.preview_model:
        print('\n'.join(f'{name}  {type(module).__name__}' for name, module in model.named_modules() if name))
        return
    if not Path(args.image).is_file():
        raise FileNotFoundError(f'image {args.image} does not exist')
    for category in args.target_category:
        plot = cam_plot(model, args.image, category, args.target_layers, args.method)
        several = len(args.target_category) > 1
        print(plot.save(path.with_stem(f'{path.stem}_{category}') if several else path), plot.alt)
