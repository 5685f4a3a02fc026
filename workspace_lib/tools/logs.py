"""The library's log on the console, and in a file of the run.

In: messages of the logger ``workspace_lib``. Out: lines, above a progress bar instead of through it.
"""
from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

_FORMAT = '%(asctime)s - %(levelname)s - %(message)s'


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def get_root_logger(log_file: str | Path | None = None, log_level: int | str = 'INFO') -> logging.Logger:
    """The library's logger with a console handler, and a file handler for `log_file` in place of an earlier one."""
    logger = logging.getLogger('workspace_lib')
    logger.setLevel(log_level)
    if not any(isinstance(handler, _ConsoleHandler) for handler in logger.handlers):
        _add(logger, _ConsoleHandler())
        logger.propagate = False
    if log_file is not None:
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
        _add(logger, logging.FileHandler(log_file))
    return logger


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
