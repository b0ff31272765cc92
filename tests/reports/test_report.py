"""From tables on disk to the report on disk."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from reports.analysis import Settings
from reports.build import build_report, main, results_of
from reports.configs import variant_role
from reports.example import Made, write_example
from reports.example import main as make_example
from reports.labels import holds
from reports.measures import Measures
from reports.render import BAR, glance
from reports.samples import samples, segments
from reports.stats.contrasts import OWN_RUNS_METHOD
from reports.stats.effects import Interval
from reports.tables import TableError, Tables, read_tables
from reports.validity import missing_runs, points, validity
from reports.verdict import verdict

Write = Callable[[Made], Tables]
FOUR = {"curriculum": 0.02, "format": 0.06, "bonus": -0.03, "dynamic_weights": 0.0}
SMALL = Made(clusters=10, optional=False)
TWO = {"format": 0.06, "bonus": 0.0}


def find(rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    found = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    assert len(found) == 1
    return found[0]


def edit(directory: Path, name: str, change: Callable[[Any], Any]) -> None:
    file = directory / "results" / name
    if name.endswith(".json"):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        change(pd.read_parquet(file)).to_parquet(file)


def test_planted_effects_come_back(made: Write) -> None:
    """Scores are the planted probabilities, so only the runs' own noise is left."""
    tables = made(Made(effects=FOUR, exact=True, run_sd=0.001, clusters=3, optional=False))
    results = results_of(tables, Settings())
    for factor, size in FOUR.items():
        row = find(results["effects"], factor=factor, suite="reasoning")
        assert row["estimate"] == pytest.approx(size, abs=0.003)
        assert row["low"] <= row["estimate"] <= row["high"]
        assert row["df"] == 5
        assert (row["p_adjusted"] < 0.05) == (size != 0)
    gain = find(results["contrasts"], arm="format", against="base/observe", suite="reasoning")
    assert gain["delta"] == pytest.approx(0.65 - 0.55 + (0.06 - 0.02 + 0.03) / 2, abs=0.005)
    assert find(results["mde"], suite="reasoning")["value"] < 0.005


def test_all_is_half_reasoning_and_half_general(made: Write) -> None:
    results = results_of(made(SMALL), Settings())
    parts = [
        find(results["effects"], factor="format", suite=suite)["estimate"]
        for suite in ("reasoning", "general", "all")
    ]
    assert parts[2] == pytest.approx((parts[0] + parts[1]) / 2)


def test_variants_and_base_never_touch_the_effects(tmp_path: Path) -> None:
    tables = read_tables(write_example(tmp_path, SMALL))
    with_variants = results_of(tables, Settings())

    def worst(items: pd.DataFrame) -> pd.DataFrame:
        outside = items["run"].str.contains("placebo|second_seed|base")
        return items.assign(score=items["score"].where(~outside, 0.0))

    edit(tmp_path, "items.parquet", worst)
    changed = results_of(read_tables(tmp_path), Settings())
    assert changed["effects"] == with_variants["effects"]
    assert changed["interactions"] == with_variants["interactions"]
    assert changed["mde"] == with_variants["mde"]


