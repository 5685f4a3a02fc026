"""Widgets for notebooks: thin skins over functions that also work, and are tested, without them.

In: a model, names of photographs. Out: an ipywidgets box whose figure is drawn anew at every change.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import Pipeline
from .photos import photograph
from .plots import Plot, predictions


def seen_at(model: Any, photo: str | Path, size: int) -> Plot:
    """What the classifier sees of a photograph whose short side is resized to `size` pixels, and what it says.

    The crop stays as the test pipeline has it: the larger the photograph, the smaller the part that is seen.

    Raises:
        ValueError: the test pipeline has no Resize, or `size` is smaller than the crop.
    """
    import torch

    steps = [dict(step) for step in model.cfg.data.test.pipeline]
    resize = next((step for step in steps if step['type'] == 'Resize'), None)
    crop = next((step['crop_size'] for step in steps if step['type'] == 'CenterCrop'), 1)
    if resize is None:
        raise ValueError(f'the test pipeline of {model.cfg.filename} has no Resize step')
    if size < crop:
        raise ValueError(f'a short side of {size} pixels is smaller than the crop of {crop}')
    resize['size'] = (size, -1)
    pipeline = Pipeline(steps)
    info = dict(img_prefix=None, img_info=dict(filename=str(photo)))
    seen = np.asarray(pipeline.item(info)['img'])  # uint8 (H, W, 3), BGR
    batch = pipeline.batch_of_one(info, next(model.parameters()).device)
    with torch.no_grad():
        scores = model(return_loss=False, **batch)
    return predictions([seen], scores, model.CLASSES, [Path(photo).name])


def crop_explorer(model: Any, names: Sequence[str], sizes: tuple[int, int, int] = (224, 672, 64)) -> Any:
    """A menu of packaged photographs, a slider for `seen_at`, its figure; `sizes`: first, last and step, in pixels."""
    import ipywidgets

    first, last, step = sizes
    menu = ipywidgets.Dropdown(options=list(names), description='photograph')
    slider = ipywidgets.IntSlider(min=first, max=last, step=step, value=first, description='size',
                                  continuous_update=False)
    picture = ipywidgets.HTML()  # not an Output: what a cell draws before the page knows an Output is lost

    def draw(change: Any = None) -> None:
        plot = seen_at(model, photograph(menu.value), slider.value)
        picture.value = plot._repr_mimebundle_()['text/html']

    for control in (menu, slider):
        control.observe(draw, names='value')
    draw()
    return ipywidgets.VBox([menu, slider, picture])
