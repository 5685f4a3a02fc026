"""Weights of mmcls, torchvision or timm under the names of another of them, or ready to publish.

In: a checkpoint. Out: a file with the weights alone, and what was renamed, kept and left out.
"""
from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from ..checkpoint import save_checked, weights_of, without_prefixes, write_atomically
from ..layouts import convert, detect
from ..safe_load import Inert, read_checkpoint, some


def convert_file(source: str, target: str | os.PathLike, to: str | None = None, layout: str | None = None,
                 ema: bool = False, publish: bool = False, force: bool = False) -> list[str]:
    """Write the weights of `source` to `target` and say, line by line, what became of what.

    The file for mmcls is `dict(meta, state_dict)`; for torchvision and timm it is the state dict that their models
    load. An optimizer is left out: its state follows an order of parameters that another library does not share.

    Raises:
        ValueError: neither `to` nor `publish`; the names are of no known family; `to` has no such network.
        FileExistsError: `target` exists, and not `force`.
    """
    if not (to or publish):
        raise ValueError('nothing to do: give --to, --publish or both')
    path = Path(target)
    if not publish:
        _refuse_existing(path, force)
    checkpoint = read_checkpoint(source)
    weights = _averaged(checkpoint, source) if ema else weights_of(checkpoint, source)
    meta = checkpoint.get('meta') or {}
    kept = {k: v for k, v in meta.items() if not isinstance(v, Inert)} if isinstance(meta, dict) else {}
    new, lines = _renamed(weights, to, layout)
    left_out = [*(k for k, v in checkpoint.items() if k != 'meta' and v is not weights and checkpoint is not weights),
                *(f'meta.{k}' for k in meta if k not in kept)]
    content = dict(meta=kept, state_dict=new) if to in (None, 'mmcls') else new
    if publish:
        path = _publish(content, path, force)
    else:
        write_atomically(path, lambda temporary: save_checked(content, temporary, path))
    lines += [f'left out: {some(left_out)}'] if left_out else []
    return [*lines, f'wrote {path} ({path.stat().st_size:,} bytes, {len(new)} tensors)']


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f'{path} exists; --force writes over it')


def _averaged(checkpoint: dict[str, Any], source: str) -> dict[str, Any]:
    for name in ('model_ema', 'state_dict_ema'):
        if name in checkpoint:
            return checkpoint[name]
    raise ValueError(f'{source} holds no averaged weights (model_ema, state_dict_ema); it has '
                     f'{some(map(str, checkpoint))}')


def _renamed(weights: dict[str, Any], to: str | None, layout: str | None) -> tuple[dict[str, Any], list[str]]:
    if to is None:
        return weights, []
    found = _found(weights, layout)
    if found is None:
        raise ValueError(f'these names are of no network that {layout or "mmcls, torchvision or timm"} has here: '
                         f'{some(weights)}')
    (family, source), bare = found
    new = convert(bare, to, (family, source))
    pairs = [f'{old} -> {name}' for old, name in zip(bare, new, strict=True) if old != name]
    same = [old for old, name in zip(bare, new, strict=True) if old == name]
    return new, [f'{family}, {source} -> {to}', *([f'{len(pairs)} renamed: {some(pairs)}'] if pairs else []),
                 *([f'{len(same)} of the same name: {some(same)}'] if same else [])]


def _found(weights: dict[str, Any], layout: str | None) -> tuple[tuple[str, str], dict[str, Any]] | None:
    for bare in without_prefixes(weights):
        for names in (bare, {f'backbone.{name}': value for name, value in bare.items()}):  # mmcls's backbone alone
            found = detect(names, layout)
            if found:
                return found, names
    return None


def _publish(content: dict[str, Any], path: Path, force: bool) -> Path:
    """Write to a name that holds the hash, which is known only then; `path` itself is left alone."""
    nameless = path.with_name(f'.{path.name}.publish')
    try:
        write_atomically(nameless, lambda temporary: save_checked(content, temporary, path))
        with nameless.open('rb') as file:
            digits = hashlib.file_digest(file, 'sha256').hexdigest()[:8]
        final = path.with_name(f'{path.stem}_{time.strftime("%Y%m%d")}-{digits}.pth')
        _refuse_existing(final, force)
        return nameless.rename(final)
    finally:
        nameless.unlink(missing_ok=True)
