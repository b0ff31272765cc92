"""A pool of worker processes that judge while this process does, and algebra in them under a clock.

See `observe.scoring.worker` for what a worker does and how it is cut off.
"""

import atexit
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

START_TIMEOUT_S = 120.0
"""Importing sympy takes seconds on a busy machine and is not held against the first request. No
piece of plain rules takes so long either."""
GRACE_S = 1.0
"""A worker says itself that time is up; one that is silent for so much longer is killed."""
MOST_PIECES = 8
"""So many are given to a worker at once: what algebra they need is known when it has done them."""

Question = tuple[str, str]
"""A gold and an answer."""
Result = tuple[bool | None, str]


class Piecework(NamedTuple):
    """Plain rules to apply in pieces, here or in workers. Each finds questions for algebra."""

    pieces: int
    here: Callable[[int], Iterable[Question]]
    """Does a piece in this process."""
    packed: Callable[[list[int]], str]
    """Some pieces for a worker."""
    unpacked: Callable[[list[int], str], Iterable[Question]]
    """Takes in what a worker found in them."""


class _Worker:
    """One process; it holds at most one job at a time: a question, or some pieces."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "observe.scoring.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # It has a fork of its own, which must end with it.
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.job: Question | list[int] | None = None
        self.ready = False
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._received: list[bytes] = []

    def submit(self, job: Question | list[int], request: object, timeout_s: float) -> None:
        """Raises BrokenPipeError when the process has ended."""
        self.stdin.write(json.dumps(request).encode() + b"\n")
        self.stdin.flush()
        self.job = job
        self.deadline = time.monotonic() + timeout_s

    def receive(self) -> bytes | None:
        """The message that has arrived, empty while it is incomplete; None when the process ended.

        There is one at a time: a line once it works, and one for each job.
        """
        data = os.read(self.stdout.fileno(), 1 << 20)
        if not data:
            return None
        self._received.append(data)
        if not data.endswith(b"\n"):
            return b""
        message = b"".join(self._received)
        self._received.clear()
        return message

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # It has ended.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


class WorkerPool:
    """Workers that stay alive between calls, since starting one costs more than most requests."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def run(self, call: "_Call") -> None:
        """Have the workers, and this process, do all that there is to do."""
        with self._lock:
            try:
                call.finish(self._workers)
            except BaseException:
                # An interrupted worker would hand its late result to the next call.
                self.close()
                raise

    def start(self, number: int) -> None:
        """Have so many workers run; returns when they can work."""
        with self._lock:
            while len(self._workers) < number:
                self._workers.append(_Worker())
            for worker in self._workers:
                while not worker.ready and (message := worker.receive()) is not None:
                    worker.ready = bool(message)

    def ready(self) -> int:
        """How many workers can work."""
        return sum(worker.ready for worker in self._workers)

    def close(self) -> None:
        """Kill all workers; the next call starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()


class _Call:
    """One call's work on a pool: plain rules and algebra at the same time."""

    def __init__(self, work: Piecework, *, workers: int, timeout_s: float) -> None:
        self.work, self.workers, self.timeout_s = work, workers, timeout_s
        self.pool: list[_Worker] = []
        self.pieces = deque(range(work.pieces))
        self.questions: deque[Question] = deque()
        self.asked: set[Question] = set()
        self.results: dict[Question, Result] = {}

    def ask(self, questions: Iterable[Question]) -> None:
        for question in questions:
            if question in self.asked:
                continue
            self.asked.add(question)
            known = _recall(question)
            if known is None:
                self.questions.append(question)
            else:
                self.results[question] = known

    def finish(self, pool: list[_Worker]) -> None:
        self.pool = pool
        while self.pieces or self.questions or self._busy():
            self._hand_out()
            if self.pieces:
                self.ask(self.work.here(self.pieces.popleft()))
            self._collect(wait=not self.pieces)

    def _team(self) -> list[_Worker]:
        return self.pool[: self.workers]

    def _busy(self) -> list[_Worker]:
        return [w for w in self._team() if w.job is not None]

    def _hand_out(self) -> None:
        """Give each worker that is free a question, else pieces; start workers for questions.

        This process judges too, so one worker fewer gets pieces. It takes single ones, from the
        front, so as to look after the others often. They take several, from the back, so that who
        once judged a question mostly judges it again.
        """
        wanted = len(self.questions) + len(self._busy())
        while self.questions and len(self.pool) < min(self.workers, wanted):
            self.pool.append(_Worker())
        for worker in self._team():
            if not worker.ready or worker.job is not None:
                continue
            try:
                if self.questions:
                    question = self.questions[0]
                    request = [*question, self.timeout_s]
                    worker.submit(question, request, self.timeout_s + GRACE_S)
                    self.questions.popleft()
                elif len(self.pieces) > 1 and self._with_pieces() < self.workers - 1:
                    share = len(self.pieces) // (2 * self.workers)
                    some = list(self.pieces)[-max(1, min(MOST_PIECES, share)) :]
                    worker.submit(some, self.work.packed(some), START_TIMEOUT_S)
                    for _ in some:
                        self.pieces.pop()
            except BrokenPipeError:
                self._replace(worker)

    def _with_pieces(self) -> int:
        return sum(isinstance(worker.job, list) for worker in self._team())

    def _collect(self, *, wait: bool) -> None:
        """Take in what has arrived; with `wait`, the first that arrives or is late."""
        watched = [w for w in self._team() if w.job is not None or (self.questions and not w.ready)]
        with selectors.DefaultSelector() as selector:
            for worker in watched:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            patience = min((w.deadline for w in watched), default=0.0) - time.monotonic()
            arrived = {key.data for key, _ in selector.select(max(0.0, patience) if wait else 0)}
        for worker in watched:
            if worker in arrived:
                message = worker.receive()
                if message is None:
                    self._fail(worker, "worker died")
                elif message:
                    self._take(worker, message)
            elif time.monotonic() >= worker.deadline:
                self._fail(worker, "timeout")

    def _take(self, worker: _Worker, message: bytes) -> None:
        job, worker.job = worker.job, None
        if job is None:
            worker.ready = True
        elif isinstance(job, list):
            self.ask(self.work.unpacked(job, json.loads(message)))
        else:
            equal, reason = json.loads(message)
            self.results[job] = equal, reason

    def _fail(self, worker: _Worker, reason: str) -> None:
        if not worker.ready:
            raise RuntimeError(
                f"a scoring worker could not start ({reason}); "
                "does `python -m observe.scoring.worker` run, is math-verify installed?"
            )
        if isinstance(worker.job, list):
            self.pieces.extend(worker.job)
        elif worker.job is not None:
            self.results[worker.job] = None, reason
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        self.pool[self.pool.index(worker)] = _Worker()


