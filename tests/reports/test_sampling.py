"""Items, clusters, contrasts, corrections and power."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from reports.stats.bootstrap import effect_draws, mcnemar_exact, resample_clusters
from reports.stats.contrasts import (
    Share,
    between_runs,
    between_runs_and_items,
    satterthwaite,
)
from reports.stats.effects import RunVariance
from reports.stats.multiplicity import adjust, benjamini_hochberg, holm
from reports.stats.outcomes import Combined, Outcome, cluster_variance, outcome, paired
from reports.stats.power import detectable, fewest, minimum_detectable_effect, power_of

SUITES = {"hard": ["x", "y"], "easy": ["z"]}


def made_outcome(missing: bool = False) -> Outcome:
    generator = np.random.default_rng(1)
    rows = [
        {"run": run, "suite": suite, "benchmark": name, "item": f"{name}{i}", "cluster": i // 3}
        | {"attempt": 0, "score": float(generator.random() < 0.6)}
        for run in ("r0", "r1", "r2")
        for suite, names in SUITES.items()
        for name in names
        for i in range(60 if name == "x" else 30)
        if not (missing and run == "r2" and name == "y")
    ]
    found = outcome(pd.DataFrame(rows), "score", SUITES)
    assert found is not None
    return found


def test_a_suite_is_the_mean_of_its_benchmarks_and_all_of_the_suites() -> None:
    found = made_outcome()
    x, y, z = (found.means["hard", "x"], found.means["hard", "y"], found.means["easy", "z"])
    assert found.means["hard", None].tolist() == pytest.approx(((x + y) / 2).tolist())
    assert found.means["all", None].tolist() == pytest.approx((((x + y) / 2 + z) / 2).tolist())
    assert found.items(("hard", None), ["r0"]) == 90


def test_a_run_without_a_benchmark_has_no_suite_mean() -> None:
    found = made_outcome(missing=True)
    assert np.isnan(found.means["hard", None]["r2"])
    assert np.isnan(found.means["all", None]["r2"])
    assert not np.isnan(found.means["easy", None]["r2"])


def test_unscored_items_are_left_out_and_attempts_are_averaged() -> None:
    rows = [
        ("r", 0, 0, 1.0),
        ("r", 0, 1, 0.0),
        ("r", 1, 0, None),
        ("r", 2, 0, 1.0),
    ]
    items = pd.DataFrame(rows, columns=["run", "item", "attempt", "score"])
    items = items.assign(
        suite="s", benchmark="b", cluster=items["item"], item=items["item"].map(str)
    )
    items["score"] = items["score"].astype(float)
    found = outcome(items, "score", {"s": ["b"]})
    assert found is not None
    assert found.means["s", None]["r"] == pytest.approx((0.5 + 1.0) / 2)
    assert found.items(("s", None), ["r"]) == 2
    assert outcome(items, "faithful", {"s": ["b"]}) is None


def test_clusters_of_one_item_give_the_plain_standard_error() -> None:
    value = np.random.default_rng(2).random(50)
    variance, count = cluster_variance(value, np.arange(50))
    assert count == 50
    assert variance == pytest.approx(value.var(ddof=1) / 50)


def test_items_of_a_cluster_that_agree_count_as_one() -> None:
    value = np.random.default_rng(3).random(20)
    repeated, _ = cluster_variance(np.repeat(value, 4), np.repeat(np.arange(20), 4))
    single, _ = cluster_variance(value, np.arange(20))
    assert repeated == pytest.approx(single)
    assert np.isnan(cluster_variance(value, np.zeros(20))[0])


def test_the_bootstrap_agrees_with_the_cluster_robust_variance() -> None:
    found = made_outcome()
    bootstrap = resample_clusters(found, draws=4000)
    key = ("hard", None)
    variance, _ = found.item_variance(key, ["r0"], ["r1"])
    drawn = bootstrap.means(key, ["r0"]) - bootstrap.means(key, ["r1"])
    assert drawn.std() == pytest.approx(np.sqrt(variance), rel=0.1)
    low, high = bootstrap.interval(key, ["r0"], ["r1"], confidence=0.95)
    delta = found.means[key]["r0"] - found.means[key]["r1"]
    assert low is not None and high is not None and low < delta < high


def test_resampled_seeds_widen_an_effect_and_single_runs_do_not() -> None:
    weights = np.array([0.5, 0.5, -0.5, -0.5])
    draws = np.tile([0.7, 0.6, 0.5, 0.4], (500, 1))
    replicated = effect_draws(draws, weights, np.array([0, 0, 1, 1]))
    assert replicated.mean() == pytest.approx(0.2, abs=0.02)
    assert replicated.std() > 0.03
    assert effect_draws(draws, weights, np.arange(4)).std() == pytest.approx(0)


def test_two_trained_arms_differ_by_pooled_run_variance() -> None:
    run = RunVariance(value=0.02**2, df=5, source="pooled")
    found = between_runs(0.05, Share(size=1 / 1 + 1 / 2), run, confidence=0.95)
    assert found.se == pytest.approx(0.02 * np.sqrt(1.5))
    assert found.df == 5
    none = RunVariance(value=None, df=0, source="one run per cell")
    assert not between_runs(0.05, Share(size=2.0), none, confidence=0.95).estimable


def test_what_runs_and_items_make_together_is_counted_once() -> None:
    run = RunVariance(value=0.02**2, df=5, source="pooled")
    one = Share(size=1.0)
    found = between_runs_and_items(0.05, one, run, (2e-4, 60), (1e-4, 300), confidence=0.95)
    assert found.se == pytest.approx(np.sqrt(0.02**2 + 2e-4 - 1e-4))
    squares = (4e-4) ** 2 / 5 + (2e-4) ** 2 / 60 + (1e-4) ** 2 / 300
    assert found.df == pytest.approx((5e-4) ** 2 / squares)
    less = between_runs_and_items(0.05, one, run, (5e-5, 60), (1e-4, 300), confidence=0.95)
    assert less.se == pytest.approx(0.02), "items never make an interval narrower"
    none = RunVariance(value=None, df=0, source="one run per cell")
    assert not between_runs_and_items(
        0.05, one, none, (1e-4, 60), (0.0, 300), confidence=0.95
    ).estimable


def test_the_crossed_variances_are_those_of_the_generating_model() -> None:
    """Runs, items in clusters and their residual, each with a variance that is known."""
    generator = np.random.default_rng(5)
    runs, clusters, each = 40, 400, 3
    items = clusters * each
    cluster = np.repeat(np.arange(clusters), each)
    levels = generator.normal(0, 0.05, runs)[:, None]
    hard = generator.normal(0, 0.2, clusters)[cluster] + generator.normal(0, 0.1, items)
    table = levels + hard + generator.normal(0, 0.3, (runs, items))
    names = [f"r{index}" for index in range(runs)]
    found = Outcome(
        scores={("s", "b"): pd.DataFrame(table, index=names)},
        clusters={("s", "b"): cluster},
        weights={("s", None): {("s", "b"): 1.0}},
    )

    def around_the_mean(values: np.ndarray) -> np.ndarray:
        return values - values.mean(axis=0)

    both, _ = found.run_by_item_variance(("s", None), names, around_the_mean, runs - 1)
    assert both == pytest.approx(0.3**2 / items, rel=0.1)
    over_items, _ = found.item_variance(("s", None), names)
    assert over_items == pytest.approx(0.2**2 / clusters + 0.1**2 / items + both / runs, rel=0.2)


@pytest.mark.parametrize("unscored", [0.0, 0.1])
def test_a_combination_of_outcomes_is_that_of_its_differences(unscored: float) -> None:
    """Items in clusters that are not in order, some answers unscored in one of the two."""
    generator = np.random.default_rng(8)
    names, cluster = [f"r{index}" for index in range(6)], generator.integers(9, size=40)

    def made() -> Outcome:
        table = generator.normal(size=(6, 40))
        table[generator.random(table.shape) < unscored] = np.nan
        return Outcome(
            scores={("s", "b"): pd.DataFrame(table, index=names)},
            clusters={("s", "b"): pd.factorize(cluster)[0]},
            weights={("s", None): {("s", "b"): 1.0}},
        )

    first, second = paired(made(), made())
    assert first.scores["s", "b"].isna().equals(second.scores["s", "b"].isna())
    parts = {"clusters": first.clusters, "weights": first.weights}
    difference = first.scores["s", "b"] - 0.7 * second.scores["s", "b"]
    plain = Outcome(scores={("s", "b"): difference}, **parts)
    found = Combined(scores=first.scores, **parts, first=first, second=second, ratio=0.7)
    key = ("s", None)
    assert found.means[key].tolist() == pytest.approx(plain.means[key].tolist())
    assert found.item_variance(key, names[:2]) == pytest.approx(plain.item_variance(key, names[:2]))

    def around_the_mean(values: np.ndarray) -> np.ndarray:
        return values - values.mean(axis=0)

    both = [one.run_by_item_variance(key, names, around_the_mean, 5) for one in (found, plain)]
    assert both[0] == pytest.approx(both[1])


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1), st.floats(1, 50), st.floats(1e-6, 1), st.floats(1, 50))
def test_satterthwaite_lies_between_the_smaller_and_the_sum(
    v: float, df_v: float, w: float, df_w: float
) -> None:
    total, df = satterthwaite([(v, df_v), (w, df_w)])
    assert total == pytest.approx(v + w)
    assert min(df_v, df_w) * (1 - 1e-9) <= df <= (df_v + df_w) * (1 + 1e-9)


def test_mcnemar_counts_discordant_pairs_only() -> None:
    first = np.array([1, 1, 1, 1, 1, 0, 1, 0, np.nan])
    second = np.array([0, 0, 0, 0, 0, 1, 1, 0, 1.0])
    assert mcnemar_exact(first, second) == pytest.approx(2 * 7 / 64)
    assert mcnemar_exact(first[4:6], second[4:6]) == 1.0
    assert mcnemar_exact(first, first) is None
    assert mcnemar_exact(first, np.where(second == 1, 0.5, second)) is None, "means of attempts"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_agrees_with_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_what_is_not_estimable_is_no_member_of_its_family() -> None:
    assert adjust([0.01, None, 0.04], "holm") == pytest.approx([0.02, None, 0.04])
    assert adjust([0.01, None], "none") == [0.01, None]
    with pytest.raises(ValueError, match="expected holm"):
        adjust([0.01], "tukey")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_agrees_with_statsmodels(p: list[float]) -> None:
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_the_detectable_effect_has_the_power_it_claims() -> None:
    found = 0.01 * detectable(5, 0.05, 0.8)
    assert power_of(found, 0.01, 5, 0.05) == pytest.approx(0.8, abs=1e-6)
    one_sample = TTestPower().solve_power(nobs=6, alpha=0.05, power=0.8)
    assert found / 0.01 == pytest.approx(one_sample * np.sqrt(6), rel=1e-4)
    assert detectable(np.inf, 0.05, 0.8) == pytest.approx(2.8016, abs=1e-3)


def test_the_effect_that_sweeps_state_on_average_is_the_one_they_would_find() -> None:
    estimates = np.sqrt(np.random.default_rng(6).chisquare(5, 20_000) / 5)
    stated = minimum_detectable_effect(1.0, 5) * estimates.mean()
    assert power_of(stated, 1.0, 5, 0.05) == pytest.approx(0.8, abs=0.01)
    assert minimum_detectable_effect(1.0, np.inf) == detectable(np.inf, 0.05, 0.8)


def test_the_fewest_seeds_that_resolve_an_effect() -> None:
    def two_cells(seeds: int) -> tuple[float, float]:
        return np.sqrt(2 / seeds), 2 * seeds - 2

    seeds = fewest(two_cells, 1.0, 0.05, 0.8)
    assert seeds == 17, "the textbook number for two groups one standard deviation apart"
    assert fewest(two_cells, 0.01, 0.05, 0.8) is None
    assert fewest(two_cells, 0.0, 0.05, 0.8) is None
