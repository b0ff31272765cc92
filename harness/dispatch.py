"""Ready stages to an executor, until all that can be done is done.

The truth about a stage is its ``status.json``; what is in memory here can be lost at any moment.
"""

import dataclasses
import heapq
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from harness.executors.base import Ended, Executor
from harness.graph import KINDS, Plan, Stage
from harness.store import State, Status, Store, write_yaml
from harness.task import Task
from observe.errors import InputError

POLL_S = 0.25
STOP_GRACE_S = 15.0


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of a plan's stages."""

    states: dict[str, State]
    """Stage -> state."""
    started: int = 0
    """Stages (and attempts) started by this launcher."""
    stopped: bool = False
    """Whether it was told to stop."""

    @property
    def complete(self) -> bool:
        """Whether every stage is done."""
        return all(state == "done" for state in self.states.values())


def dispatch(
    plan: Plan,
    store: Store,
    executor: Executor,
    *,
    retries: int = 2,
    code: str | None = None,
    source: str | None = None,
    stop_on: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM),
    watch: Callable[[dict[str, State]], None] = lambda states: None,
    grow: Callable[[dict[str, State]], list[Stage]] = lambda states: [],
) -> Outcome:
    """Run what is not done, and return when nothing more can be.

    A stage whose process died is tried again up to ``retries`` times; one that failed by itself is
    not. What depends on a failed stage is cancelled, all else goes on. A signal of ``stop_on``
    stops the running stages, a second one kills them. ``watch`` is called with the states now and
    then; ``grow`` is asked with them, time and again, for stages that the plan is to have as well.
    ``code`` is the commit, ``source`` the folder that jobs elsewhere run it from.

    Raises InputError when a stage may be running where it cannot be seen, or cannot fit.
    """
    several = [s for s in plan.stages.values() if s.resources.nodes > 1]
    if several and executor.name != "slurm":
        raise InputError(
            f"resources.{several[0].kind}.nodes: {several[0].resources.nodes}, and this is one; "
            "give --executor slurm, or --set resources.train.nodes=1"
        )
    signals = _Signals(executor, stop_on)
    dispatcher = _Dispatcher(plan, store, executor, retries, code, source, signals, grow)
    with signals:
        try:
            while dispatcher.step():
                signals.enforce()
                watch(dispatcher.states)
        except BaseException:
            executor.kill()
            raise
        finally:
            executor.close()
    watch(dispatcher.states)
    return Outcome(states=dispatcher.states, started=dispatcher.started, stopped=signals.stopping)


