"""Judge responses: plain rules first, algebra in killable worker processes for the rest."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from observe.scoring import values
from observe.scoring.extract import extract, extract_untagged
from observe.scoring.symbolic import too_complex
from observe.scoring.verdict import AnswerType, ScoreRequest, Verdict
from observe.scoring.workers import symbolic_equal

VERSION = "1"
"""Raised whenever a verdict can change; recorded with every result."""

_MATH_WORDS = re.compile(r"\\[A-Za-z]+|\b(?:sqrt|pi|sin|cos|tan|log|ln|exp)\b")
_WORD = re.compile(r"[^\W\d_]{2,}")


class Outcome(NamedTuple):
    """Whether an answer equals one gold: True, False, or None (cannot be judged), and why."""

    equal: bool | None
    reason: str


class Pair(NamedTuple):
    """An equality that only algebra can decide."""

    gold: str
    answer: str


class _Judgement(NamedTuple):
    """A response after the plain rules: what they decided per gold and what they left open."""

    answer: str | None
    prefix: str
    outcomes: list[Outcome | Pair]


def score(
    response: str,
    gold: str | Sequence[str],
    *,
    answer_type: AnswerType | None = None,
    options: Sequence[str] | None = None,
    timeout_s: float = 5,
) -> Verdict:
    """Judge one response against the gold answer (or several, each of them right).

    See `observe.scoring.extract` for where the answer is looked for. An empty response is wrong; an
    answer that names several values is wrong; an unreadable gold, a time-out or an expression
    beyond the size limits gives `correct=None` with the reason, never a reward.
    """
    request = ScoreRequest(response=response, gold=gold, answer_type=answer_type, options=options)
    return score_many([request], workers=1, timeout_s=timeout_s)[0]


def score_untagged(
    response: str,
    gold: str | Sequence[str],
    *,
    answer_type: AnswerType | None = None,
    options: Sequence[str] | None = None,
    timeout_s: float = 5,
) -> Verdict:
    """Like `score`, but with all tags removed and the last value stated anywhere taken.

    The same final value counts the same with and without tags, so a gain that remains under this
    measure is not one of form alone.
    """
    request = ScoreRequest(
        response=response, gold=gold, answer_type=answer_type, options=options, ignore_tags=True
    )
    return score_many([request], workers=1, timeout_s=timeout_s)[0]


def score_many(
    requests: Sequence[ScoreRequest], *, workers: int = 2, timeout_s: float = 5
) -> list[Verdict]:
    """Judge many responses; verdicts come in the order of the requests.

    Equalities that need algebra are spread over `workers` processes, each with `timeout_s` of wall
    time after which its process is killed and replaced (reason "...: timeout").
    """
    judgements = [_judge(request) for request in requests]
    pairs = list(dict.fromkeys(o for j in judgements for o in j.outcomes if isinstance(o, Pair)))
    decided: dict[Pair, Outcome] = {}
    if pairs:
        results = symbolic_equal(pairs, workers=workers, timeout_s=timeout_s)
        decided = {pair: Outcome(*result) for pair, result in zip(pairs, results, strict=True)}
    return [_conclude(judgement, decided) for judgement in judgements]


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
    if re.fullmatch(r"\(?[A-J]\)?", text):
        return "choice"
    if re.fullmatch(r"[\[({].*,.*[\])}]", text) or all(
        values.read_number(part.strip()) for part in text.split(",")
    ):
        return "list"
    return "text" if _has_words(text) or not re.search(r"[\\^=+*/\d]", text) else "expression"


def _judge(request: ScoreRequest) -> _Judgement:
    golds = [request.gold] if isinstance(request.gold, str) else list(request.gold)
    kind = request.answer_type or infer_type(golds[0], request.options)
    find = extract_untagged if request.ignore_tags else extract
    found = find(request.response, kind, request.options)
    if found is None:
        outcomes: list[Outcome | Pair] = [_equal(kind, "", gold, request.options) for gold in golds]
        unreadable = [o for o in outcomes if isinstance(o, Outcome) and o.equal is None]
        return _Judgement(None, kind, [*unreadable] or [Outcome(False, "no answer")])
    outcomes = [_equal(kind, found.text, gold, request.options) for gold in golds]
    return _Judgement(found.text, f"{found.source}/{kind}", outcomes)


def _conclude(judgement: _Judgement, decided: dict[Pair, Outcome]) -> Verdict:
    outcomes = [decided[o] if isinstance(o, Pair) else o for o in judgement.outcomes]
    # One right gold is enough; an undecided one might have been right, so wrong needs all decided.
    rank = {True: 0, None: 1, False: 2}
    best = min(outcomes, key=lambda outcome: rank[outcome.equal])
    return Verdict(best.equal, judgement.answer, f"{judgement.prefix}: {best.reason}")


def _equal(
    kind: AnswerType, answer: str, gold: str, options: Sequence[str] | None
) -> Outcome | Pair:
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
    return _decide(_same_item(answer, gold))


def _decide(equal: bool) -> Outcome:
    return Outcome(equal, "equal" if equal else "different")


def _equal_choice(answer: str, gold: str, options: Sequence[str] | None) -> Outcome:
    right = values.read_choices(gold, options)
    if len(right) != 1:
        return Outcome(None, "gold is not one of the options")
    named = values.read_choices(answer, options)
    if len(named) != 1:
        return Outcome(False, "several options" if named else "not one of the options")
    return _decide(named == right)


def _equal_yes_no(answer: str, gold: str) -> Outcome:
    right = values.read_yes_no(gold)
    if right is None:
        return Outcome(None, "gold is neither yes nor no")
    said = values.read_yes_no(answer)
    return Outcome(False, "neither yes nor no, or both") if said is None else _decide(said == right)


def _equal_number(answer: str, gold: str, *, exact: bool) -> Outcome | Pair:
    right = values.read_number(gold)
    if right is None:
        return Outcome(None, "gold is not a number")
    if exact:
        right = right._replace(decimals=0)
    number = values.read_number(answer)
    if number is not None:
        return _decide(values.numbers_equal(number, right))
    hedged = re.search(r"\bor\b|\u00b1|\\pm", answer) is not None
    result = answer.rpartition("=")[2].strip()
    if "=" in answer and not hedged:
        return _equal_number(result, gold, exact=exact)
    numbers = values.find_numbers(answer)
    if hedged or _has_words(answer) or re.search("[,;]", answer) or not numbers:
        if len({number.value for number in numbers}) > 1 or (hedged and numbers):
            return Outcome(False, "several values")
        if not numbers:
            return Outcome(False, "not a number")
        return _decide(values.numbers_equal(numbers[0], right))
    return _algebra(gold, answer)


def _equal_expression(answer: str, gold: str) -> Outcome | Pair:
    if answer.replace(" ", "") == gold.replace(" ", ""):
        return Outcome(True, "equal")
    number, right = values.read_number(answer), values.read_number(gold)
    if number is not None and right is not None:
        return _decide(values.numbers_equal(number, right))
    for hedge in (r"\bor\b", r"\u00b1|\\pm"):
        if re.search(hedge, answer) and not re.search(hedge, gold):
            return Outcome(False, "several values")
    if "=" in answer and "=" not in gold:
        return _equal_expression(answer.rpartition("=")[2].strip(), gold)
    if not answer:
        return Outcome(False, "no answer")
    return _algebra(gold, answer)


def _algebra(gold: str, answer: str) -> Outcome | Pair:
    for name, text in (("gold", gold), ("answer", answer)):
        trouble = too_complex(text)
        if trouble:
            return Outcome(None, f"{name} {trouble}")
    return Pair(gold, answer)


def _equal_list(answer: str, gold: str) -> Outcome:
    right, said = _items(gold), _items(answer)
    if not right:
        return Outcome(None, "gold is an empty list")
    if len(right) != len(said):
        return Outcome(False, "another number of items")
    if not gold.startswith(("{", "\\{")):
        return _decide(all(map(_same_item, said, right)))
    for item in said:
        match = next((gold_item for gold_item in right if _same_item(item, gold_item)), None)
        if match is None:
            return Outcome(False, "different")
        right.remove(match)
    return Outcome(True, "equal")


def _items(text: str) -> list[str]:
    text = re.sub(r"^\\?[\[({]|\\?[\])}]$", "", text.strip()).strip()
    parts = re.split(r"\s*(?:[,;]\s*(?:and\b)?|\band\b)\s*", text)
    return [part.strip() for part in parts if part.strip()]


def _same_item(answer: str, gold: str) -> bool:
    number, right = values.read_number(answer), values.read_number(gold)
    if number is not None and right is not None:
        units = values.fold(answer), values.fold(gold)
        return units[0] == units[1] or (
            values.numbers_equal(number, right) and not (_has_words(answer) and _has_words(gold))
        )
    return values.fold(answer) == values.fold(gold)


def _has_words(text: str) -> bool:
    return _WORD.search(_MATH_WORDS.sub(" ", text)) is not None
