"""Regular fractions of two-level factorials: sizes, resolution, aliases."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.fraction import Fraction, smallest_fraction

NAMES = "abcdefghijk"


def column(fraction: Fraction, effect: str) -> np.ndarray:
    """The +1 and -1 of an effect (``a`` or ``a:b``) over the runs."""
    runs = list(fraction.runs())
    signs = [math.prod(1 if run[name] else -1 for name in effect.split(":")) for run in runs]
    return np.array(signs)


# Box, Hunter and Hunter, Statistics for Experimenters, 2nd edition, table 6.22.
@pytest.mark.parametrize(
    ("factors", "resolution", "runs"),
    [
        (3, 3, 4),
        (4, 4, 8),
        (5, 3, 8),
        (5, 5, 16),
        (6, 3, 8),
        (6, 4, 16),
        (6, 5, 32),
        (7, 3, 8),
        (7, 4, 16),
        (7, 5, 64),
        (8, 4, 16),
        (8, 5, 64),
        (9, 3, 16),
        (9, 4, 32),
        (9, 5, 128),
        (10, 4, 32),
        (11, 5, 128),
    ],
)
def test_fractions_are_as_small_as_the_textbook_says(
    factors: int, resolution: int, runs: int
) -> None:
    assert len(list(smallest_fraction(tuple(NAMES[:factors]), resolution).runs())) == runs


@pytest.mark.parametrize(
    ("factors", "resolution", "pattern"),
    [(5, 3, {3: 2, 4: 1}), (6, 5, {6: 1}), (7, 4, {4: 7}), (9, 3, {3: 4, 4: 14})],
)
def test_among_equals_the_one_that_aberrates_least(
    factors: int, resolution: int, pattern: dict[int, int]
) -> None:
    found = smallest_fraction(tuple(NAMES[:factors]), resolution).pattern
    assert {n: found[n - 1] for n in pattern} == pattern
    assert sum(found[: min(pattern) - 1]) == 0


fractions = st.builds(
    lambda k, resolution: smallest_fraction(tuple(NAMES[:k]), resolution),
    st.integers(2, 8),
    st.integers(3, 5),
)


@given(fractions)
def test_runs_are_balanced_different_and_begin_with_all_factors_at_their_first_level(
    fraction: Fraction,
) -> None:
    runs = list(fraction.runs())
    assert all(runs[0].values())
    assert len({tuple(run.values()) for run in runs}) == len(runs)
    assert all(column(fraction, name).sum() == 0 for name in fraction.factors)


@given(fractions, st.data())
def test_aliases_are_the_effects_whose_columns_are_equal(
    fraction: Fraction, data: st.DataObject
) -> None:
    flipped = data.draw(st.sets(st.sampled_from(fraction.factors)))
    effects = [
        ":".join(names) for n in (1, 2) for names in itertools.combinations(fraction.factors, n)
    ]
    columns = {
        effect: column(fraction, effect)
        * math.prod(-1 if name in flipped else 1 for name in effect.split(":"))
        for effect in effects
    }
    expected: dict[str, list[str]] = {}
    for one, other in itertools.permutations(effects, 2):
        for sign in ("", "-"):
            if np.array_equal(columns[one], columns[other] * (-1 if sign else 1)):
                expected.setdefault(one, []).append(sign + other)
    found = fraction.aliases(flipped)
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in expected.items()}
    shortest = min((len(f"{k}:{a}".split(":")) for k, v in found.items() for a in v), default=9)
    assert shortest >= min(fraction.resolution, 9)
