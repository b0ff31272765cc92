r"""Decide whether an answer equals the gold, by plain rules as far as they reach.

What only algebra can decide is left as a `Pair`; answers of several parts are claims built of
others. `conclude` puts the decided pairs in.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from observe.scoring import values
from observe.scoring.choices import denied, read_choices
from observe.scoring.estimate import estimate
from observe.scoring.symbolic import too_complex
from observe.scoring.units import without_unit
from observe.scoring.verdict import AnswerType

MAX_ITEMS = 50
"""Two larger sets are not compared: that takes the square of their size."""

_MATH_WORDS = re.compile(r"\\[A-Za-z]+|\b(?:sqrt|pi|sin|cos|tan|log|ln|exp|infty|inf)\b")
_WORD = re.compile(r"[^\W\d_]{2,}")
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"\u00b1|\\pm\b|\+/-")
_ASSIGNED = re.compile(r"^\\?[^\W\d_]\w*(?:\([^()]*\))?\s*=(?!=)\s*")
_INTERVAL = re.compile(r"[\[(][^,;]+[,;][^,;]+[\])]")
_VARIABLE = re.compile(r"[A-DF-HJ-Za-df-hj-z]")
"""A letter that stands for no number, as e and i do."""
VARIABLES = (1.0, 1.7, 2.9)
"""Values to put in for them; 1 as well, since a letter may be a unit, which algebra leaves out."""
_LEAD_IN = re.compile(r"^(?:[A-Za-z]{2,} )+is ")
_LETTER = re.compile(r"\(?[A-J]\)?")
_RATIO = re.compile(r"(\d+)\s*:\s*(\d+)(?:\s*:\s*(\d+))?")


class Outcome(NamedTuple):
    """Whether an answer equals one gold: True, False, or None (cannot be judged), and why."""

    equal: bool | None
    reason: str


class Pair(NamedTuple):
    """An equality that only algebra can decide."""

    gold: str
    answer: str


class AllOf(NamedTuple):
    """True when all parts are, False when one is not."""

    parts: tuple["Claim", ...]


class AnyOf(NamedTuple):
    """True when one part is, False when none is."""

    parts: tuple["Claim", ...]


Claim = Outcome | Pair | AllOf | AnyOf


def pairs_in(claim: Claim) -> Iterator[Pair]:
    """The pairs that must be decided before the claim can be."""
    if isinstance(claim, Pair):
        yield claim
    elif isinstance(claim, AllOf | AnyOf):
        for part in claim.parts:
            yield from pairs_in(part)


def conclude(claim: Claim, decided: Mapping[Pair, Outcome]) -> Outcome:
    """The outcome of a claim; what is undecided stays so unless another part settles it."""
    if isinstance(claim, Outcome):
        return claim
    if isinstance(claim, Pair):
        return decided[claim]
    order = (False, None, True) if isinstance(claim, AllOf) else (True, None, False)
    return min(
        (conclude(part, decided) for part in claim.parts), key=lambda o: order.index(o.equal)
    )


@lru_cache(maxsize=16_384)
def equal(kind: AnswerType, answer: str, gold: str, options: tuple[str, ...] | None) -> Claim:
    """What must hold for `answer` to be the gold; an unreadable gold cannot be judged."""
    answer, gold = values.clean(answer), values.clean(gold)
    if not gold:
        return Outcome(None, "gold is empty")
    if kind == "choice":
        return _equal_choice(answer, gold, options)
    if kind == "yes_no":
        return _equal_yes_no(answer, gold)
    if kind in ("integer", "decimal"):
        return _equal_number(answer, gold, exact=kind == "integer")
    if kind == "list":
        return _equal_list(answer, gold)
    if kind == "expression":
        return _equal_expression(answer, gold)
    return _equal_text(answer, gold)


def infer_type(gold: str, options: Sequence[str] | None) -> AnswerType:
    """The kind of answer that a gold without a declared type asks for."""
    text = values.clean(gold)
    if options:
        return "choice"
    if text.casefold() in ("yes", "no", "true", "false"):
        return "yes_no"
    number = values.read_number(text)
    if number is not None:
        return "integer" if number.decimals == 0 and not number.percent else "decimal"
    if _LETTER.fullmatch(text):
        return "choice"
    if _RATIO.fullmatch(text):
        return "text"
    if _is_list(text):
        return "list"
    bare = without_unit(text)
    return "text" if has_words(bare) or not re.search(r"[\\^=+*/\d]", bare) else "expression"


def has_words(text: str) -> bool:
    """Whether words stand in a text that are no mathematics."""
    return _WORD.search(_MATH_WORDS.sub(" ", text)) is not None


def _decide(same: bool) -> Outcome:
    return Outcome(same, "equal" if same else "different")


def _equal_choice(answer: str, gold: str, options: Sequence[str] | None) -> Outcome:
    right = read_choices(gold, options)
    if len(right) != 1:
        return Outcome(None, "gold is not one of the options")
    named = read_choices(answer, options)
    if len(named) != 1:
        return Outcome(False, "several options" if named else "not one of the options")
    return _decide(named == right and not denied(answer, options))


def _equal_yes_no(answer: str, gold: str) -> Outcome:
    right = values.read_yes_no(gold)
    if right is None:
        return Outcome(None, "gold is neither yes nor no")
    said = values.read_yes_no(answer)
    return Outcome(False, "neither yes nor no, or both") if said is None else _decide(said == right)


def _equal_number(answer: str, gold: str, *, exact: bool) -> Claim:
    right = values.read_number(gold)
    if right is None:
        return Outcome(None, "gold is not a number")
    if exact:
        right = right._replace(decimals=0)
    number = values.read_number(answer)
    if number is not None:
        return _decide(values.numbers_equal(number, right))
    ratio = _RATIO.fullmatch(answer)
    if ratio and not ratio[3] and int(ratio[2]):
        shares = values.read_number(f"{ratio[1]}/{ratio[2]}")
        return _decide(shares is not None and values.numbers_equal(shares, right))
    hedged = _OR.search(answer) or _PLUS_MINUS.search(answer)
    if "=" in answer and not hedged:
        return _equal_number(_right_side(answer), gold, exact=exact)
    numbers = values.find_numbers(answer)
    readable = numbers or re.search(r"[^\W\d_]|[\\\u221a]", answer)
    if hedged or has_words(answer) or re.search("[,;]", answer) or not readable:
        if len({number.value for number in numbers}) > 1 or (hedged and numbers):
            return Outcome(False, "several values")
        if not numbers or re.search(r"\bnot\b|n't\b", answer):
            return Outcome(False, "not a number")
        return _decide(values.numbers_equal(numbers[0], right))
    return _algebra(gold, answer)


def _equal_expression(answer: str, gold: str) -> Claim:
    if answer.replace(" ", "") == gold.replace(" ", ""):
        return Outcome(True, "equal")
    number, right = values.read_number(answer), values.read_number(gold)
    if number is not None and right is not None:
        return _decide(values.numbers_equal(number, right))
    for hedge in (_OR, _PLUS_MINUS):
        if hedge.search(answer) and not hedge.search(gold):
            return Outcome(False, "several values")
    answer, gold = _relations(without_unit(answer)), _relations(without_unit(gold))
    if "=" in answer and "=" not in gold:
        return _equal_expression(_right_side(answer), gold)
    if "=" in gold and "=" not in answer and _ASSIGNED.match(gold):
        gold = _right_side(gold)
    if not answer:
        return Outcome(False, "no answer")
    return _algebra(gold, answer)


def _right_side(equation: str) -> str:
    return equation.rpartition("=")[2].strip()


def _relations(text: str) -> str:
    """The signs of an inequality as TeX, so that an equals sign is one."""
    for sign, command in (("<=", r"\leq "), (">=", r"\geq "), ("!=", r"\neq ")):
        text = text.replace(sign, command)
    return text.replace("\u2264", r"\leq ").replace("\u2265", r"\geq ")


def _algebra(gold: str, answer: str) -> Outcome | Pair:
    for name, text in (("gold", gold), ("answer", answer)):
        trouble = too_complex(text)
        if trouble:
            return Outcome(None, f"{name} {trouble}")
    if _differ(_unboxed(gold), answer):
        return Outcome(False, "different")
    return Pair(gold, answer)


def _differ(gold: str, answer: str) -> bool:
    """Whether a number and an answer, with numbers put in for its variables, differ for certain."""
    right = estimate(gold)
    if right is None:
        return False
    if _VARIABLE.fullmatch(answer):
        return True
    written = values.read_number(gold) or values.read_number(answer)
    allowed = float(values.tolerance(written)) if written else 0.0
    answer = _LEAD_IN.sub("", answer)
    found = [estimate(answer, value) for value in VARIABLES]
    return all(said is not None and not _near(right, said, allowed) for said in found)


def _near(right: float, said: float, allowed: float) -> bool:
    return abs(right - said) <= 2 * allowed + 1e-6 * max(abs(right), abs(said))


def _unboxed(text: str) -> str:
    boxed = text.startswith("\\boxed{") and text.endswith("}")
    return text[len("\\boxed{") : -1] if boxed else text


def _equal_text(answer: str, gold: str) -> Outcome:
    ratios = _RATIO.fullmatch(answer), _RATIO.fullmatch(gold)
    if ratios[0] and ratios[1]:
        parts = ([int(part) for part in ratio.groups() if part] for ratio in ratios if ratio)
        return _decide(next(parts) == next(parts))
    return _decide(_same_item(answer, gold))


def _is_list(text: str) -> bool:
    bracketed = re.fullmatch(r"\\?[\[({].*,.*\\?[\])}]", text)
    items = _items(text)
    plain = len(items) > 1 and not has_words(re.sub(r"\b(?:and|or)\b", ",", text))
    return bool(bracketed and len(items) > 1) or (
        plain and all(values.read_number(_ASSIGNED.sub("", item)) for item in items)
    )


def _equal_list(answer: str, gold: str) -> Claim:
    """Sets in any order, all else in the gold's; an interval or a point with its brackets."""
    intervals = _INTERVAL.fullmatch(gold), _INTERVAL.fullmatch(answer)
    if all(intervals) and (gold[0], gold[-1]) != (answer[0], answer[-1]):
        return Outcome(False, "another kind of interval")
    right, said = _items(gold), _items(answer)
    if not right:
        return Outcome(None, "gold is an empty list")
    solutions = _same_names(right)
    as_set = solutions or gold.startswith(("{", "\\{")) or bool(_PLUS_MINUS.search(gold + answer))
    if _OR.search(answer) and not as_set and not _OR.search(gold):
        return Outcome(False, "several values")
    if solutions or (_same_names(said) and not any("=" in item for item in right)):
        right, said = _without_names(right), _without_names(said)
    if len(right) != len(said):
        return Outcome(False, "another number of items")
    if not as_set:
        return AllOf(tuple(map(_equal_item, said, right)))
    if len(right) > MAX_ITEMS:
        return Outcome(None, "gold has too many items")
    # Sets are equal when each item of either is in the other.
    table = [[_equal_item(item, gold_item) for gold_item in right] for item in said]
    return AllOf(tuple(AnyOf(tuple(line)) for line in (*table, *zip(*table, strict=True))))


