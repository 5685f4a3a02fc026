"""Which CUDA variant of the base image fits this driver and this card, and why.

In: `Driver`. Out: ``cuda13.0`` or ``cuda12.6`` (None: neither) with the reason in one sentence.
Driver minima: CUDA compatibility guide of the vendor. Architectures: what PyTorch 2.14 is compiled for on x86-64.
"""
from __future__ import annotations

from dataclasses import dataclass

from .facts import Driver, Gpu

TAG = 'pytorch/pytorch:2.14.0-{}-cudnn9-devel'
# (variant, oldest driver, lowest and highest compute capability), the preferred one first. A capability in between
# runs: code for 8.6 serves 8.9.
VARIANTS = (('cuda13.0', (580,), (7, 5), (12, 9)), ('cuda12.6', (525, 60, 13), (5, 0), (9, 9)))
# With drivers before this one CUDA 12.6 runs by minor-version compatibility: its own version check must be told so.
NATIVE_126 = (560,)


@dataclass(frozen=True)
class Choice:
    variant: str | None
    reason: str

    @property
    def image(self) -> str | None:
        return TAG.format(self.variant) if self.variant else None


def choose_base_image(driver: Driver) -> Choice:
    """The newest variant that both the driver and every card can run."""
    for variant, oldest, low, high in VARIANTS:
        if driver.number >= oldest and all(low <= gpu.capability <= high for gpu in driver.gpus if gpu.capability):
            return Choice(variant, _reason(variant, driver))
    return Choice(None, _why_none(driver))


def arch_list(gpus: list[Gpu]) -> str:
    """TORCH_CUDA_ARCH_LIST of these cards: '8.9', or '7.5;8.9' for two kinds."""
    return ';'.join(f'{a}.{b}' for a, b in sorted({gpu.capability for gpu in gpus if gpu.capability}))


def _reason(variant: str, driver: Driver) -> str:
    old = [gpu for gpu in driver.gpus if gpu.capability and gpu.capability < (7, 5)]
    if variant == 'cuda13.0':
        return f'driver {driver.version} is 580 or newer, and the card is Turing (7.5) or newer'
    if old and driver.number >= (580,):
        return f'{old[0].name} ({arch_list(old[:1])}) is older than Turing, which CUDA 13 no longer serves'
    return f'driver {driver.version} is older than the 580 that CUDA 13.0 needs'


def _why_none(driver: Driver) -> str:
    archs = {gpu.capability for gpu in driver.gpus if gpu.capability}
    if any(arch < (5, 0) for arch in archs):
        return 'a card older than Maxwell (5.0) is served by no current PyTorch; go on with DEVICE=cpu'
    if driver.number < VARIANTS[-1][1]:
        return f'driver {driver.version} is older than 525.60.13, which CUDA 12.6 needs'
    if any(arch >= (10, 0) for arch in archs) and driver.number < (580,):
        return f'a Blackwell card needs CUDA 13.0 and so driver 580 or newer; here is {driver.version}'
    return ('one card is older than Turing and another newer than Hopper: no one image serves both; '
            'name the one for the cards that are to be used as BASE_IMAGE in .env')