_pool = WorkerPool()
atexit.register(lambda: _pool.close())


def _forget_pool() -> None:
    # A forked child must not talk to its parent's workers.
    global _pool
    _pool = WorkerPool()


os.register_at_fork(after_in_child=_forget_pool)


_CACHE_SIZE = 50_000
_decided: OrderedDict[Question, Result] = OrderedDict()
_cache_lock = threading.Lock()


def forget() -> None:
    """Forget what was decided, and end the workers, which remember too; for measurements."""
    with _cache_lock:
        _decided.clear()
    _pool.close()


def start(number: int) -> None:
    """Have so many workers run already; for measurements."""
    _pool.start(number)


def ready() -> int:
    """How many workers of this process run."""
    return _pool.ready()


def decide(work: Piecework, *, workers: int, timeout_s: float) -> dict[Question, Result]:
    """Do all pieces of the plain rules, and decide by algebra what they ask.

    Each result is (equal, reason); equal is None after a time-out, a crash or an unreadable gold.
    Decided questions are remembered, the last 50,000 of them; what could not be decided is tried
    again. Raises RuntimeError when workers are needed and cannot be started at all.
    """
    call = _Call(work, workers=workers, timeout_s=timeout_s)
    if work.pieces == 1:
        # Most often that is all there is to do: nobody needs to wait for others' algebra.
        call.ask(work.here(call.pieces.popleft()))
    if call.pieces or call.questions:
        _pool.run(call)
    with _cache_lock:
        for question, result in call.results.items():
            if result[0] is not None:
                _decided[question] = result
        while len(_decided) > _CACHE_SIZE:
            _decided.popitem(last=False)
    return call.results


def _recall(question: Question) -> Result | None:
    with _cache_lock:
        return _decided.get(question)
