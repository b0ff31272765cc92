"""Corrections for testing many things at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    result = np.empty_like(values)
    result[order] = adjusted
    return result.tolist()


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values that bound the rate of false discoveries, in the order given (1995)."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * len(values) / (1 + np.arange(len(values)))
    result = np.empty_like(values)
    result[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return result.tolist()


CORRECTIONS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "holm": holm,
    "benjamini-hochberg": benjamini_hochberg,
    "none": list[float],
}


def adjust(p: Sequence[float | None], correction: str) -> list[float | None]:
    """Adjusted p-values of one family; None (not estimable) stays None and does not count.

    `correction` is one of CORRECTIONS. Raises ValueError for any other.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"unknown correction {correction!r}: expected {', '.join(CORRECTIONS)}")
    known = [index for index, value in enumerate(p) if value is not None]
    values = [float(value) for value in p if value is not None]
    result: list[float | None] = [None] * len(p)
    for index, value in zip(known, CORRECTIONS[correction](values), strict=True):
        result[index] = value
    return result
