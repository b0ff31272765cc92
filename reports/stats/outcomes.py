"""From items to run-level outcomes: benchmark means, suites, and the sampling noise of items.

Shapes: R runs, I items of one benchmark, C clusters of one benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

Key = tuple[str, str | None]
"""(suite, benchmark); benchmark None is the suite, suite "all" the mean of the suites."""
Benchmark = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One item-level measure (score, response tokens ...) of all runs."""

    scores: dict[Benchmark, pd.DataFrame]
    """benchmark -> (R, I), attempts averaged; NaN where a run's item is unscored or missing."""
    clusters: dict[Benchmark, np.ndarray]
    """benchmark -> (I,) index of each item's cluster."""
    weights: dict[Key, dict[Benchmark, float]]
    """outcome -> the weight of each benchmark in it."""

    @property
    def runs(self) -> list[str]:
        """Ids of the R runs."""
        return list(next(iter(self.scores.values())).index)

    @cached_property
    def means(self) -> dict[Key, pd.Series]:
        """outcome -> (R,) mean of each run; NaN where one of the benchmarks is missing."""
        own = {name: table.mean(axis=1) for name, table in self.scores.items()}
        zero = pd.Series(0.0, index=self.runs)
        return {
            key: sum((weight * own[name] for name, weight in parts.items()), zero)
            for key, parts in self.weights.items()
        }

    @cached_property
    def _values(self) -> dict[Benchmark, np.ndarray]:
        return {name: table.to_numpy(dtype=float) for name, table in self.scores.items()}

    @cached_property
    def _position(self) -> dict[str, int]:
        return {run: position for position, run in enumerate(self.runs)}

    def by_item(self, key: Key, runs: list[str]) -> list[np.ndarray]:
        """For each benchmark of an outcome (I,): mean over these runs, NaN where none scored."""
        rows = [self._position[run] for run in runs]
        found = []
        for name in self.weights[key]:
            values = self._values[name][rows]
            seen = ~np.isnan(values)
            total, count = np.where(seen, values, 0.0).sum(axis=0), seen.sum(axis=0)
            found.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        return found

    def part(self, chosen: dict[Benchmark, np.ndarray]) -> Outcome | None:
        """The outcome of some items, (I,) a mask for each benchmark; None when there are none.

        A suite is the mean of those of its benchmarks that have such items.
        """
        scores = {
            name: self.scores[name].loc[:, mask] for name, mask in chosen.items() if mask.any()
        }
        if not scores:
            return None
        clusters = {name: self.clusters[name][chosen[name]] for name in scores}
        suites: dict[str, list[str]] = {}
        for suite, name in self.scores:
            if (suite, name) in scores:
                suites.setdefault(suite, []).append(name)
        return Outcome(scores=scores, clusters=clusters, weights=suite_weights(suites))

    def items(self, key: Key, runs: list[str]) -> int:
        """How many items, over the benchmarks of an outcome, at least one of these runs scored."""
        return sum(int(np.sum(~np.isnan(values))) for values in self.by_item(key, runs))

    @cached_property
    def _filled(self) -> dict[Benchmark, np.ndarray]:
        """(R, I), what is unscored filled with run mean + item mean - grand mean."""
        found = {}
        for name, values in self._values.items():
            seen = ~np.isnan(values)
            if seen.all():
                found[name] = values
                continue
            total = np.where(seen, values, 0.0)
            run = total.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
            item = total.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
            grand = total.sum() / max(int(seen.sum()), 1)
            found[name] = np.where(seen, values, run[:, None] + item[None, :] - grand)
        return found

    def item_variance(
        self, key: Key, runs: list[str], against: list[str] | None = None
    ) -> tuple[float, float]:
        """Variance of a mean over items, or of a paired difference, and its degrees of freedom.

        Items of one cluster are kept together (cluster-robust, with the factor C / (C - 1); Miller
        2024, arXiv:2411.00640). Benchmarks share no clusters, so their variances add up.
        """
        values = self.by_item(key, runs)
        if against is not None:
            other = self.by_item(key, against)
            values = [first - second for first, second in zip(values, other, strict=True)]
        return self._over_benchmarks(key, [value[None, :] for value in values])

    def contrast_item_variance(
        self, key: Key, runs: list[str], weights: np.ndarray
    ) -> tuple[float, float]:
        """As `item_variance`, of the contrast with these weights (N,) of the runs' means."""
        rows = [self._position[run] for run in runs]
        return self._over_benchmarks(
            key, [(weights @ self._filled[name][rows])[None, :] for name in self.weights[key]]
        )

    def run_by_item_variance(
        self, key: Key, runs: list[str], projection: np.ndarray, df: int
    ) -> tuple[float, float]:
        """The part of one run's variance that its answers to these items alone make, and its df.

        `projection` (N, N) of rank `df` leaves the runs' residuals from the model: what remains of
        them item by item, cluster by cluster, after the run's own level. It is the interaction of
        runs and items in a crossed analysis of variance, so it is in the variance between runs and
        in that between items, and a sum of the two counts it twice.
        """
        rows = [self._position[run] for run in runs]
        parts = [projection @ self._filled[name][rows] for name in self.weights[key]]
        variance, one = self._over_benchmarks(key, parts)
        return (variance / df, one) if df else (np.nan, np.inf)

    def _over_benchmarks(self, key: Key, values: list[np.ndarray]) -> tuple[float, float]:
        """Sum over rows (K, I) and benchmarks of the cluster-robust variance of a row's mean."""
        total, squares = 0.0, 0.0
        for (name, weight), value in zip(self.weights[key].items(), values, strict=True):
            seen = ~np.isnan(value[0])
            variances, count = cluster_variances(value[:, seen], self.clusters[name][seen])
            part = weight**2 * variances
            total += float(part.sum())
            squares += float((part**2).sum()) / (count - 1) if count > 1 else 0.0
        return total, (total**2 / squares if squares > 0 else np.inf)


