"""The same questions asked of parts of the benchmarks: by type, level and difficulty of the item.

Exploratory: many slices are looked at, so p-values are adjusted by Benjamini and Hochberg.
"""

from __future__ import annotations

import pandas as pd

from reports.analysis import Analysis, Row, interval_row, with_family
from reports.stats.outcomes import Benchmark

SLICED = ("type", "level", "difficulty")
FEWEST_ITEMS = 20
MOST_VALUES = 12
BINS = 4


def slices(analysis: Analysis) -> list[Row]:
    """Main effects, and the reference's gain over its base, in every slice of every suite.

    A slice has at least 20 items; of a column with more than twelve values the most common. One
    family, adjusted by Benjamini and Hochberg, for each column and suite.
    """
    rows = []
    for column in SLICED:
        labels = _labels(analysis, column)
        found: list[Row] = []
        for value in _values(labels):
            chosen = {name: (label == value).to_numpy() for name, label in labels.items()}
            part = analysis.outcome.part(chosen)
            if part is None:
                continue
            inside = Analysis(analysis.tables, part, analysis.settings, analysis.known_designs)
            found += [{"by": column, "value": str(value), **row} for row in _estimates(inside)]
        for suite in dict.fromkeys(row["suite"] for row in found):
            family = [row for row in found if row["suite"] == suite]
            rows += with_family(family, "benjamini-hochberg")
    return rows


def _labels(analysis: Analysis, column: str) -> dict[Benchmark, pd.Series]:
    """benchmark -> (I,) the slice of each of its items; numbers of many values in quarters."""
    items = analysis.tables.items
    if column not in items.columns or items[column].notna().sum() == 0:
        return {}
    once = items.drop_duplicates(["suite", "benchmark", "item"])
    value = once[column]
    if pd.api.types.is_numeric_dtype(value) and value.nunique() > MOST_VALUES:
        cut = pd.qcut(value, BINS, duplicates="drop")
        value = cut.map(lambda b: f"{b.left:.3g} to {b.right:.3g}").astype(object)
    once = once.assign(slice=value.astype(object))
    return {
        (str(suite), str(name)): part.set_index("item")["slice"].reindex(
            analysis.outcome.scores[str(suite), str(name)].columns
        )
        for (suite, name), part in once.groupby(["suite", "benchmark"], sort=False)
    }


def _values(labels: dict[Benchmark, pd.Series]) -> list[object]:
    """The slices that are large enough, in order."""
    if not labels:
        return []
    counts = pd.concat(list(labels.values())).value_counts()
    common = counts[counts >= FEWEST_ITEMS].head(MOST_VALUES)
    return sorted(common.index, key=lambda value: (str(type(value)), value))


def _estimates(inside: Analysis) -> list[Row]:
    tables = inside.tables
    reference = tables.reference
    base = tables.base_of(reference) if tables.runs_of(reference) else None
    rows: list[Row] = []
    for key in inside.suites():
        count = inside.outcome.items(key, inside.outcome.runs)
        shared: Row = {"suite": key[0], "items": count}
        for factor in tables.factors:
            for level in factor.others:
                interval = inside.combination(inside.main_weights(factor.name, level, key), key)
                row = {"of": "effect", "factor": factor.name, "level": level, **shared}
                rows.append(row | interval_row(interval))
        gain = inside.contrast(reference, base, key) if base else None
        if gain is not None:
            row = {"of": "reference", "arm": reference, "against": base, **shared}
            rows.append(row | interval_row(gain))
    return rows
