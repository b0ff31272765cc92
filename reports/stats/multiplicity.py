"""Corrections for testing many things at once."""

from __future__ import annotations

from collections.abc import Sequence

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


def adjust(p: Sequence[float | None], correction: str) -> list[float | None]:
    """Adjusted p-values of one family; None (not estimable) stays None and does not count.

    `correction` is "holm" or "none". Raises ValueError for any other.
    """
    if correction not in ("holm", "none"):
        raise ValueError(f"unknown correction {correction!r}: expected holm or none")
    known = [index for index, value in enumerate(p) if value is not None]
    values = [float(value) for value in p if value is not None]
    result: list[float | None] = [None] * len(p)
    for index, value in zip(known, holm(values) if correction == "holm" else values, strict=True):
        result[index] = value
    return result
