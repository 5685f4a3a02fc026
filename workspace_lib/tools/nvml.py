"""What a GPU does right now, by NVIDIA's management library: load, memory, power, heat, clocks, what limits them.

In: ``pynvml`` (package nvidia-ml-py), or a module like it. Out: a `Sample` of one card; a thread that takes them.
"""
from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: The bits of nvmlClocksEventReasons in words (NVML API reference, "NvmlClocksEventReasons"; the last two are of the
#: older nvmlClocksThrottleReasons).
REASONS = {0x1: 'idle', 0x2: 'clocks set by the user', 0x4: 'power cap', 0x8: 'hardware slowdown', 0x10: 'sync boost',
           0x20: 'heat (software)', 0x40: 'heat (hardware)', 0x80: 'power brake', 0x100: 'clocks set for the display',
           0x200: 'board limit', 0x400: 'reliability voltage'}
#: What somebody set, or an idle card does by itself: no limit that a training runs into.
HARMLESS = {'idle', 'clocks set by the user', 'clocks set for the display'}


@dataclass(frozen=True)
class Sample:
    """One look at one GPU; None where the card or its driver does not tell."""

    utilisation: int | None      #: percent of the last sampling period (1/6 to 1 s) in which a kernel ran
    memory_used: int | None      #: bytes, of all processes
    memory_total: int | None     #: bytes
    power: float | None          #: watts
    power_limit: float | None    #: watts, the limit in force
    temperature: int | None      #: degrees Celsius
    sm_clock: int | None         #: MHz
    memory_clock: int | None     #: MHz
    reasons: tuple[str, ...] | None  #: why the clocks are not higher, in words

    @property
    def held_back(self) -> list[str]:
        """The reasons that are limits: power, heat, the supply."""
        return [reason for reason in self.reasons or () if reason not in HARMLESS]


def open_nvml(nvml: Any = None) -> Any:
    """`nvml`, else pynvml, with its session begun; end it with ``nvmlShutdown``.

    Raises:
        RuntimeError: no package, no driver, a driver that does not answer; says what to do.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError as error:
            raise RuntimeError('watching a GPU needs the package nvidia-ml-py: pip install nvidia-ml-py') from error
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise RuntimeError(f'no NVIDIA driver answers ({error}): make doctor finds out why, and what mends it') \
            from error
    return nvml


class Card:
    """One GPU of a session. Its handle is NVML's; nothing raises once it is found."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    def ask(self, call: str, *args: Any) -> Any:
        """What ``nvml.<call>(handle, *args)`` answers; None where the card, its driver or the package cannot say."""
        function = getattr(self.nvml, call, None)
        if function is None:
            return None
        try:
            return function(self.handle, *args)
        except self.nvml.NVMLError:
            return None

    def read(self) -> Sample:
        load, memory = self.ask('nvmlDeviceGetUtilizationRates'), self._memory()
        return Sample(
            utilisation=load and load.gpu, memory_used=memory and memory.used, memory_total=memory and memory.total,
            power=_watts(self.ask('nvmlDeviceGetPowerUsage')),
            power_limit=_watts(self.ask('nvmlDeviceGetEnforcedPowerLimit')),
            temperature=self.ask('nvmlDeviceGetTemperature', self.nvml.NVML_TEMPERATURE_GPU),
            sm_clock=self.ask('nvmlDeviceGetClockInfo', self.nvml.NVML_CLOCK_SM),
            memory_clock=self.ask('nvmlDeviceGetClockInfo', self.nvml.NVML_CLOCK_MEM), reasons=self._reasons())

    def _memory(self) -> Any:
        """The second version, which leaves out what the driver keeps for itself as nvidia-smi does, else the first."""
        version = getattr(self.nvml, 'nvmlMemory_v2', None)
        return version and self.ask('nvmlDeviceGetMemoryInfo', version) or self.ask('nvmlDeviceGetMemoryInfo')

    def _reasons(self) -> tuple[str, ...] | None:
        bits = self.ask('nvmlDeviceGetCurrentClocksEventReasons')
        if bits is None:  # a driver before 535
            bits = self.ask('nvmlDeviceGetCurrentClocksThrottleReasons')
        if bits is None:
            return None
        return tuple(REASONS.get(1 << n, f'reason {1 << n:#x}') for n in range(bits.bit_length()) if bits >> n & 1)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


class Sampler:
    """Calls `read` now and every `interval` seconds in a thread of its own, and keeps what it returns until taken.

    The thread ends with ``stop``, with the process, or when nobody holds the sampler any more.
    """

    def __init__(self, read: Callable[[], Any], interval: float, keep: int = 3600) -> None:
        self._answers: deque[Any] = deque(maxlen=keep)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_sample, args=(read, interval, self._answers, self._stop),
                                        name='gpu sampler', daemon=True)
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def take(self) -> list[Any]:
        """What came since the last call, oldest first; the last `keep` of it."""
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def stop(self, seconds: float = 2) -> bool:
        """Whether the thread has ended; a driver that hangs is not waited for any longer."""
        self._stop.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()


def _sample(read: Callable[[], Any], interval: float, answers: deque[Any], stop: threading.Event) -> None:
    while not stop.is_set():
        answers.append(read())
        stop.wait(interval)
