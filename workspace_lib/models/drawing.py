"""A prediction written on its image.

In: an image, uint8 (H, W, 3) BGR, or a path; `dict(pred_class='tabby', pred_score=0.93)`. Out: an image.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def draw_result(img: str | Path | np.ndarray, result: dict[str, Any], text_color: Any = 'white',
                font_scale: float = 0.5, row_width: int = 20, show: bool = False,
                fig_size: tuple[float, float] = (15, 10), win_name: str = '', wait_time: float = 0,
                out_file: str | Path | None = None) -> np.ndarray:
    """One line `key: value` per entry of `result`, from the upper left corner down.

    Args:
        img: one smaller than 112 pixels, such as a digit, is enlarged to about 224, so that text finds room.
        text_color: of matplotlib. font_scale: 1 is 25 pixels. row_width: pixels from line to line.
        show: open a window of `fig_size` inches called `win_name` for `wait_time` seconds (0: until closed).
        out_file: write it there; folders on the way are made.

    Returns:
        uint8 (H, W, 3), BGR.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rgb = _enlarge(_read(img) if isinstance(img, (str, Path)) else _to_rgb(img))
    height, width = rgb.shape[:2]
    dpi = 36
    # A hair more than the image, lest rounding to inches and back lose a row of pixels.
    figure = Figure(figsize=((width + 0.01) / dpi, (height + 0.01) / dpi), dpi=dpi, frameon=False)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis('off')
    axes.imshow(rgb, aspect='auto')
    for row, (key, value) in enumerate(result.items()):
        text = f'{key}: {value:.2f}' if isinstance(value, float) else f'{key}: {value}'
        axes.text(3, row_width // 2 + row * row_width, text, color=text_color, fontsize=font_scale * 50,
                  family='monospace', va='top', ha='left',
                  bbox=dict(facecolor='black', alpha=0.7, pad=0.2, edgecolor='none', boxstyle='round'))
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if out_file is not None:
        _write(drawn, Path(out_file))
    if show:
        _show(drawn, fig_size, win_name, wait_time)
    return np.ascontiguousarray(drawn[..., ::-1])


def _read(path: str | Path) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


def _to_rgb(bgr: np.ndarray) -> np.ndarray:
    grey = bgr[..., None] if bgr.ndim == 2 else bgr
    return grey.repeat(3, axis=2) if grey.shape[2] == 1 else bgr[..., ::-1]


def _enlarge(image: np.ndarray) -> np.ndarray:
    short = min(image.shape[:2])
    factor = 224 // short if short < 112 else 1
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _write(rgb: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)


def _show(rgb: np.ndarray, fig_size: tuple[float, float], title: str, seconds: float) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=fig_size)
    axes.axis('off')
    axes.set_title(title)
    axes.imshow(rgb)
    plt.show(block=seconds == 0)
    if seconds:
        plt.pause(seconds)
    plt.close(figure)
