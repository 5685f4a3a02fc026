"""What a check has to say: fine, not tried, a warning, or a fault with its row of the symptom table."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .symptoms import BY_KEY, recognise


@dataclass(frozen=True)
class Finding:
    """``level`` is ok, skip, warn or fail; only fail keeps the lane from working.

    ``seen`` is the text it rests on, ``status`` the exit status of its row (0 for ok, skip and warn).
    """
    level: str
    said: str
    symptom: str = ''
    cause: str = ''
    way_out: list[str] = field(default_factory=list)
    seen: str = ''

    @property
    def status(self) -> int:
        if self.level != 'fail':
            return 0
        return BY_KEY[self.symptom].status if self.symptom else 1


def ok(said: str) -> Finding:
    return Finding('ok', said)


def skip(said: str) -> Finding:
    return Finding('skip', said)


def fault(key: str, said: str = '', *, level: str = 'fail', cause: str = '', way_out: list[str] | None = None,
          seen: str = '', **values: Any) -> Finding:
    """A row of the table; what is known of this machine (``cause``, ``way_out``, fields) goes before its own."""
    usual_cause, usual_way = BY_KEY[key].told(**values)
    return Finding(level, said or BY_KEY[key].title, key, cause or usual_cause, way_out or usual_way, seen)


def fault_from_text(text: str, otherwise: str, said: str = '', **values: Any) -> Finding:
    """The row that an error message fits, else the row ``otherwise`` with the message beside it."""
    found = recognise(text)
    if not found:
        return fault(otherwise, said, seen=text, **values)
    return fault(found[0].symptom.key, said, seen=found[0].line, **{**values, **found[0].values})


def way_on(lane: str, faults: list[Finding]) -> str:
    """The command that starts the lab on this machine without mending them; '' where no lane goes round them."""
    if lane != 'local' and any(10 <= fault.status < 20 for fault in faults):  # Docker itself: no container at all
        return 'make up ENGINE=local'
    gpu_alone = any(20 <= fault.status < 30 or fault.symptom in ('no-gpu', 'rlimit') for fault in faults)
    return 'make up DEVICE=cpu' if gpu_alone else ''
