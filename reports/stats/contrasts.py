"""Arm means and differences between arms, with the run variance pooled from the design."""

from __future__ import annotations

import numpy as np

from reports.stats.effects import Interval, RunVariance, t_interval

BASE_METHOD = "pooled run variance plus paired item clusters (the base is one checkpoint)"
ARM_METHOD = "pooled run variance plus item clusters (conservative for these items)"
FEW_CLUSTERS = "a benchmark has fewer than two clusters of items"
ITEMS_ONLY = "item clusters only: these checkpoints, no run-to-run variation"


def satterthwaite(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Sum of independent variance estimates [(variance, df), ...] and its effective df."""
    total = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / df for variance, df in parts)
    return total, (total**2 / squares if squares > 0 else np.inf)


def arm_mean(
    mean: float, runs: int, run: RunVariance, items: tuple[float, float], *, confidence: float
) -> Interval:
    """A trained arm's mean over `runs` seeds; `items` is the (variance, df) of item sampling."""
    if run.value is None or np.isnan(items[0]):
        why = run.source if run.value is None else FEW_CLUSTERS
        return Interval(estimate=mean, method="not estimable", why=why)
    total, df = satterthwaite([(run.value / runs, run.df), items])
    return t_interval(mean, total, df, confidence=confidence, method=ARM_METHOD)


def checkpoint_mean(mean: float, items: tuple[float, float], *, confidence: float) -> Interval:
    """The mean of one fixed checkpoint (the base): only the sampling of items moves it."""
    variance, df = items
    if np.isnan(variance):
        return Interval(estimate=mean, method="not estimable", why=FEW_CLUSTERS)
    return t_interval(mean, variance, df, confidence=confidence, method=ITEMS_ONLY)


def against_trained(
    delta: float, runs: int, against: int, run: RunVariance, *, confidence: float
) -> Interval:
    """Difference of two trained arms with `runs` and `against` seeds."""
    variance = None if run.value is None else run.value * (1 / runs + 1 / against)
    return t_interval(delta, variance, run.df, confidence=confidence, method=run.source)


def against_base(
    delta: float, runs: int, run: RunVariance, items: tuple[float, float], *, confidence: float
) -> Interval:
    """Difference of a trained arm from the base.

    The base is one fixed checkpoint, so only the trained arm has run variance; `items` is the
    (variance, df) of the paired item differences. The two are added, with Satterthwaite's df.
    """
    if run.value is None or np.isnan(items[0]):
        why = run.source if run.value is None else FEW_CLUSTERS
        return Interval(estimate=delta, method="not estimable", why=why)
    total, df = satterthwaite([(run.value / runs, run.df), items])
    return t_interval(delta, total, df, confidence=confidence, method=BASE_METHOD)
