"""Finding a recipe by path or name, and refusing keys that would silently do nothing.

In: what a person typed. Out: a ``Config``.
"""
from __future__ import annotations

import copy
import os
from pathlib import Path

from .config import Config
from .config.merge import near_names

CONFIGS = Path(__file__).parent / 'configs'

#: What the library reads from the top level of a config; other names are the config's own variables.
TOP_LEVEL_KEYS = frozenset({
    'model', 'data', 'optimizer', 'optimizer_config', 'lr_config', 'momentum_config', 'runner', 'total_epochs',
    'workflow', 'evaluation', 'checkpoint_config', 'log_config', 'log_level', 'custom_hooks', 'custom_imports',
    'fp16', 'bf16', 'channels_last', 'compile', 'cudnn_benchmark', 'deterministic', 'seed', 'device', 'gpu_ids',
    'gpus', 'work_dir', 'load_from', 'resume_from', 'dist_params', 'find_unused_parameters', 'sampler',
    'opencv_num_threads', 'mp_start_method', 'auto_scale_lr', 'static_graph', 'gradient_as_bucket_view'})


def load_config(config: str | os.PathLike | Config, options: dict | None = None) -> Config:
    """A config from a path, or from a name below the package's own ``configs``, with `options` merged in.

    Raises:
        KeyError: a top-level key that is a misspelling of one the library reads, or an option whose parent is not in
            the config.
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)  # the caller's stays as it is
    else:
        packaged = CONFIGS / config
        cfg = Config.fromfile(str(packaged if packaged.is_file() and not Path(config).is_file() else config))
    if options:
        _check_options(cfg, options)
        cfg.merge_from_dict(options)
    _check_top_level(cfg)
    return cfg


def _check_options(cfg: Config, options: dict) -> None:
    """``--cfg-options modle.depth=18`` would change nothing and say nothing."""
    known = set(cfg) | TOP_LEVEL_KEYS
    for option in options:
        head = option.split('.')[0]
        if head not in known:
            raise KeyError(f'option {option!r}: the config has no {head!r}{near_names(head, known)}')


def _check_top_level(cfg: Config) -> None:
    for key in cfg:
        if key in TOP_LEVEL_KEYS or key.startswith('_'):
            continue
        if near := near_names(key, TOP_LEVEL_KEYS, 0.85):
            raise KeyError(f'unknown config key {key!r}{near} ({cfg.origin(key)}; a variable of your own may have this '
                           'name with a leading underscore)')
