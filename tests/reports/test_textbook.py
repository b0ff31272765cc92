"""Published factorial examples come out as printed, and as statsmodels computes them.

The data are in standard order: the first factor changes fastest.
"""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from reports.stats.effects import Design
from reports.stats.fractions import aliases, chains, lenth, sum_weights, two_level_contrasts

Printed = dict[str, float]


def standard_order(
    factors: str, replicates: int = 1, generated: dict[str, str] | None = None
) -> Design:
    """Two-level runs, -1 and +1, replicates of a run side by side."""
    basic = [name for name in factors if name not in (generated or {})]
    rows = []
    for signs in product((-1, 1), repeat=len(basic)):
        row = dict(zip(basic, signs[::-1], strict=True))
        for name, parents in (generated or {}).items():
            row[name] = int(np.prod([row[parent] for parent in parents]))
        rows += [row] * replicates
    levels = pd.DataFrame(rows)[list(factors)].map(lambda sign: "+" if sign > 0 else "-")
    return Design(
        levels=levels,
        arms=["".join(row) for row in levels.to_numpy()],
        controls=dict.fromkeys(factors, "-"),
        order=dict.fromkeys(factors, ("-", "+")),
    )


def effect(design: Design, name: str) -> np.ndarray:
    weights = (
        design.main_weights(name, "+")
        if len(name) == 1
        else design.interaction_weights((name[0], "+"), (name[1], "+"))
    )
    assert weights is not None
    return weights


def as_statsmodels(design: Design, means: np.ndarray, formula: str) -> pd.DataFrame:
    """Estimate, interval and p of every effect: twice the coefficients of factors at -1 and +1."""
    coded = design.levels.map(lambda level: 1 if level == "+" else -1)
    fit = smf.ols(f"y ~ {formula}", coded.assign(y=means)).fit()
    table = 2 * fit.conf_int()
    table.columns = ["low", "high"]
    return table.assign(estimate=2 * fit.params, p=fit.pvalues, df=fit.df_resid)


def agree(design: Design, means: np.ndarray, formula: str, printed: Printed) -> None:
    expected = as_statsmodels(design, means, formula)
    for name, value in printed.items():
        found = design.estimate(effect(design, name), means, confidence=0.95)
        theirs = expected.loc[":".join(name)]
        assert found.estimate == pytest.approx(value, abs=1e-9)
        assert [found.low, found.high] == pytest.approx([theirs["low"], theirs["high"]])
        assert found.p == pytest.approx(theirs["p"])
        assert found.df == theirs["df"]


def test_filtration_rate_an_unreplicated_two_to_the_four() -> None:
    """Montgomery, Design and Analysis of Experiments, the unreplicated 2^4 of chapter 6."""
    rate = [45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96]
    means, design = np.array(rate, dtype=float), standard_order("ABCD")
    printed = {"A": 21.625, "B": 3.125, "C": 9.875, "D": 14.625, "AB": 0.125, "AC": -18.125}
    printed |= {"AD": 16.625, "BC": 2.375, "BD": -0.375, "CD": -1.125}
    agree(design, means, "(A + B + C + D)**2", printed)
    contrasts = two_level_contrasts(design, means)
    assert contrasts is not None and len(contrasts) == 15
    assert sorted(contrasts)[-1] == 21.625 and sorted(contrasts)[0] == -18.125
    assert sorted(contrasts, key=abs)[-6] == 4.125, "ABD, the largest of what is pooled"
    pse, margin = lenth(contrasts, confidence=0.95)
    assert pse == pytest.approx(2.625)
    assert margin == pytest.approx(6.748, abs=1e-3)


def test_pilot_plant_a_replicated_two_to_the_three() -> None:
    """Box, Hunter and Hunter, Statistics for Experimenters: temperature, concentration, catalyst.

    The book's standard error of an effect is 1.4, from a pooled variance of 8 with 8 degrees.
    """
    runs = [59, 61, 74, 70, 50, 58, 69, 67, 50, 54, 81, 85, 46, 44, 79, 81]
    means, design = np.array(runs, dtype=float), standard_order("TCK", replicates=2)
    printed = {"T": 23.0, "C": -5.0, "K": 1.5, "TC": 1.5, "TK": 10.0, "CK": 0.0}
    agree(design, means, "T * C * K", printed)
    variance = design.run_variance(means)
    assert (variance.value, variance.df) == (pytest.approx(8.0), 8)
    found = design.estimate(effect(design, "T"), means, confidence=0.95)
    assert found.se == pytest.approx(np.sqrt(2))


