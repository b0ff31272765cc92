"""What a sweep could have seen: the smallest effect it would detect."""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats


def power_of(effect: float, se: float, df: float, alpha: float) -> float:
    """Power of a two-sided t-test at level `alpha` against a true `effect`."""
    if np.isinf(df):
        critical = stats.norm.ppf(1 - alpha / 2)
        return float(
            stats.norm.sf(critical - effect / se) + stats.norm.cdf(-critical - effect / se)
        )
    critical = stats.t.ppf(1 - alpha / 2, df)
    noncentral = effect / se
    return float(stats.nct.sf(critical, df, noncentral) + stats.nct.cdf(-critical, df, noncentral))


def minimum_detectable_effect(
    se: float, df: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The effect that a two-sided t-test at `alpha` finds with probability `power`.

    Exact, by the noncentral t distribution; before any correction for multiplicity.
    """
    upper = 2.0
    while power_of(upper, 1.0, df, alpha) < power:
        upper *= 2
    return se * float(
        optimize.brentq(lambda effect: power_of(effect, 1.0, df, alpha) - power, 0.0, upper)
    )
