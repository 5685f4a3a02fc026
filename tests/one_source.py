"""mmclassification draws from numpy's global generator and from Python's; here both draw from Python's, so that a step
of this library with a `random.Random` of the same seed makes the same choices."""
from __future__ import annotations

import random

import numpy as np
import pytest


def normal(mean, std, size):
    """What `RandomErasing` paints: one number of the source seeds the noise of a whole rectangle."""
    if isinstance(size, int):
        return np.array([random.gauss(mean, std) for _ in range(size)])
    noise = np.random.Generator(np.random.PCG64(random.getrandbits(64))).standard_normal(size, np.float32)
    return noise * np.array(std, np.float32) + np.array(mean, np.float32)


@pytest.fixture
def one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, 'rand', random.random)
    monkeypatch.setattr(np.random, 'uniform', lambda low, high=1.: random.uniform(low, high))
    monkeypatch.setattr(np.random, 'randint', random.randrange)
    monkeypatch.setattr(np.random, 'normal', normal)
