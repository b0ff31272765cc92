"""Runs each stage in the launcher's own process, one at a time: for debugging."""

import os
import signal
import time
from pathlib import Path

from harness import job, process
from harness.executors.base import Ended, stage_environment
from harness.process import Liveness
from harness.store import Status, Store
from harness.task import Task


class InlineExecutor:
    """No processes, no parallelism; a stage that kills its process kills the launcher."""

    name = "inline"

    def __init__(self) -> None:
        self._ended: list[Ended] = []
        self._attached: dict[str, Status] = {}

    def room(self, task: Task) -> bool:
        return not self._ended

    def submit(self, task: Task) -> None:
        os.environ.update(stage_environment(task.cpus))
        state = job.run(task, executor=self.name, job=str(os.getpid()))
        if state == "cancelled" and not Store(Path(task.directory)).status(task.id).pruned:
            # The stage took the signal that was meant for the launcher too.
            signal.raise_signal(signal.SIGTERM)
        self._ended.append(Ended(id=task.id, detail=state))

    def attach(self, task: Task, status: Status) -> Liveness:
        if status.process is None:
            return "dead"  # Never started: the worker that had it died with its launcher.
        alive = process.liveness(status.process)
        if alive == "alive":
            self._attached[task.id] = status
        return alive

    def poll(self, timeout_s: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        for stage, status in list(self._attached.items()):
            if process.liveness(status.process) == "dead":
                del self._attached[stage]
                ended.append(Ended(id=stage, detail="its process ended"))
        if not ended and self._attached:
            time.sleep(timeout_s)
        return ended

    def cancel(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass
