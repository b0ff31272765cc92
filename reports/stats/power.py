"""What a sweep could have seen, and what it would take to see more."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

MOST = 1000
"""Seeds, or times the items, beyond which nobody would go."""


def power_of(effect: float, se: float, df: float, alpha: float) -> float:
    """Power of a two-sided t-test at level `alpha` against a true `effect`."""
    return float(_power(np.array([effect / se]), df, alpha)[0])


def _power(noncentral: np.ndarray, df: float, alpha: float) -> np.ndarray:
    if np.isinf(df):
        critical = stats.norm.ppf(1 - alpha / 2)
        return stats.norm.sf(critical - noncentral) + stats.norm.cdf(-critical - noncentral)
    critical = stats.t.ppf(1 - alpha / 2, df)
    # Where the noncentrality is large, the far tail is 0 and scipy's nct may return NaN for it.
    near = np.nan_to_num(stats.nct.sf(critical, df, noncentral), nan=1.0)
    return near + np.nan_to_num(stats.nct.cdf(-critical, df, noncentral), nan=0.0)


@lru_cache(maxsize=1024)
def detectable(df: float, alpha: float, power: float) -> float:
    """In standard errors, the effect that a two-sided t-test at `alpha` finds with this power.

    The standard error is taken as known; exact, by the noncentral t distribution.
    """
    upper = 2.0
    while power_of(upper, 1.0, df, alpha) < power:
        upper *= 2
    return float(optimize.brentq(lambda x: power_of(x, 1.0, df, alpha) - power, 0.0, upper))


def minimum_detectable_effect(
    se: float, df: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The effect that a test at `alpha` finds with this power, from an estimated standard error.

    An estimate from `df` degrees of freedom is on average too small, by the factor c4; with that
    taken out the result is unbiased for what the true standard error would give. Before any
    correction for multiplicity: that comes with `alpha`.
    """
    c4 = 1.0
    if df < 1e4:
        log_c4 = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) + np.log(2 / df) / 2
        c4 = float(np.exp(log_c4))
    return se / c4 * detectable(df, alpha, power)


def fewest(
    se_and_df: Callable[[int], tuple[float, float]], effect: float, alpha: float, power: float
) -> int | None:
    """The least n up to `MOST` at which a test with `se_and_df(n)` finds `effect`; None if none.

    More never hurts: power rises with n.
    """

    def finds(n: int) -> bool:
        se, df = se_and_df(n)
        return df > 0 and se * detectable(df, alpha, power) <= abs(effect)

    if effect == 0 or not finds(MOST):
        return None
    low, high = 0, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high
