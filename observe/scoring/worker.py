"""The program of a worker process: it answers requests, a JSON line each, one at a time.

``[gold, answer, timeout_s]`` asks for `symbolic.judge`'s ``[equal, reason]``; a string is a batch
for the plain rules, which `score.judge_batch` answers.
"""

import gc
import json
import logging
import resource
import signal
import sys

from observe.scoring import symbolic
from observe.scoring.score import judge_batch

MEMORY_BYTES = 2 * 1024**3
"""Address space of a worker, where it may not have less; what needs more fails there and is
reported as not judged."""


def main() -> None:
    """Answer until standard input ends; "ready" is said first."""
    if sys.platform != "darwin":  # There no process's memory can be bounded.
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        bound = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401  (takes seconds; not held against the first request)

    # What sympy consists of is never garbage, and looking through it again and again costs half as
    # much as the plain rules themselves.
    gc.collect()
    gc.freeze()

    # An orphan (its parent was killed) must not compute for ever: the default action of SIGALRM
    # ends the process even inside a C call.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, str):
            print(json.dumps(judge_batch(request)), flush=True)
            continue
        gold, answer, timeout_s = request
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 1.0)
        try:
            result = symbolic.judge(gold, answer)
        except (Exception, MemoryError) as error:
            result = None, f"error: {type(error).__name__}"
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