def test_plasma_etch_a_replicated_two_to_the_three() -> None:
    """Montgomery, chapter 6: gap, C2F6 flow and power; mean square of error 2252.56."""
    rates = [550, 604, 669, 650, 633, 601, 642, 635, 1037, 1052, 749, 868, 1075, 1063, 729, 860]
    means, design = np.array(rates, dtype=float), standard_order("ABC", replicates=2)
    printed = {"A": -101.625, "B": 7.375, "C": 306.125, "AB": -24.875, "AC": -153.625, "BC": -2.125}
    agree(design, means, "A * B * C", printed)
    assert design.run_variance(means).value == pytest.approx(2252.56, abs=0.005)


REACTOR = [61, 53, 63, 61, 53, 56, 54, 61, 69, 61, 94, 93, 66, 60, 95, 98]
REACTOR += [56, 63, 70, 65, 59, 55, 67, 65, 44, 45, 78, 77, 49, 42, 81, 82]


def test_reactor_a_full_two_to_the_five() -> None:
    """Box, Hunter and Hunter: feed rate, catalyst, agitation, temperature, concentration."""
    means, design = np.array(REACTOR, dtype=float), standard_order("ABCDE")
    printed = {"B": 19.5, "D": 10.75, "E": -6.25, "BD": 13.25, "DE": -11.0}
    agree(design, means, "(A + B + C + D + E)**2", printed)


def test_reactor_as_a_half_fraction_with_its_aliases() -> None:
    """The sixteen of those runs with E = ABCD, as the book's 2^(5-1) has them."""
    design = standard_order("ABCDE", generated={"E": "ABCD"})
    whole = standard_order("ABCDE")
    value = dict(zip(whole.arms, map(float, REACTOR), strict=True))
    means = np.array([value[arm] for arm in design.arms])
    for name, printed in {"B": 20.5, "D": 12.25, "E": -6.25, "BD": 10.75, "DE": -9.5}.items():
        assert effect(design, name) @ means == pytest.approx(printed)
    found = design.estimate(effect(design, "B"), means, confidence=0.95)
    assert not found.estimable, "sixteen runs for sixteen coefficients"
    table = chains(design)
    assert table is not None and len(table) == 16
    assert aliases(table)["A"] == ["B:C:D:E"]
    assert aliases(table)["A:B"] == ["C:D:E"]
    contrasts = two_level_contrasts(design, means)
    assert contrasts is not None and len(contrasts) == 15
    _, margin = lenth(contrasts, confidence=0.95)
    assert sum(np.abs(contrasts) > margin) == 5, "the five that the book names"


def test_a_half_fraction_of_resolution_four_estimates_sums_of_interactions() -> None:
    """2^(4-1) with D = ABC, replicated: AB and CD share a column, and so on."""
    design = standard_order("ABCD", replicates=2, generated={"D": "ABC"})
    table = chains(design)
    assert table is not None
    assert aliases(table)["A:B"] == ["C:D"]
    assert aliases(table)["A"] == ["B:C:D"]
    assert design.interaction_weights(("A", "+"), ("B", "+")) is None
    means = np.random.default_rng(1).normal(0.6, 0.02, 16)
    expected = as_statsmodels(design, means, "A + B + C + D + A:B + A:C + A:D")
    sums = {chain.name: sum_weights(design, chain) for chain in table if len(chain.name) == 2}
    assert len(sums) == 3
    weights = sums["A", "B"]
    assert weights is not None
    found = design.estimate(weights, means, confidence=0.95)
    assert found.estimate == pytest.approx(expected.loc["A:B", "estimate"])
    assert [found.low, found.high] == pytest.approx(list(expected.loc["A:B", ["low", "high"]]))


def test_opposite_signs_are_marked_in_the_alias_table() -> None:
    whole = standard_order("ABC")
    kept = whole.levels[(whole.levels == "+").sum(axis=1) % 2 == 0]
    half = Design(
        levels=kept,
        arms=["".join(r) for r in kept.to_numpy()],
        controls=whole.controls,
        order=whole.order,
    )
    table = chains(half)
    assert table is not None
    assert aliases(table)["A"] == ["-B:C"]
    assert aliases(table)["B:C"] == ["-A"]


def test_factors_of_three_levels_have_no_alias_table() -> None:
    levels = pd.DataFrame(list(product("012", "01")), columns=["a", "b"])
    design = Design(
        levels=levels,
        arms=["".join(row) for row in levels.to_numpy()],
        controls={"a": "0", "b": "0"},
        order={"a": ("0", "1", "2"), "b": ("0", "1")},
    )
    assert chains(design) is None
    assert two_level_contrasts(design, np.zeros(6)) is None
