"""Which of the three lanes `make up` takes on this machine, and why: decided here, for every machine that can be faked.

In: `Facts` of the machine, DEVICE, ENGINE. Out: a `Lane` with one line that says why, or a `LaneError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .doctor.base_image import choose_base_image
from .doctor.facts import Facts, version_number
from .doctor.symptoms import recognise

# The oldest of each that serve; make doctor demands the same.
ENGINE, COMPOSE = (20, 10), (2,)
WAY_ON = 'The way on without the GPU: make up DEVICE=cpu'
LOOK = 'make doctor says more.'


def dotted(version: tuple[int, ...]) -> str:
    return '.'.join(map(str, version))


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
    """Choose.

    Args:
        device: auto, gpu or cpu; engine: auto, docker or local. What is not auto is had or refused.
        no_image: asked, with the device, only once a container is the choice: why its image cannot be had, or ''.

    Raises:
        LaneError: what was asked for cannot be had; or there is something to mend which a silent choice would hide.
    """
    if engine == 'local':
        return Lane('local', device, 'ENGINE=local')
    if not facts.docker_installed:
        return _without_docker(facts, device, engine)
    if facts.docker.error:
        raise LaneError(
            f'Docker is installed, but does not answer: {_first_line(facts.docker.error)}\n'
            f'{mend(facts.docker.error)}{LOOK} The way on without Docker: make up ENGINE=local'
        )
    if facts.docker.version and version_number(facts.docker.version) < ENGINE:
        raise LaneError(
            f'Docker Engine {facts.docker.version} is too old: {dotted(ENGINE)} or newer is needed. Bring it with: '
            'scripts/setup_ubuntu.sh docker; or go on without Docker: make up ENGINE=local'
        )
    if not facts.compose_version.ok or version_number(facts.compose_version.text.lstrip('v')) < COMPOSE:
        raise LaneError(
            'Docker is here, but Docker Compose 2 is not: sudo apt-get install -y docker-compose-plugin '
            '(or docker-compose-v2). The way on without it: make up ENGINE=local'
        )
    if device != 'cpu' and facts.gpu_on_bus:
        return _with_gpu(facts, no_image)
    if device == 'gpu':
        raise LaneError(
            f'DEVICE=gpu: there is no NVIDIA GPU on this host (none on the PCI bus, no driver loaded). {WAY_ON}'
        )
    return _cpu(device, engine, no_image)


def _without_docker(facts: Facts, device: str, engine: str) -> Lane:
    if engine == 'docker':
        raise LaneError(
            'ENGINE=docker: Docker is not installed on this host. Bring it with: '
            'scripts/setup_ubuntu.sh docker; or leave ENGINE out: the lab then runs in .venv'
        )
    if device == 'gpu' and not facts.gpu_on_bus:
        raise LaneError(f'DEVICE=gpu: there is no NVIDIA GPU on this host, and no Docker. {WAY_ON}')
    return Lane('local', device, 'no Docker on this host')


def _with_gpu(facts: Facts, no_image: Callable[[str], str]) -> Lane:
    """A host with a GPU never falls back by itself: whoever bought one wants to know that it idles."""
    if facts.driver.error:
        raise LaneError(
            f'this host has an NVIDIA GPU, but its driver does not answer: {_first_line(facts.driver.error)}\n'
            f'{mend(facts.driver.error)}{LOOK} {WAY_ON}'
        )
    if not facts.docker.knows_nvidia:
        said = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
        raise LaneError(
            f'this host has an NVIDIA GPU, but Docker cannot hand it over: {said}\n{mend(said)}{LOOK} {WAY_ON}'
        )
    choice = choose_base_image(facts.driver)
    if choice.image is None and not facts.settings.get('BASE_IMAGE'):
        raise LaneError(
            f'no base image serves this host: {choice.reason}. One of your own: BASE_IMAGE in .env. {WAY_ON}'
        )
    problem = no_image('gpu')
    if problem:
        raise LaneError(
            f'the image for the GPU cannot be had: {problem}\n'
            f'With a network or a wheelhouse: make build. Without a container: make up ENGINE=local. {WAY_ON}'
        )
    names = ', '.join(gpu.name for gpu in facts.driver.gpus) or 'the GPU'
    return Lane('docker', 'gpu', f'{names}, driver {facts.driver.version}')


def _cpu(device: str, engine: str, no_image: Callable[[str], str]) -> Lane:
    problem = no_image('cpu')
    if not problem:
        return Lane('docker', 'cpu', 'DEVICE=cpu' if device == 'cpu' else 'Docker, but no NVIDIA GPU on this host')
    if engine == 'docker' or device == 'cpu':
        raise LaneError(
            f'the image cannot be had: {problem}\nWith a network or a wheelhouse: make build. '
            'Without a container: make up ENGINE=local'
        )
    return Lane('local', 'auto', f'no NVIDIA GPU on this host, and the image cannot be had: {problem}')


def mend(text: str) -> str:
    """What `make doctor` would say to an error message: the cause and the first way out of the first row that fits."""
    found = recognise(text)
    if not found:
        return ''
    cause, way_out = found[0].symptom.told(**found[0].values)
    return f'{cause} To mend it:\n' + ''.join(f'    {line}\n' for line in way_out)


def _first_line(text: str) -> str:
    """The line that says it: one that is known, else the first."""
    found = recognise(text)
    return found[0].line if found else (text.strip().splitlines() or ['no reason given'])[0]
