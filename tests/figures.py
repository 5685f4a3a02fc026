"""What every figure is held to."""
from __future__ import annotations

from typing import Any


def assert_nothing_is_cut_off(plot: Any) -> None:
    """All that is drawn, titles and labels too, lies within the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    canvas = FigureCanvasAgg(plot.figure)
    canvas.draw()
    drawn, (width, height) = plot.figure.get_tightbbox(canvas.get_renderer()), plot.figure.get_size_inches()
    assert drawn.x0 > -0.02 and drawn.y0 > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02, drawn
