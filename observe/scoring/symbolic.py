"""Equality by algebra (Math-Verify), for worker processes.

A worker that takes too long is killed, so nothing here needs to be interruptible. sympy is imported
by what needs it alone: the parent reads this module for `too_complex`.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from observe.scoring.values import read_number, tolerance

MAX_LENGTH = 400
MAX_NESTING = 12
MAX_DIGITS = 40
MAX_EXPONENT = 5000
Judgement = tuple[bool | None, str]
"""Whether two expressions are equal, None where that cannot be said, and why."""
PRECISION = 30
"""Digits to which numbers are evaluated."""

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
    if _TOWER.search(text) or any(
        int(exponent) > MAX_EXPONENT for exponent in _EXPONENT.findall(text)
    ):
        return "has too large a power"
    if _FACTORIAL.search(text):
        return "has too large a factorial"
    return None


def judge(gold: str, answer: str) -> Judgement:
    """Whether two expressions are equal; None when the gold cannot be parsed.

    Math-Verify compares numbers after rounding to six places, so that two tiny ones would be equal:
    numbers are therefore compared here, exactly or to many digits, or as far as the writing of a
    rounded decimal goes.
    """
    from math_verify import verify

    gold_values = _parse(gold)
    if not gold_values:
        return None, "gold cannot be parsed"
    answer_values = _parse(answer)
    if not answer_values:
        return False, "answer cannot be parsed"
    if _is_number(gold_values[0]) and _is_number(answer_values[0]):
        equal = _numbers_equal(gold_values[0], answer_values[0], gold, answer)
    else:
        # The order matters: Math-Verify treats its two arguments differently.
        equal = verify(gold_values, answer_values, timeout_seconds=None)
    return equal, "equal" if equal else "different"


@lru_cache(maxsize=256)
def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=None)


def _is_number(parsed: Any) -> bool:
    import sympy

    return isinstance(parsed, sympy.Expr) and not parsed.free_symbols and bool(parsed.is_number)


def _numbers_equal(right: Any, said: Any, gold: str, answer: str) -> bool:
    import sympy

    right, said = right.doit(), said.doit()
    if right == said:
        return True
    written_gold, written_answer = read_number(gold), read_number(answer)
    if written_gold is not None:
        allowed = tolerance(written_gold)
    elif written_answer is not None and (written_answer.decimals or 0) >= 3:
        allowed = tolerance(written_answer)
    else:
        allowed = Fraction(0)
    if not allowed and right.is_Rational and said.is_Rational:
        return False
    difference = abs((right - said).evalf(PRECISION))
    digits = 12 if right.has(sympy.Float) or said.has(sympy.Float) else PRECISION - 5
    nearly = abs(right.evalf(PRECISION)) * sympy.Float(10, PRECISION) ** -digits
    return bool(difference <= max(sympy.Rational(allowed.numerator, allowed.denominator), nearly))
