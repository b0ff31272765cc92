"""Worker processes: time limits, what is left of them, and what many are judged by."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from observe.scoring import ScoreRequest, score, score_many, workers
from observe.scoring.score import SPREAD


def tag(answer: str) -> str:
    return f"<think>some work</think><answer>{answer}</answer>"


SLOW = "\\int_0^y \\frac{\\sin(x^7) \\cos(x^5)}{\\sqrt{x^9 + \\ln(x + 3)}} dx"


def test_slow_algebra_is_killed_counted_and_others_go_on():
    quick = ScoreRequest(response=tag("\\frac{\\sqrt{8}}{2}"), gold="\\sqrt{2}")
    slow = ScoreRequest(response=tag(SLOW), gold="\\sqrt{2} y")
    score_many([quick], timeout_s=30)
    started = time.monotonic()
    verdicts = score_many([quick, slow, quick, slow], workers=2, timeout_s=1.0)
    assert time.monotonic() - started < 30
    assert [v.correct for v in verdicts] == [True, None, True, None]
    assert verdicts[1].reason == "tag/expression: timeout"
    assert score_many([quick], timeout_s=30)[0].correct is True


def test_time_outs_in_a_row_take_their_time_and_no_more():
    """A worker that was cut off does not have to be started anew before the next verdict."""
    workers.start(1)
    for _ in range(3):
        started = time.monotonic()
        verdict = score(SLOW, "\\sqrt{2} y", answer_type="expression", timeout_s=0.5)
        assert verdict.reason == "bare/expression: timeout"
        assert 0.5 <= time.monotonic() - started < 1.2


def test_nothing_is_left_of_a_worker_that_is_ended():
    workers.forget()
    workers.start(1)
    leader = workers._pool._workers[0].process.pid
    assert len(group(leader)) == 2
    workers.forget()
    wait_until(lambda: not group(leader))


def test_where_the_algebra_of_a_worker_died_it_goes_on():
    workers.forget()
    workers.start(1)
    leader = workers._pool._workers[0].process.pid
    (fork,) = (pid for pid in group(leader) if pid != leader)
    os.kill(fork, signal.SIGKILL)
    wait_until(lambda: group(leader) == [leader])
    assert score(tag("\\frac{\\sqrt{24}}{2}"), "\\sqrt{6}", timeout_s=30).correct is True


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group(leader: int) -> list[int]:
    """The processes of a group."""
    listed = subprocess.run(
        ["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    lines = (line.split() for line in listed.stdout.splitlines())
    return [int(pid) for pid, pgid, stat in lines if int(pgid) == leader and stat[0] != "Z"]


def test_a_worker_may_have_less_memory_than_it_takes_at_most():
    """As where ``ulimit -v`` bounds the processes of a login node."""
    bound = 1_900_000_000
    run = subprocess.run(
        [sys.executable, "-m", "observe.scoring.worker"],
        input='["1/2", "\\\\frac{1}{2}", 30]\n',
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bound, bound)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split("\n")[:2] == ["ready", '[true, "equal"]']


def test_many_are_judged_alike_in_one_process_and_in_several():
    """From SPREAD requests on, workers do their share of the plain rules."""
    golds = ("7", "\\frac{1}{2}", "yes", "B", "{1, 2}", "x + 1")
    requests = [
        ScoreRequest(
            response=tag(golds[(i + i // 7) % len(golds)]),
            gold=golds[i % len(golds)] if i % 5 else [golds[i % len(golds)], "0"],
            options=("red", "blue", "dark blue", "green")
            if i % 11 == 0 and golds[i % len(golds)] == "B"
            else None,
            question=f"Number {i % 50}?" if i % 2 else None,
        )
        for i in range(SPREAD + 100)
    ]
    alone = score_many(requests, workers=1, timeout_s=60)
    assert {verdict.correct for verdict in alone} >= {True, False}
    workers.start(3)
    pool = workers._pool
    assert workers.ready() >= 3
    assert score_many(requests, workers=3, timeout_s=60) == alone
    # A worker that is gone is replaced, and its share done here.
    pool._workers[0].process.kill()
    pool._workers[0].process.wait()
    assert score_many(requests, workers=3, timeout_s=60) == alone
    workers.forget()
    assert score_many(requests, workers=3, timeout_s=60) == alone
