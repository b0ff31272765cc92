"""Judge responses: plain rules first, algebra in killable worker processes for the rest."""

import base64
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from observe.scoring.equivalence import Claim, Outcome, Pair, conclude, equal, infer_type, pairs_in
from observe.scoring.extract import extract, extract_untagged
from observe.scoring.verdict import AnswerType, ScoreRequest, Verdict
from observe.scoring.workers import Piecework, decide, ready

VERSION = "3"
"""Raised whenever a verdict can change; recorded with every result."""

MAX_ANSWER = 2000
"""Characters; a longer answer is no answer."""

SPREAD = 1000
"""From so many requests on, workers do their share of the plain rules too."""

PIECE = 64
"""Requests, about, that are judged between two looks at what workers do."""


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
    time after which it is cut off (reason "...: timeout"). What was decided
    once is remembered.
    """
    pieces = _pieces(requests, workers)
    found: dict[int, _Judgement] = {}

    def taken(some: list[int], judgements: list[_Judgement]) -> list[Pair]:
        found.update(zip((i for piece in some for i in pieces[piece]), judgements, strict=True))
        open_claims = (c for j in judgements for c in j.claims if not isinstance(c, Outcome))
        return [pair for claim in open_claims for pair in pairs_in(claim)]

    def requests_of(some: list[int]) -> list[ScoreRequest]:
        return [requests[i] for piece in some for i in pieces[piece]]

    work = Piecework(
        len(pieces),
        here=lambda piece: taken([piece], [_judge(request) for request in requests_of([piece])]),
        packed=lambda some: _to_text(requests_of(some)),
        unpacked=lambda some, text: taken(some, _from_text(text)),
    )
    results = decide(work, workers=workers, timeout_s=timeout_s)
    decided = {Pair(*question): Outcome(*result) for question, result in results.items()}
    return [_conclude(found[i], decided) for i in range(len(requests))]


def _pieces(requests: Sequence[ScoreRequest], workers: int) -> list[list[int]]:
    """The places of the requests: one piece of few; many that workers who run can share in."""
    if len(requests) < SPREAD or min(workers - 1, ready()) < 1:
        return [list(range(len(requests)))]
    pieces: list[list[int]] = [[] for _ in range(len(requests) // PIECE)]
    for i, request in enumerate(requests):
        # Responses to one question stay together: much of the work is done once for all of them.
        pieces[hash((request.question, str(request.gold))) % len(pieces)].append(i)
    return [piece for piece in pieces if piece]


def judge_batch(batch: str) -> str:
    """What a worker does with some pieces of `score_many`."""
    return _to_text([_judge(request) for request in _from_text(batch)])


def _to_text(objects: list[Any]) -> str:
    return base64.b64encode(pickle.dumps(objects, pickle.HIGHEST_PROTOCOL)).decode("ascii")


def _from_text(text: str) -> list[Any]:
    return pickle.loads(base64.b64decode(text))


def _judge(request: ScoreRequest) -> _Judgement:
    golds = [request.gold] if isinstance(request.gold, str) else list(request.gold) or [""]
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
    best = min(outcomes, key=_rank) if len(outcomes) > 1 else outcomes[0]
    return Verdict(best.equal, judgement.answer, f"{judgement.prefix}: {best.reason}")


def _rank(outcome: Outcome) -> int:
    return (True, None, False).index(outcome.equal)
