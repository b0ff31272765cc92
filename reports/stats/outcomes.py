"""From items to run-level outcomes: benchmark means, suites, and the sampling noise of items.

Shapes: R runs, I items of one benchmark, C clusters of one benchmark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

Key = tuple[str, str | None]
"""(suite, benchmark); benchmark None is the suite, suite "all" the mean of the suites."""
Benchmark = tuple[str, str]
Residuals = Callable[[np.ndarray], np.ndarray]
"""(N, ...) of each run -> what a model leaves of it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One item-level measure (score, response tokens ...) of all runs."""

    scores: dict[Benchmark, pd.DataFrame]
    """benchmark -> (R, I), attempts averaged; NaN where a run's item is unscored or missing."""
    clusters: dict[Benchmark, np.ndarray]
    """benchmark -> (I,) index of each item's cluster."""
    weights: dict[Key, dict[Benchmark, float]]
    """outcome -> the weight of each benchmark in it."""
    _known: dict[tuple[Any, ...], np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What several estimates ask for: means by item of the same runs, sums of residuals."""

    @property
    def runs(self) -> list[str]:
        """Ids of the R runs."""
        return list(next(iter(self.scores.values())).index)

    @cached_property
    def means(self) -> dict[Key, pd.Series]:
        """outcome -> (R,) mean of each run; NaN where one of the benchmarks is missing."""
        own = {}
        for name, values in self._values.items():
            seen = ~np.isnan(values)
            total, count = np.where(seen, values, 0.0).sum(axis=1), seen.sum(axis=1)
            own[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return {
            key: pd.Series(sum(weight * own[name] for name, weight in parts.items()), self.runs)
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
        return [self._item_means(name, tuple(runs)) for name in self.weights[key]]

    def _item_means(self, name: Benchmark, runs: tuple[str, ...]) -> np.ndarray:
        if (name, runs) not in self._known:
            values = self._values[name][[self._position[run] for run in runs]]
            seen = ~np.isnan(values)
            total, count = np.where(seen, values, 0.0).sum(axis=0), seen.sum(axis=0)
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
            self._known[name, runs] = mean
        return self._known[name, runs]

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
        self, key: Key, runs: list[str], residuals: Residuals, df: int
    ) -> tuple[float, float]:
        """The part of one run's variance that its answers to these items alone make, and its df.

        `residuals`, of rank `df`, leaves of the runs what the model does not fit: what remains of
        them item by item, cluster by cluster, after the run's own level. It is the interaction of
        runs and items in a crossed analysis of variance, so it is in the variance between runs and
        in that between items, and a sum of the two counts it twice.
        """
        if df == 0:
            return np.nan, np.inf
        sums = [self.residual_sums(name, runs, residuals) for name in self.weights[key]]
        sizes = [len(self.clusters[name]) for name in self.weights[key]]
        variance, one = _together(list(self.weights[key].values()), sums, sizes)
        return variance / df, one

    def residual_sums(self, name: Benchmark, runs: list[str], residuals: Residuals) -> np.ndarray:
        """(N, C) the runs' residuals item by item, without their means, summed over clusters."""
        key = (name, tuple(runs), residuals)
        if key not in self._known:
            values = self._filled[name][[self._position[run] for run in runs]]
            self._known[key] = cluster_sums(residuals(values), self.clusters[name])
        return self._known[key]

    def _over_benchmarks(self, key: Key, values: list[np.ndarray]) -> tuple[float, float]:
        """Sum over rows (K, I) and benchmarks of the cluster-robust variance of a row's mean."""
        sums, sizes = [], []
        for name, value in zip(self.weights[key], values, strict=True):
            seen = ~np.isnan(value[0])
            sums.append(cluster_sums(value[:, seen], self.clusters[name][seen]))
            sizes.append(int(seen.sum()))
        return _together(list(self.weights[key].values()), sums, sizes)


@dataclass(frozen=True, kw_only=True)
class Combined(Outcome):
    """One outcome minus `ratio` times another, item by item, for the mean of an arm.

    All that such a mean asks for is linear in the scores, so no table of differences is made:
    `scores` are the first's. Both have the same runs and items, scored and unscored (`paired`).
    """

    first: Outcome
    second: Outcome
    ratio: float

    @cached_property
    def means(self) -> dict[Key, pd.Series]:
        """As Outcome.means."""
        return {
            key: self.first.means[key] - self.ratio * self.second.means[key] for key in self.weights
        }

    def by_item(self, key: Key, runs: list[str]) -> list[np.ndarray]:
        """As Outcome.by_item."""
        pairs = zip(self.first.by_item(key, runs), self.second.by_item(key, runs), strict=True)
        return [first - self.ratio * second for first, second in pairs]

    def residual_sums(self, name: Benchmark, runs: list[str], residuals: Residuals) -> np.ndarray:
        """As Outcome.residual_sums."""
        pair = (one.residual_sums(name, runs, residuals) for one in (self.first, self.second))
        first, second = pair
        return first - self.ratio * second


def _together(
    weights: list[float], sums: list[np.ndarray], sizes: list[int]
) -> tuple[float, float]:
    """Variance of a weighted sum over benchmarks, added up over rows, and its degrees of freedom.

    `sums` has (K, C) cluster sums of each benchmark (`cluster_sums`), `sizes` its items.
    """
    total, squares = 0.0, 0.0
    for weight, one, size in zip(weights, sums, sizes, strict=True):
        count = one.shape[1]
        part = weight**2 * variances_of_sums(one, size)
        total += float(part.sum())
        squares += float((part**2).sum()) / (count - 1) if count > 1 else 0.0
    return total, (total**2 / squares if squares > 0 else np.inf)


def paired(first: Outcome, second: Outcome) -> tuple[Outcome, Outcome]:
    """Both outcomes on the answers that have both; themselves where these are the same."""
    masks = {
        name: first.scores[name].notna() & second.scores[name].notna() for name in first.scores
    }
    return _only(first, masks), _only(second, masks)


def _only(outcome: Outcome, masks: dict[Benchmark, pd.DataFrame]) -> Outcome:
    if all(outcome.scores[name].notna().equals(mask) for name, mask in masks.items()):
        return outcome
    scores = {name: outcome.scores[name].where(mask) for name, mask in masks.items()}
    return Outcome(scores=scores, clusters=outcome.clusters, weights=outcome.weights)


def cluster_variance(value: np.ndarray, cluster: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of `value` (n,), items of a cluster not independent; clusters' count.

    NaN with fewer than two clusters.
    """
    sums = cluster_sums(value[None, :], cluster)
    return float(variances_of_sums(sums, len(value))[0]), sums.shape[1]


def cluster_sums(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """(K, C) sums over clusters of `values` (K, n) less each row's mean."""
    if not len(cluster):
        return np.zeros((len(values), 0))
    if np.any(np.diff(cluster) < 0):
        order = np.argsort(cluster, kind="stable")
        values, cluster = values[:, order], cluster[order]
    starts = np.flatnonzero(np.diff(cluster, prepend=-1))
    sums = np.add.reduceat(values, starts, axis=1)
    sizes = np.diff(starts, append=len(cluster))
    return sums - values.mean(axis=1, keepdims=True) * sizes


def variances_of_sums(sums: np.ndarray, size: int) -> np.ndarray:
    """(K,) variances of means over `size` items, from the `cluster_sums` (K, C) of the items."""
    count = sums.shape[1]
    if count < 2:
        return np.full(len(sums), np.nan)
    return count / (count - 1) * np.sum(sums**2, axis=1) / size**2


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each row of the items goes in the outcomes: the same for every measure."""

    runs: pd.Index
    rows: dict[Benchmark, np.ndarray]
    """benchmark -> (n,) positions of its rows among the items."""
    run: dict[Benchmark, np.ndarray]
    """benchmark -> (n,) index of each row's run."""
    item: dict[Benchmark, np.ndarray]
    """benchmark -> (n,) index of each row's item."""
    items: dict[Benchmark, pd.Index]
    clusters: dict[Benchmark, np.ndarray]
    """benchmark -> (I,) index of each item's cluster."""


def layout(items: pd.DataFrame) -> Layout:
    """The layout of items with run, suite, benchmark, item and cluster."""
    run, runs = pd.factorize(items["run"])
    suite, suites = pd.factorize(items["suite"])
    benchmark, benchmarks = pd.factorize(items["benchmark"])
    pair = suite * len(benchmarks) + benchmark
    found = Layout(
        runs=pd.Index(list(map(str, runs))), rows={}, run={}, item={}, items={}, clusters={}
    )
    for code in pd.unique(pair):
        key = str(suites[code // len(benchmarks)]), str(benchmarks[code % len(benchmarks)])
        rows = np.flatnonzero(pair == code)
        item, names = pd.factorize(items["item"].iloc[rows], sort=True)
        first = np.unique(item, return_index=True)[1]
        cluster = items["cluster"].iloc[rows[first]].astype(str)
        found.rows[key], found.run[key], found.item[key] = rows, run[rows], item
        found.items[key] = pd.Index(list(map(str, names)), name="item")
        found.clusters[key] = pd.factorize(cluster)[0]
    return found


def outcome(
    items: pd.DataFrame, measure: str, suites: dict[str, list[str]], known: Layout | None = None
) -> Outcome | None:
    """The outcome of one measure, or None when no item has it.

    `items` has run, suite, benchmark, item, cluster and the measure; `suites` names the benchmarks
    of each suite. A suite is the unweighted mean of its benchmarks, "all" that of the suites.
    `known` is the items' layout, where several measures are asked for.
    """
    if measure not in items.columns or items[measure].notna().sum() == 0:
        return None
    known = known or layout(items)
    values = items[measure].to_numpy(dtype=float)
    scores: dict[Benchmark, pd.DataFrame] = {}
    for key, rows in known.rows.items():
        value = values[rows]
        seen = ~np.isnan(value)
        shape = len(known.runs), len(known.items[key])
        place = (known.run[key] * shape[1] + known.item[key])[seen]
        total = np.bincount(place, value[seen], minlength=shape[0] * shape[1])
        count = np.bincount(place, minlength=shape[0] * shape[1])
        mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        scores[key] = pd.DataFrame(mean.reshape(shape), known.runs, known.items[key])
    return Outcome(scores=scores, clusters=known.clusters, weights=suite_weights(suites))


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
