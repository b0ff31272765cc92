"""Factor effects: the run-level model against closed forms, statsmodels and planted truth."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.stats.effects import Design, t_interval
from reports.stats.fractions import two_level_contrasts


def grid(factors: int, seeds: int = 1, levels: int = 2) -> Design:
    names = [chr(ord("a") + index) for index in range(factors)]
    order = tuple(str(level) for level in range(levels))
    rows = [row for row in product(order, repeat=factors) for _ in range(seeds)]
    return Design(
        levels=pd.DataFrame(rows, columns=names),
        arms=["".join(row) for row in rows],
        controls=dict.fromkeys(names, "0"),
        order=dict.fromkeys(names, order),
    )


def test_two_by_two_effects_are_the_differences_of_marginal_means() -> None:
    design = grid(2)
    means = np.array([0.50, 0.55, 0.60, 0.75])  # 00, 01, 10, 11
    a, b = design.main_weights("a", "1"), design.main_weights("b", "1")
    ab = design.interaction_weights(("a", "1"), ("b", "1"))
    assert a is not None and b is not None and ab is not None
    assert a @ means == pytest.approx((0.60 + 0.75 - 0.50 - 0.55) / 2)
    assert b @ means == pytest.approx((0.55 + 0.75 - 0.50 - 0.60) / 2)
    assert ab @ means == pytest.approx(((0.75 - 0.60) - (0.55 - 0.50)) / 2)


def test_unreplicated_sixteen_runs_agree_with_statsmodels() -> None:
    """The 2^4 model with main effects and two-way interactions leaves 5 degrees of freedom."""
    design = grid(4)
    means = np.random.default_rng(3).normal(0.6, 0.02, 16)
    coded = design.levels.astype(int) * 2 - 1
    fit = smf.ols("y ~ (a + b + c + d)**2", coded.assign(y=means)).fit()
    assert fit.df_resid == 5
    for name in "abcd":
        found = design.estimate(design.main_weights(name, "1"), means, confidence=0.95)
        assert found.estimate == pytest.approx(2 * fit.params[name])
        assert [found.low, found.high] == pytest.approx(list(2 * fit.conf_int().loc[name]))
        assert found.p == pytest.approx(fit.pvalues[name])
        assert found.df == 5
    pair = design.estimate(
        design.interaction_weights(("b", "1"), ("d", "1")), means, confidence=0.95
    )
    assert [pair.low, pair.high] == pytest.approx(list(2 * fit.conf_int().loc["b:d"]))


def test_replicated_cells_agree_with_the_saturated_model_of_statsmodels() -> None:
    design = grid(3, seeds=3)
    means = np.random.default_rng(4).normal(0.6, 0.02, 24)
    coded = design.levels.astype(int) * 2 - 1
    fit = smf.ols("y ~ a * b * c", coded.assign(y=means)).fit()
    found = design.estimate(design.main_weights("b", "1"), means, confidence=0.9)
    assert found.df == fit.df_resid == 16
    assert [found.low, found.high] == pytest.approx(list(2 * fit.conf_int(0.1).loc["b"]))
    assert "within cells" in found.method


def test_residuals_are_what_the_cells_or_the_model_leave() -> None:
    """By the projection matrix, which is not made: designs may have hundreds of runs."""
    values = np.random.default_rng(5).normal(size=(24, 7))
    design = grid(3, seeds=3)
    same = design.cell[:, None] == design.cell[None, :]
    assert design.residuals(values) == pytest.approx(values - same / 3 @ values)
    assert design.residuals(values[:, 0]) == pytest.approx(design.residuals(values)[:, 0])
    single = grid(4)
    hat = single.matrix @ np.linalg.pinv(single.matrix)
    assert single.df == 5
    assert single.residuals(values[:16]) == pytest.approx(values[:16] - hat @ values[:16])
    assert not grid(2).residuals(values[:4]).any() and grid(2).df == 0


def test_a_few_replicates_are_pooled_with_the_high_order_interactions() -> None:
    """One cell run twice has 1 degree of freedom of its own: with the 5 others they are 6."""
    once = grid(4)
    levels = pd.concat([once.levels, once.levels.tail(1)], ignore_index=True)
    arms = [*once.arms, once.arms[-1]]
    design = Design(levels=levels, arms=arms, controls=once.controls, order=once.order)
    means = np.random.default_rng(5).normal(0.6, 0.02, 17)
    fit = smf.ols("y ~ (a + b + c + d)**2", (levels.astype(int) * 2 - 1).assign(y=means)).fit()
    found = design.estimate(design.main_weights("a", "1"), means, confidence=0.95)
    assert found.df == fit.df_resid == 6
    assert [found.low, found.high] == pytest.approx(list(2 * fit.conf_int().loc["a"]))


def test_every_level_of_a_factor_is_compared_with_its_control() -> None:
    design = grid(2, seeds=2, levels=3)
    means = np.random.default_rng(6).normal(0.6, 0.02, 18)
    marginal = pd.Series(means).groupby(design.levels["a"]).mean()
    for level in ("1", "2"):
        found = design.estimate(design.main_weights("a", level), means, confidence=0.95)
        assert found.estimate == pytest.approx(marginal[level] - marginal["0"])
        assert found.df == 9


def test_a_missing_cell_leaves_the_effects_estimable() -> None:
    whole = grid(4)
    truth = whole.levels.astype(float) @ np.array([0.02, 0.04, 0.0, -0.03])
    means = truth.to_numpy() + 0.6
    part = Design(
        levels=whole.levels.iloc[1:],
        arms=list(whole.arms)[1:],
        controls=whole.controls,
        order=whole.order,
    )
    noise = np.random.default_rng(7).normal(0, 1e-4, 15)
    found = part.estimate(part.main_weights("b", "1"), means[1:] + noise, confidence=0.95)
    assert found.df == 4
    assert found.estimate == pytest.approx(0.04, abs=1e-3)


def test_what_the_design_cannot_tell_is_not_estimable() -> None:
    """Never an interval of width 0, and never a p-value."""
    two = grid(2)
    found = two.estimate(
        two.main_weights("a", "1"), np.array([0.5, 0.6, 0.5, 0.7]), confidence=0.95
    )
    assert not found.estimable
    assert found.low is None and found.p is None
    assert found.why is not None and "add seeds" in found.why

    constant = grid(4)
    found = constant.estimate(constant.main_weights("a", "1"), np.full(16, 0.5), confidence=0.95)
    assert not found.estimable
    assert found.why is not None and "no variation" in found.why

    zipped = Design(
        levels=pd.DataFrame({"a": ["0", "1"] * 3, "b": ["0", "1"] * 3}),
        arms=["00", "11"] * 3,
        controls={"a": "0", "b": "0"},
        order={"a": ("0", "1"), "b": ("0", "1")},
    )
    assert zipped.main_weights("a", "1") is None
    found = zipped.estimate(None, np.arange(6.0), confidence=0.95)
    assert found.estimate is None and found.why is not None and "confound" in found.why


def test_leave_one_out_with_seeds_estimates_main_effects_and_no_interaction() -> None:
    rows = [("1", "1", "1"), ("0", "1", "1"), ("1", "0", "1"), ("1", "1", "0")]
    design = Design(
        levels=pd.DataFrame([row for row in rows for _ in range(2)], columns=list("abc")),
        arms=[str(row) for row in rows for _ in range(2)],
        controls=dict.fromkeys("abc", "0"),
        order=dict.fromkeys("abc", ("0", "1")),
    )
    means = np.array([0.70, 0.71, 0.60, 0.62, 0.68, 0.69, 0.70, 0.73])
    found = design.estimate(design.main_weights("a", "1"), means, confidence=0.95)
    assert found.estimate == pytest.approx(0.705 - 0.61)
    assert found.df == 4
    assert design.interaction_weights(("a", "1"), ("b", "1")) is None


def test_the_grid_of_contrasts_holds_every_effect_once() -> None:
    design = grid(3)
    means = np.random.default_rng(8).normal(size=8)
    found = two_level_contrasts(design, means)
    assert found is not None and len(found) == 7
    weights = [design.main_weights(name, "1") for name in "abc"]
    assert found[:3] == pytest.approx([w @ means for w in weights if w is not None])
    assert two_level_contrasts(grid(2, seeds=2), np.zeros(8)) is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=16, max_size=16),
    st.floats(-1, 1),
    st.floats(0.1, 3),
)
def test_effects_follow_shift_and_scale(values: list[float], shift: float, scale: float) -> None:
    design, means = grid(4), np.array(values)
    weights = design.main_weights("c", "1")
    assert weights is not None
    assert weights.sum() == pytest.approx(0, abs=1e-12)
    assert weights @ (scale * means + shift) == pytest.approx(scale * (weights @ means), abs=1e-9)


@pytest.mark.parametrize(("factors", "seeds"), [(4, 1), (3, 2)])
def test_intervals_cover_the_truth_as_often_as_they_say(factors: int, seeds: int) -> None:
    design = grid(factors, seeds)
    weights = design.main_weights("a", "1")
    generator = np.random.default_rng(9)
    hits = 0
    for _ in range(400):
        means = 0.6 + generator.normal(0, 0.02, len(design.levels))
        found = design.estimate(weights, means, confidence=0.9)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.85 < hits / 400 < 0.95


def test_hardly_a_degree_of_freedom_gives_no_interval() -> None:
    found = t_interval(0.1, 0.01, 0.0002, confidence=0.95, method="t", shared=0.05)
    assert (found.estimate, found.low, found.p) == (0.1, None, None)
    assert found.method == "not estimable" and "degree of freedom" in (found.why or "")
