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

    def items(self, key: Key, runs: list[str]) -> int:
        """How many items, over the benchmarks of an outcome, at least one of these runs scored."""
        return sum(int(np.sum(~np.isnan(values))) for values in self.by_item(key, runs))

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
        total, squares = 0.0, 0.0
        for (name, weight), value in zip(self.weights[key].items(), values, strict=True):
            seen = ~np.isnan(value)
            variance, count = cluster_variance(value[seen], self.clusters[name][seen])
            part = weight**2 * variance
            total += part
            squares += part**2 / (count - 1) if count > 1 else 0.0
        return total, (total**2 / squares if squares > 0 else np.inf)


def cluster_variance(value: np.ndarray, cluster: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of `value` (n,), items of a cluster not independent; clusters' count.

    NaN with fewer than two clusters.
    """
    _, codes = np.unique(cluster, return_inverse=True)
    count = int(codes.max()) + 1 if len(codes) else 0
    if count < 2:
        return float("nan"), count
    sums = np.bincount(codes, weights=value - value.mean())
    return float(count / (count - 1) * np.sum(sums**2) / len(value) ** 2), count


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
    return Outcome(scores=scores, clusters=clusters, weights=weights)
