"""Checkpoints in mmcv's layout: written whole or not at all, loaded with a report of what did not fit.

In: a model, an optimizer, a file. Out: `dict(meta, state_dict, optimizer)` on disk, or weights in the model.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from . import __version__
from .dist import is_main
from .layouts import convert, detect
from .model_zoo import config_of
from .safe_load import UnsafeCheckpointError as UnsafeCheckpointError
from .safe_load import allowed_globals, read_checkpoint, some


def weights_of(checkpoint: dict[str, Any], filename: str | os.PathLike = 'the checkpoint') -> dict[str, Any]:
    """Its `state_dict` or `model` entry, or the whole when it is a bare state dict. ValueError if neither."""
    for weights in (checkpoint.get('state_dict'), checkpoint.get('model'), checkpoint):
        if isinstance(weights, dict) and any(isinstance(v, torch.Tensor) for v in weights.values()):
            return weights
    raise ValueError(f'{filename} holds no weights; its keys: {some(map(str, checkpoint))}')


def load_checkpoint(model: nn.Module, filename: str | os.PathLike, map_location: Any = 'cpu',
                    strict: bool = False, logger: logging.Logger | None = None,
                    revise_keys: Sequence[tuple[str, str]] = ((r'^module\.', ''),),
                    prefix: str = '') -> dict[str, Any]:
    """Load the weights in `filename` into `model`; what does not fit is logged.

    Where the names fit no better than by chance, those of torchvision and timm are turned into ours, and a prefix such
    as `module.` or `backbone.` is taken off or put on; a line in the log says so.

    Args:
        filename: what `read_checkpoint` takes.
        strict: raise unless names and shapes agree exactly.
        revise_keys: (pattern, replacement) pairs for `re.sub` on the names in the file.
        prefix: take only the part of the file's model under this name, such as `backbone`.

    Returns:
        The whole checkpoint, as read.

    Raises:
        RuntimeError: hardly anything fits, or more than three layers have another shape: the checkpoint
            of another model. With `strict`, when anything does not fit.
        and what `read_checkpoint` raises.
    """
    checkpoint = read_checkpoint(filename, map_location)
    weights = weights_of(checkpoint, filename)
    beside = ema_buffers(weights)
    revised = _with_layout(weights, ((_revised(k, revise_keys), v) for k, v in weights.items() if k not in beside))
    how, named = _best_reading(revised, unwrapped(model).state_dict(), prefix and prefix.rstrip('.') + '.', filename)
    if how and is_main():
        (logger or logging.getLogger('workspace_lib')).info('%s: %s', filename, how)
    load_state_dict(model, named, strict, logger, filename)
    return checkpoint


def ema_buffers(weights: dict[str, Any]) -> dict[str, str]:
    """What mmcv's EMAHook saves beside the averages, the trained weights: {'ema_head_fc_bias': 'head.fc.bias'}."""
    flat = {f'ema_{name.replace(".", "_")}': name for name in weights}
    return {buffer: name for buffer, name in flat.items() if buffer in weights}


