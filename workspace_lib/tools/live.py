"""The curves of a training while it runs: loss, learning rate and the evaluation's first metric.

In: a run's log, or, as a hook, its entries as they come. Out: a `Plot`, in a notebook in a widget that changes.
"""
from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..log_hooks import LoggerHook
from ..registry import HOOKS

if TYPE_CHECKING:
    from .plots import Plot

logger = logging.getLogger(__name__)


def training_plot(entries: Sequence[Mapping[str, Any]], iters_per_epoch: int | None = None,
                  name: str = 'training') -> Plot:
    """The curves of one run. `entries`: see `plots.read_log`.

    Args:
        iters_per_epoch: places the entries of an epoch that has not ended; default the last iteration that was seen.

    Raises:
        ValueError: an empty log, or one without any of these curves.
    """
    from .analyze_logs import curves_plot, default_keys  # here: every command that trains knows the hook

    if not entries:
        raise ValueError('the log has no entry yet: log_config.interval iterations come first')
    keys = [key for key in dict.fromkeys(('loss', 'lr', *default_keys({name: entries})))
            if any(isinstance(entry.get(key), Real) for entry in entries)]
    if not keys:
        raise ValueError(f'the log has no number to draw: neither loss nor lr, but {", ".join(entries[-1])}')
    entries = [{key: value for key, value in entry.items() if isinstance(value, str | Real)}
               for entry in entries]
    plot = curves_plot({name: entries}, keys, iters_per_epoch)
    last = entries[-1]
    return dataclasses.replace(plot, alt=f'Curves of {name} until epoch {last["epoch"]}: {", ".join(keys)}.')


@HOOKS.register_module()
class LivePlotHook(LoggerHook):
    """Draws `training_plot` anew while the run goes on; in a notebook a picture below the cell that trains.

    Args:
        show: called with each `Plot`; default a widget, which is displayed when the run begins.
        interval: iterations between entries, as of other loggers.
        seconds: at least so long from one picture to the next: drawing one takes a fifth of a second from the run.
    """

    def __init__(self, show: Callable[[Plot], Any] | None = None, interval: int = 10, seconds: float = 2.0,
                 by_epoch: bool | None = None) -> None:
        super().__init__(interval, by_epoch)
        self.show, self.seconds = show, seconds

    def before_run(self, runner: Any) -> None:
        super().before_run(runner)
        self.entries: list[dict[str, Any]] = []
        self.drawn = float('-inf')
        self.failed = False
        if self.show is None and runner.rank == 0:
            from .widgets import live_picture
            self.show = live_picture()

    def write(self, runner: Any, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        if time.monotonic() - self.drawn >= self.seconds:
            self.draw_curves(runner)

    def after_run(self, runner: Any) -> None:
        if self.entries:
            self.draw_curves(runner)

    def draw_curves(self, runner: Any) -> None:
        """Show what there is by now; of a log that cannot be drawn say so once: no picture is worth a training."""
        if self.show is None or runner.rank:
            return
        try:
            plot = training_plot(self.entries, runner.iters_per_epoch)
        except (KeyError, TypeError, ValueError) as error:
            if not self.failed:
                logger.warning('LivePlotHook draws nothing: %s', error)
            self.failed = True
        else:
            self.show(plot)
        self.drawn = time.monotonic()
