"""Clarity and conciseness: how long answers are, what a right one costs, whether form is kept."""

from __future__ import annotations

import numpy as np

from reports.analysis import Analysis, Row
from reports.measures import Measures
from reports.stats.effects import Interval
from reports.stats.outcomes import Combined, Key, Outcome, paired
from reports.tables import Tables

QUANTILES = (0.1, 0.5, 0.9)
MOST_ARMS = 40
"""Arms of which the price of a right answer is worked out, those that matter first."""


def notable(tables: Tables) -> list[str]:
    """The reference, the control, the bases and the variants, then the other arms of the design."""
    first = [tables.reference] if tables.runs_of(tables.reference) else []
    first += [tables.control] if tables.control else []
    return list(dict.fromkeys([*first, *tables.arms("base", "variant"), *tables.arms("cell")]))


def clarity(measures: Measures) -> list[Row]:
    """A row for each arm and suite; what was not recorded is null.

    `tokens_per_correct` is the mean response length over the share of right answers; its interval
    is that of the mean of (tokens - ratio x score), divided by the share (the delta method).
    `tokens_quantiles` describe the responses at hand and claim nothing beyond them.
    """
    tables = measures.tables
    columns = ("response_tokens", "format_ok", "faithful", "truncated")
    found = {name: measures.of(name) for name in columns}
    if all(analysis is None for analysis in found.values()):
        return []
    score, tokens = measures.of("score"), found["response_tokens"]
    assert score is not None, "read_tables admits no table without scores"
    both = paired(tokens.outcome, score.outcome) if tokens is not None else None
    rows = []
    for place, arm in enumerate(notable(tables)):
        for key in score.suites():
            row: Row = {"arm": arm, "suite": key[0]}
            for name, analysis in found.items():
                interval = analysis.arm(arm, key) if analysis is not None else None
                row |= _fields(name, interval)
            ratio = None
            if tokens is not None and both is not None and place < MOST_ARMS:
                ratio = _per_correct(score, tokens, both, arm, key)
            row |= _fields("tokens_per_correct", ratio)
            row["tokens_quantiles"] = _quantiles(tokens, arm, key)
            rows.append(row)
    return rows


def _fields(name: str, interval: Interval | None) -> Row:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _per_correct(
    score: Analysis, tokens: Analysis, both: tuple[Outcome, Outcome], arm: str, key: Key
) -> Interval | None:
    share, length = score.arm(arm, key), tokens.arm(arm, key)
    if share is None or length is None or not share.estimate or length.estimate is None:
        return None
    ratio = length.estimate / share.estimate
    lengths, scores = both
    linear = Combined(
        scores=lengths.scores,
        clusters=lengths.clusters,
        weights={key: lengths.weights[key]},
        first=lengths,
        second=scores,
        ratio=ratio,
    )
    around = Analysis(score.tables, linear, score.settings, score.known_designs).arm(arm, key)
    if around is None or around.low is None or around.high is None or around.estimate is None:
        return Interval(estimate=ratio)
    low, high = (ratio + (x - around.estimate) / share.estimate for x in (around.low, around.high))
    return Interval(estimate=ratio, low=low, high=high)


def _quantiles(tokens: Analysis | None, arm: str, key: Key) -> list[float] | None:
    """Quantiles of the response lengths of an arm's runs, all benchmarks of an outcome together."""
    runs = tokens.runs_of(arm, key) if tokens is not None else []
    if tokens is None or not runs:
        return None
    values = [
        tokens.outcome.scores[name].loc[runs].to_numpy() for name in tokens.outcome.weights[key]
    ]
    pooled = np.concatenate([value[~np.isnan(value)] for value in values])
    return [float(x) for x in np.quantile(pooled, QUANTILES)]


def pareto(rows: list[Row]) -> list[bool]:
    """Whether no other row has at least the mean score with at most the mean length, one strictly.

    `rows` have `score` and `tokens`.
    """
    points = np.array([(row["score"], -row["tokens"]) for row in rows], dtype=float).reshape(-1, 2)
    return [
        not bool(np.any(np.all(points >= one, axis=1) & np.any(points > one, axis=1)))
        for one in points
    ]