def _same_names(items: list[str]) -> bool:
    """Whether all items are values of one variable: "x = 1, x = 2"."""
    names = [_ASSIGNED.match(item) for item in items]
    return len({match[0].replace(" ", "") for match in names if match}) == 1 and all(names)


def _without_names(items: list[str]) -> list[str]:
    return [_ASSIGNED.sub("", item) for item in items]


def _items(text: str) -> list[str]:
    """The parts of a list, its own brackets off; those within brackets stay together."""
    text = text.strip()
    if re.match(r"\\?[\[({]", text) and re.search(r"[\])}]$", text) and _encloses(text):
        text = re.sub(r"^\\?[\[({]|\\?[\])}]$", "", text).strip()
    text = re.sub(r"\s*(?:,\s*)?\b(?:and|or)\b\s*", ", ", text)
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    signed = (_signed(part.strip()) for part in parts if part.strip())
    return [item for items in signed for item in items]


def _encloses(text: str) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ")]}":
            return place == len(text) - 1
    return False


def _signed(item: str) -> tuple[str, ...]:
    match = _PLUS_MINUS.match(item)
    rest = item[match.end() :].strip() if match else ""
    return (rest, f"-{rest}") if rest else (item,)


def _equal_item(answer: str, gold: str) -> Claim:
    if _same_item(answer, gold):
        return Outcome(True, "equal")
    both_numbers = values.read_number(answer) and values.read_number(gold)
    if both_numbers or not answer or has_words(answer) or has_words(gold):
        return Outcome(False, "different")
    return _algebra(gold, answer)


def _same_item(answer: str, gold: str) -> bool:
    number, right = values.read_number(answer), values.read_number(gold)
    if number is not None and right is not None:
        units = values.fold(answer), values.fold(gold)
        named = number.unit is None or right.unit is None
        return units[0] == units[1] or (
            values.numbers_equal(number, right)
            and not (named and has_words(answer) and has_words(gold))
        )
    return values.fold(answer) == values.fold(gold)
