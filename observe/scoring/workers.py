"""A pool of worker processes for algebra that can be killed at any moment and are then replaced."""

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

START_TIMEOUT_S = 120.0
"""Importing sympy takes seconds on a busy machine and is not held against the first request."""

Result = tuple[bool | None, str]
T = TypeVar("T")


class _Worker:
    """One process; it holds at most one request at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "observe.scoring.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.job: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._received = b""

    def submit(self, job: int, pair: tuple[str, str], timeout_s: float) -> None:
        self.job = job
        self.deadline = time.monotonic() + timeout_s
        self.send([*pair, timeout_s])

    def send(self, request: list[object] | str) -> None:
        self.stdin.write(json.dumps(request).encode() + b"\n")
        self.stdin.flush()

    def receive(self) -> list[str] | None:
        """Complete lines that have arrived; None when the process has ended."""
        data = os.read(self.stdout.fileno(), 65536)
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return [line.decode() for line in lines]

    def line(self) -> str | None:
        """The next line; None when the process ends before."""
        while True:
            lines = self.receive()
            if lines is None:
                return None
            if lines:
                return lines[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


def _sent(worker: _Worker, batch: str) -> bool:
    try:
        worker.send(batch)
    except BrokenPipeError:
        return False
    return True


class WorkerPool:
    """Workers that stay alive between calls, since starting one costs more than most requests."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def map(
        self, pairs: Sequence[tuple[str, str]], *, workers: int, timeout_s: float
    ) -> list[Result]:
        """Decide each pair (gold, answer) within `timeout_s`; results in the order of the pairs."""
        results: list[Result | None] = [None] * len(pairs)
        waiting = deque(range(len(pairs)))
        with self._lock:
            while len(self._workers) < min(workers, len(pairs)):
                self._workers.append(_Worker())
            team = self._workers[:workers]
            try:
                while any(result is None for result in results):
                    self._advance(team, waiting, pairs, results, timeout_s)
            except BaseException:
                # An interrupted worker would hand its late result to the next call.
                self.close()
                raise
        return [result for result in results if result is not None]

    def alongside(self, batches: Sequence[str], own: Callable[[], T]) -> tuple[T, list[str | None]]:
        """Do `own` in this process while workers do a batch of plain rules each.

        None stands for a batch that no worker was ready for, or died over.
        """
        with self._lock:
            helpers = [worker for worker in self._workers if worker.ready][: len(batches)]
            try:
                alive = [_sent(*pair) for pair in zip(helpers, batches, strict=False)]
                done = own()
                answers: list[str | None] = [None] * len(batches)
                for i, worker in enumerate(helpers):
                    line = worker.line() if alive[i] else None
                    if line is None:
                        self._replace([worker], 0)
                    else:
                        answers[i] = json.loads(line)
            except BaseException:
                self.close()
                raise
        return done, answers

    def start(self, number: int) -> None:
        """Have so many workers run; returns when they can work."""
        with self._lock:
            while len(self._workers) < number:
                self._workers.append(_Worker())
            for worker in self._workers:
                worker.ready = worker.ready or worker.line() is not None

    def ready(self) -> int:
        """How many workers can work."""
        return sum(worker.ready for worker in self._workers)

    def _advance(
        self,
        team: list[_Worker],
        waiting: deque[int],
        pairs: Sequence[tuple[str, str]],
        results: list[Result | None],
        timeout_s: float,
    ) -> None:
        """Hand out work, wait for one event or deadline, and take in what arrived."""
        for slot, worker in enumerate(team):
            if worker.ready and worker.job is None and waiting:
                try:
                    worker.submit(waiting[0], pairs[waiting[0]], timeout_s)
                except BrokenPipeError:
                    self._replace(team, slot)
                    continue
                waiting.popleft()
        busy = [w for w in team if w.job is not None or (waiting and not w.ready)]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            patience = min((w.deadline for w in busy), default=0.0) - time.monotonic()
            arrived = {key.fileobj for key, _ in selector.select(max(0.0, patience))}
        for slot, worker in enumerate(team):
            if worker in busy and worker.stdout in arrived:
                lines = worker.receive()
                if lines is None:
                    self._fail(team, slot, results, "worker died")
                for line in lines or ():
                    if worker.job is None:
                        worker.ready = True
                    else:
                        equal, reason = json.loads(line)
                        results[worker.job] = (equal, reason)
                        worker.job = None
            elif worker in busy and time.monotonic() >= worker.deadline:
                self._fail(team, slot, results, "timeout")

    def _fail(
        self, team: list[_Worker], slot: int, results: list[Result | None], reason: str
    ) -> None:
        worker = team[slot]
        if not worker.ready:
            raise RuntimeError(
                f"a scoring worker could not start ({reason}); "
                "does `python -m observe.scoring.worker` run, is math-verify installed?"
            )
        if worker.job is not None:
            results[worker.job] = (None, reason)
        self._replace(team, slot)

    def _replace(self, team: list[_Worker], slot: int) -> None:
        team[slot].kill()
        self._workers[self._workers.index(team[slot])] = team[slot] = _Worker()

    def close(self) -> None:
        """Kill all workers; the next call starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()


_pool = WorkerPool()
atexit.register(lambda: _pool.close())


def _forget_pool() -> None:
    # A forked child must not talk to its parent's workers.
    global _pool
    _pool = WorkerPool()


os.register_at_fork(after_in_child=_forget_pool)


_CACHE_SIZE = 50_000
_decided: OrderedDict[tuple[str, str], Result] = OrderedDict()
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


def alongside(batches: Sequence[str], own: Callable[[], T]) -> tuple[T, list[str | None]]:
    """See WorkerPool.alongside; `observe.scoring.score.judge_batch` is what workers do."""
    return _pool.alongside(batches, own)


def symbolic_equal(
    pairs: Sequence[tuple[str, str]], *, workers: int, timeout_s: float
) -> list[Result]:
    """Decide distinct pairs (gold, answer) by algebra in this process's pool of workers.

    Each result is (equal, reason); equal is None after a time-out, a crash or an unreadable gold.
    Decided pairs are remembered, the last 50,000 of them; what could not be decided is tried again.
    Raises RuntimeError when workers cannot be started at all.
    """
    with _cache_lock:
        known = {pair: _decided[pair] for pair in pairs if pair in _decided}
    new = [pair for pair in pairs if pair not in known]
    fresh = dict(zip(new, _pool.map(new, workers=workers, timeout_s=timeout_s), strict=True))
    with _cache_lock:
        for pair, result in fresh.items():
            if result[0] is not None:
                _decided[pair] = result
        while len(_decided) > _CACHE_SIZE:
            _decided.popitem(last=False)
    return [known[pair] if pair in known else fresh[pair] for pair in pairs]