def _revised(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fitting(weights: dict[str, Any], own: dict[str, Any]) -> int:
    return sum(k in own and own[k].shape == getattr(v, 'shape', None) for k, v in weights.items())


def _best_reading(weights: dict[str, Any], own: dict[str, Any], prefix: str,
                  filename: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """What was done to the names, and the result: the first that fits half of the model, or whichever fits most."""
    best: tuple[int, str, dict[str, Any]] | None = None
    for how, named in _readings(weights, own):
        part = _under(named, prefix) if prefix else named
        fitting = _fitting(part, own)
        if part and (best is None or fitting > best[0]):
            best = fitting, how, part
        if 2 * fitting >= len(own):
            break
    if best is None:
        raise RuntimeError(f'{filename} has nothing under {prefix!r}; its parts: '
                           f'{some(sorted({k.partition(".")[0] for k in weights}))}')
    return best[1:]


def _readings(weights: dict[str, Any], own: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ways in which the names may be meant, likeliest first."""
    yield '', weights
    forms: list[tuple[str, dict[str, Any]]] = []
    for bare in without_prefixes(weights):
        how = '' if bare.keys() <= weights.keys() else 'the prefix that all names share was taken off'
        forms.append((how, bare))
        found = detect(bare)
        if found and found[1] != 'mmcls':
            forms.append((f'names of {found[1]} ({found[0]}) were turned into those of mmcls',
                          convert(bare, 'mmcls', found)))
    yield from forms
    for how, form in forms:
        yield from (('; '.join(filter(None, (how, then))), named) for then, named in _aligned(form, own))


def _aligned(weights: dict[str, Any], own: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """With a prefix put on or taken off, so that the first name of one side is a name of the other."""
    for longer, shorter in ((own, weights), (weights, own)):
        first = next(iter(shorter), '')
        # `conv1.weight` is the end of many names, of which the shortest is meant.
        prefix = min((name for name in longer if name.endswith(f'.{first}')), key=len, default='').removesuffix(first)
        if prefix and longer is own:
            yield f'{prefix!r} was put before the names', {prefix + k: v for k, v in weights.items()}
        elif prefix:
            yield f'only what is under {prefix!r} was taken', _under(weights, prefix)


def without_prefixes(weights: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The weights without mmcv's second copies; then, as long as all names share a first part, without that."""
    copies = ema_buffers(weights)
    weights = {k: v for k, v in weights.items() if k not in copies}
    yield weights
    while len({k.partition('.')[0] for k in weights}) == 1 and all('.' in k for k in weights):
        weights = {k.partition('.')[2]: v for k, v in weights.items()}
        yield weights


def _under(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def load_state_dict(module: nn.Module, state_dict: dict[str, Any], strict: bool = False,
                    logger: logging.Logger | None = None,
                    source: str | os.PathLike = 'the state dict') -> None:
    """Copy every tensor whose name and shape fit, and report the rest as `load_checkpoint` does."""
    module = unwrapped(module)
    other_shape, missing, unexpected = _copy_in(module, state_dict)
    if not (other_shape or missing or unexpected):
        return
    own = {k: v for k, v in module.state_dict().items() if not _is_counter(k)}
    fitting = len(own) - len(other_shape) - len(missing)
    shapes = [f'{k} is {tuple(own[k].shape)} here, {tuple(state_dict[k].shape)} there' for k in other_shape]
    # A new stem and a new classifier are two layers of another shape; many are another network. Another
    # architecture may still share a name and a shape by chance, as `head.fc.bias` of 1,000 classes.
    if own and (fitting <= len(own) // 10 or len({k.rpartition('.')[0] for k in other_shape}) > 3):
        raise RuntimeError('\n  '.join([
            f'{source} is a checkpoint of another model: it has {fitting} of {len(own)} tensors', *shapes[:3],
            f'names in the file: {some(state_dict)}', f'names in the model: {some(own)}',
            *_whose(state_dict, source), *_prefix_hint(state_dict, own), 'use the config that it was trained with']))
    lists = {'with another shape': shapes, 'missing': missing, 'unexpected': unexpected}
    report = '\n  '.join([f"{source} has {fitting} of the model's {len(own)} tensors",
                          *(f'{len(names)} {what}: {some(names)}' for what, names in lists.items() if names),
                          *_other_classes(own, state_dict, other_shape)])
    if strict:
        raise RuntimeError(report)
    if is_main():
        (logger or logging.getLogger('workspace_lib')).warning(report)


def _whose(state_dict: dict[str, Any], source: str | os.PathLike) -> list[str]:
    found = next(filter(None, map(detect, without_prefixes(state_dict))), None)
    config = config_of(os.fspath(source))
    hints = [f'the names are those of {found[1]} ({found[0]})' + (
        '; to rename them: workspace convert FILE OUT --to mmcls' if found[1] != 'mmcls' else '')] if found else []
    return [*hints, *([f'it was published with the config {config} of mmclassification'] if config else [])]


def _prefix_hint(state_dict: dict[str, Any], own: dict[str, Any]) -> list[str]:
    fitting = max((_fitting(named, own) for _, named in _aligned(state_dict, own)), default=0)
    return ['a prefix of the names differs: load_checkpoint puts that right by itself'] * (2 * fitting > len(own))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    return getattr(model, '_orig_mod', model)


def _copy_in(module: nn.Module, state_dict: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Names with another shape, missing and unexpected ones.

    Only torch can say, after the layers' own hooks have renamed and resized, which shapes differ: it copies
    what fits, then raises; so those it names are left out of a second call.
    """
    other_shape: list[str] = []
    try:
        result = module.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        other_shape = [k for k in re.findall(r'size mismatch for (\S+):', str(error)) if k in state_dict]
        if not other_shape:
            raise
        result = module.load_state_dict(_with_layout(state_dict, (
            (k, v) for k, v in state_dict.items() if k not in other_shape)), strict=False)
    absent = [k for k in result.missing_keys if k not in other_shape and not _is_counter(k)]
    copies = ema_buffers(state_dict)  # nothing that a model loads
    return other_shape, absent, [k for k in result.unexpected_keys if k not in copies]


def _is_counter(name: str) -> bool:  # old files lack them, and nothing but momentum=None reads them
    return name.endswith('num_batches_tracked')


def _with_layout(state_dict: dict[str, Any], items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A state dict of `items` that keeps the layers' version numbers, which torch hides in an attribute."""
    out: Any = OrderedDict(items)
    if hasattr(state_dict, '_metadata'):
        out._metadata = state_dict._metadata
    return out


def _other_classes(own: dict[str, Any], theirs: dict[str, Any], names: list[str]) -> list[str]:
    weight = next((k for k in names if own[k].dim() == 2 and own[k].shape[1:] == theirs[k].shape[1:]), None)
    if weight is None:
        return []
    return [f'set num_classes={len(theirs[weight])} to use the classifier of this checkpoint '
            f'(the model has num_classes={len(own[weight])}); as it is, {weight} keeps its initial values']


def save_checkpoint(model: nn.Module, filename: str | os.PathLike, optimizer: Any = None,
                    meta: dict[str, Any] | None = None, **extra: Any) -> None:
    """Write `dict(meta, state_dict, optimizer, **extra)`, all tensors on the CPU.

    The file appears whole or not at all: an error or a kill on the way leaves an earlier one as it was.

    Args:
        optimizer: an optimizer, or a dict of them by name; left out when None.
        meta: epoch, iter, CLASSES, config text ...; versions, time and the model's CLASSES are filled in.
        extra: further entries, such as `scaler`.

    Raises:
        TypeError: `meta` is no dict, or something in the file could not be read back safely.
        OSError: such as a full disk; a note says how much was to be written.
    """
    if not isinstance(meta, (dict, type(None))):
        raise TypeError(f'meta must be a dict or None, but got {type(meta)}')
    model = unwrapped(model)
    filled = dict(workspace_lib_version=__version__, torch_version=str(torch.__version__),
                  time=time.asctime())
    if getattr(model, 'CLASSES', None) is not None:
        filled['CLASSES'] = model.CLASSES  # type: ignore[assignment]
    content = dict(meta={**filled, **(meta or {})}, state_dict=model.state_dict(), **extra)
    if isinstance(optimizer, dict):
        content['optimizer'] = {name: one.state_dict() for name, one in optimizer.items()}
    elif optimizer is not None:
        content['optimizer'] = optimizer.state_dict()
    try:
        write_atomically(Path(filename), lambda temporary: save_checked(_on_cpu(content), temporary, filename))
    except OSError as error:
        needed = sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor)) / 2**20
        with suppress(OSError):
            free = shutil.disk_usage(Path(filename).parent).free / 2**20
            error.add_note(f'{filename} takes {needed:.1f} MiB or more; {free:.1f} MiB are free there')
        raise


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        items = ((k, _on_cpu(v)) for k, v in value.items())
        return _with_layout(value, items) if hasattr(value, '_metadata') else dict(items)
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def save_checked(content: dict[str, Any], temporary: Path, filename: str | os.PathLike) -> None:
    """`torch.save` to disk; TypeError, naming `filename`, when reading it back would be refused."""
    with temporary.open('wb') as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch speaks of its own position in the file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    with torch.serialization.safe_globals(allowed_globals()):
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(temporary)
    if unsafe:
        raise TypeError(f'{filename} is not written: it would hold {some(sorted(unsafe))}, which loading '
                        'refuses; keep to tensors, numbers, text, lists and dicts')


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file and rename it to `path`: never half a file; a failure leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_kill in path.parent.glob(glob.escape(f'.{path.name}.') + '*.tmp'):
        left_by_a_kill.unlink()
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # the rename itself; some network file systems have no fsync for folders
        os.fsync(folder)
    os.close(folder)


def link_latest(folder: str | os.PathLike, filename: str, name: str = 'latest.pth') -> None:
    """Let `folder/name` point to `filename` beside it; a copy where the file system knows no links."""

    def link(temporary: Path) -> None:
        try:
            temporary.symlink_to(Path(filename).name)
        except OSError:
            shutil.copy(Path(folder) / Path(filename).name, temporary)

    write_atomically(Path(folder) / name, link)