def cluster_variance(value: np.ndarray, cluster: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of `value` (n,), items of a cluster not independent; clusters' count.

    NaN with fewer than two clusters.
    """
    variances, count = cluster_variances(value[None, :], cluster)
    return float(variances[0]), count


def cluster_variances(values: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, int]:
    """(K,) variances of the means of `values` (K, n), as `cluster_variance`."""
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    count = len(starts)
    if count < 2:
        return np.full(len(values), np.nan), count
    centred = values - values.mean(axis=1, keepdims=True)
    sums = np.add.reduceat(centred[:, order], starts, axis=1)
    return count / (count - 1) * np.sum(sums**2, axis=1) / values.shape[1] ** 2, count


def outcome(items: pd.DataFrame, measure: str, suites: dict[str, list[str]]) -> Outcome | None:
    """The outcome of one measure, or None when no item has it.

    `items` has run, suite, benchmark, item, cluster and the measure; `suites` names the benchmarks
    of each suite. A suite is the unweighted mean of its benchmarks, "all" that of the suites.
    """
    if measure not in items.columns or items[measure].notna().sum() == 0:
        return None
    runs = pd.Index(pd.unique(items["run"]))
    scores: dict[Benchmark, pd.DataFrame] = {}
    clusters: dict[Benchmark, np.ndarray] = {}
    for (suite, benchmark), part in items.groupby(["suite", "benchmark"], sort=False):
        table = part.pivot_table(
            index="run", columns="item", values=measure, aggfunc="mean", dropna=False
        )
        key = (str(suite), str(benchmark))
        scores[key] = table.reindex(runs)
        cluster = part.drop_duplicates("item").set_index("item")["cluster"].astype(str)
        clusters[key] = pd.factorize(cluster.loc[table.columns])[0]
    return Outcome(scores=scores, clusters=clusters, weights=suite_weights(suites))


def suite_weights(suites: dict[str, list[str]]) -> dict[Key, dict[Benchmark, float]]:
    """The weight of each benchmark in itself, in its suite, and in the mean of all suites."""
    weights: dict[Key, dict[Benchmark, float]] = {}
    for suite, names in suites.items():
        for name in names:
            weights[(suite, name)] = {(suite, name): 1.0}
    for suite, names in suites.items():
        weights[(suite, None)] = {(suite, name): 1 / len(names) for name in names}
    if len(suites) > 1:
        weights[("all", None)] = {
            benchmark: weight / len(suites)
            for suite in suites
            for benchmark, weight in weights[(suite, None)].items()
        }
    return weights
