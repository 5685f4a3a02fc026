"""Which of the three lanes `make up` takes on this machine, and why: decided here, for every machine that can be faked.

In: `Facts` of the machine, DEVICE, ENGINE. Out: a `Lane` with one line that says why, or a `LaneError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .doctor import checks
from .doctor.facts import Facts
from .doctor.findings import Finding, way_on
from .doctor.symptoms import recognise


class LaneError(Exception):
    """Why the lane cannot be had, and the way out, in words for the person at the terminal."""


@dataclass(frozen=True)
class Lane:
    """``engine``: docker or local. ``device``: gpu, cpu or, in the local lane, auto (PyTorch decides)."""

    engine: str
    device: str
    why: str

    @property
    def service(self) -> str:
        return 'lab' if self.device == 'gpu' else 'lab-cpu'


def choose_lane(
    facts: Facts, device: str = 'auto', engine: str = 'auto', no_image: Callable[[str], str] = lambda device: ''
) -> Lane:
    """Choose. Which lane is meant, and whether it can be had, is decided by the checks of ``make doctor``.

    A host with a GPU never falls back by itself: whoever bought one wants to know that it idles.

    Args:
        device: auto, gpu or cpu; engine: auto, docker or local. What is not auto is had or refused.
        no_image: asked, with the device, only once a container is the choice: why its image cannot be had, or ''.

    Raises:
        LaneError: what was asked for cannot be had; or there is something to mend which a silent choice would hide.
    """
    meant = checks.choose_lane(facts, device, engine)
    hindrance = checks.first_hindrance(facts, meant, device)
    if hindrance:
        raise LaneError(_refusal(hindrance, meant))
    if meant == 'local':
        return Lane('local', device, 'ENGINE=local' if engine == 'local' else 'no Docker on this host')
    problem = no_image(meant)
    if not problem:
        return Lane('docker', meant, _why(facts, meant, device))
    if meant == 'gpu' or engine == 'docker' or device == 'cpu':
        raise LaneError(_without_image(problem, meant))
    return Lane('local', 'auto', f'no NVIDIA GPU on this host, and the image cannot be had: {problem}')


def _why(facts: Facts, lane: str, device: str) -> str:
    if lane == 'cpu':
        return 'DEVICE=cpu' if device == 'cpu' else 'Docker, but no NVIDIA GPU on this host'
    names = ', '.join(gpu.name for gpu in facts.driver.gpus) or 'the GPU'
    return f'{names}, driver {facts.driver.version}'


def _refusal(fault: Finding, lane: str) -> str:
    seen = f': {_first_line(fault.seen)}' if fault.seen else ''
    other = way_on(lane, [fault])
    return (
        f'{fault.said}{seen}\n{_to_mend(fault.cause, fault.way_out)}make doctor says more.'
        + (f' The way on without it: {other}' if other else '')
    )


def _without_image(problem: str, lane: str) -> str:
    without_gpu = '. Without the GPU: make up DEVICE=cpu' if lane == 'gpu' else ''
    return (
        f'the image cannot be had: {problem}\n{mend(problem)}With a network or a wheelhouse: make build. '
        f'Without a container: make up ENGINE=local{without_gpu}'
    )


def mend(text: str) -> str:
    """What `make doctor` would say to an error message: the cause and the ways out of the first row that fits."""
    found = recognise(text)
    return _to_mend(*found[0].symptom.told(**found[0].values)) if found else ''


def _to_mend(cause: str, way_out: list[str]) -> str:
    return f'{cause} To mend it:\n' + ''.join(f'    {line}\n' for line in way_out)


def _first_line(text: str) -> str:
    """The line that says it: one that is known, else the first."""
    found = recognise(text)
    return found[0].line if found else text.strip().splitlines()[0]
