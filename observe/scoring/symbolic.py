"""Equality by algebra (Math-Verify), as the program of a worker process.

The parent kills a worker that takes too long, so nothing here needs to be interruptible. sympy is
imported by `main` alone: the parent reads this module for `too_complex`.
"""

import json
import re
import signal
import sys

MAX_LENGTH = 400
MAX_NESTING = 12
MAX_DIGITS = 40
MEMORY_BYTES = 2 * 1024**3
"""Address space of a worker; what needs more fails there and is reported as not judged."""

_EXPONENT = re.compile(r"(?:\^|\*\*)\s*[{(]?\s*-?(\d+)")
_TOWER = re.compile(r"(?:\^|\*\*)\s*[{(]?\s*[\w.]+\s*[)}]?\s*(?:\^|\*\*)|\^\s*\{[^{}]*\^")
_FACTORIAL = re.compile(r"\d{4,}\s*\)?\s*!|!\s*!|\)\s*!")


def too_complex(text: str) -> str | None:
    """Why an expression is refused before any algebra is tried; None if it may be tried."""
    if len(text) > MAX_LENGTH:
        return "is too long"
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return "is nested too deeply"
    if re.search(rf"\d{{{MAX_DIGITS},}}", text):
        return "has too many digits"
    if _TOWER.search(text) or any(int(exponent) > 1000 for exponent in _EXPONENT.findall(text)):
        return "has too large a power"
    if _FACTORIAL.search(text):
        return "has too large a factorial"
    return None


def main() -> None:
    """Answer requests `[gold, answer, timeout_s]`, a JSON line each, with `[equal, reason]`."""
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    def parsed(text: str) -> list:
        return parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=None)

    def judge(gold: str, answer: str) -> tuple[bool | None, str]:
        gold_values = parsed(gold)
        if not gold_values:
            return None, "gold cannot be parsed"
        answer_values = parsed(answer)
        if not answer_values:
            return False, "answer cannot be parsed"
        # The order matters: Math-Verify treats its two arguments differently.
        equal = verify(gold_values, answer_values, timeout_seconds=None)
        return equal, "equal" if equal else "different"

    # An orphan (its parent was killed) must not compute for ever: the default action of SIGALRM
    # ends the process even inside a C call.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer, timeout_s = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 1.0)
        try:
            result = judge(gold, answer)
        except (Exception, MemoryError) as error:
            result = None, f"error: {type(error).__name__}"
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
