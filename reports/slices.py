"""The same questions asked of parts of the benchmarks: by type, level, difficulty and cluster.

Exploratory: many slices are looked at, so p-values are adjusted by Benjamini and Hochberg.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from reports.analysis import Analysis, Row, interval_row, with_family
from reports.stats.effects import t_interval
from reports.stats.outcomes import Benchmark, Key
from reports.tables import plain

SLICED = ("type", "level", "difficulty")
FEWEST_ITEMS = 20
MOST_VALUES = 12
BINS = 4
FEWEST_IN_CLUSTER = 4
MOST_CLUSTERS = 12


def slices(analysis: Analysis) -> list[Row]:
    """Main effects, and the reference's gain over its base, in every slice of every suite.

    A slice has at least 20 items, all suites together; of a column with more than twelve values the
    most common. One family, adjusted by Benjamini and Hochberg, for each column and suite.
    Clusters: `_clusters`.
    """
    columns = [name for name in (*SLICED, "cluster") if name in analysis.tables.items.columns]
    key = ["suite", "benchmark", "item"]
    once = plain(analysis.tables.items[[*key, *columns]].drop_duplicates(key))
    rows = []
    for column in [name for name in SLICED if name in columns]:
        labels = _labels(analysis, once, column)
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
    labels = _labels(analysis, once, "cluster")
    for suite in analysis.tables.suites:
        rows += _clusters(analysis, labels, (suite, None))
    return rows


def _labels(analysis: Analysis, once: pd.DataFrame, column: str) -> dict[Benchmark, pd.Series]:
    """benchmark -> (I,) the slice of each of its items; numbers of many values in quarters."""
    value = once[column]
    if value.notna().sum() == 0:
        return {}
    if pd.api.types.is_float_dtype(value):
        value = value.where(np.isfinite(value))
    if pd.api.types.is_numeric_dtype(value) and value.nunique() > MOST_VALUES:
        cut = pd.qcut(value, BINS, duplicates="drop")
        value = cut.map(lambda b: f"{b.left:.3g} to {b.right:.3g}", na_action="ignore")
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
        shared: Row = {"suite": key[0], "items": count, "among": None}
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


def _clusters(analysis: Analysis, labels: dict[Benchmark, pd.Series], key: Key) -> list[Row]:
    """Main effects in single clusters of a suite: the twelve in which one stands out most.

    Of clusters with at least four items, all of which are in the family that is corrected
    (`among` says how many). They stand out by the smallest p of any effect, so that estimates that
    do not stand after correction are larger than they would be again. What the base makes of one
    cluster has no interval (clusters are what is sampled), so its gain is not among them.
    """
    design, runs = analysis.designs[key], analysis.cells(key)
    variance = analysis.variances[key]
    effects = [
        (factor.name, level, weights)
        for factor in analysis.tables.factors
        for level in factor.others
        if (weights := analysis.main_weights(factor.name, level, key)) is not None
    ]
    if variance.value is None or not effects:
        return []
    suite = key[0]
    names = pd.concat([pd.Series(label.unique()) for label in labels.values()])
    twice = set(names[names.duplicated()])
    found: list[list[Row]] = []
    for name in analysis.outcome.weights[key]:
        code, values = pd.factorize(labels[name])
        means, counts = _cluster_means(analysis.outcome.scores[name].loc[runs].to_numpy(), code)
        squares = np.sum(design.residuals(means) ** 2, axis=0) / design.df
        for place in np.flatnonzero(counts >= FEWEST_IN_CLUSTER):
            if np.isnan(means[:, place]).any():
                continue
            value = str(values[place])
            value = f"{name[1]}/{value}" if values[place] in twice else value
            shared: Row = {"by": "cluster", "value": value, "of": "effect"}
            one = []
            for factor, level, weights in effects:
                interval = t_interval(
                    float(weights @ means[:, place]),
                    float(squares[place] * (weights @ weights)),
                    design.df,
                    confidence=analysis.settings.confidence,
                    method=variance.source,
                    shared=design.shared(weights) / float(weights @ weights),
                )
                row = shared | {"factor": factor, "level": level, "suite": suite}
                row |= {"items": int(counts[place]), "among": 0}
                one.append(row | interval_row(interval))
            if any(row["estimable"] for row in one):
                found.append(one)
    rows = with_family([row for one in found for row in one], "benjamini-hochberg")
    for row in rows:
        row["among"] = len(found)
    each = [rows[start : start + len(effects)] for start in range(0, len(rows), len(effects))]
    each.sort(key=lambda one: min(1.0 if row["p"] is None else row["p"] for row in one))
    return [row for one in each[:MOST_CLUSTERS] for row in one]


def _cluster_means(scores: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) means of runs over the scored items (N, I) of each cluster, and (C,) items."""
    member = np.zeros((len(code), int(code.max()) + 1))
    member[np.arange(len(code)), code] = 1.0
    seen = ~np.isnan(scores)
    total, count = np.where(seen, scores, 0.0) @ member, seen @ member
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return mean, member.sum(axis=0).astype(int)
