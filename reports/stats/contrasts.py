"""Arm means and differences between arms, with the run variance pooled from the design.

Two targets, never mixed. "These items": only the run varies, as if the same benchmarks were asked
again of newly trained runs. "Items of their kind": the items are a sample too. For the second the
variance of the items is added, less the part that runs and items make together, which is in both
(the quasi-F of crossed random factors: Clark 1973; Satterthwaite 1946 for the degrees of freedom).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reports.stats.effects import Interval, RunVariance, t_interval

BASE_METHOD = "pooled run variance plus paired item clusters (the base is one checkpoint)"
OWN_RUNS_METHOD = "variance between the variant's own runs plus paired item clusters"
ARM_METHOD = "pooled run variance plus item clusters"
FEW_CLUSTERS = "a benchmark has fewer than two clusters of items"
ITEMS_ONLY = "item clusters only: these checkpoints, no run-to-run variation"

Variance = tuple[float, float]
"""A variance estimate and its degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """How much of one run's variance an estimate carries."""

    size: float
    """Sum of the squared weights of trained runs."""
    shared: float = 0.0
    """The part of `size` that lies in the residuals which the run variance comes from."""


def satterthwaite(parts: list[Variance]) -> Variance:
    """Sum of independent variance estimates [(variance, df), ...] and its effective df.

    An estimate that is subtracted is given as negative.
    """
    total = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / df for variance, df in parts)
    return total, (total**2 / squares if squares > 0 else np.inf)


def between_runs(estimate: float, share: Share, run: RunVariance, *, confidence: float) -> Interval:
    """An estimate for these items: only runs vary."""
    return t_interval(
        estimate,
        None if run.value is None else run.value * share.size,
        run.df,
        confidence=confidence,
        method=run.source,
        shared=share.shared / share.size,
    )


def between_runs_and_items(
    estimate: float,
    share: Share,
    run: RunVariance,
    items: Variance,
    both: Variance,
    *,
    confidence: float,
    method: str = ARM_METHOD,
) -> Interval:
    """An estimate for items of their kind.

    `items` is the variance of the estimate over the items it was made from, `both` the part of one
    run's variance that runs and items make together (`Outcome.run_by_item_variance`). What the
    items add leaves less of the estimate in the residuals; with Satterthwaite's degrees of freedom
    that part of it is an approximation.
    """
    if run.value is None or np.isnan(items[0]):
        why = run.source if run.value is None else FEW_CLUSTERS
        return Interval(estimate=estimate, method="not estimable", why=why)
    own = run.value * share.size, run.df
    twice = -both[0] * share.size, both[1]
    if items[0] + twice[0] <= 0:
        total, df = own
    else:
        total, df = satterthwaite([own, items, twice])
    return t_interval(
        estimate,
        total,
        df,
        confidence=confidence,
        method=method,
        shared=share.shared / share.size * min(1.0, own[0] / total),
    )


def checkpoint_mean(mean: float, items: Variance, *, confidence: float) -> Interval:
    """The mean of one fixed checkpoint (the base): only the sampling of items moves it."""
    variance, df = items
    if np.isnan(variance):
        return Interval(estimate=mean, method="not estimable", why=FEW_CLUSTERS)
    return t_interval(mean, variance, df, confidence=confidence, method=ITEMS_ONLY)
