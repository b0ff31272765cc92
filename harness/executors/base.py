"""What the dispatcher asks of a place where stages run."""

import dataclasses
import os
from typing import Protocol

from harness.process import Liveness
from harness.store import Status
from harness.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """A stage that its executor no longer runs. What became of it stands in its status."""

    id: str
    """The stage's id."""
    detail: str
    """How its process ended, for when the status does not say."""


def stage_environment(cpus: int) -> dict[str, str]:
    """Environment of a stage, to be set before its libraries load.

    It gives the numerical ones so many threads, and keeps progress bars out of the log. Models and
    data sets come from the caches alone, unless the launcher's own environment says otherwise:
    ``harness.prefetch`` fills them once, and many jobs must not do it at a time.
    """
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return {
        **dict.fromkeys(threads, str(cpus)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **{name: os.environ.get(name, "1") for name in offline},
    }


class Executor(Protocol):
    """Runs stages. Every implementation passes the suite in ``tests/harness/conformance.py``.

    An executor knows nothing of plans, retries or dependencies; and it says that a stage ended
    only when it knows, never because it could not find out.
    """

    name: str

    def room(self, task: Task) -> bool:
        """Whether the stage could start now."""
        ...

    def submit(self, task: Task) -> None:
        """Start the stage, or queue it. Its folder exists."""
        ...

    def attach(self, task: Task, status: Status) -> Liveness:
        """Take up a stage that an earlier launcher submitted.

        When it is alive, ``poll`` will say when it ends.
        """
        ...

    def poll(self, timeout_s: float) -> list[Ended]:
        """Stages that ended; waits at most this long for the first."""
        ...

    def cancel(self) -> None:
        """Ask everything that runs to stop; ``poll`` says when it has."""
        ...

    def kill(self) -> None:
        """Stop everything at once; ``poll`` says what ended."""
        ...

    def close(self) -> None:
        """Let go of all resources; nothing runs any more."""
        ...
