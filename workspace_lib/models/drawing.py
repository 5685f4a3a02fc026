"""A prediction written on its image.

In: an image, uint8 (H, W, 3) BGR or (H, W) grey, or a path; `dict(pred_class='tabby', pred_score=0.93)`. Out: an image.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

DPI = 36


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
    from PIL import Image

    rgb = _read(img) if isinstance(img, (str, Path)) else np.stack([img] * 3, 2) if img.ndim == 2 else img[..., ::-1]
    factor = 224 // min(rgb.shape[:2]) if min(rgb.shape[:2]) < 112 else 1
    lines = [f'{key}: {value:.2f}' if isinstance(value, float) else f'{key}: {value}' for key, value in result.items()]
    drawn = _write_on(rgb.repeat(factor, axis=0).repeat(factor, axis=1), lines, text_color, font_scale * 50, row_width)
    if out_file is not None:
        Path(out_file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(out_file)
    if show:
        _show(drawn, fig_size, win_name, wait_time)
    return np.ascontiguousarray(drawn[..., ::-1])


def _read(path: str | Path) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


def _write_on(rgb: np.ndarray, lines: list[str], color: Any, font_size: float, row_width: int) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = rgb.shape[:2]
    # A hair more than the image, lest rounding to inches and back lose a row of pixels.
    figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, frameon=False)
    figure.figimage(rgb)
    for row, text in enumerate(lines):
        figure.text(3, height - row_width // 2 - row * row_width, text, transform=None, color=color, va='top',
                    fontsize=font_size, family='monospace',
                    bbox=dict(facecolor='black', alpha=0.7, pad=0.2, edgecolor='none', boxstyle='round'))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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
