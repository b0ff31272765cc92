"""What a call takes: wall time, and processor time of this process and of what it started."""

import resource
import time
from collections.abc import Callable
from typing import TypedDict

NOT_INSTALLED = 3
"""Exit code when a peer is not there."""


class Cost(TypedDict):
    """Seconds."""

    wall: float
    launcher: float
    """Processor time of the calling process."""
    total: float
    """With that of all processes that it started and waited for."""


def measured(call: Callable[[], object]) -> Cost:
    """The cost of a call."""
    began, own, theirs = (
        time.monotonic(),
        _cpu(resource.RUSAGE_SELF),
        _cpu(resource.RUSAGE_CHILDREN),
    )
    call()
    launcher = _cpu(resource.RUSAGE_SELF) - own
    return {
        "wall": time.monotonic() - began,
        "launcher": launcher,
        "total": launcher + _cpu(resource.RUSAGE_CHILDREN) - theirs,
    }


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
