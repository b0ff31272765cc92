"""What a call or a process takes: wall time, processor time, memory."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
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


def measured_process(
    command: Sequence[str], *, success: Collection[int] = (0,)
) -> tuple[float, float]:
    """Seconds and peak megabytes of a process, whose output is dropped.

    Raises CalledProcessError for an exit code that is none of ``success``.
    """
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        # Of this child alone; a child's peak starts at its parent's, which is small here.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode not in success:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, usage.ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
