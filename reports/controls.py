"""What remains of the score without the image, or with another one: does the model look at it?

Items asked again under another `condition` (`no_image`, `shuffled_image`, `rotation_k`) are paired
with themselves under the normal one.
"""

from __future__ import annotations

from reports.analysis import Analysis, Row, interval_row, with_family
from reports.measures import Measures
from reports.stats.contrasts import checkpoint_mean
from reports.stats.outcomes import Outcome, outcome, suite_weights


def controls(measures: Measures) -> list[Row]:
    """For each condition and suite: what every arm loses under it, and how training changed that.

    `of` is "arm" (normal minus condition, `delta`) or "training" (the loss of the trained arm minus
    that of the base under the same prompt). Empty where no item was asked under a condition.
    """
    tables, score = measures.tables, measures.of("score")
    if tables.conditions is None or score is None:
        return []
    rows = []
    for condition, part in tables.conditions.groupby("condition", sort=False, observed=True):
        pairs = part[["suite", "benchmark"]].drop_duplicates()
        present = set(zip(pairs["suite"], pairs["benchmark"], strict=True))
        suites = {
            suite: [name for name in names if (suite, name) in present]
            for suite, names in tables.suites.items()
        }
        suites = {suite: names for suite, names in suites.items() if names}
        other = outcome(part, "score", suites) if suites else None
        if other is None:
            continue
        lost = Analysis(
            tables, _difference(score.outcome, other, suites), score.settings, score.known_designs
        )
        for key in lost.suites():
            family = [
                {"condition": str(condition), "suite": key[0], **row} for row in _rows(lost, key)
            ]
            rows += with_family(family, score.settings.correction)
    return rows


def _difference(normal: Outcome, other: Outcome, suites: dict[str, list[str]]) -> Outcome:
    """Normal minus condition, for the runs and items that have both."""
    scores, clusters = {}, {}
    for name in [(suite, name) for suite, names in suites.items() for name in names]:
        table = other.scores[name]
        items = normal.scores[name].columns
        both = items.isin(table.columns)
        columns = items[both]
        scores[name] = normal.scores[name].reindex(table.index)[columns] - table[columns]
        clusters[name] = normal.clusters[name][both]
    return Outcome(scores=scores, clusters=clusters, weights=suite_weights(suites))


def _rows(lost: Analysis, key: tuple[str, str | None]) -> list[Row]:
    tables, confidence = lost.tables, lost.settings.confidence
    rows = []
    for arm in tables.arms("base", "cell", "variant"):
        interval = lost.arm(arm, key)
        if interval is None:
            continue
        runs = lost.runs_of(arm, key)
        items = checkpoint_mean(
            float(interval.estimate or 0.0),
            lost.outcome.item_variance(key, runs),
            confidence=confidence,
        )
        row: Row = {"of": "arm", "arm": arm, "against": None, "delta": interval.estimate}
        row |= {"items": lost.outcome.items(key, runs), **interval_row(interval)}
        rows.append(row | {"checkpoints_low": items.low, "checkpoints_high": items.high})
    for arm in tables.arms("cell", "variant"):
        base = tables.base_of(arm)
        gain = lost.contrast(arm, base, key) if base is not None else None
        if base is None or gain is None:
            continue
        first, second = lost.runs_of(arm, key), lost.runs_of(base, key)
        items = checkpoint_mean(
            float(gain.estimate or 0.0),
            lost.outcome.item_variance(key, first, second),
            confidence=confidence,
        )
        row = {"of": "training", "arm": arm, "against": base, "delta": gain.estimate}
        row |= {"items": lost.outcome.items(key, first), **interval_row(gain)}
        rows.append(row | {"checkpoints_low": items.low, "checkpoints_high": items.high})
    for row in rows:
        del row["estimate"]
    return rows
