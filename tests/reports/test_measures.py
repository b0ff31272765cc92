"""Clarity, controls, scorer audit and cost: what they say of tables whose truth is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.analysis import Settings
from reports.build import results_of
from reports.clarity import clarity, pareto
from reports.example import Made, write_example
from reports.measures import Measures
from reports.tables import Factor, Tables, read_tables

TWO = {"format": 0.06, "bonus": 0.0}
SEEDS = Made(clusters=10, effects=TWO, seeds=(0, 1, 2))


def find(rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    found = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    assert len(found) == 1
    return found[0]


def results(directory: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> dict[str, Any]:
    file = directory / "results" / "items.parquet"
    change(pd.read_parquet(file)).to_parquet(file)
    return results_of(read_tables(directory), Settings())


def test_a_right_answer_costs_length_over_accuracy(tmp_path: Path) -> None:
    tables = read_tables(write_example(tmp_path, SEEDS))
    found = results_of(tables, Settings())
    for row in found["clarity"]:
        if row["suite"] != "reasoning":
            continue
        arm = tables.items[tables.items["run"].isin(tables.runs_of(row["arm"]))]
        arm = arm[arm["suite"] == "reasoning"]
        price = arm["response_tokens"].mean() / arm["score"].mean()
        assert row["tokens_per_correct"] == pytest.approx(price)
        assert row["tokens_per_correct_low"] < price < row["tokens_per_correct_high"]
        quantiles = np.quantile(arm.groupby(["run", "item"])["response_tokens"].mean(), [0.1, 0.9])
        assert row["tokens_quantiles"][0] == pytest.approx(quantiles[0])
        assert row["format_ok_low"] < row["format_ok"] < row["format_ok_high"]


def test_the_price_of_a_right_answer_covers_the_truth() -> None:
    """The delta method's interval, on many sweeps of runs whose true price is known."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        tables = _simulated(rng)
        measures = Measures(tables=tables, settings=Settings())
        row = find(clarity(measures), arm="on", suite="s")
        covered.append(row["tokens_per_correct_low"] < 80.0 < row["tokens_per_correct_high"])
    assert 0.85 <= np.mean(covered) <= 1.0


def _simulated(rng: np.random.Generator) -> Tables:
    """Two arms of four seeds, 200 items; "on" is right in half of them, with 40 tokens each."""
    runs, items = [], []
    hard = rng.normal(0, 0.1, 200)
    for arm in ("off", "on"):
        for seed in range(4):
            run = f"{arm}-{seed}"
            runs.append({"run": run, "arm": arm, "kind": "cell", "prompt": "p", "factor": arm})
            chance = np.clip(0.5 + hard + rng.normal(0, 0.02), 0, 1)
            table = {"run": run, "suite": "s", "benchmark": "b", "attempt": 0}
            table |= {"item": [str(i) for i in range(200)], "cluster": [str(i) for i in range(200)]}
            table |= {"score": (rng.random(200) < chance).astype(float)}
            length = 40 + rng.normal(0, 1) + rng.normal(0, 8, 200)
            items.append(pd.DataFrame({**table, "response_tokens": length}))
    return Tables(
        folder=Path("none"),
        sweep={"name": "simulated", "reference_arm": "on", "suites": {"s": ["b"]}, "factors": {}},
        factors=(Factor(name="factor", levels=("off", "on"), control="off"),),
        suites={"s": ["b"]},
        runs=pd.DataFrame(runs).assign(seed=0, code="c").set_index("run"),
        items=pd.concat(items, ignore_index=True),
    )


def test_no_arm_on_the_front_is_beaten_in_both() -> None:
    rows = [
        {"score": 0.5, "tokens": 10.0},
        {"score": 0.6, "tokens": 20.0},
        {"score": 0.55, "tokens": 30.0},
        {"score": 0.6, "tokens": 20.0},
        {"score": 0.5, "tokens": 11.0},
    ]
    assert pareto(rows) == [True, True, False, True, False]
    assert pareto([]) == []


def test_what_is_lost_without_the_image_is_found(tmp_path: Path) -> None:
    write_example(tmp_path, SEEDS)
    found = results(tmp_path, lambda items: items)
    tables = read_tables(tmp_path)
    assert tables.conditions is not None
    assert set(tables.items["condition"]) == {"normal"}
    row = find(found["controls"], condition="no_image", of="arm", arm="control", suite="reasoning")
    key = ["run", "benchmark", "item"]
    blind = tables.conditions[tables.conditions["condition"] == "no_image"].set_index(key)["score"]
    normal = tables.items.set_index(key)["score"].reindex(blind.index)
    lost = (normal - blind).to_frame("lost").reset_index()
    lost = lost[lost["run"].isin(tables.runs_of("control"))]
    lost = lost[lost["benchmark"].isin(tables.suites["reasoning"])]
    assert row["delta"] == pytest.approx(lost["lost"].mean())
    assert row["low"] < row["delta"] < row["high"] and row["p_adjusted"] < 0.01
    training = [row for row in found["controls"] if row["of"] == "training"]
    assert {row["against"] for row in training} == {"base/observe", "base/think"}


def test_conditions_change_no_other_number(tmp_path: Path) -> None:
    write_example(tmp_path, SEEDS)
    with_them = results(tmp_path, lambda items: items)
    without = results(tmp_path, lambda items: items[items["condition"] == "normal"])
    assert without["controls"] == []
    same = {**with_them, "controls": [], "cost": without["cost"]}
    assert json.dumps(same) == json.dumps(without)


def test_a_scorer_that_needs_tags_is_found(tmp_path: Path) -> None:
    write_example(tmp_path, SEEDS)

    def spoil(items: pd.DataFrame) -> pd.DataFrame:
        mine = items["run"] == "control-0"
        unseen = mine & (items["item"].str.endswith("3")) & (items["score"] > 0.5)
        return items.assign(score=items["score"].mask(unseen, 0.0))

    found = results(tmp_path, spoil)
    row = find(found["agreement"], arm="control")
    assert row["only_untagged"] > 0 and row["only_tagged"] == 0 and row["agree"] < 1
    assert row["kappa"] < 1
    other = find(found["agreement"], arm="bonus")
    assert other["agree"] == 1 and other["kappa"] == 1
    paths = {row["path"]: row for row in found["paths"]}
    assert set(paths) == {"equal", "different"}
    assert paths["different"]["trained_right"] == 0


def test_cost_sums_over_the_runs_of_an_arm(tmp_path: Path) -> None:
    found = results(write_example(tmp_path, SEEDS), lambda items: items)
    row = find(found["cost"], arm="control")
    assert row["runs"] == 3 and row["train_seconds"] == pytest.approx(165.0)
    assert row["train_samples"] == 3 * 60 * 192 and row["answer_tokens"] > 0
    assert find(found["cost"], arm="base/think")["train_seconds"] is None
