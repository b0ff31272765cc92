"""The program of a worker process: it answers requests, a JSON line each, one at a time.

``[gold, answer, timeout_s]`` asks for `symbolic.judge`'s ``[equal, reason]``; a string is a batch
for the plain rules, which `score.judge_batch` answers. Algebra is done in a fork of this process,
which is killed when it takes too long. Another fork is ready within milliseconds, where starting
anew and importing sympy would take a second or more.
"""

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

from observe.scoring import symbolic
from observe.scoring.score import judge_batch

MEMORY_BYTES = 2 * 1024**3
"""Address space of a worker, where it may not have less; what needs more fails there and is
reported as not judged."""


class _Fork:
    """A copy of this process that judges one pair after another, replaced when it has to be."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.connection), daemon=True)
        self.process.start()
        other.close()

    def judge(self, gold: str, answer: str, timeout_s: float) -> symbolic.Judgement | None:
        """What it finds; None when it takes longer. Raises EOFError or OSError when it dies."""
        if not self.process.is_alive():  # Such as when memory ran out while it was idle.
            self.replace()
        self.connection.send((gold, answer, timeout_s))
        found: symbolic.Judgement | None = None
        if self.connection.poll(timeout_s):
            found = self.connection.recv()
        return found

    def replace(self) -> None:
        """Kill it, if it lives, and have another."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self._begin()


def _serve(connection: Connection, other: Connection) -> None:
    # Only this process's own end is kept, so that either side learns when the other is gone.
    other.close()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # An orphan (its parent was killed) must not compute for ever: the default action of SIGALRM
    # ends the process even inside a C call.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(EOFError):
        while True:
            gold, answer, timeout_s = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, timeout_s + 1.0)
            try:
                found = symbolic.judge(gold, answer)
            except (Exception, MemoryError) as error:
                found = None, f"error: {type(error).__name__}"
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            connection.send(found)


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Answer until standard input ends; "ready" is said first."""
    if sys.platform != "darwin":  # There no process's memory can be bounded.
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        bound = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    logging.disable(logging.CRITICAL)
    # The first expressions take by far the longest: what sympy and the grammar set up for them is
    # there in every fork.
    symbolic.judge(r"\frac{\sqrt{2}}{3} + \pi x", r"\pi x + \sqrt{2}/3")

    # What sympy consists of is never garbage, and looking through it again and again costs half as
    # much as the plain rules themselves.
    gc.collect()
    gc.freeze()

    fork = _Fork()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, str):
            _say(judge_batch(request))
            continue
        try:
            found = fork.judge(*request)
            _say(found or (None, "timeout"))
        except (EOFError, OSError):
            found = None
            _say((None, "worker died"))
        if found is None:
            fork.replace()


if __name__ == "__main__":
    main()
