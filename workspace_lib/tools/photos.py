"""Real photographs without a network: those that the packages scikit-image and scikit-learn carry.

In: a name such as `chelsea.png`. Out: the path of the file inside the installed package.
"""
from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Photograph:
    """Where it is, what is on it (never what a model said), and whose it is."""

    distribution: str
    folder: str
    content: str
    credit: str


_SKIMAGE, _SKLEARN = ('scikit-image', 'skimage/data'), ('scikit-learn', 'sklearn/datasets/images')
PHOTOGRAPHS = {
    'chelsea.png': Photograph(*_SKIMAGE, 'a cat', 'Stefan van der Walt, CC0'),
    'coffee.png': Photograph(*_SKIMAGE, 'an espresso on a table', 'Rachel Michetti, CC0'),
    'camera.png': Photograph(*_SKIMAGE, 'a man, a camera, a tripod; grey', 'Lav Varshney, CC0'),
    'rocket.jpg': Photograph(*_SKIMAGE, 'the launch of a Falcon 9', 'SpaceX, public domain'),
    'flower.jpg': Photograph(*_SKLEARN, 'a dahlia', 'vultilion on Flickr, CC BY 2.0'),
    'china.jpg': Photograph(*_SKLEARN, 'the Summer Palace in Beijing', 'danielbuechele on Flickr, CC BY 2.0'),
}


def photograph(name: str) -> Path:
    """The file of one of `PHOTOGRAPHS`; neither package is imported for it.

    Raises:
        KeyError: no photograph of that name.
        ModuleNotFoundError: its package is not installed.
        FileNotFoundError: the package no longer carries it.
    """
    if name not in PHOTOGRAPHS:
        near = difflib.get_close_matches(name, PHOTOGRAPHS, 1, cutoff=0.5)
        hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(PHOTOGRAPHS)}'
        raise KeyError(f'no photograph {name!r}; {hint}')
    photo = PHOTOGRAPHS[name]
    package, _, folder = photo.folder.partition('/')
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f'{name} lies in the package {photo.distribution}, which is not installed: '
                                  "pip install 'workspace-lib[demo]'")
    path = Path(spec.origin).parent / folder / name
    if not path.is_file():
        raise FileNotFoundError(f'{photo.distribution} is installed, but holds no {folder}/{name}; '
                                'the versions in requirements/constraints.txt do')
    return path
