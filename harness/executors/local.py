"""Runs stages on this machine, in as many warm worker processes as cores, GPUs and memory allow."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import IO

from harness import machine, process
from harness.executors.base import Ended, stage_environment
from harness.process import Liveness
from harness.store import Status
from harness.task import Task

CLOSE_GRACE_S = 5.0

ALLOCATOR = {
    # Keeps freed tensors in the heap instead of giving their pages back and faulting them in again.
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclasses.dataclass(kw_only=True)
class _Worker:
    process: "subprocess.Popen[bytes]"
    cpus: int
    gpus: tuple[str, ...]
    task: Task | None = None
    unread: bytes = b""

    @property
    def replies(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


class LocalExecutor:
    """A pool of workers. A worker keeps the thread count and the GPUs it was started with."""

    name = "local"

    def __init__(self, *, jobs: int | None = None) -> None:
        """``jobs``: stages at a time at most; by default as many as fit."""
        self._jobs = jobs
        self._cores, self._memory = machine.cores(), machine.memory_gb()
        self._gpus = machine.gpus()
        self._workers: list[_Worker] = []
        self._attached: dict[str, Status] = {}
        self._selector = selectors.DefaultSelector()

    def room(self, task: Task) -> bool:
        running = [worker.task for worker in self._workers if worker.task]
        if not running and not self._attached:
            return len(self._gpus) >= task.gpus
        if self._jobs is not None and len(running) + len(self._attached) >= self._jobs:
            return False
        return (
            not self._attached
            # --jobs is a promise of the user's about the machine; else every stage has its cores.
            and (self._jobs is not None or sum(t.cpus for t in running) + task.cpus <= self._cores)
            and sum(t.mem_gb for t in running) + task.mem_gb <= self._memory
            and len(self._free_gpus()) >= task.gpus
        )

    def submit(self, task: Task) -> None:
        worker = self._idle_worker(task) or self._start_worker(task)
        worker.task = task
        assert worker.process.stdin is not None
        # A worker that died while idle is found by poll, and the stage is tried again.
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write(json.dumps(dataclasses.asdict(task)).encode() + b"\n")
            worker.process.stdin.flush()

    def attach(self, task: Task, status: Status) -> Liveness:
        if status.process is None:
            return "dead"  # Never started: the worker that had it died with its launcher.
        alive = process.liveness(status.process)
        if alive == "alive":
            self._attached[task.id] = status
        return alive

    def poll(self, timeout_s: float) -> list[Ended]:
        ended = [ended for worker in list(self._workers) if (ended := self._reap(worker))]
        for key, _ in self._selector.select(0 if ended else timeout_s):
            ended += self._read(key.data)
        ended += [ended_ for worker in list(self._workers) if (ended_ := self._reap(worker))]
        for stage, status in list(self._attached.items()):
            if process.liveness(status.process) == "dead":
                del self._attached[stage]
                ended.append(Ended(id=stage, detail="its process ended"))
        return ended

    def cancel(self) -> None:
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        self._signal(signal.SIGKILL, group=True)

    def close(self) -> None:
        for worker in self._workers:
            if worker.process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    worker.process.stdin.close()
        deadline = time.monotonic() + CLOSE_GRACE_S
        for worker in list(self._workers):
            try:
                worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill_group(worker)
            self._remove(worker)
        self._selector.close()

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        for worker in self._workers:
            if worker.task and worker.process.poll() is None:
                if group:
                    _kill_group(worker)
                else:
                    os.kill(worker.process.pid, number)
        for status in self._attached.values():
            if status.process and process.liveness(status.process) == "alive":
                os.kill(status.process["pid"], number)

    def _free_gpus(self) -> list[str]:
        taken = {gpu for worker in self._workers if worker.task for gpu in worker.gpus}
        return [gpu for gpu in self._gpus if gpu not in taken]

    def _idle_worker(self, task: Task) -> _Worker | None:
        for worker in self._workers:
            fits = worker.cpus == task.cpus and len(worker.gpus) == task.gpus
            free = set(worker.gpus) <= set(self._free_gpus())
            if worker.task is None and fits and free and worker.process.poll() is None:
                return worker
        return None

    def _start_worker(self, task: Task) -> _Worker:
        self._retire_idle()
        gpus = tuple(self._free_gpus()[: task.gpus])
        environment = {
            **os.environ,
            **ALLOCATOR,
            **stage_environment(task.cpus),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        }
        # A session of its own: Ctrl-C reaches the launcher alone, and a dead worker's children
        # are found by its group.
        worker = _Worker(
            process=subprocess.Popen(
                [sys.executable, "-m", "harness.executors.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            ),
            cpus=task.cpus,
            gpus=gpus,
        )
        os.set_blocking(worker.replies.fileno(), False)
        self._selector.register(worker.replies, selectors.EVENT_READ, worker)
        self._workers.append(worker)
        return worker

    def _retire_idle(self) -> None:
        """Free the memory of workers that nothing waits for, as a new kind of worker is needed."""
        for worker in [worker for worker in self._workers if worker.task is None]:
            _kill_group(worker)
            worker.process.wait()
            self._remove(worker)

    def _read(self, worker: _Worker) -> list[Ended]:
        try:
            chunk = os.read(worker.replies.fileno(), 65536)
        except BlockingIOError:  # A child of the dead worker still holds the pipe.
            return []
        if not chunk:
            # Dead or dying: wait, so that it is reaped now and not some polls later.
            self._selector.unregister(worker.replies)
            worker.process.wait()
            return []
        lines = (worker.unread + chunk).split(b"\n")
        worker.unread = lines.pop()
        ended = []
        for line in lines:
            worker.task = None
            reply = json.loads(line)
            ended.append(Ended(id=reply["id"], detail=reply["state"]))
        return ended

    def _reap(self, worker: _Worker) -> Ended | None:
        code = worker.process.poll()
        if code is None:
            return None
        ended = self._read(worker) if worker.replies in self._selector.get_map() else []
        _kill_group(worker)
        self._remove(worker)
        if ended:
            return ended[0]
        if worker.task is None:
            return None
        return Ended(id=worker.task.id, detail=_how(code))

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        if worker.replies in self._selector.get_map():
            self._selector.unregister(worker.replies)
        worker.replies.close()
        if worker.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
        worker.process.wait()


def _kill_group(worker: _Worker) -> None:
    """Kill the worker and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)


def _how(code: int) -> str:
    if code >= 0:
        return f"its worker process exited with code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its worker process was killed by {name}{hint}"
