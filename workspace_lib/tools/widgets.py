"""Widgets for notebooks: thin skins over functions that also work, and are tested, without them.

In: a model, a pipeline, a loader, a recording. Out: an ipywidgets box whose figure is drawn anew at every change.
"""
from __future__ import annotations

import copy
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import Pipeline
from .photos import photograph
from .plots import Plot, pipeline_steps, predictions
from .vis_batch import batch_plot, take_batch
from .vis_hooks import FORWARD, Recording, timeline_plot


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


def pipeline_arguments(steps: Sequence[dict[str, Any]]) -> dict[str, tuple[int, str, int | float]]:
    """The numbers that a slider can move: {'RandomResizedCrop.size': (1, 'size', 224)}: which step, argument, value.

    Of a tuple the first number is taken: the other may mean "keep the proportions".
    """
    found: dict[str, tuple[int, str, int | float]] = {}
    for number, step in enumerate(steps):
        for name, value in step.items():
            first = value[0] if isinstance(value, list | tuple) and len(value) == 2 else value
            if type(first) in (int, float) and first > 0:
                found[f'{step["type"]}.{name}'] = number, name, first
    return found


def seen_through(steps: Sequence[dict[str, Any]], photo: str | Path, values: dict[str, int | float] | None = None,
                 seed: int = 0) -> Plot:
    """A photograph after each step of a pipeline that ends before batches are made, with other `values` of arguments.

    Args:
        values: {'RandomResizedCrop.size': 160}; names as in `pipeline_arguments`.
        seed: of the random choices.

    Raises:
        KeyError: no such argument.
    """
    steps, known = copy.deepcopy(list(steps)), pipeline_arguments(steps)
    for name, value in (values or {}).items():
        if name not in known:
            raise KeyError(f'no argument {name!r} that is a number; known: {", ".join(known)}')
        number, argument, _ = known[name]
        pair = steps[number][argument]
        steps[number][argument] = type(pair)((value, *pair[1:])) if isinstance(pair, list | tuple) else value
    return pipeline_steps(Pipeline(steps), dict(img_prefix=None, img_info=dict(filename=str(photo))), seed)


def pipeline_viewer(steps: Sequence[dict[str, Any]], names: Sequence[str]) -> Any:
    """A menu of packaged photographs, a slider for each number in the pipeline and for the seed, and the pictures."""
    import ipywidgets

    menu = ipywidgets.Dropdown(options=list(names), description='photograph')
    seed = ipywidgets.IntSlider(min=0, max=20, description='seed', continuous_update=False)
    sliders = {name: _slider(ipywidgets, name, value) for name, (_, _, value) in pipeline_arguments(steps).items()}
    picture = ipywidgets.HTML()

    def draw(change: Any = None) -> None:
        values = {name: slider.value for name, slider in sliders.items()}
        try:
            plot = seen_through(steps, photograph(menu.value), values, seed.value)
            picture.value = plot._repr_mimebundle_()['text/html']
        except (ValueError, TypeError, AssertionError) as error:  # a crop larger than the image
            picture.value = f'<p>{html.escape(str(error))}</p>'

    for control in (menu, seed, *sliders.values()):
        control.observe(draw, names='value')
    draw()
    return ipywidgets.VBox([menu, seed, *sliders.values(), picture])


def _slider(ipywidgets: Any, name: str, value: int | float) -> Any:
    style = dict(description_width='initial')
    if isinstance(value, int):
        return ipywidgets.IntSlider(value=value, min=max(1, value // 4), max=2 * value, description=name,
                                    continuous_update=False, style=style)
    top = 1.0 if value <= 1 else 2 * value  # probabilities and fractions of an image end at 1
    return ipywidgets.FloatSlider(value=value, min=0, max=top, step=top / 20, description=name,
                                  continuous_update=False, style=style)


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


def batch_viewer(loader: Any, epochs: int = 10, page: int = 16) -> Any:
    """Sliders for epoch, batch and page, and the images of `batch_plot`; a page is so many of them."""
    import ipywidgets

    epoch = _counter(ipywidgets, 'epoch', 0, epochs - 1)
    batch = _counter(ipywidgets, 'batch', 0, len(loader) - 1)
    pages = _counter(ipywidgets, 'page', 0, -(-min(loader.batch_size, len(loader.dataset)) // page) - 1)
    picture = ipywidgets.HTML()

    def draw(change: Any = None) -> None:
        taken, names = take_batch(loader, epoch.value, batch.value)
        pages.unobserve(draw, names='value')  # the last batch may be smaller: the next line moves a page past its end
        pages.max = -(-len(taken['img']) // page) - 1
        pages.observe(draw, names='value')
        plot = batch_plot(taken, loader, names, pages.value * page, page)
        picture.value = plot._repr_mimebundle_()['text/html']

    for control in (epoch, batch, pages):
        control.observe(draw, names='value')
    draw()
    return ipywidgets.VBox([epoch, batch, pages, picture])


def hook_viewer(recording: Recording) -> Any:
    """A slider for `timeline_plot`: 0 shows the whole run, another number one iteration.

    Raises:
        ValueError: no iteration was recorded.
    """
    import ipywidgets

    iterations = [call.iter for call in recording.calls if call.stage == FORWARD]
    if not iterations:
        raise ValueError('the recording has no iteration; run the runner inside `with recorded_hooks(runner)` first')
    slider = _counter(ipywidgets, 'iteration', 0, max(iterations) + 1)
    picture = ipywidgets.HTML()

    def draw(change: Any = None) -> None:
        plot = timeline_plot(recording, slider.value or None)
        picture.value = plot._repr_mimebundle_()['text/html'] + plot.table._repr_html_()

    slider.observe(draw, names='value')
    draw()
    return ipywidgets.VBox([slider, picture])


def _counter(ipywidgets: Any, name: str, first: int, last: int) -> Any:
    return ipywidgets.IntSlider(value=first, min=first, max=last, description=name, continuous_update=False)


def live_picture() -> Callable[[Plot], None]:
    """Displays a picture that is still empty; what it returns puts a figure there, also amid the run of a cell."""
    import ipywidgets
    from IPython.display import display

    picture = ipywidgets.HTML()
    display(picture)

    def show(plot: Plot) -> None:
        picture.value = plot._repr_mimebundle_()['text/html']
    return show
