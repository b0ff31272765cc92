"""Judge responses: plain rules first, algebra in killable worker processes for the rest."""

from collections.abc import Sequence
from typing import NamedTuple

from observe.scoring.equivalence import Claim, Outcome, Pair, conclude, equal, infer_type, pairs_in
from observe.scoring.extract import extract, extract_untagged
from observe.scoring.verdict import AnswerType, ScoreRequest, Verdict
from observe.scoring.workers import symbolic_equal

VERSION = "2"
"""Raised whenever a verdict can change; recorded with every result."""

MAX_ANSWER = 2000
"""Characters; a longer answer is no answer."""


class _Judgement(NamedTuple):
    """A response after the plain rules: what they decided per gold and what they left open."""

    answer: str | None
    prefix: str
    claims: list[Claim]


def score(
    response: str,
    gold: str | Sequence[str],
    *,
    answer_type: AnswerType | None = None,
    options: Sequence[str] | None = None,
    question: str | None = None,
    timeout_s: float = 5,
) -> Verdict:
    """Judge one response against the gold answer (or several, each of them right).

    See `observe.scoring.extract` for where the answer is looked for and `ScoreRequest` for the
    arguments. An empty response is wrong; an answer that names several values is wrong; an
    unreadable gold, a time-out or an expression beyond the size limits gives `correct=None` with
    the reason, never a reward.
    """
    request = ScoreRequest(
        response=response, gold=gold, answer_type=answer_type, options=options, question=question
    )
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
    time after which its process is killed and replaced (reason "...: timeout"). What was decided
    once is remembered.
    """
    judgements = [_judge(request) for request in requests]
    claims = (claim for judgement in judgements for claim in judgement.claims)
    pairs = list(dict.fromkeys(pair for claim in claims for pair in pairs_in(claim)))
    decided: dict[Pair, Outcome] = {}
    if pairs:
        results = symbolic_equal(pairs, workers=workers, timeout_s=timeout_s)
        decided = {pair: Outcome(*result) for pair, result in zip(pairs, results, strict=True)}
    return [_conclude(judgement, decided) for judgement in judgements]


def _judge(request: ScoreRequest) -> _Judgement:
    golds = [request.gold] if isinstance(request.gold, str) else list(request.gold)
    options = tuple(request.options) if request.options else None
    kind = request.answer_type or infer_type(golds[0], options)
    find = extract_untagged if request.ignore_tags else extract
    found = find(request.response, kind, options, request.question)
    if found is None or len(found.text) > MAX_ANSWER:
        claims = [equal(kind, "", gold, options) for gold in golds]
        unreadable = [c for c in claims if isinstance(c, Outcome) and c.equal is None]
        reason = "no answer" if found is None else "answer is too long"
        return _Judgement(None, kind, [*unreadable] or [Outcome(False, reason)])
    claims = [equal(kind, found.text, gold, options) for gold in golds]
    return _Judgement(found.text, f"{found.source}/{kind}", claims)


def _conclude(judgement: _Judgement, decided: dict[Pair, Outcome]) -> Verdict:
    outcomes = [conclude(claim, decided) for claim in judgement.claims]
    # One right gold is enough; an undecided one might have been right, so wrong needs all decided.
    rank = {True: 0, None: 1, False: 2}
    best = min(outcomes, key=lambda outcome: rank[outcome.equal])
    return Verdict(best.equal, judgement.answer, f"{judgement.prefix}: {best.reason}")