def test_a_placebo_of_several_runs_is_judged_by_their_own_spread(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    drifts = {"placebo-1": 0.9, "placebo-2": 0.5}

    def more_runs(runs: pd.DataFrame) -> pd.DataFrame:
        (one,) = [row for row in runs.to_dict("records") if row["run"] == "placebo-0"]
        others = [one | {"run": run, "seed": i} for i, run in enumerate(drifts, 1)]
        return pd.concat([runs, pd.DataFrame(others)], ignore_index=True)

    def more_items(items: pd.DataFrame) -> pd.DataFrame:
        own = items[items["run"] == "placebo-0"]
        rng = np.random.default_rng(0)
        kept = [
            own.assign(run=run, score=own["score"] * (rng.random(len(own)) < share))
            for run, share in drifts.items()
        ]
        return pd.concat([items, *kept], ignore_index=True)

    single = results_of(read_tables(tmp_path), Settings())
    edit(tmp_path, "runs.parquet", more_runs)
    edit(tmp_path, "items.parquet", more_items)
    tables = read_tables(tmp_path)
    results = results_of(tables, Settings())
    pair = {"arm": "placebo", "against": "base/observe", "suite": "reasoning", "benchmark": None}
    row, before = find(results["contrasts"], **pair), find(single["contrasts"], **pair)
    assert row["method"] == OWN_RUNS_METHOD != before["method"]
    measured = Measures(tables=tables, settings=Settings()).of("score")
    assert measured is not None
    outcome = measured.outcome
    runs = ["placebo-0", "placebo-1", "placebo-2"]
    key = ("reasoning", None)
    means = outcome.means[key][runs].to_numpy()
    own = float(np.var(means, ddof=1)) / 3
    items, items_df = outcome.item_variance(key, runs, ["base-observe"])
    df = (own + items) ** 2 / (own**2 / 2 + items**2 / items_df)
    half = scipy.stats.t.ppf(0.975, df) * np.sqrt(own + items)
    assert row["delta"] == pytest.approx(means.mean() - outcome.means[key]["base-observe"])
    assert row["high"] - row["low"] == pytest.approx(2 * half)
    assert row["high"] - row["low"] > 2 * (before["high"] - before["low"])


def test_leave_one_out_with_one_seed_is_not_estimable(made: Write) -> None:
    tables = made(Made(design="leave_one_out", clusters=10, optional=False))
    results = results_of(tables, Settings())
    for row in results["effects"]:
        assert row["estimable"] is False
        assert row["low"] is None and row["p"] is None and row["p_adjusted"] is None
        assert "add seeds" in row["why"]
    assert all(row["low"] is None for row in results["contrasts"])
    assert all(row["checkpoints_low"] is not None for row in results["contrasts"])
    assert all(row["value"] is None for row in results["mde"])
    trained = [row for row in results["arms"] if row["kind"] != "base"]
    assert all(row["low"] is None and row["method"] == "not estimable" for row in trained)
    assert "not estimable" in results["verdict"] or "No factor" in results["verdict"]


def test_leave_one_out_with_seeds_compares_with_the_reference(made: Write) -> None:
    tables = made(Made(design="leave_one_out", seeds=(0, 1, 2), clusters=10, optional=False))
    results = results_of(tables, Settings())
    row = find(results["effects"], factor="format", suite="reasoning")
    reference = find(results["arms"], arm=tables.reference, suite="reasoning", benchmark=None)
    without = find(
        results["arms"],
        arm="curriculum+bonus+dynamic_weights",
        suite="reasoning",
        benchmark=None,
    )
    assert row["estimate"] == pytest.approx(reference["mean"] - without["mean"])
    assert row["df"] == 10 and row["estimable"]
    assert row["assumes"] is not None
    assert reference["seeds"] == 3
    assert not any(pair["estimable"] for pair in results["interactions"])


def test_results_have_the_fields_others_rely_on(built: Path) -> None:
    results = json.loads((built / "results.json").read_text())
    fields = {
        "arms": "arm suite benchmark mean low high items seeds",
        "effects": "factor level against suite estimate low high p p_adjusted method df estimable "
        "why",
        "interactions": "factors suite estimate low high",
        "contrasts": "arm against suite delta low high p p_adjusted method",
        "validity": "check ok detail",
        "mde": "suite value",
    }
    for name, keys in fields.items():
        assert results[name], name
        for row in results[name]:
            assert set(keys.split()) <= set(row), name
    assert results["reference_arm"] == "curriculum+format+bonus+dynamic_weights"
    assert isinstance(results["verdict"], str)
    assert len({(r["arm"], r["suite"], r["benchmark"]) for r in results["arms"]}) == 20 * 7
    pairs = [(r["arm"], r["against"], r["suite"]) for r in results["contrasts"]]
    assert len(pairs) == len(set(pairs))
    table = pd.read_csv(built / "results.csv")
    assert set(table["table"]) >= {"arms", "effects", "contrasts"}


def test_every_arm_meets_the_base_under_its_own_prompt(example: Path) -> None:
    tables = read_tables(example)
    results = results_of(tables, Settings())
    for row in results["contrasts"]:
        if row["against"].startswith("base/"):
            assert row["against"] == f"base/{tables.prompt_of(row['arm'])}"
    against = {row["against"] for row in results["contrasts"] if row["arm"] == "placebo"}
    assert against == {"base/observe", tables.reference}


def test_equal_tables_give_equal_bytes(built: Path) -> None:
    """In another process too, where sets and hashes come in another order."""
    first = {file: file.read_bytes() for file in built.rglob("*") if file.is_file()}
    assert {file.name for file in first} >= {
        *("index.html", "report.md", "tables.tex", "results.json", "results.csv"),
        *("arms.png", "arms.svg"),
    }
    command = [sys.executable, "-m", "reports", str(built.parent)]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert {file: file.read_bytes() for file in built.rglob("*") if file.is_file()} == first


def test_the_page_is_one_file_without_network(built: Path) -> None:
    page = (built / "index.html").read_text()
    for address in ("http://", "https://", "//cdn", "<script src", '<link rel="style', "@import"):
        assert address not in page.replace("http://www.w3.org", "")
    assert page.count("<img") == page.count(' alt="')
    for section in (
        "verdict",
        "validity",
        "arms",
        "effects",
        "interactions",
        "contrasts",
        "length",
    ):
        assert f'id="{section}"' in page
    for section in ("curves", "ladder", "mechanisms", "samples", "cost", "provenance"):
        assert f'id="{section}"' in page
    assert "data:image/png;base64," in page and "data:image/svg+xml;base64," in page


def test_missing_optional_tables_are_said_to_be_missing(made: Write, tmp_path: Path) -> None:
    made(Made(clusters=10, effects=TWO, optional=False))
    target = build_report(tmp_path)
    page = (target / "index.html").read_text()
    for what in ("curves", "ladder", "stages", "responses"):
        assert f"Not recorded: {what}" in page
    assert "Not recorded: ladder" in (target / "report.md").read_text()
    assert not (target / "figures" / "ladder.png").exists()


def test_only_required_columns_are_enough(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    keep = ["run", "suite", "benchmark", "item", "cluster", "attempt", "score"]
    edit(tmp_path, "items.parquet", lambda items: items[keep])
    edit(
        tmp_path,
        "runs.parquet",
        lambda runs: runs[[c for c in runs if c != "kind" and not c.startswith("train_")]],
    )
    page = (build_report(tmp_path, ["html"]) / "index.html").read_text()
    assert "Not recorded: response_tokens" in page
    assert "Not recorded: train summaries" in page


def test_one_arm_one_benchmark_and_no_factor_still_make_a_report(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)

    def alone(sweep: dict[str, Any]) -> dict[str, Any]:
        suites = {"reasoning": ["count"]}
        changed = {"factors": {}, "suites": suites, "reference_arm": "control", "cells": []}
        return sweep | changed | {"planned_contrasts": []}

    edit(tmp_path, "sweep.json", alone)
    edit(tmp_path, "runs.parquet", lambda runs: runs[runs["arm"] == "control"])
    edit(
        tmp_path,
        "items.parquet",
        lambda items: items[(items["run"] == "control-0") & (items["benchmark"] == "count")],
    )
    assert main([str(tmp_path)]) == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["effects"] == [] and len(results["arms"]) == 2


def test_scores_that_are_all_equal_give_no_false_certainty(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    edit(tmp_path, "items.parquet", lambda items: items.assign(score=1.0))
    results = results_of(read_tables(tmp_path), Settings())
    assert not any(row["estimable"] for row in results["effects"] + results["contrasts"])
    build_report(tmp_path, ["html"])


def test_a_base_that_is_always_right_has_no_interval_of_width_zero(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)

    def perfect(items: pd.DataFrame) -> pd.DataFrame:
        return items.assign(score=items["score"].where(~items["run"].str.startswith("base"), 1.0))

    edit(tmp_path, "items.parquet", perfect)
    rows = results_of(read_tables(tmp_path), Settings())["arms"]
    base = find(rows, arm="base/think", suite="reasoning", benchmark=None)
    assert base["mean"] == 1 and base["low"] is None and "no variation" in base["why"]


def test_validity_names_what_is_wrong(tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=10, effects=FOUR))
    edit(tmp_path, "runs.parquet", lambda runs: runs[runs["arm"] != "bonus"])

    def spoil(items: pd.DataFrame) -> pd.DataFrame:
        items = items[items["run"] != "bonus-0"]
        cut = items["run"] == "format-0"
        return items.assign(
            truncated=items["truncated"] | cut,
            format_ok=items["format_ok"] & ~cut,
            score=items["score"].where(~(cut & (items["item"] == "count-0001"))),
        )

    edit(tmp_path, "items.parquet", spoil)
    edit(tmp_path, "runs.parquet", lambda r: r.assign(code=["other", *r["code"].tolist()[1:]]))
    rows = results_of(read_tables(tmp_path), Settings())["validity"]
    broken = {row["check"]: row["detail"] for row in rows if row["ok"] is False}
    assert broken["every planned run is there"] == "missing: bonus (seed 0)"
    assert "format; limit 5%" in broken["responses were not cut off"]
    assert "format; limit 10%" in broken["responses keep the format"]
    assert "1f2e3d4, other" in broken["all arms come from the same code"]
    assert main([str(tmp_path), "--format", "json"]) == 1


def test_as_many_items_are_not_the_same_items(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)

    def swap(items: pd.DataFrame) -> pd.DataFrame:
        other = (items["run"] == "format-0") & (items["item"] == "count-0001")
        return items.assign(item=items["item"].mask(other, "another"))

    edit(tmp_path, "items.parquet", swap)
    rows = results_of(read_tables(tmp_path), Settings())["validity"]
    row = find(rows, check="all runs answered the same items")
    assert row["ok"] is False and row["detail"] == "runs were asked different items of count"


def test_long_seeds_are_told_apart(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    edit(tmp_path, "runs.parquet", lambda runs: runs.assign(seed=runs["seed"] + 20261201))
    planned = [{"arm": "format", "seed": seed} for seed in (20261201, 20261202)]
    edit(tmp_path, "sweep.json", lambda sweep: sweep | {"cells": planned})
    assert missing_runs(read_tables(tmp_path)) == ["format (seed 20261202)"]


def test_a_planned_pair_is_one_test_however_often_it_is_named(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    pairs = [("format", "control"), ("bonus", "control"), ("format", "control"), ("format",) * 2]
    planned = [{"arm": arm, "against": against} for arm, against in pairs]
    edit(tmp_path, "sweep.json", lambda sweep: sweep | {"planned_contrasts": planned})
    found = results_of(read_tables(tmp_path), Settings())["contrasts"]
    rows = [r for r in found if r["family"] == "planned" and r["suite"] == "reasoning"]
    assert [row["arm"] for row in rows] == ["format", "bonus"]
    assert min(row["p_adjusted"] / row["p"] for row in rows) <= 2


def test_a_broken_gate_stands_above_the_verdict(built: Path) -> None:
    page = (built / "index.html").read_text()
    assert page.index("Read with care") < page.index('id="verdict"')
    assert "paid in no group" in page


def test_a_control_is_judged_by_its_suites_together(example: Path) -> None:
    tables = read_tables(example)
    assert variant_role(tables, "placebo") == "placebo"
    assert variant_role(tables, "second_seed") == "second seed"
    results = results_of(tables, Settings())
    rows = [row for row in results["validity"] if "“" in row["check"]]
    assert len(rows) == 2 and all(row["ok"] is not None for row in rows)

    def judged(**p: float) -> bool | None:
        found = [
            row | {"p": p[row["suite"]]} if row["arm"] == "second_seed" else row
            for row in results["contrasts"]
        ]
        again = validity(tables, results | {"contrasts": found})
        (row,) = (row for row in again if "second_seed" in row["check"])
        return row["ok"]

    assert judged(reasoning=0.4, general=0.026, all=0.01), "two chances of a false alarm"
    assert judged(reasoning=0.4, general=0.024, all=0.9) is False


def test_one_factor_claims_are_checked(tmp_path: Path) -> None:
    write_example(tmp_path, SMALL)
    claim = {"arm": "curriculum+format", "against": "control", "factor": "format"}
    edit(tmp_path, "sweep.json", lambda sweep: sweep | {"planned_contrasts": [claim]})
    rows = results_of(read_tables(tmp_path), Settings())["validity"]
    row = find(rows, check="one-factor contrasts differ in one factor")
    assert row["ok"] is False and "curriculum, format" in row["detail"]


def test_the_verdict_says_what_matters_and_what_is_open(made: Write) -> None:
    tables = made(Made(effects=FOUR, exact=True, run_sd=0.002, clusters=3, optional=False))
    results = results_of(tables, Settings())
    answer, unresolved, gain, caveat = verdict(tables, results)
    said = (
        r"On reasoning, format \(.*\) and curriculum \(.*\) help; bonus \(.*\) harms\. On general"
    )
    assert re.match(said, answer)
    assert "after Holm's correction over the 4 main effects" in answer
    assert unresolved.startswith("Unresolved on reasoning is dynamic_weights (")
    assert "in four of five cases" in unresolved
    assert "without regard to tags" in gain and "faithfulness" in gain and "general" in gain
    assert "one base model, one ladder and one seed that all arms share" in caveat
    several = made(Made(effects=FOUR, seeds=(0, 1), clusters=3, optional=False))
    *_, caveat = verdict(several, results_of(several, Settings()))
    assert caveat.endswith("conditional on one base model and one ladder.")


def test_the_answer_at_a_glance_is_the_verdicts(made: Write) -> None:
    tables = made(Made(effects=FOUR, exact=True, run_sd=0.002, clusters=3, optional=False))
    rows = {
        row["label"]: row["suites"]["reasoning"]
        for row in glance(tables, results_of(tables, Settings()))
    }
    words = {"curriculum": "helps", "format": "helps", "bonus": "harms", "dynamic_weights": "open"}
    assert {name: row["word"] for name, row in rows.items()} == words
    for row in rows.values():
        zero, low, middle, high = row["bar"]
        assert 0 <= low < middle < high <= BAR and 0 <= zero <= BAR
        assert (low > zero) == (row["low"] > 0) and (high < zero) == (row["high"] < 0)


def test_what_cannot_be_known_is_said_once_and_not_called_open(made: Write) -> None:
    tables = made(Made(effects={"bonus": 0.06}, clusters=3, variants=False, optional=False))
    results = results_of(tables, Settings())
    assert [row["word"] for one in glance(tables, results) for row in one["suites"].values()] == [
        "",
        "",
    ]
    answer, gain, _ = verdict(tables, results)
    assert answer.startswith("No factor's effect on reasoning and general is estimable: one run")
    assert answer.count("one run") == 1 and "an interval is not estimable" in gain


def test_an_effect_that_only_the_correction_holds_back_is_named(made: Write) -> None:
    tables = made(Made(effects=FOUR, clusters=3, optional=False))
    results = results_of(tables, Settings())
    for row in results["effects"]:
        row |= (
            {"p": 0.03, "p_adjusted": 0.12}
            if row["factor"] == "bonus"
            else {"p": 0.6, "p_adjusted": 1.0}
        )
    answer = verdict(tables, results)[0]
    assert "no factor's effect stands after Holm's correction; bonus comes nearest" in answer
    assert "p 0.03, adjusted 0.12" in answer
    assert holds("holm", 0.95) == "stands after Holm's correction"
    assert holds("none", 0.95) == "p at most 0.05, without a correction"


def test_points_are_signed_and_zero_is_not() -> None:
    assert points(0.0312) == "+3.1"
    assert points(-0.0312) == "−3.1"
    assert points(-0.0001) == "0.0"
    assert points(None) == "not estimable"
    assert not Interval(estimate=0.1).estimable


def test_samples_show_fixed_broken_and_unsolved_questions(example: Path) -> None:
    tables = read_tables(example)
    shown = samples(tables)
    assert shown is not None
    assert {row["kind"] for row in shown.rows} == {"fixed", "broken", "never right"}
    for row in shown.rows:
        verdicts = [answer["correct"] for answer in row["answers"]]
        arms = [answer["arm"] for answer in row["answers"]]
        assert arms == ["base/observe", "control", tables.reference]
        assert row["image"].startswith("data:image/png;base64,")
        expected = {"fixed": [False, True], "broken": [True, False], "never right": [False, False]}
        assert [verdicts[0], verdicts[2]] == expected[row["kind"]]


def test_questions_whose_image_is_there_are_shown_first(example: Path, tmp_path: Path) -> None:
    shutil.copytree(example / "results", tmp_path / "results")
    last = "item.str[-1].isin(['1', '3', '5', '7', '9'])"
    edit(tmp_path, "questions.parquet", lambda t: t.assign(image=t["image"].mask(t.eval(last))))
    shown = samples(read_tables(tmp_path))
    assert shown is not None
    for count in shown.counts:
        there = [row["image"] is not None for row in shown.rows if row["kind"] == count["kind"]]
        assert there == sorted(there, reverse=True)
    assert {row["image"] is None for row in shown.rows} == {True, False}


def test_segments_keep_every_character() -> None:
    text = "a<think>b<observe>c</observe>d</think>\n<answer>e</answer></think>f<answer>"
    pieces = segments(text)
    assert "".join(piece.text for piece in pieces) == text
    kinds = {piece.text: piece.kind for piece in pieces if piece.kind != "tag"}
    assert kinds == {
        "a": "outside",
        "b": "think",
        "c": "observe",
        "d": "think",
        "\n": "outside",
        "e": "answer",
        "f": "outside",
    }


def test_hostile_responses_stay_text(tmp_path: Path) -> None:
    write_example(tmp_path, Made(clusters=10, effects=TWO))
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e|`"
    edit(tmp_path, "responses.parquet", lambda table: table.assign(response=evil))
    edit(tmp_path, "questions.parquet", lambda table: table.assign(question=evil))
    page = (build_report(tmp_path, ["html"]) / "index.html").read_text()
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert "&lt;script&gt;" in page


def bad(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda directory: edit(directory, name, change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "results" / "items.parquet").unlink(), "items.parquet: missing"),
        (lambda d: (d / "results" / "sweep.json").write_text("{"), "sweep.json: not JSON"),
        (
            lambda d: (d / "results" / "runs.parquet").write_bytes(b"nothing"),
            "runs.parquet: not a parquet table",
        ),
        (bad("sweep.json", lambda s: s | {"suites": 3}), "sweep.json: suites: expected"),
        (
            bad("sweep.json", lambda s: s | {"reference_arm": "best"}),
            "reference_arm = 'best': no such arm",
        ),
        (
            bad("sweep.json", lambda s: s | {"suites": {"reasoning": ["count"]}}),
            "benchmark .*: is not in sweep.json under suites",
        ),
        (bad("runs.parquet", lambda r: r.drop(columns="bonus")), "runs.parquet: column bonus"),
        (
            bad("runs.parquet", lambda r: r.assign(bonus=r["bonus"].replace("on", "yes"))),
            "bonus = 'yes': expected one of off, on",
        ),
        (
            bad("runs.parquet", lambda r: pd.concat([r, r.head(1)])),
            "run control-0: occurs twice",
        ),
        (
            bad("runs.parquet", lambda r: r.assign(kind=r["kind"].replace("cell", "trained"))),
            "kind = 'trained': expected one of cell, variant, base",
        ),
        (
            bad("runs.parquet", lambda r: r.assign(arm=r["arm"].replace("format", "control"))),
            "arm control: has runs of prompt think and observe; runs of one arm differ in",
        ),
        (
            bad("items.parquet", lambda i: i.drop(columns="cluster")),
            "items.parquet: column cluster",
        ),
        (bad("items.parquet", lambda i: i.assign(score=7.0)), "score = 7.0: expected 0 to 1"),
        (bad("items.parquet", lambda i: i.assign(score=None)), "score: every item is unscored"),
        (bad("items.parquet", lambda i: i.assign(run="x")), "run x: is not in runs.parquet"),
        (bad("items.parquet", lambda i: pd.concat([i, i.head(1)])), "occurs twice in count"),
        (
            bad("questions.parquet", lambda q: q.assign(image="../../secret.png")),
            "lies outside the folder",
        ),
        (
            bad("sweep.json", lambda s: s | {"provenance": {"correction": "tukey"}}),
            "correction = 'tukey': expected holm or none",
        ),
    ],
)
def test_bad_input_names_file_key_and_remedy(
    example: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    shutil.copytree(example / "results", tmp_path / "results")
    spoil(tmp_path)
    assert main([str(tmp_path), "--format", "html"]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "report").exists()


def test_asking_the_example_for_help_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        make_example(["--help"])
    assert not list(tmp_path.iterdir())


def test_the_correction_counts_the_effects_that_were_tested(made: Write) -> None:
    tables = made(Made(effects={"format": 0.3, "bonus": 0.0}, clusters=6, seeds=(0, 1)))
    results = results_of(tables, Settings())
    assert "correction over the 2 main effects" in verdict(tables, results)[0]
    unknown = {"estimable": False, "why": "x", "p": None, "p_adjusted": None}
    lost = [row | (unknown if row["factor"] == "bonus" else {}) for row in results["effects"]]
    assert "over the 2 main" not in verdict(tables, results | {"effects": lost})[0]


def test_the_command_end_to_end(example: Path, tmp_path: Path) -> None:
    shutil.copytree(example / "results", tmp_path / "results")
    command = [sys.executable, "-m", "reports", str(tmp_path), "--format=json", "--confidence=0.9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "report" / "results.json")
    assert json.loads((tmp_path / "report" / "results.json").read_text())["confidence"] == 0.9
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(tmp_path), "--format", "docx"]) == 2
    assert main([str(tmp_path), "--confidence", "2"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--unknown", "1"])
    with pytest.raises(TableError, match="expected html, md, tex, json"):
        build_report(tmp_path, ["docx"])
