"""Leave-one-out, add-one-in, Shapley shares, slices, and what would resolve an effect."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.analysis import Analysis, Settings
from reports.example import Made, write_example
from reports.measures import Measures
from reports.numbers import analyse
from reports.tables import Tables, read_tables

Write = Callable[[Made], Tables]
THREE = {"curriculum": 0.02, "format": 0.06, "bonus": -0.03}
EXACT = Made(effects=THREE, exact=True, run_sd=1e-4, seeds=(0, 1), clusters=5, optional=False)


def find(rows: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in keys.items())]


def with_synergy(directory: Path, first: str, second: str, size: float) -> Tables:
    """The exact example, plus `size` wherever both parts are on."""
    write_example(directory, EXACT)
    runs = pd.read_parquet(directory / "results" / "runs.parquet").set_index("run")
    file = directory / "results" / "items.parquet"
    items = pd.read_parquet(file)
    both = (runs[first] == "on") & (runs[second] == "on")
    gain = size * (items["run"].map(both) & (items["suite"] == "reasoning"))
    items.assign(score=items["score"] + gain).to_parquet(file)
    return read_tables(directory)


def test_a_part_left_out_and_put_in_shows_what_it_adds_there(tmp_path: Path) -> None:
    """With a synergy of 4 points, the part adds 4 more at the end than by itself."""
    results = analyse(with_synergy(tmp_path, "curriculum", "bonus", 0.04), Settings())
    for name, alone in THREE.items():
        synergy = 0.04 if name in ("curriculum", "bonus") else 0.0
        (out,) = find(results["leave_one_out"], factor=name, suite="reasoning")
        (put,) = find(results["add_one_in"], factor=name, suite="reasoning")
        assert out["delta"] == pytest.approx(alone + synergy, abs=1e-3)
        assert put["delta"] == pytest.approx(alone, abs=1e-3)
        assert out["arm"] == results["reference_arm"] and put["against"] == "control"
        assert out["low"] < out["delta"] < out["high"]
        assert out["p"] <= out["p_adjusted"]


def test_shapley_shares_split_a_synergy_evenly_and_sum_to_the_gain(tmp_path: Path) -> None:
    results = analyse(with_synergy(tmp_path, "curriculum", "bonus", 0.04), Settings())
    shares = {row["factor"]: row for row in find(results["shapley"], suite="reasoning")}
    assert shares["curriculum"]["estimate"] == pytest.approx(0.02 + 0.02, abs=1e-3)
    assert shares["bonus"]["estimate"] == pytest.approx(-0.03 + 0.02, abs=1e-3)
    assert shares["format"]["estimate"] == pytest.approx(0.06, abs=1e-3)
    (whole,) = find(results["contrasts"], family="planned", against="control", suite="reasoning")
    total = sum(row["estimate"] for row in shares.values())
    assert total == pytest.approx(whole["delta"], abs=1e-12)
    assert all(row["low"] < row["estimate"] < row["high"] for row in shares.values())


def test_a_grid_with_a_hole_has_no_shapley_shares(tmp_path: Path) -> None:
    write_example(tmp_path, EXACT)
    for name in ("runs", "items"):
        file = tmp_path / "results" / f"{name}.parquet"
        table = pd.read_parquet(file)
        table[~table["run"].str.match(r"curriculum\+bonus-")].to_parquet(file)
    results = analyse(read_tables(tmp_path), Settings())
    assert results["shapley"] == []
    left = {row["factor"] for row in results["leave_one_out"]}
    assert left == {"curriculum", "bonus"}, "the arm without format is missing"


def test_a_leave_one_out_sweep_has_its_deltas_and_nothing_put_in(made: Write) -> None:
    tables = made(Made(design="leave_one_out", seeds=(0, 1, 2), clusters=10, optional=False))
    results = analyse(tables, Settings())
    assert len(find(results["leave_one_out"], suite="reasoning")) == 4
    assert results["add_one_in"] == [] and results["shapley"] == []


def test_slices_answer_the_question_for_parts_of_the_items(made: Write) -> None:
    results = analyse(made(Made(clusters=30, optional=False)), Settings())
    by = {(row["by"], row["value"]) for row in results["slices"]}
    assert ("type", "how many") in by and ("type", "which") in by
    assert sum(column == "difficulty" for column, _ in by) == 4
    halves = find(results["slices"], by="type", of="effect", factor="format", suite="reasoning")
    (whole,) = find(results["effects"], factor="format", suite="reasoning")
    assert np.mean([row["estimate"] for row in halves]) == pytest.approx(whole["estimate"])
    assert {row["items"] for row in halves} == {120}
    (gain, _) = find(results["slices"], by="type", of="reference", suite="reasoning")
    assert gain["against"] == "base/observe"
    for row in results["slices"]:
        assert row["p"] is None or row["p_adjusted"] >= row["p"] - 1e-12


def test_a_cluster_in_which_a_part_does_harm_stands_out(tmp_path: Path) -> None:
    """The effect in it is that of its items alone, and every cluster looked at is corrected for."""
    write_example(tmp_path, replace(EXACT, clusters=20, run_sd=0.01))
    file = tmp_path / "results" / "items.parquet"
    items = pd.read_parquet(file)
    runs = pd.read_parquet(tmp_path / "results" / "runs.parquet").set_index("run")
    there = (items["benchmark"] == "count") & (items["cluster"] == "scene-007")
    harm = 0.3 * (there & items["run"].map(runs["format"] == "on"))
    noise = np.random.default_rng(0).normal(0, 0.01, len(items))
    items.assign(score=items["score"] - harm + noise).to_parquet(file)
    tables = read_tables(tmp_path)
    rows = find(analyse(tables, Settings())["slices"], by="cluster", suite="reasoning")
    assert len({row["value"] for row in rows}) == 12 and {row["among"] for row in rows} == {40}
    first = rows[0]["value"]
    assert first == "count/scene-007", "two benchmarks have a cluster of this name"
    (row,) = find(rows, value=first, factor="format")
    assert row["items"] == 4 and row["estimate"] == pytest.approx(0.06 - 0.3, abs=0.02)
    assert row["p_adjusted"] < 1e-6 and row["p"] * 120 >= row["p_adjusted"] > row["p"]
    score = Measures(tables=tables, settings=Settings()).of("score")
    assert score is not None
    mask = items[(items["run"] == items["run"].iloc[0]) & there]["item"]
    part = score.outcome.part(
        {("reasoning", "count"): score.outcome.scores["reasoning", "count"].columns.isin(mask)}
    )
    assert part is not None
    inside, key = Analysis(tables, part, Settings()), ("reasoning", None)
    alone = inside.combination(inside.main_weights("format", "on", key), key)
    assert [row["low"], row["high"]] == pytest.approx([alone.low, alone.high])


def test_small_clusters_are_no_slices(tmp_path: Path) -> None:
    write_example(tmp_path, replace(EXACT, run_sd=0.01))
    file = tmp_path / "results" / "items.parquet"
    items = pd.read_parquet(file)
    items.assign(cluster=items["item"]).to_parquet(file)
    found = analyse(read_tables(tmp_path), Settings())["slices"]
    assert {row["by"] for row in found} == {"type", "difficulty"}


def test_what_is_not_recorded_has_no_slices(tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=5, optional=False))
    file = tmp_path / "results" / "items.parquet"
    pd.read_parquet(file).drop(columns=["type", "difficulty"]).to_parquet(file)
    found = analyse(read_tables(tmp_path), Settings())["slices"]
    assert {row["by"] for row in found} <= {"cluster"}


def test_an_open_effect_says_what_would_resolve_it(made: Write) -> None:
    effects = {"a": 0.06, "b": 0.02, "c": 0.0, "d": 0.0}
    results = analyse(made(Made(effects=effects, run_sd=0.004, optional=False)), Settings())
    for row in find(results["effects"], suite="reasoning"):
        resolved = row["p_adjusted"] <= 0.05
        assert resolved == (row["factor"] == "a")
        if resolved:
            assert row["seeds_to_resolve"] is None and row["items_to_resolve"] is None
        else:
            assert row["seeds_to_resolve"] is None or row["seeds_to_resolve"] > 1
    (sure,) = find(results["mde"], suite="reasoning")
    assert 0 < sure["value"] < sure["corrected"]
    assert sure["run_sd_low"] < sure["run_sd"] < sure["run_sd_high"]


def test_the_variance_splits_into_seed_items_and_residual(made: Write) -> None:
    """Of the generating model, on two benchmarks of 240 items in 60 clusters."""
    tables = made(Made(run_sd=0.03, seeds=(0, 1, 2), optional=False))
    (row,) = find(analyse(tables, Settings())["variance"], suite="reasoning")
    assert row["seed"] == pytest.approx(0.03, rel=0.35)
    assert row["residual"] == pytest.approx(np.sqrt(0.22 * 0.6 / 480), rel=0.25)
    assert row["items"] == pytest.approx(np.sqrt(0.22 * 0.4 / 480 + 0.08**2 / 120), rel=0.4)


def test_intervals_for_other_items_are_never_narrower(made: Write) -> None:
    results = analyse(made(Made(clusters=15, optional=False)), Settings())
    for row in results["effects"] + results["interactions"]:
        assert row["other_items_low"] <= row["low"] and row["high"] <= row["other_items_high"]


def test_the_mixed_logit_agrees_in_direction_with_the_run_level_model(made: Write) -> None:
    results = analyse(made(Made(clusters=30, optional=False)), Settings())
    (check,) = find(results["logit"], factor="format", suite="reasoning")
    assert check["why"] is None and check["low"] < check["log_odds"] < check["high"]
    assert check["log_odds"] > 0
    single = analyse(made(Made(design="leave_one_out", clusters=5, optional=False)), Settings())
    assert all(row["log_odds"] is None and row["why"] for row in single["logit"])


def _all_equal(items: pd.DataFrame) -> pd.DataFrame:
    return items.assign(score=0.5)


def _mostly_unscored(items: pd.DataFrame) -> pd.DataFrame:
    return items.assign(score=items["score"].where(np.arange(len(items)) % 7 == 0))


def _one_run_unscored(items: pd.DataFrame) -> pd.DataFrame:
    first = items["run"] == "format-0"
    return items.assign(score=items["score"].mask(first))


def _one_item(items: pd.DataFrame) -> pd.DataFrame:
    return items[items["item"].str.endswith("-0000")]


def _one_cluster(items: pd.DataFrame) -> pd.DataFrame:
    return items.assign(cluster="only")


def _only_the_reference(items: pd.DataFrame) -> pd.DataFrame:
    return items[items["run"] == "format+bonus-0"]


@pytest.mark.parametrize(
    "change",
    [_all_equal, _mostly_unscored, _one_run_unscored, _one_item, _one_cluster, _only_the_reference],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_odd_tables_give_reasons_and_no_false_p_values(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], seeds: tuple[int, ...]
) -> None:
    small = Made(effects={"format": 0.05, "bonus": 0.0}, seeds=seeds, clusters=6, optional=False)
    write_example(tmp_path, small)
    file = tmp_path / "results" / "items.parquet"
    change(pd.read_parquet(file)).to_parquet(file)
    results = analyse(read_tables(tmp_path), Settings())
    for name in ("effects", "interactions", "contrasts", "leave_one_out", "shapley", "slices"):
        for row in results[name]:
            assert row["estimable"] == (row["low"] is not None)
            assert row["why"] if not row["estimable"] else row["p"] > 0
            if change is _all_equal:
                assert row["p"] is None and row["p_adjusted"] is None
