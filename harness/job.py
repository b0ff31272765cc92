"""One stage, run in this process: the same for every executor.

The job keeps its own ``status.json``, so that what became of it is known even when whoever
launched it is gone.
"""

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import process, ranks
from harness.store import UNWRITABLE, State, Store, Unwritable, writing
from harness.task import Task
from observe.errors import InputError

HEARTBEAT_S = 5.0
PROGRESS_S = 1.0


class Cancelled(BaseException):
    """The job was told to stop. Not an Exception, so that no stage swallows it."""


class Displaced(BaseException):
    """The job must leave its place, and be started again: its time is up, or others go first."""


class Pruned(BaseException):
    """The job's result is not wanted any more; what it has written stays."""


def run(task: Task, *, executor: str, job: str, queued: bool = False) -> State:
    """Run the stage, write its result and status, and return the state it ended in.

    ``queued``: a queue may start a stage again that was cancelled, so that its status is submitted.

    SIGTERM and SIGINT raise Cancelled in the stage, and SIGUSR2 Displaced, after which it is
    submitted, not running. A file ``prune`` in its folder ends it when it next tells its progress:
    cancelled, of class Pruned. The stage's own exceptions are recorded (class and message in the
    status, trace in ``log.txt``), not raised. Raises Unwritable or OSError where none of this can
    be written.
    """
    store = Store(Path(task.directory))
    if store.status(task.id).attempt != task.attempt:
        return "cancelled"  # A later launcher has taken over.
    status = _LiveStatus(store, task, executor, job)
    state: State
    error: dict[str, str] | None = None
    with _log(store.log(task.id)), status.beating(), _interruptible() as interruption:
        try:
            interruption.armed = True
            result = _call(task, store, status.progress)
            interruption.armed = False
            store.write_result(task.id, result)
            state = "done"
        except Cancelled:
            interruption.armed = False
            print("cancelled", file=sys.stderr)
            state, error = "cancelled", {"class": "Cancelled", "message": "told to stop"}
        except Displaced:
            interruption.armed = False
            print("told to make room; to be started again", file=sys.stderr)
            state = "submitted"
        except Pruned:
            interruption.armed = False
            state, error = "cancelled", {"class": "Pruned", "message": "ended early by the search"}
        except InputError as cause:
            interruption.armed = False
            print(f"error: {cause}", file=sys.stderr)
            state, error = "failed", {"class": "InputError", "message": str(cause)}
        except (Exception, SystemExit) as cause:
            interruption.armed = False
            traceback.print_exc()
            state, error = "failed", {"class": type(cause).__name__, "message": str(cause)}
        requeued = queued and (error or {}).get("class") == "Cancelled"
        status.end("submitted" if requeued else state, None if requeued else error)
    store.event(state, stage=task.id, attempt=task.attempt, **(error or {}))
    return state


def _call(task: Task, store: Store, progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    if task.nodes * task.processes > 1:
        with writing(store.folder(task.id), only=UNWRITABLE):
            return ranks.run(task, store, progress)
    module, _, name = task.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    # The thread count changes floating-point results; a warm process may have had another.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(task.cpus)
    inputs = {role: store.folder(stage) for role, stage in task.inputs.items()}
    with writing(store.folder(task.id), only=UNWRITABLE):
        return function(task.config, store.folder(task.id), inputs, progress)


class _LiveStatus:
    """The status of the running stage, rewritten as it goes on."""

    def __init__(self, store: Store, task: Task, executor: str, job: str) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._written = 0.0
        now = time.time()
        before = store.status(task.id)
        self._status = dataclasses.replace(
            before,
            state="running",
            attempt=task.attempt,
            executor=executor,
            job=job,
            process=process.identity(),
            started=now,
            heartbeat=now,
            ended=None,
            # Slurm starts a job that was displaced, or whose node failed, again by itself.
            earlier_seconds=before.seconds,
            error=None,
            code=task.code,
        )
        # After a power cut this stage is dead whatever the file says; only how it ended must last.
        store.write_status(self._status, durable=False)
        store.event("running", stage=task.id, attempt=task.attempt, job=job)

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Note how far the stage is."""
        progress = {"done": int(done), "total": int(total), "message": str(message)}
        self._update(progress=progress)
        if done < total and self._store.prune_marker(self._status.stage).exists():
            raise Pruned

    def end(self, state: State, error: dict[str, str] | None) -> None:
        with self._lock:
            self._status = dataclasses.replace(
                self._status, state=state, error=error, ended=time.time()
            )
            self._store.write_status(self._status)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Renew the sign of life in the background."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                self._update()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _update(self, **changes: Any) -> None:
        now = time.time()
        with self._lock:
            self._status = dataclasses.replace(self._status, heartbeat=now, **changes)
            if self._status.state == "running" and now - self._written >= PROGRESS_S:
                self._written = now
                # A disk that is full for a moment must not end the stage; the next sign of life
                # says it all.
                with contextlib.suppress(Unwritable):
                    self._store.write_status(self._status, durable=False)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Send stdout and stderr, of this process and of what it starts, to the end of a file.

    The descriptors change, the objects stay: a logging handler that one stage of a warm process
    made goes on to work in the next.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        with contextlib.ExitStack() as stack:
            if sys.stdout.fileno() != 1:  # Somebody captures what Python prints.
                captured = stack.enter_context(open(handle, "w", buffering=1, closefd=False))
                stack.enter_context(contextlib.redirect_stdout(captured))
                stack.enter_context(contextlib.redirect_stderr(captured))
            yield
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os.close(handle)
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


class _Interruption:
    armed = False


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """SIGTERM and SIGINT raise Cancelled, and SIGUSR2 Displaced, while armed."""
    interruption = _Interruption()
    raised = {signal.SIGTERM: Cancelled, signal.SIGINT: Cancelled, signal.SIGUSR2: Displaced}

    def stop(number: int, frame: Any) -> None:
        if interruption.armed:
            interruption.armed = False
            raise raised[signal.Signals(number)]

    previous = {number: signal.signal(number, stop) for number in raised}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