class _Dispatcher:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        executor: Executor,
        retries: int,
        code: str | None,
        source: str | None,
        signals: "_Signals",
        grow: Callable[[dict[str, State]], list[Stage]],
    ) -> None:
        self.states: dict[str, State] = {}
        self.started = 0
        self._plan, self._store, self._executor = plan, store, executor
        self._retries, self._signals, self._grow = retries, signals, grow
        self._code, self._source = code, source
        self._directory = str(store.directory.resolve())
        self._deaths: dict[str, int] = {}
        self._in_flight: set[str] = set()
        self._ready: list[tuple[int, str]] = []
        self._place: dict[str, int] = {}
        self._consumers: dict[str, list[Stage]] = {}
        for stage in plan.stages.values():
            self._add(stage)

    def step(self) -> bool:
        """Submit what is ready, take in what ended; False when there is nothing left to do."""
        if not self._signals.stopping:
            for stage in self._grow(self.states):
                if stage.id not in self._plan.stages:
                    self._plan.stages[stage.id] = stage
                    self._add(stage)
            self._submit()
        if not self._in_flight:
            if self._ready and not self._signals.stopping:
                stage = self._plan.stages[self._ready[0][1]]
                raise InputError(
                    f"resources.{stage.kind}: {stage.resources.gpus} GPUs asked for, and this "
                    f"machine has fewer; lower the number, or use another machine"
                )
            return False
        for ended in self._executor.poll(POLL_S):
            self._take(ended)
        return True

    def _add(self, stage: Stage) -> None:
        """Take in a stage; those that it consumes came before it."""
        self._place[stage.id] = len(self._place)
        self._consumers[stage.id] = []
        for id in set(stage.consumes.values()):
            self._consumers[id].append(stage)
        self._recover(stage)
        self._queue(stage)

    def _recover(self, stage: Stage) -> None:
        """What an earlier launcher left."""
        status = self._store.status(stage.id)
        if status.state in ("submitted", "running"):
            task = self._task(stage, status.attempt)
            alive = self._executor.attach(task, status)
            if alive == "unknown":
                where = (status.process or {}).get("host")
                raise InputError(
                    f"{self._store.folder(stage.id)}: running on {where}, which cannot be seen "
                    "from here; wait for it, or when it is gone: python -m harness.cancel "
                    f"{self._store.directory} --gone"
                )
            if alive == "alive":
                self._in_flight.add(stage.id)
                self.states[stage.id] = "running"
                return
            self._store.event("lost", stage=stage.id, attempt=status.attempt)
        if status.state == "done" or status.pruned:
            self.states[stage.id] = status.state
            return
        self.states[stage.id] = "pending"

    def _queue(self, stage: Stage) -> None:
        """Into the heap of what can start, when it can; cancelled when it cannot any more."""
        if self.states[stage.id] != "pending":
            return
        consumed = stage.consumes.values()
        failed = [id for id in consumed if self.states[id] in ("failed", "cancelled")]
        if failed:
            self._block(stage, self._store.status(failed[0]))
            self._queue_consumers(stage)
        elif all(self.states[id] == "done" for id in consumed):
            heapq.heappush(self._ready, (self._place[stage.id], stage.id))

    def _queue_consumers(self, stage: Stage) -> None:
        for consumer in self._consumers[stage.id]:
            self._queue(consumer)

    def _submit(self) -> None:
        """Start what can start, in the order of the plan, while there is room for the first."""
        while self._ready:
            stage = self._plan.stages[self._ready[0][1]]
            status = self._store.status(stage.id)
            task = self._task(stage, status.attempt + 1)
            if not self._executor.room(task):
                return
            heapq.heappop(self._ready)
            self._start(stage, task, status)

    def _start(self, stage: Stage, task: Task, before: Status) -> None:
        write_yaml(self._store.folder(stage.id) / "config.yaml", stage.config)
        self._store.write_status(
            Status(
                stage=stage.id,
                state="submitted",
                attempt=task.attempt,
                executor=self._executor.name,
                submitted=time.time(),
                earlier_seconds=before.seconds,
                code=self._code,
            ),
            durable=False,
        )
        self._store.event("submitted", stage=stage.id, attempt=task.attempt)
        self.states[stage.id] = "running"
        self._in_flight.add(stage.id)
        self.started += 1
        self._executor.submit(task)

    def _block(self, stage: Stage, cause: Status) -> None:
        """Cancel a stage whose input failed, naming the stage at the root of it."""
        error = cause.error or {}
        blocked = error.get("class") == "Blocked"
        message = error["message"] if blocked else f"it needs {cause.stage}, which is {cause.state}"
        self._end(self._store.status(stage.id), "cancelled", "Blocked", message)

    def _take(self, ended: Ended) -> None:
        stopping = self._signals.stopping
        stage = self._plan.stages[ended.id]
        status = self._store.status(stage.id)
        self._in_flight.discard(stage.id)
        final = status.state in ("done", "failed") or status.pruned
        if final or (status.state == "cancelled" and stopping):
            self.states[stage.id] = status.state
        elif stopping:
            self._end(status, "cancelled", "Cancelled", "stopped with the sweep")
        elif self._deaths.get(stage.id, 0) < self._retries:
            self._deaths[stage.id] = self._deaths.get(stage.id, 0) + 1
            self._store.event("retry", stage=stage.id, attempt=status.attempt, detail=ended.detail)
            self.states[stage.id] = "pending"
            self._queue(stage)
        else:
            self._end(status, "failed", "WorkerDied", ended.detail)
        if not stopping:
            self._queue_consumers(stage)

    def _end(self, status: Status, state: State, error: str, message: str) -> None:
        """Write the status of a stage that cannot do it itself."""
        self._store.write_status(
            dataclasses.replace(
                status,
                state=state,
                ended=status.heartbeat or time.time(),
                error={"class": error, "message": message},
            ),
            durable=state == "failed",
        )
        self._store.event(state, stage=status.stage, **{"class": error, "message": message})
        self.states[status.stage] = state

    def _task(self, stage: Stage, attempt: int) -> Task:
        return Task(
            id=stage.id,
            function=KINDS[stage.kind].function,
            config=stage.config,
            inputs=stage.consumes,
            directory=self._directory,
            attempt=attempt,
            cpus=stage.resources.cpus,
            gpus=stage.resources.gpus,
            mem_gb=stage.resources.mem_gb,
            hours=stage.resources.hours,
            nodes=stage.resources.nodes,
            processes=stage.resources.processes,
            code=self._code,
            source=self._source,
        )


class _Signals:
    """Counts signals that say stop, and passes them on to the executor."""

    def __init__(self, executor: Executor, numbers: tuple[signal.Signals, ...]) -> None:
        self.count = 0
        self._numbers = numbers
        self._executor = executor
        self._passed = 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """Whether a signal came."""
        return self.count > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def enforce(self) -> None:
        """The first signal asks running stages to stop; the second, or no answer, kills them."""
        if self.count > 0 and self._passed == 0:
            print("\nstopping; press Ctrl-C again to kill", flush=True)
            self._passed, self._since = 1, time.monotonic()
            self._executor.cancel()
        overdue = self._passed == 1 and time.monotonic() - self._since > STOP_GRACE_S
        if self._passed == 1 and (self.count > 1 or overdue):
            self._passed = 2
            self._executor.kill()
