"""Images as raw uint8 in one file that is mapped into memory: nothing to decode, and all workers share the pages.

In: a folder `NAME.pack` as `data_prefix`, as `scripts/prepare_*.sh --pack` writes it. Out: the samples that files would
give, with `img`.
"""
from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

SUFFIX = '.pack'


def is_pack(prefix: str) -> bool:
    return prefix.rstrip('/').endswith(SUFFIX)


class Pack:
    """The images of a pack by number. Both files are mapped, not read: memory stays flat whatever their size.

    Raises:
        FileNotFoundError: no such pack. ValueError: its two files do not belong together.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        pixels = os.path.join(folder, 'pixels.bin')
        if not os.path.isfile(pixels):
            raise FileNotFoundError(f'{folder} is no packed data set: there is no pixels.bin in it; make it with '
                                    'scripts/prepare_imagenet.sh --pack, or set data_prefix to a folder of images')
        # plain arrays over the maps: a memmap would make one of its own kind, slowly, for each image
        index = np.load(os.path.join(folder, 'index.npy'), mmap_mode='r').view(np.ndarray)
        self.names, self._offsets = index['name'], index['offset']
        self._heights, self._widths = index['height'], index['width']
        end = int(self._offsets[-1]) + int(self._heights[-1]) * int(self._widths[-1]) * 3
        if os.path.getsize(pixels) != end:
            raise ValueError(f'{pixels} has {os.path.getsize(pixels):,} bytes, index.npy is for {end:,}; make the pack '
                             'anew')
        with open(pixels, 'rb') as file:
            self._pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.folder,)  # a worker that does not fork maps the files itself

    def image(self, number: int) -> np.ndarray:
        """uint8 (H, W, 3) in BGR order, read-only: the pages of the file themselves."""
        height, width = int(self._heights[number]), int(self._widths[number])
        start = int(self._offsets[number])
        return self._pixels[start:start + height * width * 3].reshape(height, width, 3)

    def find(self, paths: Iterable[bytes], count: int) -> np.ndarray:
        """Numbers of `count` images by their paths. ValueError names the first that is not there."""
        names = np.fromiter(paths, f'S{self.names.dtype.itemsize + 1}', count)
        order = np.argsort(self.names, kind='stable')
        places = order[np.searchsorted(self.names, names, sorter=order).clip(max=len(order) - 1)]
        if (missing := np.flatnonzero(self.names[places] != names)).size:
            raise ValueError(f'{self.folder} lacks {missing.size:,} of the {len(names):,} images of the annotation, '
                             f'such as {os.fsdecode(names[missing[0]])}; pack the data set that it is of')
        return places

    def folders(self) -> dict[str, list[str]]:
        """Paths of the images by the folder that they were in."""
        found: dict[str, list[str]] = {}
        for name in map(os.fsdecode, self.names.tolist()):
            found.setdefault(name.partition('/')[0] if '/' in name else '.', []).append(name)
        return found
